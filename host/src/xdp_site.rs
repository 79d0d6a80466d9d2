//! Namespaces whose veth pairs carry what XDP programs send: for the demo, the benchmarks and the
//! tests.

use crate::xdp::{self, Bystander, Mode, XdpError};
use datapath::netns::{INTERFACE, Node, Rig};

/// The bridge's ports, made fit for native XDP at their other ends, until dropped.
#[derive(Debug)]
pub struct Ports {
    _bystanders: Vec<Bystander>,
}

/// The ports of a rig cannot be made fit.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    /// This build has no program.
    #[error("this build embeds no XDP object: build it where `cargo xtask ebpf` works")]
    NoObject,
    /// The namespace of the bridge.
    #[error(transparent)]
    Rig(#[from] datapath::Error),
    /// The kernel.
    #[error(transparent)]
    Xdp(#[from] XdpError),
}

impl Ports {
    /// Attaches a program that passes everything to every port of the bridge: natively, what
    /// XDP_TX sends into a veth is lost if the other end has no program (Linux 6.18).
    ///
    /// # Errors
    /// The kernel refuses, or there is no program.
    pub fn open(rig: &Rig) -> Result<Self, PortsError> {
        Self::open_lossy(rig, 0.0)
    }

    /// As [`Ports::open`], on a network that loses this part of all frames on their way to it.
    ///
    /// # Errors
    /// As for [`Ports::open`].
    pub fn open_lossy(rig: &Rig, loss: f64) -> Result<Self, PortsError> {
        let object = xdp::OBJECT.ok_or(PortsError::NoObject)?;
        let attach = || {
            let ports = (1..=rig.nodes().len()).map(|port| format!("p{port}"));
            ports
                .map(|port| Bystander::attach_lossy(object, &port, Mode::Native, loss))
                .collect::<Result<_, _>>()
        };
        let bystanders = rig.run_at_bridge(attach)??;
        Ok(Self {
            _bystanders: bystanders,
        })
    }

    /// Has a node's interface send every UDP datagram back, until the result is dropped.
    ///
    /// # Errors
    /// As for [`Ports::open`].
    pub fn open_echo(node: &Node) -> Result<Bystander, PortsError> {
        let object = xdp::OBJECT.ok_or(PortsError::NoObject)?;
        let attach = || Bystander::attach_echo(object, INTERFACE, Mode::Native);
        Ok(node.run(attach)??)
    }
}
