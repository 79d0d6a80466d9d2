//! What a test may change about a node from outside.
//!
//! `NEARWIRE_REHEARSE=discarding,flush_delay_us=2000,segment_bytes=131072` puts the journal on a
//! disk that forgets what was not flushed when the process is killed, slows its flushes, and makes
//! segments short. Debug builds and builds with the feature `kill-points` listen; in other builds
//! the variable is not looked at.

use crate::journal::testing::{DiscardingDisk, Faults};
use crate::journal::{Disk, Flush, RealDisk};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// The environment variable: words and `name=number` pairs, separated by commas.
pub const VARIABLE: &str = "NEARWIRE_REHEARSE";

/// Differences from a node in earnest; none by default.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rehearsal {
    /// Bytes of the journal that were not flushed exist in this process only (`discarding`).
    pub discarding: bool,
    /// What goes wrong with that disk (the words of [`Faults`]).
    pub faults: Faults,
    /// The length of a journal segment (`segment_bytes`).
    pub segment_bytes: Option<u64>,
    /// Slots between two snapshots (`snapshot_slots`).
    pub snapshot_slots: Option<u64>,
    /// A deliberate defect: votes are answered before they are flushed (`replies_before_flush`).
    pub replies_before_flush: bool,
    /// A deliberate defect: a node whose memory was lost begins with a blank one as if nothing had
    /// happened (`counts_lost_memory`).
    pub counts_lost_memory: bool,
}

impl Rehearsal {
    /// What [`VARIABLE`] asks for.
    ///
    /// # Errors
    /// Names the word that is not understood.
    pub fn from_environment() -> Result<Self, String> {
        #[cfg(any(debug_assertions, feature = "kill-points"))]
        if let Ok(text) = std::env::var(VARIABLE) {
            return Self::parse(&text).map_err(|error| format!("{VARIABLE}: {error}"));
        }
        Ok(Self::default())
    }

    #[cfg(any(debug_assertions, feature = "kill-points"))]
    fn parse(text: &str) -> Result<Self, String> {
        let mut rehearsal = Self::default();
        let mut faults = Vec::new();
        for word in text.split(',').filter(|word| !word.is_empty()) {
            let (name, number) = word.split_once('=').unwrap_or((word, "1"));
            let number = number
                .parse()
                .map_err(|error| format!("{word}: {error}"))
                .map(Some);
            match name {
                "discarding" => rehearsal.discarding = true,
                "segment_bytes" => rehearsal.segment_bytes = number?,
                "snapshot_slots" => rehearsal.snapshot_slots = number?,
                "replies_before_flush" => rehearsal.replies_before_flush = true,
                "counts_lost_memory" => rehearsal.counts_lost_memory = true,
                _ => faults.push(word),
            }
        }
        rehearsal.faults = faults.join(",").parse()?;
        rehearsal.discarding |= rehearsal.faults != Faults::default();
        Ok(rehearsal)
    }

    /// The disk for a journal in `directory`; `None` is the machine's own.
    ///
    /// # Errors
    /// The system refuses.
    pub fn disk(&self, directory: &Path, flush: Flush) -> io::Result<Option<Arc<dyn Disk>>> {
        if !self.discarding {
            return Ok(None);
        }
        std::fs::create_dir_all(directory)?;
        let disk = DiscardingDisk::over(Arc::new(RealDisk::probe(directory, flush)?));
        disk.set_faults(self.faults);
        Ok(Some(disk.plug_in()))
    }
}

#[cfg(all(test, any(debug_assertions, feature = "kill-points")))]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_word_is_understood_or_named() {
        let text = "discarding,flush_delay_us=2000,segment_bytes=131072";
        let rehearsal = Rehearsal::parse(text).expect("understood");
        assert!(rehearsal.discarding && !rehearsal.replies_before_flush);
        assert_eq!(rehearsal.faults.flush_delay, Duration::from_millis(2));
        assert_eq!(rehearsal.segment_bytes, Some(131_072));
        let error = Rehearsal::parse("discarding,whatever").expect_err("not understood");
        assert_eq!(error, "whatever: no such fault");
    }
}
