//! The rules of the house that a machine can check.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Each module of `src` and its level. A module imports only from lower ones, and from its own parts.
const LEVELS: [(&str, u32); 22] = [
    ("config", 0),
    ("log", 1),
    ("types", 0),
    ("metrics", 2),
    ("load", 4),
    ("net", 3),
    ("auth", 4),
    ("registry", 3),
    ("model", 4),
    ("policy", 5),
    ("store", 6),
    ("dispatch", 7),
    ("format", 7),
    ("explain", 8),
    ("node", 9),
    ("session", 9),
    ("http", 10),
    ("server", 11),
    ("internals", 12),
    ("kit", 12),
    ("cli", 13),
    ("main", 14),
];
fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Modules named by `crate::name`.
fn imports(text: &str) -> impl Iterator<Item = &str> {
    text.split("crate::").skip(1).map(|rest| rest.split(|char: char| !char.is_alphanumeric() && char != '_').next().unwrap())
}

#[test]
fn every_module_imports_only_lower_ones() {
    let levels: BTreeMap<&str, u32> = LEVELS.into_iter().collect();
    let src = root().join("src");
    for file in sources(&src) {
        let module = file.strip_prefix(&src).unwrap().components().next().unwrap().as_os_str().to_str().unwrap();
        let module = module.trim_end_matches(".rs");
        if module == "lib" {
            continue;
        }
        let level = levels.get(module).unwrap_or_else(|| panic!("{module} has no level yet"));
        for import in imports(&std::fs::read_to_string(&file).unwrap()) {
            if import == module {
                continue;
            }
            let Some(imported) = levels.get(import) else { panic!("{} imports {import}, which has no level", file.display()) };
            assert!(imported < level, "{} (level {level}) imports {import} (level {imported})", file.display());
        }
    }
}

#[test]
fn the_documented_close_codes_are_those_of_the_code() {
    let code = std::fs::read_to_string(root().join("src/types/close.rs")).unwrap();
    let documentation = std::fs::read_to_string(root().join("docs/protocol.md")).unwrap();
    let documented: Vec<&str> =
        documentation.lines().filter_map(|line| line.strip_prefix("| ")?.get(..4)).filter(|code| code.parse::<u16>().is_ok()).collect();
    let mut known = 0;
    for line in code.lines().filter_map(|line| line.trim().strip_prefix("Close::")) {
        let Some((_, code)) = line.split_once("=> ") else { continue };
        let Ok(code) = code.trim_end_matches(',').parse::<u16>() else { continue };
        known += 1;
        assert!(documented.contains(&code.to_string().as_str()), "{code} is not in docs/protocol.md");
    }
    assert!(known >= 10, "the close codes are no longer where this test looks");
}

#[test]
fn every_setting_has_its_reason_beside_it() {
    let defaults = signalpost::config::DEFAULTS;
    let mut explained = false;
    for line in defaults.lines() {
        if line.starts_with('#') {
            explained = true;
        } else if line.is_empty() || line.starts_with('[') {
            explained = false;
        } else {
            assert!(explained, "`{line}` has no reason before it");
        }
    }
}

#[test]
fn nothing_unfinished_is_left_in_the_sources() {
    for dir in ["src", "plugins", "tests"] {
        for file in sources(&root().join(dir)) {
            if file.ends_with("tidy.rs") {
                continue;
            }
            let text = std::fs::read_to_string(&file).unwrap();
            for word in ["todo!(", "unimplemented!(", "dbg!(", "FIXME", "#[ignore"] {
                assert!(!text.contains(word), "{} contains {word}", file.display());
            }
        }
    }
}
