//! Reads requests out of a stream: arrays of bulk strings, and lines typed by hand.
//!
//! The words stay where they are in the read buffer; only a typed line, whose quotes are undone,
//! is copied. A request that comes in pieces is taken up where it was left.

use std::fmt;
use std::ops::Range;

/// Most words of one request, as in Redis.
pub const MAX_WORDS: usize = 1024 * 1024;
/// Longest line that is not a bulk string, as in Redis.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// The stream is no longer understood: the error is answered and the connection closed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("Protocol error: {0}")]
pub struct ProtocolError(pub Complaint);

/// What is wrong, in Redis' words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Complaint {
    /// A typed line without an end.
    BigInlineRequest,
    /// A typed line whose quotes do not match.
    UnbalancedQuotes,
    /// An array's head without an end.
    BigMultibulkCount,
    /// An array's head that is no number, or too large.
    InvalidMultibulkLength,
    /// A bulk string's head without an end.
    BigBulkCount,
    /// Something else than a bulk string in an array.
    ExpectedBulk(u8),
    /// A bulk string's head that is no number, or too large.
    InvalidBulkLength,
    /// An array that is too long for a client that has not said who it is.
    StrangersMultibulkLength,
    /// A bulk string that is too long for such a client.
    StrangersBulkLength,
    /// A request that is too long as a whole.
    BigRequest,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BigInlineRequest => "too big inline request",
            Self::UnbalancedQuotes => "unbalanced quotes in request",
            Self::BigMultibulkCount => "too big mbulk count string",
            Self::InvalidMultibulkLength => "invalid multibulk length",
            Self::BigBulkCount => "too big bulk count string",
            Self::ExpectedBulk(got) => {
                let got = match got {
                    0x20..=0x7e => char::from(*got),
                    _ => '?',
                };
                return write!(f, "expected '$', got '{got}'");
            }
            Self::InvalidBulkLength => "invalid bulk length",
            Self::StrangersMultibulkLength => "unauthenticated multibulk length",
            Self::StrangersBulkLength => "unauthenticated bulk length",
            Self::BigRequest => "too big request",
        })
    }
}

/// How long requests may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Longest bulk string in bytes.
    pub bulk_bytes: usize,
    /// Longest request in bytes, heads included.
    pub request_bytes: usize,
    /// The client has still to say who it is: at most ten words for a request.
    pub is_stranger: bool,
}

/// As many words as memory is kept for between requests.
const KEPT_WORDS: usize = 1024;
/// Most words of a request before the client has said who it is, as in Redis.
const STRANGERS_WORDS: usize = 10;

impl Limits {
    /// For clients that have still to say who they are; words and bulk strings as in Redis.
    pub const STRANGER: Self = Self {
        bulk_bytes: 16 * 1024,
        request_bytes: 64 * 1024,
        is_stranger: true,
    };
}

/// Where the reader stands within one request.
#[derive(Debug)]
pub struct Parser {
    limits: Limits,
    /// How far the request has been read.
    at: usize,
    stage: Stage,
    words: Vec<Range<usize>>,
    /// The words of a typed line, their quotes undone.
    typed: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Start,
    /// So many bulk strings are still to come.
    Heads(usize),
    /// A bulk string of that length, and as many more behind it.
    Bulk(usize, usize),
}

/// A whole request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// How many bytes of the buffer it took.
    pub bytes: usize,
    source: &'a [u8],
    words: &'a [Range<usize>],
}

impl<'a> Request<'a> {
    /// Its words; none for an empty line or array, which is not answered.
    pub fn words(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let source = self.source;
        self.words.iter().map(move |word| &source[word.clone()])
    }
}

impl Parser {
    /// A reader at the start of a request.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            at: 0,
            stage: Stage::Start,
            words: Vec::new(),
            typed: Vec::new(),
        }
    }

    /// Has the next request keep within these limits.
    pub fn limit(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The words of the last request are needed no more: memory for very many is given back.
    pub fn rest(&mut self) {
        self.words.clear();
        self.words.shrink_to(KEPT_WORDS);
    }

    /// Reads one request from the front of `buffer`, or `None` if more bytes are needed; then the
    /// next call has the same bytes in front. After a request the caller drops its bytes.
    ///
    /// # Errors
    /// What Redis would close the connection for.
    pub fn next<'a>(&'a mut self, buffer: &'a [u8]) -> Result<Option<Request<'a>>, ProtocolError> {
        // What lies beyond the limit is not looked at even if it is there already, so that it does
        // not matter in which pieces a request comes.
        let within = &buffer[..buffer.len().min(self.limits.request_bytes)];
        match self.advance(within) {
            Ok(None) if buffer.len() > within.len() => Err(ProtocolError(Complaint::BigRequest)),
            Ok(None) => Ok(None),
            Ok(Some(typed)) => {
                let bytes = std::mem::take(&mut self.at);
                self.stage = Stage::Start;
                let source = if typed { &self.typed } else { buffer };
                Ok(Some(Request {
                    bytes,
                    source,
                    words: &self.words,
                }))
            }
            Err(complaint) => Err(ProtocolError(complaint)),
        }
    }

    /// Says whether the request is a typed line once it is whole.
    fn advance(&mut self, buffer: &[u8]) -> Result<Option<bool>, Complaint> {
        loop {
            match self.stage {
                Stage::Start => {
                    let Some(&first) = buffer.first() else {
                        return Ok(None);
                    };
                    self.words.clear();
                    if first != b'*' {
                        return self.typed_line(buffer);
                    }
                    let Some(line) = self.line(buffer, Complaint::BigMultibulkCount)? else {
                        return Ok(None);
                    };
                    let count = number(&buffer[line])
                        .filter(|count| *count <= MAX_WORDS as i64)
                        .ok_or(Complaint::InvalidMultibulkLength)?;
                    if self.limits.is_stranger && count > STRANGERS_WORDS as i64 {
                        return Err(Complaint::StrangersMultibulkLength);
                    }
                    self.stage = Stage::Heads(usize::try_from(count).unwrap_or(0));
                }
                Stage::Heads(0) => return Ok(Some(false)),
                Stage::Heads(left) => {
                    let Some(line) = self.line(buffer, Complaint::BigBulkCount)? else {
                        return Ok(None);
                    };
                    // Redis waits for the whole line before it looks at its first byte, too.
                    let head = buffer[line.start - 1];
                    if head != b'$' {
                        return Err(Complaint::ExpectedBulk(head));
                    }
                    let length = number(&buffer[line])
                        .and_then(|length| usize::try_from(length).ok())
                        .ok_or(Complaint::InvalidBulkLength)?;
                    if length > self.limits.bulk_bytes {
                        return Err(match self.limits.is_stranger {
                            true => Complaint::StrangersBulkLength,
                            false => Complaint::InvalidBulkLength,
                        });
                    }
                    self.stage = Stage::Bulk(length, left - 1);
                }
                Stage::Bulk(length, left) => {
                    let end = self.at + length;
                    if buffer.len() < end + 2 {
                        return Ok(None);
                    }
                    self.words.push(self.at..end);
                    self.at = end + 2;
                    self.stage = Stage::Heads(left);
                }
            }
        }
    }

    /// The line at the place read so far without its first byte and its end; steps over it.
    fn line(
        &mut self,
        buffer: &[u8],
        too_long: Complaint,
    ) -> Result<Option<Range<usize>>, Complaint> {
        let rest = &buffer[self.at..];
        let window = &rest[..rest.len().min(MAX_LINE_BYTES)];
        // Like Redis, a lone \r ends a line as well: the byte behind it is not looked at.
        match window.iter().position(|byte| *byte == b'\r') {
            Some(end) if end + 1 < rest.len() => {
                let start = self.at + 1;
                let end = self.at + end;
                self.at = end + 2;
                Ok(Some(start.min(end)..end))
            }
            None if window.len() == MAX_LINE_BYTES => Err(too_long),
            Some(_) | None => Ok(None),
        }
    }

    fn typed_line(&mut self, buffer: &[u8]) -> Result<Option<bool>, Complaint> {
        let window = &buffer[self.at..buffer.len().min(MAX_LINE_BYTES)];
        let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
            if buffer.len() >= MAX_LINE_BYTES {
                return Err(Complaint::BigInlineRequest);
            }
            self.at = buffer.len();
            return Ok(None);
        };
        let end = self.at + end;
        self.at = end + 1;
        let line = buffer[..end].strip_suffix(b"\r").unwrap_or(&buffer[..end]);
        self.typed.clear();
        split_words(line, &mut self.typed, &mut self.words).ok_or(Complaint::UnbalancedQuotes)?;
        Ok(Some(true))
    }
}

fn number(text: &[u8]) -> Option<i64> {
    crate::kv::parse_integer(text)
}

/// Splits a typed line as a shell would; `None` if a quote is left open.
fn split_words(line: &[u8], text: &mut Vec<u8>, words: &mut Vec<Range<usize>>) -> Option<()> {
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        if rest.is_empty() {
            return Some(());
        }
        let start = text.len();
        while let Some((&byte, tail)) = rest.split_first() {
            rest = match byte {
                b' ' | b'\n' | b'\r' | b'\t' | 0 => break,
                b'"' => double_quoted(tail, text)?,
                b'\'' => single_quoted(tail, text)?,
                _ => {
                    text.push(byte);
                    tail
                }
            };
            let closed = matches!(byte, b'"' | b'\'');
            if closed && rest.first().is_some_and(|next| !next.is_ascii_whitespace()) {
                return None;
            }
        }
        words.push(start..text.len());
        if rest.first() == Some(&0) {
            return Some(());
        }
    }
}

fn double_quoted<'a>(mut rest: &'a [u8], text: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        let (byte, tail) = match *rest {
            [] => return None,
            [b'"', ref tail @ ..] => return Some(tail),
            [b'\\', b'x', high, low, ref tail @ ..]
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                let digit = |byte| char::from(byte).to_digit(16).unwrap_or(0) as u8;
                (digit(high) << 4 | digit(low), tail)
            }
            [b'\\', escaped, ref tail @ ..] => {
                let byte = match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => other,
                };
                (byte, tail)
            }
            [byte, ref tail @ ..] => (byte, tail),
        };
        text.push(byte);
        rest = tail;
    }
}

fn single_quoted<'a>(mut rest: &'a [u8], text: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        let (byte, tail) = match *rest {
            [] => return None,
            [b'\'', ref tail @ ..] => return Some(tail),
            [b'\\', b'\'', ref tail @ ..] => (b'\'', tail),
            [byte, ref tail @ ..] => (byte, tail),
        };
        text.push(byte);
        rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        bulk_bytes: 1000,
        request_bytes: 100_000,
        is_stranger: false,
    };

    type Parsed = (Vec<Vec<Vec<u8>>>, Option<String>);

    /// Feeds `pieces` one by one, dropping each request once it is whole.
    fn parse<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Parsed {
        let mut parser = Parser::new(LIMITS);
        let (mut buffer, mut requests) = (Vec::new(), Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            loop {
                match parser.next(&buffer) {
                    Ok(None) => break,
                    Ok(Some(request)) => {
                        requests.push(request.words().map(<[u8]>::to_vec).collect());
                        let bytes = request.bytes;
                        buffer.drain(..bytes);
                    }
                    Err(error) => return (requests, Some(error.to_string())),
                }
            }
        }
        (requests, None)
    }

    fn one(bytes: &[u8]) -> Vec<Vec<u8>> {
        let (mut requests, error) = parse([bytes]);
        assert_eq!((requests.len(), error), (1, None));
        requests.remove(0)
    }

    fn complaint(bytes: &[u8]) -> String {
        parse([bytes]).1.expect("is refused")
    }

    #[test]
    fn arrays_and_lines_give_the_same_words() {
        assert_eq!(
            one(b"*2\r\n$3\r\nGET\r\n$2\r\n\r\n\r\n"),
            [&b"GET"[..], b"\r\n"]
        );
        assert_eq!(one(b"GET  key\r\n"), [b"GET", b"key"]);
        assert_eq!(
            one(b"set k \"a\\x41\\n b\"\n"),
            [&b"set"[..], b"k", b"aA\n b"]
        );
        assert_eq!(one(b"set k 'it\\'s'\n"), [&b"set"[..], b"k", b"it's"]);
        assert!(one(b"\r\n").is_empty());
        assert!(one(b"*0\r\n").is_empty());
        assert!(one(b"*-1\r\n").is_empty());
    }

    #[test]
    fn errors_are_those_of_redis() {
        let long = [b"*".to_vec(), vec![b'1'; MAX_LINE_BYTES]].concat();
        let endless = vec![b'a'; MAX_LINE_BYTES];
        let cases: [(&[u8], &str); 10] = [
            (b"*x\r\n", "invalid multibulk length"),
            (b"*1048577\r\n", "invalid multibulk length"),
            (b"*1\r\n:3\r\n", "expected '$', got ':'"),
            (b"*1\r\n$-1\r\n", "invalid bulk length"),
            (b"*1\r\n$1001\r\n", "invalid bulk length"),
            (b"*1\r\n$a\r\n", "invalid bulk length"),
            (b"get \"k\n", "unbalanced quotes in request"),
            (b"get \"k\"k\n", "unbalanced quotes in request"),
            (&endless, "too big inline request"),
            (&long, "too big mbulk count string"),
        ];
        for (bytes, text) in cases {
            assert_eq!(complaint(bytes), format!("Protocol error: {text}"));
        }
    }

    #[test]
    fn a_request_of_many_words_is_bounded_as_a_whole() {
        let words = b"$1000\r\n"
            .iter()
            .copied()
            .chain([b'x'; 1000])
            .chain(*b"\r\n");
        let mut bytes = b"*1000\r\n".to_vec();
        bytes.extend(words.cycle().take(120_000));
        assert_eq!(complaint(&bytes), "Protocol error: too big request");
    }

    #[test]
    fn memory_for_very_many_words_is_given_back() {
        let request = [&b"*4000\r\n"[..], &b"$0\r\n\r\n".repeat(4000)].concat();
        let mut parser = Parser::new(LIMITS);
        assert!(parser.next(&request).is_ok_and(|one| one.is_some()));
        assert!(parser.words.capacity() >= 4000);
        parser.rest();
        assert!(parser.words.capacity() <= 2 * KEPT_WORDS);
    }

    #[test]
    fn a_whole_request_above_the_limit_is_refused_like_the_part_of_one() {
        let request = |padding: usize| {
            let mut bytes = b"*101\r\n".to_vec();
            for length in [988; 100].into_iter().chain([padding]) {
                bytes.extend_from_slice(format!("${length:03}\r\n").as_bytes());
                bytes.resize(bytes.len() + length, b'x');
                bytes.extend_from_slice(b"\r\n");
            }
            bytes
        };
        let fits = LIMITS.request_bytes - request(0).len();
        let longest = request(fits);
        assert_eq!(longest.len(), LIMITS.request_bytes);
        assert_eq!(one(&longest).len(), 101);
        let longer = [request(fits + 1), b"PING\r\n".to_vec()].concat();
        let refused = (vec![], Some("Protocol error: too big request".to_owned()));
        assert_eq!(parse([&longer[..]]), refused);
        assert_eq!(parse(longer.chunks(1000)), refused);
        let (requests, error) = parse([&[longest, longer].concat()[..]]);
        assert_eq!((requests.len(), error), (1, refused.1));
    }

    fn request() -> impl Strategy<Value = Vec<u8>> {
        let word = proptest::collection::vec(any::<u8>(), 0..20);
        prop_oneof![
            proptest::collection::vec(word, 0..5).prop_map(|words| {
                let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
                for word in words {
                    bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
                    bytes.extend_from_slice(&word);
                    bytes.extend_from_slice(b"\r\n");
                }
                bytes
            }),
            "[a-z]{1,5}( ([a-z]{0,5}|\"[a-z ]{0,3}\"|'[a-z]{0,3}')){0,3}\r\n"
                .prop_map(String::into_bytes),
            "[*$:a0-9\"' \r\n-]{0,8}".prop_map(String::into_bytes),
        ]
    }

    proptest! {
        #[test]
        fn any_pieces_give_the_same_requests(
            requests in proptest::collection::vec(request(), 0..8),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let stream = requests.concat();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.push(0);
            cuts.push(stream.len());
            cuts.sort_unstable();
            let whole = parse([&stream[..]]);
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]).collect();
            prop_assert_eq!(&parse(pieces), &whole);
            prop_assert_eq!(&parse(stream.chunks(1)), &whole);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse([&bytes[..]]);
        }
    }
}
