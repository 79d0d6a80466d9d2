//! Load from several connections, what it was told, and whether that is still so.

use super::{PATIENCE, Reply, Roaming};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Keys in one request, well below the longest request.
const KEYS_READ_AT_ONCE: usize = 20;

/// What was acknowledged.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Keys and the values that they were set to.
    pub writes: BTreeMap<String, String>,
    /// Replies to increments.
    pub increments: BTreeSet<i64>,
    /// Increments that were sent; the outcome of some is unknown.
    pub attempts: i64,
    /// How often a client went on to another node.
    pub moves: u64,
    counter: String,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    /// The highest count that anybody was told.
    floor: AtomicI64,
    acknowledged: AtomicU64,
    attempts: AtomicI64,
    /// What every writer increments.
    counter: String,
}

/// Clients that write and read until they are told to stop.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<Ledger>>,
    readers: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `writers` connections that write unique keys, named after `name`, and increment one
    /// counter, and one that reads it; each begins with another one of `fronts`.
    pub fn start(name: &str, fronts: &[SocketAddr], writers: usize) -> Self {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            floor: AtomicI64::new(0),
            acknowledged: AtomicU64::new(0),
            attempts: AtomicI64::new(0),
            counter: format!("{name}:counter"),
        });
        let writers = (0..writers)
            .map(|writer| {
                let shared = Arc::clone(&shared);
                let client = Roaming::new(fronts.to_vec(), writer);
                let prefix = format!("{name}:{writer}");
                std::thread::spawn(move || write(&prefix, client, &shared))
            })
            .collect();
        let readers = (0..fronts.len())
            .map(|reader| {
                let shared = Arc::clone(&shared);
                let client = Roaming::new(fronts.to_vec(), reader);
                std::thread::spawn(move || read(client, &shared))
            })
            .collect();
        Self {
            shared,
            writers,
            readers,
        }
    }

    /// How many writes were acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    /// The highest count that anybody was told.
    pub fn floor(&self) -> i64 {
        self.shared.floor.load(Ordering::SeqCst)
    }

    /// Waits until so many more writes are acknowledged.
    #[track_caller]
    pub fn advance(&self, by: u64) {
        let target = self.acknowledged() + by;
        let deadline = Instant::now() + PATIENCE;
        while self.acknowledged() < target {
            assert!(
                Instant::now() < deadline,
                "the load stands still at {} of {target} acknowledged writes",
                self.acknowledged()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends the load.
    ///
    /// # Panics
    /// If a read was stale or a count was given twice.
    #[track_caller]
    pub fn stop(self) -> Ledger {
        self.shared.stop.store(true, Ordering::SeqCst);
        let mut all = Ledger {
            counter: self.shared.counter.clone(),
            ..Ledger::default()
        };
        for writer in self.writers {
            let part = writer.join().expect("a writer found nothing wrong");
            for count in &part.increments {
                assert!(
                    all.increments.insert(*count),
                    "two increments were answered with {count}"
                );
            }
            all.writes.extend(part.writes);
            all.moves += part.moves;
        }
        for reader in self.readers {
            reader.join().expect("no read was stale");
        }
        all.attempts = self.shared.attempts.load(Ordering::SeqCst);
        all
    }
}

fn write(prefix: &str, mut client: Roaming, shared: &Shared) -> Ledger {
    let mut ledger = Ledger::default();
    for number in 0.. {
        if shared.stop.load(Ordering::SeqCst) {
            break;
        }
        let key = format!("{prefix}:{number}");
        let value = format!("value of {key}");
        // The outcome of a failed attempt is unknown, and setting it again changes nothing.
        while client.call(&["SET", &key, &value]).is_err() {
            if shared.stop.load(Ordering::SeqCst) {
                break;
            }
        }
        if shared.stop.load(Ordering::SeqCst) {
            break;
        }
        ledger.writes.insert(key, value);
        shared.acknowledged.fetch_add(1, Ordering::SeqCst);

        shared.attempts.fetch_add(1, Ordering::SeqCst);
        if let Ok(reply) = client.call(&["INCR", &shared.counter]) {
            let count = reply.number().expect("INCR answers with a number");
            assert!(
                ledger.increments.insert(count),
                "two increments were answered with {count}"
            );
            shared.floor.fetch_max(count, Ordering::SeqCst);
            shared.acknowledged.fetch_add(1, Ordering::SeqCst);
        }
    }
    ledger.moves = client.moves;
    ledger
}

fn read(mut client: Roaming, shared: &Shared) {
    while !shared.stop.load(Ordering::SeqCst) {
        let floor = shared.floor.load(Ordering::SeqCst);
        if let Ok(reply) = client.call(&["GET", &shared.counter]) {
            let count = reply.number().unwrap_or_default();
            assert!(
                count >= floor,
                "a read gave {count} after {floor} had been acknowledged"
            );
            shared.floor.fetch_max(count, Ordering::SeqCst);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl Ledger {
    /// The largest count that was acknowledged.
    pub fn last_count(&self) -> i64 {
        self.increments.last().copied().unwrap_or_default()
    }

    /// Reads everything back through one of `fronts`.
    ///
    /// # Panics
    /// If an acknowledged write is missing or the counter cannot be right.
    #[track_caller]
    pub fn check(&self, fronts: &[SocketAddr]) {
        assert!(!self.writes.is_empty(), "nothing was acknowledged");
        let deadline = Instant::now() + PATIENCE;
        let mut client = Roaming::new(fronts.to_vec(), 0);
        let mut ask = |words: &[&str]| loop {
            match client.call(words) {
                Ok(reply) => return reply,
                Err(error) => assert!(Instant::now() < deadline, "nobody answers: {error}"),
            }
        };
        let mut lost = Vec::new();
        let writes: Vec<_> = self.writes.iter().collect();
        for some in writes.chunks(KEYS_READ_AT_ONCE) {
            let mut words = vec!["MGET"];
            words.extend(some.iter().map(|(key, _)| key.as_str()));
            let Reply::Array(Some(values)) = ask(&words) else {
                panic!("MGET is answered with an array");
            };
            assert_eq!(values.len(), some.len());
            let pairs = some.iter().zip(values);
            lost.extend(pairs.filter_map(|((key, value), found)| {
                (found != Reply::bulk(value)).then_some(key.as_str())
            }));
        }
        assert!(
            lost.is_empty(),
            "{} of {} acknowledged writes are lost: {:?} ...",
            lost.len(),
            self.writes.len(),
            &lost[..lost.len().min(10)]
        );
        let count = ask(&["GET", &self.counter]).number().unwrap_or_default();
        let acknowledged = self.increments.len() as i64;
        assert!(
            (acknowledged.max(self.last_count())..=self.attempts).contains(&count),
            "the counter is {count} after {acknowledged} acknowledged and {} attempted increments",
            self.attempts
        );
    }
}
