//! `signalpost record`: records the calls of a policy on a server, to try another version on them.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use form_urlencoded::Serializer;
use http::Method;
use http_body_util::BodyExt;

use super::client::{Address, ENVIRONMENT, encoded};
use super::terminal::count;
use crate::types::json::Json;

/// Only its user may read a recording: it holds what users sent.
const MODE: u32 = 0o600;

/// Bytes of a line. A longer one is not from this server.
const LINE_BYTES_MAX: usize = 64 << 20;

#[derive(Args, Debug)]
#[command(after_help = ENVIRONMENT)]
pub(super) struct Arguments {
    /// The policy whose calls are recorded.
    #[arg(long, value_name = "NAME")]
    policy: String,
    /// End after this many calls.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// End after this many minutes.
    #[arg(long, value_name = "M", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    minutes: u32,
    /// Replace the value at this path of the event, message or session, as in data.rider.name, wherever it occurs in the call. May be repeated.
    #[arg(long, value_name = "PATH")]
    redact: Vec<String>,
    /// The file to write; the standard output by default. Only you can read it.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Where the server's operators connect, with its base path.
    #[arg(long, default_value = "http://127.0.0.1:8080/api/pool")]
    url: String,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let address = Address::parse(&arguments.url)?;
    super::client_runtime()?.block_on(async {
        let stop = super::stop_signal()?;
        // Before the file is made: a refusal leaves none.
        let mut body = address.open(Method::POST, &arguments.path()).await?;
        let mut out = BufWriter::new(arguments.file()?);
        let mut lines = Lines::default();
        let recording = async {
            while let Some(part) = body.frame().await {
                let lost = |error| anyhow::anyhow!("the connection to {} was lost: {error}", address.authority);
                let Ok(bytes) = part.map_err(lost)?.into_data() else { continue };
                lines.write(&bytes, &mut out)?;
            }
            Ok(())
        };
        let recorded: anyhow::Result<()> = tokio::select! {
            recorded = recording => recorded,
            () = stop => Ok(()),
        };
        out.flush()?;
        recorded?;
        lines.tell()
    })
}

impl Arguments {
    /// Returns the path below the base path, with the bounds.
    fn path(&self) -> String {
        let mut query = Serializer::new(String::new());
        query.append_pair("count", &self.count.to_string()).append_pair("minutes", &self.minutes.to_string());
        if !self.redact.is_empty() {
            query.append_pair("redact", &self.redact.join(","));
        }
        format!("/policies/{}/record?{}", encoded(&self.policy), query.finish())
    }

    fn file(&self) -> anyhow::Result<File> {
        if let Some(file) = &self.output {
            let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(file);
            let opened = opened.with_context(|| format!("can't write {}", file.display()))?;
            // It may have been there before.
            opened.set_permissions(Permissions::from_mode(MODE)).with_context(|| format!("can't protect {}", file.display()))?;
            return Ok(opened);
        }
        let out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        // A shell has made the file that this is redirected to, for more readers than it should have.
        if out.metadata().is_ok_and(|seen| seen.is_file()) {
            out.set_permissions(Permissions::from_mode(MODE)).context("can't protect the file")?;
        }
        Ok(out)
    }
}

/// The lines of a recording as they arrive, and what they say of it.
#[derive(Debug, Default)]
struct Lines {
    part: Vec<u8>,
    calls: u64,
    lost: u64,
    end: Option<String>,
}

impl Lines {
    /// Writes what is complete. Empty lines only say that the server is there.
    fn write(&mut self, bytes: &[u8], out: &mut impl Write) -> anyhow::Result<()> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.part.extend_from_slice(piece);
            if self.part.len() > LINE_BYTES_MAX {
                bail!("the server sent a line of more than {LINE_BYTES_MAX} bytes");
            }
            if self.part.last() != Some(&b'\n') {
                return Ok(());
            }
            let line = std::mem::take(&mut self.part);
            if line.len() > 1 {
                out.write_all(&line)?;
                self.note(&line);
            }
        }
        Ok(())
    }

    fn note(&mut self, line: &[u8]) {
        if line.starts_with(b"{\"about\"") {
            self.calls += 1;
            return;
        }
        let Some(json) = std::str::from_utf8(line).ok().and_then(|line| Json::parse(line).ok()) else { return };
        let number = |json: Option<&Json>| json.and_then(|json| json.read::<u64>().ok()).unwrap_or_default();
        self.lost += number(json.get("lost"));
        if let Some(end) = json.get("end") {
            self.end = end.get("reason").and_then(|reason| reason.read().ok());
        }
    }

    /// Says on standard error what was recorded.
    fn tell(&self) -> anyhow::Result<()> {
        let lost = if self.lost > 0 { format!(", {} lost", self.lost) } else { String::new() };
        eprintln!("recorded {}{lost}", count(self.calls, "call", "calls"));
        match self.end.as_deref() {
            None | Some("count" | "minutes") => Ok(()),
            Some(other) => bail!("the recording ended early: {}", super::terminal::plain(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_written_whole_however_they_arrive_and_counted() {
        let stream = "{\"signalpost_recording\":1}\n\n{\"about\":\"a\"}\n{\"lost\":3}\n\n{\"about\":\"b\"}\n{\"end\":{\"reason\":\"count\"}}\n{\"about\":\"un";
        for size in [1, 2, 7, 1000] {
            let (mut lines, mut out) = (Lines::default(), Vec::new());
            stream.as_bytes().chunks(size).for_each(|chunk| lines.write(chunk, &mut out).unwrap());
            let written = String::from_utf8(out).unwrap();
            assert_eq!(written.lines().count(), 5, "{written}");
            assert_eq!((lines.calls, lines.lost, lines.end.as_deref()), (2, 3, Some("count")));
        }
    }
}
