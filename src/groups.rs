//! Groups of users, so that "everyone in pool 42" is one word. Policies change them by decisions; they end when empty.

use std::collections::HashMap;
use std::sync::RwLock;

use indexmap::IndexSet;

use crate::config;
use crate::event::UserId;

/// All groups, by name.
#[derive(Debug)]
pub struct Groups {
    limits: config::Groups,
    table: RwLock<Table>,
}

#[derive(Debug, Default)]
struct Table {
    groups: HashMap<String, IndexSet<UserId>>,
    memberships: usize,
}

/// Why a user could not join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinError {
    /// `groups_max`, `members_max` or `memberships_max` is reached.
    Full,
}

impl Groups {
    pub fn new(limits: config::Groups) -> Groups {
        Groups { limits, table: RwLock::default() }
    }

    /// # Errors
    /// A limit is reached, and nothing has changed.
    pub fn join(&self, group: &str, user: UserId) -> Result<(), JoinError> {
        let mut table = self.write();
        let size = table.groups.get(group).map(IndexSet::len);
        if table.groups.get(group).is_some_and(|members| members.contains(&user)) {
            return Ok(());
        }
        let full = size.unwrap_or(0) >= self.limits.members_max
            || table.memberships >= self.limits.memberships_max
            || (size.is_none() && table.groups.len() >= self.limits.groups_max);
        if full {
            return Err(JoinError::Full);
        }
        table.memberships += 1;
        table.groups.entry(group.to_owned()).or_default().insert(user);
        Ok(())
    }

    pub fn leave(&self, group: &str, user: &UserId) {
        let mut table = self.write();
        let Some(members) = table.groups.get_mut(group) else { return };
        if !members.shift_remove(user) {
            return;
        }
        let empty = members.is_empty();
        table.memberships -= 1;
        if empty {
            table.groups.remove(group);
        }
    }

    pub fn end(&self, group: &str) {
        let mut table = self.write();
        if let Some(members) = table.groups.remove(group) {
            table.memberships -= members.len();
        }
    }

    pub fn contains(&self, group: &str, user: &str) -> bool {
        self.read().groups.get(group).is_some_and(|members| members.contains(user))
    }

    pub fn size(&self, group: &str) -> usize {
        self.read().groups.get(group).map_or(0, IndexSet::len)
    }

    /// In the order in which they joined.
    pub fn members(&self, group: &str) -> Vec<UserId> {
        self.first_members(group, usize::MAX)
    }

    /// As many of them as are wanted.
    pub fn first_members(&self, group: &str, most: usize) -> Vec<UserId> {
        self.read().groups.get(group).map_or_else(Vec::new, |members| members.iter().take(most).cloned().collect())
    }

    /// Groups and memberships.
    pub fn totals(&self) -> (usize, usize) {
        let table = self.read();
        (table.groups.len(), table.memberships)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(text: &str) -> UserId {
        UserId::new(text, 16).unwrap()
    }

    fn groups(groups_max: usize, members_max: usize, memberships_max: usize) -> Groups {
        Groups::new(config::Groups { name_bytes_max: 128, groups_max, members_max, memberships_max })
    }

    #[test]
    fn an_empty_group_is_forgotten() {
        let groups = groups(10, 10, 10);
        groups.join("pool:1", user("a")).unwrap();
        groups.join("pool:1", user("a")).unwrap();
        groups.join("pool:1", user("b")).unwrap();
        assert_eq!(groups.members("pool:1"), [user("a"), user("b")]);
        groups.leave("pool:1", &user("a"));
        groups.leave("pool:1", &user("nobody"));
        groups.leave("pool:1", &user("b"));
        assert_eq!(groups.totals(), (0, 0));
    }

    #[test]
    fn an_ended_group_gives_its_room_back() {
        let groups = groups(1, 2, 2);
        groups.join("a", user("1")).unwrap();
        groups.join("a", user("2")).unwrap();
        assert_eq!(groups.join("a", user("3")), Err(JoinError::Full));
        assert_eq!(groups.join("b", user("1")), Err(JoinError::Full));
        groups.end("a");
        assert_eq!(groups.totals(), (0, 0));
        groups.join("b", user("1")).unwrap();
    }
}
