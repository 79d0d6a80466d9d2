//! The loop between a datapath and a service.

use crate::{Datapath, Error, Placement, Received, Transmit, clock};
use nix::sys::prctl::set_timerslack;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

/// What a worker drives: a replica, an acceptor, an echo server, a client.
///
/// Time is [`clock::monotonic_ns`], read once per batch *after* the batch was taken. A lease granted
/// at a time read before would run out before its holder believes: the holder may have sent the
/// renewal after that time. The sender, for its part, counts from before the flush.
pub trait Service {
    /// Takes one packet. Replies leave with the batch.
    fn packet<T: Transmit>(&mut self, now_ns: u64, from: SocketAddr, datagram: &[u8], tx: &mut T);

    /// Does what is due after a batch, which may be empty: attached queues, timers, batching.
    /// Returns how long the worker may sleep if nothing arrives and nobody wakes it.
    fn turn<T: Transmit>(&mut self, now_ns: u64, tx: &mut T) -> Duration;

    /// Whether the loop ends after this turn. What the turn sent still leaves.
    fn stopping(&self) -> bool;
}

/// One thread's loop: receive a batch, hand it to the service, let the service take its turn,
/// flush, sleep unless there may be more.
pub struct Worker<D, S> {
    datapath: D,
    service: S,
    placement: Placement,
}

impl<D: Datapath, S: Service> Worker<D, S> {
    /// A worker that runs wherever the system puts it.
    pub fn new(datapath: D, service: S) -> Self {
        Self {
            datapath,
            service,
            placement: Placement::default(),
        }
    }

    /// Places the thread that will run the loop.
    #[must_use]
    pub fn placed(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// Runs until the service stops.
    ///
    /// # Errors
    /// The thread cannot be placed, or the datapath is gone.
    pub fn run(&mut self) -> Result<(), Error> {
        self.placement.apply()?;
        // A sleep otherwise ends up to 50 µs late. Without it everything is right, only later.
        let _ = set_timerslack(1);
        let batch = self.datapath.capabilities().batch;
        while !self.service.stopping() {
            let (received, at_most) = self.step(clock::monotonic_ns)?;
            if received < batch && !self.service.stopping() {
                self.datapath.wait(at_most)?;
            }
        }
        Ok(())
    }

    /// Goes once round the loop without sleeping, so that a test can own the time. Returns how many
    /// packets came and how long the service would sleep. `clock` is read after the receive.
    ///
    /// # Errors
    /// The datapath is gone.
    pub fn step(&mut self, clock: impl FnOnce() -> u64) -> Result<(usize, Duration), Error> {
        let received = self.datapath.receive()?;
        let now_ns = clock();
        let (rx, tx) = self.datapath.halves();
        for index in 0..received {
            let (from, datagram) = rx.packet(index);
            self.service.packet(now_ns, from, datagram, tx);
        }
        let at_most = self.service.turn(now_ns, tx);
        self.datapath.flush()?;
        Ok((received, at_most))
    }

    /// Runs on a thread of its own, which gives the worker back when the service has stopped.
    ///
    /// # Errors
    /// The system has no thread left. What [`run`](Self::run) may answer is the thread's result.
    pub fn spawn(mut self, name: &str) -> Result<thread::JoinHandle<Result<Self, Error>>, Error>
    where
        D: Send + 'static,
        S: Send + 'static,
    {
        thread::Builder::new()
            .name(name.into())
            .spawn(move || self.run().map(|()| self))
            .map_err(|error| Error::system(format!("start the thread {name}"), error))
    }

    /// The datapath, for its address, waker and statistics.
    pub fn datapath(&self) -> &D {
        &self.datapath
    }

    /// The service.
    pub fn service(&mut self) -> &mut S {
        &mut self.service
    }

    /// Both parts.
    pub fn into_parts(self) -> (D, S) {
        (self.datapath, self.service)
    }
}
