//! Many groups on three replica processes: who leads them, and how clients of Redis Cluster find
//! their keys, while replicas are killed and come back.

mod common;

use common::{Cluster, Reply, Resp, skip, spawn};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

const GROUPS: u64 = 24;
/// Keys that are written: more than there are groups, so that most of them have one.
const KEYS: u16 = 100;

fn settings(top: &str) -> String {
    format!("{top}\n[timing]\nelection_ms = 300\n[region]\ngroups = {GROUPS}\n")
}

/// How many groups each of `nodes` leads once every group has a leader.
#[track_caller]
fn led(cluster: &Cluster, nodes: &[u16]) -> Vec<u64> {
    cluster.eventually("a leader of each group", || {
        let led = nodes.iter().map(|node| {
            let groups = cluster.report(*node)?["groups"].clone();
            assert_eq!(groups["count"], GROUPS);
            (groups["leaderless"] == 0).then(|| groups["led"].as_u64())?
        });
        let led: Vec<u64> = led.collect::<Option<_>>()?;
        (led.iter().sum::<u64>() == GROUPS).then_some(led)
    })
}

/// Waits until each of three leads a third of the groups.
#[track_caller]
fn is_spread(cluster: &Cluster) {
    cluster.eventually("leaders that are spread evenly", || {
        let third = vec![GROUPS / 3; 3];
        (led(cluster, &[1, 2, 3]) == third).then_some(())
    });
}

/// A client of Redis Cluster: it goes where it is sent.
struct Sharded {
    fronts: Vec<Resp>,
    ports: Vec<u16>,
    moves: u64,
}

impl Sharded {
    fn new(cluster: &Cluster, nodes: &[u16]) -> Self {
        let fronts = cluster.fronts(nodes);
        Self {
            fronts: nodes.iter().map(|node| cluster.connect(*node)).collect(),
            ports: fronts.iter().map(SocketAddr::port).collect(),
            moves: 0,
        }
    }

    fn call(&mut self, words: &[&str]) -> Reply {
        let mut at = 0;
        for _ in 0..20 {
            let reply = self.fronts[at].call(words).expect("an answer");
            let Reply::Error(text) = &reply else {
                return reply;
            };
            let Some(moved) = text.strip_prefix("MOVED ") else {
                return reply;
            };
            let port = moved.rsplit(':').next().and_then(|port| port.parse().ok());
            let port: u16 = port.expect("a port");
            at = self
                .ports
                .iter()
                .position(|one| *one == port)
                .expect("one of them");
            self.moves += 1;
        }
        panic!("sent from one to the other: {words:?}");
    }
}

fn key(number: u16) -> String {
    format!("key:{number}")
}

#[test]
fn keys_of_many_groups_are_served_by_their_leaders_whoever_dies() {
    let mut cluster = Cluster::prepare(&settings(""));
    cluster.start_all();
    is_spread(&cluster);
    let mut client = Sharded::new(&cluster, &[1, 2, 3]);
    for number in 0..KEYS {
        let value = number.to_string();
        assert_eq!(client.call(&["SET", &key(number), &value]), Reply::ok());
    }
    let moves = client.moves;
    assert!(
        moves > u64::from(KEYS) / 3,
        "{moves} of {KEYS} keys are elsewhere"
    );
    // Within one group all is as ever; across several it is refused.
    let all = ["MSET", "{key:1}a", "1", "{key:1}b", "2"];
    assert_eq!(client.call(&all), Reply::ok());
    let Reply::Error(cross) = client.call(&["MGET", "key:1", "key:2", "key:3"]) else {
        panic!("keys of several groups at once");
    };
    assert!(cross.starts_with("CROSSSLOT "), "{cross}");
    let Reply::Error(refused) = client.call(&["DBSIZE"]) else {
        panic!("a part of the keys is counted");
    };
    assert!(refused.contains("24 groups"), "{refused}");

    cluster.kill(2);
    led(&cluster, &[1, 3]);
    let mut client = Sharded::new(&cluster, &[1, 3]);
    for number in 0..KEYS {
        let value = Reply::bulk(&number.to_string());
        assert_eq!(client.call(&["GET", &key(number)]), value);
    }
    cluster.start_node(2);
    is_spread(&cluster);
    let mut client = Sharded::new(&cluster, &[1, 2, 3]);
    for number in 0..KEYS {
        let value = Reply::bulk(&number.to_string());
        assert_eq!(client.call(&["GET", &key(number)]), value);
    }
}

#[test]
fn what_many_groups_hold_outlives_all_processes() {
    for durability in ["sync", "async"] {
        let mut cluster = Cluster::prepare(&settings(""));
        for node in 1..=3 {
            let made = format!("durability = \"{durability}\"");
            cluster.edit(node, |text| {
                text.replace("durability = \"volatile\"", &made)
            });
        }
        cluster.start_all();
        led(&cluster, &[1, 2, 3]);
        let mut client = Sharded::new(&cluster, &[1, 2, 3]);
        for number in 0..KEYS {
            assert_eq!(client.call(&["INCR", &key(number)]), Reply::Integer(1));
        }
        for node in 1..=3 {
            cluster.kill(node);
        }
        cluster.start_all();
        led(&cluster, &[1, 2, 3]);
        let mut client = Sharded::new(&cluster, &[1, 2, 3]);
        for number in 0..KEYS {
            let reply = client.call(&["INCR", &key(number)]);
            assert_eq!(reply, Reply::Integer(2), "{durability} {number}");
        }
    }
}

#[test]
fn a_cluster_without_news_says_nothing_in_its_groups() {
    let mut cluster = Cluster::prepare(&settings(""));
    cluster.start_all();
    is_spread(&cluster);
    let mut client = Sharded::new(&cluster, &[1, 2, 3]);
    for number in 0..KEYS {
        assert_eq!(client.call(&["SET", &key(number), "v"]), Reply::ok());
    }
    let sent = || -> Option<u64> { (1..=3).map(|node| cluster.count(node, "sent")).sum() };
    // A pulse to each of the others, for each node: packets in the groups would be many times as many.
    cluster.eventually("groups that rest", || {
        let pulses = |node: u16| cluster.count(node, "pulses");
        let (before, beats) = (sent()?, pulses(1)? + pulses(2)? + pulses(3)?);
        std::thread::sleep(std::time::Duration::from_millis(500));
        let (after, now) = (sent()?, pulses(1)? + pulses(2)? + pulses(3)?);
        let (packets, pulses) = (after - before, 2 * (now - beats));
        // The reports that are asked for here are packets, too.
        (pulses > 0 && packets <= pulses + pulses / 2 + 24).then_some(())
    });
}

#[test]
fn redis_cluster_clients_work() {
    const TEST: &str = "redis_cluster_clients_work";
    let works = |program: &str| {
        let run = Command::new(program).arg("--version").output();
        run.is_ok_and(|output| output.status.success())
    };
    if !works("redis-cli") || !works("redis-benchmark") {
        return skip(TEST, "redis-cli and redis-benchmark (Debian: redis-tools)");
    }
    let mut cluster = Cluster::prepare(&settings(""));
    cluster.start_all();
    is_spread(&cluster);
    let port = cluster.fronts(&[1])[0].port().to_string();
    let run = |program: &str, words: &[&str]| {
        let mut command = Command::new(program);
        command.args(["-p", &port]).args(words).stdin(Stdio::null());
        let child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let output = child.wait_with_output().expect("it ends");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        assert!(output.status.success(), "{text}");
        text
    };
    let mut ports = BTreeSet::new();
    for number in 0..KEYS {
        let key = key(number);
        assert_eq!(run("redis-cli", &["-c", "SET", &key, "held"]), "OK");
        assert_eq!(run("redis-cli", &["-c", "GET", &key]), "held");
        if let Some(moved) = run("redis-cli", &["GET", &key]).strip_prefix("MOVED ") {
            ports.extend(moved.rsplit(':').next().map(str::to_owned));
        }
    }
    assert_eq!(ports.len(), 2, "two other nodes lead groups: {ports:?}");
    let info = run("redis-cli", &["CLUSTER", "INFO"]);
    assert!(info.contains("cluster_state:ok"), "{info}");
    assert_eq!(run("redis-cli", &["CLUSTER", "KEYSLOT", "foo"]), "12182");
    let words = [
        "--cluster",
        "-t",
        "set,get,incr",
        "-n",
        "30000",
        "-c",
        "30",
        "-P",
        "4",
        "--csv",
    ];
    let text = run("redis-benchmark", &words);
    for command in ["\"SET\"", "\"GET\"", "\"INCR\""] {
        assert!(text.contains(command), "{text}");
    }
    assert!(!text.contains("rror"), "{text}");
}
