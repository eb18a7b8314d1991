//! Makes a component of a plugin. Of one that is written in Rust cargo builds the core module, and `wit-component` wraps it; other
//! languages have tools of their own.
//!
//! The target is `wasm32-unknown-unknown`, which has no WASI: the component imports what its world names and nothing
//! else. A component notes the digest of its sources, so that CI can tell a stale one without rebuilding it.

mod languages;
mod sources;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use wit_component::{ComponentEncoder, DecodedWasm};

pub use languages::Language;
pub use sources::{find_wit, fingerprint, sources_digest};

/// The custom section with the digest of the sources, as 64 hexadecimal digits.
const SOURCES_SECTION: &str = "signalpost:sources";

const TARGET: &str = "wasm32-unknown-unknown";

/// A component that was built.
#[derive(Debug)]
pub struct Built {
    pub output: PathBuf,
    pub bytes: usize,
    /// Interfaces, without the types that they share.
    pub imports: Vec<String>,
    pub exports: Vec<String>,
    pub took: Duration,
}

/// Builds the plugin in `dir` and writes its component to `output`, or beside `dir` under its name.
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
    append_custom_section(&mut component, SOURCES_SECTION, sources.as_bytes());

    let output = output.map_or_else(|| self::output(&dir), |output| Ok(output.to_path_buf()))?;
    let (imports, exports) = interfaces(&component)?;
    write_atomically(&output, &component)?;
    Ok(Built { output, bytes: component.len(), imports, exports, took: started.elapsed() })
}

/// What a component imports and exports, as a policy's author thinks of it.
fn interfaces(component: &[u8]) -> Result<(Vec<String>, Vec<String>)> {
    let DecodedWasm::Component(resolve, world) = wit_component::decode(component)? else { bail!("what was built is no component") };
    let world = resolve.worlds.get(world).context("what was built has no world")?;
    let short = |name: String| match name.strip_prefix("signalpost:policy/").and_then(|rest| rest.split('@').next()) {
        Some(interface) => interface.to_owned(),
        None => name,
    };
    let imports = world.imports.keys().map(|key| short(resolve.name_world_key(key)));
    let exports = world.exports.keys().map(|key| short(resolve.name_world_key(key)));
    // Tools export what they need themselves too, which only `inspect` shows.
    let exports = exports.filter(|name| ["plugin", "routing", "formatting", "sessions"].contains(&name.as_str()));
    Ok((imports.filter(|name| name != "types" && name != "diagnostics").collect(), exports.collect()))
}

/// Finds the tools and the crate. Its versions are locked from here on: the first build would otherwise add to the sources.
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
    let core = run_cargo(dir, package, toolchain)?;
    let module = fs::read(&core).with_context(|| format!("cargo built no {}", core.display()))?;
    encode(&module).context("the module is not a component's: does the plugin call `signalpost_plugin::export!`, or wit-bindgen's?")
}

fn c(dir: &Path) -> Result<Vec<u8>> {
    let module = languages::c(dir)?;
    encode(&module).context(
        "the module is not a component's: does it define what its world exports, and do without the files, streams, clock and \
         environment of C's library?",
    )
}

/// A component from a core module that has its world in it.
fn encode(module: &[u8]) -> Result<Vec<u8>> {
    ComponentEncoder::default().validate(true).module(module).and_then(|encoder| encoder.encode())
}

/// Where `build` writes a plugin's component: beside its folder.
pub fn output(dir: &Path) -> Result<PathBuf> {
    let dir = fs::canonicalize(dir).with_context(|| format!("there is no directory {}", dir.display()))?;
    let name = match Language::of(&dir)? {
        Language::Rust => sources::package_name(&dir)?,
        // Their tools don't name a component.
        Language::JavaScript | Language::Python | Language::C => dir.file_name().unwrap_or_default().to_string_lossy().into_owned(),
    };
    Ok(dir.parent().unwrap_or(&dir).join(format!("{name}.wasm")))
}

/// The digest that `build` noted in a component.
pub fn recorded_digest(wasm: &[u8]) -> Option<String> {
    // After magic and version come sections: an id, a length, and so many bytes (component-model, Binary.md).
    let mut rest = wasm.get(8..)?;
    while let Some((&id, after_id)) = rest.split_first() {
        let (section, after) = split_prefixed(after_id)?;
        if id == 0 {
            let (name, content) = split_prefixed(section)?;
            if name == SOURCES_SECTION.as_bytes() {
                return String::from_utf8(content.to_vec()).ok();
            }
        }
        rest = after;
    }
    None
}

/// Who can compile for the target.
enum Toolchain {
    /// `rustc` on the path has the target's standard library.
    Installed,
    /// Debian's own compiler, which has the library's source instead and builds it along.
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
                // Where rustup's cargo started this process, it left traces that its compiler reads.
                command.env_remove("RUSTUP_TOOLCHAIN").env_remove("LD_LIBRARY_PATH");
                command
            }
        };
        command.current_dir(dir);
        command
    }
}

/// Builds what runs here, and not in a server.
pub fn cargo_for_this_machine(dir: &Path) -> Command {
    let is_there = Command::new("cargo").arg("--version").current_dir(dir).output().is_ok_and(|answer| answer.status.success());
    if is_there { Toolchain::Installed.cargo(dir) } else { Toolchain::Debian.cargo(dir) }
}

/// What cargo knows of the plugin.
struct Package {
    name: String,
    library: String,
    workspace: PathBuf,
    /// The plugins' own, or each build would throw away what another one with other flags has built.
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
        let package = package.with_context(|| format!("{} is not a package's", manifest.display()))?;
        let library = package.targets.into_iter().find(|target| target.crate_types.iter().any(|kind| kind == "cdylib"));
        let library = library.with_context(|| format!("{} has no `crate-type = [\"cdylib\"]`", manifest.display()))?;
        Ok(Package {
            name: package.name,
            library: library.name,
            workspace: metadata.workspace_root,
            target: metadata.target_directory.join("plugins"),
        })
    }
}

/// Returns the path of the core module.
fn run_cargo(dir: &Path, package: &Package, toolchain: &Toolchain) -> Result<PathBuf> {
    let mut cargo = toolchain.cargo(dir);
    cargo.args(["build", "--release", "--lib", "--target", TARGET, "--target-dir"]).arg(&package.target);
    if let Toolchain::Debian = toolchain {
        cargo.arg("-Zbuild-std=std,panic_abort");
    }
    // The plugin's own profile need not care, and a workspace's is the server's. Names of functions stay, for backtraces.
    for (key, value) in [("OPT_LEVEL", "s"), ("LTO", "true"), ("CODEGEN_UNITS", "1"), ("PANIC", "abort"), ("STRIP", "debuginfo")] {
        cargo.env(format!("CARGO_PROFILE_RELEASE_{key}"), value);
    }
    // Instead of the user's own flags: they are for the machine, and a component should not depend on who built it.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", path_flags(package));
    let status = cargo.status().context("cannot run cargo")?;
    ensure!(status.success(), "cargo did not build {}", package.name);
    let module = format!("{}.wasm", package.library.replace('-', "_"));
    Ok(package.target.join(TARGET).join("release").join(module))
}

/// Messages of panics name source files: none of this machine's paths should get into a component.
fn path_flags(package: &Package) -> OsString {
    let home = std::env::home_dir();
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join(".cargo")));
    // Of several that match, the compiler takes the last.
    let remapped = [
        (home, "/home"),
        (Some(package.workspace.clone()), "/workspace"),
        (cargo_home.clone(), "/cargo"),
        (Some(PathBuf::from(Toolchain::DEBIAN_LIBRARY)), "/rust/library"),
    ];
    // The folder of each registry is named after its host. The last name that fits is taken.
    let registries = cargo_home.as_ref().map(|home| home.join("registry/src")).and_then(|sources| fs::read_dir(sources).ok());
    let registries = registries.into_iter().flatten().flatten().map(|registry| (Some(registry.path()), "/crates"));
    let mut flags = OsString::new();
    for (path, name) in remapped.into_iter().chain(registries).filter_map(|(path, name)| Some((path?, name))) {
        // Cargo separates encoded flags by this character.
        flags.push(if flags.is_empty() { "" } else { "\u{1f}" });
        flags.push("--remap-path-prefix=");
        flags.push(path);
        flags.push(format!("={name}"));
    }
    flags
}

/// A reader sees the old component or the new one: a server may be watching the directory.
pub fn write_atomically(output: &Path, bytes: &[u8]) -> Result<()> {
    let name = output.file_name().with_context(|| format!("{} is not a file's name", output.display()))?;
    let mut temporary_name = OsString::from(".");
    temporary_name.push(name);
    temporary_name.push(format!(".{}", std::process::id()));
    let temporary = output.with_file_name(temporary_name);
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, output));
    if written.is_err() {
        // Best effort: the first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    written.with_context(|| format!("cannot write {}", output.display()))
}

fn append_custom_section(wasm: &mut Vec<u8>, name: &str, content: &[u8]) {
    let mut section = Vec::new();
    push_leb128(&mut section, name.len());
    section.extend_from_slice(name.as_bytes());
    section.extend_from_slice(content);
    wasm.push(0);
    push_leb128(wasm, section.len());
    wasm.extend_from_slice(&section);
}

fn push_leb128(bytes: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// Splits off what a LEB128 length says; `None` where the bytes end too early.
fn split_prefixed(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut length = 0usize;
    for (index, byte) in bytes.iter().enumerate().take(5) {
        length |= usize::from(byte & 0x7f).checked_shl(7 * index as u32)?;
        if byte & 0x80 == 0 {
            return bytes.get(index + 1..)?.split_at_checked(length);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_found_again() {
        let mut wasm = b"\0asm\x0d\0\x01\0".to_vec();
        append_custom_section(&mut wasm, "other", &[7; 300]);
        assert_eq!(recorded_digest(&wasm), None);
        append_custom_section(&mut wasm, SOURCES_SECTION, b"abc");
        append_custom_section(&mut wasm, "later", b"");
        assert_eq!(recorded_digest(&wasm).as_deref(), Some("abc"));
    }

    #[test]
    fn no_cut_component_confuses_the_reader() {
        let mut wasm = b"\0asm\x0d\0\x01\0".to_vec();
        append_custom_section(&mut wasm, SOURCES_SECTION, b"abc");
        for length in 0..wasm.len() {
            assert_eq!(recorded_digest(&wasm[..length]), None, "{length}");
        }
        assert_eq!(recorded_digest(b"\0asm\x0d\0\x01\0\x00\xff\xff\xff\xff\xff\xff"), None);
    }
}
