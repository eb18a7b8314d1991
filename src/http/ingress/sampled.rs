//! The span of a sampled request, or of a part of a stream's frame.

use std::time::Instant;

use http::HeaderMap;

use super::cloudevents::Parsed;
use super::frame::Tell;
use super::{Answer, Item};
use crate::dispatch::Receipt;
use crate::net::problem::{Document, Problem};
use crate::traces::{Attribute, LINKS_MAX, Root, Said, Traces};
use crate::types::event::Event;
use crate::types::origin::TraceParent;

/// CloudEvents' attribute of the distributed tracing extension: where the event began, which may be long before this request.
const TRACEPARENT: &str = "traceparent";

/// A request that may be sampled.
pub(super) type Traced<'a> = Option<Box<Sampled<'a>>>;

/// A request, or a part of a frame of a stream, that is sampled, and what its span will say.
pub(super) struct Sampled<'a> {
    traces: &'a Traces,
    pub root: Root,
    said: Said,
    /// The name of a span that is not a request's.
    name: &'static str,
}

impl<'a> Sampled<'a> {
    /// Returns a request as one that is sampled, if it is.
    pub fn of(traces: &'a Traces, headers: &HeaderMap, began: Instant) -> Traced<'a> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let root = traces.begin(text(TRACEPARENT), text("tracestate"), began)?;
        Some(Box::new(Sampled { traces, root, said: Said { attributes: Vec::with_capacity(12), ..Said::default() }, name: "" }))
    }

    /// Returns an event of a stream as one that is sampled, if it is. Frames have no headers, so its own attributes name its parent.
    pub fn of_event(traces: &'a Traces, event: &Event, began: Instant) -> Traced<'a> {
        let text = |name| event.extensions.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let root = traces.begin(text(TRACEPARENT), text("tracestate"), began)?;
        let mut sampled = Box::new(Sampled { traces, root, said: Said::default(), name: "publish" });
        sampled.event(event);
        Some(sampled)
    }

    /// Returns a message of a stream to one user as one that is sampled, if it is.
    pub fn of_tell(traces: &'a Traces, tell: &Tell, began: Instant) -> Traced<'a> {
        let root = traces.begin(tell.traceparent.as_deref(), tell.tracestate.as_deref(), began)?;
        Some(Box::new(Sampled { traces, root, said: Said::default(), name: "tell" }))
    }

    /// Says how a part of a frame of a stream is answered.
    pub fn answer(&mut self, item: &Item) {
        match item {
            Item::Receipt(receipt) => self.receipt(receipt),
            Item::Problem(document) => self.problem(document),
            // A stream asks for none.
            Item::Explained(_) => {}
        }
    }

    pub fn problem(&mut self, document: &Document) {
        self.said.attributes.push(Attribute::new("error.type", document.code()));
        self.said.error = document.is_of_server().then(|| document.code().into());
    }

    /// Makes the span of a part of a stream's frame, which is answered now.
    pub fn streamed(self) {
        let Sampled { traces, root, said, name } = self;
        traces.end(&root, name, || said);
    }

    /// Says which event the request publishes.
    pub fn event(&mut self, event: &Event) {
        self.said.attributes.extend([
            Attribute::new("cloudevents.event_id", event.id.clone()),
            Attribute::new("cloudevents.event_source", event.source.clone()),
            Attribute::new("cloudevents.event_type", event.event_type.clone()),
        ]);
        self.link(event);
    }

    /// Says how many events the request publishes.
    pub fn batch(&mut self, events: &[Result<Parsed, Problem>]) {
        self.number("messaging.batch.message_count", events.len());
        events.iter().flatten().for_each(|parsed| self.link(&parsed.event));
    }

    /// Says what became of the event.
    pub fn receipt(&mut self, receipt: &Receipt) {
        self.number("signalpost.recipients", receipt.recipients);
        self.number("signalpost.posted", receipt.posted);
        let untraced = self.traces.without_span(receipt.posted);
        if untraced > 0 {
            self.number("signalpost.posted_without_span", untraced);
        }
        if receipt.duplicate {
            self.said.attributes.push(Attribute::new("signalpost.duplicate", true));
        }
    }

    /// Makes the span.
    pub fn end(self, route: &str, answer: &Result<Answer, Problem>) {
        let Sampled { traces, root, mut said, .. } = self;
        traces.end(&root, format!("POST {route}"), || {
            let status = match answer {
                Ok((status, _)) => *status,
                Err(problem) => {
                    said.attributes.push(Attribute::new("error.type", problem.code));
                    said.error = problem.status.is_server_error().then(|| problem.detail.clone().into());
                    problem.status
                }
            };
            said.attributes.extend([
                Attribute::new("http.request.method", "POST"),
                Attribute::new("http.route", route.to_owned()),
                Attribute::new("http.response.status_code", i64::from(status.as_u16())),
            ]);
            said
        });
    }

    fn number(&mut self, name: &'static str, number: usize) {
        self.said.attributes.push(Attribute::new(name, i64::try_from(number).unwrap_or(i64::MAX)));
    }

    /// Links the span with where an event began, if that is another trace.
    fn link(&mut self, event: &Event) {
        let said = event.extensions.iter().find(|(name, _)| name == TRACEPARENT);
        let parent = said.and_then(|(_, value)| TraceParent::parse(value));
        if let Some(parent) = parent.filter(|parent| !self.root.is_below(parent))
            && self.said.links.len() < LINKS_MAX
        {
            self.said.links.push(parent);
        }
    }
}
