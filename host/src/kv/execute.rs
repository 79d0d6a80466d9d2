//! Executes operations on the store and writes their replies, in RESP3.

use super::operation::{
    Condition, Expire, Lifetime, NOT_AN_INTEGER, Read, Scan, Set, Unit, Write, invalid_expire,
};
use super::store::Store;
use super::{MAX_VALUE_BYTES, VALUE_TOO_LONG, glob, integer};
use crate::resp::reply::{self, Decimal, RespError};
use std::sync::Arc;

/// Most keys that one SCAN looks at, whatever its COUNT: a query shares its thread.
const SCAN_KEYS: usize = 10_000;
/// Where one SCAN stops adding names, so that its reply fits a datagram.
const SCAN_BYTES: usize = 48 * 1024;

/// A store at one log time.
pub(super) struct At<S> {
    pub(super) store: S,
    pub(super) now_ms: u64,
}

impl At<&Store> {
    pub(super) fn read(&self, read: &Read<'_>, out: &mut Vec<u8>) {
        match read {
            Read::Get { key } => value_or_null(out, self.value(key)),
            Read::Mget { keys } => {
                reply::array(out, keys.len());
                for key in *keys {
                    value_or_null(out, self.value(key));
                }
            }
            Read::Exists { keys } => {
                count(
                    out,
                    keys.iter().filter(|key| self.value(key).is_some()).count(),
                );
            }
            Read::Strlen { key } => count(out, self.value(key).map_or(0, <[u8]>::len)),
            Read::TimeToLive { key, unit } => reply::integer(out, self.time_to_live(key, *unit)),
            Read::Scan(scan) => self.scan(scan, out),
            Read::Dbsize => count(out, self.store.count(self.now_ms)),
            Read::Type { key } => {
                reply::simple(
                    out,
                    if self.value(key).is_some() {
                        "string"
                    } else {
                        "none"
                    },
                );
            }
        }
    }

    fn value(&self, key: &[u8]) -> Option<&[u8]> {
        self.store.get(self.now_ms, key).map(|entry| &*entry.value)
    }

    fn time_to_live(&self, key: &[u8], unit: Unit) -> i64 {
        let Some(entry) = self.store.get(self.now_ms, key) else {
            return -2;
        };
        let Some(deadline) = entry.deadline_ms else {
            return -1;
        };
        let ms = to_signed(deadline - self.now_ms);
        match unit {
            Unit::Seconds => ms.saturating_add(500) / 1000,
            Unit::Milliseconds => ms,
        }
    }

    /// The cursor is the hash of the next key to look at: it needs no state here, and a key that is
    /// there throughout is passed exactly once. Keys of one hash are never parted.
    fn scan(&self, scan: &Scan<'_>, out: &mut Vec<u8>) {
        let wanted = scan.count.min(SCAN_KEYS);
        let (mut names, mut bytes, mut seen, mut last, mut next) = (Vec::new(), 0, 0, 0, 0);
        for (key, entry) in self.store.walk_from(scan.cursor) {
            let full = seen >= wanted || bytes + key.name().len() > SCAN_BYTES;
            if full && key.hash() != last && seen > 0 {
                next = key.hash();
                break;
            }
            last = key.hash();
            seen += 1;
            let matches = scan
                .pattern
                .is_none_or(|pattern| glob::matches(pattern, key.name()));
            if matches && scan.strings && entry.is_live(self.now_ms) {
                // The name's own head and end are at most this long.
                bytes += key.name().len() + 10;
                names.push(key.name());
            }
        }
        reply::array(out, 2);
        reply::bulk(out, Decimal::new(to_signed(next)).text());
        reply::array(out, names.len());
        for name in names {
            reply::bulk(out, name);
        }
    }
}

impl At<&mut Store> {
    pub(super) fn write(&mut self, write: &Write<'_>, out: &mut Vec<u8>) {
        let done = match write {
            Write::Set(set) => self.set(set, out),
            Write::Mset { pairs } => {
                for pair in pairs.chunks_exact(2) {
                    self.store.put(pair[0], pair[1].into(), None);
                }
                reply::simple(out, "OK");
                Ok(())
            }
            Write::Del { keys } => {
                let removed = keys.iter().filter(|key| self.remove(key).is_some());
                count(out, removed.count());
                Ok(())
            }
            Write::Add { key, by } => self.add(key, *by, out),
            Write::Append { key, tail } => self.append(key, tail, out),
            Write::Getdel { key } => {
                value_or_null(out, self.remove(key).as_deref());
                Ok(())
            }
            Write::Expire(expire) => self.expire(expire, out),
            Write::Persist { key } => {
                let mortal = self
                    .entry(key)
                    .is_some_and(|(_, deadline)| deadline.is_some());
                if mortal {
                    self.store.set_deadline(key, None);
                }
                count(out, usize::from(mortal));
                Ok(())
            }
        };
        if let Err(error) = done {
            reply::error(out, &error);
        }
    }

    fn remove(&mut self, key: &[u8]) -> Option<Arc<[u8]>> {
        self.store.remove(self.now_ms, key)
    }

    fn entry(&self, key: &[u8]) -> Option<(Arc<[u8]>, Option<u64>)> {
        let entry = self.store.get(self.now_ms, key)?;
        Some((Arc::clone(&entry.value), entry.deadline_ms))
    }

    fn set(&mut self, set: &Set<'_>, out: &mut Vec<u8>) -> Result<(), RespError> {
        let now = to_signed(self.now_ms);
        let invalid = || invalid_expire("set");
        let new_deadline = match set.lifetime {
            Lifetime::Forever | Lifetime::Keep => None,
            Lifetime::For(ms) => Some(now.checked_add(ms).ok_or_else(invalid)?),
            Lifetime::Until(ms) => Some(ms),
        };
        let before = self.entry(set.key);
        if set.get {
            value_or_null(out, before.as_ref().map(|(value, _)| &**value));
        }
        let goes = match set.condition {
            Condition::Always => true,
            Condition::Missing => before.is_none(),
            Condition::Present => before.is_some(),
        };
        if !goes {
            if !set.get {
                reply::null(out);
            }
            return Ok(());
        }
        match new_deadline {
            Some(deadline) if deadline <= now => drop(self.remove(set.key)),
            Some(deadline) => {
                self.store
                    .put(set.key, set.value.into(), Some(deadline.unsigned_abs()));
            }
            None => {
                let kept = before.filter(|_| set.lifetime == Lifetime::Keep);
                self.store.put(
                    set.key,
                    set.value.into(),
                    kept.and_then(|(_, deadline)| deadline),
                );
            }
        }
        if !set.get {
            reply::simple(out, "OK");
        }
        Ok(())
    }

    fn add(&mut self, key: &[u8], by: i64, out: &mut Vec<u8>) -> Result<(), RespError> {
        let (before, deadline) = match self.store.get(self.now_ms, key) {
            Some(entry) => (
                integer::parse(&entry.value).ok_or(NOT_AN_INTEGER)?,
                entry.deadline_ms,
            ),
            None => (0, None),
        };
        let after = before.checked_add(by).ok_or(RespError::fixed(
            "ERR increment or decrement would overflow",
        ))?;
        self.store
            .put(key, Decimal::new(after).text().into(), deadline);
        reply::integer(out, after);
        Ok(())
    }

    fn append(&mut self, key: &[u8], tail: &[u8], out: &mut Vec<u8>) -> Result<(), RespError> {
        let (before, deadline) = self.entry(key).unwrap_or_default();
        let bytes = before.len() + tail.len();
        if bytes > MAX_VALUE_BYTES {
            return Err(VALUE_TOO_LONG);
        }
        self.store
            .put(key, [&before, tail].concat().into(), deadline);
        count(out, bytes);
        Ok(())
    }

    fn expire(&mut self, expire: &Expire<'_>, out: &mut Vec<u8>) -> Result<(), RespError> {
        let now = to_signed(self.now_ms);
        let deadline = now
            .checked_add(expire.after_ms)
            .ok_or_else(|| invalid_expire(expire.name))?;
        let Some(entry) = self.store.get(self.now_ms, expire.key) else {
            reply::integer(out, 0);
            return Ok(());
        };
        // A key without a deadline lives for ever: no deadline is later, every one is sooner.
        let before = entry.deadline_ms.map(to_signed);
        let refused = (expire.none_yet && before.is_some())
            || (expire.some_yet && before.is_none())
            || (expire.later && before.is_none_or(|before| deadline <= before))
            || (expire.sooner && before.is_some_and(|before| deadline >= before));
        if !refused {
            if deadline <= now {
                self.remove(expire.key);
            } else {
                self.store
                    .set_deadline(expire.key, Some(deadline.unsigned_abs()));
            }
        }
        reply::integer(out, i64::from(!refused));
        Ok(())
    }
}

fn value_or_null(out: &mut Vec<u8>, value: Option<&[u8]>) {
    match value {
        Some(value) => reply::bulk(out, value),
        None => reply::null(out),
    }
}

fn count(out: &mut Vec<u8>, count: usize) {
    reply::integer(out, to_signed(count as u64));
}

fn to_signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
