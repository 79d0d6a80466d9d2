//! The acceptor in the kernel beside the step in this process: both are shown the same frames, and
//! must send the same frames and leave the same region.
#![allow(dead_code, reason = "each test file takes what it needs")]
#![allow(unreachable_pub, reason = "a module of several crates")]

pub mod cable;
pub mod conversation;
pub mod duel;
pub mod duellists;
pub mod objects;

use consensus::acceptor::{Acceptor, Step};
use consensus::auth::{self, Key};
use consensus::conformance::Shape;
use consensus::frame::{self, Mac, Own};
use consensus::memory::{Buffers, Memory as _};
use consensus::region::{Birth, Layout, Region};
use consensus::sync::AtomicU64;
use consensus::tally::Count;
use consensus::wire::{self, HEADER_BYTES};
use consensus::{Epoch, NodeId};
use nearwire::mapping::Mapping;
use nearwire::xdp::{Loaded, OBJECT, Settings, Verdict, XdpError, capabilities};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const PORT: u16 = 4747;
pub const MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);
/// Where the twin is reached over IPv4, and over IPv6.
pub const IPS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)),
];
/// Cases are played in the middle one.
pub const GROUPS: u16 = 3;
/// When the clock begins, in nanoseconds.
const START_NS: u64 = 1_000_000_000;

/// What a frame must come to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expected {
    pub verdict: Verdict,
    /// What is counted: nothing of what is not ours.
    pub count: Option<Count>,
}

pub struct Twin {
    kernel: Loaded,
    software: Region<Vec<AtomicU64>>,
    pub acceptor: Acceptor,
    pub own: Own,
    pub key: Option<Key>,
    pub shape: Shape,
    pub now_ns: u64,
    blank: Vec<u64>,
    /// What should have been counted so far.
    counts: [u64; Count::COUNT],
}

impl Twin {
    /// Both over blank regions, reached over IPv4; `None` where the kernel gives this process no
    /// programs, which is printed.
    pub fn new(test: &str, shape: Shape) -> Option<Self> {
        Self::at(test, shape, IPS[0])
    }

    /// As [`Twin::new`], reached at this address.
    pub fn at(test: &str, shape: Shape, ip: IpAddr) -> Option<Self> {
        let Some(object) = OBJECT else {
            // Whoever could run it was to see it run.
            assert!(
                !capabilities::lacking().is_empty(),
                "no XDP object is embedded: run `cargo xtask ebpf`"
            );
            skip(test, "no XDP object is embedded: see the build's warning");
            return None;
        };
        Self::of(object, test, shape, ip)
    }

    /// As [`Twin::at`], with the programs of another object.
    pub fn of(object: &[u8], test: &str, shape: Shape, ip: IpAddr) -> Option<Self> {
        let mut settings = Self::settings(shape);
        settings.own.ip = ip;
        let kernel = match Loaded::load(object, &settings) {
            Ok(kernel) => kernel,
            Err(error) if !capabilities::lacking().is_empty() => {
                let said = error.to_string();
                let said = said.lines().next().unwrap_or_default();
                skip(
                    test,
                    &format!("{said}; needs CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON"),
                );
                return None;
            }
            Err(error) => {
                let said = error.to_string();
                let end = said.len().saturating_sub(4096);
                panic!("{}", said.get(end..).unwrap_or(&said));
            }
        };
        let Settings { layout, birth, .. } = settings;
        let words = (0..layout.words()).map(|_| AtomicU64::new(0)).collect();
        let region = Region::create(words, layout, birth, settings.epoch, shape.lease_ns);
        let software = region.expect("a blank region");
        let blank = (0..layout.words())
            .map(|word| software.load(0, word))
            .collect();
        Some(Self {
            kernel,
            software,
            acceptor: Acceptor {
                node: birth.node,
                incarnation: birth.incarnation(),
                layout,
            },
            own: settings.own,
            key: shape.key,
            shape,
            now_ns: START_NS,
            blank,
            counts: [0; Count::COUNT],
        })
    }

    /// What the program is told for this shape.
    pub fn settings(shape: Shape) -> Settings {
        Settings {
            port: PORT,
            own: Own {
                mac: MAC,
                vlan: None,
                ip: IPS[0],
            },
            layout: Layout::new(GROUPS, shape.window, shape.value_bytes).expect("a layout"),
            birth: Birth {
                cluster: 1,
                node: NodeId(9),
                nonce: 5,
                boot: 6,
            },
            epoch: Epoch(shape.epoch),
            lease_ns: shape.lease_ns,
            keys: shape.key.map(Into::into),
            is_rehearsal: true,
        }
    }

    /// The region in the kernel.
    pub fn region(&self) -> &Region<Mapping> {
        self.kernel.region()
    }

    pub fn kernel(&mut self) -> &mut Loaded {
        &mut self.kernel
    }

    /// Writes a word of both regions.
    pub fn set(&self, at: usize, word: usize, value: u64) {
        self.kernel.region().store(at, word, value);
        self.software.store(at, word, value);
    }

    /// Makes both regions blank again.
    pub fn clear(&mut self) {
        for (word, value) in self.blank.iter().enumerate() {
            self.set(0, word, *value);
        }
        self.now_ns = START_NS;
    }

    /// Gives the software what was written into the kernel's region from outside.
    pub fn follow(&self) {
        for word in 0..self.blank.len() {
            self.software
                .store(0, word, self.kernel.region().load(0, word));
        }
    }

    /// Shows a frame to both.
    ///
    /// # Errors
    /// They differ, and where; or the kernel refuses.
    pub fn show(&mut self, frame: &[u8]) -> Result<Expected, String> {
        let refused = |error: XdpError| error.to_string();
        self.kernel.set_clock(self.now_ns).map_err(refused)?;
        let expected = self.expect(frame);
        let got = self.kernel.run(frame).map_err(refused)?;
        if got != expected.verdict {
            let wanted = &expected.verdict;
            return Err(format!(
                "{frame:02x?}: the kernel {got:02x?}, the software {wanted:02x?}"
            ));
        }
        for word in 0..self.blank.len() {
            let (kernel, software) = (self.region().load(0, word), self.software.load(0, word));
            if kernel != software {
                return Err(format!(
                    "word {word} after {frame:02x?}: in the kernel {kernel:#x}, in software {software:#x}"
                ));
            }
        }
        if let Some(count) = expected.count {
            self.counts[count.index()] += 1;
        }
        Ok(expected)
    }

    /// Compares what the kernel counted with what came of every frame so far.
    ///
    /// # Errors
    /// They differ, and where; or the kernel refuses.
    pub fn compare_counters(&self) -> Result<(), String> {
        let got = self.kernel.counters().map_err(|error| error.to_string())?;
        for count in Count::all() {
            let (name, at) = (count.name(), count.index());
            let (kernel, expected) = (got[at], self.counts[at]);
            if kernel != expected {
                return Err(format!("{name}: {kernel} counted, not {expected}"));
            }
        }
        Ok(())
    }

    /// How often something came of a frame.
    pub fn count(&self, count: Count) -> u64 {
        self.counts[count.index()]
    }

    fn expect(&self, bytes: &[u8]) -> Expected {
        let passed = Expected {
            verdict: Verdict::Passed,
            count: None,
        };
        let dropped = |count| Expected {
            verdict: Verdict::Dropped,
            count: Some(count),
        };
        let (path, at) = match frame::parse_pieces(bytes, PORT, Some(&self.own)) {
            frame::Parsed::Ours(path, at) => (path, at),
            frame::Parsed::NotOurs => return passed,
            frame::Parsed::Malformed(reason) => return dropped(Count::Frame(reason)),
        };
        let datagram = &bytes[at];
        if wire::kind(datagram, 0..datagram.len()).is_some_and(|kind| !kind.is_for_acceptor()) {
            return passed;
        }
        let limit = self.acceptor.layout.value_bytes();
        let (header, value) = match wire::parse(datagram, limit) {
            wire::Parsed::Ours(header, value) => (header, value),
            wire::Parsed::NotOurs => return passed,
            wire::Parsed::Malformed(reason) => return dropped(Count::Wire(reason)),
        };
        let back = path.reversed().expect("one station");
        if let Some(key) = self.key
            && !auth::is_authentic(key, &header, value)
        {
            return dropped(Count::Wire(wire::Malformed::Tag));
        }
        let mut reply = vec![0; limit];
        let mut payload = Buffers {
            request: value,
            reply: &mut reply,
        };
        let step = self
            .acceptor
            .step(&self.software, self.now_ns, &header, &mut payload);
        let mut header = match step {
            Step::Reply(header, _) => header,
            Step::Silent(_) => return dropped(Count::Taken),
            Step::Dropped(reason) => return dropped(Count::Step(reason)),
        };
        reply.truncate(header.length.into());
        if let Some(key) = self.key {
            header.tag = auth::tag(key, &header, &reply);
        }
        let headers = vec![0; back.header_bytes()];
        let mut answer = [&headers[..], &header.to_bytes(), &reply].concat();
        let written = back.write(&mut answer, HEADER_BYTES + reply.len());
        assert_eq!(written, Some(answer.len()));
        if answer.len() > bytes.len() {
            return Expected {
                verdict: Verdict::Passed,
                count: Some(Count::NoRoom),
            };
        }
        Expected {
            verdict: Verdict::Sent(answer),
            count: Some(Count::Answered),
        }
    }
}

/// The number that the environment has for this run.
pub fn setting(variable: &str, otherwise: u64) -> u64 {
    let number = |text: String| {
        let parsed = text.parse();
        parsed.unwrap_or_else(|error| panic!("{variable}={text}: {error}"))
    };
    std::env::var(variable).map_or(otherwise, number)
}

pub fn skip(test: &str, why: &str) {
    // Not `eprintln!`, which the test harness keeps to itself.
    let _ = writeln!(std::io::stderr(), "nearwire-test-skipped: {test}: {why}");
}

/// Works in a namespace of a rig that is no node's.
pub fn in_namespace<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(format!("/run/netns/{name}")).expect("the namespace is there");
    let inside = || {
        setns(&file, CloneFlags::CLONE_NEWNET).expect("it can be entered");
        work()
    };
    std::thread::scope(|scope| scope.spawn(inside).join()).expect("no panic inside")
}
