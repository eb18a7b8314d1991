//! A collector: a backend that takes spans by OTLP over HTTP.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;

use crate::support::SOON;
use crate::support::backend::{Backend, Received};

/// A sampled parent, as producers send it.
pub const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
pub const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
pub const PARENT_SPAN: &str = "00f067aa0ba902b7";

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Settings of a server that sends its spans here, soon.
pub fn settings(collector: &Backend, more: &str) -> String {
    format!("[traces]\nendpoint = \"http://{}/v1/traces\"\ninterval_ms = 20\n{more}\n", collector.address)
}

fn decoded(request: &Received) -> ExportTraceServiceRequest {
    assert_eq!(request.header("content-type"), "application/x-protobuf");
    ExportTraceServiceRequest::decode(request.body.clone()).unwrap()
}

/// The spans that were received so far.
pub fn spans(received: &[Received]) -> Vec<Span> {
    let resources = received.iter().flat_map(|request| decoded(request).resource_spans);
    resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
}

/// What the first request says about the process.
pub fn resource(received: &[Received]) -> BTreeMap<String, String> {
    attributes(&decoded(&received[0]).resource_spans[0].resource.as_ref().unwrap().attributes)
}

/// Waits for this many spans, and returns them in the order of their beginning.
pub async fn collected(collector: &Backend, count: usize) -> Vec<Span> {
    let since = Instant::now();
    loop {
        let mut spans = spans(&collector.received());
        if spans.len() >= count {
            spans.sort_by_key(|span| span.start_time_unix_nano);
            return spans;
        }
        assert!(since.elapsed() < SOON, "{count} spans come in time: {:?}", names(&spans));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn names(spans: &[Span]) -> Vec<&str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}

pub fn find<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{name} is not among {:?}", names(spans)))
}

pub fn attributes(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(flag) => flag.to_string(),
        other => panic!("{other:?}"),
    };
    let value = |pair: &KeyValue| text(pair.value.as_ref().unwrap().value.as_ref().unwrap());
    attributes.iter().map(|pair| (pair.key.clone(), value(pair))).collect()
}

pub fn attribute(span: &Span, name: &str) -> String {
    attributes(&span.attributes).get(name).cloned().unwrap_or_else(|| panic!("{} has no {name}: {:?}", span.name, span.attributes))
}
