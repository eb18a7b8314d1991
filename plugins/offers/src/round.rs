//! Who was offered which request, and until when. One entry of the state for each request, since a host call for each of a thousand
//! candidates would take longer than a call may.

use serde::{Deserialize, Serialize};
use signalpost_plugin::{Body, Fields, Id, RawValue, Refusal, clock, json, state};

/// Drivers who were asked together. The ids are as the producer wrote them, so that the backend has them again with all their digits.
#[derive(Serialize, Deserialize)]
pub struct Round {
    ends_ms: u64,
    request_id: Box<RawValue>,
    drivers: Vec<Box<RawValue>>,
}

/// Remembers the candidates of a request. A request may be offered several times, each time to others.
pub fn begin(data: &Fields, ttl_ms: u32) -> Result<(), Refusal> {
    let request = data.id("request_id")?;
    data.id("rider_id")?;
    data.ids("candidate_driver_ids")?;
    let (now_ms, key) = (clock::now_ms(), offers_key(&request));
    let mut rounds: Vec<Round> = state::get(&key).unwrap_or_default();
    rounds.retain(|round| round.ends_ms > now_ms);
    rounds.push(Round {
        ends_ms: now_ms + u64::from(ttl_ms),
        request_id: data.require("request_id", Id::EXPECTED)?.to_owned(),
        drivers: data.parsed("candidate_driver_ids", "a list of ids")?,
    });
    Ok(state::set(&key, &rounds, Some(ttl_ms))?)
}

impl Round {
    /// Returns the newest round in which this user was asked and that is not over, and the user's id as it was written.
    pub fn of(request: &Id, user: &str) -> Option<(Round, Box<RawValue>)> {
        let (now_ms, rounds) = (clock::now_ms(), state::get::<Vec<Round>>(&offers_key(request))?);
        rounds.into_iter().rev().filter(|round| round.ends_ms > now_ms).find_map(|round| {
            let driver = round.drivers.iter().find(|driver| Id::read(driver).is_some_and(|id| id.as_str() == user))?.clone();
            Some((round, driver))
        })
    }

    /// Returns the data of an answer's event.
    pub fn answered_by(&self, driver: &RawValue) -> Body {
        Body::Json(format!(r#"{{"request_id":{},"driver_id":{}}}"#, self.request_id.get(), driver.get()))
    }

    /// Returns the key of a driver's answer. Who is asked again may answer again. The ids are in a JSON list, since side by side they could be
    /// read in two ways.
    pub fn answer_key(&self, request: &Id, driver: &str) -> String {
        format!("answer:{}", json!([request.as_str(), driver, self.ends_ms]))
    }
}

fn offers_key(request: &Id) -> String {
    format!("offers:{request}")
}
