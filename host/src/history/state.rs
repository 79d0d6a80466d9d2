//! What one key holds, in a form that is cheap to compare and to step.

use super::Action;
use crate::kv::parse_integer;
use std::collections::HashMap;

/// What the key holds. A number is what INCR takes for one: each has one text, so that numbers and
/// other texts never mean the same value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum State {
    Absent,
    Number(i64),
    /// By its place in [`Texts`].
    Text(u32),
}

impl State {
    /// What INCR would add to.
    pub(super) fn number(self) -> Option<i64> {
        match self {
            Self::Absent => Some(0),
            Self::Number(number) => Some(number),
            Self::Text(_) => None,
        }
    }

    /// Whether INCR is refused.
    pub(super) fn refuses(self) -> bool {
        self.number().is_none_or(|number| number == i64::MAX)
    }
}

/// The values of a key that are no numbers.
#[derive(Default, Debug)]
pub(super) struct Texts<'a> {
    places: HashMap<&'a [u8], u32>,
    texts: Vec<&'a [u8]>,
}

impl<'a> Texts<'a> {
    pub(super) fn state(&mut self, value: &'a [u8]) -> State {
        if let Some(number) = parse_integer(value) {
            return State::Number(number);
        }
        let texts = &mut self.texts;
        State::Text(*self.places.entry(value).or_insert_with(|| {
            texts.push(value);
            texts.len() as u32 - 1
        }))
    }

    pub(super) fn value(&self, state: State) -> Option<Vec<u8>> {
        match state {
            State::Absent => None,
            State::Number(number) => Some(number.to_string().into_bytes()),
            State::Text(place) => Some(self.texts[place as usize].to_vec()),
        }
    }

    /// An operation whose result is known.
    pub(super) fn step(&mut self, action: &'a Action) -> Step {
        match action {
            Action::Write { value } => Step::Set(self.state(value)),
            Action::Delete => Step::Set(State::Absent),
            Action::Read { value: Some(value) } => Step::Read(self.state(value)),
            Action::Read { value: None } => Step::Read(State::Absent),
            Action::Increment {
                result: Some(number),
            } => Step::Increment(*number),
            Action::Increment { result: None } => Step::Refused,
        }
    }
}

/// An operation with its result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Set(State),
    /// What was there.
    Read(State),
    /// The new number.
    Increment(i64),
    /// An INCR that was refused.
    Refused,
}

impl Step {
    /// Whether it changes nothing, whatever the state.
    pub(super) fn only_looks(self) -> bool {
        match self {
            Self::Read(_) | Self::Refused => true,
            Self::Set(_) | Self::Increment(_) => false,
        }
    }

    /// Whether its result is the one that it has in this state.
    pub(super) fn fits(self, state: State) -> bool {
        match self {
            Self::Set(_) => true,
            Self::Read(value) => value == state,
            Self::Increment(result) => {
                let next = state.number().and_then(|number| number.checked_add(1));
                next == Some(result)
            }
            Self::Refused => state.refuses(),
        }
    }

    /// The state after it, where it fits.
    pub(super) fn after(self, state: State) -> State {
        match self {
            Self::Set(value) => value,
            Self::Increment(result) => State::Number(result),
            Self::Read(_) | Self::Refused => state,
        }
    }
}
