//! The command line as its users see it: the binary, what it prints, and how it ends.
#![allow(clippy::unwrap_used)]

mod fake;

use fake::{Cluster, Manners};
use serde_json::Value;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

struct Ended {
    code: i32,
    out: String,
    err: String,
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nearwire"));
    command.args(arguments);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("NEARWIRE_") {
            command.env_remove(name);
        }
    }
    command
}

fn end(command: &mut Command) -> Ended {
    let output = command.output().unwrap();
    Ended {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn nearwire(arguments: &[&str]) -> Ended {
    end(&mut command(arguments))
}

fn json(arguments: &[&str]) -> Value {
    let ended = nearwire(&[arguments, &["--output", "json"]].concat());
    assert_eq!(ended.code, 0, "{}", ended.err);
    serde_json::from_str(&ended.out).unwrap()
}

/// Writes a configuration and returns its path.
fn written(scratch: &Path, text: &str) -> String {
    let path = scratch.join("node.toml");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn example() -> String {
    nearwire(&["config", "example"]).out
}

#[test]
fn the_example_is_a_configuration() {
    let scratch = tempfile::tempdir().unwrap();
    let path = written(scratch.path(), &example());
    let ended = nearwire(&["config", "check", &path]);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));
    assert_eq!(
        ended.out,
        format!("{path}: ok, node 1 of 3 in cluster \"example\"\n")
    );
    let answer = json(&["config", "check", &path]);
    assert_eq!((&answer["ok"], &answer["node"]), (&true.into(), &1.into()));
}

#[test]
fn an_unknown_key_is_pointed_at_with_a_remedy() {
    let scratch = tempfile::tempdir().unwrap();
    let text = example().replace("heartbeat_ms", "heartbeat");
    let path = written(scratch.path(), &text);
    let line = text
        .lines()
        .position(|line| line.starts_with("heartbeat"))
        .unwrap()
        + 1;
    let ended = nearwire(&["config", "check", &path]);
    assert_eq!((ended.code, ended.out.as_str()), (2, ""));
    let error = format!(
        "error: {path}:{line}:1: unknown key `heartbeat`; did you mean `heartbeat_ms`?\n\
         remedy: known here: heartbeat_ms, election_ms, lease_us\n"
    );
    assert_eq!(ended.err, error);
}

#[test]
fn an_unknown_peer_is_a_configuration_error_for_run_too() {
    let scratch = tempfile::tempdir().unwrap();
    let path = written(scratch.path(), &example());
    let ended = nearwire(&["run", "--config", &path, "--node", "9"]);
    assert_eq!(ended.code, 2);
    assert!(
        ended
            .err
            .starts_with("error: --node: node 9 is not among [[peer]]: the members are 1, 2, 3"),
        "{}",
        ended.err
    );
}

#[test]
fn a_key_that_everybody_may_read_is_refused_with_chmod() {
    let scratch = tempfile::tempdir().unwrap();
    let key = scratch.path().join("key");
    fs::write(&key, "000102030405060708090a0b0c0d0e0f\n").unwrap();
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    let key = key.display();
    let path = written(
        scratch.path(),
        &format!("key_file = \"{key}\"\n{}", example()),
    );
    let ended = nearwire(&["config", "check", &path]);
    assert_eq!(ended.code, 2);
    assert!(
        ended
            .err
            .starts_with(&format!("error: {path}:1:12: key file {key}")),
        "{}",
        ended.err
    );
    assert!(
        ended.err.ends_with(&format!("remedy: chmod 600 {key}\n")),
        "{}",
        ended.err
    );
}

#[test]
fn a_key_is_made_and_a_node_that_others_reach_wants_one() {
    let scratch = tempfile::tempdir().unwrap();
    let text = example().replace("127.0.0.1:474", "10.0.0.1:474");
    let path = written(scratch.path(), &text);
    for command in ["check", "run"] {
        let ended = match command {
            "check" => nearwire(&["config", "check", &path]),
            _ => nearwire(&["run", "--config", &path]),
        };
        assert_eq!(ended.code, 2, "{}", ended.err);
        let remedy = "remedy: make a key with `nearwire config key FILE`";
        assert!(ended.err.contains(remedy), "{}", ended.err);
    }

    let key = scratch.path().join("key").display().to_string();
    let made = nearwire(&["config", "key", &key]);
    assert_eq!((made.code, made.out), (0, format!("{key}: a new key\n")));
    let path = written(scratch.path(), &format!("key_file = \"{key}\"\n{text}"));
    let ended = nearwire(&["config", "check", &path]);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""));

    let again = nearwire(&["config", "key", &key]);
    assert_eq!(again.code, 1);
    assert!(again.err.contains("File exists"), "{}", again.err);
}

#[test]
fn a_wrong_command_line_is_code_2() {
    for arguments in [
        &[][..],
        &["frobnicate"],
        &["run"],
        &["get", "k"],
        &["get", "--peers", "nowhere", "k"],
        &["get", "--peers", "127.0.0.1:1", "--timeout-ms", "0", "k"],
        &["propose", "--peers", "127.0.0.1:1", "FROBNICATE"],
        &["leader", "move", "--to", "0", "--peers", "127.0.0.1:1"],
        &["status", "--output", "xml"],
        &["offload"],
        &["offload", "install"],
        &["offload", "remove"],
        &["offload", "remove", "--orphan", "c0ffee"],
        &[
            "offload",
            "remove",
            "--orphan",
            "00c0ffee00c0ffee",
            "--config",
            "x",
        ],
        &["offload", "remove", "--bpffs", "/sys/fs/bpf"],
        &["offload", "seal"],
        &["offload", "probe", "--try"],
        &["offload", "test"],
        &["offload", "test", "/nonexistent/packet.hex"],
        &["offload", "test", "--value-bytes", "65", "/dev/null"],
        &["config", "check", "/nonexistent/node.toml"],
    ] {
        let ended = nearwire(arguments);
        assert_eq!((ended.code, ended.out.as_str()), (2, ""), "{arguments:?}");
        assert!(!ended.err.is_empty(), "{arguments:?}");
    }
}

#[test]
fn what_is_wrong_with_an_address_is_said_of_where_it_stands() {
    let save = ["snapshot", "save", "--from", "nowhere", "/nonexistent"];
    for (arguments, claim) in [
        (&save[..], "--from nowhere: "),
        (&["member", "add", "4=nowhere"], "error: 4=nowhere: "),
        (&["member", "add", "127.0.0.1:1"], "which node is that"),
        (
            &["member", "replace", "1", "--with", "4=nowhere"],
            "--with 4=nowhere: ",
        ),
    ] {
        let ended = nearwire(&[arguments, &["--peers", "127.0.0.1:1"]].concat());
        let said = &ended.err;
        assert_eq!(ended.code, 2, "{said}");
        assert!(said.contains(claim) && !said.contains("--peers"), "{said}");
    }
}

#[test]
fn help_and_version_are_answers() {
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["help", "run"],
        &["status", "-h"],
    ] {
        let ended = nearwire(arguments);
        assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{arguments:?}");
        assert!(ended.out.contains("nearwire"), "{arguments:?}");
    }
}

#[test]
fn status_shows_every_replica_and_passes_unknown_fields_on() {
    let cluster = Cluster::start(2, 2, Manners::default());
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let silent = nobody.local_addr().unwrap();
    let peers = format!("{},3={silent}", cluster.peers());
    let status = ["status", "--peers", &peers, "--timeout-ms", "200"];
    let rows = json(&status);
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 3);
    assert_eq!(
        (&rows[1]["role"], &rows[1]["state"]),
        (&"leader".into(), &"ok".into())
    );
    assert_eq!(rows[0]["later"], "new");
    assert_eq!(
        (&rows[2]["node"], &rows[2]["state"]),
        (&3.into(), &"unreachable".into())
    );
    let table = nearwire(&status);
    assert_eq!(
        (table.code, table.out.lines().count()),
        (0, 4),
        "{}",
        table.out
    );
}

#[test]
fn status_of_a_dead_cluster_fails_but_shows_it() {
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let peer = nobody.local_addr().unwrap().to_string();
    let ended = nearwire(&[
        "status",
        "--peers",
        &peer,
        "--timeout-ms",
        "100",
        "--output",
        "json",
    ]);
    assert_eq!(ended.code, 1);
    let rows: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(rows[0]["state"], "unreachable");
    assert!(ended.err.contains("remedy: "), "{}", ended.err);
}

#[test]
fn leadership_is_shown_and_moved() {
    let cluster = Cluster::start(3, 1, Manners::default());
    let peers = cluster.peers();
    let shown = json(&["leader", "show", "--peers", &peers]);
    assert_eq!(
        (&shown["leader"], &shown["ballot"]),
        (&1.into(), &"7.1".into())
    );
    let moved = json(&["leader", "move", "--to", "3", "--peers", &peers]);
    assert_eq!(moved["leader"], 3);
    let address = cluster.members[2].1;
    let shown = nearwire(&["leader", "show", "--peers", &peers]).out;
    assert_eq!(shown, format!("node 3 at {address} leads in ballot 7.3\n"));
    let ended = nearwire(&["leader", "move", "--to", "4", "--peers", &peers]);
    assert_eq!(ended.code, 1);
    assert!(
        ended.err.starts_with("error: node 4 is no member"),
        "{}",
        ended.err
    );
}

#[test]
fn a_successor_that_does_not_take_over_is_a_failure() {
    let manners = Manners {
        ignores_transfers: true,
        ..Manners::default()
    };
    let cluster = Cluster::start(2, 1, manners);
    let peers = cluster.peers();
    let ended = nearwire(&[
        "leader",
        "move",
        "--to",
        "2",
        "--peers",
        &peers,
        "--timeout-ms",
        "300",
    ]);
    assert_eq!(ended.code, 1);
    assert!(
        ended
            .err
            .starts_with("error: node 2 did not take over within 300 ms"),
        "{}",
        ended.err
    );
}

#[test]
fn what_is_put_is_got() {
    let cluster = Cluster::start(3, 2, Manners::default());
    let peers = cluster.peers();
    let run = |words: &[&str]| {
        let (name, rest) = words.split_first().unwrap();
        nearwire(&[&[*name, "--peers", &peers], rest].concat())
    };
    assert_eq!(run(&["put", "k", "v w"]).out, "OK\n");
    assert_eq!(run(&["get", "k"]).out, "v w\n");
    assert_eq!(run(&["get", "absent"]).out, "\n");
    assert_eq!(run(&["propose", "INCRBY", "n", "-5"]).out, "-5\n");
    assert_eq!(json(&["get", "--peers", &peers, "k"])["reply"], "v w");
    assert_eq!(
        json(&["get", "--peers", &peers, "absent"])["reply"],
        Value::Null
    );
    let ended = run(&["propose", "INCR", "k"]);
    assert_eq!((ended.code, ended.out.as_str()), (1, ""));
    assert!(
        ended.err.starts_with("error: ERR value is not an integer"),
        "{}",
        ended.err
    );
}

#[test]
fn flags_come_from_the_environment_and_the_command_line_wins() {
    let cluster = Cluster::start(1, 1, Manners::default());
    let mut get = command(&["propose", "PTTL", "k"]);
    get.env("NEARWIRE_PEERS", cluster.peers())
        .env("NEARWIRE_OUTPUT", "json");
    let ended = end(&mut get);
    let wanted: Value = serde_json::json!({ "reply": -2 });
    assert_eq!(
        serde_json::from_str::<Value>(&ended.out).unwrap(),
        wanted,
        "{}",
        ended.err
    );
    assert_eq!(end(get.args(["--ignored"])).code, 2);
    let mut get = command(&["get", "--output", "table", "k"]);
    get.env("NEARWIRE_PEERS", cluster.peers())
        .env("NEARWIRE_OUTPUT", "json");
    assert_eq!(end(&mut get).out, "\n");
}

#[test]
fn the_doctor_reports_each_check() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().to_str().unwrap();
    let checks = json(&["doctor", "--data-directory", directory]);
    for check in checks.as_array().unwrap() {
        let result = check["result"].as_str().unwrap();
        assert!(["ok", "warn"].contains(&result), "{check}");
    }
}

#[test]
fn offload_needs_an_offload_and_a_node_that_ran() {
    let scratch = tempfile::tempdir().unwrap();
    let data = scratch.path().join("data");
    let text = example().replace("/var/lib/nearwire/1", data.to_str().unwrap());
    let path = written(scratch.path(), &text);
    let ended = nearwire(&["offload", "install", "--config", &path]);
    assert_eq!(ended.code, 2, "{}", ended.err);
    assert!(
        ended.err.starts_with("error: node 1 has no [offload]"),
        "{}",
        ended.err
    );
    for word in ["remove", "seal"] {
        let ended = nearwire(&["offload", word, "--config", &path]);
        assert_eq!(ended.code, 1, "{}", ended.err);
        let never = format!("error: no node has ever run in {}\n", data.display());
        assert!(ended.err.starts_with(&never), "{}", ended.err);
    }
    assert!(!data.exists(), "a look makes no data directory");
}

#[test]
fn offload_names_a_directory_that_is_no_bpffs() {
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().to_str().unwrap();
    let ended = nearwire(&["offload", "status", "--bpffs", place]);
    assert_eq!(ended.code, 3, "{}", ended.err);
    let mount = format!("mount -t bpf bpf {place}\n");
    assert!(ended.err.ends_with(&mount), "{}", ended.err);
}

#[test]
fn a_packet_that_is_none_is_pointed_at() {
    let scratch = tempfile::tempdir().unwrap();
    let packet = scratch.path().join("packet.hex");
    fs::write(&packet, "4e57 # magic\nwrong\n").unwrap();
    let packet = packet.to_str().unwrap();
    let ended = nearwire(&["offload", "test", packet]);
    assert_eq!(ended.code, 2, "{}", ended.err);
    let error = format!("error: read {packet}: line 2: 'w' is no digit\nremedy: ");
    assert!(ended.err.starts_with(&error), "{}", ended.err);
}

#[test]
fn completions_and_manual_pages_are_written() {
    for shell in ["bash", "zsh", "fish"] {
        let ended = nearwire(&["completions", shell]);
        assert!(ended.code == 0 && ended.out.contains("leader"), "{shell}");
    }
    assert!(nearwire(&["man"]).out.contains(".TH nearwire 1"));
    let scratch = tempfile::tempdir().unwrap();
    let pages = scratch.path().join("man1");
    let ended = nearwire(&["man", pages.to_str().unwrap()]);
    assert_eq!((ended.code, ended.out.as_str()), (0, ""), "{}", ended.err);
    assert!(pages.join("nearwire-leader-move.1").is_file());
}

#[test]
fn a_reader_that_went_away_is_no_failure() {
    let mut child = command(&["config", "example"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}
