//! Batches of datagrams to and from a socket: recvmmsg and sendmmsg.
#![allow(unsafe_code)]

use crate::{Packets, Received};
use libc::{AF_INET, AF_INET6, iovec, mmsghdr, sockaddr_in, sockaddr_in6, sockaddr_storage};
use std::io;
use std::mem::zeroed;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Most datagrams of one system call.
pub(crate) const BATCH: usize = 64;

/// Room for one received datagram in bytes: no UDP payload is longer, so none is ever cut.
const DATAGRAM_BYTES: usize = 64 * 1024;

/// The datagrams of the last receive.
///
/// The memory comes zeroed from the kernel and only what datagrams fill is ever touched.
pub struct Inbox {
    bytes: Vec<u8>,
    headers: Headers,
    count: usize,
}

/// Message headers with the memory that they point into.
struct Headers {
    messages: Vec<mmsghdr>,
    iovecs: Vec<iovec>,
    names: Vec<sockaddr_storage>,
}

// SAFETY: the raw pointers of a header point into `iovecs`, `names` and a buffer that the owner
// keeps beside the headers (or, for sending, are written anew before each use). All of them are
// heap blocks that move with their owner and that no one else holds.
unsafe impl Send for Headers {}

impl Headers {
    fn new() -> Self {
        // SAFETY: all three are plain C structs for which all-zero is valid: null pointers with
        // zero lengths, and the unspecified address family.
        let (message, vector, name) = unsafe { (zeroed(), zeroed(), zeroed()) };
        let mut headers = Self {
            messages: vec![message; BATCH],
            iovecs: vec![vector; BATCH],
            names: vec![name; BATCH],
        };
        let (iovecs, names) = (headers.iovecs.as_mut_ptr(), headers.names.as_mut_ptr());
        for (index, message) in headers.messages.iter_mut().enumerate() {
            let header = &mut message.msg_hdr;
            header.msg_iov = iovecs.wrapping_add(index);
            header.msg_iovlen = 1;
            header.msg_name = names.wrapping_add(index).cast();
        }
        headers
    }
}

impl Inbox {
    pub(crate) fn new() -> Self {
        let mut bytes = vec![0; BATCH * DATAGRAM_BYTES];
        let mut headers = Headers::new();
        for (vector, buffer) in headers
            .iovecs
            .iter_mut()
            .zip(bytes.chunks_mut(DATAGRAM_BYTES))
        {
            *vector = iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: DATAGRAM_BYTES,
            };
        }
        // Every header counts as used, so that the first receive prepares all of them.
        let mut inbox = Self {
            bytes,
            headers,
            count: BATCH,
        };
        inbox.prepare();
        inbox
    }

    /// Forgets the last datagrams. The kernel has shortened only the names of those.
    fn prepare(&mut self) {
        for message in &mut self.headers.messages[..self.count] {
            message.msg_hdr.msg_namelen = size_of::<sockaddr_storage>() as u32;
        }
        self.count = 0;
    }

    /// Replaces the datagrams by those that wait in the socket, at most [`BATCH`].
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.prepare();
        // SAFETY: the headers point to one live vector and one live name each (see `Headers`), the
        // vectors to disjoint parts of `bytes`; `&mut self` keeps everyone else away meanwhile.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.messages.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        self.count = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        Ok(self.count)
    }
}

impl Received for Inbox {
    fn count(&self) -> usize {
        self.count
    }

    #[inline]
    fn packet(&self, index: usize) -> (SocketAddr, &[u8]) {
        debug_assert!(index < self.count);
        let start = index * DATAGRAM_BYTES;
        let length = self.headers.messages[index].msg_len as usize;
        (
            decode(&self.headers.names[index]),
            &self.bytes[start..start + length],
        )
    }
}

/// Headers for datagrams on their way out.
pub(crate) struct Outgoing {
    headers: Headers,
    family: Family,
}

/// The address family of a socket.
#[derive(Clone, Copy)]
enum Family {
    V4,
    /// Also carries IPv4, as mapped addresses.
    V6,
}

impl Outgoing {
    /// For a socket that is bound to `local`.
    pub(crate) fn new(local: SocketAddr) -> Self {
        let family = if local.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        };
        Self {
            headers: Headers::new(),
            family,
        }
    }

    /// Sends the packets from `first` on, at most [`BATCH`]. Returns how many the kernel took; an
    /// error is about packet `first`.
    pub(crate) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        packets: &Packets,
        first: usize,
    ) -> io::Result<usize> {
        let Headers {
            messages,
            iovecs,
            names,
        } = &mut self.headers;
        let count = (packets.len() - first).min(BATCH);
        for (index, message) in messages[..count].iter_mut().enumerate() {
            let (to, payload) = packets.packet(first + index);
            message.msg_hdr.msg_namelen = encode(to, self.family, &mut names[index]);
            iovecs[index].iov_base = payload.as_ptr().cast_mut().cast();
            iovecs[index].iov_len = payload.len();
        }
        // SAFETY: the first `count` headers point to live vectors and names, the vectors to
        // payloads that `packets` keeps borrowed; sendmmsg only reads them and writes `msg_len`.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                count as u32,
                libc::MSG_DONTWAIT as _,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

/// How many datagrams the kernel dropped because the socket's receive buffer was full, modulo 2^32.
pub(crate) fn overrun(socket: BorrowedFd<'_>) -> io::Result<u32> {
    // linux/sock_diag.h, since Linux 4.12: nine counters, the last of them the drops.
    const SK_MEMINFO_DROPS: usize = 8;
    let mut counters = [0u32; SK_MEMINFO_DROPS + 1];
    let mut length = size_of_val(&counters) as u32;
    // SAFETY: the kernel writes at most `length` bytes into `counters` and the number written into
    // `length`; both outlive the call.
    let refused = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            counters.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if refused == 0 {
        Ok(counters[SK_MEMINFO_DROPS])
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The address that the kernel wrote. IPv4 on an IPv6 socket comes out as IPv4, so that a peer has
/// one name whatever we listen on.
fn decode(name: &sockaddr_storage) -> SocketAddr {
    match i32::from(name.ss_family) {
        AF_INET => {
            // SAFETY: a storage is at least as long and as aligned as any socket address, and the
            // family says which one it holds.
            let name = unsafe { &*ptr::from_ref(name).cast::<sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
            SocketAddr::from((ip, u16::from_be(name.sin_port)))
        }
        AF_INET6 => {
            // SAFETY: as above.
            let name = unsafe { &*ptr::from_ref(name).cast::<sockaddr_in6>() };
            let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
            let port = u16::from_be(name.sin6_port);
            match ip.to_canonical() {
                IpAddr::V4(ip) => SocketAddr::from((ip, port)),
                IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, name.sin6_scope_id).into(),
            }
        }
        _ => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
    }
}

/// Writes `address` for a socket of `family` and returns its length in bytes. IPv6 on an IPv4
/// socket is left to the kernel to refuse.
fn encode(address: SocketAddr, family: Family, name: &mut sockaddr_storage) -> u32 {
    let address = match (address, family) {
        (SocketAddr::V4(v4), Family::V4) => {
            // SAFETY: a storage is at least as long and as aligned as any socket address, and
            // `&mut` makes this the only access.
            let name = unsafe { &mut *ptr::from_mut(name).cast::<sockaddr_in>() };
            name.sin_family = AF_INET as u16;
            name.sin_port = v4.port().to_be();
            name.sin_addr.s_addr = u32::from(*v4.ip()).to_be();
            return size_of::<sockaddr_in>() as u32;
        }
        (SocketAddr::V4(v4), Family::V6) => {
            SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0)
        }
        (SocketAddr::V6(v6), Family::V4 | Family::V6) => v6,
    };
    // SAFETY: as above.
    let name = unsafe { &mut *ptr::from_mut(name).cast::<sockaddr_in6>() };
    name.sin6_family = AF_INET6 as u16;
    name.sin6_port = address.port().to_be();
    name.sin6_flowinfo = 0;
    name.sin6_addr.s6_addr = address.ip().octets();
    name.sin6_scope_id = address.scope_id();
    size_of::<sockaddr_in6>() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(address: &str, family: Family) -> SocketAddr {
        // SAFETY: all-zero is the unspecified address family.
        let mut name = unsafe { zeroed() };
        encode(address.parse().unwrap(), family, &mut name);
        decode(&name)
    }

    #[test]
    fn an_address_survives_the_kernels_form() {
        for address in ["127.0.0.1:4747", "255.254.253.252:65535"] {
            assert_eq!(round_trip(address, Family::V4), address.parse().unwrap());
            assert_eq!(
                round_trip(address, Family::V6),
                address.parse().unwrap(),
                "mapped"
            );
        }
        for address in ["[::1]:1", "[fe80::1%7]:4747", "[fd4e:57::1]:4747"] {
            assert_eq!(round_trip(address, Family::V6), address.parse().unwrap());
        }
    }
}
