//! What the kernel's refusals mean, and what mends them.

use super::{Mode, XdpError};
use aya::programs::{ProgramError, loaded_programs};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use std::error::Error;
use std::io;
use std::os::fd::AsRawFd as _;

/// What an error and what caused it say, and what to do where this process may not.
pub(super) fn told(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for error in chain(error) {
        let said = error.to_string();
        // Several say what caused them as well.
        if !text.contains(&said) {
            if !text.is_empty() {
                text += ": ";
            }
            text += &said;
        }
    }
    if errno(error) == Some(libc::EPERM) {
        text += "; it takes CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON: run it as root, or \
                 `sudo setcap cap_bpf,cap_net_admin,cap_perfmon+ep` the nearwire binary";
    }
    text
}

/// The refusal of an attachment. Looks at the interface, in the calling thread's namespace.
pub(super) fn attach(
    program: &'static str,
    interface: &str,
    mode: Mode,
    source: ProgramError,
) -> XdpError {
    XdpError::Attach {
        program,
        interface: interface.to_owned(),
        mode: mode.name(),
        said: attachment_told(&source, interface, mode),
        source: Box::new(source),
    }
}

/// What it says, and what mends it.
fn attachment_told(error: &ProgramError, interface: &str, mode: Mode) -> String {
    let mut text = told(error);
    let is_native = mode == Mode::Native;
    match errno(error) {
        Some(libc::EBUSY | libc::EEXIST) => {
            text += &match program_at(interface) {
                Some(program) => format!("; {program} is there already"),
                None => "; another program is there already".into(),
            };
            text += &format!(
                ": end what loaded it, or `ip link set dev {interface} xdp off` if nothing did"
            );
        }
        Some(libc::EOPNOTSUPP) if is_native => {
            text +=
                "; its driver has no native XDP, or not for its present MTU: use the generic mode";
        }
        Some(libc::ERANGE | libc::EINVAL | libc::E2BIG) if is_native => {
            text += &format!(
                "; mostly its MTU, or its peer's, is too large for frames in one piece: \
                 `ip link set dev {interface} mtu 1500`, or use the generic mode"
            );
        }
        _ => {}
    }
    text
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

fn errno(error: &(dyn Error + 'static)) -> Option<i32> {
    chain(error).find_map(|error| error.downcast_ref::<io::Error>()?.raw_os_error())
}

/// The number and name of the XDP program at an interface.
fn program_at(interface: &str) -> Option<String> {
    let id = program_id_at(interface)?;
    let name = loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == id)
        .and_then(|program| Some(program.name_as_str()?.to_owned()));
    Some(match name {
        Some(name) => format!("program {id} ({name})"),
        None => format!("program {id}"),
    })
}

// From the kernel's `linux/if_link.h`.
const IFLA_XDP: u16 = 43;
const IFLA_XDP_PROG_ID: u16 = 4;
/// `struct nlmsghdr`, and `struct ifinfomsg` behind it, in bytes.
const HEADER_BYTES: usize = 16;
/// Longest answer in bytes: one interface.
const ANSWER_BYTES: usize = 32 * 1024;

/// Asks by rtnetlink, which is the only one to know of programs that no link holds.
fn program_id_at(interface: &str) -> Option<u32> {
    let index = if_nametoindex(interface).ok()?;
    let mut request = Vec::with_capacity(2 * HEADER_BYTES);
    request.extend((2 * HEADER_BYTES as u32).to_ne_bytes());
    request.extend(libc::RTM_GETLINK.to_ne_bytes());
    request.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    request.extend([0; HEADER_BYTES - 8]);
    request.extend([0; 4]);
    request.extend(index.to_ne_bytes());
    request.extend([0; HEADER_BYTES - 8]);
    let route = SockProtocol::NetlinkRoute;
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, route).ok()?;
    send(socket.as_raw_fd(), &request, MsgFlags::empty()).ok()?;
    let mut answer = vec![0; ANSWER_BYTES];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).ok()?;
    let attributes = answer.get(2 * HEADER_BYTES..length)?;
    let id = attribute(attribute(attributes, IFLA_XDP)?, IFLA_XDP_PROG_ID)?;
    Some(u32::from_ne_bytes(*id.first_chunk()?))
}

/// What an attribute of this type among them holds. Each is length, type, and so many bytes, up to
/// the next multiple of four.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (head, _) = attributes.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & !(libc::NLA_F_NESTED as u16);
        if kind == wanted {
            return attributes.get(4..length);
        }
        // Whatever is shorter than its own head would be looked at for ever.
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aya::sys::SyscallError;

    fn refused(errno: i32) -> ProgramError {
        ProgramError::SyscallError(SyscallError {
            call: "bpf",
            io_error: io::Error::from_raw_os_error(errno),
        })
    }

    #[test]
    fn who_may_not_is_told_what_it_takes() {
        let said = told(&refused(libc::EPERM));
        let begins = "`bpf` failed: Operation not permitted (os error 1); it takes CAP_BPF";
        assert!(said.starts_with(begins), "{said}");
        assert_eq!(
            told(&io::Error::from_raw_os_error(libc::EACCES)),
            "Permission denied (os error 13)"
        );
    }

    #[test]
    fn each_refused_attachment_has_its_remedy() {
        let said = |errno, mode: Mode| attachment_told(&refused(errno), "lo", mode);
        for (errno, mode, remedy) in [
            (libc::EBUSY, Mode::Native, "`ip link set dev lo xdp off`"),
            (
                libc::EEXIST,
                Mode::Generic,
                "another program is there already",
            ),
            (libc::EOPNOTSUPP, Mode::Native, "use the generic mode"),
            (libc::ERANGE, Mode::Native, "`ip link set dev lo mtu 1500`"),
            (libc::EINVAL, Mode::Native, "`ip link set dev lo mtu 1500`"),
        ] {
            let said = said(errno, mode);
            assert!(said.contains(remedy), "{said}");
        }
        assert!(!said(libc::EINVAL, Mode::Generic).contains("mtu"));
    }

    #[test]
    fn attributes_are_found_among_others_and_bad_ones_end_the_search() {
        let bytes = [6, 0, 1, 0, 7, 7, 0, 0, 8, 0, 2, 128, 1, 2, 3, 4];
        assert_eq!(attribute(&bytes, 1), Some(&[7, 7][..]));
        assert_eq!(attribute(&bytes, 2), Some(&[1, 2, 3, 4][..]));
        assert_eq!(attribute(&bytes, 3), None);
        assert_eq!(attribute(&[0; 9], 3), None);
        assert_eq!(attribute(&bytes[..14], 2), None);
    }
}
