//! A node's configuration: one TOML file.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The cluster's name: nodes of another cluster are refused.
    pub cluster: String,
    /// This node's number, 1 to 1023, never recycled.
    pub node: u16,
    /// Where region, journal, snapshots and identity live. One process at a time.
    pub data_directory: PathBuf,
    /// What survives what. There is no default.
    pub durability: Durability,
    /// Where Redis clients are served; nowhere if absent.
    pub resp: Option<SocketAddr>,
    /// Every member of the cluster, this node included.
    #[serde(rename = "peer")]
    pub peers: Vec<Peer>,
    /// Votes that each phase needs; majorities if absent.
    pub quorum: Option<Quorum>,
    /// The region's dimensions: fixed once the region exists.
    #[serde(default)]
    pub region: Region,
    /// The worker thread.
    #[serde(default)]
    pub worker: Worker,
    /// How long things take.
    #[serde(default)]
    pub timing: Timing,
    /// A file with the cluster's key (32 hexadecimal digits): every packet carries a tag if set.
    pub key_file: Option<PathBuf>,
}

/// What survives what; see `docs/protocol.md`, "Durability".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Votes outlive the process, not the machine.
    Volatile,
    /// Journalled behind the reply.
    Async,
    /// Flushed before the reply.
    Sync,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its number.
    pub node: u16,
    /// Where its datagrams go, `IP:port`.
    pub address: SocketAddr,
    /// Higher ones are elected first.
    #[serde(default)]
    pub priority: u8,
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

/// The region's dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Region {
    /// Slots that are kept at once, a power of two.
    pub window_slots: u64,
    /// Longest value in bytes, a multiple of eight.
    pub value_bytes: usize,
}

impl Default for Region {
    fn default() -> Self {
        Self {
            window_slots: 4096,
            value_bytes: 1384,
        }
    }
}

/// The worker thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Worker {
    /// How it waits for packets.
    pub wait: Wait,
    /// The CPU that it is pinned to.
    pub cpu: Option<usize>,
    /// Its `SCHED_FIFO` priority, 1 to 99.
    pub fifo_priority: Option<u8>,
}

/// How a worker waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// Sleeps in the kernel.
    #[default]
    Blocking,
    /// Spins: lower latency for a whole CPU.
    Polling,
}

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    /// Between two heartbeats of a leader.
    pub heartbeat_ms: u64,
    /// Silence of the leader before a follower campaigns.
    pub election_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat_ms: 10,
            election_ms: 150,
        }
    }
}
