//! What `sync` promises: an acknowledged write survives a loss of power on every replica at once.
//!
//! The journal's disk is one that keeps what was not flushed in the memory of the process, so that
//! SIGKILL takes it along, as the loss of power would. Identity and snapshots are written to the
//! real file system: what they rely upon is flushed, renamed and the directory flushed before
//! anything counts on it, which the kill points show for the order, not for the drive.

#![cfg(any(debug_assertions, feature = "kill-points"))]
#![allow(clippy::unwrap_used)]

mod scene;

use consensus::NodeId;
use consensus::wire::{Kind, Parsed, parse};
use nearwire::config::Durability;
use nearwire::data_directory::{DataDirectory, Expectation};
use nearwire::journal::{self, Flush, Journal};
use nearwire::kill_point;
use nearwire::node::GROUP;
use nearwire::rehearsal;
use scene::{ALL, Ledger, Load, Scene, bytes_in, load, wait_for, wait_for_writes};
use std::collections::BTreeSet;
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;

const WRITERS: usize = 4;

/// Three replicas that are not started yet, and whose disks do what `rehearse` says.
fn scene(window_slots: u64, rehearse: &str) -> (Scene, Ledger) {
    let scene = Scene::new(Durability::Sync, window_slots, rehearse);
    (scene, Ledger::default())
}

#[test]
fn acknowledged_writes_survive_the_loss_of_power_on_all_replicas() {
    let (mut scene, ledger) = scene(1024, "discarding,flush_delay_us=2000,segment_bytes=1048576");
    for _ in 0..4 {
        scene.start_all();
        let load = Load::start(&scene, &ledger, WRITERS);
        wait_for_writes(&ledger, 400);
        scene.lose_power();
        load.stop();
    }
    scene.start_all();
    ledger.assert_kept(&scene);
}

#[test]
fn connections_take_no_descriptors_from_the_journal() {
    const FILES: usize = 640;
    let (mut scene, ledger) = scene(1024, "segment_bytes=131072");
    for node in [2, 3] {
        scene.start(node);
    }
    let node = scene.command(1);
    let mut limited = Command::new("prlimit");
    limited.arg(format!("--nofile={FILES}"));
    limited.arg(node.get_program()).args(node.get_args());
    for (name, value) in node.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    let child = limited.spawn().unwrap();
    scene.cluster.adopt(1, child);
    scene.leader();
    let address = scene.addresses()[0];
    let connected = (0..FILES).filter_map(|_| TcpStream::connect(address).ok());
    let connected: Vec<_> = connected.collect();
    assert_eq!(connected.len(), FILES);
    let process = scene.cluster.process(1).unwrap();
    let open = std::fs::read_dir(format!("/proc/{process}/fd"));
    assert!(open.unwrap().count() < FILES - 256);
    // As many writes as take several segments.
    load(&scene, &ledger, WRITERS, 3000);
    scene.wait_until_caught_up(1);
    ledger.assert_kept(&scene);
}

#[test]
fn a_build_that_replies_before_the_flush_is_caught() {
    // A flush takes so long that the last writes before the loss of power wait for theirs on every
    // replica.
    let (mut scene, ledger) = scene(
        1024,
        "replies_before_flush,flush_delay_us=300000,segment_bytes=1048576",
    );
    let mut lost = 0;
    for _ in 0..3 {
        scene.start_all();
        let load = Load::start(&scene, &ledger, WRITERS);
        wait_for_writes(&ledger, 400);
        scene.lose_power();
        load.stop();
        scene.start_all();
        lost = ledger.missing(&scene.addresses()).len();
        if lost > 0 {
            break;
        }
        scene.lose_power();
    }
    assert!(
        lost > 0,
        "acknowledged writes that were never flushed were found again"
    );
}

/// Where a replica may lose power while it serves, and the passes tried.
const POINTS: [(&str, u64); 12] = [
    ("journal.before-write", 30),
    ("journal.after-write-before-flush", 31),
    ("journal.after-flush-before-report", 32),
    ("journal.create.before-rename", 2),
    ("journal.recycle.before-rename", 1),
    ("journal.recycle.after-rename", 1),
    ("journal.recovery.before-new-segment", 1),
    ("journal.recovery.after-new-segment", 1),
    ("data_directory.before-rename", 1),
    ("data_directory.after-rename", 1),
    ("snapshot.before-rename", 1),
    ("snapshot.after-rename", 1),
];

#[test]
fn a_replica_that_dies_at_any_point_comes_back_with_what_it_promised() {
    let (mut scene, ledger) = scene(1024, "discarding,segment_bytes=131072,snapshot_slots=200");
    scene.start_all();
    let load = Load::start(&scene, &ledger, WRITERS);
    wait_for_writes(&ledger, 400);
    for (index, (point, pass)) in POINTS.into_iter().enumerate() {
        let node = ALL[index % ALL.len()];
        scene.cluster.kill(node);
        let at = format!("{point}:{pass}");
        scene.start_with(node, kill_point::VARIABLE, &at);
        let status = scene.wait_for_end(node);
        assert_eq!(
            status.signal(),
            Some(9),
            "{at}: {status}: {}",
            scene.cluster.log(node)
        );
        scene.forget_memory(node);
        scene.next_boot();
        scene.start(node);
        scene.wait_until_caught_up(node);
    }
    load.stop();
    ledger.assert_kept(&scene);
    // Every replica has died at some point by now; together they still hold it all.
    scene.lose_power();
    scene.start_all();
    ledger.assert_kept(&scene);
}

#[test]
fn the_journal_is_cut_behind_snapshots_and_nothing_is_lost_with_it() {
    const SEGMENT_BYTES: u64 = 131_072;
    let (mut scene, ledger) = scene(
        256,
        &format!("discarding,segment_bytes={SEGMENT_BYTES},snapshot_slots=150"),
    );
    let mut recycled = 0;
    for round in 0..4 {
        scene.start_all();
        let load = Load::start(&scene, &ledger, WRITERS);
        let before = recycled;
        // The replica that is killed meanwhile must not hold the others' journals up.
        let victim = ALL[round % ALL.len()];
        wait_for_writes(&ledger, 300);
        scene.cluster.kill(victim);
        wait_for_writes(&ledger, 300);
        scene.start(victim);
        wait_for("segments that are given back", || {
            recycled = before + scene.number(ALL[(round + 1) % ALL.len()], "segments_recycled");
            (recycled >= before + 6).then_some(())
        });
        for node in ALL {
            // Two snapshots' worth of records, a segment in use, one ready, two spares.
            let bytes = bytes_in(&scene.journal(node));
            assert!(
                bytes <= 40 * SEGMENT_BYTES,
                "node {node}: {bytes} bytes of journal"
            );
        }
        scene.lose_power();
        load.stop();
    }
    scene.start_all();
    ledger.assert_kept(&scene);
}

#[test]
fn what_a_replica_may_be_asked_for_is_not_cut() {
    let rehearse = "discarding,segment_bytes=131072,snapshot_slots=150";
    let (mut scene, ledger) = scene(256, rehearse);
    for round in 1..=2 {
        scene.start_all();
        let load = Load::start(&scene, &ledger, WRITERS);
        for node in ALL {
            wait_for("segments that are given back", || {
                (scene.number(node, "segments_recycled") >= 3 * round).then_some(())
            });
        }
        scene.kill_all();
        load.stop();
        ALL.into_iter()
            .for_each(|node| assert_reaches_back(&scene, node));
    }
}

/// What is on the disk of a dead replica must give its votes from the trim on, and its state from
/// the older of its two snapshots on.
fn assert_reaches_back(scene: &Scene, node: u16) {
    let expectation = Expectation {
        cluster: "local".to_owned(),
        node: NodeId(node),
        durability: Durability::Sync,
        origin: 0,
    };
    let path = scene.cluster.data_directory(node);
    let directory = DataDirectory::open(path, &expectation).unwrap();
    let names = std::fs::read_dir(directory.snapshots_path(GROUP)).unwrap();
    let mut snapshots: Vec<u64> = names
        .filter_map(|name| {
            let name = name.unwrap().file_name().into_string().unwrap();
            name.strip_prefix("snapshot-")?.parse().ok()
        })
        .collect();
    snapshots.sort_unstable_by(|a, b| b.cmp(a));
    let newest = snapshots.first().copied().unwrap_or(0);
    let older = snapshots.get(1).copied().unwrap_or(0);

    let options = journal::Options::new(
        directory.journal_path(),
        directory.fingerprint(),
        Flush::Before,
    );
    let (recovery, _journal) = Journal::open(options, Arc::new(|| {})).unwrap();
    let (mut slots, mut trim) = (BTreeSet::new(), 0);
    recovery
        .replay(|_, record| {
            let Parsed::Ours(header, _) = parse(record, usize::from(u16::MAX)) else {
                panic!("not a packet");
            };
            match header.kind {
                Kind::Accept | Kind::Learn => _ = slots.insert(header.slot.0),
                Kind::Decide => trim = trim.max(header.watermark),
                other => assert_eq!(other, Kind::Prepare),
            }
        })
        .unwrap();
    let last = newest.min(slots.last().copied().unwrap_or(0));
    for slot in (older + 1).min(trim.max(1))..=last {
        let first = slots.first();
        assert!(
            slots.contains(&slot),
            "node {node}: slot {slot} is gone: snapshots {older} and {newest}, trim {trim}, \
             journal from {first:?}"
        );
    }
}

#[test]
fn a_slow_disk_slows_the_cluster_and_stops_nothing() {
    let (mut scene, ledger) = scene(1024, "flush_delay_us=50000,segment_bytes=1048576");
    scene.start_all();
    let leader = scene.leader();
    load(&scene, &ledger, WRITERS, 300);
    assert_eq!(scene.leader(), leader, "nobody campaigned");
    ledger.assert_kept(&scene);
}

#[test]
fn a_disk_that_fails_ends_its_replica_and_no_other() {
    let (mut scene, ledger) = scene(1024, "discarding,segment_bytes=1048576");
    scene.start_all();
    let load = Load::start(&scene, &ledger, WRITERS);
    for node in ALL {
        wait_for_writes(&ledger, 100);
        scene.cluster.kill(node);
        let faults = "discarding,failing_flush=20,segment_bytes=1048576";
        scene.start_with(node, rehearsal::VARIABLE, faults);
        let status = scene.wait_for_end(node);
        assert_eq!(status.code(), Some(1));
        let log = scene.cluster.log(node);
        assert!(
            log.contains("write journal") && log.contains("os error 5"),
            "{log}"
        );
        wait_for_writes(&ledger, 100);
        scene.start(node);
        scene.wait_until_caught_up(node);
    }
    load.stop();
    scene.lose_power();
    scene.start_all();
    ledger.assert_kept(&scene);
}

#[test]
fn a_replica_whose_disk_is_full_ends_and_comes_back_when_there_is_room() {
    let (mut scene, ledger) = scene(1024, "discarding,segment_bytes=131072");
    scene.start_all();
    let load = Load::start(&scene, &ledger, WRITERS);
    wait_for_writes(&ledger, 100);
    let node = 2;
    scene.cluster.kill(node);
    let faults = "discarding,room_bytes=600000,segment_bytes=131072";
    scene.start_with(node, rehearsal::VARIABLE, faults);
    let status = scene.wait_for_end(node);
    assert_eq!(status.code(), Some(1));
    let log = scene.cluster.log(node);
    assert!(log.contains("No space left on device"), "{log}");
    wait_for_writes(&ledger, 100);
    scene.start(node);
    scene.wait_until_caught_up(node);
    load.stop();
    scene.lose_power();
    scene.start_all();
    ledger.assert_kept(&scene);
}

#[test]
fn a_replica_without_its_journal_is_refused() {
    let (mut scene, ledger) = scene(1024, "segment_bytes=1048576");
    scene.start_all();
    load(&scene, &ledger, 1, 50);
    scene.cluster.kill(3);
    std::fs::remove_dir_all(scene.journal(3)).unwrap();
    scene.start(3);
    assert_eq!(scene.wait_for_end(3).code(), Some(3));
    let log = scene.cluster.log(3);
    assert!(
        log.contains("its journal is missing") && log.contains("member replace --lost 3"),
        "{log}"
    );
    // It is refused again, although the first attempt may have made a journal.
    scene.start(3);
    assert_eq!(scene.wait_for_end(3).code(), Some(3));
    ledger.assert_kept(&scene);
}
