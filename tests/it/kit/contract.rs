//! The contract as a page: docs/contract.md is made of wit/ here, and held against it.

use std::fmt::Write;
use std::path::Path;

use wit_bindgen_core::wit_parser::{Docs, Function, Interface, InterfaceId, Resolve, Type, TypeDef, TypeDefKind, TypeId, WorldItem};

/// Set, it makes the page anew.
const UPDATE: &str = "UPDATE_DOCS";

const HEAD: &str = "<!-- Made of wit/ by `UPDATE_DOCS=1 cargo test contract_page`; a test holds it against that. -->

# The contract

What [wit/](../wit) says, as a page. [languages.md](languages.md) says what its types and names become in each language. [plugins.md](plugins.md) leads
from an idea to a running policy, and says how versions are kept.
";

#[test]
fn the_contract_page_says_what_the_wit_says() {
    let page = page();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/contract.md");
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&file, &page).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    let line = page.lines().zip(committed.lines()).position(|(made, committed)| made != committed);
    assert!(page == committed, "docs/contract.md is not what wit/ says (line {line:?}): {UPDATE}=1 makes it anew");
}

fn page() -> String {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("wit")).unwrap();
    let mut page = HEAD.to_owned();
    let package = &resolve.packages[package];
    writeln!(page, "\n`{}`\n\n{}", package.name, text(&package.docs)).unwrap();
    let world = &resolve.worlds[package.worlds["host"]];
    let named = |items: Vec<&WorldItem>| -> Vec<InterfaceId> {
        items.into_iter().filter_map(|item| if let WorldItem::Interface { id, .. } = item { Some(*id) } else { None }).collect()
    };
    let (exports, imports) = (named(world.exports.values().collect()), named(world.imports.values().collect()));
    let shared: Vec<InterfaceId> = package.interfaces.values().copied().filter(|id| !exports.contains(id)).collect();
    let (imports, shared): (Vec<_>, Vec<_>) =
        shared.into_iter().partition(|id| imports.contains(id) && !resolve.interfaces[*id].functions.is_empty());
    for (heading, interfaces) in
        [("What a policy exports", exports), ("What it may import, if that is granted", imports), ("The types that they share", shared)]
    {
        writeln!(page, "\n## {heading}").unwrap();
        for id in interfaces {
            interface(&mut page, &resolve, &resolve.interfaces[id]);
        }
    }
    page
}

fn interface(page: &mut String, resolve: &Resolve, interface: &Interface) {
    writeln!(page, "\n### `{}`\n\n{}", interface.name.as_ref().unwrap(), text(&interface.docs)).unwrap();
    for id in interface.types.values() {
        // What is used from elsewhere is described there.
        if !matches!(resolve.types[*id].kind, TypeDefKind::Type(Type::Id(_))) {
            definition(page, resolve, &resolve.types[*id]);
        }
    }
    for function in interface.functions.values() {
        writeln!(page, "\n**`{}`**\n\n{}", signature(resolve, function), text(&function.docs)).unwrap();
    }
    while page.contains("\n\n\n") {
        *page = page.replace("\n\n\n", "\n\n");
    }
    while page.ends_with("\n\n") {
        page.pop();
    }
}

fn definition(page: &mut String, resolve: &Resolve, defined: &TypeDef) {
    let name = defined.name.as_ref().unwrap();
    let rows: Vec<(String, String)> = match &defined.kind {
        TypeDefKind::Record(record) => {
            let row = |name: &str, kind: &Type, docs| (format!("`{name}: {}`", word(resolve, kind)), text(docs));
            record.fields.iter().map(|field| row(&field.name, &field.ty, &field.docs)).collect()
        }
        TypeDefKind::Variant(variant) => {
            let shape = |kind: &Option<Type>| kind.map_or_else(String::new, |kind| format!("({})", word(resolve, &kind)));
            variant.cases.iter().map(|case| (format!("`{}{}`", case.name, shape(&case.ty)), text(&case.docs))).collect()
        }
        TypeDefKind::Enum(words) => words.cases.iter().map(|case| (format!("`{}`", case.name), text(&case.docs))).collect(),
        other => {
            writeln!(page, "\n`type {name} = {}`: {}", shape(resolve, other), text(&defined.docs)).unwrap();
            return;
        }
    };
    let kind = defined.kind.as_str();
    let head = format!("`{kind} {name}` {}", text(&defined.docs));
    writeln!(page, "\n{}\n\n| | |\n|---|---|", head.trim_end()).unwrap();
    for (member, says) in rows {
        writeln!(page, "| {member} | {} |", says.replace('\n', " ").replace('|', "\\|")).unwrap();
    }
}

fn signature(resolve: &Resolve, function: &Function) -> String {
    let params: Vec<String> = function.params.iter().map(|param| format!("{}: {}", param.name, word(resolve, &param.ty))).collect();
    let result = function.result.map_or_else(String::new, |kind| format!(" -> {}", word(resolve, &kind)));
    format!("{}({}){result}", function.name, params.join(", "))
}

fn word(resolve: &Resolve, kind: &Type) -> String {
    match kind {
        Type::Id(id) => named(resolve, *id),
        Type::Bool => "bool".to_owned(),
        Type::String => "string".to_owned(),
        other => format!("{other:?}").to_lowercase(),
    }
}

fn named(resolve: &Resolve, id: TypeId) -> String {
    let defined = &resolve.types[id];
    defined.name.clone().unwrap_or_else(|| shape(resolve, &defined.kind))
}

fn shape(resolve: &Resolve, kind: &TypeDefKind) -> String {
    let of = |kind: &Option<Type>| kind.map_or_else(|| "_".to_owned(), |kind| word(resolve, &kind));
    match kind {
        TypeDefKind::List(kind) => format!("list<{}>", word(resolve, kind)),
        TypeDefKind::Option(kind) => format!("option<{}>", word(resolve, kind)),
        TypeDefKind::Tuple(tuple) => {
            format!("tuple<{}>", tuple.types.iter().map(|kind| word(resolve, kind)).collect::<Vec<_>>().join(", "))
        }
        TypeDefKind::Result(result) if result.err.is_none() => format!("result<{}>", of(&result.ok)),
        TypeDefKind::Result(result) => format!("result<{}, {}>", of(&result.ok), of(&result.err)),
        other => panic!("the contract has a {}, which this page can't show yet", other.as_str()),
    }
}

fn text(docs: &Docs) -> String {
    docs.contents.as_deref().unwrap_or_default().trim().to_owned()
}
