//! `nearwire run`.

use super::output::Output;
use nearwire::config::{Config, Durability, Overrides, Wait};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Run one replica until it is told to stop.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  nearwire run --config node1.toml
  nearwire run --config cluster.toml --node 2 --data-directory /var/lib/nearwire/2

One file can serve all nodes of a cluster: --node and --data-directory say which one this is. What a
flag says goes before the environment, and that before the file.

SIGINT and SIGTERM stop the replica; SIGHUP has it read its key file again. Exit code 3 means that the data directory is another node's, or
that what it held is gone: such a node must not vote under its old name.

The log goes to standard error; NEARWIRE_LOG (for example `debug`) says how much of it.")]
pub(crate) struct Args {
    /// The configuration; `nearwire config example` prints one.
    #[arg(long, env = "NEARWIRE_CONFIG", value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    overrides: OverrideArgs,
}

/// What a command line says instead of the file.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Instead of the file's")]
pub(super) struct OverrideArgs {
    /// This node's number, 1 to 1023.
    #[arg(long, env = "NEARWIRE_NODE", value_name = "N")]
    node: Option<u16>,
    /// Where this node's state lives.
    #[arg(long, env = "NEARWIRE_DATA_DIRECTORY", value_name = "DIR")]
    data_directory: Option<PathBuf>,
    /// What a vote outlives.
    #[arg(long, env = "NEARWIRE_DURABILITY", value_enum)]
    durability: Option<Durability>,
    /// Where Redis clients are served.
    #[arg(long, env = "NEARWIRE_RESP", value_name = "IP:PORT")]
    resp: Option<SocketAddr>,
    /// How the worker waits for packets.
    #[arg(long, env = "NEARWIRE_WAIT", value_enum)]
    wait: Option<Wait>,
    /// The file with the cluster's key.
    #[arg(long, env = "NEARWIRE_KEY_FILE", value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// This node is to be made a member of a cluster that is there: see `nearwire member`.
    #[arg(long, env = "NEARWIRE_JOIN")]
    join: bool,
}

impl From<OverrideArgs> for Overrides {
    fn from(args: OverrideArgs) -> Self {
        Self {
            node: args.node,
            data_directory: args.data_directory,
            durability: args.durability,
            resp: args.resp,
            wait: args.wait,
            key_file: args.key_file,
            join: args.join,
        }
    }
}

pub(crate) fn main(args: Args, _output: Output) -> anyhow::Result<()> {
    let config = Config::load_with(&args.config, args.overrides.into())?;
    let filter = tracing_subscriber::EnvFilter::try_from_env("NEARWIRE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    nearwire::run::run(&config).map_err(Into::into)
}
