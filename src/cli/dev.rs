//! `signalpost dev`: a server for one plugin while it is written. A save builds it, runs its fixtures and swaps it in; if that fails,
//! the error is shown and the old one keeps serving. Each event is shown with what every policy did with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use clap::Args;
use tokio::runtime::Builder;

use super::explain::story;
use super::plugin::test;
use super::{ServerFlags, plugin_build, stop_signal, terminal};
use crate::config::Grant;
use crate::dispatch::observers::{Asked, Observer, Seen, Trace};
use crate::kit::Workbench;
use crate::kit::dev::{Dev, Swapped};
use crate::log;
use crate::policy::contract::grant_names;
use crate::policy::plugin::TOO_LARGE_TO_KEEP;
use crate::types::event::DIRECT;

/// How often the files are checked: often enough to notice a save at once.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// The plugin's folder.
    #[arg(default_value = ".")]
    dir: PathBuf,
    #[command(flatten)]
    server: ServerFlags,
}

/// A snapshot of the plugin's files and the server's configuration file: name, time and size of each.
type Look = Vec<(PathBuf, Option<SystemTime>, u64)>;

/// The plugin that is being written.
struct Workshop {
    dir: PathBuf,
    name: String,
    /// The component's file until it has passed its fixtures.
    staging: PathBuf,
    output: PathBuf,
    server: ServerFlags,
    /// Digest of the sources that `staging` was built from.
    built: Option<String>,
    /// Whether any version has been swapped in.
    serves: bool,
    told_grants: bool,
    told_size: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let dir = std::fs::canonicalize(&arguments.dir).with_context(|| format!("there is no folder {}", arguments.dir.display()))?;
    let output = plugin_build::output(&dir)?;
    let name = output.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let staging = std::env::temp_dir().join(format!("signalpost-dev-{}", std::process::id()));
    std::fs::create_dir_all(&staging).with_context(|| format!("can't make {}", staging.display()))?;
    let (config, _) = arguments.server.load()?;
    let _log = log::start(&config.log);
    let workshop = Workshop {
        dir,
        staging: staging.join(format!("{name}.wasm")),
        name,
        output,
        server: arguments.server.clone(),
        built: None,
        serves: false,
        told_grants: false,
        told_size: false,
    };
    let runtime = Builder::new_multi_thread().enable_all().build().context("can't start the threads that serve")?;
    let served = runtime.block_on(async {
        let (dev, server) = Dev::start(&workshop.name, config).await?;
        let dev = Arc::new(dev);
        // Its own screen is the first observer, so there is room for it.
        if let Ok(observer) = dev.observe() {
            tokio::spawn(show(dev.clone(), observer));
        }
        if let Some(address) = server.addresses()?.first() {
            println!("{} is served at http://{address}; Ctrl-C stops it", workshop.name);
        }
        thread::Builder::new().name("workshop".into()).spawn(move || workshop.work(&dev))?;
        server.serve(stop_signal()?).await
    });
    runtime.shutdown_background();
    // Best effort: the system cleans its folder of temporary files too.
    let _ = std::fs::remove_dir_all(staging);
    served
}

/// Shows each event and what every policy did with it, and each call of a sessions policy.
async fn show(dev: Arc<Dev>, mut observer: Observer) {
    let head = |head: &str| terminal::highlight(&terminal::plain(head), terminal::wants_color());
    loop {
        let entry = match observer.next().await {
            Seen::Entry(entry) => entry,
            Seen::Lost(count) => {
                println!("({count} more, too fast to be shown)");
                continue;
            }
        };
        match &entry.trace {
            Trace::Event { event, story: told } => {
                let head = head(event.as_ref().map_or(DIRECT, |event| &event.event_type));
                println!("{head}\n{}", story::for_people(&dev.tell(told)).trim_end());
            }
            Trace::Asked(asked) => {
                let Asked { session, what, policy, took, .. } = asked;
                let answer = terminal::plain(&Dev::answer(asked));
                let head = head(&format!("{} {what}", session.user));
                println!("{head}\n  {} {} ({} µs)  {answer}", policy.name, policy.version, took.as_micros());
            }
            // The answers of policies say as much.
            Trace::Opened(_) | Trace::Closed { .. } | Trace::Received { .. } | Trace::Fault(_) | Trace::Reload(_) => {}
        }
    }
}

impl Workshop {
    /// Rebuilds the plugin whenever its files change. Never returns: the thread ends with the process.
    fn work(mut self, dev: &Dev) {
        let mut taken = Look::new();
        loop {
            let now = self.look();
            if now != taken {
                taken = now;
                if let Err(error) = self.renew(dev) {
                    let meanwhile = if self.serves { "The old one keeps serving." } else { "Nothing is served yet: fix it and save." };
                    println!("{error:#}\n{meanwhile}");
                }
            }
            thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Takes a snapshot of the files. A folder that can't be read now is tried again later.
    fn look(&self) -> Look {
        let mut seen = plugin_build::fingerprint(&self.dir).unwrap_or_default();
        if let Some(file) = self.server.file() {
            let metadata = std::fs::metadata(&file).ok();
            seen.push((file, metadata.as_ref().and_then(|seen| seen.modified().ok()), metadata.map_or(0, |seen| seen.len())));
        }
        seen
    }

    /// Builds, tests and swaps the plugin, and prints how long each took.
    fn renew(&mut self, dev: &Dev) -> anyhow::Result<()> {
        let (config, _) = self.server.load()?;
        let sources = plugin_build::sources_digest(&self.dir, plugin_build::find_wit(&self.dir).as_deref())?;
        let started = Instant::now();
        if self.built.as_deref() != Some(&sources) {
            plugin_build::build(&self.dir, Some(&self.staging))?;
            self.built = Some(sources);
        }
        let built = Instant::now();
        let needed = dev.compile(&self.staging)?;
        let compiled = Instant::now();
        let passed = self.test(dev, &needed)?;
        let tested = Instant::now();
        let Swapped { version, took, granted, keeps_no_instance } = dev.swap(&self.staging, &needed, config.clone())?;
        self.serves = true;
        println!(
            "{} {version} serves: built in {} ms, and {} ms later swapped in: compiled in {} ms, {passed} in {} ms, loaded and swapped in {} ms",
            self.name,
            (built - started).as_millis(),
            built.elapsed().as_millis(),
            (compiled - built).as_millis(),
            (tested - compiled).as_millis(),
            took.as_millis()
        );
        if !granted.is_empty() && !self.told_grants {
            self.told_grants = true;
            let known = config.policies.get(&self.name).map(|policy| policy.grants.as_slice()).unwrap_or_default();
            let table = Workbench::grant_table(&self.name, known, &granted);
            println!("It is granted {} here; a server's configuration needs:\n\n{table}", grant_names(granted.iter()).join(", "));
        }
        if keeps_no_instance && !self.told_size {
            self.told_size = true;
            println!("{TOO_LARGE_TO_KEEP}; `limits = {{ instance_kept_bytes_max = … }}` in [policies.{}]", self.name);
        }
        let component = std::fs::read(&self.staging)?;
        plugin_build::write_atomically(&self.output, &component)
    }

    /// Runs the fixtures, and returns the words for the report.
    fn test(&self, dev: &Dev, needed: &[Grant]) -> anyhow::Result<String> {
        let fixtures: &Path = &self.dir.join("fixtures");
        if !fixtures.is_dir() {
            return Ok("no fixtures".to_owned());
        }
        let report = test::play(dev.bench(), &self.staging, needed, fixtures, false)?;
        if report.failed > 0 {
            anyhow::bail!("{}{}", report.text, test::differ(report.failed));
        }
        Ok("fixtures passed".to_owned())
    }
}
