//! The folder in which cargo builds plugins, and what it may reuse there.
//!
//! Most of a first build is the same for every plugin: serde, wit-bindgen, on some machines the standard library. So plugins without
//! a target folder of their own share one in the user's cache, where cargo decides which compiled dependencies fit: by compiler,
//! target, version, features and flags. But it takes two crates for the same one if they have the same name and the same path below
//! their workspaces, and only compares times; and each project has a crate `vendor/signalpost-plugin`. So `claim` has cargo forget a
//! crate that was last compiled from other sources.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::sources::{crate_digest, locked_names, path_crates};
use crate::policy::compile::default_cache_dir;

/// The shared folder, in the user's cache.
const SHARED: &str = "target";

/// Environment variables by which a user chooses the target folder of every project.
const CHOICES: [&str; 2] = ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR"];

/// Returns the target folder that plugins share, unless the author has chosen one for the plugin in `dir`: by a variable, in cargo's
/// configuration, or by making it a member of a workspace. `workspace` and `target` are the folders that cargo reports.
pub(super) fn shared(dir: &Path, workspace: &Path, target: &Path, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let is_chosen = CHOICES.iter().any(|name| variable(name).is_some()) || dir != workspace || target != workspace.join("target");
    let folder = default_cache_dir(variable).filter(|_| !is_chosen)?.join(SHARED);
    // If the cache can't be written, as in some containers, the plugin is built in its own folder.
    make(&folder).is_ok().then_some(folder)
}

/// Claims the names of a plugin's crates in a target folder, for its sources as they are now. No other build of a plugin uses the
/// folder until the returned lock is dropped.
///
/// `library` is the name of the plugin's library, and `clean` is `cargo clean` with the flags of the build.
pub(super) fn claim(target: &Path, dir: &Path, workspace: &Path, library: &str, mut clean: Command) -> Result<File> {
    let records = target.join("sources");
    make(&records).with_context(|| format!("cannot make {}", records.display()))?;
    let lock = lock(&target.join("plugin-build.lock"))?;
    let crates = path_crates(dir)?;
    let locked = locked_names(workspace)?;
    let mut wanted: BTreeMap<String, (&str, String)> = BTreeMap::new();
    for (path, name) in crates.iter().filter(|(_, name)| locked.contains(*name)) {
        let source = format!("{} {}\n", crate_digest(path)?, path.display());
        wanted.entry(format!("crate-{name}")).or_insert((name, String::new())).1.push_str(&source);
    }
    // Libraries with the same name are one file, whatever the names of their packages.
    if let Some(name) = crates.get(dir) {
        wanted.insert(format!("library-{library}"), (name, format!("{} {}\n", crate_digest(dir)?, dir.display())));
    }
    wanted.retain(|record, (_, sources)| fs::read_to_string(records.join(record)).ok().as_ref() != Some(sources));
    if wanted.is_empty() {
        return Ok(lock);
    }

    for record in wanted.keys() {
        remove(&records.join(record))?;
    }
    let names: BTreeSet<&str> = wanted.values().map(|(name, _)| *name).collect();
    clean.args(["--quiet", "--target-dir"]).arg(target).args(names.iter().flat_map(|name| ["--package", name]));
    ensure!(clean.status().context("cannot run cargo")?.success(), "cargo could not clean {}", target.display());
    for (record, (_, sources)) in &wanted {
        fs::write(records.join(record), sources).with_context(|| format!("cannot write to {}", records.display()))?;
    }
    Ok(lock)
}

/// Makes a folder. If it has to make the server's cache above it, that is for this user alone, as the server wants it.
fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn lock(path: &Path) -> Result<File> {
    let cannot = || format!("cannot lock {}", path.display());
    let file = File::options().create(true).truncate(false).write(true).open(path).with_context(cannot)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("waiting for another build of a plugin …");
            file.lock().with_context(cannot)?;
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
    }
    Ok(file)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(|| format!("cannot remove {}", path.display())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, SystemTime};

    use super::*;

    /// A project whose library returns `words`, and a crate in `vendor` that has words too.
    struct Project {
        /// The folder as cargo names it.
        dir: PathBuf,
        _root: tempfile::TempDir,
    }

    impl Project {
        fn new(package: &str, words: &str) -> Project {
            let root = tempfile::tempdir().unwrap();
            let dir = fs::canonicalize(root.path()).unwrap();
            let manifest = |name: &str, rest: &str| format!("[package]\nname = \"{name}\"\nedition = \"2024\"\n{rest}");
            fs::create_dir_all(dir.join("vendor/sdk/src")).unwrap();
            fs::create_dir(dir.join("src")).unwrap();
            let library =
                "[lib]\nname = \"policy\"\ncrate-type = [\"cdylib\"]\n[dependencies]\nsdk = { path = \"vendor/sdk\" }\n[workspace]\n";
            fs::write(dir.join("Cargo.toml"), manifest(package, library)).unwrap();
            fs::write(dir.join("vendor/sdk/Cargo.toml"), manifest("sdk", "")).unwrap();
            let project = Project { dir, _root: root };
            project.write(words);
            project
        }

        /// Writes the sources. They are older than all that is built, as those of an archive can be.
        fn write(&self, words: &str) {
            let policy = format!("#[unsafe(no_mangle)]\npub static POLICY: (&str, &str) = (\"{words} policy\", sdk::WORDS);\n");
            let sdk = format!("pub const WORDS: &str = \"{words} sdk\";\n");
            for (file, text) in [("src/lib.rs", policy), ("vendor/sdk/src/lib.rs", sdk)] {
                let path = self.dir.join(file);
                fs::write(&path, text).unwrap();
                File::open(&path).unwrap().set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
            }
        }

        fn cargo(&self, command: &str) -> Command {
            let mut cargo = Command::new("cargo");
            cargo.arg(command).arg("--offline").current_dir(&self.dir).env_remove("RUSTFLAGS");
            cargo
        }

        /// Builds the library, and returns its bytes and the time at which it was built.
        fn build(&self, target: &Path) -> (Vec<u8>, SystemTime) {
            assert!(self.cargo("generate-lockfile").arg("--quiet").status().unwrap().success());
            let mut clean = self.cargo("clean");
            clean.arg("--release");
            let _claim = claim(target, &self.dir, &self.dir, "policy", clean).unwrap();
            let built = self.cargo("build").args(["--quiet", "--release", "--lib", "--target-dir"]).arg(target).status();
            assert!(built.unwrap().success());
            let library = target.join("release/libpolicy.so");
            (fs::read(&library).unwrap(), fs::metadata(&library).unwrap().modified().unwrap())
        }

        /// Builds the library, which has to have these words and no others.
        fn gives(&self, words: &str, target: &Path) {
            let (library, _) = self.build(target);
            let has = |text: String| library.windows(text.len()).any(|bytes| bytes == text.as_bytes());
            for other in ["one", "two", "three"] {
                for part in ["policy", "sdk"] {
                    assert_eq!(has(format!("{other} {part}")), other == words, "{other} {part} in a build of {words}");
                }
            }
        }
    }

    #[test]
    fn projects_with_the_same_names_do_not_get_each_others_code() {
        let target = tempfile::tempdir().unwrap();
        let (one, two) = (Project::new("shop", "one"), Project::new("shop", "two"));
        for _ in 0..2 {
            one.gives("one", target.path());
            two.gives("two", target.path());
        }
    }

    #[test]
    fn libraries_with_the_same_name_are_not_confused_if_their_packages_have_other_names() {
        let target = tempfile::tempdir().unwrap();
        let (one, two) = (Project::new("shop", "one"), Project::new("store", "two"));
        for _ in 0..2 {
            one.gives("one", target.path());
            two.gives("two", target.path());
        }
    }

    #[test]
    fn sources_that_take_the_place_of_newer_ones_are_compiled() {
        let target = tempfile::tempdir().unwrap();
        let project = Project::new("shop", "one");
        for words in ["one", "two", "one", "three"] {
            project.write(words);
            project.gives(words, target.path());
        }
    }

    #[test]
    fn what_has_not_changed_is_not_compiled_again() {
        let target = tempfile::tempdir().unwrap();
        let (one, two) = (Project::new("shop", "one"), Project::new("store", "two"));
        let first = one.build(target.path());
        assert_eq!(one.build(target.path()), first);
        two.gives("two", target.path());
        assert_ne!(one.build(target.path()).1, first.1, "the other project's library took its place");
    }

    #[test]
    fn builds_at_the_same_time_read_what_they_have_built() {
        let target = tempfile::tempdir().unwrap();
        let projects = ["one", "two", "three"].map(|words| (Project::new("shop", words), words));
        std::thread::scope(|scope| {
            for (project, words) in &projects {
                let target = target.path();
                scope.spawn(move || (0..2).for_each(|_| project.gives(words, target)));
            }
        });
    }

    #[test]
    fn the_shared_folder_is_for_projects_that_have_chosen_none() {
        let home = tempfile::tempdir().unwrap();
        let folder = |dir: &str, workspace: &str, target: &str, chosen: Option<&str>| {
            shared(Path::new(dir), Path::new(workspace), Path::new(target), |name| match name {
                "XDG_CACHE_HOME" => Some(home.path().into()),
                _ => (chosen == Some(name)).then(|| "/chosen".into()),
            })
        };
        assert_eq!(folder("/a/shop", "/a/shop", "/elsewhere", None), None, "by cargo's configuration");
        assert_eq!(folder("/a/shop", "/a", "/a/target", None), None, "a member of a workspace");
        for name in CHOICES {
            assert_eq!(folder("/a/shop", "/a/shop", "/a/shop/target", Some(name)), None, "{name}");
        }
        assert!(!home.path().join("signalpost").exists());

        let expected = home.path().join("signalpost/target");
        assert_eq!(folder("/a/shop", "/a/shop", "/a/shop/target", None), Some(expected.clone()));
        // A server refuses to keep compiled plugins in a folder that others can open.
        for dir in [home.path().join("signalpost"), expected] {
            assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700, "{}", dir.display());
        }
    }

    #[test]
    fn a_project_uses_its_own_folder_if_the_cache_can_not_be_written() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("signalpost"), "a file").unwrap();
        let project = Path::new("/a/shop");
        let folder = shared(project, project, &project.join("target"), |name| (name == "XDG_CACHE_HOME").then(|| home.path().into()));
        assert_eq!(folder, None);
        assert_eq!(shared(project, project, &project.join("target"), |_| None), None, "there is no cache");
    }
}
