use super::*;

/// What the server closes a socket with, whatever it says before.
async fn close_code(client: &mut Client) -> Option<u16> {
    while let Some(Ok(message)) = timeout(SOON, client.next()).await.unwrap() {
        if let Message::Close(Some(close)) = message {
            return Some(close.code.into());
        }
    }
    None
}

#[tokio::test]
async fn bytes_are_counted_whatever_frames_they_are_in() {
    let server = TestServer::with("sockets.bytes_per_second_max = 1_000").await;
    let mut calm = server.connect("1").await;
    calm.send(Message::Ping(vec![0; 100].into())).await;
    assert!(calm.message().await.is_pong());
    let mut pinging = server.connect("2").await;
    for _ in 0..100 {
        let _ = pinging.socket.feed(Message::Ping(vec![0; 120].into())).await;
    }
    let _ = pinging.socket.flush().await;
    assert_eq!(close_code(&mut pinging).await, Some(4102));
    calm.send(Message::Ping("still here".into())).await;
    assert_eq!(calm.message().await, Message::Pong("still here".into()));
}

#[tokio::test]
async fn an_address_has_so_many_connections_and_those_stay() {
    let server = TestServer::with("http.connections_per_address_max = 2").await;
    let mut first = server.connect("1").await;
    let second = server.connect("2").await;
    // Nothing is read from it: it ends.
    let mut third = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(SOON, tokio::io::AsyncReadExt::read_to_end(&mut third, &mut answer)).await.expect("the connection ends");
    assert!(answer.is_empty());
    drop(second);
    let again = async {
        while server.http.get(server.url("/users/1")).send().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, again).await.expect("a place is free again");
    assert!(server.metric("signalpost_connections_refused_total").await >= 1.0);
    first.send(Message::Ping("still here".into())).await;
    assert_eq!(first.message().await, Message::Pong("still here".into()));
}

#[tokio::test]
async fn who_floods_is_told_and_nobody_else_notices() {
    let server = TestServer::with("[sockets]\nmessages_per_second_max = 2\nhandshakes_per_second_max = 5\n").await;
    let mut neighbour = server.connect("2").await;
    let mut flooding = server.connect("1").await;
    for _ in 0..30 {
        let _ = flooding.socket.feed(Message::text("x")).await;
    }
    let _ = flooding.socket.flush().await;
    assert_eq!(close_code(&mut flooding).await, Some(4102));
    let (mut turned_away, mut retry_after) = (0, 0);
    for _ in 0..20 {
        let plain = server.http.get(server.url("/ws/3")).header("connection", "upgrade").header("upgrade", "websocket");
        let plain =
            plain.header("sec-websocket-version", "13").header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==").send().await.unwrap();
        if plain.status() == 503 {
            assert!(plain.headers()["retry-after"].to_str().unwrap().parse::<u32>().unwrap() > 0);
            retry_after += 1;
        }
        if let Err((status, body)) = ask(&server, "3", &[]).await {
            assert_eq!(status, 503, "{body}");
            assert!(body.contains("too_many_handshakes"), "{body}");
            turned_away += 1;
        }
    }
    assert!(turned_away > 5 && retry_after > 5, "{turned_away} {retry_after}");
    server.post("/users/2/messages", json!(7)).await;
    assert_eq!(neighbour.json().await, json!(7));
}
