//! Who leads, as one node knows it: pure, time is an argument. What counts is in the stream: a node leads when its record of that is stored,
//! and until a later one is.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config;
use crate::store::codec::Lead;

/// What a node knows of the leader.
#[derive(Debug)]
pub struct Election {
    /// The run of this node.
    me: Arc<str>,
    last: Option<Lead>,
    /// Whether the leader has stopped, so that nobody leads.
    is_over: bool,
    /// When this node may lead if it hears of nobody until then.
    due: Instant,
    beat: Duration,
    lead_after: Duration,
}

/// What a record about leading means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    Nothing,
    /// Another node leads now.
    Leads,
    /// This node may lead at once.
    MayLead,
}

impl Election {
    pub fn new(me: Arc<str>, config: &config::Cluster, now: Instant) -> Election {
        let (beat, lead_after) = (*config.beat_ms, *config.lead_after_ms);
        Election { me, last: None, is_over: false, due: now + lead_after, beat, lead_after }
    }

    /// Returns the latest term.
    pub fn term(&self) -> u64 {
        self.last.as_ref().map_or(0, |lead| lead.term)
    }

    /// Returns who leads, if it is known.
    pub fn leader(&self) -> Option<&Lead> {
        self.last.as_ref().filter(|_| !self.is_over)
    }

    /// Returns whether a frame counts: it is of the latest term. One of an older term was written by a node that no longer led.
    pub fn counts(&self, term: u64) -> bool {
        term == self.term()
    }

    /// Hears that a node leads. Returns whether it does: the first one of a term, if there is no later term.
    pub fn lead(&mut self, lead: &Lead, now: Instant) -> Heard {
        if lead.term <= self.term() {
            return Heard::Nothing;
        }
        self.last = Some(lead.clone());
        self.is_over = false;
        self.hear(now);
        Heard::Leads
    }

    /// Hears that the leader stops, and that this node may follow it.
    pub fn give_over(&mut self, to: &str, now: Instant) -> Heard {
        self.is_over = true;
        if *to == *self.me {
            self.due = now;
            return Heard::MayLead;
        }
        // If that one does not lead, another one soon does.
        self.due = now + self.beat + self.random(self.beat);
        Heard::Nothing
    }

    /// Hears of the leader.
    pub fn hear(&mut self, now: Instant) {
        self.due = now + self.lead_after + self.random(self.lead_after / 2);
    }

    /// Lets another node lead that was faster, or NATS answer.
    pub fn postpone(&mut self, now: Instant) {
        self.due = now + self.beat / 2 + self.random(self.beat);
    }

    /// Returns whether this node may lead.
    pub fn is_due(&self, now: Instant) -> bool {
        self.due <= now
    }

    fn random(&self, most: Duration) -> Duration {
        most.mul_f64(fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn lead(term: u64, node: &str) -> Lead {
        Lead { term, node: node.into(), store: 1 }
    }

    fn election(now: Instant) -> Election {
        Election::new("a".into(), &Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0.cluster, now)
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_of_a_term_leads_and_frames_of_older_terms_do_not_count() {
        let now = Instant::now();
        let mut election = election(now);
        assert_eq!((election.term(), election.leader()), (0, None));
        assert_eq!(election.lead(&lead(1, "b"), now), Heard::Leads);
        assert_eq!(election.lead(&lead(1, "c"), now), Heard::Nothing, "the second of the same term");
        assert_eq!(election.leader().unwrap().node, "b".into());
        assert_eq!(election.lead(&lead(3, "c"), now), Heard::Leads);
        assert_eq!(election.lead(&lead(2, "b"), now), Heard::Nothing);
        assert_eq!([1, 2, 3, 4].map(|term| election.counts(term)), [false, false, true, false]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_leads_after_a_silence_and_at_once_if_it_is_named() {
        let now = Instant::now();
        let mut election = election(now);
        election.lead(&lead(1, "b"), now);
        let after = |ms| now + Duration::from_millis(ms);
        assert!(!election.is_due(after(2_999)) && election.is_due(after(4_501)));
        election.hear(after(1_000));
        assert!(!election.is_due(after(3_999)));
        assert_eq!(election.give_over("c", now), Heard::Nothing);
        assert!(election.leader().is_none() && !election.is_due(after(999)) && election.is_due(after(2_001)));
        election.lead(&lead(2, "c"), now);
        assert_eq!(election.give_over("a", now), Heard::MayLead);
        assert!(election.is_due(now));
        election.postpone(now);
        assert!(!election.is_due(after(499)) && election.is_due(after(1_501)));
    }

    #[tokio::test(start_paused = true)]
    async fn candidates_seldom_come_at_the_same_moment() {
        let now = Instant::now();
        let mut dues: Vec<Instant> = (0..100)
            .map(|_| {
                let mut election = election(now);
                election.hear(now);
                election.due
            })
            .collect();
        dues.sort();
        dues.dedup();
        assert!(dues.len() > 90, "{}", dues.len());
    }
}
