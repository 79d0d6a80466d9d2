//! Replicas whose acceptors vote in the kernel, as processes in namespaces.

mod common;
mod offload_scene;
mod recording;

use datapath::netns::INTERFACE;
use nearwire::client::{Client, Options};
use nearwire::config::Durability;
use nearwire::history;
use nearwire::kv::{Call, Op};
use nearwire::supervision::Wish;
use offload_scene::{NODES, Scene};
use recording::{Recording, Shape};
use std::fs;
use std::time::{Duration, Instant};

/// Whatever takes longer does not happen.
const SOON: Duration = Duration::from_secs(20);

impl Scene {
    /// What the operator wants of all nodes.
    fn wish(&self, is_offload: bool) {
        for node in NODES {
            let wish = Wish::of(&self.cluster.data_directory(node));
            wish.set(is_offload).expect("the directory is there");
        }
    }

    fn client(&self) -> Client {
        let members = self.cluster.members();
        self.inside(|| {
            let options = Options {
                timeout: Duration::from_secs(3),
                ..Options::default()
            };
            Client::connect(&members, options).expect("a socket")
        })
    }
}

fn set(key: &str, value: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let call = Call {
        op: Op::Set,
        arguments: [key.as_bytes(), value.as_bytes()].into_iter().collect(),
    };
    call.encode(&mut out);
    out
}

fn get(key: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let call = Call {
        op: Op::Get,
        arguments: [key.as_bytes()].into_iter().collect(),
    };
    call.encode(&mut out);
    out
}

/// Writes one key after another until a write is not answered; says how many were.
fn write_on(client: &mut Client, from: usize, most: usize) -> usize {
    let mut next = from;
    while next < from + most {
        let written = client.execute(&set(&format!("key:{next}"), &format!("value:{next}")));
        if written.is_err() {
            break;
        }
        next += 1;
    }
    next
}

fn assert_written(client: &mut Client, until: usize) {
    for number in 0..until {
        let reply = client
            .query(&get(&format!("key:{number}")))
            .expect("it is answered");
        let value = format!("value:{number}");
        let wanted = format!("${}\r\n{value}\r\n", value.len());
        assert_eq!(String::from_utf8_lossy(&reply), wanted, "key:{number}");
    }
}

#[test]
fn votes_go_on_without_the_processes_of_their_acceptors() {
    let mut scene = Scene::new("death", |options| {
        options.settings = "[region]\nwindow_slots = 256\n".into();
    });
    scene.await_voting();
    let leader = scene.leader();
    let mut client = scene.client();
    let written = write_on(&mut client, 0, 100);
    assert_eq!(written, 100);
    let followers: Vec<u16> = NODES.filter(|node| *node != leader).collect();
    for node in &followers {
        let report = scene.report(*node).expect("it runs");
        let answered = report["offload"]["counters"]["answered"].as_u64();
        assert!(answered >= Some(100), "{report:#}");
        assert_eq!(report["voted"], 0, "the host voted: {report:#}");
    }
    for node in &followers {
        scene.cluster.kill(*node);
    }
    // Nobody is left to apply, so nothing is trimmed: the window ends it.
    let acknowledged = write_on(&mut client, written, 1000);
    assert!(
        acknowledged > written + 100,
        "{acknowledged}: {}",
        scene.logs()
    );
    assert!(acknowledged < written + 257, "{acknowledged}");
    let report = scene.await_report(leader, "full", |report| !report["reason"].is_null());
    assert_eq!(report["role"], "leader");
    let reason = report["reason"].as_str().expect("a text");
    assert!(reason.contains("window"), "{reason}");
    for node in &followers {
        scene.start(*node);
    }
    let decided = report["decided"].as_u64();
    for node in NODES {
        scene.await_report(node, "caught up", |report| {
            report["applied"].as_u64() >= decided
        });
    }
    scene.cluster.kill(leader);
    let mut client = scene.client();
    assert_written(&mut client, acknowledged);
}

#[test]
fn what_the_kernel_voted_for_is_journalled_by_the_process() {
    let mut scene = Scene::new("async", |options| options.durability = Durability::Async);
    scene.await_voting();
    let leader = scene.leader();
    let follower = if leader == 1 { 2 } else { 1 };
    let mut client = scene.client();
    assert_eq!(write_on(&mut client, 0, 200), 200);
    let decided = scene.report(leader).expect("it runs")["decided"].as_u64();
    scene.await_report(follower, "level", |report| {
        report["recoverable"].as_u64() >= decided && report["voted"] == 0
    });
    scene.cluster.kill(follower);
    // The kernel votes, and nobody journals.
    assert_eq!(write_on(&mut client, 200, 200), 400);
    scene.start(follower);
    let decided = scene.report(leader).expect("it runs")["decided"].as_u64();
    let report = scene.await_report(follower, "level again", |report| {
        report["recoverable"].as_u64() >= decided
    });
    // Two hundred from the journal, the rest from the region.
    assert!(report["replayed"].as_u64() >= Some(200), "{report:#}");
    assert_eq!(report["learned"], 0, "{report:#}");
}

/// Has a node's program outlive its process, or end with it, from its next start on.
fn on_host_death(scene: &Scene, node: u16, policy: &str) {
    let path = scene.config(node);
    let text = fs::read_to_string(&path).expect("it was written");
    let lines = text.lines().map(|line| match line.split_once(" = ") {
        Some(("on_host_death", _)) => format!("on_host_death = {policy:?}\n"),
        _ => format!("{line}\n"),
    });
    fs::write(&path, lines.collect::<String>()).expect("it is written");
}

/// Waits until a node's region is seen like this.
fn await_region(scene: &Scene, node: u16, state: &str, link: Option<&str>) {
    let began = Instant::now();
    loop {
        let status = scene.json(node, &["status"]);
        let region = &status["regions"][0];
        if region["state"] == state && region["link"].as_str() == link {
            return;
        }
        assert!(began.elapsed() < SOON, "{status:#}\n{}", scene.logs());
    }
}

#[test]
fn a_pinned_program_is_taken_over_by_a_process_that_it_is_not_to_outlive() {
    let mut scene = Scene::new("policy", |_| {});
    scene.await_voting();
    let mut written = 0;
    for left in ["voting", "sealed"] {
        let leader = scene.leader();
        let node = if leader == 1 { 2 } else { 1 };
        let other = 6 - leader - node;
        let mut client = scene.client();
        scene.cluster.kill(node);
        if left == "sealed" {
            scene.json(node, &["seal"]);
        }
        await_region(&scene, node, left, Some("pinned"));
        on_host_death(&scene, node, "seal");
        scene.start(node);
        await_region(&scene, node, "voting", Some("process"));
        // Without the third there is no majority but with this one.
        scene.cluster.kill(other);
        on_host_death(&scene, other, "seal");
        scene.start(other);
        await_region(&scene, other, "voting", Some("process"));
        scene.cluster.kill(other);
        await_region(&scene, other, "detached", None);
        written = write_on(&mut client, written, 50);
        assert_eq!(written % 50, 0, "{}", scene.logs());
        scene.cluster.kill(node);
        await_region(&scene, node, "detached", None);
        assert_eq!(write_on(&mut client, written, 1), written, "nobody votes");
        for node in [node, other] {
            on_host_death(&scene, node, "keep-voting");
            scene.start(node);
            await_region(&scene, node, "voting", Some("pinned"));
        }
    }
    let mut client = scene.client();
    assert_written(&mut client, written);
}

#[test]
fn an_interface_that_vanishes_is_told_and_the_others_go_on() {
    let scene = Scene::new("gone", |_| {});
    scene.await_voting();
    let leader = scene.leader();
    let follower = if leader == 1 { 2 } else { 1 };
    let mut client = scene.client();
    assert_eq!(write_on(&mut client, 0, 50), 50);
    let rig = scene.site.rig().expect("namespaces");
    let node = rig.nodes()[usize::from(follower) - 1].clone();
    let mut ip = node.command("ip");
    let status = ip.args(["link", "delete", INTERFACE]).status();
    assert!(status.expect("iproute2 is there").success());
    assert_eq!(write_on(&mut client, 50, 50), 100);
    let log = || scene.cluster.log(follower);
    let began = Instant::now();
    while !log().contains("somebody detached the acceptor") {
        assert!(began.elapsed() < SOON, "{}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(scene.cluster.process(follower).is_some());
}

/// Seconds of hand-overs, where a run is to be longer than the usual one.
const HAND_OVER_SECONDS: &str = "NEARWIRE_HAND_OVER_SECONDS";

#[test]
fn hand_overs_under_load_on_a_bad_network_lose_nothing() {
    let seconds = std::env::var(HAND_OVER_SECONDS).ok();
    let seconds = seconds.map_or(8, |text| text.parse().expect("a number of seconds"));
    let scene = Scene::on_bad_network("over", 0.01, |options| {
        options.resp = true;
        options.settings = common::CALM.into();
    });
    scene.await_voting();
    scene.leader();
    let fronts = scene.cluster.replicas().iter();
    let fronts: Vec<_> = fronts.map(|one| one.resp.expect("it is served")).collect();
    let members = scene.cluster.members();
    let shape = Shape {
        resp: 6,
        udp: 2,
        keys: 24,
    };
    let recording = scene.inside(|| Recording::start(shape, &fronts, &members));
    let mut gaps = Gaps::new(&recording);
    let mut engine = "software";
    for _ in 0..seconds {
        scene.wish(engine == "xdp");
        gaps.watch(&recording, Duration::from_secs(1));
        scene.await_engines(engine);
        engine = if engine == "xdp" { "software" } else { "xdp" };
    }
    scene.wish(true);
    scene.await_voting();
    gaps.watch(&recording, Duration::from_millis(500));
    let answered = recording.answered();
    let history = recording.stop();
    let mut answered_in_kernel = 0;
    for node in NODES {
        let report = scene.report(node).expect("it runs");
        let hand_overs = report["offload"]["hand_overs"].as_u64();
        assert!(hand_overs > Some(seconds), "{report:#}");
        assert!(report["voted"].as_u64() > Some(0), "{report:#}");
        answered_in_kernel += report["offload"]["counters"]["answered"]
            .as_u64()
            .unwrap_or(0);
    }
    println!(
        "{seconds} hand-overs, {answered} operations, {answered_in_kernel} answers in the kernel, \
         longest gap {:?}",
        gaps.longest
    );
    assert!(answered_in_kernel > 0);
    if let Err(violation) = history::check(&history) {
        panic!("{violation}");
    }
}

/// The longest time without an answer to anybody.
struct Gaps {
    answered: u64,
    since: Instant,
    longest: Duration,
}

impl Gaps {
    fn new(recording: &Recording) -> Self {
        Self {
            answered: recording.answered(),
            since: Instant::now(),
            longest: Duration::ZERO,
        }
    }

    fn watch(&mut self, recording: &Recording, time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time {
            let answered = recording.answered();
            if answered != self.answered {
                self.longest = self.longest.max(self.since.elapsed());
                self.since = Instant::now();
                self.answered = answered;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
