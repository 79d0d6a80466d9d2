//! `nearwire offload install` and `nearwire offload remove`.

use super::{NodeArgs, OwnNode, bpffs_of, nonce_text, parse_nonce};
use crate::cli::Failure;
use crate::cli::output::{self, Output};
use consensus::NodeId;
use nearwire::data_directory::{DataDirectory, DataDirectoryError, Expectation};
use nearwire::inspect::{Inspector, Report};
use nearwire::supervision::Wish;
use nearwire::xdp::Pins;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// How long to wait for a change where nothing else is said.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two looks at what a node has made of its order.
const LOOK: Duration = Duration::from_millis(20);
/// A node tries each second again what the kernel refused; what it reports may be that old.
const REFUSED_FOR: Duration = Duration::from_millis(1500);

/// Have a node's acceptor vote in the kernel.
///
/// A node with [offload] does so by itself; this takes `nearwire offload remove` back, which outlives
/// the process. If the node runs, it waits until the program votes, or says why it cannot.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  nearwire offload install --config node1.toml
  nearwire offload install --config cluster.toml --node 2 --data-directory /var/lib/nearwire/2

The votes stay where they are: nothing is lost and nothing waits, whichever engine answers.
It is an error if the kernel refuses, for instance because another program sits on the interface;
the node goes on in software then, and tries again every second.")]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    node: NodeArgs,
}

/// Have a node's acceptor vote in its process, or remove a region that no node owns.
///
/// The program is detached from its interface. The votes stay in the kernel's maps, where the node
/// goes on with them. This holds until `nearwire offload install`, over restarts too.
///
/// With --orphan the pins of a region are removed and its votes are LOST. If a node's data directory
/// still names it, that node has lost its memory: it is refused from then on, exit code 3, and
/// has to be replaced (`nearwire member replace --lost`).
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  nearwire offload remove --config node1.toml
  nearwire offload status                               which regions are there
  nearwire offload remove --orphan 00c0ffee00c0ffee     forget one for good

With --config as well, the region that this node's data directory names is not taken for an orphan.

With a node that does not run, what it left attached is detached, so that nothing votes for it any
more. Its votes stay pinned for its next start.")]
pub(crate) struct RemoveArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The region whose votes are to be forgotten, as `nearwire offload status` shows it.
    #[arg(
        long,
        env = "NEARWIRE_ORPHAN",
        value_name = "NONCE",
        value_parser = parse_nonce,
        help_heading = "Orphans"
    )]
    orphan: Option<u64>,
    /// The bpffs that the orphan is pinned in.
    #[arg(
        long,
        env = "NEARWIRE_BPFFS",
        value_name = "DIR",
        requires = "orphan",
        help_heading = "Orphans"
    )]
    bpffs: Option<PathBuf>,
}

pub(crate) fn install(args: &InstallArgs, output: Output) -> anyhow::Result<()> {
    let node = args.node.needed()?;
    if node.config.offload.is_none() {
        return Err(no_offload(&node).into());
    }
    let changed = change(&node, true)?;
    changed.print(&node, output)
}

pub(crate) fn remove(args: &RemoveArgs, output: Output) -> anyhow::Result<()> {
    match args.orphan {
        Some(nonce) => remove_orphan(nonce, args, output),
        None => {
            let node = args.node.needed()?;
            change(&node, false)?.print(&node, output)
        }
    }
}

pub(super) fn no_offload(node: &OwnNode) -> Failure {
    Failure::usage(format!(
        "node {} has no [offload] in its configuration",
        node.config.node
    ))
    .remedy(
        "add it, with engine and interface (`nearwire config example`), and start the node again",
    )
}

/// What became of an order.
enum Changed {
    /// The node runs, and reports this of its offload.
    Running(Report),
    /// It does not run. What it had left attached, if anything, is detached.
    Stopped { detached: Option<PathBuf> },
}

fn change(node: &OwnNode, is_wanted: bool) -> anyhow::Result<Changed> {
    let identity = node.identity()?;
    let path = &node.config.data_directory;
    let expectation = Expectation {
        cluster: node.config.cluster.clone(),
        node: NodeId(node.config.node),
        durability: identity.durability,
        origin: 0,
    };
    let wish = |error| anyhow::Error::new(error).context(format!("write in {}", path.display()));
    match DataDirectory::open(path, &expectation) {
        // As long as this is held the node cannot start.
        Ok(directory) => {
            Wish::of(path).set(is_wanted).map_err(wish)?;
            let identity = directory.identity();
            let detached = match &identity.bpffs {
                Some(bpffs) if !is_wanted => {
                    let pins = Pins::new(bpffs, identity.region_nonce)?;
                    if pins.hold_region() {
                        let _hold = pins.hold()?;
                        pins.detach()?;
                    }
                    Some(pins.directory().to_owned())
                }
                _ => None,
            };
            Ok(Changed::Stopped { detached })
        }
        Err(DataDirectoryError::InUse { .. }) => {
            Wish::of(path).set(is_wanted).map_err(wish)?;
            Ok(Changed::Running(settled(node, is_wanted)?))
        }
        Err(error) => Err(error.into()),
    }
}

/// Waits until the node has done as it was told.
fn settled(node: &OwnNode, is_wanted: bool) -> anyhow::Result<Report> {
    let address = [node.config.this().address];
    let number = node.config.node;
    let mut inspector = Inspector::new(&address, node.keys)?;
    let patience = node.timeout.unwrap_or(PATIENCE);
    let began = Instant::now();
    let mut last = None;
    let mut is_told = false;
    while began.elapsed() < patience {
        let left = patience.saturating_sub(began.elapsed());
        let report = inspector.inspect(&address, left, |_| true)?.pop().flatten();
        let Some(report) = report else {
            break;
        };
        let Some(Value::Object(_)) = report.0.get("offload") else {
            return Err(Failure::failed(format!(
                "node {number} runs without [offload]: its configuration was another when it started"
            ))
            .remedy("start it again")
            .into());
        };
        match (state(&report), is_wanted) {
            ("waiting", _) | ("voting", true) | ("removed", false) => return Ok(report),
            ("refused", true) if began.elapsed() > REFUSED_FOR.min(patience / 2) => {
                let error = offload(&report, "error").as_str().unwrap_or_default();
                return Err(Failure::failed(format!(
                    "node {number} cannot vote in the kernel, and goes on in software: {error}"
                ))
                .remedy("it tries again every second; `nearwire offload remove` ends that")
                .into());
            }
            (state, _) if !is_told && began.elapsed() > patience / 4 => {
                is_told = true;
                eprintln!("waiting for node {number}, whose offload is {state}");
            }
            _ => {}
        }
        last = Some(report);
        thread::sleep(LOOK);
    }
    let found = match &last {
        None => "does not answer".to_owned(),
        Some(report) => format!("still has its offload {}", state(report)),
    };
    let ms = patience.as_millis();
    Err(
        Failure::failed(format!("node {number} was told, but {found} after {ms} ms"))
            .remedy("see its log and `nearwire offload status`; --timeout-ms waits longer")
            .into(),
    )
}

fn offload<'a>(report: &'a Report, field: &str) -> &'a Value {
    report
        .0
        .get("offload")
        .map_or(&Value::Null, |offload| &offload[field])
}

fn state(report: &Report) -> &str {
    offload(report, "state").as_str().unwrap_or("unknown")
}

impl Changed {
    fn print(&self, node: &OwnNode, output: Output) -> anyhow::Result<()> {
        let number = node.config.node;
        let text = match self {
            Self::Running(report) => {
                let of = |field| offload(report, field).as_str().unwrap_or("?");
                let (engine, interface, mode) = (of("engine"), of("interface"), of("mode"));
                match state(report) {
                    "voting" => {
                        format!("node {number}: {engine} votes on {interface} in {mode} mode")
                    }
                    "waiting" => {
                        format!("node {number}: nobody votes yet; its cluster has not formed")
                    }
                    _ => format!("node {number}: software votes, with the same votes"),
                }
            }
            Self::Stopped {
                detached: Some(pins),
            } => format!(
                "node {number} does not run: nothing votes for it until it does. Its votes stay in {}",
                pins.display()
            ),
            Self::Stopped { detached: None } => {
                format!("node {number} does not run: it will see this when it starts")
            }
        };
        match output {
            Output::Table => output::line(&text),
            Output::Json => output::json(&match self {
                Self::Running(report) => json!({
                    "node": number,
                    "running": true,
                    "engine": report.0.get("engine"),
                    "offload": report.0.get("offload"),
                    "pins": null,
                }),
                Self::Stopped { detached } => json!({
                    "node": number,
                    "running": false,
                    "engine": null,
                    "offload": null,
                    "pins": detached,
                }),
            }),
        }
    }
}

fn remove_orphan(nonce: u64, args: &RemoveArgs, output: Output) -> anyhow::Result<()> {
    let node = args.node.node()?;
    let named = node.as_ref().and_then(|node| node.identity.as_ref());
    if named.is_some_and(|identity| identity.region_nonce == nonce && identity.bpffs.is_some()) {
        return Err(Failure::failed(format!(
            "region {} is no orphan: the data directory of this node names it",
            nonce_text(nonce)
        ))
        .remedy("leave it; or leave out --config, if this node is never to run again")
        .into());
    }
    let bpffs = bpffs_of(args.bpffs.as_deref(), node.as_ref());
    let pins = Pins::new(&bpffs, nonce)?;
    let directory = pins.directory().to_owned();
    if !directory.exists() {
        return Err(
            Failure::failed(format!("nothing is pinned in {}", directory.display()))
                .remedy("`nearwire offload status` lists what is")
                .into(),
        );
    }
    let hold = pins.hold()?;
    pins.remove()?;
    drop(hold);
    let (nonce, directory) = (nonce_text(nonce), directory.display());
    match output {
        Output::Table => output::line(&format!("region {nonce}: removed from {directory}")),
        Output::Json => output::json(&json!({ "nonce": nonce, "removed": directory.to_string() })),
    }
}
