//! What an operator meets on the first day: errors and logs that name what to change.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::task::spawn_blocking;

use crate::support::process::{ServerProcess, signalpost};
use crate::support::wat::Guest;
use crate::support::{TestServer, plugins};

/// Runs the command in this folder, and returns how it ended and what it printed on stderr.
fn says(dir: &Path, arguments: &[&str]) -> (i32, String) {
    let Output { status, stderr, .. } = signalpost().args(arguments).current_dir(dir).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

async fn origin(server: &TestServer, origin: &str) -> u16 {
    let request = server.http.get(format!("http://{}/healthz", server.address)).header("Origin", origin);
    request.send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn a_refused_origin_is_logged_once_with_the_setting_to_change() {
    let plugins = plugins(&["pooling"]);
    let mut process = ServerProcess::start(plugins.path(), "[log]\nformat = \"text\"\n[auth]\norigins = [\"https://listed.example\"]\n");
    for page in ["https://app.example", "https://app.example", "https://listed.example", "null"] {
        let expected = if page.contains("listed") { 200 } else { 403 };
        assert_eq!(origin(&process.server, page).await, expected, "{page}");
    }
    for number in 0..150 {
        assert_eq!(origin(&process.server, &format!("https://{number}.example")).await, 403);
    }
    process.signal(Signal::TERM);
    process.ended().await;
    let log = process.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("a web page of another origin was refused")).collect();
    assert!(told[0].contains(" WARN ") && told[0].contains(r#"set auth.origins = ["https://app.example"]"#), "{}", told[0]);
    assert!(told[1].contains("null") && told[1].contains("can't be listed in auth.origins"), "{}", told[1]);
    assert_eq!(told.len(), 100, "the log names a bounded number, each once");
}

#[tokio::test]
async fn an_address_in_use_is_reported_with_what_chooses_another() {
    let (dir, plugins) = (tempfile::tempdir().unwrap(), plugins(&[]));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = plugins.path().to_str().unwrap();
    let (code, said) = says(dir.path(), &["serve", "--listen", &address, "--plugins", folder]);
    let words = format!("can't listen on {address}; another address is chosen with --listen, or `listen` in the configuration");
    assert!(code == 1 && said.contains(&words) && said.contains("Address already in use"), "{said}");
    std::fs::write(dir.path().join("c.toml"), format!("listen = \"127.0.0.1:0\"\noperate_listen = \"{address}\"\n")).unwrap();
    let (code, said) = says(dir.path(), &["serve", "--config", "c.toml", "--plugins", folder]);
    assert!(code == 1 && said.contains(&format!("{address}; another address is chosen with `operate_listen`")), "{said}");
}

#[tokio::test]
async fn localhost_is_an_address_to_listen_on() {
    let plugins = plugins(&[]);
    let process = ServerProcess::listening("localhost:0", plugins.path(), "");
    assert!(process.server.address.ip().is_loopback() && process.server.address.is_ipv4());
    let (code, said) = says(plugins.path(), &["serve", "--listen", "elsewhere:8080"]);
    assert!(code == 2 && said.contains("invalid socket address"), "{said}");
}

#[tokio::test]
async fn a_compilation_of_more_than_a_second_is_in_the_log() {
    let (dir, tools) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // A component that no earlier run has compiled and cached.
    let version = format!("1.0.{}", std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos());
    std::fs::write(dir.path().join("large.wasm"), Guest { version: &version, ..Guest::routing("(call $nobody)") }.component()).unwrap();
    let script = tools.path().join("compiler");
    std::fs::write(&script, format!("#!/bin/sh\nsleep 1.5\nexec {:?} \"$@\"\n", env!("CARGO_BIN_EXE_signalpost"))).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let settings = format!("[log]\nformat = \"text\"\n[plugins]\ncompiler = {script:?}\n");
    let slow = ServerProcess::start(dir.path(), &settings);
    assert_eq!(
        (slow.logged("compiling takes more than a second"), slow.logged("compiled plugin=\"large\" took_ms=")),
        (1, 1),
        "{}",
        slow.log()
    );
    drop(slow);
    let cached = ServerProcess::start(dir.path(), &settings);
    assert_eq!(cached.logged("compil"), 0, "{}", cached.log());
}

#[test]
fn check_refuses_a_missing_folder_and_a_configured_policy_without_a_plugin() {
    let (dir, plugins) = (tempfile::tempdir().unwrap(), plugins(&["pooling"]));
    let folder = plugins.path().to_str().unwrap();
    let check = |settings: &str, folder: &str| {
        std::fs::write(dir.path().join("c.toml"), settings).unwrap();
        says(dir.path(), &["check", "--config", "c.toml", "--plugins", folder])
    };
    let (code, said) = check("", "nowhere");
    assert!(code == 1 && said.contains("plugins.dir is nowhere, which can't be listed: No such file"), "{said}");
    let (code, said) = check("[policies.pooling]\norder = 1\n", folder);
    assert!(
        code == 0 && said.contains("policy pooling 0.1.0"),
        "the built-in tables of policies that are not there count for nothing: {said}"
    );
    for table in ["[policies.door]\n", "[policies.door]\norder = 1\n", "policies.door.settings.open = false\n"] {
        let (code, said) = check(table, folder);
        let words = format!("door ({folder}/door.wasm) is not there, and [policies.door] configures it: put the plugin there");
        assert!(code == 1 && said.contains(&words), "{table}: {said}");
    }
    let (code, said) = check("[policies.door]\nenabled = false\n", folder);
    assert_eq!(code, 0, "{said}");
}

#[tokio::test]
async fn the_root_says_where_to_go_on() {
    let server = TestServer::with("base_path = \"/x\"\n").await;
    let answer = server.http.get(format!("http://{}/", server.address)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let index: serde_json::Value = answer.json().await.unwrap();
    assert_eq!((&index["base"], &index["socket"], &index["publish"]), (&json!("/x"), &json!("/x/ws/{user_id}"), &json!("/x/events")));
    for health in index["health"].as_array().unwrap() {
        let answer = server.http.get(format!("http://{}{}", server.address, health.as_str().unwrap())).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{health}");
    }
    assert!(index["docs"].as_str().unwrap().contains("README.md"), "{index}");
    let elsewhere = server.http.get(format!("http://{}/index.html", server.address)).send().await.unwrap();
    assert_eq!(elsewhere.status(), 404);
}

#[tokio::test]
async fn a_401_says_whether_a_key_is_missing_or_not_valid_and_nothing_of_what_is_wrong_with_it() {
    let key = "signalpost_for_reading_only";
    let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(key));
    let server = TestServer::with(&format!("[[auth.keys]]\nname = \"other\"\nsha256 = \"{digest}\"\nscopes = [\"read\"]\n")).await;
    let detail = async |authorization: Option<&str>| {
        let request = server.http.post(server.url("/events")).body("{}");
        let request = if let Some(shown) = authorization { request.header("Authorization", shown) } else { request };
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 401);
        let problem: serde_json::Value = answer.json().await.unwrap();
        problem["detail"].as_str().unwrap().to_owned()
    };
    let missing = detail(None).await;
    assert!(missing.starts_with("an API key is missing: this address takes one as `Authorization: Bearer KEY`"), "{missing}");
    assert_eq!(detail(Some("Basic x")).await, missing);
    let wrong = detail(Some("Bearer x")).await;
    assert!(wrong.starts_with("the API key is not valid"), "{wrong}");
    assert_eq!(detail(Some(&format!("Bearer {key}"))).await, wrong);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_help_of_clients_names_the_environment_variables() {
    for (command, variable) in [("send", "SIGNALPOST_KEY"), ("explain", "SIGNALPOST_KEY"), ("listen", "SIGNALPOST_TOKEN")] {
        let output = spawn_blocking(move || signalpost().args([command, "--help"]).output().unwrap()).await.unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && help.contains(variable) && help.contains("SSL_CERT_FILE"), "{command}: {help}");
    }
}

#[tokio::test]
async fn a_server_without_policies_says_so_once() {
    let plugins = plugins(&[]);
    let process = ServerProcess::start(plugins.path(), "");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(process.logged("no policies: events reach nobody"), 1, "{}", process.log());
}
