//! The ledger: which messages each user is owed, and which arrived. It finds lost and duplicate messages, wrong readers and
//! wrong order.
//!
//! Each message carries a marker, `"load":"RUN/LANE/AT/USER=NUMBER,…"`. A lane is one producer's connection. Its messages to
//! one user are numbered 1, 2, 3 and so on, which is the order that the server promises.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::ops::AddAssign;
use std::time::Duration;

use serde::Serialize;

use super::histogram::Histogram;

const MARKER: &[u8] = br#""load":""#;

/// The number of errors of each kind. All zero means that every message reached each of its readers once and in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    pub lost: u64,
    pub doubled: u64,
    pub out_of_order: u64,
    pub wrong_reader: u64,
}

/// The messages that are owed and those that arrived. Users and lanes are numbered from 0.
#[derive(Debug)]
pub struct Ledger {
    run: String,
    lanes: usize,
    /// One for each user and lane.
    accounts: Vec<Account>,
    /// For each lane, the number of messages that were sent to everybody.
    sent_to_all: Vec<u32>,
    missing: BTreeMap<usize, BTreeSet<u32>>,
    owed: u64,
    arrived: u64,
    unmarked: u64,
    findings: Findings,
    latency: Histogram,
}

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    /// The number of the last message that was sent to this user and not to everybody.
    sent: u32,
    /// Every message up to this number either arrived or is in `missing`.
    seen: u32,
}

impl Ledger {
    /// Makes a ledger for this many users and lanes. `run` distinguishes the messages of this run from those of another.
    pub fn new(run: &str, users: u32, lanes: u32) -> Ledger {
        let (users, lanes) = (users as usize, lanes as usize);
        Ledger {
            run: run.to_owned(),
            lanes,
            accounts: vec![Account::default(); users * lanes],
            sent_to_all: vec![0; lanes],
            missing: BTreeMap::new(),
            owed: 0,
            arrived: 0,
            unmarked: 0,
            findings: Findings::default(),
            latency: Histogram::default(),
        }
    }

    /// Enters a message to these users, each named once, and appends its marker, a member of a JSON object. A lane carries either
    /// messages to some users or messages to everybody.
    pub fn send(&mut self, lane: u32, at: Duration, to: &[u32], out: &mut Vec<u8>) {
        self.open_marker(lane, at, out);
        for (index, user) in to.iter().enumerate() {
            let account = *user as usize * self.lanes + lane as usize;
            let Some(account) = self.accounts.get_mut(account) else { continue };
            account.sent += 1;
            self.owed += 1;
            let comma = if index > 0 { "," } else { "" };
            // Writing to a vector can't fail.
            let _ = write!(out, "{comma}{user}={}", account.sent);
        }
        out.push(b'"');
    }

    /// Enters a message to everybody, and appends its marker.
    pub fn send_to_all(&mut self, lane: u32, at: Duration, out: &mut Vec<u8>) {
        self.open_marker(lane, at, out);
        self.owed += self.users() as u64;
        if let Some(sent) = self.sent_to_all.get_mut(lane as usize) {
            *sent += 1;
            let _ = write!(out, "*={sent}\"");
        }
    }

    fn open_marker(&self, lane: u32, at: Duration, out: &mut Vec<u8>) {
        out.extend_from_slice(MARKER);
        let _ = write!(out, "{}/{lane}/{}/", self.run, at.as_nanos());
    }

    /// Enters a message that `user` read at this time of the run.
    pub fn read(&mut self, user: u32, payload: &[u8], now: Duration) {
        let Some(Marker { lane, at, numbers }) = Marker::find(payload, &self.run) else {
            self.unmarked += 1;
            return;
        };
        let index = user as usize * self.lanes + lane;
        let (Some(number), true) = (number_of(user, numbers), lane < self.lanes) else {
            self.findings.wrong_reader += 1;
            return;
        };
        let Some(account) = self.accounts.get_mut(index) else { return };
        if number == account.seen + 1 {
            account.seen = number;
        } else if number > account.seen {
            self.missing.entry(index).or_default().extend(account.seen + 1..number);
            account.seen = number;
        } else if self.missing.get_mut(&index).is_some_and(|missing| missing.remove(&number)) {
            self.findings.out_of_order += 1;
        } else {
            self.findings.doubled += 1;
            return;
        }
        self.arrived += 1;
        self.latency.record(now.saturating_sub(Duration::from_nanos(at)));
    }

    pub fn users(&self) -> usize {
        self.accounts.len() / self.lanes.max(1)
    }

    /// Returns the number of deliveries (messages times readers) that were entered.
    pub fn owed(&self) -> u64 {
        self.owed
    }

    pub fn arrived(&self) -> u64 {
        self.arrived
    }

    pub fn outstanding(&self) -> u64 {
        self.owed.saturating_sub(self.arrived)
    }

    /// Returns the number of messages without a marker of this run, such as a policy's or an operator's.
    pub fn unmarked(&self) -> u64 {
        self.unmarked
    }

    /// Returns the times from when a message was due to be sent to when it was read.
    pub fn latency(&self) -> &Histogram {
        &self.latency
    }

    /// Starts a new histogram.
    pub fn forget_latency(&mut self) {
        self.latency = Histogram::default();
    }

    /// Returns the errors so far; a message that has not arrived counts as lost.
    pub fn findings(&self) -> Findings {
        let behind = self.accounts.iter().enumerate().map(|(index, account)| {
            let to_all = self.sent_to_all.get(index % self.lanes).copied().unwrap_or_default();
            u64::from((account.sent + to_all).saturating_sub(account.seen))
        });
        let skipped = self.missing.values().map(|missing| missing.len() as u64);
        Findings { lost: behind.sum::<u64>() + skipped.sum::<u64>(), ..self.findings }
    }
}

impl Findings {
    pub fn exact(&self) -> bool {
        *self == Findings::default()
    }
}

impl AddAssign for Findings {
    fn add_assign(&mut self, other: Findings) {
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.out_of_order += other.out_of_order;
        self.wrong_reader += other.wrong_reader;
    }
}

struct Marker<'a> {
    lane: usize,
    at: u64,
    numbers: &'a str,
}

impl<'a> Marker<'a> {
    fn find(payload: &'a [u8], run: &str) -> Option<Marker<'a>> {
        let start = payload.windows(MARKER.len()).position(|window| window == MARKER)? + MARKER.len();
        let rest = payload.get(start..)?;
        let end = rest.iter().position(|byte| *byte == b'"')?;
        let text = std::str::from_utf8(rest.get(..end)?).ok()?;
        let (lane, rest) = text.strip_prefix(run)?.strip_prefix('/')?.split_once('/')?;
        let (at, numbers) = rest.split_once('/')?;
        Some(Marker { lane: lane.parse().ok()?, at: at.parse().ok()?, numbers })
    }
}

fn number_of(user: u32, numbers: &str) -> Option<u32> {
    numbers.split(',').find_map(|pair| {
        let (name, number) = pair.split_once('=')?;
        let named = name == "*" || name.parse() == Ok(user);
        named.then(|| number.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: Duration = Duration::from_millis(1);

    fn ledger_and_messages(users: &[u32], count: usize) -> (Ledger, Vec<Vec<u8>>) {
        let mut ledger = Ledger::new("r", 3, 2);
        let messages = (0..count).map(|_| {
            let mut body = b"{\"a\":1,".to_vec();
            ledger.send(1, Duration::ZERO, users, &mut body);
            body.push(b'}');
            body
        });
        let messages = messages.collect();
        (ledger, messages)
    }

    #[test]
    fn messages_that_arrive_once_and_in_order_are_exact() {
        let (mut ledger, messages) = ledger_and_messages(&[0, 2], 3);
        assert_eq!(messages[1], br#"{"a":1,"load":"r/1/0/0=2,2=2"}"#);
        for message in &messages {
            ledger.read(2, message, LATER);
            ledger.read(0, message, LATER);
        }
        assert!(ledger.findings().exact());
        assert_eq!((ledger.owed(), ledger.outstanding(), ledger.latency().count()), (6, 0, 6));
        let latency = ledger.latency().max().as_secs_f64();
        assert!((latency / LATER.as_secs_f64() - 1.0).abs() < 0.001, "{latency}");
    }

    #[test]
    fn losses_duplicates_wrong_readers_and_wrong_order_are_counted_apart() {
        let (mut ledger, messages) = ledger_and_messages(&[0], 6);
        for index in [0, 2, 1, 2, 4] {
            ledger.read(0, &messages[index], LATER);
        }
        ledger.read(1, &messages[0], LATER);
        ledger.read(0, br#"{"load":"another run/1/0/0=1"}"#, LATER);
        assert_eq!(ledger.findings(), Findings { lost: 2, doubled: 1, out_of_order: 1, wrong_reader: 1 });
        assert_eq!((ledger.unmarked(), ledger.outstanding()), (1, 2));
    }

    #[test]
    fn a_message_to_everybody_is_owed_to_each_user() {
        let mut ledger = Ledger::new("r", 2, 1);
        let mut body = Vec::new();
        ledger.send_to_all(0, Duration::ZERO, &mut body);
        ledger.read(1, &body, LATER);
        assert_eq!((ledger.owed(), ledger.findings().lost), (2, 1));
        ledger.read(0, &body, LATER);
        assert!(ledger.findings().exact());
    }
}
