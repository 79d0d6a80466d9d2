//! The acceptor that the kernel has verified answers as the step in this process does.

mod xdp_twin;

use consensus::auth::{self, Key};
use consensus::conformance::{
    Device, Failure, Outcome, Reason, Shape, Target, Verdict as Played, corpus, play,
};
use consensus::frame::{Addresses, Mac, Path, XDP_VALUE_BYTES};
use consensus::memory::Memory as _;
use consensus::random::Random;
use consensus::region::{Layout, Region, entry, group};
use consensus::simulation::{Mutation, mutate};
use consensus::tally::Count;
use consensus::wire::{self, Flags, HEADER_BYTES, Header, Kind, Malformed};
use consensus::{Ballot, Epoch, GroupId, Incarnation, NodeId, Slot, acceptor, frame};
use nearwire::mapping::Mapping;
use nearwire::xdp::{Loaded, OBJECT, Settings, Verdict, XdpError};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;
use xdp_twin::{GROUPS, IPS, MAC, PORT, Twin, setting};

const GROUP: GroupId = GroupId(1);
/// Messages of a run of random ones, unless NEARWIRE_MESSAGES says otherwise.
const MESSAGES: u64 = 100_000;

/// What no frame comes to: the stack gets the other kinds.
const NEVER: [Count; 1] = [Count::Step(acceptor::Drop::NotARequest)];

/// Defects that a step shows by itself, without another that overlaps it.
const DEFECTS: [Mutation; 23] = [
    Mutation::PromiseNotChecked,
    Mutation::EqualBallotRefused,
    Mutation::EqualBallotOverwrites,
    Mutation::VoteNotStored,
    Mutation::VotePromisesNothing,
    Mutation::HighestNotRaised,
    Mutation::KeptSlotOverwritten,
    Mutation::EntryUnlocked,
    Mutation::PublishedBodyWritten,
    Mutation::PrepareUnlocked,
    Mutation::LeaseIgnored,
    Mutation::LeaseDropped,
    Mutation::FetchUnlocked,
    Mutation::FetchUnpromised,
    Mutation::TornIsEmpty,
    Mutation::TrimmedIsServed,
    Mutation::DecidedMixed,
    Mutation::DecidedByOldBallot,
    Mutation::DecidePromisesNothing,
    Mutation::TrimStored,
    Mutation::ForeignRequestServed,
    Mutation::OldEpochServed,
    Mutation::SealedServed,
];

/// Those of the software's conformance test that fit a frame and have 64 bits, and one of values
/// nearly as long as a frame.
fn shapes() -> [Shape; 4] {
    let [small, keyed, wide, long, _narrow] = Shape::ALL;
    let long = Shape {
        value_bytes: 3368,
        ..long
    };
    [small, keyed, wide, long]
}

/// To the twin at `ip`, from a neighbour.
fn path_to(ip: IpAddr) -> Path {
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
fn paths_to_others(ip: IpAddr) -> Vec<(&'static str, Path)> {
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

fn framed(path: &Path, datagram: &[u8]) -> Vec<u8> {
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
        if matches!(wire::kind(datagram, 0), Some(Kind::Fetch | Kind::Read)) {
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

#[test]
fn the_acceptor_in_the_kernel_conforms() {
    let cases = corpus().unwrap_or_else(|error| panic!("{error}"));
    let mut played: BTreeMap<&str, usize> = BTreeMap::new();
    let mut failures: Vec<Failure> = Vec::new();
    for (shape, ip) in shapes().into_iter().zip(IPS.into_iter().cycle()) {
        let Some(twin) = Twin::at("the_acceptor_in_the_kernel_conforms", shape, ip) else {
            return;
        };
        let target = Target {
            node: twin.acceptor.node.0,
            incarnation: twin.acceptor.incarnation.0,
            epoch: shape.epoch,
            group: GROUP.0,
            window: shape.window,
            value_bytes: shape.value_bytes,
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
            path: path_to(ip),
            nonce: 0x4e57_0000,
        };
        for case in &cases {
            device.twin.clear();
            match play(case, &mut device).unwrap_or_else(|difference| panic!("{difference}")) {
                Played::Passed => *played.entry(&case.name).or_default() += 1,
                Played::Failed(found) => failures.extend(found),
                Played::Skipped(_) => {}
                Played::Unshown(why) => panic!("{}: {why}", case.name),
            }
        }
        device.twin.compare_counters().expect("the map can be read");
    }
    for failure in &failures {
        eprintln!("{failure}");
    }
    assert!(failures.is_empty(), "{} fields", failures.len());
    let narrow = |case: &&consensus::conformance::Case| {
        let need = consensus::conformance::Need::Narrow;
        !case.needs.contains(&need)
    };
    let unplayed: Vec<_> = cases
        .iter()
        .filter(narrow)
        .filter(|case| !played.contains_key(&*case.name))
        .map(|case| &case.name)
        .collect();
    assert!(unplayed.is_empty(), "{unplayed:?}");
    eprintln!(
        "{} of {} cases, {} times in all",
        played.len(),
        cases.len(),
        played.values().sum::<usize>()
    );
}

/// A message that a few leaders might send, well-formed or nearly so.
fn message(random: &mut Random, twin: &Twin) -> Vec<u8> {
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
fn wrapped(random: &mut Random, ip: IpAddr, datagram: &[u8]) -> Vec<u8> {
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
fn disturb(random: &mut Random, twin: &Twin) {
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
fn converse(
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

#[test]
fn random_messages_come_to_the_same_in_the_kernel() {
    let seed = setting("NEARWIRE_SEED", 1);
    let messages = setting("NEARWIRE_MESSAGES", MESSAGES);
    eprintln!("REPRODUCE WITH: NEARWIRE_SEED={seed} cargo test --test privileged_xdp random");
    let keyed = Shape {
        key: Some(Key([1, 2])),
        ..Shape::SMALL
    };
    let mut random = Random::new(seed);
    let mut answers: BTreeMap<u8, u64> = BTreeMap::new();
    let mut totals = [0; Count::COUNT];
    for (shape, ip) in [Shape::SMALL, keyed].into_iter().zip(IPS) {
        let Some(mut twin) = Twin::at("random_messages_come_to_the_same_in_the_kernel", shape, ip)
        else {
            return;
        };
        let found = converse(&mut random, &mut twin, messages / 2);
        for (kind, times) in found.unwrap_or_else(|difference| panic!("{difference}")) {
            *answers.entry(kind).or_default() += times;
        }
        twin.compare_counters().expect("the map can be read");
        for count in Count::all() {
            totals[count.index()] += twin.count(count);
        }
    }
    for count in Count::all() {
        eprintln!("{:8} {}", totals[count.index()], count.name());
        let is_never = totals[count.index()] == 0;
        assert_eq!(is_never, NEVER.contains(&count), "{}", count.name());
    }
    let kinds = [
        Kind::Promise,
        Kind::Vote,
        Kind::Empty,
        Kind::Outside,
        Kind::Accepted,
        Kind::Ack,
        Kind::Nack,
    ];
    for kind in kinds {
        let times = answers.get(&(kind as u8)).copied().unwrap_or_default();
        eprintln!("{times:8} {kind:?}");
        assert!(times > 100, "{kind:?} {times} times");
    }
}

#[test]
fn a_defect_of_the_step_shows_as_a_difference() {
    let Some(mut twin) = Twin::new("a_defect_of_the_step_shows_as_a_difference", Shape::SMALL)
    else {
        return;
    };
    for mutation in DEFECTS {
        twin.clear();
        mutate(Some(mutation));
        let found = converse(&mut Random::new(1), &mut twin, MESSAGES);
        mutate(None);
        assert!(found.is_err(), "{} is not found", mutation.name());
    }
}

#[test]
fn the_verifier_takes_every_layout_and_the_loader_refuses_what_no_frame_holds() {
    let [small, keyed, wide, long] = shapes();
    let keys = [small.key, keyed.key];
    for shape in [small, wide, long] {
        for key in keys {
            let shape = Shape { key, ..shape };
            let began = Instant::now();
            let Some(mut twin) = Twin::new("the_verifier_takes_every_layout", shape) else {
                return;
            };
            let took = began.elapsed();
            let verified = twin.kernel().verified_instructions();
            eprintln!(
                "values of {} bytes, {}: {:?} instructions verified, loaded in {took:?}",
                shape.value_bytes,
                if key.is_some() { "tags" } else { "no tags" },
                verified.unwrap_or_else(|error| panic!("{error}"))
            );
        }
    }
    let object = OBJECT.expect("it was just loaded");
    // Each dimension at its largest: maps are allocated whole.
    for (groups, window, value_bytes) in [(1, 2, XDP_VALUE_BYTES), (4096, 2, 64), (1, 1 << 20, 64)]
    {
        let layout = Layout::new(groups, window, value_bytes).expect("a layout");
        for key in keys {
            let settings = Settings {
                layout,
                key,
                ..Twin::settings(small)
            };
            let mut loaded = Loaded::load(object, &settings)
                .unwrap_or_else(|error| panic!("{groups}, {window}, {value_bytes}: {error}"));
            let about = |group, slot| Header {
                epoch: settings.epoch,
                slot: Slot(slot),
                ..Header::new(Kind::Read, GroupId(group), NodeId(1))
            };
            // The last record of each map is there, and nothing behind it.
            for (group, slot, sent) in [(groups - 1, window - 1, true), (groups, window - 1, false)]
            {
                let mut read = about(group, slot);
                if let Some(key) = key {
                    read.tag = auth::tag(key, &read, &[]);
                }
                let frame = framed(&path_to(IPS[0]), &read.to_bytes());
                let shown = loaded.run(&frame).expect("the kernel runs it");
                assert_eq!(matches!(shown, Verdict::Sent(_)), sent, "{group} {slot}");
            }
            let verified = loaded.verified_instructions();
            eprintln!(
                "{groups} groups, {window} slots, values of {value_bytes} bytes: {:?} instructions",
                verified.unwrap_or_else(|error| panic!("{error}"))
            );
        }
    }
    let huge = Settings {
        layout: Layout::new(1, 2, 4096).expect("a layout"),
        ..Twin::settings(small)
    };
    let refused = Loaded::load(object, &huge);
    assert!(matches!(refused, Err(XdpError::ValueTooLong(4096))));
    for object in [&object[..100], b"no object"] {
        let refused = Loaded::load(object, &Twin::settings(small));
        assert!(matches!(refused, Err(XdpError::Object(_))));
    }
}

#[test]
fn what_is_not_ours_reaches_the_stack() {
    let [small, ..] = shapes();
    let Some(mut twin) = Twin::new("what_is_not_ours_reaches_the_stack", small) else {
        return;
    };
    let passed = |twin: &mut Twin, frame: &[u8]| {
        let shown = twin
            .show(frame)
            .unwrap_or_else(|difference| panic!("{difference}"));
        assert_eq!((shown.verdict, shown.count), (Verdict::Passed, None));
    };
    {
        let path = path_to(IPS[0]);
        for kind in Kind::ALL.iter().filter(|kind| !kind.is_for_acceptor()) {
            let header = Header::new(*kind, GROUP, NodeId(1));
            passed(&mut twin, &framed(&path, &header.to_bytes()));
        }
        passed(&mut twin, &framed(&path, b""));
        passed(&mut twin, &framed(&path, b"GET / HTTP/1.1"));
        let elsewhere = Path {
            destination_port: PORT + 1,
            ..path
        };
        let read = Header::new(Kind::Read, GROUP, NodeId(1)).to_bytes();
        passed(&mut twin, &framed(&elsewhere, &read));
    }
    // A fragment, and options behind the IPv4 header.
    let header = Header::new(Kind::Read, GROUP, NodeId(1)).to_bytes();
    for (at, byte) in [(20, 0x20), (14, 0x46), (23, 6)] {
        let mut frame = framed(&path_to(IPS[0]), &header);
        frame[at] = byte;
        passed(&mut twin, &frame);
    }
    // Two tags of either kind, in front of what would be ours.
    for outer in [[0x81, 0], [0x88, 0xa8]] {
        let mut frame = framed(&path_to(IPS[0]), &header);
        let tags = [outer[0], outer[1], 0, 5, 0x81, 0, 0, 6];
        frame.splice(12..12, tags);
        passed(&mut twin, &frame);
    }
    let Some(mut twin) = Twin::at("what_is_not_ours_reaches_the_stack", small, IPS[1]) else {
        return;
    };
    // Hop-by-hop and destination options, routing, a fragment, in front of what would be ours.
    for extension in [0, 60, 43, 44] {
        let mut frame = framed(&path_to(IPS[1]), &header);
        // Eight bytes more: UDP is next.
        frame.splice(54..54, [17, 0, 0, 0, 0, 0, 0, 0]);
        let length = (frame.len() - 54) as u16;
        frame[18..20].copy_from_slice(&length.to_be_bytes());
        frame[20] = extension;
        passed(&mut twin, &frame);
    }
    assert_eq!(twin.count(Count::Wire(Malformed::Truncated)), 0);
    assert_eq!(twin.count(Count::Step(acceptor::Drop::NotARequest)), 0);
}

#[test]
fn what_nobody_can_have_sent_reaches_the_stack() {
    let [small, ..] = shapes();
    for ip in IPS {
        let Some(mut twin) = Twin::at("what_nobody_can_have_sent_reaches_the_stack", small, ip)
        else {
            return;
        };
        let path = path_to(ip);
        let from = |source: &str| {
            let addresses = match (path.addresses, source.parse().expect("an address")) {
                (Addresses::V4 { destination, .. }, IpAddr::V4(source)) => Addresses::V4 {
                    source,
                    destination,
                },
                (Addresses::V6 { destination, .. }, IpAddr::V6(source)) => Addresses::V6 {
                    source,
                    destination,
                },
                _ => panic!("{source} is of the other family"),
            };
            Path { addresses, ..path }
        };
        let own = ip.to_string();
        let sources: &[&str] = if ip == IPS[0] {
            &[
                "0.0.0.0",
                "127.0.0.1",
                "224.0.0.1",
                "240.0.0.1",
                "255.255.255.255",
                &own,
            ]
        } else {
            &["::", "::1", "::ffff:10.0.0.1", "ff02::1", &own]
        };
        let mut paths: Vec<_> = sources.iter().map(|source| from(source)).collect();
        paths.push(Path {
            source_port: 0,
            ..path
        });
        paths.push(Path {
            source_mac: MAC,
            ..path
        });
        paths.push(Path {
            source_mac: Mac([0xff; 6]),
            ..path
        });
        let read = Header {
            epoch: Epoch(1),
            ..Header::new(Kind::Read, GROUP, NodeId(1))
        };
        for path in paths {
            let shown = twin.show(&framed(&path, &read.to_bytes()));
            let shown = shown.unwrap_or_else(|difference| panic!("{difference}"));
            assert_eq!(
                (shown.verdict, shown.count),
                (Verdict::Passed, None),
                "{path:?}"
            );
        }
    }
}

#[test]
fn what_is_for_others_reaches_the_stack_even_if_it_is_damaged() {
    let [small, ..] = shapes();
    for ip in IPS {
        let Some(mut twin) = Twin::at("what_is_for_others_reaches_the_stack", small, ip) else {
            return;
        };
        let read = Header {
            epoch: Epoch(1),
            slot: Slot(1),
            ..Header::new(Kind::Read, GROUP, NodeId(1))
        };
        let read = read.to_bytes();
        let mut shown = |frame: &[u8]| {
            let shown = twin.show(frame);
            shown.unwrap_or_else(|difference| panic!("{difference}"))
        };
        for (what, path) in paths_to_others(ip) {
            let whole = framed(&path, &read);
            let cut = &whole[..whole.len() - 1];
            let mut long = whole.clone();
            let at = path.header_bytes();
            long[at - 4..at - 2].copy_from_slice(&[0xff; 2]);
            for frame in [&whole[..], cut, &long] {
                let shown = shown(frame);
                assert_eq!(
                    (shown.verdict, shown.count),
                    (Verdict::Passed, None),
                    "{what}"
                );
            }
        }
        // It is the addresses: the same datagram to the twin is answered, or counted.
        let whole = framed(&path_to(ip), &read);
        assert!(matches!(shown(&whole).verdict, Verdict::Sent(_)));
        let cut = Count::Frame(frame::Malformed::Truncated);
        assert_eq!(shown(&whole[..whole.len() - 1]).count, Some(cut));
        twin.compare_counters().expect("the map can be read");
    }
}

#[test]
fn an_answer_longer_than_its_request_is_left_to_the_host() {
    let [small, ..] = shapes();
    for ip in IPS {
        let Some(mut twin) = Twin::at("an_answer_longer_than_its_request", small, ip) else {
            return;
        };
        let about = |kind, length| Header {
            epoch: Epoch(1),
            slot: Slot(1),
            ballot: Ballot::new(1, NodeId(1)),
            length,
            ..Header::new(kind, GROUP, NodeId(1))
        };
        let mut ask = |header: Header, value: &[u8]| {
            let datagram = [&header.to_bytes()[..], value].concat();
            let shown = twin.show(&framed(&path_to(ip), &datagram));
            shown.unwrap_or_else(|difference| panic!("{difference}"))
        };
        assert_eq!(
            ask(about(Kind::Accept, 9), &[7; 9]).count,
            Some(Count::Answered)
        );
        for kind in [Kind::Fetch, Kind::Read] {
            for room in 0..=16 {
                let shown = ask(about(kind, room), &vec![0; room.into()]);
                let (fits, what) = match shown.verdict {
                    Verdict::Sent(_) => (true, Count::Answered),
                    Verdict::Passed => (false, Count::NoRoom),
                    other => panic!("{other:?}"),
                };
                assert_eq!(
                    (fits, shown.count),
                    (room >= 9, Some(what)),
                    "{kind:?} {room}"
                );
            }
        }
        twin.compare_counters().expect("the map can be read");
    }
}

#[test]
fn a_processor_at_work_drops_what_it_is_shown() {
    let test = "a_processor_at_work_drops_what_it_is_shown";
    let Some(mut twin) = Twin::new(test, Shape::SMALL) else {
        return;
    };
    let accept = Header {
        epoch: Epoch(1),
        slot: Slot(1),
        ballot: Ballot::new(1, NodeId(1)),
        length: 8,
        ..Header::new(Kind::Accept, GROUP, NodeId(1))
    };
    let frame = framed(
        &path_to(IPS[0]),
        &[&accept.to_bytes()[..], &[7; 8]].concat(),
    );
    let highest = |twin: &Twin| {
        let at = twin.region().group(GROUP).expect("a group");
        twin.region().load(at, group::HIGHEST)
    };
    twin.kernel()
        .set_busy(true)
        .expect("the map can be written");
    for _ in 0..2 {
        let shown = twin.kernel().run(&frame).expect("the kernel runs it");
        assert_eq!((shown, highest(&twin)), (Verdict::Dropped, 0));
    }
    twin.kernel()
        .set_busy(false)
        .expect("the map can be written");
    for _ in 0..2 {
        let shown = twin.kernel().run(&frame).expect("the kernel runs it");
        assert!(matches!(shown, Verdict::Sent(_)), "{shown:02x?}");
        assert_eq!(highest(&twin), 1);
    }
    let counters = twin.kernel().counters().expect("the map can be read");
    let busy = Count::Step(acceptor::Drop::Busy);
    assert_eq!(counters[busy.index()], 2);
    assert_eq!(counters[Count::Answered.index()], 2);
}
