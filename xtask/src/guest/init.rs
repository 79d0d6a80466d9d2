//! The first process of a guest: makes the system ready, loads the modules, runs the tests and
//! tells QEMU what came of them.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::{self, Command};

use anyhow::{Context as _, ensure};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use serde_json::Value;

use super::{PLAN, Verdict};

/// What is mounted where.
const MOUNTS: [(&str, &str); 6] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("bpf", "/sys/fs/bpf"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
];
/// The second serial line, which is standard output of QEMU. The kernel writes to the first.
const OUTPUT: &str = "/dev/ttyS1";
/// The port of QEMU's `isa-debug-exit`.
pub(super) const EXIT_PORT: u64 = 0xf4;

/// Does everything and ends the machine. Returns only if that is impossible; the kernel then dies
/// of it, and the guest with the kernel.
pub(crate) fn run() -> anyhow::Result<bool> {
    ensure!(
        process::id() == 1,
        "this is the first process of a guest, which `cargo xtask guest` starts"
    );
    for (kind, directory) in MOUNTS {
        fs::create_dir_all(directory).with_context(|| format!("create {directory}"))?;
        mount(
            Some(kind),
            directory,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mount {kind} on {directory}"))?;
    }
    let mut output = OpenOptions::new()
        .write(true)
        .open(OUTPUT)
        .with_context(|| format!("open {OUTPUT}"))?;
    let verdict = run_plan(&output).unwrap_or_else(|error| {
        // Without an output there is nobody to tell.
        let _ = writeln!(output, "error: {error:#}");
        Verdict::Broken
    });
    // Closing waits until all of it has been sent.
    drop(output);
    end(verdict)
}

fn run_plan(output: &File) -> anyhow::Result<Verdict> {
    let plan = fs::read(Path::new("/").join(PLAN)).context("read the plan")?;
    let plan: Value = serde_json::from_slice(&plan).context("read the plan")?;
    for module in strings(&plan["modules"]) {
        let load = || format!("load the kernel module {module}");
        let file = File::open(module).with_context(load)?;
        finit_module(&file, c"", ModuleInitFlags::empty()).with_context(load)?;
    }
    let mut verdict = Verdict::Passed;
    run_program(
        Command::new("/bin/ip").args(["link", "set", "lo", "up"]),
        output,
    )
    .context("bring the loopback interface up")?;
    for test in plan["tests"].as_array().into_iter().flatten() {
        let name = test["name"].as_str().context("read the plan")?;
        let mut command = Command::new(Path::new("/tests").join(name));
        command.args(strings(&plan["arguments"]));
        for (variable, value) in test["environment"].as_object().into_iter().flatten() {
            command.env(variable, value.as_str().context("read the plan")?);
        }
        let mut output = output;
        writeln!(output, "     Running {name}").context("write to the serial line")?;
        if let Err(error) = run_program(&mut command, output) {
            writeln!(output, "{name}: {error:#}").context("write to the serial line")?;
            verdict = Verdict::Failed;
        }
    }
    Ok(verdict)
}

fn run_program(command: &mut Command, output: &File) -> anyhow::Result<()> {
    let stream = || output.try_clone().context("share the serial line");
    let status = command
        .env("PATH", "/bin")
        .env("TMPDIR", "/tmp")
        .env("RUST_BACKTRACE", "1")
        .stdout(stream()?)
        .stderr(stream()?)
        .status()
        .with_context(|| format!("start {}", command.get_program().to_string_lossy()))?;
    ensure!(status.success(), "{status}");
    Ok(())
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

fn end(verdict: Verdict) -> anyhow::Result<bool> {
    let mut ports = OpenOptions::new()
        .write(true)
        .open("/dev/port")
        .context("open /dev/port")?;
    ports
        .seek(SeekFrom::Start(EXIT_PORT))
        .and_then(|_| ports.write_all(&[verdict as u8]))
        .context("end the machine")?;
    Ok(false)
}
