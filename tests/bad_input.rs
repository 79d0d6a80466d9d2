//! What nobody should send, configure or delete: each gets a clear error or a counted drop, the
//! cluster goes on, and nothing that was acknowledged is lost.

mod common;

use common::{CALM, Cluster, Load, Passed, Relay, Reply, eventually, request};
use consensus::auth::{self, Key};
use consensus::envelope::{Entry, EntryKind, Status, outcomes};
use consensus::random::Random;
use consensus::wire::{Flags, HEADER_BYTES, Header, Kind, Malformed, Parsed, parse};
use consensus::{Ballot, Epoch, GroupId, Incarnation, NodeId, Sequence, SessionId, Slot};
use nearwire::data_directory::BOOT_ID_VARIABLE;
use std::fs;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

/// Datagrams thrown at the replicas in one test.
const FLOOD: usize = 20_000;
/// Datagrams in a row before the replicas may breathe: what overflows a socket tests nothing.
const BURST: usize = 32;
const MAX_VALUE: usize = 65_535;

fn owned(bytes: &[u8]) -> Option<(Header, Vec<u8>)> {
    match parse(bytes, MAX_VALUE) {
        Parsed::Ours(header, value) => Some((header, value.to_vec())),
        Parsed::NotOurs | Parsed::Malformed(_) => None,
    }
}

fn packet(header: &Header, value: &[u8]) -> Vec<u8> {
    let length = value.len() as u16;
    let header = Header { length, ..*header };
    [&header.to_bytes()[..], value].concat()
}

/// Makes one kind of bad datagram out of a good one.
type Spoil = fn(&mut Random, Header, Vec<u8>) -> Vec<u8>;

/// Datagrams that are refused whoever sends them.
const REFUSED: [(&str, Spoil); 11] = [
    ("truncated", |random, header, value| {
        let mut bytes = packet(&header, &value);
        bytes.truncate(2 + random.below(HEADER_BYTES as u64 - 2) as usize);
        bytes
    }),
    ("length", |random, header, value| {
        let mut bytes = packet(&header, &value);
        bytes.extend(vec![7; 1 + random.below(100) as usize]);
        bytes
    }),
    ("length", |_, header, value| {
        let header = Header {
            length: value.len() as u16 + 1,
            ..header
        };
        [&header.to_bytes()[..], &value].concat()
    }),
    ("over_long", |random, header, _| {
        let header = Header {
            kind: Kind::Accept,
            ..header
        };
        packet(&header, &vec![7; 1385 + random.below(500) as usize])
    }),
    ("version", |random, header, value| {
        let mut bytes = packet(&header, &value);
        bytes[2] = 2 + random.below(250) as u8;
        bytes
    }),
    ("kind", |random, header, value| {
        let mut bytes = packet(&header, &value);
        bytes[3] = 64 + random.below(190) as u8;
        bytes
    }),
    ("flags", |_, header, value| {
        let flags = Flags(header.flags.0 | 0x8000);
        packet(&Header { flags, ..header }, &value)
    }),
    ("ballot", |_, header, value| {
        let ballot = Ballot::SEALED;
        packet(&Header { ballot, ..header }, &value)
    }),
    ("ballot", |random, header, value| {
        let sender = NodeId(NodeId::MAX + 1 + random.below(60_000) as u16);
        packet(&Header { sender, ..header }, &value)
    }),
    ("not_ours", |random, _, _| {
        let length = random.below(200) as usize;
        let mut bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
        if let Some(first) = bytes.first_mut() {
            *first = b'?';
        }
        bytes
    }),
    ("replayed", |_, header, value| packet(&header, &value)),
];

/// Well-formed datagrams that an acceptor drops whoever sends them.
const DROPPED: [(&str, Spoil); 3] = [
    ("incarnation", |random, header, value| {
        let incarnation = Incarnation(header.incarnation.0 ^ (1 + random.below(1000) as u32));
        let header = Header {
            incarnation,
            ..header
        };
        packet(&header, &value)
    }),
    ("epoch", |_, header, value| {
        let epoch = Epoch(0);
        packet(&Header { epoch, ..header }, &value)
    }),
    ("inconsistent", |_, header, value| {
        let sender = NodeId(header.sender.0 ^ 512);
        packet(&Header { sender, ..header }, &value)
    }),
];

/// What was sent between the replicas lately, at least a hundred requests to acceptors.
fn captured(relay: &Relay) -> Vec<Passed> {
    eventually("traffic to take samples from", || {
        let passed = relay.passed();
        let requests = passed
            .iter()
            .filter(|(_, _, bytes)| is_accept(bytes))
            .count();
        (requests > 100).then_some(passed)
    })
}

fn is_accept(bytes: &[u8]) -> bool {
    owned(bytes).is_some_and(|(header, _)| header.kind == Kind::Accept)
}

/// Throws `count` datagrams that `make` makes of captured ones.
fn flood(
    relay: &Relay,
    random: &mut Random,
    count: usize,
    make: impl Fn(&mut Random, &Passed) -> Option<Vec<u8>>,
) {
    let samples = captured(relay);
    let mut thrown = 0;
    while thrown < count {
        let sample = &samples[random.below(samples.len() as u64) as usize];
        if let Some(bytes) = make(random, sample) {
            relay.forge(sample.0, sample.1, &bytes);
            thrown += 1;
            if thrown % BURST == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

fn counted(cluster: &Cluster, table: &str, reason: &str) -> u64 {
    let counts = (1..=3).map(|node| {
        let report = eventually("a report", || cluster.report(node));
        let count = report[table][reason].as_u64();
        count.unwrap_or_default()
    });
    counts.sum()
}

fn all_alive(cluster: &Cluster) {
    for node in 1..=3 {
        assert!(!cluster.has_ended(node), "{}", cluster.log(node));
    }
}

#[test]
fn a_flood_of_bad_and_replayed_datagrams_is_counted_and_changes_nothing() {
    let mut cluster = Cluster::prepare(CALM);
    let relay = Relay::between(&cluster);
    cluster.start_all();
    cluster.lead();
    let load = Load::start("flood", &cluster.fronts(&[1, 2, 3]), 3);
    load.advance(200);

    let mut random = Random::new(4711);
    flood(&relay, &mut random, FLOOD, |random, (_, _, bytes)| {
        let (header, value) = owned(bytes)?;
        let (_, spoil) = REFUSED[random.below(REFUSED.len() as u64) as usize];
        Some(spoil(random, header, value))
    });
    flood(&relay, &mut random, FLOOD / 10, |random, (_, _, bytes)| {
        let (header, value) = owned(bytes).filter(|(header, _)| header.kind == Kind::Accept)?;
        let (_, spoil) = DROPPED[random.below(DROPPED.len() as u64) as usize];
        Some(spoil(random, header, value))
    });

    load.advance(50);
    all_alive(&cluster);
    for reason in Malformed::ALL.map(Malformed::name) {
        let count = counted(&cluster, "malformed", reason);
        // Without a key no tag is looked at.
        assert_eq!(count > 0, reason != "tag", "{reason}: {count}");
    }
    for (reason, _) in DROPPED {
        assert!(counted(&cluster, "dropped", reason) > 0, "{reason}");
    }
    assert!((1..=3).all(|node| {
        cluster
            .count(node, "not_ours")
            .is_some_and(|count| count > 0)
    }));
    let ledger = load.stop();
    cluster.settle(&[1, 2, 3]);
    for node in 1..=3 {
        ledger.check(&cluster.fronts(&[node]));
    }
}

#[test]
fn without_the_key_nothing_can_be_forged() {
    let mut cluster = Cluster::prepare_with_key("00112233445566778899aabbccddeeff");
    let relay = Relay::between(&cluster);
    cluster.start_all();
    cluster.lead();
    let load = Load::start("forged", &cluster.fronts(&[1, 2, 3]), 3);
    load.advance(200);
    let other_key = Key::from_bytes([7; 16]);
    let signed = |header: Header, value: &[u8]| {
        let length = value.len() as u16;
        let header = Header {
            length,
            tag: 0,
            ..header
        };
        let tag = auth::tag(other_key, &header, value);
        packet(&Header { tag, ..header }, value)
    };

    let mut random = Random::new(4712);
    flood(&relay, &mut random, FLOOD, |random, (_, _, bytes)| {
        let (header, mut value) = owned(bytes)?;
        let highest = Ballot::new(Ballot::MAX_ROUND, header.sender);
        Some(match random.below(8) {
            // Whoever got this through could never be outbid.
            0 => signed(
                Header {
                    kind: Kind::Prepare,
                    ballot: highest,
                    ..header
                },
                b"",
            ),
            1 => packet(
                &Header {
                    ballot: highest,
                    tag: 0,
                    ..header
                },
                &value,
            ),
            2 => {
                // The captured tag over another value, or another slot.
                match value.last_mut() {
                    Some(last) => *last ^= 1,
                    None => return None,
                }
                packet(&header, &value)
            }
            3 => packet(
                &Header {
                    slot: Slot(header.slot.0 + 1),
                    ..header
                },
                &value,
            ),
            4 => signed(
                Header {
                    kind: Kind::Decide,
                    slot: Slot(header.slot.0 + 1000),
                    watermark: header.slot.0 + 1000,
                    ..header
                },
                b"",
            ),
            5 => bytes.clone(),
            _ => {
                let mut bytes = bytes.clone();
                for _ in 0..=random.below(4) {
                    let at = random.below(bytes.len() as u64) as usize;
                    bytes[at] ^= 1 << random.below(8);
                }
                if random.below(4) == 0 {
                    bytes.truncate(random.below(bytes.len() as u64) as usize);
                }
                bytes
            }
        })
    });

    load.advance(50);
    all_alive(&cluster);
    assert!(counted(&cluster, "malformed", "tag") > FLOOD as u64 / 4);
    for node in 1..=3 {
        let report = eventually("a report", || cluster.report(node));
        let ballot = report["ballot"].as_str().unwrap_or_default().to_owned();
        let round: u64 = ballot
            .split('.')
            .next()
            .unwrap_or_default()
            .parse()
            .unwrap_or(u64::MAX);
        assert!(round < 1 << 40, "promised {ballot}");
    }
    let ledger = load.stop();
    cluster.settle(&[1, 2, 3]);
    for node in 1..=3 {
        ledger.check(&cluster.fronts(&[node]));
    }
}

#[test]
fn a_session_that_never_was_is_told_so() {
    let cluster = Cluster::start();
    let leader = cluster.lead();
    let address = cluster.replicas()[usize::from(leader) - 1].address;
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let timeout = Some(Duration::from_millis(200));
    socket.set_read_timeout(timeout).expect("an open socket");
    let mut client = cluster.connect(leader).patient(common::PATIENCE);
    let set = client.call(&["SET", "something", "applied"]);
    assert_eq!(set.expect("an answer"), Reply::ok());
    // A session that a leader may not have heard of yet would be asked for again.
    let session = SessionId::new(Slot::FIRST, 4000);
    let (_, body) = nearwire::kv::encode(&[b"SET", b"forged", b"1"]).expect("a command");
    let entry = Entry {
        kind: EntryKind::Command,
        session,
        sequence: Sequence(9),
        behind: 0,
        body: &body,
    };
    let mut value = Vec::new();
    entry.append(&mut value);
    let header = Header {
        epoch: Epoch(1),
        slot: Slot(session.0),
        ballot: Ballot(9),
        nonce: 77,
        ..Header::new(Kind::Request, GroupId(0), NodeId::NONE)
    };
    let status = eventually("an answer to the request", || {
        socket.send_to(&packet(&header, &value), address).ok()?;
        let mut bytes = vec![0; MAX_VALUE];
        let length = socket.recv(&mut bytes).ok()?;
        let (header, value) = owned(&bytes[..length])?;
        let first = outcomes(&value).next()?.ok()?.status;
        (header.kind == Kind::Response).then_some(first)
    });
    assert_eq!(status, Status::UnknownSession);
    let found = client.call(&["GET", "forged"]).expect("an answer");
    assert_eq!(found, Reply::Bulk(None));
}

#[test]
fn garbage_and_half_open_connections_disturb_no_other_client() {
    let cluster = Cluster::start();
    let mut steady = cluster.connect(cluster.lead()).patient(common::PATIENCE);
    let mut random = Random::new(4713);
    let mut half_open = Vec::new();
    for round in 0..150 {
        let node = 1 + (round % 3) as u16;
        let mut bad = cluster.connect(node);
        match round % 5 {
            0 => {
                let junk: Vec<u8> = (0..500).map(|_| random.next() as u8).collect();
                let _ = bad.send_bytes(&junk);
            }
            1 => {
                bad.send_bytes(b"*1\r\n:5\r\n").expect("a connection");
                let reply = bad.receive().expect("an error");
                let expected = "ERR Protocol error: expected '$', got ':'";
                assert_eq!(reply, Reply::Error(expected.to_owned()));
                assert!(bad.receive().is_err(), "the connection is closed");
            }
            2 => {
                bad.send_bytes(b"*99999999\r\n").expect("a connection");
                let reply = bad.receive().expect("an error");
                let expected = "ERR Protocol error: invalid multibulk length";
                assert_eq!(reply, Reply::Error(expected.to_owned()));
            }
            3 => {
                bad.send_bytes(b"*2\r\n$3\r\nGET\r\n$5\r\nab")
                    .expect("a connection");
                half_open.push(bad);
            }
            _ => {
                // A request is under way when its client leaves.
                let _ = bad.send(&["SET", "left", "behind"]);
            }
        }
        let key = format!("steady:{round}");
        let set = steady.call(&["SET", &key, "1"]).expect("an answer");
        assert_eq!(set, Reply::ok());
    }
    all_alive(&cluster);
    for bad in &mut half_open {
        bad.send_bytes(b"cde\r\n").expect("still open");
        assert_eq!(bad.receive().expect("an answer"), Reply::Bulk(None));
    }
}

#[test]
fn a_pipeline_of_ten_thousand_is_answered_in_order() {
    const COMMANDS: i64 = 10_000;
    let cluster = Cluster::start();
    let leader = cluster.lead();
    for node in [leader, cluster.others(leader)[0]] {
        let mut client = cluster.connect(node).patient(common::PATIENCE);
        let counter = format!("pipeline:{node}");
        let mut bytes = Vec::new();
        for _ in 0..COMMANDS {
            bytes.extend(request(&["INCR", &counter]));
        }
        bytes.extend(request(&["GET", &counter]));
        let mut stream = client.stream().try_clone().expect("a socket");
        let sender = std::thread::spawn(move || std::io::Write::write_all(&mut stream, &bytes));
        for number in 1..=COMMANDS {
            let reply = client.receive().expect("a reply");
            assert_eq!(reply, Reply::Integer(number));
        }
        let last = client.receive().expect("a reply");
        assert_eq!(last, Reply::bulk(&COMMANDS.to_string()));
        sender.join().expect("no panic").expect("all was sent");
    }
}

#[test]
fn a_value_over_the_limit_is_refused_with_the_limit_and_the_connection_stays() {
    // 1,384 bytes of a log value, less the clock's entry and the command's own head.
    const LIMIT: usize = 1336;
    let cluster = Cluster::start();
    let leader = cluster.lead();
    for node in [leader, cluster.others(leader)[0]] {
        let mut client = cluster.connect(node).patient(common::PATIENCE);
        let encoded = |value: &str| {
            let words: [&[u8]; 3] = [b"SET", b"long", value.as_bytes()];
            nearwire::kv::encode(&words).expect("a command").1.len()
        };
        let most = "v".repeat(LIMIT - encoded(""));
        let most = &most[..most.len() - (encoded(&most) - LIMIT)];
        assert_eq!(encoded(most), LIMIT);
        let set = client.call(&["SET", "long", most]).expect("an answer");
        assert_eq!(set, Reply::ok());
        for more in [1, 10_000, 100_000] {
            let value = "v".repeat(most.len() + more);
            let reply = client.call(&["SET", "long", &value]).expect("an answer");
            let bytes = encoded(&value);
            let expected =
                format!("ERR value too large: {bytes} bytes, this cluster's limit is {LIMIT}");
            assert_eq!(reply, Reply::Error(expected));
        }
        let found = client.call(&["GET", "long"]).expect("an answer");
        assert_eq!(found, Reply::bulk(most));
    }
}

/// Runs a replica that is expected to end by itself. Gives its exit code and what it said.
fn failure(cluster: &mut Cluster, node: u16, environment: &[(&str, &str)]) -> (i32, String) {
    let mut command = cluster.command(node).expect("a log file");
    command.envs(environment.iter().copied());
    let child = common::spawn(&mut command);
    cluster.adopt(node, child);
    let status = cluster.end_of(node).expect("it ends by itself");
    let said = cluster.log(node);
    assert!(!said.contains("panicked"), "{said}");
    (status.code().unwrap_or(-1), said)
}

fn assert_said(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

#[test]
fn a_configuration_that_cannot_be_is_refused_before_anything_is_made() {
    let mut cluster = Cluster::prepare(CALM);
    cluster.edit(1, |text| text.replacen("node = 1\n", "node = 4\n", 1));
    let (code, said) = failure(&mut cluster, 1, &[]);
    assert_eq!(code, 2, "{said}");
    assert_said(&said, &["error: ", "node 4", "node-1.toml:2"]);
    assert!(!cluster.data_directory(1).exists());
}

#[test]
fn a_cluster_that_names_a_peer_that_is_not_there_says_who_is_missing() {
    let mut cluster = Cluster::prepare(CALM);
    cluster.edit(1, |text| text.replace("node = 3\n", "node = 9\n"));
    cluster.start_all();
    eventually("the missing peer in the report", || {
        let report = cluster.report(1)?;
        let missing = report["missing"].as_array()?;
        (report["role"] == "forming" && missing.contains(&9.into())).then_some(())
    });
    // It is not a cluster: nobody leads, and commands are not answered with anything but an error.
    for node in 1..=3 {
        let report = eventually("a report", || cluster.report(node));
        assert_ne!(report["role"], "leader");
    }
    // Once the name is right it forms.
    cluster.kill(1);
    cluster.edit(1, |text| text.replace("node = 9\n", "node = 3\n"));
    fs::remove_dir_all(cluster.data_directory(1)).expect("made by the first start");
    for node in [2, 3] {
        cluster.kill(node);
        fs::remove_dir_all(cluster.data_directory(node)).expect("made by the first start");
    }
    cluster.start_all();
    cluster.lead();
}

#[test]
fn a_directory_or_a_port_in_use_is_said_and_whoever_has_it_is_not_disturbed() {
    let cluster = Cluster::start();
    let first = cluster.process(1).expect("runs").to_string();
    let load = Load::start("in-use", &cluster.fronts(&[1, 2, 3]), 3);
    load.advance(50);

    let mut second = cluster.command(1).expect("a log file");
    let status = common::spawn(&mut second).wait().expect("it ends");
    assert_eq!(status.code(), Some(1), "{}", cluster.log(1));
    assert_said(&cluster.log(1), &["is in use by process", &first]);

    let elsewhere = cluster.directory().join("elsewhere");
    let mut second = cluster.command(1).expect("a log file");
    second.arg("--data-directory").arg(&elsewhere);
    let status = common::spawn(&mut second).wait().expect("it ends");
    assert_eq!(status.code(), Some(1), "{}", cluster.log(1));
    let address = cluster.replicas()[0].address;
    assert_said(&cluster.log(1), &["error: ", &address.to_string()]);

    load.advance(50);
    all_alive(&cluster);
    load.stop().check(&cluster.fronts(&[1]));
}

#[test]
fn a_port_for_redis_clients_in_use_is_said() {
    let mut cluster = Cluster::prepare(CALM);
    let resp = cluster.fronts(&[1])[0];
    let held = TcpListener::bind(resp).expect("the port that was free");
    let (code, said) = failure(&mut cluster, 1, &[]);
    assert_eq!(code, 1, "{said}");
    let expected = format!("listen for Redis clients at {resp}: the port is in use");
    assert_said(&said, &["error: ", &expected]);
    drop(held);
    cluster.start_all();
    cluster.lead();
}

/// Lets `spoil` change what node 1 finds when it starts, sees it refused as lost memory, puts
/// things back, and sees the cluster whole.
fn refused_as_lost(
    cluster: &mut Cluster,
    environment: &[(&str, &str)],
    spoil: impl FnOnce(&Cluster),
    mend: impl FnOnce(&Cluster),
) {
    cluster.kill(1);
    spoil(cluster);
    let (code, said) = failure(cluster, 1, environment);
    assert_eq!(code, 3, "{said}");
    assert_said(&said, &["error: ", "lost", "must not vote"]);
    mend(cluster);
    cluster.start_node(1);
    cluster.settle(&[1, 2, 3]);
}

#[test]
fn a_node_whose_memory_was_lost_is_refused_under_its_old_identity() {
    let mut cluster = Cluster::start();
    let load = Load::start("lost", &cluster.fronts(&[1, 2, 3]), 3);
    load.advance(100);
    let data = cluster.data_directory(1);
    let aside = cluster.directory().join("aside");

    // The region is gone.
    refused_as_lost(
        &mut cluster,
        &[],
        |_| fs::rename(data.join("region"), &aside).expect("a region"),
        |_| fs::rename(&aside, data.join("region")).expect("the region"),
    );
    // The region is empty.
    refused_as_lost(
        &mut cluster,
        &[],
        |_| {
            let region = data.join("region");
            let bytes = fs::metadata(&region).expect("a region").len() as usize;
            fs::rename(&region, &aside).expect("a region");
            fs::write(&region, vec![0; bytes]).expect("an empty region");
        },
        |_| fs::rename(&aside, data.join("region")).expect("the region"),
    );
    // The machine has been restarted.
    refused_as_lost(
        &mut cluster,
        &[(BOOT_ID_VARIABLE, "11111111-2222-3333-4444-555555555555")],
        |_| {},
        |_| {},
    );
    // Everything is gone: the others tell it.
    refused_as_lost(
        &mut cluster,
        &[],
        |_| fs::rename(&data, &aside).expect("a data directory"),
        |_| {
            fs::remove_dir_all(&data).expect("made by the failed start");
            fs::rename(&aside, &data).expect("the data directory");
        },
    );
    // Another durability.
    cluster.kill(1);
    let (code, said) = failure(&mut cluster, 1, &[("NEARWIRE_DURABILITY", "sync")]);
    assert_eq!(code, 1, "{said}");
    assert_said(
        &said,
        &["error: ", "was made for durability", "Volatile", "Sync"],
    );
    cluster.start_node(1);
    cluster.settle(&[1, 2, 3]);

    load.advance(50);
    load.stop().check(&cluster.fronts(&[1]));
}

#[test]
fn a_killed_replica_starts_again_at_once() {
    let mut cluster = Cluster::start();
    let fronts: Vec<SocketAddr> = cluster.fronts(&[1, 2, 3]);
    let load = Load::start("again", &fronts, 3);
    for round in 0..4 {
        let node = 1 + round % 3;
        load.advance(20);
        cluster.kill(node);
        cluster.start_node(node);
        cluster.settle(&[1, 2, 3]);
    }
    load.stop().check(&fronts);
}

#[test]
fn without_a_majority_new_commands_are_refused_instead_of_waiting() {
    let mut cluster = Cluster::start();
    let leader = cluster.lead();
    let others = cluster.others(leader);
    let mut first = cluster.connect(leader);
    first.call(&["SET", "before", "1"]).expect("an answer");
    for node in &others {
        cluster.kill(*node);
    }
    // Nobody can tell what becomes of this one, so it waits for a majority.
    first.send(&["SET", "parked", "1"]).expect("a connection");
    let refusal = eventually("a refusal", || {
        let mut later = cluster.connect(leader).patient(Duration::from_secs(1));
        match later.call(&["SET", "later", "1"]) {
            Ok(Reply::Error(text)) => Some(text),
            Ok(other) => panic!("answered without a majority: {other:?}"),
            // The silence has not lasted long enough yet: this one waits too.
            Err(_) => None,
        }
    });
    assert!(refusal.starts_with("CLUSTERDOWN"), "{refusal}");
    cluster.start_node(others[0]);
    let mut first = first.patient(common::PATIENCE);
    assert_eq!(first.receive().expect("an answer"), Reply::ok());
}
