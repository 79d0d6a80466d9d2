//! Waits until no program that was running when it was called runs any more.
//!
//! The kernel promises this to whoever changes a map of maps: the update returns after an RCU grace
//! period (`maybe_wait_bpf_programs` in `kernel/bpf/syscall.c`, Linux 4.20), and XDP programs run
//! within one. So one is made for the purpose and changed once.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;

/// `union bpf_attr`, as far as `BPF_MAP_CREATE` needs it.
#[repr(C)]
struct Create {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
}

/// `union bpf_attr`, as far as `BPF_MAP_UPDATE_ELEM` needs it.
#[repr(C)]
struct Update {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Waits out all runs of all programs. `array` is any map of the plain array type.
pub(super) fn wait_for_programs(array: BorrowedFd<'_>) -> io::Result<()> {
    let create = Create {
        map_type: BPF_MAP_TYPE_ARRAY_OF_MAPS,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        map_flags: 0,
        inner_map_fd: array.as_raw_fd() as u32,
    };
    // SAFETY: the structure is what the command reads, and holds no pointers.
    let made = unsafe { bpf(BPF_MAP_CREATE, &create) }?;
    // SAFETY: the kernel has just made this descriptor for us.
    let outer = unsafe { OwnedFd::from_raw_fd(made) };
    let (key, value) = (0_u32, array.as_raw_fd());
    let update = Update {
        map_fd: outer.as_raw_fd() as u32,
        padding: 0,
        key: (&raw const key) as u64,
        value: (&raw const value) as u64,
        flags: 0,
    };
    // SAFETY: key and value are four bytes each and live until the call returns.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &update) }.map(drop)
}

/// # Safety
/// `attributes` must be what `command` reads, and its pointers must hold until the call returns.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    let (start, bytes) = (std::ptr::from_ref(attributes), size_of::<T>());
    // SAFETY: the kernel reads no more than `bytes`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, start, bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as libc::c_int)
}
