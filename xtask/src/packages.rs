//! System packages that tests need, and their installation.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use nix::unistd::geteuid;

use crate::step::Step;

/// How long apt waits for another installation on the same machine.
const APT_LOCK_SECONDS: &str = "DPkg::Lock::Timeout=300";
const APT_RETRIES: &str = "Acquire::Retries=3";
/// Without a terminal dpkg draws no progress into the log.
const APT_NO_TERMINAL: &str = "Dpkg::Use-Pty=0";

/// A package, and a program by which its presence is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Package {
    /// Its name in Debian and Ubuntu.
    pub(crate) name: &'static str,
    program: &'static str,
    /// What it is for.
    pub(crate) purpose: &'static str,
}

pub(crate) const GIT: Package = Package {
    name: "git",
    program: "git",
    purpose: "the list of source files",
};
pub(crate) const IPROUTE2: Package = Package {
    name: "iproute2",
    program: "ip",
    purpose: "network namespaces and links",
};
pub(crate) const XZ_UTILS: Package = Package {
    name: "xz-utils",
    program: "xz",
    purpose: "the kernel inside a boot image",
};
pub(crate) const REDIS_TOOLS: Package = Package {
    name: "redis-tools",
    program: "redis-cli",
    purpose: "an independent client and load generator for the RESP front",
};

/// Installs what `steps` need and do not find, or says exactly what a person has to do.
pub(crate) fn provide(steps: &[&Step]) -> anyhow::Result<()> {
    let missing = missing(steps, &|program| find(program).is_some());
    if missing.is_empty() {
        return Ok(());
    }
    let install = install_command(&missing);
    if !is_debian() || !geteuid().is_root() {
        bail!("{}", instructions(steps, &missing, &install));
    }
    println!("installing {}", names(&missing));
    run_apt(&["update"])?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(missing.iter().map(|package| package.name));
    run_apt(&arguments)?;
    for package in &missing {
        ensure!(
            find(package.program).is_some(),
            "{} was installed, but `{}` is still not in PATH",
            package.name,
            package.program
        );
    }
    Ok(())
}

fn missing(steps: &[&Step], present: &dyn Fn(&str) -> bool) -> Vec<Package> {
    let mut missing: Vec<Package> = Vec::new();
    for package in steps.iter().flat_map(|step| step.packages) {
        if !missing.contains(package) && !present(package.program) {
            missing.push(*package);
        }
    }
    missing
}

fn names(packages: &[Package]) -> String {
    packages
        .iter()
        .map(|package| package.name)
        .collect::<Vec<_>>()
        .join(" ")
}

fn install_command(packages: &[Package]) -> String {
    format!(
        "apt-get update && apt-get install --yes --no-install-recommends {}",
        names(packages)
    )
}

/// What cannot run, why, what mends it, and what runs all the same.
fn instructions(steps: &[&Step], missing: &[Package], install: &str) -> String {
    let mut text = String::from("these packages are missing:\n");
    for package in missing {
        let needed_by: Vec<_> = steps
            .iter()
            .filter(|step| step.packages.contains(package))
            .map(|step| step.name)
            .collect();
        text += &format!(
            "  {} ({}), needed by: {}\n",
            package.name,
            package.purpose,
            needed_by.join(", ")
        );
    }
    text += "install them as root and run this again; on Debian or Ubuntu:\n";
    text += &format!("  sudo sh -c '{install}'\n");
    let unaffected: Vec<_> = steps
        .iter()
        .filter(|step| {
            !step
                .packages
                .iter()
                .any(|package| missing.contains(package))
        })
        .map(|step| step.name)
        .collect();
    if !unaffected.is_empty() {
        text += &format!(
            "the other steps run without them:\n  cargo xtask test --only {}",
            unaffected.join(",")
        );
    }
    text
}

/// A command of apt-get that waits for others and asks nothing.
pub(crate) fn apt(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args([
            "--quiet",
            "-o",
            APT_LOCK_SECONDS,
            "-o",
            APT_RETRIES,
            "-o",
            APT_NO_TERMINAL,
        ])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn run_apt(arguments: &[&str]) -> anyhow::Result<()> {
    let status = apt(arguments).status().context("start apt-get")?;
    ensure!(
        status.success(),
        "apt-get {}: {status}",
        arguments.join(" ")
    );
    Ok(())
}

fn is_debian() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    is_debian_release(&release) && find("apt-get").is_some()
}

fn is_debian_release(release: &str) -> bool {
    release
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(key, _)| matches!(*key, "ID" | "ID_LIKE"))
        .flat_map(|(_, value)| value.trim_matches('"').split_whitespace())
        .any(|id| matches!(id, "debian" | "ubuntu"))
}

/// Where `program` is, in PATH or in root's directories, which an ordinary user's PATH often lacks.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| Path::is_file(candidate))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::STEPS;

    #[test]
    fn only_packages_of_chosen_steps_are_asked_for() {
        let format: Vec<_> = STEPS.iter().filter(|step| step.name == "format").collect();
        assert!(missing(&format, &|_| false).is_empty());
        let all: Vec<_> = STEPS.iter().collect();
        assert_eq!(
            missing(&all, &|program| program != "redis-cli"),
            [REDIS_TOOLS]
        );
    }

    #[test]
    fn the_instructions_name_the_package_the_command_and_what_still_runs() {
        let all: Vec<_> = STEPS.iter().collect();
        let text = instructions(&all, &[REDIS_TOOLS], &install_command(&[REDIS_TOOLS]));
        assert!(text.contains("redis-tools (an independent"), "{text}");
        assert!(text.contains("needed by: integration"), "{text}");
        assert!(
            text.contains("apt-get install --yes --no-install-recommends redis-tools"),
            "{text}"
        );
        assert!(text.contains("--only format,"), "{text}");
        assert!(!text.contains(",integration"), "{text}");
    }

    #[test]
    fn debian_and_what_derives_from_it_is_known() {
        assert!(is_debian_release("PRETTY_NAME=\"Debian\"\nID=debian\n"));
        assert!(is_debian_release(
            "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"
        ));
        assert!(!is_debian_release("ID=fedora\nVARIANT=debian\n"));
    }
}
