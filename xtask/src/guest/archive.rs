//! The file system that a guest starts with, as the kernel unpacks it: an initramfs in the format
//! `newc` of cpio (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::Context as _;

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
/// Header with name, and contents, each end at a multiple of this.
const ALIGNMENT: usize = 4;
const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_755;

/// An archive under way. Everything in it belongs to root and is executable.
pub(super) struct Archive<W> {
    out: W,
    /// Names of files and directories that are in it.
    names: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub(super) const fn new(out: W) -> Self {
        Self {
            out,
            names: BTreeSet::new(),
        }
    }

    /// Adds a directory, and those above it, unless it is there.
    pub(super) fn directory(&mut self, name: &str) -> anyhow::Result<()> {
        if name.is_empty() || self.names.contains(name) {
            return Ok(());
        }
        self.directories_above(name)?;
        self.entry(name, DIRECTORY, &[])
    }

    /// Adds a copy of a file, unless one of this name is there.
    pub(super) fn copy(&mut self, name: &str, from: &Path) -> anyhow::Result<()> {
        if self.names.contains(name) {
            return Ok(());
        }
        let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
        self.file(name, &bytes)
    }

    /// Adds a file of these contents.
    pub(super) fn file(&mut self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        self.directories_above(name)?;
        self.entry(name, FILE, bytes)
    }

    /// Writes the end.
    pub(super) fn finish(mut self) -> anyhow::Result<W> {
        self.entry(TRAILER, 0, &[])?;
        self.out.flush().context("write the initramfs")?;
        Ok(self.out)
    }

    fn directories_above(&mut self, name: &str) -> anyhow::Result<()> {
        name.rsplit_once('/')
            .map_or(Ok(()), |(above, _)| self.directory(above))
    }

    fn entry(&mut self, name: &str, mode: u32, bytes: &[u8]) -> anyhow::Result<()> {
        self.names.insert(name.to_owned());
        let size = u32::try_from(bytes.len()).with_context(|| format!("pack {name}"))?;
        // The number of the name is that of the file: hard links share theirs.
        let number = self.names.len() as u32;
        write_entry(&mut self.out, number, name, mode, size, bytes)
            .with_context(|| format!("pack {name}"))
    }
}

fn write_entry(
    out: &mut impl Write,
    number: u32,
    name: &str,
    mode: u32,
    size: u32,
    bytes: &[u8],
) -> io::Result<()> {
    let name_size = name.len() as u32 + 1;
    // Number, mode, user, group, links, time, size, two device numbers, length of name, checksum.
    let fields = [number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    let mut header = MAGIC.to_owned();
    for field in fields {
        header += &format!("{field:08x}");
    }
    header += name;
    header.push('\0');
    for part in [header.as_bytes(), bytes] {
        out.write_all(part)?;
        let padding = part.len().next_multiple_of(ALIGNMENT) - part.len();
        out.write_all(&[0; ALIGNMENT][..padding])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_written_as_the_kernel_documents_it() {
        let mut out = Vec::new();
        write_entry(&mut out, 7, "ab", FILE, 5, b"hello").expect("memory is there");
        let expected = "070701\
            00000007000081ed0000000000000000\
            00000001000000000000000500000000\
            0000000000000000000000000000000300000000\
            ab\0\0\0\0hello\0\0\0";
        // 110 bytes and the name with its end are padded to 116.
        assert_eq!(String::from_utf8(out), Ok(expected.to_owned()));
    }

    #[test]
    fn directories_come_once_and_before_what_is_in_them() {
        let mut archive = Archive::new(Vec::new());
        archive.file("a/b/c", b"first").expect("memory is there");
        archive.directory("a/b").expect("it is there already");
        archive.file("a/d", b"").expect("memory is there");
        archive
            .copy("a/d", Path::new("/nowhere"))
            .expect("it is there already");
        let bytes = archive.finish().expect("memory is there");
        assert_eq!(bytes.len() % ALIGNMENT, 0);
        let text = String::from_utf8(bytes).expect("ASCII");
        let names = text.split(MAGIC).skip(1).map(|entry| &entry[104..]);
        let names: Vec<_> = names.filter_map(|rest| rest.split('\0').next()).collect();
        assert_eq!(names, ["a", "a/b", "a/b/c", "a/d", TRAILER]);
    }
}
