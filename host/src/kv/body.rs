//! The bytes of a command or query, as they stand in the log.
//!
//! A single command is its [`Op`] (one byte), then each argument as a length (LEB128, at most five
//! bytes) and that many bytes, to the end of the body: `SET k v` is `02 01 6b 01 76`. The name of
//! the command is not an argument. A transaction is the byte `ff`, then each part as a length and a
//! single command.

use super::arguments::Arguments;

/// The first byte of a transaction.
pub const TRANSACTION: u8 = 0xff;

/// What the machine can do. The numbers stand in logs and never change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Op {
    /// The value of a key.
    Get = 1,
    /// Sets a key.
    Set = 2,
    /// The values of several keys.
    Mget = 3,
    /// Sets several keys.
    Mset = 4,
    /// Removes keys.
    Del = 5,
    /// How many of the keys exist.
    Exists = 6,
    /// Adds one.
    Incr = 7,
    /// Subtracts one.
    Decr = 8,
    /// Adds a number.
    Incrby = 9,
    /// Subtracts a number.
    Decrby = 10,
    /// Appends to a value.
    Append = 11,
    /// The length of a value.
    Strlen = 12,
    /// The value of a key, which is removed.
    Getdel = 13,
    /// Sets a time to live in seconds.
    Expire = 14,
    /// Sets a time to live in milliseconds.
    Pexpire = 15,
    /// The time to live in seconds.
    Ttl = 16,
    /// The time to live in milliseconds.
    Pttl = 17,
    /// Removes the time to live.
    Persist = 18,
    /// Walks the keys.
    Scan = 19,
    /// How many keys there are.
    Dbsize = 20,
    /// The type of a value.
    Type = 21,
}

impl Op {
    const ALL: [Self; 21] = [
        Self::Get,
        Self::Set,
        Self::Mget,
        Self::Mset,
        Self::Del,
        Self::Exists,
        Self::Incr,
        Self::Decr,
        Self::Incrby,
        Self::Decrby,
        Self::Append,
        Self::Strlen,
        Self::Getdel,
        Self::Expire,
        Self::Pexpire,
        Self::Ttl,
        Self::Pttl,
        Self::Persist,
        Self::Scan,
        Self::Dbsize,
        Self::Type,
    ];

    /// The keys among the words of a command.
    pub fn keys<'a>(self, words: &'a [&'a [u8]]) -> impl Iterator<Item = &'a [u8]> + 'a {
        let (first, count, step) = match self {
            Self::Scan | Self::Dbsize => (1, 0, 1),
            Self::Mset => (1, usize::MAX, 2),
            Self::Mget | Self::Del | Self::Exists => (1, usize::MAX, 1),
            Self::Get
            | Self::Set
            | Self::Incr
            | Self::Decr
            | Self::Incrby
            | Self::Decrby
            | Self::Append
            | Self::Strlen
            | Self::Getdel
            | Self::Expire
            | Self::Pexpire
            | Self::Ttl
            | Self::Pttl
            | Self::Persist
            | Self::Type => (1, 1, 1),
        };
        words.iter().skip(first).step_by(step).take(count).copied()
    }

    fn from_code(code: u8) -> Option<Self> {
        let op = *Self::ALL.get(usize::from(code).checked_sub(1)?)?;
        debug_assert_eq!(op as u8, code, "the table is in the order of the numbers");
        Some(op)
    }
}

/// One command with its arguments, not yet looked into.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// What to do.
    pub op: Op,
    /// With what; the command's name is not among them.
    pub arguments: Arguments<'a>,
}

impl<'a> Call<'a> {
    /// Length in bytes of [`Self::encode`]'s output.
    pub fn encoded_bytes(&self) -> usize {
        1 + self
            .arguments
            .iter()
            .map(|word| length_bytes(word.len()) + word.len())
            .sum::<usize>()
    }

    /// Appends the body to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.op as u8);
        for word in self.arguments.iter() {
            put_length(out, word.len());
            out.extend_from_slice(word);
        }
    }

    /// The body on its own.
    pub fn to_body(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.encoded_bytes());
        self.encode(&mut body);
        body
    }

    fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (&code, mut rest) = bytes.split_first()?;
        let op = Op::from_code(code)?;
        let mut whole = true;
        let words = std::iter::from_fn(|| {
            if rest.is_empty() {
                return None;
            }
            let word = take_word(&mut rest);
            whole = word.is_some();
            word
        });
        let arguments = words.collect();
        whole.then_some(Self { op, arguments })
    }
}

/// A decoded body.
#[derive(Clone, Debug)]
pub enum Body<'a> {
    /// One command.
    Single(Call<'a>),
    /// Several, applied as one.
    Transaction(Vec<Call<'a>>),
}

impl<'a> Body<'a> {
    /// Reads a body; `None` if it is not one.
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let Some((&TRANSACTION, mut rest)) = bytes.split_first() else {
            return Call::decode(bytes).map(Self::Single);
        };
        let mut parts = Vec::new();
        while !rest.is_empty() {
            parts.push(Call::decode(take_word(&mut rest)?)?);
        }
        Some(Self::Transaction(parts))
    }
}

/// Appends one part to a body that starts with [`TRANSACTION`].
pub fn append_part(body: &mut Vec<u8>, part: &Call<'_>) {
    put_length(body, part.encoded_bytes());
    part.encode(body);
}

fn length_bytes(length: usize) -> usize {
    (usize::BITS - (length | 1).leading_zeros()).div_ceil(7) as usize
}

fn put_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

fn take_word<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let mut length = 0usize;
    for place in 0..5 {
        let byte = *rest.get(place)?;
        length |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            let (word, tail) = rest[place + 1..].split_at_checked(length)?;
            *rest = tail;
            return Some(word);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn call<'a>(op: Op, words: &[&'a [u8]]) -> Call<'a> {
        Call {
            op,
            arguments: words.iter().copied().collect(),
        }
    }

    #[test]
    fn the_documented_bytes_are_the_bytes() {
        assert_eq!(
            call(Op::Set, &[b"k", b"v"]).to_body(),
            [2, 1, b'k', 1, b'v']
        );
        let mut body = vec![TRANSACTION];
        append_part(&mut body, &call(Op::Dbsize, &[]));
        append_part(&mut body, &call(Op::Get, &[b"k"]));
        assert_eq!(body, [0xff, 1, 20, 3, 1, 1, b'k']);
    }

    #[test]
    fn every_number_names_the_op_that_has_it() {
        for (at, op) in Op::ALL.into_iter().enumerate() {
            assert_eq!(op as usize, at + 1);
            assert_eq!(Op::from_code(op as u8), Some(op));
        }
        assert_eq!(Op::from_code(0), None);
        assert_eq!(Op::from_code(22), None);
    }

    proptest! {
        #[test]
        fn bodies_round_trip(words in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..300), 0..12)) {
            let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
            let body = call(Op::Mget, &words).to_body();
            prop_assert_eq!(body.len(), call(Op::Mget, &words).encoded_bytes());
            let Some(Body::Single(back)) = Body::decode(&body) else { panic!("decodes") };
            prop_assert_eq!(&back.arguments[..], &words[..]);
            let mut parts = vec![TRANSACTION];
            append_part(&mut parts, &back);
            append_part(&mut parts, &back);
            let Some(Body::Transaction(back)) = Body::decode(&parts) else { panic!("decodes") };
            prop_assert_eq!(back.len(), 2);
            prop_assert_eq!(&back[1].arguments[..], &words[..]);
        }

        #[test]
        fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = Body::decode(&bytes);
        }
    }
}
