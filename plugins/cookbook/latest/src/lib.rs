//! Only the newest of each price is worth reading: it replaces an unread one, and is not kept for those who are away.

use serde::Deserialize;
use signalpost_plugin::{Decision, Event, Policy, Priority, Refusal, Routing, export, forward, to};

/// It has no settings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Latest {}

#[derive(Deserialize)]
struct Price {
    symbol: String,
}

impl Policy for Latest {
    const EVENTS: &'static [&'static str] = &["price.changed"];
}

impl Routing for Latest {
    fn route(&self, event: &Event) -> Result<Decision, Refusal> {
        let Price { symbol } = event.data()?;
        let delivery = forward(to::group(format!("watch:{symbol}"))).collapse(format!("price:{symbol}"));
        // Where a mailbox is full, prices go before anything that can't be had again.
        Ok(delivery.keep_ms(0).priority(Priority::Low).into())
    }
}

export!(Latest: routing);
