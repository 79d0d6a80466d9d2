//! The proof that an ordinary user with Rust and its linker can build nearwire and run the demo.
//!
//! Everything the build may use is put into a fresh directory: the sources, a PATH of five programs
//! and a cargo home that holds nothing but the crates of `Cargo.lock`. The environment is empty
//! otherwise. Run by root, the build and the demo belong to the user nobody; run by anyone else,
//! to that user.

use std::collections::HashSet;
use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use serde_json::Value;

use crate::packages::find;
use crate::scratch::Scratch;
use crate::stage::Stage;
use crate::step::{Bench, Verdict};
use crate::tree::{bring, copy, files_below, give, is_open_to_all};

/// The system programs in the user's PATH, beside cargo and rustc.
const LINKER_PROGRAMS: [&str; 4] = ["cc", "as", "ld", "ar"];
/// What a machine behind a proxy needs to reach the registry.
const NETWORK_VARIABLES: [&str; 6] = [
    "http_proxy",
    "https_proxy",
    "HTTPS_PROXY",
    "no_proxy",
    "CARGO_HTTP_CAINFO",
    "SSL_CERT_FILE",
];
/// User and group nobody, as every Linux distribution numbers them.
const NOBODY: u32 = 65534;
/// The demo's promise, counted from its start.
const DEMO_LIMIT: Duration = Duration::from_secs(60);
/// Members of the demo's JSON that scripts rely on.
const DEMO_MEMBERS: [&str; 6] = [
    "commits",
    "p50_us",
    "p99_us",
    "failover_gap_us",
    "acknowledged_lost",
    "replicas",
];

/// Builds in release mode, and runs the demo once `nearwire --help` lists it.
pub(crate) fn prove(bench: &mut Bench<'_>, stage: &mut Stage<'_>) -> anyhow::Result<Verdict> {
    let root = &bench.workspace.root;
    // What root lays out, the user must be able to read.
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    let scratch = Scratch::create()?;
    let plain = Plain::lay_out(scratch.path(), root, stage)?;
    stage.run(
        plain
            .command("cargo")
            .args(["build", "--release", "--locked"]),
    )?;
    let nearwire = plain.sources().join("target/release/nearwire");
    let version = stage.read(plain.command(&nearwire).arg("--version"))?;
    anyhow::ensure!(
        !version.contains("simulation"),
        "a plain build has the hooks of simulations: {version}"
    );
    let help = stage.read(plain.command(&nearwire).arg("--help"))?;
    if !lists_subcommand(&help, "demo") {
        return Ok(Verdict::DoneWith(
            "built; `nearwire --help` lists no demo".to_owned(),
        ));
    }
    run_demo(stage, &mut plain.command(&nearwire))?;
    if geteuid().is_root() {
        run_demo(stage, Command::new(&nearwire).current_dir(plain.sources()))?;
    }
    Ok(Verdict::Done)
}

fn run_demo(stage: &mut Stage<'_>, nearwire: &mut Command) -> anyhow::Result<()> {
    let output = stage.read_within(DEMO_LIMIT, nearwire.args(["demo", "--output", "json"]))?;
    check_demo(&output)
}

/// The demo prints one object, whole, and loses nothing it acknowledged.
fn check_demo(output: &str) -> anyhow::Result<()> {
    let report: Value =
        serde_json::from_str(output).context("read the demo's output as one JSON value")?;
    for member in DEMO_MEMBERS {
        ensure!(
            report.get(member).is_some(),
            "the demo's output has no `{member}`"
        );
    }
    let lost = &report["acknowledged_lost"];
    ensure!(
        lost.as_u64() == Some(0),
        "the demo lost {lost} acknowledged writes"
    );
    let commits = &report["commits"];
    ensure!(
        commits.as_u64() > Some(0),
        "the demo committed {commits} writes"
    );
    Ok(())
}

/// clap lists a subcommand as the first word of an indented line.
fn lists_subcommand(help: &str, name: &str) -> bool {
    help.lines()
        .any(|line| line.starts_with(' ') && line.split_whitespace().next() == Some(name))
}

/// The ordinary user's world.
struct Plain {
    directory: PathBuf,
    /// Whom to become; nobody in particular if already ordinary.
    user: Option<u32>,
}

impl Plain {
    fn lay_out(directory: &Path, root: &Path, stage: &mut Stage<'_>) -> anyhow::Result<Self> {
        let plain = Self {
            directory: directory.to_owned(),
            user: geteuid().is_root().then_some(NOBODY),
        };
        let sysroot = stage.read(
            Command::new("rustc")
                .current_dir(root)
                .args(["--print", "sysroot"]),
        )?;
        plain.lay_out_path(Path::new(sysroot.trim()))?;
        let git = [
            "-c",
            "safe.directory=*",
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ];
        let files = Command::new("git")
            .current_dir(root)
            .args(git)
            .output()
            .context("run git")?;
        ensure!(
            files.status.success(),
            "git ls-files: {}",
            String::from_utf8_lossy(&files.stderr)
        );
        let files = String::from_utf8(files.stdout).context("read the names of the sources")?;
        for file in files.split_terminator('\0') {
            // A file deleted but not yet committed is still listed.
            if root.join(file).is_file() {
                copy(&root.join(file), &plain.sources().join(file))?;
            }
        }
        plain.lay_out_cargo_home(root)?;
        fs::create_dir(plain.home()).context("create the user's home")?;
        for owned in [plain.sources(), plain.cargo_home(), plain.home()] {
            give(&owned, plain.user)?;
        }
        Ok(plain)
    }

    /// A command of the user's, with nothing in its environment that was not put there here.
    fn command(&self, program: impl AsRef<Path>) -> Command {
        let program = program.as_ref();
        // A bare name is looked up here: the caller's PATH would be searched otherwise.
        let mut command = if program.components().count() == 1 {
            Command::new(self.path().join(program))
        } else {
            Command::new(program)
        };
        command
            .current_dir(self.sources())
            .env_clear()
            .env("PATH", self.path())
            .env("HOME", self.home())
            .env("CARGO_HOME", self.cargo_home());
        for variable in NETWORK_VARIABLES {
            if let Some(value) = env::var_os(variable) {
                command.env(variable, value);
            }
        }
        if let Some(user) = self.user {
            // Supplementary groups are dropped with the user.
            command.uid(user).gid(user);
        }
        command
    }

    /// Links the five programs; a toolchain the user cannot reach (rustup's, under root's home) is
    /// brought to where it can be.
    fn lay_out_path(&self, sysroot: &Path) -> anyhow::Result<()> {
        fs::create_dir(self.path()).context("create the user's PATH")?;
        let toolchain = if self.user.is_none() || is_open_to_all(sysroot) {
            sysroot.to_owned()
        } else {
            let toolchain = self.directory.join("toolchain");
            for part in ["bin/cargo", "bin/rustc", "lib"] {
                bring(&sysroot.join(part), &toolchain.join(part))?;
            }
            toolchain
        };
        for program in ["cargo", "rustc"] {
            self.link(program, &toolchain.join("bin").join(program))?;
        }
        for program in LINKER_PROGRAMS {
            let found = find(program).with_context(|| format!("find `{program}` in PATH"))?;
            self.link(program, &found)?;
        }
        Ok(())
    }

    fn link(&self, program: &str, to: &Path) -> anyhow::Result<()> {
        ensure!(to.is_file(), "there is no {}", to.display());
        symlink(to, self.path().join(program)).with_context(|| format!("link {}", to.display()))
    }

    /// Copies what the registry has of the locked crates, which spares a second download.
    fn lay_out_cargo_home(&self, root: &Path) -> anyhow::Result<()> {
        fs::create_dir(self.cargo_home()).context("create the user's cargo home")?;
        let lock = fs::read_to_string(root.join("Cargo.lock")).context("read Cargo.lock")?;
        let wanted = registry_files(&lock);
        let Some(cargo_home) = cargo_home() else {
            return Ok(());
        };
        for part in ["registry/index", "registry/cache"] {
            let from = cargo_home.join(part);
            let to = self.cargo_home().join(part);
            for file in files_below(&from)? {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                if wanted.contains(name.as_ref()) {
                    copy(&from.join(&file), &to.join(&file))?;
                }
            }
        }
        Ok(())
    }

    fn path(&self) -> PathBuf {
        self.directory.join("path")
    }

    fn sources(&self) -> PathBuf {
        self.directory.join("nearwire")
    }

    fn home(&self) -> PathBuf {
        self.directory.join("home")
    }

    fn cargo_home(&self) -> PathBuf {
        self.directory.join("cargo")
    }
}

/// File names of the registry that belong to the lock's crates: `name-version.crate` in the cache,
/// `name` and `config.json` in the index.
fn registry_files(lock: &str) -> HashSet<String> {
    let mut files = HashSet::from(["config.json".to_owned()]);
    let mut name = "";
    for line in lock.lines() {
        let value = |key: &str| {
            line.strip_prefix(key)?
                .strip_prefix(" = \"")?
                .strip_suffix('"')
        };
        if let Some(found) = value("name") {
            name = found;
            files.insert(name.to_owned());
        } else if let Some(version) = value("version") {
            files.insert(format!("{name}-{version}.crate"));
        }
    }
    files
}

fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"{"commits": 9, "p50_us": 1.5, "p99_us": 2, "failover_gap_us": 3,
        "acknowledged_lost": 0, "replicas": []}"#;

    #[test]
    fn a_whole_report_without_losses_passes() {
        check_demo(REPORT).expect("the report is whole");
    }

    #[test]
    fn a_lost_write_a_missing_member_and_a_second_value_are_refused() {
        let refusal = |report: &str| check_demo(report).expect_err(report).to_string();
        let lost = REPORT.replace("\"acknowledged_lost\": 0", "\"acknowledged_lost\": 2");
        assert_eq!(refusal(&lost), "the demo lost 2 acknowledged writes");
        let idle = REPORT.replace("\"commits\": 9", "\"commits\": 0");
        assert_eq!(refusal(&idle), "the demo committed 0 writes");
        let without = REPORT.replace("p99_us", "p98_us");
        assert_eq!(refusal(&without), "the demo's output has no `p99_us`");
        refusal(&format!("{REPORT}{REPORT}"));
    }

    #[test]
    fn a_subcommand_is_found_in_the_list_only() {
        let help = "Runs a demo\n\nCommands:\n  demo    Three replicas\n  run     One\n";
        assert!(lists_subcommand(help, "demo"));
        assert!(!lists_subcommand(
            "demo is not here\n  run  runs the demo\n",
            "demo"
        ));
    }

    #[test]
    fn the_lock_names_the_registry_files() {
        let lock = "[[package]]\nname = \"libc\"\nversion = \"0.2.1\"\nsource = \"x\"\n";
        let files = registry_files(lock);
        for file in ["libc", "libc-0.2.1.crate", "config.json"] {
            assert!(files.contains(file), "{file}");
        }
        assert_eq!(files.len(), 3);
    }
}
