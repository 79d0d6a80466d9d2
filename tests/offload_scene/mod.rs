//! Nodes with acceptors in the kernel, and `nearwire offload` where each of them is.
#![allow(dead_code, reason = "each test file takes what it needs")]

use bench::site::{Site, Where};
use nearwire::local_cluster::{self, LocalCluster};
use nearwire::xdp::OnHostDeath;
use nearwire::xdp_site::Ports;
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const NODES: std::ops::RangeInclusive<u16> = 1..=3;
/// Whatever takes longer does not happen.
const SOON: Duration = Duration::from_secs(20);

pub(crate) struct Scene {
    pub(crate) cluster: LocalCluster,
    pub(crate) site: Site,
    _ports: Ports,
    _directory: tempfile::TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Scene {
    pub(crate) fn new(name: &str, settings: impl FnOnce(&mut local_cluster::Options)) -> Self {
        Self::on_bad_network(name, 0.0, settings)
    }

    /// Of a network that loses this part of all frames.
    pub(crate) fn on_bad_network(
        name: &str,
        loss: f64,
        settings: impl FnOnce(&mut local_cluster::Options),
    ) -> Self {
        let prefix = format!("{name}{}", std::process::id());
        let site = Site::open_as(&prefix, Where::Netns, NODES.count(), None)
            .unwrap_or_else(|error| panic!("{error}"));
        let rig = site.rig().expect("namespaces");
        let ports = Ports::open_lossy(rig, loss).unwrap_or_else(|error| panic!("{error}"));
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

    pub(crate) fn start(&mut self, node: u16) {
        let started = self.cluster.start_at(&self.site, node);
        started.unwrap_or_else(|error| panic!("{error}"));
    }

    pub(crate) fn process(&self, node: u16) -> u32 {
        self.cluster.process(node).expect("it runs")
    }

    /// The configuration of a node.
    pub(crate) fn config(&self, node: u16) -> String {
        let file = format!("node-{node}.toml");
        let path = self.cluster.directory().join(file);
        path.to_str().expect("a plain path").to_owned()
    }

    /// Runs `nearwire` where a node is: in its network namespace, with its bpffs.
    pub(crate) fn nearwire(&self, node: u16, arguments: &[&str]) -> Ended {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nearwire"));
        command.args(arguments);
        self.run(node, command)
    }

    /// Runs any program where a node is.
    pub(crate) fn run(&self, node: u16, mut command: Command) -> Ended {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = self.site.spawn(usize::from(node) - 1, command);
        let output = child.expect("it starts").wait_with_output();
        let output = output.expect("it ends");
        Ended {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// `nearwire offload WORDS --config …` for a node.
    pub(crate) fn offload(&self, node: u16, words: &[&str]) -> Ended {
        let config = self.config(node);
        let rest = ["--config", &config, "--timeout-ms", "30000"];
        self.nearwire(node, &[&["offload"][..], words, &rest].concat())
    }

    /// The same, which must succeed, as JSON.
    pub(crate) fn json(&self, node: u16, words: &[&str]) -> Value {
        // A node that is down is not waited for as long as one that runs.
        let patience = if words[0] == "status" {
            "2000"
        } else {
            "30000"
        };
        let config = self.config(node);
        let rest = [
            "--config",
            &config,
            "--timeout-ms",
            patience,
            "--output",
            "json",
        ];
        let ended = self.nearwire(node, &[&["offload"][..], words, &rest].concat());
        assert_eq!(ended.code, Some(0), "{words:?}: {ended:?}\n{}", self.logs());
        serde_json::from_str(&ended.out).expect("JSON")
    }

    /// Runs `work` where the client is.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let client = self.site.client().node.as_ref().expect("a namespace");
        client.run(work).expect("the namespace is there")
    }

    pub(crate) fn report(&self, node: u16) -> Option<Value> {
        self.inside(|| self.cluster.inspect(node, Duration::from_secs(1)))
    }

    /// The node that leads.
    pub(crate) fn leader(&self) -> u16 {
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

    pub(crate) fn logs(&self) -> String {
        NODES.map(|node| self.cluster.log(node)).collect()
    }

    /// Waits until a node reports this.
    pub(crate) fn await_report(
        &self,
        node: u16,
        what: &str,
        is_so: impl Fn(&Value) -> bool,
    ) -> Value {
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

    pub(crate) fn await_engines(&self, engine: &str) {
        for node in NODES {
            self.await_report(node, engine, |report| report["engine"] == engine);
        }
    }

    pub(crate) fn await_voting(&self) {
        self.await_engines("xdp");
    }
}
