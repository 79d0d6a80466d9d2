//! A timer that is set rarely.
//!
//! A time-out given to `ppoll` programs the CPU's timer at every sleep and takes it back at every
//! wake-up; in a virtual machine each of that may leave the guest. A worker's deadlines lie far
//! apart compared to its sleeps, so one timer is left running until it fires, or until something
//! is due earlier.

use crate::clock;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// A timer on a file descriptor.
pub(crate) struct Alarm {
    timer: TimerFd,
    /// When it fires on the monotonic clock, in nanoseconds, if it is set.
    set_ns: Option<u64>,
}

impl Alarm {
    /// An alarm that is not set.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(Self {
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?,
            set_ns: None,
        })
    }

    /// Makes sure that it fires in `at_most` at the latest. True if a system call was needed.
    pub(crate) fn set(&mut self, at_most: Duration) -> io::Result<bool> {
        let in_ns = u64::try_from(at_most.as_nanos()).unwrap_or(u64::MAX);
        let due_ns = clock::monotonic_ns().saturating_add(in_ns);
        if self.set_ns.is_some_and(|set_ns| set_ns <= due_ns) {
            return Ok(false);
        }
        let at = TimeSpec::from_duration(Duration::from_nanos(due_ns));
        self.timer.set(
            Expiration::OneShot(at),
            TimerSetTimeFlags::TFD_TIMER_ABSTIME,
        )?;
        self.set_ns = Some(due_ns);
        Ok(true)
    }

    /// Takes note that it fired.
    pub(crate) fn fired(&mut self) {
        // Nothing to read means that it was set anew since; then it fires again.
        if self.timer.wait().is_ok() {
            self.set_ns = None;
        }
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}
