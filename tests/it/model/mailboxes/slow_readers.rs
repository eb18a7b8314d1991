use super::*;

/// Greets each client with a message.
const GREETING: &str = "(drop (call $silent)) (memory.fill (i32.const 900) (i32.const 0) (i32.const 16))
        (i32.store (i32.const 836) (i32.const 900)) (i32.store (i32.const 840) (i32.const 1))
        (i32.store (i32.const 904) (global.get $reply)) (i32.store (i32.const 908) (global.get $reply_bytes))
        (i32.const 832)";

#[tokio::test]
async fn a_reader_gets_into_its_own_full_mailbox_while_it_goes_on_filling() {
    let dir = plugins(&[]);
    let greeter = Guest { strings: &[("reply", "\"hello\"")], opened: GREETING, ..Guest::sessions("(call $not_mine)") };
    std::fs::write(dir.path().join("greeter.wasm"), greeter.component()).unwrap();
    let settings = "[mailboxes]\nmessages_max = 10\n[sockets]\nresume_wait_ms = 60_000";
    let server = TestServer::with(&format!("{settings}\n[plugins]\ndir = {:?}", dir.path())).await;
    tell_all(&server, 0..12).await;
    let mut plain = server.connect("1001").await;
    reads(&mut plain, 3..12).await;
    assert_eq!(plain.text().await, "\"hello\"");
    gone(&server, plain).await;
    tell_all(&server, 12..24).await;
    let mut v1 = server.connect_v1("1001").await;
    assert_eq!(v1.json().await["data"]["resume_within_ms"], 60_000);
    tell_all(&server, 24..30).await;
    v1.send_json(json!({ "type": "resume" })).await;
    assert_eq!(v1.json().await["data"]["recovered"], false);
    let mut read = Vec::new();
    for _ in 0..10 {
        read.push(v1.json().await["data"].clone());
    }
    assert_eq!(read.iter().filter_map(Value::as_u64).collect::<Vec<_>>(), (21..30).collect::<Vec<_>>());
    assert_eq!(server.metric(CLOSED).await, 0.0);
}

#[tokio::test]
async fn a_message_that_is_refused_for_more_important_ones_is_missed_by_a_client_that_resumes() {
    // Its messages are more important than direct ones.
    let dir = plugins(&[]);
    let important = Guest {
        strings: &[("reader", "1001"), ("what", "1")],
        ..Guest::routing(
            "(drop (call $tell (global.get $reader) (global.get $reader_bytes) (global.get $what) (global.get $what_bytes)))
             (i32.store8 (i32.const 424) (i32.const 2)) (i32.const 288)",
        )
    };
    std::fs::write(dir.path().join("important.wasm"), important.component()).unwrap();
    let settings = "[mailboxes]\nmessages_max = 3\n[sockets]\nresume_wait_ms = 60_000";
    let server = TestServer::with(&format!("{settings}\n[plugins]\ndir = {:?}", dir.path())).await;
    let mut client = server.connect_v1("1001").await;
    let hello = client.json().await;
    for seq in 1..=3 {
        server.publish("x", json!(null)).await;
        assert_eq!(client.json().await["seq"], seq);
    }
    gone(&server, client).await;
    for _ in 0..3 {
        server.publish("x", json!(null)).await;
    }
    // They are kept for the client, and nothing of them may go.
    let receipt = server.post("/users/1001/messages", json!(1)).await;
    assert_eq!(receipt["dropped"], json!([{ "reason": "mailbox_full", "count": 1, "users": ["1001"] }]));
    let mut client = server.connect_v1("1001").await;
    assert_eq!(client.json().await["data"]["seq"], 7);
    client.send_json(json!({ "type": "resume", "epoch": hello["data"]["epoch"], "seq": 3 })).await;
    assert_eq!(client.json().await["data"], json!({ "recovered": false, "from": 3 }));
    for seq in 4..=6 {
        assert_eq!(client.json().await["seq"], seq);
    }
    client.quiet().await;
}

/// About 16 KiB.
fn large(number: u64) -> Value {
    json!({ "number": number, "fill": "x".repeat(16_384) })
}

fn number(text: &str) -> u64 {
    serde_json::from_str::<Value>(text).unwrap()["number"].as_u64().unwrap()
}

const CLOSED: &str = r#"signalpost_sessions_closed_total{code="4100"}"#;

/// Far more than the buffers between a server and a client take.
const MESSAGES_MAX: u64 = 1000;

#[tokio::test]
async fn a_reader_that_falls_behind_the_mailbox_is_closed_with_4100_and_others_do_not_notice() {
    let sizes = "bytes_max = 524_288\n[sockets]\nwrite_deadline_ms = 600_000";
    let server = TestServer::with(&format!("[mailboxes]\n{sizes}")).await;
    let mut slow = Raw::open(&server, "1001", "").await;
    let mut fast = server.connect("1001").await;
    let mut other = server.connect("2002").await;
    let mut told = 0;
    while told < MESSAGES_MAX {
        for user in ["1001", "2002"] {
            assert_eq!(server.post(&format!("/users/{user}/messages"), large(told)).await["posted"], 1);
        }
        assert_eq!(number(&fast.text().await), told);
        assert_eq!(number(&other.text().await), told);
        told += 1;
        let presence = server.get("/users/1001").await;
        assert!(presence["mailbox"]["bytes"].as_u64().unwrap() <= 524_288, "{presence}");
        if presence["sessions"].as_array().unwrap().len() == 1 {
            break;
        }
    }
    server.metric_reaches(CLOSED, 1.0).await;
    assert!(server.metric(&dropped("evicted")).await >= 1.0, "what it missed is counted");
    // What reached it has no gap.
    let mut got = 0;
    while let Some((crate::support::raw::TEXT, text)) = slow.frame().await {
        assert_eq!(number(std::str::from_utf8(&text).unwrap()), got);
        got += 1;
    }
    assert!(got < told, "{got} of {told}");
    // The others go on, and what they have read is not kept for the one that is gone.
    for message in told..told + 10 {
        server.post("/users/1001/messages", large(message)).await;
        assert_eq!(number(&fast.text().await), message);
    }
    fast.quiet().await;
    other.quiet().await;
    server.metric_reaches(MESSAGES, 0.0).await;
    assert_eq!(server.metric(CLOSED).await, 1.0);
}

#[tokio::test]
async fn a_reader_that_takes_nothing_for_the_write_deadline_is_closed_with_4100() {
    let sizes = "bytes_max = 67_108_864\n[sockets]\nwrite_deadline_ms = 200\nclose_deadline_ms = 100";
    let server = TestServer::with(&format!("[mailboxes]\n{sizes}")).await;
    let _slow = Raw::open(&server, "1001", "").await;
    let mut other = server.connect("2002").await;
    for message in 0..MESSAGES_MAX {
        server.post("/users/1001/messages", large(message)).await;
        server.post("/users/2002/messages", json!(message)).await;
        assert_eq!(other.text().await, message.to_string());
        if message % 16 == 0 && server.get("/users/1001").await["online"] == false {
            break;
        }
    }
    server.metric_reaches(CLOSED, 1.0).await;
    assert_eq!(server.metric(&dropped("evicted")).await, 0.0, "its mailbox was not full");
    // What it did not take is kept for when it comes back.
    assert!(server.get("/users/1001").await["mailbox"]["messages"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn a_reader_whose_messages_are_kept_for_too_long_is_closed_with_4100() {
    let sizes = "bytes_max = 67_108_864\nkeep_ms = 300\n[sockets]\nwrite_deadline_ms = 600_000\nclose_deadline_ms = 100";
    let server = TestServer::with(&format!("[mailboxes]\n{sizes}")).await;
    let _slow = Raw::open(&server, "1001", "").await;
    for message in 0..MESSAGES_MAX {
        server.post("/users/1001/messages", large(message)).await;
        if server.get("/users/1001").await["mailbox"]["messages"].as_u64().is_some_and(|messages| messages > 20) {
            break;
        }
    }
    server.metric_reaches(CLOSED, 1.0).await;
    assert!(server.metric(&dropped("uncollected")).await >= 1.0);
    empty(&server).await;
}

#[tokio::test]
async fn a_reader_that_pauses_and_reads_on_misses_nothing() {
    let server = TestServer::with("[mailboxes]\nbytes_max = 67_108_864").await;
    let mut slow = Raw::open(&server, "1001", "").await;
    let mut told = 0;
    let mut waiting = 0;
    while told < MESSAGES_MAX && waiting <= 20 {
        server.post("/users/1001/messages", large(told)).await;
        told += 1;
        waiting = server.get("/users/1001").await["mailbox"]["messages"].as_u64().unwrap();
    }
    assert!(waiting > 20, "{waiting} of {told} wait");
    for message in 0..told {
        assert_eq!(number(&slow.text().await), message);
    }
    server.metric_reaches(MESSAGES, 0.0).await;
    assert_eq!(server.metric(SESSIONS).await, 1.0);
}
