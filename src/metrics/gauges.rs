//! Values that others know, and that are read when the metrics are requested.

use std::sync::Arc;

use prometheus::{IntGauge, TextEncoder};

use super::Metrics;
use crate::log;

/// The values of the whole server.
#[derive(Debug, Default)]
pub struct Gauges {
    pub sessions: usize,
    pub mailboxes: usize,
    pub messages: usize,
    pub bytes: usize,
    pub groups: usize,
    pub memberships: usize,
    pub dead_letters: usize,
    /// Plugins' files that are refused, and those without which nobody is served.
    pub refused: usize,
    pub missing: usize,
    /// `None` if everything is kept in memory only.
    pub store: Option<StoreGauges>,
    /// `None` for a server that is alone.
    pub cluster: Option<ClusterGauges>,
    pub sinks: Vec<SinkGauges>,
}

#[derive(Debug)]
pub struct SinkGauges {
    pub name: Arc<str>,
    pub waiting: usize,
    pub lag_ms: u64,
    pub is_stopped: bool,
}

#[derive(Debug)]
pub struct ClusterGauges {
    pub leads: bool,
    pub term: u64,
    pub absorbed: u64,
    pub nodes: usize,
    pub behind: u64,
    pub policies_revision: u64,
    pub policies_lacking: bool,
    pub pending_bytes: usize,
}

#[derive(Debug)]
pub struct StoreGauges {
    pub pending_bytes: usize,
    pub log_bytes: usize,
    /// About how many of them still count.
    pub kept_bytes: usize,
    pub is_writing: bool,
}

impl Metrics {
    /// Returns the metrics as text.
    ///
    /// # Errors
    /// A metric can't be written as text, which does not happen with these.
    pub fn text(&self, gauges: &Gauges) -> prometheus::Result<String> {
        set(&self.sessions, gauges.sessions);
        set(&self.mailboxes, gauges.mailboxes);
        set(&self.mailbox_messages, gauges.messages);
        set(&self.mailbox_bytes, gauges.bytes);
        set(&self.groups, gauges.groups);
        set(&self.memberships, gauges.memberships);
        set(&self.policies_refused, gauges.refused);
        set(&self.policies_missing, gauges.missing);
        set(&self.dead_letters_kept, gauges.dead_letters);
        if let Some(StoreGauges { pending_bytes, log_bytes, kept_bytes, is_writing }) = gauges.store {
            set(&self.store_pending_bytes, pending_bytes);
            set(&self.store_log_bytes, log_bytes);
            set(&self.store_kept_bytes, kept_bytes);
            self.store_is_writing.set(is_writing.into());
        } else {
            // Nothing that could fail.
            self.store_is_writing.set(1);
        }
        if let Some(cluster) = &gauges.cluster {
            let ClusterGauges { leads, term, absorbed, nodes, behind, policies_revision, policies_lacking, pending_bytes } = *cluster;
            self.cluster_leads.set(leads.into());
            set(&self.cluster_policies_revision, policies_revision);
            self.cluster_policies_lacking.set(policies_lacking.into());
            set(&self.cluster_term, term);
            set(&self.cluster_absorbed, absorbed);
            set(&self.cluster_nodes, nodes);
            set(&self.cluster_behind, behind);
            set(&self.store_pending_bytes, pending_bytes);
        }
        for sink in &gauges.sinks {
            set(&self.sink_waiting.with_label_values(&[&*sink.name]), sink.waiting);
            self.sink_lag_seconds.with_label_values(&[&*sink.name]).set(sink.lag_ms as f64 / 1000.0);
            self.sink_stopped.with_label_values(&[&*sink.name]).set(sink.is_stopped.into());
        }
        self.process.read();
        self.log_lines_dropped.inc_by(log::dropped_lines().saturating_sub(self.log_lines_dropped.get()));
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

fn set(gauge: &IntGauge, value: impl TryInto<i64>) {
    gauge.set(value.try_into().unwrap_or(i64::MAX));
}
