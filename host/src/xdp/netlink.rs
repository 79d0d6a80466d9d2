//! What the kernel says of the interfaces of the calling thread's network namespace, over netlink.

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use std::io;
use std::os::fd::AsRawFd as _;

/// `struct nlmsghdr` in `linux/netlink.h`, in bytes.
const HEADER_BYTES: usize = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_MULTI: u16 = 2;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The kernel fills no more than this of a buffer at a time.
const ANSWER_BYTES: usize = 32 * 1024;

const RTM_GETLINK: u16 = 18;
/// `struct ifinfomsg` in `linux/rtnetlink.h`, in bytes.
const LINK_BYTES: usize = 16;
const ARPHRD_LOOPBACK: u16 = 772;
/// Attributes of a link: `linux/if_link.h`.
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const IFLA_XDP_HW_PROG_ID: u16 = 7;
const IFLA_PARENT_DEV_NAME: u16 = 56;
const IFLA_PARENT_DEV_BUS_NAME: u16 = 57;

/// `linux/genetlink.h`.
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const GENL_HEADER_BYTES: usize = 4;
/// `linux/netdev.h`, Linux 6.3.
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_BASIC: u64 = 1;
const NETDEV_XDP_ACT_HW_OFFLOAD: u64 = 16;

/// A network interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its number in this namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Longest IP packet in bytes.
    pub mtu: u32,
    /// Queues in and out.
    pub queues: (u32, u32),
    /// What it is: the driver, where there is a device, else the kind of a virtual one.
    pub driver: Option<String>,
    /// The XDP programs on it: how they are called, and their numbers.
    pub programs: Vec<(&'static str, u32)>,
}

/// What an interface's driver can do for XDP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// Call programs itself.
    pub native: bool,
    /// Have programs run on the card.
    pub hardware: bool,
}

/// All interfaces of the calling thread's network namespace.
///
/// # Errors
/// The system refuses.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let answers = ask(
        SockProtocol::NetlinkRoute,
        RTM_GETLINK,
        NLM_F_DUMP,
        &[0; LINK_BYTES],
    )?;
    Ok(answers.iter().filter_map(|link| parsed(link)).collect())
}

/// The interface of this name in the calling thread's network namespace.
///
/// # Errors
/// The system refuses.
pub fn interface(name: &str) -> io::Result<Option<Interface>> {
    let named = attribute(IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
    let question = [&[0; LINK_BYTES], &*named].concat();
    match ask(SockProtocol::NetlinkRoute, RTM_GETLINK, 0, &question) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        answers => Ok(answers?.first().and_then(|link| parsed(link))),
    }
}

fn parsed(link: &[u8]) -> Option<Interface> {
    let kind = u16::from_ne_bytes(*link.get(2..)?.first_chunk()?);
    let index = u32::from_ne_bytes(*link.get(4..)?.first_chunk()?);
    let mut found = Interface {
        index,
        name: String::new(),
        mtu: 0,
        queues: (0, 0),
        driver: (kind == ARPHRD_LOOPBACK).then(|| "loopback".to_owned()),
        programs: Vec::new(),
    };
    let (mut device, mut bus) = (None, None);
    for (attribute, value) in attributes(link.get(LINK_BYTES..)?) {
        match attribute {
            IFLA_IFNAME => found.name = text(value),
            IFLA_MTU => found.mtu = number(value),
            IFLA_NUM_RX_QUEUES => found.queues.0 = number(value),
            IFLA_NUM_TX_QUEUES => found.queues.1 = number(value),
            IFLA_LINKINFO => {
                let kind = attributes(value).find(|(what, _)| *what == IFLA_INFO_KIND);
                found.driver = kind.map(|(_, value)| text(value)).or(found.driver);
            }
            IFLA_XDP => found.programs = programs(value),
            IFLA_PARENT_DEV_NAME => device = Some(text(value)),
            IFLA_PARENT_DEV_BUS_NAME => bus = Some(text(value)),
            _ => {}
        }
    }
    if let Some((bus, device)) = bus.zip(device) {
        // Buses are in sysfs whatever the network namespace, unlike /sys/class/net.
        let driver = std::fs::read_link(format!("/sys/bus/{bus}/devices/{device}/driver"));
        let name = driver
            .ok()
            .and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
        found.driver = name.or(found.driver);
    }
    Some(found)
}

fn programs(xdp: &[u8]) -> Vec<(&'static str, u32)> {
    let of_mode = |(attribute, value)| {
        let mode = match attribute {
            IFLA_XDP_DRV_PROG_ID => "native",
            IFLA_XDP_SKB_PROG_ID => "generic",
            IFLA_XDP_HW_PROG_ID => "hardware",
            _ => return None,
        };
        Some((mode, number(value))).filter(|(_, id)| *id != 0)
    };
    attributes(xdp).filter_map(of_mode).collect()
}

/// What the driver of the interface with this number says that it can do. `None` if the kernel
/// cannot tell: before Linux 6.3.
///
/// # Errors
/// The system refuses.
pub fn features(index: u32) -> io::Result<Option<Features>> {
    let named = attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let family = match general(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &named) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        answers => answers?,
    };
    let Some(id) = within(&family, CTRL_ATTR_FAMILY_ID) else {
        return Ok(None);
    };
    let id = id
        .first_chunk()
        .map_or(0, |bytes| u16::from_ne_bytes(*bytes));
    let asked = attribute(NETDEV_A_DEV_IFINDEX, &index.to_ne_bytes());
    let device = general(id, NETDEV_CMD_DEV_GET, &asked)?;
    let bits = within(&device, NETDEV_A_DEV_XDP_FEATURES).and_then(<[u8]>::first_chunk);
    Ok(bits.map(|bits| {
        let bits = u64::from_ne_bytes(*bits);
        Features {
            native: bits & NETDEV_XDP_ACT_BASIC != 0,
            hardware: bits & NETDEV_XDP_ACT_HW_OFFLOAD != 0,
        }
    }))
}

/// Asks a family of generic netlink.
fn general(family: u16, command: u8, attributes: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let question = [&[command, 1, 0, 0], attributes].concat();
    ask(SockProtocol::NetlinkGeneric, family, 0, &question)
}

/// An attribute of the first of a generic family's answers.
fn within(answers: &[Vec<u8>], wanted: u16) -> Option<&[u8]> {
    let answer = answers.first()?.get(GENL_HEADER_BYTES..)?;
    attributes(answer)
        .find(|(attribute, _)| *attribute == wanted)
        .map(|(_, value)| value)
}

/// Asks the kernel, and gives what its answers carry.
fn ask(protocol: SockProtocol, kind: u16, flags: u16, question: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        protocol,
    )?;
    let mut message = Vec::with_capacity(HEADER_BYTES + question.len());
    message.extend(((HEADER_BYTES + question.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence and sender: one socket asks one question.
    message.extend([0; 8]);
    message.extend(question);
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answers = Vec::new();
    let mut room = vec![0; ANSWER_BYTES];
    loop {
        let length = recv(socket.as_raw_fd(), &mut room, MsgFlags::empty())?;
        let mut rest = &room[..length];
        while let Some(header) = rest.first_chunk::<HEADER_BYTES>() {
            let bytes = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let kind = u16::from_ne_bytes([header[4], header[5]]);
            let flags = u16::from_ne_bytes([header[6], header[7]]);
            let body = rest.get(HEADER_BYTES..bytes).ok_or_else(cut_off)?;
            match kind {
                NLMSG_DONE => return Ok(answers),
                NLMSG_ERROR => {
                    let code = body
                        .first_chunk()
                        .map_or(0, |code| i32::from_ne_bytes(*code));
                    return match code {
                        0 => Ok(answers),
                        code => Err(io::Error::from_raw_os_error(-code)),
                    };
                }
                _ => answers.push(body.to_vec()),
            }
            if flags & NLM_F_MULTI == 0 {
                return Ok(answers);
            }
            rest = rest.get(bytes.next_multiple_of(4)..).unwrap_or_default();
        }
        if length == 0 {
            return Err(cut_off());
        }
    }
}

fn cut_off() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "netlink: an answer is cut off",
    )
}

/// An attribute: its length, its kind, its value, and up to a multiple of four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + value.len());
    out.extend((4 + value.len() as u16).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<4>()?;
        let bytes = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        // Two bits say how the value is put down.
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = rest.get(4..bytes)?;
        rest = rest.get(bytes.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&value[..end.unwrap_or(value.len())]).into_owned()
}

fn number(value: &[u8]) -> u32 {
    value
        .first_chunk()
        .map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_listed_without_a_program() {
        let all = interfaces().expect("netlink answers everybody");
        let found = all.iter().find(|interface| interface.name == "lo");
        let found = found.expect("every namespace has one");
        assert_eq!(found.driver.as_deref(), Some("loopback"));
        assert!(found.mtu > 0 && found.index > 0, "{found:?}");
        assert!(found.queues.0 > 0, "{found:?}");
    }

    #[test]
    fn an_interface_is_found_by_its_name_or_is_not_there() {
        let all = interfaces().expect("netlink answers everybody");
        let wanted = all.iter().find(|interface| interface.name == "lo");
        let found = interface("lo").expect("netlink answers everybody");
        assert_eq!(found.as_ref(), wanted);
        assert_eq!(
            interface("nearwire0").expect("netlink answers everybody"),
            None
        );
    }

    #[test]
    fn loopback_has_no_native_mode() {
        let found = interface("lo").expect("netlink answers everybody");
        let features = features(found.expect("every namespace has one").index);
        if let Some(features) = features.expect("netlink answers everybody") {
            assert!(!features.native && !features.hardware);
        }
    }

    #[test]
    fn attributes_are_found_among_others_and_bad_ones_end_the_search() {
        let find = |bytes, wanted| {
            let found = attributes(bytes).find(|(attribute, _)| *attribute == wanted);
            found.map(|(_, value)| value)
        };
        let bytes = [6, 0, 1, 0, 7, 7, 0, 0, 8, 0, 2, 128, 1, 2, 3, 4];
        assert_eq!(find(&bytes, 1), Some(&[7, 7][..]));
        assert_eq!(find(&bytes, 2), Some(&[1, 2, 3, 4][..]));
        assert_eq!(find(&bytes, 3), None);
        assert_eq!(find(&[0; 9], 3), None);
        assert_eq!(find(&bytes[..14], 2), None);
    }

    #[test]
    fn what_was_put_down_is_found_again() {
        let bytes = [
            attribute(3, b"eth0\0"),
            attribute(4, &1500_u32.to_ne_bytes()),
        ]
        .concat();
        let found: Vec<_> = attributes(&bytes).collect();
        assert_eq!(found[0].0, 3);
        assert_eq!(text(found[0].1), "eth0");
        assert_eq!((found[1].0, number(found[1].1)), (4, 1500));
        assert_eq!(attributes(&bytes[..5]).count(), 0, "cut off");
    }
}
