//! Times a plugin's calls without WebAssembly: `export!` of the SDK adds a test that makes them, which this builds and runs.

use std::path::Path;
use std::process::Stdio;
use std::{fs, process};

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::plugin_build::{Language, cargo_for_this_machine};

/// The test that `export!` adds, and the environment variable that names its question.
const TEST: &str = "__signalpost_baseline::run";
const QUESTION: &str = "SIGNALPOST_BASELINE";

/// Nanoseconds of one step's calls.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Native {
    pub(super) p50_ns: u64,
    pub(super) p99_ns: u64,
}

/// Returns the times of a fixture's steps; `None` for a step that a native build can't make.
///
/// # Errors
/// The plugin doesn't build, or doesn't understand the question: its SDK may be another version.
pub(super) fn time(dir: &Path, question: &Value, calls: usize) -> anyhow::Result<Vec<Option<Native>>> {
    let place = std::env::temp_dir().join(format!("signalpost-baseline-{}", process::id()));
    fs::create_dir_all(&place).with_context(|| format!("can't make {}", place.display()))?;
    let (asked, answer) = (place.join("question.json"), place.join("answer.json"));
    let mut question = question.clone();
    if let Some(members) = question.as_object_mut() {
        members.extend([("calls".to_owned(), json!(calls)), ("answer".to_owned(), json!(answer))]);
    }
    let answered = fs::write(&asked, question.to_string()).context("can't write the question").and_then(|()| {
        let mut cargo = cargo_for_this_machine(dir);
        // Cargo's progress goes to stderr, as in `plugin build`.
        cargo.args(["test", "--release", "--lib", "--", TEST]).env(QUESTION, &asked).stdout(Stdio::null());
        let ran = cargo.status().context("can't run cargo")?;
        ensure!(ran.success(), "cargo could not build or run it");
        let answer = fs::read(&answer).context("it has no such test")?;
        serde_json::from_slice(&answer).context("its answer has an unknown format")
    });
    // Best effort: the system cleans its folder of temporary files too.
    let _ = fs::remove_dir_all(&place);
    answered
}

/// Returns whether a plugin has a native baseline: whether it is in Rust and uses the SDK.
pub(super) fn is_there(dir: &Path) -> bool {
    let manifest = fs::read_to_string(dir.join("Cargo.toml")).unwrap_or_default();
    Language::of(dir).is_ok_and(|language| language == Language::Rust) && manifest.contains("signalpost-plugin")
}
