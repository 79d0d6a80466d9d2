//! Acceptors in the kernels of three namespaces choose values for a leader's socket in a fourth.

mod xdp_twin;

use consensus::conformance::Shape;
use consensus::memory::Memory as _;
use consensus::region::{group, vote};
use consensus::tally::Count;
use consensus::wire::{Header, Kind, Parsed, parse};
use consensus::{Ballot, Epoch, GroupId, NodeId, Slot};
use datapath::Error;
use datapath::netns::{INTERFACE, Neighbours, Node, Rig};
use nearwire::xdp::{self, Bystander, Loaded, Mode, OBJECT};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use xdp_twin::{PORT, Twin, in_namespace, skip};

const ACCEPTORS: [&str; 3] = ["a", "b", "c"];
const LEADER: NodeId = NodeId(1);
const GROUP: GroupId = GroupId(0);
const SHAPE: Shape = Shape {
    window: 4096,
    value_bytes: 1384,
    ..Shape::SMALL
};
/// Values that are chosen over each family.
const ROUNDS: u64 = 1000;
/// An answer that takes longer was lost.
const SOON: Duration = Duration::from_secs(5);

/// A leader that asks all acceptors and waits for two.
struct Leader {
    socket: UdpSocket,
    acceptors: Vec<SocketAddr>,
    ballot: Ballot,
    nonce: u32,
}

impl Leader {
    fn new(node: &Node, acceptors: Vec<SocketAddr>, ballot: Ballot) -> Self {
        let any: SocketAddr = match acceptors[0].ip() {
            IpAddr::V4(_) => (node.ipv4, 0).into(),
            IpAddr::V6(_) => (node.ipv6, 0).into(),
        };
        let bound = node
            .run(|| UdpSocket::bind(any))
            .expect("the namespace is there");
        let socket = bound.expect("a free port");
        socket.set_read_timeout(Some(SOON)).expect("a timeout");
        Self {
            socket,
            acceptors,
            ballot,
            nonce: 0,
        }
    }

    /// Asks all, and waits until `wanted` have answered with `kind`.
    fn ask(&mut self, kind: Kind, slot: u64, value: &[u8], wanted: usize) -> Answers {
        let answer_kind = match kind {
            Kind::Prepare => Kind::Promise,
            Kind::Accept => Kind::Accepted,
            Kind::Fetch => Kind::Vote,
            other => panic!("no test asks {other:?}"),
        };
        self.nonce += 1;
        let header = Header {
            epoch: Epoch(1),
            slot: Slot(slot),
            ballot: self.ballot,
            length: value.len() as u16,
            nonce: self.nonce,
            ..Header::new(kind, GROUP, LEADER)
        };
        let datagram = [&header.to_bytes()[..], value].concat();
        for acceptor in &self.acceptors {
            self.socket
                .send_to(&datagram, acceptor)
                .expect("a way there");
        }
        let mut answers = Answers::default();
        let mut room = [0; 2048];
        while answers.from.len() < wanted {
            let received = self.socket.recv_from(&mut room);
            let (length, from) =
                received.unwrap_or_else(|error| panic!("{kind:?} of slot {slot}: {error}"));
            let Parsed::Ours(answer, value) = parse(&room[..length], SHAPE.value_bytes) else {
                panic!("{:02x?} from {from}", &room[..length]);
            };
            if answer.nonce != self.nonce {
                continue;
            }
            assert_eq!(
                (answer.kind, answer.ballot),
                (answer_kind, self.ballot),
                "{answer:?}"
            );
            answers.from.insert(from);
            answers.values.push(value.to_vec());
        }
        answers
    }
}

#[derive(Default)]
struct Answers {
    from: BTreeSet<SocketAddr>,
    values: Vec<Vec<u8>>,
}

fn value(slot: u64) -> Vec<u8> {
    // All lengths in turn, up to the longest that fits the MTU over IPv6.
    let length = slot * 7 % (SHAPE.value_bytes as u64 + 1);
    (0..length).map(|index| (slot + index) as u8).collect()
}

/// Which of a node's addresses.
type Address = fn(&Node) -> IpAddr;

fn over_ipv4(node: &Node) -> IpAddr {
    node.ipv4.into()
}

fn over_ipv6(node: &Node) -> IpAddr {
    node.ipv6.into()
}

/// Acceptors attached in every namespace but the leader's.
struct Site {
    rig: Rig,
    acceptors: Vec<Loaded>,
    _bystanders: Vec<Bystander>,
}

impl Site {
    /// `prefix` tells the rigs of tests apart that run side by side; `address` is the one that a node
    /// serves.
    fn new(test: &str, prefix: &str, mode: Mode, address: Address) -> Option<Self> {
        // It says why if the kernel takes no programs from this process.
        Twin::new(test, SHAPE)?;
        let prefix = format!("{prefix}{}", std::process::id());
        let names = ["leader", ACCEPTORS[0], ACCEPTORS[1], ACCEPTORS[2]];
        let rig = match Rig::new(&prefix, &names, Neighbours::Static) {
            Ok(rig) => rig,
            Err(error @ Error::Unsupported { .. }) => {
                skip(test, &error.to_string());
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let object = OBJECT.expect("the twin was loaded");
        let bystanders = (2..=4).map(|port| {
            let attach = || Bystander::attach(object, &format!("p{port}"), mode);
            in_namespace(&rig.bridge(), attach).unwrap_or_else(|error| panic!("{error}"))
        });
        let bystanders = bystanders.collect();
        let acceptors = (2..).zip(ACCEPTORS).map(|(number, name)| {
            let mut settings = Twin::settings(SHAPE);
            settings.birth.node = NodeId(number);
            settings.is_rehearsal = false;
            let node = rig.node(name);
            let own = node.run(|| xdp::own(INTERFACE, address(node)));
            settings.own = own
                .expect("the namespace is there")
                .unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(settings.own.mac.0, node.mac);
            let mut loaded =
                Loaded::load(object, &settings).unwrap_or_else(|error| panic!("{error}"));
            let attached = node.run(|| loaded.attach(INTERFACE, mode));
            attached
                .expect("the namespace is there")
                .unwrap_or_else(|error| panic!("{error}"));
            loaded
        });
        let acceptors = acceptors.collect();
        Some(Self {
            rig,
            acceptors,
            _bystanders: bystanders,
        })
    }

    fn addresses(&self, address: Address) -> Vec<SocketAddr> {
        let of = |name: &&str| SocketAddr::new(address(self.rig.node(name)), PORT);
        ACCEPTORS.iter().map(of).collect()
    }
}

fn values_are_chosen(test: &str, mode: Mode, prefix: &str, address: Address) {
    let Some(site) = Site::new(test, prefix, mode, address) else {
        return;
    };
    let ballot = Ballot::new(1, LEADER);
    let mut leader = Leader::new(site.rig.node("leader"), site.addresses(address), ballot);
    leader.ask(Kind::Prepare, 0, &[], ACCEPTORS.len());
    let mut took = Vec::new();
    for slot in 1..=ROUNDS {
        let began = Instant::now();
        leader.ask(Kind::Accept, slot, &value(slot), 2);
        took.push(began.elapsed());
    }
    // No answer is longer than its request, so the question makes the room.
    let room = vec![0; SHAPE.value_bytes];
    let answers = leader.ask(Kind::Fetch, 700, &room, ACCEPTORS.len());
    assert!(answers.values.iter().all(|found| *found == value(700)));
    took.sort_unstable();
    eprintln!(
        "{} mode, {}: {ROUNDS} values chosen, p50 {:?}, p99 {:?}",
        mode.name(),
        leader.acceptors[0],
        took[took.len() / 2],
        took[took.len() * 99 / 100]
    );
    // Every one of them voted in all, and this process sees the votes.
    let mut out = vec![0; SHAPE.value_bytes];
    for loaded in &site.acceptors {
        for slot in 1..=ROUNDS {
            let found = vote(loaded.region(), GROUP, Slot(slot), out.len(), &mut out);
            let (found, length) = found.expect("a vote");
            assert_eq!(found, ballot);
            assert_eq!(out[..length], value(slot));
        }
        let at = loaded.region().group(GROUP).expect("a group");
        assert_eq!(loaded.region().load(at, group::HIGHEST), ROUNDS);
        let counters = loaded.counters().expect("the map can be read");
        let answered = counters[Count::Answered.index()];
        assert_eq!(answered, counters.iter().sum::<u64>(), "{counters:?}");
        assert_eq!(answered, 1 + ROUNDS + 1);
    }
}

#[test]
fn acceptors_in_drivers_choose_values() {
    let test = "acceptors_in_drivers_choose_values";
    values_are_chosen(test, Mode::Native, "native4", over_ipv4);
    values_are_chosen(test, Mode::Native, "native6", over_ipv6);
}

#[test]
fn acceptors_behind_drivers_choose_values() {
    let test = "acceptors_behind_drivers_choose_values";
    values_are_chosen(test, Mode::Generic, "generic4", over_ipv4);
    values_are_chosen(test, Mode::Generic, "generic6", over_ipv6);
}

#[test]
fn the_host_beside_the_acceptor_hears_what_is_its_own() {
    let test = "the_host_beside_the_acceptor_hears_what_is_its_own";
    let Some(site) = Site::new(test, "host", Mode::Native, over_ipv4) else {
        return;
    };
    let (leader, acceptor) = (site.rig.node("leader"), site.rig.node("a"));
    let bind = |node: &Node, port| {
        let bound = node.run(|| UdpSocket::bind((node.ipv4, port)));
        let socket = bound.expect("the namespace is there").expect("a free port");
        socket.set_read_timeout(Some(SOON)).expect("a timeout");
        socket
    };
    let hello = Header::new(Kind::Hello, GROUP, LEADER).to_bytes();
    let mut voter = Leader::new(leader, site.addresses(over_ipv4), Ballot::new(1, LEADER));
    voter.ask(Kind::Accept, 1, &[7; 1000], ACCEPTORS.len());
    let from = bind(leader, 0);
    let (own, other) = (bind(acceptor, PORT), bind(acceptor, 9));
    let hear = |socket: &UdpSocket| {
        let mut room = [0; 2048];
        let (length, _) = socket.recv_from(&mut room).expect("it arrives");
        room[..length].to_vec()
    };
    let cases: [(&UdpSocket, &[u8]); 3] =
        [(&own, &hello), (&own, b"something else"), (&other, &hello)];
    for (socket, datagram) in cases {
        let to = socket.local_addr().expect("it is bound");
        from.send_to(datagram, to).expect("a way there");
        assert_eq!(hear(socket), datagram);
    }
    // The vote is longer than the question.
    let fetch = Header {
        epoch: Epoch(1),
        slot: Slot(1),
        ballot: voter.ballot,
        ..Header::new(Kind::Fetch, GROUP, LEADER)
    };
    let fetch = fetch.to_bytes();
    let to = own.local_addr().expect("it is bound");
    from.send_to(&fetch, to).expect("a way there");
    assert_eq!(hear(&own), fetch);
    let counters = site.acceptors[0].counters().expect("the map can be read");
    assert_eq!(counters[Count::NoRoom.index()], 1, "{counters:?}");
}

#[test]
fn an_interface_that_has_a_program_or_does_not_exist_is_named() {
    let test = "an_interface_that_has_a_program_or_does_not_exist_is_named";
    let Some(site) = Site::new(test, "taken", Mode::Native, over_ipv4) else {
        return;
    };
    let object = OBJECT.expect("the twin was loaded");
    let mut second = Loaded::load(object, &Twin::settings(SHAPE)).expect("the first was loaded");
    let mut refused = |interface: &str, mode| {
        let attached = site.rig.node("a").run(|| second.attach(interface, mode));
        let error = attached
            .expect("the namespace is there")
            .expect_err("no place for it");
        error.to_string()
    };
    for mode in [Mode::Native, Mode::Generic] {
        let said = refused(INTERFACE, mode);
        let begins = format!("attach acceptor to {INTERFACE} in {} mode: ", mode.name());
        assert!(said.starts_with(&begins), "{said}");
        assert!(
            said.contains("(acceptor) in native mode sits there"),
            "{said}"
        );
    }
    for interface in ["nowhere", "no\0where"] {
        let said = refused(interface, Mode::Generic);
        assert!(said.starts_with(&format!(
            "look for the interface {interface}: there is none"
        )));
    }
    // Loopback has no native XDP.
    let said = refused("lo", Mode::Native);
    assert!(said.contains("use the generic mode"), "{said}");
}

#[test]
fn an_mtu_beyond_a_page_is_named() {
    let test = "an_mtu_beyond_a_page_is_named";
    // It says why if the kernel takes no programs from this process.
    if Twin::new(test, SHAPE).is_none() {
        return;
    }
    let prefix = format!("mtu{}", std::process::id());
    let rig = match Rig::new(&prefix, &["a"], Neighbours::Static) {
        Ok(rig) => rig,
        Err(error @ Error::Unsupported { .. }) => return skip(test, &error.to_string()),
        Err(error) => panic!("{error}"),
    };
    let grow = |interface: &str| {
        let grown = std::process::Command::new("ip")
            .args(["link", "set", "dev", interface, "mtu", "9000"])
            .status();
        assert!(grown.expect("iproute2").success(), "{interface}");
    };
    in_namespace(&rig.bridge(), || grow("p1"));
    let object = OBJECT.expect("the twin was loaded");
    let mut loaded = Loaded::load(object, &Twin::settings(SHAPE)).expect("the twin was loaded");
    let attached = rig.node("a").run(|| {
        grow(INTERFACE);
        loaded.attach(INTERFACE, Mode::Native)
    });
    let error = attached
        .expect("the namespace is there")
        .expect_err("frames of 9,014 bytes");
    let said = error.to_string();
    assert!(said.contains("`ip link set dev eth0 mtu 1500`"), "{said}");
}
