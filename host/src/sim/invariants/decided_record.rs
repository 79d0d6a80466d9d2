//! A decided record speaks of one ballot: its ballot and, within a ballot, its end never fall, and
//! every slot from its first to its last was chosen in that very ballot. Followers hold their own
//! votes against it, so that a mixed one would have them apply what nobody chose.

use super::Verdict;
use super::chronicle::{Chronicle, Record};
use consensus::Ballot;

/// A group's record was written.
pub(super) fn written(
    chronicle: &Chronicle,
    place: usize,
    group: usize,
    before: &Record,
) -> Verdict {
    let now = &chronicle.shadows[place].groups[group];
    let same_ballot = now.decided == before.decided;
    let node = place + 1;
    if now.decided < before.decided || same_ballot && now.upto < before.upto {
        return Err(format!(
            "group {group} of node {node}: the decided record fell back from slot {} of ballot {} \
             to slot {} of ballot {}",
            before.upto,
            Ballot(before.decided),
            now.upto,
            Ballot(now.decided)
        ));
    }
    let known = if same_ballot && now.from == before.from {
        before.upto + 1
    } else {
        // What lies further back is in nobody's window.
        now.upto.saturating_sub(chronicle.window_slots())
    };
    let counting = chronicle.groups[group].counting(now.decided);
    for slot in now.from.max(known)..=now.upto {
        let facts = chronicle.groups[group].slot(slot);
        let is_chosen = facts.is_some_and(|facts| facts.is_chosen_in(now.decided, counting));
        if !is_chosen {
            return Err(format!(
                "slot {slot} of group {group}: node {node} holds it decided in ballot {}, in which \
                 it was not chosen",
                Ballot(now.decided)
            ));
        }
    }
    Ok(())
}
