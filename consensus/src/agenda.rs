//! Which of many groups have something to do, and when the others will.

use alloc::vec;
use alloc::vec::Vec;

/// A time for each of so many entries, and the earliest of them: a tournament, so that a thousand
/// groups at rest cost nothing. Allocates when it is made and never again.
#[derive(Debug)]
pub(crate) struct Agenda {
    /// Entry i stands at `leaves + i`; each place above holds the earlier one of the two below.
    due_ns: Vec<u64>,
    leaves: usize,
}

impl Agenda {
    /// Entries of which each is due at once.
    pub(crate) fn new(entries: usize) -> Self {
        let leaves = entries.next_power_of_two();
        let mut agenda = Self {
            due_ns: vec![u64::MAX; 2 * leaves],
            leaves,
        };
        for entry in 0..entries {
            agenda.set(entry, 0);
        }
        agenda
    }

    /// When the earliest entry is due, in nanoseconds; never if there is none.
    pub(crate) fn next_ns(&self) -> u64 {
        self.at(1)
    }

    fn at(&self, place: usize) -> u64 {
        self.due_ns.get(place).copied().unwrap_or(u64::MAX)
    }

    /// The entry is due then, in nanoseconds.
    pub(crate) fn set(&mut self, entry: usize, due_ns: u64) {
        let mut place = self.leaves + entry;
        let Some(leaf) = self.due_ns.get_mut(place) else {
            return;
        };
        *leaf = due_ns;
        while place > 1 {
            place /= 2;
            let earlier = self.at(2 * place).min(self.at(2 * place + 1));
            match self.due_ns.get_mut(place) {
                Some(above) if *above != earlier => *above = earlier,
                // Nothing changes above either.
                _ => return,
            }
        }
    }

    /// The first entry from `from` on that is due by `now_ns`.
    pub(crate) fn due(&self, from: usize, now_ns: u64) -> Option<usize> {
        if from >= self.leaves {
            return None;
        }
        let mut place = self.leaves + from;
        // Up until something to the right is due, then down to its first.
        while self.at(place) > now_ns {
            while place % 2 == 1 {
                place /= 2;
            }
            if place == 0 {
                return None;
            }
            place += 1;
        }
        while place < self.leaves {
            place *= 2;
            if self.at(place) > now_ns {
                place += 1;
            }
        }
        Some(place - self.leaves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn what_is_due_is_found_in_order_whatever_was_set() {
        let mut random = Random::new(7);
        for entries in [1, 2, 3, 7, 8, 100] {
            let mut agenda = Agenda::new(entries);
            let mut plain = vec![0; entries];
            for _ in 0..2_000 {
                let entry = random.below(entries as u64) as usize;
                let due_ns = random.below(50);
                agenda.set(entry, due_ns);
                plain[entry] = due_ns;
                assert_eq!(Some(agenda.next_ns()), plain.iter().copied().min());
                let (from, now_ns) = (random.below(entries as u64) as usize, random.below(50));
                let found = (from..entries).find(|entry| plain[*entry] <= now_ns);
                assert_eq!(agenda.due(from, now_ns), found, "{plain:?} {from} {now_ns}");
            }
            assert_eq!(agenda.due(entries, u64::MAX - 1), None);
        }
    }
}
