//! How late this machine runs what is due.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Between two beats.
const BEAT: Duration = Duration::from_millis(2);
/// What a sleep may take longer on a machine that has time.
const USUAL: Duration = Duration::from_millis(1);

/// The time that a thread has lost which does nothing but sleep: what this machine's scheduler
/// takes from whoever waits for an answer, whoever answers.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    lost_ns: AtomicU64,
    is_over: AtomicBool,
}

impl Pulse {
    /// Beats until [`Pulse::end`].
    pub(super) fn beat(&self) {
        while !self.is_over.load(Ordering::Relaxed) {
            let begin = Instant::now();
            std::thread::sleep(BEAT);
            let lost = begin.elapsed().saturating_sub(BEAT);
            if lost > USUAL {
                let ns = u64::try_from(lost.as_nanos()).unwrap_or(u64::MAX);
                self.lost_ns.fetch_add(ns, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Lost so far.
    pub(super) fn lost(&self) -> Duration {
        Duration::from_nanos(self.lost_ns.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pulse_ends_when_it_is_told_to() {
        let pulse = Pulse::default();
        std::thread::scope(|scope| {
            scope.spawn(|| pulse.beat());
            pulse.end();
        });
        assert!(pulse.lost() < Duration::from_secs(60));
    }
}
