//! How the server is spoken to: at Signalpost's addresses, or in the words of a server that it is compared with.
//!
//! A closed set, whose differences are all here: where a reader connects and what it says to be told of a channel, how a message is
//! handed in, what the answer means, and which bytes of a frame are the message. Who is no Signalpost has channels instead of policies:
//! each user's is named as the user, the one of all users as the run.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::SystemTime;

use clap::ValueEnum;
use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::{Digest as _, Md5};
use serde::Serialize;
use sha2::Sha256;

use super::producer::Answer;

/// The id, key and secret of the app that a server of Pusher's protocol must have.
const APP: &str = "load";

/// The line that begins each connection with NATS; a verbose one has an answer to each message.
pub const NATS_VERBOSE: &str = "CONNECT {\"verbose\":true,\"pedantic\":false,\"lang\":\"load\",\"version\":\"1\",\"protocol\":1}\r\n";

const NATS_QUIET: &str = "CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"load\",\"version\":\"1\",\"protocol\":1}\r\n";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// Signalpost's, and of whatever serves the same addresses.
    #[default]
    Signalpost,
    /// nginx with nchan: /ws/CHANNEL is subscribed to, /pub/CHANNEL takes messages.
    Nchan,
    /// NATS: WebSockets for readers; producers speak its own protocol over TCP and have each message answered by +OK.
    Nats,
    /// Sockudo, or another server of Pusher's protocol, with an app whose id, key and secret are "load".
    Sockudo,
}

/// What a frame, or a part of it, is to a reader.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard<'a> {
    Message(Cow<'a, [u8]>),
    /// The server asks whether anybody is there; this is the answer.
    Ping(&'static str),
    /// From now on messages come.
    Subscribed,
    /// About the connection.
    Other,
}

impl Dialect {
    /// Whether everybody can be told by a message to one channel, instead of by a group that a policy made.
    pub fn has_channels(self) -> bool {
        self != Dialect::Signalpost
    }

    /// Where the WebSocket of a channel's reader is, below the base path.
    pub fn socket_path(self, channel: &str) -> String {
        match self {
            Dialect::Signalpost | Dialect::Nchan => format!("/ws/{channel}"),
            Dialect::Nats => "/".to_owned(),
            Dialect::Sockudo => format!("/app/{APP}?protocol=7&client=load&version=1"),
        }
    }

    /// What a reader must say after the handshake, before it waits for [`Heard::Subscribed`].
    pub fn subscription(self, channel: &str) -> Option<String> {
        match self {
            Dialect::Signalpost | Dialect::Nchan => None,
            Dialect::Nats => Some(format!("{NATS_QUIET}SUB {channel} 1\r\nPING\r\n")),
            Dialect::Sockudo => Some(format!(r#"{{"event":"pusher:subscribe","data":{{"channel":"{channel}"}}}}"#)),
        }
    }

    /// The first thing in a frame's payload, and what follows it.
    ///
    /// # Errors
    /// The dialect knows no such thing, or its end is in another frame, which these servers don't do.
    pub fn first(self, payload: &[u8]) -> Result<(Heard<'_>, &[u8]), &'static str> {
        match self {
            Dialect::Signalpost | Dialect::Nchan => Ok((Heard::Message(payload.into()), &[])),
            Dialect::Nats => nats(payload),
            Dialect::Sockudo => Ok((pusher(payload), &[])),
        }
    }

    /// Addresses the message in `body` to a channel: the path below the base path, and what else the body needs.
    pub fn address(self, channel: std::fmt::Arguments<'_>, path: &mut String, body: &mut Vec<u8>) {
        path.clear();
        // Writing to a string can't fail.
        let _ = match self {
            Dialect::Signalpost => write!(path, "/users/{channel}/messages"),
            Dialect::Nchan => write!(path, "/pub/{channel}"),
            Dialect::Nats => path.write_fmt(channel),
            Dialect::Sockudo => {
                // Its data is a text. Of all that JSON escapes, there are only quotation marks in our messages.
                let text = String::from_utf8_lossy(body).replace('"', "\\\"");
                *body = format!(r#"{{"name":"load","channel":"{channel}","data":"{text}"}}"#).into_bytes();
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
                path.write_str(&signed(body, now))
            }
        };
    }

    /// Whether an answer says that the message was taken, for so many readers where it says that.
    pub fn took(self, answer: &Answer<'_>, deliveries: u64) -> bool {
        match self {
            Dialect::Signalpost => answer.status == 202 && answer.posted() == deliveries,
            // 202 would be a message that nobody was subscribed to.
            Dialect::Nchan => answer.status == 201,
            Dialect::Nats | Dialect::Sockudo => answer.status == 200,
        }
    }
}

fn nats(bytes: &[u8]) -> Result<(Heard<'_>, &[u8]), &'static str> {
    const CUT: &str = "a frame of NATS ends within a line or a message";
    let end = bytes.windows(2).position(|pair| pair == b"\r\n").ok_or(CUT)?;
    let (line, rest) = bytes.split_at(end);
    let rest = rest.get(2..).unwrap_or_default();
    match line {
        b"PING" => Ok((Heard::Ping("PONG\r\n"), rest)),
        // The answer to the PING after the subscription; there is no other.
        b"PONG" => Ok((Heard::Subscribed, rest)),
        _ if line.starts_with(b"MSG ") => {
            let size = line.rsplit(|byte| *byte == b' ').next().and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
            let (message, rest) = rest.split_at_checked(size.ok_or("a message of NATS has no size")?).ok_or(CUT)?;
            Ok((Heard::Message(message.into()), rest.strip_prefix(b"\r\n").ok_or(CUT)?))
        }
        _ if line.starts_with(b"-ERR") => Err("NATS refused something"),
        _ => Ok((Heard::Other, rest)),
    }
}

fn pusher(payload: &[u8]) -> Heard<'_> {
    const OWN: &[u8] = br#"{"event":"pusher"#;
    let Some(rest) = payload.strip_prefix(OWN) else {
        return Heard::Message(payload.iter().copied().filter(|byte| *byte != b'\\').collect());
    };
    if rest.starts_with(b"_internal:subscription_succeeded") {
        Heard::Subscribed
    } else if rest.starts_with(b":ping") {
        Heard::Ping(r#"{"event":"pusher:pong","data":{}}"#)
    } else {
        Heard::Other
    }
}

/// The path of an event with this body, with the query that proves who sends it: Pusher's HTTP API, "Authentication".
fn signed(body: &[u8], now_s: u64) -> String {
    let path = format!("/apps/{APP}/events");
    let query = format!("auth_key={APP}&auth_timestamp={now_s}&auth_version=1.0&body_md5={}", hex(&Md5::digest(body)));
    // A key of any length is good for HMAC, so this can't fail.
    let signature =
        Hmac::<Sha256>::new_from_slice(APP.as_bytes()).map(|hmac| hmac.chain_update(format!("POST\n{path}\n{query}")).finalize());
    let signature = signature.map(|code| hex(&code.into_bytes())).unwrap_or_default();
    format!("{path}?{query}&auth_signature={signature}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(dialect: Dialect, mut payload: &[u8]) -> Result<Vec<Heard<'_>>, &'static str> {
        let mut heard = Vec::new();
        while !payload.is_empty() {
            let (one, rest) = dialect.first(payload)?;
            heard.push(one);
            payload = rest;
        }
        Ok(heard)
    }

    #[test]
    fn a_frame_of_nats_may_hold_several_things() {
        let frame = b"INFO {}\r\nPONG\r\nMSG a 1 4\r\n{\r\n}\r\nPING\r\nMSG a 1 reply 0\r\n\r\n";
        let expected =
            vec![Heard::Other, Heard::Subscribed, Heard::Message(b"{\r\n}".into()), Heard::Ping("PONG\r\n"), Heard::Message(b"".into())];
        assert_eq!(all(Dialect::Nats, frame), Ok(expected));
        assert!(all(Dialect::Nats, b"MSG a 1 4\r\nabc").is_err(), "a message that ends elsewhere");
        assert!(all(Dialect::Nats, b"MSG a 1 3\r\nabcd\r\n").is_err(), "a message that is longer than it says");
        assert!(all(Dialect::Nats, b"-ERR 'Slow Consumer'\r\n").is_err());
    }

    #[test]
    fn a_pusher_event_has_the_message_that_was_handed_in() {
        let (mut path, mut body) = (String::new(), br#"{"load":"r/0/1/2=3"}"#.to_vec());
        Dialect::Sockudo.address(format_args!("r-2"), &mut path, &mut body);
        let event = String::from_utf8(body).unwrap().replace(r#"{"name""#, r#"{"event""#);
        let Ok((Heard::Message(message), [])) = Dialect::Sockudo.first(event.as_bytes()) else { panic!("{event}") };
        assert!(String::from_utf8_lossy(&message).contains(r#"{"load":"r/0/1/2=3"}"#), "{message:?}");
        assert_eq!(pusher(br#"{"event":"pusher_internal:subscription_succeeded","channel":"r-2"}"#), Heard::Subscribed);
        assert_eq!(pusher(br#"{"event":"pusher:connection_established"}"#), Heard::Other);
    }

    #[test]
    fn a_request_is_signed_with_its_body_and_time() {
        let path = signed(b"", 1);
        assert!(path.contains("&body_md5=d41d8cd98f00b204e9800998ecf8427e&auth_signature="), "{path}");
        let signature = |path: &str| path.rsplit('=').next().unwrap().to_owned();
        assert_eq!(signature(&path).len(), 64);
        assert_ne!(signature(&path), signature(&signed(b"", 2)));
        assert_ne!(signature(&path), signature(&signed(b"{}", 1)));
    }

    #[test]
    fn each_dialect_has_its_own_address_and_word_for_yes() {
        let address = |dialect: Dialect| {
            let mut path = "old".to_owned();
            dialect.address(format_args!("r-2"), &mut path, &mut b"{}".to_vec());
            path
        };
        assert_eq!([Dialect::Signalpost, Dialect::Nchan, Dialect::Nats].map(address), ["/users/r-2/messages", "/pub/r-2", "r-2"]);
        let answer = |status| Answer { status, body: br#"{"posted":2}"# };
        assert!(Dialect::Signalpost.took(&answer(202), 2) && !Dialect::Signalpost.took(&answer(202), 1));
        assert!(Dialect::Nchan.took(&answer(201), 1) && !Dialect::Nchan.took(&answer(202), 1));
        assert!(Dialect::Nats.took(&answer(200), 1) && !Dialect::Nats.took(&answer(400), 1));
    }
}
