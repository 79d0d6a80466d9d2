//! `nearwire bench failover`.

use super::bench::{Site, failed, interrupt, no_place, seconds};
use super::output::Output;
use super::{Failure, output};
use anyhow::Context;
use bench::machine::Machine;
use bench::site;
use clap::ValueEnum;
use comfy_table::{CellAlignment, Table, presets};
use consensus::envelope::SESSION_WINDOW;
use indicatif::{ProgressBar, ProgressStyle};
use nearwire::bench_target::{Engine, LocalTarget, state_parent};
use nearwire::config::{Durability, Wait, Worker};
use nearwire::failover_trial::{self, Options, Outcome, Progress};
use serde::Serialize;
use std::io::IsTerminal;
use std::time::Duration;

/// Kill or replace the leader under load, again and again: how long clients wait.
///
/// Three replicas and a client are started here. In each trial the leader is killed with SIGKILL,
/// and the longest time between two acknowledged writes is its figure; then it is started again.
/// Or it hands over, or all members are replaced by three others. An election between two trials
/// is a false one.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  sudo nearwire bench failover --where netns --priority 10 --output json
  sudo nearwire bench failover --where netns --priority 10 --wait polling
  sudo nearwire bench failover --where netns --cause replace --trials 20
  sudo nearwire bench failover --where netns --trials 0 --calm-seconds 600 --burners 4
                                                 no trials: does load make anyone campaign?")]
pub(crate) struct Args {
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
    /// How replicas and client wait for packets, and so how they watch their leader: sleeping, or
    /// on a CPU of their own.
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
    /// Why another node comes to lead.
    #[arg(long, env = "NEARWIRE_CAUSE", value_enum, default_value = "kill")]
    cause: Cause,
    /// How often one does.
    #[arg(
        long,
        env = "NEARWIRE_TRIALS",
        value_name = "N",
        default_value_t = 200,
        value_parser = clap::value_parser!(u16).range(0..=10_000)
    )]
    trials: u16,
    /// Undisturbed writing before each trial.
    #[arg(
        long,
        env = "NEARWIRE_SETTLE",
        value_name = "S",
        default_value = "0.5",
        value_parser = seconds
    )]
    settle: Duration,
    /// Undisturbed writing after the last trial, in which nobody may be elected.
    #[arg(long, env = "NEARWIRE_CALM_SECONDS", value_name = "S", value_parser = seconds)]
    calm_seconds: Option<Duration>,
    /// Threads beside the calm that do nothing but spin, at the default priority: one for each CPU
    /// is a full load, for replicas with a --priority as far as the kernel keeps time for others.
    #[arg(
        long,
        env = "NEARWIRE_BURNERS",
        value_name = "N",
        default_value_t = 0,
        value_parser = clap::value_parser!(u16).range(0..=1024)
    )]
    burners: u16,
    /// Writes under way.
    #[arg(
        long,
        env = "NEARWIRE_OUTSTANDING",
        value_name = "N",
        default_value_t = 32,
        value_parser = clap::value_parser!(u64).range(1..=SESSION_WINDOW)
    )]
    outstanding: u64,
    /// Length of a written value in bytes.
    #[arg(
        long,
        env = "NEARWIRE_VALUE_BYTES",
        value_name = "N",
        default_value_t = 64
    )]
    value_bytes: usize,
    /// SCHED_FIFO priority of replicas and client.
    #[arg(
        long,
        env = "NEARWIRE_PRIORITY",
        value_name = "1-99",
        value_parser = clap::value_parser!(u8).range(1..=99)
    )]
    priority: Option<u8>,
}

/// Why another node comes to lead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Cause {
    /// SIGKILL.
    Kill,
    /// It is asked to hand over to another.
    Move,
    /// All members are replaced by three others, which ran beside them.
    Replace,
}

impl From<Cause> for failover_trial::Cause {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Kill => Self::Kill,
            Cause::Move => Self::Move,
            Cause::Replace => Self::Replace,
        }
    }
}

/// One engine's figures. Times are in milliseconds.
#[derive(Serialize)]
struct Row {
    schema: &'static str,
    engine: &'static str,
    mode: String,
    #[serde(rename = "where")]
    site: &'static str,
    wait: &'static str,
    durability: &'static str,
    priority: Option<u8>,
    outstanding: u64,
    value_bytes: usize,
    cause: Cause,
    trials: usize,
    p50_ms: Option<f64>,
    p90_ms: Option<f64>,
    p99_ms: Option<f64>,
    max_ms: Option<f64>,
    false_elections: u64,
    calm_s: f64,
    burners: u16,
    calm_elections: u64,
    acknowledged: u64,
    failed: u64,
    gaps_ms: Vec<f64>,
    unsupported: Option<String>,
    command_line: String,
    machine: Machine,
}

pub(crate) fn main(args: &Args, output: Output) -> anyhow::Result<()> {
    let interrupt = interrupt()?;
    let cause = failover_trial::Cause::from(args.cause);
    let options = Options {
        cause,
        trials: usize::from(args.trials),
        settle: args.settle,
        calm: args.calm_seconds.unwrap_or_default(),
        burners: usize::from(args.burners),
        outstanding: args.outstanding as usize,
        value_bytes: args.value_bytes,
        client_wait: match args.wait {
            Wait::Blocking => datapath::Wait::Blocking,
            Wait::Polling => datapath::Wait::Polling,
        },
    };
    let machine = Machine::read();
    let mut rows = Vec::new();
    for &engine in &args.engine {
        let parent = state_parent(None, args.durability).map_err(|error| no_place(&error))?;
        let program = std::env::current_exe().context("find this program")?;
        let linger_us = Worker::default().linger_us;
        let mut target = LocalTarget::new(
            program,
            engine,
            parent,
            args.durability,
            args.wait,
            linger_us,
        )
        .with_strangers(|members| cause.strangers(members));
        let unsupported = args
            .site
            .unsupported(engine, args.durability)
            .or_else(|| crowded(target.nodes() + 1, args.priority));
        let outcome = match &unsupported {
            Some(_) => Outcome::default(),
            None => {
                let replicas = target.nodes();
                let site =
                    site::Site::open(args.site.into(), replicas, args.priority).map_err(failed)?;
                let mut shown = Shown::new(engine, options.trials);
                let mut progress = |progress| shown.show(progress);
                failover_trial::run(&mut target, &site, &options, interrupt, &mut progress)
                    .map_err(|error| anyhow::anyhow!("{}: {error}", engine.name()))?
            }
        };
        let mode = bench::run::Target::description(&target).mode;
        rows.push(args.row(engine, mode, &outcome, unsupported, machine.clone()));
    }
    let text = match output {
        Output::Json => serde_json::to_string_pretty(&rows)? + "\n",
        Output::Table => to_table(&rows),
    };
    output::bytes(text.as_bytes())?;
    match rows.iter().find_map(|row| row.unsupported.as_deref()) {
        Some(reason) if rows.iter().all(|row| row.unsupported.is_some()) => {
            Err(Failure::unsupported(format!("nothing could be measured: {reason}")).into())
        }
        _ => Ok(()),
    }
}

/// Threads with one SCHED_FIFO priority do not take turns.
fn crowded(parties: usize, priority: Option<u8>) -> Option<String> {
    let cpus = site::allowed_cpus().len();
    (priority.is_some() && cpus < parties).then(|| {
        format!(
            "{parties} parties share {cpus} CPUs, on which those with a priority keep each other \
             waiting: leave out `--priority`"
        )
    })
}

impl Args {
    fn row(
        &self,
        engine: Engine,
        mode: String,
        outcome: &Outcome,
        unsupported: Option<String>,
        machine: Machine,
    ) -> Row {
        let gaps = outcome.gaps.iter().map(|gap| gap.as_secs_f64() * 1e3);
        let gaps: Vec<f64> = gaps.map(|gap| (gap * 1e3).round() / 1e3).collect();
        let mut sorted = gaps.clone();
        sorted.sort_by(f64::total_cmp);
        // The smallest gap that is not exceeded by this part of all.
        let quantile = |part: f64| {
            let at = (part * sorted.len() as f64).ceil() as usize;
            sorted.get(at.saturating_sub(1)).copied()
        };
        Row {
            schema: "nearwire.bench.failover/1",
            engine: engine.name(),
            mode,
            site: site::Where::from(self.site).name(),
            wait: match self.wait {
                Wait::Blocking => "blocking",
                Wait::Polling => "polling",
            },
            durability: self.durability.name(),
            priority: self.priority,
            outstanding: self.outstanding,
            value_bytes: self.value_bytes,
            cause: self.cause,
            trials: gaps.len(),
            p50_ms: quantile(0.5),
            p90_ms: quantile(0.9),
            p99_ms: quantile(0.99),
            max_ms: quantile(1.0),
            false_elections: outcome.false_elections,
            calm_s: self.calm_seconds.unwrap_or_default().as_secs_f64(),
            burners: self.burners,
            calm_elections: outcome.calm_elections,
            acknowledged: outcome.acknowledged,
            failed: outcome.failed,
            gaps_ms: gaps,
            unsupported,
            command_line: std::env::args().collect::<Vec<_>>().join(" "),
            machine,
        }
    }
}

fn to_table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "engine",
        "where",
        "wait",
        "trials",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "max ms",
        "false elections",
        "calm s",
        "burners",
        "elections in it",
    ]);
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let ms = |gap: Option<f64>| gap.map_or("-".into(), |gap| format!("{gap:.1}"));
    for row in rows {
        table.add_row([
            row.engine.into(),
            row.site.into(),
            row.wait.into(),
            row.trials.to_string(),
            ms(row.p50_ms),
            ms(row.p90_ms),
            ms(row.p99_ms),
            ms(row.max_ms),
            row.false_elections.to_string(),
            row.calm_s.to_string(),
            row.burners.to_string(),
            row.calm_elections.to_string(),
        ]);
    }
    let notes = rows.iter().filter_map(|row| {
        let reason = row.unsupported.as_deref()?;
        Some(format!("{}: not measured: {reason}\n", row.engine))
    });
    format!("{}\n{}", table.trim_fmt(), notes.collect::<String>())
}

/// Progress on standard error: a bar for people, a line now and then for logs.
struct Shown {
    engine: Engine,
    trials: usize,
    bar: Option<ProgressBar>,
}

impl Shown {
    fn new(engine: Engine, trials: usize) -> Self {
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {msg}");
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(1000).with_prefix(engine.name());
            match style {
                Ok(style) => bar.with_style(style.progress_chars("=> ")),
                Err(_) => bar,
            }
        });
        Self {
            engine,
            trials,
            bar,
        }
    }

    fn show(&mut self, progress: Progress) {
        let (part, text) = match progress {
            Progress::Trial(trial) => (
                (trial - 1) as f64 / self.trials as f64,
                format!("trial {trial} of {}", self.trials),
            ),
            Progress::Calm(part) => (part, "calm".into()),
        };
        match (&self.bar, progress) {
            (Some(bar), _) => {
                bar.set_position((part * 1000.0) as u64);
                bar.set_message(text);
            }
            (None, Progress::Trial(trial)) if trial % 20 != 1 => {}
            (None, Progress::Calm(part)) if part > 0.0 => {}
            (None, _) => eprintln!("{}: {text}", self.engine.name()),
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
