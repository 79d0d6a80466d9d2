//! `nearwire doctor`: what this machine can do.

use super::output::Output;
use std::path::PathBuf;

/// Say what this machine can do, and what mends what it cannot.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The directory whose file system is looked at.
    #[arg(
        long,
        env = "NEARWIRE_DATA_DIRECTORY",
        value_name = "DIR",
        default_value = "."
    )]
    data_directory: PathBuf,
}

pub(crate) fn main(args: &Args, _output: Output) -> anyhow::Result<()> {
    let _ = &args.data_directory;
    Ok(())
}
