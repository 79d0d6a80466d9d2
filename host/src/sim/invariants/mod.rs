//! What must hold after every event.
//!
//! The checker sees the packets that leave, the words of regions that a step has touched, the
//! records that reach a disk, and the values that replicas apply. It asks none of the code under
//! test for its opinion. One file for each invariant, called what the literature calls it;
//! [`Chronicle`] is what several of them have to know.

mod agreement;
mod chronicle;
mod decided_record;
mod durability;
mod exactly_once;
mod incarnation_fencing;
mod linearizability;
mod matchmaking;
mod one_value_per_ballot;
mod promise_monotonicity;
mod promotion;
mod quorum_intersection;
mod ring_overwrite;
mod state_machine_safety;
mod vote_without_value;

pub(super) use chronicle::{Chronicle, digest};

use super::memory::Words;
use super::scenario::Scenario;
use crate::history::Operation;
use crate::kv::Kv;
use chronicle::{Touched, Vote};
use consensus::applied::Applied;
use consensus::configuration::Configuration;
use consensus::local::Durability;
use consensus::wire::{Header, Kind, Parsed, parse};
use consensus::{GroupId, Incarnation, Slot};

macro_rules! invariants {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Something that must hold.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum Invariant { $($(#[$doc])* $variant,)* }

        impl Invariant {
            /// Every invariant.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name on command lines and in reports.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The invariant of this name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.name() == name)
            }
        }
    };
}

invariants! {
    /// At most one value is chosen in a slot, and what is decided was chosen.
    Agreement = "agreement",
    /// One ballot has one value for a slot.
    OneValuePerBallot = "one-value-per-ballot",
    /// A promise is never taken back, and nobody votes below one.
    PromiseMonotonicity = "promise-monotonicity",
    /// Whoever says that it accepted has the value.
    VoteWithoutValue = "vote-without-value",
    /// No ring entry at or above the trim is overwritten.
    RingOverwrite = "ring-overwrite",
    /// A decided record speaks of one ballot, in which all of it was chosen.
    DecidedRecord = "decided-record",
    /// Other lives of an acceptor's memory are not counted.
    IncarnationFencing = "incarnation-fencing",
    /// Phase-1 and phase-2 quorums meet.
    QuorumIntersection = "quorum-intersection",
    /// Matchmakers forget no configuration that is needed, and none is called garbage that is.
    Matchmaking = "matchmaking",
    /// Whoever becomes a voter has what acceptors no longer keep.
    Promotion = "promotion",
    /// Replicas apply the same values, and those that were chosen.
    StateMachineSafety = "state-machine-safety",
    /// A command takes effect once, and each repetition is answered alike.
    ExactlyOnce = "exactly-once",
    /// What a durability mode covers is there afterwards.
    Durability = "durability",
    /// What clients saw could have happened one after the other.
    Linearizability = "linearizability",
    /// Once faults stop, every group commits again within a bound, and all replicas become level.
    Liveness = "liveness",
    /// The code's own assertions hold.
    Assertion = "assertion",
}

/// Something that must hold does not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// What it is called.
    pub invariant: Invariant,
    /// What was seen.
    pub what: String,
}

type Verdict = Result<(), String>;

/// The checker.
pub(super) struct Checker {
    only: Option<Invariant>,
    pub(super) chronicle: Chronicle,
    promises: promise_monotonicity::Promises,
    logs: state_machine_safety::Logs,
    references: Vec<exactly_once::Reference>,
    answers: Vec<exactly_once::Answer>,
    disks: durability::Promised,
    matchmakers: matchmaking::Matchmakers,
    registers: Vec<matchmaking::Registers>,
    violation: Option<Violation>,
}

impl Checker {
    pub(super) fn new(scenario: &Scenario, only: Option<Invariant>) -> Self {
        let groups = usize::from(scenario.groups);
        Self {
            only,
            chronicle: Chronicle::new(scenario),
            promises: promise_monotonicity::Promises::new(scenario),
            logs: state_machine_safety::Logs::new(scenario),
            references: (0..groups)
                .map(|_| exactly_once::Reference::default())
                .collect(),
            answers: Vec::new(),
            disks: durability::Promised::new(scenario),
            matchmakers: matchmaking::Matchmakers::default(),
            registers: (0..groups)
                .map(|_| matchmaking::Registers::default())
                .collect(),
            violation: None,
        }
    }

    /// Notes a verdict; the first violation stays.
    pub(super) fn judge(&mut self, invariant: Invariant, verdict: Verdict) {
        if let Err(what) = verdict
            && self.only.is_none_or(|only| only == invariant)
            && self.violation.is_none()
        {
            self.violation = Some(Violation { invariant, what });
        }
    }

    pub(super) const fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// The nodes count by these quorums.
    pub(super) fn configured(&mut self, members: usize, sizes: (usize, usize)) {
        let verdict = quorum_intersection::configured(members, sizes);
        self.judge(Invariant::QuorumIntersection, verdict);
    }

    /// A process has opened its region, or made a new one of its journal, and restored its state.
    pub(super) fn opened(
        &mut self,
        place: usize,
        incarnation: Incarnation,
        words: &Words,
        recovered: &[Slot],
    ) {
        let before = self.chronicle.look_at_all(place, words);
        let counts = self.chronicle.pinned[place] == incarnation;
        if counts && !self.chronicle.votes_count_when_flushed {
            let verdict = self.chronicle.has_votes_of(place, &before);
            self.judge(Invariant::Durability, verdict);
        }
        self.chronicle.counts[place] = counts;
        let verdict = self.promises.opened(place, counts, &self.chronicle);
        self.judge(Invariant::PromiseMonotonicity, verdict);
        if !counts {
            self.disks.lost(place);
        }
        let verdict = self.disks.opened(place, recovered);
        self.judge(Invariant::Durability, verdict);
        self.logs.opened(place, recovered);
    }

    /// An event of the node at `place` wrote to these records of its region.
    pub(super) fn touched(&mut self, place: usize, words: &Words, records: &[usize]) {
        for at in records {
            match self.chronicle.look(place, words, *at) {
                Touched::Nothing => {}
                Touched::Group { group, before } => {
                    let verdict = self.promises.raised(place, group, before, &self.chronicle);
                    self.judge(Invariant::PromiseMonotonicity, verdict);
                    if !self.chronicle.votes_count_when_flushed {
                        let promised = self.chronicle.shadows[place].groups[group].promised;
                        self.chronicle.note_own_promise(place, group, promised);
                    }
                    if self.chronicle.counts[place] {
                        let verdict =
                            decided_record::written(&self.chronicle, place, group, &before);
                        self.judge(Invariant::DecidedRecord, verdict);
                    }
                }
                Touched::Entry {
                    group,
                    vote,
                    before,
                } => {
                    let verdict = self.promises.voted(place, group, &vote);
                    self.judge(Invariant::PromiseMonotonicity, verdict);
                    let verdict =
                        ring_overwrite::written(&self.chronicle, place, group, &before, &vote);
                    self.judge(Invariant::RingOverwrite, verdict);
                    let verdict =
                        one_value_per_ballot::seen(&mut self.chronicle, group, &vote, Some(place));
                    self.judge(Invariant::OneValuePerBallot, verdict);
                    if !self.chronicle.votes_count_when_flushed {
                        self.cast(place, group, &vote);
                    }
                }
            }
        }
        self.promises.note(place, &self.chronicle);
    }

    fn cast(&mut self, place: usize, group: usize, vote: &Vote) {
        if !self.chronicle.counts[place] {
            return;
        }
        let verdict = agreement::cast(&mut self.chronicle, place, group, vote);
        self.judge(Invariant::Agreement, verdict);
    }

    /// Whether records on disks are of interest.
    pub(super) const fn reads_disks(&self) -> bool {
        self.chronicle.votes_count_when_flushed
    }

    /// A record reached the disk of the node at `place`.
    pub(super) fn flushed(&mut self, place: usize, record: &[u8]) {
        let Parsed::Ours(header, value) = parse(record, usize::from(u16::MAX)) else {
            return;
        };
        let group = usize::from(header.group.0);
        self.disks.flushed(place, group, &header);
        match header.kind {
            Kind::Prepare => self
                .chronicle
                .note_own_promise(place, group, header.ballot.0),
            Kind::Accept => {
                let vote = Vote {
                    slot: header.slot.0,
                    ballot: header.ballot.0,
                    digest: digest(value),
                };
                self.cast(place, group, &vote);
            }
            _ => {}
        }
    }

    /// A packet leaves the node at `place`.
    pub(super) fn sent(&mut self, place: usize, header: &Header, value: &[u8]) {
        let GroupId(group) = header.group;
        let group = usize::from(group);
        if group >= self.chronicle.groups.len() {
            return;
        }
        match header.kind {
            Kind::Promise | Kind::Accepted => {
                if header.incarnation != self.chronicle.pinned[place] {
                    return self.chronicle.note_foreign(place, group, header);
                }
                let verdict = self.promises.sent(place, group, header);
                self.judge(Invariant::PromiseMonotonicity, verdict);
                let verdict = self.disks.sent(place, group, header);
                self.judge(Invariant::Durability, verdict);
                if header.kind == Kind::Promise {
                    self.chronicle.note_promise(place, group, header.ballot.0);
                } else {
                    let verdict =
                        vote_without_value::accepted(&self.chronicle, place, group, header);
                    self.judge(Invariant::VoteWithoutValue, verdict);
                }
            }
            Kind::Progress => {
                let verdict = self.disks.sent(place, group, header);
                self.judge(Invariant::Durability, verdict);
            }
            Kind::Accept => self.proposed(group, header, value),
            Kind::Match => {
                let Some((configuration, _)) = Configuration::read(value) else {
                    return;
                };
                let facts = &mut self.chronicle.groups[group];
                let is_first = facts.counting(header.ballot.0).is_none();
                let verdict = match facts.note_match(header, &configuration) {
                    true => Ok(()),
                    false => Err(format!(
                        "group {group}: ballot {} is to use two configurations, or two are called {}",
                        header.ballot, configuration.version
                    )),
                };
                self.judge(Invariant::Matchmaking, verdict);
                if is_first {
                    let verdict =
                        promotion::asked(&self.chronicle, &self.logs, group, header.ballot);
                    self.judge(Invariant::Promotion, verdict);
                }
            }
            Kind::Matched | Kind::Stopped => {
                let verdict = self.matchmakers.matched(place, group, header, value);
                self.judge(Invariant::Matchmaking, verdict);
            }
            Kind::Garbage => {
                let verdict = matchmaking::garbage(&self.chronicle, group, header);
                let facts = &mut self.chronicle.groups[group];
                facts.garbage = facts.garbage.max(header.watermark);
                self.judge(Invariant::Matchmaking, verdict);
            }
            Kind::Decide => {
                let (first, verdict) = agreement::decided(&mut self.chronicle, group, header);
                self.judge(Invariant::Agreement, verdict);
                let verdict = incarnation_fencing::decided(&self.chronicle, group, header, first);
                self.judge(Invariant::IncarnationFencing, verdict);
            }
            Kind::Response => {
                exactly_once::take_down(place + 1, header, value, &mut self.answers);
            }
            _ => {}
        }
    }

    /// The node at `place` has written down what it knows of a group's configurations. True if others
    /// are matchmakers than anybody knew before.
    pub(super) fn kept(&mut self, place: usize, group: GroupId, register: &[u8]) -> bool {
        let group = usize::from(group.0);
        let life = (place, self.chronicle.pinned[place]);
        let before = self.registers[group].generation();
        let verdict = self.registers[group].kept(&self.chronicle.groups[group], life, register);
        let verdict = verdict.map_err(|what| format!("group {group}: {what}"));
        self.judge(Invariant::Matchmaking, verdict);
        self.registers[group].generation() > before
    }

    fn proposed(&mut self, group: usize, header: &Header, value: &[u8]) {
        let vote = Vote {
            slot: header.slot.0,
            ballot: header.ballot.0,
            digest: digest(value),
        };
        if self.chronicle.last_proposal == Some((group, vote)) {
            // The same packet to the next member.
            return;
        }
        self.chronicle.last_proposal = Some((group, vote));
        let verdict = agreement::proposed(&self.chronicle, group, header, &vote);
        self.judge(Invariant::Agreement, verdict);
        let verdict = one_value_per_ballot::seen(&mut self.chronicle, group, &vote, None);
        self.judge(Invariant::OneValuePerBallot, verdict);
        let verdict = incarnation_fencing::proposed(&mut self.chronicle, group, header);
        self.judge(Invariant::IncarnationFencing, verdict);
        let verdict = quorum_intersection::proposed(&mut self.chronicle, group, header);
        self.judge(Invariant::QuorumIntersection, verdict);
        self.promises.proposed(group, header, &mut self.chronicle);
    }

    /// A replica may have applied something.
    pub(super) fn applied(&mut self, place: usize, group: usize, applied: &Applied<Kv>) {
        let reference = &mut self.references[group];
        let verdict = self
            .logs
            .look(place, group, applied, &self.chronicle, |news| {
                reference.apply(news.value);
            });
        self.judge(Invariant::StateMachineSafety, verdict);
    }

    /// The event of a node is over.
    pub(super) fn event_over(&mut self) {
        let mut answers = std::mem::take(&mut self.answers);
        for answer in answers.drain(..) {
            let verdict = exactly_once::check(&self.references, &answer);
            self.judge(Invariant::ExactlyOnce, verdict);
        }
        self.answers = answers;
    }

    /// A node comes back without anything, in another life, to become a member once more.
    pub(super) fn reborn(&mut self, place: usize, incarnation: Incarnation) {
        self.chronicle.reborn(place, incarnation);
        self.promises.reborn(place);
        self.disks.reborn(place);
        self.logs.reborn(place);
    }

    /// The disk of the node at `place` has lost what no mode covers.
    pub(super) fn disk_damaged(&mut self, place: usize) {
        self.disks.lost(place);
    }

    /// The process died in the middle of it.
    pub(super) fn event_cut_off(&mut self) {
        self.answers.clear();
    }

    /// All replicas of a group are level at `slot`.
    pub(super) fn settled(&mut self, group: usize, slot: Slot) {
        let frontier = self.logs.frontier(group);
        if slot.0 < frontier {
            let what = format!(
                "group {group}: slot {frontier} was applied once, and nobody has more than {slot}"
            );
            self.judge(Invariant::Durability, Err(what));
        }
    }

    /// The state in which a replica has ended.
    pub(super) fn ended(&mut self, place: usize, group: usize, machine: &Kv) {
        let verdict = self.references[group].compare(place + 1, group, machine);
        self.judge(Invariant::ExactlyOnce, verdict);
    }

    /// What the clients of a group saw.
    pub(super) fn histories(&mut self, group: usize, operations: &[Operation]) {
        if self
            .only
            .is_none_or(|only| only == Invariant::Linearizability)
        {
            let verdict = linearizability::judge(group, operations);
            self.judge(Invariant::Linearizability, verdict);
        }
    }
}

/// Whether votes count by their record on the disk.
const fn counts_when_flushed(durability: Durability) -> bool {
    matches!(durability, Durability::Sync)
}
