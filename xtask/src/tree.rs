//! Trees of files: walked, copied, linked, handed over.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Whether every directory on the way may be passed by others.
pub(crate) fn is_open_to_all(path: &Path) -> bool {
    path.ancestors().all(|directory| {
        fs::metadata(directory).is_ok_and(|found| found.permissions().mode() & 0o001 != 0)
    })
}

/// Files below `directory`, relative to it; none if it does not exist.
pub(crate) fn files_below(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(relative) = open.pop() {
        let entries = match fs::read_dir(directory.join(&relative)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                return Err(error).with_context(|| format!("list {}", directory.display()));
            }
        };
        for entry in entries {
            let entry = entry.with_context(|| format!("list {}", directory.display()))?;
            let kind = entry
                .file_type()
                .with_context(|| format!("list {}", directory.display()))?;
            let path = relative.join(entry.file_name());
            if kind.is_dir() {
                open.push(path);
            } else {
                files.push(path);
            }
        }
    }
    Ok(files)
}

fn make_way(to: &Path) -> anyhow::Result<()> {
    let directory = to.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))
}

pub(crate) fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    make_way(to)?;
    fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
    Ok(())
}

/// Links a file or a tree of files, or copies it to another file system.
pub(crate) fn bring(from: &Path, to: &Path) -> anyhow::Result<()> {
    if !from.is_dir() {
        make_way(to)?;
        return fs::hard_link(from, to)
            .or_else(|_| fs::copy(from, to).map(drop))
            .with_context(|| format!("copy {}", from.display()));
    }
    for file in files_below(from)? {
        bring(&from.join(&file), &to.join(&file))?;
    }
    Ok(())
}

/// Hands a tree to the user; nothing in it is a link to a file elsewhere.
pub(crate) fn give(tree: &Path, user: Option<u32>) -> anyhow::Result<()> {
    let Some(user) = user else { return Ok(()) };
    let mut open = vec![tree.to_owned()];
    while let Some(path) = open.pop() {
        chown(&path, Some(user), Some(user))
            .with_context(|| format!("give {} to the user", path.display()))?;
        if path.is_dir() {
            for entry in fs::read_dir(&path).with_context(|| format!("list {}", path.display()))? {
                open.push(
                    entry
                        .with_context(|| format!("list {}", path.display()))?
                        .path(),
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_brought_whole() {
        let root = std::env::temp_dir().join(format!("xtask-{}-tree", std::process::id()));
        for file in ["from/a", "from/deep/b"] {
            make_way(&root.join(file)).expect("the directory is new");
            fs::write(root.join(file), file).expect("the file is new");
        }
        bring(&root.join("from"), &root.join("to")).expect("both are ours");
        let mut files = files_below(&root.join("to")).expect("it was made");
        files.sort();
        assert_eq!(files, [Path::new("a"), Path::new("deep/b")]);
        assert!(
            files_below(&root.join("absent"))
                .expect("absence is not failure")
                .is_empty()
        );
        fs::remove_dir_all(root).expect("it is ours");
    }
}
