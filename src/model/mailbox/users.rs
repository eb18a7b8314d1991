//! The list of users, page by page. Each page is found by looking at every user once: no sorted list is kept for a request that is rare.

use std::collections::BinaryHeap;

use super::{Mailboxes, SHARDS};
use crate::types::event::UserId;

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Only users with an open session, or only users without one.
    pub online: Option<bool>,
    pub prefix: String,
    /// Users up to this one are left out.
    pub after: Option<String>,
    /// Users on a page.
    pub limit: usize,
}

/// The first users of a listing that have been found so far, and perhaps one more.
#[derive(Debug)]
pub struct UsersPage {
    listing: Listing,
    found: BinaryHeap<UserId>,
}

impl UsersPage {
    pub fn new(listing: Listing) -> UsersPage {
        UsersPage { listing, found: BinaryHeap::new() }
    }

    /// Returns the users in order, and whether there are more.
    pub fn into_users(self) -> (Vec<UserId>, bool) {
        let mut users = self.found.into_sorted_vec();
        let has_more = users.len() > self.listing.limit;
        users.truncate(self.listing.limit);
        (users, has_more)
    }

    /// Returns whether a user is on this page by its name alone, as far as is known.
    fn wants(&self, user: &UserId) -> bool {
        let Listing { prefix, after, limit, .. } = &self.listing;
        let is_asked =
            !user.is_internal() && user.as_str().starts_with(prefix) && after.as_deref().is_none_or(|after| user.as_str() > after);
        is_asked && (self.found.len() <= *limit || self.found.peek().is_some_and(|last| user < last))
    }

    fn add(&mut self, user: &UserId) {
        self.found.push(user.clone());
        if self.found.len() > self.listing.limit + 1 {
            self.found.pop();
        }
    }
}

impl Mailboxes {
    /// Looks at the `round`th of [`Mailboxes::SWEEP_ROUNDS`] parts of the users. Users have a session, something in the mailbox, or may resume.
    pub fn list(&self, round: usize, page: &mut UsersPage) {
        let Some(shard) = self.shards.get(round % SHARDS) else { return };
        for (user, mailbox) in shard.lock().iter() {
            let is_online = |expected: bool| expected != mailbox.content.lock().sessions.is_away();
            if page.wants(user) && page.listing.online.is_none_or(is_online) {
                page.add(user);
            }
        }
    }
}
