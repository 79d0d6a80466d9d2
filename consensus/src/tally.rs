//! What engines that see whole frames count, in one numbering: an engine's counters are an array.

use crate::{acceptor, frame, wire};

/// What came of a frame to our port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Count {
    /// An answer was sent.
    Answered,
    /// Taken, and no answer was asked for.
    Taken,
    /// The answer is longer than the request: the host was shown that instead.
    NoRoom,
    /// The headers in front of the datagram were refused.
    Frame(frame::Malformed),
    /// The datagram was refused.
    Wire(wire::Malformed),
    /// The step dropped the request.
    Step(acceptor::Drop),
}

const FIRST_FRAME: usize = 3;
const FIRST_WIRE: usize = FIRST_FRAME + frame::Malformed::COUNT;
const FIRST_STEP: usize = FIRST_WIRE + wire::Malformed::COUNT;

impl Count {
    /// How many there are.
    pub const COUNT: usize = FIRST_STEP + acceptor::Drop::COUNT;

    /// The place among an engine's counters, `0..COUNT`.
    #[inline(always)]
    pub const fn index(self) -> usize {
        match self {
            Self::Answered => 0,
            Self::Taken => 1,
            Self::NoRoom => 2,
            Self::Frame(reason) => FIRST_FRAME + reason as usize,
            Self::Wire(reason) => FIRST_WIRE + reason as usize,
            Self::Step(reason) => FIRST_STEP + reason as usize,
        }
    }

    /// Every one, in the order of the places.
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::Answered, Self::Taken, Self::NoRoom]
            .into_iter()
            .chain(frame::Malformed::ALL.map(Self::Frame))
            .chain(wire::Malformed::ALL.map(Self::Wire))
            .chain(acceptor::Drop::ALL.map(Self::Step))
    }

    /// A stable name for metrics and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Taken => "taken",
            Self::NoRoom => "no_room",
            Self::Frame(reason) => reason.name(),
            Self::Wire(reason) => reason.name(),
            Self::Step(reason) => reason.name(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_count_has_a_place_and_a_name_of_its_own() {
        assert!(Count::all().map(Count::index).eq(0..Count::COUNT));
        let names: BTreeSet<_> = Count::all().map(Count::name).collect();
        assert_eq!(names.len(), Count::COUNT);
    }
}
