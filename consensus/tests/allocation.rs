//! Nothing is allocated per packet on the way from a datagram to the acceptor's answer.
#![cfg(not(loom))]
#![allow(unsafe_code)]

use nearwire_consensus::acceptor::Acceptor;
use nearwire_consensus::applied::Applied;
use nearwire_consensus::auth::{self, Key};
use nearwire_consensus::catch_up::Pace;
use nearwire_consensus::election::ElectionTiming;
use nearwire_consensus::envelope::{Entry, EntryKind};
use nearwire_consensus::leader::LeaderTiming;
use nearwire_consensus::local::{Durability, NoJournal};
use nearwire_consensus::node::{Config, Node, NodeIo, Peer};
use nearwire_consensus::region::{Birth, Layout, Region};
use nearwire_consensus::replica::{Io, Piece};
use nearwire_consensus::state_machine::{Frozen, RestoreError, SnapshotId, StateMachine};
use nearwire_consensus::sync::AtomicU64;
use nearwire_consensus::wire::{HEADER_BYTES, Header, Kind};
use nearwire_consensus::{
    Ballot, Epoch, GroupId, Incarnation, NodeId, Sequence, SessionId, Slot, applied,
};
use std::alloc::{GlobalAlloc, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;

const MS: u64 = 1_000_000;
const WINDOW: u64 = 64;
const VALUE_BYTES: usize = 1024;
const OWN: NodeId = NodeId(1);
const LEADER: NodeId = NodeId(2);
const EPOCH: Epoch = Epoch(1);

struct Counting;

thread_local! {
    /// Allocations of this thread: the harness has its own.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged, and counting allocates nothing: the
// cell needs neither a lazy start nor a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: std::alloc::Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: std::alloc::Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A state that keeps nothing and answers every command alike.
#[derive(Debug, Default)]
struct Nothing;

impl StateMachine for Nothing {
    fn apply(&mut self, _: u64, _: &[u8], reply: &mut Vec<u8>) {
        reply.extend_from_slice(b"+OK");
    }

    fn query(&self, _: u64, _: &[u8], _: &mut Vec<u8>) {}

    fn clock(&mut self, _: u64) {}

    fn freeze(&self) -> Box<dyn Frozen> {
        unreachable!("nobody asks for a snapshot")
    }

    fn restore(&mut self, _: &[u8]) -> Result<(), RestoreError> {
        Ok(())
    }
}

/// Counts what is sent, and keeps the last header.
#[derive(Default)]
struct Sink {
    sent: u64,
    last: Option<Header>,
    last_bytes: usize,
}

impl Io for Sink {
    fn send(&mut self, _: SocketAddr, header: &Header, value: &[u8]) {
        self.sent += 1;
        self.last = Some(*header);
        self.last_bytes = value.len();
    }

    fn reserve_rounds(&mut self, _: u64) -> bool {
        true
    }

    fn keep_register(&mut self, _: GroupId, _: &[u8]) -> bool {
        true
    }

    fn read_snapshot(
        &mut self,
        _: GroupId,
        _: Option<(Slot, u32)>,
        _: u64,
        _: &mut [u8],
    ) -> Option<Piece> {
        None
    }

    fn keep_piece(&mut self, _: GroupId, _: SnapshotId, _: u64, _: &[u8], _: u32) -> Option<u64> {
        None
    }
}

impl NodeIo for Sink {
    fn pin(&mut self, _: &BTreeMap<NodeId, Incarnation>, _: bool) -> bool {
        true
    }

    fn client(&mut self, _: SocketAddr, _: &Header, _: &[u8]) {}

    fn inspect(&mut self, _: SocketAddr, _: &Header) {}
}

struct World {
    node: Node<Region<Vec<AtomicU64>>, NoJournal, Nothing>,
    sink: Sink,
    key: Option<Key>,
    now_ns: u64,
    nonce: u32,
    packet: Vec<u8>,
}

fn address(node: NodeId) -> SocketAddr {
    ([10, 0, 0, node.0 as u8], 4747).into()
}

impl World {
    /// A follower of a formed cluster of three.
    fn new(key: Option<Key>) -> Self {
        let layout = Layout::new(1, WINDOW, VALUE_BYTES).expect("valid");
        let birth = Birth {
            cluster: 1,
            node: OWN,
            nonce: 5,
            boot: 6,
        };
        let words = (0..layout.words()).map(|_| AtomicU64::new(0)).collect();
        let region = Region::create(words, layout, birth, EPOCH, 0).expect("blank");
        let acceptor = Acceptor {
            node: OWN,
            incarnation: birth.incarnation(),
            layout,
        };
        let members = [OWN, LEADER, NodeId(3)];
        let config = Config {
            node: OWN,
            peers: members
                .map(|node| Peer {
                    node,
                    address: address(node),
                    priority: 0,
                })
                .to_vec(),
            joins: false,
            registers: BTreeMap::new(),
            epoch: EPOCH,
            quorums: None,
            key,
            leader: LeaderTiming {
                heartbeat_ns: 10 * MS,
                decide_ns: MS,
                resend_ns: 5 * MS,
            },
            leases: false,
            quorum_reads: false,
            election: ElectionTiming::of(100 * MS),
            pulse_ns: 20 * MS,
            campaigns: 16,
            origin: 0,
            pace: Pace::default(),
            seed: 1,
            used_round: 0,
            pins: BTreeMap::from([
                (OWN, birth.incarnation()),
                (LEADER, Incarnation(22)),
                (NodeId(3), Incarnation(33)),
            ]),
            formed: true,
        };
        let states = vec![Applied::new(Nothing)];
        let node = Node::new(
            config,
            acceptor,
            region,
            NoJournal,
            Durability::Volatile,
            states,
        );
        let mut world = Self {
            node: node.expect("a majority of three"),
            sink: Sink::default(),
            key,
            now_ns: MS,
            nonce: 0,
            packet: Vec::with_capacity(HEADER_BYTES + VALUE_BYTES),
        };
        world.turn();
        assert_eq!(world.node.replicas().len(), 1, "it has formed");
        world
    }

    fn turn(&mut self) {
        self.node
            .turn(self.now_ns, self.now_ns / MS, &mut self.sink);
    }

    /// Gives the node one datagram; returns how many allocations that took.
    fn give(&mut self, header: Header, value: &[u8]) -> u64 {
        self.nonce += 1;
        let mut header = Header {
            epoch: EPOCH,
            ballot: Ballot::new(1, LEADER),
            nonce: self.nonce,
            length: value.len() as u16,
            ..header
        };
        if let Some(key) = self.key {
            header.tag = auth::tag(key, &header, value);
        }
        self.packet.clear();
        self.packet.extend_from_slice(&header.to_bytes());
        self.packet.extend_from_slice(value);
        let before = ALLOCATIONS.get();
        self.node.handle(
            self.now_ns,
            self.now_ns / MS,
            address(LEADER),
            &self.packet,
            &mut self.sink,
        );
        ALLOCATIONS.get() - before
    }

    fn request(kind: Kind, slot: u64) -> Header {
        Header {
            slot: Slot(slot),
            ..Header::new(kind, GroupId(0), LEADER)
        }
    }

    fn answered(&self, kind: Kind) -> bool {
        let last = self.sink.last;
        last.is_some_and(|last| last.kind == kind && last.nonce == self.nonce)
    }

    fn decide(&mut self, upto: u64, trim: u64) -> u64 {
        let header = Header {
            vote_ballot: Ballot(1),
            watermark: trim,
            ..Self::request(Kind::Decide, upto)
        };
        self.give(header, b"")
    }
}

/// The session that slot 1 opens.
const SESSION: SessionId = SessionId::new(Slot::FIRST, 0);

fn entry(kind: EntryKind, session: SessionId, sequence: u64, body: &[u8]) -> Vec<u8> {
    let entry = Entry {
        kind,
        session,
        sequence: Sequence(sequence),
        behind: 1,
        body,
    };
    let mut value = Vec::new();
    entry.append(&mut value);
    value
}

/// What a batch holds: the log's clock and a command of the session.
fn batch(sequence: u64) -> Vec<u8> {
    let clock = entry(EntryKind::Clock, SessionId(0), sequence, b"");
    let command = entry(EntryKind::Command, SESSION, sequence, &[7; 900]);
    [clock, command].concat()
}

fn acceptor_path(key: Option<Key>) {
    let mut world = World::new(key);
    let value = batch(1);
    let mut allocations = 0;
    let mut packets = 0;
    allocations += world.give(World::request(Kind::Prepare, 0), b"");
    assert!(world.answered(Kind::Promise));
    // No Decide comes: the ring is filled once, and every slot is then fetched, read and asked for
    // again, refused beyond the window and refused in a lower ballot's name.
    for slot in 1..=WINDOW {
        let outcomes = [
            (Kind::Accept, slot, &value[..], Kind::Accepted),
            (Kind::Accept, slot, &value[..], Kind::Accepted),
            (Kind::Fetch, slot, b"", Kind::Vote),
            (Kind::Read, slot, b"", Kind::Vote),
            (Kind::Accept, slot + WINDOW, &value[..], Kind::Outside),
            (Kind::Fetch, slot + 1, b"", Kind::Empty),
            (Kind::Prepare, 0, b"", Kind::Promise),
        ];
        for (kind, slot, value, answer) in outcomes {
            if kind == Kind::Fetch && slot > WINDOW {
                continue;
            }
            allocations += world.give(World::request(kind, slot), value);
            assert!(world.answered(answer), "{kind:?} {slot}");
            packets += 1;
        }
    }
    assert!(packets > 6 * WINDOW && world.sink.sent >= packets);
    assert_eq!(allocations, 0, "for {packets} packets and their answers");
}

#[test]
fn nothing_is_allocated_from_a_datagram_to_the_acceptors_answer() {
    acceptor_path(None);
    acceptor_path(Some(Key::from_bytes([3; 16])));
}

#[test]
fn bad_datagrams_allocate_nothing() {
    let mut world = World::new(None);
    let mut allocations = 0;
    for number in 0..1000_u64 {
        let header = World::request(Kind::Accept, number);
        let wrong = [
            Header {
                ballot: Ballot::SEALED,
                ..header
            },
            Header {
                incarnation: Incarnation(number as u32 + 1),
                ..header
            },
            Header {
                group: GroupId(9),
                ..header
            },
            Header {
                sender: NodeId(9),
                ..header
            },
        ];
        for header in wrong {
            allocations += world.give(header, b"short");
        }
        world.packet.truncate(30 + number as usize % 30);
        let before = ALLOCATIONS.get();
        let from = address(LEADER);
        world
            .node
            .handle(world.now_ns, 1, from, &world.packet, &mut world.sink);
        allocations += ALLOCATIONS.get() - before;
    }
    assert_eq!(allocations, 0);
}

/// A follower in a steady state: it votes, takes note of what was decided, and applies it. Values
/// that are kept for replicas that lag come from buffers that were used before; the reply that a
/// session keeps for a client that asks again is the one thing that is allocated.
#[test]
fn a_follower_that_keeps_up_allocates_nothing_but_the_replies_it_keeps() {
    const SLOTS: u64 = 4 * applied::KEPT_SLOTS as u64;
    let mut world = World::new(None);
    world.give(World::request(Kind::Prepare, 0), b"");
    let mut voting = 0;
    let mut learning = 0;
    for slot in 1..=SLOTS {
        world.now_ns += MS / 100;
        let value = match slot {
            1 => entry(EntryKind::Open, SessionId(99), 0, b""),
            _ => batch(slot - 1),
        };
        voting += world.give(World::request(Kind::Accept, slot), &value);
        assert!(world.answered(Kind::Accepted), "slot {slot}");
        let allocations = world.decide(slot, slot);
        learning += if slot > SLOTS / 2 { allocations } else { 0 };
    }
    let applied = world.node.replicas()[0].applied();
    assert_eq!(applied.slot(), Slot(SLOTS));
    assert_eq!(applied.sessions().next(SESSION), Some(Sequence(SLOTS)));
    assert_eq!(voting, 0, "for {SLOTS} votes");
    assert_eq!(learning, SLOTS / 2, "for {} replies kept", SLOTS / 2);
}
