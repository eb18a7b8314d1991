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
