//! What the node that leads does for other nodes and for its own sessions: it admits sessions, asks the policies, and notes what other nodes have
//! to know.

use std::sync::Arc;

use super::NotAdmitted;
use super::member::{Answering, LOST, Member};
use super::wire::{self, Ask, HttpAsk, Report, Told};
use crate::dispatch::{Dispatch, session_policies};
use crate::model::dead_letters::DeadLetter;
use crate::model::mailbox::{Head, Reader};
use crate::model::record::Change;
use crate::registry::SessionHandle;
use crate::store::{NotStored, Ticket};
use crate::types::close::Close;
use crate::types::event::UserId;

/// Admits a session, wherever its socket is, and notes that.
///
/// # Errors
/// A policy or a bound refuses it, or the store can't keep up.
pub fn admit(dispatch: &Dispatch, handle: &Arc<SessionHandle>, node: &Arc<str>) -> Result<(Reader, Head, Ticket), NotAdmitted> {
    dispatch.store.admit().map_err(NotAdmitted::NotNow)?;
    let mut reader = dispatch.model.mailboxes.open(handle.clone())?;
    let head = reader.head();
    session_policies::opened(dispatch, handle)?;
    let mut changes = dispatch.store.changes();
    if let Err(close) = reader.admit() {
        drop(changes);
        session_policies::closed(dispatch, handle, close.code());
        return Err(close.into());
    }
    changes.note(|| reader.opened(handle.info(node), head.seq));
    let ticket = dispatch.store.append(changes);
    dispatch.tell_of_session(handle, None);
    Ok((reader, head, ticket))
}

/// Asks the policies about a session that is over, has it leave, and notes that.
pub fn close(dispatch: &Dispatch, handle: &Arc<SessionHandle>, code: u16) -> Ticket {
    session_policies::closed(dispatch, handle, code);
    let ticket = note_closed(dispatch, &handle.user, &handle.id, None);
    dispatch.tell_of_session(handle, Some(code));
    ticket
}

/// Has a session leave, and has the node that has its socket close it for this reason, if there is one.
pub fn note_closed(dispatch: &Dispatch, user: &UserId, session: &Arc<str>, why: Option<Close>) -> Ticket {
    let mut changes = dispatch.store.changes();
    dispatch.model.mailboxes.absorb_closed(user, session, why.as_ref());
    changes.note(|| Change::Closed { user: user.clone(), session: session.clone(), why });
    dispatch.store.append(changes)
}

/// Removes the sessions of a node that is gone, and asks the policies about each.
pub fn gone(dispatch: &Dispatch, node: &Arc<str>) -> usize {
    let mut changes = dispatch.store.changes();
    let sessions = dispatch.model.mailboxes.absorb_gone(node);
    changes.note(|| Change::Gone { node: node.clone() });
    drop(dispatch.store.append(changes));
    for handle in &sessions {
        session_policies::closed(dispatch, handle, LOST);
        dispatch.tell_of_session(handle, Some(LOST));
    }
    sessions.len()
}

impl Member {
    /// Answers a request of another node.
    pub(super) async fn answer(&self, dispatch: &Dispatch, answering: &Answering, ask: &[u8]) -> Told {
        if self.follows() {
            return Told::NotMe;
        }
        let ask = wire::decode(ask);
        // Its policies are to be asked about what is in the others.
        if dispatch.policies.check().is_err() && !matches!(ask, Some(Ask::Http(_) | Ask::Agree(_))) {
            return Told::Unavailable("the node that leads has no policies yet".to_owned());
        }
        let answered = match ask {
            None => return Told::Unavailable("a request of a version that this node does not know".to_owned()),
            Some(Ask::Http(ask)) => return answer_http(answering, ask).await,
            Some(Ask::Frames(frames)) => {
                let frames = frames.into_iter().map(|frame| frame.into_vec().into()).collect();
                return Told::Frames(answering.0.frames(frames).await.into_iter().map(serde_bytes::ByteBuf::from).collect());
            }
            Some(Ask::Agree(wanted)) => return self.answer_agree(dispatch, &wanted).await,
            Some(Ask::Open(info)) => self.answer_open(dispatch, &info).await,
            Some(Ask::Received { user, session, body }) => self.answer_received(dispatch, &user, &session, body).await,
            Some(Ask::Reports(reports)) => self.answer_reports(dispatch, reports).await,
        };
        answered.unwrap_or_else(|why| Told::Unavailable(why.to_string()))
    }

    async fn answer_open(&self, dispatch: &Dispatch, info: &[u8]) -> Result<Told, NotStored> {
        let Some(info) = wire::session_of(info) else { return Ok(Told::Unavailable("a session that is not described well".to_owned())) };
        if dispatch.model.mailboxes.session(&info.user, &info.session).is_some() {
            // It was asked before, by a node that got no answer.
            return Ok(Told::Done);
        }
        let handle = SessionHandle::elsewhere(&info, self.endings());
        match admit(dispatch, &handle, &info.node) {
            Ok((reader, _, ticket)) => {
                self.note_sessions_of(&info.node);
                reader.stay();
                ticket.stored().await?;
                Ok(Told::Done)
            }
            Err(NotAdmitted::Close(close)) => Ok(Told::Close(close.code(), close.text().to_owned())),
            Err(NotAdmitted::NotNow(why)) => Err(why),
        }
    }

    async fn answer_received(&self, dispatch: &Dispatch, user: &str, session: &str, body: wire::Spoken) -> Result<Told, NotStored> {
        let handle = UserId::stored(user).ok().and_then(|user| dispatch.model.mailboxes.session(&user, session));
        let (Some(handle), Some(body)) = (handle, body.read()) else {
            return Ok(Told::Unavailable("the session is not known here yet: send the message again".to_owned()));
        };
        let policies = &dispatch.policies;
        let answered = {
            let _permit = policies.permit(policies.current().sessions()).await;
            session_policies::received(dispatch, &handle, &body)
        };
        match answered {
            Ok(ticket) => {
                ticket.stored().await?;
                Ok(Told::Done)
            }
            Err(refusal) => Ok(Told::Refused(refusal.code, refusal.detail)),
        }
    }

    /// Takes what has happened on another node. Answers when it is stored: until then the other node tells it again.
    pub(super) async fn answer_reports(&self, dispatch: &Dispatch, reports: Vec<Report>) -> Result<Told, NotStored> {
        let mailboxes = &dispatch.model.mailboxes;
        let mut last = None;
        for report in reports {
            match report {
                Report::Read { user, birth, delivered, is_acked, sessions } => {
                    if let Some(read) = wire::read(&user, birth, delivered, is_acked, sessions) {
                        mailboxes.absorb_read(&read);
                    }
                }
                Report::Closed(info, code) => {
                    let Some(info) = wire::session_of(&info) else { continue };
                    // One that has left already, as when a newer one replaced it, is told to the policies all the same.
                    let known = mailboxes.session(&info.user, &info.session);
                    let handle = known.unwrap_or_else(|| SessionHandle::elsewhere(&info, self.endings()));
                    last = Some(close(dispatch, &handle, code));
                }
                Report::Letter(letter) => {
                    let Some(Change::Letter { letter, .. }) = wire::change(&letter) else { continue };
                    let mut changes = dispatch.store.changes();
                    let letter = DeadLetter { id: 0, ..Arc::unwrap_or_clone(letter) };
                    dispatch.model.dead_letters.keep_of_readers(letter, &mut changes);
                    last = Some(dispatch.store.append(changes));
                }
            }
        }
        if let Some(last) = last {
            last.stored().await?;
        }
        Ok(Told::Done)
    }
}

async fn answer_http(answering: &Answering, ask: HttpAsk) -> Told {
    let mut request = http::Request::builder().method(ask.method.as_str()).uri(ask.uri);
    for (name, value) in &ask.headers {
        request = request.header(name.as_str(), value.as_slice());
    }
    let Ok(request) = request.body(ask.body.into_vec().into()) else {
        return Told::Unavailable("a request that HTTP does not have".to_owned());
    };
    let (head, body) = answering.0.answer(request).await.into_parts();
    let headers = head.headers.iter().map(|(name, value)| (name.to_string(), serde_bytes::ByteBuf::from(value.as_bytes()))).collect();
    Told::Http { status: head.status.as_u16(), headers, body: serde_bytes::ByteBuf::from(body.to_vec()) }
}
