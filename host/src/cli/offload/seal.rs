//! `nearwire offload seal`.

use super::NodeArgs;
use crate::cli::Failure;
use crate::cli::output::{self, Output};
use consensus::NodeId;
use nearwire::data_directory::{DataDirectory, DataDirectoryError, Expectation};
use nearwire::region_place::RegionError;
use nearwire::run;
use nearwire::xdp::Pins;
use serde_json::json;

/// Stop what a node that does not run has left voting.
///
/// The promise in its region is exchanged for one that no ballot reaches. The program stays on its
/// interface and drops what it is asked, until `nearwire run` takes the votes up again. To have it
/// detached as well, and the next start vote in software: `nearwire offload remove`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  nearwire offload seal --config node1.toml

No vote is lost, and none is cast any more: a cluster whose other nodes are no majority stands still.
A node that runs votes by itself, so it is not sealed: stop it first.")]
pub(crate) struct Args {
    #[command(flatten)]
    node: NodeArgs,
}

pub(crate) fn main(args: &Args, output: Output) -> anyhow::Result<()> {
    let node = args.node.needed()?;
    let number = node.config.node;
    let expectation = Expectation {
        cluster: node.config.cluster.clone(),
        node: NodeId(number),
        durability: node.identity()?.durability,
        origin: 0,
    };
    // As long as this is held the node cannot start.
    let directory = match DataDirectory::open(&node.config.data_directory, &expectation) {
        Err(DataDirectoryError::InUse { process, .. }) => {
            return Err(Failure::failed(format!(
                "node {number} runs, as process {process}: it votes whatever the kernel does"
            ))
            .remedy("`nearwire offload remove` has it vote in its process; or stop it")
            .into());
        }
        directory => directory?,
    };
    let identity = directory.identity();
    let Some(bpffs) = &identity.bpffs else {
        return Err(Failure::failed(format!(
            "node {number} has its votes in {}, where nothing votes without it",
            directory.path().join("region").display()
        ))
        .remedy("there is nothing to seal")
        .into());
    };
    let pins = Pins::new(bpffs, identity.region_nonce)?;
    if !pins.are_complete()? {
        return Err(Failure::failed(format!(
            "node {number}'s votes are not pinned in {} any more",
            pins.directory().display()
        ))
        .remedy("nothing votes for it; `nearwire run` will refuse it, for its memory is lost")
        .into());
    }
    let _hold = pins.hold()?;
    let region = pins.region()?;
    region
        .seal()
        .map_err(|locked| run::Error::Region(RegionError::Locked(locked)))?;
    let pins = pins.directory().display();
    match output {
        Output::Table => output::line(&format!(
            "node {number}: sealed in {pins}; nothing votes for it until `nearwire run`"
        )),
        Output::Json => output::json(&json!({
            "node": number,
            "pins": pins.to_string(),
            "sealed": true,
        })),
    }
}
