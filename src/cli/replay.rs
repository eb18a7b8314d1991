//! `signalpost replay`: makes recorded calls again by another component, and shows where the outcome differs.

use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use super::ServerFlags;
use super::terminal::{count, plain};
use crate::kit::Workbench;
use crate::kit::replay::{self, Line, Played, Player, Verdict};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// The recording, as `signalpost record` has written it.
    file: PathBuf,
    /// The component that makes the calls again.
    #[arg(long, value_name = "FILE", required_unless_present = "pick")]
    policy: Option<PathBuf>,
    /// Compare with what this component makes of the calls, not with what was recorded.
    #[arg(long, value_name = "FILE", conflicts_with = "pick")]
    against: Option<PathBuf>,
    /// The configuration with the policy's settings; SIGNALPOST_CONFIG by default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Calls to show that differ or can't be compared; the others are counted.
    #[arg(long, value_name = "N", default_value_t = 20)]
    show: usize,
    /// Succeed although some calls can't be compared, since the recording lacks what the component reads.
    #[arg(long)]
    allow_inconclusive: bool,
    /// Print the call on this line of the recording as a fixture for `plugin test`.
    #[arg(long, value_name = "LINE", value_parser = clap::value_parser!(u64).range(1..))]
    pick: Option<u64>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (config, _) = ServerFlags::of(arguments.config.clone()).load()?;
    let file = &arguments.file;
    let open = || File::open(file).map(BufReader::new).with_context(|| format!("can't read {}", file.display()));
    if let Some(number) = arguments.pick {
        let index = usize::try_from(number - 1).unwrap_or(usize::MAX);
        let line = open()?.lines().nth(index).with_context(|| format!("{} has no line {number}", file.display()))??;
        let fixture = replay::pick(&line, &config).with_context(|| format!("line {number}"))?;
        return Ok(std::io::stdout().write_all(fixture.as_bytes())?);
    }
    let Some(policy) = &arguments.policy else { bail!("--policy names the component that makes the calls again") };
    let bench = Workbench::for_edits(config)?;
    let mut replayed = Replayed { arguments, players: None, report: Report::default() };
    for (number, line) in (1_u64..).zip(open()?.lines()) {
        let line = line.with_context(|| format!("can't read {}", file.display()))?;
        replayed.line(number, &line, &bench, policy).with_context(|| format!("{}, line {number}", file.display()))?;
    }
    replayed.report.finish(arguments)
}

struct Replayed<'a> {
    arguments: &'a Arguments,
    /// The component, and perhaps another one.
    players: Option<(Player, Option<Player>)>,
    report: Report,
}

#[derive(Default)]
struct Report {
    /// The policy and its version, as recorded.
    of: String,
    /// Whether some calls were made with other settings than these.
    has_other_settings: bool,
    shown: String,
    shown_calls: usize,
    same: u64,
    differ: u64,
    inconclusive: u64,
    lost: u64,
    end: Option<String>,
}

impl Replayed<'_> {
    fn line(&mut self, number: u64, line: &str, bench: &Workbench, policy: &Path) -> anyhow::Result<()> {
        match replay::read(line, bench.config())? {
            Line::Header => {}
            Line::Lost(count) => self.report.lost += count,
            Line::End(reason) => self.report.end = Some(reason),
            Line::Call(call) => {
                if self.players.is_none() {
                    let against = self.arguments.against.as_ref().map(|file| Player::load(bench, &call.policy, file)).transpose()?;
                    self.players = Some((Player::load(bench, &call.policy, policy)?, against));
                    self.report.of = format!("{} {}", call.policy, call.version);
                }
                let Some((player, against)) = &self.players else { return Ok(()) };
                self.report.has_other_settings |= against.is_none() && player.settings() != call.settings;
                let verdict = player.judge(&call, against.as_ref());
                self.report.take(number, &call, verdict, self.arguments.show);
            }
        }
        Ok(())
    }
}

impl Report {
    fn take(&mut self, number: u64, call: &Played, verdict: Verdict, show: usize) {
        let lines = match verdict {
            Verdict::Same => {
                self.same += 1;
                return;
            }
            Verdict::Differs(lines) => {
                self.differ += 1;
                lines
            }
            Verdict::Inconclusive(why) => {
                self.inconclusive += 1;
                vec![format!("inconclusive: {why}")]
            }
        };
        self.shown_calls += 1;
        if self.shown_calls <= show {
            self.shown.push_str(&format!("line {number}: {}, {}\n", plain(&call.what()), plain(&call.at)));
            lines.iter().for_each(|line| self.shown.push_str(&format!("  {}\n", plain(line))));
        }
    }

    fn finish(self, arguments: &Arguments) -> anyhow::Result<()> {
        let Report { same, differ, inconclusive, lost, shown_calls, .. } = self;
        let calls = same + differ + inconclusive;
        if calls == 0 {
            bail!("{} has no calls", arguments.file.display());
        }
        // How much was recorded comes before what came out.
        let ended = match self.end.as_deref() {
            None => "; the recording is cut off",
            Some("count" | "minutes") => "",
            Some(_) => "; the recording ended early",
        };
        let mut text = format!("{} of {}, {lost} lost{ended}\n", count(calls, "call", "calls"), plain(&self.of));
        if self.has_other_settings {
            text.push_str("note: they were recorded with other settings; --config names the configuration that has them\n");
        }
        text.push_str(&self.shown);
        if shown_calls > arguments.show {
            text.push_str(&format!("… and {} more; --show says how many to show\n", shown_calls - arguments.show));
        }
        text.push_str(&format!("{same} same, {differ} differ, {inconclusive} inconclusive\n"));
        std::io::stdout().write_all(text.as_bytes())?;
        if differ > 0 {
            bail!("{} (expected ≠ actual)", count(differ, "call differs", "calls differ"));
        }
        if inconclusive > 0 && !arguments.allow_inconclusive {
            bail!("{} be compared; --allow-inconclusive lets that pass", count(inconclusive, "call can't", "calls can't"));
        }
        Ok(())
    }
}
