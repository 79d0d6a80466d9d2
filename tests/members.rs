//! Changes of the members of a cluster of real processes, under load.

#![allow(clippy::unwrap_used)]

mod scene;

use nearwire::config::Durability;
use scene::{ALL, Ledger, Load, Scene, wait_for, wait_for_writes};
use serde_json::Value;
use std::process::{Command, Output};

const WRITERS: usize = 4;
const NEW: [u16; 3] = [4, 5, 6];

fn member(scene: &Scene, arguments: &[&str]) -> Output {
    let peers: Vec<_> = ALL
        .map(|node| {
            scene.cluster.replicas()[usize::from(node) - 1]
                .address
                .to_string()
        })
        .to_vec();
    let mut command = Command::new(env!("CARGO_BIN_EXE_nearwire"));
    let command = command.args(["--output", "json", "member"]).args(arguments);
    command
        .args(["--peers", &peers.join(",")])
        .output()
        .unwrap()
}

fn change(scene: &Scene, arguments: &[&str]) -> Value {
    let output = member(scene, arguments);
    assert!(
        output.status.success(),
        "member {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn voters(list: &Value) -> Vec<u64> {
    let members = list["members"].as_array().unwrap().iter();
    let voters = members.filter(|member| member["role"] == "voter");
    voters
        .map(|member| member["node"].as_u64().unwrap())
        .collect()
}

fn at(scene: &Scene, node: u16) -> String {
    format!(
        "{node}={}",
        scene.cluster.replicas()[usize::from(node) - 1].address
    )
}

#[test]
fn all_three_are_replaced_by_three_new_ones_under_load() {
    for durability in [Durability::Volatile, Durability::Sync] {
        let mut scene = Scene::with_settings(durability, 1024, "", "", NEW.len());
        let ledger = Ledger::default();
        scene.start_all();
        NEW.into_iter().for_each(|node| scene.start(node));
        scene.leader();
        let load = Load::start(&scene, &ledger, WRITERS);
        wait_for_writes(&ledger, 2000);
        assert_eq!(voters(&change(&scene, &["list"])), [1, 2, 3]);
        let with = NEW.map(|node| at(&scene, node)).join(",");
        let list = change(&scene, &["replace", "1", "2", "3", "--with", &with]);
        assert_eq!(voters(&list), [4, 5, 6]);
        wait_for_writes(&ledger, 2000);
        // A matchmaker may go, and with it an acceptor that nobody needs any more; then a voter.
        scene.cluster.kill(1);
        wait_for_writes(&ledger, 1000);
        scene.cluster.kill(list["leader"].as_u64().unwrap() as u16);
        wait_for_writes(&ledger, 1000);
        load.stop();
        ledger.assert_kept(&scene);
    }
}

#[test]
fn a_node_that_lost_its_memory_is_put_back_by_one_command() {
    let mut scene = Scene::new(Durability::Async, 1024, "");
    let ledger = Ledger::default();
    scene.start_all();
    let lost = scene.leader() % 3 + 1;
    let load = Load::start(&scene, &ledger, WRITERS);
    wait_for_writes(&ledger, 1000);
    scene.cluster.kill(lost);
    scene.forget_memory(lost);
    scene.start(lost);
    assert_eq!(
        scene.wait_for_end(lost).code(),
        Some(3),
        "under its old name it stays out"
    );
    std::fs::remove_dir_all(scene.cluster.data_directory(lost)).unwrap();
    scene.start_with(lost, "NEARWIRE_JOIN", "true");
    let list = change(&scene, &["replace", "--lost", &lost.to_string()]);
    assert_eq!(voters(&list), [1, 2, 3]);
    wait_for_writes(&ledger, 1000);
    // Its vote counts: with the leader's it is enough. (Nobody else could be elected: of those that
    // formed the cluster one would be left that remembers.)
    let leader = list["leader"].as_u64().unwrap();
    let other = (1..=3)
        .find(|node| ![lost, leader as u16].contains(node))
        .unwrap();
    scene.cluster.kill(other);
    wait_for_writes(&ledger, 1000);
    // Its next life needs not be told to join.
    scene.cluster.kill(lost);
    scene.start(other);
    scene.start(lost);
    scene.wait_until_caught_up(lost);
    wait_for_writes(&ledger, 1000);
    load.stop();
    ledger.assert_kept(&scene);
}

#[test]
fn a_node_that_lost_its_memory_comes_back_by_itself_if_told_to() {
    let mut scene = Scene::with_settings(Durability::Volatile, 1024, "", "rejoin = true\n", 0);
    let ledger = Ledger::default();
    scene.start_all();
    let lost = scene.leader() % 3 + 1;
    let load = Load::start(&scene, &ledger, WRITERS);
    wait_for_writes(&ledger, 1000);
    let before = change(&scene, &["list"]);
    scene.cluster.kill(lost);
    scene.forget_memory(lost);
    scene.start(lost);
    let life = |list: &Value| list["members"][usize::from(lost) - 1]["incarnation"].clone();
    let list = wait_for("the third voter in another life", || {
        let list = change(&scene, &["list"]);
        (voters(&list) == [1, 2, 3] && life(&list) != life(&before)).then_some(list)
    });
    assert_eq!(list["epoch"].as_u64(), Some(3), "a learner first");
    let other = (1..=3).find(|node| *node != lost).unwrap();
    scene.cluster.kill(other);
    wait_for_writes(&ledger, 1000);
    load.stop();
    ledger.assert_kept(&scene);
}

#[test]
fn a_node_that_gives_shorter_leases_becomes_no_member() {
    let mut scene = Scene::with_settings(Durability::Volatile, 64, "", "", 1);
    scene.start_all();
    scene.leader();
    let config = scene.cluster.directory().join("node-4.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let shorter = text.replace("[timing]\n", "[timing]\nlease_us = 3000\n");
    assert_ne!(shorter, text);
    std::fs::write(&config, shorter).unwrap();
    scene.start(4);
    let output = member(&scene, &["add", &at(&scene, 4)]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && text.contains("lease_ns 3000000, and the cluster 4000000"),
        "{text}"
    );
}

#[test]
fn what_makes_no_sense_is_refused_with_a_remedy() {
    let mut scene = Scene::with_settings(Durability::Volatile, 64, "", "", 1);
    scene.start_all();
    scene.start(4);
    scene.leader();
    let four = at(&scene, 4);
    for (arguments, claim) in [
        (vec!["promote", "9"], "node 9 is no member"),
        (vec!["replace", "--lost", "2"], "has lost nothing"),
        (vec!["demote", "1", "2", "3"], "hold"),
        (
            vec!["demote", "3", "--phase1", "1", "--phase2", "1"],
            "need not intersect",
        ),
    ] {
        let output = member(&scene, &arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && text.contains(claim),
            "{arguments:?}: {text}"
        );
    }
    let list = change(&scene, &["add", &four]);
    assert_eq!(
        (voters(&list), list["epoch"].as_u64()),
        (vec![1, 2, 3], Some(2))
    );
    let list = change(&scene, &["promote", "4", "--phase1", "3", "--phase2", "2"]);
    assert_eq!(
        (voters(&list), list["phase1"].as_u64()),
        (vec![1, 2, 3, 4], Some(3))
    );
    let leader = list["leader"].to_string();
    let list = change(&scene, &["remove", &leader]);
    assert!(!voters(&list).contains(&leader.parse().unwrap()), "{list}");
    assert_eq!(list["phase1"].as_u64(), Some(2), "majorities of three");
}
