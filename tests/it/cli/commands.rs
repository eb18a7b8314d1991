//! `signalpost send` and `listen` against a real server.

use std::io::Write as _;
use std::process::Stdio;

use serde_json::json;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Duration, sleep, timeout};

use crate::support::process::signalpost;
use crate::support::wat::Guest;
use crate::support::{SOON, TestServer, plugins};

/// Runs the command, and returns what it prints.
fn runs(server: &TestServer, arguments: &[&str]) -> JoinHandle<String> {
    let mut command = signalpost();
    let (name, rest) = arguments.split_first().unwrap();
    command.arg(name).args(["--url", &format!("http://{}/api/pool", server.address)]).args(rest);
    spawn_blocking(move || {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    })
}

/// Sends, and returns the lines of the receipt; the first without the event's id.
async fn sends(server: &TestServer, arguments: &[&str]) -> Vec<String> {
    let text = runs(server, &[&["send"], arguments].concat()).await.unwrap();
    let mut lines: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    if let Some((_, numbers)) = lines[0].split_once(" → ") {
        lines[0] = numbers.to_owned();
    }
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn receipt_shows_how_far_an_event_got() {
    let server = TestServer::start().await;
    let receipt = server.post("/users/1001/messages?keep_ms=60000", json!("x")).await;
    let id = receipt["id"].as_str().unwrap();
    let shown = runs(&server, &["receipt", id]).await.unwrap();
    let (first, rest) = shown.split_once('\n').unwrap();
    assert!(first.starts_with(&format!("{id}, published ")) && first.ends_with(" → 1 recipient: 1 posted"), "{shown}");
    assert_eq!(rest, "  1001  posted  seq 1\n");
    let mut command = signalpost();
    command.args(["receipt", "none", "--source", "/a b", "--url", &format!("http://{}/api/pool", server.address)]);
    let output = spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("unknown_event"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn send_publishes_every_line_over_one_stream_and_shows_the_receipts_in_order() {
    let server = TestServer::with("[publish]\ncredit = 8").await;
    let streams = |lines: String, json: bool| {
        let mut command = signalpost();
        command.args(["send", "--stream", "--url", &format!("http://{}/api/pool", server.address)]).args(json.then_some("--json"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            // Beside the reading: neither pipe may fill.
            let writing = std::thread::spawn(move || stdin.write_all(lines.as_bytes()).unwrap());
            let output = child.wait_with_output().unwrap();
            writing.join().unwrap();
            (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
        })
    };
    let line = |number: usize| json!({ "user": "1001", "message": number, "id": format!("m{number}") }).to_string() + "\n";
    let (code, out, _) = streams((0..500).map(line).collect(), false).await.unwrap();
    let expected: String = (0..500).map(|number| format!("published m{number} → 1 recipient, 1 posted\n")).collect();
    assert_eq!((code, out), (Some(0), expected));

    let mixed = "{\"type\":\"nobody.wants\",\"id\":\"a\"}\n\nnonsense\n[{\"type\":\"nobody.wants\",\"id\":\"b\"},{}]";
    let (code, out, error) = streams(mixed.to_owned(), false).await.unwrap();
    let lines: Vec<&str> = out.lines().filter(|line| !line.starts_with("  note")).collect();
    assert_eq!((code, lines.len()), (Some(1), 4), "{out}");
    assert_eq!((lines[0], lines[2]), ("published a → 0 recipients, 0 posted", "published b → 0 recipients, 0 posted"));
    assert!(lines[1].starts_with("line 3 refused: ") && lines[1].ends_with("(json, status 400)"), "{out}");
    assert!(lines[3].starts_with("line 4 refused: ") && error.contains("2 of 3 lines were refused"), "{out} {error}");
    let (_, out, _) = streams(line(499), true).await.unwrap();
    assert!(out.starts_with('{') && out.contains("\"duplicate\":true"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn send_shows_what_the_receipt_says() {
    let dir = plugins(&["pooling"]);
    let boom = Guest { events: &["boom"], ..Guest::routing("unreachable") };
    std::fs::write(dir.path().join("boom.wasm"), boom.component()).unwrap();
    let settings = format!("[plugins]\ndir = {:?}\n[groups]\nmembers_max = 4\n[limits]\nbreaker_faults = 1\n", dir.path());
    let server = TestServer::with(&settings).await;
    let found = |rider: u32| json!({ "request_id": rider, "rider_id": rider, "driver_id": 2002, "pool_id": 7 }).to_string();
    for rider in [1001, 1002, 1003] {
        let lines = sends(&server, &["pooling.match.found", &found(rider)]).await;
        assert_eq!(lines, ["2 recipients, 2 posted", "pooling 0.1.0  routed: 1 delivery"]);
    }

    let lines = sends(&server, &["pooling.match.found", &found(1004)]).await;
    assert_eq!(lines[0], "2 recipients, 2 posted");
    assert_eq!(lines[2], "1 join refused by a limit on groups");

    let mut online = server.connect("1002").await;
    let moved = |lat: f64| json!({ "pool_id": 7, "driver_id": 2002, "lat": lat, "lon": 13.4 }).to_string();
    let lines = sends(&server, &["pooling.driver.location", &moved(52.5)]).await;
    let expected = ["3 recipients, 1 posted, 2 dropped", "pooling 0.1.0  routed: 1 delivery", "2 dropped: away, for 1001, 1003"];
    assert_eq!(lines, expected);
    assert_eq!(online.json().await["type"], "pooling_match");
    assert_eq!(online.json().await["type"], "driver_location");

    let lines = sends(&server, &["pooling.match.found", "{}"]).await;
    assert_eq!(lines[0], "0 recipients, 0 posted");
    assert!(lines[1].starts_with("pooling 0.1.0  refused: ") && lines[1].contains("request_id"), "{lines:?}");

    let lines = sends(&server, &["boom", "1"]).await;
    assert!(lines[1].starts_with("wat 1.0.0  faulted: trap: ") || lines[1].starts_with("boom 1.0.0  faulted: trap: "), "{lines:?}");
    assert!(lines[1].ends_with("; kept as dead letter 1"), "{lines:?}");
    let lines = sends(&server, &["boom", "2"]).await;
    assert!(lines[1].ends_with(" 1.0.0  circuit_open; kept as dead letter 2"), "{lines:?}");

    assert_eq!(sends(&server, &["nothing.wants.this", "1"]).await[1], "note: no policy wanted this event type");
    assert_eq!(sends(&server, &["--user", "1001", "1"]).await, ["1 recipient, 1 posted"]);
    sends(&server, &["--id", "7", "pooling.match.found", &found(1001)]).await;
    let again = sends(&server, &["--id", "7", "pooling.match.found", &found(1001)]).await;
    assert_eq!(again, ["duplicate 7: published before, so nothing was posted again"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn listen_shows_numbers_with_the_digits_that_were_sent() {
    let server = TestServer::start().await;
    for further in [&[][..], &["--v1"]] {
        let listening = runs(&server, &[&["listen", "1001", "--count", "1"], further].concat());
        let connected = async {
            while server.get("/users/1001").await["online"] == false {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(SOON, connected).await.expect("a connection in time");
        let body = r#"{"type":"fare","id":9007199254740993,"share":12.50,"list":[1E2, -0.0]}"#;
        let sent = server.http.post(server.url("/users/1001/messages")).body(body).send().await.unwrap();
        assert_eq!(sent.status(), 202);
        let shown = timeout(SOON, listening).await.expect("it ends after its count").unwrap();
        assert!(shown.trim_end().ends_with("fare  id: 9007199254740993  share: 12.50  list: [1E2,-0.0]"), "{shown}");
        server.metric_reaches("signalpost_sessions", 0.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_says_whether_a_server_answers_and_whether_it_is_ready() {
    let mut server = TestServer::with("stop_notice_ms = 5000\n").await;
    let health = async |arguments: &[&str]| {
        let mut command = signalpost();
        command.arg("health").args(arguments);
        let output = spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(said).unwrap())
    };
    let (address, url) = (server.address.to_string(), format!("http://{}/api/pool", server.address));
    assert_eq!(health(&["--listen", &address]).await, (0, "ok\n".to_owned()));
    assert_eq!(health(&["--ready", "--url", &url]).await, (0, "ready\n".to_owned()));
    server.begin_stop();
    let unready = async {
        while health(&["--ready", "--url", &url]).await.0 == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, unready).await.expect("it stops being ready");
    let (code, said) = health(&["--ready", "--url", &url]).await;
    assert!(code == 1 && said.contains("stopping"), "{said}");
    assert_eq!(health(&["--url", &url]).await.0, 0, "it still answers");
    let (code, said) = health(&["--url", "http://127.0.0.1:1"]).await;
    assert!(code == 1 && said.contains("no server at 127.0.0.1:1"), "{said}");
}

#[test]
fn completions_and_manual_pages_name_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let ran = signalpost().arg("man").arg(dir.path()).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let help = String::from_utf8(signalpost().arg("--help").output().unwrap().stdout).unwrap();
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let commands: Vec<&str> =
        commands.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.contains(&"health") && commands.len() >= 12, "{help}");
    for shell in ["bash", "zsh", "fish"] {
        let output = signalpost().args(["completions", shell]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        for command in &commands {
            assert!(output.status.success() && text.contains(command), "{shell} does not complete {command}");
        }
    }
    for command in commands.iter().filter(|command| **command != "help") {
        let page = std::fs::read_to_string(dir.path().join(format!("signalpost-{command}.1"))).unwrap();
        assert!(page.starts_with(".ie") && page.contains(".SH NAME"), "{command}: {page}");
    }
    assert!(!dir.path().join("signalpost-compile-component.1").exists());
}
