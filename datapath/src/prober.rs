//! Asks a host whether a process still listens at an address.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};

/// How long an answer is waited for, in nanoseconds. Nobody listening is told within one round trip.
const PATIENCE_NS: u64 = 5_000_000;
/// Between two looks for an answer, in nanoseconds.
const LOOK_NS: u64 = 50_000;
/// Most questions under way.
const MAX_PROBES: usize = 32;

struct Probe {
    to: SocketAddr,
    socket: UdpSocket,
    /// When it was first asked what is not answered yet.
    asked_ns: u64,
    /// When it was last asked.
    sent_ns: u64,
    until_ns: u64,
    is_refused: bool,
}

/// Sends single datagrams from sockets of their own and sees them refused.
///
/// A host answers a datagram to a port on which nobody listens with ICMP's "port unreachable", which
/// the kernel reports on a connected socket (RFC 1122, section 4.1.3.3). So the death of a process
/// is known after one round trip; that of a host, or a process that was stopped, is not told. A
/// firewall may keep the answer back, and who forges it can only make the asker suspicious.
pub struct Prober {
    local: IpAddr,
    probes: Vec<Probe>,
}

impl Prober {
    /// A prober whose datagrams come from `local`.
    pub const fn new(local: IpAddr) -> Self {
        Self {
            local,
            probes: Vec::new(),
        }
    }

    /// Sends `datagram` to `to`. What cannot be sent is not known to be refused.
    pub fn send(&mut self, now_ns: u64, to: SocketAddr, datagram: &[u8]) {
        let until_ns = now_ns + PATIENCE_NS;
        if let Some(known) = self.probes.iter_mut().find(|probe| probe.to == to) {
            if now_ns < known.sent_ns + LOOK_NS {
                // Many groups of one leader ask at the same time.
                return;
            }
            known.sent_ns = now_ns;
            known.until_ns = until_ns;
            // An error is the answer to an earlier question, and the kernel tells it once.
            known.is_refused |= is_refusal(known.socket.send(datagram));
        } else if self.probes.len() < MAX_PROBES
            && let Ok(socket) = self.connect(to)
            && socket.send(datagram).is_ok()
        {
            self.probes.push(Probe {
                to,
                socket,
                asked_ns: now_ns,
                sent_ns: now_ns,
                until_ns,
                is_refused: false,
            });
        }
    }

    fn connect(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((self.local, 0))?;
        socket.set_nonblocking(true)?;
        socket.connect(to)?;
        Ok(socket)
    }

    /// An address at which nobody listens, and when it was asked, once for each question.
    pub fn refused(&mut self, now_ns: u64) -> Option<(u64, SocketAddr)> {
        let refuses = |probe: &Probe| probe.is_refused || is_refusal(probe.socket.recv(&mut [0]));
        let refused = self.probes.iter().position(refuses);
        let refused = refused.map(|at| self.probes.swap_remove(at));
        // A worker that was stalled finds its answers late, so they are looked at first.
        self.probes.retain(|probe| now_ns < probe.until_ns);
        refused.map(|probe| (probe.asked_ns, probe.to))
    }

    /// When to look for answers, in nanoseconds of the clock of `now_ns`.
    pub fn next_timer_ns(&self, now_ns: u64) -> u64 {
        if self.probes.is_empty() {
            u64::MAX
        } else {
            now_ns + LOOK_NS
        }
    }
}

fn is_refusal(result: io::Result<usize>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn only_where_nobody_listens_a_datagram_is_refused() {
        for local in ["127.0.0.1", "::1"] {
            let Ok(listener) = UdpSocket::bind((local, 0)) else {
                eprintln!("skipped: this machine has no {local}");
                continue;
            };
            let local = listener.local_addr().unwrap();
            let closed = UdpSocket::bind((local.ip(), 0)).unwrap();
            let gone = closed.local_addr().unwrap();
            drop(closed);
            let mut prober = Prober::new(local.ip());
            let start_ns = clock::monotonic_ns();
            prober.send(start_ns, local, b"there?");
            prober.send(start_ns, gone, b"there?");
            let mut refused = Vec::new();
            let mut now_ns = start_ns;
            while prober.next_timer_ns(now_ns) != u64::MAX {
                now_ns = clock::monotonic_ns();
                refused.extend(prober.refused(now_ns));
            }
            assert_eq!(refused, [(start_ns, gone)]);
            let mut taken = [0; 16];
            assert_eq!(listener.recv(&mut taken).unwrap(), 6, "it is a datagram");
        }
    }
}
