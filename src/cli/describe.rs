//! `signalpost completions` and `signalpost man`: the command line as shells complete it, and as manual pages. Packages install both.

use std::io;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

#[derive(Args, Debug)]
pub(super) struct Completions {
    /// The shell.
    shell: Shell,
}

#[derive(Args, Debug)]
pub(super) struct Man {
    /// The folder to write the pages to: signalpost.1, and one for each command.
    dir: PathBuf,
}

/// Prints a shell's completions.
pub(super) fn completions(arguments: &Completions) {
    generate(arguments.shell, &mut super::Arguments::command(), "signalpost", &mut io::stdout());
}

/// Writes the manual pages.
pub(super) fn man(arguments: &Man) -> anyhow::Result<()> {
    let dir = &arguments.dir;
    std::fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
    clap_mangen::generate_to(super::Arguments::command(), dir).with_context(|| format!("can't write to {}", dir.display()))
}
