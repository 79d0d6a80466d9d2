//! The disk as the journal sees it, and the machine's own.

use super::Flush;
use super::format::BLOCK_BYTES;
use super::uring::Ring;
use crate::data_directory::make_directory;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Where segments live. Tests replace it by one that loses power.
pub trait Disk: Send + Sync {
    /// Names the code path that a durable write takes, such as `io_uring O_DIRECT`.
    fn path(&self) -> &'static str;

    /// Makes `directory` and its parents if they are missing.
    ///
    /// # Errors
    /// Whatever the system answers, here and below.
    fn create_directory(&self, directory: &Path) -> io::Result<()>;

    /// The names in `directory`.
    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>>;

    /// Makes a file of `bytes` zeroes, every byte written and flushed: an extent that was only
    /// allocated costs a metadata write at its first use.
    fn create(&self, path: &Path, bytes: u64) -> io::Result<()>;

    /// Opens a file.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames a file; durable after [`Disk::flush_directory`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file; durable after [`Disk::flush_directory`].
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in `directory` durable.
    fn flush_directory(&self, directory: &Path) -> io::Result<()>;
}

/// One file of a [`Disk`]. Offsets, lengths and buffers are multiples of 4,096.
pub trait DiskFile: Send + Sync {
    /// The length in bytes.
    ///
    /// # Errors
    /// Whatever the system answers, here and below.
    fn bytes(&self) -> io::Result<u64>;

    /// Fills `into` from `offset`; the file must reach so far.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes `bytes` at `offset`; durable after [`DiskFile::flush`].
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes everything durable that was written before. After an error nothing is known of those
    /// writes, and no later success says anything about them.
    fn flush(&self) -> io::Result<()>;

    /// Writes and flushes in one go where the path can do that.
    fn write_durably(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_at(offset, bytes)?;
        self.flush()
    }
}

/// What a file is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// To read what is on the disk, not what a cache holds of writes that never reached it.
    Read,
    /// To write.
    Write,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
pub(super) struct Block(pub(super) [u8; BLOCK_BYTES]);

/// Zeroed memory that is aligned as O_DIRECT wants it.
pub(super) struct Blocks(Vec<Block>);

impl Blocks {
    pub(super) fn new(bytes: usize) -> Self {
        Self(vec![Block([0; BLOCK_BYTES]); bytes.div_ceil(BLOCK_BYTES)])
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        self.0.as_slice().as_bytes()
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        self.0.as_mut_slice().as_mut_bytes()
    }
}

/// How a [`RealDisk`] makes a write durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Durably {
    UringDirect,
    PwriteDirect,
    PwriteBuffered,
    Behind,
}

/// The machine's file system, by the fastest durable path that it accepts.
#[derive(Clone, Copy, Debug)]
pub struct RealDisk {
    durably: Durably,
}

impl RealDisk {
    /// Finds out by writing one block to a file in `directory`, which must exist, what the file
    /// system and the kernel accept. [`Flush::Behind`] writes to the page cache, so it is not
    /// tried there.
    ///
    /// # Errors
    /// Not even a plain write succeeds.
    pub fn probe(directory: &Path, flush: Flush) -> io::Result<Self> {
        if flush == Flush::Behind {
            return Ok(Self {
                durably: Durably::Behind,
            });
        }
        let path = directory.join("probe.tmp");
        let durably = Self::probe_file(&path);
        fs::remove_file(&path)?;
        Ok(Self { durably: durably? })
    }

    fn probe_file(path: &Path) -> io::Result<Durably> {
        File::create(path)?;
        let block = Blocks::new(BLOCK_BYTES);
        // tmpfs before Linux 6.6 refuses O_DIRECT at open; other file systems refuse the write.
        let direct = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(path);
        if let Ok(file) = direct
            && file.write_all_at(block.as_slice(), 0).is_ok()
        {
            let by_ring = Ring::new()
                .and_then(|mut ring| ring.write_durably(&file, 0, block.as_slice()))
                .is_ok_and(|written| written == BLOCK_BYTES);
            return Ok(if by_ring {
                Durably::UringDirect
            } else {
                Durably::PwriteDirect
            });
        }
        let file = OpenOptions::new().write(true).open(path)?;
        file.write_all_at(block.as_slice(), 0)?;
        file.sync_data()?;
        Ok(Durably::PwriteBuffered)
    }

    fn flags(self) -> i32 {
        match self.durably {
            Durably::UringDirect | Durably::PwriteDirect => libc::O_DIRECT,
            Durably::PwriteBuffered | Durably::Behind => 0,
        }
    }
}

const ZEROES_BYTES: usize = 1024 * 1024;

impl Disk for RealDisk {
    fn path(&self) -> &'static str {
        match self.durably {
            Durably::UringDirect => "io_uring O_DIRECT",
            Durably::PwriteDirect => "pwrite O_DIRECT + fdatasync",
            Durably::PwriteBuffered => "pwrite buffered + fdatasync",
            Durably::Behind => "pwrite buffered, fdatasync behind",
        }
    }

    fn create_directory(&self, directory: &Path) -> io::Result<()> {
        make_directory(directory)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(directory)?
            .map(|entry| Ok(entry?.file_name()))
            .collect()
    }

    fn create(&self, path: &Path, bytes: u64) -> io::Result<()> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(self.flags())
            .open(path)?;
        // One allocation first, so that a full disk answers at once and extents are long.
        match nix::fcntl::fallocate(
            &file,
            nix::fcntl::FallocateFlags::empty(),
            0,
            libc::off_t::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?,
        ) {
            Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP) => {}
            Err(errno) => return Err(errno.into()),
        }
        let zeroes = Blocks::new(ZEROES_BYTES);
        let mut offset = 0;
        while offset < bytes {
            let length = usize::try_from(bytes - offset)
                .unwrap_or(usize::MAX)
                .min(ZEROES_BYTES);
            file.write_all_at(&zeroes.as_slice()[..length], offset)?;
            offset += length as u64;
        }
        file.sync_all()
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(access == Access::Write)
            .custom_flags(self.flags())
            .open(path)?;
        if access == Access::Read && self.flags() & libc::O_DIRECT == 0 {
            // A failed write-back leaves pages that look clean and are not on the disk (Rebello et
            // al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020). Flush what
            // can be flushed, then drop the cache, so that what is read is what is stored.
            file.sync_data()?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
        let ring = match (self.durably, access) {
            (Durably::UringDirect, Access::Write) => Some(Mutex::new(Ring::new()?)),
            (Durably::UringDirect, Access::Read)
            | (Durably::PwriteDirect | Durably::PwriteBuffered | Durably::Behind, _) => None,
        };
        Ok(Arc::new(RealFile { file, ring }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn flush_directory(&self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }
}

struct RealFile {
    file: File,
    ring: Option<Mutex<Ring>>,
}

impl DiskFile for RealFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write_durably(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let Some(ring) = &self.ring else {
            self.write_at(offset, bytes)?;
            return self.flush();
        };
        let mut ring = ring.lock().unwrap_or_else(PoisonError::into_inner);
        let mut written = 0;
        while written < bytes.len() {
            match ring.write_durably(&self.file, offset + written as u64, &bytes[written..])? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                some => written += some,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PATHS: [Durably; 4] = [
        Durably::UringDirect,
        Durably::PwriteDirect,
        Durably::PwriteBuffered,
        Durably::Behind,
    ];

    #[test]
    fn every_path_stores_what_it_is_given() {
        let scratch = tempfile::tempdir().unwrap();
        let probed = RealDisk::probe(scratch.path(), Flush::Before).unwrap();
        let from = PATHS
            .iter()
            .position(|path| *path == probed.durably)
            .unwrap();
        // Where a better path is refused, the ones behind it are what serves.
        for durably in &PATHS[from..] {
            let disk = RealDisk { durably: *durably };
            let path = scratch.path().join(format!("{durably:?}"));
            disk.create(&path, 256 * 1024).unwrap();
            let mut blocks = Blocks::new(64 * 1024);
            for (i, byte) in blocks.as_mut_slice().iter_mut().enumerate() {
                *byte = (i % 251) as u8;
            }
            let file = disk.open(&path, Access::Write).unwrap();
            file.write_durably(4096, blocks.as_slice()).unwrap();
            file.write_at(128 * 1024, &blocks.as_slice()[..8192])
                .unwrap();
            file.flush().unwrap();
            drop(file);
            let file = disk.open(&path, Access::Read).unwrap();
            assert_eq!(file.bytes().unwrap(), 256 * 1024);
            let mut found = Blocks::new(64 * 1024);
            file.read_at(4096, found.as_mut_slice()).unwrap();
            assert!(found.as_slice() == blocks.as_slice(), "{}", disk.path());
            file.read_at(128 * 1024, &mut found.as_mut_slice()[..8192])
                .unwrap();
            assert!(
                found.as_slice()[..8192] == blocks.as_slice()[..8192],
                "{}",
                disk.path()
            );
        }
        assert!(!scratch.path().join("probe.tmp").exists());
    }

    #[test]
    fn a_write_through_the_ring_fails_with_the_systems_own_error() {
        let Ok(mut ring) = Ring::new() else {
            eprintln!("skipped: this kernel or sandbox forbids io_uring");
            return;
        };
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = ring.write_durably(&full, 0, &[1; 512]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }
}
