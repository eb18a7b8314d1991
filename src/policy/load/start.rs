//! A start refuses what a reload would refuse, and serves the last good version instead, if the store has kept one (`kept`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Loader, Setup, set, warn};
use crate::policy::kept::Kept;
use crate::policy::source::Found;
use crate::policy::{Policy, PolicySet, Rejected};

impl Loader {
    /// Loads every plugin. If one is refused, its last good version serves. Returns the policies, and the files that were refused.
    pub fn load(&self) -> (PolicySet, Vec<Rejected>) {
        let setup = self.setup.load_full();
        let setup = &*setup;
        let mut policies = Vec::new();
        let mut rejected = Vec::new();
        let knows_nothing = self.kept.as_ref().is_none_or(Kept::is_empty);
        for (name, file) in self.files_at_start(setup) {
            let found = setup.source.found(&name, &file);
            let refused_before = self.kept.as_ref().zip(found.digest()).and_then(|(kept, digest)| kept.refusal(&name, digest));
            let refused = match refused_before {
                Some(reason) => Rejected::of(&found, reason, false),
                None => match self.policy(setup, &found) {
                    Ok(policy) => {
                        warn(&policy);
                        // Another version than the one that served is on trial, as after a reload.
                        if let Some(last) = self.last_good(setup, &found) {
                            policy.follows(&last);
                        }
                        policies.push(Arc::new(policy));
                        continue;
                    }
                    Err(error) => Rejected::because(&found, &error),
                },
            };
            let last = self.last_good(setup, &found);
            let has_served = self.kept.as_ref().is_some_and(|kept| kept.knows(&name));
            let is_missed = last.is_none() && (has_served || (knows_nothing && found.may_guard()));
            rejected.push(Rejected { must_serve: self.must_serve(setup, &name, last.is_some(), is_missed), ..refused });
            policies.extend(last);
        }
        policies.iter().for_each(|policy| self.keep(setup, policy));
        (set(setup, 1, policies), rejected)
    }

    /// Returns the files of a start. If they can't be listed, the policies that served last are not taken for removed.
    fn files_at_start(&self, setup: &Setup) -> BTreeMap<String, PathBuf> {
        let listed = setup.source.files();
        let Some(kept) = &self.kept else { return listed.unwrap_or_default() };
        match listed {
            Ok(files) => {
                kept.retain(|name| files.contains_key(name));
                files
            }
            Err(_) => kept.names().into_iter().filter_map(|name| Some((name.clone(), setup.source.folder().file(&name)?))).collect(),
        }
    }

    /// Loads the newest version of a plugin that has served and that is not this one. If it was still on trial, it goes on with that.
    fn last_good(&self, setup: &Setup, found: &Found) -> Option<Arc<Policy>> {
        let name = &found.name;
        let others = self.kept.as_ref()?.others(name, found.digest());
        let whole = others.iter().map(|(digest, file)| (digest, setup.source.folder().found(name, file)));
        let mut whole = whole.filter(|(digest, kept)| kept.digest() == Some(digest.as_str()));
        let mut next = || whole.find_map(|(_, kept)| self.policy(setup, &kept).ok()).map(Arc::new);
        let last = next()?;
        if let Some(proven) = next() {
            last.follows(&proven);
        }
        Some(last)
    }
}
