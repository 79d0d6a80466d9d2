//! `nearwire sim`.

use super::Failure;
use super::output::{self, Output};
use anyhow::Context;
use consensus::simulation::{IS_COMPILED_IN, Mutation};
use indicatif::{ProgressBar, ProgressStyle};
use nearwire::sim::{
    Coverage, FaultKind, FaultKinds, Invariant, Options, Outcome, Seeds, Shrunk, Tally,
    name_seed_of_panics, run_seeds, shrink,
};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::Duration;

/// Seeds that are run if nothing else is said.
const SEEDS: u64 = 1000;

/// Run whole clusters in virtual time and check that nothing is lost.
///
/// Each seed decides a cluster, its clients, and everything that goes wrong: lost, repeated and
/// reordered packets, partitions, crashes, lost memory, full and slow disks, clocks that run apart.
/// The nodes, clients and the key-value machine are the real ones. After every event the
/// invariants of docs/simulation.md are checked.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  nearwire sim                             a thousand seeds on all cores
  nearwire sim --minutes 10 --output json  as many as ten minutes allow, for programs
  nearwire sim --seed 4711 --trace         the story of one seed
  nearwire sim --seed 4711 --without kill  the same without processes that die

Exit code 1 means that an invariant was violated; the command that replays it is printed. Exit code
3 means that this build has no deliberate defects to switch on.")]
pub(crate) struct Args {
    /// How many seeds are run.
    #[arg(
        long,
        env = "NEARWIRE_SEEDS",
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    seeds: Option<u64>,
    /// Run this seed alone, or begin with it if --seeds is given, too.
    #[arg(long, env = "NEARWIRE_SEED", value_name = "S")]
    seed: Option<u64>,
    /// Begin no seed after so many minutes.
    #[arg(long, env = "NEARWIRE_MINUTES", value_name = "M", value_parser = minutes)]
    minutes: Option<Duration>,
    /// Worlds at once; all cores if it is not given.
    #[arg(long, env = "NEARWIRE_JOBS", value_name = "N")]
    jobs: Option<usize>,
    /// Begin no seed after the first failure.
    #[arg(long, env = "NEARWIRE_FAIL_FAST")]
    fail_fast: bool,
    /// Check this invariant alone.
    #[arg(long, env = "NEARWIRE_ONLY", value_name = "INVARIANT", value_parser = invariant)]
    only: Option<Invariant>,
    /// Have every world commit this deliberate defect.
    #[arg(long, env = "NEARWIRE_MUTATION", value_name = "NAME")]
    mutation: Option<String>,
    /// Leave out this kind of fault; may be given several times.
    #[arg(
        long,
        env = "NEARWIRE_WITHOUT",
        value_name = "FAULT",
        value_delimiter = ',',
        value_parser = kind
    )]
    without: Vec<FaultKind>,
    /// Have the fault points inside the code strike, too; it takes a build with --features
    /// simulation.
    #[arg(long, env = "NEARWIRE_FAULT_POINTS")]
    fault_points: bool,
    /// Print what happens in the world, line by line.
    #[arg(
        long,
        env = "NEARWIRE_TRACE",
        requires = "seed",
        conflicts_with = "seeds"
    )]
    trace: bool,
}

fn minutes(text: &str) -> Result<Duration, String> {
    let minutes: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if !(minutes > 0.0 && minutes <= 1e6) {
        return Err("it takes more than 0 and at most 1000000 minutes".into());
    }
    Ok(Duration::from_secs_f64(minutes * 60.0))
}

fn names<'a>(all: impl Iterator<Item = &'a str>) -> String {
    all.collect::<Vec<_>>().join(", ")
}

fn invariant(text: &str) -> Result<Invariant, String> {
    let all = || names(Invariant::ALL.iter().map(|one| one.name()));
    Invariant::from_name(text).ok_or_else(|| format!("there are {}", all()))
}

fn kind(text: &str) -> Result<FaultKind, String> {
    let all = || names(FaultKind::ALL.iter().map(|one| one.name()));
    FaultKind::from_name(text).ok_or_else(|| format!("there are {}", all()))
}

fn mutation(name: &str) -> Result<Mutation, Failure> {
    let mutation = Mutation::from_name(name).ok_or_else(|| {
        let all = names(Mutation::ALL.iter().map(|one| one.name()));
        Failure::usage(format!("there is no mutation {name}: there are {all}"))
    })?;
    if IS_COMPILED_IN {
        Ok(mutation)
    } else {
        Err(lacks(&format!("cannot commit {name}: it has no defects")))
    }
}

/// What this build has not.
fn lacks(what: &str) -> Failure {
    Failure::unsupported(format!("this build {what}"))
        .remedy("cargo build --profile simulation --features simulation")
}

pub(crate) fn main(args: &Args, output: Output) -> anyhow::Result<()> {
    let mutation = args.mutation.as_deref().map(mutation).transpose()?;
    if args.fault_points && !IS_COMPILED_IN {
        return Err(lacks("has no fault points").into());
    }
    if args.trace && matches!(output, Output::Json) {
        return Err(Failure::usage("--trace is a story for people, not JSON")
            .remedy("leave out --trace or --output json")
            .into());
    }
    let without = args.without.iter();
    let options = Options {
        only: args.only,
        mutation,
        without: without.fold(FaultKinds::NONE, |set, one| set.with(*one)),
        fault_points: args.fault_points,
        trace: args.trace,
    };
    let (first, seeds) = match (args.seed, args.seeds, args.minutes) {
        (Some(seed), None, None) => (seed, 1),
        (seed, Some(seeds), _) => (seed.unwrap_or(0), seeds),
        (seed, None, Some(_)) => (seed.unwrap_or(0), u64::MAX),
        (None, None, None) => (0, SEEDS),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let seeds = Seeds {
        first,
        seeds,
        time: args.minutes,
        fail_fast: args.fail_fast,
        jobs: args.jobs.unwrap_or(cores).min(seeds as usize).max(1),
        options,
    };
    name_seed_of_panics();
    let bar = bar(&seeds);
    let tally = run_seeds(&seeds, &mut |tally| {
        if let Some(bar) = &bar {
            bar.set_position(tally.seeds);
            bar.set_message(format!("{} failures", tally.failures));
        }
    })
    .context("start the worlds' threads")?;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let first = tally.first_failures.first();
    let shrunk = first
        .filter(|_| !args.trace)
        .and_then(|failure| shrink(failure, &options));
    match output {
        Output::Json => output::json(&report(&tally, &options, shrunk.as_ref()))?,
        Output::Table => output::line(&text(&tally, &options, shrunk.as_ref()))?,
    }
    match tally.first_failures.first() {
        None => Ok(()),
        Some(failure) => Err(Failure::failed(format!(
            "{} of {} seeds violated an invariant",
            tally.failures, tally.seeds
        ))
        .remedy(format!(
            "replay the first: {} --trace",
            replay(failure, &options)
        ))
        .into()),
    }
}

fn bar(seeds: &Seeds) -> Option<ProgressBar> {
    if seeds.options.trace || !std::io::stderr().is_terminal() {
        return None;
    }
    let bar = if seeds.seeds == u64::MAX {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::new(seeds.seeds)
    };
    let template = "{spinner} {bar:24} {pos}/{len} seeds, {per_sec}, {eta} left, {wide_msg}";
    let style = ProgressStyle::with_template(template);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    Some(bar)
}

/// The command that runs a failing seed again.
fn replay(failure: &Outcome, options: &Options) -> String {
    let mut command = format!("nearwire sim --seed {}", failure.seed);
    if let Some(only) = options.only {
        let _ = write!(command, " --only {}", only.name());
    }
    if let Some(mutation) = options.mutation {
        let _ = write!(command, " --mutation {}", mutation.name());
    }
    if options.fault_points {
        command.push_str(" --fault-points");
    }
    for kind in options.without.iter() {
        let _ = write!(command, " --without {}", kind.name());
    }
    command
}

fn report(tally: &Tally, options: &Options, shrunk: Option<&Shrunk>) -> Value {
    let failures = tally.first_failures.iter().map(|failure| {
        let violation = failure.violation.as_ref();
        json!({
            "seed": failure.seed,
            "invariant": violation.map(|one| one.invariant.name()),
            "event": failure.events,
            "what": violation.map(|one| one.what.as_str()),
            "replay": replay(failure, options),
        })
    });
    let (deliveries, commits, changes) = tally.least.unwrap_or_default();
    json!({
        "seeds": tally.seeds,
        "failures": tally.failures,
        "events": tally.events,
        "deliveries": tally.deliveries,
        "commits": tally.commits,
        "leader_changes": tally.leader_changes,
        "least": { "deliveries": deliveries, "commits": commits, "leader_changes": changes },
        "simulated_s": tally.simulated_ns as f64 / 1e9,
        "wall_s": tally.wall.as_secs_f64(),
        "events_per_s_per_core": tally.events_per_s_per_core(),
        "mutation": options.mutation.map(Mutation::name),
        "only": options.only.map(Invariant::name),
        "fault_points": options.fault_points,
        "coverage": coverage(&tally.coverage),
        "first_failures": failures.collect::<Vec<_>>(),
        "shrunk": shrunk.map(|shrunk| json!({
            "seed": shrunk.outcome.seed,
            "event": shrunk.outcome.events,
            "needs": shrunk.needed.iter().map(|one| one.name()).collect::<Vec<_>>(),
            "replay": replay(&shrunk.outcome, &shrunk.options),
        })),
    })
}

fn coverage(coverage: &Coverage) -> Value {
    let packets: Map<_, _> = coverage
        .packets()
        .map(|(kind, count)| (format!("{kind:?}"), count.into()))
        .collect();
    let faults: Map<_, _> = coverage
        .kinds()
        .map(|(kind, count)| (kind.name().to_owned(), count.into()))
        .collect();
    let points: Map<_, _> = coverage
        .faults()
        .map(|(fault, tally)| {
            let counts = json!({ "passed": tally.passed, "struck": tally.struck });
            (fault.name().to_owned(), counts)
        })
        .collect();
    json!({
        "faults": faults,
        "features": coverage.features(),
        "delivered": packets,
        "fault_points": points,
    })
}

fn text(tally: &Tally, options: &Options, shrunk: Option<&Shrunk>) -> String {
    let row = |name: &str, value: String| [name.to_owned(), value];
    let (deliveries, commits, changes) = tally.least.unwrap_or_default();
    let mut rows = vec![
        row("seeds", tally.seeds.to_string()),
        row("failures", tally.failures.to_string()),
        row("events", tally.events.to_string()),
        row(
            "deliveries",
            format!("{} (least {deliveries})", tally.deliveries),
        ),
        row("commits", format!("{} (least {commits})", tally.commits)),
        row(
            "leader changes",
            format!("{} (least {changes})", tally.leader_changes),
        ),
        row(
            "simulated",
            format!("{:.1} s", tally.simulated_ns as f64 / 1e9),
        ),
        row("wall", format!("{:.1} s", tally.wall.as_secs_f64())),
        row(
            "events per second and core",
            format!("{:.0}", tally.events_per_s_per_core()),
        ),
    ];
    for (kind, count) in tally.coverage.kinds() {
        rows.push(row(kind.name(), count.to_string()));
    }
    for (fault, count) in tally.coverage.faults() {
        let text = match options.fault_points {
            true => format!("{} of {} passes", count.struck, count.passed),
            false => "left out".into(),
        };
        rows.push(row(&format!("point {}", fault.name()), text));
    }
    let mut text = output::table(["", ""], rows);
    for failure in &tally.first_failures {
        if let Some(violation) = &failure.violation {
            let _ = write!(
                text,
                "\n\nseed {}, event {}: {}: {}\nREPLAY WITH: {} --trace",
                failure.seed,
                failure.events,
                violation.invariant.name(),
                violation.what,
                replay(failure, options)
            );
        }
    }
    if let Some(shrunk) = shrunk {
        let needed = match shrunk.needed.as_slice() {
            [] => "no faults at all".into(),
            needed => names(needed.iter().map(|one| one.name())),
        };
        let _ = write!(
            text,
            "\n\nSeed {} fails in the same way with {needed}, at event {}.\nSHORTER: {} --trace",
            shrunk.outcome.seed,
            shrunk.outcome.events,
            replay(&shrunk.outcome, &shrunk.options)
        );
    }
    text
}
