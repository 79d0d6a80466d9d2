//! A replica is killed at each named place of the acceptor's step; what it had answered stands, and
//! what it was writing is neither half there nor forgotten.
#![cfg(any(debug_assertions, feature = "kill-points"))]

mod common;

use common::{Cluster, Load, Puppet, eventually, was_killed};
use consensus::wire::{Flags, Header, Kind};
use consensus::{Ballot, GroupId, NodeId};
use std::net::UdpSocket;
use std::time::Duration;

/// Where a step can be killed, and whether a record is held there.
const POINTS: [(&str, bool); 4] = [
    ("step.locked", true),
    ("step.before-store", true),
    ("step.before-release", true),
    ("step.released", false),
];
const SLOT: u64 = 7;
const OLD: &[u8] = b"the value of the first ballot, already answered";
const NEW: &[u8] = b"the value of the second ballot!";

/// What the replica holds of the slot, as a new leader in a higher round would learn it.
fn fetch(puppet: &mut Puppet, round: u64) -> (Kind, Ballot, Vec<u8>) {
    let prepare = puppet.request(Kind::Prepare, round, 0);
    let (promise, _) = puppet.ask(&prepare, b"");
    assert_eq!(promise.kind, Kind::Promise, "{promise:?}");
    let request = puppet.request(Kind::Fetch, round, SLOT);
    let (vote, value) = puppet.ask(&request, b"");
    (vote.kind, vote.vote_ballot, value)
}

/// Restarts the replica so that it dies at the `pass`-th pass of `point`, sends it one request, and
/// starts it again. Gives the reply, and whether it died.
fn step_and_die(
    puppet: &mut Puppet,
    (point, held): (&str, bool),
    pass: u64,
    request: &Header,
    value: &[u8],
) -> (Option<Header>, bool) {
    let node = common::REPLICA.0;
    puppet.cluster.kill(node);
    puppet.cluster.start_to_die(node, point, pass);
    eventually("a replica that runs", || puppet.cluster.report(node));
    puppet.send(request, value);
    let reply = loop {
        let reply = puppet.reply_within(request, Duration::from_millis(100));
        if reply.is_some() || puppet.cluster.has_ended(node) {
            break reply;
        }
    };
    let died = match reply {
        Some(_) => {
            puppet.cluster.kill(node);
            false
        }
        None => {
            let status = puppet.cluster.end_of(node).expect("it ended");
            assert!(was_killed(status), "{status}: {}", puppet.cluster.log(node));
            true
        }
    };
    puppet.cluster.start_node(node);
    let restored = eventually("a report", || puppet.cluster.count(node, "restored"));
    let torn = u64::from(died && held);
    assert_eq!(restored, torn, "restored after {point}:{pass}");
    (reply.map(|(header, _)| header), died)
}

/// Every pass of every point while one vote is stored, each on a slot that holds an older vote.
#[test]
fn a_vote_that_was_being_replaced_is_the_old_or_the_new_one_and_never_gone() {
    let mut puppet = Puppet::start();
    let mut round = 1;
    for (point, held) in POINTS {
        let mut passes = 0;
        loop {
            let before = round;
            let accept = puppet.request(Kind::Accept, before, SLOT);
            let (accepted, _) = puppet.ask(&accept, OLD);
            assert_eq!(accepted.kind, Kind::Accepted, "{accepted:?}");
            let accept = puppet.request(Kind::Accept, before + 1, SLOT);
            let (reply, died) = step_and_die(&mut puppet, (point, held), passes + 1, &accept, NEW);
            let (kind, ballot, value) = fetch(&mut puppet, before + 2);
            let at = format!("{point}:{}", passes + 1);
            assert_eq!(kind, Kind::Vote, "an answered vote is gone after {at}");
            let new = Ballot::new(before + 1, common::SPEAKER);
            let old = Ballot::new(before, common::SPEAKER);
            // Released is published; before that the old vote stands.
            let expected = if held && died { (old, OLD) } else { (new, NEW) };
            assert_eq!((ballot, value.as_slice()), expected, "after {at}");
            round = before + 3;
            if !died {
                let reply = reply.expect("a replica that lives answers");
                assert_eq!(reply.kind, Kind::Accepted);
                break;
            }
            passes += 1;
        }
        // The entry's lock is taken and released once; slot, ballot, length and the value's words
        // are stored.
        let expected = match point {
            "step.before-store" => 3 + NEW.len().div_ceil(8) as u64,
            _ => 1,
        };
        assert_eq!(passes, expected, "passes of {point} in one vote");
    }
}

/// A vote that was never answered may be missing, but is never half there.
#[test]
fn a_first_vote_that_was_being_stored_is_whole_or_absent() {
    let mut puppet = Puppet::start();
    for (index, (point, held)) in POINTS.into_iter().enumerate() {
        // Each in a slot of its own: `SLOT` in the ring's next turn would be trimmed away first.
        let slot = 100 + index as u64;
        let round = 1 + 2 * index as u64;
        let node = common::REPLICA.0;
        puppet.cluster.kill(node);
        puppet.cluster.start_to_die(node, point, 1);
        eventually("a replica that runs", || puppet.cluster.report(node));
        let accept = puppet.request(Kind::Accept, round, slot);
        puppet.send(&accept, NEW);
        let status = puppet.cluster.end_of(node).expect("it ends");
        assert!(was_killed(status));
        puppet.cluster.start_node(node);
        let prepare = puppet.request(Kind::Prepare, round + 1, 0);
        let (promise, _) = puppet.ask(&prepare, b"");
        assert_eq!(promise.kind, Kind::Promise);
        let fetch = puppet.request(Kind::Fetch, round + 1, slot);
        let (vote, value) = puppet.ask(&fetch, b"");
        if held {
            assert_eq!((vote.kind, value), (Kind::Empty, Vec::new()), "{point}");
        } else {
            assert_eq!((vote.kind, value), (Kind::Vote, NEW.to_vec()), "{point}");
        }
        // Highest was raised before anything was stored: phase 1 would ask for the slot.
        if point != "step.locked" {
            assert!(promise.slot.0 >= slot, "{promise:?}");
        }
    }
}

/// Every pass of every point while one decided record replaces another.
#[test]
fn a_decided_record_that_was_being_replaced_is_the_old_or_the_new_one() {
    const ROUND: u64 = 1;
    let node = common::REPLICA.0;
    let mut puppet = Puppet::start();
    let decide = |puppet: &mut Puppet, upto: u64| Header {
        vote_ballot: Ballot(1),
        watermark: 1,
        flags: Flags::ACK_WANTED,
        ..puppet.request(Kind::Decide, ROUND, upto)
    };
    let mut upto = 1;
    for (point, held) in POINTS {
        let mut passes = 0;
        loop {
            let old = decide(&mut puppet, upto);
            assert_eq!(puppet.ask(&old, b"").0.kind, Kind::Ack);
            let new = decide(&mut puppet, upto + 1);
            let (_, died) = step_and_die(&mut puppet, (point, held), passes + 1, &new, b"");
            let found = eventually("a report", || puppet.cluster.count(node, "decided"));
            let expected = upto + u64::from(!(held && died));
            assert_eq!(found, expected, "after {point}:{}", passes + 1);
            upto += 2;
            if !died {
                break;
            }
            passes += 1;
        }
        // Five words of the record; when its leader was seen is raised by an exchange.
        let expected = if point == "step.before-store" { 5 } else { 1 };
        assert_eq!(passes, expected, "passes of {point} in one Decide");
    }
}

/// Asks the leader to hand over to `node`. False if that one dies before it leads.
fn transfer(cluster: &Cluster, node: u16) -> bool {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    eventually("a leader by request", || {
        let leads = |node: u16| {
            let report = cluster.report(node);
            report.is_some_and(|report| report["role"] == "leader")
        };
        if cluster.has_ended(node) {
            return Some(false);
        }
        if leads(node) {
            return Some(true);
        }
        for other in cluster
            .others(node)
            .into_iter()
            .filter(|other| leads(*other))
        {
            let request = Header {
                vote_ballot: Ballot(u64::from(node)),
                ..Header::new(Kind::Transfer, GroupId(0), NodeId::NONE)
            };
            let address = cluster.replicas()[usize::from(other) - 1].address;
            let sent = socket.send_to(&request.to_bytes(), address);
            sent.expect("loopback");
        }
        std::thread::sleep(Duration::from_millis(100));
        None
    })
}

/// The node that dies.
const NODE: u16 = 3;

/// Kills node 3 at the point under load, as a follower or as the leader.
fn die_at(cluster: &mut Cluster, load: &Load, point: &str, lead: bool) {
    // A slot passes the store point some ten times and the others about twice; heartbeats alone
    // would bring it there too.
    let mut pass = if point == "step.before-store" {
        4000
    } else {
        600
    };
    for _ in 0..5 {
        load.advance(20);
        cluster.settle(&[1, 2, 3]);
        cluster.kill(NODE);
        cluster.start_to_die(NODE, point, pass);
        let led = lead && transfer(cluster, NODE);
        let status = cluster.end_of(NODE).expect("it passes the point");
        assert!(was_killed(status), "{status}: {}", cluster.log(NODE));
        if led == lead {
            return;
        }
        // It died before it led.
        cluster.start_node(NODE);
        pass *= 4;
    }
    panic!("node {NODE} does not come to lead before it passes {point}");
}

/// Node 3 dies at each point; then the leader is killed, so that node 3's votes are needed.
fn die_under_load(lead: bool) {
    let mut cluster = Cluster::start();
    let load = Load::start("points", &cluster.fronts(&[1, 2, 3]), 4);
    for (point, held) in POINTS {
        die_at(&mut cluster, &load, point, lead);
        load.advance(50);
        cluster.start_node(NODE);
        let restored = eventually("a report", || cluster.count(NODE, "restored"));
        assert_eq!(restored, u64::from(held), "after {point}");
        cluster.settle(&[1, 2, 3]);

        let leader = cluster.leader_among(&[1, 2, 3]);
        if leader != NODE {
            cluster.kill(leader);
            load.advance(50);
            cluster.start_node(leader);
        }
    }
    let ledger = load.stop();
    cluster.settle(&[1, 2, 3]);
    for node in 1..=3 {
        ledger.check(&cluster.fronts(&[node]));
    }
}

#[test]
fn a_follower_killed_at_any_point_of_its_step_loses_nothing() {
    die_under_load(false);
}

#[test]
fn a_leader_killed_at_any_point_of_its_step_loses_nothing() {
    die_under_load(true);
}
