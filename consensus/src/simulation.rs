//! What a simulator may change about the core from outside: deliberate defects, and faults at
//! points where only the code knows that they may happen.
//!
//! Without the feature `simulation` the questions below are `false` before the optimiser starts, so
//! that they cost nothing. With it they ask the calling thread's settings. `NEARWIRE_MUTATION` names
//! the defect that every thread of a process begins with.

use crate::random::Random;

/// A deliberate defect. Each is one that a careful implementer could commit; a check that finds none
/// of them is worth nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Mutation {
    /// Accept does not compare its ballot with the promise.
    PromiseNotChecked,
    /// Accept refuses the very ballot that was promised.
    EqualBallotRefused,
    /// A second Accept of a ballot overwrites its first vote.
    EqualBallotOverwrites,
    /// Prepare raises the promise by a plain store, so that it can go back.
    PromiseStored,
    /// Fetch answers Empty for an entry that holds a later slot.
    OverwrittenIsEmpty,
}

impl Mutation {
    /// Every defect, in the order of the table that `cargo xtask mutants` prints.
    pub const ALL: &[Self] = &[
        Self::PromiseNotChecked,
        Self::EqualBallotRefused,
        Self::EqualBallotOverwrites,
        Self::PromiseStored,
        Self::OverwrittenIsEmpty,
    ];

    /// Its name on command lines and in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PromiseNotChecked => "promise-not-checked",
            Self::EqualBallotRefused => "equal-ballot-refused",
            Self::EqualBallotOverwrites => "equal-ballot-overwrites",
            Self::PromiseStored => "promise-stored",
            Self::OverwrittenIsEmpty => "overwritten-is-empty",
        }
    }

    /// The defect of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|one| one.name() == name)
    }
}

/// Something that may go wrong, or go another permitted way, at a point inside the code.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Fault {
    /// A record's sequence word is found taken, as if another core stepped the region.
    RecordBusy,
    /// A word that must rise is raised by others on every try.
    RaiseContended,
}

impl Fault {
    /// Every fault.
    pub const ALL: &[Self] = &[Self::RecordBusy, Self::RaiseContended];

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RecordBusy => "record-busy",
            Self::RaiseContended => "raise-contended",
        }
    }
}

const FAULTS: usize = Fault::ALL.len();

/// How often each fault strikes, and did.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// None in a thread that nobody injected into.
    random: Option<Random>,
    per_mille: [u16; FAULTS],
    tally: [FaultTally; FAULTS],
}

/// How often a fault could have struck, and how often it did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FaultTally {
    /// Times that its point was passed.
    pub passed: u64,
    /// Times that it struck.
    pub struck: u64,
}

impl Faults {
    /// Faults by `seed`; none strikes yet.
    pub fn new(seed: u64) -> Self {
        Self {
            random: Some(Random::new(seed)),
            ..Self::default()
        }
    }

    /// Has `fault` strike so many times in a thousand.
    #[must_use]
    pub fn with(mut self, fault: Fault, per_mille: u16) -> Self {
        self.per_mille[fault as usize] = per_mille;
        self
    }

    /// Rolls the dice for `fault` once, and counts.
    pub fn strikes(&mut self, fault: Fault) -> bool {
        let Some(random) = &mut self.random else {
            return false;
        };
        let index = fault as usize;
        let strikes = random.below(1000) < u64::from(self.per_mille[index]);
        self.tally[index].passed += 1;
        self.tally[index].struck += u64::from(strikes);
        strikes
    }

    /// How often `fault` could have struck, and did.
    pub fn tally(&self, fault: Fault) -> FaultTally {
        self.tally[fault as usize]
    }
}

/// Whether this build asks at all.
pub const IS_COMPILED_IN: bool = cfg!(feature = "simulation");

/// Whether this thread commits `mutation`.
#[inline(always)]
#[must_use]
pub fn mutated(mutation: Mutation) -> bool {
    #[cfg(feature = "simulation")]
    return hooks::mutated(mutation);
    #[cfg(not(feature = "simulation"))]
    {
        let _ = mutation;
        false
    }
}

/// Whether `fault` happens here and now.
#[inline(always)]
#[must_use]
pub fn strikes(fault: Fault) -> bool {
    #[cfg(feature = "simulation")]
    return hooks::strikes(fault);
    #[cfg(not(feature = "simulation"))]
    {
        let _ = fault;
        false
    }
}

/// Has this thread commit `mutation` from here on, or none.
pub fn mutate(mutation: Option<Mutation>) {
    #[cfg(feature = "simulation")]
    hooks::MUTATION.set(mutation);
    #[cfg(not(feature = "simulation"))]
    let _ = mutation;
}

/// Has faults strike this thread from here on.
pub fn inject(faults: &Faults) {
    #[cfg(feature = "simulation")]
    hooks::FAULTS.set(faults.clone());
    #[cfg(not(feature = "simulation"))]
    let _ = faults;
}

/// What struck this thread since [`inject`]; nothing does from here on.
pub fn faults() -> Faults {
    #[cfg(feature = "simulation")]
    return hooks::FAULTS.take();
    #[cfg(not(feature = "simulation"))]
    Faults::default()
}

#[cfg(feature = "simulation")]
mod hooks {
    use super::{Fault, Faults, Mutation};
    use core::cell::{Cell, RefCell};
    use std::thread_local;

    /// The environment variable that names the defect of a process.
    const VARIABLE: &str = "NEARWIRE_MUTATION";

    thread_local! {
        pub(super) static MUTATION: Cell<Option<Mutation>> = Cell::new(of_process());
        pub(super) static FAULTS: RefCell<Faults> = RefCell::new(Faults::default());
    }

    fn of_process() -> Option<Mutation> {
        let name = std::env::var(VARIABLE).ok()?;
        let mutation = Mutation::from_name(&name);
        assert!(
            mutation.is_some(),
            "{VARIABLE}: there is no mutation {name}"
        );
        mutation
    }

    #[inline]
    pub(super) fn mutated(mutation: Mutation) -> bool {
        MUTATION.get() == Some(mutation)
    }

    #[inline]
    pub(super) fn strikes(fault: Fault) -> bool {
        FAULTS.with_borrow_mut(|faults| faults.strikes(fault))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    #[test]
    fn every_defect_and_fault_has_a_name_of_its_own() {
        let names: BTreeSet<_> = Mutation::ALL.iter().map(|one| one.name()).collect();
        assert_eq!(names.len(), Mutation::ALL.len());
        for (index, mutation) in Mutation::ALL.iter().enumerate() {
            assert_eq!(*mutation as usize, index);
            assert_eq!(Mutation::from_name(mutation.name()), Some(*mutation));
        }
        for (index, fault) in Fault::ALL.iter().enumerate() {
            assert_eq!(*fault as usize, index);
        }
    }

    #[cfg(feature = "simulation")]
    #[test]
    fn faults_strike_as_often_as_they_are_told() {
        inject(&Faults::new(1).with(Fault::RecordBusy, 500));
        let busy = (0..1000).filter(|_| strikes(Fault::RecordBusy)).count();
        let contended = (0..1000).filter(|_| strikes(Fault::RaiseContended)).count();
        assert!((400..600).contains(&busy) && contended == 0);
        let tally = faults().tally(Fault::RecordBusy);
        assert_eq!((tally.passed, tally.struck), (1000, busy as u64));
        assert!(!strikes(Fault::RecordBusy));
    }

    #[cfg(feature = "simulation")]
    #[test]
    fn a_defect_is_the_threads_own() {
        mutate(Some(Mutation::PromiseNotChecked));
        let other = std::thread::spawn(|| mutated(Mutation::PromiseNotChecked));
        assert!(mutated(Mutation::PromiseNotChecked) && !mutated(Mutation::PromiseStored));
        assert!(!other.join().expect("no panic"));
    }
}
