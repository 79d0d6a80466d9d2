//! No vote without its value: an acceptor that says Accepted holds that very value for that slot,
//! in a ballot at least as high, unless the slot is trimmed. A vote that outlives its value would
//! let a later leader choose another.

use super::Verdict;
use super::chronicle::Chronicle;
use consensus::wire::Header;

/// An Accepted leaves.
pub(super) fn accepted(
    chronicle: &Chronicle,
    place: usize,
    group: usize,
    header: &Header,
) -> Verdict {
    let held = chronicle.entry(place, group, header.slot.0);
    let trim = chronicle.shadows[place].groups[group].trim;
    if header.slot.0 < trim {
        return Ok(());
    }
    let node = place + 1;
    let (slot, ballot) = (header.slot, header.ballot);
    if held.slot != slot.0 || held.ballot < ballot.0 {
        return Err(format!(
            "slot {slot} of group {group}: node {node} says that it accepted ballot {ballot}, but \
             its region holds slot {} in ballot {}",
            held.slot,
            consensus::Ballot(held.ballot)
        ));
    }
    let value = chronicle.groups[group]
        .slot(slot.0)
        .and_then(|slot| slot.value_in(held.ballot));
    if value.is_some_and(|value| value != held.digest) {
        return Err(format!(
            "slot {slot} of group {group}: node {node} says that it accepted ballot {ballot}, but \
             its region holds another value"
        ));
    }
    Ok(())
}
