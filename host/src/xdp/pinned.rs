//! A node's acceptor in the kernel: its region in pinned maps, its program on an interface.

use super::grace::wait_for_programs;
use super::hold::Hold;
use super::link::{self, Link};
use super::pins::Pins;
use super::refusal;
use super::{ACCEPTOR, CLOCK, Frames, Mode, PASS, Settings, XdpError};
use crate::mapping::Mapping;
use crate::offload::{Offload, Refusal};
use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::xdp::XdpLink;
use consensus::region::Layout;
use consensus::tally::Count;
use serde::Deserialize;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

/// What becomes of the program when the process that attached it dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnHostDeath {
    /// It goes on voting, as far as its window.
    #[default]
    KeepVoting,
    /// The kernel detaches it; the votes stay.
    Seal,
}

impl OnHostDeath {
    /// A stable name for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::KeepVoting => "keep-voting",
            Self::Seal => "seal",
        }
    }
}

/// Where and how the program is to sit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seat {
    /// The interface, in the network namespace of this process.
    pub interface: String,
    /// How it is called.
    pub mode: Mode,
    /// What becomes of it when this process dies.
    pub on_host_death: OnHostDeath,
}

/// The program over pinned maps, attached or not.
#[derive(Debug)]
pub struct Pinned {
    ebpf: Ebpf,
    pins: Pins,
    seat: Seat,
    link: Option<Link>,
    /// Whether the link, if there is one, calls the acceptor.
    votes: bool,
    _hold: Hold,
}

impl Pinned {
    /// Loads the program over the pinned maps, which are made if they are not there, and waits until
    /// nothing votes on them: what an earlier process left attached passes everything from now on
    /// until [`Offload::install`].
    ///
    /// # Errors
    /// As for [`super::Loaded::load`]; or bpffs refuses; or another process has the pins.
    pub fn load(
        object: &[u8],
        settings: &Settings,
        pins: Pins,
        seat: Seat,
    ) -> Result<Self, XdpError> {
        pins.make()?;
        let hold = pins.hold()?;
        let mut ebpf = super::load(object, settings, Frames::NONE, Some(&pins))?;
        super::program(&mut ebpf, PASS)?
            .load()
            .map_err(XdpError::Verify)?;
        let mut pinned = Self {
            ebpf,
            pins,
            seat,
            link: None,
            votes: false,
            _hold: hold,
        };
        pinned.quiet()?;
        Ok(pinned)
    }

    /// The region's words. No program votes on them until [`Offload::install`].
    ///
    /// # Errors
    /// The maps are of another layout, or cannot be mapped.
    pub fn mapping(&self, layout: &Layout) -> Result<Mapping, XdpError> {
        super::mapping(&self.ebpf, layout)
    }

    /// Has whatever is attached pass everything, and waits until no run of it is under way.
    fn quiet(&mut self) -> Result<(), XdpError> {
        for mode in [Mode::Native, Mode::Generic] {
            let path = self.pins.link(mode);
            if !path.exists() {
                continue;
            }
            let link = Link::from_pin(&path, &self.seat.interface)?;
            if mode == self.seat.mode && link.is_on(&self.seat.interface) {
                self.link = Some(self.pointed(link, PASS)?);
                if self.seat.on_host_death == OnHostDeath::Seal {
                    // It was pinned by a life that was to be outlived.
                    unpin(&path)?;
                }
            } else {
                unpin(&path)?;
            }
        }
        let array = super::map(&self.ebpf, CLOCK)?;
        wait_for_programs(array.fd().as_fd()).map_err(XdpError::Grace)
    }

    /// The link, which calls another program from now on.
    fn pointed(&mut self, link: Link, name: &'static str) -> Result<Link, XdpError> {
        let refused = link::refused(&self.seat.interface);
        let attach = self.attach_refused(name);
        let program = super::program(&mut self.ebpf, name)?;
        let moved = XdpLink::try_from(link.fd).map(|link| {
            let id = program.attach_to_link(link);
            id.and_then(|id| program.take_link(id))
        });
        let link = moved.map_err(refused)?.map_err(attach)?;
        let fd = FdLink::try_from(link).map_err(link::refused(&self.seat.interface))?;
        Link::new(fd, &self.seat.interface)
    }

    fn attached(&mut self) -> Result<Link, XdpError> {
        let Seat {
            interface,
            mode,
            on_host_death,
        } = self.seat.clone();
        if on_host_death == OnHostDeath::KeepVoting {
            self.try_pin()?;
        }
        let attach = self.attach_refused(ACCEPTOR);
        let id = super::attach(&mut self.ebpf, ACCEPTOR, &interface, mode)?;
        let program = super::program(&mut self.ebpf, ACCEPTOR)?;
        let link = program.take_link(id).map_err(attach)?;
        let fd = FdLink::try_from(link).map_err(link::refused(&interface))?;
        let link = Link::new(fd, &interface)?;
        match on_host_death {
            OnHostDeath::KeepVoting => link.pinned(&self.pins, mode),
            OnHostDeath::Seal => Ok(link),
        }
    }

    /// Refuses where no link could be pinned. There is none to pin before it is attached, and to be
    /// refused then would put the program on the interface and take it off again at each try: some
    /// drivers reset their queues for either.
    fn try_pin(&mut self) -> Result<(), XdpError> {
        let path = self.pins.trial();
        unpin(&path)?;
        let program = super::program(&mut self.ebpf, ACCEPTOR)?;
        program.pin(&path).map_err(self.pins.pin_refused())?;
        unpin(&path)
    }

    fn attach_refused(
        &self,
        program: &'static str,
    ) -> impl FnOnce(aya::programs::ProgramError) -> XdpError + use<> {
        let (interface, mode) = (self.seat.interface.clone(), self.seat.mode);
        move |source| refusal::attach(program, &interface, mode, source)
    }
}

impl Offload for Pinned {
    fn engine(&self) -> &'static str {
        "xdp"
    }

    fn mode(&self) -> &'static str {
        self.seat.mode.name()
    }

    fn interface(&self) -> &str {
        &self.seat.interface
    }

    fn on_host_death(&self) -> &'static str {
        self.seat.on_host_death.name()
    }

    fn install(&mut self) -> Result<(), Refusal> {
        self.votes = false;
        let link = match self.link.take() {
            Some(link) if link.is_on(&self.seat.interface) => self.pointed(link, ACCEPTOR)?,
            left => {
                drop(left);
                unpin(&self.pins.link(self.seat.mode))?;
                self.attached()?
            }
        };
        self.link = Some(link);
        self.votes = true;
        Ok(())
    }

    fn is_installed(&self) -> bool {
        let link = self.link.as_ref();
        self.votes && link.is_some_and(|link| link.is_on(&self.seat.interface))
    }

    fn remove(&mut self) -> Result<(), Refusal> {
        unpin(&self.pins.link(self.seat.mode))?;
        self.link = None;
        self.votes = false;
        Ok(())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let Ok(counts) = super::counters(&self.ebpf) else {
            return Vec::new();
        };
        Count::all().map(Count::name).zip(counts).collect()
    }
}

/// Removes a link's pin. The link ends, before the call returns, with the last descriptor of it;
/// had the pin been the last to hold it, the kernel would come to it later.
fn unpin(path: &Path) -> Result<(), XdpError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(XdpError::Pins {
            doing: "unpin",
            path: path.to_owned(),
            source: error,
        }),
        Ok(()) | Err(_) => Ok(()),
    }
}
