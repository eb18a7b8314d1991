//! `signalpost dev`, with a tool that "builds" by copying the component that the source names: what is tried is the loop around it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::process::signalpost;
use crate::support::wat::{Guest, wrapper};
use crate::support::{TestServer, bundled};

/// A component is compiled at the lowest priority: on a busy machine that takes a while.
const PATIENCE: Duration = Duration::from_secs(30);

struct Developing {
    server: TestServer,
    dir: tempfile::TempDir,
    child: Child,
}

impl Developing {
    /// A plugin `it` made from this component.
    fn start(component: &Path) -> Developing {
        let dir = tempfile::tempdir().unwrap();
        let project = dir.path().join("it");
        std::fs::create_dir_all(project.join("node_modules/.bin")).unwrap();
        std::fs::create_dir(project.join("fixtures")).unwrap();
        std::fs::create_dir(project.join("wit")).unwrap();
        std::fs::write(project.join("package.json"), r#"{"name":"it"}"#).unwrap();
        let tool = project.join("node_modules/.bin/componentize-qjs");
        std::fs::write(&tool, "#!/bin/sh\nfor last; do :; done\nexec /bin/cp \"$(/bin/cat policy.js)\" \"$last\"\n").unwrap();
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(project.join("policy.js"), component.to_str().unwrap()).unwrap();
        std::fs::write(project.join("fixtures/it.json"), r#"{"about":"","steps":[]}"#).unwrap();
        std::fs::write(dir.path().join("c.toml"), "").unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = signalpost()
            .args(["dev", "it", "--listen", "127.0.0.1:0", "--config", "c.toml"])
            .current_dir(dir.path())
            .env("TMPDIR", dir.path())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut developing = Developing { server: TestServer::elsewhere("127.0.0.1:1".parse().unwrap()), dir, child };
        let log = developing.says("is served at http://", 1);
        let (_, rest) = log.split_once("is served at http://").unwrap();
        developing.server.address = rest.split(';').next().unwrap().parse().unwrap();
        developing
    }

    fn write(&self, file: &str, content: &str) {
        // As editors do: whoever looks sees the old file or the new one.
        let new = self.dir.path().join("new");
        std::fs::write(&new, content).unwrap();
        std::fs::rename(new, self.dir.path().join(file)).unwrap();
    }

    /// Waits until this was said so often; all that was said.
    fn says(&self, words: &str, times: usize) -> String {
        let since = Instant::now();
        loop {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap();
            if log.matches(words).count() >= times {
                return log;
            }
            assert!(since.elapsed() < PATIENCE, "{words:?} was not said {times} times:\n{log}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Developing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tells the user `u` this message.
fn telling(dir: &Path, name: &str, message: &str) -> PathBuf {
    let fields = r#"(import "signalpost:policy/clock@0.1.0" "now-ms" (func $now (result i64)))"#;
    let body = "(drop (call $now))
        (call $tell (global.get $user) (global.get $user_bytes) (global.get $message) (global.get $message_bytes))";
    let strings = &[("user", "u"), ("message", message)];
    let file = dir.join(format!("{name}.wasm"));
    std::fs::write(&file, Guest { fields, strings, imports: &["clock"], ..Guest::routing(body) }.component()).unwrap();
    file
}

fn fixture(told: &Value) -> String {
    let decides = json!({ "deliveries": [{ "to": ["u"], "message": told }] });
    json!({ "about": "It tells.", "steps": [{ "event": { "type": "a" }, "decides": decides }] }).to_string()
}

const KEEPS: &str = "The old one keeps serving.";

#[tokio::test(flavor = "multi_thread")]
async fn a_save_is_built_tested_and_served_and_what_fails_changes_nothing() {
    let components = tempfile::tempdir().unwrap();
    let (first, second) = (telling(components.path(), "first", "1"), telling(components.path(), "second", "2"));
    let developing = Developing::start(&first);
    let log = developing.says("serves: built in", 1);
    assert!(log.contains("[policies.it]\ngrants = [\"clock\"]"), "{log}");
    assert!(!log.contains("WARN") && !log.contains("no policies"), "the policy that is written is on its way: {log}");
    for (page, status) in [("http://localhost:5173", 200), ("http://127.0.0.1:3000", 200), ("http://app.example", 403)] {
        let request = developing.server.http.get(format!("http://{}/healthz", developing.server.address)).header("Origin", page);
        assert_eq!(request.send().await.unwrap().status(), status, "{page}");
    }
    let mut client = developing.server.connect("u").await;
    developing.server.publish("a", json!(null)).await;
    assert_eq!(client.json().await, 1);
    let log = developing.says("seq 1, 1 session", 1);
    assert!(log.contains("tells  u") && log.contains("µs)"), "who got what, and how long that took: {log}");

    developing.write("it/policy.js", second.to_str().unwrap());
    let log = developing.says("serves: built in", 2);
    developing.server.publish("a", json!(null)).await;
    assert_eq!(client.json().await, 2, "{log}");
    assert!(developing.dir.path().join("it.wasm").is_file(), "what has passed is where other servers look");

    // A build that fails.
    developing.write("it/policy.js", "/nowhere");
    let log = developing.says(KEEPS, 1);
    assert!(log.contains("did not build"), "{log}");
    // A fixture that fails.
    developing.write("it/fixtures/it.json", &fixture(&json!(2)));
    developing.write("it/policy.js", first.to_str().unwrap());
    developing.says("steps[0].decides.deliveries[0].message: 2 ≠ 1", 1);
    developing.server.publish("a", json!(null)).await;
    assert_eq!(client.json().await, 2);
    // The fixture was wrong: nothing is built again, and the socket is the one from the beginning.
    developing.write("it/fixtures/it.json", &fixture(&json!(1)));
    developing.says("serves: built in", 3);
    developing.server.publish("a", json!(null)).await;
    assert_eq!(client.json().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_build_that_fails_leaves_nothing_that_serves_and_says_so() {
    let components = tempfile::tempdir().unwrap();
    let developing = Developing::start(Path::new("/nowhere"));
    let log = developing.says("Nothing is served yet: fix it and save.", 1);
    assert!(log.contains("did not build") && !log.contains(KEEPS), "{log}");
    developing.write("it/policy.js", telling(components.path(), "first", "1").to_str().unwrap());
    developing.says("serves: built in", 1);
    developing.write("it/policy.js", "/nowhere");
    developing.says(KEEPS, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_who_connects_sends_and_leaves_is_shown() {
    let components = tempfile::tempdir().unwrap();
    let greeter = components.path().join("greeter.wasm");
    std::fs::write(&greeter, Guest::sessions("(call $not_mine)").component()).unwrap();
    let developing = Developing::start(&greeter);
    developing.says("serves: built in", 1);
    let mut client = developing.server.connect("u").await;
    developing.says("u opened\n  it 1.0.0 (", 1);
    client.send(r#"{"a":1}"#).await;
    let log = developing.says("u says {\"a\":1}\n  it 1.0.0 (", 1);
    assert!(log.contains(" µs)  answers {}") && log.contains(" µs)  leaves it to other policies"), "{log}");
    drop(client);
    developing.says("u closed (", 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_message_is_shown_with_its_shape_and_the_time_that_took() {
    let components = tempfile::tempdir().unwrap();
    let shaper = components.path().join("shaper.wasm");
    std::fs::write(&shaper, wrapper("it")).unwrap();
    let developing = Developing::start(&shaper);
    developing.says("serves: built in", 1);
    let mut client = developing.server.connect("u").await;
    developing.server.post("/users/u/messages", json!(7)).await;
    assert_eq!(client.json().await, json!({ "by": "it", "message": 7 }));
    developing.says("      [1]  {\"by\":\"it\",\"message\":7}  (it ", 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_take_effect_on_a_save_too_and_so_does_the_contract() {
    let developing = Developing::start(&bundled().join("pooling.wasm"));
    developing.says("serves: built in", 1);
    developing.write("c.toml", "[policies.it]\ngrants = [\"groups\", \"presence\", \"state\"]\nsettings = { offer_ttl_ms = 0 }\n");
    let log = developing.says(KEEPS, 1);
    assert!(log.contains("`offer_ttl_ms` is 0"), "{log}");
    developing.write("c.toml", "[policies.it]\ngrants = [\"groups\", \"presence\", \"state\"]\nsettings = { offer_ttl_ms = 777 }\n");
    developing.says("serves: built in", 2);
    let offer = json!({ "request_id": 1, "rider_id": 1, "candidate_driver_ids": [2] });
    developing.server.publish("pooling.request.created", offer).await;
    developing.says("777", 1);
    developing.write("it/wit/world.wit", "package my:plugin;");
    developing.says("serves: built in", 3);
}
