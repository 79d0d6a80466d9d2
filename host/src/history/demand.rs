//! Which values are still needed, and whether anything left can make them again.

use super::problem::{INCREMENTS, Problem};
use super::state::{State, Step};
use std::collections::HashMap;

/// Stands for no value.
const NONE: u32 = u32::MAX;

#[derive(Default, Debug)]
struct Value {
    /// Operations left that fit in this state only.
    needed_by: u32,
    /// Operations left that lead to this state.
    made_by: u32,
    /// Whether operations without an answer may lead to it.
    optional: bool,
}

/// What becomes of those that need a state once it is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outlook {
    /// There are none, or operations without an answer may help them.
    Fine,
    /// Nothing that is left makes the state again.
    Hopeless,
    /// Something makes the value at this place again, in time or too late.
    Open(u32),
}

/// The demand for each value, by what is left to order.
#[derive(Debug)]
pub(super) struct Demand {
    places: HashMap<State, u32>,
    values: Vec<Value>,
    /// For each operation the values that it needs and makes.
    of: Vec<(u32, u32)>,
}

impl Demand {
    pub(super) fn new(problem: &Problem) -> Self {
        let mut demand = Self {
            places: HashMap::new(),
            values: Vec::new(),
            of: Vec::with_capacity(problem.known.len()),
        };
        for known in &problem.known {
            let needs = match known.step {
                Step::Read(value) => demand.place(value),
                // INCR = 1 fits where there is nothing and where there is 0.
                Step::Increment(result) if result != 1 => result
                    .checked_sub(1)
                    .map_or(NONE, |number| demand.place(State::Number(number))),
                Step::Set(_) | Step::Increment(_) | Step::Refused => NONE,
            };
            let makes = match known.step {
                Step::Set(value) => demand.place(value),
                Step::Increment(result) => demand.place(State::Number(result)),
                Step::Read(_) | Step::Refused => NONE,
            };
            demand.of.push((needs, makes));
        }
        demand.find_optional(problem);
        for operation in 0..problem.known.len() as u32 {
            demand.put(operation);
        }
        demand
    }

    fn place(&mut self, state: State) -> u32 {
        let values = &mut self.values;
        *self.places.entry(state).or_insert_with(|| {
            values.push(Value::default());
            values.len() as u32 - 1
        })
    }

    fn find_optional(&mut self, problem: &Problem) {
        for state in problem.setters.keys() {
            let place = self.place(*state);
            self.values[place as usize].optional = true;
        }
        let increments = problem.classes[INCREMENTS as usize].available(u64::MAX);
        if increments == 0 {
            return;
        }
        let states = self.places.keys().chain(&problem.initial);
        let mut numbers: Vec<i64> = states.filter_map(|state| state.number()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        for pair in numbers.windows(2) {
            if i128::from(pair[1]) - i128::from(pair[0]) <= i128::from(increments)
                && let Some(place) = self.places.get(&State::Number(pair[1]))
            {
                self.values[*place as usize].optional = true;
            }
        }
    }

    /// An operation is left to order.
    pub(super) fn put(&mut self, operation: u32) {
        let (needs, makes) = self.of[operation as usize];
        if let Some(value) = self.values.get_mut(needs as usize) {
            value.needed_by += 1;
        }
        if let Some(value) = self.values.get_mut(makes as usize) {
            value.made_by += 1;
        }
    }

    /// An operation is ordered.
    pub(super) fn take(&mut self, operation: u32) {
        let (needs, makes) = self.of[operation as usize];
        if let Some(value) = self.values.get_mut(needs as usize) {
            value.needed_by -= 1;
        }
        if let Some(value) = self.values.get_mut(makes as usize) {
            value.made_by -= 1;
        }
    }

    /// What becomes of a state that `operation`, next, gives up.
    pub(super) fn without(&self, state: State, operation: u32) -> Outlook {
        let Some(place) = self.places.get(&state) else {
            return Outlook::Fine;
        };
        let value = &self.values[*place as usize];
        let own = u32::from(self.of[operation as usize].0 == *place);
        if value.optional || value.needed_by <= own {
            Outlook::Fine
        } else if value.made_by == 0 {
            Outlook::Hopeless
        } else {
            Outlook::Open(*place)
        }
    }

    /// The place of the one value that an operation fits.
    pub(super) fn needed(&self, operation: u32) -> Option<u32> {
        let place = self.of[operation as usize].0;
        (place != NONE).then_some(place)
    }

    /// Whether an operation needs the value at `place`.
    pub(super) fn needs(&self, operation: u32, place: u32) -> bool {
        self.of[operation as usize].0 == place
    }

    /// Whether an operation makes the value at `place`.
    pub(super) fn makes(&self, operation: u32, place: u32) -> bool {
        self.of[operation as usize].1 == place
    }
}
