//! What the store does when its disk, or the machine, fails it.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::support::process::ServerProcess;
use crate::support::{SOON, TestServer, plugins};

/// Settings of a store here, with small segments. What a producer is answered is known soon.
fn settings(dir: &Path, durability: &str) -> String {
    format!(
        "[store]\ndir = {dir:?}\ndurability = \"{durability}\"\nsegment_bytes = 4096\nfree_bytes_min = 0\ncommit_deadline_ms = 500\n\
         marks_interval_ms = 600_000\n"
    )
}

/// Posts to a user: the status, and the receipt or problem. `None` if the connection was cut.
async fn post(server: &TestServer, user: &str, body: &str) -> Option<(u16, Value)> {
    let response = server.http.post(server.url(&format!("/users/{user}/messages"))).json(&body).send().await.ok()?;
    let status = response.status().as_u16();
    Some((status, response.json().await.ok()?))
}

#[tokio::test]
async fn a_server_that_can_open_no_file_refuses_producers_and_goes_on_once_it_can() {
    let (none, dir) = (plugins(&[]), tempfile::tempdir().unwrap());
    let store = dir.path().join("store");
    let mut process = ServerProcess::start(none.path(), &settings(&store, "os"));
    let server = &process.server;
    let mut reader = server.connect("2").await;
    assert_eq!(post(server, "1", "first").await.unwrap().0, 202);

    // The connections that are open stay, and the next segment can't be made.
    let before = process.open_files_max(3);
    let large = "x".repeat(4000);
    let (status, problem) = post(server, "1", &large).await.unwrap();
    assert_eq!((status, &problem["code"]), (503, &json!("store_full")), "{problem}");
    let (status, problem) = post(server, "1", "refused").await.unwrap();
    assert_eq!((status, &problem["code"]), (503, &json!("store_full")), "{problem}");
    let ready = server.http.get(format!("http://{}/readyz", server.address)).send().await.unwrap();
    assert_eq!(ready.status().as_u16(), 503);
    assert_eq!(ready.json::<Value>().await.unwrap()["code"], "store_full");
    assert_eq!(process.logged("can't be written: Too many open files"), 1, "{}", process.log());

    process.open_files_max(before);
    let again = async {
        while post(server, "2", "after").await.unwrap().0 != 202 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, again).await.expect("it goes on by itself");
    assert_eq!(reader.text().await, "\"after\"");
    assert_eq!(process.logged("can be written again"), 1, "{}", process.log());

    // What waited is stored, and what was refused is not.
    process.signal(rustix::process::Signal::KILL);
    process.ended().await;
    let process = ServerProcess::start(none.path(), &settings(&store, "os"));
    let mut late = process.server.connect("1").await;
    assert_eq!(late.text().await, "\"first\"");
    assert_eq!(late.text().await, format!("\"{large}\""));
    late.quiet().await;
}

#[tokio::test]
async fn a_sync_that_fails_ends_the_server_with_1_and_what_was_answered_is_there() {
    let (none, dir) = (plugins(&[]), tempfile::tempdir().unwrap());
    let store = dir.path().join("store");
    // With -D the server, and not strace, is the child.
    let trace = ["/usr/bin/strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o/dev/null", "-einject=fdatasync:error=EIO:when=6+"];
    let mut process = ServerProcess::under(&trace, none.path(), &settings(&store, "fsync"));
    let mut reader = process.server.connect("2").await;
    let mut answered = Vec::new();
    for message in 0..20 {
        let text = message.to_string();
        match post(&process.server, "1", &text).await {
            Some((202, receipt)) => {
                assert_eq!(receipt["posted"], 1, "{receipt}");
                answered.push(text);
            }
            Some((status, problem)) => {
                assert_eq!((status, &problem["code"]), (503, &json!("store_failed")), "{problem}");
                break;
            }
            None => break,
        }
    }
    assert!(!answered.is_empty() && answered.len() < 6, "{answered:?}");
    assert_eq!(reader.closed().await.0, 1012);
    let (status, _) = process.ended().await;
    assert_eq!(status.code(), Some(1), "{}", process.log());
    assert_eq!(process.logged("can't be synced: Input/output error"), 1, "{}", process.log());

    let process = ServerProcess::start(none.path(), &settings(&store, "fsync"));
    let mut late = process.server.connect("1").await;
    for text in answered {
        assert_eq!(late.text().await, format!("\"{text}\""));
    }
}

#[tokio::test]
async fn a_server_whose_disk_is_full_refuses_producers_and_goes_on_once_there_is_room() {
    let (none, dir) = (plugins(&[]), tempfile::tempdir().unwrap());
    let disk = dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    // A disk of 256 KiB that only the server sees.
    let mount = format!("/bin/mount -t tmpfs -o size=256k,mode=700 disk {} && exec \"$0\" \"$@\"", disk.display());
    let mut process =
        ServerProcess::under(&["/usr/bin/unshare", "-rm", "/bin/sh", "-c", &mount], none.path(), &settings(&disk.join("store"), "os"));
    let seen = Path::new("/proc").join(process.id().to_string()).join("root").join(disk.strip_prefix("/").unwrap());
    std::fs::write(seen.join("filler"), vec![0; 200 * 1024]).unwrap();
    let server = &process.server;
    let mut reader = server.connect("2").await;
    let text = |number: usize| format!("{number:04}").repeat(1000);
    let mut answered = 0;
    let problem = loop {
        match post(server, "1", &text(answered)).await.unwrap() {
            (202, _) => answered += 1,
            (status, problem) => break (status, problem["code"].clone()),
        }
        assert!(answered < 64, "it has no room for 256 KiB");
    };
    assert!(answered > 3, "{answered}");
    assert_eq!(problem, (503, json!("store_full")));
    let (status, problem) = post(server, "1", "refused").await.unwrap();
    assert_eq!((status, &problem["code"]), (503, &json!("store_full")), "{problem}");
    assert_eq!(server.http.get(format!("http://{}/readyz", server.address)).send().await.unwrap().status().as_u16(), 503);
    assert_eq!(process.logged("can't be written: No space left on device"), 1, "{}", process.log());

    std::fs::remove_file(seen.join("filler")).unwrap();
    let again = async {
        while post(server, "2", "after").await.unwrap().0 != 202 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, again).await.expect("it goes on by itself");
    assert_eq!(reader.text().await, "\"after\"");

    // What waited is stored, and what was refused is not. The disk goes with the process.
    let store = dir.path().join("store");
    std::fs::create_dir(&store).unwrap();
    // Its files, without the folder of the last good plugins.
    for file in std::fs::read_dir(seen.join("store")).unwrap().map(Result::unwrap).filter(|file| file.path().is_file()) {
        std::fs::copy(file.path(), store.join(file.file_name())).unwrap();
    }
    process.signal(rustix::process::Signal::KILL);
    process.ended().await;
    let process = ServerProcess::start(none.path(), &settings(&store, "os"));
    let mut late = process.server.connect("1").await;
    for number in 0..=answered {
        assert_eq!(late.text().await, format!("\"{}\"", text(number)));
    }
    late.quiet().await;
}
