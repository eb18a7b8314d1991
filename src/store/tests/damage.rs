//! Damaged files: each is refused, or what is missing is told.

use super::*;

fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for (number, _) in Folder::look(from).segments().unwrap() {
        fs::copy(Folder::look(from).segment(number), Folder::look(to.path()).segment(number)).unwrap();
    }
    to
}

/// Makes the segments those of another run of the machine, which has gone down since.
fn machine_went_down(dir: &Path) {
    let folder = Folder::look(dir);
    folder.segments().unwrap().into_iter().for_each(|(number, _)| of_another_run(&folder.segment(number)));
}

fn of_another_run(segment: &Path) {
    let mut bytes = fs::read(segment).unwrap();
    let header = frame::Header { boot: 1, ..frame::Header::decode(&bytes).unwrap() };
    bytes[..frame::HEADER_BYTES].copy_from_slice(&header.encode());
    fs::write(segment, bytes).unwrap();
}

/// Opens a store, does something, and is killed before a model has anything of it.
fn killed_at_its_start(dir: &Path, config: &Config, act: impl FnOnce(&Arc<Log>)) {
    let metrics = Arc::new(Metrics::new().unwrap());
    let opened = Opened::at(&Place::Named(dir.to_owned()), &config.store, &metrics).unwrap();
    let Store::Log(log) = &opened.store else { unreachable!() };
    act(log);
    log.abandon();
}

/// Zeroes a stretch of a file, as if the system had not written it.
fn zero(file: &Path, range: std::ops::Range<usize>) {
    let mut bytes = fs::read(file).unwrap();
    bytes[range].fill(0);
    fs::write(file, bytes).unwrap();
}

/// Checks that each mailbox says that it may lack messages.
fn all_are_told(running: &Running) {
    let all = running.model.mailboxes.all();
    assert!(!all.is_empty() && all.values().all(|(_, marks, _)| marks.lost > 0 && marks.lost <= marks.last), "{all:?}");
}

/// Starts on a store of which something may be missing, and checks that every client is told so.
fn start_and_tell(dir: &Path) -> Running {
    let running = Running::start(dir, &config(4096)).unwrap();
    all_are_told(&running);
    running
}

#[test]
fn each_of_a_thousand_flipped_bits_is_refused_or_cut_off_at_the_end_and_never_read() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), false);
    let folder = Folder::look(dir.path());
    let segments = folder.segments().unwrap();
    let whole = replay::replay(&folder, Damage::Refuse, |_, _| ()).unwrap();
    let mut random = fastrand::Rng::with_seed(3);
    let (mut refused, mut cut) = (0, 0);
    for _ in 0..1000 {
        let (number, _) = segments[random.usize(..segments.len())];
        let file = folder.segment(number);
        let bytes = fs::read(&file).unwrap();
        let mut damaged = bytes.clone();
        let at = random.usize(..bytes.len());
        damaged[at] ^= 1 << random.u8(..8);
        fs::write(&file, damaged).unwrap();
        match replay::replay(&folder, Damage::Refuse, |_, _| ()) {
            Err(_) => refused += 1,
            Ok(replayed) => {
                assert!(replayed.torn.is_some() && !replayed.is_clean, "bit of byte {at} in segment {number} went unnoticed");
                assert_eq!(
                    (number, replayed.frames + 1),
                    (segments.last().unwrap().0, whole.frames),
                    "more than the last frame is cut off"
                );
                cut += 1;
            }
        }
        fs::write(&file, bytes).unwrap();
    }
    assert!(refused > 900 && cut > 0 && refused + cut == 1000, "{refused} refused, {cut} cut");
}

#[test]
fn a_torn_end_is_cut_off_wherever_it_is_torn() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), false);
    let (last, bytes) = *Folder::look(dir.path()).segments().unwrap().last().unwrap();
    for cut in (0..bytes).step_by(13) {
        let torn = copy(dir.path());
        let file = Folder::look(torn.path()).segment(last);
        fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(cut).unwrap();
        let running = Running::start(torn.path(), &config(4096)).unwrap();
        running.stop();
        Running::start(torn.path(), &config(4096)).unwrap().stop();
    }
}

#[test]
fn a_missing_segment_is_noticed_and_so_is_the_first_unless_it_was_cleaned_away() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), true);
    let segments = Folder::look(dir.path()).segments().unwrap();
    let [middle, first] = [1, 0].map(|index: usize| {
        let copied = copy(dir.path());
        fs::remove_file(Folder::look(copied.path()).segment(segments[index].0)).unwrap();
        Running::start(copied.path(), &config(4096)).err().unwrap()
    });
    assert!(matches!(middle, OpenError::Replay(ReplayError::Missing(_))), "{middle}");
    assert!(matches!(first, OpenError::Replay(ReplayError::MissingFirst(_))), "{first}");

    let mut running = Running::start(dir.path(), &config(4096)).unwrap();
    let mut random = fastrand::Rng::with_seed(8);
    for _ in 0..10 {
        (0..400).for_each(|_| running.act(&mut random));
        running.cleaner.clean().unwrap();
    }
    let standing = running.standing();
    running.crash();
    let segments = Folder::look(dir.path()).segments().unwrap();
    assert!(segments[0].0 > 1, "it was cleaned");
    fs::remove_file(Folder::look(dir.path()).segment(segments[0].0)).unwrap();
    let refused = Running::start(dir.path(), &config(4096)).err().unwrap();
    assert!(matches!(refused, OpenError::Replay(ReplayError::MissingFirst(_))), "{refused}");
    let salvaged = tempfile::tempdir().unwrap();
    inspect::renew(dir.path(), true, salvaged.path(), &config(4096).store).unwrap();
    let running = Running::start(salvaged.path(), &config(4096)).unwrap();
    assert!(!standing.is_empty() && !running.standing().is_empty());
    running.stop();
}

#[test]
fn a_store_with_holes_after_the_machine_went_down_is_written_anew_and_tells_every_client() {
    for hole in ["within a file", "a header", "a whole file", "the end of a file"] {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), false);
        machine_went_down(dir.path());
        let folder = Folder::look(dir.path());
        let segments = folder.segments().unwrap();
        let (second, bytes) = segments[1];
        let file = folder.segment(second);
        match hole {
            "within a file" => zero(&file, bytes as usize / 2..bytes as usize / 2 + 100),
            "a header" => zero(&file, 0..frame::HEADER_BYTES),
            "a whole file" => fs::remove_file(&file).unwrap(),
            _ => {
                let whole = fs::read(&file).unwrap();
                let salt = frame::Header::decode(&whole).unwrap().salt;
                let end = frame::read(&whole, frame::HEADER_BYTES, salt).unwrap().end;
                fs::write(&file, &whole[..end]).unwrap();
            }
        }
        let running = Running::start(dir.path(), &config(4096)).unwrap();
        assert!(folder.segments().unwrap()[0].0 > segments.last().unwrap().0, "{hole}: it was written anew");
        all_are_told(&running);
        running.crash();
        let again = start_and_tell(dir.path());
        again.stop();
    }
}

#[test]
fn a_store_whose_end_may_be_missing_after_the_machine_went_down_tells_every_client_so_also_after_further_crashes() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), false);
    machine_went_down(dir.path());
    // The first start is killed before it has noted anything, and the second one before anybody has asked.
    killed_at_its_start(dir.path(), &config(4096), |_| ());
    for _ in 0..3 {
        let running = start_and_tell(dir.path());
        running.crash();
    }
    let running = start_and_tell(dir.path());
    running.stop();
}

#[test]
fn a_store_that_was_stopped_in_order_before_the_machine_went_down_lacks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let standing = filled(dir.path(), true);
    machine_went_down(dir.path());
    let running = Running::start(dir.path(), &config(4096)).unwrap();
    assert_eq!(running.standing(), standing);
    running.stop();
}

#[test]
fn a_run_of_which_the_disk_has_nothing_may_have_given_seqs_and_lost_messages() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), true);
    let newest = |running: &Running| running.model.mailboxes.all().into_values().map(|(_, marks, _)| marks.last).min().unwrap();
    let running = Running::start(dir.path(), &config(4096)).unwrap();
    let before = newest(&running);
    running.crash();
    // The process was killed before it wrote a frame, and a reader may have seen a message.
    let running = Running::start(dir.path(), &config(4096)).unwrap();
    assert!(newest(&running) > before + 1000, "seqs jump");
    running.stop();
    let running = Running::start(dir.path(), &config(4096)).unwrap();
    running.crash();
    machine_went_down(dir.path());
    // The system may not have written what this run stored.
    let running = start_and_tell(dir.path());
    running.stop();
}

#[test]
fn a_store_that_promised_the_disk_is_never_read_past_damage() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(4096);
    config.store.durability = Durability::Fsync;
    let running = Running::start(dir.path(), &config).unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    (0..30).for_each(|_| running.act(&mut random));
    running.crash();
    let folder = Folder::look(dir.path());
    let first = folder.segment(folder.segments().unwrap()[0].0);
    of_another_run(&first);
    let mut bytes = fs::read(&first).unwrap();
    bytes[frame::HEADER_BYTES + 10] ^= 1;
    fs::write(first, bytes).unwrap();
    assert!(matches!(Running::start(dir.path(), &config), Err(OpenError::Replay(ReplayError::Damaged { .. }))));
}

#[test]
fn a_start_that_is_killed_while_it_writes_a_damaged_store_anew_is_followed_by_one_that_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), false);
    machine_went_down(dir.path());
    let folder = Folder::look(dir.path());
    let segments = folder.segments().unwrap();
    let (unreadable, _) = segments[segments.len() - 2];
    zero(&folder.segment(unreadable), 0..frame::HEADER_BYTES);
    let mut synced = config(4096);
    synced.store.durability = Durability::Fsync;
    killed_at_its_start(dir.path(), &synced, |log| log.append_cleaned(unreadable).stored_blocking().unwrap());
    // It goes first, and its place is before a file that is synced.
    fs::remove_file(folder.segment(unreadable)).unwrap();
    fs::remove_file(folder.segment(segments.last().unwrap().0)).unwrap();
    let running = Running::start(dir.path(), &synced).unwrap();
    all_are_told(&running);
    running.stop();
}

#[test]
fn a_start_after_the_machine_went_down_goes_on_without_the_record_of_what_was_cleaned_also_if_it_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), false);
    machine_went_down(dir.path());
    let folder = Folder::look(dir.path());
    // It was cleaned away, and the record of that was not written.
    fs::remove_file(folder.segment(1)).unwrap();
    killed_at_its_start(dir.path(), &config(4096), |_| ());
    let running = start_and_tell(dir.path());
    assert!(folder.segments().unwrap().iter().all(|(number, _)| *number > 2), "it was written anew");
    running.crash();
    start_and_tell(dir.path()).stop();
}

#[test]
fn what_has_no_header_of_its_own_is_the_first_to_go_when_a_damaged_store_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), false);
    machine_went_down(dir.path());
    let folder = Folder::look(dir.path());
    // The disk has other files' content in the place of the second one, and nothing in that of the third.
    fs::copy(folder.segment(1), folder.segment(2)).unwrap();
    zero(&folder.segment(3), 0..frame::HEADER_BYTES);
    let metrics = Arc::new(Metrics::new().unwrap());
    let opened = Opened::at(&Place::Named(dir.path().to_owned()), &config(4096).store, &metrics).unwrap();
    let model = Model::new(&config(4096), Clock::Machine, opened.id, true, &metrics);
    let (Some((replayed, folder)), Store::Log(log)) = (opened.kept, opened.store) else { unreachable!() };
    let old = Cleaner::new(log.clone(), model, folder, &replayed.segments).old();
    assert!(old.len() > 3 && old[..3] == [2, 3, 1], "{old:?}");
    log.abandon();
}
