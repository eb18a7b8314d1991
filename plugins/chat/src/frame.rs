//! A client's chat frame, and the event that it becomes.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use signalpost_plugin::{Body, Id, Object, RawValue, Refusal, serde_json};

/// The members that are looked at. Others are skipped: what a client adds costs next to nothing.
#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    pool_id: Option<&'a RawValue>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
}

/// What a member wrote. Other members of the frame are not passed on.
#[derive(Debug)]
pub struct Chat {
    pool: Id,
    group: String,
    text: String,
}

impl Chat {
    /// Reads a chat frame; `None` for any other frame, which is left to other policies.
    pub fn parse(message: &Body, text_chars_max: usize) -> Result<Option<Chat>, Refusal> {
        let Some(frame) = message.data::<Frame>().filter(|frame| frame.kind == "chat") else { return Ok(None) };
        let Some(pool) = frame.pool_id.and_then(Id::read) else {
            return Err(Refusal::new("invalid_chat", format!("`pool_id` should be {}", Id::EXPECTED)));
        };
        let group = pool.prefixed("pool:", "pool_id").map_err(|refusal| Refusal::new("invalid_chat", refusal.detail))?;
        let Some(text) = frame.text.and_then(|text| serde_json::from_str::<String>(text.get()).ok()) else {
            return Err(Refusal::new("invalid_chat", "`text` should be a string"));
        };
        let chars = text.chars().count();
        if chars == 0 || chars > text_chars_max {
            return Err(Refusal::new("text_length", format!("`text` has {chars} characters: it should have 1 to {text_chars_max}")));
        }
        Ok(Some(Chat { pool, group, text }))
    }

    /// As the routing policy named it when the pool's members joined.
    pub fn group(&self) -> &str {
        &self.group
    }

    pub fn not_a_member(&self) -> Refusal {
        Refusal::new("not_a_member", format!("you are not in pool {}: only its members can write there", self.pool))
    }

    /// Returns the message that the author's other devices get: the one that the routing policy makes of the event for the others.
    pub fn message(&self, user: &str) -> Body {
        let author = UserId::of(user);
        Object::new("chat_message").value("pool_id", &self.pool).value("from", &author).text("text", &self.text).into()
    }

    /// Returns the data of `pooling.chat.message`, with the pool's id as the client wrote it, number or string.
    pub fn into_data(self, user: &str) -> Body {
        #[derive(Serialize)]
        struct Data<'a> {
            pool_id: Id,
            from: UserId<'a>,
            text: String,
        }

        Body::json(&Data { pool_id: self.pool, from: UserId::of(user), text: self.text })
    }
}

/// Producers write the ids that are numbers as numbers, and a socket's address has only strings. A client that compares `from` with
/// a `rider_id` should find the same form, so that user "1001" is the number 1001 here.
#[derive(Serialize)]
#[serde(untagged)]
enum UserId<'a> {
    Number(i64),
    Text(&'a str),
}

impl UserId<'_> {
    /// Beyond this, JavaScript and others round a number to another user's: 2^53 - 1, the safe integers of I-JSON (RFC 7493).
    const SAFE_MAX: u64 = (1 << 53) - 1;

    fn of(user: &str) -> UserId<'_> {
        match user.parse::<i64>() {
            // "007" and "+7" are other users than 7.
            Ok(number) if number.unsigned_abs() <= UserId::SAFE_MAX && number.to_string() == user => UserId::Number(number),
            _ => UserId::Text(user),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Option<Chat>, Refusal> {
        Chat::parse(&Body::Json(json.to_string()), 2000)
    }

    fn data(json: &str, user: &str) -> String {
        let chat = parse(json).unwrap().unwrap();
        let (message, data) = (chat.message(user), chat.into_data(user));
        let data = data.as_json().unwrap().to_string();
        // What `pooling` makes of the event: its data, after the type.
        assert_eq!(message.as_json().unwrap(), format!(r#"{{"type":"chat_message",{}"#, &data[1..]));
        data
    }

    #[test]
    fn the_author_is_the_sessions_user_whatever_the_client_says() {
        let frame = r#"{"type":"chat","pool_id":7,"from":"mallory","text":"Am Tor \"3\" 🚗","user":1}"#;
        assert_eq!(data(frame, "alice"), r#"{"pool_id":7,"from":"alice","text":"Am Tor \"3\" 🚗"}"#);
    }

    #[test]
    fn a_user_who_is_a_number_is_written_as_one() {
        let frame = r#"{"type":"chat","pool_id":"7","text":"hi"}"#;
        for (user, from) in [
            ("1001", "1001"),
            ("0", "0"),
            ("-5", "-5"),
            ("9007199254740991", "9007199254740991"),
            ("9007199254740992", "\"9007199254740992\""),
            ("007", "\"007\""),
            ("+7", "\"+7\""),
            ("-0", "\"-0\""),
            ("1e3", "\"1e3\""),
        ] {
            assert_eq!(data(frame, user), format!(r#"{{"pool_id":"7","from":{from},"text":"hi"}}"#));
        }
    }

    #[test]
    fn a_pools_number_and_string_are_one_group() {
        for pool_id in ["7", "\"7\""] {
            let frame = format!(r#"{{"type":"chat","pool_id":{pool_id},"text":"hi"}}"#);
            assert_eq!(parse(&frame).unwrap().unwrap().group(), "pool:7");
        }
    }

    #[test]
    fn a_frame_of_another_type_is_left_to_others() {
        for json in [
            "[]",
            r#"["chat", 7, "hi"]"#,
            r#" ["chat", 7, "hi"]"#,
            "1",
            "null",
            "\"chat\"",
            "{}",
            r#"{"type":"ping"}"#,
            r#"{"type":1}"#,
            r#"{"chat":"hi"}"#,
        ] {
            assert!(parse(json).unwrap().is_none(), "{json}");
        }
    }

    #[test]
    fn a_malformed_chat_is_refused() {
        for json in [
            r#"{"type":"chat"}"#,
            r#"{"type":"chat","text":"hi"}"#,
            r#"{"type":"chat","pool_id":7}"#,
            r#"{"type":"chat","pool_id":7,"text":1}"#,
            r#"{"type":"chat","pool_id":7,"text":null}"#,
            r#"{"type":"chat","pool_id":7.5,"text":"hi"}"#,
            r#"{"type":"chat","pool_id":null,"text":"hi"}"#,
            r#"{"type":"chat","pool_id":"","text":"hi"}"#,
            r#"{"type":"chat","pool_id":"7 ","text":"hi"}"#,
            r#"{"type":"chat","pool_id":"a\u0000b","text":"hi"}"#,
            r#"{"type":"chat","pool_id":7,"text":"\ud800"}"#,
            &format!(r#"{{"type":"chat","pool_id":"{}","text":"hi"}}"#, "x".repeat(124)),
            &format!(r#"{{"type":"chat","pool_id":{},"text":"hi"}}"#, "1".repeat(60_000)),
        ] {
            let refusal = parse(json).unwrap_err();
            assert_eq!(refusal.code, "invalid_chat", "{json}");
            assert!(refusal.detail.starts_with("`pool_id` ") || refusal.detail.starts_with("`text` "), "{}", refusal.detail);
        }
    }

    #[test]
    fn the_limit_counts_characters() {
        let parse = |text: &str| Chat::parse(&Body::Json(format!(r#"{{"type":"chat","pool_id":7,"text":"{text}"}}"#)), 3).map(|_| ());
        assert!(parse("नमन").is_ok() && parse("🚗🚗🚗").is_ok());
        assert_eq!(parse("").unwrap_err().code, "text_length");
        let refusal = parse("abcd").unwrap_err();
        assert_eq!((refusal.code.as_str(), refusal.detail.as_str()), ("text_length", "`text` has 4 characters: it should have 1 to 3"));
    }

    #[test]
    fn members_that_a_client_adds_change_nothing() {
        let members = |count: usize| (0..count).map(|member| format!("\"{member:x}\":1,")).collect::<String>();
        let (many, deep) = (members(2_000), format!("{}{}", "[".repeat(5_000), "]".repeat(5_000)));
        let frame = format!(r#"{{{many}"deep":{deep},"typ\u0065":"ch\u0061t","pool_id":7,"text":"hi"}}"#);
        assert_eq!(data(&frame, "1"), r#"{"pool_id":7,"from":1,"text":"hi"}"#);
        assert!(parse(&format!(r#"{{{many}"deep":{deep}}}"#)).unwrap().is_none());
        // A frame of more than 10,000 names and values is not read to the end.
        let frame = |added: &str| format!(r#"{{"type":"chat","pool_id":7,"text":"hi",{added}"end":1}}"#);
        assert!(parse(&frame(&members(4_900))).unwrap().is_some());
        for too_much in [members(5_000), members(8_400), format!("\"deep\":{},", "[".repeat(30_000) + &"]".repeat(30_000))] {
            assert!(parse(&frame(&too_much)).unwrap().is_none());
        }
    }
}
