//! A leader, told what its acceptors answered: what it sends, counts and announces.
#![cfg(not(loom))]

use nearwire_consensus::leader::{Heard, Leader, LeaderTiming, MAX_DRIFT, To};
use nearwire_consensus::quorum::{Electorate, Member, MemberRole, Membership, Quorums};
use nearwire_consensus::wire::{Flags, Header, Kind};
use nearwire_consensus::{Ballot, Epoch, GroupId, Incarnation, NodeId, Slot};
use std::net::SocketAddr;

const GROUP: GroupId = GroupId(0);
const MS: u64 = 1_000_000;
const VALUE_BYTES: usize = 64;

fn ballot(round: u64) -> Ballot {
    Ballot::new(round, NodeId(1))
}

/// The ballot that the leader under test campaigns with.
fn own() -> Ballot {
    ballot(9)
}

fn reply(kind: Kind, ballot: Ballot, slot: u64) -> Header {
    Header {
        ballot,
        slot: Slot(slot),
        ..Header::new(kind, GROUP, NodeId(0))
    }
}

const TIMING: LeaderTiming = LeaderTiming {
    heartbeat_ns: 50 * MS,
    decide_ns: MS,
    resend_ns: 5 * MS,
};
const LEASE_NS: u64 = 4 * MS;

struct Script {
    leader: Leader,
    electorate: Electorate,
    now_ns: u64,
}

/// A leader of three that has applied nothing yet.
fn script() -> Script {
    let member = |number: u16| Member {
        node: NodeId(number),
        incarnation: Incarnation(u32::from(number)),
        address: SocketAddr::from(([127, 0, 0, 1], number)),
        priority: 0,
        role: MemberRole::Voter,
    };
    Script {
        leader: Leader::new(own(), GROUP, 8, VALUE_BYTES, TIMING, 0, Slot::NONE),
        electorate: Electorate::of(Membership {
            epoch: Epoch(1),
            members: (1..=3).map(member).collect(),
            quorums: Quorums::majority(3).expect("possible"),
        }),
        now_ns: MS,
    }
}

/// One whose phase 1 found nothing.
fn leading() -> Script {
    let mut script = script();
    script.promise(0, own(), 0, 1);
    script.promise(1, own(), 0, 1);
    script.sent();
    assert!(script.leader.leads());
    script
}

impl Script {
    fn promise(&mut self, place: usize, ballot: Ballot, highest: u64, trim: u64) -> Heard {
        let promise = Header {
            watermark: trim,
            ..reply(Kind::Promise, ballot, highest)
        };
        self.leader.promised(place, &promise, &self.electorate)
    }

    fn vote(&mut self, place: usize, slot: u64, round: u64, value: &[u8]) {
        let vote = Header {
            vote_ballot: ballot(round),
            ..reply(Kind::Vote, own(), slot)
        };
        self.leader.fetched(place, &vote, value);
    }

    fn empty(&mut self, place: usize, slot: u64) {
        let empty = reply(Kind::Empty, own(), slot);
        self.leader.fetched(place, &empty, &[]);
    }

    fn accepted(&mut self, place: usize, ballot: Ballot, slot: u64) {
        self.leader
            .accepted(place, &reply(Kind::Accepted, ballot, slot));
    }

    fn propose(&mut self, value: &[u8]) {
        self.leader
            .push(value.len(), |batch| batch.extend_from_slice(value));
    }

    fn sent(&mut self) -> Vec<(To, Header, Vec<u8>)> {
        let mut sent = Vec::new();
        self.leader
            .send(self.now_ns, &self.electorate, &mut |order| {
                sent.push((order.to, order.header, order.value.to_vec()));
            });
        sent
    }

    /// The slots and values of the packets of `kind` that it sends now.
    fn sends(&mut self, kind: Kind) -> Vec<(u64, Vec<u8>)> {
        let sent = self.sent().into_iter();
        sent.filter(|(_, header, _)| header.kind == kind)
            .map(|(_, header, value)| (header.slot.0, value))
            .collect()
    }

    fn decided(&mut self) -> Vec<Vec<u8>> {
        let next = || self.leader.next_decided(&self.electorate);
        std::iter::from_fn(next).map(|(value, _)| value).collect()
    }
}

#[test]
fn a_quorum_of_promises_of_its_own_ballot_begins_the_fetching() {
    let mut script = script();
    script.promise(0, own(), 1, 1);
    assert!(script.leader.is_preparing(), "one is no quorum");
    script.promise(0, own(), 1, 1);
    assert!(script.leader.is_preparing(), "one told twice is one");
    script.promise(1, ballot(8), 1, 1);
    assert!(script.leader.is_preparing(), "that was an earlier campaign");
    script.promise(1, own(), 1, 1);
    assert!(!script.leader.is_preparing());
}

#[test]
fn the_highest_of_all_promises_is_fetched() {
    let mut script = script();
    script.promise(0, own(), 3, 1);
    script.promise(1, own(), 1, 1);
    let slots: Vec<_> = script.sends(Kind::Fetch).into_iter().collect();
    assert_eq!(slots.iter().map(|(slot, _)| *slot).max(), Some(3));
}

#[test]
fn what_was_trimmed_is_learned_before_anything_is_fetched() {
    let mut script = script();
    script.promise(0, own(), 6, 5);
    assert_eq!(script.promise(1, own(), 6, 1), Heard::Behind(Slot(5)));
    assert!(script.sends(Kind::Fetch).is_empty());
    script.leader.caught_up(Slot(4), &script.electorate);
    let slots = script.sends(Kind::Fetch);
    assert_eq!(slots.iter().map(|(slot, _)| *slot).min(), Some(5));
}

#[test]
fn a_slot_waits_for_a_quorum_of_answers() {
    let mut script = script();
    script.promise(0, own(), 1, 1);
    script.promise(1, own(), 1, 1);
    script.sent();
    script.empty(0, 1);
    assert!(script.sends(Kind::Accept).is_empty());
    script.vote(1, 1, 4, b"found");
    assert_eq!(script.sends(Kind::Accept), [(1, b"found".to_vec())]);
}

#[test]
fn the_vote_of_the_highest_ballot_is_proposed_again() {
    for (first, second) in [(3, 4), (4, 3)] {
        let mut script = script();
        script.promise(0, own(), 1, 1);
        script.promise(1, own(), 1, 1);
        script.sent();
        script.vote(0, 1, first, &[first as u8]);
        script.vote(1, 1, second, &[second as u8]);
        assert_eq!(script.sends(Kind::Accept), [(1, vec![4])]);
    }
}

#[test]
fn every_value_stays_in_its_slot_and_a_hole_is_filled() {
    let mut script = script();
    script.promise(0, own(), 3, 1);
    script.promise(1, own(), 3, 1);
    script.sent();
    for place in [0, 1] {
        script.vote(place, 1, 2, b"one");
        script.empty(place, 2);
        script.vote(place, 3, 2, b"three");
    }
    let expected = [(1, b"one".to_vec()), (2, vec![]), (3, b"three".to_vec())];
    assert_eq!(script.sends(Kind::Accept), expected);
    assert!(script.leader.leads());
}

#[test]
fn a_value_is_decided_by_a_quorum_of_votes_in_its_own_ballot() {
    let mut script = leading();
    script.propose(b"value");
    assert_eq!(script.sends(Kind::Accept), [(1, b"value".to_vec())]);
    for (place, of) in [(0, own()), (0, own()), (1, ballot(8))] {
        script.accepted(place, of, 1);
        assert!(script.decided().is_empty(), "one vote is no quorum");
    }
    script.accepted(1, own(), 1);
    assert_eq!(script.decided(), [b"value".to_vec()]);
}

#[test]
fn only_what_is_decided_is_announced() {
    let mut script = leading();
    for value in [[1; VALUE_BYTES], [2; VALUE_BYTES]] {
        script.propose(&value);
    }
    assert_eq!(script.sends(Kind::Accept).len(), 2);
    script.accepted(0, own(), 1);
    script.accepted(1, own(), 1);
    assert_eq!(script.decided().len(), 1);
    let mut announced = Vec::new();
    script.now_ns += 100 * MS;
    script
        .leader
        .announce(script.now_ns, &script.electorate, &mut |order| {
            announced.push((order.header.kind, order.header.slot));
        });
    assert_eq!(announced, [(Kind::Decide, Slot(1))]);
}

#[test]
fn a_barrier_counts_the_acknowledgements_of_its_own_send() {
    let mut script = leading();
    let asks = |script: &mut Script| {
        let sent = script.sent().into_iter();
        let mut asked = sent.filter(|(_, header, _)| header.kind == Kind::Decide);
        asked.next().expect("the barrier is sent").1
    };
    let number = script.leader.ask_barrier();
    let first = asks(&mut script);
    script.now_ns += 10 * MS;
    let second = asks(&mut script);
    let mut acknowledge = |place: usize, sent: Header| {
        let ack = Header {
            kind: Kind::Ack,
            ..sent
        };
        script.leader.acknowledged(place, &ack, &script.electorate);
        script.leader.confirmed() >= number
    };
    assert!(!acknowledge(0, first) && !acknowledge(1, first));
    assert!(!acknowledge(0, second));
    assert!(acknowledge(1, second));
}

/// A leader of three that asks for leases of [`LEASE_NS`].
fn leading_by_lease() -> Script {
    let mut script = script();
    script.leader = Leader::new(own(), GROUP, 8, VALUE_BYTES, TIMING, LEASE_NS, Slot::NONE);
    script.promise(0, own(), 0, 1);
    script.promise(1, own(), 0, 1);
    script.sent();
    script
}

#[test]
fn a_lease_counts_from_when_a_quorum_was_asked_for_it() {
    let mut script = leading_by_lease();
    assert!(
        !script.leader.holds_lease(script.now_ns),
        "nobody was asked"
    );
    let asked_ns = script.now_ns;
    let decides = |script: &mut Script| {
        let sent = script.sent().into_iter().map(|(_, header, _)| header);
        sent.filter(|header| header.kind == Kind::Decide)
            .collect::<Vec<_>>()
    };
    let [renewal] = decides(&mut script)[..] else {
        panic!("it asks once")
    };
    assert!(renewal.flags.has(Flags::LEASE.with(Flags::ACK_WANTED)));
    let ack = |nonce| Header {
        nonce,
        ..reply(Kind::Ack, own(), renewal.slot.0)
    };
    script.now_ns += LEASE_NS / 4;
    let electorate = script.electorate.clone();
    script
        .leader
        .acknowledged(0, &ack(renewal.nonce), &electorate);
    assert!(
        !script.leader.holds_lease(script.now_ns),
        "one is no quorum"
    );
    script
        .leader
        .acknowledged(1, &ack(renewal.nonce + 1), &electorate);
    assert!(
        !script.leader.holds_lease(script.now_ns),
        "that was another sending"
    );
    script
        .leader
        .acknowledged(1, &ack(renewal.nonce), &electorate);
    assert!(script.leader.holds_lease(script.now_ns));
    assert_eq!(decides(&mut script), [], "most of it is left");
    let end_ns = asked_ns + LEASE_NS - LEASE_NS / MAX_DRIFT;
    assert!(script.leader.holds_lease(end_ns - 1));
    assert!(!script.leader.holds_lease(end_ns));
    script.now_ns = end_ns;
    assert_eq!(decides(&mut script).len(), 1, "it is renewed");
}

#[test]
fn who_is_refused_for_anothers_lease_asks_again_when_it_has_run_out() {
    let mut script = script();
    assert_eq!(script.sends(Kind::Prepare).len(), 1);
    let refusal = Header {
        flags: Flags::LEASE,
        watermark: 1_000,
        ..reply(Kind::Nack, own(), 0)
    };
    assert_eq!(script.leader.refused(script.now_ns, &refusal), Heard::Fine);
    assert_eq!(script.leader.next_timer_ns(), script.now_ns + 1_000);
    assert_eq!(script.sends(Kind::Prepare).len(), 0);
    script.now_ns += 1_000;
    assert_eq!(script.sends(Kind::Prepare).len(), 1);
}
