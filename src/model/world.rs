//! What a guest sees while a request is planned: the model, overlaid with the changes of this request. Only `Model::commit` changes the
//! model, if what the request read has not changed.
//!
//! A policy call is a transaction: the writes of a call are dropped if it faults, and the writes of a request if its plan is.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use indexmap::IndexMap;

use super::groups::{self, Groups, Share};
use super::record::{Change, Changes};
use super::state::{self, States, Usage, Value, entry_bytes};
use super::{Model, Stamp};
use crate::types::event::UserId;

/// The model as one request sees it.
#[derive(Debug)]
pub struct World {
    model: Arc<Model>,
    is_live: bool,
    now_ms: u64,
    states: Vec<PolicyState>,
    groups: IndexMap<String, GroupChange>,
    group_reads: HashMap<String, Stamp>,
    /// How the policies' shares of all groups change.
    shares: Vec<PolicyShare>,
    counts: Vec<Count>,
    undo: Undo,
    /// All users with an open session, collected when a delivery first wants them.
    everyone: OnceCell<Vec<UserId>>,
}

/// A policy's request to raise one of its counters.
#[derive(Debug)]
pub struct Count {
    pub policy: Arc<str>,
    pub name: String,
    pub by: u64,
    /// How many counters the policy may have.
    pub names_max: usize,
}

#[derive(Debug)]
struct PolicyState {
    policy: Arc<str>,
    quota: state::Quota,
    /// `None` means removed.
    writes: HashMap<String, Option<Value>>,
    /// The keys that were read from the model, and their stamps; 0 for a key that did not exist.
    reads: HashMap<String, Stamp>,
    keys: isize,
    bytes: isize,
}

#[derive(Debug, Default)]
struct GroupChange {
    /// Whether the model's members have been removed.
    is_ended: bool,
    left: HashSet<UserId>,
    /// The new members in order, with the policy that added each.
    joined: IndexMap<UserId, Arc<str>>,
}

#[derive(Debug)]
struct PolicyShare {
    policy: Arc<str>,
    /// `None` until the policy adds a member.
    quota: Option<groups::Quota>,
    groups: isize,
    memberships: isize,
}

/// How to undo what the current call did.
#[derive(Debug, Default)]
struct Undo {
    writes: Vec<UndoWrite>,
    counts: usize,
}

#[derive(Debug)]
struct UndoWrite {
    index: usize,
    key: String,
    before: Option<Option<Value>>,
    keys: isize,
    bytes: isize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateError {
    Quota,
    NotANumber,
}

/// A bound of the server or of the policy's share is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// What the request read has changed since, or what it wrote no longer fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict;

impl World {
    /// Returns a world whose changes may be committed, and whose calls are counted.
    pub fn live(model: &Arc<Model>) -> World {
        World::new(model, true)
    }

    /// Returns a world for a dry run: its calls affect neither breakers nor counters, and its changes are never committed.
    pub fn dry(model: &Arc<Model>) -> World {
        World::new(model, false)
    }

    fn new(model: &Arc<Model>, is_live: bool) -> World {
        World {
            model: model.clone(),
            is_live,
            now_ms: 0,
            states: Vec::new(),
            groups: IndexMap::new(),
            group_reads: HashMap::new(),
            shares: Vec::new(),
            counts: Vec::new(),
            undo: Undo::default(),
            everyone: OnceCell::new(),
        }
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
        self.now_ms = self.model.clock.now_ms();
        self.undo.writes.clear();
        self.undo.counts = self.counts.len();
    }

    /// Drops the writes of the current call.
    pub fn drop_call(&mut self) {
        for UndoWrite { index, key, before, keys, bytes } in self.undo.writes.drain(..).rev() {
            let Some(state) = self.states.get_mut(index) else { continue };
            match before {
                Some(before) => state.writes.insert(key, before),
                None => state.writes.remove(&key),
            };
            (state.keys, state.bytes) = (keys, bytes);
        }
        self.counts.truncate(self.undo.counts);
    }

    pub fn get(&mut self, policy: &Arc<str>, key: &str, quota: state::Quota) -> Option<Arc<[u8]>> {
        let index = self.state_of(policy, quota);
        self.read(index, key).map(|value| value.bytes)
    }

    /// # Errors
    /// The quota is used up; nothing has changed.
    pub fn set(
        &mut self,
        policy: &Arc<str>,
        key: String,
        bytes: Vec<u8>,
        ttl_ms: Option<u32>,
        quota: state::Quota,
    ) -> Result<(), StateError> {
        let index = self.state_of(policy, quota);
        let expires_ms = self.expiry(ttl_ms);
        self.put(index, key, Value { bytes: bytes.into(), expires_ms })
    }

    /// Removes a key, and returns whether it was there.
    pub fn delete(&mut self, policy: &Arc<str>, key: &str, quota: state::Quota) -> bool {
        let index = self.state_of(policy, quota);
        let is_there = self.read(index, key).is_some();
        if is_there {
            self.write(index, key.to_owned(), None);
        }
        is_there
    }

    /// Adds to a number, which starts at 0, and returns the sum. The time to live is set only when the key is created.
    ///
    /// # Errors
    /// The value is not a decimal 64-bit integer, the sum leaves its range, or the quota is used up.
    pub fn increment(
        &mut self,
        policy: &Arc<str>,
        key: String,
        by: i64,
        ttl_ms: Option<u32>,
        quota: state::Quota,
    ) -> Result<i64, StateError> {
        let index = self.state_of(policy, quota);
        let (number, expires_ms) = match self.read(index, &key) {
            Some(value) => {
                let text = std::str::from_utf8(&value.bytes).map_err(|_| StateError::NotANumber)?;
                (text.parse().map_err(|_| StateError::NotANumber)?, value.expires_ms)
            }
            None => (0_i64, self.expiry(ttl_ms)),
        };
        let sum = number.checked_add(by).ok_or(StateError::NotANumber)?;
        self.put(index, key, Value { bytes: sum.to_string().into_bytes().into(), expires_ms })?;
        Ok(sum)
    }

    /// Sets the value if the current one is `expected`, and returns whether it did.
    ///
    /// # Errors
    /// The quota is used up; nothing has changed.
    pub fn compare_and_swap(
        &mut self,
        policy: &Arc<str>,
        key: String,
        expected: Option<&[u8]>,
        bytes: Vec<u8>,
        ttl_ms: Option<u32>,
        quota: state::Quota,
    ) -> Result<bool, StateError> {
        let index = self.state_of(policy, quota);
        if self.read(index, &key).as_ref().map(|value| &*value.bytes) != expected {
            return Ok(false);
        }
        let expires_ms = self.expiry(ttl_ms);
        self.put(index, key, Value { bytes: bytes.into(), expires_ms })?;
        Ok(true)
    }

    pub fn count(&mut self, policy: &Arc<str>, name: String, by: u64, names_max: usize) {
        self.counts.push(Count { policy: policy.clone(), name, by, names_max });
    }

    /// Returns every user with an open session, the same ones to all deliveries of the request.
    pub fn everyone(&self) -> &[UserId] {
        self.everyone.get_or_init(|| self.model.mailboxes.everyone())
    }

    /// Returns the number of a user's open sessions.
    pub fn sessions_of(&self, user: &str) -> usize {
        self.model.mailboxes.sessions_of(user)
    }

    /// Returns whether a user is in a group. A guest's read: the group must be unchanged at the commit.
    pub fn contains(&mut self, group: &str, user: &str) -> bool {
        self.note_group_read(group);
        let groups = self.model.groups.read();
        self.is_member(&groups, group, user)
    }

    /// Returns the number of members. A guest's read, as [`World::contains`].
    pub fn size(&mut self, group: &str) -> usize {
        self.note_group_read(group);
        self.size_in(&self.model.groups.read(), group)
    }

    /// Returns the first members, in the order in which they joined. A guest's read, as [`World::contains`].
    pub fn members(&mut self, group: &str, most: usize) -> Vec<UserId> {
        self.note_group_read(group);
        self.audience(group, &HashSet::new(), most).0
    }

    /// Returns the first members who are not excepted, in the order in which they joined, and how many there are in total. For a
    /// delivery: a later change of the group is not a conflict.
    pub fn audience(&self, group: &str, except: &HashSet<&UserId>, most: usize) -> (Vec<UserId>, usize) {
        let groups = self.model.groups.read();
        let excepted = except.iter().filter(|user| self.is_member(&groups, group, user.as_str())).count();
        let total = self.size_in(&groups, group).saturating_sub(excepted);
        let change = self.groups.get(group);
        let kept = groups.get(group).into_iter().flat_map(groups::Group::members);
        let kept = kept.filter(|user| change.is_none_or(|change| !change.is_ended && !change.left.contains(*user)));
        let members = kept.chain(change.into_iter().flat_map(|change| change.joined.keys()));
        (members.filter(|user| !except.contains(*user)).take(most).cloned().collect(), total)
    }

    /// Adds a member.
    ///
    /// # Errors
    /// A bound is reached; nothing has changed.
    pub fn join(&mut self, policy: &Arc<str>, quota: groups::Quota, group: &str, user: UserId) -> Result<(), Full> {
        // The bounds are checked against the group's size.
        self.note_group_read(group);
        let groups = self.model.groups.read();
        if self.is_member(&groups, group, user.as_str()) {
            return Ok(());
        }
        let members = self.size_in(&groups, group);
        let opens = isize::from(members == 0);
        let (mut all, mut own) = (groups.totals(), groups.share(policy));
        for share in &self.shares {
            all = plus(all, share.groups, share.memberships);
            if share.policy == *policy {
                own = plus(own, share.groups, share.memberships);
            }
        }
        if !groups.allows(members + 1, plus(all, opens, 1), plus(own, opens, 1), quota) {
            return Err(Full);
        }
        drop(groups);
        self.share_of(policy, Some(quota), opens, 1);
        self.change(group).joined.insert(user, policy.clone());
        Ok(())
    }

    /// Removes a member, if it is there.
    pub fn leave(&mut self, group: &str, user: &UserId) {
        self.note_group_read(group);
        let groups = self.model.groups.read();
        if !self.is_member(&groups, group, user.as_str()) {
            return;
        }
        let is_last = self.size_in(&groups, group) == 1;
        let opener = if is_last { self.opener(&groups, group) } else { None };
        let admitted_by = groups.get(group).and_then(|known| known.admitted_by(user.as_str())).cloned();
        drop(groups);
        let change = self.change(group);
        let policy = change.joined.shift_remove(user).or_else(|| {
            change.left.insert(user.clone());
            admitted_by
        });
        if is_last {
            // The next member opens a new group.
            *change = GroupChange { is_ended: true, ..GroupChange::default() };
        }
        if let Some(policy) = policy {
            self.give_back(&policy, 0, 1);
        }
        if let Some(opener) = opener {
            self.give_back(&opener, 1, 0);
        }
    }

    /// Ends a group.
    pub fn end(&mut self, group: &str) {
        self.note_group_read(group);
        let groups = self.model.groups.read();
        let size = self.size_in(&groups, group);
        if size == 0 {
            return;
        }
        let opener = self.opener(&groups, group);
        let change = self.groups.get(group);
        let kept =
            groups.get(group).into_iter().flat_map(|known| known.members().map(move |user| (user, known.admitted_by(user.as_str()))));
        let kept = kept.filter(|(user, _)| change.is_none_or(|change| !change.is_ended && !change.left.contains(*user)));
        let kept = kept.filter_map(|(_, policy)| policy.cloned());
        let policies: Vec<Arc<str>> = kept.chain(change.into_iter().flat_map(|change| change.joined.values().cloned())).collect();
        drop(groups);
        for policy in policies {
            self.give_back(&policy, 0, 1);
        }
        if let Some(opener) = opener {
            self.give_back(&opener, 1, 0);
        }
        *self.change(group) = GroupChange { is_ended: true, ..GroupChange::default() };
    }

    /// Returns whether nothing was read and nothing changed.
    fn is_untouched(&self) -> bool {
        self.states.is_empty() && self.groups.is_empty() && self.group_reads.is_empty()
    }

    fn state_of(&mut self, policy: &Arc<str>, quota: state::Quota) -> usize {
        let known = self.states.iter().position(|state| state.policy == *policy);
        known.unwrap_or_else(|| {
            let (writes, reads) = (HashMap::new(), HashMap::new());
            self.states.push(PolicyState { policy: policy.clone(), quota, writes, reads, keys: 0, bytes: 0 });
            self.states.len() - 1
        })
    }

    fn expiry(&self, ttl_ms: Option<u32>) -> Option<u64> {
        ttl_ms.map(|ttl| self.now_ms.saturating_add(ttl.into()))
    }

    /// Returns a key's value: this request's own write, else the model's entry, which must be unchanged at the commit.
    fn read(&mut self, index: usize, key: &str) -> Option<Value> {
        let now_ms = self.now_ms;
        let state = self.states.get_mut(index)?;
        if let Some(written) = state.writes.get(key) {
            return written.clone().filter(|value| value.is_live(now_ms));
        }
        let states = self.model.states.read();
        let entry = states.entry(&state.policy, key);
        if !state.reads.contains_key(key) {
            state.reads.insert(key.to_owned(), entry.map_or(0, |entry| entry.stamp));
        }
        entry.map(|entry| entry.value.clone()).filter(|value| value.is_live(now_ms))
    }

    fn put(&mut self, index: usize, key: String, value: Value) -> Result<(), StateError> {
        let now_ms = self.now_ms;
        let Some(state) = self.states.get(index) else { return Err(StateError::Quota) };
        let quota = state.quota;
        if value.bytes.len() > quota.value_bytes_max || key.len() > quota.value_bytes_max {
            return Err(StateError::Quota);
        }
        let before = self.visible_bytes(index, &key);
        let keys = state.keys + isize::from(before.is_none());
        let bytes = state.bytes + signed(entry_bytes(&key, &value.bytes)) - signed(before.unwrap_or(0));
        let fits = |usage: Usage| quota.allows(Usage { keys: add(usage.keys, keys), bytes: add(usage.bytes, bytes) });
        let states = self.model.states.read();
        // Expired entries are subtracted only if the quota would be exceeded otherwise.
        if !fits(states.usage(&state.policy)) && !fits(states.live_usage(&state.policy, now_ms)) {
            return Err(StateError::Quota);
        }
        drop(states);
        self.write(index, key, Some(value));
        Ok(())
    }

    /// Returns what an entry uses of the quota as this request sees it; `None` if there is no such entry.
    fn visible_bytes(&self, index: usize, key: &str) -> Option<usize> {
        let state = self.states.get(index)?;
        if let Some(written) = state.writes.get(key) {
            return written.as_ref().map(|value| entry_bytes(key, &value.bytes));
        }
        let states = self.model.states.read();
        let entry = states.entry(&state.policy, key).filter(|entry| entry.value.is_live(self.now_ms))?;
        Some(entry_bytes(key, &entry.value.bytes))
    }

    fn write(&mut self, index: usize, key: String, value: Option<Value>) {
        let before = self.visible_bytes(index, &key);
        let Some(state) = self.states.get_mut(index) else { return };
        let (keys, bytes) = (state.keys, state.bytes);
        let after = value.as_ref().map(|value| entry_bytes(&key, &value.bytes));
        state.keys += isize::from(after.is_some()) - isize::from(before.is_some());
        state.bytes += signed(after.unwrap_or(0)) - signed(before.unwrap_or(0));
        let before = state.writes.insert(key.clone(), value);
        self.undo.writes.push(UndoWrite { index, key, before, keys, bytes });
    }

    fn note_group_read(&mut self, group: &str) {
        // Recorded even if this request has changed the group: the rest of the answer comes from the model.
        if !self.group_reads.contains_key(group) {
            let stamp = self.model.groups.read().stamp(group);
            self.group_reads.insert(group.to_owned(), stamp);
        }
    }

    fn is_member(&self, groups: &Groups, group: &str, user: &str) -> bool {
        let kept = || groups.get(group).is_some_and(|known| known.contains(user));
        match self.groups.get(group) {
            None => kept(),
            Some(change) => change.joined.contains_key(user) || (!change.is_ended && !change.left.contains(user) && kept()),
        }
    }

    fn size_in(&self, groups: &Groups, group: &str) -> usize {
        let kept = groups.get(group).map_or(0, groups::Group::len);
        match self.groups.get(group) {
            None => kept,
            Some(change) if change.is_ended => change.joined.len(),
            Some(change) => kept.saturating_sub(change.left.len()) + change.joined.len(),
        }
    }

    /// Returns the policy whose share a group counts in.
    fn opener(&self, groups: &Groups, group: &str) -> Option<Arc<str>> {
        let opened_here = || self.groups.get(group).and_then(|change| change.joined.values().next());
        let is_ended = self.groups.get(group).is_some_and(|change| change.is_ended);
        groups.get(group).filter(|_| !is_ended).map(groups::Group::opener).or_else(opened_here).cloned()
    }

    fn change(&mut self, group: &str) -> &mut GroupChange {
        if !self.groups.contains_key(group) {
            self.groups.insert(group.to_owned(), GroupChange::default());
        }
        self.groups.entry(group.to_owned()).or_default()
    }

    fn share_of(&mut self, policy: &Arc<str>, quota: Option<groups::Quota>, groups: isize, memberships: isize) {
        match self.shares.iter_mut().find(|share| share.policy == *policy) {
            Some(share) => {
                share.quota = quota.or(share.quota);
                share.groups += groups;
                share.memberships += memberships;
            }
            None => self.shares.push(PolicyShare { policy: policy.clone(), quota, groups, memberships }),
        }
    }

    fn give_back(&mut self, policy: &Arc<str>, groups: isize, memberships: isize) {
        self.share_of(policy, None, -groups, -memberships);
    }

    /// Returns whether the keys and groups that were read are unchanged, and what is written still fits.
    fn stands(&self, states: &States, groups: &Groups) -> bool {
        let same = |state: &PolicyState| {
            state.reads.iter().all(|(key, stamp)| states.entry(&state.policy, key).map_or(0, |entry| entry.stamp) == *stamp)
        };
        self.states.iter().all(|state| same(state) && self.state_fits(state, states))
            && self.group_reads.iter().all(|(group, stamp)| groups.stamp(group) == *stamp)
            && self.groups_fit(groups)
    }

    fn state_fits(&self, state: &PolicyState, states: &States) -> bool {
        let (mut keys, mut bytes) = (0_isize, 0_isize);
        for (key, value) in &state.writes {
            let before = states.entry(&state.policy, key).filter(|entry| entry.value.is_live(self.now_ms));
            let before = before.map(|entry| entry_bytes(key, &entry.value.bytes));
            let after = value.as_ref().map(|value| entry_bytes(key, &value.bytes));
            keys += isize::from(after.is_some()) - isize::from(before.is_some());
            bytes += signed(after.unwrap_or(0)) - signed(before.unwrap_or(0));
        }
        let fits = |usage: Usage| state.quota.allows(Usage { keys: add(usage.keys, keys), bytes: add(usage.bytes, bytes) });
        (keys <= 0 && bytes <= 0) || fits(states.usage(&state.policy)) || fits(states.live_usage(&state.policy, self.now_ms))
    }

    fn groups_fit(&self, groups: &Groups) -> bool {
        let grown: Share = self.shares.iter().fold(groups.totals(), |all, share| plus(all, share.groups, share.memberships));
        let largest =
            self.groups.iter().filter(|(_, change)| !change.joined.is_empty()).map(|(group, _)| self.size_in(groups, group)).max();
        let Some(largest) = largest else { return true };
        let mut joining = self.shares.iter().filter_map(|share| Some((share, share.quota?)));
        joining
            .all(|(share, quota)| groups.allows(largest, grown, plus(groups.share(&share.policy), share.groups, share.memberships), quota))
    }

    fn write_into(&self, states: &mut States, groups: &mut Groups, stamp: &mut impl FnMut() -> Stamp, changes: &mut Changes) {
        for state in &self.states {
            for (key, value) in &state.writes {
                let stamp = stamp();
                states.write(&state.policy, key, value.clone(), stamp);
                changes.note(|| Change::state(stamp, &state.policy, key, value.as_ref()));
            }
        }
        for (group, change) in &self.groups {
            if change.is_ended {
                groups.end(group);
                let stamp = stamp();
                changes.note(|| Change::End { stamp, group: group.clone() });
            }
            // New members join first, so that the group doesn't end if all others leave.
            let (back, new): (Vec<_>, Vec<_>) = change.joined.iter().partition(|(user, _)| change.left.contains(*user));
            for (user, policy) in new {
                let stamp = stamp();
                groups.join(group, user.clone(), policy, stamp);
                changes.note(|| Change::Join { stamp, group: group.clone(), user: user.clone(), policy: policy.clone() });
            }
            for user in &change.left {
                let stamp = stamp();
                groups.leave(group, user, stamp);
                changes.note(|| Change::Leave { stamp, group: group.clone(), user: user.clone() });
            }
            for (user, policy) in back {
                let stamp = stamp();
                groups.join(group, user.clone(), policy, stamp);
                changes.note(|| Change::Join { stamp, group: group.clone(), user: user.clone(), policy: policy.clone() });
            }
        }
    }
}

impl Model {
    /// Commits the changes of a world, all or nothing, records them, and calls `post` before the locks are released. Returns the counters
    /// to raise and what `post` returned.
    ///
    /// # Errors
    /// Something that the world read has changed since, or what it wrote no longer fits. `post` was not called.
    pub fn commit<P>(
        &self,
        world: &mut World,
        changes: &mut Changes,
        post: impl FnOnce(&mut Changes) -> P,
    ) -> Result<(Vec<Count>, P), Conflict> {
        debug_assert!(world.is_live, "a look changes nothing");
        let counts = std::mem::take(&mut world.counts);
        if world.is_untouched() {
            return Ok((counts, post(changes)));
        }
        let mut states = self.states.write();
        let mut groups = self.groups.write();
        if !world.stands(&states, &groups) {
            return Err(Conflict);
        }
        world.write_into(&mut states, &mut groups, &mut || self.next_stamp(), changes);
        Ok((counts, post(changes)))
    }
}

fn signed(count: usize) -> isize {
    isize::try_from(count).unwrap_or(isize::MAX)
}

fn add(count: usize, change: isize) -> usize {
    count.saturating_add_signed(change)
}

fn plus(share: Share, groups: isize, memberships: isize) -> Share {
    Share { groups: add(share.groups, groups), memberships: add(share.memberships, memberships) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::metrics::Metrics;
    use crate::types::clock::Clock;
    use std::time::{Duration, SystemTime};
    use tokio::time::Instant;

    const QUOTA: state::Quota = state::Quota { keys_max: 2, bytes_max: 1000, value_bytes_max: 100 };
    const ANY: groups::Quota = groups::Quota { groups_max: usize::MAX, memberships_max: usize::MAX };

    fn model(change: impl FnOnce(&mut Config)) -> Arc<Model> {
        let mut config = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0;
        change(&mut config);
        Model::new(&config, Clock::Since(SystemTime::UNIX_EPOCH, Instant::now()), &Arc::new(Metrics::new().unwrap()))
    }

    fn policy() -> Arc<str> {
        "p".into()
    }

    fn user(text: &str) -> UserId {
        UserId::new(text, 16).unwrap()
    }

    fn change<R>(model: &Arc<Model>, mut change: impl FnMut(&mut World) -> R) -> R {
        model.transact(&mut Changes::forgotten(), |world| {
            world.begin_call();
            change(world)
        })
    }

    fn text(value: Option<Arc<[u8]>>) -> Option<String> {
        value.map(|value| String::from_utf8(value.to_vec()).unwrap())
    }

    fn members(model: &Arc<Model>, group: &str) -> Vec<UserId> {
        World::dry(model).audience(group, &HashSet::new(), usize::MAX).0
    }

    #[tokio::test(start_paused = true)]
    async fn a_value_is_gone_after_its_time_to_live_and_makes_room() {
        let model = model(|_| ());
        let set = |key: &str, ttl_ms| change(&model, |world| world.set(&policy(), key.into(), b"1".to_vec(), ttl_ms, QUOTA));
        set("a", Some(1000)).unwrap();
        set("b", None).unwrap();
        assert_eq!(set("c", None), Err(StateError::Quota));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(change(&model, |world| world.get(&policy(), "a", QUOTA)), None);
        set("c", None).unwrap();
        assert!(!change(&model, |world| world.delete(&policy(), "a", QUOTA)));
        assert!(change(&model, |world| world.delete(&policy(), "b", QUOTA)));
        model.sweep();
        change(&model, |world| world.delete(&policy(), "c", QUOTA));
        assert_eq!(model.states.read().usage("p"), Usage::default(), "bytes are given back");
    }

    #[tokio::test(start_paused = true)]
    async fn increments_count_from_zero_and_expire_with_the_first() {
        let model = model(|_| ());
        let add = |by, ttl_ms| change(&model, |world| world.increment(&policy(), "n".into(), by, ttl_ms, QUOTA));
        assert_eq!(add(2, Some(1000)), Ok(2));
        assert_eq!(add(-5, Some(10_000)), Ok(-3));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(add(1, None), Ok(1));
        for wrong in ["x".to_owned(), i64::MAX.to_string()] {
            change(&model, |world| world.set(&policy(), "n".into(), wrong.clone().into_bytes(), None, QUOTA)).unwrap();
            assert_eq!(add(1, None), Err(StateError::NotANumber));
        }
    }

    #[tokio::test]
    async fn compare_and_swap_needs_what_is_there() {
        let model = model(|_| ());
        let swap = |expected: Option<&[u8]>, value: &str| {
            change(&model, |world| world.compare_and_swap(&policy(), "k".into(), expected, value.into(), None, QUOTA))
        };
        assert_eq!(swap(Some(b"x"), "y"), Ok(false));
        assert_eq!(swap(None, "y"), Ok(true));
        assert_eq!(swap(Some(b"y"), "z"), Ok(true));
        assert_eq!(text(change(&model, |world| world.get(&policy(), "k", QUOTA))), Some("z".into()));
    }

    #[tokio::test]
    async fn the_calls_of_a_request_see_what_earlier_ones_wrote_and_a_call_that_faults_leaves_nothing() {
        let model = model(|_| ());
        let mut world = World::live(&model);
        world.begin_call();
        world.set(&policy(), "k".into(), b"1".to_vec(), None, QUOTA).unwrap();
        world.count(&policy(), "kept".into(), 1, 10);
        world.begin_call();
        assert_eq!(text(world.get(&policy(), "k", QUOTA)), Some("1".into()));
        world.set(&policy(), "k".into(), b"2".to_vec(), None, QUOTA).unwrap();
        world.set(&policy(), "other".into(), b"2".to_vec(), None, QUOTA).unwrap();
        world.delete(&policy(), "k", QUOTA);
        world.count(&policy(), "dropped".into(), 1, 10);
        world.drop_call();
        assert_eq!(text(world.get(&policy(), "k", QUOTA)), Some("1".into()));
        assert_eq!(text(world.get(&policy(), "other", QUOTA)), None);
        assert_eq!(model.states.read().usage("p"), Usage::default(), "nothing is committed yet");
        let (counts, ()) = model.commit(&mut world, &mut Changes::forgotten(), |_| ()).unwrap();
        assert_eq!(counts.iter().map(|count| count.name.as_str()).collect::<Vec<_>>(), ["kept"]);
        assert_eq!(model.states.read().usage("p").keys, 1);
    }

    #[tokio::test]
    async fn a_plan_whose_reads_have_changed_is_made_again() {
        let model = model(|_| ());
        let mut rounds = 0;
        let sum = change(&model, |world| {
            rounds += 1;
            let sum = world.increment(&policy(), "n".into(), 1, None, QUOTA);
            if rounds == 1 {
                // Another request is quicker.
                let mut other = World::live(&model);
                other.increment(&policy(), "n".into(), 10, None, QUOTA).unwrap();
                model.commit(&mut other, &mut Changes::forgotten(), |_| ()).unwrap();
            }
            sum
        });
        assert_eq!((rounds, sum), (2, Ok(11)));
    }

    #[tokio::test]
    async fn a_guests_look_at_a_group_conflicts_with_its_change_and_a_delivery_does_not() {
        let model = model(|_| ());
        let join = |name: &str| change(&model, |world| world.join(&policy(), ANY, "g", user(name)));
        join("a").unwrap();
        let (mut looked, mut told) = (World::live(&model), World::live(&model));
        assert!(looked.contains("g", "a"));
        looked.set(&policy(), "k".into(), vec![], None, QUOTA).unwrap();
        assert_eq!(told.audience("g", &HashSet::new(), 9), (vec![user("a")], 1));
        told.set(&policy(), "k".into(), vec![], None, QUOTA).unwrap();
        join("b").unwrap();
        assert_eq!(model.commit(&mut looked, &mut Changes::forgotten(), |_| ()).err(), Some(Conflict));
        assert!(model.commit(&mut told, &mut Changes::forgotten(), |_| ()).is_ok());
    }

    #[tokio::test]
    async fn threads_that_raise_one_counter_lose_no_increment() {
        let model = model(|_| ());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        change(&model, |world| world.increment(&policy(), "n".into(), 1, None, QUOTA)).unwrap();
                    }
                });
            }
        });
        assert_eq!(text(World::dry(&model).get(&policy(), "n", QUOTA)), Some("2000".into()));
    }

    #[tokio::test]
    async fn a_world_sees_what_there_is_and_keeps_its_changes_to_itself() {
        let model = model(|_| ());
        change(&model, |world| {
            world.join(&policy(), ANY, "a", user("1")).unwrap();
            world.join(&policy(), ANY, "b", user("1"))
        })
        .unwrap();
        let mut look = World::dry(&model);
        look.join(&policy(), ANY, "a", user("2")).unwrap();
        look.join(&policy(), ANY, "c", user("3")).unwrap();
        look.end("b");
        let seen = |look: &World, group: &str| look.audience(group, &HashSet::new(), 9).0;
        assert_eq!((seen(&look, "a"), seen(&look, "b"), seen(&look, "c")), (vec![user("1"), user("2")], vec![], vec![user("3")]));
        assert_eq!(look.audience("a", &HashSet::from([&user("1"), &user("3")]), 9), (vec![user("2")], 1));
        look.leave("a", &user("1"));
        assert_eq!(seen(&look, "a"), [user("2")]);
        look.join(&policy(), ANY, "a", user("1")).unwrap();
        assert_eq!(seen(&look, "a"), [user("2"), user("1")]);
        assert_eq!((members(&model, "a"), members(&model, "b"), members(&model, "c")), (vec![user("1")], vec![user("1")], vec![]));
        assert_eq!(model.groups.read().totals(), Share { groups: 2, memberships: 2 });
    }

    #[tokio::test]
    async fn an_empty_group_is_forgotten_and_gives_its_room_back() {
        let model = model(|config| {
            config.groups.groups_max = 1;
            config.groups.members_max = 2;
        });
        let join = |group: &str, name: &str| change(&model, |world| world.join(&policy(), ANY, group, user(name)));
        join("a", "1").unwrap();
        join("a", "1").unwrap();
        join("a", "2").unwrap();
        assert_eq!((join("a", "3"), join("b", "1")), (Err(Full), Err(Full)));
        change(&model, |world| world.leave("a", &user("1")));
        change(&model, |world| world.leave("a", &user("nobody")));
        change(&model, |world| world.leave("a", &user("2")));
        assert_eq!(model.groups.read().totals(), Share::default());
        join("b", "1").unwrap();
        change(&model, |world| world.end("b"));
        assert_eq!((model.groups.read().totals(), model.groups.read().share("p")), (Share::default(), Share::default()));
    }

    #[tokio::test]
    async fn a_policy_has_its_share_and_no_more() {
        let model = model(|_| ());
        let (small, other): (Arc<str>, Arc<str>) = ("small".into(), "other".into());
        let few = groups::Quota { groups_max: 1, memberships_max: 2 };
        let join = |policy: &Arc<str>, quota, group: &str, name: &str| change(&model, |world| world.join(policy, quota, group, user(name)));
        join(&small, few, "a", "1").unwrap();
        assert_eq!(join(&small, few, "b", "1"), Err(Full), "a second group");
        join(&other, ANY, "b", "1").unwrap();
        join(&small, few, "b", "2").unwrap();
        assert_eq!(join(&small, few, "a", "2"), Err(Full), "a third membership");
        join(&other, ANY, "a", "2").unwrap();
        change(&model, |world| world.end("a"));
        join(&small, few, "c", "1").unwrap();
        change(&model, |world| world.leave("b", &user("2")));
        join(&small, few, "c", "2").unwrap();
        // Within one request too.
        let both = change(&model, |world| {
            world.end("c");
            (world.join(&small, few, "d", user("1")), world.join(&small, few, "e", user("1")))
        });
        assert_eq!(both, (Ok(()), Err(Full)));
    }
}
