//! `nearwire conform` against the engine in this process and against a running replica.

mod common;

use common::{CALM, Cluster, Reply, eventually, spawn};
use nearwire::local_cluster::{LocalCluster, Options};
use serde_json::Value;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;

/// Groups for the whole corpus, small ones.
const SETTINGS: &str =
    "\n[region]\nwindow_slots = 16\nvalue_bytes = 256\nconformance_groups = 1024\n";
/// Defects that show on the wire.
const DEFECTS: [&str; 11] = [
    "promise-not-checked",
    "equal-ballot-refused",
    "equal-ballot-overwrites",
    "vote-promises-nothing",
    "highest-not-raised",
    "kept-slot-overwritten",
    "lease-ignored",
    "lease-dropped",
    "fetch-unpromised",
    "decide-promises-nothing",
    "trim-stored",
];

struct Ended {
    code: i32,
    out: String,
    err: String,
}

impl Ended {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.err))
    }
}

fn conform(arguments: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nearwire"));
    command
        .arg("conform")
        .args(arguments)
        .env_remove("NEARWIRE_MUTATION");
    let child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let output = child.wait_with_output().expect("it ends");
    Ended {
        code: output.status.code().expect("it exits"),
        out: String::from_utf8(output.stdout).expect("text"),
        err: String::from_utf8(output.stderr).expect("text"),
    }
}

/// A cluster of one replica, which votes as soon as it runs.
struct Single {
    cluster: LocalCluster,
    directory: TempDir,
}

impl Single {
    fn start(settings: &str, environment: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a directory for temporary files");
        let mut options = Options::new(env!("CARGO_BIN_EXE_nearwire"), directory.path());
        options.addresses = vec![Ipv4Addr::LOCALHOST.into()];
        options.settings = settings.to_owned();
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        options.environment = environment.iter().map(owned).collect();
        let mut cluster = LocalCluster::prepare(options).expect("free ports");
        let child = spawn(&mut cluster.command(1).expect("a log file"));
        cluster.adopt(1, child);
        Self { cluster, directory }
    }

    fn address(&self) -> SocketAddr {
        self.cluster.replicas()[0].address
    }

    fn conform(&self, arguments: &[&str]) -> Ended {
        let target = self.address().to_string();
        let arguments = [&["--target", &target], arguments].concat();
        eventually("a replica that votes", || {
            let ended = conform(&arguments);
            let is_early =
                ended.err.contains("does not answer") || ended.err.contains("not formed");
            (!is_early).then_some(ended)
        })
    }
}

fn assert_field_report(ended: &Ended, name: &str) {
    assert_eq!(ended.code, 1, "{name}: {}", ended.err);
    let report = ended.json();
    let failures = report["failures"].as_array().expect("failures");
    assert!(!failures.is_empty(), "{name}");
    for failure in failures {
        for field in ["case", "sent", "field", "expected", "got"] {
            let text = failure[field].as_str().unwrap_or_default();
            assert!(!text.is_empty(), "{name}: {field} of {failure}");
        }
        assert_ne!(failure["expected"], failure["got"], "{name}: {failure}");
    }
    let has_offset = |failure: &Value| failure["offset"].is_u64();
    assert!(failures.iter().any(has_offset), "{name}: {report}");
}

#[test]
fn the_engine_conforms_and_each_defect_of_it_is_found() {
    let ended = conform(&["--engine", "software", "--output", "json"]);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    let report = ended.json();
    assert_eq!(report["failed"], 0);
    assert!(report["passed"].as_u64() > Some(150), "{report}");
    for name in DEFECTS
        .into_iter()
        .chain(["promise-stored", "overwritten-is-empty"])
    {
        let ended = conform(&[
            "--engine",
            "software",
            "--mutation",
            name,
            "--output",
            "json",
        ]);
        assert_eq!(ended.code, 1, "{name}: {}", ended.err);
        assert!(ended.json()["failed"].as_u64() > Some(0), "{name}");
    }
}

#[test]
fn a_running_replica_conforms_until_its_groups_are_used_up() {
    let single = Single::start(SETTINGS, &[]);
    let ended = single.conform(&["--output", "json"]);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{}", ended.out);
    let report = ended.json();
    assert!(report["passed"].as_u64() > Some(130), "{report}");
    for skip in report["skips"].as_array().expect("skips") {
        let why = skip["why"].as_str().expect("a reason");
        let is_of_the_network = ["memory", "clock", "tags", "64 bits", "epoch", "leases"];
        assert!(
            is_of_the_network.iter().any(|part| why.contains(part)),
            "{skip}"
        );
    }
    let mut ended = single.conform(&[]);
    for _ in 0..20 {
        if ended.code != 0 {
            break;
        }
        ended = single.conform(&[]);
    }
    assert!(
        ended.err.contains("want a blank group each"),
        "{}",
        ended.err
    );
    assert!(
        ended.err.contains("remedy: restart it with a fresh"),
        "{}",
        ended.err
    );
}

#[test]
fn a_device_without_read_is_looked_at_otherwise() {
    let single = Single::start(SETTINGS, &[]);
    let ended = single.conform(&["--no-read", "--output", "json"]);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{}", ended.out);
    assert!(ended.json()["passed"].as_u64() > Some(200), "{}", ended.out);
    let single = Single::start(SETTINGS, &[("NEARWIRE_MUTATION", DEFECTS[2])]);
    let arguments = ["--no-read", "--case", "an-equal-*", "--output", "json"];
    assert_field_report(&single.conform(&arguments), DEFECTS[2]);
}

#[test]
fn a_replica_with_a_key_conforms_to_whoever_has_it() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = tempfile::tempdir().expect("a directory for temporary files");
    let key = scratch.path().join("key");
    std::fs::write(&key, "000102030405060708090a0b0c0d0e0f\n").expect("written");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("own file");
    let key = key.display().to_string();
    let single = Single::start(&format!("key_file = {key:?}\n{SETTINGS}"), &[]);
    let ended = single.conform(&["--key-file", &key, "--output", "json"]);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{}", ended.out);
    let target = single.address().to_string();
    let ended = conform(&["--target", &target, "--timeout-ms", "300"]);
    assert_eq!(ended.code, 1);
    assert!(ended.err.contains("does not answer"), "{}", ended.err);
    assert!(ended.err.contains("--key-file"), "{}", ended.err);
}

#[test]
fn a_replica_with_a_defect_is_found_field_by_field() {
    for name in DEFECTS {
        let single = Single::start(SETTINGS, &[("NEARWIRE_MUTATION", name)]);
        let ended = single.conform(&["--output", "json"]);
        assert_field_report(&ended, name);
    }
}

#[test]
fn who_does_not_answer_is_not_called_wrong() {
    let nobody = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let target = nobody.local_addr().expect("its address").to_string();
    let ended = conform(&["--target", &target, "--timeout-ms", "200"]);
    assert_eq!((ended.code, ended.out.as_str()), (1, ""));
    let wanted = format!("error: {target} does not answer");
    assert!(ended.err.starts_with(&wanted), "{}", ended.err);
    assert!(ended.err.contains("remedy: "), "{}", ended.err);
    drop(nobody);
    let ended = conform(&[
        "--target",
        &target,
        "--timeout-ms",
        "200",
        "--groups",
        "1-2",
    ]);
    assert_eq!(ended.code, 1, "{}", ended.err);
    assert!(ended.err.starts_with(&wanted), "{}", ended.err);
}

#[test]
fn who_answers_with_noise_is_told_apart_from_who_is_silent() {
    let noise = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let target = noise.local_addr().expect("its address").to_string();
    let echo = std::thread::spawn(move || {
        let mut bytes = [0; 2048];
        noise
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("a socket");
        while let Ok((length, from)) = noise.recv_from(&mut bytes) {
            // Every packet comes back as it went: its sender is 0.
            let _ = noise.send_to(&bytes[..length], from);
        }
    });
    let shape = [
        "--groups",
        "0-9",
        "--window-slots",
        "16",
        "--value-bytes",
        "64",
    ];
    let ended = conform(&[&["--target", &target], &shape[..]].concat());
    assert_eq!(ended.code, 1);
    let wanted = format!("error: {target} answers, but with sender 0");
    assert!(ended.err.starts_with(&wanted), "{}", ended.err);
    echo.join().expect("the echo ends");
}

/// Carries datagrams to `target` and back until `stop`; loses some and repeats others.
fn lossy(target: SocketAddr, stop: Arc<AtomicBool>) -> (SocketAddr, JoinHandle<()>) {
    let front = UdpSocket::bind("127.0.0.1:0").expect("a port");
    front.set_nonblocking(true).expect("a socket");
    let address = front.local_addr().expect("its address");
    let thread = std::thread::spawn(move || {
        let mut backs: HashMap<SocketAddr, UdpSocket> = HashMap::new();
        let (mut bytes, mut carried) = (vec![0; 65_536], 0u32);
        let mut copies = || {
            carried += 1;
            match carried % 13 {
                0 | 6 => 0,
                3 => 2,
                _ => 1,
            }
        };
        while !stop.load(Ordering::Relaxed) {
            while let Ok((length, from)) = front.recv_from(&mut bytes) {
                let back = backs.entry(from).or_insert_with(|| {
                    let back = UdpSocket::bind("127.0.0.1:0").expect("a port");
                    back.set_nonblocking(true).expect("a socket");
                    back.connect(target).expect("loopback");
                    back
                });
                for _ in 0..copies() {
                    let _ = back.send(&bytes[..length]);
                }
            }
            for (to, back) in &backs {
                while let Ok(length) = back.recv(&mut bytes) {
                    for _ in 0..copies() {
                        let _ = front.send_to(&bytes[..length], to);
                    }
                }
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    });
    (address, thread)
}

#[test]
fn lost_and_repeated_datagrams_fail_nothing() {
    let single = Single::start(SETTINGS, &[]);
    assert_eq!(single.conform(&["--case", "the-ring-wraps"]).code, 0);
    let stop = Arc::new(AtomicBool::new(false));
    let (relay, thread) = lossy(single.address(), Arc::clone(&stop));
    let target = relay.to_string();
    let ended = conform(&["--target", &target, "--case", "[a-f]*", "--output", "json"]);
    stop.store(true, Ordering::Relaxed);
    thread.join().expect("the relay ends");
    assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{}", ended.out);
}

#[test]
fn groups_for_conformance_are_no_business_of_the_cluster() {
    let mut cluster = Cluster::prepare(CALM);
    cluster.edit(1, |text| {
        format!("{text}\n[region]\nconformance_groups = 8\n")
    });
    cluster.start_all();
    let leader = cluster.lead();
    let elected = cluster.count(leader, "elected");
    let target = cluster.replicas()[0].address.to_string();
    let ended = conform(&[
        "--target",
        &target,
        "--case",
        "a-lease-*",
        "--output",
        "json",
    ]);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{}", ended.out);
    assert_eq!(ended.json()["passed"], 5);
    let mut client = cluster.connect(leader);
    assert_eq!(
        client.call(&["SET", "k", "v"]).expect("a reply"),
        Reply::ok()
    );
    assert_eq!(
        (cluster.lead(), cluster.count(leader, "elected")),
        (leader, elected)
    );
}

#[test]
fn a_node_without_groups_to_test_is_left_alone() {
    let single = Single::start("", &[]);
    let ended = single.conform(&[]);
    assert_eq!((ended.code, ended.out.as_str()), (1, ""));
    assert!(
        ended.err.contains("no groups for conformance"),
        "{}",
        ended.err
    );
    let kept = single.directory.path().join("data-1").join("region");
    assert!(kept.exists());
}

#[test]
fn what_is_not_understood_is_code_2() {
    for arguments in [
        &[][..],
        &["--engine", "hardware"],
        &["--engine", "software", "--case", "no-such-*"],
        &["--engine", "software", "--mutation", "no-such"],
        &["--engine", "software", "--target", "127.0.0.1:1"],
        &["--target", "127.0.0.1:1", "--mutation", "promise-stored"],
        &["--target", "nowhere"],
        &["--target", "127.0.0.1:1", "--groups", "9-1"],
    ] {
        let ended = conform(arguments);
        assert_eq!((ended.code, ended.out.as_str()), (2, ""), "{arguments:?}");
    }
    let ended = conform(&["--list", "--case", "a-blank-acceptor-promises"]);
    assert!(
        ended.out.starts_with("case a-blank-acceptor-promises\n"),
        "{}",
        ended.out
    );
}
