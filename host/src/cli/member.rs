//! `nearwire member`.

use super::Failure;
use super::output::{self, Output};
use super::peers::{Cluster, PeersArgs};
use clap::Subcommand;
use consensus::configuration::Configuration;
use consensus::quorum::{Member, MemberRole};
use consensus::{Incarnation, NodeId};
use nearwire::members::{self, Fate, Operator, Wish};
use serde_json::json;
use std::net::SocketAddr;
use std::time::Duration;

/// How long the members may take to become those wished for, if nothing else is said.
const PATIENCE: Duration = Duration::from_secs(60);
/// Show or change who votes, while writes go on.
///
/// Each change ends when it is in force, no earlier configuration is needed any more, and those who
/// vote remember which there are: a node that was removed may then be stopped for good.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the members, their roles and the quorums.
    #[command(after_long_help = "\
Examples:
  nearwire member list --config node1.toml
  nearwire member list --peers 127.0.0.1:4747 --output json | jq '.members[].node'")]
    List {
        #[command(flatten)]
        peers: PeersArgs,
    },
    /// Make nodes learners: they are sent everything and count for nothing.
    ///
    /// They run with `join = true` in their configuration.
    #[command(after_long_help = "\
Examples:
  nearwire member add 4=10.0.0.4:4747 --config node1.toml")]
    Add {
        /// The nodes, as NODE=HOST:PORT.
        #[arg(required = true, value_name = "NODE=HOST:PORT")]
        nodes: Vec<String>,
        #[command(flatten)]
        peers: PeersArgs,
    },
    /// Have learners vote, as soon as they have caught up.
    Promote {
        /// The nodes' numbers.
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<u16>,
        /// They vote, and do nothing else.
        #[arg(long, env = "NEARWIRE_WITNESS")]
        witness: bool,
        #[command(flatten)]
        quorum: QuorumArgs,
        #[command(flatten)]
        peers: PeersArgs,
    },
    /// Have voters learn only.
    Demote {
        /// The nodes' numbers.
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<u16>,
        #[command(flatten)]
        quorum: QuorumArgs,
        #[command(flatten)]
        peers: PeersArgs,
    },
    /// Make nodes members no more.
    Remove {
        /// The nodes' numbers.
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<u16>,
        #[command(flatten)]
        quorum: QuorumArgs,
        #[command(flatten)]
        peers: PeersArgs,
    },
    /// Put new nodes in the place of others, at once.
    ///
    /// The new ones learn first; then they vote and the others do not. With --lost they are the same
    /// nodes, which have lost their memory and came back with `join = true` and an empty data
    /// directory; they have the roles again that they had.
    #[command(after_long_help = "\
Examples:
  nearwire member replace 1 2 3 --with 4=10.0.0.4:4747,5=10.0.0.5:4747,6=10.0.0.6:4747 \\
      --config node1.toml
  nearwire member replace --lost 3 --config node1.toml")]
    Replace {
        /// The numbers of those that go.
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<u16>,
        /// Those that come, as NODE=HOST:PORT.
        #[arg(
            long,
            env = "NEARWIRE_WITH",
            value_name = "LIST",
            value_delimiter = ',',
            required_unless_present = "lost"
        )]
        with: Vec<String>,
        /// They come back themselves, with nothing in their memory.
        #[arg(long, env = "NEARWIRE_LOST", conflicts_with = "with")]
        lost: bool,
        #[command(flatten)]
        quorum: QuorumArgs,
        #[command(flatten)]
        peers: PeersArgs,
    },
}

/// How many votes each phase takes from then on.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct QuorumArgs {
    /// Votes that a new leader needs; as before if as many vote as before, or else a majority.
    ///
    /// Where --phase2 was none, that stays, and --phase1 is as many as it takes to meet it.
    #[arg(
        long,
        env = "NEARWIRE_PHASE1",
        value_name = "COUNT",
        requires = "phase2"
    )]
    phase1: Option<usize>,
    /// Votes that choose a value.
    #[arg(
        long,
        env = "NEARWIRE_PHASE2",
        value_name = "COUNT",
        requires = "phase1"
    )]
    phase2: Option<usize>,
}

impl QuorumArgs {
    fn sizes(&self) -> Option<(usize, usize)> {
        self.phase1.zip(self.phase2)
    }
}

pub(crate) fn main(command: &Command, output: Output) -> anyhow::Result<()> {
    let peers = match command {
        Command::List { peers }
        | Command::Add { peers, .. }
        | Command::Promote { peers, .. }
        | Command::Demote { peers, .. }
        | Command::Remove { peers, .. }
        | Command::Replace { peers, .. } => peers,
    };
    let new: anyhow::Result<Vec<_>> = match command {
        Command::Add { nodes, .. } => nodes.iter().map(|node| new_node(node, "")).collect(),
        Command::Replace { with, .. } => {
            with.iter().map(|node| new_node(node, "--with ")).collect()
        }
        Command::List { .. }
        | Command::Promote { .. }
        | Command::Demote { .. }
        | Command::Remove { .. } => Ok(Vec::new()),
    };
    let new = new?;
    let cluster = peers.cluster()?;
    let operator = Operator::new(cluster.addresses(), cluster.keys);
    let mut operator = operator.map_err(|error| failure(&error))?;
    let now = operator.look(cluster.changing());
    let now = now.map_err(|error| failure(&error))?;
    let mut desk = Desk {
        operator,
        cluster,
        leader: now
            .configuration
            .membership
            .member(now.leader)
            .map(|leader| leader.address),
    };
    let numbered = |nodes: &[u16], fate: fn(NodeId) -> Fate| {
        let fates = nodes.iter().map(|node| fate(NodeId(*node)));
        fates.collect::<Vec<_>>()
    };
    let (fates, quorum) = match command {
        Command::List { .. } => return print(&now.configuration, now.leader, output),
        Command::Add { .. } => {
            let new = new
                .into_iter()
                .map(|one| desk.stranger(one, MemberRole::Learner));
            (new.collect::<anyhow::Result<_>>()?, None)
        }
        Command::Promote {
            nodes,
            witness,
            quorum,
            ..
        } => {
            let fate = match witness {
                true => |node| Fate::Becomes(node, MemberRole::Witness),
                false => |node| Fate::Becomes(node, MemberRole::Voter),
            };
            (numbered(nodes, fate), quorum.sizes())
        }
        Command::Demote { nodes, quorum, .. } => {
            let fate = |node| Fate::Becomes(node, MemberRole::Learner);
            (numbered(nodes, fate), quorum.sizes())
        }
        Command::Remove { nodes, quorum, .. } => (numbered(nodes, Fate::Goes), quorum.sizes()),
        Command::Replace {
            nodes,
            lost: true,
            quorum,
            ..
        } => {
            let membership = &now.configuration.membership;
            let back = nodes.iter().map(|node| {
                let node = NodeId(*node);
                let former = membership.member(node);
                let former = former.ok_or(members::Error::NoMember { node });
                desk.come_back(former.map_err(|error| failure(&error))?)
            });
            (back.collect::<anyhow::Result<_>>()?, quorum.sizes())
        }
        Command::Replace { nodes, quorum, .. } => {
            let mut fates = numbered(nodes, Fate::Goes);
            for one in new {
                fates.push(desk.stranger(one, MemberRole::Voter)?);
            }
            (fates, quorum.sizes())
        }
    };
    let wish = Wish {
        quorums: quorum,
        ..Wish::new(fates)
    };
    let patience = desk.cluster.within(PATIENCE);
    let now = desk.operator.change(&wish, patience);
    let now = now.map_err(|error| failure(&error))?;
    print(&now.configuration, now.leader, output)
}

/// Which node it is and where, as it is written behind `option`.
fn new_node(text: &str, option: &str) -> anyhow::Result<(NodeId, SocketAddr)> {
    let (node, address) = super::peers::member(text, option)?;
    if node == NodeId::NONE {
        return Err(
            Failure::usage(format!("{option}{text}: which node is that?"))
                .remedy("write NODE=HOST:PORT, such as 4=10.0.0.4:4747")
                .into(),
        );
    }
    Ok((node, address))
}

/// Whoever changes the members, and how it finds new ones.
struct Desk {
    operator: Operator,
    cluster: Cluster,
    /// Where the leader is.
    leader: Option<SocketAddr>,
}

impl Desk {
    /// A node that is no member yet, in the life that it says it has.
    fn stranger(
        &mut self,
        (node, address): (NodeId, SocketAddr),
        role: MemberRole,
    ) -> anyhow::Result<Fate> {
        Ok(Fate::Comes(Member {
            node,
            incarnation: self.meet(node, address)?,
            address,
            priority: 0,
            role,
        }))
    }

    /// The life of the node at an address, if it is this one, and set up as the others are.
    fn meet(&mut self, node: NodeId, address: SocketAddr) -> anyhow::Result<Incarnation> {
        let inspector = self.operator.inspector();
        let reports = inspector.inspect(&[address], self.cluster.changing(), |_| false)?;
        let Some(report) = reports.into_iter().flatten().next() else {
            return Err(
                Failure::failed(format!("node {node} at {address} does not answer"))
                    .remedy("start it with `join = true` in its configuration, then try again")
                    .into(),
            );
        };
        let patience = self.cluster.changing();
        if let Some(leader) = self.leader {
            self.operator
                .check_alike(leader, address, patience)
                .map_err(|error| failure(&error))?;
        }
        let incarnation = report
            .0
            .get("incarnation")
            .and_then(serde_json::Value::as_u64);
        let incarnation = incarnation.and_then(|number| u32::try_from(number).ok());
        match (report.node("node"), incarnation) {
            (Some(found), Some(incarnation)) if found == node => Ok(Incarnation(incarnation)),
            (found, _) => Err(Failure::failed(format!(
                "at {address} runs node {}, not node {node}",
                found.map_or_else(|| "?".to_owned(), |found| found.to_string())
            ))
            .remedy("correct the number or the address")
            .into()),
        }
    }

    /// A member that lost its memory, in its new life and the role that it had.
    fn come_back(&mut self, former: &Member) -> anyhow::Result<Fate> {
        let Member { node, role, .. } = *former;
        let incarnation = self.meet(node, former.address)?;
        if incarnation != former.incarnation {
            return Ok(Fate::Returns {
                node,
                incarnation,
                role,
            });
        }
        let failure = Failure::failed(format!(
            "node {node} has lost nothing: it is the one that is known, a {}",
            role.name()
        ));
        // A command that was interrupted has left a learner, whatever it was before.
        Err(match role {
            MemberRole::Learner => failure.remedy(format!(
                "if it is to vote, as before a command that was interrupted: `nearwire member \
                 promote {node}`, with --witness if it was one"
            )),
            MemberRole::Voter | MemberRole::Witness => {
                failure.remedy("leave out --lost, and name who comes in its place by --with")
            }
        }
        .into())
    }
}

fn failure(error: &members::Error) -> anyhow::Error {
    let failure = Failure::failed(error.to_string());
    match error.remedy() {
        Some(remedy) => failure.remedy(remedy).into(),
        None => failure.into(),
    }
}

fn print(configuration: &Configuration, leader: NodeId, output: Output) -> anyhow::Result<()> {
    let membership = &configuration.membership;
    let mut members = membership.members.clone();
    members.sort_unstable_by_key(|member| member.node);
    let matchmakers = configuration.matchmakers.members.iter();
    let mut matchmakers: Vec<u16> = matchmakers.map(|one| one.node.0).collect();
    matchmakers.sort_unstable();
    match output {
        Output::Json => output::json(&json!({
            "epoch": membership.epoch.0,
            "version": configuration.version.to_string(),
            "leader": leader.0,
            "phase1": membership.quorums.phase1(),
            "phase2": membership.quorums.phase2(),
            "members": members.iter().map(|member| json!({
                "node": member.node.0,
                "role": member.role.name(),
                "address": member.address,
                "priority": member.priority,
                "incarnation": member.incarnation.0,
            })).collect::<Vec<_>>(),
            "matchmakers": matchmakers,
        })),
        Output::Table => {
            let rows = members.iter().map(|member| {
                let leads = if member.node == leader { "leads" } else { "" };
                [
                    member.node.to_string(),
                    member.role.name().to_owned(),
                    member.address.to_string(),
                    member.incarnation.to_string(),
                    leads.to_owned(),
                ]
            });
            let head = ["node", "role", "address", "incarnation", ""];
            output::line(&output::table(head, rows))?;
            output::line(&format!(
                "epoch {}, phase 1 takes {}, phase 2 takes {}",
                membership.epoch,
                membership.quorums.phase1(),
                membership.quorums.phase2()
            ))
        }
    }
}
