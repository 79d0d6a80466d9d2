//! The loop between a datapath and a service.

use crate::{Capabilities, Datapath, Error, Placement, Received, Stats, Transmit, clock};
use nix::sys::prctl::set_timerslack;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

/// How many sleeps go by at the most before lingering is tried again; see [`Worker::lingering`].
const MAX_PASSED: u32 = 64;
/// Time between two observations.
const OBSERVE_NS: u64 = 100_000_000;

/// What a worker drives: a replica, an acceptor, an echo server, a client.
///
/// Time is [`clock::monotonic_ns`], read once per batch *after* the batch was taken. A lease
/// granted at a time read before would run out before its holder believes: the holder may have sent
/// the renewal after that time. The sender, for its part, counts from before the flush.
pub trait Service {
    /// Takes one packet. Replies leave with the batch.
    fn packet<T: Transmit>(&mut self, now_ns: u64, from: SocketAddr, datagram: &[u8], tx: &mut T);

    /// Does what is due after a batch, which may be empty: attached queues, timers, batching.
    /// Returns how long the worker may sleep if nothing arrives and nobody wakes it.
    fn turn<T: Transmit>(&mut self, now_ns: u64, tx: &mut T) -> Duration;

    /// What it waits for, which tells how likely [lingering](Worker::lingering) is to pay.
    fn awaits(&self) -> Awaits {
        Awaits::Packets
    }

    /// Sees what the datapath has counted, about ten times a second while there are turns.
    fn observe(&mut self, _stats: &Stats) {}

    /// Whether the loop ends after this turn. What the turn sent still leaves.
    fn stopping(&self) -> bool;
}

/// What a service waits for when it has nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Awaits {
    /// Whatever comes, at any time.
    Packets,
    /// The answer to something that it has just sent.
    Answer,
    /// A flush, which takes longer than a worker lingers and may need its CPU.
    Flush,
}

/// One thread's loop: receive a batch, hand it to the service, let the service take its turn,
/// flush, sleep unless there may be more.
pub struct Worker<D, S> {
    datapath: D,
    service: S,
    placement: Placement,
    linger: Duration,
    /// For [`Awaits::Packets`] and [`Awaits::Answer`]: the one may pay while the other does not.
    attempts: [Attempts; 2],
    observed_ns: u64,
}

/// Whether lingering has paid lately, hence when to try it again.
#[derive(Clone, Copy, Default)]
struct Attempts {
    /// Sleeps to go before it is tried again, and how many that will be after the next failure.
    pass: u32,
    next_pass: u32,
}

impl Attempts {
    fn is_due(&mut self) -> bool {
        if self.pass > 0 {
            self.pass -= 1;
            return false;
        }
        true
    }

    fn ended(&mut self, paid: bool) {
        self.next_pass = match paid {
            true => 0,
            false => (self.next_pass * 2).clamp(1, MAX_PASSED),
        };
        self.pass = self.next_pass;
    }
}

impl<D: Datapath, S: Service> Worker<D, S> {
    /// A worker that runs wherever the system puts it.
    pub fn new(datapath: D, service: S) -> Self {
        Self {
            datapath,
            service,
            placement: Placement::default(),
            linger: Duration::ZERO,
            attempts: [Attempts::default(); 2],
            observed_ns: 0,
        }
    }

    /// Places the thread that will run the loop.
    #[must_use]
    pub fn placed(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// Has the worker look for packets for so long before it sleeps. Zero, the default, is never.
    ///
    /// To fall asleep and to be woken costs both sides more than a peer on the same network takes
    /// to answer: with interrupts between virtual CPUs, several times as much. Where packets are
    /// further apart than this the attempts fail, and fewer and fewer are made. Between two looks
    /// other threads of the same scheduling class and priority may have the CPU. A worker that
    /// polls never sleeps, so it does not linger either.
    #[must_use]
    pub fn lingering(mut self, at_most: Duration) -> Self {
        self.linger = at_most;
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
        let Capabilities {
            batch, busy_poll, ..
        } = self.datapath.capabilities();
        if busy_poll {
            self.linger = Duration::ZERO;
        }
        let mut at_most = Duration::ZERO;
        let mut received = batch;
        while !self.service.stopping() {
            received = match received < batch {
                true => self.next(at_most)?,
                false => self.receive()?.0,
            };
            at_most = self.serve(received, clock::monotonic_ns())?;
        }
        Ok(())
    }

    /// Waits for packets, a wake-up or the end of `at_most`, and receives.
    fn next(&mut self, at_most: Duration) -> Result<usize, Error> {
        let limit = at_most.min(self.linger);
        let attempts = match self.service.awaits() {
            // Whoever must not sleep has work that no packet announces.
            _ if limit.is_zero() => None,
            Awaits::Flush => None,
            Awaits::Packets => Some(0),
            Awaits::Answer => Some(1),
        };
        let Some(attempts) = attempts.filter(|&index| self.attempts[index].is_due()) else {
            self.datapath.wait(at_most)?;
            return Ok(self.receive()?.0);
        };
        let start_ns = clock::monotonic_ns();
        let lingered = loop {
            let (received, woken) = self.receive()?;
            let lingered = Duration::from_nanos(clock::monotonic_ns() - start_ns);
            if received > 0 || woken {
                // Others may have had the CPU for long: a sleeper would have been woken sooner.
                self.attempts[attempts].ended(lingered <= limit);
                return Ok(received);
            }
            if lingered >= limit {
                break lingered;
            }
            thread::yield_now();
        };
        self.attempts[attempts].ended(false);
        self.datapath.wait(at_most.saturating_sub(lingered))?;
        Ok(self.receive()?.0)
    }

    /// Takes the wake-ups before the packets, so that the turn that follows has seen their cause.
    /// Returns how many packets there are and whether there were wake-ups.
    fn receive(&mut self) -> Result<(usize, bool), Error> {
        let woken = self.datapath.take_wakeups();
        Ok((self.datapath.receive()?, woken))
    }

    /// Goes once round the loop without sleeping, so that a test can own the time. Returns how many
    /// packets came and how long the service would sleep. `clock` is read after the receive.
    ///
    /// # Errors
    /// The datapath is gone.
    pub fn step(&mut self, clock: impl FnOnce() -> u64) -> Result<(usize, Duration), Error> {
        let (received, _) = self.receive()?;
        let at_most = self.serve(received, clock())?;
        Ok((received, at_most))
    }

    /// Serves the batch that was received and takes the service's turn.
    fn serve(&mut self, received: usize, now_ns: u64) -> Result<Duration, Error> {
        let (rx, tx) = self.datapath.halves();
        for index in 0..received {
            let (from, datagram) = rx.packet(index);
            self.service.packet(now_ns, from, datagram, tx);
        }
        let at_most = self.service.turn(now_ns, tx);
        self.datapath.flush()?;
        if now_ns.saturating_sub(self.observed_ns) >= OBSERVE_NS {
            self.observed_ns = now_ns;
            self.service.observe(&self.datapath.stats());
        }
        Ok(at_most)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{self, Receiver};
    use crate::{Faults, Faulty, Loopback, Network, Packets, Udp, Wait, Waker};
    use std::time::Instant;

    const SOON: Duration = Duration::from_secs(30);

    /// Answers every packet, sends what its queue says, stops when the queue ends.
    struct Echo {
        orders: Receiver<(SocketAddr, u8)>,
        times: Vec<u64>,
        stopping: bool,
    }

    impl Service for Echo {
        fn packet<T: Transmit>(
            &mut self,
            now_ns: u64,
            from: SocketAddr,
            datagram: &[u8],
            tx: &mut T,
        ) {
            self.times.push(now_ns);
            tx.send(from, b"echo ", datagram);
        }

        fn turn<T: Transmit>(&mut self, _now_ns: u64, tx: &mut T) -> Duration {
            self.stopping = self.orders.is_abandoned();
            while let Some((to, byte)) = self.orders.pop() {
                tx.send(to, &[byte], b"");
            }
            SOON
        }

        fn stopping(&self) -> bool {
            self.stopping
        }
    }

    fn echo(orders: Receiver<(SocketAddr, u8)>) -> Echo {
        Echo {
            orders,
            times: Vec::new(),
            stopping: false,
        }
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn a_batch_has_one_time_and_its_replies_one_flush() {
        let network = Network::new();
        let mut client = network.endpoint(address(1)).unwrap();
        let server = network.endpoint(address(2)).unwrap();
        let (_sender, orders) = queue::channel(8, server.waker());
        let mut worker = Worker::new(server, echo(orders));
        for number in 0..3u8 {
            client.halves().1.send(address(2), &[number], b"");
        }
        client.flush().unwrap();
        assert_eq!(worker.step(|| 77).unwrap(), (3, SOON));
        assert_eq!(worker.service().times, [77; 3]);
        assert_eq!(client.receive().unwrap(), 3);
        assert_eq!(client.halves().0.packet(2), (address(2), &b"echo \x02"[..]));
    }

    /// An order wakes a sleeping worker; its end stops it.
    fn serves_orders_and_packets(wait: Wait) {
        let mut client = Udp::bind(address(0), Wait::Blocking).unwrap();
        let server = Udp::bind(address(0), wait).unwrap();
        let to = server.local_addr();
        let (mut sender, orders) = queue::channel(8, server.waker());
        let thread = Worker::new(server, echo(orders)).spawn("echo").unwrap();
        let start = Instant::now();
        for round in 0..200u8 {
            let expected = if round % 2 == 0 {
                sender.push((client.local_addr(), round)).unwrap();
                vec![round]
            } else {
                client.halves().1.send(to, &[round], b"");
                client.flush().unwrap();
                [b"echo ", &[round][..]].concat()
            };
            while client.receive().unwrap() == 0 {
                client.wait(Duration::from_secs(1)).unwrap();
                assert!(start.elapsed() < SOON, "round {round} was not answered");
            }
            assert_eq!(client.halves().0.packet(0), (to, &expected[..]));
        }
        drop(sender);
        let (datapath, _) = thread.join().unwrap().unwrap().into_parts();
        assert_eq!(datapath.stats().sent, 200);
        assert!(start.elapsed() < SOON, "a wake-up was lost");
    }

    #[test]
    fn a_blocking_worker_serves_orders_and_packets() {
        serves_orders_and_packets(Wait::Blocking);
    }

    #[test]
    fn a_polling_worker_serves_orders_and_packets() {
        serves_orders_and_packets(Wait::Polling);
    }

    #[test]
    fn a_worker_behind_a_bad_network_does_not_oversleep_a_late_packet() {
        let mut client = Udp::bind(address(0), Wait::Blocking).unwrap();
        let late = Faults {
            delay: 1.0,
            longest_delay: Duration::from_millis(2),
            ..Faults::default()
        };
        let server = Udp::bind(address(0), Wait::Blocking).unwrap();
        let server = Faulty::new(server, late, late, 1);
        let to = server.local_addr();
        let (sender, orders) = queue::channel(8, server.waker());
        let thread = Worker::new(server, echo(orders))
            .spawn("late echo")
            .unwrap();
        let start = Instant::now();
        for round in 0..20 {
            client.halves().1.send(to, &[round], b"");
            client.flush().unwrap();
            while client.receive().unwrap() == 0 {
                client.wait(Duration::from_secs(1)).unwrap();
                assert!(start.elapsed() < SOON, "round {round} was not answered");
            }
        }
        drop(sender);
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn a_linger_that_does_not_pay_is_tried_less_and_less() {
        let mut attempts = Attempts::default();
        let mut tried = |paid| {
            let passed = (0..).take_while(|_| !attempts.is_due()).count();
            attempts.ended(paid);
            passed
        };
        let passed: Vec<_> = (0..9).map(|_| tried(false)).collect();
        assert_eq!(passed, [0, 1, 2, 4, 8, 16, 32, 64, 64]);
        assert_eq!([tried(true), tried(true)], [64, 0]);
    }

    /// Sends a packet to a peer and lingers for its answer.
    struct Asker {
        peer: SocketAddr,
        asked: u32,
        answered: u32,
        rung: Receiver<()>,
        rings: u32,
    }

    impl Service for Asker {
        fn packet<T: Transmit>(&mut self, _: u64, _: SocketAddr, _: &[u8], _: &mut T) {
            self.answered += 1;
        }

        fn turn<T: Transmit>(&mut self, _: u64, tx: &mut T) -> Duration {
            while self.rung.pop().is_some() {
                self.rings += 1;
            }
            if self.asked == self.answered {
                self.asked += 1;
                tx.send(self.peer, b"ask", b"");
            }
            SOON
        }

        fn stopping(&self) -> bool {
            self.answered >= 300 && self.rings >= 300
        }
    }

    #[test]
    fn a_lingering_worker_loses_neither_answers_nor_wake_ups() {
        let server = Udp::bind(address(0), Wait::Blocking).unwrap();
        let peer = server.local_addr();
        let (sender, orders) = queue::channel(8, server.waker());
        let server = Worker::new(server, echo(orders)).spawn("echo").unwrap();
        let client = Udp::bind(address(0), Wait::Blocking).unwrap();
        let (mut bell, rung) = queue::channel(8, client.waker());
        let asker = Asker {
            peer,
            asked: 0,
            answered: 0,
            rung,
            rings: 0,
        };
        let client = Worker::new(client, asker).lingering(Duration::from_micros(20));
        let client = client.spawn("asker").unwrap();
        let start = Instant::now();
        for _ in 0..300 {
            while bell.push(()).is_err() {
                assert!(start.elapsed() < SOON, "a wake-up was lost");
                thread::yield_now();
            }
        }
        client.join().unwrap().unwrap();
        drop(sender);
        server.join().unwrap().unwrap();
        assert!(start.elapsed() < SOON, "a wake-up was lost");
    }

    /// Counts the waits of another datapath.
    struct Counted {
        inner: Loopback,
        waits: u32,
        polls: bool,
    }

    impl Datapath for Counted {
        type Rx = Packets;
        type Tx = Packets;

        fn receive(&mut self) -> Result<usize, Error> {
            self.inner.receive()
        }

        fn halves(&mut self) -> (&Packets, &mut Packets) {
            self.inner.halves()
        }

        fn flush(&mut self) -> Result<(), Error> {
            self.inner.flush()
        }

        fn wait(&mut self, at_most: Duration) -> Result<(), Error> {
            self.waits += 1;
            self.inner.wait(at_most)
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
            Capabilities {
                busy_poll: self.polls,
                ..self.inner.capabilities()
            }
        }

        fn stats(&self) -> Stats {
            self.inner.stats()
        }
    }

    /// Would sleep for so long between its turns, and stops after some of them.
    struct Patient {
        at_most: Duration,
        awaits: Awaits,
        turns: u32,
    }

    impl Service for Patient {
        fn packet<T: Transmit>(&mut self, _: u64, _: SocketAddr, _: &[u8], _: &mut T) {}

        fn turn<T: Transmit>(&mut self, _: u64, _: &mut T) -> Duration {
            self.turns -= 1;
            self.at_most
        }

        fn awaits(&self) -> Awaits {
            self.awaits
        }

        fn stopping(&self) -> bool {
            self.turns == 0
        }
    }

    /// Runs a worker that would linger for long, wakes it now and then if it would sleep for long,
    /// too, and returns its waits.
    fn waits(service: Patient, polls: bool) -> u32 {
        let wakes = service.at_most == SOON;
        let network = Network::new();
        let datapath = Counted {
            inner: network.endpoint(address(1)).unwrap(),
            waits: 0,
            polls,
        };
        let waker = datapath.waker();
        let start = Instant::now();
        let mut worker = Worker::new(datapath, service).lingering(SOON);
        thread::scope(|scope| {
            let ran = scope.spawn(|| worker.run());
            while !ran.is_finished() {
                thread::sleep(Duration::from_millis(20));
                if wakes {
                    waker.wake();
                }
            }
            ran.join().unwrap()
        })
        .unwrap();
        assert!(
            start.elapsed() < SOON,
            "it lingered past what should end it"
        );
        worker.into_parts().0.waits
    }

    fn patient(at_most: Duration) -> Patient {
        Patient {
            at_most,
            awaits: Awaits::Packets,
            turns: 3,
        }
    }

    #[test]
    fn a_wake_up_ends_a_linger() {
        assert_eq!(waits(patient(SOON), false), 0);
    }

    #[test]
    fn a_timer_ends_a_linger() {
        // The first linger fails, so that the next sleep goes without; then the second one fails.
        let soon = Duration::from_millis(1);
        assert_eq!(waits(patient(soon), false), 2);
    }

    #[test]
    fn whoever_must_not_sleep_waits_for_a_flush_or_polls_does_not_linger() {
        assert_eq!(waits(patient(Duration::ZERO), false), 2);
        let flush = Patient {
            awaits: Awaits::Flush,
            ..patient(SOON)
        };
        assert_eq!(waits(flush, false), 2);
        assert_eq!(waits(patient(SOON), true), 2);
    }

    #[test]
    fn a_linger_that_fails_for_packets_is_still_tried_for_answers() {
        let network = Network::new();
        let endpoint = network.endpoint(address(1)).unwrap();
        let mut worker = Worker::new(endpoint, patient(Duration::from_nanos(1)));
        worker = worker.lingering(SOON);
        worker.next(Duration::from_nanos(1)).unwrap();
        let passes = |worker: &Worker<_, Patient>| worker.attempts.map(|kind| kind.pass);
        assert_eq!(passes(&worker), [1, 0]);
        worker.service.awaits = Awaits::Answer;
        worker.next(Duration::from_nanos(1)).unwrap();
        assert_eq!(passes(&worker), [1, 1]);
    }

    #[test]
    fn a_worker_that_cannot_be_placed_says_so() {
        let network = Network::new();
        let (_sender, orders) = queue::channel(8, || {});
        let nowhere = Placement {
            cpu: Some(100_000),
            ..Placement::default()
        };
        let mut worker =
            Worker::new(network.endpoint(address(1)).unwrap(), echo(orders)).placed(nowhere);
        let error = thread::scope(|scope| scope.spawn(|| worker.run()).join().unwrap());
        assert!(
            error
                .unwrap_err()
                .to_string()
                .starts_with("pin to CPU 100000")
        );
    }
}
