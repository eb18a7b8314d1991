//! The HTTP client of the tests: reqwest, whose every answer is checked.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue, Method};
use http_body_util::BodyExt as _;
use memchr::memmem;
use reqwest::{Body, Response};
use serde::Serialize;

use super::{Channel, Head};

#[derive(Clone, Default)]
pub struct Http(reqwest::Client);

/// A request that is being made.
pub struct Request(reqwest::RequestBuilder);

impl Http {
    pub fn new() -> Http {
        Http::default()
    }

    pub fn request(&self, method: Method, url: impl reqwest::IntoUrl) -> Request {
        Request(self.0.request(method, url))
    }

    pub fn get(&self, url: impl reqwest::IntoUrl) -> Request {
        self.request(Method::GET, url)
    }

    pub fn head(&self, url: impl reqwest::IntoUrl) -> Request {
        self.request(Method::HEAD, url)
    }

    pub fn post(&self, url: impl reqwest::IntoUrl) -> Request {
        self.request(Method::POST, url)
    }

    pub fn delete(&self, url: impl reqwest::IntoUrl) -> Request {
        self.request(Method::DELETE, url)
    }
}

impl Request {
    pub fn header<N, V>(self, name: N, value: V) -> Request
    where
        HeaderName: TryFrom<N>,
        <HeaderName as TryFrom<N>>::Error: Into<http::Error>,
        HeaderValue: TryFrom<V>,
        <HeaderValue as TryFrom<V>>::Error: Into<http::Error>,
    {
        Request(self.0.header(name, value))
    }

    pub fn bearer_auth(self, token: impl std::fmt::Display) -> Request {
        Request(self.0.bearer_auth(token))
    }

    pub fn body(self, body: impl Into<Body>) -> Request {
        Request(self.0.body(body))
    }

    pub fn json(self, value: &(impl Serialize + ?Sized)) -> Request {
        Request(self.0.json(value))
    }

    /// Sends it, and checks the answer. That of a stream is checked as it comes.
    pub async fn send(self) -> reqwest::Result<Response> {
        let (client, request) = self.0.build_split();
        let request = request?;
        let method = request.method().clone();
        let response = client.execute(request).await?;
        // After redirections.
        let path = response.url().path().to_owned();
        if response.status().is_success() {
            let names = response.url().query_pairs().map(|(name, _)| name.into_owned());
            super::asked(&method, &path, names);
        }
        let (parts, body) = http::Response::<Body>::from(response).into_parts();
        let head = Head { status: parts.status, headers: &parts.headers };
        let parts_of = match head.media_type() {
            "text/event-stream" if path.ends_with("/live") => Some(Parts::Events(Channel::Live)),
            "text/event-stream" => Some(Parts::Events(Channel::Stream)),
            "application/x-ndjson" => Some(Parts::Lines),
            _ => None,
        };
        if let Some(kind) = parts_of {
            super::answer(&method, &path, &head, None);
            let mut stream = Stream { kind, bytes: Vec::new() };
            let body = body.map_frame(move |frame| {
                frame.data_ref().into_iter().for_each(|bytes| stream.take(bytes));
                frame
            });
            return Ok(http::Response::from_parts(parts, Body::wrap(body)).into());
        }
        let body = body.collect().await?.to_bytes();
        super::answer(&method, &path, &head, Some(&body));
        Ok(http::Response::from_parts(parts, body).into())
    }
}

/// What a body without an end is made of.
#[derive(Clone, Copy)]
enum Parts {
    /// Server-sent events.
    Events(Channel),
    /// Lines of JSON.
    Lines,
}

/// A body without an end.
struct Stream {
    kind: Parts,
    /// What came and was not a whole part yet.
    bytes: Vec<u8>,
}

impl Stream {
    fn take(&mut self, bytes: &[u8]) {
        let end: &[u8] = if matches!(self.kind, Parts::Lines) { b"\n" } else { b"\n\n" };
        // An event of a megabyte comes in a hundred pieces: each is searched once, with the last byte before it.
        let mut from = self.bytes.len().saturating_sub(end.len() - 1);
        self.bytes.extend_from_slice(bytes);
        while let Some(at) = memmem::find(&self.bytes[from..], end) {
            let part: Vec<u8> = self.bytes.drain(..from + at + end.len()).collect();
            from = 0;
            let part = std::str::from_utf8(&part).unwrap();
            match self.kind {
                Parts::Lines => super::line(part),
                Parts::Events(channel) => {
                    let lines = part.lines().filter(|line| !line.is_empty() && !line.starts_with(':'));
                    let fields = lines.map(|line| line.split_once(": ").unwrap_or((line, "")));
                    channel.event(&fields.collect::<BTreeMap<&str, &str>>());
                }
            }
        }
    }
}
