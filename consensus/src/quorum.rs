//! Memberships and their quorums.

use crate::simulation::{Mutation, mutated};
use crate::wire::Header;
use crate::{Epoch, Incarnation, NodeId};
use alloc::vec::Vec;
use core::net::SocketAddr;

/// Most members that one membership may have: votes are counted in one word.
pub const MAX_MEMBERS: usize = 32;

/// How many acceptors each phase needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quorums {
    phase1: usize,
    phase2: usize,
}

/// Quorums that do not intersect, or cannot be met.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QuorumError {
    /// Flexible Paxos, section 3: only phase-1 and phase-2 quorums must intersect, but they must.
    #[error(
        "quorums {phase1} + {phase2} of {members} acceptors need not intersect: their sum must \
         exceed {members}"
    )]
    Disjoint {
        /// Acceptors in all.
        members: usize,
        /// Asked for phase 1.
        phase1: usize,
        /// Asked for phase 2.
        phase2: usize,
    },
    /// More votes than acceptors, or none.
    #[error(
        "a quorum of {quorum} out of {members} acceptors cannot be met: it takes 1 to {members}"
    )]
    Impossible {
        /// Acceptors in all.
        members: usize,
        /// Asked for.
        quorum: usize,
    },
    /// Too many members.
    #[error("{0} members, but a membership holds 1 to {MAX_MEMBERS}")]
    Members(usize),
}

impl Quorums {
    /// Majorities of `members`.
    ///
    /// # Errors
    /// There are no members, or more than [`MAX_MEMBERS`].
    pub fn majority(members: usize) -> Result<Self, QuorumError> {
        Self::flexible(members, members / 2 + 1, members / 2 + 1)
    }

    /// Chosen quorums.
    ///
    /// # Errors
    /// They need not intersect or cannot be met.
    pub fn flexible(members: usize, phase1: usize, phase2: usize) -> Result<Self, QuorumError> {
        if members == 0 || members > MAX_MEMBERS {
            return Err(QuorumError::Members(members));
        }
        for quorum in [phase1, phase2] {
            if quorum == 0 || quorum > members {
                return Err(QuorumError::Impossible { members, quorum });
            }
        }
        let is_tight = phase1 + phase2 == members && mutated(Mutation::QuorumsDisjoint);
        if phase1 + phase2 <= members && !is_tight {
            return Err(QuorumError::Disjoint {
                members,
                phase1,
                phase2,
            });
        }
        Ok(Self { phase1, phase2 })
    }

    /// Promises that a new leader needs.
    pub const fn phase1(&self) -> usize {
        self.phase1
    }

    /// Votes that choose a value.
    pub const fn phase2(&self) -> usize {
        self.phase2
    }
}

/// One member: an acceptor and its replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its number.
    pub node: NodeId,
    /// The life of its memory that counts.
    pub incarnation: Incarnation,
    /// Where it is reached.
    pub address: SocketAddr,
    /// Higher ones campaign earlier.
    pub priority: u8,
}

/// A numbered membership.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Membership {
    /// Its number.
    pub epoch: Epoch,
    /// Its members; a vote's bit is the member's place here.
    pub members: Vec<Member>,
    /// Its quorums.
    pub quorums: Quorums,
}

impl Membership {
    /// The place of `node`.
    pub fn place(&self, node: NodeId) -> Option<usize> {
        self.members.iter().position(|member| member.node == node)
    }

    /// The member called `node`.
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.iter().find(|member| member.node == node)
    }

    /// The place of the member whose reply this is: a reply counts only if its sender, the life of
    /// its memory and its epoch are those of the membership.
    pub fn voter(&self, reply: &Header) -> Option<usize> {
        if reply.epoch != self.epoch && !mutated(Mutation::OldEpochCounted) {
            return None;
        }
        self.members.iter().position(|member| {
            member.node == reply.sender
                && (member.incarnation == reply.incarnation
                    || mutated(Mutation::ForeignLifeCounted))
        })
    }

    /// Every member but `node`.
    pub fn others(&self, node: NodeId) -> impl Iterator<Item = &Member> {
        self.members
            .iter()
            .filter(move |member| member.node != node)
    }
}

/// Members that have answered, one bit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Voters(u32);

impl Voters {
    /// Adds the member at `place < MAX_MEMBERS`.
    pub fn add(&mut self, place: usize) {
        let place = if self.has(place) && mutated(Mutation::VoterCountedTwice) {
            self.0.trailing_ones() as usize
        } else {
            place
        };
        self.0 |= 1u32.checked_shl(place as u32).unwrap_or(0);
    }

    /// Whether the member at `place` answered.
    pub fn has(self, place: usize) -> bool {
        self.0 & 1u32.checked_shl(place as u32).unwrap_or(0) != 0
    }

    /// How many answered.
    pub fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The same members when the one at each place `p` has moved to `places[p]`.
    #[cfg(feature = "simulation")]
    pub(crate) fn moved(self, places: &[usize]) -> Self {
        let mut moved = Self::default();
        for (from, to) in places.iter().enumerate() {
            if self.has(from) {
                moved.add(*to);
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GroupId;
    use crate::wire::Kind;

    #[test]
    fn quorums_that_need_not_intersect_are_refused() {
        assert_eq!(
            Quorums::flexible(4, 2, 2),
            Err(QuorumError::Disjoint {
                members: 4,
                phase1: 2,
                phase2: 2
            })
        );
        assert!(Quorums::flexible(4, 3, 2).is_ok());
        assert!(Quorums::flexible(3, 4, 1).is_err());
        assert!(Quorums::flexible(3, 3, 0).is_err());
        assert!(Quorums::majority(0).is_err());
    }

    #[test]
    fn majorities_of_any_size_intersect() {
        for members in 1..=MAX_MEMBERS {
            let quorums = Quorums::majority(members).expect("possible");
            assert!(quorums.phase1() + quorums.phase2() > members);
        }
    }

    #[test]
    fn a_reply_counts_only_from_the_life_and_epoch_of_the_membership() {
        let member = |number: u16| Member {
            node: NodeId(number),
            incarnation: Incarnation(u32::from(number) * 10),
            address: SocketAddr::from(([127, 0, 0, 1], number)),
            priority: 0,
        };
        let membership = Membership {
            epoch: Epoch(3),
            members: [1, 2].map(member).to_vec(),
            quorums: Quorums::majority(2).expect("possible"),
        };
        let reply = Header {
            incarnation: Incarnation(20),
            epoch: Epoch(3),
            ..Header::new(Kind::Accepted, GroupId(0), NodeId(2))
        };
        assert_eq!(membership.voter(&reply), Some(1));
        let strangers = [
            Header {
                incarnation: Incarnation(21),
                ..reply
            },
            Header {
                epoch: Epoch(2),
                ..reply
            },
            Header {
                sender: NodeId(1),
                ..reply
            },
        ];
        for stranger in strangers {
            assert_eq!(membership.voter(&stranger), None, "{stranger:?}");
        }
    }

    #[test]
    fn a_voter_counts_once() {
        let mut voters = Voters::default();
        voters.add(2);
        voters.add(2);
        assert_eq!(voters.count(), 1);
        assert!(voters.has(2) && !voters.has(1));
    }
}
