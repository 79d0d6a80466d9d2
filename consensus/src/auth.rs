//! SipHash-2-4 (Aumasson and Bernstein 2012) over header and value.
//!
//! Written here rather than taken from a crate because the same source must compile for BPF, where
//! nothing may panic and every loop is bounded; tests compare it with the `siphasher` crate.

use crate::simulation::{Mutation, mutated};
use crate::wire::Header;

/// A cluster's 128-bit key, as two words.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key(pub [u64; 2]);

impl core::fmt::Debug for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// The key from its 16 bytes, as SipHash reads them.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self([
            u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            u64::from_le_bytes([i, j, k, l, m, n, o, p]),
        ])
    }

    /// A short name by which people tell keys apart: no packet's tag, since none is so short, and
    /// nothing to guess the key from.
    pub const fn fingerprint(self) -> u32 {
        SipHash::new(self.0).finish() as u32
    }
}

/// The keys of a cluster: more than one only while one takes the other's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    /// Packets that are sent carry its tag.
    pub signs: Key,
    /// Packets with its tag are taken as well.
    pub also: Option<Key>,
}

impl From<Key> for Keys {
    fn from(signs: Key) -> Self {
        Self { signs, also: None }
    }
}

impl Keys {
    /// Whether a parsed packet carries the tag of either.
    pub fn is_authentic(&self, header: &Header, value: &[u8]) -> bool {
        let is_of = |key| is_authentic(key, header, value);
        is_of(self.signs) || self.also.is_some_and(is_of)
    }
}

/// SipHash-2-4 over whole words, then up to seven bytes.
#[derive(Clone, Debug)]
pub struct SipHash {
    v: [u64; 4],
    words: u64,
}

impl SipHash {
    /// Starts a hash under `key`.
    #[inline(always)]
    pub const fn new(key: [u64; 2]) -> Self {
        let [k0, k1] = key;
        Self {
            v: [
                k0 ^ 0x736f_6d65_7073_6575,
                k1 ^ 0x646f_7261_6e64_6f6d,
                k0 ^ 0x6c79_6765_6e65_7261,
                k1 ^ 0x7465_6462_7974_6573,
            ],
            words: 0,
        }
    }

    #[inline(always)]
    const fn round(&mut self) {
        let [mut a, mut b, mut c, mut d] = self.v;
        a = a.wrapping_add(b);
        b = b.rotate_left(13) ^ a;
        a = a.rotate_left(32);
        c = c.wrapping_add(d);
        d = d.rotate_left(16) ^ c;
        a = a.wrapping_add(d);
        d = d.rotate_left(21) ^ a;
        c = c.wrapping_add(b);
        b = b.rotate_left(17) ^ c;
        c = c.rotate_left(32);
        self.v = [a, b, c, d];
    }

    #[inline(always)]
    const fn compress(&mut self, word: u64) {
        self.v[3] ^= word;
        self.round();
        self.round();
        self.v[0] ^= word;
    }

    /// Takes eight bytes, read as a little-endian word.
    #[inline(always)]
    pub const fn word(&mut self, word: u64) {
        self.compress(word);
        self.words = self.words.wrapping_add(1);
    }

    /// The tag of a message of whole words.
    #[inline(always)]
    pub const fn finish(self) -> u64 {
        self.finish_with(0, 0)
    }

    /// The tag of a message that ends with `count < 8` bytes, the low ones of `rest`.
    #[inline(always)]
    pub const fn finish_with(mut self, rest: u64, count: u64) -> u64 {
        let length = self.words.wrapping_mul(8).wrapping_add(count);
        self.compress(rest | length << 56);
        self.v[2] ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.round();
        self.v[0] ^ self.v[1] ^ self.v[2] ^ self.v[3]
    }
}

/// The tag of a packet: over the header with a zero tag, then the value.
pub fn tag(key: Key, header: &Header, value: &[u8]) -> u64 {
    let mut hash = begun(key, header);
    if mutated(Mutation::ValueUntagged) {
        return ended(hash, 0, 0);
    }
    let (words, rest) = value.as_chunks::<8>();
    for word in words {
        hash.word(u64::from_le_bytes(*word));
    }
    let mut last = 0;
    for (index, byte) in rest.iter().enumerate() {
        last |= u64::from(*byte) << (8 * index);
    }
    ended(hash, last, rest.len() as u64)
}

/// The tag of a packet whose value is reached by words, as [`crate::memory::Payload`] has them.
/// `None` if one of them is not there.
#[inline(always)]
pub fn tag_of_words(
    key: Key,
    header: &Header,
    word: impl Fn(usize, usize) -> Option<u64>,
) -> Option<u64> {
    let mut hash = begun(key, header);
    let length = if mutated(Mutation::ValueUntagged) {
        0
    } else {
        usize::from(header.length)
    };
    let words = length / 8;
    let mut index = 0;
    // What varies stands on the left: before Linux 6.4 BPF's verifier does not see that a loop ends
    // if it stands on the right of a number that the verifier knows.
    while words > index {
        hash.word(u64::from_le(word(index, 8)?));
        index += 1;
    }
    let rest = length % 8;
    let last = if rest == 0 {
        0
    } else {
        u64::from_le(word(words, rest)?)
    };
    Some(ended(hash, last, rest as u64))
}

#[inline(always)]
fn begun(key: Key, header: &Header) -> SipHash {
    let mut hash = SipHash::new(key.0);
    for word in (Header { tag: 0, ..*header }).to_words() {
        hash.word(u64::from_le(word));
    }
    hash
}

/// Zero means "no tag" on the wire.
#[inline(always)]
fn ended(hash: SipHash, last: u64, count: u64) -> u64 {
    hash.finish_with(last, count).max(1)
}

/// Whether a parsed packet carries the tag of `key`.
pub fn is_authentic(key: Key, header: &Header, value: &[u8]) -> bool {
    // One comparison of whole words: no byte-wise early exit to time.
    tag(key, header, value) == header.tag
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Buffers, Payload as _};
    use crate::wire::Kind;
    use crate::{GroupId, NodeId};
    use core::hash::Hasher;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_siphash_2_4(
            key in any::<[u8; 16]>(),
            value in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let header = Header { nonce: 5, ..Header::new(Kind::Accept, GroupId(1), NodeId(2)) };
            let mut reference = siphasher::sip::SipHasher24::new_with_key(&key);
            reference.write(&header.to_bytes());
            reference.write(&value);
            prop_assert_eq!(tag(Key::from_bytes(key), &header, &value), reference.finish().max(1));

            let buffers = Buffers { request: &value, reply: &mut [] };
            let header = Header { length: value.len() as u16, ..header };
            prop_assert_eq!(
                tag_of_words(Key::from_bytes(key), &header, |index, bytes| buffers.word(index, bytes)),
                Some(tag(Key::from_bytes(key), &header, &value))
            );
        }
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let key = Key([1, 2]);
        let mut header = Header::new(Kind::Accept, GroupId(1), NodeId(2));
        header.tag = tag(key, &header, b"value");
        assert!(is_authentic(key, &header, b"value"));
        assert!(!is_authentic(key, &header, b"Value"));
        assert!(!is_authentic(key, &Header { nonce: 1, ..header }, b"value"));
        assert!(!is_authentic(Key([1, 3]), &header, b"value"));
    }

    #[test]
    fn either_key_of_two_is_taken_and_no_third() {
        let (old, new, other) = (Key([1, 2]), Key([3, 4]), Key([5, 6]));
        let mut header = Header::new(Kind::Accept, GroupId(1), NodeId(2));
        let taken = |keys: Keys, header: &Header| keys.is_authentic(header, b"value");
        let both = Keys {
            signs: old,
            also: Some(new),
        };
        for (key, by_both, by_old) in [(old, true, true), (new, true, false), (other, false, false)]
        {
            header.tag = tag(key, &header, b"value");
            assert_eq!(taken(both, &header), by_both);
            assert_eq!(taken(old.into(), &header), by_old);
        }
    }
}
