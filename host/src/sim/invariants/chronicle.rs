//! What the checker knows: what every region holds, who voted for what, and what that chose.

use crate::sim::memory::Words;
use crate::sim::scenario::Scenario;
use consensus::configuration::Configuration;
use consensus::quorum::MemberRole;
use consensus::region::{Layout, entry, group};
use consensus::sync::Ordering;
use consensus::wire::{Header, Kind};
use consensus::{Ballot, GroupId, Incarnation, NodeId};

/// A value, as far as telling values apart needs it.
pub(in crate::sim) type Digest = u64;

const MULTIPLIER: u64 = 0x9fb2_1c65_1e98_df25;

fn fold(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(23) ^ word).wrapping_mul(MULTIPLIER)
}

/// The digest of a value.
pub(in crate::sim) fn digest(value: &[u8]) -> Digest {
    let (words, rest) = value.as_chunks::<8>();
    let mut hash = value.len() as u64;
    for word in words {
        hash = fold(hash, u64::from_ne_bytes(*word));
    }
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        hash = fold(hash, u64::from_ne_bytes(last));
    }
    hash ^ hash >> 29
}

/// A vote as a region or a journal holds it. Slot zero is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::sim) struct Vote {
    pub(in crate::sim) slot: u64,
    pub(in crate::sim) ballot: u64,
    pub(in crate::sim) digest: Digest,
}

/// A group's record as a region holds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::sim) struct Record {
    pub(in crate::sim) promised: u64,
    pub(in crate::sim) highest: u64,
    pub(in crate::sim) trim: u64,
    /// The decided record: its ballot, first and last slot.
    pub(in crate::sim) decided: u64,
    pub(in crate::sim) from: u64,
    pub(in crate::sim) upto: u64,
}

/// The region of one node, as it was when last looked at.
#[derive(Clone, Debug, Default)]
pub(in crate::sim) struct Shadow {
    pub(in crate::sim) groups: Vec<Record>,
    /// The ring of each group, one after the other.
    pub(in crate::sim) entries: Vec<Vote>,
}

/// Who voted for one value in one ballot and slot.
#[derive(Clone, Copy, Debug)]
pub(in crate::sim) struct Voted {
    pub(in crate::sim) ballot: u64,
    pub(in crate::sim) digest: Digest,
    pub(in crate::sim) voters: u32,
    /// Acceptors whose memory is another than the one pinned.
    pub(in crate::sim) foreign_voters: u32,
}

/// What is known of a slot.
#[derive(Clone, Debug, Default)]
pub(in crate::sim) struct SlotFacts {
    pub(in crate::sim) votes: Vec<Voted>,
    /// What was proposed or voted for in each ballot.
    pub(in crate::sim) values: Vec<(u64, Digest)>,
    /// The lowest ballot in which it was seen chosen, and the value.
    pub(in crate::sim) chosen: Option<(u64, Digest)>,
}

/// How a configuration counts: acceptors by their places, one bit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::sim) struct Counting {
    /// What it is called.
    pub(in crate::sim) version: u64,
    pub(in crate::sim) acceptors: u32,
    pub(in crate::sim) voters: u32,
    pub(in crate::sim) phase1: usize,
    pub(in crate::sim) phase2: usize,
}

impl Counting {
    pub(in crate::sim) const fn has_phase1(&self, answered: u32) -> bool {
        (answered & self.acceptors).count_ones() as usize >= self.phase1
    }

    pub(in crate::sim) const fn has_phase2(&self, answered: u32) -> bool {
        (answered & self.acceptors).count_ones() as usize >= self.phase2
    }
}

/// What is known of a ballot.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::sim) struct BallotFacts {
    pub(in crate::sim) ballot: u64,
    /// How it counts, from the first time that a matchmaker was asked.
    pub(in crate::sim) counting: Option<Counting>,
    /// Its leader led before, and has made the configuration itself.
    pub(in crate::sim) makes: bool,
    /// It has proposed.
    pub(in crate::sim) proposed: bool,
    /// The ballot of the same node that it goes on from, without a phase 1 of its own.
    pub(in crate::sim) continues: Option<u64>,
    /// Who has promised that one.
    pub(in crate::sim) met: u32,
    /// The newest slot announced as decided.
    pub(in crate::sim) announced: u64,
    /// The highest trim announced.
    pub(in crate::sim) trim: u64,
    /// Its leader has said that something is decided.
    pub(in crate::sim) led: bool,
    /// Who has promised it.
    pub(in crate::sim) promised: u32,
    /// Acceptors whose memory is another than the one pinned.
    pub(in crate::sim) foreign_promises: u32,
}

impl SlotFacts {
    /// Whether a quorum has voted for one value in this very ballot.
    pub(in crate::sim) fn is_chosen_in(&self, ballot: u64, counting: Option<Counting>) -> bool {
        counting.is_some_and(|counting| {
            let mut votes = self.votes.iter().filter(|vote| vote.ballot == ballot);
            votes.any(|vote| counting.has_phase2(vote.voters))
        })
    }

    pub(in crate::sim) fn value_in(&self, ballot: u64) -> Option<Digest> {
        let mut values = self.values.iter();
        values
            .find(|(other, _)| *other == ballot)
            .map(|(_, digest)| *digest)
    }
}

/// What is known of a group.
#[derive(Clone, Debug, Default)]
pub(in crate::sim) struct GroupFacts {
    slots: Vec<SlotFacts>,
    /// Every configuration that a ballot was to use, and whose lives are its acceptors.
    pub(in crate::sim) configurations: Vec<(Counting, Vec<(usize, Incarnation)>)>,
    pub(in crate::sim) ballots: Vec<BallotFacts>,
    pub(in crate::sim) chosen: u64,
    /// Configurations below this version were called garbage, which was judged when it was said.
    pub(in crate::sim) garbage: u64,
    /// Who was last seen to lead.
    leader: Option<NodeId>,
    /// Times that another node came to lead.
    pub(in crate::sim) leader_changes: u64,
}

impl GroupFacts {
    pub(in crate::sim) fn slot(&self, slot: u64) -> Option<&SlotFacts> {
        self.slots.get(slot as usize)
    }

    pub(in crate::sim) fn slot_mut(&mut self, slot: u64) -> &mut SlotFacts {
        let at = slot as usize;
        if at >= self.slots.len() {
            self.slots.resize_with(at + 1, SlotFacts::default);
        }
        &mut self.slots[at]
    }

    /// Somebody leads in a ballot in which nobody had decided anything.
    pub(super) fn note_leader(&mut self, node: NodeId) {
        let before = self.leader.replace(node);
        self.leader_changes += u64::from(before.is_some_and(|before| before != node));
    }

    /// How many slots were ever voted in.
    pub(in crate::sim) const fn last_slot(&self) -> u64 {
        self.slots.len() as u64
    }

    /// How a ballot counts.
    pub(in crate::sim) fn counting(&self, ballot: u64) -> Option<Counting> {
        let mut ballots = self.ballots.iter().rev();
        ballots.find(|one| one.ballot == ballot)?.counting
    }

    /// Whether the acceptor at `place`, in this life, counts in a ballot.
    pub(in crate::sim) fn counts(&self, ballot: u64, place: usize, life: Incarnation) -> bool {
        let Some(counting) = self.counting(ballot) else {
            return false;
        };
        let mut configurations = self.configurations.iter();
        let found = configurations.find(|(one, _)| one.version == counting.version);
        found.is_some_and(|(_, lives)| lives.contains(&(place, life)))
    }

    /// A candidate asks a matchmaker. False if it asked for another configuration before, or the
    /// version was another's.
    pub(in crate::sim) fn note_match(
        &mut self,
        asked: &Header,
        configuration: &Configuration,
    ) -> bool {
        let membership = &configuration.membership;
        let places = |wanted: &[MemberRole]| {
            let members = membership.members.iter();
            let wanted = members.filter(|member| wanted.contains(&member.role));
            wanted
                .map(|member| (usize::from(member.node.0) - 1, member.incarnation))
                .collect::<Vec<_>>()
        };
        let bits =
            |places: &[(usize, Incarnation)]| places.iter().fold(0, |bits, (at, _)| bits | 1 << at);
        let lives = places(&[MemberRole::Voter, MemberRole::Witness]);
        let counting = Counting {
            version: configuration.version.0,
            acceptors: bits(&lives),
            voters: bits(&places(&[MemberRole::Voter])),
            phase1: membership.quorums.phase1(),
            phase2: membership.quorums.phase2(),
        };
        let mut configurations = self.configurations.iter();
        let called = configurations.find(|(one, _)| one.version == counting.version);
        let is_one = called.is_none_or(|(one, others)| (one, others) == (&counting, &lives));
        if called.is_none() {
            self.configurations.push((counting, lives));
        }
        let facts = self.ballot_mut(asked.ballot.0);
        facts.makes = asked.vote_ballot != Ballot::NONE;
        is_one && *facts.counting.get_or_insert(counting) == counting
    }

    /// The facts about a ballot, the newest of which is usually asked for.
    pub(in crate::sim) fn ballot_mut(&mut self, ballot: u64) -> &mut BallotFacts {
        let at = match self.ballots.iter().rposition(|one| one.ballot == ballot) {
            Some(at) => at,
            None => {
                self.ballots.push(BallotFacts {
                    ballot,
                    ..BallotFacts::default()
                });
                self.ballots.len() - 1
            }
        };
        &mut self.ballots[at]
    }
}

/// What a write to a region changed.
pub(in crate::sim) enum Touched {
    /// Neither a group nor a ring entry.
    Nothing,
    Group {
        group: usize,
        before: Record,
    },
    Entry {
        group: usize,
        vote: Vote,
        before: Vote,
    },
}

/// See the module's text.
pub(in crate::sim) struct Chronicle {
    layout: Layout,
    window: usize,
    /// Under `sync` a vote in memory may be forgotten until its record is on the disk.
    pub(in crate::sim) votes_count_when_flushed: bool,
    pub(in crate::sim) shadows: Vec<Shadow>,
    pub(in crate::sim) groups: Vec<GroupFacts>,
    /// The lives of memory with which the cluster formed.
    pub(in crate::sim) pinned: Vec<Incarnation>,
    /// Whose memory is still the one with which the cluster formed.
    pub(in crate::sim) counts: Vec<bool>,
    pub(super) last_proposal: Option<(usize, Vote)>,
}

impl Chronicle {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let groups = usize::from(scenario.groups);
        let window = scenario.window as usize;
        let shadow = Shadow {
            groups: vec![Record::default(); groups],
            entries: vec![Vote::default(); groups * window],
        };
        Self {
            layout: scenario.layout(),
            window,
            votes_count_when_flushed: super::counts_when_flushed(scenario.durability),
            shadows: vec![shadow; scenario.machines()],
            groups: vec![GroupFacts::default(); groups],
            pinned: vec![Incarnation::ANY; scenario.machines()],
            counts: vec![true; scenario.machines()],
            last_proposal: None,
        }
    }

    fn read_group(words: &Words, at: usize) -> Record {
        let word = |word: usize| words[at + word].load(Ordering::Relaxed);
        let published = (word(group::LOCK) >> 1) as usize & 1;
        let body = group::BODIES + published * group::BODY_WORDS;
        Record {
            promised: word(group::PROMISED),
            highest: word(group::HIGHEST),
            trim: word(group::TRIM),
            decided: word(body + group::BALLOT),
            from: word(body + group::FROM),
            upto: word(body + group::UPTO),
        }
    }

    fn read_entry(&self, words: &Words, at: usize) -> Vote {
        let word = |word: usize| words[at + word].load(Ordering::Relaxed);
        let published = (word(entry::LOCK) >> 1) as usize & 1;
        let bytes = self.layout.value_bytes();
        let body = entry::BODIES + published * (entry::VALUE + bytes / 8);
        let length = word(body + entry::LENGTH);
        let mut hash = length;
        for index in 0..(length as usize).min(bytes).div_ceil(8) {
            hash = fold(hash, word(body + entry::VALUE + index));
        }
        Vote {
            slot: word(body + entry::SLOT),
            ballot: word(body + entry::BALLOT),
            digest: hash ^ hash >> 29,
        }
    }

    /// Looks at a whole region. Gives its ring entries as they were last seen.
    pub(super) fn look_at_all(&mut self, place: usize, words: &Words) -> Vec<Vote> {
        let before = self.shadows[place].entries.clone();
        let groups = self.groups.len();
        for number in 0..groups {
            if let Some(at) = self.layout.group_at(GroupId(number as u16)) {
                self.shadows[place].groups[number] = Self::read_group(words, at);
            }
        }
        for index in 0..groups * self.window {
            if let Some(at) = self.layout.entry_at(index as u64) {
                self.shadows[place].entries[index] = self.read_entry(words, at);
            }
        }
        before
    }

    /// The node at `place` begins with blank memory, as another life that the others know.
    pub(super) fn reborn(&mut self, place: usize, incarnation: Incarnation) {
        self.pinned[place] = incarnation;
        self.shadows[place].entries.fill(Vote::default());
    }

    /// A region that outlives its process has the votes that it had, wherever it is now.
    pub(super) fn has_votes_of(&self, place: usize, before: &[Vote]) -> Result<(), String> {
        let pairs = before.iter().zip(&self.shadows[place].entries);
        match pairs.into_iter().find(|(before, now)| before != now) {
            None => Ok(()),
            Some((before, now)) => Err(format!(
                "node {} had {before:?} when its process ended, and has {now:?} when the next begins",
                place + 1
            )),
        }
    }

    /// Looks at the record that starts at `at`.
    pub(super) fn look(&mut self, place: usize, words: &Words, at: usize) -> Touched {
        let first_group = self.layout.group_at(GroupId(0)).unwrap_or(0);
        let first_entry = self.layout.entry_at(0).unwrap_or(0);
        if at < first_group {
            return Touched::Nothing;
        }
        if at < first_entry {
            let group = (at - first_group) / group::WORDS;
            let now = Self::read_group(words, at);
            let before = std::mem::replace(&mut self.shadows[place].groups[group], now);
            return Touched::Group { group, before };
        }
        let index = (at - first_entry) / self.layout.entry_words();
        let vote = self.read_entry(words, at);
        let before = std::mem::replace(&mut self.shadows[place].entries[index], vote);
        if vote == before {
            // A refusal and an answer to Fetch take the lock, too.
            return Touched::Nothing;
        }
        Touched::Entry {
            group: index / self.window,
            vote,
            before,
        }
    }

    pub(super) const fn window_slots(&self) -> u64 {
        self.window as u64
    }

    /// The ring entry of `slot`.
    pub(super) fn entry(&self, place: usize, group: usize, slot: u64) -> Vote {
        let at = group * self.window + (slot as usize & (self.window - 1));
        self.shadows[place].entries[at]
    }

    /// An acceptor has promised a ballot.
    pub(super) fn note_promise(&mut self, place: usize, group: usize, ballot: u64) {
        self.groups[group].ballot_mut(ballot).promised |= 1 << place;
    }

    /// No packet tells a candidate of its own acceptor's promise: it stands once it is in memory or,
    /// under `sync`, on the disk.
    pub(super) fn note_own_promise(&mut self, place: usize, group: usize, promised: u64) {
        if usize::from(Ballot(promised).node().0) == place + 1 && self.counts[place] {
            self.note_promise(place, group, promised);
        }
    }

    /// An acceptor whose memory is not the one pinned promises or accepts.
    pub(super) fn note_foreign(&mut self, place: usize, group: usize, header: &Header) {
        let facts = &mut self.groups[group];
        let ballot = header.ballot.0;
        if header.kind == Kind::Promise {
            facts.ballot_mut(ballot).foreign_promises |= 1 << place;
            return;
        }
        let slot = facts.slot_mut(header.slot.0);
        let Some(digest) = slot.value_in(ballot) else {
            return;
        };
        match slot.votes.iter_mut().find(|vote| vote.ballot == ballot) {
            Some(vote) => vote.foreign_voters |= 1 << place,
            None => slot.votes.push(Voted {
                ballot,
                digest,
                voters: 0,
                foreign_voters: 1 << place,
            }),
        }
    }
}
