//! The journal as the acceptor sees it.

use crate::journal::{Journal, JournalError, Lsn, Statistics};
use consensus::local;

/// A journal, or none under `volatile` durability.
pub struct Wal {
    journal: Option<Journal>,
    record: Vec<u8>,
    #[cfg(any(debug_assertions, feature = "kill-points"))]
    replies_before_flush: bool,
}

impl Wal {
    /// Wraps the journal that `durability` asks for.
    pub fn new(journal: Option<Journal>) -> Self {
        Self {
            journal,
            record: Vec::with_capacity(64 * 1024),
            #[cfg(any(debug_assertions, feature = "kill-points"))]
            replies_before_flush: false,
        }
    }

    /// A deliberate defect, to show that the tests would notice it: everything counts as flushed.
    #[cfg(any(debug_assertions, feature = "kill-points"))]
    pub fn reply_before_flush(&mut self) {
        self.replies_before_flush = true;
    }

    /// Why nothing is journalled any more, if that is so.
    pub fn failed(&self) -> Option<&JournalError> {
        self.journal.as_ref()?.failed()
    }

    /// Records below `below` are not needed any more.
    pub fn cut(&mut self, below: u64) {
        if let Some(journal) = &mut self.journal {
            journal.cut(Lsn(below));
        }
    }

    /// The number of the last record appended.
    pub fn appended(&self) -> u64 {
        self.journal
            .as_ref()
            .map_or(0, |journal| journal.appended().0)
    }

    /// How it writes, and how it went so far.
    pub fn report(&self) -> Option<(&'static str, Statistics)> {
        let journal = self.journal.as_ref()?;
        Some((journal.path(), journal.statistics()))
    }
}

impl local::Journal for Wal {
    fn append(&mut self, head: &[u8], body: &[u8]) -> Option<u64> {
        let journal = self.journal.as_mut()?;
        self.record.clear();
        self.record.extend_from_slice(head);
        self.record.extend_from_slice(body);
        journal.append(&self.record).map(|lsn| lsn.0)
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.journal
            .as_ref()
            .is_some_and(|journal| journal.has_room(bytes))
    }

    fn flushed(&self) -> u64 {
        #[cfg(any(debug_assertions, feature = "kill-points"))]
        if self.replies_before_flush {
            return self.appended();
        }
        self.journal
            .as_ref()
            .map_or(0, |journal| journal.flushed().0)
    }
}
