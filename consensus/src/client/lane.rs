//! A numbered queue of requests that are asked until they are answered.

use super::Failure;
use crate::envelope::{Entry, EntryKind};
use crate::{Sequence, SessionId};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// What a request came to.
pub(super) type Reply = Result<Vec<u8>, Failure>;

#[derive(Debug)]
enum Answer {
    Wanted,
    /// Kept until everything before it is answered.
    Held(Reply),
    /// Handed out ahead of what comes before it.
    Given,
}

#[derive(Debug)]
struct Item {
    token: u64,
    body: Vec<u8>,
    sends: u32,
    sent_at_ns: u64,
    answer: Answer,
}

/// Requests in the order of their sequences, from the first that is unanswered.
#[derive(Debug)]
pub(super) struct Lane {
    kind: EntryKind,
    items: VecDeque<Item>,
    /// Sequence of the front item, so the lowest unanswered one.
    first: u64,
    /// The next sequence to send; falls back when something must be sent again.
    cursor: u64,
    /// One above the highest sequence that was ever sent.
    high: u64,
    /// When the front item is asked for again, if anything is under way.
    pub(super) deadline_ns: Option<u64>,
    /// Time-outs of the front item.
    pub(super) timeouts: u32,
}

/// What went into a datagram.
pub(super) struct Packed {
    pub(super) first: Sequence,
    pub(super) lowest: Sequence,
    pub(super) entries: u64,
    pub(super) resent: u64,
}

impl Lane {
    pub(super) fn new(kind: EntryKind, first: u64) -> Self {
        Self {
            kind,
            items: VecDeque::new(),
            first,
            cursor: first,
            high: first,
            deadline_ns: None,
            timeouts: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    fn end(&self) -> u64 {
        self.first + self.items.len() as u64
    }

    /// Whether something waits to be sent.
    pub(super) fn has_unsent(&self) -> bool {
        self.cursor < self.end()
    }

    pub(super) fn push(&mut self, token: u64, body: &[u8]) {
        self.items.push_back(Item {
            token,
            body: body.to_vec(),
            sends: 0,
            sent_at_ns: 0,
            answer: Answer::Wanted,
        });
    }

    fn sent_item(&mut self, sequence: Sequence) -> Option<&mut Item> {
        if sequence.0 >= self.high {
            return None;
        }
        let index = usize::try_from(sequence.0.checked_sub(self.first)?).ok()?;
        self.items
            .get_mut(index)
            .filter(|item| matches!(item.answer, Answer::Wanted))
    }

    /// Whether this sequence was sent and is still unanswered.
    pub(super) fn awaits(&mut self, sequence: Sequence) -> bool {
        self.sent_item(sequence).is_some()
    }

    /// Moves what fits from the cursor on into `out`, which is cleared, as one datagram's value of
    /// at most `limit` bytes.
    pub(super) fn pack(
        &mut self,
        now_ns: u64,
        session: SessionId,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Option<Packed> {
        out.clear();
        let mut packed: Option<Packed> = None;
        while let Some(item) = self
            .cursor
            .checked_sub(self.first)
            .and_then(|index| self.items.get_mut(usize::try_from(index).ok()?))
        {
            if matches!(item.answer, Answer::Wanted) {
                if out.len() + Entry::encoded_bytes(item.body.len()) > limit {
                    break;
                }
                let entry = Entry {
                    kind: self.kind,
                    session,
                    sequence: Sequence(self.cursor),
                    behind: match self.kind {
                        EntryKind::Command => (self.cursor - self.first) as u32,
                        EntryKind::Open | EntryKind::Clock | EntryKind::Query => 0,
                    },
                    body: &item.body,
                };
                entry.append(out);
                let packed = packed.get_or_insert(Packed {
                    first: Sequence(self.cursor),
                    lowest: Sequence(self.first),
                    entries: 0,
                    resent: 0,
                });
                packed.entries += 1;
                packed.resent += u64::from(item.sends > 0);
                item.sends = item.sends.saturating_add(1);
                item.sent_at_ns = now_ns;
            }
            self.cursor += 1;
            self.high = self.high.max(self.cursor);
        }
        packed
    }

    /// Everything unanswered is sent again.
    pub(super) fn rewind(&mut self) {
        self.cursor = self.first;
        self.deadline_ns = None;
    }

    /// Everything unanswered from `sequence` on is sent again. False if `sequence` was answered or
    /// never sent, so that there is nothing to it.
    pub(super) fn rewind_to(&mut self, sequence: Sequence) -> bool {
        let known = self.awaits(sequence);
        if known {
            self.cursor = self.cursor.min(sequence.0);
        }
        known
    }

    /// Keeps the answer until everything before it is answered. Returns the round trip in
    /// nanoseconds if the request was sent only once.
    pub(super) fn hold(&mut self, now_ns: u64, sequence: Sequence, reply: Reply) -> Option<u64> {
        let item = self.sent_item(sequence)?;
        item.answer = Answer::Held(reply);
        (item.sends == 1).then(|| now_ns.saturating_sub(item.sent_at_ns))
    }

    /// Hands the answer's token out at once. Returns it with the round trip in nanoseconds if the
    /// request was sent only once.
    pub(super) fn give(&mut self, now_ns: u64, sequence: Sequence) -> Option<(u64, Option<u64>)> {
        let item = self.sent_item(sequence)?;
        item.answer = Answer::Given;
        let round_trip = (item.sends == 1).then(|| now_ns.saturating_sub(item.sent_at_ns));
        Some((item.token, round_trip))
    }

    /// Passes every answer that nothing unanswered precedes to `deliver`, in order. True if the
    /// front moved.
    pub(super) fn settle(&mut self, mut deliver: impl FnMut(u64, Reply)) -> bool {
        let before = self.first;
        while let Some(item) = self
            .items
            .pop_front_if(|i| !matches!(i.answer, Answer::Wanted))
        {
            self.first += 1;
            if let Answer::Held(reply) = item.answer {
                deliver(item.token, reply);
            }
        }
        self.cursor = self.cursor.max(self.first);
        self.first != before
    }

    /// Whether anything was sent that is unanswered.
    pub(super) fn is_under_way(&self) -> bool {
        self.high > self.first
    }

    /// Ends the numbering: whatever was sent and is unanswered gets `failure`, whatever was never
    /// sent is numbered from `first`.
    pub(super) fn restart(
        &mut self,
        first: u64,
        failure: Failure,
        mut deliver: impl FnMut(u64, Reply),
    ) {
        let sent = self.high.saturating_sub(self.first);
        for _ in 0..sent {
            let Some(item) = self.items.pop_front() else {
                break;
            };
            match item.answer {
                Answer::Wanted => deliver(item.token, Err(failure)),
                Answer::Held(reply) => deliver(item.token, reply),
                Answer::Given => {}
            }
        }
        (self.first, self.cursor, self.high, self.deadline_ns) = (first, first, first, None);
    }

    /// Fails what was never sent: nothing of it can have been applied.
    pub(super) fn refuse_unsent(&mut self, failure: Failure, mut deliver: impl FnMut(u64, Reply)) {
        debug_assert!(!self.is_under_way());
        for item in self.items.drain(..) {
            deliver(item.token, Err(failure));
        }
    }
}
