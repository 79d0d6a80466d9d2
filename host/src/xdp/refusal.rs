//! What the kernel's refusals mean, and what mends them.

use super::{Mode, Occupant, XdpError};
use aya::programs::ProgramError;
use std::error::Error;
use std::io;

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

/// What bpffs says, and what mends it.
pub(super) fn bpffs_told(error: &(dyn Error + 'static)) -> String {
    let remedy = match errno(error) {
        Some(libc::EROFS) => "; `mount -o remount,rw` the bpffs",
        Some(libc::EACCES) => {
            "; `chown -R` the directory to the user of this node, and let it pass those above"
        }
        Some(libc::ENOSPC | libc::ENOMEM) => "; raise memory.max of this node's control group",
        _ => "",
    };
    told(error) + remedy
}

/// The refusal of an attachment. Looks at the interface, in the calling thread's namespace.
pub(super) fn attach(
    program: &'static str,
    interface: &str,
    mode: Mode,
    source: ProgramError,
) -> XdpError {
    let (interface, said) = (
        interface.to_owned(),
        attachment_told(&source, interface, mode),
    );
    let is_taken = matches!(errno(&source), Some(libc::EBUSY | libc::EEXIST));
    // One is enough: the kernel takes no second program, whatever the modes.
    let mut occupants = Occupant::on(&interface).unwrap_or_default().into_iter();
    match occupants.next().filter(|_| is_taken) {
        Some(occupant) => XdpError::Occupied {
            program,
            interface,
            mode: mode.name(),
            occupant,
        },
        None => XdpError::Attach {
            program,
            interface,
            mode: mode.name(),
            said,
            source: Box::new(source),
        },
    }
}

/// What it says, and what mends it.
fn attachment_told(error: &ProgramError, interface: &str, mode: Mode) -> String {
    let mut text = told(error);
    let is_native = mode == Mode::Native;
    match errno(error) {
        Some(libc::EBUSY | libc::EEXIST) => {
            text += &format!(
                "; another program is there already: end what loaded it, or `ip link set dev \
                 {interface} xdp off` if nothing did"
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

#[cfg(test)]
mod tests {
    use super::*;
    use aya::pin::PinError;
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
    fn each_refused_pin_has_its_remedy() {
        for (errno, remedy) in [
            (libc::EROFS, "remount,rw"),
            (libc::EACCES, "chown -R"),
            (libc::ENOSPC, "memory.max"),
            (libc::EPERM, "it takes CAP_BPF"),
        ] {
            let error = PinError::from(SyscallError {
                call: "BPF_OBJ_PIN",
                io_error: io::Error::from_raw_os_error(errno),
            });
            let said = bpffs_told(&error);
            assert!(said.contains(remedy), "{said}");
        }
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
}
