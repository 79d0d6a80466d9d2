//! A node and a client that are sent anything.

use crate::region::{VALUE_BYTES, acceptor, birth, blank, layout};
use crate::{Script, fuzz};
use consensus::applied::Applied;
use consensus::catch_up::Pace;
use consensus::client::{self, Client};
use consensus::election::ElectionTiming;
use consensus::envelope::{Entry, EntryKind};
use consensus::leader::LeaderTiming;
use consensus::local::{Durability, NoJournal};
use consensus::node::{Config, Node, NodeIo, Peer};
use consensus::region::Region;
use consensus::replica::{Io, Piece};
use consensus::state_machine::SnapshotId;
use consensus::wire::{Flags, Header, Kind};
use consensus::{Ballot, Epoch, GroupId, Incarnation, NodeId, Sequence, SessionId, Slot};
use nearwire::kv::{self, Kv};
use std::collections::BTreeMap;
use std::net::SocketAddr;

const MS: u64 = 1_000_000;

/// A header that came through the parser: any field may hold anything that is well-formed, and
/// mostly holds what it would in a cluster of three.
pub(crate) fn header(script: &mut Script<'_>) -> Header {
    // Every other one is a request to an acceptor.
    let kinds = match script.byte() % 2 {
        0 => &Kind::ALL[..12],
        _ => Kind::ALL,
    };
    let kind = kinds[usize::from(script.byte()) % kinds.len()];
    let node = 1 + u16::from(script.byte() % 3);
    let mut header = Header::new(kind, GroupId(0), NodeId(node));
    header.incarnation = match script.byte() % 8 {
        0..3 => Incarnation::ANY,
        3..5 => birth(1).incarnation(),
        5..7 => birth(node).incarnation(),
        _ => Incarnation(script.odd_number() as u32),
    };
    header.epoch = Epoch((!script.byte().is_multiple_of(16)).into());
    header.slot = Slot(number(script));
    header.ballot = ballot(script);
    header.vote_ballot = ballot(script);
    header.watermark = number(script);
    header.nonce = script.byte().into();
    header.flags = Flags(u16::from(script.byte()) & Flags::KNOWN.0);
    header
}

fn number(script: &mut Script<'_>) -> u64 {
    match script.byte() {
        small @ 0..200 => (small % 24).into(),
        _ => script.odd_number(),
    }
}

fn ballot(script: &mut Script<'_>) -> Ballot {
    match script.byte() {
        small @ 0..200 => Ballot::new((small / 3 % 8).into(), NodeId(1 + u16::from(small % 3))),
        _ => Ballot(script.odd_number()),
    }
}

fn address(node: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node as u8], 4747))
}

/// How much of what a node sent is remembered.
const MAX_SENT: usize = 64;

/// Sends into the void, and remembers what a peer would have to answer.
#[derive(Default)]
struct Void {
    sent: Vec<(NodeId, Header)>,
}

impl Io for Void {
    fn send(&mut self, to: SocketAddr, header: &Header, value: &[u8]) {
        assert!(value.len() <= usize::from(u16::MAX));
        let peer = (1..=3).find(|node| address(*node) == to);
        if let Some(peer) = peer.filter(|_| self.sent.len() < MAX_SENT) {
            self.sent.push((NodeId(peer), *header));
        }
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

impl NodeIo for Void {
    fn pin(&mut self, _: &BTreeMap<NodeId, Incarnation>, _: bool) -> bool {
        true
    }

    fn client(&mut self, _: SocketAddr, _: &Header, _: &[u8]) {}

    fn inspect(&mut self, _: SocketAddr, _: &Header) {}
}

fn config() -> Config {
    Config {
        node: NodeId(1),
        peers: (1..=3)
            .map(|node| Peer {
                node: NodeId(node),
                address: address(node),
                priority: 0,
            })
            .collect(),
        joins: false,
        registers: BTreeMap::new(),
        epoch: Epoch(1),
        quorums: None,
        key: None,
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
        pins: (1..=3)
            .map(|node| (NodeId(node), birth(node).incarnation()))
            .collect(),
        formed: true,
    }
}

fn value(script: &mut Script<'_>) -> Vec<u8> {
    if script.byte().is_multiple_of(2) {
        return script.take(24).to_vec();
    }
    let (_, body) = kv::encode(&[b"INCR", b"k"]).expect("an INCR");
    let mut out = Vec::new();
    let entry = Entry {
        session: SessionId(script.odd_number()),
        sequence: Sequence(script.odd_number()),
        kind: if script.byte().is_multiple_of(4) {
            EntryKind::Open
        } else {
            EntryKind::Command
        },
        behind: script.byte().into(),
        body: &body,
    };
    entry.append(&mut out);
    out
}

/// What a peer could answer to a request, or another packet about the same.
fn answer(peer: NodeId, request: &Header, otherwise: Kind, which: usize) -> Header {
    let kind = match request.kind {
        Kind::Prepare => Kind::Promise,
        Kind::Fetch => [Kind::Empty, Kind::Vote, Kind::Outside][which],
        Kind::Accept => Kind::Accepted,
        Kind::Decide => Kind::Ack,
        Kind::PreVote => Kind::PreVoteGranted,
        Kind::CatchUp => Kind::Learn,
        Kind::SnapshotRequest => Kind::SnapshotChunk,
        _ => otherwise,
    };
    Header {
        kind,
        sender: peer,
        incarnation: birth(peer.0).incarnation(),
        watermark: 1,
        length: 0,
        flags: Flags(0),
        ..*request
    }
}

/// A formed node takes whatever parses.
fn node(input: &[u8]) {
    let mut script = Script(input);
    let words = blank();
    let region = Region::create(words.as_slice(), layout(), birth(1), Epoch(1), 0);
    let mut node = Node::new(
        config(),
        acceptor(1),
        region.expect("blank words"),
        NoJournal,
        Durability::Volatile,
        vec![Applied::new(Kv::new())],
    )
    .expect("three members");
    let mut io = Void::default();
    let mut now_ns = 1000 * MS;
    node.turn(now_ns, 1, &mut io);
    if script.byte().is_multiple_of(2) {
        // It leads first.
        for _ in 0..40 {
            now_ns += 10 * MS;
            node.turn(now_ns, now_ns / MS, &mut io);
            for (peer, request) in std::mem::take(&mut io.sent) {
                let packet = answer(peer, &request, request.kind, 0);
                let (from, datagram) = (address(peer.0), packet.to_bytes());
                node.handle(now_ns, now_ns / MS, from, &datagram, &mut io);
            }
        }
    }
    while !script.is_over() {
        now_ns += u64::from(script.byte() % 64) * MS;
        if io.sent.len() == MAX_SENT {
            io.sent.drain(..MAX_SENT / 2);
        }
        let asked = io.sent.len();
        let mut packet = header(&mut script);
        if script.byte().is_multiple_of(2) && asked > 0 {
            // An answer to something that the node did ask.
            let (peer, request) = io.sent[script.below(asked)];
            let whole = answer(peer, &request, packet.kind, script.below(3));
            packet = Header {
                slot: packet.slot,
                ..whole
            };
            if script.byte().is_multiple_of(2) {
                packet = whole;
            }
        }
        let value = value(&mut script);
        packet.length = value.len() as u16;
        let from = address(packet.sender.0);
        let datagram = [&packet.to_bytes()[..], &value].concat();
        node.handle(now_ns, now_ns / MS, from, &datagram, &mut io);
        node.turn(now_ns, now_ns / MS, &mut io);
    }
}

#[test]
fn a_formed_node_takes_whatever_parses() {
    fuzz("node", node);
}

/// A client takes whatever parses.
fn answers(input: &[u8]) {
    let mut script = Script(input);
    let mut client = Client::new(client::Config {
        members: (1..=3).map(|node| (NodeId(node), address(node))).collect(),
        group: GroupId(0),
        epoch: Epoch(0),
        max_value: VALUE_BYTES,
        max_in_flight: 8,
        seed: 1,
    })
    .expect("members");
    let mut now_ns = MS;
    let mut asked = Vec::new();
    while !script.is_over() {
        now_ns += u64::from(script.byte()) * MS;
        match script.byte() % 4 {
            0 => drop(client.submit_command(1, script.take(8))),
            1 => drop(client.submit_query(2, script.take(8))),
            _ => {}
        }
        while let Some(datagram) = client.poll_transmit(now_ns) {
            if asked.len() < 64 {
                asked.push(datagram.header);
            }
        }
        let mut packet = header(&mut script);
        if let Some(request) = asked.get(script.below(asked.len() + 1)) {
            packet.kind = [Kind::Response, Kind::Redirect][script.below(2)];
            (packet.slot, packet.nonce) = (request.slot, request.nonce);
        }
        let value = value(&mut script);
        packet.length = value.len() as u16;
        client.handle_datagram(now_ns, address(packet.sender.0), &packet, &value);
        if client.poll_timeout().is_some_and(|at_ns| at_ns <= now_ns) {
            client.handle_timeout(now_ns);
        }
        while client.poll_event().is_some() {}
    }
}

#[test]
fn a_client_takes_whatever_parses() {
    fuzz("client", answers);
}
