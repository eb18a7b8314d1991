//! The source of plugins: a folder, today. An enum, since the set is closed. A listing that fails is an error and does not mean that the
//! plugins are gone: the caller keeps the policies that serve.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::config::{Config, OnBad};
use crate::types::file;

#[derive(Debug)]
pub enum Source {
    /// `NAME.wasm` in `plugins.dir`, and the files that the configuration names.
    Folder {
        dir: PathBuf,
        file_bytes_max: u64,
        /// The file of each policy that the configuration names, whether or not it is there; with `on_bad = "skip"`, only if it names the file.
        configured: BTreeMap<String, PathBuf>,
        /// Policies that the configuration disables.
        disabled: Vec<String>,
        /// The file of each policy's candidate. It is not a policy of its own.
        candidates: BTreeMap<String, PathBuf>,
    },
}

/// A plugin's file that was read, to be loaded.
#[derive(Debug)]
pub struct Found {
    pub name: String,
    pub file: PathBuf,
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
        self.content.as_ref().ok().map(|content| content.digest.as_str())
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
    pub fn new(config: &Config) -> Source {
        let dir = config.plugins.dir.clone();
        let may_lack = config.plugins.on_bad == OnBad::Skip;
        let named = config.policies.iter().filter(|(_, policy)| policy.file.is_some() || (policy.is_named && !may_lack));
        let named = named.map(|(name, policy)| (name.clone(), dir.join(policy.file.clone().unwrap_or_else(|| own_file(name)))));
        let disabled = config.policies.iter().filter(|(_, policy)| policy.enabled == Some(false)).map(|(name, _)| name.clone());
        let file_bytes_max = config.plugins.file_bytes_max.get();
        let on_trial = config.policies.iter().filter_map(|(name, policy)| Some((name.clone(), dir.join(&policy.candidate.as_ref()?.file))));
        let candidates = on_trial.collect();
        Source::Folder { configured: named.collect(), disabled: disabled.collect(), candidates, file_bytes_max, dir }
    }

    /// Returns where a policy's file is looked for; `None` if the policy is disabled.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        let Source::Folder { dir, configured, disabled, .. } = self;
        let file = || configured.get(name).cloned().unwrap_or_else(|| dir.join(own_file(name)));
        (!disabled.iter().any(|disabled| disabled == name)).then(file)
    }

    /// Returns the file of a policy's candidate, if the configuration names one and the policy is not disabled.
    pub fn candidate(&self, name: &str) -> Option<PathBuf> {
        let Source::Folder { candidates, disabled, .. } = self;
        candidates.get(name).filter(|_| !disabled.iter().any(|disabled| disabled == name)).cloned()
    }

    /// Reads one policy's file. If it can't be read, the result has the reason.
    pub fn found(&self, name: &str, file: &Path) -> Found {
        let Source::Folder { configured, .. } = self;
        let content = self.read(file).map_err(|error| match error {
            ReadError::Unreadable(why) if why.kind() == io::ErrorKind::NotFound && configured.contains_key(name) => {
                ReadError::NotThere { name: name.to_owned() }
            }
            error => error,
        });
        Found { name: name.to_owned(), file: file.to_owned(), content }
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
        let Source::Folder { candidates, .. } = self;
        Ok(self.files()?.into_values().chain(candidates.values().cloned()).map(look).collect())
    }

    /// Reads one file, which need not be in the folder.
    ///
    /// # Errors
    /// The file can't be read, or is too large.
    pub fn read(&self, path: &Path) -> Result<Content, ReadError> {
        let Source::Folder { file_bytes_max, .. } = self;
        let bytes = file::read(path, *file_bytes_max).map_err(|error| match error {
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
        let Source::Folder { dir, configured, disabled, candidates, .. } = self;
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
