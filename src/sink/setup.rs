//! What the configuration says about a sink, and how sinks follow another one while the server runs: prepared first, and then taken as a whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use serde::Serialize;

use super::secrets::{self, Secrets};
use super::{Sink, Sinks, Stop, finish};
use crate::config::{self, Config, SinkLimits};
use crate::net::client::Client;

/// What the configuration says about a sink.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub config: config::Sink,
    pub limits: SinkLimits,
    pub client: Arc<Client>,
    pub secrets: Arc<Secrets>,
}

/// The sinks of another configuration, by name. `None`: nothing is different.
#[derive(Debug)]
pub struct Prepared(pub(super) BTreeMap<String, Option<Setup>>);

/// Which sinks are different since the last configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Changed {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
}

impl Changed {
    pub fn is_empty(&self) -> bool {
        *self == Changed::default()
    }
}

impl Setup {
    fn new(name: &str, config: &config::Sink, limits: SinkLimits) -> anyhow::Result<Setup> {
        let client = Client::new(&config.url).with_context(|| format!("sinks.{name}.url"))?;
        let secrets = Secrets::read(&config.secret_files).with_context(|| format!("sinks.{name}.secret_files"))?;
        Ok(Setup { config: config.clone(), limits, client: Arc::new(client), secrets: Arc::new(secrets) })
    }
}

impl Sinks {
    /// Does everything that may fail when the sinks follow another configuration. Changes nothing. Blocks.
    ///
    /// # Errors
    /// A file with secrets can't be read, or holds no secret.
    pub fn prepare(&self, config: &Config) -> anyhow::Result<Prepared> {
        let all = self.all.load();
        let setup = |(name, sink): (&String, &config::Sink)| {
            let limits = config.sink_limits_for(name);
            let known = all.iter().find(|known| *known.name == **name).map(|known| known.setup.load());
            let is_same = known.is_some_and(|known| known.config == *sink && known.limits == limits);
            Ok((name.clone(), if is_same { None } else { Some(Setup::new(name, sink, limits)?) }))
        };
        Ok(Prepared(config.sinks.iter().map(setup).collect::<anyhow::Result<_>>()?))
    }

    /// Follows another configuration. A sink that stays keeps its place and the order of what it has to deliver: requests that are under way
    /// end as they began, and the next ones are of the new configuration. One that is removed finishes what is on its way, for a short time.
    /// Their mailboxes have to follow it before.
    pub async fn replace(&self, next: Prepared) -> Changed {
        let mut running = self.running.lock().await;
        let (before, mut all, mut changed) = (self.all.load_full(), Vec::new(), Changed::default());
        for (name, setup) in next.0 {
            let known = before.iter().find(|known| *known.name == *name).cloned();
            let (sink, list) = match (known, setup) {
                (Some(known), None) => (known, None),
                (Some(known), Some(setup)) => {
                    known.set(setup);
                    (known, Some(&mut changed.changed))
                }
                (None, Some(setup)) => (self.sink(&name, setup), Some(&mut changed.added)),
                // It was there when this was prepared, and nothing else removes sinks.
                (None, None) => continue,
            };
            list.into_iter().for_each(|list| list.push(name.clone()));
            all.push(sink);
        }
        let stays = |sink: &Sink| all.iter().any(|next| next.name == sink.name);
        let removed: Vec<Arc<str>> = before.iter().filter(|sink| !stays(sink)).map(|sink| sink.name.clone()).collect();
        if let Some(running) = &mut *running {
            let added = all.iter().filter(|sink| !running.contains_key(&sink.name)).cloned().collect::<Vec<_>>();
            running.extend(added.iter().filter_map(|sink| Some((sink.name.clone(), sink.start()?))));
        }
        self.all.store(Arc::new(all));
        if let Some(running) = &mut *running {
            finish(removed.iter().filter_map(|name| running.remove(name)), Stop::Removed).await;
        }
        removed.iter().for_each(|name| self.metrics.forget_sink(name));
        changed.removed = removed.iter().map(|name| name.to_string()).collect();
        changed
    }
}

impl Sink {
    /// Takes another configuration, and tries at once what waits.
    fn set(&self, setup: Setup) {
        // Locked, so that changed files don't bring back what was configured before.
        let mut seen = self.seen.lock();
        *seen = secrets::stamp(&setup.config.secret_files);
        self.setup.store(Arc::new(setup));
        self.resume.notify_one();
    }

    /// Reads changed files with secrets.
    pub(super) fn refresh(&self) {
        let mut seen = self.seen.lock();
        let setup = self.setup.load_full();
        let now = secrets::stamp(&setup.config.secret_files);
        if *seen == now {
            return;
        }
        *seen = now;
        match Secrets::read(&setup.config.secret_files) {
            Ok(secrets) => {
                self.setup.store(Arc::new(Setup { secrets: Arc::new(secrets), ..(*setup).clone() }));
                tracing::info!(sink = &*self.name, "the secrets were read again");
            }
            Err(error) => tracing::error!(sink = &*self.name, "the secrets stay as they are: {error:#}"),
        }
    }
}
