//! Builds the XDP object that is committed, and judges it.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail, ensure};
use object::{File, Object as _, ObjectSection as _, ObjectSymbol as _};

use crate::workspace::Workspace;

#[path = "../../ebpf/object.rs"]
mod build;

/// Build the XDP programs.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Compare with the committed object instead of replacing it.
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let workspace = Workspace::load()?;
    let root = &workspace.root;
    let built = build::build(root, &workspace.target.join("ebpf")).map_err(|why| anyhow!(why))?;
    judge(&built.bytes)?;
    println!("built {} bytes with {}", built.bytes.len(), built.compiler);
    if !arguments.check {
        let digests = build::digests(root, &built.sources).map_err(|why| anyhow!(why))?;
        write(&root.join(build::OBJECT), &built.bytes)?;
        write(&root.join(build::SOURCES), digests.as_bytes())?;
        println!("wrote {} and {}", build::OBJECT, build::SOURCES);
        return Ok(true);
    }
    let old = fs::read(root.join(build::OBJECT)).context("read the committed object")?;
    let is_same = code(&old)? == code(&built.bytes)?;
    let committed = build::committed(root).map_err(|why| anyhow!(why))?;
    let is_current = committed == (build::Committed::Current, built.sources);
    if is_same && is_current {
        println!("{} is what its sources make", build::OBJECT);
        return Ok(true);
    }
    let what = if is_same {
        "has the code, but not the digests, of its sources"
    } else {
        "differs from what its sources make here"
    };
    println!("{} {what}: run `cargo xtask ebpf`", build::OBJECT);
    Ok(false)
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
    use super::*;

    #[test]
    fn the_committed_object_cannot_panic_and_was_made_from_the_sources() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        judge(&fs::read(root.join(build::OBJECT)).expect("it is committed")).expect("it is clean");
        let (state, sources) = build::committed(&root).expect("the digests are committed");
        assert_eq!(state, build::Committed::Current, "run `cargo xtask ebpf`");
        assert!(sources.contains(&"consensus/src/acceptor.rs".to_owned()));
    }

    #[test]
    fn a_changed_source_is_noticed() {
        let root = std::env::temp_dir().join(format!("xtask-{}-ebpf", std::process::id()));
        let source = format!("{}/a.rs", build::PROGRAMS);
        write(&root.join(&source), b"abc").expect("the directory is ours");
        let digests = build::digests(&root, std::slice::from_ref(&source)).expect("it is there");
        // FIPS 180-4's example.
        assert!(
            digests.starts_with("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
        );
        write(&root.join(build::SOURCES), digests.as_bytes()).expect("the directory is ours");
        let sources = vec![source.clone()];
        assert_eq!(
            build::committed(&root),
            Ok((build::Committed::Current, sources.clone()))
        );
        write(&root.join(&source), b"abd").expect("the directory is ours");
        assert_eq!(
            build::committed(&root),
            Ok((build::Committed::Stale(source), sources))
        );
        fs::remove_dir_all(root).expect("it is ours");
    }
}
