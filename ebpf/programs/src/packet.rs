//! The packet that a program was called for, and the request and answer in it.

use aya_ebpf::helpers::generated::bpf_xdp_adjust_tail;
use aya_ebpf::programs::XdpContext;
use consensus::frame::{
    self, ETHERNET_BYTES, IPV4_BYTES, IPV6_BYTES, Sum, UDP_BYTES, XDP_VALUE_BYTES,
};
use consensus::memory::Payload;
use consensus::pieces::{Pieces, PiecesMut};
use consensus::wire::{HEADER_BYTES, Header};
use core::arch::asm;

const WORD: usize = size_of::<u64>();

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

    /// What follows its first `bytes` bytes.
    #[inline(always)]
    fn behind(&self, bytes: usize) -> Self {
        Self {
            start: self.start + bytes,
            end: self.end,
        }
    }
}

impl Packet {
    /// The same, for a piece that is asked for in a loop: the compiler would compare with an end that
    /// it has moved by one in front of the loop, and the verifier lets nobody calculate with the end.
    #[inline(always)]
    fn with_an_end_of_its_own(&self) -> Self {
        Self {
            start: self.start,
            end: unknown(self.end as u64) as usize,
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

/// Length of the headers in front of a datagram in bytes.
#[inline(always)]
const fn headers_bytes(is_v6: bool) -> usize {
    let ip = if is_v6 { IPV6_BYTES } else { IPV4_BYTES };
    ETHERNET_BYTES + ip + UDP_BYTES
}

/// A request where it stands, over which its answer is written.
pub(crate) struct Datagram<'a> {
    context: &'a XdpContext,
    is_v6: bool,
    /// From the request's header to the end of the packet.
    rest: Packet,
    /// What the value that was put sums up to.
    sum: Sum,
}

impl<'a> Datagram<'a> {
    /// The one behind the headers without a VLAN's tag.
    #[inline(always)]
    pub(crate) fn new(context: &'a XdpContext, is_v6: bool) -> Self {
        Self {
            context,
            is_v6,
            rest: Packet::of(context).behind(headers_bytes(is_v6)),
            sum: Sum::default(),
        }
    }

    /// From the header to the end of the packet.
    #[inline(always)]
    pub(crate) const fn rest(&self) -> &Packet {
        &self.rest
    }

    /// Writes the answer with this header and the value that was put, over the request. `None` if it
    /// is longer than that, which is then as it came.
    #[inline(always)]
    pub(crate) fn write(&self, header: &Header) -> Option<()> {
        let length = HEADER_BYTES + usize::from(header.length);
        let behind = self.rest.length().checked_sub(length)?;
        // SAFETY: the context is this program's; pointers into the packet are not used again.
        if behind != 0 && unsafe { bpf_xdp_adjust_tail(self.context.ctx, -(behind as i32)) } != 0 {
            return None;
        }
        // The frame is as long as the answer from here on: nothing below is refused.
        let mut frame = Packet::of(self.context);
        let words = header.to_words();
        let sum = words
            .iter()
            .fold(self.sum, |sum, word| sum.eight(word.to_ne_bytes()));
        let place = frame.piece_mut::<HEADER_BYTES>(headers_bytes(self.is_v6))?;
        // SAFETY: it has as many bytes as the words.
        unsafe { place.as_mut_ptr().cast::<[u64; 8]>().write_unaligned(words) };
        frame::turn(&mut frame, self.is_v6, length, sum)
    }
}

impl Payload for Datagram<'_> {
    #[inline(always)]
    fn word(&self, index: usize, bytes: usize) -> Option<u64> {
        let (at, over) = window(index, bytes)?;
        let rest = self.rest.with_an_end_of_its_own();
        let piece = rest.piece::<WORD>(at)?;
        Some((u64::from_le_bytes(*piece) >> (8 * over)).to_le())
    }

    /// Whether the answer is no longer than the request.
    #[inline(always)]
    fn has_room(&self, length: usize) -> bool {
        HEADER_BYTES + length <= self.rest.length()
    }

    #[inline(always)]
    fn put(&mut self, index: usize, bytes: usize, word: u64) -> Option<()> {
        self.sum = self.sum.eight(word.to_ne_bytes());
        let (at, over) = window(index, bytes)?;
        let mut rest = self.rest.with_an_end_of_its_own();
        let piece = rest.piece_mut::<WORD>(at)?;
        let kept = u64::from_le_bytes(*piece) & ((1 << (8 * over)) - 1);
        *piece = (kept | u64::from_le(word) << (8 * over)).to_le_bytes();
        Some(())
    }
}

/// Where the eight bytes begin, counted from the header, that end with the `bytes` bytes from word
/// `index` of the value on, and how many of them are in front of these. There are always eight, since
/// there is a header in front.
#[inline(always)]
fn window(index: usize, bytes: usize) -> Option<(usize, usize)> {
    let over = WORD - bytes;
    let at = HEADER_BYTES + index * WORD - over;
    if over == 0 {
        return Some((at, 0));
    }
    // How long a value is the verifier does not know, unlike how often a loop went round.
    let at = unknown(at as u64) as usize;
    (at <= HEADER_BYTES + XDP_VALUE_BYTES).then_some((at, over))
}
