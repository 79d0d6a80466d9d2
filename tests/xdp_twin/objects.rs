//! Objects that only tests load: `cargo xtask test --only xdp` builds them and says where they are.

use super::skip;
use object::{File, Object as _, ObjectSection as _, ObjectSymbol as _};
use std::io::Write as _;
use std::path::Path;

/// The directory of the objects.
const VARIABLE: &str = "NEARWIRE_XDP_OBJECTS";

/// The object of this name; `None` if nobody built it, which is printed.
pub fn read(test: &str, name: &str) -> Option<Vec<u8>> {
    let Some(directory) = std::env::var_os(VARIABLE) else {
        skip(
            test,
            &format!("{VARIABLE} is not set: cargo xtask test --only xdp"),
        );
        return None;
    };
    let path = Path::new(&directory).join(name);
    let bytes = std::fs::read(&path);
    Some(bytes.unwrap_or_else(|error| panic!("read {}: {error}", path.display())))
}

/// Says something that the harness does not keep to itself.
pub fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Writes a read-only global of an object.
pub fn set_global(object: &mut [u8], name: &str, value: &[u8]) {
    let file = File::parse(&*object).expect("an ELF object");
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(name));
    let symbol = symbol.unwrap_or_else(|| panic!("the object has no global {name}"));
    let section = symbol.section_index().expect("it is defined here");
    let section = file.section_by_index(section).expect("it is there");
    let (start, _) = section.file_range().expect("it has bytes");
    let at = (start + symbol.address()) as usize;
    object[at..at + value.len()].copy_from_slice(value);
}
