//! One real replica among members that the test plays: it does what the test's packets say, and
//! nothing else.

use super::{Cluster, PATIENCE};
use consensus::formation::{Formation, Terms};
use consensus::quorum::Quorums;
use consensus::region::Layout;
use consensus::wire::{Flags, Header, Kind, Parsed, parse};
use consensus::{Ballot, Epoch, GroupId, Incarnation, NodeId, Slot};
use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// The real replica.
pub const REPLICA: NodeId = NodeId(1);
/// The member that speaks to it as a leader.
pub const SPEAKER: NodeId = NodeId(2);
const OTHER: NodeId = NodeId(3);
const EPOCH: Epoch = Epoch(1);
const MAX_VALUE: usize = 65_535;
/// Between two sends of one request.
const RESEND: Duration = Duration::from_millis(200);

/// The replica, and what the others are.
pub struct Puppet {
    /// Three members, of which only the first has a process.
    pub cluster: Cluster,
    speaker: UdpSocket,
    other: UdpSocket,
    address: SocketAddr,
    nonce: u32,
}

impl Puppet {
    /// Starts the replica and lets the cluster form.
    pub fn start() -> Self {
        // A follower that hears of no leader asks for pre-votes, which nobody grants here: it never
        // steps its own acceptor.
        let mut cluster = Cluster::prepare("");
        let take = |node: NodeId| {
            let address = cluster.replicas()[usize::from(node.0) - 1].address;
            let socket = UdpSocket::bind(address).expect("the port that was free");
            let timeout = Some(Duration::from_millis(20));
            socket.set_read_timeout(timeout).expect("an open socket");
            socket
        };
        let (speaker, other) = (take(SPEAKER), take(OTHER));
        let address = cluster.replicas()[0].address;
        cluster.start_node(REPLICA.0);
        let puppet = Self {
            cluster,
            speaker,
            other,
            address,
            nonce: 0,
        };
        puppet.form();
        puppet
    }

    fn form(&self) {
        let members = vec![REPLICA, SPEAKER, OTHER];
        let dimensions = nearwire::config::Region::default();
        let layout = Layout::new(1, dimensions.window_slots, dimensions.value_bytes);
        let quorums = Quorums::majority(members.len()).expect("three members");
        let lease_ns = nearwire::config::Timing::default().lease_us * 1_000;
        let layout = layout.expect("the defaults");
        let terms = Terms::new(&quorums, 1, &layout, lease_ns);
        let mut roles: Vec<(&UdpSocket, Formation)> = [&self.speaker, &self.other]
            .into_iter()
            .zip([SPEAKER, OTHER])
            .map(|(socket, node)| {
                let pins = BTreeMap::from([(node, Incarnation(u32::from(node.0) << 8))]);
                let formation = Formation::new(node, EPOCH, terms, members.clone(), pins, false);
                (socket, formation)
            })
            .collect();
        let start = Instant::now();
        let mut bytes = vec![0; MAX_VALUE];
        let formed = || {
            let report = self.cluster.report(REPLICA.0);
            report.is_some_and(|report| report["formed"] == true)
        };
        while !formed() {
            assert!(start.elapsed() < PATIENCE, "the cluster does not form");
            let greetings: Vec<_> = roles.iter().map(|(_, role)| role.answer()).collect();
            for (socket, role) in &mut roles {
                for (header, value) in &greetings {
                    let _ = role.handle(header, value);
                }
                let (header, value) = role.answer();
                let hello = Header {
                    flags: Flags::ACK_WANTED,
                    ..header
                };
                let packet = [&hello.to_bytes()[..], &value].concat();
                socket.send_to(&packet, self.address).expect("loopback");
                while let Ok((length, _)) = socket.recv_from(&mut bytes) {
                    if let Parsed::Ours(header, value) = parse(&bytes[..length], MAX_VALUE)
                        && header.kind == Kind::Hello
                    {
                        let _ = role.handle(&header, value);
                    }
                }
            }
        }
    }

    /// A request of the speaker in round `round`.
    pub fn request(&mut self, kind: Kind, round: u64, slot: u64) -> Header {
        self.nonce += 1;
        Header {
            epoch: EPOCH,
            slot: Slot(slot),
            ballot: Ballot::new(round, SPEAKER),
            nonce: self.nonce,
            ..Header::new(kind, GroupId(0), SPEAKER)
        }
    }

    /// Sends a request once.
    pub fn send(&self, request: &Header, value: &[u8]) {
        let header = Header {
            length: value.len() as u16,
            ..*request
        };
        let packet = [&header.to_bytes()[..], value].concat();
        let _ = self.speaker.send_to(&packet, self.address);
    }

    /// The reply to a request within `patience`, if there is one. It is sent once: every pass of
    /// the replica through its step counts.
    pub fn reply_within(&self, request: &Header, patience: Duration) -> Option<(Header, Vec<u8>)> {
        let end = Instant::now() + patience;
        let mut bytes = vec![0; MAX_VALUE];
        while Instant::now() < end {
            let Ok((length, _)) = self.speaker.recv_from(&mut bytes) else {
                continue;
            };
            if let Parsed::Ours(header, value) = parse(&bytes[..length], MAX_VALUE)
                && header.nonce == request.nonce
                && header.sender == REPLICA
                && header.kind != Kind::PreVote
            {
                return Some((header, value.to_vec()));
            }
        }
        None
    }

    /// Sends a request until it is answered.
    #[track_caller]
    pub fn ask(&self, request: &Header, value: &[u8]) -> (Header, Vec<u8>) {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            self.send(request, value);
            if let Some(reply) = self.reply_within(request, RESEND) {
                return reply;
            }
        }
        panic!("no answer to {request:?}");
    }
}
