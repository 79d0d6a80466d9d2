//! The packet that a program was called for, and the datagram in it.

use aya_ebpf::helpers::generated::{bpf_xdp_adjust_tail, bpf_xdp_load_bytes, bpf_xdp_store_bytes};
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::XdpContext;
use consensus::frame::Sum;
use consensus::memory::Payload;
use consensus::pieces::{Pieces, PiecesMut};
use consensus::wire::{HEADER_BYTES, Header};
use core::arch::asm;

/// Longest value in bytes that a linear XDP frame carries: a page less what the kernel keeps in it,
/// and the headers.
const MAX_VALUE_BYTES: usize = 3392;
const MAX_VALUE_WORDS: usize = MAX_VALUE_BYTES / 8;
const MAX_DATAGRAM_BYTES: usize = HEADER_BYTES + MAX_VALUE_BYTES;
const HEADER_WORDS: usize = HEADER_BYTES / 8;

/// The datagram while it is worked on: where a request was read to, and an answer is made.
///
/// In the packet itself each combination of headers in front of a datagram would be another place
/// for it, and the verifier would go through the step once for each.
#[repr(C)]
struct Scratch {
    header: [u64; HEADER_WORDS],
    value: [u64; MAX_VALUE_WORDS],
    /// The zeros behind a value.
    behind: u64,
}

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// The same number, of which the compiler knows nothing. It then checks the very register that the
/// verifier looks at, instead of another from which it concludes.
#[inline(always)]
pub(crate) fn unknown(mut number: u64) -> u64 {
    // SAFETY: there is no instruction.
    unsafe { asm!("/* {0} */", inout(reg) number, options(pure, nomem, nostack)) };
    number
}

/// The bytes of a packet. The verifier knows no more of them than each piece's check tells it.
#[derive(Clone, Copy)]
pub(crate) struct Packet {
    start: usize,
    end: usize,
}

impl Packet {
    /// As it is now: no longer valid once a helper has moved its ends.
    #[inline(always)]
    pub(crate) fn of(context: &XdpContext) -> Self {
        Self {
            start: context.data(),
            end: context.data_end(),
        }
    }
}

impl Pieces for Packet {
    #[inline(always)]
    fn length(&self) -> usize {
        self.end - self.start
    }

    #[inline(always)]
    fn piece<const N: usize>(&self, at: usize) -> Option<&[u8; N]> {
        let from = self.start + at;
        if from + N > self.end {
            return None;
        }
        // SAFETY: the piece ends before the packet does, and nobody else has the packet.
        Some(unsafe { &*(from as *const [u8; N]) })
    }
}

impl PiecesMut for Packet {
    #[inline(always)]
    fn piece_mut<const N: usize>(&mut self, at: usize) -> Option<&mut [u8; N]> {
        let from = self.start + at;
        if from + N > self.end {
            return None;
        }
        // SAFETY: as in `piece`; the borrow of `self` keeps other pieces away.
        Some(unsafe { &mut *(from as *mut [u8; N]) })
    }
}

/// The datagram of a packet: first the request's, then the answer's.
pub(crate) struct Datagram<'a> {
    context: &'a XdpContext,
    /// This processor's alone: no other program runs here before this one ends.
    scratch: *mut Scratch,
    /// Bytes in front of it.
    start: usize,
    length: usize,
    /// What the value that was put sums up to.
    sum: Sum,
}

impl<'a> Datagram<'a> {
    /// Reads the `length` bytes from `start` on; of more than any region takes, the header only.
    #[inline(always)]
    pub(crate) fn read(context: &'a XdpContext, start: usize, length: usize) -> Option<Self> {
        let scratch = SCRATCH.get_ptr_mut(0)?;
        let mut bytes = unknown(length as u64) as usize;
        if bytes > MAX_DATAGRAM_BYTES {
            bytes = HEADER_BYTES;
        }
        if bytes == 0 {
            return None;
        }
        // SAFETY: the word that holds the first byte behind the datagram is in the scratch.
        unsafe { *scratch.cast::<u64>().add(bytes / 8) = 0 };
        // SAFETY: the scratch has room for so many bytes; the helper checks the packet's end.
        let refused =
            unsafe { bpf_xdp_load_bytes(context.ctx, start as u32, scratch.cast(), bytes as u32) };
        (refused == 0).then_some(Self {
            context,
            scratch,
            start,
            length,
            sum: Sum::default(),
        })
    }

    /// Writes the answer with this header and the value that was put, over the request. `None` if
    /// the packet cannot be made to fit it; it is then as it was.
    #[inline(always)]
    pub(crate) fn write(&self, header: &Header) -> Option<Written> {
        let bytes = header.to_bytes();
        // SAFETY: nobody else has the scratch.
        unsafe { (*self.scratch).header = core::mem::transmute::<[u8; 64], [u64; 8]>(bytes) };
        let length = unknown(header.length.into()) as usize;
        if length > MAX_VALUE_BYTES {
            return None;
        }
        let length = HEADER_BYTES + length;
        let change = (self.start + length) as i32 - Packet::of(self.context).length() as i32;
        // SAFETY: the context is this program's; pointers into the packet are not used again.
        if change != 0 && unsafe { bpf_xdp_adjust_tail(self.context.ctx, change) } != 0 {
            return None;
        }
        // SAFETY: the scratch has so many bytes; the helper checks the packet's end.
        let refused = unsafe {
            bpf_xdp_store_bytes(
                self.context.ctx,
                self.start as u32,
                self.scratch.cast(),
                length as u32,
            )
        };
        (refused == 0).then_some(Written {
            bytes: length,
            sum: Sum::default().bytes(&bytes).and(self.sum),
        })
    }
}

/// An answer that stands in the packet.
pub(crate) struct Written {
    /// Its length in bytes.
    pub(crate) bytes: usize,
    /// What it sums up to.
    pub(crate) sum: Sum,
}

impl Pieces for Datagram<'_> {
    #[inline(always)]
    fn length(&self) -> usize {
        self.length
    }

    #[inline(always)]
    fn piece<const N: usize>(&self, at: usize) -> Option<&[u8; N]> {
        if at + N > self.length || at + N > HEADER_BYTES {
            return None;
        }
        // SAFETY: the header is in the scratch.
        Some(unsafe { &*self.scratch.cast::<u8>().add(at).cast() })
    }
}

impl Payload for Datagram<'_> {
    #[inline(always)]
    fn word(&self, index: usize) -> u64 {
        if index >= MAX_VALUE_WORDS {
            return 0;
        }
        // SAFETY: the value has so many words.
        unsafe { *(&raw const (*self.scratch).value).cast::<u64>().add(index) }
    }

    #[inline(always)]
    fn put(&mut self, index: usize, word: u64) {
        if index < MAX_VALUE_WORDS {
            // SAFETY: as in `word`.
            unsafe { *(&raw mut (*self.scratch).value).cast::<u64>().add(index) = word };
            self.sum = self.sum.eight(word.to_ne_bytes());
        }
    }
}
