//! Rows of `nearwire bench step`: what an acceptor takes for one request.

use crate::rounds::median;
use crate::row::{self, number, thousandths_if};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// The layout of a row. It changes when a key changes its meaning or goes.
pub const SCHEMA: &str = "nearwire.bench.step/1";

/// The keys of every row; `docs/benchmarks.md` says what they mean.
pub const KEYS: &[&str] = &[
    "schema",
    "engine",
    "mode",
    "message",
    "value_bytes",
    "auth",
    "window_slots",
    "region_value_bytes",
    "rounds",
    "repeats",
    "ns",
    "floor_ns",
    "ratio",
    "p10_ns",
    "p90_ns",
    "wrapped_ns",
    "wrapped_floor_ns",
    "wrapped_ratio",
    "proved",
    "verified_instructions",
    "unsupported",
    "command_line",
    "machine",
];

/// What a row is about, known before anything is measured.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Setting {
    /// `software` or `xdp`.
    pub engine: &'static str,
    /// Its code path, and what timed it.
    pub mode: &'static str,
    /// What was asked.
    pub message: &'static str,
    /// Length of the value in bytes, in whichever direction it goes.
    pub value_bytes: usize,
    /// Whether requests and answers carry tags.
    pub auth: bool,
    /// Slots of the region's ring, which the requests walk.
    pub window_slots: u64,
    /// Longest value of the region in bytes.
    pub region_value_bytes: usize,
    /// How often each side was run.
    pub rounds: usize,
    /// Requests of each run.
    pub repeats: u64,
}

/// Nanoseconds of one request, on average over one run.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Times {
    /// With everything around it.
    pub wrapped: f64,
    /// Of everything around it, a floor that does nothing included.
    pub wrapped_floor: f64,
    /// Of that floor alone, where there is one.
    pub floor: Option<f64>,
}

impl Times {
    /// Of the request without what is around it: of the floor, and what the acceptor takes more.
    pub fn net(&self) -> f64 {
        self.wrapped - self.wrapped_floor + self.floor.unwrap_or_default()
    }
}

/// What was measured: medians over the rounds, each of which ran all sides.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Measured {
    /// Time of one request, net.
    #[serde(serialize_with = "thousandths_if")]
    pub ns: Option<f64>,
    /// Of a program that does nothing but send back.
    #[serde(serialize_with = "thousandths_if")]
    pub floor_ns: Option<f64>,
    /// `ns` over `floor_ns`.
    #[serde(serialize_with = "thousandths_if")]
    pub ratio: Option<f64>,
    /// A tenth of the rounds were quicker than this.
    #[serde(serialize_with = "thousandths_if")]
    pub p10_ns: Option<f64>,
    /// A tenth of the rounds were slower than this.
    #[serde(serialize_with = "thousandths_if")]
    pub p90_ns: Option<f64>,
    /// As it was timed, with what puts the next request in place.
    #[serde(serialize_with = "thousandths_if")]
    pub wrapped_ns: Option<f64>,
    /// The same around the floor.
    #[serde(serialize_with = "thousandths_if")]
    pub wrapped_floor_ns: Option<f64>,
    /// `wrapped_ns` over `wrapped_floor_ns`.
    #[serde(serialize_with = "thousandths_if")]
    pub wrapped_ratio: Option<f64>,
    /// Requests whose effect was found, over all rounds: all of them, or there is no row.
    pub proved: Option<u64>,
    /// How many instructions the verifier went through.
    pub verified_instructions: Option<u32>,
}

impl Measured {
    /// What these rounds of so many repeats come to.
    pub fn new(rounds: &[Times], repeats: u64, verified_instructions: Option<u32>) -> Self {
        let over = |pick: &dyn Fn(&Times) -> Option<f64>| median(rounds.iter().filter_map(pick));
        let is_floored = rounds.iter().any(|times| times.floor.is_some());
        Self {
            ns: over(&|times| Some(times.net())),
            floor_ns: over(&|times| times.floor),
            ratio: over(&|times| Some(times.net() / times.floor?)),
            p10_ns: quantile(rounds, 0.1),
            p90_ns: quantile(rounds, 0.9),
            wrapped_ns: over(&|times| Some(times.wrapped)),
            wrapped_floor_ns: over(&|times| Some(times.wrapped_floor)),
            // Where nothing is sent back, the wrapper alone is no floor.
            wrapped_ratio: over(&|times| Some(times.wrapped / times.wrapped_floor))
                .filter(|_| is_floored),
            proved: Some(rounds.len() as u64 * repeats),
            verified_instructions,
        }
    }
}

fn quantile(rounds: &[Times], quantile: f64) -> Option<f64> {
    let mut values: Vec<f64> = rounds.iter().map(Times::net).collect();
    values.sort_by(f64::total_cmp);
    let at = (values.len().checked_sub(1)? as f64 * quantile).round();
    values.get(at as usize).copied()
}

/// One row.
pub type Row = row::Row<Setting, Measured>;

impl row::Setting for Setting {
    const SCHEMA: &'static str = SCHEMA;
}

/// The rows as JSON: always an array.
pub fn to_json(rows: &[Row]) -> String {
    serde_json::to_string_pretty(rows).expect("rows have only string keys")
}

/// The rows as a table in plain text.
pub fn to_table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "engine",
        "message",
        "value",
        "auth",
        "ns",
        "p10",
        "p90",
        "floor ns",
        "ratio",
        "wrapped ns",
        "floor ns",
        "ratio",
    ]);
    for column in table.column_iter_mut().skip(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for Row {
        setting, measured, ..
    } in rows
    {
        table.add_row([
            setting.engine.into(),
            setting.message.into(),
            setting.value_bytes.to_string(),
            if setting.auth { "yes" } else { "no" }.into(),
            number(measured.ns, 0),
            number(measured.p10_ns, 0),
            number(measured.p90_ns, 0),
            number(measured.floor_ns, 0),
            number(measured.ratio, 1),
            number(measured.wrapped_ns, 0),
            number(measured.wrapped_floor_ns, 0),
            number(measured.wrapped_ratio, 2),
        ]);
    }
    let mut text = row::text(&table);
    let mut told: Vec<String> = Vec::new();
    for row in rows {
        let Row {
            setting, measured, ..
        } = row;
        let line = match (&row.unsupported, measured.verified_instructions) {
            (Some(reason), _) => format!("{} is unsupported here: {reason}", setting.engine),
            (None, Some(count)) => format!(
                "{}, authentication {}: {}; {count} instructions verified",
                setting.engine,
                if setting.auth { "on" } else { "off" },
                setting.mode,
            ),
            (None, None) => format!("{}: {}", setting.engine, setting.mode),
        };
        if !told.contains(&line) {
            told.push(line);
        }
    }
    text += &format!("\n{}\n", told.join("\n"));
    if let Some(row) = rows.first() {
        text += &format!("{}\n", conditions(row));
    }
    text
}

/// The sentence without which the numbers mean nothing.
fn conditions(row: &Row) -> String {
    let (setting, machine) = (&row.setting, &row.machine);
    format!(
        "ring of {} slots for values of up to {} bytes; median of {} rounds of {} requests, the \
         effect of each proved; {machine}",
        setting.window_slots, setting.region_value_bytes, setting.rounds, setting.repeats,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;

    fn setting() -> Setting {
        Setting {
            engine: "xdp",
            mode: "repeated test run",
            message: "accept",
            value_bytes: 64,
            auth: false,
            window_slots: 1024,
            region_value_bytes: 1384,
            rounds: 3,
            repeats: 1024,
        }
    }

    fn times(wrapped: f64) -> Times {
        Times {
            wrapped,
            wrapped_floor: 40.0,
            floor: Some(10.0),
        }
    }

    #[test]
    fn what_puts_the_request_in_place_is_in_no_net_figure() {
        let rounds = [times(90.0), times(70.0), times(3000.0)];
        let measured = Measured::new(&rounds, 1024, Some(8000));
        assert_eq!(measured.ns, Some(60.0));
        assert_eq!(measured.floor_ns, Some(10.0));
        assert_eq!(measured.ratio, Some(6.0));
        assert_eq!(measured.p10_ns, Some(40.0));
        assert_eq!(measured.wrapped_ratio, Some(2.25));
        assert_eq!(measured.proved, Some(3072));
        let bare = Times {
            floor: None,
            ..times(90.0)
        };
        let measured = Measured::new(&[bare], 1, None);
        assert_eq!((measured.ns, measured.ratio), (Some(50.0), None));
        assert_eq!(measured.wrapped_ratio, None);
    }

    #[test]
    fn every_row_has_every_key_measured_or_not_and_no_other() {
        let rows = [
            Row::new(
                setting(),
                Measured::new(&[times(90.0)], 1024, None),
                Machine::read(),
            ),
            Row::unsupported(setting(), "no object".into(), Machine::read()),
        ];
        let json: serde_json::Value = serde_json::from_str(&to_json(&rows)).expect("JSON");
        let mut expected = KEYS.to_vec();
        expected.sort_unstable();
        for row in json.as_array().expect("an array") {
            let row = row.as_object().expect("an object");
            let mut found: Vec<_> = row.keys().map(String::as_str).collect();
            found.sort_unstable();
            assert_eq!(found, expected);
        }
        assert_eq!(json[0]["ns"], 60.0);
        assert!(json[1]["ns"].is_null() && json[1]["unsupported"].is_string());
        let one: serde_json::Value = serde_json::from_str(&to_json(&rows[..1])).expect("JSON");
        assert!(one.is_array());
    }

    #[test]
    fn the_table_says_what_was_timed_and_what_was_not() {
        let rows = [
            Row::new(
                setting(),
                Measured::new(&[times(90.0)], 1024, Some(8627)),
                Machine::read(),
            ),
            Row::unsupported(setting(), "no object".into(), Machine::read()),
        ];
        let text = to_table(&rows);
        for part in [
            "accept",
            "repeated test run; 8627 instructions verified",
            "xdp is unsupported here: no object",
            "ring of 1024 slots",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
