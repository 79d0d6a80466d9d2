//! Finds the faults that a failure needs.

use super::{FaultKind, Options, Outcome, run};

/// A failure made smaller.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The options under which the seed still fails.
    pub options: Options,
    /// How it fails under them.
    pub outcome: Outcome,
    /// The kinds of faults that struck and are needed.
    pub needed: Vec<FaultKind>,
}

/// Leaves out one kind of fault after the other, as long as the same invariant is violated.
///
/// Without a fault the rest of the world goes another way, so that what remains is enough but need
/// not be least.
pub fn shrink(failure: &Outcome, options: &Options) -> Option<Shrunk> {
    let wanted = failure.violation.as_ref()?.invariant;
    let mut shrunk = Shrunk {
        options: Options {
            trace: false,
            ..*options
        },
        outcome: failure.clone(),
        needed: Vec::new(),
    };
    let struck = failure.coverage.kinds().filter(|(_, count)| *count > 0);
    let mut needed: Vec<FaultKind> = struck.map(|(kind, _)| kind).collect();
    if needed.is_empty() {
        // A world that panicked took its counts along.
        needed.extend(FaultKind::ALL);
    }
    for kind in &needed {
        let fewer = Options {
            without: shrunk.options.without.with(*kind),
            ..shrunk.options
        };
        let outcome = run(failure.seed, &fewer);
        let same = |violation: &super::Violation| violation.invariant == wanted;
        if outcome.violation.as_ref().is_some_and(same) {
            (shrunk.options, shrunk.outcome) = (fewer, outcome);
        }
    }
    needed.retain(|one| !shrunk.options.without.has(*one));
    shrunk.needed = needed;
    Some(shrunk)
}
