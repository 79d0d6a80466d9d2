//! `nearwire bench catch-up`.

use super::bench::{Site, failed, interrupt, no_place, seconds};
use super::output;
use super::output::Output;
use anyhow::Context;
use bench::machine::Machine;
use bench::site;
use comfy_table::{CellAlignment, Table, presets};
use consensus::envelope::SESSION_WINDOW;
use indicatif::{ProgressBar, ProgressStyle};
use nearwire::bench_target::{Engine, LocalTarget, state_parent};
use nearwire::catch_up_trial::{self, Latency, Options, Outcome, Progress};
use nearwire::config::{CatchUp, Durability, Wait, Worker};
use serde::Serialize;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Bring a follower back that is a million slots behind: how long until it is level, and what
/// clients notice of it.
///
/// Three replicas and a client are started here. A follower is killed, the others decide a million
/// slots, then it is started again while writes go on at a constant rate. Its time is compared with
/// plain copies of the same bytes between the same two places.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  sudo nearwire bench catch-up --where netns --output json
  sudo nearwire bench catch-up --where netns --keys 1000000     a state as long as the log
  sudo nearwire bench catch-up --where netns --pause --slots 2000 --seconds 0.3
                                       a gap that the others still keep: it learns slot by slot
  nearwire bench catch-up --slots 100000                        shorter, on loopback")]
pub(crate) struct Args {
    /// What lies between the parties.
    #[arg(
        long = "where",
        env = "NEARWIRE_WHERE",
        value_enum,
        default_value = "loopback"
    )]
    site: Site,
    /// What a commit outlives.
    #[arg(
        long,
        env = "NEARWIRE_DURABILITY",
        value_enum,
        default_value = "volatile"
    )]
    durability: Durability,
    /// Slots that the follower misses.
    #[arg(
        long,
        env = "NEARWIRE_SLOTS",
        value_name = "N",
        default_value_t = 1_000_000,
        value_parser = clap::value_parser!(u64).range(1..=100_000_000)
    )]
    slots: u64,
    /// Stop the follower with SIGSTOP instead of killing it: it keeps its state.
    #[arg(long, env = "NEARWIRE_PAUSE")]
    pause: bool,
    /// Writes that arise in a second while it catches up, and in the calm before.
    #[arg(
        long,
        env = "NEARWIRE_RATE",
        value_name = "PER_S",
        default_value_t = 2000
    )]
    rate: u32,
    /// What a replica teaches in a second at the most: catch_up.bytes_per_s; 0 is no limit.
    #[arg(
        long,
        env = "NEARWIRE_BYTES_PER_S",
        value_name = "N",
        default_value_t = CatchUp::default().bytes_per_s
    )]
    bytes_per_s: u64,
    /// Writes under way while the slots are written.
    #[arg(
        long,
        env = "NEARWIRE_OUTSTANDING",
        value_name = "N",
        default_value_t = 32,
        value_parser = clap::value_parser!(u64).range(1..=SESSION_WINDOW)
    )]
    outstanding: u64,
    /// Keys that are written in turn: what the state holds.
    #[arg(
        long,
        env = "NEARWIRE_KEYS",
        value_name = "N",
        default_value_t = 100_000,
        value_parser = clap::value_parser!(u64).range(1..=100_000_000)
    )]
    keys: u64,
    /// Length of a written value in bytes.
    #[arg(
        long,
        env = "NEARWIRE_VALUE_BYTES",
        value_name = "N",
        default_value_t = 64
    )]
    value_bytes: usize,
    /// Time in which the writes are looked at before the follower goes, and before it comes back.
    #[arg(
        long,
        env = "NEARWIRE_SECONDS",
        value_name = "S",
        default_value = "3",
        value_parser = seconds
    )]
    seconds: Duration,
    /// SCHED_FIFO priority of replicas, client and copies.
    #[arg(
        long,
        env = "NEARWIRE_PRIORITY",
        value_name = "1-99",
        value_parser = clap::value_parser!(u8).range(1..=99)
    )]
    priority: Option<u8>,
}

/// The figures. `docs/benchmarks.md` describes them.
#[derive(Serialize)]
struct Row {
    schema: &'static str,
    engine: &'static str,
    #[serde(rename = "where")]
    site: &'static str,
    durability: &'static str,
    priority: Option<u8>,
    away: &'static str,
    offered_per_s: u32,
    bytes_per_s: u64,
    keys: u64,
    value_bytes: usize,
    slots_behind: u64,
    bytes_behind: u64,
    snapshots: u64,
    slots_learned: u64,
    bytes_taught: u64,
    caught_up_s: f64,
    restored_s: Option<f64>,
    udp_copy_s: f64,
    tcp_copy_s: f64,
    udp_copy_behind_s: f64,
    tcp_copy_behind_s: f64,
    ratio: Option<f64>,
    ratio_behind: Option<f64>,
    before: Latency,
    away_latency: Latency,
    during: Latency,
    p50_rise: Option<f64>,
    p99_rise: Option<f64>,
    leader_cpu: f64,
    follower_cpu: f64,
    learner_cpu: f64,
    failed: u64,
    command_line: String,
    machine: Machine,
}

pub(crate) fn main(args: &Args, output: Output) -> anyhow::Result<()> {
    let interrupt = interrupt()?;
    let options = Options {
        slots: args.slots,
        pause: args.pause,
        per_s: f64::from(args.rate.max(1)),
        outstanding: args.outstanding as usize,
        keys: args.keys,
        value_bytes: args.value_bytes,
        calm: args.seconds,
    };
    let machine = Machine::read();
    let parent = state_parent(None, args.durability).map_err(|error| no_place(&error))?;
    let mut target = LocalTarget::new(
        std::env::current_exe().context("find this program")?,
        Engine::Software,
        parent,
        args.durability,
        Wait::Blocking,
        Worker::default().linger_us,
    )
    .configured(format!("[catch_up]\nbytes_per_s = {}\n", args.bytes_per_s));
    let replicas = bench::run::Target::description(&target).replicas;
    let site = site::Site::open(args.site.into(), replicas, args.priority).map_err(failed)?;
    let mut shown = Shown::new();
    let outcome = catch_up_trial::run(&mut target, &site, &options, interrupt, &mut |progress| {
        shown.show(progress);
    })
    .map_err(|error| anyhow::anyhow!("{error}"))?;
    drop(shown);
    let row = args.row(&outcome, machine);
    let text = match output {
        Output::Json => serde_json::to_string_pretty(&[&row])? + "\n",
        Output::Table => to_table(&row),
    };
    output::bytes(text.as_bytes())
}

impl Args {
    fn row(&self, outcome: &Outcome, machine: Machine) -> Row {
        let [leader_cpu, follower_cpu, learner_cpu] = outcome.cpu.map(thousandths);
        let seconds = |time: Duration| thousandths(time.as_secs_f64());
        let ratio = |copy: Duration| quotient(outcome.caught_up.as_secs_f64(), copy.as_secs_f64());
        Row {
            schema: "nearwire.bench.catch-up/1",
            engine: Engine::Software.name(),
            site: site::Where::from(self.site).name(),
            durability: self.durability.name(),
            priority: self.priority,
            away: if self.pause { "stopped" } else { "killed" },
            offered_per_s: self.rate,
            bytes_per_s: self.bytes_per_s,
            keys: self.keys,
            value_bytes: self.value_bytes,
            slots_behind: outcome.slots_behind,
            bytes_behind: outcome.bytes_behind,
            snapshots: outcome.snapshots,
            slots_learned: outcome.slots_learned,
            bytes_taught: outcome.bytes_taught,
            caught_up_s: seconds(outcome.caught_up),
            restored_s: outcome.restored.map(seconds),
            udp_copy_s: seconds(outcome.udp_copy),
            tcp_copy_s: seconds(outcome.tcp_copy),
            udp_copy_behind_s: seconds(outcome.udp_copy_behind),
            tcp_copy_behind_s: seconds(outcome.tcp_copy_behind),
            ratio: ratio(outcome.udp_copy),
            ratio_behind: ratio(outcome.udp_copy_behind),
            before: outcome.before,
            away_latency: outcome.away,
            during: outcome.during,
            p50_rise: quotient(outcome.during.p50_us, outcome.before.p50_us),
            p99_rise: quotient(outcome.during.p99_us, outcome.before.p99_us),
            leader_cpu,
            follower_cpu,
            learner_cpu,
            failed: outcome.failed,
            command_line: std::env::args().collect::<Vec<_>>().join(" "),
            machine,
        }
    }
}

fn thousandths(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

/// None where there was nothing to compare with.
fn quotient(one: f64, other: f64) -> Option<f64> {
    Some(one / other)
        .filter(|quotient| quotient.is_finite())
        .map(thousandths)
}

fn times(quotient: Option<f64>) -> String {
    quotient.map_or_else(|| "-".to_owned(), |quotient| format!("{quotient:.2}"))
}

fn to_table(row: &Row) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let latency = |one: &Latency| {
        format!(
            "p50 {:.0} µs, p99 {:.0} µs, {} writes",
            one.p50_us, one.p99_us, one.writes
        )
    };
    let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    let lines = [
        (
            "behind",
            format!(
                "{} slots, {}",
                row.slots_behind,
                megabytes(row.bytes_behind)
            ),
        ),
        (
            "taught",
            format!(
                "{}: {} snapshots, {} slots",
                megabytes(row.bytes_taught),
                row.snapshots,
                row.slots_learned
            ),
        ),
        ("level after", format!("{:.3} s", row.caught_up_s)),
        (
            "plain copy of what was taught",
            format!("UDP {:.3} s, TCP {:.3} s", row.udp_copy_s, row.tcp_copy_s),
        ),
        (
            "plain copy of what it lacked",
            format!(
                "UDP {:.3} s, TCP {:.3} s",
                row.udp_copy_behind_s, row.tcp_copy_behind_s
            ),
        ),
        (
            "ratio to the UDP copies",
            format!("{} and {}", times(row.ratio), times(row.ratio_behind)),
        ),
        ("writes before", latency(&row.before)),
        ("writes without it", latency(&row.away_latency)),
        ("writes meanwhile", latency(&row.during)),
        (
            "rise",
            format!(
                "p50 × {}, p99 × {}",
                times(row.p50_rise),
                times(row.p99_rise)
            ),
        ),
        (
            "CPUs: leader, follower, learner",
            format!(
                "{:.2}, {:.2}, {:.2}",
                row.leader_cpu, row.follower_cpu, row.learner_cpu
            ),
        ),
    ];
    for (name, value) in lines {
        table.add_row([name.to_owned(), value]);
    }
    if let Some(column) = table.column_mut(0) {
        column.set_cell_alignment(CellAlignment::Left);
    }
    format!("{}\n", table.trim_fmt())
}

/// Progress on standard error: a bar for people, a line at each step for logs.
struct Shown {
    bar: Option<ProgressBar>,
    last: Option<&'static str>,
    began: Instant,
}

impl Shown {
    fn new() -> Self {
        let style = ProgressStyle::with_template("catch-up [{bar:30}] {msg}");
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(1000);
            match style {
                Ok(style) => bar.with_style(style.progress_chars("=> ")),
                Err(_) => bar,
            }
        });
        Self {
            bar,
            last: None,
            began: Instant::now(),
        }
    }

    fn show(&mut self, progress: Progress) {
        let (step, part, more) = match progress {
            Progress::Before => ("writes while all are level", 0.0, String::new()),
            Progress::Writing(part) => (
                "slots are written while a follower is away",
                part.min(1.0),
                format!(", {:.0} %", part * 100.0),
            ),
            Progress::Away => ("writes while it is away", 1.0, String::new()),
            Progress::CatchingUp(slots) => ("it catches up", 1.0, format!(", {slots} slots to go")),
            Progress::Copying => ("plain copies of the bytes", 1.0, String::new()),
        };
        if let Some(bar) = &self.bar {
            bar.set_position((part * 1000.0) as u64);
            bar.set_message(format!("{step}{more}"));
        } else if self.last != Some(step) {
            let after = self.began.elapsed().as_secs();
            eprintln!("catch-up: {step} ({after} s)");
        }
        self.last = Some(step);
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_nothing_to_be_compared_with_has_no_quotient() {
        assert_eq!(quotient(1.0, 0.0), None);
        assert_eq!(quotient(0.0, 0.0), None);
        assert_eq!(quotient(1.0, 3.0), Some(0.333));
    }
}
