//! What the bytes of a segment mean.
//!
//! ```text
//! segment-<number, 16 hex digits>
//!   block 0    Superheader (128 bytes, the rest of the block is zero)
//!   block 1..  batches, each a whole number of 4,096-byte blocks:
//!                BatchHeader (64 bytes)
//!                records, each RecordHeader (16 bytes), payload, zeroes up to 8 bytes
//!                zeroes up to the block
//! ```
//!
//! Integers are little-endian. A batch is what one write carries. Every checksum covers, directly
//! or through its seed, the segment's number and its life, so bytes that a recycled file kept from
//! an earlier use never pass for new ones. `docs/journal.md` has the tables and the recovery rule.

use super::Lsn;
use consensus::simulation::{Mutation, mutated};
use crc_fast::crc32_iscsi;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What a write is aligned to, in offset, length and memory: enough for any O_DIRECT device.
pub(super) const BLOCK_BYTES: usize = 4096;
/// The longest payload of a record.
pub const MAX_RECORD_BYTES: usize = 64 * 1024;
/// The longest batch, headers and padding included.
pub(super) const MAX_BATCH_BYTES: usize = 256 * 1024;
/// The shortest segment: the superheader and one batch of the longest record, with room to spare.
pub const MIN_SEGMENT_BYTES: u64 = 128 * 1024;

pub(super) const VERSION: u32 = 1;
const SEGMENT_MAGIC: [u8; 8] = *b"nwjournl";
const BATCH_MAGIC: [u8; 4] = *b"nwbt";

/// The first write of this segment was flushed before this batch was written.
pub(super) const SEGMENT_FLUSHED: u32 = 1;

/// The first block of a segment.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Superheader {
    magic: [u8; 8],
    version: U32,
    /// Over every other byte.
    crc: U32,
    pub(super) identity: U64,
    pub(super) segment: U64,
    /// Random, one for each time that the journal was opened.
    pub(super) life: U64,
    /// The first record here, or the next one to come.
    pub(super) first: U64,
    pub(super) segment_bytes: U64,
    reserved: [u8; 72],
}

const _: () = assert!(size_of::<Superheader>() == 128);

/// What block 0 of a segment holds.
#[derive(Debug)]
pub(super) enum Start {
    Begun(Superheader),
    /// Nothing was written since the file got this number.
    NotBegun,
    /// A format that this program does not read.
    Version(u32),
}

impl Superheader {
    pub(super) fn new(identity: u64, seal: Seal, first: Lsn, segment_bytes: u64) -> Self {
        Self {
            magic: SEGMENT_MAGIC,
            version: VERSION.into(),
            crc: 0.into(),
            identity: identity.into(),
            segment: seal.segment.into(),
            life: seal.life.into(),
            first: first.0.into(),
            segment_bytes: segment_bytes.into(),
            reserved: [0; 72],
        }
    }

    fn checksum(mut self) -> u32 {
        self.crc = 0.into();
        crc32_iscsi(self.as_bytes())
    }

    /// Fills the first block.
    pub(super) fn encode(mut self, block: &mut [u8]) {
        self.crc = self.checksum().into();
        block[..BLOCK_BYTES].fill(0);
        block[..size_of::<Self>()].copy_from_slice(self.as_bytes());
    }

    /// Reads the first block of the file that bears the number `segment`.
    pub(super) fn decode(block: &[u8], segment: u64) -> Start {
        let Ok((header, _)) = Self::read_from_prefix(block) else {
            return Start::NotBegun;
        };
        if header.magic != SEGMENT_MAGIC || header.checksum() != header.crc.get() {
            return Start::NotBegun;
        }
        if header.version.get() != VERSION {
            return Start::Version(header.version.get());
        }
        if header.segment.get() != segment {
            return Start::NotBegun;
        }
        Start::Begun(header)
    }
}

/// What tells a segment's bytes from those of every other use of the same file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seal {
    pub(super) life: u64,
    pub(super) segment: u64,
}

impl Seal {
    /// A checksum is affine, so adding a seed afterwards is as good as starting from one.
    fn seed(self) -> u32 {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.life.to_le_bytes());
        bytes[8..].copy_from_slice(&self.segment.to_le_bytes());
        crc32_iscsi(&bytes)
    }
}

/// The head of what one write carries.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct BatchHeader {
    magic: [u8; 4],
    /// Over every other byte.
    crc: U32,
    life: U64,
    segment: U64,
    /// The first record, or the next one to come if there is none.
    first: U64,
    /// Every record up to this one was flushed before this batch was written.
    durable: U64,
    records: U32,
    /// Of the records with their headers and padding.
    bytes: U32,
    flags: U32,
    reserved: [u8; 12],
}

const _: () = assert!(size_of::<BatchHeader>() == 64);

impl BatchHeader {
    pub(super) const BYTES: usize = size_of::<Self>();

    pub(super) fn new(seal: Seal, first: Lsn, durable: Lsn, flags: u32) -> Self {
        Self {
            magic: BATCH_MAGIC,
            crc: 0.into(),
            life: seal.life.into(),
            segment: seal.segment.into(),
            first: first.0.into(),
            durable: durable.0.into(),
            records: 0.into(),
            bytes: 0.into(),
            flags: flags.into(),
            reserved: [0; 12],
        }
    }

    fn checksum(mut self) -> u32 {
        self.crc = 0.into();
        crc32_iscsi(self.as_bytes())
    }

    pub(super) fn encode(mut self, records: u32, bytes: usize, out: &mut [u8]) {
        self.records = records.into();
        self.bytes = u32::try_from(bytes).expect("a batch is bounded").into();
        self.crc = self.checksum().into();
        out[..Self::BYTES].copy_from_slice(self.as_bytes());
    }

    /// The header at the start of `bytes` if it is one of segment number `segment`.
    pub(super) fn decode(bytes: &[u8], segment: u64) -> Option<Self> {
        let (header, rest) = Self::read_from_prefix(bytes).ok()?;
        let ours = header.magic == BATCH_MAGIC
            && header.segment.get() == segment
            && header.bytes.get() as usize <= rest.len()
            && header.checksum() == header.crc.get();
        ours.then_some(header)
    }

    pub(super) fn seal(&self) -> Seal {
        Seal {
            life: self.life.get(),
            segment: self.segment.get(),
        }
    }

    pub(super) fn first(&self) -> Lsn {
        Lsn(self.first.get())
    }

    pub(super) fn durable(&self) -> Lsn {
        Lsn(self.durable.get())
    }

    pub(super) fn last(&self) -> Lsn {
        Lsn((self.first.get() + u64::from(self.records.get())).saturating_sub(1))
    }

    pub(super) fn records(&self) -> u32 {
        self.records.get()
    }

    pub(super) fn segment_flushed(&self) -> bool {
        self.flags.get() & SEGMENT_FLUSHED != 0
    }

    /// The bytes from this header to the next one.
    pub(super) fn stride(&self) -> usize {
        (Self::BYTES + self.bytes.get() as usize).next_multiple_of(BLOCK_BYTES)
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RecordHeader {
    /// Over the rest of the header and the payload, with the seal's seed added.
    crc: U32,
    length: U32,
    lsn: U64,
}

const RECORD_HEADER_BYTES: usize = size_of::<RecordHeader>();
const _: () = assert!(RECORD_HEADER_BYTES == 16);

/// What a payload of `length` bytes takes in a batch.
pub(super) const fn record_bytes(length: usize) -> usize {
    RECORD_HEADER_BYTES + length.next_multiple_of(8)
}

/// Writes a record whose payload comes in two pieces, as a ring yields it; returns its length.
pub(super) fn encode_record(
    out: &mut [u8],
    seal: Seal,
    lsn: Lsn,
    payload: (&[u8], &[u8]),
) -> usize {
    let (head, tail) = payload;
    let length = head.len() + tail.len();
    let end = RECORD_HEADER_BYTES + length;
    let total = record_bytes(length);
    let mut header = RecordHeader {
        crc: 0.into(),
        length: u32::try_from(length).expect("a record is bounded").into(),
        lsn: lsn.0.into(),
    };
    out[..RECORD_HEADER_BYTES].copy_from_slice(header.as_bytes());
    out[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + head.len()].copy_from_slice(head);
    out[RECORD_HEADER_BYTES + head.len()..end].copy_from_slice(tail);
    out[end..total].fill(0);
    header.crc = (crc32_iscsi(&out[4..end]) ^ seal.seed()).into();
    out[..4].copy_from_slice(header.crc.as_bytes());
    total
}

/// The payload of record `lsn` at the start of `bytes`, and its length there, if it is whole.
pub(super) fn decode_record(bytes: &[u8], seal: Seal, lsn: Lsn) -> Option<(&[u8], usize)> {
    let (header, _) = RecordHeader::read_from_prefix(bytes).ok()?;
    let length = header.length.get() as usize;
    if header.lsn.get() != lsn.0 || length > MAX_RECORD_BYTES || record_bytes(length) > bytes.len()
    {
        return None;
    }
    let end = RECORD_HEADER_BYTES + length;
    let whole = crc32_iscsi(&bytes[4..end]) ^ seal.seed() == header.crc.get();
    (whole || mutated(Mutation::TornTailAccepted))
        .then(|| (&bytes[RECORD_HEADER_BYTES..end], record_bytes(length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEAL: Seal = Seal {
        life: 7,
        segment: 3,
    };

    #[test]
    fn a_record_reads_back_only_under_its_own_seal_and_number() {
        let mut bytes = [0xff; 64];
        let length = encode_record(&mut bytes, SEAL, Lsn(9), (b"hel", b"lo"));
        assert_eq!(length, 24);
        assert_eq!(
            decode_record(&bytes, SEAL, Lsn(9)),
            Some((&b"hello"[..], 24))
        );
        assert_eq!(decode_record(&bytes, SEAL, Lsn(10)), None);
        assert_eq!(
            decode_record(&bytes, Seal { life: 8, ..SEAL }, Lsn(9)),
            None
        );
        assert_eq!(
            decode_record(&bytes, Seal { segment: 4, ..SEAL }, Lsn(9)),
            None
        );
    }

    #[test]
    fn every_flipped_bit_of_a_record_is_noticed() {
        let mut bytes = [0; 32];
        encode_record(&mut bytes, SEAL, Lsn(9), (b"0123456789abcdef", b""));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_record(&bytes, SEAL, Lsn(9)), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_superheader_of_an_earlier_number_means_not_begun() {
        let mut block = vec![0; BLOCK_BYTES];
        Superheader::new(1, SEAL, Lsn(5), 1 << 20).encode(&mut block);
        assert!(matches!(Superheader::decode(&block, 3), Start::Begun(_)));
        assert!(matches!(Superheader::decode(&block, 4), Start::NotBegun));
        block[40] ^= 1;
        assert!(matches!(Superheader::decode(&block, 3), Start::NotBegun));
    }
}
