//! What `volatile` promises: votes survive the process, the state survives as long as a replica
//! that has it runs or was stopped in order. If all processes are killed at once, the state that
//! the rings of the regions no longer hold is gone, and the cluster says so instead of serving
//! without it.

#![allow(clippy::unwrap_used)]

mod scene;

use nearwire::config::Durability;
use scene::{ALL, Ledger, Load, Redis, Reply, Scene, load, wait_for, wait_for_writes};
use std::time::Duration;

const WRITERS: usize = 4;
/// More slots than a replica keeps the values of.
const MANY: usize = 4500;

/// Writes values of which each takes a slot of its own, through the leader: others may be down.
fn fill(scene: &mut Scene, key: &str) {
    let leader = scene.leader();
    let address = scene.addresses()[usize::from(leader) - 1];
    let value = "x".repeat(1200);
    wait_for("a leader", || {
        let reply = Redis::connect(address).ok()?.ask(&["SET", key, "0"]).ok()?;
        (reply == Reply::Text("OK".into())).then_some(())
    });
    let mut redis = Redis::connect(address).unwrap();
    let commands: Vec<_> = (0..100)
        .map(|_| vec!["SET".to_owned(), key.to_owned(), value.clone()])
        .collect();
    for _ in 0..MANY / 100 {
        redis.send(&commands).unwrap();
        for _ in 0..100 {
            assert_eq!(redis.reply().unwrap(), Reply::Text("OK".into()));
        }
    }
}

#[test]
fn a_follower_that_was_killed_learns_a_short_gap_from_the_log() {
    let mut scene = Scene::new(Durability::Volatile, 1024, "");
    let ledger = Ledger::default();
    scene.start_all();
    load(&scene, &ledger, WRITERS, 200);
    let follower = scene.leader() % 3 + 1;
    scene.cluster.kill(follower);
    load(&scene, &ledger, WRITERS, 200);
    scene.start(follower);
    scene.wait_until_caught_up(follower);
    assert_eq!(scene.number(follower, "snapshots_taken_over"), 0);
    ledger.assert_kept(&scene);
}

#[test]
fn a_follower_that_was_killed_learns_a_long_gap_from_a_snapshot() {
    let mut scene = Scene::new(Durability::Volatile, 256, "");
    let ledger = Ledger::default();
    scene.start_all();
    load(&scene, &ledger, WRITERS, 200);
    let leader = scene.leader();
    let follower = leader % 3 + 1;
    scene.cluster.kill(follower);
    fill(&mut scene, "long");
    scene.start(follower);
    scene.wait_until_caught_up(follower);
    assert_eq!(scene.number(follower, "snapshots_taken_over"), 1);
    // What it took over is as good as the others' own: with one of them it serves.
    scene.cluster.kill(leader);
    ledger.assert_kept(&scene);
}

#[test]
fn a_stop_in_order_keeps_everything() {
    let mut scene = Scene::new(Durability::Volatile, 256, "");
    let ledger = Ledger::default();
    for _ in 0..2 {
        scene.start_all();
        let load = Load::start(&scene, &ledger, WRITERS);
        wait_for_writes(&ledger, 3000);
        for node in ALL {
            let status = scene.cluster.stop(node).unwrap();
            assert!(status.success(), "{status}: {}", scene.cluster.log(node));
        }
        load.stop();
    }
    scene.start_all();
    ledger.assert_kept(&scene);
}

#[test]
fn a_machine_that_restarts_before_the_cluster_forms_loses_nothing() {
    let mut scene = Scene::new(Durability::Volatile, 64, "");
    let ledger = Ledger::default();
    scene.start(1);
    scene.start(2);
    wait_for("two nodes that have pinned each other", || {
        let pinned = |node: u16, other: u16| {
            let path = scene.cluster.data_directory(node).join("identity");
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.contains(&format!("\n{other} = "))
        };
        (pinned(1, 2) && pinned(2, 1)).then_some(())
    });
    scene.cluster.kill(1);
    scene.cluster.kill(2);
    scene.forget_memory(1);
    scene.next_boot();
    scene.start_all();
    load(&scene, &ledger, WRITERS, 200);
    scene.cluster.kill(1);
    scene.start(1);
    scene.wait_until_caught_up(1);
    ledger.assert_kept(&scene);
    // From now on another boot means that votes are gone.
    scene.cluster.kill(1);
    scene.next_boot();
    scene.start(1);
    assert_eq!(scene.wait_for_end(1).code(), Some(3));
}

#[test]
fn a_cluster_that_lost_its_state_says_so_and_serves_nothing() {
    let mut scene = Scene::new(Durability::Volatile, 64, "");
    let ledger = Ledger::default();
    scene.start_all();
    load(&scene, &ledger, WRITERS, 3000);
    scene.kill_all();
    scene.start_all();
    for node in ALL {
        let report = wait_for("a reason", || {
            let report = scene.report(node);
            report["reason"].is_string().then_some(report)
        });
        assert!(
            report["wanted"].as_u64() > report["applied"].as_u64(),
            "{report}"
        );
        assert_ne!(report["role"], "leader", "{report}");
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(3);
    while std::time::Instant::now() < deadline {
        for address in scene.addresses() {
            let mut redis = Redis::connect(address).unwrap();
            redis.give_up_after(Duration::from_millis(300)).unwrap();
            let reply = redis.ask(&["GET", "k0-0"]);
            assert!(matches!(reply, Err(_) | Ok(Reply::Error(_))), "{reply:?}");
        }
    }
}
