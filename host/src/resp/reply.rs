//! Writes replies in RESP3, and turns them into RESP2 for clients that never said `HELLO 3`.

use crate::kv::parse_integer;
use std::borrow::Cow;
use std::fmt;

/// Which protocol a connection speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Protocol {
    /// What a connection starts with.
    #[default]
    Resp2,
    /// After `HELLO 3`.
    Resp3,
}

/// An error reply: its code and text, as in `ERR syntax error`.
#[derive(Clone, PartialEq, Eq)]
pub struct RespError(Cow<'static, [u8]>);

impl RespError {
    /// An error whose text is fixed.
    pub const fn fixed(text: &'static str) -> Self {
        Self(Cow::Borrowed(text.as_bytes()))
    }

    /// An error whose text may hold bytes of the client; line ends become spaces, as they would
    /// end the reply early.
    pub fn quoting(mut text: Vec<u8>) -> Self {
        for byte in &mut text {
            if matches!(byte, b'\r' | b'\n') {
                *byte = b' ';
            }
        }
        Self(Cow::Owned(text))
    }

    /// The code and text.
    pub fn text(&self) -> &[u8] {
        &self.0
    }
}

impl From<String> for RespError {
    fn from(text: String) -> Self {
        Self::quoting(text.into_bytes())
    }
}

impl fmt::Debug for RespError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RespError({})", self.0.escape_ascii())
    }
}

impl fmt::Display for RespError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl std::error::Error for RespError {}

/// Appends `+text`.
pub fn simple(out: &mut Vec<u8>, text: &str) {
    out.push(b'+');
    line(out, text.as_bytes());
}

/// Appends `-text`.
pub fn error(out: &mut Vec<u8>, error: &RespError) {
    out.push(b'-');
    line(out, error.text());
}

/// Appends `:value`.
pub fn integer(out: &mut Vec<u8>, value: i64) {
    out.push(b':');
    line(out, Decimal::new(value).text());
}

/// Appends a string of any bytes.
pub fn bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    head(out, b'$', bytes.len());
    line(out, bytes);
}

/// Appends text that a person reads.
pub fn verbatim(out: &mut Vec<u8>, text: &str) {
    head(out, b'=', text.len() + 4);
    out.extend_from_slice(b"txt:");
    line(out, text.as_bytes());
}

/// Appends the absence of a value.
pub fn null(out: &mut Vec<u8>) {
    out.extend_from_slice(b"_\r\n");
}

/// Appends the head of `items` values.
pub fn array(out: &mut Vec<u8>, items: usize) {
    head(out, b'*', items);
}

/// Appends the head of `pairs` pairs of a key and a value.
pub fn map(out: &mut Vec<u8>, pairs: usize) {
    head(out, b'%', pairs);
}

/// Appends the head of `items` different values.
pub fn set(out: &mut Vec<u8>, items: usize) {
    head(out, b'~', items);
}

fn head(out: &mut Vec<u8>, kind: u8, count: usize) {
    out.push(kind);
    line(
        out,
        Decimal::new(i64::try_from(count).unwrap_or(i64::MAX)).text(),
    );
}

fn line(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// An integer's decimal text without a heap.
#[derive(Clone, Copy, Debug)]
pub struct Decimal {
    text: [u8; 20],
    start: usize,
}

impl Decimal {
    /// Writes `value` in decimal.
    pub fn new(value: i64) -> Self {
        let mut text = [0; 20];
        let mut start = text.len();
        let mut rest = value.unsigned_abs();
        loop {
            start -= 1;
            text[start] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        if value < 0 {
            start -= 1;
            text[start] = b'-';
        }
        Self { text, start }
    }

    /// The digits, with a sign if negative.
    pub fn text(&self) -> &[u8] {
        &self.text[self.start..]
    }
}

/// Length in bytes of the RESP3 value at the front of `bytes`, or `None` if it is cut off.
pub fn value_bytes(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    let mut values = 1usize;
    while values > 0 {
        let head = next_head(bytes.get(at..)?)?;
        at = head.bytes.checked_add(head.payload())?.checked_add(at)?;
        values = (values - 1).checked_add(head.children())?;
    }
    (at <= bytes.len()).then_some(at)
}

/// Whether one value may hold anything that RESP2 does not have.
fn has_resp3(bytes: &[u8]) -> bool {
    !matches!(bytes.first(), Some(b'+' | b'-' | b':' | b'$'))
}

/// The RESP3 values of `bytes` as `protocol` has them.
pub fn converted(bytes: &[u8], protocol: Protocol) -> Cow<'_, [u8]> {
    if protocol == Protocol::Resp3 || !has_resp3(bytes) {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::new();
    convert(bytes, protocol, &mut out);
    Cow::Owned(out)
}

/// Appends the RESP3 values of `bytes` to `out` as `protocol` has them. Bytes that are no RESP3
/// are passed on as they are.
pub fn convert(bytes: &[u8], protocol: Protocol, out: &mut Vec<u8>) {
    if protocol == Protocol::Resp3 || !has_resp3(bytes) {
        out.extend_from_slice(bytes);
        return;
    }
    let mut rest = bytes;
    while let Some(next) = next_head(rest) {
        let bytes = next.bytes.saturating_add(next.payload());
        let Some((value, tail)) = rest.split_at_checked(bytes) else {
            break;
        };
        match next.kind {
            b'_' => out.extend_from_slice(b"$-1\r\n"),
            b'%' => head(out, b'*', next.children()),
            b'~' | b'>' => head(out, b'*', next.children()),
            b'#' => out.extend_from_slice(if value[1] == b't' {
                b":1\r\n"
            } else {
                b":0\r\n"
            }),
            b',' | b'(' => bulk(out, &value[1..value.len() - 2]),
            b'=' => {
                let text = &value[next.bytes..value.len() - 2];
                bulk(out, text.get(4..).unwrap_or(text));
            }
            _ => out.extend_from_slice(value),
        }
        rest = tail;
    }
    out.extend_from_slice(rest);
}

struct Head {
    kind: u8,
    /// Length of the line with its end.
    bytes: usize,
    /// RESP2's absent strings and arrays have a negative one.
    count: Option<usize>,
}

impl Head {
    fn payload(&self) -> usize {
        match (self.kind, self.count) {
            (b'$' | b'=' | b'!', Some(bytes)) => bytes.saturating_add(2),
            _ => 0,
        }
    }

    fn children(&self) -> usize {
        match (self.kind, self.count) {
            (b'*' | b'~' | b'>', Some(items)) => items,
            (b'%', Some(pairs)) => pairs.saturating_mul(2),
            _ => 0,
        }
    }
}

fn next_head(bytes: &[u8]) -> Option<Head> {
    let (&kind, rest) = bytes.split_first()?;
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    let counted = matches!(kind, b'$' | b'=' | b'!' | b'*' | b'~' | b'>' | b'%');
    let count = if counted {
        parse_integer(&rest[..end])?
    } else {
        0
    };
    Some(Head {
        kind,
        bytes: end + 3,
        count: usize::try_from(count).ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn resp2(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        convert(bytes, Protocol::Resp2, &mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn resp2_has_no_nulls_maps_booleans_doubles_or_verbatim_strings() {
        assert_eq!(resp2(b"_\r\n"), "$-1\r\n");
        assert_eq!(
            resp2(b"*2\r\n_\r\n$2\r\n_\r\r\n"),
            "*2\r\n$-1\r\n$2\r\n_\r\r\n"
        );
        assert_eq!(resp2(b"%1\r\n+a\r\n#t\r\n"), "*2\r\n+a\r\n:1\r\n");
        assert_eq!(resp2(b",1.5\r\n"), "$3\r\n1.5\r\n");
        assert_eq!(resp2(b"=6\r\ntxt:ab\r\n"), "$2\r\nab\r\n");
        assert_eq!(resp2(b"*2\r\n*-1\r\n_\r\n"), "*2\r\n*-1\r\n$-1\r\n");
        assert_eq!(resp2(b"~1\r\n:4\r\n"), "*1\r\n:4\r\n");
    }

    #[test]
    fn a_value_ends_where_its_last_part_ends() {
        let bytes = b"*3\r\n$2\r\n\r\n\r\n%1\r\n:1\r\n_\r\n+x\r\nrest";
        assert_eq!(value_bytes(bytes), Some(bytes.len() - 4));
        assert_eq!(value_bytes(&bytes[..bytes.len() - 6]), None);
    }

    #[test]
    fn decimals_are_written_to_the_ends_of_their_range() {
        for value in [0, 7, -1, 100, i64::MAX, i64::MIN] {
            assert_eq!(Decimal::new(value).text(), value.to_string().as_bytes());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_conversion_panic(
            bytes in "[*%$=~_#,:0-9\r\na-]{0,40}"
        ) {
            let _ = resp2(bytes.as_bytes());
            let _ = value_bytes(bytes.as_bytes());
        }
    }
}
