//! Mailboxes: which messages are kept and for how long, resuming after a lost connection, and what happens to readers who fall behind.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::support::raw::Raw;
use crate::support::wat::Guest;
use crate::support::{Client, TestServer, plugins};

const MAILBOXES: &str = "signalpost_mailboxes";
const MESSAGES: &str = "signalpost_mailbox_messages";
const BYTES: &str = "signalpost_mailbox_bytes";
const SESSIONS: &str = "signalpost_sessions";

fn dropped(reason: &str) -> String {
    format!(r#"signalpost_messages_dropped_total{{reason="{reason}"}}"#)
}

/// Posts to user 1001, who gets it or for whom it is kept.
async fn tell(server: &TestServer, query: &str, message: Value) {
    let receipt = server.post(&format!("/users/1001/messages{query}"), message).await;
    assert_eq!(receipt["posted"], 1, "{receipt}");
}

async fn tell_all(server: &TestServer, messages: impl IntoIterator<Item = u64>) {
    for message in messages {
        tell(server, "", json!(message)).await;
    }
}

async fn reads(client: &mut Client, messages: impl IntoIterator<Item = u64>) {
    for message in messages {
        assert_eq!(client.text().await, message.to_string());
    }
}

/// The session is over and has left its mailbox.
async fn gone(server: &TestServer, client: Client) {
    let sessions = server.metric(SESSIONS).await;
    drop(client);
    server.metric_reaches(SESSIONS, sessions - 1.0).await;
}

async fn empty(server: &TestServer) {
    for gauge in [MAILBOXES, MESSAGES, BYTES] {
        server.metric_reaches(gauge, 0.0).await;
    }
}

mod away {
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
        for (query, message) in
            [("?collapse_key=k", 1), ("", 2), ("?collapse_key=k", 3), ("?collapse_key=other", 4), ("?collapse_key=k", 5)]
        {
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
}

mod resume {
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
}

mod bounds {
    use super::*;

    #[tokio::test]
    async fn the_oldest_messages_make_room_in_a_full_mailbox() {
        let server = TestServer::with("[mailboxes]\nmessages_max = 10").await;
        tell_all(&server, 0..15).await;
        assert_eq!(server.metric(&dropped("evicted")).await, 5.0);
        assert_eq!(server.metric(MESSAGES).await, 10.0);
        let mut client = server.connect("1001").await;
        reads(&mut client, 5..15).await;
        client.quiet().await;
        gone(&server, client).await;
        empty(&server).await;
    }

    #[tokio::test]
    async fn a_mailbox_is_bounded_in_bytes_too() {
        let server = TestServer::with("[mailboxes]\nbytes_max = 4000\n[events]\nevent_bytes_max = 2000").await;
        let message = |number: u64| json!(number.to_string().repeat(1000));
        for number in 0..5 {
            tell(&server, "", message(number)).await;
            assert!(server.metric(BYTES).await <= 4000.0);
        }
        // An entry costs more than its text, so that empty messages are bounded as well.
        assert_eq!(server.metric(&dropped("evicted")).await, 2.0);
        let mut client = server.connect("1001").await;
        for number in 2..5 {
            assert_eq!(client.json().await, message(number));
        }
        client.quiet().await;
    }

    #[tokio::test]
    async fn a_receipt_says_that_all_mailboxes_together_are_full_and_connected_users_go_on() {
        let server = TestServer::with("[mailboxes]\nmessages_max = 10\ntotal_messages_max = 50").await;
        let mut connected = server.connect("connected").await;
        let mut posted = 0;
        for user in 0..5 {
            for message in 0..10 {
                let receipt = server.post(&format!("/users/{user}/messages"), json!(message)).await;
                if posted < 45 {
                    assert_eq!(receipt["posted"], 1, "{posted}: {receipt}");
                    posted += 1;
                } else {
                    assert_eq!(receipt["dropped"], json!([{ "reason": "server_full", "count": 1, "users": ["4"] }]));
                }
            }
        }
        assert_eq!(server.metric(MESSAGES).await, 45.0);
        assert_eq!(server.metric(&dropped("server_full")).await, 5.0);
        server.post("/users/connected/messages", json!(1)).await;
        reads(&mut connected, [1]).await;
        // What is read makes room.
        let mut client = server.connect("0").await;
        reads(&mut client, 0..10).await;
        server.metric_reaches(MESSAGES, 35.0).await;
        assert_eq!(server.post("/users/4/messages", json!(5)).await["posted"], 1);
        reads(&mut server.connect("4").await, 0..6).await;
    }

    #[tokio::test]
    async fn the_bytes_of_all_mailboxes_together_are_bounded() {
        let sizes = "bytes_max = 4000\ntotal_bytes_max = 10_000\n[events]\nevent_bytes_max = 2000";
        let server = TestServer::with(&format!("[mailboxes]\n{sizes}")).await;
        let mut full = 0;
        for user in 0..20 {
            full += usize::from(server.post(&format!("/users/{user}/messages"), json!("x".repeat(1000))).await["posted"] == 0);
        }
        // Each costs 1311 bytes (its text, 256, its id and its type), and the last tenth of the room is not for those who are away.
        assert_eq!(full, 14);
        assert_eq!(server.metric(&dropped("server_full")).await, 14.0);
        assert!(server.metric(BYTES).await <= 9_000.0);
    }

    #[tokio::test]
    async fn messages_that_connected_readers_have_read_keep_no_other_out_of_a_full_server() {
        let server = TestServer::with("[mailboxes]\nmessages_max = 100\ntotal_messages_max = 100").await;
        let mut readers = Vec::new();
        for user in 0..4 {
            let mut reader = server.connect_v1(&user.to_string()).await;
            assert_eq!(reader.json().await["type"], "hello");
            readers.push(reader);
        }
        for round in 1..=100 {
            for (user, reader) in readers.iter_mut().enumerate() {
                assert_eq!(server.post(&format!("/users/{user}/messages"), json!(round)).await["posted"], 1, "{round}");
                assert_eq!(reader.json().await["seq"], round);
                // Half of them ack.
                if user % 2 == 0 {
                    reader.send_json(json!({ "type": "ack", "seq": round })).await;
                }
            }
        }
        assert_eq!(server.post("/users/away/messages", json!(1)).await["posted"], 1);
        assert_eq!(server.metric(&dropped("server_full")).await, 0.0);
        assert!(server.metric(MESSAGES).await <= 100.0);
    }

    #[tokio::test]
    async fn a_message_that_the_full_server_refuses_is_missed_by_a_client_that_resumes() {
        let server = TestServer::with("[mailboxes]\nmessages_max = 10\ntotal_messages_max = 10").await;
        let mut client = server.connect_v1("1001").await;
        let hello = client.json().await;
        gone(&server, client).await;
        tell_all(&server, 0..3).await;
        for message in 0..6 {
            assert_eq!(server.post("/users/2002/messages", json!(message)).await["posted"], 1);
        }
        let receipt = server.post("/users/1001/messages", json!(3)).await;
        assert_eq!(receipt["dropped"], json!([{ "reason": "server_full", "count": 1, "users": ["1001"] }]));
        let mut client = server.connect_v1("1001").await;
        assert_eq!(client.json().await["data"]["seq"], 4);
        client.send_json(json!({ "type": "resume", "epoch": hello["data"]["epoch"], "seq": 0 })).await;
        assert_eq!(client.json().await["data"], json!({ "recovered": false, "from": 0 }));
        for message in 0..3 {
            assert_eq!(client.json().await["data"], message);
        }
    }

    #[tokio::test]
    async fn users_with_a_mailbox_are_bounded_in_number() {
        let server = TestServer::with("[mailboxes]\nmailboxes_max = 3").await;
        for user in 0..5 {
            drop(server.connect_v1(&format!("gone-{user}")).await);
        }
        server.metric_reaches(SESSIONS, 0.0).await;
        assert!(server.metric(MAILBOXES).await <= 3.0, "remembered empty ones are bounded too");
        for user in 0..3 {
            assert_eq!(server.post(&format!("/users/{user}/messages"), json!(1)).await["posted"], 1);
        }
        let receipt = server.post("/users/3/messages", json!(1)).await;
        assert_eq!(receipt["dropped"], json!([{ "reason": "server_full", "count": 1, "users": ["3"] }]));
        assert_eq!(server.post("/users/2/messages", json!(2)).await["posted"], 1);
        let mut connected = server.connect("4").await;
        assert_eq!(server.post("/users/4/messages", json!(1)).await["posted"], 1);
        reads(&mut connected, [1]).await;
    }

    #[tokio::test]
    async fn a_collapse_key_is_bounded_as_a_policys_is() {
        let server = TestServer::start().await;
        for (key, status) in
            [("x".repeat(128), 202), ("x".repeat(129), 400), ("%C3%A9".repeat(64), 202), ("%C3%A9".repeat(65), 400), (String::new(), 400)]
        {
            let url = server.url(&format!("/users/1001/messages?collapse_key={key}"));
            let response = server.http.post(url).body("1").send().await.unwrap();
            assert_eq!(response.status(), status, "{key}");
            if status == 400 {
                assert_eq!(response.json::<Value>().await.unwrap()["code"], "collapse_key");
            }
        }
        // What is kept counts: 256, the body, the id, the type, and the key.
        assert_eq!(server.metric(BYTES).await, 2.0 * f64::from(256 + 1 + 36 + 17 + 128));
    }

    #[tokio::test]
    async fn a_session_formats_little_for_a_client_that_does_not_read() {
        const MESSAGES: u64 = 200;
        // Makes 100 KB of anything: a list with much white space.
        let body = "(memory.fill (i32.const 8192) (i32.const 32) (i32.const 100000))
            (i32.store8 (i32.const 8192) (i32.const 91)) (i32.store8 (i32.const 108191) (i32.const 93))
            (call $shaped (i32.const 8192) (i32.const 100000))";
        let dir = plugins(&[]);
        std::fs::write(dir.path().join("amplifier.wasm"), Guest::formatting(body).component()).unwrap();
        let settings = format!("[sockets]\nwrite_deadline_ms = 600_000\n[plugins]\ndir = {:?}", dir.path());
        let server = TestServer::with(&settings).await;
        tell_all(&server, 0..MESSAGES).await;
        let mut slow = Raw::open(&server, "1001", "").await;
        let formatted = async || server.get("/policies").await["policies"][0]["counters"]["calls"].as_u64().unwrap();
        let mut calls = 0;
        loop {
            sleep(Duration::from_millis(200)).await;
            let now = formatted().await;
            if now > 0 && now == calls {
                break;
            }
            calls = now;
        }
        // The buffers between the two take some megabytes; the session holds one message more.
        assert!(calls < MESSAGES / 2, "{calls} were formatted");
        for _ in 0..MESSAGES {
            assert_eq!(slow.text().await.len(), 100_000);
        }
        assert_eq!(formatted().await, MESSAGES, "and each once");
    }

    #[tokio::test]
    async fn messages_that_a_policy_drops_hold_up_nothing() {
        // Answers "nothing" for every reader.
        let dir = plugins(&[]);
        let body = "(memory.fill (i32.const 512) (i32.const 0) (i32.const 20)) (i32.const 512)";
        std::fs::write(dir.path().join("silence.wasm"), Guest::formatting(body).component()).unwrap();
        // One message for each write: the next one is looked at although the last wrote nothing.
        let server = TestServer::with(&format!("[sockets]\nwrite_bytes_max = 1\n[plugins]\ndir = {:?}", dir.path())).await;
        tell_all(&server, 0..20).await;
        let mut client = server.connect("1001").await;
        server.metric_reaches(&dropped("formatted"), 20.0).await;
        server.metric_reaches(MESSAGES, 0.0).await;
        client.quiet().await;
        gone(&server, client).await;
        empty(&server).await;
    }
}

mod slow_readers {
    use super::*;

    /// Greets each client with a message.
    const GREETING: &str = "(drop (call $silent)) (memory.fill (i32.const 900) (i32.const 0) (i32.const 16))
        (i32.store (i32.const 836) (i32.const 900)) (i32.store (i32.const 840) (i32.const 1))
        (i32.store (i32.const 904) (global.get $reply)) (i32.store (i32.const 908) (global.get $reply_bytes))
        (i32.const 832)";

    #[tokio::test]
    async fn a_reader_gets_into_its_own_full_mailbox_while_it_goes_on_filling() {
        let dir = plugins(&[]);
        let greeter = Guest { strings: &[("reply", "\"hello\"")], opened: GREETING, ..Guest::sessions("(call $not_mine)") };
        std::fs::write(dir.path().join("greeter.wasm"), greeter.component()).unwrap();
        let settings = "[mailboxes]\nmessages_max = 10\n[sockets]\nresume_wait_ms = 60_000";
        let server = TestServer::with(&format!("{settings}\n[plugins]\ndir = {:?}", dir.path())).await;
        tell_all(&server, 0..12).await;
        let mut plain = server.connect("1001").await;
        reads(&mut plain, 3..12).await;
        assert_eq!(plain.text().await, "\"hello\"");
        gone(&server, plain).await;
        tell_all(&server, 12..24).await;
        let mut v1 = server.connect_v1("1001").await;
        assert_eq!(v1.json().await["data"]["resume_within_ms"], 60_000);
        tell_all(&server, 24..30).await;
        v1.send_json(json!({ "type": "resume" })).await;
        assert_eq!(v1.json().await["data"]["recovered"], false);
        let mut read = Vec::new();
        for _ in 0..10 {
            read.push(v1.json().await["data"].clone());
        }
        assert_eq!(read.iter().filter_map(Value::as_u64).collect::<Vec<_>>(), (21..30).collect::<Vec<_>>());
        assert_eq!(server.metric(CLOSED).await, 0.0);
    }

    #[tokio::test]
    async fn a_message_that_is_refused_for_more_important_ones_is_missed_by_a_client_that_resumes() {
        // Its messages are more important than direct ones.
        let dir = plugins(&[]);
        let important = Guest {
            strings: &[("reader", "1001"), ("what", "1")],
            ..Guest::routing(
                "(drop (call $tell (global.get $reader) (global.get $reader_bytes) (global.get $what) (global.get $what_bytes)))
             (i32.store8 (i32.const 424) (i32.const 2)) (i32.const 288)",
            )
        };
        std::fs::write(dir.path().join("important.wasm"), important.component()).unwrap();
        let settings = "[mailboxes]\nmessages_max = 3\n[sockets]\nresume_wait_ms = 60_000";
        let server = TestServer::with(&format!("{settings}\n[plugins]\ndir = {:?}", dir.path())).await;
        let mut client = server.connect_v1("1001").await;
        let hello = client.json().await;
        for seq in 1..=3 {
            server.publish("x", json!(null)).await;
            assert_eq!(client.json().await["seq"], seq);
        }
        gone(&server, client).await;
        for _ in 0..3 {
            server.publish("x", json!(null)).await;
        }
        // They are kept for the client, and nothing of them may go.
        let receipt = server.post("/users/1001/messages", json!(1)).await;
        assert_eq!(receipt["dropped"], json!([{ "reason": "mailbox_full", "count": 1, "users": ["1001"] }]));
        let mut client = server.connect_v1("1001").await;
        assert_eq!(client.json().await["data"]["seq"], 7);
        client.send_json(json!({ "type": "resume", "epoch": hello["data"]["epoch"], "seq": 3 })).await;
        assert_eq!(client.json().await["data"], json!({ "recovered": false, "from": 3 }));
        for seq in 4..=6 {
            assert_eq!(client.json().await["seq"], seq);
        }
        client.quiet().await;
    }

    /// About 16 KiB.
    fn large(number: u64) -> Value {
        json!({ "number": number, "fill": "x".repeat(16_384) })
    }

    fn number(text: &str) -> u64 {
        serde_json::from_str::<Value>(text).unwrap()["number"].as_u64().unwrap()
    }

    const CLOSED: &str = r#"signalpost_sessions_closed_total{code="4100"}"#;

    /// Far more than the buffers between a server and a client take.
    const MESSAGES_MAX: u64 = 1000;

    #[tokio::test]
    async fn a_reader_that_falls_behind_the_mailbox_is_closed_with_4100_and_others_do_not_notice() {
        let sizes = "bytes_max = 524_288\n[sockets]\nwrite_deadline_ms = 600_000";
        let server = TestServer::with(&format!("[mailboxes]\n{sizes}")).await;
        let mut slow = Raw::open(&server, "1001", "").await;
        let mut fast = server.connect("1001").await;
        let mut other = server.connect("2002").await;
        let mut told = 0;
        while told < MESSAGES_MAX {
            for user in ["1001", "2002"] {
                assert_eq!(server.post(&format!("/users/{user}/messages"), large(told)).await["posted"], 1);
            }
            assert_eq!(number(&fast.text().await), told);
            assert_eq!(number(&other.text().await), told);
            told += 1;
            let presence = server.get("/users/1001").await;
            assert!(presence["mailbox"]["bytes"].as_u64().unwrap() <= 524_288, "{presence}");
            if presence["sessions"].as_array().unwrap().len() == 1 {
                break;
            }
        }
        server.metric_reaches(CLOSED, 1.0).await;
        assert!(server.metric(&dropped("evicted")).await >= 1.0, "what it missed is counted");
        // What reached it has no gap.
        let mut got = 0;
        while let Some((crate::support::raw::TEXT, text)) = slow.frame().await {
            assert_eq!(number(std::str::from_utf8(&text).unwrap()), got);
            got += 1;
        }
        assert!(got < told, "{got} of {told}");
        // The others go on, and what they have read is not kept for the one that is gone.
        for message in told..told + 10 {
            server.post("/users/1001/messages", large(message)).await;
            assert_eq!(number(&fast.text().await), message);
        }
        fast.quiet().await;
        other.quiet().await;
        server.metric_reaches(MESSAGES, 0.0).await;
        assert_eq!(server.metric(CLOSED).await, 1.0);
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_for_the_write_deadline_is_closed_with_4100() {
        let sizes = "bytes_max = 67_108_864\n[sockets]\nwrite_deadline_ms = 200\nclose_deadline_ms = 100";
        let server = TestServer::with(&format!("[mailboxes]\n{sizes}")).await;
        let _slow = Raw::open(&server, "1001", "").await;
        let mut other = server.connect("2002").await;
        for message in 0..MESSAGES_MAX {
            server.post("/users/1001/messages", large(message)).await;
            server.post("/users/2002/messages", json!(message)).await;
            assert_eq!(other.text().await, message.to_string());
            if message % 16 == 0 && server.get("/users/1001").await["online"] == false {
                break;
            }
        }
        server.metric_reaches(CLOSED, 1.0).await;
        assert_eq!(server.metric(&dropped("evicted")).await, 0.0, "its mailbox was not full");
        // What it did not take is kept for when it comes back.
        assert!(server.get("/users/1001").await["mailbox"]["messages"].as_u64().unwrap() > 0);
    }

    #[tokio::test]
    async fn a_reader_whose_messages_are_kept_for_too_long_is_closed_with_4100() {
        let sizes = "bytes_max = 67_108_864\nkeep_ms = 300\n[sockets]\nwrite_deadline_ms = 600_000\nclose_deadline_ms = 100";
        let server = TestServer::with(&format!("[mailboxes]\n{sizes}")).await;
        let _slow = Raw::open(&server, "1001", "").await;
        for message in 0..MESSAGES_MAX {
            server.post("/users/1001/messages", large(message)).await;
            if server.get("/users/1001").await["mailbox"]["messages"].as_u64().is_some_and(|messages| messages > 20) {
                break;
            }
        }
        server.metric_reaches(CLOSED, 1.0).await;
        assert!(server.metric(&dropped("uncollected")).await >= 1.0);
        empty(&server).await;
    }

    #[tokio::test]
    async fn a_reader_that_pauses_and_reads_on_misses_nothing() {
        let server = TestServer::with("[mailboxes]\nbytes_max = 67_108_864").await;
        let mut slow = Raw::open(&server, "1001", "").await;
        let mut told = 0;
        let mut waiting = 0;
        while told < MESSAGES_MAX && waiting <= 20 {
            server.post("/users/1001/messages", large(told)).await;
            told += 1;
            waiting = server.get("/users/1001").await["mailbox"]["messages"].as_u64().unwrap();
        }
        assert!(waiting > 20, "{waiting} of {told} wait");
        for message in 0..told {
            assert_eq!(number(&slow.text().await), message);
        }
        server.metric_reaches(MESSAGES, 0.0).await;
        assert_eq!(server.metric(SESSIONS).await, 1.0);
    }
}
