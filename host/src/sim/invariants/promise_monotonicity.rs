//! Promises never go back: an acceptor accepts a ballot only if it has answered no Prepare of a
//! higher one ("Paxos Made Simple", P1a), in this life of its memory or, by what its durability
//! mode covers, in an earlier one.

use super::Verdict;
use super::chronicle::{Chronicle, Record, Vote};
use crate::sim::scenario::Scenario;
use consensus::Ballot;
use consensus::wire::Header;

/// What each acceptor has promised, by node and group.
pub(super) struct Promises {
    groups: usize,
    /// In memory, before the present event.
    held: Vec<u64>,
    /// To others: this must survive whatever the mode covers.
    given: Vec<u64>,
}

impl Promises {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let groups = usize::from(scenario.groups);
        Self {
            groups,
            held: vec![0; groups * scenario.machines()],
            given: vec![0; groups * scenario.machines()],
        }
    }

    /// Another life of its memory has promised nothing.
    pub(super) fn reborn(&mut self, place: usize) {
        let own = place * self.groups..(place + 1) * self.groups;
        self.held[own.clone()].fill(0);
        self.given[own].fill(0);
    }

    /// A group's record was written.
    pub(super) fn raised(
        &self,
        place: usize,
        group: usize,
        before: Record,
        chronicle: &Chronicle,
    ) -> Verdict {
        let now = chronicle.shadows[place].groups[group];
        for (word, before, now) in [
            ("promised", before.promised, now.promised),
            ("highest", before.highest, now.highest),
            ("trim", before.trim, now.trim),
        ] {
            if now < before {
                return Err(format!(
                    "group {group} of node {}: {word} went back from {before:#x} to {now:#x}",
                    place + 1
                ));
            }
        }
        Ok(())
    }

    /// A vote was stored.
    pub(super) fn voted(&self, place: usize, group: usize, vote: &Vote) -> Verdict {
        let held = self.held[place * self.groups + group];
        if vote.ballot < held {
            return Err(format!(
                "slot {} of group {group}: node {} voted in ballot {} after it had promised {}",
                vote.slot,
                place + 1,
                Ballot(vote.ballot),
                Ballot(held)
            ));
        }
        Ok(())
    }

    /// The event is over.
    pub(super) fn note(&mut self, place: usize, chronicle: &Chronicle) {
        for (group, record) in chronicle.shadows[place].groups.iter().enumerate() {
            self.held[place * self.groups + group] = record.promised;
        }
    }

    /// A Promise or an Accepted leaves.
    pub(super) fn sent(&mut self, place: usize, group: usize, header: &Header) -> Verdict {
        let given = &mut self.given[place * self.groups + group];
        *given = header.ballot.0.max(*given);
        Ok(())
    }

    /// A leader proposes: its own acceptor's promise may be one of the quorum's.
    pub(super) fn proposed(&mut self, group: usize, header: &Header, chronicle: &mut Chronicle) {
        let ballot = chronicle.groups[group].ballot_mut(header.ballot.0);
        let place = usize::from(header.ballot.node().0).wrapping_sub(1);
        if ballot.promised >> place & 1 == 1 {
            let given = &mut self.given[place * self.groups + group];
            *given = header.ballot.0.max(*given);
        }
    }

    /// A process has opened what an earlier one left.
    pub(super) fn opened(&mut self, place: usize, counts: bool, chronicle: &Chronicle) -> Verdict {
        self.note(place, chronicle);
        if !counts {
            // Another life of its memory has promised nothing, and is not counted.
            return Ok(());
        }
        for (group, record) in chronicle.shadows[place].groups.iter().enumerate() {
            let given = self.given[place * self.groups + group];
            if record.promised < given {
                return Err(format!(
                    "group {group} of node {}: it had promised {}, and comes back with {}",
                    place + 1,
                    Ballot(given),
                    Ballot(record.promised)
                ));
            }
        }
        Ok(())
    }
}
