//! `cargo xtask guest`: runs tests as root on another kernel, in a QEMU guest that boots into them.
//!
//! A guest test is an integration test like any other, which its package's manifest names:
//!
//! ```toml
//! [package.metadata.guest.privileged_xdp_veth]
//! modules = ["veth", "bridge"]            # of the kernel; those that they need come with them
//! packages = ["xdp-tools", "libxdp1"]     # of Debian; those that they need are named as well
//! environment = { NEARWIRE_MESSAGES = "1000" }
//! ```
//!
//! Its executable, the shared libraries and modules, and this program as first process are packed
//! into the file system that the kernel starts with. Nothing else is in the guest. It has two serial
//! lines: the kernel's console is QEMU's standard error, what tests print is its standard output.

mod archive;
mod init;
mod kernel;
mod libraries;
mod rig;

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::BufWriter;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::builder::PossibleValuesParser;
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::executables::{MESSAGES, executables, named};
use crate::libtest::Counts;
use crate::packages::{IPROUTE2, Package, XZ_UTILS, find};
use crate::stage::{Display, Stage};
use crate::step::{self, Bench};
use crate::workspace::{GuestTest, Workspace};
use archive::Archive;
pub(crate) use init::run as init;
use libraries::{libraries, loader};
use rig::Rig;

/// Kernels that a guest can have, as Debian's packages are called. The first one is the default.
const KERNELS: [&str; 1] = ["6.1"];
/// What has to be installed here.
pub(crate) const PACKAGES: &[Package] = &[IPROUTE2, XZ_UTILS];
/// A cold build of the tests takes half of it on two cores.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// A guest that runs longer hangs: on two busy cores it takes a fifth of it.
const GUEST_LIMIT: Duration = Duration::from_secs(5 * 60);
/// Memory in MiB, of which the initramfs takes twice its size while it is unpacked.
const MEMORY_MIB: &str = "1024";
const PROCESSORS: &str = "2";
/// How the first process is told what to do, in the initramfs.
const PLAN: &str = "plan.json";
/// What a person sets for tests on the host holds in the guest, too.
const OWN_VARIABLES: &str = "NEARWIRE_";

/// What a guest's first process tells QEMU. Whatever else ends QEMU is none of these: it ends with
/// 0 if the kernel dies, since a machine that reboots is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Verdict {
    Passed = 0x10,
    /// At least one test executable failed.
    Failed = 0x11,
    /// The tests could not be run.
    Broken = 0x12,
}

impl Verdict {
    /// How QEMU ends: `isa-debug-exit` makes the lowest bit one.
    const fn exit_code(self) -> i32 {
        (self as i32) << 1 | 1
    }
}

/// Which tests on which kernel.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The kernel's version.
    #[arg(long, value_name = "VERSION", default_value = KERNELS[0],
        value_parser = PossibleValuesParser::new(KERNELS))]
    kernel: String,

    /// These tests only.
    #[arg(long = "test", value_name = "NAME", num_args = 1.., value_delimiter = ',')]
    tests: Vec<String>,

    /// List the tests with the kernel modules that they name, and stop.
    #[arg(long)]
    list: bool,

    /// What each test executable is given.
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Runs what is asked for; the answer is whether all of it passed.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let workspace = Workspace::load()?;
    if arguments.list {
        for test in workspace.guest_tests() {
            println!("{:<24} {}", test.name, test.modules.join(" "));
        }
        return Ok(true);
    }
    let chosen = chosen(workspace.guest_tests(), &arguments.tests)?;
    if let Some(lacking) = rig::lacking() {
        bail!(lacking);
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))
            .context("watch for signals")?;
    }
    let log = workspace.log("guest");
    let mut stage = Stage::open("guest".to_owned(), log, Display::Echo, LIMIT, &interrupted)?;
    let guest = Guest {
        kernel: &arguments.kernel,
        tests: &chosen,
        arguments: &arguments.arguments,
    };
    guest.run(&workspace, &mut stage)?;
    let Counts { passed, .. } = stage.tally.counts();
    println!(
        "{passed} tests passed on Linux {} in {:.0} s",
        arguments.kernel,
        stage.elapsed().as_secs_f64()
    );
    Ok(true)
}

/// Runs all guest tests on the oldest kernel.
pub(crate) fn check(bench: &mut Bench<'_>, stage: &mut Stage<'_>) -> anyhow::Result<step::Verdict> {
    if let Some(lacking) = rig::lacking() {
        // What nobody notices is missing protects nothing.
        ensure!(env::var_os("CI").is_none(), lacking);
        return Ok(step::Verdict::Skipped(lacking));
    }
    let tests: Vec<_> = bench.workspace.guest_tests().iter().collect();
    let guest = Guest {
        kernel: KERNELS[0],
        tests: &tests,
        arguments: &[],
    };
    guest.run(bench.workspace, stage)?;
    Ok(step::Verdict::Done)
}

fn chosen<'a>(tests: &'a [GuestTest], names: &[String]) -> anyhow::Result<Vec<&'a GuestTest>> {
    for name in names {
        ensure!(
            tests.iter().any(|test| test.name == *name),
            "no test {name} is for guests: see `cargo xtask guest --list`"
        );
    }
    let is_chosen = |test: &&GuestTest| names.is_empty() || names.contains(&test.name);
    Ok(tests.iter().filter(is_chosen).collect())
}

/// One boot.
struct Guest<'a> {
    kernel: &'a str,
    tests: &'a [&'a GuestTest],
    /// What each test executable is given.
    arguments: &'a [String],
}

impl Guest<'_> {
    /// Fetches, builds, packs and boots; anything but tests that pass is an error.
    fn run(&self, workspace: &Workspace, stage: &mut Stage<'_>) -> anyhow::Result<()> {
        let cache = workspace.target.join("guest");
        let rig = Rig::provide(&cache, self.kernel, workspace.guest_tests(), stage)
            .with_context(|| format!("fetch QEMU and Linux {}", self.kernel))?;
        let names = self.tests.iter().map(|test| test.name.as_str());
        let mut build = step::test_files(workspace, &names.collect::<Vec<_>>());
        let messages = stage.read(build.args(["--no-run", MESSAGES]))?;
        let initramfs = cache.join("initramfs");
        self.pack(&rig, &messages, &initramfs)?;
        let mut qemu = machine(&rig, &initramfs);
        let ended = stage.status_within(GUEST_LIMIT, &mut qemu);
        fs::remove_file(&initramfs).with_context(|| format!("remove {}", initramfs.display()))?;
        judge(ended?)?;
        ensure!(stage.tally.counts().total() > 0, "no test ran in the guest");
        // A guest is made for its tests: what one of them lacks is the rig's fault.
        ensure!(
            stage.tally.skips.is_empty(),
            "skipped in the guest, which is to have everything: {}",
            stage.tally.skips.join("; ")
        );
        Ok(())
    }

    fn pack(&self, rig: &Rig, messages: &str, initramfs: &Path) -> anyhow::Result<()> {
        let write = || format!("write {}", initramfs.display());
        let file = File::create(initramfs).with_context(write)?;
        let mut archive = Archive::new(BufWriter::new(file));
        for directory in ["proc", "sys", "dev", "run", "tmp"] {
            archive.directory(directory)?;
        }
        let this = env::current_exe().context("find this program")?;
        add_program(&mut archive, "init", &this)?;
        let ip = find("ip").context("find `ip`: install iproute2")?;
        add_program(&mut archive, "bin/ip", &ip)?;
        let executables = executables(messages)?;
        let mut modules: Vec<String> = Vec::new();
        let mut tests = Vec::new();
        for test in self.tests {
            let executable = named(&executables, &test.name, true)?;
            add_program(&mut archive, &format!("tests/{}", test.name), executable)?;
            modules.extend_from_slice(&test.modules);
            for package in &test.packages {
                for (name, path) in rig.files(package)? {
                    archive.copy(&name, &path)?;
                }
            }
            let mut environment = test.environment.clone();
            environment.extend(own_variables());
            tests.push(json!({"name": test.name, "environment": environment}));
        }
        let mut paths = Vec::new();
        for module in rig.modules(&modules)? {
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            let name = format!("modules/{name}");
            archive.copy(&name, &module)?;
            paths.push(format!("/{name}"));
        }
        let plan = json!({"modules": paths, "tests": tests, "arguments": self.arguments});
        archive.file(PLAN, plan.to_string().as_bytes())?;
        archive.finish().map(drop)
    }
}

fn own_variables() -> impl Iterator<Item = (String, String)> {
    env::vars().filter(|(name, _)| name.starts_with(OWN_VARIABLES))
}

/// Adds a program with its loader and libraries. The latter are all in one directory, where every
/// loader looks.
fn add_program(
    archive: &mut Archive<BufWriter<File>>,
    name: &str,
    path: &Path,
) -> anyhow::Result<()> {
    archive.copy(name, path)?;
    let Some(loader) = loader(path)? else {
        return Ok(());
    };
    for library in libraries(path, &loader, &[])? {
        archive.copy(&format!("lib/{}", library.name), &library.path)?;
    }
    let name = loader.to_string_lossy();
    archive.copy(name.trim_start_matches('/'), &loader)
}

fn machine(rig: &Rig, initramfs: &Path) -> Command {
    let mut qemu = rig.qemu();
    // A busy host delays the timer whose check is left out, and what mitigations protect is not here.
    let command_line = "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check \
                        rdinit=/init -- guest-init";
    let exit = format!("isa-debug-exit,iobase={:#x},iosize=1", init::EXIT_PORT);
    qemu.args(["-machine", "q35", "-cpu", "max"])
        .args(["-accel", if has_kvm() { "kvm" } else { "tcg" }])
        .args(["-smp", PROCESSORS, "-m", MEMORY_MIB])
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-device", &exit])
        .args(["-serial", "file:/dev/stderr"])
        .args(["-serial", "file:/dev/stdout"])
        .args(["-append", command_line])
        .arg("-kernel")
        .arg(rig.vmlinux())
        .arg("-initrd")
        .arg(initramfs);
    qemu
}

/// Whether KVM works. In some virtual machines it opens all the same, and a guest dies under it.
fn has_kvm() -> bool {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut words = processors.split_whitespace();
    words.any(|word| matches!(word, "vmx" | "svm"))
        && OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok()
}

fn judge(status: ExitStatus) -> anyhow::Result<()> {
    const PASSED: i32 = Verdict::Passed.exit_code();
    const FAILED: i32 = Verdict::Failed.exit_code();
    const BROKEN: i32 = Verdict::Broken.exit_code();
    match status.code() {
        Some(PASSED) => Ok(()),
        Some(FAILED) => bail!("a test failed in the guest"),
        Some(BROKEN) => bail!("the guest could not run its tests"),
        Some(0) => bail!("the guest's kernel died; its last words are above"),
        _ => bail!("QEMU ended with {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;

    #[test]
    fn only_what_the_first_process_says_is_a_pass() {
        let exited = |code: i32| judge(ExitStatus::from_raw(code << 8)).map_err(|e| e.to_string());
        assert_eq!(exited(33), Ok(()));
        assert_eq!(exited(35), Err("a test failed in the guest".to_owned()));
        assert_eq!(
            exited(37),
            Err("the guest could not run its tests".to_owned())
        );
        let died = exited(0).expect_err("a kernel that dies ends QEMU with 0");
        assert!(died.starts_with("the guest's kernel died"), "{died}");
        // QEMU itself fails, or is killed.
        assert!(exited(1).is_err());
        assert!(judge(ExitStatus::from_raw(9)).is_err());
    }

    #[test]
    fn a_test_that_is_not_for_guests_is_refused() {
        let tests = ["a", "b"].map(|name| GuestTest {
            name: name.to_owned(),
            ..GuestTest::default()
        });
        let names = |chosen: &[&str]| {
            let chosen: Vec<_> = chosen.iter().map(|name| (*name).to_owned()).collect();
            let found = super::chosen(&tests, &chosen).ok()?;
            Some(found.iter().map(|test| test.name.clone()).collect())
        };
        let of = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(names(&[]), of(&["a", "b"]));
        assert_eq!(names(&["b"]), of(&["b"]));
        assert_eq!(names(&["b", "c"]), None::<Vec<String>>);
    }
}
