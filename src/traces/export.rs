//! Sends batches of spans to the collector, by OTLP over HTTP: counts them, and says in the log why they are not taken.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{Request, Response};
use opentelemetry::{Key, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as Export};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::Queue;
use crate::config;
use crate::net::client::Client;

/// How often the log says that spans are not taken.
const TOLD_INTERVAL: Duration = Duration::from_secs(60);

/// The SDK's exporter, which counts what it sends.
#[derive(Debug)]
pub(super) struct Counted {
    exporter: SpanExporter,
    queue: Arc<Queue>,
    endpoint: String,
    /// Why the last request failed, which the SDK doesn't say.
    failure: Arc<Mutex<Option<String>>>,
    told: Mutex<Option<Instant>>,
}

/// The connections to the collector. The SDK's thread waits for a task of the server's runtime, which makes the request.
#[derive(Debug)]
struct Collector {
    client: Arc<Client>,
    runtime: Handle,
    deadline: Duration,
    failure: Arc<Mutex<Option<String>>>,
}

impl Counted {
    /// # Errors
    /// As for [`super::Traces::new`].
    pub fn new(config: &config::Traces, queue: Arc<Queue>) -> anyhow::Result<Counted> {
        let failure = Arc::default();
        let collector = Collector {
            client: Arc::new(Client::new(&config.endpoint)?),
            runtime: Handle::current(),
            deadline: *config.deadline_ms,
            failure: Arc::clone(&failure),
        };
        // It reads its headers from the environment.
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(collector)
            .with_endpoint(&config.endpoint)
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(*config.deadline_ms)
            .build()?;
        Ok(Counted { exporter, queue, endpoint: config.endpoint.clone(), failure, told: Mutex::default() })
    }

    /// Says that spans are lost, once a minute.
    fn tell(&self, error: &str) {
        let mut told = self.told.lock();
        if told.is_some_and(|told| told.elapsed() < TOLD_INTERVAL) {
            return;
        }
        *told = Some(Instant::now());
        let why = self.failure.lock().take();
        tracing::warn!(
            endpoint = self.endpoint,
            "the collector takes no spans, which are dropped and counted (signalpost_spans_dropped_total): {}",
            why.as_deref().unwrap_or(error)
        );
    }
}

impl Export for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        self.queue.waiting.fetch_sub(count, Ordering::Relaxed);
        let result = self.exporter.export(batch).await;
        let metrics = &self.queue.metrics;
        match &result {
            Ok(()) => metrics.spans_sent.inc_by(count as u64),
            Err(error) => {
                metrics.spans_dropped.with_label_values(&["collector"]).inc_by(count as u64);
                self.tell(&error.to_string());
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// The signature is what `async_trait` makes of the trait's.
impl HttpClient for Collector {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let (client, deadline) = (self.client.clone(), self.deadline);
            let sending = self.runtime.spawn(async move { timeout(deadline, client.post(request.headers(), request.body())).await });
            let why = match sending.await {
                Ok(Ok(Ok(answer))) => {
                    let mut response = Response::builder().status(answer.status);
                    if let Some(after) = answer.retry_after {
                        response = response.header(RETRY_AFTER, after);
                    }
                    return Ok(response.body(Bytes::new())?);
                }
                Ok(Ok(Err(why))) => format!("it {why}"),
                Ok(Err(_)) => format!("it doesn't answer within {} ms (traces.deadline_ms)", self.deadline.as_millis()),
                Err(_) => "the server stops".to_owned(),
            };
            *self.failure.lock() = Some(why.clone());
            Err(why.into())
        })
    }
}

/// Returns what the spans say about this process: what the environment says (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`), and otherwise
/// the server's name and version.
pub(super) fn resource() -> Resource {
    let said = Resource::builder().build();
    let is_named = said.get(&Key::new("service.name")).is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    let own = [
        ("service.name", "signalpost".to_owned()),
        ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("service.instance.id", uuid::Uuid::new_v4().to_string()),
    ];
    let is_missing = |name: &str| if name == "service.name" { !is_named } else { said.get(&Key::new(name.to_owned())).is_none() };
    let missing = own.into_iter().filter(|(name, _)| is_missing(name)).map(|(name, value)| KeyValue::new(name, value));
    Resource::builder().with_attributes(missing).build()
}
