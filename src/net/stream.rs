//! A connection's stream: its bytes, a deadline for writes that make no progress, and its permit of `http.connections_max`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::Sleep;

use crate::net::permits::ConnectionPermit;
use crate::net::wire::Wire;

/// Lets a request's handler take its connection over from HTTP, instead of answering.
#[derive(Clone, Debug, Default)]
pub struct Takeover(Arc<Mutex<Option<oneshot::Sender<Taken>>>>);

/// A connection, and the bytes that the peer sent after its request.
pub type Taken = (Stream, Bytes);

impl Takeover {
    /// Asks for the connection. The handler must not answer then, and what the receiver's owner writes is the answer.
    pub fn ask(&self) -> oneshot::Receiver<Taken> {
        let (sender, receiver) = oneshot::channel();
        *self.0.lock() = Some(sender);
        receiver
    }

    pub fn is_asked(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Hands the connection over, if a handler has asked for it. Otherwise it ends.
    pub fn hand_over(&self, taken: Taken) {
        if let Some(sender) = self.0.lock().take() {
            // If nobody waits for it any more, it ends too.
            let _ = sender.send(taken);
        }
    }
}

/// An accepted connection. hyper reads and writes it until it becomes a WebSocket; then the session owns the wire.
#[derive(Debug)]
pub struct Stream {
    wire: Wire,
    place: ConnectionPermit,
    write_deadline: Duration,
    /// Set while a write is pending.
    blocked: Option<Pin<Box<Sleep>>>,
}

impl Stream {
    pub fn new(wire: Wire, place: ConnectionPermit, write_deadline: Duration) -> Stream {
        Stream { wire, place, write_deadline, blocked: None }
    }

    /// Returns whether the peer has not taken yet what was written.
    pub fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    pub fn into_parts(self) -> (Wire, ConnectionPermit) {
        (self.wire, self.place)
    }

    /// Returns the outcome of a write, or an error if it has been pending for too long.
    fn in_time<T>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.blocked = None;
            return outcome;
        }
        let deadline = self.write_deadline;
        let blocked = self.blocked.get_or_insert_with(|| Box::pin(tokio::time::sleep(deadline)));
        ready!(blocked.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read")))
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.wire).poll_write(context, bytes);
        self.in_time(context, outcome)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.wire).poll_write_vectored(context, slices);
        self.in_time(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(context)
    }
}
