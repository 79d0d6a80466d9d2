//! Replicas whose acceptors vote in the kernel, as processes in namespaces.

use bench::site::{Site, Where};
use nearwire::client::{Client, Options};
use nearwire::kv::{Call, Op};
use nearwire::local_cluster::{self, LocalCluster};
use nearwire::xdp::OnHostDeath;
use nearwire::xdp_site::Ports;
use serde_json::Value;
use std::time::{Duration, Instant};

/// The node that the others are ranked behind.
const NODES: std::ops::RangeInclusive<u16> = 1..=3;
/// Whatever takes longer does not happen.
const SOON: Duration = Duration::from_secs(20);

struct Scene {
    cluster: LocalCluster,
    site: Site,
    _ports: Ports,
    _directory: tempfile::TempDir,
}

impl Scene {
    fn new(name: &str, settings: impl FnOnce(&mut local_cluster::Options)) -> Self {
        let prefix = format!("{name}{}", std::process::id());
        let site = Site::open_as(&prefix, Where::Netns, NODES.count(), None)
            .unwrap_or_else(|error| panic!("{error}"));
        let rig = site.rig().expect("namespaces");
        let ports = Ports::open(rig).unwrap_or_else(|error| panic!("{error}"));
        let directory = tempfile::tempdir().expect("a directory");
        let program = env!("CARGO_BIN_EXE_nearwire");
        let mut options = local_cluster::Options::new(program, directory.path());
        options.addresses = site.replicas().iter().map(|place| place.ip).collect();
        options.xdp = Some(OnHostDeath::KeepVoting);
        settings(&mut options);
        let mut scene = Self {
            cluster: LocalCluster::prepare(options).expect("configurations"),
            site,
            _ports: ports,
            _directory: directory,
        };
        for node in NODES {
            scene.start(node);
        }
        scene
    }

    fn start(&mut self, node: u16) {
        let command = self.cluster.command(node).expect("a log");
        let child = self.site.spawn(usize::from(node) - 1, command);
        self.cluster.adopt(node, child.expect("nearwire starts"));
    }

    /// Runs `work` where the client is.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let client = self.site.client().node.as_ref().expect("a namespace");
        client.run(work).expect("the namespace is there")
    }

    fn report(&self, node: u16) -> Option<Value> {
        self.inside(|| self.cluster.inspect(node, Duration::from_secs(1)))
    }

    fn leader(&mut self) -> u16 {
        let began = Instant::now();
        loop {
            for node in NODES {
                let report = self.report(node).unwrap_or_default();
                if report["role"] == "leader" {
                    return node;
                }
            }
            assert!(began.elapsed() < SOON, "nobody leads: {}", self.logs());
        }
    }

    fn logs(&self) -> String {
        NODES.map(|node| self.cluster.log(node)).collect()
    }

    /// Waits until a replica reports this.
    fn await_report(&self, node: u16, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let report = self.report(node).unwrap_or_default();
            if is_so(&report) {
                return report;
            }
            assert!(
                began.elapsed() < SOON,
                "node {node} is not {what}: {report:#}\n{}",
                self.logs()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn await_voting(&self) {
        for node in NODES {
            self.await_report(node, "voting in XDP", |report| report["engine"] == "xdp");
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
