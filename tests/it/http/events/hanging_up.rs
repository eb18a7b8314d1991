use super::*;

#[tokio::test]
async fn a_producer_that_hangs_up_within_its_body_has_published_nothing() {
    let mut witness = Witness::start().await;
    let body = br#"{"type":"a","data":"half"}"#;
    // Its length is a promise that is not kept, and so is a list of chunks without its end.
    let heads = [
        format!("Content-Length: {}\r\n\r\n", body.len() + 1).into_bytes(),
        format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len()).into_bytes(),
    ];
    for (number, head) in heads.iter().enumerate() {
        let mut tcp = tokio::net::TcpStream::connect(witness.server.address).await.unwrap();
        let start = b"POST /api/pool/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
        tcp.write_all(&[&start[..], head, body].concat()).await.unwrap();
        if number == 1 {
            tcp.write_all(b"\r\n").await.unwrap();
        }
        tcp.shutdown().await.unwrap();
        // The server gives up on it: whatever it may still say, it closes.
        let mut answer = Vec::new();
        tokio::time::timeout(SOON, tcp.read_to_end(&mut answer)).await.expect("the server closes").ok();
        assert!(!answer.starts_with(b"HTTP/1.1 202"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(witness.server.metric(r#"signalpost_events_total{outcome="routed"}"#).await, 0.0);
    witness.server.publish("a", json!("whole")).await;
    assert_eq!(witness.data.text().await, "\"whole\"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_that_hangs_up_before_its_answer_has_published_to_everyone() {
    const PRODUCERS: usize = 50;
    let server = TestServer::start().await;
    let mut riders = Vec::new();
    for user in 0..20 {
        riders.push(server.connect(&user.to_string()).await);
    }
    for round in 0..PRODUCERS {
        let shares: Vec<Value> = (0..20).map(|user| json!({ "rider_id": user, "amount": round, "currency": "EUR" })).collect();
        let body = json!({ "type": "pooling.fare.updated", "data": { "pool_id": 7, "shares": shares } }).to_string();
        let head = format!("POST /api/pool/events HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        let mut tcp = tokio::net::TcpStream::connect(server.address).await.unwrap();
        tcp.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        drop(tcp);
        for rider in &mut riders {
            assert_eq!(rider.json().await["amount"], round);
        }
    }
    assert_eq!(server.metric("signalpost_messages_posted_total").await, (20 * PRODUCERS) as f64);
}
