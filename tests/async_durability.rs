//! What `async` promises: acknowledged writes survive the end of every process at once. The votes
//! are in regions that outlive the process, the state behind them comes from snapshots and journal.
//! They do not survive the end of the machine: then the node is refused, and replaced.

#![cfg(any(debug_assertions, feature = "kill-points"))]
#![allow(clippy::unwrap_used)]

mod scene;

use nearwire::config::Durability;
use scene::{ALL, Ledger, Load, Scene, load, wait_for_writes};

const WRITERS: usize = 4;

/// Kills all processes again and again; the ring is overwritten between two kills.
fn end_all_processes(rehearse: &str) -> Scene {
    let mut scene = Scene::new(Durability::Async, 64, rehearse);
    let ledger = Ledger::default();
    for _ in 0..4 {
        scene.start_all();
        let load = Load::start(&scene, &ledger, WRITERS);
        wait_for_writes(&ledger, 3000);
        scene.kill_all();
        load.stop();
    }
    scene.start_all();
    ledger.assert_kept(&scene);
    scene
}

#[test]
fn acknowledged_writes_survive_the_end_of_all_processes() {
    end_all_processes("segment_bytes=1048576");
}

#[test]
fn so_they_do_when_the_journal_is_cut() {
    let scene = end_all_processes("segment_bytes=131072,snapshot_slots=100");
    for node in ALL {
        assert!(
            scene.number(node, "snapshot") > 0,
            "node {node} took no snapshot"
        );
    }
}

#[test]
fn after_its_machine_restarted_a_node_is_refused_and_the_others_go_on() {
    let mut scene = Scene::new(Durability::Async, 64, "segment_bytes=1048576");
    let ledger = Ledger::default();
    scene.start_all();
    load(&scene, &ledger, WRITERS, 100);
    scene.cluster.kill(2);
    scene.next_boot();
    scene.start(2);
    assert_eq!(scene.wait_for_end(2).code(), Some(3));
    let log = scene.log(2);
    assert!(log.contains("the machine has restarted since"), "{log}");
    assert!(log.contains("the others go on without it"), "{log}");
    load(&scene, &ledger, WRITERS, 100);
    ledger.assert_kept(&scene);
}
