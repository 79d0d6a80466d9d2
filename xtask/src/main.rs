//! Set-up and tests of nearwire: `cargo xtask test` runs everything that can run on this machine.

#![forbid(unsafe_code)]

mod build_graph;
mod chaos;
mod command;
mod corpus;
mod coverage;
mod ebpf;
mod executables;
mod guest;
mod libtest;
mod mutants;
mod packages;
mod parallel;
mod plain_build;
mod scratch;
mod stage;
mod step;
mod summary;
mod test;
mod tools;
mod tree;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set-up and tests of nearwire.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing, then run every check and test, and say what was skipped and why.
    Test(test::Arguments),
    /// Run clusters of real processes under faults on purpose, as root, and judge what clients saw.
    Chaos(chaos::Arguments),
    /// Commit each deliberate defect, and see what notices it.
    Mutants(mutants::Arguments),
    /// Say which lines of the core simulator, model and corpus run.
    Coverage(coverage::Arguments),
    /// Write the generated part of the conformance corpus.
    Corpus(corpus::Arguments),
    /// Build the XDP programs and write the object that is committed.
    Ebpf(ebpf::Arguments),
    /// Run tests as root on another kernel, in a guest.
    Guest(guest::Arguments),
    /// What a guest's first process does.
    #[command(hide = true)]
    GuestInit,
}

fn main() -> ExitCode {
    let Arguments { task } = Arguments::parse();
    let result = match task {
        Task::Test(arguments) => test::run(&arguments),
        Task::Chaos(arguments) => chaos::run(&arguments),
        Task::Mutants(arguments) => mutants::run(&arguments),
        Task::Coverage(arguments) => coverage::run(&arguments),
        Task::Corpus(arguments) => corpus::run(&arguments),
        Task::Ebpf(arguments) => ebpf::run(&arguments),
        Task::Guest(arguments) => guest::run(&arguments),
        Task::GuestInit => guest::init(),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
