//! Kernel and software step one region at once, on several processors, for leaders that duel.

mod xdp_twin;

use consensus::acceptor::{Acceptor, Drop, Step};
use consensus::conformance::Shape;
use consensus::frame::{self, Addresses, Mac, Path};
use consensus::memory::{Buffers, Memory as _};
use consensus::random::Random;
use consensus::region::{entry, group, vote};
use consensus::tally::Count;
use consensus::wire::{Header, Kind, Parsed, parse};
use consensus::{Ballot, Epoch, GroupId, NodeId, Slot};
use nearwire::xdp::{Loaded, OBJECT, Verdict};
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use xdp_twin::{PORT, Twin, setting};

const GROUP: GroupId = GroupId(1);
const SHAPE: Shape = Shape {
    window: 2,
    value_bytes: 1384,
    lease_ns: 1,
    ..Shape::SMALL
};
/// The last one of them steps in this process.
const LEADERS: u16 = 4;
/// Messages of each of them, unless NEARWIRE_MESSAGES says otherwise.
const MESSAGES: u64 = 200_000;

const PATH: Path = Path {
    source_mac: Mac([2, 0, 0, 0, 0, 1]),
    destination_mac: Mac([2, 0, 0, 0, 0, 2]),
    vlan: None,
    addresses: Addresses::V4 {
        source: Ipv4Addr::new(10, 0, 0, 1),
        destination: Ipv4Addr::new(10, 0, 0, 2),
    },
    source_port: 40_000,
    destination_port: PORT,
};

/// The one value of a ballot and slot, whose length differs, too.
fn value(ballot: Ballot, slot: Slot) -> Vec<u8> {
    let mut random = Random::new(ballot.0 << 20 ^ slot.0);
    let length = 8 + random.below(SHAPE.value_bytes as u64 - 7);
    (0..length).map(|_| random.next() as u8).collect()
}

/// Where a leader's requests go.
enum Way<'a> {
    Kernel(&'a Loaded),
    Software(&'a Loaded, Acceptor),
}

impl Way<'_> {
    /// The answer and its value, or nothing if the request was dropped.
    fn ask(&self, header: &Header, value: &[u8]) -> Option<(Header, Vec<u8>)> {
        match self {
            Self::Kernel(loaded) => {
                let mut bytes = vec![0; PATH.header_bytes()];
                bytes.extend(header.to_bytes());
                bytes.extend(value);
                PATH.write(&mut bytes, header.to_bytes().len() + value.len())?;
                if header.kind == Kind::Fetch {
                    // Behind the packet there is room for the vote.
                    bytes.resize(bytes.len() + SHAPE.value_bytes, 0);
                }
                let verdict = loaded.run(&bytes).unwrap_or_else(|error| panic!("{error}"));
                let Verdict::Sent(answer) = verdict else {
                    assert_eq!(verdict, Verdict::Dropped);
                    return None;
                };
                let frame::Parsed::Ours(_, at) = frame::parse(&answer, PATH.source_port) else {
                    panic!("{answer:02x?}");
                };
                match parse(&answer[at], SHAPE.value_bytes) {
                    Parsed::Ours(header, value) => Some((header, value.to_vec())),
                    other => panic!("{other:?}"),
                }
            }
            Self::Software(loaded, acceptor) => {
                let mut reply = vec![0; SHAPE.value_bytes];
                let mut payload = Buffers {
                    request: value,
                    reply: &mut reply,
                };
                match acceptor.step(loaded.region(), 0, header, &mut payload) {
                    Step::Reply(header, _) => {
                        reply.truncate(header.length.into());
                        Some((header, reply))
                    }
                    Step::Dropped(Drop::Busy) => None,
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

/// What all leaders know together.
#[derive(Default)]
struct Known {
    /// The highest ballot of which a promise or a vote has been answered.
    promised: AtomicU64,
    votes: AtomicU64,
    /// Every vote that was answered.
    accepted: Mutex<HashMap<(u64, u64), u64>>,
}

fn lead(node: NodeId, way: &Way<'_>, known: &Known) {
    let mut random = Random::new(node.0.into());
    let mut ballot = Ballot::new(1, node);
    let mut mine = Vec::new();
    let mut out = vec![0; SHAPE.value_bytes];
    for _ in 0..setting("NEARWIRE_MESSAGES", MESSAGES) {
        let before = known.promised.load(Ordering::SeqCst);
        let slot = Slot(1 + random.below(SHAPE.window));
        let kind = match random.below(16) {
            0 => Kind::Prepare,
            1..4 => Kind::Fetch,
            _ => Kind::Accept,
        };
        if random.below(2) == 0 {
            // A vote in a higher ballot is stored, and another's may be at the same time.
            ballot = Ballot::new(Ballot(before).round() + 1, node);
        }
        let sent = if kind == Kind::Accept {
            value(ballot, slot)
        } else {
            Vec::new()
        };
        let header = Header {
            epoch: Epoch(1),
            slot,
            ballot,
            length: sent.len() as u16,
            ..Header::new(kind, GROUP, node)
        };
        if let Way::Software(loaded, _) = way {
            // As the host reads votes, without a lock.
            let found = vote(loaded.region(), GROUP, slot, out.len(), &mut out);
            if let Some((ballot, length)) = found {
                assert_eq!(out[..length], value(ballot, slot), "{ballot} {slot}");
            }
        }
        let Some((answer, read)) = way.ask(&header, &sent) else {
            continue;
        };
        match answer.kind {
            Kind::Promise | Kind::Accepted => {
                assert!(
                    ballot.0 >= before,
                    "{answer:?} after a promise of {before:#x}"
                );
                known.promised.fetch_max(ballot.0, Ordering::SeqCst);
                if answer.kind == Kind::Accepted {
                    mine.push((ballot.0, slot.0));
                }
            }
            Kind::Vote => assert_eq!(read, value(answer.vote_ballot, slot), "{answer:?}"),
            Kind::Nack | Kind::Empty => {}
            other => panic!("{other:?}"),
        }
    }
    known.votes.fetch_add(mine.len() as u64, Ordering::SeqCst);
    let mut accepted = known.accepted.lock().expect("nobody has panicked");
    for (ballot, slot) in mine {
        *accepted.entry((slot, ballot)).or_default() += 1;
    }
}

#[test]
fn duelling_leaders_on_several_cores_break_no_promise_and_tear_no_vote() {
    let test = "duelling_leaders_on_several_cores_break_no_promise_and_tear_no_vote";
    // It says why if the kernel takes no programs from this process.
    let Some(twin) = Twin::new(test, SHAPE) else {
        return;
    };
    let acceptor = twin.acceptor;
    let object = OBJECT.expect("the twin was loaded");
    let loaded = Loaded::load(object, &Twin::settings(SHAPE));
    let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
    let known = Known::default();
    std::thread::scope(|scope| {
        for number in 1..=LEADERS {
            let way = if number < LEADERS {
                Way::Kernel(&loaded)
            } else {
                Way::Software(&loaded, acceptor)
            };
            let known = &known;
            scope.spawn(move || lead(NodeId(number), &way, known));
        }
    });

    let region = loaded.region();
    let at = region.group(GROUP).expect("a group");
    let promised = region.load(at, group::PROMISED);
    assert!(promised >= known.promised.load(Ordering::SeqCst));
    assert_eq!(region.load(at, group::LOCK) & 1, 0);
    let accepted = known.accepted.lock().expect("nobody has panicked");
    let mut out = vec![0; SHAPE.value_bytes];
    for slot in (1..=SHAPE.window).map(Slot) {
        let index = u64::from(GROUP.0) * SHAPE.window + slot.0 % SHAPE.window;
        let place = region.entry(index).expect("an entry");
        assert_eq!(region.load(place, entry::LOCK) & 1, 0);
        let found = vote(region, GROUP, slot, out.len(), &mut out);
        let (ballot, length) = found.expect("somebody voted");
        assert_eq!(out[..length], value(ballot, slot));
        // No vote that was answered is above the one that stands.
        let highest = accepted.keys().filter(|key| key.0 == slot.0).max();
        assert!(highest.is_some_and(|highest| highest.1 <= ballot.0));
    }
    let counters = loaded.counters().expect("the map can be read");
    let busy = counters[Count::Step(Drop::Busy).index()];
    eprintln!(
        "{} votes under {} ballots and slots, {busy} of {} requests to the kernel found a record busy",
        known.votes.load(Ordering::SeqCst),
        accepted.len(),
        counters.iter().sum::<u64>()
    );
    assert!(accepted.len() > 1000, "the leaders did not duel");
}
