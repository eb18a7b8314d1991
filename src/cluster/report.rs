//! What a node tells the one that leads: what its readers have read, which sessions are over, and letters of formatting policies. In order, and at
//! least once: what is not answered is told again, to whoever leads then.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::ask::NotTold;
use super::member::Member;
use super::wire::{self, Ask, Report, Told};
use crate::model::record::Change;
use crate::registry::SessionHandle;

/// Bytes of one request's reports, about. Well below the 1 MiB that a NATS server takes by default.
const REQUEST_BYTES: usize = 128 << 10;

/// What waits to be told.
#[derive(Debug, Default)]
pub struct Reports {
    waiting: Mutex<VecDeque<Report>>,
    /// Notified if it should not wait for the next round.
    urgent: Notify,
}

impl Reports {
    /// Adds a session that is over.
    pub fn closed(&self, handle: &SessionHandle, node: &Arc<str>, code: u16) {
        self.waiting.lock().push_back(Report::Closed(wire::session(handle.info(node)), code));
        self.urgent.notify_one();
    }

    /// Takes the first ones, as many as fit into a request.
    fn take(&self) -> Vec<Report> {
        let mut waiting = self.waiting.lock();
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while bytes < REQUEST_BYTES
            && let Some(report) = waiting.pop_front()
        {
            bytes += report.size();
            taken.push(report);
        }
        taken
    }

    fn put_back(&self, reports: Vec<Report>) {
        let mut waiting = self.waiting.lock();
        reports.into_iter().rev().for_each(|report| waiting.push_front(report));
    }
}

impl Member {
    /// Tells the node that leads, again and again.
    pub(super) async fn keep_telling(self: Arc<Member>) {
        let every = *self.config.reads_interval_ms;
        loop {
            let next = Instant::now() + every;
            let _ = timeout_at(next, self.reports.urgent.notified()).await;
            if self.follows() && !self.tell_waiting().await {
                tokio::time::sleep(every).await;
            }
        }
    }

    /// Tells all that waits. Returns whether nothing is left.
    pub(super) async fn tell_waiting(&self) -> bool {
        let mut reports: Vec<Report> = self.model.mailboxes.take_reads().into_iter().map(Report::read).collect();
        let letters = self.stream.take_letters().into_iter();
        reports.extend(letters.map(|letter| Report::Letter(wire::records(&Change::Letter { stamp: 0, letter: Arc::new(letter) }))));
        // What was read is told before its readers leave.
        self.reports.put_back(reports);
        loop {
            let reports = self.reports.take();
            if reports.is_empty() {
                return true;
            }
            let ask = Ask::Reports(reports.clone());
            match self.ask(&ask, *self.config.ask_deadline_ms).await {
                Ok(Told::Done) => {}
                Err(NotTold::Mine) => {
                    // This node leads since: the same is done here.
                    self.tell_myself(reports).await;
                }
                Ok(_) | Err(NotTold::Not(_)) => {
                    self.reports.put_back(reports);
                    return false;
                }
            }
        }
    }
}
