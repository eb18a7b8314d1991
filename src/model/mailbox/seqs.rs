//! A set of seqs: all up to a mark, and stretches beyond it. A log keeps one of the messages that have reached a reader: a stretch beyond the
//! mark is what a second device has read while the first one was stuck.

/// Pure: only the log knows what is in a gap.
#[derive(Debug, Default, PartialEq)]
pub struct Seqs {
    mark: u64,
    /// Stretches in order that don't touch. Each begins after its first seq and ends with its second.
    beyond: Vec<(u64, u64)>,
}

impl Seqs {
    /// Returns the set of everything up to a mark.
    pub fn upto(mark: u64) -> Seqs {
        Seqs { mark, beyond: Vec::new() }
    }

    /// Returns the seq up to which everything is in the set.
    pub fn mark(&self) -> u64 {
        self.mark
    }

    pub fn beyond(&self) -> &[(u64, u64)] {
        &self.beyond
    }

    pub fn contains(&self, seq: u64) -> bool {
        seq <= self.mark || is_in(&self.beyond, seq)
    }

    /// Adds everything after `after` and up to `to`. `is_waiting` says whether a message is there between two seqs, after the first and up
    /// to the second: a stretch with such a gap before it stays apart.
    pub fn add(&mut self, after: u64, to: u64, is_waiting: impl Fn(u64, u64) -> bool) {
        if to <= self.mark || to <= after {
            return;
        }
        if self.beyond.is_empty() && (after <= self.mark || !is_waiting(self.mark, after)) {
            self.mark = to;
            return;
        }
        self.beyond.push((after, to));
        self.beyond.sort_unstable();
        let mut apart: Vec<(u64, u64)> = Vec::new();
        for (after, to) in std::mem::take(&mut self.beyond) {
            let before = apart.last().map_or(self.mark, |(_, to)| *to);
            let joins = after <= before || !is_waiting(before, after);
            match apart.last_mut() {
                _ if !joins => apart.push((after, to)),
                Some((_, end)) => *end = to.max(*end),
                None => self.mark = to.max(self.mark),
            }
        }
        self.beyond = apart;
    }
}

/// Returns whether a seq is in one of these stretches.
pub fn is_in(stretches: &[(u64, u64)], seq: u64) -> bool {
    stretches.iter().any(|(after, to)| *after < seq && seq <= *to)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds a stretch while messages wait at these seqs.
    fn add(delivered: &mut Seqs, waiting: &[u64], after: u64, to: u64) {
        delivered.add(after, to, |from, until| waiting.iter().any(|seq| from < *seq && *seq <= until));
    }

    #[test]
    fn a_mark_grows_and_never_goes_back() {
        let mut delivered = Seqs::default();
        for (to, mark) in [(3, 3), (2, 3), (0, 3), (5, 5)] {
            add(&mut delivered, &[1, 2, 3, 4, 5], 0, to);
            assert_eq!(delivered.mark(), mark);
        }
        assert!(delivered.contains(5) && !delivered.contains(6));
    }

    #[test]
    fn a_stretch_behind_waiting_messages_stays_apart_until_they_are_delivered() {
        let mut delivered = Seqs::default();
        let waiting = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        add(&mut delivered, &waiting, 2, 4);
        add(&mut delivered, &waiting, 6, 8);
        assert_eq!((delivered.mark(), delivered.beyond()), (0, &[(2, 4), (6, 8)][..]));
        assert!([3, 4, 7, 8].iter().all(|seq| delivered.contains(*seq)) && [1, 2, 5, 6, 9].iter().all(|seq| !delivered.contains(*seq)));
        // The same device reads on.
        add(&mut delivered, &waiting, 6, 9);
        assert_eq!(delivered.beyond(), [(2, 4), (6, 9)]);
        add(&mut delivered, &waiting, 0, 2);
        assert_eq!((delivered.mark(), delivered.beyond()), (4, &[(6, 9)][..]));
        add(&mut delivered, &waiting, 3, 6);
        assert_eq!((delivered.mark(), delivered.beyond()), (9, &[][..]));
    }

    #[test]
    fn a_gap_in_which_nothing_waits_is_no_gap() {
        let mut delivered = Seqs::default();
        add(&mut delivered, &[1], 2, 4);
        add(&mut delivered, &[1], 6, 8);
        assert_eq!((delivered.mark(), delivered.beyond()), (0, &[(2, 8)][..]));
        // What waited has expired.
        add(&mut delivered, &[], 8, 9);
        assert_eq!((delivered.mark(), delivered.beyond()), (9, &[][..]));
    }
}
