//! Makes recorded calls again, on what they read then.

use std::sync::Arc;

use super::Policy;
use crate::model::world::{Missing, Reads, World};
use crate::policy::call::{Answer, Arguments, Function};
use crate::policy::contract::Role;

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
    /// Makes a recorded call. `vary`: the attributes of readers that are known. Returns `None` if a server would not call this policy for it.
    ///
    /// # Errors
    /// The recording lacks something that the call reads.
    pub fn play(&self, arguments: &Arguments, vary: &[String], reads: &Arc<Reads>) -> Result<Option<Answer>, Missing> {
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
        let answer = self.repeat(arguments, &mut world);
        match world.missing() {
            None => Ok(Some(answer)),
            Some(missing) => Err(missing.clone()),
        }
    }
}
