//! The command line: reads the arguments and hands over. What a command does is in the file of its name.
//!
//! Exit codes: 0 done, 1 an error (one line on stderr for each), 2 wrong usage.

mod check;
mod client;
mod dev;
mod explain;
mod listen;
mod load;
mod log;
mod plugin;
mod plugin_build;
mod send;
mod terminal;
mod token;

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use toml::{Table, Value};

use crate::config::{Config, Problems, Setting};
use crate::policy::compile::{self, CHILD_COMMAND};
use crate::server;

/// A WebSocket message router whose routing and formatting policies are WebAssembly plugins. Alone it is `signalpost serve`.
#[derive(Debug, Parser)]
#[command(name = "signalpost", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    server: ServerFlags,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGINT or SIGTERM.
    Serve(ServerFlags),
    /// Check the configuration, and show every setting and where it came from.
    Check(check::Arguments),
    /// Publish an event, or send a message to one user.
    Send(send::Arguments),
    /// Show what would become of an event: who would be told, and what each of their sessions would see.
    Explain(explain::Arguments),
    /// Read a user's messages as they arrive, and send what is typed.
    Listen(listen::Arguments),
    /// Open many sockets, publish, and check that each message reaches exactly its readers; exits with 0 only if so.
    Load(load::Arguments),
    /// Make a user's token for development, or an API key.
    Token(token::Arguments),
    /// Serve a plugin while it is written: build it on each save, run its fixtures, swap it, and show what it does.
    Dev(dev::Arguments),
    /// Make, inspect, check and test plugins.
    #[command(subcommand)]
    Plugin(plugin::Command),
    /// Compile a component, or one of its modules, from standard input, as the server's own child.
    #[command(name = CHILD_COMMAND, hide = true)]
    CompileComponent {
        memory_bytes_max: u64,
        seconds_max: u64,
        niceness: i32,
        #[arg(long)]
        module: bool,
    },
}

/// The settings that are often different from one start to the next. All others are in the file or the environment.
#[derive(Args, Clone, Debug)]
struct ServerFlags {
    /// Where to serve, as in 127.0.0.1:8080; port 0 takes a free one.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// The folder of the plugins.
    #[arg(long, value_name = "DIR")]
    plugins: Option<String>,
    /// The configuration file (TOML); SIGNALPOST_CONFIG names it too.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Command::CompileComponent { memory_bytes_max, seconds_max, niceness, module }) = arguments.command {
        return compile::child(memory_bytes_max, seconds_max, niceness, module);
    }
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command.unwrap_or(Command::Serve(arguments.server)) {
        Command::Serve(flags) => serve(&flags),
        Command::Check(arguments) => check::run(&arguments),
        Command::Send(arguments) => send::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Listen(arguments) => listen::run(arguments),
        Command::Load(arguments) => load::run_command(&arguments),
        Command::Token(arguments) => token::run(&arguments),
        Command::Dev(arguments) => dev::run(&arguments),
        Command::Plugin(command) => plugin::run(&command),
        // Done before anything else, by `main`.
        Command::CompileComponent { .. } => Ok(()),
    }
}

/// The wrong usage that only a command itself can see is reported as clap reports its own.
fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(usage) = error.downcast_ref::<clap::Error>() {
        usage.exit();
    }
    if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        // Who reads our output has seen enough, as in `signalpost check | head`.
        return ExitCode::SUCCESS;
    }
    match error.downcast_ref::<Problems>() {
        Some(Problems(problems)) => problems.iter().for_each(|problem| eprintln!("error: {problem}")),
        None => eprintln!("error: {error:#}"),
    }
    ExitCode::FAILURE
}

fn serve(flags: &ServerFlags) -> anyhow::Result<()> {
    let (config, _) = flags.load()?;
    log::start(&config.log);
    let open_files = crate::load::raise_open_files_limit();
    if open_files.is_some_and(|max| max < config.http.connections_max as u64) {
        tracing::warn!(
            "there may be {} open files, fewer than the {} connections of http.connections_max; raise the limit (ulimit -n)",
            open_files.unwrap_or_default(),
            config.http.connections_max
        );
    }
    let mut builder = Builder::new_multi_thread();
    if config.worker_threads > 0 {
        builder.worker_threads(config.worker_threads);
    }
    let runtime = builder.enable_all().build().context("can't start the threads that serve")?;
    // On a thread that serves: each connection that is accepted here would wake another one.
    let serving = runtime.spawn(async { server::run(config, stop_signal()?).await });
    let served = runtime.block_on(serving).context("the server panicked")?;
    // The server has kept its own deadline; what is left is not waited for again.
    runtime.shutdown_background();
    served
}

impl ServerFlags {
    /// Only this file is named.
    fn of(config: Option<PathBuf>) -> ServerFlags {
        ServerFlags { listen: None, plugins: None, config }
    }

    /// The configuration file, if there is one.
    fn file(&self) -> Option<PathBuf> {
        let named_outside = std::env::var_os("SIGNALPOST_CONFIG").filter(|file| !file.is_empty()).map(PathBuf::from);
        self.config.clone().or(named_outside)
    }

    fn load(&self) -> anyhow::Result<(Config, Vec<Setting>)> {
        let file = self.file();
        // A value that isn't UTF-8 is shown as well as it can be, and refused as any wrong value.
        let text = |text: OsString| text.to_string_lossy().into_owned();
        let environment = std::env::vars_os().map(|(name, value)| (text(name), text(value)));
        Config::load(file.as_deref(), self.overrides(), environment)
    }

    fn overrides(&self) -> Table {
        let mut table = Table::new();
        if let Some(listen) = self.listen {
            table.insert("listen".to_owned(), Value::String(listen.to_string()));
        }
        if let Some(dir) = &self.plugins {
            let plugins = Table::from_iter([("dir".to_owned(), Value::String(dir.clone()))]);
            table.insert("plugins".to_owned(), Value::Table(plugins));
        }
        table
    }
}

/// One thread is plenty for one connection.
fn client_runtime() -> anyhow::Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("can't start the runtime")
}

/// Ends with the first SIGINT or SIGTERM. The second one then ends the process, so that nobody waits against their will.
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        let mut next = async move || {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        next().await;
        tokio::spawn(async move {
            next().await;
            std::process::exit(130);
        });
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_well_formed() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn the_servers_flags_need_no_word() {
        let bare = parse("signalpost --listen 127.0.0.1:0 --plugins p").unwrap();
        assert!(bare.command.is_none());
        let Some(Command::Serve(named)) = parse("signalpost serve --listen 127.0.0.1:0 --plugins p").unwrap().command else {
            panic!("not serve");
        };
        assert_eq!(bare.server.overrides(), named.overrides());
        assert_eq!(named.overrides().to_string(), "listen = \"127.0.0.1:0\"\n\n[plugins]\ndir = \"p\"\n");
    }

    #[test]
    fn wrong_usage_exits_with_2() {
        for line in ["signalpost --listen nowhere", "signalpost frobnicate", "signalpost listen", "signalpost listen 1 --ack"] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
