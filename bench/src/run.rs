//! A run: a cluster, its floor, and what came of them.

use crate::Error;
use crate::cluster::{ClusterCaller, Command};
use crate::echo::{EchoCaller, EchoServer};
use crate::load::{Caller, Generator, Load, Moment, Plan, Sample, is_set};
use crate::machine::Machine;
use crate::process::{Subject, machine_cpu_time, total_cpu_time};
use crate::report::{Row, Setting, Waiting};
use crate::rounds::{self, Floors, Round, Turn};
use crate::site::{Place, Site, Where};
use consensus::auth::Key;
use consensus::client::{Client, Config, ConfigError};
use consensus::envelope::{Entry, SESSION_WINDOW};
use consensus::wire::HEADER_BYTES;
use consensus::{Epoch, GroupId, NodeId};
use datapath::{Wait, Worker};
use hdrhistogram::Histogram;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

/// Fewest CPUs on which polling measures the system and not the scheduler: three replicas and a
/// client.
const MIN_POLLING_CPUS: usize = 4;
/// How long answers are waited for after the measured time.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a target may answer when it cannot start or stop.
pub type TargetError = Box<dyn std::error::Error + Send + Sync>;

/// A cluster that can be measured.
pub trait Target {
    /// What it is. Called before the start and again while it runs, when the mode is known.
    fn description(&self) -> Description;

    /// Starts it on `site` (see [`Site::spawn`]) and returns when it has a leader.
    ///
    /// # Errors
    /// Whatever kept it from starting. It is then stopped already.
    fn start(&mut self, site: &Site) -> Result<Cluster, TargetError>;

    /// Stops it and leaves nothing behind.
    ///
    /// # Errors
    /// What was left.
    fn stop(&mut self) -> Result<(), TargetError>;

    /// Writes of `value_bytes` bytes in the language of its state machine.
    fn commands(&self, value_bytes: usize) -> Command;
}

/// What a target is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Description {
    /// What steps the regions: `software`, `xdp`, …
    pub engine: String,
    /// Its code path: `recvmmsg/sendmmsg`, `native`, `generic`, …
    pub mode: String,
    /// `volatile`, `async`, `sync` or `pmem`.
    pub durability: String,
    /// How many replicas.
    pub replicas: usize,
    /// How the leader waits for requests.
    pub leader_wait: Waiting,
    /// How the acceptors wait.
    pub acceptor_wait: Waiting,
    /// How long replicas look for packets before they sleep.
    pub linger: Duration,
    /// Whether packets carry tags.
    pub auth: bool,
    /// Why it cannot run here, with what mends it.
    pub unsupported: Option<String>,
}

/// A cluster that runs.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Where each replica takes requests, in the order of the site's places.
    pub members: Vec<(NodeId, SocketAddr)>,
    /// The replica that leads, as an index into `members`.
    pub leader: usize,
    /// The log to write to.
    pub group: GroupId,
    /// Its membership.
    pub epoch: Epoch,
    /// The key of the tags, if packets carry them.
    pub key: Option<Key>,
    /// Longest value of a Request in bytes.
    pub max_value: usize,
    /// Whose CPU time a commit costs: all replicas.
    pub processes: Vec<Subject>,
    /// Where a program on an interface sends every datagram back, if the replicas have such, too.
    /// It stays while the replicas are stopped.
    pub xdp_echo: Option<SocketAddr>,
}

impl Cluster {
    /// Submits what `commands` writes, to the leader first, as many as `max_in_flight` at once.
    ///
    /// # Errors
    /// The cluster is none that a client takes.
    pub fn caller(
        &self,
        commands: Command,
        max_in_flight: usize,
    ) -> Result<ClusterCaller, ConfigError> {
        // If the leader moved since, the first answer says so.
        let mut members = self.members.clone();
        members.rotate_left(self.leader);
        let client = Client::new(Config {
            members,
            group: self.group,
            epoch: self.epoch,
            max_value: self.max_value,
            max_in_flight,
            seed: RandomState::new().build_hasher().finish(),
        })?;
        Ok(ClusterCaller::new(client, self.key, commands))
    }
}

/// What to measure, and how.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What lies between client and replicas.
    pub site: Where,
    /// How the client waits.
    pub client_wait: Wait,
    /// Length of a written value in bytes.
    pub value_bytes: usize,
    /// How requests arise.
    pub load: Load,
    /// How often floor and system take turns.
    pub rounds: usize,
    /// Time before each measurement.
    pub warmup: Duration,
    /// Time of each measurement.
    pub measure: Duration,
    /// SCHED_FIFO priority of everybody; published latencies have one.
    pub priority: Option<u8>,
    /// Set by somebody who wants the run to end: it cleans up and is [`Error::Interrupted`].
    pub interrupt: Option<&'static AtomicBool>,
}

impl Options {
    /// One 64-byte write at a time.
    pub fn latency(site: Where) -> Self {
        Self {
            site,
            client_wait: Wait::Blocking,
            value_bytes: 64,
            load: Load::Closed { outstanding: 1 },
            rounds: 5,
            warmup: Duration::from_millis(500),
            measure: Duration::from_secs(2),
            priority: None,
            interrupt: None,
        }
    }

    /// 32 writes of 64 bytes at a time.
    pub fn rate(site: Where) -> Self {
        Self {
            load: Load::Closed { outstanding: 32 },
            ..Self::latency(site)
        }
    }

    fn window(&self) -> usize {
        match self.load {
            Load::Closed { outstanding } => outstanding,
            Load::Open { .. } => SESSION_WINDOW as usize,
        }
    }
}

/// What is being measured right now.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Progress {
    /// `UDP echo`, `XDP echo` or `system`.
    pub what: &'static str,
    /// Number of the round, from 1.
    pub round: usize,
    /// How many rounds there are.
    pub rounds: usize,
    /// The part of this turn that is over, 0 to 1.
    pub part: f64,
    /// Requests carried out in this turn.
    pub done: u64,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The row.
    pub row: Row,
    /// What the row sums up; empty if nothing could be measured.
    pub rounds: Vec<Round>,
    /// Latencies of all rounds in nanoseconds.
    pub latencies: Histogram<u64>,
    /// Latencies of the floor of all rounds in nanoseconds.
    pub floor_latencies: Histogram<u64>,
}

/// Measures `target` and its floor in turns.
///
/// # Errors
/// The site cannot be made, or the target does not start; what cannot run *here* is a row that says
/// so, not an error.
pub fn run(
    target: &mut dyn Target,
    options: &Options,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Outcome, Error> {
    let description = target.description();
    if let Some(reason) = unsupported(&description, options) {
        let row = Row::unsupported(setting(&description, options), reason, Machine::read());
        return Ok(outcome(row, Vec::new()));
    }
    let site = Site::open(options.site, description.replicas, options.priority)?;
    let mut run = Run {
        target,
        options,
        site,
        cluster: None,
        polls: polls(&description),
        linger: description.linger,
        progress,
    };
    let rounds = run.rounds();
    // Stopped on every path, so that nothing outlives the run.
    let stopped = run.stop();
    let rounds = rounds?;
    stopped?;
    let description = run.target.description();
    let row = Row::new(
        setting(&description, options),
        rounds::measured(&rounds),
        Machine::read(),
    );
    Ok(outcome(row, rounds))
}

/// Sums up runs of the same target, one after the other, as if they were one. `None` of none.
pub fn joined(runs: Vec<Outcome>) -> Option<Outcome> {
    let mut row = runs.first()?.row.clone();
    let rounds: Vec<Round> = runs.into_iter().flat_map(|run| run.rounds).collect();
    if !rounds.is_empty() {
        row.setting.rounds = rounds.len();
        row.measured = rounds::measured(&rounds);
    }
    Some(outcome(row, rounds))
}

fn outcome(row: Row, rounds: Vec<Round>) -> Outcome {
    Outcome {
        row,
        latencies: rounds::merged(rounds.iter().map(|round| &round.system)),
        floor_latencies: rounds::merged(rounds.iter().map(|round| &round.floors.blocking)),
        rounds,
    }
}

fn polls(description: &Description) -> bool {
    [description.leader_wait, description.acceptor_wait].contains(&Waiting::Polling)
}

fn unsupported(description: &Description, options: &Options) -> Option<String> {
    let cpus = crate::site::allowed_cpus().len();
    let client_polls = options.client_wait == Wait::Polling;
    if let Some(reason) = &description.unsupported {
        Some(reason.clone())
    } else if polls(description) && !client_polls {
        Some("a polling cluster is measured by a polling client: `--wait polling`".into())
    } else if (polls(description) || client_polls) && cpus < MIN_POLLING_CPUS {
        Some(format!(
            "polling needs {MIN_POLLING_CPUS} CPUs, here are {cpus}"
        ))
    } else {
        None
    }
}

fn setting(description: &Description, options: &Options) -> Setting {
    let (load, offered_per_s) = match options.load {
        Load::Closed { .. } => ("closed", None),
        Load::Open { per_s } => ("open", Some(per_s)),
    };
    Setting {
        client_wait: options.client_wait.into(),
        leader_wait: description.leader_wait,
        acceptor_wait: description.acceptor_wait,
        floor_wait: Waiting::Blocking,
        linger_us: u64::try_from(description.linger.as_micros()).unwrap_or(u64::MAX),
        cpus: crate::site::allowed_cpus().len(),
        auth: description.auth,
        engine: description.engine.clone(),
        mode: description.mode.clone(),
        durability: description.durability.clone(),
        site: options.site.name().into(),
        replicas: description.replicas,
        value_bytes: options.value_bytes,
        outstanding: options.window(),
        load,
        offered_per_s,
        rounds: options.rounds,
        warmup_s: options.warmup.as_secs_f64(),
        measure_s: options.measure.as_secs_f64(),
    }
}

struct Run<'a> {
    target: &'a mut dyn Target,
    options: &'a Options,
    site: Site,
    cluster: Option<Cluster>,
    /// Whether the replicas spin. They are then stopped while the floor is measured, which has its
    /// CPU from the leader.
    polls: bool,
    linger: Duration,
    progress: &'a mut (dyn FnMut(Progress) + Send),
}

impl Run<'_> {
    fn rounds(&mut self) -> Result<Vec<Round>, Error> {
        let rounds = 1..=self.options.rounds;
        rounds.map(|number| self.round(number)).collect()
    }

    fn round(&mut self, number: usize) -> Result<Round, Error> {
        let cluster = self.started()?;
        // Whoever comes first meets colder caches, so they swap.
        if number.is_multiple_of(2) {
            let system = self.system(number, &cluster)?;
            let floors = self.floors(number, &cluster)?;
            return Ok(Round { floors, system });
        }
        let floors = self.floors(number, &cluster)?;
        let cluster = self.started()?;
        let system = self.system(number, &cluster)?;
        Ok(Round { floors, system })
    }

    fn started(&mut self) -> Result<Cluster, Error> {
        if let Some(cluster) = &self.cluster {
            return Ok(cluster.clone());
        }
        let started = self.target.start(&self.site);
        let cluster = started.map_err(|source| Error::Target {
            doing: "start",
            source,
        })?;
        Ok(self.cluster.insert(cluster).clone())
    }

    fn stop(&mut self) -> Result<(), Error> {
        match self.cluster.take() {
            Some(_) => self.target.stop().map_err(|source| Error::Target {
                doing: "stop",
                source,
            }),
            None => Ok(()),
        }
    }

    fn system(&mut self, number: usize, cluster: &Cluster) -> Result<Turn, Error> {
        let mut commands = self.target.commands(self.options.value_bytes);
        let body_bytes = command_bytes(&mut commands);
        if Entry::encoded_bytes(body_bytes) > cluster.max_value {
            let (value_bytes, max_value) = (self.options.value_bytes, cluster.max_value);
            return Err(Error::TooLarge {
                value_bytes,
                max_value,
            });
        }
        let caller = cluster.caller(commands, self.options.window())?;
        let wait = self.options.client_wait;
        let (turn, caller) = self.turn("system", number, wait, caller, &cluster.processes)?;
        let target = caller.client().target();
        if let Some(leader) = cluster.members.iter().position(|&(_, at)| at == target)
            && let Some(cluster) = &mut self.cluster
        {
            cluster.leader = leader;
        }
        Ok(turn)
    }

    fn floors(&mut self, number: usize, cluster: &Cluster) -> Result<Floors, Error> {
        if self.polls {
            self.stop()?;
        }
        let blocking = self.floor(number, cluster, Wait::Blocking, Duration::ZERO)?;
        let (wait, linger) = (self.options.client_wait, self.linger);
        let differs = wait == Wait::Polling || !linger.is_zero();
        let alike = differs
            .then(|| self.floor(number, cluster, wait, linger))
            .transpose()?;
        let xdp = cluster
            .xdp_echo
            .map(|at| self.echo("XDP echo", number, wait, at, &[]))
            .transpose()?;
        Ok(Floors {
            blocking,
            alike,
            xdp,
        })
    }

    /// The echo stands where the leader stands and gets packets as long as the cluster's.
    fn floor(
        &mut self,
        number: usize,
        cluster: &Cluster,
        wait: Wait,
        linger: Duration,
    ) -> Result<Turn, Error> {
        let place = self.site.replicas()[cluster.leader].clone();
        let (listen, placement) = (SocketAddr::new(place.ip, 0), place.placement);
        let server = EchoServer::start(listen, wait, linger, placement, move || place.enter())?;
        self.echo(
            "UDP echo",
            number,
            wait,
            server.address(),
            &[server.thread()],
        )
    }

    fn echo(
        &mut self,
        what: &'static str,
        number: usize,
        wait: Wait,
        at: SocketAddr,
        servers: &[Subject],
    ) -> Result<Turn, Error> {
        let body_bytes = command_bytes(&mut self.target.commands(self.options.value_bytes));
        let bytes = HEADER_BYTES + Entry::encoded_bytes(body_bytes);
        let caller = EchoCaller::new(at, bytes);
        let (turn, _) = self.turn(what, number, wait, caller, servers)?;
        Ok(turn)
    }

    fn turn<C: Caller + Send>(
        &mut self,
        what: &'static str,
        round: usize,
        wait: Wait,
        caller: C,
        servers: &[Subject],
    ) -> Result<(Turn, C), Error> {
        let plan = Plan {
            load: self.options.load,
            warmup: self.options.warmup,
            measure: self.options.measure,
            patience: PATIENCE,
        };
        let place = self.site.client();
        let (progress, rounds) = (&mut *self.progress, self.options.rounds);
        let mut spent = Spent::default();
        let observe = |moment| match moment {
            Moment::Begins => spent.begins(servers),
            Moment::Ends => spent.ends(servers),
            Moment::Progress { part, done } => {
                progress(Progress {
                    what,
                    round,
                    rounds,
                    part,
                    done,
                });
            }
        };
        let interrupt = self.options.interrupt;
        let generator = Generator::new(caller, plan, observe).until(interrupt);
        let (sample, caller) = drive(place, wait, generator)?;
        if is_set(interrupt) {
            return Err(Error::Interrupted);
        }
        Ok((spent.turn(sample), caller))
    }
}

/// CPU time of a measurement, first as it was at its begin, then what was spent until its end;
/// `None` where it cannot be read.
#[derive(Default)]
pub(crate) struct Spent {
    servers: Option<Duration>,
    machine: Option<Duration>,
}

impl Spent {
    pub(crate) fn begins(&mut self, servers: &[Subject]) {
        self.servers = total_cpu_time(servers).ok();
        self.machine = machine_cpu_time().ok();
    }

    pub(crate) fn ends(&mut self, servers: &[Subject]) {
        let since = |from: Option<Duration>, to: Option<Duration>| {
            from.zip(to).map(|(from, to)| to.saturating_sub(from))
        };
        self.servers = since(self.servers, total_cpu_time(servers).ok());
        self.machine = since(self.machine, machine_cpu_time().ok());
    }

    /// What was measured meanwhile, with what a request cost.
    pub(crate) fn turn(&self, sample: Sample) -> Turn {
        let per_op = |spent: Option<Duration>| {
            spent
                .filter(|_| sample.completed > 0)
                .map(|spent| spent.as_secs_f64() * 1e6 / sample.completed as f64)
        };
        Turn {
            cpu_us_per_op: per_op(self.servers),
            machine_cpu_us_per_op: per_op(self.machine),
            sample,
        }
    }
}

fn drive<C: Caller + Send, F: FnMut(Moment) + Send>(
    place: &Place,
    wait: Wait,
    generator: Generator<C, F>,
) -> Result<(Sample, C), Error> {
    load_from(place, move || {
        let mut worker = Worker::new(place.bind(wait)?, generator);
        worker.run()?;
        Ok(worker.into_parts().1.finish())
    })
}

/// Makes load on a thread of its own in the client's place.
pub(crate) fn load_from<T: Send>(
    place: &Place,
    load: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    let work = || {
        place.enter()?;
        load()
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("load".into())
            .spawn_scoped(scope, work);
        let thread = thread.map_err(|source| Error::Thread {
            name: "load",
            source,
        })?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn command_bytes(commands: &mut Command) -> usize {
    let mut body = Vec::new();
    commands(0, &mut body);
    body.len()
}
