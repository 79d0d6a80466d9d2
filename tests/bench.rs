//! `nearwire bench` on loopback: what it prints, and what it refuses.

mod bench_schema;

use bench_schema::{check_row, nearwire};

#[test]
fn a_latency_row_carries_the_schema() {
    let output = nearwire(&["bench", "lat", "--where", "loopback"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("round 1 of 1: UDP echo"), "{said}");
    let row = check_row(&output.stdout);
    assert_eq!(row["where"], "loopback");
    assert_eq!(row["outstanding"], 1);
    assert_eq!(row["load"], "closed");
    assert!(row["floors"]["flush_p50_us"].is_null());
}

#[test]
fn a_durable_commit_comes_with_what_it_is_made_of() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let directory = directory.path().display().to_string();
    let arguments = ["bench", "lat", "--durability", "sync", "--data-directory"];
    let output = nearwire(&[&arguments[..], &[&directory]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("is in memory") {
        eprintln!("skipped: needs a target directory on a disk");
        return;
    }
    assert!(output.status.success(), "{said}");
    let row = check_row(&output.stdout);
    assert_eq!(row["durability"], "sync");
    for value in [
        &row["floors"]["flush_p50_us"],
        &row["floors"]["volatile_commit_p50_us"],
        &row["ratio_sync"],
    ] {
        assert!(value.as_f64().is_some_and(|value| value > 0.0), "{row}");
    }
    let left = std::fs::read_dir(&directory).expect("readable").count();
    assert_eq!(left, 0, "the run leaves nothing behind");
}

#[test]
fn files_are_written_and_an_open_loop_says_its_rate() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str| directory.path().join(name).display().to_string();
    let (hgrm, plot) = (file("lat.hgrm"), file("lat.svg"));
    let files = ["--hgrm", &hgrm, "--plot", &plot];
    let output = nearwire(&[&["bench", "rate", "--rate", "500"], &files[..]].concat());
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let row = check_row(&output.stdout);
    assert_eq!(
        (row["load"].as_str(), row["offered_per_s"].as_f64()),
        (Some("open"), Some(500.0))
    );
    let text = std::fs::read_to_string(&hgrm).expect("written");
    assert!(
        text.contains("Percentile") && text.contains("#[Mean"),
        "{text}"
    );
    assert!(
        std::fs::read_to_string(&plot)
            .expect("written")
            .contains("<svg")
    );
}

#[test]
fn many_groups_are_compared_with_one_of_the_same_run() {
    let output = nearwire(&["bench", "groups", "--groups", "1,6", "--written", "3"]);
    assert!(output.status.success(), "{output:?}");
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let rows = rows.as_array().expect("an array");
    let groups: Vec<_> = rows.iter().map(|row| row["groups"].as_u64()).collect();
    assert_eq!(groups, [Some(1), Some(6)]);
    for row in rows {
        assert_eq!(row["schema"], "nearwire.bench.groups/1");
        for key in [
            "ops_per_s",
            "ratio",
            "p50_us",
            "p99_us",
            "elect_ms",
            "idle_packets_per_s",
        ] {
            let number = row[key].as_f64();
            assert!(number.is_some_and(|number| number > 0.0), "{key}: {row}");
        }
        assert_eq!(row["lost"], 0, "{row}");
        assert!(row["machine"]["kernel"].is_string(), "{row}");
    }
    assert_eq!(rows[0]["ratio"], 1.0);
    assert_eq!(rows[1]["written"], 3);
}

#[test]
fn a_follower_that_returns_has_a_row_with_its_copies() {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_nearwire"));
    let sizes = ["--slots", "500", "--keys", "100", "--rate", "200"];
    let command = command.args(["bench", "catch-up", "--seconds", "0.3"]);
    let output = command.args(sizes).args(["--output", "json"]).output();
    let output = output.expect("nearwire starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("it catches up"), "{said}");
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON value");
    let row = &rows[0];
    assert_eq!(row["schema"], "nearwire.bench.catch-up/1");
    assert_eq!(
        (&row["where"], &row["away"]),
        (&"loopback".into(), &"killed".into())
    );
    assert!(row["slots_behind"].as_u64() >= Some(500), "{row}");
    for key in [
        "bytes_behind",
        "bytes_taught",
        "caught_up_s",
        "udp_copy_s",
        "tcp_copy_s",
        "udp_copy_behind_s",
        "tcp_copy_behind_s",
        "ratio",
        "ratio_behind",
        "p50_rise",
        "p99_rise",
    ] {
        let number = row[key].as_f64();
        assert!(number.is_some_and(|number| number > 0.0), "{key}: {row}");
    }
    for part in ["before", "away_latency", "during"] {
        assert!(row[part]["p99_us"].is_number(), "{part}: {row}");
    }
    assert_eq!(row["failed"], 0, "{row}");
}

#[test]
fn what_is_not_understood_is_a_usage_error() {
    for wrong in [
        &["bench", "lat", "--value-bytes", "1400"][..],
        &["bench", "lat", "--engine", "steam"],
        &["bench", "lat", "--plot", "lat.gif"],
        &["bench", "rate", "--rate", "100", "--outstanding", "3"],
        &[
            "bench",
            "lat",
            "--durability",
            "sync",
            "--data-directory",
            "/dev/shm",
        ],
    ] {
        let output = nearwire(wrong);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {said}");
    }
}

#[test]
fn reads_are_measured_beside_writes_and_an_echo() {
    let output = nearwire(&["bench", "reads", "--connections", "8"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("round 1 of 1: get-lease"), "{said}");
    bench_schema::check_reads(&output.stdout);
}
