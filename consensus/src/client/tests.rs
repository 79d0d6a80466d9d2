use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::string::{String, ToString};
use std::{assert, assert_eq, format, vec};

const MEMBERS: u16 = 3;
const MS: u64 = 1_000_000;
const GROUP: GroupId = GroupId(4);

fn address(node: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node as u8], 4747))
}

fn client_address() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 99], 9000))
}

fn config(seed: u64) -> Config {
    Config {
        members: (1..=MEMBERS)
            .map(|node| (NodeId(node), address(node)))
            .collect(),
        group: GROUP,
        epoch: Epoch(1),
        max_value: 200,
        max_in_flight: 32,
        seed,
    }
}

fn client() -> Client {
    Client::new(config(1)).expect("a valid configuration")
}

/// What all replicas agree on; the log itself is not modelled, only the rule by which it is
/// applied.
#[derive(Default)]
struct Replicated {
    sessions: BTreeMap<u64, Applied>,
    last_session: u64,
    commands: Vec<Vec<u8>>,
}

#[derive(Default)]
struct Applied {
    next: u64,
    replies: BTreeMap<u64, Vec<u8>>,
}

impl Replicated {
    fn answer(&mut self, header: &Header, value: &[u8]) -> (SessionId, Vec<u8>) {
        let mut out = Vec::new();
        for entry in envelope::entries(value) {
            let entry = entry.expect("clients send well-formed entries");
            assert_eq!(
                header.flags.has(Flags::QUERY),
                entry.kind == EntryKind::Query
            );
            let (sequence, status, body) = match entry.kind {
                EntryKind::Open => {
                    self.last_session += 1;
                    let applied = Applied {
                        next: 1,
                        ..Applied::default()
                    };
                    self.sessions.insert(self.last_session, applied);
                    (
                        entry.session.0,
                        Status::Opened,
                        self.last_session.to_be_bytes().to_vec(),
                    )
                }
                EntryKind::Command => self.apply(&entry),
                EntryKind::Query => (entry.sequence.0, Status::Done, entry.body.to_vec()),
                EntryKind::Clock => panic!("clients do not move the clock"),
            };
            Outcome {
                sequence: Sequence(sequence),
                status,
                body: &body,
            }
            .append(&mut out);
        }
        (header.session(), out)
    }

    fn apply(&mut self, entry: &Entry<'_>) -> (u64, Status, Vec<u8>) {
        let sequence = entry.sequence.0;
        let Some(session) = self.sessions.get_mut(&entry.session.0) else {
            return (sequence, Status::UnknownSession, Vec::new());
        };
        session.replies = session
            .replies
            .split_off(&(sequence - u64::from(entry.behind)));
        if sequence > session.next {
            return (session.next, Status::OutOfOrder, Vec::new());
        }
        if sequence < session.next {
            return match session.replies.get(&sequence) {
                Some(reply) => (sequence, Status::Done, reply.clone()),
                None => (sequence, Status::ReplyForgotten, Vec::new()),
            };
        }
        session.next += 1;
        self.commands.push(entry.body.to_vec());
        let reply = format!("{}", self.commands.len()).into_bytes();
        session.replies.insert(sequence, reply.clone());
        (sequence, Status::Done, reply)
    }
}

struct Faults {
    loss_percent: u64,
    duplicate_percent: u64,
    jitter_ns: u64,
    /// Mean time between moves of the leader; 0 for never.
    leader_stays_ns: u64,
    /// Mean time between losses of every session; 0 for never.
    sessions_live_ns: u64,
}

const CALM: Faults = Faults {
    loss_percent: 0,
    duplicate_percent: 0,
    jitter_ns: 0,
    leader_stays_ns: 0,
    sessions_live_ns: 0,
};
const STORM: Faults = Faults {
    loss_percent: 10,
    duplicate_percent: 10,
    jitter_ns: 300_000,
    leader_stays_ns: 30 * MS,
    sessions_live_ns: 0,
};

/// A network in virtual time between one client and the replicas.
struct World {
    now_ns: u64,
    random: Random,
    faults: Faults,
    leader: u16,
    /// By arrival time and a serial number; from, to, packet.
    wire: BTreeMap<(u64, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    serial: u64,
    replicated: Replicated,
}

impl World {
    fn new(seed: u64, faults: Faults) -> Self {
        Self {
            now_ns: 0,
            random: Random::new(seed),
            faults,
            leader: 2,
            wire: BTreeMap::new(),
            serial: 0,
            replicated: Replicated::default(),
        }
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.random.below(100) < percent
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, header: &Header, value: &[u8]) {
        let header = Header {
            length: value.len() as u16,
            ..*header
        };
        let packet = [&header.to_bytes()[..], value].concat();
        let copies = if self.chance(self.faults.loss_percent) {
            0
        } else {
            1 + u64::from(self.chance(self.faults.duplicate_percent))
        };
        for _ in 0..copies {
            let jitter = self.random.below(self.faults.jitter_ns + 1);
            self.serial += 1;
            let at = (self.now_ns + 25_000 + jitter, self.serial);
            self.wire.insert(at, (from, to, packet.clone()));
        }
    }

    fn drain(&mut self, client: &mut Client) {
        while let Some(Datagram { to, header, value }) = client.poll_transmit(self.now_ns) {
            assert!(value.len() <= config(0).max_value);
            let value = value.to_vec();
            self.send(client_address(), to, &header, &value);
        }
    }

    fn replica_takes(&mut self, at: SocketAddr, header: &Header, value: &[u8]) {
        let me = (1..=MEMBERS)
            .find(|&node| address(node) == at)
            .expect("a member's address");
        let reply = Header {
            nonce: header.nonce,
            ..Header::new(Kind::Response, GROUP, NodeId(me))
        };
        if me == self.leader {
            let (session, outcomes) = self.replicated.answer(header, value);
            let reply = Header {
                slot: crate::Slot(session.0),
                ..reply
            };
            self.send(at, client_address(), &reply, &outcomes);
            return;
        }
        let known = self.chance(80);
        let redirect = Header {
            kind: Kind::Redirect,
            slot: header.slot,
            vote_ballot: Ballot(if known { u64::from(self.leader) } else { 0 }),
            ..reply
        };
        let value = encode_address(address(self.leader));
        let with_address = known && self.chance(50);
        self.send(
            at,
            client_address(),
            &redirect,
            if with_address { &value } else { &[] },
        );
    }

    /// Moves to the next arrival or timer and lets it happen. False if there is neither.
    fn step(&mut self, client: &mut Client) -> bool {
        let arrival = self.wire.first_key_value().map(|(&(at, _), _)| at);
        let Some(next) = [arrival, client.poll_timeout()].into_iter().flatten().min() else {
            return false;
        };
        let passed = next.saturating_sub(self.now_ns);
        self.now_ns += passed;
        let happens = |random: &mut Random, mean: u64| {
            mean != 0 && passed != 0 && random.below(mean) < passed
        };
        if happens(&mut self.random, self.faults.leader_stays_ns) {
            self.leader = 1 + (self.random.below(MEMBERS.into())) as u16;
        }
        if happens(&mut self.random, self.faults.sessions_live_ns) {
            self.replicated.sessions.clear();
        }
        if arrival == Some(next) {
            let (_, (from, to, packet)) = self.wire.pop_first().expect("just seen");
            let crate::wire::Parsed::Ours(header, value) = crate::wire::parse(&packet, 1 << 15)
            else {
                panic!("everyone sends well-formed packets");
            };
            if to == client_address() {
                client.handle_datagram(self.now_ns, from, &header, value);
            } else {
                self.replica_takes(to, &header, value);
            }
        } else {
            client.handle_timeout(self.now_ns);
        }
        true
    }
}

fn body(token: u64) -> Vec<u8> {
    format!("command {token}").into_bytes()
}

fn token_of(body: &[u8]) -> u64 {
    let text = core::str::from_utf8(body).expect("a body made here");
    text["command ".len()..].parse().expect("a body made here")
}

/// What a run came to.
struct Outcomes {
    applied: Vec<u64>,
    ended: Vec<(u64, Result<Vec<u8>, Failure>)>,
}

/// Submits `total` commands as the window allows and runs until all have ended. `replace` may put
/// another client in the first one's place after each step.
fn run(
    world: &mut World,
    client: &mut Client,
    total: u64,
    mut replace: impl FnMut(&mut Client, &BTreeSet<u64>),
) -> Outcomes {
    let mut next = 1;
    let mut unanswered = BTreeSet::new();
    let mut ended = Vec::new();
    for _ in 0..2_000_000 {
        while next <= total && client.submit_command(next, &body(next)).is_ok() {
            unanswered.insert(next);
            next += 1;
        }
        world.drain(client);
        while let Some(event) = client.poll_event() {
            unanswered.remove(&event.token);
            ended.push((event.token, event.result));
        }
        if next > total && unanswered.is_empty() {
            // What still travels must not be applied either.
            while world.step(client) {}
            let applied = world
                .replicated
                .commands
                .iter()
                .map(|body| token_of(body))
                .collect();
            return Outcomes { applied, ended };
        }
        if next > total || client.unanswered() > 0 {
            assert!(world.step(client), "nothing will happen any more");
        }
        replace(client, &unanswered);
    }
    panic!("the run does not end");
}

/// Every command applied exactly once and in order, every reply the right one.
fn check_exactly_once(outcomes: &Outcomes, total: u64) -> Result<(), String> {
    let all: Vec<u64> = (1..=total).collect();
    if outcomes.applied != all {
        return Err(format!("applied {:?}", outcomes.applied));
    }
    for (expected, (token, result)) in all.iter().zip(&outcomes.ended) {
        if token != expected || result.as_deref() != Ok(expected.to_string().as_bytes()) {
            return Err(format!("command {expected}: event {token} {result:?}"));
        }
    }
    (outcomes.ended.len() == all.len())
        .then_some(())
        .ok_or("events are missing".to_string())
}

#[test]
fn every_command_is_applied_exactly_once_and_in_order_whatever_the_network_does() {
    for seed in 0..200 {
        let mut world = World::new(seed, STORM);
        let mut client = Client::new(config(seed)).expect("a valid configuration");
        let outcomes = run(&mut world, &mut client, 200, |_, _| {});
        check_exactly_once(&outcomes, 200).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

#[test]
fn a_client_that_asks_again_under_a_new_session_is_caught() {
    let caught = (0..20)
        .filter(|&seed| {
            let mut world = World::new(seed, STORM);
            let mut client = Client::new(config(seed)).expect("a valid configuration");
            let outcomes = run(&mut world, &mut client, 200, |client, unanswered| {
                if client.counters().timeouts > 0 {
                    *client = Client::new(config(seed)).expect("a valid configuration");
                    for &token in unanswered {
                        client
                            .submit_command(token, &body(token))
                            .expect("the same window");
                    }
                }
            });
            check_exactly_once(&outcomes, 200).is_err()
        })
        .count();
    assert!(caught > 10, "{caught} of 20");
}

#[test]
fn a_lost_session_repeats_nothing_and_reports_what_was_under_way() {
    let mut lost = 0;
    for seed in 0..100 {
        let mut world = World::new(
            seed,
            Faults {
                sessions_live_ns: 20 * MS,
                ..STORM
            },
        );
        let mut client = Client::new(config(seed)).expect("a valid configuration");
        let outcomes = run(&mut world, &mut client, 200, |_, _| {});
        let tokens: Vec<u64> = outcomes.ended.iter().map(|(token, _)| *token).collect();
        assert_eq!(tokens, (1..=200).collect::<Vec<u64>>(), "seed {seed}");
        assert!(
            outcomes.applied.is_sorted_by(|a, b| a < b),
            "seed {seed}: {:?}",
            outcomes.applied
        );
        for (token, result) in &outcomes.ended {
            match result {
                Ok(_) => assert!(outcomes.applied.contains(token), "seed {seed}: {token}"),
                Err(failure) => {
                    assert_eq!(*failure, Failure::OutcomeUnknown);
                    lost += 1;
                }
            }
        }
    }
    assert!(
        lost > 0,
        "no session was lost while something was under way"
    );
}

#[test]
fn what_is_queued_right_now_shares_datagrams() {
    let mut world = World::new(1, CALM);
    let mut client = client();
    client.submit_command(1, b"first").expect("room");
    while client.session().is_none() {
        world.drain(&mut client);
        assert!(world.step(&mut client));
    }
    for token in 2..=9 {
        client.submit_command(token, &[0; 16]).expect("room");
    }
    let mut sizes = Vec::new();
    while let Some(datagram) = client.poll_transmit(world.now_ns) {
        sizes.push(envelope::entries(datagram.value).count());
    }
    // 24 bytes and the padded body: 5 entries of 40 bytes fill 200.
    assert_eq!(sizes, [4 + 1, 4]);
}

#[test]
fn without_loss_nothing_is_sent_twice() {
    let mut world = World::new(1, CALM);
    let mut client = client();
    let outcomes = run(&mut world, &mut client, 1000, |_, _| {});
    check_exactly_once(&outcomes, 1000).expect("exactly once");
    let counters = client.counters();
    assert_eq!(
        (counters.requests, counters.repeated, counters.timeouts),
        (1000, 0, 0)
    );
}

#[test]
fn queries_need_no_session_and_are_answered_out_of_turn() {
    let mut world = World::new(3, CALM);
    let mut client = client();
    client.submit_query(7, b"how many").expect("room");
    while client.unanswered() > 0 {
        world.drain(&mut client);
        assert!(world.step(&mut client));
    }
    assert_eq!(
        client.poll_event(),
        Some(Event {
            token: 7,
            result: Ok(b"how many".to_vec())
        })
    );
    assert_eq!((client.session(), world.replicated.last_session), (None, 0));
}

#[test]
fn queries_survive_the_storm() {
    for seed in 0..50 {
        let mut world = World::new(seed, STORM);
        let mut client = Client::new(config(seed)).expect("a valid configuration");
        for token in 0..30 {
            client.submit_query(token, &body(token)).expect("room");
        }
        let mut answered = BTreeSet::new();
        while answered.len() < 30 {
            world.drain(&mut client);
            assert!(world.step(&mut client));
            while let Some(event) = client.poll_event() {
                assert_eq!(event.result, Ok(body(event.token)));
                assert!(answered.insert(event.token), "answered twice");
            }
        }
    }
}

#[test]
fn a_query_that_is_lost_is_repeated_while_later_ones_are_answered() {
    let mut client = client();
    client.submit_query(0, b"lost").expect("room");
    client.poll_transmit(0).expect("the query, which is lost");
    for token in 1..20 {
        let now_ns = token * 10 * MS;
        if client.poll_timeout().is_some_and(|due| due <= now_ns) {
            client.handle_timeout(now_ns);
        }
        while client.poll_event().is_some() {}
        client.submit_query(token, b"later").expect("room");
        while let Some(datagram) = client.poll_transmit(now_ns) {
            // Not who leads, which is asked after a time-out.
            if datagram.value.is_empty() {
                continue;
            }
            let (header, value) = (datagram.header, datagram.value.to_vec());
            if value.windows(4).any(|part| part == b"lost") {
                return;
            }
            for entry in envelope::entries(&value) {
                let sequence = entry.expect("a query").sequence.0;
                respond(
                    &mut client,
                    &header,
                    SessionId(0),
                    sequence,
                    Status::Done,
                    b"",
                );
            }
        }
    }
    panic!("it is never asked again");
}

/// A client whose session is open and which has `commands` under way, each in its own datagram.
fn under_way(commands: u64) -> (Client, Vec<Header>) {
    let mut client = client();
    client.submit_command(0, &[0; 100]).expect("room");
    let open = client.poll_transmit(0).expect("the Open").header;
    let Session::Opening { nonce, .. } = client.session else {
        panic!("the session is being opened")
    };
    respond(
        &mut client,
        &open,
        SessionId(0),
        nonce,
        Status::Opened,
        &9u64.to_be_bytes(),
    );
    for token in 1..commands {
        client.submit_command(token, &[0; 100]).expect("room");
    }
    let headers = core::iter::from_fn(|| client.poll_transmit(0).map(|d| d.header)).collect();
    (client, headers)
}

fn respond(
    client: &mut Client,
    to: &Header,
    session: SessionId,
    sequence: u64,
    status: Status,
    body: &[u8],
) {
    let mut value = Vec::new();
    Outcome {
        sequence: Sequence(sequence),
        status,
        body,
    }
    .append(&mut value);
    let header = Header {
        slot: crate::Slot(session.0),
        nonce: to.nonce,
        length: value.len() as u16,
        ..Header::new(Kind::Response, GROUP, NodeId(1))
    };
    client.handle_datagram(1000, address(1), &header, &value);
}

fn redirect(client: &mut Client, to: &Header, node: u16, value: &[u8]) {
    let from = client.target();
    redirect_from(client, from, to, node, value);
}

fn redirect_from(client: &mut Client, from: SocketAddr, to: &Header, node: u16, value: &[u8]) {
    let header = Header {
        vote_ballot: Ballot(u64::from(node)),
        nonce: to.nonce,
        ..Header::new(Kind::Redirect, GROUP, NodeId(1))
    };
    client.handle_datagram(1000, from, &header, value);
}

#[test]
fn a_burst_of_out_of_order_answers_makes_one_repetition() {
    let (mut client, sent) = under_way(10);
    assert_eq!(sent.len(), 10);
    let mut repeated = Vec::new();
    for header in &sent[3..] {
        respond(
            &mut client,
            header,
            SessionId(9),
            3,
            Status::OutOfOrder,
            &[],
        );
        while let Some(datagram) = client.poll_transmit(1000) {
            repeated.push(datagram.header.ballot.0);
        }
    }
    assert_eq!(repeated, (3..=10).collect::<Vec<u64>>());
}

#[test]
fn a_number_too_high_for_the_session_is_not_repeated_from() {
    let (mut client, sent) = under_way(3);
    for expected in [0, 4, u64::MAX] {
        respond(
            &mut client,
            &sent[0],
            SessionId(9),
            expected,
            Status::OutOfOrder,
            &[],
        );
    }
    assert_eq!(client.poll_transmit(1000), None);
}

#[test]
fn a_redirect_is_followed_at_once_and_once() {
    let (mut client, sent) = under_way(5);
    for header in &sent {
        redirect(&mut client, header, 3, &[]);
    }
    assert_eq!(
        (client.target(), client.counters().redirects),
        (address(3), 1)
    );
    let again = core::iter::from_fn(|| client.poll_transmit(1000).map(|d| d.to)).count();
    assert_eq!(again, 5);
}

#[test]
fn a_redirect_without_a_leader_waits_and_asks_the_next_member() {
    let (mut client, sent) = under_way(1);
    redirect(&mut client, &sent[0], 0, &[]);
    assert_eq!(client.poll_transmit(1000), None);
    let due = client.poll_timeout().expect("a wait");
    assert!((7 * MS..14 * MS).contains(&due), "{due}");
    client.handle_timeout(due);
    assert_eq!(client.poll_transmit(due).map(|d| d.to), Some(address(2)));
}

#[test]
fn replicas_that_point_at_each_other_are_not_followed_for_ever() {
    let (mut client, sent) = under_way(1);
    let mut header = sent[0];
    let mut hops = 0;
    while client.held_until_ns.is_none() {
        let other = if client.target() == address(2) { 3 } else { 2 };
        redirect(&mut client, &header, other, &[]);
        if let Some(datagram) = client.poll_transmit(1000) {
            header = datagram.header;
            hops += 1;
        }
    }
    assert_eq!(hops, MAX_HOPS);
}

#[test]
fn a_leader_outside_the_configuration_is_found_by_its_address() {
    let (mut client, sent) = under_way(1);
    let outside = SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, 7], 4000));
    redirect(&mut client, &sent[0], 9, &encode_address(outside));
    assert_eq!(client.poll_transmit(1000).map(|d| d.to), Some(outside));
}

/// Lets the next time-out come; whom is asked who leads, and who is sent the command again.
fn time_out(client: &mut Client) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
    let due = client.poll_timeout().expect("something is under way");
    client.handle_timeout(due);
    let (mut asked, mut sent) = (Vec::new(), Vec::new());
    while let Some(datagram) = client.poll_transmit(due) {
        match datagram.value {
            [] => asked.push(datagram.to),
            _ => sent.push(datagram.to),
        }
    }
    (asked, sent)
}

#[test]
fn a_silent_member_is_left_at_the_third_time_out() {
    let (mut client, _) = under_way(1);
    let others = vec![address(2), address(3)];
    assert_eq!(time_out(&mut client), (others.clone(), vec![]));
    assert_eq!(time_out(&mut client), (others, vec![address(1)]));
    assert_eq!(time_out(&mut client).1, [address(2)]);
    assert_eq!(time_out(&mut client).1, [address(2)]);
    assert_eq!(time_out(&mut client).1, [address(3)]);
}

#[test]
fn the_successor_of_a_silent_leader_is_heard_of_from_the_others() {
    let (mut client, sent) = under_way(3);
    time_out(&mut client);
    // It has not noticed yet.
    redirect_from(&mut client, address(2), &sent[0], 1, &[]);
    assert_eq!(client.poll_transmit(1000), None);
    redirect_from(&mut client, address(2), &sent[0], 0, &[]);
    assert_eq!(client.poll_transmit(1000), None);
    assert_eq!(client.target(), address(1));
    redirect_from(&mut client, address(2), &sent[0], 3, &[]);
    let again: Vec<_> = core::iter::from_fn(|| client.poll_transmit(1000).map(|d| d.to)).collect();
    assert_eq!(again, [address(3); 3]);
}

#[test]
fn a_refused_length_ends_the_session_but_not_the_client() {
    let (mut client, sent) = under_way(2);
    client.submit_command(2, b"unsent").expect("room");
    respond(
        &mut client,
        &sent[0],
        SessionId(9),
        1,
        Status::TooLarge,
        &[],
    );
    let ended: Vec<Event> = core::iter::from_fn(|| client.poll_event()).collect();
    assert_eq!(
        ended,
        [
            Event {
                token: 0,
                result: Err(Failure::TooLarge)
            },
            Event {
                token: 1,
                result: Err(Failure::OutcomeUnknown)
            },
        ]
    );
    let open = client.poll_transmit(1000).expect("another Open");
    assert_eq!(
        envelope::entries(open.value)
            .next()
            .map(|e| e.map(|e| e.kind)),
        Some(Ok(EntryKind::Open))
    );
}

#[test]
fn a_full_cluster_refuses_what_was_never_sent() {
    let mut client = client();
    client.submit_command(5, b"one").expect("room");
    let open = client.poll_transmit(0).expect("the Open").header;
    let Session::Opening { nonce, .. } = client.session else {
        panic!("the session is being opened")
    };
    respond(
        &mut client,
        &open,
        SessionId(0),
        nonce,
        Status::TooManySessions,
        &[],
    );
    let refused = Event {
        token: 5,
        result: Err(Failure::TooManySessions),
    };
    assert_eq!(
        (client.poll_event(), client.poll_transmit(1)),
        (Some(refused), None)
    );
}

#[test]
fn the_window_and_the_value_bound_what_is_taken() {
    let mut client = client();
    assert_eq!(
        client.submit_command(0, &[0; 177]),
        Err(SubmitError::TooLarge)
    );
    for token in 0..32 {
        client.submit_command(token, &[0; 176]).expect("room");
    }
    assert_eq!(client.submit_command(32, b""), Err(SubmitError::Full));
    let wrong = |change: fn(&mut Config)| {
        let mut config = config(0);
        change(&mut config);
        Client::new(config).map(|_| ())
    };
    assert_eq!(wrong(|c| c.members.clear()), Err(ConfigError::NoMembers));
    assert_eq!(wrong(|c| c.max_value = 31), Err(ConfigError::MaxValue(31)));
    assert_eq!(
        wrong(|c| c.max_in_flight = 4097),
        Err(ConfigError::MaxInFlight(4097))
    );
}

#[test]
fn addresses_come_back_from_redirects() {
    for address in [
        address(1),
        SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, 7], 1)),
    ] {
        assert_eq!(decode_address(&encode_address(address)), Some(address));
    }
    assert_eq!(decode_address(&[0; ADDRESS_BYTES]), None);
    assert_eq!(decode_address(b"short"), None);
}

fn any_header() -> impl Strategy<Value = Header> {
    (
        prop_oneof![Just(Kind::Response), Just(Kind::Redirect)],
        0u64..12,
        any::<u64>(),
        any::<u32>(),
    )
        .prop_map(|(kind, slot, vote, nonce)| Header {
            slot: crate::Slot(slot),
            vote_ballot: Ballot(if vote % 2 == 0 { vote % 5 } else { vote }),
            nonce,
            ..Header::new(kind, GROUP, NodeId(1))
        })
}

fn any_value() -> impl Strategy<Value = Vec<u8>> {
    let outcome = (
        prop_oneof![0u64..12, any::<u64>()],
        0u8..8,
        proptest::collection::vec(any::<u8>(), 0..12),
    );
    let outcomes = proptest::collection::vec(outcome, 0..5).prop_map(|outcomes| {
        let mut value = Vec::new();
        for (sequence, status, body) in outcomes {
            let at = value.len();
            Outcome {
                sequence: Sequence(sequence),
                status: Status::Done,
                body: &body,
            }
            .append(&mut value);
            value[at + 10] = status;
        }
        value
    });
    prop_oneof![
        outcomes.boxed(),
        proptest::collection::vec(any::<u8>(), 0..64).boxed(),
        Just(encode_address(address(3)).to_vec()).boxed(),
    ]
}

proptest! {
    #[test]
    fn no_datagram_makes_a_client_panic(
        packets in proptest::collection::vec((any_header(), any_value()), 1..20),
    ) {
        let (mut client, sent) = under_way(5);
        client.submit_query(100, b"query").expect("room");
        for (step, (header, value)) in packets.iter().enumerate() {
            let now_ns = step as u64 * 10_000;
            let nonce = if step % 2 == 0 { header.nonce } else { sent[0].nonce };
            client.handle_datagram(now_ns, address(2), &Header { nonce, ..*header }, value);
            while client.poll_transmit(now_ns).is_some() {}
            if let Some(due) = client.poll_timeout() {
                client.handle_timeout(due);
            }
            let _ = client.poll_event();
            let _ = client.submit_command(200, b"more");
        }
    }
}

#[test]
fn requests_are_packets_that_the_wire_accepts() {
    let (mut client, sent) = under_way(3);
    client.submit_query(1, b"query").expect("room");
    let query = client.poll_transmit(0).expect("the query").header;
    for header in sent.iter().chain([&query]) {
        let packet = [&header.to_bytes()[..], &vec![0; usize::from(header.length)]].concat();
        assert!(matches!(
            crate::wire::parse(&packet, 200),
            crate::wire::Parsed::Ours(parsed, _) if parsed == *header
        ));
    }
    let fields: Vec<_> = sent
        .iter()
        .map(|h| (h.slot.0, h.ballot.0, h.watermark))
        .collect();
    assert_eq!(fields, [(9, 1, 1), (9, 2, 1), (9, 3, 1)]);
}
