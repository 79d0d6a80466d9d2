//! One key's history as the search sees it.

use super::state::{State, Step};
use std::collections::BTreeMap;

/// An operation that was answered: it took effect between two moments.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) invoked_ns: u64,
    pub(super) returned_ns: u64,
    pub(super) step: Step,
}

/// Operations without an answer that have the same effect, by their invocation: which of those that
/// were invoked takes effect is all the same.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) effect: Effect,
    invoked_ns: Vec<u64>,
}

impl Class {
    fn new(effect: Effect) -> Self {
        Self {
            effect,
            invoked_ns: Vec::new(),
        }
    }

    /// How many may have taken effect before `at_ns`.
    pub(super) fn available(&self, at_ns: u64) -> u32 {
        let count = self
            .invoked_ns
            .partition_point(|invoked_ns| *invoked_ns <= at_ns);
        count as u32
    }
}

/// What an operation without an answer may have done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Effect {
    Set(State),
    Increment,
}

/// The history of one key.
#[derive(Debug)]
pub(super) struct Problem {
    /// What the key may hold at the beginning.
    pub(super) initial: Vec<State>,
    /// By invocation.
    pub(super) known: Vec<Known>,
    /// By what they do: the increments, then those that set.
    pub(super) classes: Vec<Class>,
    /// The class that sets a state.
    pub(super) setters: BTreeMap<State, u32>,
}

/// The class of the increments.
pub(super) const INCREMENTS: u32 = 0;

impl Problem {
    pub(super) fn new(initial: Vec<State>) -> Self {
        Self {
            initial,
            known: Vec::new(),
            classes: vec![Class::new(Effect::Increment)],
            setters: BTreeMap::new(),
        }
    }

    /// Adds an operation that was answered, by the order of invocation.
    pub(super) fn push_known(&mut self, known: Known) {
        debug_assert!(
            self.known
                .last()
                .is_none_or(|last| last.invoked_ns <= known.invoked_ns),
            "operations come by invocation"
        );
        self.known.push(known);
    }

    /// Adds an operation that was not answered, by the order of invocation.
    pub(super) fn push_unknown(&mut self, invoked_ns: u64, effect: Effect) {
        let class = match effect {
            Effect::Increment => INCREMENTS,
            Effect::Set(state) => {
                let next = self.classes.len() as u32;
                let class = *self.setters.entry(state).or_insert(next);
                if class == next {
                    self.classes.push(Class::new(effect));
                }
                class
            }
        };
        self.classes[class as usize].invoked_ns.push(invoked_ns);
    }
}
