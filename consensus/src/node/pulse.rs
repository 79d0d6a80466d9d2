//! One heartbeat for all groups.
//!
//! A node with several groups tells each other node at intervals that it lives, and a digest of the
//! groups that it leads and in which ballots. A leader that has nothing to say in a group then says
//! nothing in it: its followers hear of it all the same, and where the digest is not that of what
//! they believe they ask, group by group. `docs/protocol.md`, "Many groups", has the argument.
//! Nothing that is safe depends on any of it.

use super::*;
use crate::replica::LAGGARD_NS;
use crate::simulation::{Mutation, mutated};
use crate::standing::Led;

/// Pulses in a row that may differ from what this node believes before it asks: what the groups'
/// own packets say may be on its way.
const DIFFERENCES: u32 = 2;
/// Groups that a node reports on with each pulse that differs.
const REPORTS: usize = 64;
/// Pulses that may be missing before the next one counts as late.
const MISSING: u64 = 2;
/// Groups that are looked at for a better leader with each pulse.
const LOOKED_AT: usize = 32;

/// What a node keeps of its own pulse and the others'.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    /// When the next one is sent.
    pub(super) due_ns: u64,
    /// Whom it goes to: the members of all groups.
    peers: Vec<Peer>,
    others: Vec<Other>,
    /// When this node last sent one: it was awake. How many it has sent.
    beat_ns: u64,
    pub(super) beats: u64,
    /// The group that is looked at next for a better leader.
    looked_at: usize,
}

impl Pulse {
    /// Where it goes.
    pub(super) fn peers(&self) -> impl Iterator<Item = SocketAddr> {
        self.peers.iter().map(|peer| peer.address)
    }
}

/// Whom a pulse goes to, and what it says.
#[derive(Clone, Copy, Debug)]
struct Peer {
    node: NodeId,
    address: SocketAddr,
    /// Of the groups that this node leads and that one is a member of.
    led: Led,
}

/// What is known of another node's pulse.
#[derive(Clone, Copy, Debug)]
struct Other {
    node: NodeId,
    felt_ns: u64,
    /// Pulses in a row that differed from what this node believes.
    differences: u32,
    /// They did for so long that its pulse counts for nothing.
    doubts: bool,
    /// The group that is reported on next.
    next: usize,
}

impl<M: Memory, J: Journal, S: StateMachine> Node<M, J, S> {
    /// Sends this node's pulse when it is due.
    pub(super) fn beat<I: Io>(&mut self, now_ns: u64, io: &mut I) {
        if now_ns < self.pulse.due_ns {
            return;
        }
        self.pulse.due_ns = now_ns + self.config.pulse_ns;
        self.pulse.beat_ns = now_ns;
        self.pulse.beats += 1;
        if self.standings.take_own_changed() {
            self.meet();
        }
        for Peer { address, led, .. } in &self.pulse.peers {
            let header = Header {
                incarnation: self.local.acceptor().incarnation,
                slot: Slot(led.groups),
                watermark: led.digest,
                ..Header::new(Kind::Pulse, GroupId(0), self.config.node)
            };
            io.send(*address, &header, &[]);
        }
        self.make_way(now_ns);
    }

    /// Finds out who the members of all groups are, and what this node leads of theirs.
    fn meet(&mut self) {
        let peers = &mut self.pulse.peers;
        peers.clear();
        for (group, replica) in (0..).map(GroupId).zip(&self.replicas) {
            let ballot = self.standings.of(group).led_by;
            let is_own = ballot != Ballot::NONE && ballot.node() == self.config.node;
            for member in replica.configuration().membership.others(self.config.node) {
                let known = peers.iter().position(|peer| peer.address == member.address);
                let at = known.unwrap_or(peers.len());
                if known.is_none() {
                    peers.push(Peer {
                        node: member.node,
                        address: member.address,
                        led: Led::default(),
                    });
                }
                if is_own && let Some(peer) = peers.get_mut(at) {
                    peer.led.add(group, ballot);
                }
            }
        }
        let is_peer = |other: &Other| peers.iter().any(|peer| peer.node == other.node);
        self.pulse.others.retain(is_peer);
    }

    /// A node with better claims to a group than this one, which leads it, takes over: one group
    /// with each pulse, so that a node that comes back takes over gently.
    fn make_way(&mut self, now_ns: u64) {
        for _ in 0..LOOKED_AT.min(self.replicas.len()) {
            let at = self.pulse.looked_at;
            self.pulse.looked_at = (at + 1) % self.replicas.len();
            if let Some(replica) = self.replicas.get_mut(at)
                && replica.make_way(now_ns, &self.local)
            {
                self.agenda.set(at, 0);
                return;
            }
        }
    }

    /// Another node's pulse.
    pub(super) fn felt<I: Io>(&mut self, now_ns: u64, header: &Header, io: &mut I) {
        let node = header.sender;
        if !self.pulse.peers.iter().any(|peer| peer.node == node) {
            return;
        }
        let seen_ns = self.local.seen_ns(node);
        self.local.heard(now_ns, node);
        if now_ns.saturating_sub(seen_ns) >= LAGGARD_NS {
            // Groups that rest without it go on until it has all that they have.
            for at in 0..self.replicas.len() {
                self.agenda.set(at, 0);
            }
        }
        let late_ns = self.late_ns(now_ns, node);
        if late_ns > 0 {
            for (at, replica) in self.replicas.iter_mut().enumerate() {
                if self.standings.of(GroupId(at as u16)).led_by.node() == node {
                    replica.leader_was_late(now_ns, late_ns);
                }
            }
        }
        let told = Led {
            groups: header.slot.0,
            digest: header.watermark,
        };
        let is_same = self.standings.led_by(node) == told;
        let Some(other) = self.pulse.others.iter_mut().find(|one| one.node == node) else {
            return;
        };
        other.differences = match is_same || mutated(Mutation::DigestIgnored) {
            true => 0,
            false => other.differences.saturating_add(1),
        };
        let patience = self
            .config
            .election
            .timeout_ns
            .div_ceil(self.config.pulse_ns);
        let doubts = u64::from(other.differences) >= patience;
        let doubted = core::mem::replace(&mut other.doubts, doubts);
        if other.differences >= DIFFERENCES {
            self.ask_what_it_leads(node, io);
        }
        if doubts || doubted {
            // What it says of its groups is not what they said: it is to speak in each of them.
            for (at, replica) in self.replicas.iter_mut().enumerate() {
                if !doubts {
                    replica.trust(node);
                } else if self.standings.of(GroupId(at as u16)).led_by.node() == node {
                    replica.doubt(now_ns, node);
                }
                self.agenda.set(at, 0);
            }
        }
    }

    /// By how much a pulse is later than it should be, while this node was awake itself.
    fn late_ns(&mut self, now_ns: u64, node: NodeId) -> u64 {
        let pulse_ns = self.config.pulse_ns;
        let found = self.pulse.others.iter_mut().find(|one| one.node == node);
        let Some(other) = found else {
            self.pulse.others.push(Other {
                node,
                felt_ns: now_ns,
                differences: 0,
                doubts: false,
                next: 0,
            });
            return 0;
        };
        let before_ns = core::mem::replace(&mut other.felt_ns, now_ns);
        let silence_ns = now_ns.saturating_sub(before_ns);
        let is_awake = now_ns.saturating_sub(self.pulse.beat_ns) <= MISSING * pulse_ns;
        match is_awake && silence_ns > (1 + MISSING) * pulse_ns {
            true => silence_ns - pulse_ns,
            false => 0,
        }
    }

    /// Reports on groups that this node takes another for the leader of, a part with each pulse: if
    /// it leads one no more it says so, if in another ballot it announces that.
    fn ask_what_it_leads<I: Io>(&mut self, node: NodeId, io: &mut I) {
        let found = self.pulse.others.iter_mut().find(|one| one.node == node);
        let Some(other) = found else { return };
        let mut reports = 0;
        for _ in 0..self.replicas.len() {
            let at = other.next;
            other.next = (at + 1) % self.replicas.len();
            if self.standings.of(GroupId(at as u16)).led_by.node() != node {
                continue;
            }
            if let Some(replica) = self.replicas.get(at) {
                replica.report_to(node, &self.local, io);
            }
            reports += 1;
            if reports == REPORTS {
                return;
            }
        }
    }
}
