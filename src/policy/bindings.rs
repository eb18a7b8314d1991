//! The types generated from `wit/`, and their translation into the host's own. Generated types stay below `policy`.
//!
//! What a guest returns is validated here: JSON bodies are JSON, ids and names are within their bounds, and so are lists.

use std::sync::Arc;
use std::time::Duration;

use crate::registry::SessionHandle;
use crate::types::delivery::{Decision, Delivery, Draft, Membership, Priority, Recipients, Refusal, Response, Terms};
use crate::types::event::{self, Body, Event, UserId};
use crate::types::fault::cut;

/// Bytes that a refusal's detail is cut to, as those of the server's own problems are: each of a thousand events may have one.
const REFUSAL_DETAIL_BYTES_MAX: usize = 1024;

mod generated {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "host",
        ownership: Borrowing { duplicate_if_necessary: true },
        imports: { default: trappable },
    });
}

pub use generated::exports::signalpost::policy::{formatting, plugin, routing, sessions};
pub use generated::signalpost::policy::{clock, diagnostics, groups, log, metrics, presence, state, types};

use types::{BodyParam, BodyResult};

/// Bounds on what a guest returns, in addition to the bytes that the sandbox counts.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub items_max: usize,
    pub body_bytes_max: usize,
    pub user_id_bytes_max: usize,
    pub name_bytes_max: usize,
}

/// Why a guest's answer can't be used: a sentence for the plugin's author.
pub type Unusable = String;

/// Calls `use_it` with the event in the guest's form. The strings are borrowed, not copied.
pub fn with_event<R>(event: &Event, use_it: impl FnOnce(types::Event<'_>) -> R) -> R {
    let extensions: Vec<(&str, &str)> = event.extensions.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    use_it(types::Event {
        id: &event.id,
        source: &event.source,
        type_: &event.event_type,
        subject: event.subject.as_deref(),
        time: event.time.as_deref(),
        content_type: &event.content_type,
        extensions: &extensions,
        data: event.data.as_ref().map(body_param),
    })
}

/// Calls `use_it` with the session in the guest's form. The strings are borrowed, not copied.
pub fn with_session<R>(handle: &SessionHandle, use_it: impl FnOnce(sessions::Session<'_>) -> R) -> R {
    let attributes: Vec<(&str, &str)> = handle.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    use_it(sessions::Session { id: &handle.id, user: handle.user.as_str(), subprotocol: handle.subprotocol, attributes: &attributes })
}

/// Borrows a body in the guest's form.
pub fn body_param(body: &Body) -> BodyParam<'_> {
    match body {
        Body::Json(text) => BodyParam::Json(text),
        Body::Text(text) => BodyParam::Text(text),
        Body::Binary(bytes) => BodyParam::Binary(bytes),
    }
}

impl Bounds {
    pub fn body(&self, body: BodyResult) -> Result<Body, Unusable> {
        let body = match body {
            BodyResult::Json(text) => Body::json(text).map_err(|error| format!("a json body is not JSON: {error}"))?,
            BodyResult::Text(text) => Body::Text(text),
            BodyResult::Binary(bytes) => Body::Binary(bytes),
        };
        if body.size() > self.body_bytes_max {
            return Err(format!("a body of {} bytes is over the limit of {} (events.event_bytes_max)", body.size(), self.body_bytes_max));
        }
        Ok(body)
    }

    pub fn decision(&self, decision: types::Decision) -> Result<Decision, Unusable> {
        let types::Decision { joins, deliveries, leaves, ends } = decision;
        self.count(joins.len() + deliveries.len() + leaves.len() + ends.len())?;
        Ok(Decision {
            joins: collect(joins, |membership| self.membership(membership))?,
            deliveries: collect(deliveries, |delivery| self.delivery(delivery))?,
            leaves: collect(leaves, |membership| self.membership(membership))?,
            ends: collect(ends, |group| self.group(group))?,
        })
    }

    pub fn response(&self, response: sessions::Response) -> Result<Response, Unusable> {
        self.count(response.replies.len() + response.events.len())?;
        Ok(Response {
            replies: collect(response.replies, |body| self.body(body))?,
            decision: self.decision(response.decision)?,
            drafts: collect(response.events, |draft| self.draft(draft))?,
            close: response.close,
        })
    }

    pub fn refusal(&self, refusal: types::Refusal) -> Result<Refusal, Unusable> {
        let types::Refusal { code, detail } = refusal;
        let sane = (1..=64).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        if !sane {
            return Err("a refusal's code is not 1 to 64 letters, digits, `_`, `-` or `.`".into());
        }
        Ok(Refusal { code, detail: cut(&detail, REFUSAL_DETAIL_BYTES_MAX).to_owned() })
    }

    fn delivery(&self, delivery: types::Delivery) -> Result<Delivery, Unusable> {
        Ok(Delivery {
            to: self.recipients(delivery.to)?,
            except: collect(delivery.except, |user| self.user(&user))?,
            body: delivery.message.map(|body| self.body(body)).transpose()?,
            terms: Terms {
                time_to_live: delivery.ttl_ms.map(milliseconds),
                keep: delivery.keep_ms.map(milliseconds),
                collapse_key: delivery.collapse_key.map(|key| self.name("a collapse key", key)).transpose()?.map(Arc::from),
                priority: match delivery.priority {
                    types::Priority::Low => Priority::Low,
                    types::Priority::Normal => Priority::Normal,
                    types::Priority::High => Priority::High,
                },
            },
        })
    }

    fn recipients(&self, recipients: types::Recipients) -> Result<Recipients, Unusable> {
        Ok(match recipients {
            types::Recipients::User(user) => Recipients::User(self.user(&user)?),
            types::Recipients::Users(users) => Recipients::Users(collect(users, |user| self.user(&user))?),
            types::Recipients::Group(group) => Recipients::Group(self.group(group)?),
            types::Recipients::Everyone => Recipients::Everyone,
            types::Recipients::Session(address) => Recipients::Session { user: self.user(&address.user)?, session: address.session },
        })
    }

    fn membership(&self, membership: types::Membership) -> Result<Membership, Unusable> {
        Ok(Membership { user: self.user(&membership.user)?, group: self.group(membership.group)? })
    }

    fn draft(&self, draft: sessions::Draft) -> Result<Draft, Unusable> {
        // The rules that ingress applies to every other event.
        event::check_attribute("type", &draft.type_)?;
        draft.subject.as_deref().map_or(Ok(()), |subject| event::check_attribute("subject", subject))?;
        Ok(Draft { event_type: self.name("an event type", draft.type_)?, subject: draft.subject, data: self.body(draft.data)? })
    }

    fn user(&self, user: &str) -> Result<UserId, Unusable> {
        UserId::new(user, self.user_id_bytes_max)
    }

    fn group(&self, group: String) -> Result<String, Unusable> {
        self.name("a group's name", group)
    }

    fn name(&self, what: &str, name: String) -> Result<String, Unusable> {
        if name.is_empty() || name.len() > self.name_bytes_max {
            return Err(format!("{what} of {} bytes is not within 1 to {} bytes (groups.name_bytes_max)", name.len(), self.name_bytes_max));
        }
        Ok(name)
    }

    fn count(&self, items: usize) -> Result<(), Unusable> {
        if items > self.items_max {
            return Err(format!(
                "{items} deliveries, replies, drafts and group changes are over the limit of {} (limits.items_max)",
                self.items_max
            ));
        }
        Ok(())
    }
}

fn milliseconds(count: u32) -> Duration {
    Duration::from_millis(count.into())
}

fn collect<T, U>(items: Vec<T>, prove: impl FnMut(T) -> Result<U, Unusable>) -> Result<Vec<U>, Unusable> {
    items.into_iter().map(prove).collect()
}
