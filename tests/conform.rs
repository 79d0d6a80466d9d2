//! `nearwire conform` against the engine in this process and against a running replica.

mod common;

use common::{Cluster, Reply, eventually, spawn};
use consensus::conformance::{Device, Field, Outcome, Shape, Software};
use consensus::wire::Kind;
use nearwire::local_cluster::{LocalCluster, Options};
use serde_json::Value;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Groups for the whole corpus, small ones.
const SETTINGS: &str = "\n[region]\nwindow_slots = 16\nvalue_bytes = 256\nconformance_groups = 1024\n\
     \n[timing]\nelection_ms = 500\nlease_us = 400000\n";
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

/// What a device does wrong that answers the first time as it should.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Misdeed {
    /// Nothing.
    None,
    /// Refuses a vote that it has just reported.
    Retracts,
    /// Reports a vote that it has just refused.
    Relents,
    /// Acknowledges what nobody asked it to, much later.
    Acknowledges,
    /// Takes longer than a part of a lease for everything.
    Dawdles,
}

impl Misdeed {
    /// What is sent after an answer, or after silence, and when.
    fn follows(self, request: &[u8], answer: Option<&[u8]>) -> Option<(Duration, Vec<u8>)> {
        let kind = |packet: &[u8]| Kind::from_code(Field::Kind.get(packet) as u8);
        let said = |packet: &[u8], kind: Kind| {
            let mut other = packet.to_vec();
            Field::Kind.put(&mut other, kind as u64);
            other
        };
        let soon = Duration::from_millis(20);
        match (self, kind(request), answer) {
            (Self::Retracts, _, Some(answer)) if kind(answer) == Some(Kind::Accepted) => {
                Some((soon, said(answer, Kind::Nack)))
            }
            (Self::Relents, Some(Kind::Accept), Some(answer))
                if kind(answer) == Some(Kind::Nack) =>
            {
                Some((soon, said(answer, Kind::Accepted)))
            }
            (Self::Acknowledges, Some(Kind::Decide), None) if Field::Flags.get(request) == 0 => {
                Some((Duration::from_millis(400), said(request, Kind::Ack)))
            }
            _ => None,
        }
    }
}

/// A device whose groups are the shipped step, each of them one alone.
struct Mimic {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Mimic {
    fn start(shape: Shape, misdeed: Misdeed) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let wait = Duration::from_millis(1);
        socket.set_read_timeout(Some(wait)).expect("a socket");
        let address = socket.local_addr().expect("its address");
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut groups: HashMap<u64, (Software, Instant)> = HashMap::new();
            let mut later: Vec<(Instant, Vec<u8>, SocketAddr)> = Vec::new();
            let mut bytes = vec![0; 65_536];
            while !is_over.load(Ordering::Relaxed) {
                let now = Instant::now();
                later.retain(|(due, datagram, to)| {
                    let is_due = *due <= now;
                    if is_due {
                        let _ = socket.send_to(datagram, to);
                    }
                    !is_due
                });
                let Ok((length, from)) = socket.recv_from(&mut bytes) else {
                    continue;
                };
                let request = &mut bytes[..length];
                let named = Field::Group.get(request);
                let (step, since) = groups.entry(named).or_insert_with(|| {
                    let step = Software::new(shape).expect("a region");
                    (step, Instant::now())
                });
                let passed = std::mem::replace(since, Instant::now()).elapsed();
                let Ok(()) = step.wait(passed.as_nanos() as u64);
                if named < 1024 {
                    Field::Group.put(request, step.target().group.into());
                }
                let Ok(outcome) = step.exchange(request, true);
                let answer = match outcome {
                    Outcome::Answered(mut answer) => {
                        Field::Group.put(&mut answer, named);
                        Some(answer)
                    }
                    Outcome::Silence(_) => None,
                };
                Field::Group.put(request, named);
                if let Some((after, datagram)) = misdeed.follows(request, answer.as_deref()) {
                    later.push((Instant::now() + after, datagram, from));
                }
                let Some(answer) = answer else { continue };
                if misdeed == Misdeed::Dawdles {
                    later.push((Instant::now() + Duration::from_millis(120), answer, from));
                } else {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self {
            address,
            stop,
            thread: Some(thread),
        }
    }

    /// Tests it as what its shape is, with `more` flags.
    fn conform(&self, shape: Shape, more: &[&str]) -> Ended {
        let target = self.address.to_string();
        let numbers = [
            shape.window.to_string(),
            shape.value_bytes.to_string(),
            shape.epoch.to_string(),
        ];
        let mut arguments = vec!["--target", &target, "--groups", "0-1023"];
        let flags = ["--window-slots", "--value-bytes", "--epoch"];
        for (flag, number) in flags.into_iter().zip(&numbers) {
            arguments.extend([flag, number]);
        }
        conform(&[&arguments, more].concat())
    }
}

impl Drop for Mimic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Without leases, in a later membership.
fn plain() -> Shape {
    Shape {
        window: 16,
        lease_ns: 0,
        epoch: 2,
        ..Shape::SMALL
    }
}

#[test]
fn a_device_that_says_otherwise_later_is_found() {
    for misdeed in [Misdeed::Retracts, Misdeed::Relents, Misdeed::Acknowledges] {
        let mimic = Mimic::start(plain(), misdeed);
        let more = ["--case", "a-*", "--output", "json"];
        let ended = mimic.conform(plain(), &more);
        assert_eq!(ended.code, 1, "{misdeed:?}: {}", ended.err);
        let later = |failure: &Value| {
            let sent = failure["sent"].as_str().unwrap_or_default();
            sent.ends_with(", answered later") && failure["expected"] != failure["got"]
        };
        let report = ended.json();
        let failures = report["failures"].as_array().expect("failures");
        assert!(failures.iter().all(later), "{misdeed:?}: {report}");
    }
}

#[test]
fn a_slow_device_is_judged_all_the_same() {
    let mimic = Mimic::start(plain(), Misdeed::Dawdles);
    let lease = ["--case", "*lease*", "--output", "json"];
    let ended = mimic.conform(plain(), &lease);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{}", ended.out);
    // It grants none.
    let ended = mimic.conform(plain(), &[&lease[..], &["--lease-ms", "400"]].concat());
    assert_eq!(ended.code, 1, "{}", ended.err);
    assert!(ended.json()["failed"].as_u64() > Some(1), "{}", ended.out);
}

#[test]
fn a_device_without_leases_and_read_passes_and_a_part_is_called_a_part() {
    let mimic = Mimic::start(plain(), Misdeed::None);
    let ended = mimic.conform(plain(), &["--no-read", "--output", "json"]);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{}", ended.out);
    let report = ended.json();
    assert!(report["passed"].as_u64() > Some(200), "{report}");
    assert_eq!(report["limits"], serde_json::json!([]));

    let small = Shape {
        window: 2,
        epoch: 1,
        ..plain()
    };
    let mimic = Mimic::start(small, Misdeed::None);
    let ended = mimic.conform(small, &[]);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{}", ended.out);
    for part in ["a test in part", "older memberships are dropped"] {
        assert!(ended.out.contains(part), "{}", ended.out);
    }
}

#[test]
fn a_device_of_the_hardware_profile_passes_over_the_wire() {
    let mimic = Mimic::start(Shape::NARROW, Misdeed::None);
    let ended = mimic.conform(Shape::NARROW, &["--profile", "hardware", "--no-read"]);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{}", ended.out);
    // One that holds more than it says does not drop what it should.
    let wide = Shape {
        is_narrow: false,
        ..Shape::NARROW
    };
    let mimic = Mimic::start(wide, Misdeed::None);
    let ended = mimic.conform(wide, &["--profile", "hardware", "--no-read"]);
    assert_eq!(ended.code, 1, "{}", ended.out);
}

#[test]
fn groups_for_conformance_are_no_business_of_the_cluster() {
    let mut cluster = Cluster::prepare("\n[timing]\nelection_ms = 500\nlease_us = 400000\n");
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
        &["--engine", "software", "--window-slots", "2"],
        &["--engine", "software", "--profile", "hardware"],
        &["--engine", "software", "--no-read"],
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
