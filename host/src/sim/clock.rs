//! A machine's two clocks, neither of which runs right.

/// What a monotonic clock reads when its machine boots: zero means "never" to the core.
const BOOT_NS: u64 = 1_000_000_000;
/// What a right wall clock reads when a world begins, in Unix milliseconds.
const EPOCH_MS: u64 = 1_800_000_000_000;
const MILLION: i128 = 1_000_000;

/// The clocks of one machine.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    booted_ns: u64,
    /// How much faster the monotonic clock runs than the world's, in parts per million.
    drift_ppm: i64,
    /// How far the wall clock is ahead.
    skew_ms: i64,
}

impl Clock {
    pub(super) const fn new(drift_ppm: i64, skew_ms: i64) -> Self {
        Self {
            booted_ns: 0,
            drift_ppm,
            skew_ms,
        }
    }

    /// The machine boots: its monotonic clock starts again.
    pub(super) const fn boot(&mut self, now_ns: u64) {
        self.booted_ns = now_ns;
    }

    /// Somebody sets the wall clock.
    pub(super) const fn step_wall(&mut self, by_ms: i64) {
        self.skew_ms += by_ms;
    }

    pub(super) const fn monotonic_ns(&self, now_ns: u64) -> u64 {
        let up = now_ns.saturating_sub(self.booted_ns) as i128;
        let drifted = up + up * self.drift_ppm as i128 / MILLION;
        BOOT_NS + drifted as u64
    }

    pub(super) const fn unix_ms(&self, now_ns: u64) -> u64 {
        let wall = EPOCH_MS as i64 + self.skew_ms + (now_ns / 1_000_000) as i64;
        wall as u64
    }

    /// The world's time at which the monotonic clock has reached `local_ns`.
    pub(super) const fn when(&self, local_ns: u64) -> u64 {
        if local_ns == u64::MAX {
            return u64::MAX;
        }
        let up = local_ns.saturating_sub(BOOT_NS) as i128;
        let real = (up * MILLION) / (MILLION + self.drift_ppm as i128) + 1;
        self.booted_ns.saturating_add(real as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_that_is_due_by_the_world_is_due_by_the_machine() {
        for drift_ppm in [-500, -1, 0, 1, 77, 500] {
            let mut clock = Clock::new(drift_ppm, 5);
            clock.boot(123_456_789);
            for local_ns in (BOOT_NS..BOOT_NS + 10_000_000_000).step_by(777_777_777) {
                assert!(clock.monotonic_ns(clock.when(local_ns)) >= local_ns);
            }
        }
    }
}
