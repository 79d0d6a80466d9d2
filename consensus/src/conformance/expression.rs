//! Numbers that depend on the device: a case is written once for every window and value limit.

use crate::auth::Key;
use crate::{Ballot, NodeId, acceptor::MAX_SLOT};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

/// What a case is played against.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// The node that the acceptor is.
    pub node: u16,
    /// The life of its memory.
    pub incarnation: u32,
    /// Its membership.
    pub epoch: u32,
    /// The blank group that the case is played in.
    pub group: u16,
    /// Slots that it keeps.
    pub window: u64,
    /// Longest value in bytes.
    pub value_bytes: usize,
    /// How long a lease lasts, in nanoseconds; 0 if it grants none.
    pub lease_ns: u64,
    /// Ballots and slots have 32 bits: the hardware profile.
    pub is_narrow: bool,
    /// It answers Read; the hardware profile leaves that open.
    pub answers_read: bool,
    /// Its clock stands still but for the waits of a case.
    pub sets_clock: bool,
    /// Its memory can be seen and written.
    pub shows_memory: bool,
    /// The key, where packets carry tags.
    pub key: Option<Key>,
}

macro_rules! symbols {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A name in an expression.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Symbol { $($(#[$doc])* $name,)* }

        impl Symbol {
            /// Every name.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// How it is written.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

symbols! {
    /// One: a plain number counts it.
    One = "",
    /// The window in slots.
    Window = "W",
    /// The longest value in bytes.
    ValueBytes = "V",
    /// How long a lease lasts, in nanoseconds.
    Lease = "L",
    /// The acceptor's incarnation.
    Incarnation = "I",
    /// Another incarnation, not 0.
    OtherIncarnation = "J",
    /// The acceptor's epoch.
    Epoch = "E",
    /// The acceptor's node number.
    Node = "N",
    /// The case's group.
    Group = "G",
    /// A group that the device does not have.
    NoGroup = "NO_GROUP",
    /// The highest slot that is served.
    MaxSlot = "MAX_SLOT",
    /// The highest round that a ballot may have.
    MaxRound = "MAX_ROUND",
    /// The highest node number.
    MaxNode = "MAX_NODE",
}

impl Symbol {
    fn value(self, target: &Target) -> u64 {
        match self {
            Self::One => 1,
            Self::Window => target.window,
            Self::ValueBytes => target.value_bytes as u64,
            Self::Lease => target.lease_ns,
            Self::Incarnation => target.incarnation.into(),
            Self::OtherIncarnation => match target.incarnation ^ 0x8000_0000 {
                0 => 1,
                other => other.into(),
            },
            Self::Epoch => target.epoch.into(),
            Self::Node => target.node.into(),
            Self::Group => target.group.into(),
            Self::NoGroup => u16::MAX.into(),
            Self::MaxSlot if target.is_narrow => u32::MAX.into(),
            Self::MaxSlot => MAX_SLOT,
            Self::MaxRound if target.is_narrow => u16::MAX.into(),
            Self::MaxRound => Ballot::MAX_ROUND,
            Self::MaxNode => NodeId::MAX.into(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Term {
    is_minus: bool,
    count: u64,
    symbol: Symbol,
    divisor: u64,
    /// Bits of the quotient that are turned over.
    flipped: u64,
}

/// A sum such as `2W+1`, `MAX_SLOT-1`, `L/2`, `I^0x100` or `0xffff`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expression {
    terms: Vec<Term>,
    text: String,
}

impl Expression {
    /// A plain number.
    pub fn number(number: u64) -> Self {
        let text = number.to_string();
        Self::parse(&text).unwrap_or(Self {
            terms: Vec::new(),
            text,
        })
    }

    /// Reads a sum.
    ///
    /// # Errors
    /// What cannot be understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            let mut names = String::new();
            for symbol in &Symbol::ALL[1..] {
                names.push(' ');
                names.push_str(symbol.text());
            }
            alloc::format!(
                "`{text}` is no number: write digits, 0x…, or a sum such as 2W+1 of{names}"
            )
        };
        let mut terms = Vec::new();
        let mut rest = text;
        while !rest.is_empty() || terms.is_empty() {
            // Every term but the first begins where the one before it ended: at its sign.
            let is_minus = rest.starts_with('-');
            rest = rest.strip_prefix(['+', '-']).unwrap_or(rest);
            let end = rest.find(['+', '-']).unwrap_or(rest.len());
            let (term, tail) = rest.split_at(end);
            terms.push(Self::term(term, is_minus).ok_or_else(wrong)?);
            rest = tail;
        }
        Ok(Self {
            terms,
            text: text.into(),
        })
    }

    fn term(text: &str, is_minus: bool) -> Option<Term> {
        let (text, flipped) = match text.split_once("^0x") {
            Some((text, digits)) => (text, u64::from_str_radix(digits, 16).ok()?),
            None => (text, 0),
        };
        let (product, divisor) = match text.split_once('/') {
            Some((product, divisor)) => (product, divisor.parse().ok().filter(|by| *by > 0)?),
            None => (text, 1),
        };
        let (count, symbol) = if let Some(digits) = product.strip_prefix("0x") {
            (u64::from_str_radix(digits, 16).ok()?, Symbol::One)
        } else {
            let digits = product
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(product.len());
            let (count, name) = product.split_at(digits);
            let symbol = *Symbol::ALL.iter().find(|symbol| symbol.text() == name)?;
            match count {
                "" if symbol == Symbol::One => return None,
                "" => (1, symbol),
                count => (count.parse().ok()?, symbol),
            }
        };
        Some(Term {
            is_minus,
            count,
            symbol,
            divisor,
            flipped,
        })
    }

    /// Its value for `target`; `None` below 0 or above 64 bits.
    pub fn value(&self, target: &Target) -> Option<u64> {
        let mut sum = 0i128;
        for term in &self.terms {
            let product = i128::from(term.symbol.value(target)).checked_mul(term.count.into())?;
            let value = (product / i128::from(term.divisor)) ^ i128::from(term.flipped);
            sum = sum.checked_add(if term.is_minus { -value } else { value })?;
        }
        sum.try_into().ok()
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A number, or a ballot as `ROUND.NODE`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Quantity {
    /// As it is.
    Number(Expression),
    /// Round and node of a ballot.
    Ballot(Expression, Expression),
}

impl Quantity {
    /// Reads either form.
    ///
    /// # Errors
    /// What cannot be understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.split_once('.') {
            Some((round, node)) => Ok(Self::Ballot(
                Expression::parse(round)?,
                Expression::parse(node)?,
            )),
            None => Expression::parse(text).map(Self::Number),
        }
    }

    /// Its value for `target`; `None` below 0 or above 64 bits.
    pub fn value(&self, target: &Target) -> Option<u64> {
        match self {
            Self::Number(number) => number.value(target),
            Self::Ballot(round, node) => {
                let (round, node) = (round.value(target)?, node.value(target)?);
                (round >> 48 == 0 && node >> 16 == 0).then_some(round << 16 | node)
            }
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Ballot(round, node) => write!(f, "{round}.{node}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target {
            node: 9,
            incarnation: 0x8000_0000,
            epoch: 3,
            group: 1,
            window: 8,
            value_bytes: 64,
            lease_ns: 1000,
            is_narrow: false,
            answers_read: true,
            sets_clock: true,
            shows_memory: true,
            key: None,
        }
    }

    #[test]
    fn a_sum_is_worth_what_the_device_is() {
        for (text, value) in [
            ("7", Some(7)),
            ("0xff", Some(255)),
            ("2W+1", Some(17)),
            ("W-9", None),
            ("L/2-1", Some(499)),
            ("J", Some(1)),
            ("I^0x80000001", Some(1)),
            ("W^0x9+1", Some(2)),
            ("MAX_SLOT", Some(1 << 62)),
            ("0xffffffffffffffff", Some(u64::MAX)),
            ("0xffffffffffffffff+1", None),
        ] {
            let sum = Expression::parse(text).expect(text);
            assert_eq!(
                (sum.value(&target()), sum.to_string()),
                (value, text.into())
            );
        }
        for text in [
            "", "+", "W+", "x", "1.2", "2 W", "W/0", "0xg", "I^1", "I^0x",
        ] {
            assert!(Expression::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_ballot_is_round_and_node() {
        let ballot = Quantity::parse("MAX_ROUND.N").expect("a ballot");
        assert_eq!(ballot.value(&target()), Some(((1 << 48) - 2) << 16 | 9));
        let number = Quantity::parse("3").expect("a number");
        assert_eq!(number.value(&target()), Some(3));
    }
}
