//! A server of its own for a scenario: the real binary as a child, with its configuration and plugins in a temporary folder.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use signalpost_load::{Process, Producer, Target};
use tokio::time::sleep;

/// A start compiles up to three plugins.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// Above the server's own `stop_deadline_ms`.
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// What was opened and allocated for an attack is given back in this time.
const RECOVERY_DEADLINE: Duration = Duration::from_secs(25);

/// A running server. Dropping it kills it.
pub struct Server {
    child: Child,
    folder: tempfile::TempDir,
    pub target: Target,
    pub process: Process,
}

/// What a server has in use.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    pub resident_kib: u64,
    pub open_files: usize,
}

/// The plugins of a server.
pub enum Plugins<'a> {
    /// Copies of those of the repository.
    Bundled,
    These(&'a [(&'a str, &'a [u8])]),
}

impl Server {
    /// With these settings, in TOML, before those of the folder; `plugins` are further keys of its table.
    pub async fn start(settings: &str, plugins: Plugins<'_>) -> anyhow::Result<Server> {
        Server::start_with_files(settings, plugins, None).await
    }

    /// With a limit of file descriptors.
    pub async fn start_with_files(settings: &str, plugins: Plugins<'_>, open_files_max: Option<u32>) -> anyhow::Result<Server> {
        Server::start_as(settings, plugins, open_files_max, &[]).await
    }

    /// What was freed is given back at once, so that what is in memory is in use.
    pub async fn start_frugal(settings: &str, plugins: Plugins<'_>) -> anyhow::Result<Server> {
        Server::start_as(settings, plugins, None, &[("_RJEM_MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:0")]).await
    }

    async fn start_as(
        settings: &str,
        plugins: Plugins<'_>,
        open_files_max: Option<u32>,
        variables: &[(&str, &str)],
    ) -> anyhow::Result<Server> {
        let folder = tempfile::tempdir()?;
        let dir = folder.path().join("plugins");
        fs::create_dir(&dir)?;
        match plugins {
            Plugins::Bundled => {
                for name in ["chat.wasm", "compact.wasm", "offers.wasm", "pooling.wasm"] {
                    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("plugins").join(name), dir.join(name))?;
                }
            }
            Plugins::These(files) => {
                for (name, bytes) in files {
                    fs::write(dir.join(name), bytes)?;
                }
            }
        }
        let config = folder.path().join("signalpost.toml");
        // Kept between runs, as a server's would be; a folder of the build, so that `cargo clean` removes it.
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled-plugins");
        // The watch is on if the descriptors run out: it must not take that for an empty folder.
        let own = format!(
            "[plugins]\non_bad = \"skip\"\ndir = {dir:?}\ncache_dir = {cache:?}\nwatch = {}\n[log]\nlevel = \"info\"\nformat = \"text\"\n",
            open_files_max.is_some()
        );
        let store = if settings.contains("[store]") { "" } else { "[store]\ndurability = \"memory\"\n" };
        fs::write(&config, format!("listen = \"127.0.0.1:0\"\n{settings}\n{own}{store}"))?;
        let log = folder.path().join("log");
        let limit = open_files_max.map_or_else(|| "-S -n".to_owned(), |files| format!("-n {files}"));
        // A shell, because only the process itself can lower its limits.
        let child = Command::new("sh")
            .args(["-c", &format!("ulimit {limit} >/dev/null; exec \"$0\" serve --config \"$1\""), env!("CARGO_BIN_EXE_signalpost")])
            .arg(&config)
            .env_clear()
            .envs(["PATH", "HOME", "TMPDIR"].into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .context("can't start the server")?;
        let process = Process::new(child.id())?;
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Server { child, folder, target: Target::at(unknown), process };
        server.target = Target::at(server.address(&log).await?);
        Ok(server)
    }

    async fn address(&mut self, log: &Path) -> anyhow::Result<SocketAddr> {
        let began = Instant::now();
        while began.elapsed() < START_DEADLINE {
            let text = fs::read_to_string(log)?;
            let said = text.split_once("listening on http://").and_then(|(_, rest)| rest.split_once("/api/pool"));
            if let Some((address, _)) = said {
                return Ok(address.parse()?);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the server did not start ({status}): {text}");
            }
            sleep(Duration::from_millis(10)).await;
        }
        bail!("the server did not start in time")
    }

    pub fn plugin_file(&self, name: &str) -> PathBuf {
        self.folder.path().join("plugins").join(name)
    }

    /// As a careful deployment does it: written elsewhere, then moved over the old file.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let unfinished = self.plugin_file(&format!(".{name}.part"));
        fs::write(&unfinished, bytes)?;
        Ok(fs::rename(unfinished, self.plugin_file(name))?)
    }

    pub async fn producer(&self) -> anyhow::Result<Producer> {
        Ok(Producer::connect(&self.target).await?)
    }

    /// The value of a metric without labels.
    pub async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let metrics = self.metrics().await?;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.with_context(|| format!("there is no {name}"))
    }

    /// Prometheus' text.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        let target = Target { base_path: String::new(), ..self.target.clone() };
        let mut producer = Producer::connect(&target).await?;
        let answer = producer.request("GET", "/metrics", "text/plain", b"").await?;
        Ok(String::from_utf8_lossy(answer.body).into_owned())
    }

    /// # Errors
    /// `/healthz` is not answered with 200.
    pub async fn healthy(&self) -> anyhow::Result<()> {
        let target = Target { base_path: String::new(), ..self.target.clone() };
        let mut producer = Producer::connect(&target).await?;
        let answer = producer.request("GET", "/healthz", "text/plain", b"").await?;
        ensure!(answer.status == 200, "{}", answer.sentence());
        Ok(())
    }

    /// `GET policies`, as text.
    pub async fn policies(&self) -> anyhow::Result<String> {
        let mut producer = self.producer().await?;
        let answer = producer.request("GET", "/policies", "application/json", b"").await?;
        Ok(String::from_utf8_lossy(answer.body).into_owned())
    }

    /// Threads of the process.
    pub fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.child.id())).map_or(0, Iterator::count)
    }

    /// What the future returns, and the most memory that was resident meanwhile, in KiB.
    pub async fn most_resident<T>(&self, doing: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<(T, u64)> {
        let over = std::cell::Cell::new(false);
        let watching = async {
            let mut most = 0;
            while !over.get() {
                most = most.max(self.process.resident_kib());
                sleep(Duration::from_millis(5)).await;
            }
            most
        };
        let done = async {
            let outcome = doing.await;
            over.set(true);
            outcome
        };
        let (most, outcome) = tokio::join!(watching, done);
        Ok((outcome?, most))
    }

    pub fn usage(&self) -> Usage {
        Usage { resident_kib: self.process.resident_kib(), open_files: self.process.open_files() }
    }

    /// Waits until the server has no more files open than before, and at most `kib` more memory; what it has then.
    pub async fn recovers(&self, before: Usage, kib: u64) -> anyhow::Result<Usage> {
        let began = Instant::now();
        loop {
            let now = self.usage();
            if now.open_files <= before.open_files && now.resident_kib <= before.resident_kib + kib {
                return Ok(now);
            }
            ensure!(
                began.elapsed() < RECOVERY_DEADLINE,
                "the server does not recover: {before:?} became {now:?}, allowed are {kib} KiB more"
            );
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops it as an operator would; it must end well.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw).context("no process")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                ensure!(status.success(), "the server ended with {status}: {log}");
                ensure!(!log.contains("panicked"), "the server panicked: {log}");
                return Ok(());
            }
            ensure!(began.elapsed() < STOP_DEADLINE, "the server does not stop");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ended already, or to be ended now: there is nothing to be done about an error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
