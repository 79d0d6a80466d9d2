//! A node: one acceptor region, and a replica for each of its groups.
//!
//! It parses and authenticates packets, steps the acceptor for those that ask for votes, and hands
//! the rest to the replica of their group. Sans-IO like everything below it.

mod pulse;

use crate::acceptor::Acceptor;
use crate::agenda::Agenda;
use crate::applied::Applied;
use crate::auth::{self, Key, Keys};
use crate::catch_up::Pace;
use crate::election::ElectionTiming;
use crate::formation::{Conflict, Formation, Terms};
use crate::leader::LeaderTiming;
use crate::local::{Asker, Counters, Durability, Journal, Local};
use crate::matchmaker::Register;
use crate::memory::Memory;
use crate::quorum::{Member, MemberRole, Membership, QuorumError, Quorums};
use crate::replica::{Config as ReplicaConfig, Io, Lessons, Piece, Replica, Turn};
use crate::standing::Standings;
use crate::state_machine::{Frozen, SnapshotId, StateMachine};
use crate::wire::{self, Header, Kind, Malformed, Parsed};
use crate::{Ballot, Epoch, GroupId, Incarnation, NodeId, Slot};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::SocketAddr;
use pulse::Pulse;

/// Longest datagram that a node takes, as the value's length: answers on their way to a client
/// front of this node may be as long.
const MAX_DATAGRAM_VALUE: usize = u16::MAX as usize;

/// What cannot campaign because too many others do tries again after so long, in nanoseconds.
const CAMPAIGN_PAUSE_NS: u64 = 1_000_000;

/// A peer as configured: its incarnation is found out while the cluster forms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its number.
    pub node: NodeId,
    /// Where it is reached.
    pub address: SocketAddr,
    /// Higher ones campaign earlier.
    pub priority: u8,
}

/// How a node is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// Every member of the cluster that forms, this node included.
    pub peers: Vec<Peer>,
    /// This node forms no cluster: it waits to be made a member of one that is there.
    pub joins: bool,
    /// What [`Io::keep_register`] kept for each group, if it was asked to.
    pub registers: BTreeMap<GroupId, Vec<u8>>,
    /// The membership's number.
    pub epoch: Epoch,
    /// Votes for phase 1 and phase 2, or majorities.
    pub quorums: Option<(usize, usize)>,
    /// The cluster's key, where authentication is on.
    pub key: Option<Key>,
    /// How long leaders wait.
    pub leader: LeaderTiming,
    /// Whether leaders ask for leases, so that they answer queries without a round trip.
    pub leases: bool,
    /// Whether followers answer queries, too, by asking a quorum.
    pub quorum_reads: bool,
    /// The snapshot that the cluster began with; see [`Terms`].
    pub origin: u64,
    /// How long followers wait.
    pub election: ElectionTiming,
    /// Where there are several groups: between two packets by which this node tells each other one
    /// that it lives and what it leads, in nanoseconds.
    pub pulse_ns: u64,
    /// In how many groups it campaigns at once at the most.
    pub campaigns: usize,
    /// How those that lag are taught.
    pub pace: Pace,
    /// For back-off and nonces.
    pub seed: u64,
    /// Rounds up to this one may have been used by earlier lives.
    pub used_round: u64,
    /// What was pinned before; this node's own incarnation is added.
    pub pins: BTreeMap<NodeId, Incarnation>,
    /// Whether the cluster had formed before.
    pub formed: bool,
}

/// A node cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NodeError {
    /// The quorums do not fit the members.
    #[error(transparent)]
    Quorums(#[from] QuorumError),
    /// The members do not hold the node.
    #[error("start node {node}: it is not among the members")]
    NotAMember {
        /// The node.
        node: NodeId,
    },
    /// What was kept of a group's configurations cannot be read.
    #[error(
        "start node: what it kept of the configurations of group {group} is damaged, so it cannot \
         be a matchmaker nor know who votes. Leave it stopped, and have it replaced: `nearwire \
         member replace --lost`"
    )]
    Register {
        /// The group.
        group: GroupId,
    },
    /// The cluster formed with other members.
    #[error(
        "start node: its cluster formed with {formed} members, but other ones ({configured}) are \
         configured: restore the list of peers, and change the members by `nearwire member`"
    )]
    OtherMembers {
        /// How many formed it.
        formed: usize,
        /// How many are configured.
        configured: usize,
    },
    /// The region is another life of its memory than the one that the cluster knows.
    #[error(
        "start node: its memory is incarnation {found}, but the cluster knows it as {pinned}. \
         Leave it stopped and have it replaced: `nearwire member replace --lost`"
    )]
    LostMemory {
        /// What is on record.
        pinned: Incarnation,
        /// What the region says.
        found: Incarnation,
    },
}

/// What a node needs of its host beyond what its replicas need.
pub trait NodeIo: Io {
    /// Writes down, durably, which incarnations are pinned. False if that cannot be done now.
    fn pin(&mut self, pins: &BTreeMap<NodeId, Incarnation>, formed: bool) -> bool;
    /// A Response or Redirect came, for a client front on this node.
    fn client(&mut self, from: SocketAddr, header: &Header, value: &[u8]);
    /// Somebody asks what this node is doing: a Report as JSON.
    fn inspect(&mut self, to: SocketAddr, request: &Header);
}

/// Packets that were counted instead of served.
#[derive(Clone, Copy, Debug, Default)]
pub struct Refused {
    /// Without our magic.
    pub not_ours: u64,
    /// By reason.
    pub malformed: [u64; Malformed::COUNT],
    /// For a group that this node does not have.
    pub group: u64,
    /// While the cluster forms.
    pub unformed: u64,
}

/// Fills in tags on the way out.
pub struct Signing<'a, I> {
    /// The host.
    pub io: &'a mut I,
    /// The cluster's key, where authentication is on.
    pub key: Option<Key>,
}

impl<I: Io> Io for Signing<'_, I> {
    fn send(&mut self, to: SocketAddr, header: &Header, value: &[u8]) {
        match self.key {
            Some(key) => {
                let tag = auth::tag(key, header, value);
                self.io.send(to, &Header { tag, ..*header }, value);
            }
            None => self.io.send(to, header, value),
        }
    }

    fn reserve_rounds(&mut self, round: u64) -> bool {
        self.io.reserve_rounds(round)
    }

    fn keep_register(&mut self, group: GroupId, register: &[u8]) -> bool {
        self.io.keep_register(group, register)
    }

    fn read_snapshot(
        &mut self,
        group: GroupId,
        of: Option<(Slot, u32)>,
        offset: u64,
        out: &mut [u8],
    ) -> Option<Piece> {
        self.io.read_snapshot(group, of, offset, out)
    }

    fn keep_piece(
        &mut self,
        group: GroupId,
        id: SnapshotId,
        offset: u64,
        piece: &[u8],
        crc: u32,
    ) -> Option<u64> {
        self.io.keep_piece(group, id, offset, piece, crc)
    }
}

/// A node.
#[derive(Debug)]
pub struct Node<M, J, S> {
    config: Config,
    local: Local<M, J>,
    formation: Formation,
    /// The state of each group until the cluster has formed, then empty.
    waiting: Vec<Applied<S>>,
    replicas: Vec<Replica<S>>,
    /// When each replica has its next turn.
    agenda: Agenda,
    standings: Standings,
    /// The group that is looked at first, so that all have their chance to campaign.
    first: usize,
    lessons: Lessons,
    /// What the journal had taken and flushed in the last turn.
    journalled: Option<(u64, u64)>,
    pulse: Pulse,
    refused: Refused,
    conflict: Option<Conflict>,
    /// Whose tags are taken beside those of the configured key.
    also: Option<Key>,
}

impl<M: Memory, J: Journal, S: StateMachine> Node<M, J, S> {
    /// A node over its region and journal, with the restored state of each group that it
    /// replicates. Further groups of the region are bare acceptors: they answer whoever asks, and
    /// nobody here leads them or learns from them.
    ///
    /// # Errors
    /// The quorums do not fit the members, or this node's memory is not the one on record.
    pub fn new(
        config: Config,
        acceptor: Acceptor,
        memory: M,
        journal: J,
        durability: Durability,
        states: Vec<Applied<S>>,
    ) -> Result<Self, NodeError> {
        let lease_ns = crate::region::lease_ns(&memory, GroupId(0));
        let groups = states.len() as u16;
        let terms = Terms {
            origin: config.origin,
            ..Terms::new(&quorums(&config)?, groups, &acceptor.layout, lease_ns)
        };
        if config.peers.iter().all(|peer| peer.node != config.node) {
            return Err(NodeError::NotAMember { node: config.node });
        }
        // A node that joins makes out by itself that it is there.
        let forms = |peer: &&Peer| !config.joins || peer.node == config.node;
        let members: Vec<NodeId> = config
            .peers
            .iter()
            .filter(forms)
            .map(|peer| peer.node)
            .collect();
        let mut pins = config.pins.clone();
        let pinned = *pins.entry(config.node).or_insert(acceptor.incarnation);
        if pinned != acceptor.incarnation {
            return Err(NodeError::LostMemory {
                pinned,
                found: acceptor.incarnation,
            });
        }
        // Fewer or other members than formed the cluster could decide without those who hold votes.
        let is_pinned = |node: &NodeId| pins.contains_key(node);
        let mut has_changed = false;
        for (group, kept) in &config.registers {
            let Some(kept) = Register::read(kept) else {
                return Err(NodeError::Register { group: *group });
            };
            has_changed |= kept.has_changed();
        }
        // Once the members have changed, the register says who they are.
        let counts_peers = config.formed && !has_changed;
        if counts_peers && (pins.len() != members.len() || !members.iter().all(is_pinned)) {
            return Err(NodeError::OtherMembers {
                formed: pins.len(),
                configured: members.len(),
            });
        }
        let formation = Formation::new(
            config.node,
            config.epoch,
            terms,
            members,
            pins,
            config.formed,
        );
        Ok(Self {
            local: Local::new(acceptor, memory, journal, durability),
            formation,
            waiting: states,
            replicas: Vec::new(),
            agenda: Agenda::new(0),
            standings: Standings::new(config.node, 0),
            first: 0,
            lessons: Lessons::default(),
            journalled: None,
            pulse: Pulse::default(),
            refused: Refused::default(),
            conflict: None,
            also: None,
            config,
        })
    }

    /// The cluster's keys, where authentication is on.
    pub fn keys(&self) -> Option<Keys> {
        let also = self.also;
        self.config.key.map(|signs| Keys { signs, also })
    }

    /// Signs and verifies by these from now on.
    pub fn set_keys(&mut self, keys: Keys) {
        self.config.key = Some(keys.signs);
        self.also = keys.also;
    }

    /// Takes a datagram.
    pub fn handle<I: NodeIo>(
        &mut self,
        now_ns: u64,
        unix_ms: u64,
        from: SocketAddr,
        datagram: &[u8],
        io: &mut I,
    ) {
        let (header, value) = match wire::parse(datagram, MAX_DATAGRAM_VALUE) {
            Parsed::Ours(header, value) => (header, value),
            Parsed::NotOurs => {
                self.refused.not_ours += 1;
                return;
            }
            Parsed::Malformed(reason) => return self.count(reason),
        };
        if let Some(keys) = self.keys()
            && !keys.is_authentic(&header, value)
        {
            return self.count(Malformed::Tag);
        }
        self.handle_parsed(now_ns, unix_ms, from, &header, value, io);
    }

    fn count(&mut self, reason: Malformed) {
        if let Some(count) = self.refused.malformed.get_mut(reason as usize) {
            *count += 1;
        }
    }

    /// Takes a packet that was parsed and authenticated, or came from this very process.
    pub fn handle_parsed<I: NodeIo>(
        &mut self,
        now_ns: u64,
        unix_ms: u64,
        from: SocketAddr,
        header: &Header,
        value: &[u8],
        io: &mut I,
    ) {
        match header.kind {
            Kind::Hello => return self.greeted(from, header, value, io),
            Kind::Inspect => return io.inspect(from, header),
            Kind::Report => return,
            Kind::Response | Kind::Redirect => return io.client(from, header, value),
            _ => {}
        }
        if value.len() > self.local.acceptor().layout.value_bytes()
            && !carries_no_value(header.kind)
        {
            return self.count(Malformed::OverLong);
        }
        if self.replicas.is_empty() {
            self.refused.unformed += 1;
            return;
        }
        let mut io = Signing {
            io,
            key: self.config.key,
        };
        if header.kind == Kind::Pulse {
            return self.felt(now_ns, header, &mut io);
        }
        let asks_acceptor = header.kind.is_for_acceptor();
        let replica = self.replicas.get_mut(usize::from(header.group.0));
        // A group that nobody replicates here is an acceptor and nothing else.
        let is_bare = replica.is_none() && header.group.0 < self.local.acceptor().layout.groups();
        if asks_acceptor && (is_bare || replica.is_some()) {
            let reply = self.local.step(now_ns, Asker::Peer(from), header, value);
            if let Some((reply, value)) = reply {
                io.send(from, &reply, value);
            }
        }
        let Some(replica) = replica else {
            self.refused.group += u64::from(!(is_bare && asks_acceptor));
            return;
        };
        let mut turn = Turn {
            now_ns,
            unix_ms,
            local: &mut self.local,
            io: &mut io,
            may_campaign: true,
            lessons: self.lessons,
        };
        if asks_acceptor {
            replica.stepped(&mut turn, header);
        } else {
            replica.handle(&mut turn, from, header, value);
        }
        self.agenda.set(usize::from(header.group.0), 0);
    }

    fn greeted<I: NodeIo>(&mut self, from: SocketAddr, header: &Header, value: &[u8], io: &mut I) {
        let before = self.formation.clone();
        let greeted = self.formation.handle(header, value);
        if greeted.conflict.is_some() {
            self.conflict = greeted.conflict;
        }
        if greeted.pinned && !io.pin(self.formation.pins(), self.formation.is_formed()) {
            // Not written down, so not done: the next greeting tries again.
            self.formation = before;
            return;
        }
        if greeted.answer {
            let (header, value) = self.formation.answer();
            Signing {
                io,
                key: self.config.key,
            }
            .send(from, &header, &value);
        }
    }

    /// The host of a member, asked at `asked_ns`, says that no process listens at `address` any more:
    /// the one that did has died. Who is wrong in that causes a campaign, and nothing else.
    pub fn refused_at<I: NodeIo>(
        &mut self,
        now_ns: u64,
        unix_ms: u64,
        (asked_ns, address): (u64, SocketAddr),
        io: &mut I,
    ) {
        let mut io = Signing {
            io,
            key: self.config.key,
        };
        for (group, replica) in self.replicas.iter_mut().enumerate() {
            let mut turn = Turn {
                now_ns,
                unix_ms,
                local: &mut self.local,
                io: &mut io,
                may_campaign: true,
                lessons: self.lessons,
            };
            replica.refused(&mut turn, asked_ns, address);
            self.agenda.set(group, 0);
        }
    }

    /// A frozen snapshot of a group's state, for another thread to write; `None` if the cluster has
    /// not formed or nobody replicates the group here. See [`Replica::freeze`].
    pub fn freeze(&mut self, group: GroupId) -> Option<(Slot, Box<dyn Frozen>)> {
        let replica = self.replicas.get_mut(usize::from(group.0))?;
        Some(replica.freeze(&mut self.local))
    }

    /// See [`Replica::take_over`].
    pub fn take_over<I: NodeIo>(
        &mut self,
        (now_ns, unix_ms): (u64, u64),
        group: GroupId,
        id: SnapshotId,
        state: Option<Applied<S>>,
        io: &mut I,
    ) -> Option<Applied<S>> {
        let mut io = Signing {
            io,
            key: self.config.key,
        };
        let mut turn = Turn {
            now_ns,
            unix_ms,
            local: &mut self.local,
            io: &mut io,
            may_campaign: true,
            lessons: self.lessons,
        };
        let replica = self.replicas.get_mut(usize::from(group.0))?;
        let former = replica.take_over(&mut turn, id, state);
        self.agenda.set(usize::from(group.0), 0);
        former
    }

    /// Does what is due after a batch of packets. Returns when it should be called again at the
    /// latest, in nanoseconds of the monotonic clock.
    pub fn turn<I: NodeIo>(&mut self, now_ns: u64, unix_ms: u64, io: &mut I) -> u64 {
        let key = self.config.key;
        if self.replicas.is_empty() {
            if self.formation.is_formed() {
                self.start(now_ns, io);
            } else if let Some((header, value)) = self.formation.poll(now_ns) {
                let mut io = Signing { io, key };
                for peer in self
                    .config
                    .peers
                    .iter()
                    .filter(|peer| peer.node != self.config.node)
                {
                    io.send(peer.address, &header, &value);
                }
            }
        }
        let mut io = Signing { io, key };
        while let Some((asker, reply)) = self.local.released() {
            match asker {
                Asker::Peer(address) => io.send(address, &reply, &[]),
                Asker::Own => {
                    let Some(replica) = self.replicas.get_mut(usize::from(reply.group.0)) else {
                        continue;
                    };
                    let mut turn = Turn {
                        now_ns,
                        unix_ms,
                        local: &mut self.local,
                        io: &mut io,
                        may_campaign: true,
                        lessons: self.lessons,
                    };
                    replica.answered_by_own(&mut turn, &reply);
                    self.agenda.set(usize::from(reply.group.0), 0);
                }
            }
        }
        self.note_news();
        let groups = self.replicas.len();
        self.lessons.begin_turn(now_ns);
        let first = self.first.checked_rem(groups).unwrap_or_default();
        for (from, end) in [(first, groups), (0, first)] {
            let mut next = from;
            while let Some(at) = self.agenda.due(next, now_ns).filter(|at| *at < end) {
                self.turn_of(at, now_ns, unix_ms, &mut io);
                next = at + 1;
            }
        }
        let mut due = self.formation.next_timer_ns().min(self.agenda.next_ns());
        if groups > 1 {
            self.beat(now_ns, &mut io);
            due = due.min(self.pulse.due_ns);
        }
        due.min(self.local.flush_decides(now_ns))
    }

    /// Gives a turn to the groups that no packet tells of what they wait for.
    fn note_news(&mut self) {
        if self.local.is_shared() {
            // Another engine has answered in any of them.
            for at in 0..self.replicas.len() {
                self.agenda.set(at, 0);
            }
        }
        let journalled = self.local.appended_and_flushed();
        if self.journalled != Some(journalled) {
            self.journalled = Some(journalled);
            while let Some(group) = self.standings.next_journalling() {
                self.agenda.set(usize::from(group.0), 0);
            }
        }
    }

    /// One replica's turn, and when it has its next.
    fn turn_of<I: Io>(&mut self, at: usize, now_ns: u64, unix_ms: u64, io: &mut I) {
        let Some(replica) = self.replicas.get_mut(at) else {
            return;
        };
        let group = GroupId(at as u16);
        let may_campaign = self.standings.of(group).campaigns
            || self.standings.campaigns() < self.config.campaigns;
        let mut turn = Turn {
            now_ns,
            unix_ms,
            local: &mut self.local,
            io,
            may_campaign,
            lessons: self.lessons,
        };
        replica.turn(&mut turn);
        let lessons = core::mem::replace(&mut self.lessons, turn.lessons);
        if lessons.are_free(now_ns) && !self.lessons.are_free(now_ns) {
            // It taught as much as one may; others go first the next time.
            self.first = at + 1;
        }
        let mut due_ns = replica.next_timer_ns(now_ns, unix_ms, &self.local);
        if due_ns <= now_ns && !may_campaign {
            // Others campaign first; it is this one's turn soon.
            due_ns = now_ns + CAMPAIGN_PAUSE_NS;
            self.first = at;
        }
        self.agenda.set(at, due_ns);
        self.standings.lease(group, replica.lease_ns());
        if let Some(standing) = replica.standing(&self.local) {
            self.standings.set(group, standing);
        }
    }

    fn start<I: NodeIo>(&mut self, now_ns: u64, io: &mut I) {
        if !io.pin(self.formation.pins(), true) {
            return;
        }
        let Ok(quorums) = quorums(&self.config) else {
            return;
        };
        let pins = self.formation.pins();
        let members = self
            .config
            .peers
            .iter()
            .map(|peer| Member {
                node: peer.node,
                incarnation: pins.get(&peer.node).copied().unwrap_or_default(),
                address: peer.address,
                priority: peer.priority,
                role: MemberRole::Voter,
            })
            .collect();
        let formed = match self.config.joins {
            true => Register::blank(),
            false => Register::formed(Membership {
                epoch: self.config.epoch,
                members,
                quorums,
            }),
        };
        let layout = self.local.acceptor().layout;
        let groups = self.waiting.len();
        for (number, mut applied) in self.waiting.drain(..).enumerate() {
            applied.share_memory(groups);
            // A region that survived the process may know of decisions that no record tells of.
            if self.local.durability() != Durability::Volatile {
                self.local.checkpoint(GroupId(number as u16));
            }
            let group = GroupId(number as u16);
            let kept = self.config.registers.get(&group);
            let kept = kept.and_then(|kept| Register::read(kept));
            let register = match kept {
                Some(kept) if kept.has_changed() => kept,
                // Until the members change, addresses may be configured anew.
                Some(kept) => Register {
                    newest: formed.newest.clone(),
                    ..kept
                },
                None => formed.clone(),
            };
            let config = ReplicaConfig {
                node: self.config.node,
                incarnation: self.local.acceptor().incarnation,
                group,
                window: layout.window(),
                value_bytes: layout.value_bytes(),
                leader: self.config.leader,
                lease_ns: match self.config.leases {
                    true => self.local.lease_ns(GroupId(number as u16)),
                    false => 0,
                },
                quorum_reads: self.config.quorum_reads,
                election: match groups {
                    1 => self.config.election,
                    _ => self.config.election.pulsed(self.config.pulse_ns, groups),
                },
                pace: self.config.pace,
                seed: self.config.seed.wrapping_add(number as u64),
                used_round: self.config.used_round,
            };
            self.replicas
                .push(Replica::new(config, register, applied, now_ns));
        }
        self.agenda = Agenda::new(self.replicas.len());
        self.standings = Standings::new(self.config.node, self.replicas.len());
    }

    /// A snapshot of a group's state up to `slot` is on disk.
    pub fn snapshot_saved(&mut self, group: GroupId, slot: Slot) {
        if let Some(replica) = self.replica_mut(group) {
            replica.snapshot_saved(slot);
            self.agenda.set(usize::from(group.0), 0);
        }
    }

    /// A group whose leader is another than the host was told of so far, and who that is.
    pub fn next_leader(&mut self) -> Option<(GroupId, Option<NodeId>)> {
        let group = self.standings.next_changed()?;
        let ballot = self.standings.of(group).led_by;
        Some((group, (ballot != Ballot::NONE).then(|| ballot.node())))
    }

    /// A group whose lease is another than the host was told of so far: until when nobody else can
    /// lead, and from when on it is to be renewed; zeros without one.
    pub fn next_lease(&mut self) -> Option<(GroupId, (u64, u64))> {
        self.standings.next_lease()
    }

    /// Queries of a group are answered by its lease: it is renewed when its time has come.
    pub fn renew_lease(&mut self, group: GroupId, now_ns: u64) {
        if let Some(replica) = self.replica_mut(group) {
            replica.renew_lease(now_ns);
            self.agenda.set(usize::from(group.0), 0);
        }
    }

    /// Where the other members of all groups are, each once.
    pub fn other_members(&self) -> impl Iterator<Item = SocketAddr> {
        let own = self.config.node;
        let one = self.replicas.first().filter(|_| self.replicas.len() == 1);
        let one = one.into_iter();
        let one = one.flat_map(move |replica| replica.configuration().membership.others(own));
        // Where there are many, the pulse goes to them.
        one.map(|member| member.address).chain(self.pulse.peers())
    }

    /// How often it told the others that it lives.
    pub const fn pulses(&self) -> u64 {
        self.pulse.beats
    }

    /// Whether a group that this node leads waits for votes.
    pub const fn awaits_votes(&self) -> bool {
        self.standings.awaits_votes()
    }

    /// The replicas, once the cluster has formed.
    pub fn replicas(&self) -> &[Replica<S>] {
        &self.replicas
    }

    /// The replica of a group, once the cluster has formed.
    pub fn replica_mut(&mut self, group: GroupId) -> Option<&mut Replica<S>> {
        self.replicas.get_mut(usize::from(group.0))
    }

    /// The highest slot that any record of the journal so far may be about.
    pub fn highest_journalled(&self, group: GroupId) -> Slot {
        // What was learned from others is journalled too, and may lie above every own vote.
        let replica = self.replicas.get(usize::from(group.0));
        let applied = replica.map_or(Slot::NONE, |replica| replica.applied().slot());
        self.local.highest_journalled(group).max(applied)
    }

    /// How the cluster forms.
    pub const fn formation(&self) -> &Formation {
        &self.formation
    }

    /// Somebody whose memory is not the one on record.
    pub const fn conflict(&self) -> Option<Conflict> {
        self.conflict
    }

    /// The acceptor.
    pub const fn local(&self) -> &Local<M, J> {
        &self.local
    }

    /// The acceptor, to cut its journal.
    pub const fn local_mut(&mut self) -> &mut Local<M, J> {
        &mut self.local
    }

    /// Packets that were not served.
    pub const fn refused(&self) -> &Refused {
        &self.refused
    }

    /// What the acceptor did.
    pub const fn counters(&self) -> &Counters {
        self.local.counters()
    }

    /// How the node is set up.
    pub const fn config(&self) -> &Config {
        &self.config
    }
}

/// Whether what it carries is no value of a log, and may be longer than one.
const fn carries_no_value(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::SnapshotChunk
            | Kind::Match
            | Kind::Matched
            | Kind::Unmatched
            | Kind::Garbage
            | Kind::Stop
            | Kind::Stopped
            | Kind::HandOver
            | Kind::Appoint
            | Kind::Configuration
            | Kind::Reconfigure
    )
}

fn quorums(config: &Config) -> Result<Quorums, QuorumError> {
    match config.quorums {
        // Those of the cluster that it joins are no business of its own.
        _ if config.joins => Quorums::majority(1),
        Some((phase1, phase2)) => Quorums::flexible(config.peers.len(), phase1, phase2),
        None => Quorums::majority(config.peers.len()),
    }
}
