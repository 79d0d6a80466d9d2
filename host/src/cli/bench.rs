//! `nearwire bench`.

use super::output::Output;
use super::{Failure, catch_up, failover, groups, output, reads, step};
use anyhow::Context;
use bench::hgrm;
use bench::load::Load;
use bench::plot::{self, Series};
use bench::report::{Row, to_json, to_table};
use bench::run::{self, Options, Outcome, Progress};
use bench::site::Where;
use clap::{Subcommand, ValueEnum};
use consensus::envelope::SESSION_WINDOW;
use indicatif::{ProgressBar, ProgressStyle};
use nearwire::bench_target::{Engine, LocalTarget, PlaceError, run_with_flush_floor, state_parent};
use nearwire::config::{Durability, MAX_LINGER_US, Wait, Worker};
use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Measure latency and throughput against the floor of the same run.
///
/// For `lat` and `rate` three replicas and a client are started here, each on a CPU of its own as
/// far as there are enough. In every round the cluster and a UDP echo in the leader's place take
/// turns. `failover` kills their leader again and again; `catch-up` brings back a follower that was
/// away for a million slots; `groups` compares one log with many. `step` times a single acceptor, without a
/// network.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  nearwire bench lat                                     on loopback, one write at a time
  sudo nearwire bench lat --where netns --priority 10    a namespace each, joined by a bridge
  sudo nearwire bench rate --where netns --output json   32 writes at a time, for programs
  sudo nearwire bench lat --where netns --engine software,xdp
  nearwire bench lat --rate 2000 --hgrm lat.hgrm         writes that arise 2000 times a second
  nearwire bench lat --durability sync --data-directory /var/tmp
  sudo nearwire bench step --engine xdp --output json    what one request costs an acceptor
  sudo nearwire bench failover --where netns --priority 10   the leader is killed 200 times
  sudo nearwire bench reads --where netns --priority 10      what reads cost beside writes
  sudo nearwire bench catch-up --where netns             a follower returns, a million slots behind

docs/benchmarks.md says how each figure is taken and what it leaves out. Exit code 3 means that
nothing could be measured here; what could not be measured beside other things is a row that says
why.")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// One write at a time: how long a commit takes.
    Lat(LoadArgs),
    /// 32 writes at a time: how many commits there are in a second, and what each costs.
    Rate(LoadArgs),
    Failover(failover::Args),
    Groups(groups::Args),
    Reads(reads::Args),
    CatchUp(catch_up::Args),
    Step(step::Args),
}

#[derive(Debug, clap::Args)]
struct LoadArgs {
    /// What steps the acceptors; several, separated by commas, are measured one after the other.
    #[arg(
        long,
        env = "NEARWIRE_ENGINE",
        value_enum,
        value_delimiter = ',',
        default_value = "software"
    )]
    engine: Vec<Engine>,
    /// What lies between the parties.
    #[arg(
        long = "where",
        env = "NEARWIRE_WHERE",
        value_enum,
        default_value = "loopback"
    )]
    site: Site,
    /// How replicas and client wait for packets; polling needs four CPUs.
    #[arg(long, env = "NEARWIRE_WAIT", value_enum, default_value = "blocking")]
    wait: Wait,
    /// What a commit outlives.
    #[arg(
        long,
        env = "NEARWIRE_DURABILITY",
        value_enum,
        default_value = "volatile"
    )]
    durability: Durability,
    /// Length of a written value in bytes.
    #[arg(
        long,
        env = "NEARWIRE_VALUE_BYTES",
        value_name = "N",
        default_value_t = 64
    )]
    value_bytes: usize,
    /// Writes under way: 1 for `lat`, 32 for `rate` if it is not given.
    #[arg(
        long,
        env = "NEARWIRE_OUTSTANDING",
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..=SESSION_WINDOW),
        conflicts_with = "rate"
    )]
    outstanding: Option<u64>,
    /// Writes that arise in a second, whatever becomes of the earlier ones (an open loop). The
    /// latency counts from when each was due.
    #[arg(long, env = "NEARWIRE_RATE", value_name = "PER_S", value_parser = rate)]
    rate: Option<f64>,
    /// How often cluster and floor take turns.
    #[arg(
        long,
        env = "NEARWIRE_ROUNDS",
        value_name = "N",
        default_value_t = 5,
        value_parser = clap::value_parser!(u16).range(1..=1000)
    )]
    rounds: u16,
    /// Time of each measurement.
    #[arg(
        long,
        env = "NEARWIRE_SECONDS",
        value_name = "S",
        default_value = "2",
        value_parser = seconds
    )]
    seconds: Duration,
    /// Time before each measurement in which nothing is recorded.
    #[arg(
        long,
        env = "NEARWIRE_WARMUP",
        value_name = "S",
        default_value = "0.5",
        value_parser = seconds
    )]
    warmup: Duration,
    /// SCHED_FIFO priority of replicas, client and floor; published latencies have one.
    /// A replica's worker that polls is one below.
    #[arg(
        long,
        env = "NEARWIRE_PRIORITY",
        value_name = "1-99",
        value_parser = clap::value_parser!(u8).range(1..=99)
    )]
    priority: Option<u8>,
    /// How long a replica looks for packets before it sleeps, in microseconds: worker.linger_us.
    #[arg(
        long,
        env = "NEARWIRE_LINGER_US",
        value_name = "US",
        value_parser = clap::value_parser!(u64).range(..=MAX_LINGER_US),
        default_value_t = Worker::default().linger_us
    )]
    linger_us: u64,
    /// Where the replicas keep their state: memory for `volatile` and the directory for temporary
    /// files otherwise, if it is not given.
    #[arg(long, env = "NEARWIRE_DATA_DIRECTORY", value_name = "DIR")]
    data_directory: Option<PathBuf>,
    /// Write the percentile distribution of all rounds as HdrHistogram's text.
    #[arg(long, env = "NEARWIRE_HGRM", value_name = "FILE")]
    hgrm: Option<PathBuf>,
    /// Draw the percentiles of cluster and floor into an .svg or a .png.
    #[arg(long, env = "NEARWIRE_PLOT", value_name = "FILE", value_parser = picture)]
    plot: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Site {
    /// The loopback interface.
    Loopback,
    /// A network namespace each, joined by veth and a bridge. Needs root and iproute2.
    Netns,
}

impl From<Site> for Where {
    fn from(site: Site) -> Self {
        match site {
            Site::Loopback => Self::Loopback,
            Site::Netns => Self::Netns,
        }
    }
}

impl Site {
    /// Why this engine cannot vote here, if so.
    pub(super) fn unsupported(self, engine: Engine, durability: Durability) -> Option<String> {
        if engine != Engine::Xdp {
            None
        } else if self == Self::Loopback {
            Some("XDP needs interfaces that take programs: --where netns".into())
        } else if durability == Durability::Sync {
            Some("the program in the kernel waits for no flush".into())
        } else {
            None
        }
    }
}

/// Set by SIGINT and SIGTERM.
pub(super) fn interrupt() -> anyhow::Result<&'static AtomicBool> {
    // It must outlive the run, which ends with the process.
    let interrupt: &'static Arc<AtomicBool> = Box::leak(Box::default());
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(interrupt)).context("catch signals")?;
    }
    Ok(interrupt)
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok();
    rate.filter(|rate: &f64| (0.001..=1e8).contains(rate))
        .ok_or_else(|| "not a number of writes per second".into())
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok();
    seconds
        .filter(|seconds: &f64| (0.01..=3600.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "not a number of seconds from 0.01 to 3600".into())
}

fn picture(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match extension(&path).as_deref() {
        Some("svg" | "png") => Ok(path),
        _ => Err("a picture's name ends in .svg or .png".into()),
    }
}

fn extension(path: &Path) -> Option<String> {
    Some(path.extension()?.to_str()?.to_ascii_lowercase())
}

pub(crate) fn main(args: Args, output: Output) -> anyhow::Result<()> {
    let (args, outstanding) = match args.what {
        What::Lat(args) => (args, 1),
        What::Rate(args) => (args, 32),
        What::Failover(args) => return failover::main(&args, output),
        What::Groups(args) => return groups::main(&args, output),
        What::Reads(args) => return reads::main(&args, output),
        What::CatchUp(args) => return catch_up::main(&args, output),
        What::Step(args) => return step::main(&args, output),
    };
    let latency = outstanding == 1;
    let options = args.options(outstanding)?;
    let files = args.files()?;
    let mut outcomes = Vec::new();
    for engine in &args.engine {
        let shown = Shown::new(engine.name());
        outcomes.push(args.measure(*engine, latency, &options, shown)?);
    }
    for (outcome, files) in outcomes.iter().zip(files) {
        files.fill(outcome)?;
    }
    let rows: Vec<Row> = outcomes.into_iter().map(|outcome| outcome.row).collect();
    output::bytes(
        match output {
            Output::Json => to_json(&rows) + "\n",
            Output::Table => to_table(&rows),
        }
        .as_bytes(),
    )?;
    let mut reasons = rows.iter().filter_map(|row| row.unsupported.as_deref());
    match reasons.next() {
        Some(reason) if rows.iter().all(|row| row.unsupported.is_some()) => {
            Err(Failure::unsupported(format!("nothing could be measured: {reason}")).into())
        }
        _ => Ok(()),
    }
}

impl LoadArgs {
    fn options(&self, outstanding: usize) -> anyhow::Result<Options> {
        let load = match self.rate {
            Some(per_s) => Load::Open { per_s },
            None => Load::Closed {
                outstanding: self.outstanding.map_or(outstanding, |n| n as usize),
            },
        };
        Ok(Options {
            site: self.site.into(),
            client_wait: match self.wait {
                Wait::Blocking => datapath::Wait::Blocking,
                Wait::Polling => datapath::Wait::Polling,
            },
            value_bytes: self.value_bytes,
            load,
            rounds: usize::from(self.rounds),
            warmup: self.warmup,
            measure: self.seconds,
            priority: self.priority,
            interrupt: Some(interrupt()?),
        })
    }

    fn measure(
        &self,
        engine: Engine,
        latency: bool,
        options: &Options,
        mut shown: Shown,
    ) -> anyhow::Result<Outcome> {
        let parent = state_parent(self.data_directory.clone(), self.durability);
        let parent = parent.map_err(|error| no_place(&error))?;
        let program = std::env::current_exe().context("find this program")?;
        let mut target = LocalTarget::new(
            program,
            engine,
            parent,
            self.durability,
            self.wait,
            self.linger_us,
        )
        .unsupported(self.unsupported(engine));
        let mut progress = |progress| shown.show(progress);
        let measured = if latency && self.durability == Durability::Sync {
            run_with_flush_floor(&mut target, options, &mut progress)
        } else {
            run::run(&mut target, options, &mut progress)
        };
        measured.map_err(failed)
    }

    /// Why these flags do not go together, if so.
    fn unsupported(&self, engine: Engine) -> Option<String> {
        if let Some(reason) = self.site.unsupported(engine, self.durability) {
            return Some(reason);
        }
        let starves = self.wait == Wait::Polling
            && self.durability == Durability::Sync
            && self.priority.is_some();
        starves.then(|| {
            "a replica that polls with a priority starves the kernel's threads that finish its \
             flushes: leave --priority out"
                .into()
        })
    }

    /// The files to be written, made before anything is measured.
    fn files(&self) -> anyhow::Result<Vec<Files>> {
        let several = self.engine.len() > 1;
        let files = self.engine.iter().map(|engine| {
            let create = |path: &PathBuf| -> anyhow::Result<(PathBuf, File)> {
                let path = if several {
                    named(path, engine.name())
                } else {
                    path.clone()
                };
                let file =
                    File::create(&path).with_context(|| format!("create {}", path.display()))?;
                Ok((path, file))
            };
            Ok(Files {
                hgrm: self.hgrm.as_ref().map(create).transpose()?,
                plot: self.plot.as_ref().map(create).transpose()?,
            })
        });
        files.collect()
    }
}

/// `lat.svg` of the engine `xdp` is `lat-xdp.svg`.
fn named(path: &Path, engine: &str) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{engine}.{extension}"))
}

pub(super) fn no_place(error: &PlaceError) -> Failure {
    match error {
        PlaceError::InMemory { .. } => Failure::usage(error.to_string())
            .remedy("name a directory on a disk: --data-directory /var/tmp"),
        PlaceError::Io { .. } => Failure::failed(error.to_string())
            .remedy("name a directory that exists: --data-directory DIR"),
    }
}

pub(super) fn failed(error: bench::Error) -> anyhow::Error {
    match error {
        // Its kind decides the exit code.
        bench::Error::Datapath(error) => error.into(),
        bench::Error::TooLarge { .. } => Failure::usage(error.to_string())
            .remedy("give a smaller --value-bytes")
            .into(),
        error => error.into(),
    }
}

/// What becomes of one engine's latencies beside its row.
struct Files {
    hgrm: Option<(PathBuf, File)>,
    plot: Option<(PathBuf, File)>,
}

impl Files {
    fn fill(self, outcome: &Outcome) -> anyhow::Result<()> {
        if let Some((path, file)) = self.hgrm {
            let mut out = BufWriter::new(file);
            hgrm::write(&outcome.latencies, &mut out)
                .and_then(|()| out.flush())
                .with_context(|| format!("write {}", path.display()))?;
        }
        if let Some((path, mut file)) = self.plot {
            let setting = &outcome.row.setting;
            let series = [
                Series {
                    name: &setting.engine,
                    latencies: &outcome.latencies,
                },
                Series {
                    name: "UDP echo",
                    latencies: &outcome.floor_latencies,
                },
            ];
            let title = format!(
                "{} replicas on {}, {} durability, {}-byte values",
                setting.replicas, setting.site, setting.durability, setting.value_bytes
            );
            if let Some(picture) = plot::percentiles(&title, &series) {
                let bytes = match extension(&path).as_deref() {
                    Some("png") => picture.to_png().map_err(Failure::failed)?,
                    _ => picture.to_svg().into_bytes(),
                };
                file.write_all(&bytes)
                    .with_context(|| format!("write {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// Progress on standard error: a bar for people, a line per turn for logs.
pub(super) struct Shown {
    engine: &'static str,
    bar: Option<ProgressBar>,
    last: (&'static str, usize),
}

impl Shown {
    pub(super) fn new(engine: &'static str) -> Self {
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {msg}");
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(1000).with_prefix(engine);
            match style {
                Ok(style) => bar.with_style(style.progress_chars("=> ")),
                Err(_) => bar,
            }
        });
        Self {
            engine,
            bar,
            last: ("", 0),
        }
    }

    pub(super) fn show(&mut self, progress: Progress) {
        let Progress {
            what,
            round,
            rounds,
            part,
            done,
        } = progress;
        match &self.bar {
            Some(bar) => {
                bar.set_position((part * 1000.0) as u64);
                bar.set_message(format!("round {round} of {rounds}: {what}, {done} done"));
            }
            None if self.last != (what, round) => {
                eprintln!("{}: round {round} of {rounds}: {what}", self.engine);
            }
            None => {}
        }
        self.last = (what, round);
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
