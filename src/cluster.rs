//! Several nodes that serve together: one leads at a time, and all deliver.
//!
//! The node that leads plans and applies, and writes what changed to a JetStream stream ([`crate::store::stream`]), one frame at a time; every
//! node absorbs the stream into the same memory (`model::absorb`) and serves its own sockets from it. Who leads is decided in the stream
//! ([`election`]): a node leads once its record of that is stored at the end of the stream, and a node that leads no longer can't write, since
//! it expects another sequence. If it has decided something by then, which nobody has seen, it begins afresh.
//!
//! [`member`] is the node, which [`join`]s, and then [`follow`]s or leads ([`mod@write`]). [`ask`] is what it asks of the leader, [`report`] what it
//! tells it, [`lead`] what the leader does then, [`wire`] how they say it, and [`beats`] how they know of each other. [`components`] are
//! the policies of all nodes. [`snapshot`] keeps the stream short, [`digest`] tells whether nodes hold the same, [`source`] takes events from
//! NATS, [`link`] is NATS, and [`flushing`] asks how its servers are set. A server that is alone has none of this: [`Cluster::Alone`].

mod ask;
mod beats;
mod components;
mod digest;
mod election;
mod flushing;
mod follow;
mod join;
mod lead;
mod link;
mod member;
mod report;
mod snapshot;
mod source;
mod wire;
mod write;

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use tokio::task::JoinSet;

use crate::dispatch::{Dispatch, session_policies};
use crate::metrics::ClusterGauges;
use crate::model::mailbox::{Head, Reader};
use crate::registry::SessionHandle;
use crate::store::{NotStored, Ticket};
use crate::types::close::Close;
use crate::types::delivery::Refusal;
use crate::types::event::Body;
pub use beats::View;
pub use digest::Digest;
pub use join::Joined;
pub use member::{Answering, Answers, Boxed, Member};
pub use source::{Fate, Taken};

/// This server's part in a cluster.
#[derive(Clone, Debug, Default)]
pub enum Cluster {
    #[default]
    Alone,
    Member(Arc<Member>),
}

/// Why a session is not admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotAdmitted {
    /// It is closed, for this reason.
    Close(Close),
    /// Nobody could decide about it.
    NotNow(NotStored),
}

impl From<Close> for NotAdmitted {
    fn from(close: Close) -> NotAdmitted {
        NotAdmitted::Close(close)
    }
}

impl Cluster {
    /// Opens a session: the policies are asked, and it becomes one of its user's sessions. A client that is refused replaces no other session.
    ///
    /// # Errors
    /// It is refused, or nobody could decide.
    pub async fn open(&self, dispatch: &Dispatch, handle: &Arc<SessionHandle>) -> Result<(Reader, Head), NotAdmitted> {
        let Cluster::Member(member) = self else {
            let mut reader = dispatch.model.mailboxes.open(handle.clone())?;
            let head = reader.head();
            session_policies::opened(dispatch, handle)?;
            if let Err(close) = reader.admit() {
                session_policies::closed(dispatch, handle, close.code());
                return Err(close.into());
            }
            return Ok((reader, head));
        };
        // Boxed, so that its state is not part of a handshake's where there is no cluster.
        Box::pin(member.open(dispatch, handle)).await
    }

    /// Tells the sinks of a session that has begun.
    pub fn begun(&self, dispatch: &Dispatch, handle: &SessionHandle) {
        match self {
            Cluster::Alone => dispatch.tell_of_session(handle, None),
            // The node that leads has told them.
            Cluster::Member(_) => {}
        }
    }

    /// Passes a client's message to the policies.
    ///
    /// # Errors
    /// The answer to the client.
    pub async fn received(&self, dispatch: &Dispatch, handle: &Arc<SessionHandle>, body: &Body) -> Result<Ticket, Refusal> {
        match self {
            Cluster::Alone => session_policies::received(dispatch, handle, body),
            // Boxed, so that its state is not part of every session.
            Cluster::Member(member) => Box::pin(member.received(dispatch, handle, body)).await,
        }
    }

    /// Has a session leave its mailbox, and tells the policies and the sinks that it has closed with this code.
    pub fn closed(&self, dispatch: &Dispatch, reader: &Reader, code: u16) {
        match self {
            Cluster::Alone => {
                session_policies::closed(dispatch, reader.handle(), code);
                reader.leave();
                dispatch.tell_of_session(reader.handle(), Some(code));
            }
            Cluster::Member(member) => member.closed(dispatch, reader, code),
        }
    }

    /// Returns whether another node decides, so that what changes something is passed on to it.
    pub fn follows(&self) -> bool {
        match self {
            Cluster::Alone => false,
            Cluster::Member(member) => member.follows(),
        }
    }

    /// Passes a request on to the node that leads, and returns its answer; `None` if this node leads, so that it answers itself.
    ///
    /// # Errors
    /// There is no answer. What the request asks for may have been done.
    pub async fn forward(&self, head: &Parts, body: &Bytes) -> Result<Option<Response<Bytes>>, NotForwarded> {
        match self {
            Cluster::Alone => Ok(None),
            Cluster::Member(member) => Box::pin(member.forward(head, body)).await,
        }
    }

    /// Passes frames of a producers' stream on to the node that leads, and returns its answers in their order; `None` if this node leads.
    ///
    /// # Errors
    /// There is no answer. What the frames ask for may have been done.
    pub async fn forward_frames(&self, frames: &[Bytes]) -> Result<Option<Vec<Vec<u8>>>, NotForwarded> {
        match self {
            Cluster::Alone => Ok(None),
            Cluster::Member(member) => Box::pin(member.forward_frames(frames)).await,
        }
    }

    /// Runs the node's part, until it is dropped. `answering`: how a request of another node is answered.
    pub fn run(&self, dispatch: &Arc<Dispatch>, answering: Answering) -> Running {
        match self {
            Cluster::Alone => Running::default(),
            Cluster::Member(member) => Running { _tasks: member.clone().run(dispatch.clone(), answering) },
        }
    }

    /// Lets another node lead, if this one does: it is about to stop.
    pub async fn hand_over(&self) {
        if let Cluster::Member(member) = self {
            member.hand_over().await;
        }
    }

    /// Tells the node that leads what it has to know before this one ends.
    pub async fn leave(&self) {
        if let Cluster::Member(member) = self {
            member.leave().await;
        }
    }

    /// Returns why the node can't go on, if it can't even if it begins afresh.
    pub fn fatal(&self) -> Option<String> {
        match self {
            Cluster::Alone => None,
            Cluster::Member(member) => member.fatal(),
        }
    }

    /// Returns what operators see of the nodes.
    pub fn view(&self) -> View {
        match self {
            Cluster::Alone => View::default(),
            Cluster::Member(member) => member.view(),
        }
    }

    /// Makes a digest of what this node holds, which holds it up for as long as that takes. `None` for a server that is alone, or if what this
    /// node has decided is not stored within a short time.
    pub async fn digest(&self) -> Option<Digest> {
        match self {
            Cluster::Alone => None,
            Cluster::Member(member) => member.digest().await,
        }
    }

    pub fn gauges(&self) -> Option<ClusterGauges> {
        match self {
            Cluster::Alone => None,
            Cluster::Member(member) => Some(member.gauges()),
        }
    }
}

/// The tasks of a node's part. Dropping it ends them.
#[derive(Debug, Default)]
pub struct Running {
    _tasks: JoinSet<()>,
}

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotForwarded {
    NotStored(NotStored),
    /// It has more bytes than NATS takes, which are these.
    TooLarge(usize),
}
