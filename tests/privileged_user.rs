//! A node that root starts goes on as another user.

mod common;

use common::{CALM, Cluster, PATIENCE, skip};
use nix::sys::signal::Signal;
use nix::unistd::{User, chown, geteuid};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const KEY: &str = "00112233445566778899aabbccddeeff";
const USER: &str = "nobody";
const AS_USER: &str = "\n[security]\nuser = \"nobody\"\n";

/// Makes a file or directory the user's.
fn give(path: &Path) {
    let user = User::from_name(USER)
        .expect("readable")
        .expect("there is one");
    chown(path, Some(user.uid), Some(user.gid)).expect("root gives away");
}

/// Three replicas that become another user, with a key file; nothing is that user's yet.
fn cluster(more: &str) -> Option<Cluster> {
    if !geteuid().is_root() {
        skip("user", "needs root");
        return None;
    }
    let cluster = Cluster::prepare(CALM);
    let directory = cluster.directory().to_owned();
    // mkdtemp keeps others out.
    fs::set_permissions(&directory, Permissions::from_mode(0o755)).expect("own directory");
    let key = directory.join("key");
    fs::write(&key, format!("{KEY}\n")).expect("written");
    fs::set_permissions(&key, Permissions::from_mode(0o600)).expect("own file");
    for node in 1..=3 {
        cluster.edit(node, |text| {
            format!(
                "key_file = {:?}\n{text}{AS_USER}",
                key.display().to_string()
            )
            .replace("[worker]\n", &format!("[worker]\n{more}"))
        });
        fs::create_dir(cluster.data_directory(node)).expect("a new directory");
    }
    Some(cluster)
}

fn give_all(cluster: &Cluster) {
    give(&cluster.directory().join("key"));
    for node in 1..=3 {
        give(&cluster.data_directory(node));
    }
}

/// What the kernel says of every thread of a process, under this name.
fn of_threads(process: u32, name: &str) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let status =
        threads.map(|thread| fs::read_to_string(thread.expect("one").path().join("status")));
    let lines = status.map(|status| {
        let status = status.expect("readable");
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.expect("a field")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    });
    lines.collect()
}

/// Waits for an answer to PING, which a front gives without a leader.
fn serves(cluster: &Cluster, node: u16) {
    let mut connection = cluster.connect(node).patient(PATIENCE);
    connection
        .call(&["SET", "key", "value"])
        .expect("it is served");
}

#[test]
fn a_node_has_no_capability_that_it_does_not_need_and_reads_its_key_again() {
    for (more, capabilities) in [("", 0u64), ("fifo_priority = 1\n", 1 << 23)] {
        let Some(mut cluster) = cluster(more) else {
            return;
        };
        give_all(&cluster);
        cluster.start_all();
        for node in 1..=3 {
            serves(&cluster, node);
            let process = cluster.process(node).expect("it runs");
            let uid = User::from_name(USER).expect("readable").expect("one").uid;
            let threads = of_threads(process, "Uid:");
            assert!(threads.len() > 1, "{threads:?}");
            for ids in threads {
                assert_eq!(ids, vec![uid.to_string(); 4].join(" "));
            }
            for set in ["CapEff:", "CapPrm:"] {
                for mask in of_threads(process, set) {
                    assert_eq!(mask, format!("{capabilities:016x}"), "{set}");
                }
            }
            let groups = of_threads(process, "Groups:");
            assert!(
                groups.iter().all(|groups| !groups.contains(' ')),
                "{groups:?}"
            );
            assert!(
                of_threads(process, "NoNewPrivs:")
                    .iter()
                    .all(|flag| flag == "1")
            );
        }
        cluster.signal(1, Signal::SIGHUP);
        cluster.eventually("the node reads its key again", || {
            cluster
                .log(1)
                .contains("the key file is read again")
                .then_some(())
        });
    }
}

#[test]
fn what_the_user_could_not_open_later_is_refused_with_the_remedy() {
    let Some(mut cluster) = cluster("") else {
        return;
    };
    let refused = |cluster: &mut Cluster, remedy: &str| {
        cluster.start(1).expect("it starts");
        let status = cluster.wait(1).expect("it ends");
        let said = cluster.log(1);
        assert_eq!(status.code(), Some(2), "{said}");
        assert!(said.contains(remedy), "{said}");
    };
    let (key, data) = (cluster.directory().join("key"), cluster.data_directory(1));
    refused(
        &mut cluster,
        &format!("`chown -R nobody {}`", key.display()),
    );
    give(&key);
    refused(
        &mut cluster,
        &format!("`chown -R nobody {}`", data.display()),
    );
    fs::remove_dir(&data).expect("empty");
    refused(
        &mut cluster,
        &format!("`install -d -o nobody {}`", data.display()),
    );
    cluster.edit(1, |text| {
        text.replace("user = \"nobody\"", "user = \"nobody-here\"")
    });
    refused(&mut cluster, "useradd --system");
}

#[test]
fn a_node_that_could_not_rejoin_is_refused_before_it_has_to() {
    let Some(mut cluster) = cluster("") else {
        return;
    };
    give_all(&cluster);
    cluster.edit(1, |text| format!("rejoin = true\n{text}"));
    cluster.start(1).expect("it starts");
    let status = cluster.wait(1).expect("it ends");
    let said = cluster.log(1);
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(
        said.contains("could not be moved aside: write to"),
        "{said}"
    );

    // Root could write anywhere, and not move a mount.
    cluster.edit(1, |text| text.replace(AS_USER, ""));
    let config = cluster.directory().join("node-1.toml");
    let script = format!(
        "mount -t tmpfs none {} && exec {} run --config {}",
        cluster.data_directory(1).display(),
        env!("CARGO_BIN_EXE_nearwire"),
        config.display()
    );
    let mut unshare = Command::new("unshare");
    let output = unshare.args(["--mount", "sh", "-c", &script]).output();
    let output = output.expect("unshare is there");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("it is a mount of its own"), "{said}");
}
