//! A reply of the key-value machine as a person or a program reads it.

use anyhow::{Context, bail};
use nearwire::resp::reply::{self, Protocol};
use serde_json::{Value as Json, json};

/// How deep replies nest: the parts of a transaction hold the fields of a scan.
const MAX_DEPTH: usize = 8;

/// A reply in RESP2's terms.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Reply {
    Status(Vec<u8>),
    Error(Vec<u8>),
    Integer(i64),
    Text(Vec<u8>),
    Nil,
    Array(Vec<Self>),
}

impl Reply {
    /// Reads what the machine answered.
    pub(super) fn parse(resp3: &[u8]) -> anyhow::Result<Self> {
        let mut bytes = Vec::new();
        reply::convert(resp3, Protocol::Resp2, &mut bytes);
        let (reply, rest) = parse(&bytes, MAX_DEPTH).with_context(|| {
            format!("the reply is no RESP: {:?}", String::from_utf8_lossy(resp3))
        })?;
        if !rest.is_empty() {
            bail!("the reply has {} bytes too many", rest.len());
        }
        Ok(reply)
    }

    /// As `redis-cli` prints it into a pipe: the bytes alone, one element a line.
    pub(super) fn plain(&self) -> Vec<u8> {
        match self {
            Self::Status(text) | Self::Error(text) | Self::Text(text) => text.clone(),
            Self::Integer(value) => value.to_string().into_bytes(),
            Self::Nil => Vec::new(),
            Self::Array(items) => items
                .iter()
                .map(Self::plain)
                .collect::<Vec<_>>()
                .join(&b'\n'),
        }
    }

    /// As `redis-cli` prints it on a terminal: quoted, and with its type.
    pub(super) fn pretty(&self) -> String {
        match self {
            Self::Status(text) => String::from_utf8_lossy(text).into_owned(),
            Self::Error(text) => format!("(error) {}", String::from_utf8_lossy(text)),
            Self::Integer(value) => format!("(integer) {value}"),
            Self::Text(text) => format!(
                "\"{}\"",
                text.escape_ascii().to_string().replace("\\'", "'")
            ),
            Self::Nil => "(nil)".into(),
            Self::Array(items) if items.is_empty() => "(empty array)".into(),
            Self::Array(items) => {
                let width = items.len().to_string().len();
                let lines = items.iter().enumerate().map(|(index, item)| {
                    let head = format!("{:>width$}) ", index + 1);
                    let indent = format!("\n{}", " ".repeat(head.len()));
                    head + &item.pretty().replace('\n', &indent)
                });
                lines.collect::<Vec<_>>().join("\n")
            }
        }
    }

    /// As JSON; bytes that are no text are an object that holds them in hexadecimal.
    pub(super) fn json(&self) -> Json {
        match self {
            Self::Status(text) | Self::Text(text) => match str::from_utf8(text) {
                Ok(text) => text.into(),
                Err(_) => {
                    let digits: String = text.iter().map(|byte| format!("{byte:02x}")).collect();
                    json!({ "hex": digits })
                }
            },
            Self::Error(text) => json!({ "error": String::from_utf8_lossy(text) }),
            Self::Integer(value) => (*value).into(),
            Self::Nil => Json::Null,
            Self::Array(items) => items.iter().map(Self::json).collect(),
        }
    }
}

fn parse(bytes: &[u8], depth: usize) -> Option<(Reply, &[u8])> {
    let depth = depth.checked_sub(1)?;
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let (line, rest) = (&bytes[..end], &bytes[end + 2..]);
    let (kind, line) = line.split_first()?;
    let number = || str::from_utf8(line).ok()?.parse::<i64>().ok();
    Some(match kind {
        b'+' => (Reply::Status(line.to_vec()), rest),
        b'-' => (Reply::Error(line.to_vec()), rest),
        b':' => (Reply::Integer(number()?), rest),
        b'$' => match usize::try_from(number()?) {
            Ok(length) => {
                let (text, rest) = rest.split_at_checked(length)?;
                (Reply::Text(text.to_vec()), rest.strip_prefix(b"\r\n")?)
            }
            Err(_) => (Reply::Nil, rest),
        },
        b'*' => match usize::try_from(number()?) {
            Ok(count) => {
                let mut items = Vec::new();
                let mut rest = rest;
                for _ in 0..count {
                    let (item, tail) = parse(rest, depth)?;
                    items.push(item);
                    rest = tail;
                }
                (Reply::Array(items), rest)
            }
            Err(_) => (Reply::Nil, rest),
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(bytes: &[u8]) -> Reply {
        Reply::parse(bytes).expect("a reply")
    }

    #[test]
    fn a_terminal_sees_types_and_a_pipe_sees_bytes() {
        for (bytes, pretty, plain) in [
            (&b"+OK\r\n"[..], "OK", "OK"),
            (b":-7\r\n", "(integer) -7", "-7"),
            (b"$4\r\na\"\r\n\r\n", "\"a\\\"\\r\\n\"", "a\"\r\n"),
            (b"_\r\n", "(nil)", ""),
            (b"*0\r\n", "(empty array)", ""),
            (
                b"*2\r\n$1\r\n0\r\n*2\r\n$1\r\na\r\n_\r\n",
                "1) \"0\"\n2) 1) \"a\"\n   2) (nil)",
                "0\na\n",
            ),
        ] {
            assert_eq!(reply(bytes).pretty(), pretty);
            assert_eq!(reply(bytes).plain(), plain.as_bytes());
        }
    }

    #[test]
    fn json_keeps_types_and_every_byte() {
        let reply = reply(b"*4\r\n:1\r\n$2\r\n\xff\x00\r\n_\r\n$1\r\nx\r\n");
        assert_eq!(reply.json(), json!([1, { "hex": "ff00" }, null, "x"]));
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        for bytes in [
            &b""[..],
            b"+OK",
            b"$5\r\nab\r\n",
            b"*2\r\n:1\r\n",
            b":1\r\n:2\r\n",
            b"?\r\n",
        ] {
            assert!(Reply::parse(bytes).is_err(), "{bytes:?}");
        }
        let deep = b"*1\r\n".repeat(100_000);
        assert!(Reply::parse(&deep).is_err());
    }
}
