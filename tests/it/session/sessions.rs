//! Sessions: who may connect, what frames look like, and how a socket ends.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::support::raw::{self, Raw};
use crate::support::wat::Guest;
use crate::support::{Client, QUIET, SOON, TestServer, plugins};

/// A problem document's status and code.
async fn problem(response: reqwest::Response) -> (u16, String) {
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let status = response.status().as_u16();
    let document: Value = response.json().await.unwrap();
    assert_eq!(document["status"], status);
    assert!(!document["detail"].as_str().unwrap().is_empty());
    (status, document["code"].as_str().unwrap().to_owned())
}

fn closed(code: u16) -> String {
    format!(r#"signalpost_sessions_closed_total{{code="{code}"}}"#)
}

/// Waits until nobody is let in any more: what a stop does first.
async fn stopping(server: &TestServer) {
    let waiting = async {
        while TcpStream::connect(server.address).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, waiting).await.expect("a stop begins in time");
}

async fn end_sessions(server: &TestServer, user: &str) -> Value {
    let response = server.http.delete(server.url(&format!("/users/{user}/sessions"))).send().await.unwrap();
    assert_eq!(response.status(), 200);
    response.json().await.unwrap()
}

mod one_user {
    use super::*;

    #[tokio::test]
    async fn every_session_of_a_user_reads_every_message_in_order() {
        let server = TestServer::start().await;
        let mut clients = Vec::new();
        for _ in 0..8 {
            clients.push(server.connect("1001").await);
        }
        for number in 0..20 {
            let receipt = server.post("/users/1001/messages", json!(number)).await;
            assert_eq!((&receipt["recipients"], &receipt["posted"]), (&json!(1), &json!(1)));
        }
        for client in &mut clients {
            for number in 0..20 {
                assert_eq!(client.text().await, number.to_string());
            }
            client.quiet().await;
        }
        assert_eq!(server.metric("signalpost_messages_sent_total").await, 160.0);
    }

    #[tokio::test]
    async fn one_session_too_many_closes_the_oldest() {
        let server = TestServer::with("[sockets]\nper_user_max = 2").await;
        let mut oldest = server.connect("1001").await;
        let mut second = server.connect("1001").await;
        let mut newest = server.connect("1001").await;
        assert_eq!(oldest.closed().await, (4202, "replaced by a newer session".into()));
        server.post("/users/1001/messages", json!("for two")).await;
        assert_eq!(second.text().await, "\"for two\"");
        assert_eq!(newest.text().await, "\"for two\"");
        assert_eq!(server.get("/users/1001").await["sessions"].as_array().unwrap().len(), 2);
        server.metric_reaches(&closed(4202), 1.0).await;
        assert_eq!(server.metric("signalpost_sessions").await, 2.0);
    }

    #[tokio::test]
    async fn the_newest_session_wins_if_a_user_may_have_one_and_the_late_end_of_the_old_one_changes_nothing() {
        let server = TestServer::with("[sockets]\nper_user_max = 1").await;
        let mut old = Raw::open(&server, "1001", "").await;
        let mut new = server.connect("1001").await;
        assert_eq!(old.closed().await.0, 4202);
        server.post("/users/1001/messages", json!("before")).await;
        assert_eq!(new.text().await, "\"before\"");
        // Only now the old connection goes.
        assert_eq!(old.frame().await, None, "nothing follows a close frame");
        drop(old);
        server.metric_reaches(&closed(4202), 1.0).await;
        let presence = server.get("/users/1001").await;
        assert_eq!(presence["online"], true);
        assert_eq!(presence["sessions"].as_array().unwrap().len(), 1);
        server.post("/users/1001/messages", json!("after")).await;
        assert_eq!(new.text().await, "\"after\"");
        assert_eq!(server.metric("signalpost_sessions").await, 1.0);
    }

    /// Refuses every socket with a subprotocol.
    const PLAIN_ONLY: &str = "(drop (call $silent))
        (if (local.get $sub) (then
            (i32.store8 (i32.const 832) (i32.const 1))
            (i32.store (i32.const 836) (global.get $code)) (i32.store (i32.const 840) (global.get $code_bytes))
            (i32.store (i32.const 844) (global.get $detail)) (i32.store (i32.const 848) (global.get $detail_bytes))))
        (i32.const 832)";

    async fn refusing_strangers(settings: &str) -> (TestServer, tempfile::TempDir) {
        let dir = plugins(&[]);
        let strings = &[("code", "stranger"), ("detail", "nobody knows you")];
        let guest = Guest { strings, opened: PLAIN_ONLY, ..Guest::sessions("(call $not_mine)") };
        std::fs::write(dir.path().join("bouncer.wasm"), guest.component()).unwrap();
        (TestServer::with(&format!("{settings}\n[plugins]\ndir = {:?}", dir.path())).await, dir)
    }

    #[tokio::test]
    async fn a_refused_stranger_takes_no_place_from_the_users_session() {
        let (server, _dir) = refusing_strangers("[sockets]\nper_user_max = 1").await;
        let mut real = server.connect("1001").await;
        for round in 0..5 {
            assert_eq!(server.connect_v1("1001").await.closed().await, (4203, "nobody knows you".into()));
            server.post("/users/1001/messages", json!(round)).await;
            assert_eq!(real.text().await, round.to_string());
        }
        assert_eq!(server.metric(&closed(4202)).await, 0.0);
        assert_eq!(server.metric("signalpost_sessions").await, 1.0);
        // One who is admitted does.
        let mut new = server.connect("1001").await;
        assert_eq!(real.closed().await.0, 4202);
        server.post("/users/1001/messages", json!("new")).await;
        assert_eq!(new.text().await, "\"new\"");
    }

    #[tokio::test]
    async fn refused_strangers_take_no_message_from_a_user_who_comes_back() {
        let (server, _dir) = refusing_strangers("").await;
        let url = server.socket_url("1001");
        let hammering = tokio::spawn(async move {
            loop {
                Client::open(&url, Some("signalpost.v1")).await.closed().await;
            }
        });
        for round in 0..30 {
            for message in 0..3 {
                server.post("/users/1001/messages", json!([round, message])).await;
            }
            let mut real = server.connect("1001").await;
            for message in 0..3 {
                assert_eq!(real.json().await, json!([round, message]));
            }
            real.socket.close(None).await.unwrap();
            assert_eq!(real.closed().await.0, 1005);
        }
        hammering.abort();
    }

    #[tokio::test]
    async fn one_session_too_many_is_refused_if_the_settings_say_so() {
        let server = TestServer::with("[sockets]\nper_user_max = 1\ntoo_many = \"refuse-newest\"").await;
        let mut first = server.connect("1001").await;
        let mut second = server.connect("1001").await;
        assert_eq!(second.closed().await.0, 4101);
        server.metric_reaches(&closed(4101), 1.0).await;
        // Another user is not concerned.
        let mut other = server.connect("2002").await;
        server.post("/users/1001/messages", json!(1)).await;
        server.post("/users/2002/messages", json!(2)).await;
        assert_eq!(first.text().await, "1");
        assert_eq!(other.text().await, "2");
        first.socket.close(None).await.unwrap();
        assert_eq!(first.closed().await.0, 1005);
        server.metric_reaches("signalpost_sessions", 1.0).await;
        let mut third = server.connect("1001").await;
        server.post("/users/1001/messages", json!(3)).await;
        assert_eq!(third.text().await, "3");
    }

    #[tokio::test]
    async fn a_lost_connection_takes_no_newer_session_with_it() {
        let server = TestServer::start().await;
        let first = server.connect("1001").await;
        let mut second = server.connect("1001").await;
        drop(first);
        server.metric_reaches(&closed(1006), 1.0).await;
        assert_eq!(server.get("/users/1001").await["sessions"].as_array().unwrap().len(), 1);
        server.post("/users/1001/messages", json!("still here")).await;
        assert_eq!(second.text().await, "\"still here\"");
    }

    #[tokio::test]
    async fn the_operator_ends_a_users_sessions_and_nobody_elses() {
        let server = TestServer::start().await;
        let mut phone = server.connect("1001").await;
        let mut tablet = server.connect_v1("1001").await;
        let mut other = server.connect("2002").await;
        assert_eq!(end_sessions(&server, "1001").await, json!({ "ended": 2 }));
        assert_eq!(phone.closed().await, (4200, "ended by the operator".into()));
        assert_eq!(tablet.closed().await.0, 4200);
        server.metric_reaches(&closed(4200), 2.0).await;
        assert_eq!(server.get("/users/1001").await["online"], false);
        assert_eq!(end_sessions(&server, "1001").await, json!({ "ended": 0 }));
        assert_eq!(end_sessions(&server, "nobody").await, json!({ "ended": 0 }));
        server.post("/users/2002/messages", json!(1)).await;
        assert_eq!(other.text().await, "1");
    }

    #[tokio::test]
    async fn presence_tells_sessions_their_attributes_and_the_mailbox() {
        let server = TestServer::start().await;
        let away = json!({ "user": "1001", "online": false, "sessions": [], "mailbox": null });
        assert_eq!(server.get("/users/1001").await, away);
        let _plain = server.connect("1001?locale=de").await;
        let mut v1 = server.connect_v1("1001").await;
        let hello = v1.json().await;
        server.post("/users/1001/messages", json!({ "n": 1 })).await;
        v1.text().await;
        server.metric_reaches("signalpost_messages_sent_total", 2.0).await;
        let presence = server.get("/users/1001").await;
        assert_eq!(presence["online"], true);
        let [first, second] = &presence["sessions"].as_array().unwrap()[..] else { panic!("two sessions: {presence}") };
        assert_eq!((&first["subprotocol"], &first["attributes"], &first["seq"]), (&json!(null), &json!({ "locale": "de" }), &json!(1)));
        assert_eq!((&second["subprotocol"], &second["attributes"], &second["seq"]), (&json!("signalpost.v1"), &json!({}), &json!(1)));
        assert_eq!(second["id"], hello["data"]["session"]);
        assert_ne!(first["id"], second["id"]);
        for session in [first, second] {
            let opened = session["opened"].as_str().unwrap();
            assert!(opened.starts_with("20") && opened.ends_with('Z'), "{opened} is RFC 3339");
        }
        // A session of this subprotocol may resume, and so what was read is still there.
        assert_eq!(presence["mailbox"]["epoch"], hello["data"]["epoch"]);
        assert_eq!((&presence["mailbox"]["messages"], &presence["mailbox"]["seq"]), (&json!(1), &json!(1)));
        assert!(presence["mailbox"]["bytes"].as_u64().unwrap() >= r#"{"n":1}"#.len() as u64);
    }
}

mod user_ids {
    use super::*;

    #[tokio::test]
    async fn a_user_id_may_be_a_number_a_word_or_anything_percent_encoded() {
        let server = TestServer::start().await;
        let ids = [
            ("1001", json!(1001), "1001"),
            ("alice", json!("alice"), "alice"),
            ("J%C3%BCrgen%20M%2F7", json!("Jürgen M/7"), "Jürgen M/7"),
            ("%F0%9F%9A%97%3F%23%25", json!("🚗?#%"), "🚗?#%"),
        ];
        for (path, id, name) in ids {
            let mut client = server.connect(path).await;
            server.post(&format!("/users/{path}/messages"), json!("direct")).await;
            assert_eq!(client.text().await, "\"direct\"");
            let data = json!({ "request_id": 1, "rider_id": id, "driver_id": "away", "pool_id": name });
            server.publish("pooling.match.found", data).await;
            assert_eq!(client.json().await["type"], "pooling_match", "{name}");
            let presence = server.get(&format!("/users/{path}")).await;
            assert_eq!((&presence["user"], &presence["online"]), (&json!(name), &json!(true)));
        }
    }

    #[tokio::test]
    async fn a_user_id_that_is_too_long_or_unprintable_is_refused_everywhere() {
        let server = TestServer::start().await;
        // The limit counts bytes after decoding.
        let longest = "%C3%A9".repeat(64);
        let mut client = server.connect(&longest).await;
        server.post(&format!("/users/{longest}/messages"), json!(1)).await;
        assert_eq!(client.text().await, "1");
        for id in [&"x".repeat(129), &"%C3%A9".repeat(65), "a%0Ab", "a%00", "%20a", "a%20"] {
            let refused = (400, "user_id".to_owned());
            assert_eq!(problem(server.http.get(server.url(&format!("/ws/{id}"))).send().await.unwrap()).await, refused, "{id}");
            assert_eq!(problem(server.http.get(server.url(&format!("/users/{id}"))).send().await.unwrap()).await, refused, "{id}");
            let ending = server.http.delete(server.url(&format!("/users/{id}/sessions"))).send().await.unwrap();
            assert_eq!(problem(ending).await, refused, "{id}");
            let telling = server.http.post(server.url(&format!("/users/{id}/messages"))).json(&json!(1)).send().await.unwrap();
            assert_eq!(problem(telling).await, refused, "{id}");
        }
        assert_eq!(server.metric(r#"signalpost_http_problems_total{code="user_id"}"#).await, 24.0);
    }
}

mod handshakes {
    use super::*;

    #[tokio::test]
    async fn a_plain_request_is_told_to_upgrade() {
        let server = TestServer::start().await;
        let response = server.http.get(server.url("/ws/1001")).send().await.unwrap();
        for (name, value) in [("upgrade", "websocket"), ("connection", "Upgrade"), ("sec-websocket-version", "13")] {
            assert_eq!(response.headers()[name], value, "{name}");
        }
        assert_eq!(problem(response).await, (426, "websocket_required".into()));
        assert_eq!(problem(server.http.post(server.url("/ws/1001")).send().await.unwrap()).await, (405, "method_not_allowed".into()));
        assert_eq!(server.get("/users/1001").await["online"], false);
    }

    #[tokio::test]
    async fn an_incomplete_handshake_is_refused_with_a_word_on_what_it_lacks() {
        let server = TestServer::start().await;
        let whole = raw::handshake("1001", "Connection: close\r\n");
        let cases = [
            ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", "400", "websocket_key"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBs", "400", "websocket_key"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "????????????????????????", "400", "websocket_key"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "400", "websocket_key"),
            ("Version: 13", "Version: 13\r\nSec-WebSocket-Version: 8", "426", "websocket_version"),
            ("HTTP/1.1", "HTTP/1.0", "426", "websocket_required"),
            ("Sec-WebSocket-Version: 13\r\n", "", "426", "websocket_version"),
            ("Version: 13", "Version: 8", "426", "websocket_version"),
            ("Upgrade: websocket\r\n", "", "426", "websocket_required"),
            ("Connection: Upgrade\r\n", "", "426", "websocket_required"),
        ];
        for (part, instead, status, code) in cases {
            let mut raw = Raw::connect(server.address).await;
            raw.write(whole.replace(part, instead).as_bytes()).await;
            let answer = raw.rest().await;
            assert!(answer.starts_with("HTTP/1.") && answer[8..].starts_with(&format!(" {status} ")), "without {part}: {answer}");
            assert!(answer.contains(&format!(r#""code":"{code}""#)), "without {part}: {answer}");
        }
        assert_eq!(server.metric("signalpost_sessions_opened_total").await, 0.0);
    }

    #[tokio::test]
    async fn the_accept_key_is_that_of_the_rfc() {
        let server = TestServer::start().await;
        let mut raw = Raw::connect(server.address).await;
        // Headers and their tokens are found in any case and among others, as proxies write them.
        let request = raw::handshake("1001", "").replace("Connection: Upgrade", "connection: keep-alive, UPGRADE");
        raw.write(request.replace("Upgrade: websocket", "upgrade: WebSocket").as_bytes()).await;
        let head = raw.head().await;
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        assert!(head.contains(&"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n".to_lowercase()), "{head}");
    }

    #[tokio::test]
    async fn a_subprotocol_is_selected_only_if_it_is_offered_by_its_exact_name() {
        let server = TestServer::start().await;
        for (offer, selected) in [
            ("", false),
            ("Sec-WebSocket-Protocol: chat, mqtt\r\n", false),
            ("Sec-WebSocket-Protocol: signalpost.v2\r\n", false),
            // A browser fails when the server selects what it has not offered, letter by letter.
            ("Sec-WebSocket-Protocol: Signalpost.V1\r\n", false),
            ("Sec-WebSocket-Protocol: chat, signalpost.v1\r\n", true),
            ("Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: signalpost.v1\r\n", true),
        ] {
            let mut raw = Raw::connect(server.address).await;
            raw.write(raw::handshake("1001", offer).as_bytes()).await;
            let head = raw.head().await;
            assert!(head.starts_with("http/1.1 101 "), "{head}");
            assert_eq!(head.contains("sec-websocket-protocol: signalpost.v1\r\n"), selected, "{offer}");
            assert_eq!(head.contains("sec-websocket-protocol"), selected, "{offer}");
            server.post("/users/1001/messages", json!("hi")).await;
            if selected {
                assert!(raw.text().await.starts_with(r#"{"type":"hello""#));
            } else {
                assert_eq!(raw.text().await, "\"hi\"");
            }
            drop(raw);
            server.metric_reaches("signalpost_sessions", 0.0).await;
        }
    }

    #[tokio::test]
    async fn only_configured_names_of_the_query_become_attributes() {
        let server = TestServer::start().await;
        let _client = server.connect("1001?color=red&locale=de&format=a%20b+%C3%A9&locale=fr&user=2002&flag").await;
        let presence = server.get("/users/1001").await;
        assert_eq!(presence["sessions"][0]["attributes"], json!({ "locale": "de", "format": "a b é" }));
        assert_eq!(server.get("/users/2002").await["online"], false);

        let server = TestServer::with("[sockets]\nattributes = [\"app\"]").await;
        let _client = server.connect("1001?locale=de&app").await;
        assert_eq!(server.get("/users/1001").await["sessions"][0]["attributes"], json!({ "app": "" }));
    }

    #[tokio::test]
    async fn an_attribute_over_its_limit_is_refused() {
        let server = TestServer::with("[sockets]\nattribute_bytes_max = 8").await;
        let _longest = server.connect("1001?locale=12345%C3%A9%20").await;
        for (query, status) in [("locale=123456789", "400"), ("locale=%C3%A9%C3%A9%C3%A9%C3%A9%20", "400"), ("color=123456789", "101")] {
            let mut raw = Raw::connect(server.address).await;
            raw.write(raw::handshake(&format!("1001?{query}"), "").as_bytes()).await;
            let head = raw.head().await;
            assert!(head.starts_with(&format!("http/1.1 {status} ")), "{query}: {head}");
        }
        assert_eq!(server.metric(r#"signalpost_http_problems_total{code="attribute_too_long"}"#).await, 2.0);
    }

    #[tokio::test]
    async fn frames_that_come_with_the_handshake_are_not_lost() {
        let server = TestServer::start().await;
        let mut raw = Raw::connect(server.address).await;
        let mut bytes = raw::handshake("1001", "").into_bytes();
        bytes.extend(raw::frame(raw::PING, true, b"early"));
        bytes.extend(raw::frame(raw::TEXT, true, b"{}"));
        raw.write(&bytes).await;
        raw.head().await;
        assert_eq!(raw.frame().await, Some((raw::PONG, b"early".to_vec())));
        assert!(raw.text().await.contains("unhandled"));
    }
}

mod frames {
    use super::*;

    #[tokio::test]
    async fn a_frame_without_a_subprotocol_is_exactly_what_was_posted() {
        let server = TestServer::start().await;
        let mut client = server.connect("1001").await;
        for body in [
            r#"{"type":"pooling_match","request_id":42}"#,
            r#"{ "b" : 1.00, "a": 12345678901234567890123, "u":"\u00e9\/é", "b": [1,  2] }"#,
            "7",
            "null",
            "\"text\"",
            "[]",
        ] {
            let response = server.http.post(server.url("/users/1001/messages")).body(body).send().await.unwrap();
            assert_eq!(response.status(), 202);
            assert_eq!(client.text().await, body);
        }
        client.quiet().await;
    }

    #[tokio::test]
    async fn a_hello_comes_first_with_the_subprotocol_and_messages_are_in_envelopes() {
        let server = TestServer::start().await;
        let mut client = server.connect_v1("1001").await;
        let hello = client.json().await;
        let presence = server.get("/users/1001").await;
        let expected = json!({
            "type": "hello",
            "data": {
                "session": presence["sessions"][0]["id"],
                "user": "1001",
                "epoch": presence["mailbox"]["epoch"],
                "seq": 0,
                "limits": {
                    "message_bytes_max": 65_536,
                    "ping_interval_ms": 25_000,
                    "pong_deadline_ms": 10_000,
                    "mailbox_messages_max": 1_000,
                    "mailbox_bytes_max": 1_048_576,
                    "keep_ms": 3_600_000,
                },
            },
        });
        assert_eq!(hello, expected);
        server.post("/users/1001/messages", json!({ "n": 1 })).await;
        server.post("/users/1001/messages", json!([2])).await;
        assert_eq!(client.text().await, r#"{"seq":1,"type":"message","data":{"n":1}}"#);
        assert_eq!(client.text().await, r#"{"seq":2,"type":"message","data":[2]}"#);
        let hello = server.connect_v1("1001").await.json().await;
        assert_eq!((&hello["data"]["seq"], &hello["data"]["epoch"]), (&json!(2), &expected["data"]["epoch"]));
        assert_eq!(hello["data"]["resume_within_ms"], 1000);
    }

    #[tokio::test]
    async fn a_message_that_nobody_takes_is_answered_and_the_socket_stays_open() {
        let server = TestServer::start().await;
        let mut plain = server.connect("1001").await;
        let detail = "no policy of this server takes such a message";
        let messages = [Message::text(r#"{"type":"unknown"}"#), Message::text("not JSON"), Message::binary([0, 255].as_slice())];
        for message in messages.clone() {
            plain.send(message).await;
            assert_eq!(plain.text().await, json!({ "type": "error", "code": "unhandled", "detail": detail }).to_string());
        }
        let mut v1 = server.connect_v1("2002").await;
        v1.json().await;
        let message = |data: &str| Message::text(format!(r#"{{"type":"message","data":{data}}}"#));
        for message in [message(r#"{"type":"unknown"}"#), message("null"), Message::binary([0, 255].as_slice())] {
            v1.send(message).await;
            assert_eq!(v1.text().await, json!({ "type": "error", "data": { "code": "unhandled", "detail": detail } }).to_string());
        }
        for (user, client) in [("1001", &mut plain), ("2002", &mut v1)] {
            server.post(&format!("/users/{user}/messages"), json!("open")).await;
            assert!(client.text().await.contains("open"));
        }
        assert_eq!(server.metric(r#"signalpost_client_messages_total{outcome="unhandled"}"#).await, 6.0);
    }

    #[tokio::test]
    async fn a_frame_outside_the_subprotocol_is_explained_and_the_socket_stays_open() {
        let server = TestServer::start().await;
        let mut client = server.connect_v1("1001").await;
        client.json().await;
        let frames = [
            ("", "JSON object"),
            ("hello", "JSON object"),
            ("[]", "JSON object"),
            (r#"{"type":"subscribe"}"#, "`type`"),
            (r#"{"type":"ack"}"#, "needs a `seq`"),
            (r#"{"type":"ack","seq":-1}"#, "`seq` must be a whole number"),
            (r#"{"type":"ack","seq":"1"}"#, "`seq` must be a whole number"),
            (r#"{"type":"resume","seq":1.5,"epoch":"e"}"#, "`seq` must be a whole number"),
            (r#"{"type":"resume","seq":1}"#, "`epoch`"),
            (r#"{"type":"message"}"#, "`data`"),
            (r#"{"type":"message","data":"\ud800"}"#, "half of a surrogate pair"),
        ];
        for (frame, says) in frames {
            client.send(Message::text(frame)).await;
            let answer = client.json().await;
            assert_eq!((&answer["type"], &answer["data"]["code"]), (&json!("error"), &json!("invalid_frame")), "{frame}");
            let detail = answer["data"]["detail"].as_str().unwrap();
            assert!(detail.contains(says), "{frame}: {detail}");
        }
        assert_eq!(server.metric(r#"signalpost_client_messages_total{outcome="invalid"}"#).await, frames.len() as f64);
        server.post("/users/1001/messages", json!(1)).await;
        assert_eq!(client.text().await, r#"{"seq":1,"type":"message","data":1}"#);
    }

    #[tokio::test]
    async fn a_message_in_fragments_is_one_message_and_a_ping_may_come_between_them() {
        let server = TestServer::start().await;
        let mut raw = Raw::open(&server, "1001", "").await;
        // A character is cut in two as well.
        let (first, second) = r#"{"type":"ü"}"#.as_bytes().split_at(10);
        raw.write(&raw::frame(raw::TEXT, false, first)).await;
        raw.send(raw::PING, b"between").await;
        assert_eq!(raw.frame().await, Some((raw::PONG, b"between".to_vec())));
        raw.write(&raw::frame(raw::CONTINUATION, true, second)).await;
        assert!(raw.text().await.contains("unhandled"));
        assert_eq!(server.metric(r#"signalpost_client_messages_total{outcome="unhandled"}"#).await, 1.0);
    }

    #[tokio::test]
    async fn a_clients_ping_is_answered_with_its_payload() {
        let server = TestServer::start().await;
        let mut client = server.connect("1001").await;
        client.send(Message::Ping(b"are you there"[..].into())).await;
        assert_eq!(client.message().await, Message::Pong(b"are you there"[..].into()));
    }
}

mod endings {
    use super::*;

    #[tokio::test]
    async fn a_client_that_answers_pings_stays() {
        let server = TestServer::with("[sockets]\nping_interval_ms = 20").await;
        let mut client = server.connect("1001").await;
        // The next ping comes only when the last one was answered.
        for _ in 0..5 {
            let next = timeout(SOON, client.next()).await.expect("a ping in time").unwrap().unwrap();
            assert!(next.is_ping(), "{next:?}");
        }
        server.post("/users/1001/messages", json!(1)).await;
        assert_eq!(client.text().await, "1");
    }

    #[tokio::test]
    async fn a_client_that_answers_no_ping_is_given_up() {
        let server = TestServer::with("[sockets]\nping_interval_ms = 50\npong_deadline_ms = 50").await;
        let mut silent = Raw::open(&server, "1001", "").await;
        assert_eq!(silent.frame().await, Some((raw::PING, Vec::new())));
        assert_eq!(silent.closed().await, (4000, "no pong in time, reconnect".into()));
        assert_eq!(silent.frame().await, None);
        drop(silent);
        server.metric_reaches(&closed(4000), 1.0).await;
        assert_eq!(server.metric("signalpost_sessions").await, 0.0);
    }

    #[tokio::test]
    async fn a_session_without_messages_is_closed_if_the_settings_say_so() {
        // Pongs are life signs, not messages.
        let server = TestServer::with("[sockets]\nidle_deadline_ms = 200\nping_interval_ms = 20").await;
        let mut client = server.connect("1001").await;
        assert_eq!(client.closed().await, (4201, "idle for too long".into()));
        server.metric_reaches(&closed(4201), 1.0).await;
    }

    #[tokio::test]
    async fn a_message_over_the_limit_ends_the_session() {
        let server = TestServer::with("[sockets]\nmessage_bytes_max = 1000").await;
        let mut client = server.connect("1001").await;
        client.send("x".repeat(1000)).await;
        assert!(client.text().await.contains("unhandled"), "at the limit it is a message");
        client.send("x".repeat(1001)).await;
        assert_eq!(client.closed().await, (1009, "the message is too big".into()));
        // Fragments count together.
        let mut raw = Raw::open(&server, "1001", "").await;
        raw.write(&raw::frame(raw::TEXT, false, &[b'x'; 600])).await;
        raw.write(&raw::frame(raw::CONTINUATION, true, &[b'x'; 600])).await;
        assert_eq!(raw.closed().await.0, 1009);
        drop(raw);
        server.metric_reaches(&closed(1009), 2.0).await;
    }

    #[tokio::test]
    async fn a_frame_that_breaks_the_protocol_is_answered_by_a_close_frame_that_arrives() {
        let server = TestServer::start().await;
        let unmasked = [0x81, 2, b'{', b'}'].to_vec();
        let mut reserved = raw::frame(raw::TEXT, true, b"{}");
        reserved[0] |= 0x40;
        let cases = [
            (unmasked, 1002),
            (reserved, 1002),
            (raw::frame(raw::CONTINUATION, true, b"{}"), 1002),
            (raw::frame(raw::PING, true, &[0; 126]), 1002),
            (raw::frame(raw::CLOSE, true, &1006_u16.to_be_bytes()), 1002),
            (raw::frame(raw::TEXT, true, &[b'"', 0xC3, 0x28, b'"']), 1007),
            (raw::frame(raw::TEXT, false, &[0xED, 0xA0, 0x80]), 1007),
        ];
        for (bytes, code) in cases {
            let mut raw = Raw::open(&server, "1001", "").await;
            // What is sent after it is not read as frames, and does not turn the close frame into a reset.
            raw.write(&[bytes.clone(), vec![0; 100_000]].concat()).await;
            assert_eq!(raw.closed().await.0, code, "{bytes:?}");
            assert_eq!(raw.frame().await, None, "{bytes:?}");
        }
        server.metric_reaches(&closed(1002), 5.0).await;
        server.metric_reaches(&closed(1007), 2.0).await;
    }

    #[tokio::test]
    async fn a_clients_close_is_echoed_with_its_code() {
        let server = TestServer::start().await;
        for code in [1000_u16, 1001, 3000, 4100, 4321] {
            let mut raw = Raw::open(&server, "1001", "").await;
            raw.send(raw::CLOSE, &[&code.to_be_bytes()[..], b"bye"].concat()).await;
            assert_eq!(raw.frame().await, Some((raw::CLOSE, code.to_be_bytes().to_vec())));
            assert_eq!(raw.frame().await, None);
        }
        for code in [1000, 1001] {
            server.metric_reaches(&closed(code), 1.0).await;
        }
        // A client makes no labels, and its codes don't count as the server's.
        server.metric_reaches(r#"signalpost_sessions_closed_total{code="other"}"#, 3.0).await;
        for code in [3000, 4100, 4321] {
            assert_eq!(server.metric(&closed(code)).await, 0.0);
        }
        let mut raw = Raw::open(&server, "1001", "").await;
        raw.send(raw::CLOSE, b"").await;
        assert_eq!(raw.frame().await, Some((raw::CLOSE, Vec::new())));
        drop(raw);
        server.metric_reaches(&closed(1005), 1.0).await;
    }

    #[tokio::test]
    async fn a_closed_session_is_gone_before_its_client_has_left() {
        // The client's half of the closing handshake may take its time.
        let server = TestServer::with("[sockets]\nclose_deadline_ms = 10_000").await;
        let mut leaving = Raw::open(&server, "1001", "").await;
        leaving.send(raw::CLOSE, &1000_u16.to_be_bytes()).await;
        assert_eq!(leaving.closed().await.0, 1000);
        assert_eq!(server.get("/users/1001").await["online"], false);
        server.post("/users/1001/messages", json!("in between")).await;
        // It is no other device: what came in between was for whoever comes next.
        let mut back = server.connect("1001").await;
        assert_eq!(back.text().await, "\"in between\"");
    }

    #[tokio::test]
    async fn opened_and_closed_sessions_are_counted() {
        let server = TestServer::start().await;
        let mut polite = server.connect("1").await;
        let lost = server.connect("2").await;
        let mut ended = server.connect("3").await;
        let _open = server.connect("4").await;
        assert_eq!(server.metric("signalpost_sessions").await, 4.0);
        polite.socket.close(Some(CloseFrame { code: 1000.into(), reason: "".into() })).await.unwrap();
        assert_eq!(polite.closed().await.0, 1000);
        drop(lost);
        end_sessions(&server, "3").await;
        assert_eq!(ended.closed().await.0, 4200);
        for code in [1000, 1006, 4200] {
            server.metric_reaches(&closed(code), 1.0).await;
        }
        assert_eq!(server.metric("signalpost_sessions_opened_total").await, 4.0);
        assert_eq!(server.metric("signalpost_sessions").await, 1.0);
        // The open socket, and the one that asks.
        server.metric_reaches("signalpost_connections", 2.0).await;
    }
}

mod stops {
    use super::*;

    #[tokio::test]
    async fn a_stop_sends_everyone_away_with_restart() {
        let mut server = TestServer::start().await;
        let mut clients = Vec::new();
        for user in 0..20 {
            let user = (user % 10).to_string();
            clients.push(if clients.len() < 10 { server.connect(&user).await } else { server.connect_v1(&user).await });
        }
        server.begin_stop();
        for client in &mut clients {
            assert_eq!(client.closed().await, (1012, "server restarts, reconnect".into()));
        }
        server.stop().await;
    }

    #[tokio::test]
    async fn a_message_from_just_before_the_stop_arrives_before_the_close() {
        let mut server = TestServer::start().await;
        let mut plain = server.connect("1001").await;
        let mut v1 = server.connect_v1("1001").await;
        v1.json().await;
        for number in 0..100 {
            server.post("/users/1001/messages", json!(number)).await;
        }
        server.begin_stop();
        for number in 0..100 {
            assert_eq!(plain.text().await, number.to_string());
            assert_eq!(v1.json().await["data"], number);
        }
        assert_eq!(plain.closed().await.0, 1012);
        let farewell = v1.json().await;
        assert_eq!(farewell["type"], "reconnect", "{farewell}");
        assert!(farewell["data"]["after_ms"].as_u64().unwrap() < 2_000, "{farewell}");
        assert_eq!(v1.closed().await.0, 1012);
        server.stop().await;
    }

    #[tokio::test]
    async fn a_client_that_is_behind_when_the_stop_begins_reads_everything_before_the_close() {
        let mut server = TestServer::with("[mailboxes]\nbytes_max = 16_777_216").await;
        let mut slow = Raw::open(&server, "1001", "").await;
        let told = fall_behind(&server, 50_000).await;
        server.begin_stop();
        stopping(&server).await;
        for number in 0..told {
            assert!(slow.text().await.starts_with(&format!("[{number},")));
        }
        assert_eq!(slow.closed().await.0, 1012);
        drop(slow);
        server.stop().await;
    }

    /// Tells user 1001, who does not read, more than the buffers between the two take; says how many messages that were.
    async fn fall_behind(server: &TestServer, size: usize) -> usize {
        let fill = "x".repeat(size);
        for told in 0..14_000_000 / size {
            server.post("/users/1001/messages", json!([told, fill])).await;
            if server.get("/users/1001").await["mailbox"]["messages"].as_u64().unwrap() > 20 {
                return told + 1;
            }
        }
        panic!("nothing reads, and yet nothing waits");
    }

    #[tokio::test]
    async fn a_request_that_is_under_way_when_the_stop_begins_is_served() {
        let mut server = TestServer::start().await;
        let mut client = server.connect("1001").await;
        let mut producer = Raw::connect(server.address).await;
        producer.write(b"POST /api/pool/users/1001/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\n\"la").await;
        server.metric_reaches("signalpost_connections", 3.0).await;
        server.begin_stop();
        stopping(&server).await;
        producer.write(b"st\"").await;
        assert!(producer.head().await.starts_with("http/1.1 202 "));
        assert_eq!(client.text().await, "\"last\"");
        assert_eq!(client.closed().await.0, 1012);
        server.stop().await;
    }

    #[tokio::test]
    async fn readiness_ends_when_the_stop_begins() {
        let mut server = TestServer::with("stop_deadline_ms = 4000").await;
        let ready = server.http.get(format!("http://{}/readyz", server.address)).send().await.unwrap();
        assert_eq!((ready.status().as_u16(), ready.text().await.unwrap()), (200, "ready\n".into()));
        // Nobody is let in during a stop; this one is in and has begun to ask.
        let mut prober = Raw::connect(server.address).await;
        prober.write(b"GET /readyz HTTP/1.1\r\n").await;
        server.metric_reaches("signalpost_connections", 2.0).await;
        server.begin_stop();
        stopping(&server).await;
        prober.write(b"Host: x\r\n\r\n").await;
        let answer = prober.rest().await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains(r#""code":"stopping""#), "{answer}");
        server.stop().await;
    }

    #[tokio::test]
    async fn a_client_that_never_reads_does_not_keep_the_server() {
        let config = "stop_deadline_ms = 400\n[sockets]\nwrite_deadline_ms = 600_000\nclose_deadline_ms = 400\n";
        let server = TestServer::with(&format!("{config}[mailboxes]\nbytes_max = 16_777_216")).await;
        let _stuck = Raw::open(&server, "1001", "").await;
        fall_behind(&server, 200_000).await;
        server.stop().await;
    }
}

mod connections {
    use super::*;

    #[tokio::test]
    async fn a_request_names_its_host_once_whatever_it_asks_for() {
        let server = TestServer::start().await;
        let ask = async |request: &str, version: &str, hosts: &str| {
            let mut raw = Raw::connect(server.address).await;
            raw.write(format!("{request} HTTP/{version}\r\n{hosts}Connection: close\r\nContent-Length: 0\r\n\r\n").as_bytes()).await;
            let answer = raw.rest().await;
            (answer[9..12].parse::<u16>().unwrap(), answer.contains(r#""code":"host""#))
        };
        let requests = ["GET /healthz", "GET /metrics", "GET /nothing", "POST /api/pool/events", "GET /api/pool/ws/1", "PUT /healthz"];
        for request in requests {
            for bad in [
                "",
                "Host: a\r\nHost: a\r\n",
                "Host:\r\n",
                "Host: a b\r\n",
                "Host: me@a\r\n",
                "Host: a/b\r\n",
                "Host: a:b\r\n",
                "Host: [a]\r\n",
            ] {
                assert_eq!(ask(request, "1.1", bad).await, (400, true), "{request} with {bad:?}");
            }
            for good in ["Host: a\r\n", "host: A.b-c:8080\r\n", "Host: [::1]:1\r\n", "Host: 127.0.0.1\r\n", "Host: a_b:\r\n"] {
                assert!(!ask(request, "1.1", good).await.1, "{request} with {good:?}");
            }
        }
        assert_eq!(ask("GET /healthz", "1.0", "").await, (200, false), "HTTP/1.0 has no Host");
        assert_eq!(ask("GET /healthz", "1.0", "Host: a\r\nHost: b\r\n").await, (400, true));
        assert_eq!(server.metric(r#"signalpost_http_problems_total{code="host"}"#).await, 8.0 * requests.len() as f64 + 1.0);
    }

    #[tokio::test]
    async fn a_request_head_that_does_not_arrive_in_time_ends_the_connection() {
        let server = TestServer::with("[http]\nheader_deadline_ms = 100").await;
        for half in ["GET /healthz HTTP/1.1\r\nHost: x\r\n", "GE", ""] {
            let mut raw = Raw::connect(server.address).await;
            raw.write(half.as_bytes()).await;
            let answer = raw.rest().await;
            assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        // A socket is past its head.
        let mut client = server.connect("1001").await;
        client.quiet().await;
        server.post("/users/1001/messages", json!(1)).await;
        assert_eq!(client.text().await, "1");
    }

    #[tokio::test]
    async fn a_request_body_that_does_not_arrive_in_time_is_refused() {
        let server = TestServer::with("[http]\nbody_deadline_ms = 100").await;
        for path in ["/events", "/users/1001/messages"] {
            let mut raw = Raw::connect(server.address).await;
            let head = format!("POST /api/pool{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n");
            raw.write(format!("{head}{{\"type\":").as_bytes()).await;
            let answer = raw.rest().await;
            assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
            assert!(answer.contains(r#""code":"body_deadline""#), "{answer}");
        }
        assert_eq!(server.metric(r#"signalpost_http_problems_total{code="body_deadline"}"#).await, 2.0);
    }

    #[tokio::test]
    async fn connections_are_bounded_and_one_that_ends_makes_room() {
        let server = TestServer::with("[http]\nconnections_max = 2").await;
        let first = server.connect("1001").await;
        let second = server.connect("1001").await;
        let mut third = Raw::connect(server.address).await;
        third.write(raw::handshake("1001", "").as_bytes()).await;
        assert!(timeout(QUIET, third.tcp.readable()).await.is_err(), "it waits for a place");
        drop(first);
        assert!(third.head().await.starts_with("http/1.1 101 "));
        // The next place serves a request.
        drop(second);
        server.post("/users/1001/messages", json!(1)).await;
        assert_eq!(third.text().await, "1");
    }

    #[tokio::test]
    async fn a_policy_that_admitted_a_client_is_told_that_it_is_gone_however_soon_that_is() {
        const CLIENTS: u64 = 20;
        let dir = plugins(&[]);
        std::fs::write(dir.path().join("policy.wasm"), Guest::sessions("(call $not_mine)").component()).unwrap();
        let server = TestServer::with(&format!("[plugins]\ndir = {:?}", dir.path())).await;
        for _ in 0..CLIENTS {
            let mut raw = Raw::connect(server.address).await;
            raw.write(raw::handshake("1001", "").as_bytes()).await;
        }
        let waiting = async {
            // Each is asked about once when it comes, and once when it goes.
            while server.get("/policies").await["policies"][0]["counters"]["calls"] != 2 * CLIENTS {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, waiting).await.expect("the policy is told of all of them");
        assert_eq!(server.metric("signalpost_sessions").await, 0.0);
    }

    #[tokio::test]
    async fn a_client_that_is_gone_at_once_leaves_nothing() {
        let server = TestServer::start().await;
        for _ in 0..20 {
            let mut raw = Raw::connect(server.address).await;
            raw.write(raw::handshake("1001", "").as_bytes()).await;
        }
        let _client: Client = server.connect("1001").await;
        server.metric_reaches("signalpost_sessions", 1.0).await;
        server.metric_reaches("signalpost_connections", 2.0).await;
    }
}
