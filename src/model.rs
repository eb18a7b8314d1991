//! The model: what the server remembers, which is the sum of its records: mailboxes, groups, the policies' state, the ids of published
//! events, and dead letters. Guests see groups and state through a [`world::World`], and a commit changes them.
//!
//! Lock order: `turn`, then an [`order::Turn`] if other nodes follow, then `states`, then `groups`. None is held across an await. `states` and
//! `groups` are held neither while a guest runs nor while messages are posted, so long work never delays a request that only reads.

mod absorb;
pub mod agreement;
pub mod dead_letters;
pub mod dedup;
pub mod fold;
pub mod groups;
pub mod mailbox;
pub mod order;
pub mod record;
mod restore;
mod snapshot;
pub mod state;
pub mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};

use crate::config::Config;
use crate::metrics::Metrics;
use crate::net::turns::patiently;
use crate::types::clock::Clock;
use agreement::Agreement;
use dead_letters::DeadLetters;
use dedup::Dedup;
use groups::Groups;
use mailbox::Mailboxes;
use record::Changes;
pub use restore::Counters;
use state::States;
use world::{Conflict, World};

/// Orders the changes of groups and state: a later change has a larger stamp. 0 is before every change.
pub type Stamp = u64;

#[derive(Debug)]
pub struct Model {
    pub mailboxes: Arc<Mailboxes>,
    pub states: RwLock<States>,
    pub groups: RwLock<Groups>,
    pub dedup: Mutex<Dedup>,
    pub dead_letters: DeadLetters,
    /// The policies of a cluster's nodes.
    pub agreement: Agreement,
    pub clock: Clock,
    metrics: Arc<Metrics>,
    last_stamp: AtomicU64,
    /// Held by a request that changes groups or state, or depends on them, from its commit until it has posted its messages and handed its
    /// changes to the store. A request that has met too many conflicts holds it while it is planned as well.
    turn: Mutex<()>,
    /// Counts up when the policies begin to be replaced, and when they are.
    generation: AtomicU64,
    replacing: Mutex<()>,
}

/// How often a request is planned concurrently with others before it is planned alone. Conflicts are rare: two requests must read and
/// write the same key within microseconds.
const PLANS_BESIDE_OTHERS: usize = 4;

impl Model {
    /// Returns an empty model. `store_id`: distinguishes its mailboxes from those of another store. `is_kept`: a store keeps the changes.
    pub fn new(config: &Config, clock: Clock, store_id: u64, is_kept: bool, metrics: &Arc<Metrics>) -> Arc<Model> {
        Arc::new(Model {
            mailboxes: Mailboxes::new(config, clock, store_id, is_kept, metrics.clone()),
            states: RwLock::default(),
            groups: RwLock::new(Groups::new(config.groups.clone())),
            dedup: Mutex::new(Dedup::new(&config.events)),
            dead_letters: DeadLetters::new(config.dead_letters.clone(), metrics.clone()),
            agreement: Agreement::default(),
            clock,
            metrics: metrics.clone(),
            last_stamp: AtomicU64::new(0),
            turn: Mutex::default(),
            generation: AtomicU64::new(0),
            replacing: Mutex::default(),
        })
    }

    /// Replaces the policies: what others before them have planned, and is not committed yet, is planned again.
    pub fn replace_policies<R>(&self, replace: impl FnOnce() -> R) -> R {
        let _one_at_a_time = self.replacing.lock();
        // Twice, so that a plan that has begun in between does not count, whichever policies it has found.
        self.generation.fetch_add(1, Ordering::SeqCst);
        let replaced = replace();
        self.generation.fetch_add(1, Ordering::SeqCst);
        replaced
    }

    /// Returns a number that is another one once the policies were replaced. Ask for it before the policies.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Plans a request against a world, commits its changes, and calls `conclude` once with the plan and the changes, before any other
    /// request that has seen what was committed is concluded. So two requests post their messages, and hand their changes to the store, in
    /// the order in which they commit. After a conflict the request is planned again, so `plan` may run several times. `changes`: begins an
    /// attempt's list.
    pub fn transact<R, P>(
        self: &Arc<Model>,
        changes: impl Fn() -> Changes,
        mut plan: impl FnMut(&mut World) -> R,
        mut conclude: impl FnMut(&R, Changes) -> P,
    ) -> (R, P) {
        for _ in 0..PLANS_BESIDE_OTHERS {
            if let Ok(done) = self.attempt(&changes, &mut plan, &mut conclude, || Some(patiently(&self.turn))) {
                return done;
            }
        }
        let _alone = patiently(&self.turn);
        loop {
            // No other request commits, so the first round succeeds, unless something that was read expires in between.
            if let Ok(done) = self.attempt(&changes, &mut plan, &mut conclude, || None) {
                return done;
            }
        }
    }

    fn attempt<'a, R, P>(
        self: &'a Arc<Model>,
        changes: &impl Fn() -> Changes,
        plan: &mut impl FnMut(&mut World) -> R,
        conclude: &mut impl FnMut(&R, Changes) -> P,
        turn: impl Fn() -> Option<MutexGuard<'a, ()>>,
    ) -> Result<(R, P), Conflict> {
        let generation = self.generation();
        let mut world = World::live(self);
        let planned = plan(&mut world);
        // A world that is untouched can't conflict, and disturbs nobody. If it found its recipients in groups, it follows the requests
        // that have made them what they are.
        let _turn = (!world.is_untouched()).then(&turn);
        if world.is_untouched() && world.has_looked_at_groups() {
            drop(turn());
        }
        let changes = changes();
        // Where commits have an order, none of older policies follows one of newer ones.
        if self.generation() != generation || !generation.is_multiple_of(2) {
            return Err(Conflict);
        }
        let concluded = self.commit(&world, changes, |changes| conclude(&planned, changes))?;
        world.conclude(&self.metrics);
        Ok((planned, concluded))
    }

    /// Plans something that changes nothing but counters: what it writes is dropped. For a node that does not decide.
    pub fn read_only<R>(self: &Arc<Model>, plan: impl FnOnce(&mut World) -> R) -> R {
        let mut world = World::live(self);
        let planned = plan(&mut world);
        world.conclude(&self.metrics);
        planned
    }

    /// Waits until the requests that have changed groups or state have handed their changes to the store.
    fn settled(&self) {
        drop(self.turn.lock());
    }

    /// Returns the next stamp. The caller must hold the lock of what it changes.
    fn next_stamp(&self) -> Stamp {
        self.last_stamp.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Removes expired state.
    pub fn sweep(&self) {
        let policies = self.states.read().policies();
        for policy in policies {
            // One at a time: others wait meanwhile.
            self.states.write().sweep(&policy, self.clock.now_ms());
        }
    }
}
