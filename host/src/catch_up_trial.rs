//! What `nearwire bench catch-up` measures: how long a follower that was away takes to be level with
//! the others while clients go on writing, what the clients notice of it, and how long a plain copy
//! of the same bytes takes between the same two places.

use crate::bench_target::LocalTarget;
use crate::kv::{Call, Op};
use crate::local_cluster::LocalCluster;
use bench::cluster::{ClusterCaller, Command};
use bench::load::{Caller, latencies};
use bench::process::Subject;
use bench::run::{Cluster, Target, TargetError};
use bench::site::{Place, Site};
use consensus::envelope::{ENTRY_BYTES, SESSION_WINDOW};
use datapath::{Datapath, Received, Service, Transmit, Wait, Worker, clock};
use hdrhistogram::Histogram;
use nix::sys::signal::Signal;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything but the writing of the slots may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(120);
/// The slots may be written at this rate at the least.
const SLOWEST_PER_S: u64 = 500;
/// How long a replica may take to answer a question.
const ANSWER: Duration = Duration::from_millis(250);
/// Between two looks at the follower that catches up.
const LOOK: Duration = Duration::from_millis(5);
/// Between two looks at the leader while slots are written.
const DWELL: Duration = Duration::from_millis(50);
/// Longest sleep of the client, so that its end is noticed soon.
const MAX_SLEEP: Duration = Duration::from_millis(20);
/// The replica that goes away.
const LEARNER: u16 = 3;
/// A plain copy goes in datagrams as long as a piece of a snapshot with its header.
const DATAGRAM_BYTES: usize = 1440;
/// Datagrams of a plain copy between two acknowledgements, and how many such bursts are under way.
const BURST: u64 = 32;
const BURSTS: u64 = 4;
/// A plain copy that hears nothing for so long sends again.
const COPY_PATIENCE: Duration = Duration::from_millis(20);

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Slots that are decided while the follower is away.
    pub slots: u64,
    /// How it goes away: stopped with SIGSTOP, so that it keeps its state, or killed.
    pub pause: bool,
    /// Writes that arise in a second while it catches up.
    pub per_s: f64,
    /// Writes under way at the most.
    pub outstanding: usize,
    /// Keys that are written in turn.
    pub keys: u64,
    /// Length of a written value in bytes.
    pub value_bytes: usize,
    /// How long the writes are looked at before the follower goes, and before it comes back.
    pub calm: Duration,
}

/// Latencies of the writes that arose in one part of the run.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Latency {
    /// How many.
    pub writes: u64,
    /// Median in microseconds.
    pub p50_us: f64,
    /// 99th percentile in microseconds.
    pub p99_us: f64,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Slots that were decided while the follower was away.
    pub slots_behind: u64,
    /// Bytes of the entries in them, each with its head.
    pub bytes_behind: u64,
    /// Bytes of values and snapshots that it took over.
    pub bytes_taught: u64,
    /// Slots that it learned one by one.
    pub slots_learned: u64,
    /// Snapshots that it took over.
    pub snapshots: u64,
    /// From its return until it was level.
    pub caught_up: Duration,
    /// Of that: until the first snapshot was taken over, if one was.
    pub restored: Option<Duration>,
    /// A plain copy of the bytes taught, file to file, in datagrams of the same length.
    pub udp_copy: Duration,
    /// The same over one TCP connection.
    pub tcp_copy: Duration,
    /// Plain copies of the bytes behind.
    pub udp_copy_behind: Duration,
    /// The same over one TCP connection.
    pub tcp_copy_behind: Duration,
    /// All three replicas run and are level.
    pub before: Latency,
    /// The follower is away.
    pub away: Latency,
    /// It catches up.
    pub during: Latency,
    /// CPU time while it catches up, of the leader, the other follower, and itself, as parts of one
    /// CPU.
    pub cpu: [f64; 3],
    /// Writes that failed.
    pub failed: u64,
}

/// What is being done.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Progress {
    /// Writes are looked at while all are level.
    Before,
    /// This part of the slots is written.
    Writing(f64),
    /// Writes are looked at while the follower is away.
    Away,
    /// It lacks so many slots.
    CatchingUp(u64),
    /// The bytes are copied.
    Copying,
}

/// Parts of a run, by which the writes are told apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Nobody looks at the latencies.
    Idle,
    /// As many writes as may be under way.
    Full,
    Before,
    Away,
    During,
}

const PARTS: usize = 5;

/// What the client and the thread of the run share.
struct Shared {
    part: AtomicUsize,
    acknowledged: AtomicU64,
    failed: AtomicU64,
    over: AtomicBool,
}

/// The client as a worker's service.
struct Writer {
    caller: ClusterCaller,
    options: Options,
    /// Open loop: when the next write arises.
    arises_ns: u64,
    part: usize,
    under_way: usize,
    latencies: Vec<Histogram<u64>>,
    shared: Arc<Shared>,
}

impl Writer {
    /// The token of a write says when it arose and in which part.
    fn submit(&mut self, arose_ns: u64) -> bool {
        let taken = self
            .caller
            .submit(arose_ns * PARTS as u64 + self.part as u64);
        self.under_way += usize::from(taken);
        taken
    }

    fn make(&mut self, now_ns: u64) {
        let part = self.shared.part.load(Ordering::Relaxed);
        if part != self.part {
            self.part = part;
            self.arises_ns = now_ns;
        }
        if part == Part::Full as usize {
            while self.under_way < self.options.outstanding && self.submit(now_ns) {}
            return;
        }
        while self.arises_ns <= now_ns && self.submit(self.arises_ns) {
            self.arises_ns += (1e9 / self.options.per_s) as u64;
        }
    }
}

impl Service for Writer {
    fn packet<T: Transmit>(&mut self, now_ns: u64, from: SocketAddr, datagram: &[u8], _: &mut T) {
        self.caller.take(now_ns, from, datagram);
    }

    fn turn<T: Transmit>(&mut self, now_ns: u64, tx: &mut T) -> Duration {
        while let Some((token, is_acknowledged)) = self.caller.ended() {
            self.under_way -= 1;
            let (arose_ns, part) = (token / PARTS as u64, (token % PARTS as u64) as usize);
            self.latencies[part].saturating_record(now_ns.saturating_sub(arose_ns).max(1));
            let count = match is_acknowledged {
                true => &self.shared.acknowledged,
                false => &self.shared.failed,
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.make(now_ns);
        self.caller.give(now_ns, tx);
        let mut due_ns = self.caller.due_ns().unwrap_or(u64::MAX);
        if self.part != Part::Full as usize {
            due_ns = due_ns.min(self.arises_ns.max(now_ns + 1));
        }
        Duration::from_nanos(due_ns.saturating_sub(now_ns)).min(MAX_SLEEP)
    }

    fn stopping(&self) -> bool {
        self.shared.over.load(Ordering::Relaxed)
    }
}

/// Sends a follower of `target`'s cluster on `site` away and looks at its return.
///
/// # Errors
/// The cluster does not start, or the follower does not catch up.
pub fn run(
    target: &mut LocalTarget,
    site: &Site,
    options: &Options,
    interrupt: &AtomicBool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Outcome, TargetError> {
    let cluster = target.start(site)?;
    let shared = Arc::new(Shared {
        part: AtomicUsize::new(Part::Idle as usize),
        acknowledged: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        over: AtomicBool::new(false),
    });
    let (leader, processes) = (cluster.leader as u16 + 1, cluster.processes.clone());
    let measured = thread::scope(|scope| {
        let load = || write(site, &cluster, options, Arc::clone(&shared));
        let load = scope.spawn(load);
        let mut run = Run {
            target,
            site,
            options,
            shared: &shared,
            interrupt,
            leader,
            processes,
        };
        let measured = run.measure(progress);
        shared.over.store(true, Ordering::Relaxed);
        let latencies = load
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok::<_, TargetError>((measured?, latencies?))
    });
    let copied = measured.and_then(|(mut outcome, latencies)| {
        let of = |part: Part| {
            let latencies = &latencies[part as usize];
            Latency {
                writes: latencies.len(),
                p50_us: latencies.value_at_quantile(0.5) as f64 / 1e3,
                p99_us: latencies.value_at_quantile(0.99) as f64 / 1e3,
            }
        };
        outcome.before = of(Part::Before);
        outcome.away = of(Part::Away);
        outcome.during = of(Part::During);
        progress(Progress::Copying);
        let directory = target
            .cluster()
            .map(|cluster| cluster.directory().to_owned());
        let directory = directory.ok_or("the cluster has been stopped")?;
        let copy = Copy {
            from: &site.replicas()[usize::from(1 + 2 - leader) - 1],
            to: &site.replicas()[usize::from(LEARNER) - 1],
            directory: &directory,
        };
        outcome.udp_copy = copy.by_udp(outcome.bytes_taught)?;
        outcome.tcp_copy = copy.by_tcp(outcome.bytes_taught)?;
        outcome.udp_copy_behind = copy.by_udp(outcome.bytes_behind)?;
        outcome.tcp_copy_behind = copy.by_tcp(outcome.bytes_behind)?;
        Ok(outcome)
    });
    let stopped = target.stop();
    let mut outcome = copied?;
    stopped?;
    outcome.failed = shared.failed.load(Ordering::Relaxed);
    Ok(outcome)
}

fn write(
    site: &Site,
    cluster: &Cluster,
    options: &Options,
    shared: Arc<Shared>,
) -> Result<Vec<Histogram<u64>>, TargetError> {
    let caller = cluster.caller(commands(options), SESSION_WINDOW as usize)?;
    let place = site.client();
    place.enter()?;
    let writer = Writer {
        caller,
        options: *options,
        arises_ns: clock::monotonic_ns(),
        part: Part::Idle as usize,
        under_way: 0,
        latencies: (0..PARTS).map(|_| latencies()).collect(),
        shared,
    };
    let mut worker = Worker::new(place.bind(Wait::Blocking)?, writer);
    worker.run()?;
    Ok(worker.into_parts().1.latencies)
}

fn commands(options: &Options) -> Command {
    let (value, keys) = (vec![b'x'; options.value_bytes], options.keys);
    Box::new(move |number, out| {
        let key = key(number % keys);
        let call = Call {
            op: Op::Set,
            arguments: [key.as_bytes(), &value].into_iter().collect(),
        };
        call.encode(out);
    })
}

fn key(number: u64) -> String {
    format!("key:{number:08}")
}

/// How long so many writes may take.
const fn patience(writes: u64) -> Duration {
    PATIENCE.saturating_add(Duration::from_secs(writes / SLOWEST_PER_S))
}

struct Run<'a> {
    target: &'a mut LocalTarget,
    site: &'a Site,
    options: &'a Options,
    shared: &'a Shared,
    interrupt: &'a AtomicBool,
    leader: u16,
    processes: Vec<Subject>,
}

impl Run<'_> {
    fn measure(&mut self, progress: &mut dyn FnMut(Progress)) -> Result<Outcome, TargetError> {
        let Options {
            slots, calm, keys, ..
        } = *self.options;
        if self.leader == LEARNER {
            return Err("the follower that was to go away leads: run it again".into());
        }
        // The state has all its keys from the start.
        self.turn_to(Part::Full);
        let deadline = Instant::now() + patience(keys);
        while self.shared.acknowledged.load(Ordering::Relaxed) < keys {
            self.check(deadline, "the first keys to be written")?;
            thread::sleep(DWELL);
        }
        progress(Progress::Before);
        self.dwell(Part::Before, calm)?;

        match self.options.pause {
            true => self.cluster()?.signal(LEARNER, Signal::SIGSTOP),
            false => self.cluster()?.kill(LEARNER),
        }
        let (start, entries) = (self.decided()?, self.acknowledged());
        self.turn_to(Part::Full);
        let deadline = Instant::now() + patience(slots);
        loop {
            let written = self.decided()?.saturating_sub(start);
            progress(Progress::Writing(written as f64 / slots as f64));
            if written >= slots {
                break;
            }
            self.check(deadline, "the slots to be written")?;
            thread::sleep(DWELL);
        }
        progress(Progress::Away);
        self.dwell(Part::Away, calm)?;

        let mut body = Vec::new();
        commands(self.options)(0, &mut body);
        let entry = (ENTRY_BYTES + body.len().next_multiple_of(8)) as u64;
        let goal = self.decided()?;
        let mut outcome = Outcome {
            slots_behind: goal - start,
            bytes_behind: (self.acknowledged() - entries) * entry,
            ..Outcome::default()
        };
        progress(Progress::CatchingUp(outcome.slots_behind));
        self.turn_to(Part::During);
        let before = self.cpu_times()?;
        let began = Instant::now();
        match self.options.pause {
            true => self.cluster()?.signal(LEARNER, Signal::SIGCONT),
            false => {
                let site = self.site;
                self.cluster()?.start_at(site, LEARNER)?;
                let process = self.cluster()?.process(LEARNER);
                let process = process.ok_or("the follower does not run")?;
                self.processes[usize::from(LEARNER) - 1] = Subject::Process(process);
            }
        }
        let deadline = began + PATIENCE;
        let report = loop {
            let report = self.inspect(LEARNER)?.unwrap_or_default();
            let number = |name: &str| report[name].as_u64().unwrap_or_default();
            let (applied, decided) = (number("applied"), number("decided"));
            if number("snapshots_taken_over") > 0 && outcome.restored.is_none() {
                outcome.restored = Some(began.elapsed());
            }
            if applied >= goal && applied >= decided {
                break report;
            }
            progress(Progress::CatchingUp(goal.max(decided) - applied));
            self.check(deadline, "the follower to be level")?;
            thread::sleep(LOOK);
        };
        outcome.caught_up = began.elapsed();
        self.turn_to(Part::Idle);
        let spent = self.cpu_times()?;
        for (cpu, node) in outcome
            .cpu
            .iter_mut()
            .zip([self.leader, self.other(), LEARNER])
        {
            let at = usize::from(node) - 1;
            // A process that was started again begins at nothing.
            let spent = spent[at].checked_sub(before[at]).unwrap_or(spent[at]);
            *cpu = spent.div_duration_f64(outcome.caught_up);
        }
        let number = |name: &str| report[name].as_u64().unwrap_or_default();
        outcome.slots_learned = number("learned");
        outcome.snapshots = number("snapshots_taken_over");
        outcome.bytes_taught = number("learned_bytes") + number("snapshot_bytes");
        Ok(outcome)
    }

    /// The replica that neither leads nor goes away.
    const fn other(&self) -> u16 {
        1 + 2 - self.leader
    }

    fn turn_to(&self, part: Part) {
        self.shared.part.store(part as usize, Ordering::Relaxed);
    }

    fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    fn cluster(&mut self) -> Result<&mut LocalCluster, TargetError> {
        let cluster = self.target.cluster();
        cluster.ok_or_else(|| "the cluster has been stopped".into())
    }

    /// What each replica's process has spent; nothing for one that does not run.
    fn cpu_times(&self) -> Result<Vec<Duration>, TargetError> {
        let times = self.processes.iter().map(|process| process.cpu_time());
        Ok(times.map(Result::unwrap_or_default).collect())
    }

    fn dwell(&mut self, part: Part, time: Duration) -> Result<(), TargetError> {
        // What is under way belongs to the part before.
        self.turn_to(Part::Idle);
        thread::sleep(DWELL);
        self.turn_to(part);
        let start = Instant::now();
        while start.elapsed() < time {
            self.check(start + PATIENCE + time, "the cluster to run")?;
            thread::sleep(DWELL.min(time.saturating_sub(start.elapsed())));
        }
        self.turn_to(Part::Idle);
        Ok(())
    }

    fn check(&mut self, deadline: Instant, what: &str) -> Result<(), TargetError> {
        if self.interrupt.load(Ordering::Relaxed) {
            return Err("interrupted".into());
        }
        self.cluster()?.check()?;
        if Instant::now() < deadline {
            return Ok(());
        }
        let cluster = self.cluster()?;
        let nodes = 1..=cluster.replicas().len() as u16;
        let logs: Vec<_> = nodes
            .map(|node| format!("replica {node}: {}", cluster.log(node)))
            .collect();
        let logs = logs.join("\n");
        Err(format!("waited too long for {what}; the replicas' logs say:\n{logs}").into())
    }

    /// How far the leader has decided.
    fn decided(&mut self) -> Result<u64, TargetError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(report) = self.inspect(self.leader)? {
                if report["role"] != "leader" {
                    return Err("the leader was deposed: run it again on a quieter machine".into());
                }
                return Ok(report["decided"].as_u64().unwrap_or_default());
            }
            self.check(deadline, "the leader to answer")?;
        }
    }

    fn inspect(&mut self, node: u16) -> Result<Option<serde_json::Value>, TargetError> {
        let client = self.site.client().node.clone();
        let cluster = self.cluster()?;
        Ok(match client {
            Some(client) => client.run(|| cluster.inspect(node, ANSWER))?,
            None => cluster.inspect(node, ANSWER),
        })
    }
}

/// A plain copy of a file from one place to a file in another.
struct Copy<'a> {
    from: &'a Place,
    to: &'a Place,
    directory: &'a Path,
}

impl Copy<'_> {
    /// Makes the file, and gives it and the one to fill to `send` and `take` on threads in their
    /// places.
    fn timed<L: Send>(
        &self,
        bytes: u64,
        listen: impl FnOnce() -> Result<L, TargetError> + Send,
        take: impl FnOnce(L, &File) -> Result<(), TargetError> + Send,
        send: impl FnOnce(SocketAddr, &File) -> Result<(), TargetError> + Send,
        address: impl FnOnce(&L) -> SocketAddr + Send,
    ) -> Result<Duration, TargetError> {
        let (source, copy) = (self.directory.join("source"), self.directory.join("copy"));
        let mut file = File::create(&source)?;
        io::copy(&mut io::repeat(b'x').take(bytes), &mut file)?;
        file.sync_all()?;
        let source_file = File::open(&source)?;
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let (place, target) = (self.to.clone(), copy.clone());
        let elapsed = thread::scope(|scope| {
            let taker = scope.spawn(move || {
                place.enter()?;
                let listening = listen()?;
                let file = File::create(target)?;
                let _ = tell.send(address(&listening));
                take(listening, &file)?;
                file.sync_all()?;
                Ok::<_, TargetError>(Instant::now())
            });
            let place = self.from.clone();
            let sender = scope.spawn(move || {
                place.enter()?;
                let to = told.recv()?;
                let began = Instant::now();
                send(to, &source_file)?;
                Ok::<_, TargetError>(began)
            });
            let joined = |result: thread::Result<Result<Instant, TargetError>>| {
                result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            let began = joined(sender.join())?;
            Ok::<_, TargetError>(joined(taker.join())? - began)
        })?;
        std::fs::remove_file(&source)?;
        std::fs::remove_file(&copy)?;
        Ok(elapsed)
    }

    fn by_tcp(&self, bytes: u64) -> Result<Duration, TargetError> {
        let ip = self.to.ip;
        self.timed(
            bytes,
            move || Ok(TcpListener::bind((ip, 0))?),
            |listener, mut file| {
                io::copy(&mut listener.accept()?.0, &mut file)?;
                Ok(())
            },
            |to, mut file| {
                io::copy(&mut file, &mut TcpStream::connect(to)?)?;
                Ok(())
            },
            |listener| listener.local_addr().expect("it is bound"),
        )
    }

    fn by_udp(&self, bytes: u64) -> Result<Duration, TargetError> {
        let (from, to) = (self.from.clone(), self.to.clone());
        let last = bytes.div_ceil(DATAGRAM_BYTES as u64 - 8);
        self.timed(
            bytes,
            move || Ok(to.bind(Wait::Blocking)?),
            move |udp, file| take_datagrams(udp, file, last),
            move |to, file| send_datagrams(from.bind(Wait::Blocking)?, to, file, last),
            Datapath::local_addr,
        )
    }
}

/// Sends a file as numbered datagrams; what is not acknowledged is sent again.
fn send_datagrams(
    mut udp: impl Datapath,
    to: SocketAddr,
    file: &File,
    last: u64,
) -> Result<(), TargetError> {
    let mut piece = [0; DATAGRAM_BYTES - 8];
    let (mut acknowledged, mut sent) = (0, 0);
    let mut heard = Instant::now();
    while acknowledged < last {
        if heard.elapsed() >= COPY_PATIENCE {
            (sent, heard) = (acknowledged, Instant::now());
        }
        while sent < last && sent < acknowledged + BURST * BURSTS {
            let offset = sent * piece.len() as u64;
            let count = file.read_at(&mut piece, offset)?;
            udp.halves()
                .1
                .send(to, &sent.to_be_bytes(), &piece[..count]);
            sent += 1;
            if sent % BURST == 0 {
                udp.flush()?;
            }
        }
        udp.flush()?;
        udp.wait(COPY_PATIENCE)?;
        for index in 0..udp.receive()? {
            if let Some(number) = udp.halves().0.packet(index).1.first_chunk() {
                acknowledged = acknowledged.max(u64::from_be_bytes(*number));
                heard = Instant::now();
            }
        }
    }
    Ok(())
}

/// Takes numbered datagrams in order, and acknowledges a burst at a time.
fn take_datagrams(mut udp: impl Datapath, mut file: &File, last: u64) -> Result<(), TargetError> {
    let deadline = Instant::now() + PATIENCE;
    let mut next = 0;
    while next < last {
        if Instant::now() > deadline {
            return Err("the plain copy does not come to an end".into());
        }
        udp.wait(COPY_PATIENCE)?;
        let received = udp.receive()?;
        let (rx, tx) = udp.halves();
        for index in 0..received {
            let (from, datagram) = rx.packet(index);
            let Some((number, bytes)) = datagram.split_first_chunk() else {
                continue;
            };
            if u64::from_be_bytes(*number) == next {
                file.write_all(bytes)?;
                next += 1;
            }
            if next % BURST == 0 || next == last {
                tx.send(from, &next.to_be_bytes(), &[]);
            }
        }
        udp.flush()?;
    }
    Ok(())
}
