//! What a sink's backend gets, as long as it answers well.

use serde_json::{Value, json};

use super::{A, B, event, ids, publish, settings, sink, start};
use crate::support::backend::{Backend, Then};
use crate::support::{TestServer, config, plugins};

#[tokio::test]
async fn an_event_arrives_as_a_signed_cloudevent_with_its_digits() {
    let backend = Backend::start().await;
    let (server, _dir) = start(&backend, "").await;
    let body = r#"{"specversion":"1.0","id":"e.1 ä","source":"/rides","type":"ride.asked","subject":"1001","time":"2026-11-26T22:00:00Z",
        "traceparent":"00-1","data":{"request_id": 12345678901234567890, "share": 1.10}}"#;
    let request = server.http.post(server.url("/events")).header("Content-Type", "application/cloudevents+json").body(body);
    assert_eq!(request.send().await.unwrap().status(), 202);
    let received = backend.accepts(1).await.remove(0);
    assert_eq!((received.path.as_str(), received.header("content-type")), ("/hook", "application/cloudevents+json"));
    assert_eq!(received.header("host"), backend.address.to_string());
    let text = String::from_utf8(received.body.to_vec()).unwrap();
    assert!(text.contains(r#"{"request_id": 12345678901234567890, "share": 1.10}"#), "{text}");
    let mut got = received.json();
    assert_eq!(got.as_object_mut().unwrap().remove("data").unwrap()["share"], 1.1);
    assert_eq!(
        got,
        json!({ "specversion": "1.0", "id": "e.1 ä", "source": "/rides", "type": "ride.asked", "subject": "1001",
            "time": "2026-11-26T22:00:00Z", "traceparent": "00-1", "datacontenttype": "application/json" })
    );
    assert_eq!(received.signed_by(A), [true]);
    assert_eq!(received.signed_by(B), [false]);
    let sent_s: u64 = received.header("webhook-timestamp").parse().unwrap();
    let now_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(now_s - sent_s < 10);
}

#[tokio::test]
async fn while_a_secret_is_replaced_both_sign_and_the_files_are_read_again() {
    let backend = Backend::start().await;
    let (server, dir) = start(&backend, "").await;
    let file = dir.path().join("secret");
    let signed_by = async |n: u64| {
        publish(&server, "a", n).await;
        let received = backend.until(|all| all.iter().any(|one| one.json()["data"]["n"] == n)).await;
        let one = received.iter().find(|one| one.json()["data"]["n"] == n).unwrap();
        [A, B].map(|secret| one.signed_by(secret))
    };
    assert_eq!(signed_by(0).await, [[true], [false]]);
    std::fs::write(&file, format!("{A}\n{B}\n")).unwrap();
    let mut n = 1;
    let both = loop {
        let signed = signed_by(n).await;
        if signed[0].len() == 2 {
            break signed;
        }
        n += 1;
    };
    assert_eq!(both, [[true, false], [false, true]]);
    // What is no secret changes nothing.
    std::fs::write(&file, "whsec_nonsense").unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(400)).await;
    assert_eq!(signed_by(n + 1).await, [[true, false], [false, true]]);
    std::fs::write(&file, B).unwrap();
    n += 2;
    while signed_by(n).await != [[false], [true]] {
        n += 1;
    }
}

#[tokio::test]
async fn secrets_that_cannot_be_used_are_refused_at_the_start() {
    let backend = Backend::start().await;
    let dir = tempfile::tempdir().unwrap();
    let refused = async |text: Option<&str>| {
        let file = dir.path().join("secret");
        match text {
            Some(text) => std::fs::write(&file, text).unwrap(),
            None => drop(std::fs::remove_file(&file)),
        }
        let config = config(&settings(&sink(backend.address, &file, ""), ""));
        let checked = signalpost::server::check(config.clone()).await.unwrap_err();
        let error = signalpost::server::Server::new(config).await.unwrap_err();
        assert_eq!(format!("{error:#}"), format!("{checked:#}"));
        format!("{error:#}").replace(&format!("{}/", dir.path().display()), "")
    };
    assert!(refused(None).await.starts_with("sinks.backend.secret_files: secret can't be read: "));
    let says = "sinks.backend.secret_files: secret holds no secret; a line of it is whsec_ and 24 to 64 bytes in base64";
    assert_eq!(refused(Some("")).await, says);
    assert_eq!(refused(Some("hunter2")).await, "sinks.backend.secret_files: line 1 of secret doesn't begin with whsec_");
    assert_eq!(
        refused(Some("whsec_aGk=")).await,
        "sinks.backend.secret_files: line 1 of secret has a secret of 2 bytes; it needs 24 to 64"
    );
}

#[tokio::test]
async fn a_batch_holds_many_events_and_each_subject_keeps_its_order() {
    let backend = Backend::with(|_| Then::Answer(500)).await;
    let (server, _dir) = start(&backend, "batch_max = 10\nrequests_max = 2\n").await;
    // The first one fails, so that the others gather.
    for n in 0..40 {
        publish(&server, ["a", "b", "c"][n as usize % 3], n).await;
    }
    backend.then(|_| Then::Answer(200));
    let received = backend
        .until(|all| all.iter().filter(|one| one.is_accepted()).map(|one| one.json().as_array().unwrap().len()).sum::<usize>() >= 40)
        .await;
    assert!(received.iter().all(|one| one.header("content-type") == "application/cloudevents-batch+json" && one.signed_by(A) == [true]));
    let accepted: Vec<Value> = backend.accepted().iter().flat_map(|one| one.json().as_array().unwrap().clone()).collect();
    assert!(backend.accepted().iter().any(|one| one.json().as_array().unwrap().len() == 10), "some are full");
    assert!(received.iter().all(|one| one.json().as_array().unwrap().len() <= 10));
    for subject in ["a", "b", "c"] {
        let numbers: Vec<u64> =
            accepted.iter().filter(|event| event["subject"] == subject).map(|event| event["data"]["n"].as_u64().unwrap()).collect();
        assert!(numbers.is_sorted() && numbers.len() >= 13, "{subject}: {numbers:?}");
    }
    // A batch that failed comes again as the same batch.
    let mut by_id = std::collections::HashMap::new();
    for one in &received {
        assert_eq!(by_id.entry(one.id().to_owned()).or_insert_with(|| one.body.clone()), &one.body);
    }
}

#[tokio::test]
async fn a_sink_hears_what_its_configuration_names_and_no_producer_poses_as_a_policy() {
    let backend = Backend::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    std::fs::write(&file, A).unwrap();
    let named = |name: &str, sources: &str| {
        let url = format!("http://{}/{name}", backend.address);
        format!("[sinks.{name}]\nurl = {url:?}\nevents = [\"ride.asked\", \"trip.*\"]\n{sources}secret_files = [{file:?}]\n")
    };
    let none = plugins(&[]);
    let sinks = named("default", "") + &named("all", "sources = [\"*\"]\n") + &named("one", "sources = [\"/rides\"]\n");
    let server = TestServer::with(&settings(&sinks, &format!("\n[plugins]\ndir = {:?}\n", none.path()))).await;
    let publish = async |source: &str, kind: &str| {
        let mut event = event("a", 1);
        (event["source"], event["type"], event["id"]) = (source.into(), kind.into(), kind.into());
        server.post("/events", event).await;
    };
    for source in ["/rides", "/policies/offers", "/signalpost", "/signalposts"] {
        for kind in ["ride.asked", "ride.asked.twice", "trip.over", "trip"] {
            publish(source, kind).await;
        }
    }
    let received = backend.accepts(6).await;
    tokio::time::sleep(crate::support::QUIET).await;
    let mut got: Vec<_> =
        received.iter().map(|one| (one.path.clone(), one.json()["source"].to_string(), one.json()["type"].to_string())).collect();
    got.sort();
    let heard = |path: &str, source: &str| {
        [("ride.asked"), ("trip.over")].map(|kind| (path.to_owned(), format!("{source:?}"), format!("{kind:?}")))
    };
    assert_eq!(got, [heard("/all", "/rides"), heard("/all", "/signalposts"), heard("/one", "/rides")].concat());
    assert_eq!(backend.received().len(), 6);
    let sinks = server.get("/sinks").await;
    let heard: Vec<(&str, u64)> = sinks["sinks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|sink| (sink["name"].as_str().unwrap(), sink["counters"]["heard"].as_u64().unwrap()))
        .collect();
    assert_eq!(heard, [("all", 4), ("default", 0), ("one", 2)]);
}

#[tokio::test]
async fn nobody_else_can_read_a_sinks_mailbox_and_it_counts_as_no_user() {
    let mut backend = Backend::start().await;
    let (server, _dir) = start(&backend, "").await;
    backend.go_away().await;
    publish(&server, "a", 1).await;
    for path in ["/users/%00sink:backend", "/ws/%00sink:backend"] {
        assert_eq!(server.http.get(server.url(path)).send().await.unwrap().status().as_u16() / 100, 4);
    }
    let told = server.http.post(server.url("/users/%00sink:backend/messages")).json(&json!("x")).send().await.unwrap();
    assert_eq!(told.status(), 400);
    assert!(!server.get("/users").await.to_string().contains("sink:backend"));
    assert_eq!(server.metric("signalpost_sessions").await, 0.0);
    assert_eq!(server.metric("signalpost_messages_posted_total").await, 0.0);
    assert_eq!(server.metric("signalpost_sink_waiting{sink=\"backend\"}").await, 1.0);
    backend.come_back().await;
    backend.accepts(1).await;
    server.metric_reaches("signalpost_sink_waiting{sink=\"backend\"}", 0.0).await;
    assert_eq!(server.metric("signalpost_sink_events_total{outcome=\"accepted\",sink=\"backend\"}").await, 1.0);
}

#[tokio::test]
async fn a_stop_lets_what_is_on_its_way_arrive() {
    let backend = Backend::start().await;
    let (server, _dir) = start(&backend, "requests_max = 1\n").await;
    for n in 0..10 {
        publish(&server, "a", n).await;
    }
    server.stop().await;
    assert_eq!(ids(&backend.accepted()).len(), 10);
}
