use super::*;

#[tokio::test]
async fn the_oldest_messages_make_room_in_a_full_mailbox() {
    let server = TestServer::with("[mailboxes]\nmessages_max = 10").await;
    tell_all(&server, 0..15).await;
    assert_eq!(server.metric(&dropped("evicted")).await, 5.0);
    assert_eq!(server.metric(MESSAGES).await, 10.0);
    let mut client = server.connect("1001").await;
    reads(&mut client, 5..15).await;
    client.quiet().await;
    gone(&server, client).await;
    empty(&server).await;
}

#[tokio::test]
async fn a_mailbox_is_bounded_in_bytes_too() {
    let server = TestServer::with("[mailboxes]\nbytes_max = 4000\n[events]\nevent_bytes_max = 2000").await;
    let message = |number: u64| json!(number.to_string().repeat(1000));
    for number in 0..5 {
        tell(&server, "", message(number)).await;
        assert!(server.metric(BYTES).await <= 4000.0);
    }
    // An entry costs more than its text, so that empty messages are bounded as well.
    assert_eq!(server.metric(&dropped("evicted")).await, 2.0);
    let mut client = server.connect("1001").await;
    for number in 2..5 {
        assert_eq!(client.json().await, message(number));
    }
    client.quiet().await;
}

#[tokio::test]
async fn a_receipt_says_that_all_mailboxes_together_are_full_and_connected_users_go_on() {
    let server = TestServer::with("[mailboxes]\nmessages_max = 10\ntotal_messages_max = 50").await;
    let mut connected = server.connect("connected").await;
    let mut posted = 0;
    for user in 0..5 {
        for message in 0..10 {
            let receipt = server.post(&format!("/users/{user}/messages"), json!(message)).await;
            if posted < 45 {
                assert_eq!(receipt["posted"], 1, "{posted}: {receipt}");
                posted += 1;
            } else {
                assert_eq!(receipt["dropped"], json!([{ "reason": "server_full", "count": 1, "users": ["4"] }]));
            }
        }
    }
    assert_eq!(server.metric(MESSAGES).await, 45.0);
    assert_eq!(server.metric(&dropped("server_full")).await, 5.0);
    server.post("/users/connected/messages", json!(1)).await;
    reads(&mut connected, [1]).await;
    // What is read makes room.
    let mut client = server.connect("0").await;
    reads(&mut client, 0..10).await;
    server.metric_reaches(MESSAGES, 35.0).await;
    assert_eq!(server.post("/users/4/messages", json!(5)).await["posted"], 1);
    reads(&mut server.connect("4").await, 0..6).await;
}

#[tokio::test]
async fn the_bytes_of_all_mailboxes_together_are_bounded() {
    let sizes = "bytes_max = 4000\ntotal_bytes_max = 10_000\n[events]\nevent_bytes_max = 2000";
    let server = TestServer::with(&format!("[mailboxes]\n{sizes}")).await;
    let mut full = 0;
    for user in 0..20 {
        full += usize::from(server.post(&format!("/users/{user}/messages"), json!("x".repeat(1000))).await["posted"] == 0);
    }
    // Each costs 1311 bytes (its text, 256, its id and its type), and the last tenth of the room is not for those who are away.
    assert_eq!(full, 14);
    assert_eq!(server.metric(&dropped("server_full")).await, 14.0);
    assert!(server.metric(BYTES).await <= 9_000.0);
}

#[tokio::test]
async fn messages_that_connected_readers_have_read_keep_no_other_out_of_a_full_server() {
    let server = TestServer::with("[mailboxes]\nmessages_max = 100\ntotal_messages_max = 100").await;
    let mut readers = Vec::new();
    for user in 0..4 {
        let mut reader = server.connect_v1(&user.to_string()).await;
        assert_eq!(reader.json().await["type"], "hello");
        readers.push(reader);
    }
    for round in 1..=100 {
        for (user, reader) in readers.iter_mut().enumerate() {
            assert_eq!(server.post(&format!("/users/{user}/messages"), json!(round)).await["posted"], 1, "{round}");
            assert_eq!(reader.json().await["seq"], round);
            // Half of them ack.
            if user % 2 == 0 {
                reader.send_json(json!({ "type": "ack", "seq": round })).await;
            }
        }
    }
    assert_eq!(server.post("/users/away/messages", json!(1)).await["posted"], 1);
    assert_eq!(server.metric(&dropped("server_full")).await, 0.0);
    assert!(server.metric(MESSAGES).await <= 100.0);
}

#[tokio::test]
async fn a_message_that_the_full_server_refuses_is_missed_by_a_client_that_resumes() {
    let server = TestServer::with("[mailboxes]\nmessages_max = 10\ntotal_messages_max = 10").await;
    let mut client = server.connect_v1("1001").await;
    let hello = client.json().await;
    gone(&server, client).await;
    tell_all(&server, 0..3).await;
    for message in 0..6 {
        assert_eq!(server.post("/users/2002/messages", json!(message)).await["posted"], 1);
    }
    let receipt = server.post("/users/1001/messages", json!(3)).await;
    assert_eq!(receipt["dropped"], json!([{ "reason": "server_full", "count": 1, "users": ["1001"] }]));
    let mut client = server.connect_v1("1001").await;
    assert_eq!(client.json().await["data"]["seq"], 4);
    client.send_json(json!({ "type": "resume", "epoch": hello["data"]["epoch"], "seq": 0 })).await;
    assert_eq!(client.json().await["data"], json!({ "recovered": false, "from": 0 }));
    for message in 0..3 {
        assert_eq!(client.json().await["data"], message);
    }
}

#[tokio::test]
async fn users_with_a_mailbox_are_bounded_in_number() {
    let server = TestServer::with("[mailboxes]\nmailboxes_max = 3").await;
    for user in 0..5 {
        drop(server.connect_v1(&format!("gone-{user}")).await);
    }
    server.metric_reaches(SESSIONS, 0.0).await;
    assert!(server.metric(MAILBOXES).await <= 3.0, "remembered empty ones are bounded too");
    for user in 0..3 {
        assert_eq!(server.post(&format!("/users/{user}/messages"), json!(1)).await["posted"], 1);
    }
    let receipt = server.post("/users/3/messages", json!(1)).await;
    assert_eq!(receipt["dropped"], json!([{ "reason": "server_full", "count": 1, "users": ["3"] }]));
    assert_eq!(server.post("/users/2/messages", json!(2)).await["posted"], 1);
    let mut connected = server.connect("4").await;
    assert_eq!(server.post("/users/4/messages", json!(1)).await["posted"], 1);
    reads(&mut connected, [1]).await;
}

#[tokio::test]
async fn a_collapse_key_is_bounded_as_a_policys_is() {
    let server = TestServer::start().await;
    for (key, status) in
        [("x".repeat(128), 202), ("x".repeat(129), 400), ("%C3%A9".repeat(64), 202), ("%C3%A9".repeat(65), 400), (String::new(), 400)]
    {
        let url = server.url(&format!("/users/1001/messages?collapse_key={key}"));
        let response = server.http.post(url).body("1").send().await.unwrap();
        assert_eq!(response.status(), status, "{key}");
        if status == 400 {
            assert_eq!(response.json::<Value>().await.unwrap()["code"], "collapse_key");
        }
    }
    // What is kept counts: 256, the body, the id, the type, and the key.
    assert_eq!(server.metric(BYTES).await, 2.0 * f64::from(256 + 1 + 36 + 17 + 128));
}

#[tokio::test]
async fn a_session_formats_little_for_a_client_that_does_not_read() {
    const MESSAGES: u64 = 200;
    // Makes 100 KB of anything: a list with much white space.
    let body = "(memory.fill (i32.const 8192) (i32.const 32) (i32.const 100000))
            (i32.store8 (i32.const 8192) (i32.const 91)) (i32.store8 (i32.const 108191) (i32.const 93))
            (call $shaped (i32.const 8192) (i32.const 100000))";
    let dir = plugins(&[]);
    std::fs::write(dir.path().join("amplifier.wasm"), Guest::formatting(body).component()).unwrap();
    let settings = format!("[sockets]\nwrite_deadline_ms = 600_000\n[plugins]\ndir = {:?}", dir.path());
    let server = TestServer::with(&settings).await;
    tell_all(&server, 0..MESSAGES).await;
    let mut slow = Raw::open(&server, "1001", "").await;
    let formatted = async || server.get("/policies").await["policies"][0]["counters"]["calls"].as_u64().unwrap();
    let mut calls = 0;
    loop {
        sleep(Duration::from_millis(200)).await;
        let now = formatted().await;
        if now > 0 && now == calls {
            break;
        }
        calls = now;
    }
    // The buffers between the two take some megabytes; the session holds one message more.
    assert!(calls < MESSAGES / 2, "{calls} were formatted");
    for _ in 0..MESSAGES {
        assert_eq!(slow.text().await.len(), 100_000);
    }
    assert_eq!(formatted().await, MESSAGES, "and each once");
}

#[tokio::test]
async fn messages_that_a_policy_drops_hold_up_nothing() {
    // Answers "nothing" for every reader.
    let dir = plugins(&[]);
    let body = "(memory.fill (i32.const 512) (i32.const 0) (i32.const 20)) (i32.const 512)";
    std::fs::write(dir.path().join("silence.wasm"), Guest::formatting(body).component()).unwrap();
    // One message for each write: the next one is looked at although the last wrote nothing.
    let server = TestServer::with(&format!("[sockets]\nwrite_bytes_max = 1\n[plugins]\ndir = {:?}", dir.path())).await;
    tell_all(&server, 0..20).await;
    let mut client = server.connect("1001").await;
    server.metric_reaches(&dropped("formatted"), 20.0).await;
    server.metric_reaches(MESSAGES, 0.0).await;
    client.quiet().await;
    gone(&server, client).await;
    empty(&server).await;
}
