//! The table of steps. A new step is a function and a row here.

use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use nix::unistd::geteuid;

use crate::packages::{GIT, IPROUTE2, Package, REDIS_TOOLS};
use crate::stage::Stage;
use crate::tools::Tools;
use crate::workspace::Workspace;
use crate::{build_graph, chaos, ebpf, guest, mutants, plain_build};

/// A step that has not ended by then hangs. Cold builds on two cores take a quarter of it.
const STEP_LIMIT: Duration = Duration::from_secs(20 * 60);

/// Files of this prefix in any member's `tests/` need root, and run in their own step.
const PRIVILEGED_PREFIX: &str = "privileged_";
/// Of these, those that load objects which have to be built first, and run in a step of their own.
const OF_OBJECTS: [&str; 2] = ["privileged_xdp_defects", "privileged_xdp_duel"];
/// Where the tests find these objects.
const OBJECTS: &str = "NEARWIRE_XDP_OBJECTS";
/// Files of this prefix hold property tests only.
const PROPERTY_PREFIX: &str = "property_";
/// Unit-level property tests that deserve more cases stand in modules of this name.
const PROPERTY_MODULE: &str = "properties::";
/// A loom model is an empty file without its own cfg.
const LOOM_TEST: &str = "loom";
/// Models of what no other crate sees stand in modules of this name.
const LOOM_MODULE: &str = "loom_tests::";

/// Cases per property in the property step; elsewhere proptest's own 256.
const PROPERTY_CASES: &str = "2048";

/// What steps are given beside their stage.
pub(crate) struct Bench<'a> {
    pub(crate) workspace: &'a Workspace,
    pub(crate) tools: &'a mut Tools,
}

/// How a step that did not fail ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Done,
    /// Done, with something the summary should say.
    DoneWith(String),
    /// Nothing was run, and why.
    Skipped(String),
}

/// One row of the table.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    /// What it does, for `--list`.
    pub(crate) what: &'static str,
    /// Whether it runs tests, which are then counted one by one.
    pub(crate) tests: bool,
    pub(crate) packages: &'static [Package],
    pub(crate) limit: Duration,
    pub(crate) run: fn(&mut Bench<'_>, &mut Stage<'_>) -> anyhow::Result<Verdict>,
}

const CHECK: Step = Step {
    name: "",
    what: "",
    tests: false,
    packages: &[],
    limit: STEP_LIMIT,
    run: |_, _| Ok(Verdict::Done),
};
const TESTS: Step = Step {
    tests: true,
    ..CHECK
};

/// Every step, in the order of running: cheap ones first, and what shares a build together.
pub(crate) const STEPS: &[Step] = &[
    Step {
        name: "format",
        what: "the sources are as rustfmt writes them",
        run: format,
        ..CHECK
    },
    Step {
        name: "build-graph",
        what: "the default build runs no bindgen, cmake, pkg-config or nasm, and compiles no C but by `cc`",
        run: build_graph::check,
        ..CHECK
    },
    Step {
        name: "lints",
        what: "clippy on every target, benches among them, warnings denied",
        run: lints,
        ..CHECK
    },
    Step {
        name: "unit",
        what: "tests beside the code, property tests among them",
        run: unit,
        ..TESTS
    },
    Step {
        name: "property",
        what: "tests/property_*.rs and modules named `properties`, with more cases",
        run: property,
        ..TESTS
    },
    Step {
        name: "integration",
        what: "the other tests/*.rs of all members",
        packages: &[REDIS_TOOLS],
        run: integration,
        ..TESTS
    },
    Step {
        name: "privileged",
        what: "tests/privileged_*.rs of all members, as root",
        packages: &[IPROUTE2],
        run: privileged,
        ..TESTS
    },
    Step {
        name: "chaos",
        what: "processes under faults on purpose, and two deliberate bugs that must show; as root",
        packages: &[IPROUTE2],
        run: chaos::check,
        ..TESTS
    },
    Step {
        name: "guest",
        what: "those of them that load programs, on Linux 6.1 in a guest",
        packages: guest::PACKAGES,
        run: guest::check,
        ..TESTS
    },
    Step {
        name: "ebpf",
        what: "the committed XDP object is what its sources make, and cannot panic",
        run: ebpf::check,
        ..CHECK
    },
    Step {
        name: "xdp",
        what: "leaders duel in the kernel, and each defect of the step is caught there; as root",
        run: xdp,
        ..TESTS
    },
    Step {
        name: "mutants",
        what: "deliberate defects of the core, each caught by a test that takes seconds",
        run: mutants::quick,
        ..CHECK
    },
    Step {
        name: "docs",
        what: "rustdoc, warnings denied",
        run: docs,
        ..CHECK
    },
    Step {
        name: "doctest",
        what: "the examples in the documentation",
        run: doctest,
        ..TESTS
    },
    Step {
        name: "loom",
        what: "the step, wakers and queues under every interleaving",
        run: loom,
        ..TESTS
    },
    Step {
        name: "package",
        what: "every published crate packs",
        run: package,
        ..CHECK
    },
    Step {
        name: "plain-build",
        what: "an ordinary user with cargo, rustc, cc, as, ld and ar builds nearwire and runs the demo",
        packages: &[GIT],
        run: plain_build::prove,
        ..CHECK
    },
    // Last, because cargo-deny is compiled behind the steps before it.
    Step {
        name: "deny",
        what: "licences, bans and sources of dependencies",
        run: deny,
        ..CHECK
    },
];

fn format(bench: &mut Bench<'_>, stage: &mut Stage<'_>) -> anyhow::Result<Verdict> {
    let check = ["fmt", "--all", "--check", "--", "--color", "never"];
    stage.run(&mut bench.workspace.cargo(check))?;
    // Outside the workspace, because it is compiled for BPF.
    let programs = [
        "fmt",
        "--manifest-path",
        "ebpf/programs/Cargo.toml",
        "--check",
    ];
    stage.run(&mut bench.workspace.cargo(programs))?;
    Ok(Verdict::Done)
}

fn lints(bench: &mut Bench<'_>, stage: &mut Stage<'_>) -> anyhow::Result<Verdict> {
    stage.run(&mut bench.workspace.cargo([
        "clippy",
        "--locked",
        "--keep-going",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    Ok(Verdict::Done)
}

fn unit(bench: &mut Bench<'_>, stage: &mut Stage<'_>) -> anyhow::Result<Verdict> {
    let mut command = cargo_test(bench.workspace, ["--lib", "--bins"]);
    stage.run(command.args(["--", "--skip", PROPERTY_MODULE]))?;
    Ok(Verdict::Done)
}

fn property(bench: &mut Bench<'_>, stage: &mut Stage<'_>) -> anyhow::Result<Verdict> {
    let mut beside = cargo_test(bench.workspace, ["--lib", "--bins"]);
    beside
        .args(["--", PROPERTY_MODULE])
        .env("PROPTEST_CASES", PROPERTY_CASES);
    stage.run(&mut beside)?;
    let files = bench
        .workspace
        .tests(|name| name.starts_with(PROPERTY_PREFIX));
    if !files.is_empty() {
        let mut apart = test_files(bench.workspace, &files);
        stage.run(apart.env("PROPTEST_CASES", PROPERTY_CASES))?;
    }
    if stage.tally.counts().total() == 0 {
        return Ok(Verdict::Skipped(
            "none stand apart; all ran in `unit`".to_owned(),
        ));
    }
    Ok(Verdict::Done)
}

fn integration(bench: &mut Bench<'_>, stage: &mut Stage<'_>) -> anyhow::Result<Verdict> {
    let apart = |name: &str| {
        name == LOOM_TEST
            || name.starts_with(PROPERTY_PREFIX)
            || name.starts_with(PRIVILEGED_PREFIX)
    };
    let files = bench.workspace.tests(|name| !apart(name));
    if files.is_empty() {
        return Ok(Verdict::Skipped(
            "no member has tests of this kind".to_owned(),
        ));
    }
    stage.run(&mut test_files(bench.workspace, &files))?;
    Ok(Verdict::Done)
}

fn privileged(bench: &mut Bench<'_>, stage: &mut Stage<'_>) -> anyhow::Result<Verdict> {
    let files = bench.workspace.tests(|name| {
        let apart = OF_OBJECTS.contains(&name) || name == chaos::TEST;
        name.starts_with(PRIVILEGED_PREFIX) && !apart
    });
    if files.is_empty() {
        return Ok(Verdict::Skipped(
            "no member has tests of this kind".to_owned(),
        ));
    }
    if let Some(needs) = without_root("cargo xtask test --only privileged") {
        return Ok(Verdict::Skipped(needs));
    }
    stage.run(&mut test_files(bench.workspace, &files))?;
    Ok(Verdict::Done)
}

fn xdp(bench: &mut Bench<'_>, stage: &mut Stage<'_>) -> anyhow::Result<Verdict> {
    if let Some(needs) = without_root("cargo xtask test --only xdp") {
        return Ok(Verdict::Skipped(needs));
    }
    let objects = match ebpf::of_tests(bench.workspace)? {
        Ok(objects) => objects,
        Err(missing) => return Ok(Verdict::Skipped(missing)),
    };
    let mut command = test_files(bench.workspace, &OF_OBJECTS);
    stage.run(command.env(OBJECTS, objects))?;
    Ok(Verdict::Done)
}

/// What `command` lacks, if this user is not root.
pub(crate) fn without_root(command: &str) -> Option<String> {
    let needs = format!("needs root: sudo -E env PATH=\"$PATH\" {command}");
    (!geteuid().is_root()).then_some(needs)
}

fn docs(bench: &mut Bench<'_>, stage: &mut Stage<'_>) -> anyhow::Result<Verdict> {
    let mut command = bench
        .workspace
        .cargo(["doc", "--locked", "--workspace", "--no-deps"]);
    stage.run(command.env("RUSTDOCFLAGS", "-D warnings"))?;
    Ok(Verdict::Done)
}

fn doctest(bench: &mut Bench<'_>, stage: &mut Stage<'_>) -> anyhow::Result<Verdict> {
    stage.run(&mut cargo_test(bench.workspace, ["--doc"]))?;
    Ok(Verdict::Done)
}

fn loom(bench: &mut Bench<'_>, stage: &mut Stage<'_>) -> anyhow::Result<Verdict> {
    let workspace = bench.workspace;
    let packages: Vec<_> = workspace.loom_packages().collect();
    if packages.is_empty() {
        return Ok(Verdict::Skipped("no member depends on loom".to_owned()));
    }
    let has_file = |package: &&str| workspace.has_test(package, LOOM_TEST);
    let apart: Vec<_> = packages.iter().copied().filter(has_file).collect();
    if !apart.is_empty() {
        stage.run(loom_test(workspace, &apart).args(["--test", LOOM_TEST]))?;
    }
    stage.run(loom_test(workspace, &packages).args(["--lib", "--", LOOM_MODULE]))?;
    Ok(Verdict::Done)
}

fn loom_test(workspace: &Workspace, packages: &[&str]) -> Command {
    let mut command = workspace.cargo(["test", "--locked", "--release", "--no-fail-fast"]);
    command
        .args(packages.iter().flat_map(|package| ["--package", package]))
        .env("RUSTFLAGS", "--cfg loom")
        // The models are fast enough without; linking is not.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_TARGET_DIR", workspace.target.join("loom"));
    command
}

fn deny(bench: &mut Bench<'_>, stage: &mut Stage<'_>) -> anyhow::Result<Verdict> {
    let program = bench.tools.cargo_deny(bench.workspace, stage)?;
    let mut command = Command::new(program);
    command
        .current_dir(&bench.workspace.root)
        .args(["--locked", "check", "licenses", "bans", "sources"]);
    stage.run(&mut command).context("deny.toml is not kept")?;
    Ok(Verdict::Done)
}

fn package(bench: &mut Bench<'_>, stage: &mut Stage<'_>) -> anyhow::Result<Verdict> {
    stage.run(&mut bench.workspace.cargo([
        "package",
        "--locked",
        "--workspace",
        "--exclude",
        "xtask",
        "--no-verify",
        // The step judges the working tree, committed or not.
        "--allow-dirty",
    ]))?;
    ebpf::check_package(bench.workspace)?;
    Ok(Verdict::Done)
}

fn cargo_test<'a>(workspace: &Workspace, targets: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = workspace.cargo(["test", "--locked", "--workspace", "--no-fail-fast"]);
    command.args(targets);
    command
}

pub(crate) fn test_files(workspace: &Workspace, files: &[&str]) -> Command {
    cargo_test(workspace, files.iter().flat_map(|file| ["--test", file]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_has_a_name_of_its_own_and_says_what_it_does() {
        let mut names: Vec<_> = STEPS.iter().map(|step| step.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), STEPS.len());
        assert!(
            STEPS
                .iter()
                .all(|step| !step.name.is_empty() && !step.what.is_empty())
        );
    }
}
