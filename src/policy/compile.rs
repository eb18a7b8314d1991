//! Compiles plugins within limits: a component of a third of a megabyte can take a compiler half a minute and gigabytes of
//! memory.
//!
//! A child process of the same binary compiles one component, at the lowest priority, within limits that the kernel enforces. Its
//! exit code says what went wrong. The artefacts are kept in a private folder (`cache`), so that the next start is fast.

mod cache;
mod parts;

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sha2::{Digest, Sha256};
use thiserror::Error;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker};
use wasmtime::{Engine, Module};

use super::engine;
use crate::config;
use cache::Cache;

pub use cache::default_dir as default_cache_dir;

/// The argument that makes this binary the compiling child.
pub const CHILD_COMMAND: &str = "compile-component";

/// The child's exit code when the plugin is at fault: its bytes are not a valid component. Other failures of the child itself have
/// exit code 1; a panic has 101, and a signal of the kernel none.
const EXIT_INVALID: u8 = 3;

const EXIT_FAILED: u8 = 1;

/// How often to check whether the child has ended.
const POLL: Duration = Duration::from_millis(2);

/// Bytes of the child's standard error that are read.
const STDERR_BYTES_MAX: u64 = 2048;

/// A compilation that takes longer is in the log: a start that waits for it looks like one that hangs.
const LONG: Duration = Duration::from_secs(1);

/// The lowest priority that there is.
const NICENESS_LOWEST: i32 = 19;

/// Why a component could not be compiled: the end of a sentence whose subject is the plugin.
#[derive(Debug, Error)]
pub enum CompileError {
    #[error("is not a valid component: {0}")]
    Invalid(String),
    #[error("takes longer to compile than {} ms (plugins.compile_deadline_ms)", .0.as_millis())]
    Deadline(Duration),
    /// The kernel or the compiler itself ended the child. Lack of memory can't be told apart from other reasons.
    #[error(
        "takes more to compile than {memory_bytes_max} bytes of memory (plugins.compile_memory_bytes_max), or breaks the compiler: {status}; {words}"
    )]
    Died { memory_bytes_max: u64, status: ExitStatus, words: String },
    /// The child could not do its work, which is not the plugin's fault.
    #[error("can't be compiled now: {0}")]
    Failed(String),
    #[error("can't be compiled now: {0}")]
    Unreachable(io::Error),
    #[error("compiles to something that can't be loaded: {0:#}")]
    Unloadable(wasmtime::Error),
}

/// Why the child could not compile. Its exit code tells the parent which it was, its standard error the rest.
#[derive(Debug, Error)]
enum ChildError {
    #[error("{0:#}")]
    Invalid(wasmtime::Error),
    #[error("{0:#}")]
    Engine(wasmtime::Error),
    #[error("can't be tied to its parent: {0}")]
    Untied(io::Error),
    #[error("can't be confined: {0}")]
    Unconfined(io::Error),
    #[error("can't read it: {0}")]
    Unreadable(io::Error),
    #[error("can't write it: {0}")]
    Unwritable(io::Error),
}

impl ChildError {
    fn exit_code(&self) -> u8 {
        match self {
            ChildError::Invalid(_) => EXIT_INVALID,
            ChildError::Engine(_)
            | ChildError::Untied(_)
            | ChildError::Unconfined(_)
            | ChildError::Unreadable(_)
            | ChildError::Unwritable(_) => EXIT_FAILED,
        }
    }
}

/// Compiles components.
#[derive(Debug)]
pub struct Compiler {
    program: PathBuf,
    cache: Option<Cache>,
    deadline: Duration,
    memory_bytes_max: u64,
    /// The child's priority, as `nice` counts. The server's other work comes first.
    niceness: i32,
    /// The last component and its large modules, for the next version of a plugin that is being edited. A server has none, since its
    /// plugins rarely change.
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
    /// The large modules that were extracted from it.
    modules: Vec<Module>,
}

impl Compiled {
    fn whole(component: Component) -> Compiled {
        Compiled { component, modules: Vec::new() }
    }

    pub fn component(&self) -> &Component {
        &self.component
    }

    /// Returns the names of its imports, except its own modules.
    pub fn imports(&self, engine: &Engine) -> Vec<String> {
        let own: Vec<String> = (0..self.modules.len()).map(parts::import_name).collect();
        let is_own = |name: &str, item: &ComponentItem| matches!(item, ComponentItem::Module(_)) && own.iter().any(|own| own == name);
        let kind = self.component.component_type();
        kind.imports(engine).filter(|(name, import)| !is_own(name, &import.ty)).map(|(name, _)| name.to_owned()).collect()
    }

    /// Returns the names of its exports.
    pub fn exports(&self, engine: &Engine) -> Vec<String> {
        self.component.component_type().exports(engine).map(|(name, _)| name.to_owned()).collect()
    }

    /// Links its own modules.
    ///
    /// # Errors
    /// One of their names is already linked.
    pub fn link<T: 'static>(&self, linker: &mut Linker<T>) -> wasmtime::Result<()> {
        self.modules.iter().enumerate().try_for_each(|(index, module)| linker.root().module(&parts::import_name(index), module))
    }
}

/// Bytes that our own child process wrote: they came directly from it, or from a file that only this user can write and that begins
/// with the right digest.
struct TrustedArtefact<'a>(&'a [u8]);

/// A result of the child.
trait Artefact: Sized {
    /// The end of the file's name, and the child's argument.
    const SUFFIX: &str;

    fn read(engine: &Engine, bytes: TrustedArtefact<'_>) -> wasmtime::Result<Self>;
}

impl Artefact for Component {
    const SUFFIX: &str = "";

    #[expect(unsafe_code, reason = "wasmtime does not verify an artefact, and this one is trusted")]
    fn read(engine: &Engine, bytes: TrustedArtefact<'_>) -> wasmtime::Result<Component> {
        // SAFETY: our child made the bytes, and wasmtime checks that the same version and settings made them.
        unsafe { Component::deserialize(engine, bytes.0) }
    }
}

impl Artefact for Module {
    const SUFFIX: &str = "-module";

    #[expect(unsafe_code, reason = "wasmtime does not verify an artefact, and this one is trusted")]
    fn read(engine: &Engine, bytes: TrustedArtefact<'_>) -> wasmtime::Result<Module> {
        // SAFETY: as for a component.
        unsafe { Module::deserialize(engine, bytes.0) }
    }
}

impl Compiler {
    pub fn new(plugins: &config::Plugins) -> Compiler {
        let program = plugins.compiler.clone().filter(|program| !program.as_os_str().is_empty());
        // Even if the file of the running binary has been replaced, /proc still leads to it.
        let program = program.unwrap_or_else(|| "/proc/self/exe".into());
        let cache = Cache::open(plugins.cache_dir.as_deref());
        let memory_bytes_max = plugins.compile_memory_bytes_max.get();
        Compiler { program, cache, deadline: *plugins.compile_deadline_ms, memory_bytes_max, niceness: NICENESS_LOWEST, last: None }
    }

    /// Compiles at normal priority, for a person who waits.
    pub fn foreground(self) -> Compiler {
        Compiler { niceness: 0, ..self }
    }

    /// Remembers the last component, for one engine and one plugin that is being edited, so that modules that an edit did not change
    /// are neither compiled nor read again.
    pub fn for_edits(self) -> Compiler {
        Compiler { last: Some(Mutex::default()), ..self }
    }

    /// Returns the component with this content, from the cache or compiled. `name`: what the log calls it.
    ///
    /// # Errors
    /// It can't be compiled within the limits.
    pub fn component(&self, engine: &Engine, name: &str, digest: &str, bytes: &[u8]) -> Result<Compiled, CompileError> {
        let Some(last) = &self.last else { return self.cached(engine, name, digest, bytes).map(Compiled::whole) };
        let mut last = last.lock();
        if let Some(compiled) = last.compiled.as_ref().filter(|_| last.digest == digest) {
            return Ok(compiled.clone());
        }
        let compiled = match parts::extract(bytes) {
            None => Compiled::whole(self.cached(engine, name, digest, bytes)?),
            Some(parts) => {
                let mut modules = HashMap::new();
                let mut module = |bytes: &[u8]| {
                    let digest = HEXLOWER.encode(&Sha256::digest(bytes));
                    let known = last.modules.get(&digest).cloned();
                    let module = known.map_or_else(|| self.cached(engine, name, &digest, bytes), Ok)?;
                    modules.insert(digest, module.clone());
                    Ok(module)
                };
                let modules_of_it = parts.modules.iter().map(|bytes| module(bytes)).collect::<Result<_, CompileError>>()?;
                last.modules = modules;
                // Not cached: it is quick to compile again, and obsolete after the next edit.
                let artefact = self.compile::<Component>(name, &parts.rest)?;
                let component = Component::read(engine, TrustedArtefact(&artefact)).map_err(CompileError::Unloadable)?;
                Compiled { component, modules: modules_of_it }
            }
        };
        (last.digest, last.compiled) = (digest.to_owned(), Some(compiled.clone()));
        Ok(compiled)
    }

    /// Returns an artefact from the cache, or compiles it.
    fn cached<A: Artefact>(&self, engine: &Engine, name: &str, digest: &str, bytes: &[u8]) -> Result<A, CompileError> {
        let file = cache::artefact_name(engine, digest, A::SUFFIX);
        let kept = self.cache.as_ref().and_then(|cache| cache.load(&file));
        if let Some(artefact) = kept.and_then(|kept| A::read(engine, kept.trusted()).ok()) {
            return Ok(artefact);
        }
        let artefact = self.compile::<A>(name, bytes)?;
        if let Some(cache) = &self.cache {
            cache.keep(&file, &artefact);
        }
        A::read(engine, TrustedArtefact(&artefact)).map_err(CompileError::Unloadable)
    }

    /// Compiles the component without the cache. Returns it and the time that the compilation took.
    ///
    /// # Errors
    /// It can't be compiled within the limits.
    pub fn timed(&self, engine: &Engine, name: &str, bytes: &[u8]) -> Result<(Compiled, Duration), CompileError> {
        let started = Instant::now();
        let artefact = self.compile::<Component>(name, bytes)?;
        let took = started.elapsed();
        let component = Component::read(engine, TrustedArtefact(&artefact)).map_err(CompileError::Unloadable)?;
        Ok((Compiled::whole(component), took))
    }

    fn compile<A: Artefact>(&self, name: &str, bytes: &[u8]) -> Result<Vec<u8>, CompileError> {
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
            .map_err(CompileError::Unreachable)?;
        let (Some(mut stdin), Some(mut stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
            return Err(CompileError::Failed("the compiler has no pipes".into()));
        };
        thread::scope(|scope| {
            scope.spawn(move || {
                // If the child ends early, its standard error says why.
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
            let in_time = wait(&mut child, name, self.deadline).map_err(CompileError::Unreachable)?;
            let words = words.join().unwrap_or_default();
            let artefact = artefact.join().unwrap_or_else(|_| Ok(Vec::new())).map_err(CompileError::Unreachable)?;
            let Some(status) = in_time else { return Err(CompileError::Deadline(self.deadline)) };
            match status.code().map(u8::try_from) {
                Some(Ok(0)) => Ok(artefact),
                Some(Ok(EXIT_INVALID)) => Err(CompileError::Invalid(words.trim().to_owned())),
                Some(Ok(EXIT_FAILED)) => Err(CompileError::Failed(words.trim().to_owned())),
                _ => {
                    let words = words.trim().lines().next().unwrap_or("it printed nothing").to_owned();
                    Err(CompileError::Died { memory_bytes_max: self.memory_bytes_max, status, words })
                }
            }
        })
    }
}

/// Runs the child: reads a component (or a module, if `module` is set) from standard input, and writes its artefact to standard output. The
/// other arguments are limits: its memory in bytes, its processor time in seconds, and its priority.
pub fn child(memory_bytes_max: u64, seconds_max: u64, niceness: i32, module: bool) -> ExitCode {
    let compiled = confine(memory_bytes_max, seconds_max, niceness).and_then(|()| {
        let mut source = Vec::new();
        io::stdin().lock().read_to_end(&mut source).map_err(ChildError::Unreadable)?;
        let artefact = precompile(&source, module)?;
        io::stdout().lock().write_all(&artefact).map_err(ChildError::Unwritable)
    });
    match compiled {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            error.exit_code().into()
        }
    }
}

/// Applies the limits to this process.
fn confine(memory_bytes_max: u64, seconds_max: u64, niceness: i32) -> Result<(), ChildError> {
    // The kernel kills the child when the thread that waits for it ends, so that a server that is killed leaves no compiler behind.
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|error| ChildError::Untied(error.into()))?;
    // Several threads compile, so the processor time may exceed the deadline.
    let processor_seconds_max = seconds_max.saturating_mul(2);
    let limits = [(Resource::As, memory_bytes_max), (Resource::Cpu, processor_seconds_max), (Resource::Core, 0), (Resource::Fsize, 0)];
    for (resource, limit) in limits {
        let limit = getrlimit(resource).maximum.map_or(limit, |most| most.min(limit));
        setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) }).map_err(|error| ChildError::Unconfined(error.into()))?;
    }
    // Best effort: without it, the child has its parent's priority.
    let _ = rustix::process::setpriority_process(None, niceness);
    Ok(())
}

fn precompile(source: &[u8], module: bool) -> Result<Vec<u8>, ChildError> {
    let engine = engine::compiling().map_err(ChildError::Engine)?;
    let compiled = if module { engine.precompile_module(source) } else { engine.precompile_component(source) };
    compiled.map_err(ChildError::Invalid)
}

/// Waits for the child. Kills it and returns `None` if the deadline passes.
fn wait(child: &mut Child, name: &str, deadline: Duration) -> io::Result<Option<ExitStatus>> {
    let since = Instant::now();
    let mut is_long = false;
    loop {
        if let Some(status) = child.try_wait()? {
            if is_long {
                tracing::info!(plugin = name, took_ms = since.elapsed().as_millis(), "compiled");
            }
            return Ok(Some(status));
        }
        if !is_long && since.elapsed() >= LONG {
            is_long = true;
            let deadline_ms = deadline.as_millis();
            tracing::info!(plugin = name, deadline_ms, "compiling takes more than a second; the result is kept for the next start");
        }
        if since.elapsed() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Returns what a compiler reports about a child that is this shell script.
    fn compile(dir: &Path, script: &str) -> Result<Vec<u8>, CompileError> {
        let program = dir.join("compiler");
        // Another process writes the file, so that no other test's child inherits it open for writing, which would prevent its execution.
        let write = r#"printf '#!/bin/sh\ncat >/dev/null\n%s\n' "$1" >"$0" && chmod +x "$0""#;
        assert!(Command::new("sh").args(["-c", write]).arg(&program).arg(script).status().unwrap().success());
        let deadline = Duration::from_secs(20);
        let compiler = Compiler { program, cache: None, deadline, memory_bytes_max: 1 << 30, niceness: 0, last: None };
        compiler.compile::<Component>("source", b"source")
    }

    #[test]
    fn the_childs_exit_code_says_what_went_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let compile = |script: &str| compile(dir.path(), script);
        assert_eq!(compile("echo artefact").unwrap(), b"artefact\n");
        let error = compile("echo truncated >&2; exit 3").unwrap_err();
        assert!(matches!(&error, CompileError::Invalid(words) if words == "truncated"), "{error:?}");
        let error = compile("echo confined >&2; exit 1").unwrap_err();
        assert!(matches!(&error, CompileError::Failed(words) if words == "confined"), "{error:?}");
        // Words alone mean nothing, and an artefact of a child that failed is not used.
        for script in ["echo is not a valid component >&2; exit 101", "exit 2", "kill -ABRT $$", "echo artefact; kill -KILL $$"] {
            let error = compile(script).unwrap_err();
            assert!(matches!(error, CompileError::Died { memory_bytes_max: 1_073_741_824, .. }), "{script}: {error:?}");
        }
    }

    #[test]
    fn a_source_that_is_not_a_component_is_invalid_and_not_a_failure_of_the_compiler() {
        for source in [&b""[..], b"\0asm\x0d\0\x01", b"\0asm\x01\0\0\0"] {
            let error = precompile(source, false).unwrap_err();
            assert_eq!(error.exit_code(), EXIT_INVALID, "{error:?}");
        }
    }
}
