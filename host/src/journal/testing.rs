//! Disks for tests: one in memory, and one that loses power.
//!
//! ```text
//! let disk = DiscardingDisk::over(Arc::new(MemoryDisk::default()));
//! open a journal on disk.plug_in(), append, note what was flushed
//! disk.lose_power(PowerLoss::Torn(seed))      the journal's handles are dead from here on
//! open a journal on disk.plug_in(), compare
//! ```
//!
//! Over a [`RealDisk`](super::RealDisk), ending the process by SIGKILL is the power loss: bytes
//! that were not flushed were only ever in its memory. Names are the exception there: a rename
//! that no directory flush followed stays.

use super::disk::{Access, Block, Disk, DiskFile};
use super::format::BLOCK_BYTES;
use consensus::random::Random;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Files in memory; every write is durable at once.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    files: Arc<Mutex<BTreeMap<PathBuf, MemoryFile>>>,
}

#[derive(Clone, Default)]
struct MemoryFile(Arc<Mutex<Vec<u8>>>);

impl MemoryDisk {
    /// Every file, in the order of the names.
    #[must_use]
    pub fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let files = lock(&self.files);
        files
            .iter()
            .map(|(path, file)| (path.clone(), lock(&file.0).clone()))
            .collect()
    }

    /// Replaces one byte by its exclusive or with `mask`.
    pub fn damage(&self, path: &Path, offset: usize, mask: u8) {
        if let Some(file) = lock(&self.files).get(path) {
            lock(&file.0)[offset] ^= mask;
        }
    }

    fn find(&self, path: &Path) -> io::Result<MemoryFile> {
        lock(&self.files)
            .get(path)
            .cloned()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for MemoryDisk {
    fn path(&self) -> &'static str {
        "memory"
    }

    fn create_directory(&self, _directory: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        let files = lock(&self.files);
        let inside = files.keys().filter(|path| path.parent() == Some(directory));
        Ok(inside
            .filter_map(|path| path.file_name().map(ToOwned::to_owned))
            .collect())
    }

    fn create(&self, path: &Path, bytes: u64) -> io::Result<()> {
        let zeroes = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
        lock(&self.files).insert(path.to_owned(), MemoryFile(Arc::new(Mutex::new(zeroes))));
        Ok(())
    }

    fn open(&self, path: &Path, _access: Access) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(self.find(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = lock(&self.files);
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        lock(&self.files)
            .remove(path)
            .map(drop)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn flush_directory(&self, _directory: &Path) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for MemoryFile {
    fn bytes(&self) -> io::Result<u64> {
        Ok(lock(&self.0).len() as u64)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let file = lock(&self.0);
        let bytes = file
            .get(start..start + into.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let mut file = lock(&self.0);
        let end = start + bytes.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        file[start..end].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What goes wrong before the power does.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Faults {
    /// New files may take so many bytes more; beyond them the answer is ENOSPC.
    pub room_bytes: Option<u64>,
    /// The n-th flush of a file from now on (from 1) answers EIO and drops what it was to store,
    /// as Linux does: later reads see the bytes, later flushes succeed, the disk never gets them.
    pub failing_flush: Option<u64>,
    /// How long a flush of a file takes.
    pub flush_delay: Duration,
    /// Flushes of files answer success and store nothing.
    pub lying_flushes: bool,
}

/// Reads `room_bytes=N,failing_flush=N,flush_delay_us=N,lying_flushes`, any subset of it.
impl FromStr for Faults {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut faults = Self::default();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            let (key, value) = word.split_once('=').unwrap_or((word, "1"));
            let number: u64 = value.parse().map_err(|error| format!("{word}: {error}"))?;
            match key {
                "room_bytes" => faults.room_bytes = Some(number),
                "failing_flush" => faults.failing_flush = Some(number),
                "flush_delay_us" => faults.flush_delay = Duration::from_micros(number),
                "lying_flushes" => faults.lying_flushes = number != 0,
                _ => return Err(format!("{word}: no such fault")),
            }
        }
        Ok(faults)
    }
}

/// How a life ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PowerLoss {
    /// Only the process ends: the cache stays.
    Process,
    /// Nothing that was not flushed is kept.
    Everything,
    /// Each block that was not flushed is kept or not, by the seed; of the names that were not
    /// flushed, a prefix is kept.
    Blocks(u64),
    /// As [`PowerLoss::Blocks`], and some of the kept blocks are new in some sectors only.
    Torn(u64),
}

/// A disk with a write cache that can lose power.
#[derive(Clone)]
pub struct DiscardingDisk {
    machine: Arc<Machine>,
}

struct Machine {
    inner: Arc<dyn Disk>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Counts the lives; handles of earlier ones are dead.
    life: u64,
    faults: Faults,
    files: HashMap<PathBuf, Arc<Mutex<Cached>>>,
    /// How to take back each change of a name since the last directory flush.
    undo: Vec<Undo>,
    /// Names the files that wait to be removed.
    removed: u64,
}

/// What the name of a file begins with that waits to be removed.
const GONE: &str = "gone-";

enum Undo {
    Create(PathBuf),
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    /// The file is only renamed until the directory is flushed.
    Remove {
        path: PathBuf,
        gone: PathBuf,
    },
}

struct Cached {
    inner: Arc<dyn DiskFile>,
    dirty: BTreeMap<u64, Box<Block>>,
    /// What a failed flush left readable but will never store.
    lost: BTreeMap<u64, Box<Block>>,
}

impl DiscardingDisk {
    /// Puts a cache in front of `inner`.
    #[must_use]
    pub fn over(inner: Arc<dyn Disk>) -> Self {
        Self {
            machine: Arc::new(Machine {
                inner,
                state: Mutex::default(),
            }),
        }
    }

    /// A handle for one life; dead after the next [`DiscardingDisk::lose_power`].
    #[must_use]
    pub fn plug_in(&self) -> Arc<dyn Disk> {
        let life = lock(&self.machine.state).life;
        Arc::new(Plugged {
            machine: Arc::clone(&self.machine),
            life,
        })
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        lock(&self.machine.state).faults = faults;
    }

    /// Ends the life of every handle, and of what was not flushed as `loss` says.
    ///
    /// # Panics
    /// The disk below refuses.
    pub fn lose_power(&self, loss: PowerLoss) {
        let mut state = lock(&self.machine.state);
        state.life += 1;
        let mut dice = match loss {
            PowerLoss::Process => return,
            PowerLoss::Everything => Random::new(0),
            PowerLoss::Blocks(seed) | PowerLoss::Torn(seed) => Random::new(seed),
        };
        let all = loss == PowerLoss::Everything;
        let mut files: Vec<_> = state.files.drain().collect();
        files.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (_, cached) in files {
            let mut cached = lock(&cached);
            for (offset, block) in std::mem::take(&mut cached.dirty) {
                if all || dice.below(2) == 0 {
                    continue;
                }
                let mut stored = block.clone();
                if matches!(loss, PowerLoss::Torn(_)) && dice.below(3) == 0 {
                    cached
                        .inner
                        .read_at(offset, &mut stored.0)
                        .expect("read below");
                    for (old, new) in stored.0.chunks_mut(512).zip(block.0.chunks(512)) {
                        if dice.below(2) == 0 {
                            old.copy_from_slice(new);
                        }
                    }
                }
                cached
                    .inner
                    .write_at(offset, &stored.0)
                    .expect("write below");
            }
        }
        let names = state.undo.len() as u64;
        let keep = if all { 0 } else { dice.below(names + 1) };
        let inner = &self.machine.inner;
        for (i, undo) in std::mem::take(&mut state.undo)
            .into_iter()
            .enumerate()
            .rev()
        {
            let kept = (i as u64) < keep;
            match undo {
                Undo::Remove { gone, .. } if kept => inner.remove(&gone).expect("remove below"),
                Undo::Remove { path, gone } => inner.rename(&gone, &path).expect("rename below"),
                Undo::Create(path) if !kept => inner.remove(&path).expect("remove below"),
                Undo::Rename { from, to } if !kept => {
                    inner.rename(&to, &from).expect("rename below");
                }
                Undo::Create(_) | Undo::Rename { .. } => {}
            }
        }
    }
}

struct Plugged {
    machine: Arc<Machine>,
    life: u64,
}

impl Machine {
    fn state(&self, life: u64) -> io::Result<MutexGuard<'_, State>> {
        let state = lock(&self.state);
        if state.life == life {
            Ok(state)
        } else {
            Err(io::Error::other("the power is off"))
        }
    }
}

impl Disk for Plugged {
    fn path(&self) -> &'static str {
        self.machine.inner.path()
    }

    fn create_directory(&self, directory: &Path) -> io::Result<()> {
        self.machine.inner.create_directory(directory)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        let _alive = self.machine.state(self.life)?;
        let mut names = self.machine.inner.list(directory)?;
        names.retain(|name| !name.to_string_lossy().starts_with(GONE));
        Ok(names)
    }

    fn create(&self, path: &Path, bytes: u64) -> io::Result<()> {
        let mut state = self.machine.state(self.life)?;
        if let Some(room) = &mut state.faults.room_bytes {
            *room = room
                .checked_sub(bytes)
                .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))?;
        }
        self.machine.inner.create(path, bytes)?;
        state.undo.push(Undo::Create(path.to_owned()));
        Ok(())
    }

    fn open(&self, path: &Path, _access: Access) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.machine.state(self.life)?;
        let cached = match state.files.get(path) {
            Some(cached) => Arc::clone(cached),
            None => {
                let inner = self.machine.inner.open(path, Access::Write)?;
                let cached = Cached {
                    inner,
                    dirty: BTreeMap::default(),
                    lost: BTreeMap::default(),
                };
                let cached = Arc::new(Mutex::new(cached));
                state.files.insert(path.to_owned(), Arc::clone(&cached));
                cached
            }
        };
        drop(state);
        Ok(Arc::new(PluggedFile {
            machine: Arc::clone(&self.machine),
            life: self.life,
            cached,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.machine.state(self.life)?;
        self.machine.inner.rename(from, to)?;
        if let Some(cached) = state.files.remove(from) {
            state.files.insert(to.to_owned(), cached);
        }
        state.undo.push(Undo::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
        });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.machine.state(self.life)?;
        state.removed += 1;
        let gone = path.with_file_name(format!("{GONE}{}", state.removed));
        self.machine.inner.rename(path, &gone)?;
        state.files.remove(path);
        state.undo.push(Undo::Remove {
            path: path.to_owned(),
            gone,
        });
        Ok(())
    }

    fn flush_directory(&self, directory: &Path) -> io::Result<()> {
        let mut state = self.machine.state(self.life)?;
        for undo in std::mem::take(&mut state.undo) {
            if let Undo::Remove { gone, .. } = undo {
                self.machine.inner.remove(&gone)?;
            }
        }
        self.machine.inner.flush_directory(directory)
    }
}

struct PluggedFile {
    machine: Arc<Machine>,
    life: u64,
    cached: Arc<Mutex<Cached>>,
}

impl DiskFile for PluggedFile {
    fn bytes(&self) -> io::Result<u64> {
        let _alive = self.machine.state(self.life)?;
        lock(&self.cached).inner.bytes()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let _alive = self.machine.state(self.life)?;
        let cached = lock(&self.cached);
        cached.inner.read_at(offset, into)?;
        for (i, piece) in into.chunks_mut(BLOCK_BYTES).enumerate() {
            let at = offset + (i * BLOCK_BYTES) as u64;
            if let Some(block) = cached.dirty.get(&at).or_else(|| cached.lost.get(&at)) {
                piece.copy_from_slice(&block.0);
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let _alive = self.machine.state(self.life)?;
        let mut cached = lock(&self.cached);
        for (i, piece) in bytes.as_chunks::<BLOCK_BYTES>().0.iter().enumerate() {
            let at = offset + (i * BLOCK_BYTES) as u64;
            cached.lost.remove(&at);
            cached.dirty.insert(at, Box::new(Block(*piece)));
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let delay = self.machine.state(self.life)?.faults.flush_delay;
        if !delay.is_zero() {
            thread::sleep(delay);
        }
        let mut state = self.machine.state(self.life)?;
        let mut cached = lock(&self.cached);
        if state.faults.lying_flushes {
            return Ok(());
        }
        if let Some(left) = &mut state.faults.failing_flush {
            *left -= 1;
            if *left == 0 {
                state.faults.failing_flush = None;
                let dirty = std::mem::take(&mut cached.dirty);
                cached.lost.extend(dirty);
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
        }
        for (offset, block) in std::mem::take(&mut cached.dirty) {
            cached.inner.write_at(offset, &block.0)?;
        }
        Ok(())
    }
}
