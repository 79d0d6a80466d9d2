//! What is said to both twins: the conformance corpus, and random messages.

use super::{GROUPS, IPS, MAC, PORT, Twin};
use consensus::auth::{self, Key};
use consensus::conformance::{
    Case, Device, Failure, Outcome, Reason, Shape, Target, Verdict as Played, play,
};
use consensus::frame::{self, Addresses, Mac, Path};
use consensus::memory::Memory as _;
use consensus::random::Random;
use consensus::region::{Region, entry, group};
use consensus::tally::Count;
use consensus::wire::{self, Flags, HEADER_BYTES, Header, Kind};
use consensus::{Ballot, Epoch, GroupId, Incarnation, NodeId, Slot};
use nearwire::mapping::Mapping;
use nearwire::xdp::Verdict;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const GROUP: GroupId = GroupId(1);

/// Those of the software's conformance test that fit a frame and have 64 bits, and one of values
/// nearly as long as a frame.
pub fn shapes() -> [Shape; 4] {
    let [small, keyed, wide, long, _narrow] = Shape::ALL;
    let long = Shape {
        value_bytes: 3368,
        ..long
    };
    [small, keyed, wide, long]
}

/// To the twin at `ip`, from a neighbour.
pub fn path_to(ip: IpAddr) -> Path {
    let addresses = match ip {
        IpAddr::V4(destination) => Addresses::V4 {
            source: Ipv4Addr::new(10, 0, 0, 1),
            destination,
        },
        IpAddr::V6(destination) => Addresses::V6 {
            source: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1),
            destination,
        },
    };
    Path {
        source_mac: Mac([2, 0, 0, 0, 0, 1]),
        destination_mac: MAC,
        vlan: None,
        addresses,
        source_port: 40_000,
        destination_port: PORT,
    }
}

/// Paths to others than the twin at `ip`, as a promiscuous card or a bridge's port shows them.
pub fn paths_to_others(ip: IpAddr) -> Vec<(&'static str, Path)> {
    let path = path_to(ip);
    let mac = |mac| Path {
        destination_mac: mac,
        ..path
    };
    let vlan = |control| Path {
        vlan: Some(control),
        ..path
    };
    let at = |ip| path_to(ip);
    let (other, group): (IpAddr, IpAddr) = match ip {
        IpAddr::V4(_) => ([10, 0, 0, 3].into(), [239, 1, 1, 1].into()),
        IpAddr::V6(_) => (
            [0xfd00, 0, 0, 0, 0, 0, 0, 3].into(),
            [0xff02, 0, 0, 0, 0, 0, 0, 1].into(),
        ),
    };
    let family = IPS[usize::from(ip == IPS[0])];
    vec![
        ("another station", mac(Mac([2, 0, 0, 0, 0, 3]))),
        ("all stations", mac(Mac([0xff; 6]))),
        ("another address", at(other)),
        ("a group's address", at(group)),
        ("the other family", at(family)),
        ("a VLAN", vlan(5)),
        ("a priority", vlan(0x6000)),
    ]
}

/// A datagram of this header, but for its length and its tag, and this value.
pub fn signed(header: &Header, value: &[u8], key: Option<Key>) -> Vec<u8> {
    let mut header = Header {
        length: value.len() as u16,
        ..*header
    };
    if let Some(key) = key {
        header.tag = auth::tag(key, &header, value);
    }
    [&header.to_bytes()[..], value].concat()
}

pub fn framed(path: &Path, datagram: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; path.header_bytes()];
    bytes.extend_from_slice(datagram);
    path.write(&mut bytes, datagram.len()).expect("room");
    bytes
}

/// The acceptor in the kernel, asked through frames.
struct Kernel {
    twin: Twin,
    target: Target,
    path: Path,
    nonce: u32,
}

impl Device for Kernel {
    type Error = String;
    type Memory = Region<Mapping>;

    fn target(&self) -> Target {
        self.target
    }

    fn nonce(&mut self) -> u32 {
        self.nonce += 1;
        self.nonce
    }

    fn exchange(&mut self, datagram: &[u8], _: bool) -> Result<Outcome, String> {
        self.twin.follow();
        let mut frame = framed(&self.path, datagram);
        let kind = wire::kind(datagram, 0..datagram.len());
        if matches!(kind, Some(Kind::Fetch | Kind::Read)) {
            // Behind the packet there is room for the vote.
            let longest = self.path.header_bytes() + HEADER_BYTES + self.target.value_bytes;
            frame.resize(frame.len().max(longest), 0);
        }
        let shown = self.twin.show(&frame)?;
        let reason = match shown.count {
            Some(Count::Taken) => Some(Reason::Taken),
            Some(Count::Step(reason)) => Some(Reason::Dropped(reason)),
            Some(Count::Wire(reason)) => Some(Reason::Malformed(reason)),
            // The stack gets what is not ours, and what is the host's: that is seen nowhere.
            _ => None,
        };
        Ok(match shown.verdict {
            Verdict::Sent(answer) => match frame::parse(&answer, self.path.source_port) {
                frame::Parsed::Ours(path, at) => {
                    assert_eq!(Some(path), self.path.reversed());
                    Outcome::Answered(answer[at].to_vec())
                }
                other => panic!("{other:?}"),
            },
            _ => Outcome::Silence(reason),
        })
    }

    fn overlap(&mut self, first: &[u8], second: &[u8]) -> Result<(), String> {
        self.exchange(first, false)?;
        self.exchange(second, false).map(drop)
    }

    fn wait(&mut self, ns: u64) -> Result<(), String> {
        self.twin.now_ns += ns;
        Ok(())
    }

    fn memory(&self) -> Option<(&Self::Memory, u64)> {
        Some((self.twin.region(), self.twin.now_ns))
    }
}

/// What came of the cases of a corpus.
#[derive(Default)]
pub struct Conformance {
    /// Names of those that passed.
    pub passed: Vec<String>,
    /// Those that did not: the name, and what was wrong.
    pub failed: Vec<(String, String)>,
}

/// Plays the cases to a fresh twin.
pub fn conform(twin: Twin, cases: &[Case]) -> Conformance {
    let path = path_to(twin.own.ip);
    let (layout, shape) = (twin.acceptor.layout, twin.shape);
    let target = Target {
        node: twin.acceptor.node.0,
        incarnation: twin.acceptor.incarnation.0,
        epoch: shape.epoch,
        group: GROUP.0,
        window: layout.window(),
        value_bytes: layout.value_bytes(),
        lease_ns: shape.lease_ns,
        is_narrow: false,
        answers_read: true,
        sets_clock: true,
        shows_memory: true,
        key: shape.key,
    };
    let mut device = Kernel {
        twin,
        target,
        path,
        nonce: 0x4e57_0000,
    };
    let mut conformance = Conformance::default();
    for case in cases {
        device.twin.clear();
        let wrong = match play(case, &mut device) {
            Ok(Played::Passed) => {
                conformance.passed.push(case.name.clone());
                continue;
            }
            Ok(Played::Skipped(_)) => continue,
            Ok(Played::Failed(fields)) => fields.iter().map(told).collect(),
            Ok(Played::Unshown(why)) => why,
            Err(difference) => difference,
        };
        conformance.failed.push((case.name.clone(), wrong));
    }
    if conformance.failed.is_empty()
        && let Err(difference) = device.twin.compare_counters()
    {
        conformance.failed.push(("counters".into(), difference));
    }
    conformance
}

fn told(failure: &Failure) -> String {
    format!(
        "{}:{} {} step {}: {}: {}: expected {}, got {}\n",
        failure.file,
        failure.line,
        failure.case,
        failure.step,
        failure.text,
        failure.field,
        failure.expected,
        failure.got
    )
}

/// A message that a few leaders might send, well-formed or nearly so.
pub fn message(random: &mut Random, twin: &Twin) -> Vec<u8> {
    const KINDS: [Kind; 12] = [
        Kind::Prepare,
        Kind::Fetch,
        Kind::Fetch,
        Kind::Accept,
        Kind::Accept,
        Kind::Accept,
        Kind::Accept,
        Kind::Decide,
        Kind::Decide,
        Kind::Read,
        Kind::Read,
        Kind::Hello,
    ];
    let window = twin.acceptor.layout.window();
    let kind = KINDS[random.below(KINDS.len() as u64) as usize];
    // Mostly one leader in one ballot, and now and then another.
    let node = NodeId([1, 1, 1, 1, 1, 1, 2, 3][random.below(8) as usize]);
    let rare = |random: &mut Random| random.below(64) == 0;
    let length = match kind {
        Kind::Accept => {
            let beyond = if rare(random) { 40 } else { 0 };
            random.below(twin.acceptor.layout.value_bytes() as u64 + 1 + beyond)
        }
        _ if rare(random) => random.below(9),
        _ => 0,
    };
    let value: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
    let groups = u64::from(GROUPS) + u64::from(rare(random));
    let group = GroupId(random.below(groups) as u16);
    let at = twin.acceptor.layout.group_at(group);
    let trim = at.map_or(0, |at| twin.region().load(at, group::TRIM));
    let mut header = Header {
        incarnation: if random.below(4) == 0 {
            Incarnation::ANY
        } else {
            twin.acceptor.incarnation
        },
        epoch: Epoch(1),
        slot: Slot(trim.saturating_sub(1) + random.below(window + 2)),
        ballot: Ballot::new(1 + twin.now_ns / 10_000_000 + random.below(16) / 15, node),
        length: length as u16,
        nonce: random.next() as u32,
        ..Header::new(kind, group, node)
    };
    match kind {
        Kind::Decide => {
            header.vote_ballot = Ballot(random.below(header.slot.0 + 2));
            if random.below(8) == 0 {
                header.watermark = random.below(header.slot.0 + 2) / 2;
            }
            header.flags = Flags(random.below(8) as u16);
        }
        Kind::Read => header.ballot = Ballot::NONE,
        _ => {}
    }
    if rare(random) {
        header.incarnation = Incarnation(random.next() as u32);
    }
    if rare(random) {
        header.epoch = Epoch(random.below(2) as u32);
    }
    if rare(random) {
        header.slot = Slot(random.next() >> random.below(64));
    }
    // These end a story: what is promised or trimmed stays so.
    match random.below(2048) {
        0 => header.ballot = Ballot(random.next() >> random.below(64)),
        1 => header.watermark = random.next() >> random.below(64),
        _ => {}
    }
    if let Some(key) = twin.key {
        header.tag = auth::tag(key, &header, &value);
    }
    let mut datagram = [&header.to_bytes()[..], &value].concat();
    match random.below(64) {
        0 => datagram.truncate(random.below(HEADER_BYTES as u64) as usize),
        1 => datagram.extend(vec![0; 1 + random.below(80) as usize]),
        2 => {
            let at = random.below(8) as usize;
            datagram[at] ^= 1 << random.below(8);
        }
        3 => {
            let at = random.below(datagram.len() as u64) as usize;
            datagram[at] = random.next() as u8;
        }
        _ => {}
    }
    datagram
}

/// Puts a datagram into a frame to the twin at `ip`, which is now and then damaged, padded or for
/// another.
pub fn wrapped(random: &mut Random, ip: IpAddr, datagram: &[u8]) -> Vec<u8> {
    let mut path = path_to(ip);
    let rare = random.below(256);
    if rare == 0 {
        let others = paths_to_others(ip);
        path = others[random.below(others.len() as u64) as usize].1;
    } else if rare == 4 {
        path.source_mac = Mac([0xff; 6]);
    }
    let mut frame = framed(&path, datagram);
    if random.below(2) == 0 {
        // Room for a vote behind the packet.
        frame.resize(frame.len() + Shape::SMALL.value_bytes, 0);
    }
    match rare {
        5 => {
            let at = path.header_bytes();
            frame[at - 2..at].fill(0);
        }
        1 => frame.extend(vec![0; 1 + random.below(40) as usize]),
        2 => {
            let at = random.below(path.header_bytes() as u64) as usize;
            frame[at] ^= 1 << random.below(8);
        }
        3 => {
            // The kernel takes no frame below an Ethernet header.
            let least = frame::ETHERNET_BYTES as u64;
            frame.truncate((least + random.below(frame.len() as u64 - least)) as usize);
        }
        _ => {}
    }
    frame
}

/// What somebody beside the step does to a region: another core that holds a lock, the host that
/// seals a group or moves it to another epoch.
pub fn disturb(random: &mut Random, twin: &Twin) {
    let layout = &twin.acceptor.layout;
    let number = GroupId(random.below(GROUPS.into()) as u16);
    let at = layout.group_at(number).expect("a group");
    match random.below(6) {
        0 => {
            let state = [group::SEALED, group::ACTIVE, group::ACTIVE][random.below(3) as usize];
            twin.set(
                at,
                group::STATE,
                state | [1, 1, 2][random.below(3) as usize] << 32,
            );
        }
        1 => hold_or_let_go(random, twin, at),
        _ => {
            let index = random.below(u64::from(GROUPS) * layout.window());
            hold_or_let_go(random, twin, layout.entry_at(index).expect("an entry"));
        }
    }
}

/// Toggles a record's lock, which is the first word of both kinds; fewer are held than not.
fn hold_or_let_go(random: &mut Random, twin: &Twin, at: usize) {
    let sequence = twin.region().load(at, entry::LOCK);
    if sequence & 1 != 0 || random.below(8) == 0 {
        twin.set(at, entry::LOCK, sequence ^ 1);
    }
}

/// Shows the twin so many random frames, or ends at the first difference. Counts the kinds of the
/// answers.
pub fn converse(
    random: &mut Random,
    twin: &mut Twin,
    messages: u64,
) -> Result<BTreeMap<u8, u64>, String> {
    let mut answers: BTreeMap<u8, u64> = BTreeMap::new();
    for _ in 0..messages {
        // Now and then everything begins anew: ballots and trims only rise.
        if random.below(300) == 0 {
            twin.clear();
        }
        if random.below(50) == 0 {
            disturb(random, twin);
        }
        twin.now_ns += random.below(200_000);
        let datagram = message(random, twin);
        let frame = wrapped(random, twin.own.ip, &datagram);
        let Verdict::Sent(answer) = twin.show(&frame)?.verdict else {
            continue;
        };
        // The answer to a request from a damaged port or of a damaged type is compared, too.
        if let frame::Parsed::Ours(_, at) = frame::parse(&answer, 40_000) {
            *answers.entry(answer[at.start + 3]).or_default() += 1;
        }
    }
    Ok(answers)
}
