//! Compiling, bounded: a component of a third of a megabyte can take a compiler half a minute and gigabytes of memory.
//!
//! A child process of the same binary compiles, one component at a time, at the lowest priority, within limits that the kernel
//! enforces. What it made is kept in a private folder, by the component's digest and the engine. Only bytes that this
//! binary wrote there are ever deserialized: nobody else can write to the folder, and each file begins with its own digest.

mod parts;

use std::collections::HashMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sha2::{Digest, Sha256};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker};
use wasmtime::{Engine, Module};

use super::engine;
use crate::config;

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
    /// What was made last, and its large modules by their digests, for what is made after an edit. A server does without: its
    /// plugins seldom change.
    last: Option<Mutex<Last>>,
}

#[derive(Debug, Default)]
struct Last {
    digest: String,
    compiled: Option<Compiled>,
    modules: HashMap<String, Module>,
}

/// A component that is ready to be instantiated.
#[derive(Clone, Debug)]
pub struct Compiled {
    component: Component,
    /// Those that were taken out of it.
    modules: Vec<Module>,
}

impl Compiled {
    fn whole(component: Component) -> Compiled {
        Compiled { component, modules: Vec::new() }
    }

    pub fn component(&self) -> &Component {
        &self.component
    }

    /// What it imports, but for its own modules.
    pub fn imports(&self, engine: &Engine) -> Vec<String> {
        let own: Vec<String> = (0..self.modules.len()).map(parts::import_name).collect();
        let is_own = |name: &str, item: &ComponentItem| matches!(item, ComponentItem::Module(_)) && own.iter().any(|own| own == name);
        let kind = self.component.component_type();
        kind.imports(engine).filter(|(name, import)| !is_own(name, &import.ty)).map(|(name, _)| name.to_owned()).collect()
    }

    pub fn exports(&self, engine: &Engine) -> Vec<String> {
        self.component.component_type().exports(engine).map(|(name, _)| name.to_owned()).collect()
    }

    /// Gives it its own modules back.
    ///
    /// # Errors
    /// One of their names is taken.
    pub fn link<T: 'static>(&self, linker: &mut Linker<T>) -> wasmtime::Result<()> {
        self.modules.iter().enumerate().try_for_each(|(index, module)| linker.root().module(&parts::import_name(index), module))
    }
}

/// Bytes that come from our own child process, directly or through a file that only this user could write and whose digest is right.
struct TrustedArtefact<'a>(&'a [u8]);

/// What the child makes, and how it is read back.
trait Artefact: Sized {
    /// What tells its file from those of others, and the child what to make.
    const SUFFIX: &str;

    fn read(engine: &Engine, ours: TrustedArtefact<'_>) -> wasmtime::Result<Self>;
}

impl Artefact for Component {
    const SUFFIX: &str = "";

    #[expect(unsafe_code, reason = "wasmtime trusts an artefact, and this one can be trusted")]
    fn read(engine: &Engine, ours: TrustedArtefact<'_>) -> wasmtime::Result<Component> {
        // SAFETY: the bytes are ours, and wasmtime itself checks that the same version and settings made them.
        unsafe { Component::deserialize(engine, ours.0) }
    }
}

impl Artefact for Module {
    const SUFFIX: &str = "-module";

    #[expect(unsafe_code, reason = "wasmtime trusts an artefact, and this one can be trusted")]
    fn read(engine: &Engine, ours: TrustedArtefact<'_>) -> wasmtime::Result<Module> {
        // SAFETY: as for a component.
        unsafe { Module::deserialize(engine, ours.0) }
    }
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
        Compiler { program, cache, deadline, memory_bytes_max, niceness: NICENESS_LOWEST, last: None }
    }

    /// Somebody waits for it: it is as urgent as anything else.
    pub fn foreground(self) -> Compiler {
        Compiler { niceness: 0, ..self }
    }

    /// For one engine, and one plugin that changes and changes: what an edit left alone isn't compiled again, nor read.
    pub fn for_edits(self) -> Compiler {
        Compiler { last: Some(Mutex::default()), ..self }
    }

    /// The component with this content; from the cache, or compiled.
    ///
    /// # Errors
    /// A sentence for the plugin's author.
    pub fn component(&self, engine: &Engine, digest: &str, bytes: &[u8]) -> Result<Compiled, String> {
        let Some(last) = &self.last else { return self.made(engine, digest, bytes).map(Compiled::whole) };
        let mut last = last.lock();
        if let Some(compiled) = last.compiled.as_ref().filter(|_| last.digest == digest) {
            return Ok(compiled.clone());
        }
        let compiled = match parts::take_out(bytes) {
            None => Compiled::whole(self.made(engine, digest, bytes)?),
            Some(parts) => {
                let mut modules = HashMap::new();
                let mut module = |bytes: &[u8]| {
                    let digest = hex_digest(bytes);
                    let known = last.modules.get(&digest).cloned();
                    let module = known.map_or_else(|| self.made(engine, &digest, bytes), Ok)?;
                    modules.insert(digest, module.clone());
                    Ok(module)
                };
                let modules_of_it = parts.modules.iter().map(|bytes| module(bytes)).collect::<Result<_, String>>()?;
                last.modules = modules;
                // It is large, and soon made, and the next edit makes another one.
                let artefact = self.compile::<Component>(&parts.rest)?;
                Compiled { component: Component::read(engine, TrustedArtefact(&artefact)).map_err(unloadable)?, modules: modules_of_it }
            }
        };
        (last.digest, last.compiled) = (digest.to_owned(), Some(compiled.clone()));
        Ok(compiled)
    }

    /// From the cache, or compiled.
    fn made<A: Artefact>(&self, engine: &Engine, digest: &str, bytes: &[u8]) -> Result<A, String> {
        let kept = self.cache.as_ref().map(|dir| dir.join(artefact_name(engine, digest) + A::SUFFIX));
        if let Some(made) = kept.as_deref().and_then(|file| load(engine, file)) {
            return Ok(made);
        }
        let artefact = self.compile::<A>(bytes)?;
        if let Some(file) = &kept
            && let Err(error) = keep(file, &artefact)
        {
            tracing::warn!("a compiled plugin is not kept in {}: {error}", file.display());
        }
        A::read(engine, TrustedArtefact(&artefact)).map_err(unloadable)
    }

    /// The component, compiled anew, and how long that took.
    ///
    /// # Errors
    /// A sentence for the plugin's author.
    pub fn timed(&self, engine: &Engine, bytes: &[u8]) -> Result<(Compiled, Duration), String> {
        let started = Instant::now();
        let artefact = self.compile::<Component>(bytes)?;
        let took = started.elapsed();
        Ok((Compiled::whole(Component::read(engine, TrustedArtefact(&artefact)).map_err(unloadable)?), took))
    }

    fn compile<A: Artefact>(&self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let cannot = |error: io::Error| format!("can't be compiled now: {error}");
        let mut child = Command::new(&self.program)
            .arg(CHILD_COMMAND)
            .arg(self.memory_bytes_max.to_string())
            .arg(self.deadline.as_secs().saturating_add(1).to_string())
            .arg(self.niceness.to_string())
            .args(A::SUFFIX.strip_prefix('-').map(|kind| format!("--{kind}")))
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
                let _ = stdin.write_all(bytes);
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

fn unloadable(error: wasmtime::Error) -> String {
    format!("compiles to something that can't be loaded: {error:#}")
}

fn hex_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The child: a component, or a `module`, on standard input, its artefact on standard output. Its arguments bound its memory in bytes and
/// its time in seconds of a processor, and say its priority.
pub fn child(memory_bytes_max: u64, seconds_max: u64, niceness: i32, module: bool) -> ExitCode {
    let answered = confine(memory_bytes_max, seconds_max, niceness).and_then(|()| {
        let mut question = Vec::new();
        io::stdin().lock().read_to_end(&mut question).map_err(|error| format!("can't be read: {error}"))?;
        let answer = answer(&question, module)?;
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

fn answer(question: &[u8], module: bool) -> Result<Vec<u8>, String> {
    let engine = engine::compiling().map_err(|error| error.to_string())?;
    let compiled = if module { engine.precompile_module(question) } else { engine.precompile_component(question) };
    compiled.map_err(|error| format!("is no valid component: {error:#}"))
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
fn load<A: Artefact>(engine: &Engine, file: &Path) -> Option<A> {
    let sealed = fs::read(file).ok()?;
    let (seal, artefact) = sealed.split_at_checked(SEAL_BYTES)?;
    if seal != Sha256::digest(artefact).as_slice() {
        return None;
    }
    A::read(engine, TrustedArtefact(artefact)).ok()
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
