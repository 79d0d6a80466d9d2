//! A journal on a disk in virtual time.

use super::memory::Life;
use consensus::local::Journal;
use consensus::random::Random;
use std::cell::{Ref, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// Bytes that may wait for a flush: as in the real journal, past it requests are dropped.
const QUEUE_BYTES: usize = 256 * 1024;

/// What a disk holds, and what is on its way there.
#[derive(Debug, Default)]
pub(super) struct Log {
    bytes: Vec<u8>,
    /// Where each record ends in `bytes`.
    ends: VecDeque<usize>,
    /// The number of the record before the first.
    cut: u64,
    flushed: u64,
    /// The flush under way covers everything up to here.
    flushing: u64,
    pub(super) is_full: bool,
    /// The device returns an error from here on: the process that sees it ends.
    pub(super) is_failing: bool,
    has_failed: bool,
}

impl Log {
    pub(super) fn appended(&self) -> u64 {
        self.cut + self.ends.len() as u64
    }

    pub(super) fn has_unflushed(&self) -> bool {
        self.flushed < self.appended()
    }

    /// Whether small files beside the journal can be written.
    pub(super) const fn takes_files(&self) -> bool {
        !self.is_full && !self.is_failing
    }

    pub(super) const fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// The record of this number.
    pub(super) fn record(&self, number: u64) -> Option<&[u8]> {
        let at = usize::try_from(number.checked_sub(self.cut + 1)?).ok()?;
        let start = at
            .checked_sub(1)
            .map_or(Some(0), |before| self.ends.get(before).copied())?;
        self.bytes.get(start..*self.ends.get(at)?)
    }

    /// The numbers of the records that there are.
    pub(super) fn numbers(&self) -> std::ops::RangeInclusive<u64> {
        self.cut + 1..=self.appended()
    }

    /// Begins to flush what was appended; false if there is nothing to flush or a flush is under
    /// way.
    pub(super) fn begin_flush(&mut self) -> bool {
        let begins = self.flushing == self.flushed && self.flushed < self.appended();
        if begins {
            self.flushing = self.appended();
        }
        begins
    }

    /// The flush is done: the numbers of the records that it covered. None if it failed.
    pub(super) fn end_flush(&mut self) -> std::ops::RangeInclusive<u64> {
        let first = self.flushed + 1;
        if self.is_failing {
            self.has_failed = true;
            self.flushing = self.flushed;
        }
        self.flushed = self.flushing;
        first..=self.flushed
    }

    /// The process or the machine dies. Of the records that were not flushed, an arbitrary number
    /// of the first ones had reached the disk; what was cut off in the middle of one is found by
    /// its checksum and dropped. Returns how many were lost.
    pub(super) fn die(&mut self, random: &mut Random, keeps_some: bool) -> u64 {
        let unflushed = self.appended() - self.flushed;
        let kept = if keeps_some {
            random.below(unflushed + 1)
        } else {
            0
        };
        self.truncate(self.flushed + kept);
        // Recovery makes what it found certain before anyone relies on it.
        self.flushed = self.appended();
        self.flushing = self.flushed;
        self.has_failed = false;
        self.is_failing = false;
        unflushed - kept
    }

    fn truncate(&mut self, last: u64) {
        self.ends.truncate((last - self.cut) as usize);
        self.bytes.truncate(self.ends.back().copied().unwrap_or(0));
    }

    /// Forgets the records below `below`.
    pub(super) fn cut(&mut self, below: u64) {
        let below = below.min(self.flushed + 1);
        let Some(count) = (below - 1).checked_sub(self.cut).filter(|n| *n > 0) else {
            return;
        };
        let gone = self.ends.drain(..count as usize).next_back().unwrap_or(0);
        self.bytes.drain(..gone);
        for end in &mut self.ends {
            *end -= gone;
        }
        self.cut += count;
    }
}

/// A process's handle on its journal.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    log: Rc<RefCell<Log>>,
    life: Rc<Life>,
}

impl Disk {
    pub(super) const fn new(log: Rc<RefCell<Log>>, life: Rc<Life>) -> Self {
        Self { log, life }
    }

    fn log(&self) -> Ref<'_, Log> {
        self.log.borrow()
    }
}

impl Journal for Disk {
    fn append(&mut self, head: &[u8], body: &[u8]) -> Option<u64> {
        let mut log = self.log.borrow_mut();
        if self.life.is_dead() {
            return Some(log.appended());
        }
        if log.is_full {
            return None;
        }
        if log.is_failing {
            log.has_failed = true;
            return None;
        }
        log.bytes.extend_from_slice(head);
        log.bytes.extend_from_slice(body);
        let end = log.bytes.len();
        log.ends.push_back(end);
        Some(log.appended())
    }

    fn has_room(&self, bytes: usize) -> bool {
        let log = self.log();
        let waiting = (log.flushed.max(log.cut) - log.cut) as usize;
        let start = waiting
            .checked_sub(1)
            .and_then(|last| log.ends.get(last))
            .copied()
            .unwrap_or(0);
        !log.is_full && log.bytes.len() - start + bytes <= QUEUE_BYTES
    }

    fn flushed(&self) -> u64 {
        self.log().flushed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> (Disk, Rc<RefCell<Log>>) {
        let log = Rc::new(RefCell::new(Log::default()));
        (Disk::new(Rc::clone(&log), Rc::default()), log)
    }

    #[test]
    fn what_was_flushed_survives_and_the_rest_may() {
        let (mut disk, log) = disk();
        for n in 0..4u8 {
            disk.append(&[n], &[n; 3]);
        }
        assert!(log.borrow_mut().begin_flush());
        disk.append(&[9], &[]);
        assert_eq!(log.borrow_mut().end_flush(), 1..=4);
        let lost = log.borrow_mut().die(&mut Random::new(1), false);
        assert_eq!((lost, log.borrow().appended()), (1, 4));
        assert_eq!(log.borrow().record(4), Some(&[3, 3, 3, 3][..]));
    }

    #[test]
    fn numbers_stay_when_the_front_is_cut() {
        let (mut disk, log) = disk();
        for n in 0..6u8 {
            disk.append(&[n], &[]);
        }
        log.borrow_mut().begin_flush();
        log.borrow_mut().end_flush();
        log.borrow_mut().cut(4);
        assert_eq!(log.borrow().record(3), None);
        assert_eq!(log.borrow().record(4), Some(&[3][..]));
        assert_eq!(disk.append(&[6], &[]), Some(7));
        assert_eq!(log.borrow().numbers(), 4..=7);
    }
}
