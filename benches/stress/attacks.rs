//! Clients that mean no good, one kind at a time, beside neighbours. Each has a stated outcome.

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use signalpost_load::{client_frame, first_frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::neighbours::beside;
use crate::server::{Plugins, Server};

/// Short deadlines, so that the scenarios are short.
pub const SETTINGS: &str = "[http]\nheader_deadline_ms = 1000\n[sockets]\nwrite_deadline_ms = 1000\nclose_deadline_ms = 500\n\
                            [mailboxes]\nbytes_max = 262_144\n";

/// A server may take its deadline, and a busy machine some more.
const ENDED_MS_MAX: u64 = 5000;

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

pub async fn connections(server: &Server, count: u32, bytes: &[u8]) -> anyhow::Result<Vec<TcpStream>> {
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

/// Waits until all have ended. Returns after how many milliseconds the last one did.
pub async fn all_end(connections: Vec<TcpStream>) -> anyhow::Result<u128> {
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

/// Sockets that carry no message are closed with a code of their own, and connections without a next request after the header deadline.
pub async fn idle(seed: u64) -> anyhow::Result<String> {
    // Of the neighbours, each reads five messages a second: none is idle for so long.
    let settings = SETTINGS.replace("[sockets]\n", "[sockets]\nidle_deadline_ms = 2500\n");
    let server = Server::start(&settings, Plugins::Bundled).await?;
    let attack = async {
        let mut sockets = Vec::new();
        for number in 0..CROWD {
            sockets.push(socket(&server, &format!("idle-{number}")).await?);
        }
        let asked = connections(&server, CROWD, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await?;
        let (codes, ends) = tokio::join!(
            futures_util::future::try_join_all(sockets.into_iter().map(close_code)),
            futures_util::future::try_join_all(asked.into_iter().map(end))
        );
        ensure!(codes?.iter().all(|code| *code == 4201), "a socket was closed with another code than 4201");
        ensure!(ends?.iter().all(|end| end.answer.starts_with(b"HTTP/1.1 200 ")), "a request was not answered");
        Ok(format!("{CROWD} sockets closed with 4201, {CROWD} connections ended after their answer"))
    };
    let said = beside(&server, SECONDS + 2, MEMORY_KIB, seed, attack).await?;
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
    let attack = async { Ok(format!("{CROWD} connections closed within {} ms", dribbled(&server).await?)) };
    let said = beside(&server, SECONDS, MEMORY_KIB, seed, attack).await?;
    server.stop().await?;
    Ok(said)
}

/// Dribbles until all connections have ended. Returns after how many milliseconds the last one did.
pub async fn dribbled(server: &Server) -> anyhow::Result<u128> {
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
        anyhow::Ok(began.elapsed().as_millis())
    };
    let ended = futures_util::future::try_join_all(connections(server, CROWD, b"").await?.into_iter().map(one)).await?;
    Ok(ended.into_iter().max().unwrap_or_default())
}

/// A thousand headers, and one of 300 kB, are refused with 431.
pub async fn large_headers(seed: u64) -> anyhow::Result<String> {
    let server = Server::start(SETTINGS, Plugins::Bundled).await?;
    let attack = async {
        let seen = headers_refused(&server, 20).await?;
        Ok(format!("1,000 headers and 300 kB of one refused, 20 times each, {seen} of them seen with 431"))
    };
    let said = beside(&server, 2, MEMORY_KIB, seed, attack).await?;
    server.stop().await?;
    Ok(said)
}

/// Sends both kinds of large headers that many times. Returns how many were seen refused.
pub async fn headers_refused(server: &Server, times: u32) -> anyhow::Result<usize> {
    let many: String = (0..1000).map(|number| format!("X-{number}: 1\r\n")).collect();
    let large = format!("X: {}\r\n", "x".repeat(300_000));
    let mut seen = 0;
    for headers in [many, large] {
        for _ in 0..times {
            let mut tcp = server.target.connect(0).await?;
            let request = format!("GET /api/pool/ws/1 HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
            // The server need not read all of it.
            let _ = tcp.write_all(request.as_bytes()).await;
            let End { answer, .. } = end(tcp).await?;
            let line = String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned();
            // Where bytes were still under way, the reset may overtake the answer; 1,000 short headers are read before it.
            ensure!(line == "HTTP/1.1 431 Request Header Fields Too Large" || (line.is_empty() && headers.len() > 100_000), "{line:?}");
            seen += usize::from(!line.is_empty());
        }
    }
    Ok(seen)
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
        huge_frames(&server, 100).await?;
        Ok("100 closed with 1009".to_owned())
    };
    let said = beside(&server, 2, MEMORY_KIB, seed, attack).await?;
    server.stop().await?;
    Ok(said)
}

/// Declares that many huge frames, each on a socket of its own.
pub async fn huge_frames(server: &Server, count: u32) -> anyhow::Result<()> {
    for number in 0..count {
        let mut tcp = socket(server, &format!("huge-{number}")).await?;
        let header = [&[0x82, 0xFF][..], &(4_u64 << 30).to_be_bytes(), &[1, 2, 3, 4]].concat();
        tcp.write_all(&header).await?;
        let code = close_code(tcp).await?;
        ensure!(code == 1009, "closed with {code}");
    }
    Ok(())
}

/// Fragments of one byte without an end are refused at the limit of a message, whatever their number.
pub async fn fragments(seed: u64) -> anyhow::Result<String> {
    let server = Server::start(SETTINGS, Plugins::Bundled).await?;
    let attack = async { Ok(format!("10 closed, {} of them seen with 1009", fragmented(&server, 10).await?)) };
    let said = beside(&server, SECONDS, MEMORY_KIB, seed, attack).await?;
    server.stop().await?;
    Ok(said)
}

/// Sends that many endless messages. Returns how many were seen closed.
pub async fn fragmented(server: &Server, count: u32) -> anyhow::Result<usize> {
    let one = async |number: u32| {
        let mut tcp = socket(server, &format!("fragments-{number}")).await?;
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
    let codes = futures_util::future::try_join_all((0..count).map(one)).await?;
    // Where bytes were still under way, the reset may overtake the close frame.
    ensure!(codes.iter().flatten().all(|code| *code == 1009), "closed with {codes:?}");
    Ok(codes.iter().flatten().count())
}

/// Large bodies that stop half-way: as many as there is room for wait for their deadline, the others are told to come back.
pub async fn bodies(seed: u64) -> anyhow::Result<String> {
    const ROOM: usize = 16 << 20;
    const SENT: usize = 900_000;
    static BLANKS: [u8; SENT] = [b' '; SENT];
    let room = SETTINGS.replace("[http]\n", &format!("[http]\nbody_deadline_ms = 1500\nbodies_bytes_max = {ROOM}\n"));
    let server = Server::start(&room, Plugins::Bundled).await?;
    let one = async |mut tcp: TcpStream| {
        let head = "POST /api/pool/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4000000\r\n\r\n";
        tcp.write_all(head.as_bytes()).await?;
        let (mut reading, mut writing) = tcp.into_split();
        let sending = async {
            for chunk in BLANKS.chunks(50_000) {
                if writing.write_all(chunk).await.is_err() {
                    break;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        let mut answer = Vec::new();
        let receiving = timeout(Duration::from_millis(2 * ENDED_MS_MAX), async {
            while !matches!(reading.read_buf(&mut answer).await, Ok(0) | Err(_)) {}
        });
        let (_, received) = tokio::join!(sending, receiving);
        received.context("a body that stops half-way keeps its connection")?;
        anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let attack = async {
        // The neighbours are connected by then.
        sleep(Duration::from_millis(500)).await;
        let before = server.usage().resident_kib;
        let attackers = connections(&server, CROWD, b"").await?;
        let waiting = futures_util::future::try_join_all(attackers.into_iter().map(one));
        let over = std::cell::Cell::new(false);
        let watching = async {
            let mut most = before;
            while !over.get() {
                most = most.max(server.usage().resident_kib);
                sleep(Duration::from_millis(20)).await;
            }
            most
        };
        let attacking = async {
            let answers = waiting.await;
            over.set(true);
            answers
        };
        let (answers, most) = tokio::join!(attacking, watching);
        let answers = answers?;
        let told = |status: &str, code: &str| answers.iter().filter(|answer| answer.starts_with(status) && answer.contains(code)).count();
        let (refused, late) = (told("HTTP/1.1 503 ", "too_many_bodies"), told("HTTP/1.1 408 ", "body_deadline"));
        // Where bytes were still under way, the reset may overtake the answer.
        let unseen = answers.iter().filter(|answer| answer.is_empty()).count();
        ensure!(refused + late + unseen == CROWD as usize, "another answer than 503 and 408: {answers:?}");
        ensure!(late <= ROOM / SENT + 1 && refused > 0, "{late} found room, {refused} were refused");
        let rose = most.saturating_sub(before);
        // Buffers grow by doubling, each connection has its own, and an allocator keeps freed pages for a moment.
        let sent = (u64::from(CROWD) * SENT as u64) >> 10;
        ensure!(rose < sent / 2, "memory rose by {rose} KiB while {sent} KiB were sent, and there is room for {}", ROOM >> 10);
        Ok(format!("{refused} of {CROWD} told 503, {late} told 408, {unseen} cut off; memory rose by {rose} KiB at most"))
    };
    let said = beside(&server, 4, 2 * MEMORY_KIB, seed, attack).await?;
    server.stop().await?;
    Ok(said)
}

/// More handshakes than are taken in a second: the others are told to come back, and when.
pub async fn handshakes(seed: u64) -> anyhow::Result<String> {
    const PER_SECOND: u32 = 400;
    const FLOOD: Duration = Duration::from_secs(2);
    let settings = SETTINGS.replace("[sockets]\n", &format!("[sockets]\nhandshakes_per_second_max = {PER_SECOND}\n"));
    let server = Server::start(&settings, Plugins::Bundled).await?;
    let attack = async {
        // The neighbours are connected by then.
        sleep(Duration::from_millis(1000)).await;
        let began = Instant::now();
        let one = async |number: u32| {
            let (mut taken, mut refused) = (0_u32, 0_u32);
            while began.elapsed() < FLOOD {
                let mut tcp = server.target.connect(number).await?;
                let request = format!(
                    "GET /api/pool/ws/crowd-{number} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                );
                tcp.write_all(request.as_bytes()).await?;
                let mut answer = Vec::new();
                while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
                    ensure!(tcp.read_buf(&mut answer).await? > 0, "no answer to a handshake");
                }
                let head = String::from_utf8_lossy(&answer).to_lowercase();
                match head.get(9..12) {
                    Some("101") => taken += 1,
                    Some("503") if head.contains("\r\nretry-after: ") => refused += 1,
                    _ => anyhow::bail!("{head}"),
                }
            }
            anyhow::Ok((taken, refused))
        };
        let counts = futures_util::future::try_join_all((0..32).map(one)).await?;
        let (taken, refused) = counts.into_iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let most = PER_SECOND + (f64::from(PER_SECOND) * began.elapsed().as_secs_f64()) as u32 + 1;
        ensure!(taken <= most, "{taken} handshakes were taken, {most} at most should be");
        ensure!(refused > 0, "none was refused");
        Ok(format!("{taken} handshakes taken, {refused} told 503 and when to come back"))
    };
    let said = beside(&server, 4, 2 * MEMORY_KIB, seed, attack).await?;
    server.stop().await?;
    Ok(said)
}
