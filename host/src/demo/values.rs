//! What is written: every key once, every value known from its key.

use crate::kv;

/// Length in bytes of every value.
pub(super) const VALUE_BYTES: usize = 64;
/// Keys of one query: the longest such query fits a Request of a region's default dimensions.
pub(super) const KEYS_PER_QUERY: u64 = 64;

/// The keys and values of one run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Values {
    /// Another run's values are others.
    pub(super) seed: u64,
}

impl Values {
    fn key(index: u64) -> [u8; 16] {
        let mut key = *b"demo:00000000000";
        let mut left = index;
        for digit in key[5..].iter_mut().rev() {
            *digit = b'0' + (left % 10) as u8;
            left /= 10;
        }
        key
    }

    /// The value of write `index`.
    pub(super) fn value(self, index: u64) -> [u8; VALUE_BYTES] {
        let mut value = [0; VALUE_BYTES];
        let mut word = self.seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for bytes in value.as_chunks_mut::<8>().0 {
            // Xorshift (Marsaglia 2003); a word of zeros would stay one.
            word |= u64::from(word == 0);
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            *bytes = word.to_be_bytes();
        }
        value
    }

    /// The command of write `index`.
    pub(super) fn set(self, index: u64) -> Vec<u8> {
        let words: [&[u8]; 3] = [b"SET", &Self::key(index), &self.value(index)];
        let (_, body) = kv::encode(&words).expect("SET takes a key and a value");
        body
    }

    /// The query for the values of writes `first` up to `end`.
    pub(super) fn query(first: u64, end: u64) -> Vec<u8> {
        let keys: Vec<_> = (first..end).map(Self::key).collect();
        let mut words: Vec<&[u8]> = vec![b"MGET"];
        words.extend(keys.iter().map(<[u8; 16]>::as_slice));
        let (_, body) = kv::encode(&words).expect("MGET takes keys");
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use consensus::envelope::Entry;

    #[test]
    fn the_longest_query_fits_a_request() {
        let longest = Values::query(u64::MAX - KEYS_PER_QUERY, u64::MAX);
        let limit = crate::client::Options::default().max_value;
        assert!(
            Entry::encoded_bytes(longest.len()) <= limit,
            "{} of {limit}",
            longest.len()
        );
    }

    #[test]
    fn keys_and_values_differ_from_write_to_write_and_values_from_run_to_run() {
        let values = Values { seed: 7 };
        assert_ne!(Values::key(1), Values::key(10));
        assert_eq!(&Values::key(12), b"demo:00000000012");
        assert_ne!(values.value(1), values.value(2));
        assert_ne!(values.value(1), Values { seed: 8 }.value(1));
    }
}
