use std::path::PathBuf;

use super::*;
use crate::config::{Grant, LogLevel, SessionsFault};

/// A file for one test, which is removed when this is dropped.
struct File(PathBuf);

impl File {
    fn of(text: &str) -> File {
        let path = std::env::temp_dir().join(format!("signalpost-{}.toml", uuid::Uuid::new_v4()));
        std::fs::write(&path, text).unwrap();
        File(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn load(text: &str, environment: &[(&str, &str)], flags: &str) -> Result<(Config, Vec<Setting>), Vec<String>> {
    let file = File::of(text);
    let environment = environment.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    Config::load(Some(&file.0), flags.parse().unwrap(), environment).map_err(|error| {
        let name = file.0.display().to_string();
        let problems = error.downcast::<Problems>().expect("the file can be read").0;
        problems.into_iter().map(|problem| problem.replace(&name, "signalpost.toml")).collect()
    })
}

fn config(text: &str, environment: &[(&str, &str)]) -> Config {
    load(text, environment, "").unwrap().0
}

fn problems(text: &str, environment: &[(&str, &str)]) -> Vec<String> {
    load(text, environment, "").unwrap_err()
}

#[test]
fn the_plugins_own_settings_and_the_digests_of_keys_are_hidden() {
    let setting = |path: &str, value: Value| Setting { path: path.to_owned(), variable: String::new(), value, source: Source::File };
    for path in ["policies.chat.settings.text_chars_max", "policies.settings.settings.a.b"] {
        assert_eq!(setting(path, 5.into()).hidden().value, Value::from("hidden"), "{path}");
    }
    for path in ["policies.chat.order", "policies.settings.order", "limits.settings", "listen"] {
        assert_eq!(setting(path, 5.into()).hidden().value, Value::from(5), "{path}");
    }
    let keys: Table = toml::from_str("keys = [{ name = \"backend\", sha256 = \"00ff\", scopes = [\"publish\"] }]").unwrap();
    let hidden = setting("auth.keys", keys["keys"].clone()).hidden().value.to_string();
    assert!(hidden.contains("backend") && hidden.contains("publish") && !hidden.contains("00ff"), "{hidden}");
}

#[test]
fn no_file_is_needed_and_every_default_is_shown() {
    let (config, settings) = Config::load(None, Table::new(), std::iter::empty()).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.policies["pooling"].grants, [Grant::Groups, Grant::Presence, Grant::State]);
    assert_eq!(settings[0].path, "listen");
    assert!(settings.iter().all(|setting| setting.source == Source::Default));
    let sockets = settings.iter().find(|setting| setting.path == "sockets.per_user_max").unwrap();
    assert_eq!((sockets.variable.as_str(), &sockets.value), ("SIGNALPOST_SOCKETS_PER_USER_MAX", &Value::Integer(8)));
}

#[test]
fn a_missing_file_is_an_error_that_names_it() {
    let error = Config::load(Some(Path::new("/nowhere/signalpost.toml")), Table::new(), std::iter::empty()).unwrap_err();
    assert_eq!(error.to_string(), "can't read /nowhere/signalpost.toml");
}

#[test]
fn flags_stand_over_the_environment_and_the_environment_over_the_file() {
    let file = "[sockets]\nper_user_max = 2\nping_interval_ms = 1\npong_deadline_ms = 1\n";
    let environment = [("SIGNALPOST_SOCKETS_PER_USER_MAX", "3"), ("SIGNALPOST_SOCKETS_PING_INTERVAL_MS", "3")];
    let (config, settings) = load(file, &environment, "sockets.per_user_max = 4").unwrap();
    let sockets = &config.sockets;
    let milliseconds = [*sockets.ping_interval_ms, *sockets.pong_deadline_ms].map(|time| time.as_millis());
    assert_eq!((sockets.per_user_max.get(), milliseconds), (4, [3, 1]));
    let source = |path: &str| settings.iter().find(|setting| setting.path == path).unwrap().source.clone();
    assert_eq!(source("sockets.per_user_max"), Source::Flag);
    assert_eq!(source("sockets.ping_interval_ms"), Source::Environment("SIGNALPOST_SOCKETS_PING_INTERVAL_MS".into()));
    assert_eq!(source("sockets.pong_deadline_ms"), Source::File);
    assert_eq!(source("sockets.too_many"), Source::Default);
}

#[test]
fn unknown_settings_of_a_file_are_reported_with_their_lines_and_nearest_names() {
    let file = "[sockets]\nping_intervall_ms = 1\n[policies.pooling]\ngrant = []\n[policies.pooling.limits]\nmemory = 1\n[zzzz]\n";
    assert_eq!(
        problems(file, &[]),
        [
            r#"unknown setting "policies.pooling.grant" in signalpost.toml:4; did you mean "policies.pooling.grants"?"#,
            r#"unknown setting "policies.pooling.limits.memory" in signalpost.toml:6; did you mean "policies.pooling.limits.memory_bytes_max"?"#,
            r#"unknown setting "sockets.ping_intervall_ms" in signalpost.toml:2; did you mean "sockets.ping_interval_ms"?"#,
            r#"unknown setting "zzzz" in signalpost.toml:7"#,
        ]
    );
}

#[test]
fn a_setting_in_the_wrong_table_is_pointed_to_the_right_one() {
    let found = problems("per_user_max = 3", &[]);
    assert_eq!(found, [r#"unknown setting "per_user_max" in signalpost.toml:1; did you mean "sockets.per_user_max"?"#]);
}

#[test]
fn a_wrong_value_is_reported_with_the_expected_one() {
    let file = r#"
listen = "here"
worker_threads = "many"
sockets = 3
listen_beyond_loopback_without_authentication = "yes"
base_path = 1
[log]
level = "loud"
[mailboxes]
keep_ms = -1
[plugins]
on_bad = 7
dir = ["plugins"]
[policies.chat]
grants = ["groups", "disk"]
order = 0.5
events = "chat"
"#;
    assert_eq!(
        problems(file, &[]),
        [
            r#""base_path" in signalpost.toml:6 is 1; expected a string in quotes"#,
            r#""listen" in signalpost.toml:2 is "here"; expected an address and a port, as in "127.0.0.1:8080""#,
            r#""listen_beyond_loopback_without_authentication" in signalpost.toml:5 is "yes"; expected true or false"#,
            r#""log.level" in signalpost.toml:8 is "loud"; expected one of "error", "warn", "info", "debug", "trace""#,
            r#""mailboxes.keep_ms" in signalpost.toml:10 is -1; expected a whole number, 1 or more"#,
            r#""plugins.dir" in signalpost.toml:13 is ["plugins"]; expected a string in quotes"#,
            r#""plugins.on_bad" in signalpost.toml:12 is 7; expected one of "keep", "stop", "skip""#,
            r#""policies.chat.events" in signalpost.toml:17 is "chat"; expected a list of strings in quotes"#,
            r#""policies.chat.grants" in signalpost.toml:15 is ["groups", "disk"]; expected a list of "clock", "groups", "log", "metrics", "presence", "state", "wasi""#,
            r#""policies.chat.order" in signalpost.toml:16 is 0.5; expected a whole number"#,
            r#""sockets" in signalpost.toml:4 is 3; expected a table"#,
            r#""worker_threads" in signalpost.toml:3 is "many"; expected a whole number, 0 or more"#,
        ]
    );
}

#[test]
fn an_impossible_duration_is_refused_by_name() {
    let file = "stop_notice_ms = 3155760000001\n[mailboxes]\nkeep_ms = 9223372036854775807\nresume_ms = 3155760000000\n";
    assert_eq!(
        problems(file, &[("SIGNALPOST_LIMITS_CALL_DEADLINE_MS", "3155760000001")]),
        [
            r#""mailboxes.keep_ms" in signalpost.toml:3 is 9223372036854775807; expected at most 3155760000000, which is 100 years"#,
            r#""stop_notice_ms" in signalpost.toml:1 is 3155760000001; expected at most 3155760000000, which is 100 years"#,
            "SIGNALPOST_LIMITS_CALL_DEADLINE_MS is 3155760000001; expected at most 3155760000000, which is 100 years",
        ]
    );
}

#[test]
fn live_settings_are_refused_if_those_that_stay_contradict_them() {
    let key = |name: &str| format!("[[auth.keys]]\nname = \"{name}\"\nsha256 = \"00\"\nscopes = [\"read\"]\n");
    let users = "[auth.users]\nalgorithms = [\"HS256\"]\n";
    let wide = config(&format!("listen = \"0.0.0.0:1\"\n{}{users}", key("a")), &[]);
    // By itself it is valid: it listens on loopback. But that takes a restart.
    let open = config("listen = \"127.0.0.1:1\"\n[sockets]\nper_user_max = 1\n", &[]);
    let Problems(problems) = wide.with_live(&open).unwrap_err();
    assert!(problems[0].starts_with("\"listen\" is 0.0.0.0:1, which other machines can reach"), "{problems:?}");
    let next = config(&format!("listen = \"127.0.0.1:1\"\nlog.level = \"warn\"\nlog.format = \"json\"\n{}{users}", key("b")), &[]);
    let live = wide.with_live(&next).unwrap();
    assert_eq!((live.auth.keys[0].name.as_str(), live.log.level, live.listen), ("b", LogLevel::Warn, wide.listen));
    assert_eq!((live.log.format, live.sockets.per_user_max), (wide.log.format, wide.sockets.per_user_max));
}

#[test]
fn localhost_is_an_address() {
    let file = "listen = \"LocalHost:80\"\noperate_listen = \"localhost:0\"\n";
    let config = Config::merge(Some(("signalpost.toml", file)), Table::new(), std::iter::empty()).unwrap().0;
    assert_eq!((config.listen.to_string(), config.operate_listen.unwrap().to_string()), ("127.0.0.1:80".into(), "127.0.0.1:0".into()));
    assert_eq!(
        problems("listen = \"localhost\"\n", &[]),
        [r#""listen" in signalpost.toml:1 is "localhost"; expected an address and a port, as in "127.0.0.1:8080""#]
    );
}

#[test]
fn a_wrong_value_in_a_list_is_reported_with_the_expected_ones() {
    let file = r#"
operate_listen = "there"
[auth]
origins = ["https://a.example", 7]
keys = [{ name = "backend", sha256 = "00", scopes = ["fly"] }]
[auth.users]
algorithms = ["RS256", "none"]
[plugins]
on_bad = "ask"
[policies.chat]
grants = "groups"
isolation = ["fresh"]
on_fault = "stop"
"#;
    assert_eq!(
        problems(file, &[]),
        [
            r#""auth.keys" in signalpost.toml:5 is [{ name = "backend", scopes = ["fly"], sha256 = "00" }]; unknown variant `fly`, expected one of `publish`, `read`, `operate`"#,
            r#""auth.origins" in signalpost.toml:4 is ["https://a.example", 7]; expected a list of strings in quotes"#,
            r#""auth.users.algorithms" in signalpost.toml:7 is ["RS256", "none"]; expected a list of "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA""#,
            r#""operate_listen" in signalpost.toml:2 is "there"; expected an address and a port, as in "127.0.0.1:8080""#,
            r#""plugins.on_bad" in signalpost.toml:9 is "ask"; expected one of "keep", "stop", "skip""#,
            r#""policies.chat.grants" in signalpost.toml:11 is "groups"; expected a list"#,
            r#""policies.chat.isolation" in signalpost.toml:12 is ["fresh"]; expected "reuse" or "fresh""#,
            r#""policies.chat.on_fault" in signalpost.toml:13 is "stop"; expected a table"#,
        ]
    );
}

#[test]
fn a_file_that_is_not_toml_is_reported_with_the_line() {
    let found = problems("listen = \"127.0.0.1:1\"\nworker_threads = = 3\n", &[]);
    assert!(found[0].starts_with("signalpost.toml:2 isn't TOML: "), "{found:?}");
}

#[test]
fn a_variable_is_read_as_its_setting_needs_it() {
    let environment = [
        ("HOME", "/root"),
        ("SIGNALPOST_CONFIG", "signalpost.toml"),
        ("SIGNALPOST_BASE_PATH", "/42"),
        ("SIGNALPOST_LOG_LEVEL", "debug"),
        ("SIGNALPOST_PLUGINS_WATCH", "false"),
        ("SIGNALPOST_SOCKETS_ATTRIBUTES", "locale, device"),
        ("SIGNALPOST_POLICIES_CHAT_GRANTS", r#"["log", "groups"]"#),
        ("SIGNALPOST_POLICIES_CHAT_ON_FAULT_SESSIONS", "refuse"),
        ("SIGNALPOST_POLICIES_CHAT_EVENTS", "pooling.chat.message"),
        ("SIGNALPOST_POLICIES_CHAT_FILE", "42"),
        ("SIGNALPOST_POLICIES_CHAT_LIMITS_CALL_DEADLINE_MS", "50"),
        ("SIGNALPOST_POLICIES_CHAT_SETTINGS", "{ words = 3 }"),
    ];
    let config = config("", &environment);
    assert_eq!((config.base_path.as_str(), config.log.level, config.plugins.watch), ("/42", LogLevel::Debug, false));
    assert_eq!(config.sockets.attributes, ["locale", "device"]);
    let chat = &config.policies["chat"];
    assert_eq!((chat.grants.as_slice(), chat.on_fault.sessions), ([Grant::Log, Grant::Groups].as_slice(), SessionsFault::Refuse));
    assert_eq!(chat.events.as_deref(), Some(["pooling.chat.message".to_owned()].as_slice()));
    assert_eq!(chat.file.as_deref(), Some(Path::new("42")));
    assert_eq!(chat.settings["words"].as_integer(), Some(3));
    assert_eq!(config.limits_for("chat").call_deadline_ms.as_millis(), 50);
}

#[test]
fn a_variable_sets_policies_of_the_file_and_new_ones() {
    let file = "[policies.My-Policy]\nsettings.Tone.loud = \"7\"\n";
    let environment = [
        ("SIGNALPOST_POLICIES_MY_POLICY_ORDER", "-1"),
        ("SIGNALPOST_POLICIES_MY_POLICY_SETTINGS_TONE_LOUD", "8"),
        ("SIGNALPOST_POLICIES_NEW_ONE_LIMITS_ITEMS_MAX", "9"),
    ];
    let config = config(file, &environment);
    assert_eq!(config.policies["My-Policy"].order, Some(-1));
    assert_eq!(config.policies["My-Policy"].settings["Tone"]["loud"].as_str(), Some("8"));
    assert_eq!(config.limits_for("new_one").items_max.get(), 9);
}

#[test]
fn an_unknown_or_wrong_variable_is_refused_by_its_own_name() {
    let found = problems("", &[("SIGNALPOST_SOKETS_PER_USER_MAX", "4"), ("SIGNALPOST_SOCKETS_PER_USER_MAX", "few")]);
    assert_eq!(
        found,
        [
            r#"SIGNALPOST_SOCKETS_PER_USER_MAX is "few"; expected a whole number, 1 or more"#,
            "unknown environment variable SIGNALPOST_SOKETS_PER_USER_MAX; did you mean SIGNALPOST_SOCKETS_PER_USER_MAX?",
        ]
    );
}

#[test]
fn a_variable_that_could_mean_two_settings_is_refused() {
    let found = problems("[policies.a-b]\n[policies.a_b]\n", &[("SIGNALPOST_POLICIES_A_B_ORDER", "1")]);
    assert_eq!(found, [r#"SIGNALPOST_POLICIES_A_B_ORDER can mean "policies.a-b.order" or "policies.a_b.order"; set it in the file"#]);
}

#[test]
fn variables_that_commands_and_clients_read_are_ignored() {
    for name in ["CONFIG", "KEY", "TOKEN", "URL"] {
        config("", &[(&format!("SIGNALPOST_{name}"), "http://127.0.0.1:8080/api/pool")]);
        assert_eq!(problems("", &[(&format!("SIGNALPOST_{name}S"), "1")]).len(), 1);
    }
}

#[test]
fn variables_that_kubernetes_sets_for_a_service_named_signalpost_are_ignored() {
    let environment = [
        ("SIGNALPOST_SERVICE_HOST", "10.0.0.1"),
        ("SIGNALPOST_SERVICE_PORT_HTTP", "8080"),
        ("SIGNALPOST_PORT", "tcp://10.0.0.1:8080"),
        ("SIGNALPOST_PORT_8080_TCP_ADDR", "10.0.0.1"),
    ];
    config("", &environment);
    assert_eq!(problems("", &[("SIGNALPOST_PORT", "8080")]).len(), 1);
}

#[test]
fn a_policys_limits_stand_over_the_global_ones() {
    let config = config("[limits]\nitems_max = 5\nrecipients_max = 6\n[policies.chat.limits]\nitems_max = 7\n", &[]);
    let own = config.limits_for("chat");
    assert_eq!((own.items_max.get(), own.recipients_max.get()), (7, 6));
    assert_eq!(config.limits_for("pooling").items_max.get(), 5);
    assert_eq!(config.limits_for("only-a-file").items_max.get(), 5);
}

#[test]
fn an_empty_policy_table_is_a_policy() {
    assert!(config("[policies.extra]", &[]).policies.contains_key("extra"));
}

#[test]
fn an_address_that_other_machines_reach_needs_authentication_or_consent() {
    assert!(problems("listen = \"0.0.0.0:8080\"", &[])[0].starts_with("\"listen\" is 0.0.0.0:8080, which other machines"));
    config("listen = \"0.0.0.0:8080\"\nlisten_beyond_loopback_without_authentication = true", &[]);
    config("listen = \"[::1]:0\"", &[]);
}

#[test]
fn a_base_path_is_empty_or_a_path_without_a_trailing_slash() {
    for good in ["", "/a", "/api/v1.0/pool_x"] {
        config(&format!("base_path = \"{good}\""), &[]);
    }
    for bad in ["/", "api", "/api/", "/a//b", "/a/../b", "/{x}", "/a?b", "/a b"] {
        assert_eq!(problems(&format!("base_path = \"{bad}\""), &[]).len(), 1, "{bad}");
    }
}

#[test]
fn a_setting_is_zero_only_if_zero_means_something() {
    let file = "worker_threads = 0\n[sockets]\nidle_deadline_ms = 0\nper_user_max = 0\nping_interval_ms = 0\n[policies.chat]\norder = 0\n\
                settings.depth_max = 0\nlimits.call_deadline_ms = 0\n";
    assert_eq!(
        problems(file, &[("SIGNALPOST_HTTP_BACKLOG", "0")]),
        [
            r#""policies.chat.limits.call_deadline_ms" in signalpost.toml:9 is 0; expected a whole number, 1 or more"#,
            r#""sockets.per_user_max" in signalpost.toml:4 is 0; expected a whole number, 1 or more"#,
            r#""sockets.ping_interval_ms" in signalpost.toml:5 is 0; expected a whole number, 1 or more"#,
            "SIGNALPOST_HTTP_BACKLOG is 0; expected a whole number, 1 or more",
        ]
    );
}

/// Checks which settings may be zero. A new one for which zero has a meaning has to be added here.
#[test]
fn the_settings_that_may_be_zero_are_these() {
    let (_, settings) = Config::load(None, Table::new(), std::iter::empty()).unwrap();
    let numbers = settings.iter().filter(|setting| setting.value.is_integer());
    let may_be_zero: Vec<&str> =
        numbers.filter(|setting| load("", &[(&setting.variable, "0")], "").is_ok()).map(|setting| setting.path.as_str()).collect();
    assert_eq!(
        may_be_zero,
        [
            "stop_notice_ms",
            "stop_return_within_ms",
            "worker_threads",
            "auth.users.leeway_s",
            "auth.users.expiry_grace_ms",
            "http.connections_per_address_max",
            "store.free_bytes_min",
            "sockets.per_address_max",
            "sockets.idle_deadline_ms",
            "sockets.resume_wait_ms",
            "mailboxes.resume_ms",
            "mailboxes.shapes_bytes_max",
            "events.dedup_window_ms",
            "traces.deliveries_max",
            "plugins.retire_ms",
            "limits.trial_calls",
            "limits.log_lines_max",
            "limits.log_line_bytes_max",
            "limits.state_keys_max",
            "limits.state_bytes_max",
            "limits.metric_names_max",
            "sink_limits.retry_after_max_ms",
            "policies.offers.order",
        ]
    );
}

#[test]
fn attributes_and_policies_have_plain_names() {
    let file =
        "[sockets]\nattributes = [\"user\", \"Locale\", \"x\", \"x\", \"\", \"access_token\"]\n[policies.\"a b\"]\n[policies.\"\"]\n";
    assert_eq!(problems(file, &[]).len(), 7);
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    let found = problems("[mailboxes]\nbytes_max = 1000", &[]);
    assert_eq!(
        found,
        [r#""events.event_bytes_max" is 262144, above "mailboxes.bytes_max", which is 1000; lower the first or raise the second"#]
    );
}

const SINK: &str = "url = \"https://b.example/hook\"\nevents = [\"a.*\"]\nsecret_files = [\"s\"]\n";

#[test]
fn a_sink_has_the_limits_of_all_with_its_own_over_them() {
    let file = format!("[sink_limits]\nbatch_max = 7\n[sinks.one]\n{SINK}[sinks.one.limits]\nkeep_ms = 5\n[sinks.two]\n{SINK}");
    let environment = [
        ("SIGNALPOST_SINK_LIMITS_REQUESTS_MAX", "3"),
        ("SIGNALPOST_SINKS_TWO_LIMITS_BATCH_MAX", "9"),
        ("SIGNALPOST_SINKS_TWO_EVENTS", "b.*, c"),
        ("SIGNALPOST_SINKS_THREE_URL", "http://[::1]:9/"),
        ("SIGNALPOST_SINKS_THREE_EVENTS", "x"),
        ("SIGNALPOST_SINKS_THREE_SECRET_FILES", "/run/a,/run/b"),
    ];
    let (config, settings) = load(&file, &environment, "").unwrap();
    let limits = |name: &str| {
        let limits = config.sink_limits_for(name);
        (limits.batch_max.get(), limits.keep_ms.get(), limits.requests_max.get())
    };
    assert_eq!([limits("one"), limits("two"), limits("three")], [(7, 5, 3), (9, 86_400_000, 3), (7, 86_400_000, 3)]);
    assert_eq!(config.sinks["two"].events, ["b.*", "c"]);
    let three = &config.sinks["three"];
    assert_eq!((three.url.as_str(), three.secret_files.len()), ("http://[::1]:9/", 2));
    assert_eq!(three.sources, ["/policies/*", "/signalpost"]);
    let shown = settings.iter().find(|setting| setting.path == "sinks.two.limits.batch_max").unwrap();
    assert_eq!((shown.variable.as_str(), &shown.value), ("SIGNALPOST_SINKS_TWO_LIMITS_BATCH_MAX", &Value::Integer(9)));
}

#[test]
fn a_sink_that_cannot_work_is_refused_with_what_to_do() {
    assert_eq!(
        problems("[sinks.b]\n", &[]),
        [
            r#""sinks.b.url" is ""; expected an http or https URL, as in "https://backend.example.com/signalpost""#,
            r#""sinks.b.events" is empty; name the types of events that it hears, as in "pooling.offer.*""#,
            r#""sinks.b.secret_files" is empty; name a file with a secret (whsec_…), so that the backend can tell who posts"#,
        ]
    );
    let with_url = |url: &str| load(&format!("[sinks.b]\nurl = {url:?}\nevents = [\"*\"]\nsecret_files = [\"s\"]\n"), &[], "");
    for bad in ["backend", "/hook", "ftp://b", "ws://b", "http://", "https:///hook", "http://b c", "http://me:secret@b/hook", "http://me@b"]
    {
        let found = with_url(bad).unwrap_err();
        assert!(found.len() == 1 && found[0].starts_with("\"sinks.b.url\" is "), "{bad}: {found:?}");
    }
    for good in ["http://127.0.0.1:1", "https://b/x?y=z", "http://localhost/", "HTTPS://B"] {
        assert!(with_url(good).is_ok(), "{good}");
    }
    let file = format!("[sinks.\"a b\"]\n{SINK}sources = [\"/a*b\", \"\"]\nlimits.bytes_max = 5\n");
    let found = problems(&file, &[]);
    let says = [
        "the sink name \"a b\" must have 1 to 64 letters",
        "\"sinks.a b.sources\" contains \"/a*b\"; a * stands at the end only",
        "\"sinks.a b.sources\" contains \"\"; a * stands at the end only",
        "\"bytes_max\" of the sink a b is 5, below \"events.event_bytes_max\"",
    ];
    assert_eq!(found.len(), says.len(), "{found:?}");
    for (found, says) in found.iter().zip(says) {
        assert!(found.starts_with(says), "{found}");
    }
    assert_eq!(
        problems(&format!("[sinks.b]\n{SINK}event = 1\nlimits.batch = 2\n"), &[]),
        [
            r#"unknown setting "sinks.b.event" in signalpost.toml:5; did you mean "sinks.b.events"?"#,
            r#"unknown setting "sinks.b.limits.batch" in signalpost.toml:6; did you mean "sinks.b.limits.batch_max"?"#,
        ]
    );
}
