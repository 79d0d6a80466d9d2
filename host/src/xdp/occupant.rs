//! Who sits on an interface.

use super::netlink;
use aya::programs::{loaded_links, loaded_programs};
use std::fmt;
use std::io;

/// What libxdp calls its dispatcher.
const DISPATCHER: &str = "xdp_dispatcher";

/// An XDP program on an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Occupant {
    /// How it is called: `native`, `generic` or `hardware`.
    pub mode: &'static str,
    /// Its number in this kernel.
    pub id: u32,
    /// Its name, if this process may ask: that takes CAP_SYS_ADMIN.
    pub name: Option<String>,
    /// The number of the link that ties it, if there is one and this process may ask.
    pub link: Option<u32>,
}

impl Occupant {
    /// The programs among these that sit on an interface.
    pub fn all(programs: &[(&'static str, u32)]) -> Vec<Self> {
        let occupant = |&(mode, id): &(&'static str, u32)| Self {
            mode,
            id,
            name: program_name(id),
            link: link_of(id),
        };
        programs.iter().map(occupant).collect()
    }

    /// Those on an interface of the calling thread's network namespace.
    ///
    /// # Errors
    /// The system refuses.
    pub fn on(interface: &str) -> io::Result<Vec<Self>> {
        let found = netlink::interface(interface)?;
        Ok(found.map_or_else(Vec::new, |found| Self::all(&found.programs)))
    }

    /// Its number and its name.
    fn program(&self) -> String {
        match &self.name {
            Some(name) => format!("program {} ({name})", self.id),
            None => format!("program {}", self.id),
        }
    }

    /// What takes it off `interface`.
    pub fn remedy(&self, interface: &str) -> String {
        if self.name.as_deref() == Some(DISPATCHER) {
            return "that is libxdp's, and has places for others: write attach = \"dispatcher\" in \
                    [offload]"
                .into();
        }
        let by_name = match self.mode {
            "native" => format!("ip link set dev {interface} xdpdrv off"),
            "generic" => format!("ip link set dev {interface} xdpgeneric off"),
            _ => format!("ip link set dev {interface} xdpoffload off"),
        };
        match self.link {
            Some(link) => format!(
                "end the process that holds its link, or remove the link's pin, or `bpftool link \
                 detach id {link}`"
            ),
            None => format!("`{by_name}`, or end the process that put it there"),
        }
    }
}

impl fmt::Display for Occupant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {} mode", self.program(), self.mode)
    }
}

/// The name of a program that is loaded.
pub(super) fn program_name(id: u32) -> Option<String> {
    // Others are unloaded while we list; who may not list has one error.
    let program = loaded_programs()
        .flatten()
        .find(|program| program.id() == id)?;
    program.name_as_str().map(str::to_owned)
}

fn link_of(program: u32) -> Option<u32> {
    let link = loaded_links()
        .flatten()
        .find(|link| link.program_id() == program)?;
    Some(link.id())
}
