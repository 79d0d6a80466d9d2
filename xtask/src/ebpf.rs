//! Builds the XDP object that is committed, and judges it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail, ensure};
use object::{File, Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind};

use crate::stage::Stage;
use crate::step::{Bench, Verdict};
use crate::workspace::Workspace;
use object_of::{Built, Committed, Network, OBJECT, Problem, SOURCES, committed, digests};

#[path = "../../ebpf/object.rs"]
mod object_of;

/// Build the XDP programs.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Compare with the committed object instead of replacing it.
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let workspace = Workspace::load()?;
    let built = build(&workspace, &[]).map_err(|problem| anyhow!("{problem}"))?;
    judge(&built.bytes)?;
    println!("built {} bytes with {}", built.bytes.len(), built.compiler);
    let root = &workspace.root;
    if arguments.check {
        compare(root, &built)?;
        println!("{OBJECT} is what its sources make");
        return Ok(true);
    }
    let digests = digests(root, &built.sources).map_err(|why| anyhow!(why))?;
    write(&root.join(OBJECT), &built.bytes)?;
    write(&root.join(SOURCES), digests.as_bytes())?;
    println!("wrote {OBJECT} and {SOURCES}");
    Ok(true)
}

/// Fails if a published package would lack the object, which nobody could build from it.
pub(crate) fn check_package(workspace: &Workspace) -> anyhow::Result<()> {
    let list = [
        "package",
        "--locked",
        "--package",
        "nearwire",
        "--list",
        "--allow-dirty",
    ];
    let output = workspace.cargo(list).output().context("start cargo")?;
    ensure!(output.status.success(), "list what the package holds");
    let listed = String::from_utf8_lossy(&output.stdout);
    for file in [OBJECT, SOURCES] {
        ensure!(
            listed.lines().any(|line| line == file),
            "the package of nearwire does not hold {file}: see `include` in Cargo.toml"
        );
    }
    Ok(())
}

/// Fails if the committed object is not what its sources make.
pub(crate) fn check(bench: &mut Bench<'_>, _: &mut Stage<'_>) -> anyhow::Result<Verdict> {
    // Without a compiler for BPF as well: an object of other sources must not be committed.
    let (state, _) = committed(&bench.workspace.root).map_err(|why| anyhow!(why))?;
    if let Committed::Stale(source) = state {
        bail!("{source} has changed since {OBJECT} was built: run `cargo xtask ebpf`");
    }
    match build(bench.workspace, &[]) {
        Ok(built) => {
            judge(&built.bytes)?;
            compare(&bench.workspace.root, &built)?;
            Ok(Verdict::Done)
        }
        Err(Problem::Missing(what)) => Ok(Verdict::Skipped(what)),
        Err(Problem::Failed(what)) => Err(anyhow!(what)),
    }
}

/// Objects that only tests load, by the features that they are built with: deliberate defects, and
/// leaders that duel.
const OF_TESTS: [&[&str]; 3] = [&["mutations"], &["duel"], &["mutations", "duel"]];

/// Builds the objects of tests and gives their directory; or says what is missing here.
pub(crate) fn of_tests(workspace: &Workspace) -> anyhow::Result<Result<PathBuf, String>> {
    let directory = workspace.target.join("ebpf/tests");
    for features in OF_TESTS {
        let built = match build(workspace, features) {
            Ok(built) => built,
            Err(Problem::Missing(what)) => return Ok(Err(what)),
            Err(Problem::Failed(what)) => return Err(anyhow!(what)),
        };
        judge(&built.bytes).with_context(|| format!("with {features:?}"))?;
        let name = format!("{}.o", features.join(","));
        write(&directory.join(name), &built.bytes)?;
    }
    Ok(Ok(directory))
}

fn build(workspace: &Workspace, features: &[&str]) -> Result<Built, Problem> {
    object_of::build(
        &workspace.root,
        &workspace.target.join("ebpf"),
        features,
        Network::Allowed,
    )
}

fn compare(root: &Path, built: &Built) -> anyhow::Result<()> {
    let old = fs::read(root.join(OBJECT)).context("read the committed object")?;
    // As a whole: which map an instruction means stands in relocations and symbols.
    ensure!(
        old == built.bytes,
        "{OBJECT} differs from what {} makes of its sources: run `cargo xtask ebpf`",
        built.compiler
    );
    let (state, sources) = committed(root).map_err(|why| anyhow!(why))?;
    ensure!(
        state == Committed::Current && sources == built.sources,
        "{SOURCES} has not the digests of the sources: run `cargo xtask ebpf`"
    );
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

/// Refuses an object in which a panic can be reached: it would be a loop without end, which no
/// verifier accepts.
fn judge(object: &[u8]) -> anyhow::Result<()> {
    let file = File::parse(object).context("read the object")?;
    let names = file.symbols().filter_map(|symbol| symbol.name().ok());
    let panics: Vec<_> = names.filter(|name| name.contains("panic")).collect();
    ensure!(
        panics.is_empty(),
        "the object can panic: {}",
        panics.join(", ")
    );
    for section in file.sections() {
        if section.kind() != SectionKind::Text {
            continue;
        }
        let at = endless(section.data().context("read the object")?);
        let name = section.name().context("read the object")?;
        if let Some(at) = at {
            bail!("instruction {at} of {name} jumps to itself: the object can panic");
        }
    }
    if file
        .sections()
        .any(|section| section.name().is_ok_and(|name| name.starts_with(".debug")))
    {
        bail!("the object has debugging information, which names files of this machine");
    }
    Ok(())
}

/// An instruction of BPF: code, registers, jump, number. One that loads 64 bits takes two places.
const INSTRUCTION_BYTES: usize = 8;
const LOADS_64_BITS: u8 = 0x18;
/// The classes of jumps by 64-bit and 32-bit conditions, and what does not jump there.
const JUMPS: [u8; 2] = [0x05, 0x06];
const CALL: u8 = 0x80;
const EXIT: u8 = 0x90;
/// Unconditional, by the 32 bits of the number.
const JUMPS_FAR: u8 = 0x06;

/// Where an instruction jumps to itself: what is left of a panic that was inlined.
fn endless(code: &[u8]) -> Option<usize> {
    let mut instructions = code.chunks_exact(INSTRUCTION_BYTES).enumerate();
    while let Some((index, bytes)) = instructions.next() {
        let (code, operation) = (bytes[0], bytes[0] & 0xf0);
        if code == LOADS_64_BITS {
            instructions.next();
        }
        let jump = i16::from_le_bytes([bytes[2], bytes[3]]).into();
        let number = i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let by = if code == JUMPS_FAR { number } else { jump };
        let is_jump = JUMPS.contains(&(code & 0x07)) && operation != CALL && operation != EXIT;
        if is_jump && by == -1 {
            return Some(index);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::object_of::{PROGRAMS, is_of_caller, sources_in};
    use super::*;

    #[test]
    fn the_committed_object_has_neither_panics_nor_defects_and_was_made_from_the_sources() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let object = fs::read(root.join(OBJECT)).expect("it is committed");
        judge(&object).expect("it is clean");
        let file = File::parse(&*object).expect("an ELF file");
        let mut symbols = file.symbols();
        assert!(symbols.all(|symbol| symbol.name() != Ok("MUTATION")));
        let (state, sources) = committed(&root).expect("the digests are committed");
        assert_eq!(state, Committed::Current, "run `cargo xtask ebpf`");
        assert!(sources.contains(&"consensus/src/acceptor.rs".to_owned()));
    }

    #[test]
    fn an_inlined_panic_is_noticed() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let clean = fs::read(root.join(OBJECT)).expect("it is committed");
        let file = File::parse(&clean[..]).expect("it is an object");
        let section = file.section_by_name("xdp").expect("it has programs");
        let (start, length) = section.file_range().expect("it is in the file");
        // `goto -1`, `if r1 == 0 goto -1`, `if w1 == 0 goto -1` and `gotol -1` in the last place,
        // where `exit` is, which no load of 64 bits precedes.
        let at = (start + length) as usize - INSTRUCTION_BYTES;
        for jump in [
            [0x05, 0, 0xff, 0xff, 0, 0, 0, 0],
            [0x15, 1, 0xff, 0xff, 0, 0, 0, 0],
            [0x16, 1, 0xff, 0xff, 0, 0, 0, 0],
            [0x06, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        ] {
            let mut bad = clean.clone();
            bad[at..at + INSTRUCTION_BYTES].copy_from_slice(&jump);
            let error = judge(&bad).expect_err("it never ends");
            assert!(error.to_string().contains("jumps to itself"), "{error}");
        }
        // The second place of a load may look like anything.
        let load = [LOADS_64_BITS, 1, 0, 0, 0, 0, 0, 0];
        let number = [0x05, 0, 0xff, 0xff, 0, 0, 0, 0];
        assert_eq!(endless(&[load, number].concat()), None);
        assert_eq!(endless(&number), Some(0));
    }

    #[test]
    fn maps_that_changed_places_are_noticed() {
        let root = std::env::temp_dir().join(format!("xtask-{}-swapped", std::process::id()));
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let bytes = fs::read(here.join(OBJECT)).expect("it is committed");
        write(&root.join(SOURCES), b"").expect("the directory is ours");
        let built = Built {
            bytes: bytes.clone(),
            sources: Vec::new(),
            compiler: "a compiler".into(),
        };
        write(&root.join(OBJECT), &bytes).expect("the directory is ours");
        compare(&root, &built).expect("they are the same");
        // Each takes the other's name: no section that the kernel is given changes.
        let place = |name: &[u8]| bytes.windows(name.len()).position(|found| found == name);
        let group = place(b"\0GROUP\0").expect("a name");
        let entry = place(b"\0ENTRY\0").expect("a name");
        let mut swapped = bytes.clone();
        swapped[group + 1..group + 6].copy_from_slice(b"ENTRY");
        swapped[entry + 1..entry + 6].copy_from_slice(b"GROUP");
        write(&root.join(OBJECT), &swapped).expect("the directory is ours");
        compare(&root, &built).expect_err("the maps are others");
        fs::remove_dir_all(root).expect("it is ours");
    }

    #[test]
    fn a_root_with_a_blank_has_its_sources() {
        let root = Path::new("/a b/c");
        let main = format!("{PROGRAMS}/src/main.rs");
        let text =
            format!("/t/acceptor: /a\\ b/c/{main} /a\\ b/c/consensus/src/x.rs /elsewhere/y.rs\n");
        let sources = sources_in(&text, root).expect("main.rs is there");
        assert!(sources.contains(&main) && sources.contains(&"consensus/src/x.rs".into()));
        assert!(!sources.iter().any(|source| source.contains("y.rs")));
        let error = sources_in(&text, Path::new("/a")).expect_err("nothing is below it");
        assert!(error.contains(&main), "{error}");
    }

    #[test]
    fn how_the_caller_builds_is_no_matter() {
        for variable in ["RUSTFLAGS", "CARGO_PROFILE_RELEASE_LTO", "CARGO_BUILD_JOBS"] {
            assert!(is_of_caller(variable), "{variable}");
        }
        for variable in ["PATH", "CARGO_HOME", "CARGO_NET_OFFLINE"] {
            assert!(!is_of_caller(variable), "{variable}");
        }
    }

    #[test]
    fn a_changed_source_is_noticed() {
        let root = std::env::temp_dir().join(format!("xtask-{}-ebpf", std::process::id()));
        let source = format!("{PROGRAMS}/a.rs");
        write(&root.join(&source), b"abc").expect("the directory is ours");
        let digests = digests(&root, std::slice::from_ref(&source)).expect("it is there");
        // FIPS 180-4's example.
        assert!(
            digests.starts_with("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
        );
        write(&root.join(SOURCES), digests.as_bytes()).expect("the directory is ours");
        let sources = vec![source.clone()];
        assert_eq!(committed(&root), Ok((Committed::Current, sources.clone())));
        write(&root.join(&source), b"abd").expect("the directory is ours");
        assert_eq!(committed(&root), Ok((Committed::Stale(source), sources)));
        fs::remove_dir_all(root).expect("it is ours");
    }
}
