//! What `nearwire bench reads` measures: reads over RESP beside writes and an echo that speaks RESP.

use crate::bench_target::LocalTarget;
use crate::config::Reads;
use bench::process::Subject;
use bench::resp::{self, Plan, RespEcho, append_request};
use bench::rounds::Turn;
use bench::run::{Progress, Target, TargetError};
use bench::site::{Place, Site};
use datapath::Wait;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

/// Keys that are read and written in turn.
const KEYS: u64 = 1024;
/// How long a replica may take to answer while the keys are written.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is asked, and who answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// GET, answered with a value by an echo in the leader's place.
    Echo,
    /// GET, answered by the leader of a cluster with these reads; for [`Reads::Quorum`] by a
    /// follower for the latency, and by all nodes for the rate.
    Get(Reads),
    /// SET, answered by the leader.
    Set,
}

impl Kind {
    /// In the order of rows.
    pub const ALL: [Self; 5] = [
        Self::Echo,
        Self::Get(Reads::Lease),
        Self::Get(Reads::Barrier),
        Self::Get(Reads::Quorum),
        Self::Set,
    ];

    /// The name in rows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Get(Reads::Lease) => "get-lease",
            Self::Get(Reads::Barrier) => "get-barrier",
            Self::Get(Reads::Quorum) => "get-quorum",
            Self::Set => "set",
        }
    }
}

/// How to measure.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How often all take turns.
    pub rounds: usize,
    /// Time before each measurement.
    pub warmup: Duration,
    /// Time of each measurement.
    pub measure: Duration,
    /// Connections of the measurement of rates.
    pub connections: usize,
    /// Requests under way on each of them.
    pub pipeline: usize,
    /// Length of a value in bytes.
    pub value_bytes: usize,
    /// How the client waits.
    pub client_wait: Wait,
    /// Set by somebody who wants the run to end.
    pub interrupt: &'static AtomicBool,
}

/// One kind in one round.
#[derive(Clone, Debug)]
pub struct Lap {
    /// What.
    pub kind: Kind,
    /// One connection: how long a request takes.
    pub one: Turn,
    /// Many connections: how many requests there are in a second.
    pub many: Turn,
}

/// Measures every kind in each round; `target` makes the cluster of such reads.
///
/// # Errors
/// A cluster does not start, or does not answer.
pub fn run(
    target: impl Fn(Reads) -> LocalTarget,
    site: &Site,
    options: &Options,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<Vec<Vec<Lap>>, bench::Error> {
    let mut rounds = Vec::new();
    for round in 1..=options.rounds {
        let mut run = Run {
            site,
            options,
            round,
            progress,
            laps: Vec::new(),
        };
        // Whoever comes first meets colder caches, so they swap; lease and echo stay neighbours.
        let mut turns = [
            None,
            Some(Reads::Lease),
            Some(Reads::Barrier),
            Some(Reads::Quorum),
        ];
        if round % 2 == 0 {
            turns.reverse();
        }
        for reads in turns {
            match reads {
                None => run.echo()?,
                Some(reads) => run.cluster(target(reads), reads)?,
            }
        }
        rounds.push(run.laps);
    }
    Ok(rounds)
}

struct Run<'a> {
    site: &'a Site,
    options: &'a Options,
    round: usize,
    progress: &'a mut (dyn FnMut(Progress) + Send),
    laps: Vec<Lap>,
}

impl Run<'_> {
    fn echo(&mut self) -> Result<(), bench::Error> {
        let echo = RespEcho::start(&self.site.replicas()[0], self.options.value_bytes)?;
        self.lap(
            Kind::Echo,
            (&[echo.address()], &[echo.address()]),
            &[echo.thread()],
        )
    }

    fn cluster(&mut self, mut target: LocalTarget, reads: Reads) -> Result<(), bench::Error> {
        let measured = self.on(&mut target, reads);
        // Stopped on every path, so that nothing outlives the run.
        let stopped = target.stop().map_err(failed("stop"));
        measured.and(stopped)
    }

    fn on(&mut self, target: &mut LocalTarget, reads: Reads) -> Result<(), bench::Error> {
        let cluster = target.start(self.site).map_err(failed("start"))?;
        let replicas = target
            .cluster()
            .map_or(&[][..], |cluster| cluster.replicas());
        let fronts: Vec<_> = replicas.iter().filter_map(|replica| replica.resp).collect();
        let leader = [fronts[cluster.leader]];
        fill(self.site.client(), leader[0], self.options.value_bytes).map_err(failed("fill"))?;
        let follower = [fronts[(cluster.leader + 1) % fronts.len()]];
        let asked: (&[_], &[_]) = match reads {
            Reads::Lease | Reads::Barrier => (&leader, &leader),
            Reads::Quorum => (&follower, &fronts),
        };
        self.lap(Kind::Get(reads), asked, &cluster.processes)?;
        if reads == Reads::Lease {
            self.lap(Kind::Set, (&leader, &leader), &cluster.processes)?;
        }
        Ok(())
    }

    fn lap(
        &mut self,
        kind: Kind,
        (for_one, for_many): (&[SocketAddr], &[SocketAddr]),
        servers: &[Subject],
    ) -> Result<(), bench::Error> {
        let many = (self.options.connections, self.options.pipeline);
        let one = self.turn(kind, for_one, (1, 1), servers)?;
        let many = self.turn(kind, for_many, many, servers)?;
        self.laps.push(Lap { kind, one, many });
        Ok(())
    }

    fn turn(
        &mut self,
        kind: Kind,
        targets: &[SocketAddr],
        (connections, pipeline): (usize, usize),
        servers: &[Subject],
    ) -> Result<Turn, bench::Error> {
        let options = self.options;
        let plan = Plan {
            targets,
            connections,
            pipeline,
            wait: options.client_wait,
            warmup: options.warmup,
            measure: options.measure,
            interrupt: Some(options.interrupt),
        };
        let value = value(options.value_bytes);
        let mut request = |number: u64, out: &mut Vec<u8>| {
            let key = key(number);
            match kind {
                Kind::Echo | Kind::Get(_) => append_request(&[b"GET", key.as_bytes()], out),
                Kind::Set => append_request(&[b"SET", key.as_bytes(), &value], out),
            }
        };
        let (round, rounds, progress) = (self.round, options.rounds, &mut *self.progress);
        let mut report = |part: f64, done: u64| {
            progress(Progress {
                what: kind.name(),
                round,
                rounds,
                part,
                done,
            });
        };
        resp::measure(
            self.site.client(),
            &plan,
            servers,
            &mut request,
            &mut report,
        )
    }
}

fn failed(doing: &'static str) -> impl Fn(TargetError) -> bench::Error {
    move |source| bench::Error::Target { doing, source }
}

fn key(number: u64) -> String {
    format!("key:{:04}", number % KEYS)
}

fn value(bytes: usize) -> Vec<u8> {
    vec![b'x'; bytes]
}

/// Writes every key, so that each read finds a value.
fn fill(client: &Place, front: SocketAddr, value_bytes: usize) -> Result<(), TargetError> {
    let fill = || -> Result<(), TargetError> {
        client.enter()?;
        let mut stream = TcpStream::connect(front)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut requests = Vec::new();
        for number in 0..KEYS {
            let (key, value) = (key(number), value(value_bytes));
            append_request(&[b"SET", key.as_bytes(), &value], &mut requests);
        }
        stream.write_all(&requests)?;
        let mut replies = vec![0; KEYS as usize * b"+OK\r\n".len()];
        stream.read_exact(&mut replies)?;
        match replies.chunks(5).all(|reply| reply == b"+OK\r\n") {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&replies).into_owned().into()),
        }
    };
    thread::scope(|scope| {
        let filled = scope.spawn(fill).join();
        filled.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
