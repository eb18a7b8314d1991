//! Calls as values: they are recorded, repeated, and played again on what they read then.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::Policy;
use crate::model::world::{Missing, Reads, World};
use crate::policy::call::{Arguments, Call, CallError, CallResult, Function, Output};
use crate::policy::contract::Role;
use crate::policy::taps::Tapped;

impl Function {
    fn role(self) -> Role {
        match self {
            Function::Route => Role::Routing,
            Function::Format => Role::Formatting,
            Function::Opened | Function::Received | Function::Closed => Role::Sessions,
        }
    }
}

impl Policy {
    /// Makes a call again, in this world.
    ///
    /// # Errors
    /// Those of the function.
    pub fn repeat(&self, arguments: &Arguments, world: &mut World) -> CallResult<Output> {
        match arguments {
            Arguments::Route(event) => self.route(event, world).map(Output::Decided),
            Arguments::Format(message, body, reader) => {
                let reader: Vec<(&str, &str)> = reader.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                self.format(message, body, &reader, world).map(Output::Formatted)
            }
            Arguments::Opened(handle) => self.opened(handle, world).map(|response| Output::Responded(Some(response))),
            Arguments::Received(handle, body) => self.received(handle, body, world).map(Output::Responded),
            Arguments::Closed(handle, code) => self.closed(handle, *code, world).map(|response| Output::Responded(Some(response))),
        }
    }

    /// Begins to note what the next call reads, if it is to be recorded. Then the caller records it.
    pub fn tap(&self, world: &mut World) -> Option<Tapped> {
        let taps = &self.instances.shared.taps;
        if !taps.are_there() || !world.is_live() {
            return None;
        }
        let tapped = taps.of(&self.name)?;
        world.note();
        Some(tapped)
    }

    /// Records a call that was tapped, once the world's changes are committed: a call that is planned again is recorded once.
    pub fn record(&self, tapped: Tapped, world: &mut World, arguments: Arguments, answer: CallResult<Output>, took: Duration) {
        let Some(reads) = world.noted().filter(|_| answer != Err(CallError::CircuitOpen)) else { return };
        let call = Call {
            at: SystemTime::now(),
            policy: self.name.clone(),
            version: self.version.clone(),
            digest: self.digest.clone(),
            settings: self.settings.clone(),
            vary: if arguments.function() == Function::Format { self.vary.clone() } else { Vec::new() },
            arguments,
            reads: Arc::new(reads),
            answer,
            took,
        };
        let taps = self.instances.shared.taps.clone();
        world.once_committed(move || taps.show(tapped, call));
    }

    /// Makes a recorded call. `vary`: the attributes of readers that are known. Returns `None` if a server would not call this policy for it,
    /// and how long the call took.
    ///
    /// # Errors
    /// The recording lacks something that the call reads.
    pub fn play(
        &self,
        arguments: &Arguments,
        vary: &[String],
        reads: &Arc<Reads>,
    ) -> Result<Option<(CallResult<Output>, Duration)>, Missing> {
        let is_wanted = arguments.event_type().is_none_or(|event_type| self.wants(event_type));
        if !self.has(arguments.function().role()) || !is_wanted {
            return Ok(None);
        }
        let narrowed;
        let arguments = match arguments {
            Arguments::Format(message, body, reader) => {
                if let Some(unknown) = self.vary.iter().find(|name| !vary.contains(name)) {
                    return Err(Missing::Attribute(unknown.clone()));
                }
                let reader = reader.iter().filter(|(name, _)| self.vary.contains(name)).cloned().collect();
                narrowed = Arguments::Format(message.clone(), body.clone(), reader);
                &narrowed
            }
            other => other,
        };
        let mut world = World::tape(reads, &self.name);
        let started = Instant::now();
        let answer = self.repeat(arguments, &mut world);
        let took = started.elapsed();
        match world.missing() {
            None => Ok(Some((answer, took))),
            Some(missing) => Err(missing.clone()),
        }
    }
}
