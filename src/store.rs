//! The store: where a commit's changes become as durable as the configuration says. A closed set, so an enum: `Memory` keeps nothing
//! beyond the process.

use crate::model::record::Changes;

#[derive(Clone, Debug, Default)]
pub enum Store {
    #[default]
    Memory,
}

/// A commit that is on its way into the store.
#[derive(Debug)]
#[must_use = "what was answered is stored: wait for it before answering"]
pub struct Ticket(());

impl Store {
    /// Returns where the changes of a commit are noted.
    pub fn changes(&self) -> Changes {
        match self {
            Store::Memory => Changes::forgotten(),
        }
    }

    /// Hands over a commit. Never waits.
    pub fn append(&self, _changes: Changes) -> Ticket {
        match self {
            Store::Memory => Ticket(()),
        }
    }
}

impl Ticket {
    /// Waits until the commit is stored.
    pub async fn stored(self) {}
}
