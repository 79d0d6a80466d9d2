//! Backups of a cluster of real processes, what they begin, and how one that lags is taught.

#![cfg(any(debug_assertions, feature = "kill-points"))]
#![allow(clippy::unwrap_used)]

mod scene;

use nearwire::config::Durability;
use nearwire::kill_point;
use nix::sys::signal::Signal;
use scene::{ALL, Ledger, Load, Scene, load, wait_for, wait_for_writes};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const WRITERS: usize = 4;
/// Less than is decided before a backup: where a new cluster's acceptors begin is not where its log
/// goes on.
const WINDOW: u64 = 16;

fn nearwire(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nearwire"));
    let command = command.args(["--output", "json", "snapshot"]);
    command.args(arguments).output().unwrap()
}

fn json(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn config(scene: &Scene, node: u16) -> PathBuf {
    scene.cluster.directory().join(format!("node-{node}.toml"))
}

fn save(scene: &Scene, file: &Path) -> Value {
    json(&nearwire(&[
        "save",
        "--config",
        text(&config(scene, 1)),
        "--timeout-ms",
        "5000",
        text(file),
    ]))
}

fn restore(scene: &Scene, node: u16, file: &Path) -> Output {
    let config = config(scene, node);
    nearwire(&["restore", "--config", text(&config), text(file)])
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

/// Ends all processes and forgets all of their state.
fn bury(scene: &mut Scene) {
    scene.kill_all();
    for node in ALL {
        std::fs::remove_dir_all(scene.cluster.data_directory(node)).unwrap();
    }
}

#[test]
fn a_cluster_begins_with_a_backup_and_has_every_write_before_it() {
    let scratch = tempfile::tempdir().unwrap();
    for durability in [Durability::Volatile, Durability::Async, Durability::Sync] {
        let mut scene = Scene::new(durability, WINDOW, "");
        let ledger = Ledger::default();
        scene.start_all();
        load(&scene, &ledger, WRITERS, 2000);
        let file = scratch.path().join(format!("{durability:?}.snapshot"));
        let saved = save(&scene, &file);
        assert!(saved["slot"].as_u64().unwrap() > WINDOW, "{saved}");
        assert_eq!(saved["group"], 0);
        assert!(saved["keys"].as_u64().unwrap() > 0, "{saved}");
        assert!(saved["sessions"].as_u64().unwrap() > 0, "{saved}");
        assert_eq!(
            json(&nearwire(&["inspect", text(&file)])),
            serde_json::json!([saved])
        );
        assert_eq!(mode(&file), 0o600);
        bury(&mut scene);
        for node in ALL {
            assert_eq!(json(&restore(&scene, node, &file)), saved);
        }
        scene.start_all();
        assert_eq!(mode(&scene.cluster.data_directory(1)), 0o700);
        ledger.assert_kept(&scene);
        load(&scene, &ledger, WRITERS, 2000);
        scene.kill_all();
        if durability != Durability::Volatile {
            scene.start_all();
            ledger.assert_kept(&scene);
        }
    }
}

#[test]
fn nodes_that_begin_with_different_states_form_no_cluster() {
    let scratch = tempfile::tempdir().unwrap();
    let mut scene = Scene::new(Durability::Volatile, 256, "");
    let ledger = Ledger::default();
    scene.start_all();
    load(&scene, &ledger, WRITERS, 500);
    let files = ["one", "two"].map(|name| scratch.path().join(name));
    let before = save(&scene, &files[0]);
    load(&scene, &ledger, WRITERS, 500);
    assert!(save(&scene, &files[1])["slot"].as_u64() > before["slot"].as_u64());
    bury(&mut scene);
    restore(&scene, 1, &files[0]);
    restore(&scene, 2, &files[1]);
    scene.start_all();
    for node in ALL {
        wait_for("a conflict", || {
            let report = scene.report(node);
            assert_eq!(report["formed"], false);
            let conflict = report["conflict"].as_object()?;
            assert_eq!(conflict["kind"], "terms");
            assert!(conflict["node"].is_u64(), "{conflict:?}");
            let why = conflict["why"].as_str().unwrap();
            assert!(why.contains("another snapshot"), "{why}");
            Some(())
        });
    }
}

#[test]
fn nothing_is_restored_over_anything_and_nothing_damaged_at_all() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("backup");
    let mut scene = Scene::new(Durability::Volatile, 256, "");
    let ledger = Ledger::default();
    scene.start_all();
    load(&scene, &ledger, WRITERS, 500);
    save(&scene, &file);
    let again = nearwire(&["save", "--config", text(&config(&scene, 1)), text(&file)]);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert_eq!(again.status.code(), Some(1), "{said}");
    assert!(
        said.contains("exists") && said.contains("never written over"),
        "{said}"
    );

    let identity = scene.cluster.data_directory(1).join("identity");
    let before = std::fs::read(&identity).unwrap();
    let refused = restore(&scene, 1, &file);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("move this one away"), "{said}");
    assert_eq!(std::fs::read(&identity).unwrap(), before);

    bury(&mut scene);
    let whole = std::fs::read(&file).unwrap();
    for at in [0, 20, 40, 64, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        for output in [
            nearwire(&["inspect", text(&file)]),
            restore(&scene, 1, &file),
        ] {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "byte {at}: {said}");
            assert!(said.contains(text(&file)), "byte {at}: {said}");
        }
        assert!(!scene.cluster.data_directory(1).exists(), "byte {at}");
    }

    // What it was to begin with may not be taken away again.
    std::fs::write(&file, whole).unwrap();
    json(&restore(&scene, 1, &file));
    let snapshots = scene.cluster.data_directory(1).join("snapshots");
    std::fs::remove_dir_all(snapshots).unwrap();
    scene.start(1);
    assert_eq!(scene.wait_for_end(1).code(), Some(1));
    assert!(
        scene.log(1).contains("restore it again"),
        "{}",
        scene.log(1)
    );
}

#[test]
fn a_node_whose_restore_was_cut_short_does_not_begin_with_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("backup");
    let mut scene = Scene::new(Durability::Volatile, 256, "");
    let ledger = Ledger::default();
    scene.start_all();
    load(&scene, &ledger, WRITERS, 100);
    save(&scene, &file);
    bury(&mut scene);
    let mut command = Command::new(env!("CARGO_BIN_EXE_nearwire"));
    let command = command.args(["snapshot", "restore", "--config"]);
    let command = command.args([&config(&scene, 1), &file]);
    // The first thing that has a name in the directory.
    let command = command.env(kill_point::VARIABLE, "data_directory.after-rename:1");
    assert_eq!(command.status().unwrap().signal(), Some(libc::SIGKILL));
    scene.start(1);
    assert_eq!(scene.wait_for_end(1).code(), Some(1));
    let log = scene.log(1);
    assert!(log.contains("restore it again"), "{log}");
}

#[test]
fn nothing_is_saved_from_a_leader_that_the_others_may_have_left_behind() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("backup");
    let mut scene = Scene::new(Durability::Volatile, 256, "");
    let ledger = Ledger::default();
    scene.start_all();
    load(&scene, &ledger, WRITERS, 100);
    let leader = scene.leader();
    let others = ALL.into_iter().filter(|node| *node != leader);
    others
        .clone()
        .for_each(|node| scene.cluster.signal(node, Signal::SIGSTOP));
    assert_eq!(scene.report(leader)["role"], "leader", "for all it knows");
    let config = config(&scene, leader);
    let refused = nearwire(&[
        "save",
        "--config",
        text(&config),
        "--timeout-ms",
        "500",
        text(&file),
    ]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("nobody who leads answers"),
        "{said}"
    );
    assert!(!file.exists());
    others.for_each(|node| scene.cluster.signal(node, Signal::SIGCONT));
    save(&scene, &file);
}

#[test]
fn one_that_was_away_for_long_is_taught_by_one_that_follows_while_writes_go_on() {
    for durability in [Durability::Volatile, Durability::Async] {
        let mut scene = Scene::new(durability, 64, "");
        let ledger = Ledger::default();
        scene.start_all();
        let load = Load::start(&scene, &ledger, WRITERS);
        wait_for_writes(&ledger, 1000);
        let leader = scene.leader();
        let [away, other] = [1, 2].map(|more| (leader + more - 1) % 3 + 1);
        scene.cluster.kill(away);
        // More than anybody keeps the values of.
        let before = scene.number(leader, "decided");
        wait_for("slots", || {
            (scene.number(leader, "decided") > before + 6000).then_some(())
        });
        scene.start(away);
        scene.wait_until_caught_up(away);
        load.stop();
        ledger.assert_kept(&scene);
        assert_eq!(scene.number(away, "snapshots_taken_over"), 1);
        if durability == Durability::Volatile {
            assert_eq!(
                scene.number(leader, "snapshot"),
                0,
                "nobody asked the leader"
            );
            assert_ne!(scene.number(other, "snapshot"), 0);
        }
    }
}

#[test]
fn a_source_that_stops_is_replaced_by_another() {
    let mut scene = Scene::new(Durability::Volatile, 64, "");
    let ledger = Ledger::default();
    scene.start_all();
    let load = Load::start(&scene, &ledger, WRITERS);
    wait_for_writes(&ledger, 1000);
    let leader = scene.leader();
    let [away, other] = [1, 2].map(|more| (leader + more - 1) % 3 + 1);
    scene.cluster.kill(away);
    let before = scene.number(leader, "decided");
    wait_for("slots", || {
        (scene.number(leader, "decided") > before + 6000).then_some(())
    });
    scene.cluster.signal(other, Signal::SIGSTOP);
    scene.start(away);
    // With the other one silent nothing is decided before it is level, or at least votes.
    wait_for("a snapshot", || {
        (scene.number(away, "snapshots_taken_over") == 1).then_some(())
    });
    scene.cluster.signal(other, Signal::SIGCONT);
    scene.wait_until_caught_up(away);
    load.stop();
    ledger.assert_kept(&scene);
}
