//! Why a socket is closed: one table of codes and reasons, the same as in docs/protocol.md.
//!
//! The range tells a client what to do: 1001, 1012 and 4000–4099 reconnect now; 1011, 1013 and 4100–4199 back off; all others
//! stop. Codes below 4000 are RFC 6455's and IANA's.

use std::borrow::Cow;

/// A reason to close a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Close {
    /// A frame broke RFC 6455, text was not UTF-8, or a message was too big.
    Protocol {
        code: u16,
        reason: &'static str,
    },
    /// The server stops or restarts.
    Restart,
    /// A policy that decides about this socket failed.
    PolicyFault,
    NoPong,
    /// The session's token has expired, and the client sent no new one.
    TokenExpired,
    SlowConsumer,
    /// The user has more than `sockets.per_user_max` sessions, and the newest is refused.
    TooManySessions,
    /// The client sent more than `sockets.messages_per_second_max` or `sockets.bytes_per_second_max`.
    TooManyMessages,
    /// The producer has sent more frames than `publish.credit` without waiting for answers.
    TooManyInFlight,
    EndedByOperator,
    Idle,
    /// A newer session of the same user replaced this one.
    Replaced,
    RefusedByPolicy(String),
    ClosedByPolicy(String),
    /// The first frame had no valid token, or did not arrive in time.
    Unauthorized,
}

/// The reasons that have no text of their own.
const PLAIN: [Close; 12] = [
    Close::Restart,
    Close::PolicyFault,
    Close::NoPong,
    Close::TokenExpired,
    Close::SlowConsumer,
    Close::TooManySessions,
    Close::TooManyMessages,
    Close::TooManyInFlight,
    Close::EndedByOperator,
    Close::Idle,
    Close::Replaced,
    Close::Unauthorized,
];

impl Close {
    pub fn code(&self) -> u16 {
        match self {
            Close::Protocol { code, .. } => *code,
            Close::Restart => 1012,
            Close::PolicyFault => 1011,
            Close::NoPong => 4000,
            Close::TokenExpired => 4001,
            Close::SlowConsumer => 4100,
            Close::TooManySessions => 4101,
            Close::TooManyMessages => 4102,
            Close::TooManyInFlight => 4103,
            Close::EndedByOperator => 4200,
            Close::Idle => 4201,
            Close::Replaced => 4202,
            Close::RefusedByPolicy(_) => 4203,
            Close::ClosedByPolicy(_) => 4204,
            Close::Unauthorized => 4205,
        }
    }

    /// Returns the reason that a policy has given; empty for all others.
    pub fn text(&self) -> &str {
        match self {
            Close::RefusedByPolicy(text) | Close::ClosedByPolicy(text) => text,
            _ => "",
        }
    }

    /// Returns the reason of this code and text, if a node may have told another one of it.
    pub fn of(code: u16, text: &str) -> Option<Close> {
        match code {
            4203 => Some(Close::RefusedByPolicy(text.to_owned())),
            4204 => Some(Close::ClosedByPolicy(text.to_owned())),
            _ => PLAIN.into_iter().find(|close| close.code() == code),
        }
    }

    /// Returns the reason, of which at most 123 bytes reach the client.
    pub fn reason(&self) -> Cow<'_, str> {
        match self {
            Close::Protocol { reason, .. } => (*reason).into(),
            Close::Restart => "server restarts, reconnect".into(),
            Close::PolicyFault => "a policy failed, back off".into(),
            Close::NoPong => "no pong in time, reconnect".into(),
            Close::TokenExpired => "the token has expired, reconnect with a new one".into(),
            Close::SlowConsumer => "slow consumer, back off and resume".into(),
            Close::TooManySessions => "too many sessions of this user, back off".into(),
            Close::TooManyMessages => "too many messages or bytes, back off".into(),
            Close::TooManyInFlight => "more frames under way than the credit, back off".into(),
            Close::EndedByOperator => "ended by the operator".into(),
            Close::Idle => "idle for too long".into(),
            Close::Replaced => "replaced by a newer session".into(),
            Close::Unauthorized => "no valid token".into(),
            Close::RefusedByPolicy(reason) | Close::ClosedByPolicy(reason) => reason.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// What clients do after a close. The tests of the JavaScript client read it too.
    const TABLE: &str = include_str!("../../clients/close-codes.json");

    #[derive(Deserialize)]
    struct Table {
        ranges: Vec<Range>,
        codes: Vec<Row>,
    }

    #[derive(Deserialize)]
    struct Range {
        from: u16,
        to: u16,
        then: String,
    }

    #[derive(Deserialize)]
    struct Row {
        code: u16,
        then: String,
    }

    /// Returns what a client does after this close. A new one has to be added here, to `PLAIN` and to the table.
    fn then(close: &Close) -> &'static str {
        match close {
            Close::Restart | Close::NoPong | Close::TokenExpired => "now",
            Close::PolicyFault | Close::SlowConsumer | Close::TooManySessions | Close::TooManyMessages | Close::TooManyInFlight => {
                "back_off"
            }
            Close::Protocol { .. }
            | Close::EndedByOperator
            | Close::Idle
            | Close::Replaced
            | Close::RefusedByPolicy(_)
            | Close::ClosedByPolicy(_)
            | Close::Unauthorized => "stop",
        }
    }

    fn every_close() -> Vec<Close> {
        let mut every = vec![Close::RefusedByPolicy(String::new()), Close::ClosedByPolicy(String::new())];
        every.extend(PLAIN);
        every.extend([1002, 1007, 1009].map(|code| Close::Protocol { code, reason: "" }));
        every
    }

    #[test]
    fn the_clients_table_says_of_each_close_what_the_server_means() {
        let table: Table = serde_json::from_str(TABLE).unwrap();
        for close in every_close() {
            let code = close.code();
            let row = table.codes.iter().find(|row| row.code == code).unwrap_or_else(|| panic!("{code} is not in the table"));
            let range = table.ranges.iter().find(|range| (range.from..=range.to).contains(&code)).unwrap();
            assert_eq!((row.then.as_str(), range.then.as_str()), (then(&close), then(&close)), "{code}");
        }
        // What the server doesn't send: the client's own code is echoed, and the two that stand for an end without a code.
        let others: Vec<u16> =
            table.codes.iter().map(|row| row.code).filter(|code| !every_close().iter().any(|close| close.code() == *code)).collect();
        assert_eq!(others, [1000, 1005, 1006]);
    }
}
