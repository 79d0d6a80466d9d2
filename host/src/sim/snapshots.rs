//! How a world's nodes write snapshots and cut their journals.

use super::machine::{Machine, Snapshot, Writing};
use super::network::exponential;
use super::world::World;
use crate::cutting::Cutting;
use crate::kv::Kv;
use consensus::GroupId;
use consensus::applied::Applied;
use crc_fast::crc32_iscsi;

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
        for (group, part) in machine.parts.iter().enumerate() {
            if let Some(part) = part.as_ref().filter(|part| part.is_whole) {
                let snapshot = Snapshot {
                    id: part.id,
                    bytes: part.bytes.as_slice().into(),
                };
                machine.writing.push(Writing {
                    group,
                    snapshot,
                    is_own: false,
                });
            }
        }
        for group in 0..node.replicas().len() {
            if machine.parts[group]
                .as_ref()
                .is_some_and(|part| part.is_whole)
            {
                // What is frozen now would be older.
                continue;
            }
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
            machine.writing.push(Writing {
                group,
                snapshot: Snapshot::new(slot, bytes),
                is_own: true,
            });
        }
        if !machine.writing.is_empty() {
            let write_ns = exponential(&mut self.random, 4 * machine.flush_ns) + 1;
            self.timers[timer] = self.now_ns() + write_ns;
        }
    }

    /// Snapshots are on the disk.
    pub(super) fn snapshot_written(&mut self, place: usize) {
        let now_ns = self.now_ns();
        let writing = std::mem::take(&mut self.machines[place].writing);
        for Writing {
            group,
            snapshot,
            is_own,
        } in writing
        {
            let machine = &mut self.machines[place];
            if machine.process.is_none() {
                return;
            }
            let is_written = machine.log.borrow().takes_files();
            if !is_own {
                machine.parts[group] = None;
                let is_that = crc32_iscsi(&snapshot.bytes) == snapshot.id.crc;
                let mut state = Applied::new(Kv::new());
                let is_state = is_that && state.restore(&snapshot.bytes).is_ok();
                let state = (is_written && is_state).then_some(state);
                if state.is_some() {
                    self.ether.coverage.feature("snapshots taken over");
                }
                let (id, post) = (GroupId(group as u16), &mut self.ether);
                machine.run(now_ns, post, |node, local_ns, unix_ms, io| {
                    let now = (local_ns, unix_ms);
                    node.take_over(now, id, snapshot.id, state, io);
                });
                if !is_state {
                    continue;
                }
            }
            let Some(node) = &mut machine.process else {
                return;
            };
            if !is_written {
                machine.unwritten[group] |= is_own;
                continue;
            }
            let slot = snapshot.id.slot;
            let shelf = &mut machine.shelves[group];
            if slot > shelf.slot() {
                shelf.kept.push_back(snapshot);
            }
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
        self.timers[place] = self.timers[place].min(now_ns);
        self.after(place);
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
