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
