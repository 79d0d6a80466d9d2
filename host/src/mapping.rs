//! The words of a region that others share: a file, or the maps of a program in the kernel, in one
//! piece of this process's memory.
#![allow(unsafe_code)]

use aya::maps::MapData;
use consensus::region::Layout;
use consensus::sync::AtomicU64;
use consensus::{GroupId, NodeId};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::ptr;

/// The words of a region. Only atomics are handed out, so that other processes (a program in the
/// kernel, an inspecting tool) may share them.
#[derive(Debug)]
pub struct Mapping {
    start: *mut libc::c_void,
    bytes: usize,
}

impl Mapping {
    /// Maps a whole file, which must not be cut while it is mapped.
    ///
    /// # Errors
    /// The system refuses.
    pub fn of_file(file: &File, bytes: usize) -> io::Result<Self> {
        let start = map(ptr::null_mut(), bytes, Some(file.as_fd()))?;
        Ok(Self { start, bytes })
    }

    /// Maps the header, the peers, the groups and the ring entries behind each other, as in a file:
    /// each begins on a page.
    ///
    /// # Errors
    /// The system refuses.
    pub fn of_maps(layout: &Layout, sections: [&MapData; 4]) -> io::Result<Self> {
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
            map(place, ends[1] - ends[0], Some(section.fd().as_fd()))?;
        }
        Ok(mapping)
    }

    /// Maps the first `bytes` bytes of one map.
    ///
    /// # Errors
    /// The system refuses.
    pub fn of_map(section: &MapData, bytes: usize) -> io::Result<Self> {
        let start = map(ptr::null_mut(), bytes, Some(section.fd().as_fd()))?;
        Ok(Self { start, bytes })
    }

    fn reserve(bytes: usize) -> io::Result<Self> {
        let start = map(ptr::null_mut(), bytes, None)?;
        Ok(Self { start, bytes })
    }
}

/// Maps what is behind `fd`, or reserves a range, somewhere or in a place that was reserved.
fn map(
    place: *mut libc::c_void,
    bytes: usize,
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<*mut libc::c_void> {
    let (protection, flags, file) = match fd {
        None => (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        Some(fd) => {
            let fixed = if place.is_null() { 0 } else { libc::MAP_FIXED };
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            (protection, libc::MAP_SHARED | fixed, fd.as_raw_fd())
        }
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
        // SAFETY: the range is page-aligned and lives as long as `self`; `AtomicU64` has the size
        // and bit validity of `u64`; whoever shares the words writes them by atomics and single
        // stores, and nobody holds a plain reference.
        unsafe { std::slice::from_raw_parts(self.start.cast(), words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped for `self`, which is the last to know of it.
        unsafe { libc::munmap(self.start, self.bytes) };
    }
}

// SAFETY: the words are shared with others as atomics already.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mapping {}
