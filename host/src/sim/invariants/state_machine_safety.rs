//! State machine safety: no two replicas apply different values in one slot (Ongaro 2014, section
//! 3.2), and what is applied was chosen.

use super::Verdict;
use super::chronicle::{Chronicle, Digest, digest};
use crate::kv::Kv;
use crate::sim::scenario::Scenario;
use consensus::Slot;
use consensus::applied::Applied;

/// How far each replica has come, and the log that the first of them went through.
pub(super) struct Logs {
    groups: usize,
    applied: Vec<u64>,
    /// As far as each life of a node ever came.
    furthest: Vec<u64>,
    logs: Vec<Vec<Digest>>,
}

/// A slot that a replica applied before all others.
pub(super) struct News<'a> {
    pub(super) value: &'a [u8],
}

impl Logs {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let groups = usize::from(scenario.groups);
        Self {
            groups,
            applied: vec![0; groups * scenario.machines()],
            furthest: vec![0; groups * scenario.machines()],
            logs: vec![Vec::new(); groups],
        }
    }

    /// A process begins with what it has recovered, which may be more than anybody came to apply
    /// before.
    pub(super) fn opened(&mut self, place: usize, recovered: &[Slot]) {
        for (group, slot) in recovered.iter().enumerate() {
            let seen = slot.0.min(self.frontier(group));
            self.applied[place * self.groups + group] = seen;
        }
    }

    /// A node has lost everything.
    pub(super) fn reborn(&mut self, place: usize) {
        let own = place * self.groups..(place + 1) * self.groups;
        self.furthest[own.clone()].fill(0);
        self.applied[own].fill(0);
    }

    /// The last slot of `group` that the node at `place` ever applied in this life of its memory.
    pub(super) fn furthest(&self, place: usize, group: usize) -> u64 {
        self.furthest[place * self.groups + group]
    }

    /// The last slot of `group` that anybody applied.
    pub(super) fn frontier(&self, group: usize) -> u64 {
        self.logs[group].len() as u64
    }

    /// Looks at what a replica has applied since it was last looked at.
    pub(super) fn look(
        &mut self,
        place: usize,
        group: usize,
        applied: &Applied<Kv>,
        chronicle: &Chronicle,
        mut news: impl FnMut(News<'_>),
    ) -> Verdict {
        let now = applied.slot().0;
        let furthest = &mut self.furthest[place * self.groups + group];
        *furthest = now.max(*furthest);
        let before = &mut self.applied[place * self.groups + group];
        if *before == now {
            return Ok(());
        }
        let first = *before + 1;
        *before = now;
        let node = place + 1;
        for slot in first..=now {
            // What a snapshot skipped is in nobody's hands.
            let Some((_, value)) = applied.kept(Slot(slot)) else {
                continue;
            };
            let value_digest = digest(value);
            let chosen = chronicle.groups[group]
                .slot(slot)
                .and_then(|slot| slot.chosen);
            if chosen.is_none_or(|(_, chosen)| chosen != value_digest) {
                return Err(format!(
                    "slot {slot} of group {group}: node {node} applied a value that was not chosen"
                ));
            }
            let log = &mut self.logs[group];
            match log.get(slot as usize - 1) {
                Some(other) if *other != value_digest => {
                    return Err(format!(
                        "slot {slot} of group {group}: node {node} applied another value than \
                         somebody before"
                    ));
                }
                Some(_) => {}
                None if log.len() as u64 + 1 == slot => {
                    log.push(value_digest);
                    news(News { value });
                }
                None => {
                    return Err(format!(
                        "slot {slot} of group {group}: node {node} applied it before slot {}",
                        log.len() + 1
                    ));
                }
            }
        }
        Ok(())
    }
}
