//! `nearwire bench reads`.

use super::bench::{Shown, Site, failed, interrupt, no_place, seconds};
use super::output::{self, Output};
use anyhow::Context;
use bench::machine::Machine;
use bench::rounds::{Turn, median};
use bench::site;
use comfy_table::{CellAlignment, Table, presets};
use nearwire::bench_target::{Engine, LocalTarget, state_parent};
use nearwire::config::{Durability, Reads, Wait, Worker};
use nearwire::read_trial::{self, Kind, Lap, Options};
use serde::Serialize;
use std::time::Duration;

/// How many replicas there are.
const REPLICAS: usize = 3;

/// Reads over RESP, by each way to be sure of them, beside writes and an echo that speaks RESP.
///
/// In every round an echo in the leader's place and fresh clusters of three replicas take turns:
/// each is asked on one connection for its latency, then on many for its rate. The fronts of the
/// replicas sleep while they have nothing to do, and so does the echo.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  sudo nearwire bench reads --where netns --priority 10 --output json
  nearwire bench reads --connections 128 --pipeline 1    many clients that wait for each answer")]
pub(crate) struct Args {
    /// What lies between the parties.
    #[arg(
        long = "where",
        env = "NEARWIRE_WHERE",
        value_enum,
        default_value = "loopback"
    )]
    site: Site,
    /// How the replicas' workers and the client wait.
    #[arg(long, env = "NEARWIRE_WAIT", value_enum, default_value = "blocking")]
    wait: Wait,
    /// What a write outlives.
    #[arg(
        long,
        env = "NEARWIRE_DURABILITY",
        value_enum,
        default_value = "volatile"
    )]
    durability: Durability,
    /// Connections for the rates.
    #[arg(
        long,
        env = "NEARWIRE_CONNECTIONS",
        value_name = "N",
        default_value_t = 32,
        value_parser = clap::value_parser!(u16).range(1..=4096)
    )]
    connections: u16,
    /// Requests under way on each of them.
    #[arg(
        long,
        env = "NEARWIRE_PIPELINE",
        value_name = "N",
        default_value_t = 16,
        value_parser = clap::value_parser!(u16).range(1..=64)
    )]
    pipeline: u16,
    /// Length of a value in bytes.
    #[arg(
        long,
        env = "NEARWIRE_VALUE_BYTES",
        value_name = "N",
        default_value_t = 64,
        value_parser = clap::value_parser!(u16).range(..=1024)
    )]
    value_bytes: u16,
    /// How often all take turns.
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
        default_value = "1",
        value_parser = seconds
    )]
    seconds: Duration,
    /// Time before each measurement in which nothing is recorded.
    #[arg(
        long,
        env = "NEARWIRE_WARMUP",
        value_name = "S",
        default_value = "0.3",
        value_parser = seconds
    )]
    warmup: Duration,
    /// SCHED_FIFO priority of replicas, client and echo. A replica's worker that polls is one below.
    #[arg(
        long,
        env = "NEARWIRE_PRIORITY",
        value_name = "1-99",
        value_parser = clap::value_parser!(u8).range(1..=99)
    )]
    priority: Option<u8>,
}

/// One kind's figures: the medians of the rounds. Ratios are taken within a round.
#[derive(Serialize)]
struct Row {
    schema: &'static str,
    what: &'static str,
    #[serde(rename = "where")]
    site: &'static str,
    /// How the workers and the client wait.
    wait: &'static str,
    /// How the fronts and the echo wait.
    front_wait: &'static str,
    durability: &'static str,
    priority: Option<u8>,
    replicas: usize,
    connections: u16,
    pipeline: u16,
    value_bytes: u16,
    rounds: u16,
    warmup_s: f64,
    measure_s: f64,
    /// On one connection.
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    /// On many connections.
    ops_per_s: Option<f64>,
    many_p99_us: Option<f64>,
    cpu_us_per_op: Option<f64>,
    lost: u64,
    ratio_p50_echo: Option<f64>,
    ratio_rate_echo: Option<f64>,
    ratio_rate_set: Option<f64>,
    /// The ratio to the echo's latency of each round.
    ratios_p50_echo: Vec<f64>,
    command_line: String,
    machine: Machine,
}

pub(crate) fn main(args: &Args, output: Output) -> anyhow::Result<()> {
    let interrupt = interrupt()?;
    let options = Options {
        rounds: usize::from(args.rounds),
        warmup: args.warmup,
        measure: args.seconds,
        connections: usize::from(args.connections),
        pipeline: usize::from(args.pipeline),
        value_bytes: usize::from(args.value_bytes),
        client_wait: match args.wait {
            Wait::Blocking => datapath::Wait::Blocking,
            Wait::Polling => datapath::Wait::Polling,
        },
        interrupt,
    };
    let parent = state_parent(None, args.durability).map_err(|error| no_place(&error))?;
    let program = std::env::current_exe().context("find this program")?;
    let target = |reads: Reads| {
        LocalTarget::new(
            &program,
            Engine::Software,
            &parent,
            args.durability,
            args.wait,
            Worker::default().linger_us,
        )
        .serving_redis(reads)
    };
    let site = site::Site::open(args.site.into(), REPLICAS, args.priority).map_err(failed)?;
    let mut shown = Shown::new("reads");
    let mut progress = |progress| shown.show(progress);
    let rounds = read_trial::run(target, &site, &options, &mut progress).map_err(failed)?;
    drop(shown);
    let machine = Machine::read();
    let rows: Vec<Row> = Kind::ALL
        .into_iter()
        .map(|kind| args.row(kind, &rounds, machine.clone()))
        .collect();
    let text = match output {
        Output::Json => serde_json::to_string_pretty(&rows)? + "\n",
        Output::Table => to_table(&rows),
    };
    output::bytes(text.as_bytes())
}

impl Args {
    fn row(&self, kind: Kind, rounds: &[Vec<Lap>], machine: Machine) -> Row {
        let lap = |round: &Vec<Lap>, kind: Kind| -> Option<Lap> {
            round.iter().find(|lap| lap.kind == kind).cloned()
        };
        let of = |pick: &dyn Fn(&Lap) -> Option<f64>| {
            let laps = rounds.iter().filter_map(|round| lap(round, kind));
            median(laps.filter_map(|lap| pick(&lap)))
        };
        let ratios = |other: Kind, pick: &dyn Fn(&Lap) -> f64| -> Vec<f64> {
            let pairs = rounds
                .iter()
                .filter_map(|round| lap(round, kind).zip(lap(round, other)));
            pairs
                .map(|(own, other)| pick(&own) / pick(&other))
                .filter(|ratio| ratio.is_finite())
                .collect()
        };
        let us = |turn: &Turn, quantile: f64| {
            (!turn.sample.latencies.is_empty()).then(|| turn.sample.latency_us(quantile))
        };
        let p50 = |lap: &Lap| lap.one.sample.latency_us(0.5);
        let rate = |lap: &Lap| lap.many.sample.per_s();
        let ratios_p50_echo = ratios(Kind::Echo, &p50);
        Row {
            schema: "nearwire.bench.reads/1",
            what: kind.name(),
            site: site::Where::from(self.site).name(),
            wait: match self.wait {
                Wait::Blocking => "blocking",
                Wait::Polling => "polling",
            },
            front_wait: "blocking",
            durability: self.durability.name(),
            priority: self.priority,
            replicas: REPLICAS,
            connections: self.connections,
            pipeline: self.pipeline,
            value_bytes: self.value_bytes,
            rounds: self.rounds,
            warmup_s: self.warmup.as_secs_f64(),
            measure_s: self.seconds.as_secs_f64(),
            p50_us: of(&|lap| us(&lap.one, 0.5)),
            p99_us: of(&|lap| us(&lap.one, 0.99)),
            ops_per_s: of(&|lap| Some(rate(lap))),
            many_p99_us: of(&|lap| us(&lap.many, 0.99)),
            cpu_us_per_op: of(&|lap| lap.many.cpu_us_per_op),
            lost: rounds
                .iter()
                .filter_map(|round| lap(round, kind))
                .map(|lap| lap.one.sample.lost + lap.many.sample.lost)
                .sum(),
            ratio_p50_echo: median(ratios_p50_echo.iter().copied()),
            ratio_rate_echo: median(ratios(Kind::Echo, &rate)),
            ratio_rate_set: median(ratios(Kind::Set, &rate)),
            ratios_p50_echo,
            command_line: std::env::args().collect::<Vec<_>>().join(" "),
            machine,
        }
    }
}

fn to_table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "what",
        "where",
        "wait",
        "p50 us",
        "p99 us",
        "/ echo",
        "connections",
        "per s",
        "p99 us",
        "CPU us",
        "/ echo",
        "/ set",
        "lost",
    ]);
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let shown = |number: Option<f64>, digits: usize| {
        number.map_or("-".into(), |number| format!("{number:.digits$}"))
    };
    for row in rows {
        table.add_row([
            row.what.into(),
            row.site.into(),
            row.wait.into(),
            shown(row.p50_us, 1),
            shown(row.p99_us, 1),
            shown(row.ratio_p50_echo, 2),
            format!("{} x {}", row.connections, row.pipeline),
            shown(row.ops_per_s, 0),
            shown(row.many_p99_us, 1),
            shown(row.cpu_us_per_op, 1),
            shown(row.ratio_rate_echo, 2),
            shown(row.ratio_rate_set, 2),
            row.lost.to_string(),
        ]);
    }
    format!("{}\n", table.trim_fmt())
}
