//! Phase-1 and phase-2 quorums of one epoch intersect (Howard, Malkhi, Spiegelman 2016, "Flexible
//! Paxos", section 3): by their sizes, and each set that was in fact used with each other.

use super::Verdict;
use super::chronicle::Chronicle;
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
/// that had chosen there in a lower ballot.
pub(super) fn proposed(chronicle: &mut Chronicle, group: usize, header: &Header) -> Verdict {
    let facts = &mut chronicle.groups[group];
    let promised = facts.ballot_mut(header.ballot.0).promised;
    let (phase1, quorum) = chronicle.quorums;
    if (promised.count_ones() as usize) < phase1 {
        return Err(format!(
            "group {group}: ballot {} proposes after {} promises, phase 1 takes {phase1}",
            header.ballot,
            promised.count_ones()
        ));
    }
    let Some(slot) = facts.slot(header.slot.0) else {
        return Ok(());
    };
    for vote in &slot.votes {
        let is_quorum = vote.voters.count_ones() as usize >= quorum;
        if is_quorum && vote.ballot < header.ballot.0 && vote.voters & promised == 0 {
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
