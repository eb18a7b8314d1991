//! Reads frames: decides what is printed and what is answered. No sockets here.
//!
//! Messages go to the output, and everything about the connection to the notes, so that `--json` can be piped.

use std::io::{self, Write};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::cli::terminal::{compact, highlight, plain, shown, word};
use crate::types::json::Json;

pub(super) struct Screen {
    pub output: Box<dyn Write + Send>,
    pub notes: Box<dyn Write + Send>,
    pub color: bool,
    pub json: bool,
}

/// Reads one user's frames, over as many connections as it takes.
pub(super) struct Reader {
    pub screen: Screen,
    /// Whether frames are `signalpost.v1` envelopes.
    pub v1: bool,
    pub acks: bool,
    /// The number of messages still wanted; `None` means all.
    pub wanted: Option<u64>,
    /// The position of a v1 client in its mailbox.
    position: Option<Position>,
    /// Its position if the server can't resume from `position`.
    fresh: Option<Position>,
    /// The id of the last message that was typed.
    typed: u64,
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
struct Position {
    epoch: Option<String>,
    #[serde(default)]
    seq: u64,
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(rename = "type")]
    kind: String,
    id: Option<String>,
    seq: Option<u64>,
    data: Option<Box<RawValue>>,
    data_base64: Option<String>,
}

impl Envelope {
    /// Returns the data, with its digits as they were sent.
    fn json(&self) -> Json {
        let data = self.data.as_ref().map_or("null", |data| data.get());
        match &self.data_base64 {
            Some(data) => base64(data),
            None => Json::parse(data).unwrap_or_else(|_| Json::string(data)),
        }
    }

    fn value(&self) -> Value {
        self.data.as_ref().and_then(|data| serde_json::from_str(data.get()).ok()).unwrap_or_default()
    }
}

fn base64(data: &str) -> Json {
    Json::object([("data_base64", Some(Json::string(data)))])
}

impl Reader {
    pub fn new(screen: Screen, v1: bool, acks: bool, wanted: Option<u64>) -> Reader {
        Reader { screen, v1, acks, wanted, position: None, fresh: None, typed: 0 }
    }

    pub fn is_done(&self) -> bool {
        self.wanted == Some(0)
    }

    pub fn note(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.screen.notes, "{}", plain(text))
    }

    /// Returns the frame to answer, if any.
    pub fn text(&mut self, text: &str) -> io::Result<Option<String>> {
        if !self.v1 {
            let message = Json::parse(text).unwrap_or_else(|_| Json::string(text));
            return self.message(None, text, &message).map(|()| None);
        }
        let Ok(envelope) = serde_json::from_str::<Envelope>(text) else {
            self.note(&format!("not an envelope: {text}"))?;
            return Ok(None);
        };
        match envelope.kind.as_str() {
            "hello" => self.hello(envelope.value()),
            "resume" => self.resumed(&envelope.value()).map(|()| None),
            "message" => self.enveloped(text, &envelope),
            "taken" => self.note(&format!("message {} is taken", envelope.id.unwrap_or_default())).map(|()| None),
            "error" => {
                let what = envelope.id.as_ref().map(|id| format!(" message {id}")).unwrap_or_default();
                self.note(&format!("the server refused{what}: {}", compact(&envelope.json(), ""))).map(|()| None)
            }
            other => self.note(&format!("{other}: {}", compact(&envelope.json(), ""))).map(|()| None),
        }
    }

    pub fn binary(&mut self, bytes: &[u8]) -> io::Result<()> {
        let line = base64(&BASE64_STANDARD.encode(bytes));
        self.message(None, &line.to_string(), &line)
    }

    /// Returns the frame for a line from the keyboard. With `signalpost.v1` it has an id, by which the notes say what became of it.
    pub fn typed(&mut self, line: String) -> String {
        match serde_json::from_str::<&serde_json::value::RawValue>(line.trim()) {
            // The data's text is taken over as it is, so that no number loses digits.
            Ok(data) if self.v1 => {
                self.typed += 1;
                format!(r#"{{"type":"message","id":"{}","want":"taken","data":{data}}}"#, self.typed)
            }
            _ => line,
        }
    }

    fn hello(&mut self, data: Value) -> io::Result<Option<String>> {
        let name = |member: &str| data.get(member).map(word).unwrap_or_default();
        self.note(&format!("connected as {}, session {}", name("user"), name("session")))?;
        let here: Option<Position> = serde_json::from_value(data).ok();
        let Some(Position { epoch, seq }) = &self.position else {
            self.position = here;
            return Ok(None);
        };
        let resume = json!({"type": "resume", "seq": seq, "epoch": epoch});
        self.fresh = here;
        Ok(Some(resume.to_string()))
    }

    fn resumed(&mut self, data: &Value) -> io::Result<()> {
        let from = data.get("from").map(word).unwrap_or_default();
        if data.get("recovered") == Some(&Value::Bool(true)) {
            return self.note(&format!("recovered, from {from}"));
        }
        // A seq of another epoch would mean nothing at the next resume.
        self.position = self.fresh.take();
        self.note(&format!("not recovered: messages may have been missed; from {from}"))
    }

    fn enveloped(&mut self, text: &str, envelope: &Envelope) -> io::Result<Option<String>> {
        self.message(envelope.seq, text, &envelope.json())?;
        let Some(seq) = envelope.seq else { return Ok(None) };
        if let Some(position) = &mut self.position {
            position.seq = seq;
        }
        Ok(self.acks.then(|| json!({"type": "ack", "seq": seq}).to_string()))
    }

    fn message(&mut self, seq: Option<u64>, text: &str, message: &Json) -> io::Result<()> {
        if let Some(wanted) = &mut self.wanted {
            *wanted = wanted.saturating_sub(1);
        }
        let Screen { output, color, json, .. } = &mut self.screen;
        if *json {
            // A line break in JSON is only space; as it is, it would end the line.
            writeln!(output, "{}", text.replace(['\n', '\r'], " "))?;
        } else {
            writeln!(output, "{}", line(seq, message, *color))?;
        }
        output.flush()
    }
}

fn line(seq: Option<u64>, message: &Json, color: bool) -> String {
    let time = jiff::Timestamp::now().strftime("%H:%M:%SZ").to_string();
    let seq = seq.map(|seq| format!("#{seq}"));
    let kind = message.get("type").map(|kind| highlight(&shown(kind), color));
    let body = Some(compact(message, "type")).filter(|body| !body.is_empty());
    [Some(time), seq, kind, body].into_iter().flatten().collect::<Vec<_>>().join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(v1: bool) -> Reader {
        let screen = Screen { output: Box::new(io::sink()), notes: Box::new(io::sink()), color: false, json: false };
        Reader::new(screen, v1, true, Some(2))
    }

    const HELLO: &str = r#"{"type":"hello","data":{"session":"s1","user":"1001","epoch":"e1","seq":4,"limits":{}}}"#;

    #[test]
    fn a_first_hello_needs_no_resume_and_a_later_one_resumes_from_the_last_message() {
        let mut reader = reader(true);
        assert_eq!(reader.text(HELLO).unwrap(), None);
        let ack = reader.text(r#"{"seq":5,"type":"message","data":{"type":"x"}}"#).unwrap();
        assert_eq!(ack.as_deref(), Some(r#"{"type":"ack","seq":5}"#));
        let resume = reader.text(&HELLO.replace("e1", "e2").replace('4', "0")).unwrap();
        assert_eq!(resume.as_deref(), Some(r#"{"type":"resume","seq":5,"epoch":"e1"}"#));
    }

    #[test]
    fn what_was_not_recovered_is_not_resumed_from_again() {
        let mut reader = reader(true);
        reader.text(HELLO).unwrap();
        reader.text(&HELLO.replace("e1", "e2").replace('4', "0")).unwrap();
        reader.text(r#"{"type":"resume","data":{"recovered":false,"from":1}}"#).unwrap();
        let resume = reader.text(&HELLO.replace("e1", "e3")).unwrap();
        assert_eq!(resume.as_deref(), Some(r#"{"type":"resume","seq":0,"epoch":"e2"}"#));
    }

    #[test]
    fn only_messages_are_counted() {
        let mut reader = reader(true);
        for frame in [HELLO, r#"{"type":"error","data":{"code":"c","detail":"d"}}"#, r#"{"type":"new"}"#, "garbage"] {
            reader.text(frame).unwrap();
        }
        assert_eq!(reader.wanted, Some(2));
        reader.text(r#"{"seq":5,"type":"message","data":1}"#).unwrap();
        reader.text(r#"{"seq":6,"type":"message","data_base64":"AA=="}"#).unwrap();
        assert!(reader.is_done());
    }

    #[test]
    fn what_is_typed_is_a_message() {
        let typed = |v1: bool, line: &str| reader(v1).typed(line.to_owned());
        assert_eq!(typed(true, r#"{"n": 1.10}"#), r#"{"type":"message","id":"1","want":"taken","data":{"n": 1.10}}"#);
        assert_eq!(typed(true, "hello"), "hello");
        assert_eq!(typed(false, r#"{"n": 1.10}"#), r#"{"n": 1.10}"#);
    }

    #[test]
    fn a_message_is_shown_with_its_type_first() {
        let message = Json::parse(r#"{"details":"hi","type":"pooling_match"}"#).unwrap();
        let shown = line(Some(7), &message, true);
        let (_, rest) = shown.split_once("Z  ").unwrap();
        assert_eq!(rest, "#7  \x1b[1;36mpooling_match\x1b[0m  details: hi");
        assert!(line(None, &Json::string("text"), true).ends_with("Z  text"));
    }
}
