//! Journals whose files were damaged.

use crate::harness::finds;
use crate::{Script, fuzz};
use consensus::simulation::Mutation;
use nearwire::journal::testing::MemoryDisk;
use nearwire::journal::{Access, Disk, Flush, Journal, Lsn, MIN_SEGMENT_BYTES, Options};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

const RECORDS: u64 = 120;

/// What record `lsn` holds.
fn record(lsn: Lsn) -> Vec<u8> {
    let length = (lsn.0 * 577 % 3000) as usize;
    (0..length).map(|at| (at as u64 ^ lsn.0) as u8).collect()
}

fn options(disk: &MemoryDisk) -> Options {
    let mut options = Options::new("/journal", 5, Flush::Before);
    options.segment_bytes = MIN_SEGMENT_BYTES;
    options.disk = Some(Arc::new(disk.clone()));
    options
}

/// The files of a journal of two lives, in several segments.
fn files() -> Vec<(PathBuf, Vec<u8>)> {
    let disk = MemoryDisk::default();
    for until in [RECORDS / 2, RECORDS] {
        let (_, mut journal) = Journal::open(options(&disk), Arc::new(|| ())).expect("whole");
        while journal.appended().0 < until {
            let next = journal.appended().next();
            if journal.append(&record(next)).is_none() || next.0.is_multiple_of(7) {
                // Several batches in each segment.
                while journal.flushed() < journal.appended() {
                    std::thread::yield_now();
                }
            }
        }
        journal.close().expect("a disk in memory");
    }
    disk.files()
}

/// Nothing is read that was not written, and nothing is left out in between.
fn damaged(input: &[u8]) {
    static FILES: OnceLock<Vec<(PathBuf, Vec<u8>)>> = OnceLock::new();
    let mut files = FILES.get_or_init(files).clone();
    let mut script = Script(input);
    for _ in script.pieces() {
        if script.is_over() || files.is_empty() {
            break;
        }
        let at = script.below(files.len());
        let mut part = Script(script.take(12));
        match part.byte() % 8 {
            // Blocks that went to the wrong place, or back to what they were.
            0 => {
                let from = part.below(files.len());
                let (source, target) = (files[from].1.clone(), &mut files[at].1);
                let blocks = source.len().min(target.len()) / 4096;
                let (to, from) = (part.below(blocks) * 4096, part.below(blocks) * 4096);
                if blocks > 0 {
                    target[to..to + 4096].copy_from_slice(&source[from..from + 4096]);
                }
            }
            1 => {
                let blocks = files[at].1.len() / 4096;
                let block = part.below(blocks) * 4096;
                if blocks > 0 {
                    files[at].1[block..block + 4096].fill(0);
                }
            }
            2 => {
                let other = part.below(files.len());
                let bytes = files[other].1.clone();
                files[at].1 = bytes;
            }
            // Where the batches' and the records' heads are.
            3 => {
                let byte = part.below(files[at].1.len() / 4096) * 4096 + part.below(96);
                if let Some(byte) = files[at].1.get_mut(byte) {
                    *byte = part.byte();
                }
            }
            4 => drop(files.remove(at)),
            _ => part.damage(&mut files[at].1),
        }
    }
    let disk = MemoryDisk::default();
    for (path, bytes) in &files {
        put(&disk, path, bytes);
    }
    let Ok((recovery, journal)) = Journal::open(options(&disk), Arc::new(|| ())) else {
        return;
    };
    let (first, last) = (recovery.first(), recovery.last());
    assert!(last.0 <= RECORDS && first.0 <= last.0 + 1);
    assert_eq!(journal.appended(), last);
    let mut next = first;
    let replayed = recovery.replay(|lsn, bytes| {
        assert_eq!(lsn, next, "a gap");
        assert!(bytes == record(lsn), "record {lsn:?} was not written so");
        next = lsn.next();
    });
    assert!(replayed.is_err() || next == last.next());
}

fn put(disk: &MemoryDisk, path: &Path, bytes: &[u8]) {
    disk.create(path, 0).expect("memory");
    let file = disk.open(path, Access::Write).expect("it was just made");
    file.write_at(0, bytes).expect("memory");
}

#[test]
fn a_damaged_journal_yields_only_what_was_written_and_no_gap() {
    fuzz("journal", damaged);
}

#[test]
fn a_journal_that_accepts_torn_records_is_caught() {
    assert!(finds(Mutation::TornTailAccepted, "journal", damaged));
}
