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
use crate::wire::{Flags, Header, Kind, Parsed, parse};
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
    /// What was decided and is not all applied yet, by ballot: a lower ballot may have decided more
    /// than a higher one that this node led or heard of.
    decided: Vec<Decided>,
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
            decided: Vec::new(),
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
                let known = self
                    .decided
                    .iter_mut()
                    .find(|one| one.ballot == told.ballot);
                match known {
                    Some(one) => one.upto = one.upto.max(told.upto),
                    None => self.decided.push(told),
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
        self.apply_decided();
        Ok(())
    }

    fn apply_decided(&mut self) {
        loop {
            let slot = self.applied.slot().next();
            self.decided.retain(|one| one.upto >= slot);
            let is_decided = |ballot: Ballot| {
                self.decided.iter().any(|one| {
                    (one.from..=one.upto).contains(&slot)
                        && (ballot >= one.ballot || mutated(Mutation::LowerVoteReplayed))
                })
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
        let mut request = Header {
            incarnation: crate::Incarnation::ANY,
            ..*header
        };
        if header.kind == Kind::Decide {
            // The lease ran out before the next Prepare was journalled, or still runs: the acceptor
            // refuses everybody at first for that.
            request.flags = Flags::default();
        }
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::region::{self, Birth, Layout, Region};
    use crate::state_machine::testing::Diary;
    use crate::sync::AtomicU64;
    use crate::wire::HEADER_BYTES;
    use crate::{Epoch, GroupId, NodeId};

    struct Replay {
        region: Region<Vec<AtomicU64>>,
        recovery: Recovery<Diary>,
    }

    fn replay() -> Replay {
        let layout = Layout::new(1, 4, 64).expect("valid layout");
        let birth = Birth {
            cluster: 1,
            node: NodeId(9),
            nonce: 5,
            boot: 0,
        };
        let words: Vec<_> = (0..layout.words()).map(|_| AtomicU64::new(0)).collect();
        let acceptor = Acceptor {
            node: NodeId(9),
            incarnation: birth.incarnation(),
            layout,
        };
        Replay {
            region: Region::create(words, layout, birth, Epoch(1), 0).expect("blank"),
            recovery: Recovery::new(acceptor, Applied::new(Diary::default())),
        }
    }

    impl Replay {
        fn record(&mut self, kind: Kind, ballot: Ballot, slot: u64, more: Header, value: &[u8]) {
            let header = Header {
                ballot,
                slot: Slot(slot),
                epoch: Epoch(1),
                length: value.len() as u16,
                vote_ballot: more.vote_ballot,
                watermark: more.watermark,
                ..Header::new(kind, GroupId(0), ballot.node())
            };
            let mut record = vec![0; HEADER_BYTES];
            record.copy_from_slice(&header.to_bytes());
            record.extend_from_slice(value);
            self.recovery
                .record(Some(&self.region), 0, &record)
                .expect("a packet");
        }

        fn accept(&mut self, ballot: Ballot, slot: u64, value: &[u8]) {
            let more = Header::new(Kind::Accept, GroupId(0), NodeId(0));
            self.record(Kind::Accept, ballot, slot, more, value);
        }

        fn decide(&mut self, ballot: Ballot, from: u64, upto: u64, trim: u64) {
            let more = Header {
                vote_ballot: Ballot(from),
                watermark: trim,
                ..Header::new(Kind::Decide, GroupId(0), NodeId(0))
            };
            self.record(Kind::Decide, ballot, upto, more, &[]);
        }
    }

    fn ballot(round: u64) -> Ballot {
        Ballot::new(round, NodeId(1))
    }

    #[test]
    fn a_vote_below_the_decided_ballot_is_not_applied() {
        let mut replay = replay();
        replay.accept(ballot(1), 1, b"");
        replay.decide(ballot(2), 1, 1, 1);
        assert_eq!(replay.recovery.applied.slot(), Slot::NONE);
        replay.accept(ballot(2), 1, b"");
        assert_eq!(replay.recovery.applied.slot(), Slot(1));
    }

    #[test]
    fn what_a_lower_ballot_decided_further_on_is_applied_too() {
        let mut replay = replay();
        replay.accept(ballot(1), 3, b"");
        replay.decide(ballot(1), 3, 3, 1);
        replay.accept(ballot(2), 1, b"");
        replay.accept(ballot(2), 2, b"");
        replay.decide(ballot(2), 1, 2, 1);
        assert_eq!(replay.recovery.applied.slot(), Slot(3));
    }

    #[test]
    fn a_trim_is_taken_whatever_was_promised_since() {
        let mut replay = replay();
        let more = Header::new(Kind::Prepare, GroupId(0), NodeId(0));
        replay.record(Kind::Prepare, ballot(3), 0, more, &[]);
        replay.decide(ballot(2), 1, 4, 4);
        let view = region::view(&replay.region, GroupId(0)).expect("unlocked");
        assert_eq!((view.trim, view.promised), (Slot(4), ballot(3)));
    }
}
