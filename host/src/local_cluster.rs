//! Replicas as child processes on this machine: for the demo, the benchmarks and the tests.

mod port;

pub use port::Port;

use crate::config::{Durability, Wait};
use crate::inspect::Inspector;
use crate::run::DIE_WITH_PARENT;
use crate::xdp::OnHostDeath;
use bench::site::Site;
use consensus::NodeId;
use datapath::netns::INTERFACE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How the replicas are set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program: `nearwire` itself.
    pub program: PathBuf,
    /// Holds the configurations, logs and data directories.
    pub directory: PathBuf,
    /// What survives what.
    pub durability: Durability,
    /// How workers wait.
    pub wait: Wait,
    /// Where each replica listens; its number is how many replicas there are.
    pub addresses: Vec<IpAddr>,
    /// How many of them, the last ones, form no cluster with the others but join it.
    pub joining: usize,
    /// Whether Redis clients are served.
    pub resp: bool,
    /// More lines for the top of each configuration.
    pub settings: String,
    /// More lines for the worker's part of each configuration.
    pub worker: String,
    /// What becomes of each replica's XDP program with its process; no program if absent.
    pub xdp: Option<OnHostDeath>,
    /// More environment for each replica.
    pub environment: Vec<(String, String)>,
}

impl Options {
    /// Three replicas on loopback.
    pub fn new(program: impl Into<PathBuf>, directory: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            directory: directory.into(),
            durability: Durability::Volatile,
            wait: Wait::Blocking,
            addresses: vec![Ipv4Addr::LOCALHOST.into(); 3],
            joining: 0,
            resp: false,
            settings: String::new(),
            worker: String::new(),
            xdp: None,
            environment: Vec::new(),
        }
    }
}

/// A cluster could not be started or does not get anywhere.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refuses.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A replica ended by itself.
    #[error("replica {node} ended with {status}; its log says: {log}")]
    Ended {
        /// Which.
        node: u16,
        /// How.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// A replica's acceptor is not stepped by what was asked for.
    #[error("replica {node} does not vote by {engine}: {why}; the end of its log:\n{log}")]
    Engine {
        /// Which.
        node: u16,
        /// What should step it.
        engine: &'static str,
        /// What the replica says of that.
        why: String,
        /// What else it says.
        log: String,
    },
    /// Nobody leads.
    #[error("no leader within {0:?}")]
    NoLeader(Duration),
}

fn refused(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System {
        doing: doing.into(),
        source,
    }
}

/// One replica.
#[derive(Debug)]
pub struct Replica {
    /// Its number.
    pub node: u16,
    /// Where its datagrams go.
    pub address: SocketAddr,
    /// Where Redis clients are served.
    pub resp: Option<SocketAddr>,
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

/// Replicas on this machine. Those that still run are killed when this is dropped.
#[derive(Debug)]
pub struct LocalCluster {
    options: Options,
    replicas: Vec<Replica>,
    _ports: Vec<Port>,
}

impl LocalCluster {
    /// Claims ports and writes the configurations; starts nothing.
    ///
    /// # Errors
    /// The system refuses.
    pub fn prepare(options: Options) -> Result<Self, Error> {
        std::fs::create_dir_all(&options.directory)
            .map_err(refused(format!("make {}", options.directory.display())))?;
        let mut ports = Vec::new();
        let mut replicas = Vec::new();
        for (index, ip) in options.addresses.iter().enumerate() {
            let node = index as u16 + 1;
            let (address, resp) = if ip.is_loopback() {
                let mut claim = || {
                    let port = Port::claim().map_err(refused("claim a port"))?;
                    let address = SocketAddr::new(*ip, port.number());
                    ports.push(port);
                    Ok(address)
                };
                (claim()?, claim()?)
            } else {
                // A namespace of its own: every port is free.
                (
                    (*ip, consensus::wire::DEFAULT_PORT).into(),
                    (*ip, 6379).into(),
                )
            };
            replicas.push(Replica {
                node,
                address,
                resp: options.resp.then_some(resp),
                config: options.directory.join(format!("node-{node}.toml")),
                log: options.directory.join(format!("node-{node}.log")),
                child: None,
            });
        }
        let cluster = Self {
            options,
            replicas,
            _ports: ports,
        };
        for replica in &cluster.replicas {
            std::fs::write(&replica.config, cluster.config_text(replica))
                .map_err(refused(format!("write {}", replica.config.display())))?;
        }
        Ok(cluster)
    }

    fn config_text(&self, replica: &Replica) -> String {
        let durability = self.options.durability.name();
        let wait = match self.options.wait {
            Wait::Blocking => "blocking",
            Wait::Polling => "polling",
        };
        let data = self.data_directory(replica.node);
        let mut text = format!(
            "cluster = \"local\"\nnode = {}\ndata_directory = {:?}\n\
             durability = \"{durability}\"\n",
            replica.node,
            data.display().to_string(),
        );
        if let Some(resp) = replica.resp {
            text.push_str(&format!("resp = \"{resp}\"\n"));
        }
        if !replica.address.ip().is_loopback() {
            // In a namespace of its own nobody else is near; tags are what `settings` ask for.
            text.push_str("insecure = true\n");
        }
        let former = self.replicas.len() - self.options.joining;
        let joins = usize::from(replica.node) > former;
        if joins {
            text.push_str("join = true\n");
        }
        text.push_str(&self.options.settings);
        text.push_str(&format!("\n[worker]\nwait = \"{wait}\"\n"));
        text.push_str(&self.options.worker);
        if let Some(on_host_death) = self.options.xdp {
            text.push_str(&format!(
                "\n[offload]\nengine = \"xdp\"\ninterface = \"{INTERFACE}\"\n\
                 on_host_death = \"{}\"\n",
                on_host_death.name()
            ));
        }
        let own = joins.then_some(replica);
        for peer in self.replicas.iter().take(former).chain(own) {
            let (node, address) = (peer.node, peer.address);
            text.push_str(&format!(
                "\n[[peer]]\nnode = {node}\naddress = \"{address}\"\n"
            ));
            if let Some(resp) = peer.resp {
                text.push_str(&format!("resp = \"{resp}\"\n"));
            }
        }
        text
    }

    /// Where a replica keeps its state.
    pub fn data_directory(&self, node: u16) -> PathBuf {
        self.options.directory.join(format!("data-{node}"))
    }

    /// The replicas, in the order of their numbers.
    pub fn replicas(&self) -> &[Replica] {
        &self.replicas
    }

    /// The members as a client knows them.
    pub fn members(&self) -> Vec<(NodeId, SocketAddr)> {
        self.replicas
            .iter()
            .map(|replica| (NodeId(replica.node), replica.address))
            .collect()
    }

    /// The command that runs a replica; its output goes to its log.
    ///
    /// The replica is killed when the *thread* that spawns it ends (`PR_SET_PDEATHSIG`): that
    /// thread must outlive the cluster.
    ///
    /// # Errors
    /// The log cannot be opened.
    pub fn command(&self, node: u16) -> Result<Command, Error> {
        let replica = self.replica(node);
        let mut options = std::fs::OpenOptions::new();
        let log = options
            .create(true)
            .append(true)
            .open(&replica.log)
            .map_err(refused(format!("open {}", replica.log.display())))?;
        let mut command = Command::new(&self.options.program);
        command.arg("run").arg("--config").arg(&replica.config);
        // What the user set for a node of their own must not reach these.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"NEARWIRE_") {
                command.env_remove(name);
            }
        }
        command
            .env(DIE_WITH_PARENT, std::process::id().to_string())
            .envs(
                self.options
                    .environment
                    .iter()
                    .map(|(name, value)| (name, value)),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // A Ctrl-C is for whoever started the cluster; it ends the replicas in its own order.
            .process_group(0);
        Ok(command)
    }

    /// Starts a replica as a child process, from a thread that outlives the cluster; see
    /// [`LocalCluster::command`].
    ///
    /// # Errors
    /// The system refuses.
    pub fn start(&mut self, node: u16) -> Result<(), Error> {
        let mut command = self.command(node)?;
        let child = command
            .spawn()
            .map_err(refused(format!("start replica {node}")))?;
        self.adopt(node, child);
        Ok(())
    }

    /// Starts a replica in its place of `site`, which it does not outlive: the first replica is in
    /// the first.
    ///
    /// # Errors
    /// The system refuses.
    pub fn start_at(&mut self, site: &Site, node: u16) -> Result<(), Error> {
        let command = self.command(node)?;
        let child = site
            .spawn(usize::from(node) - 1, command)
            .map_err(refused(format!("start replica {node}")))?;
        self.adopt(node, child);
        Ok(())
    }

    /// Starts every replica.
    ///
    /// # Errors
    /// The system refuses.
    pub fn start_all(&mut self) -> Result<(), Error> {
        (1..=self.replicas.len() as u16).try_for_each(|node| self.start(node))
    }

    /// Takes charge of a replica that was started from [`LocalCluster::command`].
    pub fn adopt(&mut self, node: u16, child: Child) {
        self.replica_mut(node).child = Some(child);
    }

    fn replica(&self, node: u16) -> &Replica {
        &self.replicas[usize::from(node) - 1]
    }

    fn replica_mut(&mut self, node: u16) -> &mut Replica {
        &mut self.replicas[usize::from(node) - 1]
    }

    /// The process of a replica, if it runs.
    pub fn process(&self, node: u16) -> Option<u32> {
        self.replica(node).child.as_ref().map(Child::id)
    }

    /// Sends a signal to a replica.
    pub fn signal(&self, node: u16, signal: Signal) {
        if let Some(child) = &self.replica(node).child {
            let _ = kill(Pid::from_raw(child.id() as i32), signal);
        }
    }

    /// Kills a replica with SIGKILL and waits for its end.
    pub fn kill(&mut self, node: u16) {
        self.signal(node, Signal::SIGKILL);
        if let Some(mut child) = self.replica_mut(node).child.take() {
            let _ = child.wait();
        }
    }

    /// Stops a replica with SIGTERM and waits for its end.
    pub fn stop(&mut self, node: u16) -> Option<ExitStatus> {
        self.signal(node, Signal::SIGTERM);
        self.wait(node)
    }

    /// Waits until a replica ends by itself.
    pub fn wait(&mut self, node: u16) -> Option<ExitStatus> {
        self.replica_mut(node).child.take()?.wait().ok()
    }

    /// The end of a replica's log.
    pub fn log(&self, node: u16) -> String {
        let text = std::fs::read_to_string(&self.replica(node).log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(8).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// What a replica reports, if it answers within `timeout`.
    pub fn inspect(&self, node: u16, timeout: Duration) -> Option<serde_json::Value> {
        let address = [self.replica(node).address];
        let mut inspector = Inspector::new(&address, None).ok()?;
        let mut reports = inspector.inspect(&address, timeout, |_| false).ok()?;
        Some(serde_json::Value::Object(reports.pop()??.0))
    }

    /// Finds replicas that ended without being told to.
    ///
    /// # Errors
    /// One did.
    pub fn check(&mut self) -> Result<(), Error> {
        for index in 0..self.replicas.len() {
            let Replica {
                node,
                child: Some(child),
                ..
            } = &mut self.replicas[index]
            else {
                continue;
            };
            let node = *node;
            if let Ok(Some(status)) = child.try_wait() {
                return Err(Error::Ended {
                    node,
                    status,
                    log: self.log(node),
                });
            }
        }
        Ok(())
    }

    /// Waits for a leader that knows itself to be one.
    ///
    /// # Errors
    /// A replica ended, or nobody leads within `timeout`.
    pub fn leader(&mut self, timeout: Duration) -> Result<u16, Error> {
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline {
            self.check()?;
            for replica in &self.replicas {
                let node = replica.node;
                if replica.child.is_none() {
                    continue;
                }
                let report = self.inspect(node, Duration::from_millis(100));
                if report.is_some_and(|report| report["role"] == "leader") {
                    return Ok(node);
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(Error::NoLeader(timeout))
    }

    /// Waits until all acceptors are stepped by this engine.
    ///
    /// # Errors
    /// A replica ended, or one is stepped by another within `timeout`.
    pub fn await_engine(&mut self, engine: &'static str, timeout: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + timeout;
        for node in 1..=self.replicas.len() as u16 {
            loop {
                self.check()?;
                let report = self.inspect(node, Duration::from_millis(100));
                let report = report.unwrap_or_default();
                if report["engine"] == engine {
                    break;
                }
                if Instant::now() >= deadline {
                    let why = report["offload"]["error"].as_str();
                    return Err(Error::Engine {
                        node,
                        engine,
                        why: why.unwrap_or("it does not say why").to_owned(),
                        log: self.log(node),
                    });
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    /// The directory of configurations, logs and data.
    pub fn directory(&self) -> &Path {
        &self.options.directory
    }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        for node in 1..=self.replicas.len() as u16 {
            self.kill(node);
        }
    }
}
