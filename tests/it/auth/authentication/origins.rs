use super::*;

/// What published bypasses looked like: prefixes, suffixes, substrings, other schemes and ports, null, user info, and names that were made to
/// mean this machine. All get the same answer, before a handshake.
#[tokio::test]
async fn pages_of_other_origins_get_neither_a_socket_nor_an_answer() {
    let server = TestServer::with("[auth]\norigins = [\"https://app.example.com\"]\n").await;
    let origin = |origin: &str| [("origin", origin.to_owned())];
    let own = format!("http://{}", server.address);
    let good = ["https://app.example.com", "https://app.example.com:443", "https://App.Example.com", &own];
    for good in good {
        ask(&server, "1001", &origin(good)).await.unwrap_or_else(|(_, body)| panic!("{good}: {body}"));
    }
    let (port, other) = (server.address.port(), server.address.port() ^ 1);
    let bad = [
        "https://evil.net",
        "null",
        "",
        "*",
        "https://app.example.com.evil.net",
        "https://evilapp.example.com",
        "https://evil.net/https://app.example.com",
        "https://evil.net#https://app.example.com",
        "https://app.example.com@evil.net",
        "https://appxexample.com",
        "http://app.example.com",
        "https://app.example.com:444",
        "https://app.example.com/",
        "https://app.example.com,https://evil.net",
        "https://app.example.com:80",
        "HTTP://APP.EXAMPLE.COM",
        "https://sub.app.example.com",
        "https://example.com",
        "app.example.com",
        "file://",
        "ws://127.0.0.1",
        "http://localhost",
        &format!("http://localhost:{port}"),
        &format!("http://127.0.0.1:{other}"),
        &format!("http://127.0.0.1:{port}.evil.net"),
    ];
    assert!(bad.len() >= 15);
    let mut answers = std::collections::BTreeSet::new();
    for bad in bad {
        let (status, body) = ask(&server, "1001", &origin(bad)).await.err().unwrap_or_else(|| panic!("{bad} was let in"));
        assert_eq!(status, 403, "{bad}: {body}");
        answers.insert(body);
        let posted = server.http.post(server.url("/events")).header("origin", bad).json(&json!({ "type": "x", "data": {} }));
        let posted = posted.send().await.unwrap();
        assert_eq!(posted.status(), 403, "{bad}");
        answers.insert(posted.text().await.unwrap());
    }
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(server.metric("signalpost_sessions_opened_total").await, good.len() as f64);
    assert_eq!(server.metric("signalpost_events_total{outcome=\"unwanted\"}").await, 0.0);
}

/// DNS rebinding: the page's own name means this machine for a moment, and its requests are of the same origin.
#[tokio::test]
async fn a_name_that_was_made_to_mean_this_machine_opens_nothing_where_nobody_is_asked() {
    let rebound = async |server: &TestServer| {
        let host = format!("evil.net:{}", server.address.port());
        let request = format!(
            "POST /api/pool/users/1/messages HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nAuthorization: Bearer key\r\n\
             Connection: close\r\nContent-Length: 1\r\n\r\n1"
        );
        let mut raw = crate::support::raw::Raw::connect(server.address).await;
        raw.write(request.as_bytes()).await;
        raw.rest().await.get(9..12).unwrap_or_default().to_owned()
    };
    assert_eq!(rebound(&TestServer::start().await).await, "403");
    let dir = tempfile::tempdir().unwrap();
    let digest = signalpost::internals::benching::digest("key");
    let keys = format!("[[auth.keys]]\nname = \"x\"\nsha256 = \"{digest}\"\nscopes = [\"publish\"]\n");
    let asks = asking(dir.path(), "", &keys).await;
    assert_eq!(rebound(&asks).await, "202", "behind a name, where keys and tokens are asked for");
}
