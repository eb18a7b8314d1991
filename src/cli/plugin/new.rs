//! `signalpost plugin new`: creates a project that builds and passes its own fixtures.
//!
//! The templates are real sources under `plugins/templates`, which CI builds and tests; they are embedded in this binary. A Rust
//! project inside a checkout of Signalpost depends on the SDK there; anywhere else it gets a copy of the SDK in `vendor/`. Every
//! project gets the part of the contract that it needs.

use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};

use crate::config::NAME_BYTES_MAX;

#[derive(Args, Debug)]
pub(in crate::cli) struct Arguments {
    /// The plugin's folder, named as the plugin: ASCII letters, digits and `-`. May be a path.
    dir: PathBuf,
    #[arg(long, value_enum, default_value_t = Lang::Rust)]
    lang: Lang,
    #[arg(long, value_enum, default_value_t = Role::Routing)]
    role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Lang {
    Rust,
    Js,
    Python,
    C,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Role {
    Routing,
    Formatting,
    Sessions,
}

/// Files of a project: name and content.
type Files = Vec<(String, String)>;

/// A file of this repository.
macro_rules! repository {
    ($path:literal) => {
        include_str!(concat!("../../../", $path))
    };
}

/// Files of a folder of this repository, by name.
macro_rules! folder {
    ($folder:literal: $($file:literal),* $(,)?) => {
        [$(($file, include_str!(concat!("../../../", $folder, "/", $file)))),*]
    };
}

const CONTRACT: [(&str, &str); 3] = folder!("wit": "policy.wit", "host.wit", "worlds.wit");

const SDK: [(&str, &str); 17] = folder!(
    "plugins/sdk": "Cargo.toml", "src/lib.rs", "src/baseline.rs", "src/bindings.rs", "src/bounds.rs", "src/decision.rs", "src/export.rs", "src/host.rs",
    "src/id.rs", "src/json.rs", "src/list.rs", "src/locale.rs", "src/message.rs", "src/misfit.rs", "src/response.rs", "src/testing.rs", "src/time.rs",
);

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let dir = &arguments.dir;
    let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let sane = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.len() <= NAME_BYTES_MAX;
    ensure!(sane, "{name:?} is not a plugin's name: it has 1 to {NAME_BYTES_MAX} ASCII letters, digits and `-`, and begins with a letter");
    ensure!(!dir.exists(), "there is something at {} already", dir.display());
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = fs::canonicalize(parent).with_context(|| format!("there is no folder {}", parent.display()))?;
    let files = match arguments.lang {
        Lang::Rust => rust(name, arguments.role, &parent)?,
        Lang::Js => javascript(name, arguments.role),
        Lang::Python => python(name, arguments.role),
        Lang::C => c(name, arguments.role),
    };
    for (file, content) in files.into_iter().chain(fixtures(arguments.role)) {
        let path = dir.join(file);
        let folder = path.parent().unwrap_or(dir);
        fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
        fs::write(&path, content).with_context(|| format!("can't write {}", path.display()))?;
    }
    println!("{} is a plugin. Next:\n", dir.display());
    match arguments.lang {
        Lang::Rust | Lang::C => {}
        Lang::Js => println!("  (cd {} && npm install)", dir.display()),
        Lang::Python => println!("  (cd {} && python3 -m venv .venv && .venv/bin/pip install componentize-py==0.25.1)", dir.display()),
    }
    println!(
        "  signalpost plugin test {}    builds it and runs its fixtures\n  signalpost dev {0}            does so whenever a file changes, and serves it",
        dir.display()
    );
    Ok(())
}

fn rust(name: &str, role: Role, parent: &Path) -> anyhow::Result<Files> {
    let (manifest, source) = match role {
        Role::Routing => {
            (repository!("plugins/templates/rust/routing/Cargo.toml"), repository!("plugins/templates/rust/routing/src/lib.rs"))
        }
        Role::Formatting => {
            (repository!("plugins/templates/rust/formatting/Cargo.toml"), repository!("plugins/templates/rust/formatting/src/lib.rs"))
        }
        Role::Sessions => {
            (repository!("plugins/templates/rust/sessions/Cargo.toml"), repository!("plugins/templates/rust/sessions/src/lib.rs"))
        }
    };
    let checkout = parent.ancestors().find(|dir| is_sdk(&dir.join("plugins/sdk")) && dir.join("wit/policy.wit").is_file());
    let sdk = match checkout {
        Some(checkout) => way(parent, checkout).join("plugins/sdk"),
        None => "vendor/signalpost-plugin".into(),
    };
    let sdk = sdk.to_str().context("the path to the SDK is not UTF-8")?;
    let mut manifest = renamed(manifest, name).replace("../../../sdk", sdk);
    // A project beside the checkout's own plugins belongs to its workspace; any other is a workspace of its own.
    if checkout.is_none_or(|checkout| parent != checkout.join("plugins")) {
        manifest.push_str("\n[workspace]\n");
    }
    let mut files = vec![("Cargo.toml".to_owned(), manifest), ("src/lib.rs".to_owned(), source.to_owned())];
    if checkout.is_none() {
        files.push((".gitignore".to_owned(), "/target\n".to_owned()));
        files.extend(SDK.map(|(file, content)| (format!("vendor/signalpost-plugin/{file}"), content.to_owned())));
        files.extend(CONTRACT.map(|(file, content)| (format!("wit/{file}"), content.to_owned())));
    }
    Ok(files)
}

fn javascript(name: &str, role: Role) -> Files {
    let source = match role {
        Role::Routing => repository!("plugins/templates/js/routing.js"),
        Role::Formatting => repository!("plugins/templates/js/formatting.js"),
        Role::Sessions => repository!("plugins/templates/js/sessions.js"),
    };
    let mut files = world(role);
    files.push(("package.json".into(), renamed(repository!("plugins/templates/js/package.json"), name)));
    files.push(("kit.js".into(), repository!("plugins/templates/js/kit.js").into()));
    files.extend([("policy.js".into(), renamed(source, name)), (".gitignore".into(), "/node_modules\n".into())]);
    files
}

fn python(name: &str, role: Role) -> Files {
    let source = match role {
        Role::Routing => repository!("plugins/templates/python/routing.py"),
        Role::Formatting => repository!("plugins/templates/python/formatting.py"),
        Role::Sessions => repository!("plugins/templates/python/sessions.py"),
    };
    let mut files = world(role);
    files.push(("pyproject.toml".into(), renamed(repository!("plugins/templates/python/pyproject.toml"), name)));
    files.push(("kit.py".into(), repository!("plugins/templates/python/kit.py").into()));
    files.extend([("policy.py".into(), renamed(source, name)), (".gitignore".into(), "/.venv\n__pycache__\n".into())]);
    files
}

fn c(name: &str, role: Role) -> Files {
    let source = match role {
        Role::Routing => repository!("plugins/templates/c/routing.c"),
        Role::Formatting => repository!("plugins/templates/c/formatting.c"),
        Role::Sessions => repository!("plugins/templates/c/sessions.c"),
    };
    let mut files = world(role);
    files.push(("kit.h".into(), repository!("plugins/templates/c/kit.h").into()));
    // Editors read clang's flags from this file.
    files.push(("compile_flags.txt".into(), "--target=wasm32-wasi\n-I.bindings\n".into()));
    files.extend([("policy.c".into(), renamed(source, name)), (".gitignore".into(), "/.bindings\n".into())]);
    files
}

/// Returns the WIT files of a project: the plugin's world, and the contract that it uses.
fn world(role: Role) -> Files {
    let world = match role {
        Role::Routing => repository!("plugins/templates/wit/routing.wit"),
        Role::Formatting => repository!("plugins/templates/wit/formatting.wit"),
        Role::Sessions => repository!("plugins/templates/wit/sessions.wit"),
    };
    let contract = CONTRACT.map(|(file, content)| (format!("wit/deps/signalpost-policy/{file}"), content.to_owned()));
    contract.into_iter().chain([("wit/world.wit".to_owned(), world.to_owned())]).collect()
}

/// Returns the fixtures of a project, which are the same for every language.
fn fixtures(role: Role) -> Files {
    let files = match role {
        Role::Routing => &folder!("plugins/templates/fixtures/routing": "shipped.json", "wording.json")[..],
        Role::Formatting => &folder!("plugins/templates/fixtures/formatting": "readers.json")[..],
        Role::Sessions => &folder!("plugins/templates/fixtures/sessions": "greeting.json")[..],
    };
    files.iter().map(|(file, content)| (format!("fixtures/{file}"), (*content).to_owned())).collect()
}

/// Returns a template with the plugin's name in it.
fn renamed(text: &str, name: &str) -> String {
    ["template-routing", "template-formatting", "template-sessions", "template"]
        .iter()
        .fold(text.to_owned(), |text, template| text.replace(&format!("\"{template}\""), &format!("\"{name}\"")))
}

fn is_sdk(dir: &Path) -> bool {
    fs::read_to_string(dir.join("Cargo.toml")).is_ok_and(|manifest| manifest.contains("name = \"signalpost-plugin\""))
}

/// Returns the relative path from a project in `parent` to one of its ancestors.
fn way(parent: &Path, ancestor: &Path) -> PathBuf {
    let between =
        parent.strip_prefix(ancestor).map_or(0, |rest| rest.components().filter(|part| matches!(part, Component::Normal(_))).count());
    std::iter::repeat_n("..", between + 1).collect()
}
