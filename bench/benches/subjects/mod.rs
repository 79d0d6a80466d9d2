//! What the benchmarks measure, once for wall-clock time and for instruction counts.
//!
//! A subject is a value that is made outside the measurement and an operation on it. To add one,
//! write it here and name it in both `core.rs` and `instructions.rs`.

use consensus::acceptor::{Acceptor, Step};
use consensus::auth::{self, Key};
use consensus::client::{Client, Config, Event};
use consensus::envelope::{self, Entry, EntryKind, Outcome, Status};
use consensus::memory::Buffers;
use consensus::region::{Birth, Layout, Region};
use consensus::wire::{self, Header, Kind, Parsed};
use consensus::{Ballot, Epoch, GroupId, NodeId, Sequence, SessionId, Slot};
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;

/// Length of a written value in bytes, as in the published rows.
pub(crate) const VALUE_BYTES: usize = 64;
/// Entries of the batches.
pub(crate) const BATCH: usize = 12;

const KEY: Key = Key([1, 2]);
const WINDOW: u64 = 1024;

/// Entries as they stand in a value.
pub(crate) fn batch() -> Vec<u8> {
    let mut out = Vec::with_capacity(2048);
    for sequence in 1..=BATCH as u64 {
        entry(sequence).append(&mut out);
    }
    out
}

fn entry(sequence: u64) -> Entry<'static> {
    Entry {
        kind: EntryKind::Command,
        session: SessionId(7),
        sequence: Sequence(sequence),
        behind: 0,
        body: &[7; VALUE_BYTES],
    }
}

fn header(kind: Kind, value: &[u8]) -> Header {
    Header {
        length: value.len() as u16,
        ..Header::new(kind, GroupId(0), NodeId(1))
    }
}

/// A packet with a batch.
pub(crate) fn packet() -> Vec<u8> {
    let value = batch();
    [&header(Kind::Request, &value).to_bytes()[..], &value].concat()
}

/// Parses a packet and returns the length of its value.
pub(crate) fn parse(packet: &[u8]) -> usize {
    match wire::parse(packet, wire::MTU_VALUE_BYTES) {
        Parsed::Ours(_, value) => value.len(),
        Parsed::NotOurs | Parsed::Malformed(_) => 0,
    }
}

/// Writes a header.
pub(crate) fn write(slot: u64) -> [u8; wire::HEADER_BYTES] {
    Header {
        slot: Slot(slot),
        ..header(Kind::Accept, &[])
    }
    .to_bytes()
}

/// Walks a batch and returns the sum of the lengths of the bodies.
pub(crate) fn walk(batch: &[u8]) -> usize {
    envelope::entries(batch)
        .flatten()
        .map(|entry| entry.body.len())
        .sum()
}

/// Packs a batch into `out`.
pub(crate) fn pack(out: &mut Vec<u8>) {
    out.clear();
    for sequence in 1..=BATCH as u64 {
        entry(sequence).append(out);
    }
}

/// The tag of one value.
pub(crate) fn tag(value: &[u8; VALUE_BYTES]) -> u64 {
    auth::tag(KEY, &header(Kind::Accept, value), value)
}

/// An acceptor that is asked to accept slot after slot.
pub(crate) struct Accepting {
    acceptor: Acceptor,
    region: Region<Vec<AtomicU64>>,
    slot: u64,
    reply: [u8; VALUE_BYTES],
}

impl Accepting {
    /// An acceptor over an empty region.
    pub(crate) fn new() -> Self {
        let layout = Layout::new(1, WINDOW, VALUE_BYTES).expect("valid layout");
        let birth = Birth {
            cluster: 1,
            node: NodeId(1),
            nonce: 5,
            boot: 6,
        };
        let words = (0..layout.words()).map(|_| AtomicU64::new(0)).collect();
        let region = Region::create(words, layout, birth, Epoch(1), 1_000_000).expect("blank");
        let acceptor = Acceptor {
            node: NodeId(1),
            incarnation: birth.incarnation(),
            layout,
        };
        Self {
            acceptor,
            region,
            slot: 0,
            reply: [0; VALUE_BYTES],
        }
    }

    fn step(&mut self, kind: Kind, slot: u64, watermark: u64, value: &[u8]) -> Step {
        let ballot = Ballot::new(1, NodeId(1));
        let epoch = Epoch(1);
        let request = Header {
            slot: Slot(slot),
            ballot,
            watermark,
            epoch,
            ..header(kind, value)
        };
        let mut payload = Buffers {
            request: value,
            reply: &mut self.reply,
        };
        self.acceptor.step(&self.region, 10, &request, &mut payload)
    }

    /// Votes for a value in the next slot; once per window a Decide makes room.
    pub(crate) fn accept(&mut self) -> Step {
        self.slot += 1;
        if self.slot.is_multiple_of(WINDOW / 2) {
            self.step(Kind::Decide, self.slot - 1, self.slot, &[]);
        }
        self.step(Kind::Accept, self.slot, 0, &[7; VALUE_BYTES])
    }
}

/// A client with an open session.
pub(crate) struct Talking {
    client: Client,
    sequence: u64,
    response: Vec<u8>,
}

impl Talking {
    /// A client whose session was just opened.
    pub(crate) fn new() -> Self {
        let leader = SocketAddr::from(([127, 0, 0, 1], 4747));
        let config = Config {
            members: vec![(NodeId(1), leader)],
            group: GroupId(0),
            epoch: Epoch(1),
            max_value: wire::MTU_VALUE_BYTES,
            max_in_flight: 64,
            seed: 1,
        };
        let client = Client::new(config).expect("a valid configuration");
        let mut talking = Self {
            client,
            sequence: 0,
            response: Vec::new(),
        };
        talking.client.submit_command(0, b"first").expect("room");
        let open = talking.client.poll_transmit(0).expect("the Open");
        let nonce = envelope::entries(open.value)
            .flatten()
            .next()
            .expect("one entry")
            .session
            .0;
        talking.answer([(nonce, Status::Opened, &7u64.to_be_bytes()[..])]);
        while talking.client.poll_transmit(0).is_some() {}
        talking.sequence = 1;
        talking.answer([(1, Status::Done, &b"OK"[..])]);
        talking.client.poll_event().expect("the answer");
        talking
    }

    fn answer<'a>(&mut self, outcomes: impl IntoIterator<Item = (u64, Status, &'a [u8])>) {
        self.response.clear();
        for (sequence, status, body) in outcomes {
            let sequence = Sequence(sequence);
            Outcome {
                sequence,
                status,
                body,
            }
            .append(&mut self.response);
        }
        let header = Header {
            slot: Slot(7),
            ..header(Kind::Response, &self.response)
        };
        let from = self.client.target();
        self.client
            .handle_datagram(1, from, &header, &self.response);
    }

    /// Submits a batch, sends it, takes the answer and collects the events.
    pub(crate) fn batch(&mut self) -> usize {
        for token in 0..BATCH as u64 {
            self.client
                .submit_command(token, &[7; VALUE_BYTES])
                .expect("room");
        }
        while self.client.poll_transmit(0).is_some() {}
        let first = self.sequence + 1;
        self.sequence += BATCH as u64;
        self.answer((first..=self.sequence).map(|sequence| (sequence, Status::Done, &b"OK"[..])));
        let events = std::iter::from_fn(|| self.client.poll_event());
        events.filter(|Event { result, .. }| result.is_ok()).count()
    }
}
