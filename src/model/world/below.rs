//! What is below the changes of a request: the model, or a tape.

use std::ops::Deref;
use std::sync::Arc;

use parking_lot::RwLockReadGuard;

use super::tape::Known;
use crate::model::Model;
use crate::model::groups::Groups;
use crate::model::state::States;

/// What is below the changes of a request.
#[derive(Debug)]
pub enum Below {
    Model(Arc<Model>),
    Tape(Box<Known>),
}

/// State or groups that may be read: the model's under their lock, or a tape's.
pub enum Readable<'a, T> {
    Locked(RwLockReadGuard<'a, T>),
    Known(&'a T),
}

impl<T> Deref for Readable<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self {
            Readable::Locked(guard) => guard,
            Readable::Known(known) => known,
        }
    }
}

impl Below {
    pub fn states(&self) -> Readable<'_, States> {
        match self {
            Below::Model(model) => Readable::Locked(model.states.read()),
            Below::Tape(known) => Readable::Known(&known.states),
        }
    }

    pub fn groups(&self) -> Readable<'_, Groups> {
        match self {
            Below::Model(model) => Readable::Locked(model.groups.read()),
            Below::Tape(known) => Readable::Known(&known.groups),
        }
    }
}
