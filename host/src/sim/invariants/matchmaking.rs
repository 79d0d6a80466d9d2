//! Matchmaking (Whittaker et al. 2021, "Matchmaker Paxos", section 3): a matchmaker matches ballots in
//! their order and forgets no configuration that is not garbage; and a configuration is garbage only
//! when everything that it chose is safe without it.

use super::Verdict;
use super::chronicle::Chronicle;
use consensus::configuration::Configuration;
use consensus::wire::Header;
use consensus::{Ballot, Incarnation};
use std::collections::{BTreeMap, BTreeSet};

/// What each matchmaker has said, by its place, its life and the group.
#[derive(Default)]
pub(super) struct Matchmakers(BTreeMap<(usize, Incarnation, usize), Said>);

#[derive(Default)]
struct Said {
    highest: u64,
    /// Versions of the configurations that it has written down.
    known: BTreeSet<u64>,
}

impl Matchmakers {
    /// A matchmaker says that it has written a ballot's configuration down, and which there are.
    pub(super) fn matched(
        &mut self,
        place: usize,
        group: usize,
        header: &Header,
        value: &[u8],
    ) -> Verdict {
        let said = self
            .0
            .entry((place, header.incarnation, group))
            .or_default();
        let node = place + 1;
        let ballot = header.ballot;
        if ballot.0 < said.highest {
            return Err(format!(
                "group {group}: node {node} matches ballot {ballot} after {}",
                Ballot(said.highest)
            ));
        }
        let told = Configuration::read_all(value).unwrap_or_default();
        let told: BTreeSet<u64> = told.iter().map(|one| one.version.0).collect();
        let forgotten = said.known.difference(&told);
        let forgotten = forgotten
            .copied()
            .find(|version| *version >= header.watermark);
        said.highest = ballot.0;
        said.known = told;
        match forgotten {
            None => Ok(()),
            Some(version) => Err(format!(
                "group {group}: node {node} has matched version {}, and tells ballot {ballot} \
                 nothing of it",
                Ballot(version)
            )),
        }
    }
}

/// A leader says that the configurations below a version are garbage.
pub(super) fn garbage(chronicle: &Chronicle, group: usize, header: &Header) -> Verdict {
    let facts = &chronicle.groups[group];
    let version = header.watermark;
    let Some(counting) = facts.counting(header.ballot.0) else {
        return Err(format!(
            "group {group}: ballot {} was not matched, and calls configurations garbage",
            header.ballot
        ));
    };
    for number in 1..facts.last_slot() {
        let Some(slot) = facts.slot(number) else {
            continue;
        };
        let chosen_by = |is_new: bool| {
            slot.votes.iter().any(|vote| {
                let counting = facts.counting(vote.ballot);
                counting.is_some_and(|counting| {
                    (counting.version >= version) == is_new && counting.has_phase2(vote.voters)
                })
            })
        };
        if !chosen_by(false) || chosen_by(true) {
            continue;
        }
        // A life that is over promises nothing any more, whatever it knew.
        let is_over = |place: usize| {
            let life = chronicle.pinned[place];
            !chronicle.counts[place] || !facts.counts(header.ballot.0, place, life)
        };
        let trimmed = (0..chronicle.shadows.len())
            .filter(|place| {
                is_over(*place) || chronicle.shadows[*place].groups[group].trim > number
            })
            .fold(0, |bits, place| bits | 1 << place);
        if !counting.has_phase2(trimmed) {
            return Err(format!(
                "slot {number} of group {group}: chosen by a configuration below version {} only, \
                 which ballot {} calls garbage, and no quorum of the newer one knows that it is \
                 decided",
                Ballot(version),
                header.ballot
            ));
        }
    }
    Ok(())
}
