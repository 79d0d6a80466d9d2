//! Replies in the order of their requests, whatever the order in which they become known.

use super::reply::Protocol;
use super::transaction::Part;
use crate::front::Access;
use consensus::GroupId;
use std::collections::VecDeque;

/// A request that the worker has.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) access: Access,
    pub(super) group: GroupId,
    /// What the client spoke when it asked.
    pub(super) protocol: Protocol,
    /// The parts of a transaction that the front answers itself, and the places of the others.
    pub(super) parts: Option<Vec<Part>>,
}

#[derive(Debug)]
enum Slot {
    Known(Vec<u8>),
    Waiting(Waiting),
}

/// The requests of one connection whose replies are not written yet.
#[derive(Debug, Default)]
pub(super) struct Replies {
    slots: VecDeque<Slot>,
    /// Of the replies that are known.
    bytes: usize,
    /// The number of the first slot; numbers wrap round.
    first: u32,
}

impl Replies {
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Bytes of those that are known.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends a reply that is known to `output` if nothing is in front of it, else keeps it.
    pub(super) fn push_known(&mut self, reply: &[u8], output: &mut Vec<u8>) {
        if self.slots.is_empty() {
            output.extend_from_slice(reply);
        } else {
            self.bytes += reply.len();
            self.slots.push_back(Slot::Known(reply.to_vec()));
        }
    }

    /// The number that [`Self::push_waiting`] gives next.
    pub(super) fn next_number(&self) -> u32 {
        self.first.wrapping_add(self.slots.len() as u32)
    }

    pub(super) fn push_waiting(&mut self, waiting: Waiting) {
        self.slots.push_back(Slot::Waiting(waiting));
    }

    /// Takes what waits under a number; [`Self::fill`] must follow.
    pub(super) fn take_waiting(&mut self, number: u32) -> Option<Waiting> {
        let slot = self
            .slots
            .get_mut(number.wrapping_sub(self.first) as usize)?;
        match std::mem::replace(slot, Slot::Known(Vec::new())) {
            Slot::Waiting(waiting) => Some(waiting),
            known @ Slot::Known(_) => {
                *slot = known;
                None
            }
        }
    }

    pub(super) fn fill(&mut self, number: u32, reply: Vec<u8>) {
        if let Some(slot) = self.slots.get_mut(number.wrapping_sub(self.first) as usize) {
            self.bytes += reply.len();
            *slot = Slot::Known(reply);
        }
    }

    /// Moves what is known in front to `output`.
    pub(super) fn drain_known(&mut self, output: &mut Vec<u8>) {
        while let Some(Slot::Known(reply)) = self.slots.front() {
            output.extend_from_slice(reply);
            self.bytes -= reply.len();
            self.slots.pop_front();
            self.first = self.first.wrapping_add(1);
        }
    }

    /// Nobody reads those that are known.
    pub(super) fn forget(&mut self) {
        for slot in &mut self.slots {
            if let Slot::Known(reply) = slot {
                *reply = Vec::new();
            }
        }
        self.bytes = 0;
    }

    /// The numbers of all that wait.
    pub(super) fn waiting(&self) -> Vec<u32> {
        let waits = |(at, slot): (usize, &Slot)| {
            matches!(slot, Slot::Waiting(_)).then(|| self.first.wrapping_add(at as u32))
        };
        self.slots.iter().enumerate().filter_map(waits).collect()
    }
}
