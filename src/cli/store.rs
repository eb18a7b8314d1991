//! `signalpost store`: looks at the store of a server, copies it, and mends it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};

use super::ServerFlags;
use crate::config::Config;
use crate::store::{self, Place, inspect};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show what the store holds. It may be in use.
    Inspect(Inspect),
    /// Read the whole store, check every frame, and say whether a server would start with it. It may be in use.
    Verify(Target),
    /// Copy the store into a new folder. The server may run meanwhile.
    Backup(Copy),
    /// Make the store from a backup. Every mailbox has a new epoch, so that clients learn that messages may be missing.
    Restore(Copy),
    /// Write what is whole of a damaged store into a new folder, with new epochs.
    Salvage(Copy),
}

#[derive(Args, Debug)]
pub(super) struct Target {
    /// The configuration file (TOML); SIGNALPOST_CONFIG by default. It says where the store is.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The store's folder, instead of the configuration's.
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(super) struct Inspect {
    #[command(flatten)]
    target: Target,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub(super) struct Copy {
    /// The other folder: where the copy goes, or where the backup is.
    dir: PathBuf,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Inspect(Inspect { target, json }) => {
            let (_, dir) = target.find()?;
            let summary = serde_json::to_value(inspect::summary(&existing(&dir)?)?)?;
            match summary {
                serde_json::Value::Object(members) if !json => {
                    println!("{}", dir.display());
                    members.iter().for_each(|(name, value)| println!("{:18} {value}", name.replace('_', " ")));
                }
                summary => println!("{summary:#}"),
            }
        }
        Command::Verify(target) => {
            let (_, dir) = target.find()?;
            let summary = inspect::summary(&existing(&dir)?)?;
            let end = if summary.unfinished_bytes > 0 { "; an unfinished frame at its end would be cut off" } else { "" };
            println!("{}: all {} frames are whole{end}", dir.display(), summary.frames);
        }
        Command::Backup(Copy { dir, target }) => {
            let (_, from) = target.find()?;
            let bytes = inspect::backup(&existing(&from)?, dir)?;
            println!("{bytes} bytes of {} are in {}", from.display(), dir.display());
        }
        Command::Restore(Copy { dir, target }) => {
            let (config, to) = target.find()?;
            let (summary, _) = inspect::renew(&existing(dir)?, false, &to, &config.store)?;
            println!("{} has {} messages in {} mailboxes, with new epochs", to.display(), summary.messages, summary.mailboxes);
        }
        Command::Salvage(Copy { dir, target }) => {
            let (config, from) = target.find()?;
            let (summary, passed_over) = inspect::renew(&existing(&from)?, true, dir, &config.store)?;
            println!(
                "{} has {} messages in {} mailboxes, with new epochs; {passed_over} damaged bytes were passed over. Move it to {} to use it",
                dir.display(),
                summary.messages,
                summary.mailboxes,
                from.display()
            );
        }
    }
    Ok(())
}

impl Target {
    /// Returns the configuration and the store's folder.
    fn find(&self) -> anyhow::Result<(Config, PathBuf)> {
        let (config, _) = ServerFlags::of(self.config.clone()).load()?;
        if let Some(dir) = &self.store {
            return Ok((config, dir.clone()));
        }
        match store::place(&config.store, |name| std::env::var_os(name)) {
            Place::Named(dir) | Place::Default(dir) => Ok((config, dir)),
            Place::Memory(Some(why)) => bail!("there is no store: {why}; name one with --store DIR"),
            Place::Memory(None) => bail!("there is no store: store.durability is \"memory\"; name one with --store DIR"),
        }
    }
}

fn existing(dir: &Path) -> anyhow::Result<PathBuf> {
    let dir = dir.canonicalize().with_context(|| format!("{} can't be read", dir.display()))?;
    if !inspect::is_there(&dir) {
        bail!("{} holds no store", dir.display());
    }
    Ok(dir)
}
