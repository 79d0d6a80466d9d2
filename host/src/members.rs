//! How a wish for other members becomes changes, each of which a leader takes: learners first, then
//! everything else at once.

use crate::inspect::{Change, Inspector, Report};
use consensus::auth::Keys;
use consensus::configuration::{Configuration, Matchmakers};
use consensus::quorum::{Member, MemberRole, Membership, QuorumError, Quorums};
use consensus::replica::Reconfigured;
use consensus::{GroupId, Incarnation, NodeId};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks at how far a change is.
const LOOK: Duration = Duration::from_millis(10);
/// How long one node is waited for before another is asked.
const ANSWER: Duration = Duration::from_millis(300);

/// What all nodes of a cluster have alike, as their reports name it. Leaders count on it: a lease that
/// one acceptor gives for less is no lease.
const ALIKE: [&str; 5] = [
    "durability",
    "groups",
    "window_slots",
    "value_bytes",
    "lease_ns",
];

/// Who is to be a member, whatever that takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wish {
    /// The members.
    pub members: Vec<Member>,
    /// Votes for phase 1 and phase 2; as they are, or majorities of as many as vote.
    pub quorums: Option<(usize, usize)>,
}

/// What is to be done next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// The members are those wished for.
    Done,
    /// Ask the leader for this.
    Change(Membership),
    /// The leader is leaving: another one has to lead before it can go.
    Wait,
}

fn same(one: &Member, other: &Member) -> bool {
    (one.node, one.incarnation) == (other.node, other.incarnation)
}

impl Wish {
    /// The step from `current`, which `leader` leads, towards the wish.
    ///
    /// # Errors
    /// The quorums need not meet, or a node is named twice.
    pub fn next(&self, current: &Membership, leader: NodeId) -> Result<Step, QuorumError> {
        let is_there = |wanted: &&Member| current.members.iter().any(|one| same(one, wanted));
        let (there, missing): (Vec<&Member>, Vec<&Member>) =
            self.members.iter().partition(is_there);
        if !missing.is_empty() {
            // The former life of a node goes when the new one comes: a number is a member once.
            let goes = |one: &Member| missing.iter().any(|new| new.node == one.node);
            let stays = current.members.iter().filter(|one| !goes(one));
            let learners = missing.iter().map(|new| Member {
                role: MemberRole::Learner,
                ..**new
            });
            let members = stays.copied().chain(learners).collect();
            return membership(current, members, None).map(Step::Change);
        }
        let mut members: Vec<Member> = there.into_iter().copied().collect();
        let leads_on = members.iter().any(|one| one.node == leader);
        if let Some(own) = current.member(leader).filter(|_| !leads_on) {
            members.push(Member {
                role: MemberRole::Learner,
                ..*own
            });
        }
        let next = membership(current, members, self.quorums)?;
        Ok(match (is_same(&next, current), leads_on) {
            (true, true) => Step::Done,
            (true, false) => Step::Wait,
            (false, _) => Step::Change(next),
        })
    }
}

fn membership(
    current: &Membership,
    members: Vec<Member>,
    quorums: Option<(usize, usize)>,
) -> Result<Membership, QuorumError> {
    let mut next = Membership {
        members,
        ..current.clone()
    };
    let acceptors = next.acceptors().count();
    next.quorums = match quorums {
        Some((phase1, phase2)) => Quorums::flexible(acceptors, phase1, phase2)?,
        None if acceptors == current.acceptors().count() => current.quorums,
        None => Quorums::majority(acceptors)?,
    };
    next.check()?;
    Ok(next)
}

fn is_same(one: &Membership, other: &Membership) -> bool {
    let sorted = |membership: &Membership| {
        let mut members = membership.members.clone();
        members.sort_unstable_by_key(|member| member.node);
        members
    };
    one.quorums == other.quorums && sorted(one) == sorted(other)
}

/// The members did not become those wished for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers for them.
    #[error("nobody leads among {}", addresses(asked))]
    NoLeader {
        /// Who was asked.
        asked: Vec<SocketAddr>,
    },
    /// Not in time.
    #[error("the members are not yet those wished for: {}", names(members))]
    Late {
        /// Who they are.
        members: Vec<Member>,
    },
    /// The leader takes them for unsound.
    #[error("the leader does not take these members: {}", names(members))]
    Refused {
        /// Who they were to be.
        members: Vec<Member>,
    },
    /// A node does not say how it is set up.
    #[error("the node at {address} does not answer")]
    Silent {
        /// Where it is.
        address: SocketAddr,
    },
    /// A new member is set up differently.
    #[error("the node at {address} has {key} {has}, and the cluster {wanted}")]
    Unlike {
        /// Where it is.
        address: SocketAddr,
        /// What differs, as in reports.
        key: &'static str,
        /// What the node has.
        has: serde_json::Value,
        /// What the leader has.
        wanted: serde_json::Value,
    },
    /// They are unsound.
    #[error(transparent)]
    Quorums(#[from] QuorumError),
    /// The socket went away.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
}

impl Error {
    /// What mends it, where that can be said.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::NoLeader { .. } => {
                Some("see `nearwire status`: a majority must run, and an election takes a moment")
            }
            Self::Late { .. } => Some(
                "see `nearwire status` whether all of them run and catch up, then say it again: \
                 what is done stays done",
            ),
            Self::Refused { .. } => {
                Some("its program may be another version: see `nearwire status`")
            }
            Self::Silent { .. } => Some(
                "see `nearwire status`; a new node runs with `join = true` in its configuration",
            ),
            Self::Unlike { .. } => Some(
                "start it with the cluster's configuration and an empty data directory, then try \
                 again",
            ),
            Self::Quorums(_) => Some("give --phase1 and --phase2, or other members"),
            Self::Datapath(_) => None,
        }
    }
}

fn addresses(asked: &[SocketAddr]) -> String {
    let asked: Vec<_> = asked.iter().map(ToString::to_string).collect();
    asked.join(", ")
}

fn names(members: &[Member]) -> String {
    let names = members
        .iter()
        .map(|member| format!("{} {}", member.node, member.role.name()));
    names.collect::<Vec<_>>().join(", ")
}

/// What a leader says of the members.
pub struct Now {
    /// What came of the last wish, or whether a change is under way.
    pub came: Reconfigured,
    /// Who leads.
    pub leader: NodeId,
    /// The configuration in force.
    pub configuration: Configuration,
}

/// Changes the members of a cluster, through whoever leads.
pub struct Operator {
    inspector: Inspector,
    seeds: Vec<SocketAddr>,
    /// Who is asked next.
    target: Option<SocketAddr>,
    turn: usize,
}

impl Operator {
    /// For the cluster of which some members are or were at these addresses.
    ///
    /// # Errors
    /// There is no socket left.
    pub fn new(seeds: Vec<SocketAddr>, keys: Option<Keys>) -> Result<Self, Error> {
        Ok(Self {
            inspector: Inspector::new(&seeds, keys)?,
            target: seeds.first().copied(),
            seeds,
            turn: 0,
        })
    }

    /// What it asks by.
    pub const fn inspector(&mut self) -> &mut Inspector {
        &mut self.inspector
    }

    /// Asks who the members are.
    ///
    /// # Errors
    /// Nobody who leads answers in time.
    pub fn look(&mut self, patience: Duration) -> Result<Now, Error> {
        self.ask(None, Instant::now() + patience)
    }

    fn ask(&mut self, wish: Option<&Configuration>, until: Instant) -> Result<Now, Error> {
        while let Some(target) = self.target
            && Instant::now() < until
        {
            match self.inspector.reconfigure(target, wish, ANSWER)? {
                Change::Answered {
                    came,
                    leader,
                    configuration,
                } => {
                    return Ok(Now {
                        came,
                        leader,
                        configuration,
                    });
                }
                Change::Redirected(Some((_, address))) if address != target => {
                    self.target = Some(address);
                }
                Change::Redirected(_) | Change::Silent => {
                    self.turn += 1;
                    let next = self.turn.checked_rem(self.seeds.len());
                    self.target = next.and_then(|next| self.seeds.get(next)).copied();
                    thread::sleep(LOOK);
                }
            }
        }
        let asked = self.seeds.clone();
        Err(Error::NoLeader { asked })
    }

    /// How many groups the cluster has.
    fn groups(&mut self, until: Instant) -> Result<u16, Error> {
        while Instant::now() < until {
            let asked: Vec<_> = self.target.iter().chain(&self.seeds).copied().collect();
            let reports = self.inspector.inspect(&asked, ANSWER, |reports| {
                reports.iter().any(Option::is_some)
            })?;
            if let Some(report) = reports.into_iter().flatten().next() {
                return Ok(report.groups());
            }
        }
        let asked = self.seeds.clone();
        Err(Error::NoLeader { asked })
    }

    /// Has the members of every group become those of the wish, one group after the other, and waits
    /// until no other configuration is needed in it. Tells of the first group.
    ///
    /// # Errors
    /// They did not in time, which each group has, or cannot.
    pub fn change(&mut self, wish: &Wish, patience: Duration) -> Result<Now, Error> {
        for group in (1..self.groups(Instant::now() + patience)?).map(GroupId) {
            self.inspector.group = group;
            self.change_group(wish, patience)?;
        }
        self.inspector.group = GroupId(0);
        self.change_group(wish, patience)
    }

    fn change_group(&mut self, wish: &Wish, patience: Duration) -> Result<Now, Error> {
        let until = Instant::now() + patience;
        loop {
            let now = self.ask(None, until)?;
            if now.came == Reconfigured::Settled {
                match wish.next(&now.configuration.membership, now.leader)? {
                    Step::Done => return Ok(now),
                    Step::Wait => {}
                    Step::Change(membership) => self.take(&now, membership, until)?,
                }
            }
            if Instant::now() >= until {
                let members = now.configuration.membership.members;
                return Err(Error::Late { members });
            }
            thread::sleep(LOOK);
        }
    }

    fn take(&mut self, now: &Now, membership: Membership, until: Instant) -> Result<(), Error> {
        let wish = Configuration {
            version: now.configuration.version,
            membership,
            matchmakers: Matchmakers::NONE,
        };
        match self.ask(Some(&wish), until)?.came {
            // A learner that is behind catches up; what else there is, the next look shows.
            Reconfigured::Settled
            | Reconfigured::UnderWay
            | Reconfigured::Stale
            | Reconfigured::Behind
            | Reconfigured::WithoutLeader => Ok(()),
            Reconfigured::Unsound => {
                let members = wish.membership.members;
                Err(Error::Refused { members })
            }
        }
    }

    /// Makes sure that the node at `stranger` is set up as the one at `leader` is.
    ///
    /// # Errors
    /// It is not, or one of them does not answer in time.
    pub fn check_alike(
        &mut self,
        leader: SocketAddr,
        stranger: SocketAddr,
        patience: Duration,
    ) -> Result<(), Error> {
        let mut report = |address| {
            let reports = self.inspector.inspect(&[address], patience, |_| false)?;
            let report = reports.into_iter().flatten().next();
            report.ok_or(Error::Silent { address })
        };
        let (there, here) = (report(leader)?, report(stranger)?);
        let of = |report: &Report, key: &str| match key {
            "groups" => report.groups().into(),
            _ => report.0.get(key).cloned().unwrap_or_default(),
        };
        match ALIKE
            .into_iter()
            .find(|key| of(&there, key) != of(&here, key))
        {
            None => Ok(()),
            Some(key) => Err(Error::Unlike {
                address: stranger,
                key,
                has: of(&here, key),
                wanted: of(&there, key),
            }),
        }
    }

    /// Puts a node that lost its memory back in its former place in every group, in its new life.
    /// False if it was taken out meanwhile.
    ///
    /// # Errors
    /// As for [`Operator::change`].
    pub fn put_back(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        patience: Duration,
    ) -> Result<bool, Error> {
        let mut is_member = false;
        for group in (0..self.groups(Instant::now() + patience)?).map(GroupId) {
            self.inspector.group = group;
            is_member |= self.put_back_in_group(node, incarnation, patience)?;
        }
        self.inspector.group = GroupId(0);
        Ok(is_member)
    }

    fn put_back_in_group(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        patience: Duration,
    ) -> Result<bool, Error> {
        let now = self.look(patience)?;
        let leader = now.configuration.membership.member(now.leader).copied();
        let mut members = now.configuration.membership.members;
        let Some(own) = members.iter_mut().find(|member| member.node == node) else {
            return Ok(false);
        };
        if own.incarnation == incarnation && own.role == MemberRole::Learner {
            // Half of it is done.
            own.role = MemberRole::Voter;
        }
        own.incarnation = incarnation;
        if let Some(leader) = leader {
            self.check_alike(leader.address, own.address, ANSWER)?;
        }
        let wish = Wish {
            members,
            quorums: None,
        };
        self.change_group(&wish, patience).map(|_| true)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use consensus::{Epoch, Incarnation};

    fn member(node: u16, life: u32, role: MemberRole) -> Member {
        Member {
            node: NodeId(node),
            incarnation: Incarnation(life),
            address: ([127, 0, 0, 1], node).into(),
            priority: 0,
            role,
        }
    }

    fn voters(nodes: &[(u16, u32)]) -> Vec<Member> {
        let voters = nodes
            .iter()
            .map(|(node, life)| member(*node, *life, MemberRole::Voter));
        voters.collect()
    }

    fn current(nodes: &[(u16, u32)]) -> Membership {
        Membership {
            epoch: Epoch(1),
            members: voters(nodes),
            quorums: Quorums::majority(nodes.len()).unwrap(),
        }
    }

    /// Goes to the end as a cluster would whose leader hands over to the first voter.
    fn go(wish: &Wish, mut current: Membership, mut leader: u16) -> Vec<String> {
        let mut story = Vec::new();
        loop {
            match wish.next(&current, NodeId(leader)).unwrap() {
                Step::Done => return story,
                Step::Wait => {
                    let voter = current
                        .members
                        .iter()
                        .find(|one| one.role == MemberRole::Voter);
                    leader = voter.unwrap().node.0;
                    story.push(format!("{leader} leads"));
                }
                Step::Change(next) => {
                    let names = next.members.iter().map(|one| {
                        let name = one.role.name().chars().next().unwrap();
                        format!("{}{name}{}", one.node, one.incarnation)
                    });
                    story.push(names.collect::<Vec<_>>().join(" "));
                    current = next;
                }
            }
        }
    }

    #[test]
    fn three_are_replaced_by_three_others_at_once() {
        let wish = Wish {
            members: voters(&[(4, 1), (5, 1), (6, 1)]),
            quorums: None,
        };
        let story = go(&wish, current(&[(1, 1), (2, 1), (3, 1)]), 2);
        assert_eq!(
            story,
            [
                "1v1 2v1 3v1 4l1 5l1 6l1",
                "4v1 5v1 6v1 2l1",
                "4 leads",
                "4v1 5v1 6v1"
            ]
        );
    }

    #[test]
    fn a_node_that_lost_its_memory_comes_back_as_a_learner() {
        let wish = Wish {
            members: voters(&[(1, 1), (2, 1), (3, 9)]),
            quorums: None,
        };
        let story = go(&wish, current(&[(1, 1), (2, 1), (3, 1)]), 2);
        assert_eq!(story, ["1v1 2v1 3l9", "1v1 2v1 3v9"]);
    }

    #[test]
    fn nothing_is_done_twice_and_nothing_unsound() {
        let three = [(1, 1), (2, 1), (3, 1)];
        let mut wish = Wish {
            members: voters(&three),
            quorums: None,
        };
        assert_eq!(wish.next(&current(&three), NodeId(1)), Ok(Step::Done));
        wish.quorums = Some((1, 2));
        assert!(wish.next(&current(&three), NodeId(1)).is_err());
    }
}
