//! The leader of one group: phase 1 once per ballot, then a pipeline of phase-2 rounds.
//!
//! Multi-Paxos (Lamport 2001). Values are batches of client entries; a batch leaves as soon as
//! nothing smaller than a full value is under way (Nagle's rule), so one client waits for nothing
//! and many share a slot.

use crate::local::Durability;
use crate::quorum::{Electorate, Voters};
use crate::simulation::{Mutation, mutated};
use crate::wire::{Flags, Header, Kind};
use crate::{Ballot, GroupId, NodeId, Slot};
use alloc::collections::VecDeque;
use alloc::vec::Vec;

/// Most slots under way at once.
pub const MAX_IN_FLIGHT: usize = 1024;
/// Most values that wait for a slot.
pub const MAX_READY: usize = 1024;
/// Slots fetched at once in phase 1.
const FETCH_SLOTS: u64 = 64;
/// Packets sent again in one turn at the most.
const MAX_RESENT: usize = 64;
/// A leader counts one part of so many less of a lease than its acceptors do: an adjusted clock
/// runs at most 10 % too fast or too slow (adjtimex(2), `tick`), beside 500 ppm by its frequency, and
/// the holder's may be slow while an acceptor's is fast.
pub const MAX_DRIFT: u64 = 5;

/// Whom a leader's packet goes to. The packet goes to this node's own acceptor too, where that is
/// among them. Phase 1 also concerns the acceptors of earlier configurations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    /// Every member.
    All,
    /// The members that are not among these.
    AllBut(Voters),
    /// The members among these.
    Only(Voters),
}

/// A packet that the leader wants sent.
pub struct Order<'a> {
    /// Its receivers.
    pub to: To,
    /// Its header; incarnation, sender and epoch are filled in on sending.
    pub header: Header,
    /// Its value.
    pub value: &'a [u8],
}

/// [`Leader::send`] or [`Leader::announce`].
pub type Sending = fn(&mut Leader, u64, &Electorate, &mut dyn FnMut(Order<'_>));

/// How long a leader waits, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct LeaderTiming {
    /// Between two Decides when nothing was decided for long.
    pub heartbeat_ns: u64,
    /// Between two Decides when something was, and a little longer each time from then on.
    pub decide_ns: u64,
    /// Before a request is sent again, at first; doubled up to 32 times that.
    pub resend_ns: u64,
}

impl LeaderTiming {
    /// The times of a leader whose acceptors are as durable as this.
    pub const fn of(heartbeat_ns: u64, decide_ns: u64, durability: Durability) -> Self {
        const MS: u64 = 1_000_000;
        Self {
            heartbeat_ns,
            decide_ns: if decide_ns < heartbeat_ns {
                decide_ns
            } else {
                heartbeat_ns
            },
            // A flush may take its time; a datagram that is lost is lost at once.
            resend_ns: match durability {
                Durability::Volatile | Durability::Async => 5 * MS,
                Durability::Sync => 20 * MS,
            },
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Hash)]
struct InFlight {
    value: Vec<u8>,
    voters: Voters,
    sent_ns: u64,
    tries: u32,
    /// Fewer bytes than a value holds, so that others may wait to join the next.
    partial: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
struct Fetched {
    answered: Voters,
    ballot: Ballot,
    value: Vec<u8>,
    sent_ns: u64,
}

impl Fetched {
    /// Whether a vote in `ballot` counts for more than what was found before.
    fn yields_to(&self, ballot: Ballot) -> bool {
        if mutated(Mutation::LowestVoteAdopted) && self.ballot != Ballot::NONE {
            return ballot < self.ballot;
        }
        ballot > self.ballot
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Hash)]
struct Phase1 {
    promised: Voters,
    trims: Slot,
    highest: Slot,
    highs: Vec<(usize, Slot)>,
    sent_ns: u64,
    tries: u32,
    /// When another's lease, for which an acceptor refused, will have run out.
    lease_ends_ns: u64,
    /// A quorum has promised.
    complete: bool,
    /// The first slot still to be fetched, and those under way before it.
    next: Slot,
    fetched: VecDeque<Fetched>,
}

impl Phase1 {
    /// When Prepare is sent, again if it was sent before.
    fn due_ns(&self, resend_ns: u64) -> u64 {
        match self.sent_ns {
            0 => 0,
            sent_ns => (sent_ns + (resend_ns << self.tries.min(5))).min(self.lease_ends_ns),
        }
    }
}

/// What a packet did to the leader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard {
    /// Nothing to do.
    Fine,
    /// A higher ballot is about: the leader must step down.
    Superseded(Ballot),
    /// Slots below this one must be learned from a replica before phase 1 can end.
    Behind(Slot),
}

/// A ballot's leader, from its Prepare on.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Leader {
    ballot: Ballot,
    group: GroupId,
    window: u64,
    value_bytes: usize,
    timing: LeaderTiming,
    /// How long a lease lasts that a quorum has granted, in nanoseconds; zero if none is asked for.
    lease_ns: u64,
    lease_until_ns: u64,
    phase1: Option<Phase1>,
    /// First slot proposed under this ballot.
    from: Slot,
    /// Slots below it are decided.
    front: Slot,
    in_flight: VecDeque<InFlight>,
    /// Slots up to here may have been chosen before this ballot.
    inherited: Slot,
    trim: Slot,
    open: Vec<u8>,
    ready: VecDeque<Vec<u8>>,
    announced: Slot,
    announced_trim: Slot,
    announced_ns: u64,
    /// There are no heartbeats while there is no news.
    rests: bool,
    /// From one Decide to the next if there is no news.
    beat_ns: u64,
    nonce: u32,
    barrier: Barrier,
    resend_due_ns: u64,
}

/// One round that confirms that nobody else leads.
#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
struct Barrier {
    number: u64,
    wanted: u64,
    confirmed: u64,
    voters: Voters,
    sent_ns: u64,
    tries: u32,
    nonce: u32,
}

impl Barrier {
    /// When it is sent again. A repetition begins anew, so that a round trip must fit in between.
    fn again_ns(&self, resend_ns: u64) -> u64 {
        self.sent_ns + (resend_ns << self.tries.min(5))
    }
}

impl Leader {
    /// A leader that is about to send its Prepare. Acceptors grant it leases of `lease_ns`. `applied`
    /// is the last slot that this node knows to be decided.
    pub fn new(
        ballot: Ballot,
        group: GroupId,
        window: u64,
        value_bytes: usize,
        timing: LeaderTiming,
        lease_ns: u64,
        applied: Slot,
    ) -> Self {
        Self {
            ballot,
            group,
            window,
            value_bytes,
            timing,
            lease_ns,
            lease_until_ns: 0,
            phase1: Some(Phase1 {
                promised: Voters::default(),
                trims: Slot::FIRST,
                highest: Slot::NONE,
                highs: Vec::new(),
                sent_ns: 0,
                tries: 0,
                lease_ends_ns: u64::MAX,
                complete: false,
                next: applied.next(),
                fetched: VecDeque::new(),
            }),
            from: applied.next(),
            front: applied.next(),
            in_flight: VecDeque::new(),
            inherited: applied,
            trim: Slot::FIRST,
            open: Vec::with_capacity(value_bytes),
            ready: VecDeque::new(),
            announced: Slot::NONE,
            announced_trim: Slot::NONE,
            announced_ns: 0,
            rests: false,
            beat_ns: 0,
            nonce: 0,
            barrier: Barrier::default(),
            resend_due_ns: 0,
        }
    }

    /// Its ballot.
    pub const fn ballot(&self) -> Ballot {
        self.ballot
    }

    /// Whether phase 1 is over and every slot inherited from it is proposed.
    pub const fn leads(&self) -> bool {
        self.phase1.is_none()
    }

    /// Whether phase 1 still waits for promises, so that state may be taken over from others: from
    /// then on the ballot proposes from the slot that this node has applied.
    pub fn is_preparing(&self) -> bool {
        self.phase1.as_ref().is_some_and(|phase1| !phase1.complete)
    }

    /// Whether a value was proposed under this ballot: its first slot is fixed since.
    pub fn has_proposed(&self) -> bool {
        self.leads() || !self.in_flight.is_empty() || self.front > self.from
    }

    /// The last slot that may have been chosen before this ballot: until it is applied, nobody is
    /// answered.
    pub const fn inherited(&self) -> Slot {
        self.inherited
    }

    /// The last slot decided under this ballot, or the one before its first.
    pub const fn decided(&self) -> Slot {
        self.front.previous()
    }

    /// The first slot proposed under this ballot.
    pub const fn from(&self) -> Slot {
        self.from
    }

    /// Whether votes are under way.
    pub fn awaits_votes(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Whether a proposal is under way or waits.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.ready.is_empty() && self.open.is_empty()
    }

    fn header(&mut self, kind: Kind) -> Header {
        self.nonce = self.nonce.wrapping_add(1);
        let nonce = self.nonce;
        Header {
            ballot: self.ballot,
            nonce,
            ..Header::new(kind, self.group, NodeId::NONE)
        }
    }

    /// Goes on as the leader of `ballot`, a higher one of the same node, with another configuration.
    ///
    /// The caller knows from a majority of matchmakers that no ballot between the two was matched,
    /// nor ever will be: so nobody but this leader can have chosen anything since its phase 1, and
    /// it knows what it proposed. That makes a second phase 1 needless (Matchmaker Paxos, "phase 1
    /// bypassing"). What is under way is proposed again, each value in its slot.
    pub fn succeed(&mut self, ballot: Ballot) {
        debug_assert!(self.leads() && ballot > self.ballot && ballot.node() == self.ballot.node());
        self.ballot = ballot;
        self.from = self.front;
        for slot in &mut self.in_flight {
            (slot.voters, slot.sent_ns, slot.tries) = (Voters::default(), 0, 0);
        }
        // A round under way asked about the ballot before; whoever waits for it waits for the next.
        self.barrier.number = self.barrier.confirmed;
        // What the old configuration granted says nothing of those who vote from here on.
        self.lease_until_ns = 0;
        (self.announced, self.announced_trim) = (Slot::NONE, Slot::NONE);
        self.hurry();
        self.resend_due_ns = 0;
    }

    /// Whether everything is decided, and was told.
    pub fn is_told(&self) -> bool {
        self.leads()
            && self.is_idle()
            && self.announced == self.decided()
            && self.announced_trim == self.trim
            && self.barrier.wanted <= self.barrier.confirmed
    }

    /// Tells no more than there is news from here on, or begins again at once.
    pub const fn rest(&mut self, rests: bool) {
        self.rests = rests;
    }

    /// Whether it tells no more than there is news.
    pub const fn rests(&self) -> bool {
        self.rests
    }

    /// Has the news leave at the next occasion.
    pub const fn hurry(&mut self) {
        (self.announced_ns, self.beat_ns) = (0, 0);
    }

    /// The last slot under way, or decided.
    pub fn proposed(&self) -> Slot {
        self.next_slot().previous()
    }

    // Phase 1.

    /// A promise from the member at `place`.
    pub fn promised(&mut self, place: usize, reply: &Header, electorate: &Electorate) -> Heard {
        if reply.ballot != self.ballot && !mutated(Mutation::OldPromiseCounted) {
            return Heard::Fine;
        }
        let first = self.next_slot();
        let Some(phase1) = &mut self.phase1 else {
            return Heard::Fine;
        };
        if phase1.promised.has(place) {
            return Heard::Fine;
        }
        phase1.promised.add(place);
        phase1.highs.push((place, reply.slot));
        phase1.trims = phase1.trims.max(Slot(reply.watermark));
        if phase1.complete {
            // It stands in for a promiser that has fallen silent. Slots above the quorum's highest
            // were not chosen under a lower ballot, so the range to fetch stays.
            for (offset, fetched) in phase1.fetched.iter_mut().enumerate() {
                if reply.slot.0 < first.0 + offset as u64 {
                    fetched.answered.add(place);
                }
            }
            return Heard::Fine;
        }
        phase1.highest = if mutated(Mutation::HighestOfLastPromise) {
            reply.slot
        } else {
            phase1.highest.max(reply.slot)
        };
        self.quorum_promised(electorate)
    }

    /// This node has now applied up to `applied`, by learning; phase 1 goes on if it waited for it.
    pub fn caught_up(&mut self, applied: Slot, electorate: &Electorate) -> Heard {
        if self.phase1.as_ref().is_none_or(|phase1| phase1.complete) {
            return Heard::Fine;
        }
        // `from` is constant within a ballot once it was announced; nothing is before phase 1 ends.
        if applied.next() > self.front && self.in_flight.is_empty() {
            self.from = applied.next();
            self.front = applied.next();
            self.inherited = self.inherited.max(applied);
        }
        self.quorum_promised(electorate)
    }

    /// Begins to fetch if a quorum has promised and nothing must be learned first.
    fn quorum_promised(&mut self, electorate: &Electorate) -> Heard {
        let first = self.next_slot();
        let Some(phase1) = &mut self.phase1 else {
            return Heard::Fine;
        };
        let short = usize::from(mutated(Mutation::PhaseOneShort));
        if !electorate.has_phase1(phase1.promised, short) {
            return Heard::Fine;
        }
        if phase1.trims > first && !mutated(Mutation::TrimNotCaughtUp) {
            return Heard::Behind(phase1.trims);
        }
        phase1.complete = true;
        phase1.next = first;
        self.trim = self.trim.max(phase1.trims.min(self.front));
        self.inherited = self.inherited.max(phase1.highest);
        Heard::Fine
    }

    /// The slot after those under way.
    fn next_slot(&self) -> Slot {
        Slot(self.front.0 + self.in_flight.len() as u64)
    }

    /// A Vote, Empty or Outside from the member at `place`.
    pub fn fetched(&mut self, place: usize, reply: &Header, value: &[u8]) -> Heard {
        if reply.ballot != self.ballot {
            return Heard::Fine;
        }
        let first = self.next_slot();
        let Some(phase1) = &mut self.phase1 else {
            return Heard::Fine;
        };
        if !phase1.complete || !phase1.promised.has(place) {
            return Heard::Fine;
        }
        let Some(at) = reply.slot.0.checked_sub(first.0) else {
            return Heard::Fine;
        };
        let Some(fetched) = phase1.fetched.get_mut(at as usize) else {
            return Heard::Fine;
        };
        if fetched.answered.has(place) {
            return Heard::Fine;
        }
        match reply.kind {
            Kind::Outside => {
                if reply.watermark <= reply.slot.0 {
                    return Heard::Fine;
                }
                // Trimmed means decided and applied elsewhere: learn it, then prepare again. The
                // same ballot may ask again, since Prepare is idempotent.
                let trim = Slot(reply.watermark);
                phase1.trims = phase1.trims.max(trim);
                phase1.complete = false;
                phase1.promised = Voters::default();
                phase1.highs.clear();
                phase1.fetched.clear();
                phase1.sent_ns = 0;
                return Heard::Behind(trim);
            }
            Kind::Vote if fetched.yields_to(reply.vote_ballot) => {
                fetched.ballot = reply.vote_ballot;
                fetched.value.clear();
                fetched.value.extend_from_slice(value);
            }
            _ => {}
        }
        fetched.answered.add(place);
        Heard::Fine
    }

    /// Moves fetched slots whose quorum has answered into phase 2, in order.
    fn adopt(&mut self, electorate: &Electorate) {
        let first = self.next_slot();
        let Some(phase1) = &mut self.phase1 else {
            return;
        };
        if !phase1.complete {
            return;
        }
        let mut slot = first;
        while let Some(fetched) = phase1.fetched.front() {
            let short = usize::from(mutated(Mutation::FetchedShort));
            if !electorate.has_phase1(fetched.answered, short) {
                break;
            }
            // Paxos made simple, phase 2: the value of the highest ballot, or anything (here: the
            // empty value) if no acceptor of the quorum voted.
            let taken = if mutated(Mutation::RecoveredValueMoved) {
                phase1.fetched.pop_back()
            } else {
                phase1.fetched.pop_front()
            };
            let Some(fetched) = taken else {
                break;
            };
            if fetched.ballot == Ballot::NONE && mutated(Mutation::HoleNotFilled) {
                continue;
            }
            slot = slot.next();
            self.in_flight.push_back(InFlight {
                value: fetched.value,
                voters: Voters::default(),
                sent_ns: 0,
                tries: 0,
                partial: false,
            });
        }
        if phase1.fetched.is_empty() && slot > phase1.highest && phase1.next > phase1.highest {
            self.phase1 = None;
        }
    }

    // Phase 2.

    /// Room for one more entry of `bytes`?
    pub fn has_room(&self, bytes: usize) -> bool {
        self.ready.len() < MAX_READY && bytes <= self.value_bytes
    }

    /// Adds an entry to the batch that is being filled. [`Leader::has_room`] was asked before.
    pub fn push(&mut self, bytes: usize, write: impl FnOnce(&mut Vec<u8>)) {
        if self.open.len() + bytes > self.value_bytes {
            self.close();
        }
        write(&mut self.open);
        debug_assert!(self.open.len() <= self.value_bytes);
    }

    /// Whether the batch that is being filled is empty.
    pub fn batch_is_empty(&self) -> bool {
        self.open.is_empty()
    }

    fn close(&mut self) {
        let full = core::mem::replace(&mut self.open, Vec::with_capacity(self.value_bytes));
        self.ready.push_back(full);
    }

    /// A vote of this ballot from the member at `place`.
    pub fn accepted(&mut self, place: usize, reply: &Header) {
        if reply.ballot != self.ballot && !mutated(Mutation::OldVoteCounted) {
            return;
        }
        if let Some(at) = reply.slot.0.checked_sub(self.front.0)
            && let Some(slot) = self.in_flight.get_mut(at as usize)
        {
            slot.voters.add(place);
        }
    }

    /// The next decided slot's value and who is known to have voted for it, in order.
    pub fn next_decided(&mut self, electorate: &Electorate) -> Option<(Vec<u8>, Voters)> {
        let front = self.in_flight.front()?;
        let short = usize::from(mutated(Mutation::PhaseTwoShort));
        if !electorate.has_phase2(front.voters, short) {
            return None;
        }
        self.front = self.front.next();
        let decided = self.in_flight.pop_front();
        decided.map(|slot| (slot.value, slot.voters))
    }

    /// A refusal.
    pub fn refused(&mut self, now_ns: u64, reply: &Header) -> Heard {
        if reply.vote_ballot > self.ballot {
            return Heard::Superseded(reply.vote_ballot);
        }
        // Another's lease runs for so long; a Prepare that comes after it is not refused.
        if let Some(phase1) = &mut self.phase1
            && reply.flags.has(Flags::LEASE)
            && reply.ballot == self.ballot
        {
            phase1.lease_ends_ns = now_ns.saturating_add(reply.watermark);
        }
        Heard::Fine
    }

    /// Slots below `trim` are applied by enough replicas: their ring entries may be used again.
    pub fn raise_trim(&mut self, trim: Slot) {
        self.trim = self.trim.max(trim.min(self.front));
    }

    /// The lowest slot that acceptors keep.
    pub const fn trim(&self) -> Slot {
        self.trim
    }

    // Barriers.

    /// Asks for a round that begins after now; it is confirmed once [`Leader::confirmed`] reaches
    /// the returned number.
    pub fn ask_barrier(&mut self) -> u64 {
        // A round under way was sent before this moment: only the next one counts.
        let next = self.barrier.number + 1;
        self.barrier.wanted = self.barrier.wanted.max(next);
        next
    }

    /// The newest round that a quorum confirmed.
    pub const fn confirmed(&self) -> u64 {
        self.barrier.confirmed
    }

    /// An acknowledgement from the member at `place`.
    pub fn acknowledged(&mut self, place: usize, reply: &Header, electorate: &Electorate) {
        if reply.ballot != self.ballot
            || reply.nonce != self.barrier.nonce && !mutated(Mutation::StaleAckCounted)
            || self.barrier.confirmed == self.barrier.number
        {
            return;
        }
        self.barrier.voters.add(place);
        if electorate.has_phase2(self.barrier.voters, 0) {
            self.barrier.confirmed = self.barrier.number;
            // Each of them refuses others for so long from when it took the Decide, which was after
            // it was sent.
            let counted_ns = self.lease_ns - self.lease_ns / MAX_DRIFT;
            let until_ns = self.barrier.sent_ns.saturating_add(counted_ns);
            self.lease_until_ns = self.lease_until_ns.max(until_ns);
        }
    }

    /// Whether nobody else can lead at `now_ns`, and so nothing is chosen that this leader does not
    /// know of. A lease that has run for half its time is renewed.
    pub fn holds_lease(&mut self, now_ns: u64) -> bool {
        if self.lease_ns == 0 {
            return false;
        }
        let is_under_way = self.barrier.wanted > self.barrier.confirmed;
        if !is_under_way && now_ns.saturating_add(self.lease_ns / 2) >= self.lease_until_ns {
            self.ask_barrier();
        }
        now_ns < self.lease_until_ns || mutated(Mutation::LeaseOutlived)
    }

    /// Until when nobody else can lead, and from when on [`Leader::holds_lease`] asks for the next
    /// lease; zeros without one.
    pub const fn lease_ns(&self) -> (u64, u64) {
        let until_ns = self.lease_until_ns;
        (until_ns, until_ns.saturating_sub(self.lease_ns / 2))
    }

    // Sending.

    /// Everything that somebody waits for and that ought to be sent now.
    pub fn send(&mut self, now_ns: u64, electorate: &Electorate, out: &mut dyn FnMut(Order<'_>)) {
        self.send_phase1(now_ns, out);
        self.adopt(electorate);
        self.fill();
        self.send_accepts(now_ns, electorate, out);
        self.send_decide(now_ns, false, out);
    }

    /// The news of what was decided, and heartbeats. Nobody waits for them, so they leave last.
    pub fn announce(&mut self, now_ns: u64, _: &Electorate, out: &mut dyn FnMut(Order<'_>)) {
        self.send_decide(now_ns, true, out);
    }

    fn send_phase1(&mut self, now_ns: u64, out: &mut dyn FnMut(Order<'_>)) {
        let first = self.next_slot();
        let prepare = self.header(Kind::Prepare);
        let fetch = Header {
            kind: Kind::Fetch,
            ..prepare
        };
        let resend_ns = self.timing.resend_ns;
        let Some(phase1) = &mut self.phase1 else {
            return;
        };
        if now_ns >= phase1.due_ns(resend_ns) {
            phase1.tries += u32::from(phase1.sent_ns != 0);
            phase1.sent_ns = now_ns.max(1);
            phase1.lease_ends_ns = u64::MAX;
            out(Order {
                to: To::AllBut(phase1.promised),
                header: prepare,
                value: &[],
            });
        }
        if !phase1.complete {
            return;
        }
        let room = MAX_IN_FLIGHT.saturating_sub(self.in_flight.len());
        while phase1.next <= phase1.highest
            && phase1.fetched.len() < room
            && phase1.fetched.len() < FETCH_SLOTS as usize
        {
            let slot = phase1.next;
            // An acceptor whose highest lies below the slot when it promised has not voted there
            // and, for a lower ballot, never will.
            let mut answered = Voters::default();
            for (place, highest) in &phase1.highs {
                if *highest < slot {
                    answered.add(*place);
                }
            }
            phase1.fetched.push_back(Fetched {
                answered,
                ..Fetched::default()
            });
            phase1.next = slot.next();
        }
        for (offset, fetched) in phase1.fetched.iter_mut().enumerate() {
            if fetched.sent_ns != 0 && now_ns < fetched.sent_ns + resend_ns {
                continue;
            }
            let mut missing = Voters::default();
            for (place, _) in &phase1.highs {
                if !fetched.answered.has(*place) {
                    missing.add(*place);
                }
            }
            if missing.count() > 0 {
                fetched.sent_ns = now_ns.max(1);
                let slot = Slot(first.0 + offset as u64);
                out(Order {
                    to: To::Only(missing),
                    header: Header { slot, ..fetch },
                    value: &[],
                });
            }
        }
    }

    /// Gives waiting values slots, as far as the window and the pipeline allow.
    fn fill(&mut self) {
        if !self.leads() {
            return;
        }
        loop {
            let next = self.next_slot().0;
            if self.in_flight.len() >= MAX_IN_FLIGHT || next - self.trim.0 >= self.window {
                return;
            }
            let (value, partial) = if let Some(value) = self.ready.pop_front() {
                (value, false)
            } else {
                if self.open.is_empty() || self.in_flight.iter().any(|slot| slot.partial) {
                    return;
                }
                (
                    core::mem::replace(&mut self.open, Vec::with_capacity(self.value_bytes)),
                    true,
                )
            };
            self.in_flight.push_back(InFlight {
                value,
                voters: Voters::default(),
                sent_ns: 0,
                tries: 0,
                partial,
            });
        }
    }

    fn send_accepts(
        &mut self,
        now_ns: u64,
        electorate: &Electorate,
        out: &mut dyn FnMut(Order<'_>),
    ) {
        let header = self.header(Kind::Accept);
        let resend_ns = self.timing.resend_ns;
        let check_old = now_ns >= self.resend_due_ns;
        let unsent = self
            .in_flight
            .iter()
            .rev()
            .take_while(|slot| slot.sent_ns == 0)
            .count();
        let skip = if check_old {
            0
        } else {
            self.in_flight.len() - unsent
        };
        let mut resent = 0;
        for (offset, slot) in self.in_flight.iter_mut().enumerate().skip(skip) {
            let fresh = slot.sent_ns == 0;
            if !fresh {
                let due = slot.sent_ns + (resend_ns << slot.tries.min(5));
                if now_ns < due || electorate.has_phase2(slot.voters, 0) || resent >= MAX_RESENT {
                    continue;
                }
                slot.tries += 1;
                resent += 1;
            }
            slot.sent_ns = now_ns.max(1);
            let header = Header {
                slot: Slot(self.front.0 + offset as u64),
                ..header
            };
            out(Order {
                to: To::AllBut(slot.voters),
                header,
                value: &slot.value,
            });
        }
        if check_old {
            self.resend_due_ns = now_ns + resend_ns;
        }
    }

    fn send_decide(&mut self, now_ns: u64, announces: bool, out: &mut dyn FnMut(Order<'_>)) {
        let barrier_due = self.barrier.wanted > self.barrier.number
            && self.barrier.confirmed == self.barrier.number
            || self.barrier.confirmed < self.barrier.number
                && now_ns >= self.barrier.again_ns(self.timing.resend_ns);
        if !self.has_proposed() {
            // Heartbeats begin with the first proposal, which fixes the first slot: an acceptor
            // that lags by a window needs the trim to take it.
            return;
        }
        let news = self.announced < self.decided();
        let due = now_ns >= self.announcement_due_ns();
        if !(barrier_due || announces && due) {
            return;
        }
        let upto = if mutated(Mutation::DecidedAhead) {
            self.next_slot().previous()
        } else {
            self.decided()
        };
        let mut header = Header {
            slot: upto,
            vote_ballot: Ballot(self.from.0),
            watermark: self.trim.0,
            ..self.header(Kind::Decide)
        };
        if barrier_due && self.leads() {
            if self.barrier.confirmed == self.barrier.number {
                self.barrier.number = self.barrier.wanted;
                self.barrier.tries = 0;
            } else {
                self.barrier.tries = self.barrier.tries.saturating_add(1);
            }
            self.barrier.voters = Voters::default();
            self.barrier.nonce = header.nonce;
            self.barrier.sent_ns = now_ns;
            header.flags = match self.lease_ns {
                0 => Flags::ACK_WANTED,
                _ => Flags::ACK_WANTED.with(Flags::LEASE),
            };
        }
        self.announced = self.decided();
        self.announced_trim = self.trim;
        self.announced_ns = now_ns;
        // Followers learn how long a silence means something from the last intervals.
        self.beat_ns = if news || !due {
            self.timing.decide_ns
        } else {
            (self.beat_ns + self.beat_ns / 4)
                .min(self.timing.heartbeat_ns)
                .max(self.timing.decide_ns)
        };
        out(Order {
            to: To::All,
            header,
            value: &[],
        });
    }

    /// When the next Decide is due that nobody waits for.
    fn announcement_due_ns(&self) -> u64 {
        if self.rests && self.announced == self.decided() && self.announced_trim == self.trim {
            return u64::MAX;
        }
        let interval_ns = if self.announced < self.decided() {
            self.timing.decide_ns
        } else {
            self.beat_ns
        };
        self.announced_ns + interval_ns
    }

    /// When [`Leader::send`] should be called at the latest, in nanoseconds.
    pub fn next_timer_ns(&self) -> u64 {
        let mut due = if self.has_proposed() {
            self.announcement_due_ns()
        } else {
            u64::MAX
        };
        if !self.in_flight.is_empty() {
            due = due.min(self.resend_due_ns);
        }
        if let Some(phase1) = &self.phase1 {
            let resend_ns = self.timing.resend_ns;
            due = due.min(phase1.due_ns(resend_ns));
            let asked = phase1.fetched.iter().filter(|fetched| {
                fetched.sent_ns != 0 && fetched.answered.count() < phase1.highs.len()
            });
            let oldest_ns = asked.map(|fetched| fetched.sent_ns).min();
            due = due.min(oldest_ns.map_or(u64::MAX, |sent_ns| sent_ns + resend_ns));
        }
        if self.barrier.confirmed < self.barrier.number {
            due = due.min(self.barrier.again_ns(self.timing.resend_ns));
        }
        due
    }
}

/// For checkers that tell states apart by comparing them.
#[cfg(feature = "simulation")]
impl Leader {
    /// Forgets when, how often and in which order packets came and went. Whatever lacks an answer
    /// is then sent again at the next occasion. A barrier under way is lost.
    pub fn forget_times(&mut self) {
        (self.nonce, self.resend_due_ns) = (0, 0);
        (self.announced_ns, self.beat_ns) = (0, 0);
        self.barrier = Barrier::default();
        for slot in &mut self.in_flight {
            (slot.sent_ns, slot.tries) = (0, 0);
        }
        if let Some(phase1) = &mut self.phase1 {
            (phase1.sent_ns, phase1.tries) = (0, 0);
            phase1.highs.sort_unstable();
            for fetched in &mut phase1.fetched {
                fetched.sent_ns = 0;
            }
        }
    }

    /// The member at each place `p` moves to `places[p]`.
    pub fn move_members(&mut self, places: &[usize]) {
        for slot in &mut self.in_flight {
            slot.voters = slot.voters.moved(places);
        }
        if let Some(phase1) = &mut self.phase1 {
            phase1.promised = phase1.promised.moved(places);
            for (place, _) in &mut phase1.highs {
                *place = places.get(*place).copied().unwrap_or(*place);
            }
            phase1.highs.sort_unstable();
            for fetched in &mut phase1.fetched {
                fetched.answered = fetched.answered.moved(places);
            }
        }
    }
}
