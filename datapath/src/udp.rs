//! UDP sockets: the datapath that works everywhere.

use crate::mmsg::{self, BATCH, Outgoing};
use crate::{Capabilities, Datapath, Error, Packets, Reason, Sleeper, Stats, Wait, Waker};
use nix::sys::socket::{setsockopt, sockopt};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

pub use crate::mmsg::Inbox;

/// Most packets between two flushes.
const TRANSMIT_PACKETS: usize = 1024;
/// Most bytes between two flushes.
const TRANSMIT_BYTES: usize = 2 * 1024 * 1024;
/// Kernel buffer wanted in each direction, in bytes: a few thousand packets, what arrives while a
/// worker is off its CPU for some milliseconds.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Longest UDP payload in bytes over IPv4; IPv6 would carry 20 more.
const MAX_DATAGRAM_BYTES: usize = 65_535 - 20 - 8;

/// A UDP socket, read and written in batches.
///
/// It listens on IPv4 or IPv6. Bound to `[::]` it carries both, and IPv4 peers keep their IPv4
/// addresses. On a machine with several addresses listen on one of them: a reply from a wildcard
/// socket leaves with the address that routing prefers, which may not be the one that was asked.
pub struct Udp {
    socket: UdpSocket,
    local: SocketAddr,
    inbox: Inbox,
    outbox: Packets,
    outgoing: Outgoing,
    sleeper: Sleeper,
    wait: Wait,
    stats: Stats,
}

impl Udp {
    /// Listens on `listen`; port 0 takes a free one, see [`local_addr`](Datapath::local_addr).
    ///
    /// # Errors
    /// The address is in use, not this machine's, or not permitted.
    pub fn bind(listen: SocketAddr, wait: Wait) -> Result<Self, Error> {
        let bound = UdpSocket::bind(listen).and_then(|socket| {
            let local = socket.local_addr()?;
            Ok((socket, local, Sleeper::new()?))
        });
        let (socket, local, sleeper) = bound.map_err(|source| {
            let remedy = remedy(&source);
            Error::Bind {
                listen,
                source,
                remedy,
            }
        })?;
        enlarge_buffers(&socket);
        Ok(Self {
            socket,
            local,
            inbox: Inbox::new(),
            outbox: Packets::new(TRANSMIT_PACKETS, TRANSMIT_BYTES, MAX_DATAGRAM_BYTES),
            outgoing: Outgoing::new(local),
            sleeper,
            wait,
            stats: Stats::default(),
        })
    }

    /// Sends the queue from packet `first` on, as far as one system call takes it. Returns how many
    /// packets that settled: sent, or dropped and counted.
    fn transmit(&mut self, first: usize) -> Result<usize, Error> {
        self.stats.syscalls += 1;
        let error = match self.outgoing.send(self.socket.as_fd(), &self.outbox, first) {
            Ok(sent) => {
                self.stats.sent += sent as u64;
                return Ok(sent);
            }
            Err(error) => error,
        };
        match error.raw_os_error() {
            // The kernel has no room: asking again for each packet would only cost system calls.
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => {
                let rest = self.outbox.len() - first;
                self.stats.drop(Reason::Busy, rest);
                Ok(rest)
            }
            Some(code) if is_fatal(code) => Err(Error::system(
                format!("send from UDP {}", self.local),
                error,
            )),
            _ => {
                self.stats.drop(Reason::Refused, 1);
                Ok(1)
            }
        }
    }
}

impl Datapath for Udp {
    type Rx = Inbox;
    type Tx = Packets;

    fn receive(&mut self) -> Result<usize, Error> {
        self.stats.syscalls += 1;
        match self.inbox.receive(self.socket.as_fd()) {
            Ok(count) => {
                self.stats.received += count as u64;
                Ok(count)
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(0),
                Some(code) if is_fatal(code) => Err(Error::system(
                    format!("receive on UDP {}", self.local),
                    error,
                )),
                _ => {
                    self.stats.receive_errors += 1;
                    Ok(0)
                }
            },
        }
    }

    fn halves(&mut self) -> (&Inbox, &mut Packets) {
        (&self.inbox, &mut self.outbox)
    }

    fn flush(&mut self) -> Result<(), Error> {
        let mut settled = 0;
        while settled < self.outbox.len() {
            settled += self.transmit(settled)?;
        }
        self.outbox.clear();
        Ok(())
    }

    fn wait(&mut self, at_most: Duration) -> Result<(), Error> {
        match self.wait {
            Wait::Polling => {
                std::hint::spin_loop();
                Ok(())
            }
            Wait::Blocking => self
                .sleeper
                .sleep(Some(self.socket.as_fd()), at_most)
                .map_err(|error| Error::system(format!("wait on UDP {}", self.local), error)),
        }
    }

    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn waker(&self) -> Waker {
        self.sleeper.waker()
    }

    fn take_wakeups(&mut self) -> bool {
        self.sleeper.take_wakeups()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "udp",
            mode: "recvmmsg/sendmmsg",
            batch: BATCH,
            max_datagram_bytes: MAX_DATAGRAM_BYTES,
            busy_poll: self.wait == Wait::Polling,
        }
    }

    fn stats(&self) -> Stats {
        let mut stats = self.stats;
        stats.syscalls += self.sleeper.syscalls();
        // A kernel too old to tell shows none.
        stats.overrun = mmsg::overrun(self.socket.as_fd()).unwrap_or(0).into();
        self.outbox.count_drops(&mut stats);
        stats
    }
}

/// Whether an error is about the socket. All others are about one packet or one peer (ICMP,
/// firewall, routing), which no peer may use to stop us.
fn is_fatal(code: i32) -> bool {
    matches!(
        code,
        libc::EBADF | libc::ENOTSOCK | libc::EFAULT | libc::EOPNOTSUPP
    )
}

/// Asks for large kernel buffers, beyond the system's limit where privilege allows. Smaller ones
/// only drop earlier, so a refusal is no error.
fn enlarge_buffers(socket: &UdpSocket) {
    let bytes = SOCKET_BUFFER_BYTES;
    if setsockopt(socket, sockopt::RcvBufForce, &bytes).is_err() {
        let _ = setsockopt(socket, sockopt::RcvBuf, &bytes);
    }
    if setsockopt(socket, sockopt::SndBufForce, &bytes).is_err() {
        let _ = setsockopt(socket, sockopt::SndBuf, &bytes);
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another replica runs there, or choose another `listen`",
        io::ErrorKind::AddrNotAvailable => "no interface has this address: see `ip address`",
        io::ErrorKind::PermissionDenied => "ports below 1024 are root's: choose a higher one",
        _ => "see `ip address` and `ulimit -n`",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Received, Transmit};
    use std::time::Instant;

    const SOON: Duration = Duration::from_secs(10);

    fn bind(listen: &str, wait: Wait) -> Udp {
        Udp::bind(listen.parse().unwrap(), wait).unwrap()
    }

    fn pair(listen: &str, wait: Wait) -> (Udp, Udp) {
        (bind(listen, wait), bind(listen, wait))
    }

    /// Receives until there are `count` payloads; panics if they do not come.
    fn collect(udp: &mut Udp, count: usize) -> Vec<(SocketAddr, Vec<u8>)> {
        let start = Instant::now();
        let mut all = Vec::new();
        while all.len() < count {
            assert!(
                start.elapsed() < SOON,
                "{} of {count} packets came",
                all.len()
            );
            udp.wait(Duration::from_millis(100)).unwrap();
            for index in 0..udp.receive().unwrap() {
                let (from, payload) = udp.halves().0.packet(index);
                all.push((from, payload.to_vec()));
            }
        }
        all
    }

    fn burst_arrives(listen: &str, wait: Wait) {
        let (mut a, mut b) = pair(listen, wait);
        let to = b.local_addr();
        for number in 0..300u32 {
            assert!(a.halves().1.send(to, &number.to_be_bytes(), b"value"));
        }
        a.flush().unwrap();
        let from = a.local_addr();
        let expected: Vec<_> = (0..300u32)
            .map(|number| (from, [&number.to_be_bytes()[..], b"value"].concat()))
            .collect();
        assert_eq!(collect(&mut b, 300), expected);
        assert_eq!(a.stats().sent, 300);
        assert_eq!(a.stats().syscalls, 5, "300 packets are five batches");
        assert_eq!(b.stats().received, 300);
    }

    #[test]
    fn every_packet_of_a_burst_arrives_in_order() {
        burst_arrives("127.0.0.1:0", Wait::Blocking);
        burst_arrives("127.0.0.1:0", Wait::Polling);
    }

    #[test]
    fn ipv6_carries_the_same() {
        if UdpSocket::bind("[::1]:0").is_err() {
            eprintln!("skipped: this machine has no IPv6 loopback");
            return;
        }
        burst_arrives("[::1]:0", Wait::Blocking);
    }

    #[test]
    fn an_ipv4_peer_of_a_dual_socket_keeps_its_address() {
        if UdpSocket::bind("[::]:0").is_err() {
            eprintln!("skipped: this machine has no IPv6");
            return;
        }
        let mut dual = bind("[::]:0", Wait::Blocking);
        let mut v4 = bind("127.0.0.1:0", Wait::Blocking);
        let (from, port) = (v4.local_addr(), dual.local_addr().port());
        v4.halves()
            .1
            .send(SocketAddr::from(([127, 0, 0, 1], port)), b"ask", b"");
        v4.flush().unwrap();
        assert_eq!(collect(&mut dual, 1), [(from, b"ask".to_vec())]);
        dual.halves().1.send(from, b"answer", b"");
        dual.flush().unwrap();
        assert_eq!(collect(&mut v4, 1)[0].1, b"answer");
    }

    #[test]
    fn the_longest_datagram_arrives_whole() {
        let (mut a, mut b) = pair("127.0.0.1:0", Wait::Blocking);
        let to = b.local_addr();
        let longest = vec![7; MAX_DATAGRAM_BYTES];
        assert!(a.halves().1.send(to, &longest[..64], &longest[64..]));
        assert!(!a.halves().1.send(to, b"x", &longest));
        a.flush().unwrap();
        assert_eq!(collect(&mut b, 1)[0].1, longest);
        assert_eq!(a.stats().dropped_for(Reason::OverLong), 1);
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (mut a, b) = pair("127.0.0.1:0", Wait::Blocking);
        let to = b.local_addr();
        let taken = (0..TRANSMIT_PACKETS + 10)
            .filter(|_| a.halves().1.send(to, b"x", b""))
            .count();
        assert_eq!(taken, TRANSMIT_PACKETS);
        a.flush().unwrap();
        assert_eq!(a.stats().sent, TRANSMIT_PACKETS as u64);
        assert_eq!(a.stats().dropped_for(Reason::Full), 10);
    }

    #[test]
    fn what_the_kernel_drops_is_counted() {
        let (mut a, mut b) = pair("127.0.0.1:0", Wait::Blocking);
        let to = b.local_addr();
        while b.stats().overrun == 0 {
            for _ in 0..TRANSMIT_PACKETS {
                a.halves().1.send(to, &[0; 512], b"");
            }
            a.flush().unwrap();
            assert!(
                a.stats().sent < 1_000_000,
                "no receive buffer is that large"
            );
        }
        while b.receive().unwrap() == BATCH {}
        assert!(b.stats().received + b.stats().overrun <= a.stats().sent);
    }

    #[test]
    fn a_refused_packet_does_not_stop_those_behind_it() {
        let (mut a, mut b) = pair("127.0.0.1:0", Wait::Blocking);
        let to = b.local_addr();
        let v6: SocketAddr = "[::1]:9".parse().unwrap();
        let port_zero: SocketAddr = "127.0.0.1:0".parse().unwrap();
        for (peer, payload) in [(v6, b"1"), (to, b"2"), (port_zero, b"3"), (to, b"4")] {
            assert!(a.halves().1.send(peer, payload, b""));
        }
        a.flush().unwrap();
        let payloads: Vec<_> = collect(&mut b, 2)
            .into_iter()
            .map(|(_, payload)| payload)
            .collect();
        assert_eq!(payloads, [b"2", b"4"]);
        assert_eq!(a.stats().sent, 2);
        assert_eq!(a.stats().dropped_for(Reason::Refused), 2);
    }

    #[test]
    fn a_dead_peer_is_no_error() {
        let mut a = bind("127.0.0.1:0", Wait::Blocking);
        let dead = bind("127.0.0.1:0", Wait::Blocking).local_addr();
        for _ in 0..3 {
            a.halves().1.send(dead, b"anyone there?", b"");
            a.flush().unwrap();
            assert_eq!(a.receive().unwrap(), 0);
        }
    }

    #[test]
    fn a_wake_ends_the_wait() {
        let mut udp = bind("127.0.0.1:0", Wait::Blocking);
        let waker = udp.waker();
        let start = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(20));
                waker.wake();
            });
            udp.wait(SOON).unwrap();
        });
        assert!(start.elapsed() < SOON);
    }

    #[test]
    fn a_packet_ends_the_wait() {
        let (mut a, mut b) = pair("127.0.0.1:0", Wait::Blocking);
        let to = b.local_addr();
        a.halves().1.send(to, b"x", b"");
        a.flush().unwrap();
        let start = Instant::now();
        b.wait(SOON).unwrap();
        assert!(start.elapsed() < SOON);
        assert_eq!(b.receive().unwrap(), 1);
    }

    #[test]
    fn a_polling_wait_makes_no_system_call() {
        let mut udp = bind("127.0.0.1:0", Wait::Polling);
        udp.wait(SOON).unwrap();
        assert_eq!(udp.stats().syscalls, 0);
        assert!(udp.capabilities().busy_poll);
    }

    #[test]
    fn a_taken_port_is_named_with_its_remedy() {
        let taken = bind("127.0.0.1:0", Wait::Blocking);
        let error = Udp::bind(taken.local_addr(), Wait::Blocking)
            .err()
            .unwrap()
            .to_string();
        let port = taken.local_addr().port();
        assert!(
            error.starts_with(&format!("bind UDP 127.0.0.1:{port}: ")),
            "{error}"
        );
        assert!(error.ends_with("choose another `listen`"), "{error}");
    }
}
