//! What may be wrong with a configuration.

use super::{KeyError, MAX_GROUPS, MAX_LINGER_US, Place};
use crate::resp::tls::TlsError;
use consensus::NodeId;
use consensus::frame::XDP_VALUE_BYTES;
use consensus::quorum::QuorumError;
use consensus::region::LayoutError;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// A configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("read configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It says something that cannot be.
    #[error("{place}: {problem}")]
    Invalid {
        /// Where.
        place: Place,
        /// What.
        problem: Box<Problem>,
    },
    /// The key file cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// What is wrong at some place.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It is no TOML, or a value of another type than the key takes.
    #[error("{0}")]
    Text(String),
    /// Nothing has this name.
    #[error("unknown {what} `{found}`{}", suggestion(nearest.as_deref()))]
    Unknown {
        /// A key, or a value of a key that takes one of several words.
        what: &'static str,
        /// What stands there.
        found: String,
        /// The known one that is most like it.
        nearest: Option<String>,
        /// All that are known there.
        known: Vec<String>,
    },
    /// A key that has no default is absent.
    #[error("missing key `{0}`")]
    Missing(String),
    /// A name without a character.
    #[error("`cluster` is empty")]
    NoName,
    /// There are no members.
    #[error("no [[peer]]: a cluster has at least one member")]
    NoPeers,
    /// This node is no member.
    #[error("node {node} is not among [[peer]]: the members are {}", list(members))]
    NotAMember {
        /// This node.
        node: u16,
        /// The members.
        members: Vec<u16>,
    },
    /// Two members have one number.
    #[error("node {0} is there twice in [[peer]]")]
    SameNode(u16),
    /// Two members have one address.
    #[error("nodes {first} and {second} have the same address {address}")]
    SameAddress {
        /// One.
        first: u16,
        /// The other.
        second: u16,
        /// Theirs.
        address: SocketAddr,
    },
    /// A member cannot be reached there.
    #[error("node {node} cannot be reached at {address}: {why}")]
    Unreachable {
        /// The member.
        node: u16,
        /// Its address.
        address: SocketAddr,
        /// What is wrong with the address.
        why: &'static str,
    },
    /// A node listens on its own address, and a socket carries one family.
    #[error("nodes {v4} and {v6} cannot talk: one has an IPv4 address and the other IPv6")]
    MixedFamilies {
        /// A member with an IPv4 address.
        v4: u16,
        /// A member with an IPv6 address.
        v6: u16,
    },
    /// Quorums that do not intersect or cannot be met.
    #[error(transparent)]
    Quorums(#[from] QuorumError),
    /// A region that cannot be.
    #[error(transparent)]
    Region(#[from] LayoutError),
    /// Too few or too many logs.
    #[error("{0} groups, but a cluster replicates 1 to {MAX_GROUPS}")]
    Groups(u16),
    /// The journal is the replicated groups'.
    #[error("`conformance_groups` are not journalled: they go with durability \"volatile\" only")]
    Journalled,
    /// The kernel's program answers at once.
    #[error(
        "[offload] with durability \"sync\": the program in the kernel answers before anything is \
         flushed"
    )]
    NotFlushed,
    /// XDP sees no more of a frame.
    #[error("[offload] with values of {0} bytes, but XDP sees {XDP_VALUE_BYTES} of a frame")]
    LongForFrames(usize),
    /// libxdp pins what it attaches.
    #[error(
        "[offload] with attach \"dispatcher\" and on_host_death \"seal\": libxdp pins what it \
         attaches, so the kernel would not detach it from a dead process"
    )]
    Outlived,
    /// No interface can have this name.
    #[error("{0:?} is no interface's name")]
    NoInterface(String),
    /// A priority that the kernel does not know.
    #[error("SCHED_FIFO priority {0}, but it takes 1 to 99")]
    FifoPriority(u8),
    /// A linger that is no short look any more.
    #[error("`linger_us` = {0}, but it takes {MAX_LINGER_US} at most")]
    Linger(u64),
    /// A leader that never speaks, or always.
    #[error("`heartbeat_ms` is 0")]
    NoHeartbeat,
    /// Followers would campaign against a leader that is well.
    #[error(
        "`election_ms` = {election_ms} is less than three times `heartbeat_ms` = {heartbeat_ms}: \
         one late heartbeat would cost the leader its place"
    )]
    Hasty {
        /// Silence before a campaign.
        election_ms: u64,
        /// Between heartbeats.
        heartbeat_ms: u64,
    },
    /// No lease, or one that would keep a cluster from writing for long.
    #[error("`lease_us` = {lease_us}, but it takes 1 to {longest_us}, which is `election_ms`")]
    Lease {
        /// How long leases would last.
        lease_us: u64,
        /// Silence before a campaign.
        longest_us: u64,
    },
    /// The key file cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A name that `ACL LIST` could not show.
    #[error("{0:?} is no user's name: it takes letters, digits and signs, and no blanks")]
    UserName(String),
    /// Two users have one name.
    #[error("user {0:?} is there twice in [[user]]")]
    SameUser(String),
    /// Others than this machine reach the members, and packets would carry no tags.
    #[error(
        "node {node} is at {address}, which is not loopback, and there is no `key_file`: whoever \
         reaches that port could write and depose leaders"
    )]
    NoKey {
        /// The first such member.
        node: u16,
        /// Its address.
        address: SocketAddr,
    },
    /// Others than this machine reach the listener for Redis clients, which asks nobody anything.
    #[error(
        "Redis clients are served at {0}, which is not loopback, without TLS and without users: \
         whoever reaches that port could read and write"
    )]
    OpenResp(SocketAddr),
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map_or(String::new(), |nearest| {
        format!("; did you mean `{nearest}`?")
    })
}

fn list(numbers: &[u16]) -> String {
    let numbers: Vec<_> = numbers.iter().map(ToString::to_string).collect();
    numbers.join(", ")
}

impl Error {
    /// What mends it, where that can be said.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Read { .. } => {
                Some("`nearwire config example` prints a configuration to start from".into())
            }
            Self::Invalid { problem, .. } => problem.remedy(),
            Self::Key(error) => Some(error.remedy()),
        }
    }
}

impl Problem {
    fn remedy(&self) -> Option<String> {
        let text = match self {
            Self::Unknown { known, .. } if known.is_empty() => return None,
            Self::Unknown { known, .. } => format!("known here: {}", known.join(", ")),
            Self::Missing(key) => return wanted(key),
            Self::NoName => wanted("cluster")?,
            Self::NoPeers => "add [[peer]] with node = … and address = \"IP:port\" for every \
                              member, this node included"
                .into(),
            Self::NotAMember { node, .. } => {
                format!("add [[peer]] with node = {node}, or correct `node`")
            }
            Self::SameNode(_) => {
                format!("give each member a number of its own, 1 to {}", NodeId::MAX)
            }
            Self::SameAddress { .. } => "give each member a port or an IP of its own".into(),
            Self::Unreachable { .. } => {
                "write the address that the other members reach it at".into()
            }
            Self::MixedFamilies { .. } => "write all addresses as IPv4 or all as IPv6".into(),
            Self::Key(error) => error.remedy(),
            Self::Tls(error) => error.remedy(),
            Self::NoKey { .. } => "make a key with `nearwire config key FILE`, copy the file to \
                                   every node, and write key_file = \"FILE\" at the top; or \
                                   insecure = true, on a network where everybody may write"
                .into(),
            Self::OpenResp(_) => {
                "add [[user]] with name, password_sha256 and may, or serve TLS by \
                                  [resp_tls] instead; or insecure = true, on a network where \
                                  everybody may read and write"
                    .into()
            }
            Self::Linger(_) => "write wait = \"polling\" for a worker that never sleeps".into(),
            Self::Journalled => {
                "write durability = \"volatile\", or leave `conformance_groups` out: no node that \
                 holds anything of value needs them"
                    .into()
            }
            Self::NotFlushed => {
                "write durability = \"volatile\" or \"async\", or leave [offload] out".into()
            }
            Self::LongForFrames(_) => {
                format!("write value_bytes = {XDP_VALUE_BYTES} or less, or leave [offload] out")
            }
            Self::Outlived => "write attach = \"link\" or on_host_death = \"keep-voting\"".into(),
            Self::NoInterface(_) => "`ip link` lists them".into(),
            Self::NoHeartbeat => "the default is heartbeat_ms = 10".into(),
            Self::Hasty { heartbeat_ms, .. } => {
                format!(
                    "write election_ms = {} or more",
                    heartbeat_ms.saturating_mul(3)
                )
            }
            // The texts say what is taken.
            Self::Text(_)
            | Self::Groups(_)
            | Self::Quorums(_)
            | Self::Region(_)
            | Self::FifoPriority(_)
            | Self::Lease { .. }
            | Self::UserName(_)
            | Self::SameUser(_) => {
                return None;
            }
        };
        Some(text)
    }
}

/// What a key without a default takes.
fn wanted(key: &str) -> Option<String> {
    let text = match key {
        "cluster" => "cluster = \"NAME\", the same on every node",
        "node" => "node = N, this node's number among [[peer]], or --node N",
        "data_directory" => "data_directory = \"DIR\", or --data-directory DIR",
        "durability" => {
            "durability = \"volatile\", \"async\" or \"sync\": what an acknowledged write \
             survives is yours to decide"
        }
        "address" => "address = \"IP:port\", where this member's datagrams go",
        "name" => {
            "name = \"NAME\", what AUTH is said with; \"default\" is the user of AUTH PASSWORD"
        }
        "password_sha256" => "password_sha256 = \"HASH\": `printf %s PASSWORD | sha256sum`",
        "may" => "may = \"read\", \"write\" or \"admin\"",
        "listen" => "listen = \"IP:port\", where clients are served",
        "certificate_file" => "certificate_file = \"FILE\", PEM",
        "key_file" => "key_file = \"FILE\", PEM, mode 600",
        "phase1" => "phase1 = N, the promises that a new leader needs",
        "phase2" => "phase2 = N, the votes that choose a value",
        _ => return None,
    };
    Some(format!("add {text}"))
}
