//! A sessions policy: the members of a pool write to each other.
//!
//! A client sends `{"type":"chat","pool_id":7,"text":"At the gate"}`, and this policy publishes `pooling.chat.message`, which a
//! routing policy tells the others. Who wrote it is the session's user, whatever the client says. The author's other devices get
//! the message too. Other messages are left to other policies.

mod devices;
mod frame;

use serde::Deserialize;
use signalpost_plugin::{Body, Decision, Policy, Refusal, Response, Session, Sessions, export, groups, tell, to};

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
    fn opened(&self, session: &Session) -> Result<Response, Refusal> {
        devices::add(session);
        Ok(Response::nothing())
    }

    fn received(&self, session: &Session, message: Body) -> Result<Option<Response>, Refusal> {
        let Some(chat) = frame::Chat::parse(&message, self.text_chars_max)? else { return Ok(None) };
        if !groups::contains(chat.group(), &session.user) {
            return Err(chat.not_a_member());
        }
        let own = chat.message(&session.user);
        let others = devices::others(session).into_iter();
        let copies: Decision = others.map(|device| tell(to::session(&session.user, device), own.clone()).keep_ms(0)).collect();
        Ok(Some(Response::nothing().decide(copies).publish("pooling.chat.message", chat.into_data(&session.user))))
    }

    fn closed(&self, session: &Session, _code: u16) -> Result<Response, Refusal> {
        devices::remove(session);
        Ok(Response::nothing())
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
    fn the_authors_other_devices_get_what_one_of_them_wrote() {
        let host = Host::new();
        host.join("pool:7", &["1001", "1002"]);
        let device = |user: &str, id: &str| Session { id: id.to_string(), ..session(user, &[]) };
        let (phone, tablet, watch) = (device("1001", "phone"), device("1001", "tablet"), device("1001", "watch"));
        for session in [&phone, &tablet, &watch, &device("1002", "elsewhere")] {
            assert_eq!(Chat::default().opened(session), Ok(Response::nothing()));
        }
        let frame = Body::Json(r#"{"type":"chat","pool_id":"7","text":"hi"}"#.into());
        let told = |session: &Session| receive(&Chat::default(), session, frame.clone()).unwrap().unwrap().decision.to_string();
        let copy = r#"{"type":"chat_message","pool_id":"7","from":1001,"text":"hi"}"#;
        let told_to = |device: &str| format!("tell session {device} of 1001 (keep 0 ms): {copy}");
        assert_eq!(told(&phone), format!("{}\n{}", told_to("tablet"), told_to("watch")));
        assert_eq!(Chat::default().closed(&watch, 1000), Ok(Response::nothing()));
        assert_eq!(told(&phone), told_to("tablet"));
        assert_eq!(told(&tablet), told_to("phone"));
        assert_eq!(Chat::default().closed(&phone, 1000), Ok(Response::nothing()));
        assert_eq!(told(&tablet), "");
    }

    #[test]
    fn a_message_that_is_not_json_is_left_to_others() {
        assert_eq!(receive(&Chat::default(), &session("1001", &[]), Body::Text("hi".into())), Ok(None));
    }
}
