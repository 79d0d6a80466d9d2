//! `nearwire bench groups`.

use super::bench::{interrupt, no_place, seconds};
use super::output::{self, Output};
use anyhow::{Context, ensure};
use bench::cluster::ClusterCaller;
use bench::load::{Generator, Load, Moment, Plan, latencies};
use bench::machine::Machine;
use bench::rounds::median;
use bench::spread::Spread;
use comfy_table::{CellAlignment, Table, presets};
use consensus::client::{self, Client};
use consensus::envelope::SESSION_WINDOW;
use consensus::{Epoch, GroupId};
use datapath::{Udp, Worker};
use nearwire::bench_target::state_parent;
use nearwire::config::{Durability, MAX_GROUPS, Region, Wait};
use nearwire::kv::{Call, Op};
use nearwire::local_cluster::{self, LocalCluster};
use nearwire::node::max_request_bytes;
use nearwire::run_directory::RunDirectory;
use serde::Serialize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a cluster may take to elect all leaders and to spread them.
const ELECTIONS: Duration = Duration::from_secs(60);
/// How long it may take to fall silent.
const SILENCE: Duration = Duration::from_secs(2);
/// How long answers are waited for at the end.
const PATIENCE: Duration = Duration::from_secs(5);

/// What many groups cost at rest, and what they carry under load, beside one group of the same run.
///
/// Three replicas and a client are started here, on loopback. At rest the packets of all replicas
/// are counted; then writes go to some of the groups, as many under way in all whatever the number
/// of groups.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Numbers of groups; the rates of the later ones are compared with that of the first.
    #[arg(
        long,
        env = "NEARWIRE_GROUPS",
        value_delimiter = ',',
        default_value = "1,1000",
        value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_GROUPS))
    )]
    groups: Vec<u16>,
    /// How replicas and client wait for packets.
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
    /// Groups that are written to, at the most.
    #[arg(
        long,
        env = "NEARWIRE_WRITTEN",
        value_name = "N",
        default_value_t = 12,
        value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_GROUPS))
    )]
    written: u16,
    /// Client threads, each with a part of the groups and of the writes under way.
    #[arg(
        long,
        env = "NEARWIRE_CLIENTS",
        value_name = "N",
        default_value_t = 2,
        value_parser = clap::value_parser!(u16).range(1..=64)
    )]
    clients: u16,
    /// Writes under way in all groups together.
    #[arg(
        long,
        env = "NEARWIRE_OUTSTANDING",
        value_name = "N",
        default_value_t = 768,
        value_parser = clap::value_parser!(u64).range(1..=SESSION_WINDOW)
    )]
    outstanding: u64,
    /// Length of a written value in bytes.
    #[arg(
        long,
        env = "NEARWIRE_VALUE_BYTES",
        value_name = "N",
        default_value_t = 64,
        value_parser = clap::value_parser!(u64).range(..=1024)
    )]
    value_bytes: u64,
    /// How often the numbers of groups take turns.
    #[arg(
        long,
        env = "NEARWIRE_ROUNDS",
        value_name = "N",
        default_value_t = 3,
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
}

/// The figures of one number of groups, medians of the rounds.
#[derive(Serialize)]
struct Row {
    schema: &'static str,
    groups: u16,
    replicas: u16,
    wait: &'static str,
    durability: &'static str,
    window_slots: u64,
    written: u16,
    clients: u16,
    outstanding: u64,
    value_bytes: u64,
    rounds: u16,
    measure_s: f64,
    elect_ms: f64,
    idle_packets_per_s: f64,
    idle_packets_per_s_max: f64,
    ops_per_s: f64,
    ops_per_s_rounds: Vec<f64>,
    ratio: f64,
    p50_us: f64,
    p99_us: f64,
    lost: u64,
    command_line: String,
    machine: Machine,
}

/// What one turn measured.
struct Turn {
    elect: Duration,
    idle_packets_per_s: f64,
    ops_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    lost: u64,
}

pub(crate) fn main(args: &Args, output: Output) -> anyhow::Result<()> {
    let interrupt = interrupt()?;
    let machine = Machine::read();
    let mut turns: Vec<Vec<Turn>> = args.groups.iter().map(|_| Vec::new()).collect();
    for round in 1..=args.rounds {
        for (groups, turns) in args.groups.iter().zip(&mut turns) {
            eprintln!("round {round} of {}: {groups} groups", args.rounds);
            turns.push(args.turn(*groups, interrupt)?);
            ensure!(!interrupt.load(Ordering::Relaxed), "interrupted");
        }
    }
    let mut rows: Vec<Row> = Vec::new();
    for (groups, turns) in args.groups.iter().zip(&turns) {
        let first = rows.first().map(|first| first.ops_per_s);
        rows.push(args.row(*groups, turns, first, machine.clone()));
    }
    let text = match output {
        Output::Json => serde_json::to_string_pretty(&rows)? + "\n",
        Output::Table => to_table(&rows),
    };
    output::bytes(text.as_bytes())
}

impl Args {
    fn launch(&self, groups: u16, directory: &RunDirectory) -> anyhow::Result<LocalCluster> {
        let program = std::env::current_exe().context("find this program")?;
        let mut options = local_cluster::Options::new(program, directory.path());
        options.durability = self.durability;
        options.wait = self.wait;
        options.settings = format!("\n[region]\ngroups = {groups}\n");
        let mut cluster = LocalCluster::prepare(options)?;
        cluster.start_all()?;
        Ok(cluster)
    }

    /// Starts a cluster, counts its packets at rest, writes to it, and ends it.
    fn turn(&self, groups: u16, interrupt: &'static AtomicBool) -> anyhow::Result<Turn> {
        let parent = state_parent(None, self.durability).map_err(|error| no_place(&error))?;
        let directory = RunDirectory::create(&parent, "nearwire-groups-", false)
            .with_context(|| format!("make a directory in {}", parent.display()))?;
        let mut cluster = self.launch(groups, &directory)?;
        let start = Instant::now();
        await_leaders(&mut cluster, groups)?;
        let elect = start.elapsed();
        let packets = self.idle(&cluster)?;
        let (ops_per_s, p50_us, p99_us, lost) = self.write(&cluster, groups, interrupt)?;
        drop(cluster);
        directory.remove()?;
        Ok(Turn {
            elect,
            idle_packets_per_s: packets,
            ops_per_s,
            p50_us,
            p99_us,
            lost,
        })
    }

    /// Packets that all replicas send in a second. Their reports are packets, too, one for each
    /// question.
    fn idle(&self, cluster: &LocalCluster) -> anyhow::Result<f64> {
        let sent = || -> anyhow::Result<u64> {
            let mut sum = 0;
            for replica in cluster.replicas() {
                let report = cluster.inspect(replica.node, Duration::from_secs(2));
                let report = report.context("a replica does not answer")?;
                sum += report["sent"].as_u64().context("no count of packets")?;
            }
            Ok(sum)
        };
        std::thread::sleep(SILENCE);
        let (before, start) = (sent()?, Instant::now());
        std::thread::sleep(self.seconds);
        let (after, elapsed) = (sent()?, start.elapsed());
        let reports = cluster.replicas().len() as u64;
        Ok((after - before).saturating_sub(reports) as f64 / elapsed.as_secs_f64())
    }

    fn write(
        &self,
        cluster: &LocalCluster,
        groups: u16,
        interrupt: &'static AtomicBool,
    ) -> anyhow::Result<(f64, f64, f64, u64)> {
        let wait = match self.wait {
            Wait::Blocking => datapath::Wait::Blocking,
            Wait::Polling => datapath::Wait::Polling,
        };
        let runs = (0..self.clients).map(|client| {
            let caller = self.caller(cluster, groups, client)?;
            let plan = Plan {
                load: Load::Closed {
                    outstanding: self.outstanding.div_ceil(u64::from(self.clients)) as usize,
                },
                warmup: self.warmup,
                measure: self.seconds,
                patience: PATIENCE,
            };
            let generator = Generator::new(caller, plan, |_: Moment| {});
            let datapath = Udp::bind(([127, 0, 0, 1], 0).into(), wait)?;
            let worker = Worker::new(datapath, generator.until(Some(interrupt)));
            Ok(worker.spawn("client")?)
        });
        let runs = runs.collect::<anyhow::Result<Vec<_>>>()?;
        let (mut per_s, mut lost) = (0.0, 0);
        let mut all = latencies();
        for run in runs {
            let ended = run.join();
            let Ok(worker) = ended else {
                anyhow::bail!("a client panicked");
            };
            let (_, generator) = worker?.into_parts();
            let (sample, _) = generator.finish();
            per_s += sample.per_s();
            lost += sample.lost;
            all.add(&sample.latencies).context("add latencies")?;
        }
        let us = |quantile| all.value_at_quantile(quantile) as f64 / 1e3;
        Ok((per_s, us(0.5), us(0.99), lost))
    }

    /// What a client writes: to its part of the groups, or to the one that there is.
    fn caller(&self, cluster: &LocalCluster, groups: u16, client: u16) -> anyhow::Result<Spread> {
        let written = self.written.min(groups);
        let sessions = written.max(self.clients);
        let each = self.outstanding.div_ceil(u64::from(sessions)) as usize;
        let value = vec![b'x'; self.value_bytes as usize];
        let own = (0..sessions).filter(|session| session % self.clients == client);
        let callers = own.map(|session| {
            let group = GroupId(session % written);
            let client = Client::new(client::Config {
                members: cluster.members(),
                group,
                epoch: Epoch(1),
                max_value: max_request_bytes(Region::of(groups).value_bytes),
                max_in_flight: each,
                seed: u64::from(std::process::id()) << 16 | u64::from(session),
            })?;
            let value = value.clone();
            let command = Box::new(move |number: u64, out: &mut Vec<u8>| {
                let key = format!("key:{:04}", number % 1024);
                let call = Call {
                    op: Op::Set,
                    arguments: [key.as_bytes(), &value].into_iter().collect(),
                };
                call.encode(out);
            });
            Ok((group, ClusterCaller::new(client, None, command)))
        });
        Ok(Spread::new(
            callers.collect::<Result<_, client::ConfigError>>()?,
        ))
    }

    fn row(&self, groups: u16, turns: &[Turn], first: Option<f64>, machine: Machine) -> Row {
        let middle =
            |figure: fn(&Turn) -> f64| median(turns.iter().map(figure)).unwrap_or_default();
        let idle = turns.iter().map(|turn| turn.idle_packets_per_s);
        let ops_per_s = middle(|turn| turn.ops_per_s);
        Row {
            schema: "nearwire.bench.groups/1",
            groups,
            replicas: 3,
            wait: match self.wait {
                Wait::Blocking => "blocking",
                Wait::Polling => "polling",
            },
            durability: self.durability.name(),
            window_slots: Region::of(groups).window_slots,
            written: self.written.min(groups),
            clients: self.clients,
            outstanding: self.outstanding,
            value_bytes: self.value_bytes,
            rounds: self.rounds,
            measure_s: self.seconds.as_secs_f64(),
            elect_ms: middle(|turn| turn.elect.as_secs_f64() * 1e3),
            idle_packets_per_s: middle(|turn| turn.idle_packets_per_s),
            idle_packets_per_s_max: idle.fold(0.0, f64::max),
            ops_per_s,
            ops_per_s_rounds: turns.iter().map(|turn| turn.ops_per_s.round()).collect(),
            ratio: ops_per_s / first.unwrap_or(ops_per_s),
            p50_us: middle(|turn| turn.p50_us),
            p99_us: middle(|turn| turn.p99_us),
            lost: turns.iter().map(|turn| turn.lost).sum(),
            command_line: std::env::args().collect::<Vec<_>>().join(" "),
            machine,
        }
    }
}

/// Waits until every group has a leader, and no replica leads more than its part.
fn await_leaders(cluster: &mut LocalCluster, groups: u16) -> anyhow::Result<()> {
    if groups == 1 {
        cluster.leader(ELECTIONS)?;
        return Ok(());
    }
    let replicas = cluster.replicas().len() as u64;
    let part = u64::from(groups).div_ceil(replicas);
    let deadline = Instant::now() + ELECTIONS;
    while Instant::now() < deadline {
        cluster.check()?;
        let led = (1..=replicas as u16).map(|node| {
            let report = cluster.inspect(node, Duration::from_millis(500))?;
            report["groups"]["led"].as_u64()
        });
        let led: Option<Vec<u64>> = led.collect();
        let is_spread = |led: &Vec<u64>| {
            led.iter().sum::<u64>() == u64::from(groups) && led.iter().all(|led| *led <= part)
        };
        if led.as_ref().is_some_and(is_spread) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    anyhow::bail!("{groups} groups have not had their leaders spread evenly within {ELECTIONS:?}")
}

fn to_table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "groups",
        "wait",
        "elected ms",
        "idle packets/s",
        "writes/s",
        "ratio",
        "p50 µs",
        "p99 µs",
    ]);
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for row in rows {
        table.add_row([
            row.groups.to_string(),
            row.wait.into(),
            format!("{:.0}", row.elect_ms),
            format!("{:.0}", row.idle_packets_per_s),
            format!("{:.0}", row.ops_per_s),
            format!("{:.2}", row.ratio),
            format!("{:.0}", row.p50_us),
            format!("{:.0}", row.p99_us),
        ]);
    }
    format!("{}\n", table.trim_fmt())
}
