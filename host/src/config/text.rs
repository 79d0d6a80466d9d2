//! From the file's text to a [`Config`] that can be: every error knows its place.

use super::place::{self, Place, Step};
use super::{Config, Durability, Error, Overrides, Peer, Problem, Quorum, Region, Timing, Worker};
use consensus::NodeId;
use consensus::region::LayoutError;
use serde::{Deserialize, Deserializer, de};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::de::DeTable;

/// The file as it is written: a flag may stand in for what is missing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    cluster: String,
    #[serde(default, deserialize_with = "some_node_number")]
    node: Option<u16>,
    data_directory: Option<PathBuf>,
    durability: Option<Durability>,
    #[serde(default, deserialize_with = "some_address")]
    resp: Option<SocketAddr>,
    #[serde(default, rename = "peer")]
    peers: Vec<Peer>,
    quorum: Option<Quorum>,
    #[serde(default)]
    region: Region,
    #[serde(default)]
    worker: Worker,
    #[serde(default)]
    timing: Timing,
    key_file: Option<PathBuf>,
}

/// Takes 1 to [`NodeId::MAX`].
pub(super) fn node_number<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
    let number = i64::deserialize(from)?;
    let node = u16::try_from(number)
        .ok()
        .filter(|node| (1..=NodeId::MAX).contains(node));
    node.ok_or_else(|| {
        let limit = NodeId::MAX;
        de::Error::custom(format_args!(
            "node {number}, but a node's number is 1 to {limit}"
        ))
    })
}

/// Takes `IP:port`.
pub(super) fn address<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map_err(|_| {
        de::Error::custom(format_args!(
            "{text:?} is no address: write \"IP:port\", such as \"127.0.0.1:4747\" or \
             \"[::1]:4747\""
        ))
    })
}

fn some_node_number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u16>, D::Error> {
    node_number(from).map(Some)
}

fn some_address<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    address(from).map(Some)
}

/// Parses and checks.
pub(super) fn parse(path: &Path, text: &str, overrides: Overrides) -> Result<Config, Error> {
    let document = DeTable::parse(text).map_err(|error| refused(path, text, &error))?;
    let file: File = toml::from_str(text).map_err(|error| refused(path, text, &error))?;
    let flags = Flags::of(&overrides);
    let missing = |key: &str| Error::Invalid {
        place: Place::File(path.to_owned()),
        problem: Box::new(Problem::Missing(key.into())),
    };
    let config = Config {
        cluster: file.cluster,
        node: overrides
            .node
            .or(file.node)
            .ok_or_else(|| missing("node"))?,
        data_directory: overrides
            .data_directory
            .or(file.data_directory)
            .ok_or_else(|| missing("data_directory"))?,
        durability: overrides
            .durability
            .or(file.durability)
            .ok_or_else(|| missing("durability"))?,
        resp: overrides.resp.or(file.resp),
        peers: file.peers,
        quorum: file.quorum,
        region: file.region,
        worker: Worker {
            wait: overrides.wait.unwrap_or(file.worker.wait),
            ..file.worker
        },
        timing: file.timing,
        key_file: overrides.key_file.or(file.key_file),
    };
    check(&config).map_err(|(way, problem)| Error::Invalid {
        place: match flags.of_way(&way) {
            Some(flag) => Place::Flag(flag),
            None => match place::find(document.get_ref(), &way) {
                Some(span) => Place::in_text(path, text, span.start),
                None => Place::File(path.to_owned()),
            },
        },
        problem: Box::new(problem),
    })?;
    Ok(config)
}

/// Which values come from a flag.
struct Flags {
    node: bool,
    key_file: bool,
}

impl Flags {
    fn of(overrides: &Overrides) -> Self {
        Self {
            node: overrides.node.is_some(),
            key_file: overrides.key_file.is_some(),
        }
    }

    fn of_way(&self, way: &[Step]) -> Option<&'static str> {
        match way {
            [Step::Key("node")] if self.node => Some("--node"),
            [Step::Key("key_file")] if self.key_file => Some("--key-file"),
            _ => None,
        }
    }
}

/// A problem and the way to the value that has it.
type Found = (Vec<Step>, Problem);

fn check(config: &Config) -> Result<(), Found> {
    if config.cluster.is_empty() {
        return Err((vec![Step::Key("cluster")], Problem::NoName));
    }
    check_peers(&config.peers)?;
    if !config.peers.iter().any(|peer| peer.node == config.node) {
        let problem = Problem::NotAMember {
            node: config.node,
            members: config.peers.iter().map(|peer| peer.node).collect(),
        };
        return Err((vec![Step::Key("node")], problem));
    }
    if let Err(error) = config.quorums() {
        let key = if config.quorum.is_some() {
            "quorum"
        } else {
            "peer"
        };
        return Err((vec![Step::Key(key)], error.into()));
    }
    if let Err(error) = config.layout(1) {
        let key = match error {
            LayoutError::Value(_) => "value_bytes",
            LayoutError::Window(_) | LayoutError::Groups(_) => "window_slots",
        };
        return Err((vec![Step::Key("region"), Step::Key(key)], error.into()));
    }
    check_worker(&config.worker)?;
    check_timing(&config.timing)?;
    config
        .key()
        .map(drop)
        .map_err(|error| (vec![Step::Key("key_file")], error.into()))
}

fn check_peers(peers: &[Peer]) -> Result<(), Found> {
    let at = |index, key| vec![Step::Key("peer"), Step::Item(index), Step::Key(key)];
    let Some(first) = peers.first() else {
        return Err((vec![Step::Key("peer")], Problem::NoPeers));
    };
    for (index, peer) in peers.iter().enumerate() {
        let Peer { node, address, .. } = *peer;
        let before = &peers[..index];
        if before.iter().any(|other| other.node == node) {
            return Err((at(index, "node"), Problem::SameNode(node)));
        }
        if let Some(other) = before.iter().find(|other| other.address == address) {
            let (first, second) = (other.node, node);
            let problem = Problem::SameAddress {
                first,
                second,
                address,
            };
            return Err((at(index, "address"), problem));
        }
        if let Some(why) = unreachable(address) {
            return Err((
                at(index, "address"),
                Problem::Unreachable { node, address, why },
            ));
        }
        if address.is_ipv4() != first.address.is_ipv4() {
            let (v4, v6) = if address.is_ipv4() {
                (node, first.node)
            } else {
                (first.node, node)
            };
            return Err((at(index, "address"), Problem::MixedFamilies { v4, v6 }));
        }
    }
    Ok(())
}

fn unreachable(address: SocketAddr) -> Option<&'static str> {
    if address.port() == 0 {
        Some("port 0 is no port")
    } else if address.ip().is_unspecified() {
        Some("it is a wildcard")
    } else if address.ip().is_multicast() {
        Some("it is a multicast address")
    } else {
        None
    }
}

fn check_worker(worker: &Worker) -> Result<(), Found> {
    match worker.fifo_priority {
        Some(priority) if !(1..=99).contains(&priority) => {
            let way = vec![Step::Key("worker"), Step::Key("fifo_priority")];
            Err((way, Problem::FifoPriority(priority)))
        }
        Some(_) | None => Ok(()),
    }
}

fn check_timing(timing: &Timing) -> Result<(), Found> {
    let Timing {
        heartbeat_ms,
        election_ms,
    } = *timing;
    let at = |key| vec![Step::Key("timing"), Step::Key(key)];
    if heartbeat_ms == 0 {
        return Err((at("heartbeat_ms"), Problem::NoHeartbeat));
    }
    if heartbeat_ms
        .checked_mul(3)
        .is_none_or(|least| election_ms < least)
    {
        let problem = Problem::Hasty {
            election_ms,
            heartbeat_ms,
        };
        return Err((at("election_ms"), problem));
    }
    Ok(())
}

fn refused(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let place = match error.span() {
        // An error about the document as a whole spans all of it.
        Some(span) if span != (0..text.len()) => Place::in_text(path, text, span.start),
        _ => Place::File(path.to_owned()),
    };
    Error::Invalid {
        place,
        problem: Box::new(problem(error.message())),
    }
}

/// Serde names what it found and what it knows in backquotes; whatever else it says is passed on.
fn problem(message: &str) -> Problem {
    let mut quoted = message.split('`').skip(1).step_by(2).map(str::to_owned);
    let what = if message.starts_with("unknown field") {
        "key"
    } else if message.starts_with("unknown variant") {
        "value"
    } else if message.starts_with("missing field")
        && let Some(key) = quoted.next()
    {
        return Problem::Missing(key);
    } else {
        return Problem::Text(message.trim_end().replace('\n', ", "));
    };
    let Some(found) = quoted.next() else {
        return Problem::Text(message.into());
    };
    let known: Vec<_> = quoted.collect();
    Problem::Unknown {
        what,
        nearest: nearest(&found, &known).cloned(),
        found,
        known,
    }
}

/// The known word that was most likely meant: one that begins as `found` does or the other way
/// round, or else the one with the fewest changes, if these are few.
fn nearest<'a>(found: &str, known: &'a [String]) -> Option<&'a String> {
    const MOST_CHANGES: usize = 3;
    let lower = found.to_ascii_lowercase().replace('-', "_");
    let begins = |word: &&String| {
        lower.len() >= MOST_CHANGES && (word.starts_with(&lower) || lower.starts_with(*word))
    };
    known.iter().find(begins).or_else(|| {
        let changes = known.iter().map(|word| (changes(&lower, word), word));
        let few = changes.filter(|(count, word)| *count <= MOST_CHANGES.min(word.len() / 2));
        few.min_by_key(|(count, _)| *count).map(|(_, word)| word)
    })
}

/// How many letters must be added, dropped or replaced to make `a` into `b` (Levenshtein 1966).
fn changes(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.chars().count()]
}
