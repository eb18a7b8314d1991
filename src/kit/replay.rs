//! Plays recordings: each call is made again by a component, on what the recorded call read, and its outcome is compared.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use http::{HeaderMap, HeaderValue, header};

use super::fixture::OUTCOMES;
use crate::config::{self, Config};
use crate::http::ingress::cloudevents::{self, Request};
use crate::kit::Workbench;
use crate::model::world::{GroupRead, Missing, Reads};
use crate::policy::Policy;
use crate::policy::call::Arguments;
use crate::recording::compare::{Comparison, compare};
use crate::recording::line::VERSION;
use crate::recording::notation::{self, Outcome};
use crate::registry::SessionHandle;
use crate::session::protocol::V1;
use crate::types::clock::Clock;
use crate::types::delivery::{Message, PolicySetId};
use crate::types::event::{Body, Event, UserId};
use crate::types::json::Json;

/// A line of a recording.
#[derive(Debug)]
pub enum Line {
    /// The first line.
    Header,
    Call(Box<Played>),
    /// Calls that the recording does not have.
    Lost(u64),
    /// The last line: why it ends.
    End(String),
}

/// A recorded call.
#[derive(Debug)]
pub struct Played {
    pub policy: String,
    pub version: String,
    pub at: String,
    /// The digest of the settings with which it was made.
    pub settings: String,
    arguments: Arguments,
    vary: Vec<String>,
    reads: Arc<Reads>,
    outcome: Outcome,
}

/// A component that makes recorded calls.
#[derive(Debug)]
pub struct Player {
    policy: Policy,
}

/// How a call that was made again compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Same,
    Differs(Vec<String>),
    /// The recording lacks this.
    Inconclusive(String),
}

impl Player {
    /// Loads a component as the policy of this name, with the settings of the configuration and all that the component imports.
    ///
    /// # Errors
    /// No server would load it.
    pub fn load(bench: &Workbench, name: &str, file: &Path) -> anyhow::Result<Player> {
        let fit = |reason| anyhow!("{} {reason}", file.display());
        let grants = bench.imported_grants(file).map_err(fit)?;
        let mut config = Config::clone(bench.config());
        let policy = config.policies.remove(name).unwrap_or_default();
        config.policies.insert(name.to_owned(), config::Policy { grants, ..policy });
        let policy = bench.beside(config, Clock::Machine)?.load(name, file).map_err(fit)?;
        Ok(Player { policy })
    }

    /// Returns the digest of its settings.
    pub fn settings(&self) -> &str {
        &self.policy.settings
    }

    /// Makes a call again, and returns what came of it.
    ///
    /// # Errors
    /// The recording lacks something that the call reads.
    pub fn play(&self, call: &Played) -> Result<Outcome, Missing> {
        let answer = self.policy.play(&call.arguments, &call.vary, &call.reads)?;
        Ok(answer.map_or(("unwanted", Json::Word("true".into())), |(answer, _)| notation::outcome(&call.arguments, &answer)))
    }

    /// Compares what comes of a call with what came of it then, or with what comes of it by another component.
    pub fn judge(&self, call: &Played, against: Option<&Player>) -> Verdict {
        let expected = match against {
            None => Ok(call.outcome.clone()),
            Some(other) => other.play(call),
        };
        let outcomes = expected.and_then(|expected| Ok((expected, self.play(call)?)));
        let (expected, actual) = match outcomes {
            Ok(outcomes) => outcomes,
            Err(missing) => return Verdict::Inconclusive(missing.to_string()),
        };
        match compare("", &expected, &actual, &call.reads) {
            Comparison::Same => Verdict::Same,
            Comparison::Differs(lines) => Verdict::Differs(lines.into_iter().map(|(_, line)| line).collect()),
            Comparison::Unknown(group) => Verdict::Inconclusive(format!("the members of {group:?} are not known")),
        }
    }
}

impl Played {
    /// Returns what the call was about: its function and the type of its event.
    pub fn what(&self) -> String {
        let event_type = self.arguments.event_type().map_or(String::new(), |event_type| format!(" {event_type}"));
        format!("{}{event_type}", self.arguments.function().name())
    }
}

/// Reads one line of a recording.
///
/// # Errors
/// It is not a line of a recording, or of one in a later form.
pub fn read(line: &str, config: &Config) -> anyhow::Result<Line> {
    let json = Json::parse(line)?;
    if let Some(version) = json.get("signalpost_recording") {
        let version: u32 = version.read().context("signalpost_recording")?;
        if version != VERSION {
            bail!("this is a recording of form {version}, and this version of signalpost reads {VERSION}");
        }
        return Ok(Line::Header);
    }
    if let Some(lost) = json.get("lost") {
        return Ok(Line::Lost(lost.read()?));
    }
    if let Some(end) = json.get("end") {
        return Ok(Line::End(text(end, "reason")?));
    }
    call(&json, config).map(|played| Line::Call(Box::new(played)))
}

/// Returns a line of a recording as a fixture to keep: without what only a recording says, and with the policy's settings if they are known.
///
/// # Errors
/// It is not a recorded call.
pub fn pick(line: &str, config: &Config) -> anyhow::Result<String> {
    let mut json = Json::parse(line)?;
    let policy = text(json.get("recorded").context("the line is not a call")?, "policy")?;
    json.remove("recorded");
    if let Some(settings) = config.policies.get(&policy).map(|policy| &policy.settings).filter(|settings| !settings.is_empty()) {
        json.set("settings", Json::parse(&serde_json::to_string(settings)?)?);
    }
    Ok(json.pretty())
}

fn call(json: &Json, config: &Config) -> anyhow::Result<Played> {
    let recorded = json.get("recorded").context("this line is not of a recording")?;
    let Some(Json::Array(steps)) = json.get("steps") else { bail!("`steps` is not a list") };
    let [step] = steps.as_slice() else { bail!("a recorded call has one step") };
    let host = json.get("host").cloned().unwrap_or(Json::Object(Vec::new()));
    let outcome = OUTCOMES.iter().find_map(|name| Some((*name, step.get(name)?.clone()))).context("the step has no outcome")?;
    Ok(Played {
        policy: text(recorded, "policy")?,
        version: text(recorded, "version")?,
        at: text(recorded, "at")?,
        settings: text(recorded, "settings")?,
        arguments: arguments(step, &host, config)?,
        vary: recorded.get("vary").map_or(Ok(Vec::new()), Json::read).context("vary")?,
        reads: Arc::new(reads(json, recorded, &host).context("host")?),
        outcome,
    })
}

fn arguments(step: &Json, host: &Json, config: &Config) -> anyhow::Result<Arguments> {
    if let Some(json) = step.get("event") {
        return Ok(Arguments::Route(Arc::new(event(json, config).context("event")?)));
    }
    if let Some(format) = step.get("format") {
        let body = member(format, "message")?.to_body().context("message")?;
        let reader: std::collections::BTreeMap<String, String> = format.get("reader").map_or(Ok(Default::default()), Json::read)?;
        let message = Message::new(text(format, "id")?, text(format, "event_type")?, body, PolicySetId::default());
        let body = message.body.clone();
        return Ok(Arguments::Format(Arc::new(message), body, reader.into_iter().collect()));
    }
    if let Some(opened) = step.get("opened") {
        return Ok(Arguments::Opened(session(opened).context("opened")?));
    }
    let own = |step: &Json| -> anyhow::Result<Arc<SessionHandle>> {
        let id = text(step, "session")?;
        let Some(Json::Array(sessions)) = host.get("sessions") else { bail!("host.sessions is not a list") };
        let is_own = |session: &&Json| text(session, "id").is_ok_and(|known| known == id);
        session(sessions.iter().find(is_own).with_context(|| format!("host.sessions has no {id:?}"))?)
    };
    if let Some(received) = step.get("received") {
        return Ok(Arguments::Received(own(received)?, member(received, "message")?.to_body()?));
    }
    let closed = step.get("closed").context("the step does nothing")?;
    Ok(Arguments::Closed(own(closed)?, member(closed, "code")?.read()?))
}

fn event(json: &Json, config: &Config) -> anyhow::Result<Event> {
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/cloudevents+json"))]);
    match cloudevents::read(&headers, json.to_string().as_bytes(), &config.events) {
        Ok(Request::One(parsed)) => Ok(parsed.event),
        Ok(Request::Batch(_)) => bail!("it is a batch"),
        Err(problem) => bail!("{}", problem.detail),
    }
}

fn session(json: &Json) -> anyhow::Result<Arc<SessionHandle>> {
    let subprotocol = json.get("subprotocol").map(|_| V1);
    let attributes: serde_json::Map<String, serde_json::Value> = json.get("attributes").map_or(Ok(Default::default()), Json::read)?;
    let attributes = attributes.into_iter().map(|(name, value)| (name, value.as_str().unwrap_or_default().to_owned())).collect();
    let mut handle = SessionHandle::new(user(&text(json, "user")?)?, subprotocol, subprotocol.is_some(), attributes);
    if let Some(handle) = Arc::get_mut(&mut handle) {
        handle.id = text(json, "id")?.into();
    }
    Ok(handle)
}

fn reads(json: &Json, recorded: &Json, host: &Json) -> anyhow::Result<Reads> {
    let now: jiff::Timestamp = text(json, "now")?.parse().context("now")?;
    let mut reads = Reads {
        now_ms: u64::try_from(now.as_millisecond()).context("`now` is before 1970")?,
        presence: recorded.get("presence").map_or(Ok(Default::default()), Json::read).context("presence")?,
        is_full: recorded.get("full").is_some(),
        ..Reads::default()
    };
    for (key, value) in members(host, "state") {
        let bytes = match (value, value.to_body()?) {
            (Json::String(text), _) => Some(text.clone().into_bytes().into()),
            (_, Body::Binary(bytes)) => Some(bytes.into()),
            (value, _) if *value == Json::null() => None,
            _ => bail!("state: {key}: a value is a string, null, or {{ \"$base64\": … }}"),
        };
        reads.state.insert(key.clone(), bytes);
    }
    for (group, users) in members(host, "groups") {
        let users: Vec<String> = users.read().context("groups")?;
        let members = users.iter().map(|id| user(id)).collect::<anyhow::Result<Vec<UserId>>>()?;
        reads.groups.insert(group.clone(), GroupRead { size: members.len(), members, ..GroupRead::default() });
    }
    for (group, part) in members(recorded, "groups") {
        let read = reads.groups.get_mut(group).with_context(|| format!("groups has no {group:?}"))?;
        read.size = member(part, "size")?.read()?;
        read.asked = part.get("asked").map_or(Ok(Default::default()), Json::read)?;
    }
    Ok(reads)
}

fn members<'a>(json: &'a Json, name: &str) -> &'a [(String, Json)] {
    match json.get(name) {
        Some(Json::Object(members)) => members,
        _ => &[],
    }
}

fn member<'a>(json: &'a Json, name: &str) -> anyhow::Result<&'a Json> {
    json.get(name).with_context(|| format!("`{name}` is missing"))
}

fn text(json: &Json, name: &str) -> anyhow::Result<String> {
    member(json, name)?.read().with_context(|| format!("`{name}` is not a text"))
}

fn user(id: &str) -> anyhow::Result<UserId> {
    UserId::new(id, usize::MAX).map_err(anyhow::Error::msg)
}
