//! `signalpost send`: publishes one event, or sends one message to one user, and shows the receipt.

mod receipt;

use std::io::{self, Read, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::error::ErrorKind;
use clap::{Args, Command};
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::timeout;

use super::client::{Address, DEADLINE, encoded, problem};

/// A receipt names at most each recipient once; a longer answer is not from this server.
const ANSWER_BYTES_MAX: usize = 16 << 20;

#[derive(Args, Debug)]
#[command(override_usage = "signalpost send [OPTIONS] EVENT_TYPE DATA\n       signalpost send [OPTIONS] --user USER DATA")]
pub(super) struct Arguments {
    /// The event's type (not with --user), and its data as JSON; - reads the data from the standard input.
    #[arg(value_name = "EVENT_TYPE] [DATA", num_args = 0..=2, allow_negative_numbers = true)]
    words: Vec<String>,
    /// Send the data to this user as it is, instead of publishing an event.
    #[arg(long, conflicts_with_all = ["id", "source"])]
    user: Option<String>,
    /// The event's id; the server makes one up otherwise. The same id is published once.
    #[arg(long)]
    id: Option<String>,
    /// The event's source.
    #[arg(long)]
    source: Option<String>,
    /// Read the data from this file.
    #[arg(long)]
    file: Option<PathBuf>,
    /// Where the server is, with its base path.
    #[arg(long, default_value = "http://127.0.0.1:8080/api/pool")]
    url: String,
    /// Print the receipt as the server sent it.
    #[arg(long)]
    json: bool,
}

/// An event in the server's short form.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    event_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'a str>,
    /// As it was typed, so that no number loses digits on the way.
    data: &'a RawValue,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let address = Address::parse(&arguments.url)?;
    let (path, body) = arguments.request()?;
    let answer = super::client_runtime()?.block_on(async {
        let answered = timeout(DEADLINE, post(&address, &path, body)).await;
        answered.with_context(|| format!("no answer from {} within {} s", address.authority, DEADLINE.as_secs()))?
    })?;
    let text = if arguments.json { format!("{answer}\n") } else { receipt::for_people(&answer) };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

impl Arguments {
    /// The path below the base path, and the body.
    fn request(&self) -> anyhow::Result<(String, String)> {
        let (event_type, data) = match (&self.user, self.words.as_slice(), &self.file) {
            (None, [event_type, data], None) => (Some(event_type), Some(data)),
            (None, [event_type], Some(_)) => (Some(event_type), None),
            (Some(_), [data], None) => (None, Some(data)),
            (Some(_), [], Some(_)) => (None, None),
            _ => {
                let usage = "give an event's type (or --user) and its data: as JSON, as - or with --file";
                let mut command = Arguments::augment_args(Command::new("signalpost send"));
                return Err(command.error(ErrorKind::WrongNumberOfValues, usage).into());
            }
        };
        let data = match (data.map(String::as_str), &self.file) {
            (Some("-"), _) => io::read_to_string(io::stdin().lock()).context("can't read the standard input")?,
            (Some(data), _) => data.to_owned(),
            (None, file) => read(file.as_deref())?,
        };
        // serde_json keeps the space around a raw value.
        let data: &RawValue =
            serde_json::from_str(data.trim()).context("the data isn't JSON (a text needs its quotes, as in '\"hello\"')")?;
        match (&self.user, event_type) {
            (Some(user), _) if user.is_empty() => bail!("the user's id is empty"),
            (Some(user), _) => Ok((format!("/users/{}/messages", encoded(user)), data.get().to_owned())),
            (None, event_type) => {
                let event_type = event_type.map(String::as_str).unwrap_or_default();
                let event = Event { event_type, id: self.id.as_deref(), source: self.source.as_deref(), data };
                Ok(("/events".to_owned(), serde_json::to_string(&event)?))
            }
        }
    }
}

fn read(file: Option<&std::path::Path>) -> anyhow::Result<String> {
    let file = file.context("no data")?;
    let mut text = String::new();
    let read = std::fs::File::open(file).and_then(|mut file| file.read_to_string(&mut text));
    read.with_context(|| format!("can't read {}", file.display()))?;
    Ok(text)
}

/// The body of a good answer; any other is an error.
async fn post(address: &Address, path: &str, body: String) -> anyhow::Result<String> {
    let stream = address.connect().await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the runtime at the latest; its errors reach us through the answer.
    tokio::spawn(connection);
    let request = Request::post(format!("{}{path}", address.base_path))
        .header(header::HOST, &address.authority)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, concat!("signalpost/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(Bytes::from(body)))?;
    let no_answer = || format!("{} didn't answer", address.authority);
    let (head, body) = sender.send_request(request).await.with_context(no_answer)?.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(anyhow::Error::from_boxed).with_context(no_answer)?;
    let body = body.to_bytes();
    if !head.status.is_success() {
        bail!(problem(head.status, &body));
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}

#[cfg(test)]
mod tests;
