//! Sessions: who may connect, what frames look like, and how a socket ends.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::support::raw::{self, Raw};
use crate::support::wat::Guest;
use crate::support::{Client, QUIET, SOON, TestServer, plugins};

/// A problem document's status and code.
async fn problem(response: reqwest::Response) -> (u16, String) {
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let status = response.status().as_u16();
    let document: Value = response.json().await.unwrap();
    assert_eq!(document["status"], status);
    assert!(!document["detail"].as_str().unwrap().is_empty());
    (status, document["code"].as_str().unwrap().to_owned())
}

fn closed(code: u16) -> String {
    format!(r#"signalpost_sessions_closed_total{{code="{code}"}}"#)
}

/// Waits until nobody is let in any more: what a stop does first.
async fn stopping(server: &TestServer) {
    let waiting = async {
        while TcpStream::connect(server.address).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, waiting).await.expect("a stop begins in time");
}

async fn end_sessions(server: &TestServer, user: &str) -> Value {
    let response = server.http.delete(server.url(&format!("/users/{user}/sessions"))).send().await.unwrap();
    assert_eq!(response.status(), 200);
    response.json().await.unwrap()
}

mod one_user;

mod user_ids;

mod handshakes;

mod frames;

mod endings;

mod stops;

mod connections;
