//! A fixture's calls without WebAssembly, timed: what a call costs before the sandbox. `signalpost plugin bench` asks for it, by a test
//! that `export!` brings along, of a build for this machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::testing::Host;
use crate::{Attributes, Body, Decision, Event, Message, Policy, Reader, Refusal, Response, Session, export};

/// The variable that names the file with the question.
const QUESTION: &str = "SIGNALPOST_BASELINE";

/// Time that is spent on one step at most.
const STEP_TIME_MAX: Duration = Duration::from_secs(5);

/// How a policy is called, by the roles that it has.
pub enum Role<P> {
    Routing(fn(&P, &Event) -> Result<Decision, Refusal>),
    Formatting(fn(&P, Message, &Reader) -> Result<Option<Body>, Refusal>),
    Sessions(fn(&P, &Session, Body) -> Result<Option<Response>, Refusal>),
}

/// The host as it is after the fixture, and what is called then.
#[derive(Deserialize)]
struct Question {
    settings: String,
    now_ms: u64,
    groups: BTreeMap<String, Vec<String>>,
    state: Vec<(String, Vec<u8>)>,
    /// The number of each user's.
    sessions: BTreeMap<String, u32>,
    steps: Vec<Step>,
    /// The number of calls of each step.
    calls: usize,
    answer: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Step {
    Route(Published),
    Format { event_type: String, body: Payload, reader: Attributes },
    Received { session: Speaker, body: Payload },
}

#[derive(Deserialize)]
struct Published {
    id: String,
    source: String,
    event_type: String,
    subject: Option<String>,
    time: Option<String>,
    content_type: String,
    extensions: Attributes,
    data: Option<Payload>,
}

#[derive(Deserialize)]
struct Speaker {
    id: String,
    user: String,
    subprotocol: Option<String>,
    attributes: Attributes,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Payload {
    Json(String),
    Text(String),
    Binary(Vec<u8>),
}

#[derive(Serialize)]
struct Timed {
    p50_ns: u64,
    p99_ns: u64,
}

/// Answers the question, if there is one.
pub fn run<P: Policy>(roles: &[Role<P>]) {
    let Some(file) = std::env::var_os(QUESTION) else { return };
    let question = fs::read(file).expect("the file with the question");
    let Question { settings, now_ms, groups, state, sessions, steps, calls, answer } =
        serde_json::from_slice(&question).expect("a question of this version of the SDK");
    let policy: P = export::read("the policy", &settings).expect("settings that the component takes");
    let host = Host::new();
    host.set_now_ms(now_ms);
    groups.iter().for_each(|(group, users)| host.join(group, &users.iter().map(String::as_str).collect::<Vec<_>>()));
    state.iter().for_each(|(key, value)| host.set_state(key, value));
    sessions.iter().for_each(|(user, count)| host.connect(user, *count));
    let timed: Vec<Option<Timed>> = steps.into_iter().map(|step| time(&policy, roles, step, calls)).collect();
    fs::write(answer, serde_json::to_vec(&timed).expect("numbers are JSON")).expect("a place for the answer");
}

/// `None` where the policy has no such role.
fn time<P: Policy>(policy: &P, roles: &[Role<P>], step: Step, calls: usize) -> Option<Timed> {
    match step {
        Step::Route(published) => {
            let route = roles.iter().find_map(|role| if let Role::Routing(route) = role { Some(route) } else { None })?;
            let event = Event::from(published);
            Some(repeat(calls, || (), |()| drop(route(policy, &event))))
        }
        Step::Format { event_type, body, reader } => {
            let format = roles.iter().find_map(|role| if let Role::Formatting(format) = role { Some(format) } else { None })?;
            let message = Message { id: "event-0".to_owned(), event_type, body: body.into() };
            let reader = Reader(reader);
            Some(repeat(calls, || message.clone(), |message| drop(format(policy, message, &reader))))
        }
        Step::Received { session, body } => {
            let received = roles.iter().find_map(|role| if let Role::Sessions(received) = role { Some(received) } else { None })?;
            let (session, body) = (Session::from(session), Body::from(body));
            Some(repeat(calls, || body.clone(), |body| drop(received(policy, &session, body))))
        }
    }
}

/// Percentiles by the nearest rank. What a call consumes is made before its time begins.
fn repeat<I>(calls: usize, mut prepare: impl FnMut() -> I, mut call: impl FnMut(I)) -> Timed {
    let (since, mut times) = (Instant::now(), Vec::new());
    while times.len() < calls.max(1) && (times.is_empty() || since.elapsed() < STEP_TIME_MAX) {
        let input = prepare();
        let started = Instant::now();
        call(input);
        times.push(started.elapsed());
    }
    times.sort();
    let percentile = |percent: usize| times[(times.len() * percent).div_ceil(100).saturating_sub(1)].as_nanos() as u64;
    Timed { p50_ns: percentile(50), p99_ns: percentile(99) }
}

impl From<Published> for Event {
    fn from(published: Published) -> Event {
        let Published { id, source, event_type, subject, time, content_type, extensions, data } = published;
        Event { id, source, type_: event_type, subject, time, content_type, extensions, data: data.map(Body::from) }
    }
}

impl From<Speaker> for Session {
    fn from(Speaker { id, user, subprotocol, attributes }: Speaker) -> Session {
        Session { id, user, subprotocol, attributes }
    }
}

impl From<Payload> for Body {
    fn from(payload: Payload) -> Body {
        match payload {
            Payload::Json(text) => Body::Json(text),
            Payload::Text(text) => Body::Text(text),
            Payload::Binary(bytes) => Body::Binary(bytes),
        }
    }
}
