//! A sessions policy: the members of a pool write to each other.
//!
//! A client sends `{"type":"chat","pool_id":7,"text":"At the gate"}`, and this policy publishes `pooling.chat.message`, which a
//! routing policy tells the others. Who wrote it is the session's user, whatever the client says. Other messages are
//! left to other policies.

mod frame;

use serde::Deserialize;
use signalpost_plugin::{Body, Policy, Refusal, Response, Session, Sessions, export, groups};

#[derive(Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
struct Chat {
    /// Characters, not bytes: the limit is the same in every script. It is about two screens of a phone.
    text_chars_max: usize,
}

impl Default for Chat {
    fn default() -> Chat {
        Chat { text_chars_max: 2000 }
    }
}

/// It speaks with clients and routes no event.
impl Policy for Chat {
    fn check(&self) -> Result<(), String> {
        if self.text_chars_max == 0 {
            return Err("`text_chars_max` is 0, which forbids every text: give at least 1".to_string());
        }
        Ok(())
    }
}

impl Sessions for Chat {
    fn received(&self, session: &Session, message: Body) -> Result<Option<Response>, Refusal> {
        let Some(chat) = message.as_json().map(|json| frame::Chat::parse(json, self.text_chars_max)).transpose()?.flatten() else {
            return Ok(None);
        };
        if !groups::contains(&chat.group(), &session.user) {
            return Err(chat.not_a_member());
        }
        Ok(Some(Response::nothing().publish("pooling.chat.message", chat.into_data(&session.user))))
    }
}

export!(Chat: sessions);

#[cfg(test)]
mod tests {
    use super::*;
    use signalpost_plugin::testing::{Host, policy, receive, session};

    #[test]
    fn no_settings_are_the_defaults() {
        assert_eq!(policy("{}"), Ok(Chat { text_chars_max: 2000 }));
        assert_eq!(policy(r#"{"text_chars_max": 5}"#), Ok(Chat { text_chars_max: 5 }));
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_by_name() {
        for (settings, named) in [(r#"{"text_chars_max": 0}"#, "text_chars_max"), (r#"{"text_max": 1}"#, "text_max")] {
            let error = policy::<Chat>(settings).unwrap_err();
            assert!(error.contains(&format!("`{named}`")), "{error}");
        }
    }

    #[test]
    fn a_member_is_published_and_a_stranger_is_refused() {
        let host = Host::new();
        host.join("pool:7", &["1001"]);
        let line =
            |user: &str| receive(&Chat::default(), &session(user, &[]), Body::Json(r#"{"type":"chat","pool_id":7,"text":"hi"}"#.into()));
        let published = Response::nothing().publish("pooling.chat.message", Body::Json(r#"{"pool_id":7,"from":1001,"text":"hi"}"#.into()));
        assert_eq!(line("1001"), Ok(Some(published)));
        assert_eq!(line("eve").unwrap_err().code, "not_a_member");
    }

    #[test]
    fn what_is_no_json_is_somebody_elses() {
        assert_eq!(receive(&Chat::default(), &session("1001", &[]), Body::Text("hi".into())), Ok(None));
    }
}
