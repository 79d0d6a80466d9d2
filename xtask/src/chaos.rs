//! `cargo xtask chaos`: real processes under faults on purpose, for as long as is asked for.
//!
//! The run is a test, `tests/privileged_chaos`, which this tells what to do; the step `chaos` of the
//! test command runs it for about a minute, and its deliberate bugs.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::stage::{Display, Stage};
use crate::step::{self, Bench, Verdict};
use crate::workspace::Workspace;

/// The test, and the function of it that is the run.
pub(crate) const TEST: &str = "privileged_chaos";
const RUN: &str = "nothing_that_befalls_a_cluster_takes_the_order_from_what_its_clients_see";
/// What the test listens to begins so.
const PREFIX: &str = "NEARWIRE_CHAOS_";
/// Beside the run itself: a cold build, the last cluster, its judges.
const MARGIN: Duration = Duration::from_secs(25 * 60);

/// What befalls whom, and for how long.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How long clusters follow one another; the last one is not cut short.
    #[arg(long, default_value_t = 5)]
    minutes: u64,

    /// Draws set-ups and faults; a random one if not given. A failure prints it.
    #[arg(long)]
    seed: Option<u64>,

    /// Where the acceptors are: `mixed` has both kinds in a cluster.
    #[arg(long, value_enum, default_value = "mixed")]
    engine: Engine,

    /// What votes outlive: with `mixed` each cluster has another.
    #[arg(long, value_enum, default_value = "mixed")]
    durability: Durability,

    /// What leaders read by: with `mixed` every other cluster has leases.
    #[arg(long, value_enum, default_value = "mixed")]
    reads: Reads,

    /// A deliberate bug, which the run has to report: `lost-memory-counted`, or one of those that
    /// `cargo xtask mutants --list` names, such as `read-unconfirmed`.
    #[arg(long, value_name = "NAME")]
    defect: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Engine {
    Mixed,
    Software,
    Xdp,
}

#[derive(Clone, Copy, ValueEnum)]
enum Durability {
    Mixed,
    Volatile,
    Async,
    Sync,
}

#[derive(Clone, Copy, ValueEnum)]
enum Reads {
    Mixed,
    Lease,
    Barrier,
}

/// Runs it; the answer is whether nothing was wrong.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    if let Some(needs) = step::without_root("cargo xtask chaos") {
        anyhow::bail!(needs);
    }
    let workspace = Workspace::load()?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .context("watch for signals")?;
    }
    let length = Duration::from_secs(arguments.minutes * 60);
    let limit = length + MARGIN;
    let log = workspace.log("chaos");
    let mut stage = Stage::open("chaos".to_owned(), log, Display::Echo, limit, &interrupted)?;
    let mut command = test(&workspace);
    let mut tell = |name: &str, value: String| {
        command.env(format!("{PREFIX}{name}"), value);
    };
    tell("SECONDS", length.as_secs().to_string());
    tell("ENGINE", name(&arguments.engine));
    tell("DURABILITY", name(&arguments.durability));
    tell("READS", name(&arguments.reads));
    arguments
        .seed
        .iter()
        .for_each(|seed| tell("SEED", seed.to_string()));
    arguments
        .defect
        .iter()
        .for_each(|defect| tell("DEFECT", defect.clone()));
    command.args(["--", "--exact", "--nocapture", RUN]);
    stage.run(&mut command)?;
    Ok(true)
}

/// The short run, and the deliberate bugs.
pub(crate) fn check(bench: &mut Bench<'_>, stage: &mut Stage<'_>) -> anyhow::Result<Verdict> {
    if let Some(needs) = step::without_root("cargo xtask test --only chaos") {
        return Ok(Verdict::Skipped(needs));
    }
    // One after another: clusters beside each other would wait for processors.
    let mut command = test(bench.workspace);
    command.args(["--", "--test-threads", "1", "--show-output"]);
    stage.run(&mut command)?;
    Ok(Verdict::Done)
}

fn test(workspace: &Workspace) -> Command {
    let mut command = step::test_files(workspace, &[TEST]);
    // What a person set for a longer run is not for this one.
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            command.env_remove(name);
        }
    }
    command
}

fn name(value: &impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value.expect("none is hidden").get_name().to_owned()
}
