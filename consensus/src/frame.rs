//! Ethernet, IPv4, IPv6 and UDP around our packets, for engines that see whole frames.
//!
//! [`parse`] answers three ways, as [`crate::wire::parse`] does. The stack gets whatever we would
//! have to work on before we knew that it is ours: fragments, IPv4 options, IPv6 extension
//! headers, more than one VLAN tag; what is for another than [`Own`]; and what nobody can have sent,
//! of which it knows more than we do. So headers have a fixed length, and an answer is written over
//! its request: [`Path::reversed`], [`Path::write`].

use crate::pieces::{Pieces, PiecesMut};
use crate::simulation::{Mutation, mutated};
use crate::wire::HEADER_BYTES;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::ops::Range;
use zerocopy::byteorder::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of an Ethernet header without tag in bytes.
pub const ETHERNET_BYTES: usize = 14;
/// Length of an 802.1Q tag in bytes.
pub const VLAN_BYTES: usize = 4;
/// Length of an IPv4 header without options in bytes.
pub const IPV4_BYTES: usize = 20;
/// Length of an IPv6 header in bytes.
pub const IPV6_BYTES: usize = 40;
/// Length of a UDP header in bytes.
pub const UDP_BYTES: usize = 8;
/// Longest headers in front of a payload in bytes.
pub const MAX_HEADERS_BYTES: usize = ETHERNET_BYTES + VLAN_BYTES + IPV6_BYTES + UDP_BYTES;

/// Longest value in bytes of a region that XDP steps: a frame that it sees in one piece is a page
/// less what Linux keeps in it (256 bytes in front, 320 behind) and the headers.
pub const XDP_VALUE_BYTES: usize = 3384;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Of an 802.1Q control field.
const VLAN_IDENTIFIER: u16 = 0x0fff;
const PROTOCOL_UDP: u8 = 17;
const HOPS: u8 = 64;
/// Version 4, five words.
const IPV4_VERSION_AND_LENGTH: u8 = 0x45;
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS_AND_OFFSET: u16 = 0x3fff;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEthernet {
    destination: Mac,
    source: Mac,
    ethertype: U16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawVlan {
    control: U16,
    ethertype: U16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawIpv4 {
    version_and_length: u8,
    service: u8,
    total_length: U16,
    identification: U16,
    fragment: U16,
    hops: u8,
    protocol: u8,
    checksum: U16,
    source: [u8; 4],
    destination: [u8; 4],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawIpv6 {
    version_and_class: u8,
    class_and_flow: u8,
    flow: U16,
    payload_length: U16,
    next_header: u8,
    hops: u8,
    source: [u8; 16],
    destination: [u8; 16],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawUdp {
    source: U16,
    destination: U16,
    length: U16,
    checksum: U16,
}

const _: () = assert!(size_of::<RawEthernet>() == ETHERNET_BYTES);
const _: () = assert!(size_of::<RawVlan>() == VLAN_BYTES);
const _: () = assert!(size_of::<RawIpv4>() == IPV4_BYTES);
const _: () = assert!(size_of::<RawIpv6>() == IPV6_BYTES);
const _: () = assert!(size_of::<RawUdp>() == UDP_BYTES);
const _: () = assert!(XDP_VALUE_BYTES + HEADER_BYTES + MAX_HEADERS_BYTES + 256 + 320 <= 4096);

/// An Ethernet address.
#[derive(
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Debug,
    Default,
)]
#[repr(transparent)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Whether it names a group of stations.
    #[inline]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }
}

/// The two ends of an IP packet, of one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Addresses {
    /// IPv4.
    V4 {
        /// Who sends.
        source: Ipv4Addr,
        /// Who receives.
        destination: Ipv4Addr,
    },
    /// IPv6.
    V6 {
        /// Who sends.
        source: Ipv6Addr,
        /// Who receives.
        destination: Ipv6Addr,
    },
}

/// Between whom a packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path {
    /// The station that sends.
    pub source_mac: Mac,
    /// The station or stations that receive.
    pub destination_mac: Mac,
    /// The 802.1Q control field (priority and VLAN), if the frame is tagged.
    pub vlan: Option<u16>,
    /// The IP addresses.
    pub addresses: Addresses,
    /// The UDP port that sends.
    pub source_port: u16,
    /// The UDP port that receives.
    pub destination_port: u16,
}

/// Where an engine answers: one address on one network.
///
/// A card that is promiscuous or a port of a bridge shows an engine what is for others; and what a
/// host forwards comes to its own card.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Own {
    /// The station.
    pub mac: Mac,
    /// The VLAN whose frames are tagged, or `None` for those without a tag.
    pub vlan: Option<u16>,
    /// The IP address.
    pub ip: IpAddr,
}

impl Own {
    #[inline(always)]
    fn is_meant(&self, mac: Mac, addresses: &Addresses) -> bool {
        let is_ip = match (self.ip, addresses) {
            (IpAddr::V4(own), Addresses::V4 { destination, .. }) => own == *destination,
            (IpAddr::V6(own), Addresses::V6 { destination, .. }) => own == *destination,
            (IpAddr::V4(_), Addresses::V6 { .. }) | (IpAddr::V6(_), Addresses::V4 { .. }) => false,
        };
        is_ip && self.mac == mac
    }
}

/// Why a frame to our port was refused. The discriminant indexes counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Malformed {
    /// The frame ends before the IP packet does.
    Truncated = 0,
    /// The lengths of IP and UDP disagree.
    Length = 1,
    /// The checksum of the IPv4 header is wrong.
    HeaderChecksum = 2,
    /// The UDP checksum is wrong, or missing over IPv6.
    Checksum = 3,
}

impl Malformed {
    /// How many reasons there are.
    pub const COUNT: usize = 4;
    /// Every reason, in the order of the discriminants.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Truncated,
        Self::Length,
        Self::HeaderChecksum,
        Self::Checksum,
    ];

    /// A stable name for metrics and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Truncated => "frame_truncated",
            Self::Length => "frame_length",
            Self::HeaderChecksum => "frame_header_checksum",
            Self::Checksum => "frame_checksum",
        }
    }
}

/// What [`parse`] makes of a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Parsed {
    /// A datagram to our port, and where its payload stands in the frame.
    Ours(Path, Range<usize>),
    /// Something else: the stack's business.
    NotOurs,
    /// To our port, but unusable: counted by reason and dropped.
    Malformed(Malformed),
}

/// What IP says of the datagram that it carries.
struct Carried {
    addresses: Addresses,
    header_is_right: bool,
    bytes: usize,
}

/// Parses a frame that may hold a datagram to UDP port `port` of anybody. Whether the UDP checksum is
/// right is not looked at: between virtual interfaces it is left to hardware that does not exist.
/// See [`is_intact`].
#[inline]
pub fn parse(frame: &[u8], port: u16) -> Parsed {
    parse_pieces(frame, port, None)
}

/// Parses a frame that is reached piece by piece, as [`parse`] does, and calls it ours only if it is
/// for `own`, unless that is `None`.
#[inline(always)]
pub fn parse_pieces<F: Pieces + ?Sized>(frame: &F, port: u16, own: Option<&Own>) -> Parsed {
    let Some(ethernet) = frame.piece::<ETHERNET_BYTES>(0) else {
        return Parsed::NotOurs;
    };
    let ethernet: &RawEthernet = zerocopy::transmute_ref!(ethernet);
    let tag = match ethernet.ethertype.get() {
        ETHERTYPE_VLAN => frame.piece::<VLAN_BYTES>(ETHERNET_BYTES),
        _ => None,
    };
    let (vlan, ethertype, at) = match tag {
        Some(tag) => {
            let vlan: &RawVlan = zerocopy::transmute_ref!(tag);
            (
                Some(vlan.control.get()),
                vlan.ethertype.get(),
                ETHERNET_BYTES + VLAN_BYTES,
            )
        }
        None => (None, ethernet.ethertype.get(), ETHERNET_BYTES),
    };
    if own.is_some_and(|own| own.vlan != vlan.map(|control| control & VLAN_IDENTIFIER)) {
        return Parsed::NotOurs;
    }
    // Apart for each family: what runs in the kernel is compiled for either, with fixed offsets.
    let stations = Stations {
        ethernet,
        vlan,
        own,
    };
    match ethertype {
        ETHERTYPE_IPV4 => stations.datagram(frame, port, ipv4(frame.piece(at)), at + IPV4_BYTES),
        ETHERTYPE_IPV6 => stations.datagram(frame, port, ipv6(frame.piece(at)), at + IPV6_BYTES),
        _ => Parsed::NotOurs,
    }
}

/// What stands in front of an IP header, and who looks at it.
struct Stations<'a> {
    ethernet: &'a RawEthernet,
    vlan: Option<u16>,
    own: Option<&'a Own>,
}

impl Stations<'_> {
    /// What to make of what IP carries, whose UDP header stands at `at`.
    #[inline(always)]
    fn datagram<F: Pieces + ?Sized>(
        &self,
        frame: &F,
        port: u16,
        carried: Option<Carried>,
        at: usize,
    ) -> Parsed {
        let Self {
            ethernet,
            vlan,
            own,
        } = *self;
        let (Some(carried), Some(udp)) = (carried, frame.piece::<UDP_BYTES>(at)) else {
            return Parsed::NotOurs;
        };
        let udp: &RawUdp = zerocopy::transmute_ref!(udp);
        if udp.destination.get() != port {
            return Parsed::NotOurs;
        }
        let is_meant = |own: &Own| own.is_meant(ethernet.destination, &carried.addresses);
        if !own.is_none_or(is_meant) {
            return Parsed::NotOurs;
        }
        let is_from_station =
            !ethernet.source.is_multicast() && ethernet.source != ethernet.destination;
        if !is_from_station || !carried.addresses.have_sender() || udp.source.get() == 0 {
            return Parsed::NotOurs;
        }
        if !carried.header_is_right && !mutated(Mutation::HeaderUnchecked) {
            return Parsed::Malformed(Malformed::HeaderChecksum);
        }
        let length = usize::from(udp.length.get());
        if length < UDP_BYTES || length > carried.bytes {
            return Parsed::Malformed(Malformed::Length);
        }
        if carried.bytes > frame.length() - at {
            return Parsed::Malformed(Malformed::Truncated);
        }
        if udp.checksum.get() == 0 && matches!(carried.addresses, Addresses::V6 { .. }) {
            // RFC 8200, section 8.1.
            return Parsed::Malformed(Malformed::Checksum);
        }
        let path = Path {
            source_mac: ethernet.source,
            destination_mac: ethernet.destination,
            vlan,
            addresses: carried.addresses,
            source_port: udp.source.get(),
            destination_port: port,
        };
        let start = at + UDP_BYTES;
        Parsed::Ours(path, start..start + (length - UDP_BYTES))
    }
}

/// A whole UDP datagram without options, or `None`.
#[inline(always)]
fn ipv4(header: Option<&[u8; IPV4_BYTES]>) -> Option<Carried> {
    let header: &RawIpv4 = zerocopy::transmute_ref!(header?);
    if header.version_and_length != IPV4_VERSION_AND_LENGTH
        || header.protocol != PROTOCOL_UDP
        || header.fragment.get() & MORE_FRAGMENTS_AND_OFFSET != 0
            && !mutated(Mutation::FragmentTaken)
    {
        return None;
    }
    Some(Carried {
        addresses: Addresses::V4 {
            source: Ipv4Addr::from(header.source),
            destination: Ipv4Addr::from(header.destination),
        },
        header_is_right: Sum::default().bytes(header.as_bytes()).finish() == 0,
        bytes: usize::from(header.total_length.get()).saturating_sub(IPV4_BYTES),
    })
}

/// A UDP datagram right behind the header, or `None`.
#[inline(always)]
fn ipv6(header: Option<&[u8; IPV6_BYTES]>) -> Option<Carried> {
    let header: &RawIpv6 = zerocopy::transmute_ref!(header?);
    if header.version_and_class >> 4 != 6 || header.next_header != PROTOCOL_UDP {
        return None;
    }
    Some(Carried {
        addresses: Addresses::V6 {
            source: Ipv6Addr::from(header.source),
            destination: Ipv6Addr::from(header.destination),
        },
        header_is_right: true,
        bytes: usize::from(header.payload_length.get()),
    })
}

/// Whether the UDP checksum of a frame that [`parse`] called ours is right. Over IPv4 none (zero)
/// is right; over IPv6 it is not (RFC 8200, section 8.1).
pub fn is_intact(frame: &[u8], path: &Path, payload: &Range<usize>) -> bool {
    let datagram = payload
        .start
        .checked_sub(UDP_BYTES)
        .and_then(|start| frame.get(start..payload.end));
    let Some(datagram) = datagram else {
        return false;
    };
    let Ok((udp, _)) = RawUdp::ref_from_prefix(datagram) else {
        return false;
    };
    if udp.checksum.get() == 0 {
        return matches!(path.addresses, Addresses::V4 { .. });
    }
    path.addresses.sum(datagram.len()).bytes(datagram).finish() == 0
}

/// A ones' complement sum of big-endian 16-bit words. It is taken in the machine's order, which comes
/// to the same (RFC 1071, section 2).
#[derive(Clone, Copy, Default, Debug)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes; an odd last one is followed by a zero. Only the last piece may be odd.
    #[must_use]
    #[inline]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<4>();
        for word in words {
            // Four bytes at once: 2^16 = 1 modulo 2^16 - 1. A frame is far too short to overflow.
            self.0 = self.0.wrapping_add(u64::from(u32::from_ne_bytes(*word)));
        }
        let mut last = [0; 4];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        self.0 = self.0.wrapping_add(u64::from(u32::from_ne_bytes(last)));
        self
    }

    /// Adds eight bytes.
    #[must_use]
    #[inline(always)]
    pub const fn eight(mut self, bytes: [u8; 8]) -> Self {
        let word = u64::from_ne_bytes(bytes);
        self.0 = self
            .0
            .wrapping_add(word >> 32)
            .wrapping_add(word & 0xffff_ffff);
        self
    }

    /// Adds what another piece sums up to.
    #[must_use]
    #[inline(always)]
    pub const fn and(mut self, other: Self) -> Self {
        self.0 = self.0.wrapping_add(other.0);
        self
    }

    /// Adds a number below 2^32.
    #[must_use]
    #[inline]
    pub const fn number(mut self, number: u32) -> Self {
        self.0 = self.0.wrapping_add(number.to_be() as u64);
        self
    }

    /// The checksum: zero over data that holds its own right checksum.
    #[inline]
    pub const fn finish(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        u16::from_be(!(sum as u16))
    }
}

impl Addresses {
    /// The sum over the pseudo-header of a UDP datagram of `bytes` bytes.
    #[inline]
    fn sum(&self, bytes: usize) -> Sum {
        let sum = Sum::default()
            .number(u32::from(PROTOCOL_UDP))
            .number(bytes as u32);
        match self {
            Self::V4 {
                source,
                destination,
            } => sum.bytes(&source.octets()).bytes(&destination.octets()),
            Self::V6 {
                source,
                destination,
            } => sum.bytes(&source.octets()).bytes(&destination.octets()),
        }
    }

    const fn header_bytes(&self) -> usize {
        match self {
            Self::V4 { .. } => IPV4_BYTES,
            Self::V6 { .. } => IPV6_BYTES,
        }
    }

    /// Whether the source may be one host, and another than the destination (RFC 6890).
    #[inline(always)]
    fn have_sender(&self) -> bool {
        match self {
            Self::V4 {
                source,
                destination,
            } => {
                // This network, loopback; groups, reserved and broadcast.
                !matches!(source.octets()[0], 0 | 127 | 224..) && source != destination
            }
            Self::V6 {
                source,
                destination,
            } => {
                // ::/64 has no address, loopback, and IPv4's within IPv6 (RFC 4291, section 2.5).
                let is_host = source.to_bits() >> 64 != 0 && !source.is_multicast();
                is_host && source != destination
            }
        }
    }

    const fn is_to_many(&self) -> bool {
        match self {
            Self::V4 { destination, .. } => {
                destination.is_multicast() || destination.is_broadcast()
            }
            Self::V6 { destination, .. } => destination.is_multicast(),
        }
    }
}

impl Path {
    /// Length of the headers in front of the payload in bytes.
    #[inline]
    pub const fn header_bytes(&self) -> usize {
        let vlan = if self.vlan.is_some() { VLAN_BYTES } else { 0 };
        ETHERNET_BYTES + vlan + self.addresses.header_bytes() + UDP_BYTES
    }

    /// The way back, or `None` if the packet went to several: the answer then needs an address of
    /// our own.
    #[must_use]
    #[inline]
    pub const fn reversed(&self) -> Option<Self> {
        if self.destination_mac.is_multicast() || self.addresses.is_to_many() {
            return None;
        }
        let addresses = match self.addresses {
            Addresses::V4 {
                source,
                destination,
            } => Addresses::V4 {
                source: destination,
                destination: source,
            },
            Addresses::V6 {
                source,
                destination,
            } => Addresses::V6 {
                source: destination,
                destination: source,
            },
        };
        Some(Self {
            source_mac: self.destination_mac,
            destination_mac: self.source_mac,
            vlan: self.vlan,
            addresses,
            source_port: self.destination_port,
            destination_port: self.source_port,
        })
    }

    /// Writes the headers and both checksums in front of `payload_bytes` bytes of payload, which
    /// already stand behind [`Path::header_bytes`]. Gives the length of the frame in bytes, or
    /// `None` if `frame` or the IP packet has no room for it.
    #[inline]
    pub fn write(&self, frame: &mut [u8], payload_bytes: usize) -> Option<usize> {
        let start = self.header_bytes();
        let total = start.checked_add(payload_bytes)?;
        let payload = frame.get(start..total)?;
        let sum = Sum::default().bytes(payload);
        self.write_headers(frame, payload_bytes, sum)?;
        Some(total)
    }

    /// Writes the headers in front of `payload_bytes` bytes of payload that sum up to `payload`.
    /// `None` if `frame` or the IP packet has no room.
    #[inline(always)]
    pub fn write_headers<F: PiecesMut + ?Sized>(
        &self,
        frame: &mut F,
        payload_bytes: usize,
        payload: Sum,
    ) -> Option<()> {
        let udp_bytes = u16::try_from(payload_bytes.checked_add(UDP_BYTES)?).ok()?;
        let ethertype = match self.addresses {
            Addresses::V4 { .. } => ETHERTYPE_IPV4,
            Addresses::V6 { .. } => ETHERTYPE_IPV6,
        };
        let outer = if self.vlan.is_some() {
            ETHERTYPE_VLAN
        } else {
            ethertype
        };
        let ethernet = RawEthernet {
            destination: self.destination_mac,
            source: self.source_mac,
            ethertype: U16::new(outer),
        };
        *frame.piece_mut::<ETHERNET_BYTES>(0)? = zerocopy::transmute!(ethernet);
        let mut at = ETHERNET_BYTES;
        if let Some(control) = self.vlan {
            let vlan = RawVlan {
                control: U16::new(control),
                ethertype: U16::new(ethertype),
            };
            *frame.piece_mut::<VLAN_BYTES>(at)? = zerocopy::transmute!(vlan);
            at += VLAN_BYTES;
        }
        let ports = (self.source_port, self.destination_port);
        self.addresses
            .write_datagram(frame, at, ports, udp_bytes, payload)
    }
}

/// Makes of the headers of a frame that [`parse_pieces`] called ours, and that has no VLAN's tag,
/// those of its answer: as [`Path::write_headers`] of [`Path::reversed`], for an engine that keeps
/// the frame and no [`Path`].
#[inline(always)]
pub fn turn<F: Pieces + PiecesMut + ?Sized>(
    frame: &mut F,
    is_v6: bool,
    payload_bytes: usize,
    payload: Sum,
) -> Option<()> {
    const MAC_BYTES: usize = size_of::<Mac>();
    let udp_bytes = u16::try_from(payload_bytes.checked_add(UDP_BYTES)?).ok()?;
    // As two numbers: addresses that are moved as arrays of bytes are moved byte by byte.
    let macs = frame.piece_mut::<{ 2 * MAC_BYTES }>(0)?;
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *macs;
    let head = u64::from_ne_bytes([g, h, i, j, k, l, a, b]).to_ne_bytes();
    let tail = u32::from_ne_bytes([c, d, e, f]).to_ne_bytes();
    let [a, b, c, d, e, f, g, h] = head;
    let [i, j, k, l] = tail;
    *macs = [a, b, c, d, e, f, g, h, i, j, k, l];
    if is_v6 {
        let header: &RawIpv6 = zerocopy::transmute_ref!(frame.piece::<IPV6_BYTES>(ETHERNET_BYTES)?);
        let addresses = Addresses::V6 {
            source: Ipv6Addr::from(header.destination),
            destination: Ipv6Addr::from(header.source),
        };
        addresses.turn(frame, udp_bytes, payload)
    } else {
        let header: &RawIpv4 = zerocopy::transmute_ref!(frame.piece::<IPV4_BYTES>(ETHERNET_BYTES)?);
        let addresses = Addresses::V4 {
            source: Ipv4Addr::from(header.destination),
            destination: Ipv4Addr::from(header.source),
        };
        addresses.turn(frame, udp_bytes, payload)
    }
}

impl Addresses {
    /// As [`turn`], of the headers behind Ethernet's; these are the answer's addresses.
    #[inline(always)]
    fn turn<F: Pieces + PiecesMut + ?Sized>(
        &self,
        frame: &mut F,
        udp_bytes: u16,
        payload: Sum,
    ) -> Option<()> {
        let udp = frame.piece::<UDP_BYTES>(ETHERNET_BYTES + self.header_bytes())?;
        let udp: &RawUdp = zerocopy::transmute_ref!(udp);
        let ports = (udp.destination.get(), udp.source.get());
        self.write_datagram(frame, ETHERNET_BYTES, ports, udp_bytes, payload)
    }

    /// Writes the IP header at `at` and the UDP header behind it, in front of a payload that sums up
    /// to `payload`.
    #[inline(always)]
    fn write_datagram<F: PiecesMut + ?Sized>(
        &self,
        frame: &mut F,
        at: usize,
        (source, destination): (u16, u16),
        udp_bytes: u16,
        payload: Sum,
    ) -> Option<()> {
        let at = at + self.write(frame, at, udp_bytes)?;
        let udp = RawUdp {
            source: U16::new(source),
            destination: U16::new(destination),
            length: U16::new(udp_bytes),
            checksum: U16::new(0),
        };
        let sum = self.sum(udp_bytes.into());
        let sum = sum.bytes(udp.as_bytes()).and(payload).finish();
        let udp = RawUdp {
            // Zero would mean "no checksum" (RFC 768); both are zero modulo 2^16 - 1.
            checksum: U16::new(if sum == 0 { 0xffff } else { sum }),
            ..udp
        };
        *frame.piece_mut::<UDP_BYTES>(at)? = zerocopy::transmute!(udp);
        Some(())
    }
}

impl Addresses {
    /// Writes the IP header of a datagram of `udp_bytes` bytes and gives its length in bytes.
    #[inline(always)]
    fn write<F: PiecesMut + ?Sized>(
        &self,
        frame: &mut F,
        at: usize,
        udp_bytes: u16,
    ) -> Option<usize> {
        match self {
            Self::V4 {
                source,
                destination,
            } => {
                let mut header = RawIpv4 {
                    version_and_length: IPV4_VERSION_AND_LENGTH,
                    service: 0,
                    total_length: U16::new(udp_bytes.checked_add(IPV4_BYTES as u16)?),
                    // Never fragmented, so never put together (RFC 6864, section 4.1).
                    identification: U16::new(0),
                    fragment: U16::new(DONT_FRAGMENT),
                    hops: HOPS,
                    protocol: PROTOCOL_UDP,
                    checksum: U16::new(0),
                    source: source.octets(),
                    destination: destination.octets(),
                };
                header.checksum = U16::new(Sum::default().bytes(header.as_bytes()).finish());
                *frame.piece_mut::<IPV4_BYTES>(at)? = zerocopy::transmute!(header);
                Some(IPV4_BYTES)
            }
            Self::V6 {
                source,
                destination,
            } => {
                let header = RawIpv6 {
                    version_and_class: 6 << 4,
                    class_and_flow: 0,
                    flow: U16::new(0),
                    payload_length: U16::new(udp_bytes),
                    next_header: PROTOCOL_UDP,
                    hops: HOPS,
                    source: source.octets(),
                    destination: destination.octets(),
                };
                *frame.piece_mut::<IPV6_BYTES>(at)? = zerocopy::transmute!(header);
                Some(IPV6_BYTES)
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use etherparse::{PacketBuilder, SlicedPacket, TransportSlice, VlanId};
    use proptest::prelude::*;
    use std::vec::Vec;

    const PORT: u16 = 4747;
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const US: [u8; 6] = [2, 0, 0, 0, 0, 2];

    /// A frame made by someone else's code.
    fn foreign(v6: bool, vlan: Option<u16>, payload: &[u8]) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(OTHER, US);
        let vlan = vlan.map(|vlan| VlanId::try_new(vlan).expect("12 bits"));
        let net = match (v6, vlan) {
            (false, None) => link.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9),
            (false, Some(vlan)) => link.single_vlan(vlan).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9),
            (true, None) => link.ipv6([0xfd; 16], [0xfc; 16], 9),
            (true, Some(vlan)) => link.single_vlan(vlan).ipv6([0xfd; 16], [0xfc; 16], 9),
        };
        let mut frame = Vec::new();
        net.udp(999, PORT)
            .write(&mut frame, payload)
            .expect("a vector has room");
        frame
    }

    fn ours(frame: &[u8]) -> (Path, Range<usize>) {
        match parse(frame, PORT) {
            Parsed::Ours(path, payload) => (path, payload),
            other => panic!("not ours but {other:?}"),
        }
    }

    /// What someone else's code reads in a frame, all checksums checked.
    fn judged(frame: &[u8]) -> (u16, u16, Vec<u8>) {
        let packet = SlicedPacket::from_ethernet(frame).expect("well-formed");
        let Some(TransportSlice::Udp(udp)) = packet.transport else {
            panic!("no UDP");
        };
        let header = udp.to_header();
        let sum = match packet.net.expect("IP") {
            etherparse::NetSlice::Ipv4(ip) => {
                let ip = ip.header().to_header();
                assert_eq!(ip.header_checksum, ip.calc_header_checksum());
                header.calc_checksum_ipv4(&ip, udp.payload())
            }
            etherparse::NetSlice::Ipv6(ip) => {
                header.calc_checksum_ipv6(&ip.header().to_header(), udp.payload())
            }
            etherparse::NetSlice::Arp(_) => panic!("ARP"),
        };
        assert_eq!(header.checksum, sum.expect("short enough"));
        (
            header.source_port,
            header.destination_port,
            udp.payload().to_vec(),
        )
    }

    #[test]
    fn headers_that_are_turned_are_those_of_the_way_back() {
        for (is_v6, bytes) in [(false, 64), (false, 101), (true, 64), (true, 101)] {
            let asked = foreign(is_v6, None, &[7; 101]);
            let (path, at) = ours(&asked);
            let mut answer = asked[..at.start + bytes].to_vec();
            let payload = Sum::default().bytes(&answer[at.start..]);
            let mut written = answer.clone();
            let back = path.reversed().expect("one receiver");
            assert_eq!(back.write(&mut written, bytes), Some(written.len()));
            turn(&mut answer[..], is_v6, bytes, payload).expect("the headers are there");
            assert_eq!(answer, written);
        }
    }

    proptest! {
        #[test]
        fn a_foreign_frame_is_read_and_answered_over_itself(
            v6: bool,
            vlan in proptest::option::of(0u16..4096),
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            padding in 0usize..40,
            answer in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut frame = foreign(v6, vlan, &payload);
            frame.resize(frame.len() + padding, 0xee);
            let (path, at) = ours(&frame);
            prop_assert_eq!(&frame[at.clone()], &payload[..]);
            prop_assert_eq!((path.vlan, path.source_port), (vlan, 999));
            prop_assert_eq!((path.source_mac, path.destination_mac), (Mac(OTHER), Mac(US)));
            prop_assert_eq!(at.start, path.header_bytes());
            prop_assert!(is_intact(&frame, &path, &at));

            frame.resize(at.start + 200, 0);
            frame[at.start..at.start + answer.len()].copy_from_slice(&answer);
            let back = path.reversed().expect("one receiver");
            let length = back.write(&mut frame, answer.len()).expect("room");
            frame.truncate(length);
            prop_assert_eq!(judged(&frame), (PORT, 999, answer));
            let Parsed::Ours(read, at) = parse(&frame, 999) else { panic!("unread") };
            prop_assert_eq!(read, back);
            prop_assert!(is_intact(&frame, &read, &at));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(
            v6: bool,
            vlan in proptest::option::of(0u16..4096),
            changes in proptest::collection::vec((0usize..62, any::<u8>()), 0..4),
            cut in 0usize..120,
        ) {
            let mut frame = foreign(v6, vlan, &[7; 40]);
            for (at, byte) in changes {
                if let Some(place) = frame.get_mut(at) {
                    *place = byte;
                }
            }
            frame.truncate(cut);
            if let Parsed::Ours(path, at) = parse(&frame, PORT) {
                prop_assert!(frame.get(at.clone()).is_some());
                let _ = is_intact(&frame, &path, &at);
                if let Some(back) = path.reversed() {
                    prop_assert_eq!(back.write(&mut frame, at.len()), Some(at.end));
                }
            }
        }

        #[test]
        fn random_bytes_are_not_ours(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse(&bytes, PORT);
        }

        #[test]
        fn a_flipped_payload_bit_breaks_the_checksum(v6: bool, at in 0usize..33, bit in 0u8..8) {
            let mut frame = foreign(v6, None, &[7; 33]);
            let (path, payload) = ours(&frame);
            frame[payload.start + at] ^= 1 << bit;
            prop_assert!(!is_intact(&frame, &path, &payload));
        }
    }

    #[test]
    fn what_the_stack_has_to_look_at_is_not_ours() {
        let (v4, v6) = (foreign(false, None, b"p"), foreign(true, None, b"p"));
        let change = |frame: &[u8], at: usize, byte: u8| {
            let mut frame = frame.to_vec();
            frame[at] = byte;
            parse(&frame, PORT)
        };
        let cases = [
            ("another ethertype", change(&v4, 13, 6)),
            ("two tags", change(&foreign(false, Some(1), b"p"), 16, 0x81)),
            ("options", change(&v4, 14, 0x46)),
            ("a first fragment", change(&v4, 20, 0x20)),
            ("a later fragment", change(&v4, 21, 1)),
            ("TCP", change(&v4, 23, 6)),
            ("another port", change(&v4, 37, 1)),
            ("an extension header", change(&v6, 20, 44)),
            ("version 5", change(&v6, 14, 0x50)),
            ("half a header", parse(&v4[..41], PORT)),
            ("nothing", parse(&[], PORT)),
        ];
        for (what, parsed) in cases {
            assert_eq!(parsed, Parsed::NotOurs, "{what}");
        }
    }

    #[test]
    fn what_nobody_can_have_sent_is_not_ours_even_if_it_is_damaged() {
        // Where source addresses and the source port stand.
        let put = |v6: bool, at: usize, bytes: &[u8]| {
            let mut frame = foreign(v6, None, b"p");
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            frame
        };
        let v6 = |address: &str| {
            let address: Ipv6Addr = address.parse().expect("an address");
            put(true, 22, &address.octets())
        };
        let cases = [
            ("no address", put(false, 26, &[0, 0, 0, 0])),
            ("this network", put(false, 26, &[0, 1, 2, 3])),
            ("loopback", put(false, 26, &[127, 0, 0, 1])),
            ("a group", put(false, 26, &[224, 0, 0, 1])),
            ("reserved", put(false, 26, &[240, 0, 0, 1])),
            ("broadcast", put(false, 26, &[255; 4])),
            ("ourselves", put(false, 26, &[10, 0, 0, 2])),
            ("port 0", put(false, 34, &[0, 0])),
            ("our station", put(false, 6, &US)),
            ("all stations", put(false, 6, &[0xff; 6])),
            ("no address, IPv6", v6("::")),
            ("loopback, IPv6", v6("::1")),
            ("IPv4 within IPv6", v6("::ffff:10.0.0.1")),
            ("a group, IPv6", v6("ff02::1")),
            ("ourselves, IPv6", put(true, 22, &[0xfc; 16])),
            ("port 0, IPv6", put(true, 54, &[0, 0])),
        ];
        for (what, frame) in cases {
            assert_eq!(parse(&frame, PORT), Parsed::NotOurs, "{what}");
            assert_eq!(
                parse(&frame[..frame.len() - 1], PORT),
                Parsed::NotOurs,
                "{what}"
            );
        }
        for (at, address) in [
            (26, [1, 0, 0, 1]),
            (26, [223, 255, 255, 254]),
            (26, [10, 0, 0, 3]),
        ] {
            let mut frame = put(false, at, &address);
            let header = &mut frame[14..34];
            header[10..12].fill(0);
            let sum = Sum::default().bytes(header).finish();
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            assert!(
                matches!(parse(&frame, PORT), Parsed::Ours(..)),
                "{address:?}"
            );
        }
        for address in ["fe80::1", "2001:db8::1", "64:ff9b::a00:1"] {
            assert!(
                matches!(parse(&v6(address), PORT), Parsed::Ours(..)),
                "{address}"
            );
        }
    }

    #[test]
    fn what_is_for_others_is_not_ours_even_if_it_is_damaged() {
        for (v6, ip) in [(false, [10, 0, 0, 2].into()), (true, [0xfc; 16].into())] {
            for vlan in [None, Some(0), Some(5)] {
                let own = Own {
                    mac: Mac(US),
                    vlan,
                    ip,
                };
                let whole = foreign(v6, vlan, b"p");
                let cut = &whole[..whole.len() - 1];
                let is_ours =
                    |own| !matches!(parse_pieces(&whole[..], PORT, Some(&own)), Parsed::NotOurs);
                let is_bad = |own| parse_pieces(cut, PORT, Some(&own)) != Parsed::NotOurs;
                assert!(is_ours(own) && is_bad(own));
                let next = |vlan: u16| (vlan + 1) & VLAN_IDENTIFIER;
                let others = [
                    (
                        "MAC",
                        Own {
                            mac: Mac(OTHER),
                            ..own
                        },
                    ),
                    (
                        "family",
                        Own {
                            ip: if v6 {
                                [10, 0, 0, 2].into()
                            } else {
                                [0xfc; 16].into()
                            },
                            ..own
                        },
                    ),
                    (
                        "IPv4",
                        Own {
                            ip: [10, 0, 0, 1].into(),
                            ..own
                        },
                    ),
                    (
                        "IPv6",
                        Own {
                            ip: [0xfd; 16].into(),
                            ..own
                        },
                    ),
                    (
                        "VLAN",
                        Own {
                            vlan: vlan.map(next).or(Some(0)),
                            ..own
                        },
                    ),
                    (
                        "tag",
                        Own {
                            vlan: vlan.xor(Some(1)).filter(|_| vlan.is_none()),
                            ..own
                        },
                    ),
                ];
                for (what, other) in others {
                    assert!(!is_ours(other) && !is_bad(other), "{what} of {own:?}");
                }
            }
        }
        // The priority is no part of the VLAN.
        let mut frame = foreign(false, Some(5), b"p");
        frame[14] |= 0x60;
        let own = Own {
            mac: Mac(US),
            vlan: Some(5),
            ip: [10, 0, 0, 2].into(),
        };
        assert!(matches!(
            parse_pieces(&frame[..], PORT, Some(&own)),
            Parsed::Ours(..)
        ));
    }

    #[test]
    fn each_defect_has_its_reason() {
        let (v4, v6) = (foreign(false, None, b"pay"), foreign(true, None, b"pay"));
        let mut unsummed = v6.clone();
        unsummed[60] = 0;
        let change = |frame: &[u8], at: usize, byte: u8| {
            let mut frame = frame.to_vec();
            frame[at] = byte;
            parse(&frame, PORT)
        };
        let cases = [
            (parse(&v4[..44], PORT), Malformed::Truncated),
            (parse(&v6[..64], PORT), Malformed::Truncated),
            (change(&v4, 39, 7), Malformed::Length),
            (change(&v4, 39, 12), Malformed::Length),
            (change(&v6, 19, 10), Malformed::Length),
            (change(&v4, 22, 8), Malformed::HeaderChecksum),
            (change(&unsummed, 61, 0), Malformed::Checksum),
        ];
        for (parsed, reason) in cases {
            assert_eq!(parsed, Parsed::Malformed(reason));
        }
    }

    #[test]
    fn no_checksum_is_right_over_ipv4_only() {
        for v6 in [false, true] {
            let mut frame = foreign(v6, None, b"pay");
            let (path, payload) = ours(&frame);
            frame[payload.start - 2..payload.start].fill(0);
            assert_eq!(is_intact(&frame, &path, &payload), !v6);
            assert_eq!(matches!(parse(&frame, PORT), Parsed::Ours(..)), !v6);
        }
    }

    #[test]
    fn a_checksum_of_zero_is_written_as_all_ones() {
        let (path, _) = ours(&foreign(false, None, b""));
        let mut frame = [0; 64];
        let at = path.header_bytes();
        path.write(&mut frame, 2).expect("room");
        let (sum, end) = (frame[at - 2..at].to_vec(), at + 2);
        // The payload takes the checksum's place: what is left to complement is zero.
        frame[at..end].copy_from_slice(&sum);
        path.write(&mut frame, 2).expect("room");
        assert_eq!(frame[at - 2..at], [0xff, 0xff]);
        assert!(is_intact(&frame, &path, &(at..end)));
    }

    #[test]
    fn what_went_to_many_has_no_way_back() {
        let (path, _) = ours(&foreign(false, None, b""));
        let many = Path {
            destination_mac: Mac([0xff; 6]),
            ..path
        };
        assert_eq!(many.reversed(), None);
        let many = Path {
            addresses: Addresses::V4 {
                source: Ipv4Addr::new(10, 0, 0, 1),
                destination: Ipv4Addr::new(239, 1, 1, 1),
            },
            ..path
        };
        assert_eq!(many.reversed(), None);
    }

    #[test]
    fn a_frame_without_room_is_not_written() {
        let (path, _) = ours(&foreign(false, None, b""));
        assert_eq!(path.write(&mut [0; 41], 0), None);
        let mut long = std::vec![0; 70_000];
        assert_eq!(path.write(&mut long, 65_536), None);
        assert_eq!(path.write(&mut long, 65_535 - 27), None);
        assert!(path.write(&mut long, 65_535 - 28).is_some());
        assert_eq!(path.write(&mut long, usize::MAX), None);
    }
}
