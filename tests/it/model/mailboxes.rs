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

mod away;

mod resume;

mod bounds;

mod slow_readers;
