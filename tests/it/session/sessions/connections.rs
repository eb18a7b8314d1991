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
