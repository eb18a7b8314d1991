//! `signalpost explain`: shows everything that happens to an event, or would happen in a dry run.

pub(super) mod story;

use std::path::PathBuf;

use clap::Args;

use super::client::{Server, read};

#[derive(Args, Debug)]
#[command(after_help = super::client::ENVIRONMENT)]
pub(super) struct Arguments {
    /// A file with one event: the short form ({"type": …, "data": …}) or a CloudEvent; - reads the standard input.
    file: PathBuf,
    /// Publish the event, and show what happened to it. Without this, nothing is sent and nothing changes.
    #[arg(long)]
    publish: bool,
    #[command(flatten)]
    server: Server,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let address = arguments.server.address()?;
    let path = if arguments.publish { "/events?explain=true" } else { "/events?dry_run=true" };
    let answer = address.ask(path, read(&arguments.file)?)?;
    arguments.server.print(&answer, |answer| Ok(story::for_people(answer)))
}
