//! The fold of changes: the same in any order, and if changes are repeated. Entries of mailboxes are a set by user, birth and seq; marks
//! are maxima; groups and state are last-writer-wins by stamp.
//!
//! A removal may be folded before what it removes, so the fold remembers removals.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Stamp;
use super::dead_letters::DeadLetter;
use super::mailbox::Seqs;
use super::record::{Change, Mark};
use super::state::Value;
use crate::types::delivery::Message;
use crate::types::event::UserId;

/// What has been folded so far.
#[derive(Debug, Default, PartialEq)]
pub struct Fold {
    /// By policy and key.
    states: Stamped<(Arc<str>, String), Value>,
    /// By group and user: the policy that added the user.
    memberships: Stamped<(String, UserId), Arc<str>>,
    /// The stamp of each group's last end.
    ends: HashMap<String, Stamp>,
    mailboxes: HashMap<UserId, Mailbox>,
    /// By the event's key: when it was published, and whether it may be published again.
    seen: HashMap<u128, (u64, bool)>,
    letters: Stamped<u64, Arc<DeadLetter>>,
}

/// The latest value of each key and its stamp. `None` means removed.
type Stamped<K, V> = HashMap<K, (Stamp, Option<V>)>;

/// One life of a user's mailbox.
#[derive(Debug, Default, PartialEq)]
pub struct Mailbox {
    pub birth: u64,
    pub mark: Mark,
    pub entries: BTreeMap<u64, Entry>,
    removed: Seqs,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub message: Arc<Message>,
    pub posted_ms: u64,
}

impl Fold {
    pub fn fold(&mut self, change: Change) {
        match change {
            Change::Set { stamp, policy, key, value } => newest(&mut self.states, (policy, key), stamp, Some(value)),
            Change::Unset { stamp, policy, key } => newest(&mut self.states, (policy, key), stamp, None),
            Change::Join { stamp, group, user, policy } => newest(&mut self.memberships, (group, user), stamp, Some(policy)),
            Change::Leave { stamp, group, user } => newest(&mut self.memberships, (group, user), stamp, None),
            Change::End { stamp, group } => {
                let ended = self.ends.entry(group).or_default();
                *ended = stamp.max(*ended);
            }
            Change::Seen { key, at_ms, failed } => {
                let seen = self.seen.entry(key).or_insert((at_ms, failed));
                if at_ms >= seen.0 {
                    // At the same time, a success wins over a failure.
                    *seen = (at_ms, failed && (at_ms > seen.0 || seen.1));
                }
            }
            Change::Post { user, birth, seq, posted_ms, message, session: _, lost, removed } => {
                let Some(mailbox) = self.mailbox(user, birth) else { return };
                mailbox.mark.last = mailbox.mark.last.max(seq);
                mailbox.mark.lost = mailbox.mark.lost.max(lost);
                removed.into_iter().for_each(|seq| mailbox.remove(seq.saturating_sub(1), seq));
                if !mailbox.removed.contains(seq) {
                    mailbox.entries.insert(seq, Entry { message, posted_ms });
                }
            }
            Change::Mark { user, birth, mark, removed } => {
                let Some(mailbox) = self.mailbox(user, birth) else { return };
                mailbox.mark = mailbox.mark.or_newer(mark);
                removed.into_iter().for_each(|(after, to)| mailbox.remove(after, to));
            }
            Change::Letter { stamp, letter } => newest(&mut self.letters, letter.id, stamp, Some(letter)),
            Change::NoLetter { stamp, id } => newest(&mut self.letters, id, stamp, None),
            // No log has these: sessions don't outlive the process, and a server that is alone agrees with nobody.
            Change::Opened { .. } | Change::Closed { .. } | Change::Gone { .. } | Change::Agreed(_) => {}
        }
    }

    /// Returns every policy's current entries.
    pub fn states(&self) -> impl Iterator<Item = (&Arc<str>, &String, Stamp, &Value)> {
        self.states.iter().filter_map(|((policy, key), (stamp, value))| Some((policy, key, *stamp, value.as_ref()?)))
    }

    /// Returns every current membership, in the order in which users joined.
    pub fn memberships(&self) -> Vec<(&String, &UserId, &Arc<str>, Stamp)> {
        let standing = self.memberships.iter().filter_map(|((group, user), (stamp, policy))| {
            let is_over = self.ends.get(group).is_some_and(|ended| ended > stamp);
            Some((group, user, policy.as_ref().filter(|_| !is_over)?, *stamp))
        });
        let mut standing: Vec<_> = standing.collect();
        standing.sort_by_key(|(.., stamp)| *stamp);
        standing
    }

    /// Returns the events that were published, with their times, and whether they failed; the oldest first.
    pub fn seen(&self) -> Vec<(u128, u64, bool)> {
        let mut seen: Vec<_> = self.seen.iter().map(|(key, (at_ms, failed))| (*key, *at_ms, *failed)).collect();
        seen.sort_unstable_by_key(|(key, at_ms, _)| (*at_ms, *key));
        seen
    }

    /// Returns the dead letters that are kept, with their stamps.
    pub fn letters(&self) -> impl Iterator<Item = (Stamp, &Arc<DeadLetter>)> {
        self.letters.values().filter_map(|(stamp, letter)| Some((*stamp, letter.as_ref()?)))
    }

    pub fn mailboxes(&self) -> &HashMap<UserId, Mailbox> {
        &self.mailboxes
    }

    /// Returns changes that add up to this, in pieces: a mailbox is in one piece, and so is everything else.
    pub fn into_changes(mut self) -> impl Iterator<Item = Vec<Change>> {
        let mailboxes = self.take_mailboxes();
        let mut others = Vec::new();
        others.extend(self.states().map(|(policy, key, stamp, value)| Change::state(stamp, policy, key, Some(value))));
        others.extend(self.memberships().into_iter().map(|(group, user, policy, stamp)| Change::Join {
            stamp,
            group: group.clone(),
            user: user.clone(),
            policy: policy.clone(),
        }));
        others.extend(self.seen().into_iter().map(|(key, at_ms, failed)| Change::Seen { key, at_ms, failed }));
        others.extend(self.letters().map(|(stamp, letter)| Change::Letter { stamp, letter: letter.clone() }));
        let mailboxes = mailboxes.into_iter().map(|(user, mailbox)| {
            let Mailbox { birth, mark, entries, removed: _ } = mailbox;
            let post = |(seq, Entry { message, posted_ms })| Change::Post {
                user: user.clone(),
                birth,
                seq,
                posted_ms,
                message,
                session: None,
                lost: 0,
                removed: Vec::new(),
            };
            let mut changes: Vec<Change> = entries.into_iter().map(post).collect();
            changes.push(Change::Mark { user, birth, mark, removed: Vec::new() });
            changes
        });
        std::iter::once(others).chain(mailboxes)
    }

    /// Takes the mailboxes out.
    pub fn take_mailboxes(&mut self) -> HashMap<UserId, Mailbox> {
        std::mem::take(&mut self.mailboxes)
    }

    /// Returns the mailbox of this birth, or `None` if there was a later one.
    fn mailbox(&mut self, user: UserId, birth: u64) -> Option<&mut Mailbox> {
        let mailbox = self.mailboxes.entry(user).or_default();
        if birth > mailbox.birth {
            *mailbox = Mailbox { birth, ..Mailbox::default() };
        }
        (birth == mailbox.birth).then_some(mailbox)
    }
}

impl Mailbox {
    /// Removes the entries after `after` and up to `to`.
    fn remove(&mut self, after: u64, to: u64) {
        self.removed.add(after, to, |_, _| true);
        if after >= to {
            return;
        }
        while let Some((seq, _)) = self.entries.range(after + 1..=to).next() {
            let seq = *seq;
            self.entries.remove(&seq);
        }
    }
}

impl Mark {
    /// Returns what the two marks of a mailbox say together.
    fn or_newer(self, other: Mark) -> Mark {
        let newer = if other.version > self.version { other } else { self };
        Mark { last: self.last.max(other.last), delivered: self.delivered.max(other.delivered), lost: self.lost.max(other.lost), ..newer }
    }
}

/// Stores a value if it is newer than the current one.
fn newest<K: std::hash::Hash + Eq, V>(table: &mut Stamped<K, V>, key: K, stamp: Stamp, value: Option<V>) {
    match table.get_mut(&key) {
        Some(known) if known.0 > stamp => {}
        Some(known) => *known = (stamp, value),
        None => {
            table.insert(key, (stamp, value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::metrics::Metrics;
    use crate::model::groups::Quota;
    use crate::model::mailbox::Marks;
    use crate::model::record::Changes;
    use crate::model::world::World;
    use crate::model::{Model, state};
    use crate::types::clock::Clock;
    use crate::types::delivery::{PolicySetId, Priority, Terms};
    use crate::types::event::Body;
    use std::num::NonZero;
    use std::time::Duration;

    const ROOM: state::Quota = state::Quota { keys_max: usize::MAX, bytes_max: usize::MAX, value_bytes_max: usize::MAX };
    const ANY: Quota = Quota { groups_max: usize::MAX, memberships_max: usize::MAX };

    fn model() -> Arc<Model> {
        let mut config = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0;
        config.mailboxes.messages_max = NonZero::new(5).unwrap();
        Model::new(&config, Clock::Machine, 1, true, &Arc::new(Metrics::new().unwrap()))
    }

    fn user(number: usize) -> UserId {
        UserId::new(&number.to_string(), 16).unwrap()
    }

    /// Commits random changes of state and groups and posts random messages, and returns the changes that they noted.
    fn history(model: &Arc<Model>, random: &mut fastrand::Rng, commits: usize) -> Vec<Change> {
        let policies: [Arc<str>; 2] = ["a".into(), "b".into()];
        let mut changes = Vec::new();
        for _ in 0..commits {
            let (seed, policy) = (random.u64(..), &policies[random.usize(..2)]);
            let plan = |world: &mut World| {
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..random.usize(1..5) {
                    let (key, group, user) = (random.u8(b'a'..b'f'), format!("g{}", random.u8(..4)), user(random.usize(..6)));
                    let key = char::from(key).to_string();
                    match random.u8(..8) {
                        0 => drop(world.delete(policy, &key, ROOM)),
                        1 => drop(world.increment(policy, format!("n{key}"), 1, None, ROOM)),
                        2 | 3 => world.set(policy, key, vec![random.u8(..)], Some(3_600_000), ROOM).unwrap(),
                        4 | 5 => world.join(policy, ANY, &group, user).unwrap(),
                        6 => world.leave(&group, &user),
                        _ => world.end(&group),
                    }
                }
            };
            let ((), mut kept) = model.transact(|| Changes::kept(0), plan, |(), kept| kept);
            for _ in 0..random.usize(..3) {
                model.mailboxes.post(&user(random.usize(..6)), None, &message(random), &mut kept);
            }
            changes.extend(kept.into_changes());
        }
        changes
    }

    /// Returns a message that may have a collapse key, a low priority, or no time for which it is kept.
    fn message(random: &mut fastrand::Rng) -> Arc<Message> {
        let collapse_key = (random.u8(..3) == 0).then(|| "k".into());
        let priority = [Priority::Low, Priority::Normal, Priority::High][random.usize(..3)];
        let keep = (random.u8(..8) == 0).then_some(Duration::ZERO);
        let terms = Terms { collapse_key, priority, keep, ..Terms::default() };
        Arc::new(Message::new("1".into(), "a".into(), Body::Text("x".into()), PolicySetId(1)).with(terms))
    }

    fn folded(changes: impl IntoIterator<Item = Change>) -> Fold {
        let mut fold = Fold::default();
        changes.into_iter().for_each(|change| fold.fold(change));
        fold
    }

    /// Returns the result of a fold in a form that can be compared.
    fn standing(fold: &Fold) -> [Vec<String>; 3] {
        let mut states: Vec<String> = fold.states().map(|state| format!("{state:?}")).collect();
        states.sort();
        let mut memberships: Vec<String> = fold.memberships().iter().map(|membership| format!("{membership:?}")).collect();
        memberships.sort();
        let mut mailboxes: Vec<String> = fold
            .mailboxes()
            .iter()
            .map(|(user, mailbox)| {
                let Mailbox { birth, mark: Mark { last, delivered, lost, .. }, entries, .. } = mailbox;
                format!("{user} {birth} {last} {delivered} {lost} {:?}", entries.keys())
            })
            .collect();
        mailboxes.sort();
        [states, memberships, mailboxes]
    }

    fn standing_in(model: &Model) -> [Vec<String>; 3] {
        let states = model.states.read();
        let mut standing: Vec<String> =
            states.all().map(|(policy, key, entry)| format!("{:?}", (policy, key, entry.stamp, &entry.value))).collect();
        standing.sort();
        let groups = model.groups.read();
        let mut memberships: Vec<String> = groups.all().map(|membership| format!("{membership:?}")).collect();
        memberships.sort();
        let mailboxes = model.mailboxes.all().into_iter().map(|(user, (birth, marks, seqs))| {
            let Marks { last, delivered, lost } = marks;
            format!("{user} {birth} {last} {delivered} {lost} {seqs:?}")
        });
        [standing, memberships, mailboxes.collect()]
    }

    #[test]
    fn changes_add_up_to_the_model_whatever_their_order_and_however_often_each_comes() {
        for seed in 0..20 {
            let (model, mut random) = (model(), fastrand::Rng::with_seed(seed));
            let mut changes = history(&model, &mut random, 300);
            assert!(changes.len() > 300, "the history went somewhere");
            assert_eq!(standing(&folded(changes.clone())), standing_in(&model), "in order, seed {seed}");
            changes.extend_from_within(..changes.len() / 2);
            random.shuffle(&mut changes);
            assert_eq!(standing(&folded(changes)), standing_in(&model), "shuffled and doubled, seed {seed}");
        }
    }

    #[test]
    fn a_model_that_absorbs_changes_in_their_order_is_the_same_one() {
        for seed in 0..20 {
            let (model, other, mut random) = (model(), model(), fastrand::Rng::with_seed(seed));
            other.mailboxes.decide(false);
            for change in history(&model, &mut random, 300) {
                assert!(other.absorb(&change, |_| None, &Arc::default()).is_none());
            }
            assert_eq!(standing_in(&other), standing_in(&model), "seed {seed}");
            assert_eq!(other.mailboxes.totals(), model.mailboxes.totals());
            assert_eq!(other.groups.read().totals(), model.groups.read().totals());
        }
    }

    #[test]
    fn a_removal_that_comes_first_holds() {
        let policy: Arc<str> = "p".into();
        let value = state::Value { bytes: b"old".as_slice().into(), expires_ms: None };
        let mut fold = folded([
            Change::Unset { stamp: 5, policy: policy.clone(), key: "k".into() },
            Change::Leave { stamp: 6, group: "g".into(), user: user(1) },
            Change::End { stamp: 7, group: "g".into() },
        ]);
        fold.fold(Change::Set { stamp: 3, policy: policy.clone(), key: "k".into(), value });
        fold.fold(Change::Join { stamp: 4, group: "g".into(), user: user(1), policy });
        assert_eq!(standing(&fold), [const { Vec::<String>::new() }; 3]);
    }

    #[test]
    fn entries_are_a_set_and_marks_are_maxima_whatever_their_order() {
        let message = Arc::new(Message::new("1".into(), "a".into(), Body::Text("x".into()), PolicySetId(1)));
        let post = |birth, seq, removed: &[u64]| Change::Post {
            user: user(1),
            birth,
            seq,
            posted_ms: 1,
            message: message.clone(),
            session: None,
            lost: 0,
            removed: removed.to_vec(),
        };
        let mark = |version, birth, last, delivered, lost| {
            let mark = Mark { version, last, delivered, lost, is_resumable: version == 2, is_acked: false };
            Change::Mark { user: user(1), birth, mark, removed: vec![(3, 4)] }
        };
        let changes = [
            post(1, 1, &[]),
            post(1, 9, &[]),
            post(2, 1, &[]),
            post(2, 2, &[]),
            post(2, 3, &[1]),
            post(2, 4, &[]),
            mark(1, 2, 3, 1, 0),
            mark(2, 2, 5, 2, 1),
            mark(3, 1, 20, 20, 20),
        ];
        let expected = folded(changes.clone());
        let mailbox = &expected.mailboxes()[&user(1)];
        let mark = Mark { version: 2, last: 5, delivered: 2, lost: 1, is_resumable: true, is_acked: false };
        assert_eq!((mailbox.birth, mailbox.mark), (2, mark));
        assert_eq!(mailbox.entries.keys().copied().collect::<Vec<_>>(), [2, 3]);
        for seed in 0..200 {
            let mut shuffled = [changes.clone(), changes.clone()].concat();
            fastrand::Rng::with_seed(seed).shuffle(&mut shuffled);
            assert_eq!(folded(shuffled), expected, "seed {seed}");
        }
    }

    #[test]
    fn an_event_is_seen_as_it_was_last() {
        let seen = |at_ms, failed| Change::Seen { key: 7, at_ms, failed };
        for changes in [[seen(1, true), seen(2, false)], [seen(2, false), seen(1, true)], [seen(2, false), seen(2, true)]] {
            assert_eq!(folded(changes).seen(), [(7, 2, false)]);
        }
    }
}
