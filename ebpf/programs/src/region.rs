//! The region, in maps that user space maps one behind the other: `docs/region.md`.

use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use consensus::memory::Memory;
use consensus::region::group;
use consensus::{GroupId, NodeId};
use core::arch::asm;

/// User space maps these maps (Linux 5.5).
pub(crate) const BPF_F_MMAPABLE: u32 = 1 << 10;
const HEADER_WORDS: usize = 512;
const PEERS: u32 = NodeId::MAX as u32 + 1;

/// The header, which no step looks at: it says to the next opener whose region this is.
#[map]
static HEADER: Array<[u64; HEADER_WORDS]> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// One word per node.
#[map]
static PEER: Array<u64> = Array::with_max_entries(PEERS, BPF_F_MMAPABLE);
/// One record per group; the loader says how many.
#[map]
static GROUP: Array<[u64; group::WORDS]> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// The ring entries of all groups; the loader says how many, and how long each is.
#[map]
static ENTRY: Array<[u64; 24]> = Array::with_max_entries(2, BPF_F_MMAPABLE);

/// The maps above.
pub(crate) struct Maps;

/// A record in one of them. The verifier proves that every word named is within the record.
#[derive(Clone, Copy)]
pub(crate) struct Record(pub(crate) *mut u64);

#[cfg(feature = "duel")]
impl Maps {
    /// The page of the header.
    #[inline(always)]
    pub(crate) fn header(&self) -> Option<Record> {
        HEADER.get_ptr_mut(0).map(|found| Record(found.cast()))
    }
}

impl Record {
    #[inline(always)]
    fn word(self, word: usize) -> *mut u64 {
        self.0.wrapping_add(word)
    }
}

impl Memory for Maps {
    type At = Record;

    #[inline(always)]
    fn group(&self, group: GroupId) -> Option<Record> {
        GROUP
            .get_ptr_mut(group.0.into())
            .map(|found| Record(found.cast()))
    }

    #[inline(always)]
    fn entry(&self, index: u64) -> Option<Record> {
        let index = u32::try_from(index).ok()?;
        ENTRY.get_ptr_mut(index).map(|found| Record(found.cast()))
    }

    #[inline(always)]
    fn peer(&self, node: NodeId) -> Option<Record> {
        PEER.get_ptr_mut(node.0.into()).map(Record)
    }

    /// A load whose result nobody waits for.
    #[inline(always)]
    fn touch(&self, at: Record, word: usize) {
        // SAFETY: as in `load`.
        unsafe {
            asm!(
                "{ignored} = *(u64 *)({place} + 0)",
                place = in(reg) at.word(word),
                ignored = out(reg) _,
                options(nostack, readonly),
            );
        }
    }

    #[inline(always)]
    fn load(&self, at: Record, word: usize) -> u64 {
        // SAFETY: maps live as long as the program, and their words are aligned.
        unsafe { at.word(word).read_volatile() }
    }

    #[inline(always)]
    fn store(&self, at: Record, word: usize, value: u64) {
        // SAFETY: as in `load`.
        unsafe { at.word(word).write_volatile(value) }
    }

    #[inline(always)]
    fn compare_exchange(
        &self,
        at: Record,
        word: usize,
        current: u64,
        new: u64,
    ) -> Result<u64, u64> {
        let found: u64;
        // SAFETY: as in `load`. The instruction compares r0 and leaves what it found there.
        unsafe {
            asm!(
                "r0 = cmpxchg_64({place} + 0, r0, {new})",
                place = in(reg) at.word(word),
                new = in(reg) new,
                inout("r0") current => found,
                options(nostack),
            );
        }
        if found == current {
            Ok(found)
        } else {
            Err(found)
        }
    }

    #[inline(always)]
    fn exchange(&self, at: Record, word: usize, new: u64) -> u64 {
        let mut value = new;
        // SAFETY: as in `load`.
        unsafe {
            asm!(
                "{value} = xchg_64({place} + 0, {value})",
                place = in(reg) at.word(word),
                value = inout(reg) value,
                options(nostack),
            );
        }
        value
    }

    #[inline(always)]
    fn fetch_add(&self, at: Record, word: usize, add: u64) -> u64 {
        let mut value = add;
        // SAFETY: as in `load`.
        unsafe {
            asm!(
                "{value} = atomic_fetch_add((u64 *)({place} + 0), {value})",
                place = in(reg) at.word(word),
                value = inout(reg) value,
                options(nostack),
            );
        }
        value
    }
}
