//! Many groups as Redis Cluster's clients see them: keys lie in hash slots, slots in groups, and each
//! group is served by the node that leads it.

use super::reply::{self, RespError};
use crate::kv::Parsed;
use consensus::{GroupId, NodeId};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

/// Hash slots of every cluster; see the specification of Redis Cluster, "Key distribution model".
pub const SLOTS: u16 = 16_384;

pub(super) const CROSS_SLOT: RespError =
    RespError::fixed("CROSSSLOT Keys in request don't hash to the same group of slots");

/// CRC-16 of XMODEM: polynomial 0x1021, nothing reflected, from zero.
const fn crc16(bytes: &[u8]) -> u16 {
    let mut crc = 0u16;
    let mut at = 0;
    while at < bytes.len() {
        crc = CRC16[(crc >> 8) as usize ^ bytes[at] as usize] ^ crc << 8;
        at += 1;
    }
    crc
}

const CRC16: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 != 0 {
                crc << 1 ^ 0x1021
            } else {
                crc << 1
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// The hash slot of a key: of what stands between its first `{` and the next `}`, if anything does.
pub fn slot_of(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let length = rest.iter().position(|byte| *byte == b'}')?;
        (length > 0).then(|| &rest[..length])
    });
    crc16(tag.unwrap_or(key)) % SLOTS
}

/// The group of a hash slot: each has as many that follow each other as any other, or one more.
pub fn group_of(slot: u16, groups: u16) -> GroupId {
    GroupId((u32::from(slot) * u32::from(groups) / u32::from(SLOTS)) as u16)
}

/// The hash slots of a group.
fn slots_of(group: GroupId, groups: u16) -> RangeInclusive<u16> {
    let first = |group: u16| {
        let slots = u32::from(group) * u32::from(SLOTS);
        slots.div_ceil(u32::from(groups)) as u16
    };
    first(group.0)..=first(group.0 + 1) - 1
}

/// Who leads each group, as the worker knows it: zero if nobody does.
#[derive(Debug, Clone)]
pub struct Leaders(Arc<[AtomicU16]>);

impl Leaders {
    /// Nobody leads any of so many groups.
    pub fn new(groups: u16) -> Self {
        Self((0..groups).map(|_| AtomicU16::new(0)).collect())
    }

    /// This node leads the group from now on.
    pub fn set(&self, group: GroupId, leader: Option<NodeId>) {
        if let Some(place) = self.0.get(usize::from(group.0)) {
            place.store(leader.map_or(0, |node| node.0), Ordering::Relaxed);
        }
    }

    fn of(&self, group: GroupId) -> u16 {
        let place = self.0.get(usize::from(group.0));
        place.map_or(0, |place| place.load(Ordering::Relaxed))
    }
}

/// A node as clients know it.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its number.
    pub node: u16,
    /// Where its datagrams go.
    pub address: SocketAddr,
    /// Where clients are sent for what it leads; if nowhere, they are served where they ask.
    pub resp: Option<SocketAddr>,
}

/// What a listener knows of the cluster that it is a part of.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// A number for the cluster's name.
    pub name: u64,
    /// This node's number.
    pub own: u16,
    /// Every node, this one included.
    pub members: Vec<Member>,
    /// Who leads each group.
    pub leaders: Leaders,
}

impl Cluster {
    /// How many groups there are.
    pub fn groups(&self) -> u16 {
        self.leaders.0.len() as u16
    }

    /// Whether clients are to know of hash slots: one group has no need of them.
    pub fn is_sharded(&self) -> bool {
        self.groups() > 1
    }

    /// The group in which words are executed, or where else they are.
    ///
    /// # Errors
    /// Their keys lie in several groups, they have none, or another node leads the group.
    pub(super) fn route(&self, parsed: &Parsed<'_>, words: &[&[u8]]) -> Result<GroupId, RespError> {
        let (Parsed::Query(call) | Parsed::Command(call)) = parsed else {
            return Ok(GroupId(0));
        };
        if !self.is_sharded() {
            return Ok(GroupId(0));
        }
        let mut slots = call.op.keys(words).map(slot_of);
        let Some(slot) = slots.next() else {
            let name = String::from_utf8_lossy(words[0]).to_uppercase();
            let groups = self.groups();
            return Err(format!(
                "ERR {name} is about all keys, which lie in {groups} groups here: it is served \
                 where there is one"
            )
            .into());
        };
        let group = group_of(slot, self.groups());
        if slots.any(|other| group_of(other, self.groups()) != group) {
            return Err(CROSS_SLOT);
        }
        match self.elsewhere(group) {
            Some(at) => Err(format!("MOVED {slot} {}:{}", at.ip(), at.port()).into()),
            None => Ok(group),
        }
    }

    /// Where clients are to ask for a group, if not here. If nobody leads it, this node finds out who
    /// does, as it does for a leader of whose clients it knows nothing.
    fn elsewhere(&self, group: GroupId) -> Option<SocketAddr> {
        let leader = self.leaders.of(group);
        let other = |member: &&Member| member.node == leader && leader != self.own;
        self.members.iter().find(other)?.resp
    }

    /// Who serves a group as far as clients are concerned; nobody while nobody leads it.
    fn server(&self, group: GroupId) -> Option<&Member> {
        let leader = self.leaders.of(group);
        let serves = |member: &&Member| {
            let is_told = member.node == leader && member.resp.is_some();
            is_told || member.node == self.own
        };
        let mut members = self.members.iter().filter(serves);
        let told = |member: &&Member| member.node == leader;
        match leader {
            0 => None,
            _ => members.clone().find(told).or_else(|| members.next()),
        }
    }

    fn id(&self, member: &Member) -> String {
        format!("{:016x}{:020x}{:04x}", self.name, 0, member.node)
    }

    /// Where clients find a member that serves: one whose listener nobody has named is asked here,
    /// so by its clients' own address.
    fn listener(&self, member: &Member) -> (String, u16) {
        match member.resp {
            Some(resp) => (resp.ip().to_string(), resp.port()),
            None => (String::new(), 0),
        }
    }

    /// Ranges of slots that follow each other and have the same server.
    fn ranges(&self) -> Vec<(RangeInclusive<u16>, &Member)> {
        let mut ranges: Vec<(RangeInclusive<u16>, &Member)> = Vec::new();
        for group in (0..self.groups()).map(GroupId) {
            let slots = slots_of(group, self.groups());
            let Some(server) = self.server(group) else {
                continue;
            };
            match ranges.last_mut() {
                Some((before, same))
                    if same.node == server.node && before.end() + 1 == *slots.start() =>
                {
                    *before = *before.start()..=*slots.end();
                }
                _ => ranges.push((slots, server)),
            }
        }
        ranges
    }

    /// Members that clients may be sent to, and this one.
    fn known(&self) -> impl Iterator<Item = &Member> + Clone {
        let is_known = |member: &&Member| member.resp.is_some() || member.node == self.own;
        self.members.iter().filter(is_known)
    }

    /// CLUSTER SLOTS.
    pub(super) fn slots(&self, out: &mut Vec<u8>) {
        let ranges = self.ranges();
        reply::array(out, ranges.len());
        for (slots, member) in ranges {
            reply::array(out, 3);
            reply::integer(out, (*slots.start()).into());
            reply::integer(out, (*slots.end()).into());
            let (ip, port) = self.listener(member);
            reply::array(out, 4);
            reply::bulk(out, ip.as_bytes());
            reply::integer(out, port.into());
            reply::bulk(out, self.id(member).as_bytes());
            reply::array(out, 0);
        }
    }

    /// CLUSTER SHARDS.
    pub(super) fn shards(&self, out: &mut Vec<u8>) {
        let ranges = self.ranges();
        let members = self.known();
        reply::array(out, members.clone().count());
        for member in members {
            let own = ranges
                .iter()
                .filter(|(_, server)| server.node == member.node);
            reply::map(out, 2);
            reply::bulk(out, b"slots");
            reply::array(out, 2 * own.clone().count());
            for (slots, _) in own {
                reply::integer(out, (*slots.start()).into());
                reply::integer(out, (*slots.end()).into());
            }
            reply::bulk(out, b"nodes");
            reply::array(out, 1);
            let (ip, port) = self.listener(member);
            reply::map(out, 7);
            for (name, text) in [
                ("id", self.id(member)),
                ("endpoint", ip.clone()),
                ("ip", ip),
                ("role", "master".to_owned()),
                ("health", "online".to_owned()),
            ] {
                reply::bulk(out, name.as_bytes());
                reply::bulk(out, text.as_bytes());
            }
            reply::bulk(out, b"port");
            reply::integer(out, port.into());
            reply::bulk(out, b"replication-offset");
            reply::integer(out, 0);
        }
    }

    /// CLUSTER NODES.
    pub(super) fn nodes(&self) -> String {
        let ranges = self.ranges();
        let mut text = String::new();
        for member in self.known() {
            let (ip, port) = self.listener(member);
            let flags = match member.node == self.own {
                true => "myself,master",
                false => "master",
            };
            let (id, bus) = (self.id(member), member.address.port());
            // A string takes whatever it is given.
            let _ = write!(text, "{id} {ip}:{port}@{bus} {flags} - 0 0 0 connected");
            for (slots, _) in ranges.iter().filter(|(_, one)| one.node == member.node) {
                let _ = match slots.start() == slots.end() {
                    true => write!(text, " {}", slots.start()),
                    false => write!(text, " {}-{}", slots.start(), slots.end()),
                };
            }
            text.push('\n');
        }
        text
    }

    /// CLUSTER INFO.
    pub(super) fn info(&self) -> String {
        let ranges = self.ranges();
        let served: usize = ranges.iter().map(|(slots, _)| slots.len()).sum();
        let state = match served == usize::from(SLOTS) {
            true => "ok",
            false => "fail",
        };
        let known = self.known().count();
        let size = self
            .known()
            .filter(|member| ranges.iter().any(|(_, one)| one.node == member.node))
            .count();
        format!(
            "cluster_enabled:1\r\ncluster_state:{state}\r\ncluster_slots_assigned:{SLOTS}\r\n\
             cluster_slots_ok:{served}\r\ncluster_slots_pfail:0\r\ncluster_slots_fail:0\r\n\
             cluster_known_nodes:{known}\r\ncluster_size:{size}\r\n\
             cluster_current_epoch:0\r\ncluster_my_epoch:0\r\n"
        )
    }

    /// CLUSTER MYID.
    pub(super) fn my_id(&self) -> String {
        let own = self.members.iter().find(|member| member.node == self.own);
        own.map_or_else(String::new, |own| self.id(own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::Command;

    #[test]
    fn slots_are_those_of_redis() {
        // The specification's own check value, and the answers of `redis-cli CLUSTER KEYSLOT`.
        assert_eq!(crc16(b"123456789"), 0x31c3);
        for (key, slot) in [
            ("foo", 12_182),
            ("bar", 5_061),
            ("hello", 866),
            ("", 0),
            ("{user1000}.following", 3_443),
        ] {
            assert_eq!(slot_of(key.as_bytes()), slot, "{key}");
        }
        let same = [
            ("{user1000}.following", "{user1000}.followers"),
            ("foo{bar}{zap}", "bar"),
        ];
        for (one, other) in same {
            assert_eq!(slot_of(one.as_bytes()), slot_of(other.as_bytes()));
        }
        // No tag at all.
        assert_eq!(slot_of(b"foo{}{bar}"), crc16(b"foo{}{bar}") % SLOTS);
        assert_eq!(slot_of(b"foo{{bar}}zap"), crc16(b"{bar") % SLOTS);
    }

    #[test]
    fn each_slot_is_in_the_range_of_its_group_and_no_other() {
        for groups in [1, 2, 3, 7, 1000, 1024] {
            let mut next = 0;
            for group in (0..groups).map(GroupId) {
                let slots = slots_of(group, groups);
                assert_eq!(*slots.start(), next);
                for slot in slots.clone() {
                    assert_eq!(group_of(slot, groups), group);
                }
                next = slots.end() + 1;
            }
            assert_eq!(next, SLOTS);
        }
    }

    fn cluster(groups: u16) -> Cluster {
        let member = |node: u16, resp: Option<u16>| Member {
            node,
            address: ([127, 0, 0, 1], 4700 + node).into(),
            resp: resp.map(|port| ([127, 0, 0, 1], port).into()),
        };
        Cluster {
            name: 7,
            own: 1,
            members: vec![
                member(1, Some(6001)),
                member(2, Some(6002)),
                member(3, None),
            ],
            leaders: Leaders::new(groups),
        }
    }

    fn route(cluster: &Cluster, line: &str) -> Result<GroupId, String> {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let parsed = Command::parse(&words).expect("parses");
        let routed = cluster.route(&parsed, &words);
        routed.map_err(|error| error.to_string())
    }

    #[test]
    fn keys_are_served_by_their_leader_and_all_of_a_command_by_one() {
        let cluster = cluster(4);
        // Slots 12182 and 5061 of 16384: groups 2 and 1.
        cluster.leaders.set(GroupId(2), Some(NodeId(2)));
        cluster.leaders.set(GroupId(1), Some(NodeId(3)));
        let moved = "MOVED 12182 127.0.0.1:6002";
        assert_eq!(route(&cluster, "get foo"), Err(moved.to_owned()));
        let all = "mset foo 1 {foo}2 bar";
        assert_eq!(route(&cluster, all), Err(moved.to_owned()));
        // Nobody knows where node 3 serves clients, nor who leads group 0: this node finds out.
        assert_eq!(route(&cluster, "get bar"), Ok(GroupId(1)));
        assert_eq!(route(&cluster, "get hello"), Ok(GroupId(0)));
        cluster.leaders.set(GroupId(2), Some(NodeId(1)));
        assert_eq!(route(&cluster, "set foo 1"), Ok(GroupId(2)));
        let cross = route(&cluster, "del foo bar").expect_err("two groups");
        assert!(cross.starts_with("CROSSSLOT "), "{cross}");
        assert!(route(&cluster, "dbsize").is_err());
        assert_eq!(route(&cluster, "mset foo bar {foo}2 hello"), Ok(GroupId(2)));
    }

    #[test]
    fn one_group_has_no_slots() {
        let cluster = cluster(1);
        cluster.leaders.set(GroupId(0), Some(NodeId(2)));
        for line in ["get foo", "del foo bar", "dbsize"] {
            assert_eq!(route(&cluster, line), Ok(GroupId(0)), "{line}");
        }
    }

    #[test]
    fn slots_are_told_with_who_serves_them() {
        let cluster = cluster(4);
        for (group, node) in [(0, 2), (1, 2), (2, 3)] {
            cluster.leaders.set(GroupId(group), Some(NodeId(node)));
        }
        let nodes = cluster.nodes();
        let lines: Vec<&str> = nodes.lines().collect();
        assert!(
            lines[0].ends_with("myself,master - 0 0 0 connected 8192-12287"),
            "{nodes}"
        );
        assert!(
            lines[1].contains(":6002@4702 master - 0 0 0 connected 0-8191"),
            "{nodes}"
        );
        assert_eq!(lines.len(), 2);
        assert!(cluster.info().contains("cluster_state:fail"));
        cluster.leaders.set(GroupId(3), Some(NodeId(1)));
        assert!(cluster.info().contains("cluster_state:ok"));
    }
}
