//! One value per ballot: in one ballot and slot at most one value is ever proposed, and votes in it
//! are for that value (Lamport's Voting specification, `OneValuePerBallot`).

use super::Verdict;
use super::chronicle::{Chronicle, Digest, Vote};
use consensus::Ballot;

/// A value was proposed, or voted for by the node at `voter`.
pub(super) fn seen(
    chronicle: &mut Chronicle,
    group: usize,
    vote: &Vote,
    voter: Option<usize>,
) -> Verdict {
    let known: Option<Digest> = chronicle.groups[group]
        .slot(vote.slot)
        .and_then(|slot| slot.value_in(vote.ballot));
    match known {
        None => {
            let values = &mut chronicle.groups[group].slot_mut(vote.slot).values;
            values.push((vote.ballot, vote.digest));
            Ok(())
        }
        Some(value) if value == vote.digest => Ok(()),
        Some(_) => Err(format!(
            "slot {} of group {group}: a second value in ballot {}, {}",
            vote.slot,
            Ballot(vote.ballot),
            match voter {
                None => "proposed".into(),
                Some(place) => format!("voted for by node {}", place + 1),
            }
        )),
    }
}
