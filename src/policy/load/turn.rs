//! What a reload finds out, file by file.

use std::sync::Arc;

use super::warn;
use crate::policy::source::Found;
use crate::policy::{LoadError, Policy, Rejected};

/// The outcome of one look at all files.
#[derive(Default)]
pub(super) struct Turn {
    pub(super) next: Vec<Arc<Policy>>,
    /// Files that were refused before.
    pub(super) still_rejected: Vec<Rejected>,
    pub(super) refused: Vec<Rejected>,
    pub(super) changed: Vec<String>,
}

impl Turn {
    /// Takes a policy that was loaded in place of the one that serves, or notes why it could not be.
    pub(super) fn take(&mut self, found: &Found, serving: Option<&Arc<Policy>>, loaded: Result<Policy, LoadError>) {
        self.changed.push(found.name.clone());
        match loaded {
            Ok(policy) => {
                warn(&policy);
                if let Some(old) = serving {
                    policy.follows(old);
                }
                self.next.push(Arc::new(policy));
            }
            Err(error) => self.refused.push(Rejected::because(found, &error)),
        }
    }

    /// Keeps the policy that serves, since its file is refused.
    pub(super) fn keeps(&mut self, serving: Option<&Arc<Policy>>, rejected: Rejected) {
        self.next.extend(serving.cloned());
        self.still_rejected.push(rejected);
    }
}
