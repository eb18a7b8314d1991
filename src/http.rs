//! The HTTP API, for producers and operators.

pub mod console;
pub mod descriptions;
pub mod ingress;
pub mod operate;
pub mod routes;
