//! What a tool asks of running nodes: what they are doing, to hand leadership over, and to change the
//! members.

use crate::backup::questions;
use consensus::auth::{self, Keys};
use consensus::client::decode_address;
use consensus::configuration::Configuration;
use consensus::replica::Reconfigured;
use consensus::state_machine::SnapshotId;
use consensus::wire::{self, Header, Kind, Parsed};
use consensus::{Ballot, GroupId, NodeId, Slot};
use datapath::{Datapath, Error, Received, Transmit, Udp, Wait, clock};
use serde::Serialize;
use serde_json::{Map, Value};
use std::net::SocketAddr;
use std::time::Duration;

/// Between two repetitions of a question, in nanoseconds.
const REPEAT_NS: u64 = 100_000_000;
/// Longest value of a datagram in bytes.
const MAX_DATAGRAM_VALUE: usize = 65_535;

/// What a node says about itself: a JSON object, of which this build need not know every field.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Report(pub Map<String, Value>);

impl Report {
    /// A field that is text.
    pub fn text(&self, field: &str) -> Option<&str> {
        self.0.get(field)?.as_str()
    }

    /// A field that is a node's number.
    pub fn node(&self, field: &str) -> Option<NodeId> {
        let number = self.0.get(field)?.as_u64()?;
        u16::try_from(number).ok().map(NodeId)
    }

    /// How many groups its cluster has.
    pub fn groups(&self) -> u16 {
        let groups = self.0.get("groups").map(|groups| &groups["count"]);
        let count = groups.and_then(|count| u16::try_from(count.as_u64()?).ok());
        count.unwrap_or(1)
    }

    /// Whether the node says that it leads.
    pub fn leads(&self) -> bool {
        self.text("role") == Some("leader")
    }

    /// Its ballot; [`Ballot::NONE`] if it names none.
    pub fn ballot(&self) -> Ballot {
        let parse = || {
            let (round, node) = self.text("ballot")?.split_once('.')?;
            Some(Ballot::new(round.parse().ok()?, NodeId(node.parse().ok()?)))
        };
        parse().unwrap_or_default()
    }
}

/// A node's answer to [`Inspector::hand_over`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HandOver {
    /// It leads, and will hand over as soon as the successor has caught up.
    Accepted,
    /// It does not lead, or does not know the successor. It takes this node for the leader.
    Redirected(Option<(NodeId, SocketAddr)>),
    /// It did not answer in time.
    Silent,
}

/// A node's answer to [`Inspector::reconfigure`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// It leads.
    Answered {
        /// What came of the wish.
        came: Reconfigured,
        /// Who it is.
        leader: NodeId,
        /// The configuration in force.
        configuration: Configuration,
    },
    /// It does not lead. It takes this node for the leader.
    Redirected(Option<(NodeId, SocketAddr)>),
    /// It did not answer in time.
    Silent,
}

/// Asks nodes, from a port of its own.
pub struct Inspector {
    /// Whose members it asks for: each group has its own.
    pub group: GroupId,
    socket: Udp,
    keys: Option<Keys>,
    nonce: u32,
}

impl Inspector {
    /// For nodes at these addresses. Questions carry the tag of the key that signs, and answers
    /// that of either.
    ///
    /// # Errors
    /// There is no socket or no randomness left.
    pub fn new(nodes: &[SocketAddr], keys: Option<Keys>) -> Result<Self, Error> {
        let nonce = getrandom::u32().map_err(|error| Error::System {
            doing: "draw a nonce".into(),
            source: std::io::Error::other(error),
        })?;
        Ok(Self {
            socket: Udp::bind(crate::client::any_port(nodes), Wait::Blocking)?,
            group: GroupId(0),
            keys,
            nonce,
        })
    }

    /// Asks every node what it is doing, until all have answered, `enough` says so or time is up.
    /// A node that did not answer has no report.
    ///
    /// # Errors
    /// The socket went away.
    pub fn inspect(
        &mut self,
        nodes: &[SocketAddr],
        timeout: Duration,
        mut enough: impl FnMut(&[Option<Report>]) -> bool,
    ) -> Result<Vec<Option<Report>>, Error> {
        let mut reports = vec![None; nodes.len()];
        let question = Header::new(Kind::Inspect, GroupId(0), NodeId::NONE);
        self.ask(nodes, &question, &[], timeout, |index, header, value| {
            if header.kind != Kind::Report {
                return Answered::Not;
            }
            reports[index] = serde_json::from_slice(value).ok().map(Report);
            if reports[index].is_none() {
                Answered::Not
            } else if enough(&reports) {
                Answered::All
            } else {
                Answered::One
            }
        })?;
        Ok(reports)
    }

    /// Asks the leader to hand over to `successor`.
    ///
    /// # Errors
    /// The socket went away.
    pub fn hand_over(
        &mut self,
        leader: SocketAddr,
        successor: NodeId,
        timeout: Duration,
    ) -> Result<HandOver, Error> {
        let question = Header {
            vote_ballot: Ballot(u64::from(successor.0)),
            ..Header::new(Kind::Transfer, GroupId(0), NodeId::NONE)
        };
        let mut answer = HandOver::Silent;
        self.ask(&[leader], &question, &[], timeout, |_, header, value| {
            answer = match header.kind {
                Kind::Ack => HandOver::Accepted,
                Kind::Redirect => HandOver::Redirected(named_leader(header, value)),
                _ => return Answered::Not,
            };
            Answered::One
        })?;
        Ok(answer)
    }

    /// Asks the leader for other members in place of `version`, or, without a `wish`, for those that
    /// there are.
    ///
    /// # Errors
    /// The socket went away.
    pub fn reconfigure(
        &mut self,
        leader: SocketAddr,
        wish: Option<&Configuration>,
        timeout: Duration,
    ) -> Result<Change, Error> {
        let value = wish.map(Configuration::to_bytes).unwrap_or_default();
        let question = Header {
            vote_ballot: wish.map_or(Ballot::NONE, |wish| wish.version),
            length: value.len() as u16,
            ..Header::new(Kind::Reconfigure, self.group, NodeId::NONE)
        };
        let mut answer = Change::Silent;
        self.ask(&[leader], &question, &value, timeout, |_, header, value| {
            answer = match header.kind {
                Kind::Reconfigured => {
                    let came = Reconfigured::from_code(header.watermark);
                    match (came, Configuration::read(value)) {
                        (Some(came), Some((configuration, _))) => Change::Answered {
                            came,
                            leader: header.sender,
                            configuration,
                        },
                        _ => return Answered::Not,
                    }
                }
                Kind::Redirect => Change::Redirected(named_leader(header, value)),
                _ => return Answered::Not,
            };
            Answered::One
        })?;
        Ok(answer)
    }

    /// Asks a node for a snapshot that reaches at least `slot`, with `room` for the answer.
    pub(crate) fn offered_snapshot(
        &mut self,
        node: SocketAddr,
        slot: Slot,
        room: &[u8],
        timeout: Duration,
    ) -> Result<Option<SnapshotId>, Error> {
        let mut offered = None;
        let question = questions::offer(slot, room.len());
        self.ask(&[node], &question, room, timeout, |_, header, _| {
            // Without a slot: one is being made.
            if header.kind != Kind::SnapshotChunk || header.slot == Slot::NONE {
                return Answered::Not;
            }
            offered = Some(SnapshotId {
                slot: header.slot,
                bytes: header.vote_ballot.0,
                crc: header.ballot.0 as u32,
            });
            Answered::One
        })?;
        Ok(offered)
    }

    /// Asks for a piece of a snapshot: it will be among the [pieces](Self::pieces).
    pub(crate) fn ask_for_piece(
        &mut self,
        node: SocketAddr,
        id: SnapshotId,
        offset: u64,
        room: &[u8],
    ) {
        self.send(node, questions::piece(id, offset, room.len()), room);
    }

    /// Sends what was asked, waits for pieces of snapshots, and hands them over.
    pub(crate) fn pieces(
        &mut self,
        at_most: Duration,
        mut take: impl FnMut(&Header, &[u8]),
    ) -> Result<(), Error> {
        self.socket.flush()?;
        self.socket.wait(at_most)?;
        for packet in 0..self.socket.receive()? {
            let (_, datagram) = self.socket.halves().0.packet(packet);
            let Parsed::Ours(header, value) = wire::parse(datagram, MAX_DATAGRAM_VALUE) else {
                continue;
            };
            let tagged = |keys: Keys| keys.is_authentic(&header, value);
            if header.kind == Kind::SnapshotChunk && self.keys.is_none_or(tagged) {
                take(&header, value);
            }
        }
        Ok(())
    }

    /// Sends `question` to each node, and again to those who have not answered. An answer is known
    /// by its nonce: a node with several addresses may answer from another one.
    fn ask(
        &mut self,
        nodes: &[SocketAddr],
        question: &Header,
        value: &[u8],
        timeout: Duration,
        mut take: impl FnMut(usize, &Header, &[u8]) -> Answered,
    ) -> Result<(), Error> {
        let first_nonce = self.nonce;
        self.nonce = first_nonce.wrapping_add(nodes.len() as u32);
        let mut waiting = vec![true; nodes.len()];
        let timeout_ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        let until_ns = clock::monotonic_ns().saturating_add(timeout_ns);
        let mut ask_ns = 0;
        while waiting.contains(&true) {
            let now_ns = clock::monotonic_ns();
            if now_ns >= until_ns {
                break;
            }
            if now_ns >= ask_ns {
                for (index, to) in nodes
                    .iter()
                    .enumerate()
                    .filter(|(index, _)| waiting[*index])
                {
                    let nonce = first_nonce.wrapping_add(index as u32);
                    self.send(*to, Header { nonce, ..*question }, value);
                }
                self.socket.flush()?;
                ask_ns = now_ns + REPEAT_NS;
            }
            let at_most = ask_ns.min(until_ns).saturating_sub(now_ns);
            self.socket.wait(Duration::from_nanos(at_most))?;
            let count = self.socket.receive()?;
            for packet in 0..count {
                let (_, datagram) = self.socket.halves().0.packet(packet);
                let Parsed::Ours(header, value) = wire::parse(datagram, MAX_DATAGRAM_VALUE) else {
                    continue;
                };
                let tagged = |keys: Keys| keys.is_authentic(&header, value);
                let index = header.nonce.wrapping_sub(first_nonce) as usize;
                if self.keys.is_none_or(tagged) && waiting.get(index) == Some(&true) {
                    match take(index, &header, value) {
                        Answered::Not => {}
                        Answered::One => waiting[index] = false,
                        Answered::All => return Ok(()),
                    }
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, to: SocketAddr, mut header: Header, value: &[u8]) {
        if let Some(keys) = self.keys {
            header.tag = auth::tag(keys.signs, &header, value);
        }
        self.socket.halves().1.send(to, &header.to_bytes(), value);
    }
}

enum Answered {
    Not,
    One,
    All,
}

fn named_leader(header: &Header, value: &[u8]) -> Option<(NodeId, SocketAddr)> {
    let node = u16::try_from(header.vote_ballot.0)
        .ok()
        .filter(|&node| node != 0)?;
    Some((NodeId(node), decode_address(value)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_field_by_field() {
        let report: Report = serde_json::from_str(
            r#"{"node": 3, "role": "leader", "ballot": "7.3", "leader": null, "new": [1]}"#,
        )
        .map(Report)
        .expect("JSON");
        assert!(report.leads());
        assert_eq!(report.node("node"), Some(NodeId(3)));
        assert_eq!(report.node("leader"), None);
        assert_eq!(report.ballot(), Ballot::new(7, NodeId(3)));
        assert_eq!(Report::default().ballot(), Ballot::NONE);
    }
}
