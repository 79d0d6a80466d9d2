//! A network inside the process: no sockets, no privileges, the same order every time.

use crate::{Capabilities, Datapath, Error, Packets, Reason, Sleeper, Stats, Transmit, Waker};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most packets that wait for one endpoint, and most of one receive.
const INBOX_PACKETS: usize = 1024;
/// Most bytes that wait for one endpoint.
const INBOX_BYTES: usize = 1024 * 1024;
/// Longest payload in bytes, as over UDP.
const MAX_DATAGRAM_BYTES: usize = 65_507;

/// A network that endpoints join under addresses of their choice.
///
/// A flush puts packets into the inboxes of their receivers at once, in order; what finds no
/// receiver or a full inbox is dropped and counted. With one thread the outcome is always the same.
#[derive(Clone, Default)]
pub struct Network {
    inboxes: Arc<Mutex<BTreeMap<SocketAddr, Inbox>>>,
}

struct Inbox {
    packets: Packets,
    waker: Waker,
}

impl Network {
    /// A network without endpoints.
    pub fn new() -> Self {
        Self::default()
    }

    /// Joins as `address`, until the endpoint is dropped.
    ///
    /// # Errors
    /// The address is taken, or the process has no file descriptor left.
    pub fn endpoint(&self, address: SocketAddr) -> Result<Loopback, Error> {
        let mut inboxes = self.inboxes();
        if inboxes.contains_key(&address) {
            let what = format!("loopback address {address}");
            return Err(Error::InUse {
                what,
                remedy: "each endpoint needs its own",
            });
        }
        let sleeper = Sleeper::new()
            .map_err(|error| Error::system(format!("join the loopback as {address}"), error))?;
        inboxes.insert(
            address,
            Inbox {
                packets: packets(),
                waker: sleeper.waker(),
            },
        );
        Ok(Loopback {
            network: self.clone(),
            address,
            received: packets(),
            outbox: packets(),
            sleeper,
            stats: Stats::default(),
        })
    }

    /// A panic of another endpoint's thread leaves whole packets behind, so the map stays usable.
    fn inboxes(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Inbox>> {
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn packets() -> Packets {
    Packets::new(INBOX_PACKETS, INBOX_BYTES, MAX_DATAGRAM_BYTES)
}

/// One endpoint of a [`Network`].
pub struct Loopback {
    network: Network,
    address: SocketAddr,
    received: Packets,
    outbox: Packets,
    sleeper: Sleeper,
    stats: Stats,
}

impl Datapath for Loopback {
    type Rx = Packets;
    type Tx = Packets;

    fn receive(&mut self) -> Result<usize, Error> {
        self.received.clear();
        if let Some(inbox) = self.network.inboxes().get_mut(&self.address) {
            std::mem::swap(&mut inbox.packets, &mut self.received);
        }
        self.stats.received += self.received.len() as u64;
        Ok(self.received.len())
    }

    fn halves(&mut self) -> (&Packets, &mut Packets) {
        (&self.received, &mut self.outbox)
    }

    fn flush(&mut self) -> Result<(), Error> {
        if self.outbox.is_empty() {
            return Ok(());
        }
        let mut inboxes = self.network.inboxes();
        for (to, payload) in self.outbox.iter() {
            let Some(inbox) = inboxes.get_mut(&to) else {
                self.stats.drop(Reason::Refused, 1);
                continue;
            };
            if inbox.packets.send(self.address, payload, b"") {
                self.stats.sent += 1;
                inbox.waker.wake();
            } else {
                self.stats.drop(Reason::Busy, 1);
            }
        }
        drop(inboxes);
        self.outbox.clear();
        Ok(())
    }

    fn wait(&mut self, at_most: Duration) -> Result<(), Error> {
        self.sleeper
            .sleep(None, at_most)
            .map_err(|error| Error::system(format!("wait on loopback {}", self.address), error))
    }

    fn local_addr(&self) -> SocketAddr {
        self.address
    }

    fn waker(&self) -> Waker {
        self.sleeper.waker()
    }

    fn take_wakeups(&mut self) -> bool {
        self.sleeper.take_wakeups()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "loopback",
            mode: "in memory",
            batch: INBOX_PACKETS,
            max_datagram_bytes: MAX_DATAGRAM_BYTES,
            busy_poll: false,
        }
    }

    fn stats(&self) -> Stats {
        let mut stats = self.stats;
        stats.syscalls += self.sleeper.syscalls();
        self.outbox.count_drops(&mut stats);
        stats
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        self.network.inboxes().remove(&self.address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Received;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn pair() -> (Loopback, Loopback) {
        let network = Network::new();
        (
            network.endpoint(address(1)).unwrap(),
            network.endpoint(address(2)).unwrap(),
        )
    }

    #[test]
    fn packets_arrive_in_order_with_their_sender() {
        let (mut a, mut b) = pair();
        for number in 0..100u8 {
            a.halves().1.send(address(2), &[number], b"");
        }
        assert_eq!(b.receive().unwrap(), 0, "nothing leaves before the flush");
        a.flush().unwrap();
        assert_eq!(b.receive().unwrap(), 100);
        for number in 0..100 {
            assert_eq!(
                b.halves().0.packet(number),
                (address(1), &[number as u8][..])
            );
        }
        assert_eq!(b.receive().unwrap(), 0, "a packet is received once");
    }

    #[test]
    fn a_full_inbox_drops_and_counts() {
        let (mut a, mut b) = pair();
        for _ in 0..2 {
            for _ in 0..INBOX_PACKETS {
                assert!(a.halves().1.send(address(2), b"x", b""));
            }
            a.flush().unwrap();
        }
        assert_eq!(b.receive().unwrap(), INBOX_PACKETS);
        assert_eq!(a.stats().dropped_for(Reason::Busy), INBOX_PACKETS as u64);
    }

    #[test]
    fn who_left_receives_nothing_and_can_come_back() {
        let network = Network::new();
        let mut a = network.endpoint(address(1)).unwrap();
        drop(network.endpoint(address(2)).unwrap());
        a.halves().1.send(address(2), b"x", b"");
        a.flush().unwrap();
        assert_eq!(a.stats().dropped_for(Reason::Refused), 1);
        assert_eq!(network.endpoint(address(2)).unwrap().receive().unwrap(), 0);
    }

    #[test]
    fn an_address_has_one_owner() {
        let network = Network::new();
        let _first = network.endpoint(address(1)).unwrap();
        let error = network.endpoint(address(1)).err().unwrap().to_string();
        assert!(
            error.starts_with("loopback address 127.0.0.1:1 is in use"),
            "{error}"
        );
    }

    #[test]
    fn a_packet_ends_the_wait_of_another_thread() {
        let (mut a, mut b) = pair();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                a.halves().1.send(address(2), b"x", b"");
                a.flush().unwrap();
            });
            let start = std::time::Instant::now();
            while b.receive().unwrap() == 0 {
                b.wait(Duration::from_secs(30)).unwrap();
                assert!(start.elapsed() < Duration::from_secs(30));
            }
        });
    }
}
