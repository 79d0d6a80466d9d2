//! Snapshots of all groups: written, received and made a state of by one thread of their own, and
//! read piece by piece for those who lag.

use crate::snapshot_file::{Arrival, Newest, Snapshot, SnapshotDirectory, SnapshotError};
use consensus::applied::Applied;
use consensus::replica::Piece;
use consensus::simulation::{Mutation, mutated};
use consensus::state_machine::{Frozen, RestoreError, SnapshotId, StateMachine};
use consensus::{GroupId, Slot};
use crc_fast::crc32_iscsi;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;
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

/// Files that are open to be read at once, and as many to be written: each of a thousand groups may
/// lag at once.
const MAX_OPEN: usize = 64;
/// Those of one group: the newest snapshot, and the one before it that somebody still reads.
const OPEN_OF_GROUP: usize = 2;

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

/// A snapshot that is being read. Its file is open, and so stays.
struct Open {
    group: GroupId,
    snapshot: Snapshot,
    /// What was read ahead, and where it begins.
    start: u64,
    ahead: Vec<u8>,
}

/// Each group's newest snapshot, and the thread that writes the next one.
pub struct Snapshots<S> {
    /// Which they are. Those that nobody asks for are not kept open.
    newest: BTreeMap<GroupId, (SnapshotId, PathBuf)>,
    /// Those read last, the last one at the end.
    open: Vec<Open>,
    receiving: BTreeMap<GroupId, Receiving>,
    /// What an earlier life had received.
    found: BTreeMap<GroupId, (SnapshotId, u64)>,
    queued: Arc<AtomicU64>,
    jobs: Option<Sender<(GroupId, Job<S>)>>,
    done: Receiver<(GroupId, Report<S>)>,
    busy: bool,
    writer: Option<thread::JoinHandle<()>>,
}

/// The directories of the first `groups` groups, where `path_of` says; groups that never had a
/// snapshot have none. `found` is told what is in them.
///
/// # Errors
/// A directory cannot be read, or `found` refuses.
pub fn look<E: From<SnapshotError>>(
    path_of: &impl Fn(GroupId) -> PathBuf,
    groups: u16,
    mut found: impl FnMut(GroupId, Newest) -> Result<(), E>,
) -> Result<BTreeMap<GroupId, SnapshotDirectory>, E> {
    let mut directories = BTreeMap::new();
    for group in (0..groups).map(GroupId) {
        let path = path_of(group);
        if path.is_dir() {
            let mut directory = SnapshotDirectory::open(path, group)?;
            found(group, directory.newest()?)?;
            directories.insert(group, directory);
        }
    }
    Ok(directories)
}

impl<S: StateMachine + Send + 'static> Snapshots<S> {
    /// Starts the writer over `directories`, of which `newest` was found, and others that it makes
    /// where `path_of` says when it needs them. States are made from the machine that `blank` returns.
    /// `placed` is called on the writer's thread first, and `wake` when there is something to
    /// [poll](Self::poll).
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(
        path_of: impl Fn(GroupId) -> PathBuf + Send + 'static,
        directories: BTreeMap<GroupId, SnapshotDirectory>,
        newest: &BTreeMap<GroupId, Snapshot>,
        blank: impl Fn() -> S + Send + 'static,
        placed: impl FnOnce() + Send + 'static,
        wake: impl Fn() + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = channel::<(GroupId, Job<S>)>();
        let (report, done) = channel();
        let queued = Arc::new(AtomicU64::new(0));
        let found = directories.iter().filter_map(|(group, directory)| {
            let arrival = directory.arrival()?;
            Some((*group, (arrival.id(), arrival.here())))
        });
        let found = found.collect();
        let mut thread = Writer {
            path_of,
            directories,
            arrivals: BTreeMap::new(),
            queued: Arc::clone(&queued),
            blank,
        };
        let writer = thread::Builder::new()
            .name("snapshot".into())
            .spawn(move || {
                placed();
                for (group, job) in queue {
                    if let Some(result) = thread.work(group, job) {
                        if report.send((group, result)).is_err() {
                            return;
                        }
                        wake();
                    }
                }
            })?;
        let known = |(group, snapshot): (&GroupId, &Snapshot)| {
            (*group, (snapshot.id(), snapshot.path().to_owned()))
        };
        Ok(Self {
            newest: newest.iter().map(known).collect(),
            open: Vec::new(),
            receiving: BTreeMap::new(),
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
    /// Whether a snapshot of this node's state is being written, or a newer one is about to be the
    /// group's state.
    pub fn is_busy(&self, group: GroupId) -> bool {
        let receiving = self.receiving.get(&group);
        self.busy || receiving.is_some_and(|receiving| receiving.is_finished)
    }

    fn order(&self, group: GroupId, job: Job<S>) -> bool {
        let jobs = self.jobs.as_ref();
        jobs.is_some_and(|jobs| jobs.send((group, job)).is_ok())
    }

    /// Writes a snapshot; one at a time.
    pub fn write(&mut self, group: GroupId, slot: Slot, frozen: Box<dyn Frozen>) {
        debug_assert!(!self.is_busy(group));
        self.busy = self.order(group, Job::Write { slot, frozen });
    }

    /// Lets go of a state beside the worker.
    pub fn forget(&self, group: GroupId, state: Applied<S>) {
        self.order(group, Job::Forget(Box::new(state)));
    }

    /// What has been done since, or could not be.
    pub fn poll(&mut self) -> Option<(GroupId, Result<Done<S>, Failed>)> {
        let (group, result) = self.done.try_recv().ok()?;
        match &result {
            Ok((_, Done::Written(_))) | Err(Failed::Writing(_)) => self.busy = false,
            Ok((_, Done::Received(..))) | Err(Failed::Receiving(..)) => {
                self.receiving.remove(&group);
            }
        }
        let result = result.map(|(snapshot, done)| {
            if let Some(snapshot) = snapshot {
                let known = (snapshot.id(), snapshot.path().to_owned());
                self.newest.insert(group, known);
            }
            done
        });
        Some((group, result))
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
            if slot > self.slot(group) {
                self.order(group, Job::Write { slot, frozen });
            }
        }
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
        // The last one of a group counts: what came before it may be made up for.
        let last: BTreeMap<_, _> = self.done.try_iter().collect();
        last.into_values().try_for_each(|result| match result {
            Err(Failed::Writing(error)) => Err(error),
            Ok(_) | Err(Failed::Receiving(..)) => Ok(()),
        })
    }

    /// The last slot of a group's newest snapshot.
    pub fn slot(&self, group: GroupId) -> Slot {
        let newest = self.newest.get(&group);
        newest.map_or(Slot::NONE, |(id, _)| id.slot)
    }

    /// Reads at `offset` from the group's snapshot of this slot and checksum, or from its newest.
    pub fn read(
        &mut self,
        group: GroupId,
        of: Option<(Slot, u32)>,
        offset: u64,
        out: &mut [u8],
    ) -> Option<Piece> {
        let is_it = |id: SnapshotId| of.is_none_or(|of| of == (id.slot, id.crc));
        let newest = self.newest.get(&group).filter(|(id, _)| is_it(*id));
        let newest = newest.map(|(id, path)| (*id, path.clone()));
        let id = match (&newest, of) {
            (Some((id, _)), None) if out.is_empty() => {
                return Some(Piece {
                    id: *id,
                    bytes: 0,
                    crc: crc32_iscsi(&[]),
                });
            }
            (Some((id, _)), _) => *id,
            (None, _) => {
                let mut open = self.open.iter().filter(|one| one.group == group);
                open.find(|one| is_it(one.snapshot.id()))?.snapshot.id()
            }
        };
        let open = match self.reopen(group, id) {
            true => self.open.last_mut()?,
            false => {
                let (id, path) = newest?;
                let snapshot = Snapshot::reopen(id, path).ok()?;
                self.keep_open(group, snapshot)?
            }
        };
        let count = id.bytes.saturating_sub(offset).min(out.len() as u64);
        if count > 0 {
            let (start, bytes) = (&mut open.start, &mut open.ahead);
            if offset < *start || offset + count > *start + bytes.len() as u64 {
                let length = AHEAD_BYTES.max(count).min(id.bytes - offset);
                bytes.resize(length as usize, 0);
                if open.snapshot.read_at(offset, bytes).is_err() {
                    // Nothing is there until all of it is.
                    bytes.clear();
                    return None;
                }
                *start = offset;
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

    /// Puts an open snapshot at the end of those read last. False if it is not open.
    fn reopen(&mut self, group: GroupId, id: SnapshotId) -> bool {
        let is_it = |one: &Open| one.group == group && one.snapshot.id() == id;
        let at = self.open.iter().position(is_it);
        if let Some(at) = at {
            self.open[at..].rotate_left(1);
        }
        at.is_some()
    }

    /// Keeps one more open, at the end, and others no longer.
    fn keep_open(&mut self, group: GroupId, snapshot: Snapshot) -> Option<&mut Open> {
        let is_of = |one: &Open| one.group == group;
        if self.open.iter().filter(|one| is_of(one)).count() == OPEN_OF_GROUP {
            let oldest = self.open.iter().position(is_of)?;
            self.open.remove(oldest);
        } else if self.open.len() == MAX_OPEN {
            self.open.remove(0);
        }
        self.open.push(Open {
            group,
            snapshot,
            start: 0,
            ahead: Vec::new(),
        });
        self.open.last_mut()
    }

    /// Takes a piece of another's snapshot; see
    /// [`Io::keep_piece`](consensus::replica::Io::keep_piece).
    pub fn keep(
        &mut self,
        group: GroupId,
        id: SnapshotId,
        offset: u64,
        piece: &[u8],
        crc: u32,
    ) -> Option<u64> {
        let receiving = self.receiving.get(&group);
        if receiving.is_none_or(|one| one.id != id) {
            if !piece.is_empty() {
                // What came of it could not be kept; the beginning comes first again.
                return None;
            }
            let found = self.found.remove(&group).filter(|(found, _)| *found == id);
            if !self.order(group, Job::Begin(id)) {
                return None;
            }
            let begun = Receiving {
                id,
                here: found.map_or(0, |(_, here)| here),
                batch: Vec::new(),
                is_finished: false,
            };
            self.receiving.insert(group, begun);
        }
        let receiving = self.receiving.get_mut(&group)?;
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
            self.order(group, Job::Append(batch));
        }
        if is_whole
            && let Some(receiving) = self.receiving.get_mut(&group)
            && !std::mem::replace(&mut receiving.is_finished, true)
        {
            self.order(group, Job::Finish);
        }
        Some(here)
    }
}

/// What the thread has.
struct Writer<P, F> {
    path_of: P,
    directories: BTreeMap<GroupId, SnapshotDirectory>,
    /// Those that are open; others are found by their names.
    arrivals: BTreeMap<GroupId, Arrival>,
    queued: Arc<AtomicU64>,
    blank: F,
}

impl<P, F> Writer<P, F>
where
    P: Fn(GroupId) -> PathBuf,
{
    fn directory(&mut self, group: GroupId) -> Result<&mut SnapshotDirectory, SnapshotError> {
        Ok(match self.directories.entry(group) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(place) => {
                place.insert(SnapshotDirectory::open((self.path_of)(group), group)?)
            }
        })
    }

    /// What has come of another's snapshot; nothing once it was given up.
    fn arrival(&mut self, group: GroupId) -> Option<Arrival> {
        let open = self.arrivals.remove(&group);
        open.or_else(|| self.directories.get(&group)?.arrival())
    }

    fn work<S: StateMachine>(&mut self, group: GroupId, job: Job<S>) -> Option<Report<S>>
    where
        F: Fn() -> S,
    {
        match job {
            Job::Write { slot, mut frozen } => {
                let newest = self.directory(group).and_then(|directory| {
                    directory.write(slot, |out| frozen.next_chunk(out))?;
                    directory.newest()
                });
                Some(match newest {
                    Ok(Newest { snapshot, .. }) => Ok((snapshot, Done::Written(slot))),
                    Err(error) => Err(Failed::Writing(error)),
                })
            }
            Job::Begin(id) => {
                let known = self.arrival(group).filter(|one| one.id() == id);
                let begun = match known {
                    Some(arrival) => Ok(arrival),
                    None => self
                        .directory(group)
                        .and_then(|directory| directory.receive(id)),
                };
                self.arrived(group, id, begun)
            }
            Job::Append(bytes) => {
                self.queued.fetch_sub(bytes.len() as u64, Ordering::Relaxed);
                let mut arrival = self.arrival(group)?;
                let (id, appended) = (arrival.id(), arrival.append(&bytes));
                self.arrived(group, id, appended.map(|()| arrival))
            }
            Job::Finish => {
                let arrival = self.arrival(group)?;
                let id = arrival.id();
                let state = Applied::new((self.blank)());
                let finished = self.directory(group).and_then(|directory| {
                    directory.finish(&arrival, |body| {
                        let mut state = state;
                        state.restore(body)?;
                        let is_that = state.slot() == id.slot;
                        is_that
                            .then_some(state)
                            .ok_or(RestoreError("it is of another slot"))
                    })
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
        group: GroupId,
        id: SnapshotId,
        result: Result<Arrival, SnapshotError>,
    ) -> Option<Report<S>> {
        match result {
            Ok(arrival) => {
                if self.arrivals.len() == MAX_OPEN {
                    self.arrivals.pop_first();
                }
                self.arrivals.insert(group, arrival);
                None
            }
            Err(error) => {
                if let Some(directory) = self.directories.get(&group) {
                    directory.discard();
                }
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
    use consensus::envelope::{self, EntryKind};
    use consensus::{Ballot, Sequence, SessionId};
    use std::path::Path;
    use std::time::Duration;

    const GROUP: GroupId = GroupId(0);
    const PIECE: usize = 100_000;

    fn open(path: &Path) -> Snapshots<Kv> {
        let path = path.to_owned();
        let path_of = move |group: GroupId| match group {
            GROUP => path.clone(),
            GroupId(other) => path.join(format!("group-{other}")),
        };
        let mut newest = BTreeMap::new();
        let directories = look(&path_of, 3, |group, found| {
            newest.extend(found.snapshot.map(|snapshot| (group, snapshot)));
            Ok::<_, SnapshotError>(())
        });
        let directories = directories.unwrap();
        Snapshots::start(path_of, directories, &newest, Kv::new, || {}, || {}).unwrap()
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
            envelope::Entry {
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
            if let Some((_, done)) = snapshots.poll() {
                return done;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("nothing is done");
    }

    fn write(snapshots: &mut Snapshots<Kv>, slots: u64) {
        let state = state(slots);
        snapshots.write(GROUP, state.slot(), state.freeze());
        assert!(matches!(wait(snapshots), Ok(Done::Written(_))));
    }

    /// Hands over `pieces` pieces from `offset` on. Returns how far they came.
    fn send(from: &mut Snapshots<Kv>, to: &mut Snapshots<Kv>, pieces: usize) -> (SnapshotId, u64) {
        let mut buffer = vec![0; PIECE];
        let id = from.read(GROUP, None, 0, &mut []).unwrap().id;
        let mut here = to.keep(GROUP, id, 0, &[], 0).unwrap();
        for _ in 0..pieces {
            let piece = from
                .read(GROUP, Some((id.slot, id.crc)), here, &mut buffer)
                .unwrap();
            here = to
                .keep(GROUP, id, here, &buffer[..piece.bytes], piece.crc)
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
        assert_eq!(open(two.path()).slot(GROUP), Slot(700));
    }

    #[test]
    fn the_next_life_goes_on_where_the_last_one_was() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut from, mut to) = (open(one.path()), open(two.path()));
        write(&mut from, 700);
        let (id, here) = send(&mut from, &mut to, 4);
        // What is not written yet is asked for again.
        to.finish(std::iter::empty()).unwrap();
        let mut to = open(two.path());
        let begins = to.keep(GROUP, id, 0, &[], 0).unwrap();
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
        let piece = from.read(GROUP, None, here, &mut buffer).unwrap();
        buffer[PIECE / 2] ^= 1;
        assert_eq!(to.keep(GROUP, id, here, &buffer, piece.crc), Some(here));
        buffer[PIECE / 2] ^= 1;
        assert_ne!(to.keep(GROUP, id, here, &buffer, piece.crc), Some(here));
    }

    #[test]
    fn what_rots_on_the_way_to_the_disk_is_found_and_removed() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut from, mut to) = (open(one.path()), open(two.path()));
        write(&mut from, 700);
        send(&mut from, &mut to, 4);
        to.finish(std::iter::empty()).unwrap();
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
        let id = from.read(GROUP, None, 0, &mut []).unwrap().id;
        let former = Some((id.slot, id.crc));
        let mut buffer = [0; 64];
        let before = from.read(GROUP, former, 8, &mut buffer).unwrap();
        for slots in [20, 30, 40] {
            write(&mut from, slots);
            if slots < 40 {
                assert_eq!(
                    from.read(GROUP, former, 8, &mut buffer),
                    Some(before),
                    "{slots}"
                );
            }
        }
        assert_eq!(
            from.read(GROUP, None, 0, &mut []).unwrap().id.slot,
            Slot(40)
        );
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
        assert_eq!(to.keep(GROUP, id, 100, b"more", 0), None);
        std::fs::create_dir(&path).unwrap();
        send(&mut from, &mut to, 20);
        assert!(matches!(wait(&mut to), Ok(Done::Received(..))));
        std::fs::remove_dir_all(&path).unwrap();
    }
}
