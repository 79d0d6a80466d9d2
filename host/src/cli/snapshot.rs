//! `nearwire snapshot`.

use super::Failure;
use super::output::{self, Output};
use super::peers::{self, PeersArgs};
use anyhow::Context;
use clap::Subcommand;
use comfy_table::{Table, presets};
use nearwire::backup::{self, BackupError, Contents};
use nearwire::client::{Client, Options};
use nearwire::config::{Config, Overrides};
use nearwire::data_directory;
use nearwire::inspect::Inspector;
use std::path::{Path, PathBuf};

/// Back a cluster up, look at a backup, and begin a new cluster with one.
///
/// A backup is one file with the whole state of the cluster at one slot of its log.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Take a snapshot from a running node into a file.
    ///
    /// It holds every write that was acknowledged before, and is verified as a whole before the file
    /// gets its name. A follower is asked, so that the leader is not bothered, and it makes a
    /// snapshot if it has none that reaches so far.
    #[command(after_long_help = "\
Examples:
  nearwire snapshot save --config node1.toml backup.snapshot
  nearwire snapshot save --config node1.toml --from 10.0.0.3:4747 backup.snapshot
  nearwire snapshot save --peers 127.0.0.1:4747 --output json backup.snapshot | jq .slot")]
    Save {
        /// The file, which must not exist.
        file: PathBuf,
        /// The node to take it from, as HOST:PORT; one that follows, if none is named.
        #[arg(long, env = "NEARWIRE_FROM", value_name = "HOST:PORT")]
        from: Option<String>,
        #[command(flatten)]
        peers: PeersArgs,
    },
    /// Read a file, verify every byte, and say what is in it.
    #[command(after_long_help = "\
Examples:
  nearwire snapshot inspect backup.snapshot
  nearwire snapshot inspect --output json /var/lib/nearwire/1/snapshots/group-0/snapshot-*[0-9]

With --output json always an array, in the order of the files.")]
    Inspect {
        /// The files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Make the data directory of a node that begins with a snapshot, in a new cluster.
    ///
    /// Do it for every node of the new cluster with the same file, then start them all: nodes that
    /// began with different ones refuse each other. Its log goes on behind the snapshot's last slot;
    /// what was written after the backup is not in it.
    #[command(after_long_help = "\
Examples:
  nearwire snapshot restore --config node1.toml backup.snapshot
  for n in 1 2 3; do
    nearwire snapshot restore --config cluster.toml --node $n \\
        --data-directory /var/lib/nearwire/$n backup.snapshot
  done

Exit code 1 and an untouched directory if there is anything in it. docs/operations.md, \"Back up and
restore\", says what a restored cluster is and is not.")]
    Restore {
        /// The file.
        file: PathBuf,
        /// The configuration of the new cluster's node.
        #[arg(long, env = "NEARWIRE_CONFIG", value_name = "FILE")]
        config: PathBuf,
        /// Its number, in place of the configuration's.
        #[arg(long, env = "NEARWIRE_NODE", value_name = "N")]
        node: Option<u16>,
        /// Where its state will live, in place of the configuration's.
        #[arg(long, env = "NEARWIRE_DATA_DIRECTORY", value_name = "DIR")]
        data_directory: Option<PathBuf>,
    },
}

pub(crate) fn main(command: &Command, output: Output) -> anyhow::Result<()> {
    data_directory::keep_to_oneself();
    match command {
        Command::Save { file, from, peers } => save(file, from.as_deref(), peers, output),
        Command::Inspect { files } => {
            let contents = files.iter().map(|file| backup::inspect(file));
            let contents: Vec<_> = contents.collect::<Result<_, _>>().map_err(told)?;
            match output {
                Output::Json => output::json(&contents),
                Output::Table => output::bytes(to_table(&contents).as_bytes()),
            }
        }
        Command::Restore {
            file,
            config,
            node,
            data_directory,
        } => {
            let overrides = Overrides {
                node: *node,
                data_directory: data_directory.clone(),
                ..Overrides::default()
            };
            let config = Config::load_with(config, overrides)?;
            let contents = backup::restore(file, &config).map_err(told)?;
            eprintln!(
                "node {} of cluster {:?} begins with it. Restore the other nodes from the same \
                 file, then start all of them.",
                config.node, config.cluster
            );
            print(contents, output)
        }
    }
}

fn save(file: &Path, from: Option<&str>, peers: &PeersArgs, output: Output) -> anyhow::Result<()> {
    if file.exists() {
        let failure = Failure::failed(format!("{} exists", file.display()));
        return Err(failure
            .remedy("name a file that does not: a backup is never written over")
            .into());
    }
    let cluster = peers.cluster()?;
    let addresses = cluster.addresses();
    let wanted = from.map(|from| peers::member(from, "--from "));
    let wanted = wanted.transpose()?;
    let wanted = wanted.map(|(_, address)| address);
    let mut inspector = Inspector::new(&addresses, cluster.keys)?;
    let options = Options {
        keys: cluster.keys,
        timeout: cluster.changing(),
        max_value: cluster.max_value,
        ..Options::default()
    };
    let mut client = Client::connect(&cluster.members, options)?;
    let looking = cluster.looking();
    let source = backup::choose(&mut inspector, &mut client, &addresses, wanted, looking);
    let source = source.map_err(told)?;
    // It may have to be written first.
    let timeout = cluster.changing() * 10;
    let mut shown = 0;
    backup::save(&source, cluster.keys, timeout, file, |here, bytes| {
        let tenth = here * 10 / bytes.max(1);
        if tenth > shown {
            shown = tenth;
            eprintln!("{}: {here} of {bytes} bytes", source.address);
        }
    })
    .map_err(told)?;
    let contents = backup::inspect(file).map_err(told)?;
    print(contents, output).context("the file is saved")
}

fn told(error: BackupError) -> anyhow::Error {
    let remedy = error.remedy();
    match remedy {
        Some(remedy) => Failure::failed(error.to_string()).remedy(remedy).into(),
        None => error.into(),
    }
}

fn print(contents: Contents, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Json => output::json(&contents),
        Output::Table => output::bytes(to_table(&[contents]).as_bytes()),
    }
}

fn to_table(contents: &[Contents]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "file", "group", "slot", "bytes", "CRC-32C", "keys", "sessions",
    ]);
    for one in contents {
        table.add_row([
            one.path.display().to_string(),
            one.group.to_string(),
            one.slot.to_string(),
            one.bytes.to_string(),
            one.checksum.clone(),
            one.keys.to_string(),
            one.sessions.to_string(),
        ]);
    }
    format!("{}\n", table.trim_fmt())
}
