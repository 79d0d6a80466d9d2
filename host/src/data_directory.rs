//! A node's data directory: whose it is, that nobody else uses it, and what its lives agree on.
//!
//! ```text
//! lock       held by the process that uses the directory; its number is inside
//! identity   TOML, replaced as a whole: see [`Identity`]
//! register-0 what the node keeps of group 0's configurations; one file for each group
//! region     the acceptor's memory, see [`crate::engine`]
//! journal/   see [`crate::journal`]
//! snapshots/ one directory for each group, see [`crate::snapshot_file`]
//! ```

use crate::config::Durability;
use crate::kill_point::kill_point;
use consensus::formation::Terms;
use consensus::{Epoch, GroupId, Incarnation, NodeId};
use crc_fast::crc32_iscsi;
use nix::sys::stat::{Mode, umask};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Replaces the kernel's boot id in debug builds and builds with the feature `kill-points`, for
/// tests. In others a stray variable would defeat the refusal of lost memory.
pub const BOOT_ID_VARIABLE: &str = "NEARWIRE_BOOT_ID";
const BOOT_ID_PATH: &str = "/proc/sys/kernel/random/boot_id";
/// The format of the identity file.
const VERSION: u32 = 1;

/// A data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirectoryError {
    /// Another process has it open.
    #[error(
        "data directory {} is in use by process {process}: stop that process, or give this node a \
         directory of its own",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process that holds it, as far as it could be read.
        process: String,
    },
    /// It was made for another cluster.
    #[error(
        "data directory {} belongs to cluster {found:?}, not to {expected:?}: correct the cluster \
         name in the configuration, or point this node at its own directory or an empty one",
        path.display()
    )]
    ForeignCluster {
        /// The directory.
        path: PathBuf,
        /// The cluster it was made for.
        found: String,
        /// The cluster in the configuration.
        expected: String,
    },
    /// It was made for another node.
    #[error(
        "data directory {} belongs to node {found}, not to node {expected}: correct the node \
         number in the configuration, or point this node at its own directory or an empty one",
        path.display()
    )]
    ForeignNode {
        /// The directory.
        path: PathBuf,
        /// The node it was made for.
        found: NodeId,
        /// The node in the configuration.
        expected: NodeId,
    },
    /// The identity cannot be trusted.
    #[error(
        "{} is damaged ({reason}): what this node promised is not known, so it must not vote. \
         Restore the file from the same disk if it can be recovered, otherwise leave this node \
         stopped and have it replaced: `nearwire member replace --lost`",
        path.display()
    )]
    Damaged {
        /// The identity file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is state but no identity.
    #[error(
        "data directory {} has no identity file but holds {found}: it is not a new directory. \
         Restore the identity file, otherwise leave this node stopped and have it \
         replaced: `nearwire member replace --lost`",
        path.display()
    )]
    NoIdentity {
        /// The directory.
        path: PathBuf,
        /// What else is in it.
        found: String,
    },
    /// What was kept of a group's configurations cannot be trusted.
    #[error(
        "{} is damaged or missing: this node may be a matchmaker, and what it wrote down for others is not \
         known, so it must not answer. Leave it stopped, and have it replaced: `nearwire member \
         replace --lost`",
        path.display()
    )]
    DamagedRegister {
        /// The file.
        path: PathBuf,
    },
    /// The identity was written by a later program.
    #[error(
        "{} has format version {found}, this program reads version {VERSION}: start the program \
         version that wrote it",
        path.display()
    )]
    Version {
        /// The identity file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The operating system refused.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The identity cannot be written as text.
    #[error("write identity: {0}")]
    Encode(#[from] toml::ser::Error),
}

fn refused(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirectoryError {
    move |source| DataDirectoryError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

/// Who a node is, and what binds all its lives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster's name.
    pub cluster: String,
    /// This node's number.
    pub node: NodeId,
    /// Random, drawn when the directory was made: part of the incarnation of its regions.
    pub region_nonce: u64,
    /// The kernel's boot id when `region_nonce` was drawn.
    pub boot_id: String,
    /// What a vote outlives.
    pub durability: Durability,
    /// No life of this node may use a ballot whose round is at or above this one before raising it
    /// here: a round below it may have been used.
    pub reserved_round: u64,
    /// The incarnation first seen of each member; see [`consensus::formation`].
    pub pins: BTreeMap<NodeId, Incarnation>,
    /// Every member has pinned the same: from then on this node votes.
    pub formed: bool,
    /// The kernel's boot id at that moment: the first that can have votes in its memory. A machine
    /// that restarted before has lost nothing.
    pub formed_boot_id: Option<String>,
    /// The snapshot that the cluster began with, [`SnapshotId::origin`]; zero if with nothing.
    ///
    /// [`SnapshotId::origin`]: consensus::state_machine::SnapshotId::origin
    pub origin: u64,
    /// What its members had configured alike.
    pub terms: Option<Terms>,
    /// That membership's number.
    pub epoch: Epoch,
    /// Which hand-over of the votes counts: a region of an earlier one must not vote again.
    pub generation: u64,
    /// The bpffs whose pinned maps are the region; `None` if it is a file here.
    pub bpffs: Option<PathBuf>,
    /// The bpffs that it was moved away from, or is being moved to, while there may be pins there
    /// that are not the region.
    pub leaving: Option<PathBuf>,
    /// There is a register: a node that came back without it would forget what it matched.
    pub registered: bool,
    /// It formed no cluster: it waits to be made a member, or was made one.
    pub joined: bool,
}

/// Who may open the directory, and how it is made if it is new.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expectation {
    /// The cluster in the configuration.
    pub cluster: String,
    /// The node in the configuration.
    pub node: NodeId,
    /// The durability of a new directory; an old one keeps its own, see
    /// [`DataDirectory::identity`].
    pub durability: Durability,
    /// The snapshot that a new directory begins with, as in [`Identity::origin`]; an old one keeps
    /// its own.
    pub origin: u64,
}

/// The text of the identity file, after its first line, which holds the checksum.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    version: u32,
    cluster: String,
    node: u16,
    // TOML integers are signed.
    region_nonce: String,
    boot_id: String,
    durability: Durability,
    reserved_round: u64,
    epoch: u32,
    formed: bool,
    formed_boot_id: Option<String>,
    /// Packed terms and the nanoseconds of a lease.
    terms: Option<[u64; 2]>,
    #[serde(default)]
    origin: String,
    #[serde(default)]
    generation: u64,
    bpffs: Option<PathBuf>,
    leaving: Option<PathBuf>,
    #[serde(default)]
    registered: bool,
    #[serde(default)]
    joined: bool,
    pins: BTreeMap<String, u32>,
}

/// An open data directory. The lock is released when this is dropped.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    identity: Identity,
    created: bool,
    _lock: File,
}

impl DataDirectory {
    /// Opens the directory, or makes it if it is missing or holds no node's state.
    ///
    /// # Errors
    /// Another process uses it, it belongs to another cluster or node, or its identity is damaged
    /// or missing; each error says what to do.
    pub fn open(
        path: impl Into<PathBuf>,
        expectation: &Expectation,
    ) -> Result<Self, DataDirectoryError> {
        let path = path.into();
        make_directory(&path).map_err(refused("make data directory", &path))?;
        let lock = take_lock(&path)?;
        let unfinished = path.join("identity.tmp");
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(refused("remove", &unfinished)(error));
            }
            Ok(()) | Err(_) => {}
        }
        let file = path.join("identity");
        let (identity, created) = match fs::read(&file) {
            Ok(bytes) => {
                // The last life may have renamed it and not have lived to flush the name.
                File::open(&path)
                    .and_then(|directory| directory.sync_all())
                    .map_err(refused("flush", &path))?;
                (decode(&file, &bytes)?, false)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                refuse_leftovers(&path)?;
                let identity = new_identity(&path, expectation)?;
                store(&path, &identity)?;
                (identity, true)
            }
            Err(error) => return Err(refused("read", &file)(error)),
        };
        if identity.cluster != expectation.cluster {
            return Err(DataDirectoryError::ForeignCluster {
                path,
                found: identity.cluster,
                expected: expectation.cluster.clone(),
            });
        }
        if identity.node != expectation.node {
            return Err(DataDirectoryError::ForeignNode {
                path,
                found: identity.node,
                expected: expectation.node,
            });
        }
        Ok(Self {
            path,
            identity,
            created,
            _lock: lock,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where this node's journal goes.
    #[must_use]
    pub fn journal_path(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// Where the snapshots of `group` go.
    #[must_use]
    pub fn snapshots_path(&self, group: GroupId) -> PathBuf {
        self.snapshots_paths()(group)
    }

    /// The same, for another thread.
    pub fn snapshots_paths(&self) -> impl Fn(GroupId) -> PathBuf + Send + 'static {
        let snapshots = self.path.join("snapshots");
        move |group| snapshots.join(format!("group-{group}"))
    }

    /// Whether [`DataDirectory::open`] made it: this node has no past.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.created
    }

    /// Who this node is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// A number for this node of this cluster, to mark its files with.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        (cluster_number(&self.identity.cluster) << 32) | u64::from(self.identity.node.0)
    }

    /// What was kept of the configurations of `group`; `None` if nothing was.
    ///
    /// # Errors
    /// The file is damaged, or the system refuses.
    pub fn register(&self, group: GroupId) -> Result<Option<Vec<u8>>, DataDirectoryError> {
        let path = self.path.join(format!("register-{group}"));
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return match self.identity.registered {
                    false => Ok(None),
                    true => Err(DataDirectoryError::DamagedRegister { path }),
                };
            }
            Err(error) => return Err(refused("read", &path)(error)),
        };
        match bytes.split_first_chunk() {
            Some((sum, register)) if u32::from_be_bytes(*sum) == crc32_iscsi(register) => {
                Ok(Some(register.to_vec()).filter(|register| !register.is_empty()))
            }
            _ => Err(DataDirectoryError::DamagedRegister { path }),
        }
    }

    /// Makes a register for each of so many groups in which nothing is kept, where there is none: from
    /// the first one that something is kept in on, a group without a register has lost it.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn begin_registers(&mut self, groups: u16) -> Result<(), DataDirectoryError> {
        if self.identity.registered || groups == 1 {
            return Ok(());
        }
        for group in (0..groups).map(GroupId) {
            let name = format!("register-{group}");
            if !self.path.join(&name).exists() {
                let sum = crc32_iscsi(&[]).to_be_bytes();
                replace(&self.path.join(name), &[&sum], false)?;
            }
        }
        // One flush for all of them.
        File::open(&self.path)
            .and_then(|directory| Ok(nix::unistd::syncfs(directory)?))
            .map_err(refused("flush", &self.path))
    }

    /// Keeps this of the configurations of `group`, in place of what was there: until the machine
    /// restarts or, if votes outlive that, for good. After an error either may be there.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep_register(
        &mut self,
        group: GroupId,
        register: &[u8],
    ) -> Result<(), DataDirectoryError> {
        let sum = crc32_iscsi(register).to_be_bytes();
        let outlives_machine = self.identity.durability == Durability::Sync;
        let name = format!("register-{group}");
        replace(&self.path.join(name), &[&sum, register], outlives_machine)?;
        self.update(|identity| identity.registered = true)
    }

    /// Changes the identity; durable when this returns. After an error the old identity stands, in
    /// memory and, but for an error of the disk itself, in the file.
    ///
    /// # Errors
    /// The file cannot be written.
    ///
    /// # Panics
    /// `change` touches the cluster or the node, or lowers the reserved round.
    pub fn update(&mut self, change: impl FnOnce(&mut Identity)) -> Result<(), DataDirectoryError> {
        let mut identity = self.identity.clone();
        change(&mut identity);
        assert_eq!(
            identity.cluster, self.identity.cluster,
            "a cluster keeps its name"
        );
        assert_eq!(identity.node, self.identity.node, "a node keeps its number");
        assert!(
            identity.reserved_round >= self.identity.reserved_round,
            "a reserved round only rises"
        );
        if identity != self.identity {
            store(&self.path, &identity)?;
            self.identity = identity;
        }
        Ok(())
    }
}

impl Identity {
    /// The boot whose memory holds this node's votes, if it may have any.
    #[must_use]
    pub fn voting_boot_id(&self) -> Option<&str> {
        let formed = self.formed_boot_id.as_deref().unwrap_or(&self.boot_id);
        self.formed.then_some(formed)
    }
}

/// A number for a cluster's name, as regions carry it.
#[must_use]
pub fn cluster_number(cluster: &str) -> u64 {
    crc32_iscsi(cluster.as_bytes()).into()
}

/// What a data directory says, whoever uses it at this moment. `None` if no node ever used it.
///
/// # Errors
/// The identity is damaged, or the system refuses.
pub fn look(directory: &Path) -> Result<Option<Identity>, DataDirectoryError> {
    let file = directory.join("identity");
    match fs::read(&file) {
        Ok(bytes) => decode(&file, &bytes).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(refused("read", &file)(error)),
    }
}

/// The kernel's boot id: another one means that memory was lost since.
///
/// # Errors
/// `/proc` cannot be read.
pub fn boot_id() -> Result<String, DataDirectoryError> {
    if cfg!(any(debug_assertions, feature = "kill-points"))
        && let Ok(id) = std::env::var(BOOT_ID_VARIABLE)
    {
        return Ok(id);
    }
    let path = Path::new(BOOT_ID_PATH);
    let text = fs::read_to_string(path).map_err(refused("read boot id", path))?;
    Ok(text.trim().to_owned())
}

/// Has whatever this process makes from here on be for its own user: state, and backups of it, are as
/// secret as what clients wrote.
pub fn keep_to_oneself() {
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
}

/// Makes a directory and those above it, where they are missing. Their names outlive the machine.
pub(crate) fn make_directory(directory: &Path) -> io::Result<()> {
    make_flushing(directory, flush_name)
}

/// Each name is flushed before anything is made below it, so that of those that are there at most the
/// last one has still to be: an earlier process may have ended in between.
fn make_flushing(
    directory: &Path,
    mut flush: impl FnMut(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let above = directory.ancestors();
    let missing = above.take_while(|one| !one.as_os_str().is_empty() && !one.is_dir());
    let mut missing: Vec<&Path> = missing.collect();
    let there = directory.ancestors().nth(missing.len());
    if let Some(there) = there.filter(|one| !one.as_os_str().is_empty()) {
        match flush(there) {
            // It stands in a directory of others, which they have made.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            flushed => flushed?,
        }
    }
    while let Some(next) = missing.pop() {
        match fs::create_dir(next) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && next.is_dir() => {}
            made => made?,
        }
        flush(next)?;
    }
    Ok(())
}

fn take_lock(directory: &Path) -> Result<File, DataDirectoryError> {
    let path = directory.join("lock");
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(refused("open", &path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut process = String::new();
            let read = lock.read_to_string(&mut process);
            let process = process.trim();
            let known = read.is_ok() && !process.is_empty();
            return Err(DataDirectoryError::InUse {
                path: directory.to_owned(),
                process: if known {
                    process.to_owned()
                } else {
                    "(unknown)".to_owned()
                },
            });
        }
        Err(TryLockError::Error(error)) => return Err(refused("lock", &path)(error)),
    }
    // The number only makes the other side's error readable, so it needs no flush.
    lock.set_len(0)
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
        .map_err(refused("write", &path))?;
    Ok(lock)
}

/// What a life leaves behind begins with one of these.
const STATE: [&str; 4] = ["journal", "region", "register", "snapshot"];

/// A directory without an identity must hold nothing that a forgotten life could have left: a node
/// that starts afresh among its old votes would break its promises.
fn refuse_leftovers(directory: &Path) -> Result<(), DataDirectoryError> {
    let entries = fs::read_dir(directory).map_err(refused("list", directory))?;
    for entry in entries {
        let name = entry.map_err(refused("list", directory))?.file_name();
        let found = name.to_string_lossy().into_owned();
        if STATE.iter().any(|state| found.starts_with(state)) {
            return Err(DataDirectoryError::NoIdentity {
                path: directory.to_owned(),
                found,
            });
        }
    }
    Ok(())
}

fn new_identity(
    directory: &Path,
    expectation: &Expectation,
) -> Result<Identity, DataDirectoryError> {
    let region_nonce = getrandom::u64()
        .map_err(|error| refused("draw a nonce for", directory)(io::Error::other(error)))?;
    Ok(Identity {
        cluster: expectation.cluster.clone(),
        node: expectation.node,
        region_nonce,
        boot_id: boot_id()?,
        durability: expectation.durability,
        reserved_round: 0,
        pins: BTreeMap::new(),
        formed: false,
        formed_boot_id: None,
        origin: expectation.origin,
        terms: None,
        generation: 0,
        bpffs: None,
        leaving: None,
        registered: false,
        joined: false,
        epoch: Epoch::default(),
    })
}

fn encode(identity: &Identity) -> Result<String, DataDirectoryError> {
    let pins = identity
        .pins
        .iter()
        .map(|(node, incarnation)| (node.to_string(), incarnation.0))
        .collect();
    let text = toml::to_string(&Text {
        version: VERSION,
        cluster: identity.cluster.clone(),
        node: identity.node.0,
        region_nonce: format!("{:016x}", identity.region_nonce),
        boot_id: identity.boot_id.clone(),
        durability: identity.durability,
        reserved_round: identity.reserved_round,
        epoch: identity.epoch.0,
        formed: identity.formed,
        formed_boot_id: identity.formed_boot_id.clone(),
        terms: identity.terms.map(|terms| [terms.packed, terms.lease_ns]),
        origin: match identity.origin {
            0 => String::new(),
            origin => format!("{origin:016x}"),
        },
        generation: identity.generation,
        bpffs: identity.bpffs.clone(),
        leaving: identity.leaving.clone(),
        registered: identity.registered,
        joined: identity.joined,
        pins,
    })?;
    Ok(format!(
        "# crc32c {:08x}\n{text}",
        crc32_iscsi(text.as_bytes())
    ))
}

fn decode(path: &Path, bytes: &[u8]) -> Result<Identity, DataDirectoryError> {
    let damaged = |reason: String| DataDirectoryError::Damaged {
        path: path.to_owned(),
        reason,
    };
    let text = str::from_utf8(bytes).map_err(|error| damaged(error.to_string()))?;
    let (head, body) = text
        .split_once('\n')
        .ok_or_else(|| damaged("it is cut short".into()))?;
    let stated = head
        .strip_prefix("# crc32c ")
        .and_then(|hex| u32::from_str_radix(hex, 16).ok());
    let stated = stated.ok_or_else(|| damaged("it does not begin with its checksum".into()))?;
    if crc32_iscsi(body.as_bytes()) != stated {
        return Err(damaged("its checksum does not match".into()));
    }
    let table: toml::Table = body.parse().map_err(|error| damaged(format!("{error}")))?;
    match table.get("version").and_then(toml::Value::as_integer) {
        Some(version) if version == i64::from(VERSION) => {}
        version => {
            let found = version
                .and_then(|version| u32::try_from(version).ok())
                .unwrap_or(0);
            return Err(DataDirectoryError::Version {
                path: path.to_owned(),
                found,
            });
        }
    }
    let text: Text = table
        .try_into()
        .map_err(|error| damaged(format!("{error}")))?;
    let pins = text
        .pins
        .into_iter()
        .map(|(node, incarnation)| Ok((NodeId(node.parse()?), Incarnation(incarnation))))
        .collect::<Result<_, std::num::ParseIntError>>()
        .map_err(|error| damaged(format!("pins: {error}")))?;
    let origin = match text.origin.as_str() {
        "" => 0,
        origin => {
            u64::from_str_radix(origin, 16).map_err(|error| damaged(format!("origin: {error}")))?
        }
    };
    Ok(Identity {
        cluster: text.cluster,
        node: NodeId(text.node),
        region_nonce: u64::from_str_radix(&text.region_nonce, 16)
            .map_err(|error| damaged(format!("region_nonce: {error}")))?,
        boot_id: text.boot_id,
        durability: text.durability,
        reserved_round: text.reserved_round,
        pins,
        formed: text.formed,
        formed_boot_id: text.formed_boot_id,
        terms: text.terms.map(|[packed, lease_ns]| Terms {
            packed,
            lease_ns,
            origin,
        }),
        origin,
        generation: text.generation,
        bpffs: text.bpffs,
        leaving: text.leaving,
        registered: text.registered,
        joined: text.joined,
        epoch: Epoch(text.epoch),
    })
}

fn store(directory: &Path, identity: &Identity) -> Result<(), DataDirectoryError> {
    let text = encode(identity)?;
    replace(&directory.join("identity"), &[text.as_bytes()], true)
}

/// Puts a whole file in place of another. Any later process finds one of the two; so it does after
/// the machine has restarted, if this `outlives_machine`.
pub(crate) fn replace(
    path: &Path,
    parts: &[&[u8]],
    outlives_machine: bool,
) -> Result<(), DataDirectoryError> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".tmp");
    let write = || -> io::Result<()> {
        let mut file = File::create(&unfinished)?;
        file.write_all(&parts.concat())?;
        if outlives_machine {
            file.sync_all()?;
        }
        kill_point("data_directory.before-rename");
        fs::rename(&unfinished, path)?;
        kill_point("data_directory.after-rename");
        match outlives_machine {
            true => flush_name(path),
            false => Ok(()),
        }
    };
    write().map_err(refused("write", path))
}

/// Has the name of a file or directory outlive the machine.
fn flush_name(path: &Path) -> io::Result<()> {
    let parent = path.parent().unwrap_or(path);
    let parent = match parent.as_os_str().is_empty() {
        true => Path::new("."),
        false => parent,
    };
    File::open(parent)?.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn expectation() -> Expectation {
        Expectation {
            cluster: "alpha".to_owned(),
            node: NodeId(2),
            durability: Durability::Sync,
            origin: 0,
        }
    }

    #[test]
    fn every_new_name_of_a_path_is_flushed_and_the_one_that_may_not_have_been() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        let names = ["a", "a/b", "a/b/c"].map(|name| root.join(name));
        let make = |fails_at: Option<&Path>| {
            let mut flushed = Vec::new();
            let made = make_flushing(&names[2], |path| {
                flushed.push(path.to_owned());
                match Some(path) == fails_at {
                    true => Err(io::Error::other("the machine goes down")),
                    false => Ok(()),
                }
            });
            (made.is_ok(), flushed)
        };
        assert_eq!(
            make(Some(&names[1])),
            (
                false,
                vec![root.to_owned(), names[0].clone(), names[1].clone()]
            )
        );
        assert!(!names[2].exists(), "not before the one above it is certain");
        assert_eq!(make(None), (true, names[1..].to_vec()));
        assert_eq!(make(None), (true, vec![names[2].clone()]));
        make_directory(&names[2]).unwrap();
    }

    #[test]
    fn an_update_is_there_after_reopening() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("node");
        let mut directory = DataDirectory::open(&path, &expectation()).unwrap();
        assert!(directory.is_new());
        let nonce = directory.identity().region_nonce;
        directory
            .update(|identity| {
                identity.reserved_round = consensus::Ballot::MAX_ROUND;
                identity.epoch = Epoch(3);
                identity.pins = [
                    (NodeId(10), Incarnation(u32::MAX)),
                    (NodeId(2), Incarnation(7)),
                ]
                .into();
                identity.formed = true;
            })
            .unwrap();
        let before = directory.identity().clone();
        drop(directory);
        let directory = DataDirectory::open(&path, &expectation()).unwrap();
        assert!(!directory.is_new());
        assert_eq!(directory.identity(), &before);
        assert_eq!(directory.identity().region_nonce, nonce);
    }

    #[test]
    fn a_second_opener_is_told_who_holds_the_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let _held = DataDirectory::open(scratch.path(), &expectation()).unwrap();
        let error = DataDirectory::open(scratch.path(), &expectation())
            .unwrap_err()
            .to_string();
        let claim = format!("is in use by process {}", std::process::id());
        assert!(error.contains(&claim), "{error}");
    }

    #[test]
    fn another_cluster_and_another_node_are_refused_by_name() {
        let scratch = tempfile::tempdir().unwrap();
        drop(DataDirectory::open(scratch.path(), &expectation()).unwrap());
        let foreign = Expectation {
            cluster: "beta".to_owned(),
            ..expectation()
        };
        let error = DataDirectory::open(scratch.path(), &foreign).unwrap_err();
        assert!(
            matches!(error, DataDirectoryError::ForeignCluster { .. }),
            "{error}"
        );
        let foreign = Expectation {
            node: NodeId(3),
            ..expectation()
        };
        let error = DataDirectory::open(scratch.path(), &foreign).unwrap_err();
        assert!(
            matches!(error, DataDirectoryError::ForeignNode { .. }),
            "{error}"
        );
    }

    #[test]
    fn every_damaged_byte_of_an_identity_is_noticed() {
        let scratch = tempfile::tempdir().unwrap();
        drop(DataDirectory::open(scratch.path(), &expectation()).unwrap());
        let file = scratch.path().join("identity");
        let whole = fs::read(&file).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&file, &bytes).unwrap();
            let error = DataDirectory::open(scratch.path(), &expectation()).unwrap_err();
            assert!(
                matches!(error, DataDirectoryError::Damaged { .. }),
                "byte {at}: {error}"
            );
            fs::write(&file, &whole[..at]).unwrap();
            let error = DataDirectory::open(scratch.path(), &expectation()).unwrap_err();
            assert!(
                matches!(error, DataDirectoryError::Damaged { .. }),
                "length {at}: {error}"
            );
        }
    }

    #[test]
    fn a_directory_with_a_past_but_no_identity_is_not_new() {
        let scratch = tempfile::tempdir().unwrap();
        drop(DataDirectory::open(scratch.path(), &expectation()).unwrap());
        fs::remove_file(scratch.path().join("identity")).unwrap();
        fs::create_dir(scratch.path().join("journal")).unwrap();
        let error = DataDirectory::open(scratch.path(), &expectation()).unwrap_err();
        assert!(
            matches!(error, DataDirectoryError::NoIdentity { .. }),
            "{error}"
        );
    }

    #[test]
    fn a_register_is_kept_and_every_damaged_byte_of_it_noticed() {
        let scratch = tempfile::tempdir().unwrap();
        let mut directory = DataDirectory::open(scratch.path(), &expectation()).unwrap();
        assert_eq!(directory.register(GroupId(0)).unwrap(), None);
        for kept in [&b"first"[..], b"second"] {
            directory.keep_register(GroupId(0), kept).unwrap();
            assert_eq!(directory.register(GroupId(0)).unwrap().unwrap(), kept);
        }
        let file = scratch.path().join("register-0");
        let whole = fs::read(&file).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            for damaged in [&bytes[..], &whole[..at]] {
                fs::write(&file, damaged).unwrap();
                let error = directory.register(GroupId(0)).unwrap_err();
                let is_noticed = matches!(error, DataDirectoryError::DamagedRegister { .. });
                assert!(is_noticed, "byte {at}: {error}");
            }
        }
        fs::remove_file(&file).unwrap();
        assert!(directory.register(GroupId(0)).is_err(), "it was there");
    }

    #[test]
    fn an_unfinished_identity_is_thrown_away() {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join("identity.tmp"), "half").unwrap();
        assert!(
            DataDirectory::open(scratch.path(), &expectation())
                .unwrap()
                .is_new()
        );
    }

    #[test]
    fn a_later_format_is_refused_as_such() {
        let scratch = tempfile::tempdir().unwrap();
        let body = "version = 2\nnew = true\n";
        let text = format!("# crc32c {:08x}\n{body}", crc32_iscsi(body.as_bytes()));
        fs::write(scratch.path().join("identity"), text).unwrap();
        let error = DataDirectory::open(scratch.path(), &expectation()).unwrap_err();
        assert!(
            matches!(error, DataDirectoryError::Version { found: 2, .. }),
            "{error}"
        );
    }
}
