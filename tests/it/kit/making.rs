//! New projects, and what `build` says where it can't. That they build and pass their fixtures is tried by `tests/kit/run`, which
//! needs each language's tools.

use std::collections::BTreeSet;
use std::path::Path;

use super::plugin;

/// Files below a folder, with `/` between.
fn files(root: &Path) -> BTreeSet<String> {
    let (mut found, mut folders) = (BTreeSet::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found
}

fn new(dir: &Path, arguments: &[&str]) -> String {
    let ran = plugin(dir, &[&["new"], arguments].concat());
    assert_eq!(ran.code, 0, "{}", ran.err);
    ran.out
}

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// The file with a plugin's policy, in each language.
const POLICIES: [(&str, &str); 4] = [("rust", "src/lib.rs"), ("js", "policy.js"), ("python", "policy.py"), ("c", "policy.c")];

#[test]
fn a_project_has_the_name_and_the_fixtures_of_its_roles() {
    let dir = tempfile::tempdir().unwrap();
    for (lang, _) in POLICIES {
        for roles in [&["routing"][..], &["formatting"], &["sessions"], &["routing", "sessions"], &["routing", "formatting", "sessions"]] {
            let name = format!("my-{lang}-{}", roles.join("-"));
            let said = new(dir.path(), &[&name, "--lang", lang, "--role", &roles.join(",")]);
            assert!(said.contains(&format!("signalpost plugin test {name}")), "{said}");
            let project = dir.path().join(&name);
            let manifests = ["Cargo.toml", "package.json", "pyproject.toml", "policy.c"].map(|file| project.join(file));
            let manifest = manifests.into_iter().find(|file| file.is_file());
            let manifest = std::fs::read_to_string(manifest.unwrap()).unwrap();
            assert!(manifest.contains(&format!("\"{name}\"")), "{manifest}");
            let templates = Path::new(REPOSITORY).join("plugins/templates/fixtures");
            let fixtures = roles.iter().flat_map(|role| files(&templates.join(role))).collect();
            assert_eq!(files(&project.join("fixtures")), fixtures, "{name}");
            let left: Vec<String> = files(&project)
                .into_iter()
                .filter(|file| !file.contains("vendor/") && std::fs::read_to_string(project.join(file)).unwrap().contains("template"))
                .collect();
            assert!(left.is_empty(), "{name}: {left:?} still speak of the template");
        }
    }
}

#[test]
fn a_project_has_its_roles_and_no_line_of_another() {
    // What only the policy of one role has, in every language.
    let of_role = [("routing", "total"), ("formatting", "vary"), ("sessions", "pong")];
    let dir = tempfile::tempdir().unwrap();
    for (lang, policy) in POLICIES {
        for asked in ["routing", "formatting", "sessions", "sessions,routing", "routing,formatting", "routing,formatting,sessions"] {
            let name = format!("{lang}-{}", asked.replace(',', "-"));
            new(dir.path(), &[&name, "--lang", lang, "--role", asked]);
            let source = std::fs::read_to_string(dir.path().join(&name).join(policy)).unwrap();
            let world = std::fs::read_to_string(dir.path().join(&name).join("wit/world.wit")).unwrap_or_default();
            for (role, words) in of_role {
                let is_asked = asked.split(',').any(|one| one == role);
                assert_eq!(source.to_lowercase().contains(words), is_asked, "{name}: {words}\n{source}");
                assert!(lang == "rust" || world.contains(&format!("policy/{role}-policy@")) == is_asked, "{name}: {world}");
                let marks = [format!("[{role}"), format!("{role}]"), "[end]".to_owned()];
                assert!(!marks.iter().any(|mark| source.contains(mark) || world.contains(mark)), "{name}\n{source}\n{world}");
            }
        }
    }
    let ran = plugin(dir.path(), &["new", "odd", "--role", "routing,roting"]);
    assert!(ran.code == 2 && ran.err.contains("routing, formatting, sessions"), "{}", ran.err);
}

#[test]
fn a_project_on_its_own_has_the_whole_sdk_and_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    new(dir.path(), &["alone"]);
    let project = dir.path().join("alone");
    let sdk = Path::new(REPOSITORY).join("plugins/sdk");
    let expected: BTreeSet<String> = files(&sdk).into_iter().filter(|file| !file.starts_with("tests/")).collect();
    assert_eq!(files(&project.join("vendor/signalpost-plugin")), expected);
    assert_eq!(files(&project.join("wit")), files(&Path::new(REPOSITORY).join("wit")));
    let manifest = std::fs::read_to_string(project.join("Cargo.toml")).unwrap();
    assert!(manifest.contains("\"vendor/signalpost-plugin\"") && manifest.ends_with("\n[workspace]\n"), "{manifest}");
}

#[test]
fn a_project_in_a_checkout_depends_on_the_sdk_that_is_there() {
    let checkout = tempfile::tempdir().unwrap();
    for (folder, file) in [("plugins/sdk", "Cargo.toml"), ("wit", "policy.wit")] {
        std::fs::create_dir_all(checkout.path().join(folder)).unwrap();
        std::fs::copy(Path::new(REPOSITORY).join(folder).join(file), checkout.path().join(folder).join(file)).unwrap();
    }
    std::fs::create_dir_all(checkout.path().join("my/own")).unwrap();
    for (place, sdk, alone) in [("plugins", "../../plugins/sdk", false), ("my/own", "../../../plugins/sdk", true)] {
        new(&checkout.path().join(place), &["fresh"]);
        let project = checkout.path().join(place).join("fresh");
        let manifest = std::fs::read_to_string(project.join("Cargo.toml")).unwrap();
        assert!(manifest.contains(&format!("path = \"{sdk}\"")), "{manifest}");
        assert!(project.join(sdk).join("Cargo.toml").is_file());
        assert_eq!(manifest.contains("[workspace]"), alone, "a member of the workspace can't be one itself");
        assert!(!project.join("vendor").exists());
    }
}

#[test]
fn nothing_is_overwritten_and_names_are_sane() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("there")).unwrap();
    for (name, words) in
        [("there", "there is something at there already"), ("no name", "is not a plugin's name"), ("1st", "is not a plugin's name")]
    {
        let ran = plugin(dir.path(), &["new", name]);
        assert!(ran.code == 1 && ran.err.contains(words), "{}", ran.err);
    }
    assert_eq!(files(dir.path()).len(), 0);
}

#[test]
fn a_missing_tool_is_told_with_the_line_that_installs_it() {
    let dir = tempfile::tempdir().unwrap();
    for (lang, words) in [
        ("js", "there is no componentize-qjs: run `npm install` in "),
        ("python", "there is no componentize-py: run `python3 -m venv .venv && "),
    ] {
        new(dir.path(), &[lang, "--lang", lang]);
        let ran = plugin(dir.path(), &["build", lang]);
        assert!(ran.code == 1 && ran.err.contains(words), "{}", ran.err);
    }
    new(dir.path(), &["c", "--lang", "c"]);
    let mut build = std::process::Command::new(env!("CARGO_BIN_EXE_signalpost"));
    let built = build.args(["plugin", "build", "c"]).current_dir(dir.path()).env_clear().env("PATH", dir.path()).output().unwrap();
    let said = String::from_utf8(built.stderr).unwrap();
    let words = "there is no clang with a C library for WebAssembly: set WASI_SDK_PATH";
    assert!(!built.status.success() && said.contains(words) && said.trim_end().lines().count() == 1, "{said}");
    let ran = plugin(dir.path(), &["build", "."]);
    assert!(ran.code == 1 && ran.err.contains("it has none of Cargo.toml, package.json, pyproject.toml, policy.c"), "{}", ran.err);
}
