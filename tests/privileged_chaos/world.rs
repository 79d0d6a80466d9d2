//! One cluster of processes under load, on a network and disks of its own.

use crate::common::{CALM, PATIENCE, Reply, Resp};
use crate::network::{Switch, Weather};
use crate::recording::{self, Recording, Shape};
use bench::site::{Site, Where};
use consensus::random::Random;
use consensus::simulation::Mutation;
use nearwire::config::Durability;
use nearwire::data_directory::BOOT_ID_VARIABLE;
use nearwire::history::{Action, Operation};
use nearwire::local_cluster::{LocalCluster, Options};
use nearwire::rehearsal;
use nearwire::xdp::OnHostDeath;
use nearwire::xdp_site::Ports;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub(crate) const NODES: [u16; 3] = [1, 2, 3];
/// The clients' number on the network: behind the replicas and the place of echoes.
pub(crate) const CLIENTS: u16 = 5;
/// Clients that contend, and for how many keys.
pub(crate) const SHAPE: Shape = Shape {
    resp: 5,
    udp: 3,
    keys: 32,
};
/// Who reads back at the end.
const READER: u64 = 1000;
/// Names the deliberate defect of a process's core.
const MUTATION: &str = "NEARWIRE_MUTATION";
/// Room on the disk of a node.
const DISK: &str = "size=96m";
/// So that journals are cut and snapshots taken every few seconds.
const REHEARSAL: &str = "segment_bytes=1048576,snapshot_slots=2000";
/// Slots that a region keeps.
const WINDOW_SLOTS: u64 = 1024;

/// What goes on is not as it should be: what was waited for, or what a process did.
pub(crate) type Trouble = String;

/// How a cluster is set up.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) durability: Durability,
    /// Whether leaders read by a lease, instead of by a barrier.
    pub(crate) leases: bool,
    /// Whether the acceptor of each node is in the kernel.
    pub(crate) in_kernel: [bool; 3],
    /// A deliberate defect of every process.
    pub(crate) defect: Option<Defect>,
}

/// What is wrong with the processes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Defect {
    /// In the core.
    Core(Mutation),
    /// A node that lost its memory goes on as if it had not.
    LostMemoryCounted,
}

impl Defect {
    const LOST_MEMORY: &str = "lost-memory-counted";

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        if name == Self::LOST_MEMORY {
            return Some(Self::LostMemoryCounted);
        }
        Mutation::from_name(name).map(Self::Core)
    }
}

impl Setting {
    pub(crate) fn describe(&self) -> String {
        let name = |in_kernel: &bool| if *in_kernel { "xdp" } else { "software" };
        let names: Vec<&str> = self.in_kernel.iter().map(name).collect();
        let durability = self.durability.name();
        format!("{durability}, {}, {}", self.reads(), names.join(" + "))
    }

    const fn reads(&self) -> &'static str {
        if self.leases { "lease" } else { "barrier" }
    }
}

/// A fault that was injected.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    pub(crate) fault: &'static str,
    /// Whom it befell, and what came of it.
    pub(crate) details: String,
    pub(crate) from_ns: u64,
    pub(crate) to_ns: u64,
}

pub(crate) struct World {
    // Dropped in this order: processes first, then the disks they are on.
    pub(crate) cluster: LocalCluster,
    recording: Option<Recording>,
    pub(crate) switch: Switch,
    /// What the weather is when no fault changes it.
    climate: Weather,
    pub(crate) site: Site,
    _ports: Ports,
    _disks: Disks,
    pub(crate) setting: Setting,
    pub(crate) random: Random,
    /// The node whose memory is gone, until it is put back.
    pub(crate) lost: Option<u16>,
    boots: [u32; 3],
    /// What each node rehearses.
    rehearsals: [String; 3],
    /// What the fault that is under way did.
    pub(crate) details: String,
}

impl World {
    /// Starts a cluster in `directory`, and its load. The calling thread becomes its clients' for
    /// good.
    pub(crate) fn start(name: &str, directory: &Path, setting: Setting, seed: u64) -> Self {
        let defect = setting.defect;
        let disks = Disks::mount(directory);
        let prefix = format!("chaos{name}{}", std::process::id());
        let site = Site::open_as(&prefix, Where::Netns, NODES.len(), None)
            .unwrap_or_else(|error| panic!("{error}"));
        let rig = site.rig().expect("namespaces");
        let ports = Ports::open(rig).unwrap_or_else(|error| panic!("{error}"));
        let switch = Switch::over(&site, seed);
        let mut options = Options::new(env!("CARGO_BIN_EXE_nearwire"), directory);
        options.addresses = site.replicas().iter().map(|place| place.ip).collect();
        options.durability = setting.durability;
        options.resp = true;
        let reads = setting.reads();
        options.settings =
            format!("reads = \"{reads}\"\n\n[region]\nwindow_slots = {WINDOW_SLOTS}\n{CALM}");
        options.xdp = Some(OnHostDeath::KeepVoting);
        if let Some(Defect::Core(mutation)) = setting.defect {
            options.environment = vec![(MUTATION.to_owned(), mutation.name().to_owned())];
        }
        let cluster = LocalCluster::prepare(options).expect("configurations");
        site.client().enter().expect("the namespace is there");
        let mut world = Self {
            cluster,
            recording: None,
            switch,
            climate: Weather::default(),
            site,
            _ports: ports,
            _disks: disks,
            setting,
            random: Random::new(seed),
            lost: None,
            boots: [1; 3],
            rehearsals: NODES.map(|_| rehearsal(defect, "")),
            details: String::new(),
        };
        for node in NODES {
            if !world.is_in_kernel(node) {
                world.take_out_of_kernel(node);
            }
            world.start_node(node);
        }
        world
    }

    /// Begins the load, once there is a leader and every acceptor where it belongs.
    pub(crate) fn load(&mut self) -> Result<(), Trouble> {
        self.wait_for("a leader", Self::leader)?;
        for node in NODES {
            let engine = if self.is_in_kernel(node) {
                "xdp"
            } else {
                "software"
            };
            let what = format!("node {node} voting by {engine}");
            self.wait_for(&what, |world| {
                (world.report(node)?["engine"] == engine).then_some(())
            })?;
        }
        let fronts: Vec<_> = self
            .cluster
            .replicas()
            .iter()
            .filter_map(|one| one.resp)
            .collect();
        self.recording = Some(Recording::start(SHAPE, &fronts, &self.cluster.members()));
        self.advance(200)
    }

    /// Ends the load and reads every key back.
    pub(crate) fn finish(&mut self) -> Result<Vec<Operation>, Trouble> {
        self.live_with(Weather::default());
        self.settle()?;
        let recording = self.recording.as_ref().expect("the load began");
        // The clock goes on when the load is over, from the same origin.
        let (origin, origin_ns) = (Instant::now(), recording.now_ns());
        let now_ns = || origin_ns + origin.elapsed().as_nanos() as u64;
        let recording = self.recording.take().expect("the load began");
        let mut history = recording.stop();
        for number in 0..SHAPE.keys {
            let key = recording::key(number);
            let read = self.wait_for("a key read back", |world| {
                let leader = world.leader()?;
                let front = world.cluster.replicas()[usize::from(leader) - 1].resp?;
                let invoked_ns = now_ns();
                match Resp::connect(front).ok()?.call(&["GET", &key]) {
                    Ok(Reply::Bulk(value)) => Some((invoked_ns, now_ns(), value)),
                    _ => None,
                }
            })?;
            let (invoked_ns, returned_ns, value) = read;
            history.push(Operation {
                client: READER,
                key: key.into_bytes(),
                invoked_ns,
                returned_ns: Some(returned_ns),
                action: Action::Read { value },
            });
        }
        Ok(history)
    }

    /// What was recorded, without more ado: the world is over.
    pub(crate) fn abandon(&mut self) -> Vec<Operation> {
        self.recording.take().map_or_else(Vec::new, Recording::stop)
    }

    /// The network is as the climate has it.
    pub(crate) fn clear_up(&self) {
        self.switch
            .change(|weather| *weather = self.climate.clone());
    }

    /// From here on this is the weather behind all faults.
    pub(crate) fn live_with(&mut self, climate: Weather) {
        self.climate = climate;
        self.clear_up();
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.recording.as_ref().map_or(0, Recording::now_ns)
    }

    pub(crate) fn answered(&self) -> u64 {
        self.recording.as_ref().map_or(0, Recording::answered)
    }

    pub(crate) fn is_in_kernel(&self, node: u16) -> bool {
        self.setting.in_kernel[usize::from(node) - 1]
    }

    /// Nodes that have not lost their memory.
    pub(crate) fn members(&self) -> Vec<u16> {
        let members = NODES.into_iter();
        members.filter(|node| Some(*node) != self.lost).collect()
    }

    /// Any of them.
    pub(crate) fn any(&mut self) -> u16 {
        let members = self.members();
        members[self.random.below(members.len() as u64) as usize]
    }

    /// The leader as often as any other.
    pub(crate) fn target(&mut self) -> u16 {
        match self.leader() {
            Some(leader) if self.random.below(2) == 0 => leader,
            _ => self.any(),
        }
    }

    pub(crate) fn others(&self, node: u16) -> Vec<u16> {
        NODES.into_iter().filter(|other| *other != node).collect()
    }

    /// Between `least` and `most` milliseconds pass.
    pub(crate) fn dwell(&mut self, least_ms: u64, most_ms: u64) {
        let time = least_ms + self.random.below(most_ms - least_ms);
        std::thread::sleep(Duration::from_millis(time));
    }

    /// Says more of the fault that is under way.
    pub(crate) fn note(&mut self, text: impl AsRef<str>) {
        if !self.details.is_empty() {
            self.details += ", ";
        }
        self.details += text.as_ref();
    }

    pub(crate) fn report(&self, node: u16) -> Option<serde_json::Value> {
        self.cluster.inspect(node, Duration::from_millis(200))
    }

    /// A node that says that it leads.
    pub(crate) fn leader(&self) -> Option<u16> {
        NODES.into_iter().find(|node| {
            let report = self.report(*node);
            report.is_some_and(|report| report["role"] == "leader")
        })
    }

    pub(crate) fn start_node(&mut self, node: u16) {
        self.start_with(node, &[]);
    }

    /// Starts a node that knows nothing, to be made a member.
    pub(crate) fn start_stranger(&mut self, node: u16) {
        self.start_with(node, &[("NEARWIRE_JOIN", "true")]);
    }

    fn start_with(&mut self, node: u16, variables: &[(&str, &str)]) {
        let index = usize::from(node) - 1;
        let mut command = self.cluster.command(node).expect("a log file");
        command
            .envs(variables.iter().copied())
            .env(rehearsal::VARIABLE, &self.rehearsals[index])
            .env(BOOT_ID_VARIABLE, format!("boot-{}", self.boots[index]));
        let child = self.site.spawn(index, command);
        self.cluster.adopt(node, child.expect("the program starts"));
    }

    /// The next start of the node is after its machine's.
    pub(crate) fn next_boot(&mut self, node: u16) {
        self.boots[usize::from(node) - 1] += 1;
    }

    /// From its next start on the node's disk is a slow one, or not.
    pub(crate) fn rehearse(&mut self, node: u16, more: &str) {
        self.rehearsals[usize::from(node) - 1] = rehearsal(self.setting.defect, more);
    }

    pub(crate) fn signal(&self, node: u16, signal: Signal) {
        self.cluster.signal(node, signal);
    }

    /// Whether a node's process ended by itself.
    pub(crate) fn has_ended(&self, node: u16) -> bool {
        let Some(pid) = self.cluster.process(node) else {
            return true;
        };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
        state.is_none_or(|rest| rest.starts_with('Z'))
    }

    /// Waits for a node that is expected to end by itself.
    pub(crate) fn end_of(&mut self, node: u16) -> Result<ExitStatus, Trouble> {
        let what = format!("node {node} ending by itself");
        self.wait_for(&what, |world| world.has_ended(node).then_some(()))?;
        let status = self.cluster.wait(node);
        status.ok_or_else(|| format!("node {node} was not there"))
    }

    pub(crate) fn data(&self, node: u16) -> PathBuf {
        self.cluster.data_directory(node)
    }

    fn config(&self, node: u16) -> PathBuf {
        self.cluster.directory().join(format!("node-{node}.toml"))
    }

    fn take_out_of_kernel(&self, node: u16) {
        let path = self.config(node);
        let text = std::fs::read_to_string(&path).expect("configuration");
        let (head, rest) = text.split_once("\n[offload]").expect("it was asked for");
        let (_, peers) = rest.split_once("\n[[peer]]").expect("there are peers");
        std::fs::write(&path, format!("{head}\n[[peer]]{peers}")).expect("configuration");
    }

    /// Runs a program where a node is: in its network namespace, with its bpffs.
    pub(crate) fn run_at(
        &self,
        node: u16,
        program: &str,
        words: &[&str],
    ) -> Result<String, Trouble> {
        self.begin_at(node, program, words)?.end()
    }

    /// The same, without waiting for its end.
    fn begin_at(&self, node: u16, program: &str, words: &[&str]) -> Result<Errand, Trouble> {
        let mut command = Command::new(program);
        command
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let what = format!("{program} {words:?} at node {node}");
        let child = self.site.spawn(usize::from(node) - 1, command);
        let child = child.map_err(|error| format!("run {what}: {error}"))?;
        Ok(Errand { what, child })
    }

    /// Begins `nearwire member WORDS` at a node.
    pub(crate) fn change_members(&self, at: u16, words: &[&str]) -> Result<Errand, Trouble> {
        let config = self.config(at);
        let options = [
            "--config",
            config.to_str().expect("a plain path"),
            "--timeout-ms",
            "60000",
        ];
        let words: Vec<&str> = ["member"]
            .iter()
            .chain(words)
            .chain(&options)
            .copied()
            .collect();
        self.begin_at(at, env!("CARGO_BIN_EXE_nearwire"), &words)
    }

    /// `nearwire offload WORD` for a node.
    pub(crate) fn offload(&self, node: u16, word: &str) -> Result<String, Trouble> {
        let config = self.config(node);
        let words = [
            "offload",
            word,
            "--config",
            config.to_str().expect("a plain path"),
            "--timeout-ms",
            "30000",
        ];
        self.run_at(node, env!("CARGO_BIN_EXE_nearwire"), &words)
    }

    /// Waits until `look` finds something.
    pub(crate) fn wait_for<T>(
        &self,
        what: &str,
        mut look: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T, Trouble> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look(self) {
                return Ok(found);
            }
            if Instant::now() > deadline {
                return Err(format!("{what}: not within {PATIENCE:?}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until so many more operations were answered.
    pub(crate) fn advance(&self, by: u64) -> Result<(), Trouble> {
        let target = self.answered() + by;
        self.wait_for("progress of the load", |world| {
            (world.answered() >= target).then_some(())
        })
    }

    /// Waits until every member has applied what any of them has by now.
    pub(crate) fn settle(&self) -> Result<(), Trouble> {
        for node in self.members() {
            if self.has_ended(node) {
                return Err(format!("node {node} has ended by itself"));
            }
        }
        let applied = |world: &Self, node| world.report(node)?["applied"].as_u64();
        let target = self.wait_for("reports of all nodes", |world| {
            let all: Option<Vec<u64>> = world
                .members()
                .into_iter()
                .map(|node| applied(world, node))
                .collect();
            all?.into_iter().max()
        })?;
        for node in self.members() {
            self.wait_for(&format!("node {node} catching up"), |world| {
                (applied(world, node)? >= target).then_some(())
            })?;
        }
        self.wait_for("a leader", Self::leader)?;
        self.advance(200)
    }

    /// What became of each node.
    pub(crate) fn describe(&self) -> String {
        let describe = |node: u16| {
            let fate = match (self.cluster.process(node), self.has_ended(node)) {
                (None, _) => "is not there",
                (Some(_), true) => "has ended by itself",
                (Some(_), false) => "runs",
            };
            let report = self.report(node).unwrap_or_default();
            let data = self.data(node);
            let files = Command::new("ls").arg("-lR").arg(&data).output();
            let files = files.map_or_else(
                |error| error.to_string(),
                |output| String::from_utf8_lossy(&output.stdout).into_owned(),
            );
            let log = self.cluster.log(node);
            format!("node {node} {fate}: {report}\n{log}\n{files}\n")
        };
        NODES.map(describe).concat()
    }
}

/// A program that runs beside what else happens.
pub(crate) struct Errand {
    what: String,
    child: Child,
}

impl Errand {
    /// Waits for its end, which must be a good one. Returns what it said.
    pub(crate) fn end(self) -> Result<String, Trouble> {
        let what = &self.what;
        let ended = self.child.wait_with_output();
        let ended = ended.map_err(|error| format!("wait for {what}: {error}"))?;
        let said = String::from_utf8_lossy(&ended.stdout).into_owned()
            + &String::from_utf8_lossy(&ended.stderr);
        match ended.status.success() {
            true => Ok(said),
            false => Err(format!("{what} ended with {}: {said}", ended.status)),
        }
    }
}

/// What a node rehearses always, and `more`.
fn rehearsal(defect: Option<Defect>, more: &str) -> String {
    let defect = match defect {
        Some(Defect::LostMemoryCounted) => ",counts_lost_memory",
        Some(Defect::Core(_)) | None => "",
    };
    format!("{REHEARSAL}{defect}{more}")
}

/// A small file system for each node, which only this thread and what it starts can see.
struct Disks(Vec<PathBuf>);

impl Disks {
    fn mount(directory: &Path) -> Self {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace needs root");
        let none = None::<&str>;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).expect("mounts of one's own");
        let mount_one = |node: u16| {
            let path = directory.join(format!("data-{node}"));
            std::fs::create_dir_all(&path).expect("a directory");
            let kind = Some("tmpfs");
            mount(kind, &path, kind, MsFlags::empty(), Some(DISK)).expect("a tmpfs");
            path
        };
        Self(NODES.map(mount_one).to_vec())
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
    }
}
