//! Redis' own tools and ordinary Redis clients against three replica processes, while replicas are
//! killed and stopped.

mod common;

use common::{CALM, Cluster, Load, PATIENCE, Reply, eventually, skip, spawn};
use nearwire::local_cluster::Port;
use nix::sys::signal::Signal;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// Requests of each benchmarked command.
const REQUESTS: &str = "300000";

fn has_redis_tools(test: &str) -> bool {
    let works = |program: &str| {
        let run = Command::new(program).arg("--version").output();
        run.is_ok_and(|output| output.status.success())
    };
    let present = works("redis-cli") && works("redis-benchmark");
    if !present {
        skip(test, "redis-cli and redis-benchmark (Debian: redis-tools)");
    }
    present
}

fn redis_cli(cluster: &Cluster, node: u16, words: &[&str]) -> String {
    let port = cluster.fronts(&[node])[0].port().to_string();
    let mut command = Command::new("redis-cli");
    command.args(["-p", &port]).args(words);
    let child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let output = child.wait_with_output().expect("redis-cli ends");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn benchmark(cluster: &Cluster, node: u16) -> Child {
    let port = cluster.fronts(&[node])[0].port().to_string();
    let mut command = Command::new("redis-benchmark");
    command
        .args(["-p", &port, "-t", "set,get,incr", "-n", REQUESTS])
        .args(["-c", "50", "-P", "16", "--csv"])
        .stdin(Stdio::null());
    spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))
}

/// All three commands were measured and none was answered with an error.
fn assert_benchmarked(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    for command in ["\"SET\"", "\"GET\"", "\"INCR\""] {
        assert!(text.contains(command), "{text}\n{errors}");
    }
    let failed = |text: &str| text.contains("Error from server") || text.contains("onnection");
    assert!(!failed(&text) && !failed(&errors), "{text}\n{errors}");
}

/// A certificate for localhost that signs itself: its file and its key's.
fn certificate(directory: &Path) -> [PathBuf; 2] {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("made");
    let files = ["cert.pem", "key.pem"].map(|name| directory.join(name));
    std::fs::write(&files[0], made.cert.pem()).expect("written");
    std::fs::write(&files[1], made.signing_key.serialize_pem()).expect("written");
    std::fs::set_permissions(&files[1], Permissions::from_mode(0o600)).expect("set");
    files
}

#[test]
fn redis_cli_logs_in_over_tls() {
    const TEST: &str = "redis_cli_logs_in_over_tls";
    if !has_redis_tools(TEST) {
        return;
    }
    let help = Command::new("redis-cli").arg("--help").output();
    let help = help.expect("redis-cli runs");
    let help = [help.stdout, help.stderr].concat();
    if !String::from_utf8_lossy(&help).contains("--tls") {
        return skip(TEST, "a redis-cli that was built with TLS");
    }
    let mut cluster = Cluster::prepare(CALM);
    let [certificate, key] = certificate(cluster.directory());
    let port = Port::claim().expect("a port");
    // SHA-256 of "pw".
    let hash = "30c952fab122c3f9759f02a6d95c3758b246b4fee239957b2d4fee46e26170c4";
    cluster.edit(1, |text| {
        format!(
            "{text}\n[resp_tls]\nlisten = \"127.0.0.1:{}\"\ncertificate_file = {certificate:?}\n\
             key_file = {key:?}\n[[user]]\nname = \"w\"\npassword_sha256 = \"{hash}\"\n\
             may = \"write\"\n",
            port.number()
        )
    });
    cluster.start_all();
    cluster.lead();
    let ask = |login: &[&str], words: &[&str]| {
        let number = port.number().to_string();
        let mut command = Command::new("redis-cli");
        command
            .args(["-p", &number, "--tls", "--sni", "localhost", "--cacert"])
            .arg(&certificate)
            .args(login)
            .args(words);
        let child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let output = child.wait_with_output().expect("redis-cli ends");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let login = ["--user", "w", "--pass", "pw", "--no-auth-warning"];
    assert_eq!(ask(&login, &["SET", "k", "v"]), "OK");
    assert_eq!(ask(&login, &["GET", "k"]), "v");
    assert_eq!(ask(&login, &["ACL", "WHOAMI"]), "w");
    assert_eq!(ask(&[], &["GET", "k"]), "NOAUTH Authentication required.");
    // The plain listener of the same node asks, too; another node has no users.
    assert_eq!(
        redis_cli(&cluster, 1, &["GET", "k"]),
        "NOAUTH Authentication required."
    );
    assert_eq!(redis_cli(&cluster, 2, &["GET", "k"]), "v");
}

#[test]
fn redis_tools_work_against_every_node() {
    if !has_redis_tools("redis_tools_work_against_every_node") {
        return;
    }
    let cluster = Cluster::start();
    for node in 1..=3 {
        let key = format!("cli:{node}");
        assert_eq!(redis_cli(&cluster, node, &["SET", &key, "held"]), "OK");
        for other in 1..=3 {
            assert_eq!(redis_cli(&cluster, other, &["GET", &key]), "held");
        }
        let count = redis_cli(&cluster, node, &["INCR", "cli:counter"]);
        assert_eq!(count, node.to_string());
    }
    let leader = cluster.lead();
    let output = benchmark(&cluster, leader).wait_with_output();
    assert_benchmarked(&output.expect("redis-benchmark ends"));
}

#[test]
fn redis_benchmark_at_a_follower_does_not_notice_that_the_leader_is_killed() {
    const NAME: &str = "redis_benchmark_at_a_follower_does_not_notice_that_the_leader_is_killed";
    if !has_redis_tools(NAME) {
        return;
    }
    let mut cluster = Cluster::start();
    let leader = cluster.lead();
    let follower = cluster.others(leader)[0];
    let before = cluster.count(follower, "applied").expect("runs");
    let run = benchmark(&cluster, follower);
    eventually("the benchmark's writes", || {
        cluster
            .count(follower, "applied")
            .filter(|applied| *applied > before + 50)
    });
    cluster.kill(leader);
    let output = run.wait_with_output().expect("redis-benchmark ends");
    assert_benchmarked(&output);
    let rest = cluster.others(leader);
    cluster.leader_among(&rest);
    cluster.start_node(leader);
    cluster.settle(&[1, 2, 3]);
}

#[test]
fn no_acknowledged_write_is_lost_when_the_leader_is_killed() {
    let mut cluster = Cluster::start();
    let everywhere = cluster.fronts(&[1, 2, 3]);
    let load = Load::start("kill", &everywhere, 6);
    for _ in 0..3 {
        load.advance(300);
        let leader = cluster.lead();
        cluster.kill(leader);
        load.advance(300);
        cluster.start_node(leader);
        cluster.settle(&[1, 2, 3]);
        // The node that was killed serves again.
        let set = eventually("an answer of the node that was killed", || {
            cluster.connect(leader).call(&["SET", "back", "again"]).ok()
        });
        assert_eq!(set, Reply::ok());
    }
    let ledger = load.stop();
    assert!(ledger.moves > 0, "clients of the killed node had to go on");
    for node in 1..=3 {
        ledger.check(&cluster.fronts(&[node]));
    }
}

#[test]
fn clients_of_followers_see_no_error_and_no_repetition_when_the_leader_is_killed() {
    let mut cluster = Cluster::start();
    let leader = cluster.lead();
    let rest = cluster.others(leader);
    let load = Load::start("front", &cluster.fronts(&rest), 4);
    load.advance(300);
    cluster.kill(leader);
    load.advance(300);
    let ledger = load.stop();
    ledger.check(&cluster.fronts(&rest));
    assert_eq!(ledger.moves, 0, "a connection to a live node failed");
    let acknowledged = ledger.increments.len() as i64;
    assert_eq!(acknowledged, ledger.attempts, "every attempt was answered");
    assert_eq!(ledger.last_count(), acknowledged, "and applied once");
}

#[test]
fn a_leader_that_was_stopped_answers_no_stale_read() {
    let cluster = Cluster::start();
    for round in 0..3 {
        let stopped = cluster.lead();
        let rest = cluster.others(stopped);
        let mut old = cluster.connect(stopped).patient(PATIENCE);
        let before = old.call(&["INCR", "counter"]).expect("a leader answers");
        let load = Load::start(&format!("stop:{round}"), &cluster.fronts(&[1, 2, 3]), 4);
        load.advance(100);
        cluster.signal(stopped, Signal::SIGSTOP);
        cluster.leader_among(&rest);
        load.advance(100);
        let mut new = cluster.connect(rest[0]).patient(PATIENCE);
        let acknowledged = new.call(&["INCR", "counter"]).expect("a follower answers");
        assert!(acknowledged.number() > before.number());
        // It waits in the stopped leader's socket until that one goes on, believing that it leads.
        old.send(&["GET", "counter"]).expect("the kernel takes it");
        std::thread::sleep(Duration::from_millis(50));
        cluster.signal(stopped, Signal::SIGCONT);
        let read = old.receive().expect("an answer");
        assert!(
            read.number() >= acknowledged.number(),
            "{read:?} was read after {acknowledged:?} had been acknowledged"
        );
        load.advance(100);
        load.stop().check(&cluster.fronts(&[1, 2, 3]));
        cluster.settle(&[1, 2, 3]);
    }
}
