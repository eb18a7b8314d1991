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
