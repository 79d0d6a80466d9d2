//! The software engine's memory: a region in a mapped file, so that votes survive the process.
#![allow(unsafe_code)]

use crate::kill_point::kill_point;
use consensus::memory::Memory;
use consensus::region::{self, Birth, Layout, OpenError, Region, Restored};
use consensus::sync::AtomicU64;
use consensus::{Epoch, GroupId, NodeId};
use memmap2::MmapMut;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// The region's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The system refuses.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is not this acceptor's region.
    #[error("{}: {source}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: OpenError,
    },
}

/// The words of a mapped file. Only atomics are handed out, so that other processes (a program in
/// the kernel, an inspecting tool) may share them.
#[derive(Debug)]
pub struct Mapping {
    map: MmapMut,
}

impl AsRef<[AtomicU64]> for Mapping {
    fn as_ref(&self) -> &[AtomicU64] {
        let words = self.map.len() / size_of::<AtomicU64>();
        // SAFETY: a mapping is page-aligned and lives as long as `self`; `AtomicU64` has the size
        // and bit validity of `u64`; nobody holds a plain reference into the map.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), words) }
    }
}

/// A region in a mapped file, with named places to die at.
#[derive(Debug)]
pub struct Software {
    region: Region<Mapping>,
}

impl Software {
    /// Makes the file and a fresh region in it, whose leases last `lease_ns`. An existing file is
    /// replaced.
    ///
    /// # Errors
    /// The system refuses, for instance because the disk is full.
    pub fn create(
        path: &Path,
        layout: Layout,
        birth: Birth,
        epoch: Epoch,
        lease_ns: u64,
    ) -> Result<Self, EngineError> {
        let refused = |doing| {
            move |source| EngineError::Io {
                doing,
                path: path.to_owned(),
                source,
            }
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.open(path).map_err(refused("make region"))?;
        // Every byte is allocated now: a full disk is an error here, not a SIGBUS later.
        allocate(&file, layout.bytes()).map_err(refused("allocate region"))?;
        let mapping = map(&file).map_err(refused("map region"))?;
        let region = Region::create(mapping, layout, birth, epoch, lease_ns).map_err(|source| {
            EngineError::Open {
                path: path.to_owned(),
                source,
            }
        })?;
        Ok(Self { region })
    }

    /// Opens the region that an earlier life left. The data directory's lock proves that no other
    /// engine is live on it.
    ///
    /// # Errors
    /// There is none, or it is another's, damaged, or of another life.
    pub fn open(
        path: &Path,
        layout: Layout,
        birth: Birth,
    ) -> Result<(Self, Restored), EngineError> {
        let refused = |doing| {
            move |source| EngineError::Io {
                doing,
                path: path.to_owned(),
                source,
            }
        };
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .open(path)
            .map_err(refused("open region"))?;
        let length = file.metadata().map_err(refused("look at region"))?.len();
        let open = |source| EngineError::Open {
            path: path.to_owned(),
            source,
        };
        if length != layout.bytes() as u64 && length < 4096 {
            let found = length as usize;
            return Err(open(OpenError::Size {
                found,
                wanted: layout.bytes(),
            }));
        }
        let mapping = map(&file).map_err(refused("map region"))?;
        let (region, restored) = Region::open(mapping, layout, birth).map_err(open)?;
        Ok((Self { region }, restored))
    }
}

fn allocate(file: &File, bytes: usize) -> io::Result<()> {
    // SAFETY: a plain system call on a file that we own.
    let result = unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes as libc::off_t) };
    match result {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

fn map(file: &File) -> io::Result<Mapping> {
    // SAFETY: the data directory's lock keeps other nodes away; the words are read and written as
    // atomics only, and the file is never truncated while it is mapped.
    let map = unsafe { MmapMut::map_mut(file)? };
    Ok(Mapping { map })
}

impl Memory for Software {
    type At = usize;

    #[inline]
    fn group(&self, group: GroupId) -> Option<usize> {
        self.region.group(group)
    }

    #[inline]
    fn entry(&self, index: u64) -> Option<usize> {
        self.region.entry(index)
    }

    #[inline]
    fn peer(&self, node: NodeId) -> Option<usize> {
        self.region.peer(node)
    }

    #[inline]
    fn load(&self, at: usize, word: usize) -> u64 {
        self.region.load(at, word)
    }

    #[inline]
    fn store(&self, at: usize, word: usize, value: u64) {
        kill_point("step.before-store");
        self.region.store(at, word, value);
    }

    #[inline]
    fn compare_exchange(&self, at: usize, word: usize, current: u64, new: u64) -> Result<u64, u64> {
        let result = self.region.compare_exchange(at, word, current, new);
        if word == region::entry::LOCK && new == current | 1 && result.is_ok() {
            kill_point("step.locked");
        }
        result
    }

    #[inline]
    fn exchange(&self, at: usize, word: usize, new: u64) -> u64 {
        kill_point("step.before-release");
        let before = self.region.exchange(at, word, new);
        kill_point("step.released");
        before
    }

    #[inline]
    fn fetch_add(&self, at: usize, word: usize, add: u64) -> u64 {
        self.region.fetch_add(at, word, add)
    }
}
