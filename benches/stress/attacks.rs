//! Clients that mean no good, one kind at a time, beside neighbours. Each has a stated outcome.

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use signalpost::load::{client_frame, first_frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::neighbours::beside;
use crate::server::{Plugins, Server};

/// Short deadlines, so that the scenarios are short.
pub const SETTINGS: &str = "[http]\nheader_deadline_ms = 1000\n[sockets]\nwrite_deadline_ms = 1000\nclose_deadline_ms = 500\n\
                            [mailboxes]\nbytes_max = 262_144\n";

/// A server may take its deadline, and a busy machine some more.
const ENDED_MS_MAX: u64 = 3000;

/// What 200 connections may leave behind in an allocator.
const MEMORY_KIB: u64 = 8 << 10;

const SECONDS: u64 = 3;

const CROWD: u32 = 200;

/// What came back, and after how long the server ended the connection.
struct End {
    answer: Vec<u8>,
    after: Duration,
}

/// Reads to the end. A reset is an end too.
async fn end(mut tcp: TcpStream) -> anyhow::Result<End> {
    let began = Instant::now();
    let mut answer = Vec::new();
    let reading =
        timeout(Duration::from_millis(ENDED_MS_MAX), async { while !matches!(tcp.read_buf(&mut answer).await, Ok(0) | Err(_)) {} });
    reading.await.with_context(|| format!("a connection was still open after {ENDED_MS_MAX} ms"))?;
    Ok(End { answer, after: began.elapsed() })
}

async fn connections(server: &Server, count: u32, bytes: &[u8]) -> anyhow::Result<Vec<TcpStream>> {
    let mut connections = Vec::new();
    for number in 0..count {
        let mut tcp = server.target.connect(number).await?;
        if !bytes.is_empty() {
            tcp.write_all(bytes).await?;
        }
        connections.push(tcp);
    }
    Ok(connections)
}

/// All end; the latest after so many milliseconds.
async fn all_end(connections: Vec<TcpStream>) -> anyhow::Result<u128> {
    let ends = futures_util::future::try_join_all(connections.into_iter().map(end)).await?;
    Ok(ends.iter().map(|end| end.after.as_millis()).max().unwrap_or_default())
}

/// Connections without a request are closed after the header deadline.
pub async fn silent(seed: u64) -> anyhow::Result<String> {
    let server = Server::start(SETTINGS, Plugins::Bundled).await?;
    let attack = async {
        let latest = all_end(connections(&server, CROWD, b"").await?).await?;
        Ok(format!("{CROWD} connections closed within {latest} ms"))
    };
    let said = beside(&server, SECONDS, MEMORY_KIB, seed, attack).await?;
    server.stop().await?;
    Ok(said)
}

/// So are those that stop in the middle of a request's head.
pub async fn half_headers(seed: u64) -> anyhow::Result<String> {
    let server = Server::start(SETTINGS, Plugins::Bundled).await?;
    let attack = async {
        let half = b"GET /api/pool/ws/1 HTTP/1.1\r\nHost: x\r\nUpgrade: webso";
        let latest = all_end(connections(&server, CROWD, half).await?).await?;
        Ok(format!("{CROWD} connections closed within {latest} ms"))
    };
    let said = beside(&server, SECONDS, MEMORY_KIB, seed, attack).await?;
    server.stop().await?;
    Ok(said)
}

/// A byte now and then doesn't extend the deadline.
pub async fn dribble(seed: u64) -> anyhow::Result<String> {
    let server = Server::start(SETTINGS, Plugins::Bundled).await?;
    let one = async |mut tcp: TcpStream| {
        let began = Instant::now();
        for byte in b"GET /api/pool/ws/1 HTTP/1.1\r\nHost: x\r\n".iter().chain(std::iter::repeat(&b'x')) {
            ensure!(began.elapsed() < Duration::from_millis(ENDED_MS_MAX), "a dribbling connection stays open");
            let mut answer = [0; 64];
            // Bytes mean an answer, none the end: whichever it is, the server waits no more.
            let ended = tcp.write_all(&[*byte]).await.is_err()
                || timeout(Duration::from_millis(50), tcp.read(&mut answer)).await.is_ok_and(|read| !matches!(read, Ok(1..)));
            if ended {
                break;
            }
        }
        Ok(began.elapsed().as_millis())
    };
    let attack = async {
        let ended = futures_util::future::try_join_all(connections(&server, CROWD, b"").await?.into_iter().map(one)).await?;
        Ok(format!("{CROWD} connections closed within {} ms", ended.into_iter().max().unwrap_or_default()))
    };
    let said = beside(&server, SECONDS, MEMORY_KIB, seed, attack).await?;
    server.stop().await?;
    Ok(said)
}

/// A thousand headers, and one of 300 kB, are refused with 431.
pub async fn large_headers(seed: u64) -> anyhow::Result<String> {
    let server = Server::start(SETTINGS, Plugins::Bundled).await?;
    let attack = async {
        let many: String = (0..1000).map(|number| format!("X-{number}: 1\r\n")).collect();
        let large = format!("X: {}\r\n", "x".repeat(300_000));
        for headers in [many, large] {
            for _ in 0..20 {
                let mut tcp = server.target.connect(0).await?;
                let request = format!("GET /api/pool/ws/1 HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
                // The server need not read all of it.
                let _ = tcp.write_all(request.as_bytes()).await;
                let End { answer, .. } = end(tcp).await?;
                let refused = answer.is_empty() || answer.starts_with(b"HTTP/1.1 431 ");
                ensure!(refused, "{}", String::from_utf8_lossy(&answer).lines().next().unwrap_or_default());
            }
        }
        Ok("1,000 headers and 300 kB of one refused, 20 times each".to_owned())
    };
    let said = beside(&server, 2, MEMORY_KIB, seed, attack).await?;
    server.stop().await?;
    Ok(said)
}

/// A WebSocket by hand.
pub async fn socket(server: &Server, user: &str) -> anyhow::Result<TcpStream> {
    let mut tcp = server.target.connect(0).await?;
    let request = format!(
        "GET /api/pool/ws/{user} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    tcp.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        // Byte by byte, so that no frame is taken with the head.
        head.push(tcp.read_u8().await?);
    }
    ensure!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    Ok(tcp)
}

/// The code of the close frame that the server sends as its first frame.
async fn close_code(tcp: TcpStream) -> anyhow::Result<u16> {
    let End { answer, .. } = end(tcp).await?;
    let (opcode, payload, _) = first_frame(&answer).map_err(io::Error::other)?.context("no frame came back")?;
    ensure!(opcode == 8, "a frame of opcode {opcode} came back");
    Ok(u16::from_be_bytes(*payload.first_chunk().context("a close frame without a code")?))
}

/// A frame that declares 4 GiB is refused before its bytes arrive, and nothing is allocated for it.
pub async fn huge_frame(seed: u64) -> anyhow::Result<String> {
    let server = Server::start(SETTINGS, Plugins::Bundled).await?;
    let attack = async {
        for number in 0..100 {
            let mut tcp = socket(&server, &format!("huge-{number}")).await?;
            let header = [&[0x82, 0xFF][..], &(4_u64 << 30).to_be_bytes(), &[1, 2, 3, 4]].concat();
            tcp.write_all(&header).await?;
            let code = close_code(tcp).await?;
            ensure!(code == 1009, "closed with {code}");
        }
        Ok("100 closed with 1009".to_owned())
    };
    let said = beside(&server, 2, MEMORY_KIB, seed, attack).await?;
    server.stop().await?;
    Ok(said)
}

/// Fragments of one byte without an end are refused at the limit of a message, whatever their number.
pub async fn fragments(seed: u64) -> anyhow::Result<String> {
    let server = Server::start(SETTINGS, Plugins::Bundled).await?;
    let one = async |number: u32| {
        let mut tcp = socket(&server, &format!("fragments-{number}")).await?;
        let mut bytes = Vec::new();
        for index in 0..70_000_u32 {
            let start = bytes.len();
            client_frame(if index == 0 { 2 } else { 0 }, b"x", index, &mut bytes);
            // Not the last fragment.
            bytes[start] &= 0x7F;
        }
        for chunk in bytes.chunks(1400) {
            if tcp.write_all(chunk).await.is_err() {
                break;
            }
            sleep(Duration::from_micros(200)).await;
        }
        anyhow::Ok(close_code(tcp).await.ok())
    };
    let attack = async {
        let codes = futures_util::future::try_join_all((0..10).map(one)).await?;
        // Where bytes were still under way, the reset may overtake the close frame.
        ensure!(codes.iter().flatten().all(|code| *code == 1009), "closed with {codes:?}");
        Ok(format!("10 closed, {} of them seen with 1009", codes.iter().flatten().count()))
    };
    let said = beside(&server, SECONDS, MEMORY_KIB, seed, attack).await?;
    server.stop().await?;
    Ok(said)
}
