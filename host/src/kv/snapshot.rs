//! The state as bytes: equal states give equal bytes.
//!
//! Integers are big-endian. Head: magic (8 bytes), version u32, zero u32, clock u64 (log time in
//! milliseconds), keys u64. Then for each key, in the order of [`Key`]: name length u32, value
//! length u32, deadline u64 (milliseconds, 0 for none), name, value. Last, the CRC-64/NVME of all
//! that, u64. What has expired by the clock is left out.

use super::key::{Key, Place, Probe};
use super::store::{Entry, Shard, Store};
use super::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use consensus::state_machine::{Frozen, RestoreError};
use crc_fast::{CrcAlgorithm, Digest};
use std::ops::Bound;
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"nwire.kv";
const VERSION: u32 = 1;
const CHECKSUM: CrcAlgorithm = CrcAlgorithm::Crc64Nvme;
/// A piece ends with the first entry that reaches this length.
const CHUNK_BYTES: usize = 64 * 1024;

/// A store as it was, being written out.
pub(super) struct Snapshot {
    /// The shards that are left; one that is written is let go, so that writes need not copy it.
    shards: std::vec::IntoIter<Arc<Shard>>,
    shard: Arc<Shard>,
    /// The last key written of `shard`.
    last: Option<Key>,
    clock_ms: u64,
    keys: u64,
    digest: Digest,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Head,
    Entries,
    Done,
}

impl Snapshot {
    pub(super) fn new(store: &Store, clock_ms: u64) -> Self {
        Self {
            shards: store.shards().into_iter(),
            shard: Arc::default(),
            last: None,
            clock_ms,
            keys: store.count(clock_ms) as u64,
            digest: Digest::new(CHECKSUM),
            stage: Stage::Head,
        }
    }

    /// Appends entries of the current shard; false if it has no more.
    fn shard_entries(&mut self, out: &mut Vec<u8>, end: usize) -> bool {
        let from: Bound<&dyn Place> = match &self.last {
            Some(last) => Bound::Excluded(last),
            None => Bound::Unbounded,
        };
        let mut last = None;
        for (key, entry) in self.shard.range::<dyn Place, _>((from, Bound::Unbounded)) {
            if out.len() >= end {
                self.last = last.or(self.last.take());
                return true;
            }
            if entry.is_live(self.clock_ms) {
                put_entry(out, key, entry);
            }
            last = Some(key.clone());
        }
        false
    }
}

impl Frozen for Snapshot {
    fn next_chunk(&mut self, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        match self.stage {
            Stage::Done => return false,
            Stage::Head => {
                out.extend_from_slice(MAGIC);
                out.extend_from_slice(&VERSION.to_be_bytes());
                out.extend_from_slice(&[0; 4]);
                out.extend_from_slice(&self.clock_ms.to_be_bytes());
                out.extend_from_slice(&self.keys.to_be_bytes());
                self.stage = Stage::Entries;
            }
            Stage::Entries => {}
        }
        while !self.shard_entries(out, start + CHUNK_BYTES) {
            self.last = None;
            let Some(shard) = self.shards.next() else {
                self.digest.update(&out[start..]);
                out.extend_from_slice(&self.digest.finalize().to_be_bytes());
                self.shard = Arc::default();
                self.stage = Stage::Done;
                return true;
            };
            self.shard = shard;
        }
        self.digest.update(&out[start..]);
        true
    }
}

fn put_entry(out: &mut Vec<u8>, key: &Key, entry: &Entry) {
    // Names and values are bounded far below 4 GiB.
    out.extend_from_slice(&(key.name().len() as u32).to_be_bytes());
    out.extend_from_slice(&(entry.value.len() as u32).to_be_bytes());
    out.extend_from_slice(&entry.deadline_ms.unwrap_or(0).to_be_bytes());
    out.extend_from_slice(key.name());
    out.extend_from_slice(&entry.value);
}

/// Reads a whole snapshot: the store and its clock.
pub(super) fn read(bytes: &[u8]) -> Result<(Store, u64), RestoreError> {
    let (content, checksum) = bytes
        .split_last_chunk::<8>()
        .ok_or(RestoreError("shorter than a checksum"))?;
    let mut rest = content;
    if take::<8>(&mut rest)? != *MAGIC {
        return Err(RestoreError("not a snapshot of the key-value machine"));
    }
    if u32::from_be_bytes(take(&mut rest)?) != VERSION {
        return Err(RestoreError(
            "a version of the format that this program does not know",
        ));
    }
    if crc_fast::checksum(CHECKSUM, content) != u64::from_be_bytes(*checksum) {
        return Err(RestoreError("the checksum does not match"));
    }
    if take(&mut rest)? != [0; 4] {
        return Err(RestoreError("reserved bytes are not zero"));
    }
    let clock_ms = u64::from_be_bytes(take(&mut rest)?);
    let keys = u64::from_be_bytes(take(&mut rest)?);
    let mut entries: Vec<(Key, Entry)> = Vec::new();
    while !rest.is_empty() {
        let (key, entry) = take_entry(&mut rest, clock_ms)?;
        if entries.last().is_some_and(|(before, _)| *before >= key) {
            return Err(RestoreError("keys are out of order"));
        }
        entries.push((key, entry));
    }
    if entries.len() as u64 != keys {
        return Err(RestoreError("not as many keys as the head says"));
    }
    Ok((Store::from_sorted(entries), clock_ms))
}

fn take_entry(rest: &mut &[u8], clock_ms: u64) -> Result<(Key, Entry), RestoreError> {
    let name_bytes = u32::from_be_bytes(take(rest)?) as usize;
    let value_bytes = u32::from_be_bytes(take(rest)?) as usize;
    let deadline = u64::from_be_bytes(take(rest)?);
    if name_bytes > MAX_KEY_BYTES || value_bytes > MAX_VALUE_BYTES {
        return Err(RestoreError("a key or value is longer than the limit"));
    }
    let deadline_ms = Some(deadline).filter(|deadline| *deadline != 0);
    let cut = RestoreError("an entry is cut off");
    let (name, tail) = rest.split_at_checked(name_bytes).ok_or(cut.clone())?;
    let (value, tail) = tail.split_at_checked(value_bytes).ok_or(cut)?;
    *rest = tail;
    let entry = Entry {
        value: value.into(),
        deadline_ms,
    };
    if !entry.is_live(clock_ms) {
        return Err(RestoreError(
            "an entry has expired by the snapshot's own clock",
        ));
    }
    Ok((Probe::new(name).to_key(), entry))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], RestoreError> {
    let (head, tail) = rest.split_first_chunk().ok_or(RestoreError("cut off"))?;
    *rest = tail;
    Ok(*head)
}
