//! Plugins in other languages than Rust. Their own tools build the component; this module finds and runs them.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use wit_bindgen_core::Files;
use wit_bindgen_core::wit_parser::{Resolve, WorldKey};

/// The world that a plugin's `wit/world.wit` has to define.
const WORLD: &str = "policy";

/// The folder with the generated header of a plugin in C, beside its sources.
const BINDINGS: &str = ".bindings";

/// The language of a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    Rust,
    JavaScript,
    Python,
    C,
}

impl Language {
    /// Recognizes the language by a file that each of them has.
    pub fn of(dir: &Path) -> Result<Language> {
        let files = [
            ("Cargo.toml", Language::Rust),
            ("package.json", Language::JavaScript),
            ("pyproject.toml", Language::Python),
            ("policy.c", Language::C),
        ];
        let found = files.iter().find(|(file, _)| dir.join(file).is_file());
        let names = files.map(|(file, _)| file).join(", ");
        Ok(found.with_context(|| format!("{} is not a plugin's folder: it has none of {names}", dir.display()))?.1)
    }
}

/// Builds the component of a plugin in JavaScript with componentize-qjs.
pub fn javascript(dir: &Path) -> Result<Vec<u8>> {
    let tool = find("componentize-qjs", dir, &["node_modules/.bin"], "npm install")?;
    let entry = dir.join("package.json");
    let text = fs::read_to_string(&entry).with_context(|| format!("can't read {}", entry.display()))?;
    let package: serde_json::Value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", entry.display()))?;
    let main = package.get("main").and_then(serde_json::Value::as_str).unwrap_or("policy.js");
    let mut command = Command::new(tool);
    // Without WASI, and without asynchronous calls, which policies don't have.
    command.args(["--wit", "wit", "--world", WORLD, "--stub-wasi", "--sync", "--js", main, "--output"]);
    run(command, dir)
}

/// Builds the component of a plugin in Python with componentize-py. Its module is `policy`.
pub fn python(dir: &Path) -> Result<Vec<u8>> {
    let install = "python3 -m venv .venv && .venv/bin/pip install componentize-py";
    let tool = find("componentize-py", dir, &[".venv/bin", "venv/bin"], install)?;
    let mut command = Command::new(tool);
    command.args(["--quiet", "--wit-path", "wit", "--world", WORLD, "componentize", "--stub-wasi", "policy", "--output"]);
    run(command, dir)
}

/// Builds the core module of a plugin in C with clang and wasi-libc, from all `*.c` in its folder and the code that is generated from
/// its world.
pub fn c(dir: &Path) -> Result<Vec<u8>> {
    let clang = clang()?;
    let bindings = dir.join(BINDINGS);
    fs::create_dir_all(&bindings).with_context(|| format!("can't make {}", bindings.display()))?;
    for (name, content) in c_bindings(&dir.join("wit"))?.iter() {
        let path = bindings.join(name);
        fs::write(&path, content).with_context(|| format!("can't write {}", path.display()))?;
    }
    let files = |dir: &Path, extensions: &[&str]| -> Result<Vec<PathBuf>> {
        let listed = fs::read_dir(dir).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
        let paths = listed.with_context(|| format!("can't list {}", dir.display()))?.into_iter().map(|entry| entry.path());
        let mut paths: Vec<PathBuf> =
            paths.filter(|path| path.extension().is_some_and(|found| extensions.iter().any(|extension| found == *extension))).collect();
        paths.sort();
        Ok(paths)
    };
    let mut command = Command::new(clang);
    command.args(C_TARGET).args(["-mexec-model=reactor", "-O2", "-Wall", "-Wextra", "-Wl,--strip-debug", "-I", BINDINGS]);
    command.args(files(dir, &["c"])?).args(files(&bindings, &["c", "o"])?).arg("-o");
    run(command, dir)
}

/// Debian's wasi-libc supports only the older of the target's two names, which clang calls deprecated.
const C_TARGET: [&str; 2] = ["--target=wasm32-wasi", "-Wno-deprecated"];

/// Finds a clang with a C library for WebAssembly: the one in `WASI_SDK_PATH`, or the machine's.
fn clang() -> Result<PathBuf> {
    let sdk = std::env::var_os("WASI_SDK_PATH").map(|sdk| Path::new(&sdk).join("bin/clang"));
    let has_library = |clang: &PathBuf| {
        let asked = Command::new(clang).args(C_TARGET).arg("-print-file-name=libc.a").output();
        asked.is_ok_and(|answer| Path::new(String::from_utf8_lossy(&answer.stdout).trim()).is_absolute())
    };
    let found = sdk.into_iter().chain(["clang-22", "clang"].map(PathBuf::from)).find(has_library);
    found.context(
        "there is no clang with a C library for WebAssembly: set WASI_SDK_PATH to an unpacked WASI SDK \
         (github.com/WebAssembly/wasi-sdk), or on Debian `apt-get install clang-22 lld-22 wasi-libc libclang-rt-22-dev-wasm32`",
    )
}

/// Generates `policy.h` and its source. Names are those of the contract without its package: `exports_routing_route`, `policy_event_t`.
fn c_bindings(wit: &Path) -> Result<Files> {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(wit)?;
    let world = resolve.select_world(&[package], Some(WORLD))?;
    let interfaces = resolve.worlds.get(world).into_iter().flat_map(|world| world.imports.keys().chain(world.exports.keys()));
    let full_names = interfaces.filter(|key| matches!(key, WorldKey::Interface(_))).map(|key| resolve.name_world_key(key));
    let rename = |full: String| {
        let short = full.rsplit('/').next().and_then(|name| name.split('@').next()).unwrap_or(&full);
        let short = if short == "types" { WORLD.to_owned() } else { short.replace('-', "_") };
        (full, short)
    };
    let options = wit_bindgen_c::Opts { rename: full_names.map(rename).collect(), ..Default::default() };
    let mut files = Files::default();
    options.build().generate(&mut resolve, world, &mut files)?;
    Ok(files)
}

/// Finds a tool in the project or on the path.
fn find(tool: &str, dir: &Path, folders: &[&str], install: &str) -> Result<PathBuf> {
    let own = folders.iter().map(|folder| dir.join(folder));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = own.chain(std::env::split_paths(&path)).map(|folder| folder.join(tool)).find(|file| file.is_file());
    found.with_context(|| format!("there is no {tool}: run `{install}` in {}", dir.display()))
}

/// Runs a tool that writes a component to the file that is its last argument. If it fails, the error contains its output.
fn run(mut command: Command, dir: &Path) -> Result<Vec<u8>> {
    if std::io::stderr().is_terminal() {
        eprintln!("building {} …", dir.display());
    }
    let output = std::env::temp_dir().join(format!("signalpost-build-{}.wasm", std::process::id()));
    let tool = command.get_program().to_owned();
    let ran = command.arg(&output).current_dir(dir).env("PYTHONDONTWRITEBYTECODE", "1").output();
    let Output { status, stdout, stderr } = ran.with_context(|| format!("can't run {}", tool.display()))?;
    let component = fs::read(&output);
    // Best effort: it is a temporary file.
    let _ = fs::remove_file(&output);
    let said = || [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).join("\n");
    ensure!(status.success(), "{}\n{} did not build {}", said().trim(), tool.display(), dir.display());
    match component {
        Ok(component) => Ok(component),
        Err(error) => bail!("{} wrote no component: {error}", tool.display()),
    }
}
