//! Which case of the corpus states the rule that a defect breaks.
//!
//! A defect that is wider than its rule fails many cases, the first of which may be about something
//! else. It counts as caught by the corpus for the right reason only if this one fails.

use consensus::simulation::Mutation;

const RULES: &[(Mutation, &str)] = &[
    (
        Mutation::PromiseNotChecked,
        "a-ballot-below-the-promise-may-not-vote",
    ),
    (Mutation::EqualBallotRefused, "the-promised-ballot-may-vote"),
    (
        Mutation::EqualBallotOverwrites,
        "an-equal-ballot-never-replaces-a-vote",
    ),
    (Mutation::VoteNotStored, "a-vote-is-stored-with-its-value"),
    (Mutation::VotePromisesNothing, "a-vote-is-a-promise"),
    (
        Mutation::HighestNotRaised,
        "a-promise-tells-how-far-to-fetch",
    ),
    (
        Mutation::KeptSlotOverwritten,
        "what-is-kept-is-not-overwritten",
    ),
    (Mutation::EntryUnlocked, "a-torn-entry-is-busy"),
    (
        Mutation::PublishedBodyWritten,
        "an-entry-that-is-made-even-again-has-its-old-vote",
    ),
    (
        Mutation::PromiseStored,
        "a-promise-is-not-taken-back-by-a-prepare",
    ),
    (
        Mutation::WordsRaisedByStore,
        "a-promise-is-not-taken-back-by-a-vote",
    ),
    (
        Mutation::PrepareUnlocked,
        "a-torn-group-is-busy-for-prepare-and-decide-only",
    ),
    (
        Mutation::LeaseIgnored,
        "a-lease-refuses-another-nodes-prepare",
    ),
    (
        Mutation::LeaseDropped,
        "a-heartbeat-without-the-flag-renews-nothing",
    ),
    (Mutation::FetchUnlocked, "a-torn-entry-is-busy"),
    (
        Mutation::FetchUnpromised,
        "a-fetch-above-the-promise-is-refused",
    ),
    (Mutation::TornIsEmpty, "a-torn-entry-is-busy"),
    (
        Mutation::OverwrittenIsEmpty,
        "an-entry-with-a-later-slot-is-outside",
    ),
    (
        Mutation::TrimmedIsServed,
        "below-the-trim-is-outside-though-the-vote-is-there",
    ),
    (
        Mutation::DecidedMixed,
        "a-higher-ballot-replaces-the-whole-record",
    ),
    (
        Mutation::DecidedByOldBallot,
        "a-decide-below-the-promise-is-ignored",
    ),
    (Mutation::DecidePromisesNothing, "a-decide-is-a-promise"),
    (Mutation::TrimStored, "trim-never-goes-back"),
    (
        Mutation::ForeignRequestServed,
        "another-incarnation-is-dropped",
    ),
    (Mutation::OldEpochServed, "an-older-epoch-is-dropped"),
    (Mutation::SealedServed, "a-sealed-group-answers-nothing"),
    (
        Mutation::SealedBallotTaken,
        "the-sealed-ballot-is-malformed",
    ),
    (
        Mutation::ValueUntagged,
        "the-right-tag-is-served-and-the-answer-has-one",
    ),
];

/// The case that states the rule that `mutation` breaks, if an answer on the wire can show it.
pub(super) fn rule(mutation: Mutation) -> Option<&'static str> {
    let found = RULES.iter().find(|(one, _)| *one == mutation);
    found.map(|(_, case)| *case)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    #[test]
    fn every_rule_is_a_case_of_the_corpus() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../consensus/corpus");
        let files = fs::read_dir(corpus).expect("the corpus");
        let texts: Vec<_> = files
            .map(|file| fs::read_to_string(file.expect("a file").path()).expect("text"))
            .collect();
        let lines: Vec<_> = texts.iter().flat_map(|text| text.lines()).collect();
        for (mutation, case) in RULES {
            let head = format!("case {case}");
            assert!(lines.contains(&head.as_str()), "{mutation:?}: {case}");
        }
    }
}
