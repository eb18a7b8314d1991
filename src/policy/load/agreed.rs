//! The policies of a cluster: what a node proposes to the others, which is what its folder has, and what all of them have agreed on, which it takes
//! together or not at all.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Again, Loader, Reload, Setup, set};
use crate::config::{Config, OnBad};
use crate::model::agreement::{Agreed, Component};
use crate::policy::source::{Folder, Source};
use crate::policy::{Policies, Policy, PolicySet};
use crate::types::delivery::PolicySetId;

/// What a node proposes.
#[derive(Debug)]
pub struct Proposal {
    /// The id of the set, with this node's settings.
    pub id: PolicySetId,
    /// In order, each with the file that has it.
    pub components: Vec<(Component, PathBuf)>,
}

impl Proposal {
    /// Returns whether it is what the nodes have agreed on.
    pub fn is(&self, agreed: &Agreed) -> bool {
        self.id == agreed.id && self.components.iter().map(|(component, _)| component).eq(&agreed.components)
    }
}

impl Agreed {
    /// Returns whether these are its policies, in its order.
    pub fn is(&self, set: &PolicySet) -> bool {
        let is_same =
            |(component, policy): (&Component, &Arc<Policy>)| *component.name == *policy.name && *component.digest == *policy.digest;
        self.components.len() == set.policies.len() && self.components.iter().zip(&set.policies).all(is_same)
    }
}

impl Loader {
    /// Loads what the folder has, with the next configuration if there is one, and returns it. Nothing else changes. `None` if it has no plugin: such a
    /// node has those of the others, also those that its configuration names. `is_first`: the nodes have nothing yet, so what is refused is left
    /// out if the configuration says so, and a folder without plugins is proposed too.
    ///
    /// # Errors
    /// A file is refused, or the folder can't be listed.
    pub fn propose(
        &self,
        policies: &Policies,
        again: Again,
        next: Option<&Arc<Config>>,
        is_first: bool,
    ) -> Result<Option<Proposal>, Reload> {
        let config = next.cloned().unwrap_or_else(|| self.config());
        let setup = Setup::new(config);
        if !is_first && setup.source.folder().is_empty() {
            return Ok(None);
        }
        loop {
            let current = policies.current();
            let (turn, _) = self.look(&setup, policies, &current, (again, next.is_some()))?;
            if turn.refused.is_empty() || (is_first && setup.config.plugins.on_bad == OnBad::Skip) {
                for skipped in &turn.refused {
                    tracing::error!("plugin skipped: {}", skipped.sentence());
                }
                let set = set(&setup, 0, turn.next);
                let components = set.policies.iter().map(|policy| (policy.component(), policy.file.clone()));
                return Ok(Some(Proposal { id: set.id, components: components.collect() }));
            }
            // Says why, and changes nothing else.
            if let Some(refused) = self.finish(policies, &current, &setup, turn) {
                return Err(refused);
            }
        }
    }

    /// Brings the policies up to date with what the nodes have agreed on, and with the next configuration if there is one. `fetched`: components
    /// that are [missing](Loader::missing), by their digests.
    pub fn take(&self, policies: &Policies, agreed: &Arc<Agreed>, fetched: HashMap<String, Vec<u8>>, next: Option<Arc<Config>>) -> Reload {
        let is_next = next.is_some();
        let config = next.unwrap_or_else(|| self.config());
        let setup = |fetched| Setup {
            source: Source::Agreed { folder: Folder::new(&config), agreed: agreed.clone(), fetched },
            config: config.clone(),
        };
        let whole = setup(fetched);
        loop {
            // A policy may be rolled back while components are compiled.
            if let Some(outcome) = self.reload_once(policies, Again::All, &whole, is_next) {
                if let Reload::Unchanged | Reload::Swapped { .. } = outcome {
                    // What was fetched is compiled by now.
                    self.setup.store(Arc::new(setup(HashMap::new())));
                }
                return outcome;
            }
        }
    }

    /// Returns the components that this node has to fetch: they neither serve nor are in the folder.
    pub fn missing(&self, policies: &Policies, agreed: &Agreed) -> Vec<Component> {
        let (setup, current) = (self.setup.load(), policies.current());
        let folder = setup.source.folder();
        let serves = |component: &Component| current.find(&component.name).is_some_and(|policy| *policy.digest == *component.digest);
        let is_in_folder = |component: &Component| {
            let file = folder.file(&component.name);
            file.and_then(|file| folder.read(&file).ok()).is_some_and(|content| content.digest == component.digest)
        };
        agreed.components.iter().filter(|component| !serves(component) && !is_in_folder(component)).cloned().collect()
    }

    /// Returns what the folder has now, by name; `None` if it can't be listed.
    pub fn folder(&self) -> Option<Vec<(String, Option<String>)>> {
        let setup = self.setup.load();
        let folder = setup.source.folder();
        let files = folder.files().ok()?;
        Some(files.into_iter().map(|(name, file)| (name, folder.read(&file).ok().map(|content| content.digest))).collect())
    }

    /// Returns the bytes of a component whose file is this; `None` if the file has changed since.
    pub fn component(&self, digest: &str, file: &Path) -> Option<Vec<u8>> {
        let content = self.setup.load().source.folder().read(file).ok()?;
        (content.digest == digest).then_some(content.bytes)
    }
}
