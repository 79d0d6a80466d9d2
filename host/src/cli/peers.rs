//! Where the cluster is: what every command that talks to one is told.

use super::Failure;
use super::asking::AskingArgs;
use consensus::NodeId;
use consensus::auth::Keys;
use nearwire::config::Config;
use std::fmt::Display;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

/// Flags of every command that talks to a cluster.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct PeersArgs {
    /// The replicas, as `HOST:PORT` or `NODE=HOST:PORT`, separated by commas.
    ///
    /// It goes before --config, whose key still counts.
    #[arg(
        long,
        env = "NEARWIRE_PEERS",
        value_name = "LIST",
        value_delimiter = ','
    )]
    peers: Vec<String>,
    /// A node's configuration, to take the replicas and the key from.
    ///
    /// Any node's will do: they agree on both.
    #[arg(long, env = "NEARWIRE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    asking: AskingArgs,
}

/// A cluster as seen from outside.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    /// Its replicas; [`NodeId::NONE`] where only the address is known.
    pub(crate) members: Vec<(NodeId, SocketAddr)>,
    /// Its keys, where packets carry tags.
    pub(crate) keys: Option<Keys>,
    /// Longest value of a request in bytes.
    pub(crate) max_value: usize,
    timeout: Option<Duration>,
}

impl PeersArgs {
    /// Finds out where the cluster is.
    pub(crate) fn cluster(&self) -> anyhow::Result<Cluster> {
        let config = self
            .config
            .as_deref()
            .map(Config::load_for_client)
            .transpose()?;
        let members =
            match &config {
                _ if !self.peers.is_empty() => {
                    let peers = self.peers.iter().map(|peer| member(peer, "--peers "));
                    peers.collect::<anyhow::Result<_>>()?
                }
                Some(config) => {
                    let peers = config.peers.iter();
                    peers
                        .map(|peer| (NodeId(peer.node), peer.address))
                        .collect()
                }
                None => {
                    return Err(Failure::usage(
                        "nobody to ask: neither --peers nor --config is given",
                    )
                    .remedy("add --peers 127.0.0.1:4747,… or --config FILE, or set NEARWIRE_PEERS")
                    .into());
                }
            };
        let keys = match (self.asking.keys()?, &config) {
            (None, Some(config)) => config.keys()?,
            (keys, _) => keys,
        };
        let region = config.map(|config| config.region).unwrap_or_default();
        Ok(Cluster {
            members,
            keys,
            max_value: region.value_bytes,
            timeout: self.asking.timeout(),
        })
    }
}

impl Cluster {
    /// Where its replicas are.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.members.iter().map(|&(_, address)| address).collect()
    }

    /// How long to wait for an answer that changes nothing.
    pub(crate) fn looking(&self) -> Duration {
        self.within(Duration::from_secs(1))
    }

    /// How long to wait for a change.
    pub(crate) fn changing(&self) -> Duration {
        self.within(Duration::from_secs(3))
    }

    /// How long to wait, and if nothing else is said `usually`.
    pub(crate) fn within(&self, usually: Duration) -> Duration {
        self.timeout.unwrap_or(usually)
    }
}

/// A member, or a node that is to be one, as it is written behind `option`.
pub(super) fn member(text: &str, option: &str) -> anyhow::Result<(NodeId, SocketAddr)> {
    let text = text.trim();
    let (node, address) = match text.split_once('=') {
        Some((node, address)) => {
            let number = node
                .parse()
                .ok()
                .filter(|node| (1..=NodeId::MAX).contains(node));
            let number = number.ok_or_else(|| {
                Failure::usage(format!("{option}{text}: {node:?} is no node number"))
                    .remedy(format!("a node number is 1 to {}", NodeId::MAX))
            })?;
            (NodeId(number), address)
        }
        None => (NodeId::NONE, text),
    };
    let unusable = |why: &dyn Display| {
        Failure::usage(format!(
            "{option}{text}: {address:?} is no replica's address: {why}"
        ))
        .remedy("write HOST:PORT, such as 127.0.0.1:4747 or [::1]:4747")
    };
    let mut found = address
        .to_socket_addrs()
        .map_err(|error| unusable(&error))?;
    let address = found
        .find(|address| address.port() != 0)
        .ok_or_else(|| unusable(&"there is none with a port"))?;
    Ok((node, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_may_say_its_number() {
        let address = "127.0.0.1:4747".parse().expect("an address");
        assert_eq!(
            member("127.0.0.1:4747", "--peers ").expect("a peer"),
            (NodeId::NONE, address)
        );
        assert_eq!(
            member(" 7=127.0.0.1:4747", "--peers ").expect("a peer"),
            (NodeId(7), address)
        );
    }

    #[test]
    fn a_peer_that_is_none_is_quoted() {
        for text in [
            "0=127.0.0.1:1",
            "1024=127.0.0.1:1",
            "x=127.0.0.1:1",
            "127.0.0.1",
            "::1:",
            "",
        ] {
            let error = member(text, "--peers ").expect_err("an error");
            assert!(error.to_string().contains(text.trim()), "{error}");
        }
    }
}
