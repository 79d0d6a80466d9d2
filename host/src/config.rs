//! A node's configuration: one TOML file, which a command line may override in places.

mod error;
mod key;
mod place;
mod text;

use crate::resp::User;
use crate::resp::tls::{self, TlsError};
use crate::xdp::{self, Attach, Mode, OnHostDeath};
use consensus::NodeId;
use consensus::auth::Keys;
use consensus::local;
use consensus::quorum::{QuorumError, Quorums};
use consensus::region::{Layout, LayoutError};
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use error::{Error, Problem};
pub use key::{KeyError, make_key, read_keys};
pub use place::Place;

/// A configuration in which every key is explained.
pub const EXAMPLE: &str = include_str!("config/example.toml");

/// The whole file, checked: see [`Config::load`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The cluster's name: nodes of another cluster are refused.
    pub cluster: String,
    /// This node's number, 1 to 1023, never recycled.
    pub node: u16,
    /// Where region, journal, snapshots and identity live. One process at a time.
    pub data_directory: PathBuf,
    /// What survives what. There is no default.
    pub durability: Durability,
    /// What makes a leader sure that it may answer a query.
    pub reads: Reads,
    /// Where Redis clients are served; nowhere if absent.
    pub resp: Option<SocketAddr>,
    /// Where Redis clients are served over TLS; nowhere if absent.
    pub resp_tls: Option<RespTls>,
    /// Redis clients that may do something; everybody may do everything if there are none.
    pub users: Vec<User>,
    /// Every member of the cluster that forms, this node included; or, if it joins one, those that
    /// it may ask.
    pub peers: Vec<Peer>,
    /// This node forms no cluster with its peers: it is to be made a member of theirs.
    pub join: bool,
    /// If its memory is lost, it moves its data directory aside and takes its place again as a new
    /// one, by itself.
    pub rejoin: bool,
    /// Votes that each phase needs; majorities if absent.
    pub quorum: Option<Quorum>,
    /// The region's dimensions: fixed once the region exists.
    pub region: Region,
    /// The worker thread.
    pub worker: Worker,
    /// How long things take.
    pub timing: Timing,
    /// How those that lag are taught.
    pub catch_up: CatchUp,
    /// Where the acceptor votes before its packets reach this process; nowhere if absent.
    pub offload: Option<Offload>,
    /// A file with the cluster's key (32 hexadecimal digits): every packet carries a tag if set.
    pub key_file: Option<PathBuf>,
    /// Whether this node may listen where others than this machine reach it, with neither a key for
    /// its packets nor passwords or TLS for its clients.
    pub insecure: bool,
    /// As whom a node goes on that root starts; as root if absent.
    pub security: Option<Security>,
}

/// What a command line or the environment says instead of the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// See [`Config::node`].
    pub node: Option<u16>,
    /// See [`Config::data_directory`].
    pub data_directory: Option<PathBuf>,
    /// See [`Config::durability`].
    pub durability: Option<Durability>,
    /// See [`Config::resp`].
    pub resp: Option<SocketAddr>,
    /// See [`Worker::wait`].
    pub wait: Option<Wait>,
    /// See [`Config::key_file`].
    pub key_file: Option<PathBuf>,
    /// See [`Config::join`].
    pub join: bool,
}

impl Config {
    /// Reads and checks a file, and the key file that it names.
    ///
    /// # Errors
    /// The file cannot be read, or something in it cannot be; the error points at it.
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::load_with(path, Overrides::default())
    }

    /// Reads a file, puts `overrides` in place of what it says, and checks the whole.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    pub fn load_with(path: &Path, overrides: Overrides) -> Result<Self, Error> {
        Self::parse(path, &read(path)?, overrides)
    }

    /// Reads and checks a file for what clients need of it, peers, region and key: it need not say
    /// which node it is for, nor what that node keeps and where.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    pub fn load_for_client(path: &Path) -> Result<Self, Error> {
        text::parse_for_client(path, &read(path)?)
    }

    /// Parses and checks the `text` of the file `path`.
    ///
    /// # Errors
    /// As for [`load`](Self::load).
    pub fn parse(path: &Path, text: &str, overrides: Overrides) -> Result<Self, Error> {
        text::parse(path, text, overrides)
    }

    /// This node among the peers.
    ///
    /// # Panics
    /// It is none of them, which no configuration that was loaded has.
    pub fn this(&self) -> &Peer {
        let this = self.peers.iter().find(|peer| peer.node == self.node);
        this.expect("a loaded configuration names this node among its peers")
    }

    /// The votes that each phase needs.
    ///
    /// # Errors
    /// None for a configuration that was loaded.
    pub fn quorums(&self) -> Result<Quorums, QuorumError> {
        let members = self.peers.len();
        match self.quorum {
            Some(Quorum { phase1, phase2 }) => Quorums::flexible(members, phase1, phase2),
            None => Quorums::majority(members),
        }
    }

    /// The layout of the region: the replicated groups, then those for conformance.
    ///
    /// # Errors
    /// None for a configuration that was loaded.
    pub fn layout(&self) -> Result<Layout, LayoutError> {
        let Region {
            groups,
            window_slots,
            value_bytes,
            conformance_groups,
        } = self.region;
        Layout::new(
            conformance_groups.saturating_add(groups),
            window_slots,
            value_bytes,
        )
    }

    /// How long a leader that has news waits for more before it tells, in nanoseconds.
    pub const fn decide_ns(&self) -> u64 {
        match self.worker.wait {
            Wait::Blocking => 1_000_000,
            Wait::Polling => 250_000,
        }
    }

    /// Between two packets by which a node with several groups tells each other one that it lives, in
    /// nanoseconds. A worker that polls does so as often as a leader of one group.
    pub fn pulse_ns(&self) -> u64 {
        let heartbeats = match self.worker.wait {
            Wait::Blocking => 2,
            Wait::Polling => 1,
        };
        heartbeats * self.timing.heartbeat_ms * 1_000_000
    }

    /// The cluster's keys, if there are any.
    ///
    /// # Errors
    /// The key file cannot be used (any more).
    pub fn keys(&self) -> Result<Option<Keys>, KeyError> {
        self.key_file.as_deref().map(read_keys).transpose()
    }

    /// Every member and where its datagrams go.
    pub fn members(&self) -> Vec<(NodeId, SocketAddr)> {
        let peers = self.peers.iter();
        peers
            .map(|peer| (NodeId(peer.node), peer.address))
            .collect()
    }
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}

/// What survives what; see `docs/protocol.md`, "Durability".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Votes outlive the process, not the machine.
    Volatile,
    /// Journalled behind the reply.
    Async,
    /// Flushed before the reply.
    Sync,
}

impl Durability {
    /// Its name in configurations and reports.
    pub const fn name(self) -> &'static str {
        self.of_core().name()
    }

    /// What the core calls it.
    pub const fn of_core(self) -> local::Durability {
        match self {
            Self::Volatile => local::Durability::Volatile,
            Self::Async => local::Durability::Async,
            Self::Sync => local::Durability::Sync,
        }
    }
}

/// A listener for Redis clients that speak TLS.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RespTls {
    /// Where, `IP:port`.
    #[serde(deserialize_with = "text::address")]
    pub listen: SocketAddr,
    /// The certificate and those that signed it, in PEM.
    pub certificate_file: PathBuf,
    /// The certificate's key, in PEM.
    pub key_file: PathBuf,
}

impl RespTls {
    /// Reads both files.
    ///
    /// # Errors
    /// They cannot be used.
    pub fn load(&self) -> Result<Arc<ServerConfig>, TlsError> {
        tls::load(&self.certificate_file, &self.key_file)
    }
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its number.
    #[serde(deserialize_with = "text::node_number")]
    pub node: u16,
    /// Where its datagrams go, `IP:port`.
    #[serde(deserialize_with = "text::address")]
    pub address: SocketAddr,
    /// Higher ones are elected first.
    #[serde(default)]
    pub priority: u8,
    /// Where Redis clients reach it: where there are many groups they are sent to whoever leads a
    /// key's. Without it they are served by whom they ask.
    #[serde(default, deserialize_with = "text::some_address")]
    pub resp: Option<SocketAddr>,
}

/// What a node gives up when it starts.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Security {
    /// The user that it becomes.
    pub user: String,
}

/// Flexible quorums: phase 1 and phase 2 together must exceed the number of members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quorum {
    /// Promises that a new leader needs.
    pub phase1: usize,
    /// Votes that choose a value.
    pub phase2: usize,
}

/// Most groups that a cluster replicates.
pub const MAX_GROUPS: u16 = 1024;
/// Slots of a group that has the memory to itself, unless more or fewer are asked for.
const USUAL_SLOTS: u64 = 4096;
/// Slots of all groups together, from which each has its part unless more or fewer are asked for.
const SHARED_SLOTS: u64 = 65_536;

/// How those that lag are taught.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CatchUp {
    /// Bytes that this node sends them in a second at the most; zero is no limit.
    pub bytes_per_s: u64,
}

/// The region's dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "text::Dimensions")]
pub struct Region {
    /// Groups that are replicated, each a log and a leader of its own: at most [`MAX_GROUPS`].
    pub groups: u16,
    /// Slots of each group that are kept at once, a power of two.
    pub window_slots: u64,
    /// Longest value in bytes, a multiple of eight.
    pub value_bytes: usize,
    /// Groups behind the replicated ones that are bare acceptors, for `nearwire conform`.
    pub conformance_groups: u16,
}

impl Region {
    /// The usual dimensions for so many groups. Their windows share what a few groups would have.
    pub fn of(groups: u16) -> Self {
        let share = SHARED_SLOTS / u64::from(groups.clamp(1, MAX_GROUPS));
        Self {
            groups,
            window_slots: (1 << share.ilog2()).min(USUAL_SLOTS),
            value_bytes: 1384,
            conformance_groups: 0,
        }
    }
}

impl Default for Region {
    fn default() -> Self {
        Self::of(1)
    }
}

/// Longest linger, in microseconds: past it a worker should poll.
pub const MAX_LINGER_US: u64 = 1_000;

/// The worker thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Worker {
    /// How it waits for packets.
    pub wait: Wait,
    /// The CPU that it is pinned to.
    pub cpu: Option<usize>,
    /// Its `SCHED_FIFO` priority, 1 to 99.
    pub fifo_priority: Option<u8>,
    /// How long it looks for packets before it sleeps, in microseconds, at most
    /// [`MAX_LINGER_US`]; never if zero. See [`datapath::Worker::lingering`].
    pub linger_us: u64,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            wait: Wait::default(),
            cpu: None,
            fifo_priority: None,
            linger_us: 100,
        }
    }
}

/// What makes a leader sure that nobody else leads; see `docs/protocol.md`, "Reads".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reads {
    /// A round trip to a quorum that begins after the query came: needs no clock.
    #[default]
    Barrier,
    /// A quorum's promise to follow nobody else for a while: no round trip, but the clocks of two
    /// machines must not run apart by 20 % or more, nor one stand still while its machine does.
    Lease,
    /// Every node answers, from what it has applied: it asks a quorum how far that must be. Needs no
    /// clock and no leader.
    Quorum,
}

impl Reads {
    /// The name in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Barrier => "barrier",
            Self::Lease => "lease",
            Self::Quorum => "quorum",
        }
    }
}

/// How a worker waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// Sleeps in the kernel.
    #[default]
    Blocking,
    /// Spins: lower latency for a whole CPU.
    Polling,
}

/// The acceptor in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offload {
    /// What votes there.
    pub engine: Engine,
    /// The interface that the node's datagrams come in by.
    pub interface: String,
    /// How the program is called on it.
    #[serde(default)]
    pub mode: Mode,
    /// What ties it there.
    #[serde(default)]
    pub attach: Attach,
    /// What becomes of the program when this process dies.
    #[serde(default)]
    pub on_host_death: OnHostDeath,
    /// A mounted bpffs, to pin votes and program in.
    #[serde(default = "bpffs")]
    pub bpffs: PathBuf,
}

fn bpffs() -> PathBuf {
    xdp::BPFFS.into()
}

/// Engines outside this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// A program on the interface, before the kernel's own stack.
    Xdp,
}

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    /// Between two heartbeats of a leader that has had nothing to decide for a while.
    pub heartbeat_ms: u64,
    /// Silence of the leader before a follower campaigns.
    pub election_ms: u64,
    /// How long a lease lasts that acceptors grant a leader, in microseconds: fixed once the region
    /// exists. See [`Reads::Lease`].
    pub lease_us: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat_ms: 10,
            election_ms: 150,
            lease_us: 4_000,
        }
    }
}
