//! The demonstration: three replicas under load lose their leader, and nothing that was
//! acknowledged.
//!
//! One client writes without a pause through all of it. Afterwards every write is read back, so
//! that the number of lost ones is counted and not argued.

mod audit;
mod ground;
mod load;
mod values;

use crate::client::{self, ClientError};
use crate::config::Durability;
use crate::local_cluster::{self, LocalCluster};
use crate::run_directory::RunDirectory;
use audit::Audit;
use bench::machine::Machine;
use consensus::client::{Client, Config};
use consensus::{Epoch, GroupId};
use datapath::{Udp, Wait, Worker};
pub use ground::Engine;
use ground::Ground;
use load::{Control, Load, Outcome, Phase, Window};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use values::{VALUE_BYTES, Values};

/// The layout of a report. It changes when a key changes its meaning or goes.
pub const SCHEMA: &str = "nearwire.demo/1";
/// How the names of runs' directories begin.
const PREFIX: &str = "nearwire-demo-";
/// Between two looks at signals, replicas and the client.
const TICK: Duration = Duration::from_millis(50);
/// How long a cluster may take to form, or to find a new leader and go on.
const LEADER_LIMIT: Duration = Duration::from_secs(15);
/// Load before anything is recorded.
const WARM_UP: Duration = Duration::from_secs(1);
/// How long a restarted replica may take to catch up while the load goes on.
const REJOIN_UNDER_LOAD: Duration = Duration::from_secs(5);
/// How long all replicas may take to be level once the load is over.
const LEVEL_LIMIT: Duration = Duration::from_secs(20);
/// How long one of many looks at a replica may take.
const LOOK_LIMIT: Duration = Duration::from_millis(50);
/// How long a replica may take to answer a question.
const ANSWER_LIMIT: Duration = Duration::from_millis(250);

/// What a run is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program that runs the replicas: `nearwire` itself.
    pub program: PathBuf,
    /// In which directory the run's own one is made.
    pub parent: PathBuf,
    /// What votes.
    pub engine: Engine,
    /// What a vote outlives.
    pub durability: Durability,
    /// How long the load goes on before the leader is killed, and how long after.
    pub period: Duration,
    /// Writes under way.
    pub outstanding: usize,
    /// Whether the directory stays.
    pub keep: bool,
}

/// What happens, for those who watch.
#[derive(Clone, PartialEq, Debug)]
pub enum Progress {
    /// Something began or was found out.
    Said(String),
    /// What is going on now, which part of it is over if that is known, and what came of it so far.
    Going {
        /// What.
        doing: &'static str,
        /// 0 to 1.
        part: Option<f64>,
        /// Writes acknowledged, or read back.
        writes: u64,
    },
}

/// A run could not be carried out. Lost writes are no error here: see [`Report`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It was told to stop.
    #[error("interrupted")]
    Interrupted,
    /// The directory of the run.
    #[error("make a directory in {}: {source}", parent.display())]
    Directory {
        /// Where.
        parent: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The replicas.
    #[error(transparent)]
    Cluster(#[from] local_cluster::Error),
    /// The acceptors cannot be in the kernel, which was asked for.
    #[error("put the acceptors into the kernel: {0}")]
    NoXdp(String),
    /// Nobody leads.
    #[error(
        "no leader within {} s {since}; the end of the replicas' logs:\n{logs}",
        LEADER_LIMIT.as_secs()
    )]
    NoLeader {
        /// Since when.
        since: String,
        /// What the replicas say.
        logs: String,
    },
    /// There is a leader, but nothing is acknowledged.
    #[error(
        "no write was acknowledged within {} s {since}; the end of the replicas' logs:\n{logs}",
        LEADER_LIMIT.as_secs()
    )]
    Stalled {
        /// Since when.
        since: String,
        /// What the replicas say.
        logs: String,
    },
    /// A write got a reply that none should get.
    #[error("a write was refused: {0}")]
    Refused(String),
    /// A replica does not catch up.
    #[error(
        "replica {node} is still behind {} s after the load: {applied} of {wanted}; the end of its \
         log:\n{log}",
        LEVEL_LIMIT.as_secs()
    )]
    Behind {
        /// Which.
        node: u16,
        /// Slots that it applied.
        applied: u64,
        /// Slots that the leader applied.
        wanted: u64,
        /// What it says.
        log: String,
    },
    /// The client's socket.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
    /// The client.
    #[error(transparent)]
    Config(#[from] consensus::client::ConfigError),
    /// Reading back.
    #[error("read back what was written: {0}")]
    Client(#[from] ClientError),
    /// Reading back, with an answer that makes no sense.
    #[error("{0}")]
    Answer(String),
    /// There is no randomness.
    #[error("seed the client: {0}")]
    Seed(getrandom::Error),
    /// The client's thread is gone.
    #[error("the client's thread ended early")]
    ClientEnded,
}

impl From<String> for Error {
    fn from(text: String) -> Self {
        Self::Answer(text)
    }
}

/// Latencies and rate of a part of the run, as the client saw them.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Figures {
    /// Length of the part.
    pub seconds: f64,
    /// Writes acknowledged in it.
    pub acknowledged: u64,
    /// Of these per second.
    pub ops_per_s: f64,
    /// Median from submission to acknowledgement.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
    /// Longest time without an acknowledgement.
    pub longest_gap_us: f64,
}

impl Figures {
    fn of(windows: &[&Window]) -> Self {
        let mut latencies = bench::load::latencies();
        let (mut acknowledged, mut duration_ns, mut gap_ns) = (0, 0, 0);
        for window in windows {
            latencies
                .add(&window.latencies)
                .expect("all histograms have the same bounds");
            acknowledged += window.acknowledged;
            duration_ns += window.duration_ns;
            gap_ns = gap_ns.max(window.longest_gap_ns);
        }
        let seconds = duration_ns as f64 / 1e9;
        let quantile_us = |quantile| microseconds(latencies.value_at_quantile(quantile));
        Self {
            seconds: (seconds * 1000.0).round() / 1000.0,
            acknowledged,
            ops_per_s: if seconds > 0.0 {
                (acknowledged as f64 / seconds).round()
            } else {
                0.0
            },
            p50_us: quantile_us(0.5),
            p99_us: quantile_us(0.99),
            p999_us: quantile_us(0.999),
            longest_gap_us: microseconds(gap_ns),
        }
    }
}

fn microseconds(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

/// A replica at the end, as it describes itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ReplicaState {
    /// Its number.
    pub node: u16,
    /// What steps its region.
    pub engine: String,
    /// How packets reach it: the program's mode, or the process's datapath.
    pub mode: String,
    /// How its worker waits.
    pub wait: String,
    /// What its votes outlive.
    pub durability: String,
    /// Its role.
    pub role: String,
    /// The last slot that it applied.
    pub applied: u64,
    /// Whether it was killed and started again.
    pub restarted: bool,
}

/// What came of a run.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Writes that the cluster holds at the end: those acknowledged, and those of unknown outcome
    /// that were carried out.
    pub commits: u64,
    /// Median latency of the steady part, before the kill.
    pub p50_us: f64,
    /// 99th percentile of the steady part.
    pub p99_us: f64,
    /// 99.9th percentile of the steady part.
    pub p999_us: f64,
    /// Rate of the steady part.
    pub ops_per_s: f64,
    /// Longest time between two acknowledgements from the kill to the restart of the killed
    /// replica.
    pub failover_gap_us: f64,
    /// From the restart of the killed replica until it had applied all that the leader had.
    pub rejoin_us: f64,
    /// Whether that was so while the load still went on.
    pub rejoined_under_load: bool,
    /// Writes acknowledged in the whole run, warm-up included.
    pub acknowledged: u64,
    /// Of these, how many the cluster does not hold as they were written.
    pub acknowledged_lost: u64,
    /// Writes of which the client does not know whether they were carried out.
    pub outcome_unknown: u64,
    /// Who led before the kill.
    pub leader_before: u16,
    /// Who led after it.
    pub leader_after: u16,
    /// The replica that got a SIGKILL.
    pub killed: u16,
    /// Length of every value.
    pub value_bytes: usize,
    /// Writes under way.
    pub outstanding: usize,
    /// How the client's thread waits.
    pub client_wait: &'static str,
    /// What the figures at the top are of.
    pub steady: Figures,
    /// From the end of the warm-up to the end of the load, failover and rejoining included.
    pub overall: Figures,
    /// The replicas at the end.
    pub replicas: Vec<ReplicaState>,
    /// The whole run, from the first process to the last answer.
    pub elapsed_s: f64,
    /// What it ran on.
    pub machine: Machine,
    /// The directory with logs and data, if it was to be kept.
    pub kept: Option<PathBuf>,
}

/// Runs the demonstration on the calling thread, which the replicas do not outlive. It ends early
/// soon after `stop` is set. Nothing of it is left in any case, except the directory if that is to
/// be kept.
///
/// # Errors
/// The cluster did not get so far that its losses could be counted.
pub fn run(
    options: &Options,
    stop: &AtomicBool,
    watch: &mut (dyn FnMut(Progress) + Send),
) -> Result<Report, Error> {
    let ground = ground(options, watch)?;
    ground.stand(|| run_on(&ground, options, stop, watch))?
}

/// The best ground that the options allow. What is fallen back from is said.
fn ground(options: &Options, watch: &mut dyn FnMut(Progress)) -> Result<Ground, Error> {
    let opened = match options.engine {
        Engine::Software => return Ok(Ground::loopback()),
        Engine::Auto | Engine::Xdp if options.durability == Durability::Sync => {
            Err("durability \"sync\" waits for a disk, which the kernel's acceptors do not".into())
        }
        Engine::Auto | Engine::Xdp => Ground::namespaces(),
    };
    opened.or_else(|why| match options.engine {
        Engine::Xdp => Err(Error::NoXdp(why)),
        Engine::Auto | Engine::Software => {
            watch(Progress::Said(format!(
                "software acceptors on loopback: {why}; for acceptors in the kernel, as root: \
                 nearwire demo --engine xdp --durability volatile"
            )));
            Ok(Ground::loopback())
        }
    })
}

fn run_on(
    ground: &Ground,
    options: &Options,
    stop: &AtomicBool,
    watch: &mut dyn FnMut(Progress),
) -> Result<Report, Error> {
    let started = Instant::now();
    let mut run = Run::start(ground, options, stop, watch)?;
    let leader_before = run.first_leader()?;
    run.await_engines()?;
    run.warm_up()?;
    run.control.enter(Phase::Steady);
    run.dwell("steady load", options.period)?;
    let leader_after = run.replace_leader(leader_before)?;
    let rejoined = run.restart(leader_before)?;
    let outcome = run.end_load()?;
    let rejoin = run.level(leader_before, rejoined)?;
    let audit = run.read_back(&outcome)?;

    let steady = Figures::of(&[outcome.window(Phase::Steady)]);
    let unknown = outcome.unknown.len() as u64;
    Ok(Report {
        schema: SCHEMA,
        commits: audit.held,
        p50_us: steady.p50_us,
        p99_us: steady.p99_us,
        p999_us: steady.p999_us,
        ops_per_s: steady.ops_per_s,
        failover_gap_us: microseconds(outcome.window(Phase::Failover).longest_gap_ns),
        rejoin_us: rejoin.as_micros() as f64,
        rejoined_under_load: rejoined.is_ok(),
        acknowledged: outcome.submitted - unknown,
        acknowledged_lost: audit.lost,
        outcome_unknown: unknown,
        leader_before,
        leader_after,
        killed: leader_before,
        value_bytes: VALUE_BYTES,
        outstanding: options.outstanding,
        client_wait: "blocking",
        steady,
        overall: Figures::of(
            &[Phase::Steady, Phase::Failover, Phase::Rejoin].map(|phase| outcome.window(phase)),
        ),
        replicas: run.replicas(leader_before)?,
        elapsed_s: (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
        machine: Machine::read(),
        kept: options.keep.then(|| run.directory.path().to_owned()),
    })
}

type ClientThread = JoinHandle<Result<Worker<Udp, Load>, datapath::Error>>;

/// A run under way. The cluster ends before its directory goes.
struct Run<'a> {
    ground: &'a Ground,
    options: &'a Options,
    stop: &'a AtomicBool,
    watch: &'a mut dyn FnMut(Progress),
    control: Arc<Control>,
    client: Option<ClientThread>,
    values: Values,
    cluster: LocalCluster,
    directory: RunDirectory,
}

impl<'a> Run<'a> {
    fn start(
        ground: &'a Ground,
        options: &'a Options,
        stop: &'a AtomicBool,
        watch: &'a mut dyn FnMut(Progress),
    ) -> Result<Self, Error> {
        let directory =
            RunDirectory::create(&options.parent, PREFIX, options.keep).map_err(|source| {
                Error::Directory {
                    parent: options.parent.clone(),
                    source,
                }
            })?;
        directory.remove_on_panic();
        let cluster = LocalCluster::prepare(local_cluster::Options {
            durability: options.durability,
            addresses: ground.addresses(),
            xdp: ground.on_host_death(),
            ..local_cluster::Options::new(&options.program, directory.path())
        })?;
        let values = Values {
            seed: getrandom::u64().map_err(Error::Seed)?,
        };
        let control = Arc::new(Control::default());
        let mut run = Self {
            ground,
            options,
            stop,
            watch,
            control,
            client: None,
            values,
            cluster,
            directory,
        };
        run.say(format!(
            "three replicas start in {}",
            run.directory.path().display()
        ));
        for node in run.nodes() {
            ground.start(&mut run.cluster, node)?;
        }
        Ok(run)
    }

    fn say(&mut self, text: String) {
        (self.watch)(Progress::Said(text));
    }

    /// Looks at all that may end the run early.
    fn look(&mut self, doing: &'static str, part: Option<f64>) -> Result<(), Error> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        self.cluster.check()?;
        if self.client.as_ref().is_some_and(JoinHandle::is_finished) {
            return Err(self.join().err().unwrap_or(Error::ClientEnded));
        }
        let writes = self.control.acknowledged();
        (self.watch)(Progress::Going {
            doing,
            part,
            writes,
        });
        Ok(())
    }

    fn dwell(&mut self, doing: &'static str, time: Duration) -> Result<(), Error> {
        let began = Instant::now();
        while began.elapsed() < time {
            self.look(
                doing,
                Some(began.elapsed().as_secs_f64() / time.as_secs_f64()),
            )?;
            std::thread::sleep(TICK.min(time.saturating_sub(began.elapsed())));
        }
        Ok(())
    }

    fn leader(&mut self, doing: &'static str, since: &str) -> Result<u16, Error> {
        let deadline = Instant::now() + LEADER_LIMIT;
        loop {
            self.look(doing, None)?;
            match self.cluster.leader(ANSWER_LIMIT) {
                Ok(node) => return Ok(node),
                Err(local_cluster::Error::NoLeader(_)) if Instant::now() < deadline => {}
                Err(local_cluster::Error::NoLeader(_)) => {
                    return Err(Error::NoLeader {
                        since: since.into(),
                        logs: self.logs(),
                    });
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn logs(&self) -> String {
        let nodes = self.cluster.replicas().iter().map(|replica| replica.node);
        nodes
            .map(|node| format!("{node}: {}\n", self.cluster.log(node)))
            .collect()
    }

    /// Waits until writes are acknowledged that were not before.
    fn acknowledgements(&mut self, doing: &'static str, since: &str) -> Result<(), Error> {
        let before = self.control.acknowledged();
        let deadline = Instant::now() + LEADER_LIMIT;
        while self.control.acknowledged() == before {
            if Instant::now() >= deadline {
                return Err(Error::Stalled {
                    since: since.into(),
                    logs: self.logs(),
                });
            }
            self.look(doing, None)?;
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn first_leader(&mut self) -> Result<u16, Error> {
        let began = Instant::now();
        let leader = self.leader("forming", "of the start")?;
        let ms = began.elapsed().as_millis();
        self.say(format!("replica {leader} leads after {ms} ms"));
        Ok(leader)
    }

    /// Waits until every acceptor votes in the kernel, if it is to.
    fn await_engines(&mut self) -> Result<(), Error> {
        if !self.ground.has_xdp() {
            return Ok(());
        }
        let deadline = Instant::now() + LEADER_LIMIT;
        loop {
            self.look("attaching", None)?;
            match self.cluster.await_engine("xdp", ANSWER_LIMIT) {
                Ok(()) => break,
                Err(local_cluster::Error::Engine { .. }) if Instant::now() < deadline => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.say("three acceptors vote in the kernel, in native mode (XDP)".into());
        Ok(())
    }

    fn warm_up(&mut self) -> Result<(), Error> {
        let client = Client::new(Config {
            members: self.cluster.members(),
            group: GroupId(0),
            epoch: Epoch(0),
            max_value: client::Options::default().max_value,
            max_in_flight: self.options.outstanding,
            seed: getrandom::u64().map_err(Error::Seed)?,
        })?;
        let load = Load::new(
            client,
            self.options.outstanding,
            self.values,
            Arc::clone(&self.control),
        );
        let datapath = Udp::bind((self.ground.client(), 0).into(), Wait::Blocking)?;
        self.client = Some(Worker::new(datapath, load).spawn("client")?);
        let (outstanding, bytes) = (self.options.outstanding, VALUE_BYTES);
        self.say(format!(
            "one client keeps {outstanding} writes of {bytes} bytes under way"
        ));
        self.acknowledgements("warming up", "of the first one")?;
        self.dwell("warming up", WARM_UP)
    }

    /// Kills the leader under load and returns the one that follows it, once it serves the client.
    fn replace_leader(&mut self, leader: u16) -> Result<u16, Error> {
        let killed = Instant::now();
        self.control.enter(Phase::Failover);
        self.cluster.kill(leader);
        let next = self.leader("failing over", "of the leader's end")?;
        self.acknowledgements("failing over", "of the leader's end")?;
        self.say(format!(
            "replica {leader}, the leader, got a SIGKILL; replica {next} leads"
        ));
        self.dwell(
            "load on two replicas",
            self.options.period.saturating_sub(killed.elapsed()),
        )?;
        Ok(next)
    }

    /// Starts a replica again and waits for it while the load goes on: how long it took to catch
    /// up, or since when it has been trying.
    fn restart(&mut self, node: u16) -> Result<Result<Duration, Instant>, Error> {
        let restarted = Instant::now();
        self.control.enter(Phase::Rejoin);
        self.ground.start(&mut self.cluster, node)?;
        while restarted.elapsed() < REJOIN_UNDER_LOAD {
            self.look("rejoining", None)?;
            if self.behind_leader(&[node]).is_none() {
                let took = restarted.elapsed();
                let ms = took.as_millis();
                self.say(format!(
                    "replica {node} started again and caught up in {ms} ms"
                ));
                return Ok(Ok(took));
            }
            std::thread::sleep(TICK / 5);
        }
        Ok(Err(restarted))
    }

    /// The first of `nodes` that has not applied what the leader had applied a moment before: its
    /// number, its last slot and the leader's. Unknown counts as behind.
    fn behind_leader(&self, nodes: &[u16]) -> Option<(u16, u64, u64)> {
        let report = |node| self.cluster.inspect(node, LOOK_LIMIT);
        let applied = |report: serde_json::Value| report["applied"].as_u64();
        // The killed one leads again at the earliest when it has caught up: it is asked last.
        let mut all: Vec<u16> = self.nodes();
        all.sort_by_key(|node| nodes.contains(node));
        let wanted = all.into_iter().find_map(|node| {
            let report = report(node).filter(|report| report["role"] == "leader")?;
            applied(report)
        });
        let wanted = wanted.unwrap_or(u64::MAX);
        nodes.iter().find_map(|&node| {
            let applied = report(node).and_then(applied).unwrap_or(0);
            (applied < wanted).then_some((node, applied, wanted))
        })
    }

    fn nodes(&self) -> Vec<u16> {
        let replicas = self.cluster.replicas().iter();
        replicas.map(|replica| replica.node).collect()
    }

    fn end_load(&mut self) -> Result<Outcome, Error> {
        self.control.enter(Phase::Drain);
        self.join()
    }

    fn join(&mut self) -> Result<Outcome, Error> {
        let thread = self.client.take().ok_or(Error::ClientEnded)?;
        let worker = thread.join().map_err(|_| Error::ClientEnded)??;
        let outcome = worker.into_parts().1.finish();
        match outcome.refused {
            Some(reply) => Err(Error::Refused(reply)),
            None => Ok(outcome),
        }
    }

    /// Waits until all replicas have applied the same.
    fn level(
        &mut self,
        restarted: u16,
        rejoined: Result<Duration, Instant>,
    ) -> Result<Duration, Error> {
        let deadline = Instant::now() + LEVEL_LIMIT;
        let nodes = self.nodes();
        while let Some((node, applied, wanted)) = self.behind_leader(&nodes) {
            if Instant::now() >= deadline {
                let log = self.cluster.log(node);
                return Err(Error::Behind {
                    node,
                    applied,
                    wanted,
                    log,
                });
            }
            self.look("catching up", None)?;
            std::thread::sleep(TICK / 5);
        }
        Ok(rejoined.unwrap_or_else(|since| {
            let took = since.elapsed();
            let ms = took.as_millis();
            self.say(format!(
                "replica {restarted} caught up in {ms} ms, after the load"
            ));
            took
        }))
    }

    fn read_back(&mut self, outcome: &Outcome) -> Result<Audit, Error> {
        let submitted = outcome.submitted;
        self.say(format!(
            "{submitted} writes are read back, each by a linearizable query"
        ));
        let members = self.cluster.members();
        audit::audit(
            &members,
            self.values,
            submitted,
            &outcome.unknown,
            |writes| {
                if self.stop.load(Ordering::Relaxed) {
                    return Err(Error::Interrupted);
                }
                self.cluster.check()?;
                let part = Some(writes as f64 / submitted as f64);
                (self.watch)(Progress::Going {
                    doing: "reading back",
                    part,
                    writes,
                });
                Ok(())
            },
        )
    }

    fn inspect(&self, node: u16) -> Result<serde_json::Value, Error> {
        let report = self.cluster.inspect(node, ANSWER_LIMIT);
        report.ok_or_else(|| Error::Answer(format!("replica {node} does not answer")))
    }

    fn replicas(&self, restarted: u16) -> Result<Vec<ReplicaState>, Error> {
        let replicas = self.cluster.replicas().iter();
        replicas
            .map(|replica| {
                let report = self.inspect(replica.node)?;
                let said = |told: &serde_json::Value| told.as_str().unwrap_or("unknown").to_owned();
                let text = |field: &str| said(&report[field]);
                let mode = match report["engine"].as_str() {
                    Some("software") | None => text("mode"),
                    Some(_) => said(&report["offload"]["mode"]),
                };
                Ok(ReplicaState {
                    node: replica.node,
                    engine: text("engine"),
                    mode,
                    wait: text("wait"),
                    durability: text("durability"),
                    role: text("role"),
                    applied: report["applied"].as_u64().unwrap_or(0),
                    restarted: replica.node == restarted,
                })
            })
            .collect()
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if let Some(thread) = self.client.take() {
            self.control.enter(Phase::Over);
            let _ = thread.join();
        }
    }
}
