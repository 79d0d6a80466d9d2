//! A child process is killed, or runs out of disk, while it replaces its identity or its snapshot:
//! what it had been told was durable is there, and the older file stays otherwise.
#![cfg(any(debug_assertions, feature = "kill-points"))]
#![allow(clippy::unwrap_used)]

use consensus::{GroupId, NodeId, Slot};
use nearwire::config::Durability;
use nearwire::data_directory::{DataDirectory, Expectation};
use nearwire::kill_point;
use nearwire::snapshot_file::SnapshotDirectory;
use nix::sys::resource::{Resource, setrlimit};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const DIRECTORY: &str = "NEARWIRE_TEST_FILES";
const FILE_LIMIT: &str = "NEARWIRE_TEST_FILE_LIMIT";
const GROUP: GroupId = GroupId(1);

fn open(path: &Path) -> DataDirectory {
    let expectation = Expectation {
        cluster: "alpha".to_owned(),
        node: NodeId(1),
        durability: Durability::Sync,
        origin: 0,
    };
    DataDirectory::open(path.join("node"), &expectation).unwrap()
}

fn body(slot: u64) -> impl FnMut(&mut Vec<u8>) -> bool {
    let mut pieces = 4;
    move |out| {
        out.extend(std::iter::repeat_n(slot as u8, 100_000));
        pieces -= 1;
        pieces > 0
    }
}

/// The child: raises the reserved round, writes a snapshot, notes that both returned.
#[test]
fn child() {
    let Some(path) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let path = Path::new(&path);
    let mut directory = open(path);
    let mut snapshots = SnapshotDirectory::open(directory.snapshots_path(GROUP), GROUP).unwrap();
    let note = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path.join("note"));
    let note = note.unwrap();
    if let Ok(limit) = std::env::var(FILE_LIMIT) {
        // Caught, so that the write answers EFBIG instead of ending the process.
        signal_hook::flag::register(libc::SIGXFSZ, Arc::new(AtomicBool::new(false))).unwrap();
        let limit = limit.parse().unwrap();
        setrlimit(Resource::RLIMIT_FSIZE, limit, limit).unwrap();
        let slot = Slot(directory.identity().reserved_round + 1);
        let error = snapshots.write(slot, body(slot.0)).unwrap_err();
        assert_eq!(error.source.raw_os_error(), Some(libc::EFBIG), "{error}");
        return;
    }
    for _ in 0..5 {
        let round = directory.identity().reserved_round + 1;
        directory
            .update(|identity| identity.reserved_round = round)
            .unwrap();
        note.write_all_at(&round.to_le_bytes(), 0).unwrap();
        snapshots.write(Slot(round), body(round)).unwrap();
        note.write_all_at(&round.to_le_bytes(), 8).unwrap();
    }
}

fn noted(path: &Path) -> (u64, u64) {
    let bytes = fs::read(path.join("note")).unwrap_or_default();
    let word = |at: usize| {
        bytes
            .get(at..at + 8)
            .map_or(0, |word| u64::from_le_bytes(word.try_into().unwrap()))
    };
    (word(0), word(8))
}

fn run(path: &Path, variables: &[(&str, &str)]) -> std::process::ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child", "--nocapture"])
        .env(DIRECTORY, path);
    command
        .env_remove(kill_point::VARIABLE)
        .env_remove(FILE_LIMIT);
    let output = command.envs(variables.iter().copied()).output().unwrap();
    if output.status.signal().is_none() && !output.status.success() {
        panic!("{}", String::from_utf8_lossy(&output.stderr));
    }
    output.status
}

fn check(path: &Path, case: &str) {
    let (round, slot) = noted(path);
    let directory = open(path);
    assert!(directory.identity().reserved_round >= round, "{case}");
    let snapshots = directory.snapshots_path(GROUP);
    let newest = SnapshotDirectory::open(&snapshots, GROUP)
        .unwrap()
        .newest()
        .unwrap();
    assert_eq!(newest.damaged, [], "{case}");
    let found = newest.snapshot.map_or(0, |snapshot| {
        let slot = snapshot.id().slot.0;
        let body = snapshot.body().unwrap();
        assert!(
            body.len() == 400_000 && body.iter().all(|byte| *byte == slot as u8),
            "{case}"
        );
        slot
    });
    assert!(found >= slot, "{case}: {found} < {slot}");
    let names = fs::read_dir(snapshots)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    assert!(
        names.into_iter().all(|name| name.extension().is_none()),
        "{case}"
    );
}

#[test]
fn a_kill_while_a_file_is_replaced_leaves_the_old_one_or_the_new_one() {
    for point in [
        "data_directory.before-rename",
        "data_directory.after-rename",
        "snapshot.before-rename",
        "snapshot.after-rename",
    ] {
        let scratch = tempfile::tempdir().unwrap();
        for pass in [1, 2, 4] {
            let at = format!("{point}:{pass}");
            let status = run(scratch.path(), &[(kill_point::VARIABLE, &at)]);
            assert_eq!(status.signal(), Some(9), "{at}");
            check(scratch.path(), &at);
        }
    }
}

#[test]
fn a_snapshot_for_which_there_is_no_room_leaves_the_old_ones() {
    let scratch = tempfile::tempdir().unwrap();
    assert!(run(scratch.path(), &[]).success());
    for limit in ["0", "63", "100000", "399999"] {
        assert!(run(scratch.path(), &[(FILE_LIMIT, limit)]).success());
        check(scratch.path(), limit);
    }
}
