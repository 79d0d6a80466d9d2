//! Counters that the journal's threads keep and anyone may read.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Flush latencies are counted by powers of two of a microsecond: bucket `i` holds those below
/// `2^i` µs and not below `2^(i-1)`; the last one holds all longer ones.
pub const LATENCY_BUCKETS: usize = 24;

#[derive(Default, Debug)]
pub(super) struct Counters {
    pub(super) flushes: AtomicU64,
    pub(super) records: AtomicU64,
    pub(super) payload_bytes: AtomicU64,
    pub(super) disk_bytes: AtomicU64,
    pub(super) segments_begun: AtomicU64,
    pub(super) segments_recycled: AtomicU64,
    pub(super) stalls: AtomicU64,
    latency: [AtomicU64; LATENCY_BUCKETS],
}

impl Counters {
    pub(super) fn flushed(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = (u64::BITS - us.leading_zeros()) as usize;
        self.latency[bucket.min(LATENCY_BUCKETS - 1)].fetch_add(1, Relaxed);
        self.flushes.fetch_add(1, Relaxed);
    }

    pub(super) fn read(&self) -> Statistics {
        Statistics {
            flushes: self.flushes.load(Relaxed),
            records: self.records.load(Relaxed),
            payload_bytes: self.payload_bytes.load(Relaxed),
            disk_bytes: self.disk_bytes.load(Relaxed),
            segments_begun: self.segments_begun.load(Relaxed),
            segments_recycled: self.segments_recycled.load(Relaxed),
            stalls: self.stalls.load(Relaxed),
            latency: std::array::from_fn(|bucket| self.latency[bucket].load(Relaxed)),
        }
    }
}

/// What a journal has done since it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Batches written and, under [`Flush::Before`](super::Flush::Before), flushed.
    pub flushes: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of payload in them.
    pub payload_bytes: u64,
    /// Bytes written for them, headers and padding included.
    pub disk_bytes: u64,
    /// Segments begun.
    pub segments_begun: u64,
    /// Segments given back after a cut.
    pub segments_recycled: u64,
    /// Times that the writer waited for the next segment to be made.
    pub stalls: u64,
    /// How long a batch took from write to flushed; see [`LATENCY_BUCKETS`].
    pub latency: [u64; LATENCY_BUCKETS],
}

impl Statistics {
    /// An upper bound in microseconds for the latency of the given share (0 to 1) of the flushes.
    #[must_use]
    pub fn latency_us(&self, share: f64) -> u64 {
        let total: u64 = self.latency.iter().sum();
        let wanted = (total as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.latency.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return 1 << bucket;
            }
        }
        u64::MAX
    }
}
