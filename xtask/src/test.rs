//! `cargo xtask test`: prepares the machine, runs the steps and sums up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use clap::ArgAction;
use clap::builder::PossibleValuesParser;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::libtest::Counts;
use crate::packages;
use crate::stage::{Display, Stage};
use crate::step::{Bench, STEPS, Step, Verdict};
use crate::summary::{self, Outcome, Report};
use crate::tools::Tools;
use crate::workspace::Workspace;

/// What to test and how much to show.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run these steps only, in the table's order.
    #[arg(long, value_name = "STEP", num_args = 1.., value_delimiter = ',',
        value_parser = PossibleValuesParser::new(STEPS.iter().map(|step| step.name)))]
    only: Vec<String>,

    /// List the steps and stop.
    #[arg(long)]
    list: bool,

    /// Go on after a failed step.
    #[arg(long, value_name = "BOOL", default_value_t = true, default_missing_value = "true",
        num_args = 0..=1, require_equals = true, action = ArgAction::Set)]
    keep_going: bool,

    /// Show all output, that of quiet steps too.
    #[arg(long, short)]
    verbose: bool,
}

/// Runs what is asked for; the answer is whether everything that ran succeeded.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    if arguments.list {
        for step in STEPS {
            println!("{:<12} {}", step.name, step.what);
        }
        return Ok(true);
    }
    let chosen: Vec<&Step> = STEPS
        .iter()
        .filter(|step| is_chosen(step, &arguments.only))
        .collect();
    let workspace = Workspace::load()?;
    packages::provide(&chosen)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .context("watch for signals")?;
    }
    let mut tools = Tools::new(&workspace)?;
    if chosen.iter().any(|step| step.name == "deny") {
        tools.begin_cargo_deny(&workspace);
    }
    let mut bench = Bench {
        workspace: &workspace,
        tools: &mut tools,
    };
    let mut reports: Vec<Report> = Vec::new();
    for (position, step) in chosen.iter().enumerate() {
        let report = if interrupted.load(Ordering::Relaxed) {
            not_run(step, "interrupted")
        } else if !arguments.keep_going && !summary::succeeded(&reports) {
            not_run(step, "a step before it failed")
        } else {
            let label = format!("[{}/{}] {}", position + 1, chosen.len(), step.name);
            let display = Display::choose(step.tests, arguments.verbose);
            run_step(step, &label, display, &mut bench, &interrupted)?
        };
        reports.push(report);
    }
    println!("\n{}", summary::render(&reports));
    Ok(summary::succeeded(&reports))
}

fn is_chosen(step: &Step, only: &[String]) -> bool {
    only.is_empty() || only.iter().any(|name| name == step.name)
}

fn not_run(step: &Step, why: &str) -> Report {
    Report {
        step: step.name,
        tests: step.tests,
        outcome: Outcome::Skipped(why.to_owned()),
        elapsed: Duration::ZERO,
        counts: Counts::default(),
        skips: Vec::new(),
        failures: Vec::new(),
    }
}

fn run_step(
    step: &Step,
    label: &str,
    display: Display,
    bench: &mut Bench<'_>,
    interrupted: &AtomicBool,
) -> anyhow::Result<Report> {
    println!("{label}: {}", step.what);
    let log = bench.workspace.log(step.name);
    let mut stage = Stage::open(
        label.to_owned(),
        log.clone(),
        display,
        step.limit,
        interrupted,
    )?;
    let outcome = match (step.run)(bench, &mut stage) {
        Ok(Verdict::Done) => Outcome::Ok,
        Ok(Verdict::DoneWith(remark)) => Outcome::OkWith(remark),
        Ok(Verdict::Skipped(why)) => Outcome::Skipped(why),
        Err(error) => Outcome::Failed(format!("{error:#}")),
    };
    stage.clear();
    let elapsed = stage.elapsed();
    if matches!(outcome, Outcome::Failed(_)) {
        println!("{}\n(the whole log is in {})", stage.tail()?, log.display());
    }
    println!("{label}: {outcome} ({:.1} s)", elapsed.as_secs_f64());
    let counts = stage.tally.counts();
    let tally = stage.tally;
    Ok(Report {
        step: step.name,
        tests: step.tests,
        outcome,
        elapsed,
        counts,
        skips: tally.skips,
        failures: tally.failures,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_choice_is_every_step() {
        assert!(STEPS.iter().all(|step| is_chosen(step, &[])));
    }

    #[test]
    fn a_choice_is_only_that() {
        let only = ["loom".to_owned()];
        let chosen = STEPS.iter().filter(|step| is_chosen(step, &only));
        assert_eq!(chosen.map(|step| step.name).collect::<Vec<_>>(), ["loom"]);
    }
}
