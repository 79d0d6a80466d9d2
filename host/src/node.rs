//! The service that a worker drives: a node, its client front, its snapshots.

use crate::cutting::Cutting;
use crate::data_directory::{DataDirectory, boot_id};
use crate::engine::Software;
use crate::front::{Access, Completion, Failure, Lease, Submission, WorkerEnd};
use crate::fullness::Fullness;
use crate::resp::cluster::Leaders;
use crate::snapshots::{Done, Failed, Snapshots};
use crate::supervision::Supervision;
use crate::wal::Wal;
use consensus::applied::Applied;
use consensus::auth::{self, Key, Keys};
use consensus::client::{self, Client, SubmitError};
use consensus::formation::{Conflict, Terms};
use consensus::node::{Node, NodeIo};
use consensus::quorum::MemberRole;
use consensus::replica::{Io, Piece, Replica, Role, Tally};
use consensus::state_machine::{SnapshotId, StateMachine};
use consensus::wire::{Flags, Header, Kind};
use consensus::{GroupId, Incarnation, NodeId, Slot};
use datapath::{Awaits, Lifelines, Service, Stats, Transmit, clock};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The first group.
pub const GROUP: GroupId = GroupId(0);
/// Groups that a turn looks after at the most: of a thousand each has its turn often enough.
const GROUPS_PER_TURN: usize = 16;
/// Rounds reserved ahead, so that an election waits for no disk but the matchmakers'.
const ROUNDS_AHEAD: u64 = 1024;
/// Slots applied between two snapshots of a journalled state.
pub const SNAPSHOT_SLOTS: u64 = 50_000;
/// After a snapshot that could not be written, the next one waits so long, in nanoseconds.
const SNAPSHOT_PAUSE_NS: u64 = 1_000_000_000;
/// Between two refreshes of the report for other threads, in nanoseconds; ten times that if it is
/// put together from many groups.
const REPORT_NS: u64 = 100_000_000;
/// A front's new commands are refused once nothing was answered for so long, in nanoseconds.
const LEADERLESS_NS: u64 = 5_000_000_000;
/// Between two looks of a follower at a region that another engine steps, in nanoseconds.
const WATCH_NS: u64 = 1_000_000;
/// Longest sleep of a worker.
const MAX_SLEEP: Duration = Duration::from_millis(100);

/// Why a node ends by itself.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The journal cannot be written any more: nothing could be answered honestly.
    #[error("{0}; nothing is answered from here on: mend the disk, then start this node again")]
    Journal(String),
    /// The cluster knows this node under another incarnation.
    #[error(
        "node {by} knows this node as incarnation {pinned}, but its memory is {own}: it was lost \
         and must not vote under its old identity. Have it replaced: `nearwire member replace --lost`"
    )]
    Disowned {
        /// Who says so.
        by: NodeId,
        /// What they have on record.
        pinned: Incarnation,
        /// What this node has.
        own: Incarnation,
    },
}

/// What does not change while a node runs, for reports.
#[derive(Clone, Debug)]
pub struct Facts {
    /// How the worker waits.
    pub wait: &'static str,
    /// The datapath.
    pub mode: &'static str,
    /// Where Redis clients are served.
    pub resp: Option<SocketAddr>,
    /// Where they are served over TLS.
    pub resp_tls: Option<SocketAddr>,
    /// Torn records that were restored when the region was opened.
    pub restored: u64,
    /// Journal records that were replayed.
    pub replayed: u64,
}

/// A client front of this node: its submissions go through one FIFO session of each group.
struct Front {
    end: WorkerEnd,
    /// What the sessions are made with.
    config: client::Config,
    /// Where queries are asked, if not the leader.
    reads_from: Option<SocketAddr>,
    /// Begun with the first submission for the group.
    sessions: Vec<Option<Box<Session>>>,
    /// The groups whose session has something to do.
    busy: Vec<GroupId>,
    /// Taken from the front, but the session's window is full.
    waiting: Option<Submission>,
}

/// A front's session of a group.
struct Session {
    client: Client,
    /// When something was last answered, or nothing waited for an answer.
    moved_ns: u64,
    is_busy: bool,
}

impl Front {
    fn begin(&self, group: GroupId) -> Result<Box<Session>, client::ConfigError> {
        let client = Client::new(client::Config {
            group,
            seed: self.config.seed.wrapping_add(u64::from(group.0)),
            ..self.config.clone()
        })?;
        Ok(Box::new(Session {
            client: match self.reads_from {
                Some(address) => client.reading_from(address),
                None => client,
            },
            moved_ns: 0,
            is_busy: false,
        }))
    }

    /// The group's session, which has something to do from now on.
    fn session(&mut self, now_ns: u64, group: GroupId) -> Option<&mut Session> {
        if self.sessions.get(usize::from(group.0))?.is_none() {
            // What the first one took the others take.
            let begun = self.begin(group).ok()?;
            *self.sessions.get_mut(usize::from(group.0))? = Some(begun);
        }
        let session = self.sessions.get_mut(usize::from(group.0))?.as_mut()?;
        if !std::mem::replace(&mut session.is_busy, true) {
            session.moved_ns = now_ns;
            self.busy.push(group);
        }
        Some(session)
    }
}

impl Session {
    /// Hands the front what was answered.
    fn complete(&mut self, now_ns: u64, limit: usize, end: &mut WorkerEnd) {
        if self.client.unanswered() == 0 {
            self.moved_ns = now_ns;
        }
        while let Some(event) = self.client.poll_event() {
            self.moved_ns = now_ns;
            let result = event.result.map_err(|failure| match failure {
                client::Failure::TooLarge => Failure::TooLarge { limit },
                client::Failure::TooManySessions => Failure::Overloaded,
                client::Failure::OutcomeUnknown | client::Failure::ReplyForgotten => {
                    Failure::OutcomeUnknown
                }
            });
            end.complete(Completion {
                token: event.token,
                result,
            });
        }
    }
}

/// What is looked after for each group.
struct Kept {
    cutting: Cutting,
    snapshot_due_ns: u64,
    /// Whoever wanted the last one still does.
    snapshot_failed: bool,
    fullness: Fullness,
}

/// What the node needs of the host while it runs.
struct Host<S> {
    directory: DataDirectory,
    address: SocketAddr,
    terms: Terms,
    reserved_round: u64,
    snapshots: Snapshots<S>,
    lifelines: Lifelines,
    /// Whose ends they tell.
    watched: Vec<SocketAddr>,
    /// Packets to this very node: a front's requests and the answers to them.
    to_self: VecDeque<(Header, Vec<u8>)>,
    inspections: Vec<(SocketAddr, Header)>,
    error: Option<String>,
}

/// The host, with the way out of this turn.
struct Outbox<'a, T, S> {
    host: &'a mut Host<S>,
    tx: &'a mut T,
}

impl<T: Transmit, S> Io for Outbox<'_, T, S> {
    fn send(&mut self, to: SocketAddr, header: &Header, value: &[u8]) {
        if to == self.host.address {
            self.host.to_self.push_back((*header, value.to_vec()));
        } else {
            self.tx.send(to, &header.to_bytes(), value);
        }
    }

    fn reserve_rounds(&mut self, round: u64) -> bool {
        if round < self.host.reserved_round {
            return true;
        }
        let reserved = round + ROUNDS_AHEAD;
        match self
            .host
            .directory
            .update(|identity| identity.reserved_round = reserved)
        {
            Ok(()) => {
                self.host.reserved_round = reserved;
                true
            }
            Err(error) => {
                self.host.error = Some(error.to_string());
                false
            }
        }
    }

    fn keep_register(&mut self, group: GroupId, register: &[u8]) -> bool {
        let result = self.host.directory.keep_register(group, register);
        if let Err(error) = &result {
            self.host.error = Some(error.to_string());
        }
        result.is_ok()
    }

    fn read_snapshot(
        &mut self,
        group: GroupId,
        of: Option<(Slot, u32)>,
        offset: u64,
        out: &mut [u8],
    ) -> Option<Piece> {
        self.host.snapshots.read(group, of, offset, out)
    }

    fn keep_piece(
        &mut self,
        group: GroupId,
        id: SnapshotId,
        offset: u64,
        piece: &[u8],
        crc: u32,
    ) -> Option<u64> {
        self.host.snapshots.keep(group, id, offset, piece, crc)
    }
}

impl<T: Transmit, S> NodeIo for Outbox<'_, T, S> {
    fn pin(&mut self, pins: &BTreeMap<NodeId, Incarnation>, formed: bool) -> bool {
        let result = boot_id().and_then(|boot_id| {
            self.host.directory.update(|identity| {
                if formed && !identity.formed {
                    identity.formed_boot_id = Some(boot_id);
                    identity.terms = Some(self.host.terms);
                }
                identity.pins = pins.clone();
                identity.formed = formed;
            })
        });
        if let Err(error) = &result {
            self.host.error = Some(error.to_string());
        }
        result.is_ok()
    }

    fn client(&mut self, _: SocketAddr, header: &Header, value: &[u8]) {
        self.host.to_self.push_back((*header, value.to_vec()));
    }

    fn inspect(&mut self, to: SocketAddr, request: &Header) {
        self.host.inspections.push((to, *request));
    }
}

/// A node as a worker's service.
pub struct NodeService<S> {
    node: Node<Software, Wal, S>,
    host: Host<S>,
    front: Option<Front>,
    key: Option<Key>,
    new_keys: NewKeys,
    facts: Facts,
    leaders: Leaders,
    offload: Option<Supervision>,
    unix: (u64, u64),
    kept: Vec<Kept>,
    /// The group that is looked after next.
    next_kept: usize,
    snapshot_slots: u64,
    report: Arc<Mutex<String>>,
    report_due_ns: u64,
    stop: Arc<AtomicBool>,
    fatal: Option<Fatal>,
    stats: Stats,
}

/// The cluster's keys, once others are to be used than before.
pub type NewKeys = Box<dyn FnMut() -> Option<Keys> + Send>;

/// What a node service is made of.
pub struct Parts<S> {
    /// The sans-IO node.
    pub node: Node<Software, Wal, S>,
    /// Its data directory.
    pub directory: DataDirectory,
    /// Where its datagrams go.
    pub address: SocketAddr,
    /// What tells of others that died.
    pub lifelines: Lifelines,
    /// Its snapshots.
    pub snapshots: Snapshots<S>,
    /// Slots applied between two of them.
    pub snapshot_slots: u64,
    /// The worker's end of a client front.
    pub front: Option<WorkerEnd>,
    /// Who else steps the region.
    pub offload: Option<Supervision>,
    /// Asked in each turn, and so quick.
    pub new_keys: NewKeys,
    /// Set to stop.
    pub stop: Arc<AtomicBool>,
    /// Facts for reports.
    pub facts: Facts,
    /// Who leads each group, for the threads of the front.
    pub leaders: Leaders,
}

impl<S: StateMachine> NodeService<S> {
    /// Joins the parts.
    ///
    /// # Errors
    /// The client front's session cannot be configured.
    pub fn new(parts: Parts<S>) -> Result<Self, client::ConfigError> {
        let config = parts.node.config();
        let key = config.key;
        let groups = parts.node.formation().terms().groups();
        let layout = parts.node.local().acceptor().layout;
        let front = match parts.front {
            None => None,
            Some(end) => {
                // The own node first: while it leads, a front's requests never leave the process.
                let mut members: Vec<_> = config
                    .peers
                    .iter()
                    .map(|peer| (peer.node, peer.address))
                    .collect();
                members.sort_by_key(|(node, _)| *node != config.node);
                let reads_from = config.quorum_reads.then_some(parts.address);
                let config = client::Config {
                    members,
                    group: GROUP,
                    epoch: config.epoch,
                    max_value: max_request_bytes(layout.value_bytes()),
                    max_in_flight: FRONT_WINDOW,
                    seed: config.seed ^ 0x6672_6f6e_7400_0000,
                };
                let mut front = Front {
                    end,
                    config,
                    reads_from,
                    sessions: (0..groups).map(|_| None).collect(),
                    busy: Vec::with_capacity(usize::from(groups)),
                    waiting: None,
                };
                let first = front.begin(GROUP)?;
                if let Some(place) = front.sessions.first_mut() {
                    *place = Some(first);
                }
                Some(front)
            }
        };
        let reserved_round = parts.directory.identity().reserved_round;
        let kept = (0..groups).map(|group| Kept {
            cutting: Cutting::new(parts.snapshots.slot(GroupId(group))),
            snapshot_due_ns: 0,
            snapshot_failed: false,
            fullness: Fullness::default(),
        });
        let kept = kept.collect();
        Ok(Self {
            host: Host {
                directory: parts.directory,
                address: parts.address,
                terms: parts.node.formation().terms(),
                reserved_round,
                snapshots: parts.snapshots,
                lifelines: parts.lifelines,
                watched: Vec::new(),
                to_self: VecDeque::new(),
                inspections: Vec::new(),
                error: None,
            },
            node: parts.node,
            front,
            key,
            new_keys: parts.new_keys,
            facts: parts.facts,
            leaders: parts.leaders,
            offload: parts.offload,
            unix: (0, 0),
            kept,
            next_kept: 0,
            snapshot_slots: parts.snapshot_slots,
            report: Arc::new(Mutex::new(String::new())),
            report_due_ns: 0,
            stop: parts.stop,
            fatal: None,
            stats: Stats::default(),
        })
    }

    /// The newest report, for the threads of the front; none is made without one.
    pub fn report(&self) -> Arc<Mutex<String>> {
        Arc::clone(&self.report)
    }

    /// Why the node ended by itself, if it did.
    pub fn fatal(&mut self) -> Option<Fatal> {
        self.fatal.take()
    }

    /// Lets go of the client front, which tells its clients at once that nothing more will come.
    pub fn detach_front(&mut self) {
        self.front = None;
    }

    /// The end: writes the state down so that the next life need not learn it again.
    ///
    /// # Errors
    /// The snapshot cannot be written.
    pub fn close(mut self) -> Result<(), crate::snapshot_file::SnapshotError> {
        let groups = (0..self.node.replicas().len() as u16).map(GroupId);
        let states = groups.filter_map(|group| {
            let (slot, frozen) = self.node.freeze(group)?;
            Some((group, slot, frozen))
        });
        self.host.snapshots.finish(states)
    }

    fn unix_ms(&mut self, now_ns: u64) -> u64 {
        if self.unix.0 != now_ns {
            self.unix = (now_ns, clock::unix_ms());
        }
        self.unix.1
    }

    /// Carries the packets of this node to itself until there are none.
    fn deliver<T: Transmit>(&mut self, now_ns: u64, tx: &mut T) {
        let unix_ms = self.unix_ms(now_ns);
        while let Some((header, value)) = self.host.to_self.pop_front() {
            match header.kind {
                Kind::Response | Kind::Redirect => {
                    // An answer to a session that was never begun is a stranger's.
                    if let Some(front) = &mut self.front
                        && let Some(Some(_)) = front.sessions.get(usize::from(header.group.0))
                        && let Some(session) = front.session(now_ns, header.group)
                    {
                        let from = self.host.address;
                        session
                            .client
                            .handle_datagram(now_ns, from, &header, &value);
                    }
                }
                _ => {
                    let from = self.host.address;
                    // A front's query may have been asked after this turn's time was read, and a
                    // lease must still run when it is.
                    let now_ns = match header.flags.has(Flags::QUERY) {
                        true => clock::monotonic_ns(),
                        false => now_ns,
                    };
                    let mut io = Outbox {
                        host: &mut self.host,
                        tx,
                    };
                    self.node
                        .handle_parsed(now_ns, unix_ms, from, &header, &value, &mut io);
                }
            }
        }
    }

    /// Moves submissions into the sessions, requests out of them, and results back.
    fn serve_front<T: Transmit>(&mut self, now_ns: u64, tx: &mut T) -> u64 {
        let limit = max_command_bytes(self.node.local().acceptor().layout.value_bytes());
        let Self {
            front, host, key, ..
        } = self;
        let Some(front) = front else { return u64::MAX };
        for group in &front.busy {
            if let Some(Some(session)) = front.sessions.get_mut(usize::from(group.0)) {
                let due_ns = session.client.poll_timeout();
                if due_ns.is_some_and(|due_ns| due_ns <= now_ns) {
                    session.client.handle_timeout(now_ns);
                }
                session.complete(now_ns, limit, &mut front.end);
            }
        }
        while let Some(submission) = front.waiting.take().or_else(|| front.end.poll_submission()) {
            let token = submission.token;
            let taken = match front.session(now_ns, submission.group) {
                // What is under way cannot be taken back; what is not must not wait behind it.
                Some(session) if now_ns >= session.moved_ns.saturating_add(LEADERLESS_NS) => {
                    Err(Failure::NoLeader)
                }
                Some(session) => {
                    let taken = match submission.access {
                        Access::Command => session.client.submit_command(token, &submission.body),
                        Access::Query => session.client.submit_query(token, &submission.body),
                    };
                    match taken {
                        Ok(()) => Ok(()),
                        Err(SubmitError::Full) => {
                            front.waiting = Some(submission);
                            break;
                        }
                        Err(SubmitError::TooLarge) => Err(Failure::TooLarge { limit }),
                    }
                }
                None => Err(Failure::NoLeader),
            };
            if let Err(failure) = taken {
                front.end.complete(Completion {
                    token,
                    result: Err(failure),
                });
            }
        }
        front.end.flush();
        let mut due = u64::MAX;
        let Front { busy, sessions, .. } = front;
        busy.retain(|group| {
            let Some(Some(session)) = sessions.get_mut(usize::from(group.0)) else {
                return false;
            };
            while let Some(datagram) = session.client.poll_transmit(now_ns) {
                if datagram.to == host.address {
                    host.to_self
                        .push_back((datagram.header, datagram.value.to_vec()));
                } else {
                    let mut header = datagram.header;
                    if let Some(key) = *key {
                        header.tag = auth::tag(key, &header, datagram.value);
                    }
                    tx.send(datagram.to, &header.to_bytes(), datagram.value);
                }
            }
            due = due.min(session.client.poll_timeout().unwrap_or(u64::MAX));
            session.is_busy =
                session.client.unanswered() > 0 || session.client.poll_timeout().is_some();
            session.is_busy
        });
        due
    }

    /// Has the leases renewed by which the front answers queries itself.
    fn renew_leases(&mut self, now_ns: u64) {
        let Some(front) = &mut self.front else { return };
        front.end.wanted_leases(|group| {
            self.node.renew_lease(group, now_ns);
        });
    }

    /// Says until when the front may answer queries itself.
    fn lend_leases(&mut self) {
        while let Some((group, (until_ns, renew_ns))) = self.node.next_lease() {
            if let Some(front) = &mut self.front {
                front.end.lend(group, Lease { until_ns, renew_ns });
            }
        }
    }

    /// Watches whoever is a member now.
    fn watch_members(&mut self) {
        let watched = self.host.watched.iter().copied();
        if !self.node.other_members().eq(watched) {
            self.host.watched = self.node.other_members().collect();
            self.host.lifelines.watch(self.host.watched.clone());
        }
    }

    /// Takes over the state that was made of another's snapshot, or learns that there is none.
    fn take_over<T: Transmit>(
        &mut self,
        now_ns: u64,
        group: GroupId,
        id: SnapshotId,
        state: Option<Applied<S>>,
        tx: &mut T,
    ) {
        let now = (now_ns, self.unix_ms(now_ns));
        let host = &mut self.host;
        let mut io = Outbox { host, tx };
        let former = self.node.take_over(now, group, id, state, &mut io);
        if let Some(former) = former {
            self.host.snapshots.forget(group, former);
        }
    }

    /// Takes snapshots when they are due and cuts the journal behind them. Returns whether a state is
    /// another one now.
    fn keep_state<T: Transmit>(&mut self, now_ns: u64, tx: &mut T) -> bool {
        let done = self.host.snapshots.poll();
        let is_other = matches!(done, Some((_, Ok(Done::Received(..)))));
        match done {
            Some((group, Ok(Done::Written(slot)))) => {
                self.host.error = None;
                self.saved(group, slot);
            }
            Some((group, Ok(Done::Received(id, state)))) => {
                self.host.error = None;
                self.take_over(now_ns, group, id, Some(*state), tx);
                self.saved(group, id.slot);
            }
            Some((group, Err(Failed::Writing(error)))) => {
                self.host.error = Some(error.to_string());
                if let Some(kept) = self.kept.get_mut(usize::from(group.0)) {
                    kept.snapshot_failed = true;
                    kept.snapshot_due_ns = now_ns + SNAPSHOT_PAUSE_NS;
                }
            }
            Some((group, Err(Failed::Receiving(id, error)))) => {
                self.host.error = Some(error.to_string());
                self.take_over(now_ns, group, id, None, tx);
            }
            None => {}
        }
        let mut is_cut = false;
        for _ in 0..self.kept.len().min(GROUPS_PER_TURN) {
            is_cut |= self.keep_group(now_ns, self.next_kept);
            self.next_kept = (self.next_kept + 1) % self.kept.len();
        }
        // The groups share one journal.
        if is_cut {
            let below = self.kept.iter().map(|kept| kept.cutting.below()).min();
            self.node.local_mut().journal_mut().cut(below.unwrap_or(0));
        }
        is_other
    }

    /// The same for one group. True if it needs less of the journal than before.
    fn keep_group(&mut self, now_ns: u64, at: usize) -> bool {
        let group = GroupId(at as u16);
        let Some(kept) = self.kept.get_mut(at) else {
            return false;
        };
        let (appended, flushed) = self.node.local().journalled(group).unwrap_or_default();
        let is_cut = kept.cutting.due(flushed).is_some();
        let highest = self.node.highest_journalled(group);
        let Some(replica) = self.node.replica_mut(group) else {
            return is_cut;
        };
        kept.cutting.mark(highest, appended, self.snapshot_slots);
        let newest = self.host.snapshots.slot(group);
        let applied = replica.applied().slot();
        let holds_back = kept.cutting.holds_back(appended, self.snapshot_slots);
        let due = appended > 0
            && (applied.0 >= newest.0 + self.snapshot_slots || holds_back && applied > newest);
        if self.host.snapshots.is_busy(group) || now_ns < kept.snapshot_due_ns {
            return is_cut;
        }
        if !due && !kept.snapshot_failed && !replica.take_snapshot_wanted() {
            if holds_back && highest == applied && !kept.cutting.awaits_flush() {
                let trim = self.node.local().view(group).map(|view| view.trim);
                let local = self.node.local_mut();
                let checkpoint = || local.checkpoint(group);
                kept.cutting.rest(trim.unwrap_or(Slot::FIRST), checkpoint);
            }
            return is_cut;
        }
        kept.snapshot_failed = false;
        if applied <= newest {
            self.node.snapshot_saved(group, newest);
        } else if let Some((slot, frozen)) = self.node.freeze(group) {
            self.host.snapshots.write(group, slot, frozen);
        }
        is_cut
    }

    fn saved(&mut self, group: GroupId, slot: Slot) {
        self.node.snapshot_saved(group, slot);
        let Some(view) = self.node.local().view(group) else {
            return;
        };
        let local = self.node.local_mut();
        if let Some(kept) = self.kept.get_mut(usize::from(group.0)) {
            kept.cutting
                .saved(slot, view.trim, || local.checkpoint(group));
        }
    }

    /// Looks after the offload. Returns when to look at what it made of the region: no packet tells.
    fn supervise(&mut self, now_ns: u64) -> u64 {
        let is_formed = !self.node.replicas().is_empty();
        let leads = |replica: &Replica<S>| replica.role() == Role::Leader;
        match &mut self.offload {
            None => u64::MAX,
            Some(offload) => {
                offload.poll(now_ns, is_formed);
                // A leader hears of everything by answers.
                if offload.votes() && !self.node.replicas().iter().all(leads) {
                    now_ns + WATCH_NS
                } else {
                    u64::MAX
                }
            }
        }
    }

    fn check_fatal(&mut self) {
        if self.fatal.is_some() {
            return;
        }
        if let Some(error) = self.node.local_mut().journal_mut().failed() {
            self.fatal = Some(Fatal::Journal(error.to_string()));
        }
        if let Some(Conflict::Disowned { by, pinned }) = self.node.conflict()
            && !self.node.formation().is_formed()
        {
            let own = self.node.local().acceptor().incarnation;
            self.fatal = Some(Fatal::Disowned { by, pinned, own });
        }
    }

    /// Looks at the windows of leaders.
    fn look_at_windows(&mut self, now_ns: u64) {
        let local = self.node.local();
        let window = local.acceptor().layout.window();
        let replicas = self.node.replicas().iter();
        for (group, (replica, kept)) in (0..).map(GroupId).zip(replicas.zip(&mut self.kept)) {
            let view = match replica.role() {
                Role::Leader => local.view(group),
                Role::Candidate | Role::Follower => None,
            };
            kept.fullness.look(now_ns, view, window);
        }
    }

    /// Why nothing is written or served, if so: of one group that this is so of.
    fn reason(&self, now_ns: u64) -> Option<String> {
        let local = self.node.local();
        let mut replicas = self.node.replicas().iter().zip(&self.kept).enumerate();
        replicas.find_map(|(group, (replica, kept))| {
            let (wanted, applied) = (replica.catch_up().wanted(), replica.applied().slot());
            let is_stuck = wanted > applied && replica.leader(now_ns, local).is_none();
            let reason = is_stuck.then(|| {
                let first = applied.next();
                format!(
                    "slots {first} to {wanted} were chosen, but no node that answers has their \
                     values: start the nodes that have them; until then nothing is served"
                )
            });
            let reason = reason.or_else(|| kept.fullness.reason(now_ns))?;
            Some(match self.kept.len() {
                1 => reason,
                _ => format!("group {group}: {reason}"),
            })
        })
    }

    /// What is to be told of many groups, and what the others' numbers add up to.
    fn describe_groups(&self, now_ns: u64) -> serde_json::Value {
        let local = self.node.local();
        let replicas = self.node.replicas();
        let leader = |replica: &Replica<S>| replica.leader(now_ns, local).map_or(0, |node| node.0);
        let leaders: Vec<u16> = replicas.iter().map(leader).collect();
        let own = self.node.config().node.0;
        let applied = |replica: &Replica<S>| replica.applied().slot().0;
        serde_json::json!({
            "count": self.kept.len(),
            "led": leaders.iter().filter(|node| **node == own).count(),
            "leaderless": leaders.iter().filter(|node| **node == 0).count(),
            "leaders": leaders,
            "applied": replicas.iter().map(applied).collect::<Vec<_>>(),
        })
    }

    /// What this node is doing, as one JSON object.
    fn describe(&self, now_ns: u64) -> String {
        let config = self.node.config();
        let local = self.node.local();
        let view = local.view(GROUP);
        let replica = self.node.replicas().first();
        let formation = self.node.formation();
        let missing: Vec<u16> = formation.missing().map(|node| node.0).collect();
        let counters = self.node.counters();
        let refused = self.node.refused();
        let by_reason = |names: &[&str], counts: &[u64]| -> serde_json::Value {
            let pairs = names.iter().zip(counts).filter(|(_, count)| **count > 0);
            pairs
                .map(|(name, count)| ((*name).to_owned(), (*count).into()))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let dropped_names = consensus::acceptor::Drop::ALL.map(consensus::acceptor::Drop::name);
        let malformed_names = consensus::wire::Malformed::ALL.map(consensus::wire::Malformed::name);
        let replicas = || self.node.replicas().iter();
        let tally = replicas().map(Replica::tally).sum::<Tally>();
        let total = |slot: fn(&Replica<S>) -> Slot| replicas().map(|one| slot(one).0).sum::<u64>();
        let applied = total(|replica| replica.applied().slot());
        let views = || (0..self.kept.len() as u16).filter_map(|group| local.view(GroupId(group)));
        let decided: u64 = views().map(|view| view.decided.upto.0).sum();
        let wanted = replica.map_or(Slot::NONE, |replica| replica.catch_up().wanted());
        let leader = replica.and_then(|replica| replica.leader(now_ns, local));
        let reason = self.reason(now_ns);
        let configuration = replica.map(Replica::configuration);
        let membership = configuration.map(|configuration| &configuration.membership);
        let mut report = serde_json::json!({
            "node": config.node.0,
            "address": self.host.address.to_string(),
            "resp": self.facts.resp.map(|resp| resp.to_string()),
            "role": replica.map_or("forming", |replica| replica.role().name()),
            "leader": leader.map(|node| node.0),
            "ballot": view.map(|view| view.promised.to_string()),
            "applied": applied,
            "decided": decided,
            "trim": view.map_or(0, |view| view.trim.0),
            "highest": view.map_or(0, |view| view.highest.0),
            "wanted": wanted.0,
            "engine": self.offload.as_ref().map_or("software", Supervision::engine),
            "mode": self.facts.mode,
            "wait": self.facts.wait,
            "durability": local.durability().name(),
            "incarnation": local.acceptor().incarnation.0,
            "epoch": membership.map_or(0, |membership| membership.epoch.0),
            "formed": formation.is_formed(),
            "missing": missing,
            "conflict": self.node.conflict().map(describe),
            "sessions": replicas().map(|one| one.applied().sessions().len()).sum::<usize>(),
            "snapshot": self.host.snapshots.slot(GROUP).0,
            "restored": self.facts.restored,
            "replayed": self.facts.replayed,
            "elected": tally.elected,
            "campaigns": tally.campaigns,
            "entries": tally.entries,
            "queries": tally.queries,
            "learned": tally.learned,
            "snapshots_taken_over": tally.snapshots,
            "deferred": tally.deferred,
            "voted": counters.voted,
            "promised": counters.promised,
            "refused": counters.refused,
            "no_room": counters.no_room,
            "dropped": by_reason(&dropped_names, &counters.dropped),
            "malformed": by_reason(&malformed_names, &refused.malformed),
            "not_ours": refused.not_ours,
            "received": self.stats.received,
            "sent": self.stats.sent,
            "error": self.host.error,
        });
        let keys = self.node.keys().into_iter();
        let keys = keys
            .flat_map(|keys| [Some(keys.signs), keys.also])
            .flatten();
        report["keys"] = keys
            .map(|key| format!("{:08x}", key.fingerprint()))
            .collect();
        report["resp_tls"] = self.facts.resp_tls.map(|resp| resp.to_string()).into();
        let layout = local.acceptor().layout;
        let mut more = vec![
            ("recoverable", total(Replica::recoverable).into()),
            ("learned_bytes", tally.learned_bytes.into()),
            ("snapshot_bytes", tally.snapshot_bytes.into()),
            ("window_slots", layout.window().into()),
            ("value_bytes", layout.value_bytes().into()),
            ("lease_ns", local.lease_ns(GROUP).into()),
            // The replicated groups come first.
            (
                "conformance_groups",
                (usize::from(layout.groups()) - self.kept.len()).into(),
            ),
            ("reason", reason.into()),
            (
                "version",
                configuration.map(|one| one.version.to_string()).into(),
            ),
            (
                "member",
                replica
                    .and_then(Replica::member_role)
                    .map(MemberRole::name)
                    .into(),
            ),
            (
                "offload",
                self.offload.as_ref().map(Supervision::describe).into(),
            ),
        ];
        if self.kept.len() > 1 {
            more.push(("groups", self.describe_groups(now_ns)));
            more.push(("pulses", self.node.pulses().into()));
        }
        if let Some((path, statistics)) = local.journal().report() {
            more.extend([
                ("journal", path.into()),
                ("flush_p50_us", statistics.latency_us(0.5).into()),
                ("journal_stalls", statistics.stalls.into()),
                ("segments_recycled", statistics.segments_recycled.into()),
            ]);
        }
        if let Some(fields) = report.as_object_mut() {
            fields.extend(
                more.into_iter()
                    .map(|(name, value)| (name.to_owned(), value)),
            );
        }
        report.to_string()
    }

    fn publish<T: Transmit>(&mut self, now_ns: u64, tx: &mut T) {
        if now_ns >= self.report_due_ns {
            self.report_due_ns = now_ns
                + match self.kept.len() {
                    1 => REPORT_NS,
                    _ => 10 * REPORT_NS,
                };
            self.look_at_windows(now_ns);
            if self.front.is_some() {
                if let Some(offload) = &mut self.offload {
                    offload.count_at_times(now_ns);
                }
                let text = self.describe(now_ns);
                *self.report.lock().unwrap_or_else(PoisonError::into_inner) = text;
            }
        }
        let inspections = std::mem::take(&mut self.host.inspections);
        if let (Some(offload), false) = (&mut self.offload, inspections.is_empty()) {
            offload.count();
        }
        for (to, request) in inspections {
            let text = self.describe(now_ns);
            let mut header = Header {
                kind: Kind::Report,
                sender: self.node.config().node,
                length: text.len() as u16,
                tag: 0,
                ..request
            };
            if let Some(key) = self.key {
                header.tag = auth::tag(key, &header, text.as_bytes());
            }
            tx.send(to, &header.to_bytes(), text.as_bytes());
        }
    }
}

/// Commands of a front that may be under way at once.
const FRONT_WINDOW: usize = 2048;

/// Longest value of a Request, given the longest value of the log: a batch begins with the clock.
pub const fn max_request_bytes(value_bytes: usize) -> usize {
    value_bytes - consensus::envelope::ENTRY_BYTES
}

/// What keeps this node from forming its cluster, and what mends it.
fn describe(conflict: Conflict) -> serde_json::Value {
    match conflict {
        Conflict::Stranger {
            node,
            pinned,
            shown,
        } => serde_json::json!({
            "kind": "stranger",
            "node": node.0,
            "pinned": pinned.0,
            "shown": shown.0,
            "why": format!(
                "node {node} shows incarnation {shown}, and {pinned} is on record for it: it lost \
                 its memory; `nearwire member replace --lost {node}`"
            ),
        }),
        Conflict::Disowned { by, pinned } => serde_json::json!({
            "kind": "disowned",
            "node": by.0,
            "pinned": pinned.0,
            "why": format!(
                "node {by} has incarnation {pinned} on record for this node, whose memory was lost; \
                 see its log"
            ),
        }),
        Conflict::Terms { node } => serde_json::json!({
            "kind": "terms",
            "node": node.0,
            "why": format!(
                "node {node} has other quorums, leases or dimensions ([quorum], [timing] lease_us, \
                 [region]), or was restored from another snapshot: have all nodes alike"
            ),
        }),
    }
}

/// Longest command or query of a front, given the longest value of the log.
pub const fn max_command_bytes(value_bytes: usize) -> usize {
    (max_request_bytes(value_bytes) - consensus::envelope::ENTRY_BYTES) & !7
}

impl<S: StateMachine> Service for NodeService<S> {
    fn packet<T: Transmit>(&mut self, now_ns: u64, from: SocketAddr, datagram: &[u8], tx: &mut T) {
        let unix_ms = self.unix_ms(now_ns);
        let mut io = Outbox {
            host: &mut self.host,
            tx,
        };
        self.node.handle(now_ns, unix_ms, from, datagram, &mut io);
    }

    fn turn<T: Transmit>(&mut self, now_ns: u64, tx: &mut T) -> Duration {
        if let Some(keys) = (self.new_keys)() {
            self.node.set_keys(keys);
            self.key = Some(keys.signs);
        }
        let unix_ms = self.unix_ms(now_ns);
        // A front's requests, the proposals they lead to, and the answers: with the leader on this
        // node all of it happens in one turn up to the Accepts, and again once they are answered.
        self.deliver(now_ns, tx);
        self.serve_front(now_ns, tx);
        self.deliver(now_ns, tx);
        self.renew_leases(now_ns);
        let mut io = Outbox {
            host: &mut self.host,
            tx,
        };
        while let Some(refusal) = io.host.lifelines.refused() {
            self.node.refused_at(now_ns, unix_ms, refusal, &mut io);
        }
        let mut due = self.node.turn(now_ns, unix_ms, &mut io);
        while let Some((group, leader)) = self.node.next_leader() {
            self.leaders.set(group, leader);
        }
        self.lend_leases();
        // Even without an answer: a redirect that came before gave the front a request to send.
        self.deliver(now_ns, tx);
        due = due.min(self.serve_front(now_ns, tx));
        if !self.host.to_self.is_empty() {
            due = now_ns;
        }
        if self.keep_state(now_ns, tx) {
            due = now_ns;
        }
        due = due.min(self.supervise(now_ns));
        self.check_fatal();
        self.publish(now_ns, tx);
        Duration::from_nanos(due.saturating_sub(now_ns)).min(MAX_SLEEP)
    }

    fn awaits(&self) -> Awaits {
        if self.node.local().holds_replies() {
            Awaits::Flush
        } else if self.node.awaits_votes() {
            Awaits::Answer
        } else {
            Awaits::Packets
        }
    }

    fn observe(&mut self, stats: &Stats) {
        self.stats = *stats;
        self.watch_members();
    }

    fn stopping(&self) -> bool {
        self.fatal.is_some() || self.stop.load(Ordering::Relaxed)
    }
}
