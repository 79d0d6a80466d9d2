//! QEMU and a kernel, out of Debian's packages but not installed: `qemu-system-x86` cannot stand
//! beside the `qemu-utils` of another release, and a kernel is not to end up in a boot menu.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use nix::unistd::geteuid;

use super::kernel::{Modules, payload};
use super::libraries::{libraries, loader};
use crate::packages::{apt, find};
use crate::stage::Stage;
use crate::workspace::GuestTest;

const QEMU: &str = "qemu-system-x86";
/// Its parts; libraries come from whatever it depends on.
const QEMU_PARTS: [&str; 4] = [QEMU, "qemu-system-common", "qemu-system-data", "seabios"];
const EXECUTABLE: &str = "usr/bin/qemu-system-x86_64";
/// The emulated processor, which QEMU loads when it starts.
const ACCELERATOR: &str = "usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so";
/// Where packages have libraries.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
/// What makes a guest of packages, and what is packed with every test.
const TOOLS: [&str; 5] = ["apt-get", "apt-cache", "dpkg", "xz", "ip"];
/// What the machine runs before the kernel.
const FIRMWARE: [&str; 3] = [
    "usr/share/seabios/bios-256k.bin",
    "usr/share/qemu/kvmvapic.bin",
    "usr/share/qemu/pvh.bin",
];

/// What a guest is made of, in the cache: a directory for each version of each package, which
/// holds what is used of it. Others are removed.
pub(super) struct Rig {
    qemu: PathBuf,
    kernel: PathBuf,
    /// What tests need beside, by the names of the packages.
    packages: BTreeMap<String, PathBuf>,
}

impl Rig {
    /// Fetches what the cache does not have: QEMU, the newest build of the kernel `release`, the
    /// modules of it that `tests` name with what these need, and packages that they name.
    pub(super) fn provide(
        cache: &Path,
        release: &str,
        tests: &[GuestTest],
        stage: &mut Stage<'_>,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(cache).with_context(|| format!("create {}", cache.display()))?;
        let lock = cache.join("lock");
        let lock = File::create(&lock).and_then(|file| file.lock().map(|()| file));
        let _lock = lock.with_context(|| format!("lock {}", cache.display()))?;
        match Self::of_packages(cache, release, tests, stage) {
            // The lists of packages may be missing here, or be older than the archive.
            Err(error) if geteuid().is_root() => {
                stage.say(&format!("{error:#}; once more with new lists of packages"))?;
                stage.run(&mut apt(&["update"]))?;
                Self::of_packages(cache, release, tests, stage)
            }
            Err(error) => Err(error.context("`sudo apt-get update` may mend this")),
            provided => provided,
        }
    }

    fn of_packages(
        cache: &Path,
        release: &str,
        tests: &[GuestTest],
        stage: &mut Stage<'_>,
    ) -> anyhow::Result<Self> {
        let qemu = kept(cache, QEMU, stage, &|_| true, &|stage, part, out| {
            let mut install = apt(&["install", "--simulate", "--reinstall"]);
            install.arg("--no-install-recommends").args(QEMU_PARTS);
            let needed = new_packages(&stage.read(&mut install)?);
            unpack(&needed, part, stage)?;
            keep_qemu(part, out)
        })?;
        let mut packages = BTreeMap::new();
        for package in tests.iter().flat_map(|test| &test.packages) {
            let files = kept(cache, package, stage, &|_| true, &|stage, part, out| {
                unpack(std::slice::from_ref(package), part, stage)?;
                keep_package(&part.join("tree"), out)
            })?;
            packages.insert(package.clone(), files);
        }
        let modules = tests.iter().flat_map(|test| test.modules.iter().cloned());
        let modules: Vec<_> = modules.collect();
        let prefix = format!("linux-image-{release}.0-");
        let names = stage.read(Command::new("apt-cache").args(["pkgnames", &prefix]))?;
        let package = newest(&names, &prefix);
        let package = package.with_context(|| format!("find a package {prefix}…-amd64"))?;
        let has_modules = |kernel: &Path| {
            let kept = Modules::below(&kernel.join("modules"));
            kept.and_then(|kept| kept.in_order(&modules)).is_ok()
        };
        let kernel = kept(cache, &package, stage, &has_modules, &|stage, part, out| {
            unpack(std::slice::from_ref(&package), part, stage)?;
            keep_kernel(&package, &modules, part, out, stage)
        })?;
        let used = [&qemu, &kernel].into_iter().chain(packages.values());
        remove_others(cache, &used.collect::<Vec<_>>())?;
        Ok(Self {
            qemu,
            kernel,
            packages,
        })
    }

    /// Starts QEMU with firmware and libraries of its own version.
    pub(super) fn qemu(&self) -> Command {
        let mut command = Command::new(self.qemu.join("qemu"));
        command
            .env("LD_LIBRARY_PATH", self.qemu.join("lib"))
            .env("QEMU_MODULE_DIR", self.qemu.join("modules"))
            .arg("-L")
            .arg(self.qemu.join("firmware"));
        command
    }

    pub(super) fn vmlinux(&self) -> PathBuf {
        self.kernel.join("vmlinux")
    }

    /// The files of a package, each with its name in the guest.
    pub(super) fn files(&self, package: &str) -> anyhow::Result<Vec<(String, PathBuf)>> {
        let directory = self.packages.get(package);
        let directory = directory.with_context(|| format!("find the package {package}"))?;
        files_below(directory)
    }

    /// The files of modules and of those that they need, in the order of loading.
    pub(super) fn modules(&self, names: &[String]) -> anyhow::Result<Vec<PathBuf>> {
        Modules::below(&self.kernel.join("modules"))?.in_order(names)
    }
}

/// Makes a directory out of unpacked packages: the stage, where they are unpacked, the directory.
type Make<'a> = dyn Fn(&mut Stage<'_>, &Path, &Path) -> anyhow::Result<()> + 'a;

/// The cache's directory for the present version of a package, made first unless it is there and
/// has everything.
fn kept(
    cache: &Path,
    package: &str,
    stage: &mut Stage<'_>,
    has_all: &dyn Fn(&Path) -> bool,
    make: &Make<'_>,
) -> anyhow::Result<PathBuf> {
    let uris = stage.read(&mut apt(&["download", "--print-uris", package]))?;
    let version = file_name(&uris).with_context(|| format!("find the package {package}"))?;
    let directory = cache.join(version);
    if directory.is_dir() && has_all(&directory) {
        return Ok(directory);
    }
    let part = cache.join("part");
    for old in [&part, &directory] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("remove {}", old.display()))?;
        }
    }
    let out = part.join("kept");
    fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
    make(stage, &part, &out).with_context(|| format!("prepare {version}"))?;
    fs::rename(&out, &directory).with_context(|| format!("move {}", out.display()))?;
    fs::remove_dir_all(&part).with_context(|| format!("remove {}", part.display()))?;
    Ok(directory)
}

/// Downloads packages and unpacks them side by side.
fn unpack(packages: &[String], part: &Path, stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let mut download = apt(&["download"]);
    stage.run(download.args(packages).current_dir(part))?;
    for entry in fs::read_dir(part).with_context(|| format!("list {}", part.display()))? {
        let path = entry.context("list what was downloaded")?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            let mut unpack = Command::new("dpkg");
            stage.run(unpack.arg("--extract").arg(&path).arg(part.join("tree")))?;
        }
    }
    Ok(())
}

fn keep_qemu(part: &Path, out: &Path) -> anyhow::Result<()> {
    let tree = part.join("tree");
    let directories = LIBRARIES.map(|directory| tree.join(directory));
    let executable = tree.join(EXECUTABLE);
    let loader = loader(&executable)?.context("find the loader of QEMU")?;
    for of in [&executable, &tree.join(ACCELERATOR)] {
        for library in libraries(of, &loader, &directories)? {
            // The others are this system's, and QEMU will find them there.
            if library.path.starts_with(&tree) {
                copy(&library.path, &out.join("lib").join(library.name))?;
            }
        }
    }
    copy(&executable, &out.join("qemu"))?;
    copy_into(&out.join("modules"), &tree.join(ACCELERATOR))?;
    for firmware in FIRMWARE {
        copy_into(&out.join("firmware"), &tree.join(firmware))?;
    }
    Ok(())
}

/// What a package installs, but for documentation.
fn keep_package(tree: &Path, out: &Path) -> anyhow::Result<()> {
    for (name, path) in files_below(tree)? {
        if !name.starts_with("usr/share/") {
            copy(&path, &out.join(name))?;
        }
    }
    Ok(())
}

/// All files below a directory, each with its name there. What a link leads to stands for it.
fn files_below(directory: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(next) = left.pop() {
        let list = || format!("list {}", next.display());
        for entry in fs::read_dir(&next).with_context(list)? {
            let path = entry.with_context(list)?.path();
            if path.is_dir() {
                left.push(path);
            } else if path.is_file() {
                let name = path.strip_prefix(directory).unwrap_or(&path);
                files.push((name.to_string_lossy().into_owned(), path.clone()));
            }
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn keep_kernel(
    package: &str,
    modules: &[String],
    part: &Path,
    out: &Path,
    stage: &mut Stage<'_>,
) -> anyhow::Result<()> {
    let tree = part.join("tree");
    let version = package.trim_start_matches("linux-image-");
    let image = tree.join(format!("boot/vmlinuz-{version}"));
    let read = || format!("read {}", image.display());
    let bytes = fs::read(&image).with_context(read)?;
    let compressed = out.join("vmlinux.xz");
    fs::write(&compressed, payload(&bytes).with_context(read)?)
        .with_context(|| format!("write {}", compressed.display()))?;
    // Behind the stream stands its length, which xz is not to take for another.
    let mut decompress = Command::new("xz");
    decompress.args(["--decompress", "--single-stream"]);
    stage.run(decompress.arg(&compressed))?;
    let all = Modules::below(&tree.join("lib/modules").join(version))?;
    fs::create_dir_all(out.join("modules")).context("create the directory of modules")?;
    for module in all.in_order(modules)? {
        copy_into(&out.join("modules"), &module)?;
    }
    Ok(())
}

fn copy_into(directory: &Path, from: &Path) -> anyhow::Result<()> {
    copy(from, &directory.join(from.file_name().unwrap_or_default()))
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let above = to.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(above)
        .and_then(|()| fs::copy(from, to))
        .with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn remove_others(cache: &Path, used: &[&PathBuf]) -> anyhow::Result<()> {
    for entry in fs::read_dir(cache).with_context(|| format!("list {}", cache.display()))? {
        let path = entry.context("list the cache")?.path();
        if path.is_dir() && !used.contains(&&path) {
            fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// What this system lacks to make a guest; nothing, where all is there.
pub(super) fn lacking() -> Option<String> {
    if std::env::consts::ARCH != "x86_64" {
        return Some("guests are x86-64 machines of the same processor as this one".to_owned());
    }
    let missing = TOOLS.iter().find(|program| find(program).is_none())?;
    Some(format!(
        "a guest is made of Debian's packages by {}: there is no {missing}",
        TOOLS.join(", ")
    ))
}

/// The packages that a simulated installation would add, as `name=version`.
fn new_packages(simulation: &str) -> Vec<String> {
    let lines = simulation.lines();
    let installed = lines.filter_map(|line| line.strip_prefix("Inst ")?.split_once(" ("));
    installed
        .map(|(name, rest)| {
            // An upgrade has the old version in brackets between the two.
            let name = name.split(' ').next().unwrap_or(name);
            let version = rest.split([' ', ')']).next().unwrap_or_default();
            format!("{name}={version}")
        })
        .collect()
}

/// The file of the package in a line such as `'http://…' name_version_amd64.deb 1234 SHA256:…`,
/// without its ending.
fn file_name(uris: &str) -> Option<&str> {
    let line = uris.lines().find(|line| line.starts_with('\''))?;
    line.split(' ').nth(1)?.strip_suffix(".deb")
}

/// The package of the highest build among such as `linux-image-6.1.0-50-amd64`. What has a word
/// more is another flavour.
fn newest(names: &str, prefix: &str) -> Option<String> {
    let build = |name: &str| -> Option<u32> {
        let build = name.strip_prefix(prefix)?.strip_suffix("-amd64")?;
        build.parse().ok()
    };
    let builds = names.lines().filter_map(build);
    builds.max().map(|build| format!("{prefix}{build}-amd64"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_installed_is_downloaded() {
        let simulation = "The following packages will be REMOVED:\n  qemu-utils\n\
            Remv qemu-utils [1:10.0.2]\n\
            Inst libfdt1 (1.6.1-4+b1 Debian:12.15/oldstable [amd64])\n\
            Inst libaio1 [0.3-1] (0.3-2 Debian:12.15/oldstable [amd64]) []\n\
            Conf libfdt1 (1.6.1-4+b1 Debian:12.15/oldstable [amd64])\n";
        let expected = ["libfdt1=1.6.1-4+b1", "libaio1=0.3-2"];
        assert_eq!(new_packages(simulation), expected);
    }

    #[test]
    fn a_package_is_known_by_its_file() {
        let uris = "'http://deb.debian.org/x_1%3a2_amd64.deb' x_1%3a2_amd64.deb 9 SHA256:ab\n";
        assert_eq!(file_name(uris), Some("x_1%3a2_amd64"));
        assert_eq!(file_name("E: Unable to locate package x\n"), None);
    }

    #[test]
    fn the_newest_build_is_taken_of_the_plain_flavour() {
        let names = "linux-image-6.1.0-9-amd64\nlinux-image-6.1.0-50-amd64\n\
            linux-image-6.1.0-56-cloud-amd64\nlinux-image-6.1.0-56-amd64-dbg\n";
        let newest = newest(names, "linux-image-6.1.0-");
        assert_eq!(newest.as_deref(), Some("linux-image-6.1.0-50-amd64"));
    }
}
