//! `nearwire leader`.

use super::Failure;
use super::output::{self, Output};
use super::peers::{Cluster, PeersArgs};
use super::status::nobody;
use clap::Subcommand;
use consensus::{Ballot, NodeId};
use nearwire::inspect::{HandOver, Inspector, Report};
use serde_json::json;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

/// Between two looks at whether the successor leads.
const LOOK: Duration = Duration::from_millis(20);
/// How many redirects are followed: leadership may move while it is being moved.
const MAX_HOPS: usize = 3;

/// Say who leads, or make another replica lead.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Say who leads.
    #[command(after_long_help = "\
Examples:
  nearwire leader show --config node1.toml
  nearwire leader show --peers 127.0.0.1:4747,127.0.0.1:4748 --output json | jq .leader")]
    Show {
        #[command(flatten)]
        peers: PeersArgs,
    },
    /// Hand leadership over to another replica.
    ///
    /// The leader stops proposing, lets the successor catch up, and tells it to campaign: nothing
    /// is lost, and clients wait for a few round trips.
    #[command(after_long_help = "\
Examples:
  nearwire leader move --to 2 --config node1.toml")]
    Move {
        /// The replica that is to lead.
        #[arg(
            long,
            env = "NEARWIRE_TO",
            value_name = "NODE",
            value_parser = clap::value_parser!(u16).range(1..=i64::from(NodeId::MAX))
        )]
        to: u16,
        #[command(flatten)]
        peers: PeersArgs,
    },
}

/// Who leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Leader {
    node: NodeId,
    address: SocketAddr,
    ballot: Ballot,
}

impl Leader {
    fn print(&self, output: Output) -> anyhow::Result<()> {
        let Self {
            node,
            address,
            ballot,
        } = self;
        match output {
            Output::Table => output::line(&format!(
                "node {node} at {address} leads in ballot {ballot}"
            )),
            Output::Json => output::json(&json!({
                "leader": node.0,
                "address": address,
                "ballot": ballot.to_string(),
            })),
        }
    }
}

pub(crate) fn main(command: &Command, output: Output) -> anyhow::Result<()> {
    match command {
        Command::Show { peers } => {
            let cluster = peers.cluster()?;
            let mut inspector = Inspector::new(&cluster.addresses(), cluster.keys)?;
            find(&mut inspector, &cluster)?.print(output)
        }
        Command::Move { peers, to } => {
            let cluster = peers.cluster()?;
            let mut inspector = Inspector::new(&cluster.addresses(), cluster.keys)?;
            hand_over(&mut inspector, &cluster, NodeId(*to))?.print(output)
        }
    }
}

fn find(inspector: &mut Inspector, cluster: &Cluster) -> anyhow::Result<Leader> {
    let addresses = cluster.addresses();
    let reports = inspector.inspect(&addresses, cluster.looking(), is_settled)?;
    if reports.iter().all(Option::is_none) {
        return Err(nobody(cluster).into());
    }
    leader_of(&addresses, &reports).ok_or_else(|| {
        let answered = reports.iter().flatten().count();
        let members = addresses.len();
        Failure::failed(format!(
            "nobody leads: {answered} of {members} replicas answered, none of them as leader"
        ))
        .remedy("see `nearwire status`: a majority must run, and an election takes a moment")
        .into()
    })
}

/// Whether a majority has answered, and agrees: the rest may be down.
fn is_settled(reports: &[Option<Report>]) -> bool {
    let answered = || reports.iter().flatten();
    let leader = answered()
        .find(|report| report.leads())
        .and_then(|report| report.node("node"));
    let agree = answered()
        .filter(|report| report.node("leader") == leader)
        .count();
    leader.is_some() && agree > reports.len() / 2
}

/// A leader that was superseded may not know it yet: the highest ballot counts.
fn leader_of(addresses: &[SocketAddr], reports: &[Option<Report>]) -> Option<Leader> {
    let leaders = addresses
        .iter()
        .zip(reports)
        .filter_map(|(&address, report)| {
            let report = report.as_ref().filter(|report| report.leads())?;
            Some(Leader {
                node: report.node("node")?,
                address,
                ballot: report.ballot(),
            })
        });
    leaders.max_by_key(|leader| leader.ballot)
}

fn hand_over(
    inspector: &mut Inspector,
    cluster: &Cluster,
    successor: NodeId,
) -> anyhow::Result<Leader> {
    let patience = cluster.changing();
    let until = Instant::now() + patience;
    let left = || until.saturating_duration_since(Instant::now());
    let leader = find(inspector, cluster)?;
    if leader.node == successor {
        return Ok(leader);
    }
    ask_leader(inspector, leader, successor, left)?;
    let addresses = cluster.addresses();
    while !left().is_zero() {
        let leads = |report: &Report| report.leads() && report.node("node") == Some(successor);
        let reports = inspector.inspect(&addresses, left().min(10 * LOOK), |reports| {
            reports.iter().flatten().any(leads)
        })?;
        if let Some(leader) = leader_of(&addresses, &reports)
            && leader.node == successor
        {
            return Ok(leader);
        }
        thread::sleep(LOOK.min(left()));
    }
    Err(Failure::failed(format!(
        "node {successor} did not take over within {} ms",
        patience.as_millis()
    ))
    .remedy("see `nearwire status` whether it runs and has caught up, then try again")
    .into())
}

/// Has the leader accept the order, wherever it is by now.
fn ask_leader(
    inspector: &mut Inspector,
    mut leader: Leader,
    successor: NodeId,
    left: impl Fn() -> Duration,
) -> anyhow::Result<()> {
    for _ in 0..=MAX_HOPS {
        match inspector.hand_over(leader.address, successor, left())? {
            HandOver::Accepted => return Ok(()),
            HandOver::Redirected(Some((node, _))) if node == leader.node => {
                return Err(Failure::failed(format!(
                    "node {successor} is no member of the cluster"
                ))
                .remedy("see `nearwire status` for the members")
                .into());
            }
            HandOver::Redirected(Some((node, _))) if node == successor => return Ok(()),
            HandOver::Redirected(Some((node, address))) => {
                leader = Leader {
                    node,
                    address,
                    ..leader
                };
            }
            HandOver::Redirected(None) => break,
            HandOver::Silent => {
                let Leader { node, address, .. } = leader;
                return Err(Failure::failed(format!(
                    "node {node} at {address} led, and does not answer"
                ))
                .remedy("see `nearwire status`: another one is elected if it is gone")
                .into());
            }
        }
    }
    Err(Failure::failed("nobody leads at the moment")
        .remedy("try again when `nearwire leader show` names a leader")
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> Option<Report> {
        Some(Report(serde_json::from_str(text).expect("JSON")))
    }

    #[test]
    fn the_highest_of_two_leaders_counts() {
        let addresses: Vec<_> = (1..=3).map(|port| ([127, 0, 0, 1], port).into()).collect();
        let reports = [
            report(r#"{"node": 1, "role": "leader", "ballot": "10.1", "leader": 1}"#),
            report(r#"{"node": 2, "role": "leader", "ballot": "9.2", "leader": 2}"#),
            None,
        ];
        let leader = leader_of(&addresses, &reports).expect("a leader");
        assert_eq!((leader.node, leader.address), (NodeId(1), addresses[0]));
        assert!(!is_settled(&reports));
    }

    #[test]
    fn a_majority_that_agrees_need_not_wait_for_the_dead() {
        let reports = [
            report(r#"{"node": 1, "role": "leader", "leader": 1}"#),
            report(r#"{"node": 2, "role": "follower", "leader": 1}"#),
            None,
        ];
        assert!(is_settled(&reports));
    }
}
