//! Phase-1 and phase-2 quorums of one epoch intersect (Howard, Malkhi, Spiegelman 2016, "Flexible
//! Paxos", section 3): by their sizes, and each set that was in fact used with each other.

use super::Verdict;
use super::chronicle::{BallotFacts, Chronicle, GroupFacts};
use consensus::Ballot;
use consensus::wire::Header;

/// The cluster counts by these sizes.
pub(super) fn configured(members: usize, sizes: (usize, usize)) -> Verdict {
    let (phase1, phase2) = sizes;
    if phase1 + phase2 > members {
        Ok(())
    } else {
        Err(format!(
            "quorums of {phase1} and {phase2} among {members} acceptors need not intersect"
        ))
    }
}

/// A ballot proposes in a slot for the first time: a quorum has promised it, which met every quorum
/// that had chosen there in a lower ballot. Or it goes on from an earlier ballot of the same node,
/// and nobody proposes in between.
pub(super) fn proposed(chronicle: &mut Chronicle, group: usize, header: &Header) -> Verdict {
    let facts = &mut chronicle.groups[group];
    let own = header.ballot.0;
    let ballot = *facts.ballot_mut(own);
    let Some(counting) = ballot.counting else {
        return Err(format!(
            "group {group}: ballot {} proposes, and no matchmaker was asked",
            header.ballot
        ));
    };
    if !ballot.proposed {
        facts.ballot_mut(own).proposed = true;
        let over = |one: &&BallotFacts| {
            let is_other = Ballot(own).node() != Ballot(one.ballot).node();
            is_other
                && one
                    .continues
                    .is_some_and(|from| (from..one.ballot).contains(&own))
        };
        if let Some(over) = facts.ballots.iter().find(over) {
            return Err(format!(
                "group {group}: ballot {} proposes, and ballot {} has passed it over",
                header.ballot,
                Ballot(over.ballot)
            ));
        }
        // The leader that makes a configuration goes on in the ballot that it draws for it.
        if ballot.makes {
            go_on(facts, group, header.ballot)?;
        } else if !counting.has_phase1(ballot.promised) {
            return Err(format!(
                "group {group}: ballot {} proposes after {} promises, phase 1 takes {}",
                header.ballot,
                ballot.promised.count_ones(),
                counting.phase1
            ));
        }
    }
    let ballot = *facts.ballot_mut(own);
    let promised = ballot.promised | ballot.met;
    let Some(slot) = facts.slot(header.slot.0) else {
        return Ok(());
    };
    for vote in &slot.votes {
        let counting = facts.counting(vote.ballot);
        let is_quorum = counting.is_some_and(|counting| {
            counting.version >= facts.garbage && counting.has_phase2(vote.voters)
        });
        // What a leader chose itself it knows.
        let limit = ballot.continues.unwrap_or(own);
        if is_quorum && vote.ballot < limit && vote.voters & promised == 0 {
            return Err(format!(
                "slot {} of group {group}: nobody who promised ballot {} is among those who chose \
                 in ballot {}",
                header.slot,
                header.ballot,
                Ballot(vote.ballot)
            ));
        }
    }
    Ok(())
}

/// The ballot takes no promises of its own: what does it go on from?
fn go_on(facts: &mut GroupFacts, group: usize, ballot: Ballot) -> Verdict {
    let began = |one: &&BallotFacts| {
        let is_own = one.ballot < ballot.0 && Ballot(one.ballot).node() == ballot.node();
        let counting = one
            .counting
            .filter(|counting| counting.has_phase1(one.promised));
        is_own && (counting.is_some() || one.continues.is_some())
    };
    let last = facts
        .ballots
        .iter()
        .filter(began)
        .max_by_key(|one| one.ballot);
    let Some(last) = last.copied() else {
        return Err(format!(
            "group {group}: ballot {ballot} proposes without a phase 1, and goes on from no ballot \
             of its node"
        ));
    };
    let first = last.continues.unwrap_or(last.ballot);
    let between = |one: &&BallotFacts| {
        one.proposed
            && one.ballot > first
            && one.ballot < ballot.0
            && Ballot(one.ballot).node() != ballot.node()
    };
    if let Some(between) = facts.ballots.iter().find(between) {
        return Err(format!(
            "group {group}: ballot {ballot} proposes without a phase 1, and ballot {} has proposed \
             since ballot {} of its node",
            Ballot(between.ballot),
            Ballot(first)
        ));
    }
    let facts = facts.ballot_mut(ballot.0);
    facts.continues = Some(first);
    facts.met = last.met | last.promised;
    Ok(())
}
