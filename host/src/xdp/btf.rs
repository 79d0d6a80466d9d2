//! BTF, as far as maps, functions and libxdp's settings are described by it (the kernel's
//! Documentation/bpf/btf.rst).

use std::ops::Range;

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
const HEADER_BYTES: u32 = 24;
/// Of a record that says where a function begins and what it is.
const FUNCTION_BYTES: u32 = 8;

/// A kind of type.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Kind {
    Integer = 1,
    Pointer = 2,
    Array = 3,
    Structure = 4,
    Function = 12,
    Prototype = 13,
    Variable = 14,
    Section = 15,
}

const SIGNED_32_BITS: u32 = 1 << 24 | 32;
const INTEGER_BYTES: u32 = 4;
const POINTER_BITS: u32 = 64;
/// What a program of XDP is given. The kernel compares the name with that of the dispatcher's.
const CONTEXT: &str = "xdp_md";
const CONTEXT_BYTES: u32 = 24;

/// The number of a type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Type(u32);

/// Whether others may call a function. The verifier goes through one that is global by itself.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(super) enum Linkage {
    Static = 0,
    Global = 1,
}

/// Where something is in a section.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) offset: u32,
    pub(super) bytes: u32,
}

impl Place {
    pub(super) fn new(offset: u64, bytes: u64) -> Option<Self> {
        let (offset, bytes) = (offset.try_into().ok()?, bytes.try_into().ok()?);
        u32::checked_add(offset, bytes)?;
        Some(Self { offset, bytes })
    }

    /// All of a section.
    pub(super) const fn all(section: &[u8]) -> Self {
        Self {
            offset: 0,
            bytes: section.len() as u32,
        }
    }

    pub(super) const fn range(self) -> Range<usize> {
        self.offset as usize..(self.offset + self.bytes) as usize
    }

    /// Where it is in `part` of the section, if it is there.
    pub(super) fn within(self, part: Self) -> Option<Self> {
        let offset = self.offset.checked_sub(part.offset)?;
        let bytes = self.bytes;
        (offset.checked_add(bytes)? <= part.bytes).then_some(Self { offset, bytes })
    }
}

/// The types of an object, and which functions it has.
pub(super) struct Btf {
    types: Vec<u8>,
    count: u32,
    /// Names, each ended by a zero byte. The first is the empty one.
    names: Vec<u8>,
    functions: Vec<u8>,
    integer: Type,
    prototype: Type,
}

impl Btf {
    pub(super) fn new() -> Self {
        let mut btf = Self {
            types: Vec::new(),
            count: 0,
            names: vec![0],
            functions: FUNCTION_BYTES.to_le_bytes().to_vec(),
            integer: Type(0),
            prototype: Type(0),
        };
        let integer = btf.add("int", Kind::Integer, 0, INTEGER_BYTES);
        btf.words(&[SIGNED_32_BITS]);
        btf.integer = integer;
        let context = btf.add(CONTEXT, Kind::Structure, 0, CONTEXT_BYTES);
        let context = btf.add("", Kind::Pointer, 0, context.0);
        btf.prototype = btf.add("", Kind::Prototype, 1, integer.0);
        let name = btf.name("ctx");
        btf.words(&[name, context.0]);
        btf
    }

    /// A structure that says numbers: each field is a pointer to an array of as many.
    pub(super) fn numbers(&mut self, fields: &[(&str, u32)]) -> Type {
        let mut members = Vec::new();
        for (at, (name, number)) in (0..).zip(fields) {
            let array = self.add("", Kind::Array, 0, 0);
            self.words(&[self.integer.0, self.integer.0, *number]);
            let pointer = self.add("", Kind::Pointer, 0, array.0);
            members.extend([self.name(name), pointer.0, at * POINTER_BITS]);
        }
        let count = fields.len() as u32;
        let structure = self.add("", Kind::Structure, count, count * POINTER_BITS / 8);
        self.words(&members);
        structure
    }

    pub(super) fn variable(&mut self, name: &str, kind: Type) -> Type {
        let variable = self.add(name, Kind::Variable, 0, kind.0);
        self.words(&[Linkage::Global as u32]);
        variable
    }

    /// A section of variables, in the order of their places.
    pub(super) fn section(&mut self, name: &str, variables: &[(Type, Place)]) {
        let bytes = variables.iter().map(|(_, place)| place.bytes).sum();
        self.add(name, Kind::Section, variables.len() as u32, bytes);
        for (variable, place) in variables {
            self.words(&[variable.0, place.offset, place.bytes]);
        }
    }

    /// A function that takes the context and gives a verdict. Of others nobody looks at more than
    /// the name.
    pub(super) fn function(&mut self, name: &str, linkage: Linkage) -> Type {
        self.add(name, Kind::Function, linkage as u32, self.prototype.0)
    }

    /// Where the functions of a section begin, in their order.
    pub(super) fn functions_of(&mut self, section: &str, starts: &[(u32, Type)]) {
        let mut words = vec![self.name(section), starts.len() as u32];
        words.extend(starts.iter().flat_map(|(at, function)| [*at, function.0]));
        self.functions.extend(bytes(&words));
    }

    /// The section `.BTF`.
    pub(super) fn types(&self) -> Vec<u8> {
        let (types, names) = (self.types.len() as u32, self.names.len() as u32);
        let header = header([0, types, types, names]);
        [&*header, &self.types, &self.names].concat()
    }

    /// The section `.BTF.ext`, without lines.
    pub(super) fn functions(&self) -> Vec<u8> {
        let length = self.functions.len() as u32;
        let header = header([0, length, length, 0]);
        [&*header, &self.functions].concat()
    }

    fn add(&mut self, name: &str, kind: Kind, count: u32, size_or_type: u32) -> Type {
        let name = self.name(name);
        self.words(&[name, (kind as u32) << 24 | count, size_or_type]);
        self.count += 1;
        Type(self.count)
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.names.len() as u32;
        self.names.extend(name.as_bytes());
        self.names.push(0);
        at
    }

    fn words(&mut self, words: &[u32]) {
        self.types.extend(bytes(words));
    }
}

fn bytes(words: &[u32]) -> impl Iterator<Item = u8> {
    words.iter().flat_map(|word| word.to_le_bytes())
}

/// Of two parts behind it, each by its offset and length.
fn header(parts: [u32; 4]) -> Vec<u8> {
    let mut out = MAGIC.to_le_bytes().to_vec();
    out.extend([VERSION, 0]);
    out.extend(bytes(&[HEADER_BYTES]));
    out.extend(bytes(&parts));
    out
}
