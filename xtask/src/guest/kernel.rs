//! What is taken out of a distribution's kernel package: the kernel without its wrapping, and
//! modules with those that they need.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use object::{File, Object as _, ObjectSection as _};

/// `HdrS`, where a bzImage has it (the kernel's Documentation/arch/x86/boot.rst).
const SIGNATURE: (usize, &[u8]) = (0x202, b"HdrS");
const SETUP_SECTORS_AT: usize = 0x1f1;
const PAYLOAD_OFFSET_AT: usize = 0x248;
const PAYLOAD_LENGTH_AT: usize = 0x24c;
const SECTOR_BYTES: usize = 512;
const XZ_MAGIC: &[u8] = b"\xfd7zXZ\0";
/// The section of a module in which it says what it needs, as `key=value` strings.
const MODULE_INFO: &str = ".modinfo";

/// The compressed kernel inside a bzImage.
pub(super) fn payload(image: &[u8]) -> anyhow::Result<&[u8]> {
    let (at, signature) = SIGNATURE;
    ensure!(
        image.get(at..at + signature.len()) == Some(signature),
        "it is no bzImage"
    );
    let word = |at: usize| -> anyhow::Result<usize> {
        let bytes = image.get(at..at + 4).context("it is cut off")?;
        let bytes = <[u8; 4]>::try_from(bytes).context("it is cut off")?;
        Ok(u32::from_le_bytes(bytes) as usize)
    };
    // Zero stands for four, for the sake of boot loaders of 1995.
    let sectors = match image[SETUP_SECTORS_AT] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * SECTOR_BYTES + word(PAYLOAD_OFFSET_AT)?;
    let length = word(PAYLOAD_LENGTH_AT)?;
    let payload = image.get(start..start + length).context("it is cut off")?;
    ensure!(
        payload.starts_with(XZ_MAGIC),
        "its kernel is not compressed by xz"
    );
    Ok(payload)
}

/// The modules of one kernel.
pub(super) struct Modules(BTreeMap<String, PathBuf>);

impl Modules {
    /// All that are below `directory`.
    pub(super) fn below(directory: &Path) -> anyhow::Result<Self> {
        let mut modules = BTreeMap::new();
        let mut directories = vec![directory.to_owned()];
        while let Some(directory) = directories.pop() {
            let list = || format!("list {}", directory.display());
            for entry in fs::read_dir(&directory).with_context(list)? {
                let entry = entry.with_context(list)?;
                let path = entry.path();
                if entry.file_type().with_context(list)?.is_dir() {
                    directories.push(path);
                } else if path.extension().is_some_and(|extension| extension == "ko") {
                    let name = path.file_stem().unwrap_or_default().to_string_lossy();
                    modules.insert(canonical(&name), path);
                }
            }
        }
        Ok(Self(modules))
    }

    /// The files of modules and of those that they need, each behind what it needs.
    pub(super) fn in_order(&self, names: &[String]) -> anyhow::Result<Vec<PathBuf>> {
        let mut order = Vec::new();
        for name in names {
            self.append(&canonical(name), &mut order)?;
        }
        Ok(order)
    }

    fn append(&self, name: &str, order: &mut Vec<PathBuf>) -> anyhow::Result<()> {
        let path = self.0.get(name);
        let path = path.with_context(|| format!("find the kernel module {name}"))?;
        if order.contains(path) {
            return Ok(());
        }
        // The kernel's build refuses modules that need each other, so this ends.
        for needed in needed(path)? {
            self.append(&needed, order)?;
        }
        order.push(path.clone());
        Ok(())
    }
}

/// Names are told with either, files have the one or the other.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// Names of the modules that this one says it needs.
fn needed(module: &Path) -> anyhow::Result<Vec<String>> {
    let read = || format!("read {}", module.display());
    let bytes = fs::read(module).with_context(read)?;
    let file = File::parse(&*bytes).with_context(read)?;
    let section = file.section_by_name(MODULE_INFO).with_context(read)?;
    Ok(dependencies(section.data().with_context(read)?))
}

fn dependencies(information: &[u8]) -> Vec<String> {
    let strings = information.split(|byte| *byte == 0);
    let lists = strings.filter_map(|string| string.strip_prefix(b"depends="));
    let names = lists.flat_map(|list| list.split(|byte| *byte == b','));
    names
        .filter(|name| !name.is_empty())
        .map(|name| canonical(&String::from_utf8_lossy(name)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * SECTOR_BYTES];
        image[SETUP_SECTORS_AT] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET_AT] = 16;
        image[PAYLOAD_LENGTH_AT] = payload.len() as u8;
        let start = 2 * SECTOR_BYTES + 16;
        image[start..start + payload.len()].copy_from_slice(payload);
        image
    }

    #[test]
    fn the_kernel_is_found_in_its_wrapping() {
        let compressed = b"\xfd7zXZ\0kernel";
        let mut image = image(compressed);
        assert_eq!(payload(&image).ok(), Some(&compressed[..]));
        image[PAYLOAD_OFFSET_AT + 2] = 1;
        assert!(payload(&image).is_err());
        let other = payload(&self::image(b"\x1f\x8bkernel")).map(drop);
        let error = other.expect_err("it is gzip");
        assert_eq!(error.to_string(), "its kernel is not compressed by xz");
        assert!(payload(b"short").is_err());
    }

    #[test]
    fn a_module_says_what_it_needs() {
        let information = b"license=GPL\0depends=llc,snd-pcm\0name=bridge\0";
        assert_eq!(dependencies(information), ["llc", "snd_pcm"]);
        assert!(dependencies(b"depends=\0").is_empty());
    }

    #[test]
    fn a_module_that_the_kernel_has_not_is_named() {
        let none = Modules(BTreeMap::new());
        let error = none.in_order(&["rdma_rxe".to_owned()]).map(drop);
        let error = error.expect_err("there is none");
        assert_eq!(error.to_string(), "find the kernel module rdma_rxe");
    }
}
