//! Keys in the one order that every replica has: by a fixed hash, then by name.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::sync::Arc;

/// Bits of a key's hash: few enough that a SCAN cursor survives a client that holds it in a double.
pub(super) const HASH_BITS: u32 = 53;

/// A key with its place in the order.
#[derive(Clone, Debug)]
pub(super) struct Key {
    hash: u64,
    name: Arc<[u8]>,
}

/// A key that is looked up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe<'a> {
    hash: u64,
    name: &'a [u8],
}

impl Key {
    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn name(&self) -> &[u8] {
        &self.name
    }
}

impl<'a> Probe<'a> {
    pub(super) fn new(name: &'a [u8]) -> Self {
        Self {
            hash: hash(name),
            name,
        }
    }

    /// Comes before every key of that hash and after every key of a lower one.
    pub(super) fn first_of(hash: u64) -> Self {
        Self { hash, name: &[] }
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn to_key(self) -> Key {
        Key {
            hash: self.hash,
            name: self.name.into(),
        }
    }
}

/// Where a key stands; lets a map of [`Key`]s be asked with a [`Probe`].
pub(super) trait Place {
    fn place(&self) -> (u64, &[u8]);
}

impl Place for Key {
    fn place(&self) -> (u64, &[u8]) {
        (self.hash, &self.name)
    }
}

impl Place for Probe<'_> {
    fn place(&self) -> (u64, &[u8]) {
        (self.hash, self.name)
    }
}

impl<'a> Borrow<dyn Place + 'a> for Key {
    fn borrow(&self) -> &(dyn Place + 'a) {
        self
    }
}

impl PartialEq for dyn Place + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for dyn Place + '_ {}

impl PartialOrd for dyn Place + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for dyn Place + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

/// `MurmurHash64A` with seed 0, its high bits, and never 0, which is the cursor that ends a SCAN.
/// The order of keys is part of the snapshot format and of every cursor a client holds, so this
/// never changes.
fn hash(name: &[u8]) -> u64 {
    const M: u64 = 0xc6a4_a793_5bd1_e995;
    const R: u32 = 47;
    let mut h = (name.len() as u64).wrapping_mul(M);
    let (words, tail) = name.as_chunks::<8>();
    for word in words {
        let mut k = u64::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        h = (h ^ k.wrapping_mul(M)).wrapping_mul(M);
    }
    if !tail.is_empty() {
        let mut last = [0; 8];
        last[..tail.len()].copy_from_slice(tail);
        h = (h ^ u64::from_le_bytes(last)).wrapping_mul(M);
    }
    h ^= h >> R;
    h = h.wrapping_mul(M);
    h ^= h >> R;
    (h >> (64 - HASH_BITS)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_never_changes() {
        let hashes: Vec<u64> = [&b""[..], b"a", b"foobar", b"12345678", b"123456789"]
            .map(hash)
            .into();
        assert_eq!(
            hashes,
            [
                1,
                249_464_490_716_525,
                7_480_977_305_901_812,
                4_136_281_041_557_082,
                2_584_853_594_385_640
            ],
            "cursors and snapshots depend on the order of keys"
        );
    }
}
