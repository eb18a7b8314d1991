//! The bounds of all mailboxes together, and what they hold.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::log::Removed;
use crate::config;

/// 1/10 of the total bounds is reserved for users who are connected.
const CONNECTED_SHARE: usize = 10;

/// How much all mailboxes hold together, and how much they may hold.
#[derive(Debug)]
pub struct Usage {
    messages: AtomicUsize,
    bytes: AtomicUsize,
    mailboxes: AtomicUsize,
    messages_max: usize,
    bytes_max: usize,
    mailboxes_max: usize,
}

impl Usage {
    pub fn new(limits: &config::Mailboxes) -> Usage {
        Usage {
            messages: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            mailboxes: AtomicUsize::new(0),
            messages_max: limits.total_messages_max.get(),
            bytes_max: limits.total_bytes_max.get(),
            mailboxes_max: limits.mailboxes_max.get(),
        }
    }

    pub fn messages(&self) -> usize {
        self.messages.load(Ordering::Relaxed)
    }

    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn mailboxes(&self) -> usize {
        self.mailboxes.load(Ordering::Relaxed)
    }

    /// Returns whether a message of `size` bytes is over the bounds, even if the messages that it replaces are removed.
    pub fn is_over_with(&self, is_away: bool, size: usize, (replaced, replaced_bytes): (usize, usize)) -> bool {
        let bound = |max: usize| if is_away { max - max / CONNECTED_SHARE } else { max };
        (self.messages() + 1).saturating_sub(replaced) > bound(self.messages_max)
            || (self.bytes() + size).saturating_sub(replaced_bytes) > bound(self.bytes_max)
    }

    /// Returns whether there is no room for one more mailbox. The number of sessions bounds the mailboxes of connected users.
    pub fn is_out_of_mailboxes(&self) -> bool {
        self.mailboxes() >= self.mailboxes_max
    }

    /// Returns whether there are too many mailboxes, so that an empty one is not remembered.
    pub fn is_crowded(&self) -> bool {
        self.mailboxes() > self.mailboxes_max
    }

    /// Returns whether there is more than the bounds allow.
    pub fn is_over(&self) -> bool {
        self.messages() > self.messages_max || self.bytes() > self.bytes_max
    }

    pub fn add(&self, messages: usize, bytes: usize) {
        self.messages.fetch_add(messages, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn give_back(&self, removed: &Removed) {
        self.messages.fetch_sub(removed.messages, Ordering::Relaxed);
        self.bytes.fetch_sub(removed.bytes, Ordering::Relaxed);
    }

    pub fn add_mailbox(&self) {
        self.mailboxes.fetch_add(1, Ordering::Relaxed);
    }

    pub fn give_back_mailboxes(&self, count: usize) {
        self.mailboxes.fetch_sub(count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::config::Config;

    #[test]
    fn the_last_tenth_is_for_connected_users_and_a_replacement_needs_no_room_of_its_own() {
        let mut limits = Config::load(None, toml::Table::new(), std::iter::empty()).unwrap().0.mailboxes;
        let [messages, bytes, mailboxes] = [10, 1000, 1].map(|max| NonZeroUsize::new(max).unwrap());
        (limits.total_messages_max, limits.total_bytes_max, limits.mailboxes_max) = (messages, bytes, mailboxes);
        let usage = Usage::new(&limits);
        for _ in 0..9 {
            usage.add(1, 50);
        }
        assert_eq!([true, false].map(|is_away| usage.is_over_with(is_away, 50, (0, 0))), [true, false]);
        assert!(!usage.is_over_with(true, 50, (1, 50)) && usage.is_over_with(true, 501, (1, 50)));
        assert_eq!(
            [450, 451, 550, 551].map(|size| (usage.is_over_with(true, size, (1, 0)), usage.is_over_with(false, size, (0, 0)))),
            [(false, false), (true, false), (true, false), (true, true)]
        );
        usage.add_mailbox();
        assert!(usage.is_out_of_mailboxes() && !usage.is_crowded());
        usage.add_mailbox();
        assert!(usage.is_crowded());
        usage.give_back_mailboxes(2);
        assert!(!usage.is_out_of_mailboxes());
    }
}
