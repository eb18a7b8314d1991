//! A node that leads: it writes the stream, answers other nodes, and hands over when it stops.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::StreamExt as _;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, sleep_until, timeout};

use super::lead;
use super::link::{self, Written};
use super::member::{ASK_PAUSE, Answering, HAND_OVER_DEADLINE, Member};
use super::wire::{self, Told};
use crate::dispatch::Dispatch;
use crate::store::codec;
use crate::store::stream::{Batch, Health};

impl Member {
    /// Writes the stream until this node leads no longer.
    pub(super) async fn lead(self: &Arc<Member>, dispatch: &Arc<Dispatch>, answering: &Answering) {
        let Some(lead) = self.election.lock().leader().cloned() else { return };
        tracing::info!(term = lead.term, "this node leads");
        let asks = match self.link.listen(self.lead_subject(lead.term)).await {
            Ok(asks) => asks,
            Err(error) => {
                tracing::error!("this node can't be asked: {error:#}");
                return;
            }
        };
        self.model.mailboxes.decide(true);
        self.stream.begin_to_lead();
        self.stream.set(Health::Well);
        self.leader.send_replace(Some(lead.clone()));
        let mut serving = JoinSet::new();
        serving.spawn(self.clone().serve(asks, dispatch.clone(), answering.clone()));
        serving.spawn(self.clone().end_sessions(dispatch.clone()));
        serving.spawn(self.clone().miss_nodes(dispatch.clone()));
        if self.config.events {
            serving.spawn(self.clone().take_events(answering.clone()));
        }
        serving.spawn({
            let member = self.clone();
            // What was to be told to the leader before.
            async move {
                member.tell_waiting().await;
            }
        });
        let under_way = self.write_all(lead.term).await;
        self.model.mailboxes.decide(false);
        let waiting = self.stream.cease_to_lead();
        self.leader.send_replace(None);
        tracing::warn!(term = lead.term, "this node leads no longer");
        let is_lost = under_way.is_some() || !waiting.is_empty();
        // Those who wait for it learn that it is never stored.
        drop((under_way, waiting));
        if is_lost {
            tracing::error!("it has decided what was not stored, and nobody has seen: it begins afresh");
            self.stream.fail();
            pending::<()>().await;
        }
        if self.is_leaving.load(Ordering::Relaxed) {
            // Answers that are on their way still go out.
            tokio::spawn(async move {
                sleep(HAND_OVER_DEADLINE).await;
                drop(serving);
            });
        }
        self.election.lock().postpone(Instant::now());
    }

    /// Writes frame after frame. Returns the one that could not be written, if there is one.
    pub(super) async fn write_all(&self, term: u64) -> Option<Batch> {
        let mut beat = Instant::now() + *self.config.beat_ms;
        loop {
            if let Some(batch) = self.stream.take() {
                if !self.write(&batch.records, term).await {
                    return Some(batch);
                }
                self.show(batch);
                beat = Instant::now() + *self.config.beat_ms;
                continue;
            }
            let handing = self.handing.lock().take();
            if let Some(next) = handing {
                return self.yield_to(&next, term).await;
            }
            // All are cancel safe.
            tokio::select! {
                () = self.stream.more() => {}
                () = self.to_hand.notified() => {}
                () = sleep_until(beat) => {
                    let mut records = Vec::new();
                    codec::encode_beat(&mut records);
                    if !self.write(&records, term).await {
                        return None;
                    }
                    beat = Instant::now() + *self.config.beat_ms;
                }
            }
        }
    }

    /// Shows readers what is stored, and answers those who wait.
    pub(super) fn show(&self, batch: Batch) {
        self.model.mailboxes.show(batch.commit, batch.users.iter());
        self.stream.stored(batch);
    }

    /// Writes what waits, and that another node may lead.
    pub(super) async fn yield_to(&self, next: &Arc<str>, term: u64) -> Option<Batch> {
        self.leader.send_replace(None);
        for batch in self.stream.cease_to_lead() {
            if !self.write(&batch.records, term).await {
                return Some(batch);
            }
            self.show(batch);
        }
        let mut records = Vec::new();
        codec::encode_yield(next, &mut records);
        if self.write(&records, term).await {
            self.election.lock().give_over(next, Instant::now());
        }
        None
    }

    /// Writes a frame, and returns whether it is stored: otherwise this node leads no longer.
    pub(super) async fn write(&self, records: &[u8], term: u64) -> bool {
        let last = self.absorbed();
        let (frame, id) = (link::framed(records, last + 1, term), format!("{term}-{}-{}", self.me, last + 1));
        let began = Instant::now();
        let mut has_said = false;
        loop {
            let written = self.link.write(frame.clone(), last, &id, *self.config.attempt_deadline_ms).await;
            let why = match written {
                Written::Stored(sequence) if sequence == last + 1 => break,
                // NATS before 2.11 says so of a duplicate that is on its way (nats-server#5827).
                Written::Stored(0) => "it is on its way".to_owned(),
                Written::Stored(_) => return false,
                Written::Refused => match self.link.frame(last + 1).await {
                    // Its id was forgotten since it was stored.
                    Ok(stored) if stored == frame => break,
                    Ok(_) => return false,
                    // Others have gone on for so long that it can't be seen any more whose it was.
                    Err(_) if self.is_cut_off(last + 1).await => return false,
                    Err(error) => format!("it is not known yet who has written: {error:#}"),
                },
                Written::Unanswered(why) => why,
            };
            if !has_said {
                has_said = true;
                tracing::warn!("a frame is not stored yet, and is sent again: {why}");
            }
            if began.elapsed() >= *self.config.lag_max_ms {
                self.stream.set(Health::Unreachable);
            }
            if began.elapsed() >= *self.config.alone_ms {
                tracing::error!("NATS has stored nothing for {} ms (cluster.alone_ms)", self.config.alone_ms.as_millis());
                self.stream.fail();
                return false;
            }
            // No loop without a pause, however fast NATS refuses.
            sleep(ASK_PAUSE).await;
        }
        self.absorbed.store(last + 1, Ordering::Release);
        self.stream.set(Health::Well);
        self.metrics.store_commits.inc();
        self.metrics.store_bytes.inc_by(frame.len() as u64);
        self.metrics.cluster_commit_seconds.observe(began.elapsed().as_secs_f64());
        true
    }

    /// Returns whether the stream is known to begin after this frame.
    async fn is_cut_off(&self, number: u64) -> bool {
        self.link.extent().await.is_ok_and(|extent| extent.first > number)
    }

    pub(super) fn lead_subject(&self, term: u64) -> String {
        self.link.subject(&format!("lead.{term}"))
    }

    /// Answers other nodes.
    pub(super) async fn serve(self: Arc<Member>, mut asks: async_nats::Subscriber, dispatch: Arc<Dispatch>, answering: Answering) {
        let permits = Arc::new(Semaphore::new(self.config.asks_max.get()));
        let mut under_way = JoinSet::new();
        while let Some(ask) = asks.next().await {
            while under_way.try_join_next().is_some() {}
            let Some(reply) = ask.reply.clone() else { continue };
            // Closed never.
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            let (member, dispatch, answering) = (self.clone(), dispatch.clone(), answering.clone());
            under_way.spawn(async move {
                let mut answer = wire::encode(&member.answer(&dispatch, &answering, &ask.payload).await);
                if answer.len() > member.link.message_bytes_max() {
                    answer = wire::encode(&Told::Unavailable("the answer has more bytes than NATS takes (max_payload)".to_owned()));
                }
                member.link.tell(reply.to_string(), answer.into()).await;
                drop(permit);
            });
        }
    }

    /// Has other nodes close sessions that this one has ended.
    pub(super) async fn end_sessions(self: Arc<Member>, dispatch: Arc<Dispatch>) {
        loop {
            for (user, session, why) in self.endings.take().await {
                drop(lead::note_closed(&dispatch, &user, &session, Some(why)));
            }
        }
    }

    /// Removes the sessions of nodes that are gone.
    pub(super) async fn miss_nodes(self: Arc<Member>, dispatch: Arc<Dispatch>) {
        let (began, patience) = (Instant::now(), *self.config.gone_after_ms);
        let mut tick = interval(*self.config.beat_ms);
        loop {
            tick.tick().await;
            let beats: HashMap<String, Instant> =
                self.beats.lock().iter().map(|(instance, (_, heard))| (instance.clone(), *heard)).collect();
            let is_gone = |node: &Arc<str>, since: Instant| {
                let heard = beats.get(&**node).copied().unwrap_or(since).max(since).max(began);
                *node != self.me && heard.elapsed() >= patience
            };
            let gone: Vec<Arc<str>> =
                self.with_sessions.lock().iter().filter(|(node, since)| is_gone(node, **since)).map(|(node, _)| node.clone()).collect();
            for node in gone {
                let sessions = lead::gone(&dispatch, &node);
                self.with_sessions.lock().remove(&node);
                tracing::warn!(node = &*node, sessions, "a node was not heard of for {} ms: its sessions are over", patience.as_millis());
            }
        }
    }

    /// Lets another node lead. Waits until one does, for a short time.
    pub(super) async fn hand_over(&self) {
        self.stream.close();
        self.is_leaving.store(true, Ordering::Relaxed);
        if self.follows() {
            return;
        }
        let fresh = *self.config.beat_ms * 5 / 2;
        let next = {
            let beats = self.beats.lock();
            let others = beats.values().filter(|(beat, heard)| *beat.instance != *self.me && heard.elapsed() < fresh);
            // One that has the same policies, if there is one.
            let mine = self.model.agreement.now().map_or_else(String::new, |agreed| agreed.id.to_string());
            others.max_by_key(|(beat, _)| (beat.policies == mine, beat.absorbed)).map(|(beat, _)| beat.instance.as_str().into())
        };
        let Some(next) = next else { return };
        let began = Instant::now();
        *self.handing.lock() = Some(next);
        self.to_hand.notify_one();
        let mut leader = self.leader.subscribe();
        let another = leader.wait_for(|lead| lead.as_ref().is_some_and(|lead| lead.node != self.me));
        match timeout(HAND_OVER_DEADLINE, another).await {
            Ok(_) => tracing::info!(took_ms = began.elapsed().as_millis() as u64, "another node leads"),
            Err(_) => tracing::warn!("no other node leads yet"),
        }
    }

    /// Tells the leader what it has to know, and waits until what this node has decided is stored, for a short time.
    pub(super) async fn leave(&self) {
        let all = async {
            while self.follows() && !self.tell_waiting().await {
                sleep(ASK_PAUSE).await;
            }
            while !self.follows() && self.stream.pending_bytes() > 0 {
                sleep(ASK_PAUSE).await;
            }
        };
        if timeout(HAND_OVER_DEADLINE, all).await.is_err() {
            tracing::warn!("the leader does not know all: it takes this node to be gone");
        }
    }
}
