//! The bounds that policies keep are those of a server without a configuration.

use signalpost_plugin::bounds;

const DEFAULTS: &str = include_str!("../../../src/config/default.toml");

/// The value of a setting of one table.
fn default_of(table: &str, key: &str) -> usize {
    let start = format!("\n[{table}]\n");
    let (_, settings) = DEFAULTS.split_once(&start).unwrap();
    let settings = settings.split("\n[").next().unwrap();
    let value = settings.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='));
    value.unwrap().trim().replace('_', "").parse().unwrap()
}

#[test]
fn the_bounds_are_the_servers_defaults() {
    for (bound, table, key) in [
        (bounds::ID_BYTES_MAX, "sockets", "user_id_bytes_max"),
        (bounds::NAME_BYTES_MAX, "groups", "name_bytes_max"),
        (bounds::ITEMS_MAX, "limits", "items_max"),
        (bounds::MESSAGE_BYTES_MAX, "events", "event_bytes_max"),
        (bounds::ANSWER_BYTES_MAX, "limits", "output_bytes_max"),
    ] {
        assert_eq!(bound, default_of(table, key), "{table}.{key}");
    }
}
