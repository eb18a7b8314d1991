//! Traces by OpenTelemetry: which requests are sampled, and the spans of those that are. Nothing outside this module knows OpenTelemetry's SDK.
//!
//! A span is a view of something that is over: it is made at its end, with the times that were recorded. So nothing is made and then
//! discarded, and a request that is not sampled costs one branch at each station. Spans wait in the SDK's queue, which is bounded, and its own
//! thread sends them ([`export`]). A collector that hangs costs nothing but counted spans.

mod export;

use std::borrow::Cow;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

pub use opentelemetry::KeyValue as Attribute;
pub use opentelemetry::trace::SpanKind as Kind;

use anyhow::Context as _;
use opentelemetry::InstrumentationScope;
use opentelemetry::trace::{Link, SpanContext, SpanId, Status, TraceFlags, TraceState};
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor as _};

use crate::config;
use crate::metrics::Metrics;
use crate::types::origin::{TraceContext, TraceParent};
use export::Counted;

/// Links of one span. A batch may have an event of another trace in each place.
pub const LINKS_MAX: usize = 16;

/// Sends the spans of sampled requests to a collector.
#[derive(Debug)]
pub struct Traces {
    batch: BatchSpanProcessor,
    queue: Arc<Queue>,
    sampling: Sampling,
    deliveries_max: usize,
    deadline: Duration,
    scope: InstrumentationScope,
}

/// The spans that wait. The SDK's own queue has the same bound, and tells nobody what it drops.
#[derive(Debug)]
struct Queue {
    waiting: AtomicUsize,
    max: usize,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Sampling {
    /// A trace is sampled if the lower 63 bits of its id are below this, as every OpenTelemetry SDK decides for the same ratio.
    below: u64,
    follows_parent: bool,
}

/// A sampled request. Its span is made by [`Traces::end`].
#[derive(Debug)]
pub struct Root {
    pub context: Arc<TraceContext>,
    parent: Option<TraceParent>,
}

/// What a span says beside its name and its times.
#[derive(Debug, Default)]
pub struct Said {
    pub attributes: Vec<Attribute>,
    /// What went wrong.
    pub error: Option<Cow<'static, str>>,
    /// Other traces that belong to it.
    pub links: Vec<TraceParent>,
}

/// The parts of a span that say where it belongs.
struct Place<'a> {
    trace_id: u128,
    span_id: u64,
    parent: Option<(u64, bool)>,
    state: Option<&'a str>,
}

impl Traces {
    /// Starts to send traces, if the configuration says where. Has to be called in a runtime, which makes the requests to the collector.
    ///
    /// # Errors
    /// The collector's address can't be used, or no certificate authorities are known for it.
    pub fn new(config: &config::Traces, metrics: &Arc<Metrics>) -> anyhow::Result<Option<Arc<Traces>>> {
        if config.endpoint.is_empty() {
            return Ok(None);
        }
        let queue = Arc::new(Queue { waiting: AtomicUsize::new(0), max: config.queue_max.get(), metrics: metrics.clone() });
        let exporter = Counted::new(config, queue.clone()).context("traces.endpoint")?;
        let limits = BatchConfigBuilder::default()
            .with_max_queue_size(config.queue_max.get())
            .with_max_export_batch_size(config.batch_max.get())
            .with_scheduled_delay(*config.interval_ms);
        let mut batch = BatchSpanProcessor::new(exporter, limits.build());
        batch.set_resource(&export::resource());
        let scope = InstrumentationScope::builder("signalpost").with_version(env!("CARGO_PKG_VERSION")).build();
        let sampling = Sampling::new(config);
        let (deliveries_max, deadline) = (config.deliveries_max, *config.deadline_ms);
        Ok(Some(Arc::new(Traces { batch, queue, sampling, deliveries_max, deadline, scope })))
    }

    /// Returns the root of a request that was taken at `began`, if it is sampled. `parent` and `state`: its `traceparent` and `tracestate`.
    pub fn begin(&self, parent: Option<&str>, state: Option<&str>, began: Instant) -> Option<Root> {
        let parent = parent.and_then(TraceParent::parse);
        let trace_id = self.sampling.take(parent)?;
        // The state of a parent that is invalid is invalid too.
        let state = state.filter(|_| parent.is_some());
        let context = TraceContext::new(trace_id, new_span_id(), state, began, self.deliveries_max);
        Some(Root { context: Arc::new(context), parent })
    }

    /// Returns how many of this number of deliveries have no span.
    pub fn without_span(&self, deliveries: usize) -> usize {
        deliveries.saturating_sub(self.deliveries_max)
    }

    /// Makes the span of a request that is answered now.
    pub fn end(&self, root: &Root, name: impl Into<Cow<'static, str>>, say: impl FnOnce() -> Said) {
        let Root { context, parent } = root;
        let place = Place {
            trace_id: context.trace_id,
            span_id: context.span_id,
            parent: parent.map(|parent| (parent.span_id, true)),
            state: context.state.as_deref(),
        };
        self.add(&place, Kind::Server, name, (context.began.1, context.at(Instant::now())), say);
    }

    /// Makes a span below that of its request.
    pub fn child(
        &self,
        context: &TraceContext,
        kind: Kind,
        name: impl Into<Cow<'static, str>>,
        times: (Instant, Instant),
        say: impl FnOnce() -> Said,
    ) {
        let parent = Some((context.span_id, false));
        let place = Place { trace_id: context.trace_id, span_id: new_span_id(), parent, state: context.state.as_deref() };
        self.add(&place, kind, name, (context.at(times.0), context.at(times.1)), say);
    }

    /// Makes a span that begins a trace of its own and has a link to its request's: it happened long after that.
    pub fn linked(
        &self,
        context: &TraceContext,
        kind: Kind,
        name: impl Into<Cow<'static, str>>,
        times: (Instant, Instant),
        say: impl FnOnce() -> Said,
    ) {
        let place = Place { trace_id: fastrand::u128(1..), span_id: new_span_id(), parent: None, state: None };
        let link = TraceParent { trace_id: context.trace_id, span_id: context.span_id, is_sampled: true };
        self.add(&place, kind, name, (context.at(times.0), context.at(times.1)), || Said { links: vec![link], ..say() });
    }

    /// Sends what waits, and ends. Blocks for `traces.deadline_ms` at most.
    pub fn close(&self) {
        // What was not sent by then is lost with the process, and the log has said why.
        let _ = self.batch.shutdown_with_timeout(self.deadline);
    }

    /// Adds a span to the queue. If that is full, it is not made at all.
    fn add(
        &self,
        place: &Place<'_>,
        kind: Kind,
        name: impl Into<Cow<'static, str>>,
        (start_time, end_time): (SystemTime, SystemTime),
        say: impl FnOnce() -> Said,
    ) {
        if !self.queue.take() {
            return;
        }
        let Said { attributes, error, links } = say();
        let state = place.state.and_then(|state| TraceState::from_str(state).ok()).unwrap_or_default();
        let context = |trace_id: u128, span_id: u64, flags, is_remote, state| {
            SpanContext::new(trace_id.into(), span_id.into(), flags, is_remote, state)
        };
        let mut all = SpanLinks::default();
        all.links = links
            .iter()
            .map(|link| {
                let flags = TraceFlags::default().with_sampled(link.is_sampled);
                Link::with_context(context(link.trace_id, link.span_id, flags, true, TraceState::default()))
            })
            .collect();
        self.batch.on_end(SpanData {
            span_context: context(place.trace_id, place.span_id, TraceFlags::SAMPLED, false, state),
            parent_span_id: place.parent.map_or(SpanId::INVALID, |(id, _)| id.into()),
            parent_span_is_remote: place.parent.is_some_and(|(_, is_remote)| is_remote),
            span_kind: kind,
            name: name.into(),
            start_time,
            end_time,
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: all,
            status: error.map_or(Status::Unset, |description| Status::Error { description }),
            instrumentation_scope: self.scope.clone(),
        });
    }
}

impl Root {
    /// Returns whether this is the request's own parent.
    pub fn is_below(&self, parent: &TraceParent) -> bool {
        self.parent.is_some_and(|own| (own.trace_id, own.span_id) == (parent.trace_id, parent.span_id))
    }
}

impl Queue {
    /// Takes the place of one more span. If there is none, counts the span as dropped.
    fn take(&self) -> bool {
        if self.waiting.fetch_add(1, Ordering::Relaxed) < self.max {
            return true;
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.metrics.spans_dropped.with_label_values(&["queue"]).inc();
        false
    }
}

impl Sampling {
    fn new(config: &config::Traces) -> Sampling {
        let below = (config.sample_ratio.get() * (1_u64 << 63) as f64) as u64;
        Sampling { below, follows_parent: config.follow_parent }
    }

    /// Returns the id of a request's trace, if it is sampled.
    fn take(&self, parent: Option<TraceParent>) -> Option<u128> {
        if let Some(parent) = parent.filter(|_| self.follows_parent) {
            return parent.is_sampled.then_some(parent.trace_id);
        }
        if self.below == 0 {
            return None;
        }
        let trace_id = parent.map_or_else(|| fastrand::u128(1..), |parent| parent.trace_id);
        ((trace_id as u64 >> 1) < self.below).then_some(trace_id)
    }
}

fn new_span_id() -> u64 {
    fastrand::u64(1..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn config(settings: &str) -> config::Traces {
        Config::merge(Some(("test.toml", settings)), toml::Table::new(), std::iter::empty()).unwrap().0.traces
    }

    fn sampling(settings: &str) -> Sampling {
        Sampling::new(&config(settings))
    }

    const PARENT: TraceParent = TraceParent { trace_id: 7 << 64 | 0x8000_0000_0000_0000, span_id: 1, is_sampled: true };
    const UNSAMPLED: TraceParent = TraceParent { is_sampled: false, ..PARENT };

    #[test]
    fn the_parent_decides_and_otherwise_the_ratio() {
        let default = sampling("");
        assert_eq!([Some(PARENT), Some(UNSAMPLED), None].map(|parent| default.take(parent)), [Some(PARENT.trace_id), None, None]);
        let all = sampling("traces.sample_ratio = 1.0");
        assert_eq!([Some(PARENT), Some(UNSAMPLED)].map(|parent| all.take(parent)), [Some(PARENT.trace_id), None]);
        assert!((0..1000).all(|_| all.take(None).is_some_and(|id| id > 0)));
        let half = sampling("traces.sample_ratio = 0.5\ntraces.follow_parent = false");
        let taken = (0..10_000).filter(|_| half.take(None).is_some()).count();
        assert!((4_000..6_000).contains(&taken), "{taken}");
        // The lower half of the id is in the middle of its range, and so the first that is not sampled.
        assert_eq!([PARENT, UNSAMPLED].map(|parent| half.take(Some(parent))), [None, None]);
        let lower = TraceParent { trace_id: PARENT.trace_id - 2, ..UNSAMPLED };
        assert_eq!(half.take(Some(lower)), Some(lower.trace_id));
    }

    #[tokio::test]
    async fn without_an_endpoint_there_are_no_traces() {
        let metrics = Arc::new(Metrics::new().unwrap());
        assert!(Traces::new(&config(""), &metrics).unwrap().is_none());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn spans_over_the_queue_are_not_made_and_counted() {
        let metrics = Arc::new(Metrics::new().unwrap());
        // It accepts connections and answers nothing.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("traces.endpoint = \"http://{}/\"", silent.local_addr().unwrap());
        let bounds = "traces.queue_max = 2\ntraces.batch_max = 2\ntraces.deadline_ms = 50\ntraces.interval_ms = 1_000_000";
        let config = config(&format!("{endpoint}\n{bounds}"));
        let traces = Traces::new(&config, &metrics).unwrap().unwrap();
        let root = traces.begin(Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), None, Instant::now()).unwrap();
        traces.end(&root, "POST", Said::default);
        // The first may have left the queue for a batch already, which waits for its collector.
        for _ in 0..10 {
            traces.end(&root, "POST", Said::default);
        }
        let mut made = 0;
        traces.end(&root, "POST", || {
            made += 1;
            Said::default()
        });
        assert_eq!(made, 0);
        assert!(metrics.spans_dropped.with_label_values(&["queue"]).get() >= 7);
        tokio::task::spawn_blocking(move || traces.close()).await.unwrap();
        assert_eq!(metrics.spans_sent.get(), 0);
    }
}
