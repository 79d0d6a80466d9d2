//! What `nearwire bench` measures: three replica processes of this very program.

mod flush;

use crate::config::{Durability, Reads, Region, Wait};
use crate::inspect::Inspector;
use crate::kv::{Call, Op};
use crate::local_cluster::{self, LocalCluster};
use crate::node::{GROUP, max_request_bytes};
use crate::run_directory::RunDirectory;
use crate::xdp::{Bystander, OnHostDeath};
use crate::xdp_site::Ports;
use bench::cluster::Command;
use bench::process::Subject;
use bench::report::Waiting;
use bench::rounds::median;
use bench::run::{self, Cluster, Description, Outcome, Progress, Target, TargetError};
use bench::site::Site;
use consensus::{Epoch, NodeId, simulation};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How the names of runs' directories begin.
const PREFIX: &str = "nearwire-bench-";
/// How many replicas there are.
const REPLICAS: usize = 3;
/// The replica that is to lead, so that every run has its leader in the same place.
const LEADER: u16 = 1;
/// How long a fresh cluster may take to elect.
const ELECTION: Duration = Duration::from_secs(20);
/// How long it may take to hand over. The run goes on with whoever leads then.
const HAND_OVER: Duration = Duration::from_secs(3);
/// Keys that are written in turn.
const KEYS: u64 = 1024;

/// What steps the acceptors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Engine {
    /// Processes.
    Software,
    /// Programs in the kernel, in native mode where there are interfaces. Needs root.
    Xdp,
}

impl Engine {
    /// A stable name for rows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Software => "software",
            Self::Xdp => "xdp",
        }
    }
}

/// A cluster of processes on this machine, started anew for each run.
pub struct LocalTarget {
    program: PathBuf,
    engine: Engine,
    /// Holds the directory of the run.
    parent: PathBuf,
    durability: Durability,
    wait: Wait,
    /// How long a replica looks for packets before it sleeps, in microseconds.
    linger_us: u64,
    /// How Redis clients are served, if they are.
    reads: Option<Reads>,
    /// More lines of each replica's configuration.
    settings: String,
    running: Option<Running>,
    /// What programs on interfaces need around them: made once for a site.
    programs: Option<Programs>,
    /// The journal's code path, once it is known.
    journal: Option<String>,
    unsupported: Option<String>,
    /// Nodes beside the replicas that wait to be made members.
    strangers: usize,
}

struct Programs {
    _ports: Ports,
    _echo: Bystander,
    echo: SocketAddr,
}

impl Programs {
    fn open(site: &Site) -> Result<Self, TargetError> {
        let rig = site.rig().ok_or("XDP needs namespaces: --where netns")?;
        let node = site.echo().ok_or("XDP needs namespaces: --where netns")?;
        Ok(Self {
            _ports: Ports::open(rig)?,
            _echo: Ports::open_echo(node)?,
            // Any port: nobody but the program looks at it.
            echo: (node.ipv4, consensus::wire::DEFAULT_PORT).into(),
        })
    }
}

/// Dropped in this order: replicas that still run would write into a directory that is going.
struct Running {
    cluster: LocalCluster,
    directory: RunDirectory,
}

/// The places for state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// A flush there costs nothing.
    #[error(
        "{} is in memory, so nothing there is ever flushed and {durability:?} durability would \
         measure nothing", path.display()
    )]
    InMemory {
        /// The directory.
        path: PathBuf,
        /// What was asked for.
        durability: Durability,
    },
    /// The system refuses.
    #[error("look at {}: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
}

/// Where the replicas' state goes: `wanted`, or memory if nothing need outlive the process, or else
/// the directory for temporary files.
///
/// # Errors
/// It cannot be looked at, or its flushes would be free.
pub fn state_parent(
    wanted: Option<PathBuf>,
    durability: Durability,
) -> Result<PathBuf, PlaceError> {
    let volatile = durability == Durability::Volatile;
    let memory = || Some(PathBuf::from("/dev/shm")).filter(|path| volatile && path.is_dir());
    let path = wanted.or_else(memory).unwrap_or_else(std::env::temp_dir);
    let kind = statfs(&path).map_err(|error| PlaceError::Io {
        path: path.clone(),
        source: error.into(),
    })?;
    if !volatile && kind.filesystem_type() == TMPFS_MAGIC {
        return Err(PlaceError::InMemory { path, durability });
    }
    Ok(path)
}

impl LocalTarget {
    /// Replicas of `program` with their state below `parent`; see [`state_parent`].
    pub fn new(
        program: impl Into<PathBuf>,
        engine: Engine,
        parent: impl Into<PathBuf>,
        durability: Durability,
        wait: Wait,
        linger_us: u64,
    ) -> Self {
        Self {
            program: program.into(),
            engine,
            parent: parent.into(),
            durability,
            wait,
            linger_us,
            reads: None,
            settings: String::new(),
            running: None,
            programs: None,
            journal: None,
            unsupported: None,
            strangers: 0,
        }
    }

    /// Runs so many nodes for so many members that are none.
    #[must_use]
    pub fn with_strangers(self, strangers: impl FnOnce(usize) -> usize) -> Self {
        Self {
            strangers: strangers(REPLICAS),
            ..self
        }
    }

    /// How many nodes run.
    pub const fn nodes(&self) -> usize {
        REPLICAS + self.strangers
    }

    /// With these lines in each replica's configuration.
    #[must_use]
    pub fn configured(self, settings: String) -> Self {
        Self { settings, ..self }
    }

    /// Is not to be measured, and why: its row will say so.
    #[must_use]
    pub fn unsupported(self, reason: Option<String>) -> Self {
        Self {
            unsupported: reason,
            ..self
        }
    }

    /// Serves Redis clients as well, with such reads.
    #[must_use]
    pub fn serving_redis(self, reads: Reads) -> Self {
        Self {
            reads: Some(reads),
            ..self
        }
    }

    /// The replicas, while they run.
    pub fn cluster(&mut self) -> Option<&mut LocalCluster> {
        self.running.as_mut().map(|running| &mut running.cluster)
    }

    fn launch(&self, site: &Site) -> Result<Running, TargetError> {
        let directory = make_directory(&self.parent)?;
        let mut options = local_cluster::Options::new(&self.program, directory.path());
        options.durability = self.durability;
        options.wait = self.wait;
        options.xdp = (self.engine == Engine::Xdp).then_some(OnHostDeath::Seal);
        if let Some(reads) = self.reads {
            options.resp = true;
            options.settings = format!("reads = \"{}\"\n", reads.name());
        }
        options.settings += &self.settings;
        options.worker = format!("linger_us = {}\n", self.linger_us);
        // A worker that spins stays below the other threads on its CPU, which would starve beside
        // it: its journal's, and the one that starts it.
        let priority = site.replicas().first();
        let priority = priority.and_then(|place| place.placement.fifo_priority);
        if let (Wait::Polling, Some(priority)) = (self.wait, priority) {
            let below = priority.checked_sub(1).filter(|&below| below > 0);
            let below = below.ok_or("replicas that poll need a --priority of 2 or more")?;
            options.worker += &format!("fifo_priority = {below}\n");
        }
        options.joining = self.strangers;
        options.addresses = site.replicas().iter().map(|place| place.ip).collect();
        let mut running = Running {
            cluster: LocalCluster::prepare(options)?,
            directory,
        };
        for node in 1..=site.replicas().len() as u16 {
            running.cluster.start_at(site, node)?;
        }
        Ok(running)
    }
}

impl Target for LocalTarget {
    fn description(&self) -> Description {
        let waiting = match self.wait {
            Wait::Blocking => Waiting::Blocking,
            Wait::Polling => Waiting::Polling,
        };
        let linger = match self.wait {
            Wait::Blocking => Duration::from_micros(self.linger_us),
            Wait::Polling => Duration::ZERO,
        };
        let mut mode = String::from("recvmmsg/sendmmsg");
        if !linger.is_zero() {
            mode += &format!(", replicas linger {} µs", linger.as_micros());
        }
        if simulation::IS_COMPILED_IN {
            mode += ", with the hooks of simulations";
        }
        if let Some(journal) = &self.journal {
            mode += &format!(", journal {journal}");
        }
        if self.engine == Engine::Xdp {
            mode = format!("acceptors native XDP_TX, leader {mode}");
        }
        Description {
            engine: self.engine.name().into(),
            mode,
            durability: self.durability.name().into(),
            replicas: REPLICAS,
            leader_wait: waiting,
            acceptor_wait: match self.engine {
                Engine::Software => waiting,
                Engine::Xdp => Waiting::Inline,
            },
            linger,
            auth: false,
            unsupported: self.unsupported.clone(),
        }
    }

    fn start(&mut self, site: &Site) -> Result<Cluster, TargetError> {
        if self.engine == Engine::Xdp && self.programs.is_none() {
            self.programs = Some(Programs::open(site)?);
        }
        let mut running = self.launch(site)?;
        let leader = lead(&mut running.cluster, site)?;
        if self.engine == Engine::Xdp {
            let client = site.client().node.as_ref();
            let client = client.ok_or("XDP needs namespaces: --where netns")?;
            client.run(|| running.cluster.await_engine("xdp", ELECTION))??;
        }
        let cluster = &running.cluster;
        self.journal = leader.journal;
        let nodes = 1..=cluster.replicas().len() as u16;
        let processes = nodes.filter_map(|node| cluster.process(node));
        let described = Cluster {
            members: cluster.members(),
            leader: usize::from(leader.node) - 1,
            group: GROUP,
            epoch: Epoch(1),
            key: None,
            max_value: max_request_bytes(Region::default().value_bytes),
            processes: processes.map(Subject::Process).collect(),
            xdp_echo: self.programs.as_ref().map(|programs| programs.echo),
        };
        self.running = Some(running);
        Ok(described)
    }

    fn stop(&mut self) -> Result<(), TargetError> {
        let Some(Running { cluster, directory }) = self.running.take() else {
            return Ok(());
        };
        drop(cluster);
        directory.remove()?;
        Ok(())
    }

    fn commands(&self, value_bytes: usize) -> Command {
        let value = vec![b'x'; value_bytes];
        Box::new(move |number, out| {
            let key = format!("key:{:04}", number % KEYS);
            let call = Call {
                op: Op::Set,
                arguments: [key.as_bytes(), &value].into_iter().collect(),
            };
            call.encode(out);
        })
    }
}

fn make_directory(parent: &Path) -> io::Result<RunDirectory> {
    RunDirectory::create(parent, PREFIX, false).map_err(|error| {
        let doing = format!("make a directory in {}: {error}", parent.display());
        io::Error::new(error.kind(), doing)
    })
}

struct Leading {
    node: u16,
    journal: Option<String>,
}

/// Waits for a leader, asks it to hand over to [`LEADER`], and says who leads in the end. Asked
/// from the client's place, since the replicas may be reached from nowhere else.
fn lead(cluster: &mut LocalCluster, site: &Site) -> Result<Leading, TargetError> {
    let ask = || -> Result<Leading, TargetError> {
        site.client().enter()?;
        let mut node = cluster.leader(ELECTION)?;
        if node != LEADER {
            let members = cluster.members();
            let addresses: Vec<_> = members.iter().map(|&(_, address)| address).collect();
            let mut inspector = Inspector::new(&addresses, None)?;
            let from = addresses[usize::from(node) - 1];
            let _ = inspector.hand_over(from, NodeId(LEADER), Duration::from_secs(1))?;
            let deadline = Instant::now() + HAND_OVER;
            while node != LEADER && Instant::now() < deadline {
                node = cluster.leader(ELECTION)?;
            }
        }
        let report = cluster.inspect(node, Duration::from_secs(1));
        let journal = report.and_then(|report| Some(report.get("journal")?.as_str()?.to_owned()));
        Ok(Leading { node, journal })
    };
    thread::scope(|scope| {
        let asked = scope.spawn(ask).join();
        asked.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Measures commits that wait for flushes beside what they are made of: in each round the cluster,
/// a flush with one writer per replica, and the same cluster without flushes.
///
/// # Errors
/// Those of [`run::run`]; the flushes' are [`bench::Error::Target`].
pub fn run_with_flush_floor(
    target: &mut LocalTarget,
    options: &run::Options,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Outcome, bench::Error> {
    let lap = run::Options {
        rounds: 1,
        ..*options
    };
    let parent = state_parent(None, Durability::Volatile).unwrap_or_else(|_| target.parent.clone());
    let mut volatile = LocalTarget::new(
        &target.program,
        target.engine,
        parent,
        Durability::Volatile,
        target.wait,
        target.linger_us,
    );
    let mut laps = Vec::new();
    let (mut flushes, mut commits, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        let mut at = |part: Progress, what| {
            let (round, rounds) = (round, options.rounds);
            progress(Progress {
                what,
                round,
                rounds,
                ..part
            });
        };
        let sync = run::run(target, &lap, &mut |part| at(part, part.what))?;
        if sync.row.unsupported.is_some() {
            return Ok(sync);
        }
        let begins = Progress {
            what: "flush",
            round,
            rounds: options.rounds,
            part: 0.0,
            done: 0,
        };
        at(begins, "flush");
        let flush = flush_p50_us(&target.parent, &lap)?;
        let without = run::run(&mut volatile, &lap, &mut |part| at(part, "volatile"))?;
        flushes.push(flush);
        let commit = without.row.measured.p50_us;
        commits.extend(commit);
        if let Some((p50, commit)) = sync.row.measured.p50_us.zip(commit) {
            ratios.push(p50 / (flush + commit));
        }
        laps.push(sync);
    }
    let mut outcome = run::joined(laps).ok_or(bench::Error::Interrupted)?;
    let measured = &mut outcome.row.measured;
    measured.floors.flush_p50_us = median(flushes);
    measured.floors.volatile_commit_p50_us = median(commits);
    measured.ratio_sync = median(ratios);
    Ok(outcome)
}

fn flush_p50_us(parent: &Path, options: &run::Options) -> Result<f64, bench::Error> {
    let failed = |source: TargetError| bench::Error::Target {
        doing: "flush beside",
        source,
    };
    let directory = make_directory(parent).map_err(|error| failed(error.into()))?;
    // Only the CPUs matter: a disk is in no network namespace.
    let site = Site::open(bench::site::Where::Loopback, REPLICAS, options.priority)?;
    let places: Vec<_> = site
        .replicas()
        .iter()
        .map(|place| place.placement)
        .collect();
    let latencies = flush::measure(directory.path(), &places, options.warmup, options.measure);
    let latencies = latencies.map_err(failed)?;
    directory.remove().map_err(|error| failed(error.into()))?;
    Ok(latencies.value_at_quantile(0.5) as f64 / 1000.0)
}
