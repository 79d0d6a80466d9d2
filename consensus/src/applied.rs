//! What the log has done so far: the state machine, its sessions and clock, and the newest values
//! for those who lag.

use crate::acceptor::MAX_SLOT;
use crate::catch_up::LEARN_SLOTS;
use crate::envelope::{EntryKind, Outcome, Status, entries};
use crate::session::{Admission, Sessions};
use crate::simulation::{Mutation, mutated};
use crate::state_machine::{Frozen, RestoreError, StateMachine};
use crate::wire::MAX_VALUE_BYTES;
use crate::{Ballot, Sequence, SessionId, Slot};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Most slots whose values are kept for replicas that lag.
pub const KEPT_SLOTS: usize = 4096;
/// Most bytes of values kept for replicas that lag.
pub const KEPT_BYTES: usize = 8 << 20;
/// So many groups keep as much each.
pub const UNSHARED_GROUPS: usize = 8;
/// The same while one of them takes over a snapshot: everything behind that, as far as this.
pub const TAUGHT_SLOTS: usize = 1 << 20;
/// And no more bytes of values.
pub const TAUGHT_BYTES: usize = 256 << 20;
/// Values that are let go at the most when one is applied.
const LET_GO: usize = 64;
/// First word of a snapshot.
const SNAPSHOT_MAGIC: u64 = u64::from_be_bytes(*b"NWSNAP01");

/// Who an outcome goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recipient {
    /// An open session.
    Session(SessionId),
    /// A client that opens a session and is known by its nonce only.
    Opener(u64),
}

/// The state that the log has led to.
#[derive(Debug)]
pub struct Applied<S> {
    machine: S,
    sessions: Sessions,
    clock_ms: u64,
    slot: Slot,
    kept: VecDeque<(Ballot, Vec<u8>)>,
    kept_bytes: usize,
    /// Most slots and bytes that are kept, and most while one of those who lag takes over a snapshot.
    most: (usize, usize),
    taught: (usize, usize),
    /// Values from here on are kept although they are many.
    keep_from: Slot,
    spare: Vec<Vec<u8>>,
    reply: Vec<u8>,
}

impl<S: StateMachine> Applied<S> {
    /// The state before the first slot.
    pub fn new(machine: S) -> Self {
        Self {
            machine,
            sessions: Sessions::default(),
            clock_ms: 0,
            slot: Slot::NONE,
            kept: VecDeque::new(),
            kept_bytes: 0,
            most: (KEPT_SLOTS, KEPT_BYTES),
            taught: (TAUGHT_SLOTS, TAUGHT_BYTES),
            keep_from: Slot(u64::MAX),
            spare: Vec::new(),
            reply: Vec::new(),
        }
    }

    /// It is the state of one of so many groups on this node: more of them than [`UNSHARED_GROUPS`]
    /// keep less each, so that all of them together keep no more.
    pub fn share_memory(&mut self, groups: usize) {
        let parts = groups.div_ceil(UNSHARED_GROUPS).max(1);
        let part = |slots: usize, bytes: usize| {
            let slots = (slots / parts).max(LEARN_SLOTS as usize);
            (slots, (bytes / parts).max(MAX_VALUE_BYTES))
        };
        self.most = part(KEPT_SLOTS, KEPT_BYTES);
        self.taught = part(TAUGHT_SLOTS, TAUGHT_BYTES);
    }

    /// The last slot applied.
    pub const fn slot(&self) -> Slot {
        self.slot
    }

    /// The log's clock in Unix milliseconds.
    pub const fn clock_ms(&self) -> u64 {
        self.clock_ms
    }

    /// The sessions.
    pub const fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// The machine.
    pub const fn machine(&self) -> &S {
        &self.machine
    }

    /// An empty buffer for a value, from those that are no longer kept.
    pub fn buffer(&mut self) -> Vec<u8> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer
    }

    /// Applies the value chosen in the next slot. `ballot` is one that it was voted in.
    pub fn apply(
        &mut self,
        ballot: Ballot,
        value: Vec<u8>,
        mut outcome: impl FnMut(Recipient, Outcome<'_>),
    ) {
        self.slot = self.slot.next();
        let mut reply = core::mem::take(&mut self.reply);
        let mut opened = 0;
        // A malformed tail was chosen like that on every replica: all stop at the same place.
        for entry in entries(&value).map_while(Result::ok) {
            match entry.kind {
                EntryKind::Clock => self.tick(entry.sequence.0),
                EntryKind::Open => {
                    let nonce = entry.session.0;
                    let id = SessionId::new(self.slot, opened);
                    opened += 1;
                    let status = if self.sessions.open(id, self.clock_ms) {
                        Status::Opened
                    } else {
                        Status::TooManySessions
                    };
                    let body = id.0.to_be_bytes();
                    outcome(
                        Recipient::Opener(nonce),
                        Outcome {
                            sequence: Sequence(nonce),
                            status,
                            body: &body,
                        },
                    );
                }
                EntryKind::Command => {
                    let (id, sequence) = (entry.session, entry.sequence);
                    let to = Recipient::Session(id);
                    match self
                        .sessions
                        .admit(id, sequence, entry.behind, self.clock_ms)
                    {
                        Admission::Apply => {
                            reply.clear();
                            self.machine.apply(self.clock_ms, entry.body, &mut reply);
                            self.sessions.replied(id, &reply);
                            outcome(
                                to,
                                Outcome {
                                    sequence,
                                    status: Status::Done,
                                    body: &reply,
                                },
                            );
                        }
                        Admission::Replied(body) => {
                            outcome(
                                to,
                                Outcome {
                                    sequence,
                                    status: Status::Done,
                                    body,
                                },
                            );
                        }
                        Admission::Refused { status, sequence } => {
                            outcome(
                                to,
                                Outcome {
                                    sequence,
                                    status,
                                    body: &[],
                                },
                            );
                        }
                    }
                }
                EntryKind::Query => {}
            }
        }
        self.reply = reply;
        self.keep(ballot, value);
    }

    /// Moves the log's clock on.
    pub(crate) fn tick(&mut self, clock_ms: u64) {
        self.clock_ms = if mutated(Mutation::ClockGoesBack) {
            clock_ms
        } else {
            self.clock_ms.max(clock_ms)
        };
        self.machine.clock(self.clock_ms);
        self.sessions.expire(self.clock_ms);
    }

    fn keep(&mut self, ballot: Ballot, value: Vec<u8>) {
        self.kept_bytes += value.len();
        self.kept.push_back((ballot, value));
        let is_past =
            |kept: &Self, (slots, bytes)| kept.kept.len() > slots || kept.kept_bytes > bytes;
        for _ in 0..LET_GO {
            let is_needed =
                self.slot.0 - self.kept.len() as u64 >= self.keep_from.0.saturating_sub(1);
            if !is_past(self, self.most) || is_needed && !is_past(self, self.taught) {
                break;
            }
            let Some((_, oldest)) = self.kept.pop_front() else {
                break;
            };
            self.kept_bytes -= oldest.len();
            if self.spare.len() < self.most.0.min(64) {
                self.spare.push(oldest);
            }
        }
    }

    /// Keeps values from `slot` on beyond the usual number; [`Slot`]'s highest number is none.
    pub(crate) fn keep_from(&mut self, slot: Slot) {
        self.keep_from = match slot.0 {
            u64::MAX => slot,
            _ => self.keep_from.min(slot),
        };
    }

    /// The value applied in `slot` and a ballot that it was voted in, if it is still kept.
    pub fn kept(&self, slot: Slot) -> Option<(Ballot, &[u8])> {
        let back = self.slot.0.checked_sub(slot.0)?;
        let at = (self.kept.len() as u64).checked_sub(back + 1)?;
        let (ballot, value) = self.kept.get(at as usize)?;
        Some((*ballot, value))
    }

    /// Answers a query from the present state.
    pub fn query(&self, query: &[u8], reply: &mut Vec<u8>) {
        self.machine.query(self.clock_ms, query, reply);
    }

    /// A frozen snapshot of everything up to [`Applied::slot`].
    pub fn freeze(&self) -> Box<dyn Frozen> {
        let mut head = Vec::new();
        for number in [SNAPSHOT_MAGIC, self.slot.0, self.clock_ms] {
            head.extend_from_slice(&number.to_be_bytes());
        }
        if mutated(Mutation::SessionsNotInSnapshot) {
            Sessions::default().write(&mut head);
        } else {
            self.sessions.write(&mut head);
        }
        Box::new(FrozenState {
            head,
            machine: self.machine.freeze(),
        })
    }

    /// The last slot that a snapshot covers, if it can be one.
    pub fn snapshot_slot(bytes: &[u8]) -> Option<Slot> {
        let slot = Slot(u64::from_be_bytes(*bytes.get(8..)?.first_chunk()?));
        (slot.0 <= MAX_SLOT).then_some(slot)
    }

    /// Puts `next`, which is ahead, in the place of this state, and returns the former one.
    pub fn give_way_to(&mut self, mut next: Self) -> Self {
        (next.most, next.taught) = (self.most, self.taught);
        let mut former = core::mem::replace(self, next);
        self.machine.succeed(&mut former.machine);
        former
    }

    /// Replaces the state by a snapshot.
    ///
    /// # Errors
    /// The bytes are no snapshot; the state is then unchanged.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let (magic, rest) = bytes
            .split_first_chunk::<8>()
            .ok_or(RestoreError("cut off"))?;
        if u64::from_be_bytes(*magic) != SNAPSHOT_MAGIC {
            return Err(RestoreError("not a snapshot of this version"));
        }
        let slot = Self::snapshot_slot(bytes).ok_or(RestoreError("no such slot"))?;
        let (_, rest) = rest
            .split_first_chunk::<8>()
            .ok_or(RestoreError("cut off"))?;
        let (clock_ms, rest) = rest
            .split_first_chunk::<8>()
            .ok_or(RestoreError("cut off"))?;
        let (sessions, rest) = Sessions::read(rest)?;
        self.machine.restore(rest)?;
        self.sessions = sessions;
        self.slot = slot;
        self.clock_ms = u64::from_be_bytes(*clock_ms);
        self.kept.clear();
        self.kept_bytes = 0;
        Ok(())
    }
}

struct FrozenState {
    head: Vec<u8>,
    machine: Box<dyn Frozen>,
}

impl Frozen for FrozenState {
    fn next_chunk(&mut self, out: &mut Vec<u8>) -> bool {
        if !self.head.is_empty() {
            out.append(&mut self.head);
            return true;
        }
        self.machine.next_chunk(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::Entry;
    use crate::state_machine::testing::Diary;

    fn value(entries: &[(EntryKind, u64, u64)]) -> Vec<u8> {
        let mut value = Vec::new();
        for (kind, session, sequence) in entries {
            let entry = Entry {
                kind: *kind,
                session: SessionId(*session),
                sequence: Sequence(*sequence),
                behind: 0,
                body: &[],
            };
            entry.append(&mut value);
        }
        value
    }

    fn apply(applied: &mut Applied<Diary>, entries: &[(EntryKind, u64, u64)]) {
        applied.apply(Ballot(1), value(entries), |_, _| {});
    }

    #[test]
    fn the_clock_never_falls() {
        let mut applied = Applied::new(Diary::default());
        apply(
            &mut applied,
            &[(EntryKind::Clock, 0, 9), (EntryKind::Clock, 0, 7)],
        );
        assert_eq!(applied.clock_ms(), 9);
        assert_eq!(applied.machine().times_ms, [9, 9]);
    }

    #[test]
    fn a_restored_state_refuses_what_it_had_applied() {
        let mut applied = Applied::new(Diary::default());
        apply(&mut applied, &[(EntryKind::Open, 5, 0)]);
        let session = SessionId::new(Slot(1), 0).0;
        apply(&mut applied, &[(EntryKind::Command, session, 1)]);
        let mut bytes = Vec::new();
        let mut frozen = applied.freeze();
        while frozen.next_chunk(&mut bytes) {}
        let mut restored = Applied::new(Diary::default());
        restored.restore(&bytes).expect("whole");
        apply(&mut restored, &[(EntryKind::Command, session, 1)]);
        assert_eq!(restored.machine().commands, 1);
        apply(&mut restored, &[(EntryKind::Command, session, 2)]);
        assert_eq!(restored.machine().commands, 2);
    }
}
