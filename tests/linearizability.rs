//! What clients of three replica processes see has one order, while replicas are killed and stopped.

mod common;
mod recording;

use common::{CALM, Cluster, PATIENCE, spawn};
use nearwire::history;
use nix::sys::signal::Signal;
use recording::{Recording, Shape};
use std::time::{Duration, Instant};

/// Operations answered in a run, at least.
const OPERATIONS: u64 = 100_000;
/// Rounds of trouble in a run, at least.
const ROUNDS: usize = 3;
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

fn cluster(defect: Option<&str>) -> Cluster {
    let mut cluster = Cluster::prepare(CALM);
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

fn pause(cluster: &Cluster, node: u16, time: Duration) {
    cluster.signal(node, Signal::SIGSTOP);
    std::thread::sleep(time);
    cluster.signal(node, Signal::SIGCONT);
}

/// Every kind of trouble once.
fn trouble(cluster: &mut Cluster, recording: &Recording) {
    let leader = cluster.lead();
    cluster.kill(leader);
    advance(recording, 500);
    cluster.start_node(leader);
    cluster.settle(&[1, 2, 3]);

    for time in [BLINK, COMA] {
        for leads in [true, false] {
            advance(recording, 500);
            let leader = cluster.lead();
            let node = if leads {
                leader
            } else {
                cluster.others(leader)[0]
            };
            pause(cluster, node, time);
        }
    }
    cluster.settle(&[1, 2, 3]);
}

#[test]
fn histories_have_an_order_while_replicas_are_killed_and_stopped() {
    let mut cluster = cluster(None);
    let recording = record(&cluster);
    let mut rounds = 0;
    while rounds < ROUNDS || recording.answered() < OPERATIONS {
        trouble(&mut cluster, &recording);
        rounds += 1;
    }
    let history = recording.stop();
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
fn a_build_that_answers_queries_without_a_barrier_is_caught() {
    for _ in 0..5 {
        let cluster = cluster(Some("read-unconfirmed"));
        let recording = record(&cluster);
        for _ in 0..2 {
            advance(&recording, 1000);
            // Clients that saw what others wrote meanwhile ask it, and it answers what it knew.
            pause(&cluster, cluster.lead(), COMA);
        }
        advance(&recording, 1000);
        if let Err(violation) = history::check(&recording.stop()) {
            let story = violation.to_string();
            println!("{story}");
            assert!(story.contains("GET"), "a query is at fault: {story}");
            return;
        }
    }
    panic!("no stale read among those that a stopped leader answered");
}
