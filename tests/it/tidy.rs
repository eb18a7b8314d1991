//! The rules of the house that a machine can check.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Each module of `src` and its level. A module imports only from lower ones, and from its own parts.
const LEVELS: [(&str, u32); 25] = [
    ("config", 0),
    ("log", 1),
    ("types", 0),
    ("metrics", 2),
    ("net", 3),
    ("auth", 4),
    ("traces", 4),
    ("registry", 3),
    ("model", 4),
    ("policy", 5),
    ("store", 6),
    ("dispatch", 7),
    ("format", 7),
    ("explain", 8),
    ("recording", 8),
    ("sink", 8),
    ("cluster", 8),
    ("node", 9),
    ("session", 9),
    ("http", 10),
    ("server", 11),
    ("internals", 12),
    ("kit", 12),
    ("cli", 13),
    ("main", 14),
];

/// Phrases that a reader has to read twice, each with what to write instead.
const RIDDLES: [(&str, &str); 13] = [
    ("how-manieth", "the number of"),
    (" is none.", "is not, has no, or returns `None`"),
    (" so many", "a number or a name"),
    ("that is none", "that is not one, or that is invalid"),
    ("is no part of", "is not part of"),
    ("what becomes of", "what happens to"),
    ("of its own accord", "unasked, or by itself"),
    ("takes its time", "takes a while"),
    ("as it came", "as it was received"),
    ("dealt with", "handled, processed or acked"),
    ("in one go", "together, or at once"),
    ("last words", "the panic message"),
    ("comes to be", "begins, or is made"),
];

fn sources(dir: &Path) -> Vec<PathBuf> {
    files(dir, &["rs"])
}

/// Returns the files below a folder with one of these extensions, except what builds and tools put there.
fn files(dir: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && !name.starts_with('.') && !["target", "node_modules"].contains(&name) {
            found.extend(files(&path, extensions));
        } else if path.extension().is_some_and(|extension| extensions.iter().any(|known| extension == *known)) {
            found.push(path);
        }
    }
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Modules named by `crate::name`.
fn imports(text: &str) -> impl Iterator<Item = &str> {
    text.split("crate::").skip(1).map(|rest| rest.split(|char: char| !char.is_alphanumeric() && char != '_').next().unwrap())
}

/// Lines of a file of `src`. A longer one has two subjects, and is cut between them.
const LINES_MAX: usize = 500;

#[test]
fn a_file_has_one_subject() {
    let files = ["src", "tests/it"].map(|folder| sources(&root().join(folder))).concat();
    assert!(files.len() > 250, "the files are no longer where this test looks");
    for file in files {
        let lines = std::fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines, and may have {LINES_MAX}", file.display());
    }
}

/// Folders of these tests beside those of the rooms.
const OTHER_TESTS: [&str; 2] = ["plugins", "support"];

#[test]
fn the_tests_of_a_room_are_in_the_folder_of_its_name() {
    for entry in std::fs::read_dir(root().join("tests/it")).unwrap().map(|entry| entry.unwrap()) {
        let name = entry.file_name().into_string().unwrap();
        let is_known = LEVELS.iter().any(|(room, _)| *room == name) || OTHER_TESTS.contains(&&*name);
        assert!(!entry.path().is_dir() || is_known, "{name} is no room of src");
    }
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
fn the_modules_are_listed_in_the_order_of_their_levels() {
    let levels: BTreeMap<&str, u32> = LEVELS.into_iter().collect();
    let text = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let modules = text.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'));
    let modules: Vec<&str> = modules.collect();
    assert_eq!(modules.len(), LEVELS.len() - 1, "all modules but main: {modules:?}");
    for pair in modules.windows(2) {
        assert!(levels[pair[0]] <= levels[pair[1]], "{} stands before {}", pair[0], pair[1]);
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

/// Returns the rows of a table of the documentation whose first cell is a name, as that and the other cells.
fn rows<'a>(page: &'a str, heading: &str) -> BTreeMap<&'a str, Vec<&'a str>> {
    let (_, section) = page.split_once(heading).unwrap();
    let lines = section.split("\n## ").next().unwrap().lines();
    let cells = lines.filter_map(|line| line.strip_prefix("| `")?.strip_suffix('|')?.split_once("` |"));
    cells.map(|(name, rest)| (name, rest.split('|').map(str::trim).collect())).collect()
}

/// How the code makes a metric: what stands before its name, and the type.
const MAKERS: [(&str, &str); 14] = [
    ("make.counter(", "counter"),
    ("make.counters(", "counter"),
    ("Counter::new(", "counter"),
    ("make.gauge(", "gauge"),
    ("make.gauges(", "gauge"),
    ("make.float_gauges(", "gauge"),
    ("Gauge::new(", "gauge"),
    (" .gauge(", "gauge"),
    ("Opts::new(", "gauge"),
    ("make.histogram(", "histogram"),
    ("make.latency(", "histogram"),
    (" .latency(", "histogram"),
    ("make.histogram_of(", "histogram"),
    ("make.one_histogram(", "histogram"),
];

#[test]
fn every_metric_is_explained_with_its_type_and_its_labels() {
    let page = std::fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let explained = rows(&page, "\n## All metrics\n");
    let mut known = BTreeSet::new();
    for file in ["src/metrics.rs", "src/metrics/process.rs"] {
        let code = std::fs::read_to_string(root().join(file)).unwrap();
        let code = code.split("#[cfg(test)]").next().unwrap();
        for (at, _) in code.match_indices("\"signalpost_").chain(code.match_indices("\"process_")) {
            let name = code[at + 1..].split('"').next().unwrap();
            let before = code[..at].trim_end();
            let maker = MAKERS.iter().find(|(maker, _)| before.ends_with(maker));
            let (maker, kind) = maker.unwrap_or_else(|| panic!("{name} is made in a way that this test does not know"));
            // The labels are in the call, which ends before the next one's question mark.
            let call = code[at..].split(")?").next().unwrap();
            let labels = if maker.starts_with("make.") { call.rsplit_once("&[") } else { call.rsplit_once(".const_label(") };
            let labels = labels.map_or("", |(_, labels)| labels.split([']', '(']).next().unwrap());
            let labels: Vec<&str> = labels.split('"').skip(1).step_by(2).collect();
            let row = explained.get(name).unwrap_or_else(|| panic!("{name} is not in docs/metrics.md"));
            let listed: Vec<&str> = row[1].split('`').skip(1).step_by(2).collect();
            assert_eq!((row[0], listed), (*kind, labels), "{name}");
            assert!(row[2].len() > 10, "{name} has no meaning");
            known.insert(name.to_owned());
        }
    }
    assert!(known.len() > 40, "the metrics are no longer where this test looks");
    let explained: BTreeSet<String> = explained.into_keys().map(str::to_owned).collect();
    assert_eq!(explained, known, "docs/metrics.md has one that the code has not");
}

#[test]
fn every_reason_to_drop_a_message_is_explained() {
    let code = std::fs::read_to_string(root().join("src/types/drop_reason.rs")).unwrap();
    let page = std::fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let explained = rows(&page, "\n## Why messages are dropped\n");
    let known: BTreeSet<&str> = code.lines().filter_map(|line| line.split_once("=> \"")?.1.strip_suffix("\",")).collect();
    assert!(known.len() > 10, "the reasons are no longer where this test looks");
    assert_eq!(explained.into_keys().collect::<BTreeSet<_>>(), known);
}

#[test]
fn the_readme_names_every_address() {
    let text = std::fs::read_to_string(root().join("src/http/routes.rs")).unwrap();
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let below = text.split(".route(&below(\"").skip(1).map(|rest| rest.split('"').next().unwrap());
    let at_the_root = text.split(".route(\"").skip(1).map(|rest| rest.split('"').next().unwrap());
    let routes: Vec<&str> = below.chain(at_the_root).collect();
    assert!(routes.len() >= 13, "the routes are no longer where this test looks: {routes:?}");
    for route in routes {
        let is_named = [format!("/api/pool{route}`"), format!("…{route}`"), format!("`GET {route}`"), format!("`{route}`")];
        assert!(is_named.iter().any(|named| readme.contains(named.as_str())), "README.md does not name {route}");
    }
}

#[test]
fn alerts_and_dashboards_use_metrics_that_exist() {
    let sources = files(&root().join("src"), &["rs"]).iter().map(|file| std::fs::read_to_string(file).unwrap()).collect::<String>();
    for file in ["contrib/alerts.yml", "contrib/grafana.json"] {
        let text = std::fs::read_to_string(root().join(file)).unwrap();
        let is_part = |character: char| character.is_ascii_alphanumeric() || character == '_';
        let names =
            text.split(|character| !is_part(character)).filter(|word| word.starts_with("signalpost_") || word.starts_with("process_"));
        let names: BTreeSet<&str> = names.map(|name| name.strip_suffix("_bucket").unwrap_or(name)).collect();
        assert!(names.len() > 8, "{file}: {names:?}");
        for name in names {
            assert!(sources.contains(&format!("\"{name}\"")), "{file} uses {name}, which the server doesn't have");
        }
    }
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

#[test]
fn comments_and_texts_have_no_riddles() {
    for dir in ["src", "plugins", "tests", "docs", "benches", "fuzz", "clients", "examples"] {
        for file in files(&root().join(dir), &["rs", "md", "toml", "json", "js", "py", "c", "h"]) {
            // This file names the riddles, and that page is made of the contract, whose published version does not change.
            if file.ends_with("tests/it/tidy.rs") || file.ends_with("docs/contract.md") {
                continue;
            }
            let text = std::fs::read_to_string(&file).unwrap();
            for (number, line) in text.lines().enumerate() {
                let place = format!("{}:{}", file.display(), number + 1);
                for (riddle, instead) in RIDDLES {
                    assert!(!line.contains(riddle), "{place} has “{}”: write {instead}", riddle.trim());
                }
                let doc = line.trim_start();
                assert!(!doc.starts_with("/// Of ") && !doc.starts_with("//! Of "), "{place} does not name its subject");
            }
        }
    }
}

#[test]
fn comments_of_functions_begin_with_a_verb() {
    let mut functions = 0;
    for file in sources(&root().join("src")) {
        let text = std::fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
        for (index, line) in lines.iter().enumerate() {
            let goes_on = index > 0 && lines[index - 1].starts_with("///");
            let Some(comment) = line.strip_prefix("/// ").filter(|_| !goes_on) else { continue };
            let item = lines[index..].iter().find(|line| !line.starts_with("///") && !line.starts_with("#["));
            if !item.is_some_and(|item| is_function(item)) {
                continue;
            }
            functions += 1;
            // A handler's comment begins with its route, others with an argument's name or with their errors.
            let word = comment.split(|char: char| !char.is_alphanumeric()).next().unwrap();
            let is_verb = word.len() > 2 && word.ends_with('s');
            assert!(is_verb || comment.starts_with(['`', '#']), "{}:{} begins with “{word}”", file.display(), index + 1);
        }
    }
    assert!(functions > 500, "the comments are no longer where this test looks");
}

/// Whether a line begins a function.
fn is_function(line: &str) -> bool {
    let Some((before, _)) = line.split_once("fn ") else { return false };
    before
        .split_whitespace()
        .all(|word| ["pub", "const", "async", "unsafe"].contains(&word) || word.starts_with("pub(") || word.ends_with(')'))
}

#[test]
fn links_in_the_documentation_lead_to_files() {
    let mut links = 0;
    for file in files(&root().join("docs"), &["md"]).into_iter().chain([root().join("README.md")]) {
        let text = std::fs::read_to_string(&file).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if target.is_empty() || target.contains("://") {
                continue;
            }
            links += 1;
            assert!(file.with_file_name(target).exists(), "{} links to {target}", file.display());
        }
    }
    assert!(links > 50, "the links are no longer where this test looks");
}

/// Returns the names of all tests, and those of the stress program's scenarios after `stress`.
fn tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for file in ["src", "plugins", "tests", "benches"].iter().flat_map(|dir| sources(&root().join(dir))) {
        let text = std::fs::read_to_string(&file).unwrap();
        for after in text.split("#[test]").skip(1).chain(text.split("#[tokio::test").skip(1)) {
            let name = after.split_once("fn ").and_then(|(_, rest)| rest.split('(').next());
            names.extend(name.map(str::to_owned));
        }
    }
    let stress = std::fs::read_to_string(root().join("benches/stress/main.rs")).unwrap();
    let (_, scenarios) = stress.split_once("const SCENARIOS").unwrap();
    let scenarios = scenarios.split("];").next().unwrap().lines().filter_map(|line| line.trim().strip_prefix('"')?.strip_suffix("\","));
    names.extend(scenarios.map(|scenario| format!("stress {scenario}")));
    names
}

#[test]
fn the_tests_that_hold_against_attacks_are_there() {
    let text = std::fs::read_to_string(root().join("docs/security.md")).unwrap();
    let known = tests();
    assert!(known.len() > 500, "the tests are no longer where this test looks");
    for (section, rows) in [("## Attacks that were tried", 41), ("## What memory holds", 19)] {
        let (_, table) = text.split_once(section).unwrap();
        let table = table.split("\n## ").next().unwrap();
        let lines: Vec<&str> = table.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
        assert_eq!(lines.len(), rows, "{section}");
        for line in lines {
            let cell = line.trim_end_matches(" |").rsplit(" | ").next().unwrap();
            let named: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
            assert!(!named.is_empty(), "{line}");
            for name in named {
                assert!(known.contains(name), "there is no test {name}, which docs/security.md names");
            }
        }
    }
}
