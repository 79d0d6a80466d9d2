//! The acceptor that the kernel has verified answers as the step in this process does.

mod xdp_twin;

use consensus::auth::Key;
use consensus::conformance::{Shape, corpus};
use consensus::frame::Path;
use consensus::random::Random;
use consensus::region::Layout;
use consensus::simulation::{Mutation, mutate};
use consensus::tally::Count;
use consensus::wire::{Header, Kind, Malformed};
use consensus::{NodeId, acceptor, frame};
use nearwire::xdp::{Loaded, OBJECT, Settings, Verdict, XdpError};
use std::collections::BTreeMap;
use std::time::Instant;
use xdp_twin::conversation::{GROUP, conform, converse, framed, paths, shapes};
use xdp_twin::{PORT, Twin, setting};

/// Messages of a run of random ones, unless NEARWIRE_MESSAGES says otherwise.
const MESSAGES: u64 = 100_000;

/// What no frame of a test run comes to: it always has room, nothing looks at UDP checksums, and the
/// stack gets the other kinds.
const NEVER: [Count; 3] = [
    Count::NoRoom,
    Count::Frame(frame::Malformed::Checksum),
    Count::Step(acceptor::Drop::NotARequest),
];

/// Defects that a step shows by itself, without another that overlaps it.
const DEFECTS: [Mutation; 23] = [
    Mutation::PromiseNotChecked,
    Mutation::EqualBallotRefused,
    Mutation::EqualBallotOverwrites,
    Mutation::VoteNotStored,
    Mutation::VotePromisesNothing,
    Mutation::HighestNotRaised,
    Mutation::KeptSlotOverwritten,
    Mutation::EntryUnlocked,
    Mutation::PublishedBodyWritten,
    Mutation::PrepareUnlocked,
    Mutation::LeaseIgnored,
    Mutation::LeaseDropped,
    Mutation::FetchUnlocked,
    Mutation::FetchUnpromised,
    Mutation::TornIsEmpty,
    Mutation::TrimmedIsServed,
    Mutation::DecidedMixed,
    Mutation::DecidedByOldBallot,
    Mutation::DecidePromisesNothing,
    Mutation::TrimStored,
    Mutation::ForeignRequestServed,
    Mutation::OldEpochServed,
    Mutation::SealedServed,
];

#[test]
fn the_acceptor_in_the_kernel_conforms() {
    let cases = corpus().unwrap_or_else(|error| panic!("{error}"));
    let mut played: BTreeMap<String, usize> = BTreeMap::new();
    let mut failures: Vec<(String, String)> = Vec::new();
    for (shape, path) in shapes().into_iter().zip(paths()) {
        let Some(twin) = Twin::new("the_acceptor_in_the_kernel_conforms", shape) else {
            return;
        };
        let conformance = conform(twin, path, &cases);
        for name in conformance.passed {
            *played.entry(name).or_default() += 1;
        }
        failures.extend(conformance.failed);
    }
    for (case, wrong) in &failures {
        eprintln!("{case}: {wrong}");
    }
    assert!(failures.is_empty(), "{} cases", failures.len());
    let narrow = |case: &&consensus::conformance::Case| {
        let need = consensus::conformance::Need::Narrow;
        !case.needs.contains(&need)
    };
    let unplayed: Vec<_> = cases
        .iter()
        .filter(narrow)
        .filter(|case| !played.contains_key(&case.name))
        .map(|case| &case.name)
        .collect();
    assert!(unplayed.is_empty(), "{unplayed:?}");
    eprintln!(
        "{} of {} cases, {} times in all",
        played.len(),
        cases.len(),
        played.values().sum::<usize>()
    );
}

#[test]
fn random_messages_come_to_the_same_in_the_kernel() {
    let seed = setting("NEARWIRE_SEED", 1);
    let messages = setting("NEARWIRE_MESSAGES", MESSAGES);
    eprintln!("REPRODUCE WITH: NEARWIRE_SEED={seed} cargo test --test privileged_xdp random");
    let keyed = Shape {
        key: Some(Key([1, 2])),
        ..Shape::SMALL
    };
    let mut random = Random::new(seed);
    let mut answers: BTreeMap<u8, u64> = BTreeMap::new();
    let mut totals = [0; Count::COUNT];
    for shape in [Shape::SMALL, keyed] {
        let Some(mut twin) = Twin::new("random_messages_come_to_the_same_in_the_kernel", shape)
        else {
            return;
        };
        let found = converse(&mut random, &mut twin, messages / 2);
        for (kind, times) in found.unwrap_or_else(|difference| panic!("{difference}")) {
            *answers.entry(kind).or_default() += times;
        }
        let counted = twin.compare_counters();
        counted.unwrap_or_else(|difference| panic!("{difference}"));
        for count in Count::all() {
            totals[count.index()] += twin.count(count);
        }
    }
    for count in Count::all() {
        eprintln!("{:8} {}", totals[count.index()], count.name());
        let is_never = totals[count.index()] == 0;
        assert_eq!(is_never, NEVER.contains(&count), "{}", count.name());
    }
    let kinds = [
        Kind::Promise,
        Kind::Vote,
        Kind::Empty,
        Kind::Outside,
        Kind::Accepted,
        Kind::Ack,
        Kind::Nack,
    ];
    for kind in kinds {
        let times = answers.get(&(kind as u8)).copied().unwrap_or_default();
        eprintln!("{times:8} {kind:?}");
        assert!(times > 100, "{kind:?} {times} times");
    }
}

#[test]
fn a_defect_of_the_step_shows_as_a_difference() {
    let Some(mut twin) = Twin::new("a_defect_of_the_step_shows_as_a_difference", Shape::SMALL)
    else {
        return;
    };
    for mutation in DEFECTS {
        twin.clear();
        mutate(Some(mutation));
        let found = converse(&mut Random::new(1), &mut twin, MESSAGES);
        mutate(None);
        assert!(found.is_err(), "{} is not found", mutation.name());
    }
}

#[test]
fn the_verifier_takes_every_layout_and_the_loader_refuses_what_no_frame_holds() {
    let [small, keyed, wide, long] = shapes();
    let keys = [small.key, keyed.key];
    for shape in [small, wide, long] {
        for key in keys {
            let shape = Shape { key, ..shape };
            let began = Instant::now();
            let Some(mut twin) = Twin::new("the_verifier_takes_every_layout", shape) else {
                return;
            };
            let took = began.elapsed();
            let verified = twin.kernel().verified_instructions();
            eprintln!(
                "values of {} bytes, {}: {:?} instructions verified, loaded in {took:?}",
                shape.value_bytes,
                if key.is_some() { "tags" } else { "no tags" },
                verified.unwrap_or_else(|error| panic!("{error}"))
            );
        }
    }
    let object = OBJECT.expect("it was just loaded");
    let huge = Settings {
        layout: Layout::new(1, 2, 4096).expect("a layout"),
        ..Twin::settings(small)
    };
    let refused = Loaded::load(object, &huge);
    assert!(matches!(refused, Err(XdpError::ValueTooLong(4096))));
    for object in [&object[..100], b"no object"] {
        let refused = Loaded::load(object, &Twin::settings(small));
        assert!(matches!(refused, Err(XdpError::Object(_))));
    }
}

#[test]
fn what_is_not_ours_reaches_the_stack() {
    let [small, ..] = shapes();
    let Some(mut twin) = Twin::new("what_is_not_ours_reaches_the_stack", small) else {
        return;
    };
    let passed = |twin: &mut Twin, frame: &[u8]| {
        let shown = twin
            .show(frame)
            .unwrap_or_else(|difference| panic!("{difference}"));
        assert_eq!((shown.verdict, shown.count), (Verdict::Passed, None));
    };
    for path in paths() {
        for kind in Kind::ALL.iter().filter(|kind| !kind.is_for_acceptor()) {
            let header = Header::new(*kind, GROUP, NodeId(1));
            passed(&mut twin, &framed(&path, &header.to_bytes()));
        }
        passed(&mut twin, &framed(&path, b""));
        passed(&mut twin, &framed(&path, b"GET / HTTP/1.1"));
        let elsewhere = Path {
            destination_port: PORT + 1,
            ..path
        };
        let read = Header::new(Kind::Read, GROUP, NodeId(1)).to_bytes();
        passed(&mut twin, &framed(&elsewhere, &read));
    }
    // A fragment, and options behind the IPv4 header.
    let header = Header::new(Kind::Read, GROUP, NodeId(1)).to_bytes();
    for (at, byte) in [(20, 0x20), (14, 0x46), (23, 6)] {
        let mut frame = framed(&paths()[0], &header);
        frame[at] = byte;
        passed(&mut twin, &frame);
    }
    assert_eq!(twin.count(Count::Wire(Malformed::Truncated)), 0);
    assert_eq!(twin.count(Count::Step(acceptor::Drop::NotARequest)), 0);
}
