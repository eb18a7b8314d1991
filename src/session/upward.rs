//! The way up of server-sent events: what a client posts for its stream waits here until the session handles it, as it does a socket's frames.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use super::Sessions;
use super::protocol::ClientFrame;
use crate::registry::SessionHandle;
use crate::types::event::UserId;

/// Frames of one session that wait. It handles them within milliseconds, unless its client doesn't read.
const FRAMES_MAX: usize = 64;

/// The streams for which clients may post frames, by the ids of their sessions.
#[derive(Debug, Default)]
pub struct Streams(Mutex<HashMap<Arc<str>, Arc<Upward>>>);

/// The frames of one session that wait.
#[derive(Debug)]
pub struct Upward {
    handle: Arc<SessionHandle>,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Each frame with its bytes.
    frames: VecDeque<(ClientFrame, usize)>,
    bytes: usize,
}

/// A session's place among the streams. Dropping it takes the session away: nothing more is accepted for it.
#[derive(Debug)]
pub struct Place {
    sessions: Arc<Sessions>,
    upward: Arc<Upward>,
}

/// The session has not handled what was posted before.
#[derive(Debug)]
pub struct Behind;

impl Streams {
    /// Returns the way up of a session, if it is this user's and reads a stream.
    pub fn find(&self, user: &UserId, session: &str) -> Option<Arc<Upward>> {
        self.0.lock().get(session).filter(|upward| upward.handle.user == *user).cloned()
    }
}

impl Upward {
    /// Hands a frame of this size to the session. `bytes_max`: what may wait, unless it is a single frame.
    ///
    /// # Errors
    /// Too much waits.
    pub fn push(&self, frame: ClientFrame, bytes: usize, bytes_max: usize) -> Result<(), Behind> {
        let mut waiting = self.waiting.lock();
        if !waiting.frames.is_empty() && (waiting.frames.len() >= FRAMES_MAX || waiting.bytes + bytes > bytes_max) {
            return Err(Behind);
        }
        waiting.frames.push_back((frame, bytes));
        waiting.bytes += bytes;
        drop(waiting);
        self.handle.wake();
        Ok(())
    }
}

impl Place {
    pub fn new(sessions: &Arc<Sessions>, handle: &Arc<SessionHandle>) -> Place {
        let upward = Arc::new(Upward { handle: handle.clone(), waiting: Mutex::default() });
        sessions.streams.0.lock().insert(handle.id.clone(), upward.clone());
        Place { sessions: sessions.clone(), upward }
    }

    pub fn is_empty(&self) -> bool {
        self.upward.waiting.lock().frames.is_empty()
    }

    /// Returns the next frame, and its bytes.
    pub fn take(&self) -> Option<(ClientFrame, usize)> {
        let mut waiting = self.upward.waiting.lock();
        let Some((frame, bytes)) = waiting.frames.pop_front() else {
            // An idle session holds no buffer.
            *waiting = Waiting::default();
            return None;
        };
        waiting.bytes -= bytes;
        Some((frame, bytes))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.sessions.streams.0.lock().remove(&self.upward.handle.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upward() -> Upward {
        let user = UserId::new("1001", 128).unwrap();
        Upward { handle: SessionHandle::new(user, None, true, Vec::new()), waiting: Mutex::default() }
    }

    #[test]
    fn what_waits_is_bounded_by_number_and_by_bytes_and_one_large_frame_may() {
        let frames = upward();
        for _ in 0..FRAMES_MAX {
            frames.push(ClientFrame::Ping, 1, 1000).unwrap();
        }
        assert!(frames.push(ClientFrame::Ping, 1, 1000).is_err());
        let large = upward();
        large.push(ClientFrame::Ping, 2000, 1000).unwrap();
        assert!(large.push(ClientFrame::Ping, 1, 1000).is_err());
        let small = upward();
        small.push(ClientFrame::Ping, 400, 1000).unwrap();
        small.push(ClientFrame::Ping, 600, 1000).unwrap();
        assert!(small.push(ClientFrame::Ping, 1, 1000).is_err());
    }
}
