//! The format of segments: a header, then frames. Numbers are little-endian.
//!
//! ```text
//! header   magic 8 · version u32 · store u64 · number u64 · first frame u64 · counters 5 × u64 · boot u128 · durability u8 · salt u32
//!          · crc32 u32
//! frame    bytes u32 · crc32 u32 · number u64 · began u64 · records
//! ```
//! `bytes` counts what follows the checksum, and the checksum covers it. Frames are numbered across segments, so that a missing one is
//! noticed. `began` is the segment that was being written when the first change of the frame could be made: usually this one.
//!
//! A frame's checksum begins with its segment's salt, which only the file says. So no message can contain bytes that are taken for a frame
//! when whole frames are looked for behind a damaged one, and no frame of a deleted file whose blocks the disk uses again can be either.

use crate::config::Durability;
use crate::model::Counters;

const MAGIC: &[u8; 8] = b"SIGNALPO";

/// A reader refuses a later version. A record that an older reader may skip needs none: see `codec`.
const VERSION: u32 = 1;

pub const HEADER_BYTES: usize = 8 + 4 + 8 + 8 + 8 + 5 * 8 + 16 + 1 + 4 + 4;

/// Bytes of a frame before its records.
pub const FRAME_HEAD_BYTES: usize = 4 + 4 + 8 + 8;

/// The part of a frame's head that its length does not count.
const PREFIX_BYTES: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub store: u64,
    /// The segment's number, 1 for the first.
    pub number: u64,
    pub first_frame: u64,
    /// Larger than every number of the segments before.
    pub counters: Counters,
    /// Identifies the machine's run in which the segment was begun: what a process has written outlives the process, not the machine.
    pub boot: u128,
    pub durability: Durability,
    /// Where the checksums of this segment's frames begin.
    pub salt: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// It is too short, or its checksum is wrong.
    Damaged,
    /// Another version has written it.
    Version(u32),
}

/// One frame of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub number: u64,
    pub began: u64,
    pub records: &'a [u8],
    /// The offset after it.
    pub end: usize,
}

impl Header {
    pub fn encode(&self) -> Vec<u8> {
        let Counters { stamp, birth, letter, letter_stamp, crashes } = self.counters;
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        for number in [self.store, self.number, self.first_frame, stamp, birth, letter, letter_stamp, crashes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.boot.to_le_bytes());
        out.push(match self.durability {
            Durability::Fsync => 1,
            Durability::Os | Durability::Memory => 0,
        });
        out.extend_from_slice(&self.salt.to_le_bytes());
        out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
        out
    }

    /// # Errors
    /// It is damaged, or of another version.
    pub fn decode(segment: &[u8]) -> Result<Header, HeaderError> {
        let (bytes, crc) = segment.get(..HEADER_BYTES).and_then(|head| head.split_last_chunk()).ok_or(HeaderError::Damaged)?;
        let mut rest = bytes.strip_prefix(MAGIC).ok_or(HeaderError::Damaged)?;
        let version = u32::from_le_bytes(take(&mut rest)?);
        if u32::from_le_bytes(*crc) != crc32fast::hash(bytes) {
            return Err(HeaderError::Damaged);
        }
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let mut next = || take(&mut rest).map(u64::from_le_bytes);
        let (store, number, first_frame) = (next()?, next()?, next()?);
        let counters = Counters { stamp: next()?, birth: next()?, letter: next()?, letter_stamp: next()?, crashes: next()? };
        let boot = u128::from_le_bytes(take(&mut rest)?);
        let [durability] = take(&mut rest)?;
        let durability = if durability == 1 { Durability::Fsync } else { Durability::Os };
        let salt = u32::from_le_bytes(take(&mut rest)?);
        Ok(Header { store, number, first_frame, counters, boot, durability, salt })
    }
}

/// Completes a frame whose first [`FRAME_HEAD_BYTES`] bytes were left free.
pub fn seal(frame: &mut [u8], number: u64, began: u64, salt: u32) {
    let bytes = u32::try_from(frame.len() - PREFIX_BYTES).unwrap_or(u32::MAX);
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = frame.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(8, &number.to_le_bytes());
    put(16, &began.to_le_bytes());
    put(0, &bytes.to_le_bytes());
    let crc = checksum(frame.get(PREFIX_BYTES..).unwrap_or_default(), salt);
    if let Some(place) = frame.get_mut(4..8) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
}

/// Reads the frame at an offset. Returns `None` if there is none, or if it is damaged.
pub fn read(segment: &[u8], at: usize, salt: u32) -> Option<Frame<'_>> {
    let mut head = segment.get(at..)?;
    let bytes = u32::from_le_bytes(take(&mut head).ok()?) as usize;
    let crc = u32::from_le_bytes(take(&mut head).ok()?);
    let content = head.get(..bytes)?;
    let mut rest = content;
    let number = u64::from_le_bytes(take(&mut rest).ok()?);
    let began = u64::from_le_bytes(take(&mut rest).ok()?);
    (checksum(content, salt) == crc).then_some(Frame { number, began, records: rest, end: at + PREFIX_BYTES + bytes })
}

/// Returns the offset of the first whole frame after `at` whose number is at least `number`.
pub fn find(segment: &[u8], at: usize, number: u64, salt: u32) -> Option<usize> {
    // A frame's number is checked before its checksum: few offsets look like a frame.
    let is_likely = |offset: &usize| {
        let found = segment.get(offset + PREFIX_BYTES..).and_then(|rest| rest.first_chunk()).map(|bytes| u64::from_le_bytes(*bytes));
        found.is_some_and(|found| (number..number + segment.len() as u64).contains(&found))
    };
    (at + 1..segment.len()).filter(is_likely).find(|offset| read(segment, *offset, salt).is_some())
}

fn checksum(content: &[u8], salt: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(salt);
    hasher.update(content);
    hasher.finalize()
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], HeaderError> {
    let (first, rest) = bytes.split_first_chunk().ok_or(HeaderError::Damaged)?;
    *bytes = rest;
    Ok(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: u32 = 77;

    fn frame(number: u64, records: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; FRAME_HEAD_BYTES];
        frame.extend_from_slice(records);
        seal(&mut frame, number, 3, SALT);
        frame
    }

    #[test]
    fn a_header_is_read_as_it_was_written_and_no_bit_of_it_may_change() {
        let counters = Counters { stamp: 1, birth: 2, letter: 3, letter_stamp: 4, crashes: 5 };
        let header = Header { store: 6, number: 7, first_frame: 8, counters, boot: 9, durability: Durability::Fsync, salt: SALT };
        let bytes = header.encode();
        assert_eq!((bytes.len(), Header::decode(&bytes)), (HEADER_BYTES, Ok(header)));
        for bit in 0..HEADER_BYTES * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&flipped), Err(HeaderError::Damaged), "bit {bit}");
        }
        assert_eq!(Header::decode(&bytes[..HEADER_BYTES - 1]), Err(HeaderError::Damaged));
        let mut later = bytes[..HEADER_BYTES - 4].to_vec();
        later[8] = 2;
        let crc = crc32fast::hash(&later).to_le_bytes();
        later.extend_from_slice(&crc);
        assert_eq!(Header::decode(&later), Err(HeaderError::Version(2)));
    }

    #[test]
    fn a_frame_is_whole_or_is_not_read() {
        let bytes = [frame(1, b"one"), frame(2, b"")].concat();
        let first = read(&bytes, 0, SALT).unwrap();
        assert_eq!(first, Frame { number: 1, began: 3, records: b"one", end: FRAME_HEAD_BYTES + 3 });
        assert_eq!(read(&bytes, first.end, SALT), Some(Frame { number: 2, began: 3, records: b"", end: bytes.len() }));
        assert_eq!(read(&bytes, bytes.len(), SALT), None);
        for bit in 0..first.end * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&flipped, 0, SALT), None, "bit {bit}");
        }
        for cut in 0..first.end {
            assert_eq!(read(&bytes[..cut], 0, SALT), None);
        }
    }

    #[test]
    fn a_whole_frame_is_found_behind_a_damaged_one() {
        let mut bytes = [frame(1, b"one"), frame(2, b"two"), frame(3, b"three")].concat();
        let second = read(&bytes, 0, SALT).unwrap().end;
        let third = read(&bytes, second, SALT).unwrap().end;
        bytes[second + 1] ^= 1;
        assert_eq!(find(&bytes, second, 2, SALT), Some(third));
        assert_eq!(find(&bytes[..third], second, 2, SALT), None, "a torn end has nothing behind it");
        assert_eq!(find(&[bytes.as_slice(), &[0; 100]].concat(), third, 4, SALT), None);
    }

    #[test]
    fn a_frame_within_a_record_is_not_taken_for_one() {
        let mut forged = vec![0; FRAME_HEAD_BYTES];
        forged.extend_from_slice(b"forged");
        seal(&mut forged, 2, 3, 0);
        let bytes = frame(1, &forged);
        assert_eq!(find(&bytes, 0, 1, SALT), None);
        assert_eq!(find(&bytes, 0, 1, 0), Some(FRAME_HEAD_BYTES), "but for the salt");
    }
}
