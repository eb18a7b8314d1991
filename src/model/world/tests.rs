use super::super::state;
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
    model.commit(&world, Changes::forgotten(), |_| ()).unwrap();
    assert_eq!(world.counts.iter().map(|count| count.name.as_str()).collect::<Vec<_>>(), ["kept"]);
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
            model.commit(&other, Changes::forgotten(), |_| ()).unwrap();
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
    assert_eq!(model.commit(&looked, Changes::forgotten(), |_| ()).err(), Some(Conflict));
    assert!(model.commit(&told, Changes::forgotten(), |_| ()).is_ok());
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
    let seen = |look: &mut World, group: &str| look.audience(group, &HashSet::new(), 9).0;
    assert_eq!((seen(&mut look, "a"), seen(&mut look, "b"), seen(&mut look, "c")), (vec![user("1"), user("2")], vec![], vec![user("3")]));
    assert_eq!(look.audience("a", &HashSet::from([&user("1"), &user("3")]), 9), (vec![user("2")], 1));
    look.leave("a", &user("1"));
    assert_eq!(seen(&mut look, "a"), [user("2")]);
    look.join(&policy(), ANY, "a", user("1")).unwrap();
    assert_eq!(seen(&mut look, "a"), [user("2"), user("1")]);
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
    assert_eq!((join("a", "3"), join("b", "1")), (Err(OverQuota), Err(OverQuota)));
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
    assert_eq!(join(&small, few, "b", "1"), Err(OverQuota), "a second group");
    join(&other, ANY, "b", "1").unwrap();
    join(&small, few, "b", "2").unwrap();
    assert_eq!(join(&small, few, "a", "2"), Err(OverQuota), "a third membership");
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
    assert_eq!(both, (Ok(()), Err(OverQuota)));
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

/// Makes a call that is noted, and returns what it read.
fn noted(model: &Arc<Model>, call: impl Fn(&mut World)) -> Arc<Reads> {
    let plan = |world: &mut World| {
        world.note();
        world.begin_call();
        call(world);
        world.noted().unwrap()
    };
    Arc::new(model.transact(Changes::forgotten, plan, |_, _| ()).0)
}

#[tokio::test(start_paused = true)]
async fn a_tape_answers_what_a_call_has_read_and_misses_the_rest() {
    let model = model(|_| ());
    change(&model, |world| {
        world.set(&policy(), "a".into(), b"1".to_vec(), None, QUOTA).unwrap();
        ["1", "2"].into_iter().for_each(|name| world.join(&policy(), ANY, "g", user(name)).unwrap());
    });
    tokio::time::advance(Duration::from_millis(7)).await;
    let reads = noted(&model, |world| {
        assert_eq!(world.increment(&policy(), "a".into(), 1, None, QUOTA), Ok(2));
        assert!(!world.delete(&policy(), "none", QUOTA) && world.contains("g", "1"));
        assert_eq!(world.sessions_of("1"), 0);
    });
    assert_eq!(change(&model, |world| world.end("g")), ());
    let tape = || {
        let mut tape = World::tape(&reads, &policy());
        tape.begin_call();
        tape
    };
    let mut same = tape();
    assert_eq!((same.now_ms(), text(same.get(&policy(), "a", QUOTA))), (7, Some("1".into())), "as it was before the call");
    assert_eq!((same.increment(&policy(), "a".into(), 5, None, QUOTA), same.get(&policy(), "none", QUOTA)), (Ok(6), None));
    assert_eq!((same.size("g"), same.members("g", 9), same.sessions_of("1")), (2, vec![user("1"), user("2")], 0));
    // What it writes itself it may read.
    same.set(&policy(), "new".into(), b"x".to_vec(), None, QUOTA).unwrap();
    assert_eq!((text(same.get(&policy(), "new", QUOTA)), same.missing()), (Some("x".into()), None));
    type Call = fn(&mut World);
    let lacks: [(Call, Missing); 4] = [
        (|tape| assert_eq!(tape.get(&policy(), "b", QUOTA), None), Missing::State("b".into())),
        (|tape| assert_eq!(tape.increment(&policy(), "c".into(), 1, None, QUOTA), Ok(1)), Missing::State("c".into())),
        (|tape| assert_eq!(tape.size("h"), 0), Missing::Group("h".into())),
        (|tape| assert_eq!(tape.sessions_of("2"), 0), Missing::Presence("2".into())),
    ];
    for (call, missing) in lacks {
        let mut tape = tape();
        call(&mut tape);
        assert_eq!(tape.missing(), Some(&missing));
    }
    assert_eq!(
        text(change(&model, |world| world.get(&policy(), "a", QUOTA))),
        Some("2".into()),
        "the model has only the call's own change"
    );
}

#[tokio::test]
async fn what_a_call_has_written_is_not_what_it_has_read_but_what_an_earlier_call_wrote_is() {
    let model = model(|_| ());
    let mut world = World::live(&model);
    world.begin_call();
    world.set(&policy(), "k".into(), b"earlier".to_vec(), None, QUOTA).unwrap();
    world.join(&policy(), ANY, "g", user("1")).unwrap();
    world.note();
    world.begin_call();
    world.set(&policy(), "own".into(), b"1".to_vec(), None, QUOTA).unwrap();
    assert!(world.get(&policy(), "own", QUOTA).is_some() && world.get(&policy(), "k", QUOTA).is_some());
    world.join(&policy(), ANY, "g", user("2")).unwrap();
    world.audience("g", &HashSet::new(), 9);
    let reads = world.noted().unwrap();
    assert_eq!(reads.state, [("k".to_owned(), Some(b"earlier".as_slice().into()))].into());
    assert_eq!(reads.groups["g"], GroupRead { members: vec![user("1")], size: 1, ..GroupRead::default() });
    assert_eq!(world.noted(), None, "it stops");
}

#[tokio::test]
async fn a_large_group_is_known_by_its_first_members_and_by_whom_the_call_asked_for() {
    let model = model(|_| ());
    change(&model, |world| (0..1500).for_each(|number| world.join(&policy(), ANY, "g", user(&number.to_string())).unwrap()));
    let reads = noted(&model, |world| assert!(world.contains("g", "1400") && !world.contains("g", "nobody")));
    let read = &reads.groups["g"];
    assert_eq!((read.members.len(), read.size, read.asked.len()), (1000, 1500, 2));
    let mut tape = World::tape(&reads, &policy());
    assert!(tape.contains("g", "999") && tape.contains("g", "1400") && !tape.contains("g", "nobody"));
    assert_eq!((tape.size("g"), tape.members("g", 1000).len(), tape.missing()), (1500, 1000, None));
    assert!(!tape.contains("g", "1401"));
    assert_eq!(tape.missing(), Some(&Missing::Group("g".into())));
    let mut tape = World::tape(&reads, &policy());
    tape.members("g", 1001);
    assert_eq!(tape.missing(), Some(&Missing::Group("g".into())));
}

#[tokio::test]
async fn a_write_is_not_guessed_for_a_call_in_which_a_bound_refused_one() {
    let model = model(|_| ());
    let write = |world: &mut World, key: &str| world.set(&policy(), key.into(), b"1".to_vec(), None, QUOTA);
    let reads = noted(&model, |world| {
        let done: Vec<bool> = ["a", "b", "c"].iter().map(|key| write(world, key).is_ok()).collect();
        assert_eq!(done, [true, true, false]);
    });
    let mut tape = World::tape(&reads, &policy());
    tape.begin_call();
    write(&mut tape, "a").unwrap();
    assert_eq!(tape.missing(), Some(&Missing::Room("a".into())));
}

#[test]
fn what_was_planned_with_policies_that_were_replaced_since_is_planned_again() {
    let model = model(|_| ());
    let mut plans = 0;
    let plan = |_: &mut World| {
        plans += 1;
        let generation = model.generation();
        match plans {
            1 => model.replace_policies(|| ()),
            // They are being replaced, and what a plan finds may be the older ones.
            2 => model.replace_policies(|| assert!(model.generation() > generation)),
            _ => {}
        }
        generation
    };
    let (planned_with, concluded) = model.transact(Changes::forgotten, plan, |planned_with, _| *planned_with);
    assert_eq!((planned_with, concluded, model.generation(), plans), (4, 4, 4, 3));
}
