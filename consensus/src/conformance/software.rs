//! The shipped step as a device: what other engines and foreign devices are compared with.

use super::case::Case;
use super::expression::Target;
use super::player::{Device, Failure, Outcome, Reason, Verdict, play};
use crate::acceptor::{Acceptor, Drop, Step};
use crate::auth::{self, Key};
use crate::memory::{Buffers, Memory};
use crate::region::{Birth, Layout, LayoutError, OpenError, Region, entry, group};
use crate::sync::AtomicU64;
use crate::wire::{Header, Kind, Malformed, Parsed, parse};
use crate::{Epoch, GroupId, NodeId};
use alloc::vec;
use alloc::vec::Vec;
use core::cell::Cell;
use core::convert::Infallible;

/// Groups of the region: cases are played in the middle one, and the others must stay blank.
const GROUPS: u16 = 3;
const GROUP: GroupId = GroupId(1);
/// When a case begins, in nanoseconds: not at 0, where an ended lease and none look alike.
const START_NS: u64 = 1_000_000_000;
/// Accesses of one step at which another may overlap it.
const MAX_POINTS: usize = 4096;

/// What may differ between devices that both conform.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Slots that are kept.
    pub window: u64,
    /// Longest value in bytes.
    pub value_bytes: usize,
    /// How long a lease lasts, in nanoseconds; 0 if none is granted.
    pub lease_ns: u64,
    /// The membership.
    pub epoch: u32,
    /// Ballots and slots have 32 bits: the hardware profile.
    pub is_narrow: bool,
    /// The key, where packets carry tags.
    pub key: Option<Key>,
}

impl Shape {
    /// The smallest window in which cases tell its edges apart.
    pub const SMALL: Self = Self {
        window: 8,
        value_bytes: 64,
        lease_ns: 1_000_000,
        epoch: 1,
        is_narrow: false,
        key: None,
    };
    /// The hardware profile without anything that it leaves open but Read.
    pub const NARROW: Self = Self {
        window: 64,
        value_bytes: 128,
        lease_ns: 0,
        epoch: 2,
        is_narrow: true,
        key: None,
    };
    /// Shapes that between them leave no case out: the smallest window, the smallest one in which
    /// cases tell its edges apart, the defaults, the longest values, and the hardware profile; with
    /// tags and without.
    pub const ALL: [Self; 5] = [
        Self::SMALL,
        Self {
            window: 2,
            key: Some(Key([0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908])),
            ..Self::SMALL
        },
        Self {
            window: 64,
            value_bytes: 1384,
            lease_ns: 0,
            epoch: u32::MAX,
            ..Self::SMALL
        },
        Self {
            window: 16,
            value_bytes: 32_768,
            epoch: 0,
            ..Self::SMALL
        },
        Self::NARROW,
    ];
}

/// The shipped step behind the shipped parser.
#[derive(Debug)]
struct Stepper {
    acceptor: Acceptor,
    is_narrow: bool,
    key: Option<Key>,
}

/// Whether a request names a ballot or a slot that the hardware profile does not hold.
fn is_too_wide(header: &Header) -> bool {
    let highest = match header.kind {
        Kind::Prepare | Kind::Fetch | Kind::Accept => header.slot.0.max(header.ballot.0),
        Kind::Decide => header
            .slot
            .0
            .max(header.ballot.0)
            .max(header.vote_ballot.0)
            .max(header.watermark),
        _ => 0,
    };
    highest > u32::MAX.into()
}

impl Stepper {
    fn step<M: Memory>(&self, memory: &M, datagram: &[u8], now_ns: u64) -> Outcome {
        let silence = |reason| Outcome::Silence(Some(reason));
        let limit = self.acceptor.layout.value_bytes();
        let (header, value) = match parse(datagram, limit) {
            Parsed::Ours(header, value) => (header, value),
            Parsed::NotOurs => return silence(Reason::NotOurs),
            Parsed::Malformed(reason) => return silence(Reason::Malformed(reason)),
        };
        if let Some(key) = self.key
            && !auth::is_authentic(key, &header, value)
        {
            return silence(Reason::Malformed(Malformed::Tag));
        }
        if self.is_narrow && is_too_wide(&header) {
            return silence(Reason::Dropped(Drop::Inconsistent));
        }
        let mut reply = vec![0; limit];
        let mut payload = Buffers {
            request: value,
            reply: &mut reply,
        };
        let step = self.acceptor.step(memory, now_ns, &header, &mut payload);
        match step {
            Step::Reply(mut header, _) => {
                reply.truncate(header.length.into());
                if let Some(key) = self.key {
                    header.tag = auth::tag(key, &header, &reply);
                }
                Outcome::Answered([&header.to_bytes()[..], &reply].concat())
            }
            Step::Silent(_) => silence(Reason::Taken),
            Step::Dropped(reason) => silence(Reason::Dropped(reason)),
        }
    }
}

/// A region in which another step is made before one of a step's accesses, as if by another core.
struct Overlapped<'a, F> {
    region: &'a Region<Vec<AtomicU64>>,
    /// How many accesses come before it; `None` once it was made.
    left: Cell<Option<usize>>,
    other: F,
}

impl<F: Fn()> Overlapped<'_, F> {
    fn access(&self) -> &Region<Vec<AtomicU64>> {
        match self.left.get() {
            Some(0) => {
                self.left.set(None);
                (self.other)();
            }
            left => self.left.set(left.map(|left| left - 1)),
        }
        self.region
    }
}

impl<F: Fn()> Memory for Overlapped<'_, F> {
    type At = usize;

    fn group(&self, group: GroupId) -> Option<usize> {
        self.region.group(group)
    }

    fn entry(&self, index: u64) -> Option<usize> {
        self.region.entry(index)
    }

    fn peer(&self, node: NodeId) -> Option<usize> {
        self.region.peer(node)
    }

    fn load(&self, at: usize, word: usize) -> u64 {
        self.access().load(at, word)
    }

    fn store(&self, at: usize, word: usize, value: u64) {
        self.access().store(at, word, value);
    }

    fn compare_exchange(&self, at: usize, word: usize, current: u64, new: u64) -> Result<u64, u64> {
        self.access().compare_exchange(at, word, current, new)
    }

    fn exchange(&self, at: usize, word: usize, new: u64) -> u64 {
        self.access().exchange(at, word, new)
    }

    fn fetch_add(&self, at: usize, word: usize, add: u64) -> u64 {
        self.access().fetch_add(at, word, add)
    }
}

/// The shipped step over a region of its own.
#[derive(Debug)]
pub struct Software {
    stepper: Stepper,
    region: Region<Vec<AtomicU64>>,
    target: Target,
    now_ns: u64,
    nonce: u32,
    /// Before which access of a step another one overlaps it.
    point: usize,
    /// The step had such an access.
    is_reached: bool,
}

/// No device of this shape can be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MakeError {
    /// The region's dimensions.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The region.
    #[error(transparent)]
    Region(#[from] OpenError),
}

impl Software {
    /// A blank region of this shape.
    ///
    /// # Errors
    /// There is no such region.
    pub fn new(shape: Shape) -> Result<Self, MakeError> {
        let layout = Layout::new(GROUPS, shape.window, shape.value_bytes)?;
        let birth = Birth {
            cluster: 1,
            node: NodeId(9),
            nonce: 5,
            boot: 6,
        };
        let words = (0..layout.words()).map(|_| AtomicU64::new(0)).collect();
        let region = Region::create(words, layout, birth, Epoch(shape.epoch), shape.lease_ns)?;
        Ok(Self {
            stepper: Stepper {
                acceptor: Acceptor {
                    node: birth.node,
                    incarnation: birth.incarnation(),
                    layout,
                },
                is_narrow: shape.is_narrow,
                key: shape.key,
            },
            region,
            target: Target {
                node: birth.node.0,
                incarnation: birth.incarnation().0,
                epoch: shape.epoch,
                group: GROUP.0,
                window: shape.window,
                value_bytes: shape.value_bytes,
                lease_ns: shape.lease_ns,
                is_narrow: shape.is_narrow,
                answers_read: true,
                sets_clock: true,
                shows_memory: true,
                key: shape.key,
            },
            now_ns: START_NS,
            nonce: 0x4e57_0000,
            point: 0,
            is_reached: false,
        })
    }

    /// Plays a case on a blank device of this shape; one in which steps overlap once for each point
    /// at which they can.
    ///
    /// # Errors
    /// There is no device of this shape.
    pub fn play(case: &Case, shape: Shape) -> Result<Verdict, MakeError> {
        let mut verdict = Verdict::Passed;
        for point in 0..MAX_POINTS {
            let mut device = Self::new(shape)?;
            device.point = point;
            let Ok(found) = play(case, &mut device);
            verdict = match found {
                Verdict::Passed => device.strays(case),
                other => other,
            };
            if !device.is_reached || !matches!(verdict, Verdict::Passed) {
                break;
            }
        }
        Ok(verdict)
    }

    /// Looks for traces of the case in the other groups.
    fn strays(&self, case: &Case) -> Verdict {
        let (first, last) = (GROUP.0 - 1, GROUP.0 + 1);
        let mut failures = Vec::new();
        for group in [first, last] {
            let record = self.region.group(GroupId(group));
            let base = u64::from(group) * self.target.window;
            let entries = (base..base + self.target.window).map(|index| self.region.entry(index));
            let words = [group::LOCK, group::PROMISED, group::HIGHEST];
            let of_record = words.map(|word| (record, word));
            let of_entries = entries.map(|entry| (entry, entry::LOCK));
            let touched = of_record
                .into_iter()
                .chain(of_entries)
                .any(|(at, word)| at.is_some_and(|at| self.region.load(at, word) != 0));
            if touched {
                failures.push(Failure {
                    case: case.name.clone(),
                    file: case.file.clone(),
                    line: case.line,
                    step: case.steps.len(),
                    text: case.name.clone(),
                    field: alloc::format!("group {group}"),
                    offset: None,
                    expected: "blank".into(),
                    got: "touched".into(),
                });
            }
        }
        if failures.is_empty() {
            Verdict::Passed
        } else {
            Verdict::Failed(failures)
        }
    }
}

impl Device for Software {
    type Error = Infallible;
    type Memory = Region<Vec<AtomicU64>>;

    fn target(&self) -> Target {
        self.target
    }

    fn nonce(&mut self) -> u32 {
        self.nonce += 1;
        self.nonce
    }

    fn exchange(&mut self, datagram: &[u8], _: bool) -> Result<Outcome, Infallible> {
        Ok(self.stepper.step(&self.region, datagram, self.now_ns))
    }

    fn overlap(&mut self, first: &[u8], second: &[u8]) -> Result<(), Infallible> {
        let memory = Overlapped {
            region: &self.region,
            left: Cell::new(Some(self.point)),
            other: || {
                self.stepper.step(&self.region, second, self.now_ns);
            },
        };
        self.stepper.step(&memory, first, self.now_ns);
        let is_reached = memory.left.get().is_none();
        if !is_reached {
            self.stepper.step(&self.region, second, self.now_ns);
        }
        self.is_reached = is_reached;
        Ok(())
    }

    fn wait(&mut self, ns: u64) -> Result<(), Infallible> {
        self.now_ns += ns;
        Ok(())
    }

    fn memory(&self) -> Option<(&Self::Memory, u64)> {
        Some((&self.region, self.now_ns))
    }
}
