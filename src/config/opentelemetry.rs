//! OpenTelemetry's own variables, which set the table `[traces]`. Platforms set them for every process, so one that this server can't follow
//! is ignored, as the specification says, and does not keep it from starting.

use std::collections::BTreeMap;

use toml::Value;

/// A setting in `[traces]`, its value, and the variable that gives it.
pub(super) type Given = (&'static str, Value, &'static str);

/// Numbers that have the same meaning there.
const NUMBERS: [(&str, &str); 5] = [
    ("OTEL_BSP_MAX_QUEUE_SIZE", "queue_max"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "batch_max"),
    ("OTEL_BSP_SCHEDULE_DELAY", "interval_ms"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "deadline_ms"),
    ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "deadline_ms"),
];

/// Returns what the variables of an environment say. Of a setting that is there twice, the last counts.
pub(super) fn given(environment: &[(String, String)]) -> Vec<Given> {
    let all: BTreeMap<&str, &str> = environment.iter().map(|(name, value)| (name.as_str(), value.trim())).collect();
    // An empty variable is one that isn't set.
    let get = |name: &str| all.get(name).copied().filter(|value| !value.is_empty());
    let mut found = Vec::new();
    found.extend(endpoint(&get).map(|(endpoint, name)| ("endpoint", endpoint.into(), name)));
    found.extend(get("OTEL_TRACES_SAMPLER").into_iter().flat_map(|sampler| sampling(sampler, get("OTEL_TRACES_SAMPLER_ARG"))));
    for (name, setting) in NUMBERS {
        found.extend(get(name).and_then(|value| value.parse::<i64>().ok()).map(|number| (setting, number.into(), name)));
    }
    found
}

fn endpoint<'a>(get: &impl Fn(&str) -> Option<&'a str>) -> Option<(String, &'static str)> {
    if get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Some((String::new(), "OTEL_SDK_DISABLED"));
    }
    if get("OTEL_TRACES_EXPORTER").is_some_and(|exporter| exporter == "none") {
        return Some((String::new(), "OTEL_TRACES_EXPORTER"));
    }
    let protocol = get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| get("OTEL_EXPORTER_OTLP_PROTOCOL"));
    // An address for gRPC takes no HTTP.
    if protocol.is_some_and(|protocol| protocol != "http/protobuf") {
        return None;
    }
    if let Some(endpoint) = get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
        return Some((endpoint.to_owned(), "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"));
    }
    let base = get("OTEL_EXPORTER_OTLP_ENDPOINT")?;
    Some((format!("{}/v1/traces", base.trim_end_matches('/')), "OTEL_EXPORTER_OTLP_ENDPOINT"))
}

fn sampling(sampler: &str, share: Option<&str>) -> Vec<Given> {
    const NAME: &str = "OTEL_TRACES_SAMPLER";
    let (follows_parent, kind) = match sampler.strip_prefix("parentbased_") {
        Some(kind) => (true, kind),
        None => (false, sampler),
    };
    let share = match kind {
        "always_on" => 1.0,
        "always_off" => 0.0,
        // Without a share, all of them.
        "traceidratio" => share.map_or(Some(1.0), |share| share.parse().ok()).unwrap_or(1.0),
        // Such a sampler is not this server's.
        _ => return Vec::new(),
    };
    vec![("sample_ratio", Value::Float(share), NAME), ("follow_parent", follows_parent.into(), NAME)]
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Setting, Source};

    fn load(variables: &[(&str, &str)]) -> Vec<Setting> {
        let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let file = Some(("s.toml", "traces.endpoint = \"http://file/\"\ntraces.queue_max = 9_000"));
        Config::merge(file, toml::Table::new(), environment).unwrap().1
    }

    fn value(variables: &[(&str, &str)], setting: &str) -> String {
        let path = format!("traces.{setting}");
        load(variables).into_iter().find(|setting| setting.path == path).unwrap().value.to_string()
    }

    #[test]
    fn the_collector_is_the_one_that_opentelemetrys_variables_name() {
        let (general, own) = (("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4318/"), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b/spans"));
        for (variables, endpoint) in [
            (&[][..], "http://file/"),
            (&[general], "http://a:4318/v1/traces"),
            (&[general, own], "http://b/spans"),
            (&[general, own, ("SIGNALPOST_TRACES_ENDPOINT", "http://c/")], "http://c/"),
            (&[general, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")], "http://a:4318/v1/traces"),
            (&[general, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], "http://file/"),
            (&[general, ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json")], "http://file/"),
            (&[general, ("OTEL_SDK_DISABLED", "TRUE")], ""),
            (&[general, ("OTEL_SDK_DISABLED", "false")], "http://a:4318/v1/traces"),
            (&[general, ("OTEL_TRACES_EXPORTER", "none")], ""),
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")], "http://file/"),
        ] {
            assert_eq!(value(variables, "endpoint"), format!("\"{endpoint}\""), "{variables:?}");
        }
        let source = load(&[general]).into_iter().find(|setting| setting.path == "traces.endpoint").unwrap().source;
        assert_eq!(source, Source::Environment("OTEL_EXPORTER_OTLP_ENDPOINT".into()));
    }

    #[test]
    fn the_sampler_is_the_one_that_opentelemetrys_variables_name() {
        let name = "OTEL_TRACES_SAMPLER";
        for (sampler, share, ratio, follows) in [
            ("always_on", "", "1.0", "false"),
            ("always_off", "", "0.0", "false"),
            ("traceidratio", "0.25", "0.25", "false"),
            ("parentbased_always_on", "", "1.0", "true"),
            ("parentbased_always_off", "0.5", "0.0", "true"),
            ("parentbased_traceidratio", "0.1", "0.1", "true"),
            ("parentbased_traceidratio", "", "1.0", "true"),
            ("parentbased_traceidratio", "a tenth", "1.0", "true"),
            ("jaeger_remote", "0.1", "0.0", "true"),
            ("parentbased_traceidratio", "7", "0.0", "true"),
        ] {
            let variables = [(name, sampler), ("OTEL_TRACES_SAMPLER_ARG", share)];
            let read = [value(&variables, "sample_ratio"), value(&variables, "follow_parent")];
            assert_eq!(read, [ratio, follows], "{sampler} {share}");
        }
    }

    #[test]
    fn bounds_that_opentelemetrys_variables_name_count_and_invalid_ones_dont() {
        let variables =
            [("OTEL_BSP_MAX_QUEUE_SIZE", "4096"), ("OTEL_BSP_SCHEDULE_DELAY", "soon"), ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "-1")];
        let read = ["queue_max", "interval_ms", "batch_max"].map(|setting| value(&variables, setting));
        assert_eq!(read, ["4096", "5000", "512"]);
        let variables = [("OTEL_EXPORTER_OTLP_TIMEOUT", "1000"), ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2000")];
        assert_eq!(value(&variables, "deadline_ms"), "2000");
    }
}
