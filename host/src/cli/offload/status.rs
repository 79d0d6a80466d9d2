//! `nearwire offload status`.

use super::{NodeArgs, OwnNode, bpffs_of, nonce_text};
use crate::cli::output::{self, Output};
use crate::cli::status::cell;
use consensus::region::Region;
use nearwire::data_directory::cluster_number;
use nearwire::inspect::{Inspector, Report};
use nearwire::supervision::Wish;
use nearwire::xdp::{Holder, Pins, Sight};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

/// Show the regions that are pinned in bpffs, and what votes on them.
///
/// They are read beside whatever votes; nothing is stopped. With --config it also says which of them
/// is that node's, and what the node reports if it runs.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  nearwire offload status
  nearwire offload status --config node1.toml
  nearwire offload status --output json | jq '.regions[] | select(.held == false) | .nonce'

Columns:
  region      the number that it is pinned under
  generation  how often its votes have been handed over
  ballot      the highest promised, as ROUND.NODE; highest, trim and decided are slots
  state       voting: a program on the interface answers; passing: it is attached but lets everything
              pass; attached: which of the two takes CAP_SYS_ADMIN to see; detached: no program is
              on any interface; sealed: it must not vote until its node runs; unreadable: it is no
              whole region
  interface   where the program is; elsewhere: in another network namespace
  link        pinned: the program outlives its process; process: it ends with it
  programs    how many programs could vote on it; - without CAP_SYS_ADMIN
  process     of the node that uses it; none: it does not run; -: it is not seen from here
  owner       with --config. this: the region that the node's data directory names; orphan: one that
              it named before, whose votes count no more; other: another node's

A region outlives its process, but no reboot: what is listed is from this boot.")]
pub(crate) struct Args {
    #[command(flatten)]
    node: NodeArgs,
    /// The bpffs to look at, if not the node's or /sys/fs/bpf.
    #[arg(
        long,
        env = "NEARWIRE_BPFFS",
        value_name = "DIR",
        help_heading = "Where"
    )]
    bpffs: Option<PathBuf>,
}

const COLUMNS: [&str; 15] = [
    "region",
    "node",
    "incarnation",
    "generation",
    "ballot",
    "highest",
    "trim",
    "decided",
    "state",
    "interface",
    "mode",
    "link",
    "programs",
    "process",
    "owner",
];
/// How long to wait for a node's report where nothing else is said.
const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) fn main(args: &Args, output: Output) -> anyhow::Result<()> {
    let node = args.node.node()?;
    let bpffs = bpffs_of(args.bpffs.as_deref(), node.as_ref());
    let mut regions = Vec::new();
    for pins in Pins::all(&bpffs)? {
        match Sight::of(pins.clone()) {
            Ok(sight) => regions.push(row(&sight, node.as_ref())),
            // Removed since it was listed.
            Err(_) if !pins.directory().exists() => {}
            Err(error) => return Err(error.into()),
        }
    }
    let own = node.as_ref().map(own).transpose()?;
    if output == Output::Json {
        return output::json(&json!({ "bpffs": bpffs, "regions": regions, "node": own }));
    }
    if regions.is_empty() {
        output::line(&format!("no region is pinned in {}", bpffs.display()))?;
    } else {
        let cells = |row: &Value| {
            COLUMNS.map(|column| match column {
                "process" if row["held"] == false => "none".to_owned(),
                column => cell(&row[column]),
            })
        };
        output::line(&output::table(COLUMNS, regions.iter().map(cells)))?;
    }
    for region in &regions {
        if let Some(error) = region["error"].as_str() {
            output::line(&format!("\n{}: {error}", cell(&region["region"])))?;
        }
    }
    match &own {
        Some(own) => output::line(&format!("\n{}", sentence(own))),
        None => Ok(()),
    }
}

/// A region as fields.
fn row(sight: &Sight, node: Option<&OwnNode>) -> Value {
    let attachment = sight.attachment.as_ref();
    let mut row = json!({
        "region": sight.pins.nonce().map(nonce_text),
        "pins": sight.pins.directory(),
        "state": state(sight),
        "interface": attachment.map(|on| on.interface.as_deref().unwrap_or("elsewhere")),
        "mode": attachment.map(|on| on.mode),
        "link": attachment.map(|on| if on.is_pinned { "pinned" } else { "process" }),
        "program": attachment.map(|on| on.program),
        "programs": sight.programs.as_ref().map(BTreeSet::len),
        "held": sight.holder != Holder::Nobody,
        "process": match sight.holder {
            Holder::Nobody => None,
            Holder::Process(process) => process,
        },
        "owner": node.map(|node| owner(sight, node)),
        "error": sight.region.as_ref().err().map(ToString::to_string),
    });
    if let (Ok(region), Some(fields)) = (&sight.region, row.as_object_mut()) {
        let (birth, layout) = (region.birth(), region.layout());
        let view = sight.view();
        // The ballot of a sealed group is none.
        let ballot = view.map(|view| view.promised);
        let ballot = ballot.filter(|_| !region.is_sealed());
        let more = [
            ("node", json!(birth.node.0)),
            ("cluster", json!(birth.cluster)),
            ("incarnation", json!(birth.incarnation().0)),
            ("generation", json!(region.generation())),
            ("ballot", json!(ballot.map(|ballot| ballot.to_string()))),
            ("highest", json!(view.map(|view| view.highest.0))),
            ("trim", json!(view.map(|view| view.trim.0))),
            ("decided", json!(view.map(|view| view.decided.upto.0))),
            ("groups", json!(layout.groups())),
            ("window_slots", json!(layout.window())),
            ("value_bytes", json!(layout.value_bytes())),
        ];
        fields.extend(more.map(|(name, value)| (name.to_owned(), value)));
    }
    row
}

fn state(sight: &Sight) -> &'static str {
    match (&sight.region, &sight.attachment) {
        (Err(_), _) => "unreadable",
        (Ok(region), _) if region.is_sealed() => "sealed",
        (Ok(_), None) => "detached",
        (Ok(_), Some(attached)) => match attached.votes {
            Some(true) => "voting",
            Some(false) => "passing",
            None => "attached",
        },
    }
}

/// Whose a region is, as this node's data directory has it.
fn owner(sight: &Sight, node: &OwnNode) -> &'static str {
    let identity = node.identity.as_ref();
    let named = identity.filter(|identity| Some(identity.region_nonce) == sight.pins.nonce());
    if let Some(identity) = named {
        let generation = sight.region.as_ref().ok().map(Region::generation);
        let is_here = identity
            .bpffs
            .as_deref()
            .is_some_and(|bpffs| sight.pins.directory().starts_with(bpffs));
        // Votes that have moved on leave copies that must not vote.
        let counts = is_here && generation.is_none_or(|found| found == identity.generation);
        return if counts { "this" } else { "orphan" };
    }
    let is_predecessor = sight.region.as_ref().is_ok_and(|region| {
        let birth = region.birth();
        birth.node.0 == node.config.node && birth.cluster == cluster_number(&node.config.cluster)
    });
    if is_predecessor { "orphan" } else { "other" }
}

/// What the node's data directory and the node itself say.
fn own(node: &OwnNode) -> anyhow::Result<Value> {
    let config = &node.config;
    let address = [config.this().address];
    let mut inspector = Inspector::new(&address, node.keys)?;
    let patience = node.timeout.unwrap_or(PATIENCE);
    let report = inspector
        .inspect(&address, patience, |_| true)?
        .pop()
        .flatten();
    let field = |name: &str| report.as_ref().and_then(|Report(report)| report.get(name));
    let identity = node.identity.as_ref();
    let votes = identity.map(|identity| match &identity.bpffs {
        Some(bpffs) => bpffs
            .join("nearwire")
            .join(nonce_text(identity.region_nonce)),
        None => config.data_directory.join("region"),
    });
    let is_wanted = config.offload.is_some() && Wish::of(&config.data_directory).is_offload();
    Ok(json!({
        "node": config.node,
        "votes": votes,
        "generation": identity.map(|identity| identity.generation),
        "wanted": if is_wanted { "offload" } else { "software" },
        "running": report.is_some(),
        "engine": field("engine"),
        "offload": field("offload"),
    }))
}

fn sentence(own: &Value) -> String {
    let number = &own["node"];
    let votes = match own["votes"].as_str() {
        Some(votes) => format!("its votes are in {votes}"),
        None => "it has never run".to_owned(),
    };
    let wanted = cell(&own["wanted"]);
    if own["running"] == false {
        return format!("node {number} does not answer; {votes}; {wanted} is wanted");
    }
    let Value::Object(offload) = &own["offload"] else {
        return format!("node {number} runs without offload; {votes}");
    };
    let of = |field| offload.get(field).map_or_else(|| "-".to_owned(), cell);
    let mut text = format!(
        "node {number} runs, its offload is {}; hand-overs so far: {}; {votes}; {wanted} is wanted",
        of("state"),
        of("hand_overs"),
    );
    if let Some(Value::Object(counters)) = offload.get("counters") {
        for (name, count) in counters {
            text.push_str(&format!("\n  {name}: {count}"));
        }
    }
    if let Some(Value::String(error)) = offload.get("error") {
        text.push_str(&format!("\n  error: {error}"));
    }
    text
}
