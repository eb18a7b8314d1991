// [routing]
//! Tells a customer that an order was shipped.
// [formatting]
//! Gives readers who ask for `format=text` the text of a message, without the JSON around it.
// [sessions]
//! Greets clients, and answers a `ping` with a `pong`.
// [end]

use serde::Deserialize;
use signalpost_plugin::*;

/// Settings, from the server's configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MyPolicy {
    // [routing]
    #[serde(default = "on_its_way")]
    text: String,
    // [end]
}

// [routing]
fn on_its_way() -> String {
    "Your order is on its way.".to_owned()
}

// [end]
impl Policy for MyPolicy {
    const EVENTS: &'static [&'static str] = &["order.shipped", "signalpost.direct"];
}

// [routing]
/// The data of `order.shipped`.
#[derive(Deserialize)]
struct Shipped<'a> {
    order_id: Id,
    user_id: Id,
    /// As it was written: 12.50 stays 12.50.
    #[serde(borrow)]
    total: Option<&'a RawValue>,
}

impl Routing for MyPolicy {
    fn route(&self, event: &Event) -> Result<Decision, Refusal> {
        // Data that don't fit are refused by the name of the field, and the producer finds that in the receipt.
        let shipped: Shipped = event.data()?;
        let message = Object::new("order_shipped").value("order_id", &shipped.order_id).text("text", &self.text);
        let message = if let Some(total) = shipped.total { message.raw("total", total) } else { message };
        Ok(tell(to::user(shipped.user_id), message).into())
    }
}

// [formatting]
/// A message with a text. Its other members are not looked at.
#[derive(Deserialize)]
struct Note {
    text: String,
}

impl Formatting for MyPolicy {
    const VARY: &'static [&'static str] = &["format"];

    fn format(&self, message: Message, reader: &Reader) -> Result<Option<Body>, Refusal> {
        let note = if reader.get("format") == Some("text") { message.data::<Note>() } else { None };
        Ok(Some(note.map_or(message.body, |note| Body::Text(note.text))))
    }
}

// [sessions]
/// The members of a client's message that are looked at. Others are skipped, whatever a client adds.
#[derive(Deserialize)]
struct Frame {
    #[serde(rename = "type")]
    kind: String,
}

impl Sessions for MyPolicy {
    fn opened(&self, session: &Session) -> Result<Response, Refusal> {
        Ok(Response::nothing().reply(json!({ "type": "welcome", "user": session.user })))
    }

    fn received(&self, _session: &Session, message: Body) -> Result<Option<Response>, Refusal> {
        // Any other message is left to other policies.
        Ok(is_ping(&message).then(|| Response::nothing().reply(json!({ "type": "pong" }))))
    }
}

fn is_ping(message: &Body) -> bool {
    message.data::<Frame>().is_some_and(|frame| frame.kind == "ping")
}

// [end]
export!(MyPolicy: routing, formatting, sessions);

#[cfg(test)]
mod tests {
    use super::*;

    // [routing]
    #[test]
    fn the_customer_is_told() {
        let policy: MyPolicy = testing::policy("{}").unwrap();
        let shipped = testing::event_of_json("order.shipped", r#"{"order_id":7,"user_id":1001,"total":12.50}"#);
        let decision = testing::route(&policy, &shipped).unwrap().to_string();
        assert_eq!(decision, r#"tell 1001: {"type":"order_shipped","order_id":7,"text":"Your order is on its way.","total":12.50}"#);
    }

    #[test]
    fn data_that_name_no_user_are_refused() {
        let policy: MyPolicy = testing::policy("{}").unwrap();
        for user_id in ["null", r#""1001 ""#, "1.5"] {
            let shipped = testing::event_of_json("order.shipped", &format!(r#"{{"order_id":7,"user_id":{user_id}}}"#));
            assert_eq!(testing::route(&policy, &shipped).unwrap_err().code, "invalid_field", "{user_id}");
        }
    }

    // [formatting]
    #[test]
    fn only_a_message_with_a_text_is_shown_as_text() {
        let policy: MyPolicy = testing::policy("{}").unwrap();
        let shown = |json: &str| {
            let body = Body::Json(json.to_owned());
            testing::format(&policy, "signalpost.direct", body, &[("format", "text")]).unwrap().unwrap()
        };
        assert_eq!(shown(r#"{"type":"note","text":"hi"}"#), Body::Text("hi".to_owned()));
        for json in [r#"{"type":"note"}"#, r#"{"text":1}"#, r#"["hi"]"#, "1"] {
            assert_eq!(shown(json), Body::Json(json.to_owned()));
        }
    }

    // [sessions]
    #[test]
    fn a_client_is_greeted() {
        let policy: MyPolicy = testing::policy("{}").unwrap();
        let greeting = policy.opened(&testing::session("1001", &[])).unwrap();
        assert_eq!(greeting.replies, [Body::Json(r#"{"type":"welcome","user":"1001"}"#.to_owned())]);
    }

    #[test]
    fn a_ping_is_told_from_anything_else() {
        let told = |json: &str| is_ping(&Body::Json(json.to_owned()));
        assert!(told(r#"{"type":"ping","n":1}"#));
        assert!(!told(r#"{"type":"chat"}"#) && !told(r#"["ping"]"#) && !is_ping(&Body::Text("ping".to_owned())));
    }
    // [end]
}
