//! A process that starts on a region which a program is voting on.

mod common;

use common::skip;
use consensus::memory::Memory as _;
use consensus::region::{Birth, Layout, Region, group, view};
use consensus::wire::{Header, Kind};
use consensus::{Ballot, Epoch, GroupId, NodeId, Slot};
use datapath::netns::{INTERFACE, Neighbours, Node, Rig, private_bpffs};
use nearwire::mapping::Mapping;
use nearwire::offload::Offload as _;
use nearwire::xdp::{self, Attach, BPFFS, Mode, OBJECT, OnHostDeath, Pinned, Pins, Seat, Settings};
use std::net::UdpSocket;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const PORT: u16 = 4747;
const GROUP: GroupId = GroupId(0);
const WINDOW: u64 = 16;
/// How often the region is taken over.
const TIMES: usize = 40;
/// How long nothing may happen: some thousand requests come meanwhile.
const QUIET: Duration = Duration::from_millis(5);
/// Whatever takes longer does not happen.
const SOON: Duration = Duration::from_secs(10);

/// Votes for all slots in one ballot after the other, without waiting for answers.
fn flood(from: &Node, to: &Node, stop: &AtomicBool) {
    let socket = from.run(|| UdpSocket::bind((from.ipv4, 0)));
    let socket = socket
        .expect("the namespace is there")
        .expect("a free port");
    let mut round = 1;
    while !stop.load(Ordering::Relaxed) {
        let header = Header {
            epoch: Epoch(1),
            slot: Slot(1 + round % (WINDOW - 1)),
            ballot: Ballot::new(round, NodeId(2)),
            length: 8,
            ..Header::new(Kind::Accept, GROUP, NodeId(2))
        };
        let datagram = [&header.to_bytes()[..], &round.to_be_bytes()].concat();
        // Nobody listens while the program passes: that is told, and of no interest.
        let _ = socket.send_to(&datagram, (to.ipv4, PORT));
        round += 1;
    }
}

fn settings(layout: Layout, node: &Node) -> Settings {
    Settings {
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
    }
}

/// Everything that a step could have changed.
fn words(region: &Region<Mapping>) -> Vec<u64> {
    let words = region.layout().words();
    (0..words).map(|word| region.load(0, word)).collect()
}

fn take_over(node: &Node) {
    private_bpffs().expect("root may mount");
    let layout = Layout::new(1, WINDOW, 64).expect("a valid layout");
    let settings = settings(layout, node);
    let object = OBJECT.expect("an object");
    let load = || {
        let pins = Pins::new(Path::new(BPFFS), settings.birth.nonce).expect("a bpffs");
        let seat = Seat {
            interface: INTERFACE.into(),
            mode: Mode::Generic,
            attach: Attach::Link,
            on_host_death: OnHostDeath::KeepVoting,
        };
        let loaded = Pinned::load(object, &settings, pins, seat);
        let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
        let mapping = loaded.mapping(&layout).expect("maps");
        (loaded, mapping)
    };
    let (mut loaded, mapping) = load();
    let made = Region::create(mapping, layout, settings.birth, Epoch(1), 0);
    let mut region = made.expect("blank maps");
    for time in 0..TIMES {
        loaded.install().unwrap_or_else(|error| panic!("{error}"));
        let promised = |region: &Region<Mapping>| view(region, GROUP).map(|view| view.promised);
        let (before, began) = (promised(&region), Instant::now());
        while promised(&region).is_none_or(|now| Some(now) == before) {
            assert!(began.elapsed() < SOON, "take-over {time}: nobody votes");
            thread::yield_now();
        }
        // The process dies; its program stays.
        drop((loaded, region));
        let (next, mapping) = load();
        let opened = Region::open(mapping, layout, settings.birth);
        let (next_region, restored) = opened.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(
            (restored.groups, restored.entries),
            (0, 0),
            "a step was under way"
        );
        let quiet = words(&next_region);
        thread::sleep(QUIET);
        assert!(
            words(&next_region) == quiet,
            "take-over {time}: somebody votes"
        );
        let at = next_region.group(GROUP).expect("a group");
        assert!(next_region.load(at, group::HIGHEST) > 0);
        (loaded, region) = (next, next_region);
    }
}

#[test]
fn nothing_votes_on_a_region_that_is_being_opened() {
    if !nix::unistd::geteuid().is_root() || OBJECT.is_none() {
        return skip("take-over", "needs root and an XDP object");
    }
    let prefix = format!("take{}", std::process::id());
    let rig = Rig::new(&prefix, &["a", "b"], Neighbours::Static);
    let rig = rig.unwrap_or_else(|error| panic!("{error}"));
    let (acceptor, leader) = (rig.node("a"), rig.node("b"));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| flood(leader, acceptor, &stop));
        let done = scope.spawn(|| acceptor.run(|| take_over(acceptor))).join();
        stop.store(true, Ordering::Relaxed);
        done.expect("nothing was found")
            .expect("the namespace is there");
    });
}
