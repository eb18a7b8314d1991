//! A store and a model: what was answered is there again, whatever happens to the process and to the disk.

mod damage;

use std::fs;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::config::{Config, Durability};
use crate::model::world::World;
use crate::model::{groups, state};
use crate::types::clock::Clock;
use crate::types::delivery::{Message, PolicySetId, Priority, Terms};
use crate::types::event::{Body, UserId};

const ROOM: state::Quota = state::Quota { keys_max: usize::MAX, bytes_max: usize::MAX, value_bytes_max: usize::MAX };
const ANY: groups::Quota = groups::Quota { groups_max: usize::MAX, memberships_max: usize::MAX };

fn config(segment_bytes: u64) -> Config {
    let mut config = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0;
    config.store.segment_bytes = NonZeroU64::new(segment_bytes).unwrap();
    config.store.free_bytes_min = 0;
    config.mailboxes.messages_max = NonZeroUsize::new(20).unwrap();
    config
}

struct Running {
    model: Arc<Model>,
    store: Store,
    cleaner: Cleaner,
}

impl Running {
    fn start(dir: &Path, config: &Config) -> Result<Running, OpenError> {
        let metrics = Arc::new(Metrics::new().unwrap());
        let opened = Opened::at(&Place::Named(dir.to_owned()), &config.store, &metrics)?;
        let store = opened.store.clone();
        let model = Model::new(config, Clock::Machine, opened.id, true, &metrics);
        let cleaner = opened.fill(&model).unwrap().unwrap();
        Ok(Running { model, store, cleaner })
    }

    fn stop(self) {
        self.store.close(&self.model).unwrap();
    }

    /// Ends as a process does that is killed: nothing more is noted. What was handed over is written, since the system has it.
    fn crash(self) {
        let Store::Log(log) = &self.store else { unreachable!() };
        log.abandon();
    }

    /// Does something random, and waits until it is stored.
    fn act(&self, random: &mut fastrand::Rng) {
        let policy: Arc<str> = ["a", "b"][random.usize(..2)].into();
        let seed = random.u64(..);
        let plan = |world: &mut World| {
            let mut random = fastrand::Rng::with_seed(seed);
            world.begin_call();
            for _ in 0..random.usize(..4) {
                let (key, group, user) = (random.u8(b'a'..b'f'), format!("g{}", random.u8(..4)), user(random.usize(..6)));
                let key = char::from(key).to_string();
                match random.u8(..8) {
                    0 => drop(world.delete(&policy, &key, ROOM)),
                    1 => drop(world.increment(&policy, format!("n{key}"), 1, None, ROOM)),
                    2 | 3 => world.set(&policy, key, vec![random.u8(..); 50], Some(3_600_000), ROOM).unwrap(),
                    4 | 5 => world.join(&policy, ANY, &group, user).unwrap(),
                    6 => world.leave(&group, &user),
                    _ => world.end(&group),
                }
            }
        };
        let messages: Vec<_> = (0..random.usize(..3)).map(|_| (user(random.usize(..6)), message(random))).collect();
        let conclude = |(): &(), mut changes: Changes| {
            for (user, message) in &messages {
                self.model.mailboxes.post(user, None, message, &mut changes);
            }
            self.store.append(changes)
        };
        self.model.transact(|| self.store.changes(), plan, conclude).1.stored_blocking().unwrap();
    }

    /// Returns all that a restart must not change.
    fn standing(&self) -> Vec<String> {
        let mut standing: Vec<String> = Vec::new();
        let states = self.model.states.read();
        standing.extend(states.all().map(|(policy, key, entry)| format!("{policy} {key} {entry:?}")));
        standing.extend(self.model.groups.read().all().map(|membership| format!("{membership:?}")));
        standing.extend(
            self.model
                .mailboxes
                .all()
                .into_iter()
                .map(|(user, (birth, marks, seqs))| format!("{user} {birth} {} {} {seqs:?}", marks.delivered, marks.lost)),
        );
        standing.sort();
        standing
    }
}

fn user(number: usize) -> UserId {
    UserId::new(&number.to_string(), 16).unwrap()
}

fn message(random: &mut fastrand::Rng) -> Arc<Message> {
    let collapse_key = (random.u8(..3) == 0).then(|| "k".into());
    let priority = [Priority::Low, Priority::Normal, Priority::High][random.usize(..3)];
    let keep = (random.u8(..8) == 0).then_some(Duration::ZERO);
    let terms = Terms { collapse_key, priority, keep, ..Terms::default() };
    Arc::new(Message::new("1".into(), "a".into(), Body::Text("x".repeat(random.usize(..200))), PolicySetId(1)).with(terms))
}

#[test]
fn what_was_stored_is_there_after_stops_and_crashes_in_any_order() {
    for seed in 0..6 {
        let dir = tempfile::tempdir().unwrap();
        let config = config(4096);
        let mut random = fastrand::Rng::with_seed(seed);
        let mut standing = Vec::new();
        let mut newest = std::collections::BTreeMap::<UserId, u64>::new();
        for round in 0..8 {
            let mut running = Running::start(dir.path(), &config).unwrap();
            assert_eq!(running.standing(), standing, "seed {seed}, round {round}");
            for (user, (_, marks, _)) in running.model.mailboxes.all() {
                assert!(marks.last >= newest[&user], "a seq is given twice");
            }
            for _ in 0..random.usize(..200) {
                running.act(&mut random);
            }
            if random.bool() {
                running.cleaner.clean().unwrap();
            }
            standing = running.standing();
            newest = running.model.mailboxes.all().into_iter().map(|(user, (_, marks, _))| (user, marks.last)).collect();
            if random.bool() { running.stop() } else { running.crash() }
        }
    }
}

#[test]
fn the_log_stays_small_and_what_counts_stays() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(8192);
    let mut running = Running::start(dir.path(), &config).unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..20 {
        for _ in 0..200 {
            running.act(&mut random);
        }
        running.cleaner.clean().unwrap();
        let bytes: u64 = Folder::look(dir.path()).segments().unwrap().iter().map(|(_, bytes)| bytes).sum();
        let kept = running.model.kept_bytes() as u64;
        assert!(bytes <= 2 * kept + 3 * 8192, "{bytes} bytes for {kept} that count");
    }
    let standing = running.standing();
    running.crash();
    let running = Running::start(dir.path(), &config).unwrap();
    assert_eq!(running.standing(), standing);
    running.stop();
}

/// Makes a store of several segments, stopped in order or not, and returns what stands in it.
fn filled(dir: &Path, in_order: bool) -> Vec<String> {
    let running = Running::start(dir, &config(4096)).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..100 {
        running.act(&mut random);
    }
    let standing = running.standing();
    if in_order {
        running.stop()
    } else {
        running.crash()
    }
    standing
}

#[test]
fn a_backup_restores_with_new_epochs_and_a_salvage_saves_what_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), &config(4096)).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..100 {
        running.act(&mut random);
    }
    let standing = running.standing();
    let [backup, restored, salvaged] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    inspect::backup(dir.path(), backup.path()).unwrap();
    running.stop();
    inspect::renew(backup.path(), false, restored.path(), &config(4096).store).unwrap();
    let again = Running::start(restored.path(), &config(4096)).unwrap();
    assert_eq!(again.standing(), standing);
    again.stop();
    let ids = [dir.path(), restored.path()].map(|dir| inspect::summary(dir).unwrap().store.unwrap());
    assert_ne!(ids[0], ids[1]);
    assert!(inspect::backup(dir.path(), backup.path()).is_err(), "the folder holds one already");

    let (middle, bytes) = Folder::look(dir.path()).segments().unwrap()[1];
    let file = Folder::look(dir.path()).segment(middle);
    let mut damaged = fs::read(&file).unwrap();
    damaged[bytes as usize / 2] ^= 1;
    fs::write(&file, damaged).unwrap();
    assert!(inspect::summary(dir.path()).is_err());
    let (_, passed_over) = inspect::renew(dir.path(), true, salvaged.path(), &config(4096).store).unwrap();
    assert!(passed_over > 0);
    Running::start(salvaged.path(), &config(4096)).unwrap().stop();
}

/// Appends something, and returns its ticket.
fn append(running: &Running) -> Ticket {
    let mut changes = running.store.changes();
    changes.note(|| crate::model::record::Change::Seen { key: 7, at_ms: 7, failed: false });
    running.store.append(changes)
}

#[tokio::test]
async fn a_request_writes_what_it_waits_for_and_the_thread_writes_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), &config(1 << 20)).unwrap();
    let Store::Log(log) = &running.store else { unreachable!() };
    // Once a second it is the thread's, since the free space has to be looked at; and the thread may be late for what it was woken for.
    let is_written_at_once = (0..20).any(|_| {
        let ticket = append(&running);
        std::thread::sleep(Duration::from_millis(10));
        let is_left_alone = log.pending_bytes() > 0;
        let mut stored = std::pin::pin!(ticket.stored());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let is_stored = stored.as_mut().poll(&mut context).is_ready();
        // It is the thread's by now, if it was not written.
        running.store.append(running.store.changes()).stored_blocking().unwrap();
        is_left_alone && is_stored
    });
    assert!(is_written_at_once);
    // The thread writes what nobody waits for.
    drop(append(&running));
    let deadline = Instant::now() + Duration::from_secs(10);
    while log.pending_bytes() > 0 {
        assert!(Instant::now() < deadline, "nobody has written it");
        std::thread::sleep(Duration::from_millis(5));
    }
    running.stop();
}

#[test]
fn what_many_append_at_once_is_stored_whoever_writes_it() {
    for durability in [Durability::Os, Durability::Fsync] {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(4096);
        config.store.durability = durability;
        let running = Running::start(dir.path(), &config).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let running = &running;
                scope.spawn(move || {
                    for turn in 0..100 {
                        let ticket = append(running);
                        // Some wait, and some don't.
                        if (thread + turn) % 3 > 0 {
                            ticket.stored_blocking().unwrap();
                        }
                    }
                });
            }
        });
        let Store::Log(log) = &running.store else { unreachable!() };
        let deadline = Instant::now() + Duration::from_secs(10);
        while log.pending_bytes() > 0 {
            assert!(Instant::now() < deadline, "something waits, and nobody writes it ({durability:?})");
            std::thread::sleep(Duration::from_millis(5));
        }
        running.stop();
        let again = Running::start(dir.path(), &config).unwrap();
        again.stop();
    }
}
