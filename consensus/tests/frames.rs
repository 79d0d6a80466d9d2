//! The corpus in Ethernet frames, as an engine meets it that stands before the stack: each request
//! comes in a frame, and the answer is written over it.
#![cfg(not(loom))]

use nearwire_consensus::conformance::{
    Device, Outcome, Shape, Software, Target, Verdict, corpus, play,
};
use nearwire_consensus::frame::{self, Addresses, IPV4_BYTES, Mac, Malformed, Parsed, Path};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The port of the device.
const PORT: u16 = 4747;
/// The port of whoever asks.
const ASKER_PORT: u16 = 999;

/// From whoever asks to the device.
fn path(is_ipv6: bool, vlan: Option<u16>) -> Path {
    let addresses = if is_ipv6 {
        Addresses::V6 {
            source: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1),
            destination: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2),
        }
    } else {
        Addresses::V4 {
            source: Ipv4Addr::new(10, 0, 0, 1),
            destination: Ipv4Addr::new(10, 0, 0, 2),
        }
    };
    Path {
        source_mac: Mac([2, 0, 0, 0, 0, 1]),
        destination_mac: Mac([2, 0, 0, 0, 0, 2]),
        vlan,
        addresses,
        source_port: ASKER_PORT,
        destination_port: PORT,
    }
}

const FRAMINGS: [(bool, Option<u16>); 4] = [
    (false, None),
    (false, Some(7)),
    (true, None),
    (true, Some(7)),
];

fn framed(path: &Path, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; path.header_bytes()];
    frame.extend_from_slice(payload);
    let length = path.write(&mut frame, payload.len());
    assert_eq!(length, Some(frame.len()));
    frame
}

/// What a frame to `port` carries, checksum and all.
fn carried(frame: &[u8], port: u16) -> Option<(Path, Vec<u8>)> {
    match frame::parse(frame, port) {
        Parsed::Ours(path, payload) if frame::is_intact(frame, &path, &payload) => {
            Some((path, frame[payload].to_vec()))
        }
        Parsed::Ours(..) | Parsed::NotOurs | Parsed::Malformed(_) => None,
    }
}

/// The shipped step behind a network card.
struct Framed {
    step: Software,
    path: Path,
}

impl Device for Framed {
    type Error = Infallible;
    type Memory = <Software as Device>::Memory;

    fn target(&self) -> Target {
        self.step.target()
    }

    fn nonce(&mut self) -> u32 {
        self.step.nonce()
    }

    fn exchange(&mut self, datagram: &[u8], wants_answer: bool) -> Result<Outcome, Infallible> {
        let mut frame = framed(&self.path, datagram);
        let (path, payload) = carried(&frame, PORT).expect("whole and for this port");
        assert_eq!((path, payload.as_slice()), (self.path, datagram));
        let outcome = self.step.exchange(&payload, wants_answer)?;
        let Outcome::Answered(answer) = outcome else {
            return Ok(outcome);
        };
        let start = path.header_bytes();
        frame.resize(start + answer.len(), 0);
        frame[start..].copy_from_slice(&answer);
        let back = path.reversed().expect("one receiver");
        let length = back.write(&mut frame, answer.len());
        assert_eq!(length, Some(frame.len()));
        let (path, answer) = carried(&frame, ASKER_PORT).expect("whole and for who asked");
        assert_eq!(path.reversed(), Some(self.path));
        Ok(Outcome::Answered(answer))
    }

    fn overlap(&mut self, first: &[u8], second: &[u8]) -> Result<(), Infallible> {
        self.step.overlap(first, second)
    }

    fn wait(&mut self, ns: u64) -> Result<(), Infallible> {
        self.step.wait(ns)
    }

    fn lateness_ns(&self) -> u64 {
        self.step.lateness_ns()
    }

    fn memory(&self) -> Option<(&Self::Memory, u64)> {
        self.step.memory()
    }
}

#[test]
fn every_case_is_passed_in_frames() {
    let cases = corpus().unwrap_or_else(|error| panic!("{error}"));
    for (is_ipv6, vlan) in FRAMINGS {
        let mut passed = 0;
        for case in &cases {
            for shape in [Shape::SMALL, Shape::ALL[2]] {
                let mut device = Framed {
                    step: Software::new(shape).expect("a region"),
                    path: path(is_ipv6, vlan),
                };
                let Ok(verdict) = play(case, &mut device);
                assert!(!matches!(verdict, Verdict::Failed(_)), "{verdict:#?}");
                passed += usize::from(verdict == Verdict::Passed);
            }
        }
        assert!(passed > cases.len(), "{passed}");
    }
}

/// A change of one byte, or a cut, is noticed by a checksum or a length, sends the frame elsewhere,
/// or leaves the payload as it was.
#[test]
fn no_damaged_frame_carries_another_payload() {
    let payload: Vec<u8> = (0..71).collect();
    for (is_ipv6, vlan) in FRAMINGS {
        let path = path(is_ipv6, vlan);
        let frame = framed(&path, &payload);
        let mut reasons = BTreeSet::new();
        let mut judge = |frame: &[u8]| {
            if let Parsed::Malformed(reason) = frame::parse(frame, PORT) {
                reasons.insert(reason.name());
            }
            if let Some((_, found)) = carried(frame, PORT) {
                assert_eq!(found, payload);
            }
        };
        for at in 0..frame.len() {
            judge(&frame[..at]);
            for change in [0x01, 0x80, 0xff] {
                let mut damaged = frame.clone();
                damaged[at] ^= change;
                judge(&damaged);
            }
        }
        let mut expected = BTreeSet::from([Malformed::Truncated.name(), Malformed::Length.name()]);
        if !is_ipv6 {
            expected.insert(Malformed::HeaderChecksum.name());
        }
        assert_eq!(reasons, expected, "{path:?}");
    }
}

#[test]
fn a_frame_without_a_checksum_is_whole_over_ipv4_alone() {
    for (is_ipv6, vlan) in FRAMINGS {
        let path = path(is_ipv6, vlan);
        let mut frame = framed(&path, b"odd");
        let end = path.header_bytes();
        frame[end - 2..end].fill(0);
        assert_eq!(carried(&frame, PORT).is_some(), !is_ipv6, "{path:?}");
    }
}

#[test]
fn what_goes_to_many_is_not_answered_over_itself() {
    for (is_ipv6, vlan) in FRAMINGS {
        let one = path(is_ipv6, vlan);
        let addresses = match one.addresses {
            Addresses::V4 { source, .. } => Addresses::V4 {
                source,
                destination: Ipv4Addr::BROADCAST,
            },
            Addresses::V6 { source, .. } => Addresses::V6 {
                source,
                destination: Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
            },
        };
        let many = Path { addresses, ..one };
        let (found, _) = carried(&framed(&many, b"to all"), PORT).expect("whole");
        assert_eq!(found.reversed(), None);
    }
}

#[test]
fn an_answer_longer_than_ip_can_say_is_not_written() {
    let path = path(false, None);
    let longest = usize::from(u16::MAX) - IPV4_BYTES - frame::UDP_BYTES;
    let mut room = vec![0; path.header_bytes() + usize::from(u16::MAX)];
    assert!(path.write(&mut room, longest).is_some());
    assert_eq!(path.write(&mut room, longest + 1), None);
    assert_eq!(path.write(&mut room[..40], 0), None);
}
