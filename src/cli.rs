//! The command line: reads the arguments and runs the command. Each command is in the file of its name.
//!
//! Exit codes: 0 success, 1 an error (one line on stderr for each), 2 wrong usage.

mod candidate;
mod check;
mod client;
mod cluster;
mod describe;
mod dev;
mod explain;
mod health;
mod listen;
mod plugin;
mod plugin_build;
mod receipt;
mod record;
mod replay;
mod send;
mod signals;
mod store;
mod tail;
mod terminal;
mod token;

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use toml::{Table, Value};

use crate::config::{self, Config, Layers, Problems, Setting};
use crate::log;
use crate::net::open_files;
use crate::policy::compile::{self, CHILD_COMMAND};
use crate::server;

/// How much longer than its deadlines a stop may take.
const STOP_MARGIN: Duration = Duration::from_secs(2);

/// A WebSocket message router whose routing and formatting policies are WebAssembly plugins. Without a command it serves.
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
    /// Check the configuration and the plugins, and show every setting and where it came from.
    Check(check::Arguments),
    /// Publish an event, or send a message to one user.
    Send(send::Arguments),
    /// Show what would happen to an event: who would be notified, and what each of their sessions would see.
    Explain(explain::Arguments),
    /// Show how far the messages of an event got since it was published.
    Receipt(receipt::Arguments),
    /// Show the nodes that serve together: who leads, their versions and policies, and how far each is.
    Cluster(cluster::Arguments),
    /// Show a user's messages as they arrive, and send what you type.
    Listen(listen::Arguments),
    /// Ask a server whether it answers, or whether it is ready.
    Health(health::Arguments),
    /// Show what happens on a server while it happens: events and who was told, sessions, clients' messages, faults and reloads.
    Tail(tail::Arguments),
    /// Show how the candidate of a policy compares with it; promote it, or drop it.
    Candidate(candidate::Arguments),
    /// Record the calls of a policy on a server, with all that their answers depend on. It ends by itself.
    Record(record::Arguments),
    /// Make recorded calls again by another version of the policy, and show where the outcome differs.
    Replay(replay::Arguments),
    /// Make a user's token for development, or an API key for a producer or an operator.
    Token(token::Arguments),
    /// Serve a plugin while you write it: build it on each save, run its fixtures, swap it in, and show what it does.
    Dev(dev::Arguments),
    /// Look at the store of a server, copy it, and mend it.
    #[command(subcommand)]
    Store(store::Command),
    /// Make, build, inspect, check, test and measure plugins.
    #[command(subcommand)]
    Plugin(plugin::Command),
    /// Print a shell's completions, as in `signalpost completions bash`.
    Completions(describe::Completions),
    /// Write the manual pages.
    Man(describe::Man),
    /// Compile a component, or one of its modules, from standard input, as the server's child process.
    #[command(name = CHILD_COMMAND, hide = true)]
    CompileComponent {
        memory_bytes_max: u64,
        seconds_max: u64,
        niceness: i32,
        #[arg(long)]
        module: bool,
    },
}

/// The settings that often differ from one start to the next. All others are in the file or the environment.
#[derive(Args, Clone, Debug)]
struct ServerFlags {
    /// The address to serve, as in 127.0.0.1:8080; port 0 takes a free port.
    #[arg(long, value_name = "ADDR", value_parser = config::address)]
    listen: Option<SocketAddr>,
    /// The folder with the plugins.
    #[arg(long, value_name = "DIR")]
    plugins: Option<String>,
    /// The configuration file (TOML); SIGNALPOST_CONFIG by default.
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
        Command::Receipt(arguments) => receipt::run(&arguments),
        Command::Cluster(arguments) => cluster::run(&arguments),
        Command::Listen(arguments) => listen::run(arguments),
        Command::Health(arguments) => health::run(&arguments),
        Command::Tail(arguments) => tail::run(&arguments),
        Command::Candidate(arguments) => candidate::run(&arguments),
        Command::Record(arguments) => record::run(&arguments),
        Command::Replay(arguments) => replay::run(&arguments),
        Command::Token(arguments) => token::run(&arguments),
        Command::Dev(arguments) => dev::run(&arguments),
        Command::Store(command) => store::run(&command),
        Command::Plugin(command) => plugin::run(&command),
        Command::Completions(arguments) => {
            describe::completions(&arguments);
            Ok(())
        }
        Command::Man(arguments) => describe::man(&arguments),
        // `main` has run it already.
        Command::CompileComponent { .. } => Ok(()),
    }
}

/// Prints an error. Wrong usage that only a command itself can detect is reported as clap reports its own.
fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(usage) = error.downcast_ref::<clap::Error>() {
        usage.exit();
    }
    if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        // The reader of the output has seen enough, as in `signalpost check | head`.
        return ExitCode::SUCCESS;
    }
    match error.downcast_ref::<Problems>() {
        Some(Problems(problems)) => problems.iter().for_each(|problem| eprintln!("error: {problem}")),
        None => eprintln!("error: {error:#}"),
    }
    ExitCode::FAILURE
}

fn serve(flags: &ServerFlags) -> anyhow::Result<()> {
    let layers = flags.layers();
    let (config, settings) = layers.load()?;
    let _log = log::start(&config.log);
    let connections_max = config.http.connections_max.get();
    if let Some(max) = open_files::raise_limit().filter(|max| *max < connections_max as u64) {
        tracing::warn!(
            "the limit of open files is {max}, below the {connections_max} connections of http.connections_max; raise it (ulimit -n)"
        );
    }
    let mut builder = Builder::new_multi_thread();
    builder.max_blocking_threads(config.blocking_threads_max.get());
    if config.worker_threads > 0 {
        builder.worker_threads(config.worker_threads);
    }
    let runtime = builder.enable_all().build().context("can't start the threads that serve")?;
    // Spawned: if this thread accepted connections, each would have to wake a worker thread.
    let patience = *config.stop_notice_ms + *config.stop_deadline_ms + STOP_MARGIN;
    let signals::Signals { stop, reloads } = signals::receive(patience)?;
    let stop = async { drop(stop.await) };
    let serving = runtime.spawn(server::run(config, (layers, settings), stop, reloads));
    let served = runtime.block_on(serving).context("the server panicked")?;
    // The server has kept its own deadline, so tasks that are left are not waited for.
    runtime.shutdown_background();
    served
}

impl ServerFlags {
    /// Returns flags that only name a configuration file.
    fn of(config: Option<PathBuf>) -> ServerFlags {
        ServerFlags { listen: None, plugins: None, config }
    }

    /// Returns the configuration file, if one is named.
    fn file(&self) -> Option<PathBuf> {
        let named_outside = std::env::var_os("SIGNALPOST_CONFIG").filter(|file| !file.is_empty()).map(PathBuf::from);
        self.config.clone().or(named_outside)
    }

    fn load(&self) -> anyhow::Result<(Config, Vec<Setting>)> {
        self.layers().load()
    }

    fn layers(&self) -> Layers {
        // A value that isn't UTF-8 is converted as far as possible, and refused like any wrong value.
        let text = |text: OsString| text.to_string_lossy().into_owned();
        let environment = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
        Layers { file: self.file(), flags: self.overrides(), environment }
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

/// Returns the runtime of a client. One thread is enough for one connection.
fn client_runtime() -> anyhow::Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("can't start the runtime")
}

/// Returns a future that resolves at the first SIGINT or SIGTERM. The second one ends the process, for an operator who won't wait.
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
    fn the_servers_flags_need_no_command() {
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
