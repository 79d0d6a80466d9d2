//! Deliberate defects, committed by the program in the kernel, each noticed by what tests it.

mod xdp_twin;

use consensus::conformance::{Case, Shape, corpus};
use consensus::random::Random;
use consensus::simulation::Mutation;
use nearwire::xdp::Loaded;
use std::fmt::Write as _;
use xdp_twin::conversation::{conform, converse, shapes};
use xdp_twin::duellists::{are_alone, fight};
use xdp_twin::objects::{read, set_global, tell};
use xdp_twin::{IPS, Twin};

/// Random messages that may show a defect.
const MESSAGES: u64 = 100_000;
/// Requests of duelling leaders that may.
const REQUESTS: u64 = 60_000_000;
/// The head of the table of defects in the kernel, as the documentation has it.
const HEAD: &str = "| Mutation | Caught in the kernel by |\n|---|---|\n";
const DOCUMENT: &str = include_str!("../docs/mutations.md");

/// Defects that show only where steps overlap, and that need no case of the corpus.
const OF_CONCURRENCY: [Mutation; 5] = [
    Mutation::EntryUnlocked,
    Mutation::PublishedBodyWritten,
    Mutation::PromiseStored,
    Mutation::WordsRaisedByStore,
    Mutation::PromisedRaisedLate,
];

fn with(object: &[u8], mutation: Option<Mutation>) -> Vec<u8> {
    let mut object = object.to_vec();
    let number = mutation.map_or(u8::MAX, |mutation| mutation as u8);
    set_global(&mut object, "MUTATION", &[number]);
    object
}

/// How many instructions the verifier went through: a defect that the program cannot commit changes
/// nothing.
fn verified(object: &[u8]) -> Option<u32> {
    let loaded = Loaded::load(object, &Twin::settings(Shape::SMALL));
    let mut loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
    let verified = loaded.verified_instructions();
    verified.unwrap_or_else(|error| panic!("{error}"))
}

/// Who notices what the program does, and by what; the cheapest is asked first.
fn catch(test: &str, object: &[u8], cases: &[Case]) -> Option<String> {
    let twin = |shape, ip| Twin::of(object, test, shape, ip).expect("the first was loaded");
    // Without tags over IPv4, and with them over IPv6.
    for (shape, ip) in shapes().into_iter().zip(IPS) {
        let conformance = conform(twin(shape, ip), cases);
        if let Some((case, _)) = conformance.failed.first() {
            let failed = conformance.failed.len();
            let played = failed + conformance.passed.len();
            return Some(format!("corpus: {case}, {failed} of {played} cases"));
        }
    }
    let found = converse(
        &mut Random::new(1),
        &mut twin(Shape::SMALL, IPS[0]),
        MESSAGES,
    );
    found.is_err().then(|| "random messages".into())
}

fn duel(object: &[u8], mutation: Option<Mutation>, requests: u64) -> Option<String> {
    let ended = fight(&with(object, mutation), u64::MAX, requests);
    Some(format!("duel: {}", ended.flaws.first()?))
}

#[test]
fn every_defect_that_the_kernel_can_commit_is_caught() {
    let test = "every_defect_that_the_kernel_can_commit_is_caught";
    let (Some(object), Some(duelling)) =
        (read(test, "mutations.o"), read(test, "mutations,duel.o"))
    else {
        return;
    };
    // It says why if the kernel takes no programs from this process.
    if Twin::of(&object, test, Shape::SMALL, IPS[0]).is_none() || are_alone(test) {
        return;
    }
    let cases = corpus().unwrap_or_else(|error| panic!("{error}"));
    let sound = with(&object, None);
    assert_eq!(catch(test, &sound, &cases), None, "without any defect");
    assert_eq!(
        duel(&duelling, None, REQUESTS / 10),
        None,
        "without any defect"
    );

    let walked = verified(&sound);
    let (reach, beyond) = Mutation::ALL.split_at(Mutation::of_engines().len());
    for mutation in beyond {
        // Whatever the program asks for is its own.
        let name = mutation.name();
        assert_eq!(verified(&with(&object, Some(*mutation))), walked, "{name}");
    }
    let mut table = HEAD.to_owned();
    let mut escaped = Vec::new();
    for mutation in reach {
        let by = catch(test, &with(&object, Some(*mutation)), &cases);
        let by = by.or_else(|| duel(&duelling, Some(*mutation), REQUESTS));
        let told = by.as_deref().unwrap_or("NOT CAUGHT");
        let _ = writeln!(table, "| `{}` | {told} |", mutation.name());
        if by.is_none() {
            escaped.push(mutation.name());
        }
    }
    tell(&table);
    assert!(escaped.is_empty(), "not caught: {}", escaped.join(", "));
    assert_eq!(
        catchers(DOCUMENT),
        catchers(&table),
        "docs/mutations.md: it has to have this table\n{table}"
    );
}

/// Defects and who catches each; by what differs from run to run.
fn catchers(document: &str) -> Vec<(&str, &str)> {
    let (_, table) = document.split_once(HEAD).expect("it has the table");
    let rows = table.lines().take_while(|line| line.starts_with('|'));
    let rows = rows.map(|row| row.trim_matches('|').split_once('|').expect("two cells"));
    rows.map(|(name, by)| (name.trim(), by.trim().split(':').next().unwrap_or_default()))
        .collect()
}

#[test]
fn a_step_that_leaves_out_a_lock_loses_the_duel() {
    let test = "a_step_that_leaves_out_a_lock_loses_the_duel";
    let Some(object) = read(test, "mutations,duel.o") else {
        return;
    };
    if Twin::of(&object, test, Shape::SMALL, IPS[0]).is_none() || are_alone(test) {
        return;
    }
    for mutation in OF_CONCURRENCY {
        let by = duel(&object, Some(mutation), REQUESTS);
        let name = mutation.name();
        tell(&format!("{name}: {}", by.as_deref().unwrap_or("nothing")));
        assert!(by.is_some(), "{name} is not found");
    }
}
