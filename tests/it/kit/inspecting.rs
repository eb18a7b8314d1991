//! What a component is, whether a server would take it, and the contract that both stand on.

use std::path::Path;

use serde_json::{Value, json};

use super::plugin;
use crate::support::bundled;
use crate::support::wat::{Guest, component_of};

fn inspect(file: &Path) -> Value {
    let ran = plugin(file.parent().unwrap(), &["inspect", "--json", file.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    serde_json::from_str(&ran.out).unwrap()
}

#[test]
fn a_plugin_is_shown_with_all_that_there_is_to_know() {
    let chat = inspect(&bundled().join("chat.wasm"));
    for (member, value) in [
        ("name", json!("chat")),
        ("version", json!("0.1.0")),
        ("roles", json!(["sessions"])),
        ("contract", json!("signalpost:policy@0.1.0")),
        ("events", json!([])),
        ("grants", json!(["groups", "state"])),
        ("bytes", json!(std::fs::metadata(bundled().join("chat.wasm")).unwrap().len())),
    ] {
        assert_eq!(chat[member], value, "{member}");
    }
    assert!(chat["exports"].as_array().unwrap().contains(&json!("signalpost:policy/sessions@0.1.0")), "{chat}");
    assert!(chat["imports"].as_array().unwrap().contains(&json!("signalpost:policy/groups@0.1.0")), "{chat}");
    assert!(chat["compile_seconds"].as_f64().unwrap() > 0.0, "{chat}");
    assert_eq!((chat["digest"].as_str().unwrap().len(), chat["sources"].as_str().unwrap().len()), (64, 64));
    assert_eq!(inspect(&bundled().join("compact.wasm"))["vary"], json!(["format", "locale"]));
    let people = plugin(&bundled(), &["inspect", "compact.wasm"]).out;
    assert!(people.contains("\nvary             format, locale\n") && people.contains("\ngrants           none\n"), "{people}");
}

#[test]
fn what_was_not_built_by_the_kit_is_told_as_such() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("other.wasm"), Guest::routing("(call $nobody)").component()).unwrap();
    assert_eq!(inspect(&dir.path().join("other.wasm"))["sources"], Value::Null);
    assert!(plugin(dir.path(), &["inspect", "other.wasm"]).out.contains("not made by `signalpost plugin build`"));
}

#[test]
fn another_version_of_the_contract_is_refused_with_those_that_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let text = r#"(component (instance $i) (export "signalpost:policy/plugin@7.0.0" (instance $i)))"#;
    std::fs::write(dir.path().join("future.wasm"), wat::parse_str(text).unwrap()).unwrap();
    for command in ["inspect", "check"] {
        let ran = plugin(dir.path(), &[command, "future.wasm"]);
        assert_eq!(ran.code, 1);
        assert!(ran.err.contains("is built for signalpost:policy@7.0.0; this server serves 0.1.0"), "{}", ran.err);
    }
}

#[test]
fn a_missing_grant_is_told_with_the_table_that_mends_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(bundled().join("chat.wasm"), dir.path().join("talk.wasm")).unwrap();
    let refused = plugin(dir.path(), &["check", "talk.wasm"]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("imports groups, state, which are not granted"), "{}", refused.err);
    let (_, table) = refused.err.split_once("\n\n[policies").unwrap();
    std::fs::write(dir.path().join("c.toml"), format!("[policies{table}")).unwrap();
    let taken = plugin(dir.path(), &["check", "talk.wasm", "--config", "c.toml"]);
    assert_eq!(
        (taken.code, taken.out.as_str()),
        (0, "talk.wasm would be loaded as talk 0.1.0 (sessions); events: none\n"),
        "{}",
        taken.err
    );
}

#[test]
fn settings_are_checked_in_the_plugins_own_words_and_by_the_configured_name() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(bundled().join("pooling.wasm"), dir.path().join("v2.wasm")).unwrap();
    let config = "plugins.dir = \".\"\n[policies.rides]\nfile = \"v2.wasm\"\ngrants = [\"groups\", \"presence\", \"state\"]\nsettings = { offer_ttl_ms = 0 }\n";
    std::fs::write(dir.path().join("c.toml"), config).unwrap();
    let ran = plugin(dir.path(), &["check", "v2.wasm", "--config", "c.toml"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("`offer_ttl_ms` is 0") && !ran.err.contains("grants ="), "{}", ran.err);
    std::fs::write(dir.path().join("c.toml"), config.replace("= 0", "= 5")).unwrap();
    let ran = plugin(dir.path(), &["check", "v2.wasm", "--config", "c.toml"]);
    assert!(ran.code == 0 && ran.out.starts_with("v2.wasm would be loaded as rides 0.1.0 (routing)"), "{} {}", ran.out, ran.err);
}

#[test]
fn an_instance_that_is_too_large_to_be_kept_is_told_by_the_setting() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("large.wasm"), Guest { memory: "160", ..Guest::routing("(call $nobody)") }.component()).unwrap();
    let words =
        "but each call makes a new instance, since one is larger than a server keeps from call to call: limits.instance_kept_bytes_max";
    let ran = plugin(dir.path(), &["check", "large.wasm"]);
    assert!(ran.code == 0 && ran.out.contains(words), "{} {}", ran.out, ran.err);
    std::fs::write(dir.path().join("c.toml"), "[policies.large]\nlimits = { instance_kept_bytes_max = 16_777_216 }\n").unwrap();
    let ran = plugin(dir.path(), &["check", "large.wasm", "--config", "c.toml"]);
    assert!(ran.code == 0 && !ran.out.contains("but"), "{} {}", ran.out, ran.err);
}

/// A part of WASI, and a world that imports it.
const WASI: &str = "
    world guest {
        include signalpost:policy/routing-policy@0.1.0;
        import wasi:cli/environment@0.2.0;
        import wasi:cli/exit@0.2.0;
        import wasi:cli/stdout@0.2.0;
        import wasi:random/random@0.2.0;
    }
    package wasi:io@0.2.0 {
        interface streams {
            variant stream-error { last-operation-failed(string), closed }
            resource output-stream { check-write: func() -> result<u64, stream-error>; }
        }
    }
    package wasi:cli@0.2.0 {
        interface environment { get-environment: func() -> list<tuple<string, string>>; }
        interface exit { exit: func(status: result); }
        interface stdout { use wasi:io/streams@0.2.0.{output-stream}; get-stdout: func() -> output-stream; }
    }
    package wasi:random@0.2.0 {
        interface random { get-random-u64: func() -> u64; get-random-bytes: func(len: u64) -> list<u8>; }
    }";

#[test]
fn wasi_is_a_grant_of_its_own_and_denies_everything() {
    let fields = r#"
        (import "wasi:cli/environment@0.2.0" "get-environment" (func $environment (param i32)))
        (import "wasi:cli/exit@0.2.0" "exit" (func $exit (param i32)))
        (import "wasi:cli/stdout@0.2.0" "get-stdout" (func $stdout (result i32)))
        (import "wasi:io/streams@0.2.0" "[method]output-stream.check-write" (func $check (param i32 i32)))
        (import "wasi:random/random@0.2.0" "get-random-u64" (func $random (result i64)))
        (import "wasi:random/random@0.2.0" "get-random-bytes" (func $bytes (param i64 i32)))"#;
    // No variable, no random number but 0, 16 bytes where 16 are asked for, and a closed stream; and then it leaves.
    let body = "
        (call $environment (i32.const 7000))
        (if (i32.load (i32.const 7004)) (then unreachable))
        (if (i32.wrap_i64 (call $random)) (then unreachable))
        (call $bytes (i64.const 16) (i32.const 7000))
        (if (i32.ne (i32.load (i32.const 7004)) (i32.const 16)) (then unreachable))
        (if (i32.load (i32.load (i32.const 7000))) (then unreachable))
        (call $check (call $stdout) (i32.const 7008))
        (if (i32.ne (i32.load8_u (i32.const 7008)) (i32.const 1)) (then unreachable))
        (if (i32.ne (i32.load8_u (i32.const 7016)) (i32.const 1)) (then unreachable))
        (if (i32.load8_u offset=24 (local.get $event)) (then (call $exit (i32.const 0))))
        (call $nobody)";
    let dir = tempfile::tempdir().unwrap();
    let module = Guest { fields, ..Guest::routing(body) }.module();
    std::fs::write(dir.path().join("it.wasm"), component_of(WASI, &module)).unwrap();
    let refused = plugin(dir.path(), &["check", "it.wasm"]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("imports wasi, which is not granted") && refused.err.contains("grants = [\"wasi\"]"), "{}", refused.err);
    std::fs::write(dir.path().join("c.toml"), "[policies.it]\ngrants = [\"wasi\"]\n").unwrap();
    let taken = plugin(dir.path(), &["check", "it.wasm", "--config", "c.toml"]);
    assert_eq!(taken.code, 0, "{}", taken.err);
    std::fs::create_dir(dir.path().join("fixtures")).unwrap();
    let steps = json!([
        { "event": { "type": "a" }, "decides": {} },
        { "event": { "type": "a", "subject": "leave" }, "faults": { "kind": "output", "detail": "the guest ended itself by WASI's `exit`" } },
    ]);
    std::fs::write(dir.path().join("fixtures/it.json"), json!({ "about": "", "steps": steps }).to_string()).unwrap();
    let ran = plugin(dir.path(), &["test", "it.wasm"]);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
}

/// Without comments and blank lines: words that make the contract clearer don't change it.
fn declarations(wit: &str) -> Vec<String> {
    let lines = wit.lines().map(|line| line.split("//").next().unwrap_or_default().trim_end().to_owned());
    lines.filter(|line| !line.is_empty()).collect()
}

#[test]
fn a_published_contract_stays_as_it_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
    let now: Vec<String> = ["policy", "host", "worlds"].iter().flat_map(|file| declarations(&read(&format!("wit/{file}.wit")))).collect();
    let published = declarations(&read("tests/frozen/signalpost-policy-0.1.0.wit"));
    assert!(now == published, "wit/ is no longer what was published as 0.1.0: a change needs a version of its own, beside this one");
    assert_eq!(std::fs::read_dir(root.join("wit")).unwrap().count(), 3, "a file in wit/ that this test doesn't know");
    assert!(published.len() > 150, "{} lines", published.len());
}
