//! One small region, and the requests that the tests send to it.
#![allow(dead_code, reason = "each test uses its part")]

use nearwire_consensus::acceptor::{Acceptor, Step};
use nearwire_consensus::memory::stepping::{Progress, SteppingMemory, Thread};
use nearwire_consensus::memory::{Buffers, Memory};
use nearwire_consensus::region::{Birth, Layout, OpenError, Region, Restored};
use nearwire_consensus::sync::{AtomicU64, Ordering};
use nearwire_consensus::wire::{Flags, Header, Kind};
use nearwire_consensus::{Ballot, Epoch, GroupId, NodeId, Slot};

pub(crate) const GROUP: GroupId = GroupId(0);
pub(crate) const WINDOW: u64 = 2;
pub(crate) const VALUE_BYTES: usize = 64;
pub(crate) const LEASE_NS: u64 = 1_000;
pub(crate) const NOW_NS: u64 = 10;

pub(crate) const BIRTH: Birth = Birth {
    cluster: 1,
    node: NodeId(9),
    nonce: 5,
    boot: 6 << 64 | 7,
};

pub(crate) fn layout() -> Layout {
    Layout::new(1, WINDOW, VALUE_BYTES).expect("valid layout")
}

pub(crate) fn acceptor() -> Acceptor {
    Acceptor {
        node: BIRTH.node,
        incarnation: BIRTH.incarnation(),
        layout: layout(),
    }
}

pub(crate) fn atomics(words: &[u64]) -> Vec<AtomicU64> {
    words.iter().map(|word| AtomicU64::new(*word)).collect()
}

/// The words of a region that nothing has happened to yet.
pub(crate) fn fresh() -> Vec<u64> {
    let blank = atomics(&vec![0; layout().words()]);
    Region::create(&blank[..], layout(), BIRTH, Epoch(1), LEASE_NS).expect("blank words");
    blank
        .iter()
        .map(|word| word.load(Ordering::SeqCst))
        .collect()
}

/// Opens a copy of `words` and gives back what the opener left.
pub(crate) fn reopen(words: &[u64]) -> Result<(Vec<u64>, Restored), OpenError> {
    let copy = atomics(words);
    let (_, restored) = Region::open(&copy[..], layout(), BIRTH)?;
    let words = copy
        .iter()
        .map(|word| word.load(Ordering::SeqCst))
        .collect();
    Ok((words, restored))
}

pub(crate) fn ballot(round: u64, node: u16) -> Ballot {
    Ballot::new(round, NodeId(node))
}

fn request(kind: Kind, ballot: Ballot, slot: u64) -> Header {
    Header {
        epoch: Epoch(1),
        ballot,
        slot: Slot(slot),
        ..Header::new(kind, GROUP, ballot.node())
    }
}

/// A request, its value, and when it arrives.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) header: Header,
    pub(crate) value: Vec<u8>,
    pub(crate) now_ns: u64,
}

impl Request {
    fn new(header: Header, value: &[u8]) -> Self {
        let length = u16::try_from(value.len()).expect("short value");
        Self {
            header: Header { length, ..header },
            value: value.to_vec(),
            now_ns: NOW_NS,
        }
    }

    /// Steps `memory` with the request; also gives the value of a Vote.
    pub(crate) fn step(&self, memory: &impl Memory) -> (Step, Vec<u8>) {
        let mut reply = [0; VALUE_BYTES];
        let mut payload = Buffers {
            request: &self.value,
            reply: &mut reply,
        };
        let step = acceptor().step(memory, self.now_ns, &self.header, &mut payload);
        let value = match &step {
            Step::Reply(header, _) => reply[..usize::from(header.length)].to_vec(),
            Step::Silent(_) | Step::Dropped(_) => Vec::new(),
        };
        (step, value)
    }

    /// Makes the next access of `thread`, which runs this request.
    pub(crate) fn advance(
        &self,
        thread: &mut Thread,
        words: &mut Vec<u64>,
    ) -> Progress<(Step, Vec<u8>)> {
        thread.advance(layout(), words, |memory: &SteppingMemory<'_>| {
            self.step(memory)
        })
    }

    /// Runs the request to its end with nobody in between.
    pub(crate) fn run(&self, words: &mut Vec<u64>) -> (Step, Vec<u8>) {
        let mut thread = Thread::default();
        loop {
            if let Progress::Done(done) = self.advance(&mut thread, words) {
                return done;
            }
        }
    }
}

pub(crate) fn prepare(ballot: Ballot) -> Request {
    Request::new(request(Kind::Prepare, ballot, 0), &[])
}

pub(crate) fn fetch(ballot: Ballot, slot: u64) -> Request {
    Request::new(request(Kind::Fetch, ballot, slot), &[])
}

pub(crate) fn read(slot: u64) -> Request {
    Request::new(request(Kind::Read, ballot(1, 1), slot), &[])
}

pub(crate) fn accept(ballot: Ballot, slot: u64, value: &[u8]) -> Request {
    Request::new(request(Kind::Accept, ballot, slot), value)
}

pub(crate) fn decide(ballot: Ballot, from: u64, upto: u64, trim: u64, flags: Flags) -> Request {
    let header = Header {
        vote_ballot: Ballot(from),
        watermark: trim,
        flags,
        ..request(Kind::Decide, ballot, upto)
    };
    Request::new(header, &[])
}

/// The kind of the reply, if there is one.
pub(crate) fn kind(step: &Step) -> Option<Kind> {
    match step {
        Step::Reply(header, _) => Some(header.kind),
        Step::Silent(_) | Step::Dropped(_) => None,
    }
}
