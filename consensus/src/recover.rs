//! Rebuilds a region and a state from a journal.
//!
//! The journal holds the packets that changed the region, in order: stepping a blank region with
//! them makes it what it was. What the packets show to be chosen is applied on the way, so that the
//! state reaches as far as this node could know by itself.

use crate::acceptor::{Acceptor, Step};
use crate::applied::Applied;
use crate::memory::{Buffers, Memory, raise};
use crate::region::group;
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

/// What the journal says of a slot that is not applied yet.
#[derive(Debug)]
struct Recorded {
    ballot: Ballot,
    value: Vec<u8>,
    /// Another replica said so: the value is the slot's, whatever is voted.
    chosen: bool,
}

/// A replay under way, for one group.
#[derive(Debug)]
pub struct Recovery<S> {
    acceptor: Acceptor,
    applied: Applied<S>,
    recorded: BTreeMap<Slot, Recorded>,
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
            recorded: BTreeMap::new(),
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
            Kind::Accept => self.note(&header, header.ballot, value, false),
            Kind::Decide => {
                let from = Slot(header.vote_ballot.0);
                self.apply(|slot, ballot| {
                    slot >= from && slot <= header.slot && ballot >= header.ballot
                });
            }
            // The slots before it may be recorded behind it: a Decide waits for company.
            Kind::Learn => self.note(&header, header.vote_ballot, value, true),
            _ => {}
        }
        self.apply(|_, _| false);
        Ok(())
    }

    fn note(&mut self, header: &Header, ballot: Ballot, value: &[u8], chosen: bool) {
        let known = self.recorded.get(&header.slot);
        let better = known.is_none_or(|known| !known.chosen && (chosen || known.ballot < ballot));
        if header.slot > self.applied.slot() && better {
            let value = Vec::from(value);
            self.recorded.insert(
                header.slot,
                Recorded {
                    ballot,
                    value,
                    chosen,
                },
            );
        }
    }

    /// Applies the next slots as long as their value is known to be chosen, or `decided` says so
    /// of the slot and the ballot of its vote.
    fn apply(&mut self, decided: impl Fn(Slot, Ballot) -> bool) {
        while let Some(first) = self.recorded.first_entry()
            && *first.key() == self.applied.slot().next()
            && (first.get().chosen || decided(*first.key(), first.get().ballot))
        {
            let Recorded { ballot, value, .. } = first.remove();
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
    use crate::local::{Asker, Durability, Journal, Local};
    use crate::region::{Birth, Layout, Region};
    use crate::state_machine::{Frozen, RestoreError};
    use crate::sync::AtomicU64;
    use crate::{Epoch, GroupId, NodeId};
    use alloc::boxed::Box;

    /// A state that nobody looks at.
    #[derive(Debug)]
    struct Nothing;

    impl StateMachine for Nothing {
        fn apply(&mut self, _: u64, _: &[u8], _: &mut Vec<u8>) {}
        fn query(&self, _: u64, _: &[u8], _: &mut Vec<u8>) {}
        fn clock(&mut self, _: u64) {}
        fn freeze(&self) -> Box<dyn Frozen> {
            unreachable!("no snapshot is taken")
        }
        fn restore(&mut self, _: &[u8]) -> Result<(), RestoreError> {
            Ok(())
        }
    }

    #[derive(Debug, Default)]
    struct Records(Vec<Vec<u8>>);

    impl Journal for Records {
        fn append(&mut self, head: &[u8], body: &[u8]) -> Option<u64> {
            self.0.push([head, body].concat());
            Some(self.0.len() as u64)
        }
        fn has_room(&self, _: usize) -> bool {
            true
        }
        fn flushed(&self) -> u64 {
            self.0.len() as u64
        }
    }

    fn replayed(records: &[Vec<u8>]) -> Slot {
        let layout = Layout::new(1, 64, 64).expect("valid");
        let acceptor = Acceptor {
            node: NodeId(2),
            incarnation: crate::Incarnation(7),
            layout,
        };
        let mut recovery = Recovery::new(acceptor, Applied::new(Nothing));
        for record in records {
            let memory = None::<&Region<Vec<AtomicU64>>>;
            recovery.record(memory, 1, record).expect("a packet");
        }
        recovery.finish().0.slot()
    }

    #[test]
    fn what_was_learned_is_found_though_the_decide_before_it_was_journalled_later() {
        let layout = Layout::new(1, 64, 64).expect("valid");
        let birth = Birth {
            cluster: 1,
            node: NodeId(2),
            nonce: 3,
            boot: 0,
        };
        let acceptor = Acceptor {
            node: NodeId(2),
            incarnation: birth.incarnation(),
            layout,
        };
        let words: Vec<_> = (0..layout.words()).map(|_| AtomicU64::new(0)).collect();
        let region = Region::create(words, layout, birth, Epoch(1), 0).expect("blank");
        let records = Records::default();
        let mut local = Local::new(acceptor, region, records, Durability::Sync);
        let packet = |kind, slot| Header {
            ballot: Ballot::new(1, NodeId(1)),
            epoch: Epoch(1),
            slot: Slot(slot),
            length: u16::from(kind != Kind::Decide),
            ..Header::new(kind, GroupId(0), NodeId(1))
        };
        local.step(1, Asker::Own, &packet(Kind::Accept, 1), b"a");
        let decide = Header {
            vote_ballot: Ballot(1),
            ..packet(Kind::Decide, 1)
        };
        local.step(2, Asker::Own, &decide, &[]);
        let learned = Header {
            vote_ballot: Ballot::new(1, NodeId(1)),
            ..packet(Kind::Learn, 2)
        };
        assert!(local.record(&learned, b"b"));
        local.flush_decides(u64::MAX);
        let records = &local.journal_mut().0;
        assert_eq!(records.len(), 3);
        assert_eq!(replayed(records), Slot(2));
        assert_eq!(replayed(&records[1..]), Slot::NONE, "nothing is skipped");
    }
}
