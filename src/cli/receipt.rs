//! `signalpost receipt`: shows how far the messages of an event got since it was published.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::Args;
use form_urlencoded::Serializer;
use serde::Deserialize;

use super::client::{ENVIRONMENT, Server, encoded, parsed};
use super::terminal::{count, plain};

#[derive(Args, Debug)]
#[command(after_help = ENVIRONMENT)]
pub(super) struct Arguments {
    /// The event's id, as its receipt has it.
    id: String,
    /// The event's source, if producers with different sources use the same ids.
    #[arg(long)]
    source: Option<String>,
    /// Recipients to show, at most 1000.
    #[arg(long, default_value_t = 100)]
    limit: usize,
    #[command(flatten)]
    server: Server,
}

/// The answer, perhaps of a server of another version: its words are shown as they are.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    id: String,
    source: String,
    published: Option<String>,
    states: BTreeMap<String, u64>,
    recipients: Vec<Recipient>,
    next: Option<usize>,
    note: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Recipient {
    user: String,
    seq: Option<u64>,
    state: String,
    reason: Option<String>,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut query = Serializer::new(String::new());
    query.append_pair("limit", &arguments.limit.to_string());
    if let Some(source) = &arguments.source {
        query.append_pair("source", source);
    }
    let server = &arguments.server;
    let answer = server.address()?.get(&format!("/receipts/{}?{}", encoded(&arguments.id), query.finish()))?;
    server.print(&answer, |answer| Ok(for_people(&parsed(answer)?)))
}

fn for_people(answer: &Answer) -> String {
    let recipients = answer.states.values().sum();
    let states: Vec<String> = answer.states.iter().map(|(state, count)| format!("{count} {}", plain(state))).collect();
    let source = if answer.source.is_empty() { String::new() } else { format!(" from {}", plain(&answer.source)) };
    let published = answer.published.as_ref().map_or(String::new(), |time| format!(", published {}", plain(time)));
    let mut out = format!("{}{source}{published} → {}", plain(&answer.id), count(recipients, "recipient", "recipients"));
    // Writing to a string can't fail.
    let _ = writeln!(out, "{}{}", if states.is_empty() { "" } else { ": " }, states.join(", "));
    let width = answer.recipients.iter().map(|recipient| plain(&recipient.user).chars().count()).max().unwrap_or_default();
    for Recipient { user, seq, state, reason } in &answer.recipients {
        let seq = seq.map_or(String::new(), |seq| format!("  seq {seq}"));
        let reason = reason.as_ref().map_or(String::new(), |reason| format!(": {}", plain(reason)));
        let _ = writeln!(out, "  {:width$}  {}{reason}{seq}", plain(user), plain(state));
    }
    if answer.next.is_some() {
        let _ = writeln!(out, "  and more: --limit shows up to 1000");
    }
    if let Some(note) = &answer.note {
        let _ = writeln!(out, "  note: {}", plain(note));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_another_version_is_shown_with_its_own_words_and_without_control_characters() {
        let answer = r#"{"id":"e\u001b1","source":"/","states":{"acked":1,"postponed":2},"next":2,"new":1,
            "recipients":[{"user":"1001","seq":5,"state":"acked"},{"user":"2","state":"postponed","reason":"holiday"}]}"#;
        let expected = "e\\u{1b}1 from / → 3 recipients: 1 acked, 2 postponed\n  1001  acked  seq 5\n  2     postponed: holiday\n  \
                        and more: --limit shows up to 1000\n";
        assert_eq!(for_people(&serde_json::from_str(answer).unwrap()), expected);
    }
}
