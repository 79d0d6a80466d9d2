//! The conformance corpus: packets in, packets out, and the region after, as text.
//!
//! `docs/conformance.md` describes the text for the maker of an acceptor. A [`Case`] is played on a
//! [`Device`]: the step in this process ([`Software`]), another engine, or whatever answers behind
//! a network. Nothing here is part of an acceptor.

mod case;
mod expression;
mod field;
mod player;
mod software;
mod text;

pub use case::{Action, Answer, Case, Fact, Need, Packet, Request, Setting, Step, Value, Word};
pub use expression::{Expression, Quantity, Symbol, Target};
pub use field::Field;
pub use player::{Device, Failure, Outcome, Reason, Verdict, contradiction, play};
pub use software::{MakeError, Shape, Software};
pub use text::{TextError, parse};

use alloc::vec::Vec;

/// The files of the corpus: name and text.
pub const FILES: &[(&str, &str)] = &[
    ("header.txt", include_str!("../corpus/header.txt")),
    ("prepare.txt", include_str!("../corpus/prepare.txt")),
    ("accept.txt", include_str!("../corpus/accept.txt")),
    ("fetch.txt", include_str!("../corpus/fetch.txt")),
    ("decide.txt", include_str!("../corpus/decide.txt")),
    ("window.txt", include_str!("../corpus/window.txt")),
    ("lease.txt", include_str!("../corpus/lease.txt")),
    ("read.txt", include_str!("../corpus/read.txt")),
    ("malformed.txt", include_str!("../corpus/malformed.txt")),
    ("memory.txt", include_str!("../corpus/memory.txt")),
    ("generated.txt", include_str!("../corpus/generated.txt")),
];

/// Every case of the corpus, in the order of the files.
///
/// # Errors
/// A file is not written as it should be.
pub fn corpus() -> Result<Vec<Case>, TextError> {
    let mut cases = Vec::new();
    for (name, text) in FILES {
        cases.extend(parse(name, text)?);
    }
    Ok(cases)
}
