//! The HTTP API, for producers and operators.

pub mod ingress;
pub mod operate;
pub mod routes;
