use clap::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    arguments: Arguments,
}

fn arguments(words: &[&str]) -> Arguments {
    Line::parse_from(["send"].iter().chain(words)).arguments
}

/// A server that answers once and hands back what it was asked.
async fn answering(answer: &'static str) -> (Address, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let authority = listener.local_addr().unwrap().to_string();
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = vec![0; 4096];
        let mut length = 0;
        while !asked[..length].ends_with(b"}") {
            length += stream.read(&mut asked[length..]).await.unwrap();
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(asked[..length].to_vec()).unwrap()
    });
    (Address { authority, base_path: "/api/pool".into() }, asked)
}

#[test]
fn an_event_is_published_in_the_short_form_with_its_numbers_untouched() {
    let (path, body) = arguments(&["a.b", " {\"n\": 1.10, \"m\": 123456789012345678901234567890} ", "--id", "7"]).request().unwrap();
    assert_eq!(path, "/events");
    assert_eq!(body, r#"{"type":"a.b","id":"7","data":{"n": 1.10, "m": 123456789012345678901234567890}}"#);
}

#[test]
fn a_message_goes_to_one_user_whose_id_is_percent_encoded() {
    let (path, body) = arguments(&["--user", "a/b ü", r#""hi""#]).request().unwrap();
    assert_eq!((path.as_str(), body.as_str()), ("/users/a%2Fb%20%C3%BC/messages", r#""hi""#));
    assert_eq!(arguments(&["--user", "1", "-5"]).request().unwrap().1, "-5");
}

#[test]
fn data_comes_from_a_file_too() {
    let file = std::env::temp_dir().join(format!("signalpost-{}.json", uuid::Uuid::new_v4()));
    std::fs::write(&file, "{\"a\": 1}\n").unwrap();
    let (_, body) = arguments(&["t", "--file", file.to_str().unwrap()]).request().unwrap();
    std::fs::remove_file(&file).unwrap();
    assert_eq!(body, r#"{"type":"t","data":{"a": 1}}"#);
}

#[test]
fn missing_or_surplus_words_are_wrong_usage() {
    for words in [&["t"][..], &[], &["--user", "1", "t", "{}"], &["t", "{}", "--file", "f"]] {
        let error = arguments(words).request().unwrap_err();
        assert_eq!(error.downcast::<clap::Error>().unwrap().exit_code(), 2, "{words:?}");
    }
}

#[test]
fn data_that_is_not_json_is_explained() {
    let error = arguments(&["t", "hello"]).request().unwrap_err();
    assert!(format!("{error:#}").starts_with("the data isn't JSON (a text needs its quotes, as in '\"hello\"'): expected value"));
}

#[tokio::test]
async fn the_receipt_is_the_answer() {
    let (address, asked) = answering("HTTP/1.1 202 Accepted\r\ncontent-length: 13\r\n\r\n{\"posted\": 2}").await;
    assert_eq!(post(&address, "/events", r#"{"type":"t"}"#.into()).await.unwrap(), r#"{"posted": 2}"#);
    let asked = asked.await.unwrap();
    assert!(asked.starts_with("POST /api/pool/events HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains(&format!("host: {}\r\n", address.authority)), "{asked}");
    assert!(asked.ends_with("\r\n\r\n{\"type\":\"t\"}"), "{asked}");
}

#[tokio::test]
async fn a_problem_is_an_error_in_its_own_words() {
    let (address, _asked) = answering(
        "HTTP/1.1 413 Content Too Large\r\ncontent-type: application/problem+json\r\nconnection: close\r\n\r\n\
         {\"title\":\"Too large\",\"detail\":\"at most 4 MiB\",\"code\":\"body-too-large\"}",
    )
    .await;
    let error = post(&address, "/events", "{}".into()).await.unwrap_err();
    assert_eq!(error.to_string(), "Too large: at most 4 MiB (body-too-large, status 413)");
}

#[tokio::test]
async fn no_server_is_told_how_to_get_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address { authority: listener.local_addr().unwrap().to_string(), base_path: String::new() };
    drop(listener);
    let error = post(&address, "/events", "{}".into()).await.unwrap_err();
    assert_eq!(error.to_string(), format!("no server at {}: start one with `signalpost serve`", address.authority));
}
