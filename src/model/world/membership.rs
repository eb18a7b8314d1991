//! Who a request has let join and leave groups, over what the model has.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use indexmap::IndexMap;

use super::{OverQuota, add, signed};
use crate::model::Stamp;
use crate::model::groups::{Group, Groups, Quota, Share};
use crate::model::record::{Change, Changes};
use crate::types::event::UserId;

/// The changes of all groups.
#[derive(Debug, Default)]
pub struct GroupChanges {
    groups: IndexMap<String, GroupChange>,
    /// The groups that a guest has looked at, and their stamps.
    read: HashMap<String, Stamp>,
    /// How the policies' shares of all groups change.
    shares: Vec<PolicyShare>,
}

#[derive(Debug, Default)]
struct GroupChange {
    /// Whether the model's members have been removed.
    is_ended: bool,
    left: HashSet<UserId>,
    /// The new members in order, with the policy that added each.
    joined: IndexMap<UserId, Arc<str>>,
}

#[derive(Debug)]
struct PolicyShare {
    policy: Arc<str>,
    /// `None` until the policy adds a member.
    quota: Option<Quota>,
    groups: isize,
    memberships: isize,
}

impl GroupChanges {
    pub fn is_untouched(&self) -> bool {
        self.groups.is_empty() && self.read.is_empty()
    }

    /// Notes that the request depends on a group: it must be unchanged at the commit.
    pub fn note_read(&mut self, groups: &Groups, group: &str) {
        // Recorded even if this request has changed the group: the rest of the answer comes from the model.
        if !self.read.contains_key(group) {
            self.read.insert(group.to_owned(), groups.stamp(group));
        }
    }

    pub fn is_member(&self, groups: &Groups, group: &str, user: &str) -> bool {
        let kept = || groups.get(group).is_some_and(|known| known.contains(user));
        match self.groups.get(group) {
            None => kept(),
            Some(change) => change.joined.contains_key(user) || (!change.is_ended && !change.left.contains(user) && kept()),
        }
    }

    /// Returns the number of members.
    pub fn size(&self, groups: &Groups, group: &str) -> usize {
        let kept = groups.get(group).map_or(0, Group::len);
        match self.groups.get(group) {
            None => kept,
            Some(change) if change.is_ended => change.joined.len(),
            Some(change) => kept.saturating_sub(change.left.len()) + change.joined.len(),
        }
    }

    /// Returns the first members who are not excepted, in the order in which they joined, and how many there are in total.
    pub fn audience(&self, groups: &Groups, group: &str, except: &HashSet<&UserId>, most: usize) -> (Vec<UserId>, usize) {
        let excepted = except.iter().filter(|user| self.is_member(groups, group, user.as_str())).count();
        let total = self.size(groups, group).saturating_sub(excepted);
        let joined = self.groups.get(group).into_iter().flat_map(|change| change.joined.keys());
        let members = self.kept(groups, group).chain(joined);
        (members.filter(|user| !except.contains(*user)).take(most).cloned().collect(), total)
    }

    /// Adds a member.
    ///
    /// # Errors
    /// A bound is reached; nothing has changed.
    pub fn join(&mut self, groups: &Groups, policy: &Arc<str>, quota: Quota, group: &str, user: UserId) -> Result<(), OverQuota> {
        // The bounds are checked against the group's size.
        self.note_read(groups, group);
        if self.is_member(groups, group, user.as_str()) {
            return Ok(());
        }
        let members = self.size(groups, group);
        let opens = isize::from(members == 0);
        let (mut all, mut own) = (groups.totals(), groups.share(policy));
        for share in &self.shares {
            all = plus(all, share.groups, share.memberships);
            if share.policy == *policy {
                own = plus(own, share.groups, share.memberships);
            }
        }
        if !groups.allows(members + 1, plus(all, opens, 1), plus(own, opens, 1), quota) {
            return Err(OverQuota);
        }
        self.share_of(policy, Some(quota), opens, 1);
        self.change(group).joined.insert(user, policy.clone());
        Ok(())
    }

    /// Removes a member, if it is there.
    pub fn leave(&mut self, groups: &Groups, group: &str, user: &UserId) {
        self.note_read(groups, group);
        if !self.is_member(groups, group, user.as_str()) {
            return;
        }
        let is_last = self.size(groups, group) == 1;
        let opener = if is_last { self.opener(groups, group) } else { None };
        let admitted_by = groups.get(group).and_then(|known| known.admitted_by(user.as_str())).cloned();
        let change = self.change(group);
        let policy = change.joined.shift_remove(user).or_else(|| {
            change.left.insert(user.clone());
            admitted_by
        });
        if is_last {
            // The next member opens a new group.
            *change = GroupChange { is_ended: true, ..GroupChange::default() };
        }
        if let Some(policy) = policy {
            self.give_back(&policy, 0, 1);
        }
        if let Some(opener) = opener {
            self.give_back(&opener, 1, 0);
        }
    }

    /// Ends a group.
    pub fn end(&mut self, groups: &Groups, group: &str) {
        self.note_read(groups, group);
        if self.size(groups, group) == 0 {
            return;
        }
        let opener = self.opener(groups, group);
        let change = self.groups.get(group);
        let known = groups.get(group).filter(|_| change.is_none_or(|change| !change.is_ended));
        let mut given_back: Vec<(Arc<str>, isize)> =
            known.into_iter().flat_map(Group::shares).map(|(policy, members)| (policy.clone(), signed(members))).collect();
        if let Some(change) = change {
            // Those who left have given theirs back.
            let left = change.left.iter().filter_map(|user| known?.admitted_by(user.as_str()));
            given_back.extend(left.map(|policy| (policy.clone(), -1)));
            given_back.extend(change.joined.values().map(|policy| (policy.clone(), 1)));
        }
        for (policy, memberships) in given_back {
            self.give_back(&policy, 0, memberships);
        }
        if let Some(opener) = opener {
            self.give_back(&opener, 1, 0);
        }
        *self.change(group) = GroupChange { is_ended: true, ..GroupChange::default() };
    }

    /// Returns whether the groups that were read are unchanged, and those that join still fit.
    pub fn stands(&self, groups: &Groups) -> bool {
        self.read.iter().all(|(group, stamp)| groups.stamp(group) == *stamp) && self.fits(groups)
    }

    /// Changes the model's groups, and returns those that ended.
    pub fn write_into(&self, groups: &mut Groups, stamp: &mut impl FnMut() -> Stamp, changes: &mut Changes) -> Vec<Group> {
        let mut ended = Vec::new();
        for (group, change) in &self.groups {
            if change.is_ended {
                ended.extend(groups.end(group));
                let stamp = stamp();
                changes.note(|| Change::End { stamp, group: group.clone() });
            }
            // New members join first, so that the group doesn't end if all others leave.
            let (back, new): (Vec<_>, Vec<_>) = change.joined.iter().partition(|(user, _)| change.left.contains(*user));
            let join = |(user, policy): (&UserId, &Arc<str>), stamp, groups: &mut Groups, changes: &mut Changes| {
                groups.join(group, user.clone(), policy, stamp);
                changes.note(|| Change::Join { stamp, group: group.clone(), user: user.clone(), policy: policy.clone() });
            };
            new.into_iter().for_each(|joined| join(joined, stamp(), groups, changes));
            for user in &change.left {
                let stamp = stamp();
                groups.leave(group, user, stamp);
                changes.note(|| Change::Leave { stamp, group: group.clone(), user: user.clone() });
            }
            back.into_iter().for_each(|joined| join(joined, stamp(), groups, changes));
        }
        ended
    }

    /// Returns the model's members of a group that this request has not removed.
    fn kept<'a>(&'a self, groups: &'a Groups, group: &str) -> impl Iterator<Item = &'a UserId> {
        let change = self.groups.get(group);
        let members = groups.get(group).into_iter().flat_map(Group::members);
        members.filter(move |user| change.is_none_or(|change| !change.is_ended && !change.left.contains(*user)))
    }

    /// Returns the policy whose share a group counts in.
    fn opener(&self, groups: &Groups, group: &str) -> Option<Arc<str>> {
        let opened_here = || self.groups.get(group).and_then(|change| change.joined.values().next());
        let is_ended = self.groups.get(group).is_some_and(|change| change.is_ended);
        groups.get(group).filter(|_| !is_ended).map(Group::opener).or_else(opened_here).cloned()
    }

    fn change(&mut self, group: &str) -> &mut GroupChange {
        self.groups.entry(group.to_owned()).or_default()
    }

    fn share_of(&mut self, policy: &Arc<str>, quota: Option<Quota>, groups: isize, memberships: isize) {
        match self.shares.iter_mut().find(|share| share.policy == *policy) {
            Some(share) => {
                share.quota = quota.or(share.quota);
                share.groups += groups;
                share.memberships += memberships;
            }
            None => self.shares.push(PolicyShare { policy: policy.clone(), quota, groups, memberships }),
        }
    }

    fn give_back(&mut self, policy: &Arc<str>, groups: isize, memberships: isize) {
        self.share_of(policy, None, -groups, -memberships);
    }

    fn fits(&self, groups: &Groups) -> bool {
        let grown: Share = self.shares.iter().fold(groups.totals(), |all, share| plus(all, share.groups, share.memberships));
        let largest = self.groups.iter().filter(|(_, change)| !change.joined.is_empty()).map(|(group, _)| self.size(groups, group)).max();
        let Some(largest) = largest else { return true };
        let mut joining = self.shares.iter().filter_map(|share| Some((share, share.quota?)));
        joining
            .all(|(share, quota)| groups.allows(largest, grown, plus(groups.share(&share.policy), share.groups, share.memberships), quota))
    }
}

fn plus(share: Share, groups: isize, memberships: isize) -> Share {
    Share { groups: add(share.groups, groups), memberships: add(share.memberships, memberships) }
}
