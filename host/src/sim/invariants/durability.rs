//! Durability modes keep what they promise. Under `sync` no Promise and no Accepted leaves before
//! the record that it speaks of is on the disk. Under `async` and `sync` a process comes back with
//! at least what its node once said that it could restore. And whatever anybody applied is applied
//! by all in the end.

use super::Verdict;
use crate::sim::scenario::Scenario;
use consensus::Slot;
use consensus::local::Durability;
use consensus::wire::{Header, Kind};

/// What each node has on its disk, and what it said of it.
pub(super) struct Promised {
    groups: usize,
    durability: Durability,
    /// The highest ballot on the disk of each node and group.
    flushed: Vec<u64>,
    /// The highest ballot of a vote on the disk, by slot.
    votes: Vec<Vec<u64>>,
    /// The slot that each could restore, by its own word.
    restorable: Vec<u64>,
}

impl Promised {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let groups = usize::from(scenario.groups);
        let count = groups * scenario.machines();
        Self {
            groups,
            durability: scenario.durability,
            flushed: vec![0; count],
            votes: vec![Vec::new(); count],
            restorable: vec![0; count],
        }
    }

    /// A new data directory holds nothing.
    pub(super) fn reborn(&mut self, place: usize) {
        let own = place * self.groups..(place + 1) * self.groups;
        self.flushed[own.clone()].fill(0);
        self.restorable[own.clone()].fill(0);
        self.votes[own].fill(Vec::new());
    }

    /// A record is on the disk.
    pub(super) fn flushed(&mut self, place: usize, group: usize, record: &Header) {
        let at = place * self.groups + group;
        if !matches!(record.kind, Kind::Prepare | Kind::Accept) {
            return;
        }
        self.flushed[at] = self.flushed[at].max(record.ballot.0);
        if record.kind == Kind::Accept {
            let slot = record.slot.0 as usize;
            let votes = &mut self.votes[at];
            if votes.len() <= slot {
                votes.resize(slot + 1, 0);
            }
            votes[slot] = votes[slot].max(record.ballot.0);
        }
    }

    /// A packet leaves.
    pub(super) fn sent(&mut self, place: usize, group: usize, header: &Header) -> Verdict {
        let at = place * self.groups + group;
        let is_sync = self.durability == Durability::Sync;
        let node = place + 1;
        match header.kind {
            Kind::Promise if is_sync && self.flushed[at] < header.ballot.0 => Err(format!(
                "group {group}: node {node} promises ballot {} before that is on its disk",
                header.ballot
            )),
            Kind::Accepted if is_sync => {
                let vote = self.votes[at].get(header.slot.0 as usize).copied();
                if vote.unwrap_or(0) >= header.ballot.0 {
                    Ok(())
                } else {
                    Err(format!(
                        "slot {} of group {group}: node {node} accepts ballot {} before that is on \
                         its disk",
                        header.slot, header.ballot
                    ))
                }
            }
            Kind::Progress => {
                self.restorable[at] = self.restorable[at].max(header.watermark);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A process has recovered its state up to these slots.
    pub(super) fn opened(&mut self, place: usize, recovered: &[Slot]) -> Verdict {
        if self.durability == Durability::Volatile {
            return Ok(());
        }
        for (group, slot) in recovered.iter().enumerate() {
            let said = self.restorable[place * self.groups + group];
            if slot.0 < said {
                return Err(format!(
                    "group {group}: node {} said that it could restore slot {said}, and comes back \
                     with {slot}",
                    place + 1
                ));
            }
        }
        Ok(())
    }

    /// The machine's data directory is lost, and with it all that was said of it.
    pub(super) fn lost(&mut self, place: usize) {
        for group in 0..self.groups {
            self.restorable[place * self.groups + group] = 0;
        }
    }
}
