//! Answers of guests: any memory, as the result of a call.

use std::num::NonZeroU32;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::config::{self, Config};
use crate::metrics::Metrics;
use crate::model::Model;
use crate::model::world::World;
use crate::policy::compile::Compiler;
use crate::policy::fault::Faults;
use crate::policy::host::{Shared, Trial};
use crate::policy::plugin::Binary;
use crate::policy::taps::Taps;
use crate::policy::{Bounds, CallError, Policy, engine};
use crate::registry::SessionHandle;
use crate::types::clock::Clock;
use crate::types::delivery::{Decision, Delivery, Draft, Message, PolicySetId, Recipients, Refusal, Response};
use crate::types::event::{Body, Event, UserId};
use crate::types::fault::{FAULT_DETAIL_BYTES_MAX, FaultKind};

/// Small limits, so that small answers reach them.
const BOUNDS: Bounds = Bounds { items_max: 8, body_bytes_max: 64, user_id_bytes_max: 16, name_bytes_max: 16 };

/// Bytes that a call may pass to the host, even if the answer points to the same ones several times.
const OUTPUT_BYTES_MAX: usize = 2048;

/// Bytes of the guest's room for an answer.
const ANSWER_BYTES_MAX: usize = 32 << 10;

/// The guest of `fuzz/guest.wat`, which writes its input to the beginning of its memory, and returns that address as its answer.
#[derive(Debug)]
pub struct Guest {
    policy: Policy,
    model: Arc<Model>,
}

impl Guest {
    /// # Errors
    /// The component can't be loaded.
    pub fn new(component: &[u8], config: &Config) -> anyhow::Result<Guest> {
        let mut limits = config.limits.clone();
        limits.output_bytes_max = OUTPUT_BYTES_MAX.try_into()?;
        limits.items_max = BOUNDS.items_max.try_into()?;
        // No call is slow: the guest has no loop.
        limits.breaker_faults = NonZeroU32::MAX;
        limits.call_deadline_ms = config::Milliseconds::new(1000);
        let metrics = Arc::new(Metrics::new()?);
        let model = Model::new(config, Clock::Machine, 1, false, &metrics);
        let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(component));
        let binary = Binary { name: "guest", file: "guest.wasm".into(), digest, bytes: component };
        let taps = Taps::new(config, &metrics);
        let (compiler, shared) =
            (Compiler::new(&config.plugins), Shared::new("guest", limits, model.clone(), metrics, Faults::new(), taps, Trial::No));
        let policy = Policy::load(&engine::serving()?, &compiler, binary, config::Policy::default(), shared, BOUNDS);
        Ok(Guest { policy: policy.map_err(anyhow::Error::msg)?, model })
    }

    /// Makes a call. The first byte says which function answers, the rest is its answer. Any answer is within the bounds, or a fault of the
    /// guest's output, and no later call is affected.
    pub fn answer(&self, input: &[u8]) {
        let [function, answer @ ..] = input else { return };
        if answer.len() > ANSWER_BYTES_MAX {
            return;
        }
        let body = Arc::new(Body::Binary(answer.to_owned()));
        let world = &mut World::live(&self.model);
        let bytes = match function % 3 {
            0 => self.policy.route(&event((*body).clone()), world).map(|decision| decided(&decision)),
            1 => self.policy.format(&message(), &body, &[], world).map(|shaped| shaped.as_ref().map_or(0, is_body)),
            _ => self.policy.received(&session(), &body, world).map(|response| response.as_ref().map_or(0, answered)),
        };
        match bytes {
            Ok(bytes) => assert!(bytes <= OUTPUT_BYTES_MAX, "{bytes} bytes of output"),
            Err(CallError::Refused(Refusal { code, detail })) => {
                assert!((1..=64).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_graphic()), "{code:?}");
                assert!(code.len() + detail.len() <= OUTPUT_BYTES_MAX);
            }
            Err(CallError::Fault(fault)) => {
                assert_eq!(fault.defect.kind, FaultKind::Output, "{fault:?}");
                assert!((1..=FAULT_DETAIL_BYTES_MAX).contains(&fault.defect.detail.len()), "{fault:?}");
                let next = self.policy.route(&event(Body::Binary(Vec::new())), world);
                assert!(next.is_ok_and(|decision| decided(&decision) == 0), "the next call is harmed");
            }
            Err(CallError::CircuitOpen) => panic!("the breaker never opens"),
        }
    }
}

/// Checks that each part of an answer is within its bounds, and returns the bytes that it takes.
fn answered(response: &Response) -> usize {
    let Response { replies, decision, drafts, close } = response;
    assert!(replies.len() + drafts.len() <= BOUNDS.items_max);
    let published = replies.iter().map(is_body).chain(drafts.iter().map(drafted));
    published.sum::<usize>() + decided(decision) + close.as_ref().map_or(0, String::len)
}

fn drafted(draft: &Draft) -> usize {
    let subject = draft.subject.as_deref().unwrap_or_default();
    // The rules of events apply to drafts too.
    assert!(!draft.event_type.chars().chain(subject.chars()).any(char::is_control), "{draft:?}");
    is_name(&draft.event_type) + subject.len() + is_body(&draft.data)
}

fn decided(decision: &Decision) -> usize {
    let Decision { joins, deliveries, leaves, ends } = decision;
    assert!(joins.len() + deliveries.len() + leaves.len() + ends.len() <= BOUNDS.items_max);
    let changes = joins.iter().chain(leaves).map(|membership| is_name(&membership.group) + is_user(&membership.user));
    changes.chain(deliveries.iter().map(delivered)).chain(ends.iter().map(|group| is_name(group))).sum()
}

fn delivered(delivery: &Delivery) -> usize {
    let Delivery { to, except, body, terms } = delivery;
    let to = match to {
        Recipients::User(user) => is_user(user),
        Recipients::Users(users) => users.iter().map(is_user).sum(),
        Recipients::Group(group) => is_name(group),
        Recipients::Everyone => 0,
        Recipients::Session { user, session } => is_user(user) + session.len(),
    };
    let key = terms.collapse_key.as_deref().map_or(0, is_name);
    to + key + except.iter().map(is_user).sum::<usize>() + body.as_ref().map_or(0, is_body)
}

fn is_body(body: &Body) -> usize {
    assert!(body.size() <= BOUNDS.body_bytes_max);
    if let Body::Json(text) = body {
        assert!(super::is_json(text), "{text}");
    }
    body.size()
}

fn is_user(user: &UserId) -> usize {
    assert!(UserId::new(user.as_str(), BOUNDS.user_id_bytes_max).is_ok(), "{user:?}");
    user.as_str().len()
}

fn is_name(name: &str) -> usize {
    assert!((1..=BOUNDS.name_bytes_max).contains(&name.len()), "{name:?}");
    name.len()
}

fn event(data: Body) -> Event {
    Event {
        id: "1".into(),
        source: "/".into(),
        event_type: "t".into(),
        subject: None,
        time: None,
        content_type: "application/octet-stream".into(),
        extensions: Vec::new(),
        data: Some(data),
        origin: Default::default(),
    }
}

fn message() -> Arc<Message> {
    Arc::new(Message::new("1".into(), "t".into(), Body::Text(String::new()), PolicySetId::default()))
}

fn session() -> Arc<SessionHandle> {
    let user = UserId::new("u", BOUNDS.user_id_bytes_max).unwrap_or_else(|detail| panic!("{detail}"));
    SessionHandle::new(user, None, false, Vec::new())
}
