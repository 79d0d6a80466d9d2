//! What the journal's handle and its two threads share.

use super::segments::Yard;
use super::statistics::Counters;
use super::{JournalError, Lsn};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, Thread};

/// Called after each flush, and when the journal fails.
pub(super) type Wake = Arc<dyn Fn() + Send + Sync>;

pub(super) struct Shared {
    /// What was reported to the producer.
    pub(super) flushed: AtomicU64,
    /// What is on stable storage; equal to `flushed` under [`Flush::Before`](super::Flush::Before).
    pub(super) durable: AtomicU64,
    pub(super) cut: AtomicU64,
    pub(super) writer_stops: AtomicBool,
    pub(super) housekeeper_stops: AtomicBool,
    pub(super) has_failed: AtomicBool,
    pub(super) failure: OnceLock<JournalError>,
    pub(super) counters: Counters,
    pub(super) yard: Mutex<Yard>,
    pub(super) writer: OnceLock<Thread>,
    pub(super) housekeeper: OnceLock<Thread>,
    pub(super) wake: Wake,
}

impl Shared {
    pub(super) fn new(last: Lsn, yard: Yard, wake: Wake) -> Self {
        Self {
            flushed: AtomicU64::new(last.0),
            durable: AtomicU64::new(last.0),
            cut: AtomicU64::new(0),
            writer_stops: AtomicBool::new(false),
            housekeeper_stops: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            failure: OnceLock::new(),
            counters: Counters::default(),
            yard: Mutex::new(yard),
            writer: OnceLock::new(),
            housekeeper: OnceLock::new(),
            wake,
        }
    }

    /// Ends reporting for good. After a failed flush the kernel may have dropped the dirty pages
    /// and marked them clean, so a second flush would succeed without having stored them.
    pub(super) fn poison(&self, error: JournalError) {
        let _ = self.failure.set(error);
        if !self.has_failed.swap(true, AcqRel) {
            (self.wake)();
        }
        self.writer().unpark();
    }

    pub(super) fn failed(&self) -> Option<&JournalError> {
        if self.has_failed.load(Acquire) {
            self.failure.get()
        } else {
            None
        }
    }

    /// Reports everything up to `last`, unless the journal has failed meanwhile.
    pub(super) fn report(&self, last: Lsn) {
        if !self.has_failed.load(Acquire) {
            self.flushed.store(last.0, Release);
            (self.wake)();
        }
    }

    pub(super) fn writer(&self) -> Thread {
        self.writer.get().cloned().unwrap_or_else(thread::current)
    }

    pub(super) fn unpark_housekeeper(&self) {
        if let Some(thread) = self.housekeeper.get() {
            thread.unpark();
        }
    }
}

/// Fails the journal if the thread that owns this panics.
pub(super) struct PanicGuard(pub(super) Arc<Shared>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.poison(JournalError::Panicked);
        }
    }
}
