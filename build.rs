//! Embeds the XDP object: the committed one if it was made from these sources, else one built from
//! them where that is possible, else none, so that XDP is unavailable and all else works.

#[path = "ebpf/object.rs"]
#[allow(dead_code, reason = "`cargo xtask ebpf` uses the rest")]
mod object;

use object::{Committed, Network, OBJECT, PROGRAMS, SOURCES};
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let root = directory("CARGO_MANIFEST_DIR");
    let out = directory("OUT_DIR");
    for path in ["build.rs", "ebpf/object.rs", OBJECT, SOURCES] {
        println!("cargo::rerun-if-changed={path}");
    }
    // A published package has no sources that could change.
    if root.join(PROGRAMS).is_dir() {
        println!("cargo::rerun-if-changed={PROGRAMS}/src");
    }
    let found = object(&root, &out).unwrap_or_else(|problem| {
        for line in problem.lines() {
            println!("cargo::warning={line}");
        }
        // What mends it is no file of ours: tried again each time, as this one is never there.
        println!("cargo::rerun-if-changed={}", out.join("never").display());
        None
    });
    let expression = match found {
        Some(path) => format!("Some(include_bytes!({:?}))", path.display().to_string()),
        None => "None".to_owned(),
    };
    fs::write(out.join("xdp_object.rs"), expression).expect("OUT_DIR can be written");
}

fn directory(variable: &str) -> PathBuf {
    // Cargo sets both for every build script.
    env::var_os(variable).map(PathBuf::from).unwrap_or_default()
}

/// The object to embed, or why there is none.
fn object(root: &Path, out: &Path) -> Result<Option<PathBuf>, String> {
    let (state, sources) = object::committed(root)?;
    if root.join(PROGRAMS).is_dir() {
        for path in &sources {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let Committed::Stale(source) = state else {
        return Ok(Some(root.join(OBJECT)));
    };
    let built = object::build(root, &out.join("ebpf"), &[], Network::Forbidden).map_err(|problem| {
        format!(
            "XDP will be unavailable: {source} has changed since {OBJECT} was built, and it cannot \
             be built here without the network: {problem}\nOr run `cargo xtask ebpf`, which fetches \
             what it needs"
        )
    })?;
    let path = out.join("acceptor.o");
    fs::write(&path, built.bytes).map_err(|error| format!("write {}: {error}", path.display()))?;
    Ok(Some(path))
}
