//! What can go wrong with a journal.

use super::Lsn;
use std::io;
use std::path::PathBuf;

/// The journal cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The operating system refused.
    #[error("{doing} {}: {source}", path.display())]
    Disk {
        /// What was being done.
        doing: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A record that had been flushed is missing or damaged. It is never skipped.
    #[error(
        "journal file {} is damaged at byte {offset}: record {lsn} was flushed (byte \
         {proof_offset} of {} says so) but cannot be read. This node's votes cannot be trusted: \
         restore the file from the same disk if it can be recovered, otherwise leave this node \
         stopped and have it replaced: `nearwire member replace --lost`",
        file.display(), proof.display()
    )]
    Damaged {
        /// The damaged file.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// The first record that is lost.
        lsn: Lsn,
        /// The file whose batch header proves that the record had been flushed.
        proof: PathBuf,
        /// Where that header is.
        proof_offset: u64,
    },
    /// A segment that later ones follow has no readable first block.
    #[error(
        "journal file {}: its first block is damaged, yet later records depend on it. This node's \
         votes cannot be trusted: restore the file from the same disk if it can be recovered, \
         otherwise leave this node stopped and have it replaced: `nearwire member replace --lost`",
        file.display()
    )]
    DamagedStart {
        /// The damaged file.
        file: PathBuf,
    },
    /// The directory holds another node's journal.
    #[error(
        "journal file {} belongs to identity {found:#018x}, not to {expected:#018x}: point this \
         node at its own data directory, or at an empty one",
        file.display()
    )]
    Foreign {
        /// The file that says so.
        file: PathBuf,
        /// Whose it is.
        found: u64,
        /// Who asked.
        expected: u64,
    },
    /// Written in a format that this program does not read.
    #[error(
        "journal file {} has format version {found}, this program reads version {}: start the \
         program version that wrote it",
        file.display(), super::format::VERSION
    )]
    Version {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u32,
    },
    /// An option is out of range.
    #[error("journal option {option} = {value}: {needs}")]
    Option {
        /// Which option.
        option: &'static str,
        /// The value given.
        value: u64,
        /// What it must be.
        needs: &'static str,
    },
    /// A thread could not be started.
    #[error("start journal thread: {0}")]
    Thread(#[source] io::Error),
    /// A journal thread ended by a panic.
    #[error(
        "journal thread panicked; nothing after the last flushed record is on disk for certain"
    )]
    Panicked,
}

impl JournalError {
    pub(super) fn disk(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Disk {
            doing,
            path,
            source,
        }
    }

    /// The system's error number, if the system refused.
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::Disk { source, .. } | Self::Thread(source) => source.raw_os_error(),
            Self::Damaged { .. }
            | Self::DamagedStart { .. }
            | Self::Foreign { .. }
            | Self::Version { .. }
            | Self::Option { .. }
            | Self::Panicked => None,
        }
    }
}
