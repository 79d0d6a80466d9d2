//! Foreign incarnations are never counted: only acceptors whose memory is the one with which the
//! cluster formed make a quorum. A ballot proposes after a phase-1 quorum of them has promised, and
//! decides after a phase-2 quorum of them has voted.

use super::Verdict;
use super::chronicle::Chronicle;
use consensus::wire::Header;

/// A leader proposes: who has promised?
pub(super) fn proposed(chronicle: &mut Chronicle, group: usize, header: &Header) -> Verdict {
    let ballot = chronicle.groups[group].ballot_mut(header.ballot.0);
    let promised = ballot.promised.count_ones() as usize;
    let foreign = ballot.foreign_promises.count_ones() as usize;
    if let Some(counting) = ballot.counting
        && ballot.continues.is_none()
        && !counting.has_phase1(ballot.promised)
        && foreign > 0
    {
        return Err(format!(
            "group {group}: ballot {} proposes after {promised} promises and {foreign} of other \
             lives of memory; phase 1 takes {}",
            header.ballot, counting.phase1
        ));
    }
    Ok(())
}

/// A leader says that slots are decided: who has voted?
pub(super) fn decided(chronicle: &Chronicle, group: usize, header: &Header, first: u64) -> Verdict {
    let Some(counting) = chronicle.groups[group].counting(header.ballot.0) else {
        return Ok(());
    };
    for slot in first..=header.slot.0 {
        let Some(facts) = chronicle.groups[group].slot(slot) else {
            continue;
        };
        let votes = facts
            .votes
            .iter()
            .filter(|vote| vote.ballot == header.ballot.0);
        for vote in votes {
            let own = vote.voters.count_ones() as usize;
            let foreign = vote.foreign_voters.count_ones() as usize;
            if !counting.has_phase2(vote.voters) && foreign > 0 {
                return Err(format!(
                    "slot {slot} of group {group}: ballot {} decides with {own} votes and {foreign} \
                     of other lives of memory; phase 2 takes {}",
                    header.ballot, counting.phase2
                ));
            }
        }
    }
    Ok(())
}
