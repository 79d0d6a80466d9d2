//! The link that ties a program to an interface.

use super::pins::Pins;
use super::{Mode, XdpError};
use aya::programs::links::{FdLink, PinnedLink};
use nix::errno::Errno;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// A link of the kernel that this process holds, pinned or not.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) fd: FdLink,
    /// Where the kernel says what it is tied to. Open, since descriptors may run out later.
    fdinfo: File,
}

impl Link {
    pub(super) fn new(fd: FdLink, interface: &str) -> Result<Self, XdpError> {
        let id = fd.info().map_err(refused(interface))?.id();
        let fdinfo = fdinfo(id).and_then(|path| File::open(path).ok());
        let fdinfo = fdinfo.ok_or_else(|| XdpError::Vanished(interface.to_owned()))?;
        Ok(Self { fd, fdinfo })
    }

    pub(super) fn from_pin(path: &Path, interface: &str) -> Result<Self, XdpError> {
        let link = PinnedLink::from_pin(path).map_err(refused(interface))?;
        Self::new(FdLink::from(link), interface)
    }

    /// Pins it, so that it outlives this process.
    pub(super) fn pinned(self, pins: &Pins, mode: Mode) -> Result<Self, XdpError> {
        let Self { fd, fdinfo } = self;
        let pinned = fd.pin(pins.link(mode)).map_err(pins.pin_refused())?;
        let fd = FdLink::from(pinned);
        Ok(Self { fd, fdinfo })
    }

    /// Whether it is tied to this interface: it is to none once somebody has detached it or the
    /// interface is gone.
    pub(super) fn is_on(&self, interface: &str) -> bool {
        match nix::net::if_::if_nametoindex(interface) {
            Err(Errno::ENODEV) => false,
            // What cannot be asked is no answer.
            Err(_) => true,
            Ok(index) => self.tied().is_none_or(|tied| tied == Some(index)),
        }
    }

    /// The number of the interface that it is tied to, in that one's network namespace.
    pub(super) fn index(&self) -> Option<u32> {
        self.tied().flatten()
    }

    /// The same; `None` if the kernel cannot be asked.
    fn tied(&self) -> Option<Option<u32>> {
        let mut text = [0; 4096];
        let length = self.fdinfo.read_at(&mut text, 0).ok()?;
        let text = String::from_utf8_lossy(text.get(..length)?);
        Some(field(&text, "ifindex").filter(|index| *index != 0))
    }
}

pub(super) fn refused(interface: &str) -> impl FnOnce(aya::programs::links::LinkError) -> XdpError {
    let interface = interface.to_owned();
    move |source| XdpError::Link { interface, source }
}

/// Whether this process holds a link to this program.
pub(super) fn is_held_to(program: u32) -> bool {
    fdinfo_where(|text| field(text, "link_id").is_some() && field(text, "prog_id") == Some(program))
        .is_some()
}

/// Where the kernel describes the descriptor of the link `id`, which this process holds.
fn fdinfo(id: u32) -> Option<PathBuf> {
    fdinfo_where(|text| field(text, "link_id") == Some(id))
}

fn fdinfo_where(is_meant: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let entries = fs::read_dir("/proc/self/fdinfo").ok()?;
    entries.flatten().map(|entry| entry.path()).find(|path| {
        let text = fs::read_to_string(path).unwrap_or_default();
        is_meant(&text)
    })
}

/// A number in the text of a `/proc/…/fdinfo`: `name:`, a tab, the number.
fn field(text: &str, name: &str) -> Option<u32> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().parse().ok()
}
