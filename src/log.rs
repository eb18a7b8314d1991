//! Logs on stderr: text on a terminal, JSON lines elsewhere, unless configured otherwise.
//!
//! The server never waits for the reader of the log. A thread of its own writes; a line for which there is no room is dropped and counted,
//! and errors of stderr are ignored.

use std::io::{self, IsTerminal as _, Write};
use std::sync::OnceLock;

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt;

use crate::config::{Log, LogFormat, LogLevel};

/// Lines that wait for stderr at most: some megabytes, and more than a burst of faults makes while the log's reader rotates its files.
const LINES_MAX: usize = 4096;

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// Starts logging, until the guard is dropped. Only the first call of a process has an effect.
#[must_use = "dropping the guard writes the last lines"]
pub fn start(log: &Log) -> WorkerGuard {
    let level = match log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let terminal = io::stderr().is_terminal();
    let (lines, guard) = NonBlockingBuilder::default().buffered_lines_limit(LINES_MAX).finish(io::stderr());
    // The second call of a process finds a logger in place, and keeps it.
    let _ = DROPPED.set(lines.error_counter());
    let builder = fmt().with_max_level(level).with_target(false).log_internal_errors(false);
    let text = match log.format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let _ = if text {
        builder.with_ansi(terminal).with_writer(move || OneLine(lines.clone())).try_init()
    } else {
        builder.with_writer(lines).json().flatten_event(true).try_init()
    };
    guard
}

/// Returns the number of lines that were dropped because nobody read them in time.
pub fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |dropped| dropped.dropped_lines() as u64)
}

/// Writes each event as one line, so that data in it can't look like another line of the server.
#[derive(Clone, Debug)]
struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        if !text.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
            self.0.write_all(line)?;
            return Ok(line.len());
        }
        let mut escaped = Vec::with_capacity(line.len() + 16);
        for byte in text {
            match byte {
                b'\n' => escaped.extend_from_slice(b"\\n"),
                b'\r' => escaped.extend_from_slice(b"\\r"),
                byte => escaped.push(*byte),
            }
        }
        escaped.push(b'\n');
        self.0.write_all(&escaped)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        for (line, expected) in [("plain\n", "plain\n"), ("a\nb\r\nc\n", "a\\nb\\r\\nc\n"), ("\n", "\n"), ("open\nend", "open\\nend\n")] {
            let mut out = OneLine(Vec::new());
            out.write_all(line.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(out.0).unwrap(), expected);
        }
    }
}
