//! Where the replicas of a demonstration run: in namespaces with acceptors in the kernel, or on
//! loopback.

use crate::local_cluster::LocalCluster;
use crate::xdp::OnHostDeath;
use crate::xdp_site::Ports;
use bench::site::{Site, Where};
use std::net::{IpAddr, Ipv4Addr};

/// How many replicas there are.
const REPLICAS: usize = 3;

/// What steps the replicas' regions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Engine {
    /// XDP if this process may, else software; the output says which, and why.
    #[default]
    Auto,
    /// Programs on the interfaces of namespaces, in native mode. Needs root.
    Xdp,
    /// The replicas' processes, on loopback.
    Software,
}

/// The place of a run. What was made for it goes with it.
pub(super) struct Ground {
    /// Namespaces, if there are any.
    namespaces: Option<(Site, Ports)>,
}

impl Ground {
    pub(super) const fn loopback() -> Self {
        Self { namespaces: None }
    }

    /// Namespaces whose interfaces take programs, or why there are none.
    pub(super) fn namespaces() -> Result<Self, String> {
        let prefix = format!("demo{}", std::process::id());
        let site = Site::open_as(&prefix, Where::Netns, REPLICAS, None)
            .map_err(|error| error.to_string())?;
        let rig = site.rig().ok_or("no namespaces were made")?;
        let ports = Ports::open(rig).map_err(|error| error.to_string())?;
        Ok(Self {
            namespaces: Some((site, ports)),
        })
    }

    pub(super) const fn has_xdp(&self) -> bool {
        self.namespaces.is_some()
    }

    /// What becomes of a replica's program when the replica is killed, if it has one.
    pub(super) fn on_host_death(&self) -> Option<OnHostDeath> {
        self.has_xdp().then_some(OnHostDeath::KeepVoting)
    }

    /// Where the replicas listen.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        match &self.namespaces {
            None => vec![Ipv4Addr::LOCALHOST.into(); REPLICAS],
            Some((site, _)) => site.replicas().iter().map(|place| place.ip).collect(),
        }
    }

    /// Where the client is.
    pub(super) fn client(&self) -> IpAddr {
        match &self.namespaces {
            None => Ipv4Addr::LOCALHOST.into(),
            Some((site, _)) => site.client().ip,
        }
    }

    /// Starts a replica where it belongs.
    pub(super) fn start(
        &self,
        cluster: &mut LocalCluster,
        node: u16,
    ) -> Result<(), crate::local_cluster::Error> {
        match &self.namespaces {
            None => cluster.start(node),
            Some((site, _)) => cluster.start_at(site, node),
        }
    }

    /// Does `work` where the client is.
    pub(super) fn stand<T: Send>(
        &self,
        work: impl FnOnce() -> T + Send,
    ) -> Result<T, datapath::Error> {
        match self
            .namespaces
            .as_ref()
            .and_then(|(site, _)| site.client().node.as_ref())
        {
            None => Ok(work()),
            Some(node) => node.run(work),
        }
    }
}
