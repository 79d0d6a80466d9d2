//! `nearwire status`.

use super::Failure;
use super::output::{self, Output};
use super::peers::{Cluster, PeersArgs};
use consensus::NodeId;
use nearwire::inspect::{Inspector, Report};
use serde_json::{Value, json};
use std::net::SocketAddr;

/// Show what every replica is doing.
///
/// A replica that does not answer is shown as unreachable, and the rest all the same: the exit code
/// is 1 only if none answers.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  nearwire status --config node1.toml
  nearwire status --peers 127.0.0.1:4747,127.0.0.1:4748,127.0.0.1:4749
  nearwire status --config node1.toml --output json | jq '.[] | select(.state != \"ok\")'

Columns:
  ballot       the highest that the replica promised, as ROUND.NODE
  applied      the last slot that its state machine has applied
  decided      the last slot that it knows to be chosen
  trim         the first slot that it still keeps
  incarnation  this life of its memory: votes do not outlive it
  state        ok; forming: waits for the others' first word; conflict: must not vote; \
unreachable")]
pub(crate) struct Args {
    #[command(flatten)]
    peers: PeersArgs,
}

/// The columns of the table, each a field of the JSON.
const COLUMNS: [&str; 14] = [
    "node",
    "address",
    "role",
    "leader",
    "ballot",
    "applied",
    "decided",
    "trim",
    "engine",
    "mode",
    "durability",
    "incarnation",
    "state",
    "why",
];

pub(crate) fn main(args: &Args, output: Output) -> anyhow::Result<()> {
    let cluster = args.peers.cluster()?;
    let addresses = cluster.addresses();
    let mut inspector = Inspector::new(&addresses, cluster.keys)?;
    let reports = inspector.inspect(&addresses, cluster.looking(), |_| false)?;
    let none = reports.iter().all(Option::is_none);
    let members = cluster.members.iter().zip(reports);
    let rows: Vec<Report> = members
        .map(|(member, report)| row(*member, report, &cluster))
        .collect();
    match output {
        Output::Table => output::line(&output::table(COLUMNS, rows.iter().map(cells)))?,
        Output::Json => output::json(&rows)?,
    }
    if none {
        return Err(nobody(&cluster).into());
    }
    Ok(())
}

/// No replica answered at all.
pub(super) fn nobody(cluster: &Cluster) -> Failure {
    let key = if cluster.keys.is_some() {
        "whether its key is this one"
    } else {
        "whether it has a key, which tools then need too"
    };
    Failure::failed(format!(
        "no replica answered within {} ms",
        cluster.looking().as_millis()
    ))
    .remedy(format!(
        "see whether the cluster runs (`nearwire run`), and {key}"
    ))
}

/// What the node says, and what that means.
fn row((node, address): (NodeId, SocketAddr), report: Option<Report>, cluster: &Cluster) -> Report {
    let (state, why) = match &report {
        Some(report) => state(report),
        None => {
            let why = format!("no answer within {} ms", cluster.looking().as_millis());
            ("unreachable", Value::from(why))
        }
    };
    let mut row = report.unwrap_or_default();
    let mut fill = |field: &str, value: Value| {
        row.0.entry(field).or_insert(value);
    };
    fill(
        "node",
        if node == NodeId::NONE {
            Value::Null
        } else {
            json!(node.0)
        },
    );
    fill("address", json!(address));
    fill("state", state.into());
    fill("why", why);
    row
}

fn state(report: &Report) -> (&'static str, Value) {
    if let Some(conflict) = report.0.get("conflict").filter(|one| !one.is_null()) {
        return ("conflict", conflict["why"].clone());
    }
    match report.0.get("formed") {
        Some(Value::Bool(false)) => {
            let missing = report.0.get("missing").map_or(String::new(), cell);
            let why = match missing.as_str() {
                "" | "-" => "waits for a majority".to_owned(),
                missing => format!("waits for {missing}"),
            };
            ("forming", why.into())
        }
        _ => ("ok", Value::Null),
    }
}

fn cells(row: &Report) -> [String; COLUMNS.len()] {
    COLUMNS.map(|column| match (column, row.0.get(column)) {
        ("why", None | Some(Value::Null)) => String::new(),
        (_, value) => value.map_or_else(|| "-".to_owned(), cell),
    })
}

/// A value as it stands in a table.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(cell).collect();
            items.join(", ")
        }
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> Report {
        Report(serde_json::from_str(text).expect("JSON"))
    }

    #[test]
    fn a_node_that_must_not_vote_says_why() {
        let (state, why) = state(&report(
            r#"{"formed": false, "conflict": {"kind": "disowned", "why": "memory was lost"}}"#,
        ));
        assert_eq!(
            (state, cell(&why).as_str()),
            ("conflict", "memory was lost")
        );
    }

    #[test]
    fn a_forming_node_says_whom_it_waits_for() {
        let (state, why) = state(&report(r#"{"formed": false, "missing": [2, 3]}"#));
        assert_eq!((state, cell(&why).as_str()), ("forming", "waits for 2, 3"));
    }
}
