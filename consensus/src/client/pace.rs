//! How long a client waits before it asks again.

/// Shortest wait for an answer in nanoseconds.
const MIN_WAIT_NS: u64 = 1_000_000;
/// Longest wait for an answer in nanoseconds.
const MAX_WAIT_NS: u64 = 500_000_000;
/// Longest wait that doubling alone leads to, in nanoseconds: a fail-over lasts as long as its
/// clients take to notice the new leader.
const MAX_BACK_OFF_NS: u64 = 40_000_000;
/// The wait before anything was measured, in nanoseconds.
const FIRST_WAIT_NS: u64 = 50_000_000;
/// Doubling stops here: every wait has reached the maximum by then.
const MAX_DOUBLINGS: u32 = 7;

/// Smoothed round-trip time and the retransmission time-out that follows from it (RFC 6298, with
/// bounds that suit a local network).
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    smoothed_ns: u64,
    variation_ns: u64,
    measured: bool,
    /// Time-outs since something was answered.
    pub(super) timeouts: u32,
}

impl Pace {
    /// Takes one round trip. Karn's rule is the caller's: only what was sent once is unambiguous.
    pub(super) fn measure(&mut self, round_trip_ns: u64) {
        let sample = round_trip_ns.min(MAX_WAIT_NS);
        if self.measured {
            let error = self.smoothed_ns.abs_diff(sample);
            self.variation_ns = (3 * self.variation_ns + error) / 4;
            self.smoothed_ns = (7 * self.smoothed_ns + sample) / 8;
        } else {
            (self.smoothed_ns, self.variation_ns, self.measured) = (sample, sample / 2, true);
        }
    }

    /// The smoothed round trip in nanoseconds; a guess before anything was measured.
    pub(super) fn round_trip_ns(&self) -> u64 {
        if self.measured {
            self.smoothed_ns
        } else {
            MIN_WAIT_NS
        }
    }

    /// How long to wait for an answer before asking again, in nanoseconds.
    pub(super) fn wait_ns(&self) -> u64 {
        let wait = if self.measured {
            (self.smoothed_ns + 4 * self.variation_ns).max(MIN_WAIT_NS)
        } else {
            FIRST_WAIT_NS
        };
        let patience = wait.clamp(MAX_BACK_OFF_NS, MAX_WAIT_NS);
        (wait << self.timeouts.min(MAX_DOUBLINGS)).min(patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_follows_the_round_trip_within_its_bounds() {
        let mut pace = Pace::default();
        assert_eq!(pace.wait_ns(), FIRST_WAIT_NS);
        for _ in 0..100 {
            pace.measure(50_000);
        }
        assert_eq!(pace.wait_ns(), MIN_WAIT_NS);
        for _ in 0..100 {
            pace.measure(20_000_000);
        }
        assert!(
            (20_000_000..25_000_000).contains(&pace.wait_ns()),
            "{}",
            pace.wait_ns()
        );
    }

    #[test]
    fn the_wait_doubles_with_each_time_out_up_to_its_bound() {
        let mut pace = Pace::default();
        pace.measure(1_000);
        let waits: [u64; 6] = core::array::from_fn(|timeouts| {
            pace.timeouts = timeouts as u32;
            pace.wait_ns() / 1_000_000
        });
        assert_eq!(waits, [1, 2, 4, 8, 16, 32]);
        pace.timeouts = u32::MAX;
        assert_eq!(pace.wait_ns(), MAX_BACK_OFF_NS);
    }
}
