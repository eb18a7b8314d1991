//! Which folder a store may use, and what happens to a server whose folder can't be used.

use std::process::{Command, Output};

use crate::support::plugins;
use crate::support::process::{ServerProcess, signalpost};

/// A start that is refused.
pub fn refused(toml: &str) -> String {
    refused_by(signalpost(), toml)
}

fn refused_by(mut command: Command, toml: &str) -> String {
    let (none, config) = (plugins(&[]), tempfile::NamedTempFile::new().unwrap());
    std::fs::write(config.path(), toml).unwrap();
    command.args(["serve", "--listen", "127.0.0.1:0", "--plugins"]).arg(none.path()).arg("--config").arg(config.path());
    let Output { status, stderr, .. } = command.output().unwrap();
    let log = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{log}");
    log
}

#[tokio::test]
async fn a_second_server_on_a_folder_is_told_which_process_is_the_first() {
    let (none, dir) = (plugins(&[]), tempfile::tempdir().unwrap());
    let toml = format!("[store]\ndir = {:?}\n", dir.path().join("store"));
    let first = ServerProcess::start(none.path(), &toml);
    let pid = std::fs::read_to_string(dir.path().join("store/lock")).unwrap();
    let log = refused(&toml);
    assert!(log.contains(&format!("in use by the process {}:", pid.trim())) && log.contains("store.dir"), "{log}");
    drop(first);
    drop(ServerProcess::start(none.path(), &toml));
}

#[test]
fn a_folder_that_is_named_and_cant_be_used_refuses_the_start() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    for folder in [dir.path().join("file"), dir.path().join("file/store"), "/proc/nowhere/store".into()] {
        let log = refused(&format!("[store]\ndir = {folder:?}\n"));
        assert!(log.contains(&format!("{} can't be used: ", folder.display())) && log.contains("store.dir"), "{log}");
    }
}

#[test]
fn a_folder_that_cant_be_written_to_refuses_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    std::fs::create_dir(&store).unwrap();
    let mut command = Command::new("/usr/bin/unshare");
    let shown = store.display();
    let mount = format!("/bin/mount --bind {shown} {shown} && /bin/mount -o remount,ro,bind {shown} && exec \"$0\" \"$@\"");
    command.args(["-rm", "/bin/sh", "-c", &mount]).arg(signalpost().get_program()).env_clear();
    let log = refused_by(command, &format!("[store]\ndir = {store:?}\n"));
    assert!(log.contains(&format!("{shown} can't be used: Read-only file system")) && log.contains("store.dir"), "{log}");
}

#[tokio::test]
async fn a_server_says_what_it_keeps_where_and_what_that_promises() {
    let (none, dir) = (plugins(&[]), tempfile::tempdir().unwrap());
    let store = dir.path().join("store");
    for (durability, promise) in [("os", "but not a power cut"), ("fsync", "survives kill -9 and a power cut")] {
        let process = ServerProcess::start(none.path(), &format!("[store]\ndir = {store:?}\ndurability = \"{durability}\"\n"));
        let said = process.log().lines().find(|line| line.contains("what is answered is kept in")).map(str::to_owned);
        let said = said.unwrap_or_else(|| panic!("it says so: {}", process.log()));
        assert!(said.contains(store.to_str().unwrap()) && said.contains(promise), "{said}");
    }
    let process = ServerProcess::start(none.path(), "");
    assert_eq!(process.logged("everything is kept in memory only"), 1, "{}", process.log());
}

#[tokio::test]
async fn a_default_folder_that_cant_be_made_leaves_the_server_with_its_memory() {
    let none = plugins(&[]);
    // The command's environment is empty, so that this is all that names a folder.
    let process = ServerProcess::under(&["/usr/bin/env", "HOME=/proc/nowhere"], none.path(), "");
    let said = process.log();
    assert!(said.contains("WARN") && said.contains("/proc/nowhere/.local/state/signalpost can't be used: "), "{said}");
    assert_eq!(process.logged("everything is kept in memory only (store.dir names another folder)"), 1, "{said}");
    process.server.post("/users/1/messages", serde_json::json!("kept")).await;
    assert_eq!(process.server.connect("1").await.text().await, "\"kept\"");
}
