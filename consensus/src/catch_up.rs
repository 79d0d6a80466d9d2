//! How a replica that lags learns what was chosen: slot by slot from one that still keeps the
//! values, or by a snapshot. Everything is pulled, so that a slow receiver is never flooded.

use crate::quorum::{Member, MemberRole};
use crate::simulation::{Mutation, mutated};
use crate::wire::{Header, Kind};
use crate::{Ballot, GroupId, NodeId, Slot};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

/// Slots sent for one request at the most.
pub const LEARN_SLOTS: u64 = 64;
/// Snapshot pieces sent for one request at the most.
pub const SNAPSHOT_CHUNKS: u64 = 32;
/// Bytes of a snapshot piece.
pub const CHUNK_BYTES: usize = 1376;
/// Longest snapshot that is taken over the network, in bytes.
pub const MAX_SNAPSHOT_BYTES: u64 = 16 << 30;
/// How long a source may be silent before another is asked, in nanoseconds.
const PATIENCE_NS: u64 = 20_000_000;

#[derive(Debug)]
struct Pull {
    source: NodeId,
    slot: Slot,
    total: u64,
    bytes: Vec<u8>,
    /// Pieces that came before those in front of them.
    early: BTreeMap<u64, Vec<u8>>,
    /// The offset at which the request under way ends.
    asked: u64,
}

/// What a replica still has to learn.
#[derive(Debug, Default)]
pub struct CatchUp {
    wanted: Slot,
    /// The last slot of the request under way.
    asked: Slot,
    due_ns: u64,
    turn: usize,
    pull: Option<Pull>,
    /// Values that came before those in front of them.
    early: BTreeMap<Slot, (Ballot, Vec<u8>)>,
}

impl CatchUp {
    /// Everything up to `slot` is known to be chosen; ask for it after `delay_ns` unless it comes
    /// by itself.
    pub fn want(&mut self, now_ns: u64, slot: Slot, delay_ns: u64) {
        if slot > self.wanted {
            if self.wanted == Slot::NONE || self.due_ns == u64::MAX {
                self.due_ns = now_ns + delay_ns;
            }
            self.wanted = slot;
        }
    }

    /// The highest slot wanted.
    pub const fn wanted(&self) -> Slot {
        self.wanted
    }

    /// Whether a snapshot is on its way: its slot, bytes here, bytes in all.
    pub fn pulling(&self) -> Option<(Slot, u64, u64)> {
        self.pull
            .as_ref()
            .map(|pull| (pull.slot, pull.bytes.len() as u64, pull.total))
    }

    /// Slots up to `applied` are here now.
    pub fn applied(&mut self, now_ns: u64, applied: Slot) {
        if applied >= self.wanted {
            *self = Self {
                turn: self.turn,
                due_ns: u64::MAX,
                ..Self::default()
            };
        } else if applied >= self.asked && self.asked != Slot::NONE {
            self.due_ns = now_ns;
        }
    }

    /// Whether [`CatchUp::poll`] has a request.
    pub fn is_due(&self, now_ns: u64, applied: Slot) -> bool {
        self.wanted > applied && now_ns >= self.due_ns
    }

    /// The request that is due, and whom of `members` it goes to.
    pub fn poll(
        &mut self,
        now_ns: u64,
        group: GroupId,
        applied: Slot,
        leader: Option<NodeId>,
        own: NodeId,
        members: &[Member],
    ) -> Option<(NodeId, Header)> {
        if !self.is_due(now_ns, applied) {
            return None;
        }
        let silent = self.asked != Slot::NONE && applied < self.asked;
        self.due_ns = now_ns + PATIENCE_NS;
        if let Some(pull) = &mut self.pull {
            if pull.asked == u64::MAX {
                // The source has not moved since the last request: start again elsewhere.
                self.pull = None;
            } else {
                let header = Header {
                    slot: pull.slot,
                    watermark: pull.bytes.len() as u64,
                    ..Header::new(Kind::SnapshotRequest, group, own)
                };
                pull.asked = u64::MAX;
                return Some((pull.source, header));
            }
        }
        // Witnesses have nothing to teach.
        let teaches = |one: &&Member| one.node != own && one.role != MemberRole::Witness;
        let others = members.iter().filter(teaches).count();
        if silent {
            self.turn += 1;
        }
        let rotated = members
            .iter()
            .filter(teaches)
            .nth(self.turn.checked_rem(others)?)?
            .node;
        let source = match leader {
            Some(leader) if leader != own && !silent => leader,
            _ => rotated,
        };
        self.asked = Slot(self.wanted.0.min(applied.0 + LEARN_SLOTS));
        let header = Header {
            slot: applied.next(),
            watermark: self.wanted.0,
            ..Header::new(Kind::CatchUp, group, own)
        };
        Some((source, header))
    }

    /// Keeps a value that came before its turn.
    pub fn keep_early(&mut self, slot: Slot, ballot: Ballot, value: &[u8]) {
        if slot <= self.wanted && self.early.len() < LEARN_SLOTS as usize {
            self.early.insert(slot, (ballot, Vec::from(value)));
        }
    }

    /// The value of `slot`, if it came before its turn.
    pub fn take_early(&mut self, slot: Slot) -> Option<(Ballot, Vec<u8>)> {
        while let Some(first) = self.early.first_entry()
            && *first.key() < slot
        {
            first.remove();
        }
        self.early.remove(&slot)
    }

    /// Takes a piece of a snapshot. Returns the request for the next pieces when the ones asked
    /// for are here, and the whole snapshot when it is complete.
    pub fn chunk(
        &mut self,
        now_ns: u64,
        own: NodeId,
        applied: Slot,
        header: &Header,
        piece: &[u8],
    ) -> Chunk {
        let (slot, total, offset) = (header.slot, header.vote_ballot.0, header.watermark);
        let is_older = slot <= applied && !mutated(Mutation::OlderSnapshotTaken);
        if is_older || total > MAX_SNAPSHOT_BYTES || self.wanted <= applied {
            return Chunk::Wait;
        }
        if self.pull.is_none() && offset == 0 {
            self.pull = Some(Pull {
                source: header.sender,
                slot,
                total,
                bytes: Vec::new(),
                early: BTreeMap::new(),
                asked: SNAPSHOT_CHUNKS * CHUNK_BYTES as u64,
            });
        }
        let Some(pull) = &mut self.pull else {
            return Chunk::Wait;
        };
        let here = pull.bytes.len() as u64;
        if (pull.source, pull.slot, pull.total) != (header.sender, slot, total) || offset < here {
            return Chunk::Wait;
        }
        if offset > here {
            if pull.early.len() < SNAPSHOT_CHUNKS as usize {
                pull.early.insert(offset, Vec::from(piece));
            }
            return Chunk::Wait;
        }
        pull.bytes.extend_from_slice(piece);
        while let Some(next) = pull.early.remove(&(pull.bytes.len() as u64)) {
            pull.bytes.extend_from_slice(&next);
        }
        self.due_ns = now_ns + PATIENCE_NS;
        let here = pull.bytes.len() as u64;
        if here >= total {
            return match self.pull.take() {
                Some(pull) => Chunk::Complete(pull.bytes),
                None => Chunk::Wait,
            };
        }
        let burst = SNAPSHOT_CHUNKS * CHUNK_BYTES as u64;
        if pull.asked == u64::MAX {
            pull.asked = offset + burst;
        }
        if here < pull.asked {
            return Chunk::Wait;
        }
        pull.asked = here + burst;
        Chunk::Ask(Header {
            slot,
            watermark: here,
            ..Header::new(Kind::SnapshotRequest, header.group, own)
        })
    }

    /// When [`CatchUp::poll`] should be called, in nanoseconds.
    pub const fn next_timer_ns(&self) -> u64 {
        if self.wanted.0 == 0 {
            u64::MAX
        } else {
            self.due_ns
        }
    }
}

/// What a piece of a snapshot led to.
#[derive(Debug)]
pub enum Chunk {
    /// Nothing yet.
    Wait,
    /// Ask the sender for more.
    Ask(Header),
    /// All of it is here.
    Complete(Vec<u8>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_of_what_is_applied_is_not_taken() {
        let piece = |slot: u64| Header {
            slot: Slot(slot),
            vote_ballot: Ballot(4),
            ..Header::new(Kind::SnapshotChunk, GroupId(0), NodeId(2))
        };
        let mut catch_up = CatchUp::default();
        catch_up.want(0, Slot(9), 0);
        let mut take = |slot| catch_up.chunk(0, NodeId(1), Slot(5), &piece(slot), b"body");
        assert!(matches!(take(5), Chunk::Wait));
        assert!(matches!(take(6), Chunk::Complete(_)));
    }
}
