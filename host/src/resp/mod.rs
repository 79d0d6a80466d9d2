//! The Redis protocol: what clients of the key-value machine speak.

mod parser;
pub mod reply;

pub use parser::{Complaint, Limits, MAX_LINE_BYTES, MAX_WORDS, Parser, ProtocolError, Request};
