//! A directory for one run, whose leftovers the next run removes.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// How the names of all such directories begin.
const PREFIX: &str = "nearwire-bench-";
/// The file in it that is locked as long as its run lives. A lock ends with its process however
/// that ends.
const LOCK: &str = "lock";
/// Leftovers removed by one run.
const MAX_LEFTOVERS: usize = 64;

/// A directory, removed when dropped.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Makes one in `parent`, after removing those whose runs were killed.
    pub(super) fn create(parent: &Path) -> io::Result<Self> {
        sweep(parent);
        let random = getrandom::u64().map_err(io::Error::other)?;
        let path = parent.join(format!("{PREFIX}{random:016x}"));
        let doing = |error: io::Error| {
            io::Error::new(error.kind(), format!("make {}: {error}", path.display()))
        };
        fs::create_dir(&path).map_err(doing)?;
        let lock = File::create(path.join(LOCK)).map_err(doing)?;
        lock.lock().map_err(doing)?;
        Ok(Self { path, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it and says what went wrong.
    pub(super) fn remove(self) -> io::Result<()> {
        fs::remove_dir_all(&self.path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes what killed runs left. One that cannot be removed is in nobody's way.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    let ours = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy());
        name.is_some_and(|name| name.starts_with(PREFIX))
    };
    let leftovers = entries.filter_map(|entry| Some(entry.ok()?.path()));
    for path in leftovers.filter(ours).take(MAX_LEFTOVERS) {
        // Between its making and its lock a directory looks like a leftover without a lock file;
        // such a one stays.
        let Ok(lock) = File::open(path.join(LOCK)) else {
            continue;
        };
        match lock.try_lock() {
            Ok(()) => _ = fs::remove_dir_all(&path),
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_run_removes_what_a_killed_one_left() {
        let parent = tempfile::tempdir().expect("a directory");
        let left = parent.path().join("nearwire-bench-left");
        fs::create_dir(&left).expect("made");
        fs::write(left.join(LOCK), "").expect("written");
        let living = Directory::create(parent.path()).expect("made");
        assert!(!left.exists());
        let next = Directory::create(parent.path()).expect("made");
        assert!(living.path().exists(), "a living run keeps its directory");
        next.remove().expect("removed");
        drop(living);
        let rest = fs::read_dir(parent.path()).expect("readable").count();
        assert_eq!(rest, 0);
    }
}
