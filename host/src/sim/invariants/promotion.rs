//! Learners first: whoever votes by a new configuration and did not before has applied what lies below
//! the trim, which no acceptor keeps. A configuration whose voters lack it could trim nothing and
//! teach nobody.

use super::Verdict;
use super::chronicle::Chronicle;
use super::state_machine_safety::Logs;
use consensus::Ballot;

/// A leader asks for a ballot with a configuration that it has made.
pub(super) fn asked(chronicle: &Chronicle, logs: &Logs, group: usize, ballot: Ballot) -> Verdict {
    let facts = &chronicle.groups[group];
    let own = facts.ballots.iter().find(|one| one.ballot == ballot.0);
    let Some(counting) = own.filter(|one| one.makes).and_then(|one| one.counting) else {
        return Ok(());
    };
    let earlier = facts.ballots.iter();
    let earlier = earlier.filter(|one| one.proposed && one.ballot < ballot.0);
    let Some(before) = earlier.max_by_key(|one| one.ballot) else {
        return Ok(());
    };
    // What this leader has told: another one may have gone further at acceptors that it did not ask.
    let (Some(former), trim) = (before.counting, before.trim) else {
        return Ok(());
    };
    if Ballot(before.ballot).node() != ballot.node() {
        return Ok(());
    }
    for place in 0..chronicle.shadows.len() {
        let is_new = (counting.voters & !former.voters) >> place & 1 == 1;
        let applied = logs.furthest(place, group);
        if is_new && applied + 1 < trim {
            return Err(format!(
                "group {group}: node {} is to vote by version {} and has applied {applied} slots, but \
                 those below {trim} are in no ring",
                place + 1,
                ballot
            ));
        }
    }
    Ok(())
}
