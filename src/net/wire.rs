//! The bytes of one connection: TCP, or TLS over it.
//!
//! Whoever owns one waits for the socket and then tries, so that nothing is held while there is nothing to read or to write. TLS
//! fits in without a task or a buffer of its own: rustls takes what the socket has, and hands back what it means.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use rustls::Connection;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes that TLS is handed at a time: the most that one of its records has (RFC 8446, section 5.1).
const RECORD_BYTES_MAX: usize = 16_384;

/// Read at a time from a peer to whom nothing more is said.
const IGNORED_BYTES: usize = 2048;

/// A connection.
#[derive(Debug)]
pub struct Wire {
    tcp: TcpStream,
    tls: Option<Box<Tls>>,
}

#[derive(Debug)]
struct Tls {
    connection: Connection,
    /// Bytes of the writer that are encrypted, and not yet all with the socket.
    taken: usize,
}

impl Wire {
    pub fn new(tcp: TcpStream, tls: Option<Connection>) -> Wire {
        Wire { tcp, tls: tls.map(|connection| Box::new(Tls { connection, taken: 0 })) }
    }

    /// Resolves when there may be something to read.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn readable(&self) -> io::Result<()> {
        self.tcp.readable().await
    }

    /// Resolves when there may be room to write.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn writable(&self) -> io::Result<()> {
        self.tcp.writable().await
    }

    /// As [`Wire::readable`], for one task that is woken by several things.
    pub fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_read_ready(context)
    }

    /// As [`Wire::writable`], for one task that is woken by several things.
    pub fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_write_ready(context)
    }

    /// Reads once from the socket, and appends all that this brought. 0 is the end.
    ///
    /// # Errors
    /// `WouldBlock` where there is nothing yet; else the operating system's or TLS's.
    pub fn try_read_buf(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.tcp.try_read_buf(buffer) };
        let is_end = tls.receive(&self.tcp)? == 0;
        match tls.drain(buffer)? {
            0 if !is_end => Err(ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }

    /// Appends what has been read from the socket already.
    ///
    /// # Errors
    /// TLS's.
    pub fn take_read(&mut self, buffer: &mut BytesMut) -> io::Result<()> {
        self.tls.as_mut().map_or(Ok(0), |tls| tls.drain(buffer)).map(drop)
    }

    /// Writes some of the bytes, and says how many. Where it would block, the next try begins with the same bytes.
    ///
    /// # Errors
    /// `WouldBlock` where there is no room; else the operating system's or TLS's.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.tcp.try_write(bytes) };
        if tls.taken == 0 {
            tls.taken = tls.connection.writer().write(bytes.get(..RECORD_BYTES_MAX).unwrap_or(bytes))?;
        }
        tls.flush(&self.tcp)?;
        Ok(std::mem::take(&mut tls.taken))
    }

    /// Says that nothing more is written. What the peer sends can still be read.
    ///
    /// # Errors
    /// The operating system's.
    pub fn finish(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.connection.send_close_notify();
            // A peer that doesn't read sees the end of the connection instead.
            let _ = tls.flush(&self.tcp);
        }
        SockRef::from(&self.tcp).shutdown(Shutdown::Write)
    }

    /// Writes the last bytes and waits for the peer to go, both within one deadline. Reading on is what lets the last bytes arrive:
    /// closing a socket with unread bytes resets it.
    pub async fn part(&mut self, bytes: &[u8], deadline: Duration) {
        // Whatever goes wrong, the connection ends.
        let _ = tokio::time::timeout(deadline, self.write_and_drain(bytes)).await;
    }

    async fn write_and_drain(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            self.writable().await?;
            match self.try_write(rest) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        // Half-closed: the peer reads the end after the last bytes.
        self.finish()?;
        let mut ignored = BytesMut::with_capacity(IGNORED_BYTES);
        loop {
            self.readable().await?;
            ignored.clear();
            match self.try_read_buf(&mut ignored) {
                Ok(0) => return Ok(()),
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
    }

    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.tcp.try_read(buffer) };
        loop {
            match tls.connection.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
            if tls.receive(&self.tcp)? == 0 {
                return Ok(0);
            }
        }
    }
}

impl Tls {
    /// Reads once from the socket; the number of encrypted bytes.
    fn receive(&mut self, tcp: &TcpStream) -> io::Result<usize> {
        let count = self.connection.read_tls(&mut Socket(tcp))?;
        let processed = self.connection.process_new_packets();
        // The handshake goes on, or the peer learns what was wrong. What finds no room now goes with the next write.
        match self.flush(tcp) {
            Err(error) if error.kind() != ErrorKind::WouldBlock && processed.is_ok() => return Err(error),
            _ => {}
        }
        processed.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        Ok(count)
    }

    /// Appends what is decrypted, which is no more than the socket gave at a time.
    fn drain(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        let before = buffer.len();
        let mut chunk = [0; 2048];
        loop {
            match self.connection.reader().read(&mut chunk) {
                Ok(0) => return Ok(buffer.len() - before),
                Ok(count) => buffer.extend_from_slice(chunk.get(..count).unwrap_or_default()),
                // The end without TLS's own word for it: an attacker may have cut it off, and it isn't taken for whole.
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(buffer.len() - before),
                Err(error) => return Err(error),
            }
        }
    }

    fn flush(&mut self, tcp: &TcpStream) -> io::Result<()> {
        while self.connection.wants_write() {
            if self.connection.write_tls(&mut Socket(tcp))? == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

/// The socket as rustls sees it.
struct Socket<'a>(&'a TcpStream);

impl Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.tls.is_none() {
            return Pin::new(&mut self.tcp).poll_read(context, buffer);
        }
        loop {
            match self.try_read(buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(self.tcp.poll_read_ready(context))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.try_write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(self.tcp.poll_write_ready(context))?,
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.tls.is_none() {
            return Pin::new(&mut self.tcp).poll_write_vectored(context, slices);
        }
        let first = slices.iter().find(|slice| !slice.is_empty());
        self.poll_write(context, first.map_or(&[], |slice| slice))
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_none()
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What a write has taken is with the socket.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish())
    }
}
