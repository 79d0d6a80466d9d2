//! `nearwire bench`.

use super::output::Output;

/// Measure latency and throughput against the floor of the same run.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn main(_args: Args, _output: Output) -> anyhow::Result<()> {
    Err(super::Failure::unsupported("this build has no benchmarks").into())
}
