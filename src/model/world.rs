//! What a guest sees while a request is planned: the model, overlaid with the changes of this request. Only `Model::commit` changes the
//! model, if what the request read has not changed.
//!
//! A world may also be a tape: then a guest sees what an earlier call has read, as it was recorded, and the call's changes go nowhere.
//!
//! A policy call is a transaction: the writes of a call are dropped if it faults, and the writes of a request if its plan is.

mod below;
mod membership;
mod tape;
mod values;
mod writes;

use std::cell::OnceCell;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use indexmap::IndexSet;

use super::Model;
use super::groups::{self, Groups};
use super::record::Changes;
use crate::metrics::Metrics;
use crate::net::turns::aside_if;
use crate::types::event::UserId;
use below::Below;
use membership::GroupChanges;
pub use tape::{GroupRead, Missing, Reads};
use tape::{Known, Watch};
pub use writes::StateError;
use writes::Writes;

/// The model as one request sees it.
#[derive(Debug)]
pub struct World {
    below: Below,
    is_live: bool,
    now_ms: u64,
    writes: Writes,
    groups: GroupChanges,
    counts: Vec<Count>,
    /// How many of `counts` are from earlier calls.
    counts_before: usize,
    /// All users with an open session, collected when a delivery first wants them.
    everyone: OnceCell<IndexSet<UserId>>,
    /// Whether a delivery has found its recipients in a group.
    has_looked_at_groups: bool,
    /// How many recipients each policy has in this request.
    told: Vec<(Arc<str>, usize)>,
    /// Watches the reads of a call that is recorded, or played again. Others cost one look at this.
    watch: Option<Box<Watch>>,
    /// What is done once the changes are committed.
    deferred: Option<Box<Deferred>>,
}

/// Work for after a commit.
#[derive(Default)]
struct Deferred(Vec<Box<dyn FnOnce() + Send>>);

impl fmt::Debug for Deferred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Deferred").field(&self.0.len()).finish()
    }
}

/// A policy's request to raise one of its counters.
#[derive(Debug)]
struct Count {
    policy: Arc<str>,
    name: String,
    by: u64,
    /// How many counters the policy may have.
    names_max: usize,
}

/// A bound of the server or of the policy's share is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverQuota;

/// What the request read has changed since, or what it wrote no longer fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict;

impl World {
    /// Returns a world whose changes may be committed, and whose calls are counted.
    pub fn live(model: &Arc<Model>) -> World {
        World::new(Below::Model(model.clone()), true)
    }

    /// Returns a world for a dry run: its calls affect neither breakers nor counters, and its changes are never committed.
    pub fn dry(model: &Arc<Model>) -> World {
        World::new(Below::Model(model.clone()), false)
    }

    /// Returns a world in which a call of this policy sees what an earlier call has read, and nothing else. Its calls affect neither breakers
    /// nor counters, and its changes are never committed.
    pub fn tape(reads: &Arc<Reads>, policy: &Arc<str>) -> World {
        let watch = Watch::Tape { reads: reads.clone(), missing: None };
        World { watch: Some(Box::new(watch)), ..World::new(Below::Tape(Box::new(Known::of(reads, policy))), false) }
    }

    fn new(below: Below, is_live: bool) -> World {
        World {
            below,
            is_live,
            now_ms: 0,
            writes: Writes::default(),
            groups: GroupChanges::default(),
            counts: Vec::new(),
            counts_before: 0,
            everyone: OnceCell::new(),
            has_looked_at_groups: false,
            told: Vec::new(),
            watch: None,
            deferred: None,
        }
    }

    /// Notes what the next call reads first of each thing.
    pub fn note(&mut self) {
        self.watch = Some(Box::new(Watch::Notes(Reads::default())));
    }

    /// Returns what the call read since [`World::note`], and stops noting.
    pub fn noted(&mut self) -> Option<Reads> {
        match *self.watch.take_if(|watch| matches!(**watch, Watch::Notes(_)))? {
            Watch::Notes(reads) => Some(reads),
            Watch::Tape { .. } => None,
        }
    }

    /// Returns whether it is a tape.
    pub fn is_tape(&self) -> bool {
        matches!(self.below, Below::Tape(_))
    }

    /// Returns what a call wanted to read first that the tape does not have. Then its answer is worthless.
    pub fn missing(&self) -> Option<&Missing> {
        match self.watch.as_deref() {
            Some(Watch::Tape { missing, .. }) => missing.as_ref(),
            _ => None,
        }
    }

    /// Does something once the changes of this world are committed. A world that is planned again, or dry, never does it.
    pub fn once_committed(&mut self, work: impl FnOnce() + Send + 'static) {
        self.deferred.get_or_insert_default().0.push(Box::new(work));
    }

    /// Does what was left for after the commit, and raises the counters that the policies have asked for.
    pub(super) fn conclude(self, metrics: &Metrics) {
        if let Some(deferred) = self.deferred {
            deferred.0.into_iter().for_each(|work| work());
        }
        for Count { policy, name, by, names_max } in self.counts {
            metrics.count_custom(&policy, &name, by, names_max);
        }
    }

    /// Returns whether nothing was read that may change, and nothing is changed.
    pub fn is_untouched(&self) -> bool {
        self.writes.is_untouched() && self.groups.is_untouched()
    }

    /// Returns whether recipients come from a group.
    pub fn has_looked_at_groups(&self) -> bool {
        self.has_looked_at_groups
    }

    pub fn is_live(&self) -> bool {
        self.is_live
    }

    /// Returns the time of the current call, in milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Begins a call: the writes of earlier calls can no longer be dropped.
    pub fn begin_call(&mut self) {
        if let Below::Model(model) = &self.below {
            self.now_ms = model.clock.now_ms();
        }
        match self.watch.as_deref_mut() {
            None => {}
            Some(Watch::Notes(reads)) => *reads = Reads { now_ms: self.now_ms, ..Reads::default() },
            Some(Watch::Tape { reads, .. }) => self.now_ms = reads.now_ms,
        }
        self.writes.begin_call();
        self.counts_before = self.counts.len();
    }

    /// Drops the writes of the current call.
    pub fn drop_call(&mut self) {
        self.writes.drop_call();
        self.counts.truncate(self.counts_before);
    }

    pub fn count(&mut self, policy: &Arc<str>, name: String, by: u64, names_max: usize) {
        self.counts.push(Count { policy: policy.clone(), name, by, names_max });
    }

    /// Returns every user with an open session, the same ones to all deliveries of the request.
    pub fn everyone(&self) -> &IndexSet<UserId> {
        let Below::Model(model) = &self.below else { return self.everyone.get_or_init(IndexSet::new) };
        let mailboxes = &model.mailboxes;
        self.everyone.get_or_init(|| aside_if(mailboxes.are_many(), || mailboxes.everyone().into_iter().collect()))
    }

    /// Returns how many recipients a policy has in this request, so that what it tells counts together in however many answers it does.
    #[expect(clippy::indexing_slicing, reason = "the index was found, or the policy was just added")]
    pub fn told(&mut self, policy: &Arc<str>) -> &mut usize {
        let index = self.told.iter().position(|(known, _)| known == policy).unwrap_or(self.told.len());
        if index == self.told.len() {
            self.told.push((policy.clone(), 0));
        }
        &mut self.told[index].1
    }

    /// Returns the number of a user's open sessions.
    pub fn sessions_of(&mut self, user: &str) -> usize {
        let count = if let Below::Model(model) = &self.below { model.mailboxes.sessions_of(user) } else { 0 };
        self.watch.as_deref_mut().map_or(count, |watch| watch.sessions(user, count))
    }

    /// Returns whether a user is in a group. A guest's read: the group must be unchanged at the commit.
    pub fn contains(&mut self, group: &str, user: &str) -> bool {
        let groups = self.below.groups();
        self.groups.note_read(&groups, group);
        let is_member = self.groups.is_member(&groups, group, user);
        let Some(watch) = look(&mut self.watch, &self.groups, &groups, group, 0) else { return is_member };
        watch.contains(group, user, is_member)
    }

    /// Returns the number of members. A guest's read, as [`World::contains`].
    pub fn size(&mut self, group: &str) -> usize {
        let groups = self.below.groups();
        self.groups.note_read(&groups, group);
        let size = self.groups.size(&groups, group);
        look(&mut self.watch, &self.groups, &groups, group, 0).map_or(size, |watch| watch.size(group, size))
    }

    /// Returns the first members, in the order in which they joined. A guest's read, as [`World::contains`].
    pub fn members(&mut self, group: &str, most: usize) -> Vec<UserId> {
        let groups = self.below.groups();
        self.groups.note_read(&groups, group);
        let members = self.groups.audience(&groups, group, &HashSet::new(), most).0;
        if let Some(watch) = look(&mut self.watch, &self.groups, &groups, group, most) {
            watch.found(group, members.len(), most);
        }
        members
    }

    /// Returns the first members who are not excepted, in the order in which they joined, and how many there are in total. For a
    /// delivery: a later change of the group is not a conflict.
    pub fn audience(&mut self, group: &str, except: &HashSet<&UserId>, most: usize) -> (Vec<UserId>, usize) {
        self.has_looked_at_groups = true;
        let groups = self.below.groups();
        look(&mut self.watch, &self.groups, &groups, group, 0);
        self.groups.audience(&groups, group, except, most)
    }

    /// Adds a member.
    ///
    /// # Errors
    /// A bound is reached; nothing has changed.
    pub fn join(&mut self, policy: &Arc<str>, quota: groups::Quota, group: &str, user: UserId) -> Result<(), OverQuota> {
        let groups = self.below.groups();
        look(&mut self.watch, &self.groups, &groups, group, 0);
        self.groups.join(&groups, policy, quota, group, user)
    }

    /// Removes a member, if it is there.
    pub fn leave(&mut self, group: &str, user: &UserId) {
        self.groups.leave(&self.below.groups(), group, user);
    }

    /// Ends a group.
    pub fn end(&mut self, group: &str) {
        self.groups.end(&self.below.groups(), group);
    }
}

impl Model {
    /// Commits the changes of a world, all or nothing, notes them, and calls `conclude` with them. The caller has the turn if the world is
    /// touched. Returns what `conclude` returned.
    ///
    /// # Errors
    /// Something that the world read has changed since, or what it wrote no longer fits. `conclude` was not called.
    pub fn commit<P>(&self, world: &World, mut changes: Changes, conclude: impl FnOnce(Changes) -> P) -> Result<P, Conflict> {
        debug_assert!(world.is_live, "a look changes nothing");
        if world.is_untouched() {
            return Ok(conclude(changes));
        }
        let mut states = self.states.write();
        let mut groups = self.groups.write();
        if !world.writes.stands(&mut states, world.now_ms) || !world.groups.stands(&groups) {
            return Err(Conflict);
        }
        world.writes.write_into(&mut states, &mut || self.next_stamp(), &mut changes);
        let ended = world.groups.write_into(&mut groups, &mut || self.next_stamp(), &mut changes);
        drop((groups, states));
        // Tens of thousands of members are freed after the locks are released.
        drop(ended);
        Ok(conclude(changes))
    }
}

/// Tells the watch of a look at a group, if there is one, and returns it.
fn look<'a>(watch: &'a mut Option<Box<Watch>>, changes: &GroupChanges, groups: &Groups, group: &str, most: usize) -> Option<&'a mut Watch> {
    let watch = watch.as_deref_mut()?;
    watch.group(group, most, |most| changes.audience(groups, group, &HashSet::new(), most));
    Some(watch)
}

fn signed(count: usize) -> isize {
    isize::try_from(count).unwrap_or(isize::MAX)
}

fn add(count: usize, change: isize) -> usize {
    count.saturating_add_signed(change)
}

#[cfg(test)]
mod tests;
