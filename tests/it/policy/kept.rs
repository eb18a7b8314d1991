//! Starts at which a plugin is refused: the last good version serves, or the server says what it lacks. No door opens because its policy is
//! missing.

use std::path::Path;

use serde_json::{Value, json};
use tokio::time::{Duration, timeout};
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::support::wat::Guest;
use crate::support::{Client, SOON, TestServer};

const GARBAGE: &[u8] = b"half of a copy";

/// Tells user 1 its version.
fn teller(version: &str) -> Vec<u8> {
    let message = format!("\"{version}\"");
    let strings = &[("user", "1"), ("message", message.as_str())];
    let body = "(call $tell (global.get $user) (global.get $user_bytes) (global.get $message) (global.get $message_bytes))";
    Guest { strings, version, ..Guest::routing(body) }.component()
}

/// Routes nothing until it has a setting, like README's example.
fn picky() -> Vec<u8> {
    let configure = "(if (result i32) (i32.le_u (local.get $settings_bytes) (i32.const 2))
        (then (call $unfit (global.get $reason) (global.get $reason_bytes))) (else (call $configured)))";
    Guest { strings: &[("reason", "factor_min is missing")], configure, ..Guest::routing("(call $nobody)") }.component()
}

fn door() -> Vec<u8> {
    Guest::sessions("(call $not_mine)").component()
}

/// A folder of plugins and a store.
struct Place(tempfile::TempDir);

impl Place {
    fn with(files: &[(&str, &[u8])]) -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        std::fs::create_dir(place.plugins()).unwrap();
        files.iter().for_each(|(name, bytes)| place.put(name, bytes));
        place
    }

    fn plugins(&self) -> std::path::PathBuf {
        self.0.path().join("plugins")
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.plugins().join(name), bytes).unwrap();
    }

    /// The files of last good versions.
    fn kept(&self) -> Vec<String> {
        let listed = std::fs::read_dir(self.0.path().join("store/policies")).unwrap();
        let mut names: Vec<String> = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    async fn start(&self, more: &str) -> TestServer {
        let settings = format!("[store]\ndir = {:?}\n{}", self.0.path().join("store"), forgetful(&self.plugins(), more));
        TestServer::with(&settings).await
    }
}

/// Settings of a server that looks at its folder when it is told to.
fn forgetful(plugins: &Path, more: &str) -> String {
    format!("[plugins]\ndir = {plugins:?}\nwatch = false\nwatch_interval_ms = 20\n{more}")
}

/// What user 1 is told about an event.
async fn told(server: &TestServer) -> String {
    let mut user = server.connect("1").await;
    server.publish("x", json!(1)).await;
    user.text().await
}

async fn ready(server: &TestServer) -> (u16, String) {
    let answer = server.http.get(format!("http://{}/readyz", server.address)).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// The only refused file.
async fn rejected(server: &TestServer) -> Value {
    let rejected = server.get("/policies").await["rejected"].clone();
    assert_eq!(rejected.as_array().unwrap().len(), 1, "{rejected}");
    rejected[0].clone()
}

/// Sockets, producers and probes are answered with 503, and operators are not.
async fn serves_nobody(server: &TestServer) {
    let (status, text) = ready(server).await;
    assert!(status == 503 && text.contains("policy_missing"), "{text}");
    let refused = Client::ask(server.socket_url("1").into_client_request().unwrap()).await.map(|_| ());
    assert!(matches!(&refused, Err(Error::Http(answer)) if answer.status() == 503), "{refused:?}");
    for path in ["/events", "/events?dry_run=true", "/users/1/messages"] {
        let answer = server.http.post(server.url(path)).json(&json!({ "type": "x", "data": 1 })).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers().contains_key("retry-after")), (503, true), "{path}");
    }
    assert_eq!(rejected(server).await["must_serve"], true);
    assert_eq!(server.metric("signalpost_policies_missing").await, 1.0);
}

#[tokio::test]
async fn the_last_good_version_serves_if_the_file_is_refused_at_the_start() {
    let place = Place::with(&[("p.wasm", &teller("1.0.0"))]);
    let server = place.start("").await;
    assert_eq!(told(&server).await, "\"1.0.0\"");
    server.stop().await;
    place.put("p.wasm", GARBAGE);
    let server = place.start("").await;
    assert_eq!(told(&server).await, "\"1.0.0\"");
    assert_eq!(ready(&server).await, (200, "ready\nthe plugin p is refused, and its last good version serves\n".to_owned()));
    let refused = rejected(&server).await;
    assert_eq!((refused["must_serve"].clone(), refused["file"].clone()), (json!(false), json!(place.plugins().join("p.wasm"))));
    assert!(refused["reason"].as_str().unwrap().starts_with("is not WebAssembly"), "{refused}");
    let metrics = [server.metric("signalpost_policies_refused").await, server.metric("signalpost_policies_missing").await];
    assert_eq!(metrics, [1.0, 0.0]);
    // A good file takes its place, and is the one that is kept.
    place.put("p.wasm", &teller("2.0.0"));
    assert_eq!(server.reload().await.0, 200);
    assert_eq!(told(&server).await, "\"2.0.0\"");
    assert_eq!(place.kept().len(), 2, "the older one is there until the newer one has passed its trial");
    server.stop().await;
    place.put("p.wasm", GARBAGE);
    let server = place.start("").await;
    assert_eq!(told(&server).await, "\"2.0.0\"");
    server.stop().await;
    // Damage is found by the digest, and an older version that is whole serves.
    let newest = place.kept().into_iter().find(|file| file.contains(&digest(&teller("2.0.0")))).unwrap();
    std::fs::write(place.0.path().join("store/policies").join(newest), teller("3.0.0")).unwrap();
    let server = place.start("").await;
    assert_eq!(server.get("/policies").await["policies"][0]["version"], "1.0.0");
}

fn digest(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(bytes))
}

#[tokio::test]
async fn a_version_that_has_passed_its_trial_is_kept_alone_and_a_removed_plugin_not_at_all() {
    let place = Place::with(&[("p.wasm", &teller("1.0.0")), ("other.wasm", &teller("1.0.0"))]);
    let server = place.start("[limits]\ntrial_calls = 3\n").await;
    place.put("p.wasm", &teller("2.0.0"));
    server.reload().await;
    assert_eq!(place.kept().len(), 3);
    for number in 0..4 {
        server.publish("x", json!(number)).await;
    }
    let settling = async {
        while place.kept().len() > 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, settling).await.expect("the older version goes");
    assert!(place.kept().contains(&format!("p.{}.wasm", digest(&teller("2.0.0")))), "{:?}", place.kept());
    std::fs::remove_file(place.plugins().join("other.wasm")).unwrap();
    assert_eq!(server.reload().await.1["changed"], json!(["other"]));
    assert_eq!(place.kept().len(), 1);
}

#[tokio::test]
async fn a_version_that_was_rolled_back_stays_so_at_the_next_start_until_an_operator_asks() {
    let place = Place::with(&[("p.wasm", &teller("1.0.0"))]);
    let server = place.start("").await;
    let broken = Guest { version: "2.0.0", ..Guest::routing("unreachable") }.component();
    place.put("p.wasm", &broken);
    server.reload().await;
    for number in 0..3 {
        server.publish("x", json!(number)).await;
    }
    server.metric_reaches(r#"signalpost_policy_reloads_total{outcome="rolled_back"}"#, 1.0).await;
    server.stop().await;
    let server = place.start("").await;
    assert_eq!(told(&server).await, "\"1.0.0\"");
    assert!(rejected(&server).await["reason"].as_str().unwrap().contains("is rolled back to 1.0.0"));
    assert_eq!(server.reload().await.1["changed"], json!(["p"]), "an operator tries it again");
}

#[tokio::test]
async fn a_new_version_is_on_trial_also_if_it_came_while_the_server_was_down() {
    let place = Place::with(&[("p.wasm", &teller("1.0.0"))]);
    place.start("").await.stop().await;
    place.put("p.wasm", &Guest { version: "2.0.0", ..Guest::routing("unreachable") }.component());
    let server = place.start("").await;
    assert_eq!(server.get("/policies").await["policies"][0]["version"], "2.0.0");
    for number in 0..3 {
        server.publish("x", json!(number)).await;
    }
    server.metric_reaches(r#"signalpost_policy_reloads_total{outcome="rolled_back"}"#, 1.0).await;
    assert_eq!(told(&server).await, "\"1.0.0\"");
}

#[tokio::test]
async fn nobody_is_served_without_a_plugin_that_may_guard_until_it_is_mended() {
    for refused in [&Guest { configure: "unreachable", ..Guest::sessions("(call $not_mine)") }.component()[..], GARBAGE] {
        let place = Place::with(&[("door.wasm", refused)]);
        let server = TestServer::with(&forgetful(&place.plugins(), "")).await;
        serves_nobody(&server).await;
        assert_eq!(server.http.get(format!("http://{}/healthz", server.address)).send().await.unwrap().status(), 200);
        place.put("door.wasm", &door());
        assert_eq!(server.reload().await.0, 200);
        assert_eq!(ready(&server).await, (200, "ready\n".to_owned()));
        server.connect("1").await;
        // At run time the old one keeps serving.
        place.put("door.wasm", refused);
        assert_eq!(server.reload().await.0, 422);
        server.connect("1").await;
        let skips = TestServer::with(&forgetful(&place.plugins(), "on_bad = \"skip\"\n")).await;
        skips.connect("1").await;
        assert_eq!((ready(&skips).await.0, skips.metric("signalpost_policies_refused").await), (200, 1.0), "as its configuration says");
    }
}

#[tokio::test]
async fn a_refused_plugin_that_only_routes_and_has_never_served_is_left_out_unless_the_configuration_names_it() {
    let place = Place::with(&[("surge.wasm", &picky()), ("p.wasm", &teller("1.0.0"))]);
    let server = TestServer::with(&forgetful(&place.plugins(), "")).await;
    assert_eq!(told(&server).await, "\"1.0.0\"");
    assert_eq!(ready(&server).await, (200, "ready\nthe plugin surge is refused\n".to_owned()));
    assert!(rejected(&server).await["reason"].as_str().unwrap().ends_with("factor_min is missing"));
    let named = TestServer::with(&forgetful(&place.plugins(), "[policies.surge]\norder = 1\n")).await;
    serves_nobody(&named).await;
    let set = TestServer::with(&forgetful(&place.plugins(), "[policies.surge]\nsettings = { factor_min = 1.5 }\n")).await;
    assert_eq!(told(&set).await, "\"1.0.0\"");
    assert_eq!(set.get("/policies").await["rejected"], json!([]));
}

#[tokio::test]
async fn a_file_that_was_refused_at_run_time_is_refused_at_the_next_start_and_changes_nothing_either() {
    let place = Place::with(&[("p.wasm", &teller("1.0.0"))]);
    let server = place.start("").await;
    place.put("new.wasm", GARBAGE);
    assert_eq!(server.reload().await.0, 422);
    assert_eq!(told(&server).await, "\"1.0.0\"");
    server.stop().await;
    let server = place.start("").await;
    assert_eq!(told(&server).await, "\"1.0.0\"");
    assert_eq!(ready(&server).await, (200, "ready\nthe plugin new is refused\n".to_owned()));
}

#[tokio::test]
async fn a_configured_policy_whose_file_is_taken_away_serves_on_and_is_missed_where_it_never_served() {
    let place = Place::with(&[("p.wasm", &teller("1.0.0"))]);
    let named = "[policies.p]\norder = 1\n";
    let server = place.start(named).await;
    std::fs::remove_file(place.plugins().join("p.wasm")).unwrap();
    let (status, problem) = server.reload().await;
    let words = "p: is not there, and [policies.p] configures it";
    assert!(status == 422 && problem["detail"].as_str().unwrap().starts_with(words), "{problem}");
    assert_eq!(told(&server).await, "\"1.0.0\"");
    server.stop().await;
    let server = place.start(named).await;
    assert_eq!(told(&server).await, "\"1.0.0\"", "at the next start too");
    server.stop().await;
    let server = place.start("[policies.p]\nenabled = false\n").await;
    assert_eq!(server.get("/policies").await["policies"], json!([]));
    assert_eq!(place.kept(), [""; 0], "a disabled one is not kept");
    let server = TestServer::with(&forgetful(&place.plugins(), named)).await;
    serves_nobody(&server).await;
    // A configured policy may come and go if the configuration says so.
    place.put("p.wasm", &teller("1.0.0"));
    let server = TestServer::with(&forgetful(&place.plugins(), &format!("on_bad = \"skip\"\n{named}"))).await;
    std::fs::remove_file(place.plugins().join("p.wasm")).unwrap();
    assert_eq!(server.reload().await.1["changed"], json!(["p"]));
    let server = TestServer::with(&forgetful(&place.plugins(), &format!("on_bad = \"skip\"\n{named}"))).await;
    assert_eq!((ready(&server).await.0, server.get("/policies").await["rejected"].clone()), (200, json!([])));
}

#[tokio::test]
async fn the_policies_that_served_last_serve_if_their_folder_cannot_be_listed_at_the_start() {
    let place = Place::with(&[("p.wasm", &teller("1.0.0"))]);
    place.start("").await.stop().await;
    std::fs::rename(place.plugins(), place.0.path().join("elsewhere")).unwrap();
    let server = place.start("").await;
    assert_eq!(told(&server).await, "\"1.0.0\"");
    std::fs::rename(place.0.path().join("elsewhere"), place.plugins()).unwrap();
    assert_eq!(server.reload().await.0, 200);
    assert_eq!(server.get("/policies").await["rejected"], json!([]));
}
