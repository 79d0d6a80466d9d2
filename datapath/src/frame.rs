//! Puts the IP and UDP headers round a payload that the kernel stripped of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const UDP: u8 = 17;
const HOP_LIMIT: u8 = 64;
const UDP_HEADER_BYTES: usize = 8;

/// Appends the IP packet that carries `payload`. If one side is IPv4, both are: a wildcard socket
/// knows its own address only as unspecified.
pub(crate) fn append(out: &mut Vec<u8>, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
    let udp_length = (UDP_HEADER_BYTES + payload.len()) as u16;
    let pseudo = match (from.ip(), to.ip()) {
        (IpAddr::V6(from), IpAddr::V6(to)) => ipv6_header(out, from, to, udp_length),
        (from, to) => ipv4_header(out, ipv4(from), ipv4(to), udp_length),
    };
    let start = out.len();
    out.extend(from.port().to_be_bytes());
    out.extend(to.port().to_be_bytes());
    out.extend(udp_length.to_be_bytes());
    out.extend([0; 2]);
    out.extend(payload);
    // RFC 768: a sum of zero is sent as all ones, since zero says that there is none.
    let checksum = match fold(pseudo + sum(&out[start..])) {
        0 => 0xffff,
        checksum => checksum,
    };
    out[start + 6..start + 8].copy_from_slice(&checksum.to_be_bytes());
}

fn ipv4(ip: IpAddr) -> Ipv4Addr {
    match ip {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}

/// Appends the header and returns the sum of UDP's pseudo header.
fn ipv4_header(out: &mut Vec<u8>, from: Ipv4Addr, to: Ipv4Addr, udp_length: u16) -> u64 {
    let start = out.len();
    let total = 20 + udp_length;
    out.extend([0x45, 0]);
    out.extend(total.to_be_bytes());
    out.extend([0, 0, 0x40, 0, HOP_LIMIT, UDP, 0, 0]); // Not fragmented, and not to be.
    out.extend(from.octets());
    out.extend(to.octets());
    let checksum = fold(sum(&out[start..]));
    out[start + 10..start + 12].copy_from_slice(&checksum.to_be_bytes());
    sum(&out[start + 12..]) + u64::from(UDP) + u64::from(udp_length)
}

/// Appends the header and returns the sum of UDP's pseudo header.
fn ipv6_header(out: &mut Vec<u8>, from: Ipv6Addr, to: Ipv6Addr, udp_length: u16) -> u64 {
    out.extend([0x60, 0, 0, 0]);
    out.extend(udp_length.to_be_bytes());
    out.extend([UDP, HOP_LIMIT]);
    let addresses = out.len();
    out.extend(from.octets());
    out.extend(to.octets());
    sum(&out[addresses..]) + u64::from(UDP) + u64::from(udp_length)
}

/// The sum of the big-endian 16-bit words, an odd last byte counting as a high one (RFC 1071).
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(2).map(|word| match *word {
        [high, low] => u64::from(u16::from_be_bytes([high, low])),
        [high] => u64::from(high) << 8,
        _ => 0,
    });
    words.sum()
}

/// The one's complement of a sum with its carries added in.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Reads what `append` wrote, and checks what the writer computed by another route: a checksum
    /// is right if the sum over all that it covers is all ones.
    pub(crate) fn parse(packet: &[u8]) -> (SocketAddr, SocketAddr, Vec<u8>) {
        let (from, to, udp): (IpAddr, IpAddr, &[u8]) = match packet[0] >> 4 {
            4 => {
                assert_eq!(usize::from(u16_at(packet, 2)), packet.len());
                assert_eq!(fold(sum(&packet[..20])), 0, "IPv4 checksum");
                let ip = |at: usize| <[u8; 4]>::try_from(&packet[at..at + 4]).unwrap().into();
                (ip(12), ip(16), &packet[20..])
            }
            6 => {
                assert_eq!(usize::from(u16_at(packet, 4)), packet.len() - 40);
                let ip = |at: usize| <[u8; 16]>::try_from(&packet[at..at + 16]).unwrap().into();
                (ip(8), ip(24), &packet[40..])
            }
            version => panic!("IP version {version}"),
        };
        let octets = |ip| match ip {
            IpAddr::V4(ip) => Ipv4Addr::octets(&ip).to_vec(),
            IpAddr::V6(ip) => Ipv6Addr::octets(&ip).to_vec(),
        };
        let covered = [
            octets(from),
            octets(to),
            vec![0, UDP],
            udp[4..6].to_vec(),
            udp.to_vec(),
        ]
        .concat();
        assert_eq!(fold(sum(&covered)), 0, "UDP checksum");
        assert_eq!(usize::from(u16_at(udp, 4)), udp.len());
        let address = |ip, at| SocketAddr::new(ip, u16_at(udp, at));
        (address(from, 0), address(to, 2), udp[8..].to_vec())
    }

    fn u16_at(bytes: &[u8], at: usize) -> u16 {
        u16::from_be_bytes(bytes[at..at + 2].try_into().unwrap())
    }

    #[test]
    fn a_zero_checksum_is_sent_as_all_ones() {
        let (from, to) = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
        let mut plain = Vec::new();
        append(&mut plain, from, to, &[0, 0]);
        let mut zero = Vec::new();
        // A payload that equals the checksum without it makes the checksum zero.
        append(&mut zero, from, to, &plain[26..28]);
        assert_eq!(u16_at(&zero, 26), 0xffff);
    }

    #[test]
    fn what_is_framed_is_parsed() {
        for (from, to) in [
            ("10.0.0.1:4747", "10.0.0.2:65535"),
            ("[fd4e:57::1]:4747", "[fe80::2]:1"),
        ] {
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            for length in [0, 1, 2, 1499, 65_507] {
                let payload = vec![0xa5; length];
                let mut packet = Vec::new();
                append(&mut packet, from, to, &payload);
                assert_eq!(parse(&packet), (from, to, payload));
            }
        }
    }
}
