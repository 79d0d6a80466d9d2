//! Rebuilds a region and a state from a journal.
//!
//! The journal holds the packets that changed the region, in order: stepping a blank region with
//! them makes it what it was. What the packets show to be chosen is applied on the way, so that the
//! state reaches as far as this node could know by itself.

use crate::acceptor::{Acceptor, Step};
use crate::applied::Applied;
use crate::memory::{Buffers, Memory, raise};
use crate::region::{Decided, group};
use crate::simulation::{Mutation, mutated};
use crate::state_machine::StateMachine;
use crate::wire::{Header, Kind, Parsed, parse};
use crate::{Ballot, Slot};
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

/// A record that no nearwire journal of this version holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("replay journal: a record of {bytes} bytes is not a packet of this version")]
pub struct BadRecord {
    /// Its length.
    pub bytes: usize,
}

/// A replay under way, for one group.
#[derive(Debug)]
pub struct Recovery<S> {
    acceptor: Acceptor,
    applied: Applied<S>,
    votes: BTreeMap<Slot, (Ballot, Vec<u8>)>,
    /// Values known to be chosen, for slots that are not next yet.
    learned: BTreeMap<Slot, (Ballot, Vec<u8>)>,
    /// The newest decided record.
    decided: Decided,
    highest_round: u64,
    scratch: Vec<u8>,
    records: u64,
}

impl<S: StateMachine> Recovery<S> {
    /// Begins with the state of the newest snapshot.
    pub fn new(acceptor: Acceptor, applied: Applied<S>) -> Self {
        let scratch = vec![0; acceptor.layout.value_bytes()];
        Self {
            acceptor,
            applied,
            votes: BTreeMap::new(),
            learned: BTreeMap::new(),
            decided: Decided::default(),
            highest_round: 0,
            scratch,
            records: 0,
        }
    }

    /// Takes the next record. `memory` is the region that is being rebuilt, or `None` if the
    /// region itself survived and only the state is restored.
    ///
    /// # Errors
    /// The record is no packet.
    pub fn record<M: Memory>(
        &mut self,
        memory: Option<&M>,
        now_ns: u64,
        record: &[u8],
    ) -> Result<(), BadRecord> {
        let Parsed::Ours(header, value) = parse(record, self.acceptor.layout.value_bytes()) else {
            return Err(BadRecord {
                bytes: record.len(),
            });
        };
        self.records += 1;
        self.highest_round = self.highest_round.max(header.ballot.round());
        if let Some(memory) = memory {
            self.step(memory, now_ns, &header, value);
        }
        match header.kind {
            Kind::Accept if header.slot > self.applied.slot() => {
                let newer = self
                    .votes
                    .get(&header.slot)
                    .is_none_or(|(b, _)| *b < header.ballot);
                if newer {
                    self.votes
                        .insert(header.slot, (header.ballot, Vec::from(value)));
                }
            }
            Kind::Decide => {
                let told = Decided {
                    ballot: header.ballot,
                    from: Slot(header.vote_ballot.0),
                    upto: header.slot,
                };
                // What a lower ballot decided stays true, but the newest record is the one that
                // later votes are held against.
                self.apply_decided(told);
                if told.ballot > self.decided.ballot {
                    self.decided = told;
                } else if told.ballot == self.decided.ballot {
                    self.decided.upto = self.decided.upto.max(told.upto);
                }
            }
            // A leader learns past slots whose Decide is still to come.
            Kind::Learn if header.slot > self.applied.slot() => {
                self.learned
                    .insert(header.slot, (header.vote_ballot, Vec::from(value)));
            }
            _ => {}
        }
        // A Decide may be older than the vote or the lesson that it waited for.
        self.apply_decided(self.decided);
        Ok(())
    }

    fn apply_decided(&mut self, decided: Decided) {
        loop {
            let slot = self.applied.slot().next();
            let is_decided = |ballot: Ballot| {
                (decided.from..=decided.upto).contains(&slot)
                    && (ballot >= decided.ballot || mutated(Mutation::LowerVoteReplayed))
            };
            let voted = self.votes.get(&slot).map(|(ballot, _)| *ballot);
            let known = match self.learned.remove(&slot) {
                None if voted.is_some_and(is_decided) => self.votes.remove(&slot),
                learned => learned,
            };
            let Some((ballot, value)) = known else {
                return;
            };
            self.applied.apply(ballot, value, |_, _| {});
        }
    }

    fn step<M: Memory>(&mut self, memory: &M, now_ns: u64, header: &Header, value: &[u8]) {
        let request = Header {
            incarnation: crate::Incarnation::ANY,
            ..*header
        };
        let mut payload = Buffers {
            request: value,
            reply: &mut self.scratch,
        };
        let step = self.acceptor.step(memory, now_ns, &request, &mut payload);
        // A trim stays true whatever was promised since: a checkpoint's Decide may be of a ballot
        // below the promise.
        if header.kind == Kind::Decide
            && !mutated(Mutation::TrimNotReplayed)
            && let Some(at) = memory.group(header.group)
        {
            let _ = raise(memory, at, group::TRIM, header.watermark);
        }
        // A journal that was cut may begin after the Decide that moved the window: the vote was
        // stored, so the trim had come so far.
        if header.kind == Kind::Accept
            && let Step::Reply(
                Header {
                    kind: Kind::Outside,
                    ..
                },
                _,
            ) = step
            && let Some(at) = memory.group(header.group)
        {
            let window = memory.load(at, group::WINDOW);
            let trim = header
                .slot
                .0
                .saturating_sub(window.saturating_sub(1))
                .max(1);
            if raise(memory, at, group::TRIM, trim).is_some() {
                self.acceptor.step(memory, now_ns, &request, &mut payload);
            }
        }
    }

    /// The state, the highest round seen, and how many records were replayed.
    pub fn finish(self) -> (Applied<S>, u64, u64) {
        (self.applied, self.highest_round, self.records)
    }
}
