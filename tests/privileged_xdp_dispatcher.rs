//! An acceptor in libxdp's dispatcher, with another program in front of it.

mod xdp_twin;

use aya::maps::{Map, MapData, PerCpuArray};
use consensus::memory::Memory as _;
use consensus::region::{Birth, Layout, Region, group, vote};
use consensus::wire::{Header, Kind, Parsed, parse};
use consensus::{Ballot, Epoch, GroupId, NodeId, Slot};
use datapath::netns::{INTERFACE, Neighbours, Node, Rig, private_bpffs};
use nearwire::mapping::Mapping;
use nearwire::offload::Offload as _;
use nearwire::xdp::{
    self, Attach, BPFFS, Bystander, Mode, OBJECT, OnHostDeath, Pinned, Pins, Seat, Settings, Sight,
    dispatcher,
};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};
use xdp_twin::{PORT, in_namespace, skip};

const GROUP: GroupId = GroupId(0);
const LEADER: NodeId = NodeId(2);
const VALUE_BYTES: usize = 64;
/// Requests of each phase.
const ROUNDS: u64 = 20;
/// An answer that takes longer was lost.
const SOON: Duration = Duration::from_secs(20);
/// An answer that has not come by then does not come: nobody is there who could give it.
const NEVER: Duration = Duration::from_millis(200);
/// A filter that libxdp's authors ship: it lets pass what no rule names, at priority 10.
const FILTER: &str = "/usr/lib/x86_64-linux-gnu/bpf/xdpfilt_alw_all.o";
/// Where its maps are pinned, in which it counts by verdict.
const FILTERS_MAPS: &str = "/sys/fs/bpf/filter";
const XDP_PASS: u32 = 2;

struct Asking {
    /// Not connected, so that it is not told that nobody listens.
    socket: UdpSocket,
    to: SocketAddr,
    next: u64,
}

impl Asking {
    fn new(from: &Node, to: &Node) -> Self {
        let bound = from.run(|| UdpSocket::bind((from.ipv4, 0)));
        Self {
            socket: bound.expect("the namespace is there").expect("a port"),
            to: (to.ipv4, PORT).into(),
            next: 1,
        }
    }

    /// Asks for a vote. Whether it was given; nobody but a program could.
    fn is_answered(&mut self, patience: Duration) -> bool {
        let header = Header {
            epoch: Epoch(1),
            slot: Slot(self.next),
            ballot: Ballot::new(1, LEADER),
            length: 8,
            nonce: self.next as u32,
            ..Header::new(Kind::Accept, GROUP, LEADER)
        };
        let datagram = [&header.to_bytes()[..], &self.next.to_be_bytes()].concat();
        self.socket
            .set_read_timeout(Some(patience))
            .expect("a time");
        self.send(&datagram);
        let mut room = [0; 2048];
        let Ok(length) = self.socket.recv(&mut room) else {
            return false;
        };
        let Parsed::Ours(answer, _) = parse(&room[..length], VALUE_BYTES) else {
            panic!("{:02x?}", &room[..length]);
        };
        assert_eq!((answer.kind, answer.nonce), (Kind::Accepted, header.nonce));
        self.next += 1;
        true
    }

    fn send(&self, datagram: &[u8]) {
        let sent = self.socket.send_to(datagram, self.to);
        sent.expect("a way there");
    }

    fn are_answered(&mut self) {
        for _ in 0..ROUNDS {
            assert!(self.is_answered(SOON), "slot {} is not answered", self.next);
        }
    }
}

fn loader(arguments: &[&str]) {
    let ended = Command::new("/usr/sbin/xdp-loader")
        .args(arguments)
        .output();
    let ended = ended.expect("xdp-tools");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{arguments:?}: {said}");
}

/// How many frames the filter has let pass.
fn filtered() -> u64 {
    let map = MapData::from_pin(Path::new(FILTERS_MAPS).join("xdp_stats_map"));
    let map = Map::PerCpuArray(map.expect("the filter pinned it"));
    let counts = PerCpuArray::<_, [u64; 2]>::try_from(&map).expect("frames and bytes");
    let counts = counts.get(&XDP_PASS, 0).expect("a verdict");
    counts.iter().map(|[frames, _]| frames).sum()
}

/// Installs as a supervisor does, again and again: xdp-loader takes its time.
fn install(pinned: &mut Pinned) {
    let began = Instant::now();
    while let Err(error) = pinned.install() {
        assert!(began.elapsed() < SOON, "{error}");
        thread::sleep(Duration::from_millis(5));
    }
    assert!(pinned.is_installed());
}

fn words(region: &Region<Mapping>) -> Vec<u64> {
    let words = region.layout().words();
    (0..words).map(|word| region.load(0, word)).collect()
}

fn goes_on_beside_a_filter(node: &Node, asking: &mut Asking, mode: Mode) {
    private_bpffs().expect("root may mount");
    let layout = Layout::new(3, 256, VALUE_BYTES).expect("a valid layout");
    let settings = Settings {
        port: PORT,
        layout,
        birth: Birth {
            cluster: 1,
            node: NodeId(1),
            nonce: 5,
            boot: 7,
        },
        own: xdp::own(INTERFACE, node.ipv4.into()).expect("the node's own address"),
        epoch: Epoch(1),
        lease_ns: 0,
        keys: None,
        is_rehearsal: false,
    };
    let pins = || Pins::new(Path::new(BPFFS), settings.birth.nonce).expect("a bpffs");
    let load = || {
        let seat = Seat {
            interface: INTERFACE.into(),
            mode,
            attach: Attach::Dispatcher,
            on_host_death: OnHostDeath::KeepVoting,
        };
        let object = OBJECT.expect("an object");
        let loaded = Pinned::load(object, &settings, pins(), seat);
        let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
        let mapping = loaded.mapping(&layout).expect("maps");
        (loaded, mapping)
    };
    let answered = |pinned: &Pinned| {
        let counters = pinned.counters();
        let found = counters.into_iter().find(|(name, _)| *name == "answered");
        found.expect("a counter").1
    };
    let (mut pinned, mapping) = load();
    let made = Region::create(mapping, layout, settings.birth, Epoch(1), 0);
    let region = made.expect("blank maps");
    assert!(!asking.is_answered(NEVER), "it votes before it may");
    install(&mut pinned);
    asking.are_answered();
    assert_eq!(answered(&pinned), ROUNDS);

    // Another one comes, in front: libxdp builds the dispatcher anew.
    let skb = if mode == Mode::Native {
        "native"
    } else {
        "skb"
    };
    let maps = ["--pin-path", FILTERS_MAPS];
    loader(&[&["load", "--mode", skb][..], &maps, &[INTERFACE, FILTER]].concat());
    assert!(pinned.is_installed());
    let before = filtered();
    asking.are_answered();
    assert!(filtered() >= before + ROUNDS);
    assert_eq!(answered(&pinned), 2 * ROUNDS);

    // The process dies, and libxdp's pins keep the program.
    drop((pinned, region));
    asking.are_answered();
    let seen = Sight::of(pins()).unwrap_or_else(|error| panic!("{error}"));
    let attachment = seen.attachment.expect("it is attached");
    assert_eq!(attachment.interface.as_deref(), Some(INTERFACE));
    assert_eq!(
        (attachment.mode, attachment.votes),
        (mode.name(), Some(true))
    );
    assert!(attachment.is_pinned);

    // The next one opens the region, on which nothing votes any more.
    let (mut pinned, mapping) = load();
    let (region, _) = Region::open(mapping, layout, settings.birth).expect("a whole region");
    let quiet = words(&region);
    assert!(!asking.is_answered(NEVER), "it votes while it is opened");
    assert!(words(&region) == quiet, "somebody votes");
    install(&mut pinned);
    asking.are_answered();

    for slot in 1..asking.next {
        let mut value = [0; VALUE_BYTES];
        let found = vote(&region, GROUP, Slot(slot), VALUE_BYTES, &mut value);
        assert_eq!(found, Some((Ballot::new(1, LEADER), 8)), "slot {slot}");
        assert_eq!(value[..8], slot.to_be_bytes());
    }
    let at = region.group(GROUP).expect("a group");
    assert_eq!(region.load(at, group::HIGHEST), 4 * ROUNDS);

    // It goes, and the other stays.
    pinned.remove().unwrap_or_else(|error| panic!("{error}"));
    assert!(!pinned.is_installed());
    let before = filtered();
    assert!(!asking.is_answered(NEVER), "it votes after it was removed");
    assert!(filtered() > before, "the filter went with it");

    // Somebody else takes everything off.
    install(&mut pinned);
    assert!(asking.is_answered(SOON));
    loader(&["unload", "--all", INTERFACE]);
    assert!(!pinned.is_installed());
    install(&mut pinned);
    assert!(asking.is_answered(SOON));

    // One that is behind it sees what the acceptor lets pass, and no request.
    loader(
        &[
            &["load", "--mode", skb, "--prio", "90"][..],
            &maps,
            &[INTERFACE, FILTER],
        ]
        .concat(),
    );
    let before = filtered();
    for _ in 0..ROUNDS {
        asking.send(b"something else");
    }
    let began = Instant::now();
    while filtered() < before + ROUNDS {
        assert!(
            began.elapsed() < SOON,
            "what is not for the acceptor does not pass"
        );
        thread::sleep(Duration::from_millis(5));
    }
    let before = filtered();
    asking.are_answered();
    assert!(filtered() < before + ROUNDS, "requests pass");
    drop(pinned);
    pins().detach().unwrap_or_else(|error| panic!("{error}"));
    assert!(!asking.is_answered(NEVER), "it votes after it was detached");
}

#[test]
fn an_acceptor_votes_beside_another_program() {
    let test = "an_acceptor_votes_beside_another_program";
    if !nix::unistd::geteuid().is_root() || OBJECT.is_none() {
        return skip(test, "needs root and an XDP object");
    }
    if let Some(lacking) = dispatcher::lacking() {
        return skip(test, &lacking);
    }
    for (prefix, mode) in [("dispg", Mode::Generic), ("dispn", Mode::Native)] {
        let prefix = format!("{prefix}{}", std::process::id());
        let rig = Rig::new(&prefix, &["a", "b"], Neighbours::Static);
        let rig = rig.unwrap_or_else(|error| panic!("{error}"));
        let (acceptor, leader) = (rig.node("a"), rig.node("b"));
        // Where the acceptor's cable ends: see `Bystander::attach`.
        let pass = || Bystander::attach(OBJECT.expect("an object"), "p1", mode);
        let _pass = in_namespace(&rig.bridge(), pass).unwrap_or_else(|error| panic!("{error}"));
        let mut asking = Asking::new(leader, acceptor);
        thread::scope(|scope| {
            let work = || acceptor.run(|| goes_on_beside_a_filter(acceptor, &mut asking, mode));
            let done = scope.spawn(work).join();
            done.expect("no panic").expect("the namespace is there");
        });
    }
}
