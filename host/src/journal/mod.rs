//! A write-ahead log of opaque records, flushed by a thread of its own.
//!
//! The worker appends without waiting and without allocating; the writer takes whatever is queued,
//! writes it as one batch, flushes once, and reports how far. A vote may be answered when
//! [`Journal::flushed`] has reached its [`Lsn`]. `docs/journal.md` describes the files, and what
//! recovery takes for an unfinished write and what for damage.
//!
//! ```no_run
//! use nearwire::journal::{Flush, Journal, Options};
//! use std::sync::Arc;
//!
//! let options = Options::new("/var/lib/nearwire/journal", 0x17, Flush::Before);
//! let (recovery, mut journal) = Journal::open(options, Arc::new(|| {}))?;
//! recovery.replay(|lsn, record| println!("{lsn}: {} bytes", record.len()))?;
//! let lsn = journal.append(b"vote").expect("the queue of a new journal is empty");
//! while journal.flushed() < lsn {
//!     assert!(journal.failed().is_none());
//! }
//! # Ok::<(), nearwire::journal::JournalError>(())
//! ```

mod disk;
mod error;
mod format;
mod recovery;
mod segments;
mod shared;
mod statistics;
#[doc(hidden)]
pub mod testing;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod uring;
mod writer;

pub use disk::{Access, Disk, DiskFile, RealDisk};
pub use error::JournalError;
pub use format::{MAX_RECORD_BYTES, MIN_SEGMENT_BYTES};
pub use recovery::{Recovery, TornTail};
pub use statistics::{LATENCY_BUCKETS, Statistics};

use crate::data_directory::make_directory;
use crate::kill_point::kill_point;
use consensus::simulation;
use disk::Blocks;
use rtrb::{Producer, RingBuffer};
use segments::{Finished, Housekeeper, Shelf, Yard};
use shared::{PanicGuard, Shared};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::thread::{self, JoinHandle};
use writer::{Current, FRAME_BYTES, Writer};

/// Bytes that wait for the writer: about a second of what a slow disk flushes.
const QUEUE_BYTES: usize = 4 * 1024 * 1024;

/// A record's place in the journal, from 1, without gaps, never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Before every record.
    pub const NONE: Self = Self(0);

    /// The place after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What [`Journal::flushed`] promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flush {
    /// Reported records survive a power loss: durability `sync`.
    Before,
    /// Reported records are in the page cache and survive the end of this process; they are
    /// flushed within a fraction of a second: durability `async`.
    Behind,
}

/// Where and how to keep a journal.
#[derive(Clone)]
pub struct Options {
    /// Holds nothing but this journal; made if missing. Two processes must not open it at once:
    /// the lock of the [data directory](crate::data_directory) sees to that.
    pub directory: PathBuf,
    /// Whose journal this is, such as a hash of cluster and node.
    pub identity: u64,
    /// When records are reported.
    pub flush: Flush,
    /// The length of a segment, a multiple of 4,096 from [`MIN_SEGMENT_BYTES`].
    pub segment_bytes: u64,
    /// `None` takes the machine's own, by the fastest path that it accepts.
    pub disk: Option<Arc<dyn Disk>>,
}

impl Options {
    /// Segments of 64 MiB on the machine's own disk.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>, identity: u64, flush: Flush) -> Self {
        Self {
            directory: directory.into(),
            identity,
            flush,
            segment_bytes: 64 * 1024 * 1024,
            disk: None,
        }
    }

    fn check(&self) -> Result<(), JournalError> {
        let whole = self
            .segment_bytes
            .is_multiple_of(format::BLOCK_BYTES as u64);
        if whole && self.segment_bytes >= MIN_SEGMENT_BYTES {
            return Ok(());
        }
        Err(JournalError::Option {
            option: "segment_bytes",
            value: self.segment_bytes,
            needs: "a multiple of 4096, at least 131072",
        })
    }
}

/// Whether `directory` holds anything that an earlier life may have journalled.
///
/// # Errors
/// The directory is there but cannot be listed.
pub fn exists(directory: &Path) -> io::Result<bool> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        entries => entries?,
    };
    for entry in entries {
        if entry?.file_name().to_string_lossy().starts_with("segment-") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The worker's end: one producer, which never waits.
///
/// Dropping it writes and flushes what is queued and ends the threads.
pub struct Journal {
    queue: Producer<u8>,
    next: Lsn,
    shared: Arc<Shared>,
    path: &'static str,
    writer: Option<JoinHandle<()>>,
    housekeeper: Option<JoinHandle<()>>,
}

impl Journal {
    /// Reads what the directory holds, begins a new segment behind it, and starts the threads.
    /// `wake` is called after each flush and when the journal fails, on a thread of the journal.
    ///
    /// When this returns, everything in [`Recovery`] is durable, and an unfinished write of the
    /// last life is cut off for good.
    ///
    /// # Errors
    /// The disk refuses, a flushed record is damaged, or the directory is another node's.
    pub fn open(
        options: Options,
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<(Recovery, Self), JournalError> {
        Opening::new(options)?.finish(wake)
    }

    /// Whether [`Journal::append`] of `bytes` would succeed now.
    #[must_use]
    pub fn has_room(&self, bytes: usize) -> bool {
        self.failed().is_none() && self.queue.slots() >= FRAME_BYTES + bytes
    }

    /// Queues a record of at most [`MAX_RECORD_BYTES`]. `None` if the queue is full or the journal
    /// has failed: nothing was queued, and no number was used.
    ///
    /// # Panics
    /// The record is too long.
    pub fn append(&mut self, record: &[u8]) -> Option<Lsn> {
        assert!(record.len() <= MAX_RECORD_BYTES, "a record is bounded");
        if !self.has_room(record.len()) {
            return None;
        }
        let mut chunk = self.queue.write_chunk(FRAME_BYTES + record.len()).ok()?;
        let length = u32::try_from(record.len())
            .expect("just checked")
            .to_le_bytes();
        let (head, tail) = chunk.as_mut_slices();
        scatter(head, tail, &length, record);
        chunk.commit_all();
        let lsn = self.next;
        self.next = lsn.next();
        if let Some(writer) = &self.writer {
            writer.thread().unpark();
        }
        Some(lsn)
    }

    /// The last record that [`Journal::append`] took, or that was recovered.
    #[must_use]
    pub fn appended(&self) -> Lsn {
        Lsn(self.next.0 - 1)
    }

    /// Everything up to this record is reported as [`Flush`] says. Never falls.
    #[must_use]
    pub fn flushed(&self) -> Lsn {
        Lsn(self.shared.flushed.load(Acquire))
    }

    /// Everything up to this record is on stable storage; lags behind [`Journal::flushed`] only
    /// under [`Flush::Behind`].
    #[must_use]
    pub fn durable(&self) -> Lsn {
        Lsn(self.shared.durable.load(Acquire))
    }

    /// Records below `below` are not needed any more. Segments that hold no others are reused,
    /// some time later and not before the [`Recovery`] is gone. Cut only behind a durable snapshot.
    pub fn cut(&mut self, below: Lsn) {
        self.shared.cut.fetch_max(below.0, Release);
        self.shared.unpark_housekeeper();
    }

    /// Why nothing will be reported flushed any more, if so. This is final: the node must stop
    /// answering and be started again.
    #[must_use]
    pub fn failed(&self) -> Option<&JournalError> {
        self.shared.failed()
    }

    /// The code path of a durable write, such as `io_uring O_DIRECT`.
    #[must_use]
    pub fn path(&self) -> &'static str {
        self.path
    }

    /// What has been done since the journal was opened.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.shared.counters.read()
    }

    /// Writes and flushes what is queued and ends the threads.
    ///
    /// # Errors
    /// The journal had failed, or fails now.
    pub fn close(mut self) -> Result<(), JournalError> {
        self.stop();
        let shared = Arc::clone(&self.shared);
        drop(self);
        match Arc::into_inner(shared) {
            Some(shared) => shared.failure.into_inner().map_or(Ok(()), Err),
            None => Ok(()),
        }
    }

    fn stop(&mut self) {
        self.shared.writer_stops.store(true, Release);
        if let Some(writer) = self.writer.take() {
            writer.thread().unpark();
            // A panic has already failed the journal.
            let _ = writer.join();
        }
        self.shared.housekeeper_stops.store(true, Release);
        if let Some(housekeeper) = self.housekeeper.take() {
            housekeeper.thread().unpark();
            let _ = housekeeper.join();
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Copies a frame into a piece of the ring that may wrap round its end.
fn scatter(head: &mut [u8], tail: &mut [u8], length: &[u8; FRAME_BYTES], record: &[u8]) {
    let mut at = 0;
    for piece in [length.as_slice(), record] {
        let first = head.len().saturating_sub(at).min(piece.len());
        if first > 0 {
            head[at..at + first].copy_from_slice(&piece[..first]);
        }
        let rest = &piece[first..];
        let start = (at + first).saturating_sub(head.len());
        tail[start..start + rest.len()].copy_from_slice(rest);
        at += piece.len();
    }
}

/// A journal between reading what is there and serving.
struct Opening {
    shelf: Shelf,
    path: &'static str,
    identity: u64,
    flush: Flush,
    found: recovery::Found,
    life: u64,
}

impl Opening {
    fn new(options: Options) -> Result<Self, JournalError> {
        options.check()?;
        let Options {
            directory,
            identity,
            flush,
            segment_bytes,
            disk,
        } = options;
        let refused = |source| JournalError::Disk {
            doing: "prepare journal directory",
            path: directory.clone(),
            source,
        };
        let disk = match disk {
            Some(disk) => disk,
            None => {
                make_directory(&directory).map_err(refused)?;
                Arc::new(RealDisk::probe(&directory, flush).map_err(refused)?)
            }
        };
        disk.create_directory(&directory).map_err(refused)?;
        let mut found = recovery::scan(disk.as_ref(), &directory, identity)?;
        for path in &found.unfinished {
            disk.remove(path)
                .map_err(JournalError::disk("remove", path))?;
        }
        let life = getrandom::u64().map_err(|error| refused(io::Error::other(error)))?;
        let spares = std::mem::take(&mut found.spares);
        Ok(Self {
            path: disk.path(),
            shelf: Shelf {
                disk,
                directory,
                segment_bytes,
                spares,
            },
            identity,
            flush,
            found,
            life,
        })
    }

    fn finish(mut self, wake: shared::Wake) -> Result<(Recovery, Journal), JournalError> {
        if let Some(number) = self.found.unbegun {
            self.shelf.give_back(number)?;
        }
        kill_point("journal.recovery.before-new-segment");
        let next = self.found.next;
        let last = Lsn(next.0 - 1);
        let fresh = self.shelf.take(self.found.next_number)?;
        let yard = Yard {
            wanted: None,
            ready: None,
            refused: None,
            finished: VecDeque::from_iter(self.found.parts.iter().map(|part| Finished {
                number: part.number,
                end: part.end,
                file: None,
            })),
            current: Arc::clone(&fresh.file),
        };
        let shared = Arc::new(Shared::new(last, yard, wake));
        let (producer, consumer) = RingBuffer::new(QUEUE_BYTES);
        let mut writer = Writer {
            queue: consumer,
            shared: Arc::clone(&shared),
            flush: self.flush,
            identity: self.identity,
            directory: self.shelf.directory.clone(),
            segment: Current::new(fresh, self.life, next),
            buffer: Blocks::new(Writer::BUFFER_BYTES),
        };
        // From here on the records end where this segment begins, whatever an unfinished write
        // left behind.
        writer.begin()?;
        kill_point("journal.recovery.after-new-segment");
        for number in std::mem::take(&mut self.found.dead) {
            self.shelf.give_back(number)?;
        }
        let hold = Arc::new(());
        let housekeeper = Housekeeper {
            shelf: self.shelf,
            shared: Arc::clone(&shared),
            flush: self.flush,
            hold: Arc::clone(&hold),
        };
        let recovery = Recovery {
            parts: self.found.parts,
            first: self.found.first,
            last,
            torn: self.found.torn,
            _hold: hold,
        };
        let mut journal = Journal {
            queue: producer,
            next,
            shared,
            path: self.path,
            writer: None,
            housekeeper: None,
        };
        journal.writer = Some(spawn("journal", &journal.shared, || writer.run())?);
        journal.housekeeper = Some(spawn("journal-files", &journal.shared, || {
            housekeeper.run();
        })?);
        journal.introduce();
        Ok((recovery, journal))
    }
}

impl Journal {
    /// Tells the threads of each other. Either may have looked for the other already, so both are
    /// woken.
    fn introduce(&self) {
        if let (Some(writer), Some(housekeeper)) = (&self.writer, &self.housekeeper) {
            let _ = self.shared.writer.set(writer.thread().clone());
            let _ = self.shared.housekeeper.set(housekeeper.thread().clone());
            writer.thread().unpark();
            housekeeper.thread().unpark();
        }
    }
}

fn spawn(
    name: &str,
    shared: &Arc<Shared>,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, JournalError> {
    let guard = PanicGuard(Arc::clone(shared));
    let mutation = simulation::mutation();
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let _guard = guard;
            simulation::mutate(mutation);
            run();
        })
        .map_err(JournalError::Thread)
}
