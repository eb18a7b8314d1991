use super::*;

/// A session that may resume, with what it was told.
struct Session {
    client: Client,
    hello: Value,
}

impl Session {
    async fn open(server: &TestServer) -> Session {
        let mut client = server.connect_v1("1001").await;
        let hello = client.json().await;
        assert_eq!(hello["type"], "hello");
        Session { client, hello }
    }

    /// Opens, asks to go on, and expects the answer before any message.
    async fn resume(server: &TestServer, epoch: &str, seq: u64, answer: Value) -> Session {
        let mut session = Session::open(server).await;
        session.ask(epoch, seq, answer).await;
        session
    }

    async fn ask(&mut self, epoch: &str, seq: u64, answer: Value) {
        self.client.send_json(json!({ "type": "resume", "epoch": epoch, "seq": seq })).await;
        assert_eq!(self.client.json().await, json!({ "type": "resume", "data": answer }));
    }

    /// Asks to go on from where the server would.
    async fn begin(&mut self, answer: Value) {
        self.client.send_json(json!({ "type": "resume" })).await;
        assert_eq!(self.client.json().await, json!({ "type": "resume", "data": answer }));
    }

    fn epoch(&self) -> String {
        self.hello["data"]["epoch"].as_str().unwrap().to_owned()
    }

    /// Reads messages whose data is their seq.
    async fn reads(&mut self, messages: impl IntoIterator<Item = u64>) {
        for message in messages {
            assert_eq!(self.client.json().await, json!({ "seq": message, "type": "message", "data": message }));
        }
    }

    /// The connection is cut, without a word.
    async fn cut(self, server: &TestServer) {
        gone(server, self.client).await;
    }
}

fn recovered(recovered: bool, from: u64) -> Value {
    json!({ "recovered": recovered, "from": from })
}

/// A mailbox of which messages 1 to 3 were read and the connection then lost; its epoch.
async fn read_and_cut(server: &TestServer) -> String {
    let mut session = Session::open(server).await;
    assert_eq!(session.hello["data"]["resume_within_ms"], json!(null));
    tell_all(server, 1..4).await;
    session.reads(1..4).await;
    let epoch = session.epoch();
    session.cut(server).await;
    epoch
}

#[tokio::test]
async fn after_a_cut_exactly_the_missed_messages_follow() {
    let server = TestServer::start().await;
    let epoch = read_and_cut(&server).await;
    tell_all(&server, 4..7).await;
    let mut session = Session::resume(&server, &epoch, 3, recovered(true, 3)).await;
    session.reads(4..7).await;
    tell_all(&server, 7..8).await;
    session.reads(7..8).await;
    session.client.quiet().await;
    assert_eq!((&session.hello["data"]["seq"], session.epoch()), (&json!(6), epoch));
    assert_eq!(server.metric(r#"signalpost_resumes_total{recovered="true"}"#).await, 1.0);
}

#[tokio::test]
async fn messages_on_the_way_when_the_connection_broke_are_sent_again() {
    let server = TestServer::start().await;
    let epoch = read_and_cut(&server).await;
    let mut session = Session::resume(&server, &epoch, 1, recovered(true, 1)).await;
    session.reads(2..4).await;
    session.client.quiet().await;
}

#[tokio::test]
async fn a_client_that_missed_nothing_is_recovered_and_nothing_follows() {
    let server = TestServer::start().await;
    let epoch = read_and_cut(&server).await;
    let mut session = Session::resume(&server, &epoch, 3, recovered(true, 3)).await;
    session.client.quiet().await;
}

#[tokio::test]
async fn a_client_of_another_epoch_is_not_recovered_and_all_that_is_kept_follows() {
    let server = TestServer::start().await;
    read_and_cut(&server).await;
    tell_all(&server, 4..5).await;
    let mut session = Session::resume(&server, "another", 3, recovered(false, 0)).await;
    session.reads(1..5).await;
    session.client.quiet().await;
    assert_eq!(server.metric(r#"signalpost_resumes_total{recovered="false"}"#).await, 1.0);
}

#[tokio::test]
async fn a_seq_that_was_never_given_is_not_recovered() {
    let server = TestServer::start().await;
    let epoch = read_and_cut(&server).await;
    let mut session = Session::resume(&server, &epoch, 99, recovered(false, 3)).await;
    tell_all(&server, 4..5).await;
    session.reads(4..5).await;
}

#[tokio::test]
async fn messages_that_the_bounds_cost_are_not_recovered() {
    let server = TestServer::with("[mailboxes]\nmessages_max = 5").await;
    let epoch = read_and_cut(&server).await;
    // Acked by nobody, 1 to 5 make room for 6 to 10.
    tell_all(&server, 4..11).await;
    let mut session = Session::resume(&server, &epoch, 3, recovered(false, 3)).await;
    session.reads(6..11).await;
    session.cut(&server).await;
    // Whoever has seen 5 misses nothing.
    let mut session = Session::resume(&server, &epoch, 5, recovered(true, 5)).await;
    session.reads(6..11).await;
}

#[tokio::test]
async fn messages_that_were_kept_for_too_long_are_not_recovered() {
    let server = TestServer::start().await;
    let epoch = read_and_cut(&server).await;
    tell(&server, "?keep_ms=50", json!(4)).await;
    tell(&server, "", json!(5)).await;
    server.metric_reaches(&dropped("uncollected"), 1.0).await;
    let mut session = Session::resume(&server, &epoch, 3, recovered(false, 3)).await;
    session.reads([5]).await;
}

#[tokio::test]
async fn messages_that_their_sender_calls_worthless_are_not_missed() {
    let server = TestServer::start().await;
    let epoch = read_and_cut(&server).await;
    tell(&server, "?ttl_ms=50", json!(4)).await;
    tell(&server, "?collapse_key=k", json!(5)).await;
    tell(&server, "?collapse_key=k", json!(6)).await;
    sleep(Duration::from_millis(60)).await;
    let mut session = Session::resume(&server, &epoch, 3, recovered(true, 3)).await;
    session.reads([6]).await;
    session.client.quiet().await;
}

#[tokio::test]
async fn messages_wait_for_the_resume() {
    let server = TestServer::with("[sockets]\nresume_wait_ms = 60_000").await;
    let epoch = read_and_cut(&server).await;
    tell_all(&server, 4..6).await;
    let mut session = Session::open(&server).await;
    assert_eq!(session.hello["data"]["resume_within_ms"], 60_000);
    tell_all(&server, 6..7).await;
    session.client.quiet().await;
    session.ask(&epoch, 3, recovered(true, 3)).await;
    session.reads(4..7).await;
    session.cut(&server).await;
    // A client that has nothing to resume from says so, and begins with what no session was sent.
    tell_all(&server, 7..8).await;
    let mut session = Session::open(&server).await;
    session.client.quiet().await;
    session.begin(recovered(true, 6)).await;
    session.reads(7..8).await;
    session.client.quiet().await;
}

#[tokio::test]
async fn a_resume_without_a_position_is_answered() {
    let server = TestServer::with("[mailboxes]\nmessages_max = 3").await;
    let mut session = Session::open(&server).await;
    session.begin(recovered(true, 0)).await;
    tell_all(&server, 1..3).await;
    session.reads(1..3).await;
    session.begin(recovered(true, 2)).await;
    session.cut(&server).await;
    // 3 to 5 make room for 6 to 8.
    tell_all(&server, 3..9).await;
    let mut session = Session::open(&server).await;
    session.begin(recovered(false, 2)).await;
    session.reads(6..9).await;
    assert_eq!(server.metric(r#"signalpost_resumes_total{recovered="true"}"#).await, 2.0);
    assert_eq!(server.metric(r#"signalpost_resumes_total{recovered="false"}"#).await, 1.0);
}

#[tokio::test]
async fn a_client_that_never_acks_reads_nothing_twice() {
    let server = TestServer::with("[sockets]\nresume_wait_ms = 1").await;
    read_and_cut(&server).await;
    tell_all(&server, 4..6).await;
    let mut session = Session::open(&server).await;
    session.reads(4..6).await;
    session.client.quiet().await;
    session.cut(&server).await;
    Session::open(&server).await.client.quiet().await;
    server.metric_reaches(SESSIONS, 0.0).await;
    // Nor does a client of the other kind that comes after it.
    tell_all(&server, 6..7).await;
    let mut plain = server.connect("1001").await;
    reads(&mut plain, [6]).await;
    plain.quiet().await;
}

#[tokio::test]
async fn messages_do_not_wait_for_ever() {
    let server = TestServer::with("[sockets]\nresume_wait_ms = 300").await;
    read_and_cut(&server).await;
    tell_all(&server, 4..6).await;
    let begun = Instant::now();
    let mut session = Session::open(&server).await;
    session.reads(4..6).await;
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn messages_do_not_wait_if_there_is_nothing_to_resume_from() {
    let server = TestServer::with("[sockets]\nresume_wait_ms = 60_000").await;
    let mut session = Session::open(&server).await;
    assert_eq!(session.hello["data"]["resume_within_ms"], json!(null));
    tell_all(&server, 1..2).await;
    session.reads(1..2).await;
}

#[tokio::test]
async fn a_late_resume_doubles_nothing() {
    let server = TestServer::with("[sockets]\nresume_wait_ms = 1").await;
    let epoch = read_and_cut(&server).await;
    tell_all(&server, 4..6).await;
    let mut session = Session::open(&server).await;
    session.reads(4..6).await;
    session.ask(&epoch, 5, recovered(true, 5)).await;
    session.ask(&epoch, 4, recovered(true, 4)).await;
    tell_all(&server, 6..7).await;
    session.reads(6..7).await;
    session.client.quiet().await;
    // What this session was not sent follows, and what came after it.
    session.ask(&epoch, 1, recovered(true, 1)).await;
    session.reads(2..7).await;
    session.client.quiet().await;
}

#[tokio::test]
async fn messages_that_were_not_acked_are_read_by_the_next_session() {
    let server = TestServer::with("[sockets]\nresume_wait_ms = 1").await;
    let mut session = Session::open(&server).await;
    tell_all(&server, 1..5).await;
    session.reads(1..5).await;
    session.client.send_json(json!({ "type": "ack", "seq": 2 })).await;
    session.cut(&server).await;
    let mut session = Session::open(&server).await;
    session.reads(3..5).await;
    // Acks don't go backwards, nor past what there is.
    session.client.send_json(json!({ "type": "ack", "seq": 1 })).await;
    session.cut(&server).await;
    let mut session = Session::open(&server).await;
    session.reads(3..5).await;
    session.client.send_json(json!({ "type": "ack", "seq": 99 })).await;
    session.cut(&server).await;
    let mut session = Session::open(&server).await;
    session.client.quiet().await;
    tell_all(&server, 5..6).await;
    session.reads(5..6).await;
    session.cut(&server).await;
    // Without the subprotocol, what is written counts as acked.
    let mut plain = server.connect("1001").await;
    reads(&mut plain, [5]).await;
    gone(&server, plain).await;
    Session::open(&server).await.client.quiet().await;
}

#[tokio::test]
async fn one_device_resumes_while_another_reads_on() {
    let server = TestServer::start().await;
    let mut tablet = Session::open(&server).await;
    let epoch = read_and_cut_beside(&server).await;
    tell_all(&server, 4..6).await;
    let mut phone = Session::resume(&server, &epoch, 3, recovered(true, 3)).await;
    phone.reads(4..6).await;
    tell_all(&server, 6..7).await;
    phone.reads(6..7).await;
    tablet.reads(1..7).await;
    tablet.client.quiet().await;
}

async fn read_and_cut_beside(server: &TestServer) -> String {
    let mut phone = Session::open(server).await;
    tell_all(server, 1..4).await;
    phone.reads(1..4).await;
    let epoch = phone.epoch();
    phone.cut(server).await;
    epoch
}

#[tokio::test]
async fn a_client_that_is_cut_again_and_again_reads_everything_once() {
    const LAST: u64 = 300;
    let server = TestServer::start().await;
    let mut session = Session::open(&server).await;
    let epoch = session.epoch();
    let (http, url) = (server.http.clone(), server.url("/users/1001/messages"));
    let producer = tokio::spawn(async move {
        for message in 1..=LAST {
            assert_eq!(http.post(&url).json(&message).send().await.unwrap().status(), 202);
        }
    });
    let mut seen = 0;
    for round in 1..=LAST {
        let until = (seen + round % 7).min(LAST);
        session.reads(seen + 1..=until).await;
        seen = until;
        if seen == LAST {
            break;
        }
        // The server may still hold the old connection when the new one comes.
        drop(session.client);
        session = Session::open(&server).await;
        session.client.send_json(json!({ "type": "resume", "epoch": epoch, "seq": seen })).await;
        if session.hello["data"]["resume_within_ms"].is_null() {
            // Nothing was there to wait for; a message may overtake the answer, and is none that was missed.
            continue_past_answer(&mut session, &mut seen).await;
        } else {
            assert_eq!(session.client.json().await["data"], recovered(true, seen));
        }
    }
    producer.await.unwrap();
    assert_eq!(seen, LAST);
    session.client.quiet().await;
}

async fn continue_past_answer(session: &mut Session, seen: &mut u64) {
    loop {
        let frame = session.client.json().await;
        if frame["type"] == "resume" {
            assert_eq!(frame["data"]["recovered"], true);
            return;
        }
        *seen += 1;
        assert_eq!(frame["seq"], *seen);
    }
}
