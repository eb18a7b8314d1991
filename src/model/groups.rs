//! Groups of users, so that "everyone in pool 42" is one recipient. A group ends when it is empty. Pure: `World` controls changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use smallvec::SmallVec;

use super::Stamp;
use super::record::Change;
use crate::config;
use crate::types::event::UserId;

/// All groups, by name.
#[derive(Debug)]
pub struct Groups {
    limits: config::Groups,
    groups: HashMap<String, Group>,
    memberships: usize,
    /// The groups and memberships that each policy has created.
    shares: HashMap<Arc<str>, Share>,
}

/// A group's members.
#[derive(Debug)]
pub struct Group {
    /// The policy that added the first member.
    opener: Arc<str>,
    members: HashMap<UserId, Membership>,
    /// The members by the stamp of their joining. In a list, each member who leaves a large group would move all later ones.
    order: BTreeMap<Stamp, UserId>,
    /// The number of members that each policy has added, so that nobody counts them when the group ends.
    shares: SmallVec<[(Arc<str>, usize); 1]>,
    /// The stamp of the last change.
    stamp: Stamp,
}

#[derive(Clone, Debug)]
struct Membership {
    /// The policy that added the user.
    policy: Arc<str>,
    /// When the user joined.
    stamp: Stamp,
}

/// The number of groups and memberships, of one policy or in total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    pub groups: usize,
    pub memberships: usize,
}

/// How many groups and memberships one policy may create.
#[derive(Clone, Copy, Debug)]
pub struct Quota {
    pub groups_max: usize,
    pub memberships_max: usize,
}

impl Groups {
    pub fn new(limits: config::Groups) -> Groups {
        Groups { limits, groups: HashMap::new(), memberships: 0, shares: HashMap::new() }
    }

    pub fn get(&self, group: &str) -> Option<&Group> {
        self.groups.get(group)
    }

    /// Returns the stamp of a group's last change, 0 if there is no such group.
    pub fn stamp(&self, group: &str) -> Stamp {
        self.groups.get(group).map_or(0, |group| group.stamp)
    }

    pub fn totals(&self) -> Share {
        Share { groups: self.groups.len(), memberships: self.memberships }
    }

    pub fn share(&self, policy: &str) -> Share {
        self.shares.get(policy).copied().unwrap_or_default()
    }

    /// Returns whether the bounds allow a group of `members`, these totals, and this share of the policy.
    pub fn allows(&self, members: usize, all: Share, own: Share, quota: Quota) -> bool {
        members <= self.limits.members_max.get()
            && all.memberships <= self.limits.memberships_max.get()
            && all.groups <= self.limits.groups_max.get()
            && own.memberships <= quota.memberships_max
            && own.groups <= quota.groups_max
    }

    /// Adds a member. The caller has checked the bounds.
    pub fn join(&mut self, group: &str, user: UserId, policy: &Arc<str>, stamp: Stamp) {
        let share = self.shares.entry(policy.clone()).or_default();
        let group = match self.groups.get_mut(group) {
            Some(known) => known,
            None => {
                share.groups += 1;
                self.groups.entry(group.to_owned()).or_insert(Group::opened_by(policy))
            }
        };
        group.stamp = stamp;
        group.order.insert(stamp, user.clone());
        match group.members.insert(user, Membership { policy: policy.clone(), stamp }) {
            None => {
                *group.share(policy) += 1;
                share.memberships += 1;
                self.memberships += 1;
            }
            Some(before) => drop(group.order.remove(&before.stamp)),
        }
    }

    /// Removes a member, and ends the group if it was the last.
    pub fn leave(&mut self, group: &str, user: &UserId, stamp: Stamp) {
        let Some(known) = self.groups.get_mut(group) else { return };
        let Some(left) = known.members.remove(user) else { return };
        known.order.remove(&left.stamp);
        known.stamp = stamp;
        *known.share(&left.policy) -= 1;
        let is_empty = known.members.is_empty();
        self.give_back(&left.policy, 1);
        if is_empty {
            self.end(group);
        }
    }

    /// Ends a group, and returns what it was: freeing many members takes long, so drop it where nothing is locked.
    pub fn end(&mut self, group: &str) -> Option<Group> {
        let gone = self.groups.remove(group)?;
        for (policy, members) in &gone.shares {
            self.give_back(policy, *members);
        }
        if let Some(share) = self.shares.get_mut(&gone.opener) {
            share.groups -= 1;
        }
        Some(gone)
    }

    /// Returns the changes that make them, in the order in which users joined.
    pub fn changes(&self) -> Vec<Change> {
        let mut all: Vec<_> = self.all().collect();
        all.sort_unstable_by_key(|(.., stamp)| *stamp);
        let join = |(group, user, policy, stamp): (&String, &UserId, &Arc<str>, Stamp)| Change::Join {
            stamp,
            group: group.clone(),
            user: user.clone(),
            policy: policy.clone(),
        };
        all.into_iter().map(join).collect()
    }

    /// Returns every membership: group, user, policy and stamp.
    pub fn all(&self) -> impl Iterator<Item = (&String, &UserId, &Arc<str>, Stamp)> {
        self.groups
            .iter()
            .flat_map(|(name, group)| group.members.iter().map(move |(user, member)| (name, user, &member.policy, member.stamp)))
    }

    fn give_back(&mut self, policy: &str, memberships: usize) {
        self.memberships -= memberships;
        if let Some(share) = self.shares.get_mut(policy) {
            share.memberships -= memberships;
        }
    }
}

impl Group {
    fn opened_by(policy: &Arc<str>) -> Group {
        Group { opener: policy.clone(), members: HashMap::new(), order: BTreeMap::new(), shares: SmallVec::new(), stamp: 0 }
    }

    #[expect(clippy::indexing_slicing, reason = "the index was found, or the share was just added")]
    fn share(&mut self, policy: &Arc<str>) -> &mut usize {
        let index = self.shares.iter().position(|(known, _)| known == policy).unwrap_or(self.shares.len());
        if index == self.shares.len() {
            self.shares.push((policy.clone(), 0));
        }
        &mut self.shares[index].1
    }

    /// Returns the number of members that each policy has added.
    pub fn shares(&self) -> impl Iterator<Item = (&Arc<str>, usize)> {
        self.shares.iter().map(|(policy, members)| (policy, *members))
    }

    pub fn contains(&self, user: &str) -> bool {
        self.members.contains_key(user)
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Returns the members in the order in which they joined.
    pub fn members(&self) -> impl Iterator<Item = &UserId> {
        self.order.values()
    }

    pub fn opener(&self) -> &Arc<str> {
        &self.opener
    }

    /// Returns the stamp of a member's joining.
    pub fn joined(&self, user: &str) -> Option<Stamp> {
        self.members.get(user).map(|member| member.stamp)
    }

    /// Returns the policy that added this user.
    pub fn admitted_by(&self, user: &str) -> Option<&Arc<str>> {
        self.members.get(user).map(|member| &member.policy)
    }
}
