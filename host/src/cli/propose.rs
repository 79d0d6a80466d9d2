//! `nearwire get`, `put` and `propose`: one command of the key-value machine.

use super::Failure;
use super::output::{self, Output};
use super::peers::PeersArgs;
use super::reply::Reply;
use nearwire::client::{Client, Options};
use nearwire::front::Access;
use nearwire::kv;
use serde_json::json;
use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStrExt;

/// Read a key.
///
/// The answer is what was last written when the command was given, whichever replica leads. A key
/// that is not there answers with an empty line, `(nil)` on a terminal, `null` as JSON.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  nearwire get --config node1.toml greeting
  nearwire get --peers 127.0.0.1:4747,127.0.0.1:4748 greeting --output json")]
pub(crate) struct GetArgs {
    /// The key.
    key: OsString,
    #[command(flatten)]
    peers: PeersArgs,
}

/// Write a value under a key.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  nearwire put --config node1.toml greeting hello
  nearwire put --config node1.toml -- --odd-key --odd-value

`nearwire propose SET KEY VALUE EX 60` lets it expire.")]
pub(crate) struct PutArgs {
    /// The key.
    key: OsString,
    /// The value.
    #[arg(allow_negative_numbers = true)]
    value: OsString,
    #[command(flatten)]
    peers: PeersArgs,
}

/// Run any command of the key-value machine.
///
/// A command that changes something goes through the log and is applied exactly once; a query is
/// answered by the leader.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  nearwire propose --config node1.toml INCR visits
  nearwire propose --config node1.toml SET token 42 EX 60
  nearwire propose --config node1.toml MGET a b c

Flags come before the words. The commands are those that redis-cli has on the RESP port, but for
those about a connection.")]
pub(crate) struct ProposeArgs {
    /// The command and its arguments.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "WORD"
    )]
    words: Vec<OsString>,
    #[command(flatten)]
    peers: PeersArgs,
}

pub(crate) fn get(args: &GetArgs, output: Output) -> anyhow::Result<()> {
    execute(&[OsStr::new("GET"), &args.key], &args.peers, output)
}

pub(crate) fn put(args: &PutArgs, output: Output) -> anyhow::Result<()> {
    let words = [OsStr::new("SET"), &args.key, &args.value];
    execute(&words, &args.peers, output)
}

pub(crate) fn propose(args: &ProposeArgs, output: Output) -> anyhow::Result<()> {
    let words: Vec<_> = args.words.iter().map(OsString::as_os_str).collect();
    execute(&words, &args.peers, output)
}

fn execute(words: &[&OsStr], peers: &PeersArgs, output: Output) -> anyhow::Result<()> {
    let words: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
    let (access, body) = kv::encode(&words).map_err(|error| {
        Failure::usage(error.to_string().trim_end())
            .remedy("`nearwire propose --help` has examples")
    })?;
    let cluster = peers.cluster()?;
    let options = Options {
        keys: cluster.keys,
        timeout: cluster.changing(),
        max_value: cluster.max_value,
        ..Options::default()
    };
    let mut client = Client::connect(&cluster.members, options)?;
    let reply = match access {
        Access::Command => client.execute(&body)?,
        Access::Query => client.query(&body)?,
    };
    print(&Reply::parse(&reply)?, output)
}

fn print(reply: &Reply, output: Output) -> anyhow::Result<()> {
    if let Reply::Error(text) = reply {
        return Err(Failure::failed(String::from_utf8_lossy(text)).into());
    }
    match output {
        Output::Json => output::json(&json!({ "reply": reply.json() })),
        Output::Table if io::stdout().is_terminal() => output::line(&reply.pretty()),
        Output::Table => output::bytes(&[&reply.plain()[..], b"\n"].concat()),
    }
}
