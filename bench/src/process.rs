//! CPU time and memory of processes and threads.

use nix::libc;
use nix::time::ClockId;
use nix::unistd::{SysconfVar, sysconf};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Whose time is counted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Subject {
    /// A process: all its threads, those that ended included.
    Process(u32),
    /// One thread of a process.
    Thread {
        /// The process.
        process: u32,
        /// The thread, as `gettid` names it.
        thread: u32,
    },
}

impl Subject {
    /// The calling thread.
    pub fn this_thread() -> Self {
        let thread = nix::unistd::gettid().as_raw();
        Self::Thread {
            process: std::process::id(),
            thread: thread.unsigned_abs(),
        }
    }

    fn file(self, name: &str) -> PathBuf {
        match self {
            Self::Process(process) => format!("/proc/{process}/{name}").into(),
            Self::Thread { process, thread } => {
                format!("/proc/{process}/task/{thread}/{name}").into()
            }
        }
    }

    /// Time in user space and in the kernel, in nanoseconds as the scheduler counts them.
    ///
    /// It is the CPU-time clock of the process or thread (`clock_getcpuclockid(3)`): the fields of
    /// `/proc/PID/stat` move in steps of 10 ms. Another process' *thread* has no such clock that we
    /// may read.
    ///
    /// # Errors
    /// The process or thread has ended.
    pub fn cpu_time(self) -> io::Result<Duration> {
        let clock = self.clock().ok_or(io::ErrorKind::NotFound)?;
        Ok(ClockId::from_raw(clock).now()?.into())
    }

    /// The clock's number as the kernel composes it (`MAKE_PROCESS_CPUCLOCK` and
    /// `MAKE_THREAD_CPUCLOCK` in linux/posix-timers.h, unchanged since 2.6.12).
    fn clock(self) -> Option<libc::clockid_t> {
        const SCHEDULER: libc::clockid_t = 2;
        const PER_THREAD: libc::clockid_t = 4;
        let (number, kind) = match self {
            Self::Process(process) => (process, SCHEDULER),
            Self::Thread { thread, .. } => (thread, SCHEDULER | PER_THREAD),
        };
        let number = libc::clockid_t::try_from(number).ok()?;
        Some(!number << 3 | kind)
    }

    /// Resident memory of the process in bytes.
    ///
    /// # Errors
    /// The process has ended.
    pub fn resident_bytes(self) -> io::Result<u64> {
        let status = fs::read_to_string(self.file("status"))?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
            .and_then(|kib| kib.parse::<u64>().ok());
        kib.map(|kib| kib * 1024)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

/// The sum of the subjects' CPU times.
///
/// # Errors
/// One of them has ended.
pub fn total_cpu_time(subjects: &[Subject]) -> io::Result<Duration> {
    subjects.iter().map(|subject| subject.cpu_time()).sum()
}

/// What all CPUs of this machine have spent on work since it started, whoever's: in user space, in
/// the kernel, in interrupts. `/proc/stat` counts it in hundredths of a second (`proc_stat(5)`).
///
/// # Errors
/// `/proc` cannot be read.
pub fn machine_cpu_time() -> io::Result<Duration> {
    let ticks = busy_ticks(&fs::read_to_string("/proc/stat")?);
    let ticks = ticks.ok_or(io::ErrorKind::InvalidData)?;
    let per_s = sysconf(SysconfVar::CLK_TCK)?.filter(|per_s| *per_s > 0);
    let per_s = per_s.ok_or(io::ErrorKind::Unsupported)?;
    Ok(Duration::from_secs_f64(ticks as f64 / per_s as f64))
}

/// All but idling, waiting for disks and what a hypervisor gave to others.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line
        .split_whitespace()
        .map(|field| field.parse().ok())
        .collect::<Option<_>>()?;
    let [user, nice, system, _idle, _disk, irq, softirq, ..] = *fields else {
        return None;
    };
    Some(user + nice + system + irq + softirq)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn time_spent_here_is_counted_for_the_thread_and_its_process() {
        let (thread, process) = (Subject::this_thread(), Subject::Process(std::process::id()));
        let before = (
            thread.cpu_time().expect("alive"),
            process.cpu_time().expect("alive"),
        );
        let start = Instant::now();
        while thread.cpu_time().expect("alive") < before.0 + Duration::from_millis(3) {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "no CPU time passes"
            );
        }
        let spent = process.cpu_time().expect("alive") - before.1;
        assert!(spent >= Duration::from_millis(2), "{spent:?}");
    }

    #[test]
    fn memory_is_read_and_an_ended_process_is_an_error() {
        let here = Subject::Process(std::process::id());
        assert!(here.resident_bytes().expect("alive") > 100_000);
        assert!(Subject::Process(u32::MAX).cpu_time().is_err());
    }

    #[test]
    fn a_machines_work_is_all_but_idling_waiting_and_stolen_time() {
        let stat =
            "cpu  1 20 300 4000 50000 600000 7000000 80000000 5 6\ncpu0 9 9 9 9 9 9 9 9 9 9\n";
        assert_eq!(busy_ticks(stat), Some(7_600_321));
        assert_eq!(busy_ticks("cpu  1 2 3\n"), None);
        assert_eq!(busy_ticks("intr 1 2 3 4 5 6 7 8\n"), None);
    }

    #[test]
    fn a_machine_has_worked_at_least_as_long_as_this_process() {
        let process = Subject::Process(std::process::id());
        let before = machine_cpu_time().expect("/proc is mounted");
        let own = process.cpu_time().expect("alive");
        while process.cpu_time().expect("alive") < own + Duration::from_millis(300) {
            std::hint::spin_loop();
        }
        let spent = machine_cpu_time().expect("/proc is mounted") - before;
        // It is sampled at each tick of a CPU's clock, so it may miss some.
        assert!(spent > Duration::from_millis(100), "{spent:?}");
    }
}
