//! Replicas on file systems that are small, or that refuse O_DIRECT, in a mount namespace of the
//! test's own. Needs root.

#![cfg(any(debug_assertions, feature = "kill-points"))]
#![allow(clippy::unwrap_used)]

mod scene;

use nearwire::config::Durability;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use scene::{Ledger, Load, Redis, Reply, Scene, load, wait_for, wait_for_writes};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

const WRITERS: usize = 4;
const ENOSPC: i32 = 28;
/// The replica that lives on the mounted file system.
const NODE: u16 = 2;

/// A file system that only this thread and what it starts can see.
struct Mounted(PathBuf);

impl Mounted {
    fn new(kind: &str, path: PathBuf, options: &str) -> Self {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace needs root");
        let none = None::<&str>;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).unwrap();
        fs::create_dir_all(&path).unwrap();
        mount(
            Some(kind),
            &path,
            Some(kind),
            MsFlags::empty(),
            Some(options),
        )
        .unwrap();
        Self(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // The namespace would end it, too, but later than the directory below is removed.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Takes all the room that is left.
fn fill(path: &Path) {
    let mut ballast = File::create(path).unwrap();
    let error = loop {
        if let Err(error) = ballast.write_all(&[0; 4096]) {
            break error;
        }
    };
    assert_eq!(error.raw_os_error(), Some(ENOSPC));
}

#[test]
fn a_full_disk_ends_its_replica_until_there_is_room() {
    let rehearse = "segment_bytes=131072,snapshot_slots=150";
    let mut scene = Scene::new(Durability::Sync, 256, rehearse);
    let data = scene.cluster.data_directory(NODE);
    let _mounted = Mounted::new("tmpfs", data.clone(), "size=32m");
    let ledger = Ledger::default();
    scene.start_all();
    let load = Load::start(&scene, &ledger, WRITERS);
    wait_for_writes(&ledger, 300);
    fill(&data.join("ballast"));
    assert_eq!(scene.wait_for_end(NODE).code(), Some(1));
    let log = scene.log(NODE);
    assert!(log.contains("No space left on device"), "{log}");
    // It is no use to start it again as long as there is no room.
    scene.start(NODE);
    assert_eq!(
        scene.wait_for_end(NODE).code(),
        Some(1),
        "{}",
        scene.log(NODE)
    );
    wait_for_writes(&ledger, 300);
    fs::remove_file(data.join("ballast")).unwrap();
    scene.start(NODE);
    scene.wait_until_caught_up(NODE);
    load.stop();
    ledger.assert_kept(&scene);
    scene.kill_all();
    scene.start_all();
    ledger.assert_kept(&scene);
}

#[test]
fn a_snapshot_that_finds_no_room_is_said_and_taken_over_once_there_is_some() {
    let mut scene = Scene::new(Durability::Volatile, 64, "");
    let data = scene.cluster.data_directory(NODE);
    let _mounted = Mounted::new("tmpfs", data.clone(), "size=32m");
    scene.start_all();
    scene.leader();
    scene.cluster.kill(NODE);
    // More slots than anybody keeps the values of, and a state of some megabytes.
    let address = scene.addresses()[0];
    let mut redis = wait_for("a leader", || {
        let mut redis = Redis::connect(address).ok()?;
        let reply = redis.ask(&["SET", "key", "0"]).ok()?;
        (reply == Reply::Text("OK".into())).then_some(redis)
    });
    let value = "x".repeat(1200);
    for batch in 0..45 {
        let set = |key| vec!["SET".to_owned(), format!("{batch} {key}"), value.clone()];
        let commands: Vec<_> = (0..100).map(set).collect();
        redis.send(&commands).unwrap();
        for _ in 0..100 {
            assert_eq!(redis.reply().unwrap(), Reply::Text("OK".into()));
        }
    }
    fill(&data.join("ballast"));
    // What a process needs to start.
    let ballast = File::options()
        .write(true)
        .open(data.join("ballast"))
        .unwrap();
    let length = ballast.metadata().unwrap().len();
    ballast.set_len(length - 2 * 1024 * 1024).unwrap();
    drop(ballast);
    scene.start(NODE);
    wait_for("the error", || {
        let report = scene.report(NODE);
        assert_eq!(report["snapshots_taken_over"], 0);
        report["error"]
            .as_str()?
            .contains("No space left")
            .then_some(())
    });
    fs::remove_file(data.join("ballast")).unwrap();
    scene.wait_until_caught_up(NODE);
    assert_eq!(scene.number(NODE, "snapshots_taken_over"), 1);
    assert!(scene.report(NODE)["error"].is_null());
}

#[test]
fn without_o_direct_the_journal_says_how_it_writes_and_works() {
    let mut scene = Scene::new(Durability::Sync, 256, "segment_bytes=131072");
    // tmpfs takes O_DIRECT since Linux 6.6; ramfs never did.
    let _mounted = Mounted::new("ramfs", scene.cluster.data_directory(NODE), "");
    let ledger = Ledger::default();
    scene.start_all();
    load(&scene, &ledger, WRITERS, 300);
    let report = scene.report(NODE);
    assert_eq!(report["journal"], "pwrite buffered + fdatasync", "{report}");
    scene.kill_all();
    scene.start_all();
    ledger.assert_kept(&scene);
    wait_for("the replica", || {
        (scene.number(NODE, "replayed") > 0).then_some(())
    });
}
