//! The acceptor: a pure step over a region.
//!
//! Multi-Paxos acceptor (Lamport 2001) whose promise covers the whole log of a group. Several
//! cores, or a host and its kernel, may step one region at once: a record's sequence word is taken
//! by one compare-exchange and never waited for; if it is taken, the packet is dropped and the
//! leader asks again. `docs/protocol.md`, "Concurrency", has the argument for the order of the
//! accesses below; each comment that says *before* names an order that the argument needs.

use crate::memory::{Memory, Payload, lock, publish, published, raise, release, spare};
use crate::region::{Layout, entry, group};
use crate::simulation::{Mutation, linger, mutated};
use crate::wire::{Flags, Header, Kind};
use crate::{Ballot, Epoch, Incarnation, NodeId, Slot};

/// Who answers, and over what layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Acceptor {
    /// The node that this acceptor is.
    pub node: NodeId,
    /// The life of its memory.
    pub incarnation: Incarnation,
    /// Where its region keeps things.
    pub layout: Layout,
}

/// What the answer claims of the region: what `sync` durability must have on disk before it leaves.
///
/// A repeated request is answered with the effect of the first, which may still wait for its
/// flush. Replaying a journal keeps the first of two votes of one ballot, as the step does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Effect {
    /// Nothing that a later answer could contradict. A Vote that answers Read may tell of a vote
    /// whose flush is pending: whoever counts such votes holds the answer behind the journal.
    None,
    /// The promise of the request's ballot stands.
    Promised,
    /// The vote in the request's ballot stands.
    Voted,
    /// The decided record, the trim or the lease moved.
    Decided,
}

/// What came of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Answer with this header; if its length is not zero, the value was put into the payload.
    Reply(Header, Effect),
    /// Taken, and no answer was asked for.
    Silent(Effect),
    /// Dropped and to be counted: the sender asks again, or should not have asked.
    Dropped(Drop),
}

/// Why a request was dropped. The discriminant indexes counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Drop {
    /// Not a request to an acceptor.
    NotARequest = 0,
    /// No such group here.
    Group = 1,
    /// Another step holds the record's sequence word, or kept raising a word.
    Busy = 2,
    /// Meant for another life of this memory.
    Incarnation = 3,
    /// From a membership older than the group's.
    Epoch = 4,
    /// The group is sealed.
    Sealed = 5,
    /// The fields contradict each other.
    Inconsistent = 6,
}

impl Drop {
    /// How many reasons there are.
    pub const COUNT: usize = 7;
    /// Every reason, in the order of the discriminants.
    pub const ALL: [Self; Self::COUNT] = [
        Self::NotARequest,
        Self::Group,
        Self::Busy,
        Self::Incarnation,
        Self::Epoch,
        Self::Sealed,
        Self::Inconsistent,
    ];

    /// A stable name for metrics and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotARequest => "not_a_request",
            Self::Group => "group",
            Self::Busy => "busy",
            Self::Incarnation => "incarnation",
            Self::Epoch => "epoch",
            Self::Sealed => "sealed",
            Self::Inconsistent => "inconsistent",
        }
    }
}

/// Words of a cache line, as most machines have them.
const LINE_WORDS: usize = 8;

/// Slots above this are refused, so that no sum of a slot and a window overflows.
pub const MAX_SLOT: u64 = 1 << 62;

impl Acceptor {
    /// Steps the region with one request. `now_ns` is the machine's monotonic clock.
    ///
    /// The request's value is read from `payload`; the value of a Vote is put there.
    #[inline(always)]
    pub fn step<M: Memory, P: Payload>(
        &self,
        memory: &M,
        now_ns: u64,
        request: &Header,
        payload: &mut P,
    ) -> Step {
        if request.incarnation != Incarnation::ANY
            && request.incarnation != self.incarnation
            && !mutated(Mutation::ForeignRequestServed)
        {
            return Step::Dropped(Drop::Incarnation);
        }
        let Some(at) = memory.group(request.group) else {
            return Step::Dropped(Drop::Group);
        };
        let state = memory.load(at, group::STATE);
        if state & 0xffff_ffff != group::ACTIVE && !mutated(Mutation::SealedServed) {
            return Step::Dropped(Drop::Sealed);
        }
        if request.epoch < Epoch((state >> 32) as u32) && !mutated(Mutation::OldEpochServed) {
            return Step::Dropped(Drop::Epoch);
        }
        let call = Call {
            acceptor: self,
            memory,
            at,
            request,
        };
        match request.kind {
            Kind::Prepare | Kind::Fetch | Kind::Accept | Kind::Decide
                if request.ballot == Ballot::NONE
                    || request.sender == NodeId::NONE
                    || request.ballot.node() != request.sender
                    || request.slot.0 > MAX_SLOT =>
            {
                Step::Dropped(Drop::Inconsistent)
            }
            Kind::Prepare => call.prepare(now_ns),
            Kind::Fetch => call.fetch(payload),
            Kind::Accept => call.accept(payload),
            Kind::Decide => call.decide(now_ns),
            Kind::Read => call.read(payload),
            _ => Step::Dropped(Drop::NotARequest),
        }
    }
}

struct Call<'a, M: Memory> {
    acceptor: &'a Acceptor,
    memory: &'a M,
    at: M::At,
    request: &'a Header,
}

/// A ring entry whose sequence word is held.
struct Held<A> {
    at: A,
    sequence: u64,
    slot: u64,
    ballot: u64,
    body: usize,
    /// What a defect read before the word was held.
    early_promised: Option<u64>,
    early_trim: Option<u64>,
}

impl<M: Memory> Call<'_, M> {
    #[inline(always)]
    fn reply(&self, kind: Kind) -> Header {
        Header {
            kind,
            sender: self.acceptor.node,
            incarnation: self.acceptor.incarnation,
            vote_ballot: Ballot::NONE,
            watermark: 0,
            length: 0,
            flags: Flags(0),
            tag: 0,
            ..*self.request
        }
    }

    /// The sealed promise stays here: a leader that heard of it would look for a higher ballot.
    #[inline(always)]
    fn nack(&self, promised: u64) -> Step {
        if promised == Ballot::SEALED.0 {
            return Step::Dropped(Drop::Sealed);
        }
        let header = Header {
            vote_ballot: Ballot(promised),
            ..self.reply(Kind::Nack)
        };
        Step::Reply(header, Effect::None)
    }

    #[inline(always)]
    fn outside(&self, trim: u64) -> Step {
        let header = Header {
            watermark: trim,
            ..self.reply(Kind::Outside)
        };
        Step::Reply(header, Effect::None)
    }

    #[inline(always)]
    fn load(&self, word: usize) -> u64 {
        self.memory.load(self.at, word)
    }

    /// A word of the group that `mutation` reads here instead of later.
    #[inline(always)]
    fn early(&self, mutation: Mutation, word: usize) -> Option<u64> {
        mutated(mutation).then(|| {
            let value = self.load(word);
            linger(value);
            value
        })
    }

    /// Phase 1b. The group's lock excludes Decide: without it one acceptor can support a lease and
    /// promise away from it at once.
    #[inline(always)]
    fn prepare(&self, now_ns: u64) -> Step {
        let sequence = match lock(self.memory, self.at, group::LOCK) {
            Some(sequence) => sequence,
            None if mutated(Mutation::PrepareUnlocked) => self.load(group::LOCK) & !1,
            None => return Step::Dropped(Drop::Busy),
        };
        if mutated(Mutation::PrepareUnlocked) {
            release(self.memory, self.at, group::LOCK, sequence);
        }
        let step = self.promise(now_ns, sequence);
        if !mutated(Mutation::PrepareUnlocked) {
            release(self.memory, self.at, group::LOCK, sequence);
        }
        step
    }

    #[inline(always)]
    fn promise(&self, now_ns: u64, sequence: u64) -> Step {
        let ballot = self.request.ballot;
        let promised = self.load(group::PROMISED);
        if ballot.0 < promised {
            return self.nack(promised);
        }
        let body = group::BODIES + published(sequence) * group::BODY_WORDS;
        let until = self.load(body + group::LEASE_UNTIL);
        let holder = Ballot(self.load(body + group::LEASE_BALLOT)).node();
        if until > now_ns && holder != ballot.node() && !mutated(Mutation::LeaseIgnored) {
            let header = Header {
                vote_ballot: Ballot(promised),
                watermark: until - now_ns,
                flags: Flags::LEASE,
                ..self.reply(Kind::Nack)
            };
            return Step::Reply(header, Effect::None);
        }
        let early_highest = self.early(Mutation::HighestReadBeforePromise, group::HIGHEST);
        if mutated(Mutation::PromiseStored) {
            self.memory.store(self.at, group::PROMISED, ballot.0);
        }
        match raise(self.memory, self.at, group::PROMISED, ballot.0) {
            None => return Step::Dropped(Drop::Busy),
            Some(now) if now > ballot.0 => return self.nack(now),
            Some(_) => {}
        }
        // Promised was raised *before* highest is read: an Accept of a lower ballot has either
        // raised highest by now, so that the new leader fetches its slot, or will see the promise.
        let header = Header {
            watermark: self.load(group::TRIM),
            slot: Slot(early_highest.unwrap_or_else(|| self.load(group::HIGHEST))),
            ..self.reply(Kind::Promise)
        };
        Step::Reply(header, Effect::Promised)
    }

    /// Takes the sequence word of the ring entry of the request's slot.
    #[inline(always)]
    fn hold(&self) -> Option<Held<M::At>> {
        let early_promised = self.early(Mutation::PromisedReadBeforeLock, group::PROMISED);
        let early_trim = self.early(Mutation::TrimReadBeforeLock, group::TRIM);
        let window = self.load(group::WINDOW);
        let index = self
            .load(group::BASE)
            .wrapping_add(self.request.slot.0 & window.wrapping_sub(1));
        let at = self.memory.entry(index)?;
        if self.request.kind == Kind::Accept {
            // A ring is larger than caches, and nothing is fetched past a locked instruction: what
            // stands in either body is asked for before the entry is taken.
            let (first, second) = (self.acceptor.layout.body(0), self.acceptor.layout.body(1));
            for word in [first + LINE_WORDS, second, second + LINE_WORDS] {
                self.memory.touch(at, word);
            }
        }
        let sequence = if self.peeks() {
            self.memory.load(at, entry::LOCK) & !1
        } else {
            lock(self.memory, at, entry::LOCK)?
        };
        let body = self.acceptor.layout.body(published(sequence));
        Some(Held {
            at,
            sequence,
            slot: self.memory.load(at, body + entry::SLOT),
            ballot: self.memory.load(at, body + entry::BALLOT),
            body,
            early_promised,
            early_trim,
        })
    }

    #[inline(always)]
    fn let_go(&self, held: &Held<M::At>) {
        if !self.peeks() {
            release(self.memory, held.at, entry::LOCK, held.sequence);
        }
    }

    /// Whether a defect steps the entry without its lock.
    #[inline(always)]
    fn peeks(&self) -> bool {
        mutated(Mutation::EntryUnlocked)
            || mutated(Mutation::FetchUnlocked) && self.request.kind == Kind::Fetch
    }

    /// Phase 1: what was voted in this slot? The entry's lock is taken even to read, so that an
    /// Accept that has already seen the old promise is either visible or will see the new one.
    #[inline(always)]
    fn fetch<P: Payload>(&self, payload: &mut P) -> Step {
        let Some(held) = self.hold() else {
            if mutated(Mutation::TornIsEmpty) {
                return Step::Reply(self.reply(Kind::Empty), Effect::None);
            }
            return Step::Dropped(Drop::Busy);
        };
        let promised = self.load(group::PROMISED);
        let is_promised = self.request.ballot.0 == promised;
        let step = if is_promised || mutated(Mutation::FetchUnpromised) {
            let trim = held.early_trim.unwrap_or_else(|| self.load(group::TRIM));
            self.vote(&held, payload, trim, trim)
        } else {
            self.nack(promised)
        };
        self.let_go(&held);
        step
    }

    /// Reads a vote with promised (as ballot) and highest (as watermark), claiming nothing.
    #[inline(always)]
    fn read<P: Payload>(&self, payload: &mut P) -> Step {
        let Some(held) = self.hold() else {
            return Step::Dropped(Drop::Busy);
        };
        let trim = self.load(group::TRIM);
        let highest = self.load(group::HIGHEST);
        let step = match (
            self.vote(&held, payload, trim, highest),
            Ballot(self.load(group::PROMISED)),
        ) {
            (_, Ballot::SEALED) => Step::Dropped(Drop::Sealed),
            (Step::Reply(header, effect), ballot) => {
                Step::Reply(Header { ballot, ..header }, effect)
            }
            (other, _) => other,
        };
        self.let_go(&held);
        step
    }

    #[inline(always)]
    fn vote<P: Payload>(
        &self,
        held: &Held<M::At>,
        payload: &mut P,
        trim: u64,
        watermark: u64,
    ) -> Step {
        let slot = self.request.slot.0;
        let is_trimmed = slot < trim && !(slot != 0 && mutated(Mutation::TrimmedIsServed));
        if is_trimmed || held.slot > slot && !mutated(Mutation::OverwrittenIsEmpty) {
            return self.outside(trim);
        }
        if held.slot != slot || slot == 0 {
            return Step::Reply(
                Header {
                    watermark,
                    ..self.reply(Kind::Empty)
                },
                Effect::None,
            );
        }
        let limit = self.acceptor.layout.value_bytes() as u64;
        let length = self
            .memory
            .load(held.at, held.body + entry::LENGTH)
            .min(limit);
        if payload.has_room(length as usize) && self.show(held, payload, length as usize).is_none()
        {
            return Step::Dropped(Drop::Inconsistent);
        }
        let header = Header {
            vote_ballot: Ballot(held.ballot),
            watermark,
            length: length as u16,
            ..self.reply(Kind::Vote)
        };
        Step::Reply(header, Effect::None)
    }

    /// Puts a vote's value into the reply.
    #[inline(always)]
    fn show<P: Payload>(&self, held: &Held<M::At>, payload: &mut P, length: usize) -> Option<()> {
        let value = held.body + entry::VALUE;
        let (words, rest) = (length / 8, length % 8);
        let mut index = 0;
        // What varies stands on the left: see `auth::tag_of_words`.
        while words > index {
            payload.put(index, 8, self.memory.load(held.at, value + index))?;
            index += 1;
        }
        if rest != 0 {
            payload.put(words, rest, self.memory.load(held.at, value + words))?;
        }
        Some(())
    }

    /// Writes the request's value into a body.
    #[inline(always)]
    fn store_value<P: Payload>(&self, held: &Held<M::At>, body: usize, payload: &P) -> Option<()> {
        let value = body + entry::VALUE;
        let length = usize::from(self.request.length);
        let (words, rest) = (length / 8, length % 8);
        let mut index = 0;
        while words > index {
            let word = payload.word(index, 8)?;
            self.memory.store(held.at, value + index, word);
            index += 1;
        }
        if rest != 0 {
            let word = payload.word(words, rest)?;
            self.memory.store(held.at, value + words, word);
        }
        Some(())
    }

    /// Phase 2a: vote for the value unless a higher ballot was promised.
    #[inline(always)]
    fn accept<P: Payload>(&self, payload: &P) -> Step {
        if usize::from(self.request.length) > self.acceptor.layout.value_bytes()
            || self.request.slot == Slot::NONE
        {
            return Step::Dropped(Drop::Inconsistent);
        }
        let Some(held) = self.hold() else {
            return Step::Dropped(Drop::Busy);
        };
        match self.store_vote(&held, payload) {
            // The releasing exchange publishes the new body; the value was stored *before* it, and
            // the reply exists only after it.
            None => {
                if mutated(Mutation::VoteNotStored) {
                    self.let_go(&held);
                } else {
                    publish(self.memory, held.at, entry::LOCK, held.sequence);
                }
                if mutated(Mutation::PromisedRaisedLate) {
                    raise(self.memory, self.at, group::PROMISED, self.request.ballot.0);
                }
                Step::Reply(self.reply(Kind::Accepted), Effect::Voted)
            }
            Some(step) => {
                self.let_go(&held);
                step
            }
        }
    }

    /// Writes the vote into the unpublished body, or says why there is nothing to publish.
    #[inline(always)]
    fn store_vote<P: Payload>(&self, held: &Held<M::At>, payload: &P) -> Option<Step> {
        let (slot, ballot) = (self.request.slot.0, self.request.ballot.0);
        let trim = self.load(group::TRIM);
        if slot < trim
            || slot - trim >= self.load(group::WINDOW) && !mutated(Mutation::KeptSlotOverwritten)
            || held.slot > slot
        {
            return Some(self.outside(trim));
        }
        let early_promised = held
            .early_promised
            .or_else(|| self.early(Mutation::PromisedReadBeforeHighest, group::PROMISED));
        // Highest is raised *before* promised is read: see `promise`.
        if !mutated(Mutation::HighestNotRaised)
            && raise(self.memory, self.at, group::HIGHEST, slot).is_none()
        {
            return Some(Step::Dropped(Drop::Busy));
        }
        let promised = early_promised.unwrap_or_else(|| self.load(group::PROMISED));
        let is_refused = ballot < promised && !mutated(Mutation::PromiseNotChecked)
            || ballot == promised && mutated(Mutation::EqualBallotRefused);
        if is_refused {
            return Some(self.nack(promised));
        }
        let is_repeated = held.ballot == ballot && !mutated(Mutation::EqualBallotOverwrites);
        if held.slot == slot && (held.ballot > ballot || is_repeated) {
            if held.ballot > ballot {
                return Some(self.nack(held.ballot));
            }
            // The vote of this very ballot is answered again, never stored again: a second value
            // under one ballot would be a forger's.
            return Some(Step::Reply(self.reply(Kind::Accepted), Effect::Voted));
        }
        let body = self.acceptor.layout.body(spare(held.sequence));
        self.memory.store(held.at, body + entry::SLOT, slot);
        self.memory.store(held.at, body + entry::BALLOT, ballot);
        self.memory
            .store(held.at, body + entry::LENGTH, self.request.length.into());
        if self.store_value(held, body, payload).is_none() {
            return Some(Step::Dropped(Drop::Inconsistent));
        }
        // Promised is raised *before* the vote is published, so that no vote is above the promise. It
        // only rises: where it was found to be no lower, there is nothing to raise, and nothing is
        // read behind it that would need the barrier.
        let is_raised_here = promised < ballot
            && !mutated(Mutation::VotePromisesNothing)
            && !mutated(Mutation::PromisedRaisedLate);
        if is_raised_here && raise(self.memory, self.at, group::PROMISED, ballot).is_none() {
            return Some(Step::Dropped(Drop::Busy));
        }
        None
    }

    /// Takes note of what is chosen, of the trim, and of a live leader.
    #[inline(always)]
    fn decide(&self, now_ns: u64) -> Step {
        let (upto, trim) = (self.request.slot.0, self.request.watermark);
        if trim > upto.wrapping_add(1) || self.request.vote_ballot.0 > upto.wrapping_add(1) {
            return Step::Dropped(Drop::Inconsistent);
        }
        let Some(sequence) = lock(self.memory, self.at, group::LOCK) else {
            return Step::Dropped(Drop::Busy);
        };
        let step = self.record(now_ns, sequence, upto, trim);
        match step {
            Step::Reply(_, Effect::Decided) | Step::Silent(Effect::Decided) => {
                publish(self.memory, self.at, group::LOCK, sequence);
            }
            _ => release(self.memory, self.at, group::LOCK, sequence),
        }
        step
    }

    #[inline(always)]
    fn record(&self, now_ns: u64, sequence: u64, upto: u64, trim: u64) -> Step {
        let ballot = self.request.ballot;
        let wants_ack = self.request.flags.has(Flags::ACK_WANTED);
        let raised = if mutated(Mutation::DecidePromisesNothing) {
            Some(self.load(group::PROMISED))
        } else {
            raise(self.memory, self.at, group::PROMISED, ballot.0)
        };
        let Some(promised) = raised else {
            return Step::Dropped(Drop::Busy);
        };
        if promised > ballot.0 && !mutated(Mutation::DecidedByOldBallot) {
            return if wants_ack || promised == Ballot::SEALED.0 {
                self.nack(promised)
            } else {
                Step::Silent(Effect::None)
            };
        }
        let old = group::BODIES + published(sequence) * group::BODY_WORDS;
        let new = group::BODIES + spare(sequence) * group::BODY_WORDS;
        let (mut from, mut last) = (self.request.vote_ballot.0, upto);
        let recorded = self.load(old + group::BALLOT);
        if recorded == ballot.0 || recorded != Ballot::NONE.0 && mutated(Mutation::DecidedMixed) {
            from = self.load(old + group::FROM);
            last = last.max(self.load(old + group::UPTO));
        }
        let mut lease_ballot = self.load(old + group::LEASE_BALLOT);
        let mut lease_until = self.load(old + group::LEASE_UNTIL);
        if self.request.flags.has(Flags::LEASE) {
            let until = now_ns.saturating_add(self.load(group::LEASE_NS));
            // A step that read the clock may come to the lock behind one that read it later, whose
            // lease has been acknowledged.
            let is_renewed = lease_ballot == ballot.0;
            lease_until = if is_renewed {
                lease_until.max(until)
            } else {
                until
            };
            lease_ballot = ballot.0;
        }
        let drops = mutated(Mutation::LeaseDropped) && !self.request.flags.has(Flags::LEASE);
        if self.request.flags.has(Flags::RELEASE) || drops {
            lease_until = 0;
        }
        self.memory.store(self.at, new + group::BALLOT, ballot.0);
        self.memory.store(self.at, new + group::FROM, from);
        self.memory.store(self.at, new + group::UPTO, last);
        self.memory
            .store(self.at, new + group::LEASE_BALLOT, lease_ballot);
        self.memory
            .store(self.at, new + group::LEASE_UNTIL, lease_until);
        if mutated(Mutation::TrimStored) {
            self.memory.store(self.at, group::TRIM, trim);
        }
        if raise(self.memory, self.at, group::TRIM, trim).is_none() {
            return Step::Dropped(Drop::Busy);
        }
        // Also by the other groups, under other locks.
        if let Some(peer) = self.memory.peer(ballot.node())
            && raise(self.memory, peer, 0, now_ns).is_none()
        {
            return Step::Dropped(Drop::Busy);
        }
        if wants_ack {
            return Step::Reply(self.reply(Kind::Ack), Effect::Decided);
        }
        Step::Silent(Effect::Decided)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::memory::Buffers;
    use crate::region::{Birth, Region};
    use crate::sync::AtomicU64;
    use crate::{Epoch, GroupId};
    use proptest::prelude::*;
    use std::vec::Vec;

    const GROUP: GroupId = GroupId(0);
    const LEASE_NS: u64 = 1_000;

    struct World {
        acceptor: Acceptor,
        region: Region<Vec<AtomicU64>>,
        out: [u8; 64],
        now_ns: u64,
    }

    fn world() -> World {
        let layout = Layout::new(1, 4, 64).expect("valid layout");
        let birth = Birth {
            cluster: 1,
            node: NodeId(9),
            nonce: 5,
            boot: 6,
        };
        let words = (0..layout.words()).map(|_| AtomicU64::new(0)).collect();
        World {
            acceptor: Acceptor {
                node: NodeId(9),
                incarnation: birth.incarnation(),
                layout,
            },
            region: Region::create(words, layout, birth, Epoch(1), LEASE_NS).expect("blank"),
            out: [0; 64],
            now_ns: 10,
        }
    }

    fn ballot(round: u64, node: u16) -> Ballot {
        Ballot::new(round, NodeId(node))
    }

    impl World {
        fn send(&mut self, header: Header, value: &[u8]) -> Step {
            let header = Header {
                epoch: Epoch(1),
                length: u16::try_from(value.len()).expect("short"),
                sender: header.ballot.node(),
                ..header
            };
            let mut payload = Buffers {
                request: value,
                reply: &mut self.out,
            };
            self.acceptor
                .step(&self.region, self.now_ns, &header, &mut payload)
        }

        fn reply(&mut self, kind: Kind, ballot: Ballot, slot: u64, value: &[u8]) -> Header {
            let header = Header {
                ballot,
                slot: Slot(slot),
                ..Header::new(kind, GROUP, NodeId(0))
            };
            match self.send(header, value) {
                Step::Reply(header, _) => header,
                other => panic!("no reply but {other:?}"),
            }
        }

        fn decide(
            &mut self,
            ballot: Ballot,
            from: u64,
            upto: u64,
            trim: u64,
            flags: Flags,
        ) -> Step {
            self.send(
                Header {
                    ballot,
                    slot: Slot(upto),
                    vote_ballot: Ballot(from),
                    watermark: trim,
                    flags,
                    ..Header::new(Kind::Decide, GROUP, NodeId(0))
                },
                &[],
            )
        }
    }

    #[test]
    fn a_promise_silences_lower_ballots() {
        let mut w = world();
        assert_eq!(
            w.reply(Kind::Prepare, ballot(2, 1), 0, b"").kind,
            Kind::Promise
        );
        for kind in [Kind::Prepare, Kind::Accept, Kind::Fetch] {
            let reply = w.reply(kind, ballot(1, 2), 1, b"");
            assert_eq!((reply.kind, reply.vote_ballot), (Kind::Nack, ballot(2, 1)));
        }
    }

    #[test]
    fn an_equal_ballot_is_answered_again_but_stored_once() {
        let mut w = world();
        let b = ballot(1, 1);
        assert_eq!(w.reply(Kind::Accept, b, 1, b"first").kind, Kind::Accepted);
        assert_eq!(w.reply(Kind::Accept, b, 1, b"other").kind, Kind::Accepted);
        let vote = w.reply(Kind::Fetch, b, 1, b"");
        assert_eq!(
            (vote.kind, vote.length, vote.vote_ballot),
            (Kind::Vote, 5, b)
        );
        assert_eq!(&w.out[..5], b"first");
    }

    #[test]
    fn an_accept_promises_its_ballot() {
        let mut w = world();
        w.reply(Kind::Accept, ballot(3, 1), 1, b"v");
        assert_eq!(
            w.reply(Kind::Prepare, ballot(2, 1), 0, b"").kind,
            Kind::Nack
        );
        let promise = w.reply(Kind::Prepare, ballot(4, 2), 0, b"");
        assert_eq!(
            (promise.kind, promise.slot, promise.watermark),
            (Kind::Promise, Slot(1), 1)
        );
    }

    #[test]
    fn the_window_moves_with_trim_and_only_then() {
        let mut w = world();
        let b = ballot(1, 1);
        for slot in 1..=4 {
            assert_eq!(w.reply(Kind::Accept, b, slot, b"v").kind, Kind::Accepted);
        }
        assert_eq!(w.reply(Kind::Accept, b, 5, b"v").kind, Kind::Outside);
        w.decide(b, 1, 4, 2, Flags(0));
        assert_eq!(w.reply(Kind::Fetch, b, 1, b"").kind, Kind::Outside);
        assert_eq!(w.reply(Kind::Accept, b, 5, b"v").kind, Kind::Accepted);
        assert_eq!(w.reply(Kind::Accept, b, 1, b"v").kind, Kind::Outside);
        assert_eq!(w.reply(Kind::Fetch, b, 1, b"").kind, Kind::Outside);
        assert_eq!(w.reply(Kind::Fetch, b, 2, b"").kind, Kind::Vote);
        assert_eq!(w.reply(Kind::Fetch, b, 6, b"").kind, Kind::Empty);
    }

    #[test]
    fn an_entry_that_holds_a_later_slot_is_outside_whatever_the_trim_says() {
        let mut w = world();
        let b = ballot(1, 1);
        w.reply(Kind::Accept, b, 1, b"v");
        let at = w.region.entry(1).expect("entry 1");
        let body = w
            .acceptor
            .layout
            .body(published(w.region.load(at, entry::LOCK)));
        w.region.exchange(at, body + entry::SLOT, 5);
        let outside = w.reply(Kind::Fetch, b, 1, b"");
        assert_eq!((outside.kind, outside.watermark), (Kind::Outside, 1));
    }

    #[test]
    fn the_decided_record_never_mixes_ballots() {
        let mut w = world();
        w.decide(ballot(1, 1), 1, 3, 1, Flags(0));
        w.decide(ballot(2, 2), 2, 2, 1, Flags(0));
        w.decide(ballot(1, 1), 1, 4, 1, Flags(0));
        let decided = crate::region::view(&w.region, GROUP)
            .expect("unlocked")
            .decided;
        assert_eq!(
            (decided.ballot, decided.from, decided.upto),
            (ballot(2, 2), Slot(2), Slot(2))
        );
        w.decide(ballot(2, 2), 3, 1, 1, Flags(0));
        let again = crate::region::view(&w.region, GROUP)
            .expect("unlocked")
            .decided;
        assert_eq!(
            again, decided,
            "an equal ballot keeps from and the larger upto"
        );
    }

    #[test]
    fn a_lease_refuses_others_until_it_runs_out_or_is_released() {
        let mut w = world();
        w.decide(ballot(1, 1), 1, 0, 1, Flags::LEASE);
        let nack = w.reply(Kind::Prepare, ballot(2, 2), 0, b"");
        assert_eq!(
            (nack.kind, nack.flags, nack.watermark),
            (Kind::Nack, Flags::LEASE, LEASE_NS)
        );
        assert_eq!(
            w.reply(Kind::Prepare, ballot(2, 1), 0, b"").kind,
            Kind::Promise
        );
        w.now_ns += LEASE_NS;
        assert_eq!(
            w.reply(Kind::Prepare, ballot(3, 2), 0, b"").kind,
            Kind::Promise
        );
        w.decide(ballot(3, 2), 1, 0, 1, Flags::LEASE);
        w.decide(ballot(3, 2), 1, 0, 1, Flags::RELEASE);
        assert_eq!(
            w.reply(Kind::Prepare, ballot(4, 1), 0, b"").kind,
            Kind::Promise
        );
    }

    #[test]
    fn a_decide_that_was_delayed_shortens_no_lease() {
        let mut w = world();
        let (early, late) = (w.now_ns, w.now_ns + LEASE_NS / 2);
        for now_ns in [late, early] {
            w.now_ns = now_ns;
            w.decide(ballot(1, 1), 1, 0, 1, Flags::LEASE);
        }
        let nack = w.reply(Kind::Prepare, ballot(2, 2), 0, b"");
        assert_eq!(nack.watermark, late + LEASE_NS - early);
        assert_eq!(crate::region::seen_ns(&w.region, NodeId(1)), late);
        // It is the ballot's own: another's begins anew.
        w.decide(ballot(2, 1), 1, 0, 1, Flags::LEASE);
        let nack = w.reply(Kind::Prepare, ballot(3, 2), 0, b"");
        assert_eq!(nack.watermark, LEASE_NS);
        // Nothing is left of what was given back.
        w.decide(ballot(2, 1), 1, 0, 1, Flags::RELEASE);
        w.decide(ballot(2, 1), 1, 0, 1, Flags::LEASE);
        let nack = w.reply(Kind::Prepare, ballot(3, 2), 0, b"");
        assert_eq!(nack.watermark, LEASE_NS);
    }

    #[test]
    fn a_decide_that_asks_for_no_lease_leaves_the_lease_alone() {
        let mut w = world();
        w.decide(ballot(1, 1), 1, 0, 1, Flags::LEASE);
        w.decide(ballot(1, 1), 1, 1, 1, Flags(0));
        let nack = w.reply(Kind::Prepare, ballot(2, 2), 0, b"");
        assert_eq!((nack.kind, nack.flags), (Kind::Nack, Flags::LEASE));
    }

    #[test]
    fn a_sealed_group_is_not_stepped() {
        for kind in [Kind::Prepare, Kind::Accept, Kind::Fetch, Kind::Decide] {
            let mut w = world();
            let at = w.region.group(GROUP).expect("group 0");
            let sealed = group::SEALED | 1 << 32;
            w.region.exchange(at, group::STATE, sealed);
            let header = Header {
                ballot: ballot(1, 1),
                slot: Slot(1),
                ..Header::new(kind, GROUP, NodeId(0))
            };
            assert_eq!(w.send(header, &[]), Step::Dropped(Drop::Sealed), "{kind:?}");
        }
    }

    #[test]
    fn an_ack_is_the_answer_to_that_very_send() {
        let mut w = world();
        let header = Header {
            ballot: ballot(1, 1),
            flags: Flags::ACK_WANTED,
            nonce: 77,
            watermark: 1,
            ..Header::new(Kind::Decide, GROUP, NodeId(0))
        };
        let Step::Reply(ack, Effect::Decided) = w.send(header, &[]) else {
            panic!("no ack")
        };
        assert_eq!((ack.kind, ack.nonce, ack.epoch), (Kind::Ack, 77, Epoch(1)));
    }

    #[test]
    fn each_refusal_is_dropped_with_its_reason() {
        let mut w = world();
        let base = Header {
            ballot: ballot(1, 1),
            ..Header::new(Kind::Prepare, GROUP, NodeId(1))
        };
        let cases = [
            (
                Header {
                    incarnation: Incarnation(1),
                    epoch: Epoch(1),
                    ..base
                },
                Drop::Incarnation,
            ),
            (
                Header {
                    group: GroupId(7),
                    epoch: Epoch(1),
                    ..base
                },
                Drop::Group,
            ),
            (
                Header {
                    epoch: Epoch(0),
                    ..base
                },
                Drop::Epoch,
            ),
            (
                Header {
                    kind: Kind::Promise,
                    epoch: Epoch(1),
                    ..base
                },
                Drop::NotARequest,
            ),
            (
                Header {
                    sender: NodeId(2),
                    epoch: Epoch(1),
                    ..base
                },
                Drop::Inconsistent,
            ),
            (
                Header {
                    slot: Slot(u64::MAX),
                    epoch: Epoch(1),
                    ..base
                },
                Drop::Inconsistent,
            ),
        ];
        for (header, reason) in cases {
            let mut payload = Buffers {
                request: &[],
                reply: &mut w.out,
            };
            let step = w.acceptor.step(&w.region, 0, &header, &mut payload);
            assert_eq!(step, Step::Dropped(reason), "{header:?}");
        }
    }

    #[test]
    fn a_sealed_promise_is_never_spoken_of() {
        for kind in [Kind::Prepare, Kind::Accept, Kind::Fetch, Kind::Read] {
            let mut w = world();
            let at = w.region.group(GROUP).expect("group 0");
            w.region.exchange(at, group::PROMISED, Ballot::SEALED.0);
            let header = Header {
                ballot: ballot(1, 1),
                slot: Slot(1),
                ..Header::new(kind, GROUP, NodeId(0))
            };
            assert_eq!(w.send(header, &[]), Step::Dropped(Drop::Sealed), "{kind:?}");
        }
        let mut w = world();
        let at = w.region.group(GROUP).expect("group 0");
        w.region.exchange(at, group::PROMISED, Ballot::SEALED.0);
        let step = w.decide(ballot(1, 1), 1, 0, 1, Flags::ACK_WANTED);
        assert_eq!(step, Step::Dropped(Drop::Sealed));
    }

    /// Under `sync` the first answer may still wait for its flush when the second is asked for: an
    /// answer that skips the journal would acknowledge a vote that a crash can take back.
    #[test]
    fn an_answer_given_again_waits_for_the_journal_again() {
        let mut w = world();
        let header = Header {
            ballot: ballot(1, 1),
            slot: Slot(1),
            ..Header::new(Kind::Accept, GROUP, NodeId(0))
        };
        for _ in 0..2 {
            let Step::Reply(_, effect) = w.send(header, b"v") else {
                panic!("no reply")
            };
            assert_eq!(effect, Effect::Voted);
        }
        assert_eq!(w.reply(Kind::Fetch, ballot(1, 1), 1, b"").length, 1);
    }

    #[test]
    fn nobody_leads_nothing() {
        let mut w = world();
        let header = Header {
            ballot: ballot(1, 0),
            ..Header::new(Kind::Prepare, GROUP, NodeId(0))
        };
        assert_eq!(w.send(header, &[]), Step::Dropped(Drop::Inconsistent));
    }

    #[test]
    fn an_endless_lease_does_not_end_at_once() {
        let mut w = world();
        let at = w.region.group(GROUP).expect("group 0");
        w.region.exchange(at, group::LEASE_NS, u64::MAX);
        w.decide(ballot(1, 1), 1, 0, 1, Flags::LEASE);
        let nack = w.reply(Kind::Prepare, ballot(2, 2), 0, b"");
        assert_eq!((nack.kind, nack.flags), (Kind::Nack, Flags::LEASE));
    }

    #[test]
    fn a_sequence_word_that_wraps_publishes_as_before() {
        let mut w = world();
        let at = w.region.entry(1).expect("entry 1");
        // Bit 1 of the last even value is set, so that body 1 is published, and zero has body 0.
        w.region.exchange(at, entry::LOCK, u64::MAX - 1);
        for (round, value) in [(1, b"before"), (2, b"behind"), (3, b"beyond")] {
            let b = ballot(round, 1);
            assert_eq!(w.reply(Kind::Accept, b, 1, value).kind, Kind::Accepted);
            let vote = w.reply(Kind::Fetch, b, 1, b"");
            assert_eq!((vote.kind, vote.vote_ballot), (Kind::Vote, b));
            assert_eq!(&w.out[..6], value);
        }
        assert_eq!(w.region.load(at, entry::LOCK), 4);
    }

    #[test]
    fn no_slot_has_no_vote() {
        let w = world();
        let mut out = [0; 64];
        assert_eq!(
            crate::region::vote(&w.region, GROUP, Slot::NONE, 64, &mut out),
            None
        );
    }

    proptest! {
        /// A sequential model: whatever comes, promises never go back and a vote keeps its value.
        #[test]
        fn no_request_makes_the_step_panic_or_forget(
            requests in proptest::collection::vec(
                (
                    0usize..Kind::ALL.len(),
                    0u64..9,
                    any::<u64>(),
                    1u64..4,
                    1u16..3,
                    0u64..9,
                    any::<u16>(),
                    proptest::collection::vec(any::<u8>(), 0..70),
                ),
                0..60,
            ),
        ) {
            let mut w = world();
            let mut promised = Ballot::NONE;
            for (kind, slot, wild, round, node, watermark, flags, value) in requests {
                let header = Header {
                    ballot: ballot(round, node),
                    slot: Slot(if wild & 15 == 0 { wild } else { slot }),
                    vote_ballot: Ballot(slot),
                    watermark,
                    flags: Flags(flags & Flags::KNOWN.0),
                    ..Header::new(Kind::ALL[kind], GROUP, NodeId(0))
                };
                w.now_ns += 100;
                let _ = w.send(header, &value);
                let view = crate::region::view(&w.region, GROUP).expect("unlocked");
                prop_assert!(view.promised >= promised);
                promised = view.promised;
                prop_assert!(view.decided.ballot <= view.promised);
                prop_assert!(view.highest.0 < view.trim.0 + 4);
            }
        }
    }
}
