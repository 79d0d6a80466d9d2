//! Snapshots, as files and as bytes from another replica.

use crate::harness::finds;
use crate::{Script, fuzz};
use consensus::applied::Applied;
use consensus::simulation::Mutation;
use consensus::state_machine::StateMachine;
use consensus::{GroupId, Slot};
use nearwire::kv::{self, Kv};
use nearwire::snapshot_file::SnapshotDirectory;
use tempfile::TempDir;

const SLOT: Slot = Slot(7);

/// A directory with one snapshot, and what the file and the state are.
struct Whole {
    directory: TempDir,
    file: Vec<u8>,
    body: Vec<u8>,
}

impl Whole {
    fn new() -> Self {
        let mut machine = Kv::new();
        for number in 0..40u8 {
            let (_, body) = kv::encode(&[b"SET", &[b'a', number], b"0123456789"]).expect("a SET");
            machine.apply(1, &body, &mut Vec::new());
        }
        let mut frozen = Applied::new(machine).freeze();
        let mut body = Vec::new();
        while frozen.next_chunk(&mut body) {}
        // In memory where there is such a place: each input flushes the directory.
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let directory = directory.expect("a directory for temporary files");
        let mut snapshots = SnapshotDirectory::open(directory.path(), GroupId(0)).expect("empty");
        let mut left = Some(body.clone());
        let written = snapshots.write(SLOT, |out| {
            out.extend(left.take().unwrap_or_default());
            false
        });
        written.expect("room for a snapshot");
        let newest = snapshots.newest().expect("a directory").snapshot;
        let path = newest.expect("it was just written").path().to_owned();
        let file = std::fs::read(path).expect("a snapshot");
        Self {
            directory,
            file,
            body,
        }
    }

    /// A damaged file is never taken for the snapshot, and damaged bytes never end the process.
    fn try_damaged(&self, input: &[u8]) {
        let mut damaged = self.file.clone();
        Script(input).damage(&mut damaged);
        let mut snapshots =
            SnapshotDirectory::open(self.directory.path(), GroupId(0)).expect("a directory");
        let path = std::fs::read_dir(self.directory.path()).expect("a directory");
        let path = path.flatten().next().expect("one file").path();
        std::fs::write(&path, &damaged).expect("room");
        let newest = snapshots.newest().expect("a directory that can be read");
        match newest.snapshot {
            Some(snapshot) => {
                assert!(snapshot.body().expect("a whole file") == self.body);
                assert_eq!(snapshot.id().slot, SLOT);
            }
            None => assert_eq!(newest.damaged.len(), 1),
        }
        let mut body = self.body.clone();
        Script(input).damage(&mut body);
        let mut applied = Applied::new(Kv::new());
        for bytes in [&body, input] {
            let _ = applied.restore(bytes);
        }
        let mut frozen = applied.freeze();
        let mut again = Vec::new();
        while frozen.next_chunk(&mut again) {}
        Applied::new(Kv::new())
            .restore(&again)
            .expect("its own snapshot");
    }
}

#[test]
fn a_damaged_snapshot_is_not_taken_for_one() {
    let whole = Whole::new();
    fuzz("snapshot", |input| whole.try_damaged(input));
}

#[test]
fn a_snapshot_that_is_not_checked_is_caught() {
    let whole = Whole::new();
    let found = finds(Mutation::SnapshotUnchecked, "snapshot", |input| {
        whole.try_damaged(input);
    });
    assert!(found);
}
