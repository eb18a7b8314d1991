//! The console: the pages that operators open in a browser, at `/console/`. They are files in `src/console`, in the binary as they are, and need no
//! key: what they show they ask the API for, with the operator's key.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Router, http::HeaderName};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, StatusCode};
use std::sync::Arc;

use crate::net::problem::Problem;

/// The pages take scripts, styles and answers from this server alone, and are in no frame of another page. No script is written in a page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; \
                      base-uri 'none'; form-action 'none'";

const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The files with their types. A debug build has them from the binary too: one way for all.
const FILES: [(&str, &str, &[u8]); 10] = [
    ("style.css", "text/css; charset=utf-8", include_bytes!("../console/style.css")),
    ("icon.svg", "image/svg+xml", include_bytes!("../console/icon.svg")),
    ("app.js", SCRIPT, include_bytes!("../console/app.js")),
    ("api.js", SCRIPT, include_bytes!("../console/api.js")),
    ("ui.js", SCRIPT, include_bytes!("../console/ui.js")),
    ("story.js", SCRIPT, include_bytes!("../console/story.js")),
    ("candidate.js", SCRIPT, include_bytes!("../console/candidate.js")),
    ("overview.js", SCRIPT, include_bytes!("../console/overview.js")),
    ("live.js", SCRIPT, include_bytes!("../console/live.js")),
    ("pages.js", SCRIPT, include_bytes!("../console/pages.js")),
];

/// The page itself, which names the base path of the API.
const PAGE: &str = include_str!("../console/index.html");

/// A library in a folder of its own.
const VENDORED: (&str, &[u8]) = ("preact-htm.js", include_bytes!("../console/vendor/preact-htm.js"));

/// Returns the routes of the console.
pub fn routes(base_path: &str) -> Router {
    let page: Arc<str> = PAGE.replace("{base}", &escaped(base_path)).into();
    Router::new()
        .route("/console", get(async || Redirect::permanent("/console/")))
        .route("/console/", get(index))
        .route("/console/{file}", get(file))
        .route("/console/vendor/{file}", get(vendored))
        .with_state(page)
}

/// `GET /console/`
async fn index(State(page): State<Arc<str>>) -> Response {
    served(HTML, Bytes::copy_from_slice(page.as_bytes()))
}

/// `GET /console/{file}`
async fn file(name: Result<Path<String>, PathRejection>) -> Result<Response, Problem> {
    let Path(name) = name.map_err(|_| missing())?;
    let found = FILES.iter().find(|(known, _, _)| *known == name);
    found.map(|(_, kind, bytes)| served(kind, Bytes::from_static(bytes))).ok_or_else(missing)
}

/// `GET /console/vendor/{file}`
async fn vendored(name: Result<Path<String>, PathRejection>) -> Result<Response, Problem> {
    let Path(name) = name.map_err(|_| missing())?;
    let (known, bytes) = VENDORED;
    if name == known { Ok(served(SCRIPT, Bytes::from_static(bytes))) } else { Err(missing()) }
}

fn served(kind: &'static str, bytes: Bytes) -> Response {
    let headers = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (OPENER_POLICY, "same-origin"),
        // The files of two versions don't fit together, and a console is not opened often.
        (CACHE_CONTROL, "no-store"),
    ];
    (headers.map(|(name, value)| (name, HeaderValue::from_static(value))), bytes).into_response()
}

fn missing() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found", "the console has no such file")
}

/// Returns a path as the value of an HTML attribute.
fn escaped(path: &str) -> String {
    path.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;")
}
