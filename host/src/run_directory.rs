//! A directory of a run's own, gone when the run is over.
//!
//! The owner holds a lock (`flock`) on the directory itself for as long as it lives, however it
//! ends. So a directory that can be locked is a leftover, and the next run removes it.

use nix::unistd::{Uid, geteuid};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How the names of those that are to stay begin.
const KEPT: &str = "nearwire-kept-";
/// Names tried before giving up.
const MAX_NAMES: u32 = 64;
/// Attempts at removing a directory in which a dying replica may still write.
const MAX_REMOVALS: u32 = 20;
/// Leftovers removed by one run.
const MAX_LEFTOVERS: usize = 64;

/// A locked directory that only this user reads.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    kept: bool,
    removed: Arc<AtomicBool>,
    _lock: File,
}

impl RunDirectory {
    /// Makes a directory in `parent` whose name begins with `prefix`, after removing the leftovers
    /// of that prefix there. One that is to be `kept` has another name and stays, whatever happens.
    ///
    /// # Errors
    /// The system refuses.
    pub fn create(parent: &Path, prefix: &str, kept: bool) -> io::Result<Self> {
        remove_leftovers(parent, prefix);
        let prefix = if kept { KEPT } else { prefix };
        let process = std::process::id();
        for attempt in 0..MAX_NAMES {
            let path = match attempt {
                0 => parent.join(format!("{prefix}{process}")),
                _ => parent.join(format!("{prefix}{process}-{attempt}")),
            };
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                result => result?,
            }
            // Another run may have taken the directory for a leftover before it was locked.
            if let Some(lock) = lock(&path)? {
                return Ok(Self {
                    path,
                    kept,
                    removed: Arc::new(AtomicBool::new(false)),
                    _lock: lock,
                });
            }
        }
        Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "every name for it is taken",
        ))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the directory and says what went wrong.
    ///
    /// # Errors
    /// The system refuses.
    pub fn remove(self) -> io::Result<()> {
        remove(&self.path)
    }

    /// Removes the directory at a panic too: a release build aborts, so that nothing is dropped.
    pub(crate) fn remove_on_panic(&self) {
        if self.kept {
            return;
        }
        let (path, removed) = (self.path.clone(), Arc::clone(&self.removed));
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            before(panic);
            if !removed.load(Ordering::Relaxed) {
                let _ = remove(&path);
            }
        }));
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        if !self.kept {
            let _ = remove(&self.path);
            self.removed.store(true, Ordering::Relaxed);
        }
    }
}

/// The lock on the directory `path`, unless another process has it or the directory is gone.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(None),
        Err(fs::TryLockError::Error(error)) => return Err(error),
    }
    let locked = file.metadata()?;
    let same = fs::symlink_metadata(path)
        .is_ok_and(|found| (found.dev(), found.ino()) == (locked.dev(), locked.ino()));
    Ok(same.then_some(file))
}

fn remove(path: &Path) -> io::Result<()> {
    let mut result = Ok(());
    for _ in 0..MAX_REMOVALS {
        result = fs::remove_dir_all(path);
        match &result {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    result
}

/// Removes what dead runs of this user left in `parent`. What cannot be removed stays.
fn remove_leftovers(parent: &Path, prefix: &str) {
    let own: Uid = geteuid();
    let leftovers = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(prefix.as_bytes())
        })
        .map(|entry| entry.path())
        // Not a link, and nobody else's: in a shared directory anybody can use the name.
        .filter(|path| {
            fs::symlink_metadata(path)
                .is_ok_and(|found| found.is_dir() && found.uid() == own.as_raw())
        });
    for path in leftovers.take(MAX_LEFTOVERS) {
        if let Ok(Some(_lock)) = lock(&path) {
            let _ = remove(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const PREFIX: &str = "nearwire-test-";

    fn create(parent: &Path, kept: bool) -> RunDirectory {
        RunDirectory::create(parent, PREFIX, kept).expect("a directory")
    }

    #[test]
    fn a_directory_goes_with_its_owner_and_a_kept_one_stays() {
        let parent = tempfile::tempdir().expect("a directory");
        for (kept, left) in [(false, 0), (true, 1)] {
            let directory = create(parent.path(), kept);
            let mode = fs::metadata(directory.path())
                .expect("it exists")
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o700);
            fs::write(directory.path().join("file"), "text").expect("it is writable");
            drop(directory);
            assert_eq!(
                fs::read_dir(parent.path()).expect("it exists").count(),
                left
            );
        }
    }

    #[test]
    fn a_panic_takes_the_directory_along_even_if_nothing_is_dropped() {
        let parent = tempfile::tempdir().expect("a directory");
        let directory = std::mem::ManuallyDrop::new(create(parent.path(), false));
        directory.remove_on_panic();
        let thread = std::thread::spawn(|| panic!("on purpose"));
        assert!(thread.join().is_err());
        assert!(!directory.path().exists());
    }

    #[test]
    fn leftovers_go_and_living_and_kept_directories_stay() {
        let parent = tempfile::tempdir().expect("a directory");
        let living = create(parent.path(), false);
        let kept = create(parent.path(), true).path().to_owned();
        let dead = parent.path().join(format!("{PREFIX}1"));
        fs::create_dir_all(dead.join("data-1")).expect("writable");
        let foreign = parent.path().join("else");
        fs::create_dir(&foreign).expect("writable");
        let link = parent.path().join(format!("{PREFIX}2"));
        std::os::unix::fs::symlink(&foreign, &link).expect("writable");

        let second = create(parent.path(), false);
        assert!(!dead.exists(), "its owner is dead");
        assert!(living.path().exists() && kept.exists() && second.path().exists());
        assert!(
            foreign.exists() && link.is_symlink(),
            "a link is not followed"
        );
    }
}
