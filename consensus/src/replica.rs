//! The replica of one group on one node: it joins the roles.
//!
//! Sans-IO: packets, time and timers come in as arguments, packets go out through [`Io`], and the
//! node's own acceptor is stepped through [`Local`]. The same code runs under the worker loop and
//! in the simulator.

use crate::applied::{Applied, Recipient};
use crate::catch_up::{CHUNK_BYTES, CatchUp, Chunk, LEARN_SLOTS, SNAPSHOT_CHUNKS};
use crate::election::{Election, ElectionTiming, PreVote};
use crate::envelope::{ENTRY_BYTES, Entry, EntryKind, Outcome, Status, entries};
use crate::leader::{Heard, Leader, LeaderTiming, Sending, To};
use crate::local::{Asker, Durability, Journal, Local};
use crate::memory::Memory;
use crate::quorum::{Membership, Voters};
use crate::responses::{Responses, Route};
use crate::session::Sessions;
use crate::state_machine::{Frozen, StateMachine};
use crate::wire::{Flags, Header, Kind};
use crate::{Ballot, GroupId, NodeId, Sequence, SessionId, Slot};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;

/// Queries that may wait for a barrier at once; past it they are dropped.
const MAX_READS: usize = 4096;
/// A follower's gap is asked for after this long, in nanoseconds: the vote may be on its way.
const GAP_PATIENCE_NS: u64 = 2_000_000;
/// A leadership transfer that takes longer is called off, in nanoseconds.
const TRANSFER_NS: u64 = 1_000_000_000;
/// A member not heard of for so long does not hold the trim back, in nanoseconds.
const LAGGARD_NS: u64 = 1_000_000_000;
/// Closed sessions that a leader may still hold in mind.
const FORGOTTEN_SESSIONS: usize = 1024;
/// Heartbeats between two reports of progress when there was none.
const REPORT_BEATS: u64 = 10;
/// Length of the address in a Redirect: IPv6 or mapped IPv4, then the port.
const ADDRESS_BYTES: usize = 18;

/// What a replica needs of its host.
pub trait Io {
    /// Sends a packet to whoever is reached at `to`. The tag is filled in here.
    fn send(&mut self, to: SocketAddr, header: &Header, value: &[u8]);
    /// Makes sure, durably, that no later life of this node uses a round up to `round`. False if
    /// that cannot be done now.
    fn reserve_rounds(&mut self, round: u64) -> bool;
    /// Reads from this node's newest snapshot at `offset` into `out`; returns its slot, its length
    /// and how many bytes were read. `None` if there is none.
    fn read_snapshot(
        &mut self,
        group: GroupId,
        offset: u64,
        out: &mut [u8],
    ) -> Option<(Slot, u64, usize)>;
}

/// Everything that a call into a replica may touch.
pub struct Turn<'a, M, J, I> {
    /// The machine's monotonic clock.
    pub now_ns: u64,
    /// Unix milliseconds, for the log's clock.
    pub unix_ms: u64,
    /// The node's own acceptor.
    pub local: &'a mut Local<M, J>,
    /// The way out.
    pub io: &'a mut I,
}

/// How a replica is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// The group.
    pub group: GroupId,
    /// Who votes.
    pub membership: Membership,
    /// Slots that acceptors keep at once.
    pub window: u64,
    /// Longest value in bytes.
    pub value_bytes: usize,
    /// How long the leader waits.
    pub leader: LeaderTiming,
    /// How long followers wait.
    pub election: ElectionTiming,
    /// For back-off.
    pub seed: u64,
    /// Rounds up to this one may have been used by earlier lives.
    pub used_round: u64,
}

#[derive(Debug)]
struct Read {
    route: Route,
    session: SessionId,
    barrier: u64,
    body: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    applied: Slot,
    heard_ns: u64,
}

#[derive(Debug)]
struct Lead {
    leader: Leader,
    since_ns: u64,
    /// The last slot applied and the bytes of the snapshot under way, when that was last looked at.
    learned: (Slot, u64),
    /// Next sequence of each session that has not been proposed.
    admitted: BTreeMap<u64, u64>,
    routes: BTreeMap<u64, Route>,
    openers: BTreeMap<u64, Route>,
    reads: VecDeque<Read>,
    progress: Vec<Progress>,
    clock_ms: u64,
    transfer: Option<Transfer>,
}

impl Lead {
    /// Forgets sessions that are closed, once there may be more of them than open ones.
    fn forget_closed(&mut self, sessions: &Sessions) {
        let open = |id: &u64| sessions.next(SessionId(*id)).is_some();
        if self.routes.len() > 2 * sessions.len() + FORGOTTEN_SESSIONS {
            self.routes.retain(|id, _| open(id));
            self.admitted.retain(|id, _| open(id));
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Transfer {
    target: NodeId,
    until_ns: u64,
    ask_ns: u64,
}

/// Which role a replica plays, for reports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Campaigns.
    Candidate,
    /// Leads.
    Leader,
}

impl Role {
    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
        }
    }
}

/// Numbers for reports, rising for the life of the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Campaigns begun (phase 1).
    pub campaigns: u64,
    /// Times that this node came to lead.
    pub elected: u64,
    /// Entries applied.
    pub entries: u64,
    /// Queries answered.
    pub queries: u64,
    /// Slots learned from other replicas instead of the own region.
    pub learned: u64,
    /// Snapshots taken over from other replicas.
    pub snapshots: u64,
    /// Requests dropped for want of room or because the leader was not ready.
    pub deferred: u64,
}

/// A replica.
#[derive(Debug)]
pub struct Replica<S> {
    config: Config,
    place: usize,
    applied: Applied<S>,
    lead: Option<Lead>,
    election: Election,
    catch_up: CatchUp,
    responses: Responses,
    own_replies: Vec<(Header, Vec<u8>)>,
    /// Applied slots whose records are on their way to the journal, and those that are there.
    journalling: Option<(u64, Slot)>,
    recoverable: Slot,
    /// A snapshot that was taken over but is not on disk yet.
    unsaved: Option<Slot>,
    reported: Slot,
    reported_ns: u64,
    snapshot_wanted: bool,
    tally: Tally,
}

impl<S: StateMachine> Replica<S> {
    /// A replica whose state is `applied`, restored by the caller from snapshot and journal.
    ///
    /// # Panics
    /// If the membership does not hold the node.
    pub fn new(config: Config, applied: Applied<S>, now_ns: u64) -> Self {
        let place = config.membership.place(config.node);
        assert!(
            place.is_some(),
            "the caller checks that the membership holds the node"
        );
        let own = config
            .membership
            .member(config.node)
            .map_or(0, |member| member.priority);
        let outranks = |priority: u8, node: NodeId| (own, node) < (priority, config.node);
        let rank = config.membership.others(config.node);
        let rank = rank
            .filter(|other| outranks(other.priority, other.node))
            .count();
        let mut election = Election::new(config.election, rank, config.seed, now_ns);
        election.round = config.used_round;
        Self {
            place: place.unwrap_or_default(),
            recoverable: applied.slot(),
            applied,
            lead: None,
            election,
            catch_up: CatchUp::default(),
            responses: Responses::default(),
            own_replies: Vec::new(),
            journalling: None,
            unsaved: None,
            reported: Slot::NONE,
            reported_ns: 0,
            snapshot_wanted: false,
            tally: Tally::default(),
            config,
        }
    }

    /// The state.
    pub const fn applied(&self) -> &Applied<S> {
        &self.applied
    }

    /// Its role.
    pub fn role(&self) -> Role {
        match &self.lead {
            Some(lead) if lead.leader.leads() => Role::Leader,
            Some(_) => Role::Candidate,
            None if self.election.pre_vote.is_some() => Role::Candidate,
            None => Role::Follower,
        }
    }

    /// This node's place in the membership.
    pub const fn place(&self) -> usize {
        self.place
    }

    /// The leader that this replica knows of, if one was heard of lately.
    pub fn leader<M: Memory, J: Journal>(
        &self,
        now_ns: u64,
        local: &Local<M, J>,
    ) -> Option<NodeId> {
        if let Some(lead) = &self.lead {
            return lead.leader.leads().then_some(self.config.node);
        }
        let view = local.view(self.config.group)?;
        let node = view.decided.ballot.node();
        let silence_ns = now_ns.saturating_sub(local.seen_ns(node));
        (node != self.config.node
            && view.decided.ballot >= view.promised
            && silence_ns < self.config.election.timeout_ns * 2)
            .then_some(node)
    }

    /// Numbers for reports.
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Whether votes are under way that this node, as the leader, waits for.
    pub fn awaits_votes(&self) -> bool {
        let lead = self.lead.as_ref();
        lead.is_some_and(|lead| lead.leader.awaits_votes())
    }

    /// What it still has to learn.
    pub const fn catch_up(&self) -> &CatchUp {
        &self.catch_up
    }

    /// Whether another replica asked for a snapshot that is newer than the one there is; asking
    /// resets it.
    pub const fn take_snapshot_wanted(&mut self) -> bool {
        core::mem::replace(&mut self.snapshot_wanted, false)
    }

    /// A frozen snapshot of the state, for another thread to write.
    pub fn freeze(&self) -> (Slot, Box<dyn Frozen>) {
        (self.applied.slot(), self.applied.freeze())
    }

    /// The snapshot up to `slot` is on disk.
    pub fn snapshot_saved(&mut self, slot: Slot) {
        if self.unsaved.is_some_and(|unsaved| unsaved <= slot) {
            self.unsaved = None;
        }
    }

    /// The slot up to which this node could restore its state by itself.
    pub const fn recoverable(&self) -> Slot {
        self.recoverable
    }

    fn note_journalled<M: Memory, J: Journal>(&mut self, local: &Local<M, J>) {
        let Some((appended, flushed)) = local.journalled(self.config.group) else {
            return;
        };
        let applied = self.restorable(local);
        if let Some((number, slot)) = self.journalling
            && number <= flushed
        {
            if self.unsaved.is_none() {
                self.recoverable = slot;
            }
            self.journalling = None;
        }
        if self.journalling.is_none() && self.recoverable < applied {
            self.journalling = Some((appended, applied));
            if appended <= flushed && self.unsaved.is_none() {
                self.recoverable = applied;
                self.journalling = None;
            }
        }
    }

    /// How far the records of this node, once they are flushed, would bring it. A leader applies
    /// what a quorum has accepted; until its own acceptor has taken the Decide, no record says that
    /// it was chosen.
    fn restorable<M: Memory, J: Journal>(&self, local: &Local<M, J>) -> Slot {
        let applied = self.applied.slot();
        let Some(lead) = &self.lead else {
            return applied;
        };
        if local.durability() == Durability::Volatile {
            return applied;
        }
        match local.view(self.config.group) {
            Some(view) if view.decided.ballot == lead.leader.ballot() => {
                applied.min(view.decided.upto)
            }
            _ => self.recoverable,
        }
    }

    /// What was applied is not all in the journal: only a snapshot makes up for that.
    fn miss_record<M: Memory, J: Journal>(&mut self, local: &Local<M, J>) {
        if local.durability() != Durability::Volatile {
            self.unsaved = Some(self.applied.slot());
            self.snapshot_wanted = true;
        }
    }

    // Packets.

    /// A packet that is for the replica, not for the acceptor.
    pub fn handle<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        from: SocketAddr,
        header: &Header,
        value: &[u8],
    ) {
        match header.kind {
            Kind::Promise
            | Kind::Vote
            | Kind::Empty
            | Kind::Outside
            | Kind::Accepted
            | Kind::Ack
            | Kind::Nack => {
                if let Some(place) = self.config.membership.voter(header) {
                    self.answered(turn, place, header, value);
                }
            }
            Kind::Request => self.requested(turn, from, header, value),
            Kind::Progress => self.progressed(turn, header),
            Kind::CatchUp => self.asked_to_teach(turn, header),
            Kind::Learn => self.learned(turn, header, value),
            Kind::SnapshotRequest => {
                if let Some(to) = self.pupil(header) {
                    self.send_snapshot(turn, to, header.watermark);
                }
            }
            Kind::SnapshotChunk => self.snapshot_piece(turn, from, header, value),
            Kind::PreVote => self.asked_pre_vote(turn, from, header),
            Kind::PreVoteGranted => self.pre_vote_granted(turn, header),
            Kind::Transfer => self.asked_to_transfer(turn, from, header),
            Kind::Prepare
            | Kind::Fetch
            | Kind::Accept
            | Kind::Decide
            | Kind::Read
            | Kind::Response
            | Kind::Redirect
            | Kind::Hello
            | Kind::Inspect
            | Kind::Report => {}
        }
    }

    /// The acceptor on this node was stepped with a request of another node.
    pub fn stepped<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        request: &Header,
    ) {
        match request.kind {
            Kind::Prepare | Kind::Accept => {
                self.election.round = self.election.round.max(request.ballot.round());
                if request.kind == Kind::Prepare {
                    let promised = turn.local.view(self.config.group).map(|view| view.promised);
                    if promised == Some(request.ballot) {
                        self.election.wait(turn.now_ns);
                    }
                }
                self.check_superseded(turn);
            }
            Kind::Decide => {
                self.check_superseded(turn);
                let view = turn.local.view(self.config.group);
                if view.is_some_and(|view| view.decided.ballot == request.ballot) {
                    self.election.led();
                }
                self.learn(turn);
            }
            _ => {}
        }
    }

    fn check_superseded<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        let Some(lead) = &self.lead else { return };
        let promised = turn.local.view(self.config.group).map(|view| view.promised);
        if promised.is_some_and(|promised| promised > lead.leader.ballot()) {
            self.step_down(turn);
        }
    }

    fn step_down<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        if let Some(lead) = self.lead.take()
            && lead.leader.decided() >= lead.leader.from()
        {
            // What was decided last may never have been announced, and the next leader's Decide
            // begins above it.
            let record = Header {
                slot: lead.leader.decided(),
                ballot: lead.leader.ballot(),
                vote_ballot: Ballot(lead.leader.from().0),
                watermark: lead.leader.trim().0,
                epoch: self.config.membership.epoch,
                ..Header::new(Kind::Decide, self.config.group, self.config.node)
            };
            if !turn.local.record(&record, &[]) {
                self.miss_record(turn.local);
            }
        }
        self.own_replies.clear();
        self.election.wait(turn.now_ns);
    }

    /// A reply of the member at `place`, this node's own acceptor included.
    pub fn answered<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        place: usize,
        reply: &Header,
        value: &[u8],
    ) {
        let membership = &self.config.membership;
        let Some(lead) = &mut self.lead else { return };
        let leader = &mut lead.leader;
        let heard = match reply.kind {
            Kind::Promise => leader.promised(place, reply, membership),
            Kind::Vote | Kind::Empty => leader.fetched(place, reply, value),
            Kind::Outside if leader.leads() => {
                let trim = Slot(reply.watermark);
                if trim > leader.decided().next() {
                    Heard::Behind(trim)
                } else {
                    Heard::Fine
                }
            }
            Kind::Outside => leader.fetched(place, reply, value),
            Kind::Accepted => {
                leader.accepted(place, reply);
                Heard::Fine
            }
            Kind::Ack => {
                leader.acknowledged(place, reply, membership);
                Heard::Fine
            }
            Kind::Nack => leader.refused(reply.vote_ballot),
            _ => Heard::Fine,
        };
        match heard {
            Heard::Fine => {}
            Heard::Superseded(promised) => {
                // A sealed acceptor has promised the maximum; it says nothing about rounds.
                if promised != Ballot::SEALED {
                    self.election.round = self.election.round.max(promised.round());
                }
                self.step_down(turn);
            }
            Heard::Behind(trim) => {
                // `from` is constant within a ballot: what has to be learned now lies above it.
                let spent = leader.has_proposed();
                self.catch_up.want(turn.now_ns, trim.previous(), 0);
                if spent {
                    self.step_down(turn);
                }
            }
        }
    }

    // Clients.

    fn requested<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        from: SocketAddr,
        header: &Header,
        value: &[u8],
    ) {
        let serving = self.lead.as_ref().is_some_and(|lead| lead.leader.leads());
        if !serving {
            return self.redirect(turn, from, header);
        }
        let route = Route {
            address: from,
            nonce: header.nonce,
        };
        let Some(lead) = &mut self.lead else { return };
        if self.applied.slot() < lead.leader.inherited() || lead.transfer.is_some() {
            // The sessions are not known yet, or are about to be another's: the client asks again.
            self.tally.deferred += 1;
            return;
        }
        if header.flags.has(Flags::QUERY) {
            if lead.reads.len() >= MAX_READS {
                self.tally.deferred += 1;
                return;
            }
            let barrier = lead.leader.ask_barrier();
            let session = header.session();
            lead.reads.push_back(Read {
                route,
                session,
                barrier,
                body: Vec::from(value),
            });
            return;
        }
        lead.forget_closed(self.applied.sessions());
        let limit = self.config.value_bytes - ENTRY_BYTES;
        for entry in entries(value).map_while(Result::ok) {
            let bytes = Entry::encoded_bytes(entry.body.len());
            let (id, sequence) = (entry.session, entry.sequence);
            let mut refuse = |status, sequence| {
                let outcome = Outcome {
                    sequence,
                    status,
                    body: &[],
                };
                self.responses.add(route, id, &outcome);
            };
            if bytes > limit {
                refuse(Status::TooLarge, sequence);
                continue;
            }
            if !lead.leader.has_room(bytes + ENTRY_BYTES) {
                self.tally.deferred += 1;
                return;
            }
            match entry.kind {
                EntryKind::Open => {
                    if lead.openers.insert(id.0, route).is_some() {
                        continue;
                    }
                }
                EntryKind::Command => {
                    let applied = self.applied.sessions().next(id);
                    let Some(Sequence(applied)) = applied else {
                        if id.opened_in() > self.applied.slot() {
                            // A leader that was deposed without knowing it has not seen the session
                            // opened: that it is unknown here means nothing.
                            self.tally.deferred += 1;
                            return;
                        }
                        refuse(Status::UnknownSession, sequence);
                        return;
                    };
                    lead.routes.insert(id.0, route);
                    let admitted = lead.admitted.entry(id.0).or_insert(applied);
                    *admitted = (*admitted).max(applied);
                    if sequence.0 > *admitted {
                        refuse(Status::OutOfOrder, Sequence(*admitted));
                        return;
                    }
                    if sequence.0 < applied {
                        match self.applied.sessions().reply(id, sequence) {
                            Some(body) => {
                                let outcome = Outcome {
                                    sequence,
                                    status: Status::Done,
                                    body,
                                };
                                self.responses.add(route, id, &outcome);
                            }
                            None => refuse(Status::ReplyForgotten, sequence),
                        }
                        continue;
                    }
                    if sequence.0 < *admitted {
                        continue;
                    }
                    *admitted += 1;
                }
                EntryKind::Clock | EntryKind::Query => continue,
            }
            Self::stamp(lead, turn.unix_ms);
            lead.leader.push(bytes, |batch| entry.append(batch));
        }
    }

    /// Moves the log's clock where a batch begins, at most once a millisecond.
    fn stamp(lead: &mut Lead, unix_ms: u64) {
        if unix_ms <= lead.clock_ms || !lead.leader.batch_is_empty() {
            return;
        }
        lead.clock_ms = unix_ms;
        let clock = Entry {
            kind: EntryKind::Clock,
            session: SessionId(0),
            sequence: Sequence(unix_ms),
            behind: 0,
            body: &[],
        };
        lead.leader.push(ENTRY_BYTES, |batch| clock.append(batch));
    }

    fn redirect<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        to: SocketAddr,
        request: &Header,
    ) {
        let leader = self.leader(turn.now_ns, turn.local);
        let member = leader.and_then(|leader| self.config.membership.member(leader));
        let mut value = [0; ADDRESS_BYTES];
        let mut length = 0;
        if let Some(member) = member {
            let ip = match member.address {
                SocketAddr::V4(v4) => v4.ip().to_ipv6_mapped(),
                SocketAddr::V6(v6) => *v6.ip(),
            };
            let (address, port) = value.split_at_mut(16);
            address.copy_from_slice(&ip.octets());
            port.copy_from_slice(&member.address.port().to_be_bytes());
            length = ADDRESS_BYTES;
        }
        let header = Header {
            slot: request.slot,
            vote_ballot: Ballot(leader.map_or(0, |leader| u64::from(leader.0))),
            length: length as u16,
            nonce: request.nonce,
            ..Header::new(Kind::Redirect, self.config.group, self.config.node)
        };
        turn.io
            .send(to, &header, value.get(..length).unwrap_or_default());
    }

    // Learning.

    /// Applies what the region says is chosen and this node voted for.
    fn learn<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        if self.lead.is_some() {
            return;
        }
        let Some(view) = turn.local.view(self.config.group) else {
            return;
        };
        let decided = view.decided;
        while self.applied.slot() < decided.upto {
            let slot = self.applied.slot().next();
            // A local vote with a ballot below the decided record's may be for another value.
            let mut value = self.applied.buffer();
            let ballot = match turn.local.vote(self.config.group, slot) {
                Some((ballot, bytes)) if slot >= decided.from && ballot >= decided.ballot => {
                    value.extend_from_slice(bytes);
                    ballot
                }
                _ => break,
            };
            self.apply(ballot, value);
        }
        self.advanced(turn);
        if self.applied.slot() < decided.upto {
            self.catch_up
                .want(turn.now_ns, decided.upto, GAP_PATIENCE_NS);
        }
    }

    fn apply(&mut self, ballot: Ballot, value: Vec<u8>) {
        let Self {
            applied,
            responses,
            lead,
            tally,
            ..
        } = self;
        applied.apply(ballot, value, |to, outcome| {
            tally.entries += 1;
            let Some(lead) = lead else { return };
            match to {
                Recipient::Session(id) => {
                    if let Some(route) = lead.routes.get(&id.0) {
                        responses.add(*route, id, &outcome);
                    }
                }
                Recipient::Opener(nonce) => {
                    if let Some(route) = lead.openers.remove(&nonce) {
                        responses.add(route, SessionId(0), &outcome);
                    }
                }
            }
        });
    }

    fn advanced<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        self.catch_up.applied(turn.now_ns, self.applied.slot());
        self.note_journalled(turn.local);
        let slot = self.applied.slot();
        if let Some(lead) = &mut self.lead
            && !lead.leader.leads()
            && let Heard::Behind(trim) = lead.leader.caught_up(slot, &self.config.membership)
        {
            self.catch_up.want(turn.now_ns, trim.previous(), 0);
        }
    }

    /// Tells the leader how far this replica could restore itself, so that it may trim.
    fn report_progress<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        if self.lead.is_some() || turn.now_ns < self.report_due_ns() {
            return;
        }
        let Some(leader) = self.leader(turn.now_ns, turn.local) else {
            return;
        };
        let Some(member) = self.config.membership.member(leader) else {
            return;
        };
        self.reported = self.recoverable;
        self.reported_ns = turn.now_ns;
        let header = Header {
            incarnation: turn.local.acceptor().incarnation,
            epoch: self.config.membership.epoch,
            watermark: self.recoverable.0,
            ..Header::new(Kind::Progress, self.config.group, self.config.node)
        };
        turn.io.send(member.address, &header, &[]);
    }

    fn report_due_ns(&self) -> u64 {
        if self.recoverable.0 >= self.reported.0 + self.config.window / 16 {
            return 0;
        }
        let heartbeat_ns = self.config.leader.heartbeat_ns;
        // A new leader knows nothing yet, and trims for those it has heard of lately.
        let beats = if self.recoverable > self.reported {
            1
        } else {
            REPORT_BEATS
        };
        self.reported_ns + beats * heartbeat_ns
    }

    fn progressed<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        header: &Header,
    ) {
        let place = self.config.membership.voter(header);
        if let Some(lead) = &mut self.lead
            && let Some(progress) = place.and_then(|place| lead.progress.get_mut(place))
        {
            *progress = Progress {
                applied: Slot(header.watermark),
                heard_ns: turn.now_ns,
            };
        }
    }

    /// Raises the trim: past slots that f + 1 replicas could restore, and, while the window allows,
    /// that every replica heard of lately has applied.
    fn trim<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        let recoverable = self.recoverable;
        let place = self.place;
        let Some(lead) = &mut self.lead else { return };
        if let Some(own) = lead.progress.get_mut(place) {
            *own = Progress {
                applied: recoverable,
                heard_ns: turn.now_ns,
            };
        }
        let enough = lead.progress.len() / 2 + 1;
        let mut slots: Vec<u64> = lead.progress.iter().map(|other| other.applied.0).collect();
        slots.sort_unstable();
        let Some(safe) = slots.len().checked_sub(enough).and_then(|at| slots.get(at)) else {
            return;
        };
        let live = lead
            .progress
            .iter()
            .filter(|other| turn.now_ns.saturating_sub(other.heard_ns) < LAGGARD_NS)
            .map(|other| other.applied.0)
            .min();
        let used = lead.leader.decided().0.saturating_sub(lead.leader.trim().0);
        let limit = if used > self.config.window / 2 {
            *safe
        } else {
            live.unwrap_or(*safe)
        };
        lead.leader.raise_trim(Slot(limit.min(*safe)).next());
    }

    /// Where a member that asks to be taught is reached. What it asks for is a thousand times as
    /// long as the question, so it goes to no address that a packet could name.
    fn pupil(&self, request: &Header) -> Option<SocketAddr> {
        let member = self.config.membership.member(request.sender)?;
        (member.node != self.config.node).then_some(member.address)
    }

    fn asked_to_teach<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        request: &Header,
    ) {
        let Some(to) = self.pupil(request) else {
            return;
        };
        let first = request.slot;
        let last = Slot(
            request
                .watermark
                .min(first.0.saturating_add(LEARN_SLOTS - 1)),
        );
        if first > self.applied.slot() || first == Slot::NONE {
            return;
        }
        if self.applied.kept(first).is_none() {
            return self.send_snapshot_from(turn, to, first);
        }
        let mut slot = first;
        while slot <= last
            && let Some((ballot, value)) = self.applied.kept(slot)
        {
            let header = Header {
                slot,
                vote_ballot: ballot,
                length: value.len() as u16,
                ..Header::new(Kind::Learn, self.config.group, self.config.node)
            };
            turn.io.send(to, &header, value);
            slot = slot.next();
        }
    }

    /// Whether state may be taken over from others. A ballot that has its promises proposes from the
    /// slot after the last one applied, and what it decides is applied in that order.
    fn learns(&self) -> bool {
        let lead = self.lead.as_ref();
        lead.is_none_or(|lead| lead.leader.is_preparing())
    }

    fn learned<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        header: &Header,
        value: &[u8],
    ) {
        let next = self.applied.slot().next();
        if !self.learns()
            || header.slot < next
            || self.config.membership.place(header.sender).is_none()
        {
            return;
        }
        if header.slot > next {
            return self
                .catch_up
                .keep_early(header.slot, header.vote_ballot, value);
        }
        let mut buffer = self.applied.buffer();
        buffer.extend_from_slice(value);
        let mut learned = Some((header.vote_ballot, buffer));
        while let Some((ballot, value)) = learned {
            let slot = self.applied.slot().next();
            let length = value.len() as u16;
            let record = Header {
                slot,
                vote_ballot: ballot,
                length,
                ..*header
            };
            if !turn.local.record(&record, &value) {
                // Not journalled, so not learned: it is asked for again.
                break;
            }
            self.tally.learned += 1;
            self.apply(ballot, value);
            learned = self.catch_up.take_early(slot.next());
        }
        self.advanced(turn);
    }

    fn send_snapshot_from<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        to: SocketAddr,
        first: Slot,
    ) {
        match turn.io.read_snapshot(self.config.group, 0, &mut []) {
            // The snapshot must reach what is still kept, or the learner could not go on from it.
            Some((slot, _, _)) if slot >= first && self.applied.kept(slot.next()).is_some() => {
                self.send_snapshot(turn, to, 0);
            }
            Some((slot, _, _)) if slot == self.applied.slot() => self.send_snapshot(turn, to, 0),
            _ => self.snapshot_wanted = true,
        }
    }

    fn send_snapshot<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        to: SocketAddr,
        offset: u64,
    ) {
        let mut piece = [0; CHUNK_BYTES];
        let mut offset = offset;
        for _ in 0..SNAPSHOT_CHUNKS {
            let read = turn.io.read_snapshot(self.config.group, offset, &mut piece);
            let Some((slot, total, bytes)) = read else {
                return;
            };
            if offset >= total || bytes == 0 {
                return;
            }
            let header = Header {
                slot,
                watermark: offset,
                vote_ballot: Ballot(total),
                length: bytes as u16,
                ..Header::new(Kind::SnapshotChunk, self.config.group, self.config.node)
            };
            turn.io
                .send(to, &header, piece.get(..bytes).unwrap_or_default());
            offset += bytes as u64;
        }
    }

    fn snapshot_piece<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        from: SocketAddr,
        header: &Header,
        value: &[u8],
    ) {
        if !self.learns() || self.config.membership.place(header.sender).is_none() {
            return;
        }
        let applied = self.applied.slot();
        match self
            .catch_up
            .chunk(turn.now_ns, self.config.node, applied, header, value)
        {
            Chunk::Wait => {}
            Chunk::Ask(request) => turn.io.send(from, &request, &[]),
            Chunk::Complete(bytes) => {
                // Damaged bytes leave the state as it was: it is asked for again.
                if Applied::<S>::snapshot_slot(&bytes) == Some(header.slot)
                    && self.applied.restore(&bytes).is_ok()
                {
                    self.tally.snapshots += 1;
                    self.miss_record(turn.local);
                    self.advanced(turn);
                }
            }
        }
    }

    // Elections.

    fn asked_pre_vote<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        from: SocketAddr,
        request: &Header,
    ) {
        let Some(view) = turn.local.view(self.config.group) else {
            return;
        };
        let leading = self.lead.as_ref().is_some_and(|lead| lead.leader.leads());
        let heard_ns = turn.local.seen_ns(view.decided.ballot.node());
        if leading
            || request.ballot <= view.promised
            || !self.election.is_silent(turn.now_ns, heard_ns)
            || self.config.membership.place(request.sender).is_none()
        {
            return;
        }
        let reply = Header {
            kind: Kind::PreVoteGranted,
            sender: self.config.node,
            incarnation: turn.local.acceptor().incarnation,
            epoch: self.config.membership.epoch,
            length: 0,
            ..*request
        };
        turn.io.send(from, &reply, &[]);
    }

    fn pre_vote_granted<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        reply: &Header,
    ) {
        let Some(place) = self.config.membership.voter(reply) else {
            return;
        };
        let Some(pre_vote) = &mut self.election.pre_vote else {
            return;
        };
        if reply.nonce != pre_vote.nonce || reply.ballot != pre_vote.ballot {
            return;
        }
        pre_vote.voters.add(place);
        if pre_vote.voters.count() >= self.config.membership.quorums.phase1() {
            self.campaign(turn);
        }
    }

    fn ask_pre_vote<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        // Nobody grants what lies below a promise, and of a leader that died before this process
        // began only the region may know.
        let promised = turn.local.view(self.config.group).map(|view| view.promised);
        let known = promised.map_or(0, Ballot::round).max(self.election.round);
        let ballot = Ballot::new(known + 1, self.config.node);
        let mut voters = Voters::default();
        voters.add(self.place);
        let nonce = self.election.nonce();
        let until_ns = turn.now_ns + self.config.election.pre_vote_ns;
        self.election.pre_vote = Some(PreVote {
            ballot,
            voters,
            nonce,
            until_ns,
        });
        if voters.count() >= self.config.membership.quorums.phase1() {
            return self.campaign(turn);
        }
        let header = Header {
            ballot,
            nonce,
            epoch: self.config.membership.epoch,
            ..Header::new(Kind::PreVote, self.config.group, self.config.node)
        };
        for member in self.config.membership.others(self.config.node) {
            turn.io.send(member.address, &header, &[]);
        }
    }

    fn campaign<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        let promised = turn
            .local
            .view(self.config.group)
            .map_or(Ballot::NONE, |view| view.promised);
        self.election.pre_vote = None;
        let round = self.election.round.max(promised.round()) + 1;
        if round > Ballot::MAX_ROUND || !turn.io.reserve_rounds(round) {
            return self.election.wait(turn.now_ns);
        }
        self.election.round = round;
        self.tally.campaigns += 1;
        let leader = Leader::new(
            Ballot::new(round, self.config.node),
            self.config.group,
            self.config.window,
            self.config.value_bytes,
            self.config.leader,
            self.applied.slot(),
        );
        self.lead = Some(Lead {
            leader,
            since_ns: turn.now_ns,
            learned: (self.applied.slot(), 0),
            admitted: BTreeMap::new(),
            routes: BTreeMap::new(),
            openers: BTreeMap::new(),
            reads: VecDeque::new(),
            progress: vec![Progress::default(); self.config.membership.members.len()],
            clock_ms: 0,
            transfer: None,
        });
    }

    fn asked_to_transfer<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        from: SocketAddr,
        header: &Header,
    ) {
        if header.flags.has(Flags::NOW) {
            // The leader that this node follows has stopped proposing and asks it to take over.
            let follows = self.leader(turn.now_ns, turn.local) == Some(header.sender);
            if follows && self.lead.is_none() {
                self.campaign(turn);
            }
            return;
        }
        let target = NodeId(header.vote_ballot.0 as u16);
        let known = self.config.membership.place(target).is_some();
        match &mut self.lead {
            Some(lead) if lead.leader.leads() && known => {
                if target != self.config.node {
                    let until_ns = turn.now_ns + TRANSFER_NS;
                    lead.transfer = Some(Transfer {
                        target,
                        until_ns,
                        ask_ns: 0,
                    });
                }
                let ack = Header {
                    kind: Kind::Ack,
                    sender: self.config.node,
                    incarnation: turn.local.acceptor().incarnation,
                    length: 0,
                    ..*header
                };
                turn.io.send(from, &ack, &[]);
            }
            _ => self.redirect(turn, from, header),
        }
    }

    /// Goes on with a leadership transfer: once the successor has applied everything, it is told
    /// to campaign.
    fn hand_over<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        let Some(lead) = &mut self.lead else { return };
        let Some(transfer) = &mut lead.transfer else {
            return;
        };
        if turn.now_ns >= transfer.until_ns {
            lead.transfer = None;
            return;
        }
        let target = transfer.target;
        let place = self.config.membership.place(target);
        let there = place.and_then(|place| lead.progress.get(place));
        let caught_up = there.is_some_and(|there| there.applied >= lead.leader.decided());
        if !lead.leader.is_idle() || !caught_up || turn.now_ns < transfer.ask_ns {
            return;
        }
        transfer.ask_ns = turn.now_ns + self.config.leader.heartbeat_ns;
        if let Some(member) = self.config.membership.member(target) {
            let header = Header {
                ballot: lead.leader.ballot(),
                vote_ballot: Ballot(u64::from(target.0)),
                flags: Flags::NOW,
                ..Header::new(Kind::Transfer, self.config.group, self.config.node)
            };
            turn.io.send(member.address, &header, &[]);
        }
    }

    // The end of a turn.

    /// Does what is due: sends what has gathered, applies what was chosen, watches the clock.
    pub fn turn<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        self.note_journalled(turn.local);
        if self.lead.is_some() {
            self.drive(turn);
        }
        if self.lead.is_none() {
            self.learn(turn);
            self.watch(turn);
            self.report_progress(turn);
        }
        let leader = self.leader(turn.now_ns, turn.local);
        let request = self.catch_up.poll(
            turn.now_ns,
            self.config.group,
            self.applied.slot(),
            leader,
            self.config.node,
            &self.config.membership,
        );
        if let Some((source, header)) = request
            && let Some(member) = self.config.membership.member(source)
        {
            turn.io.send(member.address, &header, &[]);
        }
        let (group, node) = (self.config.group, self.config.node);
        self.responses.flush(group, node, |to, header, value| {
            turn.io.send(to, header, value);
        });
        // Each packet costs the sender a wake-up, so the clients' go before the news.
        self.send_orders(turn, Leader::announce);
    }

    fn watch<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        match &self.election.pre_vote {
            Some(pre_vote) if turn.now_ns < pre_vote.until_ns => {}
            Some(_) => self.election.wait(turn.now_ns),
            None => {
                if turn.now_ns >= self.election_due_ns(turn.local) {
                    self.ask_pre_vote(turn);
                    if self.lead.is_some() {
                        self.drive(turn);
                    }
                }
            }
        }
    }

    fn election_due_ns<M: Memory, J: Journal>(&self, local: &Local<M, J>) -> u64 {
        let seen_ns = local
            .view(self.config.group)
            .map_or(0, |view| local.seen_ns(view.decided.ballot.node()));
        self.election.due_ns(seen_ns)
    }

    fn drive<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        self.stamp_for_machine(turn);
        // Own votes may complete a round at once (a single member, or the last vote missing), which
        // may give the next batch its turn: each pass decides something or is the last.
        loop {
            self.send_orders(turn, Leader::send);
            let decided = self.apply_decided(turn);
            if self.own_replies.is_empty() && !decided {
                break;
            }
        }
        self.serve_reads();
        self.trim(turn);
        self.hand_over(turn);
        if let Some(lead) = &mut self.lead {
            let campaigning_ns = turn.now_ns.saturating_sub(lead.since_ns);
            if lead.leader.leads() {
                if lead.since_ns != u64::MAX {
                    lead.since_ns = u64::MAX;
                    self.tally.elected += 1;
                }
            } else if campaigning_ns > self.config.election.campaign_ns {
                // A candidate that has to catch up first may take longer, while it gets on.
                let pulled = self.catch_up.pulling().map_or(0, |(_, bytes, _)| bytes);
                let learned = (self.applied.slot(), pulled);
                if learned == lead.learned {
                    self.step_down(turn);
                } else {
                    (lead.learned, lead.since_ns) = (learned, turn.now_ns);
                }
            }
        }
    }

    /// A machine that waits for the clock (keys that expire) has it moved by the log.
    fn stamp_for_machine<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        let wake_ms = self.applied.machine().wake_ms();
        let Some(lead) = &mut self.lead else { return };
        if wake_ms.is_some_and(|wake_ms| wake_ms <= turn.unix_ms)
            && self.applied.clock_ms() < turn.unix_ms
            && lead.leader.leads()
            && lead.leader.is_idle()
        {
            Self::stamp(lead, turn.unix_ms);
        }
    }

    fn send_orders<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        what: Sending,
    ) {
        let Self {
            config,
            lead,
            own_replies,
            place,
            ..
        } = self;
        let Some(lead) = lead else { return };
        let Turn {
            now_ns, local, io, ..
        } = turn;
        let membership = &config.membership;
        what(&mut lead.leader, *now_ns, membership, &mut |order| {
            let mut own = false;
            for (index, member) in membership.members.iter().enumerate() {
                let wanted = match order.to {
                    To::All => true,
                    To::AllBut(voters) => !voters.has(index),
                    To::Only(voters) => voters.has(index),
                };
                if !wanted {
                    continue;
                }
                if index == *place {
                    own = true;
                    continue;
                }
                let header = Header {
                    sender: config.node,
                    incarnation: member.incarnation,
                    epoch: membership.epoch,
                    length: order.value.len() as u16,
                    ..order.header
                };
                io.send(member.address, &header, order.value);
            }
            if own {
                let header = Header {
                    sender: config.node,
                    epoch: membership.epoch,
                    length: order.value.len() as u16,
                    ..order.header
                };
                if let Some((reply, value)) = local.step(*now_ns, Asker::Own, &header, order.value)
                {
                    own_replies.push((reply, Vec::from(value)));
                }
            }
        });
        let mut replies = core::mem::take(&mut self.own_replies);
        for (reply, value) in replies.drain(..) {
            self.answered(turn, self.place, &reply, &value);
        }
        self.own_replies = replies;
    }

    /// Applies the values that a quorum has chosen. True if there was one.
    fn apply_decided<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
    ) -> bool {
        let mut any = false;
        while let Some(lead) = &mut self.lead {
            let ballot = lead.leader.ballot();
            let decided = lead.leader.next_decided(&self.config.membership);
            let Some((value, voters)) = decided else {
                break;
            };
            any = true;
            let slot = lead.leader.decided();
            debug_assert_eq!(slot, self.applied.slot().next());
            // The others may have chosen it without this node's acceptor.
            let missing = turn.local.durability() != Durability::Volatile
                && !voters.has(self.place)
                && turn
                    .local
                    .vote(self.config.group, slot)
                    .is_none_or(|(own, _)| own < ballot);
            let record = Header {
                slot,
                vote_ballot: ballot,
                length: value.len() as u16,
                ..Header::new(Kind::Learn, self.config.group, self.config.node)
            };
            let missed = missing && !turn.local.record(&record, &value);
            self.apply(ballot, value);
            if missed {
                self.miss_record(turn.local);
            }
        }
        if any {
            self.advanced(turn);
        }
        any
    }

    fn serve_reads(&mut self) {
        let Self {
            applied,
            responses,
            lead,
            tally,
            ..
        } = self;
        let Some(lead) = lead else { return };
        let confirmed = lead.leader.confirmed();
        let mut reply = Vec::new();
        while lead
            .reads
            .front()
            .is_some_and(|read| read.barrier <= confirmed)
        {
            let Some(read) = lead.reads.pop_front() else {
                break;
            };
            for entry in entries(&read.body).map_while(Result::ok) {
                if entry.kind != EntryKind::Query {
                    continue;
                }
                reply.clear();
                applied.query(entry.body, &mut reply);
                tally.queries += 1;
                let outcome = Outcome {
                    sequence: entry.sequence,
                    status: Status::Done,
                    body: &reply,
                };
                responses.add(read.route, read.session, &outcome);
            }
        }
    }

    /// When [`Replica::turn`] should be called at the latest, in nanoseconds of the monotonic
    /// clock.
    pub fn next_timer_ns<M: Memory, J: Journal>(
        &self,
        now_ns: u64,
        unix_ms: u64,
        local: &Local<M, J>,
    ) -> u64 {
        let mut due = self.catch_up.next_timer_ns();
        match &self.lead {
            Some(lead) => {
                due = due.min(lead.leader.next_timer_ns());
                if lead.leader.leads()
                    && lead.leader.is_idle()
                    && let Some(wake_ms) = self.applied.machine().wake_ms()
                {
                    let in_ms = wake_ms.saturating_sub(unix_ms);
                    due = due.min(now_ns.saturating_add(in_ms.saturating_mul(1_000_000)));
                }
            }
            None => {
                due = due.min(match &self.election.pre_vote {
                    Some(pre_vote) => pre_vote.until_ns,
                    None => self.election_due_ns(local),
                });
                if self.leader(now_ns, local).is_some() {
                    due = due.min(self.report_due_ns());
                }
            }
        }
        due
    }
}
