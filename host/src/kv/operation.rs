//! A call whose arguments make sense: what [`Kv`](super::Kv) executes.

use super::body::{Call, Op};
use super::{MAX_KEY_BYTES, MAX_VALUE_BYTES, VALUE_TOO_LONG, integer};
use crate::resp::reply::RespError;

pub(super) const SYNTAX: RespError = RespError::fixed("ERR syntax error");
pub(super) const NOT_AN_INTEGER: RespError =
    RespError::fixed("ERR value is not an integer or out of range");

/// A call, parsed; reading and writing are different types, so that a query cannot write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Operation<'a> {
    Read(Read<'a>),
    Write(Write<'a>),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Read<'a> {
    Get { key: &'a [u8] },
    Mget { keys: &'a [&'a [u8]] },
    Exists { keys: &'a [&'a [u8]] },
    Strlen { key: &'a [u8] },
    TimeToLive { key: &'a [u8], unit: Unit },
    Scan(Scan<'a>),
    Dbsize,
    Type { key: &'a [u8] },
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Write<'a> {
    Set(Set<'a>),
    /// Keys and values in turn.
    Mset {
        pairs: &'a [&'a [u8]],
    },
    Del {
        keys: &'a [&'a [u8]],
    },
    Add {
        key: &'a [u8],
        by: i64,
    },
    Append {
        key: &'a [u8],
        tail: &'a [u8],
    },
    Getdel {
        key: &'a [u8],
    },
    Expire(Expire<'a>),
    Persist {
        key: &'a [u8],
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unit {
    Seconds,
    Milliseconds,
}

impl Unit {
    fn to_ms(self, value: i64) -> Option<i64> {
        match self {
            Self::Seconds => value.checked_mul(1000),
            Self::Milliseconds => Some(value),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Condition {
    Always,
    Missing,
    Present,
}

/// What SET does to the deadline; milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lifetime {
    Forever,
    Keep,
    For(i64),
    Until(i64),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Set<'a> {
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
    pub(super) condition: Condition,
    pub(super) lifetime: Lifetime,
    pub(super) get: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Expire<'a> {
    /// The command's name, which its error quotes.
    pub(super) name: &'static str,
    pub(super) key: &'a [u8],
    pub(super) after_ms: i64,
    pub(super) none_yet: bool,
    pub(super) some_yet: bool,
    pub(super) later: bool,
    pub(super) sooner: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Scan<'a> {
    pub(super) cursor: u64,
    pub(super) pattern: Option<&'a [u8]>,
    pub(super) count: usize,
    /// False if another type than strings was asked for.
    pub(super) strings: bool,
}

impl<'a> Operation<'a> {
    /// Looks into the arguments, with the errors that Redis has for them.
    pub(super) fn parse(call: &'a Call<'a>) -> Result<Self, RespError> {
        let words: &'a [&'a [u8]] = &call.arguments;
        let one = || match *words {
            [key] => Ok(key),
            _ => Err(wrong_arity(call.op)),
        };
        let some = || {
            if words.is_empty() {
                Err(wrong_arity(call.op))
            } else {
                Ok(words)
            }
        };
        Ok(match call.op {
            Op::Get => Self::Read(Read::Get { key: one()? }),
            Op::Mget => Self::Read(Read::Mget { keys: some()? }),
            Op::Exists => Self::Read(Read::Exists { keys: some()? }),
            Op::Strlen => Self::Read(Read::Strlen { key: one()? }),
            Op::Ttl => Self::Read(Read::TimeToLive {
                key: one()?,
                unit: Unit::Seconds,
            }),
            Op::Pttl => Self::Read(Read::TimeToLive {
                key: one()?,
                unit: Unit::Milliseconds,
            }),
            Op::Scan => Self::Read(Read::Scan(scan(words)?)),
            Op::Dbsize if words.is_empty() => Self::Read(Read::Dbsize),
            Op::Dbsize => return Err(wrong_arity(call.op)),
            Op::Type => Self::Read(Read::Type { key: one()? }),
            Op::Set => Self::Write(Write::Set(set(words)?)),
            Op::Mset if !words.is_empty() && words.len().is_multiple_of(2) => {
                for pair in words.chunks_exact(2) {
                    fits(pair[0], pair[1])?;
                }
                Self::Write(Write::Mset { pairs: words })
            }
            Op::Mset => return Err(wrong_arity(call.op)),
            Op::Del => Self::Write(Write::Del { keys: some()? }),
            Op::Incr => Self::Write(Write::Add {
                key: fits(one()?, &[])?,
                by: 1,
            }),
            Op::Decr => Self::Write(Write::Add {
                key: fits(one()?, &[])?,
                by: -1,
            }),
            Op::Incrby | Op::Decrby => Self::Write(add(call.op, words)?),
            Op::Append => match *words {
                [key, tail] => Self::Write(Write::Append {
                    key: fits(key, tail)?,
                    tail,
                }),
                _ => return Err(wrong_arity(call.op)),
            },
            Op::Getdel => Self::Write(Write::Getdel { key: one()? }),
            Op::Expire => Self::Write(expire("expire", Unit::Seconds, call.op, words)?),
            Op::Pexpire => Self::Write(expire("pexpire", Unit::Milliseconds, call.op, words)?),
            Op::Persist => Self::Write(Write::Persist { key: one()? }),
        })
    }
}

/// The front checks arity by the command's name; a body made elsewhere meets this.
fn wrong_arity(op: Op) -> RespError {
    let name = format!("{op:?}").to_ascii_lowercase();
    format!("ERR wrong number of arguments for '{name}' command").into()
}

pub(super) fn invalid_expire(name: &str) -> RespError {
    format!("ERR invalid expire time in '{name}' command").into()
}

fn number(word: &[u8]) -> Result<i64, RespError> {
    integer::parse(word).ok_or(NOT_AN_INTEGER)
}

/// What is stored is short enough to be read back in one reply.
fn fits<'a>(key: &'a [u8], value: &[u8]) -> Result<&'a [u8], RespError> {
    if key.len() > MAX_KEY_BYTES {
        let bytes = key.len();
        let text = format!("ERR key too large: {bytes} bytes, the limit is {MAX_KEY_BYTES}");
        return Err(text.into());
    }
    if value.len() > MAX_VALUE_BYTES {
        Err(VALUE_TOO_LONG)
    } else {
        Ok(key)
    }
}

fn add<'a>(op: Op, words: &'a [&'a [u8]]) -> Result<Write<'a>, RespError> {
    let [key, by] = *words else {
        return Err(wrong_arity(op));
    };
    let (key, by) = (fits(key, &[])?, number(by)?);
    if op == Op::Incrby {
        return Ok(Write::Add { key, by });
    }
    match by.checked_neg() {
        Some(by) => Ok(Write::Add { key, by }),
        None => Err(RespError::fixed("ERR decrement would overflow")),
    }
}

fn set<'a>(words: &'a [&'a [u8]]) -> Result<Set<'a>, RespError> {
    let [key, value, options @ ..] = words else {
        return Err(wrong_arity(Op::Set));
    };
    let mut set = Set {
        key,
        value,
        condition: Condition::Always,
        lifetime: Lifetime::Forever,
        get: false,
    };
    // Redis reads all options before it looks at the time, so that a syntax error wins.
    let mut time: Option<(&[u8], Clock, Unit)> = None;
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let is = |name: &str| option.eq_ignore_ascii_case(name.as_bytes());
        let clock = [
            ("ex", Clock::Relative, Unit::Seconds),
            ("px", Clock::Relative, Unit::Milliseconds),
            ("exat", Clock::Absolute, Unit::Seconds),
            ("pxat", Clock::Absolute, Unit::Milliseconds),
        ];
        if is("nx") && set.condition != Condition::Present {
            set.condition = Condition::Missing;
        } else if is("xx") && set.condition != Condition::Missing {
            set.condition = Condition::Present;
        } else if is("get") {
            set.get = true;
        } else if is("keepttl") && time.is_none() {
            set.lifetime = Lifetime::Keep;
        } else if let Some((_, clock, unit)) = clock.into_iter().find(|(name, ..)| is(name))
            && set.lifetime != Lifetime::Keep
            && time.is_none_or(|(_, other, its)| (other, its) == (clock, unit))
            && let Some(value) = options.next()
        {
            time = Some((value, clock, unit));
        } else {
            return Err(SYNTAX);
        }
    }
    if let Some((value, clock, unit)) = time {
        let value = number(value)?;
        let ms = unit
            .to_ms(value)
            .filter(|ms| *ms > 0)
            .ok_or_else(|| invalid_expire("set"))?;
        set.lifetime = match clock {
            Clock::Relative => Lifetime::For(ms),
            Clock::Absolute => Lifetime::Until(ms),
        };
    }
    Ok(set)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Clock {
    Relative,
    Absolute,
}

fn expire<'a>(
    name: &'static str,
    unit: Unit,
    op: Op,
    words: &'a [&'a [u8]],
) -> Result<Write<'a>, RespError> {
    let [key, after, options @ ..] = words else {
        return Err(wrong_arity(op));
    };
    let mut expire = Expire {
        name,
        key,
        after_ms: 0,
        none_yet: false,
        some_yet: false,
        later: false,
        sooner: false,
    };
    for option in options {
        let is = |name: &str| option.eq_ignore_ascii_case(name.as_bytes());
        let flag = if is("nx") {
            &mut expire.none_yet
        } else if is("xx") {
            &mut expire.some_yet
        } else if is("gt") {
            &mut expire.later
        } else if is("lt") {
            &mut expire.sooner
        } else {
            return Err(RespError::quoting(
                [b"ERR Unsupported option ", *option].concat(),
            ));
        };
        *flag = true;
    }
    if expire.none_yet && (expire.some_yet || expire.later || expire.sooner) {
        return Err(RespError::fixed(
            "ERR NX and XX, GT or LT options at the same time are not compatible",
        ));
    }
    if expire.later && expire.sooner {
        return Err(RespError::fixed(
            "ERR GT and LT options at the same time are not compatible",
        ));
    }
    expire.after_ms = unit
        .to_ms(number(after)?)
        .ok_or_else(|| invalid_expire(name))?;
    Ok(Write::Expire(expire))
}

fn scan<'a>(words: &'a [&'a [u8]]) -> Result<Scan<'a>, RespError> {
    let [cursor, options @ ..] = words else {
        return Err(wrong_arity(Op::Scan));
    };
    let cursor = integer::parse_cursor(cursor).ok_or(RespError::fixed("ERR invalid cursor"))?;
    let mut scan = Scan {
        cursor,
        pattern: None,
        count: 10,
        strings: true,
    };
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let is = |name: &str| option.eq_ignore_ascii_case(name.as_bytes());
        let Some(value) = options.next() else {
            return Err(SYNTAX);
        };
        if is("count") {
            let count = number(value)?;
            scan.count = usize::try_from(count)
                .ok()
                .filter(|n| *n > 0)
                .ok_or(SYNTAX)?;
        } else if is("match") {
            scan.pattern = Some(*value).filter(|pattern| *pattern != b"*");
        } else if is("type") {
            scan.strings = value.eq_ignore_ascii_case(b"string");
        } else {
            return Err(SYNTAX);
        }
    }
    Ok(scan)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(op: Op, words: &[&str]) -> String {
        let call = Call {
            op,
            arguments: words.iter().map(|word| word.as_bytes()).collect(),
        };
        Operation::parse(&call)
            .expect_err("does not parse")
            .to_string()
    }

    #[test]
    fn options_that_exclude_each_other_are_a_syntax_error() {
        let cases: [&[&str]; 7] = [
            &["k", "v", "nx", "XX"],
            &["k", "v", "EX", "1", "PX", "1"],
            &["k", "v", "keepttl", "ex", "1"],
            &["k", "v", "ex", "1", "keepttl"],
            &["k", "v", "ex"],
            &["k", "v", "exat", "1", "pxat", "1"],
            &["k", "v", "nonsense"],
        ];
        for words in cases {
            assert_eq!(error(Op::Set, words), "ERR syntax error", "{words:?}");
        }
    }

    #[test]
    fn a_syntax_error_wins_over_a_bad_time() {
        assert_eq!(
            error(Op::Set, &["k", "v", "ex", "abc", "nonsense"]),
            "ERR syntax error"
        );
        assert_eq!(
            error(Op::Set, &["k", "v", "ex", "abc"]),
            NOT_AN_INTEGER.to_string()
        );
        let invalid = "ERR invalid expire time in 'set' command";
        assert_eq!(error(Op::Set, &["k", "v", "ex", "0"]), invalid);
        assert_eq!(
            error(Op::Set, &["k", "v", "ex", "9223372036854775807"]),
            invalid
        );
        assert_eq!(error(Op::Set, &["k", "v", "px", "-1"]), invalid);
    }

    #[test]
    fn a_body_of_the_wrong_arity_is_an_error_and_not_a_panic() {
        for code in 1..=21u8 {
            for count in 0..6 {
                let mut body = vec![code];
                body.extend_from_slice(&[0; 6][..count]);
                let Some(super::super::body::Body::Single(call)) =
                    super::super::body::Body::decode(&body)
                else {
                    panic!("decodes")
                };
                let _ = Operation::parse(&call);
            }
        }
    }
}
