//! Where a run takes place: which address, namespace and CPU each party has.

use crate::Error;
use datapath::netns::{self, Neighbours, Node, Rig};
use datapath::{Placement, Udp, Wait};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

/// What lies between the parties.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Where {
    /// The loopback interface: no privilege, and no Ethernet either.
    Loopback,
    /// A namespace for each party, joined by veth and a bridge in one more. Needs root.
    Netns,
}

impl Where {
    /// The name in rows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Netns => "netns",
        }
    }
}

/// One party's address, namespace and CPU.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its namespace; `None` is the caller's.
    pub node: Option<Node>,
    /// The address to listen on.
    pub ip: IpAddr,
    /// Its CPU and priority.
    pub placement: Placement,
}

impl Place {
    /// Moves the calling thread here for good: namespace, CPU, priority. Threads and processes that
    /// it starts inherit all three.
    ///
    /// # Errors
    /// The namespace is gone, or the placement is refused.
    pub fn enter(&self) -> Result<(), datapath::Error> {
        if let Some(node) = &self.node {
            node.enter()?;
        }
        self.placement.apply()
    }

    /// A socket here on any port. The calling thread must have entered.
    ///
    /// # Errors
    /// There is no port left.
    pub fn bind(&self, wait: Wait) -> Result<Udp, datapath::Error> {
        Udp::bind(SocketAddr::new(self.ip, 0), wait)
    }
}

type Order = (Command, SyncSender<io::Result<Child>>);

/// The places of a run, until dropped.
pub struct Site {
    replicas: Vec<Place>,
    client: Place,
    /// One thread in each replica's place that starts processes. It lives as long as the site,
    /// because a process that asks to die with its parent dies with the *thread* that started it.
    starters: Vec<SyncSender<Order>>,
    rig: Option<Rig>,
}

impl Site {
    /// Places of a benchmark for `replicas` replicas and a client: a CPU for each as far as there are
    /// enough, and the SCHED_FIFO `priority`, if one is given, for all.
    ///
    /// # Errors
    /// The namespaces cannot be made, or a placement is refused.
    pub fn open(at: Where, replicas: usize, priority: Option<u8>) -> Result<Self, Error> {
        // Two benchmarks at once would measure each other, so that one name is enough.
        Self::open_as("bench", at, replicas, priority)
    }

    /// As [`Site::open`], with a prefix of its own for the namespaces.
    ///
    /// # Errors
    /// As for [`Site::open`].
    pub fn open_as(
        prefix: &str,
        at: Where,
        replicas: usize,
        priority: Option<u8>,
    ) -> Result<Self, Error> {
        let names: Vec<String> = (1..=replicas).map(|number| format!("r{number}")).collect();
        let names: Vec<&str> = names
            .iter()
            .map(String::as_str)
            .chain(["echo", "client"])
            .collect();
        let rig = match at {
            Where::Loopback => None,
            Where::Netns => Some(Rig::new(prefix, &names, Neighbours::Static)?),
        };
        let cpus = allowed_cpus();
        let parties = (0..replicas)
            .map(|index| (index, names[index]))
            .chain([(replicas, "client")]);
        let mut places: Vec<Place> = parties
            .map(|(index, name)| {
                let node = rig.as_ref().map(|rig| rig.node(name).clone());
                Place {
                    ip: node
                        .as_ref()
                        .map_or(Ipv4Addr::LOCALHOST, |node| node.ipv4)
                        .into(),
                    node,
                    placement: Placement {
                        cpu: cpus.get(index % cpus.len().max(1)).copied(),
                        fifo_priority: priority,
                    },
                }
            })
            .collect();
        let client = places
            .pop()
            .expect("the client is the last of at least one");
        let starters = places.iter().map(starter).collect::<Result<_, _>>()?;
        Ok(Self {
            replicas: places,
            client,
            starters,
            rig,
        })
    }

    /// The replicas' places.
    pub fn replicas(&self) -> &[Place] {
        &self.replicas
    }

    /// The namespaces, where there are any.
    pub const fn rig(&self) -> Option<&Rig> {
        self.rig.as_ref()
    }

    /// Where a program on the interface may send back what comes, where there are namespaces.
    pub fn echo(&self) -> Option<&Node> {
        self.rig.as_ref().map(|rig| rig.node("echo"))
    }

    /// The client's place.
    pub fn client(&self) -> &Place {
        &self.client
    }

    /// Starts a process in the place of replica `index`: in its namespace, on its CPU, with its
    /// priority. A thread of it that spins must lower itself below that priority, or nobody else on
    /// that CPU runs again, this site included. A process that asks to die with its parent lives as
    /// long as the site.
    ///
    /// # Errors
    /// The system's answer.
    ///
    /// # Panics
    /// If there is no such replica.
    pub fn spawn(&self, index: usize, command: Command) -> io::Result<Child> {
        let (answer, child) = sync_channel(1);
        let gone = || io::Error::other("the thread that starts processes has ended");
        self.starters[index]
            .send((command, answer))
            .map_err(|_| gone())?;
        child.recv().map_err(|_| gone())?
    }
}

fn starter(place: &Place) -> Result<SyncSender<Order>, Error> {
    let place = place.clone();
    let (orders, taken): (_, Receiver<Order>) = sync_channel(1);
    let (ready, entered) = sync_channel(1);
    let work = move || {
        let result = place.enter().and_then(|()| match place.node {
            // Like the namespace it lives as long as the site, and what is pinned there with it.
            Some(_) => netns::private_bpffs(),
            None => Ok(()),
        });
        let failed = result.is_err();
        let _ = ready.send(result);
        if failed {
            return;
        }
        for (mut command, answer) in taken {
            let _ = answer.send(command.spawn());
        }
    };
    let thread = thread::Builder::new().name("starter".into()).spawn(work);
    thread.map_err(|source| Error::Thread {
        name: "starter",
        source,
    })?;
    entered
        .recv()
        .map_err(|_| Error::Ended { name: "starter" })??;
    Ok(orders)
}

/// The CPUs that this process may use.
pub fn allowed_cpus() -> Vec<usize> {
    let Ok(allowed) = sched_getaffinity(Pid::from_raw(0)) else {
        return Vec::new();
    };
    (0..CpuSet::count())
        .filter(|&cpu| allowed.is_set(cpu).unwrap_or(false))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn a_process_starts_on_its_replicas_cpu() {
        let site = Site::open(Where::Loopback, 3, None).expect("loopback needs nothing");
        for (index, place) in site.replicas().iter().enumerate() {
            let mut command = Command::new("grep");
            command
                .args(["Cpus_allowed_list", "/proc/self/status"])
                .stdout(Stdio::piped());
            let child = site.spawn(index, command).expect("grep starts");
            let said = child.wait_with_output().expect("grep ends").stdout;
            let cpu = place.placement.cpu.expect("a machine has CPUs").to_string();
            assert_eq!(
                String::from_utf8_lossy(&said).split_whitespace().last(),
                Some(&*cpu)
            );
        }
    }

    #[test]
    fn a_program_that_does_not_exist_is_an_error() {
        let site = Site::open(Where::Loopback, 1, None).expect("loopback needs nothing");
        let error = site
            .spawn(0, Command::new("/does/not/exist"))
            .expect_err("no such program");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
