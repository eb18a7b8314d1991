//! `signalpost tail`: shows the live feed of a server (`GET {base}/live`) on a terminal.

mod frames;
mod lines;

use std::io::{self, Write};

use anyhow::bail;
use clap::Args;
use http::Method;
use http_body_util::BodyExt;

use super::client::{Address, ENVIRONMENT, encoded};
use super::terminal::wants_color;
use frames::{Frame, Frames};
use lines::Lines;

#[derive(Args, Debug)]
#[command(after_help = ENVIRONMENT)]
pub(super) struct Arguments {
    /// Only what concerns this user.
    #[arg(long)]
    user: Option<String>,
    /// Only events of this type, or with this beginning, as in pooling.*
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Only what this policy was asked, and its faults and reloads.
    #[arg(long)]
    policy: Option<String>,
    /// Only these kinds, with commas between them: event, session, message, policy, fault, reload.
    #[arg(long, value_name = "KINDS")]
    kind: Option<String>,
    /// Tell the whole story of each event: the messages, who was told, and what each of their sessions sees.
    #[arg(long, conflicts_with = "json")]
    full: bool,
    /// Print each entry as the server sent it, one on a line, with its kind.
    #[arg(long)]
    json: bool,
    /// End after this many entries.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Where the server's operators connect, with its base path.
    #[arg(long, default_value = "http://127.0.0.1:8080/api/pool")]
    url: String,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    super::client_runtime()?.block_on(async {
        let stop = super::stop_signal()?;
        let mut out = io::stdout();
        tokio::select! {
            shown = show(arguments, &mut out) => shown,
            () = stop => Ok(()),
        }
    })
}

/// Shows the entries, until enough of them were shown.
///
/// # Errors
/// The server can't be reached, refuses the request, or ends the stream.
async fn show(arguments: &Arguments, out: &mut impl Write) -> anyhow::Result<()> {
    let address = Address::parse(&arguments.url)?;
    let mut body = address.open(Method::GET, &arguments.path()).await?;
    let lines = Lines { color: wants_color(), full: arguments.full };
    let (mut frames, mut left) = (Frames::default(), arguments.count);
    while let Some(part) = body.frame().await {
        let Ok(bytes) = part.map_err(|error| anyhow::anyhow!("the connection to {} was lost: {error}", address.authority))?.into_data()
        else {
            continue;
        };
        for Frame { name, data } in frames.add(&bytes)? {
            match name.as_str() {
                "hello" => continue,
                "end" => bail!("{} is stopping", address.authority),
                _ if arguments.json => writeln!(out, "{name} {data}")?,
                _ => out.write_all(lines.entry(&name, &data).as_bytes())?,
            }
            out.flush()?;
            if name != "lost" {
                left = left.map(|left| left - 1);
            }
            if left == Some(0) {
                return Ok(());
            }
        }
    }
    bail!("{} ended the stream", address.authority)
}

impl Arguments {
    /// Returns the path below the base path, with the filters.
    fn path(&self) -> String {
        let filters = [("user", &self.user), ("type", &self.event_type), ("policy", &self.policy), ("kind", &self.kind)];
        let given = filters.iter().filter_map(|(name, value)| Some(format!("{name}={}", encoded(value.as_deref()?))));
        let query = given.collect::<Vec<String>>().join("&");
        if query.is_empty() { "/live".to_owned() } else { format!("/live?{query}") }
    }
}
