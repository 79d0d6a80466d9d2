//! One end of a cable, frame by frame.

use nix::ifaddrs::getifaddrs;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike as _, bind,
    recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use nix::unistd::Pid;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

/// An answer that takes longer was lost.
pub const SOON: Duration = Duration::from_secs(5);

/// The other end of the acceptor's cable.
pub struct Cable(OwnedFd);

impl Cable {
    /// On an interface of the calling thread's namespace.
    pub fn on(interface: &str) -> Self {
        let raw = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::empty(),
            SockProtocol::EthAll,
        )
        .expect("CAP_NET_RAW");
        let mut addresses = getifaddrs().expect("the kernel lists interfaces");
        let address = addresses.find_map(|found| {
            let link: LinkAddr = *found.address?.as_link_addr()?;
            (found.interface_name == interface).then_some(link)
        });
        let address = address.expect("the rig has the interface");
        assert_eq!(address.family(), Some(AddressFamily::Packet));
        bind(raw.as_raw_fd(), &address).expect("the interface is up");
        let soon = TimeVal::new(SOON.as_secs() as i64, 0);
        setsockopt(&raw, sockopt::ReceiveTimeout, &soon).expect("a timeout");
        Self(raw)
    }

    pub fn send(&self, frame: &[u8]) {
        let sent = send(self.0.as_raw_fd(), frame, MsgFlags::empty());
        assert_eq!(sent, Ok(frame.len()));
    }

    /// The next frame of which `wanted` makes something.
    pub fn receive<T>(&self, what: &str, wanted: impl Fn(&[u8]) -> Option<T>) -> T {
        let mut room = [0; 4096];
        loop {
            let length = recv(self.0.as_raw_fd(), &mut room, MsgFlags::empty());
            let length = length.unwrap_or_else(|error| panic!("wait for {what}: {error}"));
            if let Some(found) = wanted(&room[..length]) {
                return found;
            }
        }
    }
}

/// Keeps the calling thread on one processor, which sends into one queue, in order.
pub fn pin() {
    let own = Pid::from_raw(0);
    let allowed = sched_getaffinity(own).expect("the kernel says where we may run");
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu) == Ok(true));
    let mut set = CpuSet::new();
    set.set(first.expect("a processor")).expect("it is one");
    sched_setaffinity(own, &set).expect("it is ours");
}
