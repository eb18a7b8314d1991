//! A WASI that denies everything, for languages whose standard library imports WASI even if the plugin doesn't use it. There are no
//! files, arguments, environment variables or randomness, streams take no bytes, and it is always 1970. It is a grant of its own, and
//! not granted by default.
//!
//! Functions are answered by their result type, not by name: a list is empty, a number 0, an option absent, a result an error. A
//! function whose type has no such value ends the call.

use wasmtime::component::types::{self, ComponentItem};
use wasmtime::component::{Component, Linker, LinkerInstance, Resource, ResourceType, Type, Val};
use wasmtime::{Engine, StoreContextMut, bail};

use super::host::Host;

/// The prefix of the names of WASI's interfaces.
pub const PREFIX: &str = "wasi:";

/// Bytes of one answer to a request for random bytes, all of which are 0. A hash table asks for 16.
const RANDOM_BYTES_MAX: u64 = 4096;

/// The host's side of every WASI resource.
#[derive(Debug)]
struct Nothing;

/// Links the WASI interfaces that a component imports.
///
/// # Errors
/// The component imports something from WASI that is not an interface.
pub fn link(linker: &mut Linker<Host>, engine: &Engine, component: &Component) -> wasmtime::Result<()> {
    let kind = component.component_type();
    for (name, import) in kind.imports(engine).filter(|(name, _)| name.starts_with(PREFIX)) {
        let ComponentItem::ComponentInstance(interface) = import.ty else { bail!("{name} is not an interface") };
        let mut linked = linker.instance(name)?;
        for (item, export) in interface.exports(engine) {
            match export.ty {
                ComponentItem::ComponentFunc(_) => deny(&mut linked, name, item)?,
                ComponentItem::Resource(_) => linked.resource(item, ResourceType::host::<Nothing>(), |_, _| Ok(()))?,
                // Types are not linked.
                _ => {}
            }
        }
    }
    Ok(())
}

fn deny(linked: &mut LinkerInstance<'_, Host>, interface: &str, function: &str) -> wasmtime::Result<()> {
    let full_name = format!("{interface}#{function}");
    linked.func_new(function, move |mut store, kind, params, results| {
        store.data_mut().count()?;
        params.iter().try_for_each(|param| give_back(&mut store, param))?;
        let Some((result, returned)) = results.first_mut().zip(kind.results().next()) else {
            // A function that returns nothing does nothing, except `exit`, which must not return.
            return if full_name.contains("/exit@") {
                Err(wasmtime::Error::msg("the guest ended itself by WASI's `exit`"))
            } else {
                Ok(())
            };
        };
        *result = match (returned, params) {
            // As many bytes as were requested.
            (Type::List(list), [Val::U64(length)]) if matches!(list.ty(), Type::U8) => {
                if *length > RANDOM_BYTES_MAX {
                    bail!("{full_name} gives {RANDOM_BYTES_MAX} bytes at most, and was asked for {length}");
                }
                Val::List((0..*length).map(|_| Val::U8(0)).collect())
            }
            (returned, _) => nothing(&mut store, &returned, &full_name)?,
        };
        Ok(())
    })
}

/// Drops the handles in a parameter, lent or given: the host has to.
fn give_back(store: &mut StoreContextMut<'_, Host>, value: &Val) -> wasmtime::Result<()> {
    match value {
        Val::Resource(handle) => handle.resource_drop(&mut *store),
        Val::List(values) | Val::Tuple(values) => values.iter().try_for_each(|value| give_back(store, value)),
        Val::Record(fields) => fields.iter().try_for_each(|(_, value)| give_back(store, value)),
        Val::Option(Some(value)) | Val::Variant(_, Some(value)) | Val::Result(Ok(Some(value)) | Err(Some(value))) => {
            give_back(store, value)
        }
        _ => Ok(()),
    }
}

/// Returns the emptiest value of a type.
fn nothing(store: &mut StoreContextMut<'_, Host>, kind: &Type, function: &str) -> wasmtime::Result<Val> {
    Ok(match kind {
        Type::Bool => Val::Bool(false),
        Type::S8 => Val::S8(0),
        Type::U8 => Val::U8(0),
        Type::S16 => Val::S16(0),
        Type::U16 => Val::U16(0),
        Type::S32 => Val::S32(0),
        Type::U32 => Val::U32(0),
        Type::S64 => Val::S64(0),
        Type::U64 => Val::U64(0),
        Type::Float32 => Val::Float32(0.0),
        Type::Float64 => Val::Float64(0.0),
        Type::Char => Val::Char('\0'),
        Type::String => Val::String(String::new()),
        Type::List(_) => Val::List(Vec::new()),
        Type::Option(_) => Val::Option(None),
        Type::Flags(_) => Val::Flags(Vec::new()),
        Type::Result(result) => {
            let error = result.err().map(|kind| denial(store, &kind, function)).transpose()?;
            Val::Result(Err(error.map(Box::new)))
        }
        Type::Tuple(tuple) => Val::Tuple(tuple.types().map(|kind| nothing(store, &kind, function)).collect::<wasmtime::Result<_>>()?),
        Type::Record(record) => {
            let field = |field: types::Field<'_>| Ok((field.name.to_owned(), nothing(store, &field.ty, function)?));
            Val::Record(record.fields().map(field).collect::<wasmtime::Result<_>>()?)
        }
        Type::Own(_) => Val::Resource(Resource::<Nothing>::new_own(0).try_into_resource_any(store)?),
        Type::Enum(_) | Type::Variant(_) => denial(store, kind, function)?,
        _ => bail!("{function} is not granted: this WASI denies everything"),
    })
}

/// Returns the case of an error type that means "not permitted", or its last case.
fn denial(store: &mut StoreContextMut<'_, Host>, kind: &Type, function: &str) -> wasmtime::Result<Val> {
    /// The names in WASI's file system, streams and sockets.
    const NAMES: [&str; 3] = ["not-permitted", "closed", "access-denied"];
    match kind {
        Type::Enum(kind) => {
            let name = kind.names().find(|name| NAMES.contains(name)).or_else(|| kind.names().last());
            name.map(|name| Val::Enum(name.to_owned())).ok_or_else(|| wasmtime::Error::msg("an enum without cases"))
        }
        Type::Variant(kind) => {
            let mut cases = kind.cases();
            let known = cases.find(|case| NAMES.contains(&case.name));
            let Some(case) = known.or_else(|| kind.cases().last()) else { bail!("a variant without cases") };
            let value = case.ty.map(|kind| nothing(store, &kind, function)).transpose()?;
            Ok(Val::Variant(case.name.to_owned(), value.map(Box::new)))
        }
        other => nothing(store, other, function),
    }
}
