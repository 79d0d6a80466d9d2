//! `nearwire demo`.

use super::output::Output;

/// Show three replicas that survive the loss of their leader.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn main(_args: Args, _output: Output) -> anyhow::Result<()> {
    Err(super::Failure::unsupported("this build has no demo").into())
}
