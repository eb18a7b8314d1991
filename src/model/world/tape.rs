//! Recorded reads. While a call is recorded, what it reads first of each thing is noted. A tape answers the same reads again: what was not
//! read then is missing, and never guessed.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::config;
use crate::model::groups::Groups;
use crate::model::state::{States, Value};
use crate::types::event::UserId;

/// Members of a group that are noted at least. A larger group is known by its first members, its size, and the users who were asked for.
const MEMBERS_NOTED: usize = 1000;

/// What one call read: each thing as it was when the call first read it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// The time of the call, in milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// Values of the policy's state; `None` for a key that was not there.
    pub state: BTreeMap<String, Option<Arc<[u8]>>>,
    pub groups: BTreeMap<String, GroupRead>,
    /// The number of each user's open sessions.
    pub presence: BTreeMap<String, usize>,
    /// Whether a bound refused something that the call wrote. How full everything was is not recorded.
    pub is_full: bool,
}

/// What was read of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupRead {
    /// The first members, in the order in which they joined.
    pub members: Vec<UserId>,
    pub size: usize,
    /// Whether these users were members, if not all members are known.
    pub asked: BTreeMap<String, bool>,
}

impl GroupRead {
    pub fn is_whole(&self) -> bool {
        self.members.len() == self.size
    }
}

/// What a call would have had to read, and the recording does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    State(String),
    Group(String),
    Presence(String),
    /// A write of this key, or the first of a call in which a bound refused one.
    Room(String),
    /// An attribute of the reader that the recorded call did not get.
    Attribute(String),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Missing::State(key) => write!(f, "read state {key:?}"),
            Missing::Group(group) => write!(f, "read group {group:?}"),
            Missing::Presence(user) => write!(f, "read presence of {user:?}"),
            Missing::Attribute(name) => write!(f, "read the reader's {name:?}"),
            Missing::Room(key) => write!(f, "write state {key:?}, when a bound refused a write"),
        }
    }
}

/// Watches the reads of a call.
#[derive(Debug)]
pub enum Watch {
    /// Notes them.
    Notes(Reads),
    /// Compares them with what was recorded.
    Tape { reads: Arc<Reads>, missing: Option<Missing> },
}

/// What a tape knows of state and groups, in the form that overlays read.
#[derive(Debug)]
pub struct Known {
    pub states: States,
    pub groups: Groups,
}

impl Known {
    /// Returns what was read, as the state of this policy.
    pub fn of(reads: &Reads, policy: &Arc<str>) -> Known {
        let mut known = Known { states: States::default(), groups: Groups::new(unlimited()) };
        for (stamp, (key, bytes)) in (1..).zip(&reads.state) {
            let value = bytes.as_ref().map(|bytes| Value { bytes: bytes.clone(), expires_ms: None });
            known.states.write(policy, key, value, stamp);
        }
        let members = reads.groups.iter().flat_map(|(group, read)| read.members.iter().map(move |member| (group, member)));
        for (stamp, (group, member)) in (1..).zip(members) {
            known.groups.join(group, member.clone(), policy, stamp);
        }
        known
    }
}

/// Returns no limits: what was read kept them.
fn unlimited() -> config::Groups {
    let max = NonZeroUsize::MAX;
    config::Groups { name_bytes_max: max, groups_max: max, members_max: max, memberships_max: max }
}

impl Watch {
    /// Watches a read of the policy's state. `value`: returns what the call reads.
    pub fn state(&mut self, key: &str, value: impl FnOnce() -> Option<Arc<[u8]>>) {
        match self {
            Watch::Notes(reads) => {
                if !reads.state.contains_key(key) {
                    reads.state.insert(key.to_owned(), value());
                }
            }
            Watch::Tape { reads, missing } => {
                if !reads.state.contains_key(key) {
                    missing.get_or_insert_with(|| Missing::State(key.to_owned()));
                }
            }
        }
    }

    /// Watches a write of the policy's state. `is_refused`: whether a bound refused it.
    pub fn write(&mut self, key: &str, is_refused: bool) {
        match self {
            Watch::Notes(reads) => reads.is_full |= is_refused,
            Watch::Tape { reads, missing } => {
                if reads.is_full {
                    missing.get_or_insert_with(|| Missing::Room(key.to_owned()));
                }
            }
        }
    }

    /// Watches a look at a group. `first`: returns the first members, that many at least, and the group's size.
    pub fn group(&mut self, group: &str, most: usize, first: impl FnOnce(usize) -> (Vec<UserId>, usize)) {
        let most = most.max(MEMBERS_NOTED);
        match self {
            Watch::Notes(reads) => {
                let is_enough = |read: &GroupRead| read.is_whole() || read.members.len() >= most;
                if !reads.groups.get(group).is_some_and(is_enough) {
                    let (members, size) = first(most);
                    let read = reads.groups.entry(group.to_owned()).or_default();
                    (read.members, read.size) = (members, size);
                }
            }
            Watch::Tape { reads, missing } => {
                if !reads.groups.contains_key(group) {
                    missing.get_or_insert_with(|| Missing::Group(group.to_owned()));
                }
            }
        }
    }

    /// Watches the question whether a user is in a group that has been looked at, and returns the answer.
    pub fn contains(&mut self, group: &str, user: &str, is_member: bool) -> bool {
        match self {
            Watch::Notes(reads) => {
                if let Some(read) = reads.groups.get_mut(group).filter(|read| !read.is_whole()) {
                    read.asked.insert(user.to_owned(), is_member);
                }
                is_member
            }
            Watch::Tape { reads, missing } => {
                let Some(read) = reads.groups.get(group).filter(|read| !read.is_whole() && !is_member) else { return is_member };
                read.asked.get(user).copied().unwrap_or_else(|| {
                    missing.get_or_insert_with(|| Missing::Group(group.to_owned()));
                    false
                })
            }
        }
    }

    /// Watches the question for a group's size, and returns the answer.
    pub fn size(&self, group: &str, size: usize) -> usize {
        match self {
            Watch::Notes(_) => size,
            Watch::Tape { reads, .. } => reads.groups.get(group).filter(|read| !read.is_whole()).map_or(size, |read| read.size),
        }
    }

    /// Watches how many of a group's members were found. A tape must have as many as were asked for.
    pub fn found(&mut self, group: &str, found: usize, most: usize) {
        if let Watch::Tape { reads, missing } = self
            && found < most
            && reads.groups.get(group).is_some_and(|read| !read.is_whole() && found < read.size)
        {
            missing.get_or_insert_with(|| Missing::Group(group.to_owned()));
        }
    }

    /// Watches the question for the number of a user's sessions, and returns the answer.
    pub fn sessions(&mut self, user: &str, count: usize) -> usize {
        match self {
            Watch::Notes(reads) => *reads.presence.entry(user.to_owned()).or_insert(count),
            Watch::Tape { reads, missing } => reads.presence.get(user).copied().unwrap_or_else(|| {
                missing.get_or_insert_with(|| Missing::Presence(user.to_owned()));
                0
            }),
        }
    }
}
