//! What clients of three replica processes see has one order, while replicas are killed and
//! stopped.

mod common;
mod recording;

use common::{CALM, Cluster, PATIENCE, Reply, spawn};
use nearwire::history::{self, Action, Operation};
use nix::sys::signal::Signal;
use recording::{Recording, Shape};
use std::time::{Duration, Instant};

/// Operations answered in a run, at least.
const OPERATIONS: u64 = 100_000;
/// Rounds of trouble in a run go on for so long, at least.
const RUN: Duration = Duration::from_secs(12);
/// Well within an election's time-out.
const BLINK: Duration = Duration::from_millis(60);
/// Beyond every time-out of the replicas.
const COMA: Duration = Duration::from_millis(1500);

const SHAPE: Shape = Shape {
    resp: 6,
    udp: 2,
    keys: 24,
};

/// Names the deliberate defect of a replica, in builds that can commit one.
const MUTATION: &str = "NEARWIRE_MUTATION";

/// How queries are answered.
const BARRIER: &str = "reads = \"barrier\"\n";
const LEASE: &str = "reads = \"lease\"\n";
const QUORUM: &str = "reads = \"quorum\"\n";

fn cluster(reads: &str, defect: Option<&str>) -> Cluster {
    let mut cluster = Cluster::prepare(&format!("{reads}{CALM}"));
    for node in 1..=3 {
        let mut command = cluster.command(node).expect("a log file");
        command.envs(defect.map(|defect| (MUTATION, defect)));
        let child = spawn(&mut command);
        cluster.adopt(node, child);
    }
    cluster.lead();
    cluster
}

fn record(cluster: &Cluster) -> Recording {
    Recording::start(SHAPE, &cluster.fronts(&[1, 2, 3]), &cluster.members())
}

/// Waits until so many more operations were answered.
#[track_caller]
fn advance(recording: &Recording, by: u64) {
    let target = recording.answered() + by;
    let deadline = Instant::now() + PATIENCE;
    while recording.answered() < target {
        assert!(Instant::now() < deadline, "the load stands still");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Stops a node until the others serve without it, asks it for every key, and lets it go on: the
/// questions are there before it learns what happened meanwhile.
fn ask_a_stopped_node(cluster: &Cluster, recording: &Recording, node: u16) -> Vec<Operation> {
    let mut connection = cluster.connect(node).patient(PATIENCE);
    // So that the node has taken it.
    connection.call(&["PING"]).expect("a node that runs");
    cluster.signal(node, Signal::SIGSTOP);
    std::thread::sleep(COMA);
    cluster.leader_among(&cluster.others(node));
    advance(recording, 500);
    let mut asked = Vec::new();
    for key in 0..SHAPE.keys {
        let key = recording::key(key);
        let invoked_ns = recording.now_ns();
        connection
            .send(&["GET", &key])
            .expect("the kernel takes it");
        asked.push(Operation {
            client: u64::from(node) + 1000,
            key: key.into_bytes(),
            invoked_ns,
            returned_ns: None,
            action: Action::Read { value: None },
        });
    }
    cluster.signal(node, Signal::SIGCONT);
    for operation in &mut asked {
        match connection.receive() {
            Ok(Reply::Bulk(value)) => {
                operation.action = Action::Read { value };
                operation.returned_ns = Some(recording.now_ns());
            }
            Ok(Reply::Error(_)) => {}
            other => panic!("{other:?} is no answer to GET"),
        }
    }
    asked
}

fn pause(cluster: &Cluster, node: u16, time: Duration) {
    cluster.signal(node, Signal::SIGSTOP);
    std::thread::sleep(time);
    cluster.signal(node, Signal::SIGCONT);
}

/// Every kind of trouble once.
fn trouble(cluster: &mut Cluster, recording: &Recording) -> Vec<Operation> {
    let leader = cluster.lead();
    cluster.kill(leader);
    advance(recording, 500);
    cluster.start_node(leader);
    cluster.settle(&[1, 2, 3]);

    let leader = cluster.lead();
    pause(cluster, leader, BLINK);
    advance(recording, 500);
    for time in [BLINK, COMA] {
        let follower = cluster.others(cluster.lead())[0];
        pause(cluster, follower, time);
        advance(recording, 500);
    }
    let leader = cluster.lead();
    let mut asked = ask_a_stopped_node(cluster, recording, leader);
    cluster.settle(&[1, 2, 3]);
    let follower = cluster.others(cluster.lead())[0];
    asked.extend(ask_a_stopped_node(cluster, recording, follower));
    cluster.settle(&[1, 2, 3]);
    asked
}

#[test]
fn histories_have_an_order_while_replicas_are_killed_and_stopped() {
    histories_have_an_order(BARRIER);
}

#[test]
fn histories_have_an_order_under_leases_while_replicas_are_killed_and_stopped() {
    histories_have_an_order(LEASE);
}

#[test]
fn histories_have_an_order_under_quorum_reads_while_replicas_are_killed_and_stopped() {
    histories_have_an_order(QUORUM);
}

fn histories_have_an_order(reads: &str) {
    let mut cluster = cluster(reads, None);
    let recording = record(&cluster);
    let begin = Instant::now();
    let mut asked = Vec::new();
    while begin.elapsed() < RUN || recording.answered() < OPERATIONS {
        asked.extend(trouble(&mut cluster, &recording));
    }
    let mut history = recording.stop();
    history.extend(asked);
    let unknown = history
        .iter()
        .filter(|one| one.returned_ns.is_none())
        .count();
    println!("{} operations, {unknown} without an answer", history.len());
    assert!(
        unknown > 0,
        "clients of a killed leader had something under way"
    );
    if let Err(violation) = history::check(&history) {
        panic!("{violation}");
    }
}

#[test]
fn histories_have_an_order_when_every_replica_is_killed_at_once() {
    let mut cluster = Cluster::prepare(CALM);
    for node in 1..=3 {
        cluster.edit(node, |text| {
            assert!(text.contains("\"volatile\""), "{text}");
            text.replace("durability = \"volatile\"", "durability = \"sync\"")
        });
    }
    cluster.start_all();
    cluster.lead();
    let recording = record(&cluster);
    for _ in 0..3 {
        advance(&recording, 2000);
        for node in 1..=3 {
            cluster.kill(node);
        }
        cluster.start_all();
        cluster.lead();
    }
    advance(&recording, 2000);
    let history = recording.stop();
    println!("{} operations", history.len());
    if let Err(violation) = history::check(&history) {
        panic!("{violation}");
    }
}

#[test]
fn a_build_that_answers_queries_without_a_barrier_is_caught() {
    a_stale_read_is_caught(BARRIER, "read-unconfirmed", Cluster::lead);
}

#[test]
fn a_build_that_answers_queries_by_a_lease_that_has_run_out_is_caught() {
    a_stale_read_is_caught(LEASE, "lease-outlived", Cluster::lead);
}

#[test]
fn a_build_whose_followers_answer_from_less_than_a_quorum_has_chosen_is_caught() {
    let follower = |cluster: &Cluster| cluster.others(cluster.lead())[0];
    a_stale_read_is_caught(QUORUM, "read-unapplied", follower);
}

fn a_stale_read_is_caught(reads: &str, defect: &str, asked: impl Fn(&Cluster) -> u16) {
    for _ in 0..8 {
        let cluster = cluster(reads, Some(defect));
        let recording = record(&cluster);
        advance(&recording, 1000);
        let asked = ask_a_stopped_node(&cluster, &recording, asked(&cluster));
        advance(&recording, 500);
        let mut history = recording.stop();
        history.extend(asked);
        if let Err(violation) = history::check(&history) {
            let story = violation.to_string();
            println!("{story}");
            assert!(story.contains("GET"), "a query is at fault: {story}");
            return;
        }
    }
    panic!("no stale read among those that a stopped node answered");
}
