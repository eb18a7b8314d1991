//! Introspection of a plugin, apart from any event: what it reports about itself, and what an instance costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Instances, Policy};
use crate::config;
use crate::model::world::World;
use crate::policy::compile::Compiled;
use crate::policy::contract::{check_description, check_exports, check_vary};
use crate::policy::host::Shared;
use crate::policy::ticker::EpochTicker;
use crate::policy::{LoadError, Role};
use crate::types::fault::Defect;

/// What a plugin reports about itself.
#[derive(Debug)]
pub struct Introspection {
    pub roles: Vec<Role>,
    pub name: String,
    pub version: String,
    pub events: Vec<String>,
    /// The attributes that its formatting depends on, or why it can't say: it may need its settings first.
    pub vary: Result<Vec<String>, LoadError>,
}

impl Policy {
    /// Calls a plugin's `describe`, `configure` and `vary`. A plugin that refuses its settings is still described.
    ///
    /// # Errors
    /// The component does not keep the contract, or faults.
    pub fn ask(
        ticker: &EpochTicker,
        component: &Compiled,
        config: &config::Policy,
        shared: Arc<Shared>,
    ) -> Result<Introspection, LoadError> {
        let roles = check_exports(&ticker.engine, component)?;
        let instances = Instances::new(ticker, component, config, shared, &roles)?;
        let (description, mut instance) = instances.describe()?;
        check_description(&description)?;
        let vary = instances.configure(&mut instance).and_then(|vary| Ok(check_vary(&vary).map(|()| vary)?));
        Ok(Introspection { roles, name: description.name, version: description.version, events: description.events, vary })
    }

    /// Returns the bytes of linear memory of the largest idle instance.
    pub fn instance_bytes(&self) -> usize {
        self.instances.idle.lock().instances.iter().map(|instance| instance.store.data().growth.memory_bytes()).max().unwrap_or_default()
    }

    /// Measures how long it takes to make and configure an instance.
    ///
    /// # Errors
    /// The instance could not be made.
    pub fn time_instance(&self) -> Result<Duration, Defect> {
        let started = Instant::now();
        let instance = self.instances.fresh(&mut World::dry(&self.instances.shared.model))?;
        let took = started.elapsed();
        drop(instance);
        Ok(took)
    }
}
