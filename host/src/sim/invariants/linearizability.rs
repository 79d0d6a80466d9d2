//! Linearizability (Herlihy and Wing 1990): each operation takes effect at one moment between its
//! call and its answer.

use super::Verdict;
use crate::history::{Operation, check};

/// Checks what the clients of one group saw.
pub(super) fn judge(group: usize, operations: &[Operation]) -> Verdict {
    // A search that was given up has shown nothing: it counts as a violation, too.
    check(operations).map_err(|violation| format!("group {group}: {violation}"))
}
