//! Compiled artefacts in a folder, by the digest of their source and the engine that compiled them.
//!
//! wasmtime does not verify an artefact, so only bytes that this binary wrote may be deserialized. Therefore nobody else can write to
//! the folder, and each file begins with the digest of the rest, which a damaged file does not match. The folder may belong to others
//! too, such as a shared cache directory: only files with an artefact's name are ever removed.

use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use wasmtime::Engine;

use super::{Artefact, TrustedArtefact};
use crate::types::private_folder;

/// Artefacts that are kept: enough for every version of a day's work.
const ENTRIES_MAX: usize = 64;

/// Bytes of the SHA-256 digest before an artefact.
const SEAL_BYTES: usize = 32;

/// The end of the name of a file that is being written.
const UNFINISHED: &str = ".unfinished";

/// Writing takes less time than this, so an older unfinished file was left by a process that ended.
const UNFINISHED_AGE_MAX: Duration = Duration::from_secs(60);

/// A private folder with artefacts.
#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
}

/// The content of a file whose digest was right.
pub(super) struct Kept(Vec<u8>);

impl Kept {
    pub(super) fn trusted(&self) -> TrustedArtefact<'_> {
        TrustedArtefact(self.0.get(SEAL_BYTES..).unwrap_or_default())
    }
}

impl Cache {
    /// Opens the configured folder or the default one. Returns `None` if there is neither, or if the folder can't be used; then each
    /// start compiles.
    pub(super) fn open(configured: Option<&Path>) -> Option<Cache> {
        let configured = configured.filter(|dir| !dir.as_os_str().is_empty()).map(Path::to_path_buf);
        let dir = configured.or_else(|| default_dir(|name| std::env::var_os(name)))?;
        match prepare(&dir) {
            Ok(()) => {
                remove_unfinished(&dir);
                Some(Cache { dir })
            }
            Err(error) => {
                tracing::warn!("compiled plugins are not kept in {}: {error}", dir.display());
                None
            }
        }
    }

    /// Reads an artefact, if there is one and its digest is right.
    pub(super) fn load(&self, name: &str) -> Option<Kept> {
        let bytes = fs::read(self.dir.join(name)).ok()?;
        let (seal, artefact) = bytes.split_at_checked(SEAL_BYTES)?;
        (seal == Sha256::digest(artefact).as_slice()).then_some(Kept(bytes))
    }

    /// Writes an artefact, and removes the oldest ones above the limit. A failure is logged.
    pub(super) fn keep(&self, name: &str, artefact: &[u8]) {
        if let Err(error) = write(&self.dir.join(name), artefact).and_then(|()| remove_oldest(&self.dir)) {
            tracing::warn!("a compiled plugin is not kept in {}: {error}", self.dir.display());
        }
    }
}

/// Returns the file name of an artefact.
pub(super) fn artefact_name(engine: &Engine, digest: &str, suffix: &str) -> String {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{digest}-{:016x}{suffix}", hasher.finish())
}

/// Returns whether [`artefact_name`] makes names like this.
fn is_artefact_name(name: &str) -> bool {
    let is_hex = |text: &str, length: usize| text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let name = name.strip_suffix(<wasmtime::Module as Artefact>::SUFFIX).unwrap_or(name);
    name.split_once('-').is_some_and(|(digest, engine)| is_hex(digest, 64) && is_hex(engine, 16))
}

/// Returns Signalpost's cache, by the process's environment variables.
pub fn default_dir(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    private_folder::default("CACHE_DIRECTORY", "XDG_CACHE_HOME", ".cache", variable)
}

/// Makes the folder for this user alone, and refuses a folder that somebody else can write to.
fn prepare(dir: &Path) -> io::Result<()> {
    private_folder::create(dir)?;
    let metadata = fs::symlink_metadata(dir)?;
    let private = metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o077 == 0;
    if !private {
        return Err(io::Error::other("the folder must belong to this user, and be closed to all others (mode 700)"));
    }
    private_folder::check_above(dir)
}

/// Writes an artefact under another name first, so that no reader finds half of it.
fn write(file: &Path, artefact: &[u8]) -> io::Result<()> {
    let mut unfinished = file.as_os_str().to_owned();
    // A name of its own, also beside the server of another container with the same process id.
    unfinished.push(format!(".{}{UNFINISHED}", uuid::Uuid::new_v4()));
    let unfinished = PathBuf::from(unfinished);
    let written = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished).and_then(|mut output| {
        output.write_all(&Sha256::digest(artefact))?;
        output.write_all(artefact)?;
        fs::rename(&unfinished, file)
    });
    if written.is_err() {
        // Best effort: the first error is the one to report.
        let _ = fs::remove_file(&unfinished);
    }
    written
}

/// Returns the time of the last change, and the path, of each file in the folder whose name is accepted.
fn files(dir: &Path, accept: impl Fn(&str) -> bool) -> io::Result<Vec<(SystemTime, PathBuf)>> {
    let entries = fs::read_dir(dir)?.flatten().filter(|entry| entry.file_name().to_str().is_some_and(&accept));
    let file = |entry: fs::DirEntry| entry.metadata().ok().filter(fs::Metadata::is_file)?.modified().ok().zip(Some(entry.path()));
    Ok(entries.filter_map(file).collect())
}

/// Removes the oldest artefacts above the limit.
fn remove_oldest(dir: &Path) -> io::Result<()> {
    let mut kept = files(dir, is_artefact_name)?;
    kept.sort();
    let surplus = kept.len().saturating_sub(ENTRIES_MAX);
    for (_, oldest) in kept.into_iter().take(surplus) {
        remove(&oldest)?;
    }
    Ok(())
}

/// Removes files that a process began to write and did not finish.
fn remove_unfinished(dir: &Path) {
    let is_unfinished = |name: &str| {
        let named = name.strip_suffix(UNFINISHED).and_then(|name| name.rsplit_once('.'));
        named.is_some_and(|(name, _)| is_artefact_name(name))
    };
    let now = SystemTime::now();
    let removed = files(dir, is_unfinished).and_then(|files| {
        let is_old = |changed: &SystemTime| now.duration_since(*changed).is_ok_and(|age| age > UNFINISHED_AGE_MAX);
        files.iter().filter(|(changed, _)| is_old(changed)).try_for_each(|(_, file)| remove(file))
    });
    if let Err(error) = removed {
        tracing::warn!("unfinished files stay in {}: {error}", dir.display());
    }
}

/// Removes a file, which another process may have removed already.
fn remove(file: &Path) -> io::Result<()> {
    fs::remove_file(file).or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize, suffix: &str) -> String {
        format!("{number:064x}-0123456789abcdef{suffix}")
    }

    /// Opens a cache in a temporary folder, which is removed when the first of the two is dropped.
    fn cache() -> (tempfile::TempDir, Cache) {
        let parent = tempfile::tempdir().unwrap();
        let cache = Cache::open(Some(&parent.path().join("compiled"))).unwrap();
        (parent, cache)
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Makes a file that was last changed this long ago.
    fn aged(file: &Path, age: Duration) {
        fs::write(file, "x").unwrap();
        fs::File::options().write(true).open(file).unwrap().set_modified(SystemTime::now() - age).unwrap();
    }

    #[test]
    fn a_kept_artefact_is_read_back_unless_it_is_damaged() {
        let (_parent, cache) = cache();
        cache.keep(&name(1, ""), b"artefact");
        assert_eq!(cache.load(&name(1, "")).unwrap().trusted().0, b"artefact");
        assert_eq!(names(&cache.dir), [name(1, "")], "nothing unfinished is left");
        let file = cache.dir.join(name(1, ""));
        let whole = fs::read(&file).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[..SEAL_BYTES - 1], &[]] {
            fs::write(&file, damaged).unwrap();
            assert!(cache.load(&name(1, "")).is_none(), "{} bytes", damaged.len());
        }
    }

    #[test]
    fn only_the_oldest_artefacts_are_removed_and_no_other_file() {
        let (_parent, cache) = cache();
        // All are older than any artefact.
        let foreign =
            ["notes.txt".to_owned(), format!("{}.txt", name(0, "")), name(0, "-else"), name(0, "").to_uppercase(), "a-b".to_owned()];
        for foreign in &foreign {
            aged(&cache.dir.join(foreign), Duration::from_secs(100_000));
        }
        fs::create_dir(cache.dir.join(name(999, ""))).unwrap();
        for number in 0..ENTRIES_MAX {
            let suffix = if number % 2 == 0 { "" } else { "-module" };
            aged(&cache.dir.join(name(number, suffix)), Duration::from_secs(10_000 - number as u64));
        }
        cache.keep(&name(500, ""), b"artefact");
        cache.keep(&name(501, ""), b"artefact");
        let left = names(&cache.dir);
        assert!(!left.contains(&name(0, "")) && !left.contains(&name(1, "-module")), "the two oldest artefacts");
        assert!(left.contains(&name(2, "")) && left.contains(&name(501, "")) && left.contains(&name(999, "")));
        assert!(foreign.iter().all(|foreign| left.contains(foreign)), "{left:?}");
        assert_eq!(left.len(), ENTRIES_MAX + foreign.len() + 1);
    }

    #[test]
    fn unfinished_artefacts_of_ended_processes_are_removed_when_the_cache_is_opened() {
        let (_parent, cache) = cache();
        let old = UNFINISHED_AGE_MAX + Duration::from_secs(10);
        let unfinished = |number, suffix| format!("{}.17{UNFINISHED}", name(number, suffix));
        for (file, age) in [
            (unfinished(1, ""), old),
            (unfinished(2, "-module"), old),
            (unfinished(3, ""), Duration::ZERO),
            (format!("notes.17{UNFINISHED}"), old),
            (format!("{}{UNFINISHED}", name(4, "")), old),
            (name(5, ""), old),
        ] {
            aged(&cache.dir.join(file), age);
        }
        Cache::open(Some(&cache.dir)).unwrap();
        let mut expected = [unfinished(3, ""), format!("notes.17{UNFINISHED}"), format!("{}{UNFINISHED}", name(4, "")), name(5, "")];
        expected.sort();
        assert_eq!(names(&cache.dir), expected);
    }

    #[test]
    fn a_folder_below_one_that_others_can_write_to_is_not_used() {
        use std::os::unix::fs::PermissionsExt as _;

        let above = tempfile::tempdir().unwrap();
        let (between, dir) = (above.path().join("between"), above.path().join("between/compiled"));
        fs::create_dir(&between).unwrap();
        // The sticky bit keeps others from renaming what is not theirs.
        for (mode, is_used) in [(0o755, true), (0o1777, true), (0o777, false), (0o775, false), (0o702, false), (0o700, true)] {
            fs::set_permissions(&between, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Cache::open(Some(&dir)).is_some(), is_used, "{mode:o}");
        }
        fs::set_permissions(&between, fs::Permissions::from_mode(0o777)).unwrap();
        let link = above.path().join("link");
        std::os::unix::fs::symlink(&between, &link).unwrap();
        assert!(Cache::open(Some(&link.join("compiled"))).is_none(), "a link leads to the same folder");
    }

    #[test]
    fn the_default_folder_is_the_first_of_systemds_or_the_users() {
        let dir = |variables: &[(&str, &str)]| {
            let found = default_dir(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()));
            found.map(|dir| dir.to_str().unwrap().to_owned())
        };
        let home = ("HOME", "/home/a");
        assert_eq!(dir(&[("CACHE_DIRECTORY", "/var/cache/signalpost:/var/cache/other"), home]).as_deref(), Some("/var/cache/signalpost"));
        assert_eq!(dir(&[("CACHE_DIRECTORY", "/var/cache/signalpost"), home]).as_deref(), Some("/var/cache/signalpost"));
        assert_eq!(dir(&[("CACHE_DIRECTORY", ""), ("XDG_CACHE_HOME", "/c"), home]).as_deref(), Some("/c/signalpost"));
        for invalid in ["", "cache", "./cache"] {
            assert_eq!(dir(&[("XDG_CACHE_HOME", invalid), home]).as_deref(), Some("/home/a/.cache/signalpost"), "{invalid:?}");
        }
        assert_eq!(dir(&[]), None);
    }
}
