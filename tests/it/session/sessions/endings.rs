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
