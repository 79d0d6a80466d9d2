//! What `nearwire bench failover` measures: how long clients wait when another node comes to lead.
//!
//! One client writes without a pause. In each trial the leader is killed with SIGKILL, or asked to
//! hand over, or all members are replaced by others, and the longest time between two acknowledged
//! writes is noted; a killed replica is started again. Between two trials nobody is disturbed, so
//! that a change of the leader's ballot there is an election that nobody asked for: a false one.

use crate::bench_target::LocalTarget;
use crate::inspect::{HandOver, Inspector};
use crate::local_cluster::LocalCluster;
use crate::members::{Fate, Operator, Wish};
use bench::cluster::{ClusterCaller, Command};
use bench::load::Caller;
use bench::run::{Cluster, Target, TargetError};
use bench::site::Site;
use consensus::quorum::{Member, MemberRole};
use consensus::{Incarnation, NodeId};
use datapath::{Placement, Service, Transmit, Wait, Worker};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a replica may take to answer a question.
const ANSWER: Duration = Duration::from_secs(1);
/// Between two looks at the cluster.
const LOOK: Duration = Duration::from_millis(5);
/// The same while nothing is waited for.
const DWELL: Duration = Duration::from_millis(50);
/// After the first write that a successor acknowledges: what the change stirs up belongs to it.
const AFTERMATH: Duration = Duration::from_millis(200);
/// A restarted replica is level when it lacks no more slots than are decided meanwhile.
const LEVEL_SLOTS: u64 = 2_000;
/// There is no cluster.
const STOPPED: &str = "the cluster has been stopped";
/// Longest sleep of the client, so that its end is noticed soon.
const MAX_SLEEP: Duration = Duration::from_millis(20);

/// Why another node comes to lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The leader is killed with SIGKILL.
    Kill,
    /// The leader is asked to hand over to another member.
    Move,
    /// All members are replaced by as many others, the leader among them.
    Replace,
}

impl Cause {
    /// How many nodes run that are no members.
    pub const fn strangers(self, members: usize) -> usize {
        match self {
            Self::Kill | Self::Move => 0,
            Self::Replace => members,
        }
    }
}

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Why another node comes to lead.
    pub cause: Cause,
    /// How often one does.
    pub trials: usize,
    /// Undisturbed writing before each trial.
    pub settle: Duration,
    /// Undisturbed writing after the last trial, in which nobody may be elected.
    pub calm: Duration,
    /// Threads beside the calm that do nothing but spin.
    pub burners: usize,
    /// Writes under way.
    pub outstanding: usize,
    /// Length of a written value in bytes.
    pub value_bytes: usize,
    /// How the client waits.
    pub client_wait: Wait,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Longest time between two acknowledged writes of each trial.
    pub gaps: Vec<Duration>,
    /// Elections between the trials.
    pub false_elections: u64,
    /// Elections in the calm.
    pub calm_elections: u64,
    /// Writes acknowledged in all.
    pub acknowledged: u64,
    /// Writes that ended with an error: their outcome is unknown.
    pub failed: u64,
}

/// What is being done.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Progress {
    /// This trial, from 1.
    Trial(usize),
    /// The calm, of which this part is over.
    Calm(f64),
}

/// What the client and the thread of the run share.
#[derive(Debug, Default)]
struct Shared {
    acknowledged: AtomicU64,
    failed: AtomicU64,
    longest_gap_ns: AtomicU64,
    over: AtomicBool,
}

/// The client as a worker's service.
struct Writer {
    caller: ClusterCaller,
    outstanding: usize,
    under_way: usize,
    submitted: u64,
    last_ns: Option<u64>,
    shared: Arc<Shared>,
}

impl Service for Writer {
    fn packet<T: Transmit>(&mut self, now_ns: u64, from: SocketAddr, datagram: &[u8], _: &mut T) {
        self.caller.take(now_ns, from, datagram);
    }

    fn turn<T: Transmit>(&mut self, now_ns: u64, tx: &mut T) -> Duration {
        while let Some((_, is_acknowledged)) = self.caller.ended() {
            self.under_way -= 1;
            if !is_acknowledged {
                self.shared.failed.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            if let Some(last_ns) = self.last_ns.replace(now_ns) {
                let gap_ns = now_ns - last_ns;
                self.shared
                    .longest_gap_ns
                    .fetch_max(gap_ns, Ordering::Relaxed);
            }
            self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        while self.under_way < self.outstanding && self.caller.submit(self.submitted) {
            self.under_way += 1;
            self.submitted += 1;
        }
        self.caller.give(now_ns, tx);
        let due_ns = self.caller.due_ns().unwrap_or(u64::MAX);
        Duration::from_nanos(due_ns.saturating_sub(now_ns)).min(MAX_SLEEP)
    }

    fn stopping(&self) -> bool {
        self.shared.over.load(Ordering::Relaxed)
    }
}

/// Who leads, in which ballot, and how far it has decided.
#[derive(Clone, Debug)]
struct Lead {
    node: u16,
    /// Round and node.
    ballot: (u64, u64),
    decided: u64,
}

/// Has other nodes of `target`'s cluster on `site` lead, again and again.
///
/// # Errors
/// The cluster does not start, or does not recover.
pub fn run(
    target: &mut LocalTarget,
    site: &Site,
    options: &Options,
    interrupt: &AtomicBool,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Outcome, TargetError> {
    let cluster = target.start(site)?;
    let shared = Arc::new(Shared::default());
    let commands = target.commands(options.value_bytes);
    let measured = thread::scope(|scope| {
        let load = || write(site, &cluster, options, commands, Arc::clone(&shared));
        let load = scope.spawn(load);
        let mut run = Run {
            target,
            site,
            options,
            shared: &shared,
            interrupt,
        };
        let measured = run.measure(progress);
        shared.over.store(true, Ordering::Relaxed);
        let ended = load
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        ended.and(measured)
    });
    let stopped = target.stop();
    let mut outcome = measured?;
    stopped?;
    outcome.failed = shared.failed.load(Ordering::Relaxed);
    outcome.acknowledged = shared.acknowledged.load(Ordering::Relaxed);
    Ok(outcome)
}

fn write(
    site: &Site,
    cluster: &Cluster,
    options: &Options,
    command: Command,
    shared: Arc<Shared>,
) -> Result<(), TargetError> {
    let caller = cluster.caller(command, options.outstanding)?;
    let place = site.client();
    place.enter()?;
    let writer = Writer {
        caller,
        outstanding: options.outstanding,
        under_way: 0,
        submitted: 0,
        last_ns: None,
        shared,
    };
    Worker::new(place.bind(options.client_wait)?, writer).run()?;
    Ok(())
}

struct Run<'a> {
    target: &'a mut LocalTarget,
    site: &'a Site,
    options: &'a Options,
    shared: &'a Shared,
    interrupt: &'a AtomicBool,
}

impl Run<'_> {
    fn measure(
        &mut self,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Outcome, TargetError> {
        let mut outcome = Outcome::default();
        let priority = self.site.client().placement.fifo_priority;
        let lead = urgently(priority, || self.trials(&mut outcome, progress))?;
        if !self.options.calm.is_zero() {
            outcome.calm_elections = self.calm(&lead, progress)?;
        }
        Ok(outcome)
    }

    /// Returns who leads afterwards.
    fn trials(
        &mut self,
        outcome: &mut Outcome,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Lead, TargetError> {
        let mut lead = self.await_lead()?;
        for trial in 1..=self.options.trials {
            progress(Progress::Trial(trial));
            self.dwell(self.options.settle, |_, _| Ok(()))?;
            let now = self.await_lead()?;
            outcome.false_elections += u64::from(now.ballot != lead.ballot);
            let (gap, successor) = self.succeed(&now)?;
            outcome.gaps.push(gap);
            lead = successor;
            if self.options.cause == Cause::Kill {
                self.restart(now.node)?;
            }
        }
        Ok(lead)
    }

    /// Returns how many elections there were.
    fn calm(
        &mut self,
        lead: &Lead,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<u64, TargetError> {
        let burning = AtomicBool::new(true);
        thread::scope(|scope| {
            for _ in 0..self.options.burners {
                scope.spawn(|| {
                    while burning.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            let mut elections = 0;
            let mut seen = lead.ballot;
            let look = |run: &mut Self, part| {
                progress(Progress::Calm(part));
                if let Some(now) = run.look()? {
                    elections += u64::from(now.ballot != seen);
                    seen = now.ballot;
                }
                Ok(())
            };
            let dwelt = self.dwell(self.options.calm, look);
            burning.store(false, Ordering::Relaxed);
            dwelt.map(|()| elections)
        })
    }

    fn cluster(&mut self) -> Result<&mut LocalCluster, TargetError> {
        self.target.cluster().ok_or_else(|| STOPPED.into())
    }

    /// Has another node lead. Returns the longest time between two writes that were acknowledged from
    /// then until one was by the successor, and at least [`AFTERMATH`], and the successor.
    fn succeed(&mut self, leader: &Lead) -> Result<(Duration, Lead), TargetError> {
        self.shared.longest_gap_ns.store(0, Ordering::Relaxed);
        match self.options.cause {
            Cause::Kill => self.cluster()?.kill(leader.node),
            Cause::Move => self.hand_over(leader.node)?,
            Cause::Replace => self.replace()?,
        }
        // Nobody is asked meanwhile: answers cost a replica time.
        self.dwell(AFTERMATH, |_, _| Ok(()))?;
        let deadline = Instant::now() + PATIENCE;
        let successor = loop {
            let lead = self.await_lead()?;
            if lead.ballot > leader.ballot {
                break lead;
            }
            self.check(deadline, "follows the former leader")?;
            thread::sleep(LOOK);
        };
        // What the former leader had answered was taken before this.
        let before = self.shared.acknowledged.load(Ordering::Relaxed);
        while self.shared.acknowledged.load(Ordering::Relaxed) == before {
            self.check(deadline, "acknowledges a write of the next leader")?;
            thread::sleep(Duration::from_millis(1));
        }
        let gap_ns = self.shared.longest_gap_ns.load(Ordering::Relaxed);
        Ok((Duration::from_nanos(gap_ns), successor))
    }

    /// Asks the leader to hand over to the next node.
    fn hand_over(&mut self, leader: u16) -> Result<(), TargetError> {
        let members = self.cluster()?.members();
        let place = usize::from(leader) % members.len();
        let (successor, from) = (members[place].0, members[usize::from(leader) - 1].1);
        let said = as_client(self.site, || {
            let mut inspector = Inspector::new(&[from], None)?;
            inspector.hand_over(from, successor, ANSWER)
        })?;
        match said? {
            HandOver::Accepted => Ok(()),
            other => Err(format!("replica {leader} does not hand over: {other:?}").into()),
        }
    }

    /// Replaces the members by all other nodes.
    fn replace(&mut self) -> Result<(), TargetError> {
        let nodes = self.cluster()?.members();
        let seeds: Vec<SocketAddr> = nodes.iter().map(|&(_, address)| address).collect();
        let mut operator = as_client(self.site, || Operator::new(seeds, None))??;
        let now = operator.look(PATIENCE)?;
        let former = now.configuration.membership.members;
        let is_member = |node: NodeId| former.iter().any(|member| member.node == node);
        let goes = former.iter().map(|member| Fate::Goes(member.node));
        let mut fates: Vec<Fate> = goes.collect();
        for (node, address) in nodes {
            if is_member(node) {
                continue;
            }
            let report = self.inspect(node.0)?;
            let incarnation = report.and_then(|report| report["incarnation"].as_u64());
            let incarnation =
                incarnation.ok_or_else(|| format!("replica {node} does not answer"))?;
            fates.push(Fate::Comes(Member {
                node,
                address,
                incarnation: Incarnation(u32::try_from(incarnation)?),
                priority: 0,
                role: MemberRole::Voter,
            }));
        }
        operator.change(&Wish::new(fates), PATIENCE)?;
        Ok(())
    }

    /// Starts a killed replica again and waits until it is level with the leader.
    fn restart(&mut self, node: u16) -> Result<(), TargetError> {
        let site = self.site;
        self.cluster()?.start_at(site, node)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let lead = self.await_lead()?;
            let report = self.inspect(node)?;
            let applied = report.and_then(|report| report["applied"].as_u64());
            if applied.is_some_and(|applied| applied + LEVEL_SLOTS >= lead.decided) {
                return Ok(());
            }
            self.check(deadline, "is level with the others after its restart")?;
            thread::sleep(LOOK);
        }
    }

    fn dwell(
        &mut self,
        time: Duration,
        mut look: impl FnMut(&mut Self, f64) -> Result<(), TargetError>,
    ) -> Result<(), TargetError> {
        let start = Instant::now();
        while start.elapsed() < time {
            look(self, start.elapsed().div_duration_f64(time))?;
            self.check(Instant::now() + PATIENCE, "runs")?;
            thread::sleep(DWELL.min(time.saturating_sub(start.elapsed())));
        }
        Ok(())
    }

    fn check(&mut self, deadline: Instant, what: &str) -> Result<(), TargetError> {
        if self.interrupt.load(Ordering::Relaxed) {
            return Err("interrupted".into());
        }
        self.cluster()?.check()?;
        if Instant::now() >= deadline {
            let cluster = self.cluster()?;
            let nodes = 1..=cluster.replicas().len() as u16;
            let logs: Vec<_> = nodes
                .map(|node| format!("replica {node}: {}", cluster.log(node)))
                .collect();
            return Err(format!(
                "no replica {what} within {PATIENCE:?}; their logs say:\n{}",
                logs.join("\n")
            )
            .into());
        }
        Ok(())
    }

    fn await_lead(&mut self) -> Result<Lead, TargetError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(lead) = self.look()? {
                return Ok(lead);
            }
            self.check(deadline, "leads")?;
            thread::sleep(LOOK);
        }
    }

    fn look(&mut self) -> Result<Option<Lead>, TargetError> {
        let cluster = self.cluster()?;
        let nodes: Vec<u16> = (1..=cluster.replicas().len() as u16)
            .filter(|&node| cluster.process(node).is_some())
            .collect();
        let mut newest: Option<Lead> = None;
        for node in nodes {
            let Some(report) = self.inspect(node)? else {
                continue;
            };
            let ballot = report["ballot"].as_str().and_then(|text| {
                let (round, node) = text.split_once('.')?;
                Some((round.parse().ok()?, node.parse().ok()?))
            });
            // One that was superseded may not know it yet.
            if let Some(ballot) = ballot
                && report["role"] == "leader"
                && newest.as_ref().is_none_or(|lead| lead.ballot < ballot)
            {
                newest = Some(Lead {
                    node,
                    ballot,
                    decided: report["decided"].as_u64().unwrap_or_default(),
                });
            }
        }
        Ok(newest)
    }

    fn inspect(&mut self, node: u16) -> Result<Option<serde_json::Value>, TargetError> {
        let cluster = self.target.cluster().ok_or(STOPPED)?;
        as_client(self.site, || cluster.inspect(node, ANSWER))
    }
}

/// Does `work` with a priority, on whatever CPU there is. Beside threads that have one and spin, the
/// system comes to a thread without when it makes them stand still (`kernel.sched_rt_runtime_us`):
/// that is when every trial would begin or end.
fn urgently<T: Send>(
    fifo_priority: Option<u8>,
    work: impl FnOnce() -> Result<T, TargetError> + Send,
) -> Result<T, TargetError> {
    let anywhere = Placement {
        cpu: None,
        fifo_priority,
    };
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            anywhere.apply()?;
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What `work` gives in the client's place: a socket that it makes stays there.
fn as_client<T: Send>(site: &Site, work: impl FnOnce() -> T + Send) -> Result<T, TargetError> {
    Ok(match &site.client().node {
        Some(client) => client.run(work)?,
        None => work(),
    })
}
