//! Metrics in Prometheus' text format: among them all that the invariants promise to count.

mod gauges;
mod latency;
mod make;
mod process;
mod readings;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::{GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::types::drop_reason::DropReason;
pub use gauges::{ClusterGauges, Gauges, SinkGauges, StoreGauges};
pub use latency::Latency;
use make::Make;
use process::Process;
pub use readings::{Readings, Times};

/// What happened to an event as a whole.
#[derive(Clone, Copy, Debug)]
pub enum EventOutcome {
    Routed,
    /// Policies were called, and none of them decided.
    Failed,
    Unwanted,
    Duplicate,
    Rejected,
}

impl EventOutcome {
    const ALL: [EventOutcome; 5] =
        [EventOutcome::Routed, EventOutcome::Failed, EventOutcome::Unwanted, EventOutcome::Duplicate, EventOutcome::Rejected];

    fn name(self) -> &'static str {
        match self {
            EventOutcome::Routed => "routed",
            EventOutcome::Failed => "failed",
            EventOutcome::Unwanted => "unwanted",
            EventOutcome::Duplicate => "duplicate",
            EventOutcome::Rejected => "rejected",
        }
    }
}

/// How a call that a candidate has made compares with the live policy's.
#[derive(Clone, Copy, Debug)]
pub enum CandidateCall {
    Same,
    Differs,
    /// It read what the live call had not read.
    Inconclusive,
}

impl CandidateCall {
    fn name(self) -> &'static str {
        match self {
            CandidateCall::Same => "same",
            CandidateCall::Differs => "differs",
            CandidateCall::Inconclusive => "inconclusive",
        }
    }
}

/// What happened to an event of a sink.
#[derive(Clone, Copy, Debug)]
pub enum SinkEvent {
    /// It was posted to the sink's mailbox, or there was no room for it there.
    Heard,
    /// The backend has it.
    Accepted,
    /// The backend's answer said that it never will be taken.
    Refused,
    /// It was tried for as long as it is kept.
    Expired,
    /// There was no room for it.
    Overflowed,
}

impl SinkEvent {
    fn name(self) -> &'static str {
        match self {
            SinkEvent::Heard => "heard",
            SinkEvent::Accepted => "accepted",
            SinkEvent::Refused => "refused",
            SinkEvent::Expired => "expired",
            SinkEvent::Overflowed => "overflowed",
        }
    }
}

/// A policy's counter of counts that were dropped: their names were invalid or too many.
pub const DROPPED_METRIC: &str = "_dropped";

/// All metrics. Those of an event's path are resolved to their labels here, so that counting is one atomic addition.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    events: [IntCounter; EventOutcome::ALL.len()],
    pub posted: IntCounter,
    pub sent: IntCounter,
    pub sent_bytes: IntCounter,
    dropped: [IntCounter; DropReason::ALL.len()],
    pub client_messages: IntCounterVec,
    pub sessions_opened: IntCounter,
    pub sessions_closed: IntCounterVec,
    pub resumes: IntCounterVec,
    pub connections: IntGauge,
    pub connections_refused: IntCounter,
    pub jwks_fetches: IntCounterVec,
    pub exposed: IntGauge,
    pub problems: IntCounterVec,
    pub auth_refused: IntCounterVec,
    pub group_changes_refused: IntCounter,
    /// From the head of a producer's request to its answer.
    pub publish_seconds: Latency,
    /// From there to the last byte of the message at the socket.
    pub delivery_seconds: Latency,
    pub publish_streams: IntGauge,
    pub spans_sent: IntCounter,
    pub spans_dropped: IntCounterVec,
    pub policy_calls: HistogramVec,
    pub policy_faults: IntCounterVec,
    pub policy_refusals: IntCounterVec,
    pub policy_log_lines_dropped: IntCounterVec,
    policy_custom: IntCounterVec,
    /// The names of each policy's own counters, over all its versions.
    custom_names: Mutex<HashMap<Arc<str>, HashSet<String>>>,
    pub reloads: IntCounterVec,
    pub live_observers: IntGauge,
    pub live_lost: IntCounter,
    pub recorders: IntGauge,
    pub recordings_lost: IntCounter,
    candidate_calls: IntCounterVec,
    pub candidate_differences: IntCounterVec,
    pub candidate_skipped: IntCounterVec,
    candidate_seconds: HistogramVec,
    pub canary_events: IntCounterVec,
    pub canary_returns: IntCounterVec,
    pub dead_letters: IntCounterVec,
    dead_letters_kept: IntGauge,
    pub store_commits: IntCounter,
    pub store_bytes: IntCounter,
    pub store_sync_seconds: Histogram,
    pub store_cleaned_bytes: IntCounter,
    sink_events: IntCounterVec,
    pub expired_untold: IntCounter,
    pub sink_attempts: IntCounterVec,
    pub sink_attempt_seconds: HistogramVec,
    sink_waiting: IntGaugeVec,
    sink_lag_seconds: GaugeVec,
    sink_stopped: IntGaugeVec,
    store_pending_bytes: IntGauge,
    store_log_bytes: IntGauge,
    store_kept_bytes: IntGauge,
    store_is_writing: IntGauge,
    pub cluster_elections: IntCounter,
    pub cluster_forwarded: IntCounter,
    pub cluster_events: IntCounterVec,
    pub cluster_commit_seconds: Histogram,
    cluster_leads: IntGauge,
    cluster_term: IntGauge,
    cluster_absorbed: IntGauge,
    cluster_nodes: IntGauge,
    cluster_behind: IntGauge,
    cluster_policies_revision: IntGauge,
    cluster_policies_lacking: IntGauge,
    log_lines_dropped: IntCounter,
    sessions: IntGauge,
    mailboxes: IntGauge,
    mailbox_messages: IntGauge,
    mailbox_bytes: IntGauge,
    groups: IntGauge,
    memberships: IntGauge,
    policies_refused: IntGauge,
    policies_missing: IntGauge,
    process: Process,
}

impl Metrics {
    /// Registers all metrics.
    ///
    /// # Errors
    /// Two metrics have the same name: a mistake in this file.
    pub fn new() -> prometheus::Result<Metrics> {
        let make = Make::default();
        let dropped =
            make.counters("signalpost_messages_dropped_total", "Messages for a user that the user did not read, by reason.", &["reason"])?;
        let events =
            make.counters("signalpost_events_total", "Events by outcome: routed, failed, unwanted, duplicate, rejected.", &["outcome"])?;
        let version = Opts::new("signalpost_build_info", "1; the label is the version of the server.");
        make.register(IntGauge::with_opts(version.const_label("version", env!("CARGO_PKG_VERSION"))))?.set(1);
        Ok(Metrics {
            events: EventOutcome::ALL.map(|outcome| events.with_label_values(&[outcome.name()])),
            posted: make.counter("signalpost_messages_posted_total", "Messages appended to mailboxes.")?,
            sent: make.counter("signalpost_messages_sent_total", "Messages written to sockets; one per session.")?,
            sent_bytes: make.counter("signalpost_sent_bytes_total", "Bytes written to sockets, frames included.")?,
            dropped: DropReason::ALL.map(|reason| dropped.with_label_values(&[reason.name()])),
            client_messages: make.counters(
                "signalpost_client_messages_total",
                "Messages from clients by outcome: handled, refused, faulted, unhandled, invalid.",
                &["outcome"],
            )?,
            sessions_opened: make.counter("signalpost_sessions_opened_total", "Sessions opened.")?,
            sessions_closed: make.counters(
                "signalpost_sessions_closed_total",
                "Sessions closed, by close code; 1006 is a lost connection.",
                &["code"],
            )?,
            resumes: make.counters(
                "signalpost_resumes_total",
                "Sessions that resumed, by whether every missed message was still in the mailbox.",
                &["recovered"],
            )?,
            exposed: make.gauge("signalpost_exposed", "1 if other machines can reach this server and it does not authenticate them.")?,
            connections: make.gauge("signalpost_connections", "Open TCP connections.")?,
            connections_refused: make.counter(
                "signalpost_connections_refused_total",
                "TCP connections over http.connections_per_address_max, closed at once.",
            )?,
            jwks_fetches: make.counters("signalpost_jwks_fetches_total", "Fetches of issuers' keys: taken, failed.", &["outcome"])?,
            auth_refused: make.counters(
                "signalpost_auth_refused_total",
                "Requests and tokens refused by authentication, by reason.",
                &["reason"],
            )?,
            problems: make.counters("signalpost_http_problems_total", "Requests answered with a problem document, by code.", &["code"])?,
            group_changes_refused: make.counter("signalpost_group_changes_refused_total", "Joins that a limit refused.")?,
            publish_seconds: make.latency("signalpost_publish_seconds", "Time from an accepted request of a producer to its answer.")?,
            delivery_seconds: make.latency(
                "signalpost_delivery_seconds",
                "Time from a producer's request, or a client's message, until a message of it is written to a socket that was open then.",
            )?,
            publish_streams: make.gauge("signalpost_publish_streams", "Open streams of producers.")?,
            spans_sent: make.counter("signalpost_spans_sent_total", "Spans that the collector of traces has taken.")?,
            spans_dropped: make.counters(
                "signalpost_spans_dropped_total",
                "Spans that no collector has: queue (too many waited), collector (it did not take them).",
                &["reason"],
            )?,
            policy_calls: make.histogram("signalpost_policy_call_seconds", "Time of a policy's calls.", &["policy", "function"])?,
            policy_faults: make.counters("signalpost_policy_faults_total", "Faults of a policy, by kind.", &["policy", "kind"])?,
            policy_refusals: make.counters("signalpost_policy_refusals_total", "A policy's refusals.", &["policy"])?,
            policy_log_lines_dropped: make.counters(
                "signalpost_policy_log_lines_dropped_total",
                "Log lines over the limits of a call and of a second.",
                &["policy"],
            )?,
            policy_custom: make.counters("signalpost_policy_custom_total", "The policies' own counters.", &["policy", "name"])?,
            custom_names: Mutex::default(),
            reloads: make.counters(
                "signalpost_policy_reloads_total",
                "Changes of the policies by outcome: swapped, refused, rolled_back, unreadable.",
                &["outcome"],
            )?,
            dead_letters: make.counters(
                "signalpost_dead_letters_total",
                "Dead letters by outcome: kept, retried, deleted, evicted.",
                &["outcome"],
            )?,
            live_observers: make.gauge("signalpost_live_observers", "Observers of the live feed.")?,
            live_lost: make.counter(
                "signalpost_live_lost_total",
                "Entries of the live feed that an observer did not get: it was slow, or they were over a limit in [live].",
            )?,
            recorders: make.gauge("signalpost_recorders", "Recordings of a policy's calls that are under way.")?,
            recordings_lost: make.counter(
                "signalpost_recordings_lost_total",
                "Calls that a recording did not get: its client was slow, or they were over a limit in [recordings].",
            )?,
            candidate_calls: make.counters(
                "signalpost_candidate_calls_total",
                "Calls that a candidate has made in the shadow, by how they compare: same, differs, inconclusive.",
                &["policy", "outcome"],
            )?,
            candidate_differences: make.counters(
                "signalpost_candidate_differences_total",
                "Calls in which a candidate differs, by what differs; a call may differ in several.",
                &["policy", "kind"],
            )?,
            candidate_skipped: make.counters(
                "signalpost_candidate_skipped_total",
                "Calls that a candidate was to make in the shadow, and that were over a limit in [candidates].",
                &["policy"],
            )?,
            candidate_seconds: make.histogram(
                "signalpost_candidate_seconds",
                "Time of the calls that a candidate has made in the shadow, and of the same calls by the live policy.",
                &["policy", "version"],
            )?,
            canary_events: make.counters(
                "signalpost_canary_events_total",
                "Events, direct messages and calls about sessions while there is a canary, by the version that decides.",
                &["policy", "version"],
            )?,
            canary_returns: make.counters(
                "signalpost_canary_returns_total",
                "Canaries that faulted too often in a row, so that the live policy decides again.",
                &["policy"],
            )?,
            log_lines_dropped: make.counter(
                "signalpost_log_lines_dropped_total",
                "Lines of the log that were dropped: nobody read them in time, or they were over log.lines_per_second_max.",
            )?,
            store_commits: make.counter("signalpost_store_commits_total", "Frames written to the log.")?,
            store_bytes: make.counter("signalpost_store_bytes_total", "Bytes written to the log.")?,
            store_sync_seconds: make.one_histogram(
                "signalpost_store_sync_seconds",
                "Time of a flush to the disk (store.durability = \"fsync\").",
                vec![100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 1.0],
            )?,
            store_cleaned_bytes: make.counter("signalpost_store_cleaned_bytes_total", "Bytes of segments that were removed.")?,
            store_pending_bytes: make.gauge("signalpost_store_pending_bytes", "Bytes that wait to be written to the log.")?,
            store_log_bytes: make.gauge("signalpost_store_log_bytes", "Bytes of the log.")?,
            store_kept_bytes: make.gauge("signalpost_store_kept_bytes", "Bytes of what counts in the log, about.")?,
            cluster_elections: make.counter("signalpost_cluster_elections_total", "How often this node has heard that a node leads.")?,
            cluster_forwarded: make.counter("signalpost_cluster_forwarded_total", "Requests that the leader has answered instead.")?,
            cluster_events: make.counters(
                "signalpost_cluster_events_total",
                "Events from NATS: published, untaken, later.",
                &["outcome"],
            )?,
            cluster_commit_seconds: make.one_histogram(
                "signalpost_cluster_commit_seconds",
                "Time until a frame was stored, while this node led.",
                vec![250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 500e-3, 2.5, 10.0],
            )?,
            cluster_leads: make.gauge("signalpost_cluster_leads", "1 if this node leads its cluster; otherwise 0.")?,
            cluster_term: make
                .gauge("signalpost_cluster_term", "The latest term of the cluster: it counts up with each node that leads.")?,
            cluster_absorbed: make
                .gauge("signalpost_cluster_absorbed_frames", "The last frame of the stream that this node has absorbed.")?,
            cluster_behind: make.gauge("signalpost_cluster_behind_frames", "Frames of the stream that this node has not absorbed yet.")?,
            cluster_policies_revision: make.gauge(
                "signalpost_cluster_policies_revision",
                "The revision of the policies on which the nodes have agreed, as far as this one knows.",
            )?,
            cluster_policies_lacking: make.gauge(
                "signalpost_cluster_policies_lacking",
                "1 if this node does not have the policies on which the nodes have agreed.",
            )?,
            cluster_nodes: make.gauge("signalpost_cluster_nodes", "Nodes that this one hears of, with itself.")?,
            store_is_writing: make.gauge("signalpost_store_writing", "0 if the disk of the log is full or has failed; otherwise 1.")?,
            sink_events: make.counters(
                "signalpost_sink_events_total",
                "Events of a sink by outcome: heard, accepted, refused, expired, overflowed; the last three become dead letters.",
                &["sink", "outcome"],
            )?,
            expired_untold: make.counter(
                "signalpost_sink_expired_untold_total",
                "Messages that expired unread and that sinks were not told of: too many at once.",
            )?,
            sink_attempts: make.counters(
                "signalpost_sink_attempts_total",
                "Requests to a sink by outcome: accepted, refused, failed, gone. What failed is tried again.",
                &["sink", "outcome"],
            )?,
            sink_attempt_seconds: make.histogram_of(
                "signalpost_sink_attempt_seconds",
                "Time of a request to a sink.",
                &["sink"],
                vec![1e-3, 5e-3, 25e-3, 100e-3, 500e-3, 2.5, 10.0, 30.0],
            )?,
            sink_waiting: make.gauges("signalpost_sink_waiting", "Events that wait for a sink.", &["sink"])?,
            sink_lag_seconds: make.float_gauges(
                "signalpost_sink_lag_seconds",
                "Age of the oldest event that waits for a sink.",
                &["sink"],
            )?,
            sink_stopped: make.gauges(
                "signalpost_sink_stopped",
                "1 if the backend has answered 410; nothing is sent until a reload.",
                &["sink"],
            )?,
            dead_letters_kept: make.gauge("signalpost_dead_letters", "Dead letters that are kept.")?,
            sessions: make.gauge("signalpost_sessions", "Open sessions.")?,
            mailboxes: make.gauge("signalpost_mailboxes", "Mailboxes in memory.")?,
            mailbox_messages: make.gauge("signalpost_mailbox_messages", "Messages in all mailboxes.")?,
            mailbox_bytes: make.gauge("signalpost_mailbox_bytes", "Bytes accounted to all mailboxes.")?,
            groups: make.gauge("signalpost_groups", "Groups.")?,
            memberships: make.gauge("signalpost_group_memberships", "Members of all groups.")?,
            policies_refused: make
                .gauge("signalpost_policies_refused", "Plugins whose file is refused; of some, the last good version serves.")?,
            policies_missing: make.gauge("signalpost_policies_missing", "Refused plugins without which nobody is served.")?,
            process: Process::new(&make)?,
            registry: make.done(),
        })
    }

    pub fn event(&self, outcome: EventOutcome) {
        if let Some(counter) = self.events.get(outcome as usize) {
            counter.inc();
        }
    }

    pub fn dropped(&self, reason: DropReason, count: usize) {
        if count > 0
            && let Some(counter) = self.dropped.get(reason as usize)
        {
            counter.inc_by(count as u64);
        }
    }

    /// Raises a policy's own counter, or `_dropped` if the policy has too many names already.
    pub fn count_custom(&self, policy: &Arc<str>, name: &str, by: u64, names_max: usize) {
        let mut names = self.custom_names.lock();
        let names = names.entry(policy.clone()).or_default();
        let is_known = name == DROPPED_METRIC || names.contains(name);
        let (name, by) = if is_known || names.len() < names_max { (name, by) } else { (DROPPED_METRIC, 1) };
        if !is_known && name != DROPPED_METRIC {
            names.insert(name.to_owned());
        }
        let counter = self.policy_custom.with_label_values(&[&**policy, name]);
        // At its end a counter stands still: one that goes back to 0 would look like a restart. Only this function raises these, under the
        // lock of the names.
        counter.inc_by(by.min(u64::MAX - counter.get()));
    }

    /// Forgets the gauges of a sink that is not there any more. Its counters go on when it comes back.
    pub fn forget_sink(&self, sink: &str) {
        // An error means that they were never read.
        let _ = (self.sink_waiting.remove_label_values(&[sink]), self.sink_lag_seconds.remove_label_values(&[sink]));
        let _ = self.sink_stopped.remove_label_values(&[sink]);
    }

    /// Returns the counter of one outcome of a sink's events.
    pub fn sink_event(&self, sink: &str, outcome: SinkEvent) -> IntCounter {
        self.sink_events.with_label_values(&[sink, outcome.name()])
    }

    /// Counts a call that a candidate has made.
    pub fn candidate_call(&self, policy: &str, outcome: CandidateCall) {
        self.candidate_calls.with_label_values(&[policy, outcome.name()]).inc();
    }

    /// Returns the histogram of the calls that a candidate has made. `version`: whether it is of the candidate's calls or of the live policy's.
    pub fn candidate_time(&self, policy: &str, version: &str) -> Histogram {
        self.candidate_seconds.with_label_values(&[policy, version])
    }

    /// Returns the histogram of one function of a policy.
    pub fn policy_call(&self, policy: &str, function: &str) -> Histogram {
        self.policy_calls.with_label_values(&[policy, function])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policys_counters_are_bounded_over_all_its_versions_and_never_go_back() {
        let metrics = Metrics::new().unwrap();
        let value = |name: &str| metrics.policy_custom.with_label_values(&["p", name]).get();
        // Each version brings names of its own.
        for version in 0..12 {
            let policy: Arc<str> = "p".into();
            for name in 0..4 {
                metrics.count_custom(&policy, &format!("v{version}_{name}"), 1, 32);
            }
        }
        assert_eq!((value("v7_3"), value(DROPPED_METRIC)), (1, 16));
        metrics.count_custom(&"q".into(), "own", 1, 32);
        for _ in 0..3 {
            metrics.count_custom(&"p".into(), "v0_0", u64::MAX / 2, 32);
        }
        assert_eq!(value("v0_0"), u64::MAX);
        let text = metrics.text(&Gauges::default()).unwrap();
        let series = text.lines().filter(|line| line.starts_with("signalpost_policy_custom_total{"));
        assert_eq!(series.filter(|line| line.contains("policy=\"p\"")).count(), 33);
    }
}
