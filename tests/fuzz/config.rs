//! Configurations.

use crate::{Script, fuzz};
use nearwire::config::{Config, EXAMPLE, Overrides};
use std::path::Path;

/// What is accepted keeps the promises that a loaded configuration makes.
fn text(input: &[u8]) {
    let check = |text: &str| match Config::parse(Path::new("x"), text, Overrides::default()) {
        Ok(config) => {
            assert_eq!(config.this().node, config.node);
            assert!(config.quorums().is_ok() && config.layout().is_ok());
            assert!(!config.members().is_empty());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    };
    check(&String::from_utf8_lossy(input));
    let mut script = Script(input);
    let mut lines: Vec<String> = EXAMPLE.lines().map(str::to_owned).collect();
    for _ in 0..4 {
        let at = script.below(lines.len());
        match script.byte() % 4 {
            // What is commented out is tried, too.
            0 => lines[at] = lines[at].trim_start_matches("# ").to_owned(),
            1 => {
                let value = script.odd_number();
                if let Some((name, _)) = lines[at].split_once('=') {
                    lines[at] = format!("{name}= {value}");
                }
            }
            2 => {
                let from = script.below(lines.len());
                lines[at] = lines[from].clone();
            }
            _ => drop(lines.remove(at)),
        }
    }
    let mut bytes = lines.join("\n").into_bytes();
    check(&String::from_utf8_lossy(&bytes));
    script.damage(&mut bytes);
    check(&String::from_utf8_lossy(&bytes));
}

#[test]
fn a_configuration_is_refused_or_keeps_its_promises() {
    fuzz("config", text);
}
