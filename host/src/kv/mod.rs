//! The built-in state machine: strings under keys, spoken to in Redis' commands.

mod arguments;
mod body;
mod command;
pub mod glob;
mod integer;
mod operation;

pub use arguments::Arguments;
pub use body::{Body, Call, Op, TRANSACTION, append_part};
pub use command::{Command, Local, Parsed, Step, encode};
