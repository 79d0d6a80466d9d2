//! A child process is killed at each named point of the journal's life; whatever it had seen
//! reported as flushed must be there when the journal is opened again.
//!
//! Each point is tried twice over: on the plain disk, where the page cache outlives the child, and
//! behind a cache in the child's own memory, so that SIGKILL is a power loss.

#![cfg(any(debug_assertions, feature = "kill-points"))]
#![allow(clippy::unwrap_used)]

use nearwire::journal::testing::DiscardingDisk;
use nearwire::journal::{Flush, Journal, Lsn, MIN_SEGMENT_BYTES, Options, RealDisk};
use nearwire::kill_point;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;

const DIRECTORY: &str = "NEARWIRE_TEST_JOURNAL";
const DISCARD: &str = "NEARWIRE_TEST_DISCARD";
const RECORDS: u64 = 400;

const POINTS: [&str; 8] = [
    "journal.before-write",
    "journal.after-write-before-flush",
    "journal.after-flush-before-report",
    "journal.create.before-rename",
    "journal.recycle.before-rename",
    "journal.recycle.after-rename",
    "journal.recovery.before-new-segment",
    "journal.recovery.after-new-segment",
];

fn record(lsn: u64) -> Vec<u8> {
    let length = (lsn * 7919 % 6000) as usize;
    (0..length).map(|i| (lsn as u8) ^ (i as u8)).collect()
}

fn options(directory: &Path) -> Options {
    let mut options = Options::new(directory.join("journal"), 9, Flush::Before);
    options.segment_bytes = MIN_SEGMENT_BYTES;
    options
}

/// The child: appends, cuts, and notes in a file what it may rely upon.
#[test]
fn child() {
    let Some(directory) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let directory = Path::new(&directory);
    let mut options = options(directory);
    if std::env::var_os(DISCARD).is_some() {
        fs::create_dir_all(&options.directory).unwrap();
        let real = RealDisk::probe(&options.directory, options.flush).unwrap();
        options.disk = Some(DiscardingDisk::over(Arc::new(real)).plug_in());
    }
    let note = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(directory.join("note"))
        .unwrap();
    let (recovery, mut journal) = Journal::open(options, Arc::new(|| {})).unwrap();
    let last = recovery.last().0;
    drop(recovery);
    for lsn in last + 1..=last + RECORDS {
        assert_eq!(journal.append(&record(lsn)), Some(Lsn(lsn)));
        let wanted = if lsn % 5 == 0 { lsn } else { 0 };
        while journal.flushed() < Lsn(wanted) {
            assert!(journal.failed().is_none(), "{:?}", journal.failed());
            thread::yield_now();
        }
        let flushed = journal.flushed().0;
        note.write_all_at(&flushed.to_le_bytes(), 0).unwrap();
        if lsn % 50 == 0 {
            note.write_all_at(&flushed.to_le_bytes(), 8).unwrap();
            journal.cut(Lsn(flushed));
        }
    }
    journal.close().unwrap();
}

/// What the child had seen flushed, and from where it needs the records.
fn noted(directory: &Path) -> (u64, u64) {
    let bytes = fs::read(directory.join("note")).unwrap_or_default();
    let word = |at: usize| {
        bytes
            .get(at..at + 8)
            .map_or(0, |word| u64::from_le_bytes(word.try_into().unwrap()))
    };
    (word(0), word(8).max(1))
}

fn run(directory: &Path, discard: bool, kill_at: Option<&str>) -> std::process::ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child", "--nocapture"])
        .env(DIRECTORY, directory);
    command.env_remove(kill_point::VARIABLE).env_remove(DISCARD);
    if discard {
        command.env(DISCARD, "1");
    }
    if let Some(kill_at) = kill_at {
        command.env(kill_point::VARIABLE, kill_at);
    }
    let output = command.output().unwrap();
    if output.status.signal().is_none() && !output.status.success() {
        panic!("{}", String::from_utf8_lossy(&output.stderr));
    }
    output.status
}

fn check(directory: &Path, case: &str) {
    let (flushed, needed) = noted(directory);
    let (recovery, journal) = Journal::open(options(directory), Arc::new(|| {}))
        .unwrap_or_else(|error| panic!("{case}: {error}"));
    assert!(
        recovery.last() >= Lsn(flushed),
        "{case}: {} < {flushed}",
        recovery.last()
    );
    assert!(
        recovery.first() <= Lsn(needed),
        "{case}: {} > {needed}",
        recovery.first()
    );
    let mut expected = recovery.first().0;
    let last = recovery.last().0;
    recovery
        .replay(|lsn, found| {
            assert_eq!(lsn.0, expected, "{case}");
            assert!(found == record(lsn.0), "{case}: record {lsn}");
            expected += 1;
        })
        .unwrap_or_else(|error| panic!("{case}: {error}"));
    assert_eq!(expected, last + 1, "{case}");
    drop(journal);
}

fn kill_everywhere(discard: bool) {
    for point in POINTS {
        let scratch = tempfile::tempdir().unwrap();
        // A past, so that there is something to recover and to give back.
        assert!(run(scratch.path(), discard, None).success());
        check(scratch.path(), point);
        let mut killed = false;
        for pass in [1, 2, 7] {
            let at = format!("{point}:{pass}");
            let status = run(scratch.path(), discard, Some(&at));
            killed |= status.signal() == Some(9);
            check(scratch.path(), &at);
        }
        assert!(killed, "no child ever came to {point}");
    }
}

#[test]
fn a_kill_at_any_point_loses_nothing_that_was_reported() {
    kill_everywhere(false);
}

#[test]
fn a_power_loss_at_any_point_loses_nothing_that_was_reported() {
    kill_everywhere(true);
}
