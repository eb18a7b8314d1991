//! Sinks, with a real backend that answers well, badly or not at all.

mod delivering;
mod failing;
mod letters;
mod offers;
mod own;
mod reloading;
mod tls;

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::TestServer;
use crate::support::backend::{Backend, Received};

const A: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const B: &str = "whsec_c2VjcmV0IG9mIHRoaXJ0eS10d28gYnl0ZXMgaGVyZSE=";

/// A sink that hears the rides of all sources, and tries again soon.
fn sink(address: SocketAddr, secret: &Path, limits: &str) -> String {
    let soon = if limits.contains("backoff_ms") { "" } else { "backoff_ms = 20\nbackoff_max_ms = 50\n" };
    format!(
        "[sinks.backend]\nurl = \"http://{address}/hook\"\nevents = [\"ride.*\"]\nsources = [\"*\"]\nsecret_files = [{secret:?}]\n\
         [sinks.backend.limits]\n{soon}{limits}"
    )
}

fn settings(sinks: &str, others: &str) -> String {
    format!("{sinks}{others}")
}

/// A server with one sink, and the folder of its secret.
async fn start(backend: &Backend, limits: &str) -> (TestServer, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, A).unwrap();
    let others = format!("\n[plugins]\ndir = {:?}\n", dir.path());
    (TestServer::with(&settings(&sink(backend.address, &secret, limits), &others)).await, dir)
}

fn event(subject: &str, n: u64) -> Value {
    json!({ "specversion": "1.0", "id": format!("{subject}-{n}"), "source": "/rides", "type": "ride.asked", "subject": subject, "data": { "n": n } })
}

async fn publish(server: &TestServer, subject: &str, n: u64) {
    let request = server.http.post(server.url("/events")).header("Content-Type", "application/cloudevents+json");
    let response = request.body(event(subject, n).to_string()).send().await.unwrap();
    assert_eq!(response.status(), 202, "{}", response.text().await.unwrap());
}

/// The ids of the events, each once, in the order of their first arrival.
fn ids(received: &[Received]) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for one in received {
        let id = one.json()["id"].as_str().unwrap().to_owned();
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}
