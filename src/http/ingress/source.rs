//! Events that come without a producer who waits for an answer, as those from NATS: what can't be read, and what no policy wants, is a dead letter.

use http::StatusCode;

use super::cloudevents::{self, Parsed};
use super::{Ingress, PublishQuery};
use crate::cluster::{Fate, Taken};
use crate::explain::Budget;
use crate::net::problem::Problem;
use crate::net::turns::Turns;
use crate::policy::Role;
use crate::store::Ticket;
use crate::types::event::{Body, Event};
use crate::types::origin::Origin;

impl Ingress {
    /// Publishes events in their order, and returns what became of each. After the first one that has to wait, all wait.
    pub async fn publish_taken(&self, taken: Vec<Taken>) -> Vec<Fate> {
        let mut fates = Vec::with_capacity(taken.len());
        let mut last = None;
        let mut turns = Turns::default();
        for one in &taken {
            turns.take().await;
            match self.publish_one(one).await {
                Ok((fate, ticket)) => {
                    fates.push(fate);
                    last = Some(ticket);
                }
                Err(problem) => {
                    tracing::debug!("an event from NATS has to wait: {}", problem.detail);
                    break;
                }
            }
        }
        // What was handed over last is stored last.
        let are_stored = match last {
            Some(last) => last.stored().await.is_ok(),
            None => true,
        };
        if !are_stored {
            fates.clear();
        }
        fates.resize(taken.len(), Fate::Later);
        fates
    }

    /// Publishes an event, or keeps it as a dead letter.
    ///
    /// # Errors
    /// It has to wait.
    async fn publish_one(&self, taken: &Taken) -> Result<(Fate, Ticket), Problem> {
        self.node.policies.check()?;
        self.node.store.admit()?;
        let keep = |event: Event, reason: String| (Fate::Untaken, self.node.dispatch.keep_untaken(event, reason));
        let parsed = match self.read_taken(taken) {
            Ok(parsed) => parsed,
            Err(problem) => {
                self.rejected();
                return Ok(keep(unread(taken), problem.detail));
            }
        };
        let event = &parsed.event;
        let is_wanted = self.node.policies.current().wanting(Role::Routing, &event.event_type).next().is_some();
        // Sinks hear of it all the same.
        let letter = (!is_wanted).then(|| event.clone());
        let (_, ticket) = self.dispatch(parsed, PublishQuery::default(), &mut Budget::default()).await?;
        Ok(match letter {
            Some(event) => {
                let reason = format!("no policy wants events of the type {:?}", event.event_type);
                keep(event, reason)
            }
            None => (Fate::Published, ticket.unwrap_or_else(Ticket::none)),
        })
    }

    fn read_taken(&self, taken: &Taken) -> Result<Parsed, Problem> {
        match cloudevents::read(&taken.headers, &taken.payload, self.limits())? {
            cloudevents::Request::One(mut parsed) => {
                if !parsed.id_given {
                    // It may come again.
                    parsed = Parsed { event: Event { id: taken.id.clone(), ..parsed.event }, id_given: true };
                }
                Ok(parsed)
            }
            cloudevents::Request::Batch(_) => {
                Err(Problem::new(StatusCode::BAD_REQUEST, "event_format", "a message of NATS has one event, and this one has a batch"))
            }
        }
    }
}

/// Returns an event that holds what could not be read.
fn unread(taken: &Taken) -> Event {
    let data = match std::str::from_utf8(&taken.payload) {
        Ok(text) => Body::Text(text.to_owned()),
        Err(_) => Body::Binary(taken.payload.to_vec()),
    };
    Event {
        id: taken.id.clone(),
        source: "nats".to_owned(),
        event_type: "unread".to_owned(),
        subject: None,
        time: None,
        content_type: "application/octet-stream".to_owned(),
        extensions: Vec::new(),
        data: Some(data),
        origin: Origin::default(),
    }
}
