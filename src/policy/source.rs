//! The source of plugins: a folder, or what the nodes of a cluster have agreed on. An enum, since the set is closed. A listing that fails is an
//! error and does not mean that the plugins are gone: the caller keeps the policies that serve.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::config::{Config, OnBad};
use crate::model::agreement::{Agreed, Component};
use crate::types::file;

#[derive(Debug)]
pub enum Source {
    Folder(Folder),
    /// The components on which the nodes of a cluster have agreed, whatever their files are here.
    Agreed {
        /// Where a component is looked for first.
        folder: Folder,
        agreed: Arc<Agreed>,
        /// Components that are not in the folder, by their digests.
        fetched: HashMap<String, Vec<u8>>,
    },
}

/// `NAME.wasm` in `plugins.dir`, and the files that the configuration names.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    file_bytes_max: u64,
    /// The file of each policy that the configuration names, whether or not it is there; with `on_bad = "skip"`, only if it names the file.
    configured: BTreeMap<String, PathBuf>,
    /// Policies that the configuration disables.
    disabled: Vec<String>,
    /// The file of each policy's candidate. It is not a policy of its own.
    candidates: BTreeMap<String, PathBuf>,
}

/// A plugin's file that was read, to be loaded.
#[derive(Debug)]
pub struct Found {
    pub name: String,
    pub file: PathBuf,
    /// SHA-256 of the component, in hexadecimal, if it is known.
    pub digest: Option<String>,
    pub content: Result<Content, ReadError>,
}

/// Why a file can't be read: the end of a sentence whose subject is the plugin.
#[derive(Clone, Debug, Error)]
pub enum ReadError {
    /// Shared, since an error of the system can't be cloned.
    #[error("can't be read: {0}")]
    Unreadable(Arc<io::Error>),
    #[error("is not there, and [policies.{name}] configures it: put the plugin there, set `file`, or take the table out")]
    NotThere { name: String },
    #[error("is not a file")]
    NotAFile,
    #[error("has {bytes} bytes, over the limit of {bytes_max} (plugins.file_bytes_max)")]
    TooLarge { bytes: u64, bytes_max: u64 },
    #[error("is not there: the nodes of the cluster have agreed on another component than this node has")]
    NotFetched,
}

#[derive(Debug)]
pub struct Content {
    /// SHA-256, in hexadecimal.
    pub digest: String,
    pub bytes: Vec<u8>,
}

/// The metadata of every plugin's file, to notice a change cheaply.
pub type Fingerprint = Vec<(PathBuf, Option<[i64; 4]>)>;

impl Found {
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }
}

/// Returns the digest of a component: SHA-256, in hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(bytes))
}

/// Returns the file of a policy whose configuration names none.
fn own_file(name: &str) -> PathBuf {
    format!("{name}.wasm").into()
}

impl Source {
    /// Returns the source that a server has if it is alone.
    pub fn new(config: &Config) -> Source {
        Source::Folder(Folder::new(config))
    }

    /// Returns the policy's place among those that are called together, if the configuration does not decide it.
    pub fn rank(&self, name: &str) -> Option<usize> {
        match self {
            Source::Folder(_) => None,
            Source::Agreed { agreed, .. } => agreed.components.iter().position(|component| component.name == name),
        }
    }

    /// Returns whether policies are taken together or not at all, also if one of them was refused before.
    pub fn is_whole(&self) -> bool {
        matches!(self, Source::Agreed { .. })
    }

    /// Returns the node's own folder.
    pub fn folder(&self) -> &Folder {
        match self {
            Source::Folder(folder) | Source::Agreed { folder, .. } => folder,
        }
    }

    /// Finds every policy's file, by the policy's name.
    ///
    /// # Errors
    /// The plugins can't be listed.
    pub fn files(&self) -> io::Result<BTreeMap<String, PathBuf>> {
        match self {
            Source::Folder(folder) => folder.files(),
            Source::Agreed { folder, agreed, .. } => {
                let file = |component: &Component| Some((component.name.clone(), folder.file(&component.name)?));
                Ok(agreed.components.iter().filter_map(file).collect())
            }
        }
    }

    /// Reads one policy's component. If it can't be read, the result has the reason.
    pub fn found(&self, name: &str, file: &Path) -> Found {
        let Source::Agreed { folder, agreed, fetched } = self else { return self.folder().found(name, file) };
        let digest = agreed.components.iter().find(|component| component.name == name).map(|component| component.digest.clone());
        let in_folder = || folder.read(file).ok().filter(|content| Some(&content.digest) == digest.as_ref());
        let elsewhere = || digest.as_ref().and_then(|digest| Some(Content { digest: digest.clone(), bytes: fetched.get(digest)?.clone() }));
        let content = in_folder().or_else(elsewhere).ok_or(ReadError::NotFetched);
        Found { name: name.to_owned(), file: file.to_owned(), digest, content }
    }
}

impl Folder {
    pub fn new(config: &Config) -> Folder {
        let dir = config.plugins.dir.clone();
        let may_lack = config.plugins.on_bad == OnBad::Skip;
        let named = config.policies.iter().filter(|(_, policy)| policy.file.is_some() || (policy.is_named && !may_lack));
        let named = named.map(|(name, policy)| (name.clone(), dir.join(policy.file.clone().unwrap_or_else(|| own_file(name)))));
        let disabled = config.policies.iter().filter(|(_, policy)| policy.enabled == Some(false)).map(|(name, _)| name.clone());
        let file_bytes_max = config.plugins.file_bytes_max.get();
        let on_trial = config.policies.iter().filter_map(|(name, policy)| Some((name.clone(), dir.join(&policy.candidate.as_ref()?.file))));
        let candidates = on_trial.collect();
        Folder { configured: named.collect(), disabled: disabled.collect(), candidates, file_bytes_max, dir }
    }

    /// Returns whether no plugin is there, also if the configuration names some. What can't be looked at may be there.
    pub fn is_empty(&self) -> bool {
        self.files().is_ok_and(|files| files.values().all(|file| matches!(file.try_exists(), Ok(false))))
    }

    /// Returns where a policy's file is looked for; `None` if the policy is disabled.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        let Folder { dir, configured, disabled, .. } = self;
        let file = || configured.get(name).cloned().unwrap_or_else(|| dir.join(own_file(name)));
        (!disabled.iter().any(|disabled| disabled == name)).then(file)
    }

    /// Returns the file of a policy's candidate, if the configuration names one and the policy is not disabled.
    pub fn candidate(&self, name: &str) -> Option<PathBuf> {
        self.candidates.get(name).filter(|_| !self.disabled.iter().any(|disabled| disabled == name)).cloned()
    }

    /// Reads one policy's file. If it can't be read, the result has the reason.
    pub fn found(&self, name: &str, file: &Path) -> Found {
        let content = self.read(file).map_err(|error| match error {
            ReadError::Unreadable(why) if why.kind() == io::ErrorKind::NotFound && self.configured.contains_key(name) => {
                ReadError::NotThere { name: name.to_owned() }
            }
            error => error,
        });
        let digest = content.as_ref().ok().map(|content| content.digest.clone());
        Found { name: name.to_owned(), file: file.to_owned(), digest, content }
    }

    /// Returns the metadata of every plugin's file.
    ///
    /// # Errors
    /// The plugins can't be listed.
    pub fn fingerprint(&self) -> io::Result<Fingerprint> {
        let look = |file: PathBuf| {
            // The inode and its change time also show a replacement of the same size and modification time.
            let seen = std::fs::metadata(&file).ok();
            let seen = seen.map(|seen| [seen.ino().cast_signed(), seen.size().cast_signed(), seen.ctime(), seen.ctime_nsec()]);
            (file, seen)
        };
        Ok(self.files()?.into_values().chain(self.candidates.values().cloned()).map(look).collect())
    }

    /// Reads one file, which need not be in the folder.
    ///
    /// # Errors
    /// The file can't be read, or is too large.
    pub fn read(&self, path: &Path) -> Result<Content, ReadError> {
        let bytes = file::read(path, self.file_bytes_max).map_err(|error| match error {
            file::ReadError::Unreadable(error) => ReadError::Unreadable(Arc::new(error)),
            file::ReadError::NotAFile => ReadError::NotAFile,
            file::ReadError::TooLarge { bytes, bytes_max } => ReadError::TooLarge { bytes, bytes_max },
        })?;
        Ok(Content { digest: digest(&bytes), bytes })
    }

    /// Finds every policy's file, by the policy's name.
    ///
    /// # Errors
    /// The plugins can't be listed.
    pub fn files(&self) -> io::Result<BTreeMap<String, PathBuf>> {
        let Folder { dir, configured, disabled, candidates, .. } = self;
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let Some(name) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
            // Editors and copying tools keep unfinished files in the same folder, under names that begin with a dot.
            if path.extension().is_some_and(|extension| extension == "wasm") && !name.starts_with('.') {
                files.insert(name.to_owned(), path.clone());
            }
        }
        // A file that is configured under other names isn't also loaded under its own.
        files.retain(|_, known| !configured.values().chain(candidates.values()).any(|file| file == known));
        files.extend(configured.iter().map(|(name, file)| (name.clone(), file.clone())));
        files.retain(|name, _| !disabled.contains(name));
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nodes_have_agreed_on_is_found_by_its_digest_in_the_folder_or_among_what_was_fetched() {
        let dir = tempfile::tempdir().unwrap();
        for (file, bytes) in [("same", "1"), ("changed", "2, changed"), ("other", "other")] {
            std::fs::write(dir.path().join(format!("{file}.wasm")), bytes).unwrap();
        }
        let mut config = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0;
        config.plugins.dir = dir.path().to_owned();
        let component = |name: &str, bytes: &str| Component { name: name.to_owned(), digest: digest(bytes.as_bytes()) };
        let components = vec![component("fetched", "3"), component("same", "1"), component("changed", "2"), component("missing", "4")];
        let agreed = Arc::new(Agreed { revision: 1, id: crate::types::delivery::PolicySetId(1), components });
        let fetched = ["2", "3"].map(|bytes| (digest(bytes.as_bytes()), bytes.as_bytes().to_vec())).into();
        let source = Source::Agreed { folder: Folder::new(&config), agreed, fetched };
        let files = source.files().unwrap();
        assert_eq!(files.keys().collect::<Vec<_>>(), ["changed", "fetched", "missing", "same"], "and not what the others don't have");
        for (name, bytes) in [("same", Some("1")), ("changed", Some("2")), ("fetched", Some("3")), ("missing", None)] {
            let found = source.found(name, &files[name]);
            assert_eq!(found.content.as_ref().ok().map(|content| &*content.bytes), bytes.map(str::as_bytes), "{name}");
            assert_eq!(found.digest, Some(digest(bytes.unwrap_or("4").as_bytes())), "{name}");
        }
        let mut names = ["missing", "changed", "same", "fetched"];
        names.sort_by_key(|name| source.rank(name));
        assert_eq!(names, ["fetched", "same", "changed", "missing"], "in the order of all, whatever the configuration here");
    }

    #[test]
    fn a_folder_is_empty_if_no_plugin_is_there_whatever_the_configuration_names() {
        let dir = tempfile::tempdir().unwrap();
        let named: toml::Table = "[policies.named]\nenabled = true\n".parse().unwrap();
        let mut config = Config::load(None, named, std::iter::empty()).unwrap().0;
        config.plugins.dir = dir.path().to_owned();
        std::fs::write(dir.path().join(".unfinished.wasm"), "").unwrap();
        assert!(Folder::new(&config).is_empty());
        std::fs::write(dir.path().join("another.wasm"), "").unwrap();
        assert!(!Folder::new(&config).is_empty());
        config.plugins.dir = dir.path().join("gone");
        assert!(!Folder::new(&config).is_empty(), "it can't be listed");
    }
}
