//! What is known about a component before it is configured, for its author and for the operator, who grants what it needs.

use std::sync::Arc;
use std::time::Duration;

use super::ticker::EpochTicker;

use super::compile::Compiler;
use super::contract::{check_exports, check_kind, imported_grants};
use super::host::Shared;
use super::load_error::LoadError;
use super::plugin::{Introspection, Policy};
use crate::config::{self, Grant};

/// A component's imports and exports, and what it reports about itself.
#[derive(Debug)]
pub struct Inspection {
    pub bytes: Vec<u8>,
    /// SHA-256, in hexadecimal.
    pub digest: String,
    pub says: Introspection,
    /// The grants that the component needs.
    pub grants: Vec<Grant>,
    pub imports: Vec<String>,
    pub exports: Vec<String>,
    /// Compile time, without the cache.
    pub compile: Duration,
}

impl Inspection {
    /// Inspects a component with all the grants that it needs.
    ///
    /// # Errors
    /// The component is not a plugin that this server could load.
    pub fn of(
        ticker: &EpochTicker,
        compiler: &Compiler,
        digest: String,
        bytes: Vec<u8>,
        config: config::Policy,
        shared: Arc<Shared>,
    ) -> Result<Inspection, LoadError> {
        check_kind(&bytes)?;
        let engine = &ticker.engine;
        let (component, compile) = compiler.timed(engine, &shared.name, &bytes)?;
        // Before the imports, so that a component for another version of the contract is reported as such.
        check_exports(engine, &component)?;
        let grants = imported_grants(engine, &component)?;
        let config = config::Policy { grants: grants.clone(), ..config };
        let says = Policy::ask(ticker, &component, &config, shared)?;
        let (imports, exports) = (component.imports(engine), component.exports(engine));
        Ok(Inspection { bytes, digest, says, grants, imports, exports, compile })
    }
}
