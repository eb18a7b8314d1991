//! Extracts the large modules of a component, so that they are not compiled again after each edit of a plugin. In a component of
//! JavaScript or Python, the interpreter is a module of its own, which an edit does not change.
//!
//! An extracted module becomes an import of the component; in its place is an alias of that import.

use std::ops::Range;

use wasm_encoder::reencode::{self, Error, Reencode, ReencodeComponent, RoundtripReencoder};
use wasm_encoder::{
    Alias, Component, ComponentAliasSection, ComponentImportSection, ComponentOuterAliasKind, ComponentSectionId, ComponentTypeRef,
    CoreTypeSection, EntityType, ModuleType, RawSection,
};
use wasmparser::{ExternalKind, Parser, Payload};

/// Modules with at least this many bytes of code are extracted. A policy in Rust or C has less, and changes with each edit.
const CODE_BYTES_MIN: u32 = 128 << 10;

/// The depth of nested components up to which modules are extracted. Tools nest one or two.
const DEPTH_MAX: usize = 8;

/// A component that imports its large modules, and those modules.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) rest: Vec<u8>,
    pub(super) modules: Vec<&'a [u8]>,
}

/// Returns the name under which the component imports an extracted module.
pub(super) fn import_name(index: usize) -> String {
    format!("signalpost-part-m{index}")
}

/// Extracts the large modules. Returns `None` if there are none, or if the component is of a form that is not supported here.
pub(super) fn extract(component: &[u8]) -> Option<Parts<'_>> {
    let extracted = large_modules(component)?;
    let modules: Vec<&[u8]> = extracted.iter().map(|range| component.get(range.clone())).collect::<Option<_>>()?;
    if modules.is_empty() {
        return None;
    }
    let (mut types, mut imports) = (CoreTypeSection::new(), ComponentImportSection::new());
    for (index, module) in (0u32..).zip(&modules) {
        types.ty().module(&module_type(module)?);
        imports.import(import_name(index as usize).as_str(), ComponentTypeRef::Module(index));
    }
    let mut rest = Component::new();
    rest.section(&types).section(&imports);
    let mut extraction = Extraction { whole: component, count: u32::try_from(modules.len()).ok()?, extracted, next: 0, depth: 0 };
    extraction.parse_component(&mut rest, Parser::new(0), component).ok()?;
    Some(Parts { rest: rest.finish(), modules })
}

/// Returns the ranges of the large modules, in order. Returns `None` if the component has types of core modules, whose indices would change.
fn large_modules(component: &[u8]) -> Option<Vec<Range<usize>>> {
    let mut found = Vec::new();
    // For each component or module around the current position: its range if it is a module, and whether it is large.
    let mut open: Vec<(Option<Range<usize>>, bool)> = Vec::new();
    for payload in Parser::new(0).parse_all(component) {
        match payload.ok()? {
            Payload::ModuleSection { unchecked_range, .. } => {
                let range = usize::try_from(unchecked_range.start).ok()?..usize::try_from(unchecked_range.end).ok()?;
                open.push((Some(range), false));
            }
            Payload::ComponentSection { .. } => open.push((None, false)),
            Payload::CodeSectionStart { size, .. } if size >= CODE_BYTES_MIN => open.last_mut()?.1 = true,
            Payload::CoreTypeSection(_) => return None,
            // The last end is that of the whole component, for which `open` is empty.
            Payload::End(_) => {
                if let Some((Some(range), true)) = open.pop() {
                    found.push(range);
                }
            }
            _ => {}
        }
        if open.len() > DEPTH_MAX {
            return None;
        }
    }
    Some(found)
}

/// Returns a module's type: its imports and exports.
fn module_type(module: &[u8]) -> Option<ModuleType> {
    let mut same = RoundtripReencoder;
    let mut described = ModuleType::new();
    let (mut functions, mut tables, mut memories, mut globals, mut tags) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for payload in Parser::new(0).parse_all(module) {
        match payload.ok()? {
            Payload::TypeSection(types) => {
                for group in types {
                    same.parse_recursive_type_group(described.ty(), group.ok()?).ok()?;
                }
            }
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import.ok()?;
                    let kind = same.entity_type(import.ty).ok()?;
                    described.import(import.module, import.name, kind);
                    match kind {
                        EntityType::Function(_) => functions.push(kind),
                        EntityType::Table(_) => tables.push(kind),
                        EntityType::Memory(_) => memories.push(kind),
                        EntityType::Global(_) => globals.push(kind),
                        EntityType::Tag(_) => tags.push(kind),
                        EntityType::FunctionExact(_) => return None,
                    }
                }
            }
            Payload::FunctionSection(section) => {
                for index in section {
                    functions.push(EntityType::Function(index.ok()?));
                }
            }
            Payload::TableSection(section) => {
                for table in section {
                    tables.push(EntityType::Table(same.table_type(table.ok()?.ty).ok()?));
                }
            }
            Payload::MemorySection(section) => {
                for memory in section {
                    memories.push(EntityType::Memory(same.memory_type(memory.ok()?).ok()?));
                }
            }
            Payload::GlobalSection(section) => {
                for global in section {
                    globals.push(EntityType::Global(same.global_type(global.ok()?.ty).ok()?));
                }
            }
            Payload::TagSection(section) => {
                for tag in section {
                    tags.push(EntityType::Tag(same.tag_type(tag.ok()?).ok()?));
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export.ok()?;
                    let space = match export.kind {
                        ExternalKind::Func => &functions,
                        ExternalKind::Table => &tables,
                        ExternalKind::Memory => &memories,
                        ExternalKind::Global => &globals,
                        ExternalKind::Tag => &tags,
                        ExternalKind::FuncExact => return None,
                    };
                    described.export(export.name, *space.get(export.index as usize)?);
                }
            }
            _ => {}
        }
    }
    Some(described)
}

/// Copies a component, with aliases of the outermost component's imports in place of the extracted modules.
struct Extraction<'a> {
    whole: &'a [u8],
    /// The number of imports, by which the indices of the outermost component's own modules increase.
    count: u32,
    extracted: Vec<Range<usize>>,
    next: u32,
    /// The number of components and types around the current one, which an alias of an outer item counts.
    depth: u32,
}

impl Reencode for Extraction<'_> {
    type Error = std::convert::Infallible;
}

impl ReencodeComponent for Extraction<'_> {
    fn push_depth(&mut self) {
        self.depth += 1;
    }

    fn pop_depth(&mut self) {
        self.depth -= 1;
    }

    fn module_index(&mut self, index: u32) -> u32 {
        self.outer_module_index(0, index)
    }

    fn outer_module_index(&mut self, count: u32, index: u32) -> u32 {
        if self.depth == count { index + self.count } else { index }
    }

    fn parse_component_submodule(
        &mut self,
        component: &mut Component,
        _parser: Parser,
        module: &[u8],
    ) -> Result<(), reencode::Error<Self::Error>> {
        let next = self.extracted.get(self.next as usize).and_then(|range| self.whole.get(range.clone()));
        if next.is_some_and(|next| std::ptr::eq(next, module)) {
            let (kind, count, index) = (ComponentOuterAliasKind::CoreModule, self.depth, self.next);
            component.section(ComponentAliasSection::new().alias(Alias::Outer { kind, count, index }));
            self.next += 1;
        } else {
            component.section(&RawSection { id: ComponentSectionId::CoreModule.into(), data: module });
        }
        Ok(())
    }

    /// Drops custom sections, which compilation doesn't need.
    fn parse_component_custom_section(
        &mut self,
        _component: &mut Component,
        _section: wasmparser::CustomSectionReader<'_>,
    ) -> Result<(), Error<Self::Error>> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use wasmtime::Store;
    use wasmtime::component::{Component, Linker};

    use super::*;
    use crate::policy::engine;

    /// Returns the fields of a module that adds `by`, with enough code to be extracted.
    fn large(by: u32) -> String {
        let code = "(drop (i32.const 1))".repeat(CODE_BYTES_MIN as usize / 3);
        format!(
            r#"(import "host" "memory" (memory 1)) (global (export "by") i32 (i32.const {by})) (table (export "table") 1 funcref)
                (func {code}) (func (export "add") (param i32) (result i32) (i32.add (local.get 0) (i32.const {by})))"#
        )
    }

    /// Returns a component with one large module at the top level and one in a nested component, and small ones before and after them.
    fn component() -> Vec<u8> {
        let text = format!(
            r#"(component
                (core module $memory (memory (export "memory") 1))
                (core instance $memory (instantiate $memory))
                (component $inner
                    (core module $memory (memory (export "memory") 1))
                    (core instance $memory (instantiate $memory))
                    (core module $large {inner})
                    (core module $twice (import "" "add" (func $add (param i32) (result i32)))
                        (func (export "f") (param i32) (result i32) (call $add (call $add (local.get 0)))))
                    (core instance $large (instantiate $large (with "host" (instance $memory))))
                    (core instance $twice (instantiate $twice (with "" (instance $large))))
                    (func (export "twice") (param "x" u32) (result u32) (canon lift (core func $twice "f"))))
                (core module $large {outer})
                (instance $inner (instantiate $inner))
                (core instance $large (instantiate $large (with "host" (instance $memory))))
                (func $once (param "x" u32) (result u32) (canon lift (core func $large "add")))
                (export "once" (func $once))
                (export "twice" (func $inner "twice")))"#,
            inner = large(10),
            outer = large(1),
        );
        wat::parse_str(text).unwrap()
    }

    #[test]
    fn a_component_with_extracted_modules_does_the_same() {
        let whole = component();
        let parts = extract(&whole).unwrap();
        assert_eq!(parts.modules.len(), 2);
        assert!(parts.rest.len() < 20_000, "{} bytes are left", parts.rest.len());
        let engine = engine::compiling().unwrap();
        let mut linker = Linker::<()>::new(&engine);
        for (index, module) in parts.modules.iter().enumerate() {
            linker.root().module(&import_name(index), &wasmtime::Module::new(&engine, module).unwrap()).unwrap();
        }
        let mut store = Store::new(&engine, ());
        store.set_epoch_deadline(1);
        let rest = Component::new(&engine, &parts.rest).unwrap();
        let instance = linker.instantiate(&mut store, &rest).unwrap();
        for (name, sum) in [("once", 101), ("twice", 120)] {
            let function = instance.get_typed_func::<(u32,), (u32,)>(&mut store, name).unwrap();
            assert_eq!(function.call(&mut store, (100,)).unwrap(), (sum,), "{name}");
        }
    }

    #[test]
    fn small_modules_and_malformed_components_are_not_extracted() {
        assert!(extract(&wat::parse_str("(component (core module))").unwrap()).is_none());
        let whole = component();
        for length in (0..whole.len()).step_by(10_007) {
            assert!(extract(&whole[..length]).is_none(), "cut after {length} bytes");
        }
        assert!(extract(b"no component").is_none());
        let deep = "(component ".repeat(DEPTH_MAX + 2) + &")".repeat(DEPTH_MAX + 2);
        assert!(extract(&wat::parse_str(deep).unwrap()).is_none());
    }
}
