//! Rows: what a run is worth, as JSON and as a table.

use crate::row::{self, number, thousandths_if};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// The layout of a row. It changes when a key changes its meaning or goes.
pub const SCHEMA: &str = "nearwire.bench/1";

/// The keys of every row; `docs/benchmarks.md` says what they mean.
pub const KEYS: &[&str] = &[
    "schema",
    "client_wait",
    "leader_wait",
    "acceptor_wait",
    "floor_wait",
    "linger_us",
    "cpus",
    "auth",
    "engine",
    "mode",
    "durability",
    "where",
    "replicas",
    "value_bytes",
    "outstanding",
    "load",
    "offered_per_s",
    "rounds",
    "warmup_s",
    "measure_s",
    "p50_us",
    "p90_us",
    "p99_us",
    "p999_us",
    "p9999_us",
    "max_us",
    "ops_per_s",
    "cpu_us_per_op",
    "machine_cpu_us_per_commit",
    "lost",
    "requests_per_datagram",
    "floors",
    "ratio_p50",
    "ratio_rate",
    "ratio_p50_alike",
    "ratio_rate_alike",
    "ratio_sync",
    "unsupported",
    "command_line",
    "machine",
];
/// The keys of a row's `floors`.
pub const FLOOR_KEYS: &[&str] = &[
    "udp_echo_p50_us",
    "udp_echo_p99_us",
    "udp_echo_ops_per_s",
    "udp_echo_cpu_us_per_op",
    "udp_echo_machine_cpu_us_per_op",
    "udp_echo_lost",
    "udp_echo_alike_p50_us",
    "udp_echo_alike_ops_per_s",
    "xdp_echo_p50_us",
    "xdp_echo_p99_us",
    "xdp_echo_ops_per_s",
    "xdp_echo_machine_cpu_us_per_op",
    "flush_p50_us",
    "volatile_commit_p50_us",
];

/// How a thread waits for packets, as rows name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Waiting {
    /// Sleeps in the kernel.
    Blocking,
    /// Spins.
    Polling,
    /// Runs in the kernel's receive path, so that nobody waits.
    Inline,
}

impl From<datapath::Wait> for Waiting {
    fn from(wait: datapath::Wait) -> Self {
        match wait {
            datapath::Wait::Blocking => Self::Blocking,
            datapath::Wait::Polling => Self::Polling,
        }
    }
}

/// What a row is about, known before anything is measured.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Setting {
    /// How the client's thread waits.
    pub client_wait: Waiting,
    /// How the leader waits.
    pub leader_wait: Waiting,
    /// How the acceptors wait.
    pub acceptor_wait: Waiting,
    /// How both sides of the echo wait to which the ratios are taken: always blocking, so that
    /// the ratios of all rows compare.
    pub floor_wait: Waiting,
    /// How long blocking replicas look for packets before they sleep, in microseconds.
    pub linger_us: u64,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Whether packets carry tags.
    pub auth: bool,
    /// What steps the regions: `software`, `xdp`, …
    pub engine: String,
    /// Its code path: `recvmmsg/sendmmsg`, `native`, `generic`, …
    pub mode: String,
    /// `volatile`, `async`, `sync` or `pmem`.
    pub durability: String,
    /// `loopback` or `netns`.
    #[serde(rename = "where")]
    pub site: String,
    /// How many replicas.
    pub replicas: usize,
    /// Length of a written value in bytes.
    pub value_bytes: usize,
    /// Requests under way; in an open loop the most that may be.
    pub outstanding: usize,
    /// `closed` or `open`.
    pub load: &'static str,
    /// Open loop: requests that arise per second.
    pub offered_per_s: Option<f64>,
    /// Rounds in which floor and system took turns.
    pub rounds: usize,
    /// Seconds before each measurement in which nothing was recorded.
    pub warmup_s: f64,
    /// Seconds of each measurement.
    pub measure_s: f64,
}

/// The floor of the same rounds: medians over the rounds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Floors {
    /// Median round trip.
    #[serde(serialize_with = "thousandths_if")]
    pub udp_echo_p50_us: Option<f64>,
    /// 99th percentile.
    #[serde(serialize_with = "thousandths_if")]
    pub udp_echo_p99_us: Option<f64>,
    /// Echoes per second.
    #[serde(serialize_with = "thousandths_if")]
    pub udp_echo_ops_per_s: Option<f64>,
    /// CPU time of the echo server per echo.
    #[serde(serialize_with = "thousandths_if")]
    pub udp_echo_cpu_us_per_op: Option<f64>,
    /// CPU time of the whole machine per echo.
    #[serde(serialize_with = "thousandths_if")]
    pub udp_echo_machine_cpu_us_per_op: Option<f64>,
    /// Echoes that never came, over all rounds.
    pub udp_echo_lost: Option<u64>,
    /// Median round trip of an echo that waits as the system does, where that polls or lingers.
    #[serde(serialize_with = "thousandths_if")]
    pub udp_echo_alike_p50_us: Option<f64>,
    /// Such echoes per second.
    #[serde(serialize_with = "thousandths_if")]
    pub udp_echo_alike_ops_per_s: Option<f64>,
    /// Median round trip of an echo by a program on the interface, where acceptors are such; the
    /// client waits as it does for the system.
    #[serde(serialize_with = "thousandths_if")]
    pub xdp_echo_p50_us: Option<f64>,
    /// 99th percentile.
    #[serde(serialize_with = "thousandths_if")]
    pub xdp_echo_p99_us: Option<f64>,
    /// Such echoes per second.
    #[serde(serialize_with = "thousandths_if")]
    pub xdp_echo_ops_per_s: Option<f64>,
    /// CPU time of the whole machine per such echo.
    #[serde(serialize_with = "thousandths_if")]
    pub xdp_echo_machine_cpu_us_per_op: Option<f64>,
    /// Median time of a flush of one record while as many others as there are replicas flush
    /// theirs, where a commit waits for flushes.
    #[serde(serialize_with = "thousandths_if")]
    pub flush_p50_us: Option<f64>,
    /// Median latency of a commit of the same cluster without flushes, where a commit waits for
    /// them.
    #[serde(serialize_with = "thousandths_if")]
    pub volatile_commit_p50_us: Option<f64>,
}

/// What was measured. Latencies and rates are medians over the rounds.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Measured {
    /// Median latency of a commit as the client sees it.
    #[serde(serialize_with = "thousandths_if")]
    pub p50_us: Option<f64>,
    /// 90th percentile.
    #[serde(serialize_with = "thousandths_if")]
    pub p90_us: Option<f64>,
    /// 99th percentile.
    #[serde(serialize_with = "thousandths_if")]
    pub p99_us: Option<f64>,
    /// 99.9th percentile.
    #[serde(serialize_with = "thousandths_if")]
    pub p999_us: Option<f64>,
    /// 99.99th percentile.
    #[serde(serialize_with = "thousandths_if")]
    pub p9999_us: Option<f64>,
    /// The longest of all rounds.
    #[serde(serialize_with = "thousandths_if")]
    pub max_us: Option<f64>,
    /// Commits per second.
    #[serde(serialize_with = "thousandths_if")]
    pub ops_per_s: Option<f64>,
    /// CPU time of all replicas per commit.
    #[serde(serialize_with = "thousandths_if")]
    pub cpu_us_per_op: Option<f64>,
    /// CPU time of the whole machine per commit: the client's, the kernel's for whom it may be, and
    /// other processes'.
    #[serde(serialize_with = "thousandths_if")]
    pub machine_cpu_us_per_commit: Option<f64>,
    /// Requests that failed or were never answered, over all rounds.
    pub lost: Option<u64>,
    /// Mean number of requests that shared a datagram to the leader.
    #[serde(serialize_with = "thousandths_if")]
    pub requests_per_datagram: Option<f64>,
    /// The floor.
    pub floors: Floors,
    /// Median over the rounds of p50 / the floor's p50 of that round.
    #[serde(serialize_with = "thousandths_if")]
    pub ratio_p50: Option<f64>,
    /// Median over the rounds of rate / the floor's rate of that round.
    #[serde(serialize_with = "thousandths_if")]
    pub ratio_rate: Option<f64>,
    /// Median over the rounds of p50 / the p50 of that round's echo that waits alike.
    #[serde(serialize_with = "thousandths_if")]
    pub ratio_p50_alike: Option<f64>,
    /// Median over the rounds of rate / the rate of that round's echo that waits alike.
    #[serde(serialize_with = "thousandths_if")]
    pub ratio_rate_alike: Option<f64>,
    /// Median over the rounds of p50 / (flush p50 + volatile commit p50 of that round).
    #[serde(serialize_with = "thousandths_if")]
    pub ratio_sync: Option<f64>,
}

/// One row.
pub type Row = row::Row<Setting, Measured>;

impl row::Setting for Setting {
    const SCHEMA: &'static str = SCHEMA;
}

/// The rows as JSON: one object, or an array if there are several.
pub fn to_json(rows: &[Row]) -> String {
    let text = match rows {
        [row] => serde_json::to_string_pretty(row),
        rows => serde_json::to_string_pretty(rows),
    };
    text.expect("rows have only string keys")
}

/// The rows as a table in plain text, the floor of each below it.
pub fn to_table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "engine",
        "waits",
        "load",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "p99.99 µs",
        "ops/s",
        "CPU µs/op",
        "machine µs/op",
        "lost",
        "p50 / echo",
        "rate / echo",
    ]);
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for row in rows {
        let (setting, measured) = (&row.setting, &row.measured);
        let load = match setting.offered_per_s {
            Some(per_s) => format!("{per_s:.0}/s"),
            None => format!("{} outstanding", setting.outstanding),
        };
        let waits =
            |client: Waiting, server: Waiting| format!("{client:?}/{server:?}").to_lowercase();
        table.add_row([
            setting.engine.clone(),
            waits(setting.client_wait, setting.leader_wait),
            load,
            number(measured.p50_us, 1),
            number(measured.p99_us, 1),
            number(measured.p999_us, 1),
            number(measured.p9999_us, 1),
            number(measured.ops_per_s, 0),
            number(measured.cpu_us_per_op, 1),
            number(measured.machine_cpu_us_per_commit, 1),
            measured.lost.map_or("-".into(), |lost| lost.to_string()),
            number(measured.ratio_p50, 2),
            number(measured.ratio_rate, 2),
        ]);
        let floors = &measured.floors;
        table.add_row([
            "  UDP echo".into(),
            waits(setting.floor_wait, setting.floor_wait),
            String::new(),
            number(floors.udp_echo_p50_us, 1),
            number(floors.udp_echo_p99_us, 1),
            String::new(),
            String::new(),
            number(floors.udp_echo_ops_per_s, 0),
            number(floors.udp_echo_cpu_us_per_op, 1),
            number(floors.udp_echo_machine_cpu_us_per_op, 1),
            floors
                .udp_echo_lost
                .map_or("-".into(), |lost| lost.to_string()),
        ]);
        if floors.udp_echo_alike_p50_us.is_some() {
            let none = String::new();
            table.add_row([
                "  UDP echo, alike".into(),
                waits(setting.client_wait, setting.leader_wait),
                none.clone(),
                number(floors.udp_echo_alike_p50_us, 1),
                none.clone(),
                none.clone(),
                none.clone(),
                number(floors.udp_echo_alike_ops_per_s, 0),
                none.clone(),
                none.clone(),
                none,
                number(measured.ratio_p50_alike, 2),
                number(measured.ratio_rate_alike, 2),
            ]);
        }
        if floors.xdp_echo_p50_us.is_some() {
            let none = String::new();
            table.add_row([
                "  XDP echo".into(),
                waits(setting.client_wait, Waiting::Inline),
                none.clone(),
                number(floors.xdp_echo_p50_us, 1),
                number(floors.xdp_echo_p99_us, 1),
                none.clone(),
                none.clone(),
                number(floors.xdp_echo_ops_per_s, 0),
                none,
                number(floors.xdp_echo_machine_cpu_us_per_op, 1),
            ]);
        }
        for (name, p50_us) in [
            ("  flush", floors.flush_p50_us),
            ("  volatile", floors.volatile_commit_p50_us),
        ] {
            if p50_us.is_some() {
                let gap = String::new();
                table.add_row([name.into(), gap.clone(), gap, number(p50_us, 1)]);
            }
        }
    }
    let mut text = row::text(&table);
    for row in rows {
        if let Some(ratio) = row.measured.ratio_sync {
            let engine = &row.setting.engine;
            text += &format!("{engine}: p50 / (flush + volatile commit) = {ratio:.2}\n");
        }
        if let Some(reason) = &row.unsupported {
            text += &format!("{} is unsupported here: {reason}\n", row.setting.engine);
        }
    }
    if let Some(row) = rows.first() {
        text += &format!("\n{}\n", conditions(row));
    }
    text
}

/// The sentence without which the numbers mean nothing.
fn conditions(row: &Row) -> String {
    let (setting, machine) = (&row.setting, &row.machine);
    format!(
        "{} replicas on {}, {}-byte values, {} durability, {}, authentication {}; \
         median of {} rounds of {} s after {} s of warm-up each; \
         {machine}",
        setting.replicas,
        setting.site,
        setting.value_bytes,
        setting.durability,
        setting.mode,
        if setting.auth { "on" } else { "off" },
        setting.rounds,
        setting.measure_s,
        setting.warmup_s,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;

    fn setting() -> Setting {
        Setting {
            client_wait: Waiting::Blocking,
            leader_wait: Waiting::Blocking,
            acceptor_wait: Waiting::Inline,
            floor_wait: Waiting::Blocking,
            linger_us: 100,
            cpus: 4,
            auth: false,
            engine: "software".into(),
            mode: "recvmmsg/sendmmsg".into(),
            durability: "volatile".into(),
            site: "netns".into(),
            replicas: 3,
            value_bytes: 64,
            outstanding: 1,
            load: "closed",
            offered_per_s: None,
            rounds: 5,
            warmup_s: 0.5,
            measure_s: 2.0,
        }
    }

    fn measured() -> Measured {
        Measured {
            p50_us: Some(96.0004),
            p99_us: Some(168.0),
            lost: Some(0),
            floors: Floors {
                udp_echo_p50_us: Some(51.0),
                ..Floors::default()
            },
            ratio_p50: Some(1.882_352_9),
            ..Measured::default()
        }
    }

    fn parsed(rows: &[Row]) -> serde_json::Value {
        serde_json::from_str(&to_json(rows)).expect("JSON")
    }

    #[track_caller]
    fn assert_keys(object: &serde_json::Value, expected: &[&str]) {
        let object = object.as_object().expect("an object");
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        let mut found: Vec<_> = object.keys().map(String::as_str).collect();
        found.sort_unstable();
        assert_eq!(found, expected);
    }

    #[test]
    fn every_row_has_every_key_measured_or_not_and_no_other() {
        let rows = [
            Row::new(setting(), measured(), Machine::read()),
            Row::unsupported(
                setting(),
                "polling needs 4 CPUs, here are 2".into(),
                Machine::read(),
            ),
        ];
        let json = parsed(&rows);
        for row in json.as_array().expect("several rows are an array") {
            assert_keys(row, KEYS);
            assert_keys(&row["floors"], FLOOR_KEYS);
            for key in ["cpu_model", "cpus", "kernel", "hypervisor", "mitigations"] {
                assert!(
                    row["machine"].get(key).is_some(),
                    "machine.{key} is missing"
                );
            }
        }
        assert_eq!(json[0]["schema"], "nearwire.bench/1");
        assert_eq!(json[0]["acceptor_wait"], "inline");
        assert_eq!(json[0]["p50_us"], 96.0);
        assert_eq!(json[0]["ratio_p50"], 1.882);
        assert!(json[0]["unsupported"].is_null());
        assert!(json[1]["p50_us"].is_null() && json[1]["unsupported"].is_string());
    }

    #[test]
    fn one_row_is_one_object() {
        assert!(parsed(&[Row::new(setting(), measured(), Machine::read())]).is_object());
        assert!(parsed(&[]).is_array());
    }

    #[test]
    fn the_table_shows_the_floor_and_the_conditions() {
        let unsupported = Row::unsupported(setting(), "no XDP".into(), Machine::read());
        let text = to_table(&[
            Row::new(setting(), measured(), Machine::read()),
            unsupported,
        ]);
        assert!(
            text.contains("1.88") && text.contains("UDP echo") && text.contains("51.0"),
            "{text}"
        );
        assert!(
            text.contains("software is unsupported here: no XDP"),
            "{text}"
        );
        assert!(
            text.contains("3 replicas on netns, 64-byte values, volatile"),
            "{text}"
        );
    }
}
