//! Whether what clients saw of the key-value machine can be explained by one order of operations.
//!
//! A history is linearizable if each operation can be given one moment between its invocation and
//! its return at which it took effect (Herlihy and Wing 1990). Linearizability is local, so that
//! each key is judged by itself (their theorem 1; Horn and Kroening 2015 call it
//! P-compositionality). For a key the search is that of Wing and Gong (1993), with Lowe's memory of
//! dead ends (2017) and short cuts that registers permit.
//!
//! A million operations of 16 clients on 1,000 keys, one in a thousand without an answer, take
//! 0.7 s in a test build on one core of a 4-core machine. What can come to the bound is many
//! clients with one key between them: where their values repeat or answers are missing, too many
//! orders look alike. Such a key is [`Violation::Undecided`], never accepted.
//!
//! stateright's `LinearizabilityTester` answers the same question, but copies the rest of the
//! history at each step, remembers no dead end and knows no bound: it is for the dozens of
//! operations of a model, not for the 10⁵ to 10⁶ of a run.

mod demand;
mod problem;
mod search;
mod state;
#[cfg(test)]
mod tests;
mod window;

use std::collections::BTreeMap;
use std::fmt;

/// What a client asked for, and what it was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    /// Who asked. For people only: a client may have several operations under way.
    pub client: u64,
    /// The key.
    pub key: Vec<u8>,
    /// When it was asked for, by a clock that all clients share.
    pub invoked_ns: u64,
    /// When the answer came. None if it never did: the operation may have taken effect at any time
    /// after its invocation, may still do so, or never.
    pub returned_ns: Option<u64>,
    /// What.
    pub action: Action,
}

/// The operations that are told apart. Without a return, what they say of results is ignored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// SET.
    Write {
        /// The new value.
        value: Vec<u8>,
    },
    /// GET.
    Read {
        /// What was there.
        value: Option<Vec<u8>>,
    },
    /// DEL.
    Delete,
    /// INCR.
    Increment {
        /// The new number. None: it was refused, because the value was no number or the largest.
        result: Option<i64>,
    },
}

/// A history cannot be accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Violation {
    /// No order of a key's operations explains their results.
    Unordered(Window),
    /// The search of a key was given up at its bound: the history may or may not be linearizable.
    Undecided {
        /// The key.
        key: Vec<u8>,
        /// How many operations it has.
        operations: usize,
    },
}

/// Operations on one key that have no order: taking one away would leave some that have, as far as
/// that can be known without taking away what others depend on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Window {
    /// The key.
    pub key: Vec<u8>,
    /// What the key may have held before, as earlier operations left it.
    pub before: Vec<Option<Vec<u8>>>,
    /// Where that, and what the operations read, came from.
    pub earlier: Vec<Operation>,
    /// The operations by invocation.
    pub operations: Vec<Operation>,
}

/// How many operations of [`Window::earlier`] are worth telling.
const MAX_EARLIER: usize = 8;

impl Window {
    fn new(
        key: &[u8],
        all: &[&Operation],
        before: Vec<Option<Vec<u8>>>,
        operations: Vec<Operation>,
    ) -> Self {
        let returns = operations.iter().filter_map(|one| one.returned_ns);
        let begins_ns = returns.min().unwrap_or(0);
        let read = operations.iter().filter_map(|one| match &one.action {
            Action::Read { value } => Some(value.clone()),
            Action::Write { .. } | Action::Delete | Action::Increment { .. } => None,
        });
        let mut values: Vec<Option<Vec<u8>>> = before.iter().cloned().chain(read).collect();
        values.sort_unstable();
        values.dedup();
        let mut earlier = Vec::new();
        for value in &values {
            let mut made = all.iter().rev().filter(|one| {
                one.invoked_ns < begins_ns && one.action.leaves().as_ref() == Some(value)
            });
            earlier.extend(made.next().map(|one| (*one).clone()));
        }
        earlier.retain(|one| !operations.contains(one));
        earlier.sort_by_key(|one| one.invoked_ns);
        earlier.drain(..earlier.len().saturating_sub(MAX_EARLIER));
        Self {
            key: key.to_vec(),
            before,
            earlier,
            operations,
        }
    }
}

impl Action {
    /// What the key holds afterwards, where that is the same whatever it held.
    fn leaves(&self) -> Option<Option<Vec<u8>>> {
        match self {
            Self::Write { value } => Some(Some(value.clone())),
            Self::Delete => Some(None),
            Self::Increment {
                result: Some(number),
            } => Some(Some(number.to_string().into_bytes())),
            Self::Read { .. } | Self::Increment { result: None } => None,
        }
    }
}

/// Checks a history; the order of `operations` does not matter.
///
/// The first key without an order is reported, by the order of keys. A key whose search meets its
/// bound is reported only if no other key is at fault.
///
/// # Errors
/// The history is not linearizable, or that was not found out within bounds.
///
/// # Panics
/// An operation returned before it was invoked: the clock was not one for all.
pub fn check(operations: &[Operation]) -> Result<(), Violation> {
    let mut by_key: BTreeMap<&[u8], Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        assert!(
            operation
                .returned_ns
                .is_none_or(|returned_ns| operation.invoked_ns <= returned_ns),
            "a return is not before its invocation: {operation:?}"
        );
        by_key.entry(&operation.key).or_default().push(operation);
    }
    let mut effort = search::Effort::default();
    let mut undecided = None;
    for (key, mut all) in by_key {
        all.sort_by_key(|operation| operation.invoked_ns);
        match window::check_key(&all, &mut effort) {
            Ok(()) => {}
            Err(window::Failure::Undecided) => {
                undecided.get_or_insert(Violation::Undecided {
                    key: key.to_vec(),
                    operations: all.len(),
                });
            }
            Err(window::Failure::Unordered { before, operations }) => {
                let window = Window::new(key, &all, before, operations);
                return Err(Violation::Unordered(window));
            }
        }
    }
    undecided.map_or(Ok(()), Err)
}

impl std::error::Error for Violation {}

/// Longest text of a value that is shown.
const MAX_SHOWN_BYTES: usize = 40;

struct Shown<'a>(&'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(MAX_SHOWN_BYTES)];
        write!(f, "\"{}\"", shown.escape_ascii())?;
        if shown.len() < self.0.len() {
            write!(f, "... ({} bytes)", self.0.len())?;
        }
        Ok(())
    }
}

fn shown(value: Option<&[u8]>) -> String {
    value.map_or_else(|| "nothing".to_owned(), |value| Shown(value).to_string())
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answered = self.returned_ns.is_some();
        match &self.action {
            Action::Write { value } => write!(f, "SET {}", Shown(value)),
            Action::Read { value } if answered => write!(f, "GET = {}", shown(value.as_deref())),
            Action::Read { .. } => write!(f, "GET"),
            Action::Delete => write!(f, "DEL"),
            Action::Increment { result } => match result {
                Some(number) if answered => write!(f, "INCR = {number}"),
                None if answered => write!(f, "INCR, refused"),
                Some(_) | None => write!(f, "INCR"),
            },
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unordered(window) => window.fmt(f),
            Self::Undecided { key, operations } => write!(
                f,
                "key {}: whether its {operations} operations have an order was not found out \
                 within bounds",
                Shown(key)
            ),
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before: Vec<String> = self
            .before
            .iter()
            .map(|value| shown(value.as_deref()))
            .collect();
        let count = self.operations.len();
        write!(
            f,
            "key {}: no order explains {}, if the key held {} before (times in µs)",
            Shown(&self.key),
            if count == 1 {
                "this operation".to_owned()
            } else {
                format!("these {count} operations")
            },
            before.join(" or "),
        )?;
        let all = self.earlier.iter().chain(&self.operations);
        let origin_ns = all.map(|one| one.invoked_ns).min().unwrap_or(0);
        let since = |at_ns: u64| format!("{:.1}", (at_ns - origin_ns) as f64 / 1e3);
        for (title, operations) in [
            ("earlier", &self.earlier),
            ("without an order", &self.operations),
        ] {
            if operations.is_empty() {
                continue;
            }
            write!(f, "\n     {title}:")?;
            for operation in operations {
                let returned = operation
                    .returned_ns
                    .map_or_else(|| "no answer".to_owned(), since);
                write!(
                    f,
                    "\n  {:>12} to {returned:>12}  client {:<4} {operation}",
                    since(operation.invoked_ns),
                    operation.client,
                )?;
            }
        }
        Ok(())
    }
}
