//! A cluster of one thread: every replica's address answers as its node would, over one shared
//! key-value machine. It agrees with nobody, so it tests clients and tools, not consensus.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub, missing_docs)]

use consensus::auth::{self, Key};
use consensus::client::encode_address;
use consensus::envelope::{self, Entry, EntryKind, Outcome, Status};
use consensus::state_machine::StateMachine;
use consensus::wire::{self, Header, Kind, Parsed};
use consensus::{Ballot, GroupId, NodeId, Sequence, SessionId};
use nearwire::kv::Kv;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How the replicas behave.
#[derive(Clone, Copy, Default)]
pub struct Manners {
    pub key: Option<Key>,
    /// Every such packet is lost; none if zero.
    pub lose_every: u64,
    /// Transfers are acknowledged and forgotten.
    pub ignores_transfers: bool,
}

/// The replicas, until dropped.
pub struct Cluster {
    pub members: Vec<(NodeId, SocketAddr)>,
    pub leader: Arc<AtomicU16>,
    pub applied: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Cluster {
    pub fn start(replicas: u16, leader: u16, manners: Manners) -> Self {
        let sockets: Vec<_> = (0..replicas)
            .map(|_| UdpSocket::bind("127.0.0.1:0").unwrap())
            .collect();
        let addresses = sockets.iter().map(|socket| socket.local_addr().unwrap());
        let members: Vec<_> = (1..=replicas).map(NodeId).zip(addresses).collect();
        let (leader, applied, stop) = (
            Arc::new(AtomicU16::new(leader)),
            Arc::default(),
            Arc::default(),
        );
        let replicas = Replicas {
            members: members.clone(),
            leader: Arc::clone(&leader),
            applied: Arc::clone(&applied),
            stop: Arc::clone(&stop),
            manners,
            machine: Kv::new(),
            sessions: HashMap::new(),
            packets: 0,
        };
        Self {
            members,
            leader,
            applied,
            stop,
            thread: Some(thread::spawn(move || replicas.serve(&sockets))),
        }
    }

    /// What `--peers` takes.
    pub fn peers(&self) -> String {
        let peers = self.members.iter();
        let peers: Vec<_> = peers
            .map(|(node, address)| format!("{node}={address}"))
            .collect();
        peers.join(",")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

struct Replicas {
    members: Vec<(NodeId, SocketAddr)>,
    leader: Arc<AtomicU16>,
    applied: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    manners: Manners,
    machine: Kv,
    /// The replies of each session, in the order of its sequence.
    sessions: HashMap<u64, Vec<Vec<u8>>>,
    packets: u64,
}

impl Replicas {
    fn serve(mut self, sockets: &[UdpSocket]) {
        for socket in sockets {
            socket
                .set_read_timeout(Some(Duration::from_millis(1)))
                .unwrap();
        }
        let mut buffer = vec![0; 65_536];
        while !self.stop.load(Ordering::Relaxed) {
            for (index, socket) in sockets.iter().enumerate() {
                let (length, from) = match socket.recv_from(&mut buffer) {
                    Ok(received) => received,
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock) => continue,
                    Err(error) => panic!("receive: {error}"),
                };
                self.packets += 1;
                let lost = self.packets.is_multiple_of(self.manners.lose_every);
                let Parsed::Ours(header, value) = wire::parse(&buffer[..length], 65_535) else {
                    continue;
                };
                let key = self.manners.key;
                if lost || !key.is_none_or(|key| auth::is_authentic(key, &header, value)) {
                    continue;
                }
                if let Some((mut reply, value)) = self.answer(index, &header, value) {
                    reply.nonce = header.nonce;
                    reply.length = value.len() as u16;
                    reply.tag = key.map_or(0, |key| auth::tag(key, &reply, &value));
                    let packet = [&reply.to_bytes()[..], &value].concat();
                    socket.send_to(&packet, from).unwrap();
                }
            }
        }
    }

    fn answer(&mut self, at: usize, header: &Header, value: &[u8]) -> Option<(Header, Vec<u8>)> {
        let node = self.members[at].0;
        let leader = NodeId(self.leader.load(Ordering::Relaxed));
        let reply = |kind| Header::new(kind, GroupId(0), node);
        match header.kind {
            Kind::Inspect => Some((reply(Kind::Report), self.report(at, leader).into())),
            Kind::Transfer if node == leader => {
                let successor = header.vote_ballot.0 as u16;
                if !self.members.iter().any(|(node, _)| node.0 == successor) {
                    return Some(self.redirect(reply(Kind::Redirect), leader));
                }
                if !self.manners.ignores_transfers {
                    self.leader.store(successor, Ordering::Relaxed);
                }
                Some((reply(Kind::Ack), Vec::new()))
            }
            Kind::Request if node == leader => {
                let slot = header.slot;
                let value = self.execute(value);
                Some((
                    Header {
                        slot,
                        ..reply(Kind::Response)
                    },
                    value,
                ))
            }
            Kind::Request | Kind::Transfer => {
                let slot = header.slot;
                Some(self.redirect(
                    Header {
                        slot,
                        ..reply(Kind::Redirect)
                    },
                    leader,
                ))
            }
            _ => None,
        }
    }

    fn redirect(&self, reply: Header, leader: NodeId) -> (Header, Vec<u8>) {
        let vote_ballot = Ballot(u64::from(leader.0));
        let member = self.members.iter().find(|(node, _)| *node == leader);
        let value = member.map_or(Vec::new(), |(_, at)| encode_address(*at).to_vec());
        (
            Header {
                vote_ballot,
                ..reply
            },
            value,
        )
    }

    fn execute(&mut self, requests: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for entry in envelope::entries(requests).map(Result::unwrap) {
            let (status, sequence, body) = self.outcome(&entry);
            let outcome = Outcome {
                sequence,
                status,
                body: &body,
            };
            outcome.append(&mut out);
        }
        out
    }

    fn outcome(&mut self, entry: &Entry<'_>) -> (Status, Sequence, Vec<u8>) {
        let mut reply = Vec::new();
        match entry.kind {
            EntryKind::Open => {
                let id = self.sessions.len() as u64 + 1;
                self.sessions.insert(id, Vec::new());
                let nonce = Sequence(entry.session.0);
                (Status::Opened, nonce, id.to_be_bytes().to_vec())
            }
            EntryKind::Query => {
                self.machine.query(0, entry.body, &mut reply);
                (Status::Done, entry.sequence, reply)
            }
            EntryKind::Command => {
                let SessionId(id) = entry.session;
                let Some(replies) = self.sessions.get_mut(&id) else {
                    return (Status::UnknownSession, entry.sequence, reply);
                };
                let next = replies.len() as u64 + 1;
                if entry.sequence.0 > next {
                    return (Status::OutOfOrder, Sequence(next), reply);
                }
                if entry.sequence.0 == next {
                    self.machine.apply(0, entry.body, &mut reply);
                    replies.push(reply);
                    self.applied.fetch_add(1, Ordering::Relaxed);
                }
                let reply = replies[entry.sequence.0 as usize - 1].clone();
                (Status::Done, entry.sequence, reply)
            }
            EntryKind::Clock => panic!("a client wrote the clock"),
        }
    }

    fn report(&self, at: usize, leader: NodeId) -> String {
        let (node, address) = self.members[at];
        let role = if node == leader { "leader" } else { "follower" };
        let applied = self.applied.load(Ordering::Relaxed);
        format!(
            r#"{{"node": {node}, "address": "{address}", "role": "{role}", "leader": {leader},
                "ballot": "7.{leader}", "applied": {applied}, "decided": {applied}, "trim": 1,
                "engine": "software", "mode": "udp", "durability": "volatile", "incarnation": 9,
                "epoch": 1, "formed": true, "missing": [], "conflict": null, "later": "new"}}"#
        )
    }
}
