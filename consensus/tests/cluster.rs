//! Whole clusters in virtual time: real nodes and clients, a network that loses, repeats and
//! reorders by seed.
#![cfg(not(loom))]

use nearwire_consensus::acceptor::Acceptor;
use nearwire_consensus::applied::Applied;
use nearwire_consensus::catch_up::Pace;
use nearwire_consensus::client::{self, Client};
use nearwire_consensus::configuration::{Configuration, Matchmakers};
use nearwire_consensus::election::ElectionTiming;
use nearwire_consensus::envelope::{Entry, EntryKind};
use nearwire_consensus::leader::LeaderTiming;
use nearwire_consensus::local::{Durability, Journal};
use nearwire_consensus::node::{Config, Node, NodeIo, Peer};
use nearwire_consensus::quorum::{Member, MemberRole, Quorums};
use nearwire_consensus::random::Random;
use nearwire_consensus::recover::Recovery;
use nearwire_consensus::region::{Birth, Layout, Region};
use nearwire_consensus::replica::{Io, Piece, Reconfigured, Replica, Role};
use nearwire_consensus::state_machine::{Frozen, RestoreError, SnapshotId, StateMachine};
use nearwire_consensus::sync::AtomicU64;
use nearwire_consensus::wire::{Flags, Header, Kind, Parsed, parse};
use nearwire_consensus::{Ballot, Epoch, GroupId, Incarnation, NodeId, Sequence, SessionId, Slot};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

const MS: u64 = 1_000_000;
const HEARTBEAT_NS: u64 = 10 * MS;
const WINDOW: u64 = 64;
const VALUE_BYTES: usize = 512;

/// Remembers every command; answers with how many came before.
#[derive(Debug, Default, Clone)]
struct Ledger {
    lines: Vec<Vec<u8>>,
}

impl StateMachine for Ledger {
    fn apply(&mut self, _: u64, command: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(&(self.lines.len() as u64).to_be_bytes());
        self.lines.push(command.to_vec());
    }

    fn query(&self, _: u64, _: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(&(self.lines.len() as u64).to_be_bytes());
    }

    fn clock(&mut self, _: u64) {}

    fn freeze(&self) -> Box<dyn Frozen> {
        let mut bytes = Vec::new();
        for line in &self.lines {
            bytes.extend_from_slice(&(line.len() as u64).to_be_bytes());
            bytes.extend_from_slice(line);
        }
        Box::new(Frost(Some(bytes)))
    }

    fn restore(&mut self, mut bytes: &[u8]) -> Result<(), RestoreError> {
        let mut lines = Vec::new();
        while let Some((length, rest)) = bytes.split_first_chunk::<8>() {
            let (line, rest) = rest
                .split_at_checked(u64::from_be_bytes(*length) as usize)
                .ok_or(RestoreError("cut off"))?;
            lines.push(line.to_vec());
            bytes = rest;
        }
        self.lines = lines;
        Ok(())
    }
}

struct Frost(Option<Vec<u8>>);

impl Frozen for Frost {
    fn next_chunk(&mut self, out: &mut Vec<u8>) -> bool {
        self.0.take().map(|bytes| out.extend(bytes)).is_some()
    }
}

#[derive(Debug, Clone)]
struct Words(Arc<Vec<AtomicU64>>);

impl AsRef<[AtomicU64]> for Words {
    fn as_ref(&self) -> &[AtomicU64] {
        &self.0
    }
}

fn blank(layout: Layout) -> Words {
    Words(Arc::new(
        (0..layout.words()).map(|_| AtomicU64::new(0)).collect(),
    ))
}

/// A journal whose flushes happen when the test says so.
#[derive(Debug, Default, Clone)]
struct Disk(Rc<RefCell<Log>>);

#[derive(Debug, Default)]
struct Log {
    records: Vec<Vec<u8>>,
    flushed: usize,
    /// The queue takes nothing for now.
    full: bool,
    /// A broken build: claims that everything is flushed at once.
    lies: bool,
}

impl Journal for Disk {
    fn append(&mut self, head: &[u8], body: &[u8]) -> Option<u64> {
        let mut log = self.0.borrow_mut();
        if log.full {
            return None;
        }
        log.records.push([head, body].concat());
        Some(log.records.len() as u64)
    }

    fn has_room(&self, _: usize) -> bool {
        !self.0.borrow().full
    }

    fn flushed(&self) -> u64 {
        let log = self.0.borrow();
        if log.lies {
            log.records.len() as u64
        } else {
            log.flushed as u64
        }
    }
}

type TestNode = Node<Region<Words>, Disk, Ledger>;

/// What outlives a process.
#[derive(Default, Clone)]
struct Stable {
    pins: BTreeMap<NodeId, Incarnation>,
    formed: bool,
    round: u64,
    snapshot: Option<(Slot, Vec<u8>)>,
    /// What has come of another's.
    part: Option<(SnapshotId, Vec<u8>)>,
    registers: BTreeMap<GroupId, Vec<u8>>,
    /// There is no room for another register.
    full: bool,
    /// No rounds can be reserved.
    no_rounds: bool,
}

struct Host {
    node: Option<TestNode>,
    words: Words,
    disk: Disk,
    stable: Stable,
    birth: Birth,
    wake_ns: u64,
}

struct Outbox<'a> {
    address: SocketAddr,
    stable: &'a mut Stable,
    sent: &'a mut Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
}

impl Io for Outbox<'_> {
    fn send(&mut self, to: SocketAddr, header: &Header, value: &[u8]) {
        self.sent
            .push((self.address, to, [&header.to_bytes()[..], value].concat()));
    }

    fn reserve_rounds(&mut self, round: u64) -> bool {
        if !self.stable.no_rounds {
            self.stable.round = self.stable.round.max(round);
        }
        !self.stable.no_rounds
    }

    fn keep_register(&mut self, group: GroupId, register: &[u8]) -> bool {
        if !self.stable.full {
            self.stable.registers.insert(group, register.to_vec());
        }
        !self.stable.full
    }

    fn read_snapshot(
        &mut self,
        _: GroupId,
        of: Option<(Slot, u32)>,
        offset: u64,
        out: &mut [u8],
    ) -> Option<Piece> {
        let (slot, bytes) = self.stable.snapshot.as_ref()?;
        let id = snapshot_id(*slot, bytes);
        if of.is_some_and(|of| of != (id.slot, id.crc)) {
            return None;
        }
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(out.len());
        out[..count].copy_from_slice(&rest[..count]);
        Some(Piece {
            id,
            bytes: count,
            crc: checksum(&out[..count]),
        })
    }

    fn keep_piece(
        &mut self,
        _: GroupId,
        id: SnapshotId,
        offset: u64,
        piece: &[u8],
        crc: u32,
    ) -> Option<u64> {
        let part = self.stable.part.take().filter(|(of, _)| *of == id);
        let (_, mut bytes) = part.unwrap_or((id, Vec::new()));
        if !piece.is_empty() {
            assert_eq!((offset, crc), (bytes.len() as u64, checksum(piece)));
            bytes.extend_from_slice(piece);
        }
        let here = bytes.len() as u64;
        self.stable.part = Some((id, bytes));
        Some(here)
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    let step = |sum: u32, byte: &u8| (sum ^ u32::from(*byte)).wrapping_mul(16_777_619);
    bytes.iter().fold(2_166_136_261, step)
}

fn snapshot_id(slot: Slot, bytes: &[u8]) -> SnapshotId {
    SnapshotId {
        slot,
        bytes: bytes.len() as u64,
        crc: checksum(bytes),
    }
}

impl NodeIo for Outbox<'_> {
    fn pin(&mut self, pins: &BTreeMap<NodeId, Incarnation>, formed: bool) -> bool {
        self.stable.pins = pins.clone();
        self.stable.formed = formed;
        true
    }

    fn client(&mut self, _: SocketAddr, _: &Header, _: &[u8]) {}

    fn inspect(&mut self, _: SocketAddr, _: &Header) {}
}

#[derive(Clone, Copy)]
struct Weather {
    loss_percent: u64,
    repeat_percent: u64,
    delay_ns: u64,
}

const CALM: Weather = Weather {
    loss_percent: 0,
    repeat_percent: 0,
    delay_ns: 20_000,
};
const STORM: Weather = Weather {
    loss_percent: 10,
    repeat_percent: 5,
    delay_ns: 400_000,
};

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Flight {
    at_ns: std::cmp::Reverse<u64>,
    number: std::cmp::Reverse<u64>,
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

struct World {
    now_ns: u64,
    hosts: Vec<Host>,
    client: Client,
    air: BinaryHeap<Flight>,
    /// Hosts whose packets are lost, and those to them.
    cut_off: BTreeSet<usize>,
    random: Random,
    weather: Weather,
    durability: Durability,
    /// Phase 1 and phase 2; majorities if `None`.
    quorums: Option<(usize, usize)>,
    quorum_reads: bool,
    pace: Pace,
    number: u64,
    next_token: u64,
    acknowledged: Vec<(u64, u64)>,
    reads: u64,
    turns: u64,
}

fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node as u8], 4747))
}

const CLIENT: ([u8; 4], u16) = ([10, 0, 0, 99], 9);

fn layout() -> Layout {
    Layout::new(1, WINDOW, VALUE_BYTES).expect("valid")
}

impl World {
    fn new(seed: u64, nodes: usize, weather: Weather, durability: Durability) -> Self {
        Self::paced(seed, nodes, weather, durability, Pace::default())
    }

    fn paced(
        seed: u64,
        nodes: usize,
        weather: Weather,
        durability: Durability,
        pace: Pace,
    ) -> Self {
        let mut world = Self::unstarted(seed, nodes, weather, durability);
        world.pace = pace;
        for host in 0..nodes {
            world.start(host);
        }
        world
    }

    /// Followers answer queries, and the client asks one of them.
    fn reading(seed: u64, weather: Weather, quorums: Option<(usize, usize)>) -> Self {
        let mut world = Self::unstarted(seed, 3, weather, Durability::Volatile);
        (world.quorums, world.quorum_reads) = (quorums, true);
        world.client = world.client.reading_from(address(1 + seed as usize % 3));
        for host in 0..3 {
            world.start(host);
        }
        world
    }

    fn unstarted(seed: u64, nodes: usize, weather: Weather, durability: Durability) -> Self {
        let members = (1..=nodes)
            .map(|n| (NodeId(n as u16), address(n)))
            .collect();
        let client = Client::new(client::Config {
            members,
            group: GroupId(0),
            epoch: Epoch(1),
            max_value: VALUE_BYTES - 24,
            max_in_flight: 64,
            seed,
        });
        let hosts = (1..=nodes)
            .map(|n| Host {
                node: None,
                words: blank(layout()),
                disk: Disk::default(),
                stable: Stable::default(),
                birth: Birth {
                    cluster: 1,
                    node: NodeId(n as u16),
                    nonce: n as u64,
                    boot: 0,
                },
                wake_ns: 0,
            })
            .collect();
        Self {
            now_ns: 1_000 * MS,
            hosts,
            client: client.expect("valid"),
            air: BinaryHeap::new(),
            cut_off: BTreeSet::new(),
            random: Random::new(seed),
            weather,
            durability,
            quorums: None,
            quorum_reads: false,
            pace: Pace::default(),
            number: 0,
            next_token: 0,
            acknowledged: Vec::new(),
            reads: 0,
            turns: 0,
        }
    }

    /// Starts the process of a host over whatever survived.
    fn start(&mut self, index: usize) {
        let nodes = self.hosts.len();
        let now_ns = self.now_ns;
        let host = &mut self.hosts[index];
        let layout = layout();
        let acceptor = Acceptor {
            node: host.birth.node,
            incarnation: host.birth.incarnation(),
            layout,
        };
        let opened = Region::open(host.words.clone(), layout, host.birth);
        let region = match opened {
            Ok((region, _)) => region,
            Err(_) => {
                Region::create(host.words.clone(), layout, host.birth, Epoch(1), 0).expect("blank")
            }
        };
        let mut applied = Applied::new(Ledger::default());
        if let Some((_, bytes)) = &host.stable.snapshot {
            applied.restore(bytes).expect("own snapshot");
        }
        if self.durability != Durability::Volatile {
            let mut recovery = Recovery::new(acceptor, applied);
            for record in &host.disk.0.borrow().records {
                recovery
                    .record(Some(&region), now_ns, record)
                    .expect("own record");
            }
            (applied, _, _) = recovery.finish();
        }
        let peers = (1..=nodes)
            .map(|n| Peer {
                node: NodeId(n as u16),
                address: address(n),
                priority: 0,
            })
            .collect();
        let config = Config {
            node: host.birth.node,
            peers,
            joins: false,
            registers: host.stable.registers.clone(),
            epoch: Epoch(1),
            quorums: self.quorums,
            key: None,
            leader: LeaderTiming {
                heartbeat_ns: HEARTBEAT_NS,
                decide_ns: MS,
                resend_ns: 5 * MS,
            },
            leases: false,
            quorum_reads: self.quorum_reads,
            election: ElectionTiming::of(100 * MS),
            pulse_ns: 20 * MS,
            campaigns: 16,
            origin: 0,
            pace: self.pace,
            seed: self.random.next(),
            used_round: host.stable.round,
            pins: host.stable.pins.clone(),
            formed: host.stable.formed,
        };
        let disk = host.disk.clone();
        host.node = Some(
            Node::new(
                config,
                acceptor,
                region,
                disk,
                self.durability,
                vec![applied],
            )
            .expect("majorities"),
        );
        host.wake_ns = 0;
    }

    fn kill(&mut self, index: usize) {
        self.hosts[index].node = None;
    }

    /// Loses power: what was not flushed is gone, the region with it.
    fn lose_power(&mut self, index: usize) {
        let host = &mut self.hosts[index];
        host.node = None;
        host.words = blank(layout());
        let mut log = host.disk.0.borrow_mut();
        let flushed = log.flushed;
        log.records.truncate(flushed);
    }

    fn throw(&mut self, sent: Vec<(SocketAddr, SocketAddr, Vec<u8>)>) {
        for (from, to, bytes) in sent {
            let is_lost = |index: &usize| [from, to].contains(&address(index + 1));
            if self.cut_off.iter().any(is_lost) {
                continue;
            }
            if self.random.below(100) < self.weather.loss_percent {
                continue;
            }
            let copies = 1 + u64::from(self.random.below(100) < self.weather.repeat_percent);
            for _ in 0..copies {
                let at_ns = self.now_ns + 10_000 + self.random.below(self.weather.delay_ns);
                self.number += 1;
                self.air.push(Flight {
                    at_ns: std::cmp::Reverse(at_ns),
                    number: std::cmp::Reverse(self.number),
                    from,
                    to,
                    bytes: bytes.clone(),
                });
            }
        }
    }

    fn turn_host(&mut self, index: usize, packet: Option<(SocketAddr, &[u8])>) {
        let (now_ns, unix_ms) = (self.now_ns, self.now_ns / MS);
        let host = &mut self.hosts[index];
        let Some(node) = &mut host.node else { return };
        self.turns += 1;
        let mut sent = Vec::new();
        let mut io = Outbox {
            address: address(index + 1),
            stable: &mut host.stable,
            sent: &mut sent,
        };
        if let Some((from, bytes)) = packet {
            node.handle(now_ns, unix_ms, from, bytes, &mut io);
        }
        host.wake_ns = node.turn(now_ns, unix_ms, &mut io).max(now_ns + 1_000);
        if let Some((id, bytes)) = io
            .stable
            .part
            .take_if(|(id, bytes)| bytes.len() as u64 == id.bytes)
        {
            assert_eq!(id, snapshot_id(id.slot, &bytes));
            let mut state = Applied::new(Ledger::default());
            state.restore(&bytes).expect("as it was written");
            io.stable.snapshot = Some((id.slot, bytes));
            node.take_over((now_ns, unix_ms), GroupId(0), id, Some(state), &mut io);
            host.wake_ns = now_ns + 1_000;
        }
        if let Some(replica) = node.replica_mut(GroupId(0))
            && replica.take_snapshot_wanted()
        {
            let (slot, mut frozen) = node.freeze(GroupId(0)).expect("it replicates the group");
            let mut bytes = Vec::new();
            while frozen.next_chunk(&mut bytes) {}
            host.stable.snapshot = Some((slot, bytes));
            let replica = node.replica_mut(GroupId(0)).expect("as before");
            replica.snapshot_saved(slot);
        }
        self.throw(sent);
    }

    fn turn_client(&mut self) {
        let mut sent = Vec::new();
        while let Some(datagram) = self.client.poll_transmit(self.now_ns) {
            let bytes = [&datagram.header.to_bytes()[..], datagram.value].concat();
            sent.push((SocketAddr::from(CLIENT), datagram.to, bytes));
        }
        self.throw(sent);
        while let Some(event) = self.client.poll_event() {
            let reply = event.result.expect("no session was lost");
            let number = u64::from_be_bytes(reply[..8].try_into().expect("eight bytes"));
            if event.token >= 1 << 32 {
                self.reads += 1;
                // A linearizable read sees everything acknowledged before it was asked.
                assert!(number >= event.token - (1 << 32), "stale read: {number}");
            } else {
                self.acknowledged.push((event.token, number));
            }
        }
    }

    /// One event: a packet or a timer.
    fn step(&mut self) {
        let mut next = u64::MAX;
        if let Some(flight) = self.air.peek() {
            next = next.min(flight.at_ns.0);
        }
        for host in self.hosts.iter().filter(|host| host.node.is_some()) {
            next = next.min(host.wake_ns);
        }
        next = next.min(self.client.poll_timeout().unwrap_or(u64::MAX));
        self.now_ns = self.now_ns.max(next.min(self.now_ns + 10 * MS));
        if self
            .air
            .peek()
            .is_some_and(|flight| flight.at_ns.0 <= self.now_ns)
        {
            let flight = self.air.pop().expect("peeked");
            if flight.to == SocketAddr::from(CLIENT) {
                if let Parsed::Ours(header, value) = parse(&flight.bytes, 65_535) {
                    self.client
                        .handle_datagram(self.now_ns, flight.from, &header, value);
                }
            } else if let Some(index) =
                (0..self.hosts.len()).find(|index| address(index + 1) == flight.to)
            {
                self.turn_host(index, Some((flight.from, &flight.bytes)));
            }
        }
        for index in 0..self.hosts.len() {
            if self.hosts[index].wake_ns <= self.now_ns {
                self.turn_host(index, None);
            }
        }
        if self
            .client
            .poll_timeout()
            .is_some_and(|due| due <= self.now_ns)
        {
            self.client.handle_timeout(self.now_ns);
        }
        self.turn_client();
    }

    fn run_ms(&mut self, ms: u64) {
        let end = self.now_ns + ms * MS;
        while self.now_ns < end {
            self.step();
        }
    }

    /// Submits commands until `outstanding` are unanswered.
    fn submit(&mut self, outstanding: u64) {
        while self.next_token - (self.acknowledged.len() as u64) < outstanding {
            let body = self.next_token.to_be_bytes();
            self.client
                .submit_command(self.next_token, &body)
                .expect("room");
            self.next_token += 1;
        }
    }

    /// Keeps a few commands under way; the longest time without an answer in nanoseconds.
    fn load_ms(&mut self, ms: u64) -> u64 {
        let (mut last_ns, mut longest_ns) = (self.now_ns, 0);
        let end_ns = self.now_ns + ms * MS;
        while self.now_ns < end_ns {
            self.submit(3);
            let before = self.acknowledged.len();
            self.step();
            if self.acknowledged.len() > before {
                longest_ns = longest_ns.max(self.now_ns - last_ns);
                last_ns = self.now_ns;
            }
        }
        longest_ns
    }

    /// Submits `count` commands, at most `outstanding` at once, and waits for all of them.
    fn commit(&mut self, count: u64, outstanding: u64) {
        let end = self.next_token + count;
        let deadline = self.now_ns + 60_000 * MS;
        while (self.acknowledged.len() as u64) < end {
            while self.next_token < end
                && self.next_token - (self.acknowledged.len() as u64) < outstanding
            {
                let body = self.next_token.to_be_bytes();
                self.client
                    .submit_command(self.next_token, &body)
                    .expect("room");
                self.next_token += 1;
            }
            self.step();
            assert!(
                self.now_ns < deadline,
                "stuck at {} of {end}: {:?}",
                self.acknowledged.len(),
                self.hosts.iter().map(Host::describe).collect::<Vec<_>>()
            );
        }
    }

    fn read(&mut self) {
        let acknowledged = self.acknowledged.len() as u64;
        let before = self.reads;
        self.client
            .submit_query((1 << 32) + acknowledged, b"")
            .expect("room");
        let deadline = self.now_ns + 60_000 * MS;
        while self.reads == before {
            self.step();
            assert!(self.now_ns < deadline, "no answer to a read");
        }
    }

    fn leader(&self) -> Option<usize> {
        self.hosts.iter().position(|host| {
            host.node.as_ref().is_some_and(|node| {
                node.replicas()
                    .first()
                    .is_some_and(|replica| replica.role() == Role::Leader)
            })
        })
    }

    fn flush(&mut self, index: usize) {
        let mut log = self.hosts[index].disk.0.borrow_mut();
        log.flushed = log.records.len();
        drop(log);
        self.hosts[index].wake_ns = 0;
    }

    /// Every command acknowledged is in the ledger at the place it was told, exactly once, and all
    /// ledgers are prefixes of the longest.
    fn check(&self) {
        let ledgers: Vec<&Vec<Vec<u8>>> = self
            .hosts
            .iter()
            .filter_map(|host| host.node.as_ref()?.replicas().first())
            .map(|replica| &replica.applied().machine().lines)
            .collect();
        let longest = ledgers
            .iter()
            .max_by_key(|lines| lines.len())
            .expect("a replica");
        for lines in &ledgers {
            assert_eq!(lines[..], longest[..lines.len()], "applied prefixes differ");
        }
        for (token, place) in &self.acknowledged {
            assert_eq!(
                longest.get(*place as usize).map(Vec::as_slice),
                Some(&token.to_be_bytes()[..]),
                "acknowledged write lost"
            );
        }
        let mut sorted: Vec<_> = longest.to_vec();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), longest.len(), "a command was applied twice");
    }
}

impl Host {
    fn replica(&self) -> Option<&Replica<Ledger>> {
        self.node.as_ref()?.replicas().first()
    }

    fn describe(&self) -> String {
        let Some(node) = &self.node else {
            return "down".into();
        };
        match node.replicas().first() {
            None => format!("forming, {:?}", node.conflict()),
            Some(replica) => format!(
                "{:?} applied {} wanted {} view {:?} {:?}",
                replica.role(),
                replica.applied().slot(),
                replica.catch_up().wanted(),
                node.local().view(GroupId(0)),
                node.counters(),
            ),
        }
    }
}

#[test]
fn three_nodes_form_elect_and_commit() {
    let mut world = World::new(1, 3, CALM, Durability::Volatile);
    world.commit(1_000, 16);
    world.read();
    world.run_ms(100);
    world.check();
    let applied: Vec<_> = world
        .hosts
        .iter()
        .map(|host| {
            host.node.as_ref().expect("up").replicas()[0]
                .applied()
                .slot()
        })
        .collect();
    assert!(
        applied.iter().all(|slot| *slot == applied[0]),
        "followers lag: {applied:?}"
    );
}

#[test]
fn a_single_node_commits_alone() {
    let mut world = World::new(2, 1, CALM, Durability::Volatile);
    world.commit(200, 4);
    world.read();
    world.check();
}

#[test]
fn the_log_goes_on_when_its_leader_dies_and_the_dead_catch_up() {
    let mut world = World::new(3, 3, CALM, Durability::Volatile);
    for _ in 0..4 {
        world.commit(300, 8);
        let leader = world.leader().expect("somebody leads");
        world.kill(leader);
        world.commit(300, 8);
        world.read();
        world.start(leader);
        world.run_ms(300);
        world.check();
    }
    let applied: Vec<_> = world
        .hosts
        .iter()
        .map(|host| {
            host.node.as_ref().expect("up").replicas()[0]
                .applied()
                .slot()
        })
        .collect();
    let hosts: Vec<_> = world.hosts.iter().map(Host::describe).collect();
    assert!(applied.iter().all(|slot| *slot == applied[0]), "{hosts:#?}");
}

/// Clients wait for a few round trips, not for the successor's next report.
#[test]
fn a_leader_hands_over_between_two_heartbeats() {
    for seed in 0..20 {
        let mut world = World::new(seed, 3, CALM, Durability::Volatile);
        world.commit(500, 16);
        let leader = world.leader().expect("it served");
        let successor = (leader + 1) % 3;
        world.load_ms(15);
        let transfer = Header {
            vote_ballot: Ballot(successor as u64 + 1),
            ..Header::new(Kind::Transfer, GroupId(0), NodeId::NONE)
        };
        let answers = answers(&mut world, leader, &transfer, &[]);
        assert_eq!(answers.first().map(|answer| answer.kind), Some(Kind::Ack));
        let gap_ns = world.load_ms(100);
        assert_eq!(world.leader(), Some(successor), "seed {seed}");
        assert!(gap_ns < HEARTBEAT_NS / 2, "seed {seed}: {gap_ns} ns");
        world.check();
    }
}

#[test]
fn storms_and_crashes_lose_nothing() {
    for seed in 0..60 {
        let mut world = World::new(seed, 3, STORM, Durability::Volatile);
        for _ in 0..3 {
            world.commit(60, 8);
            let victim = world.random.below(3) as usize;
            world.kill(victim);
            world.commit(60, 8);
            world.read();
            world.start(victim);
            // A volatile state is memory: the next to die must not be the last that has it.
            world.run_ms(1_000);
            world.check();
        }
    }
}

#[test]
fn memory_that_came_back_empty_is_never_counted() {
    let mut world = World::new(5, 3, CALM, Durability::Volatile);
    world.commit(100, 8);
    let leader = world.leader().expect("somebody leads");
    let victims: Vec<usize> = (0..3).filter(|index| *index != leader).collect();
    world.kill(victims[0]);
    world.commit(50, 8);
    // The one that shares all votes with the leader loses its memory, and the leader dies: the
    // third alone must not be joined by an empty acceptor into a quorum.
    world.kill(victims[1]);
    world.hosts[victims[1]].words = blank(layout());
    world.hosts[victims[1]].birth.nonce = 77;
    world.hosts[victims[1]].stable = Stable::default();
    world.kill(leader);
    world.start(victims[0]);
    world.start(victims[1]);
    world.run_ms(3_000);
    assert_eq!(
        world.leader(),
        None,
        "an empty acceptor helped to elect a leader"
    );
    world.start(leader);
    world.run_ms(1_000);
    world.commit(50, 8);
    world.check();
}

fn sync_restart(lies: bool) -> World {
    let mut world = World::new(6, 3, CALM, Durability::Sync);
    for host in &world.hosts {
        host.disk.0.borrow_mut().lies = lies;
    }
    for round in 0..40u64 {
        let target = world.acknowledged.len() as u64 + 20;
        let deadline = world.now_ns + 60_000 * MS;
        while (world.acknowledged.len() as u64) < target {
            assert!(world.now_ns < deadline, "no acknowledgement for a minute");
            while world.next_token - (world.acknowledged.len() as u64) < 8 {
                let body = world.next_token.to_be_bytes();
                world
                    .client
                    .submit_command(world.next_token, &body)
                    .expect("room");
                world.next_token += 1;
            }
            world.step();
            // A flush now and then, each disk at its own pace.
            if world.random.below(10) == 0 {
                let index = world.random.below(3) as usize;
                world.flush(index);
            }
        }
        if round % 8 == 7 {
            for index in 0..3 {
                world.lose_power(index);
            }
            for index in 0..3 {
                world.start(index);
            }
        }
    }
    let end = world.now_ns + 3_000 * MS;
    while world.now_ns < end {
        world.step();
        if world.random.below(4) == 0 {
            let index = world.random.below(3) as usize;
            world.flush(index);
        }
    }
    world
}

#[test]
fn sync_durability_survives_the_loss_of_power_everywhere() {
    sync_restart(false).check();
}

#[test]
fn a_build_that_replies_before_the_flush_is_caught() {
    let broken = std::panic::catch_unwind(|| sync_restart(true).check());
    assert!(broken.is_err(), "replying before the flush went unnoticed");
}

/// Learn packets for everything that some replica has applied, by slot.
type Lessons = BTreeMap<Slot, (SocketAddr, Vec<u8>)>;

fn note_lessons(world: &World, lessons: &mut Lessons) {
    for (index, host) in world.hosts.iter().enumerate() {
        let Some(replica) = host.replica() else {
            continue;
        };
        let mut slot = replica.applied().slot();
        while !lessons.contains_key(&slot)
            && let Some((ballot, value)) = replica.applied().kept(slot)
        {
            let header = Header {
                slot,
                vote_ballot: ballot,
                length: value.len() as u16,
                ..Header::new(Kind::Learn, GroupId(0), NodeId(index as u16 + 1))
            };
            let bytes = [&header.to_bytes()[..], value].concat();
            lessons.insert(slot, (address(index + 1), bytes));
            slot = slot.previous();
        }
    }
}

#[test]
fn what_a_candidate_is_taught_late_shifts_no_slot() {
    for seed in 0..60 {
        let mut world = World::new(seed, 3, STORM, Durability::Volatile);
        let mut lessons = Lessons::new();
        for _ in 0..3 {
            let target = world.next_token + 40;
            while world.next_token < target {
                world.submit(8);
                world.step();
                note_lessons(&world, &mut lessons);
            }
            let Some(leader) = world.leader() else {
                continue;
            };
            world.kill(leader);
            let end = world.now_ns + 600 * MS;
            while world.now_ns < end {
                world.step();
                // Answers to CatchUp may come as late as they like.
                for index in 0..3 {
                    let late = world.random.below(10) == 0;
                    let Some(replica) = world.hosts[index].replica().filter(|_| late) else {
                        continue;
                    };
                    let next = replica.applied().slot().next();
                    if replica.role() == Role::Candidate
                        && let Some((from, bytes)) = lessons.get(&next)
                    {
                        world.turn_host(index, Some((*from, bytes)));
                    }
                }
            }
            world.start(leader);
            world.run_ms(1_000);
            world.check();
        }
    }
}

/// What `index` sends to a stranger in answer to one packet.
fn answers(world: &mut World, index: usize, header: &Header, value: &[u8]) -> Vec<Header> {
    let stranger = SocketAddr::from(([10, 9, 9, 9], 9));
    let bytes = [&header.to_bytes()[..], value].concat();
    world.turn_host(index, Some((stranger, &bytes)));
    let air = std::mem::take(&mut world.air);
    let (own, rest): (Vec<_>, Vec<_>) = air.into_iter().partition(|flight| flight.to == stranger);
    world.air = rest.into_iter().collect();
    own.iter()
        .filter_map(|flight| match parse(&flight.bytes, 65_535) {
            Parsed::Ours(header, _) => Some(header),
            _ => None,
        })
        .collect()
}

#[test]
fn nobody_is_taught_at_an_address_that_only_the_packet_names() {
    let mut world = World::new(7, 3, CALM, Durability::Volatile);
    world.commit(100, 8);
    let leader = world.leader().expect("somebody leads");
    for kind in [Kind::CatchUp, Kind::SnapshotRequest] {
        // Tools, which have no number, are answered with no more than they send.
        for sender in 1..=4 {
            let ask = Header {
                slot: Slot(1),
                watermark: 64,
                ..Header::new(kind, GroupId(0), NodeId(sender))
            };
            assert_eq!(answers(&mut world, leader, &ask, &[]), [], "{kind:?}");
        }
    }
}

/// Bytes of lessons, with their heads, that a follower sends another one in `turns` turns that are
/// `apart_ns` apart, after it was asked for more than it may send.
fn lessons(pace: Pace, turns: u64, apart_ns: u64) -> (usize, usize) {
    let mut world = World::paced(9, 3, CALM, Durability::Volatile, pace);
    world.commit(1_000, 1);
    world.run_ms(100);
    let leader = world.leader().expect("somebody leads");
    let [teacher, pupil] = [1, 2].map(|more| (leader + more) % 3);
    let ask = Header {
        slot: Slot(1),
        watermark: 1_000,
        ..Header::new(Kind::CatchUp, GroupId(0), NodeId(pupil as u16 + 1))
    };
    world.air.clear();
    let bytes = ask.to_bytes();
    world.turn_host(teacher, Some((address(pupil + 1), &bytes)));
    for _ in 1..turns {
        world.now_ns += apart_ns;
        world.turn_host(teacher, None);
    }
    let is_lesson = |flight: &&Flight| flight.bytes[3] == Kind::Learn as u8;
    let lessons: Vec<_> = world.air.iter().filter(is_lesson).collect();
    assert!(lessons.iter().all(|flight| flight.to == address(pupil + 1)));
    let bytes = lessons.iter().map(|flight| flight.bytes.len()).sum();
    (lessons.len(), bytes)
}

#[test]
fn lessons_leave_a_few_in_a_turn_so_that_votes_do_not_wait_behind_them() {
    assert_eq!(lessons(Pace::default(), 1, 0).0, 8);
    assert_eq!(lessons(Pace::default(), 10, 1_000).0, 80);
}

#[test]
fn no_more_is_taught_in_a_second_than_the_operator_allows() {
    let pace = Pace {
        bytes_per_s: 1_000_000,
        ..Pace::default()
    };
    // Ten milliseconds, and one that had not been used, and the packet that is under way.
    let (_, bytes) = lessons(pace, 101, 100_000);
    assert!((9_500..=11_500).contains(&bytes), "{bytes}");
}

#[test]
fn a_tool_is_answered_with_no_more_than_it_has_sent() {
    let mut world = World::new(7, 3, CALM, Durability::Volatile);
    world.commit(100, 8);
    let leader = world.leader().expect("somebody leads");
    let applied = world.hosts[leader].replica().expect("up").applied().slot();
    let ask = |kind, slot, room: usize| Header {
        slot,
        length: room as u16,
        nonce: 77,
        ..Header::new(kind, GroupId(0), NodeId::NONE)
    };
    let room = [0; 100];
    let offer = ask(Kind::CatchUp, applied, room.len());
    assert_eq!(
        answers(
            &mut world,
            leader,
            &ask(Kind::CatchUp, applied.next(), 100),
            &room
        ),
        [],
        "nobody has that"
    );
    let wait = answers(&mut world, leader, &offer, &room);
    assert_eq!(
        (wait[0].kind, wait[0].slot),
        (Kind::SnapshotChunk, Slot::NONE)
    );
    for room in [0, 1, 100] {
        let room = vec![0; room];
        let offered = answers(
            &mut world,
            leader,
            &ask(Kind::CatchUp, applied, room.len()),
            &room,
        );
        let [first] = offered[..] else {
            panic!("one answer to one question: {offered:?}");
        };
        assert!(first.slot >= applied && usize::from(first.length) <= room.len());
        assert_eq!(first.nonce, 77);
        let piece = Header {
            ballot: first.ballot,
            watermark: 3,
            ..ask(Kind::SnapshotRequest, first.slot, room.len())
        };
        let pieces = answers(&mut world, leader, &piece, &room);
        assert_eq!(pieces.len(), 1);
        assert_eq!(usize::from(pieces[0].length), room.len());
        assert_eq!(pieces[0].watermark, 3);
    }
}

#[test]
fn a_session_opened_later_is_not_called_unknown() {
    let mut world = World::new(8, 3, CALM, Durability::Volatile);
    world.commit(10, 1);
    let leader = world.leader().expect("somebody leads");
    let applied = world.hosts[leader].replica().expect("up").applied().slot();
    let mut ask = |slot: Slot| {
        let mut value = Vec::new();
        Entry {
            kind: EntryKind::Command,
            session: SessionId::new(slot, 9),
            sequence: Sequence(1),
            behind: 0,
            body: b"x",
        }
        .append(&mut value);
        let header = Header {
            length: value.len() as u16,
            ..Header::new(Kind::Request, GroupId(0), NodeId::NONE)
        };
        answers(&mut world, leader, &header, &value).len()
    };
    assert_eq!(ask(applied), 1, "it would have been applied");
    assert_eq!(ask(applied.next()), 0);
}

#[test]
fn a_node_that_is_taken_for_the_leader_says_that_it_is_not() {
    let mut world = World::new(9, 3, CALM, Durability::Volatile);
    world.commit(10, 1);
    let leader = world.leader().expect("somebody leads");
    let (wrong, reporter) = ((leader + 1) % 3, (leader + 2) % 3);
    let report = Header {
        incarnation: world.hosts[reporter].birth.incarnation(),
        epoch: Epoch(1),
        watermark: 1,
        ..Header::new(Kind::Progress, GroupId(0), NodeId(reporter as u16 + 1))
    };
    for (index, expected) in [(leader, 0), (wrong, 1)] {
        world.air.clear();
        world.turn_host(index, Some((address(reporter + 1), &report.to_bytes())));
        let told = world.air.iter().filter(|flight| {
            flight.to == address(reporter + 1)
                && matches!(parse(&flight.bytes, 65_535), Parsed::Ours(header, _)
                    if header.kind == Kind::PreVote)
        });
        assert_eq!(told.count(), expected);
    }
}

/// A world in which only the leader is left after some commits, and which host that is.
fn alone(seed: u64) -> (World, usize) {
    let mut world = World::new(seed, 3, CALM, Durability::Volatile);
    world.commit(10, 1);
    world.run_ms(50);
    let leader = world.leader().expect("somebody leads");
    for index in (0..3).filter(|index| *index != leader) {
        world.kill(index);
    }
    (world, leader)
}

#[test]
fn a_refusal_is_no_vote() {
    let (mut world, leader) = alone(12);
    world.submit(1);
    world.run_ms(5);
    let view = world.hosts[leader].node.as_ref().expect("up").local();
    let view = view.view(GroupId(0)).expect("unlocked");
    assert!(view.highest > view.decided.upto, "nothing is under way");
    let other = (leader + 1) % 3;
    let nack = Header {
        incarnation: world.hosts[other].birth.incarnation(),
        epoch: Epoch(1),
        ballot: view.promised,
        vote_ballot: view.promised,
        slot: view.highest,
        ..Header::new(Kind::Nack, GroupId(0), NodeId(other as u16 + 1))
    };
    world.turn_host(leader, Some((address(other + 1), &nack.to_bytes())));
    let applied = world.hosts[leader].replica().expect("up").applied().slot();
    assert!(applied < view.highest, "one vote and a refusal decided");
}

#[test]
fn a_leader_that_may_be_deposed_answers_no_read() {
    let (mut world, _) = alone(13);
    world.client.submit_query(1 << 32, b"").expect("room");
    world.run_ms(300);
    assert_eq!(world.reads, 0);
}

/// A follower that is asked a query by a stranger, and what its peers are made to say.
struct Asked {
    world: World,
    reader: usize,
    nonce: u32,
    slot: Slot,
}

impl Asked {
    fn new(quorums: Option<(usize, usize)>) -> Self {
        let mut world = World::reading(18, CALM, quorums);
        world.commit(10, 1);
        world.run_ms(50);
        let leader = world.leader().expect("somebody leads");
        let reader = (leader + 1) % 3;
        let slot = world.hosts[reader].replica().expect("up").applied().slot();
        Self {
            world,
            reader,
            nonce: 0,
            slot,
        }
    }

    /// Asks a query. What the reader then asks others never arrives.
    fn query(&mut self) -> usize {
        let mut value = Vec::new();
        Entry {
            kind: EntryKind::Query,
            session: SessionId(0),
            sequence: Sequence(7),
            behind: 0,
            body: b"",
        }
        .append(&mut value);
        let header = Header {
            flags: Flags::QUERY,
            length: value.len() as u16,
            ..Header::new(Kind::Request, GroupId(0), NodeId::NONE)
        };
        let answered = answers(&mut self.world, self.reader, &header, &value).len();
        self.asks();
        answered
    }

    /// Notes the round in which the reader asks.
    fn asks(&mut self) {
        for flight in std::mem::take(&mut self.world.air) {
            if let Parsed::Ours(header, _) = parse(&flight.bytes, 65_535)
                && header.kind == Kind::ReadIndex
            {
                self.nonce = header.nonce;
            }
        }
    }

    /// The peer `step` places further answers, up to `slot`, and remembers this configuration.
    /// Returns how many answers leave the reader.
    fn index(&mut self, step: usize, slot: Slot, version: u64) -> usize {
        self.index_of(step, slot, version, Matchmakers::FIRST)
    }

    /// The same, as a matchmaker of this generation.
    fn index_of(&mut self, step: usize, slot: Slot, version: u64, generation: u32) -> usize {
        let peer = (self.reader + step) % 3;
        let index = Header {
            incarnation: self.world.hosts[peer].birth.incarnation(),
            epoch: Epoch(1),
            slot,
            ballot: Ballot(u64::from(generation)),
            vote_ballot: Ballot(version),
            nonce: self.nonce,
            ..Header::new(Kind::Index, GroupId(0), NodeId(peer as u16 + 1))
        };
        let from = address(peer + 1);
        self.world
            .turn_host(self.reader, Some((from, &index.to_bytes())));
        let air = self.world.air.iter();
        let answered = air
            .filter(|flight| {
                matches!(parse(&flight.bytes, 65_535), Parsed::Ours(header, _)
                    if header.kind == Kind::Response)
            })
            .count();
        self.asks();
        answered
    }
}

#[test]
fn a_follower_reads_when_a_quorum_has_said_how_far() {
    for (quorums, others) in [(None, 1), (Some((3, 1)), 2)] {
        let mut asked = Asked::new(quorums);
        assert_eq!(asked.query(), 0);
        let slot = asked.slot;
        for step in 1..=others {
            assert_eq!(asked.index(step, slot, 0), usize::from(step == others));
        }
    }
}

#[test]
fn matchmakers_that_have_others_after_them_vouch_for_no_configuration() {
    let mut asked = Asked::new(None);
    assert_eq!(asked.query(), 0);
    let slot = asked.slot;
    for step in 1..=2 {
        assert_eq!(asked.index_of(step, slot, 0, Matchmakers::FIRST + 1), 0);
    }
    assert_eq!(asked.index(1, slot, 0), 1);
}

#[test]
fn a_follower_reads_once_it_has_applied_what_may_be_chosen() {
    let mut asked = Asked::new(None);
    assert_eq!(asked.query(), 0);
    let next = asked.slot.next();
    assert_eq!(asked.index(1, next, 0), 0);
    // After a while the leader is to answer: the slot may never be chosen.
    asked.world.run_ms(25);
    let reader = asked.world.hosts[asked.reader].replica().expect("up");
    assert_eq!(reader.tally().queries, 0);
    assert_eq!(asked.query(), 0);
    let slot = asked.slot;
    assert_eq!(asked.index(1, slot, 0), 1);
}

#[test]
fn a_query_waits_for_answers_to_what_was_asked_after_it() {
    let mut asked = Asked::new(None);
    assert_eq!(asked.query(), 0);
    let (slot, nonce) = (asked.slot, asked.nonce);
    assert_eq!(asked.query(), 0);
    assert_eq!(asked.nonce, nonce, "one round at a time");
    assert_eq!(asked.index(1, slot, 0), 1, "the first one");
    assert_ne!(asked.nonce, nonce, "the second one");
    let late = std::mem::replace(&mut asked.nonce, nonce);
    assert_eq!(asked.index(2, slot, 0), 0, "answers to the round before");
    asked.nonce = late;
    assert_eq!(asked.index(1, slot, 0), 1);
}

#[test]
fn a_follower_reads_by_no_configuration_that_another_may_have_replaced() {
    let mut asked = Asked::new(None);
    assert_eq!(asked.query(), 0);
    let newer = Ballot::new(99, NodeId(1)).0;
    let slot = asked.slot;
    assert_eq!(asked.index(1, slot, newer), 0);
    assert_eq!(asked.index(2, slot, 0), 1, "a majority remembers no other");
}

#[test]
fn followers_answer_clients_in_any_weather() {
    for seed in 0..12 {
        let mut world = World::reading(seed, STORM, None);
        for _ in 0..20 {
            world.commit(3, 2);
            world.read();
        }
        world.check();
    }
    let mut world = World::reading(1, CALM, None);
    world.commit(1, 1);
    for _ in 0..20 {
        world.read();
    }
    let queries = |host: &Host| host.replica().expect("up").tally().queries;
    assert_eq!(queries(&world.hosts[1]), 20);
    assert_eq!(world.hosts.iter().map(queries).sum::<u64>(), 20);
}

#[test]
fn a_new_leader_serves_nobody_before_it_has_applied_what_it_inherited() {
    let mut world = World::new(17, 3, CALM, Durability::Volatile);
    world.commit(20, 8);
    world.run_ms(50);
    world.submit(1);
    let leader = world.leader().expect("somebody leads");
    let undecided = |host: &Host| {
        let view = host.node.as_ref().expect("up").local().view(GroupId(0));
        view.is_some_and(|view| view.highest > view.decided.upto)
    };
    while !world.hosts.iter().all(undecided) {
        world.step();
    }
    world.kill(leader);
    world.air.clear();
    let successor = loop {
        world.step();
        if let Some(successor) = world.leader() {
            break successor;
        }
    };
    assert!(undecided(&world.hosts[successor]), "nothing was inherited");
    let deferred = |world: &World| {
        let replica = world.hosts[successor].replica().expect("up");
        replica.tally().deferred
    };
    let before = deferred(&world);
    let ask = Header {
        flags: Flags::QUERY,
        ..Header::new(Kind::Request, GroupId(0), NodeId::NONE)
    };
    answers(&mut world, successor, &ask, &[]);
    assert_eq!(deferred(&world), before + 1);
}

/// Two of three vote, one of the two learns nothing: were the trim to follow the other, a single
/// failure would lose what is below it.
#[test]
fn the_trim_waits_for_what_a_majority_could_restore() {
    let mut world = World::new(14, 3, CALM, Durability::Volatile);
    world.commit(10, 1);
    world.run_ms(50);
    let leader = world.leader().expect("somebody leads");
    world.kill((leader + 1) % 3);
    let pupil = (leader + 2) % 3;
    let end = world.now_ns + 2_000 * MS;
    while world.now_ns < end {
        world.submit(8);
        world.step();
        world
            .air
            .retain(|flight| match parse(&flight.bytes, 65_535) {
                Parsed::Ours(header, _) => header.kind != Kind::Decide,
                _ => true,
            });
        let restorable = world.hosts[pupil].replica().expect("up").recoverable();
        let local = world.hosts[leader].node.as_ref().expect("up").local();
        let trim = local.view(GroupId(0)).expect("unlocked").trim;
        assert!(trim <= restorable.next(), "{trim}, but {restorable}");
    }
    let local = world.hosts[leader].node.as_ref().expect("up").local();
    let view = local.view(GroupId(0)).expect("unlocked");
    assert!(view.highest.0 >= view.trim.0 + WINDOW / 2, "{view:?}");
}

#[test]
fn a_round_is_reserved_before_it_is_used() {
    let mut world = World::new(15, 3, STORM, Durability::Volatile);
    for _ in 0..3 {
        world.commit(10, 4);
        let leader = world.leader().expect("somebody leads");
        let local = world.hosts[leader].node.as_ref().expect("up").local();
        let promised = local.view(GroupId(0)).expect("unlocked").promised;
        assert!(promised.round() <= world.hosts[leader].stable.round);
        world.kill(leader);
        world.commit(10, 4);
        world.start(leader);
    }
}

#[test]
fn without_proposals_the_logs_clock_stands_still() {
    let mut world = World::new(16, 3, CALM, Durability::Volatile);
    world.commit(10, 1);
    world.run_ms(50);
    let clocks = |world: &World| -> Vec<u64> {
        let replicas = world.hosts.iter().filter_map(Host::replica);
        replicas
            .map(|replica| replica.applied().clock_ms())
            .collect()
    };
    let before = clocks(&world);
    world.run_ms(300);
    assert_eq!(clocks(&world), before);
}

/// Turns that all hosts take in so long.
fn idle_turns(world: &mut World, ms: u64) -> u64 {
    let before = world.turns;
    world.run_ms(ms);
    world.turns - before
}

#[test]
fn a_minority_waits_without_spinning() {
    let mut world = World::new(9, 3, CALM, Durability::Volatile);
    world.commit(10, 1);
    for index in 1..3 {
        world.kill(index);
    }
    world.run_ms(1_000);
    let turns = idle_turns(&mut world, 1_000);
    assert!(turns < 1_000, "{turns} turns in a second without a quorum");
}

#[test]
fn a_follower_that_has_no_room_does_not_ask_again_and_again() {
    let mut world = World::new(13, 3, CALM, Durability::Async);
    world.commit(10, 1);
    let leader = world.leader().expect("somebody leads");
    world.hosts[(leader + 1) % 3].disk.0.borrow_mut().full = true;
    let before = world.number;
    world.run_ms(1_000);
    let packets = world.number - before;
    assert!(packets < 2_000, "{packets} packets in an idle second");
    assert_eq!(world.leader(), Some(leader));
}

#[test]
fn nodes_that_never_led_elect_above_what_they_promised() {
    let mut world = World::new(10, 3, CALM, Durability::Async);
    // Rounds rise while node 3 leads again and again.
    for _ in 0..4 {
        world.commit(5, 1);
        let leader = world.leader().expect("somebody leads");
        world.kill(leader);
        world.commit(5, 1);
        world.start(leader);
        world.run_ms(500);
    }
    let leader = world.leader().expect("somebody leads");
    for index in 0..3 {
        world.kill(index);
    }
    for index in (0..3).filter(|index| *index != leader) {
        world.hosts[index].stable.round = 0;
        world.start(index);
    }
    world.run_ms(5_000);
    assert!(world.leader().is_some(), "nobody leads");
    world.commit(5, 1);
    world.check();
}

/// A leader that is superseded without hearing of it, and that nobody writes to, is all that is left
/// beside one follower.
#[test]
fn a_superseded_leader_that_is_idle_leaves_the_way_to_the_next() {
    let mut world = World::new(18, 3, CALM, Durability::Volatile);
    world.commit(10, 1);
    world.run_ms(50);
    let superseded = world.leader().expect("somebody leads");
    let leads = |world: &World, index: usize| {
        let replica = world.hosts[index].replica();
        replica.is_some_and(|replica| replica.role() == Role::Leader)
    };
    let successor = loop {
        world.step();
        let cut_off = address(superseded + 1);
        world
            .air
            .retain(|flight| flight.from != cut_off && flight.to != cut_off);
        let mut others = (0..3).filter(|index| *index != superseded);
        if let Some(successor) = others.find(|index| leads(&world, *index)) {
            break successor;
        }
    };
    world.kill(successor);
    world.air.clear();
    assert!(leads(&world, superseded), "it heard of its successor");
    world.run_ms(2_000);
    for host in world.hosts.iter().filter(|host| host.node.is_some()) {
        let local = host.node.as_ref().expect("up").local();
        let leader = host.replica().expect("formed").leader(world.now_ns, local);
        assert!(leader.is_some(), "nobody leads: {}", host.describe());
    }
}

#[test]
fn a_node_of_a_formed_cluster_keeps_its_members() {
    let mut world = World::new(11, 3, CALM, Durability::Volatile);
    world.commit(10, 1);
    world.kill(0);
    world.hosts.truncate(1);
    let started = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.start(0)));
    assert!(started.is_err(), "one of three went on alone");
}

/// How far the host would come from its snapshot and what is flushed of its journal.
fn recovered(host: &Host) -> Slot {
    let layout = layout();
    let acceptor = Acceptor {
        node: host.birth.node,
        incarnation: host.birth.incarnation(),
        layout,
    };
    let region =
        Region::create(blank(layout), layout, host.birth, Epoch(1), 0).expect("blank words");
    let mut applied = Applied::new(Ledger::default());
    if let Some((_, bytes)) = &host.stable.snapshot {
        applied.restore(bytes).expect("own snapshot");
    }
    let mut recovery = Recovery::new(acceptor, applied);
    let log = host.disk.0.borrow();
    for record in &log.records[..log.flushed] {
        recovery
            .record(Some(&region), 0, record)
            .expect("own record");
    }
    recovery.finish().0.slot()
}

/// Lets time pass with disks that work.
fn settle(world: &mut World, ms: u64) {
    let end = world.now_ns + ms * MS;
    while world.now_ns < end {
        world.step();
        // A flush wakes its node now, so that time stands still meanwhile.
        if world.random.below(4) == 0 {
            let index = world.random.below(3) as usize;
            world.hosts[index].disk.0.borrow_mut().full = false;
            world.flush(index);
        }
    }
}

#[test]
fn a_replica_promises_no_more_than_its_journal_gives_back() {
    for seed in 0..20 {
        let mut world = World::new(seed, 3, STORM, Durability::Sync);
        for turn in 0..6_000u64 {
            world.submit(8);
            world.step();
            let index = world.random.below(3) as usize;
            match world.random.below(40) {
                0..8 => world.flush(index),
                8 => world.hosts[index].disk.0.borrow_mut().full = true,
                9..12 => world.hosts[index].disk.0.borrow_mut().full = false,
                _ => {}
            }
            if turn % 1_500 == 1_499
                && let Some(leader) = world.leader()
            {
                world.lose_power(leader);
                settle(&mut world, 400);
                world.start(leader);
            }
            for host in &world.hosts {
                let Some(replica) = host.replica() else {
                    continue;
                };
                let promised = replica.recoverable();
                if turn % 16 == 0 {
                    assert!(recovered(host) >= promised, "seed {seed}, turn {turn}");
                }
            }
        }
        settle(&mut world, 3_000);
        world.check();
    }
}

#[test]
fn a_snapshot_holds_nothing_that_the_journal_does_not() {
    for seed in 0..10 {
        let mut world = World::new(seed, 3, CALM, Durability::Async);
        world.commit(10, 8);
        for turn in 0..2_000u64 {
            world.submit(8);
            world.step();
            for index in 0..3 {
                if turn % 50 != 0 {
                    break;
                }
                let node = world.hosts[index].node.as_mut().expect("up");
                let (slot, _) = node.freeze(GroupId(0)).expect("it replicates the group");
                world.flush(index);
                // No snapshot was ever written here.
                let reached = recovered(&world.hosts[index]);
                assert!(
                    reached >= slot,
                    "seed {seed}, turn {turn}: {reached}, not {slot}"
                );
            }
        }
    }
}

/// A member that nobody runs: what changes the members needs nothing of a learner.
fn learner(node: u16) -> Member {
    Member {
        node: NodeId(node),
        incarnation: Incarnation(u32::from(node) * 10),
        address: address(node.into()),
        priority: 0,
        role: MemberRole::Learner,
    }
}

impl World {
    /// Asks host `index` for these members besides those that it knows, or what came of it if there
    /// are none.
    fn reconfigure(&mut self, index: usize, joining: &[Member]) -> Option<Reconfigured> {
        let mut wish = self.configuration(index).clone();
        wish.membership.members.extend(joining);
        self.wish(index, (!joining.is_empty()).then_some(&wish))
    }

    /// Asks host `index` to make a voter a learner.
    fn demote(&mut self, index: usize, voter: usize) -> Option<Reconfigured> {
        let mut wish = self.configuration(index).clone();
        let membership = &mut wish.membership;
        membership.members[voter].role = MemberRole::Learner;
        membership.quorums = Quorums::majority(membership.voters().count()).expect("possible");
        self.wish(index, Some(&wish))
    }

    fn wish(&mut self, index: usize, wish: Option<&Configuration>) -> Option<Reconfigured> {
        let value = wish.map_or(Vec::new(), Configuration::to_bytes);
        let header = Header {
            vote_ballot: self.configuration(index).version,
            length: value.len() as u16,
            ..Header::new(Kind::Reconfigure, GroupId(0), NodeId::NONE)
        };
        let answers = answers(self, index, &header, &value);
        let answer = answers.iter().find(|one| one.kind == Kind::Reconfigured)?;
        Reconfigured::from_code(answer.watermark)
    }

    fn configuration(&self, index: usize) -> &Configuration {
        let replica = self.hosts[index].replica();
        replica.expect("up and formed").configuration()
    }

    /// Runs until a packet of this kind is on its way, for ten seconds at most.
    fn run_until_sent(&mut self, kind: Kind) {
        let deadline = self.now_ns + 10_000 * MS;
        let is = |flight: &Flight| matches!(parse(&flight.bytes, 65_535), Parsed::Ours(header, _) if header.kind == kind);
        while !self.air.iter().any(is) {
            assert!(self.now_ns < deadline, "nobody sends {kind:?}");
            self.step();
        }
    }

    /// Has host `index` hear of a high round, in which nobody led and nothing was matched.
    fn hear_of_round(&mut self, index: usize, round: u64) {
        let mut known = self.configuration(index).clone();
        known.matchmakers = Matchmakers::NONE;
        let value = known.to_bytes();
        let header = Header {
            incarnation: self.hosts[index].birth.incarnation(),
            ballot: Ballot::new(round, NodeId(1)),
            watermark: 1,
            length: value.len() as u16,
            ..Header::new(Kind::Match, GroupId(0), NodeId(1))
        };
        let answers = answers(self, index, &header, &value);
        assert!(answers.iter().all(|one| one.kind == Kind::Unmatched));
    }

    /// Runs until one that is not cut off leads and has nothing under way.
    fn settled_leader(&mut self) -> usize {
        for _ in 0..1_000 {
            self.run_ms(10);
            let leads = |index: &usize| {
                let replica = self.hosts[*index].replica();
                !self.cut_off.contains(index)
                    && replica.is_some_and(|replica| replica.role() == Role::Leader)
            };
            let leader = (0..self.hosts.len()).find(leads);
            if let Some(leader) = leader
                && self.reconfigure(leader, &[]) == Some(Reconfigured::Settled)
            {
                return leader;
            }
        }
        let hosts: Vec<_> = self.hosts.iter().map(Host::describe).collect();
        panic!("nobody leads and has settled: {hosts:?}");
    }

    /// Makes the leader ask for a learner while nobody hears it, so that its own matchmaker alone
    /// has written that down. Returns who asked.
    fn wish_in_vain(&mut self, node: u16) -> usize {
        let leader = self.settled_leader();
        let answer = self.reconfigure(leader, &[learner(node)]);
        assert_eq!(answer, Some(Reconfigured::UnderWay));
        self.air.clear();
        self.cut_off.insert(leader);
        leader
    }

    /// Whether the members that host `index` goes by have this one.
    fn has_member(&self, index: usize, node: u16) -> bool {
        let membership = &self.configuration(index).membership;
        membership.place(NodeId(node)).is_some()
    }

    /// Kills the leader and others until a majority is left that has the matchmaker on `needed` in
    /// it, and waits for who leads then.
    fn elect_with(&mut self, needed: usize) -> usize {
        let leader = self.settled_leader();
        self.kill(leader);
        let majority = self.hosts.len() / 2 + 1;
        for index in 0..self.hosts.len() {
            let left = self.hosts.iter().filter(|host| host.node.is_some());
            if left.count() > majority && index != needed {
                self.kill(index);
            }
        }
        self.settled_leader()
    }
}

#[test]
fn a_forgotten_wish_comes_to_light_after_nothing_that_was_settled() {
    for seed in 0..10 {
        let mut world = World::new(seed, 5, CALM, Durability::Volatile);
        world.commit(10, 1);
        let first = world.settled_leader();
        world.hear_of_round(first, 1_035);
        assert_eq!(world.wish_in_vain(6), first);
        let second = world.settled_leader();
        let answer = world.reconfigure(second, &[learner(7)]);
        assert_eq!(answer, Some(Reconfigured::UnderWay));
        assert_eq!(world.settled_leader(), second);
        assert!(world.has_member(second, 7), "it was settled");
        world.cut_off.clear();
        world.run_ms(500);
        assert_eq!(
            world.settled_leader(),
            second,
            "seed {seed}: it was deposed"
        );
        let third = world.elect_with(first);
        assert!(world.has_member(third, 7) && !world.has_member(third, 6));
        world.commit(10, 1);
        world.check();
    }
}

#[test]
fn what_a_candidate_found_outlives_what_came_to_nothing_after_it() {
    for seed in 0..10 {
        let mut world = World::new(seed, 5, CALM, Durability::Volatile);
        world.commit(10, 1);
        let first = world.wish_in_vain(6);
        let second = world.wish_in_vain(7);
        // The first wish is found, by a majority without the second one's matchmaker.
        world.cut_off.remove(&first);
        let idle = (0..5).find(|index| ![first, second].contains(index));
        let idle = idle.expect("three others");
        world.kill(idle);
        let third = world.settled_leader();
        assert!(world.has_member(third, 6), "seed {seed}");
        world.start(idle);
        world.cut_off.clear();
        world.run_ms(500);
        let fourth = world.elect_with(second);
        assert!(world.has_member(fourth, 6), "seed {seed}: it was settled");
        world.commit(10, 1);
        world.check();
    }
}

#[test]
fn a_change_that_could_not_be_written_down_is_tried_again() {
    let mut world = World::new(1, 3, CALM, Durability::Volatile);
    world.commit(10, 1);
    let leader = world.settled_leader();
    let answer = world.reconfigure(leader, &[learner(6)]);
    assert_eq!(answer, Some(Reconfigured::UnderWay));
    // Its own matchmaker has written it down, and all others do.
    world.hosts[leader].stable.full = true;
    world.run_ms(200);
    assert!(!world.has_member(leader, 6), "it was not written down");
    world.hosts[leader].stable.full = false;
    assert_eq!(world.settled_leader(), leader);
    assert!(world.has_member(leader, 6));
}

#[test]
fn matchmakers_that_cannot_be_written_down_are_no_work_for_a_worker() {
    let mut world = World::new(2, 3, CALM, Durability::Volatile);
    world.commit(10, 1);
    let leader = world.settled_leader();
    let answer = world.demote(leader, (leader + 1) % 3);
    assert_eq!(answer, Some(Reconfigured::UnderWay));
    world.run_until_sent(Kind::Appoint);
    world.hosts[leader].stable.full = true;
    world.run_ms(1_000);
    let turns = idle_turns(&mut world, 1_000);
    assert!(turns < 5_000, "{turns} turns in a second");
    world.hosts[leader].stable.full = false;
    world.settled_leader();
    assert_eq!(world.configuration(leader).matchmakers.generation, 2);
}

#[test]
fn garbage_that_became_needed_again_is_no_work_for_a_worker() {
    let mut world = World::new(3, 3, CALM, Durability::Volatile);
    world.commit(10, 1);
    let leader = world.settled_leader();
    let answer = world.reconfigure(leader, &[learner(6)]);
    assert_eq!(answer, Some(Reconfigured::UnderWay));
    world.run_until_sent(Kind::Garbage);
    world.cut_off = (0..3).filter(|index| *index != leader).collect();
    world.air.clear();
    // The others have begun anew, with nothing.
    for index in (0..3).filter(|index| *index != leader) {
        let node = NodeId(index as u16 + 1);
        let asks = Header {
            ballot: Ballot::new(1, node),
            epoch: Epoch(2),
            ..Header::new(Kind::PreVote, GroupId(0), node)
        };
        answers(&mut world, leader, &asks, &[]);
    }
    let turns = idle_turns(&mut world, 1_000);
    assert!(turns < 5_000, "{turns} turns in a second");
}

#[test]
fn a_leader_that_leaves_serves_while_one_cannot_lead_and_then_tries_another() {
    let mut world = World::new(4, 4, CALM, Durability::Volatile);
    world.commit(10, 1);
    let leader = world.settled_leader();
    let others: Vec<usize> = (0..4).filter(|index| *index != leader).collect();
    let cannot = *others.last().expect("three");
    world.hosts[cannot].stable.no_rounds = true;
    assert_eq!(world.demote(leader, leader), Some(Reconfigured::UnderWay));
    world.run_until_sent(Kind::Transfer);
    let asked = world
        .air
        .iter()
        .find_map(|flight| match parse(&flight.bytes, 65_535) {
            Parsed::Ours(header, _) if header.kind == Kind::Transfer => Some(flight.to),
            _ => None,
        });
    assert_eq!(asked, Some(address(cannot + 1)), "it asks another first");
    world.run_ms(1_100);
    assert_eq!(world.leader(), Some(leader));
    let before = world.now_ns;
    world.commit(10, 1);
    assert!(
        world.now_ns - before < 900 * MS,
        "it served nobody meanwhile"
    );
    world.run_ms(2_000);
    let successor = world.leader().expect("another leads");
    assert!(![leader, cannot].contains(&successor));
    world.check();
}
