//! A machine: what outlives a process, and how a process comes to be on it.

use super::bare::Bare;
use super::clock::Clock;
use super::disk::{Disk, Log};
use super::memory::{Life, Watched, Words, blank};
use super::scenario::Scenario;
use crate::cutting::Cutting;
use crate::kv::Kv;
use consensus::acceptor::Acceptor;
use consensus::applied::Applied;
use consensus::local::Durability;
use consensus::node::{Config, Node, NodeError, NodeIo, Peer};
use consensus::random::Random;
use consensus::recover::Recovery;
use consensus::region::{Birth, Layout, OpenError, Region};
use consensus::replica::{Io, Piece};
use consensus::simulation::{Mutation, mutated};
use consensus::state_machine::SnapshotId;
use consensus::wire::{HEADER_BYTES, Header};
use consensus::{Epoch, GroupId, Incarnation, NodeId, Slot};
use crc_fast::crc32_iscsi;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;

/// The membership of every world.
pub(super) const EPOCH: Epoch = Epoch(1);
/// So many starts in a row are killed at most while they move votes.
const KILLED_STARTS: usize = 4;
/// A number for the cluster's name.
const CLUSTER: u64 = 1;

pub(super) type SimNode = Node<Watched, Disk, Kv>;

/// What the data directory says of a node.
#[derive(Clone, Debug, Default)]
pub(super) struct Identity {
    pub(super) nonce: u64,
    pub(super) pins: BTreeMap<NodeId, Incarnation>,
    pub(super) formed: bool,
    /// The boot in which the cluster formed: votes in memory belong to it.
    pub(super) formed_boot: Option<u128>,
    pub(super) reserved_round: u64,
    /// Which hand-over of the votes counts.
    pub(super) generation: u64,
    /// Whether they are in the kernel's maps, where a program may vote, or in a file.
    pub(super) in_maps: bool,
    /// What it keeps of each group's configurations.
    pub(super) registers: BTreeMap<GroupId, Vec<u8>>,
    /// It is to become a member of the cluster that is there.
    pub(super) joins: bool,
}

impl Identity {
    /// That of a new data directory.
    pub(super) const fn new(nonce: u64, joins: bool) -> Self {
        Self {
            nonce,
            pins: BTreeMap::new(),
            formed: false,
            formed_boot: None,
            reserved_round: 0,
            generation: 0,
            in_maps: false,
            registers: BTreeMap::new(),
            joins,
        }
    }
}

/// A snapshot on the disk.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) id: SnapshotId,
    pub(super) bytes: Rc<[u8]>,
}

impl Snapshot {
    pub(super) fn new(slot: Slot, bytes: Vec<u8>) -> Self {
        let id = SnapshotId {
            slot,
            bytes: bytes.len() as u64,
            crc: crc32_iscsi(&bytes),
        };
        let bytes = bytes.into();
        Self { id, bytes }
    }
}

/// Another node's snapshot on its way here.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) id: SnapshotId,
    pub(super) bytes: Vec<u8>,
    /// This process has seen to it that all of it is here.
    pub(super) is_whole: bool,
}

/// A snapshot that is being written.
#[derive(Debug)]
pub(super) struct Writing {
    pub(super) group: usize,
    pub(super) snapshot: Snapshot,
    /// Of this node's state, not received.
    pub(super) is_own: bool,
}

/// The snapshots of one group, newest last.
#[derive(Clone, Debug, Default)]
pub(super) struct Shelf {
    pub(super) kept: VecDeque<Snapshot>,
}

impl Shelf {
    pub(super) fn newest(&self) -> Option<&Snapshot> {
        self.kept.back()
    }

    pub(super) fn slot(&self) -> Slot {
        self.newest().map_or(Slot::NONE, |newest| newest.id.slot)
    }
}

/// Why no process runs on a machine any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// It runs, or will again.
    Member,
    /// Its memory is lost, which it will find out when it starts.
    Doomed,
    /// Its memory is lost: it was refused under its old name.
    Refused,
}

/// A process was not started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum NoStart {
    /// Its memory is lost.
    LostMemory(String),
    /// What was found makes no sense.
    Damaged(String),
    /// The configuration was refused.
    Config(String),
}

/// A machine, and the process on it.
pub(super) struct Machine {
    pub(super) place: usize,
    pub(super) node_id: NodeId,
    pub(super) clock: Clock,
    pub(super) boot: u128,
    pub(super) identity: Identity,
    pub(super) words: Words,
    pub(super) log: Rc<RefCell<Log>>,
    pub(super) shelves: Vec<Shelf>,
    pub(super) standing: Standing,
    pub(super) process: Option<SimNode>,
    /// What answers in its stead once it has lost its memory, in some worlds.
    pub(super) reborn: Option<Bare>,
    /// What votes on the same words before packets reach the process, in some worlds.
    pub(super) kernel: Option<Bare>,
    pub(super) life: Rc<Life>,
    pub(super) is_paused: bool,
    /// Packets that came while the process was stopped.
    pub(super) inbox: VecDeque<usize>,
    /// How far each group was brought by snapshot and journal at the last start.
    pub(super) recovered: Vec<Slot>,
    /// Mean time that a flush takes.
    pub(super) flush_ns: u64,
    rounds_ahead: u64,
    /// Snapshots that are being written.
    pub(super) writing: Vec<Writing>,
    /// What has come of others' snapshots, by group.
    pub(super) parts: Vec<Option<Part>>,
    /// Groups whose last snapshot could not be written.
    pub(super) unwritten: Vec<bool>,
    /// Where each group would have the journal cut, which they share.
    pub(super) cuttings: Vec<Cutting>,
}

/// A packet that a process sends: written straight into a buffer.
pub(super) trait Post {
    /// Looks at what the process has written to its region so far: before a packet leaves, since the
    /// packet may speak of it.
    fn look(&mut self, place: usize, words: &Words, life: &Life);
    fn post(&mut self, from: usize, to: SocketAddr, header: &Header, value: &[u8]);
    /// What a process knows of configurations is on its disk.
    fn kept(&mut self, place: usize, group: GroupId, register: &[u8]);
}

/// The way out of one call into a node.
pub(super) struct Outbox<'a, P> {
    place: usize,
    boot: u128,
    identity: &'a mut Identity,
    shelves: &'a [Shelf],
    parts: &'a mut [Option<Part>],
    words: &'a Words,
    life: &'a Life,
    log: &'a RefCell<Log>,
    rounds_ahead: u64,
    post: &'a mut P,
}

impl<P: Post> Io for Outbox<'_, P> {
    fn send(&mut self, to: SocketAddr, header: &Header, value: &[u8]) {
        if !self.life.is_dead() {
            self.post.look(self.place, self.words, self.life);
            self.post.post(self.place, to, header, value);
        }
    }

    fn reserve_rounds(&mut self, round: u64) -> bool {
        if round >= self.identity.reserved_round && !self.life.is_dead() {
            if !self.log.borrow().takes_files() {
                return false;
            }
            self.identity.reserved_round = round + self.rounds_ahead;
        }
        true
    }

    fn keep_register(&mut self, group: GroupId, register: &[u8]) -> bool {
        if self.life.is_dead() {
            return true;
        }
        if !self.log.borrow().takes_files() {
            return false;
        }
        self.identity.registers.insert(group, register.to_vec());
        self.post.kept(self.place, group, register);
        true
    }

    fn read_snapshot(
        &mut self,
        group: GroupId,
        of: Option<(Slot, u32)>,
        offset: u64,
        out: &mut [u8],
    ) -> Option<Piece> {
        let mut kept = self.shelves.get(usize::from(group.0))?.kept.iter().rev();
        let Snapshot { id, bytes } =
            kept.find(|one| of.is_none_or(|of| of == (one.id.slot, one.id.crc)))?;
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(out.len());
        out[..count].copy_from_slice(&rest[..count]);
        Some(Piece {
            id: *id,
            bytes: count,
            crc: crc32_iscsi(&out[..count]),
        })
    }

    fn keep_piece(
        &mut self,
        group: GroupId,
        id: SnapshotId,
        offset: u64,
        piece: &[u8],
        crc: u32,
    ) -> Option<u64> {
        let part = self.parts.get_mut(usize::from(group.0))?;
        if self.life.is_dead() {
            return None;
        }
        if !self.log.borrow().takes_files() {
            *part = None;
            return None;
        }
        if part.as_ref().is_none_or(|part| part.id != id) {
            let bytes = Vec::new();
            *part = piece.is_empty().then_some(Part {
                id,
                bytes,
                is_whole: false,
            });
        }
        let part = part.as_mut()?;
        let is_sound = crc32_iscsi(piece) == crc || mutated(Mutation::PieceUnchecked);
        if offset == part.bytes.len() as u64 && is_sound {
            part.bytes.extend_from_slice(piece);
        }
        let here = part.bytes.len() as u64;
        part.is_whole = here >= id.bytes;
        Some(here)
    }
}

impl<P: Post> NodeIo for Outbox<'_, P> {
    fn pin(&mut self, pins: &BTreeMap<NodeId, Incarnation>, formed: bool) -> bool {
        if self.life.is_dead() {
            return true;
        }
        if !self.log.borrow().takes_files() {
            return false;
        }
        if formed && !self.identity.formed {
            self.identity.formed_boot = Some(self.boot);
        }
        self.identity.pins = pins.clone();
        self.identity.formed = formed;
        true
    }

    fn client(&mut self, _: SocketAddr, _: &Header, _: &[u8]) {}

    fn inspect(&mut self, _: SocketAddr, _: &Header) {}
}

/// Where the machine at `place` (or the client behind the machines) is reached.
pub(super) fn address(place: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, place as u8 + 1], 4747))
}

/// Who is reached there.
pub(super) fn place_of(address: SocketAddr) -> usize {
    match address {
        SocketAddr::V4(v4) => usize::from(v4.ip().octets()[3]) - 1,
        SocketAddr::V6(_) => usize::MAX,
    }
}

impl Machine {
    pub(super) fn new(place: usize, scenario: &Scenario, random: &mut Random) -> Self {
        Self {
            place,
            node_id: NodeId(place as u16 + 1),
            clock: Clock::new(scenario.drift_ppm[place], scenario.skew_ms[place]),
            boot: u128::from(random.next() | 1),
            identity: Identity::new(random.next(), place >= scenario.nodes),
            words: blank(0),
            log: Rc::default(),
            shelves: vec![Shelf::default(); usize::from(scenario.groups)],
            standing: Standing::Member,
            process: None,
            reborn: None,
            kernel: None,
            life: Rc::default(),
            is_paused: false,
            inbox: VecDeque::new(),
            recovered: vec![Slot::NONE; usize::from(scenario.groups)],
            flush_ns: scenario.flush_ns,
            rounds_ahead: scenario.rounds_ahead,
            writing: Vec::new(),
            parts: vec![None; usize::from(scenario.groups)],
            unwritten: vec![false; usize::from(scenario.groups)],
            cuttings: Vec::new(),
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.process.is_some() && !self.is_paused
    }

    /// Calls into the node, if a process runs, with what its clocks show.
    pub(super) fn run<P: Post, T>(
        &mut self,
        now_ns: u64,
        post: &mut P,
        call: impl FnOnce(&mut SimNode, u64, u64, &mut Outbox<'_, P>) -> T,
    ) -> Option<T> {
        let node = self.process.as_mut()?;
        let mut io = Outbox {
            place: self.place,
            boot: self.boot,
            identity: &mut self.identity,
            shelves: &self.shelves,
            parts: &mut self.parts,
            words: &self.words,
            life: &self.life,
            log: &self.log,
            rounds_ahead: self.rounds_ahead,
            post,
        };
        let local_ns = self.clock.monotonic_ns(now_ns);
        let unix_ms = self.clock.unix_ms(now_ns);
        Some(call(node, local_ns, unix_ms, &mut io))
    }

    fn birth(&self, durability: Durability) -> Birth {
        Birth {
            cluster: CLUSTER,
            node: self.node_id,
            nonce: self.identity.nonce,
            // Under `sync` the journal is the memory, and it outlives the machine.
            boot: if durability == Durability::Sync {
                0
            } else {
                self.boot
            },
        }
    }

    /// Has the kernel vote from now on: of a process that runs, whose cluster has formed.
    pub(super) fn attach(&mut self, scenario: &Scenario) {
        let birth = self.birth(scenario.durability);
        self.kernel = Bare::in_kernel(&self.words, birth, scenario);
    }

    /// The life of the memory that a process here would have.
    pub(super) fn incarnation(&self, scenario: &Scenario) -> Incarnation {
        self.birth(scenario.durability).incarnation()
    }

    fn open_region(
        &mut self,
        scenario: &Scenario,
        random: &mut Random,
    ) -> Result<Region<Words>, NoStart> {
        let (layout, durability) = (scenario.layout(), scenario.durability);
        let birth = self.birth(durability);
        // Before the cluster has formed this node has never voted.
        if durability == Durability::Sync || !self.identity.formed {
            self.identity.generation = 0;
            self.identity.in_maps = scenario.offload.is_some() && random.below(4) > 0;
            self.words = blank(layout.words());
            return Region::create(
                Rc::clone(&self.words),
                layout,
                birth,
                EPOCH,
                scenario.lease_ns,
            )
            .map_err(|error| NoStart::Damaged(error.to_string()));
        }
        for _ in 0..KILLED_STARTS {
            if scenario.offload.is_none() || random.below(3) > 0 {
                break;
            }
            let region = self.open_named(layout, birth)?;
            if let Some(moved) = self.moved(&region, random)? {
                return Ok(moved);
            }
        }
        let region = self.open_named(layout, birth)?;
        if region.is_sealed() {
            region.resume();
        }
        Ok(region)
    }

    /// Opens the votes that the identity names.
    fn open_named(&self, layout: Layout, birth: Birth) -> Result<Region<Words>, NoStart> {
        let opened = Region::open(Rc::clone(&self.words), layout, birth);
        let (region, _) = opened.map_err(|error| match error {
            OpenError::Blank | OpenError::OtherIncarnation { .. } => {
                NoStart::LostMemory(error.to_string())
            }
            error => NoStart::Damaged(error.to_string()),
        })?;
        if region.generation() != self.identity.generation {
            return Err(NoStart::Damaged("its votes were handed over".into()));
        }
        Ok(region)
    }

    /// Moves votes into the kernel's maps or out of them, as the host does (`region_place`). `None`
    /// if the process is killed on the way.
    fn moved(
        &mut self,
        region: &Region<Words>,
        random: &mut Random,
    ) -> Result<Option<Region<Words>>, NoStart> {
        let mut is_killed = || random.below(4) == 0;
        let sealed = region.seal();
        sealed.map_err(|error| NoStart::Damaged(error.to_string()))?;
        if is_killed() {
            return Ok(None);
        }
        let words = blank(region.layout().words());
        let copy = region.copy_into(Rc::clone(&words));
        let copy = copy.map_err(|error| NoStart::Damaged(error.to_string()))?;
        if is_killed() {
            return Ok(None);
        }
        self.words = words;
        self.identity.generation = copy.generation();
        self.identity.in_maps = !self.identity.in_maps;
        Ok(Some(copy).filter(|_| !is_killed()))
    }

    /// How often its votes were moved.
    pub(super) const fn moves(&self) -> u64 {
        self.identity.generation
    }

    /// Starts a process over whatever survived, as `run` does: the region, the newest snapshot that
    /// can be read, then the journal.
    pub(super) fn start(
        &mut self,
        scenario: &Scenario,
        quorums: Option<(usize, usize)>,
        now_ns: u64,
        seed: u64,
    ) -> Result<(), NoStart> {
        let layout = scenario.layout();
        let durability = scenario.durability;
        if durability != Durability::Sync
            && let Some(formed) = self.identity.formed_boot
            && formed != self.boot
        {
            return Err(NoStart::LostMemory("the machine has restarted".into()));
        }
        // Nobody else steps a region that is being opened.
        self.kernel = None;
        let region = self.open_region(scenario, &mut Random::new(seed))?;
        let acceptor = Acceptor {
            node: self.node_id,
            incarnation: self.birth(durability).incarnation(),
            layout,
        };
        let local_ns = self.clock.monotonic_ns(now_ns);
        let mut states = Vec::new();
        let mut highest_round = 0;
        for group in 0..scenario.groups {
            let mut applied = Applied::new(Kv::new());
            if let Some(snapshot) = self.shelves[usize::from(group)].newest() {
                applied
                    .restore(&snapshot.bytes)
                    .map_err(|error| NoStart::Damaged(error.to_string()))?;
            }
            if durability != Durability::Volatile {
                let memory = (durability == Durability::Sync).then_some(&region);
                let (recovered, round) = self.replay(acceptor, applied, group, memory, local_ns)?;
                (applied, highest_round) = (recovered, round.max(highest_round));
            }
            self.recovered[usize::from(group)] = applied.slot();
            states.push(applied);
        }
        let used_round = self.identity.reserved_round.max(highest_round);
        self.identity.reserved_round = used_round + scenario.rounds_ahead;
        let applied: Vec<Slot> = states.iter().map(Applied::slot).collect();
        self.life = Rc::default();
        for part in self.parts.iter_mut().flatten() {
            part.is_whole = false;
        }
        let newest = self.shelves.iter().map(|shelf| Cutting::new(shelf.slot()));
        self.cuttings = newest.collect();
        let node = Node::new(
            self.config(scenario, quorums, used_round, seed),
            acceptor,
            Watched::new(region, Rc::clone(&self.life)),
            Disk::new(Rc::clone(&self.log), Rc::clone(&self.life)),
            durability,
            states,
        );
        let mut node = match node {
            Ok(mut node) => {
                if scenario.offload.is_some() {
                    node.local_mut().share();
                }
                node
            }
            Err(error @ (NodeError::LostMemory { .. } | NodeError::OtherMembers { .. })) => {
                return Err(NoStart::LostMemory(error.to_string()));
            }
            Err(error) => return Err(NoStart::Config(error.to_string())),
        };
        if durability == Durability::Async && self.identity.formed {
            for (group, applied) in applied.into_iter().enumerate() {
                let local = node.local_mut();
                let mut from = applied;
                while let Err(reached) = local.journal_again(GroupId(group as u16), from) {
                    // As the host does, it waits for room.
                    from = reached;
                    let mut log = self.log.borrow_mut();
                    log.begin_flush();
                    log.end_flush();
                }
            }
        }
        self.process = Some(node);
        Ok(())
    }

    fn replay(
        &self,
        acceptor: Acceptor,
        applied: Applied<Kv>,
        group: u16,
        memory: Option<&Region<Words>>,
        local_ns: u64,
    ) -> Result<(Applied<Kv>, u64), NoStart> {
        let log = self.log.borrow();
        let mut recovery = Recovery::new(acceptor, applied);
        for number in log.numbers() {
            // The core replays one group at a time; a journal is one for all.
            let Some(record) = log
                .record(number)
                .filter(|record| record.get(4..6) == Some(&group.to_be_bytes()))
            else {
                continue;
            };
            recovery
                .record(memory, local_ns, record)
                .map_err(|error| NoStart::Damaged(error.to_string()))?;
        }
        let (applied, round, _) = recovery.finish();
        Ok((applied, round))
    }

    fn config(
        &self,
        scenario: &Scenario,
        quorums: Option<(usize, usize)>,
        used_round: u64,
        seed: u64,
    ) -> Config {
        let is_spare = self.place >= scenario.nodes;
        let places = (0..scenario.nodes).chain(is_spare.then_some(self.place));
        let peers = places.map(|place| Peer {
            node: NodeId(place as u16 + 1),
            address: address(place),
            priority: 0,
        });
        Config {
            node: self.node_id,
            peers: peers.collect(),
            joins: self.identity.joins,
            registers: self.identity.registers.clone(),
            epoch: EPOCH,
            quorums,
            key: scenario.key,
            leader: scenario.leader,
            leases: scenario.leases,
            quorum_reads: scenario.quorum_reads,
            election: scenario.election,
            pulse_ns: scenario.pulse_ns,
            campaigns: scenario.campaigns,
            pace: scenario.pace,
            origin: 0,
            seed,
            used_round,
            pins: self.identity.pins.clone(),
            formed: self.identity.formed,
        }
    }
}

/// A datagram's bytes.
pub(super) fn write_packet(header: &Header, value: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.reserve(HEADER_BYTES + value.len());
    out.extend_from_slice(&header.to_bytes());
    out.extend_from_slice(value);
}
