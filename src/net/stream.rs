//! A connection's stream: its bytes, a deadline for writes that make no progress, and its permit of `http.connections_max`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::net::permits::ConnectionPermit;
use crate::net::wire::Wire;

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
