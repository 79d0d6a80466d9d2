//! The built-in state machine: strings under keys, spoken to in Redis' commands.
//!
//! A body is a command's words in binary ([`Body`]); a reply is RESP3, which a front turns into
//! what its client speaks. Replicas agree byte for byte: the order of keys is fixed by a hash that
//! never changes, the only clock is the log's, and an expired key is absent whether or not it has
//! been swept yet.

mod arguments;
mod body;
mod command;
mod execute;
pub mod glob;
mod integer;
mod key;
mod operation;
mod snapshot;
mod store;
#[cfg(test)]
mod tests;

pub use arguments::Arguments;
pub use body::{Body, Call, Op, TRANSACTION, append_part};
pub use command::{Command, Local, Parsed, Step, encode};
pub(crate) use integer::parse as parse_integer;

use crate::resp::reply::{self, RespError};
use consensus::envelope::MAX_REPLY_BYTES;
use consensus::state_machine::{Frozen, RestoreError, StateMachine};
use execute::At;
use operation::Operation;
use snapshot::Snapshot;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use store::Store;

/// Longest value in bytes: a reply that holds one fits [`MAX_REPLY_BYTES`].
pub const MAX_VALUE_BYTES: usize = MAX_REPLY_BYTES - 16;
/// Longest key in bytes: a SCAN reply always has room for one.
pub const MAX_KEY_BYTES: usize = 8 * 1024;

/// How many expired keys one move of the clock sweeps; the rest wait for the next.
const SWEEP_PER_CLOCK: usize = 4096;
/// How many expired keys a command sweeps beside its own work.
const SWEEP_PER_COMMAND: usize = 16;

const VALUE_TOO_LONG: RespError =
    RespError::fixed("ERR string exceeds maximum allowed size (proto-max-bulk-len)");
const NOT_A_COMMAND: RespError = RespError::fixed("ERR not a command of the key-value machine");
const NOT_A_QUERY: RespError = RespError::fixed("ERR a query may not write");

/// The key-value machine.
#[derive(Debug)]
pub struct Kv {
    state: Arc<Mutex<State>>,
}

/// Answers queries beside a machine, on any thread.
#[derive(Clone, Debug)]
pub struct Reader {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    store: Store,
    clock_ms: u64,
}

impl Default for Kv {
    fn default() -> Self {
        Self::new()
    }
}

impl Kv {
    /// How many keys there are by the log's clock `time_ms`.
    pub fn len(&self, time_ms: u64) -> usize {
        lock(&self.state).store.count(time_ms)
    }

    /// A machine without keys.
    pub fn new() -> Self {
        let state = State {
            store: Store::new(),
            clock_ms: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// A reader of this machine's state, which sees whole commands only.
    pub fn reader(&self) -> Reader {
        Reader {
            state: Arc::clone(&self.state),
        }
    }
}

impl Reader {
    /// Answers a query from what the machine has applied.
    pub fn query(&self, query: &[u8], reply: &mut Vec<u8>) {
        lock(&self.state).query(0, query, reply);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn execute(&mut self, call: &Call<'_>, reply: &mut Vec<u8>) {
        let now_ms = self.clock_ms;
        match Operation::parse(call) {
            Ok(Operation::Read(read)) => At {
                store: &self.store,
                now_ms,
            }
            .read(&read, reply),
            Ok(Operation::Write(write)) => {
                At {
                    store: &mut self.store,
                    now_ms,
                }
                .write(&write, reply);
            }
            Err(error) => reply::error(reply, &error),
        }
    }

    fn query(&self, time_ms: u64, query: &[u8], reply: &mut Vec<u8>) {
        let now_ms = self.clock_ms.max(time_ms);
        match Body::decode(query) {
            Some(Body::Single(call)) => match Operation::parse(&call) {
                Ok(Operation::Read(read)) => At {
                    store: &self.store,
                    now_ms,
                }
                .read(&read, reply),
                Ok(Operation::Write(_)) => reply::error(reply, &NOT_A_QUERY),
                Err(error) => reply::error(reply, &error),
            },
            Some(Body::Transaction(_)) => reply::error(reply, &NOT_A_QUERY),
            None => reply::error(reply, &NOT_A_COMMAND),
        }
        bound(reply, "ask for less at once");
    }
}

impl StateMachine for Kv {
    fn apply(&mut self, time_ms: u64, command: &[u8], reply: &mut Vec<u8>) {
        let mut state = lock(&self.state);
        state.clock_ms = state.clock_ms.max(time_ms);
        let clock_ms = state.clock_ms;
        state.store.sweep(clock_ms, SWEEP_PER_COMMAND);
        match Body::decode(command) {
            Some(Body::Single(call)) => {
                state.execute(&call, reply);
                bound(reply, "ask for less at once");
            }
            Some(Body::Transaction(parts)) => {
                reply::array(reply, parts.len());
                for part in &parts {
                    state.execute(part, reply);
                }
                bound(reply, "the transaction was applied");
            }
            None => reply::error(reply, &NOT_A_COMMAND),
        }
    }

    fn query(&self, time_ms: u64, query: &[u8], reply: &mut Vec<u8>) {
        lock(&self.state).query(time_ms, query, reply);
    }

    fn wake_ms(&self) -> Option<u64> {
        lock(&self.state).store.first_deadline()
    }

    fn clock(&mut self, time_ms: u64) {
        let mut state = lock(&self.state);
        let clock_ms = state.clock_ms.max(time_ms);
        state.clock_ms = clock_ms;
        state.store.sweep(clock_ms, SWEEP_PER_CLOCK);
    }

    fn freeze(&self) -> Box<dyn Frozen> {
        let state = lock(&self.state);
        Box::new(Snapshot::new(&state.store, state.clock_ms))
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let (store, clock_ms) = snapshot::read(bytes)?;
        *lock(&self.state) = State { store, clock_ms };
        Ok(())
    }

    fn succeed(&mut self, former: &mut Self) {
        std::mem::swap(self, former);
        std::mem::swap(&mut *lock(&self.state), &mut *lock(&former.state));
    }
}

/// A reply is one datagram; one that is longer becomes an error that says so.
fn bound(reply: &mut Vec<u8>, hint: &str) {
    let bytes = reply.len();
    if bytes > MAX_REPLY_BYTES {
        let limit = MAX_REPLY_BYTES;
        let text = format!("ERR reply too large: {bytes} bytes, the limit is {limit}; {hint}");
        reply.clear();
        reply::error(reply, &text.into());
    }
}
