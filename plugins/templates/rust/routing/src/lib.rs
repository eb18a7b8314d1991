//! Tells a customer that an order was shipped.

use serde::Deserialize;
use signalpost_plugin::{Decision, Event, Id, Policy, Refusal, Routing, export, json, tell, to};

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
struct Shipped {
    order_id: u64,
    user_id: Id,
}

impl Policy for Shop {
    const EVENTS: &'static [&'static str] = &["order.shipped"];
}

impl Routing for Shop {
    fn route(&self, event: &Event) -> Result<Decision, Refusal> {
        let shipped: Shipped = event.data()?;
        let message = json!({ "type": "order_shipped", "order_id": shipped.order_id, "text": self.text });
        Ok(tell(to::user(shipped.user_id), message).into())
    }
}

export!(Shop: routing);

#[cfg(test)]
mod tests {
    use super::*;
    use signalpost_plugin::testing::{event, route};

    #[test]
    fn the_customer_is_told() {
        let shipped = event("order.shipped", json!({ "order_id": 7, "user_id": 1001 }));
        let decision = route(&Shop::default(), &shipped).unwrap().to_string();
        assert_eq!(decision, r#"tell 1001: {"type":"order_shipped","order_id":7,"text":"Your order is on its way."}"#);
    }
}
