//! Who leads what, as this node sees it: for one heartbeat that serves all groups.

use crate::{Ballot, GroupId, NodeId};
use alloc::vec;
use alloc::vec::Vec;

/// What a node knows of one group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Standing {
    /// The ballot whose leader it follows, its own if it leads; none if it knows of no leader, or is
    /// no member.
    pub(crate) led_by: Ballot,
    /// It asks for votes or promises.
    pub(crate) campaigns: bool,
    /// It leads and waits for votes.
    pub(crate) awaits_votes: bool,
    /// What it has applied waits for the journal.
    pub(crate) awaits_journal: bool,
    /// The version of its configuration.
    pub(crate) version: Ballot,
}

/// A set of groups and the ballots that they are led in: how many, and the sum of their numbers. That
/// two sets have the same by chance is one case in 2^64, and would cost liveness only until any of
/// the groups has another leader.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Led {
    pub(crate) groups: u64,
    pub(crate) digest: u64,
}

impl Led {
    /// One more.
    pub(crate) const fn add(&mut self, group: GroupId, ballot: Ballot) {
        self.groups = self.groups.wrapping_add(1);
        self.digest = self.digest.wrapping_add(number(group, ballot));
    }

    const fn remove(&mut self, group: GroupId, ballot: Ballot) {
        self.groups = self.groups.wrapping_sub(1);
        self.digest = self.digest.wrapping_sub(number(group, ballot));
    }
}

/// What a node knows of all groups, and what that adds up to.
#[derive(Debug)]
pub(crate) struct Standings {
    groups: Vec<Standing>,
    /// For each node that is taken for a leader, what it leads.
    sums: Vec<(NodeId, Led)>,
    campaigns: usize,
    awaiting_votes: usize,
    /// Groups whose leader is another than the host was told, each once.
    changed: Vec<GroupId>,
    is_changed: Vec<bool>,
    /// Until when each group's leader on this node holds its lease, and from when on it is to be
    /// renewed; and the groups of which the host was told another one, each once.
    leases_ns: Vec<(u64, u64)>,
    leased: Vec<GroupId>,
    is_leased: Vec<bool>,
    /// Groups that wait for the journal, each once; some of them may wait no longer.
    journalling: Vec<GroupId>,
    is_journalling: Vec<bool>,
    own: NodeId,
    own_changed: bool,
}

/// A number for a group and ballot.
const fn number(group: GroupId, ballot: Ballot) -> u64 {
    let mut z = ballot.0 ^ (group.0 as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Standings {
    /// Of so many groups nothing is known.
    pub(crate) fn new(own: NodeId, groups: usize) -> Self {
        Self {
            groups: vec![Standing::default(); groups],
            sums: Vec::new(),
            campaigns: 0,
            awaiting_votes: 0,
            changed: Vec::with_capacity(groups),
            is_changed: vec![false; groups],
            leases_ns: vec![(0, 0); groups],
            leased: Vec::with_capacity(groups),
            is_leased: vec![false; groups],
            journalling: Vec::with_capacity(groups),
            is_journalling: vec![false; groups],
            own,
            own_changed: true,
        }
    }

    /// What is known of a group.
    pub(crate) fn of(&self, group: GroupId) -> Standing {
        let known = self.groups.get(usize::from(group.0));
        known.copied().unwrap_or_default()
    }

    /// This is known of a group from now on.
    pub(crate) fn set(&mut self, group: GroupId, now: Standing) {
        let Some(known) = self.groups.get_mut(usize::from(group.0)) else {
            return;
        };
        let before = core::mem::replace(known, now);
        if now.awaits_journal {
            mark(&mut self.journalling, &mut self.is_journalling, group);
        }
        if before == now {
            return;
        }
        self.campaigns += usize::from(now.campaigns);
        self.campaigns -= usize::from(before.campaigns);
        self.awaiting_votes += usize::from(now.awaits_votes);
        self.awaiting_votes -= usize::from(before.awaits_votes);
        let is_own = |ballot: Ballot| ballot.node() == self.own;
        self.own_changed |= before.version != now.version
            || before.led_by != now.led_by && (is_own(before.led_by) || is_own(now.led_by));
        if before.led_by != now.led_by {
            mark(&mut self.changed, &mut self.is_changed, group);
            self.count(before.led_by, |led| led.remove(group, before.led_by));
            self.count(now.led_by, |led| led.add(group, now.led_by));
        }
    }

    fn count(&mut self, ballot: Ballot, change: impl FnOnce(&mut Led)) {
        if ballot == Ballot::NONE {
            return;
        }
        let node = ballot.node();
        if !self.sums.iter().any(|(one, _)| *one == node) {
            // Nodes that lead nothing any more make room: there are not many at once.
            self.sums.retain(|(_, led)| led.groups > 0);
            self.sums.push((node, Led::default()));
        }
        if let Some((_, led)) = self.sums.iter_mut().find(|(one, _)| *one == node) {
            change(led);
        }
    }

    /// What a node leads of the groups that this one is a member of, as far as this one knows.
    pub(crate) fn led_by(&self, node: NodeId) -> Led {
        let found = self.sums.iter().find(|(one, _)| *one == node);
        found.map_or(Led::default(), |(_, led)| *led)
    }

    /// In how many groups this node campaigns.
    pub(crate) const fn campaigns(&self) -> usize {
        self.campaigns
    }

    /// Whether this node leads a group that waits for votes.
    pub(crate) const fn awaits_votes(&self) -> bool {
        self.awaiting_votes > 0
    }

    /// A group whose leader is another than when it was last told of here.
    pub(crate) fn next_changed(&mut self) -> Option<GroupId> {
        take(&mut self.changed, &mut self.is_changed)
    }

    /// This is a group's lease from now on.
    pub(crate) fn lease(&mut self, group: GroupId, now: (u64, u64)) {
        if let Some(known) = self.leases_ns.get_mut(usize::from(group.0))
            && core::mem::replace(known, now) != now
        {
            mark(&mut self.leased, &mut self.is_leased, group);
        }
    }

    /// A group whose lease is another than when it was last told of here.
    pub(crate) fn next_lease(&mut self) -> Option<(GroupId, (u64, u64))> {
        let group = take(&mut self.leased, &mut self.is_leased)?;
        let lease_ns = self.leases_ns.get(usize::from(group.0)).copied();
        Some((group, lease_ns.unwrap_or_default()))
    }

    /// A group that waited for the journal.
    pub(crate) fn next_journalling(&mut self) -> Option<GroupId> {
        take(&mut self.journalling, &mut self.is_journalling)
    }

    /// Whether what this node leads, or the members of a group, changed since this was last asked.
    pub(crate) const fn take_own_changed(&mut self) -> bool {
        core::mem::replace(&mut self.own_changed, false)
    }
}

fn mark(list: &mut Vec<GroupId>, is_marked: &mut [bool], group: GroupId) {
    if let Some(is_marked) = is_marked.get_mut(usize::from(group.0))
        && !core::mem::replace(is_marked, true)
    {
        list.push(group);
    }
}

fn take(list: &mut Vec<GroupId>, is_marked: &mut [bool]) -> Option<GroupId> {
    let group = list.pop()?;
    if let Some(is_marked) = is_marked.get_mut(usize::from(group.0)) {
        *is_marked = false;
    }
    Some(group)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn led_by(round: u64, node: NodeId) -> Standing {
        Standing {
            led_by: Ballot::new(round, node),
            ..Standing::default()
        }
    }

    #[test]
    fn digests_agree_where_the_sets_do_whatever_led_to_them() {
        let (mut one, mut other) = (Standings::new(A, 4), Standings::new(A, 4));
        one.set(GroupId(0), led_by(1, A));
        one.set(GroupId(1), led_by(1, A));
        other.set(GroupId(1), led_by(2, B));
        other.set(GroupId(1), led_by(1, A));
        assert_ne!(one.led_by(A), other.led_by(A));
        other.set(GroupId(0), led_by(1, A));
        assert_eq!(one.led_by(A), other.led_by(A));
        assert_eq!(other.led_by(B), Led::default());
        // Another ballot, or another group in the same one, is another set.
        other.set(GroupId(0), led_by(3, A));
        assert_ne!(one.led_by(A), other.led_by(A));
        other.set(GroupId(0), Standing::default());
        other.set(GroupId(2), led_by(1, A));
        assert_ne!(one.led_by(A), other.led_by(A));
    }

    #[test]
    fn a_group_that_still_waits_for_the_journal_is_told_of_again() {
        let mut standings = Standings::new(A, 4);
        let waits = Standing {
            awaits_journal: true,
            ..Standing::default()
        };
        for _ in 0..3 {
            standings.set(GroupId(1), waits);
            assert_eq!(standings.next_journalling(), Some(GroupId(1)));
            assert_eq!(standings.next_journalling(), None);
        }
    }

    #[test]
    fn each_change_is_told_once() {
        let mut standings = Standings::new(A, 4);
        for round in 1..10 {
            standings.set(GroupId(2), led_by(round, A));
        }
        assert_eq!(standings.next_changed(), Some(GroupId(2)));
        assert_eq!(standings.next_changed(), None);
    }
}
