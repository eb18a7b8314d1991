//! The versions of plugins that have served, in a folder beside the store: what a start serves if a plugin's file is refused.
//!
//! `NAME.DIGEST.wasm` is a version that was loaded. There are two of a name only while the newer one is on trial. `NAME.DIGEST.refused` holds
//! the reason why that version was rolled back, so that the next start does not take it up again. The folder is bounded by the plugins that
//! there are: what belongs to none of them is removed. Content whose digest is not that of its name is not used.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::types::private_folder;

/// The ends of the names of a version's component, and of the reason why a version was rolled back.
const COMPONENT: &str = ".wasm";
const REFUSED: &str = ".refused";

/// The end of the name of a file that is being written.
const UNFINISHED: &str = ".unfinished";

/// Versions of one plugin: the one that serves, and the one before it while that is on trial.
const VERSIONS_MAX: usize = 2;

#[derive(Debug)]
pub struct Kept {
    dir: PathBuf,
    /// The digests of each plugin's versions, the newest last.
    versions: Mutex<BTreeMap<String, Vec<String>>>,
}

impl Kept {
    /// Opens the folder, and makes it if it is not there. Returns `None` if it can't be used; then no version outlives the process.
    pub fn open(dir: &Path) -> Option<Kept> {
        match private_folder::create(dir).and_then(|()| versions(dir)) {
            Ok(versions) => Some(Kept { dir: dir.to_owned(), versions: Mutex::new(versions) }),
            Err(error) => {
                tracing::warn!("the last good versions of plugins are not kept in {}: {error}", dir.display());
                None
            }
        }
    }

    /// Returns whether any plugin has served from this store.
    pub fn is_empty(&self) -> bool {
        self.versions.lock().is_empty()
    }

    /// Returns whether a plugin of this name has served.
    pub fn knows(&self, name: &str) -> bool {
        self.versions.lock().contains_key(name)
    }

    /// Returns the names of all plugins that have served.
    pub fn names(&self) -> Vec<String> {
        self.versions.lock().keys().cloned().collect()
    }

    /// Returns the digests and files of a plugin's versions except this one, the newest first.
    pub fn others(&self, name: &str, digest: Option<&str>) -> Vec<(String, PathBuf)> {
        let versions = self.versions.lock();
        let others = versions.get(name).into_iter().flatten().rev().filter(|other| Some(other.as_str()) != digest);
        others.map(|other| (other.clone(), self.file(name, other, COMPONENT))).collect()
    }

    /// Keeps a version that was loaded, as the newest of its plugin, and forgets why others were rolled back. A failure is logged.
    pub fn keep(&self, name: &str, digest: &str, bytes: impl FnOnce() -> Option<Vec<u8>>) {
        let mut versions = self.versions.lock();
        let known = versions.entry(name.to_owned()).or_default();
        if known.last().is_some_and(|newest| newest == digest) {
            return;
        }
        let file = self.file(name, digest, COMPONENT);
        let written = if known.iter().any(|version| version == digest) {
            fs::File::options().write(true).open(&file).and_then(|file| file.set_modified(SystemTime::now()))
        } else {
            let Some(bytes) = bytes() else { return };
            write(&file, &bytes)
        };
        known.retain(|version| version != digest);
        known.push(digest.to_owned());
        let written = written.and_then(|()| {
            while known.len() > VERSIONS_MAX {
                remove(&self.file(name, &known.remove(0), COMPONENT))?;
            }
            self.remove_refusals(name)
        });
        if let Err(error) = written {
            tracing::warn!(policy = name, "the last good version is not kept in {}: {error}", self.dir.display());
        }
    }

    /// Forgets the other versions of a plugin: this one has passed its trial.
    pub fn settle(&self, name: &str, digest: &str) {
        let mut versions = self.versions.lock();
        let Some(known) = versions.get_mut(name).filter(|known| known.len() > 1 && known.iter().any(|version| version == digest)) else {
            return;
        };
        for other in known.extract_if(.., |version| *version != digest) {
            if let Err(error) = remove(&self.file(name, &other, COMPONENT)) {
                tracing::warn!(policy = name, "an old version stays in {}: {error}", self.dir.display());
            }
        }
    }

    /// Forgets a version that was rolled back, and notes why.
    pub fn roll_back(&self, name: &str, digest: &str, reason: &str) {
        let mut versions = self.versions.lock();
        if let Some(known) = versions.get_mut(name) {
            known.retain(|version| version != digest);
        }
        let noted = write(&self.file(name, digest, REFUSED), reason.as_bytes()).and_then(|()| remove(&self.file(name, digest, COMPONENT)));
        if let Err(error) = noted {
            tracing::warn!(policy = name, "that a version was rolled back is not noted in {}: {error}", self.dir.display());
        }
    }

    /// Returns why a version was rolled back, if it was.
    pub fn refusal(&self, name: &str, digest: &str) -> Option<String> {
        fs::read_to_string(self.file(name, digest, REFUSED)).ok()
    }

    /// Forgets the plugins for which `is_there` says no: their files were taken away.
    pub fn retain(&self, is_there: impl Fn(&str) -> bool) {
        let mut versions = self.versions.lock();
        versions.retain(|name, _| is_there(name));
        let removed = fs::read_dir(&self.dir).and_then(|entries| {
            entries.flatten().try_for_each(|entry| match entry.file_name().to_str().and_then(parse) {
                Some((name, _, _)) if !is_there(name) => remove(&entry.path()),
                _ => Ok(()),
            })
        });
        if let Err(error) = removed {
            tracing::warn!("versions of former plugins stay in {}: {error}", self.dir.display());
        }
    }

    fn remove_refusals(&self, name: &str) -> io::Result<()> {
        fs::read_dir(&self.dir)?.flatten().try_for_each(|entry| match entry.file_name().to_str().and_then(parse) {
            Some((of, _, REFUSED)) if of == name => remove(&entry.path()),
            _ => Ok(()),
        })
    }

    fn file(&self, name: &str, digest: &str, end: &str) -> PathBuf {
        self.dir.join(format!("{name}.{digest}{end}"))
    }
}

/// Returns the versions in a folder, and removes what a process did not finish to write.
fn versions(dir: &Path) -> io::Result<BTreeMap<String, Vec<String>>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let file = entry.file_name();
        let Some(file) = file.to_str() else { continue };
        if file.ends_with(UNFINISHED) {
            remove(&entry.path())?;
        } else if let Some((name, digest, COMPONENT)) = parse(file) {
            found.push((entry.metadata()?.modified()?, name.to_owned(), digest.to_owned()));
        }
    }
    found.sort();
    let mut versions = BTreeMap::<String, Vec<String>>::new();
    for (_, name, digest) in found {
        versions.entry(name).or_default().push(digest);
    }
    Ok(versions)
}

/// Returns the plugin, the digest and the end of a file's name.
fn parse(file: &str) -> Option<(&str, &str, &'static str)> {
    let (rest, end) = [COMPONENT, REFUSED].into_iter().find_map(|end| Some((file.strip_suffix(end)?, end)))?;
    let (name, digest) = rest.rsplit_once('.')?;
    let is_digest = digest.len() == 64 && digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_digest.then_some((name, digest, end))
}

/// Writes a file under another name first, so that no start finds half of it.
fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut unfinished = file.as_os_str().to_owned();
    unfinished.push(UNFINISHED);
    let mut output = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    output.write_all(bytes)?;
    fs::rename(&unfinished, file)
}

fn remove(file: &Path) -> io::Result<()> {
    fs::remove_file(file).or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u8) -> String {
        format!("{number:064x}")
    }

    fn files(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_plugin_has_two_versions_until_the_newer_one_has_passed_its_trial() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(dir.path()).unwrap();
        for number in [1, 2, 3] {
            kept.keep("a.b", &digest(number), || Some(vec![number]));
        }
        kept.keep("other", &digest(1), || Some(vec![1]));
        assert_eq!(
            files(dir.path()),
            [2, 3].map(|n| format!("a.b.{}.wasm", digest(n))).into_iter().chain([format!("other.{}.wasm", digest(1))]).collect::<Vec<_>>()
        );
        let others =
            |kept: &Kept, digest: Option<&str>| kept.others("a.b", digest).into_iter().map(|(digest, _)| digest).collect::<Vec<_>>();
        assert_eq!(others(&kept, None), [digest(3), digest(2)]);
        assert_eq!(others(&kept, Some(&digest(3))), [digest(2)]);
        // An older one that serves again is the newest, also for the next process.
        kept.keep("a.b", &digest(2), || panic!("it is there"));
        assert_eq!(others(&kept, None), [digest(2), digest(3)]);
        assert_eq!(others(&Kept::open(dir.path()).unwrap(), None), [digest(2), digest(3)]);
        kept.settle("a.b", &digest(2));
        assert_eq!((others(&kept, None), kept.knows("other")), (vec![digest(2)], true));
        assert_eq!(files(dir.path()).len(), 2);
    }

    #[test]
    fn a_version_that_was_rolled_back_is_refused_until_another_one_serves() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(dir.path()).unwrap();
        kept.keep("a", &digest(1), || Some(vec![1]));
        kept.keep("a", &digest(2), || Some(vec![2]));
        kept.roll_back("a", &digest(2), "it faulted");
        let again = Kept::open(dir.path()).unwrap();
        assert_eq!(again.refusal("a", &digest(2)).as_deref(), Some("it faulted"));
        assert_eq!((again.refusal("a", &digest(1)), again.refusal("b", &digest(2))), (None, None));
        assert_eq!(again.others("a", None).len(), 1);
        again.keep("a", &digest(3), || Some(vec![3]));
        assert_eq!(again.refusal("a", &digest(2)), None);
    }

    #[test]
    fn what_belongs_to_no_plugin_and_what_is_unfinished_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(dir.path()).unwrap();
        for name in ["a", "b"] {
            kept.keep(name, &digest(1), || Some(vec![1]));
            kept.keep(name, &digest(2), || Some(vec![1]));
            kept.roll_back(name, &digest(2), "why");
        }
        fs::write(dir.path().join("notes.txt"), "").unwrap();
        fs::write(dir.path().join(format!("a.{}.wasm{UNFINISHED}", digest(9))), "").unwrap();
        let kept = Kept::open(dir.path()).unwrap();
        kept.retain(|name| name == "a");
        assert_eq!((kept.names(), kept.is_empty()), (vec!["a".to_owned()], false));
        assert_eq!(files(dir.path()), [format!("a.{}.wasm", digest(1)), format!("a.{}.refused", digest(2)), "notes.txt".to_owned()]);
        assert!(Kept::open(&dir.path().join("notes.txt")).is_none());
    }
}
