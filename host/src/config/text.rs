//! From the file's text to a [`Config`] that can be: every error knows its place.

use super::place::{self, Place, Step};
use super::{
    CatchUp, Config, Durability, Error, MAX_GROUPS, MAX_LINGER_US, Offload, Overrides, Peer,
    Problem, Quorum, Reads, Region, RespTls, Security, Timing, Worker,
};
use crate::resp::User;
use crate::xdp::{Attach, OnHostDeath};
use consensus::NodeId;
use consensus::frame::XDP_VALUE_BYTES;
use consensus::region::LayoutError;
use serde::{Deserialize, Deserializer, de};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::de::DeTable;

/// The file as it is written: a flag may stand in for what is missing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    cluster: Option<String>,
    #[serde(default, deserialize_with = "some_node_number")]
    node: Option<u16>,
    data_directory: Option<PathBuf>,
    durability: Option<Durability>,
    #[serde(default)]
    reads: Reads,
    #[serde(default, deserialize_with = "some_address")]
    resp: Option<SocketAddr>,
    resp_tls: Option<RespTls>,
    #[serde(default, rename = "user")]
    users: Vec<User>,
    #[serde(default, rename = "peer")]
    peers: Vec<Peer>,
    #[serde(default)]
    join: bool,
    #[serde(default)]
    rejoin: bool,
    quorum: Option<Quorum>,
    #[serde(default)]
    region: Region,
    #[serde(default)]
    worker: Worker,
    #[serde(default)]
    timing: Timing,
    #[serde(default)]
    catch_up: CatchUp,
    offload: Option<Offload>,
    key_file: Option<PathBuf>,
    #[serde(default)]
    insecure: bool,
    security: Option<Security>,
}

/// The region's dimensions as they are written: what is missing goes with the number of groups.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Dimensions {
    groups: Option<u16>,
    window_slots: Option<u64>,
    value_bytes: Option<usize>,
    conformance_groups: Option<u16>,
}

impl From<Dimensions> for Region {
    fn from(written: Dimensions) -> Self {
        let usual = Self::of(written.groups.unwrap_or(1));
        Self {
            groups: usual.groups,
            window_slots: written.window_slots.unwrap_or(usual.window_slots),
            value_bytes: written.value_bytes.unwrap_or(usual.value_bytes),
            conformance_groups: written
                .conformance_groups
                .unwrap_or(usual.conformance_groups),
        }
    }
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

pub(super) fn some_address<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<SocketAddr>, D::Error> {
    address(from).map(Some)
}

/// Parses and checks.
pub(super) fn parse(path: &Path, text: &str, overrides: Overrides) -> Result<Config, Error> {
    let document = DeTable::parse(text).map_err(|error| refused(path, text, &error))?;
    let file: File = toml::from_str(text).map_err(|error| refused(path, text, &error))?;
    build(
        path,
        text,
        document.get_ref(),
        file,
        overrides,
        check_listeners,
    )
}

/// Parses and checks for a client, to which it does not matter whose copy it is.
pub(super) fn parse_for_client(path: &Path, text: &str) -> Result<Config, Error> {
    let document = DeTable::parse(text).map_err(|error| refused(path, text, &error))?;
    let mut file: File = toml::from_str(text).map_err(|error| refused(path, text, &error))?;
    file.node = file.node.or(file.peers.first().map(|peer| peer.node));
    file.data_directory.get_or_insert_default();
    file.durability.get_or_insert(Durability::Volatile);
    let listens_nowhere = |_: &Config| Ok(());
    build(
        path,
        text,
        document.get_ref(),
        file,
        Overrides::default(),
        listens_nowhere,
    )
}

fn build(
    path: &Path,
    text: &str,
    document: &DeTable<'_>,
    file: File,
    overrides: Overrides,
    check_listeners: impl FnOnce(&Config) -> Result<(), Found>,
) -> Result<Config, Error> {
    let flags = Flags::of(&overrides);
    if file.peers.is_empty() {
        return Err(Error::Invalid {
            place: Place::File(path.to_owned()),
            problem: Box::new(Problem::NoPeers),
        });
    }
    let missing = |key: &str| Error::Invalid {
        place: Place::File(path.to_owned()),
        problem: Box::new(Problem::Missing(key.into())),
    };
    let config = Config {
        cluster: file.cluster.ok_or_else(|| missing("cluster"))?,
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
        reads: file.reads,
        resp: overrides.resp.or(file.resp),
        resp_tls: file.resp_tls,
        users: file.users,
        peers: file.peers,
        join: overrides.join || file.join,
        rejoin: file.rejoin,
        quorum: file.quorum,
        region: file.region,
        worker: Worker {
            wait: overrides.wait.unwrap_or(file.worker.wait),
            ..file.worker
        },
        timing: file.timing,
        catch_up: file.catch_up,
        offload: file.offload,
        key_file: overrides.key_file.or(file.key_file),
        insecure: file.insecure,
        security: file.security,
    };
    let checked = check(&config).and_then(|()| check_listeners(&config));
    checked.map_err(|(way, problem)| Error::Invalid {
        place: match flags.of_way(&way) {
            Some(flag) => Place::Flag(flag),
            None => match place::find(document, &way) {
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
    resp: bool,
}

impl Flags {
    fn of(overrides: &Overrides) -> Self {
        Self {
            node: overrides.node.is_some(),
            key_file: overrides.key_file.is_some(),
            resp: overrides.resp.is_some(),
        }
    }

    fn of_way(&self, way: &[Step]) -> Option<&'static str> {
        match way {
            [Step::Key("node")] if self.node => Some("--node"),
            [Step::Key("key_file")] if self.key_file => Some("--key-file"),
            [Step::Key("resp")] if self.resp => Some("--resp"),
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
    check_users(&config.users)?;
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
    if !(1..=MAX_GROUPS).contains(&config.region.groups) {
        let way = vec![Step::Key("region"), Step::Key("groups")];
        return Err((way, Problem::Groups(config.region.groups)));
    }
    if let Err(error) = config.layout() {
        let key = match error {
            LayoutError::Value(_) => "value_bytes",
            LayoutError::Window(_) => "window_slots",
            LayoutError::Groups(_) => "conformance_groups",
        };
        return Err((vec![Step::Key("region"), Step::Key(key)], error.into()));
    }
    if config.region.conformance_groups > 0 && config.durability != Durability::Volatile {
        let way = vec![Step::Key("region"), Step::Key("conformance_groups")];
        return Err((way, Problem::Journalled));
    }
    check_offload(config)?;
    check_worker(&config.worker)?;
    check_timing(&config.timing)?;
    config
        .keys()
        .map(drop)
        .map_err(|error| (vec![Step::Key("key_file")], error.into()))
}

fn check_offload(config: &Config) -> Result<(), Found> {
    let Some(offload) = &config.offload else {
        return Ok(());
    };
    let at = |key| vec![Step::Key("offload"), Step::Key(key)];
    if config.durability == Durability::Sync {
        return Err((at("engine"), Problem::NotFlushed));
    }
    if config.region.value_bytes > XDP_VALUE_BYTES {
        let way = vec![Step::Key("region"), Step::Key("value_bytes")];
        return Err((way, Problem::LongForFrames(config.region.value_bytes)));
    }
    if offload.attach == Attach::Dispatcher && offload.on_host_death == OnHostDeath::Seal {
        return Err((at("on_host_death"), Problem::Outlived));
    }
    let name = &offload.interface;
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['/', '\0', ' ']) {
        return Err((at("interface"), Problem::NoInterface(name.clone())));
    }
    Ok(())
}

/// Whoever reaches an open listener can write, so only this machine may reach one. A private network
/// is no exception: nothing here knows who else is on it.
fn check_listeners(config: &Config) -> Result<(), Found> {
    if let Some(Err(error)) = config.resp_tls.as_ref().map(RespTls::load) {
        return Err((vec![Step::Key("resp_tls")], error.into()));
    }
    if config.insecure {
        return Ok(());
    }
    let is_open = |peer: &Peer| !peer.address.ip().is_loopback();
    if config.key_file.is_none()
        && let Some(index) = config.peers.iter().position(is_open)
    {
        let Peer { node, address, .. } = config.peers[index];
        let way = vec![Step::Key("peer"), Step::Item(index), Step::Key("address")];
        return Err((way, Problem::NoKey { node, address }));
    }
    if let Some(listen) = config.resp
        && !listen.ip().is_loopback()
        && config.users.is_empty()
    {
        return Err((vec![Step::Key("resp")], Problem::OpenResp(listen)));
    }
    Ok(())
}

fn check_users(users: &[User]) -> Result<(), Found> {
    for (index, User { name, .. }) in users.iter().enumerate() {
        let problem = if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            Problem::UserName(name.clone())
        } else if users[..index].iter().any(|other| other.name == *name) {
            Problem::SameUser(name.clone())
        } else {
            continue;
        };
        let way = vec![Step::Key("user"), Step::Item(index), Step::Key("name")];
        return Err((way, problem));
    }
    Ok(())
}

fn check_peers(peers: &[Peer]) -> Result<(), Found> {
    let at = |index, key| vec![Step::Key("peer"), Step::Item(index), Step::Key(key)];
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
        if let Some(first) = before.first()
            && address.is_ipv4() != first.address.is_ipv4()
        {
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
        Some(_) | None if worker.linger_us > MAX_LINGER_US => {
            let way = vec![Step::Key("worker"), Step::Key("linger_us")];
            Err((way, Problem::Linger(worker.linger_us)))
        }
        Some(_) | None => Ok(()),
    }
}

fn check_timing(timing: &Timing) -> Result<(), Found> {
    let Timing {
        heartbeat_ms,
        election_ms,
        lease_us,
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
    // Candidates give up before a longer one ends.
    let longest_us = election_ms.saturating_mul(1_000);
    if !(1..=longest_us).contains(&lease_us) {
        return Err((
            at("lease_us"),
            Problem::Lease {
                lease_us,
                longest_us,
            },
        ));
    }
    Ok(())
}

fn refused(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let place = match error.span() {
        Some(span) => Place::in_text(path, text, span.start),
        None => Place::File(path.to_owned()),
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

#[cfg(test)]
mod tests {
    use super::super::EXAMPLE;
    use super::*;

    fn parse_with(text: &str, overrides: Overrides) -> Result<Config, Error> {
        parse(Path::new("node.toml"), text, overrides)
    }

    fn refused(text: &str) -> String {
        let error = parse_with(text, Overrides::default()).expect_err("refused");
        error.to_string()
    }

    /// The example with `from` replaced by `to`.
    fn example(from: &str, to: &str) -> String {
        assert!(EXAMPLE.contains(from), "{from} is not in the example");
        EXAMPLE.replacen(from, to, 1)
    }

    #[test]
    fn the_example_shows_the_defaults() {
        let config = parse_with(EXAMPLE, Overrides::default()).expect("a configuration");
        assert_eq!(config.region, Region::default());
        assert_eq!(config.worker, Worker::default());
        assert_eq!(config.timing, Timing::default());
        assert_eq!(config.catch_up, CatchUp::default());
        assert_eq!(config.this().address.port(), 4747);
    }

    #[test]
    fn what_libxdp_attaches_outlives_the_process() {
        let offload =
            "[offload]\nengine = \"xdp\"\ninterface = \"eth0\"\nattach = \"dispatcher\"\n";
        let with = |more: &str| example("[timing]\n", &format!("{offload}{more}\n[timing]\n"));
        let config = parse_with(&with(""), Overrides::default()).expect("a configuration");
        assert_eq!(config.offload.expect("one").attach, Attach::Dispatcher);
        let refused = refused(&with("on_host_death = \"seal\""));
        assert!(
            refused.contains("libxdp pins what it attaches"),
            "{refused}"
        );
    }

    #[test]
    fn what_the_example_comments_out_is_right_too() {
        let keys = [
            "key_file =",
            "insecure =",
            "[resp_tls]",
            "listen =",
            "certificate_file =",
            "[[user]]",
            "name =",
            "password_sha256 =",
            "may =",
            "priority =",
            "[security]",
            "user =",
            "[quorum]",
            "phase",
            "cpu =",
            "fifo_priority =",
        ];
        let text: Vec<_> = EXAMPLE
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if keys.iter().any(|key| rest.starts_with(key)) => rest,
                _ => line,
            })
            .collect();
        let file: File = toml::from_str(&text.join("\n")).expect("a configuration");
        assert!(file.key_file.is_some() && file.quorum.is_some());
        assert!(file.resp_tls.is_some() && file.users.len() == 1 && file.security.is_some());
        assert!(file.worker.cpu.is_some() && file.worker.fifo_priority.is_some());
    }

    /// Checks that the example with `from` replaced by `to` is refused with `error` at the place
    /// that `to` marks with `«`.
    fn assert_points(from: &str, to: &str, error: &str) {
        let text = example(from, to);
        let at = text.find('«').expect("a mark");
        let place = Place::in_text(Path::new("node.toml"), &text, at);
        let refused = refused(&text.replace('«', ""));
        assert!(
            refused.starts_with(&format!("{place}: {error}")),
            "{place}: {refused}"
        );
    }

    #[test]
    fn an_unknown_word_is_pointed_at() {
        for (from, to, error) in [
            (
                "heartbeat_ms =",
                "«heartbeat =",
                "unknown key `heartbeat`; did you mean `heartbeat_ms`?",
            ),
            (
                "node = 3",
                "«nod = 3",
                "unknown key `nod`; did you mean `node`?",
            ),
            ("resp =", "«banana =", "unknown key `banana`"),
            (
                "= \"volatile\"\n",
                "= «\"synch\"\n",
                "unknown value `synch`; did you mean `sync`?",
            ),
        ] {
            assert_points(from, to, error);
        }
    }

    #[test]
    fn what_cannot_be_is_pointed_at() {
        for (from, to, error) in [
            (
                "node = 1\n",
                "node = «4\n",
                "node 4 is not among [[peer]]: the members are 1, 2, 3",
            ),
            (
                "node = 1\n",
                "node = «0\n",
                "node 0, but a node's number is 1 to 1023",
            ),
            (
                "node = 3\n",
                "node = «1024\n",
                "node 1024, but a node's number is 1 to 1023",
            ),
            (
                "node = 3\n",
                "node = «2\n",
                "node 2 is there twice in [[peer]]",
            ),
            (
                "\"127.0.0.1:4749",
                "«\"127.0.0.1:4748",
                "nodes 2 and 3 have the same address 127.0.0.1:4748",
            ),
            (
                "\"127.0.0.1:4749",
                "«\"127.0.0.1:0",
                "node 3 cannot be reached at 127.0.0.1:0: port 0 is no port",
            ),
            (
                "\"127.0.0.1:4749",
                "«\"[::1]:4749",
                "nodes 1 and 3 cannot talk",
            ),
            (
                "\"127.0.0.1:4749",
                "«\"here",
                "\"here\" is no address: write \"IP:port\"",
            ),
            ("= 1384", "= «1385", "lay out region: values of 1385 bytes"),
            ("= 4096", "= «4095", "lay out region: window of 4095 slots"),
            (
                "# fifo_priority = 50",
                "fifo_priority = «100",
                "SCHED_FIFO priority 100",
            ),
            ("_us = 100", "_us = «1001", "`linger_us` = 1001"),
            (
                "_ms = 150",
                "_ms = «29",
                "`election_ms` = 29 is less than three",
            ),
            ("_ms = 10", "_ms = «0", "`heartbeat_ms` is 0"),
            ("lease_us = 4000", "lease_us = «0", "`lease_us` = 0, but"),
            ("\"example\"", "«\"\"", "`cluster` is empty"),
            ("= 4096", "= «\"many\"", "invalid type"),
        ] {
            assert_points(from, to, error);
        }
    }

    #[test]
    fn quorums_that_need_not_intersect_are_refused() {
        let quorum = "[quorum]\nphase1 = 1\nphase2 = 2\n[region]\n";
        let error = refused(&example("[region]\n", quorum));
        assert!(
            error.contains("quorums 1 + 2 of 3 acceptors need not intersect"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_key_says_what_to_add() {
        for key in ["cluster", "data_directory", "durability"] {
            let line = EXAMPLE
                .lines()
                .find(|line| line.starts_with(key))
                .expect("a line");
            let error = parse_with(&example(line, ""), Overrides::default()).expect_err("refused");
            assert_eq!(error.to_string(), format!("node.toml: missing key `{key}`"));
            let remedy = error.remedy().expect("a remedy");
            assert!(remedy.starts_with(&format!("add {key} = ")), "{remedy}");
        }
        assert!(refused("cluster = \"a\"\nnode = 1").contains("no [[peer]]"));
    }

    #[test]
    fn a_flag_stands_in_for_a_key_and_is_blamed_for_itself() {
        let text = example("node = 1\n", "");
        let config = parse_with(
            &text,
            Overrides {
                node: Some(2),
                ..Overrides::default()
            },
        );
        assert_eq!(config.expect("a configuration").this().address.port(), 4748);
        let error = parse_with(
            &text,
            Overrides {
                node: Some(9),
                ..Overrides::default()
            },
        );
        let error = error.expect_err("refused").to_string();
        assert!(error.starts_with("--node: node 9 is not among"), "{error}");
    }

    #[test]
    fn a_listener_that_others_reach_needs_a_key_or_a_word() {
        let away = |text: &str| text.replace("127.0.0.1:474", "10.0.0.1:474");
        let open = away(EXAMPLE);
        let error = parse_with(&open, Overrides::default()).expect_err("refused");
        let at = open.find("\"10.0.0.1:4747").expect("there");
        let place = Place::in_text(Path::new("node.toml"), &open, at);
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("{place}: node 1 is at 10.0.0.1:4747")),
            "{text}"
        );
        let remedy = error.remedy().expect("a remedy");
        assert!(remedy.contains("nearwire config key FILE"), "{remedy}");
        parse_for_client(Path::new("c.toml"), &open).expect("a client listens nowhere");
        let said = open.replace("# insecure = false", "insecure = true");
        parse_with(&said, Overrides::default()).expect("a configuration");

        // One member that others reach is enough, and so is one of IPv6.
        for (from, to) in [
            ("127.0.0.1:4749", "192.168.0.9:4749"),
            ("127.0.0.1:474", "[fd00::1]:474"),
        ] {
            let error = refused(&EXAMPLE.replace(from, to));
            assert!(error.contains("there is no `key_file`"), "{error}");
        }
        let ipv6 = EXAMPLE.replace("127.0.0.1:474", "[::1]:474");
        parse_with(&ipv6, Overrides::default()).expect("a configuration");

        let scratch = tempfile::tempdir().expect("a directory");
        let key = scratch.path().join("key");
        super::super::make_key(&key).expect("made");
        let with_key = Overrides {
            key_file: Some(key),
            ..Overrides::default()
        };
        parse_with(&open, with_key).expect("a configuration");
    }

    #[test]
    fn users_are_told_apart_and_guard_a_listener() {
        let hash = "30c952fab122c3f9759f02a6d95c3758b246b4fee239957b2d4fee46e26170c4";
        let user = |name: &str, may: &str| {
            format!("[[user]]\nname = {name}\npassword_sha256 = \"{hash}\"\nmay = {may}\n")
        };
        let with = |users: &str| {
            example("[[peer]]\n", &format!("{users}\n[[peer]]\n"))
                .replace("\"127.0.0.1:6371", "\"0.0.0.0:6371")
        };
        let one = user("\"default\"", "\"read\"");
        let config = parse_with(&with(&one), Overrides::default()).expect("a configuration");
        assert_eq!(config.users[0].may, crate::resp::May::Read);
        for (users, error) in [
            (format!("{one}{one}"), "user \"default\" is there twice"),
            (user("\"a b\"", "\"read\""), "\"a b\" is no user's name"),
            (user("\"\"", "\"read\""), "\"\" is no user's name"),
            (
                user("\"a\"", "\"writ\""),
                "unknown value `writ`; did you mean `write`?",
            ),
            (one.replace(hash, "pw"), "this is no SHA-256"),
            (one.replace("may = \"read\"\n", ""), "missing key `may`"),
        ] {
            let found = refused(&with(&users));
            assert!(found.contains(error), "{found}");
        }
    }

    #[test]
    fn redis_clients_elsewhere_are_not_served_unasked() {
        for listen in ["0.0.0.0:6371", "[::]:6371", "192.168.0.9:6371"] {
            let flag = Overrides {
                resp: Some(listen.parse().expect("an address")),
                ..Overrides::default()
            };
            let error = parse_with(EXAMPLE, flag).expect_err("refused").to_string();
            assert!(
                error.starts_with(&format!("--resp: Redis clients are served at {listen}")),
                "{error}"
            );
        }
        assert_points(
            "\"127.0.0.1:6371",
            "«\"0.0.0.0:6371",
            "Redis clients are served at 0.0.0.0:6371",
        );
    }

    #[test]
    fn a_client_needs_no_more_than_the_peers() {
        let text = "cluster = \"a\"\n[[peer]]\nnode = 5\naddress = \"127.0.0.1:1\"\n";
        let config = parse_for_client(Path::new("c.toml"), text).expect("a configuration");
        assert_eq!(config.members().len(), 1);
        parse_for_client(Path::new("c.toml"), "cluster = \"a\"\n").expect_err("no peers");
    }
}
