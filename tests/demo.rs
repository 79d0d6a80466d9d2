//! The demonstration, run as a user runs it: the real program and nothing else.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longer than any step of a demonstration on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn demo(parent: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nearwire"));
    command
        .args(["demo", "--output", "json", "--seconds", "2"])
        .args(["--engine", "software"])
        .env("TMPDIR", parent)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Command lines of processes that mention `path`, zombies left out: theirs are empty.
fn processes_of(path: &Path) -> Vec<String> {
    let wanted = path.to_str().expect("a path in UTF-8");
    let entries = fs::read_dir("/proc").expect("proc is mounted").flatten();
    entries
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
        .filter(|line| line.contains(wanted))
        .collect()
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_empty(parent: &Path) -> bool {
    fs::read_dir(parent).expect("it exists").next().is_none()
}

fn report(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

fn is_sound(report: &Value) {
    for key in [
        "commits",
        "p50_us",
        "p99_us",
        "p999_us",
        "ops_per_s",
        "failover_gap_us",
    ] {
        let number = report[key].as_f64();
        assert!(number.is_some_and(|number| number > 0.0), "{key}: {report}");
    }
    assert_eq!(report["acknowledged_lost"], 0);
    assert!(report["acknowledged"].as_u64() <= report["commits"].as_u64());
    assert_eq!(report["killed"], report["leader_before"]);
    assert_ne!(report["leader_after"], report["leader_before"]);
    assert!(
        report["elapsed_s"]
            .as_f64()
            .is_some_and(|seconds| seconds < 60.0)
    );
    assert!(report["machine"]["cpus"].is_u64());

    let replicas = report["replicas"].as_array().expect("an array");
    assert_eq!(replicas.len(), 3);
    for replica in replicas {
        assert_eq!(replica["engine"], "software");
        assert_eq!(replica["durability"], "volatile");
        assert!(replica["mode"].is_string() && replica["role"].is_string());
        assert_eq!(replica["restarted"], replica["node"] == report["killed"]);
    }
    let leaders = replicas
        .iter()
        .filter(|replica| replica["role"] == "leader");
    assert_eq!(leaders.count(), 1);
}

/// A demonstration whose replicas are running.
fn started(parent: &Path, mut command: Command) -> Child {
    let demo = command.spawn().expect("the program starts");
    wait_until("three replicas start", || processes_of(parent).len() == 3);
    demo
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_is_left_behind() {
    let parent = tempfile::tempdir().expect("a directory");
    let output = demo(parent.path()).output().expect("the program starts");
    is_sound(&report(&output));
    assert!(is_empty(parent.path()));
    assert_eq!(processes_of(parent.path()), [""; 0]);
}

#[test]
fn two_at_once_do_not_meet_and_a_users_environment_does_not_reach_the_replicas() {
    let parent = tempfile::tempdir().expect("a directory");
    let other = parent.path().join("other");
    let mut second = demo(parent.path());
    second
        .env("NEARWIRE_NODE", "9")
        .env("NEARWIRE_DATA_DIRECTORY", &other);
    let first = demo(parent.path()).spawn().expect("the program starts");
    let second = second.spawn().expect("the program starts");
    for child in [first, second] {
        is_sound(&report(&child.wait_with_output().expect("it ends")));
    }
    assert!(!other.exists());
    assert!(is_empty(parent.path()));
}

#[test]
fn a_signal_in_the_middle_leaves_nothing() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let parent = tempfile::tempdir().expect("a directory");
        let child = started(parent.path(), demo(parent.path()));
        std::thread::sleep(Duration::from_millis(700));
        kill(Pid::from_raw(child.id() as i32), signal).expect("it runs");
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).ends_with("error: interrupted\n"));
        assert!(output.stdout.is_empty());
        assert_eq!(processes_of(parent.path()), [""; 0]);
        assert!(is_empty(parent.path()));
    }
}

#[test]
fn replicas_die_with_a_killed_demo_and_the_next_removes_its_directory() {
    let parent = tempfile::tempdir().expect("a directory");
    let mut child = started(parent.path(), demo(parent.path()));
    child.kill().expect("it runs");
    let status = child.wait().expect("it ends");
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
    wait_until("the replicas end", || {
        processes_of(parent.path()).is_empty()
    });
    let left = fs::read_dir(parent.path())
        .expect("it exists")
        .flatten()
        .next();
    let left = left.expect("the directory is left").path();
    let mode = fs::metadata(&left).expect("it exists").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);

    let child = started(parent.path(), demo(parent.path()));
    assert!(!left.exists());
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("it runs");
    child.wait_with_output().expect("it ends");
    assert!(is_empty(parent.path()));
}

#[test]
fn a_kept_directory_is_named_and_stays() {
    let parent = tempfile::tempdir().expect("a directory");
    let mut command = demo(parent.path());
    let output = command.arg("--keep").output().expect("the program starts");
    let report = report(&output);
    is_sound(&report);
    let kept = Path::new(report["kept"].as_str().expect("a path"));
    assert!(kept.starts_with(parent.path()) && kept.join("node-1.log").exists());
}

#[test]
fn a_directory_that_cannot_be_made_is_named_with_a_remedy() {
    let parent = Path::new("/proc");
    let output = demo(parent).output().expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("/proc") && said.contains("remedy: set TMPDIR"),
        "{said}"
    );
}
