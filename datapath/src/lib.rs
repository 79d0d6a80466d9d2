//! Moves packets between a process and a network.
//!
//! A [`Datapath`] receives and transmits batches and says what it can do; it is monomorphised into
//! the [`Worker`] loop, which drives a [`Service`] (a replica, an acceptor, an echo server, a
//! client). [`Udp`] is the datapath that works everywhere; [`Loopback`] needs no sockets;
//! [`Faulty`] and [`Capture`] wrap any other. Threads hand each other work through a [`queue`].

mod alarm;
pub mod clock;
mod faulty;
mod frame;
mod lifeline;
mod line;
mod loopback;
mod mmsg;
pub mod netns;
mod packets;
mod pcap;
mod placement;
pub mod queue;
mod stats;
mod udp;
mod waker;
mod worker;

use std::net::SocketAddr;
use std::time::Duration;

pub use faulty::Faulty;
pub use lifeline::Lifelines;
pub use line::{FaultCounts, Faults, Line};
pub use loopback::{Loopback, Network};
pub use packets::Packets;
pub use pcap::Capture;
pub use placement::{Placement, step_back};
pub use stats::{Reason, Stats};
pub use udp::{Inbox, Udp};
pub use waker::{Sleeper, Wake, Waker};
pub use worker::{Awaits, Service, Worker};

/// The packets of the last receive.
pub trait Received {
    /// How many packets there are.
    fn count(&self) -> usize;
    /// The sender and the UDP payload of packet `index < count()`.
    fn packet(&self, index: usize) -> (SocketAddr, &[u8]);
}

/// The way out. What is sent leaves with the next flush, in order.
pub trait Transmit {
    /// Queues one packet: `head` then `value` (either may be empty). False if it was dropped and
    /// counted because the queue is full or the packet is longer than the datapath carries; the
    /// sender's retransmission covers it.
    fn send(&mut self, to: SocketAddr, head: &[u8], value: &[u8]) -> bool;
}

/// Receives and transmits batches of UDP payloads.
pub trait Datapath {
    /// Packets received.
    type Rx: Received;
    /// The way out.
    type Tx: Transmit;

    /// Takes what has arrived, without waiting, at most one batch. Returns the number of packets.
    ///
    /// # Errors
    /// The datapath is gone and must be opened again.
    fn receive(&mut self) -> Result<usize, Error>;

    /// Both halves at once, so that packets are answered while they are read.
    fn halves(&mut self) -> (&Self::Rx, &mut Self::Tx);

    /// Hands everything queued to the network. Costs nothing if nothing is queued.
    ///
    /// # Errors
    /// The datapath is gone. A packet that the network refuses is counted, never an error.
    fn flush(&mut self) -> Result<(), Error>;

    /// Sleeps until a packet arrives, the waker is called or `at_most` is over; may return early.
    /// With [`Wait::Polling`] it returns at once.
    ///
    /// # Errors
    /// The datapath is gone.
    fn wait(&mut self, at_most: Duration) -> Result<(), Error>;

    /// The address that packets are received on.
    fn local_addr(&self) -> SocketAddr;

    /// Ends a [`wait`](Self::wait) from another thread.
    fn waker(&self) -> Waker;

    /// Takes the wake-ups so far and says whether there were any. Whoever attached queues drains
    /// them between this and [`wait`](Self::wait), which refuses to sleep if a wake-up came later.
    fn take_wakeups(&mut self) -> bool;

    /// What this datapath can do.
    fn capabilities(&self) -> Capabilities;

    /// What happened so far.
    fn stats(&self) -> Stats;
}

/// How a datapath waits for packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Wait {
    /// Sleep in the kernel: the CPU is free, a packet pays for a wake-up.
    #[default]
    Blocking,
    /// Never sleep: the shortest latency for one whole CPU.
    Polling,
}

/// What a datapath can do, as reports show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Which datapath it is: `udp`, `loopback`, …
    pub name: &'static str,
    /// Through which code path packets go: `recvmmsg`, `native, zero-copy`, …
    pub mode: &'static str,
    /// Most packets of one receive. Fewer mean that nothing more was there.
    pub batch: usize,
    /// Longest UDP payload in bytes that can be sent.
    pub max_datagram_bytes: usize,
    /// Whether waiting spins instead of sleeping.
    pub busy_poll: bool,
}

/// A datapath cannot be opened, placed or went away.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("bind UDP {listen}: {source}; {remedy}")]
    Bind {
        /// The address asked for.
        listen: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
        /// What mends it.
        remedy: &'static str,
    },
    /// The operating system refused.
    #[error("{doing}: {source}")]
    System {
        /// What was being done to what.
        doing: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A tool refused.
    #[error("{command}: {said}")]
    Command {
        /// The command line.
        command: String,
        /// What it wrote to standard error.
        said: String,
    },
    /// This machine, or this user, lacks something.
    #[error("{feature} is not available: {needs}")]
    Unsupported {
        /// What was asked for.
        feature: String,
        /// What it needs, with the command that mends it.
        needs: String,
    },
    /// The name or address is taken inside this process or by another one.
    #[error("{what} is in use; {remedy}")]
    InUse {
        /// What is taken.
        what: String,
        /// What mends it.
        remedy: &'static str,
    },
}

impl Error {
    /// The system's answer to what was being done.
    pub(crate) fn system(doing: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::System {
            doing: doing.into(),
            source: source.into(),
        }
    }
}
