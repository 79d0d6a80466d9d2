//! Memberships and their quorums.

use crate::simulation::{Mutation, mutated};
use crate::wire::Header;
use crate::{Epoch, Incarnation, NodeId};
use alloc::vec::Vec;
use core::net::SocketAddr;

/// Most members that one membership may have: votes of two are counted in one word.
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
    /// Every phase-1 quorum must meet every phase-2 quorum in a replica: a witness alone cannot
    /// recover a value.
    #[error(
        "quorums {phase1} + {phase2} of {acceptors} acceptors, {witnesses} of them witnesses, may \
         meet in witnesses only: their sum must exceed {acceptors} + {witnesses}"
    )]
    Witnesses {
        /// Voters and witnesses.
        acceptors: usize,
        /// Witnesses among them.
        witnesses: usize,
        /// Asked for phase 1.
        phase1: usize,
        /// Asked for phase 2.
        phase2: usize,
    },
    /// A node's number is out of range, or there twice.
    #[error("node {0} is no node, or is a member twice: each number, from 1 to {max}, is a member once", max = NodeId::MAX)]
    Node(NodeId),
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

    /// Quorums of a membership that nobody is told of yet.
    pub(crate) const NONE: Self = Self {
        phase1: usize::MAX,
        phase2: usize::MAX,
    };

    /// Promises that a new leader needs.
    pub const fn phase1(&self) -> usize {
        self.phase1
    }

    /// Votes that choose a value.
    pub const fn phase2(&self) -> usize {
        self.phase2
    }
}

/// What a member is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum MemberRole {
    /// Votes, applies the log, and may lead.
    Voter = 1,
    /// Is sent everything, applies the log, and counts for nothing.
    Learner = 2,
    /// Votes, and does nothing else.
    Witness = 3,
}

impl MemberRole {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Voter, Self::Learner, Self::Witness];

    /// The role with this code.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|role| *role as u8 == code)
    }

    /// Its name in configurations and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Voter => "voter",
            Self::Learner => "learner",
            Self::Witness => "witness",
        }
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
    /// What it is for.
    pub role: MemberRole,
}

impl Member {
    /// Whether it is this life of a node.
    pub fn is_life(&self, node: NodeId, incarnation: Incarnation) -> bool {
        (self.node, self.incarnation) == (node, incarnation)
    }

    /// Whether a packet that carries these names comes from it, in the life that counts.
    fn is(&self, node: NodeId, incarnation: Incarnation) -> bool {
        self.node == node
            && (self.incarnation == incarnation || mutated(Mutation::ForeignLifeCounted))
    }
}

/// The place of the member whose packet carries these names.
pub(crate) fn place_of(members: &[Member], header: &Header) -> Option<usize> {
    let is = |member: &Member| member.is(header.sender, header.incarnation);
    members.iter().position(is)
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

    /// The places of those with one of these roles.
    fn places(&self, roles: &[MemberRole]) -> Voters {
        let mut places = Voters::default();
        for (place, member) in self.members.iter().enumerate() {
            if roles.contains(&member.role) {
                places.add(place);
            }
        }
        places
    }

    /// Those whose promises and votes count.
    pub fn acceptors(&self) -> Voters {
        self.places(match mutated(Mutation::LearnerCounted) {
            true => &MemberRole::ALL,
            false => &[MemberRole::Voter, MemberRole::Witness],
        })
    }

    /// Those that apply the log and count.
    pub fn voters(&self) -> Voters {
        self.places(&[MemberRole::Voter])
    }

    /// Whether acceptors of any phase-1 quorum are among `answered`.
    pub fn has_phase1(&self, answered: Voters) -> bool {
        answered.among(self.acceptors()) >= self.quorums.phase1()
    }

    /// Makes sure that leaders may count by it.
    ///
    /// # Errors
    /// Its quorums need not intersect in a replica, or cannot be met; or it names a node twice.
    pub fn check(&self) -> Result<(), QuorumError> {
        let acceptors = self
            .places(&[MemberRole::Voter, MemberRole::Witness])
            .count();
        let (phase1, phase2) = (self.quorums.phase1(), self.quorums.phase2());
        Quorums::flexible(acceptors, phase1, phase2)?;
        if self.members.len() > MAX_MEMBERS {
            return Err(QuorumError::Members(self.members.len()));
        }
        let witnesses = acceptors - self.voters().count();
        if phase1 + phase2 <= acceptors + witnesses && !mutated(Mutation::WitnessesMeet) {
            return Err(QuorumError::Witnesses {
                acceptors,
                witnesses,
                phase1,
                phase2,
            });
        }
        for (place, member) in self.members.iter().enumerate() {
            let is_node = (1..=NodeId::MAX).contains(&member.node.0);
            if !is_node || self.place(member.node) != Some(place) {
                return Err(QuorumError::Node(member.node));
            }
        }
        Ok(())
    }

    /// Every member but `node`.
    pub fn others(&self, node: NodeId) -> impl Iterator<Item = &Member> {
        self.members
            .iter()
            .filter(move |member| member.node != node)
    }
}

/// Who answers a leader: the members of its configuration, and before it leads the acceptors of
/// every earlier configuration in which something may still be chosen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Electorate {
    /// What the leader leads with. Its members have the first places.
    pub membership: Membership,
    /// Acceptors of earlier configurations that are no members of this one.
    earlier: Vec<Member>,
    /// The acceptors of each configuration, and how many of them phase 1 takes.
    phase1: Vec<(Voters, usize)>,
    acceptors: Voters,
}

impl Electorate {
    /// The members of one configuration.
    pub fn of(membership: Membership) -> Self {
        let acceptors = membership.acceptors();
        Self {
            phase1: [(acceptors, membership.quorums.phase1())].to_vec(),
            acceptors,
            earlier: Vec::new(),
            membership,
        }
    }

    /// Has phase 1 take a quorum of this earlier configuration, too. False if that are too many
    /// acceptors.
    #[must_use]
    pub fn add(&mut self, membership: &Membership) -> bool {
        let mut acceptors = Voters::default();
        let counts = membership.acceptors();
        for (place, member) in membership.members.iter().enumerate() {
            if !counts.has(place) {
                continue;
            }
            let same = |other: &Member| other.is_life(member.node, member.incarnation);
            let known = self.members().position(same);
            let at = match known {
                Some(at) => at,
                None => {
                    self.earlier.push(*member);
                    self.membership.members.len() + self.earlier.len() - 1
                }
            };
            if at >= Voters::PLACES {
                return false;
            }
            acceptors.add(at);
        }
        self.phase1.push((acceptors, membership.quorums.phase1()));
        true
    }

    /// Only its own configuration counts from here on: the others are garbage.
    pub fn forget_earlier(&mut self) {
        self.earlier.clear();
        self.phase1.truncate(1);
    }

    /// Everybody, those of its own configuration first.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.membership.members.iter().chain(&self.earlier)
    }

    /// The place of the acceptor whose reply this is: a reply counts only if its sender and the life
    /// of its memory are of a configuration concerned, and it answers a request of this one.
    pub fn voter(&self, reply: &Header) -> Option<usize> {
        if reply.epoch != self.membership.epoch && !mutated(Mutation::OldEpochCounted) {
            return None;
        }
        let places = self.membership.members.len();
        place_of(&self.membership.members, reply)
            .or_else(|| place_of(&self.earlier, reply).map(|place| places + place))
    }

    /// Whether a phase-1 quorum of each configuration is among those who answered, if `short` may be
    /// missing from each.
    pub fn has_phase1(&self, answered: Voters, short: usize) -> bool {
        let has =
            |(acceptors, quorum): &(Voters, usize)| answered.among(*acceptors) + short >= *quorum;
        self.phase1.iter().all(has)
    }

    /// Whether a phase-2 quorum of its own configuration is among those who answered, if `short` may
    /// be missing.
    pub fn has_phase2(&self, answered: Voters, short: usize) -> bool {
        answered.among(self.acceptors) + short >= self.membership.quorums.phase2()
    }
}

/// Members that have answered, one bit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Voters(u64);

impl Voters {
    /// How many places there are: members of one configuration, and acceptors of earlier ones.
    pub const PLACES: usize = 2 * MAX_MEMBERS;

    /// Adds the member at `place < PLACES`.
    pub fn add(&mut self, place: usize) {
        let place = if self.has(place) && mutated(Mutation::VoterCountedTwice) {
            self.0.trailing_ones() as usize
        } else {
            place
        };
        self.0 |= 1u64.checked_shl(place as u32).unwrap_or(0);
    }

    /// Whether the member at `place` answered.
    pub fn has(self, place: usize) -> bool {
        self.0 & 1u64.checked_shl(place as u32).unwrap_or(0) != 0
    }

    /// How many answered.
    pub fn count(self) -> usize {
        self.0.count_ones() as usize
    }

    /// How many of `others` answered.
    pub fn among(self, others: Self) -> usize {
        (self.0 & others.0).count_ones() as usize
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
            role: MemberRole::Voter,
        };
        let electorate = Electorate::of(Membership {
            epoch: Epoch(3),
            members: [1, 2].map(member).to_vec(),
            quorums: Quorums::majority(2).expect("possible"),
        });
        let reply = Header {
            incarnation: Incarnation(20),
            epoch: Epoch(3),
            ..Header::new(Kind::Accepted, GroupId(0), NodeId(2))
        };
        assert_eq!(electorate.voter(&reply), Some(1));
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
            assert_eq!(electorate.voter(&stranger), None, "{stranger:?}");
        }
    }

    #[test]
    fn phase_1_takes_a_quorum_of_each_configuration() {
        let member = |number: u16, life: u32| Member {
            node: NodeId(number),
            incarnation: Incarnation(life),
            address: SocketAddr::from(([127, 0, 0, 1], number)),
            priority: 0,
            role: MemberRole::Voter,
        };
        let membership = |members: &[Member]| Membership {
            epoch: Epoch(3),
            members: members.to_vec(),
            quorums: Quorums::majority(members.len()).expect("possible"),
        };
        let own = membership(&[member(1, 1), member(2, 1), member(3, 2)]);
        let mut electorate = Electorate::of(own);
        assert!(electorate.add(&membership(&[member(1, 1), member(3, 1), member(4, 1)])));
        let answered = |lives: &[(u16, u32)]| {
            let mut answered = Voters::default();
            for (node, life) in lives {
                let reply = Header {
                    incarnation: Incarnation(*life),
                    epoch: Epoch(3),
                    ..Header::new(Kind::Promise, GroupId(0), NodeId(*node))
                };
                answered.add(electorate.voter(&reply).expect("of one of the two"));
            }
            answered
        };
        assert!(
            !electorate.has_phase1(answered(&[(2, 1), (3, 2)]), 0),
            "none of the earlier"
        );
        assert!(
            !electorate.has_phase1(answered(&[(1, 1), (3, 2)]), 0),
            "another life of node 3"
        );
        assert!(electorate.has_phase1(answered(&[(1, 1), (2, 1), (4, 1)]), 0));
        assert!(
            !electorate.has_phase2(answered(&[(3, 1), (4, 1), (1, 1)]), 0),
            "one of its own"
        );
        assert!(electorate.has_phase2(answered(&[(1, 1), (3, 2)]), 0));
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
