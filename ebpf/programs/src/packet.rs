//! The packet that a program was called for, and the values in it.

use crate::region::exchange;
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_tail, bpf_xdp_load_bytes, bpf_xdp_store_bytes};
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::XdpContext;
use consensus::frame::{Addresses, Mac, Path, Sum, XDP_VALUE_BYTES};
use consensus::memory::Payload;
use consensus::pieces::{Pieces, PiecesMut};
use consensus::wire::{HEADER_BYTES, Header};
use core::arch::asm;
use core::net::{Ipv4Addr, Ipv6Addr};

const MAX_VALUE_WORDS: usize = XDP_VALUE_BYTES / 8;

/// What a processor needs for the request that it works on.
///
/// In the packet itself each combination of headers in front of a value would be another place for
/// it, and the verifier would go through the step once for each. So it goes, too, for the way back
/// if that were on the stack.
#[repr(C)]
struct Scratch {
    /// First the request's value, then the answer's.
    value: [u64; MAX_VALUE_WORDS],
    /// The zeros behind a value.
    behind: u64,
    back: Back,
}

/// A [`Path`] without a tag, of which every byte is a number: an enum leaves those of its other
/// variants open, and the verifier refuses to move them.
#[repr(C)]
struct Back {
    source_mac: Mac,
    destination_mac: Mac,
    source_port: u16,
    destination_port: u16,
    is_v6: u32,
    source: [u64; 2],
    destination: [u64; 2],
}

impl Back {
    #[inline(always)]
    fn new(path: &Path) -> Self {
        let (is_v6, source, destination) = match path.addresses {
            Addresses::V4 {
                source,
                destination,
            } => {
                let word = |address: Ipv4Addr| [u32::from_ne_bytes(address.octets()).into(), 0];
                (0, word(source), word(destination))
            }
            Addresses::V6 {
                source,
                destination,
            } => (1, halves(source), halves(destination)),
        };
        Self {
            source_mac: path.source_mac,
            destination_mac: path.destination_mac,
            source_port: path.source_port,
            destination_port: path.destination_port,
            is_v6,
            source,
            destination,
        }
    }

    #[inline(always)]
    fn path(&self) -> Path {
        let addresses = if self.is_v6 == 0 {
            let address = |word: u64| Ipv4Addr::from((word as u32).to_ne_bytes());
            Addresses::V4 {
                source: address(self.source[0]),
                destination: address(self.destination[0]),
            }
        } else {
            Addresses::V6 {
                source: whole(self.source),
                destination: whole(self.destination),
            }
        };
        Path {
            source_mac: self.source_mac,
            destination_mac: self.destination_mac,
            vlan: None,
            addresses,
            source_port: self.source_port,
            destination_port: self.destination_port,
        }
    }
}

#[inline(always)]
fn halves(address: Ipv6Addr) -> [u64; 2] {
    let bits = address.to_bits();
    [(bits >> 64) as u64, bits as u64]
}

#[inline(always)]
fn whole([high, low]: [u64; 2]) -> Ipv6Addr {
    Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low))
}

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
/// 1 while a program works on this processor's scratch. One that began before that ended, as it may
/// on PREEMPT_RT and, before Linux 6.3, under BPF_PROG_TEST_RUN, leaves it alone.
#[map]
static BUSY: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// The same number, of which the compiler knows nothing. It then checks the very register that the
/// verifier looks at, instead of another from which it concludes.
#[inline(always)]
pub(crate) fn unknown(mut number: u64) -> u64 {
    // SAFETY: there is no instruction.
    unsafe { asm!("/* {0} */", inout(reg) number, options(pure, nomem, nostack)) };
    number
}

/// The same length where it is from one to `limit`, as helpers want it. From a comparison with zero
/// the verifier concludes nothing before Linux 6.8.
#[inline(always)]
fn some(length: u64, limit: usize) -> Option<u32> {
    let last = unknown(length.wrapping_sub(1));
    (last < limit as u64).then(|| last as u32 + 1)
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

/// The values of a request and its answer, and the way back. This program's until dropped.
pub(crate) struct Workbench<'a> {
    context: &'a XdpContext,
    scratch: *mut Scratch,
    busy: *mut u64,
    /// What the value that was put sums up to.
    sum: Sum,
}

impl<'a> Workbench<'a> {
    /// That of this processor, or `None` if another program is at work on it.
    #[inline(always)]
    pub(crate) fn new(context: &'a XdpContext, back: &Path) -> Option<Self> {
        let (scratch, busy) = (SCRATCH.get_ptr_mut(0)?, BUSY.get_ptr_mut(0)?);
        // SAFETY: the word is the map's.
        if unsafe { exchange(busy, 1) } != 0 {
            return None;
        }
        // SAFETY: nobody else has the scratch.
        unsafe { (*scratch).back = Back::new(back) };
        Some(Self {
            context,
            scratch,
            busy,
            sum: Sum::default(),
        })
    }

    /// Reads the `length` bytes of a request's value from `at` on.
    #[inline(always)]
    pub(crate) fn read(&mut self, at: usize, length: u16) -> Option<()> {
        let Some(bytes) = some(length.into(), XDP_VALUE_BYTES) else {
            return (length == 0).then_some(());
        };
        // SAFETY: the word that holds the first byte behind the value is in the scratch.
        unsafe { *self.words().add(bytes as usize / 8) = 0 };
        // SAFETY: the scratch has room for so many bytes; the helper checks the packet's end.
        let refused =
            unsafe { bpf_xdp_load_bytes(self.context.ctx, at as u32, self.words().cast(), bytes) };
        (refused == 0).then_some(())
    }

    /// Whether an answer with this header is no longer than the request.
    #[inline(always)]
    pub(crate) fn has_room(&self, header: &Header) -> bool {
        // SAFETY: nobody else has the scratch.
        let start = unsafe { (*self.scratch).back.path() }.header_bytes();
        let length = unknown(header.length.into()) as usize;
        start + HEADER_BYTES + length <= Packet::of(self.context).length()
    }

    /// Writes the answer with this header and the value that was put, over the request. `None` if it
    /// is longer than that, which is then as it came.
    #[inline(always)]
    pub(crate) fn write(&self, header: &Header) -> Option<()> {
        // SAFETY: nobody else has the scratch.
        let back = unsafe { (*self.scratch).back.path() };
        let length = unknown(header.length.into()) as usize;
        if length > XDP_VALUE_BYTES {
            return None;
        }
        let start = back.header_bytes();
        let total = start + HEADER_BYTES + length;
        let behind = Packet::of(self.context).length().checked_sub(total)?;
        // SAFETY: the context is this program's; pointers into the packet are not used again.
        if behind != 0 && unsafe { bpf_xdp_adjust_tail(self.context.ctx, -(behind as i32)) } != 0 {
            return None;
        }
        // The frame is as long as the answer from here on: nothing below is refused.
        let words = header.to_words();
        let sum = words
            .iter()
            .fold(self.sum, |sum, word| sum.eight(word.to_ne_bytes()));
        let mut frame = Packet::of(self.context);
        let place = frame.piece_mut::<HEADER_BYTES>(start)?;
        // SAFETY: it has as many bytes as the words.
        unsafe { place.as_mut_ptr().cast::<[u64; 8]>().write_unaligned(words) };
        back.write_headers(&mut frame, HEADER_BYTES + length, sum)?;
        let Some(bytes) = some(length as u64, XDP_VALUE_BYTES) else {
            return Some(());
        };
        // SAFETY: the scratch has so many bytes; the helper checks the packet's end.
        let refused = unsafe {
            bpf_xdp_store_bytes(
                self.context.ctx,
                (start + HEADER_BYTES) as u32,
                self.words().cast(),
                bytes,
            )
        };
        (refused == 0).then_some(())
    }

    #[inline(always)]
    fn words(&self) -> *mut u64 {
        self.scratch.cast()
    }
}

impl Drop for Workbench<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        // Whoever could see the scratch half-used runs on this processor: a store is enough, behind
        // everything else in the order of the program.
        // SAFETY: the word is the map's.
        unsafe {
            asm!(
                "*(u64 *)({place} + 0) = {none}",
                place = in(reg) self.busy,
                none = in(reg) 0_u64,
                options(nostack),
            );
        }
    }
}

impl Payload for Workbench<'_> {
    #[inline(always)]
    fn word(&self, index: usize) -> u64 {
        let index = unknown(index as u64) as usize;
        if index >= MAX_VALUE_WORDS {
            return 0;
        }
        // SAFETY: the scratch begins with so many words.
        unsafe { *self.words().add(index) }
    }

    #[inline(always)]
    fn put(&mut self, index: usize, word: u64) {
        if index < MAX_VALUE_WORDS {
            // SAFETY: as in `word`.
            unsafe { *self.words().add(index) = word };
            self.sum = self.sum.eight(word.to_ne_bytes());
        }
    }
}
