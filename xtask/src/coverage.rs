//! `cargo xtask coverage`: says which lines of the core simulator, model and corpus run.
//!
//! The core is built without its own unit tests, so that nothing counts but what ships. Each part
//! writes profiles of its own: the figure is of all parts together, and beside it stands what each
//! has alone.

mod lines;
mod llvm;

use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::command::{self, Ending, Event};
use crate::executables::{MESSAGES, executables, named};
use crate::parallel::{cores, each};
use crate::stage::{Display, Stage};
use crate::workspace::Workspace;
use lines::{Lines, Report};
use llvm::Llvm;

const CORE: &str = "nearwire-consensus";
const HOST: &str = "nearwire";
/// What is measured.
const SOURCES: &str = "consensus/src";
/// The models: packets in any order, and the accesses of threads in any order.
const MODELS: [&str; 2] = ["model", "interleavings"];
/// The corpus in process: on the step, on devices that go wrong, in frames, and what it leaves.
const CORPUS: [&str; 4] = ["conformance", "devices", "frames", "restarts"];
/// The corpus over sockets.
const CONFORM: &str = "conform";
/// Where the instrumented build is kept.
const TARGET: &str = "coverage";
/// Two cold builds on two cores take half of it.
const BUILD_LIMIT: Duration = Duration::from_secs(30 * 60);
/// A run that has not ended by then hangs.
const RUN_LIMIT: Duration = Duration::from_secs(20 * 60);
/// Lines of output that are printed of a run that failed.
const TAIL_LINES: usize = 30;

/// How much is simulated, and how the result is told.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Seeds that are simulated, from 0.
    #[arg(long, value_name = "N", default_value = "1600")]
    seeds: NonZero<u64>,

    /// Runs at once; as many as there are cores if not given.
    #[arg(long, value_name = "N")]
    jobs: Option<NonZero<usize>>,

    /// How the result is printed.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// What is asked which lines it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    Simulator,
    Model,
    Corpus,
}

impl Part {
    const ALL: [Self; 3] = [Self::Simulator, Self::Model, Self::Corpus];

    const fn name(self) -> &'static str {
        match self {
            Self::Simulator => "simulator",
            Self::Model => "model",
            Self::Corpus => "corpus",
        }
    }
}

/// Builds, runs the three parts and prints the report; the answer is whether enough is covered.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let workspace = Workspace::load()?;
    let llvm = Llvm::find()?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .context("watch for signals")?;
    }
    let kit = Kit::build(&workspace, &llvm, &interrupted)?;
    let jobs = arguments.jobs.map_or_else(cores, NonZero::get);
    kit.run(arguments.seeds.get(), jobs, &interrupted)?;
    let all = kit.lines(&llvm, &Part::ALL)?;
    let alone = Part::ALL.into_iter().map(|part| {
        let lines = kit.lines(&llvm, &[part])?;
        Ok((part.name(), lines.sum()))
    });
    let alone = alone.collect::<anyhow::Result<Vec<_>>>()?;
    let report = Report {
        root: &workspace.root,
        sources: SOURCES,
        seeds: arguments.seeds.get(),
        all,
        alone,
    };
    match arguments.output {
        Output::Text => print!("{}", report.text()?),
        Output::Json => println!("{}", report.json()?),
    }
    Ok(report.is_enough())
}

/// The instrumented executables, and where their profiles go.
struct Kit {
    root: PathBuf,
    nearwire: PathBuf,
    models: Vec<PathBuf>,
    corpus: Vec<PathBuf>,
    conform: PathBuf,
    profiles: PathBuf,
}

/// One process that is asked.
struct Run<'a> {
    part: Part,
    program: &'a Path,
    arguments: Vec<String>,
}

impl Kit {
    fn build(workspace: &Workspace, llvm: &Llvm, interrupted: &AtomicBool) -> anyhow::Result<Self> {
        let target = workspace.target.join(TARGET);
        let log = workspace.log("coverage");
        let label = "coverage".to_owned();
        let mut stage = Stage::open(label, log, Display::Nothing, BUILD_LIMIT, interrupted)?;
        eprintln!("building with instrumentation");
        // All in one build: the counters of a second one would have other names.
        let tests = MODELS.into_iter().chain(CORPUS).chain([CONFORM]);
        let mut command = workspace.cargo(["test", "--locked", "--no-run", MESSAGES]);
        command
            .args([
                "--features=simulation",
                "--package",
                CORE,
                "--package",
                HOST,
            ])
            .args(tests.flat_map(|test| ["--test", test]))
            // In one piece, or the linker leaves pieces out that nobody calls, and they would not count.
            .args([
                "--config",
                &format!("profile.dev.package.{CORE}.codegen-units=1"),
            ])
            // With a target named, build scripts and macros are not instrumented.
            .args(["--target", &llvm.host])
            .env("RUSTFLAGS", "-C instrument-coverage")
            .env("CARGO_PROFILE_DEV_DEBUG", "false")
            .env("CARGO_TARGET_DIR", &target);
        let built = match stage.read(&mut command) {
            Ok(messages) => executables(&messages)?,
            Err(error) => bail!("{error:#}\n{}", stage.tail()?),
        };
        let profiles = target.join("profiles");
        if profiles.exists() {
            fs::remove_dir_all(&profiles)
                .with_context(|| format!("remove {}", profiles.display()))?;
        }
        fs::create_dir_all(&profiles).with_context(|| format!("create {}", profiles.display()))?;
        let test = |target: &&str| named(&built, target, true).map(Path::to_owned);
        Ok(Self {
            root: workspace.root.clone(),
            nearwire: named(&built, HOST, false)?.to_owned(),
            models: MODELS.iter().map(test).collect::<Result<_, _>>()?,
            corpus: CORPUS.iter().map(test).collect::<Result<_, _>>()?,
            conform: test(&CONFORM)?,
            profiles,
        })
    }

    /// Has every part run, `jobs` processes at once: threads of one process would share counters,
    /// and spend their time on taking them from each other.
    fn run(&self, seeds: u64, jobs: usize, interrupted: &AtomicBool) -> anyhow::Result<()> {
        let mut runs = Vec::new();
        for model in &self.models {
            for test in tests(model)? {
                runs.push(run_of(Part::Model, model, &["--exact", &test]));
            }
        }
        for test in &self.corpus {
            runs.push(run_of(Part::Corpus, test, &[]));
        }
        let in_process = ["conform", "--engine", "software"];
        runs.push(run_of(Part::Corpus, &self.nearwire, &in_process));
        // Parts that are small enough for the cores to end together.
        let part = seeds.div_ceil(4 * jobs as u64).max(1);
        for first in (0..seeds).step_by(part as usize) {
            let count = part.min(seeds - first).to_string();
            let arguments = [
                "sim",
                "--fault-points",
                "--jobs",
                "1",
                "--seeds",
                &count,
                "--seed",
            ];
            let mut run = run_of(Part::Simulator, &self.nearwire, &arguments);
            run.arguments.push(first.to_string());
            runs.push(run);
        }
        each(&runs, jobs, |run| self.ask(run, interrupted))?;
        // It measures times, and so is alone.
        self.ask(&run_of(Part::Corpus, &self.conform, &[]), interrupted)
    }

    fn ask(&self, run: &Run<'_>, interrupted: &AtomicBool) -> anyhow::Result<()> {
        ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
        let name = run.program.file_name().unwrap_or_default();
        let told = format!("{} {}", name.to_string_lossy(), run.arguments.join(" "));
        let profile = format!("{}-%p-%m.profraw", run.part.name());
        let mut command = Command::new(run.program);
        command
            .current_dir(&self.root)
            .args(&run.arguments)
            .env("LLVM_PROFILE_FILE", self.profiles.join(profile))
            .env_remove("NEARWIRE_MUTATION");
        let begun = Instant::now();
        let mut output = Vec::new();
        let deadline = begun + RUN_LIMIT;
        let ending = command::run(&mut command, deadline, interrupted, &mut |event| {
            if let Event::Line(_, line) = event {
                output.push(line.to_owned());
            }
            Ok(())
        })?;
        let from = output.len().saturating_sub(TAIL_LINES);
        ensure!(
            matches!(ending, Ending::Exited(status) if status.success()),
            "`{told}`: {ending:?}\n{}",
            output[from..].join("\n")
        );
        eprintln!("{:>6.1} s  {told}", begun.elapsed().as_secs_f64());
        Ok(())
    }

    /// Which lines the parts run.
    fn lines(&self, llvm: &Llvm, parts: &[Part]) -> anyhow::Result<Lines> {
        let is_theirs = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.ends_with(".profraw") && parts.iter().any(|part| name.starts_with(part.name()))
        };
        let files = fs::read_dir(&self.profiles)
            .with_context(|| format!("read {}", self.profiles.display()))?;
        let mut profiles = Vec::new();
        for file in files {
            let path = file?.path();
            if is_theirs(&path) {
                profiles.push(path);
            }
        }
        let names: Vec<_> = parts.iter().map(|part| part.name()).collect();
        ensure!(!profiles.is_empty(), "{} left no profile", names.join(", "));
        let merged = self.profiles.join(names.join("-") + ".profdata");
        llvm.merge(&profiles, &merged)?;
        let programs = [&self.nearwire, &self.conform].into_iter();
        let programs = programs.chain(&self.models).chain(&self.corpus);
        let sources = self.root.join(SOURCES);
        // Of a function in two programs LLVM's tool takes the first that it meets, although it may
        // be one that only the other calls: so each program is asked alone.
        let mut lcov = String::new();
        for program in programs {
            lcov += &llvm.export(&merged, program, &sources)?;
        }
        Lines::parse(&lcov, &sources)
    }
}

/// The tests of a program.
fn tests(program: &Path) -> anyhow::Result<Vec<String>> {
    let listed = Command::new(program)
        .args(["--list", "--format", "terse"])
        .env("LLVM_PROFILE_FILE", "/dev/null")
        .output()
        .with_context(|| format!("start {}", program.display()))?;
    let listed = String::from_utf8_lossy(&listed.stdout);
    let tests = listed
        .lines()
        .filter_map(|line| line.strip_suffix(": test"));
    let tests: Vec<_> = tests.map(str::to_owned).collect();
    ensure!(!tests.is_empty(), "{} has no tests", program.display());
    Ok(tests)
}

fn run_of<'a>(part: Part, program: &'a Path, arguments: &[&str]) -> Run<'a> {
    Run {
        part,
        program,
        arguments: arguments.iter().copied().map(str::to_owned).collect(),
    }
}
