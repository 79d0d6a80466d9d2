//! How a command fails: what is said, what mends it, and with which exit code.

use nearwire::client::ClientError;
use nearwire::config;
use nearwire::conform::ConformError;
use nearwire::data_directory::DataDirectoryError;
use nearwire::region_place::RegionError;
use nearwire::xdp::{XdpError, capabilities};
use std::error::Error;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

/// The exit codes beside success.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Exit {
    /// It was tried and did not work.
    Failed = 1,
    /// What was asked for is not understood: command line, environment or configuration.
    Usage = 2,
    /// This machine or this user lacks something, or a data directory is not this node's.
    Unsupported = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A failure that a command found by itself. Failures of the libraries carry their own remedy; see
/// [`report`].
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    text: String,
    remedy: Option<String>,
}

impl Failure {
    /// It did not work.
    pub(crate) fn failed(text: impl Into<String>) -> Self {
        Self::new(Exit::Failed, text.into())
    }

    /// It was not understood.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::new(Exit::Usage, text.into())
    }

    /// It cannot be done here.
    pub(crate) fn unsupported(text: impl Into<String>) -> Self {
        Self::new(Exit::Unsupported, text.into())
    }

    fn new(exit: Exit, text: String) -> Self {
        Self {
            exit,
            text,
            remedy: None,
        }
    }

    /// Says what mends it.
    #[must_use]
    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Failure {}

/// Writes the error and its remedy to standard error, and tells the exit code.
///
/// A reader that went away (`nearwire status | head -1`) is no failure.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(is_broken_pipe) {
        return ExitCode::SUCCESS;
    }
    let (exit, remedy) = verdict(error);
    let mut text = format!("error: {}\n", message(error));
    if let Some(remedy) = remedy {
        text.push_str(&format!("remedy: {remedy}\n"));
    }
    // With standard error gone only the exit code is left to tell.
    let _ = io::stderr().write_all(text.as_bytes());
    exit.into()
}

/// The chain of causes, without those that the text before already ends with.
fn message(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// What is known of the outermost error that is known at all.
fn verdict(error: &anyhow::Error) -> (Exit, Option<String>) {
    // One that was attached as context is no link of the chain.
    let failure = error
        .downcast_ref::<Failure>()
        .and_then(|failure| judge(failure));
    let known = failure.or_else(|| error.chain().find_map(judge));
    known.unwrap_or((Exit::Failed, None))
}

/// The exit code and remedy of an error that is known here.
fn judge(error: &(dyn Error + 'static)) -> Option<(Exit, Option<String>)> {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return Some((failure.exit, failure.remedy.clone()));
    }
    if let Some(error) = error.downcast_ref::<config::Error>() {
        return Some((Exit::Usage, error.remedy()));
    }
    if let Some(error) = error.downcast_ref::<ClientError>() {
        return Some((Exit::Failed, error.remedy().map(Into::into)));
    }
    if let Some(error) = error.downcast_ref::<DataDirectoryError>() {
        return Some((directory_exit(error), None));
    }
    if let Some(error) = error.downcast_ref::<nearwire::run::Error>() {
        return judge_run(error);
    }
    if let Some(error) = error.downcast_ref::<ConformError>() {
        return judge_conform(error);
    }
    if let Some(error) = error.downcast_ref::<XdpError>() {
        return Some(judge_xdp(error));
    }
    match error.downcast_ref::<datapath::Error>()? {
        // The texts of both end with what mends it.
        datapath::Error::Unsupported { .. } => Some((Exit::Unsupported, None)),
        datapath::Error::Bind { .. }
        | datapath::Error::InUse { .. }
        | datapath::Error::System { .. }
        | datapath::Error::Command { .. } => Some((Exit::Failed, None)),
    }
}

fn judge_conform(error: &ConformError) -> Option<(Exit, Option<String>)> {
    if let ConformError::Datapath(error) = error {
        return judge(error);
    }
    let exit = match error {
        ConformError::Shapeless { .. } => Exit::Usage,
        _ => Exit::Failed,
    };
    Some((exit, error.remedy()))
}

/// An error of a node, by what is inside: it is transparent, so the chain does not show that.
fn judge_run(error: &nearwire::run::Error) -> Option<(Exit, Option<String>)> {
    use nearwire::run::Error;
    if error.is_refused_identity() {
        return Some((Exit::Unsupported, None));
    }
    match error {
        Error::Directory(error) => judge(error),
        Error::Datapath(error) => judge(error),
        Error::Key(error) => Some((Exit::Usage, Some(error.remedy()))),
        Error::Tls(error) => Some((Exit::Usage, Some(error.remedy()))),
        Error::Privileges(_) => Some((Exit::Usage, None)),
        Error::Region(RegionError::NoObject) => Some((Exit::Unsupported, None)),
        Error::Region(RegionError::Xdp(error)) => Some(judge_xdp(error)),
        _ => None,
    }
}

/// Whatever the kernel refuses, it refuses it to processes without these capabilities first.
fn judge_xdp(error: &XdpError) -> (Exit, Option<String>) {
    match error {
        // The texts end with what mends it.
        XdpError::NoBpffs(_) => return (Exit::Unsupported, None),
        XdpError::Held { .. } | XdpError::Occupied { .. } | XdpError::OtherMap { .. } => {
            return (Exit::Failed, None);
        }
        _ => {}
    }
    let lacking = capabilities::lacking();
    if lacking.is_empty() {
        return (Exit::Failed, None);
    }
    let lacking = lacking.join(", ");
    let remedy = format!(
        "this process lacks {lacking}: run it as root, or `setcap \
         cap_bpf,cap_net_admin,cap_perfmon+ep $(command -v nearwire)`"
    );
    (Exit::Unsupported, Some(remedy))
}

fn directory_exit(error: &DataDirectoryError) -> Exit {
    match error {
        DataDirectoryError::ForeignCluster { .. }
        | DataDirectoryError::ForeignNode { .. }
        | DataDirectoryError::Damaged { .. }
        | DataDirectoryError::NoIdentity { .. }
        | DataDirectoryError::DamagedRegister { .. }
        | DataDirectoryError::Version { .. } => Exit::Unsupported,
        DataDirectoryError::InUse { .. }
        | DataDirectoryError::Io { .. }
        | DataDirectoryError::Encode(_) => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_cause_is_said_once() {
        let error = anyhow::Error::new(Failure::failed("open x: no such file"))
            .context("start node 1: open x: no such file");
        assert_eq!(message(&error), "start node 1: open x: no such file");
        let error = anyhow::Error::new(Failure::failed("no such file")).context("open x");
        assert_eq!(message(&error), "open x: no such file");
    }

    #[test]
    fn context_hides_neither_exit_code_nor_remedy() {
        let error = Err::<(), _>(Failure::unsupported("no io_uring").remedy("upgrade"))
            .context("open journal")
            .expect_err("an error");
        assert_eq!(verdict(&error), (Exit::Unsupported, Some("upgrade".into())));
        let error = anyhow::anyhow!("EPERM").context(Failure::usage("open journal"));
        assert_eq!(verdict(&error), (Exit::Usage, None));
    }
}
