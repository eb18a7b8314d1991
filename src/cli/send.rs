//! `signalpost send`: publishes one event, or sends one message to one user, or does so with many, and shows the receipts.

pub(super) mod receipt;
mod stream;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::error::ErrorKind;
use clap::{Args, Command};
use serde::Serialize;
use serde_json::value::RawValue;

use super::client::{Server, encoded, read};

#[derive(Args, Debug)]
#[command(after_help = super::client::ENVIRONMENT, override_usage = "signalpost send [OPTIONS] EVENT_TYPE DATA\n       signalpost send [OPTIONS] --user USER DATA\n       signalpost send [OPTIONS] --stream")]
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
    /// Publish each line of the standard input over one stream, many at a time: an event in JSON, an array of events, or
    /// {"user": …, "message": …}. Prints their receipts in the same order.
    #[arg(long, conflicts_with_all = ["words", "user", "id", "source", "file"])]
    stream: bool,
    #[command(flatten)]
    server: Server,
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
    let address = arguments.server.address()?;
    if arguments.stream {
        return stream::run(&address, arguments.server.json);
    }
    let (path, body) = arguments.request()?;
    let answer = address.ask(&path, body)?;
    arguments.server.print(&answer, |answer| Ok(receipt::for_people(answer)))
}

impl Arguments {
    /// Returns the path below the base path, and the body.
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
            (Some("-"), _) => read(Path::new("-"))?,
            (Some(data), _) => data.to_owned(),
            (None, file) => read(file.as_deref().context("no data")?)?,
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

#[cfg(test)]
mod tests;
