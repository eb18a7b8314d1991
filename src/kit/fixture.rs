//! Fixtures: a plugin's input and the expected output. One file is one case; its steps share one host.
//!
//! ```json
//! {
//!   "about": "A match notifies both riders and puts them in a group.",
//!   "host": { "sessions": [{ "user": "1001" }] },
//!   "steps": [
//!     {
//!       "event": { "type": "pooling.match.found", "data": { "rider_id": 1001 } },
//!       "decides": { "deliveries": [{ "to": ["1001"], "message": { "type": "pooling_match" } }] }
//!     }
//!   ]
//! }
//! ```
//!
//! The component runs in the server's own host, and the server's own dispatch applies its decisions. The clock stands still except for
//! `after_ms`. docs/plugins.md describes the format.

mod bench;
mod native;
mod stage;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::runtime::Builder;

use crate::config::Grant;
use crate::kit::Workbench;
use crate::types::json::{Json, differences};
use stage::Stage;

pub use bench::{Bench, Timed};

/// The members that say what a step does: each step has one.
const VERBS: [&str; 5] = ["event", "format", "opened", "received", "closed"];

/// The members that say what is expected of a step: each step has at most one.
pub(super) const OUTCOMES: [&str; 7] = ["decides", "gives", "answers", "refuses", "faults", "unwanted", "circuit_open"];

/// The time at the start of a fixture that doesn't set one.
const NOW: &str = "2026-01-01T00:00:00Z";

/// One case.
#[derive(Debug)]
pub struct Fixture {
    pub file: PathBuf,
    pub about: String,
    head: Head,
    json: Json,
}

/// What came out of a case.
#[derive(Debug)]
pub struct Outcome {
    pub steps: usize,
    /// `steps[0].decides.deliveries[1].to[0]: "1001" ≠ "1002"`
    pub differences: Vec<String>,
    /// The fixture with its expectations replaced by what came out.
    pub recorded: String,
}

/// A fixture without its steps.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    about: String,
    #[serde(default)]
    settings: toml::Table,
    /// Everything that the component imports, by default.
    grants: Option<Vec<Grant>>,
    now: Option<String>,
    #[serde(default)]
    host: Host,
    #[serde(rename = "steps")]
    _steps: IgnoredAny,
    #[serde(rename = "state_after")]
    _state_after: Option<IgnoredAny>,
    #[serde(rename = "groups_after")]
    _groups_after: Option<IgnoredAny>,
    /// Where a recorded call comes from, and what no fixture can say of it.
    #[serde(rename = "recorded")]
    _recorded: Option<IgnoredAny>,
}

/// The host's state before the first step.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Host {
    groups: BTreeMap<String, Vec<String>>,
    #[serde(rename = "state")]
    _state: Option<IgnoredAny>,
    sessions: Vec<Opening>,
}

/// A session that opens.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Opening {
    /// The name for later steps; the user's id by default.
    id: Option<String>,
    user: String,
    subprotocol: Option<String>,
    #[serde(default)]
    attributes: BTreeMap<String, String>,
}

/// Reads the fixtures of a folder, in order of their names.
///
/// # Errors
/// The folder or a file can't be read, or a file is not a fixture.
pub fn read_all(dir: &Path) -> anyhow::Result<Vec<Fixture>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("can't list the fixtures in {}", dir.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    files.iter().map(|file| Fixture::read(file)).collect()
}

impl Fixture {
    /// Reads one fixture.
    ///
    /// # Errors
    /// The file can't be read, or is not a fixture.
    pub fn read(file: &Path) -> anyhow::Result<Fixture> {
        let text = std::fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))?;
        Fixture::parse(file, &text).with_context(|| format!("{} is not a fixture", file.display()))
    }

    fn parse(file: &Path, text: &str) -> anyhow::Result<Fixture> {
        let head: Head = serde_json::from_str(text)?;
        let json = Json::parse(text)?;
        let Some(Json::Array(steps)) = json.get("steps") else { bail!("`steps` is not a list") };
        for (index, step) in steps.iter().enumerate() {
            check_step(step).with_context(|| format!("steps[{index}]"))?;
        }
        Ok(Fixture { file: file.to_owned(), about: head.about.clone(), head, json })
    }

    /// Runs the component through the case. `needed` are its grants if the fixture doesn't list any.
    ///
    /// # Errors
    /// The component can't be loaded with these grants and settings, or a step is invalid.
    pub fn run(&self, component: &Path, bench: &Workbench, needed: &[Grant]) -> anyhow::Result<Outcome> {
        // Paused: a fixture's clock advances only by `after_ms`.
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build()?;
        runtime.block_on(self.play(component, bench, needed)).with_context(|| self.file.display().to_string())
    }

    async fn play(&self, component: &Path, bench: &Workbench, needed: &[Grant]) -> anyhow::Result<Outcome> {
        let grants = self.head.grants.as_deref().unwrap_or(needed).to_vec();
        let mut stage = Stage::set(component, bench, grants, &self.head, self.json.get("host").and_then(|host| host.get("state")))?;
        let (mut recorded, mut found) = (self.json.clone(), Vec::new());
        let Some(Json::Array(steps)) = self.json.get("steps") else { bail!("`steps` is not a list") };
        let (mut played, mut uncalled) = (Vec::new(), 0);
        for (index, step) in steps.iter().enumerate() {
            let path = format!("steps[{index}]");
            let (outcome, actual) = stage.play(index, step).await.with_context(|| path.clone())?;
            match OUTCOMES.iter().find_map(|name| Some((*name, step.get(name)?))) {
                None => found.push(format!("{path}: has no expected outcome; `--update` records it")),
                Some((name, expected)) if name == outcome => differences(&format!("{path}.{name}"), expected, &actual, &mut found),
                // It follows from the faults of the steps before.
                Some(_) if outcome == "circuit_open" => uncalled += 1,
                Some((name, _)) => found.push(format!("{path}: {name} ≠ {outcome} {actual}")),
            }
            let mut step = step.clone();
            OUTCOMES.iter().filter(|name| **name != outcome).for_each(|name| step.remove(name));
            step.set(outcome, actual);
            played.push(step);
        }
        if uncalled > 0 {
            found.push(format!("not called in {uncalled} more of the steps: it had faulted too often in a row (limits.breaker_faults)"));
        }
        recorded.set("steps", Json::Array(played));
        for (name, actual) in [("state_after", stage.state()), ("groups_after", stage.groups(self.json.get("groups_after")))] {
            if let Some(expected) = self.json.get(name) {
                differences(name, expected, &actual, &mut found);
                recorded.set(name, actual);
            }
        }
        Ok(Outcome { steps: steps.len(), differences: found, recorded: recorded.pretty() })
    }
}

fn check_step(step: &Json) -> anyhow::Result<()> {
    let Json::Object(members) = step else { bail!("is not an object") };
    for (name, _) in members {
        let known = ["about", "after_ms"].iter().chain(&VERBS).chain(&OUTCOMES).any(|known| known == name);
        if !known {
            bail!(
                "`{name}` is not a member of a step: a step does one of {}, and expects one of {}",
                VERBS.join(", "),
                OUTCOMES.join(", ")
            );
        }
    }
    let count = |names: &[&str]| names.iter().filter(|name| step.get(name).is_some()).count();
    if count(&VERBS) != 1 {
        bail!("it has to do one of {}", VERBS.join(", "));
    }
    if count(&OUTCOMES) > 1 {
        bail!("it can expect only one of {}", OUTCOMES.join(", "));
    }
    Ok(())
}
