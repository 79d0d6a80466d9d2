//! `nearwire bench step`: its rows, and that a run without effect is no row.

mod xdp_twin;

use bench::step::{KEYS, SCHEMA};
use consensus::region::Layout;
use nearwire::step_trial::{Case, Engine, InKernel, InProcess, Message, Trial, TrialError};
use nearwire::xdp::{OBJECT, capabilities};
use serde_json::Value;
use std::process::{Command, Output};
use xdp_twin::skip;

const REPEATS: u64 = 16;

fn layout() -> Layout {
    Layout::new(1, REPEATS, 64).expect("a layout")
}

fn nearwire(engine: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nearwire"))
        .args(["bench", "step", "--engine", engine, "--rounds", "1"])
        .args(["--window-slots", "16", "--output", "json"])
        .output()
        .expect("nearwire starts")
}

/// Checks that every case has a measured row.
fn check_rows(stdout: &[u8], engine: &str) {
    let rows: Value = serde_json::from_slice(stdout).expect("one JSON value");
    let rows = rows.as_array().expect("an array");
    assert_eq!(rows.len(), 14);
    for row in rows {
        for key in KEYS {
            assert!(row.get(key).is_some(), "{key} is missing: {row}");
        }
        assert_eq!(row["schema"], SCHEMA);
        assert_eq!(row["engine"], engine);
        assert_eq!(row["proved"], REPEATS, "{row}");
        assert!(
            row["ns"].is_number() && row["unsupported"].is_null(),
            "{row}"
        );
        let is_floored = engine == "xdp";
        for key in ["floor_ns", "wrapped_ratio", "verified_instructions"] {
            assert_eq!(row[key].is_number(), is_floored, "{key}: {row}");
        }
    }
    for (message, value_bytes) in [("accept", 64), ("accept", 1384), ("fetch_hit", 64)] {
        for auth in [false, true] {
            let is_this = |row: &&Value| {
                row["message"] == message
                    && row["value_bytes"] == value_bytes
                    && row["auth"] == auth
            };
            assert_eq!(
                rows.iter().filter(is_this).count(),
                1,
                "{message} {value_bytes} {auth}"
            );
        }
    }
}

#[test]
fn the_step_in_software_has_its_rows() {
    let output = nearwire("software");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    check_rows(&output.stdout, "software");
}

#[test]
fn the_step_in_xdp_has_its_rows_or_says_what_it_needs() {
    let output = nearwire("xdp");
    let said = String::from_utf8_lossy(&output.stderr);
    if OBJECT.is_none() || !capabilities::lacking().is_empty() {
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains("remedy: "), "{said}");
        skip(
            "the_step_in_xdp_has_its_rows_or_says_what_it_needs",
            said.trim(),
        );
        return;
    }
    assert!(output.status.success(), "{said}");
    check_rows(&output.stdout, "xdp");
}

/// What a run says if one of its requests has no effect.
fn spoilt<E: Engine>(case: Case, engine: E) -> TrialError {
    let mut trial = Trial::new(case, engine, REPEATS);
    trial.run(REPEATS).expect("every request has its effect");
    let mut requests = trial.requests(REPEATS);
    if case.is_keyed {
        requests[5].0.tag ^= 1;
    } else {
        requests[5] = requests[4].clone();
    }
    trial.run_on(&requests).expect_err("one has none")
}

fn check_spoilt<E: Engine>(load: impl Fn(Case) -> E) {
    for message in [
        Message::Prepare,
        Message::Accept,
        Message::FetchHit,
        Message::FetchEmpty,
        Message::Decide,
    ] {
        let case = Case {
            message,
            value_bytes: if matches!(message, Message::Accept | Message::FetchHit) {
                64
            } else {
                0
            },
            is_keyed: true,
        };
        let said = spoilt(case, load(case)).to_string();
        assert!(said.contains("15 of 16 times"), "{message:?}: {said}");
    }
    // The second vote of a slot in the same ballot is answered, but it is none: only the region
    // tells.
    let case = Case {
        message: Message::Accept,
        value_bytes: 64,
        is_keyed: false,
    };
    let said = spoilt(case, load(case)).to_string();
    assert!(said.contains("there was a vote 15 of 16 times"), "{said}");
}

#[test]
fn a_request_without_effect_spoils_a_run_in_software() {
    check_spoilt(|case| InProcess::new(case, layout()).expect("a region"));
}

#[test]
fn a_request_without_effect_spoils_a_run_in_xdp() {
    let Some(object) = OBJECT.filter(|_| capabilities::lacking().is_empty()) else {
        skip(
            "a_request_without_effect_spoils_a_run_in_xdp",
            "needs an XDP object, CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON",
        );
        return;
    };
    check_spoilt(|case| {
        InKernel::load(object, case, layout(), REPEATS as u32).expect("the kernel takes it")
    });
}
