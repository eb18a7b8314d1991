//! Fixtures: those of the bundled plugins, and what they say when something else comes out.

use std::path::Path;

use serde_json::{Value, json};

use super::{Ran, plugin};
use crate::support::bundled;
use crate::support::wat::Guest;

fn sources() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/plugins"))
}

/// A folder with one component and one fixture.
struct Case {
    dir: tempfile::TempDir,
}

impl Case {
    fn new(component: &[u8], fixture: &Value) -> Case {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("it.wasm"), component).unwrap();
        std::fs::create_dir(dir.path().join("fixtures")).unwrap();
        let case = Case { dir };
        case.write(fixture);
        case
    }

    fn bundled(name: &str, fixture: &Value) -> Case {
        Case::new(&std::fs::read(bundled().join(format!("{name}.wasm"))).unwrap(), fixture)
    }

    fn write(&self, fixture: &Value) {
        std::fs::write(self.dir.path().join("fixtures/case.json"), fixture.to_string()).unwrap();
    }

    fn read(&self) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.dir.path().join("fixtures/case.json")).unwrap()).unwrap()
    }

    fn test(&self, flags: &[&str]) -> Ran {
        plugin(self.dir.path(), &[&["test", "it.wasm"], flags].concat())
    }

    /// Exits with 1 and says this.
    fn fails(&self, words: &str) {
        let ran = self.test(&[]);
        assert_eq!(ran.code, 1, "{}", ran.out);
        assert!(format!("{}{}", ran.out, ran.err).contains(words), "{words:?} is not in:\n{}{}", ran.out, ran.err);
    }
}

#[test]
fn the_fixtures_of_the_bundled_plugins_hold() {
    for name in ["pooling", "compact", "chat", "offers"] {
        let component = bundled().join(format!("{name}.wasm"));
        let fixtures = sources().join(name).join("fixtures");
        let ran = plugin(&bundled(), &["test", component.to_str().unwrap(), "--fixtures", fixtures.to_str().unwrap()]);
        assert!(ran.code == 0 && ran.out.contains("all as expected"), "{}{}", ran.out, ran.err);
    }
}

fn arriving(eta: u32) -> Value {
    json!({
        "about": "The driver is near.",
        "steps": [{
            "event": { "type": "pooling.driver.arriving", "data": { "pool_id": 7, "driver_id": "d", "eta_s": 5 } },
            "decides": { "deliveries": [{
                "to": { "group": "pool:7" },
                "except": ["d"],
                "message": { "type": "driver_arriving", "pool_id": 7, "driver_id": "d", "eta_s": eta },
            }] },
        }],
    })
}

#[test]
fn a_difference_is_told_with_its_path_and_recorded_on_demand() {
    let case = Case::bundled("pooling", &arriving(4));
    case.fails("fixtures/case.json: The driver is near.\n  steps[0].decides.deliveries[0].message.eta_s: 4 ≠ 5\n");
    case.fails("error: 1 fixture differs");
    assert_eq!(case.read(), arriving(4), "nothing is written without being asked for");
    assert_eq!(case.test(&["--update"]).code, 0);
    assert_eq!(case.read(), arriving(5));
    assert!(case.test(&[]).out.contains("1 fixture, 1 step, all as expected"));
}

#[test]
fn an_outcome_of_another_kind_is_told() {
    let event = json!({ "type": "pooling.driver.arriving", "data": {} });
    let case = Case::bundled("pooling", &json!({ "about": "", "steps": [{ "event": event, "decides": {} }] }));
    case.fails(r#"steps[0]: decides ≠ refuses {"code":"missing_field""#);
    case.write(&json!({ "about": "", "steps": [{ "event": event }] }));
    case.fails("steps[0]: has no expected outcome");
    case.write(&json!({ "about": "", "steps": [{ "event": { "type": "billing.paid" }, "decides": {} }] }));
    case.fails("steps[0]: decides ≠ unwanted true");
}

#[test]
fn steps_share_groups_sessions_and_what_the_policy_remembers() {
    let location = json!({ "type": "pooling.driver.location", "data": { "pool_id": 7, "driver_id": "d", "lat": 1, "lon": 1 } });
    let found = json!({ "type": "pooling.match.found", "data": { "request_id": 1, "rider_id": 1, "driver_id": "d", "pool_id": 7 } });
    let case = Case::bundled(
        "pooling",
        &json!({ "about": "", "host": { "groups": { "pool:7": ["1"] }, "sessions": [{ "user": "1" }] },
        "steps": [{ "event": location }, { "event": location }, { "event": found }], "state_after": {}, "groups_after": {} }),
    );
    assert_eq!(case.test(&["--update"]).code, 0);
    let recorded = case.read();
    assert_eq!(recorded["steps"][1]["decides"], json!({}), "the position is remembered from the step before");
    assert_eq!(recorded["groups_after"], json!({ "pool:7": ["1", "d"] }));
    let state = &recorded["state_after"]["location:1:7:d"]["$base64"];
    assert_eq!(state.as_str().map(str::len), Some(24), "{recorded}");
    // What one fixture recorded, the next one can start from.
    let host = json!({ "state": recorded["state_after"], "groups": recorded["groups_after"], "sessions": [{ "user": "1" }] });
    case.write(&json!({ "about": "", "host": host, "steps": [{ "event": location, "decides": {} }] }));
    assert_eq!(case.test(&[]).code, 0);
}

#[test]
fn a_policy_sees_the_time_of_the_fixture() {
    let fields = r#"(import "signalpost:policy/clock@0.1.0" "now-ms" (func $now (result i64)))"#;
    let body = "(if (result i32) (i64.eq (call $now) (i64.const 1767225605000))
        (then (call $forward (global.get $user) (global.get $user_bytes))) (else (call $nobody)))";
    let guest = Guest { fields, imports: &["clock"], strings: &[("user", "u")], ..Guest::routing(body) };
    let event = json!({ "type": "tick", "data": 1 });
    let told = json!({ "deliveries": [{ "to": ["u"], "message": 1 }] });
    let steps = json!([
        { "event": event, "decides": {} },
        { "after_ms": 5000, "event": event, "decides": told },
        { "after_ms": 1, "event": event, "decides": {} },
    ]);
    let case = Case::new(&guest.component(), &json!({ "about": "", "steps": steps }));
    assert_eq!(case.test(&[]).code, 0, "{}", case.test(&[]).out);
    case.write(&json!({ "about": "", "now": "2026-01-01T01:00:05+01:00", "steps": [{ "event": event, "decides": told }] }));
    assert_eq!(case.test(&[]).code, 0, "{}", case.test(&[]).out);
}

#[test]
fn faults_refused_settings_and_missing_grants_are_told() {
    let event = json!({ "type": "tick" });
    let four = json!([{ "event": event, "decides": {} }, { "event": event }, { "event": event }, { "event": event }]);
    let broken = Case::new(&Guest::routing("unreachable").component(), &json!({ "about": "", "steps": four }));
    broken.fails(r#"steps[0]: decides ≠ faults {"kind":"trap""#);
    assert_eq!(broken.test(&["--update"]).code, 0);
    assert_eq!(broken.read()["steps"][3]["circuit_open"], json!(true), "the breaker is the server's");
    // What is not called after many faults is one line, so that the faults stand out.
    let step = json!({ "event": event, "decides": {} });
    broken.write(&json!({ "about": "", "steps": vec![step; 9] }));
    let said = broken.test(&[]).out;
    assert_eq!(said.matches("decides ≠").count(), 3, "{said}");
    assert!(said.contains("not called in 6 more of the steps: it had faulted too often in a row (limits.breaker_faults)"), "{said}");
    let settings = json!({ "about": "", "settings": { "text_chars_max": 0 }, "steps": [] });
    Case::bundled("chat", &settings).fails("`text_chars_max` is 0");
    Case::bundled("chat", &json!({ "about": "", "grants": [], "steps": [] })).fails("imports groups, state, which are not granted");
}

#[test]
fn a_fixture_that_makes_no_sense_is_refused_by_the_place() {
    let case = Case::bundled("chat", &json!({}));
    for (fixture, words) in [
        (json!({ "about": "", "steps": [], "stats": 1 }), "unknown field `stats`"),
        (json!({ "about": "", "steps": [{ "event": {}, "format": {} }] }), "steps[0]: it has to do one of"),
        (json!({ "about": "", "steps": [{ "event": {}, "decide": {} }] }), "steps[0]: `decide` is not a member of a step"),
        (json!({ "about": "", "steps": [{ "event": { "data": 1 } }] }), "steps[0]: event: the event has no `type`"),
        (json!({ "about": "", "steps": [{ "received": { "session": "x", "message": 1 } }] }), "there is no session \"x\""),
        (json!({ "about": "", "steps": [{ "closed": {} }] }), "steps[0]: closed: `session` is missing"),
        (json!({ "about": "", "now": "soon", "steps": [] }), "`now` is \"soon\""),
        (json!({ "about": "", "host": { "state": { "k": 1 } }, "steps": [] }), "host.state: k: a value is a string"),
    ] {
        case.write(&fixture);
        case.fails(words);
    }
    std::fs::remove_file(case.dir.path().join("fixtures/case.json")).unwrap();
    case.fails("there are no fixtures");
}

#[test]
fn a_bound_that_is_in_the_way_is_told_by_the_setting_that_moves_it() {
    let event = json!([{ "event": { "type": "tick" }, "decides": {} }]);
    let fixture = json!({ "about": "", "steps": event });
    let spins = Case::new(&Guest::routing("(loop $on (br $on)) (i32.const 0)").component(), &fixture);
    spins.fails("interrupt; limits.call_deadline_ms bounds that");
    let configures = Guest { configure: "(loop $on (br $on)) (i32.const 0)", ..Guest::routing("(call $nobody)") };
    Case::new(&configures.component(), &fixture).fails("interrupt; limits.configure_deadline_ms bounds that");
    let large = Guest { memory: "400", ..Guest::routing("(call $nobody)") };
    Case::new(&large.component(), &fixture).fails("; limits.memory_bytes_max bounds that");
    let table = Guest { fields: "(table 30000 funcref)", ..Guest::routing("(call $nobody)") };
    Case::new(&table.component(), &fixture).fails("; limits.table_elements_max bounds that");
    let many = "(call $decided (i32.const 60000))";
    Case::new(&Guest { memory: "150", ..Guest::routing(many) }.component(), &fixture).fails("; limits.output_bytes_max bounds that");
}

#[test]
fn each_call_of_a_fixture_is_timed() {
    let compact = bundled().join("compact.wasm");
    let fixture = sources().join("compact/fixtures/readers.json");
    let ran = plugin(&bundled(), &["bench", compact.to_str().unwrap(), "--calls", "200", "--fixture", fixture.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains(" bytes, compiled in ") && ran.out.contains("an instance takes "), "{}", ran.out);
    let timed: Vec<&str> = ran.out.lines().filter(|line| line.starts_with("  steps[")).collect();
    assert_eq!(timed.len(), 4, "{}", ran.out);
    assert!(timed.iter().all(|line| line.ends_with(" 200 calls") && line.contains(" p50 ") && line.contains(" p99 ")), "{}", ran.out);
}

#[test]
fn the_documented_fixture_holds() {
    let documentation = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/plugins.md")).unwrap();
    let (_, rest) = documentation.split_once("```json\n").unwrap();
    let fixture: Value = serde_json::from_str(rest.split("```").next().unwrap()).unwrap();
    let case = Case::bundled("pooling", &fixture);
    assert_eq!(case.test(&[]).code, 0, "{}", case.test(&[]).out);
}
