//! The search for an order: Wing and Gong's, with memory.
//!
//! A position of the search is the set of operations not ordered yet, the state, and which of the
//! operations without an answer were used. Operations that may come next are those invoked before
//! the first return of what is left, so that the set is named by them alone, and a position between
//! two operations of a quiet key by nothing but the state: what follows a quiescent point is never
//! searched twice. Four rules keep it narrow:
//!
//! - An operation that only looks and fits the state goes next, without an alternative: later it
//!   could not help anything.
//! - A value that is still needed is not given up if nothing that is left can make it again.
//! - An operation without an answer is used directly before one that needs its effect. Taken from
//!   any other place of an order it leaves an order, since nobody sees what it did.
//! - A position is dead if the same one was found dead with fewer of those used (they may always be
//!   left out).

use super::demand::{Demand, Outlook};
use super::problem::{Effect, INCREMENTS, Known, Problem};
use super::state::{State, Step};
use std::cmp::Reverse;
use std::collections::HashMap;

/// What all keys of a history may cost together before the first is given up.
const SHARED_EFFORT: u64 = 1 << 28;
/// What each operation may cost in any case, so that the keys after an expensive one are judged.
const EFFORT_PER_OPERATION: u64 = 1 << 10;

/// How far is looked for who needs a value, and who makes it.
const MAX_LOOK_AHEAD: usize = 256;

/// What may still be spent. Memory is counted too: a unit is at most about 32 bytes kept.
#[derive(Debug)]
pub(super) struct Effort {
    pub(super) shared: u64,
    pub(super) per_operation: u64,
}

impl Default for Effort {
    fn default() -> Self {
        Self {
            shared: SHARED_EFFORT,
            per_operation: EFFORT_PER_OPERATION,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Ordered,
    Unordered,
    Undecided,
}

/// Operations without an answer that take effect before an operation, to make it fit.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// The class of one that sets the state.
    set: Option<u32>,
    /// How many increments follow it.
    increments: u32,
}

#[derive(Clone, Copy, Debug)]
struct Choice {
    operation: u32,
    way: Option<Way>,
}

/// A position with alternatives left.
#[derive(Debug)]
struct Frame {
    /// The state.
    state: State,
    /// How many operations are ordered.
    ordered: usize,
    /// Where its alternatives begin.
    choices: usize,
    /// The one that is being tried.
    tried: Option<Choice>,
}

/// A class of operations without an answer, and how many of it were used.
type UsedOf = (u32, u32);
/// By class.
type Used = Vec<UsedOf>;

struct Search<'a> {
    problem: &'a Problem,
    /// Operations not ordered yet, by invocation, as a ring through an end at `known.len()`.
    next: Vec<u32>,
    previous: Vec<u32>,
    ordered: Vec<u32>,
    demand: Demand,
    used: Used,
    frames: Vec<Frame>,
    choices: Vec<Choice>,
    /// What may come next, and the first of it to return.
    candidates: Vec<u32>,
    first: u32,
    /// Positions without what was used, and with what was used they were found dead.
    dead: HashMap<Box<[u32]>, Vec<Box<[UsedOf]>>>,
    key: Vec<u32>,
    spent: u64,
}

/// Looks for an order.
pub(super) fn search(problem: &Problem, effort: &mut Effort) -> Verdict {
    let own = problem.known.len() as u64 * effort.per_operation;
    let mut search = Search::new(problem);
    let mut verdict = Verdict::Undecided;
    for state in &problem.initial {
        verdict = search.run(*state, own + effort.shared);
        match verdict {
            Verdict::Ordered | Verdict::Undecided => break,
            Verdict::Unordered => {}
        }
    }
    effort.shared -= search.spent.saturating_sub(own).min(effort.shared);
    verdict
}

impl<'a> Search<'a> {
    fn new(problem: &'a Problem) -> Self {
        let end = problem.known.len() as u32;
        Self {
            problem,
            next: (0..=end)
                .map(|at| if at == end { 0 } else { at + 1 })
                .collect(),
            previous: (0..=end)
                .map(|at| if at == 0 { end } else { at - 1 })
                .collect(),
            ordered: Vec::new(),
            demand: Demand::new(problem),
            used: Used::new(),
            frames: Vec::new(),
            choices: Vec::new(),
            candidates: Vec::new(),
            first: end,
            dead: HashMap::new(),
            key: Vec::new(),
            spent: 0,
        }
    }

    fn known(&self, operation: u32) -> &'a Known {
        &self.problem.known[operation as usize]
    }

    fn run(&mut self, mut state: State, limit: u64) -> Verdict {
        self.take_back(0);
        loop {
            self.look(state);
            if self.candidates.is_empty() {
                return Verdict::Ordered;
            }
            if self.spent > limit {
                return Verdict::Undecided;
            }
            let choices = self.choices.len();
            if !self.is_dead(state) {
                self.choose(state);
            }
            self.frames.push(Frame {
                state,
                ordered: self.ordered.len(),
                choices,
                tried: None,
            });
            match self.go_on() {
                Some(after) => state = after,
                None => return Verdict::Unordered,
            }
        }
    }

    /// Orders all that only looks and fits, and finds what may come next.
    fn look(&mut self, state: State) {
        loop {
            self.find_candidates();
            let ordered = self.ordered.len();
            for index in 0..self.candidates.len() {
                let operation = self.candidates[index];
                let step = self.known(operation).step;
                if step.only_looks() && step.fits(state) {
                    self.order(operation);
                }
            }
            if self.ordered.len() == ordered {
                break;
            }
        }
    }

    fn find_candidates(&mut self) {
        let end = self.problem.known.len() as u32;
        self.candidates.clear();
        self.first = end;
        let mut until_ns = u64::MAX;
        let mut at = self.next[end as usize];
        while at != end && self.known(at).invoked_ns <= until_ns {
            let returned_ns = self.known(at).returned_ns;
            if returned_ns < until_ns || self.first == end {
                (until_ns, self.first) = (returned_ns, at);
            }
            self.candidates.push(at);
            at = self.next[at as usize];
        }
        // The last of them may have been invoked before an earlier return was met, not after it:
        // the ring goes by invocation, and none returns before it is invoked.
        self.spent += self.candidates.len() as u64 + 1;
    }

    fn order(&mut self, operation: u32) {
        let at = operation as usize;
        self.next[self.previous[at] as usize] = self.next[at];
        self.previous[self.next[at] as usize] = self.previous[at];
        self.ordered.push(operation);
        self.demand.take(operation);
    }

    fn take_back(&mut self, ordered: usize) {
        while self.ordered.len() > ordered {
            let operation = self.ordered.pop().expect("more than `ordered`");
            self.demand.put(operation);
            let at = operation as usize;
            self.next[self.previous[at] as usize] = operation;
            self.previous[self.next[at] as usize] = operation;
        }
    }

    /// Tries the next alternative, of this position or of one before it.
    fn go_on(&mut self) -> Option<State> {
        loop {
            let frame = self.frames.last_mut()?;
            let (state, ordered, choices) = (frame.state, frame.ordered, frame.choices);
            let tried = frame.tried.take();
            self.take_back(ordered);
            if let Some(Choice { way: Some(way), .. }) = tried {
                self.count(way, |count, by| count - by);
            }
            if self.choices.len() > choices {
                let choice = self.choices.pop().expect("more than `choices`");
                if let Some(frame) = self.frames.last_mut() {
                    frame.tried = Some(choice);
                }
                if let Some(way) = choice.way {
                    self.count(way, |count, by| count + by);
                }
                let step = self.known(choice.operation).step;
                let state = self.state_through(state, choice.way);
                debug_assert!(step.fits(state), "an alternative fits");
                self.order(choice.operation);
                return Some(step.after(state));
            }
            self.bury(state);
            self.frames.pop();
        }
    }

    fn state_through(&self, state: State, way: Option<Way>) -> State {
        let Some(Way { set, increments }) = way else {
            return state;
        };
        let state = match set {
            None => state,
            Some(class) => match self.problem.classes[class as usize].effect {
                Effect::Set(state) => state,
                Effect::Increment => state,
            },
        };
        match state.number() {
            Some(number) if increments > 0 => State::Number(number + i64::from(increments)),
            Some(_) | None => state,
        }
    }

    fn count(&mut self, way: Way, by: impl Fn(u32, u32) -> u32) {
        let set = way.set.map(|class| (class, 1));
        let increments = (way.increments > 0).then_some((INCREMENTS, way.increments));
        for (class, amount) in set.into_iter().chain(increments) {
            let at = self.used.binary_search_by_key(&class, |(of, _)| *of);
            let at = at.unwrap_or_else(|at| {
                self.used.insert(at, (class, 0));
                at
            });
            self.used[at].1 = by(self.used[at].1, amount);
            if self.used[at].1 == 0 {
                self.used.remove(at);
            }
        }
    }

    /// The position without what was used: what is left, by what may come next, and the state.
    fn name(&mut self, state: State) {
        self.key.clear();
        self.key.extend_from_slice(&self.candidates);
        let (kind, word) = match state {
            State::Absent => (0, 0),
            State::Number(number) => (1, number as u64),
            State::Text(place) => (2, u64::from(place)),
        };
        self.key.extend([kind, (word >> 32) as u32, word as u32]);
    }

    fn is_dead(&mut self, state: State) -> bool {
        if self.dead.is_empty() {
            return false;
        }
        self.name(state);
        let Some(all) = self.dead.get(self.key.as_slice()) else {
            return false;
        };
        self.spent += (all.len() * (self.used.len() + 1)) as u64;
        all.iter().any(|dead| contains(&self.used, dead))
    }

    fn bury(&mut self, state: State) {
        self.find_candidates();
        self.name(state);
        let used: Box<[UsedOf]> = self.used.as_slice().into();
        self.spent += 4 + (self.key.len() + 2 * used.len()) as u64 / 8;
        if let Some(all) = self.dead.get_mut(self.key.as_slice()) {
            if !all.iter().any(|dead| contains(&self.used, dead)) {
                all.push(used);
            }
        } else {
            self.dead.insert(self.key.as_slice().into(), vec![used]);
        }
    }

    /// Finds the alternatives of a position; the last is tried first.
    fn choose(&mut self, state: State) {
        let from = self.choices.len();
        let until_ns = self.known(self.first).returned_ns;
        let needed = self.known(self.first).step;
        for index in 0..self.candidates.len() {
            let operation = self.candidates[index];
            let step = self.known(operation).step;
            if step.fits(state) {
                self.choices.push(Choice {
                    operation,
                    way: None,
                });
            } else {
                self.ways(state, operation, until_ns);
            }
        }
        let mut kept = from;
        for index in from..self.choices.len() {
            let Choice { operation, way } = self.choices[index];
            let through = self.state_through(state, way);
            let after = self.known(operation).step.after(through);
            if after == state || self.may_give_up(state, operation) {
                self.choices.swap(kept, index);
                kept += 1;
            }
        }
        self.choices.truncate(kept);
        self.spent += (self.choices.len() - from) as u64;
        let mut choices = self.choices.split_off(from);
        choices.sort_by_cached_key(|choice| {
            let problem = self.problem;
            let Known {
                step, returned_ns, ..
            } = problem.known[choice.operation as usize];
            let rank = match (choice.way, step) {
                // What fits only now.
                (None, Step::Increment(_) | Step::Read(_) | Step::Refused) => 0,
                // What the first to return is waiting for.
                (None, Step::Set(value)) if !needed.fits(state) && needed.fits(value) => 1,
                (Some(_), _) if self.may_come(choice.operation) => 5,
                (Some(_), _) if choice.operation == self.first => 2,
                (None, Step::Set(_)) => 3,
                (Some(_), _) => 4,
            };
            let increments = choice.way.map_or(0, |way| way.increments);
            Reverse((rank, returned_ns, increments))
        });
        self.choices.append(&mut choices);
    }

    /// Whether an operation that was answered may yet make what `operation` needs.
    fn may_come(&self, operation: u32) -> bool {
        let Some(place) = self.demand.needed(operation) else {
            return true;
        };
        let end = self.problem.known.len() as u32;
        let until_ns = self.known(operation).returned_ns;
        let mut at = self.next[end as usize];
        for _ in 0..MAX_LOOK_AHEAD {
            if at == end || self.known(at).invoked_ns > until_ns {
                return false;
            }
            if self.demand.makes(at, place) {
                return true;
            }
            at = self.next[at as usize];
        }
        false
    }

    /// Whether what needs `state` can still come by it after `operation`, as far as a look ahead
    /// tells.
    fn may_give_up(&mut self, state: State, operation: u32) -> bool {
        let place = match self.demand.without(state, operation) {
            Outlook::Fine => return true,
            Outlook::Hopeless => return false,
            Outlook::Open(place) => place,
        };
        let end = self.problem.known.len() as u32;
        let mut needed_until_ns = u64::MAX;
        let mut at = self.next[end as usize];
        for _ in 0..MAX_LOOK_AHEAD {
            self.spent += 1;
            if at == end || self.known(at).invoked_ns > needed_until_ns {
                return needed_until_ns == u64::MAX;
            }
            if self.demand.makes(at, place) {
                return true;
            }
            if at != operation && self.demand.needs(at, place) {
                needed_until_ns = needed_until_ns.min(self.known(at).returned_ns);
            }
            at = self.next[at as usize];
        }
        true
    }

    fn spare(&self, class: u32, until_ns: u64) -> u32 {
        let at = self.used.binary_search_by_key(&class, |(of, _)| *of);
        let used = at.map_or(0, |at| self.used[at].1);
        self.problem.classes[class as usize].available(until_ns) - used
    }

    /// Finds what makes an operation fit that does not.
    fn ways(&mut self, state: State, operation: u32, until_ns: u64) {
        if self.problem.setters.is_empty() && self.spare(INCREMENTS, until_ns) == 0 {
            return;
        }
        let problem = self.problem;
        match self.known(operation).step {
            Step::Set(_) => {}
            Step::Read(value) => self.ways_to(value, state, operation, until_ns),
            Step::Increment(result) => {
                if let Some(number) = result.checked_sub(1) {
                    self.ways_to(State::Number(number), state, operation, until_ns);
                }
                if result == 1 {
                    self.ways_to(State::Absent, state, operation, until_ns);
                }
            }
            Step::Refused => {
                self.ways_to(State::Number(i64::MAX), state, operation, until_ns);
                for (_, class) in problem.setters.range(State::Text(0)..) {
                    self.set(*class, 0, operation, until_ns);
                }
            }
        }
    }

    fn ways_to(&mut self, target: State, state: State, operation: u32, until_ns: u64) {
        let problem = self.problem;
        let State::Number(target) = target else {
            if let Some(class) = problem.setters.get(&target) {
                self.set(*class, 0, operation, until_ns);
            }
            return;
        };
        let spare = self.spare(INCREMENTS, until_ns);
        let distance = |from: i64| {
            let distance = u32::try_from(i128::from(target) - i128::from(from)).ok()?;
            (distance <= spare).then_some(distance)
        };
        if let Some(increments) = state.number().and_then(distance)
            && increments > 0
        {
            let way = Some(Way {
                set: None,
                increments,
            });
            self.choices.push(Choice { operation, way });
        }
        let least = State::Number(target.saturating_sub(i64::from(spare)));
        for (from, class) in problem.setters.range(least..=State::Number(target)) {
            if let Some(increments) = from.number().and_then(distance) {
                self.set(*class, increments, operation, until_ns);
            }
        }
        if let Some(class) = problem.setters.get(&State::Absent)
            && let Some(increments) = distance(0)
            && increments > 0
        {
            self.set(*class, increments, operation, until_ns);
        }
    }

    fn set(&mut self, class: u32, increments: u32, operation: u32, until_ns: u64) {
        if self.spare(class, until_ns) > 0 {
            let way = Some(Way {
                set: Some(class),
                increments,
            });
            self.choices.push(Choice { operation, way });
        }
    }
}

/// Whether all of `less` is in `more`.
fn contains(more: &[UsedOf], less: &[UsedOf]) -> bool {
    let mut more = more.iter();
    less.iter().all(|(class, count)| {
        more.by_ref()
            .find(|(of, _)| of >= class)
            .is_some_and(|(of, held)| of == class && held >= count)
    })
}
