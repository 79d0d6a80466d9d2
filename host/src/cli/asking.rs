//! How a question is asked, by whichever command.

use consensus::auth::Keys;
use nearwire::config::{KeyError, read_keys};
use std::path::PathBuf;
use std::time::Duration;

/// Flags of every command that sends datagrams and waits for answers.
#[derive(Debug, clap::Args)]
pub(crate) struct AskingArgs {
    /// The file with the cluster's key, 32 hexadecimal digits.
    #[arg(long, env = "NEARWIRE_KEY_FILE", value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// How long to wait for an answer, in milliseconds: 1000 to look, 2000 to test, 3000 to change.
    #[arg(
        long,
        env = "NEARWIRE_TIMEOUT_MS",
        value_name = "MS",
        value_parser = clap::value_parser!(u64).range(1..=3_600_000)
    )]
    timeout_ms: Option<u64>,
}

impl AskingArgs {
    /// The keys of the file, if one is named.
    pub(crate) fn keys(&self) -> Result<Option<Keys>, KeyError> {
        self.key_file.as_deref().map(read_keys).transpose()
    }

    /// How long to wait, if that is said.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout_ms.map(Duration::from_millis)
    }
}
