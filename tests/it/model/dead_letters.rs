//! What policies fault on is kept, and tried again when somebody says so.

use serde_json::{Value, json};

use crate::support::TestServer;
use crate::support::wat::Guest;

/// Traps on events whose type is four letters long; tells user 1 the data of all others.
const BOOM: &str = "(if (i32.eq (i32.load offset=20 (local.get $event)) (i32.const 4)) (then unreachable))
    (call $forward (global.get $user) (global.get $user_bytes))";
const FORWARD: &str = "(call $forward (global.get $user) (global.get $user_bytes))";

/// Nothing is left out, however often it faults.
const PATIENT: &str = "[limits]\nbreaker_faults = 1000\n";

struct Bench {
    server: TestServer,
    dir: tempfile::TempDir,
}

impl Bench {
    async fn with(component: &[u8], settings: &str) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.wasm"), component).unwrap();
        let toml = format!("[plugins]\ndir = {:?}\nwatch = false\n{settings}", dir.path());
        Bench { server: TestServer::with(&toml).await, dir }
    }

    /// Puts another component in the place of the policy.
    async fn mend(&self, component: &[u8]) {
        std::fs::write(self.dir.path().join("a.wasm"), component).unwrap();
        let reloaded = self.server.http.post(self.server.url("/policies/reload")).send().await.unwrap();
        assert_eq!(reloaded.status(), 200, "{}", reloaded.text().await.unwrap());
    }

    async fn letters(&self) -> Vec<Value> {
        self.server.get("/dead-letters").await["dead_letters"].as_array().unwrap().clone()
    }

    async fn request(&self, method: reqwest::Method, path: &str) -> (u16, Value) {
        let answer = self.server.http.request(method, self.server.url(path)).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }
}

fn routing(body: &str) -> Vec<u8> {
    Guest { strings: &[("user", "1")], ..Guest::routing(body) }.component()
}

#[tokio::test]
async fn an_event_that_its_policy_faults_on_is_kept_and_arrives_once_the_policy_is_mended() {
    let bench = Bench::with(&routing(BOOM), "").await;
    let mut user = bench.server.connect("1").await;
    let receipt = bench.server.post("/events", json!({ "type": "boom", "id": "7", "source": "/me", "data": { "n": 1.50 } })).await;
    let consulted = &receipt["policies"][0];
    assert_eq!((&consulted["outcome"], &consulted["dead_letter"]), (&json!("faulted"), &json!(1)));
    let [letter] = bench.letters().await.try_into().unwrap();
    for (member, value) in [
        ("policy", json!("a")),
        ("version", json!("1.0.0")),
        ("role", json!("routing")),
        ("event_id", json!("7")),
        ("event_type", json!("boom")),
        ("attempts", json!(1)),
        ("poison", json!(false)),
        ("outcome", json!("faulted")),
    ] {
        assert_eq!(letter[member], value, "{member} in {letter}");
    }
    let (status, shown) = bench.request(reqwest::Method::GET, "/dead-letters/1").await;
    assert_eq!((status, &shown["event"]["data"], &shown["event"]["source"]), (200, &json!({ "n": 1.50 }), &json!("/me")));
    assert_eq!((&shown["fault"]["kind"], &shown["fault"]["event"]), (&json!("trap"), &json!("7")));

    bench.mend(&routing(FORWARD)).await;
    let (status, retried) = bench.request(reqwest::Method::POST, "/dead-letters/1/retry").await;
    assert_eq!((status, &retried["policies"][0]["outcome"], &retried["posted"]), (200, &json!("routed"), &json!(1)));
    assert_eq!(user.text().await, r#"{"n":1.5}"#);
    assert!(bench.letters().await.is_empty());
    assert_eq!(bench.request(reqwest::Method::POST, "/dead-letters/1/retry").await.0, 404);
}

#[tokio::test]
async fn what_faults_again_is_poison_and_tried_only_by_its_id() {
    let bench = Bench::with(&routing(BOOM), PATIENT).await;
    bench.server.publish("boom", json!(1)).await;
    let (_, retried) = bench.request(reqwest::Method::POST, "/dead-letters/retry").await;
    assert_eq!(retried, json!({ "retried": 1, "failed": 1, "left": 0 }));
    let [letter] = bench.letters().await.try_into().unwrap();
    assert_eq!((&letter["id"], &letter["attempts"], &letter["poison"]), (&json!(1), &json!(2), &json!(true)));
    let (_, retried) = bench.request(reqwest::Method::POST, "/dead-letters/retry").await;
    assert_eq!(retried, json!({ "retried": 0, "failed": 0, "left": 1 }));
    let (_, retried) = bench.request(reqwest::Method::POST, "/dead-letters/1/retry").await;
    assert_eq!(retried["policies"][0]["dead_letter"], 1);
    assert_eq!(bench.letters().await[0]["attempts"], 3);
}

#[tokio::test]
async fn an_event_that_failed_may_come_again_and_takes_the_place_of_its_dead_letter() {
    let bench = Bench::with(&routing(BOOM), "").await;
    let event = json!({ "type": "boom", "id": "7", "source": "/me", "data": 1 });
    bench.server.post("/events", event.clone()).await;
    let again = bench.server.post("/events", event.clone()).await;
    assert_eq!((&again["duplicate"], &again["policies"][0]["outcome"]), (&json!(false), &json!("faulted")));
    let [letter] = bench.letters().await.try_into().unwrap();
    assert_eq!((&letter["attempts"], &letter["poison"]), (&json!(2), &json!(true)));

    bench.mend(&routing(FORWARD)).await;
    let mut user = bench.server.connect("1").await;
    let third = bench.server.post("/events", event.clone()).await;
    assert_eq!((&third["duplicate"], &third["policies"][0]["outcome"]), (&json!(false), &json!("routed")));
    assert!(bench.letters().await.is_empty(), "it would be told twice");
    assert_eq!(bench.server.post("/events", event).await["duplicate"], true);
    assert_eq!(user.text().await, "1");
}

#[tokio::test]
async fn with_the_rule_drop_a_producer_may_try_once_more_and_then_it_is_poison() {
    let settings = format!("{PATIENT}[policies.a]\non_fault = {{ routing = \"drop\" }}");
    let bench = Bench::with(&routing(BOOM), &settings).await;
    let event = json!({ "type": "boom", "id": "7", "source": "/me", "data": 1 });
    let first = bench.server.post("/events", event.clone()).await;
    assert_eq!((&first["policies"][0]["outcome"], &first["policies"][0]["dead_letter"]), (&json!("faulted"), &Value::Null));
    assert!(bench.letters().await.is_empty());
    let second = bench.server.post("/events", event.clone()).await;
    assert_eq!((&second["duplicate"], &second["policies"][0]["dead_letter"]), (&json!(false), &json!(1)));
    let third = bench.server.post("/events", event).await;
    assert_eq!((&third["duplicate"], &third["policies"][0]["dead_letter"]), (&json!(false), &json!(2)));
    let [letter] = bench.letters().await.try_into().unwrap();
    assert_eq!((&letter["poison"], &letter["attempts"]), (&json!(true), &json!(3)));
}

#[tokio::test]
async fn what_a_policy_was_left_out_of_is_kept_too_and_is_no_poison() {
    let bench = Bench::with(&routing(BOOM), "[limits]\nbreaker_faults = 1\nbreaker_pause_ms = 60000\n").await;
    let mut user = bench.server.connect("1").await;
    bench.server.publish("boom", json!(1)).await;
    let receipt = bench.server.publish("good.one", json!(2)).await;
    assert_eq!((&receipt["policies"][0]["outcome"], &receipt["policies"][0]["dead_letter"]), (&json!("circuit_open"), &json!(2)));
    let letter = &bench.letters().await[1];
    assert_eq!((&letter["outcome"], &letter["attempts"], &letter["poison"]), (&json!("circuit_open"), &json!(0), &json!(false)));
    // A new version has a breaker of its own.
    bench.mend(&routing(FORWARD)).await;
    let (_, retried) = bench.request(reqwest::Method::POST, "/dead-letters/retry").await;
    assert_eq!(retried, json!({ "retried": 2, "failed": 0, "left": 0 }));
    assert_eq!((user.text().await, user.text().await), ("1".into(), "2".into()), "oldest first");
}

#[tokio::test]
async fn a_message_that_could_not_be_formatted_is_kept_for_its_readers() {
    let bench = Bench::with(&Guest::formatting("unreachable").component(), PATIENT).await;
    let (mut one, mut two) = (bench.server.connect("1").await, bench.server.connect("1").await);
    bench.server.post("/users/1/messages", json!({ "n": 1 })).await;
    bench.server.metric_reaches(r#"signalpost_messages_dropped_total{reason="dead_letter"}"#, 2.0).await;
    let (_, shown) = bench.request(reqwest::Method::GET, "/dead-letters/1").await;
    assert_eq!((&shown["role"], &shown["message"]), (&json!("formatting"), &json!({ "json": { "n": 1 } })));
    assert_eq!(shown["readers"].as_array().unwrap().len(), 2, "{shown}");
    assert_eq!(bench.letters().await.len(), 1);

    std::fs::remove_file(bench.dir.path().join("a.wasm")).unwrap();
    assert_eq!(bench.request(reqwest::Method::POST, "/policies/reload").await.0, 200);
    let (status, problem) = bench.request(reqwest::Method::POST, "/dead-letters/1/retry").await;
    assert_eq!((status, &problem["code"]), (409, &json!("policy_missing")), "{problem}");
    let shape = Guest { strings: &[("good", "{}")], ..Guest::formatting("(call $shaped (global.get $good) (global.get $good_bytes))") };
    bench.mend(&shape.component()).await;
    assert_eq!(bench.request(reqwest::Method::POST, "/dead-letters/1/retry").await.1["posted"], 2);
    // Once for each session.
    assert_eq!((one.text().await, two.text().await), ("{}".into(), "{}".into()));
    one.quiet().await;
}

#[tokio::test]
async fn a_retried_message_keeps_its_terms_and_reaches_a_user_who_has_left_once() {
    let bench = Bench::with(&Guest::formatting("unreachable").component(), PATIENT).await;
    let devices = [bench.server.connect("1").await, bench.server.connect("1").await];
    for number in 1..=2 {
        bench.server.post("/users/1/messages?collapse_key=position", json!(number)).await;
        bench.server.metric_reaches(r#"signalpost_messages_dropped_total{reason="dead_letter"}"#, 2.0 * f64::from(number)).await;
    }
    drop(devices);
    bench.server.metric_reaches("signalpost_sessions", 0.0).await;
    let shape = Guest { strings: &[("good", "{}")], ..Guest::formatting("(call $shaped (global.get $good) (global.get $good_bytes))") };
    bench.mend(&shape.component()).await;
    for id in 1..=2 {
        assert_eq!(bench.request(reqwest::Method::POST, &format!("/dead-letters/{id}/retry")).await.1["posted"], 1);
    }
    assert_eq!(bench.server.get("/users/1").await["mailbox"]["messages"], 1, "the newer one has replaced the older one");
    let mut back = bench.server.connect("1").await;
    assert_eq!(back.text().await, "{}");
    back.quiet().await;
}

#[tokio::test]
async fn a_retried_reply_for_one_session_reaches_no_other_session_of_its_user() {
    // Answers each message of a client with `"reply"`.
    let reply = "(drop (call $silent))
        (i32.store (global.get $response) (i32.const 720))
        (i32.store offset=4 (global.get $response) (i32.const 1))
        (i32.store (i32.const 720) (i32.const 0))
        (i32.store (i32.const 724) (global.get $text_of_it))
        (i32.store (i32.const 728) (global.get $text_of_it_bytes))
        (call $mine)";
    let replies = Guest { strings: &[("text_of_it", "\"reply\"")], ..Guest::sessions(reply) }.component();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.wasm"), Guest::formatting("unreachable").component()).unwrap();
    std::fs::write(dir.path().join("s.wasm"), replies).unwrap();
    let server = TestServer::with(&format!("[plugins]\ndir = {:?}\nwatch = false\n{PATIENT}", dir.path())).await;
    let bench = Bench { server, dir };
    let mut asking = bench.server.connect("1").await;
    let mut other = bench.server.connect("1").await;
    asking.send("\"question\"").await;
    bench.server.metric_reaches(r#"signalpost_messages_dropped_total{reason="dead_letter"}"#, 1.0).await;
    let shape = Guest { strings: &[("good", "{}")], ..Guest::formatting("(call $shaped (global.get $good) (global.get $good_bytes))") };
    bench.mend(&shape.component()).await;
    drop(asking);
    bench.server.metric_reaches("signalpost_sessions", 1.0).await;
    let (status, retried) = bench.request(reqwest::Method::POST, "/dead-letters/1/retry").await;
    assert_eq!((status, &retried["posted"], &retried["recipients"]), (200, &json!(0), &json!(0)), "{retried}");
    assert_eq!(bench.letters().await.len(), 1, "it stays for the operator to see");
    other.quiet().await;
}

#[tokio::test]
async fn dead_letters_are_bounded_and_the_oldest_goes_first() {
    let bench = Bench::with(&routing(BOOM), &format!("{PATIENT}[dead_letters]\nletters_max = 3\n")).await;
    for number in 0..5 {
        bench.server.publish("boom", json!(number)).await;
    }
    let ids: Vec<Value> = bench.letters().await.iter().map(|letter| letter["id"].clone()).collect();
    assert_eq!(ids, [3, 4, 5]);
    assert_eq!(bench.server.metric(r#"signalpost_dead_letters_total{outcome="evicted"}"#).await, 2.0);
    assert_eq!(bench.server.metric("signalpost_dead_letters").await, 3.0);
    assert_eq!(bench.request(reqwest::Method::DELETE, "/dead-letters/4").await, (200, json!({ "deleted": 1 })));
    assert_eq!(bench.request(reqwest::Method::DELETE, "/dead-letters/4").await.0, 404);
    assert_eq!(bench.request(reqwest::Method::DELETE, "/dead-letters").await, (200, json!({ "deleted": 2 })));
    assert_eq!(bench.server.get("/dead-letters").await, json!({ "letters": 0, "bytes": 0, "dead_letters": [] }));
    for path in ["/dead-letters/x", "/dead-letters/-1", "/dead-letters/99999999999999999999"] {
        assert_eq!(bench.request(reqwest::Method::GET, path).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn a_new_version_that_faults_from_the_start_is_rolled_back() {
    let bench = Bench::with(&routing(FORWARD), "[limits]\nbreaker_pause_ms = 60000\n").await;
    let mut user = bench.server.connect("1").await;
    bench.server.publish("x", json!(0)).await;
    bench.mend(&Guest { version: "2.0.0", ..Guest::routing("unreachable") }.component()).await;
    for number in 1..=3 {
        assert_eq!(bench.server.publish("x", json!(number)).await["policies"][0]["version"], "2.0.0");
    }
    bench.server.metric_reaches(r#"signalpost_policy_reloads_total{outcome="rolled_back"}"#, 1.0).await;
    let receipt = bench.server.publish("x", json!(4)).await;
    assert_eq!((&receipt["policies"][0]["version"], &receipt["policies"][0]["outcome"]), (&json!("1.0.0"), &json!("routed")));
    let policies = bench.server.get("/policies").await;
    let reason = policies["rejected"][0]["reason"].as_str().unwrap();
    assert!(reason.starts_with("was new and faulted 3 times in a row, most recently in route (trap: "), "{reason}");
    assert!(reason.ends_with("2.0.0 is rolled back to 1.0.0"), "{reason}");
    // What it failed on was kept, and the version that works takes it.
    assert_eq!(bench.request(reqwest::Method::POST, "/dead-letters/retry").await.1["failed"], 0);
    for expected in ["0", "4", "1", "2", "3"] {
        assert_eq!(user.text().await, expected);
    }
    // The file that is still there is not taken again, until somebody says so.
    let (status, reloaded) = bench.request(reqwest::Method::POST, "/policies/reload").await;
    assert_eq!((status, &reloaded["changed"]), (200, &json!(["a"])));
}

#[tokio::test]
async fn a_version_that_has_proven_itself_is_not_rolled_back() {
    let bench = Bench::with(&routing(FORWARD), "[limits]\ntrial_calls = 5\nbreaker_pause_ms = 60000\n").await;
    bench.mend(&Guest { version: "2.0.0", strings: &[("user", "1")], ..Guest::routing(BOOM) }.component()).await;
    for number in 0..5 {
        assert_eq!(bench.server.publish("good.one", json!(number)).await["policies"][0]["outcome"], "routed");
    }
    for _ in 0..3 {
        bench.server.publish("boom", json!(1)).await;
    }
    // Several looks later it is still there.
    tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    let policies = bench.server.get("/policies").await;
    assert_eq!((&policies["policies"][0]["version"], &policies["policies"][0]["circuit_open"]), (&json!("2.0.0"), &json!(false)));
    assert_eq!(policies["rejected"], json!([]));
}
