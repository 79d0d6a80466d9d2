//! Moves packets between a process and a network.
//!
//! A [`Datapath`] receives and transmits batches and says what it can do; it is monomorphised into
//! the worker loop, which drives a [`Service`] (a replica, an acceptor, an echo server, a client).

use std::net::SocketAddr;
use std::time::Duration;

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

    /// Hands everything queued to the network.
    ///
    /// # Errors
    /// The datapath is gone. A packet that the network refuses is counted, never an error.
    fn flush(&mut self) -> Result<(), Error>;

    /// Sleeps until a packet arrives, the waker is called or `at_most` is over. In busy-poll mode
    /// it returns at once.
    ///
    /// # Errors
    /// The datapath is gone.
    fn wait(&mut self, at_most: Duration) -> Result<(), Error>;

    /// The address that packets are received on.
    fn local_addr(&self) -> SocketAddr;
}

/// A datapath cannot be opened or went away.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{doing}: {source}")]
    System {
        /// What was being done to what.
        doing: String,
        /// The system's answer.
        source: std::io::Error,
    },
}
