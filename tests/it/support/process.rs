//! The server as its users run it: a process of its own, whose memory and log belong to nobody else.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use super::TestServer;
use super::described::Http;

/// A server compiles its plugins before it listens, at the lowest priority: on a busy machine that takes a while.
const START: Duration = Duration::from_secs(60);

/// The command, with nothing in its environment but where compiled plugins are kept: the settings of whoever runs the tests, and what they
/// tell the tests themselves, are not its own.
pub fn signalpost() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_signalpost"));
    command.env_clear().env("SIGNALPOST_PLUGINS_CACHE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/compiled-plugins"));
    command
}

/// A running `signalpost serve`. Dropping it ends it.
pub struct ServerProcess {
    pub server: TestServer,
    child: Child,
    log: tempfile::NamedTempFile,
    config: tempfile::NamedTempFile,
}

impl ServerProcess {
    /// On a free port, with these plugins and settings.
    pub fn start(plugins: &Path, toml: &str) -> ServerProcess {
        ServerProcess::listening("127.0.0.1:0", plugins, toml)
    }

    /// On a free port; the first words are a program that runs the server as its only child and passes on how it ended.
    pub fn under(program: &[&str], plugins: &Path, toml: &str) -> ServerProcess {
        ServerProcess::run(program, "127.0.0.1:0", plugins, toml)
    }

    pub fn listening(listen: &str, plugins: &Path, toml: &str) -> ServerProcess {
        ServerProcess::run(&[], listen, plugins, toml)
    }

    fn run(program: &[&str], listen: &str, plugins: &Path, toml: &str) -> ServerProcess {
        let log = tempfile::NamedTempFile::new().unwrap();
        let (mut child, config) = spawn(program, listen, plugins, toml, log.reopen().unwrap().into());
        let Some(address) = listens(log.path()) else {
            let _ = child.kill();
            panic!("it listens in time: {}", std::fs::read_to_string(log.path()).unwrap());
        };
        ServerProcess::of(child, address, [config, log])
    }

    /// Its log goes into a pipe, which is read up to the line that says where it listens.
    pub fn piped(plugins: &Path, toml: &str) -> (ServerProcess, BufReader<ChildStderr>) {
        let (mut child, config) = spawn(&[], "127.0.0.1:0", plugins, toml, Stdio::piped());
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "it listens");
            if let Some(address) = address_in(&line) {
                break address;
            }
        };
        (ServerProcess::of(child, address, [config, tempfile::NamedTempFile::new().unwrap()]), log)
    }

    fn of(child: Child, mut address: SocketAddr, [config, log]: [tempfile::NamedTempFile; 2]) -> ServerProcess {
        if address.ip().is_unspecified() {
            address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
        }
        let server = TestServer { address, operators: address, http: Http::new(), stop: None, running: None };
        ServerProcess { server, child, log, config }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let process = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(process, signal).unwrap();
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Bounds the number of files that the process may have open, and returns the bound before.
    pub fn open_files_max(&self, files: u64) -> u64 {
        let process = rustix::process::Pid::from_child(&self.child);
        let limit = rustix::process::Rlimit { current: Some(files), ..rustix::process::getrlimit(rustix::process::Resource::Nofile) };
        let before = rustix::process::prlimit(Some(process), rustix::process::Resource::Nofile, limit).unwrap();
        before.current.unwrap()
    }

    /// How it ends, and after how long.
    pub async fn ended(&mut self) -> (std::process::ExitStatus, Duration) {
        let since = Instant::now();
        while since.elapsed() < START {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, since.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it ends in time: {}", self.log());
    }

    /// Writes its configuration anew. It reads it when it is told to.
    pub fn configure(&self, toml: &str) {
        std::fs::write(self.config.path(), toml).unwrap();
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).unwrap()
    }

    /// Lines of its log with this in them.
    pub fn logged(&self, text: &str) -> usize {
        std::fs::read_to_string(self.log.path()).unwrap().lines().filter(|line| line.contains(text)).count()
    }

    /// Bytes of the process that are in memory.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        1024 * line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    }
}

fn spawn(program: &[&str], listen: &str, plugins: &Path, toml: &str, stderr: Stdio) -> (Child, tempfile::NamedTempFile) {
    let config = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(config.path(), toml).unwrap();
    let mut command = signalpost();
    if let [program, words @ ..] = program {
        let mut around = Command::new(program);
        around.args(words).arg(command.get_program()).env_clear();
        around.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command = around;
    }
    command.args(["serve", "--listen", listen, "--plugins"]).arg(plugins).arg("--config").arg(config.path());
    // What was freed is given back at once, so that what is in memory is in use.
    command.env("_RJEM_MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:0").stderr(stderr);
    (command.spawn().unwrap(), config)
}

fn address_in(log: &str) -> Option<SocketAddr> {
    let (_, rest) = log.split_once("listening on http://")?;
    Some(rest.split_once('/')?.0.parse().unwrap())
}

/// The address that the log names, once it does.
fn listens(log: &Path) -> Option<SocketAddr> {
    let since = Instant::now();
    while since.elapsed() < START {
        let text = std::fs::read_to_string(log).unwrap();
        if let Some(address) = address_in(&text) {
            return Some(address);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
