//! `signalpost load`: many clients at once, and whether each message reached exactly its readers, in order.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};

use super::ServerFlags;
use super::client::Address;
use super::token::Signer;
use crate::load::{Credentials, Dialect, Plan, Process, Progress, Report, Scenario, Target, Traffic, raise_open_files_limit, run};

/// The rate of `open-loop` where none is given: one that any machine keeps up with.
const RATE_DEFAULT: f64 = 2000.0;

/// Users with mail in `growth` where no number is given.
const AWAY_DEFAULT: u32 = 100_000;

/// The attributes of `formatted` where none are given: the bundled `compact` policy shapes each message.
const QUERY_DEFAULT: &str = "format=compact";

const STORM_ROUNDS: u32 = 3;

/// Longer than any run.
const TOKEN_LIFETIME_S: u64 = 24 * 60 * 60;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[arg(value_enum, default_value = "direct")]
    scenario: Name,
    /// The server's protocol: Signalpost's own, or that of a server that it is compared with.
    #[arg(long, value_enum, default_value_t)]
    dialect: Dialect,
    /// Where producers connect, if that isn't where users do: NATS' own port.
    #[arg(long, value_name = "HOST:PORT")]
    publish_at: Option<String>,
    /// Where the server is, with its base path.
    #[arg(long, default_value = "http://127.0.0.1:8080/api/pool")]
    url: String,
    /// Users, with a socket each.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    users: u32,
    /// Connections that publish.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    producers: u32,
    /// Requests, unless the time is over before.
    #[arg(long, default_value_t = 100_000)]
    requests: u64,
    /// Seconds, unless all requests are sent before.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Requests in a second, whether or not the server keeps up. Otherwise each producer waits for its answer.
    #[arg(long)]
    rate: Option<f64>,
    /// Speak the subprotocol signalpost.v1, with acks.
    #[arg(long)]
    v1: bool,
    /// Attributes of the users' sessions: a query string, as in format=compact.
    #[arg(long)]
    query: Option<String>,
    /// Further users, who aren't there: each has a message waiting in a mailbox.
    #[arg(long, value_name = "USERS", value_parser = clap::value_parser!(u32).range(..=900_000))]
    away: Option<u32>,
    /// Bytes that each message is filled up with.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(..=200_000))]
    bytes: u32,
    /// The server's process, to measure its processor time and memory.
    #[arg(long)]
    pid: Option<u32>,
    /// The same seed chooses the same users.
    #[arg(long)]
    seed: Option<u64>,
    /// The server's configuration file (TOML), where it asks users for tokens: they are made with its keys. Producers show the API key that
    /// SIGNALPOST_KEY holds.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The private key (PEM) of the first configured algorithm, where that is not an HS….
    #[arg(long, value_name = "FILE", requires = "config")]
    private_key: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Name {
    /// A message to one user in each request.
    Direct,
    /// A hundred events in each request, with two readers each.
    Batch,
    /// An event with two readers in each request.
    Routed,
    /// Routed, and shaped by a formatting policy for readers with attributes.
    Formatted,
    /// An event to a group of all users in each request.
    FanOut,
    /// Direct messages at a fixed rate.
    OpenLoop,
    /// Sockets only: what they cost.
    Idle,
    /// All users are dropped and come back at once, three times.
    Storm,
    /// Direct, beside a hundred thousand users who are away and have a mailbox.
    Growth,
}

pub(super) fn run_command(arguments: &Arguments) -> anyhow::Result<()> {
    raise_open_files_limit();
    let plan = arguments.plan()?;
    let server = arguments.pid.map(Process::new).transpose()?;
    let address = Address::parse(&arguments.url)?;
    if address.tls.is_some() {
        bail!("load doesn't speak TLS, whose cost is the client's as well; measure a server without");
    }
    let credentials = arguments.credentials()?;
    let report = super::client_runtime()?.block_on(async {
        let resolved = resolve(&address.authority).await?;
        let producers = match &arguments.publish_at {
            Some(authority) => resolve(authority).await?,
            None => resolved,
        };
        // It has the better words for a server that isn't there.
        drop(address.connect().await?);
        let Address { authority, base_path, .. } = address;
        let target = Target { address: resolved, producers, dialect: arguments.dialect, authority, base_path, credentials };
        let mut live = Live::new();
        let report = run(&target, &plan, server, &mut |progress| live.show(progress)).await;
        live.clear();
        report
    })?;
    let text = if arguments.json { serde_json::to_string(&report)? + "\n" } else { for_people(&report) };
    io::stdout().write_all(text.as_bytes())?;
    if !report.exact {
        bail!("not every message reached exactly its readers, once and in order");
    }
    Ok(())
}

async fn resolve(authority: &str) -> anyhow::Result<SocketAddr> {
    let unknown = || format!("{authority} is no known address");
    tokio::net::lookup_host(authority).await.with_context(unknown)?.next().with_context(unknown)
}

impl Arguments {
    fn credentials(&self) -> anyhow::Result<Credentials> {
        let key = std::env::var("SIGNALPOST_KEY").ok().filter(|key| !key.is_empty());
        let Some(file) = self.config.clone() else { return Ok(Credentials { key, token: None }) };
        let (config, _) = ServerFlags::of(Some(file)).load()?;
        let signer = Signer::new(config.auth.users, self.private_key.as_deref())?;
        // Nothing but a further claim can fail.
        let token = move |user: &str| signer.sign(user, TOKEN_LIFETIME_S, &[]).unwrap_or_default();
        Ok(Credentials { key, token: Some(Arc::new(token)) })
    }

    fn plan(&self) -> anyhow::Result<Plan> {
        let scenario = match self.scenario {
            Name::Direct | Name::OpenLoop | Name::Growth => Scenario::Publish(Traffic::Direct),
            Name::Batch => Scenario::Publish(Traffic::Batch),
            Name::Routed | Name::Formatted => Scenario::Publish(Traffic::Routed),
            Name::FanOut => Scenario::Publish(Traffic::FanOut),
            Name::Idle => Scenario::Idle,
            Name::Storm => Scenario::Storm { rounds: STORM_ROUNDS },
        };
        let name = match self.scenario {
            Name::Direct => "direct",
            Name::Batch => "batch",
            Name::Routed => "routed",
            Name::Formatted => "formatted",
            Name::FanOut => "fan-out",
            Name::OpenLoop => "open-loop",
            Name::Idle => "idle",
            Name::Storm => "storm",
            Name::Growth => "growth",
        };
        let query = match self.scenario {
            Name::Formatted => self.query.clone().unwrap_or_else(|| QUERY_DEFAULT.to_owned()),
            _ => self.query.clone().unwrap_or_default(),
        };
        let away = match self.scenario {
            Name::Growth => self.away.unwrap_or(AWAY_DEFAULT),
            _ => self.away.unwrap_or_default(),
        };
        let of_policies = matches!(self.scenario, Name::Batch | Name::Routed | Name::Formatted) || away > 0 || self.v1 || !query.is_empty();
        if self.dialect.has_channels() && of_policies {
            bail!(
                "only Signalpost has policies, mailboxes, attributes and signalpost.v1; the others have direct, fan-out, open-loop, idle and storm"
            );
        }
        let rate = if matches!(self.scenario, Name::OpenLoop) { self.rate.or(Some(RATE_DEFAULT)) } else { self.rate };
        if rate.is_some_and(|rate| !(0.01..=10_000_000.0).contains(&rate)) {
            bail!("--rate is between 0.01 and 10,000,000 requests in a second");
        }
        // Half the queue that a listening server usually has; a storm is meant to be more than it likes.
        let at_once = if matches!(self.scenario, Name::Storm) { usize::MAX } else { 1000 };
        let seed = self.seed.unwrap_or_else(|| u64::from(std::process::id()));
        Ok(Plan {
            scenario,
            name,
            users: self.users,
            producers: self.producers,
            v1: self.v1,
            query,
            away,
            requests_max: self.requests,
            duration_max: Duration::from_secs(self.seconds),
            rate,
            message_bytes: self.bytes as usize,
            at_once,
            seed,
        })
    }
}

/// A line on the terminal that is written over and over.
struct Live {
    terminal: bool,
    last: Progress,
}

impl Live {
    fn new() -> Live {
        Live { terminal: io::stderr().is_terminal(), last: Progress::default() }
    }

    fn show(&mut self, now: Progress) {
        if !self.terminal {
            return;
        }
        let seconds = now.elapsed.saturating_sub(self.last.elapsed).as_secs_f64();
        let rate = if seconds > 0.0 { now.arrived.saturating_sub(self.last.arrived) as f64 / seconds } else { 0.0 };
        eprint!(
            "\r\x1b[K{:>5.1} s  {} sockets  {} events  {} deliveries/s  {} on their way",
            now.elapsed.as_secs_f64(),
            thousands(u64::from(now.open_sockets)),
            thousands(now.events),
            thousands(rate as u64),
            thousands(now.outstanding)
        );
        self.last = now;
    }

    fn clear(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}

fn for_people(report: &Report) -> String {
    let Report { findings, latency, connecting, generator, .. } = report;
    let mut out = String::new();
    // Writing to a string can't fail.
    let mut line = |title: &str, text: String| {
        let _ = writeln!(out, "{title:<11}{text}");
    };
    line(
        report.scenario,
        format!(
            "{} users ({}), {} producers, {} events, seed {}",
            thousands(u64::from(report.users)),
            report.subprotocol,
            report.producers,
            thousands(report.events),
            report.seed
        ),
    );
    line(
        "exact",
        format!(
            "{}: {} lost, {} doubled, {} out of order, {} at a wrong reader; {} requests failed, {} sockets ended",
            if report.exact { "yes" } else { "NO" },
            findings.lost,
            findings.doubled,
            findings.out_of_order,
            findings.wrong_reader,
            report.failed,
            report.closed.values().sum::<u64>()
        ),
    );
    if let Some(failure) = &report.first_failure {
        line("failed", super::terminal::plain(failure));
    }
    if !report.closed.is_empty() {
        let codes: Vec<String> = report.closed.iter().map(|(code, count)| format!("{count} with {code}")).collect();
        line("ended", codes.join(", "));
    }
    if report.unmarked > 0 {
        line("others'", format!("{} messages were not of this run", thousands(report.unmarked)));
    }
    let spread = |latency: &crate::load::Latency| {
        let [p50, p99, p999, max] = [latency.p50_us, latency.p99_us, latency.p999_us, latency.max_us].map(|micros| micros / 1000.0);
        format!("p50 {p50:.2}  p99 {p99:.2}  p99.9 {p999:.2}  max {max:.2} ms")
    };
    line(
        "connected",
        format!("{} sockets in {:.2} s; {}", thousands(u64::from(connecting.sockets)), connecting.seconds, spread(&connecting.each)),
    );
    if report.deliveries > 0 {
        let rate = thousands(report.deliveries_per_second as u64);
        line("delivered", format!("{} in {:.2} s: {rate} per second", thousands(report.deliveries), report.seconds));
        line("latency", spread(latency));
    }
    if let Some(server) = &report.server {
        let mib = |kib: u64| kib as f64 / 1024.0;
        let opening = server.processor_us_per_socket;
        let each = if report.deliveries > 0 {
            format!("{:.1} µs of processor time per delivery, {opening:.1} per socket opened, ", server.processor_us_per_delivery)
        } else {
            format!("{:.2} s of processor time in {:.1} s, {opening:.1} µs per socket opened, ", server.processor_seconds, report.seconds)
        };
        line(
            "server",
            format!(
                "{each}{:.1} → {:.1} → {:.1} MiB resident (before, connected, after), {:.1} KiB per socket",
                mib(server.resident_kib_before),
                mib(server.resident_kib_open),
                mib(server.resident_kib_after),
                server.resident_kib_per_socket
            ),
        );
    }
    if report.deliveries > 0 {
        let each = generator.processor_us_per_delivery;
        line("generator", format!("{each:.1} µs of processor time per delivery, {:.0} % of a core", generator.busy * 100.0));
    }
    out
}

/// 1234567 as 1,234,567.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_threes() {
        let grouped = [0, 999, 1000, 123_456, 1_234_567].map(thousands);
        assert_eq!(grouped, ["0", "999", "1,000", "123,456", "1,234,567"]);
    }
}
