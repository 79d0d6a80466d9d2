//! `nearwire completions` and `nearwire man`.

use super::output;
use anyhow::Context;
use clap_complete::Shell;
use std::fs;
use std::path::{Path, PathBuf};

/// Print a shell's completions.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  nearwire completions bash > /etc/bash_completion.d/nearwire
  nearwire completions zsh > \"${fpath[1]}/_nearwire\"
  nearwire completions fish > ~/.config/fish/completions/nearwire.fish")]
pub(crate) struct CompletionsArgs {
    /// For which shell.
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

/// Print the manual page, or write the pages of all commands to a directory.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  nearwire man | man -l -                       read it now
  nearwire man /usr/local/share/man/man1        install nearwire.1, nearwire-run.1, …")]
pub(crate) struct ManArgs {
    /// Where the pages are written; made if it is missing.
    #[arg(value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
}

pub(crate) fn completions(shell: Shell, mut command: clap::Command) -> anyhow::Result<()> {
    // The generator panics where it cannot write, so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "nearwire", &mut script);
    output::bytes(&script)
}

pub(crate) fn man(directory: Option<&Path>, command: clap::Command) -> anyhow::Result<()> {
    let Some(directory) = directory else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        return output::bytes(&page);
    };
    let write = || {
        fs::create_dir_all(directory)?;
        clap_mangen::generate_to(command, directory)
    };
    write().with_context(|| format!("write manual pages to {}", directory.display()))
}
