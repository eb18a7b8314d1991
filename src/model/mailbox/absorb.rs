//! What another node has decided, absorbed in the order in which that node has decided it. Nothing is decided here: seqs, births and what was
//! removed for a new message are taken over. What has expired, and what was read and is in the way, each node removes by itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::log::{self, Commit, Log, Marks, New, Removed};
use super::reader::place;
use super::{Content, Head, Mailbox, Mailboxes, Reader};
use crate::model::record::{Change, Mark};
use crate::registry::{Endings, SessionHandle, SessionInfo};
use crate::types::close::Close;
use crate::types::delivery::Message;
use crate::types::event::UserId;

/// How much longer than the node that decides another one remembers an empty mailbox, so that their clocks may differ.
pub(super) const FORGET_AFTER_MS: u64 = 60_000;

/// A message that another node has posted.
#[derive(Clone, Copy, Debug)]
pub struct Posting<'a> {
    pub user: &'a UserId,
    pub birth: u64,
    pub seq: u64,
    pub posted_ms: u64,
    pub message: &'a Arc<Message>,
    pub session: Option<&'a Arc<str>>,
    pub lost: u64,
    pub removed: &'a [u64],
}

/// What the readers of a mailbox on one node have read. For the node that decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub user: UserId,
    pub birth: u64,
    /// Stretches that were delivered: each begins after its first seq and ends with its second.
    pub delivered: Vec<(u64, u64)>,
    pub is_acked: bool,
    /// The sessions of the node, with where each began and what was written to it.
    pub sessions: Vec<(Arc<str>, u64, u64)>,
}

impl Mailboxes {
    /// Returns whether this node decides what is in the mailboxes.
    pub fn decides(&self) -> bool {
        self.decides.load(Ordering::Relaxed)
    }

    /// Has this node decide, or another one.
    pub fn decide(&self, decides: bool) {
        self.decides.store(decides, Ordering::Relaxed);
    }

    /// Returns the last commit that is stored.
    pub(super) fn stored(&self) -> u64 {
        self.stored.load(Ordering::Acquire)
    }

    /// Shows readers what was posted up to this commit, which is stored, to these users.
    pub fn show<'a>(&self, commit: u64, users: impl Iterator<Item = &'a UserId>) {
        self.stored.fetch_max(commit, Ordering::Release);
        for user in users {
            if let Some(mailbox) = self.find(user.as_str()) {
                mailbox.content.lock().sessions.wake();
            }
        }
    }

    pub fn absorb_post(&self, posting: Posting<'_>) {
        let Posting { user, birth, seq, posted_ms, message, session, lost, removed } = posting;
        let Some(mailbox) = self.at_birth(user, birth, true) else { return };
        let mut content = mailbox.content.lock();
        let keep_ms = log::kept_for(&message.terms, self.keep_max_ms(content.sink.as_deref()));
        let new = New { message, session, terms: &message.terms, keep_ms, now_ms: posted_ms, commit: Commit::default() };
        let (read, mut gone) = (self.read(&content.sessions), Removed::default());
        for seq in removed {
            content.log.remove((seq.saturating_sub(1), *seq), read, message.terms.collapse_key.as_ref(), &mut gone);
        }
        content.log.append(seq, &new, lost, &mut gone);
        self.account(birth, &content.sessions, &gone);
        self.usage.add(1, new.size());
        content.noted.post(seq);
        content.sessions.wake();
        drop(content);
        if self.usage.is_over() {
            self.reclaim(|usage| !usage.is_over());
        }
    }

    pub fn absorb_mark(&self, user: &UserId, birth: u64, mark: Mark, removed: &[(u64, u64)]) {
        let Some(mailbox) = self.at_birth(user, birth, false) else { return };
        let mut guard = mailbox.content.lock();
        let content = &mut *guard;
        let (read, mut gone) = (self.read(&content.sessions), Removed::default());
        for stretch in removed {
            content.log.remove(*stretch, read, None, &mut gone);
        }
        content.log.raise(Marks { last: mark.last, delivered: mark.delivered, lost: mark.lost });
        (content.is_resumable, content.is_acked) = (mark.is_resumable, content.is_acked || mark.is_acked);
        content.noted.absorb(mark);
        self.account(birth, &content.sessions, &gone);
        self.tidy(birth, content);
        content.sessions.wake();
    }

    /// Absorbs that a session was admitted. `own`: its handle, if it is one of this node; then it returns its reader.
    pub fn absorb_opened(
        self: &Arc<Self>,
        info: &SessionInfo,
        (birth, at): (u64, u64),
        own: Option<Arc<SessionHandle>>,
        endings: &Arc<Endings>,
    ) -> Option<(Reader, Head)> {
        let mailbox = self.at_birth(&info.user, birth, true)?;
        let mut content = mailbox.content.lock();
        let is_known = content.sessions.find(&info.session).is_some();
        if is_known {
            return None;
        }
        let is_own = own.is_some();
        let handle = own.unwrap_or_else(|| SessionHandle::elsewhere(info, endings));
        self.registry.add(&mut content.sessions, &handle);
        handle.place(at, at, at);
        let skips = place(&content, &handle);
        content.is_resumable |= handle.resumes;
        let head = Head { seq: at, is_resumable: content.log.after(0).next().is_some_and(|entry| entry.seq <= at) };
        drop(content);
        is_own.then(|| (Reader::new(self.clone(), mailbox, handle, skips), head))
    }

    /// Removes a session, and closes it for this reason if it is one of this node. Returns it, if it was there.
    pub fn absorb_closed(&self, user: &UserId, session: &str, why: Option<&Close>) -> Option<Arc<SessionHandle>> {
        let mailbox = self.find(user.as_str())?;
        let handle = mailbox.content.lock().sessions.find(session)?.clone();
        if let Some(why) = why.filter(|_| handle.is_here()) {
            handle.end(why.clone());
        }
        if why.is_some() || !handle.is_here() {
            self.leave(&handle, &mailbox);
        }
        Some(handle)
    }

    /// Removes all sessions of a node, and returns them.
    pub fn absorb_gone(&self, node: &str) -> Vec<Arc<SessionHandle>> {
        let mut gone = Vec::new();
        for shard in &self.shards {
            let mailboxes: Vec<Arc<Mailbox>> = shard.lock().values().cloned().collect();
            for mailbox in mailboxes {
                let of_node = mailbox.content.lock().sessions.of_node(node);
                of_node.iter().for_each(|handle| self.leave(handle, &mailbox));
                gone.extend(of_node);
            }
        }
        gone
    }

    /// Returns an admitted session of a user.
    pub fn session(&self, user: &UserId, session: &str) -> Option<Arc<SessionHandle>> {
        self.find(user.as_str())?.content.lock().sessions.find(session).cloned()
    }

    /// Absorbs what the readers of another node have read.
    pub fn absorb_read(&self, read: &Read) {
        let Some(mailbox) = self.find(read.user.as_str()).filter(|mailbox| mailbox.birth == read.birth) else { return };
        let mut guard = mailbox.content.lock();
        let content = &mut *guard;
        for (session, start, written) in &read.sessions {
            if let Some(handle) = content.sessions.find(session).filter(|handle| !handle.is_here()) {
                handle.place(*start, *written, *written);
            }
        }
        content.is_acked |= read.is_acked;
        for (after, to) in &read.delivered {
            content.log.mark_delivered(*after, *to);
        }
        self.tidy(read.birth, content);
        self.note_later(&read.user, &mailbox, content);
    }

    /// Takes what this node's readers have read since the last call.
    pub fn take_reads(&self) -> Vec<Read> {
        let read = |user: UserId, birth, content: &Content| {
            let delivered = content.log.delivered();
            let upto = (delivered.mark() > 0).then_some((0, delivered.mark()));
            let sessions = content.sessions.here().map(|handle| (handle.id.clone(), handle.position().0, handle.written())).collect();
            let delivered = upto.into_iter().chain(delivered.beyond().iter().copied()).collect();
            Read { user, birth, delivered, is_acked: content.is_acked, sessions }
        };
        let taken = self.take_unnoted().into_iter();
        taken.map(|(user, mailbox)| read(user, mailbox.birth, &mailbox.content.lock())).collect()
    }

    /// Has [`Mailboxes::take_reads`] return what all of this node's sessions have read: another node decides now.
    pub fn tell_everything(&self) {
        for shard in &self.shards {
            for (user, mailbox) in &*shard.lock() {
                let mut content = mailbox.content.lock();
                if content.sessions.here().next().is_some() {
                    self.tell_later(user, mailbox, &mut content);
                }
            }
        }
    }

    /// Calls `each` with the changes that make a mailbox, for all of them.
    pub fn snapshot(&self, describe: impl Fn(&SessionHandle) -> SessionInfo, each: &mut impl FnMut(&[Change])) {
        for shard in &self.shards {
            let mailboxes: Vec<(UserId, Arc<Mailbox>)> =
                shard.lock().iter().map(|(user, mailbox)| (user.clone(), mailbox.clone())).collect();
            for (user, mailbox) in mailboxes {
                let content = mailbox.content.lock();
                let (birth, lost) = (mailbox.birth, content.log.marks().lost);
                let post = |entry: &log::Entry| Change::Post {
                    user: user.clone(),
                    birth,
                    seq: entry.seq,
                    posted_ms: entry.posted_ms(),
                    message: entry.message.clone(),
                    session: entry.session.clone(),
                    lost,
                    removed: Vec::new(),
                };
                let mut changes: Vec<Change> = content.log.after(0).map(post).collect();
                changes.push(Change::Mark { user: user.clone(), birth, mark: content.mark_now(), removed: Vec::new() });
                let at = content.log.last();
                let opened = |handle: &Arc<SessionHandle>| Change::Opened { birth, at, info: Arc::new(describe(handle)) };
                changes.extend(content.sessions.admitted().map(opened));
                drop(content);
                each(&changes);
            }
        }
    }

    /// Returns the latest birth.
    pub fn last_birth(&self) -> u64 {
        self.last_birth.load(Ordering::Relaxed)
    }

    /// Returns a user's mailbox in this life. `is_current`: it is the user's now, whatever this node has made by itself; otherwise the newest
    /// is.
    fn at_birth(&self, user: &UserId, birth: u64, is_current: bool) -> Option<Arc<Mailbox>> {
        self.last_birth.fetch_max(birth, Ordering::Relaxed);
        let mut shard = self.shard(user).lock();
        match shard.get(user) {
            Some(mailbox) if mailbox.birth == birth => return Some(mailbox.clone()),
            Some(mailbox) if mailbox.birth > birth && !is_current => return None,
            Some(mailbox) => {
                let content = mailbox.content.lock();
                content.sessions.end_here(&Close::Restart);
                self.usage.give_back(&Removed { messages: content.log.len(), bytes: content.log.bytes(), ..Removed::default() });
            }
            None => self.usage.add_mailbox(),
        }
        let content = Content::new(Log::default(), self.sink(user), self.clock.now_ms());
        let mailbox = Arc::new(Mailbox { birth, content: Mutex::new(content) });
        shard.insert(user.clone(), mailbox.clone());
        Some(mailbox)
    }
}

impl Reader {
    /// Returns the change that tells other nodes of this session, which was admitted. `at`: the position of the mailbox when it was opened.
    pub fn opened(&self, info: SessionInfo, at: u64) -> Change {
        Change::Opened { birth: self.mailbox.birth, at, info: Arc::new(info) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Config;
    use crate::metrics::Metrics;
    use crate::model::mailbox::{Batch, Page, Posted};
    use crate::model::order::Order;
    use crate::model::record::Changes;
    use crate::types::clock::Clock;
    use crate::types::delivery::{PolicySetId, Terms};
    use crate::types::event::Body;
    use std::time::Duration;

    /// A node with its mailboxes.
    struct Node {
        mailboxes: Arc<Mailboxes>,
        order: Arc<Order>,
        endings: Arc<Endings>,
    }

    impl Node {
        fn new(decides: bool) -> Node {
            let mut config = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0;
            config.mailboxes.messages_max = std::num::NonZeroUsize::new(3).unwrap();
            let mailboxes = Mailboxes::new(&config, Clock::Machine, 1, true, Arc::new(Metrics::new().unwrap()));
            mailboxes.decide(decides);
            Node { mailboxes, order: Arc::default(), endings: Arc::default() }
        }

        /// Posts a message to the user, as the node that decides. Returns its commit and the changes.
        fn post(&self, session: Option<&Arc<str>>, terms: Terms) -> (u64, Vec<Change>) {
            let mut changes = Changes::in_turn(self.order.turn());
            let commit = changes.commit();
            let message = Arc::new(Message::new("1".into(), "a".into(), Body::Text("x".into()), PolicySetId(1)).with(terms));
            assert!(matches!(self.mailboxes.post(&user(), session, &message, &mut changes), Posted::Posted { .. }));
            (commit, changes.into_changes())
        }

        fn absorb(&self, changes: &[Change]) {
            for change in changes {
                match change {
                    Change::Post { user, birth, seq, posted_ms, message, session, lost, removed } => self.mailboxes.absorb_post(Posting {
                        user,
                        birth: *birth,
                        seq: *seq,
                        posted_ms: *posted_ms,
                        message,
                        session: session.as_ref(),
                        lost: *lost,
                        removed,
                    }),
                    Change::Mark { user, birth, mark, removed } => self.mailboxes.absorb_mark(user, *birth, *mark, removed),
                    other => panic!("{other:?}"),
                }
            }
        }

        /// Opens a session that the other node has, or this one.
        fn opened(&self, info: &SessionInfo, at: (u64, u64), own: Option<&Arc<SessionHandle>>) -> Option<Reader> {
            self.mailboxes.absorb_opened(info, at, own.cloned(), &self.endings).map(|(reader, _)| reader)
        }
    }

    fn user() -> UserId {
        UserId::new("u", 16).unwrap()
    }

    fn kept(ms: u64) -> Terms {
        Terms { keep: Some(Duration::from_millis(ms)), ..Terms::default() }
    }

    fn handle(resumes: bool) -> Arc<SessionHandle> {
        SessionHandle::new(user(), None, resumes, Vec::new())
    }

    /// Takes everything there is and writes it. `None`: it has missed something.
    fn read(reader: &mut Reader) -> Option<Vec<u64>> {
        let mut out = Batch::default();
        match reader.page(usize::MAX, &mut out) {
            Page::Missed => return None,
            Page::More { upto } | Page::End { upto } => reader.advance(upto),
        }
        reader.written();
        Some(out.into_iter().map(|(seq, _)| seq).collect())
    }

    #[test]
    fn readers_see_a_message_when_it_is_stored_and_not_before() {
        let leader = Node::new(true);
        let mut reader = leader.mailboxes.open(handle(true)).unwrap();
        reader.admit().unwrap();
        let (first, _) = leader.post(None, Terms::default());
        let (second, _) = leader.post(None, Terms::default());
        assert_eq!((read(&mut reader), reader.head().seq), (Some(vec![]), 0));
        leader.mailboxes.show(first, [&user()].into_iter());
        assert_eq!((read(&mut reader), reader.head().seq), (Some(vec![1]), 1));
        leader.mailboxes.show(second, [&user()].into_iter());
        assert_eq!((read(&mut reader), reader.head().seq), (Some(vec![2]), 2));
    }

    #[test]
    fn two_nodes_have_the_same_seqs_and_only_the_named_session_reads_what_is_for_it() {
        let (leader, other) = (Node::new(true), Node::new(false));
        // The session is admitted by the leader, and has its socket at the other node.
        let own = handle(true);
        let mut there = leader.mailboxes.open(SessionHandle::elsewhere(&own.info(&"b".into()), &leader.endings)).unwrap();
        there.admit().unwrap();
        let Change::Opened { birth, at, info } = there.opened(own.info(&"b".into()), 0) else { panic!("another change") };
        there.stay();
        let mut reader = other.opened(&info, (birth, at), Some(&own)).unwrap();
        for (session, terms) in [(None, Terms::default()), (Some(&own.id), Terms::default()), (None, kept(0))] {
            other.absorb(&leader.post(session, terms).1);
        }
        assert_eq!(read(&mut reader), Some(vec![1, 2, 3]));
        assert_eq!(leader.mailboxes.sessions_of("u"), 1);
        let stranger: Arc<str> = "stranger".into();
        assert!(other.mailboxes.session(&user(), &stranger).is_none());
        // What it has read is told, and makes room at the leader.
        let reads = other.mailboxes.take_reads();
        assert_eq!((reads.len(), reads[0].sessions.as_slice()), (1, [(own.id.clone(), 0, 3)].as_slice()));
        leader.mailboxes.absorb_read(&reads[0]);
        let (_, changes) = leader.post(None, Terms::default());
        let [Change::Post { seq: 4, lost, removed, .. }] = &changes[..] else { panic!("{changes:?}") };
        assert_eq!((*lost, removed.as_slice()), (1, [1].as_slice()), "it gives way, since it was read");
        other.absorb(&changes);
        assert_eq!(read(&mut reader), Some(vec![4]));
    }

    #[test]
    fn a_reader_of_another_node_that_has_fallen_behind_misses_what_the_leader_evicts() {
        let (leader, other) = (Node::new(true), Node::new(false));
        let own = handle(false);
        let (_, changes) = leader.post(None, Terms::default());
        other.absorb(&changes);
        let mut reader = other.opened(&own.info(&"b".into()), (1, 0), Some(&own)).unwrap();
        assert_eq!(read(&mut reader), Some(vec![1]));
        for _ in 0..4 {
            other.absorb(&leader.post(None, Terms::default()).1);
        }
        assert_eq!(read(&mut reader), None);
    }

    #[test]
    fn a_session_that_another_node_ends_is_over_here_and_its_socket_is_told() {
        let other = Node::new(false);
        let own = handle(false);
        let reader = other.opened(&own.info(&"b".into()), (1, 0), Some(&own)).unwrap();
        let ghost = handle(false).info(&"c".into());
        assert!(other.opened(&ghost, (1, 0), None).is_none());
        assert_eq!((other.mailboxes.sessions_of("u"), other.mailboxes.totals().sessions), (2, 1));
        other.mailboxes.absorb_closed(&user(), &own.id, Some(&Close::Replaced));
        assert_eq!((own.ending(), other.mailboxes.sessions_of("u")), (Some(&Close::Replaced), 1));
        drop(reader);
        assert_eq!(other.mailboxes.absorb_gone("c").len(), 1);
        assert_eq!((other.mailboxes.sessions_of("u"), other.mailboxes.totals().sessions), (0, 0));
    }

    #[test]
    fn what_a_node_has_posted_and_nobody_has_seen_gives_way_to_what_another_one_has() {
        let (deposed, leader) = (Node::new(true), Node::new(true));
        for node in [&deposed, &leader] {
            node.post(None, Terms::default());
        }
        deposed.post(None, Terms::default());
        deposed.mailboxes.decide(false);
        deposed.absorb(&leader.post(None, kept(60_000)).1);
        let seqs = |node: &Node| node.mailboxes.all()[&user()].2.clone();
        assert_eq!((seqs(&deposed), seqs(&leader)), (vec![1, 2], vec![1, 2]));
        assert_eq!(deposed.mailboxes.totals().messages, 2);
        // A mailbox that it has made by itself too.
        let fresh = Node::new(false);
        fresh.mailboxes.begin_births_after(40);
        fresh.mailboxes.decide(true);
        fresh.post(None, Terms::default());
        fresh.mailboxes.decide(false);
        fresh.absorb(&leader.post(None, Terms::default()).1);
        assert_eq!((fresh.mailboxes.all()[&user()].0, seqs(&fresh)), (1, vec![3]));
    }
}
