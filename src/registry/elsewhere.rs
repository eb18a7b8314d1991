//! Sessions whose sockets other nodes of a cluster have. They count as the user's, and are ended by telling those nodes.

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;

use super::{Registry, SessionHandle, UserSessions};
use crate::types::close::Close;
use crate::types::event::UserId;

/// A session as nodes describe it to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// The node that has the socket.
    pub node: Arc<str>,
    pub session: Arc<str>,
    pub user: UserId,
    pub subprotocol: Option<&'static str>,
    pub resumes: bool,
    pub attributes: Vec<(String, String)>,
    pub opened: SystemTime,
}

/// Where a session is whose socket another node has.
#[derive(Debug)]
pub(super) struct Elsewhere {
    node: Arc<str>,
    endings: Arc<Endings>,
}

/// Sessions that are to close, and whose sockets other nodes have.
#[derive(Debug, Default)]
pub struct Endings {
    waiting: Mutex<Vec<(UserId, Arc<str>, Close)>>,
    more: Notify,
}

impl Endings {
    /// Waits until there are some, and takes them. Cancel safe.
    pub async fn take(&self) -> Vec<(UserId, Arc<str>, Close)> {
        loop {
            let more = self.more.notified();
            let waiting = std::mem::take(&mut *self.waiting.lock());
            if !waiting.is_empty() {
                return waiting;
            }
            more.await;
        }
    }
}

impl Elsewhere {
    /// Has the session's node told that it is to close.
    pub fn end(&self, handle: &SessionHandle, close: Close) {
        self.endings.waiting.lock().push((handle.user.clone(), handle.id.clone(), close));
        self.endings.more.notify_one();
    }
}

impl Registry {
    /// Adds a session that another node has admitted.
    pub fn add(&self, sessions: &mut UserSessions, handle: &Arc<SessionHandle>) {
        sessions.handles.push(handle.clone());
        self.count_in(handle);
    }
}

impl UserSessions {
    /// Asks those to close that this node has, and returns how many there are.
    pub fn end_here(&self, close: &Close) -> usize {
        let here = self.handles.iter().filter(|handle| handle.is_here());
        here.inspect(|handle| handle.end(close.clone())).count()
    }

    /// Returns the sessions of a node.
    pub fn of_node(&self, node: &str) -> SmallVec<[Arc<SessionHandle>; 1]> {
        self.handles.iter().filter(|handle| handle.node() == Some(node)).cloned().collect()
    }

    /// Returns the sessions that this node has.
    pub fn here(&self) -> impl Iterator<Item = &Arc<SessionHandle>> {
        self.admitted().filter(|handle| handle.is_here())
    }
}

impl SessionHandle {
    /// Returns the handle of a session whose socket another node has, as that node describes it.
    pub fn elsewhere(info: &SessionInfo, endings: &Arc<Endings>) -> Arc<SessionHandle> {
        let SessionInfo { node, session, user, subprotocol, resumes, attributes, opened } = info.clone();
        let handle = SessionHandle::of(session, user, subprotocol, resumes, attributes, opened);
        Arc::new(SessionHandle { elsewhere: Some(Elsewhere { node, endings: endings.clone() }), ..handle })
    }

    /// Describes the session to other nodes, as one of this node.
    pub fn info(&self, node: &Arc<str>) -> SessionInfo {
        SessionInfo {
            node: node.clone(),
            session: self.id.clone(),
            user: self.user.clone(),
            subprotocol: self.subprotocol,
            resumes: self.resumes,
            attributes: self.attributes.clone(),
            opened: self.opened,
        }
    }

    /// Describes the session to other nodes. `here`: what this node is called.
    pub fn info_at(&self, here: &Arc<str>) -> SessionInfo {
        self.info(self.elsewhere.as_ref().map_or(here, |elsewhere| &elsewhere.node))
    }

    /// Returns the node that has the session's socket; `None` if this one does.
    pub fn node(&self) -> Option<&str> {
        self.elsewhere.as_ref().map(|elsewhere| &*elsewhere.node)
    }

    pub fn is_here(&self) -> bool {
        self.elsewhere.is_none()
    }
}
