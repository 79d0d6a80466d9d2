//! How a cluster's first membership comes to be.
//!
//! A configuration names nodes and addresses, but votes count only from known lives of their
//! memory. Each node pins, durably and once, the first incarnation that it sees of every member,
//! and tells the others what it pinned. It votes and leads only when *every* member has pinned the
//! very same incarnations: so whatever was ever chosen was chosen by acceptors that all nodes
//! agree on, and a node that comes back with empty memory is recognised by each of them. Greetings
//! carry the terms too (quorums and dimensions): quorums that two nodes count differently need not
//! intersect.

use crate::quorum::Quorums;
use crate::region::Layout;
use crate::simulation::{Mutation, mutated};
use crate::wire::{Flags, Header, Kind};
use crate::{Ballot, Epoch, GroupId, Incarnation, NodeId, Slot};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

/// Between two greetings while the cluster forms, in nanoseconds.
const GREET_NS: u64 = 20_000_000;
/// Bytes of one pinned member on the wire: node u16, zero u16, incarnation u32.
const PIN_BYTES: usize = 8;

/// Somebody's memory is not the one that is on record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conflict {
    /// A member shows another incarnation than the one pinned for it.
    Stranger {
        /// The member.
        node: NodeId,
        /// What is pinned.
        pinned: Incarnation,
        /// What it shows.
        shown: Incarnation,
    },
    /// A member has pinned another incarnation for this node: this node's memory was lost.
    Disowned {
        /// The member that says so.
        by: NodeId,
        /// What it pinned.
        pinned: Incarnation,
    },
    /// A member is configured with other quorums, another window or another value limit.
    Terms {
        /// The member.
        node: NodeId,
    },
}

/// What all members must have configured alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Terms {
    /// As the wire carries them: phase-1 quorum u8, phase-2 quorum u8, groups u16, log2 of the
    /// window u8, value limit u24.
    pub packed: u64,
    /// How long leases last, in nanoseconds: a leader counts on the acceptors' word.
    pub lease_ns: u64,
    /// The snapshot that the cluster began with ([`SnapshotId::origin`]); zero if with nothing. Of
    /// two that begin with different states one would go on with slots that the other has.
    ///
    /// [`SnapshotId::origin`]: crate::state_machine::SnapshotId::origin
    pub origin: u64,
}

impl Terms {
    /// The terms of these quorums, of so many replicated logs, and of these dimensions. A node may
    /// have room for more groups than are replicated.
    pub const fn new(quorums: &Quorums, groups: u16, layout: &Layout, lease_ns: u64) -> Self {
        let packed = (quorums.phase1() as u64) << 56
            | (quorums.phase2() as u64) << 48
            | (groups as u64) << 32
            | (layout.window().trailing_zeros() as u64) << 24
            | layout.value_bytes() as u64;
        Self {
            packed,
            lease_ns,
            origin: 0,
        }
    }

    /// How many logs are replicated.
    pub const fn groups(&self) -> u16 {
        (self.packed >> 32) as u16
    }
}

impl fmt::Display for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [phase1, phase2, ..] = self.packed.to_be_bytes();
        let groups = self.groups();
        let window = 1u64 << (self.packed >> 24 & 0x3f);
        let value_bytes = self.packed & 0xff_ffff;
        let lease_us = self.lease_ns / 1_000;
        write!(
            f,
            "quorums of {phase1} and {phase2}, {groups} groups, {window} slots of {value_bytes} \
             bytes, leases of {lease_us} us"
        )?;
        match self.origin {
            0 => Ok(()),
            origin => write!(f, ", begun with snapshot {origin:016x}"),
        }
    }
}

/// What a greeting led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Greeted {
    /// The pins changed: write them down before anything is sent.
    pub pinned: bool,
    /// The sender wants an answer.
    pub answer: bool,
    /// Somebody is not who they were.
    pub conflict: Option<Conflict>,
}

/// The pins of one node, and who has confirmed them.
#[derive(Clone, Debug)]
pub struct Formation {
    node: NodeId,
    epoch: Epoch,
    terms: Terms,
    members: Vec<NodeId>,
    pins: BTreeMap<NodeId, Incarnation>,
    confirmed: Vec<NodeId>,
    formed: bool,
    due_ns: u64,
}

impl Formation {
    /// Goes on from what was written down, which holds this node's own incarnation at least.
    pub fn new(
        node: NodeId,
        epoch: Epoch,
        terms: Terms,
        members: Vec<NodeId>,
        pins: BTreeMap<NodeId, Incarnation>,
        formed: bool,
    ) -> Self {
        let mut formation = Self {
            node,
            epoch,
            terms,
            members,
            pins,
            confirmed: Vec::new(),
            formed,
            due_ns: 0,
        };
        formation.settle();
        formation
    }

    /// Whether every member has pinned the same incarnations.
    pub const fn is_formed(&self) -> bool {
        self.formed
    }

    /// What this node has configured.
    pub const fn terms(&self) -> Terms {
        self.terms
    }

    /// What is pinned.
    pub const fn pins(&self) -> &BTreeMap<NodeId, Incarnation> {
        &self.pins
    }

    /// Members that have not confirmed yet.
    pub fn missing(&self) -> impl Iterator<Item = NodeId> {
        let done =
            |node: &NodeId| *node == self.node || self.formed || self.confirmed.contains(node);
        self.members.iter().copied().filter(move |node| !done(node))
    }

    fn settle(&mut self) {
        let complete = self.members.iter().all(|node| self.pins.contains_key(node));
        if complete && self.missing().next().is_none() {
            self.formed = true;
        }
    }

    /// The greeting to send, if one is due: its header and value.
    pub fn poll(&mut self, now_ns: u64) -> Option<(Header, Vec<u8>)> {
        if self.formed || now_ns < self.due_ns {
            return None;
        }
        self.due_ns = now_ns + GREET_NS;
        Some(self.greeting(Flags::ACK_WANTED))
    }

    /// The answer to a greeting.
    pub fn answer(&self) -> (Header, Vec<u8>) {
        self.greeting(Flags(0))
    }

    fn greeting(&self, flags: Flags) -> (Header, Vec<u8>) {
        let mut value = Vec::with_capacity(self.pins.len() * PIN_BYTES);
        for (node, incarnation) in &self.pins {
            value.extend_from_slice(&node.0.to_be_bytes());
            value.extend_from_slice(&[0, 0]);
            value.extend_from_slice(&incarnation.0.to_be_bytes());
        }
        let header = Header {
            incarnation: self.pins.get(&self.node).copied().unwrap_or_default(),
            epoch: self.epoch,
            slot: Slot(self.terms.lease_ns),
            watermark: self.terms.packed,
            vote_ballot: Ballot(self.terms.origin),
            flags,
            length: value.len() as u16,
            ..Header::new(Kind::Hello, GroupId(0), self.node)
        };
        (header, value)
    }

    /// A greeting came.
    pub fn handle(&mut self, header: &Header, value: &[u8]) -> Greeted {
        let mut greeted = Greeted::default();
        if !self.members.contains(&header.sender)
            || header.sender == self.node
            || header.incarnation == Incarnation::ANY
            || header.epoch != self.epoch
        {
            return greeted;
        }
        greeted.answer = header.flags.has(Flags::ACK_WANTED);
        let terms = Terms {
            packed: header.watermark,
            lease_ns: header.slot.0,
            origin: match mutated(Mutation::OriginIgnored) {
                true => self.terms.origin,
                false => header.vote_ballot.0,
            },
        };
        if terms != self.terms {
            let node = header.sender;
            greeted.conflict = Some(Conflict::Terms { node });
            return greeted;
        }
        let shown = header.incarnation;
        let pinned = self.pins.get(&header.sender);
        match pinned.filter(|_| !mutated(Mutation::PinReplaced)) {
            None => {
                self.pins.insert(header.sender, shown);
                greeted.pinned = true;
            }
            Some(pinned) if *pinned != shown => {
                greeted.conflict = Some(Conflict::Stranger {
                    node: header.sender,
                    pinned: *pinned,
                    shown,
                });
                return greeted;
            }
            Some(_) => {}
        }
        let theirs: BTreeMap<NodeId, Incarnation> = value
            .as_chunks::<PIN_BYTES>()
            .0
            .iter()
            .map(|[a, b, _, _, e, f, g, h]| {
                (
                    NodeId(u16::from_be_bytes([*a, *b])),
                    Incarnation(u32::from_be_bytes([*e, *f, *g, *h])),
                )
            })
            .collect();
        let own = self.pins.get(&self.node);
        if let Some(pinned) = theirs.get(&self.node)
            && Some(pinned) != own
        {
            greeted.conflict = Some(Conflict::Disowned {
                by: header.sender,
                pinned: *pinned,
            });
            return greeted;
        }
        if theirs == self.pins && theirs.len() == self.members.len() && !self.formed {
            if !self.confirmed.contains(&header.sender) {
                self.confirmed.push(header.sender);
            }
            self.settle();
            greeted.pinned |= self.formed;
        }
        greeted
    }

    /// When [`Formation::poll`] should be called, in nanoseconds.
    pub const fn next_timer_ns(&self) -> u64 {
        if self.formed { u64::MAX } else { self.due_ns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const MEMBERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
    const TERMS: Terms = Terms {
        packed: 7,
        lease_ns: 9,
        origin: 0,
    };

    fn fresh(node: u16, incarnation: u32) -> Formation {
        let pins = BTreeMap::from([(NodeId(node), Incarnation(incarnation))]);
        Formation::new(NodeId(node), Epoch(1), TERMS, MEMBERS.to_vec(), pins, false)
    }

    /// Everybody greets everybody once.
    fn round(nodes: &mut [Formation]) -> Vec<Option<Conflict>> {
        let mut conflicts = Vec::new();
        let greetings: Vec<_> = nodes.iter().map(Formation::answer).collect();
        for (header, value) in &greetings {
            for node in &mut *nodes {
                conflicts.push(node.handle(header, value).conflict);
            }
        }
        conflicts
    }

    #[test]
    fn a_cluster_forms_when_all_have_pinned_the_same() {
        let mut nodes = vec![fresh(1, 11), fresh(2, 12), fresh(3, 13)];
        round(&mut nodes);
        assert!(
            nodes.iter().all(|node| !node.is_formed()),
            "nobody has confirmed yet"
        );
        round(&mut nodes);
        assert!(nodes.iter().all(Formation::is_formed));
    }

    #[test]
    fn two_of_three_never_form() {
        let mut nodes = vec![fresh(1, 11), fresh(2, 12)];
        for _ in 0..5 {
            round(&mut nodes);
        }
        assert!(nodes.iter().all(|node| !node.is_formed()));
    }

    #[test]
    fn memory_lost_while_forming_is_noticed_by_both_sides() {
        let mut nodes = vec![fresh(1, 11), fresh(2, 12), fresh(3, 13)];
        round(&mut nodes);
        nodes[2] = fresh(3, 99);
        let conflicts: Vec<_> = round(&mut nodes).into_iter().flatten().collect();
        assert!(conflicts.contains(&Conflict::Stranger {
            node: NodeId(3),
            pinned: Incarnation(13),
            shown: Incarnation(99)
        }));
        assert!(conflicts.contains(&Conflict::Disowned {
            by: NodeId(1),
            pinned: Incarnation(13)
        }));
        for _ in 0..5 {
            round(&mut nodes);
        }
        assert!(nodes.iter().all(|node| !node.is_formed()));
    }

    #[test]
    fn nodes_that_count_other_quorums_or_leases_or_begin_otherwise_never_form() {
        let others = [
            Terms { packed: 8, ..TERMS },
            Terms { origin: 1, ..TERMS },
            Terms {
                lease_ns: 8,
                ..TERMS
            },
        ];
        for other in others {
            let mut nodes = vec![fresh(1, 11), fresh(2, 12), fresh(3, 13)];
            nodes[1].terms = other;
            let mut conflicts = Vec::new();
            for _ in 0..5 {
                conflicts = round(&mut nodes);
            }
            assert!(conflicts.contains(&Some(Conflict::Terms { node: NodeId(2) })));
            assert!(nodes.iter().all(|node| !node.is_formed()));
        }
    }

    #[test]
    fn a_single_node_is_a_cluster() {
        let pins = BTreeMap::from([(NodeId(1), Incarnation(1))]);
        assert!(
            Formation::new(NodeId(1), Epoch(1), TERMS, vec![NodeId(1)], pins, false).is_formed()
        );
    }
}
