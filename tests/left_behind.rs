//! A run that is killed leaves nothing that the next one would stumble over.

mod common;

use common::{Cluster, Load, eventually, spawn};
use std::path::Path;
use std::process::{Command, Stdio};

const DIRECTORY: &str = "TEST_LEFT_BEHIND_IN";
const PROCESSES: &str = "processes";

/// The run that is killed: three replicas under load.
#[test]
#[ignore = "started by the_replicas_of_a_killed_run_are_gone_and_the_next_goes_on"]
fn killed_run() {
    let Some(path) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let path = Path::new(&path);
    let mut cluster = Cluster::prepare_over(path);
    cluster.start_all();
    cluster.lead();
    let load = Load::start("left", &cluster.fronts(&[1, 2, 3]), 2);
    load.advance(100);
    let processes: Vec<String> = (1..=3)
        .filter_map(|node| cluster.process(node))
        .map(|process| process.to_string())
        .collect();
    let unfinished = path.join("unfinished");
    std::fs::write(&unfinished, processes.join(" ")).expect("a directory to write to");
    std::fs::rename(&unfinished, path.join(PROCESSES)).expect("a directory to write to");
    loop {
        std::thread::park();
    }
}

/// Whether a process is gone, or dead and only not waited for by whoever inherited it.
fn is_gone(process: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"));
    stat.map_or(true, |stat| {
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
        state.is_none_or(|state| state.starts_with('Z'))
    })
}

#[test]
fn the_replicas_of_a_killed_run_are_gone_and_the_next_goes_on() {
    let directory = tempfile::tempdir().expect("a directory for temporary files");
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command
        .args(["--exact", "killed_run", "--ignored"])
        .env(DIRECTORY, directory.path())
        .stdout(Stdio::null());
    let mut run = spawn(&mut command);
    let noted = directory.path().join(PROCESSES);
    let processes = eventually("a run under load", || std::fs::read_to_string(&noted).ok());
    run.kill().expect("it runs");
    run.wait().expect("it was killed");
    for process in processes.split(' ') {
        eventually("the end of a replica", || is_gone(process).then_some(()));
    }

    // Locks, regions and identities are as after any other end of a process.
    let mut cluster = Cluster::prepare_over(directory.path());
    cluster.start_all();
    for node in 1..=3 {
        let restored = eventually("a report", || cluster.report(node));
        assert_eq!(restored["formed"], true, "{restored}");
    }
}
