//! Reads files that somebody else may change at any moment: a plugin, a key, a certificate.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;
use thiserror::Error;

/// Why a file was not read: the end of a sentence whose subject is the file.
#[derive(Debug, Error)]
pub enum ReadError {
    #[error("can't be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("is not a file")]
    NotAFile,
    #[error("has {bytes} bytes, over the limit of {bytes_max}")]
    TooLarge { bytes: u64, bytes_max: u64 },
}

/// Reads a whole file. Never waits: a pipe may have no writer, and a device may never end. Checks the open file and not the path, since
/// another file may take its place between a check of the path and the opening.
///
/// # Errors
/// It can't be read, is not a file, or is larger than `bytes_max`.
pub fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, ReadError> {
    // To open a pipe without a writer would wait for one, and a terminal could become the server's own.
    let never_waits = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(never_waits).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(ReadError::NotAFile);
    }
    if metadata.len() > bytes_max {
        return Err(ReadError::TooLarge { bytes: metadata.len(), bytes_max });
    }
    let mut bytes = Vec::new();
    // One byte more than allowed, to notice a file that grows while it is read.
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    let read = bytes.len() as u64;
    if read > bytes_max { Err(ReadError::TooLarge { bytes: read, bytes_max }) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Makes a pipe, which nobody writes to.
    fn pipe(path: &Path) {
        let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
        assert!(made.success());
    }

    /// Reads on a thread of its own: a read that waits must not keep the test from ending.
    fn read_soon(path: &Path, bytes_max: u64) -> Result<Vec<u8>, ReadError> {
        let (sender, receiver) = mpsc::channel();
        let path = path.to_owned();
        std::thread::spawn(move || sender.send(read(&path, bytes_max)));
        receiver.recv_timeout(Duration::from_secs(10)).expect("a read does not wait")
    }

    #[test]
    fn a_file_is_read_up_to_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "12345").unwrap();
        assert_eq!(read_soon(&file, 5).unwrap(), b"12345");
        assert!(matches!(read_soon(&file, 4), Err(ReadError::TooLarge { bytes: 5, bytes_max: 4 })));
        symlink(&file, dir.path().join("link")).unwrap();
        assert_eq!(read_soon(&dir.path().join("link"), 5).unwrap(), b"12345");
        std::fs::write(&file, "").unwrap();
        assert_eq!(read_soon(&file, 4).unwrap(), b"");
        assert!(matches!(read_soon(&dir.path().join("none"), 4), Err(ReadError::Unreadable(_))));
    }

    #[test]
    fn what_is_not_a_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (fifo, link) = (dir.path().join("pipe"), dir.path().join("link"));
        pipe(&fifo);
        symlink(&fifo, &link).unwrap();
        for path in [&fifo, &link, dir.path(), Path::new("/dev/zero"), Path::new("/dev/null")] {
            assert!(matches!(read_soon(path, 1 << 20), Err(ReadError::NotAFile)), "{}", path.display());
        }
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(matches!(read_soon(&socket, 1), Err(ReadError::Unreadable(_))));
    }
}
