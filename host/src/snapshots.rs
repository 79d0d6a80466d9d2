//! Snapshots of one group: written by a thread of their own, read piece by piece for those who
//! lag.

use crate::snapshot_file::{Newest, Snapshot, SnapshotDirectory, SnapshotError};
use consensus::Slot;
use consensus::state_machine::Frozen;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

struct Job {
    slot: Slot,
    frozen: Box<dyn Frozen>,
}

/// The newest snapshot, and the thread that writes the next one.
pub struct Snapshots {
    newest: Option<Snapshot>,
    jobs: Option<Sender<Job>>,
    done: Receiver<Result<Option<Snapshot>, SnapshotError>>,
    busy: bool,
    writer: Option<thread::JoinHandle<()>>,
}

impl Snapshots {
    /// Starts the writer over `directory`, of which `newest` was found. `wake` is called when a
    /// snapshot is on disk.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(
        mut directory: SnapshotDirectory,
        newest: Option<Snapshot>,
        wake: impl Fn() + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let (report, done) = channel();
        let writer = thread::Builder::new()
            .name("snapshot".into())
            .spawn(move || {
                for mut job in queue {
                    let written = directory.write(job.slot, |out| job.frozen.next_chunk(out));
                    let result = written.and_then(|_| {
                        let Newest { snapshot, .. } = directory.newest()?;
                        Ok(snapshot)
                    });
                    if report.send(result).is_err() {
                        return;
                    }
                    wake();
                }
            })?;
        Ok(Self {
            newest,
            jobs: Some(jobs),
            done,
            busy: false,
            writer: Some(writer),
        })
    }

    /// Whether a snapshot is being written.
    pub const fn is_busy(&self) -> bool {
        self.busy
    }

    /// Writes a snapshot; one at a time.
    pub fn write(&mut self, slot: Slot, frozen: Box<dyn Frozen>) {
        debug_assert!(!self.busy);
        if let Some(jobs) = &self.jobs {
            self.busy = jobs.send(Job { slot, frozen }).is_ok();
        }
    }

    /// The snapshot that has been written since, or why it could not be.
    pub fn poll(&mut self) -> Option<Result<Slot, SnapshotError>> {
        let result = self.done.try_recv().ok()?;
        self.busy = false;
        match result {
            Ok(Some(snapshot)) => {
                let slot = snapshot.id().slot;
                self.newest = Some(snapshot);
                Some(Ok(slot))
            }
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// Writes the last state, behind the snapshot that is being written, and waits until it is on
    /// disk.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self, slot: Slot, frozen: Box<dyn Frozen>) -> Result<(), SnapshotError> {
        if slot > self.slot()
            && let Some(jobs) = &self.jobs
        {
            let _ = jobs.send(Job { slot, frozen });
        }
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
        self.done.try_iter().last().unwrap_or(Ok(None)).map(drop)
    }

    /// The last slot of the newest snapshot.
    pub fn slot(&self) -> Slot {
        self.newest
            .as_ref()
            .map_or(Slot::NONE, |snapshot| snapshot.id().slot)
    }

    /// Reads the newest snapshot at `offset`: its slot, its length, and the bytes read.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Option<(Slot, u64, usize)> {
        let snapshot = self.newest.as_ref()?;
        let id = snapshot.id();
        let count = id.bytes.saturating_sub(offset).min(out.len() as u64) as usize;
        let piece = out.get_mut(..count)?;
        if count > 0 {
            snapshot.read_at(offset, piece).ok()?;
        }
        Some((id.slot, id.bytes, count))
    }
}
