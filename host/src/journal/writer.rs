//! The thread that turns what is queued into batches: group commit.

use super::disk::{Blocks, DiskFile};
use super::format::{
    self, BLOCK_BYTES, BatchHeader, MAX_BATCH_BYTES, SEGMENT_FLUSHED, Seal, Superheader,
};
use super::segments::{Finished, Fresh, lock};
use super::shared::Shared;
use super::{Flush, JournalError, Lsn, recovery};
use crate::kill_point::{is_armed, kill_point};
use consensus::simulation::{Mutation, mutated};
use rtrb::Consumer;
use std::hint;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::thread;
use std::time::{Duration, Instant};

/// A record in the queue is its length as a little-endian u32, then its payload.
pub(super) const FRAME_BYTES: usize = 4;
/// Looks at the queue this often before going to sleep: about a microsecond, less than the futex
/// call that would otherwise wake this thread.
const IDLE_SPINS: u32 = 64;
/// Under [`Flush::Behind`] nobody waits, so a batch may fill for so long.
const GATHER: Duration = Duration::from_millis(1);
const GATHER_BYTES: usize = 64 * 1024;
/// How often a writer without a segment looks again.
const STALL: Duration = Duration::from_millis(10);

pub(super) struct Writer {
    pub(super) queue: Consumer<u8>,
    pub(super) shared: Arc<Shared>,
    pub(super) flush: Flush,
    pub(super) identity: u64,
    pub(super) directory: PathBuf,
    pub(super) segment: Current,
    pub(super) buffer: Blocks,
}

/// The segment being written.
pub(super) struct Current {
    pub(super) seal: Seal,
    file: Arc<dyn DiskFile>,
    bytes: u64,
    /// Where the next batch goes; 0 until the superheader is written with the first batch.
    offset: u64,
    /// The next record.
    next: Lsn,
}

impl Current {
    pub(super) fn new(fresh: Fresh, life: u64, next: Lsn) -> Self {
        Self {
            seal: Seal {
                life,
                segment: fresh.number,
            },
            file: fresh.file,
            bytes: fresh.bytes,
            offset: 0,
            next,
        }
    }
}

impl Writer {
    pub(super) const BUFFER_BYTES: usize = BLOCK_BYTES + MAX_BATCH_BYTES;

    pub(super) fn run(mut self) {
        if let Err(error) = self.serve() {
            self.shared.poison(error);
        }
    }

    fn serve(&mut self) -> Result<(), JournalError> {
        loop {
            let stops = self.shared.writer_stops.load(Acquire);
            if self.shared.has_failed.load(Acquire) {
                return Ok(());
            }
            if !self.queue.is_empty() {
                self.gather(stops);
                self.write_batch()?;
            } else if stops {
                // An empty batch, which says that everything before it was flushed: from now on
                // damage to the last records is told from a write that was never finished.
                return self.write(0, 0);
            } else {
                self.idle();
            }
        }
    }

    fn idle(&self) {
        for _ in 0..IDLE_SPINS {
            if !self.queue.is_empty() {
                return;
            }
            hint::spin_loop();
        }
        thread::park();
    }

    fn gather(&self, stops: bool) {
        if self.flush == Flush::Behind && !stops && self.queue.slots() < GATHER_BYTES {
            // Not parked: the producer would pay for waking this thread at each record.
            thread::sleep(GATHER);
        }
    }

    /// Writes as many of the queued records as one batch takes.
    fn write_batch(&mut self) -> Result<(), JournalError> {
        let wanted = format::record_bytes(self.peek_length());
        if self.room() < wanted {
            self.change_segment()?;
        }
        let (records, bytes) = self.fill(self.room());
        self.write(records, bytes)
    }

    /// The bytes of records that the next batch may hold. The last block of a segment is left to
    /// the mark of a clean end.
    fn room(&self) -> usize {
        let start = self.segment.offset.max(BLOCK_BYTES as u64) + BLOCK_BYTES as u64;
        let left = usize::try_from(self.segment.bytes.saturating_sub(start)).unwrap_or(usize::MAX);
        left.min(MAX_BATCH_BYTES).saturating_sub(BatchHeader::BYTES)
    }

    fn peek_length(&mut self) -> usize {
        let chunk = self
            .queue
            .read_chunk(FRAME_BYTES)
            .expect("frames are queued whole");
        frame_length(chunk.as_slices(), 0)
    }

    /// Where in the buffer the batch is: behind the superheader if that is still to be written.
    fn lead(&self) -> usize {
        if self.segment.offset == 0 {
            BLOCK_BYTES
        } else {
            0
        }
    }

    /// Moves records from the queue to the buffer.
    fn fill(&mut self, room: usize) -> (u32, usize) {
        let start = self.lead() + BatchHeader::BYTES;
        let queued = self.queue.slots();
        let chunk = self.queue.read_chunk(queued).expect("that many were there");
        let slices = chunk.as_slices();
        let (mut taken, mut records, mut bytes) = (0, 0, 0);
        while taken < queued {
            let length = frame_length(slices, taken);
            if bytes + format::record_bytes(length) > room {
                break;
            }
            let payload = pieces(slices, taken + FRAME_BYTES, length);
            let out = &mut self.buffer.as_mut_slice()[start + bytes..];
            let lsn = Lsn(self.segment.next.0 + u64::from(records));
            bytes += format::encode_record(out, self.segment.seal, lsn, payload);
            taken += FRAME_BYTES + length;
            records += 1;
            let counters = &self.shared.counters;
            counters.payload_bytes.fetch_add(length as u64, Relaxed);
        }
        chunk.commit(taken);
        (records, bytes)
    }

    /// Makes the first write of a life durable, whatever the mode: it ends the last life's records.
    pub(super) fn begin(&mut self) -> Result<(), JournalError> {
        self.write(0, 0)?;
        let path = recovery::segment_path(&self.directory, self.segment.seal.segment);
        self.segment
            .file
            .flush()
            .map_err(JournalError::disk("flush journal", path))
    }

    /// Writes the batch in the buffer, and the superheader before it if it is the first.
    fn write(&mut self, records: u32, bytes: usize) -> Result<(), JournalError> {
        let lead = self.lead();
        let Current {
            seal, next, offset, ..
        } = self.segment;
        let durable = Lsn(self.shared.durable.load(Acquire));
        let flags = match (self.flush, lead) {
            (Flush::Before, 0) => SEGMENT_FLUSHED,
            (Flush::Before | Flush::Behind, _) => 0,
        };
        let buffer = self.buffer.as_mut_slice();
        if lead > 0 {
            Superheader::new(self.identity, seal, next, self.segment.bytes).encode(buffer);
        }
        BatchHeader::new(seal, next, durable, flags).encode(records, bytes, &mut buffer[lead..]);
        let end = lead + BatchHeader::BYTES + bytes;
        let padded = end.next_multiple_of(BLOCK_BYTES);
        buffer[end..padded].fill(0);
        let last = Lsn(next.0 + u64::from(records) - 1);

        kill_point("journal.before-write");
        let begun = Instant::now();
        self.store(offset, padded, last)?;
        self.shared.counters.flushed(begun.elapsed());
        kill_point("journal.after-flush-before-report");

        self.segment.offset += padded as u64;
        self.segment.next = last.next();
        let counters = &self.shared.counters;
        counters.records.fetch_add(u64::from(records), Relaxed);
        counters.disk_bytes.fetch_add(padded as u64, Relaxed);
        if self.flush == Flush::Before {
            self.shared.durable.store(last.0, Release);
        }
        if records > 0 {
            self.shared.report(last);
        }
        if lead > 0 {
            counters.segments_begun.fetch_add(1, Relaxed);
            lock(&self.shared.yard).wanted = Some(seal.segment + 1);
            self.shared.unpark_housekeeper();
        }
        Ok(())
    }

    fn store(&mut self, offset: u64, padded: usize, last: Lsn) -> Result<(), JournalError> {
        const BETWEEN: &str = "journal.after-write-before-flush";
        let file = self.segment.file.as_ref();
        let bytes = &self.buffer.as_slice()[..padded];
        debug_assert!(offset + padded as u64 <= self.segment.bytes);
        if mutated(Mutation::FlushReportedEarly) {
            self.shared.report(last);
        }
        let stored = match self.flush {
            Flush::Before if is_armed(BETWEEN) => file.write_at(offset, bytes).and_then(|()| {
                kill_point(BETWEEN);
                file.flush()
            }),
            Flush::Before => file.write_durably(offset, bytes),
            Flush::Behind => file
                .write_at(offset, bytes)
                .inspect(|()| kill_point(BETWEEN)),
        };
        let stored = match stored {
            Err(_) if mutated(Mutation::FailedFlushRetried) => file.flush(),
            stored => stored,
        };
        let path = recovery::segment_path(&self.directory, self.segment.seal.segment);
        stored.map_err(JournalError::disk("write journal", path))
    }

    /// Goes on in the segment that the housekeeper has made ready.
    fn change_segment(&mut self) -> Result<(), JournalError> {
        let mut stalled = false;
        let fresh = loop {
            {
                let mut yard = lock(&self.shared.yard);
                if let Some(fresh) = yard.ready.take() {
                    break fresh;
                }
                // A refusal from before this writer had to wait may be out of date.
                match yard.refused.take() {
                    Some(error) if stalled => return Err(error),
                    Some(_) | None => {}
                }
            }
            if let Some(error) = self.shared.failed() {
                return Err(JournalError::Disk {
                    doing: "wait for the next segment",
                    path: self.directory.clone(),
                    source: std::io::Error::other(error.to_string()),
                });
            }
            if !stalled {
                stalled = true;
                self.shared.counters.stalls.fetch_add(1, Relaxed);
                self.shared.unpark_housekeeper();
            }
            thread::park_timeout(STALL);
        };
        let Current { seal, next, .. } = self.segment;
        let current = Current::new(fresh, seal.life, next);
        let old = std::mem::replace(&mut self.segment, current);
        let mut yard = lock(&self.shared.yard);
        yard.current = Arc::clone(&self.segment.file);
        yard.finished.push_back(Finished {
            number: seal.segment,
            end: next,
            file: (self.flush == Flush::Behind).then_some(old.file),
        });
        drop(yard);
        // A cut may already cover the segment that has just ended.
        self.shared.unpark_housekeeper();
        Ok(())
    }
}

fn frame_length(slices: (&[u8], &[u8]), at: usize) -> usize {
    let mut bytes = [0; FRAME_BYTES];
    let (head, tail) = pieces(slices, at, FRAME_BYTES);
    bytes[..head.len()].copy_from_slice(head);
    bytes[head.len()..].copy_from_slice(tail);
    u32::from_le_bytes(bytes) as usize
}

/// `length` bytes from `at` on of what two slices make together.
fn pieces<'a>(
    (head, tail): (&'a [u8], &'a [u8]),
    at: usize,
    length: usize,
) -> (&'a [u8], &'a [u8]) {
    let end = at + length;
    if end <= head.len() {
        (&head[at..end], &[])
    } else if at >= head.len() {
        (&tail[at - head.len()..end - head.len()], &[])
    } else {
        (&head[at..], &tail[..end - head.len()])
    }
}
