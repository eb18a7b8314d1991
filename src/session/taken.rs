//! The answers that wait for the store: a client may want to know when what followed from its message is stored. The session goes on reading
//! and writing meanwhile.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;

use crate::store::{NotStored, Ticket};

/// Answers that wait, for one session. A client that sends more is read from again when the store is that far, which takes milliseconds. As
/// many as our clients send without waiting for an answer.
const WAITING_MAX: usize = 256;

/// The id that the client gave its message, and whether what followed from it is stored.
type Settled = (Box<str>, Result<(), NotStored>);

type Waiting = Pin<Box<dyn Future<Output = Settled> + Send>>;

/// A session's answers that wait, in the order of the client's messages.
#[derive(Debug, Default)]
pub struct Taken(Option<Box<FuturesOrdered<Waiting>>>);

impl Taken {
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Returns whether the client has to wait before it is read from again.
    pub fn is_full(&self) -> bool {
        self.0.as_ref().is_some_and(|waiting| waiting.len() >= WAITING_MAX)
    }

    pub fn add(&mut self, id: Box<str>, ticket: Ticket) {
        let settled: Waiting = Box::pin(async move { (id, ticket.stored().await) });
        self.0.get_or_insert_default().push_back(settled);
    }

    /// Resolves with the next answer. Pending if none waits.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<Settled> {
        let Some(waiting) = &mut self.0 else { return Poll::Pending };
        match ready!(waiting.poll_next_unpin(context)) {
            Some(settled) => Poll::Ready(settled),
            // A session without such answers holds nothing for them.
            None => {
                self.0 = None;
                Poll::Pending
            }
        }
    }
}
