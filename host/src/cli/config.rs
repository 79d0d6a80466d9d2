//! `nearwire config`.

use super::output::{self, Output};
use clap::Subcommand;
use nearwire::config::{Config, EXAMPLE};
use serde_json::json;
use std::path::PathBuf;

/// Check a configuration, or print one to start from.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Say whether a node would start with this configuration.
    ///
    /// Reads the file and, if it names one, the key file. Nothing else is touched.
    #[command(after_long_help = "\
Examples:
  nearwire config check node1.toml
  nearwire config check --output json node1.toml | jq .node

An error names the file, the line and the column, what was expected there, and what mends it.")]
    Check {
        /// The configuration.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Print a configuration in which every key is explained.
    #[command(after_long_help = "\
Examples:
  nearwire config example > node1.toml")]
    Example,
}

pub(crate) fn main(command: &Command, output: Output) -> anyhow::Result<()> {
    match (command, output) {
        (Command::Check { file }, output) => {
            let config = Config::load(file)?;
            let (cluster, node, peers) = (&config.cluster, config.node, config.peers.len());
            match output {
                Output::Table => output::line(&format!(
                    "{}: ok, node {node} of {peers} in cluster {cluster:?}",
                    file.display()
                )),
                Output::Json => output::json(&json!({
                    "ok": true,
                    "file": file,
                    "cluster": cluster,
                    "node": node,
                    "peers": peers,
                })),
            }
        }
        (Command::Example, Output::Table) => output::bytes(EXAMPLE.as_bytes()),
        (Command::Example, Output::Json) => output::json(&json!({ "toml": EXAMPLE })),
    }
}
