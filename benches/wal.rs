//! The journal, wall-clock: `cargo bench --bench wal`. It writes below the working directory's
//! `target`, which should be on the disk in question: in memory a flush costs nothing.
#![allow(missing_docs)]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use nearwire::journal::{Flush, Journal, Lsn, Options};
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// About the record of a vote for a 64-byte value.
const RECORD: [u8; 200] = [0x5a; 200];
/// Votes that a busy leader has under way: they share a flush.
const GROUP: u64 = 64;
const STUCK: Duration = Duration::from_secs(10);

fn open(flush: Flush) -> (tempfile::TempDir, Journal) {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let directory = tempfile::tempdir_in(target).expect("a directory");
    let me = thread::current();
    let options = Options::new(directory.path().join("journal"), 1, flush);
    let (_, journal) = Journal::open(options, Arc::new(move || me.unpark())).expect("a disk");
    (directory, journal)
}

fn append(journal: &mut Journal) -> Lsn {
    loop {
        if let Some(lsn) = journal.append(black_box(&RECORD)) {
            return lsn;
        }
        thread::park_timeout(STUCK);
    }
}

fn wait(journal: &Journal, lsn: Lsn) {
    while journal.flushed() < lsn {
        assert!(journal.failed().is_none());
        thread::park_timeout(STUCK);
    }
}

fn wal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wal");
    let (_directory, mut journal) = open(Flush::Before);
    println!("path: {}", journal.path());
    group.throughput(Throughput::Elements(1));
    group.bench_function("append-and-flush", |bencher| {
        bencher.iter(|| {
            let lsn = append(&mut journal);
            wait(&journal, lsn);
        });
    });
    group.throughput(Throughput::Elements(GROUP));
    group.bench_function("group-commit", |bencher| {
        bencher.iter(|| {
            let last = (0..GROUP).map(|_| append(&mut journal)).last();
            wait(&journal, last.expect("a group is not empty"));
        });
    });
    // What the worker itself pays: the queue is empty when the time begins.
    let (_directory, journal) = open(Flush::Behind);
    let journal = std::cell::RefCell::new(journal);
    group.throughput(Throughput::Elements(GROUP));
    group.bench_function("append", |bencher| {
        let drained = || {
            let journal = journal.borrow();
            wait(&journal, journal.appended());
        };
        let appended = |()| {
            let mut journal = journal.borrow_mut();
            for _ in 0..GROUP {
                append(&mut journal);
            }
        };
        bencher.iter_batched(drained, appended, BatchSize::PerIteration);
    });
}

criterion_group!(benches, wal);
criterion_main!(benches);
