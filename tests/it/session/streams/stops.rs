use super::*;

#[tokio::test]
async fn a_stop_ends_streams_with_a_time_to_come_back_and_answers_new_ones_alike() {
    let mut server = TestServer::with("stop_notice_ms = 1000\nstop_return_within_ms = 500").await;
    let mut open = Vec::new();
    for user in 0..20 {
        open.push(Events::open(&server, &user.to_string()).await);
    }
    server.begin_stop();
    let ready = format!("http://{}/readyz", server.address);
    timeout(SOON, async { while server.http.get(&ready).send().await.unwrap().status() != 503 {} }).await.unwrap();
    server.post("/users/3/messages", json!("late")).await;
    let mut late = Events::of(server.http.get(server.url("/sse/late"))).await;
    let mut waits = Vec::new();
    for events in open.iter_mut().chain([&mut late]) {
        let (code, close) = events.closed().await;
        let after_ms = close["after_ms"].as_u64().unwrap();
        assert_eq!((code, &*events.retry), (1012, &*after_ms.to_string()), "{close}");
        assert!(after_ms < 500, "{close}");
        waits.push(after_ms);
    }
    waits.dedup();
    assert!(waits.len() > 10, "not all at once: {waits:?}");
    timeout(SOON, server.stop()).await.expect("streams don't keep the server");
}

#[tokio::test]
async fn a_stream_that_is_behind_when_the_stop_begins_reads_everything_before_the_end() {
    let mut server = TestServer::with("[sockets]\nwrite_deadline_ms = 10_000\n[mailboxes]\nbytes_max = 67_108_864").await;
    let mut events = Events::open(&server, "1001").await;
    for n in 0..40 {
        server.post("/users/1001/messages", json!([n, "x".repeat(200_000)])).await;
    }
    server.begin_stop();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for n in 0..40 {
        assert_eq!(events.data().await[0], n);
    }
    assert_eq!(events.closed().await.0, 1012);
}
