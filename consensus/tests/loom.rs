//! The step on weak memory, by loom:
//! `RUSTFLAGS="--cfg loom" cargo test -p nearwire-consensus --release --test loom`
//!
//! Loom takes SeqCst accesses for AcqRel ones, so the full barrier that [`Memory`] asks of every
//! read-modify-write is written here as fences. Everything else has the orderings of `Region`:
//! stores release, loads acquire. A region's thousands of atomics would be made anew for each
//! execution; the memory below has only the words that these steps touch.
#![cfg(loom)]

use loom::model::Builder;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::thread;
use nearwire_consensus::acceptor::{Acceptor, Step};
use nearwire_consensus::memory::{Buffers, Memory};
use nearwire_consensus::region::{self, Layout, entry, group};
use nearwire_consensus::wire::{Flags, Header, Kind};
use nearwire_consensus::{Ballot, Epoch, GroupId, Incarnation, NodeId, Slot};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicUsize;

/// Loom explores every execution with at most so many preemptions.
const PREEMPTIONS: usize = 3;
const VALUE_BYTES: usize = 64;
const BODY_WORDS: usize = entry::VALUE + VALUE_BYTES / 8;

/// What the memory keeps of its promises.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Barrier {
    /// All of them.
    Whole,
    /// A read-modify-write is no barrier to later loads of other words.
    NoFence,
    /// Plain stores are not ordered behind the taking of a lock.
    RelaxedStores,
    /// A lock is released without ordering what it guards.
    RelaxedLocks,
}

#[derive(Clone, Copy)]
enum At {
    Group,
    Entry,
    Peer,
}

/// One group and the ring entry of slot 1.
struct Small {
    barrier: Barrier,
    group: Vec<AtomicU64>,
    entry: Vec<AtomicU64>,
    peer: AtomicU64,
    /// Loom looks for another order only at the last access to a word. Where a step loads a word
    /// and then exchanges it, the load hides what other threads did before. So each access also
    /// takes a turn here, which every other thread's turn depends on. Turns are relaxed and order
    /// nothing that the fences do not.
    turn: AtomicU64,
}

impl Small {
    fn new(barrier: Barrier) -> Self {
        let words = |count| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self {
            barrier,
            // Lock, promised, highest, trim, then five words of each of two decided records.
            group: words(4 + 2 * 5),
            // Lock, then slot, ballot, length and two words of value in each of two bodies.
            entry: words(1 + 2 * 5),
            peer: AtomicU64::new(0),
            turn: AtomicU64::new(0),
        }
    }

    /// Words that no step writes are constants.
    fn constant(at: At, word: usize) -> Option<u64> {
        match (at, word) {
            (At::Group, group::STATE) => Some(group::ACTIVE | 1 << 32),
            (At::Group, group::WINDOW) => Some(2),
            (At::Group, group::BASE) => Some(0),
            (At::Group, group::LEASE_NS) => Some(1_000),
            _ => None,
        }
    }

    fn place(&self, at: At, word: usize) -> &AtomicU64 {
        self.turn.fetch_add(1, Ordering::Relaxed);
        match (at, word) {
            (At::Group, group::LOCK) => &self.group[0],
            (At::Group, group::PROMISED) => &self.group[1],
            (At::Group, group::HIGHEST) => &self.group[2],
            (At::Group, group::TRIM) => &self.group[3],
            (At::Group, word) => {
                let word = word - group::BODIES;
                &self.group[4 + word / group::BODY_WORDS * 5 + word % group::BODY_WORDS]
            }
            (At::Entry, entry::LOCK) => &self.entry[0],
            (At::Entry, word) => {
                let word = word - entry::BODIES;
                &self.entry[1 + word / BODY_WORDS * 5 + word % BODY_WORDS]
            }
            (At::Peer, _) => &self.peer,
        }
    }

    fn modify<T>(&self, change: impl FnOnce(Ordering) -> T) -> T {
        match self.barrier {
            Barrier::Whole => {
                fence(Ordering::SeqCst);
                let found = change(Ordering::SeqCst);
                fence(Ordering::SeqCst);
                found
            }
            Barrier::NoFence | Barrier::RelaxedStores => change(Ordering::AcqRel),
            Barrier::RelaxedLocks => change(Ordering::Relaxed),
        }
    }
}

impl Memory for Small {
    type At = At;

    fn group(&self, _: GroupId) -> Option<At> {
        Some(At::Group)
    }

    fn entry(&self, _: u64) -> Option<At> {
        Some(At::Entry)
    }

    fn peer(&self, _: NodeId) -> Option<At> {
        Some(At::Peer)
    }

    fn load(&self, at: At, word: usize) -> u64 {
        Self::constant(at, word).unwrap_or_else(|| {
            self.place(at, word).load(match self.barrier {
                Barrier::Whole | Barrier::NoFence | Barrier::RelaxedStores => Ordering::Acquire,
                Barrier::RelaxedLocks => Ordering::Relaxed,
            })
        })
    }

    fn store(&self, at: At, word: usize, value: u64) {
        let order = match self.barrier {
            Barrier::Whole | Barrier::NoFence => Ordering::Release,
            Barrier::RelaxedStores | Barrier::RelaxedLocks => Ordering::Relaxed,
        };
        self.place(at, word).store(value, order);
    }

    fn compare_exchange(&self, at: At, word: usize, current: u64, new: u64) -> Result<u64, u64> {
        self.modify(|order| {
            self.place(at, word)
                .compare_exchange(current, new, order, Ordering::Relaxed)
        })
    }

    fn exchange(&self, at: At, word: usize, new: u64) -> u64 {
        self.modify(|order| self.place(at, word).swap(new, order))
    }

    fn fetch_add(&self, at: At, word: usize, add: u64) -> u64 {
        self.modify(|order| self.place(at, word).fetch_add(add, order))
    }
}

fn ballot(round: u64) -> Ballot {
    Ballot::new(round, NodeId(round as u16))
}

fn request(kind: Kind, ballot: Ballot, slot: u64) -> Header {
    Header {
        epoch: Epoch(1),
        ballot,
        slot: Slot(slot),
        ..Header::new(kind, GroupId(0), ballot.node())
    }
}

fn step(memory: &Small, header: Header, value: &[u8]) -> (Step, [u8; VALUE_BYTES]) {
    let acceptor = Acceptor {
        node: NodeId(9),
        incarnation: Incarnation(1),
        layout: Layout::new(1, 2, VALUE_BYTES).expect("valid layout"),
    };
    let mut reply = [0; VALUE_BYTES];
    let mut payload = Buffers {
        request: value,
        reply: &mut reply,
    };
    let length = value.len() as u16;
    let step = acceptor.step(memory, 10, &Header { length, ..header }, &mut payload);
    (step, reply)
}

fn kind(step: &Step) -> Option<Kind> {
    match step {
        Step::Reply(header, _) => Some(header.kind),
        Step::Silent(_) | Step::Dropped(_) => None,
    }
}

fn accept(memory: &Small, round: u64) -> bool {
    let header = request(Kind::Accept, ballot(round), 1);
    let (step, _) = step(memory, header, &[round as u8; 16]);
    kind(&step) == Some(Kind::Accepted)
}

/// Checks `race` in every execution and prints how many there were.
fn explore(name: &str, race: impl Fn() + Sync + Send + 'static) {
    let executions = std::sync::Arc::new(AtomicUsize::new(0));
    let counter = executions.clone();
    let mut builder = Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.max_branches = 10_000;
    builder.check(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        race();
    });
    let executions = executions.load(Ordering::Relaxed);
    println!("{name}: {executions} executions, at most {PREEMPTIONS} preemptions each");
}

fn is_refuted(race: impl Fn() + Sync + Send + 'static) -> bool {
    catch_unwind(AssertUnwindSafe(|| explore("not refuted", race))).is_err()
}

fn accept_against_lead(barrier: Barrier) {
    let memory = Arc::new(Small::new(barrier));
    memory.exchange(At::Group, group::TRIM, 1);
    let acceptor = memory.clone();
    let accepted = thread::spawn(move || accept(&acceptor, 1));
    let (promise, _) = step(&memory, request(Kind::Prepare, ballot(2), 0), &[]);
    let touched = matches!(promise, Step::Reply(header, _) if header.slot >= Slot(1));
    let fetched = touched.then(|| step(&memory, request(Kind::Fetch, ballot(2), 1), &[]));
    let accepted = accepted.join().expect("no panic");
    if accepted && kind(&promise) == Some(Kind::Promise) {
        let (vote, value) = fetched.expect("an accepted slot is fetched");
        if let Step::Reply(header, _) = vote {
            assert_eq!((header.kind, header.vote_ballot), (Kind::Vote, ballot(1)));
            assert_eq!(&value[..16], [1; 16]);
        }
    }
}

#[test]
fn a_new_leader_sees_the_vote_or_the_accept_is_refused() {
    explore("Accept against Prepare, then Fetch", || {
        accept_against_lead(Barrier::Whole);
    });
    assert!(is_refuted(|| accept_against_lead(Barrier::NoFence)));
}

fn two_accepts(barrier: Barrier) {
    let memory = Arc::new(Small::new(barrier));
    memory.exchange(At::Group, group::TRIM, 1);
    let acceptor = memory.clone();
    let low = thread::spawn(move || accept(&acceptor, 1));
    let high = accept(&memory, 2);
    let low = low.join().expect("no panic");
    let (step, value) = step(&memory, request(Kind::Read, Ballot::NONE, 1), &[]);
    let Step::Reply(vote, _) = step else {
        panic!("nobody holds the entry, but {step:?}");
    };
    let expected = if high { 2 } else { 1 };
    assert!(low || high);
    assert_eq!(vote.vote_ballot, ballot(expected));
    assert_eq!(&value[..16], [expected as u8; 16]);
}

#[test]
fn of_two_votes_in_one_slot_the_higher_stays() {
    explore("two Accepts", || two_accepts(Barrier::Whole));
}

fn a_reader(barrier: Barrier) {
    let memory = Arc::new(Small::new(barrier));
    memory.exchange(At::Group, group::TRIM, 1);
    assert!(accept(&memory, 1));
    let acceptor = memory.clone();
    let writer = thread::spawn(move || {
        // The second publication writes the body that a slow reader has in hand.
        accept(&acceptor, 2);
        accept(&acceptor, 3);
    });
    let mut out = [0; VALUE_BYTES];
    let read = region::vote(&*memory, GroupId(0), Slot(1), VALUE_BYTES, &mut out);
    if let Some((ballot, length)) = read {
        assert_eq!(length, 16);
        assert_eq!(out[..16], [ballot.round() as u8; 16], "half a vote");
    }
    writer.join().expect("no panic");
}

#[test]
fn a_reader_without_the_lock_sees_whole_votes() {
    explore("a reader against two publications", || {
        a_reader(Barrier::Whole);
    });
    assert!(is_refuted(|| a_reader(Barrier::RelaxedStores)));
    assert!(is_refuted(|| a_reader(Barrier::RelaxedLocks)));
}

fn lease_against_prepare(barrier: Barrier) {
    let memory = Arc::new(Small::new(barrier));
    memory.exchange(At::Group, group::TRIM, 1);
    let supporter = memory.clone();
    let supports = thread::spawn(move || {
        let header = Header {
            watermark: 1,
            flags: Flags::LEASE.with(Flags::ACK_WANTED),
            ..request(Kind::Decide, ballot(1), 0)
        };
        kind(&step(&supporter, header, &[]).0) == Some(Kind::Ack)
    });
    let (step, _) = step(&memory, request(Kind::Prepare, ballot(2), 0), &[]);
    let promised = kind(&step) == Some(Kind::Promise);
    let supports = supports.join().expect("no panic");
    assert!(!(supports && promised), "a lease is promised away");
}

#[test]
fn a_lease_is_never_supported_and_promised_away() {
    explore("Decide with a lease against Prepare", || {
        lease_against_prepare(Barrier::Whole);
    });
    assert!(is_refuted(|| lease_against_prepare(Barrier::RelaxedLocks)));
}

#[test]
fn of_two_prepares_the_higher_stands() {
    explore("two Prepares", || {
        let memory = Arc::new(Small::new(Barrier::Whole));
        memory.exchange(At::Group, group::TRIM, 1);
        let other = memory.clone();
        let low = thread::spawn(move || {
            let (step, _) = step(&other, request(Kind::Prepare, ballot(1), 0), &[]);
            kind(&step) == Some(Kind::Promise)
        });
        let (step, _) = step(&memory, request(Kind::Prepare, ballot(2), 0), &[]);
        let high = kind(&step) == Some(Kind::Promise);
        let low = low.join().expect("no panic");
        let promised = region::view(&*memory, GroupId(0)).expect("quiet").promised;
        let expected = if high { ballot(2) } else { ballot(1) };
        assert!(low || high);
        assert_eq!(promised, expected);
    });
}

#[test]
fn a_reader_without_the_lock_sees_whole_records() {
    explore("a reader against two Decides", || {
        let memory = Arc::new(Small::new(Barrier::Whole));
        memory.exchange(At::Group, group::TRIM, 1);
        let writer = memory.clone();
        let writer = thread::spawn(move || {
            for round in [1, 2] {
                let header = Header {
                    vote_ballot: Ballot(round),
                    watermark: 1,
                    ..request(Kind::Decide, ballot(round), round)
                };
                step(&writer, header, &[]);
            }
        });
        if let Some(view) = region::view(&*memory, GroupId(0)) {
            let decided = view.decided;
            let round = decided.ballot.round();
            assert_eq!((decided.from, decided.upto), (Slot(round), Slot(round)));
            assert!(view.promised >= decided.ballot);
        }
        writer.join().expect("no panic");
    });
}
