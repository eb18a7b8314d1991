//! A canary: a candidate that decides in place of the live policy, for a stable share of the events.

use std::sync::Arc;

use prometheus::IntCounter;
use sha2::{Digest as _, Sha256};

use super::candidate::Candidate;
use super::{Policy, PolicySet};
use crate::config::CandidateMode;
use crate::types::event::{Body, Event};
use crate::types::json::Json;

/// The policies of the events that a canary decides.
#[derive(Debug)]
pub struct Canary {
    pub candidate: Arc<Candidate>,
    pub policy: Arc<Policy>,
    /// The current set, with the candidate in place of the live policy.
    pub set: Arc<PolicySet>,
    /// Count the events, and clients' calls, that the candidate and the live policy decide.
    taken: IntCounter,
    left: IntCounter,
}

impl Canary {
    /// Returns a canary if the candidate is one, and its policy serves.
    pub fn of(candidate: &Arc<Candidate>, current: &PolicySet) -> Option<Canary> {
        let policy = candidate.on_trial(CandidateMode::Canary)?;
        current.find(&candidate.name)?;
        let with = |live: &Arc<Policy>| if live.name == candidate.name { policy.clone() } else { live.clone() };
        let set = PolicySet::new(current.revision, current.policies.iter().map(with).collect());
        let counter = |version| policy.metrics().canary_events.with_label_values(&[&*candidate.name, version]);
        let (taken, left) = (counter("candidate"), counter("live"));
        Some(Canary { candidate: candidate.clone(), policy: policy.clone(), set: Arc::new(set), taken, left })
    }

    /// Counts an event, and returns whether the candidate decides about it.
    pub fn counted(&self, is_taken: bool) -> bool {
        if is_taken {
            self.taken.inc()
        } else {
            self.left.inc()
        }
        is_taken
    }

    /// Returns whether the candidate decides about an event.
    pub fn takes(&self, event: &Event) -> bool {
        match &event.subject {
            Some(subject) => self.takes_key(subject),
            None => key(event, &self.candidate.config.key).is_some_and(|key| self.takes_key(&key)),
        }
    }

    /// Returns whether the candidate decides about what has this key: always the same for the same key, on every server.
    pub fn takes_key(&self, key: &str) -> bool {
        let digest = Sha256::new().chain_update(&*self.candidate.name).chain_update([0]).chain_update(key).finalize();
        let number = digest.iter().take(4).fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
        f64::from(number) < self.candidate.config.share.get() * (f64::from(u32::MAX) + 1.0) && !self.policy.is_circuit_open()
    }
}

/// Returns the value at a path of an event, as in `data.pool_id`.
fn key(event: &Event, path: &str) -> Option<String> {
    let mut names = path.split('.');
    match names.next()? {
        "id" => return Some(event.id.clone()),
        "source" => return Some(event.source.clone()),
        "data" => {}
        name => return event.extensions.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone()),
    }
    let Some(Body::Json(text)) = &event.data else { return None };
    let data = Json::parse(text).ok()?;
    match names.try_fold(&data, |json, name| json.get(name))? {
        Json::String(text) | Json::Word(text) => Some(text.clone()),
        Json::Object(_) | Json::Array(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::origin::Origin;

    fn event(subject: Option<&str>, data: &str) -> Event {
        Event {
            id: "e".into(),
            source: "/s".into(),
            event_type: "t".into(),
            subject: subject.map(str::to_owned),
            time: None,
            content_type: "application/json".into(),
            extensions: vec![("city".into(), "berlin".into())],
            data: Some(Body::Json(data.into())),
            origin: Origin::default(),
        }
    }

    #[test]
    fn a_key_is_a_value_in_the_event() {
        let event = event(None, r#"{"pool":{"id":9007199254740993},"name":"x","list":[1]}"#);
        let at = |path: &str| key(&event, path);
        assert_eq!(at("data.pool.id").as_deref(), Some("9007199254740993"));
        assert_eq!((at("data.name").as_deref(), at("city").as_deref(), at("id").as_deref()), (Some("x"), Some("berlin"), Some("e")));
        assert_eq!((at("data.pool"), at("data.list"), at("data.none.x"), at("")), (None, None, None, None));
    }
}
