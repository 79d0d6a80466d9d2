//! When a journal may be cut behind snapshots, and where.

use consensus::Slot;
use consensus::simulation::{Mutation, mutated};
use std::collections::VecDeque;

/// Looks at the journal's position between two snapshots.
const MARKS: u64 = 50;
/// Marks kept at the most.
const MAX_MARKS: usize = 1024;
/// How many snapshots' worth of other groups' records a group may hold back before it is asked for a
/// snapshot out of turn.
const PATIENCE: u64 = 16;

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
    /// What is needed begins here, as far as this process knows.
    below: u64,
    /// The last record when this process began.
    since: Option<u64>,
    /// The highest slot and the last record when it was last looked at.
    looked: (Slot, u64),
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
        let step = snapshot_slots / MARKS;
        self.since.get_or_insert(appended);
        let (before, since) = self.looked;
        if before != highest {
            self.looked = (highest, appended);
        }
        let last = self.marks.back_mut();
        if let Some(last) = last
            && last.highest == highest
        {
            // Everything since was about other groups.
            last.number = last.number.max(appended);
            return;
        }
        let last = self.marks.back().map_or(Slot::NONE, |mark| mark.highest);
        let rests = before == highest && appended > since + step;
        if appended > 0 && (highest.0 > last.0 + step || rests && highest > last) {
            if self.marks.len() == MAX_MARKS {
                self.marks.pop_front();
            }
            self.marks.push_back(Mark {
                highest,
                number: appended,
            });
        }
    }

    /// What the group no longer needs of the journal.
    pub const fn below(&self) -> u64 {
        self.below
    }

    /// Whether the group holds back much of a journal, whose last record is `appended`, that is not
    /// its own.
    pub fn holds_back(&self, appended: u64, snapshot_slots: u64) -> bool {
        let from = self.since.map_or(appended, |since| since.max(self.below));
        appended > from.saturating_add(PATIENCE * snapshot_slots)
    }

    /// Whether a checkpoint is on its way to the disk.
    pub const fn awaits_flush(&self) -> bool {
        self.waiting.is_some()
    }

    /// The newest snapshot covers all that the group has, and was read back when it was written:
    /// what lies below it can go, so that a group at rest does not keep the others' records. From
    /// then on that snapshot alone has it.
    pub fn rest(&mut self, trim: Slot, checkpoint: impl FnOnce() -> Option<u64>) {
        self.saved(self.newest, trim, checkpoint);
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
        self.below = self.below.max(below);
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
    fn a_group_at_rest_does_not_keep_the_records_of_others() {
        let mut cutting = Cutting::new(Slot::NONE);
        for appended in [1, 2_000, 3_000] {
            cutting.mark(Slot(3), appended, 100);
        }
        assert!(cutting.holds_back(3_000, 100) && !cutting.holds_back(1_000, 100));
        cutting.saved(Slot(3), Slot(4), || Some(3_002));
        assert_eq!(cutting.due(3_002), None, "one snapshot is none");
        cutting.mark(Slot(3), 3_002, 100);
        cutting.rest(Slot(4), || Some(3_004));
        assert_eq!(cutting.due(3_004), Some(3_002));
        assert!(!cutting.holds_back(3_004, 100));
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
