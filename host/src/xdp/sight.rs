//! What is pinned, and what it does at this moment: read beside whatever votes.

use super::dispatcher;
use super::hold::Holder;
use super::link::{self, Link};
use super::pins::Pins;
use super::{ACCEPTOR, GROUP, HEADER, Mode, XdpError, netlink, occupant};
use crate::mapping::Mapping;
use aya::maps::{Array, Map};
use aya::programs::{ProgramError, loaded_programs};
use consensus::GroupId;
use consensus::region::{self, GroupView, Layout, Region};
use consensus::sync::AtomicU64;
use std::collections::BTreeSet;
use std::io;

/// How often a group's record is read again that was published anew meanwhile.
const TRIES: u32 = 1000;

/// One region among the pins of a bpffs.
#[derive(Debug)]
pub struct Sight {
    /// Its pins.
    pub pins: Pins,
    /// The process that uses it.
    pub holder: Holder,
    /// What is attached over it.
    pub attachment: Option<Attachment>,
    /// The programs that can vote on it, if this process may ask: that takes CAP_SYS_ADMIN.
    pub programs: Option<BTreeSet<u32>>,
    /// Its words, or why they are none.
    pub region: Result<Region<Mapping>, XdpError>,
}

/// A program over a region that an interface calls.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment {
    /// The interface, if it is in the network namespace of the calling thread.
    pub interface: Option<String>,
    /// How it is called.
    pub mode: &'static str,
    /// The program's number.
    pub program: u32,
    /// Whether it is the acceptor, and none that passes everything; as far as this process may ask.
    pub votes: Option<bool>,
    /// Whether its link is pinned: then it outlives the process.
    pub is_pinned: bool,
}

impl Sight {
    /// Looks at one region.
    ///
    /// # Errors
    /// The system refuses to show the pins.
    pub fn of(pins: Pins) -> Result<Self, XdpError> {
        let holder = pins.holder().map_err(pins.refused("look at"))?;
        let programs = programs_over(&pins);
        Ok(Self {
            holder,
            attachment: attachment(&pins, programs.as_ref())?,
            programs,
            region: pins.region(),
            pins,
        })
    }

    /// Whether a program is this region's.
    pub fn has(&self, program: u32) -> bool {
        let is_attached = self
            .attachment
            .as_ref()
            .is_some_and(|on| on.program == program);
        let programs = self.programs.as_ref();
        is_attached || programs.is_some_and(|programs| programs.contains(&program))
    }

    /// What the first group's record says.
    pub fn view(&self) -> Option<GroupView> {
        let region = self.region.as_ref().ok()?;
        (0..TRIES).find_map(|_| region::view(region, GroupId(0)))
    }
}

impl Pins {
    /// The region, which something may be stepping. Its dimensions are those of its header.
    ///
    /// # Errors
    /// A map is missing or is no region's.
    pub fn region(&self) -> Result<Region<Mapping>, XdpError> {
        let named = |source| XdpError::Map {
            name: HEADER,
            source,
        };
        let header = Array::<_, [u64; 512]>::try_from(Map::Array(self.open(HEADER)?));
        let words = header.and_then(|header| header.get(&0, 0)).map_err(named)?;
        let words = words.map(AtomicU64::new);
        let (layout, _) = Layout::of_header(&words)?;
        Ok(Region::beside(self.mapping(&layout)?)?)
    }
}

/// The programs that vote on a region. `None` if this process may not ask.
pub(super) fn programs_over(pins: &Pins) -> Option<BTreeSet<u32>> {
    // Programs have the maps that they mention, and the header is the host's.
    let map = pins.open(GROUP).ok()?.info().ok()?.id();
    let mut over = BTreeSet::new();
    for program in loaded_programs() {
        let program = match program {
            Ok(program) => program,
            Err(ProgramError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::PermissionDenied =>
            {
                return None;
            }
            // It was unloaded while we listed.
            Err(_) => continue,
        };
        let maps = program.map_ids().ok().flatten().unwrap_or_default();
        if maps.contains(&map) {
            over.insert(program.id());
        }
    }
    Some(over)
}

fn attachment(
    pins: &Pins,
    programs: Option<&BTreeSet<u32>>,
) -> Result<Option<Attachment>, XdpError> {
    let interfaces = netlink::interfaces().map_err(XdpError::Interfaces)?;
    let attached = |mode, program, is_pinned| {
        let on = interfaces
            .iter()
            .find(|interface| interface.programs.contains(&(mode, program)));
        Attachment {
            interface: on.map(|interface| interface.name.clone()),
            mode,
            program,
            votes: occupant::program_name(program).map(|name| name == ACCEPTOR),
            is_pinned,
        }
    };
    for mode in [Mode::Native, Mode::Generic] {
        let path = pins.link(mode);
        if !path.exists() {
            continue;
        }
        let link = Link::from_pin(&path, "its interface")?;
        if link.is_tied() {
            let info = link.fd.info().map_err(link::refused("its interface"))?;
            return Ok(Some(attached(mode.name(), info.program_id(), true)));
        }
    }
    // Who may not look at libxdp's pins is told of no place in its dispatcher.
    for place in dispatcher::places(pins).unwrap_or_default() {
        let on = interfaces.iter().find_map(|interface| {
            let mode = place.mode_on(interface)?;
            Some((interface.name.clone(), mode))
        });
        if let Some((interface, mode)) = on {
            return Ok(Some(Attachment {
                interface: Some(interface),
                ..attached(mode, place.program, true)
            }));
        }
    }
    // A link that nobody pinned is seen from its interface alone.
    let found = interfaces
        .iter()
        .flat_map(|interface| &interface.programs)
        .find(|(_, program)| programs.is_some_and(|programs| programs.contains(program)));
    Ok(found.map(|&(mode, program)| attached(mode, program, false)))
}
