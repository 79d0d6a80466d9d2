//! `nearwire bench --where netns`: needs root and iproute2, and says so.

mod bench_schema;

use bench_schema::{check_row, nearwire};
use std::time::{Duration, Instant};

#[test]
fn a_row_from_namespaces_carries_the_schema() {
    let deadline = Instant::now() + Duration::from_secs(120);
    let output = loop {
        let output = nearwire(&["bench", "lat", "--where", "netns"]);
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
        return;
    }
    assert!(output.status.success(), "{said}");
    assert_eq!(check_row(&output.stdout)["where"], "netns");
}
