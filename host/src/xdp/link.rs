//! The link that ties a program to an interface.

use super::XdpError;
use aya::programs::links::{FdLink, PinnedLink};
use std::fs;
use std::path::{Path, PathBuf};

/// A link of the kernel that this process holds, pinned or not.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) fd: FdLink,
    /// Where the kernel says what it is tied to.
    fdinfo: PathBuf,
}

impl Link {
    pub(super) fn new(fd: FdLink, interface: &str) -> Result<Self, XdpError> {
        let id = fd.info().map_err(refused(interface))?.id();
        let fdinfo = fdinfo(id).ok_or_else(|| XdpError::Vanished(interface.to_owned()))?;
        Ok(Self { fd, fdinfo })
    }

    pub(super) fn from_pin(path: &Path, interface: &str) -> Result<Self, XdpError> {
        let link = PinnedLink::from_pin(path).map_err(refused(interface))?;
        Self::new(FdLink::from(link), interface)
    }

    /// Pins it, so that it outlives this process.
    pub(super) fn pinned(self, path: &Path) -> Result<Self, XdpError> {
        let Self { fd, fdinfo } = self;
        let pinned = fd.pin(path).map_err(|source| XdpError::Pin {
            path: path.to_owned(),
            source,
        })?;
        let fd = FdLink::from(pinned);
        Ok(Self { fd, fdinfo })
    }

    /// Whether it is tied to this interface: it is to none once somebody has detached it or the
    /// interface is gone.
    pub(super) fn is_on(&self, interface: &str) -> bool {
        let index = nix::net::if_::if_nametoindex(interface).unwrap_or_default();
        let text = fs::read_to_string(&self.fdinfo).unwrap_or_default();
        index != 0 && field(&text, "ifindex") == Some(index)
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
