//! The model: what the server remembers. Mailboxes, groups, the policies' state, which events it has seen, and its dead letters: all
//! that records add up to. Guests see it through a [`world::World`], and it changes by a commit.
//!
//! Locks: `states` before `groups`; neither is held while a guest runs or anything waits.

pub mod dead_letters;
pub mod dedup;
#[cfg_attr(not(test), expect(dead_code, reason = "a store that outlives the process reads its records by it; there is none yet"))]
pub mod fold;
pub mod groups;
pub mod mailbox;
#[cfg_attr(not(test), expect(dead_code, reason = "memory keeps no records"))]
pub mod record;
pub mod state;
pub mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::config::Config;
use crate::metrics::Metrics;
use crate::types::clock::Clock;
use dead_letters::DeadLetters;
use dedup::Dedup;
use groups::Groups;
use mailbox::Mailboxes;
use record::Changes;
use state::States;
use world::{Conflict, World};

/// Orders the changes of groups and state: a later change has a larger stamp. 0 is before all of them.
pub type Stamp = u64;

#[derive(Debug)]
pub struct Model {
    pub mailboxes: Arc<Mailboxes>,
    pub states: RwLock<States>,
    pub groups: RwLock<Groups>,
    pub dedup: Mutex<Dedup>,
    pub dead_letters: DeadLetters,
    pub clock: Clock,
    metrics: Arc<Metrics>,
    last_stamp: AtomicU64,
    /// Held shared while an event is planned and committed; held alone by one that met conflicts each time.
    turn: RwLock<()>,
}

/// How often a request is planned beside others before it is planned alone. Conflicts are rare: two requests must read and write the
/// same key within microseconds.
const PLANS_BESIDE_OTHERS: usize = 4;

impl Model {
    pub fn new(config: &Config, clock: Clock, metrics: &Arc<Metrics>) -> Arc<Model> {
        Arc::new(Model {
            mailboxes: Mailboxes::new(config.mailboxes.clone(), &config.sockets, metrics.clone()),
            states: RwLock::default(),
            groups: RwLock::new(Groups::new(config.groups.clone())),
            dedup: Mutex::new(Dedup::new(&config.events)),
            dead_letters: DeadLetters::new(config.dead_letters.clone(), metrics.clone()),
            clock,
            metrics: metrics.clone(),
            last_stamp: AtomicU64::new(0),
            turn: RwLock::default(),
        })
    }

    /// Runs guests against a world and commits what they changed: all of it, or it is planned again. `plan` may run several times.
    pub fn transact<R>(self: &Arc<Model>, changes: &mut Changes, mut plan: impl FnMut(&mut World) -> R) -> R {
        for _ in 0..PLANS_BESIDE_OTHERS {
            let _beside_others = self.turn.read();
            if let Ok(planned) = self.attempt(changes, &mut plan) {
                return planned;
            }
        }
        let _alone = self.turn.write();
        loop {
            // Nobody else commits, so this ends with the first round, unless what was read expires in between.
            if let Ok(planned) = self.attempt(changes, &mut plan) {
                return planned;
            }
        }
    }

    fn attempt<R>(self: &Arc<Model>, changes: &mut Changes, plan: &mut impl FnMut(&mut World) -> R) -> Result<R, Conflict> {
        let mut world = World::live(self);
        let planned = plan(&mut world);
        for count in self.commit(&mut world, changes)? {
            self.metrics.count_custom(&count.policy, &count.name, count.by, count.names_max);
        }
        Ok(planned)
    }

    /// Draws a stamp. Whoever draws one holds the lock of what it is for.
    fn next_stamp(&self) -> Stamp {
        self.last_stamp.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Forgets state that has expired.
    pub fn sweep(&self) {
        self.states.write().sweep(self.clock.now_ms());
    }
}
