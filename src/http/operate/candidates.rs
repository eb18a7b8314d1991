//! `{base}/policies/{name}/candidate`: another version of a policy, on trial beside it: how it compares, its promotion, and its end.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use serde::Serialize;

use super::{Operate, TimesView, json, policy_of};
use crate::config::{CandidateMode, Scope};
use crate::net::problem::Problem;
use crate::policy::Policy;
use crate::policy::candidate::{Candidate, Example, Tally};
use crate::policy::load::{Again, Reload};
use crate::types::fault::Fault;

/// Begins the name of the file that is written before it takes the plugin's place. Plugins' names don't begin with a dot.
const UNFINISHED: &str = ".promoted-";

#[derive(Serialize)]
struct CandidateView<'a> {
    policy: &'a str,
    mode: &'static str,
    share: f64,
    /// `on_trial`, `refused`, `serves`, `returned` or `dropped`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(serialize_with = "crate::types::time::time")]
    since: std::time::SystemTime,
    file: &'a FilePath,
    candidate: VersionView<'a>,
    live: VersionView<'a>,
    calls: CallsView,
    /// Microseconds: the calls that the candidate has made in the shadow, and the same calls by the live policy.
    times: BTreeMap<&'static str, TimesView>,
    differences: BTreeMap<&'static str, DifferenceView<'a>>,
    /// The last fault of a canary. Those of a shadow are differences.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_fault: Option<Fault>,
    /// Why it would not be promoted.
    #[serde(skip_serializing_if = "Option::is_none")]
    unfit: Option<String>,
}

#[derive(Serialize)]
struct VersionView<'a> {
    version: Option<&'a str>,
    digest: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum CallsView {
    Shadow { compared: u64, same: u64, differ: u64, inconclusive: u64, faults: u64, skipped: u64 },
    Canary { decided: u64, refusals: u64, faults: u64 },
}

#[derive(Serialize)]
struct DifferenceView<'a> {
    calls: u64,
    /// What the users' data shows needs the scope `operate`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    examples: Vec<&'a Example>,
}

impl<'a> VersionView<'a> {
    fn of(policy: &'a Policy) -> VersionView<'a> {
        VersionView { version: Some(&policy.version), digest: Some(&policy.digest) }
    }
}

/// `GET {base}/policies/{name}/candidate`: the candidate, and how it compares with the policy, as `CandidateView`. A key with only the scope
/// `read` sees no examples.
///
/// # Errors
/// There is no such policy, or it has no candidate.
pub async fn show(
    State(operate): State<Arc<Operate>>,
    headers: HeaderMap,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let (live, candidate) = candidate_of(&operate, name)?;
    let tally = candidate.tally.lock().clone();
    let state = candidate.state();
    let shows_examples = operate.auth.has(&headers, Scope::Operate);
    let loaded = candidate.loaded.as_ref().ok();
    let is_timed = candidate.config.mode == CandidateMode::Shadow;
    let times = candidate.times().into_iter().filter(|_| is_timed);
    Ok(json(&CandidateView {
        policy: &candidate.name,
        mode: candidate.config.mode.name(),
        share: candidate.config.share.get(),
        state: state.name(),
        reason: state.reason(),
        since: candidate.since,
        file: &candidate.file,
        candidate: VersionView { version: loaded.map(|policy| &*policy.version), digest: candidate.digest() },
        live: VersionView::of(&live),
        calls: calls(&candidate, loaded, &tally),
        times: times.map(|(version, times)| (version, TimesView::of((version.to_owned(), times)))).collect(),
        differences: tally
            .kinds
            .iter()
            .map(|(name, kind)| {
                let examples = if shows_examples { kind.examples.iter().collect() } else { Vec::new() };
                (*name, DifferenceView { calls: kind.calls, examples })
            })
            .collect(),
        last_fault: loaded.and_then(|policy| policy.last_fault.lock().clone()),
        unfit: candidate.check().err(),
    }))
}

fn calls(candidate: &Candidate, loaded: Option<&Arc<Policy>>, tally: &Tally) -> CallsView {
    match candidate.config.mode {
        CandidateMode::Shadow => CallsView::Shadow {
            compared: tally.compared(),
            same: tally.same,
            differ: tally.differ,
            inconclusive: tally.inconclusive,
            faults: tally.faults,
            skipped: candidate.skipped.load(Ordering::Relaxed),
        },
        CandidateMode::Canary => {
            let counters = loaded.map(|policy| &policy.counters);
            let count = |counter: Option<&std::sync::atomic::AtomicU64>| counter.map_or(0, |counter| counter.load(Ordering::Relaxed));
            CallsView::Canary {
                decided: count(counters.map(|counters| &counters.calls)),
                refusals: count(counters.map(|counters| &counters.refusals)),
                faults: count(counters.map(|counters| &counters.faults)),
            }
        }
    }
}

/// `DELETE {base}/policies/{name}/candidate`: ends the trial, and returns `{"dropped": true}`. The candidate is tried again when its file or its
/// configuration changes, or at the next start.
///
/// # Errors
/// There is no such policy, or it has no candidate.
pub async fn drop_it(State(operate): State<Arc<Operate>>, name: Result<Path<String>, PathRejection>) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct Dropped {
        dropped: bool,
    }
    let (_, candidate) = candidate_of(&operate, name)?;
    Ok(json(&Dropped { dropped: operate.node.loader.drop_candidate(&operate.node.policies, &candidate.name) }))
}

/// `POST {base}/policies/{name}/candidate/promote`: puts the candidate's file in the place of the policy's, and reloads.
///
/// # Errors
/// There is no candidate, it has not been tried enough, it is over its budget of differences or faults, or the file can't be written. Nothing has
/// changed.
pub async fn promote(
    State(operate): State<Arc<Operate>>,
    headers: HeaderMap,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct Promoted<'a> {
        revision: u64,
        version: &'a str,
        digest: &'a str,
    }
    let (live, candidate) = candidate_of(&operate, name)?;
    let conflict = |code, detail| Problem::new(StatusCode::CONFLICT, code, detail);
    let unfit = |why| conflict("candidate_unfit", format!("the candidate of {} {why}; nothing has changed", candidate.name));
    let policy = candidate.check().map_err(unfit)?.clone();
    let place = operate.node.loader.place(&live.name).unwrap_or_else(|| live.file.clone());
    let (from, to, digest) = (candidate.file.clone(), place.clone(), policy.digest.clone());
    let taking = tokio::task::spawn_blocking(move || take_place(&from, &to, &digest)).await.map_err(io::Error::other);
    taking.and_then(|taken| taken).map_err(|error| {
        let (from, to) = (candidate.file.display(), place.display());
        conflict(
            "candidate_not_written",
            format!("{from} can't take the place of {to}: {error}; nothing has changed. Copy it there yourself"),
        )
    })?;
    let key = operate.auth.name_of_key(&headers);
    tracing::info!(policy = &*candidate.name, version = &*policy.version, key, "candidate promoted");
    match operate.node.reload(Again::All, None).await {
        Reload::Swapped { .. } | Reload::Unchanged => {
            let revision = operate.node.policies.current().revision;
            Ok(json(&Promoted { revision, version: &policy.version, digest: &policy.digest }))
        }
        Reload::Refused(rejected) => {
            let reasons: Vec<String> = rejected.iter().map(|rejected| format!("{}: {}", rejected.name, rejected.reason)).collect();
            Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "policy_refused", reasons.join("; ")))
        }
        Reload::Unreadable(detail) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "plugins_unreadable", detail)),
    }
}

fn candidate_of(operate: &Operate, name: Result<Path<String>, PathRejection>) -> Result<(Arc<Policy>, Arc<Candidate>), Problem> {
    let live = policy_of(operate, name)?;
    let none = || {
        let detail = format!("{0} has no candidate; [policies.{0}.candidate] names one", live.name);
        Problem::new(StatusCode::NOT_FOUND, "candidate_unknown", detail)
    };
    let candidate = operate.node.policies.candidate(&live.name).ok_or_else(none)?;
    Ok((live, candidate))
}

/// Writes what is in one file to the place of another, whole or not at all. It must still be what was tried.
fn take_place(from: &FilePath, to: &FilePath, digest: &str) -> io::Result<()> {
    let bytes = fs::read(from)?;
    if crate::policy::source::digest(&bytes) != digest {
        return Err(io::Error::other("the file is not the one that was tried any more"));
    }
    let (Some(dir), Some(name)) = (to.parent(), to.file_name()) else { return Err(io::Error::other("its place has no name")) };
    let unfinished = dir.join(format!("{UNFINISHED}{}", name.to_string_lossy()));
    let written = write(&unfinished, &bytes, to);
    if written.is_err() {
        // What is left of it has no use. It may not be there at all.
        let _ = fs::remove_file(&unfinished);
    }
    written
}

fn write(unfinished: &FilePath, bytes: &[u8], to: &FilePath) -> io::Result<()> {
    let mut file = File::create(unfinished)?;
    file.write_all(bytes)?;
    if let Ok(replaced) = fs::metadata(to) {
        file.set_permissions(replaced.permissions())?;
    }
    file.sync_all()?;
    fs::rename(unfinished, to)
}
