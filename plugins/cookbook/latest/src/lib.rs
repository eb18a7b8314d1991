//! Only the newest of each price is worth reading: it replaces an unread one, and is not kept for those who are away.

use serde::Deserialize;
use signalpost_plugin::{Decision, Event, Id, Policy, Priority, Refusal, Routing, export, forward, to};

/// It has no settings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Latest {}

#[derive(Deserialize)]
struct Price {
    symbol: Id,
}

impl Policy for Latest {
    const EVENTS: &'static [&'static str] = &["price.changed"];
}

impl Routing for Latest {
    fn route(&self, event: &Event) -> Result<Decision, Refusal> {
        let Price { symbol } = event.data()?;
        // Names are bounded: a symbol that is too long for one is refused by the name of its field.
        let watchers = to::group(symbol.prefixed("watch:", "symbol")?);
        let delivery = forward(watchers).collapse(symbol.prefixed("price:", "symbol")?);
        // When a mailbox is full, prices go before anything that can't be had again.
        Ok(delivery.keep_ms(0).priority(Priority::Low).into())
    }
}

export!(Latest: routing);
