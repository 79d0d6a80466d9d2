//! Newtypes for the integers that must never be swapped.

use core::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

number! {
    /// A node's number, `1..=NodeId::MAX`. Zero is nobody. Never recycled within a cluster.
    NodeId(u16)
}
number! {
    /// One replicated log among many on a node.
    GroupId(u16)
}
number! {
    /// Position in the log of a group, from 1. Zero stands for "no slot".
    Slot(u64)
}
number! {
    /// A numbered membership.
    Epoch(u32)
}
number! {
    /// One life of a region's memory. Zero means "any" in a request and never occurs in a reply.
    Incarnation(u32)
}
number! {
    /// A client session, named by the log position that opened it. Zero is no session.
    SessionId(u64)
}
number! {
    /// Position of a command in its session, from 1.
    Sequence(u64)
}

impl NodeId {
    /// Nobody.
    pub const NONE: Self = Self(0);
    /// The largest node number: the region keeps one record for each.
    pub const MAX: u16 = 1023;
}

impl Slot {
    /// No slot.
    pub const NONE: Self = Self(0);
    /// The first position of every log.
    pub const FIRST: Self = Self(1);

    /// The slot after this one.
    #[must_use]
    #[inline]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// The slot before this one; [`Slot::NONE`] stays.
    #[must_use]
    #[inline]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl SessionId {
    /// The session opened by the `nth` opening entry of `slot`: at most 4,096 fit a value.
    pub const fn new(slot: Slot, nth: u64) -> Self {
        Self(slot.0 << 12 | nth)
    }

    /// The slot whose value opened the session.
    pub const fn opened_in(self) -> Slot {
        Slot(self.0 >> 12)
    }
}

impl Incarnation {
    /// Matches every incarnation in a request that is fanned out.
    pub const ANY: Self = Self(0);
}

/// Who may speak: a round in the high 48 bits, a node in the low 16. Ordered by round, then node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ballot(pub u64);

impl Ballot {
    /// Below every ballot that a node may use.
    pub const NONE: Self = Self(0);
    /// What a sealed group has promised; the wire refuses it as malformed.
    pub const SEALED: Self = Self(u64::MAX);
    /// The highest round: one below the sealed one.
    pub const MAX_ROUND: u64 = (1 << 48) - 2;

    /// The ballot of `node` in `round` (the low 48 bits count).
    #[must_use]
    #[inline]
    pub const fn new(round: u64, node: NodeId) -> Self {
        Self((round << 16) | node.0 as u64)
    }

    /// The round, `0..2^48`.
    #[must_use]
    #[inline]
    pub const fn round(self) -> u64 {
        self.0 >> 16
    }

    /// The node whose ballot this is.
    #[must_use]
    #[inline]
    pub const fn node(self) -> NodeId {
        NodeId((self.0 & 0xffff) as u16)
    }
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.round(), self.node())
    }
}

impl fmt::Debug for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ballot({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ballots_order_by_round_then_node() {
        assert!(Ballot::new(2, NodeId(1)) > Ballot::new(1, NodeId(9)));
        assert!(Ballot::new(2, NodeId(2)) > Ballot::new(2, NodeId(1)));
        assert!(Ballot::new(Ballot::MAX_ROUND, NodeId(u16::MAX)) < Ballot::SEALED);
    }

    #[test]
    fn a_ballot_keeps_its_parts() {
        let ballot = Ballot::new(77, NodeId(3));
        assert_eq!((ballot.round(), ballot.node()), (77, NodeId(3)));
    }
}
