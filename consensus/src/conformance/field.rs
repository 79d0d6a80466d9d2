//! The fields of the header, as bytes: a packet that no parser takes has fields, too.

use crate::Ballot;
use crate::auth::{Key, SipHash};
use crate::wire::{Flags, HEADER_BYTES, Kind, TAG_OFFSET};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $offset:literal, $bytes:literal;)*) => {
        /// A field of the header.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Field { $($(#[$doc])* $name,)* }

        impl Field {
            /// Every field, in the order of the offsets.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name in `docs/protocol.md`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Where it begins.
            pub const fn offset(self) -> usize {
                match self { $(Self::$name => $offset,)* }
            }

            /// How many bytes it takes.
            pub const fn bytes(self) -> usize {
                match self { $(Self::$name => $bytes,)* }
            }
        }
    };
}

fields! {
    /// Whose packet it is.
    Magic = "magic", 0, 2;
    /// Of the wire format.
    Version = "version", 2, 1;
    /// What the packet says.
    Kind = "kind", 3, 1;
    /// Which log.
    Group = "group", 4, 2;
    /// Who sent it.
    Sender = "sender", 6, 2;
    /// The life of a memory.
    Incarnation = "incarnation", 8, 4;
    /// The membership.
    Epoch = "epoch", 12, 4;
    /// By kind.
    Slot = "slot", 16, 8;
    /// By kind.
    Ballot = "ballot", 24, 8;
    /// By kind.
    VoteBallot = "vote_ballot", 32, 8;
    /// By kind.
    Watermark = "watermark", 40, 8;
    /// Of the value.
    Length = "length", 48, 2;
    /// By kind.
    Flags = "flags", 50, 2;
    /// Echoed.
    Nonce = "nonce", 52, 4;
    /// Of authentication.
    Tag = "tag", 56, 8;
}

impl Field {
    /// The field of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|field| field.name() == name)
    }

    /// Reads it from a packet, big-endian; 0 past the packet's end.
    pub fn get(self, packet: &[u8]) -> u64 {
        let bytes = (self.offset()..self.offset() + self.bytes()).map(|at| packet.get(at).copied());
        bytes.fold(0, |sum, byte| sum << 8 | u64::from(byte.unwrap_or(0)))
    }

    /// Writes it into a packet. False if the number does not fit.
    pub fn put(self, packet: &mut [u8], number: u64) -> bool {
        let bytes = number.to_be_bytes();
        let (high, low) = bytes.split_at(8 - self.bytes());
        let end = self.offset() + self.bytes();
        match packet.get_mut(self.offset()..end) {
            Some(place) if high.iter().all(|byte| *byte == 0) => {
                place.copy_from_slice(low);
                true
            }
            _ => false,
        }
    }

    /// A number as people read this field.
    pub fn shown(self, number: u64) -> String {
        match self {
            Self::Magic => format!("{number:#06x}"),
            Self::Incarnation => format!("{number:#010x}"),
            Self::Tag => format!("{number:#018x}"),
            Self::Kind => match Kind::from_code(number as u8) {
                Some(kind) => format!("{kind:?}"),
                None => format!("{number}, which is no kind"),
            },
            Self::Ballot | Self::VoteBallot if number > 0xffff => Ballot(number).to_string(),
            Self::Flags => shown_flags(number),
            _ => number.to_string(),
        }
    }
}

/// Names of the flags, by bit.
pub(super) const FLAGS: [(&str, Flags); 5] = [
    ("ACK_WANTED", Flags::ACK_WANTED),
    ("LEASE", Flags::LEASE),
    ("RELEASE", Flags::RELEASE),
    ("QUERY", Flags::QUERY),
    ("NOW", Flags::NOW),
];

fn shown_flags(number: u64) -> String {
    if number == 0 {
        return "0".into();
    }
    if number & !u64::from(Flags::KNOWN.0) != 0 {
        return format!("{number:#06x}");
    }
    let set = FLAGS
        .iter()
        .filter(|(_, flag)| Flags(number as u16).has(*flag));
    let names: Vec<_> = set.map(|(name, _)| *name).collect();
    names.join("|")
}

/// The tag of a packet whose own tag does not count.
pub(super) fn tag(key: Key, packet: &[u8]) -> u64 {
    let mut bytes = packet.to_vec();
    if let Some(place) = bytes.get_mut(TAG_OFFSET..HEADER_BYTES) {
        place.fill(0);
    }
    let mut hash = SipHash::new(key.0);
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        hash.word(u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    match hash.finish_with(u64::from_le_bytes(last), rest.len() as u64) {
        0 => 1,
        tag => tag,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Header, MAGIC, VERSION};
    use crate::{GroupId, NodeId, auth};

    #[test]
    fn fields_follow_each_other_and_are_those_of_the_wire() {
        let mut at = 0;
        for field in Field::ALL {
            assert_eq!(field.offset(), at, "{}", field.name());
            at += field.bytes();
        }
        assert_eq!(at, HEADER_BYTES);
        let header = Header {
            nonce: 7,
            ..Header::new(Kind::Accept, GroupId(2), NodeId(3))
        };
        let bytes = header.to_bytes();
        for (field, number) in [
            (Field::Magic, u64::from(MAGIC)),
            (Field::Version, u64::from(VERSION)),
            (Field::Kind, Kind::Accept as u64),
            (Field::Group, 2),
            (Field::Sender, 3),
            (Field::Nonce, 7),
        ] {
            assert_eq!(field.get(&bytes), number, "{}", field.name());
        }
    }

    #[test]
    fn a_tag_over_bytes_is_the_tag_over_the_header() {
        let key = Key([1, 2]);
        for value in [&b""[..], b"abc", b"12345678"] {
            let header = Header {
                length: value.len() as u16,
                ..Header::new(Kind::Accept, GroupId(2), NodeId(3))
            };
            let packet = [&header.to_bytes()[..], value].concat();
            assert_eq!(tag(key, &packet), auth::tag(key, &header, value));
        }
    }
}
