//! Three replica processes under load, and what their clients were told.

#![allow(dead_code, reason = "each test file uses its part")]

mod redis;

pub(crate) use redis::{Redis, Reply};

use nearwire::config::Durability;
use nearwire::local_cluster::{LocalCluster, Options};
use nearwire::{data_directory, kill_point, rehearsal};
use nix::sys::signal::Signal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// For whatever ought to happen soon. Machines that run these tests have much else to do.
pub(crate) const SOON: Duration = Duration::from_secs(60);
pub(crate) const ALL: [u16; 3] = [1, 2, 3];
/// Commands that a writer sends before it reads the replies.
const PIPELINE: usize = 8;
/// Keys asked for before the replies are read.
const READ_PIPELINE: usize = 256;

pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {SOON:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Three replicas with a Redis port each.
pub(crate) struct Scene {
    pub(crate) cluster: LocalCluster,
    environment: Vec<(String, String)>,
    boot: u32,
    _scratch: tempfile::TempDir,
}

impl Scene {
    pub(crate) fn new(durability: Durability, window_slots: u64, rehearse: &str) -> Self {
        Self::with_settings(durability, window_slots, rehearse, "", 0)
    }

    /// Three replicas with these lines in each configuration, and more that are to join them.
    pub(crate) fn with_settings(
        durability: Durability,
        window_slots: u64,
        rehearse: &str,
        settings: &str,
        joining: usize,
    ) -> Self {
        let region = format!("window_slots = {window_slots}");
        Self::with_region(durability, &region, rehearse, settings, joining)
    }

    /// The same with these lines about the region.
    pub(crate) fn with_region(
        durability: Durability,
        region: &str,
        rehearse: &str,
        settings: &str,
        joining: usize,
    ) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let mut options = Options::new(env!("CARGO_BIN_EXE_nearwire"), scratch.path());
        options.durability = durability;
        options.resp = true;
        options.joining = joining;
        options
            .addresses
            .resize(ALL.len() + joining, options.addresses[0]);
        // A debug build on a busy machine may sleep for a while.
        options.settings =
            format!("{settings}\n[region]\n{region}\n\n[timing]\nelection_ms = 300\n");
        let cluster = LocalCluster::prepare(options).unwrap();
        let environment = vec![(rehearsal::VARIABLE.to_owned(), rehearse.to_owned())];
        Self {
            cluster,
            environment,
            boot: 1,
            _scratch: scratch,
        }
    }

    /// The replica's command in this scene's world, to be changed and given to
    /// [`LocalCluster::adopt`].
    pub(crate) fn command(&self, node: u16) -> Command {
        let mut command = self.cluster.command(node).unwrap();
        command
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env(
                data_directory::BOOT_ID_VARIABLE,
                format!("boot-{}", self.boot),
            )
            .env_remove(kill_point::VARIABLE);
        command
    }

    pub(crate) fn start(&mut self, node: u16) {
        let child = self.command(node).spawn().unwrap();
        self.cluster.adopt(node, child);
    }

    pub(crate) fn start_with(&mut self, node: u16, variable: &str, value: &str) {
        let child = self.command(node).env(variable, value).spawn().unwrap();
        self.cluster.adopt(node, child);
    }

    pub(crate) fn start_all(&mut self) {
        ALL.into_iter().for_each(|node| self.start(node));
    }

    /// SIGKILL to all at the same moment.
    pub(crate) fn kill_all(&mut self) {
        ALL.into_iter()
            .for_each(|node| self.cluster.signal(node, Signal::SIGKILL));
        ALL.into_iter().for_each(|node| self.cluster.kill(node));
    }

    /// What is left when the machines of all replicas lose power: not their memory, so the regions
    /// go, and the kernel's next boot has another name. The journal's disk forgets by itself.
    pub(crate) fn lose_power(&mut self) {
        self.kill_all();
        ALL.into_iter().for_each(|node| self.forget_memory(node));
        self.boot += 1;
    }

    pub(crate) fn forget_memory(&self, node: u16) {
        std::fs::remove_file(self.cluster.data_directory(node).join("region")).unwrap();
    }

    pub(crate) fn next_boot(&mut self) {
        self.boot += 1;
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let replicas = self.cluster.replicas().iter();
        replicas.map(|replica| replica.resp.unwrap()).collect()
    }

    pub(crate) fn leader(&mut self) -> u16 {
        self.cluster
            .leader(SOON)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn report(&self, node: u16) -> serde_json::Value {
        wait_for("a report", || {
            assert!(
                !self.has_ended(node),
                "node {node}: {}",
                self.cluster.log(node)
            );
            self.cluster.inspect(node, Duration::from_secs(1))
        })
    }

    /// Whether the process of a replica is over, and only waited for.
    fn has_ended(&self, node: u16) -> bool {
        let Some(pid) = self.cluster.process(node) else {
            return true;
        };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat
            .rsplit_once(") ")
            .map(|(_, rest)| rest.starts_with('Z'));
        state.unwrap_or(true)
    }

    pub(crate) fn number(&self, node: u16, field: &str) -> u64 {
        self.report(node)[field].as_u64().unwrap()
    }

    /// Waits for a replica that is expected to end by itself.
    pub(crate) fn wait_for_end(&mut self, node: u16) -> ExitStatus {
        wait_for("the end of a replica", || {
            self.has_ended(node).then_some(())
        });
        self.cluster.wait(node).unwrap()
    }

    /// Waits until `node` has applied what is decided now.
    pub(crate) fn wait_until_caught_up(&mut self, node: u16) {
        let leader = self.leader();
        let decided = self.number(leader, "decided");
        wait_for("a replica that catches up", || {
            (self.number(node, "applied") >= decided).then_some(())
        });
    }

    pub(crate) fn journal(&self, node: u16) -> PathBuf {
        self.cluster.data_directory(node).join("journal")
    }

    /// The whole of a replica's log.
    pub(crate) fn log(&self, node: u16) -> String {
        let path = self.cluster.directory().join(format!("node-{node}.log"));
        std::fs::read_to_string(path).unwrap()
    }
}

pub(crate) fn bytes_in(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory).unwrap();
    // A segment may be renamed while we look.
    files
        .filter_map(|file| file.ok()?.metadata().ok())
        .map(|file| file.len())
        .sum()
}

/// What one writer sent, and what it was told.
#[derive(Clone, Debug, Default)]
struct Told {
    /// Keys that were acknowledged.
    keys: Vec<u64>,
    /// The next key.
    next: u64,
    /// Increments of this writer's counter that were sent, and the highest reply.
    increments: u64,
    counted: u64,
}

/// What all writers were told. Outlives the load that wrote it.
#[derive(Clone, Default)]
pub(crate) struct Ledger {
    writers: Arc<Mutex<Vec<Told>>>,
    acknowledged: Arc<AtomicU64>,
}

fn value(writer: usize, number: u64) -> String {
    format!(
        "{writer}/{number}/{:0>64x}",
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    )
}

impl Ledger {
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    fn told(&self, writer: usize) -> Told {
        let mut writers = self.writers.lock().unwrap();
        if writers.len() <= writer {
            writers.resize_with(writer + 1, Told::default);
        }
        writers[writer].clone()
    }

    fn note(&self, writer: usize, told: Told) {
        self.writers.lock().unwrap()[writer] = told;
    }

    /// Reads everything back and names what is not as it was acknowledged.
    pub(crate) fn missing(&self, addresses: &[SocketAddr]) -> Vec<String> {
        let writers = self.writers.lock().unwrap().clone();
        let mut reader = Reader::new(addresses);
        let mut missing = Vec::new();
        for (writer, told) in writers.iter().enumerate() {
            for keys in told.keys.chunks(READ_PIPELINE) {
                let commands: Vec<_> = keys
                    .iter()
                    .map(|key| vec!["GET".into(), format!("k{writer}-{key}")])
                    .collect();
                for (key, found) in keys.iter().zip(reader.ask(&commands)) {
                    let expected = Some(value(writer, *key));
                    if found != expected {
                        missing.push(format!("k{writer}-{key}: {found:?}"));
                    }
                }
            }
            let found = reader.ask(&[vec!["GET".into(), format!("c{writer}")]]);
            let count = found[0]
                .as_ref()
                .map_or(0, |count| count.parse::<u64>().unwrap());
            if count < told.counted || count > told.increments {
                let Told {
                    counted,
                    increments,
                    ..
                } = told;
                missing.push(format!("c{writer}: {count}, not {counted} to {increments}"));
            }
        }
        missing
    }

    #[track_caller]
    pub(crate) fn assert_kept(&self, scene: &Scene) {
        let missing = self.missing(&scene.addresses());
        let all = self.acknowledged();
        assert!(
            missing.is_empty(),
            "{} of {all} acknowledged writes are lost, such as {:?}",
            missing.len(),
            &missing[..missing.len().min(5)]
        );
    }
}

/// Asks whoever answers, until it is answered.
struct Reader<'a> {
    addresses: &'a [SocketAddr],
    turn: usize,
    redis: Option<Redis>,
}

impl<'a> Reader<'a> {
    fn new(addresses: &'a [SocketAddr]) -> Self {
        Self {
            addresses,
            turn: 0,
            redis: None,
        }
    }

    fn ask(&mut self, commands: &[Vec<String>]) -> Vec<Option<String>> {
        wait_for("an answer to every read", || {
            let answers = self.try_ask(commands);
            if answers.is_none() {
                self.redis = None;
                self.turn += 1;
            }
            answers
        })
    }

    fn try_ask(&mut self, commands: &[Vec<String>]) -> Option<Vec<Option<String>>> {
        if self.redis.is_none() {
            let address = self.addresses[self.turn % self.addresses.len()];
            self.redis = Some(Redis::connect(address).ok()?);
        }
        let redis = self.redis.as_mut()?;
        redis.send(commands).ok()?;
        let mut found = Vec::new();
        for _ in commands {
            match redis.reply().ok()? {
                Reply::Text(text) => found.push(Some(text)),
                Reply::Nothing => found.push(None),
                Reply::Number(_) | Reply::Error(_) => return None,
            }
        }
        Some(found)
    }
}

/// Writers that go on, whatever happens to the cluster, until they are stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start(scene: &Scene, ledger: &Ledger, writers: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..writers)
            .map(|writer| {
                let addresses = scene.addresses();
                let (stop, ledger) = (Arc::clone(&stop), ledger.clone());
                thread::spawn(move || write(writer, &addresses, &stop, &ledger))
            })
            .collect();
        Self { stop, threads }
    }

    /// Ends the load; what was under way is not counted as acknowledged.
    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

/// Runs the load until so many more writes are acknowledged.
pub(crate) fn load(scene: &Scene, ledger: &Ledger, writers: usize, writes: u64) {
    let load = Load::start(scene, ledger, writers);
    wait_for_writes(ledger, writes);
    load.stop();
}

pub(crate) fn wait_for_writes(ledger: &Ledger, writes: u64) {
    let enough = ledger.acknowledged() + writes;
    wait_for("acknowledged writes", || {
        (ledger.acknowledged() >= enough).then_some(())
    });
}

fn write(writer: usize, addresses: &[SocketAddr], stop: &AtomicBool, ledger: &Ledger) {
    let mut told = ledger.told(writer);
    let mut turn = writer;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let Ok(mut redis) = Redis::connect(addresses[turn % addresses.len()]) else {
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            if write_some(writer, &mut told, &mut redis, ledger).is_err() {
                break;
            }
            ledger.note(writer, told.clone());
        }
        ledger.note(writer, told.clone());
    }
}

fn write_some(
    writer: usize,
    told: &mut Told,
    redis: &mut Redis,
    ledger: &Ledger,
) -> std::io::Result<()> {
    let first = told.next;
    told.next += PIPELINE as u64;
    told.increments += 1;
    let mut commands: Vec<Vec<String>> = (first..told.next)
        .map(|key| vec!["SET".into(), format!("k{writer}-{key}"), value(writer, key)])
        .collect();
    commands.push(vec!["INCR".into(), format!("c{writer}")]);
    redis.send(&commands)?;
    for key in first..told.next {
        match redis.reply()? {
            Reply::Text(text) => {
                assert_eq!(text, "OK");
                told.keys.push(key);
                ledger.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            // Nobody leads for the moment: it may or may not have been executed.
            Reply::Error(_) => thread::sleep(Duration::from_millis(1)),
            other => panic!("SET: {other:?}"),
        }
    }
    if let Reply::Number(count) = redis.reply()? {
        told.counted = told.counted.max(count);
    }
    Ok(())
}
