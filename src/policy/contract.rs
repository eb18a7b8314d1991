//! The host's side of the contract: what a component must export and may import, and which events it is called for.

use serde::Serialize;
use thiserror::Error;
use wasmparser::{Parser, Payload};
use wasmtime::Engine;

use super::bindings::plugin;
use super::compile::Compiled;
use super::wasi;
use crate::config::{Grant, NAME_BYTES_MAX};
use crate::types::pattern::matches;

/// The contract that this server implements. A published version never changes; the next one is added beside it.
pub const CONTRACT: &str = "signalpost:policy";
pub const CONTRACT_VERSION: &str = "0.1.0";

/// Event types that a plugin may want, and bytes of one. Each event is compared with all of them, and one prefix covers many types.
const EVENT_TYPES_MAX: usize = 256;
const EVENT_TYPE_BYTES_MAX: usize = 256;

/// Attributes that formatting may depend on. Each is looked up for every message and session.
const VARY_MAX: usize = 16;

/// Why a component does not keep the contract: the end of a sentence whose subject is the plugin, which its author or operator can
/// act on.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ContractError {
    #[error("is not WebAssembly: the file does not begin with its magic number")]
    NotWebAssembly,
    #[error("is a core module, not a component: build it with `signalpost plugin build`")]
    CoreModule,
    #[error("is built for {CONTRACT}@{0}; this server serves {CONTRACT_VERSION}")]
    OtherVersion(String),
    #[error("exports no {CONTRACT}/plugin@{CONTRACT_VERSION}; it exports {}", list(.0))]
    NoPlugin(Vec<String>),
    #[error("exports none of the roles routing, formatting and sessions, so it would never be called")]
    NoRole,
    #[error("imports {0}, which no policy can have: there is only {CONTRACT}@{CONTRACT_VERSION}")]
    ForeignImport(String),
    #[error("imports {0}, which {CONTRACT}@{CONTRACT_VERSION} does not have")]
    UnknownImport(String),
    #[error("imports {}, which {} not granted: {}", list(&grant_names(missing.iter())), is_or_are(missing.len()), advice(policy, missing, granted))]
    NotGranted { policy: String, missing: Vec<Grant>, granted: Vec<Grant> },
    /// `what` is the name or the version of its description.
    #[error("its {what}, of {bytes} bytes, is not 1 to {NAME_BYTES_MAX} printable ASCII characters")]
    Unprintable { what: &'static str, bytes: usize },
    #[error("it wants {0} event types, more than {EVENT_TYPES_MAX}: let it want `prefix.*`")]
    TooManyEventTypes(usize),
    #[error("it wants an event type of {0} bytes, more than {EVENT_TYPE_BYTES_MAX}")]
    LongEventType(usize),
    #[error("it varies on {0} attributes, more than {VARY_MAX}")]
    TooManyAttributes(usize),
    #[error("it varies on an attribute whose name has {0} bytes, more than {NAME_BYTES_MAX}")]
    LongAttribute(usize),
    #[error("`{0}` is not an event type, `prefix.*` or `*`")]
    Pattern(String),
    #[error("its configuration names the event type `{pattern}`, which it doesn't want; it wants {}", list(wanted))]
    Unwanted { pattern: String, wanted: Vec<String> },
}

/// A role of a component, known by the interface that it exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Routing,
    Formatting,
    Sessions,
}

/// Refuses a file that is not a component, before it is compiled.
pub fn check_kind(bytes: &[u8]) -> Result<(), ContractError> {
    match bytes.get(..8) {
        Some([0, b'a', b's', b'm', 1, 0, 0, 0]) => Err(ContractError::CoreModule),
        Some([0, b'a', b's', b'm', ..]) => Ok(()),
        _ => Err(ContractError::NotWebAssembly),
    }
}

/// Returns the roles that the component's exports give it.
pub fn check_exports(engine: &Engine, component: &Compiled) -> Result<Vec<Role>, ContractError> {
    let exports = component.exports(engine);
    let has = |interface: &str| exports.iter().any(|name| *name == format!("{CONTRACT}/{interface}@{CONTRACT_VERSION}"));
    if !has("plugin") {
        check_version(exports.iter().map(String::as_str))?;
        return Err(ContractError::NoPlugin(exports));
    }
    let roles = [(Role::Routing, "routing"), (Role::Formatting, "formatting"), (Role::Sessions, "sessions")];
    let roles: Vec<Role> = roles.into_iter().filter(|(_, interface)| has(interface)).map(|(role, _)| role).collect();
    if roles.is_empty() {
        return Err(ContractError::NoRole);
    }
    Ok(roles)
}

/// Returns whether a file may be a plugin that decides who connects or what a reader may see: it exports one of those roles, or what it
/// exports can't be told.
pub fn may_guard(bytes: &[u8]) -> bool {
    let mut is_router = false;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload {
            Ok(Payload::ComponentExportSection(exports)) => {
                for export in exports {
                    let Ok(export) = export else { return true };
                    let Some(interface) = export.name.name.strip_prefix(CONTRACT).and_then(|rest| rest.strip_prefix('/')) else { continue };
                    match interface.split('@').next() {
                        Some("sessions" | "formatting") => return true,
                        Some("routing") => is_router = true,
                        _ => {}
                    }
                }
            }
            Ok(_) => {}
            Err(_) => return true,
        }
    }
    !is_router
}

/// Returns the grants that a component needs. Every import must belong to the contract or to WASI.
pub fn imported_grants(engine: &Engine, component: &Compiled) -> Result<Vec<Grant>, ContractError> {
    let imports = component.imports(engine);
    check_version(imports.iter().map(String::as_str))?;
    let mut grants = Vec::new();
    for import in imports {
        let Some(interface) = import.strip_prefix(&format!("{CONTRACT}/")).and_then(|rest| rest.split('@').next()) else {
            if import.starts_with(wasi::PREFIX) {
                grants.push(Grant::Wasi);
                continue;
            }
            return Err(ContractError::ForeignImport(import));
        };
        // Types grant nothing, and every plugin may report why it panics.
        if interface == "types" || interface == "diagnostics" {
            continue;
        }
        let Ok(grant) =
            <Grant as serde::Deserialize>::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(interface))
        else {
            return Err(ContractError::UnknownImport(import));
        };
        grants.push(grant);
    }
    // WASI has many interfaces, but one grant.
    grants.sort();
    grants.dedup();
    Ok(grants)
}

/// Refuses a component that imports something not granted.
pub fn check_imports(engine: &Engine, component: &Compiled, name: &str, grants: &[Grant]) -> Result<(), ContractError> {
    let missing: Vec<Grant> = imported_grants(engine, component)?.into_iter().filter(|grant| !grants.contains(grant)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(ContractError::NotGranted { policy: name.to_owned(), missing, granted: grants.to_vec() })
}

/// Returns what an operator can do about missing grants.
fn advice(policy: &str, missing: &[Grant], granted: &[Grant]) -> String {
    let mut wanted = grant_names(granted.iter().chain(missing));
    wanted.sort();
    let wasi = if missing.contains(&Grant::Wasi) { "build it without WASI, or let it have one that denies everything: " } else { "" };
    format!("{wasi}add `grants = {wanted:?}` to [policies.{policy}]")
}

/// Returns grants as the configuration spells them.
pub fn grant_names<'a>(grants: impl Iterator<Item = &'a Grant>) -> Vec<String> {
    grants.map(|grant| format!("{grant:?}").to_lowercase()).collect()
}

/// Refuses interfaces of another version of the contract, and names the version.
fn check_version<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), ContractError> {
    for name in names {
        let Some((interface, version)) = name.split_once('@') else { continue };
        if interface.starts_with(&format!("{CONTRACT}/")) && version != CONTRACT_VERSION {
            return Err(ContractError::OtherVersion(version.to_owned()));
        }
    }
    Ok(())
}

/// Refuses a description that is out of bounds: its name and version are in every report, and its event types are checked for every event.
pub fn check_description(description: &plugin::Description) -> Result<(), ContractError> {
    let plugin::Description { name, version, events } = description;
    for (what, word) in [("name", name), ("version", version)] {
        let sane = (1..=NAME_BYTES_MAX).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_graphic());
        if !sane {
            return Err(ContractError::Unprintable { what, bytes: word.len() });
        }
    }
    if events.len() > EVENT_TYPES_MAX {
        return Err(ContractError::TooManyEventTypes(events.len()));
    }
    match events.iter().map(String::len).max() {
        Some(longest) if longest > EVENT_TYPE_BYTES_MAX => Err(ContractError::LongEventType(longest)),
        _ => Ok(()),
    }
}

/// Refuses too many or too long names of attributes that formatting depends on.
pub fn check_vary(names: &[String]) -> Result<(), ContractError> {
    if names.len() > VARY_MAX {
        return Err(ContractError::TooManyAttributes(names.len()));
    }
    match names.iter().find(|name| name.len() > NAME_BYTES_MAX) {
        Some(name) => Err(ContractError::LongAttribute(name.len())),
        None => Ok(()),
    }
}

/// Returns the event types that a plugin is called for: those it wants, narrowed by the configuration.
pub fn check_events(wanted: Vec<String>, configured: Option<&[String]>) -> Result<Vec<String>, ContractError> {
    for pattern in wanted.iter().chain(configured.into_iter().flatten()) {
        let stars = pattern.matches('*').count();
        let fits = !pattern.is_empty() && (stars == 0 || (stars == 1 && (pattern == "*" || pattern.ends_with(".*"))));
        if !fits {
            return Err(ContractError::Pattern(pattern.clone()));
        }
    }
    let Some(configured) = configured else { return Ok(wanted) };
    for pattern in configured {
        if !wanted.iter().any(|known| matches(known, pattern)) {
            return Err(ContractError::Unwanted { pattern: pattern.clone(), wanted });
        }
    }
    Ok(configured.to_vec())
}

fn is_or_are(count: usize) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn a_pattern_is_one_type_a_prefix_or_all() {
        for (pattern, event_type, fits) in [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.b", "a", false),
            ("a.*", "a.b", true),
            ("a.*", "a.b.c", true),
            ("a.*", "a", false),
            ("a.*", "ab.c", false),
            ("*", "anything", true),
        ] {
            assert_eq!(matches(pattern, event_type), fits, "{pattern} {event_type}");
        }
    }

    #[test]
    fn the_configuration_narrows_what_a_plugin_wants_and_never_widens_it() {
        let wanted = strings(&["a.*", "b"]);
        assert_eq!(check_events(wanted.clone(), None), Ok(wanted.clone()));
        for narrowed in [&["a.x", "b"][..], &["a.x.*"], &["a.*"], &[]] {
            assert_eq!(check_events(wanted.clone(), Some(&strings(narrowed))), Ok(strings(narrowed)));
        }
        for wider in ["*", "a", "b.*", "c"] {
            let error = check_events(wanted.clone(), Some(&strings(&["a.x", wider]))).unwrap_err();
            assert_eq!(error, ContractError::Unwanted { pattern: wider.to_owned(), wanted: wanted.clone() });
            assert!(error.to_string().ends_with("it wants a.*, b"), "{error}");
        }
    }

    #[test]
    fn a_pattern_has_one_star_and_only_where_it_says_something() {
        for bad in ["", "a*", "*.b", "a.*.b", "**", "a.**", ".*b"] {
            let of_the_plugin = check_events(strings(&[bad]), None).unwrap_err();
            let of_the_configuration = check_events(strings(&["*"]), Some(&strings(&[bad]))).unwrap_err();
            assert_eq!(of_the_plugin, of_the_configuration);
            assert_eq!(of_the_plugin, ContractError::Pattern(bad.to_owned()));
        }
    }

    #[test]
    fn another_version_of_the_contract_is_named() {
        assert_eq!(check_version(["signalpost:policy/plugin@0.1.0", "wasi:cli/run@0.2.0", "plain"].into_iter()), Ok(()));
        for version in ["0.1.1", "0.2.0", "9.9.9"] {
            let name = format!("signalpost:policy/log@{version}");
            let error = check_version(["signalpost:policy/plugin@0.1.0", &name].into_iter()).unwrap_err();
            assert_eq!(error.to_string(), format!("is built for signalpost:policy@{version}; this server serves 0.1.0"));
        }
    }

    #[test]
    fn what_is_no_component_is_told_apart() {
        for (bytes, error) in [
            (&b""[..], ContractError::NotWebAssembly),
            (b"\0asm", ContractError::NotWebAssembly),
            (b"#!/bin/sh", ContractError::NotWebAssembly),
            (b"\0asm\x01\0\0\0", ContractError::CoreModule),
        ] {
            assert_eq!(check_kind(bytes), Err(error), "{bytes:?}");
        }
        assert!(check_kind(b"\0asm\x0d\0\x01\0").is_ok(), "an empty component is one");
    }
}
