//! A cluster's key is replaced while it serves, by editing the key file and SIGHUP.

mod common;

use common::{Cluster, Load};
use consensus::auth::{Key, Keys};
use nearwire::inspect::Inspector;
use nix::sys::signal::Signal;
use std::fs;
use std::time::Duration;

const OLD: &str = "00112233445566778899aabbccddeeff";
const NEW: &str = "ffeeddccbbaa99887766554433221100";
const ALL: [u16; 3] = [1, 2, 3];

fn key(digits: &str) -> Key {
    let number = u128::from_str_radix(digits, 16).expect("hexadecimal digits");
    Key::from_bytes(number.to_be_bytes())
}

/// What a node reports to a tool with these keys, if it answers.
fn report(cluster: &Cluster, node: u16, keys: Keys) -> Option<serde_json::Value> {
    let address = [cluster.replicas()[usize::from(node) - 1].address];
    let mut inspector = Inspector::new(&address, Some(keys)).ok()?;
    let wait = Duration::from_millis(500);
    let mut reports = inspector.inspect(&address, wait, |_| false).ok()?;
    Some(serde_json::Value::Object(reports.pop()??.0))
}

#[test]
fn a_key_is_replaced_under_load_and_no_packet_is_refused_meanwhile() {
    let mut cluster = Cluster::prepare_with_key(OLD);
    let file = cluster.directory().join("key");
    cluster.start_all();
    cluster.lead();
    let load = Load::start("rotation", &cluster.fronts(&ALL), 3);
    load.advance(200);
    for (lines, signs) in [(&[OLD, NEW][..], OLD), (&[NEW, OLD], NEW), (&[NEW], NEW)] {
        fs::write(&file, lines.join("\n")).expect("written");
        let names = lines
            .iter()
            .map(|digits| format!("{:08x}", key(digits).fingerprint()));
        let names: serde_json::Value = names.collect();
        for node in ALL {
            cluster.signal(node, Signal::SIGHUP);
            // A tool takes what either key signs, and signs with one that the node takes.
            let tool = Keys {
                signs: key(signs),
                also: Some(key(if signs == OLD { NEW } else { OLD })),
            };
            cluster.eventually("the node reads its keys again", || {
                (report(&cluster, node, tool)?["keys"] == names).then_some(())
            });
            load.advance(50);
        }
    }
    for node in ALL {
        let told = report(&cluster, node, key(NEW).into()).expect("it answers to the new key");
        assert!(told["malformed"].is_object(), "{told}");
        assert_eq!(told["malformed"]["tag"].as_u64().unwrap_or(0), 0, "{told}");
    }
    for node in ALL {
        assert!(report(&cluster, node, key(OLD).into()).is_none());
        let told = report(&cluster, node, key(NEW).into()).expect("it answers to the new key");
        assert!(told["malformed"]["tag"].as_u64() > Some(0), "{told}");
    }
    let ledger = load.stop();
    for node in ALL {
        ledger.check(&cluster.fronts(&[node]));
    }
}

#[test]
fn a_key_file_that_is_none_leaves_the_key_as_it_was() {
    let mut cluster = Cluster::prepare_with_key(OLD);
    let file = cluster.directory().join("key");
    cluster.start_all();
    cluster.lead();
    fs::write(&file, "nonsense\n").expect("written");
    cluster.signal(1, Signal::SIGHUP);
    cluster.eventually("the node says so", || {
        cluster
            .log(1)
            .contains("the keys stay as they were")
            .then_some(())
    });
    let told = report(&cluster, 1, key(OLD).into()).expect("it answers to its key");
    assert_eq!(
        told["keys"],
        serde_json::json!([format!("{:08x}", key(OLD).fingerprint())])
    );
}
