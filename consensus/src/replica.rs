//! The replica of one group on one node: it joins the roles.
//!
//! Sans-IO: packets, time and timers come in as arguments, packets go out through [`Io`], and the
//! node's own acceptor is stepped through [`Local`]. The same code runs under the worker loop and
//! in the simulator.

mod clients;
mod elections;
mod leading;
mod learning;
mod matching;
mod matchmaking;
mod reading;
mod reconfiguring;
mod succession;
mod teaching;

pub use reconfiguring::Reconfigured;
pub use teaching::Lessons;

use crate::applied::{Applied, Recipient};
use crate::catch_up::{CHUNK_BYTES, CatchUp, FIRST_CHUNKS, LEARN_SLOTS, Pace, SNAPSHOT_CHUNKS};
use crate::configuration::{Configuration, Matchmakers};
use crate::election::{Election, ElectionTiming, PreVote};
use crate::envelope::{ENTRY_BYTES, Entry, EntryKind, Outcome, Status, entries};
use crate::leader::{Heard, Leader, LeaderTiming, Sending, To};
use crate::local::{Asker, Durability, Journal, Local};
use crate::matchmaker::{Book, Match, Register};
use crate::memory::Memory;
use crate::quorum::{Electorate, Member, MemberRole, Membership, Voters};
use crate::region::GroupView;
use crate::responses::{Responses, Route};
use crate::session::Sessions;
use crate::simulation::{Fault, Mutation, mutated, strikes};
use crate::standing::Standing;
use crate::state_machine::{Frozen, SnapshotId, StateMachine};
use crate::wire::{Flags, HEADER_BYTES, Header, Kind};
use crate::{Ballot, GroupId, Incarnation, NodeId, Sequence, SessionId, Slot};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec;
use alloc::vec::Vec;
use core::net::SocketAddr;
use reading::Reading;

/// Queries that may wait for a barrier at once; past it they are dropped.
const MAX_READS: usize = 4096;
/// A follower's gap is asked for after this long, in nanoseconds: the vote may be on its way.
const GAP_PATIENCE_NS: u64 = 2_000_000;
/// A leadership transfer that takes longer is called off, in nanoseconds.
const TRANSFER_NS: u64 = 1_000_000_000;
/// Heartbeats for which its successor heeds a leader's call. It is repeated every heartbeat.
const CALL_BEATS: u64 = 2;
/// A member not heard of for so long does not hold the trim back, in nanoseconds.
pub(crate) const LAGGARD_NS: u64 = 1_000_000_000;
/// Closed sessions that a leader may still hold in mind.
const FORGOTTEN_SESSIONS: usize = 1024;
/// A leader leads for so many election times at least before it makes way for one that is preferred.
const SETTLE_TIMEOUTS: u64 = 10;
/// Heartbeats between two reports of progress when there was none.
const REPORT_BEATS: u64 = 10;
/// Whom a replica that does not lead tells at most who does, once it knows.
const MAX_INQUIRERS: usize = 256;
/// Who asked longer ago than this has asked again or has gone, in nanoseconds.
const ASKED_NS: u64 = 1_000_000_000;
/// Reports of progress in which a leader that was deposed alive tells of its stall.
const STALL_REPORTS: u8 = 3;

/// What a replica needs of its host.
pub trait Io {
    /// Sends a packet to whoever is reached at `to`. The tag is filled in here.
    fn send(&mut self, to: SocketAddr, header: &Header, value: &[u8]);
    /// Makes sure, durably, that no later life of this node uses a round up to `round`. False if
    /// that cannot be done now.
    fn reserve_rounds(&mut self, round: u64) -> bool;
    /// Writes down what this node keeps of the group's configurations, in place of what was there,
    /// as durably as its acceptor's votes are. False if that cannot be done now.
    fn keep_register(&mut self, group: GroupId, register: &[u8]) -> bool;
    /// Reads from a snapshot of this node at `offset` into `out`: from the one of that slot and
    /// checksum, or from the newest. `None` if there is no such snapshot.
    fn read_snapshot(
        &mut self,
        group: GroupId,
        of: Option<(Slot, u32)>,
        offset: u64,
        out: &mut [u8],
    ) -> Option<Piece>;
    /// Writes down the piece at `offset` of another node's snapshot, if its checksum is `crc`, and
    /// returns how many bytes of that snapshot are here, without a gap from its beginning on; what
    /// an earlier life has received counts. `None` if it can be written down nowhere. A snapshot
    /// that was being received before is given up. Pieces come in order, after an empty one that
    /// begins it.
    ///
    /// When all of it is here, the host checks it, keeps it as a snapshot of this node, makes a
    /// state of it beside the worker, and hands that to
    /// [`Node::take_over`](crate::node::Node::take_over).
    fn keep_piece(
        &mut self,
        group: GroupId,
        id: SnapshotId,
        offset: u64,
        piece: &[u8],
        crc: u32,
    ) -> Option<u64>;
}

/// What was read from a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    /// Which.
    pub id: SnapshotId,
    /// How many bytes.
    pub bytes: usize,
    /// Their CRC-32C.
    pub crc: u32,
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
    /// Whether a follower may ask for votes; otherwise too many others do.
    pub may_campaign: bool,
    /// What may leave to teach others: all groups share it.
    pub lessons: Lessons,
}

/// How a replica is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// The life of its memory.
    pub incarnation: Incarnation,
    /// The group.
    pub group: GroupId,
    /// Slots that acceptors keep at once.
    pub window: u64,
    /// Longest value in bytes.
    pub value_bytes: usize,
    /// How long the leader waits.
    pub leader: LeaderTiming,
    /// How long leases last, in nanoseconds; leaders ask for none if zero.
    pub lease_ns: u64,
    /// Whether followers answer queries by asking a quorum.
    pub quorum_reads: bool,
    /// How long followers wait.
    pub election: ElectionTiming,
    /// How those that lag are taught.
    pub pace: Pace,
    /// For back-off and nonces.
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

/// What a member reported last.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    applied: Slot,
    /// The trim that its acceptor keeps whatever its durability covers.
    trim: Slot,
    /// The newest configuration that it knows, and the generation of the newest matchmakers.
    knows: (Ballot, u32),
    /// Whose leader it follows.
    follows: Ballot,
    heard_ns: u64,
}

/// What a follower told its leader last.
#[derive(Clone, Copy, Debug, Default)]
struct Reported {
    recoverable: Slot,
    trimmed: Slot,
    knows: (Ballot, u32),
    follows: Ballot,
}

#[derive(Debug)]
struct Lead {
    leader: Leader,
    /// Asks the matchmakers; phase 1 begins when a majority of them has answered.
    matching: Option<Matching>,
    /// Asks them for a higher ballot of this leader with another configuration.
    next: Option<Matching>,
    electorate: Electorate,
    /// This node's place in it.
    place: Option<usize>,
    /// The matchmakers know configurations that are garbage once this ballot's has all of it.
    collecting: Option<Collecting>,
    /// Nothing is called garbage before this leader has made its configuration once more.
    renews: bool,
    /// Has others follow the matchmakers.
    succession: Option<Succession>,
    /// No succession begins before that.
    succeed_ns: u64,
    /// Members and leavers are told the configuration again then.
    tell_ns: u64,
    /// To whom a leader that votes no more tried to hand over in vain, and when it may try again.
    tried: Voters,
    leave_ns: u64,
    since_ns: u64,
    /// When it began, or last thought of handing over.
    led_ns: u64,
    /// When it was last driven.
    driven_ns: u64,
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
    /// Whether nothing more is proposed, since another is to lead.
    fn hands_over(&self) -> bool {
        self.transfer.is_some_and(|transfer| transfer.has_stopped)
    }

    /// Whether slots that may have been chosen in lower ballots are still to be applied.
    fn is_early(&self, applied: Slot) -> bool {
        applied < self.leader.inherited() && !mutated(Mutation::ServesTooEarly)
    }

    /// Begins to hand over: serves nobody from when `target` lacks little until it leads, or the time
    /// for it is over.
    const fn hand_to(&mut self, target: NodeId, now_ns: u64, lease_ns: u64) {
        self.transfer = Some(Transfer {
            target,
            // The successor waits for what is left of a lease.
            until_ns: now_ns + TRANSFER_NS + lease_ns,
            ask_ns: 0,
            has_stopped: false,
        });
    }

    /// Forgets sessions that are closed, once there may be more of them than open ones.
    fn forget_closed(&mut self, sessions: &Sessions) {
        let open = |id: &u64| sessions.next(SessionId(*id)).is_some();
        if self.routes.len() > 2 * sessions.len() + FORGOTTEN_SESSIONS {
            self.routes.retain(|id, _| open(id));
            self.admitted.retain(|id, _| open(id));
        }
    }
}

/// Somebody who asked a replica that does not lead.
#[derive(Clone, Copy, Debug)]
struct Inquirer {
    route: Route,
    session: SessionId,
    asked_ns: u64,
}

/// When something is sent again, at intervals that double up to 32 times the first. Whoever has it
/// due has sent it before anything can fail: what failed is tried again at the next interval.
#[derive(Clone, Copy, Debug, Default)]
struct Again {
    sent_ns: u64,
    tries: u32,
}

impl Again {
    /// When it is due: at once if it was not sent.
    fn due_ns(&self, resend_ns: u64) -> u64 {
        match self.sent_ns {
            0 => 0,
            sent_ns => sent_ns + (resend_ns << self.tries.min(5)),
        }
    }

    /// Whether it was sent.
    const fn is_sent(&self) -> bool {
        self.sent_ns != 0
    }

    /// It is sent now.
    fn sent(&mut self, now_ns: u64) {
        self.tries += u32::from(self.is_sent());
        self.sent_ns = now_ns.max(1);
    }
}

/// A configuration that a ballot is about to use.
#[derive(Debug)]
struct Matching {
    ballot: Ballot,
    /// The ballot in which it is made, by a leader.
    leads: Ballot,
    configuration: Configuration,
    bytes: Vec<u8>,
    answered: Voters,
    /// The others that are not garbage, by what was heard.
    found: Vec<Configuration>,
    garbage: Ballot,
    /// The highest ballot that was matched before this one.
    before: Ballot,
    again: Again,
}

/// Garbage that is collected once its time has come.
#[derive(Clone, Copy, Debug, Default)]
struct Collecting {
    /// Slots up to here may have been chosen by an earlier configuration.
    upto: Slot,
    /// Which matchmakers have been asked.
    generation: u32,
    answered: Voters,
    again: Again,
}

/// How far the matchmakers' succession is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// A majority of them is to match nothing any more, and to tell what it knows.
    Stopping,
    /// A majority of the next ones is to know it, too.
    HandingOver,
    /// A majority of the old ones is to accept the next ones.
    Appointing,
}

/// Others are to follow the matchmakers.
#[derive(Debug)]
struct Succession {
    /// Of the decree by which they are chosen.
    ballot: Ballot,
    from: Matchmakers,
    stage: Stage,
    /// What those that were stopped have told.
    book: Book,
    /// The highest ballot in which one of them has accepted others.
    accepted: Ballot,
    next: Matchmakers,
    answered: Voters,
    again: Again,
}

#[derive(Clone, Copy, Debug)]
struct Transfer {
    target: NodeId,
    until_ns: u64,
    ask_ns: u64,
    /// Nothing is proposed any more.
    has_stopped: bool,
}

/// A leader asks this node to take over.
#[derive(Clone, Copy, Debug)]
struct Call {
    leader: NodeId,
    /// What it had decided when it stopped.
    slot: Slot,
    until_ns: u64,
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
    /// Bytes of their values.
    pub learned_bytes: u64,
    /// Snapshots taken over from other replicas.
    pub snapshots: u64,
    /// Bytes of them.
    pub snapshot_bytes: u64,
    /// Requests dropped for want of room or because the leader was not ready.
    pub deferred: u64,
}

impl<'a> core::iter::Sum<&'a Self> for Tally {
    fn sum<I: Iterator<Item = &'a Self>>(tallies: I) -> Self {
        tallies.fold(Self::default(), |sum, one| Self {
            campaigns: sum.campaigns + one.campaigns,
            elected: sum.elected + one.elected,
            entries: sum.entries + one.entries,
            queries: sum.queries + one.queries,
            learned: sum.learned + one.learned,
            learned_bytes: sum.learned_bytes + one.learned_bytes,
            snapshots: sum.snapshots + one.snapshots,
            snapshot_bytes: sum.snapshot_bytes + one.snapshot_bytes,
            deferred: sum.deferred + one.deferred,
        })
    }
}

/// A replica.
#[derive(Debug)]
pub struct Replica<S> {
    config: Config,
    register: Register,
    /// Its place among the members, if it is one.
    place: Option<usize>,
    applied: Applied<S>,
    lead: Option<Lead>,
    called: Option<Call>,
    election: Election,
    catch_up: CatchUp,
    teaching: teaching::Teaching,
    responses: Responses,
    own_replies: Vec<(Header, Vec<u8>)>,
    /// Applied slots whose records are on their way to the journal, and those that are there.
    journalling: Option<(u64, Slot, Slot)>,
    recoverable: Slot,
    /// The trim that this node's acceptor would come back with.
    trimmed: Slot,
    /// A snapshot that was taken over but is not on disk yet.
    unsaved: Option<Slot>,
    reported: Reported,
    reported_ns: u64,
    /// The leader has spoken in this very group since the last report.
    is_spoken_to: bool,
    /// When it last spoke in it, and of which node only that counts.
    spoken_ns: u64,
    doubted: NodeId,
    /// For how many microseconds this node was stalled when it was deposed, and in how many reports
    /// to tell it.
    stall: (u32, u8),
    /// Who asked for the leader lately.
    inquirers: VecDeque<Inquirer>,
    reading: Reading,
    snapshot_wanted: bool,
    /// What the region said in the last turn.
    observed: Option<Observed>,
    tally: Tally,
}

/// What a region says of candidates and leaders.
#[derive(Clone, Copy, Debug)]
struct Observed {
    promised: Ballot,
    seen_ns: u64,
}

/// How early a member campaigns in a group: by priority, and among equals each group begins with
/// another one, so that leaders are spread over the nodes.
fn precedence(membership: &Membership, group: GroupId, member: &Member) -> (u8, usize) {
    let higher = |other: &&Member| other.node > member.node;
    let place = membership.members.iter().filter(higher).count();
    let turned = place + usize::from(group.0);
    (member.priority, turned % membership.members.len().max(1))
}

/// How many members campaign earlier than `node`.
fn rank(membership: &Membership, group: GroupId, node: NodeId) -> usize {
    let own = membership.member(node);
    let own = own.map_or((0, 0), |own| precedence(membership, group, own));
    let outranks = |other: &&Member| {
        other.role == MemberRole::Voter && precedence(membership, group, other) > own
    };
    membership.others(node).filter(outranks).count()
}

impl<S: StateMachine> Replica<S> {
    /// A replica whose state is `applied`, restored by the caller from snapshot and journal, and
    /// which knows of members what `register` says.
    pub fn new(config: Config, register: Register, applied: Applied<S>, now_ns: u64) -> Self {
        let rank = rank(&register.newest.membership, config.group, config.node);
        let mut election = Election::new(config.election, rank, config.seed, now_ns);
        election.round = config.used_round;
        let mut replica = Self {
            place: None,
            recoverable: applied.slot(),
            trimmed: Slot::NONE,
            applied,
            lead: None,
            called: None,
            election,
            catch_up: CatchUp::new(config.pace.chunk_bytes),
            teaching: teaching::Teaching::default(),
            responses: Responses::default(),
            own_replies: Vec::new(),
            journalling: None,
            unsaved: None,
            reported: Reported::default(),
            reported_ns: 0,
            is_spoken_to: false,
            spoken_ns: 0,
            doubted: NodeId::NONE,
            stall: (0, 0),
            inquirers: VecDeque::new(),
            reading: Reading::new(config.seed),
            snapshot_wanted: false,
            observed: None,
            tally: Tally::default(),
            register,
            config,
        };
        replica.take_place();
        replica
    }

    /// Looks up which of the members this node is.
    fn take_place(&mut self) {
        let membership = &self.register.newest.membership;
        let (node, incarnation) = (self.config.node, self.config.incarnation);
        let is_own = |member: &Member| member.is_life(node, incarnation);
        self.place = membership.members.iter().position(is_own);
        let rank = rank(membership, self.config.group, self.config.node);
        self.election.set_rank(rank);
    }

    /// What it is for, if it is a member.
    pub fn member_role(&self) -> Option<MemberRole> {
        let member = self.register.newest.membership.members.get(self.place?);
        member.map(|member| member.role)
    }

    fn is_voter(&self) -> bool {
        self.member_role() == Some(MemberRole::Voter)
    }

    /// The newest configuration that it knows.
    pub const fn configuration(&self) -> &Configuration {
        &self.register.newest
    }

    /// What it knows of configurations: the newest one, and the newest matchmakers.
    const fn knowledge(&self) -> (Ballot, u32) {
        let newest = &self.register.newest;
        (newest.version, newest.matchmakers.generation)
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
        let seen_ns = local.seen_ns(node);
        let silence_ns = now_ns.saturating_sub(seen_ns);
        // A forged Decide may name anybody, and nobody reports to a stranger.
        (self.may_be_led(&view)
            && self.register.newest.membership.place(node).is_some()
            && !self.election.is_gone(seen_ns)
            && silence_ns < self.election.silence_ns() * 2)
            .then_some(node)
    }

    /// Whether `node` is a member, or was one and its configuration is still needed.
    fn knows(&self, node: NodeId) -> bool {
        let mut electorate = self.lead.iter().flat_map(|lead| lead.electorate.members());
        self.register.newest.membership.place(node).is_some()
            || electorate.any(|member| member.node == node)
    }

    /// The silence after which this replica takes a leader for dead, in nanoseconds.
    pub fn silence_ns(&self) -> u64 {
        self.election.silence_ns()
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

    /// A frozen snapshot of the state, for another thread to write. What it holds is journalled
    /// first as far as there is room: should it rot, the one before it and the journal lead as far.
    pub fn freeze<M: Memory, J: Journal>(
        &mut self,
        local: &mut Local<M, J>,
    ) -> (Slot, Box<dyn Frozen>) {
        if !mutated(Mutation::SnapshotAheadOfJournal) {
            let _ = local.journal_decides();
            if let Some(record) = self.decided_record() {
                let _ = local.record(&record, &[]);
            }
        }
        let slot = self.applied.slot();
        if self.teaching.is_awaited() {
            self.applied.keep_from(slot.next());
        }
        (slot, self.applied.freeze())
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
                let lead = self.lead.as_ref();
                if let Some(place) = lead.and_then(|lead| lead.electorate.voter(header)) {
                    self.answered(turn, place, header, value);
                }
            }
            Kind::Request => self.requested(turn, from, header, value),
            Kind::Progress => self.progressed(turn, header),
            Kind::CatchUp | Kind::SnapshotRequest if header.sender == NodeId::NONE => {
                self.asked_by_tool(turn, from, header, value.len());
            }
            Kind::CatchUp => self.asked_to_teach(turn, header),
            Kind::Learn => self.learned(turn, header, value),
            Kind::SnapshotRequest => self.asked_for_snapshot(turn, header),
            Kind::SnapshotChunk => self.snapshot_piece(turn, from, header, value),
            Kind::ReadIndex => self.asked_index(turn, from, header),
            Kind::Index => self.heard_index(header),
            Kind::PreVote => self.asked_pre_vote(turn, from, header),
            Kind::PreVoteGranted => self.pre_vote_granted(turn, header),
            Kind::Transfer => self.asked_to_transfer(turn, from, header),
            Kind::Match | Kind::Garbage | Kind::Stop | Kind::HandOver | Kind::Appoint => {
                self.asked_as_matchmaker(turn, from, header, value);
            }
            Kind::Matched
            | Kind::Unmatched
            | Kind::Collected
            | Kind::Stopped
            | Kind::HandedOver
            | Kind::Appointed => self.answered_by_matchmaker(turn, header, value),
            Kind::Configuration => self.told_configuration(turn, from, value),
            Kind::Reconfigure => self.asked_to_reconfigure(turn, from, header, value),
            Kind::Prepare
            | Kind::Fetch
            | Kind::Accept
            | Kind::Decide
            | Kind::Read
            | Kind::Response
            | Kind::Redirect
            | Kind::Hello
            | Kind::Inspect
            | Kind::Report
            | Kind::Reconfigured
            | Kind::Pulse => {}
        }
    }

    /// A reply of this node's own acceptor, which had to wait for its record.
    pub fn answered_by_own<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        reply: &Header,
    ) {
        if let Some(place) = self.lead.as_ref().and_then(|lead| lead.place) {
            self.answered(turn, place, reply, &[]);
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
                if let Some(view) = turn.local.view(self.config.group)
                    && view.decided.ballot == request.ballot
                    && self.may_be_led(&view)
                {
                    self.is_spoken_to = true;
                    self.spoken_ns = turn.now_ns;
                    self.led(turn, view.decided.ballot);
                }
                self.learn(turn);
            }
            _ => {}
        }
    }

    /// Does what is due: sends what has gathered, applies what was chosen, watches the clock.
    pub fn turn<M: Memory, J: Journal, I: Io>(&mut self, turn: &mut Turn<'_, M, J, I>) {
        self.observe(turn);
        self.note_journalled(turn.local);
        if mutated(Mutation::ExpiryByLocalClock) {
            self.applied.tick(turn.unix_ms);
        }
        self.heed(turn);
        if self.lead.is_some() {
            self.drive(turn);
        }
        if self.lead.is_none() {
            self.learn(turn);
            self.watch(turn);
            self.report_progress(turn);
        }
        if self.catch_up.is_due(turn.now_ns, self.applied.slot()) {
            self.ask_to_be_taught(turn);
        }
        self.read_by_quorum(turn);
        self.teach(turn);
        let (group, node) = (self.config.group, self.config.node);
        self.responses.flush(group, node, |to, header, value| {
            turn.io.send(to, header, value);
        });
        let rests = self.may_rest(turn.now_ns, turn.local);
        if let Some(lead) = &mut self.lead {
            lead.leader.rest(rests);
        }
        // Each packet costs the sender a wake-up, so the clients' go before the news.
        self.send_orders(turn, Leader::announce);
    }

    /// What others than this group's packets tell is taken from this.
    /// Nothing while its record is being written.
    pub(crate) fn standing<M: Memory, J: Journal>(&self, local: &Local<M, J>) -> Option<Standing> {
        let view = local.view(self.config.group)?;
        let led_by = match &self.lead {
            Some(lead) if lead.leader.leads() => lead.leader.ballot(),
            Some(_) => Ballot::NONE,
            None if self.place.is_some() && self.may_be_led(&view) => view.decided.ballot,
            None => Ballot::NONE,
        };
        let has_news = self.recoverable < self.applied.slot() || self.trimmed < view.trim;
        Some(Standing {
            led_by,
            campaigns: match &self.lead {
                Some(lead) => !lead.leader.leads(),
                None => self.election.pre_vote.is_some(),
            },
            awaits_votes: self.awaits_votes(),
            awaits_journal: has_news && local.durability() != Durability::Volatile,
            version: self.register.newest.version,
        })
    }

    /// When [`Replica::turn`] should be called at the latest, in nanoseconds of the monotonic
    /// clock.
    pub fn next_timer_ns<M: Memory, J: Journal>(
        &self,
        now_ns: u64,
        unix_ms: u64,
        local: &Local<M, J>,
    ) -> u64 {
        let quiet = self.teaching.due_ns().min(self.reading.due_ns());
        let mut due = self.catch_up.next_timer_ns().min(quiet);
        match &self.lead {
            Some(lead) => {
                due = due.min(self.matching_due_ns(lead)).min(lead.tell_ns);
                if lead.matching.is_none() {
                    due = due.min(lead.leader.next_timer_ns());
                }
                if lead.leader.leads()
                    && lead.leader.is_idle()
                    && let Some(wake_ms) = self.applied.machine().wake_ms()
                {
                    // A machine that does a part of its work at each tick still has some to do; but
                    // the log's clock moves on no earlier than the wall clock.
                    let tick_ms = wake_ms.max(self.applied.clock_ms().saturating_add(1));
                    let in_ms = tick_ms.saturating_sub(unix_ms);
                    due = due.min(now_ns.saturating_add(in_ms.saturating_mul(1_000_000)));
                }
            }
            None => {
                due = due.min(match &self.election.pre_vote {
                    Some(pre_vote) => pre_vote.until_ns,
                    None => self.election_due_ns(local),
                });
                if self.leader(now_ns, local).is_some() {
                    due = due.min(self.report_due_ns(local));
                }
            }
        }
        due
    }
}
