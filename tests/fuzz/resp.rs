//! What Redis clients send.

use crate::{Script, fuzz};
use nearwire::resp::{Limits, Parser, ProtocolError};

const LIMITS: Limits = Limits {
    bulk_bytes: 512,
    request_bytes: 1 << 10,
    is_stranger: false,
};

/// What requests are made of.
const WORDS: [&[u8]; 16] = [
    b"*",
    b"$",
    b"\r\n",
    b"0",
    b"1",
    b"2",
    b"3",
    b"-1",
    b"\r",
    b"\n",
    b"\"",
    b"'",
    b"\\x4",
    b" ",
    b"*2\r\n$3\r\nGET\r\n",
    b"$1\r\na\r\n",
];

/// The requests of a stream that comes in such pieces, and how it ended.
fn requests<'a>(
    pieces: impl Iterator<Item = &'a [u8]>,
) -> (Vec<Vec<Vec<u8>>>, Result<usize, ProtocolError>) {
    let mut parser = Parser::new(LIMITS);
    let mut buffer: Vec<u8> = Vec::new();
    let mut all = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            let taken = match parser.next(&buffer) {
                Ok(None) => break,
                Ok(Some(request)) => {
                    all.push(request.words().map(<[u8]>::to_vec).collect());
                    request.bytes
                }
                Err(error) => return (all, Err(error)),
            };
            assert!(taken > 0 && taken <= buffer.len(), "it takes what is there");
            buffer.drain(..taken);
        }
    }
    (all, Ok(buffer.len()))
}

/// Where a stream is cut makes no difference.
fn stream(input: &[u8]) {
    let mut script = Script(input);
    let cut = usize::from(script.byte() % 16) + 1;
    let plain = script.byte() % 4 == 0;
    let bytes = match plain {
        true => script.0.to_vec(),
        false => {
            let words = script.0.iter().map(|byte| WORDS[usize::from(byte % 16)]);
            words.collect::<Vec<_>>().concat()
        }
    };
    let whole = requests(std::iter::once(bytes.as_slice()));
    assert_eq!(requests(bytes.chunks(cut)), whole);
}

#[test]
fn a_stream_means_the_same_wherever_it_is_cut() {
    fuzz("resp", stream);
}
