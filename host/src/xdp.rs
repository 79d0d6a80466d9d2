//! The acceptor in XDP, seen from user space: the program loaded over a region of its own.

mod btf;
pub mod capabilities;
pub mod dispatcher;
mod grace;
mod hold;
mod libxdp_object;
mod link;
pub mod netlink;
mod object;
mod occupant;
mod own;
mod pinned;
mod pins;
mod refusal;
mod repeat;
mod sight;
mod time_namespace;

pub use hold::{Hold, Holder};
pub use occupant::Occupant;
pub use own::own;
pub use pinned::{Attach, OnHostDeath, Pinned, Seat};
pub use pins::{BPFFS, Pins};
pub use repeat::{Ran, Repeater, Timed};
pub use sight::{Attachment, Sight};
pub use time_namespace::refuse_other_clock;

use crate::mapping::Mapping;
use aya::maps::{Array, MapData, MapError, PerCpuArray};
use aya::pin::PinError;
use aya::programs::links::LinkError;
use aya::programs::xdp::XdpLinkId;
use aya::programs::{ProgramError, TestRun as _, TestRunOptions, TestRunResult, Xdp, XdpMode};
use aya::{Ebpf, EbpfError, EbpfLoader, VerifierLogLevel};
use consensus::auth::Keys;
use consensus::frame::{Own, XDP_VALUE_BYTES};
use consensus::region::{Birth, Layout, OpenError, Region, group};
use consensus::tally::Count;
use consensus::{Epoch, NodeId};
use nix::net::if_::if_nametoindex;
use serde::Deserialize;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The object that this build embeds. `None` if its sources were newer than the committed one and
/// could not be built.
pub const OBJECT: Option<&[u8]> = include!(concat!(env!("OUT_DIR"), "/xdp_object.rs"));

const ACCEPTOR: &str = "acceptor";
const PASS: &str = "pass";
const ECHO: &str = "echo";
const CLOCK: &str = "CLOCK";
const COUNTERS: &str = "COUNTERS";
const ENTRY: &str = "ENTRY";
const GROUP: &str = "GROUP";
const HEADER: &str = "HEADER";
const PEER: &str = "PEER";

/// The acceptor cannot be put into the kernel, or not be asked there.
#[derive(Debug, thiserror::Error)]
pub enum XdpError {
    /// The object is not what this build makes.
    #[error("read the XDP object: {0}")]
    Object(String),
    /// The kernel refuses maps or program.
    #[error("load the XDP object: {}", refusal::told(.0))]
    Load(#[from] EbpfError),
    /// The verifier refuses the program; its log ends the text.
    #[error("verify the XDP program: {}", refusal::told(.0))]
    Verify(ProgramError),
    /// The interface does not take the program.
    #[error("attach {program} to {interface} in {mode} mode: {said}")]
    Attach {
        /// Which program.
        program: &'static str,
        /// Where.
        interface: String,
        /// How.
        mode: &'static str,
        /// The system's answer, and what mends it.
        said: String,
        /// The system's answer.
        source: Box<ProgramError>,
    },
    /// The program would outlive a process that is killed.
    #[error(
        "attach {program} to {interface}: the kernel ties no link to it, so nothing would detach \
         it from a dead process; needs Linux 5.9"
    )]
    NoLink {
        /// Which program.
        program: &'static str,
        /// Where.
        interface: String,
    },
    /// The maps are loaded and stored plainly, which keeps order there alone.
    #[error(
        "load the XDP object on {0}: it needs x86_64, whose plain stores keep their order; take \
         the software engine"
    )]
    Architecture(&'static str),
    /// The kernel does not run the program.
    #[error("run the XDP program: {0}")]
    Run(ProgramError),
    /// There is no such interface.
    #[error(
        "look for the interface {0}: there is none in this network namespace; `ip -brief address` \
         lists them"
    )]
    NoInterface(String),
    /// The interfaces cannot be listed.
    #[error("list the network interfaces: {0}")]
    Interfaces(io::Error),
    /// The program would be shown the requests of another network, or answer into it.
    #[error(
        "serve {ip} at {interface}: it has not this address; name the interface that has it: a \
         VLAN's own, a bridge, a bond, not one below"
    )]
    NotItsAddress {
        /// The interface.
        interface: String,
        /// The address.
        ip: IpAddr,
    },
    /// A map is missing or of another shape.
    #[error("use the map {name}: {source}")]
    Map {
        /// Its name in the object.
        name: &'static str,
        /// What is wrong with it.
        source: MapError,
    },
    /// Values of such a length do not fit a frame that XDP sees whole.
    #[error(
        "put the region into the kernel: values of {0} bytes, but a frame has {XDP_VALUE_BYTES}: \
         set region.value_bytes to that or less, 1384 for an MTU of 1500"
    )]
    ValueTooLong(usize),
    /// A map has not so many entries.
    #[error(
        "put the region into the kernel: {groups} groups of {window} slots are more than a map \
         has entries: choose fewer"
    )]
    TooManyEntries {
        /// Groups of the region.
        groups: u16,
        /// Slots of each.
        window: u64,
    },
    /// The region's maps cannot be mapped.
    #[error("map the region: {0}")]
    Mmap(io::Error),
    /// The pinned maps are of another layout than is configured.
    #[error(
        "open the pinned map {name}: it has {found} records of {found_bytes} bytes, the \
         configuration wants {wanted} of {wanted_bytes}: restore [region] as it was"
    )]
    OtherMap {
        /// Its name in the object.
        name: &'static str,
        /// How many records it has.
        found: u32,
        /// How long they are.
        found_bytes: u32,
        /// How many there should be.
        wanted: u32,
        /// How long they should be.
        wanted_bytes: u32,
    },
    /// Nothing can be pinned there.
    #[error("use pins in {}: it is no bpffs; mount one: mount -t bpf bpf {}", .0.display(), .0.display())]
    NoBpffs(PathBuf),
    /// bpffs refuses.
    #[error("{doing} {}: {}", path.display(), refusal::bpffs_told(source))]
    Pins {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A link, or the program in its place, cannot be pinned.
    #[error("pin the program's link in {}: {}", path.display(), refusal::bpffs_told(source))]
    Pin {
        /// The directory of the pins.
        path: PathBuf,
        /// The system's answer.
        source: PinError,
    },
    /// The kernel does not tell about a link.
    #[error("look at the program's link to {interface}: {source}")]
    Link {
        /// The interface.
        interface: String,
        /// The system's answer.
        source: LinkError,
    },
    /// A link ended while it was being looked at.
    #[error("look at the program's link to {0}: /proc/self/fdinfo does not show it")]
    Vanished(String),
    /// Another program sits on the interface.
    #[error(
        "attach {program} to {interface} in {mode} mode: {occupant} sits there: {}",
        occupant.remedy(interface)
    )]
    Occupied {
        /// Which program.
        program: &'static str,
        /// Where.
        interface: String,
        /// How.
        mode: &'static str,
        /// Who is there.
        occupant: Occupant,
    },
    /// Another process uses the pins.
    #[error(
        "use the pinned region {}: {} uses it; stop that first",
        path.display(),
        process.map_or_else(|| "a process".to_owned(), |process| format!("process {process}"))
    )]
    Held {
        /// The directory of the pins.
        path: PathBuf,
        /// The process, as far as can be seen.
        process: Option<u32>,
    },
    /// Times in the region would mean one thing to the process and another to the program.
    #[error(
        "share a region with the kernel: the time namespace of this process sets its clock \
         (CLOCK_MONOTONIC) {0} off that of XDP programs, so that it would misread leases and \
         heartbeats; run it outside, or with an offset of 0: see /proc/self/timens_offsets"
    )]
    OtherClock(String),
    /// libxdp's dispatcher cannot be used here.
    #[error("put the acceptor into libxdp's dispatcher: {0}")]
    NoDispatcher(String),
    /// libxdp has a program's pins, and no interface here has its dispatcher.
    #[error(
        "take program {program} out of libxdp's dispatcher: no interface of this network namespace \
         has the one that is pinned in {}: do it in the namespace that has; if nothing has, \
         `xdp-loader clean` removes the pins",
        path.display()
    )]
    Elsewhere {
        /// Its number.
        program: u32,
        /// libxdp's pins.
        path: PathBuf,
    },
    /// libxdp's tool refuses.
    #[error("{doing} {interface} by xdp-loader: {said}")]
    Loader {
        /// What was being done.
        doing: &'static str,
        /// To which interface.
        interface: String,
        /// What it, or the system, says.
        said: String,
    },
    /// Running programs cannot be waited for.
    #[error("wait for running programs: {0}")]
    Grace(io::Error),
    /// The maps hold no such region.
    #[error(transparent)]
    Region(#[from] OpenError),
}

/// What the program is told before it is verified.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// UDP port of requests.
    pub port: u16,
    /// Where requests are sent to: see [`own`]. Frames with a VLAN's tag are never served, whatever
    /// it says.
    pub own: Own,
    /// Longest values and windows.
    pub layout: Layout,
    /// What the region is made with.
    pub birth: Birth,
    /// The membership.
    pub epoch: Epoch,
    /// How long a lease lasts, in nanoseconds.
    pub lease_ns: u64,
    /// The keys, where packets carry tags. The program answers what carries the tag of the one that
    /// signs; if there is another, what does not goes up to the host, which looks at both.
    pub keys: Option<Keys>,
    /// Whether the program's clock is what [`Loaded::set_clock`] says.
    pub is_rehearsal: bool,
}

/// Where in the kernel a program is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// In the driver, before the kernel makes a buffer of its own of a frame.
    #[default]
    Native,
    /// Behind the driver, on any interface.
    Generic,
}

impl Mode {
    /// A stable name for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

impl From<Mode> for XdpMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Native => Self::Driver,
            Mode::Generic => Self::Skb,
        }
    }
}

/// A program that the kernel has verified, and the fresh region that it steps.
#[derive(Debug)]
pub struct Loaded {
    ebpf: Ebpf,
    region: Region<Mapping>,
}

/// What came of a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The stack gets it.
    Passed,
    /// Nobody gets it.
    Dropped,
    /// This frame is sent back.
    Sent(Vec<u8>),
    /// The program ended otherwise, with this code.
    Other(u32),
}

impl Verdict {
    /// What it means that the program ended with `code` and left this packet.
    fn new(code: u32, packet: Vec<u8>) -> Self {
        match code {
            XDP_DROP => Self::Dropped,
            XDP_PASS => Self::Passed,
            XDP_TX => Self::Sent(packet),
            code => Self::Other(code),
        }
    }
}

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
/// Longest frame in bytes that the program may leave.
const MAX_FRAME_BYTES: usize = 4096;

impl Loaded {
    /// Loads the program of `object` over a blank region. Needs CAP_BPF, CAP_NET_ADMIN and
    /// CAP_PERFMON, and Linux 5.18.
    ///
    /// # Errors
    /// The object is no object of ours, or the kernel refuses it: the verifier's log is then part
    /// of the error.
    pub fn load(object: &[u8], settings: &Settings) -> Result<Self, XdpError> {
        Self::load_with_frames(object, settings, Frames::NONE)
    }

    /// As [`Loaded::load`], with room for frames that the kernel is to show the program.
    fn load_with_frames(
        object: &[u8],
        settings: &Settings,
        frames: Frames,
    ) -> Result<Self, XdpError> {
        let ebpf = load(object, settings, frames, None)?;
        let Settings { layout, birth, .. } = settings;
        let mapping = mapping(&ebpf, layout)?;
        let region = Region::create(mapping, *layout, *birth, settings.epoch, settings.lease_ns)?;
        Ok(Self { ebpf, region })
    }

    /// The region that the program steps.
    pub const fn region(&self) -> &Region<Mapping> {
        &self.region
    }

    /// Attaches the program to an interface of the calling thread's network namespace, until `self`
    /// is dropped.
    ///
    /// # Errors
    /// The interface does not exist, takes no program in this mode, or has another.
    pub fn attach(&mut self, interface: &str, mode: Mode) -> Result<(), XdpError> {
        attach(&mut self.ebpf, ACCEPTOR, interface, mode).map(drop)
    }

    /// How many instructions the verifier went through.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn verified_instructions(&mut self) -> Result<Option<u32>, XdpError> {
        let info = program(&mut self.ebpf, ACCEPTOR)?
            .info()
            .map_err(XdpError::Run)?;
        Ok(info.verified_instruction_count())
    }

    /// Shows the program a frame, as if it had been received, without sending what comes of it.
    ///
    /// # Errors
    /// The kernel does not run it, for instance because the frame is longer than a page.
    pub fn run(&self, frame: &[u8]) -> Result<Verdict, XdpError> {
        Ok(self.run_timed(frame)?.0)
    }

    /// As [`Loaded::run`]; also how long it took by the kernel's clock, which is in it twice.
    ///
    /// # Errors
    /// As [`Loaded::run`].
    pub fn run_timed(&self, frame: &[u8]) -> Result<(Verdict, Duration), XdpError> {
        let mut out = vec![0; MAX_FRAME_BYTES];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        let ended = self.test_run(ACCEPTOR, options)?;
        out.truncate(ended.data_size_out as usize);
        Ok((Verdict::new(ended.return_value, out), ended.duration))
    }

    fn test_run(&self, name: &str, options: TestRunOptions<'_>) -> Result<TestRunResult, XdpError> {
        let program = self.ebpf.program(name).ok_or_else(no_program)?;
        let program: &Xdp = program.try_into().map_err(XdpError::Run)?;
        program.test_run(options).map_err(XdpError::Run)
    }

    /// Runs the program so many times in the kernel, first on `frame` and then on what it left of it.
    ///
    /// # Errors
    /// As [`Loaded::run`].
    pub fn run_repeatedly(&self, frame: &[u8], times: u32) -> Result<(), XdpError> {
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.repeat = times;
        self.test_run(ACCEPTOR, options).map(drop)
    }

    /// Sets the time of a rehearsal, in nanoseconds.
    ///
    /// # Errors
    /// The kernel refuses to write the map.
    pub fn set_clock(&mut self, now_ns: u64) -> Result<(), XdpError> {
        let named = |source| XdpError::Map {
            name: CLOCK,
            source,
        };
        let map = self.ebpf.map_mut(CLOCK).ok_or_else(|| missing(CLOCK))?;
        let mut clock = Array::<_, u64>::try_from(map).map_err(named)?;
        clock.set(0, now_ns, 0).map_err(named)
    }

    /// How often each thing happened since the program was loaded, on all processors, by
    /// [`Count::index`].
    ///
    /// # Errors
    /// The kernel refuses to read the map.
    pub fn counters(&self) -> Result<[u64; Count::COUNT], XdpError> {
        counters(&self.ebpf)
    }
}

/// A program that keeps no votes, loaded and attached until dropped.
#[derive(Debug)]
pub struct Bystander {
    _ebpf: Ebpf,
}

impl Bystander {
    /// One of `object` that passes everything. The other end of a veth pair needs one: natively,
    /// what XDP_TX sends is lost there otherwise (Linux 6.18).
    ///
    /// # Errors
    /// The object is no object of ours, or the kernel refuses it.
    pub fn attach(object: &[u8], interface: &str, mode: Mode) -> Result<Self, XdpError> {
        Self::attach_program(object, PASS, interface, mode, 0.0)
    }

    /// One of `object` that loses this part of what comes, and passes the rest.
    ///
    /// # Errors
    /// As for [`Bystander::attach`].
    pub fn attach_lossy(
        object: &[u8],
        interface: &str,
        mode: Mode,
        loss: f64,
    ) -> Result<Self, XdpError> {
        Self::attach_program(object, PASS, interface, mode, loss)
    }

    /// One of `object` that sends every UDP datagram over IPv4 back: the floor of what a program can
    /// do.
    ///
    /// # Errors
    /// As for [`Bystander::attach`].
    pub fn attach_echo(object: &[u8], interface: &str, mode: Mode) -> Result<Self, XdpError> {
        Self::attach_program(object, ECHO, interface, mode, 0.0)
    }

    fn attach_program(
        object: &[u8],
        name: &'static str,
        interface: &str,
        mode: Mode,
        loss: f64,
    ) -> Result<Self, XdpError> {
        let loss = (loss * f64::from(u32::MAX)) as u32;
        let mut ebpf = EbpfLoader::new()
            .override_global("LOSS", &loss, true)
            .load(object)?;
        program(&mut ebpf, name)?.load().map_err(XdpError::Verify)?;
        attach(&mut ebpf, name, interface, mode)?;
        Ok(Self { _ebpf: ebpf })
    }
}

fn attach(
    ebpf: &mut Ebpf,
    name: &'static str,
    interface: &str,
    mode: Mode,
) -> Result<XdpLinkId, XdpError> {
    if if_nametoindex(interface).is_err() {
        return Err(XdpError::NoInterface(interface.to_owned()));
    }
    let program = program(ebpf, name)?;
    let refused = |source| refusal::attach(name, interface, mode, source);
    let id = program.info().map_err(XdpError::Run)?.id();
    let attached = program.attach(interface, mode.into()).map_err(refused)?;
    // Where aya is refused a link with EINVAL it attaches without one.
    if !link::is_held_to(id) {
        program.detach(attached).map_err(refused)?;
        return Err(XdpError::NoLink {
            program: name,
            interface: interface.to_owned(),
        });
    }
    Ok(attached)
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp, XdpError> {
    let program = ebpf.program_mut(name).ok_or_else(no_program)?;
    program.try_into().map_err(XdpError::Run)
}

fn no_program() -> XdpError {
    XdpError::Object("it has not the programs of this build".into())
}

fn missing(name: &str) -> XdpError {
    XdpError::Object(format!("it has no map {name}"))
}

fn map<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<&'a MapData, XdpError> {
    match ebpf.map(name) {
        Some(aya::maps::Map::Array(map)) => Ok(map),
        _ => Err(missing(name)),
    }
}

/// The frames that the kernel is to show the program one after the other.
#[derive(Clone, Copy)]
struct Frames {
    count: u32,
    /// How long each is.
    bytes: u32,
}

impl Frames {
    /// A map holds one record at least.
    const NONE: Self = Self { count: 1, bytes: 8 };
}

/// The maps that are the region, in the order of its sections.
const SECTIONS: [&str; 4] = [HEADER, PEER, GROUP, ENTRY];

/// Loads and verifies the acceptor of `object`, over the maps that are pinned at `pins` if there are
/// any.
fn load(
    object: &[u8],
    settings: &Settings,
    frames: Frames,
    pins: Option<&Pins>,
) -> Result<Ebpf, XdpError> {
    let layout = &settings.layout;
    serves(std::env::consts::ARCH)?;
    if layout.value_bytes() > XDP_VALUE_BYTES {
        return Err(XdpError::ValueTooLong(layout.value_bytes()));
    }
    let mut object = object.to_vec();
    object::set_value_bytes(&mut object, ENTRY, layout.entry_words() * 8)?;
    let stride = frames.bytes.next_multiple_of(8);
    object::set_value_bytes(&mut object, repeat::FRAMES, stride as usize)?;
    let globals = globals(settings);
    let frame_bytes = frames.bytes;
    let mut loader = EbpfLoader::new();
    for (name, value) in &globals {
        loader.override_global(name, &value[..], true);
    }
    for shape in shapes(layout)? {
        loader.map_max_entries(shape.name, shape.records);
    }
    for name in SECTIONS {
        if let Some(pins) = pins {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    let mut ebpf = loader
        .verifier_log_level(VerifierLogLevel::DEBUG | VerifierLogLevel::STATS)
        .map_max_entries(repeat::FRAMES, frames.count)
        .override_global("FRAME_BYTES", &frame_bytes, true)
        .load(&object)?;
    program(&mut ebpf, ACCEPTOR)?
        .load()
        .map_err(XdpError::Verify)?;
    Ok(ebpf)
}

/// A setting of the program, and its bytes.
type Global = (&'static str, Vec<u8>);

/// What the program reads of `settings`.
fn globals(settings: &Settings) -> [Global; 12] {
    let Settings { layout, birth, .. } = settings;
    let (ip, is_v6) = match settings.own.ip {
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            (bytes, false)
        }
        IpAddr::V6(ip) => (ip.octets(), true),
    };
    let mut mac = [0; size_of::<u64>()];
    mac[..6].copy_from_slice(&settings.own.mac.0);
    let [low, high] = settings.keys.map_or([0; 2], |keys| keys.signs.0);
    let is_keyed = settings
        .keys
        .map_or(0, |keys| 1 + u8::from(keys.also.is_some()));
    [
        ("PORT", settings.port.to_le_bytes().into()),
        ("OWN_MAC", mac.into()),
        ("OWN_IP", ip.into()),
        ("OWN_IS_V6", vec![is_v6.into()]),
        ("NODE", birth.node.0.to_le_bytes().into()),
        ("INCARNATION", birth.incarnation().0.to_le_bytes().into()),
        ("GROUP_COUNT", layout.groups().to_le_bytes().into()),
        ("WINDOW", layout.window().to_le_bytes().into()),
        (
            "VALUE_BYTES",
            (layout.value_bytes() as u64).to_le_bytes().into(),
        ),
        ("IS_KEYED", vec![is_keyed]),
        ("KEY", [low.to_le_bytes(), high.to_le_bytes()].concat()),
        ("IS_REHEARSAL", vec![settings.is_rehearsal.into()]),
    ]
}

/// A map of the region.
#[derive(Clone, Copy)]
struct MapShape {
    name: &'static str,
    records: u32,
    value_bytes: u32,
}

/// The region's maps, in the order of its sections.
fn shapes(layout: &Layout) -> Result<[MapShape; 4], XdpError> {
    let shape = |name, records, value_bytes| MapShape {
        name,
        records,
        value_bytes,
    };
    Ok([
        shape(HEADER, 1, 4096),
        shape(PEER, u32::from(NodeId::MAX) + 1, 8),
        shape(GROUP, layout.groups().into(), group::WORDS as u32 * 8),
        shape(ENTRY, entries(layout)?, layout.entry_words() as u32 * 8),
    ])
}

/// Whether the program keeps its order on this architecture.
fn serves(architecture: &'static str) -> Result<(), XdpError> {
    match architecture {
        "x86_64" => Ok(()),
        other => Err(XdpError::Architecture(other)),
    }
}

/// Ring entries of all groups.
fn entries(layout: &Layout) -> Result<u32, XdpError> {
    let (groups, window) = (layout.groups(), layout.window());
    u32::try_from(u64::from(groups) * window)
        .map_err(|_| XdpError::TooManyEntries { groups, window })
}

fn mapping(ebpf: &Ebpf, layout: &Layout) -> Result<Mapping, XdpError> {
    let [header, peer, group, entry] = SECTIONS.map(|name| map(ebpf, name));
    mapping_of([header?, peer?, group?, entry?], layout)
}

/// The region's words, if the maps are as long as `layout` says.
fn mapping_of(sections: [&MapData; 4], layout: &Layout) -> Result<Mapping, XdpError> {
    for (shape, section) in shapes(layout)?.into_iter().zip(sections) {
        let MapShape {
            name,
            records: wanted,
            value_bytes: wanted_bytes,
        } = shape;
        let info = section
            .info()
            .map_err(|source| XdpError::Map { name, source })?;
        let (found, found_bytes) = (info.max_entries(), info.value_size());
        if (found, found_bytes) != (wanted, wanted_bytes) {
            return Err(XdpError::OtherMap {
                name,
                found,
                found_bytes,
                wanted,
                wanted_bytes,
            });
        }
    }
    Mapping::of_maps(layout, sections).map_err(XdpError::Mmap)
}

fn counters(ebpf: &Ebpf) -> Result<[u64; Count::COUNT], XdpError> {
    let named = |source| XdpError::Map {
        name: COUNTERS,
        source,
    };
    let map = ebpf.map(COUNTERS).ok_or_else(|| missing(COUNTERS))?;
    let counters = PerCpuArray::<_, u64>::try_from(map).map_err(named)?;
    let mut sums = [0; Count::COUNT];
    for (index, sum) in (0..).zip(&mut sums) {
        *sum = counters.get(&index, 0).map_err(named)?.iter().sum();
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_memory_orders_are_refused_by_name() {
        assert!(serves("x86_64").is_ok());
        let error = serves("aarch64").expect_err("plain stores may pass each other");
        assert!(
            error.to_string().contains("on aarch64: it needs x86_64"),
            "{error}"
        );
    }

    #[test]
    fn more_entries_than_a_map_has_are_refused() {
        let layout = |groups| Layout::new(groups, 1 << 20, 64).expect("a layout");
        assert_eq!(entries(&layout(4095)).expect("they fit"), 4095 << 20);
        let error = entries(&layout(4096)).expect_err("2^32");
        assert!(
            error.to_string().contains("4096 groups of 1048576 slots"),
            "{error}"
        );
    }
}
