//! Why a plugin can't be loaded.

use thiserror::Error;

use super::compile::CompileError;
use super::contract::{CONTRACT, CONTRACT_VERSION, ContractError};
use super::source::ReadError;
use crate::types::fault::Defect;

/// Why a plugin can't be loaded: the end of a sentence whose subject is the plugin, which its author or operator can act on.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error(transparent)]
    Contract(#[from] ContractError),
    #[error("its settings can't be written as JSON: {0}")]
    Settings(serde_json::Error),
    #[error("{0:#}")]
    Link(wasmtime::Error),
    #[error("does not fit the contract {CONTRACT}@{CONTRACT_VERSION}: {0:#}")]
    Unfit(wasmtime::Error),
    #[error("an export does not fit the contract {CONTRACT}@{CONTRACT_VERSION}: {0:#}")]
    UnfitExport(wasmtime::Error),
    /// A function of the plugin failed, or the creation of an instance.
    #[error("{what} failed ({}): {}", defect.kind.name(), defect.detail)]
    Fault { what: &'static str, defect: Defect },
    /// Their values may be secrets, so only their names are told.
    #[error("refuses its settings ({}): {reason}", if names.is_empty() { "none are set" } else { names })]
    SettingsRefused { names: String, reason: String },
}

impl LoadError {
    /// Returns whether it may go well another time, with the same file.
    pub fn is_passing(&self) -> bool {
        match self {
            LoadError::Read(error) => matches!(error, ReadError::Unreadable(_) | ReadError::NotThere { .. } | ReadError::NotFetched),
            LoadError::Compile(error) => {
                matches!(error, CompileError::Deadline(_) | CompileError::Failed(_) | CompileError::Unreachable(_))
            }
            LoadError::Contract(_)
            | LoadError::Settings(_)
            | LoadError::Link(_)
            | LoadError::Unfit(_)
            | LoadError::UnfitExport(_)
            | LoadError::Fault { .. }
            | LoadError::SettingsRefused { .. } => false,
        }
    }

    pub(super) fn fault(what: &'static str) -> impl FnOnce(Defect) -> LoadError {
        move |defect| LoadError::Fault { what, defect }
    }
}
