//! Lists that a producer can't make too long.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::vec::IntoIter;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

use crate::bounds::ITEMS_MAX;

/// A list in JSON of at most 1000 items (`bounds::ITEMS_MAX`). Reading stops at the first one too many, which is a refusal.
///
/// ```
/// use signalpost_plugin::{Id, List};
///
/// #[derive(serde::Deserialize)]
/// struct Offer {
///     driver_ids: List<Id>,
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List<T>(Vec<T>);

impl<T> Deref for List<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> IntoIterator for List<T> {
    type Item = T;
    type IntoIter = IntoIter<T>;

    fn into_iter(self) -> IntoIter<T> {
        self.0.into_iter()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<List<T>, D::Error> {
        struct Items<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Items<T> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "a list of at most {ITEMS_MAX} items")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    if list.len() == ITEMS_MAX {
                        return Err(A::Error::invalid_length(ITEMS_MAX + 1, &self));
                    }
                    list.push(item);
                }
                Ok(list)
            }
        }

        deserializer.deserialize_seq(Items(PhantomData)).map(List)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_at_most_a_thousand_items() {
        let read = |items: usize| serde_json::from_str::<List<u8>>(&format!("{:?}", vec![1; items]));
        assert_eq!(read(0).unwrap().len(), 0);
        assert_eq!(read(1000).unwrap().into_iter().count(), 1000);
        let error = read(1001).unwrap_err().to_string();
        assert!(error.starts_with("invalid length 1001, expected a list of at most 1000 items"), "{error}");
    }
}
