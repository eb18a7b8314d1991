//! A part of a long list.

/// `limit` entries after the first `after`.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    pub after: usize,
    pub limit: usize,
}

impl Page {
    /// Returns the `after` of the next page of a list with this many entries, if there is one.
    pub fn next(&self, entries: usize) -> Option<usize> {
        let next = self.after.saturating_add(self.limit);
        (next < entries).then_some(next)
    }
}
