//! The answer: what goes to standard output.

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;
use std::io::{self, Write};

/// How the answer is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs: one JSON value.
    Json,
}

/// Writes `text` and a line end.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    bytes(&[text.as_bytes(), b"\n"].concat())
}

/// Writes `answer` as it is.
pub(crate) fn bytes(answer: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(answer)?;
    out.flush()?;
    Ok(())
}

/// Writes `answer` as indented JSON.
pub(crate) fn json(answer: &impl Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(answer)?)
}

/// A table without lines, which `awk` reads as well as people do.
pub(crate) fn table<const COLUMNS: usize>(
    head: [&str; COLUMNS],
    rows: impl IntoIterator<Item = [String; COLUMNS]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(head);
    for row in rows {
        table.add_row(row);
    }
    let last = COLUMNS - 1;
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index == last { 0 } else { 2 }));
    }
    let lines: Vec<_> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n")
}
