//! The bytes of one connection: TCP, or TLS over it.
//!
//! The owner waits until the socket is ready and then tries to read or write, so that an idle connection holds no buffer. TLS needs
//! neither a task nor a buffer of its own: rustls reads from the socket and returns the decrypted bytes.

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

/// Bytes that are given to TLS at a time: the most that one of its records holds (RFC 8446, section 5.1).
const RECORD_BYTES_MAX: usize = 16_384;

/// Bytes that are read at a time, and ignored, after the last write.
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
    /// Bytes of the caller that are encrypted, but not yet all written to the socket.
    taken: usize,
}

impl Wire {
    pub fn new(tcp: TcpStream, tls: Option<Connection>) -> Wire {
        Wire { tcp, tls: tls.map(|connection| Box::new(Tls { connection, taken: 0 })) }
    }

    /// Has the system give the connection up when the peer has not confirmed written bytes for this long: for peers that answer nothing.
    pub fn give_up_after(&self, silence: Duration) {
        // Without it, a connection whose peer is gone ends when the system gives up by itself.
        #[cfg(target_os = "linux")]
        let _ = SockRef::from(&self.tcp).set_tcp_user_timeout(Some(silence));
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

    /// Polls for [`Wire::readable`], for one task that is woken by several things.
    pub fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_read_ready(context)
    }

    /// Polls for [`Wire::writable`], for one task that is woken by several things.
    pub fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_write_ready(context)
    }

    /// Reads once from the socket, and appends the received bytes. 0 means the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` if there is nothing to read yet; else the operating system's or TLS's.
    pub fn try_read_buf(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.tcp.try_read_buf(buffer) };
        let is_end = tls.receive(&self.tcp)? == 0;
        match tls.drain(buffer)? {
            0 if !is_end => Err(ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }

    /// Appends bytes that have been read from the socket already.
    ///
    /// # Errors
    /// TLS's.
    pub fn take_read(&mut self, buffer: &mut BytesMut) -> io::Result<()> {
        self.tls.as_mut().map_or(Ok(0), |tls| tls.drain(buffer)).map(drop)
    }

    /// Writes some of the bytes, and returns how many. If it would block, the next call has to begin with the same bytes.
    ///
    /// # Errors
    /// `WouldBlock` if the socket's buffer is full; else the operating system's or TLS's.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.tcp.try_write(bytes) };
        if tls.taken == 0 {
            tls.taken = tls.connection.writer().write(bytes.get(..RECORD_BYTES_MAX).unwrap_or(bytes))?;
        }
        tls.flush(&self.tcp)?;
        Ok(std::mem::take(&mut tls.taken))
    }

    /// Tells the peer that nothing more will be written. What the peer sends can still be read.
    ///
    /// # Errors
    /// The operating system's.
    pub fn finish(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.connection.send_close_notify();
            // If the peer doesn't read, it will see the end of the connection instead.
            let _ = tls.flush(&self.tcp);
        }
        SockRef::from(&self.tcp).shutdown(Shutdown::Write)
    }

    /// Writes the last bytes and waits for the peer to close, both within one deadline. It keeps reading so that the last bytes arrive:
    /// closing a socket with unread bytes resets the connection.
    pub async fn part(&mut self, bytes: &[u8], deadline: Duration) {
        // The connection ends whether or not this succeeds.
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
        // Half-closed: the peer reads the last bytes, and then the end.
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
    /// Reads once from the socket, and returns the number of encrypted bytes.
    fn receive(&mut self, tcp: &TcpStream) -> io::Result<usize> {
        let count = self.connection.read_tls(&mut Socket(tcp))?;
        let processed = self.connection.process_new_packets();
        // Sends the handshake's next message, or the alert. If the socket's buffer is full, the next write sends it.
        match self.flush(tcp) {
            Err(error) if error.kind() != ErrorKind::WouldBlock && processed.is_ok() => return Err(error),
            _ => {}
        }
        processed.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        Ok(count)
    }

    /// Appends the decrypted bytes, and returns how many. They are at most what one read of the socket brought.
    fn drain(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        let before = buffer.len();
        let mut chunk = [0; 2048];
        loop {
            match self.connection.reader().read(&mut chunk) {
                Ok(0) => return Ok(buffer.len() - before),
                Ok(count) => buffer.extend_from_slice(chunk.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(buffer.len() - before),
                // Among them `UnexpectedEof`, the end without TLS's `close_notify`: an attacker may have cut the stream off.
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
        // Whatever a write accepted has been written to the socket.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish())
    }
}
