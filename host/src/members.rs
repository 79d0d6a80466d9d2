//! How a wish for other members becomes changes, each of which a leader takes: learners first, then
//! everything else at once.

use crate::inspect::{Change, Inspector, Report};
use consensus::auth::Keys;
use consensus::configuration::{Configuration, Matchmakers};
use consensus::quorum::{Member, MemberRole, Membership, QuorumError, Quorums};
use consensus::replica::Reconfigured;
use consensus::{GroupId, Incarnation, NodeId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
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

/// What becomes of one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// This life of it is a member. With the role of a learner it keeps whatever role it has.
    Comes(Member),
    /// It lost its memory, and this life takes the place and address of the former one.
    Returns {
        /// Which node.
        node: NodeId,
        /// Its new life.
        incarnation: Incarnation,
        /// What it was.
        role: MemberRole,
    },
    /// It takes this role.
    Becomes(NodeId, MemberRole),
    /// It is a member no more.
    Goes(NodeId),
}

/// What is to become of some nodes, whatever that takes. The others are as they are at each moment:
/// somebody else may have a wish for them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wish {
    /// For each node that is concerned.
    pub fates: Vec<Fate>,
    /// Votes for phase 1 and phase 2; by those that there were if nothing is said.
    pub quorums: Option<(usize, usize)>,
    /// What they were before it was begun to fulfil the wish, where that is on record.
    pub former: Option<Sizes>,
}

/// How many votes each phase takes, and of how many.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    acceptors: usize,
    witnesses: usize,
    phase1: usize,
    phase2: usize,
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
    one.is_life(other.node, other.incarnation)
}

/// How many vote, and how many of them are witnesses.
fn count(members: &[Member]) -> (usize, usize) {
    let with = |role: MemberRole| members.iter().filter(|one| one.role == role).count();
    let witnesses = with(MemberRole::Witness);
    (with(MemberRole::Voter) + witnesses, witnesses)
}

impl Sizes {
    /// Those of a membership.
    #[must_use]
    pub fn of(membership: &Membership) -> Self {
        let (acceptors, witnesses) = count(&membership.members);
        Self {
            acceptors,
            witnesses,
            phase1: membership.quorums.phase1(),
            phase2: membership.quorums.phase2(),
        }
    }

    /// The least majorities that meet in a voter.
    fn majorities(acceptors: usize, witnesses: usize) -> (usize, usize) {
        let phase2 = (acceptors / 2 + 1).max(witnesses + 1);
        let meets = (acceptors + witnesses + 1).saturating_sub(phase2);
        (meets.max(acceptors / 2 + 1), phase2)
    }

    /// Quorums for `members` by these: the same of as many acceptors; majorities if these are; else
    /// phase 2 takes as many votes as here, and phase 1 as many as that takes.
    fn take(self, members: &[Member]) -> (usize, usize) {
        let (acceptors, witnesses) = count(members);
        let these = (self.phase1, self.phase2);
        if acceptors == self.acceptors && these.0 + these.1 > acceptors + witnesses {
            return these;
        }
        if these == Self::majorities(self.acceptors, self.witnesses) {
            return Self::majorities(acceptors, witnesses);
        }
        // Of two that meet in a voter, each takes more than there are witnesses.
        let phase2 = self.phase2.max(witnesses + 1).min(acceptors);
        ((acceptors + witnesses + 1).saturating_sub(phase2), phase2)
    }
}

impl Wish {
    /// Without a word on quorums.
    pub const fn new(fates: Vec<Fate>) -> Self {
        Self {
            fates,
            quorums: None,
            former: None,
        }
    }

    /// Who is to be a member, now that these are. `first` is what there was when the wish was made: a
    /// life that neither it nor the wish names is somebody else's.
    fn members(&self, first: &Membership, current: &Membership) -> Result<Vec<Member>, Error> {
        let mut members = current.members.clone();
        for fate in &self.fates {
            match *fate {
                Fate::Comes(new) => match members.iter_mut().find(|one| one.node == new.node) {
                    Some(one) if one.incarnation != new.incarnation => {
                        return Err(Error::OtherLife { node: new.node });
                    }
                    Some(_) if new.role == MemberRole::Learner => {}
                    Some(one) => one.role = new.role,
                    None => members.push(new),
                },
                Fate::Returns {
                    node,
                    incarnation,
                    role,
                } => {
                    let one = members.iter_mut().find(|one| one.node == node);
                    let one = one.ok_or(Error::NoMember { node })?;
                    let is_former = first.members.iter().any(|former| same(former, one));
                    if one.incarnation != incarnation && !is_former {
                        return Err(Error::OtherLife { node });
                    }
                    (one.incarnation, one.role) = (incarnation, role);
                }
                Fate::Becomes(node, role) => {
                    let one = members.iter_mut().find(|one| one.node == node);
                    one.ok_or(Error::NoMember { node })?.role = role;
                }
                Fate::Goes(node) => members.retain(|one| one.node != node),
            }
        }
        Ok(members)
    }

    /// The step from `current`, which `leader` leads, towards the wish, which was made when `first`
    /// was in force.
    ///
    /// # Errors
    /// The quorums need not meet, or a node is not what the wish takes it for.
    pub fn next(
        &self,
        first: &Membership,
        current: &Membership,
        leader: NodeId,
    ) -> Result<Step, Error> {
        let mut wanted = self.members(first, current)?;
        let former = self.former.unwrap_or_else(|| Sizes::of(first));
        let is_there = |wanted: &&Member| current.members.iter().any(|one| same(one, wanted));
        let missing: Vec<&Member> = wanted.iter().filter(|one| !is_there(one)).collect();
        if !missing.is_empty() {
            // The former life of a node goes when the new one comes: a number is a member once.
            let goes = |one: &Member| missing.iter().any(|new| new.node == one.node);
            let stays = current.members.iter().filter(|one| !goes(one));
            let learners = missing.iter().map(|new| Member {
                role: MemberRole::Learner,
                ..**new
            });
            let members = stays.copied().chain(learners).collect();
            return Ok(Step::Change(membership(current, members, former, None)?));
        }
        let leads_on = wanted.iter().any(|one| one.node == leader);
        if let Some(own) = current.member(leader).filter(|_| !leads_on) {
            wanted.push(Member {
                role: MemberRole::Learner,
                ..*own
            });
        }
        let next = membership(current, wanted, former, self.quorums)?;
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
    former: Sizes,
    quorums: Option<(usize, usize)>,
) -> Result<Membership, QuorumError> {
    let (acceptors, _) = count(&members);
    let (phase1, phase2) = match quorums {
        Some(sizes) => sizes,
        // Whatever somebody else has them be, while as many vote.
        None if acceptors == count(&current.members).0 => {
            (current.quorums.phase1(), current.quorums.phase2())
        }
        None => former.take(&members),
    };
    let next = Membership {
        members,
        quorums: Quorums::flexible(acceptors, phase1, phase2)?,
        ..current.clone()
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
    /// A node that is to be changed is none of them.
    #[error("node {node} is no member")]
    NoMember {
        /// Which one.
        node: NodeId,
    },
    /// A node is a member in a life that nobody told of.
    #[error("node {node} is a member already, in another life")]
    OtherLife {
        /// Which one.
        node: NodeId,
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
            Self::NoMember { .. } => Some("see `nearwire member list`"),
            Self::OtherLife { .. } => Some(
                "give a new node a number of its own, or, if this one has lost its memory, use \
                 `nearwire member replace --lost`",
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
        let mut first = None;
        loop {
            let now = self.ask(None, until)?;
            if now.came == Reconfigured::Settled {
                let current = &now.configuration.membership;
                let first = &*first.get_or_insert_with(|| current.clone());
                match wish.next(first, current, now.leader)? {
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

    /// What a node that may have lost its memory was, by what the first group has. None if it was
    /// taken out.
    ///
    /// # Errors
    /// Nobody who leads answers in time.
    pub fn former(&mut self, node: NodeId, patience: Duration) -> Result<Option<Former>, Error> {
        let membership = self.look(patience)?.configuration.membership;
        Ok(membership.member(node).map(|member| Former {
            role: member.role,
            sizes: Sizes::of(&membership),
        }))
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
        former: &Former,
        patience: Duration,
    ) -> Result<bool, Error> {
        let wish = Wish {
            former: Some(former.sizes),
            ..Wish::new(vec![Fate::Returns {
                node,
                incarnation,
                role: former.role,
            }])
        };
        let mut is_member = false;
        for group in (0..self.groups(Instant::now() + patience)?).map(GroupId) {
            self.inspector.group = group;
            let now = self.look(patience)?;
            let membership = now.configuration.membership;
            let Some(own) = membership.member(node) else {
                continue;
            };
            if let Some(leader) = membership.member(now.leader) {
                self.check_alike(leader.address, own.address, ANSWER)?;
            }
            self.change_group(&wish, patience)?;
            is_member = true;
        }
        self.inspector.group = GroupId(0);
        Ok(is_member)
    }
}

/// What a node was in its former life, as it is written down before that is forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Former {
    #[serde(serialize_with = "as_name", deserialize_with = "by_name")]
    role: MemberRole,
    sizes: Sizes,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn as_name<S: Serializer>(role: &MemberRole, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(role.name())
}

fn by_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MemberRole, D::Error> {
    let name = String::deserialize(deserializer)?;
    let role = MemberRole::ALL.into_iter().find(|role| role.name() == name);
    role.ok_or_else(|| serde::de::Error::custom(format!("{name:?} is no role")))
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

    /// Node, role and life of each, and the quorums where they are no majorities.
    fn text(membership: &Membership) -> String {
        let mut members = membership.members.clone();
        members.sort_unstable_by_key(|one| one.node);
        let names = members.iter().map(|one| {
            let name = one.role.name().chars().next().unwrap();
            format!("{}{name}{}", one.node, one.incarnation)
        });
        let names = names.collect::<Vec<_>>().join(" ");
        let quorums = membership.quorums;
        match Quorums::majority(membership.acceptors().count()) == Ok(quorums) {
            true => names,
            false => format!("{names}: {}+{}", quorums.phase1(), quorums.phase2()),
        }
    }

    fn wish(fates: &[Fate]) -> Wish {
        Wish::new(fates.to_vec())
    }

    fn returns(node: u16, life: u32) -> Fate {
        Fate::Returns {
            node: NodeId(node),
            incarnation: Incarnation(life),
            role: MemberRole::Voter,
        }
    }

    /// Goes to the end as a cluster would whose leader hands over to the first voter.
    fn go(wish: &Wish, mut current: Membership, mut leader: u16) -> Vec<String> {
        let mut story = Vec::new();
        let first = current.clone();
        loop {
            match wish.next(&first, &current, NodeId(leader)).unwrap() {
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
                    story.push(text(&next));
                    current = next;
                }
            }
        }
    }

    #[test]
    fn three_are_replaced_by_three_others_at_once() {
        let mut fates: Vec<_> = (1..=3).map(|node| Fate::Goes(NodeId(node))).collect();
        fates.extend(
            voters(&[(4, 1), (5, 1), (6, 1)])
                .into_iter()
                .map(Fate::Comes),
        );
        let story = go(&wish(&fates), current(&[(1, 1), (2, 1), (3, 1)]), 2);
        assert_eq!(
            story,
            [
                "1v1 2v1 3v1 4l1 5l1 6l1",
                "2l1 4v1 5v1 6v1",
                "4 leads",
                "4v1 5v1 6v1"
            ]
        );
    }

    #[test]
    fn a_node_that_lost_its_memory_comes_back_as_a_learner() {
        let three = current(&[(1, 1), (2, 1), (3, 1)]);
        let story = go(&wish(&[returns(3, 9)]), three, 2);
        assert_eq!(story, ["1v1 2v1 3l9", "1v1 2v1 3v9"]);
    }

    #[test]
    fn wishes_of_several_for_different_nodes_are_all_fulfilled() {
        let start = current(&[(1, 1), (2, 1), (3, 1), (4, 1), (5, 1)]);
        let wishes = [
            wish(&[returns(2, 9)]),
            wish(&[returns(3, 9)]),
            wish(&[Fate::Goes(NodeId(5))]),
        ];
        // Each has its next step taken in turn, beginning with any of them.
        for begins in 0..wishes.len() {
            let mut firsts = [const { None }; 3];
            let (mut now, mut story) = (start.clone(), Vec::new());
            let mut quiet = 0;
            for turn in begins..begins + 30 {
                let turn = turn % wishes.len();
                let first: &Membership = firsts[turn].get_or_insert_with(|| now.clone());
                match wishes[turn].next(first, &now, NodeId(1)).unwrap() {
                    Step::Change(next) => {
                        story.push(text(&next));
                        (now, quiet) = (next, 0);
                    }
                    Step::Done => quiet += 1,
                    Step::Wait => panic!("node 1 stays: {story:?}"),
                }
                if quiet == wishes.len() {
                    break;
                }
            }
            assert_eq!(text(&now), "1v1 2v9 3v9 4v1", "{story:?}");
            assert_eq!(story.len(), 5, "{story:?}");
        }
    }

    #[test]
    fn a_life_that_nobody_told_of_is_left_alone() {
        let first = current(&[(1, 1), (2, 1), (3, 1)]);
        let now = current(&[(1, 1), (2, 1), (3, 5)]);
        let stranger = member(3, 9, MemberRole::Voter);
        for fate in [returns(3, 9), Fate::Comes(stranger)] {
            let refused = wish(&[fate]).next(&first, &now, NodeId(1));
            assert!(matches!(refused, Err(Error::OtherLife { node: NodeId(3) })));
        }
        let gone = current(&[(1, 1), (2, 1)]);
        for fate in [returns(3, 9), Fate::Becomes(NodeId(3), MemberRole::Voter)] {
            let refused = wish(&[fate]).next(&first, &gone, NodeId(1));
            assert!(matches!(refused, Err(Error::NoMember { node: NodeId(3) })));
        }
    }

    #[test]
    fn a_node_comes_back_in_its_role_and_to_the_quorums_that_there_were() {
        use MemberRole::{Learner, Voter, Witness};
        for (roles, quorums, returns, story) in [
            (
                &[Voter; 5][..],
                (4, 2),
                5,
                ["1v1 2v1 3v1 4v1 5l9: 3+2", "1v1 2v1 3v1 4v1 5v9: 4+2"],
            ),
            (
                &[Voter; 5][..],
                (2, 4),
                5,
                ["1v1 2v1 3v1 4v1 5l9: 1+4", "1v1 2v1 3v1 4v1 5v9: 2+4"],
            ),
            (
                &[Voter, Voter, Voter, Witness],
                (3, 3),
                3,
                ["1v1 2v1 3l9 4w1: 3+2", "1v1 2v1 3v9 4w1"],
            ),
            (
                &[Voter, Voter, Voter, Witness],
                (3, 3),
                4,
                ["1v1 2v1 3v1 4l9", "1v1 2v1 3v1 4w9"],
            ),
            (
                &[Voter, Voter, Witness],
                (2, 3),
                2,
                ["1v1 2l9 3w1", "1v1 2v9 3w1: 2+3"],
            ),
            (
                &[Voter, Voter, Witness],
                (3, 2),
                2,
                ["1v1 2l9 3w1", "1v1 2v9 3w1: 3+2"],
            ),
            (
                &[Voter, Voter, Voter, Learner],
                (2, 2),
                4,
                ["1v1 2v1 3v1 4l9", ""],
            ),
        ] {
            let roles = (1..).zip(roles);
            let members = roles.map(|(node, role)| member(node, 1, *role));
            let mut now = current(&[(1, 1)]);
            now.members = members.collect();
            let acceptors = now.acceptors().count();
            now.quorums = Quorums::flexible(acceptors, quorums.0, quorums.1).unwrap();
            let former = Former {
                role: now.member(NodeId(returns)).unwrap().role,
                sizes: Sizes::of(&now),
            };
            let fates = vec![Fate::Returns {
                node: NodeId(returns),
                incarnation: Incarnation(9),
                role: former.role,
            }];
            let mut expected = story.to_vec();
            expected.retain(|step| !step.is_empty());
            assert_eq!(go(&Wish::new(fates.clone()), now.clone(), 1), expected);
            // Interrupted after the first step, with what there was on record.
            let halfway = Wish::new(fates.clone()).next(&now, &now, NodeId(1));
            let Ok(Step::Change(halfway)) = halfway else {
                panic!("{halfway:?}");
            };
            let text = toml::to_string(&former).unwrap();
            let read: Former = toml::from_str(&text).unwrap();
            assert_eq!(read, former);
            let again = Wish {
                former: Some(read.sizes),
                ..Wish::new(fates)
            };
            assert_eq!(go(&again, halfway, 1), expected[1..]);
        }
    }

    #[test]
    fn nothing_is_done_twice_and_nothing_unsound() {
        let three = current(&[(1, 1), (2, 1), (3, 1)]);
        let mut wish = wish(&[Fate::Becomes(NodeId(3), MemberRole::Voter)]);
        let next = |wish: &Wish| wish.next(&three, &three, NodeId(1));
        assert!(matches!(next(&wish), Ok(Step::Done)));
        wish.quorums = Some((1, 2));
        assert!(next(&wish).is_err());
    }
}
