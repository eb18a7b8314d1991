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
