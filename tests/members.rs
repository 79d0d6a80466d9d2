//! Changes of the members of a cluster of real processes, under load.

#![allow(clippy::unwrap_used)]

mod scene;

use nearwire::config::Durability;
use nearwire::local_cluster::{LocalCluster, Options};
use scene::{ALL, Ledger, Load, Scene, wait_for, wait_for_writes};
use serde_json::Value;
use std::net::Ipv4Addr;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

const WRITERS: usize = 4;
const NEW: [u16; 3] = [4, 5, 6];
/// How long after the last one the next leader is killed.
const KILLS_MS: [u64; 5] = [0, 3, 9, 20, 45];

fn command(scene: &Scene, arguments: &[&str]) -> Command {
    let replicas = scene.cluster.replicas().iter();
    let peers: Vec<_> = replicas.map(|one| one.address.to_string()).collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_nearwire"));
    command.args(["--output", "json", "member"]).args(arguments);
    command.args(["--peers", &peers.join(",")]);
    command
}

fn member(scene: &Scene, arguments: &[&str]) -> Output {
    command(scene, arguments).output().unwrap()
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

fn matchmakers(list: &Value) -> Vec<u64> {
    let matchmakers = list["matchmakers"].as_array().unwrap().iter();
    matchmakers.map(|node| node.as_u64().unwrap()).collect()
}

/// Nothing is left of these nodes.
fn destroy(scene: &mut Scene, nodes: &[u16]) {
    for node in nodes {
        scene.cluster.kill(*node);
        std::fs::remove_dir_all(scene.cluster.data_directory(*node)).unwrap();
    }
}

/// The node has lost everything and runs again.
fn lose(scene: &mut Scene, node: u16) {
    destroy(scene, &[node]);
    scene.start_with(node, "NEARWIRE_JOIN", "true");
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
        assert_eq!(matchmakers(&list), [4, 5, 6]);
        // Those that formed the cluster are needed for nothing, and nobody is elected by them.
        destroy(&mut scene, &ALL);
        wait_for_writes(&ledger, 1000);
        scene.cluster.kill(list["leader"].as_u64().unwrap() as u16);
        wait_for_writes(&ledger, 1000);
        load.stop();
        ledger.assert_kept(&scene);
    }
}

#[test]
fn the_members_of_many_groups_are_replaced_in_each_by_a_command_that_is_said_again() {
    let region = "groups = 5\nwindow_slots = 256";
    let mut scene = Scene::with_region(Durability::Sync, region, "", "", NEW.len());
    let ledger = Ledger::default();
    scene.start_all();
    NEW.into_iter().for_each(|node| scene.start(node));
    scene.leader();
    let load = Load::start(&scene, &ledger, WRITERS);
    wait_for_writes(&ledger, 1000);
    let with = NEW.map(|node| at(&scene, node)).join(",");
    let arguments = ["replace", "1", "2", "3", "--with", &with];
    let mut interrupted = command(&scene, &arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The first group is the last to change.
    wait_for("a group that is led by a new node", || {
        let leaders = scene.report(4)["groups"]["leaders"].clone();
        let is_new = |leader: &Value| leader.as_u64() > Some(3);
        leaders.as_array()?.iter().any(is_new).then_some(())
    });
    let _ = interrupted.kill();
    let _ = interrupted.wait();
    let list = change(&scene, &arguments);
    assert_eq!(voters(&list), [4, 5, 6]);
    // Those that formed the cluster are needed in none of the groups.
    destroy(&mut scene, &ALL);
    wait_for("leaders of all groups", || {
        let groups = &scene.report(4)["groups"];
        assert_eq!(groups["count"], 5);
        (groups["leaderless"] == 0).then_some(())
    });
    wait_for_writes(&ledger, 1000);
    load.stop();
    ledger.assert_kept(&scene);

    let address = scene.cluster.replicas()[3].address.to_string();
    let mut save = Command::new(env!("CARGO_BIN_EXE_nearwire"));
    let save = save.args(["snapshot", "save", "never.snapshot", "--peers", &address]);
    let output = save.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("5 groups"),
        "{said}"
    );
}

#[test]
fn whoever_leads_may_die_at_any_moment_of_a_change() {
    let mut scene = Scene::with_settings(Durability::Sync, 1024, "", "", NEW.len());
    let ledger = Ledger::default();
    scene.start_all();
    NEW.into_iter().for_each(|node| scene.start(node));
    scene.leader();
    let load = Load::start(&scene, &ledger, WRITERS);
    wait_for_writes(&ledger, 500);
    for (go, come) in [(ALL, NEW), (NEW, ALL), (ALL, NEW)] {
        let (go, with) = (
            go.map(|node| node.to_string()),
            come.map(|node| at(&scene, node)).join(","),
        );
        // It may take a while before a leader lives long enough to answer.
        let arguments = [
            "replace",
            &go[0],
            &go[1],
            &go[2],
            "--with",
            &with,
            "--timeout-ms",
            "60000",
        ];
        let mut replacing = command(&scene, &arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        for delay_ms in KILLS_MS {
            thread::sleep(Duration::from_millis(delay_ms));
            let leader = scene.leader();
            if replacing.try_wait().unwrap().is_some() {
                break;
            }
            scene.cluster.kill(leader);
            scene.start(leader);
        }
        let output = replacing.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        let list = change(&scene, &["list"]);
        let come = come.map(u64::from);
        assert_eq!(
            (voters(&list), matchmakers(&list)),
            (come.to_vec(), come.to_vec())
        );
        wait_for_writes(&ledger, 200);
    }
    destroy(&mut scene, &ALL);
    let leader = scene.leader();
    scene.cluster.kill(leader);
    wait_for_writes(&ledger, 500);
    load.stop();
    ledger.assert_kept(&scene);
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
    // It may die while it comes back: its next process goes on.
    let mut record = scene.cluster.data_directory(lost).into_os_string();
    record.push(".rejoins");
    let record = std::path::PathBuf::from(record);
    scene.start(lost);
    wait_for("the end of the former life", || {
        record.exists().then_some(())
    });
    for delay_ms in KILLS_MS {
        thread::sleep(Duration::from_millis(delay_ms));
        scene.cluster.kill(lost);
        scene.start(lost);
    }
    let life = |list: &Value| list["members"][usize::from(lost) - 1]["incarnation"].clone();
    let list = wait_for("the third voter in another life", || {
        let list = change(&scene, &["list"]);
        (voters(&list) == [1, 2, 3] && life(&list) != life(&before)).then_some(list)
    });
    assert!(list["epoch"].as_u64() >= Some(3), "a learner first: {list}");
    wait_for("the end of it", || (!record.exists()).then_some(()));
    let other = (1..=3).find(|node| *node != lost).unwrap();
    scene.cluster.kill(other);
    wait_for_writes(&ledger, 1000);
    load.stop();
    ledger.assert_kept(&scene);
}

#[test]
fn whoever_lost_its_memory_is_again_what_it_was() {
    let mut scene = Scene::with_settings(Durability::Async, 1024, "", "", 1);
    let ledger = Ledger::default();
    scene.start_all();
    scene.start(4);
    let leader = scene.leader();
    let load = Load::start(&scene, &ledger, WRITERS);
    wait_for_writes(&ledger, 200);
    change(&scene, &["add", &at(&scene, 4)]);
    let replace = |scene: &mut Scene, node: u16| {
        lose(scene, node);
        let list = change(scene, &["replace", "--lost", &node.to_string()]);
        wait_for_writes(&ledger, 200);
        let role = list["members"][usize::from(node) - 1]["role"].clone();
        (role, list["phase1"].clone(), list["phase2"].clone())
    };
    assert_eq!(
        replace(&mut scene, 4),
        ("learner".into(), 2.into(), 2.into())
    );
    let again = member(&scene, &["replace", "--lost", "4"]);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(
        !again.status.success() && said.contains("member promote 4"),
        "{said}"
    );
    let quorums = ["--phase1", "3", "--phase2", "3"];
    change(
        &scene,
        &[&["promote", "4", "--witness"][..], &quorums].concat(),
    );
    assert_eq!(
        replace(&mut scene, 4),
        ("witness".into(), 3.into(), 3.into())
    );
    // Of the three that are left a witness votes: majorities of them may meet in it alone.
    assert_eq!(
        replace(&mut scene, leader % 3 + 1),
        ("voter".into(), 3.into(), 3.into())
    );
    load.stop();
    ledger.assert_kept(&scene);
}

#[test]
fn a_member_that_is_told_to_join_goes_on_as_what_it_is() {
    let mut scene = Scene::new(Durability::Volatile, 64, "");
    scene.start_all();
    let told = scene.leader() % 3 + 1;
    // Nor is anything left of it in the life after.
    for join in ["true", "false"] {
        scene.cluster.kill(told);
        scene.start_with(told, "NEARWIRE_JOIN", join);
        scene.wait_until_caught_up(told);
        assert_eq!(scene.report(told)["formed"], true);
        assert_eq!(voters(&change(&scene, &["list"])), [1, 2, 3]);
    }
}

#[test]
fn a_cluster_of_one_leads_again_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = Options::new(env!("CARGO_BIN_EXE_nearwire"), directory.path());
    options.addresses = vec![Ipv4Addr::LOCALHOST.into()];
    options.durability = Durability::Sync;
    let mut cluster = LocalCluster::prepare(options).unwrap();
    for _ in 0..2 {
        cluster.start(1).unwrap();
        assert_eq!(cluster.leader(Duration::from_secs(60)).unwrap(), 1);
        cluster.kill(1);
    }
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
    change(&scene, &["add", &four]);
    // Said again it does what is left.
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
    change(&scene, &["remove", &leader]);
    let list = change(&scene, &["remove", &leader]);
    assert!(!voters(&list).contains(&leader.parse().unwrap()), "{list}");
    assert_eq!(list["phase1"].as_u64(), Some(2), "majorities of three");
}
