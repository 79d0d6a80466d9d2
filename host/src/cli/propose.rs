//! `nearwire get`, `put` and `propose`: one command of the key-value machine.

use super::output::Output;
use super::peers::PeersArgs;
use std::ffi::OsString;

/// Read a key.
#[derive(Debug, clap::Args)]
pub(crate) struct GetArgs {
    /// The key.
    key: OsString,
    #[command(flatten)]
    peers: PeersArgs,
}

/// Write a value under a key.
#[derive(Debug, clap::Args)]
pub(crate) struct PutArgs {
    /// The key.
    key: OsString,
    /// The value.
    value: OsString,
    #[command(flatten)]
    peers: PeersArgs,
}

/// Run any command of the key-value machine.
#[derive(Debug, clap::Args)]
pub(crate) struct ProposeArgs {
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "WORD")]
    words: Vec<OsString>,
    #[command(flatten)]
    peers: PeersArgs,
}

pub(crate) fn get(args: &GetArgs, output: Output) -> anyhow::Result<()> {
    execute(&[&"GET".into(), &args.key], &args.peers, output)
}

pub(crate) fn put(args: &PutArgs, output: Output) -> anyhow::Result<()> {
    execute(
        &[&"SET".into(), &args.key, &args.value],
        &args.peers,
        output,
    )
}

pub(crate) fn propose(args: &ProposeArgs, output: Output) -> anyhow::Result<()> {
    execute(&args.words.iter().collect::<Vec<_>>(), &args.peers, output)
}

fn execute(words: &[&OsString], peers: &PeersArgs, _output: Output) -> anyhow::Result<()> {
    let _ = (words, peers.cluster()?);
    Ok(())
}
