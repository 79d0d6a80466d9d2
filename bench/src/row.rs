//! What rows of all benchmarks have in common.

use crate::machine::Machine;
use comfy_table::Table;
use serde::{Serialize, Serializer};

/// One row. Every key is always there; what was not measured is null.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Row<S, M> {
    /// The layout of the row. It changes when a key changes its meaning or goes.
    pub schema: &'static str,
    /// What the row is about.
    #[serde(flatten)]
    pub setting: S,
    /// What was measured.
    #[serde(flatten)]
    pub measured: M,
    /// Why nothing was measured, if so.
    pub unsupported: Option<String>,
    /// How to get this row again.
    pub command_line: String,
    /// What it was measured on.
    pub machine: Machine,
}

/// What a row is about, known before anything is measured.
pub trait Setting {
    /// The layout of its rows.
    const SCHEMA: &'static str;
}

impl<S: Setting, M: Default> Row<S, M> {
    /// A row of these figures.
    pub fn new(setting: S, measured: M, machine: Machine) -> Self {
        Self {
            schema: S::SCHEMA,
            setting,
            measured,
            unsupported: None,
            command_line: std::env::args().collect::<Vec<_>>().join(" "),
            machine,
        }
    }

    /// A row that cannot be measured here, and why.
    pub fn unsupported(setting: S, reason: String, machine: Machine) -> Self {
        Self {
            unsupported: Some(reason),
            ..Self::new(setting, M::default(), machine)
        }
    }
}

/// A table in plain text.
pub(crate) fn text(table: &Table) -> String {
    table
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

pub(crate) fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".into(), |value| format!("{value:.digits$}"))
}

/// Nothing here is known to more than three decimals.
pub(crate) fn thousandths_if<S: Serializer>(
    value: &Option<f64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    value
        .map(|value| (value * 1000.0).round() / 1000.0)
        .serialize(serializer)
}
