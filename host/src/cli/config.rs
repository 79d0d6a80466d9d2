//! `nearwire config`.

use super::Failure;
use super::output::{self, Output};
use clap::Subcommand;
use nearwire::config::{Config, EXAMPLE, make_key};
use serde_json::json;
use std::path::PathBuf;

/// Check a configuration, print one to start from, or make a cluster's key.
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
    /// Make a cluster's key.
    ///
    /// The file must not exist yet; nobody but its owner may read it. Every node, and everybody who
    /// asks or changes something with datagrams, needs a copy: `key_file` in the configuration,
    /// --key-file on a command line.
    #[command(after_long_help = "\
Examples:
  nearwire config key /etc/nearwire/key")]
    Key {
        /// Where to.
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
        (Command::Key { file }, output) => {
            make_key(file)
                .map_err(|error| Failure::failed(error.to_string()).remedy(error.remedy()))?;
            match output {
                Output::Table => output::line(&format!("{}: a new key", file.display())),
                Output::Json => output::json(&json!({ "file": file })),
            }
        }
        (Command::Example, Output::Table) => output::bytes(EXAMPLE.as_bytes()),
        (Command::Example, Output::Json) => output::json(&json!({ "toml": EXAMPLE })),
    }
}
