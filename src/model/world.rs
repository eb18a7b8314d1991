//! What a guest sees while a request is planned: the model, overlaid with the changes of this request. Only `Model::commit` changes the
//! model, if what the request read has not changed.
//!
//! A policy call is a transaction: the writes of a call are dropped if it faults, and the writes of a request if its plan is.

mod membership;
mod writes;

use std::cell::{Cell, OnceCell};
use std::collections::HashSet;
use std::sync::Arc;

use indexmap::IndexSet;

use super::record::Changes;
use super::state::{self, Value};
use super::{Model, groups};
use crate::net::turns::aside_if;
use crate::types::event::UserId;
use membership::GroupChanges;
pub use writes::StateError;
use writes::Writes;

/// The model as one request sees it.
#[derive(Debug)]
pub struct World {
    model: Arc<Model>,
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
    has_looked_at_groups: Cell<bool>,
    /// How many recipients each policy has in this request.
    told: Vec<(Arc<str>, usize)>,
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
            writes: Writes::default(),
            groups: GroupChanges::default(),
            counts: Vec::new(),
            counts_before: 0,
            everyone: OnceCell::new(),
            has_looked_at_groups: Cell::new(false),
            told: Vec::new(),
        }
    }

    /// Returns whether nothing was read that may change, and nothing is changed.
    pub fn is_untouched(&self) -> bool {
        self.writes.is_untouched() && self.groups.is_untouched()
    }

    /// Returns whether recipients come from a group.
    pub fn has_looked_at_groups(&self) -> bool {
        self.has_looked_at_groups.get()
    }

    pub fn is_live(&self) -> bool {
        self.is_live
    }

    /// Takes the counters that its calls raise.
    pub fn take_counts(&mut self) -> Vec<Count> {
        std::mem::take(&mut self.counts)
    }

    /// Returns the time of the current call, in milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Begins a call: the writes of earlier calls can no longer be dropped.
    pub fn begin_call(&mut self) {
        self.now_ms = self.model.clock.now_ms();
        self.writes.begin_call();
        self.counts_before = self.counts.len();
    }

    /// Drops the writes of the current call.
    pub fn drop_call(&mut self) {
        self.writes.drop_call();
        self.counts.truncate(self.counts_before);
    }

    pub fn get(&mut self, policy: &Arc<str>, key: &str, quota: state::Quota) -> Option<Arc<[u8]>> {
        let states = self.model.states.read();
        self.writes.of(policy, quota, self.now_ms).read(&states, key).map(|value| value.bytes)
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
        let expires_ms = self.expiry(ttl_ms);
        let states = self.model.states.read();
        self.writes.of(policy, quota, self.now_ms).put(&states, key, Value { bytes: bytes.into(), expires_ms })
    }

    /// Removes a key, and returns whether it was there.
    pub fn delete(&mut self, policy: &Arc<str>, key: &str, quota: state::Quota) -> bool {
        let states = self.model.states.read();
        let mut own = self.writes.of(policy, quota, self.now_ms);
        let is_there = own.read(&states, key).is_some();
        if is_there {
            own.write(&states, key.to_owned(), None);
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
        let fresh_ms = self.expiry(ttl_ms);
        let states = self.model.states.read();
        let mut own = self.writes.of(policy, quota, self.now_ms);
        let (number, expires_ms) = match own.read(&states, &key) {
            Some(value) => {
                let text = std::str::from_utf8(&value.bytes).map_err(|_| StateError::NotANumber)?;
                (text.parse().map_err(|_| StateError::NotANumber)?, value.expires_ms)
            }
            None => (0_i64, fresh_ms),
        };
        let sum = number.checked_add(by).ok_or(StateError::NotANumber)?;
        own.put(&states, key, Value { bytes: sum.to_string().into_bytes().into(), expires_ms })?;
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
        let expires_ms = self.expiry(ttl_ms);
        let states = self.model.states.read();
        let mut own = self.writes.of(policy, quota, self.now_ms);
        if own.read(&states, &key).as_ref().map(|value| &*value.bytes) != expected {
            return Ok(false);
        }
        own.put(&states, key, Value { bytes: bytes.into(), expires_ms })?;
        Ok(true)
    }

    pub fn count(&mut self, policy: &Arc<str>, name: String, by: u64, names_max: usize) {
        self.counts.push(Count { policy: policy.clone(), name, by, names_max });
    }

    /// Returns every user with an open session, the same ones to all deliveries of the request.
    pub fn everyone(&self) -> &IndexSet<UserId> {
        let mailboxes = &self.model.mailboxes;
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
    pub fn sessions_of(&self, user: &str) -> usize {
        self.model.mailboxes.sessions_of(user)
    }

    /// Returns whether a user is in a group. A guest's read: the group must be unchanged at the commit.
    pub fn contains(&mut self, group: &str, user: &str) -> bool {
        let groups = self.model.groups.read();
        self.groups.note_read(&groups, group);
        self.groups.is_member(&groups, group, user)
    }

    /// Returns the number of members. A guest's read, as [`World::contains`].
    pub fn size(&mut self, group: &str) -> usize {
        let groups = self.model.groups.read();
        self.groups.note_read(&groups, group);
        self.groups.size(&groups, group)
    }

    /// Returns the first members, in the order in which they joined. A guest's read, as [`World::contains`].
    pub fn members(&mut self, group: &str, most: usize) -> Vec<UserId> {
        let groups = self.model.groups.read();
        self.groups.note_read(&groups, group);
        self.groups.audience(&groups, group, &HashSet::new(), most).0
    }

    /// Returns the first members who are not excepted, in the order in which they joined, and how many there are in total. For a
    /// delivery: a later change of the group is not a conflict.
    pub fn audience(&self, group: &str, except: &HashSet<&UserId>, most: usize) -> (Vec<UserId>, usize) {
        self.has_looked_at_groups.set(true);
        self.groups.audience(&self.model.groups.read(), group, except, most)
    }

    /// Adds a member.
    ///
    /// # Errors
    /// A bound is reached; nothing has changed.
    pub fn join(&mut self, policy: &Arc<str>, quota: groups::Quota, group: &str, user: UserId) -> Result<(), Full> {
        self.groups.join(&self.model.groups.read(), policy, quota, group, user)
    }

    /// Removes a member, if it is there.
    pub fn leave(&mut self, group: &str, user: &UserId) {
        self.groups.leave(&self.model.groups.read(), group, user);
    }

    /// Ends a group.
    pub fn end(&mut self, group: &str) {
        self.groups.end(&self.model.groups.read(), group);
    }

    fn expiry(&self, ttl_ms: Option<u32>) -> Option<u64> {
        ttl_ms.map(|ttl| self.now_ms.saturating_add(ttl.into()))
    }
}

impl Model {
    /// Commits the changes of a world, all or nothing, notes them, and calls `conclude` with them. The caller has the turn if the world is
    /// touched. Returns the counters to raise and what `conclude` returned.
    ///
    /// # Errors
    /// Something that the world read has changed since, or what it wrote no longer fits. `conclude` was not called.
    pub fn commit<P>(
        &self,
        world: &mut World,
        mut changes: Changes,
        conclude: impl FnOnce(Changes) -> P,
    ) -> Result<(Vec<Count>, P), Conflict> {
        debug_assert!(world.is_live, "a look changes nothing");
        let counts = std::mem::take(&mut world.counts);
        if world.is_untouched() {
            return Ok((counts, conclude(changes)));
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
        Ok((counts, conclude(changes)))
    }
}

fn signed(count: usize) -> isize {
    isize::try_from(count).unwrap_or(isize::MAX)
}

fn add(count: usize, change: isize) -> usize {
    count.saturating_add_signed(change)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::metrics::Metrics;
    use crate::model::groups::Share;
    use crate::model::state::Usage;
    use crate::types::clock::Clock;
    use std::num::NonZeroUsize;
    use std::sync::mpsc::channel;
    use std::time::{Duration, SystemTime};
    use tokio::time::Instant;

    const QUOTA: state::Quota = state::Quota { keys_max: 2, bytes_max: 1000, value_bytes_max: 100 };
    const ANY: groups::Quota = groups::Quota { groups_max: usize::MAX, memberships_max: usize::MAX };

    fn model(change: impl FnOnce(&mut Config)) -> Arc<Model> {
        let mut config = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0;
        change(&mut config);
        Model::new(&config, Clock::Since(SystemTime::UNIX_EPOCH, Instant::now()), 1, false, &Arc::new(Metrics::new().unwrap()))
    }

    fn policy() -> Arc<str> {
        "p".into()
    }

    fn user(text: &str) -> UserId {
        UserId::new(text, 16).unwrap()
    }

    fn change<R>(model: &Arc<Model>, mut change: impl FnMut(&mut World) -> R) -> R {
        let change = |world: &mut World| {
            world.begin_call();
            change(world)
        };
        model.transact(Changes::forgotten, change, |_, _| ()).0
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
        let (counts, ()) = model.commit(&mut world, Changes::forgotten(), |_| ()).unwrap();
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
                model.commit(&mut other, Changes::forgotten(), |_| ()).unwrap();
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
        assert_eq!(model.commit(&mut looked, Changes::forgotten(), |_| ()).err(), Some(Conflict));
        assert!(model.commit(&mut told, Changes::forgotten(), |_| ()).is_ok());
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
            config.groups.groups_max = NonZeroUsize::MIN;
            config.groups.members_max = NonZeroUsize::new(2).unwrap();
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

    #[tokio::test]
    async fn a_group_that_ends_gives_back_the_shares_of_all_who_added_members() {
        let model = model(|_| ());
        let (one, two): (Arc<str>, Arc<str>) = ("one".into(), "two".into());
        let shares = || {
            let groups = model.groups.read();
            (groups.totals(), groups.share("one"), groups.share("two"))
        };
        let share = |groups, memberships| Share { groups, memberships };
        change(&model, |world| {
            ["1", "2", "3"].into_iter().for_each(|name| world.join(&one, ANY, "a", user(name)).unwrap());
            ["4", "5"].into_iter().for_each(|name| world.join(&two, ANY, "a", user(name)).unwrap());
            world.join(&two, ANY, "b", user("1")).unwrap();
        });
        assert_eq!(shares(), (share(2, 6), share(1, 3), share(1, 3)));
        change(&model, |world| {
            world.leave("a", &user("2"));
            world.leave("a", &user("4"));
            world.join(&two, ANY, "a", user("6")).unwrap();
            world.end("a");
            world.join(&one, ANY, "a", user("7")).unwrap();
        });
        assert_eq!((shares(), members(&model, "a")), ((share(2, 2), share(1, 1), share(1, 1)), vec![user("7")]));
        change(&model, |world| world.leave("a", &user("7")));
        assert_eq!(shares(), (share(1, 1), share(0, 0), share(1, 1)));
    }

    #[tokio::test]
    async fn groups_and_state_are_free_while_messages_are_posted() {
        let model = model(|_| ());
        let plan = |world: &mut World| {
            world.begin_call();
            world.set(&policy(), "a".into(), b"1".to_vec(), None, QUOTA).unwrap();
            world.join(&policy(), ANY, "a", user("1")).unwrap();
        };
        let are_free = model.transact(Changes::forgotten, plan, |(), _| {
            let mut look = World::dry(&model);
            let (state, groups) = (model.states.try_write().is_some(), model.groups.try_write().is_some());
            (state && groups, text(look.get(&policy(), "a", QUOTA)), look.contains("a", "1"))
        });
        assert_eq!(are_free.1, (true, Some("1".into()), true));
    }

    #[test]
    fn a_request_is_concluded_after_those_whose_changes_it_has_seen() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let model = runtime.block_on(async { model(|_| ()) });
        // Changes something, depends on something, or finds its recipients in a group; the last sees nothing of the first.
        type Later = (&'static str, bool, fn(&mut World));
        let plans: [Later; 4] = [
            ("changes", true, |world| world.join(&policy(), ANY, "a", user("2")).unwrap()),
            ("depends", true, |world| assert!(world.contains("a", "1"))),
            ("tells the group", true, |world| drop(world.audience("a", &HashSet::new(), 9))),
            ("tells a user", false, |_| ()),
        ];
        for (name, waits, later) in plans {
            change(&model, |world| world.end("a"));
            let model = &model;
            let (posts, is_posting) = channel();
            let (release, is_released) = channel::<()>();
            let (plans, is_planned) = channel();
            let (concludes, is_concluded) = channel();
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    let join = |world: &mut World| world.join(&policy(), ANY, "a", user("1")).unwrap();
                    model.transact(Changes::forgotten, join, |(), _| {
                        posts.send(()).unwrap();
                        is_released.recv().unwrap();
                    });
                });
                is_posting.recv().unwrap();
                scope.spawn(move || {
                    let plan = |world: &mut World| {
                        later(world);
                        plans.send(()).unwrap();
                    };
                    model.transact(Changes::forgotten, plan, |(), _| concludes.send(()).unwrap());
                });
                is_planned.recv().unwrap();
                let patience = Duration::from_millis(if waits { 50 } else { 5000 });
                assert_eq!(is_concluded.recv_timeout(patience).is_err(), waits, "{name}");
                release.send(()).unwrap();
                if waits {
                    is_concluded.recv_timeout(Duration::from_secs(5)).unwrap_or_else(|_| panic!("{name}"));
                }
            });
        }
    }
}
