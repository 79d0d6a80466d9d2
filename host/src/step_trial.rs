//! What `nearwire bench step` times: an acceptor that is shown requests of one kind, each of which
//! must have its effect.

use crate::xdp::{Loaded, Repeater, Settings, Timed, Verdict, XdpError};
use bench::step::Times;
use consensus::acceptor::{Acceptor, Step};
use consensus::auth::{self, Key};
use consensus::frame::{self, Addresses, Mac, Own, Path};
use consensus::memory::{Buffers, Memory};
use consensus::region::{self, Birth, Layout, OpenError, Region, group};
use consensus::sync::AtomicU64;
use consensus::tally::Count;
use consensus::wire::{self, DEFAULT_PORT, HEADER_BYTES, Header, Kind};
use consensus::{Ballot, Epoch, GroupId, Incarnation, NodeId, Slot};
use std::collections::BTreeSet;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Instant;

const GROUP: GroupId = GroupId(0);
const LEADER: NodeId = NodeId(1);
const EPOCH: Epoch = Epoch(1);
const LEASE_NS: u64 = 1_000_000_000;
const BIRTH: Birth = Birth {
    cluster: 1,
    node: NodeId(2),
    nonce: 1,
    boot: 0,
};
const KEY: Key = Key([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]);
const MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);
const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const PATH: Path = Path {
    source_mac: Mac([2, 0, 0, 0, 0, 1]),
    destination_mac: MAC,
    vlan: None,
    addresses: Addresses::V4 {
        source: Ipv4Addr::new(10, 0, 0, 1),
        destination: IP,
    },
    source_port: DEFAULT_PORT,
    destination_port: DEFAULT_PORT,
};

/// What an acceptor is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    /// A new promise each time.
    Prepare,
    /// A vote in a new slot each time.
    Accept,
    /// The vote of a slot.
    FetchHit,
    /// A slot without a vote.
    FetchEmpty,
    /// Another slot chosen each time, without an answer.
    Decide,
}

/// Every case, the shorter ones first.
pub const CASES: [(Message, usize); 7] = [
    (Message::Prepare, 0),
    (Message::Accept, 64),
    (Message::Accept, 256),
    (Message::Accept, 1384),
    (Message::FetchHit, 64),
    (Message::FetchEmpty, 0),
    (Message::Decide, 0),
];

impl Message {
    /// A stable name for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Accept => "accept",
            Self::FetchHit => "fetch_hit",
            Self::FetchEmpty => "fetch_empty",
            Self::Decide => "decide",
        }
    }

    const fn answer(self) -> Option<Kind> {
        match self {
            Self::Prepare => Some(Kind::Promise),
            Self::Accept => Some(Kind::Accepted),
            Self::FetchHit => Some(Kind::Vote),
            Self::FetchEmpty => Some(Kind::Empty),
            Self::Decide => None,
        }
    }
}

/// What is timed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Case {
    /// What is asked.
    pub message: Message,
    /// Length of the value in bytes, in whichever direction it goes.
    pub value_bytes: usize,
    /// Whether requests and answers carry tags.
    pub is_keyed: bool,
}

impl Case {
    /// The request of that number: of its slot, or its round.
    fn request(&self, number: u64) -> Request {
        let Self {
            message,
            value_bytes,
            is_keyed,
        } = *self;
        let mut value = Vec::new();
        let mut header = Header {
            incarnation: Incarnation::ANY,
            epoch: EPOCH,
            slot: Slot(number),
            ballot: Ballot::new(1, LEADER),
            nonce: number as u32,
            ..Header::new(Kind::Accept, GROUP, LEADER)
        };
        match message {
            Message::Prepare => {
                header.kind = Kind::Prepare;
                header.slot = Slot::NONE;
                header.ballot = Ballot::new(number, LEADER);
            }
            Message::Accept => {
                // No two are the same.
                value = vec![number as u8; value_bytes];
                for (to, from) in value.iter_mut().zip(number.to_le_bytes()) {
                    *to = from;
                }
                header.length = value_bytes as u16;
            }
            Message::FetchHit => {
                header.kind = Kind::Fetch;
                // Room for the answer.
                value = vec![0; value_bytes];
                header.length = value_bytes as u16;
            }
            Message::FetchEmpty => header.kind = Kind::Fetch,
            Message::Decide => {
                header.kind = Kind::Decide;
                header.vote_ballot = Ballot(Slot::FIRST.0);
                header.watermark = Slot::FIRST.0;
            }
        }
        if is_keyed {
            header.tag = auth::tag(KEY, &header, &value);
        }
        (header, value)
    }
}

/// A request, and the value that goes with it.
pub type Request = (Header, Vec<u8>);

/// A case was not timed.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The kernel does not take or run the programs.
    #[error(transparent)]
    Xdp(#[from] XdpError),
    /// The region was not made.
    #[error(transparent)]
    Region(#[from] OpenError),
    /// Requests were answered without effect, or not at all: what was timed is another path.
    #[error("time {message} on {engine}: {what} {found} of {wanted} times")]
    Unproved {
        /// Of which message.
        message: &'static str,
        /// By which engine.
        engine: &'static str,
        /// What was to happen.
        what: &'static str,
        /// How often it did.
        found: u64,
        /// How often it should have.
        wanted: u64,
    },
}

/// An acceptor that is timed.
pub trait Engine {
    /// Where its region is.
    type Words: AsRef<[AtomicU64]>;

    /// A stable name for reports.
    fn name(&self) -> &'static str;
    /// Its region.
    fn region(&self) -> &Region<Self::Words>;
    /// Shows it each datagram once.
    ///
    /// # Errors
    /// The kernel refuses.
    fn show(&mut self, datagrams: &[Vec<u8>]) -> Result<Shown, TrialError>;
}

/// What came of datagrams.
#[derive(Debug)]
pub struct Shown {
    /// How long it took.
    pub times: Times,
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that were taken without an answer.
    pub taken: u64,
    /// The last answer.
    pub last: Option<Vec<u8>>,
}

/// The acceptor in the kernel.
#[derive(Debug)]
pub struct InKernel {
    message: Message,
    repeater: Repeater,
}

impl InKernel {
    /// Loads that of `object` for runs of `repeats` requests as `case` has them.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn load(
        object: &[u8],
        case: Case,
        layout: Layout,
        repeats: u32,
    ) -> Result<Self, TrialError> {
        let settings = Settings {
            port: DEFAULT_PORT,
            own: Own {
                mac: MAC,
                vlan: None,
                ip: IP.into(),
            },
            layout,
            birth: BIRTH,
            epoch: EPOCH,
            lease_ns: LEASE_NS,
            keys: case.is_keyed.then_some(KEY.into()),
            is_rehearsal: false,
        };
        let value_bytes = match case.message {
            Message::Accept | Message::FetchHit => case.value_bytes,
            _ => 0,
        };
        let frame_bytes = PATH.header_bytes() + HEADER_BYTES + value_bytes;
        let repeater = Repeater::load(object, &settings, repeats, frame_bytes as u32)?;
        Ok(Self {
            message: case.message,
            repeater,
        })
    }

    /// The acceptor.
    pub const fn loaded(&mut self) -> &mut Loaded {
        self.repeater.loaded()
    }
}

impl Engine for InKernel {
    type Words = crate::mapping::Mapping;

    fn name(&self) -> &'static str {
        "xdp"
    }

    fn region(&self) -> &Region<Self::Words> {
        self.repeater.region()
    }

    fn show(&mut self, datagrams: &[Vec<u8>]) -> Result<Shown, TrialError> {
        let frames: Vec<_> = datagrams.iter().map(|datagram| framed(datagram)).collect();
        self.repeater.fill(&frames);
        let before = self.repeater.loaded().counters()?;
        let whole = self.repeater.run(Timed::Acceptor)?;
        let after = self.repeater.loaded().counters()?;
        let around = self.repeater.run(Timed::Refill)?;
        let floor = self.repeater.run(Timed::Bounce)?;
        for ran in [&whole, &around] {
            let (found, wanted) = (ran.taken, datagrams.len() as u64);
            if found != wanted || matches!(ran.last, Verdict::Other(_)) {
                return Err(TrialError::Unproved {
                    message: self.message.name(),
                    engine: self.name(),
                    what: "a request was put in place",
                    found,
                    wanted,
                });
            }
        }
        let counted = |count: Count| after[count.index()] - before[count.index()];
        let ns = |time: std::time::Duration| time.as_nanos() as f64;
        Ok(Shown {
            times: Times {
                wrapped: ns(whole.each),
                wrapped_floor: ns(around.each),
                floor: Some(ns(floor.each)),
            },
            answered: counted(Count::Answered),
            taken: counted(Count::Taken),
            last: match whole.last {
                Verdict::Sent(frame) => match frame::parse(&frame, PATH.source_port) {
                    frame::Parsed::Ours(_, at) => frame.get(at).map(<[u8]>::to_vec),
                    _ => None,
                },
                _ => None,
            },
        })
    }
}

fn framed(datagram: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; PATH.header_bytes()];
    frame.extend_from_slice(datagram);
    let written = PATH.write(&mut frame, datagram.len());
    debug_assert_eq!(written, Some(frame.len()));
    frame
}

/// The same step in this process.
#[derive(Debug)]
pub struct InProcess {
    acceptor: Acceptor,
    region: Region<Vec<AtomicU64>>,
    key: Option<Key>,
    reply: Vec<u8>,
}

impl InProcess {
    /// Makes a region for it.
    ///
    /// # Errors
    /// The layout takes no such region.
    pub fn new(case: Case, layout: Layout) -> Result<Self, TrialError> {
        let words = (0..layout.words()).map(|_| AtomicU64::new(0)).collect();
        Ok(Self {
            acceptor: Acceptor {
                node: BIRTH.node,
                incarnation: BIRTH.incarnation(),
                layout,
            },
            region: Region::create(words, layout, BIRTH, EPOCH, LEASE_NS)?,
            key: case.is_keyed.then_some(KEY),
            reply: vec![0; HEADER_BYTES + layout.value_bytes()],
        })
    }

    /// Answers a datagram with so many bytes of `reply`, as a node does; with none, if the request
    /// was taken without an answer. `None` if it was refused.
    #[inline]
    fn serve(&mut self, datagram: &[u8]) -> Option<usize> {
        let limit = self.acceptor.layout.value_bytes();
        let wire::Parsed::Ours(request, value) = wire::parse(datagram, limit) else {
            return None;
        };
        if let Some(key) = self.key
            && !auth::is_authentic(key, &request, value)
        {
            return None;
        }
        let (header, room) = self.reply.split_first_chunk_mut::<HEADER_BYTES>()?;
        let mut payload = Buffers {
            request: value,
            reply: room,
        };
        match self.acceptor.step(&self.region, 0, &request, &mut payload) {
            Step::Reply(mut answer, _) => {
                let length = usize::from(answer.length);
                if let Some(key) = self.key {
                    answer.tag = auth::tag(key, &answer, room.get(..length)?);
                }
                answer.write(header);
                Some(HEADER_BYTES + length)
            }
            Step::Silent(_) => Some(0),
            Step::Dropped(_) => None,
        }
    }
}

impl Engine for InProcess {
    type Words = Vec<AtomicU64>;

    fn name(&self) -> &'static str {
        "software"
    }

    fn region(&self) -> &Region<Self::Words> {
        &self.region
    }

    fn show(&mut self, datagrams: &[Vec<u8>]) -> Result<Shown, TrialError> {
        let (mut answered, mut taken, mut last) = (0, 0, 0);
        let began = Instant::now();
        for datagram in datagrams {
            match self.serve(black_box(datagram)) {
                Some(0) => taken += 1,
                Some(bytes) => {
                    answered += 1;
                    last = bytes;
                }
                None => {}
            }
        }
        let whole = began.elapsed();
        let began = Instant::now();
        for datagram in datagrams {
            black_box(datagram);
        }
        let around = began.elapsed();
        let each = |time: std::time::Duration| time.as_nanos() as f64 / datagrams.len() as f64;
        Ok(Shown {
            times: Times {
                wrapped: each(whole),
                wrapped_floor: each(around),
                floor: None,
            },
            answered,
            taken,
            last: self.reply.get(..last).map(<[u8]>::to_vec),
        })
    }
}

/// A case on an engine.
#[derive(Debug)]
pub struct Trial<E> {
    case: Case,
    engine: E,
    /// What the next run begins with: a slot, or a round.
    next: u64,
}

impl<E: Engine> Trial<E> {
    /// Brings the region to where the case begins.
    pub fn new(case: Case, engine: E, repeats: u64) -> Self {
        let trial = Self {
            case,
            engine,
            next: 1,
        };
        let region = trial.engine.region();
        let acceptor = Acceptor {
            node: BIRTH.node,
            incarnation: BIRTH.incarnation(),
            layout: *region.layout(),
        };
        let (message, count) = match case.message {
            Message::FetchHit => (Message::Accept, repeats),
            Message::FetchEmpty => (Message::Prepare, 1),
            Message::Prepare | Message::Accept | Message::Decide => return trial,
        };
        let before = Case { message, ..case };
        for (header, value) in (1..=count).map(|number| before.request(number)) {
            let mut payload = Buffers {
                request: &value,
                reply: &mut [],
            };
            acceptor.step(region, 0, &header, &mut payload);
        }
        trial
    }

    /// The engine.
    pub const fn engine(&mut self) -> &mut E {
        &mut self.engine
    }

    /// Times a run of so many requests, and proves that each had its effect.
    ///
    /// # Errors
    /// [`TrialError::Unproved`] if one had not.
    pub fn run(&mut self, repeats: u64) -> Result<Times, TrialError> {
        let requests = self.requests(repeats);
        self.run_on(&requests)
    }

    /// The requests of the next run.
    pub fn requests(&self, repeats: u64) -> Vec<Request> {
        (self.next..self.next + repeats)
            .map(|number| self.case.request(number))
            .collect()
    }

    /// As [`Trial::run`], on these requests.
    ///
    /// # Errors
    /// As [`Trial::run`].
    pub fn run_on(&mut self, requests: &[Request]) -> Result<Times, TrialError> {
        let wanted = requests.len() as u64;
        let place = self.engine.region().group(GROUP).unwrap_or_default();
        if self.case.message == Message::Accept {
            // The window begins with the run: what stood there before may be written over.
            self.engine.region().store(place, group::TRIM, self.next);
        }
        if !matches!(self.case.message, Message::FetchHit | Message::FetchEmpty) {
            self.next += wanted;
        }
        let datagrams: Vec<_> = requests
            .iter()
            .map(|(header, value)| [&header.to_bytes()[..], value].concat())
            .collect();
        let sequence = self.engine.region().load(place, group::LOCK);
        let shown = self.engine.show(&datagrams)?;
        self.prove(requests, &shown, sequence)?;
        Ok(shown.times)
    }

    /// Looks for the effect of each request.
    fn prove(&self, requests: &[Request], shown: &Shown, before: u64) -> Result<(), TrialError> {
        let (case, region) = (self.case, self.engine.region());
        let wanted = requests.len() as u64;
        let proved = |what, found| {
            if found == wanted {
                return Ok(());
            }
            Err(TrialError::Unproved {
                message: case.message.name(),
                engine: self.engine.name(),
                what,
                found,
                wanted,
            })
        };
        let Some(kind) = case.message.answer() else {
            let place = region.group(GROUP).unwrap_or_default();
            proved("it was taken", shown.taken)?;
            let published = (region.load(place, group::LOCK) - before) / 2;
            return proved("it was recorded", published);
        };
        proved("it was answered", shown.answered)?;
        let read = shown
            .last
            .as_deref()
            .map(|last| wire::parse(last, case.value_bytes));
        let is_right = matches!(&read, Some(wire::Parsed::Ours(header, value))
            if header.kind == kind
                && (kind != Kind::Vote || value.len() == case.value_bytes)
                && (!case.is_keyed || auth::is_authentic(KEY, header, value)));
        proved(
            "it was answered as it must be",
            if is_right { wanted } else { 0 },
        )?;
        match case.message {
            Message::Accept => {
                let stand = requests.iter().filter(|request| stands(region, request));
                let slots: BTreeSet<_> = stand.map(|(header, _)| header.slot.0).collect();
                proved("there was a vote", slots.len() as u64)
            }
            Message::Prepare => {
                let promised = region::view(region, GROUP).map(|view| view.promised);
                let last = requests.last().map(|(header, _)| header.ballot);
                proved("it was promised", if promised == last { wanted } else { 0 })
            }
            Message::FetchHit | Message::FetchEmpty | Message::Decide => Ok(()),
        }
    }
}

/// Whether the region holds the vote of this very Accept.
fn stands<W: AsRef<[AtomicU64]>>(region: &Region<W>, (header, value): &Request) -> bool {
    let limit = region.layout().value_bytes();
    let mut out = vec![0; limit];
    let found = region::vote(region, GROUP, header.slot, limit, &mut out);
    found.is_some_and(|(ballot, length)| ballot == header.ballot && out[..length] == value[..])
}
