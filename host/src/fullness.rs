//! That nothing is written any more because a leader's window is full, and stays so.

use consensus::Slot;
use consensus::region::GroupView;

/// A window that has been full for so long is told, in nanoseconds.
const FULL_NS: u64 = 300_000_000;

/// What was seen of a leader's window.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fullness {
    full: Option<Full>,
}

/// A full window.
#[derive(Clone, Copy, Debug)]
struct Full {
    trim: Slot,
    highest: Slot,
    decided: Slot,
    since_ns: u64,
}

impl Fullness {
    /// Looks at the group of a leader, whose ring has this many slots; of a follower there is
    /// nothing to see.
    pub(crate) fn look(&mut self, now_ns: u64, leading: Option<GroupView>, window: u64) {
        let full = leading.filter(|view| view.highest.0 + 1 >= view.trim.0 + window);
        self.full = full.map(|view| {
            let decided = view.decided.upto;
            // Under load it is full now and then.
            let before = self.full.filter(|before| before.decided == decided);
            Full {
                trim: view.trim,
                highest: view.highest,
                decided,
                since_ns: before.map_or(now_ns, |before| before.since_ns),
            }
        });
    }

    /// Why nothing is written, if that is why.
    pub(crate) fn reason(&self, now_ns: u64) -> Option<String> {
        let full = self.full.filter(|full| now_ns >= full.since_ns + FULL_NS)?;
        let Full { trim, highest, .. } = full;
        Some(format!(
            "the window is full: slots {trim} to {highest} stay until a majority has applied them: \
             start the nodes that are down; until then nothing is written"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use consensus::Ballot;
    use consensus::region::Decided;

    const WINDOW: u64 = 16;

    fn view(trim: u64, decided: u64) -> Option<GroupView> {
        Some(GroupView {
            promised: Ballot(1),
            highest: Slot(16),
            trim: Slot(trim),
            decided: Decided {
                upto: Slot(decided),
                ..Decided::default()
            },
        })
    }

    #[test]
    fn a_window_that_stays_full_is_told_however_often_one_asks() {
        let mut fullness = Fullness::default();
        fullness.look(0, view(1, 16), WINDOW);
        for now_ns in [0, FULL_NS - 1] {
            assert_eq!(fullness.reason(now_ns), None);
        }
        fullness.look(FULL_NS, view(1, 16), WINDOW);
        let reason = fullness.reason(FULL_NS).expect("nothing has moved");
        assert!(reason.contains("slots 1 to 16 stay"), "{reason}");
    }

    #[test]
    fn a_window_that_moves_or_is_another_leaders_is_not() {
        let mut fullness = Fullness::default();
        fullness.look(0, view(1, 15), WINDOW);
        fullness.look(FULL_NS, view(1, 16), WINDOW);
        assert_eq!(fullness.reason(FULL_NS), None);
        for other in [view(2, 16), None] {
            fullness.look(0, view(1, 16), WINDOW);
            fullness.look(FULL_NS, other, WINDOW);
            assert_eq!(fullness.reason(3 * FULL_NS), None, "{other:?}");
        }
    }
}
