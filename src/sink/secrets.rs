//! The secrets of a sink, and what they sign: Standard Webhooks 1.0 (<https://www.standardwebhooks.com>).

use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{anyhow, ensure};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::types::file;

/// Bytes of a file with secrets. Each has some 50.
const FILE_BYTES_MAX: u64 = 1 << 16;

/// Begins each secret, so that a tool that searches for lost secrets finds it.
const PREFIX: &str = "whsec_";

/// The bytes of a secret that the specification allows.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// The keys of one sink, all of which sign.
#[derive(Debug)]
pub struct Secrets {
    keys: Vec<hmac::Key>,
}

/// When files changed and how long they are, to notice that they have.
pub type Stamp = Vec<Option<(SystemTime, u64)>>;

pub fn stamp(files: &[PathBuf]) -> Stamp {
    let stamp = |file: &PathBuf| {
        let data = std::fs::metadata(file).ok()?;
        Some((data.modified().ok()?, data.len()))
    };
    files.iter().map(stamp).collect()
}

impl Secrets {
    /// Reads all files, each with one secret in a line.
    ///
    /// # Errors
    /// A file can't be read, has no secret, or a line of it is not one. The error does not quote the line.
    pub fn read(files: &[PathBuf]) -> anyhow::Result<Secrets> {
        let mut keys = Vec::new();
        for path in files {
            let bytes = file::read(path, FILE_BYTES_MAX).map_err(|error| anyhow!("{} {error}", path.display()))?;
            let text = std::str::from_utf8(&bytes).map_err(|_| anyhow!("{} is not text", path.display()))?;
            let before = keys.len();
            for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
                let key = key(line.trim()).map_err(|wrong| anyhow!("line {} of {} {wrong}", number + 1, path.display()))?;
                keys.push(key);
            }
            ensure!(keys.len() > before, "{} holds no secret; a line of it is {PREFIX} and 24 to 64 bytes in base64", path.display());
        }
        Ok(Secrets { keys })
    }

    /// Returns the value of `webhook-signature`.
    pub fn sign(&self, id: &str, timestamp_s: u64, body: &[u8]) -> String {
        let head = format!("{id}.{timestamp_s}.");
        let signatures = self.keys.iter().map(|key| {
            let mut context = hmac::Context::with_key(key);
            context.update(head.as_bytes());
            context.update(body);
            format!("v1,{}", BASE64_STANDARD.encode(context.sign()))
        });
        signatures.collect::<Vec<_>>().join(" ")
    }
}

/// Reads a secret, or returns the end of a sentence whose subject is its line.
fn key(line: &str) -> Result<hmac::Key, String> {
    let encoded = line.strip_prefix(PREFIX).ok_or_else(|| format!("doesn't begin with {PREFIX}"))?;
    let bytes = BASE64_STANDARD.decode(encoded).map_err(|_| format!("isn't base64 after {PREFIX}"))?;
    if !SECRET_BYTES.contains(&bytes.len()) {
        return Err(format!("has a secret of {} bytes; it needs {} to {}", bytes.len(), SECRET_BYTES.start(), SECRET_BYTES.end()));
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(files: &[&str]) -> Result<Secrets, String> {
        let dir = tempfile::tempdir().unwrap();
        let files = files.iter().enumerate().map(|(index, text)| {
            let path = dir.path().join(index.to_string());
            std::fs::write(&path, text).unwrap();
            path
        });
        let shown = |error: anyhow::Error| error.to_string().replace(&format!("{}/", dir.path().display()), "");
        Secrets::read(&files.collect::<Vec<_>>()).map_err(shown)
    }

    #[test]
    fn the_signature_is_that_of_the_specifications_own_example() {
        let signed = secrets(&["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n"]).unwrap();
        let signature = signed.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn every_secret_signs_whether_in_one_file_or_in_several() {
        let (a, b) = (format!("whsec_{}", BASE64_STANDARD.encode([1; 24])), format!("whsec_{}", BASE64_STANDARD.encode([2; 64])));
        let one = |text: &str| secrets(&[text]).unwrap().sign("i", 1, b"x");
        let both = format!("{} {}", one(&a), one(&b));
        assert_eq!(secrets(&[&format!("{a}\n\n {b} \r\n")]).unwrap().sign("i", 1, b"x"), both);
        assert_eq!(secrets(&[&a, &b]).unwrap().sign("i", 1, b"x"), both);
    }

    #[test]
    fn what_is_no_secret_is_refused_with_its_line_and_without_its_text() {
        let short = format!("whsec_{}", BASE64_STANDARD.encode([1; 23]));
        let long = format!("whsec_{}", BASE64_STANDARD.encode([1; 65]));
        for (text, says) in [
            ("", "0 holds no secret"),
            ("\n \n", "0 holds no secret"),
            ("\nhunter2hunter2", "line 2 of 0 doesn't begin with whsec_"),
            ("whsec_hunter2!", "line 1 of 0 isn't base64 after whsec_"),
            (&short, "line 1 of 0 has a secret of 23 bytes; it needs 24 to 64"),
            (&long, "line 1 of 0 has a secret of 65 bytes"),
        ] {
            let error = secrets(&[text]).unwrap_err();
            assert!(error.starts_with(says) && !error.contains("hunter2"), "{text:?}: {error}");
        }
        let missing = Secrets::read(&["/nowhere/secret".into()]).unwrap_err().to_string();
        assert!(missing.starts_with("/nowhere/secret can't be read"), "{missing}");
    }
}
