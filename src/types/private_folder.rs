//! Folders of this program alone: which one, and whether others can change it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Returns the folder that applies when the configuration names none: systemd's, of which there may be several, else `signalpost` in the
/// user's. `systemd`, `user` and `below_home` name them, as in `CACHE_DIRECTORY`, `XDG_CACHE_HOME` and `.cache`.
pub fn default(systemd: &str, user: &str, below_home: &str, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let variable = |name| variable(name).filter(|value| !value.is_empty());
    if let Some(folders) = variable(systemd) {
        return std::env::split_paths(&folders).next();
    }
    // A relative path is invalid, and ignored (XDG Base Directory Specification).
    let user = variable(user).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let user = user.or_else(|| Some(PathBuf::from(variable("HOME")?).join(below_home)));
    Some(user?.join("signalpost"))
}

/// Makes a folder, if it is not there, that only this user can enter.
///
/// # Errors
/// The operating system's.
pub fn create(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Checks that only this user, and root, can put another folder in the place of this one.
///
/// # Errors
/// Somebody else can, or the folders above it can't be looked at.
pub fn check_above(dir: &Path) -> io::Result<()> {
    // In a sticky folder, such as /tmp, only the owner can.
    for above in fs::canonicalize(dir)?.ancestors().skip(1) {
        let metadata = fs::metadata(above)?;
        let is_safe = [0, rustix::process::geteuid().as_raw()].contains(&metadata.uid())
            && (metadata.mode() & 0o022 == 0 || metadata.mode() & 0o1000 != 0);
        if !is_safe {
            let above = above.display();
            return Err(io::Error::other(format!("{above} must belong to this user or to root, and nobody else may write to it")));
        }
    }
    Ok(())
}
