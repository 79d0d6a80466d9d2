//! The link that ties a program to an interface.

use super::pins::Pins;
use super::{Mode, XdpError, netlink};
use aya::programs::links::{FdLink, PinnedLink};
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

/// What a link ties together.
struct Tied {
    /// The interface's number in its network namespace.
    index: u32,
    program: u32,
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

    /// Whether it is tied to this interface of the calling thread's network namespace: it is to none
    /// once somebody has detached it or the interface is gone.
    pub(super) fn is_on(&self, interface: &str) -> bool {
        // What cannot be asked is no answer.
        match netlink::interface(interface) {
            Err(_) => true,
            Ok(None) => false,
            // The kernel tells the number of a link's interface, but not in which namespace: another
            // may have the same. A program's number means the same everywhere, and this one's
            // program has no other link.
            Ok(Some(found)) => self.tied().is_none_or(|tied| {
                let is_called = |program| found.programs.iter().any(|(_, id)| *id == program);
                tied.is_some_and(|tied| tied.index == found.index && is_called(tied.program))
            }),
        }
    }

    /// Whether it is tied to an interface of any network namespace.
    pub(super) fn is_tied(&self) -> bool {
        self.tied().flatten().is_some()
    }

    /// To what it is tied; `None` if the kernel cannot be asked.
    fn tied(&self) -> Option<Option<Tied>> {
        let mut text = [0; 4096];
        let length = self.fdinfo.read_at(&mut text, 0).ok()?;
        let text = String::from_utf8_lossy(text.get(..length)?);
        let index = field(&text, "ifindex").filter(|index| *index != 0);
        Some(
            index
                .zip(field(&text, "prog_id"))
                .map(|(index, program)| Tied { index, program }),
        )
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
