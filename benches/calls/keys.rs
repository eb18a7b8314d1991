//! Whether the time that a wrong API key takes tells how wrong it is. docs/security.md has results.
//!
//!     cargo bench -p calls --bench keys
//!
//! Each kind of key is shown 10,000 times, all kinds in turn, to the code that a producer's request passes. Welch's t compares each kind with
//! the first. The second is as wrong as the first: what its row says is what the memory that a key happens to lie in, and the machine, make of
//! nothing. Only a row beyond that, and beyond the 4.5 that is usual in tests of leaking code, would have something to learn in it.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::hint::black_box;
use std::time::Instant;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use signalpost::config::Config;
use signalpost::internals::benching::{Door, digest, new_key};

const TRIES: usize = 10_000;
/// Calls per measurement, since the clock ticks only every few dozen nanoseconds.
const CALLS: u32 = 8;
/// What the scheduler and interrupts add is cut off: the slowest tenth of each kind.
const KEPT: usize = TRIES / 10 * 9;

fn main() {
    let (key, sha256) = new_key();
    let mut known = toml::Table::new();
    known.insert("name".into(), "producer".into());
    known.insert("sha256".into(), sha256.clone().into());
    known.insert("scopes".into(), vec!["publish".to_owned()].into());
    let mut auth = toml::Table::new();
    auth.insert("keys".into(), toml::Value::Array(vec![known.into()]));
    let mut table = toml::Table::new();
    table.insert("auth".into(), auth.into());
    let (config, _) = Config::load(None, table, std::iter::empty()).unwrap();
    let door = Door::new(&config).unwrap();

    let changed = |at: usize| {
        let mut wrong = key.clone().into_bytes();
        wrong[at] = if wrong[at] == b'A' { b'B' } else { b'A' };
        String::from_utf8(wrong).unwrap()
    };
    // Its digest begins as the right one's: what a comparison that stops at the first difference would show.
    let near = (0..).map(|number| format!("{}{number:08}", &key[..key.len() - 8])).find(|guess| digest(guess)[..4] == sha256[..4]).unwrap();
    let kinds = [
        ("another key", new_key().0),
        ("yet another key", new_key().0),
        ("the last character is wrong", changed(key.len() - 1)),
        ("the first character is wrong", changed("signalpost_".len())),
        ("16 bits of the digest are right", near),
    ];
    let mut taken = kinds.each_ref().map(|_| Vec::with_capacity(TRIES));
    let mut kept = Vec::new();
    for turn in 0..TRIES {
        // Nobody is always the one after somebody else.
        for offset in 0..kinds.len() {
            let kind = (turn + offset) % kinds.len();
            let shown = headers(&kinds[kind].1);
            let started = Instant::now();
            for _ in 0..CALLS {
                assert!(!door.opens(black_box(&shown)));
            }
            taken[kind].push(started.elapsed().as_nanos() as f64 / f64::from(CALLS));
            // The next key lies elsewhere.
            kept.push(shown);
            if kept.len() > 4 * kinds.len() + turn % 7 {
                kept.drain(..kinds.len());
            }
        }
    }
    println!("| key | tries | mean, ns | standard error, ns | t |\n|---|---|---|---|---|");
    let first = moments(&mut taken[0]);
    for ((name, _), taken) in kinds.iter().zip(&mut taken) {
        let (mean, error) = moments(taken);
        let t = (mean - first.0) / error.hypot(first.1);
        println!("| {name} | {TRIES} | {mean:.1} | {error:.2} | {t:.1} |");
    }
}

/// A request that shows a key.
fn headers(key: &str) -> HeaderMap {
    HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {key}")).unwrap())])
}

/// The mean and its standard error.
fn moments(taken: &mut [f64]) -> (f64, f64) {
    taken.sort_by(f64::total_cmp);
    let kept = &taken[..KEPT];
    let mean = kept.iter().sum::<f64>() / KEPT as f64;
    let variance = kept.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (KEPT - 1) as f64;
    (mean, (variance / KEPT as f64).sqrt())
}
