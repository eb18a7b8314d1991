//! Plugins in other languages than Rust: their own tools make the component, and this finds and calls them.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};

/// The world that a plugin's `wit/world.wit` has to define.
const WORLD: &str = "policy";

/// What a plugin is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    Rust,
    JavaScript,
    Python,
}

impl Language {
    /// Reads it off the file that each language has.
    pub fn of(dir: &Path) -> Result<Language> {
        let files = [("Cargo.toml", Language::Rust), ("package.json", Language::JavaScript), ("pyproject.toml", Language::Python)];
        let found = files.iter().find(|(file, _)| dir.join(file).is_file());
        let names = files.map(|(file, _)| file).join(", ");
        Ok(found.with_context(|| format!("{} is no plugin's folder: it has none of {names}", dir.display()))?.1)
    }
}

/// The component of a plugin in JavaScript, by componentize-qjs.
pub fn javascript(dir: &Path) -> Result<Vec<u8>> {
    let tool = find("componentize-qjs", dir, &["node_modules/.bin"], "npm install")?;
    let entry = dir.join("package.json");
    let text = fs::read_to_string(&entry).with_context(|| format!("can't read {}", entry.display()))?;
    let package: serde_json::Value = serde_json::from_str(&text).with_context(|| format!("{} is no JSON", entry.display()))?;
    let main = package.get("main").and_then(serde_json::Value::as_str).unwrap_or("policy.js");
    let mut command = Command::new(tool);
    // Without WASI, and without the asynchronous calls that policies don't have.
    command.args(["--wit", "wit", "--world", WORLD, "--stub-wasi", "--sync", "--js", main, "--output"]);
    run(command, dir)
}

/// The component of a plugin in Python, by componentize-py: its module is `policy`.
pub fn python(dir: &Path) -> Result<Vec<u8>> {
    let install = "python3 -m venv .venv && .venv/bin/pip install componentize-py";
    let tool = find("componentize-py", dir, &[".venv/bin", "venv/bin"], install)?;
    let mut command = Command::new(tool);
    command.args(["--quiet", "--wit-path", "wit", "--world", WORLD, "componentize", "--stub-wasi", "policy", "--output"]);
    run(command, dir)
}

/// A tool that the project has installed, or the machine.
fn find(tool: &str, dir: &Path, places: &[&str], install: &str) -> Result<PathBuf> {
    let own = places.iter().map(|place| dir.join(place));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = own.chain(std::env::split_paths(&path)).map(|place| place.join(tool)).find(|file| file.is_file());
    found.with_context(|| format!("there is no {tool}: run `{install}` in {}", dir.display()))
}

/// Runs a tool that writes a component, whose name is the last argument. What it says is told where it fails.
fn run(mut command: Command, dir: &Path) -> Result<Vec<u8>> {
    if std::io::stderr().is_terminal() {
        eprintln!("building {} …", dir.display());
    }
    let output = std::env::temp_dir().join(format!("signalpost-build-{}.wasm", std::process::id()));
    let tool = command.get_program().to_owned();
    let ran = command.arg(&output).current_dir(dir).env("PYTHONDONTWRITEBYTECODE", "1").output();
    let Output { status, stdout, stderr } = ran.with_context(|| format!("can't run {}", tool.display()))?;
    let component = fs::read(&output);
    // Best effort: it is in a folder for such files.
    let _ = fs::remove_file(&output);
    let said = || [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()).join("\n");
    ensure!(status.success(), "{}\n{} did not build {}", said(), tool.display(), dir.display());
    match component {
        Ok(component) => Ok(component),
        Err(error) => bail!("{} wrote no component: {error}", tool.display()),
    }
}
