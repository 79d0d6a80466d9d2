//! `nearwire demo`.

use super::Failure;
use super::output::{self, Output};
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use nearwire::config::Durability;
use nearwire::demo::{self, Engine, Error, Figures, Options, Progress, Report};
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Steps of the progress bar.
const BAR_STEPS: u64 = 1000;

/// Show three replicas that survive the loss of their leader.
///
/// Three replica processes form a cluster on this machine. One client writes without a pause while
/// the leader is killed and started again; afterwards every acknowledged write is read back. As root
/// the acceptors vote in the kernel, in namespaces of their own; without privileges all of it runs
/// on loopback. It leaves nothing behind.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  nearwire demo                      a quarter of a minute, three replicas in memory
  sudo nearwire demo                 the same, with acceptors in the kernel (XDP, native mode)
  nearwire demo --durability sync    every vote on disk before it counts
  nearwire demo --output json        one object, for programs

Exit code 1 means that an acknowledged write was lost, or that the cluster did not go on.")]
pub(crate) struct Args {
    /// What votes.
    #[arg(long, env = "NEARWIRE_ENGINE", value_enum, default_value_t)]
    engine: Engine,
    /// What a vote outlives: the process, or the machine.
    #[arg(long, env = "NEARWIRE_DURABILITY", value_enum, default_value_t = Durability::Volatile)]
    durability: Durability,
    /// Seconds of load before the leader is killed, and as many after it.
    // Each write has a key of its own, so memory bounds the time.
    #[arg(
        long,
        env = "NEARWIRE_SECONDS",
        value_name = "N",
        default_value_t = 5,
        value_parser = clap::value_parser!(u64).range(1..=15)
    )]
    seconds: u64,
    /// Writes under way at once.
    #[arg(
        long,
        env = "NEARWIRE_OUTSTANDING",
        value_name = "N",
        default_value_t = 32,
        value_parser = clap::value_parser!(u16).range(1..=1024)
    )]
    outstanding: u16,
    /// Keep the directory with the replicas' configurations, logs and data.
    #[arg(long, env = "NEARWIRE_KEEP")]
    keep: bool,
}

pub(crate) fn main(args: Args, output: Output) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGHUP,
    ] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("catch signals")?;
    }
    let options = Options {
        program: std::env::current_exe().context("find this program")?,
        parent: std::env::temp_dir(),
        engine: args.engine,
        durability: args.durability,
        period: Duration::from_secs(args.seconds),
        outstanding: args.outstanding.into(),
        keep: args.keep,
    };
    let screen = Screen::new();
    let result = demo::run(&options, &stop, &mut |progress| screen.show(progress));
    screen.clear();
    let report = result.map_err(judge)?;
    match output {
        Output::Json => output::json(&report)?,
        Output::Table => output::line(&text(&report))?,
    }
    match report.acknowledged_lost {
        0 => Ok(()),
        lost => Err(
            Failure::failed(format!("{lost} acknowledged writes were lost"))
                .remedy("run it again with --keep and report the directory: this must not happen")
                .into(),
        ),
    }
}

fn judge(error: Error) -> anyhow::Error {
    let text = error.to_string();
    let remedy = match &error {
        Error::Directory { .. } => "set TMPDIR to a directory that can be written",
        Error::NoXdp(_) => "run it as root, or with --engine software",
        Error::NoLeader { .. } | Error::Stalled { .. } | Error::Behind { .. } => {
            "free a CPU for the replicas, or run it again with --keep and look at their logs"
        }
        _ => return error.into(),
    };
    Failure::failed(text).remedy(remedy).into()
}

/// What goes to standard error while the run is under way: a bar on a terminal, lines elsewhere.
struct Screen {
    bar: Option<ProgressBar>,
}

impl Screen {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(BAR_STEPS);
            let style = ProgressStyle::with_template("{spinner} {bar:24} {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar }
    }

    fn show(&self, progress: Progress) {
        match (progress, &self.bar) {
            (Progress::Said(text), Some(bar)) => bar.println(text),
            (Progress::Said(text), None) => {
                // With standard error gone there is nobody left to tell.
                let _ = writeln!(std::io::stderr(), "{text}");
            }
            (
                Progress::Going {
                    doing,
                    part,
                    writes,
                },
                Some(bar),
            ) => {
                bar.set_position((part.unwrap_or(0.0) * BAR_STEPS as f64) as u64);
                bar.set_message(format!("{doing}: {} writes", grouped(writes)));
                bar.tick();
            }
            (Progress::Going { .. }, None) => {}
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn text(report: &Report) -> String {
    let Figures { seconds, .. } = report.steady;
    let rejoin = match report.rejoined_under_load {
        true => "under load",
        false => "after the load",
    };
    let latency = |name: &str, of: fn(&Figures) -> f64| {
        [
            name.to_owned(),
            microseconds(of(&report.steady)),
            microseconds(of(&report.overall)),
        ]
    };
    let both = |name: &str, value: String| [name.to_owned(), String::new(), value];
    let rows = [
        both("acknowledged writes", grouped(report.acknowledged)),
        both(
            "acknowledged writes lost",
            grouped(report.acknowledged_lost),
        ),
        both("writes of unknown outcome", grouped(report.outcome_unknown)),
        both("commits", grouped(report.commits)),
        latency("latency p50", |figures| figures.p50_us),
        latency("latency p99", |figures| figures.p99_us),
        latency("latency p99.9", |figures| figures.p999_us),
        latency("longest gap", |figures| figures.longest_gap_us),
        [
            "writes per second".into(),
            grouped(report.steady.ops_per_s as u64),
            grouped(report.overall.ops_per_s as u64),
        ],
        both("failover gap", microseconds(report.failover_gap_us)),
        both(
            "killed leader level again",
            format!("{} {rejoin}", microseconds(report.rejoin_us)),
        ),
    ];
    let steady = format!("steady {seconds:.1} s");
    let mut text = output::table(["", &steady, "all after warm-up"], rows);
    text.push_str("\n\n");
    let rows = report.replicas.iter().map(|replica| {
        let fate = if replica.restarted {
            "killed, restarted"
        } else {
            ""
        };
        [
            replica.node.to_string(),
            replica.role.clone(),
            replica.engine.clone(),
            replica.mode.clone(),
            replica.wait.clone(),
            replica.durability.clone(),
            replica.applied.to_string(),
            fate.into(),
        ]
    });
    let head = [
        "REPLICA",
        "ROLE",
        "ENGINE",
        "MODE",
        "WAIT",
        "DURABILITY",
        "APPLIED",
        "",
    ];
    text.push_str(&output::table(head, rows));
    let machine = &report.machine;
    let _ = write!(
        text,
        "\n\nRound trips of one client with {} writes of {} bytes under way; {} wait. Steady ends\n\
         with the kill; all after warm-up includes failover and rejoining. It took {:.1} s on\n\
         {} CPUs ({}), Linux {}, hypervisor {}.",
        report.outstanding,
        report.value_bytes,
        report.client_wait,
        report.elapsed_s,
        machine.cpus,
        machine.cpu_model,
        machine.kernel,
        machine.hypervisor,
    );
    if let Some(kept) = &report.kept {
        let _ = write!(
            text,
            "\nConfigurations, logs and data stay in {}.",
            kept.display()
        );
    }
    text
}

fn microseconds(us: f64) -> String {
    match us {
        us if us < 1000.0 => format!("{us:.0} us"),
        us if us < 100_000.0 => format!("{:.2} ms", us / 1000.0),
        us => format!("{:.0} ms", us / 1000.0),
    }
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_come_in_groups_of_three() {
        let texts = [0, 999, 1000, 1_234_567].map(grouped);
        assert_eq!(texts, ["0", "999", "1,000", "1,234,567"]);
    }
}
