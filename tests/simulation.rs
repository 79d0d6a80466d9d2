//! The simulator finds nothing in this build, the same thing twice, and deliberate defects.

mod alone;

use alone::{ALONE, Alone};
use consensus::simulation::{IS_COMPILED_IN, Mutation};
use nearwire::sim::{Invariant, Options, Seeds, run, run_seeds};

/// Seeds that are run at each test.
const SEEDS: u64 = 200;
/// Seeds within which a defect is to be found.
const MUTANT_SEEDS: u64 = 100;

fn seeds(first: u64, seeds: u64, options: Options) -> Seeds {
    Seeds {
        first,
        seeds,
        time: None,
        fail_fast: false,
        jobs: 2,
        options,
    }
}

#[test]
fn no_seed_violates_an_invariant() {
    let options = Options {
        fault_points: true,
        ..Options::default()
    };
    let tally = run_seeds(&seeds(0, SEEDS, options), &mut |_| {}).expect("threads");
    let failures = tally.first_failures.iter();
    let failures: Vec<_> = failures
        .map(|failure| (failure.seed, failure.events, &failure.violation))
        .collect();
    assert!(failures.is_empty(), "{failures:#?}");
    assert_eq!(tally.seeds, SEEDS);
    let (deliveries, commits, changes) = tally.least.expect("some ended well");
    assert!(deliveries >= 10_000 && commits >= 100 && changes >= 1);
}

#[test]
fn a_seed_is_the_same_twice() {
    for seed in [1, 2, 3, 5, 8] {
        let (one, two) = (
            run(seed, &Options::default()),
            run(seed, &Options::default()),
        );
        assert_eq!(
            (one.events, one.deliveries, one.commits, one.hash),
            (two.events, two.deliveries, two.commits, two.hash),
            "seed {seed}"
        );
    }
}

/// Seeds that once violated an invariant of a build that was wrong.
#[test]
fn seeds_that_found_something_find_it_no_more() {
    for seed in [
        1, 178, 182, 232, 345, 2866, 3027, 6474, 8202, 12078, 17523, 30817,
    ] {
        let outcome = run(seed, &Options::default());
        assert_eq!(outcome.violation, None, "seed {seed}");
    }
}

// Tests are built with the feature `simulation`, by a development dependency.
const _: () = assert!(IS_COMPILED_IN);

fn is_caught(mutation: Mutation) -> bool {
    let options = Options {
        mutation: Some(mutation),
        ..Options::default()
    };
    let seeds = Seeds {
        fail_fast: true,
        ..seeds(0, MUTANT_SEEDS, options)
    };
    run_seeds(&seeds, &mut |_| {}).expect("threads").failures > 0
}

/// What else panics in a world is no merit of the invariant.
fn is_caught_by_it_alone(alone: &Alone) -> bool {
    let invariant = Invariant::from_name(alone.invariant).expect("known");
    let options = Options {
        mutation: Some(alone.mutation),
        only: Some(invariant),
        ..Options::default()
    };
    (0..alone.seeds).any(|seed| {
        let violation = run(seed, &options).violation;
        violation.is_some_and(|violation| violation.invariant == invariant)
    })
}

#[test]
fn each_invariant_catches_a_defect_alone() {
    let named = ALONE.iter().map(|alone| alone.invariant);
    let all = Invariant::ALL.iter().map(|one| one.name());
    assert_eq!(named.collect::<Vec<_>>(), all.collect::<Vec<_>>());
    for alone in ALONE {
        let (invariant, name, seeds) = (alone.invariant, alone.mutation.name(), alone.seeds);
        assert!(
            is_caught_by_it_alone(alone),
            "{invariant} alone does not notice {name} in {seeds} seeds"
        );
    }
}

fn assert_caught(names: &[&str]) {
    for name in names {
        let mutation = Mutation::from_name(name).expect("known");
        assert!(is_caught(mutation), "{name} went unnoticed");
    }
}

#[test]
fn defects_of_the_acceptor_are_caught() {
    assert_caught(&[
        "promise-not-checked",
        "vote-not-stored",
        "kept-slot-overwritten",
        "trim-stored",
        "torn-published",
        "decided-mixed",
        "decided-by-old-ballot",
    ]);
}

#[test]
fn defects_of_leaders_and_learners_are_caught() {
    assert_caught(&[
        "quorums-disjoint",
        "voter-counted-twice",
        "phase-two-short",
        "decided-ahead",
        "lesson-skips-slot",
    ]);
}

#[test]
fn defects_of_sessions_and_journals_are_caught() {
    assert_caught(&[
        "gap-applied",
        "newest-reply-given",
        "sessions-not-in-snapshot",
        "reply-before-flush",
        "promise-not-journalled",
        "decide-not-journalled",
        "lesson-not-journalled",
    ]);
}
