//! What operators page through: users, the figures of the last minutes, and settings.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::support::{SOON, TestServer};

fn names(page: &Value) -> Vec<&str> {
    page["users"].as_array().unwrap().iter().map(|user| user["user"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn users_are_listed_in_order_page_by_page_and_none_twice_or_never() {
    let server = TestServer::start().await;
    assert_eq!(server.get("/users").await, json!({ "users": [] }));
    let mut expected: Vec<String> = (0..250).map(|n| format!("away-{n}")).collect();
    for user in &expected {
        server.post(&format!("/users/{user}/messages"), json!(1)).await;
    }
    let _online = (server.connect("online-1").await, server.connect("online-1").await, server.connect("ünïcode").await);
    expected.extend(["online-1".to_owned(), "ünïcode".to_owned()]);
    expected.sort();
    for limit in [1, 7, 250, 252, 1000] {
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page = server.get(&format!("/users?limit={limit}&after={after}")).await;
            assert!(names(&page).len() <= limit);
            seen.extend(names(&page).into_iter().map(str::to_owned));
            match page["next"].as_str() {
                Some(next) => after = next.to_owned(),
                None => break,
            }
            if limit == 1 && seen.len() == 5 {
                break;
            }
        }
        assert_eq!(seen, expected[..seen.len()], "{limit} on a page");
        assert_eq!(seen.len(), if limit == 1 { 5 } else { 252 });
    }
    assert_eq!(names(&server.get("/users").await).len(), 100, "by default");
    let one = server.get("/users?prefix=online").await;
    assert_eq!(one, json!({ "users": [{ "user": "online-1", "online": true, "sessions": 2, "messages": 0, "bytes": 0, "seq": 0 }] }));
    assert_eq!(names(&server.get("/users?online=true").await), ["online-1", "ünïcode"]);
    let away = server.get("/users?online=false&prefix=away-24&limit=3").await;
    assert_eq!((names(&away), &away["next"]), (vec!["away-24", "away-240", "away-241"], &json!("away-241")));
    assert_eq!((&away["users"][0]["messages"], &away["users"][0]["seq"]), (&json!(1), &json!(1)));
    assert_eq!(server.get("/users?prefix=nobody").await, json!({ "users": [] }));
    for query in ["limit=0", "limit=1001", "limit=x", "online=perhaps", "begin=a"] {
        let response = server.http.get(server.url(&format!("/users?{query}"))).send().await.unwrap();
        assert_eq!(response.status(), 400, "{query}");
        assert_eq!(response.json::<Value>().await.unwrap()["code"], "query", "{query}");
    }
}

#[tokio::test]
async fn the_figures_add_up_to_what_happened() {
    let server = TestServer::start().await;
    let sum = |figures: &Value, name: &str| {
        let column = figures["columns"][name].as_array().unwrap_or_else(|| panic!("{name} is not in {figures}"));
        assert_eq!(column.len(), figures["at_ms"].as_array().unwrap().len(), "{name}");
        column.iter().map(|value| value.as_u64().unwrap()).sum::<u64>()
    };
    // The first sample is what the others count from.
    let reaches = async |name: &str, value: u64| {
        let waiting = async {
            loop {
                let figures = server.get("/stats").await;
                if !figures["at_ms"].as_array().unwrap().is_empty() && sum(&figures, name) == value {
                    return figures;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("{name} doesn't reach {value}"))
    };
    reaches("posted", 0).await;
    let mut client = server.connect("1001").await;
    for n in 0..5 {
        server.post("/users/1001/messages", json!(n)).await;
        client.json().await;
    }
    server.publish("pooling.match.found", json!({ "request_id": 42, "rider_id": 1001, "driver_id": 2002, "pool_id": 7 })).await;
    server.publish("nobody.wants.this", json!({})).await;
    server.post("/users/3003/messages?keep_ms=0", json!(1)).await;
    client.json().await;
    let figures = reaches("sent", 6).await;
    let value = |name: &str| sum(&figures, name);
    assert_eq!(
        ["posted", "events.routed", "events.unwanted", "events.failed", "dropped.away", "dropped.expired", "opened", "faults"].map(value),
        [7, 1, 1, 0, 1, 0, 1, 0]
    );
    let newest = server.get("/stats?last=1").await;
    assert_eq!((&newest["interval_ms"], &newest["columns"]["sessions"]), (&json!(1000), &json!([1])));
    assert_eq!(newest["columns"]["mailboxes"].as_array().unwrap().len(), 1);
    // The session's opening, the match's routing and its formatting.
    assert!(value("calls") >= 2 && value("call_p99_us") > 0 && value("call_p99_us") >= value("call_p50_us"), "{figures}");
    let policies = server.get("/policies").await;
    let pooling = policies["policies"].as_array().unwrap().iter().find(|policy| policy["name"] == "pooling").unwrap();
    assert_eq!((&pooling["times"][0]["function"], &pooling["times"][0]["calls"]), (&json!("route"), &json!(1)));
    assert!(pooling["times"][0]["p99_us"].as_f64().unwrap() >= pooling["times"][0]["p50_us"].as_f64().unwrap());
}

#[tokio::test]
async fn settings_are_shown_with_their_sources_and_without_secrets() {
    let secret = "hunter2-hunter2";
    let toml = format!(
        "[live]\nobservers_max = 3\n[policies.chat]\nsettings = {{ text_chars_max = 77 }}\n[policies.pooling.limits]\ncall_deadline_ms = 50\n# {secret}\n"
    );
    let server = TestServer::with(&toml).await;
    let settings = server.get("/settings").await;
    let find = |path: &str| settings.as_array().unwrap().iter().find(|setting| setting["path"] == path).cloned().unwrap_or_default();
    let observers = json!({ "path": "live.observers_max", "value": 3, "source": "file", "variable": "SIGNALPOST_LIVE_OBSERVERS_MAX" });
    assert_eq!(find("live.observers_max"), observers);
    assert_eq!(find("policies.chat.settings.text_chars_max")["value"], "hidden");
    assert_eq!((&find("policies.pooling.limits.call_deadline_ms")["value"], &find("listen")["source"]), (&json!(50), &json!("flag")));
    assert_eq!(find("sockets.per_user_max")["source"], "default");
    assert!(!settings.to_string().contains(secret));
}
