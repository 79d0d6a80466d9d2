//! `nearwire offload` beside nodes that run, in namespaces with bpffs of their own.

mod offload_scene;

use consensus::wire::{Flags, Header, Kind};
use consensus::{Ballot, Epoch, GroupId, NodeId, Slot};
use nearwire::xdp_site::Ports;
use offload_scene::{Ended, NODES, Scene};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn a_running_node_is_told_and_obeys() {
    let scene = Scene::new("tell", |_| {});
    scene.await_voting();
    let status = scene.json(1, &["status"]);
    let regions = status["regions"].as_array().expect("a list");
    assert_eq!(regions.len(), 1, "{status:#}");
    let region = &regions[0];
    assert_eq!(region["state"], "voting", "{status:#}");
    assert_eq!(region["interface"], "eth0", "{status:#}");
    assert_eq!(region["mode"], "native", "{status:#}");
    assert_eq!(region["owner"], "this", "{status:#}");
    assert_eq!(region["link"], "pinned", "{status:#}");
    assert_eq!(region["process"], scene.process(1), "{status:#}");
    assert_eq!(region["node"], 1, "{status:#}");
    assert_eq!(region["programs"], 1, "{status:#}");
    assert_ne!(region["ballot"], "0.0", "{status:#}");
    assert_eq!(status["node"]["offload"]["state"], "voting", "{status:#}");

    // The same bpffs, seen from another network.
    let elsewhere = scene.site.replicas()[1].node.as_ref().expect("a namespace");
    let mut entered = Command::new("nsenter");
    entered.arg(format!("--net=/run/netns/{}", elsewhere.namespace));
    entered.args([env!("CARGO_BIN_EXE_nearwire"), "offload", "status"]);
    entered.args(["--output", "json"]);
    let seen = scene.run(1, entered);
    let seen: Value = serde_json::from_str(&seen.out).expect("JSON");
    assert_eq!(seen["regions"][0]["interface"], "elsewhere", "{seen:#}");
    assert_eq!(seen["regions"][0]["state"], "voting", "{seen:#}");

    let removed = scene.json(1, &["remove"]);
    assert_eq!(removed["offload"]["state"], "removed", "{removed:#}");
    assert_eq!(removed["engine"], "software", "{removed:#}");
    let status = scene.json(1, &["status"]);
    assert_eq!(status["regions"][0]["state"], "detached", "{status:#}");
    assert_eq!(status["node"]["wanted"], "software", "{status:#}");

    let installed = scene.json(1, &["install"]);
    assert_eq!(installed["offload"]["state"], "voting", "{installed:#}");
    assert_eq!(installed["engine"], "xdp", "{installed:#}");
    let status = scene.json(1, &["status"]);
    assert_eq!(status["regions"][0]["state"], "voting", "{status:#}");
}

#[test]
fn what_a_dead_node_left_is_seen_and_detached() {
    let mut scene = Scene::new("left", |_| {});
    scene.await_voting();
    scene.cluster.kill(2);
    let left = scene.json(2, &["status"]);
    assert_eq!(left["regions"][0]["state"], "voting", "{left:#}");
    assert_eq!(left["regions"][0]["held"], false, "{left:#}");
    assert_eq!(left["node"]["running"], false, "{left:#}");
    let removed = scene.json(2, &["remove"]);
    assert_eq!(removed["running"], false, "{removed:#}");
    let status = scene.json(2, &["status"]);
    assert_eq!(status["regions"][0]["state"], "detached", "{status:#}");
    let trim = status["regions"][0]["trim"].as_u64();
    assert!(trim >= Some(1), "the votes are still there: {status:#}");
    // It comes back on the same votes, and in software, as it was told.
    scene.start(2);
    scene.await_report(2, "removed", |report| {
        report["offload"]["state"] == "removed"
    });
    let installed = scene.json(2, &["install"]);
    assert_eq!(installed["offload"]["state"], "voting", "{installed:#}");
}

#[test]
fn a_start_that_must_not_have_the_region_leaves_it_voting() {
    let mut scene = Scene::new("fail", |_| {});
    scene.await_voting();
    scene.cluster.kill(2);
    let config = scene.config(2);
    let text = fs::read_to_string(&config).expect("it was written");
    let other = text.replace("\n[worker]", "\n[region]\nwindow_slots = 64\n\n[worker]");
    fs::write(&config, &other).expect("it is written");
    scene.start(2);
    let ended = scene.cluster.wait(2).expect("it was started");
    let log = scene.cluster.log(2);
    assert_eq!(ended.code(), Some(1), "{log}");
    assert!(log.contains("restore [region] as it was"), "{log}");
    let status = scene.json(2, &["status"]);
    let region = &status["regions"][0];
    assert_eq!(region["state"], "voting", "{status:#}");
    assert_eq!(region["held"], false, "{status:#}");
    assert_eq!(region["window_slots"], 4096, "{status:#}");
    assert_eq!(region["owner"], "this", "{status:#}");
    fs::write(&config, &text).expect("it is written");
    scene.start(2);
    scene.await_report(2, "voting in XDP", |report| report["engine"] == "xdp");
}

#[test]
fn a_process_whose_clock_is_not_the_programs_is_refused() {
    let mut scene = Scene::new("time", |_| {});
    scene.await_voting();
    scene.cluster.kill(2);
    let config = scene.config(2);
    let mut shifted = Command::new("timeout");
    // One that is not refused would run for ever.
    shifted.args(["20", "unshare", "--time", "--fork", "--monotonic", "100000"]);
    shifted.args([env!("CARGO_BIN_EXE_nearwire"), "run", "--config", &config]);
    let ended = scene.run(2, shifted);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let why = "the time namespace of this process sets its clock (CLOCK_MONOTONIC) 100000 s off";
    assert!(ended.err.contains(why), "{ended:?}");
    let status = scene.json(2, &["status"]);
    assert_eq!(status["regions"][0]["state"], "voting", "{status:#}");
    scene.start(2);
    scene.await_report(2, "voting in XDP", |report| report["engine"] == "xdp");
}

#[test]
fn an_orphan_goes_only_once_nobody_holds_it() {
    let mut scene = Scene::new("orphan", |_| {});
    scene.await_voting();
    let status = scene.json(3, &["status"]);
    let nonce = status["regions"][0]["region"]
        .as_str()
        .expect("a text")
        .to_owned();
    let orphan = ["offload", "remove", "--orphan", &nonce];
    let refused = scene.nearwire(3, &orphan);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let process = format!("process {} uses it", scene.process(3));
    assert!(refused.err.contains(&process), "{refused:?}");
    scene.cluster.kill(3);
    let refused = scene.offload(3, &orphan[1..]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("is no orphan"), "{refused:?}");
    let removed = scene.nearwire(3, &orphan);
    assert_eq!(removed.code, Some(0), "{removed:?}");
    let status = scene.json(3, &["status"]);
    assert_eq!(
        status["regions"].as_array().map(Vec::len),
        Some(0),
        "{status:#}"
    );
    // Its votes are lost, and it knows.
    scene.start(3);
    let ended = scene.cluster.wait(3).expect("it was started");
    assert_eq!(ended.code(), Some(3), "{}", scene.cluster.log(3));
    let log = scene.cluster.log(3);
    assert!(log.contains("lost its memory"), "{log}");
}

#[test]
fn who_sits_on_the_interface_is_named() {
    let scene = Scene::new("seat", |_| {});
    scene.await_voting();
    scene.json(1, &["remove"]);
    let place = scene.site.replicas()[0].node.clone().expect("a namespace");
    let sitting = Ports::open_echo(&place).expect("the interface is free");
    let refused = scene.offload(1, &["install"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.err.contains("(echo) in native mode sits there"),
        "{refused:?}"
    );
    assert!(
        refused.err.contains("bpftool link detach id"),
        "{refused:?}"
    );
    let status = scene.json(1, &["status"]);
    assert_eq!(status["node"]["offload"]["state"], "refused", "{status:#}");
    let error = status["node"]["offload"]["error"]
        .as_str()
        .unwrap_or_default();
    assert!(
        error.contains("(echo) in native mode sits there"),
        "{status:#}"
    );
    drop(sitting);
    let installed = scene.json(1, &["install"]);
    assert_eq!(installed["offload"]["state"], "voting", "{installed:#}");
}

/// Writes through the node that leads.
fn put(scene: &Scene, key: &str, timeout_ms: &str) -> Ended {
    let config = scene.config(scene.leader());
    let rest = [
        "--config",
        &config,
        "--timeout-ms",
        timeout_ms,
        key,
        "value",
    ];
    scene.nearwire(scene.leader(), &[&["put"][..], &rest].concat())
}

#[test]
fn a_sealed_region_votes_no_more_until_its_node_runs() {
    let mut scene = Scene::new("seal", |_| {});
    scene.await_voting();
    let refused = scene.offload(1, &["seal"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.err.contains("nearwire offload remove"),
        "{refused:?}"
    );
    let leader = scene.leader();
    let followers: Vec<u16> = NODES.filter(|node| *node != leader).collect();
    for node in &followers {
        scene.cluster.kill(*node);
    }
    let written = put(&scene, "before", "20000");
    assert_eq!(written.code, Some(0), "the kernel votes: {written:?}");
    for node in &followers {
        let sealed = scene.json(*node, &["seal"]);
        assert_eq!(sealed["sealed"], true, "{sealed:#}");
        let status = scene.json(*node, &["status"]);
        assert_eq!(status["regions"][0]["state"], "sealed", "{status:#}");
        assert_eq!(status["regions"][0]["interface"], "eth0", "{status:#}");
        assert!(status["regions"][0]["ballot"].is_null(), "{status:#}");
    }
    let config = scene.config(leader);
    let waiting = [
        "put",
        "--config",
        &config,
        "--timeout-ms",
        "500",
        "after",
        "x",
    ];
    let unwritten = scene.nearwire(leader, &waiting);
    assert_eq!(unwritten.code, Some(1), "nobody votes: {unwritten:?}");
    for node in &followers {
        scene.start(*node);
    }
    scene.await_voting();
    let written = put(&scene, "last", "20000");
    assert_eq!(written.code, Some(0), "{written:?}\n{}", scene.logs());
    let config = scene.config(1);
    let read = scene.nearwire(
        1,
        &[
            "get",
            "--config",
            &config,
            "--timeout-ms",
            "20000",
            "before",
        ],
    );
    assert_eq!((read.code, &*read.out), (Some(0), "value\n"), "{read:?}");
}

fn packet(directory: &Path, name: &str, header: Header, value: &[u8]) -> String {
    let header = Header {
        epoch: Epoch(1),
        length: value.len() as u16,
        ..header
    };
    let bytes = [&header.to_bytes()[..], value].concat();
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}\n")).collect();
    let path = directory.join(name);
    fs::write(&path, format!("# {name}\n{text}")).expect("it is written");
    path.to_str().expect("a plain path").to_owned()
}

/// A Prepare, an Accept that it lets through, one that comes too late, and one that is malformed.
fn packets(directory: &Path) -> [String; 4] {
    let request = |kind, round| Header {
        slot: Slot(if kind == Kind::Accept { 5 } else { 0 }),
        ballot: Ballot::new(round, NodeId(2)),
        nonce: 77,
        ..Header::new(kind, GroupId(0), NodeId(2))
    };
    let malformed = Header {
        flags: Flags(0x8000),
        ..request(Kind::Accept, 3)
    };
    [
        packet(directory, "prepare", request(Kind::Prepare, 3), &[]),
        packet(directory, "accept", request(Kind::Accept, 3), b"a value."),
        packet(directory, "late", request(Kind::Accept, 2), b"too late"),
        packet(directory, "malformed", malformed, b"whatever"),
    ]
}

fn tested(arguments: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nearwire"));
    command
        .args(["offload", "test", "--output", "json"])
        .args(arguments);
    let output = command.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn after<'a>(shown: &'a Value, word: &str) -> Option<&'a str> {
    let changed = shown["changed"].as_array()?;
    changed.iter().find(|changed| changed["word"] == word)?["after"].as_str()
}

#[test]
fn what_the_program_would_do_with_a_packet_is_shown() {
    let scratch = tempfile::tempdir().expect("a directory");
    let packets = packets(scratch.path());
    let shown = tested(&packets.each_ref().map(String::as_str));
    let verdicts: Vec<_> = (0..4).map(|at| shown[at]["verdict"].as_str()).collect();
    let wanted = [Some("send"), Some("send"), Some("send"), Some("drop")];
    assert_eq!(verdicts, wanted, "{shown:#}");
    let replies: Vec<_> = (0..3)
        .map(|at| shown[at]["reply"]["kind"].as_str())
        .collect();
    assert_eq!(replies, [Some("Promise"), Some("Accepted"), Some("Nack")]);
    assert_eq!(shown[2]["reply"]["vote_ballot"], "3.2", "{shown:#}");
    assert_eq!(shown[1]["reply"]["nonce"], 77);
    assert_eq!(
        shown[3]["counted"],
        serde_json::json!(["flags"]),
        "{shown:#}"
    );
    assert_eq!(shown[3]["unread"], "malformed: flags", "{shown:#}");
    assert_eq!(
        after(&shown[0], "group 0 promised"),
        Some("3.2"),
        "{shown:#}"
    );
    assert_eq!(after(&shown[1], "group 0 highest"), Some("5"), "{shown:#}");
    assert_eq!(
        after(&shown[1], "entry 5 vote 1 ballot"),
        Some("3.2"),
        "{shown:#}"
    );
    let value = format!("{:016x}", u64::from_ne_bytes(*b"a value."));
    assert_eq!(
        after(&shown[1], "entry 5 vote 1 value[0]"),
        Some(&*value),
        "{shown:#}"
    );
    assert_eq!(shown[3]["changed"], serde_json::json!([]), "{shown:#}");

    // What was put into a frame may be given as that frame; to another port it is the stack's.
    let frame = scratch.path().join("frame");
    fs::write(&frame, shown[0]["frame"].as_str().expect("a text")).expect("it is written");
    let frame = frame.to_str().expect("a plain path");
    let again = tested(&[frame]);
    assert_eq!(again[0]["reply_frame"], shown[0]["reply_frame"]);
    let passed = tested(&["--port", "4748", frame]);
    assert_eq!(passed[0]["verdict"], "pass", "{passed:#}");
    assert_eq!(passed[0]["counted"], serde_json::json!([]));
}

/// What a process with these capabilities and no others is started by, as nobody.
fn nobody_with(capabilities: &str) -> Command {
    let mut command = Command::new("setpriv");
    let only = format!("-all,{capabilities}");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    command.arg(format!("--inh-caps={only}"));
    command.arg(format!("--ambient-caps={only}"));
    command.arg(format!("--bounding-set={only}"));
    command
}

const CAPABILITIES: &str = "+bpf,+net_admin,+perfmon";

#[test]
fn three_capabilities_are_enough_to_test_packets_and_two_are_not() {
    let scratch = tempfile::tempdir().expect("a directory");
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(scratch.path(), readable).expect("it is ours");
    let [prepare, ..] = packets(scratch.path());
    let program = env!("CARGO_BIN_EXE_nearwire");
    let test = |capabilities| {
        let mut command = nobody_with(capabilities);
        command.args([program, "offload", "test", &prepare]);
        command.output().expect("setpriv is part of util-linux")
    };
    let ended = test(CAPABILITIES);
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.success(), "{said}");
    let shown = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(shown.contains("send; counted: answered"), "{shown}");
    let ended = test("+net_admin,+perfmon");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(3), "{said}");
    assert!(
        said.contains("remedy: this process lacks CAP_BPF:"),
        "{said}"
    );
}

#[test]
fn three_capabilities_are_enough_to_run_and_none_to_give_orders() {
    let mut scene = Scene::new("caps", |_| {});
    scene.await_voting();
    scene.cluster.kill(1);
    // What it takes beside them: its data directory and its pins are its own.
    let directory = scene.cluster.directory().display().to_string();
    let data = scene.cluster.data_directory(1).display().to_string();
    let mut given = Command::new("sh");
    given.args([
        "-ec",
        "chmod 755 $0 /sys/fs/bpf; chown -R 65534:65534 $1 /sys/fs/bpf/nearwire",
    ]);
    given.args([&directory, &data]);
    let given = scene.run(1, given);
    assert_eq!(given.code, Some(0), "{given:?}");
    let program = env!("CARGO_BIN_EXE_nearwire");
    let config = scene.config(1);
    let mut run = nobody_with(CAPABILITIES);
    run.args([program, "run", "--config", &config]);
    let log = format!("{directory}/nobody.log");
    run.stderr(fs::File::create(&log).expect("a file"));
    let child = scene
        .site
        .spawn(0, run)
        .expect("setpriv is part of util-linux");
    scene.cluster.adopt(1, child);
    scene.await_report(1, "voting in XDP", |report| report["engine"] == "xdp");
    let order = |word: &str| {
        let mut command = nobody_with("-bpf");
        let rest = [
            "--config",
            &config,
            "--timeout-ms",
            "30000",
            "--output",
            "json",
        ];
        command.args([program, "offload", word]).args(rest);
        let ended = scene.run(1, command);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        serde_json::from_str::<Value>(&ended.out).expect("JSON")
    };
    assert_eq!(order("remove")["offload"]["state"], "removed");
    assert_eq!(order("install")["offload"]["state"], "voting");
    let status = order("status");
    assert_eq!(status["regions"][0]["state"], "attached", "{status:#}");
    assert!(status["regions"][0]["programs"].is_null(), "{status:#}");
}

#[test]
fn an_interface_is_probed_and_left_as_it_was() {
    let scene = Scene::new("probe", |_| {});
    scene.await_voting();
    let config = scene.config(1);
    let probe = |words: &[&str], code| {
        let rest = ["--output", "json"];
        let ended = scene.nearwire(1, &[&["offload", "probe"][..], words, &rest].concat());
        assert_eq!(ended.code, Some(code), "{words:?}: {ended:?}");
        let probed: Value = serde_json::from_str(&ended.out).unwrap_or_default();
        (probed["interfaces"][0].clone(), ended.err)
    };
    let status = scene.json(1, &["status"]);
    let (eth0, _) = probe(&["--config", &config], 0);
    assert_eq!(eth0["interface"], "eth0", "{eth0:#}");
    assert_eq!(eth0["driver"], "veth", "{eth0:#}");
    assert_eq!(eth0["native"], "yes", "{eth0:#}");
    assert_eq!(eth0["generic"], false, "{eth0:#}");
    let program = &eth0["programs"][0];
    assert_eq!(program["name"], "acceptor", "{eth0:#}");
    assert_eq!(program["mode"], "native", "{eth0:#}");
    assert_eq!(
        program["region"], status["regions"][0]["region"],
        "{eth0:#}"
    );
    assert_eq!(program["id"], status["regions"][0]["program"], "{eth0:#}");
    let eth0_only = ["--interface", "eth0"];
    let and_try = ["--interface", "eth0", "--try"];
    let (_, said) = probe(&and_try, 1);
    assert!(
        said.contains("(acceptor) in native mode sits there"),
        "{said}"
    );

    scene.json(1, &["remove"]);
    let (eth0, _) = probe(&and_try, 0);
    assert_eq!(eth0["native"], "tried", "{eth0:#}");
    let (eth0, _) = probe(&eth0_only, 0);
    assert_eq!(eth0["programs"], serde_json::json!([]), "{eth0:#}");
    assert_eq!(eth0["generic"], true, "{eth0:#}");

    // A pair of its own: the other end of eth0 has a program that limits its MTU.
    let resize = |mtu: &str| {
        let mut command = Command::new("sh");
        let script = "ip link add v0 type veth peer name v1 2>/dev/null || true; \
                      ip link set v0 mtu $0; ip link set v1 mtu $0";
        command.args(["-ec", script, mtu]);
        let ended = scene.run(1, command);
        assert_eq!(ended.code, Some(0), "{ended:?}");
    };
    let and_try = ["--interface", "v0", "--try"];
    resize("9000");
    let (v0, said) = probe(&["--config", &config, "--interface", "v0"], 3);
    assert_eq!((&v0["native"], &v0["mtu"]), (&"no".into(), &9000.into()));
    let note = v0["notes"][0].as_str().unwrap_or_default();
    assert!(note.contains("mtu 3506"), "{v0:#}");
    assert!(said.contains("takes no acceptor in native mode"), "{said}");
    let (v0, _) = probe(&and_try, 0);
    assert_eq!(v0["native"], "no", "the kernel agrees: {v0:#}");
    resize("3507");
    let (v0, _) = probe(&and_try, 0);
    assert_eq!(v0["native"], "no", "the kernel agrees: {v0:#}");
    resize("3506");
    let (v0, _) = probe(&and_try, 0);
    assert_eq!(v0["native"], "tried", "the largest that it names: {v0:#}");
    probe(&["--interface", "eth7"], 3);
}
