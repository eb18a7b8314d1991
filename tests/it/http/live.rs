//! The live feed: what observers see of events, sessions, clients' messages, faults and reloads, what they do not see, and how it ends.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::process::signalpost;
use crate::support::wat::Guest;
use crate::support::{QUIET, SOON, TestServer, plugins};

/// An observer.
struct Feed {
    response: reqwest::Response,
    text: String,
    frames: VecDeque<(String, Value)>,
}

impl Feed {
    async fn open(server: &TestServer, query: &str) -> Feed {
        Feed::with(server, query, None).await.unwrap()
    }

    /// Opens a feed with a key. A refusal is the status and the code.
    async fn with(server: &TestServer, query: &str, key: Option<&str>) -> Result<Feed, (u16, Value)> {
        let mut request = server.http.get(format!("http://{}/api/pool/live{query}", server.operators));
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        let response = timeout(SOON, request.send()).await.unwrap().unwrap();
        if response.status() != 200 {
            return Err((response.status().as_u16(), response.json::<Value>().await.unwrap()["code"].clone()));
        }
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store, no-transform");
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        let mut feed = Feed { response, text: String::new(), frames: VecDeque::new() };
        let (name, hello) = feed.next().await;
        assert_eq!((name.as_str(), &hello["version"]), ("hello", &json!(env!("CARGO_PKG_VERSION"))));
        Ok(feed)
    }

    /// Returns the next frame, or `None` at the end of the stream.
    async fn try_next(&mut self) -> Option<(String, Value)> {
        while self.frames.is_empty() {
            let chunk = timeout(SOON, self.response.chunk()).await.expect("an entry in time").unwrap()?;
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
            while let Some((frame, rest)) = self.text.clone().split_once("\n\n") {
                let field = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned));
                if let (Some(name), Some(data)) = (field("event"), field("data")) {
                    self.frames.push_back((name, serde_json::from_str(&data).unwrap()));
                }
                self.text = rest.to_owned();
            }
        }
        self.frames.pop_front()
    }

    async fn next(&mut self) -> (String, Value) {
        self.try_next().await.expect("an open stream")
    }

    /// Returns the next entry of this kind; those before it are skipped.
    async fn find(&mut self, kind: &str) -> Value {
        loop {
            let (name, entry) = self.next().await;
            if name == kind {
                return entry;
            }
        }
    }

    /// Nothing comes for a while.
    async fn quiet(&mut self) {
        if let Ok(frame) = timeout(QUIET, self.try_next()).await {
            panic!("nothing was to come, and {frame:?} did");
        }
    }
}

fn the_match() -> Value {
    json!({ "request_id": 42, "rider_id": 1001, "driver_id": 2002, "pool_id": 7 })
}

#[tokio::test]
async fn an_observer_sees_sessions_events_and_who_was_told_and_what_clients_send() {
    let server = TestServer::start().await;
    let mut feed = Feed::open(&server, "").await;
    let mut rider = server.connect("1001?locale=de").await;
    let asked = feed.find("policy").await;
    assert_eq!((&asked["policy"], &asked["function"], &asked["outcome"]), (&json!("chat"), &json!("opened"), &json!("answered")));
    let opened = feed.find("session").await;
    let facts = (&opened["user"], &opened["state"], &opened["attributes"]);
    assert_eq!(facts, (&json!("1001"), &json!("opened"), &json!({ "locale": "de" })));

    let receipt = server.publish("pooling.match.found", the_match()).await;
    rider.json().await;
    let event = feed.find("event").await;
    assert_eq!((&event["type"], &event["id"], &event["recipients"]), (&json!("pooling.match.found"), &receipt["id"], &json!(2)));
    assert_eq!(event["event"]["data"]["pool_id"], 7);
    let told = &event["explanation"]["policies"][0]["deliveries"];
    let users: Vec<&Value> =
        told.as_array().unwrap().iter().flat_map(|told| told["recipients"].as_array().unwrap()).map(|to| &to["user"]).collect();
    assert_eq!(users, ["1001", "2002"]);
    assert_eq!(told[0]["recipients"][0]["sessions"][0]["id"], opened["session"]);
    assert_eq!((&told[0]["message"]["json"]["type"], event["at"].as_str().unwrap().len()), (&json!("pooling_match"), 24));
    assert!(told[0]["classes"][0]["sees"]["json"]["type"] == "pooling_match", "{told}");

    rider.send_json(json!({ "type": "chat", "pool_id": 7, "text": "hello" })).await;
    let chatted = feed.find("event").await;
    assert_eq!((&chatted["type"], &chatted["source"]), (&json!("pooling.chat.message"), &json!("/policies/chat")), "{chatted}");
    let received = feed.find("message").await;
    let facts = (&received["user"], &received["session"], &received["outcome"]);
    assert_eq!(facts, (&json!("1001"), &opened["session"], &json!("handled")));
    assert_eq!(received["data"]["json"]["text"], "hello");

    server.post("/users/1001/messages", json!({ "n": 1 })).await;
    let direct = feed.find("event").await;
    assert_eq!((&direct["type"], &direct["posted"]), (&json!("signalpost.direct"), &json!(1)));
    assert_eq!(direct["explanation"]["policies"][0]["deliveries"][0]["message"], json!({ "json": { "n": 1 } }));
    drop(rider);
    let closed = loop {
        let session = feed.find("session").await;
        if session["state"] == "closed" {
            break session;
        }
    };
    assert_eq!((&closed["session"], &closed["code"]), (&opened["session"], &json!(1006)));
    assert_eq!(server.metric("signalpost_live_observers").await, 1.0);
}

#[tokio::test]
async fn filters_let_pass_what_they_name_and_nothing_else() {
    let server = TestServer::start().await;
    let mut of_user = Feed::open(&server, "?user=2002&kind=event").await;
    let mut of_type = Feed::open(&server, "?type=pooling.driver.*").await;
    let mut of_policy = Feed::open(&server, "?policy=chat").await;
    let mut of_kinds = Feed::open(&server, "?kind=session,reload").await;
    server.post("/users/1001/messages", json!(1)).await;
    server.publish("pooling.match.found", the_match()).await;
    server.publish("pooling.driver.arriving", json!({ "pool_id": 7, "driver_id": 2002, "eta_s": 60 })).await;
    let client = server.connect("3003").await;
    assert_eq!(of_user.next().await.1["type"], "pooling.match.found");
    of_user.quiet().await;
    assert_eq!(of_type.next().await.1["type"], "pooling.driver.arriving");
    of_type.quiet().await;
    let (kind, asked) = of_policy.next().await;
    assert_eq!((kind.as_str(), &asked["user"]), ("policy", &json!("3003")));
    of_policy.quiet().await;
    assert_eq!(of_kinds.next().await.1["state"], "opened");
    of_kinds.quiet().await;
    drop(client);
    for (query, code) in [("?kind=rumour", "query"), ("?kinds=event", "query"), ("?user=1&user=2", "query")] {
        assert_eq!(Feed::with(&server, query, None).await.err(), Some((400, json!(code))), "{query}");
    }
}

#[tokio::test]
async fn a_key_that_only_reads_sees_who_was_told_and_no_payload() {
    let keys = |name: &str, scopes: &str| {
        let (key, sha256) = signalpost_key(name);
        (key, format!("[[auth.keys]]\nname = \"{name}\"\nsha256 = \"{sha256}\"\nscopes = [{scopes}]\n"))
    };
    let (reader, first) = keys("reader", "\"read\"");
    let (operator, second) = keys("operator", "\"read\", \"operate\"");
    let (producer, third) = keys("producer", "\"publish\"");
    let server = TestServer::with(&format!("operate_listen = \"127.0.0.1:0\"\n{first}{second}{third}")).await;
    assert_eq!(Feed::with(&server, "", Some(&producer)).await.err(), Some((401, json!("unauthorized"))));
    assert_eq!(Feed::with(&server, "", None).await.err(), Some((401, json!("unauthorized"))));
    let mut reads = Feed::with(&server, "", Some(&reader)).await.unwrap();
    let mut operates = Feed::with(&server, "", Some(&operator)).await.unwrap();
    let mut rider = server.connect("1001").await;
    let secret = "PRIVATE-5417";
    let body =
        json!({ "type": "pooling.match.found", "data": { "request_id": secret, "rider_id": 1001, "driver_id": 2002, "pool_id": 7 } });
    server.http.post(server.url("/events")).bearer_auth(&producer).json(&body).send().await.unwrap();
    rider.send_json(json!({ "type": "unknown", "text": secret })).await;
    let (mut seen, mut also) = (Vec::new(), Vec::new());
    for (feed, seen) in [(&mut reads, &mut seen), (&mut operates, &mut also)] {
        while seen.last().is_none_or(|(kind, _): &(String, Value)| kind != "message") {
            seen.push(feed.next().await);
        }
    }
    let text = |frames: &[(String, Value)]| frames.iter().map(|(kind, entry)| format!("{kind} {entry}\n")).collect::<String>();
    assert!(!text(&seen).contains(secret), "{}", text(&seen));
    let event = &seen.iter().find(|(kind, _)| kind == "event").unwrap().1;
    let told = &event["explanation"]["policies"][0]["deliveries"][0];
    assert_eq!((&told["recipients"][0]["user"], &told["message"], &event["event"]), (&json!("1001"), &Value::Null, &Value::Null));
    assert!(text(&also).matches(secret).count() >= 3, "the event, the message and what is seen of it: {}", text(&also));
}

/// Makes an API key by the command that operators use.
pub fn signalpost_key(name: &str) -> (String, String) {
    let made = signalpost().args(["token", "--api-key", name, "--scope", "read"]).output().unwrap();
    let said = String::from_utf8(made.stdout).unwrap() + &String::from_utf8(made.stderr).unwrap();
    let key = said.split_whitespace().find(|word| word.starts_with("signalpost_")).unwrap().to_owned();
    let digest = said.split("sha256 = \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    (key, digest)
}

#[tokio::test]
async fn observers_are_bounded_and_leave_room_when_they_go() {
    let server = TestServer::with("[live]\nobservers_max = 2\n").await;
    let first = Feed::open(&server, "").await;
    let _second = Feed::open(&server, "").await;
    assert_eq!(Feed::with(&server, "", None).await.err(), Some((503, json!("too_many_observers"))));
    drop(first);
    server.metric_reaches("signalpost_live_observers", 1.0).await;
    let mut third = Feed::open(&server, "").await;
    server.post("/users/1001/messages", json!(1)).await;
    assert_eq!(third.next().await.0, "event");
}

#[tokio::test]
async fn what_an_observer_does_not_get_is_counted_and_it_is_told() {
    let server = TestServer::with("[live]\nper_second_max = 3\n").await;
    let mut feed = Feed::open(&server, "?kind=event").await;
    for n in 0..50 {
        server.post("/users/1001/messages", json!(n)).await;
    }
    let (mut entries, mut lost) = (0, 0);
    while entries + lost < 50 {
        match feed.next().await {
            (kind, entry) if kind == "lost" => lost += entry["count"].as_u64().unwrap(),
            (kind, _) => entries += u64::from(kind == "event"),
        }
    }
    assert_eq!(entries + lost, 50);
    assert!((3..50).contains(&entries), "{entries} entries");
    assert_eq!(server.metric("signalpost_live_lost_total").await, lost as f64);
}

#[tokio::test]
async fn faults_of_all_roles_and_reloads_are_seen_with_backtraces_and_reasons() {
    let dir = plugins(&[]);
    std::fs::write(dir.path().join("breaks.wasm"), Guest::routing("unreachable").component()).unwrap();
    let server = TestServer::with(&format!("[plugins]\nwatch = false\ndir = {:?}\n", dir.path())).await;
    let mut feed = Feed::open(&server, "?kind=fault,reload").await;
    server.publish("a", json!({})).await;
    let fault = feed.find("fault").await;
    let facts = (&fault["policy"], &fault["function"], &fault["kind"]);
    assert_eq!(facts, (&json!("breaks"), &json!("route"), &json!("trap")));
    assert!(fault["detail"].as_str().unwrap().contains("unreachable"), "{fault}");
    std::fs::write(dir.path().join("other.wasm"), Guest::formatting("unreachable").component()).unwrap();
    assert_eq!(server.reload().await.0, 200);
    assert_eq!(feed.next().await.1["changed"], json!(["other"]));
    std::fs::write(dir.path().join("worse.wasm"), b"not a component").unwrap();
    assert_eq!(server.reload().await.0, 422);
    let refused = feed.next().await.1;
    assert_eq!((&refused["outcome"], &refused["rejected"][0]["name"]), (&json!("refused"), &json!("worse")));
    let mut client = server.connect("u").await;
    server.post("/users/u/messages", json!(1)).await;
    let fault = feed.find("fault").await;
    assert_eq!((&fault["policy"], &fault["function"]), (&json!("other"), &json!("format")));
    client.quiet().await;
}

#[tokio::test]
async fn a_stop_ends_the_streams_in_order_and_does_not_wait_for_them() {
    let mut took = Vec::new();
    // A busy machine may delay one of them.
    for _ in 0..3 {
        let mut server = TestServer::start().await;
        let mut feed = Feed::open(&server, "").await;
        let client = server.connect("1001").await;
        feed.find("session").await;
        drop(client);
        let began = Instant::now();
        server.begin_stop();
        assert_eq!(feed.find("end").await, json!({ "reason": "the server is stopping" }));
        assert_eq!(feed.try_next().await, None);
        server.stop().await;
        took.push(began.elapsed());
    }
    assert!(took.iter().min() < Some(&Duration::from_millis(900)), "the second for slow requests is not needed: {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_shows_the_feed_on_a_terminal_with_the_same_filters() {
    let server = TestServer::start().await;
    let tail = |arguments: &str| {
        let url = format!("http://{}/api/pool", server.address);
        let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
        tokio::task::spawn_blocking(move || signalpost().args(["tail", "--url", &url]).args(arguments).output().unwrap())
    };
    let (brief, full) = (tail("--user 2002 --count 1"), tail("--kind event --full --count 2"));
    let json = tail("--type pooling.* --json --count 1");
    server.metric_reaches("signalpost_live_observers", 3.0).await;
    server.post("/users/1001/messages", json!(1)).await;
    server.publish("pooling.match.found", the_match()).await;
    let said = async |tail: tokio::task::JoinHandle<std::process::Output>| {
        let output = timeout(SOON, tail).await.unwrap().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let brief = said(brief).await;
    assert!(
        brief.contains("Z  pooling.match.found  published ") && brief.contains("→ 2 recipients, 2 posted\n  pooling 0.1.0  routed"),
        "{brief}"
    );
    assert_eq!(brief.lines().count(), 2, "{brief}");
    let full = said(full).await;
    assert!(full.contains("signalpost.direct") && full.contains("joins  pool:7: 1001, 2002") && full.contains("seq 2"), "{full}");
    let json = said(json).await;
    let entry: Value = serde_json::from_str(json.strip_prefix("event ").unwrap()).unwrap();
    assert_eq!(entry["recipients"], 2);
    let wrong = tail("--kind rumour").await.unwrap();
    assert!(!wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("there is no kind \"rumour\""));
}
