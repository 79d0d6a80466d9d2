//! A port of this machine that stays free for whoever is told of it.

use std::fs;
use std::io;
use std::ops::Range;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Ports that Linux gives to nobody by itself (it begins at 32,768): the port of a replica that was
/// killed is still free when it starts again.
const PORTS: Range<u16> = 10_000..32_000;
/// How many ports are tried.
const TRIES: usize = 100;
/// The sockets of this network namespace: `proc_pid_net(5)`. Those of IPv6 may be missing.
const TABLES: [&str; 4] = [
    "/proc/thread-self/net/udp",
    "/proc/thread-self/net/udp6",
    "/proc/thread-self/net/tcp",
    "/proc/thread-self/net/tcp6",
];

/// A UDP and TCP port that is nobody else's as long as this lives, whether or not it is bound:
/// neither another cluster's, nor that of a socket that was there before.
///
/// It is claimed by the name of a socket, which belongs to the network namespace, as the port does,
/// and is gone with the process, however that ends.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _claim: UnixDatagram,
}

impl Port {
    /// Claims a port, chosen at random.
    ///
    /// # Errors
    /// The system refuses, or no port was free.
    pub fn claim() -> io::Result<Self> {
        for _ in 0..TRIES {
            let random = getrandom::u32().map_err(io::Error::other)?;
            let number = PORTS.start + (random % PORTS.len() as u32) as u16;
            if let Some(port) = Self::claim_number(number)? {
                return Ok(port);
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    fn claim_number(number: u16) -> io::Result<Option<Self>> {
        let name = SocketAddr::from_abstract_name(format!("nearwire port {number}"))?;
        let claim = match UnixDatagram::bind_addr(&name) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Ok(None),
            result => result?,
        };
        // Whatever this process starts meanwhile holds copies of its sockets until it has become
        // another program. A socket bound to try the port would keep it taken as long.
        let port = Self {
            number,
            _claim: claim,
        };
        Ok((!is_bound(number)?).then_some(port))
    }

    /// Its number.
    pub const fn number(&self) -> u16 {
        self.number
    }
}

/// Whether a socket of any address has this port.
fn is_bound(port: u16) -> io::Result<bool> {
    let mine = format!("{port:04X}");
    for table in TABLES {
        let text = match fs::read_to_string(table) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            result => result?,
        };
        // After the heading: number, local address as `0100007F:1F90`, and more.
        let mut local = text.lines().skip(1).filter_map(|line| {
            let (_, port) = line.split_whitespace().nth(1)?.rsplit_once(':')?;
            Some(port)
        });
        if local.any(|port| port == mine) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};

    fn claims(number: u16) -> bool {
        let port = Port::claim_number(number).expect("claims or does not");
        port.is_some()
    }

    #[test]
    fn a_port_is_claimed_once_until_it_is_let_go() {
        let port = Port::claim().expect("a free port");
        let number = port.number();
        assert!(!claims(number));
        drop(port);
        // A process that another test has just started may hold a copy of the claim for a moment.
        while !claims(number) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_claimed_port_can_be_bound() {
        let port = Port::claim().expect("a free port");
        let address = (Ipv4Addr::LOCALHOST, port.number());
        UdpSocket::bind(address).expect("no datagram socket has it");
        TcpListener::bind(address).expect("no stream socket has it");
    }

    #[test]
    fn a_port_that_is_bound_is_not_claimed() {
        let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
        assert!(!claims(taken.local_addr().expect("is bound").port()));
        let taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("binds");
        assert!(!claims(taken.local_addr().expect("is bound").port()));
        let Ok(taken) = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) else {
            return eprintln!("skipped: this machine has no IPv6 loopback");
        };
        assert!(!claims(taken.local_addr().expect("is bound").port()));
    }
}
