//! A node that follows: it absorbs the stream, looks at its clocks, and leads when nobody else does.

use std::future::pending;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::{Instant, interval, sleep};

use super::election::Heard;
use super::link::{self, FrameError, Written};
use super::member::{LOST, Member, NATS_PAUSE};
use crate::model::record::Change;
use crate::net::turns::aside_if;
use crate::registry::{SessionHandle, SessionInfo};
use crate::store::codec::{self, Lead, Said};
use crate::store::stream::Health;

/// How often a node that follows looks at its clocks.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Attempts of a candidate. If none is answered, it waits to see who leads.
const LEAD_ATTEMPTS: usize = 3;

/// Bytes of a frame whose changes take long to absorb.
const LONG_FRAME_BYTES: usize = 64 << 10;

impl Member {
    /// Absorbs the stream until this node leads.
    pub(super) async fn follow(&self) {
        let mut tick = interval(LOOK_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        'anew: loop {
            self.look();
            match self.link.extent().await {
                Ok(extent) if extent.first > self.absorbed() + 1 => {
                    tracing::error!("the stream was cut off behind what this node has absorbed: it begins afresh, from a snapshot");
                    self.stream.fail();
                    pending::<()>().await;
                }
                Ok(extent) if extent.last < self.absorbed() => {
                    tracing::error!(last = extent.last, absorbed = self.absorbed(), "the stream has lost frames: this node begins afresh");
                    self.stream.fail();
                    pending::<()>().await;
                }
                Ok(extent) => self.know(extent.last),
                Err(error) => {
                    tracing::debug!("the stream can't be asked: {error:#}");
                    sleep(NATS_PAUSE).await;
                    continue;
                }
            }
            let mut frames = match self.link.frames(self.absorbed() + 1).await {
                Ok(frames) => frames,
                Err(error) => {
                    tracing::warn!("the stream can't be read yet: {error:#}");
                    sleep(NATS_PAUSE).await;
                    continue;
                }
            };
            loop {
                // Both are cancel safe.
                tokio::select! {
                    frame = frames.next() => {
                        let Some(Ok(message)) = frame else { continue 'anew };
                        let Ok(sequence) = message.info().map(|info| info.stream_sequence) else { continue 'anew };
                        let next = self.absorbed() + 1;
                        if sequence < next {
                            continue;
                        }
                        if sequence > next {
                            tracing::warn!(sequence, next, "frames were passed over, and are read again");
                            continue 'anew;
                        }
                        match aside_if(message.payload.len() > LONG_FRAME_BYTES, || self.absorb(sequence, &message.payload)) {
                            Ok(Heard::Nothing) => {}
                            Ok(Heard::Leads) if self.is_leader() => return,
                            Ok(Heard::Leads) => self.model.mailboxes.tell_everything(),
                            Ok(Heard::MayLead) => {
                                if !self.is_leaving.load(Ordering::Relaxed) && self.stand().await {
                                    return;
                                }
                            }
                            Err(error) => self.give_up(format!("frame {sequence} of the stream can't be read: {error}")).await,
                        }
                    }
                    _ = tick.tick() => {
                        self.look();
                        // One that does not have what all are to have leads only if no other node does for longer.
                        let patience = if self.has_agreed() { Duration::ZERO } else { *self.config.lead_after_ms };
                        let is_due = Instant::now().checked_sub(patience).is_some_and(|then| self.election.lock().is_due(then));
                        if is_due && self.link.is_connected() && !self.is_leaving.load(Ordering::Relaxed) {
                            if self.stand().await {
                                return;
                            }
                            continue 'anew;
                        }
                    }
                }
            }
        }
    }

    /// Makes the changes of a frame.
    pub(super) fn absorb(&self, sequence: u64, payload: &[u8]) -> Result<Heard, FrameError> {
        let frame = link::read(payload)?;
        let mut said = Vec::new();
        codec::decode(frame.records, |one| said.push(one))?;
        let _absorbing = self.absorbing.lock();
        let now = Instant::now();
        let mut heard = Heard::Nothing;
        let leads = said.iter().find_map(|said| if let Said::Lead(lead) = said { Some(lead.clone()) } else { None });
        let counts = {
            let mut election = self.election.lock();
            match &leads {
                Some(lead) => {
                    heard = election.lead(lead, now);
                    heard == Heard::Leads
                }
                None => election.counts(frame.term) && frame.number == sequence,
            }
        };
        if counts {
            self.election.lock().hear(now);
            for one in &said {
                match one {
                    Said::Change(change) => self.make(change),
                    Said::Lead(lead) => {
                        tracing::info!(term = lead.term, leader = &*lead.node, "a node leads");
                        self.metrics.cluster_elections.inc();
                        self.leader.send_replace(Some(lead.clone()));
                    }
                    Said::Yield(to) => {
                        heard = self.election.lock().give_over(to, now);
                        self.leader.send_replace(None);
                    }
                    Said::Beat | Said::Stop(_) | Said::Cleaned(_) => {}
                }
            }
        } else {
            tracing::warn!(sequence, term = frame.term, "a frame of a node that does not lead does not count");
        }
        self.absorbed.store(sequence, Ordering::Release);
        Ok(heard)
    }

    pub(super) fn make(&self, change: &Change) {
        let mut own = None;
        let claim = |info: &SessionInfo| {
            own = if info.node == self.me { self.joining.lock().remove(&info.session) } else { None };
            own.as_ref().map(|joining| joining.handle.clone())
        };
        let admitted = self.model.absorb(change, claim, &self.endings);
        match change {
            Change::Opened { info, .. } => {
                self.note_sessions_of(&info.node);
                let is_wanted = match (own, admitted) {
                    (Some(joining), Some(admitted)) => joining.admitted.send(admitted).is_ok(),
                    // The client has given up, or the same session was opened twice.
                    (None, _) => false,
                    (Some(_), None) => true,
                };
                if info.node == self.me && !is_wanted {
                    self.reports.closed(&SessionHandle::elsewhere(info, &self.endings), &self.me, LOST);
                }
            }
            Change::Gone { node } => {
                self.with_sessions.lock().remove(node);
                if *node == self.me {
                    tracing::error!("the other nodes take this one to be gone: it begins afresh");
                    self.stream.fail();
                }
            }
            _ => {}
        }
    }

    /// Looks at the clocks: says whether the node is ready, and begins afresh after too long without NATS.
    pub(super) fn look(&self) {
        let now = Instant::now();
        let mut known = self.known.lock();
        if self.link.is_connected() {
            known.apart_since = None;
        } else {
            known.apart_since.get_or_insert(now);
        }
        if self.absorbed() >= known.last {
            known.behind_since = None;
        }
        let lasts = |since: Option<Instant>, long: Duration| since.is_some_and(|since| now.duration_since(since) >= long);
        let (lag_max, alone) = (*self.config.lag_max_ms, *self.config.alone_ms);
        let is_behind = lasts(known.behind_since, lag_max);
        let health = if lasts(known.apart_since, lag_max) {
            Health::Unreachable
        } else if is_behind {
            Health::Behind
        } else if self.leader.borrow().is_none() || self.election.lock().is_due(now) {
            Health::NoLeader
        } else {
            Health::Well
        };
        if lasts(known.apart_since, alone) {
            tracing::error!(
                "no NATS for {} ms (cluster.alone_ms): the sockets are closed, in case other nodes still work",
                alone.as_millis()
            );
            self.stream.fail();
        }
        drop(known);
        self.stream.set(health);
    }

    /// Notes that the stream has this frame.
    pub(super) fn know(&self, last: u64) {
        let mut known = self.known.lock();
        known.last = known.last.max(last);
        if self.absorbed() < known.last {
            known.behind_since.get_or_insert_with(Instant::now);
        }
    }

    /// Tries to lead. Returns whether this node does.
    pub(super) async fn stand(&self) -> bool {
        let leads = self.try_to_lead().await;
        if !leads {
            self.election.lock().postpone(Instant::now());
        }
        leads
    }

    pub(super) async fn try_to_lead(&self) -> bool {
        let extent = match self.link.extent().await {
            Ok(extent) => extent,
            Err(error) => {
                tracing::debug!("no election: {error:#}");
                return false;
            }
        };
        let last = self.absorbed();
        if extent.last != last {
            // The leader may be well, and this node be behind.
            self.know(extent.last);
            return false;
        }
        let lead = Lead { term: self.election.lock().term() + 1, node: self.me.clone(), store: self.store };
        let mut records = Vec::new();
        codec::encode_lead(&lead, &mut records);
        let (frame, id) = (link::framed(&records, last + 1, lead.term), format!("{}-{}-lead", lead.term, self.me));
        for _ in 0..LEAD_ATTEMPTS {
            match self.link.write(frame.clone(), last, &id, *self.config.attempt_deadline_ms).await {
                Written::Stored(sequence) if sequence == last + 1 => {
                    self.election.lock().lead(&lead, Instant::now());
                    self.absorbed.store(sequence, Ordering::Release);
                    self.metrics.cluster_elections.inc();
                    return true;
                }
                // Another one was faster.
                Written::Stored(_) | Written::Refused => return false,
                Written::Unanswered(why) => tracing::warn!("the record that this node leads is not stored yet: {why}"),
            }
        }
        false
    }

    pub(super) fn is_leader(&self) -> bool {
        self.election.lock().leader().is_some_and(|lead| lead.node == self.me)
    }

    /// Ends the node for good: it can't go on.
    pub(super) async fn give_up(&self, why: String) {
        tracing::error!("{why}");
        *self.fatal.lock() = Some(why);
        self.stream.fail();
        pending::<()>().await;
    }
}
