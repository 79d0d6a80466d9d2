//! `cargo xtask mutants`: commits each deliberate defect and sees what notices it.
//!
//! The defects are `consensus::simulation::Mutation`; a build with the feature `simulation` commits
//! the one that it is told to. For each one the catchers are tried, cheapest first, until one
//! catches it. A check that no defect fails is worth nothing, and neither is one that fails
//! without: so all catchers run once with none.

// The tests of the simulator read it, too, and they may be built without xtask.
#[path = "../../tests/alone/mod.rs"]
mod alone;
mod catcher;
mod rule;
mod table;

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use clap::builder::PossibleValuesParser;
use consensus::simulation::Mutation;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::parallel::{cores, each};
use crate::stage::{Display, Stage};
use crate::step::{Bench, Verdict};
use crate::workspace::Workspace;
use alone::ALONE;
use catcher::{CATCHERS, Catcher, Kit};
use table::{AloneRow, Row};

/// Two cold builds on two cores take half of it.
const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);
/// Defects that the quick catchers need not find: the host's own tests and the simulator do.
const NEED_MORE: &[Mutation] = &[
    Mutation::CutPastSnapshot,
    Mutation::FlushReportedEarly,
    Mutation::FailedFlushRetried,
    Mutation::TornTailAccepted,
    Mutation::SnapshotUnchecked,
    Mutation::KernelVoteNotJournalled,
    Mutation::DigestIgnored,
    Mutation::MatchmakerForgets,
    Mutation::EarlierQuorumNotAsked,
    Mutation::GarbageEarly,
    Mutation::GarbageUntrimmed,
    Mutation::LearnerPromotedEarly,
    Mutation::LearnerCounted,
    Mutation::PieceUnchecked,
];

/// Which defects, and how they are told.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// These defects only.
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',',
        value_parser = PossibleValuesParser::new(Mutation::ALL.iter().map(|one| one.name())))]
    only: Vec<String>,

    /// Try every catcher on every defect instead of stopping at the first that catches it.
    #[arg(long)]
    all: bool,

    /// See instead whether each invariant of the simulator catches a defect by itself.
    #[arg(long, conflicts_with_all = ["only", "all"])]
    invariants: bool,

    /// Defects tried at once; as many as there are cores if not given.
    #[arg(long, value_name = "N")]
    jobs: Option<NonZero<usize>>,

    /// How the result is printed.
    #[arg(long, value_enum, default_value = "table")]
    output: Output,

    /// List the defects and what each breaks, and stop.
    #[arg(long)]
    list: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Output {
    Table,
    Json,
    /// As docs/mutations.md has it.
    Markdown,
}

/// Builds, tries every chosen defect and prints the table; the answer is whether all were caught.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    if arguments.list {
        for mutation in Mutation::ALL {
            println!("{:<28} {}", mutation.name(), mutation.breaks());
        }
        return Ok(true);
    }
    let chosen: Vec<Mutation> = Mutation::ALL
        .iter()
        .copied()
        .filter(|one| arguments.only.is_empty() || arguments.only.iter().any(|n| n == one.name()))
        .collect();
    let workspace = Workspace::load()?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .context("watch for signals")?;
    }
    let log = workspace.log("mutants");
    let label = "mutants".to_owned();
    let mut stage = Stage::open(label, log, Display::Nothing, BUILD_LIMIT, &interrupted)?;
    eprintln!("building with the feature simulation");
    let kit = Kit::build(&workspace, &mut stage)?;
    let jobs = arguments.jobs.map_or_else(cores, NonZero::get);
    if arguments.invariants {
        return invariants(&kit, jobs, arguments.output, &interrupted);
    }
    let trial = Trial {
        kit: &kit,
        catchers: CATCHERS,
        tries_all: arguments.all,
        interrupted: &interrupted,
    };
    // First: a test that fails anyway would catch everything.
    eprintln!("without any defect");
    trial.without_defect(jobs)?;
    let rows = trial.of(&chosen, jobs)?;
    println!(
        "{}",
        match arguments.output {
            Output::Table => table::text(&rows),
            Output::Json => table::json(&rows)?,
            Output::Markdown => table::markdown(&rows),
        }
    );
    if arguments.output != Output::Table {
        for warning in rows.iter().filter_map(Row::warning) {
            eprintln!("warning: {warning}");
        }
    }
    Ok(rows.iter().all(Row::is_caught))
}

/// Has each invariant, all others switched off, look for the defect that stands beside it.
fn invariants(
    kit: &Kit,
    jobs: usize,
    output: Output,
    interrupted: &AtomicBool,
) -> anyhow::Result<bool> {
    let rows = each(ALONE, jobs, |alone| {
        let catch = kit.attempt_alone(alone, interrupted)?;
        Ok(AloneRow {
            alone: *alone,
            catch,
        })
    })?;
    println!(
        "{}",
        match output {
            Output::Table => table::text_alone(&rows),
            Output::Json => table::json_alone(&rows)?,
            Output::Markdown => table::markdown_alone(&rows),
        }
    );
    Ok(rows.iter().all(|row| row.catch.is_some()))
}

/// A step of `cargo xtask test`: the catchers that take seconds and that the steps before it have
/// built already.
pub(crate) fn quick(bench: &mut Bench<'_>, stage: &mut Stage<'_>) -> anyhow::Result<Verdict> {
    let kit = Kit::of_tests(bench.workspace, stage)?;
    let catchers: Vec<Catcher> = CATCHERS.iter().copied().filter(Catcher::is_quick).collect();
    let trial = Trial {
        kit: &kit,
        catchers: &catchers,
        tries_all: false,
        interrupted: stage.interrupted(),
    };
    trial.without_defect(cores())?;
    let needs_no_more = |one: &Mutation| !NEED_MORE.contains(one);
    let chosen: Vec<_> = Mutation::ALL
        .iter()
        .copied()
        .filter(needs_no_more)
        .collect();
    let rows = trial.of(&chosen, cores())?;
    for line in table::text(&rows).lines() {
        stage.say(line)?;
    }
    let escaped = rows.iter().filter(|row| !row.is_caught());
    let escaped: Vec<_> = escaped.map(|row| row.mutation.name()).collect();
    ensure!(escaped.is_empty(), "not caught: {}", escaped.join(", "));
    let all = CATCHERS.iter().filter(|one| !one.is_quick());
    let untried: Vec<_> = all.map(Catcher::name).collect();
    Ok(Verdict::DoneWith(format!(
        "{} defects caught; not tried: {}, and the {} defects that need them",
        rows.len(),
        untried.join(", "),
        NEED_MORE.len()
    )))
}

/// What is tried, and with what.
struct Trial<'a> {
    kit: &'a Kit,
    catchers: &'a [Catcher],
    tries_all: bool,
    interrupted: &'a AtomicBool,
}

impl Trial<'_> {
    /// No catcher may find anything in a build that commits nothing.
    fn without_defect(&self, jobs: usize) -> anyhow::Result<()> {
        let catchers: Vec<_> = self
            .catchers
            .iter()
            .filter(|one| self.kit.has(one))
            .collect();
        let found = each(&catchers, jobs, |catcher| {
            let catch = self.kit.attempt(catcher, None, self.interrupted)?;
            Ok(catch.map(|catch| format!("{}: {}", catcher.name(), catch.by)))
        })?;
        let false_alarms: Vec<_> = found.into_iter().flatten().collect();
        ensure!(
            false_alarms.is_empty(),
            "without any defect there is a failure: {}",
            false_alarms.join("; ")
        );
        Ok(())
    }

    fn of(&self, chosen: &[Mutation], jobs: usize) -> anyhow::Result<Vec<Row>> {
        let done = AtomicUsize::new(0);
        each(chosen, jobs, |mutation| {
            let row = self.examine(*mutation)?;
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            eprintln!("[{done}/{}] {}", chosen.len(), table::line(&row));
            Ok(row)
        })
    }

    fn examine(&self, mutation: Mutation) -> anyhow::Result<Row> {
        let begun = Instant::now();
        let mut catches = Vec::new();
        let mut tried = Vec::new();
        for catcher in self.catchers.iter().filter(|one| self.kit.has(one)) {
            tried.push(catcher.budget());
            if let Some(catch) = self
                .kit
                .attempt(catcher, Some(mutation), self.interrupted)?
            {
                catches.push((catcher.budget(), catch));
                if !self.tries_all {
                    break;
                }
            }
        }
        Ok(Row {
            mutation,
            catches,
            tried,
            elapsed: begun.elapsed(),
        })
    }
}
