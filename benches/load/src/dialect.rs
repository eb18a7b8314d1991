//! The server's protocol: Signalpost's, or that of a server that it is compared with.
//!
//! All differences between the servers are here: where a reader connects and how it subscribes, how a message is published,
//! what the answer means, and which bytes of a frame are the message. Other servers have channels, not policies: one per user,
//! named after the user, and one for everybody, named after the run.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::SystemTime;

use clap::ValueEnum;
use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::{Digest as _, Md5};
use serde::Serialize;
use sha2::Sha256;

use super::producer::Answer;

/// The id, key and secret of the app, with which a server of Pusher's protocol must be configured.
const APP: &str = "load";

/// The first line of a producer's connection to NATS. In verbose mode NATS answers each message.
pub const NATS_VERBOSE: &str = "CONNECT {\"verbose\":true,\"pedantic\":false,\"lang\":\"load\",\"version\":\"1\",\"protocol\":1}\r\n";

/// The first line of a reader's connection to NATS.
const NATS_QUIET: &str = "CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"load\",\"version\":\"1\",\"protocol\":1}\r\n";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// Signalpost, or a server with the same paths.
    #[default]
    Signalpost,
    /// nginx with nchan: readers subscribe at /ws/CHANNEL, producers publish to /pub/CHANNEL.
    Nchan,
    /// NATS: readers use WebSockets; producers speak its own protocol over TCP, in verbose mode.
    Nats,
    /// Sockudo, or another server of Pusher's protocol, with an app whose id, key and secret are "load".
    Sockudo,
}

/// One item of a frame's payload.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    Message(Cow<'a, [u8]>),
    /// A ping of the server, with the answer that it expects.
    Ping(&'static str),
    /// The subscription is confirmed.
    Subscribed,
    /// Anything else about the connection.
    Other,
}

impl Dialect {
    /// Returns whether one channel reaches everybody. Signalpost needs a group instead, which a policy makes.
    pub fn has_channels(self) -> bool {
        self != Dialect::Signalpost
    }

    /// Returns the path of a channel's WebSocket, below the base path.
    pub fn socket_path(self, channel: &str) -> String {
        match self {
            Dialect::Signalpost | Dialect::Nchan => format!("/ws/{channel}"),
            Dialect::Nats => "/".to_owned(),
            Dialect::Sockudo => format!("/app/{APP}?protocol=7&client=load&version=1"),
        }
    }

    /// Returns what a reader sends after the handshake, before it waits for [`Item::Subscribed`].
    pub fn subscription(self, channel: &str) -> Option<String> {
        match self {
            Dialect::Signalpost | Dialect::Nchan => None,
            Dialect::Nats => Some(format!("{NATS_QUIET}SUB {channel} 1\r\nPING\r\n")),
            Dialect::Sockudo => Some(format!(r#"{{"event":"pusher:subscribe","data":{{"channel":"{channel}"}}}}"#)),
        }
    }

    /// Splits the first item off a frame's payload, and returns it with the rest.
    ///
    /// # Errors
    /// The payload does not follow the protocol, or an item continues in another frame, which these servers don't do.
    pub fn first(self, payload: &[u8]) -> Result<(Item<'_>, &[u8]), &'static str> {
        match self {
            Dialect::Signalpost | Dialect::Nchan => Ok((Item::Message(payload.into()), &[])),
            Dialect::Nats => nats(payload),
            Dialect::Sockudo => Ok((pusher(payload), &[])),
        }
    }

    /// Addresses the message in `body` to a channel: writes the path below the base path, and wraps the body if necessary.
    pub fn address(self, channel: std::fmt::Arguments<'_>, path: &mut String, body: &mut Vec<u8>) {
        path.clear();
        // Writing to a string can't fail.
        let _ = match self {
            Dialect::Signalpost => write!(path, "/users/{channel}/messages"),
            Dialect::Nchan => write!(path, "/pub/{channel}"),
            Dialect::Nats => path.write_fmt(channel),
            Dialect::Sockudo => {
                // Pusher's `data` is a string. The messages contain no characters to be escaped but quotation marks.
                let text = String::from_utf8_lossy(body).replace('"', "\\\"");
                *body = format!(r#"{{"name":"load","channel":"{channel}","data":"{text}"}}"#).into_bytes();
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
                path.write_str(&signed(body, now))
            }
        };
    }

    /// Returns whether an answer means success. Signalpost's also says how many deliveries it posted.
    pub fn took(self, answer: &Answer<'_>, deliveries: u64) -> bool {
        match self {
            Dialect::Signalpost => answer.status == 202 && answer.posted() == deliveries,
            // 202 would mean that nobody is subscribed.
            Dialect::Nchan => answer.status == 201,
            Dialect::Nats | Dialect::Sockudo => answer.status == 200,
        }
    }
}

fn nats(bytes: &[u8]) -> Result<(Item<'_>, &[u8]), &'static str> {
    const CUT: &str = "a frame from NATS ends within a line or a message";
    let end = bytes.windows(2).position(|pair| pair == b"\r\n").ok_or(CUT)?;
    let (line, rest) = bytes.split_at(end);
    let rest = rest.get(2..).unwrap_or_default();
    match line {
        b"PING" => Ok((Item::Ping("PONG\r\n"), rest)),
        // The answer to the PING after the subscription, which is the only one that a reader sends.
        b"PONG" => Ok((Item::Subscribed, rest)),
        _ if line.starts_with(b"MSG ") => {
            let size = line.rsplit(|byte| *byte == b' ').next().and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
            let (message, rest) = rest.split_at_checked(size.ok_or("a message from NATS has no size")?).ok_or(CUT)?;
            Ok((Item::Message(message.into()), rest.strip_prefix(b"\r\n").ok_or(CUT)?))
        }
        _ if line.starts_with(b"-ERR") => Err("NATS reported an error"),
        _ => Ok((Item::Other, rest)),
    }
}

fn pusher(payload: &[u8]) -> Item<'_> {
    const OWN: &[u8] = br#"{"event":"pusher"#;
    let Some(rest) = payload.strip_prefix(OWN) else {
        return Item::Message(payload.iter().copied().filter(|byte| *byte != b'\\').collect());
    };
    if rest.starts_with(b"_internal:subscription_succeeded") {
        Item::Subscribed
    } else if rest.starts_with(b":ping") {
        Item::Ping(r#"{"event":"pusher:pong","data":{}}"#)
    } else {
        Item::Other
    }
}

/// Returns the path for an event with this body, with the signed query of Pusher's HTTP API ("Authentication").
fn signed(body: &[u8], now_s: u64) -> String {
    let path = format!("/apps/{APP}/events");
    let query = format!("auth_key={APP}&auth_timestamp={now_s}&auth_version=1.0&body_md5={}", HEXLOWER.encode(&Md5::digest(body)));
    // HMAC takes a key of any length, so this can't fail.
    let signature =
        Hmac::<Sha256>::new_from_slice(APP.as_bytes()).map(|hmac| hmac.chain_update(format!("POST\n{path}\n{query}")).finalize());
    let signature = signature.map(|code| HEXLOWER.encode(&code.into_bytes())).unwrap_or_default();
    format!("{path}?{query}&auth_signature={signature}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(dialect: Dialect, mut payload: &[u8]) -> Result<Vec<Item<'_>>, &'static str> {
        let mut items = Vec::new();
        while !payload.is_empty() {
            let (one, rest) = dialect.first(payload)?;
            items.push(one);
            payload = rest;
        }
        Ok(items)
    }

    #[test]
    fn a_frame_from_nats_may_hold_several_items() {
        let frame = b"INFO {}\r\nPONG\r\nMSG a 1 4\r\n{\r\n}\r\nPING\r\nMSG a 1 reply 0\r\n\r\n";
        let expected =
            vec![Item::Other, Item::Subscribed, Item::Message(b"{\r\n}".into()), Item::Ping("PONG\r\n"), Item::Message(b"".into())];
        assert_eq!(all(Dialect::Nats, frame), Ok(expected));
        assert!(all(Dialect::Nats, b"MSG a 1 4\r\nabc").is_err(), "a message that continues in another frame");
        assert!(all(Dialect::Nats, b"MSG a 1 3\r\nabcd\r\n").is_err(), "a message that is longer than its size");
        assert!(all(Dialect::Nats, b"-ERR 'Slow Consumer'\r\n").is_err());
    }

    #[test]
    fn a_pusher_event_contains_the_published_message() {
        let (mut path, mut body) = (String::new(), br#"{"load":"r/0/1/2=3"}"#.to_vec());
        Dialect::Sockudo.address(format_args!("r-2"), &mut path, &mut body);
        let event = String::from_utf8(body).unwrap().replace(r#"{"name""#, r#"{"event""#);
        let Ok((Item::Message(message), [])) = Dialect::Sockudo.first(event.as_bytes()) else { panic!("{event}") };
        assert!(String::from_utf8_lossy(&message).contains(r#"{"load":"r/0/1/2=3"}"#), "{message:?}");
        assert_eq!(pusher(br#"{"event":"pusher_internal:subscription_succeeded","channel":"r-2"}"#), Item::Subscribed);
        assert_eq!(pusher(br#"{"event":"pusher:connection_established"}"#), Item::Other);
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
    fn each_dialect_has_its_own_address_and_answer() {
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
