//! The machine as its callers see it: words in, RESP3 out.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn apply(kv: &mut Kv, time_ms: u64, words: &[&[u8]]) -> Vec<u8> {
    let (Parsed::Query(call) | Parsed::Command(call)) = Command::parse(words).expect("parses")
    else {
        panic!("not for the machine")
    };
    let mut reply = Vec::new();
    kv.apply(time_ms, &call.to_body(), &mut reply);
    reply
}

fn say(kv: &mut Kv, time_ms: u64, line: &str) -> String {
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    let reply = apply(kv, time_ms, &words);
    String::from_utf8(reply)
        .expect("text")
        .replace("\r\n", " ")
        .trim_end()
        .to_owned()
}

fn snapshot(kv: &Kv) -> Vec<u8> {
    written(&mut *kv.freeze())
}

fn written(frozen: &mut dyn Frozen) -> Vec<u8> {
    let mut bytes = Vec::new();
    while frozen.next_chunk(&mut bytes) {}
    bytes
}

/// Each line is applied at the time in front, and answered with what stands behind the arrow.
fn script(text: &str) {
    let mut kv = Kv::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (request, expected) = line.split_once(" -> ").expect("an arrow");
        let (time, words) = request.split_once(": ").expect("a time");
        let time = time.parse().expect("milliseconds");
        assert_eq!(say(&mut kv, time, words), expected, "{line}");
    }
}

#[test]
fn strings_behave_as_in_redis() {
    script(
        "0: GET k -> _
         0: SET k v -> +OK
         0: GET k -> $1 v
         0: SET k w NX -> _
         0: SET k w XX GET -> $1 v
         0: SET k x NX GET -> $1 w
         0: SET other x XX -> _
         0: SET other x XX GET -> _
         0: MSET a 1 b 2 a 3 -> +OK
         0: MGET a b c -> *3 $1 3 $1 2 _
         0: EXISTS a a b c -> :3
         0: APPEND a 45 -> :3
         0: APPEND new xyz -> :3
         0: STRLEN a -> :3
         0: STRLEN none -> :0
         0: GETDEL a -> $3 345
         0: GETDEL a -> _
         0: DEL b b new -> :2
         0: TYPE k -> +string
         0: TYPE b -> +none
         0: DBSIZE -> :1",
    );
}

#[test]
fn numbers_behave_as_in_redis() {
    script(
        "0: INCR n -> :1
         0: INCRBY n 41 -> :42
         0: DECR n -> :41
         0: DECRBY n -9 -> :50
         0: INCRBY n 9223372036854775807 -> -ERR increment or decrement would overflow
         0: DECRBY n -9223372036854775808 -> -ERR decrement would overflow
         0: INCRBY n 1.5 -> -ERR value is not an integer or out of range
         0: SET n 9223372036854775807 -> +OK
         0: INCR n -> -ERR increment or decrement would overflow
         0: SET n 01 -> +OK
         0: INCR n -> -ERR value is not an integer or out of range
         0: GET n -> $2 01",
    );
}

#[test]
fn keys_expire_by_the_logs_clock() {
    script(
        "1000: SET k v PX 500 -> +OK
         1000: PTTL k -> :500
         1000: TTL k -> :1
         1001: TTL k -> :0
         1499: GET k -> $1 v
         1500: GET k -> _
         1500: TTL k -> :-2
         1500: SET k v -> +OK
         1500: TTL k -> :-1
         1500: EXPIRE k 10 -> :1
         1500: EXPIRE k 20 NX -> :0
         1500: EXPIRE k 5 GT -> :0
         1500: EXPIRE k 20 LT -> :0
         1500: PEXPIRE k 20000 GT -> :1
         1500: PTTL k -> :20000
         1500: SET k w KEEPTTL -> +OK
         1500: PTTL k -> :20000
         1500: APPEND k x -> :2
         1500: PTTL k -> :20000
         1500: PERSIST k -> :1
         1500: PERSIST k -> :0
         1500: EXPIRE k 5 GT -> :0
         1500: EXPIRE k 5 XX -> :0
         1500: EXPIRE k 5 LT -> :1
         1500: EXPIRE k -1 -> :1
         1500: EXISTS k -> :0
         1500: EXPIRE k 10 -> :0
         1500: EXPIRE k 9223372036854775807 -> -ERR invalid expire time in 'expire' command
         1500: PEXPIRE k 9223372036854775807 -> -ERR invalid expire time in 'pexpire' command
         1500: SET k v PX 9223372036854775807 -> -ERR invalid expire time in 'set' command
         1500: SET k v PXAT 2000 -> +OK
         1500: PTTL k -> :500
         1500: SET k v -> +OK
         1500: PTTL k -> :-1
         1500: SET k v EXAT 1 -> +OK
         1500: GET k -> _
         1500: DBSIZE -> :0",
    );
}

#[test]
fn a_query_sees_the_clock_it_is_given() {
    let mut kv = Kv::new();
    say(&mut kv, 1000, "SET k v PX 500");
    let (_, get) = encode(&[b"get", b"k"]).expect("encodes");
    let mut reply = Vec::new();
    kv.query(1499, &get, &mut reply);
    assert_eq!(reply, b"$1\r\nv\r\n");
    reply.clear();
    kv.query(1500, &get, &mut reply);
    assert_eq!(reply, b"_\r\n");
}

#[test]
fn the_machine_is_woken_for_its_earliest_deadline() {
    let mut kv = Kv::new();
    assert_eq!(kv.wake_ms(), None);
    say(&mut kv, 1000, "SET a v PX 500");
    say(&mut kv, 1000, "SET b v PX 300");
    assert_eq!(kv.wake_ms(), Some(1300));
    kv.clock(1300);
    assert_eq!(kv.wake_ms(), Some(1500));
    say(&mut kv, 1300, "PERSIST a");
    assert_eq!(kv.wake_ms(), None);
}

#[test]
fn a_query_cannot_write() {
    let mut kv = Kv::new();
    let before = snapshot(&kv);
    for body in [
        &[2, 1, b'k', 1, b'v'][..],
        &[0xff, 3, 1, 1, b'k'],
        &[0],
        &[],
    ] {
        let mut reply = Vec::new();
        kv.query(0, body, &mut reply);
        assert!(reply.starts_with(b"-ERR "), "{body:?}");
    }
    let mut reply = Vec::new();
    kv.apply(0, &[77, 1], &mut reply);
    assert!(reply.starts_with(b"-ERR "));
    assert_eq!(snapshot(&kv), before);
}

#[test]
fn a_transaction_is_applied_as_one_with_an_error_in_its_place() {
    let mut kv = Kv::new();
    say(&mut kv, 0, "SET word x");
    let mut body = vec![TRANSACTION];
    for line in ["INCR n", "INCR word", "SET k v BAD", "GET n"] {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let (Parsed::Query(call) | Parsed::Command(call)) = Command::parse(&words).expect("parses")
        else {
            panic!("not for the machine")
        };
        append_part(&mut body, &call);
    }
    let mut reply = Vec::new();
    kv.apply(0, &body, &mut reply);
    assert_eq!(
        String::from_utf8_lossy(&reply),
        "*4\r\n:1\r\n-ERR value is not an integer or out of range\r\n-ERR syntax error\r\n\
         $1\r\n1\r\n"
    );
}

#[test]
fn the_longest_value_can_be_read_and_a_longer_reply_is_an_error() {
    let mut kv = Kv::new();
    let value = vec![b'x'; MAX_VALUE_BYTES];
    assert_eq!(apply(&mut kv, 0, &[b"SET", b"k", &value]), b"+OK\r\n");
    assert!(apply(&mut kv, 0, &[b"GET", b"k"]).len() <= MAX_REPLY_BYTES);
    let longer = say(&mut kv, 0, "APPEND k x");
    assert_eq!(
        longer,
        "-ERR string exceeds maximum allowed size (proto-max-bulk-len)"
    );
    let both = say(&mut kv, 0, "MGET k k");
    assert!(both.contains("the limit is 60000"), "{both}");
    let key = vec![b'k'; MAX_KEY_BYTES + 1];
    assert!(apply(&mut kv, 0, &[b"INCR", &key]).starts_with(b"-ERR key too large"));
}

/// Walks all keys by SCAN, calling `between` after each step.
fn scan_all(kv: &mut Kv, options: &str, mut between: impl FnMut(&mut Kv)) -> Vec<String> {
    let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
    loop {
        let reply = say(kv, 0, &format!("SCAN {cursor}{options}"));
        let words: Vec<&str> = reply.split(' ').collect();
        assert!(reply.len() <= MAX_REPLY_BYTES);
        found.extend(words[4..].chunks(2).map(|pair| pair[1].to_owned()));
        cursor = words[2].to_owned();
        if cursor == "0" {
            return found;
        }
        between(kv);
    }
}

#[test]
fn a_scan_returns_every_key_that_is_there_throughout() {
    let mut kv = Kv::new();
    for n in 0..3000 {
        say(&mut kv, 0, &format!("SET key{n} v"));
    }
    for options in [
        "",
        " COUNT 1",
        " COUNT 500",
        " COUNT 1000000",
        " TYPE string",
    ] {
        let mut extra = 0;
        let mut found = scan_all(&mut kv, options, |kv| {
            extra += 1;
            say(kv, 0, &format!("SET extra{extra} v"));
            say(kv, 0, &format!("DEL extra{}", extra / 2));
        });
        found.retain(|name| name.starts_with("key"));
        found.sort();
        let mut all: Vec<String> = (0..3000).map(|n| format!("key{n}")).collect();
        all.sort();
        assert_eq!(found, all, "{options}");
    }
    assert_eq!(
        scan_all(&mut kv, " MATCH key29?9 COUNT 100", |_| {}).len(),
        10
    );
    assert_eq!(scan_all(&mut kv, " TYPE list COUNT 1000", |_| {}).len(), 0);
    assert_eq!(say(&mut kv, 0, "SCAN x"), "-ERR invalid cursor");
    assert_eq!(say(&mut kv, 0, "SCAN 0 COUNT 0"), "-ERR syntax error");
    assert_eq!(say(&mut kv, 0, "SCAN 0 MATCH"), "-ERR syntax error");
}

#[test]
fn a_scan_of_long_keys_fits_its_reply() {
    let mut kv = Kv::new();
    for n in 0..100u8 {
        let key = vec![n; MAX_KEY_BYTES];
        apply(&mut kv, 0, &[b"SET", &key, b"v"]);
    }
    let reply = apply(&mut kv, 0, &[b"SCAN", b"0", b"COUNT", b"1000"]);
    assert!(reply.starts_with(b"*2") && reply.len() < MAX_REPLY_BYTES);
}

#[test]
fn a_frozen_state_does_not_change() {
    let mut kv = Kv::new();
    for n in 0..2000 {
        say(&mut kv, 0, &format!("SET key{n} {}", "v".repeat(200)));
    }
    let before = snapshot(&kv);
    let mut frozen = kv.freeze();
    let mut bytes = Vec::new();
    assert!(frozen.next_chunk(&mut bytes));
    assert!(
        bytes.len() < 66 * 1024,
        "a piece is about 64 KiB, not {}",
        bytes.len()
    );
    for n in 0..2000 {
        say(&mut kv, 5, &format!("DEL key{n}"));
        say(&mut kv, 5, &format!("SET new{n} v"));
    }
    bytes.extend(written(&mut *frozen));
    assert!(bytes == before);
}

#[test]
fn a_snapshot_with_any_byte_changed_is_refused_and_changes_nothing() {
    let mut kv = Kv::new();
    say(&mut kv, 7, "SET a 1 PX 100");
    say(&mut kv, 7, "SET b 2");
    let bytes = snapshot(&kv);
    let mut other = Kv::new();
    say(&mut other, 0, "SET c 3");
    let before = snapshot(&other);
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        assert!(other.restore(&bad).is_err(), "byte {at}");
        assert!(other.restore(&bytes[..at]).is_err(), "cut at {at}");
    }
    assert_eq!(snapshot(&other), before);
    other.restore(&bytes).expect("restores");
    assert_eq!(say(&mut other, 7, "PTTL a"), ":100");
    assert_eq!(other.wake_ms(), Some(107));
}

/// One step of a random history.
#[derive(Debug, Clone)]
enum Event {
    Set(u8, u16, Option<u16>),
    Del(u8),
    Incr(u8),
    Pexpire(u8, i16),
    Persist(u8),
    Pass(u16),
    Clock(u16),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (any::<u8>(), any::<u16>(), proptest::option::of(1u16..500))
            .prop_map(|(key, value, ttl)| Event::Set(key, value, ttl)),
        any::<u8>().prop_map(Event::Del),
        any::<u8>().prop_map(Event::Incr),
        (any::<u8>(), any::<i16>()).prop_map(|(key, ttl)| Event::Pexpire(key, ttl % 500)),
        any::<u8>().prop_map(Event::Persist),
        (0u16..200).prop_map(Event::Pass),
        (0u16..200).prop_map(Event::Clock),
    ]
}

/// The same rules in the plainest form: a map, looked at with the clock in hand.
#[derive(Default)]
struct Model {
    keys: BTreeMap<u8, (i64, Option<u64>)>,
    now: u64,
}

impl Model {
    fn step(&mut self, event: &Event) -> Option<(String, i64)> {
        let now = self.now;
        self.keys
            .retain(|_, (_, deadline)| deadline.is_none_or(|deadline| now < deadline));
        match *event {
            Event::Set(key, value, ttl) => {
                self.keys
                    .insert(key, (value.into(), ttl.map(|ttl| now + u64::from(ttl))));
                None
            }
            Event::Del(key) => {
                let removed = i64::from(self.keys.remove(&key).is_some());
                Some((format!("DEL {key}"), removed))
            }
            Event::Incr(key) => {
                let entry = self.keys.entry(key).or_default();
                entry.0 += 1;
                Some((format!("INCR {key}"), entry.0))
            }
            Event::Pexpire(key, ttl) => {
                let known = self.keys.contains_key(&key);
                if ttl <= 0 {
                    self.keys.remove(&key);
                } else if let Some(entry) = self.keys.get_mut(&key) {
                    entry.1 = Some(now + ttl.unsigned_abs() as u64);
                }
                Some((format!("PEXPIRE {key} {ttl}"), i64::from(known)))
            }
            Event::Persist(key) => {
                let taken = self.keys.get_mut(&key).and_then(|entry| entry.1.take());
                Some((format!("PERSIST {key}"), i64::from(taken.is_some())))
            }
            Event::Pass(ms) | Event::Clock(ms) => {
                self.now += u64::from(ms);
                None
            }
        }
    }
}

proptest! {
    /// One machine is told of every move of the clock, the other of none, and is replaced by its
    /// own snapshot half-way: they answer alike and end in the same bytes.
    #[test]
    fn machines_agree_with_the_model_and_byte_for_byte(
        events in proptest::collection::vec(event(), 0..200)
    ) {
        let (mut told, mut untold, mut model) = (Kv::new(), Kv::new(), Model::default());
        for (at, event) in events.iter().enumerate() {
            let expected = model.step(event);
            let now = model.now;
            if let Event::Set(key, value, ttl) = event {
                let ttl = ttl.map(|ttl| format!(" PX {ttl}")).unwrap_or_default();
                let line = format!("SET {key} {value}{ttl}");
                prop_assert_eq!(say(&mut told, now, &line), "+OK");
                prop_assert_eq!(say(&mut untold, now, &line), "+OK");
            }
            if let Event::Clock(_) = event {
                told.clock(now);
            }
            if let Some((line, value)) = expected {
                let value = format!(":{value}");
                prop_assert_eq!(&say(&mut told, now, &line), &value);
                prop_assert_eq!(&say(&mut untold, now, &line), &value);
            }
            if at == events.len() / 2 {
                let bytes = snapshot(&untold);
                untold = Kv::new();
                untold.restore(&bytes).expect("restores");
                prop_assert!(snapshot(&untold) == bytes);
            }
        }
        told.clock(model.now);
        untold.clock(model.now);
        let lives = |deadline: &Option<u64>| deadline.is_none_or(|d| model.now < d);
        let live = model.keys.values().filter(|(_, deadline)| lives(deadline));
        prop_assert_eq!(say(&mut told, model.now, "DBSIZE"), format!(":{}", live.count()));
        prop_assert!(snapshot(&told) == snapshot(&untold));
    }

    #[test]
    fn no_body_makes_the_machine_panic(body in proptest::collection::vec(any::<u8>(), 0..40)) {
        let mut kv = Kv::new();
        let mut reply = Vec::new();
        kv.apply(0, &body, &mut reply);
        prop_assert_eq!(reply::value_bytes(&reply), Some(reply.len()));
        reply.clear();
        kv.query(0, &body, &mut reply);
        prop_assert_eq!(reply::value_bytes(&reply), Some(reply.len()));
    }
}
