//! The keys and values, cheap to freeze, and when they expire.

use super::key::{HASH_BITS, Key, Place, Probe};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

/// A write after a freeze copies one shard, so shards are many.
pub(super) const SHARDS: usize = 1024;
const SHARD_BITS: u32 = SHARDS.ilog2();
const _: () = assert!(SHARDS.is_power_of_two() && SHARD_BITS < HASH_BITS);

/// A value and the log time at which it is no longer there.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) value: Arc<[u8]>,
    pub(super) deadline_ms: Option<u64>,
}

impl Entry {
    pub(super) fn is_live(&self, now_ms: u64) -> bool {
        self.deadline_ms.is_none_or(|deadline| now_ms < deadline)
    }
}

/// A part of the keys; the shards in turn hold all keys in order.
pub(super) type Shard = BTreeMap<Key, Entry>;

/// All keys. An expired entry is as good as absent: whether it has been swept shows nowhere.
#[derive(Clone, Debug)]
pub(super) struct Store {
    shards: Vec<Arc<Shard>>,
    entries: usize,
    deadlines: BTreeSet<(u64, Key)>,
}

fn shard_of(hash: u64) -> usize {
    (hash >> (HASH_BITS - SHARD_BITS)) as usize
}

impl Store {
    pub(super) fn new() -> Self {
        let empty = Arc::new(Shard::new());
        Self {
            shards: vec![empty; SHARDS],
            entries: 0,
            deadlines: BTreeSet::new(),
        }
    }

    /// Builds a store from entries in the order of their keys.
    pub(super) fn from_sorted(entries: Vec<(Key, Entry)>) -> Self {
        let mut store = Self::new();
        store.entries = entries.len();
        store.deadlines = entries
            .iter()
            .filter_map(|(key, entry)| Some((entry.deadline_ms?, key.clone())))
            .collect();
        let mut entries = entries.into_iter().peekable();
        while let Some((first, _)) = entries.peek() {
            let at = shard_of(first.hash());
            let shard =
                std::iter::from_fn(|| entries.next_if(|(key, _)| shard_of(key.hash()) == at));
            store.shards[at] = Arc::new(shard.collect());
        }
        store
    }

    pub(super) fn get(&self, now_ms: u64, name: &[u8]) -> Option<&Entry> {
        let probe = Probe::new(name);
        let entry = self.shards[shard_of(probe.hash())].get(&probe as &dyn Place)?;
        entry.is_live(now_ms).then_some(entry)
    }

    /// Sets a key, whatever it was.
    pub(super) fn put(&mut self, name: &[u8], value: Arc<[u8]>, deadline_ms: Option<u64>) {
        let probe = Probe::new(name);
        let shard = Arc::make_mut(&mut self.shards[shard_of(probe.hash())]);
        if let Some(entry) = shard.get_mut(&probe as &dyn Place) {
            entry.value = value;
            let before = std::mem::replace(&mut entry.deadline_ms, deadline_ms);
            if before != deadline_ms {
                let key = probe.to_key();
                self.move_deadline(key, before, deadline_ms);
            }
            return;
        }
        let key = probe.to_key();
        shard.insert(key.clone(), Entry { value, deadline_ms });
        self.entries += 1;
        self.move_deadline(key, None, deadline_ms);
    }

    /// Changes when a key expires, if there is such a key.
    pub(super) fn set_deadline(&mut self, name: &[u8], deadline_ms: Option<u64>) {
        let probe = Probe::new(name);
        let shard = Arc::make_mut(&mut self.shards[shard_of(probe.hash())]);
        if let Some(entry) = shard.get_mut(&probe as &dyn Place) {
            let before = std::mem::replace(&mut entry.deadline_ms, deadline_ms);
            self.move_deadline(probe.to_key(), before, deadline_ms);
        }
    }

    fn move_deadline(&mut self, key: Key, before: Option<u64>, after: Option<u64>) {
        let mut key = key;
        if let Some(before) = before {
            let place = (before, key);
            self.deadlines.remove(&place);
            key = place.1;
        }
        if let Some(after) = after {
            self.deadlines.insert((after, key));
        }
    }

    /// Removes a key and says what it held, if it was there and not expired.
    pub(super) fn remove(&mut self, now_ms: u64, name: &[u8]) -> Option<Arc<[u8]>> {
        let probe = Probe::new(name);
        let shard = &mut self.shards[shard_of(probe.hash())];
        if !shard.contains_key(&probe as &dyn Place) {
            return None;
        }
        let (key, entry) = Arc::make_mut(shard).remove_entry(&probe as &dyn Place)?;
        self.entries -= 1;
        self.move_deadline(key, entry.deadline_ms, None);
        entry.is_live(now_ms).then_some(entry.value)
    }

    /// Removes at most `limit` expired entries.
    pub(super) fn sweep(&mut self, now_ms: u64, limit: usize) {
        for _ in 0..limit {
            if self
                .first_deadline()
                .is_none_or(|deadline| now_ms < deadline)
            {
                return;
            }
            let Some((_, key)) = self.deadlines.pop_first() else {
                return;
            };
            let shard = Arc::make_mut(&mut self.shards[shard_of(key.hash())]);
            let removed = shard.remove(&key as &dyn Place);
            debug_assert!(removed.is_some(), "a deadline belongs to an entry");
            self.entries -= 1;
        }
    }

    pub(super) fn first_deadline(&self) -> Option<u64> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// How many keys there are.
    pub(super) fn count(&self, now_ms: u64) -> usize {
        let expired = self
            .deadlines
            .iter()
            .take_while(|(deadline, _)| *deadline <= now_ms)
            .count();
        self.entries - expired
    }

    /// The keys from the first of `hash` on, in order, with those that have expired.
    pub(super) fn walk_from(&self, hash: u64) -> impl Iterator<Item = (&Key, &Entry)> {
        let at = shard_of(hash).min(SHARDS);
        let (first, rest) = self.shards[at..].split_at(usize::from(at < SHARDS));
        let probe = Probe::first_of(hash);
        let first = first.iter().flat_map(move |shard| {
            let from: Bound<&dyn Place> = Bound::Included(&probe);
            shard.range::<dyn Place, _>((from, Bound::Unbounded))
        });
        first.chain(rest.iter().flat_map(|shard| shard.iter()))
    }

    /// The shards in order, as they are now.
    pub(super) fn shards(&self) -> Vec<Arc<Shard>> {
        self.shards.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(count: u32) -> Store {
        let mut store = Store::new();
        for n in 0..count {
            let deadline = n.is_multiple_of(3).then_some(u64::from(n) + 1);
            store.put(
                &n.to_be_bytes(),
                Arc::from(n.to_string().as_bytes()),
                deadline,
            );
        }
        store
    }

    #[test]
    fn a_walk_from_any_hash_is_the_rest_of_the_whole_walk() {
        let store = store(5000);
        let all: Vec<u64> = store.walk_from(0).map(|(key, _)| key.hash()).collect();
        assert_eq!(all.len(), 5000);
        assert!(all.is_sorted());
        for at in (0..5000).step_by(333) {
            assert!(
                store
                    .walk_from(all[at])
                    .map(|(key, _)| key.hash())
                    .eq(all[at..].to_vec())
            );
        }
        assert_eq!(store.walk_from(u64::MAX).count(), 0);
    }

    #[test]
    fn a_write_after_a_freeze_copies_one_shard() {
        let mut store = store(5000);
        let frozen = store.shards();
        store.put(b"new", Arc::from(&b"value"[..]), None);
        let copied = frozen
            .iter()
            .zip(&store.shards)
            .filter(|(a, b)| !Arc::ptr_eq(a, b))
            .count();
        assert_eq!(copied, 1);
    }

    #[test]
    fn an_expired_entry_is_absent_whether_swept_or_not() {
        let mut swept = store(300);
        let unswept = swept.clone();
        swept.sweep(150, usize::MAX);
        for now in [150, 200] {
            assert_eq!(swept.count(now), unswept.count(now));
            for n in 0..300u32 {
                let name = n.to_be_bytes();
                assert_eq!(
                    swept.get(now, &name).is_some(),
                    unswept.get(now, &name).is_some()
                );
            }
        }
        assert_eq!(swept.first_deadline(), Some(151));
        assert_eq!(swept.entries, 250);
    }

    #[test]
    fn removing_every_key_leaves_no_deadline() {
        let mut store = store(300);
        for n in 0..300u32 {
            store.remove(0, &n.to_be_bytes());
        }
        assert_eq!((store.entries, store.deadlines.len()), (0, 0));
    }
}
