//! The promise that the default build needs Rust and `cc` only, kept by looking at what the build
//! would compile.

use anyhow::ensure;

use crate::stage::Stage;
use crate::step::{Bench, Verdict};

/// Crates that make a build script reach for something beside Rust and `cc`, which links it: another
/// compiler, a code generator or a system library. `cc` itself compiles ring, for TLS.
const REFUSED: &[&str] = &[
    "autotools",
    "bindgen",
    "cbindgen",
    "clang-sys",
    "cmake",
    "cxx-build",
    "nasm-rs",
    "openssl-sys",
    "pkg-config",
    "protobuf-src",
    "system-deps",
    "vcpkg",
];

/// Fails if the default build of the root package has a refused crate in it, and shows who asked
/// for it.
pub(crate) fn check(bench: &mut Bench<'_>, stage: &mut Stage<'_>) -> anyhow::Result<Verdict> {
    const TREE: [&str; 6] = [
        "tree",
        "--locked",
        "--package",
        "nearwire",
        "--edges",
        "normal,build",
    ];
    let tree = stage.read(bench.workspace.cargo(TREE).args([
        "--prefix",
        "none",
        "--format",
        "{p}",
        "--no-dedupe",
    ]))?;
    let refused = refused_in(&tree);
    for name in &refused {
        stage.run(bench.workspace.cargo(TREE).args(["--invert", name]))?;
    }
    ensure!(
        refused.is_empty(),
        "the default build depends on {}",
        refused.join(", ")
    );
    Ok(Verdict::Done)
}

/// Refused crates among lines of `name version …`.
fn refused_in(tree: &str) -> Vec<&'static str> {
    let present = |name: &&&str| {
        tree.lines()
            .any(|line| line.split_whitespace().next() == Some(**name))
    };
    REFUSED.iter().filter(present).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_crate_is_found_by_its_whole_name() {
        let tree = "nearwire v0.1.0 (/w)\ncmake v1.2.0\ncc v1.0.0\nmy-nasm-rs v0.1.0\n";
        assert_eq!(refused_in(tree), ["cmake"]);
    }

    #[test]
    fn rust_alone_passes() {
        assert!(
            refused_in("nearwire v0.1.0 (/w)\nlibc v0.2.1\nserde_derive v1.0.0 (proc-macro)\n")
                .is_empty()
        );
    }
}
