//! The API's descriptions for programs: OpenAPI for requests, AsyncAPI for what goes over sockets and streams. People keep them in
//! `docs/openapi.yaml` and `docs/asyncapi.yaml`; the files here are made of those, so that the server reads no YAML. A test writes them, and
//! others hold them to the routes, the code, and every answer and frame that tests see.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::CONTENT_TYPE;

/// The base path in the files, which is the default of the setting.
const BASE_PATH: &str = "/api/pool";

const OPENAPI: &str = include_str!("descriptions/openapi.json");
const ASYNCAPI: &str = include_str!("descriptions/asyncapi.json");

/// The descriptions of one server.
#[derive(Debug)]
pub struct Descriptions {
    openapi: Bytes,
    asyncapi: Bytes,
}

impl Descriptions {
    pub fn new(base_path: &str) -> Descriptions {
        Descriptions { openapi: below(base_path, OPENAPI), asyncapi: below(base_path, ASYNCAPI) }
    }
}

/// Returns a description of addresses below this path, which has no character that JSON escapes.
fn below(base_path: &str, description: &'static str) -> Bytes {
    if base_path == BASE_PATH {
        return Bytes::from_static(description.as_bytes());
    }
    description.replace(BASE_PATH, base_path).into()
}

/// `GET {base}/openapi.json`
pub async fn openapi(State(descriptions): State<Arc<Descriptions>>) -> Response {
    served(descriptions.openapi.clone())
}

/// `GET {base}/asyncapi.json`
pub async fn asyncapi(State(descriptions): State<Arc<Descriptions>>) -> Response {
    served(descriptions.asyncapi.clone())
}

fn served(description: Bytes) -> Response {
    ([(CONTENT_TYPE, "application/json")], description).into_response()
}
