//! A producer: sends requests one after another over a connection that is kept open, and reads their answers.

use std::io;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Target;
use super::dialect::{Dialect, NATS_VERBOSE};

/// A longer wait for an answer is a failure.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// The receipts of a large batch have some 300 bytes each; no server under test answers with more than this.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Bytes per read: room for the receipt of a small batch.
const READ_BYTES: usize = 8 << 10;

const NATS_PING: &[u8] = b"PING\r\n";

/// One connection.
#[derive(Debug)]
pub struct Producer {
    tcp: TcpStream,
    /// The server's address, for reconnecting.
    address: SocketAddr,
    /// The server ended the connection with its last answer.
    ended: bool,
    dialect: Dialect,
    authority: String,
    base_path: String,
    /// The header line with the API key, or empty.
    key: String,
    request: Vec<u8>,
    answer: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    pub status: u16,
    pub body: &'a [u8],
}

impl Producer {
    /// Connects.
    ///
    /// # Errors
    /// The operating system's, or NATS refuses the greeting.
    pub async fn connect(target: &Target) -> io::Result<Producer> {
        let tcp = open(target.producers).await?;
        let (authority, base_path) = (target.authority.clone(), target.base_path.clone());
        let key = target.credentials.key.as_ref().map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
        let (request, answer) = (NATS_VERBOSE.as_bytes().to_vec(), Vec::new());
        let mut producer =
            Producer { tcp, address: target.producers, ended: false, dialect: target.dialect, authority, base_path, key, request, answer };
        if target.dialect == Dialect::Nats && producer.exchange().await?.status != 200 {
            return Err(io::Error::other("NATS refused a producer"));
        }
        Ok(producer)
    }

    /// Posts to a path below the base path.
    ///
    /// # Errors
    /// The connection broke, or no HTTP/1.1 answer with a length came in time. The producer can't be used afterwards.
    pub async fn post(&mut self, path: &str, content_type: &str, body: &[u8]) -> io::Result<Answer<'_>> {
        if self.dialect == Dialect::Nats { self.put(path, body).await } else { self.request("POST", path, content_type, body).await }
    }

    /// Publishes a message to a subject of NATS.
    async fn put(&mut self, subject: &str, body: &[u8]) -> io::Result<Answer<'_>> {
        self.request.clear();
        // NATS pings rarely, so its ping arrives with an answer.
        if self.answer.starts_with(NATS_PING) || self.answer.ends_with(NATS_PING) {
            self.request.extend_from_slice(b"PONG\r\n");
        }
        write!(self.request, "PUB {subject} {}\r\n", body.len())?;
        self.request.extend_from_slice(body);
        self.request.extend_from_slice(b"\r\n");
        self.exchange().await
    }

    /// Like [`Producer::post`], with any method.
    ///
    /// # Errors
    /// Like [`Producer::post`].
    pub async fn request(&mut self, method: &str, path: &str, content_type: &str, body: &[u8]) -> io::Result<Answer<'_>> {
        self.request.clear();
        let Producer { authority, base_path, key, .. } = self;
        let length = body.len();
        write!(
            self.request,
            "{method} {base_path}{path} HTTP/1.1\r\nHost: {authority}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n{key}\r\n"
        )?;
        self.request.extend_from_slice(body);
        self.exchange().await
    }

    /// Sends the request and waits for its answer.
    async fn exchange(&mut self) -> io::Result<Answer<'_>> {
        self.answer.clear();
        let whole_answer = if self.dialect == Dialect::Nats { whole_nats_answer } else { whole_answer };
        let exchange = async {
            if self.ended {
                self.tcp = open(self.address).await?;
            }
            self.tcp.write_all(&self.request).await?;
            loop {
                self.answer.reserve(READ_BYTES);
                if self.tcp.read_buf(&mut self.answer).await? == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
                }
                if let Some((status, start)) = whole_answer(&self.answer)? {
                    return Ok((status, start));
                }
            }
        };
        let (status, start) = timeout(ANSWER_DEADLINE, exchange).await??;
        self.ended = self.answer.get(..start).is_some_and(says_close);
        Ok(Answer { status, body: self.answer.get(start..).unwrap_or_default() })
    }
}

impl Answer<'_> {
    /// Returns the number of deliveries that the receipts in this answer report.
    pub fn posted(&self) -> u64 {
        const POSTED: &str = "\"posted\":";
        let text = std::str::from_utf8(self.body).unwrap_or_default();
        let numbers = text.match_indices(POSTED).filter_map(|(at, _)| {
            let digits = text.get(at + POSTED.len()..)?;
            digits.split(|char: char| !char.is_ascii_digit()).next()?.parse::<u64>().ok()
        });
        numbers.sum()
    }

    /// Returns the status and the beginning of the body, for people.
    pub fn sentence(&self) -> String {
        const EXCERPT_CHARS_MAX: usize = 200;
        let body: String = String::from_utf8_lossy(self.body).chars().take(EXCERPT_CHARS_MAX).collect();
        format!("{} {body}", self.status)
    }
}

async fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// Returns whether an answer's head ends the connection.
fn says_close(head: &[u8]) -> bool {
    head.split(|byte| *byte == b'\n').any(|line| line.trim_ascii_end().eq_ignore_ascii_case(b"connection: close"))
}

/// Returns the status and the start of the body once the answer is complete. An answer without a `Content-Length` is an error.
fn whole_answer(answer: &[u8]) -> io::Result<Option<(u16, usize)>> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "not an HTTP/1.1 answer with a length");
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if answer.len() > ANSWER_BYTES_MAX { Err(invalid()) } else { Ok(None) };
    };
    let head = answer.get(..end).and_then(|head| std::str::from_utf8(head).ok()).ok_or_else(invalid)?;
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok()).ok_or_else(invalid)?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let length = length.filter(|length| *length <= ANSWER_BYTES_MAX).ok_or_else(invalid)?;
    let start = end + 4;
    Ok((answer.len() >= start + length).then_some((status, start)))
}

/// Does the same for an answer from NATS, with a status as HTTP would have it.
fn whole_nats_answer(answer: &[u8]) -> io::Result<Option<(u16, usize)>> {
    let Some(lines) = answer.strip_suffix(b"\r\n") else { return Ok(None) };
    let mut lines = lines.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    Ok(lines.find_map(|line| match line {
        b"+OK" => Some((200, 0)),
        _ if line.starts_with(b"-ERR") => Some((400, 0)),
        _ => None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_when_its_whole_body_has_arrived() {
        let answer = b"HTTP/1.1 202 Accepted\r\ncontent-type: x\r\nContent-Length: 4\r\n\r\nbody";
        for end in 0..answer.len() {
            assert_eq!(whole_answer(&answer[..end]).unwrap(), None);
        }
        assert_eq!(whole_answer(answer).unwrap(), Some((202, answer.len() - 4)));
        assert!(whole_answer(b"HTTP/1.1 202 Accepted\r\n\r\n").is_err(), "no length");
        assert!(says_close(b"HTTP/1.1 200 OK\r\nConnection: close\r\n") && !says_close(answer));
        assert!(whole_answer(b"HTTP/1.0 x\r\n\r\n").is_err());
    }

    #[test]
    fn an_answer_from_nats_is_a_line() {
        for unfinished in ["", "INFO {}\r\n", "PING\r\n", "+OK"] {
            assert_eq!(whole_nats_answer(unfinished.as_bytes()).unwrap(), None, "{unfinished}");
        }
        assert_eq!(whole_nats_answer(b"INFO {\"a\":\"+OK\"}\r\n+OK\r\n").unwrap(), Some((200, 0)));
        assert_eq!(whole_nats_answer(b"+OK\r\nPING\r\n").unwrap(), Some((200, 0)));
        assert_eq!(whole_nats_answer(b"-ERR 'Invalid Subject'\r\n").unwrap(), Some((400, 0)));
    }

    #[test]
    fn a_batchs_receipts_are_added_up() {
        let answer = |body| Answer { status: 202, body };
        assert_eq!(answer(br#"[{"recipients":2,"posted":2},{"posted":40},{"status":400}]"#).posted(), 42);
        assert_eq!(answer(b"").posted(), 0);
    }
}
