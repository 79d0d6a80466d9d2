//! Packets without what no step of these worlds looks at: nonces, tags, and numbers larger than a
//! small world needs.

use nearwire_consensus::wire::{Header, Kind};
use nearwire_consensus::{Ballot, Epoch, GroupId, Incarnation, NodeId, Slot};
use std::fmt;

pub(crate) const GROUP: GroupId = GroupId(0);
pub(crate) const EPOCH: Epoch = Epoch(1);
/// Rounds are below this.
pub(crate) const BALLOTS: u64 = 16;
/// Bytes of a value that is not empty.
pub(crate) const VALUE_LENGTH: usize = 8;

/// The node that owns a round: the two proposers take turns.
pub(crate) fn owner(round: u8) -> NodeId {
    NodeId(if round.is_multiple_of(2) { 2 } else { 1 })
}

/// The ballot of a round; of round zero, none.
pub(crate) fn ballot(round: u8) -> Ballot {
    if round == 0 {
        Ballot::NONE
    } else {
        Ballot::new(round.into(), owner(round))
    }
}

/// The round of a ballot's word.
pub(crate) fn round(word: u64) -> u8 {
    let round = Ballot(word).round() as u8;
    assert_eq!(ballot(round), Ballot(word), "nobody's ballot");
    round
}

/// A request or a reply.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Packet {
    pub(crate) kind: Kind,
    pub(crate) round: u8,
    pub(crate) slot: u8,
    /// Round of the vote; in a Decide, the first slot proposed.
    pub(crate) vote: u8,
    pub(crate) watermark: u8,
    /// Zero is the empty value.
    pub(crate) value: u8,
}

impl Packet {
    /// What a header and its value come down to.
    pub(crate) fn new(header: &Header, value: u8) -> Self {
        Self {
            kind: header.kind,
            round: round(header.ballot.0),
            slot: header.slot.0 as u8,
            vote: match header.kind {
                Kind::Decide => header.vote_ballot.0 as u8,
                _ => round(header.vote_ballot.0),
            },
            watermark: header.watermark as u8,
            value,
        }
    }

    /// The header. Who replies is for the caller to fill in.
    pub(crate) fn header(&self) -> Header {
        Header {
            incarnation: Incarnation::ANY,
            epoch: EPOCH,
            slot: Slot(self.slot.into()),
            ballot: ballot(self.round),
            vote_ballot: match self.kind {
                Kind::Decide => Ballot(self.vote.into()),
                _ => ballot(self.vote),
            },
            watermark: self.watermark.into(),
            length: if self.value == 0 {
                0
            } else {
                VALUE_LENGTH as u16
            },
            ..Header::new(self.kind, GROUP, owner(self.round))
        }
    }

    /// The value.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        vec![self.value; if self.value == 0 { 0 } else { VALUE_LENGTH }]
    }

    const fn key(&self) -> [u8; 6] {
        [
            self.kind as u8,
            self.round,
            self.slot,
            self.vote,
            self.watermark,
            self.value,
        ]
    }
}

impl Ord for Packet {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for Packet {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A value by the ballot that first proposed it.
pub(crate) fn value_name(value: u8) -> String {
    match value {
        0 => "empty".to_owned(),
        own => format!("v{}.{}", own / 16, own % 16),
    }
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            round,
            slot,
            vote,
            watermark,
            value,
        } = self;
        write!(f, "{kind:?}(b{round}")?;
        match kind {
            Kind::Promise => write!(f, ", highest {slot}, trim {watermark}"),
            Kind::Decide => write!(f, ", from {vote} upto {slot}, trim {watermark}"),
            Kind::Vote => write!(f, ", slot {slot}: b{vote} {}", value_name(*value)),
            Kind::Accept => write!(f, ", slot {slot}: {}", value_name(*value)),
            Kind::Outside => write!(f, ", slot {slot}, trim {watermark}"),
            Kind::Nack => write!(f, ", promised b{vote}"),
            Kind::Prepare => Ok(()),
            _ => write!(f, ", slot {slot}"),
        }?;
        f.write_str(")")
    }
}
