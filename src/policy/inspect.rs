//! What a component is, before any configuration fits it: for its author, and for whoever is to grant what it needs.

use std::sync::Arc;
use std::time::Duration;

use super::ticker::EpochTicker;

use super::compile::Compiler;
use super::contract::{check_exports, check_kind, imported_grants};
use super::host::Shared;
use super::plugin::{Introspection, Policy};
use crate::config::{self, Grant};

/// All that can be read off a component, and what it says of itself.
#[derive(Debug)]
pub struct Inspection {
    pub bytes: Vec<u8>,
    /// SHA-256, in hexadecimal.
    pub digest: String,
    pub says: Introspection,
    /// What a configuration has to grant.
    pub grants: Vec<Grant>,
    pub imports: Vec<String>,
    pub exports: Vec<String>,
    /// Not from the cache.
    pub compile: Duration,
}

impl Inspection {
    /// # Errors
    /// It is no plugin that this server could load.
    pub fn of(
        ticker: &EpochTicker,
        compiler: &Compiler,
        digest: String,
        bytes: Vec<u8>,
        config: config::Policy,
        shared: Arc<Shared>,
    ) -> Result<Inspection, String> {
        check_kind(&bytes)?;
        let engine = &ticker.engine;
        let (component, compile) = compiler.timed(engine, &bytes)?;
        // Another version of the contract is what it should complain about first.
        check_exports(engine, &component)?;
        let grants = imported_grants(engine, &component)?;
        let config = config::Policy { grants: grants.clone(), ..config };
        let says = Policy::ask(ticker, &component, &config, shared)?;
        let (imports, exports) = (component.imports(engine), component.exports(engine));
        Ok(Inspection { bytes, digest, says, grants, imports, exports, compile })
    }
}
