//! `nearwire doctor`: what this machine can do.
//!
//! Each check tries what the runtime itself does, rather than reading what ought to be possible.

pub(super) mod xdp;

use super::Failure;
use super::output::{self, Output};
use datapath::Placement;
use nearwire::journal::{Disk, Flush, RealDisk};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use serde::Serialize;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Say what this machine can do, and what mends what it cannot.
///
/// Nothing is changed: what is tried is undone at once. The exit code is 3 if something is missing
/// without which no replica runs here.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  nearwire doctor
  nearwire doctor --data-directory /var/lib/nearwire
  nearwire doctor --output json | jq '.[] | select(.result != \"ok\") | .remedy'")]
pub(crate) struct Args {
    /// The directory whose file system is tried; if it is missing, the nearest one above it.
    #[arg(
        long,
        env = "NEARWIRE_DATA_DIRECTORY",
        value_name = "DIR",
        default_value = "."
    )]
    data_directory: PathBuf,
}

/// RWF_DSYNC, by which a write through io_uring is durable.
const OLDEST_KERNEL: (u32, u32) = (4, 7);
/// What a replica asks of the kernel for its socket, in each direction.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Kernels before 5.12 charge a ring's memory to this limit.
const RING_MEMORY_BYTES: u64 = 64 * 1024;
/// How long a datagram to this very machine may take.
const LOOPBACK: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Finding {
    /// As it should be.
    Ok,
    /// It works, but slower or with less.
    Warn,
    /// Replicas do not run without it.
    Missing,
}

impl Finding {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Missing => "missing",
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Check {
    pub(super) check: &'static str,
    pub(super) result: Finding,
    found: String,
    meaning: String,
    remedy: Option<String>,
}

impl Check {
    fn new(check: &'static str, result: Finding, found: String, meaning: &str) -> Self {
        Self {
            check,
            result,
            found,
            meaning: meaning.into(),
            remedy: None,
        }
    }

    fn ok(check: &'static str, found: impl Into<String>, meaning: &str) -> Self {
        Self::new(check, Finding::Ok, found.into(), meaning)
    }

    fn warn(check: &'static str, found: impl Into<String>, meaning: &str) -> Self {
        Self::new(check, Finding::Warn, found.into(), meaning)
    }

    fn missing(check: &'static str, found: impl Into<String>, meaning: &str) -> Self {
        Self::new(check, Finding::Missing, found.into(), meaning)
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

pub(crate) fn main(args: &Args, output: Output) -> anyhow::Result<()> {
    let checks = examine(&args.data_directory);
    match output {
        Output::Json => output::json(&checks)?,
        Output::Table => print(&checks)?,
    }
    let missing: Vec<_> = checks
        .iter()
        .filter(|check| check.result == Finding::Missing)
        .map(|check| check.check)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(", ");
    Err(
        Failure::unsupported(format!("this machine lacks: {missing}"))
            .remedy("see the rows above")
            .into(),
    )
}

/// For people.
pub(super) fn print(checks: &[Check]) -> anyhow::Result<()> {
    let head = ["check", "result", "found", "meaning"];
    let rows = checks.iter().map(|check| {
        [
            check.check.to_owned(),
            check.result.name().to_owned(),
            check.found.clone(),
            check.meaning.clone(),
        ]
    });
    output::line(&output::table(head, rows))?;
    // Commands stand by themselves: a column would break their lines.
    for check in checks {
        if let Some(remedy) = &check.remedy {
            output::line(&format!("\n{}: {remedy}", check.check))?;
        }
    }
    Ok(())
}

fn examine(data_directory: &Path) -> Vec<Check> {
    let mut checks = vec![
        kernel(),
        cpus(),
        clock_source(),
        udp(),
        socket_buffers(),
        fifo(),
        namespaces(),
        io_uring(),
        locked_memory(),
    ];
    checks.extend(storage(data_directory));
    checks.extend(xdp::checks(Path::new(nearwire::xdp::BPFFS)));
    checks
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or(String::new(), |text| text.trim().to_owned())
}

/// What the kernel calls itself, and the first two numbers of it.
fn kernel_version() -> (String, Option<(u32, u32)>) {
    let release = read("/proc/sys/kernel/osrelease");
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|n| n.parse().ok());
    let version = numbers.next().zip(numbers.next());
    (release, version)
}

fn kernel() -> Check {
    let (release, version) = kernel_version();
    let (major, minor) = OLDEST_KERNEL;
    match version {
        Some(version) if version >= OLDEST_KERNEL => {
            Check::ok("kernel", release, "batched datagrams and durable writes")
        }
        Some(_) => Check::missing("kernel", release, "too old for durable writes in one call")
            .remedy(format!("install Linux {major}.{minor} or later")),
        None => Check::warn("kernel", "unknown", "/proc does not tell the version")
            .remedy("mount -t proc proc /proc"),
    }
}

fn cpus() -> Check {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let found = format!("{cpus} for this process");
    if cpus >= 4 {
        Check::ok(
            "cpus",
            found,
            "polling replicas and clients can have one each",
        )
    } else {
        Check::warn("cpus", found, "polling needs 4: use wait = \"blocking\"")
            .remedy("taskset -pc $$ shows which CPUs this shell may use")
    }
}

fn clock_source() -> Check {
    let source = read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    match source.as_str() {
        "" => Check::warn("clock source", "unknown", "/sys does not tell"),
        "hpet" | "acpi_pm" | "jiffies" | "refined-jiffies" => Check::warn(
            "clock source",
            source,
            "each look at the clock is a microsecond and a system call",
        )
        .remedy("boot with clocksource=tsc, if the CPU's is stable"),
        _ => Check::ok(
            "clock source",
            source,
            "the clock is read without a system call",
        ),
    }
}

fn udp() -> Check {
    let trip = || {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(LOOPBACK))?;
        socket.send_to(b"nearwire", socket.local_addr()?)?;
        socket.recv(&mut [0; 16])
    };
    match trip() {
        Ok(_) => Check::ok(
            "udp",
            "a datagram to 127.0.0.1 arrived",
            "replicas can talk",
        ),
        Err(error) => Check::missing("udp", error.to_string(), "replicas cannot talk")
            .remedy("ip link set lo up, and see the firewall"),
    }
}

fn socket_buffers() -> Check {
    let granted = || -> io::Result<(usize, usize)> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let bytes = SOCKET_BUFFER_BYTES;
        if setsockopt(&socket, sockopt::RcvBufForce, &bytes).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &bytes)?;
        }
        if setsockopt(&socket, sockopt::SndBufForce, &bytes).is_err() {
            setsockopt(&socket, sockopt::SndBuf, &bytes)?;
        }
        // socket(7): the kernel doubles what is asked for and reports the double.
        let receive = getsockopt(&socket, sockopt::RcvBuf)? / 2;
        Ok((receive, getsockopt(&socket, sockopt::SndBuf)? / 2))
    };
    let (receive, send) = match granted() {
        Ok(granted) => granted,
        Err(error) => {
            return Check::warn(
                "socket buffers",
                error.to_string(),
                "their size is not known",
            );
        }
    };
    let found = format!("{} KiB in, {} KiB out", receive / 1024, send / 1024);
    if receive.min(send) >= SOCKET_BUFFER_BYTES {
        Check::ok(
            "socket buffers",
            found,
            "bursts fit while a worker is off its CPU",
        )
    } else {
        let bytes = SOCKET_BUFFER_BYTES;
        Check::warn(
            "socket buffers",
            found,
            "bursts are dropped earlier, and sent again",
        )
        .remedy(format!(
            "sysctl -w net.core.rmem_max={bytes} net.core.wmem_max={bytes}"
        ))
    }
}

/// Runs `attempt` on a thread of its own, which takes with it whatever was changed for it.
fn on_a_thread<T: Send + 'static>(attempt: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    thread::Builder::new().spawn(attempt).ok()?.join().ok()
}

fn fifo() -> Check {
    let placement = Placement {
        fifo_priority: Some(1),
        ..Placement::default()
    };
    match on_a_thread(move || placement.apply()) {
        Some(Ok(())) => Check::ok(
            "SCHED_FIFO",
            "permitted",
            "worker.fifo_priority can be used",
        ),
        Some(Err(_)) | None => Check::warn(
            "SCHED_FIFO",
            "not permitted",
            "worker.fifo_priority cannot be used",
        )
        .remedy("setcap cap_sys_nice+ep $(command -v nearwire), or ulimit -r 99 as root"),
    }
}

fn namespaces() -> Check {
    let unshared = on_a_thread(|| unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS));
    match unshared {
        Some(Ok(())) if Path::new("/proc/net/dev").exists() => Check::ok(
            "namespaces",
            "permitted",
            "`nearwire bench --where netns` can lay its network",
        ),
        Some(_) | None => Check::warn(
            "namespaces",
            "not permitted",
            "benchmarks run on loopback only",
        )
        .remedy("run them as root: sudo nearwire bench lat --where netns"),
    }
}

fn io_uring() -> Check {
    match io_uring::IoUring::new(2) {
        Ok(_) => Check::ok(
            "io_uring",
            "permitted",
            "the journal writes without a system call each",
        ),
        Err(error) => Check::warn(
            "io_uring",
            error.to_string(),
            "the journal uses pwrite instead",
        )
        .remedy("sysctl -w kernel.io_uring_disabled=0, and see the container's seccomp profile"),
    }
}

fn locked_memory() -> Check {
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    let found = if limit == u64::MAX {
        "unlimited".to_owned()
    } else {
        format!("{} KiB", limit / 1024)
    };
    if limit >= RING_MEMORY_BYTES {
        Check::ok("memlock", found, "the journal's ring fits")
    } else {
        Check::warn(
            "memlock",
            found,
            "before Linux 5.12 the journal's ring may be refused",
        )
        .remedy("ulimit -l 1024")
    }
}

/// What is said of the data directory: its file system, and how a durable write reaches it.
fn storage(data_directory: &Path) -> Vec<Check> {
    let directory = existing(data_directory);
    let place = directory.display();
    let mut checks = Vec::new();
    let volatile = statfs(&directory).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC);
    checks.push(if volatile {
        Check::warn(
            "file system",
            format!("tmpfs at {place}"),
            "what is there does not survive a reboot: no place for durability = \"sync\"",
        )
        .remedy("--data-directory DIR on a disk")
    } else {
        Check::ok(
            "file system",
            format!("a disk at {place}"),
            "what is there survives a reboot",
        )
    });
    checks.push(durable_writes(data_directory, &directory));
    checks
}

/// Tries in `directory` what a replica will do in `wanted`.
fn durable_writes(wanted: &Path, directory: &Path) -> Check {
    const CHECK: &str = "durable writes";
    let scratch = directory.join(format!(".nearwire-doctor-{}", std::process::id()));
    let probed = fs::create_dir(&scratch).and_then(|()| RealDisk::probe(&scratch, Flush::Before));
    // What is left over if this fails is an empty directory, whose name says whose it is.
    let _ = fs::remove_dir_all(&scratch);
    match probed {
        Ok(disk) if disk.path().contains("O_DIRECT") => {
            Check::ok(CHECK, disk.path(), "the journal bypasses the page cache")
        }
        Ok(disk) => Check::warn(
            CHECK,
            disk.path(),
            "no O_DIRECT here: each flush writes the page cache back",
        )
        .remedy("--data-directory DIR on ext4 or XFS"),
        Err(error) => Check::missing(
            CHECK,
            format!("{}: {error}", directory.display()),
            "a replica cannot keep anything here",
        )
        .remedy(format!(
            "sudo install -d -o $USER {}, or --data-directory DIR",
            wanted.display()
        )),
    }
}

/// The directory, or the nearest one above it that is there.
fn existing(directory: &Path) -> PathBuf {
    let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    let found = absolute.ancestors().find(|path| path.is_dir());
    found.unwrap_or(Path::new("/")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_well_has_a_remedy() {
        let scratch = tempfile::tempdir().expect("a directory");
        for check in examine(&scratch.path().join("not/yet/there")) {
            let mended = check.remedy.is_some() || check.found == "unknown";
            assert!(check.result == Finding::Ok || mended, "{check:?}");
        }
    }

    #[test]
    fn nothing_is_left_behind() {
        let scratch = tempfile::tempdir().expect("a directory");
        storage(scratch.path());
        assert_eq!(fs::read_dir(scratch.path()).expect("listed").count(), 0);
    }
}
