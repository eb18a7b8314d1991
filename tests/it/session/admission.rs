//! What sessions policies can do with those who connect: refuse them, greet them, put them in groups, tell others, and close.

use serde_json::{Value, json};

use crate::support::wat::Guest;
use crate::support::{Client, TestServer};

/// A server with these policies, asked in this order.
async fn server(policies: &[(&str, Guest<'_>)]) -> (TestServer, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = format!("[plugins]\ndir = {:?}\nwatch = false\n", dir.path());
    for (order, (name, guest)) in policies.iter().enumerate() {
        std::fs::write(dir.path().join(name).with_extension("wasm"), guest.component()).unwrap();
        settings += &format!("[policies.{name}]\norder = {order}\n");
    }
    (TestServer::with(&settings).await, dir)
}

/// The frame of a message in `signalpost.v1`.
async fn data(client: &mut Client) -> Value {
    let frame = client.json().await;
    assert_eq!(frame["type"], "message", "{frame}");
    frame["data"].clone()
}

/// An answer to `opened` or `closed` with one reply, a join of the user to a group, an event with the user as its subject, and whether to
/// close. A body stands at 900, a membership at 916, a draft at 932.
fn response(reply: bool, join: bool, event: bool, close: bool) -> String {
    let string = |at: u32, name: &str| {
        format!("(i32.store (i32.const {at}) (global.get ${name})) (i32.store (i32.const {}) (global.get ${name}_bytes))", at + 4)
    };
    let list_of_one =
        |at: u32, item: u32| format!("(i32.store (i32.const {at}) (i32.const {item})) (i32.store (i32.const {}) (i32.const 1))", at + 4);
    let user =
        |at: u32| format!("(i32.store (i32.const {at}) (local.get $user)) (i32.store (i32.const {}) (local.get $user_bytes))", at + 4);
    let mut body = "(drop (call $silent)) (memory.fill (i32.const 900) (i32.const 0) (i32.const 64))".to_owned();
    if reply {
        body += &(list_of_one(836, 900) + &string(904, "reply"));
    }
    if join {
        body += &(list_of_one(844, 916) + &string(916, "group") + &user(924));
    }
    if event {
        body += &(list_of_one(876, 932) + &string(932, "event") + "(i32.store8 (i32.const 940) (i32.const 1))" + &user(944));
        body += &string(956, "reply");
    }
    if close {
        body += &("(i32.store8 (i32.const 884) (i32.const 1))".to_owned() + &string(888, "reason"));
    }
    body + "(i32.const 832)"
}

const STRINGS: &[(&str, &str)] = &[
    ("reply", r#"{"type":"welcome"}"#),
    ("group", "lobby"),
    ("event", "client.seen"),
    ("reason", "come back tomorrow"),
    ("code", "banned"),
    ("watcher", "watcher"),
];

fn sessions<'a>(opened: &'a str) -> Guest<'a> {
    Guest { strings: STRINGS, opened, ..Guest::sessions("(call $not_mine)") }
}

/// Refuses users whose id begins with b.
const BOUNCER: &str = "(drop (call $silent))
    (if (i32.eq (i32.load8_u (local.get $user)) (i32.const 98)) (then
        (i32.store8 (i32.const 832) (i32.const 1))
        (i32.store (i32.const 836) (global.get $code)) (i32.store (i32.const 840) (global.get $code_bytes))
        (i32.store (i32.const 844) (global.get $reason)) (i32.store (i32.const 848) (global.get $reason_bytes))))
    (i32.const 832)";

/// Tells `watcher` of each client that was seen.
const WATCH: &str = "(call $forward (global.get $watcher) (global.get $watcher_bytes))";

fn watching() -> Guest<'static> {
    Guest { strings: STRINGS, events: &["client.*"], ..Guest::routing(WATCH) }
}

/// Tells the group what it is told.
const TO_GROUP: &str = "(drop (call $forward (global.get $group) (global.get $group_bytes)))
    (i32.store8 (i32.const 352) (i32.const 2))
    (i32.const 288)";

#[tokio::test]
async fn a_client_is_greeted_put_in_a_group_and_told_of() {
    let greeting = response(true, true, true, false);
    let to_group = Guest { strings: STRINGS, events: &["news"], ..Guest::routing(TO_GROUP) };
    let (server, _dir) = server(&[("greeter", sessions(&greeting)), ("news", to_group), ("watch", watching())]).await;
    let mut watcher = server.connect("watcher").await;
    // The watcher is a client too.
    let welcome = r#"{"type":"welcome"}"#;
    assert_eq!([watcher.text().await, watcher.text().await], [welcome, welcome], "its greeting, and the event of its coming");
    let mut user = server.connect_v1("1").await;
    assert_eq!(user.json().await["type"], "hello");
    assert_eq!(data(&mut user).await, json!({ "type": "welcome" }));
    assert_eq!(watcher.text().await, welcome, "the event");
    let receipt = server.publish("news", json!("all in the lobby")).await;
    assert_eq!(receipt["recipients"], 2);
    assert_eq!(data(&mut user).await, "all in the lobby");
    assert_eq!(watcher.json().await, "all in the lobby");
    // Another device of the same user is greeted alone.
    let mut other = server.connect("1").await;
    assert_eq!(other.text().await, welcome);
    user.quiet().await;
}

#[tokio::test]
async fn a_refused_client_reads_the_reason_and_nothing_else() {
    let (server, _dir) = server(&[("bouncer", sessions(BOUNCER))]).await;
    let mut refused = server.connect("bob").await;
    assert_eq!(refused.closed().await, (4203, "come back tomorrow".into()));
    let mut admitted = server.connect("alice").await;
    server.post("/users/alice/messages", json!(1)).await;
    assert_eq!(admitted.text().await, "1");
    assert_eq!(server.get("/users/bob").await["sessions"], json!([]));
}

#[tokio::test]
async fn the_first_refusal_ends_the_asking_and_those_before_it_are_told_that_the_client_is_gone() {
    let greeting = response(true, false, true, false);
    let gone = response(false, false, true, false);
    let first =
        Guest { strings: &[("reply", "1"), STRINGS[1], ("event", "client.gone"), STRINGS[3]], closed: &gone, ..sessions("(call $silent)") };
    let (server, _dir) =
        server(&[("first", first), ("bouncer", sessions(BOUNCER)), ("last", sessions(&greeting)), ("watch", watching())]).await;
    let mut watcher = server.connect("watcher").await;
    assert_eq!([watcher.text().await, watcher.text().await], [r#"{"type":"welcome"}"#; 2]);
    let mut refused = server.connect("bob").await;
    assert_eq!(refused.closed().await.0, 4203);
    assert_eq!(watcher.text().await, "1", "what the first one said of the end");
    watcher.quiet().await;
    let calls = |policies: &Value, name: &str| {
        policies["policies"].as_array().unwrap().iter().find(|policy| policy["name"] == name).unwrap()["counters"]["calls"].clone()
    };
    let policies = server.get("/policies").await;
    assert_eq!(["first", "bouncer", "last"].map(|name| calls(&policies, name)), [json!(3), json!(2), json!(1)], "the watcher's, and bob's");
}

#[tokio::test]
async fn a_client_that_a_policy_closes_reads_its_reply_first() {
    let farewell = response(true, false, false, true);
    let (server, _dir) = server(&[("closer", sessions(&farewell))]).await;
    let mut client = server.connect("1").await;
    assert_eq!(client.text().await, r#"{"type":"welcome"}"#);
    assert_eq!(client.closed().await, (4204, "come back tomorrow".into()));
}
