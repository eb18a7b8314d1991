//! The `signalpost-load` command: opens many sockets, publishes, and checks that each message reaches exactly its readers, in
//! order.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};
use signalpost_load::{
    Credentials, Dialect, Latency, Plan, Process, Progress, Report, Scenario, Signer, Target, Traffic, raise_open_files_limit, run,
};

/// The default rate of `open-loop`, with which any machine keeps up.
const RATE_DEFAULT: f64 = 2000.0;

/// The default number of absent users in `growth`.
const AWAY_DEFAULT: u32 = 100_000;

/// The default attributes of `formatted`, with which the bundled `compact` policy formats each message.
const QUERY_DEFAULT: &str = "format=compact";

const STORM_ROUNDS: u32 = 3;

/// Opens many WebSockets to a server, publishes, and checks that each message reaches exactly its readers, in order. Exits with 0
/// only if every message did.
#[derive(Debug, Parser)]
#[command(name = "signalpost-load", version)]
struct Arguments {
    #[arg(value_enum, default_value = "direct")]
    scenario: Name,
    /// The server's protocol: Signalpost's, or that of a server that it is compared with.
    #[arg(long, value_enum, default_value_t)]
    dialect: Dialect,
    /// Where producers connect, if not where users do: NATS' own port.
    #[arg(long, value_name = "HOST:PORT")]
    publish_at: Option<String>,
    /// The server's URL with its base path. Only http: with TLS, the client would cost as much as the server.
    #[arg(long, default_value = "http://127.0.0.1:8080/api/pool")]
    url: String,
    /// Users, with one socket each.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    users: u32,
    /// Connections that publish.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    producers: u32,
    /// The run ends after this many requests, or after --seconds.
    #[arg(long, default_value_t = 100_000)]
    requests: u64,
    /// The run ends after this time, or after --requests.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Requests per second, whether or not the server keeps up. Without this, each producer waits for its answer.
    #[arg(long)]
    rate: Option<f64>,
    /// Send over a producers' stream, with this many requests of each producer under way.
    #[arg(long, value_name = "UNDER_WAY", conflicts_with = "rate", value_parser = clap::value_parser!(u32).range(1..=256))]
    stream: Option<u32>,
    /// Use the subprotocol signalpost.v1, with acks.
    #[arg(long)]
    v1: bool,
    /// Attributes of the users' sessions: a query string, as in format=compact.
    #[arg(long)]
    query: Option<String>,
    /// Further users without a socket, who each have a message in their mailbox.
    #[arg(long, value_name = "USERS", value_parser = clap::value_parser!(u32).range(..=900_000))]
    away: Option<u32>,
    /// Bytes of padding in each message.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(..=200_000))]
    bytes: u32,
    /// The server's process, to measure its processor time and memory.
    #[arg(long)]
    pid: Option<u32>,
    /// The seed of all random choices; by default, a different one for each run.
    #[arg(long)]
    seed: Option<u64>,
    /// The key that signs users' tokens: a secret for HS256, HS384 and HS512, otherwise a private key (PEM). Without this, users have
    /// no tokens. Producers show the API key in SIGNALPOST_KEY.
    #[arg(long, value_name = "FILE")]
    token_key: Option<PathBuf>,
    /// The signature's algorithm.
    #[arg(long, value_name = "NAME", default_value = "HS256", requires = "token_key")]
    token_algorithm: Algorithm,
    /// The claim that names the user.
    #[arg(long, value_name = "NAME", default_value = "sub", requires = "token_key")]
    token_user_claim: String,
    /// A further claim of each token, as in iss=https://id.example.com. A value that is JSON is used as such.
    #[arg(long = "token-claim", value_name = "NAME=VALUE", requires = "token_key", value_parser = claim)]
    token_claims: Vec<(String, Value)>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Name {
    /// Each request is a message to one user.
    Direct,
    /// Each request is a batch of a hundred events with two readers each.
    Batch,
    /// Each request is an event with two readers.
    Routed,
    /// Routed, and formatted by a policy for readers with attributes.
    Formatted,
    /// Each request is an event to a group of all users.
    FanOut,
    /// Direct messages at a fixed rate.
    OpenLoop,
    /// Sockets without messages.
    Idle,
    /// All users are dropped and reconnect at once, three times.
    Storm,
    /// Direct, beside a hundred thousand users who are away and have a mailbox.
    Growth,
}

fn main() -> ExitCode {
    match measure(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    raise_open_files_limit();
    let plan = arguments.plan()?;
    let server = arguments.pid.map(Process::new).transpose()?;
    let (authority, base_path) = server_address(&arguments.url)?;
    let credentials = arguments.credentials()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("can't start the runtime")?;
    let report = runtime.block_on(async {
        let address = resolve(&authority).await?;
        let producers = match &arguments.publish_at {
            Some(authority) => resolve(authority).await?,
            None => address,
        };
        let target = Target { address, producers, dialect: arguments.dialect, authority, base_path, credentials };
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

/// Splits a URL into the host with its port, and the base path without a slash at its end.
fn server_address(url: &str) -> anyhow::Result<(String, String)> {
    let rest = url.strip_prefix("http://").with_context(|| format!("\"{url}\" does not begin with http://"))?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let authority = if has_port { authority.to_owned() } else { format!("{authority}:80") };
    Ok((authority, path.trim_end_matches('/').to_owned()))
}

async fn resolve(authority: &str) -> anyhow::Result<SocketAddr> {
    let unknown = || format!("{authority} is not a known address");
    tokio::net::lookup_host(authority).await.with_context(unknown)?.next().with_context(unknown)
}

fn claim(text: &str) -> Result<(String, Value), &'static str> {
    let (name, value) = text.split_once('=').ok_or("a claim is NAME=VALUE")?;
    Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

impl Arguments {
    fn credentials(&self) -> anyhow::Result<Credentials> {
        let key = std::env::var("SIGNALPOST_KEY").ok().filter(|key| !key.is_empty());
        let Some(file) = &self.token_key else { return Ok(Credentials { key, token: None }) };
        let signer = Signer::new(self.token_algorithm, file, &self.token_user_claim, Map::from_iter(self.token_claims.clone()))?;
        // A signature that `Signer::new` made once succeeds again.
        let token = move |user: &str| signer.sign(user).unwrap_or_default();
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
        let of_policies = matches!(self.scenario, Name::Batch | Name::Routed | Name::Formatted)
            || away > 0
            || self.v1
            || self.stream.is_some()
            || !query.is_empty();
        if self.dialect.has_channels() && of_policies {
            bail!(
                "only Signalpost has policies, mailboxes, attributes, streams and signalpost.v1; other servers can run direct, fan-out, open-loop, idle and storm"
            );
        }
        if matches!(self.scenario, Name::OpenLoop) && self.stream.is_some() {
            bail!("open-loop has a rate of its own, and a stream sends as much as is taken");
        }
        let rate = if matches!(self.scenario, Name::OpenLoop) { self.rate.or(Some(RATE_DEFAULT)) } else { self.rate };
        if rate.is_some_and(|rate| !(0.01..=10_000_000.0).contains(&rate)) {
            bail!("--rate must be between 0.01 and 10,000,000 requests per second");
        }
        // A quarter of the usual listen backlog. A storm opens all sockets at once on purpose.
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
            stream: self.stream.map_or(0, |under_way| under_way as usize),
            message_bytes: self.bytes as usize,
            at_once,
            seed,
        })
    }
}

/// A line on the terminal that shows the progress.
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
            "\r\x1b[K{:>5.1} s  {} sockets  {} events  {} deliveries/s  {} outstanding",
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
            "{}: {} lost, {} doubled, {} out of order, {} to a wrong reader; {} requests failed, {} sockets ended",
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
        // The server's words, which must not control the terminal.
        line("failed", failure.chars().map(|char| if char.is_control() { ' ' } else { char }).collect());
    }
    if !report.closed.is_empty() {
        let codes: Vec<String> = report.closed.iter().map(|(code, count)| format!("{count} with {code}")).collect();
        line("ended", codes.join(", "));
    }
    if report.unmarked > 0 {
        line("foreign", format!("{} messages were not from this run", thousands(report.unmarked)));
    }
    let spread = |latency: &Latency| {
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

/// Writes 1234567 as 1,234,567.
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

    #[test]
    fn a_url_is_split_into_authority_and_base_path() {
        let split = |url| server_address(url).unwrap();
        assert_eq!(split("http://127.0.0.1:8080/api/pool/"), ("127.0.0.1:8080".into(), "/api/pool".into()));
        assert_eq!(split("http://example.org"), ("example.org:80".into(), String::new()));
        assert_eq!(split("http://[::1]:9/x"), ("[::1]:9".into(), "/x".into()));
        assert_eq!(split("http://[::1]/x"), ("[::1]:80".into(), "/x".into()));
        for url in ["https://example.org", "127.0.0.1:8080", "ws://example.org"] {
            assert!(server_address(url).is_err(), "{url}");
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
        let parse = |line: &str| Arguments::try_parse_from(line.split(' '));
        let arguments =
            parse("signalpost-load growth --token-key k --token-algorithm ES256 --token-claim aud=a --token-claim n=1").unwrap();
        assert_eq!((arguments.token_algorithm, arguments.plan().unwrap().name), (Algorithm::ES256, "growth"));
        assert_eq!(arguments.token_claims, [("aud".to_owned(), "a".into()), ("n".to_owned(), 1.into())]);
        for line in ["signalpost-load nothing", "signalpost-load --token-claim aud=a", "signalpost-load --token-key k --token-claim aud"] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse("signalpost-load growth --dialect nats").unwrap().plan().is_err(), "NATS has no mailboxes");
    }
}
