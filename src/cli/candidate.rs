//! `signalpost candidate`: shows how the candidate of a policy compares with it, promotes it, or drops it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::Args;
use http::Method;
use serde::Deserialize;

use super::client::{ENVIRONMENT, Server, encoded, parsed};
use super::terminal::{count, plain};

#[derive(Args, Debug)]
#[command(after_help = ENVIRONMENT)]
pub(super) struct Arguments {
    /// The policy.
    policy: String,
    /// Put the candidate in the policy's place. Refused if it is over its budget of differences or faults.
    #[arg(long, conflicts_with_all = ["drop", "json"])]
    promote: bool,
    /// End the trial.
    #[arg(long, conflicts_with = "json")]
    drop: bool,
    /// Examples to show of each kind of difference, at most 20.
    #[arg(long, value_name = "N", default_value_t = 3)]
    examples: usize,
    #[command(flatten)]
    server: Server,
}

/// The answer, perhaps of a server of another version.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    policy: String,
    mode: String,
    share: f64,
    state: String,
    reason: Option<String>,
    since: String,
    file: String,
    candidate: Version,
    live: Version,
    calls: BTreeMap<String, u64>,
    times: BTreeMap<String, Times>,
    differences: BTreeMap<String, Difference>,
    unfit: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Version {
    version: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Times {
    p50_us: f64,
    p99_us: f64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Difference {
    calls: u64,
    examples: Vec<Example>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Example {
    at: String,
    function: String,
    event_type: Option<String>,
    event: Option<String>,
    lines: Vec<String>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let server = &arguments.server;
    let address = server.address()?;
    let path = format!("/policies/{}/candidate", encoded(&arguments.policy));
    if arguments.promote {
        let answer = address.call(Method::POST, &format!("{path}/promote"))?;
        let promoted: Version = parsed(&answer)?;
        println!("{} {} serves", arguments.policy, plain(&promoted.version.unwrap_or_default()));
        return Ok(());
    }
    if arguments.drop {
        address.call(Method::DELETE, &path)?;
        println!("the candidate of {} is dropped", arguments.policy);
        return Ok(());
    }
    server.print(&address.get(&path)?, |answer| Ok(for_people(&parsed(answer)?, arguments.examples)))
}

fn for_people(answer: &Answer, examples: usize) -> String {
    let Answer { policy, mode, share, state, reason, since, file, candidate, live, calls, times, differences, unfit } = answer;
    let version = |version: &Version| version.version.as_deref().map_or_else(|| "?".to_owned(), plain);
    let mut out = format!(
        "{}: {} ({}), a {} of {}: {}, share {share}, since {}\n",
        plain(policy),
        version(candidate),
        plain(file),
        plain(mode),
        version(live),
        plain(&state.replace('_', " ")),
        plain(since)
    );
    // Writing to a string can't fail.
    if let Some(reason) = reason {
        let _ = writeln!(out, "it {}", plain(reason));
    }
    let number = |name: &str| calls.get(name).copied().unwrap_or_default();
    if calls.contains_key("compared") {
        let kinds: Vec<String> = differences.iter().map(|(kind, difference)| format!("{} {}", difference.calls, plain(kind))).collect();
        let kinds = if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) };
        let _ = writeln!(
            out,
            "{} compared, {} skipped, {} inconclusive: {} same, {} differ{kinds}, {}",
            number("compared"),
            number("skipped"),
            number("inconclusive"),
            number("same"),
            number("differ"),
            count(number("faults"), "fault", "faults")
        );
    } else {
        let _ = writeln!(
            out,
            "{} decided, {}, {}",
            count(number("decided"), "call", "calls"),
            count(number("refusals"), "refusal", "refusals"),
            count(number("faults"), "fault", "faults")
        );
    }
    if let (Some(before), Some(after)) = (times.get("live"), times.get("candidate")) {
        let _ = writeln!(out, "p50 {} → {} µs, p99 {} → {} µs", before.p50_us, after.p50_us, before.p99_us, after.p99_us);
    }
    for (kind, difference) in differences {
        // The latest come last.
        for example in difference.examples.iter().rev().take(examples) {
            let words = [Some(&example.function), example.event_type.as_ref(), example.event.as_ref()];
            let what: Vec<String> = words.into_iter().flatten().map(|word| plain(word)).collect();
            let _ = writeln!(out, "{}: {}, {}", plain(kind), what.join(" "), plain(&example.at));
            for line in &example.lines {
                let _ = writeln!(out, "  {}", plain(line));
            }
        }
    }
    if let Some(unfit) = unfit {
        let _ = writeln!(out, "it would not be promoted: it {}", plain(unfit));
    }
    out
}
