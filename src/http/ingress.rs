//! Ingress: producers' requests over HTTP, answered with receipts.

pub mod cloudevents;
mod frame;
mod sampled;
mod source;
pub mod stream;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::Query;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, StatusCode, Uri};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::auth::Auth;
use crate::cluster::NotForwarded;
use crate::config;
use crate::dispatch::{Receipt, UnderWay};
use crate::explain::{Budget, Explained};
use crate::metrics::EventOutcome;
use crate::net::bodies::{Bodies, Whole};
use crate::net::problem::{self, Document, Problem};
use crate::net::turns::Turns;
use crate::node::Node;
use crate::policy::{Incomplete, Role};
use crate::store::{NotStored, Ticket};
use crate::types::delivery::Terms;
use crate::types::event::{self, Body, Event, UserId};
use crate::types::origin::Origin;
use cloudevents::Parsed;
use sampled::{Sampled, Traced};
use stream::Streams;

/// draft-ietf-httpapi-idempotency-key-header.
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Bytes of a receipt's buffer, into which most receipts fit.
const RECEIPT_BYTES: usize = 320;

/// Answers producers.
#[derive(Debug)]
pub struct Ingress {
    node: Arc<Node>,
    bodies: Arc<Bodies>,
    auth: Arc<Auth>,
    streams: Streams,
}

/// An address to which producers POST.
#[derive(Debug)]
pub enum Address {
    /// `{base}/events`
    Events,
    /// `{base}/users/{user_id}/messages`
    Messages(Result<UserId, Problem>),
}

/// A status, and its JSON.
pub type Answer = (StatusCode, Vec<u8>);

/// Who has answered a request.
#[derive(Debug)]
pub enum Answered {
    Here(Answer),
    /// The node that leads, to which the request was passed on.
    ByLeader(http::Response<Bytes>),
}

/// The answer to one event; a batch is answered with one for each event, in its order.
#[derive(Serialize)]
#[serde(untagged)]
enum Item {
    Receipt(Box<Receipt>),
    Explained(Box<Explained>),
    Problem(Document),
}

impl Item {
    /// Returns the status of a batch: 202 if all of it was accepted, also if it is empty; 207 if a part was; 400 if nothing was.
    fn status(items: &[Item]) -> StatusCode {
        let refused = items.iter().filter(|item| matches!(item, Item::Problem(_))).count();
        match refused {
            0 => StatusCode::ACCEPTED,
            all if all == items.len() => StatusCode::BAD_REQUEST,
            _ => StatusCode::MULTI_STATUS,
        }
    }
}

/// Whether the producer wants an explanation or a dry run.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PublishQuery {
    explain: bool,
    dry_run: bool,
}

/// How long a message to one user matters.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TellQuery {
    ttl_ms: Option<u64>,
    keep_ms: Option<u64>,
    collapse_key: Option<String>,
}

impl Ingress {
    pub fn new(node: Arc<Node>, bodies: Arc<Bodies>, auth: Arc<Auth>, streams: Streams) -> Ingress {
        Ingress { node, bodies, auth, streams }
    }

    /// Returns which of its addresses a path is, if it is one.
    pub fn address(&self, path: &str) -> Option<Address> {
        let path = path.strip_prefix(&self.node.config.base_path)?;
        if path == "/events" {
            return Some(Address::Events);
        }
        let user = path.strip_prefix("/users/")?.strip_suffix("/messages")?;
        let is_segment = !user.is_empty() && !user.contains('/');
        is_segment.then(|| Address::Messages(self.user(user)))
    }

    fn user(&self, segment: &str) -> Result<UserId, Problem> {
        let bytes_max = self.node.config.sockets.user_id_bytes_max.get();
        let user = match segment.contains('%') {
            false => UserId::new(segment, bytes_max),
            true => {
                let text = percent_decode_str(segment).decode_utf8().map_err(|_| "a user id is UTF-8".to_owned());
                text.and_then(|text| UserId::new(&text, bytes_max))
            }
        };
        user.map_err(problem::invalid_user)
    }

    /// Answers a POST that may publish, with a status and JSON. `began`: when it was taken.
    ///
    /// # Errors
    /// What is wrong with the request, or with its only event.
    pub async fn post(&self, address: Address, head: &Parts, body: Incoming, began: Instant) -> Result<Answered, Problem> {
        self.node.policies.check()?;
        let whole = self.read(&head.headers, body).await?;
        match self.node.cluster.forward(head, &whole.body).await? {
            Some(answered) => Ok(Answered::ByLeader(answered)),
            None => self.answer(address, head, &whole.body, began).await.map(Answered::Here),
        }
    }

    /// Answers a request of which the body is read, and that this node decides about.
    ///
    /// # Errors
    /// As for [`Ingress::post`].
    pub async fn answer(&self, address: Address, head: &Parts, body: &Bytes, began: Instant) -> Result<Answer, Problem> {
        let mut sampled = self.node.traces.as_ref().and_then(|traces| Sampled::of(traces, &head.headers, began));
        let origin = Origin { accepted: Some(began), trace: sampled.as_ref().map(|sampled| sampled.root.context.clone()) };
        let (answer, path) = match address {
            // Boxed, so that its large state is not part of each request's.
            Address::Events => (Box::pin(self.publish(head, body, origin, &mut sampled)).await, "/events"),
            Address::Messages(user) => (self.tell(user?, head, body, origin, &mut sampled).await, "/users/{user_id}/messages"),
        };
        if let Some(sampled) = sampled {
            sampled.end(&format!("{}{path}", self.node.config.base_path), &answer);
        }
        answer
    }

    /// `POST {base}/events`: 202 and a receipt, or for a batch an array of receipts and problems with a status of its own. With
    /// `explain=true` a receipt also has an explanation; with `dry_run=true` it says what would happen, and nothing does.
    async fn publish(&self, head: &Parts, body: &Bytes, origin: Origin, sampled: &mut Traced<'_>) -> Result<Answer, Problem> {
        let query = query(&head.uri, "publishing takes explain and dry_run, each true or false")?;
        match cloudevents::read(&head.headers, body, self.limits()).inspect_err(|_| self.rejected())? {
            cloudevents::Request::One(mut parsed) => {
                if let Some(sampled) = sampled {
                    sampled.event(&parsed.event);
                }
                parsed.event.origin = origin;
                let (item, ticket) = self.dispatch(parsed, query, &mut Budget::default()).await?;
                if let (Some(sampled), Item::Receipt(receipt)) = (sampled, &item) {
                    sampled.receipt(receipt);
                }
                if let Some(ticket) = ticket {
                    ticket.stored().await?;
                }
                Ok(answer(StatusCode::ACCEPTED, &item))
            }
            cloudevents::Request::Batch(parsed) => {
                if let Some(sampled) = sampled {
                    sampled.batch(&parsed);
                }
                let of = |parsed: Parsed| Parsed { event: Event { origin: origin.clone(), ..parsed.event }, ..parsed };
                let parsed = parsed.into_iter().map(|parsed| parsed.map(of)).collect();
                let (items, ticket) = self.publish_each(parsed, query).await;
                if let Some(ticket) = ticket {
                    ticket.stored().await?;
                }
                Ok(answer(Item::status(&items), &items))
            }
        }
    }

    /// Publishes events one after the other. Returns the answer to each, and the ticket of the last: what was handed over last is stored last.
    async fn publish_each(&self, events: Vec<Result<Parsed, Problem>>, query: PublishQuery) -> (Vec<Item>, Option<Ticket>) {
        let mut items = Vec::with_capacity(events.len());
        let mut last = None;
        let (mut turns, mut budget) = (Turns::default(), Budget::default());
        for parsed in events {
            turns.take().await;
            let published = match parsed {
                Ok(parsed) => self.dispatch(parsed, query, &mut budget).await,
                Err(problem) => {
                    self.rejected();
                    Err(problem)
                }
            };
            items.push(match published {
                Ok((item, ticket)) => {
                    last = ticket.or(last);
                    item
                }
                Err(problem) => Item::Problem(problem.into_document()),
            });
        }
        (items, last)
    }

    /// `POST {base}/users/{user_id}/messages`: any JSON value, or text, to one user. 202 and a receipt.
    async fn tell(&self, user: UserId, head: &Parts, body: &Bytes, origin: Origin, sampled: &mut Traced<'_>) -> Result<Answer, Problem> {
        let query: TellQuery = query(&head.uri, "a message takes ttl_ms, keep_ms and collapse_key")?;
        self.check_size(body.len())?;
        let body = cloudevents::message(&head.headers, body)?;
        let once = idempotency_key(&head.headers)?;
        let (receipt, ticket) = self.tell_one(user, body, query, once.as_deref(), origin)?;
        if let Some(sampled) = sampled {
            sampled.receipt(&receipt);
        }
        ticket.stored().await?;
        Ok((StatusCode::ACCEPTED, receipt.to_json()))
    }

    /// Sends a message to one user, once if it has a key.
    fn tell_one(
        &self,
        user: UserId,
        body: Body,
        query: TellQuery,
        once: Option<&str>,
        origin: Origin,
    ) -> Result<(Receipt, Ticket), Problem> {
        self.check_size(body.size())?;
        let key_bytes_max = self.node.config.groups.name_bytes_max;
        if let Some(key) = query.collapse_key.as_deref()
            && !(1..=key_bytes_max.get()).contains(&key.len())
        {
            let detail = format!("a collapse key has 1 to {key_bytes_max} bytes, and this one has {} (groups.name_bytes_max)", key.len());
            return Err(Problem::new(StatusCode::BAD_REQUEST, "collapse_key", detail));
        }
        let terms = Terms {
            time_to_live: query.ttl_ms.map(Duration::from_millis),
            keep: query.keep_ms.map(Duration::from_millis),
            collapse_key: query.collapse_key.map(Arc::from),
            ..Terms::default()
        };
        self.node.store.admit()?;
        let (mut receipt, ticket) = self.node.dispatch.tell(user, body, terms, once, origin).map_err(under_way)?;
        receipt.stored = self.node.store.stored().map(Into::into);
        Ok((receipt, ticket))
    }

    fn check_size(&self, bytes: usize) -> Result<(), Problem> {
        let max = self.limits().event_bytes_max;
        let detail = || format!("the message has {bytes} bytes, over the limit of {max} (events.event_bytes_max)");
        if bytes > max.get() { Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "event_too_large", detail())) } else { Ok(()) }
    }

    fn limits(&self) -> &config::Events {
        &self.node.config.events
    }
}

/// Returns the key by which a message is sent once: the same key for the same user again, within the window, does nothing.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    // A walk over a request's few names costs less than hashing this one.
    if !headers.keys().any(|name| *name == IDEMPOTENCY_KEY) {
        return Ok(None);
    }
    let Some(key) = headers.get(&IDEMPOTENCY_KEY) else { return Ok(None) };
    let wrong = |detail: &str| Problem::new(StatusCode::BAD_REQUEST, "idempotency_key", format!("Idempotency-Key: {detail}"));
    if headers.get_all(&IDEMPOTENCY_KEY).iter().count() > 1 {
        return Err(wrong("send it once"));
    }
    let key = key.to_str().map_err(|_| wrong("use printable ASCII characters"))?.trim();
    // The draft of the header's standard has it in quotes; most clients leave them out.
    let key = key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key);
    if key.is_empty() {
        return Err(wrong("it is empty"));
    }
    event::check_attribute("Idempotency-Key", key).map_err(|detail| wrong(&detail))?;
    Ok(Some(key.to_owned()))
}

impl From<NotStored> for Problem {
    fn from(error: NotStored) -> Problem {
        let code = match error {
            NotStored::Behind(_) => "store_behind",
            NotStored::Full => "store_full",
            NotStored::Late(_) => "store_late",
            NotStored::Failed => "store_failed",
            NotStored::NoLeader => "no_leader",
            NotStored::Unreachable => "nats_unreachable",
            NotStored::CatchingUp => "catching_up",
        };
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, error.to_string())
    }
}

impl From<NotForwarded> for Problem {
    fn from(error: NotForwarded) -> Problem {
        match error {
            NotForwarded::NotStored(why) => why.into(),
            NotForwarded::TooLarge(most) => {
                let detail = format!(
                    "the body is over the {most} bytes that a node can pass on to the one that leads: send less at a time, or raise max_payload \
                     of the NATS servers"
                );
                Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
            }
        }
    }
}

impl From<Incomplete> for Problem {
    fn from(_: Incomplete) -> Problem {
        let detail = "a policy can't be loaded, and nobody is served without it: the server's log and GET policies say which, and why";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "policy_missing", detail)
    }
}

fn under_way(UnderWay: UnderWay) -> Problem {
    let detail = "the same event is being published by another request at this moment; try again for its outcome";
    Problem::new(StatusCode::CONFLICT, "under_way", detail)
}

/// Returns what a query string says. A misspelt dry run must not be a real one, so unknown names are refused.
fn query<T: Default + DeserializeOwned>(uri: &Uri, known: &str) -> Result<T, Problem> {
    if uri.query().is_none() {
        return Ok(T::default());
    }
    let query = Query::try_from_uri(uri).map(|Query(query)| query);
    query.map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "query", format!("{}; {known}", error.body_text())))
}

impl Ingress {
    /// Publishes one event, or in a dry run returns what would happen to it. `budget`: what the answer has left for explanations.
    async fn dispatch(&self, parsed: Parsed, query: PublishQuery, budget: &mut Budget) -> Result<(Item, Option<Ticket>), Problem> {
        let Parsed { event, id_given } = parsed;
        let policies = &self.node.policies;
        let _permit = policies.permit(policies.current().wanting(Role::Routing, &event.event_type)).await;
        if query.dry_run {
            return Ok((Item::Explained(Box::new(self.node.look(&event, budget))), None));
        }
        self.node.store.admit()?;
        let (mut story, ticket) = self.node.dispatch.publish(event, id_given).map_err(under_way)?;
        story.receipt.stored = self.node.store.stored().map(Into::into);
        if query.explain {
            let explained = Explained::of(&story, &self.node.dispatch, &self.node.format, false, budget);
            return Ok((Item::Explained(Box::new(explained)), Some(ticket)));
        }
        Ok((Item::Receipt(Box::new(story.receipt)), Some(ticket)))
    }

    fn rejected(&self) {
        self.node.metrics.event(EventOutcome::Rejected);
    }

    async fn read(&self, headers: &HeaderMap, body: Incoming) -> Result<Whole<'_>, Problem> {
        self.bodies.read(headers, body, (self.limits().body_bytes_max.get(), "events.body_bytes_max")).await
    }
}

fn answer<T: Serialize>(status: StatusCode, answer: &T) -> Answer {
    let mut json = Vec::with_capacity(RECEIPT_BYTES);
    // Receipts are structs of strings and numbers: serializing them can't fail.
    let _ = serde_json::to_writer(&mut json, answer);
    (status, json)
}
