//! CPU time and memory of processes and threads, from `/proc`.

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

    /// Time in user space and in the kernel, in steps of a clock tick (10 ms almost everywhere).
    ///
    /// # Errors
    /// The process or thread has ended.
    pub fn cpu_time(self) -> io::Result<Duration> {
        let stat = fs::read_to_string(self.file("stat"))?;
        let ticks = ticks(&stat).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Duration::from_secs(1) * ticks / ticks_per_second())
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

/// utime and stime. The name before them may hold spaces and parentheses (proc_pid_stat(5)).
fn ticks(stat: &str) -> Option<u32> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

fn ticks_per_second() -> u32 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
        .ok()
        .flatten()
        .and_then(|ticks| u32::try_from(ticks).ok())
        .unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn names_with_parentheses_do_not_shift_the_fields() {
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194560 100 0 0 0 12 30 0 0 20 0 1 0 5 0 0";
        assert_eq!(ticks(stat), Some(42));
    }

    #[test]
    fn time_spent_here_is_counted_for_the_thread_and_its_process() {
        let (thread, process) = (Subject::this_thread(), Subject::Process(std::process::id()));
        let before = (
            thread.cpu_time().expect("alive"),
            process.cpu_time().expect("alive"),
        );
        let start = Instant::now();
        while thread.cpu_time().expect("alive") < before.0 + Duration::from_millis(30) {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "no CPU time passes"
            );
        }
        let spent = process.cpu_time().expect("alive") - before.1;
        assert!(spent >= Duration::from_millis(20), "{spent:?}");
    }

    #[test]
    fn memory_is_read_and_an_ended_process_is_an_error() {
        let here = Subject::Process(std::process::id());
        assert!(here.resident_bytes().expect("alive") > 100_000);
        assert!(Subject::Process(u32::MAX).cpu_time().is_err());
    }
}
