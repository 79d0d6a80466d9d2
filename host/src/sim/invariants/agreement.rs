//! Agreement: at most one value is chosen in a slot (Lamport 1998, "The Part-Time Parliament",
//! consistency; "Paxos Made Simple", section 2.1).
//!
//! A value is chosen when a phase-2 quorum has voted for it in one ballot. Whatever a leader calls
//! decided must have been chosen in its ballot, and whatever is proposed above a chosen ballot must be the chosen
//! value (P2b).

use super::Verdict;
use super::chronicle::{Chronicle, Vote, Voted};
use consensus::Ballot;
use consensus::wire::Header;

/// A vote was cast.
pub(super) fn cast(chronicle: &mut Chronicle, place: usize, group: usize, vote: &Vote) -> Verdict {
    let facts = &mut chronicle.groups[group];
    // A learner's vote, or one of a life that the ballot's configuration does not name, is none.
    let counting = facts.counting(vote.ballot);
    let Some(counting) =
        counting.filter(|_| facts.counts(vote.ballot, place, chronicle.pinned[place]))
    else {
        return Ok(());
    };
    let slot = facts.slot_mut(vote.slot);
    let same = |one: &Voted| (one.ballot, one.digest) == (vote.ballot, vote.digest);
    let at = match slot.votes.iter().position(same) {
        Some(at) => at,
        None => {
            slot.votes.push(Voted {
                ballot: vote.ballot,
                digest: vote.digest,
                voters: 0,
                foreign_voters: 0,
            });
            slot.votes.len() - 1
        }
    };
    let votes = &mut slot.votes[at];
    votes.voters |= 1 << place;
    if !counting.has_phase2(votes.voters) {
        return Ok(());
    }
    match slot.chosen {
        None => {
            slot.chosen = Some((vote.ballot, vote.digest));
            facts.chosen += 1;
            Ok(())
        }
        Some((_, chosen)) if chosen == vote.digest => Ok(()),
        Some((ballot, _)) => Err(format!(
            "slot {} of group {group}: one value was chosen in ballot {}, another in ballot {}",
            vote.slot,
            Ballot(ballot),
            Ballot(vote.ballot)
        )),
    }
}

/// A leader proposes.
pub(super) fn proposed(
    chronicle: &Chronicle,
    group: usize,
    header: &Header,
    vote: &Vote,
) -> Verdict {
    let chosen = chronicle.groups[group]
        .slot(header.slot.0)
        .and_then(|slot| slot.chosen);
    match chosen {
        Some((ballot, chosen)) if header.ballot.0 > ballot && vote.digest != chosen => {
            Err(format!(
                "slot {} of group {group}: ballot {} proposes another value than the one chosen in \
                 ballot {}",
                header.slot.0,
                header.ballot,
                Ballot(ballot)
            ))
        }
        _ => Ok(()),
    }
}

/// A leader says that slots are decided. Returns the first of them that it had not yet announced.
pub(super) fn decided(chronicle: &mut Chronicle, group: usize, header: &Header) -> (u64, Verdict) {
    let facts = &mut chronicle.groups[group];
    let counting = facts.counting(header.ballot.0);
    let ballot = facts.ballot_mut(header.ballot.0);
    let first = header.vote_ballot.0.max(ballot.announced + 1);
    let is_first = !std::mem::replace(&mut ballot.led, true);
    ballot.announced = ballot.announced.max(header.slot.0);
    ballot.trim = ballot.trim.max(header.watermark);
    if is_first {
        facts.note_leader(header.ballot.node());
    }
    for slot in first..=header.slot.0 {
        let known = facts.slot(slot);
        if known.is_none_or(|slot| !slot.is_chosen_in(header.ballot.0, counting)) {
            let what = format!(
                "slot {slot} of group {group}: ballot {} says that it is decided, but no quorum has \
                 voted for it in that ballot",
                header.ballot
            );
            return (first, Err(what));
        }
    }
    (first, Ok(()))
}
