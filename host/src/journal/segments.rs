//! The thread that makes segments ahead of the writer, takes old ones back, and flushes behind.

use super::disk::{Access, Disk, DiskFile};
use super::recovery::{segment_path, spare_path};
use super::shared::Shared;
use super::{Flush, JournalError, Lsn};
use crate::kill_point::kill_point;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How long the page cache may hold records that were not flushed, under [`Flush::Behind`].
const FLUSH_BEHIND: Duration = Duration::from_millis(200);
/// Files kept for reuse besides the segment that is ready.
const SPARES: usize = 2;

/// A segment with a number and a file, to which nothing has been written yet.
pub(super) struct Fresh {
    pub(super) number: u64,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) bytes: u64,
}

/// A segment to which nothing will be written any more.
pub(super) struct Finished {
    pub(super) number: u64,
    /// One past its last record.
    pub(super) end: Lsn,
    /// Until it has been flushed.
    pub(super) file: Option<Arc<dyn DiskFile>>,
}

/// What the writer and the housekeeper hand each other. The writer takes the lock when it changes
/// segments, never for a record.
pub(super) struct Yard {
    /// The writer has begun its segment and will want this number next.
    pub(super) wanted: Option<u64>,
    pub(super) ready: Option<Fresh>,
    /// Why there is no next segment. A cut may still free one, so this fails the journal only when
    /// the writer has nowhere to write.
    pub(super) refused: Option<JournalError>,
    pub(super) finished: VecDeque<Finished>,
    pub(super) current: Arc<dyn DiskFile>,
}

/// The files of a journal.
pub(super) struct Shelf {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) directory: PathBuf,
    pub(super) segment_bytes: u64,
    pub(super) spares: Vec<u64>,
}

impl Shelf {
    /// Gives a spare, or a new file, the number `number`.
    pub(super) fn take(&mut self, number: u64) -> Result<Fresh, JournalError> {
        let path = segment_path(&self.directory, number);
        while let Some(spare) = self.spares.pop() {
            let spare = spare_path(&self.directory, spare);
            let file = self
                .disk
                .open(&spare, Access::Write)
                .map_err(JournalError::disk("open spare", &spare))?;
            let bytes = file
                .bytes()
                .map_err(JournalError::disk("measure spare", &spare))?;
            if bytes == self.segment_bytes {
                self.disk
                    .rename(&spare, &path)
                    .map_err(JournalError::disk("rename spare", &spare))?;
                self.flush_names()?;
                return Ok(Fresh {
                    number,
                    file,
                    bytes,
                });
            }
            // Left from another setting of the segment size.
            drop(file);
            self.disk
                .remove(&spare)
                .map_err(JournalError::disk("remove spare", &spare))?;
        }
        let unfinished = self.directory.join("segment.tmp");
        if let Err(error) = self.disk.create(&unfinished, self.segment_bytes) {
            // Whatever was allocated goes back: the disk is full enough.
            let _ = self.disk.remove(&unfinished);
            return Err(JournalError::disk("make segment", unfinished)(error));
        }
        kill_point("journal.create.before-rename");
        self.disk
            .rename(&unfinished, &path)
            .map_err(JournalError::disk("rename segment", &unfinished))?;
        self.flush_names()?;
        let file = self
            .disk
            .open(&path, Access::Write)
            .map_err(JournalError::disk("open segment", &path))?;
        Ok(Fresh {
            number,
            file,
            bytes: self.segment_bytes,
        })
    }

    /// Turns segment `number`, whose records nobody needs, into a spare.
    pub(super) fn give_back(&mut self, number: u64) -> Result<(), JournalError> {
        let path = segment_path(&self.directory, number);
        kill_point("journal.recycle.before-rename");
        if self.spares.len() < SPARES {
            self.disk
                .rename(&path, &spare_path(&self.directory, number))
                .map_err(JournalError::disk("give back segment", &path))?;
            self.spares.push(number);
        } else {
            self.disk
                .remove(&path)
                .map_err(JournalError::disk("remove segment", &path))?;
        }
        kill_point("journal.recycle.after-rename");
        // A newer segment must never be gone while an older one is still there: recovery would
        // take the gap for damage.
        self.flush_names()
    }

    fn flush_names(&self) -> Result<(), JournalError> {
        self.disk
            .flush_directory(&self.directory)
            .map_err(JournalError::disk("flush directory", &self.directory))
    }
}

pub(super) fn lock(yard: &Mutex<Yard>) -> MutexGuard<'_, Yard> {
    yard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The housekeeping thread's own state.
pub(super) struct Housekeeper {
    pub(super) shelf: Shelf,
    pub(super) shared: Arc<Shared>,
    pub(super) flush: Flush,
    /// Held by a [`Recovery`](super::Recovery) that still reads the old segments.
    pub(super) hold: Arc<()>,
}

impl Housekeeper {
    pub(super) fn run(mut self) {
        while !self.shared.housekeeper_stops.load(Acquire) {
            if let Err(error) = self.round() {
                self.shared.poison(error);
                return;
            }
            match self.flush {
                Flush::Before => thread::park(),
                Flush::Behind => thread::park_timeout(FLUSH_BEHIND),
            }
        }
        if self.flush == Flush::Behind
            && let Err(error) = self.flush_behind()
        {
            self.shared.poison(error);
        }
    }

    fn round(&mut self) -> Result<(), JournalError> {
        if self.flush == Flush::Behind {
            self.flush_behind()?;
        }
        self.give_back_cut()?;
        self.make_next()
    }

    /// Flushes what the writer has left in the page cache.
    fn flush_behind(&mut self) -> Result<(), JournalError> {
        let written = self.shared.flushed.load(Acquire);
        let mut files: Vec<Arc<dyn DiskFile>> = Vec::new();
        {
            let mut yard = lock(&self.shared.yard);
            files.extend(
                yard.finished
                    .iter_mut()
                    .filter_map(|segment| segment.file.take()),
            );
            files.push(Arc::clone(&yard.current));
        }
        if written == self.shared.durable.load(Relaxed) && files.len() == 1 && written > 0 {
            return Ok(());
        }
        for file in files {
            file.flush()
                .map_err(JournalError::disk("flush", &self.shelf.directory))?;
        }
        self.shared.durable.store(written, Release);
        Ok(())
    }

    fn give_back_cut(&mut self) -> Result<(), JournalError> {
        let below = Lsn(self.shared.cut.load(Acquire));
        if Arc::strong_count(&self.hold) > 1 {
            return Ok(());
        }
        loop {
            let number = {
                let mut yard = lock(&self.shared.yard);
                match yard.finished.front() {
                    Some(oldest) if oldest.end <= below => {
                        yard.finished.pop_front().map(|oldest| oldest.number)
                    }
                    Some(_) | None => None,
                }
            };
            let Some(number) = number else {
                return Ok(());
            };
            self.shelf.give_back(number)?;
            self.shared.counters.segments_recycled.fetch_add(1, Relaxed);
        }
    }

    fn make_next(&mut self) -> Result<(), JournalError> {
        let Some(number) = lock(&self.shared.yard).wanted else {
            return Ok(());
        };
        if self.flush == Flush::Behind {
            // Only the newest segment may be without a durable start.
            self.flush_behind()?;
        }
        let made = self.shelf.take(number);
        {
            let mut yard = lock(&self.shared.yard);
            match made {
                Ok(fresh) => {
                    yard.ready = Some(fresh);
                    yard.wanted = None;
                    yard.refused = None;
                }
                Err(error) => yard.refused = Some(error),
            }
        }
        self.shared.writer().unpark();
        Ok(())
    }
}
