//! Logs on stderr: text on a terminal, JSON lines elsewhere, unless configured otherwise.
//!
//! The server never waits for the reader of the log. A thread of its own writes; a line for which there is no room is dropped and counted,
//! and errors of stderr are ignored. Lines over `log.lines_per_second_max` are dropped and counted too, so that nobody can fill a disk with
//! log lines about themselves.

use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;
use tracing::Subscriber;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{fmt, reload};

use crate::config::{Log, LogFormat, LogLevel};

/// Lines that wait for stderr at most: some megabytes, and more than a burst of faults makes while the log's reader rotates its files.
const LINES_MAX: usize = 4096;

/// What has dropped lines: a full queue and the pace.
static DROPPED: OnceLock<(ErrorCounter, Arc<Pace>)> = OnceLock::new();

/// Replaces the level of the process's log.
static LEVEL: OnceLock<Box<dyn Fn(LevelFilter) + Send + Sync>> = OnceLock::new();

/// Starts logging, until the guard is dropped. Only the first call of a process has an effect.
#[must_use = "dropping the guard writes the last lines"]
pub fn start(log: &Log) -> WorkerGuard {
    let terminal = io::stderr().is_terminal();
    let (lines, guard) = NonBlockingBuilder::default().buffered_lines_limit(LINES_MAX).finish(io::stderr());
    // The second call of a process finds a logger in place, and keeps it.
    let pace = Arc::new(Pace::new(log.lines_per_second_max.get()));
    let _ = DROPPED.set((lines.error_counter(), pace.clone()));
    let lines = move || Paced { out: lines.clone(), pace: pace.clone() };
    // The level is a layer of its own, which can be replaced. A level that is off costs nothing more for that: tracing asks once for each call site.
    let builder = fmt().with_max_level(LevelFilter::TRACE).with_target(false).log_internal_errors(false);
    let text = match log.format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    if text {
        begin(builder.with_ansi(terminal).with_writer(move || OneLine(lines())).finish(), filter(log.level));
    } else {
        begin(builder.with_writer(lines).json().flatten_event(true).finish(), filter(log.level));
    }
    guard
}

/// Makes this the process's logger, unless it has one.
fn begin<S: Subscriber + Send + Sync + 'static>(logger: S, level: LevelFilter) {
    let (layer, handle) = reload::Layer::new(level);
    if logger.with(layer).try_init().is_ok() {
        let _ = LEVEL.set(Box::new(move |level| drop(handle.reload(level))));
    }
}

/// Changes what is logged from now on: the level and the pace. The format stays.
pub fn change(log: &Log) {
    if let Some(replace) = LEVEL.get() {
        replace(filter(log.level));
    }
    if let Some((_, pace)) = DROPPED.get() {
        pace.lines_max.store(log.lines_per_second_max.get(), Ordering::Relaxed);
    }
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Returns the number of lines that were dropped because nobody read them in time, or because there were too many in a second.
pub fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |(unread, pace)| unread.dropped_lines() as u64 + pace.second.lock().dropped)
}

/// Lets a number of lines pass in each second.
#[derive(Debug)]
struct Pace {
    began: Instant,
    lines_max: AtomicU32,
    second: Mutex<Second>,
}

/// The lines of the current second, and those that were dropped since the start.
#[derive(Debug, Default)]
struct Second {
    number: u64,
    lines: u32,
    dropped: u64,
}

impl Pace {
    fn new(lines_max: u32) -> Pace {
        Pace { began: Instant::now(), lines_max: AtomicU32::new(lines_max), second: Mutex::default() }
    }

    /// Returns whether one more line may be written in this second since the start. If not, counts it.
    fn admits(&self, number: u64) -> bool {
        let mut second = self.second.lock();
        if second.number != number {
            (second.number, second.lines) = (number, 0);
        }
        let is_admitted = second.lines < self.lines_max.load(Ordering::Relaxed);
        if is_admitted {
            second.lines += 1;
        } else {
            second.dropped += 1;
        }
        is_admitted
    }
}

/// Writes each line for which there is time. A line is one call.
#[derive(Clone, Debug)]
struct Paced<W> {
    out: W,
    pace: Arc<Pace>,
}

impl<W: Write> Write for Paced<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.pace.admits(self.pace.began.elapsed().as_secs()) {
            self.out.write_all(line)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
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
    fn lines_over_the_pace_are_dropped_and_counted_and_the_next_second_has_its_own() {
        let pace = Arc::new(Pace::new(3));
        let mut out = Paced { out: Vec::new(), pace: pace.clone() };
        for number in 0..5 {
            out.write_all(format!("{number}\n").as_bytes()).unwrap();
        }
        // The third second of a machine that stood still, and one that the clock may not reach in this test.
        let admitted: Vec<bool> = (0..4).map(|_| pace.admits(u64::MAX)).collect();
        assert_eq!(admitted, [true, true, true, false]);
        let written = String::from_utf8(out.out).unwrap();
        let dropped = pace.second.lock().dropped as usize;
        assert!(written.starts_with("0\n1\n2\n") && written.lines().count() + dropped == 6, "{written} and {dropped}");
    }

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        for (line, expected) in [("plain\n", "plain\n"), ("a\nb\r\nc\n", "a\\nb\\r\\nc\n"), ("\n", "\n"), ("open\nend", "open\\nend\n")] {
            let mut out = OneLine(Vec::new());
            out.write_all(line.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(out.0).unwrap(), expected);
        }
    }
}
