//! Linearizability (Herlihy and Wing 1990): each operation takes effect at one moment between its
//! call and its answer.

use super::Verdict;
use crate::history::{Operation, Violation, check};

/// Checks what the clients of one group saw.
pub(super) fn judge(group: usize, operations: &[Operation]) -> Verdict {
    match check(operations) {
        // A search that was given up says nothing against the code.
        Ok(()) | Err(Violation::Undecided { .. }) => Ok(()),
        Err(violation @ Violation::Unordered(_)) => Err(format!("group {group}: {violation}")),
    }
}
