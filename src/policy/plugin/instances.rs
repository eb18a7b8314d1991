//! The instances of one plugin: made from its compiled code when needed, and kept from call to call until they have to be replaced.

use std::sync::Arc;

use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use wasmtime::Store;
use wasmtime::component::{InstancePre, Linker};

use super::aside;
use crate::config::{self, Isolation};
use crate::model::record::Changes;
use crate::model::world::World;
use crate::policy::bindings::{formatting, plugin, routing, sessions};
use crate::policy::compile::Compiled;
use crate::policy::contract::Role;
use crate::policy::engine::{Deadline, HANDLES_MAX};
use crate::policy::fault::{chain, creation_defect, defect};
use crate::policy::host::{Host, Shared, Trial, link};
use crate::policy::load_error::LoadError;
use crate::policy::ticker::{EpochTicker, InUse};
use crate::types::fault::{Defect, FaultKind};

/// The pool of one plugin's instances.
pub(super) struct Instances {
    code: Arc<Code>,
    pub(super) shared: Arc<Shared>,
    pub(super) idle: Mutex<Idle>,
}

/// Instances that wait for a call. The one that was used last is used next, so that the others are not needed and can go.
#[derive(Default)]
pub(super) struct Idle {
    pub(super) instances: Vec<Instance>,
    /// The least number of instances since the pool was last shrunk: that many were not needed.
    spare: usize,
}

/// What all instances share: compiled and linked once.
struct Code {
    ticker: EpochTicker,
    pre: InstancePre<Host>,
    settings: String,
    /// What people are shown: the values may be secrets.
    setting_names: String,
    exports: Exports,
    isolation: Isolation,
}

struct Exports {
    plugin: plugin::GuestIndices,
    routing: Option<routing::GuestIndices>,
    formatting: Option<formatting::GuestIndices>,
    sessions: Option<sessions::GuestIndices>,
}

/// An instance. Outside the pool it holds an `InUse` guard, so that the epoch ticker runs and its deadlines are enforced.
pub(super) struct Instance {
    /// `None` while the instance is idle.
    in_use: Option<InUse>,
    pub(super) store: Store<Host>,
    plugin: plugin::Guest,
    pub(super) routing: Option<routing::Guest>,
    pub(super) formatting: Option<formatting::Guest>,
    pub(super) sessions: Option<sessions::Guest>,
    calls: u64,
}

impl Instances {
    pub(super) fn new(
        ticker: &EpochTicker,
        component: &Compiled,
        config: &config::Policy,
        shared: Arc<Shared>,
        roles: &[Role],
    ) -> Result<Instances, LoadError> {
        let settings = serde_json::to_string(&config.settings).map_err(LoadError::Settings)?;
        let setting_names = config.settings.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let engine = &ticker.engine;
        let mut linker = Linker::new(engine);
        link(&mut linker, &config.grants, engine, component.component()).map_err(LoadError::Link)?;
        component.link(&mut linker).map_err(LoadError::Link)?;
        let pre = linker.instantiate_pre(component.component()).map_err(LoadError::Unfit)?;
        let wrong = LoadError::UnfitExport;
        let has = |role| roles.contains(&role);
        let exports = Exports {
            plugin: plugin::GuestIndices::new(&pre).map_err(wrong)?,
            routing: has(Role::Routing).then(|| routing::GuestIndices::new(&pre)).transpose().map_err(wrong)?,
            formatting: has(Role::Formatting).then(|| formatting::GuestIndices::new(&pre)).transpose().map_err(wrong)?,
            sessions: has(Role::Sessions).then(|| sessions::GuestIndices::new(&pre)).transpose().map_err(wrong)?,
        };
        let isolation = config.isolation;
        let code = Arc::new(Code { ticker: ticker.clone(), pre, settings, setting_names, exports, isolation });
        Ok(Instances { code, shared, idle: Mutex::default() })
    }

    /// Returns the digest of the settings. They themselves may be secrets.
    pub(super) fn settings_digest(&self) -> Arc<str> {
        HEXLOWER.encode(&Sha256::digest(self.code.settings.as_bytes())).into()
    }

    /// Makes the first instance, and checks that it accepts its settings. Returns what it reports about itself.
    pub(super) fn probe(&self) -> Result<(plugin::Description, Vec<String>, Instance), LoadError> {
        // State that the plugin writes while it is configured is kept, as in a call. No store keeps it: each start configures anew.
        let probe = |world: &mut World| {
            let (description, mut instance) = self.describe()?;
            std::mem::swap(&mut instance.store.data_mut().world, world);
            let vary = self.configure(&mut instance);
            std::mem::swap(&mut instance.store.data_mut().world, world);
            let vary = vary.inspect_err(|_| *world = World::live(&self.shared.model))?;
            Ok((description, vary, instance))
        };
        match self.shared.trial {
            Trial::No => self.shared.model.transact(Changes::forgotten, probe, |_, _| ()).0,
            // A candidate changes nothing.
            Trial::Candidate => probe(&mut World::dry(&self.shared.model)),
        }
    }

    pub(super) fn describe(&self) -> Result<(plugin::Description, Instance), LoadError> {
        let mut instance = self.instantiate().map_err(LoadError::fault("creating an instance"))?;
        instance.begin(Deadline::configure(&self.shared.limits));
        let description = instance.plugin.call_describe(&mut instance.store);
        let description = description.map_err(|error| defect(&error, instance.store.data())).map_err(LoadError::fault("describe"))?;
        Ok((description, instance))
    }

    /// Configures an instance, and returns the attributes that its formatting depends on.
    pub(super) fn configure(&self, instance: &mut Instance) -> Result<Vec<String>, LoadError> {
        instance.begin(Deadline::configure(&self.shared.limits));
        let configured = instance.plugin.call_configure(&mut instance.store, &self.code.settings);
        let configured = configured.map_err(|error| defect(&error, instance.store.data())).map_err(LoadError::fault("configure"))?;
        configured.map_err(|reason| LoadError::SettingsRefused { names: self.code.setting_names.clone(), reason })?;
        let mut vary = Vec::new();
        instance.begin(Deadline::configure(&self.shared.limits));
        if let Some(formatting) = &instance.formatting {
            let answer = formatting.call_vary(&mut instance.store);
            vary = answer.map_err(|error| defect(&error, instance.store.data())).map_err(LoadError::fault("vary"))?;
        }
        Ok(vary)
    }

    /// Returns an idle instance, or a new one that is configured in this world.
    pub(super) fn take(&self, world: &mut World) -> Result<Instance, Defect> {
        // Making one may take long, and others have their turn meanwhile.
        let Some(mut instance) = self.idle.lock().take() else { return aside(|| self.fresh(world)) };
        instance.in_use = Some(self.code.ticker.in_use());
        Ok(instance)
    }

    /// Returns a new instance, configured in this world.
    pub(super) fn fresh(&self, world: &mut World) -> Result<Instance, Defect> {
        let mut instance = self.instantiate().map_err(|defect| defect.during("creating a new instance"))?;
        std::mem::swap(&mut instance.store.data_mut().world, world);
        instance.begin(Deadline::configure(&self.shared.limits));
        let configured = instance.plugin.call_configure(&mut instance.store, &self.code.settings);
        std::mem::swap(&mut instance.store.data_mut().world, world);
        if !matches!(configured, Ok(Ok(()))) {
            world.drop_call();
        }
        let failed = |error| defect(&error, instance.store.data()).during("configuring a new instance");
        match configured.map_err(failed)? {
            Ok(()) => Ok(instance),
            Err(reason) => {
                let detail = format!("it accepted its settings when it was loaded and refuses them now: {reason}");
                Err(Defect::new(FaultKind::Output, &detail))
            }
        }
    }

    pub(super) fn give_back(&self, mut instance: Instance) {
        instance.calls += 1;
        let limits = &self.shared.limits;
        let worn = instance.calls >= limits.calls_per_instance_max.get()
            || instance.store.data().growth.memory_bytes() > limits.instance_kept_bytes_max.get();
        if !worn && self.code.isolation == Isolation::Reuse {
            instance.in_use = None;
            let mut idle = self.idle.lock();
            if idle.instances.len() < limits.instances_idle_max.get() {
                idle.instances.push(instance);
            }
        }
    }

    /// Drops the idle instances that were not needed since the last time, but one.
    pub(super) fn shrink(&self) {
        let mut idle = self.idle.lock();
        let spare = idle.spare.min(idle.instances.len().saturating_sub(1));
        let gone: Vec<Instance> = idle.instances.drain(..spare).collect();
        idle.spare = idle.instances.len();
        drop(idle);
        drop(gone);
    }

    fn instantiate(&self) -> Result<Instance, Defect> {
        let in_use = Some(self.code.ticker.in_use());
        let mut store = Store::new(&self.code.ticker.engine, Host::new(self.shared.clone()));
        store.limiter(|host| &mut host.growth);
        store.set_hostcall_fuel(self.shared.limits.output_bytes_max.get());
        store.set_max_component_handles(HANDLES_MAX);
        store.data_mut().begin(Deadline::configure(&self.shared.limits));
        store.set_epoch_deadline(Deadline::FIRST_LOOK_TICKS);
        store.epoch_deadline_callback(|mut context| Ok(context.data_mut().deadline.look()));
        let instance = self.code.pre.instantiate(&mut store).map_err(|error| creation_defect(&error, store.data()))?;
        let loaded = |error: wasmtime::Error| Defect::new(FaultKind::Trap, &chain(&error));
        let exports = &self.code.exports;
        Ok(Instance {
            plugin: exports.plugin.load(&mut store, &instance).map_err(loaded)?,
            routing: exports.routing.as_ref().map(|indices| indices.load(&mut store, &instance)).transpose().map_err(loaded)?,
            formatting: exports.formatting.as_ref().map(|indices| indices.load(&mut store, &instance)).transpose().map_err(loaded)?,
            sessions: exports.sessions.as_ref().map(|indices| indices.load(&mut store, &instance)).transpose().map_err(loaded)?,
            in_use,
            store,
            calls: 0,
        })
    }
}

impl Idle {
    fn take(&mut self) -> Option<Instance> {
        let taken = self.instances.pop();
        self.spare = self.spare.min(self.instances.len());
        taken
    }
}

impl std::fmt::Debug for Instances {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instances").field("settings", &self.code.setting_names).finish_non_exhaustive()
    }
}

impl Instance {
    /// Begins a call.
    pub(super) fn begin(&mut self, deadline: Deadline) {
        self.store.data_mut().begin(deadline);
        self.store.set_epoch_deadline(Deadline::FIRST_LOOK_TICKS);
    }
}
