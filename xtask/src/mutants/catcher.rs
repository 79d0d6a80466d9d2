//! What may notice a defect, and how it is asked.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use consensus::simulation::Mutation;
use serde_json::{Value, json};

use super::alone::Alone;
use super::rule::rule;
use crate::command::{self, Ending, Event, Stream};
use crate::executables::{Executable, MESSAGES, executables};
use crate::libtest::Tally;
use crate::stage::Stage;
use crate::workspace::Workspace;

/// Where the build with the feature `simulation` is kept.
const TARGET: &str = "simulation";
/// Names the defect that a process commits.
const VARIABLE: &str = "NEARWIRE_MUTATION";

/// Something that may notice a defect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Catcher {
    /// The conformance corpus, in process.
    Corpus,
    /// The unit tests of a package's library whose names begin so, or all.
    Unit {
        package: &'static str,
        names: &'static [&'static str],
        limit: Duration,
    },
    /// An integration test of the core.
    Test {
        target: &'static str,
        limit: Duration,
    },
    /// Simulated clusters, in batches that end at these seeds.
    Simulator { batches: &'static [u64] },
}

const CORE: &str = "nearwire-consensus";
const HOST: &str = "nearwire";

/// Every catcher, the cheapest first.
pub(super) const CATCHERS: &[Catcher] = &[
    Catcher::Corpus,
    Catcher::Unit {
        package: CORE,
        names: &[],
        limit: Duration::from_secs(20),
    },
    Catcher::Test {
        target: "leader",
        limit: Duration::from_secs(20),
    },
    Catcher::Test {
        target: "region",
        limit: Duration::from_secs(30),
    },
    Catcher::Test {
        target: "interleavings",
        limit: Duration::from_secs(60),
    },
    Catcher::Test {
        target: "cluster",
        limit: Duration::from_secs(60),
    },
    Catcher::Unit {
        package: HOST,
        names: &["journal::", "snapshot_file::", "snapshots::", "cutting::"],
        limit: Duration::from_secs(120),
    },
    Catcher::Simulator {
        batches: &[20, 200, 2000],
    },
    Catcher::Test {
        target: "model",
        limit: Duration::from_secs(300),
    },
];

impl Catcher {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Corpus => "corpus",
            Self::Unit { package: CORE, .. } => "unit",
            Self::Unit { .. } => "host",
            Self::Test { target, .. } => target,
            Self::Simulator { .. } => "sim",
        }
    }

    /// What it may spend on one defect.
    pub(super) fn budget(&self) -> Budget {
        let limit = match self {
            Self::Corpus => Limit::Seconds(CORPUS_LIMIT.as_secs()),
            Self::Unit { limit, .. } | Self::Test { limit, .. } => Limit::Seconds(limit.as_secs()),
            Self::Simulator { batches } => Limit::Seeds(batches.last().copied().unwrap_or(0)),
        };
        Budget {
            catcher: self.name(),
            limit,
        }
    }

    /// Whether it takes seconds and no build of its own.
    pub(super) fn is_quick(&self) -> bool {
        match self {
            Self::Unit { package, .. } => *package == CORE,
            Self::Test { target, .. } => {
                ["leader", "region", "interleavings", "cluster"].contains(target)
            }
            Self::Corpus | Self::Simulator { .. } => false,
        }
    }
}

/// What a catcher may spend on one defect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Budget {
    pub(super) catcher: &'static str,
    pub(super) limit: Limit,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Limit {
    Seconds(u64),
    Seeds(u64),
}

impl Budget {
    /// An object of the catcher and its `seconds` or `seeds`.
    pub(super) fn json(&self) -> Value {
        match self.limit {
            Limit::Seconds(seconds) => json!({ "catcher": self.catcher, "seconds": seconds }),
            Limit::Seeds(seeds) => json!({ "catcher": self.catcher, "seeds": seeds }),
        }
    }
}

impl Display for Budget {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.limit {
            Limit::Seconds(seconds) => write!(f, "{} {seconds} s", self.catcher),
            Limit::Seeds(seeds) => write!(f, "{} {seeds} seeds", self.catcher),
        }
    }
}

/// How much of the corpus fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Extent {
    pub(super) failed: u64,
    pub(super) cases: u64,
    /// Whether the case that states the broken rule is among them.
    pub(super) shows_rule: bool,
}

impl Extent {
    /// Whether the defect is wider than any rule: most cases are about something else.
    pub(super) fn is_broad(self) -> bool {
        self.failed * 2 > self.cases
    }
}

/// How a defect was noticed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Catch {
    /// The test, case or invariant that failed.
    pub(super) by: String,
    /// The seed of the simulated cluster.
    pub(super) seed: Option<u64>,
    /// Events simulated until then, in all clusters.
    pub(super) events: Option<u64>,
    /// How much of the corpus fails.
    pub(super) extent: Option<Extent>,
}

/// The executables.
pub(super) struct Kit {
    root: PathBuf,
    tests: Vec<Executable>,
    /// `nearwire` with defects to switch on, and the subcommands that it has.
    program: Option<(PathBuf, Vec<String>)>,
}

impl Kit {
    /// Builds everything with the feature `simulation`.
    pub(super) fn build(workspace: &Workspace, stage: &mut Stage<'_>) -> anyhow::Result<Self> {
        let target = workspace.target.join(TARGET);
        let mut command = workspace.cargo([
            "test",
            "--locked",
            "--no-run",
            MESSAGES,
            "--features=simulation",
            "--package",
            CORE,
            "--package",
            HOST,
            "--lib",
        ]);
        command.env("CARGO_TARGET_DIR", &target);
        for catcher in CATCHERS {
            if let Catcher::Test { target, .. } = catcher
                && workspace.has_test(CORE, target)
            {
                command.args(["--test", target]);
            }
        }
        let tests = executables(&stage.read(&mut command)?)?;
        let mut command = workspace.cargo([
            "build",
            "--locked",
            "--features=simulation",
            "--package",
            HOST,
            "--bin",
            HOST,
        ]);
        stage.run(command.env("CARGO_TARGET_DIR", &target))?;
        let program = target.join("debug").join(HOST);
        let help = Command::new(&program)
            .arg("--help")
            .output()
            .with_context(|| format!("start {}", program.display()))?;
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        let subcommands = help.lines().filter_map(|line| line.strip_prefix("  "));
        let subcommands = subcommands.filter_map(|line| line.split_whitespace().next());
        let subcommands = subcommands.map(str::to_owned).collect();
        Ok(Self {
            root: workspace.root.clone(),
            tests,
            program: Some((program, subcommands)),
        })
    }

    fn ask<'a>(&'a self, mutation: Option<Mutation>, interrupted: &'a AtomicBool) -> Ask<'a> {
        Ask {
            kit: self,
            mutation,
            interrupted,
        }
    }

    /// What the other steps test anyway: test builds of the whole workspace have the defects.
    pub(super) fn of_tests(workspace: &Workspace, stage: &mut Stage<'_>) -> anyhow::Result<Self> {
        let mut command = workspace.cargo([
            "test",
            "--locked",
            "--no-run",
            MESSAGES,
            "--workspace",
            "--lib",
        ]);
        for catcher in CATCHERS.iter().filter(|one| one.is_quick()) {
            if let Catcher::Test { target, .. } = catcher {
                command.args(["--test", target]);
            }
        }
        Ok(Self {
            root: workspace.root.clone(),
            tests: executables(&stage.read(&mut command)?)?,
            program: None,
        })
    }

    /// Whether this build has what `catcher` needs.
    pub(super) fn has(&self, catcher: &Catcher) -> bool {
        match catcher {
            Catcher::Corpus => self.program_with("conform").is_some(),
            Catcher::Unit { .. } | Catcher::Test { .. } => self.executable(catcher).is_some(),
            Catcher::Simulator { .. } => self.program_with("sim").is_some(),
        }
    }

    fn program_with(&self, subcommand: &str) -> Option<&Path> {
        let (program, subcommands) = self.program.as_ref()?;
        let has = subcommands.iter().any(|one| one == subcommand);
        has.then_some(program.as_path())
    }

    fn executable(&self, catcher: &Catcher) -> Option<&Path> {
        let found = self.tests.iter().find(|one| match catcher {
            Catcher::Unit { package, .. } => {
                one.is_test && one.is_library && one.package == *package
            }
            Catcher::Test { target, .. } => one.is_test && !one.is_library && one.target == *target,
            Catcher::Corpus | Catcher::Simulator { .. } => false,
        });
        found.map(|one| one.path.as_path())
    }

    /// Whether an invariant by itself notices the defect that stands beside it.
    pub(super) fn attempt_alone(
        &self,
        alone: &Alone,
        interrupted: &AtomicBool,
    ) -> anyhow::Result<Option<Catch>> {
        let program = self.program_with("sim").context("find nearwire sim")?;
        let ask = self.ask(Some(alone.mutation), interrupted);
        ask.alone(program, alone.invariant, alone.seeds)
    }

    /// Whether `catcher` notices `mutation`. One that hangs has noticed nothing.
    pub(super) fn attempt(
        &self,
        catcher: &Catcher,
        mutation: Option<Mutation>,
        interrupted: &AtomicBool,
    ) -> anyhow::Result<Option<Catch>> {
        let ask = self.ask(mutation, interrupted);
        match catcher {
            Catcher::Corpus => match self.program_with("conform") {
                Some(program) => ask.corpus(program),
                None => Ok(None),
            },
            Catcher::Unit { names, limit, .. } => match self.executable(catcher) {
                Some(executable) => ask.tests(executable, names, *limit),
                None => Ok(None),
            },
            Catcher::Test { limit, .. } => match self.executable(catcher) {
                Some(executable) => ask.tests(executable, &[], *limit),
                None => Ok(None),
            },
            Catcher::Simulator { batches } => match self.program_with("sim") {
                // Clean runs of many seeds are the simulator's own business.
                Some(program) if mutation.is_none() => ask.simulator(program, &batches[..1]),
                Some(program) => ask.simulator(program, batches),
                None => Ok(None),
            },
        }
    }
}

/// One question to a catcher.
struct Ask<'a> {
    kit: &'a Kit,
    mutation: Option<Mutation>,
    interrupted: &'a AtomicBool,
}

/// The cases that `cargo xtask corpus` writes.
const GENERATED: &str = "generated.txt";
/// How long the corpus may take.
const CORPUS_LIMIT: Duration = Duration::from_secs(60);
/// How long a batch of seeds may take.
const BATCH_LIMIT: Duration = Duration::from_secs(600);
/// What `nearwire conform` and `nearwire sim` exit with when something is wrong.
const FOUND: i32 = 1;

impl Ask<'_> {
    fn run(&self, command: &mut Command, limit: Duration) -> anyhow::Result<(Ending, String)> {
        let mut out = String::new();
        command
            .current_dir(&self.kit.root)
            .env("RUST_BACKTRACE", "0")
            // What a defect fails is no case to keep in the tree.
            .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1");
        let deadline = Instant::now() + limit;
        let ending = command::run(command, deadline, self.interrupted, &mut |event| {
            if let Event::Line(Stream::Out, line) = event {
                out.push_str(line);
                out.push('\n');
            }
            Ok(())
        })?;
        ensure!(ending != Ending::Interrupted, "interrupted");
        Ok((ending, out))
    }

    /// A test counts if it fails alone, too: one that is short of time beside others does not.
    fn tests(
        &self,
        executable: &Path,
        names: &[&str],
        limit: Duration,
    ) -> anyhow::Result<Option<Catch>> {
        let test = |names: &[&str], exact: bool| {
            let mut command = Command::new(executable);
            command.args(names).args(["--test-threads", "1"]);
            if exact {
                command.arg("--exact");
            }
            match self.mutation {
                Some(mutation) => command.env(VARIABLE, mutation.name()),
                None => command.env_remove(VARIABLE),
            };
            let (ending, out) = self.run(&mut command, limit)?;
            let failed = matches!(ending, Ending::Exited(status) if !status.success());
            anyhow::Ok((failed, out))
        };
        let (failed, out) = test(names, false)?;
        if !failed {
            return Ok(None);
        }
        let mut tally = Tally::default();
        out.lines().for_each(|line| tally.line(line));
        if tally.failures.is_empty() {
            // The process died in the middle of a test.
            let last = out
                .lines()
                .rev()
                .find_map(|line| line.strip_prefix("test "));
            let by = last.and_then(|line| line.split(" ... ").next());
            let by = by.unwrap_or("the process died").to_owned();
            return Ok(Some(Catch::by(by)));
        }
        for name in &tally.failures {
            if test(&[name], true)?.0 {
                return Ok(Some(Catch::by(name.clone())));
            }
        }
        Ok(None)
    }

    fn nearwire(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env_remove(VARIABLE);
        if let Some(mutation) = self.mutation {
            command.args(["--mutation", mutation.name()]);
        }
        command.args(["--output", "json"]);
        command
    }

    fn corpus(&self, program: &Path) -> anyhow::Result<Option<Catch>> {
        let mut command = self.nearwire(program, &["conform", "--engine", "software"]);
        let (ending, out) = self.run(&mut command, CORPUS_LIMIT)?;
        if !is_found(ending) {
            return Ok(None);
        }
        let report: Value = serde_json::from_str(&out).unwrap_or_default();
        let failed = failed_cases(&report);
        let stated = self.mutation.and_then(rule);
        let shows = stated.filter(|case| failed.contains(case));
        let by = shows.or(failed.first().copied()).unwrap_or("a case");
        Ok(Some(Catch {
            extent: Some(Extent {
                failed: report["failed"].as_u64().unwrap_or_default(),
                cases: report["cases"].as_u64().unwrap_or_default(),
                shows_rule: shows.is_some(),
            }),
            ..Catch::by(by.to_owned())
        }))
    }

    /// Whether `invariant`, with every other one switched off, notices the defect in so many seeds.
    fn alone(&self, program: &Path, invariant: &str, seeds: u64) -> anyhow::Result<Option<Catch>> {
        let seeds = seeds.to_string();
        let arguments = [
            "sim", "--only", invariant, "--seed", "0", "--seeds", &seeds, "--jobs", "1",
        ];
        let mut command = self.nearwire(program, &arguments);
        let (_, out) = self.run(&mut command, BATCH_LIMIT)?;
        let report: Value = serde_json::from_str(&out).unwrap_or_default();
        let failures = report["first_failures"].as_array().into_iter().flatten();
        let mut by_it = failures.filter(|failure| failure["invariant"] == invariant);
        Ok(by_it.next().map(|failure| Catch {
            seed: failure["seed"].as_u64(),
            events: failure["event"].as_u64(),
            ..Catch::by(invariant.to_owned())
        }))
    }

    fn simulator(&self, program: &Path, batches: &[u64]) -> anyhow::Result<Option<Catch>> {
        let (mut first, mut events) = (0, 0);
        for last in batches {
            let (from, seeds) = (first.to_string(), (last - first).to_string());
            let arguments = [
                "sim",
                "--fault-points",
                "--seed",
                &from,
                "--seeds",
                &seeds,
                "--jobs",
                "1",
            ];
            let mut command = self.nearwire(program, &arguments);
            let (ending, out) = self.run(&mut command, BATCH_LIMIT)?;
            let report: Value = serde_json::from_str(&out).unwrap_or_default();
            if is_found(ending) {
                let failure = &report["first_failures"][0];
                let invariant = failure["invariant"].as_str().unwrap_or("a panic");
                return Ok(Some(Catch {
                    seed: failure["seed"].as_u64(),
                    events: failure["event"].as_u64().map(|event| events + event),
                    ..Catch::by(invariant.to_owned())
                }));
            }
            if ending == Ending::TimedOut {
                return Ok(None);
            }
            ensure!(
                matches!(ending, Ending::Exited(status) if status.success()),
                "nearwire sim: {ending:?}: {out}"
            );
            events += report["events"].as_u64().unwrap_or_default();
            first = *last;
        }
        Ok(None)
    }
}

/// The names of the cases that fail, each once, though several of its fields may be wrong. Those
/// that are generated, whose names say nothing, come last.
fn failed_cases(report: &Value) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    let fields = report["failures"].as_array().into_iter().flatten();
    let mut cases: Vec<_> = fields
        .filter_map(|field| Some((field["file"].as_str()?, field["case"].as_str()?)))
        .filter(|(_, case)| seen.insert(*case))
        .collect();
    cases.sort_by_key(|(file, _)| file.ends_with(GENERATED));
    cases.into_iter().map(|(_, case)| case).collect()
}

fn is_found(ending: Ending) -> bool {
    matches!(ending, Ending::Exited(status) if status.code() == Some(FOUND))
}

impl Catch {
    fn by(by: String) -> Self {
        Self {
            by,
            seed: None,
            events: None,
            extent: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_catcher_has_a_name_of_its_own() {
        let mut names: Vec<_> = CATCHERS.iter().map(Catcher::name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CATCHERS.len());
    }

    #[test]
    fn a_case_that_fails_in_several_fields_is_told_once_and_the_generated_last() {
        let field = |case: &str, file: &str| json!({ "case": case, "file": file });
        let report = json!({ "failures": [
            field("generated-1", "generated.txt"),
            field("one", "accept.txt"),
            field("one", "accept.txt"),
        ] });
        assert_eq!(failed_cases(&report), ["one", "generated-1"]);
    }
}
