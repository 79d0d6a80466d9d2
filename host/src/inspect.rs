//! Asks a node what it is doing.

use consensus::auth::{self, Key};
use consensus::wire::{self, Header, Kind, Parsed};
use consensus::{GroupId, NodeId};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Longest report in bytes.
const MAX_REPORT_BYTES: usize = 64 * 1024;

/// The report of the node at `address`: the JSON object that `nearwire status` shows.
///
/// # Errors
/// Nobody answered within `timeout`, or the system refuses the socket.
pub fn inspect(
    address: SocketAddr,
    key: Option<Key>,
    timeout: Duration,
) -> io::Result<serde_json::Value> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address)?;
    let deadline = Instant::now() + timeout;
    let mut answer = vec![0; MAX_REPORT_BYTES];
    for nonce in 1.. {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let mut header = Header {
            nonce,
            ..Header::new(Kind::Inspect, GroupId(0), NodeId::NONE)
        };
        if let Some(key) = key {
            header.tag = auth::tag(key, &header, &[]);
        }
        // A refused port may be a node that is about to start: only the time-out ends this.
        let sent = socket.send(&header.to_bytes());
        socket.set_read_timeout(Some(left.min(Duration::from_millis(100))))?;
        let received = sent.and_then(|_| socket.recv(&mut answer));
        let Ok(length) = received else {
            std::thread::sleep(left.min(Duration::from_millis(2)));
            continue;
        };
        let datagram = answer.get(..length).unwrap_or_default();
        if let Parsed::Ours(reply, value) = wire::parse(datagram, MAX_REPORT_BYTES)
            && reply.kind == Kind::Report
            && key.is_none_or(|key| auth::is_authentic(key, &reply, value))
            && let Ok(report) = serde_json::from_slice(value)
        {
            return Ok(report);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        format!("no answer from {address}"),
    ))
}
