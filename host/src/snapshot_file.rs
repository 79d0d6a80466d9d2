//! Snapshots of a group's state in files that are either whole or not there.
//!
//! ```text
//! snapshot-<slot, 20 digits>
//!   0   magic "nwsnapsh"
//!   8   version u32, group u16, two zero bytes
//!   16  slot u64: the last slot in it
//!   24  bytes u64: the length of the body
//!   32  crc32c u32 of the body
//!   36  crc32c u32 of the other bytes of this header
//!   40  zeroes
//!   64  the body, as the state machine wrote it
//!
//! snapshot-<slot, 20 digits>-<bytes>-<crc32c, 8 hexadecimal digits>.part
//!   a snapshot of another node on its way here: 64 bytes for the header, then what has come of the
//!   body. The next life goes on with it.
//! ```
//!
//! Integers are little-endian. A file is written under a name that ends in `.tmp`, flushed,
//! renamed, and the directory flushed. The last two are kept: if the newer one rots, the older one
//! is there; `docs/journal.md` says how far it and the journal lead.

use crate::data_directory::make_directory;
use crate::kill_point::kill_point;
use consensus::simulation::{Mutation, mutated};
use consensus::state_machine::{RestoreError, SnapshotId};
use consensus::{GroupId, Slot};
use crc_fast::{CrcAlgorithm, Digest, crc32_iscsi};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"nwsnapsh";
const VERSION: u32 = 1;
/// Snapshots that stay when a newer one has been written.
const KEPT: usize = 2;
/// The body is written and checked in pieces of about this length.
const PIECE_BYTES: usize = 1024 * 1024;

/// A snapshot cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}: {source}", path.display())]
pub struct SnapshotError {
    /// What was being done.
    pub doing: &'static str,
    /// To which file or directory.
    pub path: PathBuf,
    /// The system's answer.
    pub source: io::Error,
}

fn refused(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    move |source| SnapshotError {
        doing,
        path: path.to_owned(),
        source,
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    group: U16,
    zero: U16,
    slot: U64,
    bytes: U64,
    body_crc: U32,
    crc: U32,
    reserved: [u8; 24],
}

const HEADER_BYTES: usize = size_of::<Header>();
const _: () = assert!(HEADER_BYTES == 64);

impl Header {
    fn new(group: GroupId, id: SnapshotId) -> Self {
        let mut header = Self {
            magic: MAGIC,
            version: VERSION.into(),
            group: group.0.into(),
            zero: 0.into(),
            slot: id.slot.0.into(),
            bytes: id.bytes.into(),
            body_crc: id.crc.into(),
            crc: 0.into(),
            reserved: [0; 24],
        };
        header.crc = header.checksum().into();
        header
    }

    fn checksum(mut self) -> u32 {
        self.crc = 0.into();
        crc32_iscsi(self.as_bytes())
    }

    fn read(file: &File) -> Result<Self, String> {
        let mut bytes = [0; HEADER_BYTES];
        file.read_exact_at(&mut bytes, 0)
            .map_err(|error| format!("header: {error}"))?;
        let header = Self::read_from_bytes(&bytes).map_err(|_| "header".to_owned())?;
        if header.magic != MAGIC || header.checksum() != header.crc.get() {
            return Err("its header is damaged".to_owned());
        }
        if header.version.get() != VERSION {
            let found = header.version;
            return Err(format!(
                "format version {found}, this program reads {VERSION}"
            ));
        }
        Ok(header)
    }

    /// Checks that the body is what this says.
    fn check_body(&self, file: &File) -> Result<SnapshotId, String> {
        let id = SnapshotId {
            slot: Slot(self.slot.get()),
            bytes: self.bytes.get(),
            crc: self.body_crc.get(),
        };
        let length = file.metadata().map_err(|error| error.to_string())?.len();
        if length != HEADER_BYTES as u64 + id.bytes {
            return Err(format!(
                "it is {length} bytes long, not {HEADER_BYTES} + {}",
                id.bytes
            ));
        }
        let crc = body_crc(file, id.bytes).map_err(|error| error.to_string())?;
        if crc != id.crc && !mutated(Mutation::SnapshotUnchecked) {
            return Err("its body does not match its checksum".to_owned());
        }
        Ok(id)
    }
}

/// A snapshot file that was passed over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damaged {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// The newest whole snapshot, and the newer ones that are not whole.
#[derive(Debug)]
pub struct Newest {
    /// `None` if there is no whole one.
    pub snapshot: Option<Snapshot>,
    /// Files that should have been better, newest first; an operator wants to know.
    pub damaged: Vec<Damaged>,
}

/// A snapshot on the disk whose every byte has been checked.
#[derive(Debug)]
pub struct Snapshot {
    id: SnapshotId,
    path: PathBuf,
    file: File,
}

impl Snapshot {
    /// Opens one again that was checked when it was written, or found.
    ///
    /// # Errors
    /// It cannot be opened: a newer one may have taken its place.
    pub fn reopen(id: SnapshotId, path: PathBuf) -> Result<Self, SnapshotError> {
        let file = File::open(&path).map_err(refused("open snapshot", &path))?;
        Ok(Self { id, path, file })
    }

    /// Its place in the log and the length of its body.
    #[must_use]
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// Its file. The open file stays readable when a newer snapshot has it deleted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The body, for [`StateMachine::restore`](consensus::state_machine::StateMachine::restore).
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn body(&self) -> Result<Vec<u8>, SnapshotError> {
        let mut body = vec![0; usize::try_from(self.id.bytes).unwrap_or(usize::MAX)];
        self.read_at(0, &mut body)?;
        Ok(body)
    }

    /// Fills `into` from `offset` in the body, to send it to a peer piece by piece.
    ///
    /// # Errors
    /// The file cannot be read, or the body ends before.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), SnapshotError> {
        self.file
            .read_exact_at(into, HEADER_BYTES as u64 + offset)
            .map_err(refused("read snapshot", &self.path))
    }
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// A snapshot of another node on its way here.
#[derive(Debug)]
pub struct Arrival {
    id: SnapshotId,
    path: PathBuf,
    file: File,
    here: u64,
}

impl Arrival {
    /// Which it will be.
    pub(crate) const fn id(&self) -> SnapshotId {
        self.id
    }

    /// Bytes of the body that are here.
    pub(crate) const fn here(&self) -> u64 {
        self.here
    }

    /// Adds to the body.
    ///
    /// # Errors
    /// The system refuses, for instance because the disk is full.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.write_at(self.here, bytes)?;
        self.here += bytes.len() as u64;
        Ok(())
    }

    /// Writes a piece of the body at its place.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn write_at(&self, offset: u64, piece: &[u8]) -> Result<(), SnapshotError> {
        self.file
            .write_all_at(piece, HEADER_BYTES as u64 + offset)
            .map_err(refused("write", &self.path))
    }

    /// Gives it up.
    pub(crate) fn remove(self) {
        // It has no name that anybody goes by.
        let _ = fs::remove_file(&self.path);
    }

    fn open(path: PathBuf, id: SnapshotId) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&path)?;
        let here = file.metadata()?.len().saturating_sub(HEADER_BYTES as u64);
        Ok(Self {
            id,
            path,
            file,
            here,
        })
    }

    /// What a file's name says of it.
    fn named(path: &Path) -> Option<SnapshotId> {
        let name = path.file_name()?.to_str()?;
        let name = name.strip_prefix("snapshot-")?.strip_suffix(".part")?;
        let mut parts = name.split('-');
        let id = SnapshotId {
            slot: Slot(parts.next()?.parse().ok()?),
            bytes: parts.next()?.parse().ok()?,
            crc: u32::from_str_radix(parts.next()?, 16).ok()?,
        };
        parts.next().is_none().then_some(id)
    }
}

fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension()
        .is_some_and(|extension| extension == wanted)
}

/// Opens a snapshot's file, wherever it is, and checks every byte. Returns its group, too.
///
/// # Errors
/// The file cannot be read, is damaged, or is none.
pub fn open(path: &Path) -> Result<(GroupId, Snapshot), SnapshotError> {
    let file = File::open(path).map_err(refused("open snapshot", path))?;
    let checked = Header::read(&file).and_then(|header| {
        let id = header.check_body(&file)?;
        Ok((GroupId(header.group.get()), id))
    });
    let (group, id) = checked.map_err(|why| refused("read snapshot", path)(invalid(why)))?;
    let path = path.to_owned();
    Ok((group, Snapshot { id, path, file }))
}

/// Begins a snapshot's file outside of a data directory. Nobody else can while this one is open.
///
/// # Errors
/// Somebody else does, or the system refuses.
pub(crate) fn create(path: &Path, id: SnapshotId) -> Result<Arrival, SnapshotError> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".part");
    let unfinished = PathBuf::from(unfinished);
    let created = (|| {
        let mut arrival = Arrival::open(unfinished, id)?;
        let taken = || {
            io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another one is being saved there",
            )
        };
        arrival.file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => taken(),
            TryLockError::Error(error) => error,
        })?;
        // Whoever had the lock may have finished the file, or given it up, in between.
        let named = fs::metadata(&arrival.path).map_err(|_| taken())?;
        let opened = arrival.file.metadata()?;
        if (named.dev(), named.ino()) != (opened.dev(), opened.ino()) {
            return Err(taken());
        }
        // What an earlier attempt has left is of no use: pieces may be missing anywhere.
        arrival.file.set_len(0)?;
        arrival.here = 0;
        Ok(arrival)
    })();
    created.map_err(refused("save snapshot", path))
}

/// All of a snapshot outside of a data directory is there: gives it its name. Durable when this
/// returns.
///
/// # Errors
/// The system refuses, there is such a file, or the bytes are not those that were announced; nothing
/// is left of it then.
pub(crate) fn complete(
    arrival: Arrival,
    group: GroupId,
    path: &Path,
) -> Result<SnapshotId, SnapshotError> {
    let header = Header::new(group, arrival.id);
    let completed = (|| {
        arrival.file.write_all_at(header.as_bytes(), 0)?;
        arrival.file.sync_all()?;
        header.check_body(&arrival.file).map_err(invalid)?;
        name_anew(&arrival.path, path)?;
        let directory = path.parent().filter(|one| !one.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    })();
    match completed {
        Ok(()) => Ok(arrival.id),
        Err(error) => {
            arrival.remove();
            Err(refused("save snapshot", path)(error))
        }
    }
}

/// Renames a file to a name that nothing has.
fn name_anew(from: &Path, to: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // A file system that cannot, as those on a network.
        Err(Errno::EINVAL) => fs::hard_link(from, to).and_then(|()| fs::remove_file(from)),
        renamed => Ok(renamed?),
    }
}

/// The snapshots of one group.
#[derive(Debug)]
pub struct SnapshotDirectory {
    path: PathBuf,
    group: GroupId,
    /// Known not to be whole: they do not count among those that are kept.
    damaged: Vec<PathBuf>,
}

impl SnapshotDirectory {
    /// Opens or makes the directory and removes what unfinished writes left.
    ///
    /// # Errors
    /// The system refuses.
    pub fn open(path: impl Into<PathBuf>, group: GroupId) -> Result<Self, SnapshotError> {
        let path = path.into();
        make_directory(&path).map_err(refused("make snapshot directory", &path))?;
        let directory = Self {
            path,
            group,
            damaged: Vec::new(),
        };
        for entry in directory.names()? {
            if has_extension(&entry, "tmp") {
                fs::remove_file(&entry).map_err(refused("remove", &entry))?;
            }
        }
        // A snapshot that the last life renamed and did not live to flush must not be relied upon
        // before its name is certain to stay.
        File::open(&directory.path)
            .and_then(|file| file.sync_all())
            .map_err(refused("flush snapshot directory", &directory.path))?;
        Ok(directory)
    }

    /// Writes the state up to and including `slot`, piece by piece as
    /// [`Frozen::next_chunk`](consensus::state_machine::Frozen::next_chunk) yields it; durable when
    /// this returns. Older snapshots beyond the last two are deleted then.
    ///
    /// # Errors
    /// The system refuses, for instance because the disk is full. The older snapshots are
    /// untouched then, and nothing is left of the new one.
    pub fn write(
        &mut self,
        slot: Slot,
        next_chunk: impl FnMut(&mut Vec<u8>) -> bool,
    ) -> Result<SnapshotId, SnapshotError> {
        let path = self.path_of(slot);
        let unfinished = path.with_extension("tmp");
        let written = self
            .write_file(&unfinished, slot, next_chunk)
            .and_then(|id| {
                kill_point("snapshot.before-rename");
                fs::rename(&unfinished, &path)?;
                kill_point("snapshot.after-rename");
                File::open(&self.path)?.sync_all()?;
                Ok(id)
            });
        let id = written.map_err(|error| {
            // It may not be there, and the next opening removes it anyway.
            let _ = fs::remove_file(&unfinished);
            refused("write snapshot", &path)(error)
        })?;
        self.damaged.retain(|damaged| *damaged != path);
        self.prune()?;
        Ok(id)
    }

    /// What an earlier life has received of another node's snapshot.
    pub(crate) fn arrival(&self) -> Option<Arrival> {
        let names = self.names().ok()?;
        let parts = names.into_iter().filter_map(|path| {
            let id = Arrival::named(&path)?;
            Some((id, path))
        });
        let (id, path) = parts.max_by_key(|(id, _)| id.slot)?;
        let arrival = Arrival::open(path, id).ok()?;
        (arrival.here <= id.bytes).then_some(arrival)
    }

    /// Begins to receive another node's snapshot. Gives up the one before.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn receive(&self, id: SnapshotId) -> Result<Arrival, SnapshotError> {
        self.discard();
        let (slot, bytes, crc) = (id.slot.0, id.bytes, id.crc);
        let name = format!("snapshot-{slot:020}-{bytes}-{crc:08x}.part");
        let path = self.path.join(name);
        Arrival::open(path.clone(), id).map_err(refused("make", &path))
    }

    /// Removes what has come of another node's snapshot.
    pub(crate) fn discard(&self) {
        let names = self.names().unwrap_or_default();
        for path in names.iter().filter(|path| has_extension(path, "part")) {
            // What stays is found by its checksum, or removed by the next one.
            let _ = fs::remove_file(path);
        }
    }

    /// All of another node's snapshot is here: it becomes one of this node's if `restore` makes
    /// something of its body. Durable when this returns.
    ///
    /// # Errors
    /// The system refuses, or the bytes are not those that were announced, or make no sense; nothing
    /// is left of them then.
    pub(crate) fn finish<T>(
        &mut self,
        arrival: &Arrival,
        restore: impl FnOnce(&[u8]) -> Result<T, RestoreError>,
    ) -> Result<(Snapshot, T), SnapshotError> {
        let (id, path) = (arrival.id, self.path_of(arrival.id.slot));
        let finished = (|| {
            let header = Header::new(self.group, id);
            arrival.file.write_all_at(header.as_bytes(), 0)?;
            arrival.file.sync_all()?;
            self.check(&arrival.file, id.slot).map_err(invalid)?;
            let snapshot = Snapshot {
                id,
                path: path.clone(),
                file: arrival.file.try_clone()?,
            };
            let body = snapshot.body().map_err(|error| error.source)?;
            let state = restore(&body).map_err(invalid)?;
            kill_point("snapshot.before-rename");
            fs::rename(&arrival.path, &path)?;
            kill_point("snapshot.after-rename");
            File::open(&self.path)?.sync_all()?;
            Ok((snapshot, state))
        })();
        let finished = finished.map_err(|error| {
            self.discard();
            refused("take over snapshot", &arrival.path)(error)
        })?;
        self.damaged.retain(|damaged| *damaged != path);
        self.prune()?;
        Ok(finished)
    }

    fn write_file(
        &self,
        path: &Path,
        slot: Slot,
        mut next_chunk: impl FnMut(&mut Vec<u8>) -> bool,
    ) -> io::Result<SnapshotId> {
        let mut file = File::create(path)?;
        file.seek(SeekFrom::Start(HEADER_BYTES as u64))?;
        let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let mut bytes = 0;
        loop {
            let more = next_chunk(&mut piece);
            if piece.len() >= PIECE_BYTES || !more {
                digest.update(&piece);
                file.write_all(&piece)?;
                bytes += piece.len() as u64;
                piece.clear();
            }
            if !more {
                break;
            }
        }
        let crc = narrow(digest.finalize());
        let id = SnapshotId { slot, bytes, crc };
        let header = Header::new(self.group, id);
        file.write_all_at(header.as_bytes(), 0)?;
        file.sync_all()?;
        Ok(id)
    }

    /// Finds the newest snapshot of which every byte is right.
    ///
    /// # Errors
    /// The directory cannot be listed, or a file not opened; a file that cannot be read counts as
    /// damaged.
    pub fn newest(&mut self) -> Result<Newest, SnapshotError> {
        let mut damaged = Vec::new();
        let mut newest = None;
        for (slot, path) in self.snapshots()? {
            let file = File::open(&path).map_err(refused("open snapshot", &path))?;
            match self.check(&file, slot) {
                Ok(id) => {
                    newest = Some(Snapshot { id, path, file });
                    break;
                }
                Err(reason) => damaged.push(Damaged { path, reason }),
            }
        }
        self.damaged = damaged.iter().map(|damaged| damaged.path.clone()).collect();
        Ok(Newest {
            snapshot: newest,
            damaged,
        })
    }

    fn check(&self, file: &File, slot: Slot) -> Result<SnapshotId, String> {
        let header = Header::read(file)?;
        if header.group.get() != self.group.0 || header.slot.get() != slot.0 {
            let (group, slot) = (header.group, header.slot);
            return Err(format!("it is of group {group}, slot {slot}"));
        }
        header.check_body(file)
    }

    fn prune(&mut self) -> Result<(), SnapshotError> {
        let mut kept = 0;
        for (_, path) in self.snapshots()? {
            if kept < KEPT && !self.damaged.contains(&path) {
                kept += 1;
            } else {
                fs::remove_file(&path).map_err(refused("remove old snapshot", &path))?;
            }
        }
        self.damaged.clear();
        Ok(())
    }

    fn path_of(&self, slot: Slot) -> PathBuf {
        self.path.join(format!("snapshot-{:020}", slot.0))
    }

    /// Newest first.
    fn snapshots(&self) -> Result<Vec<(Slot, PathBuf)>, SnapshotError> {
        let mut found: Vec<_> = self
            .names()?
            .into_iter()
            .filter_map(|path| {
                let digits = path.file_name()?.to_str()?.strip_prefix("snapshot-")?;
                Some((Slot(digits.parse().ok()?), path))
            })
            .collect();
        found.sort_unstable_by(|a, b| b.cmp(a));
        Ok(found)
    }

    fn names(&self) -> Result<Vec<PathBuf>, SnapshotError> {
        fs::read_dir(&self.path)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
            .map_err(refused("list snapshots", &self.path))
    }
}

fn narrow(crc: u64) -> u32 {
    u32::try_from(crc).expect("crc32c has 32 bits")
}

fn body_crc(file: &File, bytes: u64) -> io::Result<u32> {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    let mut piece = vec![0; PIECE_BYTES];
    let mut offset = 0;
    while offset < bytes {
        let length = usize::try_from(bytes - offset)
            .unwrap_or(usize::MAX)
            .min(PIECE_BYTES);
        file.read_exact_at(&mut piece[..length], HEADER_BYTES as u64 + offset)?;
        digest.update(&piece[..length]);
        offset += length as u64;
    }
    Ok(narrow(digest.finalize()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(4);

    fn body(seed: u8, pieces: usize) -> impl FnMut(&mut Vec<u8>) -> bool {
        let mut left = pieces;
        move |out| {
            out.extend(std::iter::repeat_n(seed, 300_000));
            left -= 1;
            left > 0
        }
    }

    fn files(path: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn the_newest_snapshot_reads_back_whole() {
        let scratch = tempfile::tempdir().unwrap();
        let mut directory = SnapshotDirectory::open(scratch.path(), GROUP).unwrap();
        assert!(directory.newest().unwrap().snapshot.is_none());
        directory.write(Slot(9), body(1, 1)).unwrap();
        let id = directory.write(Slot(10), body(2, 7)).unwrap();
        assert_eq!(
            id,
            SnapshotId {
                slot: Slot(10),
                bytes: 2_100_000,
                crc: id.crc
            }
        );
        let newest = directory.newest().unwrap();
        assert_eq!(newest.damaged, []);
        let snapshot = newest.snapshot.unwrap();
        assert_eq!(snapshot.id(), id);
        assert!(snapshot.body().unwrap().iter().all(|byte| *byte == 2));
        let mut end = [0; 3];
        snapshot.read_at(id.bytes - 3, &mut end).unwrap();
        assert_eq!(end, [2; 3]);
        assert!(snapshot.read_at(id.bytes - 2, &mut end).is_err());
    }

    #[test]
    fn two_that_are_saved_to_one_file_do_not_mix_and_nothing_is_written_over() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("backup");
        // One that ended in the middle.
        fs::write(scratch.path().join("backup.part"), vec![9; 1000]).unwrap();
        let id = |bytes: &[u8]| SnapshotId {
            slot: Slot(1),
            bytes: bytes.len() as u64,
            crc: crc32_iscsi(bytes),
        };
        let first = create(&path, id(b"first")).unwrap();
        first.write_at(0, b"first").unwrap();
        let refused = create(&path, id(b"second")).unwrap_err();
        assert!(refused.to_string().contains("being saved"), "{refused}");
        complete(first, GROUP, &path).unwrap();
        assert_eq!(files(scratch.path()), ["backup"]);
        // It came to be after this one was begun.
        let second = create(&path, id(b"second")).unwrap();
        second.write_at(0, b"second").unwrap();
        let refused = complete(second, GROUP, &path).unwrap_err();
        assert!(refused.to_string().contains("exists"), "{refused}");
        assert_eq!(files(scratch.path()), ["backup"]);
        assert_eq!(open(&path).unwrap().1.body().unwrap(), b"first");
    }

    #[test]
    fn an_empty_state_is_a_snapshot_too() {
        let scratch = tempfile::tempdir().unwrap();
        let mut directory = SnapshotDirectory::open(scratch.path(), GROUP).unwrap();
        directory.write(Slot(1), |_| false).unwrap();
        let snapshot = directory.newest().unwrap().snapshot.unwrap();
        assert!(snapshot.body().unwrap().is_empty());
    }

    #[test]
    fn the_last_two_are_kept_and_leftovers_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let mut directory = SnapshotDirectory::open(scratch.path(), GROUP).unwrap();
        for slot in 1..=5 {
            directory.write(Slot(slot), body(1, 1)).unwrap();
        }
        fs::write(
            scratch.path().join("snapshot-00000000000000000006.tmp"),
            "half",
        )
        .unwrap();
        SnapshotDirectory::open(scratch.path(), GROUP).unwrap();
        let expected = [
            "snapshot-00000000000000000004",
            "snapshot-00000000000000000005",
        ];
        assert_eq!(files(scratch.path()), expected);
    }

    #[test]
    fn a_damaged_snapshot_gives_way_to_the_one_before_and_is_named() {
        let scratch = tempfile::tempdir().unwrap();
        let mut directory = SnapshotDirectory::open(scratch.path(), GROUP).unwrap();
        directory.write(Slot(1), body(1, 1)).unwrap();
        directory.write(Slot(2), body(2, 1)).unwrap();
        let newer = directory.path_of(Slot(2));
        let whole = fs::read(&newer).unwrap();
        for at in (0..HEADER_BYTES).chain([HEADER_BYTES, 100_000, whole.len() - 1]) {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            fs::write(&newer, bytes).unwrap();
            let newest = directory.newest().unwrap();
            assert_eq!(newest.snapshot.unwrap().id().slot, Slot(1), "byte {at}");
            assert_eq!(newest.damaged[0].path, newer);
        }
        for length in [0, 63, 64, whole.len() - 1] {
            fs::write(&newer, &whole[..length]).unwrap();
            let newest = directory.newest().unwrap();
            assert_eq!(
                newest.snapshot.unwrap().id().slot,
                Slot(1),
                "length {length}"
            );
        }
    }

    #[test]
    fn a_damaged_snapshot_does_not_displace_a_whole_one() {
        let scratch = tempfile::tempdir().unwrap();
        let mut directory = SnapshotDirectory::open(scratch.path(), GROUP).unwrap();
        directory.write(Slot(1), body(1, 1)).unwrap();
        directory.write(Slot(2), body(2, 1)).unwrap();
        fs::write(directory.path_of(Slot(2)), "rot").unwrap();
        directory.newest().unwrap();
        directory.write(Slot(3), body(3, 1)).unwrap();
        let expected = [
            "snapshot-00000000000000000001",
            "snapshot-00000000000000000003",
        ];
        assert_eq!(files(scratch.path()), expected);
    }

    #[test]
    fn another_groups_snapshot_is_not_ours() {
        let scratch = tempfile::tempdir().unwrap();
        let mut ours = SnapshotDirectory::open(scratch.path(), GROUP).unwrap();
        ours.write(Slot(1), body(1, 1)).unwrap();
        let mut theirs = SnapshotDirectory::open(scratch.path(), GroupId(5)).unwrap();
        let newest = theirs.newest().unwrap();
        assert!(newest.snapshot.is_none());
        assert_eq!(newest.damaged.len(), 1);
    }
}
