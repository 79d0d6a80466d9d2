//! A directory for the time of one step.

use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process;

use anyhow::Context as _;

/// A directory left by a killed run is known by this name and the number of a dead process.
const SCRATCH_PREFIX: &str = "nearwire-plain-build-";

/// A fresh directory on disk, removed with what is in it.
///
/// It is not under `target/`: a checkout in root's home cannot be reached by anybody else.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Makes one that every user may enter.
    pub(crate) fn create() -> anyhow::Result<Self> {
        let on_disk = Path::new("/var/tmp");
        let parent = if on_disk.is_dir() {
            on_disk.to_owned()
        } else {
            env::temp_dir()
        };
        remove_abandoned(&parent);
        let path = parent.join(format!("{SCRATCH_PREFIX}{}", process::id()));
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        let scratch = Self(path);
        fs::set_permissions(&scratch.0, Permissions::from_mode(0o755))
            .with_context(|| format!("open {} to the user", scratch.0.display()))?;
        Ok(scratch)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes what killed runs left; another user's cannot be removed and stays.
fn remove_abandoned(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(SCRATCH_PREFIX));
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
