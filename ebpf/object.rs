//! The committed XDP object: what it was made from, and how it is made again.
//!
//! Shared by the build script, which embeds it, and `cargo xtask ebpf`, which writes it.

use sha2::{Digest as _, Sha256};
use std::env;
use std::fmt::{self, Display, Formatter, Write as _};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The object, relative to the root.
pub(crate) const OBJECT: &str = "ebpf/objects/acceptor.o";
/// The digests of its sources, as `sha256sum` writes them; `sha256sum --check` reads them.
pub(crate) const SOURCES: &str = "ebpf/objects/SOURCES";
/// The crate that it is built from. A package that was published has the object only.
pub(crate) const PROGRAMS: &str = "ebpf/programs";
const TARGET: &str = "bpfel-unknown-none";
const LINKER: &str = "bpf-linker";

/// What the sources have to do with the committed object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Committed {
    /// It was made from them, or they are not here.
    Current,
    /// This one has changed since.
    Stale(String),
}

/// Compares the sources with the committed digests. Also gives the paths of all of them.
pub(crate) fn committed(root: &Path) -> Result<(Committed, Vec<String>), String> {
    let text = fs::read_to_string(root.join(SOURCES))
        .map_err(|error| format!("read {SOURCES}: {error}"))?;
    let mut state = Committed::Current;
    let mut paths = Vec::new();
    for line in text.lines() {
        let (digest, path) = line
            .split_once("  ")
            .ok_or_else(|| format!("read {SOURCES}: {line:?} is no digest and path"))?;
        paths.push(path.to_owned());
        if root.join(PROGRAMS).is_dir() && digest_of(&root.join(path))? != digest {
            state = Committed::Stale(path.to_owned());
        }
    }
    Ok((state, paths))
}

/// The text of [`SOURCES`] for these files.
pub(crate) fn digests(root: &Path, paths: &[String]) -> Result<String, String> {
    let mut text = String::new();
    for path in paths {
        let digest = digest_of(&root.join(path))?;
        writeln!(text, "{digest}  {path}").map_err(|error| error.to_string())?;
    }
    Ok(text)
}

fn digest_of(path: &Path) -> Result<String, String> {
    let bytes = fs::read(path).map_err(|error| format!("read {}: {error}", path.display()))?;
    let digest = Sha256::digest(bytes);
    Ok(digest
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}")))
}

/// An object that was just built.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) bytes: Vec<u8>,
    /// What it was made from, relative to the root and sorted.
    pub(crate) sources: Vec<String>,
    /// The compiler that made it.
    pub(crate) compiler: String,
}

/// A Rust compiler that can make BPF programs.
#[derive(Debug)]
struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    version: String,
    /// Its `core` for BPF has to be built with the program.
    builds_core: bool,
}

/// Why an object was not built.
#[derive(Debug)]
pub(crate) enum Problem {
    /// What is missing on this machine, and what mends it.
    Missing(String),
    /// What went wrong.
    Failed(String),
}

impl Display for Problem {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(what) => write!(f, "{what}; {REMEDY}"),
            Self::Failed(what) => f.write_str(what),
        }
    }
}

/// What to do where nothing can build the object.
const REMEDY: &str = "install one of these and try again:
  rustup: rustup toolchain install nightly --component rust-src && cargo install bpf-linker
  Debian: apt-get install --no-install-recommends rustc-web cargo-web libstd-rust-web-dev-bpf llvm-22-dev &&
          LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --no-default-features --features llvm-22
bpf-linker's LLVM must be at least as new as the compiler's";

/// Whether a build may fetch what it needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Network {
    /// Whoever started it wants that.
    Allowed,
    /// It is part of another, of which nobody knows whether it may.
    Forbidden,
}

/// Builds the object below `directory` with the first usable toolchain. The committed one has none of
/// the `features`.
pub(crate) fn build(
    root: &Path,
    directory: &Path,
    features: &[&str],
    network: Network,
) -> Result<Built, Problem> {
    let missing = |what: String| Problem::Missing(what);
    let linker = find(LINKER).ok_or_else(|| missing(format!("there is no {LINKER}")))?;
    let toolchain = toolchain().ok_or_else(|| {
        missing(format!(
            "no Rust compiler here has a core library for {TARGET} or its sources"
        ))
    })?;
    build_with(&toolchain, &linker, root, directory, features, network).map_err(Problem::Failed)
}

fn build_with(
    toolchain: &Toolchain,
    linker: &Path,
    root: &Path,
    directory: &Path,
    features: &[&str],
    network: Network,
) -> Result<Built, String> {
    let mut command = Command::new(&toolchain.cargo);
    for (variable, _) in env::vars_os() {
        if variable.to_str().is_some_and(is_of_caller) {
            command.env_remove(variable);
        }
    }
    command
        .current_dir(root.join(PROGRAMS))
        .args(["build", "--release", "--locked", "--target", TARGET])
        .arg("--target-dir")
        .arg(directory)
        .arg(format!("--features={}", features.join(",")))
        .env("RUSTC", &toolchain.rustc)
        // Inline assembly for BPF is an unstable feature.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
        // Without the last flag every unaligned integer of the wire is read byte by byte: three
        // times the instructions.
        .env(
            "CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS",
            "--cfg=bpf_target_arch=\"x86_64\" -Ctarget-cpu=v3 \
             -Clink-arg=--cpu-features=+allows-misaligned-mem-access",
        );
    if toolchain.builds_core {
        command.arg("-Zbuild-std=core");
    }
    if network == Network::Forbidden {
        command.arg("--offline");
    }
    let output = command
        .output()
        .map_err(|error| format!("start {}: {error}", toolchain.cargo.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "build {PROGRAMS} with {}:\n{said}",
            toolchain.version
        ));
    }
    let object = directory.join(TARGET).join("release/acceptor");
    let bytes = fs::read(&object).map_err(|error| format!("read {}: {error}", object.display()))?;
    Ok(Built {
        bytes,
        sources: sources(root, &object.with_extension("d"))?,
        compiler: toolchain.version.clone(),
    })
}

/// Whether a variable belongs to the build that this one may be part of, or says how its caller
/// builds.
pub(crate) fn is_of_caller(variable: &str) -> bool {
    const NAMES: [&str; 7] = [
        "CARGO",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
    ];
    let prefixes = ["CARGO_BUILD_", "CARGO_PROFILE_"];
    NAMES.contains(&variable) || prefixes.iter().any(|prefix| variable.starts_with(prefix))
}

/// What the compiler read, what told cargo what to compile, and this file, which has the flags. Not
/// the root's manifest, of which the core takes its edition, and which changes often.
fn sources(root: &Path, dependencies: &Path) -> Result<Vec<String>, String> {
    let text = fs::read_to_string(dependencies)
        .map_err(|error| format!("read {}: {error}", dependencies.display()))?;
    let root = fs::canonicalize(root).map_err(|error| format!("find the root: {error}"))?;
    sources_in(&text, &root)
}

/// As [`sources`], from the text of a dependency file: the object, a colon, and paths in which a
/// backslash stands before each blank.
pub(crate) fn sources_in(text: &str, root: &Path) -> Result<Vec<String>, String> {
    const BLANK: &str = "\0";
    let text = text.replace("\\ ", BLANK);
    let (_, paths) = text.split_once(": ").unwrap_or_default();
    let read = paths
        .split_whitespace()
        .map(|path| path.replace(BLANK, " "))
        .filter_map(|path| {
            Some(
                Path::new(&path)
                    .strip_prefix(root)
                    .ok()?
                    .to_str()?
                    .to_owned(),
            )
        });
    let manifests = [
        "ebpf/object.rs",
        "consensus/Cargo.toml",
        "ebpf/programs/Cargo.toml",
        "ebpf/programs/Cargo.lock",
    ];
    let mut sources: Vec<String> = read.chain(manifests.map(str::to_owned)).collect();
    sources.sort_unstable();
    let main = format!("{PROGRAMS}/src/main.rs");
    if !sources.contains(&main) {
        return Err(format!(
            "{main} is not among what the compiler says to have read below {}",
            root.display()
        ));
    }
    Ok(sources)
}

/// The first usable one: a distribution's with a core for BPF, else rustup's nightly.
fn toolchain() -> Option<Toolchain> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian's stands in /usr/bin, often behind rustup's in PATH.
    let directories = env::split_paths(&path).chain([PathBuf::from("/usr/bin")]);
    let with_core = directories.map(|directory| (directory.join("cargo"), directory.join("rustc")));
    with_core
        .filter(|(cargo, rustc)| cargo.is_file() && rustc.is_file())
        .find_map(|(cargo, rustc)| {
            let library = sysroot(&rustc)?.join("lib/rustlib").join(TARGET);
            usable(cargo, rustc, &library, false)
        })
        .or_else(|| {
            let which = |program| {
                let asked =
                    said(Command::new("rustup").args(["which", "--toolchain", "nightly", program]));
                asked.map(PathBuf::from)
            };
            let (cargo, rustc) = (which("cargo")?, which("rustc")?);
            let library = sysroot(&rustc)?.join("lib/rustlib/src/rust/library/core");
            usable(cargo, rustc, &library, true)
        })
}

fn usable(cargo: PathBuf, rustc: PathBuf, library: &Path, builds_core: bool) -> Option<Toolchain> {
    let version = said(
        Command::new(&rustc)
            .arg("--version")
            .env_remove("RUSTUP_TOOLCHAIN"),
    )?;
    library.is_dir().then_some(Toolchain {
        cargo,
        rustc,
        version,
        builds_core,
    })
}

fn sysroot(rustc: &Path) -> Option<PathBuf> {
    let mut command = Command::new(rustc);
    let asked = command
        .args(["--print", "sysroot"])
        .env_remove("RUSTUP_TOOLCHAIN");
    said(asked).map(PathBuf::from)
}

/// What a command prints, if it succeeds.
fn said(command: &mut Command) -> Option<String> {
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

/// Where a program is: in PATH, or where `cargo install` puts it.
fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    env::split_paths(&path)
        .chain(home.map(|home| home.join("bin")))
        .map(|directory| directory.join(program))
        .find(|found| found.is_file())
}
