//! What is served over HTTP, to producers and to operators.

pub mod ingress;
pub mod operate;
pub mod routes;
