//! How a world's nodes write snapshots and cut their journals.

use super::machine::{Machine, Snapshot};
use super::network::exponential;
use super::world::World;
use crate::cutting::Cutting;
use consensus::{GroupId, Slot};

/// Snapshots that stay when a newer one has been written, as on a real disk.
const KEPT: usize = 2;

impl World {
    /// Begins the snapshots that are due.
    pub(super) fn keep_state(&mut self, place: usize) {
        let timer = self.snapshot_timer(place);
        let journals = self.scenario.durability != consensus::local::Durability::Volatile;
        let machine = &mut self.machines[place];
        if journals {
            machine.cut_journal(self.scenario.snapshot_slots);
        }
        if !machine.writing.is_empty() {
            return;
        }
        let Some(node) = &mut machine.process else {
            return;
        };
        for group in 0..node.replicas().len() {
            let newest = machine.shelves[group].slot();
            let Some(replica) = node.replica_mut(GroupId(group as u16)) else {
                continue;
            };
            let due =
                journals && replica.applied().slot().0 >= newest.0 + self.scenario.snapshot_slots;
            // A snapshot that could not be written is tried again.
            let wanted = std::mem::take(&mut machine.unwritten[group]);
            if !due && !wanted && !replica.take_snapshot_wanted() {
                continue;
            }
            if replica.applied().slot() <= newest {
                node.snapshot_saved(GroupId(group as u16), newest);
                continue;
            }
            let Some((slot, mut frozen)) = node.freeze(GroupId(group as u16)) else {
                continue;
            };
            let mut bytes = Vec::new();
            while frozen.next_chunk(&mut bytes) {}
            let bytes = bytes.into();
            machine.writing.push((group, Snapshot { slot, bytes }));
        }
        if !machine.writing.is_empty() {
            let write_ns = exponential(&mut self.random, 4 * machine.flush_ns) + 1;
            self.timers[timer] = self.now_ns() + write_ns;
        }
    }

    /// Snapshots are on the disk.
    pub(super) fn snapshot_written(&mut self, place: usize) {
        let machine = &mut self.machines[place];
        let Some(node) = &mut machine.process else {
            return;
        };
        let is_written = machine.log.borrow().takes_files();
        for (group, snapshot) in machine.writing.drain(..) {
            if !is_written {
                machine.unwritten[group] = true;
                continue;
            }
            let slot: Slot = snapshot.slot;
            let shelf = &mut machine.shelves[group];
            shelf.kept.push_back(snapshot);
            while shelf.kept.len() > KEPT {
                shelf.kept.pop_front();
            }
            let id = GroupId(group as u16);
            node.snapshot_saved(id, slot);
            let Some(view) = node.local().view(id) else {
                continue;
            };
            let local = node.local_mut();
            machine.cuttings[group].saved(slot, view.trim, || local.checkpoint(id));
        }
        self.timers[place] = self.timers[place].min(self.now_ns());
    }
}

impl Machine {
    /// Cuts the journal where nobody needs it any more.
    fn cut_journal(&mut self, snapshot_slots: u64) {
        let Some(node) = &self.process else {
            return;
        };
        for group in 0..node.replicas().len() {
            let id = GroupId(group as u16);
            let (appended, flushed) = node.local().journalled(id).unwrap_or_default();
            let cutting = &mut self.cuttings[group];
            let _ = cutting.due(flushed);
            cutting.mark(node.highest_journalled(id), appended, snapshot_slots);
        }
        let below = self.cuttings.iter().map(Cutting::below).min().unwrap_or(0);
        if below > 0 {
            self.log.borrow_mut().cut(below);
        }
    }
}
