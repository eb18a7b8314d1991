//! A driver's answer to an offer, as its client sends it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use signalpost_plugin::{Body, Id, RawValue, Refusal};

/// The members that are looked at. Others are skipped: what a client adds costs next to nothing.
#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    request_id: Option<&'a RawValue>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    Accepted,
    Declined,
}

impl Answer {
    pub fn event_type(self) -> &'static str {
        match self {
            Answer::Accepted => "pooling.offer.accepted",
            Answer::Declined => "pooling.offer.declined",
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Answer::Accepted => "accepted",
            Answer::Declined => "declined",
        }
    }
}

/// Reads an answer and the request that it is about; `None` for any other frame, which is left to other policies.
pub fn parse(message: &Body) -> Result<Option<(Answer, Id)>, Refusal> {
    let Some(frame) = message.data::<Frame>() else { return Ok(None) };
    let answer = match &*frame.kind {
        "offer_accept" => Answer::Accepted,
        "offer_decline" => Answer::Declined,
        _ => return Ok(None),
    };
    let request = frame.request_id.and_then(Id::read);
    let request = request.ok_or_else(|| Refusal::new("invalid_answer", format!("`request_id` should be {}", Id::EXPECTED)))?;
    Ok(Some((answer, request)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(json: &str) -> Result<Option<(Answer, String)>, Refusal> {
        Ok(parse(&Body::Json(json.to_string()))?.map(|(answer, request)| (answer, request.to_string())))
    }

    #[test]
    fn an_answer_names_its_request_by_a_number_or_a_string() {
        for (request, id) in [("42", "42"), ("\"42\"", "42"), ("18446744073709551616", "18446744073709551616"), ("\"r-7\"", "r-7")] {
            let frame = |kind: &str| parsed(&format!(r#"{{"at":[1],"type":"{kind}","request_id":{request}}}"#));
            assert_eq!(frame("offer_accept"), Ok(Some((Answer::Accepted, id.to_string()))));
            assert_eq!(frame("offer_decline"), Ok(Some((Answer::Declined, id.to_string()))));
        }
    }

    #[test]
    fn other_frames_are_left_to_others() {
        for json in
            ["[]", "1", "null", "{}", r#"{"type":"chat","request_id":42}"#, r#"{"type":"offer_accepted","request_id":42}"#, r#"{"type":1}"#]
        {
            assert_eq!(parsed(json), Ok(None), "{json}");
        }
        assert_eq!(parse(&Body::Text("offer_accept".to_string())).unwrap(), None);
    }

    #[test]
    fn an_answer_without_a_request_is_refused() {
        for request in ["", r#","request_id":null"#, r#","request_id":4.2"#, r#","request_id":"""#, r#","request_id":[42]"#] {
            let refusal = parsed(&format!(r#"{{"type":"offer_accept"{request}}}"#)).unwrap_err();
            assert_eq!(refusal.code, "invalid_answer", "{request}");
            assert!(refusal.detail.starts_with("`request_id` should be an id"), "{}", refusal.detail);
        }
    }
}
