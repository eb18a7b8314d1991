//! Compiling, bounded: a component of a third of a megabyte can take a compiler half a minute and gigabytes of memory.
//!
//! A child process of the same binary compiles, one component at a time, at the lowest priority, within limits that the kernel
//! enforces. What it made is kept in a private folder, by the component's digest and the engine. Only bytes that this
//! binary wrote there are ever deserialized: nobody else can write to the folder, and each file begins with its own digest.

mod functions;

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use super::engine;
use crate::config;
use functions::{Functions, push_part, split_part};

/// The argument that makes this binary the compiling child.
pub const CHILD_COMMAND: &str = "compile-component";

/// How often the child is looked at.
const POLL: Duration = Duration::from_millis(2);

/// What is told of the child's last words.
const STDERR_BYTES_MAX: u64 = 2048;

/// Artefacts kept. Enough for every version of a day's work.
const CACHE_ENTRIES_MAX: usize = 64;

/// The lowest priority that there is.
const NICENESS_LOWEST: i32 = 19;

/// Bytes of SHA-256 before an artefact.
const SEAL_BYTES: usize = 32;

/// Makes components of files.
#[derive(Debug)]
pub struct Compiler {
    program: PathBuf,
    cache: Option<PathBuf>,
    deadline: Duration,
    memory_bytes_max: u64,
    /// The priority of the child, as `nice` counts: a server's own work comes first.
    niceness: i32,
    /// What the last child made of each function, for the next one. A server does without: its plugins seldom change.
    functions: Option<Mutex<Vec<u8>>>,
}

impl Compiler {
    pub fn new(plugins: &config::Plugins) -> Compiler {
        let program = plugins.compiler.clone().filter(|program| !program.as_os_str().is_empty());
        // In case the running binary has been replaced, /proc still leads to it.
        let program = program.unwrap_or_else(|| "/proc/self/exe".into());
        let cache = plugins.cache_dir.clone().filter(|dir| !dir.as_os_str().is_empty()).or_else(default_cache);
        let cache = cache.and_then(|dir| match prepare(&dir) {
            Ok(()) => Some(dir),
            Err(error) => {
                tracing::warn!("compiled plugins are not kept in {}: {error}", dir.display());
                None
            }
        });
        let deadline = Duration::from_millis(plugins.compile_deadline_ms);
        let memory_bytes_max = plugins.compile_memory_bytes_max;
        Compiler { program, cache, deadline, memory_bytes_max, niceness: NICENESS_LOWEST, functions: None }
    }

    /// Somebody waits for it: it is as urgent as anything else.
    pub fn in_a_hurry(self) -> Compiler {
        Compiler { niceness: 0, ..self }
    }

    /// What an edit left alone isn't compiled again.
    pub fn for_edits(self) -> Compiler {
        Compiler { functions: Some(Mutex::default()), ..self }
    }

    /// The component with this content; from the cache, or compiled.
    ///
    /// # Errors
    /// A sentence for the plugin's author.
    pub fn component(&self, engine: &Engine, digest: &str, bytes: &[u8]) -> Result<Component, String> {
        let kept = self.cache.as_ref().map(|dir| dir.join(artefact_name(engine, digest)));
        if let Some(component) = kept.as_deref().and_then(|file| load(engine, file)) {
            return Ok(component);
        }
        let artefact = self.compile(bytes)?;
        if let Some(file) = &kept
            && let Err(error) = keep(file, &artefact)
        {
            tracing::warn!("a compiled plugin is not kept in {}: {error}", file.display());
        }
        deserialize(engine, &artefact).map_err(|error| format!("compiles to something that can't be loaded: {error:#}"))
    }

    /// The component, compiled anew, and how long that took.
    ///
    /// # Errors
    /// A sentence for the plugin's author.
    pub fn timed(&self, engine: &Engine, bytes: &[u8]) -> Result<(Component, Duration), String> {
        let started = Instant::now();
        let artefact = self.compile(bytes)?;
        let took = started.elapsed();
        let component = deserialize(engine, &artefact).map_err(|error| format!("compiles to something that can't be loaded: {error:#}"))?;
        Ok((component, took))
    }

    fn compile(&self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let Some(functions) = &self.functions else { return self.ask_child(bytes) };
        let mut functions = functions.lock().unwrap_or_else(PoisonError::into_inner);
        let mut question = Vec::new();
        push_part(&mut question, bytes);
        question.extend_from_slice(&functions);
        let answer = self.ask_child(&question)?;
        let (artefact, rest) = split_part(&answer).ok_or("can't be compiled now: the compiler's answer is cut off")?;
        *functions = rest.to_vec();
        Ok(artefact.to_vec())
    }

    fn ask_child(&self, question: &[u8]) -> Result<Vec<u8>, String> {
        let cannot = |error: io::Error| format!("can't be compiled now: {error}");
        let mut child = Command::new(&self.program)
            .arg(CHILD_COMMAND)
            .arg(self.memory_bytes_max.to_string())
            .arg(self.deadline.as_secs().saturating_add(1).to_string())
            .arg(self.niceness.to_string())
            .args(self.functions.as_ref().map(|_| "--functions"))
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(cannot)?;
        let (Some(mut stdin), Some(mut stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
            return Err("can't be compiled now: the compiler has no pipes".into());
        };
        thread::scope(|scope| {
            scope.spawn(move || {
                // A child that ends early says why on stderr.
                let _ = stdin.write_all(question);
            });
            let words = scope.spawn(move || {
                let mut words = String::new();
                let _ = stderr.take(STDERR_BYTES_MAX).read_to_string(&mut words);
                words
            });
            let artefact = scope.spawn(move || {
                let mut artefact = Vec::new();
                stdout.read_to_end(&mut artefact).map(|_| artefact)
            });
            let in_time = wait(&mut child, self.deadline).map_err(cannot)?;
            let words = words.join().unwrap_or_default();
            let artefact = artefact.join().unwrap_or_else(|_| Ok(Vec::new())).map_err(cannot)?;
            match in_time {
                Some(status) if status.success() => Ok(artefact),
                None => Err(format!("takes longer to compile than {} ms (plugins.compile_deadline_ms)", self.deadline.as_millis())),
                Some(_) if words.contains("is no valid component") => Err(words.trim().to_owned()),
                Some(status) => Err(format!(
                    "takes more to compile than {} bytes of memory (plugins.compile_memory_bytes_max), or breaks the compiler: {status}; {}",
                    self.memory_bytes_max,
                    words.trim().lines().next().unwrap_or("it said nothing")
                )),
            }
        })
    }
}

/// The child: a component on standard input, its artefact on standard output; with `functions`, each with its length before it
/// and the code of functions after it. Its arguments bound its memory in bytes and its time in seconds of a processor, and say
/// its priority.
pub fn child(memory_bytes_max: u64, seconds_max: u64, niceness: i32, functions: bool) -> ExitCode {
    let answered = confine(memory_bytes_max, seconds_max, niceness).and_then(|()| {
        let mut question = Vec::new();
        io::stdin().lock().read_to_end(&mut question).map_err(|error| format!("can't be read: {error}"))?;
        let answer = if functions { answer_with_functions(&question) } else { answer(&question) }?;
        io::stdout().lock().write_all(&answer).map_err(|error| format!("can't be written: {error}"))
    });
    match answered {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn confine(memory_bytes_max: u64, seconds_max: u64, niceness: i32) -> Result<(), String> {
    let limits =
        [(Resource::As, memory_bytes_max), (Resource::Cpu, seconds_max.saturating_mul(2)), (Resource::Core, 0), (Resource::Fsize, 0)];
    for (resource, limit) in limits {
        let limit = getrlimit(resource).maximum.map_or(limit, |most| most.min(limit));
        setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })
            .map_err(|error| format!("can't be confined: {error}"))?;
    }
    // Best effort: without it, it is as urgent as its parent.
    let _ = rustix::process::setpriority_process(None, niceness);
    Ok(())
}

fn answer(component: &[u8]) -> Result<Vec<u8>, String> {
    precompile(&engine::compiling(None), component)
}

fn answer_with_functions(question: &[u8]) -> Result<Vec<u8>, String> {
    let (component, functions) = split_part(question).ok_or("can't be read: it is cut off")?;
    let functions = Arc::new(Functions::from_bytes(functions));
    let artefact = precompile(&engine::compiling(Some(functions.clone())), component)?;
    let mut answer = Vec::new();
    push_part(&mut answer, &artefact);
    answer.append(&mut functions.to_bytes());
    Ok(answer)
}

fn precompile(engine: &wasmtime::Result<Engine>, component: &[u8]) -> Result<Vec<u8>, String> {
    let engine = engine.as_ref().map_err(ToString::to_string)?;
    engine.precompile_component(component).map_err(|error| format!("is no valid component: {error:#}"))
}

/// Waits for the child, and ends it when its time is over.
fn wait(child: &mut Child, deadline: Duration) -> io::Result<Option<std::process::ExitStatus>> {
    let since = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if since.elapsed() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

/// Where artefacts are kept when the configuration doesn't say: systemd's CacheDirectory, else the user's cache.
fn default_cache() -> Option<PathBuf> {
    let of = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(own) = of("CACHE_DIRECTORY") {
        return Some(own);
    }
    Some(of("XDG_CACHE_HOME").or_else(|| Some(of("HOME")?.join(".cache")))?.join("signalpost"))
}

/// Makes the folder, for this user alone, and refuses one that somebody else could write to.
fn prepare(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let metadata = fs::symlink_metadata(dir)?;
    let private = metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o077 == 0;
    if private { Ok(()) } else { Err(io::Error::other("the folder must belong to this user, and be closed to all others (mode 700)")) }
}

fn artefact_name(engine: &Engine, digest: &str) -> String {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{digest}-{:016x}", hasher.finish())
}

/// Reads an artefact back, if it is there and whole.
fn load(engine: &Engine, file: &Path) -> Option<Component> {
    let sealed = fs::read(file).ok()?;
    let (seal, artefact) = sealed.split_at_checked(SEAL_BYTES)?;
    if seal != Sha256::digest(artefact).as_slice() {
        return None;
    }
    deserialize(engine, artefact).ok()
}

/// Writes an artefact so that no reader finds half of it, and makes room by removing the oldest.
fn keep(file: &Path, artefact: &[u8]) -> io::Result<()> {
    let Some(dir) = file.parent() else { return Ok(()) };
    let unfinished = file.with_extension(format!("{}.unfinished", std::process::id()));
    let mut output = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    output.write_all(&Sha256::digest(artefact))?;
    output.write_all(artefact)?;
    fs::rename(&unfinished, file)?;
    let mut kept: Vec<_> =
        fs::read_dir(dir)?.flatten().filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()))).collect();
    kept.sort();
    let surplus = kept.len().saturating_sub(CACHE_ENTRIES_MAX);
    for (_, oldest) in kept.into_iter().take(surplus) {
        fs::remove_file(oldest)?;
    }
    Ok(())
}

#[expect(unsafe_code, reason = "wasmtime trusts an artefact; this is the only place that hands it one")]
fn deserialize(engine: &Engine, artefact: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: the bytes come from our own child process, directly or through a file that only this user could write and whose
    // digest is right; wasmtime itself checks that the same version and settings made them.
    unsafe { Component::deserialize(engine, artefact) }
}
