//! `signalpost cluster`: shows the nodes that serve together, as one of them knows them.

use std::fmt::Write as _;

use clap::Args;
use serde::Deserialize;

use super::client::{ENVIRONMENT, Server, parsed};
use super::terminal::{count, plain};

#[derive(Args, Debug)]
#[command(after_help = ENVIRONMENT)]
pub(super) struct Arguments {
    #[command(flatten)]
    server: Server,
}

/// The answer, perhaps of a server of another version.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    node: Option<String>,
    name: Option<String>,
    leader: Option<String>,
    term: u64,
    absorbed: u64,
    nats: Option<String>,
    nodes: Vec<Node>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Node {
    node: String,
    version: String,
    leads: bool,
    behind: u64,
    policies: String,
    sessions: u64,
    lack: Option<String>,
    heard_ms: u64,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let server = &arguments.server;
    let answer = server.address()?.get("/cluster")?;
    server.print(&answer, |answer| Ok(for_people(&parsed(answer)?)))
}

fn for_people(answer: &Answer) -> String {
    let Some(name) = &answer.name else { return "this server is alone (cluster.nats is empty)\n".to_owned() };
    let text = |text: &Option<String>, none: &str| text.as_deref().map_or_else(|| none.to_owned(), plain);
    let mut out = String::new();
    // Writing to a string can't fail.
    let _ = writeln!(
        out,
        "{}: {} leads (term {}), frame {}, NATS {}; as {} knows it",
        plain(name),
        text(&answer.leader, "nobody"),
        answer.term,
        answer.absorbed,
        text(&answer.nats, "?"),
        text(&answer.node, "?")
    );
    let width = answer.nodes.iter().map(|node| plain(&node.node).chars().count()).max().unwrap_or_default();
    for node in &answer.nodes {
        let leads = if node.leads { "leads  " } else { "follows" };
        let behind = if node.behind == 0 { String::new() } else { format!("  {} behind", count(node.behind, "frame", "frames")) };
        let policies: String = plain(&node.policies).chars().take(12).collect();
        let _ = writeln!(
            out,
            "  {:width$}  {leads}  {}  policies {policies}  {}{behind}  heard {} ms ago",
            plain(&node.node),
            plain(&node.version),
            count(node.sessions, "session", "sessions"),
            node.heard_ms
        );
    }
    for node in &answer.nodes {
        if let Some(why) = &node.lack {
            let _ = writeln!(out, "  {}: {}", plain(&node.node), plain(why));
        }
    }
    let mut policies: Vec<&str> = answer.nodes.iter().map(|node| &*node.policies).collect();
    policies.sort_unstable();
    policies.dedup();
    if policies.len() > 1 {
        let _ = writeln!(out, "  the nodes have different policies: one that lacks nothing has other settings of them");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_listed_and_different_policies_are_said() {
        let answer = r#"{"node":"b","name":"signalpost","leader":"a","term":3,"absorbed":40,"nats":"2.15.1","nodes":[
            {"node":"a","version":"1","leads":true,"policies":"0123456789abcdef","sessions":1,"heard_ms":12},
            {"node":"b","version":"1","behind":2,"policies":"0123456789abcdee","sessions":20,"lack":"chat can't be fetched","heard_ms":3}]}"#;
        let expected = "signalpost: a leads (term 3), frame 40, NATS 2.15.1; as b knows it\n  \
                        a  leads    1  policies 0123456789ab  1 session  heard 12 ms ago\n  \
                        b  follows  1  policies 0123456789ab  20 sessions  2 frames behind  heard 3 ms ago\n  \
                        b: chat can't be fetched\n  the nodes have different policies: one that lacks nothing has other settings of them\n";
        assert_eq!(for_people(&serde_json::from_str(answer).unwrap()), expected);
        assert_eq!(for_people(&Answer::default()), "this server is alone (cluster.nats is empty)\n");
    }
}
