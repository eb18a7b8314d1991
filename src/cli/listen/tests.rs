use std::io::Write;
use std::sync::Arc;

use clap::Parser;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::handshake::server::{Request as Asked, Response};

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    arguments: Arguments,
}

#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        std::io::Write::write(&mut *self.0.lock(), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Paper {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }
}

/// A server for as many connections as a test needs, and a listener that talks to it.
struct Bench {
    server: TcpListener,
    output: Paper,
    notes: Paper,
    lines: mpsc::Sender<String>,
    listening: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Bench {
    async fn new(words: &[&str]) -> Bench {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/api/pool", server.local_addr().unwrap());
        let words = ["listen", "--url", &url].into_iter().chain(words.iter().copied());
        let arguments = Line::parse_from(words).arguments;
        let (output, notes) = (Paper::default(), Paper::default());
        let screen = Screen { output: Box::new(output.clone()), notes: Box::new(notes.clone()), color: false, json: arguments.json };
        let (lines, typed) = mpsc::channel(LINES_MAX);
        let listening = tokio::spawn(async move { listen(&arguments, screen, typed, std::future::pending()).await });
        Bench { server, output, notes, lines, listening }
    }

    /// Accepts a connection. Returns its socket and the path that was asked for.
    async fn accept(&self) -> (Socket, String) {
        let (stream, _) = self.server.accept().await.unwrap();
        let mut path = String::new();
        #[allow(clippy::result_large_err, reason = "tungstenite's signature")]
        let answer = |asked: &Asked, mut response: Response| {
            path = asked.uri().to_string();
            if let Some(protocol) = asked.headers().get(SEC_WEBSOCKET_PROTOCOL) {
                response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, protocol.clone());
            }
            Ok(response)
        };
        let socket = accept_hdr_async(Wire::new(stream, None), answer).await.unwrap();
        (socket, path)
    }
}

async fn end(mut socket: Socket, code: u16, reason: &'static str) {
    socket.close(Some(CloseFrame { code: code.into(), reason: reason.into() })).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
}

async fn received(socket: &mut Socket) -> String {
    socket.next().await.unwrap().unwrap().into_text().unwrap().to_string()
}

#[tokio::test]
async fn a_plain_listener_prints_what_it_is_sent_and_ends_after_its_count() {
    let bench = Bench::new(&["a b/ü", "--attribute", "locale=de", "--attribute", "x=&", "--count", "2"]).await;
    let (mut socket, path) = bench.accept().await;
    assert_eq!(path, "/api/pool/ws/a%20b%2F%C3%BC?locale=de&x=%26");
    socket.send(Message::text(r#"{"type":"pooling_match","request_id":9007199254740993,"share":12.50}"#)).await.unwrap();
    socket.send(Message::binary(vec![0_u8])).await.unwrap();
    let Some(Ok(Message::Close(Some(frame)))) = socket.next().await else { panic!("no close") };
    assert_eq!(u16::from(frame.code), 1000);
    drop(socket);
    bench.listening.await.unwrap().unwrap();
    let lines: Vec<_> = bench.output.text().lines().map(|line| line.split_once("Z  ").unwrap().1.to_owned()).collect();
    assert_eq!(lines, ["pooling_match  request_id: 9007199254740993  share: 12.50", "data_base64: AA=="]);
    assert_eq!(bench.notes.text(), "connected\n");
}

#[tokio::test]
async fn a_v1_listener_reconnects_and_resumes_where_it_was() {
    let bench = Bench::new(&["1001", "--v1", "--ack", "--json", "--count", "2"]).await;
    let hello = r#"{"type":"hello","data":{"session":"s","user":"1001","epoch":"e1","seq":4}}"#;
    let message = |seq: u64| format!(r#"{{"seq":{seq},"type":"message","data":{{"type":"x"}}}}"#);

    let (mut socket, _) = bench.accept().await;
    socket.send(Message::text(hello)).await.unwrap();
    socket.send(Message::text(message(5))).await.unwrap();
    assert_eq!(received(&mut socket).await, r#"{"type":"ack","seq":5}"#);
    end(socket, 1012, "server restarts, reconnect").await;

    let (mut socket, _) = bench.accept().await;
    socket.send(Message::text(hello)).await.unwrap();
    assert_eq!(received(&mut socket).await, r#"{"type":"resume","seq":5,"epoch":"e1"}"#);
    socket.send(Message::text(r#"{"type":"resume","data":{"recovered":true,"from":6}}"#)).await.unwrap();
    socket.send(Message::text(message(6))).await.unwrap();
    assert_eq!(received(&mut socket).await, r#"{"type":"ack","seq":6}"#);
    drop(socket);

    bench.listening.await.unwrap().unwrap();
    assert_eq!(bench.output.text(), format!("{}\n{}\n", message(5), message(6)));
    let notes = bench.notes.text();
    assert!(notes.contains("the server closed with 1012: server restarts, reconnect; connecting again in 0."), "{notes}");
    assert!(notes.ends_with("connected as 1001, session s\nrecovered, from 6\n"), "{notes}");
}

#[tokio::test]
async fn a_close_code_that_says_stop_ends_it_with_the_reason() {
    let bench = Bench::new(&["1001"]).await;
    let (socket, _) = bench.accept().await;
    end(socket, 4200, "ended by the operator").await;
    let error = bench.listening.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "the server closed with 4200: ended by the operator");
}

#[tokio::test]
async fn a_lost_network_is_tried_again() {
    let bench = Bench::new(&["1001", "--count", "1"]).await;
    drop(bench.accept().await);
    let (mut socket, _) = bench.accept().await;
    socket.send(Message::text("\"hi\"")).await.unwrap();
    let _ = socket.next().await;
    drop(socket);
    bench.listening.await.unwrap().unwrap();
    assert!(bench.output.text().ends_with("Z  hi\n"));
}

#[tokio::test]
async fn what_is_typed_is_sent_and_the_end_of_typing_ends_nothing() {
    let bench = Bench::new(&["1001", "--v1", "--count", "1"]).await;
    let (mut socket, _) = bench.accept().await;
    bench.lines.send(r#"{"text":"hi"}"#.to_owned()).await.unwrap();
    bench.lines.send("2".to_owned()).await.unwrap();
    drop(bench.lines);
    assert_eq!(received(&mut socket).await, r#"{"type":"message","id":"1","want":"taken","data":{"text":"hi"}}"#);
    assert_eq!(received(&mut socket).await, r#"{"type":"message","id":"2","want":"taken","data":2}"#);
    for answer in [r#"{"type":"taken","id":"1"}"#, r#"{"type":"error","id":"2","data":{"code":"unhandled","detail":"no policy"}}"#] {
        socket.send(Message::text(answer)).await.unwrap();
    }
    socket.send(Message::text(r#"{"seq":1,"type":"message","data":1}"#)).await.unwrap();
    let _ = socket.next().await;
    drop(socket);
    bench.listening.await.unwrap().unwrap();
    let notes = bench.notes.text();
    assert!(notes.contains("message 1 is taken\n") && notes.contains("the server refused message 2: code: unhandled"), "{notes}");
}

#[tokio::test]
async fn a_refused_handshake_is_told_in_the_servers_words() {
    let bench = Bench::new(&["1001", "--v1"]).await;
    let (mut stream, _) = bench.server.accept().await.unwrap();
    let answer = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n{\"title\":\"Bad user id\",\"code\":\"user.id\"}";
    let _ = stream.read(&mut [0; 4096]).await.unwrap();
    stream.write_all(answer.as_bytes()).await.unwrap();
    drop(stream);
    let error = bench.listening.await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "Bad user id (user.id, status 400)");
}
