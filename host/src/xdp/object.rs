//! How long the values of a map are, in the object that defines it.
//!
//! The stride of a region's ring entries is known when the region is made, and aya has no setting
//! for a map's value size, so it is written into the object.

use super::XdpError;
use object::{File, Object as _, ObjectSection as _, ObjectSymbol as _};
use std::ops::Range;

/// The section in which aya-ebpf defines maps: `type`, `key_size`, `value_size`, `max_entries`, …,
/// 32 bits each (`bpf_map_def` in the kernel's `tools/lib/bpf`).
const MAPS: &str = "maps";
const VALUE_SIZE_AT: usize = 8;
const WORD: usize = 4;

/// Says how long the values of a map are, in bytes.
pub(super) fn set_value_bytes(object: &mut [u8], map: &str, bytes: usize) -> Result<(), XdpError> {
    let at = value_size_at(object, map)?;
    let size = u32::try_from(bytes).map_err(|error| XdpError::Object(error.to_string()))?;
    let place = object
        .get_mut(at)
        .ok_or_else(|| XdpError::Object("it is cut off".into()))?;
    place.copy_from_slice(&size.to_le_bytes());
    Ok(())
}

/// Where in the file a map's value size stands.
fn value_size_at(object: &[u8], map: &str) -> Result<Range<usize>, XdpError> {
    let file = File::parse(object).map_err(|error| XdpError::Object(error.to_string()))?;
    let section = file
        .section_by_name(MAPS)
        .and_then(|section| Some((section.index(), section.file_range()?.0)));
    let (section, start) =
        section.ok_or_else(|| XdpError::Object(format!("it has no section {MAPS}")))?;
    let symbol = file
        .symbols()
        .find(|symbol| symbol.name() == Ok(map) && symbol.section_index() == Some(section))
        .ok_or_else(|| super::missing(map))?;
    // Both are what the file says.
    let at = start
        .checked_add(symbol.address())
        .and_then(|at| usize::try_from(at).ok()?.checked_add(VALUE_SIZE_AT));
    let range = at.and_then(|at| Some(at..at.checked_add(WORD)?));
    range.ok_or_else(|| XdpError::Object(format!("its map {map} is nowhere")))
}
