//! What the tests of whole processes share: a cluster, clients that move on when a node fails, and
//! a ledger of what was acknowledged.
#![allow(
    dead_code,
    unused_imports,
    reason = "each test file takes what it needs"
)]
#![allow(unreachable_pub, reason = "a module of several crates")]

mod ledger;
mod puppet;
mod relay;
mod resp;

pub use ledger::{Ledger, Load};
pub use puppet::{Puppet, REPLICA, SPEAKER};
pub use relay::{Passed, Relay};
pub use resp::{Reply, Resp, Roaming, request};

use consensus::auth::Key;
use nearwire::inspect::Inspector;
use nearwire::local_cluster::{LocalCluster, Options};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::fs::Permissions;
use std::io::Write;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take before a test calls it stuck. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// A machine that runs other tests delays heartbeats: elections are not what these settings test.
pub const CALM: &str = "\n[timing]\nelection_ms = 300\n";

/// Starts a program.
#[track_caller]
pub fn spawn(command: &mut Command) -> Child {
    command.spawn().expect("the program can be run")
}

/// Says on the uncaptured standard error that a test was skipped, and why.
pub fn skip(name: &str, missing: &str) {
    let _ = writeln!(
        std::io::stderr(),
        "nearwire-test-skipped: {name}: {missing}"
    );
}

/// Waits until `done` gives something.
///
/// # Panics
/// If that takes longer than [`PATIENCE`].
#[track_caller]
pub fn eventually<T>(what: &str, done: impl FnMut() -> Option<T>) -> T {
    eventually_or_say(what, done, String::new)
}

#[track_caller]
fn eventually_or_say<T>(
    what: &str,
    mut done: impl FnMut() -> Option<T>,
    say: impl Fn() -> String,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(result) = done() {
            return result;
        }
        let in_time = Instant::now() < deadline;
        assert!(in_time, "not within {PATIENCE:?}: {what}{}", say());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Replica processes with a directory of their own; both are gone when this is dropped.
pub struct Cluster {
    local: LocalCluster,
    key: Option<Key>,
    _directory: Option<TempDir>,
}

impl Deref for Cluster {
    type Target = LocalCluster;

    fn deref(&self) -> &LocalCluster {
        &self.local
    }
}

impl DerefMut for Cluster {
    fn deref_mut(&mut self) -> &mut LocalCluster {
        &mut self.local
    }
}

impl Cluster {
    fn prepare_in(path: &Path, directory: Option<TempDir>, settings: &str) -> Self {
        let mut options = Options::new(env!("CARGO_BIN_EXE_nearwire"), path);
        options.resp = true;
        options.settings = settings.to_owned();
        Self {
            local: LocalCluster::prepare(options).expect("free ports"),
            key: None,
            _directory: directory,
        }
    }

    /// Three replicas, configured but not started. `settings` begins with top-level keys.
    pub fn prepare(settings: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory for temporary files");
        let path = directory.path().to_owned();
        Self::prepare_in(&path, Some(directory), settings)
    }

    /// Three replicas over what others left in a directory, which stays.
    pub fn prepare_over(path: &Path) -> Self {
        Self::prepare_in(path, None, CALM)
    }

    /// Three replicas with a leader.
    #[track_caller]
    pub fn start() -> Self {
        let mut cluster = Self::prepare(CALM);
        cluster.start_all();
        cluster.lead();
        cluster
    }

    /// Three replicas whose packets carry tags, configured but not started.
    pub fn prepare_with_key(digits: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory for temporary files");
        let path = directory.path().to_owned();
        let key = path.join("key");
        std::fs::write(&key, format!("{digits}\n")).expect("key file");
        let private = Permissions::from_mode(0o600);
        std::fs::set_permissions(&key, private).expect("own file");
        let settings = format!("key_file = {:?}\n{CALM}", key.display().to_string());
        let number = u128::from_str_radix(digits, 16).expect("hexadecimal digits");
        Self {
            key: Some(Key::from_bytes(number.to_be_bytes())),
            ..Self::prepare_in(&path, Some(directory), &settings)
        }
    }

    /// The cluster's key, if it has one.
    pub fn key(&self) -> Option<Key> {
        self.key
    }

    /// A replica's configuration file.
    pub fn config(&self, node: u16) -> std::path::PathBuf {
        self.directory().join(format!("node-{node}.toml"))
    }

    /// Changes a replica's configuration.
    pub fn edit(&self, node: u16, change: impl FnOnce(String) -> String) {
        let path = self.config(node);
        let text = std::fs::read_to_string(&path).expect("configuration");
        std::fs::write(&path, change(text)).expect("configuration");
    }

    /// What a replica reports, if it answers.
    pub fn report(&self, node: u16) -> Option<serde_json::Value> {
        let address = [self.replicas()[usize::from(node) - 1].address];
        let mut inspector = Inspector::new(&address, self.key.map(Into::into)).ok()?;
        let wait = Duration::from_millis(500);
        let mut reports = inspector.inspect(&address, wait, |_| false).ok()?;
        Some(serde_json::Value::Object(reports.pop()??.0))
    }

    /// A number in a replica's report.
    pub fn count(&self, node: u16, field: &str) -> Option<u64> {
        self.report(node)?.get(field)?.as_u64()
    }

    /// Waits for a leader among the replicas that `eligible` names, none of which may end by itself.
    #[track_caller]
    pub fn leader_among(&self, eligible: &[u16]) -> u16 {
        let leader = self.eventually("a leader", || {
            if eligible.iter().any(|node| self.ending(*node).is_some()) {
                return Some(None);
            }
            let leads = |node: &u16| {
                let report = self.report(*node);
                report.is_some_and(|report| report["role"] == "leader")
            };
            eligible.iter().copied().find(leads).map(Some)
        });
        let Some(leader) = leader else {
            panic!("a replica ended by itself{}", self.describe());
        };
        leader
    }

    /// What became of each replica, what it reports, and its log.
    fn describe(&self) -> String {
        let mut text = String::new();
        for node in 1..=3 {
            let fate = match (self.process(node), self.ending(node)) {
                (None, _) => "is not there".into(),
                (Some(_), None) => "runs".into(),
                (Some(_), Some(ending)) => format!("has ended: {ending:?}"),
            };
            let report = match self.report(node) {
                None => "no report".into(),
                Some(report) => report.to_string(),
            };
            let log = self.directory().join(format!("node-{node}.log"));
            let log = std::fs::read_to_string(log).unwrap_or_default();
            text += &format!("\nreplica {node} {fate}; {report}; its log:\n{log}");
        }
        text
    }

    /// Waits for a leader among all replicas.
    #[track_caller]
    pub fn lead(&self) -> u16 {
        self.leader_among(&[1, 2, 3])
    }

    /// The replicas that are not `node`.
    pub fn others(&self, node: u16) -> Vec<u16> {
        (1..=3).filter(|other| *other != node).collect()
    }

    /// Where Redis clients of `nodes` are served.
    pub fn fronts(&self, nodes: &[u16]) -> Vec<SocketAddr> {
        nodes
            .iter()
            .filter_map(|node| self.replicas()[usize::from(*node) - 1].resp)
            .collect()
    }

    /// A connection to the Redis port of `node`.
    #[track_caller]
    pub fn connect(&self, node: u16) -> Resp {
        let front = self.fronts(&[node])[0];
        eventually("a connection", || Resp::connect(front).ok())
    }

    /// As [`eventually`], and says what became of the replicas.
    #[track_caller]
    pub fn eventually<T>(&self, what: &str, done: impl FnMut() -> Option<T>) -> T {
        eventually_or_say(what, done, || self.describe())
    }

    /// Waits until every one of `nodes` has applied what any of them has by now.
    #[track_caller]
    pub fn settle(&self, nodes: &[u16]) {
        let target = self.eventually("reports", || {
            let applied: Option<Vec<u64>> = nodes
                .iter()
                .map(|node| self.count(*node, "applied"))
                .collect();
            applied?.into_iter().max()
        });
        for node in nodes {
            self.eventually("a replica that catches up", || {
                self.count(*node, "applied")
                    .filter(|applied| *applied >= target)
            });
        }
    }

    /// Starts a replica.
    #[track_caller]
    pub fn start_node(&mut self, node: u16) {
        let child = spawn(&mut self.command(node).expect("a log file"));
        self.adopt(node, child);
    }

    /// Starts every replica.
    pub fn start_all(&mut self) {
        (1..=3).for_each(|node| self.start_node(node));
    }

    /// Starts a replica that dies when it passes `point` for the `pass`-th time.
    pub fn start_to_die(&mut self, node: u16, point: &str, pass: u64) {
        let mut command = self.command(node).expect("a log file");
        command.env(nearwire::kill_point::VARIABLE, format!("{point}:{pass}"));
        let child = spawn(&mut command);
        self.adopt(node, child);
    }

    /// Waits for the end of a replica; `None` if it still runs after [`PATIENCE`].
    pub fn end_of(&mut self, node: u16) -> Option<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.has_ended(node) {
                return self.wait(node);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        None
    }

    /// Whether a replica's process has come to its end, without waiting.
    pub fn has_ended(&self, node: u16) -> bool {
        self.process(node).is_none() || self.ending(node).is_some()
    }

    /// How a replica's process came to its end, if it did and nobody has waited for it.
    fn ending(&self, node: u16) -> Option<WaitStatus> {
        let process = Pid::from_raw(self.process(node)? as i32);
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let status = waitid(Id::Pid(process), look).expect("a child that nobody has waited for");
        (status != WaitStatus::StillAlive).then_some(status)
    }
}

/// Whether a process was ended by SIGKILL.
pub fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(9)
}
