//! A policy written straight from the contract, with nothing but wit-bindgen: it hides the fare from everybody who has no
//! `role=rider`. That it builds and loads shows that the contract is the interface, and the SDK a convenience.

wit_bindgen::generate!({ path: "../../../wit", world: "signalpost:policy/formatting-policy" });

use exports::signalpost::policy::{formatting, plugin};
use signalpost::policy::types::{Attributes, Body, Refusal};

struct Bare;

impl plugin::Guest for Bare {
    fn describe() -> plugin::Description {
        plugin::Description {
            name: env!("CARGO_PKG_NAME").into(),
            version: env!("CARGO_PKG_VERSION").into(),
            events: vec!["pooling.fare.updated".into()],
        }
    }
    fn configure(_settings: String) -> Result<(), String> {
        Ok(())
    }
}

impl formatting::Guest for Bare {
    fn vary() -> Vec<String> {
        vec!["role".into()]
    }
    fn format(message: formatting::Message, reader: Attributes) -> Result<Option<Body>, Refusal> {
        let rider = reader.iter().any(|(name, value)| name == "role" && value == "rider");
        Ok(rider.then_some(message.body))
    }
}

export!(Bare);
