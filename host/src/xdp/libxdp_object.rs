//! The acceptor of one node as an object that libxdp takes into its dispatcher.
//!
//! libbpf from 1.0 on wants maps in BTF, the kernel wants BTF of what takes a place in a dispatcher,
//! and nobody sets globals for xdp-loader. The embedded object has no BTF, which aya does not need,
//! and what its section `maps` says is changed by the loader. So this one is written anew: the
//! acceptor's instructions as they are, around them what is known of this node.

use super::btf::{Btf, Linkage, Place};
use super::{Global, MapShape, XdpError};
use object::elf::{R_BPF_64_32, R_BPF_64_64};
use object::write::{Object, Relocation, SectionId, Symbol, SymbolId, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, File, Object as _, ObjectSection as _,
    ObjectSymbol as _, RelocationFlags, RelocationTarget, SectionKind, SymbolFlags, SymbolKind,
    SymbolScope,
};
use std::collections::BTreeMap;

const PROGRAMS: &str = "xdp";
const FUNCTIONS: &str = ".text";
const SETTINGS: &str = ".rodata";
/// aya's.
const MAPS: &str = "maps";
/// libbpf's.
const BTF_MAPS: &str = ".maps";
const LICENSE: &str = "license";
/// libxdp's: for a program `p` the variable `_p` says when it is called, and after which verdicts
/// the next one is (its protocol.org, "Program metadata").
const RUN_CONFIG: &str = ".xdp_run_config";
/// libxdp's own default, between the filters that it ships and what only watches.
const PRIORITY: u32 = 50;
/// `LIBBPF_PIN_BY_NAME`: libbpf takes the map that is pinned under this name, if it is such a one.
const PIN_BY_NAME: u32 = 1;
/// Of a field in a definition of a map, and of one in libxdp's variable: a pointer.
const FIELD_BYTES: u32 = 8;
const WORD: usize = 4;

/// The object. Maps that are `pinned` are taken by their names in lower case from wherever the
/// loader is told.
pub(super) fn libxdp_object(
    embedded: &[u8],
    program: &str,
    globals: &[Global],
    shapes: &[MapShape],
    pinned: &[&str],
) -> Result<Vec<u8>, XdpError> {
    let file = File::parse(embedded).map_err(|error| bad(&error))?;
    let mut out = Out {
        file: &file,
        object: Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little),
        btf: Btf::new(),
        symbols: BTreeMap::new(),
    };
    out.copy(LICENSE, SectionKind::ReadOnlyData)?;
    out.settings(globals)?;
    out.maps(shapes, pinned)?;
    out.run_config(program);
    out.code(program)?;
    let sections = [(".BTF", out.btf.types()), (".BTF.ext", out.btf.functions())];
    for (name, bytes) in sections {
        out.section(name, SectionKind::Other, &bytes);
    }
    out.object.write().map_err(|error| bad(&error))
}

fn bad(error: &impl ToString) -> XdpError {
    XdpError::Object(error.to_string())
}

struct Out<'a> {
    file: &'a File<'a>,
    object: Object<'a>,
    btf: Btf,
    /// What instructions may mean, by name.
    symbols: BTreeMap<String, SymbolId>,
}

impl<'a> Out<'a> {
    fn section(&mut self, name: &str, kind: SectionKind, bytes: &[u8]) -> SectionId {
        let id = self.object.add_section(Vec::new(), name.into(), kind);
        self.object.set_section_data(id, bytes.to_vec(), 8);
        id
    }

    fn symbol(&mut self, name: &str, at: Place, kind: SymbolKind, section: SectionId) {
        self.symbol_as(name, name, at, kind, section);
    }

    /// Adds a symbol under another name than the embedded object has.
    fn symbol_as(
        &mut self,
        original: &str,
        name: &str,
        at: Place,
        kind: SymbolKind,
        section: SectionId,
    ) {
        let id = self.object.add_symbol(Symbol {
            name: name.into(),
            value: at.offset.into(),
            size: at.bytes.into(),
            kind,
            scope: SymbolScope::Dynamic,
            weak: false,
            section: SymbolSection::Section(section),
            flags: SymbolFlags::None,
        });
        self.symbols.insert(original.to_owned(), id);
    }

    fn data(&self, section: &str) -> Result<&'a [u8], XdpError> {
        let found = self.file.section_by_name(section);
        let found = found.ok_or_else(|| bad(&format!("it has no section {section}")))?;
        found.data().map_err(|error| bad(&error))
    }

    /// The symbols of a section of the embedded object, in the order of their places.
    fn symbols_of(&self, section: &str) -> Result<Vec<(&'a str, Place)>, XdpError> {
        let index = self
            .file
            .section_by_name(section)
            .map(|found| found.index());
        let mut found = Vec::new();
        for symbol in self.file.symbols() {
            if index.is_none() || symbol.section_index() != index {
                continue;
            }
            let place = Place::new(symbol.address(), symbol.size());
            let place = place.ok_or_else(|| bad(&"a symbol is nowhere"))?;
            let name = symbol.name().map_err(|error| bad(&error))?;
            found.push((name, place));
        }
        found.sort_unstable_by_key(|(_, place)| place.offset);
        Ok(found)
    }

    fn copy(&mut self, section: &str, kind: SectionKind) -> Result<(), XdpError> {
        let bytes = self.data(section)?;
        self.section(section, kind, bytes);
        Ok(())
    }

    /// The globals, as they are to be.
    fn settings(&mut self, globals: &[Global]) -> Result<(), XdpError> {
        let mut bytes = self.data(SETTINGS)?.to_vec();
        let symbols = self.symbols_of(SETTINGS)?;
        for (name, value) in globals {
            let place = symbols.iter().find(|(found, _)| found == name);
            let place = place.and_then(|(_, place)| bytes.get_mut(place.range()));
            let place = place.filter(|place| place.len() == value.len());
            let place = place.ok_or_else(|| bad(&format!("it has no setting {name}")))?;
            place.copy_from_slice(value);
        }
        let section = self.section(SETTINGS, SectionKind::ReadOnlyData, &bytes);
        for (name, place) in symbols {
            self.symbol(name, place, SymbolKind::Data, section);
        }
        Ok(())
    }

    /// Definitions of all maps: structures whose fields are pointers to arrays, as long as the number
    /// that is meant (libbpf's `__uint`).
    fn maps(&mut self, shapes: &[MapShape], pinned: &[&str]) -> Result<(), XdpError> {
        let definitions = self.data(MAPS)?;
        let mut variables = Vec::new();
        let mut bytes = 0;
        for (name, place) in self.symbols_of(MAPS)? {
            let definition = definitions.get(place.range());
            let mut words = definition
                .unwrap_or_default()
                .chunks_exact(WORD)
                .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
            let mut word = || words.next().ok_or_else(|| super::missing(name));
            let (kind, key, mut value, mut records, flags) =
                (word()?, word()?, word()?, word()?, word()?);
            if let Some(shape) = shapes.iter().find(|shape| shape.name == name) {
                (value, records) = (shape.value_bytes, shape.records);
            }
            let mut fields = vec![
                ("type", kind),
                ("key_size", key),
                ("value_size", value),
                ("max_entries", records),
                ("map_flags", flags),
            ];
            if pinned.contains(&name) {
                fields.push(("pinning", PIN_BY_NAME));
            }
            let place = Place {
                offset: bytes,
                bytes: fields.len() as u32 * FIELD_BYTES,
            };
            bytes += place.bytes;
            let kind = self.btf.numbers(&fields);
            // libbpf names the map and its pin after the variable.
            let variable = self.btf.variable(&name.to_ascii_lowercase(), kind);
            variables.push((name, variable, place));
        }
        let section = self.section(BTF_MAPS, SectionKind::Data, &vec![0; bytes as usize]);
        let placed: Vec<_> = variables
            .iter()
            .map(|(_, id, place)| (*id, *place))
            .collect();
        self.btf.section(BTF_MAPS, &placed);
        for (name, _, place) in variables {
            let pin = name.to_ascii_lowercase();
            self.symbol_as(name, &pin, place, SymbolKind::Data, section);
        }
        Ok(())
    }

    /// When the dispatcher calls the program: the next one is called only where it passed the frame.
    fn run_config(&mut self, program: &str) {
        let fields = [("priority", PRIORITY), ("XDP_PASS", 1)];
        let bytes = fields.len() as u32 * FIELD_BYTES;
        let place = Place { offset: 0, bytes };
        let name = format!("_{program}");
        let kind = self.btf.numbers(&fields);
        let variable = self.btf.variable(&name, kind);
        self.btf.section(RUN_CONFIG, &[(variable, place)]);
        let section = self.section(RUN_CONFIG, SectionKind::Data, &vec![0; bytes as usize]);
        self.symbol(&name, place, SymbolKind::Data, section);
    }

    /// The program without its neighbours, and the functions that it may call.
    fn code(&mut self, program: &str) -> Result<(), XdpError> {
        let programs = self.symbols_of(PROGRAMS)?;
        let (_, whole) = *programs
            .iter()
            .find(|(name, _)| *name == program)
            .ok_or_else(super::no_program)?;
        let functions = self.symbols_of(FUNCTIONS)?;
        let of_functions = match self.data(FUNCTIONS) {
            Ok(bytes) if !functions.is_empty() => Some((FUNCTIONS, bytes, Place::all(bytes))),
            _ => None,
        };
        let code = self.data(PROGRAMS)?.get(whole.range());
        let code = code.ok_or_else(super::no_program)?;
        let parts = of_functions.into_iter().chain([(PROGRAMS, code, whole)]);
        let parts: Vec<_> = parts.collect();
        let mut sections = Vec::new();
        for (name, bytes, part) in &parts {
            let section = self.section(name, SectionKind::Text, bytes);
            sections.push(section);
            let in_part = if *name == PROGRAMS {
                &programs
            } else {
                &functions
            };
            let mut starts = Vec::new();
            for (function, place) in in_part {
                let Some(at) = place.within(*part) else {
                    continue;
                };
                let linkage = if *function == program {
                    Linkage::Global
                } else {
                    Linkage::Static
                };
                starts.push((at.offset, self.btf.function(function, linkage)));
                self.symbol(function, at, SymbolKind::Text, section);
            }
            self.btf.functions_of(name, &starts);
        }
        for ((name, _, part), section) in parts.iter().zip(sections) {
            self.relocate(name, *part, section)?;
        }
        Ok(())
    }

    /// What the instructions of a part mean.
    fn relocate(&mut self, name: &str, part: Place, section: SectionId) -> Result<(), XdpError> {
        let Some(read) = self.file.section_by_name(name) else {
            return Ok(());
        };
        for (at, relocation) in read.relocations() {
            let Some(at) = Place::new(at, 1).and_then(|at| at.within(part)) else {
                continue;
            };
            let RelocationFlags::Elf { r_type } = relocation.flags() else {
                continue;
            };
            if !matches!(r_type, R_BPF_64_64 | R_BPF_64_32) {
                return Err(bad(&format!("it has a relocation of type {r_type}")));
            }
            let RelocationTarget::Symbol(index) = relocation.target() else {
                return Err(bad(&"it has a relocation to nothing"));
            };
            let meant = self.file.symbol_by_index(index);
            let meant = meant.and_then(|symbol| symbol.name());
            let meant = meant.map_err(|error| bad(&error))?;
            let symbol = self.symbols.get(meant);
            let symbol = *symbol.ok_or_else(|| bad(&format!("its program has no {meant}")))?;
            let relocation = Relocation {
                offset: at.offset.into(),
                symbol,
                // It stands in the instruction.
                addend: 0,
                flags: RelocationFlags::Elf { r_type },
            };
            let added = self.object.add_relocation(section, relocation);
            added.map_err(|error| bad(&error))?;
        }
        Ok(())
    }
}
