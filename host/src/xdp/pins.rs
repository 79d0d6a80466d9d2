//! Where in bpffs the kernel keeps a node's region and program.

use super::dispatcher;
use super::grace::wait_for_programs;
use super::link::Link;
use super::{Mode, XdpError};
use crate::mapping::Mapping;
use aya::maps::MapData;
use aya::pin::PinError;
use consensus::region::Layout;
pub use datapath::netns::BPFFS;
use nix::sys::statfs::{FsType, statfs};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// The directory of all nodes below it.
const OURS: &str = "nearwire";
/// `BPF_FS_MAGIC` in the kernel's `magic.h`.
const BPF_FS: FsType = FsType(0xcafe_4a11);

/// The pins of one region: `nearwire/<nonce>/` in a bpffs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// Those of the region with this nonce.
    ///
    /// # Errors
    /// `bpffs` is none.
    pub fn new(bpffs: &Path, nonce: u64) -> Result<Self, XdpError> {
        check(bpffs)?;
        Ok(Self {
            directory: bpffs.join(OURS).join(format!("{nonce:016x}")),
        })
    }

    /// All that are in `bpffs`, by their numbers.
    ///
    /// # Errors
    /// It is none, or cannot be listed.
    pub fn all(bpffs: &Path) -> Result<Vec<Self>, XdpError> {
        check(bpffs)?;
        let ours = bpffs.join(OURS);
        let refused = |source| XdpError::Pins {
            doing: "list",
            path: ours.clone(),
            source,
        };
        let entries = match fs::read_dir(&ours) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(refused)?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let directory = entry.map_err(refused)?.path();
            all.push(Self { directory });
        }
        all.sort_by(|one, other| one.directory.cmp(&other.directory));
        Ok(all)
    }

    /// Whose region they are.
    pub fn nonce(&self) -> Option<u64> {
        u64::from_str_radix(self.directory.file_name()?.to_str()?, 16).ok()
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether a region is there.
    pub fn hold_region(&self) -> bool {
        self.map(super::HEADER).exists()
    }

    /// Makes the directory.
    pub(super) fn make(&self) -> Result<(), XdpError> {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory);
        made.map_err(self.refused("make"))
    }

    /// Where a map is.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.directory.join(name.to_ascii_lowercase())
    }

    /// Where the link of a program in this mode is.
    pub(super) fn link(&self, mode: Mode) -> PathBuf {
        self.directory.join(format!("link_{}", mode.name()))
    }

    /// Where it is tried whether anything can be pinned.
    pub(super) fn trial(&self) -> PathBuf {
        self.directory.join("trial")
    }

    /// Detaches what is attached, and waits until nothing votes on the maps.
    ///
    /// # Errors
    /// The system refuses.
    pub fn detach(&self) -> Result<(), XdpError> {
        dispatcher::clear(self)?;
        for mode in [Mode::Native, Mode::Generic] {
            let path = self.link(mode);
            if path.exists() {
                // Held while its pin goes, the link ends in this very call. See `Pinned::unpin`.
                let link = Link::from_pin(&path, "its interface")?;
                fs::remove_file(&path).map_err(self.refused("unpin a link in"))?;
                drop(link);
            }
        }
        let header = self.open(super::HEADER)?;
        wait_for_programs(header.fd().as_fd()).map_err(XdpError::Grace)
    }

    /// The region's words.
    ///
    /// # Errors
    /// A map is missing, or of another layout.
    pub fn mapping(&self, layout: &Layout) -> Result<Mapping, XdpError> {
        let [header, peer, group, entry] = super::SECTIONS.map(|name| self.open(name));
        super::mapping_of([&header?, &peer?, &group?, &entry?], layout)
    }

    pub(super) fn open(&self, name: &'static str) -> Result<MapData, XdpError> {
        MapData::from_pin(self.map(name)).map_err(|source| XdpError::Map { name, source })
    }

    /// Whether all maps of a region are there.
    ///
    /// # Errors
    /// That cannot be told, for instance because the directory is another user's.
    pub fn are_complete(&self) -> Result<bool, XdpError> {
        for name in super::SECTIONS {
            if !self
                .map(name)
                .try_exists()
                .map_err(self.refused("look into"))?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Removes them, if they are there and no process has them.
    ///
    /// # Errors
    /// A process has them, or the system refuses.
    pub fn discard(&self) -> Result<(), XdpError> {
        if !self
            .directory
            .try_exists()
            .map_err(self.refused("look for"))?
        {
            return Ok(());
        }
        let _hold = self.hold()?;
        self.remove()
    }

    /// Detaches what is attached and removes the pins: the kernel forgets what nobody else holds.
    ///
    /// # Errors
    /// The system refuses.
    pub fn remove(&self) -> Result<(), XdpError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(self.refused("list"))?,
        };
        if self.hold_region() {
            self.detach()?;
        }
        for entry in entries {
            let path = entry.map_err(self.refused("list"))?.path();
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.refused("empty")(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        fs::remove_dir(&self.directory).map_err(self.refused("remove"))
    }

    pub(super) fn pin_refused(&self) -> impl FnOnce(PinError) -> XdpError + use<> {
        let path = self.directory.clone();
        move |source| XdpError::Pin { path, source }
    }

    pub(super) fn refused(&self, doing: &'static str) -> impl FnOnce(io::Error) -> XdpError {
        let path = self.directory.clone();
        move |source| XdpError::Pins {
            doing,
            path,
            source,
        }
    }
}

/// Refuses what is no bpffs.
fn check(bpffs: &Path) -> Result<(), XdpError> {
    let kind = statfs(bpffs).map_err(|error| XdpError::Pins {
        doing: "look at",
        path: bpffs.to_owned(),
        source: error.into(),
    })?;
    if kind.filesystem_type() != BPF_FS {
        return Err(XdpError::NoBpffs(bpffs.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn pins_are_held_for_as_long_as_a_child_works_on_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let pins = Pins {
            directory: directory.path().to_owned(),
        };
        let hold = pins.hold().expect("nobody has them");
        let mut child = Command::new("sleep")
            .arg("600")
            .stdin(hold.for_child().expect("descriptors are left"))
            .spawn()
            .expect("coreutils");
        // As a process that dies.
        drop(hold);
        let meanwhile = pins.hold();
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        let refused = meanwhile.expect_err("the child had them");
        assert!(matches!(refused, XdpError::Held { .. }), "{refused}");
        pins.hold().expect("nobody has them");
    }
}
