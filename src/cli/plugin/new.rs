//! `signalpost plugin new`: creates a project that builds and passes its own fixtures.
//!
//! The templates are real sources under `plugins/templates`, one for each language, which CI builds and tests; they are embedded in
//! this binary. Each plays all roles, and a project gets the lines of those that it asks for (`part`). A Rust project inside a checkout of
//! Signalpost depends on the SDK there; anywhere else it gets a copy of the SDK in `vendor/`. Every project gets the contract.

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
    /// What the plugin does: one role, or several as in `routing,sessions`.
    #[arg(long, value_enum, value_name = "ROLES", value_delimiter = ',', default_value = "routing")]
    role: Vec<Role>,
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
    /// Decides who is told about an event.
    Routing,
    /// Shapes a message for its readers.
    Formatting,
    /// Speaks with the clients themselves.
    Sessions,
}

impl Role {
    const ALL: [Role; 3] = [Role::Routing, Role::Formatting, Role::Sessions];

    /// Returns the role's name in the contract.
    fn name(self) -> &'static str {
        match self {
            Role::Routing => "routing",
            Role::Formatting => "formatting",
            Role::Sessions => "sessions",
        }
    }
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

const SDK: [(&str, &str); 18] = folder!(
    "plugins/sdk": "Cargo.toml", "src/lib.rs", "src/baseline.rs", "src/bindings.rs", "src/bounds.rs", "src/decision.rs", "src/export.rs", "src/host.rs",
    "src/id.rs", "src/json.rs", "src/json/tests.rs", "src/list.rs", "src/locale.rs", "src/message.rs", "src/misfit.rs", "src/response.rs",
    "src/testing.rs", "src/time.rs",
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
    let roles = Role::ALL.into_iter().filter(|role| arguments.role.contains(role)).collect::<Vec<_>>();
    let template = Template { name, roles: &roles };
    let files = match arguments.lang {
        Lang::Rust => rust(&template, &parent)?,
        Lang::Js | Lang::Python | Lang::C => {
            let filled = sources(arguments.lang).iter().map(|(file, text)| ((*file).to_owned(), template.fill(text)));
            filled.chain(template.world()).collect()
        }
    };
    for (file, content) in files.into_iter().chain(fixtures(&roles)) {
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

fn rust(template: &Template, parent: &Path) -> anyhow::Result<Files> {
    let checkout = parent.ancestors().find(|dir| is_sdk(&dir.join("plugins/sdk")) && dir.join("wit/policy.wit").is_file());
    let sdk = match checkout {
        Some(checkout) => way(parent, checkout).join("plugins/sdk"),
        None => "vendor/signalpost-plugin".into(),
    };
    let sdk = sdk.to_str().context("the path to the SDK is not UTF-8")?;
    let mut manifest = template.fill(repository!("plugins/templates/rust/Cargo.toml")).replace("../../sdk", sdk);
    // A project beside the checkout's own plugins belongs to its workspace; any other is a workspace of its own.
    if checkout.is_none_or(|checkout| parent != checkout.join("plugins")) {
        manifest.push_str("\n[workspace]\n");
    }
    let source = template.fill(repository!("plugins/templates/rust/src/lib.rs"));
    let mut files = vec![("Cargo.toml".to_owned(), manifest), ("src/lib.rs".to_owned(), source)];
    if checkout.is_none() {
        files.push((".gitignore".to_owned(), "/target\n".to_owned()));
        files.extend(SDK.map(|(file, content)| (format!("vendor/signalpost-plugin/{file}"), content.to_owned())));
        files.extend(CONTRACT.map(|(file, content)| (format!("wit/{file}"), content.to_owned())));
    }
    Ok(files)
}

/// Returns the files of a project in another language than Rust, beside its contract.
fn sources(lang: Lang) -> &'static [(&'static str, &'static str)] {
    match lang {
        Lang::Rust => &[],
        Lang::Js => &[
            ("package.json", repository!("plugins/templates/js/package.json")),
            ("policy.js", repository!("plugins/templates/js/policy.js")),
            ("kit.js", repository!("plugins/templates/js/kit.js")),
            (".gitignore", "/node_modules\n"),
        ],
        Lang::Python => &[
            ("pyproject.toml", repository!("plugins/templates/python/pyproject.toml")),
            ("policy.py", repository!("plugins/templates/python/policy.py")),
            ("kit.py", repository!("plugins/templates/python/kit.py")),
            (".gitignore", "/.venv\n__pycache__\n"),
        ],
        Lang::C => &[
            ("policy.c", repository!("plugins/templates/c/policy.c")),
            ("kit.h", repository!("plugins/templates/c/kit.h")),
            // Editors read clang's flags from this file.
            ("compile_flags.txt", "--target=wasm32-wasi\n-I.bindings\n"),
            (".gitignore", "/.bindings\n"),
        ],
    }
}

/// Returns the fixtures of a project, which are the same for every language.
fn fixtures(roles: &[Role]) -> Files {
    let of_role = |role: &Role| match role {
        Role::Routing => &folder!("plugins/templates/fixtures/routing": "shipped.json", "wording.json")[..],
        Role::Formatting => &folder!("plugins/templates/fixtures/formatting": "readers.json")[..],
        Role::Sessions => &folder!("plugins/templates/fixtures/sessions": "greeting.json")[..],
    };
    roles.iter().flat_map(of_role).map(|(file, content)| (format!("fixtures/{file}"), (*content).to_owned())).collect()
}

/// What a project takes from the templates.
struct Template<'a> {
    name: &'a str,
    roles: &'a [Role],
}

impl Template<'_> {
    /// Returns a template's text for this project: with its name, its roles, and the event types that they want.
    fn fill(&self, text: &str) -> String {
        let roles = self.roles.iter().map(|role| role.name()).collect::<Vec<_>>();
        let events: &[&str] = match (roles.contains(&"routing"), roles.contains(&"formatting")) {
            (true, true) => &["order.shipped", "signalpost.direct"],
            (true, false) => &["order.shipped"],
            (false, true) => &["*"],
            (false, false) => &[],
        };
        let events = events.iter().map(|event| format!("\"{event}\"")).collect::<Vec<_>>().join(", ");
        part(text, &roles)
            .replace("\"template\"", &format!("\"{}\"", self.name))
            .replace("\"order.shipped\", \"signalpost.direct\"", &events)
            .replace("MyPolicy: routing, formatting, sessions", &format!("MyPolicy: {}", roles.join(", ")))
    }

    /// Returns the WIT files of a project: the plugin's world, and the contract that it uses.
    fn world(&self) -> Files {
        let world = self.fill(repository!("plugins/templates/wit/world.wit"));
        let contract = CONTRACT.map(|(file, content)| (format!("wit/deps/signalpost-policy/{file}"), content.to_owned()));
        contract.into_iter().chain([("wit/world.wit".to_owned(), world)]).collect()
    }
}

/// Returns the lines of a template that belong to one of the roles. A comment `[routing, sessions]` at the end of a line says whose that
/// line is; on a line of its own, it says so of the lines that follow, up to the next such comment. `[end]` is for everybody again.
fn part(text: &str, roles: &[&str]) -> String {
    let mut kept = String::new();
    let mut wanted = true;
    for line in text.lines() {
        let (code, is_for) = mark(line);
        let is_wanted = is_for.map(|of| of == "end" || of.split(", ").any(|role| roles.contains(&role)));
        match is_wanted {
            Some(is_wanted) if code.trim().is_empty() => wanted = is_wanted,
            None | Some(true) if wanted => kept = kept + code + "\n",
            _ => {}
        }
    }
    // A block that has lost all its lines fits on one, and no block ends with a blank line.
    let kept = kept.replace("{\n}", "{}").replace("\n\n}", "\n}");
    kept.trim_end().to_owned() + "\n"
}

/// Takes the mark off a line: returns what is before it, and the roles that it names.
fn mark(line: &str) -> (&str, Option<&str>) {
    let marked = line.strip_suffix(']').and_then(|line| line.rsplit_once("// [").or_else(|| line.rsplit_once("# [")));
    match marked {
        Some((code, of)) if of == "end" || of.split(", ").all(|word| Role::ALL.iter().any(|role| role.name() == word)) => {
            (code.trim_end(), Some(of))
        }
        _ => (line, None),
    }
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
