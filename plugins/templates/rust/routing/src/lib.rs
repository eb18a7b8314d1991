//! Tells a customer that an order was shipped.

use serde::Deserialize;
use signalpost_plugin::{Decision, Event, Id, Object, Policy, RawValue, Refusal, Routing, export, tell, to};

/// Settings, from the server's configuration.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Shop {
    text: String,
}

impl Default for Shop {
    fn default() -> Shop {
        Shop { text: "Your order is on its way.".to_owned() }
    }
}

/// The data of `order.shipped`.
#[derive(Deserialize)]
struct Shipped<'a> {
    order_id: Id,
    user_id: Id,
    /// As it was written: 12.50 stays 12.50.
    #[serde(borrow)]
    total: Option<&'a RawValue>,
}

impl Policy for Shop {
    const EVENTS: &'static [&'static str] = &["order.shipped"];
}

impl Routing for Shop {
    fn route(&self, event: &Event) -> Result<Decision, Refusal> {
        // Data that don't fit are refused by the name of the field, and the producer finds that in the receipt.
        let shipped: Shipped = event.data()?;
        let message = Object::new("order_shipped").value("order_id", &shipped.order_id).text("text", &self.text);
        let message = if let Some(total) = shipped.total { message.raw("total", total) } else { message };
        Ok(tell(to::user(shipped.user_id), message).into())
    }
}

export!(Shop: routing);

#[cfg(test)]
mod tests {
    use super::*;
    use signalpost_plugin::testing::{event_of_json, route};

    #[test]
    fn the_customer_is_told() {
        let shipped = event_of_json("order.shipped", r#"{"order_id":7,"user_id":1001,"total":12.50}"#);
        let decision = route(&Shop::default(), &shipped).unwrap().to_string();
        assert_eq!(decision, r#"tell 1001: {"type":"order_shipped","order_id":7,"text":"Your order is on its way.","total":12.50}"#);
    }

    #[test]
    fn data_that_name_no_user_are_refused() {
        for (user_id, code) in [("null", "invalid_field"), (r#""1001 ""#, "invalid_field"), ("1.5", "invalid_field")] {
            let shipped = event_of_json("order.shipped", &format!(r#"{{"order_id":7,"user_id":{user_id}}}"#));
            assert_eq!(route(&Shop::default(), &shipped).unwrap_err().code, code, "{user_id}");
        }
    }
}
