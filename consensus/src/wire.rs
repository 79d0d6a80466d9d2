//! The wire format: one fixed 64-byte big-endian header, then the value.
//!
//! `docs/protocol.md` has the table of kinds, field by field. [`parse`] answers three ways: a
//! packet is ours, not ours (the stack gets it), or ours but malformed (counted and dropped).

use crate::pieces::Pieces;
use crate::simulation::{Mutation, mutated};
use crate::{Ballot, Epoch, GroupId, Incarnation, NodeId, SessionId, Slot};
use core::ops::Range;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First two bytes of every packet.
pub const MAGIC: u16 = 0x4e57;
/// The version that this code speaks.
pub const VERSION: u8 = 1;
/// Length of the header in bytes.
pub const HEADER_BYTES: usize = 64;
/// Offset of the authentication tag in the header.
pub const TAG_OFFSET: usize = 56;
/// Longest value in bytes that a frame of 1,500 bytes carries behind IPv6, UDP and the header.
pub const MTU_VALUE_BYTES: usize = 1500 - 40 - 8 - HEADER_BYTES;
/// Longest value in bytes that a region may be made for.
pub const MAX_VALUE_BYTES: usize = 32 * 1024;
/// The port that examples and defaults use.
pub const DEFAULT_PORT: u16 = 4747;

/// The header as it stands in a packet.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHeader {
    magic: U16,
    version: u8,
    kind: u8,
    group: U16,
    sender: U16,
    incarnation: U32,
    epoch: U32,
    slot: U64,
    ballot: U64,
    vote_ballot: U64,
    watermark: U64,
    length: U16,
    flags: U16,
    nonce: U32,
    tag: U64,
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);
const _: () = assert!(core::mem::offset_of!(RawHeader, nonce) == 52);
const _: () = assert!(core::mem::offset_of!(RawHeader, tag) == TAG_OFFSET);

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// What a packet says. Codes 62 and 63 are reserved (seal).
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(u8)]
        pub enum Kind { $($(#[$doc])* $name = $code,)* }

        impl Kind {
            /// Every kind, in the order of the codes.
            pub const ALL: &[Kind] = &[$(Kind::$name,)*];

            /// The kind with this code.
            #[inline]
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Kind::$name),)* _ => None }
            }
        }
    };
}

kinds! {
    /// Phase 1a for the whole log of a group.
    Prepare = 1,
    /// Phase 1b: slot = highest, watermark = trim.
    Promise = 2,
    /// Phase 1: what did you vote in this slot?
    Fetch = 3,
    /// A vote: vote ballot and value. Answers Fetch and Read.
    Vote = 4,
    /// Nothing was voted in this slot. Answers Fetch and Read.
    Empty = 5,
    /// The slot is outside the window: watermark = trim. Answers Fetch, Read and Accept.
    Outside = 6,
    /// Phase 2a.
    Accept = 7,
    /// Phase 2b.
    Accepted = 8,
    /// Slots vote ballot (= from) to slot (= upto) are chosen under ballot; watermark = trim.
    Decide = 9,
    /// A Decide was taken, on request.
    Ack = 10,
    /// Refusal: vote ballot = promised; with [`Flags::LEASE`], watermark = nanoseconds left.
    Nack = 11,
    /// Reads a vote without any claim: see Vote, Empty, Outside.
    Read = 12,
    /// Client to replica: entries of one session. Slot = session, ballot = first sequence,
    /// watermark = lowest sequence that the client still waits for.
    Request = 16,
    /// Replica to client: results. Slot = session.
    Response = 17,
    /// Replica to client: vote ballot = the leader's node number or 0, value = its address.
    Redirect = 18,
    /// Host to host while a cluster forms: the incarnations seen so far.
    Hello = 32,
    /// Replica to leader: watermark = applied, ballot = the generation of the matchmakers it knows.
    Progress = 33,
    /// Replica to replica: send me what was chosen from slot on, up to watermark.
    CatchUp = 34,
    /// Replica to replica: value was chosen in slot; vote ballot = a ballot that it was voted in.
    Learn = 35,
    /// Replica to replica: slot = the snapshot wanted (0 = newest), watermark = byte offset.
    SnapshotRequest = 36,
    /// Replica to replica: slot = the snapshot's last slot, watermark = byte offset, vote ballot =
    /// total bytes.
    SnapshotChunk = 37,
    /// Host to host: would you promise this ballot?
    PreVote = 38,
    /// Host to host: yes (nothing was promised).
    PreVoteGranted = 39,
    /// Asks the leader to hand over to the node in vote ballot, or tells that node to campaign, once it
    /// has applied the slot.
    Transfer = 40,
    /// Tool to node: describe yourself.
    Inspect = 41,
    /// Node to tool: a description as JSON.
    Report = 42,
    /// Reader to member or matchmaker: how far may the log be chosen, and by whom?
    ReadIndex = 43,
    /// The answer: slot = the last slot that may be chosen as far as the sender knows, vote ballot
    /// and watermark = the newest and the oldest configuration that it remembers as a matchmaker.
    Index = 44,
    /// Node to node: the sender lives, and leads as many groups as slot says; watermark = a digest of
    /// which in which ballots.
    Pulse = 45,
    /// Candidate to matchmaker: ballot is about to use the configuration in the value; watermark =
    /// the candidate's incarnation.
    Match = 48,
    /// Matchmaker to candidate: written down. Vote ballot = the highest ballot before, watermark =
    /// the version below which configurations are garbage, value = the others.
    Matched = 49,
    /// Matchmaker to candidate: vote ballot = the highest ballot matched, value = the newest
    /// configuration.
    Unmatched = 50,
    /// Leader to matchmaker: configurations below version watermark are garbage, value = the leader's.
    Garbage = 51,
    /// Matchmaker to leader: they are forgotten.
    Collected = 52,
    /// Node to node: the newest configuration that the sender knows.
    Configuration = 53,
    /// Tool to leader: lead by the members in the value from now on, or, without a value, describe
    /// the configuration.
    Reconfigure = 54,
    /// Leader to tool: watermark = what came of it, value = the configuration in force.
    Reconfigured = 55,
    /// Candidate or leader to matchmaker: match nothing any more, others are to follow. Ballot = the
    /// decree's, watermark = the sender's incarnation, value = its configuration.
    Stop = 56,
    /// Matchmaker to candidate or leader: done. To a Stop: vote ballot = the one in which it has
    /// accepted the successors in the value, which goes on with what it has written down.
    Stopped = 57,
    /// Candidate or leader to a successor: slot = its generation, value = a configuration, then what
    /// it is to begin with.
    HandOver = 58,
    /// Successor to candidate or leader: written down.
    HandedOver = 59,
    /// Candidate or leader to matchmaker: accept the successors behind the configuration in the value.
    Appoint = 60,
    /// Matchmaker to candidate or leader: accepted.
    Appointed = 61,
}

impl Kind {
    /// Whether it is for an acceptor; every other kind is for the host.
    #[inline(always)]
    pub const fn is_for_acceptor(self) -> bool {
        matches!(
            self,
            Self::Prepare | Self::Fetch | Self::Accept | Self::Decide | Self::Read
        )
    }
}

/// Bits of the flags field. What a bit means depends on the kind.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Flags(pub u16);

impl Flags {
    /// Decide: answer with Ack or Nack.
    pub const ACK_WANTED: Self = Self(1);
    /// Decide: renew the ballot's lease. Nack: refused because of another's lease.
    pub const LEASE: Self = Self(1 << 1);
    /// Decide: give the ballot's lease back.
    pub const RELEASE: Self = Self(1 << 2);
    /// Request: queries that change nothing and take no sequence.
    pub const QUERY: Self = Self(1 << 3);
    /// Transfer: campaign now (leader to successor).
    pub const NOW: Self = Self(1 << 4);
    /// Every flag that has a meaning.
    pub const KNOWN: Self = Self(0x1f);

    /// Whether every bit of `other` is set.
    #[inline]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both sets of bits.
    #[must_use]
    #[inline]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The header's fields in native form. Each kind lays its own meaning over them; see [`Kind`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What the packet says.
    pub kind: Kind,
    /// Which log it is about.
    pub group: GroupId,
    /// The node that sent it; [`NodeId::NONE`] for clients and tools.
    pub sender: NodeId,
    /// Request: the target's incarnation, or [`Incarnation::ANY`]. Reply: the sender's.
    pub incarnation: Incarnation,
    /// The membership that the sender believes in.
    pub epoch: Epoch,
    /// See [`Kind`].
    pub slot: Slot,
    /// See [`Kind`].
    pub ballot: Ballot,
    /// See [`Kind`].
    pub vote_ballot: Ballot,
    /// See [`Kind`].
    pub watermark: u64,
    /// Length of the value in bytes.
    pub length: u16,
    /// See [`Flags`].
    pub flags: Flags,
    /// Chosen by the requester, echoed by the reply.
    pub nonce: u32,
    /// SipHash-2-4 over the header (this field zero) and the value, or zero.
    pub tag: u64,
}

impl Header {
    /// A header with every field but these zero.
    #[inline]
    pub const fn new(kind: Kind, group: GroupId, sender: NodeId) -> Self {
        Self {
            kind,
            group,
            sender,
            incarnation: Incarnation::ANY,
            epoch: Epoch(0),
            slot: Slot::NONE,
            ballot: Ballot::NONE,
            vote_ballot: Ballot::NONE,
            watermark: 0,
            length: 0,
            flags: Flags(0),
            nonce: 0,
            tag: 0,
        }
    }

    /// The session of a Request, Response or Redirect.
    #[inline]
    pub const fn session(&self) -> SessionId {
        SessionId(self.slot.0)
    }

    /// Writes the header into the first [`HEADER_BYTES`] of a packet.
    #[inline]
    pub fn write(&self, out: &mut [u8; HEADER_BYTES]) {
        *out = zerocopy::transmute!(self.to_words());
    }

    /// The header as it stands in a packet, eight bytes at a time, each as a number of this machine.
    ///
    /// They are put together in registers: a processor waits when fields that were just stored are
    /// loaded again in larger pieces.
    #[inline]
    pub const fn to_words(&self) -> [u64; HEADER_BYTES / 8] {
        let kind = (MAGIC as u64) << 48 | (VERSION as u64) << 40 | (self.kind as u64) << 32;
        let lengths = (self.length as u64) << 48 | (self.flags.0 as u64) << 32;
        [
            (kind | (self.group.0 as u64) << 16 | self.sender.0 as u64).to_be(),
            ((self.incarnation.0 as u64) << 32 | self.epoch.0 as u64).to_be(),
            self.slot.0.to_be(),
            self.ballot.0.to_be(),
            self.vote_ballot.0.to_be(),
            self.watermark.to_be(),
            (lengths | self.nonce as u64).to_be(),
            self.tag.to_be(),
        ]
    }

    /// The header as bytes.
    #[inline]
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        self.write(&mut out);
        out
    }
}

/// The group that a packet is about, whatever else is wrong with it.
pub fn group_of(packet: &[u8]) -> Option<GroupId> {
    let at = core::mem::offset_of!(RawHeader, group);
    let bytes = packet.get(at..)?.first_chunk()?;
    Some(GroupId(u16::from_be_bytes(*bytes)))
}

/// Why a packet that carries our magic was refused. The discriminant indexes counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Malformed {
    /// Shorter than the header.
    Truncated = 0,
    /// Another version of the wire format.
    Version = 1,
    /// No kind has this code.
    Kind = 2,
    /// The length field and the datagram disagree.
    Length = 3,
    /// The value is longer than the limit.
    OverLong = 4,
    /// The sealed ballot, or a sender or ballot that no node may have.
    Ballot = 5,
    /// An unknown flag.
    Flags = 6,
    /// The tag is wrong, or missing where authentication is on.
    Tag = 7,
}

impl Malformed {
    /// How many reasons there are.
    pub const COUNT: usize = 8;
    /// Every reason, in the order of the discriminants.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Truncated,
        Self::Version,
        Self::Kind,
        Self::Length,
        Self::OverLong,
        Self::Ballot,
        Self::Flags,
        Self::Tag,
    ];

    /// A stable name for metrics and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Version => "version",
            Self::Kind => "kind",
            Self::Length => "length",
            Self::OverLong => "over_long",
            Self::Ballot => "ballot",
            Self::Flags => "flags",
            Self::Tag => "tag",
        }
    }
}

/// What [`parse`] makes of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parsed<'a> {
    /// A well-formed packet and its value.
    Ours(Header, &'a [u8]),
    /// Not our magic: the stack's business.
    NotOurs,
    /// Our magic, but unusable: counted by reason and dropped.
    Malformed(Malformed),
}

/// What [`header`] makes of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Headed {
    /// A well-formed packet; its value is the rest of the datagram.
    Ours(Header),
    /// Not our magic: the stack's business.
    NotOurs,
    /// Our magic, but unusable: counted by reason and dropped.
    Malformed(Malformed),
}

/// Parses a datagram (UDP payload). `max_value` is the longest value in bytes that the caller
/// takes. The tag is not checked here: see [`crate::auth`].
#[inline]
pub fn parse(datagram: &[u8], max_value: usize) -> Parsed<'_> {
    match header(datagram, 0..datagram.len(), max_value) {
        Headed::Ours(header) => {
            Parsed::Ours(header, datagram.get(HEADER_BYTES..).unwrap_or_default())
        }
        Headed::NotOurs => Parsed::NotOurs,
        Headed::Malformed(reason) => Parsed::Malformed(reason),
    }
}

/// The kind of the datagram that stands at `at` in a packet, if it begins as ours do.
#[inline(always)]
pub fn kind<P: Pieces + ?Sized>(packet: &P, at: Range<usize>) -> Option<Kind> {
    const BYTES: usize = 4;
    // Behind the datagram a frame may have padding.
    if at.end.saturating_sub(at.start) < BYTES {
        return None;
    }
    match *packet.piece::<BYTES>(at.start)? {
        [a, b, VERSION, code] if u16::from_be_bytes([a, b]) == MAGIC => Kind::from_code(code),
        _ => None,
    }
}

/// Parses the header of the datagram that stands at `at` in a packet, as [`parse`] does.
#[inline(always)]
pub fn header<P: Pieces + ?Sized>(packet: &P, at: Range<usize>, max_value: usize) -> Headed {
    let length = at.end.saturating_sub(at.start);
    let raw = if length < HEADER_BYTES {
        None
    } else {
        packet.piece::<HEADER_BYTES>(at.start)
    };
    let Some(raw) = raw else {
        let magic = packet
            .piece(at.start)
            .filter(|_| length >= size_of::<u16>());
        return match magic {
            Some(magic) if u16::from_be_bytes(*magic) == MAGIC => {
                Headed::Malformed(Malformed::Truncated)
            }
            _ => Headed::NotOurs,
        };
    };
    let raw: &RawHeader = zerocopy::transmute_ref!(raw);
    let value_bytes = length - HEADER_BYTES;
    if raw.magic.get() != MAGIC {
        return Headed::NotOurs;
    }
    if raw.version != VERSION {
        return Headed::Malformed(Malformed::Version);
    }
    let Some(kind) = Kind::from_code(raw.kind) else {
        return Headed::Malformed(Malformed::Kind);
    };
    if usize::from(raw.length.get()) != value_bytes {
        return Headed::Malformed(Malformed::Length);
    }
    if value_bytes > max_value {
        return Headed::Malformed(Malformed::OverLong);
    }
    if raw.flags.get() & !Flags::KNOWN.0 != 0 {
        return Headed::Malformed(Malformed::Flags);
    }
    let ballot = Ballot(raw.ballot.get());
    let is_sealed = ballot.round() > Ballot::MAX_ROUND && !mutated(Mutation::SealedBallotTaken);
    if is_sealed || raw.sender.get() > NodeId::MAX {
        return Headed::Malformed(Malformed::Ballot);
    }
    Headed::Ours(Header {
        kind,
        group: GroupId(raw.group.get()),
        sender: NodeId(raw.sender.get()),
        incarnation: Incarnation(raw.incarnation.get()),
        epoch: Epoch(raw.epoch.get()),
        slot: Slot(raw.slot.get()),
        ballot,
        vote_ballot: Ballot(raw.vote_ballot.get()),
        watermark: raw.watermark.get(),
        length: raw.length.get(),
        flags: Flags(raw.flags.get()),
        nonce: raw.nonce.get(),
        tag: raw.tag.get(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn sample() -> Header {
        Header {
            incarnation: Incarnation(0xdead_beef),
            epoch: Epoch(7),
            slot: Slot(42),
            ballot: Ballot::new(3, NodeId(2)),
            vote_ballot: Ballot::new(2, NodeId(1)),
            watermark: 9,
            length: 3,
            flags: Flags::ACK_WANTED,
            nonce: 0x0102_0304,
            ..Header::new(Kind::Accept, GroupId(5), NodeId(2))
        }
    }

    fn packet(header: &Header, value: &[u8]) -> Vec<u8> {
        let mut out = Vec::from(header.to_bytes());
        out.extend_from_slice(value);
        out
    }

    #[test]
    fn what_is_written_is_parsed() {
        let header = sample();
        assert_eq!(
            parse(&packet(&header, b"abc"), 3),
            Parsed::Ours(header, b"abc")
        );
    }

    #[test]
    fn each_defect_has_its_reason() {
        let good = packet(&sample(), b"abc");
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        let cases: [(Vec<u8>, Parsed<'_>); 9] = [
            (with(0, 0), Parsed::NotOurs),
            (Vec::new(), Parsed::NotOurs),
            (good[..63].to_vec(), Parsed::Malformed(Malformed::Truncated)),
            (with(2, 9), Parsed::Malformed(Malformed::Version)),
            (with(3, 0), Parsed::Malformed(Malformed::Kind)),
            (with(49, 4), Parsed::Malformed(Malformed::Length)),
            (with(50, 0x80), Parsed::Malformed(Malformed::Flags)),
            (with(6, 0xff), Parsed::Malformed(Malformed::Ballot)),
            (
                packet(
                    &Header {
                        ballot: Ballot::SEALED,
                        ..sample()
                    },
                    b"abc",
                ),
                Parsed::Malformed(Malformed::Ballot),
            ),
        ];
        for (bytes, expected) in &cases {
            assert_eq!(parse(bytes, 1024), *expected);
        }
        assert_eq!(parse(&good, 2), Parsed::Malformed(Malformed::OverLong));
    }

    #[test]
    fn a_datagram_without_a_kind_borrows_none_from_what_follows() {
        let packet = Header::new(Kind::Hello, GroupId(0), NodeId(1)).to_bytes();
        assert_eq!(kind(&packet[..], 0..4), Some(Kind::Hello));
        assert_eq!(kind(&packet[..], 0..3), None);
        assert_eq!(kind(&packet[..3], 0..3), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, 64);
        }

        #[test]
        fn a_parsed_packet_writes_back_to_the_same_bytes(
            tail in proptest::collection::vec(any::<u8>(), 60),
            kind in 0usize..Kind::ALL.len(),
        ) {
            let mut bytes = std::vec![0x4e, 0x57, VERSION, Kind::ALL[kind] as u8];
            bytes.extend(tail);
            bytes[48..52].fill(0);
            if let Parsed::Ours(header, value) = parse(&bytes, 64) {
                prop_assert_eq!(packet(&header, value), bytes);
            }
        }
    }
}
