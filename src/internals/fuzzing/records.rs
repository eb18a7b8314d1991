//! Records and frames of a store.

use std::collections::BTreeMap;

use crate::model::fold::Fold;
use crate::model::record::Change;
use crate::store::codec::{Said, decode, encode, encode_beat, encode_cleaned, encode_lead, encode_stop, encode_yield};
use crate::store::frame::{self, FRAME_HEAD_BYTES, Frame};

/// Where the frames here begin to be numbered, and the salt of their segment.
const FIRST: u64 = 7;
const SALT: u32 = 0x5eed;

/// Reads the records of a frame, whatever they are, and frames with other bytes around them.
pub fn records(input: &[u8]) {
    framed(input);
    let Ok(said) = decoded(input) else { return };
    let again = encoded(&said);
    assert_eq!(decoded(&again).as_ref(), Ok(&said), "written and read again");
    let changes: Vec<Change> =
        said.into_iter().filter_map(|said| if let Said::Change(change) = said { Some(change) } else { None }).collect();
    let once = folded(changes.clone());
    assert_eq!(once, folded(changes.iter().chain(&changes).cloned()), "folded twice");
    let before = standing(&once);
    let after = standing(&folded(once.into_changes().flatten()));
    assert_eq!(after, before, "written anew");
}

/// Checks that a frame of any records is read as it was written, and is found behind other bytes.
fn framed(records: &[u8]) {
    let mut bytes = records.to_vec();
    bytes.resize(bytes.len() + FRAME_HEAD_BYTES, 0);
    bytes.extend_from_slice(records);
    let (noise, sealed) = bytes.split_at_mut(records.len());
    frame::seal(sealed, FIRST, FIRST, SALT);
    let at = noise.len();
    let whole = Frame { number: FIRST, began: FIRST, records, end: bytes.len() };
    assert_eq!(frame::read(&bytes, at, SALT), Some(whole));
    // With the salt, and only with it, the noise can have a frame too.
    let found = frame::find(&bytes, 0, FIRST, SALT);
    assert_eq!(found.is_some(), at > 0);
    if let Some(found) = found {
        assert!(
            found <= at && frame::read(&bytes, found, SALT).is_some_and(|frame| frame.number >= FIRST),
            "found at {found}, not at {at}"
        );
    }
}

fn decoded(records: &[u8]) -> Result<Vec<Said>, crate::store::codec::Unreadable> {
    let mut said = Vec::new();
    decode(records, |one| said.push(one)).map(|()| said)
}

fn encoded(said: &[Said]) -> Vec<u8> {
    let mut records = Vec::new();
    for one in said {
        match one {
            Said::Change(change) => encode(std::slice::from_ref(change), &mut records),
            Said::Stop(counters) => encode_stop(*counters, &mut records),
            Said::Cleaned(segment) => encode_cleaned(*segment, &mut records),
            Said::Lead(lead) => encode_lead(lead, &mut records),
            Said::Beat => encode_beat(&mut records),
            Said::Yield(node) => encode_yield(node, &mut records),
        }
    }
    records
}

fn folded(changes: impl IntoIterator<Item = Change>) -> Fold {
    let mut fold = Fold::default();
    changes.into_iter().for_each(|change| fold.fold(change));
    fold
}

/// Returns everything that a server would have after it has read these changes.
fn standing(fold: &Fold) -> impl PartialEq + std::fmt::Debug + use<> {
    let states: BTreeMap<_, _> =
        fold.states().map(|(policy, key, stamp, value)| ((policy.to_string(), key.clone()), (stamp, value.clone()))).collect();
    let memberships: BTreeMap<_, _> = fold
        .memberships()
        .into_iter()
        .map(|(group, user, policy, stamp)| ((group.clone(), user.to_string()), (policy.to_string(), stamp)))
        .collect();
    let mailboxes: BTreeMap<_, _> = fold
        .mailboxes()
        .iter()
        .map(|(user, mailbox)| (user.to_string(), (mailbox.birth, mailbox.mark, format!("{:?}", mailbox.entries))))
        .collect();
    let seen: BTreeMap<_, _> = fold.seen().into_iter().map(|(key, at_ms, failed)| (key, (at_ms, failed))).collect();
    let letters: BTreeMap<_, _> = fold.letters().map(|(stamp, letter)| (letter.id, (stamp, letter.clone()))).collect();
    (states, memberships, mailboxes, seen, letters)
}
