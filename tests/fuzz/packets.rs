//! Datagrams and frames.

use crate::{Script, fuzz};
use consensus::frame::{self, Addresses, Mac, Own, Path};
use consensus::wire::{DEFAULT_PORT, HEADER_BYTES, Header, Kind, Parsed, parse};
use consensus::{GroupId, NodeId};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const MAX_VALUE: usize = 1024;

/// What parses is written back as it was.
fn datagram(input: &[u8]) {
    let check = |bytes: &[u8]| {
        if let Parsed::Ours(header, value) = parse(bytes, MAX_VALUE) {
            assert_eq!(usize::from(header.length), value.len());
            assert!(value.len() <= MAX_VALUE);
            assert_eq!([&header.to_bytes()[..], value].concat(), bytes);
        }
    };
    check(input);
    let mut script = Script(input);
    let kind = Kind::ALL[script.below(Kind::ALL.len())];
    let mut header = Header::new(kind, GroupId(0), NodeId(1));
    let value = script.take(usize::from(input.first().copied().unwrap_or(0)));
    header.length = value.len() as u16;
    let mut bytes = [&header.to_bytes()[..], value].concat();
    script.damage(&mut bytes);
    check(&bytes);
}

#[test]
fn a_datagram_is_refused_or_read_back_as_it_was() {
    fuzz("datagram", datagram);
}

const MAC: Mac = Mac([4; 6]);
const IPV4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
const VLAN: u16 = 7;

/// A frame's payload lies inside it, and it can be answered by whom it is for.
fn framed(input: &[u8]) {
    let check = |bytes: &[u8]| {
        let ips: [IpAddr; 2] = [IPV4.into(), IPV6.into()];
        let owns = ips.into_iter().flat_map(|ip| {
            let own = |vlan| Own { mac: MAC, vlan, ip };
            [own(None), own(Some(VLAN))]
        });
        for own in owns {
            let parsed = frame::parse_pieces(bytes, DEFAULT_PORT, Some(&own));
            let frame::Parsed::Ours(path, payload) = parsed else {
                continue;
            };
            assert!(payload.start <= payload.end && payload.end <= bytes.len());
            assert_eq!(payload.start, path.header_bytes());
            let _ = frame::is_intact(bytes, &path, &payload);
            let back = path.reversed().expect("one station's");
            let mut answer = bytes.to_vec();
            if let Some(length) = back.write(&mut answer, payload.len()) {
                let parsed = frame::parse(&answer[..length], path.source_port);
                assert_eq!(parsed, frame::Parsed::Ours(back, payload.clone()));
                assert!(frame::is_intact(&answer[..length], &back, &payload));
            }
        }
    };
    check(input);
    let mut script = Script(input);
    let addresses = match script.byte() % 2 {
        0 => Addresses::V4 {
            source: Ipv4Addr::new(10, 0, 0, 1),
            destination: IPV4,
        },
        _ => Addresses::V6 {
            source: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1),
            destination: IPV6,
        },
    };
    let path = Path {
        source_mac: Mac([2; 6]),
        destination_mac: MAC,
        vlan: (script.byte() % 2 == 0).then_some(VLAN),
        addresses,
        source_port: 9,
        destination_port: DEFAULT_PORT,
    };
    let payload = script.below(300);
    let mut bytes = vec![0; path.header_bytes() + payload + script.below(8)];
    path.write(&mut bytes, payload).expect("it has room");
    check(&bytes);
    // Damage near the front, where the headers are.
    while !script.is_over() && !bytes.is_empty() {
        let at = script.below(bytes.len().min(HEADER_BYTES + 22));
        bytes[at] = script.byte();
        check(&bytes);
    }
}

#[test]
fn a_frames_payload_lies_inside_it() {
    fuzz("frame", framed);
}
