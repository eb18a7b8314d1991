//! Machine code by function, for somebody who edits a plugin: an edit changes few of a component's functions. An interpreter's
//! are always the same, and make most of what JavaScript and Python take to compile.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use wasmtime::CacheStore;

/// Of the components that were compiled last.
#[derive(Debug, Default)]
pub(super) struct Functions {
    known: HashMap<Vec<u8>, Vec<u8>>,
    /// Those of this compilation.
    used: Mutex<HashMap<Vec<u8>, Vec<u8>>>,
}

impl CacheStore for Functions {
    fn get(&self, key: &[u8]) -> Option<Cow<'_, [u8]>> {
        let code = self.known.get(key)?;
        self.use_it(key, code.clone());
        Some(Cow::Borrowed(code))
    }

    fn insert(&self, key: &[u8], value: Vec<u8>) -> bool {
        self.use_it(key, value);
        true
    }
}

impl Functions {
    /// What [`Functions::into_bytes`] wrote; none of what is cut off.
    pub(super) fn from_bytes(bytes: &[u8]) -> Functions {
        let mut known = HashMap::new();
        let mut rest = bytes;
        while let Some((key, (code, after))) = split_part(rest).and_then(|(key, after)| Some((key, split_part(after)?))) {
            known.insert(key.to_vec(), code.to_vec());
            rest = after;
        }
        Functions { known, used: Mutex::default() }
    }

    /// Those that were used.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.iter().flat_map(|(key, code)| [key, code]).fold(Vec::new(), |mut bytes, part| {
            push_part(&mut bytes, part);
            bytes
        })
    }

    fn use_it(&self, key: &[u8], code: Vec<u8>) {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_vec(), code);
    }
}

/// Adds bytes with their length before them.
pub(super) fn push_part(bytes: &mut Vec<u8>, part: &[u8]) {
    bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
    bytes.extend_from_slice(part);
}

/// Splits off what [`push_part`] added.
pub(super) fn split_part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_is_known_the_next_time_and_the_rest_forgotten() {
        let first = Functions::default();
        assert!(first.insert(b"a", b"code of a".to_vec()) && first.insert(b"b", Vec::new()));
        let second = Functions::from_bytes(&first.to_bytes());
        assert_eq!(second.get(b"a").as_deref(), Some(&b"code of a"[..]));
        assert_eq!(second.get(b"c"), None);
        let third = Functions::from_bytes(&second.to_bytes());
        assert_eq!((third.known.len(), third.get(b"b")), (1, None));
    }

    #[test]
    fn cut_bytes_are_fewer_functions() {
        let functions = Functions::default();
        functions.insert(b"a", b"code".to_vec());
        let bytes = functions.to_bytes();
        assert!((0..bytes.len()).all(|length| Functions::from_bytes(&bytes[..length]).known.is_empty()));
    }
}
