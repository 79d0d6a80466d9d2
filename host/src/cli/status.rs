//! `nearwire status`.

use super::output::Output;
use super::peers::PeersArgs;

/// Show what every replica is doing.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    peers: PeersArgs,
}

pub(crate) fn main(args: &Args, _output: Output) -> anyhow::Result<()> {
    let _ = args.peers.cluster()?;
    Ok(())
}
