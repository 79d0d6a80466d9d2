//! Frames that nobody should send, on the wire to an acceptor in a driver: each is dropped and
//! counted by its reason, or left to the stack, and changes nothing; all that the stack has to hear
//! it still hears.

mod xdp_twin;

use consensus::auth::{self, Key};
use consensus::conformance::Shape;
use consensus::frame::{
    self, Addresses, ETHERNET_BYTES, IPV4_BYTES, IPV6_BYTES, Mac, Path, Sum, UDP_BYTES,
};
use consensus::memory::Memory as _;
use consensus::region::Region;
use consensus::sync::AtomicU64;
use consensus::tally::Count;
use consensus::wire::{self, HEADER_BYTES, Header, Kind};
use consensus::{Ballot, Epoch, GroupId, Incarnation, NodeId, Slot, acceptor};
use datapath::netns::{INTERFACE, Neighbours, Rig};
use nearwire::xdp::{self, Bystander, Loaded, Mode, OBJECT, XdpError};
use std::net::{Ipv4Addr, UdpSocket};
use xdp_twin::cable::{Cable, SOON, pin};
use xdp_twin::conversation::{framed, signed};
use xdp_twin::{PORT, Twin, in_namespace, skip};

const GROUP: GroupId = GroupId(1);
const LEADER: NodeId = NodeId(1);
const SHAPE: Shape = Shape {
    epoch: 2,
    ..Shape::SMALL
};
const KEY: Key = Key([3, 4]);
const OTHER_PORT: u16 = 9;
const IPV4_AT: usize = ETHERNET_BYTES;
const UDP_AT: usize = IPV4_AT + IPV4_BYTES;

/// A frame, what it is, and what is counted: nothing if it is the stack's.
#[derive(Clone)]
struct Case {
    name: String,
    frame: Vec<u8>,
    count: Option<Count>,
}

/// Which of a node's addresses the acceptor serves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Family {
    V4,
    V6,
}

/// Where frames come from and go to.
struct Line {
    /// To the acceptor.
    own: Path,
    v4: Path,
    v6: Path,
    key: Option<Key>,
    incarnation: Incarnation,
}

impl Line {
    /// A vote that would be stored, were it not spoilt.
    fn vote(&self) -> Header {
        Header {
            epoch: Epoch(SHAPE.epoch),
            slot: Slot(1),
            ballot: Ballot::new(7, LEADER),
            ..Header::new(Kind::Accept, GROUP, LEADER)
        }
    }

    fn datagram(&self, header: &Header, value: &[u8]) -> Vec<u8> {
        signed(header, value, self.key)
    }

    fn good(&self) -> Vec<u8> {
        framed(&self.own, &self.datagram(&self.vote(), b"a value"))
    }

    /// Frames whose headers are wrong, or that are for others.
    fn frames(&self) -> Vec<Case> {
        use frame::Malformed::{Length, Truncated};
        let mut cases = Cases::default();
        let good = self.good();
        // The kernel takes no frame below an Ethernet header.
        for length in ETHERNET_BYTES..good.len() {
            let is_ours = length >= self.own.header_bytes();
            let count = is_ours.then_some(Count::Frame(Truncated));
            cases.add(&format!("cut at {length}"), &good[..length], count);
        }
        for mac in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [2, 0, 0, 0, 0, 9]] {
            let mut frame = good.clone();
            frame[..6].copy_from_slice(&mac);
            cases.add(&format!("to {mac:02x?}"), &frame, None);
            // A cut one is no less another's.
            cases.add(
                &format!("cut, to {mac:02x?}"),
                &frame[..good.len() - 1],
                None,
            );
        }
        for mac in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], self.own.destination_mac.0] {
            let mut frame = good.clone();
            frame[6..12].copy_from_slice(&mac);
            cases.add(&format!("from {mac:02x?}"), &frame, None);
        }
        let portless = Path {
            source_port: 0,
            ..self.own
        };
        let vote = self.datagram(&self.vote(), b"a value");
        cases.add("from port 0", &framed(&portless, &vote), None);
        let other = if self.own == self.v4 {
            &self.v6
        } else {
            &self.v4
        };
        cases.add("the other family", &framed(other, &vote), None);

        let tag = [0x81, 0, 0, 5];
        let tagged = [&good[..12], &tag, &good[12..]].concat();
        let twice = [&good[..12], &tag, &tag, &good[12..]].concat();
        cases.add("a VLAN tag", &tagged, None);
        let priority = [&good[..12], &[0x81, 0, 0x60, 0], &good[12..]].concat();
        cases.add("a priority tag", &priority, None);
        cases.add("two VLAN tags", &twice, None);
        cases.add("half a VLAN tag", &tagged[..16], None);
        let service = [&good[..12], &[0x88, 0xa8, 0, 5], &good[12..]].concat();
        cases.add("a service VLAN tag", &service, None);
        let cut = &tagged[..tagged.len() - 1];
        cases.add("a cut frame with a VLAN tag", cut, None);
        let bad = |reason| Some(Count::Frame(reason));
        let udp_at = self.own.header_bytes() - UDP_BYTES;
        let udp_bytes = (good.len() - udp_at) as u16;
        let length = |bytes: u16| {
            let mut frame = good.clone();
            frame[udp_at + 4..udp_at + 6].copy_from_slice(&bytes.to_be_bytes());
            frame
        };
        cases.add("UDP without a length", &length(0), bad(Length));
        cases.add("UDP shorter than itself", &length(7), bad(Length));
        cases.add("UDP longer than IP", &length(udp_bytes + 1), bad(Length));
        let datagram = |reason| Some(Count::Wire(reason));
        let cut = length(udp_bytes - 1);
        cases.add(
            "UDP cuts the value",
            &cut,
            datagram(wire::Malformed::Length),
        );
        let cut = length(UDP_BYTES as u16 + 63);
        cases.add(
            "UDP cuts the header",
            &cut,
            datagram(wire::Malformed::Truncated),
        );
        // The host's kind stands behind the datagram.
        let mut cut = length(UDP_BYTES as u16 + 3);
        cut[self.own.header_bytes() + 3] = Kind::Hello as u8;
        cases.add(
            "UDP cuts the kind",
            &cut,
            datagram(wire::Malformed::Truncated),
        );
        cases.add("UDP cuts the magic", &length(UDP_BYTES as u16 + 1), None);
        let of_family = if self.own == self.v4 {
            self.over_ipv4()
        } else {
            self.over_ipv6()
        };
        [cases.0, of_family].concat()
    }

    fn over_ipv4(&self) -> Vec<Case> {
        use frame::Malformed::{HeaderChecksum, Length, Truncated};
        let mut cases = Cases::default();
        let good = self.good();
        let bad = |reason| Some(Count::Frame(reason));
        let udp_bytes = (good.len() - UDP_AT) as u16;
        let ipv4 = |change: &dyn Fn(&mut [u8])| {
            let mut frame = good.clone();
            change(&mut frame[IPV4_AT..UDP_AT]);
            frame[IPV4_AT + 10..IPV4_AT + 12].fill(0);
            let sum = Sum::default().bytes(&frame[IPV4_AT..UDP_AT]).finish();
            frame[IPV4_AT + 10..IPV4_AT + 12].copy_from_slice(&sum.to_be_bytes());
            frame
        };
        let total = |bytes: u16| ipv4(&move |ip| ip[2..4].copy_from_slice(&bytes.to_be_bytes()));
        let whole = udp_bytes + IPV4_BYTES as u16;
        cases.add(
            "IP ends behind the frame",
            &total(whole + 8),
            bad(Truncated),
        );
        cases.add("IP ends within UDP", &total(whole - 8), bad(Length));
        cases.add("IP ends within itself", &total(10), bad(Length));
        cases.add("IP is empty", &total(0), bad(Length));
        for (name, ip) in [
            ("more fragments", ipv4(&|ip| ip[6] = 0x20)),
            ("a later fragment", ipv4(&|ip| ip[7] = 5)),
            ("options", ipv4(&|ip| ip[0] = 0x46)),
            ("a header too short", ipv4(&|ip| ip[0] = 0x44)),
            ("version 5", ipv4(&|ip| ip[0] = 0x55)),
            ("TCP", ipv4(&|ip| ip[9] = 6)),
        ] {
            cases.add(name, &ip, None);
        }
        let mut frame = good.clone();
        frame[IPV4_AT + 8] ^= 1;
        cases.add("a wrong IPv4 checksum", &frame, bad(HeaderChecksum));
        let many = [Ipv4Addr::new(224, 0, 0, 1), Ipv4Addr::BROADCAST];
        let nobody = [Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST];
        for source in many.into_iter().chain(nobody) {
            let frame = ipv4(&|ip| ip[12..16].copy_from_slice(&source.octets()));
            cases.add(&format!("from {source}"), &frame, None);
        }
        let itself = ipv4(&|ip| ip.copy_within(16..20, 12));
        cases.add("from the own address", &itself, None);
        for destination in many.into_iter().chain([Ipv4Addr::new(192, 0, 2, 1)]) {
            let frame = ipv4(&|ip| ip[16..20].copy_from_slice(&destination.octets()));
            cases.add(&format!("to {destination}"), &frame, None);
        }
        cases.0
    }

    fn over_ipv6(&self) -> Vec<Case> {
        use frame::Malformed::{Checksum, Length, Truncated};
        let mut cases = Cases::default();
        let bad = |reason| Some(Count::Frame(reason));
        let good = self.good();
        let at = |place: usize, byte: u8| {
            let mut frame = good.clone();
            frame[ETHERNET_BYTES + place] = byte;
            frame
        };
        for header in [0, 43, 44, 60, 58] {
            cases.add(&format!("IPv6 header {header}"), &at(6, header), None);
        }
        cases.add("IPv6 of version 4", &at(0, 0x40), None);
        cases.add("IPv6 longer than the frame", &at(5, 0xff), bad(Truncated));
        cases.add("IPv6 shorter than UDP", &at(5, 8), bad(Length));
        cases.add("IPv6 from ff00::…", &at(8, 0xff), None);
        cases.add("IPv6 to ff00::…", &at(24, 0xff), None);
        cases.add("IPv6 to another", &at(39, 0xfe), None);
        let mut frame = good.clone();
        frame[ETHERNET_BYTES + 8..ETHERNET_BYTES + 24].fill(0);
        cases.add("IPv6 from ::", &frame, None);
        let mut frame = good.clone();
        frame.copy_within(ETHERNET_BYTES + 24..ETHERNET_BYTES + 40, ETHERNET_BYTES + 8);
        cases.add("IPv6 from the own address", &frame, None);
        let mut frame = good.clone();
        let udp_at = ETHERNET_BYTES + IPV6_BYTES;
        frame[udp_at + 6..udp_at + 8].fill(0);
        cases.add("IPv6 without a checksum", &frame, bad(Checksum));
        cases.0
    }

    /// Datagrams that are wrong.
    fn datagrams(&self) -> Vec<Case> {
        use wire::Malformed::{Ballot as BallotField, Kind as KindField, Length, OverLong};
        let mut cases = Cases::default();
        let vote = self.vote();
        let bytes = self.datagram(&vote, b"a value");
        let spoilt = |at: usize, with: &[u8]| {
            let mut bytes = bytes.clone();
            bytes[at..at + with.len()].copy_from_slice(with);
            framed(&self.own, &bytes)
        };
        let wrong = |reason| Some(Count::Wire(reason));
        cases.add("no datagram", &framed(&self.own, b""), None);
        cases.add("another's", &framed(&self.own, b"GET / HTTP/1.1"), None);
        cases.add("another magic", &spoilt(0, &[0x4f]), None);
        cases.add(
            "another version",
            &spoilt(2, &[9]),
            wrong(wire::Malformed::Version),
        );
        for kind in [0, 13, 99, 255] {
            cases.add(
                &format!("kind {kind}"),
                &spoilt(3, &[kind]),
                wrong(KindField),
            );
        }
        cases.add(
            "a sender that no node is",
            &spoilt(6, &[0xff]),
            wrong(BallotField),
        );
        cases.add("a longer length", &spoilt(48, &[0, 8]), wrong(Length));
        cases.add("a shorter length", &spoilt(48, &[0, 6]), wrong(Length));
        cases.add(
            "unknown flags",
            &spoilt(50, &[0x80]),
            wrong(wire::Malformed::Flags),
        );
        let long = self.datagram(&vote, &[7; SHAPE.value_bytes + 1]);
        cases.add(
            "too long a value",
            &framed(&self.own, &long),
            wrong(OverLong),
        );
        let sealed = Header {
            ballot: Ballot::SEALED,
            ..vote
        };
        let sealed = self.datagram(&sealed, b"v");
        cases.add(
            "the sealed ballot",
            &framed(&self.own, &sealed),
            wrong(BallotField),
        );
        if self.key.is_some() {
            let forged = wrong(wire::Malformed::Tag);
            cases.add("a forged tag", &spoilt(56, &[bytes[56] ^ 1]), forged);
            cases.add("no tag", &spoilt(56, &[0; 8]), forged);
            cases.add("a changed value", &spoilt(HEADER_BYTES, b"A"), forged);
            cases.add("a changed slot", &spoilt(23, &[3]), forged);
        }
        let elsewhere = Path {
            destination_port: PORT + 1,
            ..self.own
        };
        cases.add("another port", &framed(&elsewhere, &bytes), None);
        for kind in Kind::ALL.iter().filter(|kind| !kind.is_for_acceptor()) {
            let header = Header {
                kind: *kind,
                ..vote
            };
            let frame = framed(&self.own, &self.datagram(&header, b""));
            cases.add(&format!("{kind:?}"), &frame, None);
        }
        cases.0
    }

    /// Requests that the step refuses.
    fn requests(&self) -> Vec<Case> {
        use acceptor::Drop::{self, Inconsistent};
        let vote = self.vote();
        let other = Incarnation(self.incarnation.0 ^ 1);
        let requests: [(&str, Header, Drop); 10] = [
            (
                "another life",
                Header {
                    incarnation: other,
                    ..vote
                },
                Drop::Incarnation,
            ),
            (
                "an older epoch",
                Header {
                    epoch: Epoch(SHAPE.epoch - 1),
                    ..vote
                },
                Drop::Epoch,
            ),
            (
                "no such group",
                Header {
                    group: GroupId(3),
                    ..vote
                },
                Drop::Group,
            ),
            (
                "the last group",
                Header {
                    group: GroupId(u16::MAX),
                    ..vote
                },
                Drop::Group,
            ),
            (
                "another's ballot",
                Header {
                    sender: NodeId(2),
                    ..vote
                },
                Inconsistent,
            ),
            (
                "no ballot",
                Header {
                    ballot: Ballot::NONE,
                    ..vote
                },
                Inconsistent,
            ),
            (
                "no slot",
                Header {
                    slot: Slot(0),
                    ..vote
                },
                Inconsistent,
            ),
            (
                "a slot too high",
                Header {
                    slot: Slot(u64::MAX),
                    ..vote
                },
                Inconsistent,
            ),
            (
                "a trim beyond what is decided",
                Header {
                    kind: Kind::Decide,
                    watermark: 3,
                    ..vote
                },
                Inconsistent,
            ),
            (
                "a range that ends before it begins",
                Header {
                    kind: Kind::Decide,
                    vote_ballot: Ballot(3),
                    ..vote
                },
                Inconsistent,
            ),
        ];
        let mut cases = Cases::default();
        for (name, header, reason) in requests {
            let value: &[u8] = if header.kind == Kind::Accept {
                b"v"
            } else {
                b""
            };
            let frame = framed(&self.own, &self.datagram(&header, value));
            cases.add(name, &frame, Some(Count::Step(reason)));
        }
        cases.0
    }
}

#[derive(Default)]
struct Cases(Vec<Case>);

impl Cases {
    fn add(&mut self, name: &str, frame: &[u8], count: Option<Count>) {
        self.0.push(Case {
            name: name.into(),
            frame: frame.to_vec(),
            count,
        });
    }
}

/// An acceptor in a driver, and who else hears there.
struct Site {
    rig: Rig,
    loaded: Loaded,
    cable: Cable,
    own: UdpSocket,
    other: UdpSocket,
    line: Line,
    nonce: u32,
    _bystander: Bystander,
}

impl Site {
    fn new(test: &str, prefix: &str, family: Family, key: Option<Key>) -> Option<Self> {
        let shape = Shape { key, ..SHAPE };
        // It says why if the kernel takes no programs from this process.
        let twin = Twin::new(test, shape)?;
        let prefix = format!("{prefix}{}", std::process::id());
        let rig = match Rig::new(&prefix, &["asker", "acceptor"], Neighbours::Static) {
            Ok(rig) => rig,
            Err(error @ datapath::Error::Unsupported { .. }) => {
                skip(test, &error.to_string());
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let object = OBJECT.expect("the twin was loaded");
        let mut settings = Twin::settings(shape);
        settings.is_rehearsal = false;
        let (asker, node) = (rig.node("asker"), rig.node("acceptor"));
        let ip = match family {
            Family::V4 => node.ipv4.into(),
            Family::V6 => node.ipv6.into(),
        };
        let attached = node.run(|| {
            settings.own = xdp::own(INTERFACE, ip)?;
            let mut loaded = Loaded::load(object, &settings)?;
            loaded.attach(INTERFACE, Mode::Native)?;
            Ok::<_, XdpError>(loaded)
        });
        let attached = attached.expect("the namespace is there");
        let loaded = attached.unwrap_or_else(|error| panic!("{error}"));
        let (bystander, cable) = in_namespace(&rig.bridge(), || {
            let bystander = Bystander::attach(object, "p2", Mode::Native);
            (
                bystander.unwrap_or_else(|error| panic!("{error}")),
                Cable::on("p2"),
            )
        });
        let listen = |port: u16| {
            let bound = node.run(|| UdpSocket::bind((node.ipv4, port)));
            let socket = bound.expect("the namespace is there").expect("a free port");
            let soon = SOON;
            socket.set_read_timeout(Some(soon)).expect("a timeout");
            socket
        };
        let path = |addresses| Path {
            source_mac: Mac(asker.mac),
            destination_mac: Mac(node.mac),
            vlan: None,
            addresses,
            source_port: 40_000,
            destination_port: PORT,
        };
        let v4 = path(Addresses::V4 {
            source: asker.ipv4,
            destination: node.ipv4,
        });
        let v6 = path(Addresses::V6 {
            source: asker.ipv6,
            destination: node.ipv6,
        });
        let line = Line {
            own: match family {
                Family::V4 => v4,
                Family::V6 => v6,
            },
            v4,
            v6,
            key,
            incarnation: twin.acceptor.incarnation,
        };
        Some(Self {
            own: listen(PORT),
            other: listen(OTHER_PORT),
            loaded,
            cable,
            line,
            nonce: 0,
            _bystander: bystander,
            rig,
        })
    }

    fn region(&self) -> Vec<u64> {
        let region = self.loaded.region();
        (0..region.layout().words())
            .map(|word| region.load(0, word))
            .collect()
    }

    fn counters(&self) -> [u64; Count::COUNT] {
        self.loaded.counters().expect("the map can be read")
    }

    /// Asks for a vote, which changes nothing; once it is answered, all that was sent before has
    /// been seen: one processor sends into one queue.
    fn ask(&mut self) {
        let path = self.line.own;
        self.nonce += 1;
        let nonce = self.nonce;
        let read = Header {
            epoch: Epoch(SHAPE.epoch),
            slot: Slot(1),
            nonce,
            ..Header::new(Kind::Read, GROUP, LEADER)
        };
        self.cable
            .send(&framed(&path, &self.line.datagram(&read, b"")));
        let back = path.reversed().expect("to one");
        self.cable.receive("the answer to a Read", |frame| {
            let frame::Parsed::Ours(path, at) = frame::parse(frame, back.destination_port) else {
                return None;
            };
            let wire::Parsed::Ours(answer, value) =
                wire::parse(&frame[at.clone()], SHAPE.value_bytes)
            else {
                return None;
            };
            let is_authentic = self
                .line
                .key
                .is_none_or(|key| auth::is_authentic(key, &answer, value));
            let is_whole = path == back && frame::is_intact(frame, &path, &at) && is_authentic;
            (answer.nonce == nonce && answer.kind == Kind::Empty && is_whole).then_some(())
        });
    }

    /// The stack hears what is its own.
    fn is_heard(&self) {
        let (asker, node) = (self.rig.node("asker"), self.rig.node("acceptor"));
        let hello = Header::new(Kind::Hello, GROUP, LEADER).to_bytes();
        for (socket, port) in [(&self.own, PORT), (&self.other, OTHER_PORT)] {
            let path = Path {
                destination_port: port,
                source_port: 50_000,
                ..self.line.v4
            };
            self.cable.send(&framed(&path, &hello));
            let mut room = [0; 2048];
            // What else the stack was shown may be in the queue.
            loop {
                let received = socket.recv_from(&mut room);
                let (length, from) = received.unwrap_or_else(|error| panic!("to {port}: {error}"));
                if from.port() == 50_000 {
                    assert_eq!(room[..length], hello);
                    break;
                }
            }
        }
        // Who has the address (RFC 826)?
        let who_has = [
            &[0xff; 6][..],
            &asker.mac,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
            &asker.mac,
            &asker.ipv4.octets(),
            &[0; 6],
            &node.ipv4.octets(),
        ];
        self.cable.send(&who_has.concat());
        self.cable.receive("an ARP reply", |frame| {
            let is_reply = frame[12..14] == [8, 6] && frame[20..22] == [0, 2];
            (is_reply && frame[22..28] == node.mac).then_some(())
        });
        // An echo (RFC 792).
        let mut echo = vec![8, 0, 0, 0, 0, 1, 0, 1];
        echo.extend(b"anybody there?  ");
        let sum = Sum::default().bytes(&echo).finish();
        echo[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut ping = framed(&self.line.v4, &[0; 16]);
        ping[IPV4_AT + 9] = 1;
        ping[IPV4_AT + 10..IPV4_AT + 12].fill(0);
        let sum = Sum::default().bytes(&ping[IPV4_AT..UDP_AT]).finish();
        ping[IPV4_AT + 10..IPV4_AT + 12].copy_from_slice(&sum.to_be_bytes());
        ping[UDP_AT..].copy_from_slice(&echo);
        self.cable.send(&ping);
        self.cable.receive("an echo", |frame| {
            let is_icmp = frame[12..14] == [8, 0] && frame[IPV4_AT + 9] == 1;
            (is_icmp && frame[UDP_AT] == 0 && frame[UDP_AT + 4..] == echo[4..]).then_some(())
        });
    }

    /// Sends one frame, and sees that nothing but its counter moves.
    fn endure(&mut self, case: &Case) {
        let (region, mut expected) = (self.region(), self.counters());
        self.cable.send(&case.frame);
        self.ask();
        expected[Count::Answered.index()] += 1;
        if let Some(count) = case.count {
            expected[count.index()] += 1;
        }
        let counted = self.counters();
        for count in Count::all() {
            let (got, wanted) = (counted[count.index()], expected[count.index()]);
            assert_eq!(got, wanted, "{}: {}", case.name, count.name());
        }
        assert_eq!(self.region(), region, "{}", case.name);
        self.is_heard();
    }
}

fn bad_frames_change_nothing(test: &str, prefix: &str, family: Family, key: Option<Key>) {
    // One processor sends into one queue of the cable, in order.
    pin();
    let Some(mut site) = Site::new(test, prefix, family, key) else {
        return;
    };
    let blank = site.region();
    let line = &site.line;
    let cases = [line.frames(), line.datagrams(), line.requests()].concat();
    for case in &cases {
        site.endure(case);
    }
    assert_eq!(site.region(), blank);
    let seen = |count: &Count| cases.iter().any(|case| case.count == Some(*count));
    let unseen: Vec<_> = Count::all()
        .filter(|count| !seen(count))
        .map(Count::name)
        .collect();
    // What needs a region in another state, or never happens natively with such short values.
    let of_the_other = match family {
        Family::V4 => "frame_checksum",
        Family::V6 => "frame_header_checksum",
    };
    let mut expected = vec!["answered", "taken", "no_room", of_the_other];
    if key.is_none() {
        expected.push("tag");
    }
    expected.extend(["not_a_request", "busy", "sealed"]);
    assert_eq!(unseen, expected);
    // The same vote, unspoilt, is stored: the frames above were one step from it.
    let good = site.line.good();
    site.cable.send(&good);
    let region = site.loaded.region();
    site.cable.receive("a vote", |frame| {
        let frame::Parsed::Ours(_, at) = frame::parse(frame, 40_000) else {
            return None;
        };
        (wire::kind(frame, at) == Some(Kind::Accepted)).then_some(())
    });
    let words = site
        .region()
        .into_iter()
        .map(AtomicU64::new)
        .collect::<Vec<_>>();
    Region::open(words, *region.layout(), *region.birth()).expect("a whole region");
    let mut out = [0; SHAPE.value_bytes];
    let found = consensus::region::vote(region, GROUP, Slot(1), out.len(), &mut out);
    assert_eq!(found, Some((Ballot::new(7, LEADER), 7)));
    xdp_twin::objects::tell(&format!("{test}: {} frames", cases.len()));
}

#[test]
fn bad_frames_move_their_counter_and_nothing_else() {
    let test = "bad_frames_move_their_counter_and_nothing_else";
    bad_frames_change_nothing(test, "bad4", Family::V4, None);
    bad_frames_change_nothing(test, "bad6", Family::V6, None);
}

#[test]
fn with_tags_bad_frames_move_their_counter_and_nothing_else() {
    let test = "with_tags_bad_frames_move_their_counter_and_nothing_else";
    bad_frames_change_nothing(test, "keyed4", Family::V4, Some(KEY));
    bad_frames_change_nothing(test, "keyed6", Family::V6, Some(KEY));
}
