//! A network of namespaces for tests and benchmarks: real sockets and XDP hooks, nobody else's
//! packets.
//!
//! Every node is a network namespace with one `eth0`, a veth whose other end hangs on a bridge in a
//! namespace of its own. Nothing is added to the machine's own network. Needs root and iproute2.

use crate::Error;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::geteuid;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

/// Where rigs record that they live, each by a lock that its process holds. A lock ends with its
/// process however that ends, and no process number can be mistaken for another's.
const RIGS: &str = "/run/nearwire";
/// Where iproute2 keeps namespaces.
const NAMESPACES: &str = "/run/netns";
/// Where a kernel with BPF has a directory for its file system, bpffs.
pub const BPFFS: &str = "/sys/fs/bpf";
/// Every node's interface.
pub const INTERFACE: &str = "eth0";
/// Most nodes of a rig: one byte of the address.
pub const MAX_NODES: usize = 250;
/// Longest name of a namespace, well within what file names allow.
const MAX_NAME_BYTES: usize = 64;

/// A bridge and the nodes on it, until dropped.
///
/// The namespaces are called `nw<prefix>-<node>`. What a killed run left behind is removed by the
/// next [`Rig::new`], whatever its prefix.
pub struct Rig {
    prefix: String,
    nodes: Vec<Node>,
    /// Held, and by that held locked, as long as the rig lives.
    _claim: File,
}

/// One namespace of a [`Rig`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// The name given to [`Rig::new`].
    pub name: String,
    /// The namespace's name, for `ip netns exec`.
    pub namespace: String,
    /// The address in 10.77.1.0/24.
    pub ipv4: Ipv4Addr,
    /// The address in fd4e:57::/64.
    pub ipv6: Ipv6Addr,
    /// The Ethernet address of [`INTERFACE`].
    pub mac: [u8; 6],
}

/// How nodes find each other's Ethernet addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Neighbours {
    /// By ARP and neighbour discovery, as usual.
    #[default]
    Discovered,
    /// From a table filled in advance: no packet but ours is on the wire.
    Static,
}

impl Rig {
    /// Makes a namespace for each of `names`, with addresses 10.77.1.1, 10.77.1.2, … and
    /// fd4e:57::1, fd4e:57::2, … in that order. `prefix` tells rigs apart that live at the same
    /// time.
    ///
    /// # Errors
    /// [`Error::Unsupported`] without root, iproute2 or kernel support; [`Error::InUse`] while
    /// another rig with this prefix lives.
    ///
    /// # Panics
    /// If there are more than [`MAX_NODES`] names or one is unfit for a file name.
    pub fn new(prefix: &str, names: &[&str], neighbours: Neighbours) -> Result<Self, Error> {
        assert!(
            names.len() <= MAX_NODES,
            "{} nodes on one bridge",
            names.len()
        );
        for name in names.iter().chain([&prefix]) {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            assert!(
                name.len() <= MAX_NAME_BYTES && name.bytes().all(plain),
                "the name {name:?} is not short and alphanumeric"
            );
        }
        require_root()?;
        let rigs = Registry::lock()?;
        rigs.sweep()?;
        let claim = rigs.claim(prefix)?;
        let nodes = (1..)
            .zip(names)
            .map(|(number, name)| Node::new(prefix, name, number));
        // From here on dropping the rig removes whatever part of it was made.
        let rig = Self {
            prefix: prefix.into(),
            nodes: nodes.collect(),
            _claim: claim,
        };
        let built = rig.build(neighbours);
        // A rig that is dropped takes the registry itself: after a failure it must be free.
        drop(rigs);
        built.map(|()| rig)
    }

    /// All nodes, in the order of the names.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node called `name`.
    ///
    /// # Panics
    /// If the rig has no such node.
    pub fn node(&self, name: &str) -> &Node {
        let node = self.nodes.iter().find(|node| node.name == name);
        node.unwrap_or_else(|| panic!("the rig {} has no node {name}", self.prefix))
    }

    /// The namespace of the bridge `br0`, whose ports are `p1`, `p2`, … in the order of the nodes.
    pub fn bridge(&self) -> String {
        namespace(&self.prefix, "-bridge")
    }

    /// Runs `work` on a thread inside the bridge's namespace, as [`Node::run`] does in a node's.
    ///
    /// # Errors
    /// The namespace is gone.
    pub fn run_at_bridge<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        run_in(&self.bridge(), work)
    }

    fn build(&self, neighbours: Neighbours) -> Result<(), Error> {
        let bridge = self.bridge();
        ip(&["netns", "add", &bridge], "")?;
        for node in &self.nodes {
            ip(&["netns", "add", &node.namespace], "")?;
        }
        // Snooping and spanning tree would add packets and delays of their own.
        let mut script = String::from(
            "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
             link set br0 up\n",
        );
        for (number, node) in (1..).zip(&self.nodes) {
            script += &format!(
                "link add p{number} type veth peer name {INTERFACE} address {} netns {}\n\
                 link set p{number} master br0 up\n",
                node.mac_text(),
                node.namespace
            );
        }
        ip(&["-n", &bridge, "-batch", "-"], &script)?;
        for node in &self.nodes {
            ip(
                &["-n", &node.namespace, "-batch", "-"],
                &self.script_for(node, neighbours),
            )?;
        }
        Ok(())
    }

    fn script_for(&self, node: &Node, neighbours: Neighbours) -> String {
        // Duplicate address detection would keep the IPv6 address unusable for a second.
        let mut script = format!(
            "link set lo up\n\
             link set {INTERFACE} up\n\
             address add {}/24 dev {INTERFACE}\n",
            node.ipv4
        );
        let ipv6 = Path::new("/proc/sys/net/ipv6").exists();
        if ipv6 {
            script += &format!("address add {}/64 dev {INTERFACE} nodad\n", node.ipv6);
        }
        if neighbours == Neighbours::Static {
            for other in self.nodes.iter().filter(|other| *other != node) {
                let rest = format!(
                    "lladdr {} dev {INTERFACE} nud permanent\n",
                    other.mac_text()
                );
                script += &format!("neighbour add {} {rest}", other.ipv4);
                if ipv6 {
                    script += &format!("neighbour add {} {rest}", other.ipv6);
                }
            }
        }
        script
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // The registry is locked so that no sweep sees half of the removal. What cannot be removed
        // now is left to the next rig.
        if let Ok(rigs) = Registry::lock() {
            let _ = rigs.remove(&self.prefix);
        }
    }
}

impl Node {
    fn new(prefix: &str, name: &str, number: u8) -> Self {
        Self {
            name: name.into(),
            namespace: namespace(prefix, &format!("-{name}")),
            ipv4: Ipv4Addr::new(10, 77, 1, number),
            ipv6: Ipv6Addr::new(0xfd4e, 0x57, 0, 0, 0, 0, 0, u16::from(number)),
            // Locally administered, unicast.
            mac: [0x02, 0x4e, 0x57, 0, 1, number],
        }
    }

    /// The Ethernet address as `02:4e:57:00:01:01`.
    pub fn mac_text(&self) -> String {
        let bytes: Vec<_> = self.mac.iter().map(|byte| format!("{byte:02x}")).collect();
        bytes.join(":")
    }

    /// The start of a command line that runs a program in this namespace.
    pub fn argv(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.namespace]
    }

    /// A command that runs `program` in this namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let [ip, arguments @ ..] = self.argv();
        let mut command = Command::new(ip);
        command.args(arguments).arg(program);
        command
    }

    /// Runs `work` on a thread inside this namespace and waits for it. Sockets made there stay
    /// there, wherever they are used later. Files, `/sys` among them, are those outside.
    ///
    /// # Errors
    /// The namespace is gone.
    ///
    /// # Panics
    /// If `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        run_in(&self.namespace, work)
    }

    /// Moves the calling thread into this namespace for good. Threads that it starts follow.
    ///
    /// # Errors
    /// The namespace is gone.
    pub fn enter(&self) -> Result<(), Error> {
        enter(&self.namespace)
    }
}

fn run_in<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    let done = thread::scope(|scope| scope.spawn(|| enter(namespace).map(|()| work())).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn enter(namespace: &str) -> Result<(), Error> {
    let failed =
        |error: io::Error| Error::system(format!("enter the network namespace {namespace}"), error);
    let file = File::open(Path::new(NAMESPACES).join(namespace)).map_err(failed)?;
    setns(&file, CloneFlags::CLONE_NEWNET).map_err(|error| failed(error.into()))
}

/// Gives the calling thread, and what it starts, a bpffs of its own at `/sys/fs/bpf`. It goes with
/// the last of them. Does nothing where the kernel has no bpffs.
///
/// # Errors
/// The system refuses.
pub fn private_bpffs() -> Result<(), Error> {
    if !Path::new(BPFFS).is_dir() {
        return Ok(());
    }
    let failed = |errno: nix::Error| {
        Error::system(format!("mount a bpffs at {BPFFS}"), io::Error::from(errno))
    };
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed)?;
    let none: Option<&str> = None;
    // Nothing that is mounted here is seen elsewhere.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).map_err(failed)?;
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none).map_err(failed)
}

fn namespace(prefix: &str, suffix: &str) -> String {
    format!("nw{prefix}{suffix}")
}

/// The directory of rigs. Its lock is held while rigs come and go, never longer.
struct Registry {
    _lock: File,
}

impl Registry {
    fn lock() -> Result<Self, Error> {
        let locked = fs::create_dir_all(RIGS)
            .and_then(|()| File::create(Path::new(RIGS).join("lock")))
            .and_then(|file| file.lock().map(|()| file));
        let lock = locked.map_err(|error| Error::system(format!("lock {RIGS}/lock"), error))?;
        Ok(Self { _lock: lock })
    }

    fn path(prefix: &str) -> PathBuf {
        Path::new(RIGS).join(format!("{prefix}.rig"))
    }

    /// Takes a prefix for as long as the file is open.
    fn claim(&self, prefix: &str) -> Result<File, Error> {
        let path = Self::path(prefix);
        let failed = |error| Error::system(format!("lock {}", path.display()), error);
        let file = File::create(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(Error::InUse {
                what: format!("the rig {prefix}"),
                remedy: "wait for its process, or choose another prefix",
            }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Removes the rigs whose processes are gone.
    fn sweep(&self) -> Result<(), Error> {
        for prefix in list(RIGS)?
            .iter()
            .filter_map(|file| file.strip_suffix(".rig"))
        {
            match self.claim(prefix) {
                Ok(_dead) => self.remove(prefix)?,
                Err(Error::InUse { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Removes a rig's namespaces, then its record: if this is killed, the next sweep goes on.
    fn remove(&self, prefix: &str) -> Result<(), Error> {
        let ours = namespace(prefix, "-");
        for found in list(NAMESPACES)?
            .iter()
            .filter(|name| name.starts_with(&ours))
        {
            ip(&["netns", "delete", found], "")?;
        }
        let path = Self::path(prefix);
        fs::remove_file(&path)
            .map_err(|error| Error::system(format!("remove {}", path.display()), error))
    }
}

/// The names in a directory; none if there is no such directory.
fn list(directory: &str) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::system(format!("list {directory}"), error)),
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.collect())
}

fn require_root() -> Result<(), Error> {
    if geteuid().is_root() {
        return Ok(());
    }
    Err(unsupported("root: run it with `sudo -E`"))
}

fn unsupported(needs: &str) -> Error {
    Error::Unsupported {
        feature: "a rig of network namespaces".into(),
        needs: needs.into(),
    }
}

/// Runs iproute2 with `script` on its standard input.
fn ip(arguments: &[&str], script: &str) -> Result<(), Error> {
    let spoken = || -> io::Result<_> {
        let mut child = Command::new("ip")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        // It may end before it has read everything; then its answer says why.
        let _ = child
            .stdin
            .take()
            .map(|mut stdin| stdin.write_all(script.as_bytes()));
        child.wait_with_output()
    };
    let output = spoken().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => unsupported("the tool `ip`: `apt-get install iproute2`"),
        _ => Error::system("run ip", error),
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
    if said.contains("Operation not permitted") {
        return Err(unsupported(
            "CAP_SYS_ADMIN and CAP_NET_ADMIN: in a container, `docker run --privileged`",
        ));
    }
    if said.contains("Unknown device type") {
        return Err(unsupported(
            "the kernel's veth and bridge: `modprobe -a veth bridge`",
        ));
    }
    Err(Error::Command {
        command: format!("ip {}", arguments.join(" ")),
        said,
    })
}
