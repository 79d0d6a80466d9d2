//! When a journal may be cut behind snapshots, and where.

use consensus::Slot;
use consensus::simulation::{Mutation, mutated};
use std::collections::VecDeque;

/// Looks at the journal's position between two snapshots.
const MARKS: u64 = 50;
/// Marks kept at the most.
const MAX_MARKS: usize = 1024;

/// Where the journal stood when nothing about a slot above `highest` was in it.
#[derive(Clone, Copy, Debug)]
struct Mark {
    highest: Slot,
    number: u64,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Cutting {
    marks: VecDeque<Mark>,
    /// The newest snapshot. The journal is cut behind the one before it: should the newest rot, the
    /// other and the journal give all that a record says was chosen.
    newest: Slot,
    /// Cut below the first number once the second is flushed.
    waiting: Option<(u64, u64)>,
}

impl Cutting {
    /// Begins with `newest` on the disk.
    pub fn new(newest: Slot) -> Self {
        Self {
            newest,
            ..Self::default()
        }
    }

    /// The record numbered `appended` is the last, and nothing before it is about a slot above
    /// `highest`. A snapshot is taken every `snapshot_slots`.
    pub fn mark(&mut self, highest: Slot, appended: u64, snapshot_slots: u64) {
        let last = self.marks.back().map_or(Slot::NONE, |mark| mark.highest);
        if appended > 0 && highest.0 > last.0 + snapshot_slots / MARKS {
            if self.marks.len() == MAX_MARKS {
                self.marks.pop_front();
            }
            self.marks.push_back(Mark {
                highest,
                number: appended,
            });
        }
    }

    /// A snapshot up to `slot` is on the disk: votes that the one before it covers and nobody may
    /// ask for again can go, once what `checkpoint` writes is flushed. It returns the number of its
    /// last record, or `None` if there was no room.
    pub fn saved(&mut self, slot: Slot, trim: Slot, checkpoint: impl FnOnce() -> Option<u64>) {
        let before = std::mem::replace(&mut self.newest, slot);
        let covered = if mutated(Mutation::CutPastSnapshot) {
            trim.previous()
        } else {
            before.min(trim.previous())
        };
        let mut below = None;
        while let Some(mark) = self.marks.front()
            && mark.highest <= covered
        {
            below = Some(mark.number);
            self.marks.pop_front();
        }
        if let Some(below) = below
            && let Some(needs) = checkpoint()
        {
            self.waiting = Some((below, needs));
        }
    }

    /// The number below which the journal can be cut now that everything up to `flushed` is on the
    /// disk.
    pub fn due(&mut self, flushed: u64) -> Option<u64> {
        let (below, _) = self.waiting.filter(|(_, needs)| *needs <= flushed)?;
        self.waiting = None;
        Some(below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_cut_that_the_older_of_two_snapshots_does_not_cover() {
        let mut cutting = Cutting::new(Slot(100));
        for slot in [50, 150, 250] {
            cutting.mark(Slot(slot), slot + 1, 100);
        }
        cutting.saved(Slot(200), Slot(300), || Some(400));
        assert_eq!(cutting.due(399), None, "the checkpoint is not flushed");
        assert_eq!(cutting.due(400), Some(51));
        cutting.saved(Slot(290), Slot(300), || Some(500));
        assert_eq!(cutting.due(500), Some(151));
    }

    #[test]
    fn nothing_is_cut_above_the_trim() {
        let mut cutting = Cutting::new(Slot(100));
        cutting.mark(Slot(50), 51, 100);
        cutting.mark(Slot(90), 91, 100);
        cutting.saved(Slot(200), Slot(60), || Some(400));
        assert_eq!(cutting.due(400), Some(51));
    }
}
