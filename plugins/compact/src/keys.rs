//! The short keys. Clients know this table: an entry may be added, and none changed.

use signalpost_plugin::Fields;

const KEYS: [(&str, &str); 20] = [
    ("type", "t"),
    ("request_id", "r"),
    ("status", "s"),
    ("details", "d"),
    ("pool_id", "p"),
    ("rider_id", "ri"),
    ("driver_id", "dr"),
    ("pickup", "pu"),
    ("dropoff", "do"),
    ("by", "b"),
    ("reason", "re"),
    ("lat", "la"),
    ("lon", "lo"),
    ("eta_s", "e"),
    ("amount", "a"),
    ("currency", "c"),
    ("from", "f"),
    ("text", "x"),
    ("heading", "h"),
    ("time", "ti"),
];

/// Returns the short key; the long one if there is none, or if the message has a member of that name already.
pub fn short<'a>(name: &'a str, fields: &Fields) -> &'a str {
    match KEYS.iter().find(|(long, _)| *long == name) {
        Some((_, short)) if fields.get(short).is_none() => short,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_can_undo_each_key() {
        for (index, (long, short)) in KEYS.iter().enumerate() {
            assert!(short.len() < long.len() || *short == *long, "{long}");
            for (other_long, other_short) in &KEYS[index + 1..] {
                assert!(short != other_short && long != other_long, "{short} is used twice");
            }
            assert!(KEYS.iter().all(|(other, _)| other != short), "{short} is a long key too");
        }
    }
}
