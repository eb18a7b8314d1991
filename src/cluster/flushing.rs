//! Whether the NATS servers flush each write (`sync_interval: always`). They tell only those whom their system account lets ask: see
//! docs/cluster.md.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use super::link::Link;
use super::member::Member;

/// Each server of NATS' cluster answers this with what it is and how it is set.
const SUBJECT: &str = "$SYS.REQ.SERVER.PING.VARZ";

/// How long answers are waited for: nobody says how many there will be.
const ANSWERS: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
struct Answer {
    server: Server,
    data: Data,
}

#[derive(Deserialize)]
struct Server {
    name: String,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    jetstream: JetStream,
}

#[derive(Default, Deserialize)]
struct JetStream {
    /// `None` for a server that stores nothing.
    config: Option<Settings>,
}

#[derive(Deserialize)]
struct Settings {
    #[serde(default)]
    sync_always: bool,
}

/// Reads a server's name and whether it flushes each write; `None` if it stores nothing, or has not answered this.
fn read(answer: &[u8]) -> Option<(String, bool)> {
    let Answer { server, data } = serde_json::from_slice(answer).ok()?;
    Some((server.name, data.jetstream.config?.sync_always))
}

impl Link {
    /// Asks the servers, and returns those that have answered, with whether they flush each write.
    async fn flushing(&self) -> anyhow::Result<BTreeMap<String, bool>> {
        let inbox = self.client.new_inbox();
        let mut answers = self.listen(inbox.clone()).await?;
        self.client.publish_with_reply(SUBJECT, inbox, Bytes::new()).await?;
        let (mut found, until) = (BTreeMap::new(), Instant::now() + ANSWERS);
        while let Ok(Some(answer)) = timeout_at(until, answers.next()).await {
            found.extend(read(&answer.payload));
        }
        Ok(found)
    }
}

impl Member {
    /// Warns of servers that don't flush each write, as far as they say so.
    pub(super) async fn look_at_flushing(self: Arc<Member>) {
        let found = match self.link.flushing().await {
            Ok(found) => found,
            Err(error) => return tracing::debug!("the NATS servers can't be asked whether they flush each write: {error:#}"),
        };
        let lax: Vec<&str> = found.iter().filter(|(_, flushes)| !**flushes).map(|(name, _)| &**name).collect();
        if !lax.is_empty() {
            tracing::warn!(
                "these NATS servers don't flush each write (sync_interval: always): {}; a power cut of two within two minutes loses answered events",
                lax.join(", ")
            );
        } else if found.is_empty() {
            tracing::debug!("the NATS servers don't tell this node whether they flush each write (sync_interval)");
        } else {
            tracing::info!(servers = found.len(), "the NATS servers flush each write");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_whether_it_flushes_each_write() {
        let of = |config: &str| read(format!(r#"{{"server":{{"name":"a"}},"data":{{"jetstream":{config}}}}}"#).as_bytes());
        assert_eq!(of(r#"{"config":{"sync_interval":120000000000,"sync_always":true}}"#), Some(("a".to_owned(), true)));
        assert_eq!(of(r#"{"config":{"sync_interval":120000000000}}"#), Some(("a".to_owned(), false)));
        assert_eq!(of("{}"), None, "it stores nothing");
        assert_eq!(read(b""), None, "nobody is there who would answer");
    }
}
