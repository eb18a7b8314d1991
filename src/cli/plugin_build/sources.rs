//! The digest of the files that a plugin is built from.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use toml::{Table, Value};

/// Top-level folders of a plugin without sources of its component.
const NOT_SOURCES: [&str; 7] = ["target", "tests", "examples", "benches", "fixtures", "node_modules", "__pycache__"];

/// Returns the digest of the names and contents of the files that a plugin is built from: those in `dir`, those of the crates that it
/// depends on by path, and the WIT files in `wit`.
///
/// Build outputs (`target`), tests, examples and hidden files are not included, nor are the versions of dependencies if a workspace
/// above `dir` locks them.
pub fn sources_digest(dir: &Path, wit: Option<&Path>) -> Result<String> {
    let dir = fs::canonicalize(dir).with_context(|| format!("there is no directory {}", dir.display()))?;
    let mut dependencies = path_crates(&dir)?;
    dependencies.remove(&dir);

    let mut digest = Sha256::new();
    digest_files(&mut digest, "plugin", &dir)?;
    let mut wits: Vec<PathBuf> = wit.map(fs::canonicalize).transpose()?.into_iter().collect();
    // By name, since paths differ between machines.
    let mut named: Vec<(&String, &PathBuf)> = dependencies.iter().map(|(dir, name)| (name, dir)).collect();
    named.sort();
    for (name, dir) in named {
        digest_files(&mut digest, &format!("crate {name}"), dir)?;
        // A library in another repository brings its own contract.
        wits.extend(find_wit(dir).filter(|wit| !wits.contains(wit)));
    }
    for wit in wits {
        digest_files(&mut digest, "wit", &wit)?;
    }
    Ok(HEXLOWER.encode(&digest.finalize()))
}

/// Returns the name, time and size of each file that a plugin is built or tested with, so that an edit can be noticed cheaply.
pub fn fingerprint(dir: &Path) -> Result<Vec<(PathBuf, Option<SystemTime>, u64)>> {
    let dir = fs::canonicalize(dir).with_context(|| format!("there is no directory {}", dir.display()))?;
    let mut dependencies = path_crates(&dir)?;
    dependencies.insert(dir.clone(), String::new());
    let mut roots: Vec<PathBuf> = dependencies.into_keys().collect();
    // Fixtures are not sources, but they decide whether a new version is accepted.
    roots.extend([dir.join("fixtures")].into_iter().filter(|dir| dir.is_dir()));
    roots.extend(find_wit(&dir));
    let mut files = Vec::new();
    for root in roots {
        collect_files(&root, String::new(), &mut files)?;
    }
    let look = |(_, path): (String, PathBuf)| {
        let seen = fs::metadata(&path).ok();
        (path, seen.as_ref().and_then(|seen| seen.modified().ok()), seen.map_or(0, |seen| seen.len()))
    };
    Ok(files.into_iter().map(look).collect())
}

/// Returns the digest of one crate's files, and of the contract that it may be generated from.
pub(super) fn crate_digest(dir: &Path) -> Result<String> {
    let mut digest = Sha256::new();
    digest_files(&mut digest, "crate", dir)?;
    if let Some(wit) = find_wit(dir) {
        digest_files(&mut digest, "wit", &wit)?;
    }
    Ok(HEXLOWER.encode(&digest.finalize()))
}

/// Returns the crate in `dir`, and those that it depends on by path or that replace others, with their names; none if the plugin is
/// not in Rust.
pub(super) fn path_crates(dir: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    if !dir.join("Cargo.toml").is_file() {
        return Ok(found);
    }
    path_dependencies(dir, &mut found)?;
    let manifest = read_manifest(dir)?;
    let registries = manifest.get("patch").and_then(Value::as_table).into_iter().flatten();
    for (name, replacement) in registries.filter_map(|(_, patches)| patches.as_table()).flatten() {
        add_dependency(dir, name, replacement, &mut found)?;
    }
    Ok(found)
}

/// Returns the names of the packages that a workspace's `Cargo.lock` has.
pub(super) fn locked_names(workspace: &Path) -> Result<BTreeSet<String>> {
    let lock = read_toml(&workspace.join("Cargo.lock"))?;
    let packages = lock.get("package").and_then(Value::as_array).into_iter().flatten();
    Ok(packages.filter_map(|package| Some(package.get("name")?.as_str()?.to_owned())).collect())
}

fn digest_files(digest: &mut Sha256, label: &str, root: &Path) -> Result<()> {
    let mut files = Vec::new();
    collect_files(root, String::new(), &mut files)?;
    files.retain(|(name, _)| label != "wit" || name.ends_with(".wit"));
    files.sort();
    for (name, path) in files {
        let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // A length before each part makes the encoding of a list of files unambiguous.
        for part in [label.as_bytes(), name.as_bytes(), &content] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
    }
    Ok(())
}

/// Adds the crate in `dir` and the crates that it depends on by path, with their names. They are read from the manifests, so that a
/// check needs no cargo.
fn path_dependencies(dir: &Path, found: &mut BTreeMap<PathBuf, String>) -> Result<()> {
    let manifest = read_manifest(dir)?;
    let name = manifest.get("package").and_then(|package| package.get("name")?.as_str()).unwrap_or_default();
    if found.insert(dir.to_path_buf(), name.to_owned()).is_some() {
        return Ok(());
    }
    let targets = manifest.get("target").and_then(Value::as_table).into_iter().flatten().filter_map(|(_, target)| target.as_table());
    for table in targets.chain([&manifest]) {
        // Not the dependencies of tests.
        let kinds = ["dependencies", "build-dependencies"].into_iter().filter_map(|kind| table.get(kind)?.as_table());
        for (name, dependency) in kinds.flatten() {
            add_dependency(dir, name, dependency, found)?;
        }
    }
    Ok(())
}

/// Adds a dependency of the crate in `dir`, and what it depends on in turn, if it is given by path.
fn add_dependency(dir: &Path, name: &str, dependency: &Value, found: &mut BTreeMap<PathBuf, String>) -> Result<()> {
    let Some(path) = path_of(dir, name, dependency)? else { return Ok(()) };
    let path = fs::canonicalize(&path).with_context(|| format!("`{name}` is not at {}", path.display()))?;
    path_dependencies(&path, found)
}

/// Returns the crate's name.
pub fn package_name(dir: &Path) -> Result<String> {
    let manifest = read_manifest(dir)?;
    let name = manifest.get("package").and_then(|package| package.get("name")?.as_str());
    Ok(name.with_context(|| format!("{} has no package.name", dir.join("Cargo.toml").display()))?.to_owned())
}

/// Returns the folder of a dependency, if it is given by path, here or in the workspace.
fn path_of(dir: &Path, name: &str, dependency: &Value) -> Result<Option<PathBuf>> {
    if dependency.get("workspace").and_then(Value::as_bool) != Some(true) {
        return Ok(dependency.get("path").and_then(Value::as_str).map(|path| dir.join(path)));
    }
    for root in dir.ancestors().filter(|root| root.join("Cargo.toml").is_file()) {
        let manifest = read_manifest(root)?;
        if let Some(workspace) = manifest.get("workspace") {
            let path = workspace.get("dependencies").and_then(|list| list.get(name)?.get("path")?.as_str());
            return Ok(path.map(|path| root.join(path)));
        }
    }
    Ok(None)
}

fn read_manifest(dir: &Path) -> Result<Table> {
    read_toml(&dir.join("Cargo.toml"))
}

fn read_toml(path: &Path) -> Result<Table> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.parse().with_context(|| format!("{} is not TOML", path.display()))
}

/// Returns the nearest `wit` directory, in `dir` or above it.
pub fn find_wit(dir: &Path) -> Option<PathBuf> {
    // The ancestors of a relative path end at the current directory.
    let dir = fs::canonicalize(dir).ok()?;
    dir.ancestors().map(|ancestor| ancestor.join("wit")).find(|wit| wit.is_dir())
}

/// Adds each file's name relative to the first `dir`, with `/` on every system, and its path.
fn collect_files(dir: &Path, prefix: String, files: &mut Vec<(String, PathBuf)>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_str().with_context(|| format!("{} is not UTF-8", entry.path().display()))?;
        if name.starts_with('.') || (prefix.is_empty() && NOT_SOURCES.contains(&name)) {
            continue;
        }
        // A symbolic link is neither, so a cycle of links can't cause an endless recursion.
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect_files(&entry.path(), format!("{prefix}{name}/"), files)?;
        } else if kind.is_file() {
            files.push((format!("{prefix}{name}"), entry.path()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with these files, gone when dropped.
    struct Sources(PathBuf);

    impl Sources {
        fn new(test: &str, files: &[(&str, &str)]) -> Sources {
            let dir = std::env::temp_dir().join(format!("signalpost-{test}-{}", std::process::id()));
            for (name, content) in files {
                let path = dir.join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
            Sources(dir)
        }

        fn digest(&self) -> String {
            sources_digest(&self.0.join("plugin"), Some(&self.0.join("wit"))).unwrap()
        }

        fn write(&self, name: &str, content: &str) {
            fs::create_dir_all(self.0.join(name).parent().unwrap()).unwrap();
            fs::write(self.0.join(name), content).unwrap();
        }
    }

    impl Drop for Sources {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    const FILES: &[(&str, &str)] = &[
        ("plugin/Cargo.toml", "[package]\nname = \"plugin\"\n[dependencies]\nserde = \"1\"\n"),
        ("plugin/src/lib.rs", "b"),
        ("wit/policy.wit", "c"),
    ];

    #[test]
    fn the_digest_depends_on_names_and_contents() {
        let sources = Sources::new("digest", FILES);
        let before = sources.digest();
        assert_eq!(before.len(), 64);
        for (name, old, new) in [("plugin/src/lib.rs", "b", "B"), ("wit/policy.wit", "c", "C")] {
            sources.write(name, new);
            assert_ne!(sources.digest(), before, "{name}");
            sources.write(name, old);
            assert_eq!(sources.digest(), before, "{name}");
        }
        fs::rename(sources.0.join("plugin/src/lib.rs"), sources.0.join("plugin/src/main.rs")).unwrap();
        assert_ne!(sources.digest(), before);
    }

    #[test]
    fn files_that_are_not_sources_do_not_count() {
        let sources = Sources::new("other", FILES);
        let before = sources.digest();
        sources.write("plugin/target/release/out", "x");
        sources.write("plugin/.lib.rs.swp", "x");
        sources.write("wit/README.md", "x");
        assert_eq!(sources.digest(), before);
        sources.write("plugin/src/target/mod.rs", "only the outermost `target` is cargo's");
        assert_ne!(sources.digest(), before);
    }

    #[test]
    fn crates_that_a_plugin_depends_on_by_path_are_sources_too() {
        let manifest = |name: &str, dependencies: &str| format!("[package]\nname = \"{name}\"\n{dependencies}");
        let sources = Sources::new("path", FILES);
        let alone = sources.digest();
        sources.write("Cargo.toml", "[workspace]\nmembers = [\"*\"]\n[workspace.dependencies]\nshared = { path = \"common/shared\" }\n");
        sources.write("common/shared/Cargo.toml", &manifest("shared", ""));
        sources.write("wasm/Cargo.toml", &manifest("wasm", ""));
        sources.write("tool/Cargo.toml", &manifest("tool", ""));
        // A cycle, which cargo allows for tests only, must not cause an endless recursion.
        sources.write(
            "sdk/Cargo.toml",
            &manifest("sdk", "[dependencies]\nplugin = { path = \"../plugin\" }\nshared = { workspace = true }\n"),
        );
        let dependencies = "[dependencies]\nsdk = { path = \"../sdk\" }\n[dev-dependencies]\ntool = { path = \"../tool\" }\n\
            [target.'cfg(target_arch = \"wasm32\")'.dependencies]\nwasm = { path = \"../wasm\" }\n";
        sources.write("plugin/Cargo.toml", &manifest("plugin", dependencies));
        let mut before = sources.digest();
        assert_ne!(before, alone);
        for name in ["sdk/src/lib.rs", "common/shared/src/lib.rs", "wasm/src/lib.rs", "sdk/build.rs"] {
            sources.write(name, "new");
            let after = sources.digest();
            assert_ne!(after, before, "{name}");
            before = after;
        }
        sources.write("patched/Cargo.toml", &manifest("patched", ""));
        sources.write(
            "plugin/Cargo.toml",
            &manifest("plugin", &format!("{dependencies}[patch.crates-io]\npatched = {{ path = \"../patched\" }}\n")),
        );
        before = sources.digest();
        sources.write("patched/src/lib.rs", "new");
        assert_ne!(sources.digest(), before, "what replaces a dependency");
        before = sources.digest();
        for name in ["sdk/tests/all.rs", "sdk/examples/one.rs", "sdk/target/x", "tool/src/lib.rs"] {
            sources.write(name, "new");
            assert_eq!(sources.digest(), before, "{name}");
        }
    }

    #[test]
    fn a_missing_dependency_is_named_in_the_error() {
        let sources = Sources::new("gone", FILES);
        sources.write("plugin/Cargo.toml", "[dependencies]\nsdk = { path = \"../sdk\" }\n");
        let error = sources_digest(&sources.0.join("plugin"), None).unwrap_err();
        assert!(error.to_string().contains("`sdk`"), "{error}");
    }

    #[test]
    fn the_wit_directory_is_found_above() {
        let sources = Sources::new("wit", FILES);
        let wit = fs::canonicalize(sources.0.join("wit")).unwrap();
        assert_eq!(find_wit(&sources.0.join("plugin/src")), Some(wit));
    }

    #[test]
    fn a_relative_directory_has_parents_too() {
        // Tests run in the package's directory, which a path of one component leads out of.
        assert_eq!(find_wit(Path::new("src")), find_wit(&fs::canonicalize("src").unwrap()));
    }
}
