//! This node's own acceptor, and when it may answer.
//!
//! Under `sync` durability an answer waits until everything that was journalled before it is
//! flushed. The journal holds the very packets that changed the region: replaying them through the
//! step rebuilds it.

use crate::acceptor::{Acceptor, Drop, Effect, Step};
use crate::memory::{Buffers, Memory, raise};
use crate::region::{self, GroupView};
use crate::simulation::{Fault, Mutation, mutated, strikes};
use crate::wire::{Flags, HEADER_BYTES, Header, Kind};
use crate::{Ballot, GroupId, Slot};
use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;

/// What survives what. Chosen by name in the configuration, never implied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// Votes live in memory that outlives the process, fenced by incarnation when the machine dies.
    Volatile,
    /// Journalled behind the reply: after a machine crash the journal speeds catch-up, but the
    /// identity is a new incarnation.
    Async,
    /// Votes and promises are flushed before the reply: the identity survives a loss of power.
    Sync,
}

impl Durability {
    /// Its name in configurations and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Volatile => "volatile",
            Self::Async => "async",
            Self::Sync => "sync",
        }
    }
}

/// A log of records on stable storage, written by somebody else.
pub trait Journal {
    /// Queues a record, given in two parts, and returns its number; `None` if the queue is full.
    /// Numbers rise.
    fn append(&mut self, head: &[u8], body: &[u8]) -> Option<u64>;
    /// Whether a record of so many bytes has room.
    fn has_room(&self, bytes: usize) -> bool;
    /// Everything up to this number is flushed.
    fn flushed(&self) -> u64;
}

/// No journal: for `volatile` durability.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoJournal;

impl Journal for NoJournal {
    fn append(&mut self, _: &[u8], _: &[u8]) -> Option<u64> {
        Some(0)
    }

    fn has_room(&self, _: usize) -> bool {
        true
    }

    fn flushed(&self) -> u64 {
        0
    }
}

/// Who asked: a peer, or the leader on this very node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asker {
    /// This node's own leader.
    Own,
    /// Whoever is reached there.
    Peer(SocketAddr),
}

/// Most replies that may wait for a flush; past it requests are dropped.
pub const MAX_HELD: usize = 8192;

/// How long a decided record waits for a vote to share its flush, in nanoseconds.
const DECIDE_PATIENCE_NS: u64 = 10_000_000;
/// What a journal may add to a record, in bytes.
const RECORD_BYTES: usize = 64;

/// How often something happened, by reason. Rises for the life of the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Votes stored.
    pub voted: u64,
    /// Promises given.
    pub promised: u64,
    /// Refusals sent.
    pub refused: u64,
    /// Requests dropped, by [`Drop`].
    pub dropped: [u64; Drop::COUNT],
    /// Requests dropped because the journal or the held replies were full.
    pub no_room: u64,
}

/// The acceptor on this node.
#[derive(Debug)]
pub struct Local<M, J> {
    acceptor: Acceptor,
    memory: M,
    journal: J,
    durability: Durability,
    held: VecDeque<(u64, Asker, Header)>,
    /// The newest Decide of each group that is not journalled yet.
    decides: Vec<(Header, u64)>,
    appended: u64,
    /// The journal refused a record that the region already holds.
    failed: bool,
    /// Another engine steps the region, too.
    is_shared: bool,
    /// When the first request came.
    started_ns: Option<u64>,
    scratch: Vec<u8>,
    counters: Counters,
}

impl<M: Memory, J: Journal> Local<M, J> {
    /// The acceptor over `memory`, journalling as `durability` says.
    pub fn new(acceptor: Acceptor, memory: M, journal: J, durability: Durability) -> Self {
        let scratch = vec![0; acceptor.layout.value_bytes()];
        Self {
            acceptor,
            memory,
            journal,
            durability,
            held: VecDeque::with_capacity(MAX_HELD),
            decides: Vec::new(),
            appended: 0,
            failed: false,
            is_shared: false,
            started_ns: None,
            scratch,
            counters: Counters::default(),
        }
    }

    /// Another engine steps the region from now on, which journals nothing. Not under `sync`.
    pub fn share(&mut self) {
        debug_assert!(
            self.durability != Durability::Sync,
            "nothing waits for a flush in another engine"
        );
        self.is_shared = true;
    }

    /// Whether votes may be in the region that [`Local::step`] has not seen.
    pub const fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Steps the region with one request. Returns the reply and its value if it may leave now;
    /// otherwise it comes from [`Local::released`] after the flush.
    pub fn step(
        &mut self,
        now_ns: u64,
        asker: Asker,
        request: &Header,
        value: &[u8],
    ) -> Option<(Header, &[u8])> {
        let journals = self.durability != Durability::Volatile;
        let started_ns = *self.started_ns.get_or_insert(now_ns);
        // A lease that an earlier life granted is in no record, and nobody's runs longer than this.
        if request.kind == Kind::Prepare
            && self.durability == Durability::Sync
            && now_ns < started_ns.saturating_add(self.lease_ns(request.group))
            && !mutated(Mutation::LeaseForgotten)
        {
            let ends_ns = started_ns.saturating_add(self.lease_ns(request.group));
            let promised = self
                .view(request.group)
                .map_or(Ballot::NONE, |view| view.promised);
            self.counters.refused += 1;
            let reply = Header {
                kind: Kind::Nack,
                sender: self.acceptor.node,
                incarnation: self.acceptor.incarnation,
                vote_ballot: promised,
                watermark: ends_ns - now_ns,
                flags: Flags::LEASE,
                length: 0,
                tag: 0,
                ..*request
            };
            return Some((reply, &[]));
        }
        let bytes = (HEADER_BYTES + RECORD_BYTES) * (1 + self.decides.len()) + value.len();
        if journals && (self.failed || !self.has_room(bytes) || self.held.len() >= MAX_HELD) {
            self.counters.no_room += 1;
            return None;
        }
        let mut payload = Buffers {
            request: value,
            reply: &mut self.scratch,
        };
        let step = self
            .acceptor
            .step(&self.memory, now_ns, request, &mut payload);
        let (reply, effect) = match step {
            Step::Reply(reply, effect) => (Some(reply), effect),
            Step::Silent(effect) => (None, effect),
            Step::Dropped(reason) => {
                if let Some(count) = self.counters.dropped.get_mut(reason as usize) {
                    *count += 1;
                }
                return None;
            }
        };
        match effect {
            Effect::None => {}
            Effect::Promised => self.counters.promised += 1,
            Effect::Voted => self.counters.voted += 1,
            Effect::Decided => {}
        }
        if journals {
            let journalled = match effect {
                Effect::None => true,
                Effect::Promised if mutated(Mutation::PromiseNotJournalled) => true,
                Effect::Decided if mutated(Mutation::DecideNotJournalled) => true,
                Effect::Promised | Effect::Voted => {
                    self.journal_decides() && self.append(request, value)
                }
                Effect::Decided => self.note_decide(now_ns, request),
            };
            if !journalled {
                // Room was checked above, so the journal has failed. The region may hold a vote now
                // that no record backs: nothing is answered any more.
                self.failed = true;
                return None;
            }
        }
        let reply = reply?;
        let is_own_promise = asker == Asker::Own && reply.kind == Kind::Promise;
        let awaits_flush = self.durability == Durability::Sync
            && self.journal.flushed() < self.appended
            && !mutated(Mutation::ReplyBeforeFlush)
            && !(is_own_promise && mutated(Mutation::OwnPromiseUnflushed));
        if awaits_flush {
            match reply.kind {
                // A vote that is re-answered may still be on its way to the disk, so it waits as
                // the first answer did.
                Kind::Promise | Kind::Accepted => {
                    self.held.push_back((self.appended, asker, reply));
                    return None;
                }
                // These claim nothing that the loss of power could falsify: a vote is offered with
                // the ballot that its leader chose, a refusal and an acknowledgement speak of the
                // past. Empty and Outside only follow a flushed promise.
                _ => {}
            }
        }
        if reply.kind == Kind::Nack {
            self.counters.refused += 1;
        }
        let length = usize::from(reply.length);
        Some((reply, self.scratch.get(..length).unwrap_or_default()))
    }

    fn append(&mut self, header: &Header, value: &[u8]) -> bool {
        match self.journal.append(&header.to_bytes(), value) {
            Some(number) => {
                self.appended = number;
                true
            }
            None => false,
        }
    }

    /// A Decide is worth no flush of its own: nobody waits for it. It goes before the next vote, or
    /// with [`Local::flush_decides`].
    fn note_decide(&mut self, now_ns: u64, request: &Header) -> bool {
        let waiting = self
            .decides
            .iter_mut()
            .find(|(other, _)| other.group == request.group);
        match waiting {
            Some((other, _)) if other.ballot == request.ballot => {
                let slot = other.slot.max(request.slot);
                let watermark = other.watermark.max(request.watermark);
                *other = Header {
                    slot,
                    watermark,
                    ..*other
                };
                true
            }
            Some(_) => self.journal_decides() && self.note_decide(now_ns, request),
            None => {
                self.decides.push((*request, now_ns));
                true
            }
        }
    }

    /// Journals the decided records that wait for company. False if there is no room.
    pub fn journal_decides(&mut self) -> bool {
        while let Some((header, since_ns)) = self.decides.pop() {
            if !self.append(&header, &[]) {
                self.decides.push((header, since_ns));
                return false;
            }
        }
        true
    }

    /// Journals the decided records that have waited for company long enough. Returns when the
    /// next one will have, in nanoseconds.
    pub fn flush_decides(&mut self, now_ns: u64) -> u64 {
        let due = |decides: &[(Header, u64)]| {
            let oldest = decides.iter().map(|(_, since_ns)| *since_ns).min();
            oldest.map_or(u64::MAX, |since_ns| {
                since_ns.saturating_add(DECIDE_PATIENCE_NS)
            })
        };
        if due(&self.decides) <= now_ns && !self.journal_decides() {
            // A full journal says when it has room again; until then there is nothing to do.
            return now_ns.saturating_add(DECIDE_PATIENCE_NS);
        }
        due(&self.decides)
    }

    /// The next reply whose journal records have been flushed meanwhile.
    pub fn released(&mut self) -> Option<(Asker, Header)> {
        let (number, _, _) = self.held.front()?;
        if *number > self.journal.flushed() {
            return None;
        }
        self.held
            .pop_front()
            .map(|(_, asker, reply)| (asker, reply))
    }

    /// Whether replies wait for a flush.
    pub fn holds_replies(&self) -> bool {
        !self.held.is_empty()
    }

    /// Journals what a journal that is cut before now would forget: the promise, the decided record
    /// and the trim. Returns the number that must be flushed before the cut.
    pub fn checkpoint(&mut self, group: GroupId) -> Option<u64> {
        let view = self.view(group)?;
        let epoch = region::epoch(&self.memory, group);
        let record = |kind, ballot: Ballot| Header {
            ballot,
            epoch,
            ..Header::new(kind, group, ballot.node())
        };
        let decided = Header {
            slot: view.decided.upto,
            vote_ballot: Ballot(view.decided.from.0),
            watermark: view.trim.0,
            ..record(Kind::Decide, view.decided.ballot)
        };
        let promised = record(Kind::Prepare, view.promised);
        (self.journal_decides() && self.append(&decided, &[]) && self.append(&promised, &[]))
            .then_some(self.appended)
    }

    /// Journals something that the acceptor did not do but the host must not forget. False if there
    /// is no room.
    pub fn record(&mut self, header: &Header, value: &[u8]) -> bool {
        self.durability == Durability::Volatile
            || self.has_room(HEADER_BYTES + RECORD_BYTES + value.len())
                && self.append(header, value)
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.journal.has_room(bytes) && !strikes(Fault::JournalFull)
    }

    /// Journals the votes for the slots after `from` that the region holds, and what a cut would
    /// forget: for a process that starts on a region whose last process may not have come to write
    /// everything. Otherwise the state of a later life would stop at the hole, although this node
    /// reports that it could restore what lies behind it.
    ///
    /// # Errors
    /// The journal has no room: go on from this slot when it has.
    pub fn journal_again(&mut self, group: GroupId, from: Slot) -> Result<(), Slot> {
        let Some(view) = self.view(group) else {
            return Ok(());
        };
        let epoch = region::epoch(&self.memory, group);
        let value_bytes = self.acceptor.layout.value_bytes();
        let mut value = core::mem::take(&mut self.scratch);
        let mut from = from;
        if mutated(Mutation::RingHalfJournalled) {
            let window = self.acceptor.layout.window();
            from = from.max(Slot(view.highest.0.saturating_sub(window)));
        }
        // An entry keeps its vote until its acceptor votes for a slot a window later, which it may
        // have missed: the ring can hold more than the last window.
        while from < view.highest {
            let slot = from.next();
            let vote = region::vote(&self.memory, group, slot, value_bytes, &mut value);
            if let Some((ballot, length)) = vote {
                let header = Header {
                    ballot,
                    slot,
                    epoch,
                    length: length as u16,
                    ..Header::new(Kind::Accept, group, ballot.node())
                };
                if !self.record(&header, value.get(..length).unwrap_or_default()) {
                    break;
                }
            }
            from = slot;
        }
        self.scratch = value;
        if from < view.highest {
            return Err(from);
        }
        match view.promised {
            Ballot::NONE => Ok(()),
            _ => self.checkpoint(group).map(drop).ok_or(from),
        }
    }

    /// The highest slot that any record so far may be about, beside what was learned from others.
    pub(crate) fn highest_journalled(&self, group: GroupId) -> Slot {
        let highest = |view: GroupView| view.highest.max(view.decided.upto);
        self.view(group).map_or(Slot::NONE, highest)
    }

    /// The number of the last record appended, and of the last one flushed; `None` while a decided
    /// record of the group still waits to be appended.
    pub fn journalled(&self, group: GroupId) -> Option<(u64, u64)> {
        match self.durability {
            Durability::Volatile => Some((0, 0)),
            Durability::Async | Durability::Sync => {
                let waits = self.decides.iter().any(|(header, _)| header.group == group);
                (!waits).then(|| (self.appended, self.journal.flushed()))
            }
        }
    }

    /// The number of the last record appended, and of the last one flushed.
    pub fn appended_and_flushed(&self) -> (u64, u64) {
        (self.appended, self.journal.flushed())
    }

    /// A node was heard of just now, in a packet that is no step.
    pub fn heard(&self, now_ns: u64, node: crate::NodeId) {
        if let Some(at) = self.memory.peer(node) {
            // Contended, another packet of it has just been noted.
            let _ = raise(&self.memory, at, 0, now_ns);
        }
    }

    /// What the group's record says; `None` if there is no such group.
    pub fn view(&self, group: GroupId) -> Option<GroupView> {
        region::view(&self.memory, group)
    }

    /// The vote for `slot`: its ballot and value.
    pub fn vote(&mut self, group: GroupId, slot: Slot) -> Option<(Ballot, &[u8])> {
        let value_bytes = self.acceptor.layout.value_bytes();
        let (ballot, length) =
            region::vote(&self.memory, group, slot, value_bytes, &mut self.scratch)?;
        Some((ballot, self.scratch.get(..length)?))
    }

    /// How long a lease lasts in a group, in nanoseconds.
    pub fn lease_ns(&self, group: GroupId) -> u64 {
        region::lease_ns(&self.memory, group)
    }

    /// When `node` was last heard of as a leader, in nanoseconds.
    pub fn seen_ns(&self, node: crate::NodeId) -> u64 {
        region::seen_ns(&self.memory, node)
    }

    /// Who this acceptor is.
    pub const fn acceptor(&self) -> &Acceptor {
        &self.acceptor
    }

    /// The journal.
    pub const fn journal(&self) -> &J {
        &self.journal
    }

    /// The same, to change it.
    pub const fn journal_mut(&mut self) -> &mut J {
        &mut self.journal
    }

    /// What survives what.
    pub const fn durability(&self) -> Durability {
        self.durability
    }

    /// How often what happened.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::region::{Birth, Layout, Region};
    use crate::sync::AtomicU64;
    use crate::{Epoch, NodeId};

    /// A journal whose queue may be full, and that flushes nothing.
    #[derive(Default)]
    struct Queue {
        is_full: bool,
        appended: u64,
    }

    impl Journal for Queue {
        fn append(&mut self, _: &[u8], _: &[u8]) -> Option<u64> {
            self.appended += u64::from(!self.is_full);
            (!self.is_full).then_some(self.appended)
        }

        fn has_room(&self, _: usize) -> bool {
            true
        }

        fn flushed(&self) -> u64 {
            0
        }
    }

    const LEASE_NS: u64 = 1_000;

    fn local(journal: Queue) -> Local<Region<Vec<AtomicU64>>, Queue> {
        let layout = Layout::new(1, 4, 64).expect("valid layout");
        let birth = Birth {
            cluster: 1,
            node: NodeId(9),
            nonce: 5,
            boot: 6,
        };
        let words: Vec<_> = (0..layout.words()).map(|_| AtomicU64::new(0)).collect();
        let region = Region::create(words, layout, birth, Epoch(1), LEASE_NS).expect("blank");
        let acceptor = Acceptor {
            node: NodeId(9),
            incarnation: birth.incarnation(),
            layout,
        };
        Local::new(acceptor, region, journal, Durability::Sync)
    }

    fn request(kind: Kind) -> Header {
        let leader = NodeId(2);
        Header {
            ballot: Ballot::new(1, leader),
            slot: Slot(u64::from(kind == Kind::Accept)),
            epoch: Epoch(1),
            ..Header::new(kind, GroupId(0), leader)
        }
    }

    #[test]
    fn promises_and_votes_are_journalled_and_wait_for_their_flush() {
        let mut local = local(Queue::default());
        local.step(0, Asker::Own, &request(Kind::Read), &[]);
        for (count, kind) in [(1, Kind::Prepare), (2, Kind::Accept), (3, Kind::Accept)] {
            let later = local.step(LEASE_NS, Asker::Own, &request(kind), &[]);
            assert!(later.is_none());
            assert_eq!(local.journal_mut().appended, count, "{kind:?}");
        }
        assert!(local.holds_replies() && local.released().is_none());
    }

    #[test]
    fn after_a_restart_nobody_is_promised_anything_while_a_lease_may_run() {
        let mut local = local(Queue::default());
        let promised = |local: &Local<Region<Vec<AtomicU64>>, Queue>| {
            let view = local.view(GroupId(0));
            view.map(|view| view.promised)
        };
        for now_ns in [5, 5 + LEASE_NS - 1] {
            local.step(now_ns, Asker::Own, &request(Kind::Prepare), &[]);
            assert_eq!(promised(&local), Some(Ballot::NONE));
        }
        local.step(5 + LEASE_NS, Asker::Own, &request(Kind::Prepare), &[]);
        assert_eq!(promised(&local), Some(Ballot::new(1, NodeId(2))));
    }

    #[test]
    fn a_decided_record_that_a_full_journal_refuses_is_tried_again_later() {
        let mut local = local(Queue {
            is_full: true,
            ..Queue::default()
        });
        local.step(0, Asker::Own, &request(Kind::Decide), &[]);
        assert_eq!(local.flush_decides(1), DECIDE_PATIENCE_NS);
        let late = DECIDE_PATIENCE_NS * 3;
        assert_eq!(local.flush_decides(late), late + DECIDE_PATIENCE_NS);
        local.journal_mut().is_full = false;
        assert_eq!(local.flush_decides(late), u64::MAX);
    }

    #[test]
    fn a_vote_that_the_ring_holds_beyond_the_last_window_is_journalled_again() {
        let mut local = local(Queue::default());
        // The window of four has moved on, and the slots that share an entry with the first were
        // missed.
        for slot in [1, 2, 6, 7] {
            let decide = Header {
                slot: Slot(slot),
                vote_ballot: Ballot(1),
                watermark: slot,
                ..request(Kind::Decide)
            };
            local.step(0, Asker::Own, &decide, &[]);
            let accept = Header {
                slot: Slot(slot),
                ..request(Kind::Accept)
            };
            local.step(0, Asker::Own, &accept, &[]);
        }
        assert_eq!(
            local.view(GroupId(0)).map(|view| view.highest),
            Some(Slot(7))
        );
        local.journal_mut().appended = 0;
        assert_eq!(local.journal_again(GroupId(0), Slot::NONE), Ok(()));
        // Three votes (six has overwritten two) and the checkpoint's two records.
        assert_eq!(local.journal_mut().appended, 3 + 2);
    }
}
