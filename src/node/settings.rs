//! Reads the configuration again while the server runs. It takes effect whole or not at all, as far as it can without a restart; what can't is
//! named. Nobody's socket is touched.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::Mutex;

use super::Node;
use crate::auth::Auth;
use crate::config::{Config, Layers, Problems, Setting};
use crate::log;
use crate::policy::load::{Again, Reload};
use crate::sink::{self, Sinks};

/// The settings in force, and where to read them again.
#[derive(Debug)]
pub struct Settings {
    pub node: Arc<Node>,
    pub auth: Arc<Auth>,
    pub sinks: Arc<Sinks>,
    /// Held by a reload: there is one at a time.
    now: Mutex<Option<InForce>>,
}

#[derive(Debug)]
struct InForce {
    layers: Layers,
    config: Arc<Config>,
    settings: Vec<Setting>,
}

/// What a reload of the configuration changed. Values may be secrets, so only names are told.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
pub struct Changed {
    /// Settings that have another value now.
    pub changed: Vec<String>,
    /// Settings whose new value takes effect at the next start.
    pub after_a_restart: Vec<String>,
    /// Sinks that were added, changed or removed.
    #[serde(skip_serializing_if = "sink::Changed::is_empty")]
    pub sinks: sink::Changed,
}

impl Changed {
    pub fn is_empty(&self) -> bool {
        *self == Changed::default()
    }
}

/// How a reload ended.
#[derive(Debug)]
pub enum Outcome {
    /// The configuration is invalid, so that nothing has changed.
    Invalid(Problems),
    /// The policies were reloaded, or refused: then nothing has changed.
    Reloaded(Reload, Changed),
}

impl Settings {
    /// Takes what the server was started with. Without layers there is nothing to read again, and a reload reloads the policies alone.
    pub fn new(node: Arc<Node>, auth: Arc<Auth>, sinks: Arc<Sinks>, layers: Option<(Layers, Vec<Setting>)>) -> Settings {
        let now = layers.map(|(layers, settings)| InForce { layers, config: node.config.clone(), settings });
        Settings { node, auth, sinks, now: Mutex::new(now) }
    }

    /// Reads the configuration again and brings the policies up to date with it and with their files. Logs what has changed.
    pub async fn reload(&self) -> Outcome {
        let mut now = self.now.lock().await;
        let Some(in_force) = &mut *now else {
            return Outcome::Reloaded(self.node.reload(Again::All, None).await, Changed::default());
        };
        match self.read(in_force).await {
            Ok(outcome) => outcome,
            Err(error) => {
                let problems = error.downcast::<Problems>().unwrap_or_else(|error| Problems(vec![format!("{error:#}")]));
                for problem in &problems.0 {
                    tracing::error!("the configuration stays as it is: {problem}");
                }
                Outcome::Invalid(problems)
            }
        }
    }

    async fn read(&self, now: &mut InForce) -> anyhow::Result<Outcome> {
        let layers = now.layers.clone();
        let (next, settings) = tokio::task::spawn_blocking(move || layers.load()).await??;
        let differences = differences(&now.settings, &settings);
        let (live, after_a_restart): (Vec<&Setting>, Vec<&Setting>) = differences.into_iter().partition(|setting| setting.is_live());
        let names = |settings: &[&Setting]| settings.iter().map(|setting| setting.path.clone()).collect::<Vec<_>>();
        let mut changed = Changed { changed: names(&live), after_a_restart: names(&after_a_restart), sinks: sink::Changed::default() };
        if live.is_empty() && now.config.policies == next.policies {
            self.tell(&changed);
            return Ok(Outcome::Reloaded(self.node.reload(Again::All, None).await, changed));
        }
        let config = Arc::new(now.config.with_live(&next)?);
        // Everything that may fail comes first.
        let touches = |tables: &[&str]| live.iter().any(|setting| tables.iter().any(|table| setting.path.starts_with(table)));
        let rules = if touches(&["auth."]) { Some(self.auth.prepare(&config.auth).await?) } else { None };
        let sinks = if touches(&["sinks.", "sink_limits."]) { Some(self.prepare_sinks(&config).await?) } else { None };
        let outcome = self.node.reload(Again::All, Some(config.clone())).await;
        if matches!(outcome, Reload::Refused(_) | Reload::Unreadable(_)) {
            return Ok(Outcome::Reloaded(outcome, Changed::default()));
        }
        if let Some(rules) = rules {
            self.auth.replace(rules);
        }
        if let Some(sinks) = sinks {
            // A sink's mailbox is there before it hears anything, and hears nothing any more when it ends.
            self.node.model.mailboxes.set_sinks(&config);
            self.node.dispatch.follow(&config);
            changed.sinks = self.sinks.replace(sinks).await;
        }
        log::change(&config.log);
        self.note_exposure();
        self.tell(&changed);
        let kept = now.settings.iter().filter(|setting| !setting.is_live()).cloned();
        now.settings = settings.into_iter().filter(Setting::is_live).chain(kept).collect();
        now.config = config;
        Ok(Outcome::Reloaded(outcome, changed))
    }

    /// Reads the files of sinks that are new or different, on a thread that may block.
    async fn prepare_sinks(&self, config: &Arc<Config>) -> anyhow::Result<sink::Prepared> {
        let (sinks, config) = (self.sinks.clone(), config.clone());
        tokio::task::spawn_blocking(move || sinks.prepare(&config)).await?
    }

    /// Returns a sentence about what anybody may do without authentication, if other machines can reach the server.
    pub fn exposed(&self) -> Option<&'static str> {
        super::exposure::exposed(&self.node.config, &self.auth)
    }

    /// Says in the log and in a metric what anybody may do.
    pub fn note_exposure(&self) {
        let exposed = self.exposed();
        if let Some(who) = exposed {
            tracing::warn!("{who} (listen_beyond_loopback_without_authentication)");
        }
        self.node.metrics.exposed.set(exposed.is_some().into());
    }

    fn tell(&self, changed: &Changed) {
        if !changed.changed.is_empty() {
            tracing::info!("settings changed: {}", changed.changed.join(", "));
        }
        for (what, names) in [("added", &changed.sinks.added), ("changed", &changed.sinks.changed)] {
            names.iter().for_each(|sink| tracing::info!(sink, "sink {what}"));
        }
        if !changed.after_a_restart.is_empty() {
            tracing::warn!("settings that take effect at the next start: {}", changed.after_a_restart.join(", "));
        }
    }
}

/// Returns the settings whose values differ, or that only one of the two has, by name.
fn differences<'a>(before: &'a [Setting], after: &'a [Setting]) -> Vec<&'a Setting> {
    let values = |settings: &'a [Setting]| settings.iter().map(|setting| (&*setting.path, setting)).collect::<BTreeMap<&str, &Setting>>();
    let (before, after) = (values(before), values(after));
    let differs = |path: &str| before.get(path).map(|setting| &setting.value) != after.get(path).map(|setting| &setting.value);
    let all: BTreeMap<&str, &Setting> = before.iter().chain(&after).map(|(path, setting)| (*path, *setting)).collect();
    all.into_iter().filter(|(path, _)| differs(path)).map(|(_, setting)| setting).collect()
}
