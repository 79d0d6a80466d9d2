//! What an executable is started with: the dynamic loader that it names, and the shared libraries
//! that this loader finds for it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use object::Endianness;
use object::read::elf::{ElfFile64, ProgramHeader as _};

/// A library, under the name by which others ask for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Library {
    pub(super) name: String,
    pub(super) path: PathBuf,
}

/// The loader of an executable; a static one has none.
pub(super) fn loader(executable: &Path) -> anyhow::Result<Option<PathBuf>> {
    let read = || format!("read {}", executable.display());
    let bytes = fs::read(executable).with_context(read)?;
    let file = ElfFile64::<Endianness>::parse(&*bytes).with_context(read)?;
    for header in file.elf_program_headers() {
        let found = header.interpreter(file.endian(), &*bytes);
        if let Some(path) = found.with_context(read)? {
            return Ok(Some(PathBuf::from(
                String::from_utf8_lossy(path).into_owned(),
            )));
        }
    }
    Ok(None)
}

/// The libraries that `loader` finds for an executable or a library: in `first`, or where this
/// system keeps them.
pub(super) fn libraries(
    of: &Path,
    loader: &Path,
    first: &[PathBuf],
) -> anyhow::Result<Vec<Library>> {
    let first = env::join_paths(first).context("name the directories of libraries")?;
    // What `ldd` does; nothing of the executable is run.
    let output = Command::new(loader)
        .arg("--list")
        .arg(of)
        .env("LD_LIBRARY_PATH", first)
        .output()
        .with_context(|| format!("start {}", loader.display()))?;
    ensure!(
        output.status.success(),
        "list the libraries of {}: {}",
        of.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    parse(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("list the libraries of {}", of.display()))
}

/// Lines such as `libc.so.6 => /lib/libc.so.6 (0x00007f)`. The kernel's own library and the loader
/// itself have no arrow.
fn parse(list: &str) -> anyhow::Result<Vec<Library>> {
    let mut libraries = Vec::new();
    for line in list.lines() {
        let Some((name, found)) = line.trim().split_once(" => ") else {
            continue;
        };
        if !found.starts_with('/') {
            bail!("{name}: {found}");
        }
        let path = found.rsplit_once(" (").map_or(found, |(path, _)| path);
        libraries.push(Library {
            name: name.to_owned(),
            path: PathBuf::from(path),
        });
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_loader_lists_is_understood() {
        let list = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f12)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f13)\n";
        let found = parse(list).expect("all are there");
        let expected = Library {
            name: "libm.so.6".to_owned(),
            path: PathBuf::from("/lib/x86_64-linux-gnu/libm.so.6"),
        };
        assert_eq!(found, [expected]);
        let error = parse("\tlibfdt.so.1 => not found\n").expect_err("it is missing");
        assert_eq!(error.to_string(), "libfdt.so.1: not found");
    }

    #[test]
    fn this_test_is_started_with_a_c_library() {
        let this = env::current_exe().expect("it runs");
        let loader = loader(&this).expect("it is an ELF file");
        let loader = loader.expect("it is linked dynamically");
        let found = libraries(&this, &loader, &[]).expect("it runs");
        assert!(found.iter().any(|one| one.name == "libc.so.6"), "{found:?}");
        assert!(found.iter().all(|one| one.path.is_file()), "{found:?}");
    }
}
