//! The folder of a store: where it is, who holds it, and its files.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::config::{self, Durability};
use crate::types::private_folder;

/// The file that a process locks while it uses the folder. It holds the process's id.
const LOCK: &str = "lock";

/// The end of a segment's name.
const SEGMENT: &str = ".seg";

/// Where a server keeps what has to last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere. With a reason if the configuration does not say so.
    Memory(Option<&'static str>),
    /// In a folder that the configuration names.
    Named(PathBuf),
    /// In the default folder.
    Default(PathBuf),
}

impl Place {
    /// Returns the folder, if it is one.
    pub fn dir(&self) -> Option<&Path> {
        match self {
            Place::Memory(_) => None,
            Place::Named(dir) | Place::Default(dir) => Some(dir),
        }
    }

    /// Returns a sentence that says what is kept, where, and what that promises.
    pub fn promise(&self, durability: Durability) -> String {
        match self {
            Place::Memory(None) => "everything is kept in memory only: a restart forgets it".to_owned(),
            Place::Memory(Some(why)) => format!("everything is kept in memory only, and a restart forgets it: {why}"),
            Place::Named(dir) | Place::Default(dir) => {
                let promise = match durability {
                    Durability::Fsync => "survives kill -9 and a power cut",
                    Durability::Os | Durability::Memory => {
                        "survives kill -9 and restarts, but not a power cut (store.durability = \"fsync\" does)"
                    }
                };
                format!("what is answered is kept in {}: it {promise}", dir.display())
            }
        }
    }
}

/// Why a folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error(
        "{} is in use by {by}: stop that one, or give this one a folder of its own (store.dir), or none (store.durability = \"memory\")",
        .dir.display()
    )]
    Taken { dir: PathBuf, by: String },
    #[error("{} can't be used: {why}; make it a folder that this user can write to, or name another one (store.dir)", .dir.display())]
    Unusable { dir: PathBuf, why: io::Error },
}

/// A folder that this process holds.
#[derive(Debug)]
pub struct Folder {
    pub dir: PathBuf,
    _lock: Option<File>,
}

/// Returns where the configuration, and the environment, place the store.
pub fn place(config: &config::Store, variable: impl Fn(&str) -> Option<OsString>) -> Place {
    if config.durability == Durability::Memory {
        return Place::Memory(None);
    }
    if !config.dir.as_os_str().is_empty() {
        return Place::Named(config.dir.clone());
    }
    match private_folder::default("STATE_DIRECTORY", "XDG_STATE_HOME", ".local/state", variable) {
        Some(dir) => Place::Default(dir),
        None => Place::Memory(Some("neither store.dir, $STATE_DIRECTORY, $XDG_STATE_HOME nor $HOME names a folder")),
    }
}

impl Folder {
    /// Makes the folder, if it is not there, and takes it for this process.
    ///
    /// # Errors
    /// Another process holds it, or it can't be used.
    pub fn take(dir: &Path) -> Result<Folder, FolderError> {
        let unusable = |why| FolderError::Unusable { dir: dir.to_owned(), why };
        prepare(dir).map_err(unusable)?;
        let mut lock =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(dir.join(LOCK)).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = lock.read_to_string(&mut holder);
                let by = match holder.trim() {
                    "" => "another process".to_owned(),
                    holder => format!("the process {holder}"),
                };
                return Err(FolderError::Taken { dir: dir.to_owned(), by });
            }
            Err(TryLockError::Error(source)) => return Err(unusable(source)),
        }
        // For people; the lock is what counts.
        let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        Ok(Folder { dir: dir.to_owned(), _lock: Some(lock) })
    }

    /// Returns the folder without taking it: for those who only read.
    pub fn look(dir: &Path) -> Folder {
        Folder { dir: dir.to_owned(), _lock: None }
    }

    /// Returns the numbers of the segments, in order, with their sizes.
    ///
    /// # Errors
    /// The operating system's.
    pub fn segments(&self) -> io::Result<Vec<(u64, u64)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if let Some(number) = entry.file_name().to_str().and_then(number) {
                found.push((number, entry.metadata()?.len()));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    pub fn segment(&self, number: u64) -> PathBuf {
        self.dir.join(name(number))
    }

    /// Makes the folder's list of files as durable as files are that were synced.
    ///
    /// # Errors
    /// The operating system's.
    pub fn sync(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    /// Returns the bytes that are free on the folder's disk.
    ///
    /// # Errors
    /// The operating system's.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let disk = rustix::fs::statvfs(&self.dir)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
}

/// Returns the file name of a segment.
fn name(number: u64) -> String {
    format!("{number:012}{SEGMENT}")
}

/// Returns the number of the segment with this file name.
fn number(name: &str) -> Option<u64> {
    name.strip_suffix(SEGMENT)?.parse().ok()
}

fn prepare(dir: &Path) -> io::Result<()> {
    private_folder::create(dir)?;
    let metadata = fs::metadata(dir)?;
    // The store's files are this user's alone, but whoever can write to the folder can put others there.
    if metadata.mode() & 0o002 != 0 {
        return Err(io::Error::other("everybody can write to it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::config::Config;

    #[test]
    fn a_folder_is_the_configured_one_else_systemds_else_the_users() {
        let mut store = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0.store;
        let place = |store: &config::Store, variables: &[(&str, &str)]| {
            super::place(store, |name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
        };
        let all = [("STATE_DIRECTORY", "/var/lib/a:/var/lib/b"), ("XDG_STATE_HOME", "/x"), ("HOME", "/home/u")];
        assert_eq!(place(&store, &all), Place::Default("/var/lib/a".into()));
        assert_eq!(place(&store, &all[1..]), Place::Default("/x/signalpost".into()));
        assert_eq!(place(&store, &all[2..]), Place::Default("/home/u/.local/state/signalpost".into()));
        assert!(matches!(place(&store, &[]), Place::Memory(Some(_))));
        store.dir = "/data".into();
        assert_eq!(place(&store, &all), Place::Named("/data".into()));
        store.durability = Durability::Memory;
        assert_eq!(place(&store, &all), Place::Memory(None));
    }

    #[test]
    fn a_second_taker_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let first = Folder::take(&dir.path().join("store")).unwrap();
        let refused = Folder::take(&first.dir).unwrap_err().to_string();
        assert!(refused.contains(&format!("the process {}", std::process::id())) && refused.contains("store.dir"), "{refused}");
        let path = first.dir.clone();
        drop(first);
        Folder::take(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Folder::take(&path).unwrap_err().to_string().contains("everybody can write"));
    }

    #[test]
    fn segments_are_listed_in_the_order_of_their_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::look(dir.path());
        for (segment, bytes) in [(11, "xxx"), (2, "")] {
            fs::write(folder.segment(segment), bytes).unwrap();
        }
        fs::write(dir.path().join("notes.txt"), "").unwrap();
        assert_eq!(folder.segments().unwrap(), [(2, 0), (11, 3)]);
    }
}
