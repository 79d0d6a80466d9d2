//! What a replica takes of a machine's memory.

mod common;

use common::{Cluster, Reply};

/// Most resident memory of a replica with an empty store, in KiB.
const MAX_RESIDENT_KIB: u64 = 64 * 1024;

/// The resident memory of a process in KiB. `proc_pid_status(5)`, `VmRSS`.
fn resident_kib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    let number = number.expect("Linux tells the resident memory");
    number.parse().expect("a number")
}

#[test]
fn a_replica_with_an_empty_store_fits_64_mib() {
    let cluster = Cluster::start();
    let mut client = cluster.connect(cluster.lead()).patient(common::PATIENCE);
    for number in 0..1000 {
        let reply = client.call(&["SET", "key", &number.to_string()]);
        assert_eq!(reply.expect("an answer"), Reply::ok());
    }
    let deleted = client.call(&["DEL", "key"]).expect("an answer");
    assert_eq!(deleted, Reply::Integer(1));
    cluster.settle(&[1, 2, 3]);
    for node in 1..=3 {
        let resident = resident_kib(cluster.process(node).expect("runs"));
        assert!(
            resident < MAX_RESIDENT_KIB,
            "replica {node} has {resident} KiB resident"
        );
    }
}
