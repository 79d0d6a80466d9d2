//! No ring entry at or above the trim is overwritten by another slot's vote: what lies there may
//! have been chosen, and nobody else need have it.

use super::Verdict;
use super::chronicle::{Chronicle, Vote};

/// An entry was written.
pub(super) fn written(
    chronicle: &Chronicle,
    place: usize,
    group: usize,
    before: &Vote,
    vote: &Vote,
) -> Verdict {
    if before.slot == 0 || before.slot == vote.slot {
        return Ok(());
    }
    let node = place + 1;
    if vote.slot < before.slot {
        return Err(format!(
            "group {group} of node {node}: slot {} was overwritten by slot {}, which is older",
            before.slot, vote.slot
        ));
    }
    let trim = chronicle.shadows[place].groups[group].trim;
    if before.slot >= trim {
        return Err(format!(
            "group {group} of node {node}: slot {} was overwritten by slot {} although the trim is \
             {trim}",
            before.slot, vote.slot
        ));
    }
    Ok(())
}
