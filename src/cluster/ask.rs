//! What a node asks of the one that leads: to admit sessions, to hear what clients say, and to answer requests.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Response, header};
use serde_bytes::ByteBuf;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};

use super::member::{ASK_PAUSE, Joining, LOST, Member};
use super::wire::{self, Ask, HttpAsk, Report, Told};
use super::{NotAdmitted, NotForwarded, lead};
use crate::dispatch::{Dispatch, session_policies};
use crate::model::mailbox::{Head, Reader};
use crate::registry::SessionHandle;
use crate::store::{NotStored, Ticket};
use crate::types::close::Close;
use crate::types::delivery::Refusal;
use crate::types::event::Body;

/// Bytes of a request's head and of its frame, about: what a body may have less than a message of NATS.
const REQUEST_HEAD_BYTES: usize = 16 << 10;

/// Why the leader has not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotTold {
    /// This node leads.
    Mine,
    Not(NotStored),
}

impl Member {
    /// Asks the leader, and waits for one if nobody leads.
    pub(super) async fn ask(&self, ask: &Ask, patience: Duration) -> Result<Told, NotTold> {
        let message = Bytes::from(wire::encode(ask));
        let deadline = Instant::now() + patience;
        let mut leader = self.leader.subscribe();
        loop {
            let lead = match timeout_at(deadline, leader.wait_for(Option::is_some)).await {
                Ok(Ok(lead)) => lead.clone(),
                Ok(Err(_)) | Err(_) => None,
            };
            let Some(lead) = lead else { return Err(NotTold::Not(self.why_not())) };
            if lead.node == self.me {
                return Err(NotTold::Mine);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.link.ask(self.lead_subject(lead.term), message.clone(), left).await {
                Ok(Some(told)) => match wire::decode(&told) {
                    Some(Told::NotMe) => {}
                    Some(told) => return Ok(told),
                    None => return Err(NotTold::Not(NotStored::NoLeader)),
                },
                Ok(None) => {}
                Err(why) => {
                    tracing::debug!("the leader has not answered: {why}");
                    return Err(NotTold::Not(self.why_not()));
                }
            }
            if left.is_zero() {
                return Err(NotTold::Not(self.why_not()));
            }
            // It has stopped, or it does not listen yet.
            sleep(ASK_PAUSE).await;
        }
    }

    pub(super) fn why_not(&self) -> NotStored {
        if self.link.is_connected() { NotStored::NoLeader } else { NotStored::Unreachable }
    }

    /// Does here what was to be told to the leader, since this node leads now.
    pub(super) async fn tell_myself(&self, reports: Vec<Report>) {
        if let Some(dispatch) = self.dispatch.get() {
            drop(self.answer_reports(dispatch, reports).await);
        }
    }

    pub(super) async fn open(&self, dispatch: &Dispatch, handle: &Arc<SessionHandle>) -> Result<(Reader, Head), NotAdmitted> {
        let deadline = Instant::now() + *self.config.ask_deadline_ms;
        loop {
            if !self.follows() {
                let (reader, head, ticket) = lead::admit(dispatch, handle, &self.me)?;
                let mut admitted = Admitted { member: self, dispatch, reader: Some(reader) };
                ticket.stored().await.map_err(NotAdmitted::NotNow)?;
                if let Some(reader) = admitted.reader.take() {
                    return Ok((reader, head));
                }
            }
            let (admitted, admission) = oneshot::channel();
            self.joining.lock().insert(handle.id.clone(), Joining { handle: handle.clone(), admitted });
            let mut waits = Waits { member: self, session: &handle.id, admission };
            let ask = Ask::Open(wire::session(handle.info(&self.me)));
            let left = deadline.saturating_duration_since(Instant::now());
            match self.ask(&ask, left).await {
                Ok(Told::Done) => {
                    let absorbed = timeout_at(deadline, &mut waits.admission).await;
                    return absorbed.ok().and_then(Result::ok).ok_or(NotAdmitted::NotNow(NotStored::CatchingUp));
                }
                Ok(Told::Close(code, text)) => return Err(Close::of(code, &text).unwrap_or(Close::Restart).into()),
                Ok(Told::Unavailable(why)) => {
                    tracing::debug!("a session is not admitted: {why}");
                    return Err(NotAdmitted::NotNow(NotStored::NoLeader));
                }
                Err(NotTold::Mine) => {}
                Err(NotTold::Not(why)) => return Err(NotAdmitted::NotNow(why)),
                Ok(_) => return Err(NotAdmitted::NotNow(NotStored::NoLeader)),
            }
        }
    }

    pub(super) async fn received(&self, dispatch: &Dispatch, handle: &Arc<SessionHandle>, body: &Body) -> Result<Ticket, Refusal> {
        let is_for_policies = dispatch.policies.current().sessions().next().is_some();
        if !is_for_policies || !self.follows() {
            return session_policies::received(dispatch, handle, body);
        }
        let ask = Ask::Received { user: handle.user.to_string(), session: handle.id.to_string(), body: wire::Spoken::of(body) };
        let unavailable = |why: String| Refusal { code: "unavailable".into(), detail: why };
        match self.ask(&ask, *self.config.message_deadline_ms).await {
            Ok(Told::Done) => Ok(Ticket::none()),
            Ok(Told::Refused(code, detail)) => Err(Refusal { code, detail }),
            Ok(Told::Unavailable(why)) => Err(unavailable(why)),
            Err(NotTold::Mine) => session_policies::received(dispatch, handle, body),
            Err(NotTold::Not(why)) => Err(unavailable(why.to_string())),
            Ok(_) => Err(unavailable(NotStored::NoLeader.to_string())),
        }
    }

    pub(super) fn closed(&self, dispatch: &Dispatch, reader: &Reader, code: u16) {
        let handle = reader.handle();
        if self.follows() {
            reader.leave();
            self.reports.closed(handle, &self.me, code);
            return;
        }
        session_policies::closed(dispatch, handle, code);
        reader.leave();
        drop(lead::note_closed(dispatch, &handle.user, &handle.id, None));
        dispatch.tell_of_session(handle, Some(code));
    }

    /// Returns the bytes of a request's body that can be passed on.
    fn request_bytes_max(&self) -> usize {
        self.link.message_bytes_max().saturating_sub(REQUEST_HEAD_BYTES)
    }

    pub(super) async fn forward_frames(&self, frames: &[Bytes]) -> Result<Option<Vec<Vec<u8>>>, NotForwarded> {
        if !self.follows() {
            return Ok(None);
        }
        let most = self.request_bytes_max();
        if frames.iter().map(Bytes::len).sum::<usize>() > most {
            return Err(NotForwarded::TooLarge(most));
        }
        let ask = Ask::Frames(frames.iter().map(|frame| ByteBuf::from(frame.to_vec())).collect());
        match self.ask(&ask, *self.config.ask_deadline_ms).await {
            Ok(Told::Frames(answers)) if answers.len() == frames.len() => {
                self.metrics.cluster_forwarded.inc();
                Ok(Some(answers.into_iter().map(ByteBuf::into_vec).collect()))
            }
            Err(NotTold::Mine) => Ok(None),
            Err(NotTold::Not(why)) => Err(NotForwarded::NotStored(why)),
            Ok(told) => {
                tracing::warn!("frames of a producers' stream were not answered by the leader: {told:?}");
                Err(NotForwarded::NotStored(NotStored::NoLeader))
            }
        }
    }

    pub(super) async fn forward(&self, head: &Parts, body: &Bytes) -> Result<Option<Response<Bytes>>, NotForwarded> {
        if !self.follows() {
            return Ok(None);
        }
        let most = self.request_bytes_max();
        if body.len() > most {
            return Err(NotForwarded::TooLarge(most));
        }
        // Who sent it was checked here, and what is said of the connection is this one's.
        let own =
            [header::AUTHORIZATION, header::COOKIE, header::HOST, header::CONNECTION, header::TRANSFER_ENCODING, header::CONTENT_LENGTH];
        let headers = head.headers.iter().filter(|(name, _)| !own.contains(name));
        let ask = Ask::Http(HttpAsk {
            method: head.method.to_string(),
            uri: head.uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
            headers: headers.map(|(name, value)| (name.to_string(), ByteBuf::from(value.as_bytes()))).collect(),
            body: ByteBuf::from(body.to_vec()),
        });
        let not_stored = |why| Err(NotForwarded::NotStored(why));
        match self.ask(&ask, *self.config.ask_deadline_ms).await {
            Ok(Told::Http { status, headers, body }) => {
                self.metrics.cluster_forwarded.inc();
                let mut response = Response::builder().status(status);
                for (name, value) in &headers {
                    response = response.header(name.as_str(), value.as_slice());
                }
                match response.body(body.into_vec().into()) {
                    Ok(response) => Ok(Some(response)),
                    Err(_) => not_stored(NotStored::NoLeader),
                }
            }
            Err(NotTold::Mine) => Ok(None),
            Err(NotTold::Not(why)) => not_stored(why),
            Ok(Told::Unavailable(why)) => {
                tracing::warn!("a request was not answered by the leader: {why}");
                not_stored(NotStored::NoLeader)
            }
            Ok(_) => not_stored(NotStored::NoLeader),
        }
    }
}

/// A session's place among those that wait to be admitted. Dropping it gives the place up: a client that has gone is not waited for.
struct Waits<'a> {
    member: &'a Member,
    session: &'a Arc<str>,
    admission: oneshot::Receiver<(Reader, Head)>,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.member.joining.lock().remove(self.session);
        self.admission.close();
        if let Ok((reader, _)) = self.admission.try_recv() {
            self.member.reports.closed(reader.handle(), &self.member.me, LOST);
        }
    }
}

/// A session that this node has admitted and that is not stored yet. Dropping it closes the session.
struct Admitted<'a> {
    member: &'a Member,
    dispatch: &'a Dispatch,
    reader: Option<Reader>,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            self.member.closed(self.dispatch, &reader, LOST);
        }
    }
}
