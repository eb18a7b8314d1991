//! The whole story of an event, told of a real one or of one that never happens.

use serde_json::{Value, json};

use crate::support::process::signalpost;
use crate::support::wat::Guest;
use crate::support::{Client, TestServer};

const MATCH: &str = "pooling.match.found";

fn the_match() -> Value {
    json!({ "type": MATCH, "data": { "request_id": 42, "rider_id": 1001, "driver_id": 2002, "pool_id": 7 } })
}

/// A rider on two devices, one of which has asked for short messages; the driver is away. Messages are formatted for both.
async fn scene() -> (TestServer, Client, Client) {
    let server = TestServer::with("[policies.compact]\nreaders = \"all\"\n").await;
    let phone = server.connect("1001").await;
    let watch = server.connect("1001?format=compact").await;
    (server, phone, watch)
}

#[tokio::test]
async fn an_explained_event_tells_who_was_told_and_what_each_class_of_their_sessions_sees() {
    let (server, mut phone, mut watch) = scene().await;
    let answer = server.post("/events?explain=true", the_match()).await;
    assert_eq!((&answer["recipients"], &answer["policies"][0]["outcome"]), (&json!(2), &json!("routed")));
    let story = &answer["explanation"];
    assert_eq!((&story["dry_run"], &story["revision"]), (&json!(false), &json!(1)));
    let pooling = &story["policies"][0];
    assert_eq!((&pooling["name"], pooling["digest"].as_str().unwrap().len()), (&json!("pooling"), 64));
    assert!(pooling["took_us"].is_u64(), "{pooling}");
    assert_eq!(pooling["joins"], json!([{ "group": "pool:7", "user": "1001" }, { "group": "pool:7", "user": "2002" }]));
    let told: Vec<&Value> = pooling["deliveries"].as_array().unwrap().iter().collect();
    let recipient = |user: &str| {
        let all = told.iter().flat_map(|told| told["recipients"].as_array().unwrap().iter().map(move |recipient| (told, recipient)));
        all.clone().find(|(_, recipient)| recipient["user"] == user).unwrap()
    };
    let (told, rider) = recipient("1001");
    assert_eq!(rider["seq"], 1);
    assert_eq!(rider["sessions"].as_array().unwrap().len(), 2);
    assert_eq!(told["formatting"], json!(["compact"]));
    for client in [&mut phone, &mut watch] {
        let text: Value = serde_json::from_str(&client.text().await).unwrap();
        let classes = told["classes"].as_array().unwrap();
        assert_eq!(classes.len(), 2, "{told}");
        assert!(classes.iter().any(|class| class["sees"]["json"] == text), "{text} in {classes:?}");
    }
    let (_, driver) = recipient("2002");
    assert_eq!((&driver["sessions"], &driver["seq"]), (&json!([]), &json!(1)), "it waits in the mailbox");
    assert_eq!(
        server.metric(r#"signalpost_policy_call_seconds_count{function="format",policy="compact"}"#).await,
        2.0,
        "once for each class"
    );
}

#[tokio::test]
async fn a_dry_run_tells_the_same_and_leaves_no_trace() {
    let (server, mut phone, mut watch) = scene().await;
    let dry = server.post("/events?dry_run=true", the_match()).await;
    assert_eq!(dry["explanation"]["dry_run"], true);
    let took = &dry["explanation"]["policies"][0]["deliveries"][0]["classes"][0]["took"];
    assert_eq!((&took[0]["name"], took[0]["took_us"].is_u64()), (&json!("compact"), true), "{took}");
    phone.quiet().await;
    assert_eq!(server.metric("signalpost_messages_posted_total").await, 0.0);
    assert_eq!(server.metric("signalpost_groups").await, 0.0);
    assert_eq!(server.get("/users/2002").await["mailbox"], Value::Null);
    // The sessions policy was asked about the sessions.
    for policy in server.get("/policies").await["policies"].as_array().unwrap().iter().filter(|policy| policy["name"] != "chat") {
        assert_eq!(policy["counters"]["calls"], 0, "{policy}");
    }

    let real = server.post("/events?explain=true", the_match()).await;
    // All but what only a real one has: its id, its places in the mailboxes, and how long it took.
    let bare = |answer: &Value| {
        let mut story = answer["explanation"]["policies"][0].clone();
        story["took_us"].take();
        for told in story["deliveries"].as_array_mut().unwrap() {
            for recipient in told["recipients"].as_array_mut().unwrap() {
                recipient.as_object_mut().unwrap().remove("seq");
            }
            for class in told["classes"].as_array_mut().unwrap() {
                class.as_object_mut().unwrap().remove("took");
            }
        }
        story
    };
    assert_eq!(bare(&dry), bare(&real));
    phone.text().await;
    watch.text().await;
}

#[tokio::test]
async fn a_dry_run_starts_from_the_state_and_the_groups_that_there_are_and_changes_neither() {
    // Counts its calls in its state, and tells user 1 at the first one only.
    let fields = r#"(import "signalpost:policy/state@0.1.0" "delete" (func $delete (param i32 i32) (result i32)))
        (import "signalpost:policy/state@0.1.0" "set" (func $set (param i32 i32 i32 i32 i32 i32 i32)))"#;
    let body = "(if (call $delete (global.get $key) (global.get $key_bytes))
            (then (return (call $forward (global.get $user) (global.get $user_bytes)))))
        (call $set (global.get $key) (global.get $key_bytes) (global.get $key) (global.get $key_bytes) (i32.const 0) (i32.const 0) (i32.const 700))
        (call $nobody)";
    let guest = Guest { imports: &["state"], fields, strings: &[("user", "1"), ("key", "k")], ..Guest::routing(body) };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.wasm"), guest.component()).unwrap();
    let server = TestServer::with(&format!("[plugins]\ndir = {:?}\nwatch = false\n[policies.a]\ngrants = [\"state\"]", dir.path())).await;
    let posted = async |path: &str| server.post(path, json!({ "type": "x", "data": 1 })).await["recipients"].clone();
    for _ in 0..3 {
        assert_eq!(posted("/events?dry_run=true").await, 0, "the key is not there yet, each time");
    }
    assert_eq!(posted("/events").await, 0, "it sets the key");
    for _ in 0..3 {
        assert_eq!(posted("/events?dry_run=true").await, 1, "the key is there, each time");
    }
    assert_eq!(posted("/events").await, 1);
}

#[tokio::test]
async fn a_refusal_a_fault_and_nobody_are_explained_too() {
    let server = TestServer::start().await;
    let refused = server.post("/events?dry_run=true", json!({ "type": MATCH, "data": {} })).await;
    assert_eq!(refused["policies"][0]["outcome"], "refused");
    assert!(refused["policies"][0]["refusal"]["detail"].is_string(), "{refused}");
    let unwanted = server.post("/events?explain=true", json!({ "type": "unheard.of", "data": {} })).await;
    assert_eq!((&unwanted["explanation"]["policies"], unwanted["note"].is_string()), (&json!([]), true));

    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.wasm"), Guest::routing("unreachable").component()).unwrap();
    let server = TestServer::with(&format!("[plugins]\ndir = {:?}\nwatch = false", dir.path())).await;
    let faulted = server.post("/events?dry_run=true", json!({ "type": "x", "data": 1 })).await;
    assert_eq!(faulted["policies"][0]["fault"]["kind"], "trap");
    assert_eq!(server.get("/dead-letters").await["letters"], 0, "a dry run keeps none");
    assert_eq!(server.get("/policies").await["policies"][0]["counters"]["faults"], 0);
}

#[tokio::test]
async fn a_misspelt_dry_run_is_no_real_one() {
    let server = TestServer::start().await;
    for query in ["dryrun=true", "dry_run=yes", "explain=1"] {
        let answer = server.http.post(server.url(&format!("/events?{query}"))).json(&the_match()).send().await.unwrap();
        assert_eq!(answer.status(), 400, "{query}");
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(problem["code"], "query", "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains("publishing takes explain and dry_run"), "{problem}");
    }
    assert_eq!(server.metric("signalpost_messages_posted_total").await, 0.0);
}

#[tokio::test]
async fn the_command_tells_people_what_the_server_would_do() {
    let (server, mut phone, _watch) = scene().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("match.json");
    std::fs::write(&file, the_match().to_string()).unwrap();
    let explain = async |more: &[&str]| {
        let mut command = tokio::process::Command::from(signalpost());
        let output = command.arg("explain").arg(&file).args(["--url", &server.url("")]).args(more).output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let story = explain(&[]).await;
    assert!(story.starts_with("would publish"), "{story}");
    assert!(story.contains("  joins  pool:7: 1001, 2002\n") && story.contains("    1001  2 sessions: "), "{story}");
    assert!(story.contains("    shaped by compact\n") && story.contains("format=compact  {\"t\":\"pooling_match\""), "{story}");
    phone.quiet().await;
    let told: Value = serde_json::from_str(&explain(&["--json", "--publish"]).await).unwrap();
    assert_eq!((&told["posted"], &told["explanation"]["dry_run"]), (&json!(2), &json!(false)));
    phone.text().await;
}

#[tokio::test]
async fn explanations_of_a_batch_list_what_a_person_reads_and_count_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let forward = Guest { strings: &[("user", "1")], ..Guest::routing("(call $forward (global.get $user) (global.get $user_bytes))") };
    std::fs::write(dir.path().join("a.wasm"), forward.component()).unwrap();
    let server = TestServer::with(&format!("[plugins]\ndir = {:?}\n[events]\nbody_bytes_max = 4_000_000\n", dir.path())).await;
    let events: Vec<Value> = (0..60).map(|_| json!({ "type": "x", "data": "d".repeat(50_000) })).collect();
    for query in ["dry_run", "explain"] {
        let url = server.url(&format!("/events?{query}=true"));
        let batch = server.http.post(url).header("content-type", "application/cloudevents-batch+json").json(&batch(&events));
        let answer = batch.send().await.unwrap().bytes().await.unwrap();
        assert!(answer.len() < 1_500_000, "{}", answer.len());
        let answers: Vec<Value> = serde_json::from_slice(&answer).unwrap();
        let listed = answers.iter().filter(|answer| answer["explanation"]["policies"][0]["deliveries"][0]["message"].is_object()).count();
        let counted = answers.iter().filter(|answer| answer["explanation"]["policies"][0]["more"] == 1).count();
        assert_eq!((listed, counted), (21, 39), "{query}");
        assert!(answers.iter().all(|answer| answer["policies"][0]["outcome"] == "routed"), "each has its receipt");
    }
}

/// Events as a batch of CloudEvents.
fn batch(events: &[Value]) -> Vec<Value> {
    let whole = |(number, event): (usize, &Value)| json!({ "specversion": "1.0", "source": "/test", "id": number.to_string(), "type": event["type"], "data": event["data"] });
    events.iter().enumerate().map(whole).collect()
}
