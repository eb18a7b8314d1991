//! `signalpost explain`: shows everything that happens to an event, or would happen in a dry run.

pub(super) mod story;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use super::client::{Address, read};

#[derive(Args, Debug)]
#[command(after_help = super::client::ENVIRONMENT)]
pub(super) struct Arguments {
    /// A file with one event: the short form ({"type": …, "data": …}) or a CloudEvent; - reads the standard input.
    file: PathBuf,
    /// Publish the event, and show what happened to it. Without this, nothing is sent and nothing changes.
    #[arg(long)]
    publish: bool,
    /// The server's URL, with its base path.
    #[arg(long, default_value = "http://127.0.0.1:8080/api/pool")]
    url: String,
    /// Print the explanation as the server sent it.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let address = Address::parse(&arguments.url)?;
    let path = if arguments.publish { "/events?explain=true" } else { "/events?dry_run=true" };
    let answer = address.ask(path, read(&arguments.file)?)?;
    let text = if arguments.json { format!("{answer}\n") } else { story::for_people(&answer) };
    Ok(io::stdout().write_all(text.as_bytes())?)
}
