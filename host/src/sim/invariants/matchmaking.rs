//! Matchmaking (Whittaker et al. 2021, "Matchmaker Paxos", section 3): a matchmaker matches ballots in
//! their order and forgets no configuration that is not garbage; and a configuration is garbage only
//! when everything that it chose is safe without it. And matchmakers replaced (section 6): of each
//! generation there is one set, who was stopped matches nothing, and what a majority has matched a
//! majority of those that follow knows when it begins.

use super::Verdict;
use super::chronicle::{Chronicle, GroupFacts};
use consensus::configuration::{Configuration, Matchmakers as Set};
use consensus::matchmaker::{Book, Register};
use consensus::wire::{Header, Kind};
use consensus::{Ballot, Incarnation};
use std::collections::{BTreeMap, BTreeSet};

/// One life of a node, by its place.
type Life = (usize, Incarnation);

/// What each matchmaker has said, by its life, the group and its generation.
#[derive(Default)]
pub(super) struct Matchmakers(BTreeMap<(Life, usize, u64), Said>);

#[derive(Default)]
struct Said {
    highest: u64,
    /// It has said that it matches nothing any more.
    stopped: bool,
    /// Versions of the configurations that it has written down.
    known: BTreeSet<u64>,
}

impl Matchmakers {
    /// A matchmaker says that it has written a ballot's configuration down, and which there are; or
    /// that it was stopped.
    pub(super) fn matched(
        &mut self,
        place: usize,
        group: usize,
        header: &Header,
        value: &[u8],
    ) -> Verdict {
        let key = ((place, header.incarnation), group, header.slot.0);
        let said = self.0.entry(key).or_default();
        let node = place + 1;
        let ballot = header.ballot;
        if header.kind == Kind::Stopped {
            said.stopped = true;
            return Ok(());
        }
        if said.stopped {
            return Err(format!(
                "group {group}: node {node} matches ballot {ballot}, and was stopped"
            ));
        }
        if ballot.0 < said.highest {
            return Err(format!(
                "group {group}: node {node} matches ballot {ballot} after {}",
                Ballot(said.highest)
            ));
        }
        let told = Configuration::read_all(value).unwrap_or_default();
        let told: BTreeSet<u64> = told.iter().map(|one| one.version.0).collect();
        let forgotten = said.known.difference(&told);
        let forgotten = forgotten
            .copied()
            .find(|version| *version >= header.watermark);
        said.highest = ballot.0;
        said.known = told;
        match forgotten {
            None => Ok(()),
            Some(version) => Err(format!(
                "group {group}: node {node} has matched version {}, and tells ballot {ballot} \
                 nothing of it",
                Ballot(version)
            )),
        }
    }
}

/// What nodes have written down of one group.
#[derive(Default)]
pub(super) struct Registers {
    kept: BTreeMap<Life, Register>,
    /// The matchmakers of each generation.
    sets: BTreeMap<u32, Vec<Life>>,
    /// Which of them have matched a ballot.
    matched: BTreeMap<(u32, u64), BTreeSet<Life>>,
}

fn lives(set: &Set) -> Vec<Life> {
    let members = set.members.iter();
    let mut lives: Vec<Life> = members
        .map(|member| (usize::from(member.node.0) - 1, member.incarnation))
        .collect();
    lives.sort_unstable();
    lives
}

impl Registers {
    /// The newest generation of matchmakers that anybody knows.
    pub(super) fn generation(&self) -> u32 {
        self.sets.keys().next_back().copied().unwrap_or(Set::FIRST)
    }

    /// A node has written down what it knows of a group's configurations.
    pub(super) fn kept(&mut self, facts: &GroupFacts, life: Life, bytes: &[u8]) -> Verdict {
        let node = life.0 + 1;
        let Some(now) = Register::read(bytes) else {
            return Err(format!("node {node} writes down what nobody can read"));
        };
        let known = now.newest.matchmakers.clone();
        let matchmaker = now.matchmaker.clone();
        let before = self.kept.insert(life, now);
        let before = before.map(|before| before.matchmaker);
        let same = before.filter(|before| before.generation() == matchmaker.generation());
        if let Some(before) = &same
            && before.is_stopped()
            && (before.book() != matchmaker.book() || !matchmaker.is_stopped())
        {
            return Err(format!(
                "node {node} was stopped as one of matchmakers {}, and changes what it has told",
                matchmaker.generation()
            ));
        }
        let highest = matchmaker.book().highest();
        let is_first = matchmaker.generation() == Set::FIRST;
        let was = match &same {
            Some(before) => before.book().highest(),
            None if is_first => Ballot::NONE,
            None => highest,
        };
        if highest != was {
            let matched = (matchmaker.generation(), highest.0);
            self.matched.entry(matched).or_default().insert(life);
        }
        if known.generation == 0 {
            return Ok(());
        }
        let set = lives(&known);
        match self.sets.get(&known.generation) {
            Some(other) if *other == set => Ok(()),
            Some(other) => Err(format!(
                "matchmakers {} are {set:?} by the word of node {node}, and {other:?}",
                known.generation
            )),
            None => {
                self.sets.insert(known.generation, set);
                self.begin(facts, known.generation)
            }
        }
    }

    /// The matchmakers of a generation are appointed.
    fn begin(&self, facts: &GroupFacts, generation: u32) -> Verdict {
        let former = generation - 1;
        let (Some(set), Some(others)) = (self.sets.get(&generation), self.sets.get(&former)) else {
            return Ok(());
        };
        let ballots = self.matched.range((former, 0)..(generation, 0));
        let by_majority = ballots.filter(|(_, by)| {
            let count = others.iter().filter(|life| by.contains(life)).count();
            count > others.len() / 2
        });
        let ballots: Vec<u64> = by_majority.map(|((_, ballot), _)| *ballot).collect();
        let knows = |book: &Book, ballot: u64| {
            let version = facts.counting(ballot).map(|counting| counting.version);
            let has = |version: u64| {
                book.garbage().0 > version
                    || book
                        .configurations()
                        .iter()
                        .any(|one| one.version.0 == version)
            };
            book.highest().0 >= ballot && version.is_none_or(has)
        };
        let knows_all = |life: &&Life| {
            let Some(kept) = self.kept.get(life) else {
                return false;
            };
            let matchmaker = &kept.matchmaker;
            let handed_over = matchmaker.successor().filter(|one| one.0 == generation);
            let book = match handed_over {
                Some((_, book)) => book,
                None if matchmaker.generation() == generation => matchmaker.book(),
                None => return false,
            };
            ballots.iter().all(|ballot| knows(book, *ballot))
        };
        let count = set.iter().filter(knows_all).count();
        if count > set.len() / 2 {
            return Ok(());
        }
        let ballots: Vec<_> = ballots
            .into_iter()
            .map(|one| Ballot(one).to_string())
            .collect();
        Err(format!(
            "matchmakers {generation} begin, and {count} of {} know of what those before have \
             matched: {}",
            set.len(),
            ballots.join(", ")
        ))
    }
}

/// A leader says that the configurations below a version are garbage.
pub(super) fn garbage(chronicle: &Chronicle, group: usize, header: &Header) -> Verdict {
    let facts = &chronicle.groups[group];
    let version = header.watermark;
    let Some(counting) = facts.counting(header.ballot.0) else {
        return Err(format!(
            "group {group}: ballot {} was not matched, and calls configurations garbage",
            header.ballot
        ));
    };
    for number in 1..facts.last_slot() {
        let Some(slot) = facts.slot(number) else {
            continue;
        };
        let chosen_by = |is_new: bool| {
            slot.votes.iter().any(|vote| {
                let counting = facts.counting(vote.ballot);
                counting.is_some_and(|counting| {
                    (counting.version >= version) == is_new && counting.has_phase2(vote.voters)
                })
            })
        };
        if !chosen_by(false) || chosen_by(true) {
            continue;
        }
        // A life that is over promises nothing any more, whatever it knew.
        let is_over = |place: usize| {
            let life = chronicle.pinned[place];
            !chronicle.counts[place] || !facts.counts(header.ballot.0, place, life)
        };
        let trimmed = (0..chronicle.shadows.len())
            .filter(|place| {
                is_over(*place) || chronicle.shadows[*place].groups[group].trim > number
            })
            .fold(0, |bits, place| bits | 1 << place);
        if !counting.has_phase2(trimmed) {
            return Err(format!(
                "slot {number} of group {group}: chosen by a configuration below version {} only, \
                 which ballot {} calls garbage, and no quorum of the newer one knows that it is \
                 decided",
                Ballot(version),
                header.ballot
            ));
        }
    }
    Ok(())
}
