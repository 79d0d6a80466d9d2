//! The acceptor that the kernel has verified answers as the step in this process does.

mod xdp_twin;

use consensus::auth::{self, Key, Keys};
use consensus::conformance::{Shape, corpus};
use consensus::frame::{Addresses, Mac, Path, XDP_VALUE_BYTES};
use consensus::random::Random;
use consensus::region::Layout;
use consensus::simulation::{Mutation, mutate};
use consensus::tally::Count;
use consensus::wire::{Header, Kind, Malformed};
use consensus::{Ballot, Epoch, GroupId, NodeId, Slot, acceptor, frame};
use nearwire::xdp::{Loaded, OBJECT, Settings, Verdict, XdpError};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;
use xdp_twin::conversation::{GROUP, conform, converse, framed, path_to, paths_to_others, shapes};
use xdp_twin::{IPS, MAC, PORT, Twin, setting};

/// Messages of a run of random ones, unless NEARWIRE_MESSAGES says otherwise.
const MESSAGES: u64 = 100_000;

/// Half of what a verifier goes through before it gives up.
const MOST_VERIFIED: u32 = 500_000;

/// What no frame comes to: the stack gets the other kinds.
const NEVER: [Count; 1] = [Count::Step(acceptor::Drop::NotARequest)];

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
    for (shape, ip) in shapes().into_iter().zip(IPS.into_iter().cycle()) {
        let Some(twin) = Twin::at("the_acceptor_in_the_kernel_conforms", shape, ip) else {
            return;
        };
        let conformance = conform(twin, &cases);
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
    for (shape, ip) in [Shape::SMALL, keyed].into_iter().zip(IPS) {
        let Some(mut twin) = Twin::at("random_messages_come_to_the_same_in_the_kernel", shape, ip)
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

/// How many instructions the verifier went through, where the kernel says it: with room for a change
/// that costs twice as many.
fn verified(loaded: &mut Loaded) -> Option<u32> {
    let verified = loaded.verified_instructions();
    let verified = verified.unwrap_or_else(|error| panic!("{error}"));
    assert!(verified < Some(MOST_VERIFIED), "{verified:?} instructions");
    verified
}

/// The host has the other key: see [`nearwire::xdp::Settings::keys`].
#[test]
fn beside_a_second_key_only_the_first_ones_packets_are_served_and_none_is_dropped() {
    const TEST: &str = "beside_a_second_key_only_the_first_ones_packets_are_served";
    let [small, ..] = shapes();
    if Twin::new(TEST, small).is_none() {
        return;
    }
    let object = OBJECT.expect("it was just loaded");
    let (first, second) = (Key([1, 2]), Key([3, 4]));
    for (also, other) in [(None, Verdict::Dropped), (Some(second), Verdict::Passed)] {
        let settings = Settings {
            keys: Some(Keys { signs: first, also }),
            ..Twin::settings(small)
        };
        let loaded = Loaded::load(object, &settings).expect("the kernel takes it");
        let mut read = Header {
            epoch: settings.epoch,
            slot: Slot(1),
            ..Header::new(Kind::Read, GroupId(0), NodeId(1))
        };
        let mut run = |key| {
            read.tag = auth::tag(key, &read, &[]);
            let frame = framed(&path_to(IPS[0]), &read.to_bytes());
            loaded.run(&frame).expect("the kernel runs it")
        };
        assert!(matches!(run(first), Verdict::Sent(_)));
        assert_eq!(run(second), other);
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
            let verified = verified(twin.kernel());
            eprintln!(
                "values of {} bytes, {}: {verified:?} instructions verified, loaded in {took:?}",
                shape.value_bytes,
                if key.is_some() { "tags" } else { "no tags" },
            );
        }
    }
    let object = OBJECT.expect("it was just loaded");
    // Each dimension at its largest: maps are allocated whole.
    for (groups, window, value_bytes) in [(1, 2, XDP_VALUE_BYTES), (4096, 2, 64), (1, 1 << 20, 64)]
    {
        let layout = Layout::new(groups, window, value_bytes).expect("a layout");
        for key in keys {
            let settings = Settings {
                layout,
                keys: key.map(Into::into),
                ..Twin::settings(small)
            };
            let mut loaded = Loaded::load(object, &settings)
                .unwrap_or_else(|error| panic!("{groups}, {window}, {value_bytes}: {error}"));
            let about = |group, slot| Header {
                epoch: settings.epoch,
                slot: Slot(slot),
                ..Header::new(Kind::Read, GroupId(group), NodeId(1))
            };
            // The last record of each map is there, and nothing behind it.
            for (group, slot, sent) in [(groups - 1, window - 1, true), (groups, window - 1, false)]
            {
                let mut read = about(group, slot);
                if let Some(key) = key {
                    read.tag = auth::tag(key, &read, &[]);
                }
                let frame = framed(&path_to(IPS[0]), &read.to_bytes());
                let shown = loaded.run(&frame).expect("the kernel runs it");
                assert_eq!(matches!(shown, Verdict::Sent(_)), sent, "{group} {slot}");
            }
            let verified = verified(&mut loaded);
            eprintln!(
                "{groups} groups, {window} slots, values of {value_bytes} bytes: {verified:?} \
                 instructions"
            );
        }
    }
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
    let path = path_to(IPS[0]);
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
    let header = Header::new(Kind::Read, GROUP, NodeId(1)).to_bytes();
    passed(&mut twin, &framed(&elsewhere, &header));
    // A fragment, and options behind the IPv4 header.
    for (at, byte) in [(20, 0x20), (14, 0x46), (23, 6)] {
        let mut frame = framed(&path_to(IPS[0]), &header);
        frame[at] = byte;
        passed(&mut twin, &frame);
    }
    // Two tags of either kind, in front of what would be ours.
    for outer in [[0x81, 0], [0x88, 0xa8]] {
        let mut frame = framed(&path_to(IPS[0]), &header);
        let tags = [outer[0], outer[1], 0, 5, 0x81, 0, 0, 6];
        frame.splice(12..12, tags);
        passed(&mut twin, &frame);
    }
    let Some(mut twin) = Twin::at("what_is_not_ours_reaches_the_stack", small, IPS[1]) else {
        return;
    };
    // Hop-by-hop and destination options, routing, a fragment, in front of what would be ours.
    for extension in [0, 60, 43, 44] {
        let mut frame = framed(&path_to(IPS[1]), &header);
        // Eight bytes more: UDP is next.
        frame.splice(54..54, [17, 0, 0, 0, 0, 0, 0, 0]);
        let length = (frame.len() - 54) as u16;
        frame[18..20].copy_from_slice(&length.to_be_bytes());
        frame[20] = extension;
        passed(&mut twin, &frame);
    }
    assert_eq!(twin.count(Count::Wire(Malformed::Truncated)), 0);
    assert_eq!(twin.count(Count::Step(acceptor::Drop::NotARequest)), 0);
}

#[test]
fn what_nobody_can_have_sent_reaches_the_stack() {
    let [small, ..] = shapes();
    for ip in IPS {
        let Some(mut twin) = Twin::at("what_nobody_can_have_sent_reaches_the_stack", small, ip)
        else {
            return;
        };
        let path = path_to(ip);
        let from = |source: &str| {
            let addresses = match (path.addresses, source.parse().expect("an address")) {
                (Addresses::V4 { destination, .. }, IpAddr::V4(source)) => Addresses::V4 {
                    source,
                    destination,
                },
                (Addresses::V6 { destination, .. }, IpAddr::V6(source)) => Addresses::V6 {
                    source,
                    destination,
                },
                _ => panic!("{source} is of the other family"),
            };
            Path { addresses, ..path }
        };
        let own = ip.to_string();
        let sources: &[&str] = if ip == IPS[0] {
            &[
                "0.0.0.0",
                "127.0.0.1",
                "224.0.0.1",
                "240.0.0.1",
                "255.255.255.255",
                &own,
            ]
        } else {
            &["::", "::1", "::ffff:10.0.0.1", "ff02::1", &own]
        };
        let mut paths: Vec<_> = sources.iter().map(|source| from(source)).collect();
        paths.push(Path {
            source_port: 0,
            ..path
        });
        paths.push(Path {
            source_mac: MAC,
            ..path
        });
        paths.push(Path {
            source_mac: Mac([0xff; 6]),
            ..path
        });
        let read = Header {
            epoch: Epoch(1),
            ..Header::new(Kind::Read, GROUP, NodeId(1))
        };
        for path in paths {
            let shown = twin.show(&framed(&path, &read.to_bytes()));
            let shown = shown.unwrap_or_else(|difference| panic!("{difference}"));
            assert_eq!(
                (shown.verdict, shown.count),
                (Verdict::Passed, None),
                "{path:?}"
            );
        }
    }
}

#[test]
fn what_is_for_others_reaches_the_stack_even_if_it_is_damaged() {
    let [small, ..] = shapes();
    for ip in IPS {
        let Some(mut twin) = Twin::at("what_is_for_others_reaches_the_stack", small, ip) else {
            return;
        };
        let read = Header {
            epoch: Epoch(1),
            slot: Slot(1),
            ..Header::new(Kind::Read, GROUP, NodeId(1))
        };
        let read = read.to_bytes();
        let mut shown = |frame: &[u8]| {
            let shown = twin.show(frame);
            shown.unwrap_or_else(|difference| panic!("{difference}"))
        };
        for (what, path) in paths_to_others(ip) {
            let whole = framed(&path, &read);
            let cut = &whole[..whole.len() - 1];
            let mut long = whole.clone();
            let at = path.header_bytes();
            long[at - 4..at - 2].copy_from_slice(&[0xff; 2]);
            for frame in [&whole[..], cut, &long] {
                let shown = shown(frame);
                assert_eq!(
                    (shown.verdict, shown.count),
                    (Verdict::Passed, None),
                    "{what}"
                );
            }
        }
        // It is the addresses: the same datagram to the twin is answered, or counted.
        let whole = framed(&path_to(ip), &read);
        assert!(matches!(shown(&whole).verdict, Verdict::Sent(_)));
        let cut = Count::Frame(frame::Malformed::Truncated);
        assert_eq!(shown(&whole[..whole.len() - 1]).count, Some(cut));
        twin.compare_counters().expect("the map can be read");
    }
}

#[test]
fn an_answer_longer_than_its_request_is_left_to_the_host() {
    let [small, ..] = shapes();
    for ip in IPS {
        let Some(mut twin) = Twin::at("an_answer_longer_than_its_request", small, ip) else {
            return;
        };
        let about = |kind, length| Header {
            epoch: Epoch(1),
            slot: Slot(1),
            ballot: Ballot::new(1, NodeId(1)),
            length,
            ..Header::new(kind, GROUP, NodeId(1))
        };
        let mut ask = |header: Header, value: &[u8]| {
            let datagram = [&header.to_bytes()[..], value].concat();
            let shown = twin.show(&framed(&path_to(ip), &datagram));
            shown.unwrap_or_else(|difference| panic!("{difference}"))
        };
        assert_eq!(
            ask(about(Kind::Accept, 9), &[7; 9]).count,
            Some(Count::Answered)
        );
        for kind in [Kind::Fetch, Kind::Read] {
            for room in 0..=16 {
                let shown = ask(about(kind, room), &vec![0; room.into()]);
                let (fits, what) = match shown.verdict {
                    Verdict::Sent(_) => (true, Count::Answered),
                    Verdict::Passed => (false, Count::NoRoom),
                    other => panic!("{other:?}"),
                };
                assert_eq!(
                    (fits, shown.count),
                    (room >= 9, Some(what)),
                    "{kind:?} {room}"
                );
            }
        }
        twin.compare_counters().expect("the map can be read");
    }
}
