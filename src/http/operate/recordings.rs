//! `POST {base}/policies/{name}/record`: the calls of a policy while they are made, one on a line, so that another version can be tried on them.
//!
//! A recording holds what users sent. So it needs the scope `operate`, the log says who made it, and it ends by itself.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::live::{BUFFERING, stops};
use super::{Operate, query};
use crate::net::feed::TooMany;
use crate::net::problem::Problem;
use crate::policy::taps::{Recorded, Recorder};
use crate::recording::line;
use crate::recording::redact::Redaction;
use crate::types::json::Json;

/// How often an empty line is sent while nothing happens: a client that has left is only noticed by writing to it.
const EMPTY_LINE_INTERVAL: Duration = Duration::from_secs(1);

/// Calls that are recorded if the query doesn't say how many, and minutes.
const CALLS: u64 = 1000;
const MINUTES: u32 = 5;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordQuery {
    count: Option<u64>,
    minutes: Option<u32>,
    /// Several have commas between them.
    redact: Option<String>,
}

/// A recording under way.
struct Recording {
    recorder: Recorder,
    policy: Arc<str>,
    redaction: Redaction,
    /// A line that is ready to be sent.
    ready: Option<Json>,
    calls: u64,
    calls_max: u64,
    lost: u64,
    until: Instant,
    stopping: watch::Receiver<bool>,
    is_over: bool,
}

/// `POST {base}/policies/{name}/record`: a stream of lines until there are `count` calls, `minutes` have passed, the client leaves, or the
/// server stops.
///
/// # Errors
/// The query is invalid, there is no such policy, or there are too many recordings.
pub async fn record(
    State(operate): State<Arc<Operate>>,
    headers: HeaderMap,
    name: Result<Path<String>, PathRejection>,
    asked: Result<Query<RecordQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let policy = super::policy_of(&operate, name)?;
    let limits = &operate.node.config.recordings;
    let asked = query::read(asked, "a recording takes count, minutes and redact")?;
    let bound = |what: &str, setting: &str, number: u64, max: u64| {
        let detail = format!("{what} is a number from 1 to {max} (recordings.{setting}), and not {number}");
        (1..=max).contains(&number).then_some(number).ok_or_else(|| Problem::new(StatusCode::BAD_REQUEST, "query", detail))
    };
    let calls_max = bound("count", "calls_max", asked.count.unwrap_or(CALLS.min(limits.calls_max.get())), limits.calls_max.get())?;
    let minutes_max = limits.minutes_max.get();
    let minutes = bound("minutes", "minutes_max", asked.minutes.unwrap_or(MINUTES.min(minutes_max)).into(), minutes_max.into())?;
    let redact = asked.redact.as_deref().unwrap_or_default().split(',').map(str::trim).filter(|path| !path.is_empty());
    let redact: Vec<String> = redact.map(str::to_owned).collect();
    let redaction = Redaction::parse(&redact).map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "query", error.to_string()))?;
    let recorder = operate.node.loader.taps().record(&policy.name).map_err(|TooMany(max)| {
        let detail = format!("{max} recordings are under way (recordings.recorders_max); end one of them, or come back later");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_recordings", detail)
    })?;
    let key = operate.auth.name_of_key(&headers);
    tracing::info!(policy = &*policy.name, key, calls_max, minutes, redacted = redact.join(","), "calls are being recorded");
    let recording = Recording {
        recorder,
        policy: policy.name.clone(),
        redaction,
        ready: Some(line::header(&policy.name, &redact)),
        calls: 0,
        calls_max,
        lost: 0,
        until: Instant::now() + Duration::from_secs(60 * minutes),
        stopping: operate.stopping.clone(),
        is_over: false,
    };
    let lines = Body::from_stream(stream::unfold(recording, Recording::next));
    let text = HeaderValue::from_static;
    let headers = [(CONTENT_TYPE, text("application/x-ndjson")), (CACHE_CONTROL, text("no-store, no-transform")), (BUFFERING, text("no"))];
    Ok((headers, lines).into_response())
}

impl Recording {
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Recording)> {
        if let Some(line) = self.ready.take() {
            return Some((Ok(Bytes::from(format!("{line}\n"))), self));
        }
        if self.is_over {
            return None;
        }
        let line = if self.calls >= self.calls_max {
            Some(self.end("count"))
        } else {
            tokio::select! {
                () = stops(&mut self.stopping) => Some(self.end("the server is stopping")),
                () = sleep_until(self.until) => Some(self.end("minutes")),
                recorded = self.recorder.next() => Some(self.line(recorded)),
                () = sleep(EMPTY_LINE_INTERVAL) => None,
            }
        };
        let text = line.map_or_else(|| "\n".to_owned(), |line| format!("{line}\n"));
        Some((Ok(Bytes::from(text)), self))
    }

    fn line(&mut self, recorded: Recorded) -> Json {
        match recorded {
            Recorded::Call(call) => {
                self.calls += 1;
                self.redaction.apply(line::call(&call))
            }
            Recorded::Lost(count) => {
                self.lost += count;
                line::lost(count)
            }
        }
    }

    fn end(&mut self, reason: &str) -> Json {
        self.is_over = true;
        line::end(reason, self.calls, self.lost)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        tracing::info!(policy = &*self.policy, calls = self.calls, lost = self.lost, "a recording has ended");
    }
}
