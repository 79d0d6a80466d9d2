//! The network between the namespaces: a switch in this process, which loses, repeats, delays and
//! blocks frames as it is told.
//!
//! Linux has netem for that, where its kernel was built with it; this works on any. The ports are
//! the bridge's, taken off it.

use bench::site::Site;
use consensus::random::Random;
use datapath::netns::Rig;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket,
};
use nix::{setsockopt_impl, sockopt_impl};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Where the Ethernet addresses stand behind the kernel's header, and the last byte of each, which
/// is the number of the node.
const HEADER_BYTES: usize = 10;
const TO: usize = HEADER_BYTES + 5;
const FROM: usize = HEADER_BYTES + 11;
/// A segment that the receiver's kernel has yet to divide.
const FRAME_BYTES: usize = 1 << 17;
/// Frames taken from one port before the next has its turn.
const TURN: usize = 64;
/// Frames held back at a time; more are lost.
const MAX_HELD: usize = 4096;
/// How long a frame is held back at most.
const MAX_DELAY_US: u64 = 3000;
/// How much later the second of two equal frames comes at most.
const MAX_ECHO_US: u64 = 200_000;
/// How often the thread looks whether it is to end.
const TICK_MS: u16 = 20;

// With it a frame is taken and given as the kernel has it: its checksum may be still to come.
sockopt_impl!(
    WithHeader,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_VNET_HDR,
    bool
);
sockopt_impl!(
    OnlyIncoming,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_IGNORE_OUTGOING,
    bool
);

/// What befalls frames.
#[derive(Clone, Default, Debug)]
pub(crate) struct Weather {
    /// Pairs of sender and receiver between which nothing passes.
    pub(crate) blocked: BTreeSet<(u16, u16)>,
    /// Of a thousand frames, how many are lost,
    pub(crate) lost: u64,
    /// come twice,
    pub(crate) doubled: u64,
    /// or are overtaken by later ones.
    pub(crate) delayed: u64,
}

impl Weather {
    /// A bad network, on which everything goes on nevertheless.
    pub(crate) const BAD: Self = Self {
        blocked: BTreeSet::new(),
        lost: 20,
        doubled: 50,
        delayed: 100,
    };

    /// Blocks what `from` sends to `to`.
    pub(crate) fn block(&mut self, from: u16, to: u16) {
        self.blocked.insert((from, to));
    }

    /// Blocks both ways.
    pub(crate) fn part(&mut self, one: u16, other: u16) {
        self.block(one, other);
        self.block(other, one);
    }
}

/// What became of frames.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Fates {
    pub(crate) passed: u64,
    pub(crate) blocked: u64,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) delayed: u64,
}

impl Fates {
    /// Frames to which something happened.
    pub(crate) fn befallen(&self) -> u64 {
        self.blocked + self.lost + self.doubled + self.delayed
    }

    /// Adds those of others.
    pub(crate) fn add(&mut self, others: &Self) {
        self.passed += others.passed;
        self.blocked += others.blocked;
        self.lost += others.lost;
        self.doubled += others.doubled;
        self.delayed += others.delayed;
    }
}

#[derive(Default, Debug)]
struct Shared {
    weather: Mutex<Weather>,
    fates: Mutex<Fates>,
    stop: AtomicBool,
}

/// A switch that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Switch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// Takes the place of a site's bridge.
    pub(crate) fn over(site: &Site, seed: u64) -> Self {
        let rig: &Rig = site.rig().expect("namespaces");
        let ports = rig.nodes().len();
        let open = || (1..=ports).map(port).collect::<Vec<OwnedFd>>();
        let ports = rig.run_at_bridge(open).expect("the rig is there");
        let shared = Arc::new(Shared::default());
        let mut forwarding = Forwarding {
            ports,
            random: Random::new(seed),
            held: BinaryHeap::new(),
            count: 0,
            shared: Arc::clone(&shared),
        };
        let thread = std::thread::spawn(move || forwarding.run());
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// Changes the weather.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Weather)) {
        change(&mut self.shared.weather.lock().expect("the switch runs"));
    }

    /// What became of frames so far.
    pub(crate) fn fates(&self) -> Fates {
        *self.shared.fates.lock().expect("the switch runs")
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Takes a port off the bridge of the calling thread's namespace, and opens it.
fn port(number: usize) -> OwnedFd {
    let name = format!("p{number}");
    let status = Command::new("ip")
        .args(["link", "set", &name, "nomaster"])
        .status();
    assert!(status.expect("iproute2 is there").success(), "free {name}");
    let raw = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::EthAll,
    )
    .expect("CAP_NET_RAW");
    setsockopt(&raw, OnlyIncoming, &true).expect("Linux 4.20");
    setsockopt(&raw, WithHeader, &true).expect("Linux 2.6.27");
    let mut addresses = getifaddrs().expect("the kernel lists interfaces");
    let address = addresses.find_map(|found| {
        let link: LinkAddr = *found.address?.as_link_addr()?;
        (found.interface_name == name).then_some(link)
    });
    bind(raw.as_raw_fd(), &address.expect("the rig has the port")).expect("the port is up");
    raw
}

/// A frame that is held back: by when it is due, and the order of coming.
type Held = Reverse<(Instant, u64, Vec<u8>)>;

struct Forwarding {
    ports: Vec<OwnedFd>,
    random: Random,
    held: BinaryHeap<Held>,
    count: u64,
    shared: Arc<Shared>,
}

impl Forwarding {
    fn run(&mut self) {
        let mut room = vec![0; FRAME_BYTES];
        while !self.shared.stop.load(Ordering::SeqCst) {
            self.wait();
            let weather = self.shared.weather.lock().expect("nobody panics").clone();
            let mut fates = Fates::default();
            while let Some(Reverse((due, ..))) = self.held.peek()
                && *due <= Instant::now()
            {
                let Reverse((_, _, frame)) = self.held.pop().expect("it was seen");
                self.deliver(&frame, &weather, &mut fates);
            }
            for port in 0..self.ports.len() {
                for _ in 0..TURN {
                    let taken = recv(
                        self.ports[port].as_raw_fd(),
                        &mut room,
                        MsgFlags::MSG_DONTWAIT,
                    );
                    match taken {
                        Ok(length) if length > FROM => {
                            self.decide(&room[..length], &weather, &mut fates);
                        }
                        Ok(_) => {}
                        Err(Errno::EAGAIN | Errno::ENETDOWN) => break,
                        Err(error) => panic!("take a frame from port {}: {error}", port + 1),
                    }
                }
            }
            self.shared.fates.lock().expect("nobody panics").add(&fates);
        }
    }

    /// Until a frame comes, or one that is held back is due.
    fn wait(&self) {
        let tick = Duration::from_millis(TICK_MS.into());
        let rest = self.held.peek().map_or(tick, |Reverse((due, ..))| {
            due.saturating_duration_since(Instant::now()).min(tick)
        });
        // Rounded up, but for what is due now.
        let timeout = rest.as_micros().div_ceil(1000) as u16;
        let mut polled: Vec<_> = self
            .ports
            .iter()
            .map(|port| PollFd::new(port.as_fd(), PollFlags::POLLIN))
            .collect();
        let _ = poll(&mut polled, PollTimeout::from(timeout));
    }

    fn decide(&mut self, frame: &[u8], weather: &Weather, fates: &mut Fates) {
        let strikes = |random: &mut Random, per_mille| random.below(1000) < per_mille;
        if strikes(&mut self.random, weather.lost) {
            fates.lost += 1;
            return;
        }
        if strikes(&mut self.random, weather.doubled) {
            fates.doubled += 1;
            self.hold(frame, MAX_ECHO_US);
        }
        if strikes(&mut self.random, weather.delayed) {
            fates.delayed += 1;
            self.hold(frame, MAX_DELAY_US);
        } else {
            self.deliver(frame, weather, fates);
        }
    }

    fn hold(&mut self, frame: &[u8], most_us: u64) {
        if self.held.len() < MAX_HELD {
            let due = Instant::now() + Duration::from_micros(self.random.below(most_us));
            self.count += 1;
            self.held.push(Reverse((due, self.count, frame.to_vec())));
        }
    }

    fn deliver(&self, frame: &[u8], weather: &Weather, fates: &mut Fates) {
        let (from, to) = (u16::from(frame[FROM]), u16::from(frame[TO]));
        if weather.blocked.contains(&(from, to)) {
            fates.blocked += 1;
            return;
        }
        // What is for nobody here, IPv6's greetings among them, is for nobody.
        if let Some(port) = usize::from(to)
            .checked_sub(1)
            .and_then(|to| self.ports.get(to))
        {
            // A receiver that has no room, or is not there, loses the frame.
            let _ = send(port.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT);
            fates.passed += 1;
        }
    }
}
