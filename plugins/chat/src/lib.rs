//! A sessions policy: the members of a pool write to each other.
//!
//! A client sends `{"type":"chat","pool_id":7,"text":"At the gate"}`, and this policy publishes `pooling.chat.message`, which a
//! routing policy tells the others. Who wrote it is the session's user, whatever the client says. Other messages are
//! left to other policies.

mod frame;

use std::cell::Cell;

use serde::Deserialize;

use exports::signalpost::policy::{plugin, sessions};
use sessions::{Draft, Response, Session};
use signalpost::policy::groups;
use signalpost::policy::types::{Body, Decision, Refusal};

wit_bindgen::generate!({
    inline: "
        package signalpost:chat;

        world chat {
            include signalpost:policy/sessions-policy@0.1.0;
            import signalpost:policy/diagnostics@0.1.0;
            import signalpost:policy/groups@0.1.0;
        }
    ",
    path: "../../wit",
    world: "signalpost:chat/chat",
    generate_all,
});

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Characters, not bytes: the limit is the same in every script. It is about two screens of a phone.
    text_chars_max: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { text_chars_max: 2000 }
    }
}

impl Settings {
    fn parse(json: &str) -> Result<Settings, String> {
        let settings: Settings = serde_json::from_str(json).map_err(|error| format!("the settings of `chat`: {error}"))?;
        if settings.text_chars_max == 0 {
            return Err("`text_chars_max` is 0, which forbids every text: give at least 1".to_string());
        }
        Ok(settings)
    }
}

thread_local! {
    // The host configures each instance before its first call, and an instance has one thread.
    static SETTINGS: Cell<Settings> = Cell::new(Settings::default());
}

struct Chat;

impl plugin::Guest for Chat {
    fn describe() -> plugin::Description {
        plugin::Description {
            name: env!("CARGO_PKG_NAME").to_string(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            // It speaks with clients and routes no event.
            events: Vec::new(),
        }
    }

    fn configure(settings: String) -> Result<(), String> {
        // A panic is reported by its message, not as a bare trap.
        std::panic::set_hook(Box::new(|panic| signalpost::policy::diagnostics::panicked(&panic.to_string())));
        SETTINGS.set(Settings::parse(&settings)?);
        Ok(())
    }
}

impl sessions::Guest for Chat {
    fn opened(_: Session) -> Result<Response, Refusal> {
        Ok(nothing())
    }

    fn received(session: Session, message: Body) -> Result<Option<Response>, Refusal> {
        let Body::Json(json) = message else {
            return Ok(None);
        };
        let Some(chat) = frame::Chat::parse(&json, SETTINGS.get().text_chars_max)? else {
            return Ok(None);
        };
        if !groups::contains(&chat.group(), &session.user) {
            return Err(chat.not_a_member());
        }
        let draft = Draft { type_: "pooling.chat.message".to_string(), subject: None, data: Body::Json(chat.into_data(&session.user)) };
        Ok(Some(Response { events: vec![draft], ..nothing() }))
    }

    fn closed(_: Session, _: u16) -> Result<Response, Refusal> {
        Ok(nothing())
    }
}

export!(Chat);

fn nothing() -> Response {
    let decision = Decision { joins: Vec::new(), deliveries: Vec::new(), leaves: Vec::new(), ends: Vec::new() };
    Response { replies: Vec::new(), decision, events: Vec::new(), close: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_settings_are_the_defaults() {
        assert_eq!(Settings::parse("{}"), Ok(Settings { text_chars_max: 2000 }));
        assert_eq!(Settings::parse(r#"{"text_chars_max": 5}"#), Ok(Settings { text_chars_max: 5 }));
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_by_name() {
        for (settings, named) in [(r#"{"text_chars_max": 0}"#, "text_chars_max"), (r#"{"text_max": 1}"#, "text_max")] {
            let error = Settings::parse(settings).unwrap_err();
            assert!(error.contains(&format!("`{named}`")), "{error}");
        }
    }
}
