//! That one process at a time uses the pins of a region.

use super::XdpError;
use super::pins::Pins;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::thread;
use std::time::Duration;

/// Whoever only looks whether a directory is held holds it for less.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(5);

/// Who has the pins of a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holder {
    /// Nobody.
    Nobody,
    /// A process; its number, as far as it can be seen from here.
    Process(Option<u32>),
}

/// A lock on a directory of pins. It ends with its process, however that ends.
#[derive(Debug)]
pub struct Hold {
    directory: File,
}

impl Hold {
    /// For a child that works on the pins: they are held until it has ended, too, and a process that
    /// starts meanwhile does not open what the child is about to have voted on.
    pub(super) fn for_child(&self) -> io::Result<File> {
        self.directory.try_clone()
    }
}

impl Pins {
    /// Takes the directory, which must be there, for this process.
    ///
    /// # Errors
    /// [`XdpError::Held`] while another process has it; or the system refuses.
    pub fn hold(&self) -> Result<Hold, XdpError> {
        let directory = File::open(self.directory()).map_err(self.refused("open"))?;
        for _ in 0..TRIES {
            match directory.try_lock() {
                Ok(()) => return Ok(Hold { directory }),
                Err(TryLockError::WouldBlock) => thread::sleep(PAUSE),
                Err(TryLockError::Error(error)) => return Err(self.refused("lock")(error)),
            }
        }
        Err(XdpError::Held {
            path: self.directory().to_owned(),
            process: locker(&directory),
        })
    }

    /// Who holds the directory.
    ///
    /// # Errors
    /// The system refuses.
    pub fn holder(&self) -> io::Result<Holder> {
        let directory = File::open(self.directory())?;
        match directory.try_lock_shared() {
            Ok(()) => Ok(Holder::Nobody),
            Err(TryLockError::WouldBlock) => Ok(Holder::Process(locker(&directory))),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// The process that has locked a file: `proc_locks(5)`.
fn locker(file: &File) -> Option<u32> {
    let metadata = file.metadata().ok()?;
    let (device, inode) = (metadata.dev(), metadata.ino());
    let (major, minor) = (libc::major(device), libc::minor(device));
    let wanted = format!("{major:02x}:{minor:02x}:{inode}");
    let locks = fs::read_to_string("/proc/locks").ok()?;
    // 1: FLOCK  ADVISORY  WRITE 21651 00:27:5526303 0 EOF
    locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(3);
        let (kind, process, place) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "WRITE" && place == wanted).then(|| process.parse().ok())?
    })
}
