//! The acceptor in XDP: a request is answered where it stands in the driver's buffer.
//!
//! Parsing, authentication and the step are those of `consensus`. What is here is how they reach
//! packets ([`packet`]) and the region ([`region`]), and the order of things.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

#[cfg(feature = "duel")]
mod duel;
mod echo;
mod packet;
mod region;
mod repeat;

use aya_ebpf::Global;
#[cfg(not(feature = "duel"))]
use aya_ebpf::bindings::xdp_action::XDP_TX;
use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray};
use aya_ebpf::programs::XdpContext;
use consensus::acceptor::{Acceptor, Step};
use consensus::auth::{self, Key};
use consensus::frame::{self, Addresses, Mac, Own};
use consensus::memory::Payload as _;
use consensus::region::Layout;
use consensus::tally::Count;
use consensus::wire::{self, Headed, Header, Kind, Malformed};
use consensus::{Incarnation, NodeId};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use packet::{Datagram, Packet, unknown};
use region::Maps;

// Set by the loader before the program is verified: the verifier knows them as constants. All are
// numbers: an array of bytes would be loaded byte by byte for each packet.

/// UDP port of requests.
#[unsafe(no_mangle)]
static PORT: Global<u16> = Global::new(wire::DEFAULT_PORT);
/// The Ethernet address that requests are sent to, in the order of the wire, then two bytes of zero.
#[unsafe(no_mangle)]
static OWN_MAC: Global<u64> = Global::new(0);
/// The IP address that requests are sent to, in the order of the wire; IPv4's in the first four.
#[unsafe(no_mangle)]
static OWN_IP: Global<[u64; 2]> = Global::new([0; 2]);
/// Whether it is one of IPv6: 0 or 1.
#[unsafe(no_mangle)]
static OWN_IS_V6: Global<u8> = Global::new(0);
/// The acceptor's node number.
#[unsafe(no_mangle)]
static NODE: Global<u16> = Global::new(0);
/// The life of the region.
#[unsafe(no_mangle)]
static INCARNATION: Global<u32> = Global::new(0);
/// Groups of the region.
#[unsafe(no_mangle)]
static GROUP_COUNT: Global<u16> = Global::new(1);
/// Ring entries of each group.
#[unsafe(no_mangle)]
static WINDOW: Global<u64> = Global::new(2);
/// Longest value in bytes.
#[unsafe(no_mangle)]
static VALUE_BYTES: Global<u64> = Global::new(64);
/// Whether packets carry tags: 0 or 1; 2 where the host takes those of another key as well.
#[unsafe(no_mangle)]
static IS_KEYED: Global<u8> = Global::new(0);
/// The key of the tags.
#[unsafe(no_mangle)]
static KEY: Global<[u64; 2]> = Global::new([0; 2]);
/// Whether the time is what [`CLOCK`] says: 0 or 1. For tests, which compare leases byte for byte.
#[unsafe(no_mangle)]
static IS_REHEARSAL: Global<u8> = Global::new(0);

/// How many of 2^32 frames are lost where a network is to be a bad one. For tests.
#[unsafe(no_mangle)]
static LOSS: Global<u32> = Global::new(0);

/// The time of a rehearsal, in nanoseconds.
#[map]
static CLOCK: Array<u64> = Array::with_max_entries(1, 0);
/// Places as in [`Count::index`].
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Count::COUNT as u32, 0);

#[cfg(not(feature = "duel"))]
#[xdp]
pub fn acceptor(context: XdpContext) -> u32 {
    match serve(&context) {
        Outcome::NotOurs => XDP_PASS,
        Outcome::NoRoom => {
            count(Count::NoRoom);
            XDP_PASS
        }
        Outcome::Answered => {
            count(Count::Answered);
            XDP_TX
        }
        Outcome::Silence(what) => {
            count(what);
            XDP_DROP
        }
    }
}

/// Passes everything, but for the part of [`LOSS`]. The other end of a veth pair needs a program, or
/// what XDP_TX sends is lost.
#[xdp]
pub fn pass(_: XdpContext) -> u32 {
    // SAFETY: the helper takes nothing.
    if LOSS.load() != 0 && unsafe { bpf_get_prandom_u32() } < LOSS.load() {
        return XDP_DROP;
    }
    XDP_PASS
}

enum Outcome {
    /// The stack's business.
    NotOurs,
    /// The answer stands where the request was.
    Answered,
    /// The answer is longer than the request, and might be longer than the MTU, or than what a forger
    /// of addresses should get sent to others: the host, which sees the same region, may serve the
    /// request, which is as it came. Only votes are longer, and reading one again changes nothing.
    NoRoom,
    /// Nothing is sent.
    Silence(Count),
}

#[inline(always)]
fn serve(context: &XdpContext) -> Outcome {
    let frame = Packet::of(context);
    let (path, at) = match frame::parse_pieces(&frame, PORT.load(), Some(&own())) {
        frame::Parsed::Ours(path, at) => (path, at),
        frame::Parsed::NotOurs => return Outcome::NotOurs,
        frame::Parsed::Malformed(reason) => return Outcome::Silence(Count::Frame(reason)),
    };
    let is_v6 = matches!(path.addresses, Addresses::V6 { .. });
    let mut datagram = Datagram::new(context, is_v6);
    let value_bytes = VALUE_BYTES.load() as usize;
    let at = 0..unknown(at.len() as u64) as usize;
    let request = match wire::header(datagram.rest(), at.clone(), value_bytes) {
        // The step bounds its loop by this length, and the verifier wants to see it.
        Headed::Ours(header) => Header {
            length: unknown(header.length.into()) as u16,
            ..header
        },
        Headed::NotOurs => return Outcome::NotOurs,
        Headed::Malformed(reason) => {
            let is_hosts =
                wire::kind(datagram.rest(), at).is_some_and(|kind| !kind.is_for_acceptor());
            if is_hosts {
                return Outcome::NotOurs;
            }
            return Outcome::Silence(Count::Wire(reason));
        }
    };
    if !request.kind.is_for_acceptor() {
        // The host listens on the same port.
        return Outcome::NotOurs;
    }
    let Ok(layout) = Layout::new(GROUP_COUNT.load(), WINDOW.load(), value_bytes) else {
        // The loader refuses such a region.
        return Outcome::NotOurs;
    };
    let key = (IS_KEYED.load() != 0).then(|| Key(KEY.load()));
    if let Some(key) = key
        && tag(key, &request, &datagram) != Some(request.tag)
    {
        if IS_KEYED.load() == 2 {
            // The host looks at it again, and knows the other key.
            return Outcome::NotOurs;
        }
        return Outcome::Silence(Count::Wire(Malformed::Tag));
    }
    let acceptor = Acceptor {
        node: NodeId(NODE.load()),
        incarnation: Incarnation(INCARNATION.load()),
        layout,
    };
    match acceptor.step(&Maps, now_ns(request.kind), &request, &mut datagram) {
        Step::Reply(mut header, _) => {
            // In front of the tag: at a branch a verifier ends all ways but one that come to the same
            // there. With tags that of Linux 6.1 goes through 19,000 instructions so, else 741,000.
            if !datagram.has_room(header.length.into()) {
                return Outcome::NoRoom;
            }
            if let Some(key) = key {
                // Whose value stands where the request's did.
                header.tag = match tag(key, &header, &datagram) {
                    Some(tag) => tag,
                    None => return Outcome::NoRoom,
                };
            }
            match datagram.write(&header) {
                Some(()) => Outcome::Answered,
                None => Outcome::NoRoom,
            }
        }
        Step::Silent(_) => Outcome::Silence(Count::Taken),
        Step::Dropped(reason) => Outcome::Silence(Count::Step(reason)),
    }
}

/// The tag that a header wants with the value behind it.
#[inline(always)]
fn tag(key: Key, header: &Header, datagram: &Datagram<'_>) -> Option<u64> {
    auth::tag_of_words(key, header, |index, bytes| datagram.word(index, bytes))
}

/// Frames with a tag are for the stack, which knows the VLAN's interface: where the card strips
/// tags, an answer from here would go out without one.
#[inline(always)]
fn own() -> Own {
    let [a, b, c, d, e, f, ..] = OWN_MAC.load().to_ne_bytes();
    let [first, second] = OWN_IP.load();
    let ip = if OWN_IS_V6.load() != 0 {
        IpAddr::V6(Ipv6Addr::from_bits(
            u128::from(u64::from_be(first)) << 64 | u128::from(u64::from_be(second)),
        ))
    } else {
        let [a, b, c, d, ..] = first.to_ne_bytes();
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    Own {
        mac: Mac([a, b, c, d, e, f]),
        vlan: None,
        ip,
    }
}

/// The time, where the step looks at it.
#[inline(always)]
fn now_ns(kind: Kind) -> u64 {
    if !matches!(kind, Kind::Prepare | Kind::Decide) {
        return 0;
    }
    if IS_REHEARSAL.load() != 0 {
        return CLOCK.get(0).map_or(0, |now_ns| *now_ns);
    }
    // SAFETY: the helper takes nothing.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn count(what: Count) {
    if let Some(counter) = COUNTERS.get_ptr_mut(what.index() as u32) {
        // SAFETY: the kernel keeps the counter alive while the program runs, and this processor
        // runs no other step meanwhile.
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 18] = *b"Apache-2.0 OR MIT\0";
