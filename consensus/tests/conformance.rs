//! The corpus against the shipped step, and against deliberate defects of it.
#![cfg(not(loom))]

use nearwire_consensus::conformance::{
    Action, Case, Fact, Failure, Need, Shape, Software, Symbol, Verdict, corpus, parse,
};
use std::collections::BTreeSet;

fn cases() -> Vec<Case> {
    corpus().unwrap_or_else(|error| panic!("{error}"))
}

fn verdict(case: &Case, shape: Shape) -> Verdict {
    Software::play(case, shape).expect("a region")
}

#[test]
fn the_shipped_step_conforms_in_every_shape() {
    let mut failures: Vec<Failure> = Vec::new();
    for case in &cases() {
        let mut played = 0;
        for shape in Shape::ALL {
            match verdict(case, shape) {
                Verdict::Passed => played += 1,
                Verdict::Failed(found) => {
                    played += 1;
                    failures.extend(found);
                }
                Verdict::Skipped(_) => {}
                Verdict::Unshown(why) => panic!("{}: {why}", case.name),
            }
        }
        assert!(played > 0, "{} is played in no shape", case.name);
    }
    for failure in &failures {
        eprintln!("{failure}");
    }
    assert!(failures.is_empty(), "{} fields", failures.len());
}

#[test]
fn the_hardware_profile_plays_every_case_that_is_meant_for_it() {
    let shape = Shape {
        lease_ns: 1_000_000,
        ..Shape::NARROW
    };
    for case in &cases() {
        let is_narrow = case.needs.contains(&Need::Narrow);
        let found = [Shape::NARROW, shape].map(|shape| verdict(case, shape));
        let failed = |verdict: &Verdict| matches!(verdict, Verdict::Failed(_));
        assert!(!found.iter().any(failed), "{found:#?}");
        if is_narrow {
            assert_eq!(found[0], Verdict::Passed, "{case}");
        }
        if case.needs.contains(&Need::Wide) {
            assert!(!found.contains(&Verdict::Passed), "{case}");
        }
    }
}

/// Steps a case's shapes in turn and returns the first failure.
#[cfg(feature = "simulation")]
fn first_failure(cases: &[Case]) -> Option<Failure> {
    cases.iter().find_map(|case| {
        Shape::ALL
            .iter()
            .find_map(|shape| match verdict(case, *shape) {
                Verdict::Failed(failures) => failures.into_iter().next(),
                Verdict::Passed | Verdict::Skipped(_) | Verdict::Unshown(_) => None,
            })
    })
}

#[cfg(feature = "simulation")]
#[test]
fn defects_that_one_step_alone_shows_make_a_case_fail() {
    use nearwire_consensus::simulation::{Mutation, mutate};
    let cases = cases();
    for name in [
        "promise-not-checked",
        "equal-ballot-refused",
        "equal-ballot-overwrites",
        "vote-not-stored",
        "vote-promises-nothing",
        "highest-not-raised",
        "kept-slot-overwritten",
        "entry-unlocked",
        "published-body-written",
        "promise-stored",
        "words-raised-by-store",
        "prepare-unlocked",
        "lease-ignored",
        "lease-dropped",
        "fetch-unlocked",
        "fetch-unpromised",
        "torn-is-empty",
        "overwritten-is-empty",
        "decided-mixed",
        "decided-by-old-ballot",
        "decide-promises-nothing",
        "trim-stored",
        "foreign-request-served",
        "old-epoch-served",
        "sealed-served",
    ] {
        let mutation = Mutation::from_name(name).expect(name);
        mutate(Some(mutation));
        let failure = first_failure(&cases);
        mutate(None);
        assert!(failure.is_some(), "{name} is not found");
    }
}

#[test]
fn the_cases_of_the_document_are_cases() {
    let text = include_str!("../../docs/conformance.md");
    let blocks: Vec<&str> = text
        .split("```case\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        let cases = parse("docs/conformance.md", block).unwrap_or_else(|error| panic!("{error}"));
        for case in &cases {
            assert_eq!(verdict(case, Shape::SMALL), Verdict::Passed, "{case}");
        }
    }
}

#[test]
fn the_document_names_every_symbol_and_need() {
    let text = include_str!("../../docs/conformance.md");
    for symbol in &Symbol::ALL[1..] {
        let row = format!("| {} |", symbol.text());
        assert!(text.contains(&row), "{row}");
    }
    for case in cases() {
        for need in &case.needs {
            let word = need.to_string();
            let word = word.split(' ').next().unwrap_or_default().to_owned();
            assert!(text.contains(&format!("`{word}")), "{word}");
        }
    }
}

/// What others than the holder of a lease are promised can be looked at when it has ended; nothing
/// may come after that wait.
#[test]
fn cases_with_leases_look_at_the_group_last() {
    for case in cases() {
        let is_look = |action: &Action| matches!(action, Action::Fact(Fact::Region { .. }));
        let mut rest = case.steps.iter().map(|step| &step.action);
        let looks = rest.any(is_look) && case.needs.contains(&Need::Lease);
        let is_last = rest.all(|action| matches!(action, Action::Fact(_)));
        assert!(
            !looks || is_last || case.needs.contains(&Need::Memory),
            "{case}"
        );
    }
}

#[test]
fn no_two_cases_have_one_name() {
    let cases = cases();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), cases.len());
}

#[test]
fn what_is_written_of_a_case_is_read_as_the_same_case() {
    for case in cases() {
        let text = case.to_string();
        let again = parse("again.txt", &text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let [again] = &again[..] else {
            panic!("{text}");
        };
        assert_eq!(
            (again.name.as_str(), again.to_string()),
            (case.name.as_str(), text)
        );
        let actions =
            |case: &Case| -> Vec<_> { case.steps.iter().map(|step| step.action.clone()).collect() };
        assert_eq!(
            (actions(again), &again.needs),
            (actions(&case), &case.needs)
        );
    }
}

#[test]
fn every_error_names_the_line_and_what_would_be_right() {
    for (text, line, part) in [
        ("send Prepare", 1, "before the first `case NAME`"),
        ("case A", 1, "lower-case"),
        ("case a\ncase a", 2, "line 1 too"),
        ("case a\nsend Prepare", 2, "wants answer KIND"),
        ("case a\nsilent", 2, "follows a `send`"),
        ("case a\nsend Prepare\nsend Prepare", 3, "of line 2 wants"),
        ("case a\nsend Propose", 2, "is no kind"),
        ("case a\nsend Prepare balot=1.1", 2, "write value, magic"),
        ("case a\nsend Prepare ballot", 2, "FIELD=…"),
        ("case a\nsend Prepare ballot=x", 2, "is no number"),
        ("case a\nsend Decide flags=ACK", 2, "write ACK_WANTED"),
        (
            "case a\nsend Prepare\ndropped why",
            3,
            "write not_a_request",
        ),
        ("case a\nsend Accept value=x", 2, "write \"text\""),
        ("case a\nsend Accept value=hex:0", 2, "pairs"),
        ("case a\nneeds luck", 2, "write window N, epoch N, key"),
        ("case a\nvote slot=1", 2, "wants ballot=…"),
        ("case a\nempty slot=1 ballot=1.1", 2, "takes no ballot"),
        ("case a\nshow me", 2, "no line begins with `show`"),
        ("case a\nsend Prepare\nsilent now", 3, "nothing follows"),
        ("case a\noverlap Prepare ballot=1.1", 2, "with KIND"),
        ("case a\nset LUCK=1", 2, "write slot, LOCK"),
        ("case a\nset slot=W+", 2, "is no number"),
        ("case a\nsend Accept value=\"v", 2, "end with its quote"),
        ("case a\nsend raw 00", 2, "raw hex:"),
        ("case a\nneeds window wide", 2, "needs window N"),
        ("case a\nneeds epoch old", 2, "needs epoch N"),
        (
            "case a\nsend Prepare\nanswer Nack cut=1",
            3,
            "no field is named",
        ),
    ] {
        let error = parse("x.txt", text).expect_err(text);
        assert_eq!(
            (error.line, error.file.as_str()),
            (line, "x.txt"),
            "{error}"
        );
        assert!(error.problem.contains(part), "{error}");
    }
}
