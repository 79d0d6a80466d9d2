//! The command line: what may be said, who does it, and how it ends.

mod asking;
mod bench;
mod catch_up;
mod config;
mod conform;
mod demo;
mod doctor;
mod failover;
mod failure;
mod groups;
mod leader;
mod member;
mod offload;
mod output;
mod peers;
mod propose;
mod reads;
mod reply;
mod run;
mod shell;
mod sim;
mod snapshot;
mod status;
mod step;

use clap::{CommandFactory, Parser, Subcommand};
use consensus::simulation;
pub(crate) use failure::{Exit, Failure};
use output::Output;
use std::process::ExitCode;

/// A binary that can be made to err says so.
const VERSION: &str = match simulation::IS_COMPILED_IN {
    true => concat!(env!("CARGO_PKG_VERSION"), " with the hooks of simulations"),
    false => env!("CARGO_PKG_VERSION"),
};

/// Paxos at the wire: replicas that agree in as few instructions as possible.
///
/// A cluster is a few processes, each started with its own configuration file. Clients speak RESP
/// (redis-cli and its libraries work) or nearwire's own datagrams.
#[derive(Debug, Parser)]
#[command(
    name = "nearwire",
    version = VERSION,
    propagate_version = true,
    max_term_width = 100,
    after_help = "Run `nearwire help COMMAND` for examples.",
    after_long_help = AFTER_HELP
)]
pub(crate) struct Cli {
    /// How the answer is printed.
    #[arg(
        long,
        global = true,
        env = "NEARWIRE_OUTPUT",
        value_enum,
        default_value_t = Output::Table,
        help_heading = "Global options"
    )]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  nearwire demo                                 three replicas, a load, and a killed leader
  nearwire config example > node1.toml          a configuration to start from
  nearwire config check node1.toml              what is wrong with it, by line
  nearwire run --config node1.toml              one replica
  nearwire put --config node1.toml greeting hi  write through the log
  nearwire get --config node1.toml greeting     read what was written
  nearwire status --config node1.toml           who leads, and how far everybody is
  nearwire member list --config node1.toml      who votes, and who learns
  nearwire snapshot save --config node1.toml backup.snapshot   back it up
  nearwire offload status                       what votes in this machine's kernel
  nearwire sim --seeds 1000                     a thousand clusters in virtual time
  nearwire conform --target HOST:PORT           whether an acceptor answers as it must

Every flag can be set in the environment too: --data-directory is NEARWIRE_DATA_DIRECTORY.
The answer goes to standard output and everything else to standard error.

Exit codes:
  0  done
  1  failed: the reason and a remedy are on standard error
  2  not understood: the command line, the environment or a configuration file
  3  not possible here: the machine lacks something, or a data directory is not this node's";

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Run(run::Args),
    Status(status::Args),
    #[command(subcommand)]
    Leader(leader::Command),
    #[command(subcommand)]
    Member(member::Command),
    #[command(subcommand)]
    Offload(offload::Command),
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    Get(propose::GetArgs),
    Put(propose::PutArgs),
    Propose(propose::ProposeArgs),
    Bench(bench::Args),
    Sim(sim::Args),
    Doctor(doctor::Args),
    Conform(conform::Args),
    #[command(subcommand)]
    Config(config::Command),
    Completions(shell::CompletionsArgs),
    Man(shell::ManArgs),
}

/// Does what the command line asks for.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_understood(&error),
    };
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<()> {
    let output = cli.output;
    match cli.command {
        Command::Demo(args) => demo::main(args, output),
        Command::Run(args) => run::main(args, output),
        Command::Status(args) => status::main(&args, output),
        Command::Leader(command) => leader::main(&command, output),
        Command::Member(command) => member::main(&command, output),
        Command::Offload(command) => offload::main(&command, output),
        Command::Snapshot(command) => snapshot::main(&command, output),
        Command::Get(args) => propose::get(&args, output),
        Command::Put(args) => propose::put(&args, output),
        Command::Propose(args) => propose::propose(&args, output),
        Command::Bench(args) => bench::main(args, output),
        Command::Sim(args) => sim::main(&args, output),
        Command::Doctor(args) => doctor::main(&args, output),
        Command::Conform(args) => conform::main(&args, output),
        Command::Config(command) => config::main(&command, output),
        Command::Completions(args) => shell::completions(args.shell, Cli::command()),
        Command::Man(args) => shell::man(args.directory.as_deref(), Cli::command()),
    }
}

/// Help and version are answers; everything else clap has to say is a usage error.
fn not_understood(error: &clap::Error) -> ExitCode {
    // With standard output or error gone there is nobody left to tell.
    let _ = error.print();
    if error.use_stderr() {
        Exit::Usage.into()
    } else {
        ExitCode::SUCCESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_can_be_set_in_the_environment() {
        fn check(command: &clap::Command, path: &str) {
            for argument in command.get_arguments() {
                let Some(long) = argument.get_long() else {
                    continue;
                };
                if matches!(long, "help" | "version") {
                    continue;
                }
                let variable = argument.get_env().and_then(|name| name.to_str());
                let wanted = format!("NEARWIRE_{}", long.replace('-', "_").to_uppercase());
                assert_eq!(variable, Some(wanted.as_str()), "{path} --{long}");
            }
            for command in command.get_subcommands() {
                check(command, &format!("{path} {}", command.get_name()));
            }
        }
        check(&Cli::command(), "nearwire");
    }
}
