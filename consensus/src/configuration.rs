//! Configurations as they travel and are kept: who is a member from which ballot on, and who
//! remembers that.

use crate::client::{ADDRESS_BYTES, decode_address, encode_address};
use crate::quorum::{MAX_MEMBERS, Member, MemberRole, Membership, Quorums};
use crate::{Ballot, Epoch, Incarnation, NodeId};
use alloc::vec::Vec;

/// Bytes before the members: version u64, epoch u32, phase-1 and phase-2 quorum u8, members u8, zero
/// u8.
const HEAD_BYTES: usize = 16;
/// Bytes before matchmakers: generation u32, how many u8, zeros.
const SET_BYTES: usize = 8;
/// Bytes of a member: node u16, role u8, priority u8, incarnation u32, address, zero u16.
const MEMBER_BYTES: usize = 8 + ADDRESS_BYTES + 2;

/// A membership, and what it is called among all that there ever were.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Configuration {
    /// The ballot in which its leader led when it made it; none for the one that formed. A leader
    /// makes at most one in each ballot, from the one that it leads with: later ones are higher.
    /// The ballot that it draws for it would not do: a later leader may be elected below that.
    pub version: Ballot,
    /// Its members and their quorums.
    pub membership: Membership,
    /// The newest matchmakers known to whoever tells it. None where a matchmaker tells what it has
    /// written down.
    pub matchmakers: Matchmakers,
}

/// Who remembers which configurations ballots use.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Matchmakers {
    /// Those that formed the cluster are the first, those that take over from them the second, and
    /// so on. The first appoint the second: there is one set of each generation. Zero if nobody is
    /// known.
    pub generation: u32,
    /// Who they are. Their roles say nothing.
    pub members: Vec<Member>,
}

impl Matchmakers {
    /// The generation of those that formed the cluster.
    pub const FIRST: u32 = 1;

    /// Nobody is known.
    pub const NONE: Self = Self {
        generation: 0,
        members: Vec::new(),
    };

    /// Whether any two sets of so many share one.
    pub const fn is_majority(&self, count: usize) -> bool {
        count > self.members.len() / 2
    }

    /// Whether this life of a node is one of them.
    pub fn has(&self, node: NodeId, incarnation: Incarnation) -> bool {
        let mut members = self.members.iter();
        members.any(|member| member.is_life(node, incarnation))
    }

    /// Those that are to take over from these: whoever votes by `membership`. So a majority of those
    /// who vote is enough for everything.
    pub fn succeeded_by(&self, membership: &Membership) -> Self {
        let members = membership.members.iter();
        let votes = members.filter(|member| member.role != MemberRole::Learner);
        Self {
            generation: self.generation + 1,
            members: votes.copied().collect(),
        }
    }

    /// Whether they are those who vote by `membership`.
    pub fn are_those_of(&self, membership: &Membership) -> bool {
        let wanted = self.succeeded_by(membership).members;
        let is_there = |one: &Member| {
            let same = |other: &Member| {
                (other.node, other.incarnation, other.address)
                    == (one.node, one.incarnation, one.address)
            };
            self.members.iter().any(same)
        };
        wanted.len() == self.members.len() && wanted.iter().all(is_there)
    }

    /// Writes them behind what is there.
    pub fn append(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.generation.to_be_bytes());
        out.extend_from_slice(&[self.members.len() as u8, 0, 0, 0]);
        append_members(&self.members, out);
    }

    /// The first ones of a sequence, and the rest. `None` if they are broken.
    pub fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (head, rest) = bytes.split_first_chunk::<SET_BYTES>()?;
        let (generation, counts) = head.split_first_chunk::<4>()?;
        let (members, rest) = read_members(rest, counts.first().copied()?.into())?;
        if members.len() > MAX_MEMBERS {
            return None;
        }
        let generation = u32::from_be_bytes(*generation);
        Some((
            Self {
                generation,
                members,
            },
            rest,
        ))
    }
}

impl Configuration {
    /// What a node knows that nobody has told anything yet: nobody leads by it.
    pub const fn unknown() -> Self {
        Self {
            version: Ballot::NONE,
            membership: Membership {
                epoch: Epoch(0),
                members: Vec::new(),
                quorums: Quorums::NONE,
            },
            matchmakers: Matchmakers::NONE,
        }
    }

    /// The one with which a cluster begins: its members remember the later ones.
    pub fn formed(membership: Membership) -> Self {
        Self {
            version: Ballot::NONE,
            matchmakers: Matchmakers {
                generation: Matchmakers::FIRST,
                members: membership.members.clone(),
            },
            membership,
        }
    }

    /// The member that this life of a node is.
    pub fn member(&self, node: NodeId, incarnation: Incarnation) -> Option<&Member> {
        let member = self.membership.member(node)?;
        (member.incarnation == incarnation).then_some(member)
    }

    /// Writes it behind what is there.
    pub fn append(&self, out: &mut Vec<u8>) {
        let quorums = self.membership.quorums;
        out.extend_from_slice(&self.version.0.to_be_bytes());
        out.extend_from_slice(&self.membership.epoch.0.to_be_bytes());
        out.extend_from_slice(&[
            quorums.phase1() as u8,
            quorums.phase2() as u8,
            self.membership.members.len() as u8,
            0,
        ]);
        append_members(&self.membership.members, out);
        self.matchmakers.append(out);
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.append(&mut out);
        out
    }

    /// The first one of a sequence, and the rest. `None` if that is none by which anybody could
    /// lead.
    pub fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        let (version, tail) = head.split_first_chunk::<8>()?;
        let (epoch, counts) = tail.split_first_chunk::<4>()?;
        let [phase1, phase2, members, _] = *counts.first_chunk::<4>()?;
        let (own, rest) = read_members(rest, members.into())?;
        let (matchmakers, rest) = Matchmakers::read(rest)?;
        let acceptors = own
            .iter()
            .filter(|member| member.role != MemberRole::Learner);
        let quorums = Quorums::flexible(acceptors.count(), phase1.into(), phase2.into()).ok()?;
        let membership = Membership {
            epoch: Epoch(u32::from_be_bytes(*epoch)),
            members: own,
            quorums,
        };
        membership.check().ok()?;
        let configuration = Self {
            version: Ballot(u64::from_be_bytes(*version)),
            membership,
            matchmakers,
        };
        Some((configuration, rest))
    }

    /// All of a sequence. `None` if one is broken.
    pub fn read_all(mut bytes: &[u8]) -> Option<Vec<Self>> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let (one, rest) = Self::read(bytes)?;
            all.push(one);
            bytes = rest;
        }
        Some(all)
    }
}

fn append_members(members: &[Member], out: &mut Vec<u8>) {
    for member in members {
        out.extend_from_slice(&member.node.0.to_be_bytes());
        out.extend_from_slice(&[member.role as u8, member.priority]);
        out.extend_from_slice(&member.incarnation.0.to_be_bytes());
        out.extend_from_slice(&encode_address(member.address));
        out.extend_from_slice(&[0; 2]);
    }
}

fn read_members(bytes: &[u8], count: usize) -> Option<(Vec<Member>, &[u8])> {
    let (bytes, rest) = bytes.split_at_checked(count * MEMBER_BYTES)?;
    let members = bytes.as_chunks::<MEMBER_BYTES>().0.iter().map(|bytes| {
        let (head, tail) = bytes.split_first_chunk::<8>()?;
        let [a, b, role, priority, c, d, e, f] = *head;
        Some(Member {
            node: NodeId(u16::from_be_bytes([a, b])),
            incarnation: Incarnation(u32::from_be_bytes([c, d, e, f])),
            address: decode_address(tail.get(..ADDRESS_BYTES)?)?,
            priority,
            role: MemberRole::from_code(role)?,
        })
    });
    Some((members.collect::<Option<_>>()?, rest))
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A configuration of these nodes, each in its first life.
    pub(crate) fn configuration(version: u64, nodes: &[u16]) -> Configuration {
        let member = |node: &u16| Member {
            node: NodeId(*node),
            incarnation: Incarnation(u32::from(*node) * 10),
            address: ([10, 0, 0, *node as u8], 4747).into(),
            priority: 0,
            role: MemberRole::Voter,
        };
        let formed = Configuration::formed(Membership {
            epoch: Epoch(1),
            members: nodes.iter().map(member).collect(),
            quorums: Quorums::majority(nodes.len()).expect("possible"),
        });
        Configuration {
            version: Ballot::new(version, NodeId(1)),
            ..formed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::configuration;
    use super::*;

    #[test]
    fn a_sequence_is_read_as_it_was_written() {
        let mut first = configuration(3, &[1, 2, 3]);
        first.membership.members[2].role = MemberRole::Learner;
        first.membership.quorums = Quorums::majority(2).expect("possible");
        first.membership.members[0].address = "[fd00::7]:9".parse().expect("an address");
        let all = [first, configuration(4, &[4, 5, 6, 7, 8])];
        let mut bytes = Vec::new();
        for one in &all {
            one.append(&mut bytes);
        }
        assert_eq!(Configuration::read_all(&bytes).as_deref(), Some(&all[..]));
        bytes.pop();
        assert_eq!(Configuration::read_all(&bytes), None);
    }

    #[test]
    fn matchmakers_are_those_who_vote() {
        let mut one = configuration(3, &[1, 2, 3]);
        assert!(one.matchmakers.are_those_of(&one.membership));
        one.membership.members[1].role = MemberRole::Learner;
        let next = one.matchmakers.succeeded_by(&one.membership);
        assert!(!one.matchmakers.are_those_of(&one.membership));
        assert!(next.are_those_of(&one.membership) && next.generation == 2);
        one.membership.members[2].incarnation = Incarnation(31);
        assert!(!next.are_those_of(&one.membership), "that is another life");
    }

    #[test]
    fn what_nobody_could_lead_by_is_not_read() {
        let sound = configuration(3, &[1, 2, 3]);
        let changes: [fn(&mut Membership); 3] = [
            |membership| membership.quorums = Quorums::flexible(2, 1, 2).expect("of two"),
            |membership| membership.members[1].node = NodeId(1),
            |membership| membership.members[1].role = MemberRole::Witness,
        ];
        for change in changes {
            let mut unsound = sound.clone();
            change(&mut unsound.membership);
            assert_eq!(
                Configuration::read(&unsound.to_bytes()),
                None,
                "{unsound:?}"
            );
        }
    }

    #[test]
    fn a_witness_needs_quorums_that_meet_in_a_replica() {
        let mut membership = configuration(3, &[1, 2, 3]).membership;
        membership.members[1].role = MemberRole::Witness;
        assert!(
            membership.check().is_err(),
            "2 + 2 of 3 may meet in it alone"
        );
        membership.quorums = Quorums::flexible(3, 2, 3).expect("possible");
        assert_eq!(membership.check(), Ok(()));
    }
}
