//! Stores that are damaged, copied and mended with `signalpost store`, as an operator does it.

use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::folders::refused;
use crate::support::plugins;
use crate::support::process::{ServerProcess, signalpost};

fn settings(dir: &Path) -> String {
    format!("[store]\ndir = {dir:?}\nsegment_bytes = 4096\n")
}

/// Runs `signalpost store`: whether it succeeded, and what it said.
fn store(words: &[&str], dir: &Path) -> (bool, String) {
    let output = signalpost().arg("store").args(words).arg("--store").arg(dir).output().unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

async fn kill(mut process: ServerProcess) {
    process.signal(Signal::KILL);
    process.ended().await;
}

/// A server with 40 messages for a client that has read one of them: the epoch and the seq of that one.
async fn filled(plugins: &Path, dir: &Path) -> (ServerProcess, Value, Value) {
    let process = ServerProcess::start(plugins, &settings(dir));
    let mut client = process.server.connect_v1("1").await;
    let hello = client.json().await;
    for message in 0..40 {
        process.server.post("/users/1/messages", json!(format!("{message}{}", "x".repeat(400)))).await;
    }
    let read = client.json().await;
    (process, hello["data"]["epoch"].clone(), read["seq"].clone())
}

/// The numbers of the messages that a client gets which resumes, after checking that it is told of another epoch and of missing messages.
async fn resumed(process: &ServerProcess, epoch: &Value, seq: &Value) -> Vec<u32> {
    process.server.post("/users/1/messages", json!("999x")).await;
    let mut client = process.server.connect_v1("1").await;
    let hello = client.json().await;
    assert_ne!(&hello["data"]["epoch"], epoch);
    client.send_json(json!({ "type": "resume", "epoch": epoch, "seq": seq })).await;
    assert_eq!(client.json().await, json!({ "type": "resume", "data": { "recovered": false, "from": 0 } }));
    let mut messages = Vec::new();
    while messages.last() != Some(&999) {
        let message = client.json().await;
        messages.push(message["data"].as_str().unwrap().trim_end_matches('x').parse().unwrap());
    }
    messages.pop();
    messages
}

#[tokio::test]
async fn a_store_with_a_flipped_bit_refuses_the_start_and_its_salvage_has_new_epochs_and_what_is_whole() {
    let (none, dir) = (plugins(&[]), tempfile::tempdir().unwrap());
    let (damaged, saved) = (dir.path().join("store"), dir.path().join("saved"));
    let (process, epoch, seq) = filled(none.path(), &damaged).await;
    kill(process).await;
    assert!(store(&["verify"], &damaged).0);
    let file = damaged.join("000000000002.seg");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();

    for log in [refused(&settings(&damaged)), store(&["verify"], &damaged).1] {
        assert!(log.contains("000000000002.seg is damaged at byte") && log.contains("signalpost store salvage"), "{log}");
    }
    assert!(!store(&["verify"], &damaged).0);
    let (is_saved, said) = store(&["salvage", saved.to_str().unwrap()], &damaged);
    assert!(is_saved && said.contains("damaged bytes were passed over"), "{said}");
    assert!(store(&["verify"], &saved).0);
    let messages = resumed(&ServerProcess::start(none.path(), &settings(&saved)), &epoch, &seq).await;
    assert!((30..40).contains(&messages.len()) && messages.is_sorted(), "all but those of one frame: {messages:?}");
}

#[tokio::test]
async fn a_file_that_was_removed_refuses_the_start_also_if_it_was_the_first() {
    for (removed, said) in
        [("000000000001.seg", "000000000002.seg is not the first file"), ("000000000002.seg", "000000000003.seg doesn't follow")]
    {
        let (none, dir) = (plugins(&[]), tempfile::tempdir().unwrap());
        let (process, ..) = filled(none.path(), dir.path()).await;
        kill(process).await;
        std::fs::remove_file(dir.path().join(removed)).unwrap();
        for log in [refused(&settings(dir.path())), store(&["verify"], dir.path()).1] {
            assert!(log.contains(said) && log.contains("restore a backup"), "{log}");
        }
    }
}

#[tokio::test]
async fn a_backup_of_a_running_server_restores_what_was_answered_before_with_new_epochs() {
    let (none, dir) = (plugins(&[]), tempfile::tempdir().unwrap());
    let [running, backup, restored] = ["store", "backup", "restored"].map(|name| dir.path().join(name));
    let (process, epoch, seq) = filled(none.path(), &running).await;
    let (is_made, said) = store(&["backup", backup.to_str().unwrap()], &running);
    assert!(is_made, "{said}");
    let later = process.server.post("/users/1/messages", json!("40")).await;
    assert_eq!(later["posted"], 1, "the server goes on");
    kill(process).await;
    let (is_restored, said) = store(&["restore", backup.to_str().unwrap()], &restored);
    assert!(is_restored && said.contains("has 40 messages in 1 mailboxes, with new epochs"), "{said}");
    let messages = resumed(&ServerProcess::start(none.path(), &settings(&restored)), &epoch, &seq).await;
    assert_eq!(messages, (0..40).collect::<Vec<_>>());
}
