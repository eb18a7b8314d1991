//! Groups of users, so that "everyone in pool 42" is one word. Policies change them by decisions; they end when empty.

use std::collections::HashMap;
use std::sync::Arc;

use indexmap::IndexMap;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::config;
use crate::types::event::UserId;

/// All groups, by name.
#[derive(Debug)]
pub struct Groups {
    limits: config::Groups,
    table: RwLock<Table>,
    /// Where a fork reads what it has not touched. Its own limits count only what it has.
    base: Option<Arc<Groups>>,
}

#[derive(Debug, Default)]
struct Table {
    groups: HashMap<String, Group>,
    memberships: usize,
    /// What each policy has made; there are few.
    shares: Vec<Share>,
}

/// Members in the order in which they joined, each with the policy that let them in.
#[derive(Clone, Debug, Default)]
struct Group {
    opener: ShareIndex,
    members: IndexMap<UserId, ShareIndex>,
}

type ShareIndex = u32;

#[derive(Debug)]
struct Share {
    policy: String,
    groups: usize,
    memberships: usize,
}

/// Who lets a user join, and how much of all that there is they may have.
#[derive(Clone, Copy, Debug)]
pub struct Quota<'a> {
    pub policy: &'a str,
    pub groups_max: usize,
    pub memberships_max: usize,
}

/// Why a user could not join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinError {
    /// `groups_max`, `members_max` or `memberships_max` is reached: the server's or the policy's.
    Full,
}

impl Groups {
    pub fn new(limits: config::Groups) -> Groups {
        Groups { limits, table: RwLock::default(), base: None }
    }

    /// Groups that begin as these are, and whose changes go nowhere.
    pub fn fork(self: &Arc<Groups>) -> Groups {
        Groups { limits: self.limits.clone(), table: RwLock::default(), base: Some(self.clone()) }
    }

    /// # Errors
    /// A limit is reached, and nothing has changed.
    pub fn join(&self, group: &str, user: UserId, quota: Quota<'_>) -> Result<(), JoinError> {
        let mut table = self.touch(group);
        let Table { groups, memberships, shares } = &mut *table;
        let known = groups.get(group);
        if known.is_some_and(|group| group.members.contains_key(&user)) {
            return Ok(());
        }
        let size = known.map_or(0, |group| group.members.len());
        let index = shares.iter().position(|share| share.policy == quota.policy).unwrap_or(shares.len());
        let (opened, given) = shares.get(index).map_or((0, 0), |share| (share.groups, share.memberships));
        let full = size >= self.limits.members_max
            || *memberships >= self.limits.memberships_max
            || given >= quota.memberships_max
            || (size == 0 && (groups.len() >= self.limits.groups_max || opened >= quota.groups_max));
        if full {
            return Err(JoinError::Full);
        }
        if index == shares.len() {
            shares.push(Share { policy: quota.policy.to_owned(), groups: 0, memberships: 0 });
        }
        let by = ShareIndex::try_from(index).unwrap_or(ShareIndex::MAX);
        if let Some(share) = shares.get_mut(index) {
            share.memberships += 1;
            share.groups += usize::from(size == 0);
        }
        *memberships += 1;
        let group = groups.entry(group.to_owned()).or_default();
        if size == 0 {
            group.opener = by;
        }
        group.members.insert(user, by);
        Ok(())
    }

    pub fn leave(&self, group: &str, user: &UserId) {
        let mut table = self.touch(group);
        let Some(members) = table.groups.get_mut(group).map(|group| &mut group.members) else { return };
        let Some(by) = members.shift_remove(user) else { return };
        let empty = members.is_empty();
        table.give_back(by);
        if empty {
            self.forget(&mut table, group);
        }
    }

    pub fn end(&self, group: &str) {
        let mut table = self.touch(group);
        let Some(members) = table.groups.get_mut(group).map(|group| std::mem::take(&mut group.members)) else { return };
        for by in members.into_values() {
            table.give_back(by);
        }
        self.forget(&mut table, group);
    }

    pub fn contains(&self, group: &str, user: &str) -> bool {
        self.look(group, |group| group.is_some_and(|group| group.members.contains_key(user)))
    }

    pub fn size(&self, group: &str) -> usize {
        self.look(group, |group| group.map_or(0, |group| group.members.len()))
    }

    /// In the order in which they joined.
    pub fn members(&self, group: &str) -> Vec<UserId> {
        self.first_members(group, usize::MAX)
    }

    /// As many of them as are wanted.
    pub fn first_members(&self, group: &str, most: usize) -> Vec<UserId> {
        self.look(group, |group| group.map_or_else(Vec::new, |group| group.members.keys().take(most).cloned().collect()))
    }

    /// Groups and memberships.
    pub fn totals(&self) -> (usize, usize) {
        let table = self.read();
        (table.groups.len(), table.memberships)
    }

    /// Removes a group that has become empty. A fork remembers that it is.
    fn forget(&self, table: &mut Table, group: &str) {
        let opener = table.groups.get(group).map(|group| group.opener);
        if let Some(share) = opener.and_then(|opener| table.share(opener)) {
            share.groups = share.groups.saturating_sub(1);
        }
        if self.base.is_none() {
            table.groups.remove(group);
        }
    }

    fn look<R>(&self, group: &str, see: impl FnOnce(Option<&Group>) -> R) -> R {
        let table = self.read();
        match (table.groups.get(group), &self.base) {
            (None, Some(base)) => base.look(group, see),
            (found, _) => see(found),
        }
    }

    /// The table, in which `group` is up to date.
    fn touch(&self, group: &str) -> RwLockWriteGuard<'_, Table> {
        let mut table = self.table.write();
        if let Some(base) = &self.base
            && !table.groups.contains_key(group)
        {
            table.groups.insert(group.to_owned(), base.look(group, |group| group.cloned().unwrap_or_default()));
        }
        table
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read()
    }
}

impl Table {
    /// Takes a membership off the account of the policy that gave it.
    fn give_back(&mut self, by: ShareIndex) {
        // What a fork has from its base is on no account of its own.
        self.memberships = self.memberships.saturating_sub(1);
        if let Some(share) = self.share(by) {
            share.memberships = share.memberships.saturating_sub(1);
        }
    }

    fn share(&mut self, index: ShareIndex) -> Option<&mut Share> {
        self.shares.get_mut(usize::try_from(index).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Quota<'_> = Quota { policy: "p", groups_max: usize::MAX, memberships_max: usize::MAX };

    fn user(text: &str) -> UserId {
        UserId::new(text, 16).unwrap()
    }

    fn groups(groups_max: usize, members_max: usize, memberships_max: usize) -> Groups {
        Groups::new(config::Groups { name_bytes_max: 128, groups_max, members_max, memberships_max })
    }

    #[test]
    fn an_empty_group_is_forgotten() {
        let groups = groups(10, 10, 10);
        groups.join("pool:1", user("a"), ANY).unwrap();
        groups.join("pool:1", user("a"), ANY).unwrap();
        groups.join("pool:1", user("b"), ANY).unwrap();
        assert_eq!(groups.members("pool:1"), [user("a"), user("b")]);
        groups.leave("pool:1", &user("a"));
        groups.leave("pool:1", &user("nobody"));
        groups.leave("pool:1", &user("b"));
        assert_eq!(groups.totals(), (0, 0));
    }

    #[test]
    fn an_ended_group_gives_its_room_back() {
        let groups = groups(1, 2, 2);
        groups.join("a", user("1"), ANY).unwrap();
        groups.join("a", user("2"), ANY).unwrap();
        assert_eq!(groups.join("a", user("3"), ANY), Err(JoinError::Full));
        assert_eq!(groups.join("b", user("1"), ANY), Err(JoinError::Full));
        groups.end("a");
        assert_eq!(groups.totals(), (0, 0));
        groups.join("b", user("1"), ANY).unwrap();
    }

    #[test]
    fn a_policy_has_its_share_and_no_more() {
        let groups = groups(10, 10, 10);
        let small = Quota { policy: "small", groups_max: 1, memberships_max: 2 };
        groups.join("a", user("1"), small).unwrap();
        assert_eq!(groups.join("b", user("1"), small), Err(JoinError::Full), "a second group");
        groups.join("b", user("1"), ANY).unwrap();
        groups.join("b", user("2"), small).unwrap();
        assert_eq!(groups.join("a", user("2"), small), Err(JoinError::Full), "a third membership");
        groups.join("a", user("2"), ANY).unwrap();
        groups.end("a");
        groups.join("c", user("1"), small).unwrap();
        groups.leave("b", &user("2"));
        groups.join("c", user("2"), small).unwrap();
    }

    #[test]
    fn a_fork_sees_what_there_is_and_keeps_its_changes_to_itself() {
        let groups = Arc::new(groups(10, 10, 10));
        groups.join("a", user("1"), ANY).unwrap();
        groups.join("b", user("1"), ANY).unwrap();
        let fork = groups.fork();
        fork.join("a", user("2"), ANY).unwrap();
        fork.join("c", user("3"), ANY).unwrap();
        fork.end("b");
        assert_eq!((fork.members("a"), fork.size("b"), fork.size("c")), (vec![user("1"), user("2")], 0, 1));
        fork.leave("a", &user("1"));
        assert_eq!(fork.members("a"), [user("2")]);
        assert_eq!((groups.members("a"), groups.size("b"), groups.size("c")), (vec![user("1")], 1, 0));
        assert_eq!(groups.totals(), (2, 2));
    }
}
