//! Checks that the types can't express: names, and settings that contradict each other.

use super::{CandidateMode, Config, Milliseconds, NAME_BYTES_MAX, Origin, Sink, TOKEN_PARAMETER};

/// Returns each problem as a sentence that says what to do.
pub(super) fn problems(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    found.extend(listen(config));
    found.extend(operate_listen(config));
    auth(config, &mut found);
    found.extend(tls(config));
    cluster(config, &mut found);
    found.extend(base_path(&config.base_path));
    attributes(&config.sockets.attributes, &mut found);
    found.extend(config.policies.keys().filter_map(|name| name_of("policy", name)));
    found.extend(traces(config));
    candidates(config, &mut found);
    config.sinks.iter().for_each(|(name, sink)| self::sink(config, name, sink, &mut found));
    contradictions(config, &mut found);
    found
}

fn listen(config: &Config) -> Option<String> {
    let is_loopback = config.listen.ip().to_canonical().is_loopback();
    let lacks = match (config.auth.users.algorithms.is_empty(), config.auth.keys.is_empty()) {
        (true, true) => "\"auth.users.algorithms\" and \"auth.keys\" are",
        (true, false) => "\"auth.users.algorithms\" is",
        (false, true) => "\"auth.keys\" is",
        (false, false) => return None,
    };
    (!is_loopback && !config.listen_beyond_loopback_without_authentication).then(|| {
        format!(
            "\"listen\" is {}, which other machines can reach, and {lacks} empty, so that anybody there could connect or publish; \
             set both, listen on 127.0.0.1, or set \"listen_beyond_loopback_without_authentication\" to true if a proxy in front \
             authenticates",
            config.listen
        )
    })
}

fn operate_listen(config: &Config) -> Option<String> {
    let address = config.operate_listen?;
    let is_guarded = address.ip().to_canonical().is_loopback() || !config.auth.keys.is_empty();
    (!is_guarded && !config.listen_beyond_loopback_without_authentication).then(|| {
        format!(
            "\"operate_listen\" is {address}, which other machines can reach, and \"auth.keys\" is empty; set it, or listen on 127.0.0.1"
        )
    })
}

fn auth(config: &Config, found: &mut Vec<String>) {
    let auth = &config.auth;
    for origin in auth.origins.iter().filter(|origin| Origin::parse(origin).is_none()) {
        found.push(format!(
            "\"auth.origins\" contains \"{origin}\"; an origin is a scheme, a host and, if it is not the scheme's default, a port, \
             without a path, as in \"https://app.example.com\""
        ));
    }
    for (position, key) in auth.keys.iter().enumerate() {
        if key.scopes.is_empty() {
            found.push(format!("the API key \"{}\" has no scopes; give it some of \"publish\", \"read\" and \"operate\"", key.name));
        }
        if auth.keys.iter().take(position).any(|earlier| earlier.name == key.name) {
            found.push(format!("two API keys are named \"{}\"; rename one, so that the log can distinguish them", key.name));
        }
    }
    if auth.users.claims.iter().any(|claim| claim == "user") {
        found.push("\"auth.users.claims\" contains \"user\", which is what policies call the reader's id; leave it out".to_owned());
    }
    for set in &auth.users.jwks {
        let uri = set.url.parse::<http::Uri>().ok();
        let host = uri.as_ref().and_then(http::Uri::host);
        let is_safe = match uri.as_ref().and_then(http::Uri::scheme_str) {
            Some("https") => host.is_some(),
            Some("http") => host.is_some_and(|host| matches!(host, "localhost" | "127.0.0.1" | "[::1]")),
            _ => false,
        };
        if !is_safe {
            found.push(format!(
                "\"auth.users.jwks\" contains the url \"{}\"; it must be an https URL, since anybody who can change its answer can pose as \
                 any user",
                set.url
            ));
        }
        if auth.users.algorithms.is_empty() {
            found.push("\"auth.users.jwks\" is set and \"auth.users.algorithms\" is empty; name the algorithms of the keys".to_owned());
        }
    }
    if auth.users.algorithms.is_empty() && !auth.users.key_files.is_empty() {
        found.push("\"auth.users.key_files\" is set and \"auth.users.algorithms\" is empty; name the algorithms of the keys".to_owned());
    }
}

fn tls(config: &Config) -> Option<String> {
    let is_set = |file: &std::path::Path| !file.as_os_str().is_empty();
    let (set, lacks) = match (is_set(&config.tls.certificate_file), is_set(&config.tls.key_file)) {
        (true, false) => ("certificate_file", "key_file"),
        (false, true) => ("key_file", "certificate_file"),
        _ => return None,
    };
    Some(format!("\"tls.{set}\" is set and \"tls.{lacks}\" is empty; set both, or none"))
}

fn cluster(config: &Config, found: &mut Vec<String>) {
    let cluster = &config.cluster;
    for address in &cluster.nats {
        let is_address = |rest: &str| !rest.is_empty() && !rest.contains(['/', '@', ' ']);
        if !["nats://", "tls://"].iter().any(|scheme| address.strip_prefix(scheme).is_some_and(is_address)) {
            found.push(format!(
                "\"cluster.nats\" contains \"{address}\"; an address is nats:// or tls://, a host and perhaps a port, as in \
                 \"tls://nats-1.example.com:4222\"; credentials are in \"cluster.credentials_file\""
            ));
        }
    }
    found.extend(name_of("cluster", &cluster.name));
    if !cluster.node.is_empty() {
        found.extend(name_of("node", &cluster.node));
    }
    if cluster.certificate_file.as_os_str().is_empty() != cluster.key_file.as_os_str().is_empty() {
        found.push("one of \"cluster.certificate_file\" and \"cluster.key_file\" is empty; set both, or none".to_owned());
    }
}

fn base_path(path: &str) -> Option<String> {
    let is_name = |segment: &str| {
        let is_plain = segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~".contains(&b));
        is_plain && !matches!(segment, "" | "." | "..")
    };
    let is_path = path.is_empty() || path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(is_name));
    (!is_path).then(|| {
        format!(
            "\"base_path\" is \"{path}\"; it must be empty, or start with / and not end with /, and have only letters, digits and \
             - _ . ~ between, as in \"/api/pool\""
        )
    })
}

fn attributes(names: &[String], found: &mut Vec<String>) {
    let is_name_byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b);
    for (position, name) in names.iter().enumerate() {
        let reason = if name.is_empty() || !name.bytes().all(is_name_byte) {
            "an attribute's name has only lower-case letters, digits, _ and -"
        } else if name == "user" {
            "policies call the reader's id \"user\"; choose another name"
        } else if name == TOKEN_PARAMETER {
            "this parameter holds tokens, which policies must not see; choose another name"
        } else if names.iter().take(position).any(|earlier| earlier == name) {
            "it occurs twice; leave one out"
        } else {
            continue;
        };
        found.push(format!("\"sockets.attributes\" contains \"{name}\": {reason}"));
    }
}

fn name_of(what: &str, name: &str) -> Option<String> {
    let is_name_byte = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    let is_name = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_name_byte);
    (!is_name).then(|| format!("the {what} name \"{name}\" must have 1 to {NAME_BYTES_MAX} letters, digits, _ and -; rename it"))
}

fn candidates(config: &Config, found: &mut Vec<String>) {
    let candidates = config.policies.iter().filter_map(|(name, policy)| Some((name, policy.candidate.as_ref()?)));
    let mut canary = None;
    for (name, candidate) in candidates {
        if candidate.file.as_os_str().is_empty() {
            found.push(format!(
                "\"policies.{name}.candidate.file\" is empty; name the component that is on trial, as in \"{name}-next.wasm\""
            ));
        }
        if candidate.mode == CandidateMode::Canary
            && let Some(other) = canary.replace(name)
        {
            found.push(format!(
                "\"policies.{other}.candidate.mode\" and \"policies.{name}.candidate.mode\" are both \"canary\"; try one after the other, \
                 so that it is known which one an event has met"
            ));
        }
    }
}

fn sink(config: &Config, name: &str, sink: &Sink, found: &mut Vec<String>) {
    found.extend(name_of("sink", name));
    let wrong = url(&sink.url, "https://backend.example.com/signalpost", "requests are signed");
    found.extend(wrong.map(|wrong| format!("\"sinks.{name}.url\" is \"{}\"; {wrong}", sink.url)));
    if sink.events.is_empty() {
        found.push(format!("\"sinks.{name}.events\" is empty; name the types of events that it hears, as in \"pooling.offer.*\""));
    }
    if sink.secret_files.is_empty() {
        found.push(format!(
            "\"sinks.{name}.secret_files\" is empty; name a file with a secret (whsec_…), so that the backend can tell who posts"
        ));
    }
    for (setting, patterns) in [("events", &sink.events), ("sources", &sink.sources)] {
        let is_pattern = |pattern: &str| !pattern.is_empty() && !pattern.strip_suffix('*').unwrap_or(pattern).contains('*');
        for pattern in patterns.iter().filter(|pattern| !is_pattern(pattern)) {
            found.push(format!("\"sinks.{name}.{setting}\" contains \"{pattern}\"; a * stands at the end only, as in \"pooling.*\""));
        }
    }
    let limits = config.sink_limits_for(name);
    for (own, value, most, most_value) in [
        ("bytes_max", limits.bytes_max.get(), "mailboxes.total_bytes_max", config.mailboxes.total_bytes_max.get()),
        ("messages_max", limits.messages_max.get(), "mailboxes.total_messages_max", config.mailboxes.total_messages_max.get()),
    ] {
        if value > most_value {
            found.push(format!(
                "\"{own}\" of the sink {name} is {value}, above \"{most}\", which is {most_value}; lower the first or raise the second"
            ));
        }
    }
    if limits.bytes_max < config.events.event_bytes_max {
        let (bytes, event) = (limits.bytes_max, config.events.event_bytes_max);
        found.push(format!(
            "\"bytes_max\" of the sink {name} is {bytes}, below \"events.event_bytes_max\", which is {event}; raise the first or lower the second"
        ));
    }
}

fn traces(config: &Config) -> Option<String> {
    let endpoint = Some(&config.traces.endpoint).filter(|endpoint| !endpoint.is_empty())?;
    let wrong = url(endpoint, "http://127.0.0.1:4318/v1/traces", "OTEL_EXPORTER_OTLP_HEADERS takes them")?;
    Some(format!("\"traces.endpoint\" is \"{endpoint}\"; {wrong}"))
}

/// Returns what is wrong with the URL of a backend, as `example` is one. `credentials`: where those go that are not part of it.
fn url(url: &str, example: &str, credentials: &str) -> Option<String> {
    let uri = url.parse::<http::Uri>().ok();
    let authority = uri.as_ref().and_then(http::Uri::authority);
    let is_http = matches!(uri.as_ref().and_then(http::Uri::scheme_str), Some("http" | "https"));
    match authority {
        // What is before an @ would be shown wherever the URL is.
        Some(authority) if is_http && authority.as_str().contains('@') => Some(format!("leave the user and password out: {credentials}")),
        Some(authority) if is_http && !authority.host().is_empty() => None,
        _ => Some(format!("expected an http or https URL, as in \"{example}\"")),
    }
}

/// Reports each pair whose first setting is above the second, so that it could never be reached, or never fit.
fn contradictions(config: &Config, found: &mut Vec<String>) {
    let Config { sockets, mailboxes, events, groups, dead_letters, http, cluster, traces, .. } = config;
    let milliseconds = |time: Milliseconds| usize::try_from(time.as_millis()).unwrap_or(usize::MAX);
    let pairs = [
        ("sockets.close_deadline_ms", milliseconds(sockets.close_deadline_ms), "stop_deadline_ms", milliseconds(config.stop_deadline_ms)),
        ("mailboxes.messages_max", mailboxes.messages_max.get(), "mailboxes.total_messages_max", mailboxes.total_messages_max.get()),
        ("mailboxes.bytes_max", mailboxes.bytes_max.get(), "mailboxes.total_bytes_max", mailboxes.total_bytes_max.get()),
        ("events.event_bytes_max", events.event_bytes_max.get(), "events.body_bytes_max", events.body_bytes_max.get()),
        ("events.body_bytes_max", events.body_bytes_max.get(), "http.bodies_bytes_max", http.bodies_bytes_max.get()),
        ("events.event_bytes_max", events.event_bytes_max.get(), "mailboxes.bytes_max", mailboxes.bytes_max.get()),
        ("events.event_bytes_max", events.event_bytes_max.get(), "dead_letters.bytes_max", dead_letters.bytes_max.get()),
        ("cluster.beat_ms", milliseconds(cluster.beat_ms), "cluster.lead_after_ms", milliseconds(cluster.lead_after_ms)),
        ("cluster.lead_after_ms", milliseconds(cluster.lead_after_ms), "cluster.gone_after_ms", milliseconds(cluster.gone_after_ms)),
        ("cluster.gone_after_ms", milliseconds(cluster.gone_after_ms), "cluster.alone_ms", milliseconds(cluster.alone_ms)),
        ("cluster.alone_ms", milliseconds(cluster.alone_ms), "cluster.events_again_after_ms", milliseconds(cluster.events_again_after_ms)),
        ("traces.batch_max", traces.batch_max.get(), "traces.queue_max", traces.queue_max.get()),
        ("groups.members_max", groups.members_max.get(), "groups.memberships_max", groups.memberships_max.get()),
    ];
    for (low, low_value, high, high_value) in pairs {
        if low_value > high_value {
            found.push(format!("\"{low}\" is {low_value}, above \"{high}\", which is {high_value}; lower the first or raise the second"));
        }
    }
}
