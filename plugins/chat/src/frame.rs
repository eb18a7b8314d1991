//! A client's chat frame, and the event that it becomes.

use serde::Serialize;
use signalpost_plugin::{Body, Fields, Id, Refusal};

/// What a member wrote. Other members of the frame are not passed on.
#[derive(Debug)]
pub struct Chat {
    pool: Id,
    text: String,
}

impl Chat {
    /// `None`: not a chat frame, and so somebody else's.
    pub fn parse(json: &str, text_chars_max: usize) -> Result<Option<Chat>, Refusal> {
        let Some(frame) = Fields::parse(json).ok().filter(|frame| frame.text("type").is_ok_and(|kind| kind == "chat")) else {
            return Ok(None);
        };
        let Some(pool) = frame.get("pool_id").and_then(Id::read) else {
            return Err(Refusal::new("invalid_chat", "`pool_id` should be a whole number or a string that is not empty"));
        };
        let Ok(text) = frame.text("text") else {
            return Err(Refusal::new("invalid_chat", "`text` should be a string"));
        };
        let chars = text.chars().count();
        if chars == 0 || chars > text_chars_max {
            return Err(Refusal::new("text_length", format!("`text` has {chars} characters: it should have 1 to {text_chars_max}")));
        }
        Ok(Some(Chat { pool, text }))
    }

    /// As the routing policy named it when the pool's members joined.
    pub fn group(&self) -> String {
        format!("pool:{}", self.pool)
    }

    pub fn not_a_member(&self) -> Refusal {
        Refusal::new("not_a_member", format!("you are not in pool {}: only its members can write there", self.pool))
    }

    /// The data of `pooling.chat.message`, with the pool's id as the client wrote it, number or string.
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

/// Producers write ids as numbers where they are, and a socket's address has only strings. A client that compares `from` with
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

    fn data(json: &str, user: &str) -> String {
        Chat::parse(json, 2000).unwrap().unwrap().into_data(user).as_json().unwrap().to_string()
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
            assert_eq!(Chat::parse(&frame, 2000).unwrap().unwrap().group(), "pool:7");
        }
    }

    #[test]
    fn what_is_no_chat_is_somebody_elses() {
        for json in ["[]", r#"["chat", 7, "hi"]"#, "1", "null", "\"chat\"", "{}", r#"{"type":"ping"}"#, r#"{"type":1}"#, r#"{"chat":"hi"}"#]
        {
            assert!(Chat::parse(json, 2000).unwrap().is_none(), "{json}");
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
        ] {
            assert_eq!(Chat::parse(json, 2000).unwrap_err().code, "invalid_chat", "{json}");
        }
    }

    #[test]
    fn the_limit_counts_characters() {
        let parse = |text: &str| Chat::parse(&format!(r#"{{"type":"chat","pool_id":7,"text":"{text}"}}"#), 3).map(|_| ());
        assert!(parse("नमन").is_ok() && parse("🚗🚗🚗").is_ok());
        assert_eq!(parse("").unwrap_err().code, "text_length");
        let refusal = parse("abcd").unwrap_err();
        assert_eq!((refusal.code.as_str(), refusal.detail.as_str()), ("text_length", "`text` has 4 characters: it should have 1 to 3"));
    }
}
