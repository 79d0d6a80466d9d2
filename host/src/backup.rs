//! Snapshots outside of data directories: taken from a running node, looked at, and made the
//! beginning of a new cluster.

use crate::client::{Client, ClientError};
use crate::config::Config;
use crate::data_directory::{DataDirectory, DataDirectoryError, Expectation};
use crate::inspect::Inspector;
use crate::kv::{self, Kv};
use crate::node::GROUP;
use crate::snapshot_file::{self, Arrival, SnapshotDirectory, SnapshotError};
use consensus::applied::Applied;
use consensus::auth::Keys;
use consensus::catch_up::CHUNK_BYTES;
use consensus::state_machine::{RestoreError, SnapshotId};
use consensus::wire::Header;
use consensus::{Ballot, GroupId, NodeId, Slot};
use datapath::clock;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Pieces asked for at once at the most.
const WINDOW: usize = 64;
/// A piece that has not come after so long is asked for again, in nanoseconds.
const REPEAT_NS: u64 = 50_000_000;
/// A node that sends nothing for so long has stopped, in nanoseconds.
const SILENCE_NS: u64 = 5_000_000_000;

/// A snapshot cannot be saved, looked at or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The network.
    #[error(transparent)]
    Network(#[from] datapath::Error),
    /// The file.
    #[error(transparent)]
    File(#[from] SnapshotError),
    /// Nobody who leads answers: a query, or what it is doing.
    #[error("save snapshot: nobody who leads answers, so it is not known how far the log is")]
    NoLeader(#[source] Option<ClientError>),
    /// The node has no snapshot in time.
    #[error("save snapshot: {node} has shown no snapshot up to slot {slot} within {waited:?}")]
    NoSnapshot {
        /// Who was asked.
        node: SocketAddr,
        /// How far.
        slot: Slot,
        /// How long it was asked.
        waited: Duration,
    },
    /// It sends no more of it.
    #[error("save snapshot: {node} sends no more of it: {here} of {bytes} bytes have come")]
    Stopped {
        /// Who was asked.
        node: SocketAddr,
        /// What has come.
        here: u64,
        /// Of so many.
        bytes: u64,
    },
    /// It makes no sense although every byte is right.
    #[error("read snapshot {}: {source}", path.display())]
    Restore {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: RestoreError,
    },
    /// It is not of the replicated group.
    #[error("restore {}: it is of group {group}, and group {GROUP} is the replicated one", path.display())]
    OtherGroup {
        /// The file.
        path: PathBuf,
        /// Its group.
        group: GroupId,
    },
    /// A backup is of one group.
    #[error(
        "back up or restore {groups} groups: a snapshot is of one group's state, and those of several are of no one moment"
    )]
    Groups {
        /// How many there are.
        groups: u16,
    },
    /// There is something already.
    #[error("restore into {}: it holds {found}", path.display())]
    NotEmpty {
        /// The data directory.
        path: PathBuf,
        /// One of the files in it.
        found: String,
    },
    /// The data directory.
    #[error(transparent)]
    Directory(#[from] DataDirectoryError),
    /// The data directory cannot be looked at.
    #[error("look at {}: {source}", path.display())]
    Look {
        /// The data directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl BackupError {
    /// What mends it, where the text does not say so.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::NoLeader(_) => Some("see `nearwire status`; start the nodes that are down"),
            Self::NoSnapshot { .. } => Some(
                "ask another node (--from), wait longer (--timeout-ms), and look at the node's \
                 `error` in `nearwire status --output json`",
            ),
            Self::Stopped { .. } => Some("try again, or ask another node: --from"),
            Self::Restore { .. } => Some("take another backup; this program cannot read that one"),
            Self::OtherGroup { .. } => Some("restore a snapshot of the replicated group"),
            Self::Groups { .. } => Some(
                "keep what is to be backed up in a cluster with one group; several are not backed up \
                 yet (docs/operations.md, \"Many groups\")",
            ),
            Self::NotEmpty { .. } => Some(
                "restore begins a new cluster and never touches an old one's state: name a \
                 directory that does not exist (data_directory, --data-directory), or move this \
                 one away",
            ),
            Self::Network(_) | Self::File(_) | Self::Directory(_) | Self::Look { .. } => None,
        }
    }
}

/// What a snapshot holds.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Contents {
    /// Its file.
    pub path: PathBuf,
    /// The group whose state it is.
    pub group: u16,
    /// The last slot in it.
    pub slot: u64,
    /// Bytes of the state.
    pub bytes: u64,
    /// CRC-32C of the state, which was verified.
    pub checksum: String,
    /// Unix milliseconds of the log's clock.
    pub clock_ms: u64,
    /// Keys that have not expired by that clock.
    pub keys: usize,
    /// Open sessions.
    pub sessions: usize,
}

/// Reads a file, verifies it, and says what is in it.
///
/// # Errors
/// It is damaged, or no snapshot.
pub fn inspect(path: &Path) -> Result<Contents, BackupError> {
    Ok(read(path)?.2)
}

fn read(path: &Path) -> Result<(SnapshotId, Vec<u8>, Contents), BackupError> {
    let (group, snapshot) = snapshot_file::open(path)?;
    let body = snapshot.body()?;
    let mut state = Applied::new(Kv::new());
    state
        .restore(&body)
        .map_err(|source| BackupError::Restore {
            path: path.to_owned(),
            source,
        })?;
    let id = snapshot.id();
    let contents = Contents {
        path: path.to_owned(),
        group: group.0,
        slot: id.slot.0,
        bytes: id.bytes,
        checksum: format!("{:08x}", id.crc),
        clock_ms: state.clock_ms(),
        keys: state.machine().len(state.clock_ms()),
        sessions: state.sessions().len(),
    };
    Ok((id, body, contents))
}

/// A node to take a snapshot from.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Where it is.
    pub address: SocketAddr,
    /// Everything up to here was acknowledged when it was asked.
    pub slot: Slot,
    /// Longest value that it takes.
    pub value_bytes: usize,
}

/// Chooses whom to ask: `wanted`, or one that follows, so that the leader is not bothered, or else
/// the leader.
///
/// # Errors
/// Nobody leads, or there are several groups.
pub fn choose(
    inspector: &mut Inspector,
    client: &mut Client,
    nodes: &[SocketAddr],
    wanted: Option<SocketAddr>,
    timeout: Duration,
) -> Result<Source, BackupError> {
    // Of what a node says of itself nothing tells whether others have gone on without it. Who has
    // answered a query had applied every write that was acknowledged before.
    let barrier = [&b"EXISTS"[..], b""];
    let (_, barrier) = kv::encode(&barrier).expect("a query");
    let answered = client.query(&barrier);
    answered.map_err(|error| BackupError::NoLeader(Some(error)))?;
    let leader = client.leader();
    let mut asked = nodes.to_vec();
    if !asked.contains(&leader) {
        asked.push(leader);
    }
    let reports = inspector.inspect(&asked, timeout, |_| false)?;
    let answered = || {
        let reports = asked.iter().zip(&reports);
        reports.filter_map(|(node, report)| Some((*node, report.as_ref()?)))
    };
    let groups = answered().map(|(_, report)| report.groups());
    if let Some(groups) = groups.max().filter(|groups| *groups > 1) {
        return Err(BackupError::Groups { groups });
    }
    let (_, report) = answered()
        .find(|(node, _)| *node == leader)
        .ok_or(BackupError::NoLeader(None))?;
    let number = |report: &crate::inspect::Report, name| report.0.get(name)?.as_u64();
    let applied = |report| number(report, "applied").unwrap_or_default();
    let furthest = answered()
        .filter(|(node, report)| *node != leader && report.text("member") == Some("voter"))
        .max_by_key(|(_, report)| applied(report));
    let address = wanted.unwrap_or_else(|| furthest.map_or(leader, |(node, _)| node));
    let value_bytes = number(report, "value_bytes").unwrap_or(64) as usize;
    Ok(Source {
        address,
        slot: Slot(applied(report)),
        value_bytes,
    })
}

/// Takes a snapshot with everything that was acknowledged before from a running node into a new
/// file. `progress` hears how many bytes have come, of how many.
///
/// # Errors
/// The node shows none within `timeout` or stops sending, or the file cannot be written; nothing is
/// left of it then.
pub fn save(
    source: &Source,
    keys: Option<Keys>,
    timeout: Duration,
    path: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<SnapshotId, BackupError> {
    let mut inspector = Inspector::new(&[source.address], keys)?;
    // An answer is no longer than its question.
    let room = vec![0; CHUNK_BYTES.min(source.value_bytes)];
    let offered = inspector.offered_snapshot(source.address, source.slot, &room, timeout)?;
    let id = offered.ok_or(BackupError::NoSnapshot {
        node: source.address,
        slot: source.slot,
        waited: timeout,
    })?;
    let arrival = snapshot_file::create(path, id)?;
    let taken = fetch(
        &mut inspector,
        source.address,
        id,
        &room,
        &arrival,
        &mut progress,
    );
    match taken {
        Ok(()) => Ok(snapshot_file::complete(arrival, GROUP, path)?),
        Err(error) => {
            arrival.remove();
            Err(error)
        }
    }
}

fn fetch(
    inspector: &mut Inspector,
    node: SocketAddr,
    id: SnapshotId,
    room: &[u8],
    arrival: &Arrival,
    progress: &mut impl FnMut(u64, u64),
) -> Result<(), BackupError> {
    let mut asked = BTreeMap::new();
    let (mut next, mut here) = (0, 0);
    let mut heard_ns = clock::monotonic_ns();
    while here < id.bytes {
        let now_ns = clock::monotonic_ns();
        if now_ns - heard_ns > SILENCE_NS {
            let bytes = id.bytes;
            return Err(BackupError::Stopped { node, here, bytes });
        }
        while asked.len() < WINDOW && next < id.bytes {
            asked.insert(next, 0);
            next += room.len() as u64;
        }
        for (offset, sent_ns) in &mut asked {
            if now_ns - *sent_ns >= REPEAT_NS {
                *sent_ns = now_ns;
                inspector.ask_for_piece(node, id, *offset, room);
            }
        }
        let mut failed = None;
        inspector.pieces(Duration::from_nanos(REPEAT_NS), |header, piece| {
            let found = (header.slot, header.ballot, header.vote_ballot);
            let is_it = found == (id.slot, Ballot(u64::from(id.crc)), Ballot(id.bytes));
            let offset = header.watermark;
            let length = (id.bytes - offset.min(id.bytes)).min(room.len() as u64);
            if !is_it || piece.len() as u64 != length || asked.remove(&offset).is_none() {
                return;
            }
            heard_ns = now_ns;
            here += length;
            if let Err(error) = arrival.write_at(offset, piece) {
                failed = Some(error);
            }
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        progress(here, id.bytes);
    }
    Ok(())
}

/// Makes the data directory of a node that is to begin with this snapshot, in a new cluster.
///
/// # Errors
/// The snapshot cannot be used, or there is something in the data directory.
pub fn restore(path: &Path, config: &Config) -> Result<Contents, BackupError> {
    let groups = config.region.groups;
    if groups > 1 {
        return Err(BackupError::Groups { groups });
    }
    let (id, body, contents) = read(path)?;
    if contents.group != GROUP.0 {
        return Err(BackupError::OtherGroup {
            path: path.to_owned(),
            group: GroupId(contents.group),
        });
    }
    let directory = &config.data_directory;
    if let Some(found) = first_name(directory).map_err(|source| BackupError::Look {
        path: directory.clone(),
        source,
    })? {
        return Err(BackupError::NotEmpty {
            path: directory.clone(),
            found,
        });
    }
    let expectation = Expectation {
        cluster: config.cluster.clone(),
        node: NodeId(config.node),
        durability: config.durability,
        // From the first: a node that knows what it is to begin with does not run without it.
        origin: id.origin(),
    };
    let directory = DataDirectory::open(directory, &expectation)?;
    let mut snapshots = SnapshotDirectory::open(directory.snapshots_path(GROUP), GROUP)?;
    snapshots.write(id.slot, |out| {
        out.extend_from_slice(&body);
        false
    })?;
    Ok(contents)
}

fn first_name(directory: &Path) -> io::Result<Option<String>> {
    let mut entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    let entry = entries.next().transpose()?;
    Ok(entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
}

/// What a tool asks a node for a snapshot; the answers are no longer than the questions.
pub(crate) mod questions {
    use super::{Ballot, GROUP, Header, NodeId, Slot, SnapshotId};
    use consensus::wire::Kind;

    /// For one that reaches at least `slot`.
    pub(crate) fn offer(slot: Slot, room: usize) -> Header {
        Header {
            slot,
            length: room as u16,
            ..Header::new(Kind::CatchUp, GROUP, NodeId::NONE)
        }
    }

    /// For the piece at `offset`.
    pub(crate) fn piece(id: SnapshotId, offset: u64, room: usize) -> Header {
        Header {
            slot: id.slot,
            ballot: Ballot(u64::from(id.crc)),
            watermark: offset,
            length: room as u16,
            ..Header::new(Kind::SnapshotRequest, GROUP, NodeId::NONE)
        }
    }
}
