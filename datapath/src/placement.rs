//! Where and how urgently a thread runs.
#![allow(unsafe_code)]

use crate::Error;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// A thread's CPU and priority. The default leaves both to the system.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Placement {
    /// The only CPU to run on.
    pub cpu: Option<usize>,
    /// SCHED_FIFO priority, 1 to 99. A polling thread with a priority takes all of its CPU except
    /// what `kernel.sched_rt_runtime_us` leaves to others, so give it a CPU of its own.
    pub fifo_priority: Option<u8>,
}

impl Placement {
    /// Places the calling thread.
    ///
    /// # Errors
    /// The machine has no such CPU, or the user may not raise the priority ([`Error::Unsupported`]
    /// says what is needed).
    pub fn apply(self) -> Result<(), Error> {
        if let Some(cpu) = self.cpu {
            let mut only = CpuSet::new();
            only.set(cpu)
                .and_then(|()| sched_setaffinity(Pid::from_raw(0), &only))
                .map_err(|error| Error::system(format!("pin to CPU {cpu} (see `nproc`)"), error))?;
        }
        if let Some(priority) = self.fifo_priority {
            set_fifo(priority)?;
        }
        Ok(())
    }
}

/// Puts the calling thread behind the one that started it, whose SCHED_FIFO priority it has
/// inherited: with the same one, what it does at length would keep the other waiting on their CPU.
/// Without one the system shares the CPU between them.
pub fn step_back() {
    let mut parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: thread 0 is the calling thread, and `parameters`, which the first call writes and the
    // last one reads, outlives them.
    unsafe {
        if libc::sched_getscheduler(0) == libc::SCHED_FIFO
            && libc::sched_getparam(0, &raw mut parameters) == 0
            && parameters.sched_priority > 1
        {
            parameters.sched_priority -= 1;
            // To lower it takes no privilege.
            libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters);
        }
    }
}

fn set_fifo(priority: u8) -> Result<(), Error> {
    let parameters = libc::sched_param {
        sched_priority: i32::from(priority),
    };
    // SAFETY: thread 0 is the calling thread, and `parameters` outlives the call, which only reads
    // it.
    let refused = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    if refused == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EPERM) {
        return Err(Error::Unsupported {
            feature: format!("SCHED_FIFO priority {priority}"),
            needs: "CAP_SYS_NICE: `setcap cap_sys_nice+ep` on the binary, \
                    `LimitRTPRIO=99` in its unit, or run as root"
                .into(),
        });
    }
    Err(Error::system(
        format!("set SCHED_FIFO priority {priority} (1 to 99)"),
        error,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{sched_getaffinity, sched_getcpu};

    /// A CPU that this process may use.
    fn some_cpu() -> usize {
        let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
        (0..CpuSet::count())
            .rfind(|&cpu| allowed.is_set(cpu).unwrap())
            .unwrap()
    }

    #[test]
    fn a_pinned_thread_runs_on_its_cpu() {
        let cpu = some_cpu();
        let ran_on = std::thread::spawn(move || {
            Placement {
                cpu: Some(cpu),
                ..Placement::default()
            }
            .apply()
            .unwrap();
            sched_getcpu().unwrap()
        });
        assert_eq!(ran_on.join().unwrap(), cpu);
    }

    #[test]
    fn a_cpu_that_is_not_there_is_named() {
        let placement = Placement {
            cpu: Some(CpuSet::count() - 1),
            ..Placement::default()
        };
        let error = std::thread::spawn(move || placement.apply())
            .join()
            .unwrap()
            .unwrap_err();
        assert!(error.to_string().starts_with("pin to CPU 1023"), "{error}");
    }

    #[test]
    fn a_priority_is_granted_or_its_remedy_named() {
        let placement = Placement {
            fifo_priority: Some(1),
            ..Placement::default()
        };
        match std::thread::spawn(move || placement.apply())
            .join()
            .unwrap()
        {
            Ok(()) => {}
            Err(error) => assert!(error.to_string().contains("CAP_SYS_NICE"), "{error}"),
        }
    }
}
