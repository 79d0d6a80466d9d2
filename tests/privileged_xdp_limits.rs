//! The longest values, the smallest window and the most groups that the acceptor in the kernel takes.

mod xdp_twin;

use consensus::auth::{self, Key};
use consensus::conformance::Shape;
use consensus::frame::{self, Addresses, Mac, Path, XDP_VALUE_BYTES};
use consensus::memory::Memory as _;
use consensus::region::{Layout, Region, vote};
use consensus::sync::AtomicU64;
use consensus::tally::Count;
use consensus::wire::{self, Flags, Header, Kind};
use consensus::{Ballot, Epoch, GroupId, NodeId, Slot};
use datapath::netns::{INTERFACE, Neighbours, Rig};
use nearwire::xdp::{self, Bystander, Loaded, Mode, OBJECT, Verdict, XdpError};
use std::process::Command;
use xdp_twin::cable::{Cable, pin};
use xdp_twin::conversation::{framed, path_to, signed};
use xdp_twin::{IPS, PORT, Twin, in_namespace, skip};

const LEADER: NodeId = NodeId(1);
const SHAPE: Shape = Shape {
    window: 2,
    value_bytes: XDP_VALUE_BYTES,
    key: Some(Key([5, 6])),
    ..Shape::SMALL
};
/// The longest that veth takes a program with (Linux 6.18).
const MTU: usize = 3506;
const MOST_GROUPS: u16 = 4096;

fn value(of: u64) -> Vec<u8> {
    let word = |index: u64| (of * 1_000_003 + index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let words = (0..XDP_VALUE_BYTES as u64 / 8).map(|index| word(index).to_ne_bytes());
    words.flatten().collect()
}

fn request(kind: Kind, group: GroupId, slot: u64) -> Header {
    Header {
        epoch: Epoch(SHAPE.epoch),
        slot: Slot(slot),
        ballot: Ballot::new(1, LEADER),
        ..Header::new(kind, group, LEADER)
    }
}

/// The answer in a frame, if it is whole and authentic.
fn answer(frame: &[u8]) -> Option<(Path, Header, Vec<u8>)> {
    let frame::Parsed::Ours(path, at) = frame::parse(frame, 40_000) else {
        return None;
    };
    assert!(frame::is_intact(frame, &path, &at), "{frame:02x?}");
    let wire::Parsed::Ours(header, value) = wire::parse(&frame[at], XDP_VALUE_BYTES) else {
        panic!("{frame:02x?}");
    };
    let key = SHAPE.key.expect("tags");
    assert!(auth::is_authentic(key, &header, value), "{header:?}");
    Some((path, header, value.to_vec()))
}

fn set_mtu(namespace: &str, interface: &str) {
    let mut ip = Command::new("ip");
    ip.args(["-n", namespace, "link", "set", interface, "mtu"]);
    let ran = ip.arg(MTU.to_string()).status().expect("iproute2");
    assert!(ran.success(), "{ip:?}");
}

#[test]
fn the_longest_values_cross_a_cable_over_both_families() {
    let test = "the_longest_values_cross_a_cable_over_both_families";
    pin();
    // It says why if the kernel takes no programs from this process.
    if Twin::new(test, SHAPE).is_none() {
        return;
    }
    let prefix = format!("limits{}", std::process::id());
    let rig = match Rig::new(&prefix, &["asker", "acceptor"], Neighbours::Static) {
        Ok(rig) => rig,
        Err(error @ datapath::Error::Unsupported { .. }) => return skip(test, &error.to_string()),
        Err(error) => panic!("{error}"),
    };
    let (asker, node) = (rig.node("asker"), rig.node("acceptor"));
    set_mtu(&rig.bridge(), "p2");
    set_mtu(&node.namespace, INTERFACE);
    let object = OBJECT.expect("the twin was loaded");
    let (_bystander, cable) = in_namespace(&rig.bridge(), || {
        let bystander = Bystander::attach(object, "p2", Mode::Native);
        (
            bystander.unwrap_or_else(|error| panic!("{error}")),
            Cable::on("p2"),
        )
    });
    let v4 = Addresses::V4 {
        source: asker.ipv4,
        destination: node.ipv4,
    };
    let v6 = Addresses::V6 {
        source: asker.ipv6,
        destination: node.ipv6,
    };
    for (ip, addresses) in [(node.ipv4.into(), v4), (node.ipv6.into(), v6)] {
        let mut settings = Twin::settings(SHAPE);
        settings.is_rehearsal = false;
        // Where the node is, and what is attached there until it is dropped.
        let attached = node.run(|| {
            settings.own = xdp::own(INTERFACE, ip)?;
            let mut loaded = Loaded::load(object, &settings)?;
            loaded.attach(INTERFACE, Mode::Native)?;
            Ok::<_, XdpError>(loaded)
        });
        let attached = attached.expect("the namespace is there");
        let loaded = attached.unwrap_or_else(|error| panic!("{error}"));
        let path = Path {
            source_mac: Mac(asker.mac),
            destination_mac: Mac(node.mac),
            vlan: None,
            addresses,
            source_port: 40_000,
            destination_port: PORT,
        };
        let back = path.reversed().expect("to one");
        let mut asked = 0;
        for (group, slot) in [(0, 1), (1, 1), (0, 2), (1, 2)] {
            let value = value(u64::from(group) << 8 | slot);
            // A Fetch as long as its answer, which has no more room than came.
            for (kind, sent) in [
                (Kind::Accept, &value[..]),
                (Kind::Fetch, &[0; XDP_VALUE_BYTES]),
            ] {
                asked += 1;
                let header = Header {
                    nonce: asked,
                    ..request(kind, GroupId(group), slot)
                };
                cable.send(&framed(&path, &signed(&header, sent, SHAPE.key)));
                let (header, found) = cable.receive("the answer", |frame| {
                    let (path, header, value) = answer(frame)?;
                    (header.nonce == asked && path == back).then_some((header, value))
                });
                if kind == Kind::Accept {
                    assert_eq!(header.kind, Kind::Accepted, "{header:?}");
                } else {
                    assert_eq!((header.kind, &found), (Kind::Vote, &value), "{header:?}");
                }
            }
        }
        let counters = loaded.counters().expect("the map can be read");
        assert_eq!(counters[Count::Answered.index()], u64::from(asked));
        let all = counters.iter().sum::<u64>();
        assert_eq!(all, u64::from(asked), "{counters:?}");
    }
}

#[test]
fn four_thousand_groups_of_two_slots_keep_their_votes_apart() {
    let test = "four_thousand_groups_of_two_slots_keep_their_votes_apart";
    if Twin::new(test, SHAPE).is_none() {
        return;
    }
    let object = OBJECT.expect("the twin was loaded");
    let mut settings = Twin::settings(SHAPE);
    settings.own.ip = IPS[1];
    settings.layout = Layout::new(MOST_GROUPS, SHAPE.window, SHAPE.value_bytes).expect("a layout");
    let loaded = Loaded::load(object, &settings).unwrap_or_else(|error| panic!("{error}"));
    let path = path_to(IPS[1]);
    let ask = |header: &Header, value: &[u8]| {
        let frame = framed(&path, &signed(header, value, SHAPE.key));
        match loaded.run(&frame).unwrap_or_else(|error| panic!("{error}")) {
            Verdict::Sent(sent) => answer(&sent).map(|(_, header, _)| header.kind),
            _ => None,
        }
    };
    let of = |group: GroupId, slot: u64| value(u64::from(group.0) << 8 | slot);
    let groups = || (0..MOST_GROUPS).map(GroupId);
    for slot in 1..=2 {
        for group in groups() {
            let asked = ask(&request(Kind::Accept, group, slot), &of(group, slot));
            assert_eq!(asked, Some(Kind::Accepted), "{group:?}");
        }
    }
    // Every other one makes room, and only there the third slot has a place.
    for group in groups() {
        if group.0 % 2 == 1 {
            let decide = Header {
                vote_ballot: Ballot(1),
                watermark: 2,
                flags: Flags::ACK_WANTED,
                ..request(Kind::Decide, group, 2)
            };
            assert_eq!(ask(&decide, &[]), Some(Kind::Ack), "{group:?}");
        }
        let asked = ask(&request(Kind::Accept, group, 3), &of(group, 3));
        let expected = [Kind::Outside, Kind::Accepted][usize::from(group.0 % 2)];
        assert_eq!(asked, Some(expected), "{group:?}");
    }
    let beyond = request(Kind::Accept, GroupId(MOST_GROUPS), 1);
    assert_eq!(ask(&beyond, b"v"), None);

    let region = loaded.region();
    let words = (0..region.layout().words()).map(|word| AtomicU64::new(region.load(0, word)));
    let copy = words.collect::<Vec<_>>();
    Region::open(copy, *region.layout(), *region.birth()).expect("a whole region");
    let mut out = vec![0; XDP_VALUE_BYTES];
    for group in groups() {
        for slot in [1, 2, 3] {
            let found = vote(region, group, Slot(slot), out.len(), &mut out);
            let is_kept = slot == 2 || (slot == 1) == (group.0 % 2 == 0);
            assert_eq!(found.is_some(), is_kept, "{group:?} {slot}");
            if is_kept {
                assert_eq!(out, of(group, slot), "{group:?} {slot}");
            }
        }
    }
}
