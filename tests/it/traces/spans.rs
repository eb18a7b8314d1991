//! The spans of requests, as a collector receives them.

use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use serde_json::{Value, json};

use super::collector::{PARENT, PARENT_SPAN, TRACE, attribute, collected, find, hex, names, resource, settings, spans};
use crate::support::backend::Backend;
use crate::support::process::ServerProcess;
use crate::support::wat::Guest;
use crate::support::{Client, TestServer, plugins};

/// Where another event began.
const BEGAN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn matched(traceparent: Option<&str>) -> Value {
    let mut event = json!({ "specversion": "1.0", "id": "e1", "source": "/backend", "type": "pooling.match.found",
        "data": { "request_id": 42, "rider_id": "1001", "driver_id": "2002", "pool_id": "p1" } });
    if let Some(traceparent) = traceparent {
        event["traceparent"] = traceparent.into();
    }
    event
}

/// Posts with these headers; the status.
async fn post(server: &TestServer, path: &str, headers: &[(&str, &str)], body: &Value) -> u16 {
    let mut request = server.http.post(server.url(path)).header("content-type", "application/json").body(body.to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn an_event_is_one_trace_from_its_producer_to_each_write() {
    let collector = Backend::start().await;
    let server = TestServer::with(&settings(&collector, "")).await;
    let (mut rider, mut driver) = (server.connect("1001").await, server.connect("2002?format=compact").await);
    let headers = [("traceparent", PARENT), ("tracestate", "vendor=a:1")];
    assert_eq!(post(&server, "/events", &headers, &matched(Some(BEGAN))).await, 202);
    rider.json().await;
    driver.json().await;
    let spans = collected(&collector, 5).await;
    assert_eq!(spans.len(), 5, "{:?}", names(&spans));
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE && span.trace_state == "vendor=a:1"));

    let root = find(&spans, "POST /api/pool/events");
    assert_eq!((hex(&root.parent_span_id).as_str(), root.kind), (PARENT_SPAN, SpanKind::Server as i32));
    for (name, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/api/pool/events"),
        ("http.response.status_code", "202"),
        ("cloudevents.event_id", "e1"),
        ("cloudevents.event_source", "/backend"),
        ("cloudevents.event_type", "pooling.match.found"),
        ("signalpost.posted", "2"),
        ("signalpost.recipients", "2"),
    ] {
        assert_eq!(attribute(root, name), value, "{name}");
    }
    assert_eq!(root.links.len(), 1);
    assert_eq!((hex(&root.links[0].trace_id).as_str(), hex(&root.links[0].span_id).as_str()), (&BEGAN[3..35], &BEGAN[36..52]));

    let others: Vec<_> = spans.iter().filter(|span| span.span_id != root.span_id).collect();
    assert!(others.iter().all(|span| span.parent_span_id == root.span_id && span.links.is_empty()));
    let route = find(&spans, "route pooling");
    assert_eq!((route.kind, attribute(route, "signalpost.outcome").as_str()), (SpanKind::Internal as i32, "routed"));
    assert_eq!(attribute(route, "signalpost.policy.digest").len(), 64);
    assert!(root.start_time_unix_nano <= route.start_time_unix_nano && route.end_time_unix_nano <= root.end_time_unix_nano);
    let format = find(&spans, "format compact");
    assert_eq!((format.kind, attribute(format, "signalpost.outcome").as_str()), (SpanKind::Internal as i32, "formatted"));
    let sent: Vec<_> = spans.iter().filter(|span| span.name == "send pooling.match.found").collect();
    assert_eq!(sent.len(), 2);
    for span in sent {
        assert_eq!((span.kind, attribute(span, "cloudevents.event_id").as_str()), (SpanKind::Producer as i32, "e1"));
        assert!(route.end_time_unix_nano <= span.start_time_unix_nano && span.start_time_unix_nano <= span.end_time_unix_nano);
        assert!(attribute(span, "signalpost.mailbox.wait_us").parse::<u64>().unwrap() < 10_000_000);
    }
    let resource = resource(&collector.received());
    assert_eq!((resource["service.name"].as_str(), resource["service.version"].as_str()), ("signalpost", env!("CARGO_PKG_VERSION")));
    server.metric_reaches("signalpost_spans_sent_total", 5.0).await;
}

#[tokio::test]
async fn a_request_that_is_not_sampled_has_no_span() {
    let collector = Backend::start().await;
    let server = TestServer::with(&settings(&collector, "")).await;
    let mut reader = server.connect("1001").await;
    for headers in [&[][..], &[("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")], &[("traceparent", "nonsense")]]
    {
        assert_eq!(post(&server, "/events", headers, &matched(Some(BEGAN))).await, 202);
    }
    reader.json().await;
    reader.send_json(json!({ "type": "nobody", "takes": "this" })).await;
    let mut stream = producers(&server).await;
    for unsampled in [matched(None), json!({ "user": "1001", "message": 1 }), json!([matched(Some("nonsense"))])] {
        stream.send_json(unsampled).await;
        stream.json().await;
    }
    server.metric_reaches("signalpost_client_messages_total{outcome=\"unhandled\"}", 1.0).await;
    // A stop sends what waits.
    server.stop().await;
    assert!(collector.received().is_empty());
}

#[tokio::test]
async fn a_share_of_the_requests_without_a_parent_begins_a_trace() {
    let collector = Backend::start().await;
    let server = TestServer::with(&settings(&collector, "sample_ratio = 1")).await;
    assert_eq!(post(&server, "/events", &[], &json!({ "type": "nobody.wants", "data": 1 })).await, 202);
    let unsampled = [("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")];
    assert_eq!(post(&server, "/events", &unsampled, &json!({ "type": "nobody.wants", "data": 1 })).await, 202);
    server.stop().await;
    let spans = spans(&collector.received());
    assert_eq!(names(&spans), ["POST /api/pool/events"]);
    assert!(spans[0].parent_span_id.is_empty() && spans[0].trace_id.iter().any(|byte| *byte != 0));
}

#[tokio::test]
async fn a_direct_message_is_traced_to_its_write_and_a_refused_one_says_why() {
    let collector = Backend::start().await;
    let server = TestServer::with(&settings(&collector, "")).await;
    let mut reader = server.connect("1001").await;
    assert_eq!(post(&server, "/users/1001/messages", &[("traceparent", PARENT)], &json!({ "a": 1 })).await, 202);
    reader.json().await;
    let spans = collected(&collector, 2).await;
    assert_eq!(names(&spans), ["POST /api/pool/users/{user_id}/messages", "send signalpost.direct"]);
    assert_eq!(attribute(&spans[0], "signalpost.posted"), "1");
    assert_eq!(post(&server, "/users/1001/messages?collapse_key=", &[("traceparent", PARENT)], &json!(1)).await, 400);
    let refused = collected(&collector, 3).await.pop().unwrap();
    assert_eq!(
        (attribute(&refused, "http.response.status_code").as_str(), attribute(&refused, "error.type").as_str()),
        ("400", "collapse_key")
    );
    assert!(refused.status.is_none_or(|status| status.code() != StatusCode::Error), "the mistake is the producer's");
}

#[tokio::test]
async fn a_batch_has_a_link_for_each_event_that_began_elsewhere() {
    let collector = Backend::start().await;
    let server = TestServer::with(&settings(&collector, "")).await;
    let mut events = vec![matched(None), matched(Some(PARENT)), matched(Some(BEGAN)), matched(Some("nonsense"))];
    events.extend((0..20).map(|_| matched(Some(BEGAN))));
    let headers = [("traceparent", PARENT), ("content-type", "application/cloudevents-batch+json")];
    let request = server.http.post(server.url("/events")).body(Value::from(events).to_string());
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    assert_eq!(request.send().await.unwrap().status(), 202);
    let root = collected(&collector, 2).await;
    let root = find(&root, "POST /api/pool/events");
    assert_eq!((attribute(root, "messaging.batch.message_count").as_str(), root.links.len()), ("24", 16));
    assert!(root.links.iter().all(|link| hex(&link.trace_id) == BEGAN[3..35]), "the parent is no link");
}

async fn producers(server: &TestServer) -> Client {
    let mut stream = Client::open(&format!("ws://{}/api/pool/publish", server.address), Some("signalpost.publish.v1")).await;
    assert_eq!(stream.json().await["type"], "hello");
    stream
}

#[tokio::test]
async fn what_a_producers_stream_carries_is_sampled_by_its_own_parents() {
    let collector = Backend::start().await;
    let server = TestServer::with(&settings(&collector, "")).await;
    let mut rider = server.connect("1001").await;
    let mut stream = producers(&server).await;
    let told = json!({ "user": "1001", "message": { "a": 1 }, "traceparent": PARENT, "tracestate": "vendor=b:2" });
    let refused = json!({ "user": "1001", "message": 1, "collapse_key": "", "traceparent": PARENT });
    let batch = json!([{ "no": "type" }, matched(Some(BEGAN)), { "type": "nobody.wants" }]);
    for frame in [told, refused, batch] {
        stream.send_json(frame).await;
        stream.json().await;
    }
    assert_eq!((rider.json().await, rider.json().await["type"].clone()), (json!({ "a": 1 }), json!("pooling_match")));
    server.stop().await;
    let spans = spans(&collector.received());
    let mut seen = names(&spans);
    seen.sort_unstable();
    assert_eq!(seen, ["publish", "route pooling", "send pooling.match.found", "send signalpost.direct", "tell", "tell"]);
    let parent = |name: &str, of: &str| assert_eq!(find(&spans, name).parent_span_id, find(&spans, of).span_id, "{name}");
    parent("send pooling.match.found", "publish");
    parent("route pooling", "publish");
    let publish = find(&spans, "publish");
    assert_eq!((hex(&publish.trace_id).as_str(), hex(&publish.parent_span_id).as_str()), (&BEGAN[3..35], &BEGAN[36..52]));
    assert_eq!((attribute(publish, "cloudevents.event_id").as_str(), attribute(publish, "signalpost.posted").as_str()), ("e1", "2"));
    let tells: Vec<_> = spans.iter().filter(|span| span.name == "tell").collect();
    assert!(tells.iter().all(|span| hex(&span.trace_id) == TRACE && hex(&span.parent_span_id) == PARENT_SPAN));
    let sent = find(&spans, "send signalpost.direct");
    let told = tells.iter().find(|span| span.span_id == sent.parent_span_id).unwrap();
    assert_eq!((attribute(told, "signalpost.posted").as_str(), sent.trace_state.as_str()), ("1", "vendor=b:2"));
    let refused = tells.iter().find(|span| span.span_id != told.span_id).unwrap();
    assert_eq!(attribute(refused, "error.type"), "collapse_key");
    assert!(refused.status.as_ref().is_none_or(|status| status.code() != StatusCode::Error), "the mistake is the producer's");
}

#[tokio::test]
async fn a_clients_message_is_one_trace_from_its_policy_to_each_write() {
    let collector = Backend::start().await;
    let server = TestServer::with(&settings(&collector, "sample_ratio = 1")).await;
    let (mut rider, mut driver) = (server.connect_v1("1001").await, server.connect("2002").await);
    // Its parent says that this one has no span.
    let unsampled = [("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")];
    assert_eq!(post(&server, "/events", &unsampled, &matched(None)).await, 202);
    driver.json().await;
    rider.send_json(json!({ "type": "message", "data": { "type": "chat", "pool_id": "p1", "text": "wait" } })).await;
    assert_eq!(driver.json().await["text"], "wait");
    rider.send_json(json!({ "type": "message", "data": { "type": "chat", "pool_id": "p1" } })).await;
    rider.send_json(json!({ "type": "message", "data": { "nobody": "takes this" } })).await;
    server.metric_reaches("signalpost_client_messages_total{outcome=\"unhandled\"}", 1.0).await;
    server.stop().await;

    let spans = spans(&collector.received());
    let of_client: Vec<_> = spans.iter().filter(|span| span.name == "receive").collect();
    let outcomes: Vec<String> = of_client.iter().map(|span| attribute(span, "signalpost.outcome")).collect();
    assert_eq!(outcomes, ["handled", "refused", "unhandled"], "{:?}", names(&spans));
    let [handled, refused, unhandled] = of_client[..] else { unreachable!() };
    assert!(of_client.iter().all(|span| span.kind == SpanKind::Server as i32 && span.parent_span_id.is_empty()));
    assert!(handled.trace_id != refused.trace_id && !attribute(handled, "signalpost.session").is_empty());
    assert_eq!(
        (attribute(refused, "signalpost.refusal").as_str(), attribute(unhandled, "signalpost.refusal").as_str()),
        ("invalid_chat", "unhandled")
    );
    let children = |root: &Span| {
        let mut children: Vec<&Span> = spans.iter().filter(|span| span.parent_span_id == root.span_id).collect();
        children.sort_by_key(|span| span.start_time_unix_nano);
        assert!(children.iter().all(|span| span.trace_id == root.trace_id && root.start_time_unix_nano <= span.start_time_unix_nano));
        children
    };
    let below = children(handled);
    let called = below.iter().map(|span| span.name.as_str()).filter(|name| !name.starts_with("send ")).collect::<Vec<_>>();
    assert_eq!(called, ["received chat", "route pooling"]);
    assert_eq!((attribute(below[0], "signalpost.outcome").as_str(), attribute(below[0], "signalpost.events").as_str()), ("handled", "1"));
    assert_eq!(attribute(below[0], "signalpost.policy.digest").len(), 64);
    assert!(below.iter().any(|span| span.name == "send pooling.chat.message"), "{:?}", names(&spans));
    assert_eq!(attribute(children(refused)[0], "signalpost.outcome"), "refused");
    let passed = children(unhandled);
    assert!(!passed.is_empty() && passed.iter().all(|span| attribute(span, "signalpost.outcome") == "passed"), "{passed:?}");
    let users = spans.iter().flat_map(|span| &span.attributes).filter(|pair| format!("{pair:?}").contains("1001"));
    assert_eq!(users.count(), 0, "users' ids are not in spans");
}

#[tokio::test]
async fn a_fan_out_has_a_span_for_its_first_deliveries_and_counts_the_others() {
    let collector = Backend::start().await;
    let dir = plugins(&[]);
    let strings = [("user", "u")];
    let guest = Guest { strings: &strings, ..Guest::routing("(call $forward (global.get $user) (global.get $user_bytes))") };
    std::fs::write(dir.path().join("a.wasm"), guest.component()).unwrap();
    let more = format!("deliveries_max = 3\n[sockets]\nper_user_max = 32\n[plugins]\ndir = {:?}\nwatch = false", dir.path());
    let server = TestServer::with(&settings(&collector, &more)).await;
    let mut readers = Vec::new();
    for _ in 0..20 {
        readers.push(server.connect("u").await);
    }
    assert_eq!(post(&server, "/events", &[("traceparent", PARENT)], &json!({ "type": "x", "data": 1 })).await, 202);
    for reader in &mut readers {
        reader.json().await;
    }
    server.stop().await;
    let spans = spans(&collector.received());
    assert_eq!(spans.iter().filter(|span| span.name == "send x").count(), 3, "{:?}", names(&spans));
    let root = find(&spans, "POST /api/pool/events");
    assert_eq!(attribute(root, "signalpost.posted"), "1");
}

#[tokio::test]
async fn a_message_that_waited_for_its_reader_is_linked_and_not_timed() {
    let collector = Backend::start().await;
    let server = TestServer::with(&settings(&collector, "")).await;
    assert_eq!(post(&server, "/users/1001/messages", &[("traceparent", PARENT)], &json!({ "a": 1 })).await, 202);
    server.connect("1001").await.json().await;
    let spans = collected(&collector, 2).await;
    let (root, sent) = (find(&spans, "POST /api/pool/users/{user_id}/messages"), find(&spans, "send signalpost.direct"));
    assert!(sent.trace_id != root.trace_id && sent.parent_span_id.is_empty());
    assert_eq!((&sent.links[0].trace_id, &sent.links[0].span_id), (&root.trace_id, &root.span_id));
    assert_eq!(server.metric("signalpost_delivery_seconds_count").await, 0.0);
    let mut reader = server.connect("1002").await;
    server.post("/users/1002/messages", json!(1)).await;
    reader.json().await;
    server.metric_reaches("signalpost_delivery_seconds_count", 1.0).await;
    assert!(server.metric("signalpost_delivery_seconds_sum").await < 10.0);
}

#[tokio::test]
async fn a_fault_is_an_error_and_the_log_names_its_event_and_its_trace() {
    let collector = Backend::start().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.wasm"), Guest::routing("unreachable").component()).unwrap();
    let refuse = "(call $refuse (global.get $code) (global.get $code_bytes) (global.get $code) (global.get $code_bytes))";
    let strings = [("code", "no")];
    std::fs::write(dir.path().join("b.wasm"), Guest { strings: &strings, ..Guest::routing(refuse) }.component()).unwrap();
    let log = "[log]\nformat = \"json\"\nlevel = \"debug\"\n[store]\ndurability = \"memory\"\n";
    let server = ServerProcess::start(dir.path(), &format!("{}{log}", settings(&collector, "")));
    assert_eq!(post(&server.server, "/events", &[("traceparent", PARENT)], &matched(None)).await, 202);
    let spans = collected(&collector, 3).await;
    let (faulted, refused) = (find(&spans, "route a"), find(&spans, "route b"));
    assert_eq!(faulted.status.as_ref().unwrap().code(), StatusCode::Error);
    assert_eq!((attribute(faulted, "error.type").as_str(), attribute(faulted, "signalpost.outcome").as_str()), ("trap", "faulted"));
    assert!(refused.status.as_ref().is_none_or(|status| status.code() == StatusCode::Unset));
    assert_eq!((attribute(refused, "signalpost.refusal").as_str(), attribute(refused, "signalpost.outcome").as_str()), ("no", "refused"));
    let lines: Vec<Value> = server.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    for message in ["policy fault", "dead letter kept", "policy refusal"] {
        let line = lines.iter().find(|line| line["message"].as_str().unwrap().starts_with(message));
        let line = line.unwrap_or_else(|| panic!("no line about a {message}: {}", server.log()));
        assert_eq!((&line["event_id"], &line["trace_id"]), (&json!("e1"), &json!(TRACE)), "{message}");
    }
}
