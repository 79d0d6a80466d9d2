//! A case: packets in, packets out, and the region after.

use super::expression::{Expression, Quantity, Target};
use super::field::{self, FLAGS, Field};
use crate::acceptor::Drop;
use crate::region::{entry, group};
use crate::wire::{Flags, HEADER_BYTES, Kind, MAGIC, Malformed, TAG_OFFSET, VERSION};
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

/// A story about one blank group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Case {
    /// The file that it stands in.
    pub file: String,
    /// The line of its name.
    pub line: usize,
    /// Its name, a claim.
    pub name: String,
    /// Why it matters.
    pub why: String,
    /// What the device must be for the case to make sense.
    pub needs: Vec<Need>,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

impl Case {
    /// What `target` lacks for the case to make sense there, if it lacks anything.
    pub fn lacking(&self, target: &Target) -> Option<String> {
        let reads = |step: &Step| match &step.action {
            Action::Exchange(Request::Packet { packet, .. }, Answer::Packet(_)) => {
                packet.kind == Kind::Read
            }
            _ => false,
        };
        if !target.answers_read && self.steps.iter().any(reads) {
            return Some("it does not answer Read".into());
        }
        self.needs.iter().find_map(|need| need.lacking(target))
    }
}

/// A line of a case, or two of them: a packet and its answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Its first line in the file.
    pub line: usize,
    /// What happens.
    pub action: Action,
}

/// What happens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// A datagram is sent, and this comes of it.
    Exchange(Request, Answer),
    /// So many nanoseconds pass.
    Wait(Expression),
    /// This is so.
    Fact(Fact),
    /// Words of the region are written: those of the slot's ring entry, or the group's own.
    Set(Option<Expression>, Vec<(Word, Quantity)>),
    /// The second datagram is stepped in the middle of the first, at each of its accesses in turn.
    Overlap(Request, Request),
}

/// A word of a group or a ring entry, as `docs/region.md` names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Word {
    /// The sequence word of either.
    Lock,
    /// Of a group: whether it is active.
    State,
    /// Of a group.
    Promised,
    /// Of a group.
    Highest,
    /// Of a group.
    Trim,
    /// Of an entry's published body.
    Slot,
    /// Of an entry's published body.
    Ballot,
    /// Of an entry's published body.
    Length,
}

impl Word {
    /// Every word, by name.
    pub(super) const ALL: [(&str, Self); 8] = [
        ("LOCK", Self::Lock),
        ("STATE", Self::State),
        ("PROMISED", Self::Promised),
        ("HIGHEST", Self::Highest),
        ("TRIM", Self::Trim),
        ("SLOT", Self::Slot),
        ("BALLOT", Self::Ballot),
        ("LENGTH", Self::Length),
    ];

    /// Where it is in a group, if it is there.
    pub(super) const fn in_group(self) -> Option<usize> {
        match self {
            Self::Lock => Some(group::LOCK),
            Self::State => Some(group::STATE),
            Self::Promised => Some(group::PROMISED),
            Self::Highest => Some(group::HIGHEST),
            Self::Trim => Some(group::TRIM),
            Self::Slot | Self::Ballot | Self::Length => None,
        }
    }

    /// Where it is in an entry whose published body begins so many words behind the first, if it is
    /// there.
    pub(super) const fn in_entry(self, body: usize) -> Option<usize> {
        let word = match self {
            Self::Lock => return Some(entry::LOCK),
            Self::Slot => entry::SLOT,
            Self::Ballot => entry::BALLOT,
            Self::Length => entry::LENGTH,
            Self::State | Self::Promised | Self::Highest | Self::Trim => return None,
        };
        Some(entry::BODIES + body + word)
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::ALL.iter().find(|(_, word)| word == self);
        f.write_str(named.map_or("", |(name, _)| name))
    }
}

/// What the device must be for a case to make sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// A window of so many slots at least.
    Window(u64),
    /// Packets carry tags.
    Key,
    /// Packets carry no tags.
    NoKey,
    /// Ballots and slots of 64 bits.
    Wide,
    /// Ballots and slots of 32 bits: the hardware profile.
    Narrow,
    /// Leases are granted.
    Lease,
    /// No leases are granted.
    NoLease,
    /// A membership of this number at least.
    Epoch(u32),
    /// The player sets the device's clock.
    Clock,
    /// The player sees and writes the device's memory.
    Memory,
}

/// The names of the needs that are words; `window N` and `epoch N` are the others.
pub(super) const NEEDS: [(&str, Need); 8] = [
    ("key", Need::Key),
    ("no-key", Need::NoKey),
    ("wide", Need::Wide),
    ("narrow", Need::Narrow),
    ("lease", Need::Lease),
    ("no-lease", Need::NoLease),
    ("clock", Need::Clock),
    ("memory", Need::Memory),
];

impl Need {
    /// What `target` lacks, if it lacks this.
    pub fn lacking(self, target: &Target) -> Option<String> {
        let (is_met, lack) = match self {
            Self::Window(slots) => {
                let lack = alloc::format!("its window is below {slots} slots");
                return (target.window < slots).then_some(lack);
            }
            Self::Epoch(epoch) => {
                let lack = alloc::format!("its epoch is below {epoch}");
                return (target.epoch < epoch).then_some(lack);
            }
            Self::Key => (target.key.is_some(), "its packets carry no tags"),
            Self::NoKey => (target.key.is_none(), "its packets carry tags"),
            Self::Wide => (!target.is_narrow, "its ballots and slots have 32 bits"),
            Self::Narrow => (target.is_narrow, "its ballots and slots have 64 bits"),
            Self::Lease => (target.lease_ns > 0, "it grants no leases"),
            Self::NoLease => (target.lease_ns == 0, "it grants leases"),
            Self::Clock => (target.sets_clock, "its clock cannot be set"),
            Self::Memory => (target.shows_memory, "its memory cannot be seen"),
        };
        (!is_met).then(|| lack.into())
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, NEEDS.iter().find(|(_, need)| need == self)) {
            (Self::Window(slots), _) => write!(f, "window {slots}"),
            (Self::Epoch(epoch), _) => write!(f, "epoch {epoch}"),
            (_, Some((name, _))) => f.write_str(name),
            (_, None) => Ok(()),
        }
    }
}

/// A datagram to the device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// These bytes.
    Raw(Vec<u8>),
    /// A packet, perhaps a damaged one.
    Packet {
        /// What it says.
        packet: Packet,
        /// Only so many bytes of it are sent.
        cut: Option<Expression>,
        /// These bytes follow it.
        more: Vec<u8>,
    },
}

/// A header and a value, by what differs from the defaults.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// What it says.
    pub kind: Kind,
    /// Fields that are not the default.
    pub fields: Vec<(Field, Setting)>,
    /// Its value.
    pub value: Value,
}

/// What a field holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Setting {
    /// A number or a ballot.
    Number(Quantity),
    /// Flags by name.
    Flags(Flags),
    /// A tag that differs from the right one in one bit.
    WrongTag,
}

/// The bytes behind the header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// As they stand.
    Text(String),
    /// By their hexadecimal digits.
    Hex(Vec<u8>),
    /// So many bytes, the first one as given and each one more than the last, modulo 251.
    Fill(Expression, u8),
}

/// What comes of a datagram.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// This packet: what is not named is as `docs/protocol.md` says of every answer.
    Packet(Packet),
    /// Taken without an answer.
    Silent,
    /// Not served; nothing is answered.
    Dropped(Drop),
    /// Malformed; nothing is answered.
    Malformed(Malformed),
    /// Without the magic; nothing is answered.
    NotOurs,
}

/// What is so. The first four can be seen with Read; the others by whoever sees the memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fact {
    /// What the group has promised, the highest slot touched, and the lowest slot kept.
    Region {
        /// The ballot.
        promised: Quantity,
        /// The highest slot.
        highest: Expression,
        /// The lowest slot.
        trim: Expression,
    },
    /// A slot holds this vote.
    Vote {
        /// The slot.
        slot: Expression,
        /// The ballot voted in.
        ballot: Quantity,
        /// The value voted for.
        value: Value,
    },
    /// A slot of the window holds no vote.
    Empty(Expression),
    /// A slot lies below the trim, or its entry holds a later one.
    Outside(Expression),
    /// The decided record.
    Decided {
        /// The ballot whose leader decided.
        ballot: Quantity,
        /// First slot.
        from: Expression,
        /// Last slot.
        upto: Expression,
    },
    /// Who holds the lease and how much of it is left, in nanoseconds; 0 if it has ended.
    Lease {
        /// The ballot.
        ballot: Quantity,
        /// Nanoseconds left.
        left: Expression,
    },
    /// How long ago a node was heard of as a leader, in nanoseconds.
    Heard {
        /// The node.
        node: Expression,
        /// Nanoseconds since.
        ago: Expression,
    },
}

impl Value {
    /// Its bytes for `target`; `None` if it would be longer than any datagram.
    pub fn bytes(&self, target: &Target) -> Option<Vec<u8>> {
        match self {
            Self::Text(text) => Some(text.clone().into_bytes()),
            Self::Hex(bytes) => Some(bytes.clone()),
            Self::Fill(length, first) => {
                let length = length.value(target).filter(|length| *length < 1 << 16)?;
                let byte = |index| ((u64::from(*first) + index) % 251) as u8;
                Some((0..length).map(byte).collect())
            }
        }
    }
}

impl Packet {
    /// A packet in which everything is the default.
    pub const fn new(kind: Kind) -> Self {
        Self {
            kind,
            fields: Vec::new(),
            value: Value::Text(String::new()),
        }
    }

    fn fill_in(&self, bytes: &mut Vec<u8>, target: &Target) -> Option<()> {
        let value = self.value.bytes(target)?;
        Field::Length.put(bytes, value.len() as u64);
        for (field, setting) in &self.fields {
            let number = match setting {
                Setting::Number(number) => number.value(target)?,
                Setting::Flags(flags) => flags.0.into(),
                Setting::WrongTag => continue,
            };
            if !field.put(bytes, number) {
                return None;
            }
        }
        bytes.extend(value);
        let named = self
            .fields
            .iter()
            .rev()
            .find(|(field, _)| *field == Field::Tag);
        let tag = target.key.map_or(0, |key| field::tag(key, bytes));
        match named {
            None => Field::Tag.put(bytes, tag),
            Some((_, Setting::WrongTag)) => Field::Tag.put(bytes, tag ^ 1),
            Some(_) => true,
        };
        Some(())
    }

    fn names(&self, wanted: Field) -> bool {
        self.fields.iter().any(|(field, _)| *field == wanted)
    }

    /// The packet as a request to `target`. `None` if a field cannot hold its number there.
    fn request(&self, target: &Target, nonce: u32) -> Option<Vec<u8>> {
        let mut bytes = vec![0; HEADER_BYTES];
        for (field, number) in [
            (Field::Magic, MAGIC.into()),
            (Field::Version, VERSION.into()),
            (Field::Kind, self.kind as u64),
            (Field::Group, target.group.into()),
            (Field::Epoch, target.epoch.into()),
            (Field::Nonce, nonce.into()),
        ] {
            field.put(&mut bytes, number);
        }
        self.fill_in(&mut bytes, target)?;
        if !self.names(Field::Sender) && self.names(Field::Ballot) {
            // A leader speaks in its own ballot.
            let node = Field::Ballot.get(&bytes) & 0xffff;
            Field::Sender.put(&mut bytes, node);
            if let Some(key) = target.key
                && !self.names(Field::Tag)
            {
                let tag = field::tag(key, &bytes);
                Field::Tag.put(&mut bytes, tag);
            }
        }
        Some(bytes)
    }

    /// The packet as an answer of `target` to `request`. `None` if a field cannot hold its number
    /// there.
    pub fn answer(&self, target: &Target, request: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = request.get(..HEADER_BYTES)?.to_vec();
        for (field, number) in [
            (Field::Kind, self.kind as u64),
            (Field::Sender, target.node.into()),
            (Field::Incarnation, target.incarnation.into()),
            (Field::VoteBallot, 0),
            (Field::Watermark, 0),
            (Field::Flags, 0),
        ] {
            field.put(&mut bytes, number);
        }
        self.fill_in(&mut bytes, target)?;
        Some(bytes)
    }
}

impl Request {
    /// The datagram for `target`. `None` if a field cannot hold its number there.
    pub fn bytes(&self, target: &Target, nonce: u32) -> Option<Vec<u8>> {
        match self {
            Self::Raw(bytes) => Some(bytes.clone()),
            Self::Packet { packet, cut, more } => {
                let mut bytes = packet.request(target, nonce)?;
                bytes.extend(more);
                if let Some(cut) = cut {
                    bytes.truncate(cut.value(target)?.try_into().ok()?);
                }
                Some(bytes)
            }
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "\"{text}\""),
            Self::Hex(bytes) => {
                f.write_str("hex:")?;
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
            Self::Fill(length, first) => write!(f, "fill({length},{first})"),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::WrongTag => f.write_str("wrong"),
            Self::Flags(flags) => {
                let set = FLAGS.iter().filter(|(_, flag)| flags.has(*flag));
                for (index, (name, _)) in set.enumerate() {
                    write!(f, "{}{name}", if index == 0 { "" } else { "|" })?;
                }
                if flags.0 == 0 {
                    f.write_str("0")
                } else {
                    Ok(())
                }
            }
        }
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.kind)?;
        for (field, setting) in &self.fields {
            write!(f, " {}={setting}", field.name())?;
        }
        match &self.value {
            Value::Text(text) if text.is_empty() => Ok(()),
            value => write!(f, " value={value}"),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raw(bytes) => write!(f, "send raw {}", Value::Hex(bytes.clone())),
            Self::Packet { packet, cut, more } => {
                write!(f, "send {packet}")?;
                if let Some(cut) = cut {
                    write!(f, " cut={cut}")?;
                }
                if !more.is_empty() {
                    write!(f, " more={}", Value::Hex(more.clone()))?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packet(packet) => write!(f, "answer {packet}"),
            Self::Silent => f.write_str("silent"),
            Self::Dropped(reason) => write!(f, "dropped {}", reason.name()),
            Self::Malformed(reason) => write!(f, "malformed {}", reason.name()),
            Self::NotOurs => f.write_str("not-ours"),
        }
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Region {
                promised,
                highest,
                trim,
            } => write!(
                f,
                "region promised={promised} highest={highest} trim={trim}"
            ),
            Self::Vote {
                slot,
                ballot,
                value,
            } => write!(f, "vote slot={slot} ballot={ballot} value={value}"),
            Self::Empty(slot) => write!(f, "empty slot={slot}"),
            Self::Outside(slot) => write!(f, "outside slot={slot}"),
            Self::Decided { ballot, from, upto } => {
                write!(f, "decided ballot={ballot} from={from} upto={upto}")
            }
            Self::Lease { ballot, left } => write!(f, "lease ballot={ballot} left={left}"),
            Self::Heard { node, ago } => write!(f, "heard node={node} ago={ago}"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange(request, answer) => write!(f, "{request}\n{answer}"),
            Self::Wait(time) => write!(f, "wait {time}"),
            Self::Fact(fact) => fact.fmt(f),
            Self::Set(slot, words) => {
                f.write_str("set")?;
                if let Some(slot) = slot {
                    write!(f, " slot={slot}")?;
                }
                words
                    .iter()
                    .try_for_each(|(word, number)| write!(f, " {word}={number}"))
            }
            Self::Overlap(first, second) => {
                let (first, second) = (first.to_string(), second.to_string());
                let text = |request: &str| request.trim_start_matches("send ").to_string();
                write!(f, "overlap {} with {}", text(&first), text(&second))
            }
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "case {}", self.name)?;
        if !self.why.is_empty() {
            writeln!(f, "why {}", self.why)?;
        }
        for need in &self.needs {
            writeln!(f, "needs {need}")?;
        }
        for step in &self.steps {
            writeln!(f, "{}", step.action)?;
        }
        Ok(())
    }
}

const _: () = assert!(TAG_OFFSET == Field::Tag.offset());
