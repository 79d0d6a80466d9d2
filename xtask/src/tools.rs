//! Cargo tools that a step needs, compiled while the steps before it run.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::packages::find;
use crate::stage::{Display, Stage};
use crate::workspace::Workspace;

const CARGO_DENY: &str = "cargo-deny";
/// Pinned, so that a release of the tool cannot turn a green commit red.
const CARGO_DENY_VERSION: &str = "0.20.2";
/// Measured on two cores with nothing else running: under three minutes.
const INSTALL_LIMIT: Duration = Duration::from_secs(20 * 60);

/// Tools kept in `target/tools`.
pub(crate) struct Tools {
    root: PathBuf,
    cancelled: Arc<AtomicBool>,
    installation: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Tools {
    /// Tools of the workspace; nothing is installed yet.
    pub(crate) fn new(workspace: &Workspace) -> anyhow::Result<Self> {
        let cancelled = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&cancelled))
                .context("watch for signals")?;
        }
        Ok(Self {
            root: workspace.target.join("tools"),
            cancelled,
            installation: None,
        })
    }

    /// Begins to compile cargo-deny in the background unless it is there.
    pub(crate) fn begin_cargo_deny(&mut self, workspace: &Workspace) {
        if self.installed(CARGO_DENY).is_some() || self.installation.is_some() {
            return;
        }
        let root = self.root.clone();
        let build = root.join("build");
        let log = workspace.log(&format!("install-{CARGO_DENY}"));
        let cancelled = Arc::clone(&self.cancelled);
        let mut install = workspace.cargo(["install", "--locked", CARGO_DENY]);
        install
            .args([
                "--version",
                CARGO_DENY_VERSION,
                "--jobs",
                &half_the_cores().to_string(),
            ])
            .arg("--root")
            .arg(&root)
            .arg("--target-dir")
            .arg(&build);
        self.installation = Some(thread::spawn(move || {
            let result = install_quietly(&mut install, log, &cancelled);
            // A failed removal costs disk, nothing else.
            let _ = fs::remove_dir_all(build);
            result
        }));
    }

    /// The program cargo-deny, once it is there.
    pub(crate) fn cargo_deny(
        &mut self,
        workspace: &Workspace,
        stage: &mut Stage<'_>,
    ) -> anyhow::Result<PathBuf> {
        self.begin_cargo_deny(workspace);
        if let Some(installation) = self.installation.take() {
            stage.say(&format!("waiting for `cargo install {CARGO_DENY}`"))?;
            stage.wait_until(&|| installation.is_finished())?;
            installation
                .join()
                .map_err(|_| anyhow!("the installation of {CARGO_DENY} panicked"))??;
        }
        self.installed(CARGO_DENY)
            .with_context(|| format!("find {CARGO_DENY} after installing it"))
    }

    /// The user's own copy of a tool, or ours.
    fn installed(&self, program: &str) -> Option<PathBuf> {
        find(program)
            .or_else(|| Some(self.root.join("bin").join(program)).filter(|own| own.is_file()))
    }
}

impl Drop for Tools {
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
        if let Some(installation) = self.installation.take() {
            let _ = installation.join();
        }
    }
}

fn install_quietly(
    install: &mut Command,
    log: PathBuf,
    cancelled: &AtomicBool,
) -> anyhow::Result<()> {
    let mut stage = Stage::open(
        String::new(),
        log,
        Display::Nothing,
        INSTALL_LIMIT,
        cancelled,
    )?;
    stage.run(install).map_err(|error| {
        error.context(format!(
            "install {CARGO_DENY}\n{}",
            stage.tail().unwrap_or_default()
        ))
    })
}

/// The steps in the foreground need the other half.
fn half_the_cores() -> usize {
    thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2))
}
