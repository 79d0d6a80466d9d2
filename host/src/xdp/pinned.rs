//! A node's acceptor in the kernel: its region in pinned maps, its program on an interface.

use super::dispatcher;
use super::grace::wait_for_programs;
use super::hold::Hold;
use super::link::{self, Link};
use super::pins::Pins;
use super::refusal;
use super::{ACCEPTOR, CLOCK, COUNTERS, Frames, Mode, PASS, Settings, XdpError};
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
use std::sync::Arc;
use std::thread::{self, JoinHandle};

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

/// What ties the program to the interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attach {
    /// A link of its own: no other program is called there.
    #[default]
    Link,
    /// A place in libxdp's dispatcher, which calls several programs in turn.
    Dispatcher,
}

impl Attach {
    /// A stable name for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Dispatcher => "dispatcher",
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
    /// What ties it there.
    pub attach: Attach,
    /// What becomes of it when this process dies.
    pub on_host_death: OnHostDeath,
}

/// The program over pinned maps, attached or not.
#[derive(Debug)]
pub struct Pinned {
    ebpf: Ebpf,
    pins: Pins,
    seat: Seat,
    /// What libxdp is given, where it is to attach the program.
    for_libxdp: Option<Arc<[u8]>>,
    /// libxdp's tool at work.
    work: Option<JoinHandle<Result<(), XdpError>>>,
    /// Why it failed last.
    said: Option<String>,
    link: Option<Link>,
    /// Whether what is attached, if anything is, calls the acceptor.
    votes: bool,
    hold: Hold,
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
        let for_libxdp = match seat.attach {
            Attach::Link => None,
            Attach::Dispatcher => Some(dispatcher::object(object, settings)?.into()),
        };
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
            for_libxdp,
            work: None,
            said: None,
            link: None,
            votes: false,
            hold,
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
        dispatcher::clear(&self.pins)?;
        for mode in [Mode::Native, Mode::Generic] {
            let path = self.pins.link(mode);
            if !path.exists() {
                continue;
            }
            let link = Link::from_pin(&path, &self.seat.interface)?;
            let is_its_own = self.seat.attach == Attach::Link && mode == self.seat.mode;
            if is_its_own && link.is_on(&self.seat.interface) {
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
            ..
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

    /// Has libxdp load and attach it over the same maps.
    fn begin(&self, object: Arc<[u8]>) -> Result<JoinHandle<Result<(), XdpError>>, XdpError> {
        // Its counters go on where those of this process do.
        let path = self.pins.map(COUNTERS);
        if !path.exists() {
            let counters = self.ebpf.map(COUNTERS);
            let counters = counters.ok_or_else(|| super::missing(COUNTERS))?;
            let pinned = counters.pin(&path);
            pinned.map_err(|source| XdpError::Pin { path, source })?;
        }
        let (pins, seat) = (self.pins.clone(), self.seat.clone());
        let hold = self.hold.for_child().map_err(self.pins.refused("hold"))?;
        Ok(thread::spawn(move || {
            dispatcher::unload(&pins)?;
            dispatcher::load(&object, &pins, hold, &seat.interface, seat.mode)
        }))
    }

    /// What came of having libxdp load it, which takes the time of a process and of the verifier.
    fn chained(&mut self, object: Arc<[u8]>) -> Result<(), Refusal> {
        let work = match self.work.take() {
            Some(work) => work,
            None => self.begin(object)?,
        };
        if !work.is_finished() {
            self.work = Some(work);
            let waits = || "xdp-loader is putting it there".into();
            return Err(self.said.clone().unwrap_or_else(waits).into());
        }
        let ended = work.join().map_err(|_| "xdp-loader's thread panicked")?;
        self.said = ended.as_ref().err().map(ToString::to_string);
        Ok(ended?)
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

    fn attach(&self) -> &'static str {
        self.seat.attach.name()
    }

    fn on_host_death(&self) -> &'static str {
        self.seat.on_host_death.name()
    }

    fn install(&mut self) -> Result<(), Refusal> {
        self.votes = false;
        if let Some(object) = self.for_libxdp.clone() {
            self.chained(object)?;
            self.votes = true;
            return Ok(());
        }
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
        if self.for_libxdp.is_some() {
            // What cannot be asked is no answer.
            let is_called = || dispatcher::is_called(&self.pins, &self.seat.interface);
            return self.votes && is_called().unwrap_or(true);
        }
        let link = self.link.as_ref();
        self.votes && link.is_some_and(|link| link.is_on(&self.seat.interface))
    }

    fn remove(&mut self) -> Result<(), Refusal> {
        if let Some(work) = self.work.take() {
            // What it attaches is to go, and of its failure nobody asks any more.
            let _ = work.join();
        }
        dispatcher::unload(&self.pins)?;
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

/// Removes a pin, if it is there. Of a link: it ends, before the call returns, with the last descriptor of it;
/// had the
/// pin been the last to hold it, the kernel would come to it later.
pub(super) fn unpin(path: &Path) -> Result<(), XdpError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(XdpError::Pins {
            doing: "unpin",
            path: path.to_owned(),
            source: error,
        }),
        Ok(()) | Err(_) => Ok(()),
    }
}
