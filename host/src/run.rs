//! Runs one node: opens what it owns, restores its state, and drives it until it is stopped.

use crate::config::{self, Config, Durability, KeyError, Reads, Wait, read_keys};
use crate::data_directory::{self, DataDirectory, DataDirectoryError, Expectation};
use crate::engine::Software;
use crate::front;
use crate::journal::{self, Flush, Journal, JournalError};
use crate::kv::Kv;
use crate::members::{Former, Operator};
use crate::node::{
    Facts, Fatal, GROUP, NewKeys, NodeService, Parts, SNAPSHOT_SLOTS, max_command_bytes,
};
use crate::privileges::{self, PrivilegeError};
use crate::region_place::{self, InKernel, RegionError, Terms};
use crate::rehearsal::Rehearsal;
use crate::resp;
use crate::resp::cluster::{Cluster, Leaders, Member};
use crate::snapshot_file::{Newest, Snapshot, SnapshotDirectory, SnapshotError};
use crate::snapshots::{self, Snapshots};
use crate::supervision::{Supervision, Wish};
use crate::wal::Wal;
use crate::xdp::{self, Pinned};
use consensus::acceptor::Acceptor;
use consensus::applied::Applied;
use consensus::auth::{Key, Keys};
use consensus::catch_up::Pace;
use consensus::election::ElectionTiming;
use consensus::formation;
use consensus::leader::LeaderTiming;
use consensus::local::Local;
use consensus::node::{self, Node, NodeError, Peer};
use consensus::recover::Recovery;
use consensus::region::{Birth, Layout, LayoutError};
use consensus::state_machine::RestoreError;
use consensus::wire;
use consensus::{Epoch, GroupId, Incarnation, NodeId, Slot};
use datapath::{Datapath, Lifelines, Placement, Udp, Worker, clock};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{AccessFlags, SysconfVar, access, sysconf};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long one attempt to become a member again may take.
const PUT_BACK: Duration = Duration::from_secs(10);
const MS: u64 = 1_000_000;
/// In how many groups a node campaigns at once: each takes some round trips, and a thousand at once
/// would be late for each other.
const CAMPAIGNS: usize = 16;
/// File descriptors that are not for Redis clients: sockets, lifelines and their guests, the journal
/// and the region.
const RESERVED_FILES: u64 = 512;
/// And those of each group: its snapshot, and one on its way.
const FILES_PER_GROUP: u64 = 2;
/// The first membership of every cluster.
const FIRST_EPOCH: Epoch = Epoch(1);
/// Submissions of the client front that may be under way or queued.
const FRONT_CAPACITY: usize = 8192;

/// Environment variable with the process that this node must not outlive: a demo's, a benchmark's.
pub const DIE_WITH_PARENT: &str = "NEARWIRE_DIE_WITH_PARENT";

/// A node cannot run, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory.
    #[error(transparent)]
    Directory(#[from] DataDirectoryError),
    /// The region's dimensions.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The region's file or maps.
    #[error(transparent)]
    Region(RegionError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The snapshots.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A snapshot that is whole but makes no sense.
    #[error("{}: {source}", path.display())]
    Restore {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        source: RestoreError,
    },
    /// A journal record that makes no sense.
    #[error(transparent)]
    Replay(#[from] consensus::recover::BadRecord),
    /// Quorums, members or memory.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The client front's session.
    #[error(transparent)]
    Client(#[from] consensus::client::ConfigError),
    /// The network.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// The listener for Redis clients.
    #[error(transparent)]
    Resp(#[from] resp::ServerError),
    /// Certificate and key.
    #[error(transparent)]
    Tls(#[from] resp::tls::TlsError),
    /// Threads and signals.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The key file.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The user that it is to become.
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    /// What `rejoin` would do some day it could not do.
    #[error(
        "rejoin: when node {node} has lost its memory its data directory {} could not be moved \
         aside: {why}; have it in a directory that this user may write to, or leave `rejoin` out",
        directory.display()
    )]
    CannotRejoin {
        /// The node.
        node: NodeId,
        /// Its data directory.
        directory: PathBuf,
        /// What is in the way.
        why: String,
    },
    /// What a test asks for in the environment.
    #[error("{0}")]
    Rehearsal(String),
    /// This node's memory is gone, and it must not vote under its old identity.
    #[error(
        "node {node} lost its memory ({why}); as it was it must not vote again. Move its data \
         directory ({}) away, start it with --join, and have it take its former place: `nearwire \
         member replace --lost {node}`; the others go on without it meanwhile",
        directory.display()
    )]
    LostMemory {
        /// The node.
        node: NodeId,
        /// What was found instead.
        why: String,
        /// Its data directory.
        directory: PathBuf,
    },
    /// The region is larger than the machine.
    #[error(
        "make a region of {wanted} bytes ({groups} groups of {window} slots): this machine has \
         {found} bytes of memory. Lower `groups`, `window_slots` or `value_bytes` in [region], the \
         same on every node"
    )]
    Memory {
        /// What the region takes.
        wanted: usize,
        /// Its groups.
        groups: u16,
        /// The slots of each.
        window: u64,
        /// What the machine has.
        found: usize,
    },
    /// The configuration's durability is not the directory's.
    #[error(
        "data directory {} was made for durability {found:?}, the configuration says {wanted:?}: \
         what was promised under one cannot be kept under the other",
        directory.display()
    )]
    OtherDurability {
        /// The directory.
        directory: PathBuf,
        /// What it was made for.
        found: Durability,
        /// What the configuration says.
        wanted: Durability,
    },
    /// The configuration's quorums or leases are not those that the cluster formed with.
    #[error(
        "start node: its cluster formed with {formed}, but {configured} is configured, and nodes \
         that count differently lose what was chosen: restore the configuration"
    )]
    OtherTerms {
        /// What it formed with.
        formed: formation::Terms,
        /// What is configured.
        configured: formation::Terms,
    },
    /// What it was to begin with is gone.
    #[error(
        "data directory {} was made to begin with snapshot {origin:016x}, which is not in it: \
         remove it and restore it again: `nearwire snapshot restore`",
        path.display()
    )]
    NoOrigin {
        /// The directory.
        path: PathBuf,
        /// The snapshot.
        origin: u64,
    },
    /// It ended by itself.
    #[error(transparent)]
    Fatal(#[from] Fatal),
}

impl Error {
    /// Whether this node's identity was refused: exit code 3.
    pub const fn is_refused_identity(&self) -> bool {
        matches!(
            self,
            Self::LostMemory { .. }
                | Self::Node(NodeError::LostMemory { .. })
                | Self::Fatal(Fatal::Disowned { .. })
        )
    }
}

/// Runs a node until SIGTERM or SIGINT, or until it has to end.
///
/// # Errors
/// Says what could not be opened, or why the node ended.
pub fn run(config: &Config) -> Result<(), Error> {
    data_directory::keep_to_oneself();
    // It also takes the parent's death out of what the kernel looks after.
    privileges::drop(config)?;
    if let Some(parent) = std::env::var_os(DIE_WITH_PARENT) {
        die_with(&parent.to_string_lossy())?;
    }
    raise_file_limit()?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).map_err(|source| Error::System {
            doing: "catch signals",
            source,
        })?;
    }
    run_until(config, &stop)
}

/// The usual soft limit is for programs that use select(2), which this one does not.
fn raise_file_limit() -> Result<(), Error> {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    raised.map_err(|error| Error::System {
        doing: "raise the number of files that may be open",
        source: error.into(),
    })
}

/// Has the kernel kill this process when the thread that started it ends.
fn die_with(parent: &str) -> Result<(), Error> {
    let refused = |source| Error::System {
        doing: "die with the parent process",
        source,
    };
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|error| refused(error.into()))?;
    // The parent may have ended before the kernel knew of the wish.
    if nix::unistd::getppid().to_string() == parent {
        Ok(())
    } else {
        let text = format!("process {parent} has ended already");
        Err(refused(std::io::Error::other(text)))
    }
}

/// Runs a node until `stop` is set (looked at every 100 ms at least), or until it has to end.
///
/// # Errors
/// Says what could not be opened, or why the node ended.
pub fn run_until(config: &Config, stop: &Arc<AtomicBool>) -> Result<(), Error> {
    if config.rejoin {
        check_rejoin(config)?;
    }
    // An earlier process may have ended before the node was a member again.
    let mut rejoins = config.rejoin && beside(&config.data_directory, REJOINS).exists();
    let mut has_begun = false;
    loop {
        let life = Config {
            join: config.join || rejoins,
            ..config.clone()
        };
        match run_life(&life, stop, rejoins) {
            Err(error) if config.rejoin && !has_begun && error.is_refused_identity() => {
                match set_aside(&config.data_directory) {
                    Ok(aside) => {
                        tracing::warn!(%error, aside = %aside.display(), "begins a new life");
                        (rejoins, has_begun) = (true, true);
                    }
                    Err(refused) => {
                        tracing::warn!(error = %refused, "cannot begin a new life");
                        return Err(error);
                    }
                }
            }
            ended => return ended,
        }
    }
}

/// What the file beside the data directory is called that says that a new life is to take the place
/// of a former one.
const REJOINS: &str = ".rejoins";

fn beside(directory: &Path, suffix: &str) -> PathBuf {
    // Without a slash at its end.
    let mut name = directory.components().as_path().as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Finds out now whether a data directory can be moved aside and that be written down.
fn check_rejoin(config: &Config) -> Result<(), Error> {
    let directory = &config.data_directory;
    let refused = |why: String| Error::CannotRejoin {
        node: NodeId(config.node),
        directory: directory.clone(),
        why,
    };
    // One that is not there yet is found to be made, or not, at once.
    let Ok(path) = directory.canonicalize() else {
        return Ok(());
    };
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // proc(5): the fifth field is where it is mounted.
    let mut places = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let Some(parent) = path.parent() else {
        return Err(refused("it is the root of the file system".into()));
    };
    if places.any(|place| Path::new(place) == path) {
        return Err(refused("it is a mount of its own".into()));
    }
    access(parent, AccessFlags::W_OK | AccessFlags::X_OK)
        .map_err(|error| refused(format!("write to {}: {error}", parent.display())))
}

/// Moves a data directory out of the way, under a name that no other one has, once it is on record
/// why.
fn set_aside(directory: &Path) -> Result<PathBuf, Error> {
    let refused = |source| Error::System {
        doing: "move the data directory aside",
        source,
    };
    let aside = beside(directory, &format!(".lost-{}", clock::unix_ms()));
    let record = beside(directory, REJOINS);
    // One from an earlier life says what this node is to become again.
    let is_first = !record.exists();
    if is_first {
        data_directory::replace(&record, &[], true)?;
    }
    if let Err(error) = std::fs::rename(directory, &aside) {
        if is_first {
            let _ = std::fs::remove_file(&record);
        }
        return Err(refused(error));
    }
    Ok(aside)
}

/// What this node was in its former life, if it was found out.
fn read_former(record: &Path) -> Result<Option<Former>, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string(record)?;
    let former = (!text.is_empty()).then(|| toml::from_str(&text));
    Ok(former.transpose()?)
}

/// Has the others take this node for what it was. What that is goes on record before it is forgotten.
fn take_back(
    operator: &mut Operator,
    node: NodeId,
    incarnation: Incarnation,
    record: &Path,
) -> Result<bool, Box<dyn std::error::Error>> {
    let refused = |error| format!("use {}: {error}; remove it", record.display());
    let former = match read_former(record).map_err(refused)? {
        Some(former) => former,
        None => {
            let Some(former) = operator.former(node, PUT_BACK)? else {
                return Ok(false);
            };
            let text = toml::to_string(&former)?;
            data_directory::replace(record, &[text.as_bytes()], true)?;
            former
        }
    };
    Ok(operator.put_back(node, incarnation, &former, PUT_BACK)?)
}

/// Has the others take this node for what it was, in its new life. If the node stops first, its next
/// process goes on.
fn put_back(
    config: &Config,
    incarnation: Incarnation,
    stop: &Arc<AtomicBool>,
) -> Result<(), Error> {
    let record = beside(&config.data_directory, REJOINS);
    let others = config.peers.iter().filter(|peer| peer.node != config.node);
    let seeds: Vec<_> = others.map(|peer| peer.address).collect();
    let (node, stop) = (NodeId(config.node), Arc::clone(stop));
    let keys = config.key_file.as_deref().map(read_keys).transpose()?;
    let rejoin = move || {
        while !stop.load(Ordering::Relaxed) {
            let done = Operator::new(seeds.clone(), keys)
                .map_err(Into::into)
                .and_then(|mut operator| take_back(&mut operator, node, incarnation, &record));
            match done {
                Ok(true) => tracing::info!(%node, "is a member again"),
                Ok(false) => tracing::warn!(%node, "is no member any more: left alone"),
                Err(error) => {
                    tracing::warn!(%node, %error, "is no member yet");
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                }
            }
            if let Err(error) = std::fs::remove_file(&record) {
                tracing::warn!(%error, file = %record.display(), "cannot be removed: remove it");
            }
            return;
        }
    };
    let spawned = std::thread::Builder::new()
        .name("rejoin".into())
        .spawn(rejoin);
    spawned.map(drop).map_err(|source| Error::System {
        doing: "start the thread that rejoins",
        source,
    })
}

/// One life of a node's memory, or a part of it. `rejoins` says that it lost the one before.
fn run_life(config: &Config, stop: &Arc<AtomicBool>, rejoins: bool) -> Result<(), Error> {
    let node = NodeId(config.node);
    let own = config.peers.iter().find(|peer| peer.node == config.node);
    let Some(own) = own else {
        return Err(NodeError::NotAMember { node }.into());
    };
    let keys = config.keys()?;
    let key = keys.map(|keys| keys.signs);
    let rehearsal = Rehearsal::from_environment().map_err(Error::Rehearsal)?;
    let layout = config.layout()?;
    check_memory(layout)?;
    let expectation = Expectation {
        cluster: config.cluster.clone(),
        node,
        durability: config.durability,
        origin: 0,
    };
    let mut directory = DataDirectory::open(&config.data_directory, &expectation)?;
    let found = directory.identity().durability;
    if found != config.durability {
        let directory = config.data_directory.clone();
        return Err(Error::OtherDurability {
            directory,
            found,
            wanted: config.durability,
        });
    }

    // The ports come before the state: a second process ends here and changes nothing.
    let wait = match config.worker.wait {
        Wait::Blocking => datapath::Wait::Blocking,
        Wait::Polling => datapath::Wait::Polling,
    };
    let datapath = Udp::bind(own.address, wait)?;
    let waker = datapath.waker();
    let lifelines = Lifelines::start(own.address, {
        let waker = waker.clone();
        move || waker.wake()
    })?;
    let leaders = Leaders::new(config.region.groups);
    let server = bind_resp(config, layout, &directory, &leaders)?;

    let now_ns = clock::monotonic_ns();
    let opened = open_state(config, &rehearsal, &mut directory, layout, keys, {
        let waker = waker.clone();
        Arc::new(move || waker.wake())
    })?;
    let acceptor = opened.acceptor;
    // Who formed a cluster joins none, and one that took this for true would be of no cluster.
    let joins = config.join && !directory.identity().formed;
    if config.join && !joins && !directory.identity().joined {
        tracing::warn!("`join` is ignored: this node formed its cluster and goes on as its member");
    }
    let used_round = directory
        .identity()
        .reserved_round
        .max(opened.highest_round);
    directory.update(|identity| {
        identity.reserved_round = identity.reserved_round.max(used_round) + 1024;
        identity.epoch = FIRST_EPOCH;
        identity.joined |= joins;
    })?;
    directory.begin_registers(config.region.groups)?;
    let applied: Vec<Slot> = opened.states.iter().map(Applied::slot).collect();
    let readers = opened.states.iter().map(|state| state.machine().reader());
    let readers: Vec<_> = readers.collect();
    #[allow(unused_mut, reason = "a build for tests has defects to switch on")]
    let mut wal = Wal::new(opened.journal);
    #[cfg(any(debug_assertions, feature = "kill-points"))]
    if rehearsal.replies_before_flush {
        wal.reply_before_flush();
    }
    let mut node = Node::new(
        node_config(config, key, &directory, used_round, now_ns)?,
        acceptor,
        opened.region,
        wal,
        config.durability.of_core(),
        opened.states,
    )?;
    if let Some(formed) = directory.identity().terms
        && formed != node.formation().terms()
    {
        return Err(Error::OtherTerms {
            formed,
            configured: node.formation().terms(),
        });
    }
    if let Some(keys) = keys {
        node.set_keys(keys);
    }
    let wish = Wish::of(directory.path());
    let offload = opened
        .pinned
        .map(|pinned| Supervision::new(Box::new(pinned), wish));
    if offload.is_some() {
        node.local_mut().share();
    }
    if config.durability == Durability::Async {
        journal_again(node.local_mut(), &applied)?;
    }
    let path_of = directory.snapshots_paths();
    let polls = config.worker.wait == Wait::Polling;
    let placed = move || {
        // A worker that polls is below it, or it would never run on the worker's CPU.
        if !polls {
            datapath::step_back();
        }
    };
    let (directories, newest) = (opened.directories, &opened.newest);
    let snapshots = Snapshots::start(path_of, directories, newest, Kv::new, placed, {
        let waker = waker.clone();
        move || waker.wake()
    })
    .map_err(|source| Error::System {
        doing: "start the snapshot writer",
        source,
    })?;

    let mut front_end = None;
    let groups = config.region.groups;
    let front = server.as_ref().map(|server| {
        let wake_worker: front::Wake = Arc::new({
            let waker = waker.clone();
            move || waker.wake()
        });
        let (front, worker) = front::attach(FRONT_CAPACITY, groups, wake_worker, server.waker());
        let read = Box::new(move |group: GroupId, query: &[u8], reply: &mut Vec<u8>| {
            if let Some(reader) = readers.get(usize::from(group.0)) {
                reader.query(query, reply);
            }
        });
        front_end = Some(front.reading(read));
        worker
    });
    let mut resp = server.iter().flat_map(resp::Server::local_addrs).copied();
    let (resp, resp_tls) = (config.resp.and_then(|_| resp.next()), resp.next());
    let capabilities = datapath.capabilities();
    let service = NodeService::new(Parts {
        node,
        directory,
        address: own.address,
        lifelines,
        snapshots,
        snapshot_slots: rehearsal.snapshot_slots.unwrap_or(SNAPSHOT_SLOTS),
        front,
        offload,
        new_keys: new_keys(config)?,
        stop: Arc::clone(stop),
        leaders,
        facts: Facts {
            wait: match config.worker.wait {
                Wait::Blocking => "blocking",
                Wait::Polling => "polling",
            },
            mode: capabilities.name,
            resp,
            resp_tls,
            restored: opened.restored,
            replayed: opened.replayed,
        },
    })?;
    let report = service.report();
    let handle = match (server, front_end) {
        (Some(server), Some(front)) => {
            let is_sharded = config.region.groups > 1;
            let info = Arc::new(move || info_text(&report, is_sharded));
            Some(server.spawn(front, info)?)
        }
        _ => None,
    };
    let placement = Placement {
        cpu: config.worker.cpu,
        fifo_priority: config.worker.fifo_priority,
    };
    let linger = Duration::from_micros(config.worker.linger_us);
    let mut worker = Worker::new(datapath, service)
        .placed(placement)
        .lingering(linger);
    tracing::info!(node = config.node, address = %own.address, "node runs");
    if rejoins {
        put_back(config, acceptor.incarnation, stop)?;
    }
    let result = worker.run();
    stop.store(true, Ordering::Relaxed);
    let (_, mut service) = worker.into_parts();
    let fatal = service.fatal();
    service.detach_front();
    if let Some(handle) = handle {
        handle.stop();
    }
    result?;
    if let Some(fatal) = fatal {
        return Err(fatal.into());
    }
    service.close()?;
    Ok(())
}

/// Reads the key file again when SIGHUP asks for it. Without one the signal does what it always does.
fn new_keys(config: &Config) -> Result<NewKeys, Error> {
    let Some(path) = config.key_file.clone() else {
        return Ok(Box::new(|| None));
    };
    let asked = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGHUP, Arc::clone(&asked)).map_err(
        |source| Error::System {
            doing: "catch signals",
            source,
        },
    )?;
    let is_in_kernel = config.offload.is_some();
    Ok(Box::new(move || {
        if !asked.load(Ordering::Relaxed) {
            return None;
        }
        asked.store(false, Ordering::Relaxed);
        if is_in_kernel {
            tracing::warn!(
                "SIGHUP: the acceptor in the kernel was loaded with its key; restart this node \
                 instead, its votes outlive it"
            );
            return None;
        }
        match read_keys(&path) {
            Ok(keys) => {
                tracing::info!(path = %path.display(), "SIGHUP: the key file is read again");
                Some(keys)
            }
            Err(error) => {
                tracing::error!("SIGHUP: {error}; the keys stay as they were");
                None
            }
        }
    }))
}

/// The listeners for Redis clients, if there are any.
fn bind_resp(
    config: &Config,
    layout: Layout,
    directory: &DataDirectory,
    leaders: &Leaders,
) -> Result<Option<resp::Server>, Error> {
    let plain = config
        .resp
        .map(|address| resp::Listen { address, tls: None });
    let mut listen = Vec::from_iter(plain);
    if let Some(tls) = &config.resp_tls {
        listen.push(resp::Listen {
            address: tls.listen,
            tls: Some(tls.load()?),
        });
    }
    let Some(first) = listen.first() else {
        return Ok(None);
    };
    let usual = resp::Options::new(first.address, max_command_bytes(layout.value_bytes()));
    // Without a descriptor the journal cannot go on, and a node that cannot write it down ends.
    let (files, _) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|error| Error::System {
        doing: "ask how many files may be open",
        source: error.into(),
    })?;
    let max_connections = connections(files, config.region.groups, usual.max_connections);
    if max_connections < usual.max_connections {
        tracing::warn!(
            max_connections,
            files,
            "fewer Redis clients than usual, for want of file descriptors: raise the hard limit \
             (`ulimit -Hn`, LimitNOFILE=)"
        );
    }
    let server = resp::Server::bind(resp::Options {
        listen,
        max_connections,
        users: config.users.clone().into(),
        cluster: cluster(config, directory, leaders),
        ..usual
    })?;
    Ok(Some(server))
}

/// How many Redis clients there may be where a process may open so many files.
fn connections(files: u64, groups: u16, usual: usize) -> usize {
    let reserved = RESERVED_FILES + FILES_PER_GROUP * u64::from(groups);
    let left = files.saturating_sub(reserved).max(files / 4);
    usize::try_from(left).map_or(usual, |left| left.min(usual))
}

/// What Redis clients are told of the nodes. Where this one is reached by them goes without saying if
/// it listens at one address.
fn cluster(config: &Config, directory: &DataDirectory, leaders: &Leaders) -> Cluster {
    let own = config.resp.filter(|resp| !resp.ip().is_unspecified());
    let member = |peer: &config::Peer| Member {
        node: peer.node,
        address: peer.address,
        resp: peer.resp.or(own.filter(|_| peer.node == config.node)),
    };
    Cluster {
        name: directory.fingerprint() >> 32,
        own: config.node,
        members: config.peers.iter().map(member).collect(),
        leaders: leaders.clone(),
    }
}

fn node_config(
    config: &Config,
    key: Option<Key>,
    directory: &DataDirectory,
    used_round: u64,
    seed: u64,
) -> Result<node::Config, Error> {
    let identity = directory.identity();
    let mut registers = BTreeMap::new();
    for group in (0..config.region.groups).map(GroupId) {
        if let Some(kept) = directory.register(group)? {
            registers.insert(group, kept);
        }
    }
    Ok(node::Config {
        node: NodeId(config.node),
        peers: config
            .peers
            .iter()
            .map(|peer| Peer {
                node: NodeId(peer.node),
                address: peer.address,
                priority: peer.priority,
            })
            .collect(),
        joins: identity.joined,
        registers,
        epoch: FIRST_EPOCH,
        quorums: config.quorum.map(|quorum| (quorum.phase1, quorum.phase2)),
        key,
        leader: LeaderTiming::of(
            config.timing.heartbeat_ms * MS,
            config.decide_ns(),
            config.durability.of_core(),
        ),
        // A cluster that formed before leases were among its terms has not agreed on their length.
        leases: config.reads == Reads::Lease && (!identity.formed || identity.terms.is_some()),
        quorum_reads: config.reads == Reads::Quorum,
        election: ElectionTiming::of(config.timing.election_ms * MS),
        pulse_ns: config.pulse_ns(),
        campaigns: CAMPAIGNS,
        pace: Pace {
            bytes_per_s: config.catch_up.bytes_per_s,
            ..Pace::default()
        },
        origin: identity.origin,
        seed: seed ^ identity.region_nonce,
        used_round,
        pins: identity.pins.clone(),
        formed: identity.formed,
    })
}

fn lost(directory: &DataDirectory, why: String) -> Error {
    Error::LostMemory {
        node: directory.identity().node,
        why,
        directory: directory.path().to_owned(),
    }
}

/// What a node finds, or makes, when it starts.
struct Opened {
    region: Software,
    pinned: Option<Pinned>,
    acceptor: Acceptor,
    journal: Option<Journal>,
    /// The state of each group.
    states: Vec<Applied<Kv>>,
    directories: BTreeMap<GroupId, SnapshotDirectory>,
    newest: BTreeMap<GroupId, Snapshot>,
    highest_round: u64,
    restored: u64,
    replayed: u64,
}

fn open_state(
    config: &Config,
    rehearsal: &Rehearsal,
    directory: &mut DataDirectory,
    layout: Layout,
    keys: Option<Keys>,
    wake: Arc<dyn Fn() + Send + Sync>,
) -> Result<Opened, Error> {
    let identity = directory.identity().clone();
    let sync = config.durability == Durability::Sync;
    // Under `sync` the journal is the memory, and it outlives the machine.
    let boot = if sync {
        0
    } else {
        parse_boot_id(&identity.boot_id)
    };
    let is_lost = match identity.voting_boot_id() {
        Some(voting) if !sync => data_directory::boot_id()? != voting,
        Some(_) | None => false,
    };
    if is_lost && !rehearsal.counts_lost_memory {
        let why = "the machine has restarted since, and its votes were in memory";
        return Err(lost(directory, why.into()));
    }
    let birth = Birth {
        cluster: directory.fingerprint() >> 32,
        node: identity.node,
        nonce: identity.region_nonce,
        boot,
    };
    let acceptor = Acceptor {
        node: identity.node,
        incarnation: birth.incarnation(),
        layout,
    };

    let groups = config.region.groups;
    let mut states: Vec<_> = (0..groups).map(|_| Applied::new(Kv::new())).collect();
    let mut newest = BTreeMap::new();
    let take = |group: GroupId, found: Newest| {
        for damaged in &found.damaged {
            tracing::warn!(%group, ?damaged, "a snapshot is damaged and ignored");
        }
        if let (Some(snapshot), Some(applied)) =
            (found.snapshot, states.get_mut(usize::from(group.0)))
        {
            let restored = applied.restore(&snapshot.body()?);
            restored.map_err(|source| Error::Restore {
                path: snapshot.path().to_owned(),
                source,
            })?;
            newest.insert(group, snapshot);
        }
        Ok::<_, Error>(())
    };
    let directories = snapshots::look(&directory.snapshots_paths(), groups, take)?;
    let origin = newest.get(&GROUP).map(|snapshot| snapshot.id().origin());
    if identity.origin != 0 && !identity.formed && origin != Some(identity.origin) {
        return Err(Error::NoOrigin {
            path: directory.path().to_owned(),
            origin: identity.origin,
        });
    }

    let lease_ns = config.timing.lease_us * 1_000;
    let terms = Terms {
        layout,
        birth,
        epoch: FIRST_EPOCH,
        lease_ns,
    };
    let own = config
        .offload
        .as_ref()
        .map(|offload| xdp::own(&offload.interface, config.this().address.ip()));
    let own = own.transpose().map_err(RegionError::Xdp);
    let own = own.map_err(Error::Region)?;
    let kernel = config
        .offload
        .as_ref()
        .zip(own)
        .map(|(offload, own)| InKernel {
            bpffs: offload.bpffs.clone(),
            settings: xdp::Settings {
                port: config.this().address.port(),
                own,
                layout,
                birth,
                epoch: FIRST_EPOCH,
                lease_ns,
                keys,
                is_rehearsal: false,
            },
            seat: xdp::Seat {
                interface: offload.interface.clone(),
                mode: offload.mode,
                attach: offload.attach,
                on_host_death: offload.on_host_death,
            },
        });
    // Before the cluster has formed this node has never voted.
    let opened = if sync || !identity.formed || is_lost {
        region_place::make(directory, &terms, kernel.as_ref())
    } else {
        region_place::open(directory, &terms, kernel.as_ref())
    };
    let opened = opened.map_err(|error| match error {
        RegionError::Lost(why) => lost(directory, why),
        error => Error::Region(error),
    })?;
    let region = Software::new(opened.region);
    let restored = opened.restored;

    let mut highest_round = 0;
    let mut replayed = 0;
    let journal = if config.durability == Durability::Volatile {
        None
    } else {
        let flush = if sync { Flush::Before } else { Flush::Behind };
        let path = directory.journal_path();
        let mut options = journal::Options::new(&path, directory.fingerprint(), flush);
        if let Some(bytes) = rehearsal.segment_bytes {
            options.segment_bytes = bytes;
        }
        let refused = |source| JournalError::Disk {
            doing: "prepare journal directory",
            path: path.clone(),
            source,
        };
        // The cluster forms after the journal is begun, and nobody votes before.
        if sync && identity.formed && !journal::exists(&path).map_err(refused)? {
            return Err(lost(directory, "its journal is missing".into()));
        }
        options.disk = rehearsal.disk(&path, flush).map_err(refused)?;
        let (recovery, journal) = Journal::open(options, wake)?;
        if let Some(torn) = recovery.torn() {
            tracing::info!(?torn, "the journal's tail was torn and is cut off");
        }
        let replays = states.into_iter();
        let mut replays: Vec<_> = replays
            .map(|applied| Recovery::new(acceptor, applied))
            .collect();
        let mut bad = None;
        let memory = sync.then_some(&region);
        recovery.replay(|_, record| {
            // A record of no group of this node is a bad one for the first.
            let group = wire::group_of(record).map_or(0, |group| usize::from(group.0));
            let at = if group < replays.len() { group } else { 0 };
            let replayed = replays[at].record(memory, clock::monotonic_ns(), record);
            if let Err(error) = replayed {
                bad.get_or_insert(error);
            }
        })?;
        if let Some(error) = bad {
            return Err(error.into());
        }
        states = Vec::with_capacity(replays.len());
        for replay in replays {
            let (applied, round, records) = replay.finish();
            states.push(applied);
            highest_round = round.max(highest_round);
            replayed += records;
        }
        Some(journal)
    };
    Ok(Opened {
        region,
        pinned: opened.pinned,
        acceptor,
        journal,
        states,
        directories,
        newest,
        highest_round,
        restored,
        replayed,
    })
}

/// Waits for room until the journal has what the region holds.
fn journal_again(local: &mut Local<Software, Wal>, applied: &[Slot]) -> Result<(), Error> {
    for (group, applied) in (0..).map(GroupId).zip(applied) {
        let mut from = *applied;
        while let Err(reached) = local.journal_again(group, from) {
            if let Some(error) = local.journal_mut().failed() {
                return Err(Fatal::Journal(error.to_string()).into());
            }
            from = reached;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

/// A region lives in memory, whatever file it has a name in.
fn check_memory(layout: Layout) -> Result<(), Error> {
    let found = sysconf(SysconfVar::_PHYS_PAGES)
        .ok()
        .flatten()
        .zip(sysconf(SysconfVar::PAGE_SIZE).ok().flatten())
        .and_then(|(pages, bytes)| usize::try_from(pages.checked_mul(bytes)?).ok());
    match found {
        Some(found) if layout.bytes() > found => Err(Error::Memory {
            wanted: layout.bytes(),
            groups: layout.groups(),
            window: layout.window(),
            found,
        }),
        Some(_) | None => Ok(()),
    }
}

/// The number that regions carry for a boot id.
pub fn parse_boot_id(text: &str) -> u128 {
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    // A boot id that is no UUID (a test's) still tells one boot from another.
    u128::from_str_radix(&digits, 16)
        .unwrap_or_else(|_| u128::from(crc_fast::crc32_iscsi(text.as_bytes())))
        .max(1)
}

fn info_text(report: &std::sync::Mutex<String>, is_sharded: bool) -> String {
    let text = report
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .clone();
    let fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&text).unwrap_or_default();
    let (mode, enabled) = match is_sharded {
        true => ("cluster", 1),
        false => ("standalone", 0),
    };
    let version = env!("CARGO_PKG_VERSION");
    let mut info = format!(
        "# Server\r\nredis_version:7.0.0\r\nredis_mode:{mode}\r\nnearwire_version:{version}\r\n\r\n\
         # Cluster\r\ncluster_enabled:{enabled}\r\n\r\n# Nearwire\r\n"
    );
    for (name, value) in fields {
        let value = match value {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        info.push_str(&format!("nearwire_{name}:{value}\r\n"));
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_the_node_its_descriptors() {
        for (files, groups, expected) in [
            (1 << 20, 1024, 10_000),
            (1024, 1, 510),
            (4096, 1024, 1536),
            (64, 1, 16),
        ] {
            assert_eq!(connections(files, groups, 10_000), expected, "{files}");
        }
    }
}
