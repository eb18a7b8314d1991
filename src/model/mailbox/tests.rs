//! What users are owed, with sessions that have no sockets.

mod devices;
mod provisional;
mod sink;
mod slow;
mod totals;

use std::num::NonZeroUsize;
use std::time::{Duration, UNIX_EPOCH};

use tokio::time::{Instant, advance};

use super::*;
use crate::config::{Config, Milliseconds, TooMany};
use crate::model::record::Mark;
use crate::types::delivery::{PolicySetId, Priority};
use crate::types::event::Body;

/// Returns all mailboxes, with a clock that stands still unless a test moves it.
fn mailboxes(change: impl FnOnce(&mut config::Mailboxes, &mut config::Sockets)) -> Arc<Mailboxes> {
    let mut config = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0;
    change(&mut config.mailboxes, &mut config.sockets);
    with(&config, false)
}

fn with(config: &Config, is_kept: bool) -> Arc<Mailboxes> {
    let clock = Clock::Since(UNIX_EPOCH + Duration::from_secs(1_000_000), Instant::now());
    Mailboxes::new(config, clock, 35, is_kept, Arc::new(Metrics::new().unwrap()))
}

fn count(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap()
}

fn defaults() -> Arc<Mailboxes> {
    mailboxes(|_, _| ())
}

fn user(name: &str) -> UserId {
    UserId::new(name, 128).unwrap()
}

fn message(terms: &Terms) -> Arc<Message> {
    Arc::new(Message::new("id".into(), "a.b".into(), Body::Text("x".into()), PolicySetId(1)).with(terms.clone()))
}

impl Mailboxes {
    fn tell(&self, name: &str, terms: &Terms) -> Posted {
        self.post(&user(name), None, &message(terms), &mut Changes::forgotten())
    }

    /// Posts messages that must be taken.
    fn tell_all(&self, name: &str, count: usize) {
        for _ in 0..count {
            assert!(matches!(self.tell(name, &Terms::default()), Posted::Posted { .. }));
        }
    }

    fn enter(self: &Arc<Self>, name: &str, resumes: bool) -> Reader {
        self.open(SessionHandle::new(user(name), None, resumes, Vec::new())).unwrap()
    }

    /// Opens an admitted session without a subprotocol.
    fn plain(self: &Arc<Self>, name: &str) -> Reader {
        let mut reader = self.enter(name, false);
        reader.admit().unwrap();
        reader
    }

    /// Opens an admitted session whose client can resume.
    fn v1(self: &Arc<Self>, name: &str) -> Reader {
        let mut reader = self.enter(name, true);
        reader.admit().unwrap();
        reader
    }

    fn count(&self, reason: DropReason) -> u64 {
        let text = self.metrics.text(&crate::metrics::Gauges::default());
        let series = format!("signalpost_messages_dropped_total{{reason=\"{}\"}} ", reason.name());
        text.unwrap().lines().find_map(|line| line.strip_prefix(series.as_str())).unwrap().parse().unwrap()
    }
}

impl Reader {
    /// Takes everything there is, and returns the seqs. `None`: it has missed something.
    fn take(&mut self) -> Option<Vec<u64>> {
        let mut out = Batch::new();
        match self.page(usize::MAX, &mut out) {
            Page::Missed => return None,
            Page::More { upto } | Page::End { upto } => self.advance(upto),
        }
        Some(out.into_iter().map(|(seq, _)| seq).collect())
    }

    /// Takes everything there is and writes it.
    fn read(&mut self) -> Vec<u64> {
        let seqs = self.take().expect("it has missed nothing");
        self.written();
        seqs
    }
}

#[test]
fn an_epoch_names_the_store_and_the_life_of_the_mailbox() {
    let all = defaults();
    assert_eq!([0, 35, 36, u64::MAX].map(base36), ["0", "z", "10", "3w5e11264sgsf"]);
    let first = all.plain("u").epoch();
    let second = all.plain("u").epoch();
    assert_eq!((first.as_str(), second.as_str()), ("z-1", "z-2"), "the mailbox was forgotten in between");
    assert_ne!(mailboxes(|_, _| ()).plain("other").epoch(), all.plain("other").epoch());
}

#[tokio::test(start_paused = true)]
async fn a_post_notes_what_it_changed() {
    let all = mailboxes(|limits, _| limits.messages_max = count(2));
    let mut changes = Changes::kept(0);
    let keyed = Terms { collapse_key: Some("k".into()), ..Terms::default() };
    for terms in [&keyed, &Terms::default(), &keyed, &Terms::default()] {
        all.post(&user("u"), None, &message(terms), &mut changes);
    }
    all.post(&user("u"), None, &message(&Terms { keep: Some(Duration::ZERO), ..Terms::default() }), &mut changes);
    all.post(&user("u"), None, &message(&Terms { priority: Priority::Low, ..Terms::default() }), &mut changes);
    let noted = changes.into_changes().into_iter().map(|change| match change {
        Change::Post { birth, seq, posted_ms, lost, removed, .. } => (birth, seq, posted_ms, lost, removed),
        Change::Mark { birth, mark: Mark { last, delivered, lost, .. }, .. } => (birth, last, delivered, lost, Vec::new()),
        other => panic!("{other:?}"),
    });
    let at = 1_000_000_000;
    let expected = [(1, 1, at, 0, vec![]), (1, 2, at, 0, vec![]), (1, 3, at, 0, vec![1]), (1, 4, at, 2, vec![2]), (1, 5, 0, 5, vec![])];
    assert_eq!(noted.collect::<Vec<_>>(), expected);
}
