//! What a log value holds: entries of client sessions, and the results that answer them.
//!
//! A Request's value already is a log value, so that a leader in the datapath turns a Request into
//! an Accept by rewriting the header alone. Both sequences are packed back to back, each item
//! padded with zeros to a multiple of eight bytes; integers are big-endian.
//!
//! Entry: session u64, sequence u64, length u16, kind u8, zero u8, behind u32, body.
//! Outcome: sequence u64, length u16, status u8, zero u8, zero u32, body.

use crate::{Sequence, SessionId};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of an entry's fixed part in bytes.
pub const ENTRY_BYTES: usize = 24;
/// Length of an outcome's fixed part in bytes.
pub const OUTCOME_BYTES: usize = 16;
/// Longest reply of a state machine in bytes: one datagram carries it.
pub const MAX_REPLY_BYTES: usize = 60_000;
/// How many sequences of one session may be unanswered at once.
pub const SESSION_WINDOW: u64 = 4096;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEntry {
    session: U64,
    sequence: U64,
    length: U16,
    kind: u8,
    zero: u8,
    behind: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawOutcome {
    sequence: U64,
    length: U16,
    status: u8,
    zero: [u8; 5],
}

const _: () = assert!(size_of::<RawEntry>() == ENTRY_BYTES);
const _: () = assert!(size_of::<RawOutcome>() == OUTCOME_BYTES);

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum EntryKind {
    /// A command of the state machine.
    Command = 1,
    /// Opens a session: `session` is a nonce of the client's choice, the log names the session.
    Open = 2,
    /// Moves the log's clock: `sequence` is Unix milliseconds. Only leaders write it.
    Clock = 3,
    /// A query; occurs in Requests with the query flag, never in the log.
    Query = 4,
}

impl EntryKind {
    const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Command),
            2 => Some(Self::Open),
            3 => Some(Self::Clock),
            4 => Some(Self::Query),
            _ => None,
        }
    }
}

/// One entry of a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry<'a> {
    /// What it is.
    pub kind: EntryKind,
    /// Whose it is; see [`EntryKind`].
    pub session: SessionId,
    /// Its place in the session; see [`EntryKind`].
    pub sequence: Sequence,
    /// The client no longer waits for anything below `sequence - behind`.
    pub behind: u32,
    /// The command or query.
    pub body: &'a [u8],
}

/// How an entry ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Status {
    /// Applied (or a query answered): the body is the machine's reply.
    Done = 0,
    /// Not applied: `sequence` is the next one that the session takes.
    OutOfOrder = 1,
    /// Not applied: no such session (it expired, or never was).
    UnknownSession = 2,
    /// Not applied: it does not fit a log value.
    TooLarge = 3,
    /// A session was opened: `sequence` is the client's nonce, the body its number (u64).
    Opened = 4,
    /// Not applied: too many sessions are open.
    TooManySessions = 5,
    /// The entry was applied once, but its reply is no longer kept.
    ReplyForgotten = 6,
}

impl Status {
    const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Done),
            1 => Some(Self::OutOfOrder),
            2 => Some(Self::UnknownSession),
            3 => Some(Self::TooLarge),
            4 => Some(Self::Opened),
            5 => Some(Self::TooManySessions),
            6 => Some(Self::ReplyForgotten),
            _ => None,
        }
    }
}

/// One outcome of a Response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome<'a> {
    /// Which entry it answers; see [`Status`].
    pub sequence: Sequence,
    /// How it ended.
    pub status: Status,
    /// The reply.
    pub body: &'a [u8],
}

const fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(8)
}

impl Entry<'_> {
    /// Length in bytes of an entry with a body of `body` bytes, padding included.
    pub const fn encoded_bytes(body: usize) -> usize {
        ENTRY_BYTES + padded(body)
    }

    /// Writes the entry at the front of `out` and returns its length, or `None` if it has no room.
    pub fn encode(&self, out: &mut [u8]) -> Option<usize> {
        let raw = RawEntry {
            session: U64::new(self.session.0),
            sequence: U64::new(self.sequence.0),
            length: U16::new(u16::try_from(self.body.len()).ok()?),
            kind: self.kind as u8,
            zero: 0,
            behind: U32::new(self.behind),
        };
        encode(raw.as_bytes(), self.body, out)
    }

    /// Appends the entry to `out`.
    #[cfg(feature = "alloc")]
    pub fn append(&self, out: &mut alloc::vec::Vec<u8>) {
        append(Self::encoded_bytes(self.body.len()), out, |room| {
            self.encode(room)
        });
    }
}

impl Outcome<'_> {
    /// Length in bytes of an outcome with a body of `body` bytes, padding included.
    pub const fn encoded_bytes(body: usize) -> usize {
        OUTCOME_BYTES + padded(body)
    }

    /// Writes the outcome at the front of `out` and returns its length, or `None` if it has no
    /// room.
    pub fn encode(&self, out: &mut [u8]) -> Option<usize> {
        let raw = RawOutcome {
            sequence: U64::new(self.sequence.0),
            length: U16::new(u16::try_from(self.body.len()).ok()?),
            status: self.status as u8,
            zero: [0; 5],
        };
        encode(raw.as_bytes(), self.body, out)
    }

    /// Appends the outcome to `out`.
    #[cfg(feature = "alloc")]
    pub fn append(&self, out: &mut alloc::vec::Vec<u8>) {
        append(Self::encoded_bytes(self.body.len()), out, |room| {
            self.encode(room)
        });
    }
}

fn encode(fixed: &[u8], body: &[u8], out: &mut [u8]) -> Option<usize> {
    let bytes = fixed.len() + padded(body.len());
    let (head, rest) = out.get_mut(..bytes)?.split_at_mut_checked(fixed.len())?;
    let (text, padding) = rest.split_at_mut_checked(body.len())?;
    head.copy_from_slice(fixed);
    text.copy_from_slice(body);
    padding.fill(0);
    Some(bytes)
}

#[cfg(feature = "alloc")]
fn append(
    bytes: usize,
    out: &mut alloc::vec::Vec<u8>,
    write: impl FnOnce(&mut [u8]) -> Option<usize>,
) {
    let start = out.len();
    out.resize(start + bytes, 0);
    let written = out.get_mut(start..).and_then(write);
    debug_assert_eq!(
        written,
        Some(bytes),
        "the caller bounds the body to 65,535 bytes"
    );
}

/// The bytes are not a sequence of entries or outcomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("decode envelope: malformed at byte {at}")]
pub struct Malformed {
    /// Where the first bad item starts.
    pub at: usize,
}

/// Walks packed entries; stops after the first malformed one.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// The entries of a log value or of a Request.
pub const fn entries(bytes: &[u8]) -> Entries<'_> {
    Entries { bytes, at: 0 }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.bytes.get(self.at..).filter(|rest| !rest.is_empty())?;
        let decoded = RawEntry::ref_from_prefix(rest)
            .ok()
            .and_then(|(raw, tail)| {
                let length = usize::from(raw.length.get());
                let entry = Entry {
                    kind: EntryKind::from_code(raw.kind)?,
                    session: SessionId(raw.session.get()),
                    sequence: Sequence(raw.sequence.get()),
                    behind: raw.behind.get(),
                    body: tail.get(..length)?,
                };
                (padded(length) <= tail.len()).then_some((entry, Entry::encoded_bytes(length)))
            });
        Some(advance(decoded, &mut self.at, self.bytes.len()))
    }
}

/// Walks packed outcomes; stops after the first malformed one.
#[derive(Clone, Debug)]
pub struct Outcomes<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// The outcomes of a Response.
pub const fn outcomes(bytes: &[u8]) -> Outcomes<'_> {
    Outcomes { bytes, at: 0 }
}

impl<'a> Iterator for Outcomes<'a> {
    type Item = Result<Outcome<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.bytes.get(self.at..).filter(|rest| !rest.is_empty())?;
        let decoded = RawOutcome::ref_from_prefix(rest)
            .ok()
            .and_then(|(raw, tail)| {
                let length = usize::from(raw.length.get());
                let outcome = Outcome {
                    sequence: Sequence(raw.sequence.get()),
                    status: Status::from_code(raw.status)?,
                    body: tail.get(..length)?,
                };
                (padded(length) <= tail.len()).then_some((outcome, Outcome::encoded_bytes(length)))
            });
        Some(advance(decoded, &mut self.at, self.bytes.len()))
    }
}

fn advance<T>(decoded: Option<(T, usize)>, at: &mut usize, end: usize) -> Result<T, Malformed> {
    match decoded {
        Some((item, bytes)) => {
            *at += bytes;
            Ok(item)
        }
        None => {
            let bad = *at;
            *at = end;
            Err(Malformed { at: bad })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn entry(body: &[u8]) -> Entry<'_> {
        Entry {
            kind: EntryKind::Command,
            session: SessionId(7),
            sequence: Sequence(9),
            behind: 3,
            body,
        }
    }

    #[test]
    fn entries_come_back_in_order() {
        let mut bytes = Vec::new();
        entry(b"one").append(&mut bytes);
        entry(b"").append(&mut bytes);
        entry(b"12345678").append(&mut bytes);
        let bodies: Vec<_> = entries(&bytes)
            .map(|e| e.expect("well formed").body)
            .collect();
        assert_eq!(bodies, [&b"one"[..], b"", b"12345678"]);
        assert_eq!(bytes.len(), 24 + 8 + 24 + 24 + 8);
    }

    #[test]
    fn an_entry_that_is_cut_off_ends_the_walk_with_its_place() {
        let mut bytes = Vec::new();
        entry(b"one").append(&mut bytes);
        entry(b"two").append(&mut bytes);
        let mut walk = entries(&bytes[..bytes.len() - 1]);
        assert!(walk.next().is_some_and(|first| first.is_ok()));
        assert_eq!(walk.next(), Some(Err(Malformed { at: 32 })));
        assert_eq!(walk.next(), None);
    }

    #[test]
    fn an_entry_without_room_is_not_written() {
        assert_eq!(entry(b"body").encode(&mut [0; 31]), None);
        assert_eq!(entry(b"body").encode(&mut [0; 32]), Some(32));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_walks_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = entries(&bytes).count();
            let _ = outcomes(&bytes).count();
        }

        #[test]
        fn outcomes_round_trip(bodies in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..50), 0..8)) {
            let mut bytes = Vec::new();
            for (i, body) in bodies.iter().enumerate() {
                Outcome { sequence: Sequence(i as u64), status: Status::Done, body }
                    .append(&mut bytes);
            }
            let back: Vec<Vec<u8>> =
                outcomes(&bytes).map(|o| o.expect("well formed").body.to_vec()).collect();
            prop_assert_eq!(back, bodies);
        }
    }
}
