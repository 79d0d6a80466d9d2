//! `nearwire offload`.

mod change;
mod probe;
mod seal;
mod status;
mod test;
mod words;

use super::Failure;
use super::asking::AskingArgs;
use super::output::Output;
use clap::Subcommand;
use consensus::Epoch;
use consensus::auth::Keys;
use consensus::frame::{Mac, Own};
use consensus::region::{Birth, Layout};
use nearwire::config::{Config, Overrides};
use nearwire::data_directory::{self, Identity};
use nearwire::xdp::Settings;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Look after acceptors that vote in the kernel.
///
/// With [offload] in its configuration a node puts its acceptor, an XDP program, on an interface, and
/// keeps its votes in maps that are pinned in bpffs: they outlive the process.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Probe(probe::Args),
    Install(change::InstallArgs),
    Remove(change::RemoveArgs),
    Status(status::Args),
    Seal(seal::Args),
    Test(test::Args),
}

pub(crate) fn main(command: &Command, output: Output) -> anyhow::Result<()> {
    match command {
        Command::Probe(args) => probe::main(args, output),
        Command::Install(args) => change::install(args, output),
        Command::Remove(args) => change::remove(args, output),
        Command::Status(args) => status::main(args, output),
        Command::Seal(args) => seal::main(args, output),
        Command::Test(args) => test::main(args, output),
    }
}

/// Which node on this machine is meant.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Node")]
pub(super) struct NodeArgs {
    /// The node's configuration.
    #[arg(long, env = "NEARWIRE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// This node's number, if the file serves several.
    #[arg(long, env = "NEARWIRE_NODE", value_name = "N")]
    node: Option<u16>,
    /// Where this node's state lives, if the file serves several.
    #[arg(long, env = "NEARWIRE_DATA_DIRECTORY", value_name = "DIR")]
    data_directory: Option<PathBuf>,
    #[command(flatten)]
    asking: AskingArgs,
}

/// A node on this machine.
#[derive(Debug)]
pub(super) struct OwnNode {
    config: Config,
    keys: Option<Keys>,
    /// What its data directory says; `None` if it never ran.
    identity: Option<Identity>,
    timeout: Option<Duration>,
}

impl NodeArgs {
    /// Reads the configuration, if one is named, and what the data directory says.
    fn node(&self) -> anyhow::Result<Option<OwnNode>> {
        let Some(file) = &self.config else {
            return Ok(None);
        };
        let overrides = Overrides {
            node: self.node,
            data_directory: self.data_directory.clone(),
            ..Overrides::default()
        };
        let config = Config::load_with(file, overrides)?;
        let keys = match self.asking.keys()? {
            None => config.keys()?,
            keys => keys,
        };
        let identity = data_directory::look(&config.data_directory)?;
        Ok(Some(OwnNode {
            config,
            keys,
            identity,
            timeout: self.asking.timeout(),
        }))
    }

    fn needed(&self) -> anyhow::Result<OwnNode> {
        let none = || {
            Failure::usage("no node is named: --config is missing")
                .remedy("add --config FILE, the one that the node is run with")
        };
        Ok(self.node()?.ok_or_else(none)?)
    }
}

impl OwnNode {
    /// What its data directory says.
    fn identity(&self) -> Result<&Identity, Failure> {
        let directory = self.config.data_directory.display();
        self.identity.as_ref().ok_or_else(|| {
            Failure::failed(format!("no node has ever run in {directory}"))
                .remedy("start it with `nearwire run`, or correct --data-directory")
        })
    }
}

/// What a program is told that votes over a blank region and is shown packets.
pub(super) fn scratch(port: u16, layout: Layout, birth: Birth, keys: Option<Keys>) -> Settings {
    Settings {
        port,
        layout,
        birth,
        // Nobody's, until a frame says where it goes.
        own: Own {
            mac: Mac([0; 6]),
            vlan: None,
            ip: Ipv4Addr::UNSPECIFIED.into(),
        },
        epoch: Epoch(1),
        lease_ns: 0,
        keys,
        is_rehearsal: true,
    }
}

/// A region's number as it is written.
fn nonce_text(nonce: u64) -> String {
    format!("{nonce:016x}")
}

fn parse_nonce(text: &str) -> Result<u64, String> {
    match u64::from_str_radix(text, 16) {
        Ok(nonce) if text.len() == 16 => Ok(nonce),
        _ => {
            Err("a region is named by 16 hexadecimal digits: see `nearwire offload status`".into())
        }
    }
}

/// A bpffs, where none is said: the usual place, or the one that the node's identity names.
fn bpffs_of(said: Option<&Path>, node: Option<&OwnNode>) -> PathBuf {
    let identity = node.and_then(|node| node.identity.as_ref()?.bpffs.clone());
    let configured = node.and_then(|node| Some(node.config.offload.as_ref()?.bpffs.clone()));
    said.map(Path::to_owned)
        .or(identity)
        .or(configured)
        .unwrap_or_else(|| nearwire::xdp::BPFFS.into())
}
