//! Who says whether a history has an order: nearwire's own checker, and stateright's.
//!
//! stateright's tester tries orders without a bound and remembers no dead end, so it is given each
//! key in windows. A window ends with an operation that no other overlaps: what the key holds then
//! is known. Operations without an answer may take effect in any later window; they are offered
//! where a window has no order without them, so that a window may be accepted wrongly but is never
//! refused wrongly. What is too wide for it is left undecided and counted.

use nearwire::history::{self, Action, Operation};
use stateright::semantics::{ConsistencyTester as _, LinearizabilityTester, SequentialSpec};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::rc::Rc;

/// Most operations of a window that is tried.
const MAX_WINDOW: usize = 80;
/// Steps that are tried for a window.
const MAX_STEPS: u64 = 20_000;
/// Operations without an answer that are offered to a window.
const MAX_OFFERED: usize = 6;
/// Threads that judge keys beside each other.
const THREADS: usize = 4;

/// What the judges found.
#[derive(Clone, Default, Debug)]
pub(crate) struct Judgement {
    /// What nearwire's checker says, if it refuses.
    pub(crate) own: Option<String>,
    /// What stateright's says.
    pub(crate) outside: Option<String>,
    /// Operations that stateright's tester accepted, and those that were too wide for it.
    pub(crate) accepted: u64,
    pub(crate) undecided: u64,
}

impl Judgement {
    pub(crate) fn is_clean(&self) -> bool {
        self.own.is_none() && self.outside.is_none()
    }
}

/// Asks both.
pub(crate) fn judge(operations: &[Operation]) -> Judgement {
    let mut by_key: BTreeMap<&[u8], Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        by_key.entry(&operation.key).or_default().push(operation);
    }
    let mut keys: Vec<Vec<&Operation>> = by_key.into_values().collect();
    for key in &mut keys {
        key.sort_by_key(|one| one.invoked_ns);
    }
    let share = keys.len().div_ceil(THREADS).max(1);
    let mut judgement = std::thread::scope(|scope| {
        let judges: Vec<_> = keys
            .chunks(share)
            .map(|keys| scope.spawn(|| outside(keys)))
            .collect();
        let mut sum = Judgement::default();
        for judge in judges {
            let one = judge.join().expect("a judge does not panic");
            sum.accepted += one.accepted;
            sum.undecided += one.undecided;
            sum.outside = sum.outside.or(one.outside);
        }
        sum
    });
    judgement.own = history::check(operations).err().map(|one| one.to_string());
    judgement
}

fn outside(keys: &[Vec<&Operation>]) -> Judgement {
    let mut judgement = Judgement::default();
    for key in keys {
        let unknown: Vec<&Operation> = key
            .iter()
            .copied()
            .filter(|one| one.returned_ns.is_none() && one.action != Action::Read { value: None })
            .collect();
        let mut before = None;
        for window in windows(key) {
            let count = window.len() as u64;
            match in_order(before.as_ref(), &window, &unknown) {
                Some(true) => judgement.accepted += count,
                Some(false) => {
                    let story = || tell(before.as_ref(), &window);
                    judgement.outside.get_or_insert_with(story);
                }
                None => judgement.undecided += count,
            }
            before = window.last().and_then(|last| leaves(last)).unwrap_or(None);
        }
    }
    judgement
}

/// What an operation leaves, where that is told by its answer.
fn leaves(operation: &Operation) -> Option<Option<Vec<u8>>> {
    match &operation.action {
        Action::Write { value } => Some(Some(value.clone())),
        Action::Read { value } => Some(value.clone()),
        Action::Delete => Some(None),
        Action::Increment { result } => result.map(|one| Some(one.to_string().into_bytes())),
    }
}

/// The answered operations of a key, cut behind each that stands alone.
fn windows<'a>(key: &[&'a Operation]) -> Vec<Vec<&'a Operation>> {
    let known: Vec<(&Operation, u64)> = key
        .iter()
        .filter_map(|one| Some((*one, one.returned_ns?)))
        .collect();
    let mut windows = Vec::new();
    let mut window = Vec::new();
    let mut latest_ns = 0;
    for (place, (operation, returned_ns)) in known.iter().enumerate() {
        window.push(*operation);
        let after_all = latest_ns < operation.invoked_ns;
        latest_ns = latest_ns.max(*returned_ns);
        let next_ns = known
            .get(place + 1)
            .map_or(u64::MAX, |next| next.0.invoked_ns);
        if after_all && latest_ns < next_ns && leaves(operation).is_some() {
            windows.push(std::mem::take(&mut window));
        }
    }
    if !window.is_empty() {
        windows.push(window);
    }
    windows
}

/// Whether a window has an order; `None` if that was not found out.
fn in_order(
    before: Option<&Vec<u8>>,
    window: &[&Operation],
    unknown: &[&Operation],
) -> Option<bool> {
    if window.len() > MAX_WINDOW {
        return None;
    }
    if ask(before, window, &[])? {
        return Some(true);
    }
    let end_ns = window.iter().filter_map(|one| one.returned_ns).max()?;
    let seen: Vec<i64> = window.iter().filter_map(|one| number(one)).collect();
    let increments = unknown.iter().chain(window).filter(|one| {
        let increment = &one.action;
        matches!(increment, Action::Increment { .. })
    });
    let most = increments.count() as i64;
    let is_seen = |value: &[u8]| {
        let read = |one: &&Operation| leaves(one).as_ref() == Some(&Some(value.to_vec()));
        let counted = |base| {
            seen.iter()
                .any(|number| (base..=base + most).contains(number))
        };
        window.iter().any(read) || decimal(value).is_some_and(counted)
    };
    let offered: Vec<&Operation> = unknown
        .iter()
        .copied()
        .filter(|one| one.invoked_ns <= end_ns)
        .filter(|one| match &one.action {
            Action::Write { value } => {
                is_seen(value) || (decimal(value).is_none() && refused(window))
            }
            Action::Delete | Action::Increment { .. } => true,
            Action::Read { .. } => false,
        })
        .collect();
    let latest = &offered[offered.len().saturating_sub(MAX_OFFERED)..];
    let found = ask(before, window, latest)?;
    // A refusal counts only if nothing was held back from the tester.
    (found || latest.len() == offered.len()).then_some(found)
}

fn refused(window: &[&Operation]) -> bool {
    let refusal = Action::Increment { result: None };
    window.iter().any(|one| one.action == refusal)
}

fn number(operation: &Operation) -> Option<i64> {
    decimal(&leaves(operation)??)
}

fn decimal(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// What one key does. It counts its steps, and takes none beyond the bound.
#[derive(Clone)]
struct Key {
    value: Option<Vec<u8>>,
    steps: Rc<Cell<u64>>,
}

#[derive(Clone, Debug)]
enum Ask {
    Set(Vec<u8>),
    Get,
    Delete,
    Increment,
}

#[derive(Clone, PartialEq, Debug)]
enum Told {
    Done,
    Value(Option<Vec<u8>>),
    Number(Option<i64>),
}

impl SequentialSpec for Key {
    type Op = Ask;
    type Ret = Told;

    fn invoke(&mut self, ask: &Ask) -> Told {
        self.steps.set(self.steps.get() + 1);
        match ask {
            Ask::Set(value) => self.value = Some(value.clone()),
            Ask::Get => return Told::Value(self.value.clone()),
            Ask::Delete => self.value = None,
            Ask::Increment => {
                let number = match &self.value {
                    None => Some(0),
                    Some(value) => decimal(value),
                };
                let next = number.and_then(|number| number.checked_add(1));
                if let Some(next) = next {
                    self.value = Some(next.to_string().into_bytes());
                }
                return Told::Number(next);
            }
        }
        Told::Done
    }

    fn is_valid_step(&mut self, ask: &Ask, told: &Told) -> bool {
        self.steps.get() < MAX_STEPS && self.invoke(ask) == *told
    }
}

fn asked(operation: &Operation) -> (Ask, Told) {
    match &operation.action {
        Action::Write { value } => (Ask::Set(value.clone()), Told::Done),
        Action::Read { value } => (Ask::Get, Told::Value(value.clone())),
        Action::Delete => (Ask::Delete, Told::Done),
        Action::Increment { result } => (Ask::Increment, Told::Number(*result)),
    }
}

/// Asks stateright; `None` if it tried too long.
fn ask(before: Option<&Vec<u8>>, window: &[&Operation], pending: &[&Operation]) -> Option<bool> {
    let steps = Rc::new(Cell::new(0));
    let mut tester = LinearizabilityTester::new(Key {
        value: before.cloned(),
        steps: Rc::clone(&steps),
    });
    // Whoever is free asks: which client it was means nothing for the order.
    let mut lanes: Vec<u64> = Vec::new();
    let mut events = Vec::new();
    for operation in window {
        let returned_ns = operation.returned_ns?;
        let free = lanes.iter().position(|until| *until < operation.invoked_ns);
        let lane = free.unwrap_or_else(|| {
            lanes.push(0);
            lanes.len() - 1
        });
        lanes[lane] = returned_ns;
        // Of two at one moment the invocation comes first: they overlap.
        events.push((operation.invoked_ns, false, lane, *operation));
        events.push((returned_ns, true, lane, *operation));
    }
    for (place, operation) in pending.iter().enumerate() {
        let lane = lanes.len() + place;
        events.push((operation.invoked_ns, false, lane, *operation));
    }
    events.sort_by_key(|(at_ns, returns, ..)| (*at_ns, *returns));
    for (_, returns, lane, operation) in events {
        let (ask, told) = asked(operation);
        let taken = if returns {
            tester.on_return(lane, told).map(|_| ())
        } else {
            tester.on_invoke(lane, ask).map(|_| ())
        };
        taken.expect("a lane has one operation at a time");
    }
    let found = tester.is_consistent();
    (found || steps.get() < MAX_STEPS).then_some(found)
}

fn tell(before: Option<&Vec<u8>>, window: &[&Operation]) -> String {
    let text = |value: &Vec<u8>| String::from_utf8_lossy(value).into_owned();
    let mut story = format!(
        "stateright finds no order of these operations on {}, which held {}:",
        String::from_utf8_lossy(&window[0].key),
        before.map_or_else(|| "nothing".to_owned(), text)
    );
    for one in window {
        let _ = write!(
            story,
            "\n  {:>14} to {:>14} ns  client {:<4} {one}",
            one.invoked_ns,
            one.returned_ns.unwrap_or(0),
            one.client
        );
    }
    story
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(invoked_ns: u64, returned_ns: impl Into<Option<u64>>, action: Action) -> Operation {
        Operation {
            client: 1,
            key: b"k".to_vec(),
            invoked_ns,
            returned_ns: returned_ns.into(),
            action,
        }
    }

    fn set(value: &str) -> Action {
        Action::Write {
            value: value.into(),
        }
    }

    fn get(value: &str) -> Action {
        Action::Read {
            value: Some(value.into()),
        }
    }

    #[test]
    fn both_judges_refuse_a_stale_read_behind_a_cut() {
        let stale = [
            at(1, 2, set("1")),
            at(3, 4, set("2")),
            at(5, 6, get("2")),
            at(7, 8, get("1")),
        ];
        let judgement = judge(&stale);
        assert!(judgement.own.is_some() && judgement.outside.is_some());
        assert!(judge(&stale[..3]).is_clean());
    }

    #[test]
    fn an_operation_without_an_answer_may_take_effect_later_or_never() {
        let late = [
            at(1, None, set("9")),
            at(2, 3, set("1")),
            at(4, 5, get("1")),
            at(6, 7, get("9")),
            at(8, 9, Action::Increment { result: Some(10) }),
        ];
        let judgement = judge(&late);
        assert!(judgement.is_clean(), "{judgement:?}");
        assert_eq!((judgement.accepted, judgement.undecided), (4, 0));
        assert!(judge(&late[1..]).outside.is_some(), "nobody wrote 9");
    }
}
