//! What a region is opened as, and what its opener finds after a step was killed.
#![cfg(not(loom))]

mod scene;

use nearwire_consensus::acceptor::{Drop, Effect, Step};
use nearwire_consensus::memory::stepping::{Progress, Thread};
use nearwire_consensus::region::{
    self, Birth, Layout, OpenError, Region, Restored, entry, group, header,
};
use nearwire_consensus::wire::{Flags, Kind};
use nearwire_consensus::{Ballot, Epoch, NodeId, Slot};
use proptest::prelude::*;
use scene::{
    BIRTH, GROUP, LEASE_NS, Request, VALUE_BYTES, accept, atomics, ballot, decide, fetch, fresh,
    layout, prepare, read, reopen,
};

fn open(words: &[u64], layout: Layout, birth: Birth) -> Result<Restored, OpenError> {
    let words = atomics(words);
    Region::open(&words[..], layout, birth).map(|(_, restored)| restored)
}

fn create(words: &[u64]) -> Result<(), OpenError> {
    let words = atomics(words);
    Region::create(&words[..], layout(), BIRTH, Epoch(1), LEASE_NS).map(|_| ())
}

/// A region with votes in slots 1 and 2, slot 1 decided, and a lease.
fn used() -> Vec<u64> {
    let mut words = fresh();
    let b = ballot(3, 1);
    for request in [
        accept(b, 1, b"first"),
        accept(b, 2, b"second"),
        decide(b, 1, 1, 1, Flags::LEASE),
    ] {
        request.run(&mut words);
    }
    words
}

fn group_at() -> usize {
    layout().group_at(GROUP).expect("group 0")
}

fn entry_at(slot: u64) -> usize {
    layout()
        .entry_at(slot % scene::WINDOW)
        .expect("in the ring")
}

/// Where the published body of a record starts.
fn body_at(words: &[u64], at: usize, bodies: usize, body_words: usize) -> usize {
    at + bodies + (words[at] as usize >> 1 & 1) * body_words
}

const BODY_WORDS: usize = entry::VALUE + VALUE_BYTES / 8;

#[test]
fn a_region_opens_as_what_it_was_made() {
    assert_eq!(open(&fresh(), layout(), BIRTH), Ok(Restored::default()));
    assert_eq!(open(&used(), layout(), BIRTH), Ok(Restored::default()));
}

#[test]
fn a_region_is_seen_as_what_it_was_made_and_left_as_it_was() {
    let mut words = used();
    // A writer is at work.
    words[entry_at(1)] |= 1;
    let shared = atomics(&words);
    let region = Region::beside(&shared[..]).expect("a region");
    assert_eq!((*region.layout(), *region.birth()), (layout(), BIRTH));
    let view = region::view(&region, GROUP).expect("nobody publishes");
    assert_eq!((view.promised, view.decided.upto), (ballot(3, 1), Slot(1)));
    let after: Vec<u64> = shared
        .iter()
        .map(|word| word.load(std::sync::atomic::Ordering::Acquire))
        .collect();
    assert_eq!(after, words);
}

#[test]
fn what_is_no_whole_region_is_not_seen_as_one() {
    let beside = |words: &[u64]| {
        let words = atomics(words);
        Region::beside(&words[..]).map(|_| ())
    };
    let words = used();
    assert_eq!(beside(&vec![0; words.len()]), Err(OpenError::Blank));
    assert_eq!(beside(&vec![7; words.len()]), Err(OpenError::Foreign(7)));
    let short = beside(&words[..words.len() - 1]);
    assert!(matches!(short, Err(OpenError::Size { .. })), "{short:?}");
    for word in [header::GROUPS, header::WINDOW, header::NODE, header::NONCE] {
        let mut words = words.clone();
        words[word] ^= 1;
        let damaged = beside(&words);
        assert!(
            matches!(damaged, Err(OpenError::Damaged { .. })),
            "{damaged:?}"
        );
    }
}

#[test]
fn each_stranger_is_named() {
    let words = used();
    let other = |change: fn(&mut Birth)| {
        let mut birth = BIRTH;
        change(&mut birth);
        open(&words, layout(), birth)
    };
    assert_eq!(
        open(&vec![0; words.len()], layout(), BIRTH),
        Err(OpenError::Blank)
    );
    assert_eq!(
        open(&vec![7; words.len()], layout(), BIRTH),
        Err(OpenError::Foreign(7))
    );
    assert_eq!(
        open(&[region::MAGIC.swap_bytes()], layout(), BIRTH),
        Err(OpenError::Foreign(region::MAGIC.swap_bytes())),
        "a region of the other byte order"
    );
    assert_eq!(
        other(|birth| birth.cluster = 2),
        Err(OpenError::OtherCluster)
    );
    assert_eq!(
        other(|birth| birth.node = NodeId(8)),
        Err(OpenError::OtherNode {
            found: NodeId(9),
            wanted: NodeId(8)
        })
    );
    for change in [
        (|birth| birth.nonce += 1) as fn(&mut Birth),
        |birth| birth.boot += 1,
        |birth| birth.boot += 1 << 64,
    ] {
        assert!(matches!(
            other(change),
            Err(OpenError::OtherIncarnation { found, .. }) if found == BIRTH.incarnation()
        ));
    }
    for layout in [
        Layout::new(2, scene::WINDOW, VALUE_BYTES),
        Layout::new(1, 2 * scene::WINDOW, VALUE_BYTES),
        Layout::new(1, scene::WINDOW, 2 * VALUE_BYTES),
    ] {
        assert_eq!(
            open(&words, layout.expect("valid layout"), BIRTH),
            Err(OpenError::OtherLayout {
                groups: 1,
                window: scene::WINDOW,
                value_bytes: VALUE_BYTES as u64
            })
        );
    }
    let wanted = layout().bytes();
    for length in [64, words.len() - 1, words.len() + 1] {
        let mut words = words.clone();
        words.resize(length, 0);
        let found = length * 8;
        assert_eq!(
            open(&words, layout(), BIRTH),
            Err(OpenError::Size { found, wanted })
        );
    }
}

/// Thirty-two bits may agree by chance where nonce and boot id do not.
#[test]
fn a_boot_id_that_differs_behind_an_equal_incarnation_is_noticed() {
    let mut words = fresh();
    let old = atomics(&vec![0; words.len()]);
    let past = Birth { boot: 1, ..BIRTH };
    Region::create(&old[..], layout(), past, Epoch(1), LEASE_NS).expect("blank");
    for word in [header::BOOT_HIGH, header::BOOT_LOW] {
        words[word] = old[word].load(std::sync::atomic::Ordering::SeqCst);
    }
    let mut hash = nearwire_consensus::auth::SipHash::new([0, 0]);
    for word in &words[..header::CHECKSUM] {
        hash.word(*word);
    }
    words[header::CHECKSUM] = hash.finish();
    assert!(matches!(
        open(&words, layout(), BIRTH),
        Err(OpenError::OtherIncarnation { .. })
    ));
}

#[test]
fn every_flipped_bit_of_the_header_is_noticed() {
    for word in 0..=header::CHECKSUM {
        for bit in 0..64 {
            let mut words = used();
            words[word] ^= 1 << bit;
            let error = open(&words, layout(), BIRTH).expect_err("a damaged header");
            let expected = match word {
                header::MAGIC => OpenError::Foreign(words[word]),
                header::VERSION => OpenError::Version(words[word]),
                _ => OpenError::Damaged {
                    what: "header",
                    at: 0,
                },
            };
            assert_eq!(error, expected, "word {word}, bit {bit}");
        }
    }
}

#[test]
fn a_record_that_contradicts_itself_is_named() {
    let group = group_at();
    let one = entry_at(1);
    let words = used();
    let decided = body_at(&words, group, group::BODIES, group::BODY_WORDS);
    let vote = body_at(&words, one, entry::BODIES, BODY_WORDS);
    let cases = [
        (group + group::STATE, 3, "group", group),
        (group + group::TRIM, 0, "group", group),
        (group + group::WINDOW, 4, "group", group),
        (group + group::BASE, 1, "group", group),
        (group + group::HIGHEST, 3, "group", group),
        (group + group::LEASE_NS, 1, "group", group),
        (decided + group::BALLOT, u64::MAX, "decided record", decided),
        (decided + group::FROM, 3, "decided record", decided),
        (
            decided + group::LEASE_BALLOT,
            ballot(4, 1).0,
            "decided record",
            decided,
        ),
        (vote + entry::SLOT, 0, "ring entry", one),
        (vote + entry::SLOT, 2, "ring entry", one),
        (vote + entry::SLOT, 3, "ring entry", one),
        (vote + entry::BALLOT, 0, "ring entry", one),
        (vote + entry::BALLOT, ballot(3, 2).0, "ring entry", one),
        (vote + entry::LENGTH, 65, "ring entry", one),
    ];
    for (word, value, what, at) in cases {
        let mut words = words.clone();
        words[word] = value;
        assert_eq!(
            open(&words, layout(), BIRTH),
            Err(OpenError::Damaged { what, at: at * 8 }),
            "word {word} = {value}"
        );
    }
}

#[test]
fn a_half_made_region_is_blank_and_can_be_made() {
    let whole = fresh();
    let written: Vec<_> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
    for made in 0..written.len() {
        // The magic number is written last.
        let mut words = vec![0; whole.len()];
        for at in written.iter().filter(|at| **at != header::MAGIC).take(made) {
            words[*at] = whole[*at];
        }
        assert_eq!(open(&words, layout(), BIRTH), Err(OpenError::Blank));
        assert_eq!(create(&words), Ok(()));
    }
}

#[test]
fn a_region_is_never_made_over_votes_or_promises() {
    let promised = {
        let mut words = fresh();
        prepare(ballot(1, 1)).run(&mut words);
        words
    };
    for mut words in [used(), promised] {
        assert!(matches!(create(&words), Err(OpenError::Damaged { .. })));
        words[..512].fill(0);
        assert!(matches!(create(&words), Err(OpenError::Damaged { .. })));
    }
    assert_eq!(
        create(&[0; 8]),
        Err(OpenError::Size {
            found: 64,
            wanted: layout().bytes()
        })
    );
}

fn vote(words: &[u64], slot: u64) -> Option<(Ballot, Vec<u8>)> {
    let words = atomics(words);
    let (region, _) = Region::open(&words[..], layout(), BIRTH).expect("it opens");
    let mut out = [0; VALUE_BYTES];
    let (ballot, length) = region::vote(&region, GROUP, Slot(slot), VALUE_BYTES, &mut out)?;
    Some((ballot, out[..length].to_vec()))
}

fn view(words: &[u64]) -> region::GroupView {
    let words = atomics(words);
    let (region, _) = Region::open(&words[..], layout(), BIRTH).expect("it opens");
    region::view(&region, GROUP).expect("nobody writes")
}

/// Every state in which a kill of `request` can leave `words`, and whether the step had ended.
fn kills(words: &[u64], request: &Request) -> Vec<(Vec<u64>, bool)> {
    let mut states = vec![(words.to_vec(), false)];
    let mut words = words.to_vec();
    let mut thread = Thread::default();
    loop {
        let progress = request.advance(&mut thread, &mut words);
        let ended = matches!(progress, Progress::Done(_));
        states.push((words.clone(), ended));
        if ended {
            return states;
        }
    }
}

/// The states before and after each request, killed at each access and opened again.
fn check_kill(before: &[u64], request: &Request, check: &impl Fn(&[u64], &[u64], &[u64])) -> usize {
    let mut after = before.to_vec();
    request.run(&mut after);
    let mut torn = 0;
    for (words, ended) in kills(before, request) {
        let (opened, restored) = reopen(&words).expect("a torn record is no damage");
        assert!(restored.groups + restored.entries <= 1);
        torn += usize::from(restored != Restored::default());
        if ended {
            assert_eq!(view(&opened), view(&after));
        }
        check(before, &opened, &after);
        // Nothing stays locked: a new leader gets its promise and an answer for each slot.
        let mut words = opened;
        let leader = ballot(99, 1);
        let after_leases = Request {
            now_ns: 10 * LEASE_NS,
            ..prepare(leader)
        };
        let (step, _) = after_leases.run(&mut words);
        assert_eq!(scene::kind(&step), Some(Kind::Promise));
        for slot in 1..=2 {
            let (step, _) = fetch(leader, slot).run(&mut words);
            assert!(matches!(step, Step::Reply(..)), "{step:?}");
        }
    }
    torn
}

fn votes_are_old_or_new(before: &[u64], opened: &[u64], after: &[u64]) {
    for slot in 1..=4 {
        let found = vote(opened, slot);
        assert!(
            found == vote(before, slot) || found == vote(after, slot),
            "slot {slot}: {found:?}"
        );
        // What a new leader is told is the same, and never Empty where there was a vote.
        let mut words = opened.to_vec();
        let (step, value) = read(slot).run(&mut words);
        let Step::Reply(reply, Effect::None) = step else {
            panic!("no answer but {step:?}");
        };
        let lost = reply.kind == Kind::Empty && vote(before, slot).is_some();
        assert!(!lost, "slot {slot} was answered and is Empty now");
        if reply.kind == Kind::Vote {
            assert_eq!(Some((reply.vote_ballot, value)), found);
        }
    }
    let (old, now, new) = (view(before), view(opened), view(after));
    assert!(now.decided == old.decided || now.decided == new.decided);
    assert!((old.promised..=new.promised).contains(&now.promised));
    assert!((old.highest..=new.highest).contains(&now.highest));
    assert!((old.trim..=new.trim).contains(&now.trim));
    for slot in 1..=4 {
        assert!(vote(opened, slot).is_none_or(|(ballot, _)| ballot <= now.promised));
    }
}

fn histories() -> Vec<(&'static str, Vec<u64>)> {
    let run = |requests: &[Request]| {
        let mut words = fresh();
        for request in requests {
            request.run(&mut words);
        }
        words
    };
    let b = ballot(1, 1);
    vec![
        ("blank", fresh()),
        ("one vote", run(&[accept(b, 1, b"a value of 20 bytes.")])),
        (
            "two votes in one slot, so that the other body is published",
            run(&[
                accept(b, 1, b"a value of 20 bytes."),
                accept(ballot(2, 2), 1, &[2; 64]),
            ]),
        ),
        (
            "a full ring, trimmed",
            run(&[
                accept(b, 1, &[1; 64]),
                accept(b, 2, b"second"),
                decide(b, 1, 2, 3, Flags::LEASE),
            ]),
        ),
        ("a promise", run(&[prepare(ballot(4, 1))])),
    ]
}

fn requests() -> Vec<Request> {
    let b = ballot(5, 1);
    let mut requests = vec![
        accept(b, 1, &[5; 64]),
        accept(b, 1, b""),
        accept(b, 3, b"over slot 1"),
        accept(ballot(1, 1), 1, b"again"),
        prepare(b),
        prepare(ballot(5, 3)),
        fetch(ballot(4, 1), 1),
        decide(b, 1, 2, 2, Flags::LEASE.with(Flags::ACK_WANTED)),
        decide(ballot(1, 1), 1, 2, 3, Flags::RELEASE),
    ];
    // After the lease.
    requests.push(Request {
        now_ns: 10 * LEASE_NS,
        ..prepare(ballot(5, 3))
    });
    requests
}

#[test]
fn a_step_killed_at_any_access_leaves_the_old_state_or_the_new() {
    let mut torn = 0;
    for (_, before) in histories() {
        for request in requests() {
            torn += check_kill(&before, &request, &votes_are_old_or_new);
        }
    }
    println!("{torn} torn records restored");
    assert!(torn > 100, "only {torn} kills tore a record");
}

#[test]
fn a_second_kill_after_the_restore_is_no_worse() {
    let before = &histories()[1].1;
    let mut torn = 0;
    for first in requests() {
        for (words, _) in kills(before, &first) {
            let (opened, _) = reopen(&words).expect("it opens");
            for second in [
                accept(ballot(6, 2), 1, &[6; 33]),
                decide(ballot(6, 2), 1, 1, 2, Flags::LEASE),
            ] {
                torn += check_kill(&opened, &second, &votes_are_old_or_new);
            }
        }
    }
    println!("{torn} torn records restored");
}

/// Until a Decide's releasing exchange the acceptor does not support the lease, and afterwards no
/// kill takes it back.
#[test]
fn a_killed_decide_supports_the_lease_wholly_or_not_at_all() {
    let request = decide(ballot(2, 2), 1, 0, 1, Flags::LEASE.with(Flags::ACK_WANTED));
    let mut refused = 0;
    for (words, ended) in kills(&fresh(), &request) {
        let (mut opened, _) = reopen(&words).expect("it opens");
        let (step, _) = prepare(ballot(3, 3)).run(&mut opened);
        let Step::Reply(reply, _) = step else {
            panic!("no answer but {step:?}");
        };
        let leased = reply.kind == Kind::Nack;
        refused += usize::from(leased);
        assert!(leased || !ended, "an acknowledged lease is gone");
        if leased {
            assert_eq!((reply.flags, reply.watermark), (Flags::LEASE, LEASE_NS));
        }
    }
    assert!(refused > 0);
}

/// Before anyone restores it, a torn record answers nothing at all.
#[test]
fn a_torn_record_is_busy_and_never_empty() {
    let before = &histories()[1].1;
    let leader = ballot(1, 1);
    let mut busy = 0;
    for (mut words, _) in kills(before, &accept(ballot(5, 1), 1, &[5; 64])) {
        if words[entry_at(1)] & 1 == 1 {
            for request in [fetch(leader, 1), read(1), accept(leader, 1, b"a")] {
                let (step, _) = request.run(&mut words);
                assert_eq!(step, Step::Dropped(Drop::Busy));
                busy += 1;
            }
        }
    }
    assert!(busy > 0);
    for (mut words, _) in kills(before, &prepare(ballot(5, 1))) {
        if words[group_at()] & 1 == 1 {
            for request in [
                prepare(ballot(6, 1)),
                decide(ballot(6, 1), 1, 1, 1, Flags(0)),
            ] {
                let (step, _) = request.run(&mut words);
                assert_eq!(step, Step::Dropped(Drop::Busy));
            }
        }
    }
}

proptest! {
    #[test]
    fn no_words_make_open_panic(
        flips in proptest::collection::vec((512usize..2560, any::<u64>()), 1..20),
        header in proptest::collection::vec((0usize..14, any::<u64>()), 0..3),
    ) {
        let mut words = used();
        for (at, value) in flips.into_iter().chain(header) {
            words[at % layout().words()] = value;
        }
        let words = atomics(&words);
        if let Ok((region, _)) = Region::open(&words[..], layout(), BIRTH) {
            let mut out = [0; VALUE_BYTES];
            let _ = region::view(&region, GROUP);
            let _ = region::vote(&region, GROUP, Slot(1), VALUE_BYTES, &mut out);
        }
    }
}
