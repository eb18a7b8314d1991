//! The registry: who is connected to this process. In memory, and nothing here waits.
//!
//! A user's sessions stand beside the user's mailbox in one map, so that a post finds both with one look-up; `model::mailbox` owns that map.
//! Nothing here knows what a mailbox holds. All that a mailbox learns from here is a hint: how far the open sessions have read.
//!
//! A session is *provisional* until the sessions policies have admitted it. Messages for that session alone reach it, but it is not
//! counted, replaces no other session, and is not the user's first device.

mod elsewhere;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::SystemTime;

use futures_util::task::AtomicWaker;
use smallvec::SmallVec;

use crate::config::{self, TooMany};
use crate::types::close::Close;
use crate::types::event::UserId;
use elsewhere::Elsewhere;
pub use elsewhere::{Endings, SessionInfo};

/// The rules for all users' sessions, and their number.
#[derive(Debug)]
pub struct Registry {
    per_user_max: usize,
    too_many: TooMany,
    admitted: AtomicUsize,
}

/// One user's sessions in this process, the oldest first. Most users have one.
#[derive(Debug, Default)]
pub struct UserSessions {
    handles: SmallVec<[Arc<SessionHandle>; 1]>,
}

/// A session, as other tasks know it: its id and its user, how far it has read, and how to wake or end it.
#[derive(Debug)]
pub struct SessionHandle {
    pub id: Arc<str>,
    pub user: UserId,
    pub subprotocol: Option<&'static str>,
    /// Whether its client can resume, so that messages are kept after they were sent.
    pub resumes: bool,
    pub attributes: Vec<(String, String)>,
    pub opened: SystemTime,
    is_admitted: AtomicBool,
    /// Where the session began to read. Only the session's own task sets its position; for others it is a hint.
    start: AtomicU64,
    /// The last message that the session has taken.
    cursor: AtomicU64,
    /// The last message that was written to its socket.
    written: AtomicU64,
    wake: Wake,
    ending: OnceLock<Close>,
    /// Set if another node has its socket.
    elsewhere: Option<Elsewhere>,
}

/// The name of the subprotocol whose frames are JSON, with seqs and acks: docs/protocol.md.
pub const V1: &str = "signalpost.v1";

/// Returns a subprotocol by its name, if there is one.
pub fn subprotocol(name: &str) -> Option<&'static str> {
    (name == V1).then_some(V1)
}

/// How far a user's open sessions have read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadMark {
    /// Everything after `from` and up to `written` was written to the sockets of all sessions that had to read it.
    pub from: u64,
    pub written: u64,
    /// The slowest session has taken everything up to here; it still has to read the rest.
    pub taken: u64,
    /// Everything after the first seq and up to the second was written to the session that is furthest ahead.
    pub furthest: (u64, u64),
}

impl ReadMark {
    /// Returns whether a session has read a message, and no session still has to read it.
    pub fn covers(self, seq: u64) -> bool {
        self.from < seq && seq <= self.written
    }

    /// Returns whether a session has read a message.
    pub fn is_read(self, seq: u64) -> bool {
        self.covers(seq) || (self.furthest.0 < seq && seq <= self.furthest.1)
    }

    /// Returns whether a session still has to read a message.
    pub fn is_awaited(self, seq: u64) -> bool {
        self.taken < seq
    }
}

impl Registry {
    pub fn new(sockets: &config::Sockets) -> Registry {
        Registry { per_user_max: sockets.per_user_max.get(), too_many: sockets.too_many, admitted: AtomicUsize::new(0) }
    }

    /// Returns the number of admitted sessions of all users that this node has.
    pub fn count(&self) -> usize {
        self.admitted.load(Ordering::Relaxed)
    }

    /// Adds a provisional session.
    ///
    /// # Errors
    /// The user has as many sessions as the configuration allows, and it says that the newest is refused.
    pub fn enter(&self, sessions: &mut UserSessions, handle: &Arc<SessionHandle>) -> Result<(), Close> {
        self.check(sessions)?;
        sessions.handles.push(handle.clone());
        Ok(())
    }

    /// Admits a provisional session. Returns the sessions that it replaced: they were told to close, and have left.
    ///
    /// # Errors
    /// As for [`Registry::enter`]: another session may have been admitted in between. The session stays provisional.
    pub fn admit(&self, sessions: &mut UserSessions, handle: &Arc<SessionHandle>) -> Result<SmallVec<[Arc<SessionHandle>; 1]>, Close> {
        self.check(sessions)?;
        let mut replaced = SmallVec::new();
        while sessions.admitted().count() >= self.per_user_max {
            let Some(oldest) = sessions.admitted().next().cloned() else { break };
            oldest.end(Close::Replaced);
            self.leave(sessions, &oldest);
            replaced.push(oldest);
        }
        self.count_in(handle);
        Ok(replaced)
    }

    fn count_in(&self, handle: &SessionHandle) {
        handle.is_admitted.store(true, Ordering::Relaxed);
        self.admitted.fetch_add(usize::from(handle.is_here()), Ordering::Relaxed);
    }

    /// Removes a session, and returns whether it was there. Sessions are compared by identity: a late leave never removes a newer session.
    pub fn leave(&self, sessions: &mut UserSessions, handle: &Arc<SessionHandle>) -> bool {
        let before = sessions.handles.len();
        sessions.handles.retain(|known| !Arc::ptr_eq(known, handle));
        let was_there = sessions.handles.len() < before;
        if was_there && handle.is_admitted() && handle.is_here() {
            self.admitted.fetch_sub(1, Ordering::Relaxed);
        }
        was_there
    }

    fn check(&self, sessions: &UserSessions) -> Result<(), Close> {
        let is_full = self.too_many == TooMany::RefuseNewest && sessions.admitted().count() >= self.per_user_max;
        if is_full { Err(Close::TooManySessions) } else { Ok(()) }
    }
}

impl UserSessions {
    /// Returns whether there is no session at all, not even a provisional one.
    pub fn is_empty(&self) -> bool {
        self.handles.is_empty()
    }

    /// Returns whether the user has no admitted session.
    pub fn is_away(&self) -> bool {
        self.admitted().next().is_none()
    }

    pub fn admitted(&self) -> impl Iterator<Item = &Arc<SessionHandle>> {
        self.handles.iter().filter(|handle| handle.is_admitted())
    }

    pub fn find(&self, id: &str) -> Option<&Arc<SessionHandle>> {
        self.handles.iter().find(|handle| *handle.id == *id)
    }

    /// Wakes all of them: there may be something to read, or to do.
    pub fn wake(&self) {
        self.handles.iter().for_each(|handle| handle.wake.wake());
    }

    /// Asks all of them to close, and returns how many there are.
    pub fn end(&self, close: &Close) -> usize {
        self.handles.iter().for_each(|handle| handle.end(close.clone()));
        self.handles.len()
    }

    /// Returns how far they have read, or `None` if there is no session. `is_of_all`: also those whose sockets other nodes have.
    pub fn read_mark(&self, is_of_all: bool) -> Option<ReadMark> {
        let mut handles = self.handles.iter().filter(|handle| is_of_all || handle.is_here());
        let first = handles.next()?;
        let (start, cursor) = first.position();
        let mut mark = ReadMark { from: start, written: first.written(), taken: cursor, furthest: (start, first.written()) };
        for handle in handles {
            let ((start, cursor), written) = (handle.position(), handle.written());
            (mark.from, mark.written, mark.taken) = (mark.from.min(start), mark.written.min(written), mark.taken.min(cursor));
            if written > mark.furthest.1 {
                mark.furthest = (start, written);
            }
        }
        Some(mark)
    }
}

impl SessionHandle {
    pub fn new(user: UserId, subprotocol: Option<&'static str>, resumes: bool, attributes: Vec<(String, String)>) -> Arc<SessionHandle> {
        let id = uuid::Uuid::new_v4().simple().to_string().into();
        Arc::new(SessionHandle::of(id, user, subprotocol, resumes, attributes, SystemTime::now()))
    }

    fn of(
        id: Arc<str>,
        user: UserId,
        subprotocol: Option<&'static str>,
        resumes: bool,
        attributes: Vec<(String, String)>,
        opened: SystemTime,
    ) -> SessionHandle {
        SessionHandle {
            id,
            user,
            subprotocol,
            resumes,
            attributes,
            opened,
            is_admitted: AtomicBool::new(false),
            start: AtomicU64::new(0),
            cursor: AtomicU64::new(0),
            written: AtomicU64::new(0),
            wake: Wake::default(),
            ending: OnceLock::new(),
            elsewhere: None,
        }
    }

    /// Asks the session to close; the first reason stands.
    pub fn end(&self, close: Close) {
        match &self.elsewhere {
            Some(elsewhere) => {
                if self.ending.set(close.clone()).is_ok() {
                    elsewhere.end(self, close);
                }
            }
            None => {
                let _ = self.ending.set(close);
                self.wake.wake();
            }
        }
    }

    pub fn wake(&self) {
        self.wake.wake();
    }

    /// Resolves when there may be something to do. Only one task may poll this.
    pub fn poll_woken(&self, context: &mut Context<'_>) -> Poll<()> {
        self.wake.poll(context)
    }

    pub fn ending(&self) -> Option<&Close> {
        self.ending.get()
    }

    pub fn is_admitted(&self) -> bool {
        self.is_admitted.load(Ordering::Relaxed)
    }

    /// Returns where the session began to read, and the last message that it has taken.
    pub fn position(&self) -> (u64, u64) {
        (self.start.load(Ordering::Relaxed), self.cursor())
    }

    pub fn cursor(&self) -> u64 {
        self.cursor.load(Ordering::Relaxed)
    }

    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Puts the session at a position. Everything up to `written` is written.
    pub fn place(&self, start: u64, cursor: u64, written: u64) {
        self.start.store(start, Ordering::Relaxed);
        self.cursor.store(cursor, Ordering::Relaxed);
        self.written.store(written, Ordering::Relaxed);
    }

    /// Notes that the session has taken everything up to `seq`.
    pub fn advance(&self, seq: u64) {
        self.cursor.store(seq, Ordering::Relaxed);
    }

    /// Notes that everything up to `seq` was written to the session's socket.
    pub fn note_written(&self, seq: u64) {
        self.written.store(seq, Ordering::Relaxed);
    }

    /// Returns the value of an attribute; `user` is the user's id.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        if name == "user" {
            return Some(self.user.as_str());
        }
        self.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Wakes one task. Smaller than `tokio::sync::Notify`, which keeps a list of waiters.
#[derive(Debug, Default)]
struct Wake {
    is_woken: AtomicBool,
    task: AtomicWaker,
}

impl Wake {
    fn wake(&self) {
        self.is_woken.store(true, Ordering::Release);
        self.task.wake();
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        if !self.is_woken.load(Ordering::Acquire) {
            self.task.register(context.waker());
        }
        // Again, since it may have been woken before the task was registered.
        if self.is_woken.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::config::Config;

    fn registry(per_user_max: usize, too_many: TooMany) -> Registry {
        let mut sockets = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0.sockets;
        (sockets.per_user_max, sockets.too_many) = (NonZeroUsize::new(per_user_max).unwrap(), too_many);
        Registry::new(&sockets)
    }

    fn handle() -> Arc<SessionHandle> {
        SessionHandle::new(UserId::new("1001", 128).unwrap(), None, false, Vec::new())
    }

    /// Enters a session at a position.
    fn enter(registry: &Registry, sessions: &mut UserSessions, start: u64, cursor: u64) -> Arc<SessionHandle> {
        let handle = handle();
        registry.enter(sessions, &handle).unwrap();
        handle.place(start, cursor, cursor);
        handle
    }

    #[test]
    fn a_provisional_session_is_reachable_but_not_counted() {
        let registry = registry(8, TooMany::CloseOldest);
        let mut sessions = UserSessions::default();
        let stranger = enter(&registry, &mut sessions, 0, 0);
        assert!(sessions.is_away() && !sessions.is_empty());
        assert!(sessions.find(&stranger.id).is_some());
        assert_eq!(registry.count(), 0);
        assert!(registry.leave(&mut sessions, &stranger));
        assert_eq!((registry.count(), sessions.is_empty()), (0, true));
        let admitted = enter(&registry, &mut sessions, 0, 0);
        assert!(registry.admit(&mut sessions, &admitted).unwrap().is_empty());
        assert_eq!((registry.count(), sessions.is_away()), (1, false));
    }

    #[test]
    fn the_oldest_session_is_closed_only_when_a_newer_one_is_admitted() {
        let registry = registry(1, TooMany::CloseOldest);
        let mut sessions = UserSessions::default();
        let old = enter(&registry, &mut sessions, 0, 0);
        registry.admit(&mut sessions, &old).unwrap();
        let refused = enter(&registry, &mut sessions, 0, 0);
        assert_eq!(old.ending(), None);
        registry.leave(&mut sessions, &refused);
        let new = enter(&registry, &mut sessions, 0, 0);
        let replaced = registry.admit(&mut sessions, &new).unwrap();
        assert!(Arc::ptr_eq(&replaced[0], &old));
        assert_eq!((old.ending(), registry.count()), (Some(&Close::Replaced), 1));
        assert!(!registry.leave(&mut sessions, &old), "it has left already");
        assert_eq!((registry.count(), sessions.admitted().count()), (1, 1));
    }

    #[test]
    fn the_newest_session_is_refused_if_the_settings_say_so_also_when_two_come_at_once() {
        let registry = registry(1, TooMany::RefuseNewest);
        let mut sessions = UserSessions::default();
        let (first, second) = (enter(&registry, &mut sessions, 0, 0), enter(&registry, &mut sessions, 0, 0));
        registry.admit(&mut sessions, &first).unwrap();
        assert_eq!(registry.admit(&mut sessions, &second).unwrap_err(), Close::TooManySessions);
        assert_eq!(registry.enter(&mut sessions, &handle()).unwrap_err(), Close::TooManySessions);
        assert_eq!((first.ending(), registry.count()), (None, 1));
    }

    #[test]
    fn a_read_mark_says_what_was_read_and_what_is_awaited() {
        let registry = registry(8, TooMany::CloseOldest);
        let mut sessions = UserSessions::default();
        assert_eq!(sessions.read_mark(true), None);
        enter(&registry, &mut sessions, 0, 5);
        let mark = sessions.read_mark(true).unwrap();
        assert_eq!([1, 5, 6].map(|seq| (mark.covers(seq), mark.is_awaited(seq))), [(true, false), (true, false), (false, true)]);
        // A second device, which began at 5 and is further than the first.
        enter(&registry, &mut sessions, 5, 8);
        let mark = sessions.read_mark(true).unwrap();
        assert_eq!(mark, ReadMark { from: 0, written: 5, taken: 5, furthest: (5, 8) });
        assert_eq!([5, 8, 9].map(|seq| mark.is_read(seq)), [true, true, false]);
        assert!(mark.is_awaited(6) && !mark.covers(6));
    }

    #[test]
    fn what_was_taken_and_not_written_is_neither_read_nor_awaited() {
        let registry = registry(8, TooMany::CloseOldest);
        let mut sessions = UserSessions::default();
        let handle = enter(&registry, &mut sessions, 0, 3);
        handle.advance(5);
        let mark = sessions.read_mark(true).unwrap();
        assert_eq!(
            [3, 4, 6].map(|seq| (mark.covers(seq), mark.is_read(seq), mark.is_awaited(seq))),
            [(true, true, false), (false, false, false), (false, false, true)]
        );
    }

    #[test]
    fn what_came_before_the_only_session_began_is_not_read() {
        let registry = registry(8, TooMany::CloseOldest);
        let mut sessions = UserSessions::default();
        enter(&registry, &mut sessions, 5, 8);
        let mark = sessions.read_mark(true).unwrap();
        assert!(!mark.covers(5) && !mark.is_read(5) && !mark.is_awaited(5));
    }
}
