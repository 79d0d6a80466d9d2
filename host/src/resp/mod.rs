//! The Redis protocol: what clients of the key-value machine speak.

pub mod cluster;
mod connection;
mod local;
mod parser;
mod replies;
pub mod reply;
mod server;
mod session;
#[cfg(test)]
mod tests;
pub mod tls;
mod transaction;
mod users;

pub use parser::{Complaint, Limits, MAX_LINE_BYTES, MAX_WORDS, Parser, ProtocolError, Request};
pub use server::{Handle, Listen, Options, Server, ServerError};
pub use users::{May, PasswordHash, User, Users};
