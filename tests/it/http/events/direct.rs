use super::*;

#[tokio::test]
async fn a_direct_message_is_any_json_value_and_reaches_the_socket_exactly() {
    let server = TestServer::start().await;
    let mut user = server.connect("1001").await;
    for text in [
        "7",
        "-0.0",
        "123456789012345678901234567890",
        "\"text\"",
        "\"\\u00e4 \\ud83d\\ude97 /\"",
        "null",
        "true",
        "[]",
        "[1, 2,3]",
        "{}",
        r#"{"b":1,"a":2,"b":3}"#,
        r#"{ "type" : "hello" }"#,
        "\"\"",
    ] {
        let receipt = request(&server, Method::POST, "/users/1001/messages", &[], format!("\n {text}\t")).await.accepted();
        assert_eq!((&receipt["recipients"], &receipt["posted"]), (&json!(1), &json!(1)));
        assert_eq!(user.text().await, text);
    }
    // Whatever a client says its media type is: it can only be JSON.
    request(&server, Method::POST, "/users/1001/messages", &[("content-type", "text/plain")], "1").await.accepted();
    assert_eq!(user.text().await, "1");
}

#[tokio::test]
async fn a_user_id_is_any_text_in_the_address() {
    let server = TestServer::start().await;
    for (path, user) in [
        ("a%20b", "a%20b"),
        ("a+b", "a%2Bb"),
        ("100%25", "100%25"),
        ("%E7%94%A8%E6%88%B7", "用户"),
        ("a%2Fb", "a%2Fb"),
        ("messages", "messages"),
        ("me@example.com", "me@example.com"),
    ] {
        let mut client = server.connect(user).await;
        request(&server, Method::POST, &format!("/users/{path}/messages"), &[], "1").await.accepted();
        assert_eq!(client.text().await, "1");
    }
}

#[tokio::test]
async fn a_bad_direct_message_is_refused() {
    let server = TestServer::with("[events]\nevent_bytes_max = 1024\nbody_bytes_max = 2048").await;
    let mut user = server.connect("1001").await;
    for (path, body, status, code) in [
        ("/users/1001/messages", b"".to_vec(), 400, "json"),
        ("/users/1001/messages", b"{".into(), 400, "json"),
        ("/users/1001/messages", b"hello".into(), 400, "json"),
        ("/users/1001/messages", b"1 2".into(), 400, "json"),
        ("/users/1001/messages", b"\"\xff\"".into(), 400, "json"),
        ("/users/1001/messages", br#""\ud800""#.into(), 400, "json"),
        ("/users/1001/messages", br#"{"\udfff":1}"#.into(), 400, "json"),
        ("/users/1001/messages", format!("\"{}\"", "x".repeat(1024)).into(), 413, "event_too_large"),
        ("/users/1001/messages", vec![b' '; 2049], 413, "body_too_large"),
        ("/users/1001/messages?ttl=5", b"1".into(), 400, "query"),
        ("/users/1001/messages?keep_ms", b"1".into(), 400, "query"),
        ("/users/1001/messages?ttl_ms=soon", b"1".into(), 400, "query"),
        ("/users/%20/messages", b"1".into(), 400, "user_id"),
        ("/users/%0A/messages", b"1".into(), 400, "user_id"),
    ] {
        request(&server, Method::POST, path, &[], body).await.is_problem(status, code);
    }
    let long = format!("/users/{}/messages", "x".repeat(129));
    request(&server, Method::POST, &long, &[], "1").await.is_problem(400, "user_id");
    server.post("/users/1001/messages", json!("still here")).await;
    assert_eq!(user.text().await, "\"still here\"");
}
