//! Builds the XDP object that is committed, and judges it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail, ensure};
use object::{File, Object as _, ObjectSection as _, ObjectSymbol as _};

use crate::stage::Stage;
use crate::step::{Bench, Verdict};
use crate::workspace::Workspace;
use object_of::{Built, Committed, OBJECT, Problem, SOURCES, committed, digests};

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

/// Fails if the committed object is not what its sources make.
pub(crate) fn check(bench: &mut Bench<'_>, _: &mut Stage<'_>) -> anyhow::Result<Verdict> {
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
    object_of::build(&workspace.root, &workspace.target.join("ebpf"), features)
}

fn compare(root: &Path, built: &Built) -> anyhow::Result<()> {
    let old = fs::read(root.join(OBJECT)).context("read the committed object")?;
    ensure!(
        code(&old)? == code(&built.bytes)?,
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
    if file
        .sections()
        .any(|section| section.name().is_ok_and(|name| name.starts_with(".debug")))
    {
        bail!("the object has debugging information, which names files of this machine");
    }
    Ok(())
}

/// What the kernel is given of an object.
fn code(object: &[u8]) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let file = File::parse(object).context("read the object")?;
    let mut sections = Vec::new();
    for section in file.sections() {
        let name = section.name().context("read the object")?.to_owned();
        if matches!(&name[..], "xdp" | ".text" | "maps" | ".rodata" | "license") {
            sections.push((name, section.data().context("read the object")?.to_vec()));
        }
    }
    Ok(sections)
}

#[cfg(test)]
mod tests {
    use super::object_of::PROGRAMS;
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
