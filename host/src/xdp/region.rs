//! A region whose sections are BPF maps, in one piece of this process's memory.
#![allow(unsafe_code)]

use aya::maps::MapData;
use consensus::region::Layout;
use consensus::sync::AtomicU64;
use consensus::{GroupId, NodeId};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr;

/// The words of a region that a program in the kernel steps as well.
#[derive(Debug)]
pub struct Mapping {
    start: *mut libc::c_void,
    bytes: usize,
}

impl Mapping {
    /// Maps the header, the peers, the groups and the ring entries behind each other, as in a file:
    /// each begins on a page.
    pub(super) fn new(layout: &Layout, sections: [&MapData; 4]) -> io::Result<Self> {
        let starts = [
            Some(0),
            layout.peer_at(NodeId(0)),
            layout.group_at(GroupId(0)),
            layout.entry_at(0),
            Some(layout.words()),
        ];
        let starts = starts.map(|words| words.unwrap_or(0) * size_of::<AtomicU64>());
        // Reserved as one, so that nothing else comes in between.
        let mapping = Self::reserve(layout.bytes())?;
        for (section, ends) in sections.iter().zip(starts.windows(2)) {
            let place = mapping.start.wrapping_byte_add(ends[0]);
            map(place, ends[1] - ends[0], Backing::Map(section))?;
        }
        Ok(mapping)
    }

    /// Maps the first `bytes` bytes of one map.
    pub(super) fn of(section: &MapData, bytes: usize) -> io::Result<Self> {
        let mapping = Self::reserve(bytes)?;
        map(mapping.start, bytes, Backing::Map(section))?;
        Ok(mapping)
    }

    fn reserve(bytes: usize) -> io::Result<Self> {
        let start = map(ptr::null_mut(), bytes, Backing::None)?;
        Ok(Self { start, bytes })
    }
}

#[derive(Clone, Copy)]
enum Backing<'a> {
    None,
    Map(&'a MapData),
}

fn map(
    place: *mut libc::c_void,
    bytes: usize,
    backing: Backing<'_>,
) -> io::Result<*mut libc::c_void> {
    let (protection, flags, file) = match backing {
        Backing::None => (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        Backing::Map(map) => (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED,
            map.fd().as_fd().as_raw_fd(),
        ),
    };
    // SAFETY: a fixed place is within the range that was reserved for the same mapping.
    let start = unsafe { libc::mmap(place, bytes, protection, flags, file, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(start)
}

impl AsRef<[AtomicU64]> for Mapping {
    fn as_ref(&self) -> &[AtomicU64] {
        let words = self.bytes / size_of::<AtomicU64>();
        // SAFETY: the range is page-aligned and lives as long as `self`; the program in the kernel
        // writes its words by atomics and single stores, and nobody holds a plain reference.
        unsafe { std::slice::from_raw_parts(self.start.cast(), words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`, and `self` was the last to know of it.
        unsafe { libc::munmap(self.start, self.bytes) };
    }
}

// SAFETY: the words are shared with the kernel's processors as atomics already.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mapping {}
