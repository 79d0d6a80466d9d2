//! Snapshots of all groups: written by one thread of their own, read piece by piece for those who
//! lag.

use crate::snapshot_file::{Newest, Snapshot, SnapshotDirectory, SnapshotError};
use consensus::state_machine::{Frozen, SnapshotId};
use consensus::{GroupId, Slot};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// Snapshots that are open to be read at once: of a thousand groups few lag.
const MAX_OPEN: usize = 8;

struct Job {
    group: GroupId,
    slot: Slot,
    frozen: Box<dyn Frozen>,
}

type Written = (GroupId, Result<Option<Snapshot>, SnapshotError>);

/// Each group's newest snapshot, and the thread that writes the next one.
pub struct Snapshots {
    /// Which they are. Those of groups that nobody asks for are not kept open.
    newest: BTreeMap<GroupId, (SnapshotId, PathBuf)>,
    /// Those read last, the last one at the end.
    open: Vec<(GroupId, Snapshot)>,
    jobs: Option<Sender<Job>>,
    done: Receiver<Written>,
    busy: bool,
    writer: Option<thread::JoinHandle<()>>,
}

/// Tells `found` what the first `groups` groups have where `path_of` says. Groups without a directory
/// have none.
///
/// # Errors
/// A directory cannot be read, or `found` refuses.
pub fn look<E: From<SnapshotError>>(
    path_of: &impl Fn(GroupId) -> PathBuf,
    groups: u16,
    mut found: impl FnMut(GroupId, Newest) -> Result<(), E>,
) -> Result<(), E> {
    for group in (0..groups).map(GroupId) {
        let path = path_of(group);
        if path.is_dir() {
            found(group, SnapshotDirectory::open(path, group)?.newest()?)?;
        }
    }
    Ok(())
}

impl Snapshots {
    /// Starts the writer, which makes the directories that `path_of` names when it needs them.
    /// `newest` was found in them. `wake` is called when a snapshot is on disk.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(
        path_of: impl Fn(GroupId) -> PathBuf + Send + 'static,
        newest: BTreeMap<GroupId, Snapshot>,
        wake: impl Fn() + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let (report, done) = channel();
        let writer = thread::Builder::new()
            .name("snapshot".into())
            .spawn(move || {
                for job in queue {
                    let group = job.group;
                    if report.send((group, write(path_of(group), job))).is_err() {
                        return;
                    }
                    wake();
                }
            })?;
        let mut snapshots = Self {
            newest: BTreeMap::new(),
            open: Vec::new(),
            jobs: Some(jobs),
            done,
            busy: false,
            writer: Some(writer),
        };
        for (group, snapshot) in newest {
            snapshots.note(group, snapshot);
        }
        Ok(snapshots)
    }

    fn note(&mut self, group: GroupId, snapshot: Snapshot) {
        let known = (snapshot.id(), snapshot.path().to_owned());
        self.newest.insert(group, known);
        self.keep_open(group, snapshot);
    }

    fn keep_open(&mut self, group: GroupId, snapshot: Snapshot) {
        self.open.retain(|(other, _)| *other != group);
        if self.open.len() == MAX_OPEN {
            self.open.remove(0);
        }
        self.open.push((group, snapshot));
    }

    /// Whether a snapshot is being written.
    pub const fn is_busy(&self) -> bool {
        self.busy
    }

    /// Writes a snapshot; one at a time.
    pub fn write(&mut self, group: GroupId, slot: Slot, frozen: Box<dyn Frozen>) {
        debug_assert!(!self.busy);
        if let Some(jobs) = &self.jobs {
            let job = Job {
                group,
                slot,
                frozen,
            };
            self.busy = jobs.send(job).is_ok();
        }
    }

    /// The snapshot that has been written since, or why it could not be.
    pub fn poll(&mut self) -> Option<(GroupId, Result<Slot, SnapshotError>)> {
        let (group, result) = self.done.try_recv().ok()?;
        self.busy = false;
        match result {
            Ok(Some(snapshot)) => {
                let slot = snapshot.id().slot;
                self.note(group, snapshot);
                Some((group, Ok(slot)))
            }
            Ok(None) => None,
            Err(error) => Some((group, Err(error))),
        }
    }

    /// Writes the last states, behind the snapshot that is being written, and waits until they are
    /// on disk.
    ///
    /// # Errors
    /// One cannot be written.
    pub fn finish(
        mut self,
        states: impl Iterator<Item = (GroupId, Slot, Box<dyn Frozen>)>,
    ) -> Result<(), SnapshotError> {
        for (group, slot, frozen) in states {
            if slot > self.slot(group)
                && let Some(jobs) = &self.jobs
            {
                let _ = jobs.send(Job {
                    group,
                    slot,
                    frozen,
                });
            }
        }
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
        // The last one of a group counts: what came before it may be made up for.
        let last: BTreeMap<_, _> = self.done.try_iter().collect();
        last.into_values().try_for_each(|result| result.map(drop))
    }

    /// The last slot of a group's newest snapshot.
    pub fn slot(&self, group: GroupId) -> Slot {
        let newest = self.newest.get(&group);
        newest.map_or(Slot::NONE, |(id, _)| id.slot)
    }

    /// Reads a group's newest snapshot at `offset`: its slot, its length, and the bytes read.
    pub fn read(
        &mut self,
        group: GroupId,
        offset: u64,
        out: &mut [u8],
    ) -> Option<(Slot, u64, usize)> {
        let (id, path) = self.newest.get(&group)?;
        let id = *id;
        if !self.open.iter().any(|(other, _)| *other == group) {
            let snapshot = Snapshot::reopen(id, path.clone()).ok()?;
            self.keep_open(group, snapshot);
        }
        let (_, snapshot) = self.open.iter().find(|(other, _)| *other == group)?;
        let count = id.bytes.saturating_sub(offset).min(out.len() as u64) as usize;
        let piece = out.get_mut(..count)?;
        if count > 0 {
            snapshot.read_at(offset, piece).ok()?;
        }
        Some((id.slot, id.bytes, count))
    }
}

fn write(path: PathBuf, mut job: Job) -> Result<Option<Snapshot>, SnapshotError> {
    let mut directory = SnapshotDirectory::open(path, job.group)?;
    directory.write(job.slot, |out| job.frozen.next_chunk(out))?;
    let Newest { snapshot, .. } = directory.newest()?;
    Ok(snapshot)
}
