//! How a wish for other members becomes changes, each of which a leader takes: learners first, then
//! everything else at once.

use consensus::NodeId;
use consensus::quorum::{Member, MemberRole, Membership, QuorumError, Quorums};

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
