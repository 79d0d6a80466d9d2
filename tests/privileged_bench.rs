//! `nearwire bench --where netns`: needs root and iproute2, and says so.

mod bench_schema;

use bench_schema::{check_row, nearwire};
use std::time::{Duration, Instant};

/// The row of a benchmark in namespaces, unless this machine has none.
fn row(arguments: &[&str]) -> Option<serde_json::Value> {
    let deadline = Instant::now() + Duration::from_secs(120);
    let output = loop {
        let output = nearwire(&[&["bench", "lat", "--where", "netns"], arguments].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        // Another benchmark runs on this machine; it will end.
        if !said.contains("is in use") || Instant::now() > deadline {
            break output;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(3) {
        assert!(said.contains("is not available"), "{said}");
        eprintln!("skipped: {said}");
        return None;
    }
    assert!(output.status.success(), "{said}");
    Some(check_row(&output.stdout))
}

#[test]
fn a_row_from_namespaces_carries_the_schema() {
    if let Some(row) = row(&[]) {
        assert_eq!(row["where"], "netns");
        assert!(row["floors"]["xdp_echo_p50_us"].is_null());
    }
}

#[test]
fn acceptors_in_the_kernel_have_a_row_and_an_echo_of_their_kind() {
    if let Some(row) = row(&["--engine", "xdp"]) {
        assert_eq!(
            (&row["engine"], &row["acceptor_wait"]),
            (&"xdp".into(), &"inline".into())
        );
        let echo = row["floors"]["xdp_echo_p50_us"].as_f64();
        assert!(echo.is_some_and(|us| us > 0.0), "{row:#}");
        assert_eq!(row["lost"], 0);
    }
}
