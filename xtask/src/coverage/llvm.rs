//! LLVM's own tools for profiles, of the version that rustc is built with.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use crate::packages::find;

/// The two tools.
pub(super) struct Llvm {
    profdata: PathBuf,
    cov: PathBuf,
    /// The machine that rustc compiles for, as it calls it.
    pub(super) host: String,
}

impl Llvm {
    /// What `LLVM_PROFDATA` and `LLVM_COV` name, else rustup's component, else the system's package.
    pub(super) fn find() -> anyhow::Result<Self> {
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let version = output(Command::new(&rustc).arg("-vV"))?;
        let field = |name: &str| version.lines().find_map(|line| line.strip_prefix(name));
        let host = field("host: ").context("read the host from `rustc -vV`")?;
        let major = field("LLVM version: ").and_then(|version| version.split('.').next());
        let major = major.context("read the version of LLVM from `rustc -vV`")?;
        let sysroot = output(Command::new(&rustc).args(["--print", "sysroot"]))?;
        let component = Path::new(sysroot.trim()).join("lib/rustlib").join(host);
        let tool = |name: &str, variable_name: &str| {
            if let Some(program) = variable(variable_name) {
                let told = output(Command::new(&program).arg("--version"))
                    .with_context(|| format!("ask {variable_name} for its version"))?;
                ensure!(
                    is_version(&told, major),
                    "{variable_name} is {}, which is not of LLVM {major}, as rustc is",
                    program.display()
                );
                return Ok(program);
            }
            let versioned = PathBuf::from(format!("/usr/lib/llvm-{major}/bin")).join(name);
            let places = [
                Some(component.join("bin").join(name)),
                find(&format!("{name}-{major}")),
                Some(versioned),
                find(name),
            ];
            let is_right = |program: &PathBuf| {
                let told = output(Command::new(program).arg("--version"));
                told.is_ok_and(|told| is_version(&told, major))
            };
            match places.into_iter().flatten().find(is_right) {
                Some(program) => Ok(program),
                None => bail!("{}", remedy(name, variable_name, major)),
            }
        };
        Ok(Self {
            profdata: tool("llvm-profdata", "LLVM_PROFDATA")?,
            cov: tool("llvm-cov", "LLVM_COV")?,
            host: host.to_owned(),
        })
    }

    /// Adds profiles up.
    pub(super) fn merge(&self, profiles: &[PathBuf], to: &Path) -> anyhow::Result<()> {
        let mut command = Command::new(&self.profdata);
        command.args(["merge", "-sparse", "-o"]).arg(to);
        output(command.args(profiles)).map(drop)
    }

    /// How often each line of `sources` was run in `program`, in lcov's format.
    pub(super) fn export(
        &self,
        profile: &Path,
        program: &Path,
        sources: &Path,
    ) -> anyhow::Result<String> {
        let mut command = Command::new(&self.cov);
        command.args(["export", "-format=lcov", "-instr-profile"]);
        command.arg(profile).arg(program);
        output(command.arg("-sources").arg(sources))
    }
}

/// The value of an environment variable that names a program.
fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// What a command that succeeds writes.
fn output(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_owned();
    let program = Path::new(&program).file_name().map(OsStr::to_owned);
    let program = program.unwrap_or_default().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("start {program}"))?;
    ensure!(
        output.status.success(),
        "{program} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).with_context(|| format!("read what {program} wrote"))
}

/// Whether a tool that says so reads what rustc's LLVM writes: the format changes between versions.
fn is_version(told: &str, major: &str) -> bool {
    let mut versions = told.split("LLVM version ").skip(1);
    let version = versions.next().and_then(|rest| rest.split('.').next());
    version.is_some_and(|version| version.trim() == major)
}

fn remedy(name: &str, variable_name: &str, major: &str) -> String {
    format!(
        "{name} of LLVM {major}, which rustc is built with, is not here\n\
         remedy: rustup component add llvm-tools\n\
         or, on Debian and Ubuntu: apt-get install --no-install-recommends llvm-{major}\n\
         or name it in {variable_name}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_of_another_version_is_not_taken() {
        for (told, is_right) in [
            ("Debian LLVM version 22.1.2\n  Optimized build.\n", true),
            (
                "LLVM (http://llvm.org/):\n  LLVM version 22.1.2-rust-1.95.0-stable\n",
                true,
            ),
            ("Debian LLVM version 14.0.6\n", false),
            ("LLVM version 2.9\n", false),
            ("", false),
        ] {
            assert_eq!(is_version(told, "22"), is_right, "{told}");
        }
    }

    #[test]
    fn what_is_missing_is_named_with_what_mends_it() {
        let text = remedy("llvm-cov", "LLVM_COV", "22");
        for part in [
            "LLVM 22",
            "llvm-tools",
            "install --no-install-recommends llvm-22",
            "LLVM_COV",
        ] {
            assert!(text.contains(part), "{part}");
        }
    }
}
