//! The journal as the acceptor sees it.

use crate::journal::{Journal, JournalError, Lsn, Statistics};
use consensus::local;

/// A journal, or none under `volatile` durability.
pub struct Wal {
    journal: Option<Journal>,
    record: Vec<u8>,
}

impl Wal {
    /// Wraps the journal that `durability` asks for.
    pub fn new(journal: Option<Journal>) -> Self {
        Self {
            journal,
            record: Vec::with_capacity(64 * 1024),
        }
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
        self.journal
            .as_ref()
            .map_or(0, |journal| journal.flushed().0)
    }
}
