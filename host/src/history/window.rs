//! Judges one key, and finds the few operations that show why it has no order.
//!
//! Each reduction leaves a history that has an order if the whole has one, so that what is left
//! without one is at fault by itself:
//!
//! - What was invoked after the return that no order gets past is cut off, and what returned after
//!   it counts as not answered.
//! - At a quiescent point all before it is replaced by the states that its last writers may have
//!   left.
//! - An operation that only looks is taken away.
//! - An increment is taken for a write of its result.
//! - All operations that write or read one value are taken away, if no increment depends on it:
//!   whoever follows them in an order saw nothing of them.

use super::problem::{Effect, Known, Problem};
use super::search::{Effort, Verdict, search};
use super::state::{State, Step, Texts};
use super::{Action, Operation};
use std::collections::{BTreeMap, BTreeSet};

/// What is spent on making a window small; see [`Effort`].
const EFFORT: u64 = 1 << 25;
/// How often a window is tried smaller, whatever it costs.
const MAX_SEARCHES: usize = 2000;

/// A key without an order, or without a verdict.
#[derive(Debug)]
pub(super) enum Failure {
    Undecided,
    Unordered {
        before: Vec<Option<Vec<u8>>>,
        operations: Vec<Operation>,
    },
}

/// An operation of a window.
#[derive(Clone, Copy, Debug)]
struct Item<'a> {
    operation: &'a Operation,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Known { returned_ns: u64, step: Step },
    Unknown(Effect),
}

impl<'a> Item<'a> {
    /// None: an operation without an answer that only looks.
    fn new(operation: &'a Operation, texts: &mut Texts<'a>) -> Option<Self> {
        let what = match operation.returned_ns {
            Some(returned_ns) => What::Known {
                returned_ns,
                step: texts.step(&operation.action),
            },
            None => What::Unknown(match &operation.action {
                Action::Write { value } => Effect::Set(texts.state(value)),
                Action::Delete => Effect::Set(State::Absent),
                Action::Increment { .. } => Effect::Increment,
                Action::Read { .. } => return None,
            }),
        };
        Some(Self { operation, what })
    }

    /// As if the answer had not come by `at_ns`; None if that leaves nothing to know.
    fn until(self, at_ns: u64) -> Option<Self> {
        let What::Known { returned_ns, step } = self.what else {
            return Some(self);
        };
        if returned_ns <= at_ns {
            return Some(self);
        }
        let effect = match step {
            Step::Set(state) => Effect::Set(state),
            Step::Increment(_) => Effect::Increment,
            Step::Read(_) | Step::Refused => return None,
        };
        let what = What::Unknown(effect);
        Some(Self { what, ..self })
    }

    fn only_looks(&self) -> bool {
        match self.what {
            What::Known { step, .. } => step.only_looks(),
            What::Unknown(_) => false,
        }
    }

    /// What it writes or reads; None for an increment.
    fn value(&self) -> Option<State> {
        match self.what {
            What::Known {
                step: Step::Set(value) | Step::Read(value),
                ..
            }
            | What::Unknown(Effect::Set(value)) => Some(value),
            What::Known {
                step: Step::Increment(_) | Step::Refused,
                ..
            }
            | What::Unknown(Effect::Increment) => None,
        }
    }
}

fn problem(initial: &[State], items: &[Item<'_>]) -> Problem {
    let mut problem = Problem::new(initial.to_vec());
    for item in items {
        let invoked_ns = item.operation.invoked_ns;
        match item.what {
            What::Known { returned_ns, step } => problem.push_known(Known {
                invoked_ns,
                returned_ns,
                step,
            }),
            What::Unknown(effect) => problem.push_unknown(invoked_ns, effect),
        }
    }
    problem
}

/// Judges the operations of one key, which come by invocation.
pub(super) fn check_key(operations: &[&Operation], effort: &mut Effort) -> Result<(), Failure> {
    let mut texts = Texts::default();
    let items: Vec<Item<'_>> = operations
        .iter()
        .filter_map(|operation| Item::new(operation, &mut texts))
        .collect();
    match search(&problem(&[State::Absent], &items), effort) {
        Verdict::Ordered => return Ok(()),
        Verdict::Undecided => return Err(Failure::Undecided),
        Verdict::Unordered => {}
    }
    let window = Reduction {
        initial: vec![State::Absent],
        items,
        searches: 0,
        effort: Effort {
            shared: EFFORT,
            per_operation: 0,
        },
    }
    .reduce();
    Err(Failure::Unordered {
        before: window.initial.iter().map(|s| texts.value(*s)).collect(),
        operations: window
            .items
            .iter()
            .map(|item| item.operation.clone())
            .collect(),
    })
}

/// A history without an order, on its way to a smaller one.
struct Reduction<'a> {
    initial: Vec<State>,
    items: Vec<Item<'a>>,
    searches: usize,
    effort: Effort,
}

impl<'a> Reduction<'a> {
    fn reduce(mut self) -> Self {
        self.end();
        self.cut();
        self.forget_increments();
        self.thin(|items| {
            let looks = items
                .iter()
                .enumerate()
                .filter(|(_, item)| item.only_looks());
            looks.map(|(at, _)| vec![at]).collect()
        });
        self.thin(by_value);
        self
    }

    /// Takes increments that were answered for writes of their results.
    fn forget_increments(&mut self) {
        let mut items = self.items.clone();
        for item in &mut items {
            if let What::Known {
                step: Step::Increment(result),
                returned_ns,
            } = item.what
            {
                item.what = What::Known {
                    step: Step::Set(State::Number(result)),
                    returned_ns,
                };
            }
        }
        let initial = self.initial.clone();
        if self.is_unordered(&initial, &items) {
            self.items = items;
        }
    }

    /// Whether these have no order either; false where that is not found out.
    fn is_unordered(&mut self, initial: &[State], items: &[Item<'_>]) -> bool {
        self.searches += 1;
        if self.searches > MAX_SEARCHES {
            return false;
        }
        let verdict = search(&problem(initial, items), &mut self.effort);
        verdict == Verdict::Unordered
    }

    /// Cuts off what was invoked after the first return that no order gets past.
    fn end(&mut self) {
        let mut returns: Vec<u64> = self
            .items
            .iter()
            .filter_map(|item| match item.what {
                What::Known { returned_ns, .. } => Some(returned_ns),
                What::Unknown(_) => None,
            })
            .collect();
        returns.sort_unstable();
        let initial = self.initial.clone();
        let until = |items: &[Item<'a>], end_ns: u64| -> Vec<Item<'a>> {
            let begun = items
                .iter()
                .filter(|item| item.operation.invoked_ns <= end_ns);
            begun.filter_map(|item| item.until(end_ns)).collect()
        };
        // What has no order has none when more is added: the first such return can be bisected.
        let mut left = returns.as_slice();
        while !left.is_empty() {
            let middle = left.len() / 2;
            let items = until(&self.items, left[middle]);
            if self.is_unordered(&initial, &items) {
                self.items = items;
                left = &left[..middle];
            } else {
                left = &left[middle + 1..];
            }
        }
    }

    /// Cuts off what lies before the last quiescent point that it can be cut off at.
    fn cut(&mut self) {
        let mut cuts = Vec::new();
        let mut busy_until_ns = 0;
        for (at, item) in self.items.iter().enumerate() {
            if let What::Known { returned_ns, .. } = item.what {
                if at > 0 && item.operation.invoked_ns > busy_until_ns {
                    cuts.push(at);
                }
                busy_until_ns = busy_until_ns.max(returned_ns);
            }
        }
        // Twice as far back each time: the searches together cost little more than the last.
        let mut back = 1;
        while back <= cuts.len() {
            let at = cuts[cuts.len() - back];
            let (before, after) = self.items.split_at(at);
            let initial = left_by(&self.initial, before);
            let unknown = before
                .iter()
                .filter(|item| matches!(item.what, What::Unknown(_)));
            let items: Vec<Item<'a>> = unknown.chain(after).copied().collect();
            if self.is_unordered(&initial, &items) {
                (self.initial, self.items) = (initial, items);
                return;
            }
            back *= 2;
        }
    }

    /// Takes away as many parts as can go, many at once first (Zeller and Hildebrandt 2002).
    fn thin(&mut self, parts: impl Fn(&[Item<'a>]) -> Vec<Vec<usize>>) {
        let mut size = parts(&self.items).len();
        while size > 0 {
            let mut first = 0;
            loop {
                let parts = parts(&self.items);
                let Some(some) = parts.get(first..(first + size).min(parts.len())) else {
                    break;
                };
                if some.is_empty() {
                    break;
                }
                let mut left: Vec<Option<Item<'a>>> =
                    self.items.iter().copied().map(Some).collect();
                for at in some.iter().flatten() {
                    left[*at] = None;
                }
                let left: Vec<Item<'a>> = left.into_iter().flatten().collect();
                let initial = self.initial.clone();
                if self.is_unordered(&initial, &left) {
                    self.items = left;
                } else {
                    first += size;
                }
            }
            size /= 2;
        }
    }
}

/// The operations that can be taken away together: those of one value.
fn by_value(items: &[Item<'_>]) -> Vec<Vec<usize>> {
    let depends = |item: &Item<'_>| match item.what {
        What::Known { step, .. } => matches!(step, Step::Increment(_) | Step::Refused),
        What::Unknown(_) => false,
    };
    if items.iter().any(depends) {
        return Vec::new();
    }
    let is_increment = |item: &&Item<'_>| matches!(item.what, What::Unknown(Effect::Increment));
    let increments = items.iter().filter(is_increment).count() as i64;
    let mut parts: BTreeMap<State, Vec<usize>> = BTreeMap::new();
    for (at, item) in items.iter().enumerate() {
        if let Some(value) = item.value() {
            parts.entry(value).or_default().push(at);
        }
    }
    // Increments that were not answered may have made one value of another.
    let values: BTreeSet<State> = parts.keys().copied().collect();
    parts.retain(|value, _| {
        value.number().is_none_or(|number| {
            let next = State::Number(number.saturating_add(1));
            let last = State::Number(number.saturating_add(increments));
            increments == 0 || values.range(next..=last).next().is_none()
        })
    });
    parts.into_values().collect()
}

/// The states that these may leave when all that were answered are over, unless one that was not
/// answered changes it: those of the writers that none follows entirely.
fn left_by(initial: &[State], items: &[Item<'_>]) -> Vec<State> {
    let writers = items.iter().filter_map(|item| match item.what {
        What::Known {
            returned_ns,
            step: Step::Set(state),
        } => Some((item.operation.invoked_ns, returned_ns, state)),
        What::Known {
            returned_ns,
            step: Step::Increment(result),
        } => Some((
            item.operation.invoked_ns,
            returned_ns,
            State::Number(result),
        )),
        What::Known {
            step: Step::Read(_) | Step::Refused,
            ..
        }
        | What::Unknown(_) => None,
    });
    let Some(last_ns) = writers.clone().map(|(invoked_ns, ..)| invoked_ns).max() else {
        return initial.to_vec();
    };
    let mut states: Vec<State> = writers
        .filter(|(_, returned_ns, _)| *returned_ns >= last_ns)
        .map(|(.., state)| state)
        .collect();
    states.sort_unstable();
    states.dedup();
    states
}
