//! Files that are damaged, or that change while they are read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use signalpost::server::Server;

use super::neighbour::Neighbour;
use super::{REASON_BYTES_MAX, Row, Theme, digest, hostile, place, policy};
use crate::support::wat::Guest;
use crate::support::{config, plugins};

/// Any number; with it the damage is the same each time.
const SEED: u64 = 0x5EED;
const DAMAGES: usize = 60;

pub(super) const ROWS: [Row<'static>; 4] = [
    Row {
        name: "endless",
        does: "is a link to a device that can be read for ever",
        outcome: "refused at load: “is not a file”",
        bound: "the contract",
    },
    Row {
        name: "truncated",
        does: "is a good plugin, cut off at one of 60 places",
        outcome: "refused at load, each of them",
        bound: "the contract",
    },
    Row {
        name: "flipped",
        does: "is a good plugin with one bit flipped, at one of 60 places",
        outcome: "refused at load, or called within the same bounds as any",
        bound: "the contract",
    },
    Row {
        name: "swapped",
        does: "is rewritten again and again between two good versions, halves and garbage, while the server reloads",
        outcome: "a good version serves at any time; what is read is judged as it was read",
        bound: "the contract",
    },
];

/// Tells the reader this word.
fn teller(word: &str) -> Vec<u8> {
    let word = format!("\"{word}\"");
    let body = "(call $tell (global.get $user) (global.get $user_bytes) (global.get $word) (global.get $word_bytes))";
    hostile(Guest { strings: &[("user", "reader"), ("word", &word)], ..Guest::routing(body) })
}

#[tokio::test]
async fn a_path_that_is_not_a_file_is_not_read() {
    let dir = plugins(&["pooling"]);
    std::fs::create_dir(dir.path().join("folder.wasm")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", dir.path().join("endless.wasm")).unwrap();
    let error = Server::new(config(&format!("[plugins]\ndir = {:?}\non_bad = \"stop\"", dir.path()))).await.unwrap_err().to_string();
    for name in ["endless", "folder"] {
        assert!(error.contains(&format!("{name}.wasm) is not a file")), "{error}");
    }
}

#[tokio::test]
async fn a_plugin_that_is_cut_off_anywhere_is_refused() {
    let dir = plugins(&["pooling"]);
    let process = Theme::default().server(dir.path());
    let mut neighbour = Neighbour::of(&process.server).await;
    let whole = teller("whole");
    for place_of in 0..DAMAGES {
        place(dir.path(), "truncated", &whole[..whole.len() * place_of / DAMAGES]);
        let (status, answer) = process.server.reload().await;
        assert_eq!((status, &answer["code"]), (422, &json!("policy_refused")), "{place_of}: {answer}");
        assert!(answer["detail"].as_str().unwrap().len() < REASON_BYTES_MAX, "{answer}");
    }
    place(dir.path(), "truncated", &whole);
    assert_eq!(process.server.reload().await.0, 200, "the whole one is good");
    neighbour.goes_on("truncated").await;
}

#[tokio::test]
async fn a_plugin_with_a_flipped_bit_is_refused_or_bounded_as_any() {
    let dir = plugins(&["pooling"]);
    let process = Theme::default().server(dir.path());
    let server = &process.server;
    let mut neighbour = Neighbour::of(server).await;
    let whole = teller("whole");
    let (mut random, mut refused) = (fastrand::Rng::with_seed(SEED), 0);
    for place_of in 0..DAMAGES {
        let mut damaged = whole.clone();
        damaged[whole.len() * place_of / DAMAGES] ^= 1 << random.u8(..8);
        place(dir.path(), "flipped", &damaged);
        let (status, answer) = server.reload().await;
        if status == 422 {
            refused += 1;
            assert!(answer["detail"].as_str().unwrap().len() < REASON_BYTES_MAX, "{place_of}: {answer}");
            continue;
        }
        assert_eq!(status, 200, "{place_of}: {answer}");
        let receipt = server.publish("hostile.go", json!(1)).await;
        let outcome = receipt["policies"][0]["outcome"].as_str().unwrap_or("unwanted");
        assert!(["routed", "refused", "faulted", "unwanted"].contains(&outcome), "{place_of}: {receipt}");
    }
    assert!(refused > 0, "most damages show");
    neighbour.goes_on("flipped").await;
}

#[tokio::test]
async fn a_file_that_is_rewritten_while_it_is_read_never_leaves_anything_but_a_good_version_serving() {
    const ROUNDS: usize = 60;
    let versions = [("a", teller("a")), ("b", teller("b"))];
    let dir = plugins(&["pooling"]);
    let file = dir.path().join("swapped.wasm");
    std::fs::write(&file, &versions[0].1).unwrap();
    let process = Theme::default().server(dir.path());
    let server = &process.server;
    let mut neighbour = Neighbour::of(server).await;
    let mut reader = server.connect("reader").await;
    let done = Arc::new(AtomicBool::new(false));
    let writing = std::thread::spawn({
        let (done, file) = (done.clone(), file.clone());
        let [(_, a), (_, b)] = versions.clone();
        move || {
            // In place: a reader may meet any part of any of them.
            let contents = [&a[..], b"garbage", &b[..], &a[..a.len() / 2]];
            for content in contents.iter().cycle().take_while(|_| !done.load(Ordering::Relaxed)) {
                std::fs::write(&file, content).unwrap();
            }
        }
    });
    let (mut taken, mut refused) = (0, 0);
    for round in 0..100 * ROUNDS {
        // On a busy machine the writer may stand still for many rounds.
        if round >= ROUNDS && taken > 0 && refused > 0 {
            break;
        }
        match server.reload().await {
            (200, _) => taken += 1,
            (422, answer) => {
                assert_eq!(answer["code"], "policy_refused");
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
        let serving = policy(server, "swapped").await["digest"].clone();
        let (word, _) = versions.iter().find(|(_, bytes)| serving == digest(bytes)).expect("a good version serves");
        let receipt = server.publish("hostile.go", json!(1)).await;
        assert_eq!((&receipt["policies"][0]["outcome"], &receipt["posted"]), (&json!("routed"), &json!(1)), "{receipt}");
        assert_eq!(reader.text().await, format!("\"{word}\""), "and it is the one that is shown");
    }
    done.store(true, Ordering::Relaxed);
    writing.join().unwrap();
    assert!(taken > 0 && refused > 0, "{taken} reloads found a good version, {refused} did not");
    std::fs::write(&file, &versions[1].1).unwrap();
    assert_eq!(server.reload().await.0, 200);
    assert_eq!(policy(server, "swapped").await["digest"], digest(&versions[1].1), "it rests, and serves");
    neighbour.goes_on("swapped").await;
}
