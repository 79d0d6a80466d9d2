//! A bad network round any datapath.

use crate::{
    Capabilities, Datapath, Error, FaultCounts, Faults, Line, Packets, Received, Stats, Transmit,
    Waker, clock,
};
use std::net::SocketAddr;
use std::time::Duration;

/// Most packets of one receive or flush after faults.
const QUEUE_PACKETS: usize = 4096;
/// Most bytes of one receive or flush after faults.
const QUEUE_BYTES: usize = 8 * 1024 * 1024;

/// A datapath whose packets go through a bad network, each direction through its own [`Line`].
///
/// Held packets leave on the first receive or flush after they are due, which `wait` does not
/// oversleep.
pub struct Faulty<D, C = fn() -> u64> {
    inner: D,
    clock: C,
    inbound: Line,
    outbound: Line,
    received: Packets,
    outbox: Packets,
    leaving: Packets,
}

impl<D: Datapath> Faulty<D> {
    /// Wraps `inner`. The seed decides all faults; delays follow [`clock::monotonic_ns`].
    ///
    /// # Panics
    /// If a probability is not within 0 and 1.
    pub fn new(inner: D, inbound: Faults, outbound: Faults, seed: u64) -> Self {
        Self::with_clock(inner, inbound, outbound, seed, clock::monotonic_ns)
    }
}

impl<D: Datapath, C: Fn() -> u64> Faulty<D, C> {
    /// Like [`new`](Faulty::new) with another clock, in nanoseconds, so that a test owns the time.
    ///
    /// # Panics
    /// If a probability is not within 0 and 1.
    pub fn with_clock(inner: D, inbound: Faults, outbound: Faults, seed: u64, clock: C) -> Self {
        let max_datagram_bytes = inner.capabilities().max_datagram_bytes;
        let packets = || Packets::new(QUEUE_PACKETS, QUEUE_BYTES, max_datagram_bytes);
        Self {
            inner,
            clock,
            inbound: Line::new(inbound, seed),
            outbound: Line::new(outbound, !seed),
            received: packets(),
            outbox: packets(),
            leaving: packets(),
        }
    }

    /// What happened to packets on their way in.
    pub fn inbound(&self) -> FaultCounts {
        self.inbound.counts()
    }

    /// What happened to packets on their way out.
    pub fn outbound(&self) -> FaultCounts {
        self.outbound.counts()
    }

    /// The wrapped datapath.
    pub fn inner(&self) -> &D {
        &self.inner
    }
}

impl<D: Datapath, C: Fn() -> u64> Datapath for Faulty<D, C> {
    type Rx = Packets;
    type Tx = Packets;

    fn receive(&mut self) -> Result<usize, Error> {
        // Whoever looks for packets instead of waiting must not keep late ones back.
        self.flush()?;
        let count = self.inner.receive()?;
        let now_ns = (self.clock)();
        self.received.clear();
        self.inbound.release(now_ns, &mut self.received);
        let rx = self.inner.halves().0;
        for index in 0..count {
            let (from, payload) = rx.packet(index);
            self.inbound
                .enter(now_ns, from, payload, &mut self.received);
        }
        Ok(self.received.len())
    }

    fn halves(&mut self) -> (&Packets, &mut Packets) {
        (&self.received, &mut self.outbox)
    }

    fn flush(&mut self) -> Result<(), Error> {
        let now_ns = (self.clock)();
        self.outbound.release(now_ns, &mut self.leaving);
        for (to, payload) in self.outbox.iter() {
            self.outbound.enter(now_ns, to, payload, &mut self.leaving);
        }
        self.outbox.clear();
        let tx = self.inner.halves().1;
        for (to, payload) in self.leaving.iter() {
            tx.send(to, payload, b"");
        }
        self.leaving.clear();
        self.inner.flush()
    }

    fn wait(&mut self, at_most: Duration) -> Result<(), Error> {
        let due_ns = self
            .inbound
            .next_due_ns()
            .into_iter()
            .chain(self.outbound.next_due_ns())
            .min();
        let until_due = due_ns.map(|due_ns| due_ns.saturating_sub((self.clock)()));
        self.inner
            .wait(until_due.map_or(at_most, |ns| at_most.min(Duration::from_nanos(ns))))
    }

    fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr()
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }

    fn take_wakeups(&mut self) -> bool {
        self.inner.take_wakeups()
    }

    fn capabilities(&self) -> Capabilities {
        // A lossy batch may be short although more is there: a batch of one keeps the worker
        // asking until nothing at all arrives.
        Capabilities {
            batch: 1,
            ..self.inner.capabilities()
        }
    }

    fn stats(&self) -> Stats {
        let mut stats = self.inner.stats();
        self.outbox.count_drops(&mut stats);
        stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Network;
    use std::cell::Cell;
    use std::rc::Rc;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn a_delayed_packet_arrives_when_it_is_due() {
        let now_ns = Rc::new(Cell::new(0));
        let network = Network::new();
        let mut a = network.endpoint(address(1)).unwrap();
        let late = Faults {
            delay: 1.0,
            longest_delay: Duration::from_millis(5),
            ..Faults::default()
        };
        let time = Rc::clone(&now_ns);
        let mut b = Faulty::with_clock(
            network.endpoint(address(2)).unwrap(),
            late,
            Faults::default(),
            3,
            move || time.get(),
        );
        a.halves().1.send(address(2), b"x", b"");
        a.flush().unwrap();
        assert_eq!(b.receive().unwrap(), 0);
        now_ns.set(5_000_000);
        b.wait(Duration::from_secs(30)).unwrap();
        assert_eq!(b.receive().unwrap(), 1);
        assert_eq!(b.halves().0.packet(0), (address(1), &b"x"[..]));
        assert_eq!(b.inbound().delayed, 1);
    }

    #[test]
    fn each_direction_has_its_own_faults() {
        let network = Network::new();
        let mut a = network.endpoint(address(1)).unwrap();
        let deaf = Faults {
            loss: 1.0,
            ..Faults::default()
        };
        let mut b = Faulty::new(
            network.endpoint(address(2)).unwrap(),
            deaf,
            Faults::default(),
            0,
        );
        a.halves().1.send(address(2), b"x", b"");
        a.flush().unwrap();
        assert_eq!(b.receive().unwrap(), 0);
        b.halves().1.send(address(1), b"y", b"");
        b.flush().unwrap();
        assert_eq!(a.receive().unwrap(), 1);
        assert_eq!((b.inbound().lost, b.outbound().left), (1, 1));
    }
}
