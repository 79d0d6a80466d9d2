//! The floor: what the same packets cost when the other side only sends them back.

use crate::load::{Caller, Sent};
use crate::process::Subject;
use datapath::{Datapath, Error, Placement, Service, Transmit, Udp, Wait, Waker, Worker};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes that the echo's client needs in a datagram.
pub const MIN_DATAGRAM_BYTES: usize = 16;
/// An echo that takes longer is lost.
const LOST_AFTER_NS: u64 = 100_000_000;
/// Most echoes under way.
const WINDOW: usize = 4096;

/// Sends back what it gets.
struct Echo {
    stop: Arc<AtomicBool>,
}

impl Service for Echo {
    fn packet<T: Transmit>(&mut self, _: u64, from: SocketAddr, datagram: &[u8], tx: &mut T) {
        tx.send(from, datagram, &[]);
    }

    fn turn<T: Transmit>(&mut self, _: u64, _: &mut T) -> Duration {
        Duration::from_secs(1)
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// An echo server on its own thread, in the same worker loop as a replica. Dropping it stops it.
pub struct EchoServer {
    address: SocketAddr,
    thread: Subject,
    stop: Arc<AtomicBool>,
    waker: Waker,
    handle: Option<JoinHandle<Result<(), Error>>>,
}

impl EchoServer {
    /// Starts a server that lingers for so long before it sleeps. `enter` runs first on its thread:
    /// it may change the network namespace.
    ///
    /// # Errors
    /// `enter` failed, or the address cannot be had.
    pub fn start(
        listen: SocketAddr,
        wait: Wait,
        linger: Duration,
        placement: Placement,
        enter: impl FnOnce() -> Result<(), Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (ready, started) = mpsc::sync_channel(1);
        let serve = move || {
            let datapath = match enter().and_then(|()| Udp::bind(listen, wait)) {
                Ok(datapath) => datapath,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return Ok(());
                }
            };
            let me = (
                datapath.local_addr(),
                Subject::this_thread(),
                datapath.waker(),
            );
            let _ = ready.send(Ok(me));
            Worker::new(datapath, Echo { stop: stopped })
                .placed(placement)
                .lingering(linger)
                .run()
        };
        let system = |source| Error::System {
            doing: "start the echo server".into(),
            source,
        };
        let thread = std::thread::Builder::new().name("echo".into()).spawn(serve);
        let handle = Some(thread.map_err(system)?);
        let gone = || system(std::io::Error::other("its thread ended"));
        let (address, thread, waker) = started.recv().map_err(|_| gone())??;
        Ok(Self {
            address,
            thread,
            stop,
            waker,
            handle,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The thread whose CPU time is the floor's.
    pub fn thread(&self) -> Subject {
        self.thread
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.waker.wake();
        if let Some(handle) = self.handle.take() {
            let _ = handle.join();
        }
    }
}

struct Pending {
    token: u64,
    sent_ns: u64,
    ended: bool,
}

/// Sends datagrams of one size and waits for their echoes.
pub struct EchoCaller {
    to: SocketAddr,
    datagram: Vec<u8>,
    /// In the order of their numbers, from `first` on.
    pending: VecDeque<Pending>,
    first: u64,
    unsent: u64,
    ended: VecDeque<(u64, bool)>,
}

impl EchoCaller {
    /// A caller of the server at `to` with datagrams of `bytes` bytes, at least
    /// [`MIN_DATAGRAM_BYTES`].
    pub fn new(to: SocketAddr, bytes: usize) -> Self {
        Self {
            to,
            datagram: vec![0x5a; bytes.max(MIN_DATAGRAM_BYTES)],
            pending: VecDeque::new(),
            first: 0,
            unsent: 0,
            ended: VecDeque::new(),
        }
    }

    fn end(&mut self, number: u64, token: u64, answered: bool) {
        let pending = number
            .checked_sub(self.first)
            .and_then(|index| self.pending.get_mut(usize::try_from(index).ok()?))
            .filter(|pending| pending.token == token && !pending.ended);
        let Some(pending) = pending else { return };
        pending.ended = true;
        self.ended.push_back((token, answered));
        while self.pending.pop_front_if(|pending| pending.ended).is_some() {
            self.first += 1;
        }
    }
}

impl Caller for EchoCaller {
    fn submit(&mut self, token: u64) -> bool {
        let room = self.pending.len() < WINDOW;
        if room {
            self.pending.push_back(Pending {
                token,
                sent_ns: 0,
                ended: false,
            });
        }
        room
    }

    fn take(&mut self, _: u64, from: SocketAddr, datagram: &[u8]) {
        let words = datagram
            .first_chunk::<8>()
            .zip(datagram.get(8..).and_then(<[u8]>::first_chunk));
        if from == self.to
            && datagram.len() == self.datagram.len()
            && let Some((number, token)) = words
        {
            self.end(
                u64::from_be_bytes(*number),
                u64::from_be_bytes(*token),
                true,
            );
        }
    }

    fn give<T: Transmit>(&mut self, now_ns: u64, tx: &mut T) {
        while let Some(front) = self.pending.front()
            && self.first < self.unsent
            && front.sent_ns + LOST_AFTER_NS <= now_ns
        {
            let (number, token) = (self.first, front.token);
            self.end(number, token, false);
        }
        let skip = usize::try_from(self.unsent - self.first).unwrap_or(usize::MAX);
        for pending in self.pending.iter_mut().skip(skip) {
            pending.sent_ns = now_ns;
            self.datagram[..8].copy_from_slice(&self.unsent.to_be_bytes());
            self.datagram[8..16].copy_from_slice(&pending.token.to_be_bytes());
            tx.send(self.to, &self.datagram, &[]);
            self.unsent += 1;
        }
    }

    fn ended(&mut self) -> Option<(u64, bool)> {
        self.ended.pop_front()
    }

    fn due_ns(&self) -> Option<u64> {
        match self.ended.is_empty() {
            true => self
                .pending
                .front()
                .map(|front| front.sent_ns + LOST_AFTER_NS),
            false => Some(0),
        }
    }

    fn sent(&self) -> Sent {
        Sent {
            datagrams: self.unsent,
            requests: self.unsent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Generator, Load, Plan};

    fn serve() -> EchoServer {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        EchoServer::start(
            listen,
            Wait::Blocking,
            Duration::ZERO,
            Placement::default(),
            || Ok(()),
        )
        .expect("loopback works")
    }

    fn measure(to: SocketAddr, outstanding: usize) -> crate::load::Sample {
        let plan = Plan {
            load: Load::Closed { outstanding },
            warmup: Duration::from_millis(20),
            measure: Duration::from_millis(200),
            patience: Duration::from_secs(2),
        };
        let datapath = Udp::bind(SocketAddr::from(([127, 0, 0, 1], 0)), Wait::Blocking);
        let generator = Generator::new(EchoCaller::new(to, 152), plan, |_| {});
        let mut worker = Worker::new(datapath.expect("loopback works"), generator);
        worker.run().expect("loopback works");
        worker.into_parts().1.finish().0
    }

    #[test]
    fn the_floor_over_loopback_works() {
        let server = serve();
        for outstanding in [1, 32] {
            let sample = measure(server.address(), outstanding);
            assert!(
                sample.latencies.len() > 100,
                "{} echoes",
                sample.latencies.len()
            );
            assert!(
                sample.latency_us(0.5) < 50_000.0,
                "{} µs",
                sample.latency_us(0.5)
            );
        }
        assert!(server.thread().cpu_time().is_ok());
    }

    #[test]
    fn without_a_server_every_echo_is_lost_and_the_run_ends() {
        let server = serve();
        let address = server.address();
        drop(server);
        let sample = measure(address, 3);
        assert_eq!(sample.latencies.len(), 0);
        assert!(sample.lost >= 3, "{}", sample.lost);
    }

    #[test]
    fn a_taken_address_is_an_error_not_a_thread() {
        let server = serve();
        let second = EchoServer::start(
            server.address(),
            Wait::Blocking,
            Duration::ZERO,
            Placement::default(),
            || Ok(()),
        );
        assert!(matches!(second.err(), Some(Error::Bind { .. })));
    }
}
