//! Builds the component of a plugin. For a plugin in Rust, cargo builds the core module, and `wit-component` makes the component;
//! other languages have tools of their own.
//!
//! The target is `wasm32-unknown-unknown`, which has no WASI: the component imports only what its world names. A component contains
//! the digest of its sources, so that CI can detect a stale one without rebuilding it.

mod languages;
mod sources;
mod target;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use wasm_encoder::{CustomSection, Section as _};
use wasmparser::{Parser, Payload};
use wit_component::{ComponentEncoder, DecodedWasm};

pub use languages::Language;
pub use sources::{find_wit, fingerprint, sources_digest};

/// The custom section with the digest of the sources, as 64 hexadecimal digits.
const SOURCES_SECTION: &str = "signalpost:sources";

const TARGET: &str = "wasm32-unknown-unknown";

/// The result of a build.
#[derive(Debug)]
pub struct Built {
    pub output: PathBuf,
    pub bytes: usize,
    /// Interfaces, except those that only define types.
    pub imports: Vec<String>,
    pub exports: Vec<String>,
    pub took: Duration,
}

/// Builds the plugin in `dir`, and writes its component to `output`; by default beside `dir`, under its name.
pub fn build(dir: &Path, output: Option<&Path>) -> Result<Built> {
    let dir = fs::canonicalize(dir).with_context(|| format!("there is no directory {}", dir.display()))?;
    let started = Instant::now();
    let language = Language::of(&dir)?;
    let prepared = if language == Language::Rust { Some(prepare(&dir)?) } else { None };
    // Read before the build: an edit during the build makes the component stale, as it should.
    let sources = sources_digest(&dir, find_wit(&dir).as_deref())?;

    let mut component = match prepared {
        Some((package, toolchain)) => rust(&dir, &package, &toolchain)?,
        None if language == Language::Python => languages::python(&dir)?,
        None if language == Language::C => c(&dir)?,
        None => languages::javascript(&dir)?,
    };
    CustomSection { name: SOURCES_SECTION.into(), data: sources.as_bytes().into() }.append_to(&mut component);

    let output = output.map_or_else(|| self::output(&dir), |output| Ok(output.to_path_buf()))?;
    let (imports, exports) = interfaces(&component)?;
    write_atomically(&output, &component)?;
    Ok(Built { output, bytes: component.len(), imports, exports, took: started.elapsed() })
}

/// Returns the interfaces that a component imports and exports, by their short names.
fn interfaces(component: &[u8]) -> Result<(Vec<String>, Vec<String>)> {
    let DecodedWasm::Component(resolve, world) = wit_component::decode(component)? else { bail!("the build did not make a component") };
    let world = resolve.worlds.get(world).context("the component has no world")?;
    let short = |name: String| match name.strip_prefix("signalpost:policy/").and_then(|rest| rest.split('@').next()) {
        Some(interface) => interface.to_owned(),
        None => name,
    };
    let imports = world.imports.keys().map(|key| short(resolve.name_world_key(key)));
    let exports = world.exports.keys().map(|key| short(resolve.name_world_key(key)));
    // Some tools export interfaces for their own use, which only `inspect` shows.
    let exports = exports.filter(|name| ["plugin", "routing", "formatting", "sessions"].contains(&name.as_str()));
    Ok((imports.filter(|name| name != "types" && name != "diagnostics").collect(), exports.collect()))
}

/// Finds the tools and the crate. Locks its dependencies first, since otherwise the first build would add a file to the sources.
fn prepare(dir: &Path) -> Result<(Package, Toolchain)> {
    let toolchain = Toolchain::find(dir)?;
    let package = Package::read(dir, &toolchain)?;
    if !package.workspace.join("Cargo.lock").is_file() {
        let locked = toolchain.cargo(dir).arg("generate-lockfile").status().context("cannot run cargo")?;
        ensure!(locked.success(), "cargo found no versions of what {} depends on", package.name);
    }
    Ok((package, toolchain))
}

fn rust(dir: &Path, package: &Package, toolchain: &Toolchain) -> Result<Vec<u8>> {
    let module = run_cargo(dir, package, toolchain)?;
    encode(&module).context("the module has no component's world: does the plugin call `signalpost_plugin::export!`, or wit-bindgen's?")
}

fn c(dir: &Path) -> Result<Vec<u8>> {
    let module = languages::c(dir)?;
    encode(&module).context(
        "the module has no component's world: does it define what its world exports, and avoid the files, streams, clock and \
         environment of the C library?",
    )
}

/// Makes a component from a core module that contains its world.
fn encode(module: &[u8]) -> Result<Vec<u8>> {
    ComponentEncoder::default().validate(true).module(module).and_then(|encoder| encoder.encode())
}

/// Returns the file that `build` writes by default: beside the plugin's folder.
pub fn output(dir: &Path) -> Result<PathBuf> {
    let dir = fs::canonicalize(dir).with_context(|| format!("there is no directory {}", dir.display()))?;
    let name = match Language::of(&dir)? {
        Language::Rust => sources::package_name(&dir)?,
        // The tools of these languages don't name a component.
        Language::JavaScript | Language::Python | Language::C => dir.file_name().unwrap_or_default().to_string_lossy().into_owned(),
    };
    Ok(dir.parent().unwrap_or(&dir).join(format!("{name}.wasm")))
}

/// Returns the digest that `build` wrote into a component.
pub fn recorded_digest(wasm: &[u8]) -> Option<String> {
    // The depth of nested components and modules, whose own sections don't count.
    let mut depth = 0;
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.ok()? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            Payload::CustomSection(section) if depth == 0 && section.name() == SOURCES_SECTION => {
                return String::from_utf8(section.data().to_vec()).ok();
            }
            _ => {}
        }
    }
    None
}

/// A compiler for the target.
enum Toolchain {
    /// `rustc` on the path has the target's standard library.
    Installed,
    /// Debian's own compiler, which has the source of the library and builds it too.
    Debian,
}

impl Toolchain {
    const DEBIAN_CARGO: &str = "/usr/bin/cargo";
    const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
    const DEBIAN_LIBRARY: &str = "/usr/lib/rustlib/src/rust/library";

    fn find(dir: &Path) -> Result<Toolchain> {
        let asked = Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]).current_dir(dir).output();
        if let Ok(answer) = asked
            && answer.status.success()
            && Path::new(String::from_utf8_lossy(&answer.stdout).trim()).is_dir()
        {
            return Ok(Toolchain::Installed);
        }
        let is_there = |path: &str| Path::new(path).exists();
        if is_there(Toolchain::DEBIAN_CARGO) && is_there(Toolchain::DEBIAN_RUSTC) && is_there(Toolchain::DEBIAN_LIBRARY) {
            return Ok(Toolchain::Debian);
        }
        bail!(
            "no compiler for {TARGET}: run `rustup target add {TARGET}`, or on Debian \
             `apt-get install rustc-web cargo-web rust-web-src rust-web-llvm lld-22`"
        )
    }

    fn cargo(&self, dir: &Path) -> Command {
        let mut command = match self {
            Toolchain::Installed => Command::new("cargo"),
            Toolchain::Debian => {
                let mut command = Command::new(Toolchain::DEBIAN_CARGO);
                command.env("RUSTC", Toolchain::DEBIAN_RUSTC);
                // `-Zbuild-std` is unstable, and this compiler calls itself stable.
                command.env("RUSTC_BOOTSTRAP", "1");
                // If rustup's cargo started this process, it set variables that Debian's must not see.
                command.env_remove("RUSTUP_TOOLCHAIN").env_remove("LD_LIBRARY_PATH");
                command
            }
        };
        command.current_dir(dir);
        command
    }
}

/// Returns cargo for programs that run on this machine.
pub fn cargo_for_this_machine(dir: &Path) -> Command {
    let is_there = Command::new("cargo").arg("--version").current_dir(dir).output().is_ok_and(|answer| answer.status.success());
    if is_there { Toolchain::Installed.cargo(dir) } else { Toolchain::Debian.cargo(dir) }
}

/// What cargo reports about the plugin.
struct Package {
    name: String,
    library: String,
    workspace: PathBuf,
    /// A target directory for plugins only, since a build with other flags would discard the results. Projects may share it.
    target: PathBuf,
}

impl Package {
    fn read(dir: &Path, toolchain: &Toolchain) -> Result<Package> {
        #[derive(Deserialize)]
        struct Metadata {
            packages: Vec<MetadataPackage>,
            workspace_root: PathBuf,
            target_directory: PathBuf,
        }
        #[derive(Deserialize)]
        struct MetadataPackage {
            name: String,
            manifest_path: PathBuf,
            targets: Vec<MetadataTarget>,
        }
        #[derive(Deserialize)]
        struct MetadataTarget {
            name: String,
            crate_types: Vec<String>,
        }

        let manifest = dir.join("Cargo.toml");
        let answer = toolchain.cargo(dir).args(["metadata", "--no-deps", "--format-version", "1"]).output();
        let answer = answer.context("cannot run cargo")?;
        ensure!(answer.status.success(), "cargo: {}", String::from_utf8_lossy(&answer.stderr).trim());
        let metadata: Metadata = serde_json::from_slice(&answer.stdout).context("cargo metadata")?;
        let package = metadata.packages.into_iter().find(|package| package.manifest_path == manifest);
        let package = package.with_context(|| format!("{} is not the manifest of a package", manifest.display()))?;
        let library = package.targets.into_iter().find(|target| target.crate_types.iter().any(|kind| kind == "cdylib"));
        let library = library.with_context(|| format!("{} has no `crate-type = [\"cdylib\"]`", manifest.display()))?;
        let shared = target::shared(dir, &metadata.workspace_root, &metadata.target_directory, |name| std::env::var_os(name));
        let target = shared.unwrap_or(metadata.target_directory);
        Ok(Package {
            name: package.name,
            library: library.name.replace('-', "_"),
            workspace: metadata.workspace_root,
            target: target.join("plugins"),
        })
    }
}

/// Builds the core module, and returns it.
fn run_cargo(dir: &Path, package: &Package, toolchain: &Toolchain) -> Result<Vec<u8>> {
    let mut clean = toolchain.cargo(dir);
    clean.args(["clean", "--release", "--target", TARGET]);
    // Until the module is read, no other build may replace it.
    let _claim = target::claim(&package.target, dir, &package.workspace, &package.library, clean)?;
    let mut cargo = toolchain.cargo(dir);
    cargo.args(["build", "--release", "--lib", "--target", TARGET, "--target-dir"]).arg(&package.target);
    if let Toolchain::Debian = toolchain {
        cargo.arg("-Zbuild-std=std,panic_abort");
    }
    // The same profile for every plugin; a workspace's would be the server's. Function names stay, for backtraces.
    for (key, value) in [("OPT_LEVEL", "s"), ("LTO", "true"), ("CODEGEN_UNITS", "1"), ("PANIC", "abort"), ("STRIP", "debuginfo")] {
        cargo.env(format!("CARGO_PROFILE_RELEASE_{key}"), value);
    }
    // These replace the user's own flags, which are for the machine: a component must not depend on who built it.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", path_flags(&package.target));
    let status = cargo.status().context("cannot run cargo")?;
    ensure!(status.success(), "cargo did not build {}", package.name);
    let module = package.target.join(TARGET).join("release").join(format!("{}.wasm", package.library));
    fs::read(&module).with_context(|| format!("cargo built no {}", module.display()))
}

/// Returns flags that remap paths: panic messages name source files, and a component must not contain paths of this machine. They are
/// the same for every plugin in a target folder, since cargo compiles everything again if they differ. A workspace's own crates need
/// none: cargo names their files by relative paths.
fn path_flags(target: &Path) -> OsString {
    let home = std::env::home_dir();
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(".cargo")));
    // The folder of each registry is named after its host.
    let registries = cargo_home.as_ref().map(|home| home.join("registry/src")).and_then(|sources| fs::read_dir(sources).ok());
    let mut registries: Vec<PathBuf> = registries.into_iter().flatten().flatten().map(|registry| registry.path()).collect();
    registries.sort();
    // If several match, the compiler takes the last.
    let remapped = [
        (home, "/home"),
        // Sources that build scripts generate.
        (Some(target.to_path_buf()), "/target"),
        (cargo_home, "/cargo"),
        (Some(PathBuf::from(Toolchain::DEBIAN_LIBRARY)), "/rust/library"),
    ];
    let registries = registries.into_iter().map(|registry| (Some(registry), "/crates"));
    let mut flags = OsString::new();
    for (path, name) in remapped.into_iter().chain(registries).filter_map(|(path, name)| Some((path?, name))) {
        // Cargo separates encoded flags with this character.
        flags.push(if flags.is_empty() { "" } else { "\u{1f}" });
        flags.push("--remap-path-prefix=");
        flags.push(path);
        flags.push(format!("={name}"));
    }
    flags
}

/// Writes a file so that readers see either the old content or the new one: a server may be watching the directory.
pub fn write_atomically(output: &Path, bytes: &[u8]) -> Result<()> {
    let name = output.file_name().with_context(|| format!("{} is not a file's name", output.display()))?;
    let mut temporary_name = OsString::from(".");
    temporary_name.push(name);
    temporary_name.push(format!(".{}", std::process::id()));
    let temporary = output.with_file_name(temporary_name);
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, output));
    if written.is_err() {
        // Best effort: the first error is the one to report.
        let _ = fs::remove_file(&temporary);
    }
    written.with_context(|| format!("cannot write {}", output.display()))
}

#[cfg(test)]
mod tests {
    use wasm_encoder::{Component, NestedComponentSection};

    use super::*;

    const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";

    fn append(wasm: &mut Vec<u8>, name: &str, data: &[u8]) {
        CustomSection { name: name.into(), data: data.into() }.append_to(wasm);
    }

    #[test]
    fn the_digest_is_found_among_other_sections() {
        let mut wasm = EMPTY.to_vec();
        append(&mut wasm, "other", &[7; 300]);
        assert_eq!(recorded_digest(&wasm), None);
        append(&mut wasm, SOURCES_SECTION, b"abc");
        append(&mut wasm, "later", b"");
        assert_eq!(recorded_digest(&wasm).as_deref(), Some("abc"));
        // The bytes of the format (component-model, Binary.md): an id, a length, the name with its length, and the data.
        assert!(wasm.windows(24).any(|bytes| bytes == b"\x00\x16\x12signalpost:sourcesabc"), "{wasm:?}");
    }

    #[test]
    fn the_digest_of_a_nested_component_is_not_the_outer_ones() {
        let mut inner = Component::new();
        inner.section(&CustomSection { name: SOURCES_SECTION.into(), data: b"inner".into() });
        let mut outer = Component::new();
        outer.section(&NestedComponentSection(&inner));
        let mut wasm = outer.finish();
        assert_eq!(recorded_digest(&wasm), None);
        append(&mut wasm, SOURCES_SECTION, b"outer");
        assert_eq!(recorded_digest(&wasm).as_deref(), Some("outer"));
    }

    #[test]
    fn a_truncated_component_has_no_digest() {
        let mut wasm = EMPTY.to_vec();
        append(&mut wasm, SOURCES_SECTION, b"abc");
        for length in 0..wasm.len() {
            assert_eq!(recorded_digest(&wasm[..length]), None, "{length}");
        }
        assert_eq!(recorded_digest(b"\0asm\x0d\0\x01\0\x00\xff\xff\xff\xff\xff\xff"), None);
    }
}
