//! The demonstration with acceptors in the kernel, run as root runs it.

use nix::unistd::geteuid;
use serde_json::Value;
use std::process::Command;

fn demo(engine: &[&str]) -> Option<(Value, String)> {
    if !geteuid().is_root() {
        eprintln!("nearwire-test-skipped: demo: needs root");
        return None;
    }
    let parent = tempfile::tempdir().expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_nearwire"))
        .args(["demo", "--output", "json", "--seconds", "2"])
        .args(engine)
        .env("TMPDIR", parent.path())
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {said}", output.status);
    let report = serde_json::from_slice(&output.stdout).expect("one JSON object");
    Some((report, said))
}

#[test]
fn root_sees_acceptors_in_the_kernel_that_lose_nothing() {
    let Some((report, said)) = demo(&[]) else {
        return;
    };
    assert!(
        said.contains("vote in the kernel, in native mode"),
        "{said}"
    );
    assert_eq!(report["acknowledged_lost"], 0);
    assert!(report["commits"].as_u64() > Some(1000), "{report:#}");
    assert_ne!(report["leader_after"], report["leader_before"]);
    let replicas = report["replicas"].as_array().expect("an array");
    assert_eq!(replicas.len(), 3);
    for replica in replicas {
        assert_eq!(replica["engine"], "xdp", "{replica:#}");
        assert_eq!(replica["mode"], "native", "{replica:#}");
    }
}

#[test]
fn what_is_fallen_back_from_is_said() {
    let Some((report, said)) = demo(&["--durability", "sync"]) else {
        return;
    };
    assert!(said.contains("software acceptors on loopback"), "{said}");
    assert!(
        said.contains("waits for a disk") && said.contains("--engine xdp"),
        "{said}"
    );
    assert_eq!(report["replicas"][0]["engine"], "software");
}
