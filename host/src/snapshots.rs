//! Snapshots of one group: written, received and made a state of by a thread of their own, and read
//! piece by piece for those who lag.

use crate::snapshot_file::{Arrival, Newest, Snapshot, SnapshotDirectory, SnapshotError};
use consensus::Slot;
use consensus::applied::Applied;
use consensus::replica::Piece;
use consensus::simulation::{Mutation, mutated};
use consensus::state_machine::{Frozen, RestoreError, SnapshotId, StateMachine};
use crc_fast::crc32_iscsi;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// Received bytes go to the thread so many at a time.
const BATCH_BYTES: usize = 256 * 1024;
/// Received bytes that wait for the thread at the most; past it pieces are dropped, and asked for
/// again.
const MAX_QUEUED_BYTES: u64 = 16 << 20;
/// Bytes of a file that are read at once for those who lag.
const AHEAD_BYTES: u64 = 64 * 1024;

enum Job<S> {
    Write {
        slot: Slot,
        frozen: Box<dyn Frozen>,
    },
    /// Another's snapshot begins, or goes on where an earlier life ended.
    Begin(SnapshotId),
    Append(Vec<u8>),
    Finish,
    /// To let go of a large state takes time, too.
    Forget(Box<Applied<S>>),
}

/// What has been done.
#[derive(Debug)]
pub enum Done<S> {
    /// This node's state up to this slot is on disk.
    Written(Slot),
    /// Another's snapshot is on disk, and this is the state in it.
    Received(SnapshotId, Box<Applied<S>>),
}

/// What could not be done.
#[derive(Debug)]
pub enum Failed {
    /// This node's state could not be written.
    Writing(SnapshotError),
    /// Another's snapshot could not be kept, or was damaged; nothing is left of it.
    Receiving(SnapshotId, SnapshotError),
}

/// Another's snapshot on its way here.
struct Receiving {
    id: SnapshotId,
    here: u64,
    batch: Vec<u8>,
    is_finished: bool,
}

type Report<S> = Result<(Option<Snapshot>, Done<S>), Failed>;

/// The newest snapshot, and the thread that writes the next one.
pub struct Snapshots<S> {
    newest: Option<Snapshot>,
    /// Somebody reads the newest one.
    is_read: bool,
    /// Somebody read it when it was the newest. Its file stays open, and so stays.
    former: Option<Snapshot>,
    /// What was read ahead: from which snapshot, and where it begins.
    ahead: (SnapshotId, u64, Vec<u8>),
    receiving: Option<Receiving>,
    /// What an earlier life had received.
    found: Option<(SnapshotId, u64)>,
    queued: Arc<AtomicU64>,
    jobs: Option<Sender<Job<S>>>,
    done: Receiver<Report<S>>,
    busy: bool,
    writer: Option<thread::JoinHandle<()>>,
}

impl<S: StateMachine + Send + 'static> Snapshots<S> {
    /// Starts the writer over `directory`, of which `newest` was found. States are made from the
    /// machine that `blank` returns. `placed` is called on the writer's thread first, and `wake` when
    /// there is something to [poll](Self::poll).
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(
        directory: SnapshotDirectory,
        newest: Option<Snapshot>,
        blank: impl Fn() -> S + Send + 'static,
        placed: impl FnOnce() + Send + 'static,
        wake: impl Fn() + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = channel::<Job<S>>();
        let (report, done) = channel();
        let queued = Arc::new(AtomicU64::new(0));
        let arrival = directory.arrival();
        let found = arrival
            .as_ref()
            .map(|arrival| (arrival.id(), arrival.here()));
        let mut thread = Writer {
            directory,
            arrival,
            queued: Arc::clone(&queued),
            blank,
        };
        let writer = thread::Builder::new()
            .name("snapshot".into())
            .spawn(move || {
                placed();
                for job in queue {
                    if let Some(result) = thread.work(job) {
                        if report.send(result).is_err() {
                            return;
                        }
                        wake();
                    }
                }
            })?;
        Ok(Self {
            newest,
            is_read: false,
            former: None,
            ahead: (SnapshotId::default(), 0, Vec::new()),
            receiving: None,
            found,
            queued,
            jobs: Some(jobs),
            done,
            busy: false,
            writer: Some(writer),
        })
    }
}

impl<S> Snapshots<S> {
    /// Whether a snapshot of this node's state is being written, or a newer one is about to be its
    /// state.
    pub fn is_busy(&self) -> bool {
        let is_finished = |receiving: &Receiving| receiving.is_finished;
        self.busy || self.receiving.as_ref().is_some_and(is_finished)
    }

    fn order(&self, job: Job<S>) -> bool {
        let jobs = self.jobs.as_ref();
        jobs.is_some_and(|jobs| jobs.send(job).is_ok())
    }

    /// Writes a snapshot; one at a time.
    pub fn write(&mut self, slot: Slot, frozen: Box<dyn Frozen>) {
        debug_assert!(!self.is_busy());
        self.busy = self.order(Job::Write { slot, frozen });
    }

    /// Lets go of a state beside the worker.
    pub fn forget(&self, state: Applied<S>) {
        self.order(Job::Forget(Box::new(state)));
    }

    /// What has been done since, or could not be.
    pub fn poll(&mut self) -> Option<Result<Done<S>, Failed>> {
        let result = self.done.try_recv().ok()?;
        match &result {
            Ok((_, Done::Written(_))) | Err(Failed::Writing(_)) => self.busy = false,
            Ok((_, Done::Received(..))) | Err(Failed::Receiving(..)) => self.receiving = None,
        }
        Some(result.map(|(snapshot, done)| {
            if let Some(snapshot) = snapshot {
                let before = self.newest.replace(snapshot);
                if self.is_read {
                    self.former = before;
                }
                self.is_read = false;
            }
            done
        }))
    }

    /// Writes the last state, behind the snapshot that is being written, and waits until it is on
    /// disk.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self, slot: Slot, frozen: Box<dyn Frozen>) -> Result<(), SnapshotError> {
        if slot > self.slot() {
            self.order(Job::Write { slot, frozen });
        }
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
        match self.done.try_iter().last() {
            Some(Err(Failed::Writing(error))) => Err(error),
            _ => Ok(()),
        }
    }

    /// The last slot of the newest snapshot.
    pub fn slot(&self) -> Slot {
        self.newest
            .as_ref()
            .map_or(Slot::NONE, |snapshot| snapshot.id().slot)
    }

    /// Reads at `offset` from the snapshot of this slot and checksum, or from the newest.
    pub fn read(&mut self, of: Option<(Slot, u32)>, offset: u64, out: &mut [u8]) -> Option<Piece> {
        let is_it = |one: &&Snapshot| {
            let id = one.id();
            of.is_none_or(|of| of == (id.slot, id.crc))
        };
        let newest = self.newest.as_ref().filter(is_it);
        self.is_read |= of.is_some() && newest.is_some();
        let snapshot = newest.or(self.former.as_ref().filter(is_it))?;
        let id = snapshot.id();
        let count = id.bytes.saturating_sub(offset).min(out.len() as u64);
        if count > 0 {
            let (of, start, bytes) = &mut self.ahead;
            if *of != id || offset < *start || offset + count > *start + bytes.len() as u64 {
                let length = AHEAD_BYTES.max(count).min(id.bytes - offset);
                bytes.resize(length as usize, 0);
                // Nothing is there until all of it is.
                *of = SnapshotId::default();
                snapshot.read_at(offset, bytes).ok()?;
                (*of, *start) = (id, offset);
            }
            let from = (offset - *start) as usize;
            let piece = bytes.get(from..from + count as usize)?;
            out.get_mut(..count as usize)?.copy_from_slice(piece);
        }
        Some(Piece {
            id,
            bytes: count as usize,
            crc: crc32_iscsi(out.get(..count as usize)?),
        })
    }

    /// Takes a piece of another's snapshot; see
    /// [`Io::keep_piece`](consensus::replica::Io::keep_piece).
    pub fn keep(&mut self, id: SnapshotId, offset: u64, piece: &[u8], crc: u32) -> Option<u64> {
        if self.receiving.as_ref().is_none_or(|one| one.id != id) {
            if !piece.is_empty() {
                // What came of it could not be kept; the beginning comes first again.
                return None;
            }
            let found = self.found.take().filter(|(found, _)| *found == id);
            if !self.order(Job::Begin(id)) {
                return None;
            }
            self.receiving = Some(Receiving {
                id,
                here: found.map_or(0, |(_, here)| here),
                batch: Vec::new(),
                is_finished: false,
            });
        }
        let receiving = self.receiving.as_mut()?;
        let is_sound = crc32_iscsi(piece) == crc || mutated(Mutation::PieceUnchecked);
        let has_room = self.queued.load(Ordering::Relaxed) < MAX_QUEUED_BYTES;
        if !piece.is_empty() && offset == receiving.here && is_sound && has_room {
            receiving.batch.extend_from_slice(piece);
            receiving.here += piece.len() as u64;
        }
        let (here, is_whole) = (receiving.here, receiving.here >= id.bytes);
        let is_full = receiving.batch.len() >= BATCH_BYTES || is_whole;
        if is_full && !receiving.batch.is_empty() {
            let batch = std::mem::take(&mut receiving.batch);
            self.queued.fetch_add(batch.len() as u64, Ordering::Relaxed);
            self.order(Job::Append(batch));
        }
        if is_whole
            && let Some(receiving) = &mut self.receiving
            && !std::mem::replace(&mut receiving.is_finished, true)
        {
            self.order(Job::Finish);
        }
        Some(here)
    }
}

/// What the thread has.
struct Writer<F> {
    directory: SnapshotDirectory,
    arrival: Option<Arrival>,
    queued: Arc<AtomicU64>,
    blank: F,
}

impl<F> Writer<F> {
    fn work<S: StateMachine>(&mut self, job: Job<S>) -> Option<Report<S>>
    where
        F: Fn() -> S,
    {
        match job {
            Job::Write { slot, mut frozen } => {
                let written = self.directory.write(slot, |out| frozen.next_chunk(out));
                let newest = written.and_then(|_| self.directory.newest());
                Some(match newest {
                    Ok(Newest { snapshot, .. }) => Ok((snapshot, Done::Written(slot))),
                    Err(error) => Err(Failed::Writing(error)),
                })
            }
            Job::Begin(id) => {
                if self.arrival.as_ref().is_some_and(|one| one.id() == id) {
                    return None;
                }
                self.arrival = None;
                let begun = self.directory.receive(id);
                self.arrived(id, begun)
            }
            Job::Append(bytes) => {
                self.queued.fetch_sub(bytes.len() as u64, Ordering::Relaxed);
                let mut arrival = self.arrival.take()?;
                let (id, appended) = (arrival.id(), arrival.append(&bytes));
                self.arrived(id, appended.map(|()| arrival))
            }
            Job::Finish => {
                let arrival = self.arrival.take()?;
                let id = arrival.id();
                let finished = self.directory.finish(&arrival, |body| {
                    let mut state = Applied::new((self.blank)());
                    state.restore(body)?;
                    let is_that = state.slot() == id.slot;
                    is_that
                        .then_some(state)
                        .ok_or(RestoreError("it is of another slot"))
                });
                Some(match finished {
                    Ok((snapshot, state)) => {
                        Ok((Some(snapshot), Done::Received(id, Box::new(state))))
                    }
                    Err(error) => Err(Failed::Receiving(id, error)),
                })
            }
            Job::Forget(state) => {
                drop(state);
                None
            }
        }
    }

    fn arrived<S>(
        &mut self,
        id: SnapshotId,
        result: Result<Arrival, SnapshotError>,
    ) -> Option<Report<S>> {
        match result {
            Ok(arrival) => {
                self.arrival = Some(arrival);
                None
            }
            Err(error) => {
                self.directory.discard();
                Some(Err(Failed::Receiving(id, error)))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::kv::Kv;
    use consensus::GroupId;
    use consensus::envelope::{Entry, EntryKind};
    use consensus::{Ballot, Sequence, SessionId};
    use std::path::Path;
    use std::time::Duration;

    const GROUP: GroupId = GroupId(0);
    const PIECE: usize = 100_000;

    fn open(path: &Path) -> Snapshots<Kv> {
        let mut directory = SnapshotDirectory::open(path, GROUP).unwrap();
        let newest = directory.newest().unwrap().snapshot;
        Snapshots::start(directory, newest, Kv::new, || {}, || {}).unwrap()
    }

    /// A state of some hundred kilobytes after `slots` slots.
    fn state(slots: u64) -> Applied<Kv> {
        let mut applied = Applied::new(Kv::new());
        for slot in 1..=slots {
            let (kind, session) = match slot {
                1 => (EntryKind::Open, SessionId(5)),
                _ => (EntryKind::Command, SessionId::new(Slot(1), 0)),
            };
            let mut body = Vec::new();
            let name = format!("key {slot}");
            crate::kv::Call {
                op: crate::kv::Op::Set,
                arguments: [name.as_bytes(), &[7; 1000]].into_iter().collect(),
            }
            .encode(&mut body);
            let mut value = Vec::new();
            let sequence = Sequence(slot.saturating_sub(1));
            let behind = 0;
            Entry {
                kind,
                session,
                sequence,
                behind,
                body: &body,
            }
            .append(&mut value);
            applied.apply(Ballot(1), value, |_, _| {});
        }
        applied
    }

    fn wait(snapshots: &mut Snapshots<Kv>) -> Result<Done<Kv>, Failed> {
        for _ in 0..3000 {
            if let Some(done) = snapshots.poll() {
                return done;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("nothing is done");
    }

    fn write(snapshots: &mut Snapshots<Kv>, slots: u64) {
        let state = state(slots);
        snapshots.write(state.slot(), state.freeze());
        assert!(matches!(wait(snapshots), Ok(Done::Written(_))));
    }

    /// Hands over `pieces` pieces from `offset` on. Returns how far they came.
    fn send(from: &mut Snapshots<Kv>, to: &mut Snapshots<Kv>, pieces: usize) -> (SnapshotId, u64) {
        let mut buffer = vec![0; PIECE];
        let id = from.read(None, 0, &mut []).unwrap().id;
        let mut here = to.keep(id, 0, &[], 0).unwrap();
        for _ in 0..pieces {
            let piece = from
                .read(Some((id.slot, id.crc)), here, &mut buffer)
                .unwrap();
            here = to
                .keep(id, here, &buffer[..piece.bytes], piece.crc)
                .unwrap();
        }
        (id, here)
    }

    #[test]
    fn a_received_snapshot_is_a_state_and_is_kept() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut from, mut to) = (open(one.path()), open(two.path()));
        write(&mut from, 700);
        let (id, here) = send(&mut from, &mut to, 20);
        assert_eq!(here, id.bytes);
        let Ok(Done::Received(received, taken)) = wait(&mut to) else {
            panic!("it is whole");
        };
        assert_eq!((received, taken.slot()), (id, Slot(700)));
        assert_eq!(taken.sessions().len(), 1);
        drop(to);
        assert_eq!(open(two.path()).slot(), Slot(700));
    }

    #[test]
    fn the_next_life_goes_on_where_the_last_one_was() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut from, mut to) = (open(one.path()), open(two.path()));
        write(&mut from, 700);
        let (id, here) = send(&mut from, &mut to, 4);
        // What is not written yet is asked for again.
        to.finish(Slot::NONE, state(0).freeze()).unwrap();
        let mut to = open(two.path());
        let begins = to.keep(id, 0, &[], 0).unwrap();
        assert!((BATCH_BYTES as u64..=here).contains(&begins), "{begins}");
        assert_eq!(send(&mut from, &mut to, 20).1, id.bytes);
        assert!(matches!(wait(&mut to), Ok(Done::Received(..))));
    }

    #[test]
    fn a_damaged_piece_is_not_kept() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut from, mut to) = (open(one.path()), open(two.path()));
        write(&mut from, 700);
        let (id, here) = send(&mut from, &mut to, 1);
        let mut buffer = vec![0; PIECE];
        let piece = from.read(None, here, &mut buffer).unwrap();
        buffer[PIECE / 2] ^= 1;
        assert_eq!(to.keep(id, here, &buffer, piece.crc), Some(here));
        buffer[PIECE / 2] ^= 1;
        assert_ne!(to.keep(id, here, &buffer, piece.crc), Some(here));
    }

    #[test]
    fn what_rots_on_the_way_to_the_disk_is_found_and_removed() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut from, mut to) = (open(one.path()), open(two.path()));
        write(&mut from, 700);
        send(&mut from, &mut to, 4);
        to.finish(Slot::NONE, state(0).freeze()).unwrap();
        let part = std::fs::read_dir(two.path()).unwrap().next().unwrap();
        let part = part.unwrap().path();
        let mut bytes = std::fs::read(&part).unwrap();
        bytes[1000] ^= 1;
        std::fs::write(&part, bytes).unwrap();
        let mut to = open(two.path());
        send(&mut from, &mut to, 20);
        let Err(Failed::Receiving(_, error)) = wait(&mut to) else {
            panic!("it is damaged");
        };
        assert!(error.to_string().contains("does not match"), "{error}");
        assert_eq!(std::fs::read_dir(two.path()).unwrap().count(), 0);
        assert_eq!(
            send(&mut from, &mut to, 1).1,
            PIECE as u64,
            "from its beginning"
        );
    }

    #[test]
    fn a_snapshot_that_is_being_read_stays_readable_behind_a_newer_one() {
        let one = tempfile::tempdir().unwrap();
        let mut from = open(one.path());
        write(&mut from, 10);
        let id = from.read(None, 0, &mut []).unwrap().id;
        let former = Some((id.slot, id.crc));
        let mut buffer = [0; 64];
        let before = from.read(former, 8, &mut buffer).unwrap();
        for slots in [20, 30, 40] {
            write(&mut from, slots);
            if slots < 40 {
                assert_eq!(from.read(former, 8, &mut buffer), Some(before), "{slots}");
            }
        }
        assert_eq!(from.read(None, 0, &mut []).unwrap().id.slot, Slot(40));
    }

    #[test]
    fn what_cannot_be_written_is_said_and_begins_anew_later() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut from, mut to) = (open(one.path()), open(two.path()));
        write(&mut from, 700);
        let path = two.path().to_owned();
        drop(two);
        let (id, _) = send(&mut from, &mut to, 20);
        let Err(Failed::Receiving(refused, error)) = wait(&mut to) else {
            panic!("there is no directory");
        };
        assert_eq!(refused, id);
        assert!(error.to_string().contains("No such file"), "{error}");
        assert_eq!(to.keep(id, 100, b"more", 0), None);
        std::fs::create_dir(&path).unwrap();
        send(&mut from, &mut to, 20);
        assert!(matches!(wait(&mut to), Ok(Done::Received(..))));
        std::fs::remove_dir_all(&path).unwrap();
    }
}
