use super::*;

#[tokio::test]
async fn messages_that_come_while_a_user_is_away_are_read_in_order_on_connect() {
    let server = TestServer::start().await;
    tell_all(&server, 0..20).await;
    assert_eq!(server.metric(MESSAGES).await, 20.0);
    let mut client = server.connect("1001").await;
    reads(&mut client, 0..20).await;
    tell(&server, "", json!(20)).await;
    reads(&mut client, [20]).await;
    client.quiet().await;
}

#[tokio::test]
async fn a_kept_message_is_read_once() {
    let server = TestServer::start().await;
    tell_all(&server, 0..3).await;
    let mut client = server.connect("1001").await;
    reads(&mut client, 0..3).await;
    gone(&server, client).await;
    let mut again = server.connect("1001").await;
    again.quiet().await;
    tell_all(&server, 3..4).await;
    reads(&mut again, 3..4).await;
}

#[tokio::test]
async fn a_second_device_reads_what_comes_from_then_on() {
    let server = TestServer::start().await;
    tell_all(&server, 0..2).await;
    let mut first = server.connect("1001").await;
    reads(&mut first, 0..2).await;
    let mut second = server.connect("1001").await;
    let mut third = server.connect_v1("1001").await;
    assert_eq!(third.json().await["type"], "hello");
    second.quiet().await;
    third.quiet().await;
    tell_all(&server, 2..3).await;
    reads(&mut first, 2..3).await;
    reads(&mut second, 2..3).await;
    assert_eq!(third.json().await["data"], 2);
}

#[tokio::test]
async fn messages_that_only_a_slow_device_had_to_read_are_kept_when_it_leaves_while_another_reads_on() {
    let server = TestServer::start().await;
    tell_all(&server, 0..3).await;
    // It waits for its client's resume, and so has been sent nothing.
    let mut slow = server.connect_v1("1001").await;
    assert_eq!(slow.json().await["type"], "hello");
    let mut second = server.connect("1001").await;
    tell_all(&server, 3..4).await;
    reads(&mut second, 3..4).await;
    gone(&server, slow).await;
    gone(&server, second).await;
    let mut third = server.connect("1001").await;
    reads(&mut third, 0..3).await;
    // What the other device has read is not read again.
    third.quiet().await;
    gone(&server, third).await;
    server.connect("1001").await.quiet().await;
}

#[tokio::test]
async fn a_message_for_open_sessions_only_is_dropped_if_there_are_none() {
    let server = TestServer::start().await;
    let receipt = server.post("/users/1001/messages?keep_ms=0", json!(1)).await;
    assert_eq!((&receipt["recipients"], &receipt["posted"]), (&json!(1), &json!(0)));
    assert_eq!(receipt["dropped"], json!([{ "reason": "away", "count": 1, "users": ["1001"] }]));
    assert_eq!(server.metric(&dropped("away")).await, 1.0);
    empty(&server).await;
    // Also where the mailbox is there for another reason.
    tell(&server, "", json!(2)).await;
    assert_eq!(server.post("/users/1001/messages?keep_ms=0", json!(3)).await["posted"], 0);
    let mut client = server.connect("1001").await;
    reads(&mut client, [2]).await;
    tell(&server, "?keep_ms=0", json!(4)).await;
    reads(&mut client, [4]).await;
}

#[tokio::test]
async fn a_message_past_its_time_to_live_is_not_read() {
    let server = TestServer::start().await;
    tell(&server, "?ttl_ms=50", json!(1)).await;
    tell(&server, "?ttl_ms=60000", json!(2)).await;
    tell(&server, "", json!(3)).await;
    sleep(Duration::from_millis(60)).await;
    let mut client = server.connect("1001").await;
    reads(&mut client, [2, 3]).await;
    assert_eq!(server.metric(&dropped("expired")).await, 1.0);
    // In time it is read.
    tell(&server, "?ttl_ms=60000", json!(4)).await;
    reads(&mut client, [4]).await;
    assert_eq!(server.metric(&dropped("expired")).await, 1.0);
}

#[tokio::test]
async fn an_uncollected_message_is_counted_and_costs_nothing_any_more() {
    let server = TestServer::start().await;
    server.post("/users/1/messages?keep_ms=50", json!(1)).await;
    server.post("/users/2/messages?ttl_ms=50", json!(1)).await;
    server.post("/users/2/messages?ttl_ms=50", json!(2)).await;
    assert_eq!(server.metric(MAILBOXES).await, 2.0);
    server.metric_reaches(&dropped("uncollected"), 1.0).await;
    server.metric_reaches(&dropped("expired"), 2.0).await;
    empty(&server).await;
    server.connect("1").await.quiet().await;
}

#[tokio::test]
async fn a_message_is_kept_for_the_servers_keep_time_at_most() {
    let server = TestServer::with("[mailboxes]\nkeep_ms = 50").await;
    tell(&server, "?keep_ms=600000", json!(1)).await;
    server.metric_reaches(&dropped("uncollected"), 1.0).await;
    empty(&server).await;
}

#[tokio::test]
async fn a_user_with_nothing_kept_costs_no_memory() {
    let server = TestServer::start().await;
    tell_all(&server, 0..3).await;
    let mut client = server.connect("1001").await;
    reads(&mut client, 0..3).await;
    tell_all(&server, 3..6).await;
    reads(&mut client, 3..6).await;
    // What was read is not kept, also while the session goes on.
    server.metric_reaches(MESSAGES, 0.0).await;
    assert_eq!(server.metric(MAILBOXES).await, 1.0);
    gone(&server, client).await;
    empty(&server).await;
    for reason in ["uncollected", "expired", "evicted", "collapsed", "away"] {
        assert_eq!(server.metric(&dropped(reason)).await, 0.0, "{reason}");
    }
}

#[tokio::test]
async fn an_empty_mailbox_is_remembered_for_the_resume_time_only() {
    let server = TestServer::with("[mailboxes]\nkeep_ms = 60_000\nresume_ms = 100").await;
    let mut client = server.connect_v1("1001").await;
    client.json().await;
    tell_all(&server, 0..3).await;
    for _ in 0..3 {
        client.json().await;
    }
    client.send_json(json!({ "type": "ack", "seq": 3 })).await;
    gone(&server, client).await;
    // What could be resumed from is kept; when that is over, the mailbox is remembered no longer.
    assert_eq!((server.metric(MAILBOXES).await, server.metric(MESSAGES).await), (1.0, 3.0));
    server.stop().await;
    let server = TestServer::with("[mailboxes]\nkeep_ms = 100\nresume_ms = 100").await;
    let mut client = server.connect_v1("1001").await;
    client.json().await;
    tell_all(&server, 0..3).await;
    for _ in 0..3 {
        client.json().await;
    }
    client.send_json(json!({ "type": "ack", "seq": 3 })).await;
    gone(&server, client).await;
    empty(&server).await;
    assert_eq!(server.metric(&dropped("uncollected")).await, 0.0, "all was acked");
}

#[tokio::test]
async fn a_newer_message_with_the_same_key_replaces_an_unread_one() {
    let server = TestServer::start().await;
    for (query, message) in [("?collapse_key=k", 1), ("", 2), ("?collapse_key=k", 3), ("?collapse_key=other", 4), ("?collapse_key=k", 5)] {
        tell(&server, query, json!(message)).await;
    }
    server.post("/users/2002/messages?collapse_key=k", json!(6)).await;
    assert_eq!(server.metric(&dropped("collapsed")).await, 2.0);
    let mut client = server.connect("1001").await;
    reads(&mut client, [2, 4, 5]).await;
    client.quiet().await;
    reads(&mut server.connect("2002").await, [6]).await;
}

#[tokio::test]
async fn a_message_that_was_read_is_not_counted_as_collapsed() {
    let server = TestServer::start().await;
    let mut client = server.connect_v1("1001").await;
    client.json().await;
    for message in 0..5 {
        tell(&server, "?collapse_key=k", json!(message)).await;
        assert_eq!(client.json().await["data"], message);
    }
    assert_eq!(server.metric(&dropped("collapsed")).await, 0.0);
    assert_eq!(server.metric(MESSAGES).await, 1.0, "of the same key only the newest is there to resume from");
}
