//! Every interleaving, access by access, of the steps that can meet on one region.
//!
//! The search runs the shipped step, once with each access taking effect at once and once behind
//! store buffers (x86-TSO: Sewell et al. 2010), where plain stores reach memory at any later time,
//! in order, and a read-modify-write waits for them. Each rule that the step keeps is then broken
//! by one of its deliberate defects in some of the threads, and the search must find the harm.
#![cfg(not(loom))]

mod scene;

use nearwire_consensus::acceptor::Step;
use nearwire_consensus::memory::Memory;
use nearwire_consensus::memory::stepping::{Progress, SteppingMemory, Thread};
use nearwire_consensus::region::{self, GroupView, entry, group};
use nearwire_consensus::simulation::{self, Mutation};
use nearwire_consensus::wire::{Flags, Kind};
use nearwire_consensus::{Ballot, GroupId, NodeId, Slot};
use scene::{
    GROUP, LEASE_NS, Request, VALUE_BYTES, accept, ballot, decide, fetch, fresh, kind, layout,
    prepare, reopen,
};
use std::cell::{Cell, RefCell};
use std::collections::HashSet;

/// What a thread does.
#[derive(Clone)]
enum Program {
    /// One request after the other.
    Steps(Vec<Request>),
    /// Prepare; then, if the promise says that the slot was touched, Fetch it.
    Lead(Ballot, u64),
    /// User space reads a vote without the lock.
    ReadVote(u64),
    /// User space reads a group's record without the lock.
    ReadGroup,
}

/// What came of it.
#[derive(Clone, Debug)]
enum Outcome {
    Step(Step, Vec<u8>),
    Vote(Option<(Ballot, Vec<u8>)>),
    Group(Option<GroupView>),
}

const BODY_WORDS: usize = entry::VALUE + VALUE_BYTES / 8;

/// A thread's plain stores that have not reached memory yet.
type Buffer = Vec<(usize, u64)>;

/// Puts the stores of a thread into its buffer instead of memory.
struct Buffered<'a, M> {
    inner: &'a M,
    buffer: &'a RefCell<Buffer>,
    /// How many accesses were made in earlier runs; the next one is new.
    past: usize,
    made: Cell<usize>,
    /// The new access has to wait for the buffer to drain.
    waits: &'a Cell<bool>,
}

impl<M> Buffered<'_, M> {
    fn is_new(&self) -> bool {
        let index = self.made.replace(self.made.get() + 1);
        index == self.past
    }

    fn drained(&self, needs: impl FnOnce(&Buffer) -> bool) {
        if self.is_new() && needs(&self.buffer.borrow()) {
            self.waits.set(true);
        }
    }
}

impl<M: Memory<At = usize>> Memory for Buffered<'_, M> {
    type At = usize;

    fn group(&self, group: GroupId) -> Option<usize> {
        self.inner.group(group)
    }

    fn entry(&self, index: u64) -> Option<usize> {
        self.inner.entry(index)
    }

    fn peer(&self, node: NodeId) -> Option<usize> {
        self.inner.peer(node)
    }

    fn load(&self, at: usize, word: usize) -> u64 {
        self.drained(|buffer| buffer.iter().any(|(place, _)| *place == at + word));
        self.inner.load(at, word)
    }

    fn store(&self, at: usize, word: usize, value: u64) {
        if self.is_new() {
            self.buffer.borrow_mut().push((at + word, value));
        }
        // Stands for the access, so that the run stops here.
        self.inner.load(at, word);
    }

    fn compare_exchange(&self, at: usize, word: usize, current: u64, new: u64) -> Result<u64, u64> {
        self.drained(|buffer| !buffer.is_empty());
        if self.waits.get() {
            return Err(self.inner.load(at, word));
        }
        self.inner.compare_exchange(at, word, current, new)
    }

    fn exchange(&self, at: usize, word: usize, new: u64) -> u64 {
        self.drained(|buffer| !buffer.is_empty());
        if self.waits.get() {
            return self.inner.load(at, word);
        }
        self.inner.exchange(at, word, new)
    }

    fn fetch_add(&self, at: usize, word: usize, add: u64) -> u64 {
        self.drained(|buffer| !buffer.is_empty());
        if self.waits.get() {
            return self.inner.load(at, word);
        }
        self.inner.fetch_add(at, word, add)
    }
}

impl Program {
    fn run(&self, memory: &impl Memory) -> Vec<Outcome> {
        let step = |request: &Request| {
            let (step, value) = request.step(memory);
            Outcome::Step(step, value)
        };
        match self {
            Self::Steps(requests) => requests.iter().map(step).collect(),
            Self::Lead(ballot, slot) => {
                let promise = step(&prepare(*ballot));
                let touched = matches!(&promise, Outcome::Step(Step::Reply(header, _), _)
                    if header.kind == Kind::Promise && header.slot.0 >= *slot);
                let mut outcomes = vec![promise];
                if touched {
                    outcomes.push(step(&fetch(*ballot, *slot)));
                }
                outcomes
            }
            Self::ReadVote(slot) => {
                let mut out = [0; VALUE_BYTES];
                let vote = region::vote(memory, GROUP, Slot(*slot), VALUE_BYTES, &mut out);
                vec![Outcome::Vote(
                    vote.map(|(ballot, length)| (ballot, out[..length].to_vec())),
                )]
            }
            Self::ReadGroup => vec![Outcome::Group(region::view(memory, GROUP))],
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    /// Every access takes effect at once.
    Sequential,
    /// Plain stores wait in a buffer.
    Buffered,
}

#[derive(Clone, PartialEq, Eq, Hash, Default)]
struct Actor {
    thread: Thread,
    accesses: usize,
    buffer: Buffer,
    done: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    /// The words from the peers on that anything in these tests can change.
    words: Vec<u64>,
    actors: Vec<Actor>,
}

/// What is always true at the end: given the outcomes of each thread and the words.
type Claim<'a> = &'a dyn Fn(&[Vec<Outcome>], &mut Vec<u64>) -> Result<(), String>;

struct Search<'a> {
    order: Order,
    programs: Vec<(Program, Option<Mutation>)>,
    claim: Claim<'a>,
    places: Vec<usize>,
    words: Vec<u64>,
    seen: HashSet<State>,
    ends: usize,
}

/// How many states there were, and how many of them final; or what is wrong.
type Found = Result<(usize, usize), String>;

impl Search<'_> {
    fn new<'a>(
        order: Order,
        start: &[u64],
        programs: &[(Program, Option<Mutation>)],
        claim: Claim<'a>,
    ) -> Search<'a> {
        let group = layout().group_at(GROUP).expect("group 0");
        let entries = layout().entry_at(0).expect("entry 0");
        let peer = layout().peer_at(NodeId(0)).expect("peer 0");
        let places = (peer..peer + 10)
            .chain(group..group + group::WORDS)
            .chain(entries..entries + scene::WINDOW as usize * layout().entry_words())
            .collect();
        Search {
            order,
            programs: programs.to_vec(),
            claim,
            places,
            words: start.to_vec(),
            seen: HashSet::new(),
            ends: 0,
        }
    }

    fn explore(mut self) -> Found {
        let start = State {
            words: self.places.iter().map(|at| self.words[*at]).collect(),
            actors: vec![Actor::default(); self.programs.len()],
        };
        self.visit(start)?;
        Ok((self.seen.len(), self.ends))
    }

    fn visit(&mut self, state: State) -> Result<(), String> {
        if self.seen.contains(&state) {
            return Ok(());
        }
        let mut is_end = true;
        for index in 0..state.actors.len() {
            let moves = [self.flush(&state, index), self.access(&state, index)];
            for next in moves.into_iter().flatten() {
                is_end = false;
                self.check_rise(&state, &next)?;
                self.visit(next)?;
            }
        }
        if is_end {
            self.ends += 1;
            self.check_end(&state)?;
        }
        self.seen.insert(state);
        Ok(())
    }

    /// The oldest buffered store of a thread reaches memory.
    fn flush(&self, state: &State, index: usize) -> Option<State> {
        let mut next = state.clone();
        let buffer = &mut next.actors[index].buffer;
        if buffer.is_empty() {
            return None;
        }
        let (at, value) = buffer.remove(0);
        let place = self.places.binary_search(&at).expect("a watched word");
        next.words[place] = value;
        Some(next)
    }

    /// The next access of a thread, unless it is done or has to wait for its buffer.
    fn access(&mut self, state: &State, index: usize) -> Option<State> {
        let mut actor = state.actors[index].clone();
        if actor.done {
            return None;
        }
        self.put(&state.words);
        match self.advance(index, &mut actor)? {
            Progress::Running => actor.accesses += 1,
            Progress::Done(_) => actor.done = true,
        }
        let mut next = state.clone();
        next.words = self.places.iter().map(|at| self.words[*at]).collect();
        next.actors[index] = actor;
        Some(next)
    }

    fn put(&mut self, words: &[u64]) {
        for (at, word) in self.places.iter().zip(words) {
            self.words[*at] = *word;
        }
    }

    fn advance(&mut self, index: usize, actor: &mut Actor) -> Option<Progress<Vec<Outcome>>> {
        let (program, mutation) = &self.programs[index];
        let buffer = RefCell::new(std::mem::take(&mut actor.buffer));
        let waits = Cell::new(false);
        let run = |memory: &SteppingMemory<'_>| match self.order {
            Order::Sequential => program.run(memory),
            Order::Buffered => {
                let buffered = Buffered {
                    inner: memory,
                    buffer: &buffer,
                    past: actor.accesses,
                    made: Cell::new(0),
                    waits: &waits,
                };
                program.run(&buffered)
            }
        };
        let ambient = simulation::mutation();
        simulation::mutate(mutation.or(ambient));
        let progress = actor.thread.advance(layout(), &mut self.words, run);
        simulation::mutate(ambient);
        actor.buffer = buffer.into_inner();
        (!waits.get()).then_some(progress)
    }

    /// No access takes a promise, a touched slot or a trim back, and no vote is above the promise.
    fn check_rise(&self, before: &State, after: &State) -> Result<(), String> {
        let group = layout().group_at(GROUP).expect("group 0");
        let place = |at: usize| self.places.binary_search(&at).expect("a watched word");
        for (word, name) in [
            (group::PROMISED, "promised"),
            (group::HIGHEST, "highest"),
            (group::TRIM, "trim"),
        ] {
            let at = place(group + word);
            if after.words[at] < before.words[at] {
                return Err(format!("{name} went back"));
            }
        }
        for index in 0..scene::WINDOW {
            let at = layout().entry_at(index).expect("in the ring");
            let published = after.words[place(at)] as usize >> 1 & 1;
            let vote = at + entry::BODIES + published * BODY_WORDS + entry::BALLOT;
            if after.words[place(vote)] > after.words[place(group + group::PROMISED)] {
                return Err(format!("entry {index} holds a vote above the promise"));
            }
        }
        Ok(())
    }

    fn check_end(&mut self, state: &State) -> Result<(), String> {
        let mut outcomes = Vec::new();
        for (index, actor) in state.actors.iter().enumerate() {
            let mut actor = actor.clone();
            match self.advance(index, &mut actor) {
                Some(Progress::Done(outcome)) => outcomes.push(outcome),
                _ => return Err(format!("thread {index} is stuck")),
            }
        }
        self.put(&state.words);
        let mut words = self.words.clone();
        (self.claim)(&outcomes, &mut words).map_err(|what| format!("{what}: {outcomes:?}"))
    }
}

struct Scenario<'a> {
    name: &'static str,
    start: Vec<u64>,
    programs: Vec<Program>,
    claim: Claim<'a>,
}

impl Scenario<'_> {
    fn search(&self, order: Order, broken: &[usize], mutation: Option<Mutation>) -> Found {
        let programs: Vec<_> = self
            .programs
            .iter()
            .enumerate()
            .map(|(index, program)| {
                let mutation = mutation.filter(|_| broken.contains(&index));
                (program.clone(), mutation)
            })
            .collect();
        Search::new(order, &self.start, &programs, self.claim).explore()
    }

    /// The claim holds, however the accesses fall.
    fn holds(&self) {
        for order in [Order::Sequential, Order::Buffered] {
            match self.search(order, &[], None) {
                Ok((states, ends)) => {
                    println!("{}, {order:?}: {states} states, {ends} ends", self.name);
                    assert!(states > 100, "the threads never met");
                }
                Err(what) => panic!("{}, {order:?}: {what}", self.name),
            }
        }
    }

    /// The claim falls when `broken` threads commit this defect. A build without defects has none
    /// to commit.
    fn catches(&self, order: Order, broken: &[usize], mutation: Mutation) {
        if !simulation::IS_COMPILED_IN {
            return;
        }
        match self.search(order, broken, Some(mutation)) {
            Ok((states, _)) => {
                panic!(
                    "{}: {mutation:?} was not noticed in {states} states",
                    self.name
                )
            }
            Err(what) => println!("{}, {order:?}: {mutation:?} caught: {what:.60}", self.name),
        }
    }
}

fn steps(requests: &[Request]) -> Program {
    Program::Steps(requests.to_vec())
}

fn after(requests: &[Request]) -> Vec<u64> {
    let mut words = fresh();
    for request in requests {
        let (step, _) = request.run(&mut words);
        assert!(!matches!(step, Step::Dropped(_)), "{step:?}");
    }
    words
}

/// The kind of reply `number` of a thread, if it was sent.
fn answered(outcomes: &[Outcome], number: usize) -> Option<Kind> {
    match outcomes.get(number)? {
        Outcome::Step(step, _) => kind(step),
        Outcome::Vote(_) | Outcome::Group(_) => None,
    }
}

const OLD: [u8; 16] = [0x11; 16];
const NEW: [u8; 16] = [0x22; 16];

/// What an acceptor that answered Accepted owes to a leader that it promised to.
fn vote_is_seen(
    accepted: &[Outcome],
    led: &[Outcome],
    vote: (Ballot, &[u8]),
) -> Result<(), String> {
    if answered(accepted, 0) != Some(Kind::Accepted) || answered(led, 0) != Some(Kind::Promise) {
        return Ok(());
    }
    match led.get(1) {
        None => Err("the new leader does not fetch an accepted slot".into()),
        Some(Outcome::Step(Step::Dropped(_), _)) => Ok(()),
        Some(Outcome::Step(Step::Reply(header, _), value))
            if header.kind == Kind::Vote && (header.vote_ballot, &value[..]) == vote =>
        {
            Ok(())
        }
        Some(other) => Err(format!("the new leader is told {other:?}")),
    }
}

fn accept_against_lead() -> Scenario<'static> {
    Scenario {
        name: "Accept against Prepare, then Fetch",
        start: fresh(),
        programs: vec![
            steps(&[accept(ballot(1, 1), 1, &OLD)]),
            Program::Lead(ballot(2, 2), 1),
        ],
        claim: &|outcomes, _| vote_is_seen(&outcomes[0], &outcomes[1], (ballot(1, 1), &OLD)),
    }
}

#[test]
fn a_new_leader_sees_the_vote_or_the_accept_is_refused() {
    let scenario = accept_against_lead();
    scenario.holds();
    for order in [Order::Sequential, Order::Buffered] {
        for broken_accept in [
            Mutation::PromiseNotChecked,
            Mutation::PromisedReadBeforeLock,
            Mutation::PromisedReadBeforeHighest,
            Mutation::PromisedRaisedLate,
            Mutation::VotePromisesNothing,
            Mutation::VoteNotStored,
            Mutation::HighestNotRaised,
        ] {
            scenario.catches(order, &[0], broken_accept);
        }
        for broken_lead in [
            Mutation::HighestReadBeforePromise,
            Mutation::FetchUnlocked,
            Mutation::TornIsEmpty,
        ] {
            scenario.catches(order, &[1], broken_lead);
        }
        scenario.catches(order, &[0, 1], Mutation::EntryUnlocked);
    }
    // Plain stores do harm behind buffers: "write mine, read yours" without a barrier.
    scenario.catches(Order::Buffered, &[0], Mutation::WordsRaisedByStore);
    scenario.catches(Order::Buffered, &[1], Mutation::WordsRaisedByStore);
}

#[test]
fn a_promise_is_not_taken_back_by_an_accept() {
    let scenario = Scenario {
        name: "Accept against Prepare of a higher ballot",
        start: fresh(),
        programs: vec![
            steps(&[accept(ballot(1, 1), 1, &OLD)]),
            steps(&[prepare(ballot(2, 2))]),
            steps(&[accept(ballot(1, 1), 2, &OLD)]),
        ],
        claim: &|outcomes, words| {
            let group = layout().group_at(GROUP).expect("group 0");
            let promised = Ballot(words[group + group::PROMISED]);
            let was_promised = answered(&outcomes[1], 0) == Some(Kind::Promise);
            if was_promised && promised < ballot(2, 2) {
                return Err("the promise is gone".into());
            }
            Ok(())
        },
    };
    scenario.holds();
    scenario.catches(Order::Sequential, &[0], Mutation::WordsRaisedByStore);
    scenario.catches(Order::Buffered, &[0], Mutation::WordsRaisedByStore);
}

#[test]
fn a_promise_is_not_taken_back_by_a_prepare() {
    let scenario = Scenario {
        name: "Prepare against Accept of a higher ballot",
        start: fresh(),
        programs: vec![
            steps(&[prepare(ballot(2, 2))]),
            steps(&[accept(ballot(3, 3), 1, &NEW)]),
        ],
        // That no word goes back is claimed of every access.
        claim: &|_, _| Ok(()),
    };
    scenario.holds();
    for order in [Order::Sequential, Order::Buffered] {
        scenario.catches(order, &[0], Mutation::PromiseStored);
        scenario.catches(order, &[0], Mutation::WordsRaisedByStore);
    }
}

#[test]
fn of_two_decides_the_newer_record_and_the_higher_trim_stand() {
    let (one, two) = (ballot(1, 1), ballot(2, 2));
    let scenario = Scenario {
        name: "Decides of two ballots, one of them late",
        start: after(&[decide(one, 1, 3, 1, Flags(0))]),
        programs: vec![
            steps(&[decide(one, 1, 4, 2, Flags::ACK_WANTED)]),
            steps(&[decide(two, 3, 3, 3, Flags::ACK_WANTED)]),
            steps(&[decide(two, 3, 3, 2, Flags(0))]),
        ],
        claim: &|outcomes, words| {
            if answered(&outcomes[1], 0) != Some(Kind::Ack) {
                return Ok(());
            }
            let view = reopen(words).map_err(|error| error.to_string());
            let at = layout().group_at(GROUP).expect("group 0");
            let body = at + group::BODIES + (view?.0[at] as usize >> 1 & 1) * group::BODY_WORDS;
            let decided = [group::BALLOT, group::FROM, group::UPTO].map(|word| words[body + word]);
            if decided == [two.0, 3, 3] && words[at + group::TRIM] == 3 {
                Ok(())
            } else {
                Err(format!("the record is {decided:?}"))
            }
        },
    };
    scenario.holds();
    for order in [Order::Sequential, Order::Buffered] {
        scenario.catches(order, &[2], Mutation::TrimStored);
        scenario.catches(order, &[0], Mutation::DecidedByOldBallot);
        scenario.catches(order, &[1], Mutation::DecidedMixed);
        scenario.catches(order, &[1], Mutation::DecidePromisesNothing);
    }
}

#[test]
fn of_two_votes_in_one_slot_the_higher_stays_and_readers_see_whole_ones() {
    let scenario = Scenario {
        name: "two Accepts and a reader",
        start: after(&[accept(ballot(1, 1), 1, &[0x33; 16])]),
        programs: vec![
            steps(&[accept(ballot(2, 2), 1, &OLD)]),
            steps(&[accept(ballot(3, 3), 1, &NEW)]),
            Program::ReadVote(1),
        ],
        claim: &|outcomes, words| {
            let votes = [
                (ballot(1, 1), vec![0x33; 16]),
                (ballot(2, 2), OLD.to_vec()),
                (ballot(3, 3), NEW.to_vec()),
            ];
            if let Outcome::Vote(Some(read)) = &outcomes[2][0]
                && !votes.contains(read)
            {
                return Err("a reader saw half a vote".into());
            }
            let highest = (0..2)
                .filter(|thread| answered(&outcomes[*thread], 0) == Some(Kind::Accepted))
                .max();
            let (step, value) = scene::read(1).run(words);
            let expected = &votes[highest.map_or(0, |thread| thread + 1)];
            match step {
                Step::Reply(header, _) if (header.vote_ballot, value) == *expected => Ok(()),
                other => Err(format!("at the end {other:?}")),
            }
        },
    };
    scenario.holds();
    scenario.catches(Order::Sequential, &[0, 1], Mutation::EntryUnlocked);
    scenario.catches(Order::Sequential, &[0], Mutation::PublishedBodyWritten);
}

/// The reader's body is written again only by the second publication after its first look.
#[test]
fn a_reader_overtaken_twice_notices() {
    let scenario = Scenario {
        name: "a reader against two publications",
        start: after(&[accept(ballot(1, 1), 1, &[0x33; 16])]),
        programs: vec![
            steps(&[
                accept(ballot(2, 2), 1, &OLD),
                accept(ballot(3, 3), 1, &NEW),
                accept(ballot(4, 4), 1, &OLD),
            ]),
            Program::ReadVote(1),
        ],
        claim: &|outcomes, _| {
            let whole = |(read, value): &(Ballot, Vec<u8>)| match read.round() {
                1 => value[..] == [0x33; 16],
                2 | 4 => value[..] == OLD,
                3 => value[..] == NEW,
                _ => false,
            };
            match &outcomes[1][0] {
                Outcome::Vote(Some(read)) if !whole(read) => Err("half a vote".into()),
                _ => Ok(()),
            }
        },
    };
    scenario.holds();
    scenario.catches(Order::Sequential, &[1], Mutation::ReaderLooksOnce);
    scenario.catches(Order::Buffered, &[1], Mutation::ReaderLooksOnce);
}

#[test]
fn a_kept_slot_is_never_overwritten_and_outside_names_a_trim_above_it() {
    let b = ballot(1, 1);
    let scenario = Scenario {
        name: "Accept over a ring entry against Decide with trim, and Fetch",
        start: after(&[accept(b, 1, &OLD), accept(b, 2, &OLD)]),
        programs: vec![
            steps(&[accept(b, 3, &NEW)]),
            steps(&[decide(b, 1, 2, 2, Flags::ACK_WANTED)]),
            steps(&[fetch(b, 1)]),
        ],
        claim: &|outcomes, words| {
            let group = layout().group_at(GROUP).expect("group 0");
            let accepted = answered(&outcomes[0], 0) == Some(Kind::Accepted);
            if accepted && words[group + group::TRIM] < 2 {
                return Err("a kept slot was overwritten".into());
            }
            if let Outcome::Step(Step::Reply(header, _), value) = &outcomes[2][0] {
                match header.kind {
                    Kind::Vote if value[..] == OLD => {}
                    Kind::Outside if header.watermark > 1 => {}
                    _ => return Err("the slot was kept or trimmed, and neither is told".into()),
                }
            }
            let (step, value) = scene::read(3).run(words);
            let holds = kind(&step) == Some(Kind::Vote) && value[..] == NEW;
            if accepted == holds {
                Ok(())
            } else {
                Err("an accepted vote is gone".into())
            }
        },
    };
    scenario.holds();
    scenario.catches(Order::Sequential, &[0], Mutation::KeptSlotOverwritten);
    scenario.catches(Order::Sequential, &[2], Mutation::TrimReadBeforeLock);
}

fn lease_against_prepare(others: &[Request]) -> Scenario<'static> {
    let lease = Flags::LEASE.with(Flags::ACK_WANTED);
    let mut programs = vec![
        steps(&[decide(ballot(1, 1), 1, 0, 1, lease)]),
        steps(&[prepare(ballot(2, 2))]),
    ];
    programs.extend(
        others
            .iter()
            .map(|other| steps(std::slice::from_ref(other))),
    );
    Scenario {
        name: "Decide with a lease against Prepare",
        start: fresh(),
        programs,
        claim: &|outcomes, words| {
            let supports = answered(&outcomes[0], 0) == Some(Kind::Ack);
            if supports && answered(&outcomes[1], 0) == Some(Kind::Promise) {
                return Err("a lease is supported and promised away".into());
            }
            if !supports {
                return Ok(());
            }
            let (step, _) = prepare(ballot(9, 3)).run(words);
            match step {
                Step::Reply(header, _)
                    if header.kind == Kind::Nack && header.watermark == LEASE_NS =>
                {
                    Ok(())
                }
                other => Err(format!("an acknowledged lease is not kept: {other:?}")),
            }
        },
    }
}

#[test]
fn a_lease_is_never_supported_and_promised_away() {
    let scenario = lease_against_prepare(&[]);
    scenario.holds();
    for order in [Order::Sequential, Order::Buffered] {
        scenario.catches(order, &[0, 1], Mutation::PrepareUnlocked);
        scenario.catches(order, &[1], Mutation::PrepareUnlocked);
        scenario.catches(order, &[1], Mutation::LeaseIgnored);
    }
    lease_against_prepare(&[prepare(ballot(3, 3))]).holds();
    lease_against_prepare(&[accept(ballot(1, 1), 1, &OLD)]).holds();
}

#[test]
fn of_two_prepares_the_higher_stands() {
    let scenario = Scenario {
        name: "two Prepares and an Accept",
        start: fresh(),
        programs: vec![
            Program::Lead(ballot(2, 2), 1),
            Program::Lead(ballot(3, 3), 1),
            steps(&[accept(ballot(1, 1), 1, &OLD)]),
        ],
        claim: &|outcomes, words| {
            let promised =
                (0..2).rfind(|lead| answered(&outcomes[*lead], 0) == Some(Kind::Promise));
            let at = layout().group_at(GROUP).expect("group 0") + group::PROMISED;
            if let Some(lead) = promised
                && Ballot(words[at]) != ballot(lead as u64 + 2, lead as u16 + 2)
            {
                return Err("the higher promise does not stand".into());
            }
            for led in &outcomes[..2] {
                // A lower leader may be refused its Fetch by the higher one's promise.
                if answered(led, 1) != Some(Kind::Nack) {
                    vote_is_seen(&outcomes[2], led, (ballot(1, 1), &OLD))?;
                }
            }
            Ok(())
        },
    };
    scenario.holds();
    scenario.catches(Order::Sequential, &[2], Mutation::PromisedReadBeforeHighest);
    // Without the lock a plain raise loses the higher promise to the lower one.
    scenario.catches(Order::Buffered, &[0], Mutation::WordsRaisedByStore);
}

#[test]
fn the_decided_record_is_read_whole() {
    let (one, two) = (ballot(1, 1), ballot(2, 2));
    let scenario = Scenario {
        name: "three Decides and a reader",
        start: after(&[decide(one, 1, 1, 1, Flags(0))]),
        programs: vec![
            steps(&[
                decide(one, 1, 2, 1, Flags(0)),
                decide(two, 2, 3, 1, Flags(0)),
                decide(two, 2, 4, 1, Flags(0)),
            ]),
            Program::ReadGroup,
        ],
        claim: &|outcomes, _| match &outcomes[1][0] {
            Outcome::Group(Some(view)) => {
                let decided = (
                    view.decided.ballot,
                    view.decided.from.0,
                    view.decided.upto.0,
                );
                let published = [(one, 1, 1), (one, 1, 2), (two, 2, 3), (two, 2, 4)];
                if published.contains(&decided) && view.promised >= view.decided.ballot {
                    Ok(())
                } else {
                    Err(format!("a record that nobody wrote: {decided:?}"))
                }
            }
            _ => Ok(()),
        },
    };
    scenario.holds();
    scenario.catches(Order::Sequential, &[1], Mutation::ReaderLooksOnce);
}
