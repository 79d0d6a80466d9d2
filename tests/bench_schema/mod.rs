//! What every row of `nearwire bench` carries: `docs/benchmarks.md` describes it.

use bench::report::{FLOOR_KEYS, KEYS};
use serde_json::Value;
use std::process::{Command, Output};

/// Measured wherever anything is.
const NUMBERS: &[&str] = &[
    "p50_us",
    "p99_us",
    "ops_per_s",
    "cpu_us_per_op",
    "machine_cpu_us_per_commit",
    "ratio_p50",
];

/// Runs `nearwire` for one short round and JSON.
pub(crate) fn nearwire(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nearwire"))
        .args(arguments)
        .args(["--rounds", "1", "--seconds", "0.4", "--warmup", "0.1"])
        .args(["--output", "json"])
        .output()
        .expect("nearwire starts")
}

/// Checks that standard output is one measured row.
pub(crate) fn check_row(stdout: &[u8]) -> Value {
    let row: Value = serde_json::from_slice(stdout).expect("one JSON value");
    for key in KEYS {
        assert!(row.get(key).is_some(), "{key} is missing: {row}");
    }
    for key in FLOOR_KEYS {
        assert!(row["floors"].get(key).is_some(), "{key} is missing: {row}");
    }
    for key in NUMBERS {
        let number = row[*key].as_f64();
        assert!(number.is_some_and(|number| number > 0.0), "{key}: {row}");
    }
    assert_eq!(row["schema"], "nearwire.bench/1");
    assert!(row["unsupported"].is_null(), "{row}");
    assert!(row["machine"]["kernel"].is_string(), "{row}");
    for side in ["client_wait", "leader_wait", "floor_wait"] {
        assert_eq!(row[side], "blocking", "{row}");
    }
    let waits = if row["engine"] == "xdp" {
        "inline"
    } else {
        "blocking"
    };
    assert_eq!(row["acceptor_wait"], waits, "{row}");
    row
}

/// What every row of `nearwire bench reads` is about, in this order.
const READS: &[&str] = &["echo", "get-lease", "get-barrier", "get-quorum", "set"];

/// Measured in each of them.
const READ_NUMBERS: &[&str] = &[
    "p50_us",
    "p99_us",
    "ops_per_s",
    "many_p99_us",
    "cpu_us_per_op",
    "ratio_p50_echo",
    "ratio_rate_echo",
    "ratio_rate_set",
];

/// Checks that standard output has a measured row of each kind.
#[allow(dead_code, reason = "not every user of the schema measures reads")]
pub(crate) fn check_reads(stdout: &[u8]) {
    let rows: Vec<Value> = serde_json::from_slice(stdout).expect("an array of rows");
    let kinds: Vec<_> = rows.iter().map(|row| row["what"].as_str()).collect();
    let expected: Vec<_> = READS.iter().map(|kind| Some(*kind)).collect();
    assert_eq!(kinds, expected);
    for row in &rows {
        for key in READ_NUMBERS {
            let number = row[*key].as_f64();
            assert!(number.is_some_and(|number| number > 0.0), "{key}: {row}");
        }
        assert_eq!(row["schema"], "nearwire.bench.reads/1");
        assert_eq!(row["lost"], 0, "{row}");
        assert_eq!(
            (&row["front_wait"], &row["rounds"]),
            (&"blocking".into(), &1.into())
        );
        assert_eq!(row["ratios_p50_echo"].as_array().map(Vec::len), Some(1));
        assert!(row["machine"]["kernel"].is_string(), "{row}");
    }
    assert_eq!(rows[0]["ratio_p50_echo"], 1.0);
}
