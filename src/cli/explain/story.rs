//! Prints an explanation for people. Missing members are omitted: the server may be older or newer than this client.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::cli::send::receipt;
use crate::cli::terminal::{count, plain, word};

#[derive(Default, Deserialize)]
#[serde(default)]
struct Explained {
    explanation: Explanation,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Explanation {
    dry_run: bool,
    policies: Vec<Policy>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Policy {
    name: String,
    took_us: u64,
    joins: Vec<Membership>,
    deliveries: Vec<Delivery>,
    more: u64,
    leaves: Vec<Membership>,
    ends: Vec<String>,
}

#[derive(Deserialize)]
struct Membership {
    group: String,
    user: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Delivery {
    /// `{"users": […]}`, `{"group": …}`, `"everyone"`.
    to: Value,
    except: Vec<String>,
    message: Option<Body>,
    terms: BTreeMap<String, Value>,
    recipients: Vec<Recipient>,
    more: u64,
    formatting: Vec<String>,
    classes: Vec<Class>,
}

/// A body. JSON stays as it is written, so that no number loses digits.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Body {
    Json(Box<RawValue>),
    Text(String),
    Base64(String),
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Recipient {
    user: String,
    seq: Option<u64>,
    dropped: Option<String>,
    sessions: Vec<Session>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Session {
    subprotocol: Option<String>,
    class: usize,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Class {
    attributes: BTreeMap<String, Option<String>>,
    sees: Option<Body>,
    dropped: Option<String>,
    took: Vec<Took>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Took {
    name: String,
    took_us: u64,
}

/// Returns the receipt, followed by what each policy did.
pub(in crate::cli) fn for_people(answer: &str) -> String {
    let Ok(Explained { explanation }) = serde_json::from_str(answer) else {
        return format!("the server's explanation has an unknown format: {}\n", plain(answer));
    };
    let mut out = receipt::for_people(answer);
    if explanation.dry_run {
        out = out.replacen("published", "would publish", 1);
    }
    for policy in &explanation.policies {
        // Writing to a string can't fail.
        let _ = writeln!(out, "\n{} ({} µs)", plain(&policy.name), policy.took_us);
        memberships(&mut out, "joins", &policy.joins);
        policy.deliveries.iter().for_each(|delivery| tell(&mut out, delivery));
        if policy.more > 0 {
            let _ = writeln!(out, "  and {} more deliveries", policy.more);
        }
        memberships(&mut out, "leaves", &policy.leaves);
        if !policy.ends.is_empty() {
            let _ = writeln!(out, "  ends   {}", plain(&policy.ends.join(", ")));
        }
    }
    out
}

fn memberships(out: &mut String, verb: &str, memberships: &[Membership]) {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Membership { group, user } in memberships {
        groups.entry(group).or_default().push(user);
    }
    for (group, users) in groups {
        let _ = writeln!(out, "  {verb:6} {}: {}", plain(group), plain(&users.join(", ")));
    }
}

fn tell(out: &mut String, delivery: &Delivery) {
    let except = if delivery.except.is_empty() { String::new() } else { format!(" except {}", plain(&delivery.except.join(", "))) };
    let terms: Vec<String> = delivery.terms.iter().map(|(name, value)| format!("{} {}", plain(name), word(value))).collect();
    let terms = if terms.is_empty() { String::new() } else { format!(" ({})", terms.join(", ")) };
    let _ = writeln!(out, "  tells  {}{except}{terms}", to(&delivery.to));
    let _ = writeln!(out, "         {}", body(delivery.message.as_ref()));
    for recipient in &delivery.recipients {
        let _ = writeln!(out, "    {}  {}", plain(&recipient.user), reached(recipient));
    }
    if delivery.more > 0 {
        let _ = writeln!(out, "    and {} more", delivery.more);
    }
    if delivery.formatting.is_empty() || delivery.classes.is_empty() {
        return;
    }
    let _ = writeln!(out, "    shaped by {}", plain(&delivery.formatting.join(", then ")));
    for (index, class) in delivery.classes.iter().enumerate() {
        let attributes = class.attributes.iter().filter_map(|(name, value)| value.as_ref().map(|value| format!(" {name}={value}")));
        let seen = match &class.dropped {
            Some(reason) => format!("nothing: {}", plain(reason)),
            None => body(class.sees.as_ref()),
        };
        let took: Vec<String> = class.took.iter().map(|took| format!("{} {} µs", plain(&took.name), took.took_us)).collect();
        let took = if took.is_empty() { String::new() } else { format!("  ({})", took.join(", ")) };
        let _ = writeln!(out, "      [{}]{}  {seen}{took}", index + 1, plain(&attributes.collect::<String>()));
    }
}

fn to(to: &Value) -> String {
    match to {
        Value::Object(members) => {
            let words = members.iter().map(|(kind, value)| match value {
                Value::Array(users) => users.iter().map(word).collect::<Vec<_>>().join(", "),
                Value::Object(session) => {
                    session.iter().map(|(name, value)| format!("{} {}", plain(name), word(value))).collect::<Vec<_>>().join(", ")
                }
                other => format!("{} {}", plain(kind), word(other)),
            });
            words.collect::<Vec<_>>().join(", ")
        }
        other => word(other),
    }
}

/// Returns what happened to a message for one user: whether it is in the mailbox, and which sessions read it, each by its class.
fn reached(recipient: &Recipient) -> String {
    if let Some(reason) = &recipient.dropped {
        return format!("dropped: {}", plain(reason));
    }
    let seq = recipient.seq.map(|seq| format!("seq {seq}, ")).unwrap_or_default();
    if recipient.sessions.is_empty() {
        return format!("{seq}no session; it waits in the mailbox");
    }
    let sessions = recipient.sessions.iter().map(|session| {
        let subprotocol = session.subprotocol.as_deref().map(|name| format!(" {}", plain(name))).unwrap_or_default();
        format!("[{}]{subprotocol}", session.class + 1)
    });
    let number = count(recipient.sessions.len() as u64, "session", "sessions");
    format!("{seq}{number}: {}", sessions.collect::<Vec<_>>().join(", "))
}

fn body(body: Option<&Body>) -> String {
    match body {
        Some(Body::Json(text)) => plain(text.get()),
        Some(Body::Text(text)) => plain(&format!("{text:?}")),
        Some(Body::Base64(text)) => format!("base64 {}", plain(text)),
        None => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_is_told_in_words() {
        let answer = r#"{"id":"e1","policies":[{"name":"pooling","version":"0.1.0","outcome":"routed","deliveries":2}],"recipients":2,"posted":2,
            "explanation":{"dry_run":true,"revision":3,"policies":[{"name":"pooling","took_us":12,
              "joins":[{"group":"pool:7","user":"1"},{"group":"pool:7","user":"2"}],
              "deliveries":[
                {"to":{"users":["1","2"]},"message":{"json":{"n":1.0}},"terms":{"ttl_ms":500,"priority":"high"},
                 "recipients":[{"user":"1","seq":4,"sessions":[{"subprotocol":"signalpost.v1","class":1},{"subprotocol":null,"class":0}]},
                   {"user":"2","sessions":[]}],
                 "more":3,"formatting":["a","b"],
                 "classes":[{"attributes":{"locale":null},"sees":{"text":"x\ny"},"took":[{"name":"a","took_us":7},{"name":"b","took_us":1}]},{"attributes":{"locale":"de"},"dropped":"formatted"}]},
                {"to":"everyone","except":["3"],"message":{"base64":"AP8="},"recipients":[{"user":"4","dropped":"mailbox_full"}]},
                {"to":{"group":"g"}},{"to":{"session":{"user":"1","session":"s"}}}],
              "leaves":[],"ends":["pool:7"]}]}}"#;
        let story = "would publish e1 → 2 recipients, 2 posted
  pooling 0.1.0  routed: 2 deliveries

pooling (12 µs)
  joins  pool:7: 1, 2
  tells  1, 2 (priority high, ttl_ms 500)
         {\"n\":1.0}
    1  seq 4, 2 sessions: [2] signalpost.v1, [1]
    2  no session; it waits in the mailbox
    and 3 more
    shaped by a, then b
      [1]  \"x\\ny\"  (a 7 µs, b 1 µs)
      [2] locale=de  nothing: formatted
  tells  everyone except 3
         base64 AP8=
    4  dropped: mailbox_full
  tells  group g
         ?
  tells  user 1, session s
         ?
  ends   pool:7
";
        assert_eq!(for_people(answer), story);
    }

    #[test]
    fn an_explanation_may_lack_anything() {
        assert_eq!(for_people("{}"), "published → 0 recipients, 0 posted\n");
        assert!(for_people("[]").contains("an unknown format"));
    }
}
