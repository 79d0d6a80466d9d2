//! The floor of what a program on an interface can do: UDP datagrams go back as they came.

use aya_ebpf::bindings::xdp_action::{XDP_PASS, XDP_TX};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;

const ETHERNET: usize = 14;
const IPV4: usize = ETHERNET + 20;
const UDP: usize = IPV4 + 8;
/// IPv4 in Ethernet; version and length of a header without options; UDP.
const ETHERTYPE: u16 = 0x0800_u16.to_be();
const VERSION: u8 = 0x45;
const PROTOCOL: u8 = 17;

/// Sends every UDP datagram over IPv4 back, whatever its port; everything else is passed.
#[xdp]
pub fn echo(context: XdpContext) -> u32 {
    let (start, end) = (context.data(), context.data_end());
    if start + UDP > end {
        return XDP_PASS;
    }
    // SAFETY: all of it lies before `UDP`, which was checked against the end; BPF has no alignment.
    unsafe {
        let at = |offset: usize| start + offset;
        let is_udp = (at(12) as *const u16).read_unaligned() == ETHERTYPE
            && (at(ETHERNET) as *const u8).read() == VERSION
            && (at(ETHERNET + 9) as *const u8).read() == PROTOCOL;
        if !is_udp {
            return XDP_PASS;
        }
        swap::<[u8; 6]>(at(0), at(6));
        swap::<u32>(at(ETHERNET + 12), at(ETHERNET + 16));
        swap::<u16>(at(IPV4), at(IPV4 + 2));
        // On virtual interfaces it may be a part of the sum only. Zero is none (RFC 768).
        (at(IPV4 + 6) as *mut u16).write_unaligned(0);
    }
    XDP_TX
}

/// # Safety
/// A `T` must lie in the packet at both addresses.
#[inline(always)]
unsafe fn swap<T>(one: usize, other: usize) {
    let (one, other) = (one as *mut T, other as *mut T);
    // SAFETY: the caller's.
    unsafe {
        let kept = one.read_unaligned();
        one.write_unaligned(other.read_unaligned());
        other.write_unaligned(kept);
    }
}
