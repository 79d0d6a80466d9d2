//! Which configurations ballots use: Matchmaker Paxos (Whittaker et al. 2021, "Matchmaker Paxos: A
//! Reconfigurable Consensus Protocol").
//!
//! Before its phase 1 a candidate has a majority of the matchmakers write down the configuration of
//! its ballot, and is told every other one in which something may have been chosen. Acceptors know
//! nothing of it. Departing from the paper, a configuration has a version, a matchmaker refuses one
//! that is older than another that it knows, and garbage is told by versions: a node that was away
//! while the members changed cannot bring the old ones back, and need not be waited for.

use crate::configuration::Configuration;
use crate::simulation::{Mutation, mutated};
use crate::{Ballot, Incarnation};
use alloc::vec::Vec;

/// Most configurations that a matchmaker holds at once: past it new ones are not taken before old
/// ones are garbage.
pub const MAX_CONFIGURATIONS: usize = 8;
/// Bytes before the configurations: highest u64, before u64, garbage u64, asker u32, zero u32.
const HEAD_BYTES: usize = 32;

/// What a matchmaker remembers. Whoever answers for it has this on record first, as durably as its
/// acceptor's votes are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Matchmaker {
    /// The highest ballot that was matched, and the life of the node that asked.
    highest: Ballot,
    asker: Incarnation,
    /// The highest ballot that was matched before that one.
    before: Ballot,
    /// Configurations below this version are garbage.
    garbage: Ballot,
    /// The others that ballots used, by rising version.
    configurations: Vec<Configuration>,
}

/// What a matchmaker answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Match<'a> {
    /// Written down: these configurations are not garbage.
    Matched {
        /// The highest ballot that was matched before.
        before: Ballot,
        /// Configurations below this version are garbage.
        garbage: Ballot,
        /// The others, the candidate's own among them.
        configurations: &'a [Configuration],
    },
    /// Another ballot or configuration is ahead.
    Refused {
        /// The highest ballot that was matched.
        highest: Ballot,
        /// The newest configuration.
        newest: Option<&'a Configuration>,
    },
    /// No room before something is garbage.
    Full,
}

impl Matchmaker {
    /// The matchmaker of a cluster that has just formed.
    pub fn new(formed: Configuration) -> Self {
        Self {
            configurations: [formed].to_vec(),
            ..Self::default()
        }
    }

    /// The configurations that are not garbage, by rising version.
    pub fn configurations(&self) -> &[Configuration] {
        &self.configurations
    }

    /// The candidate of `ballot`, in its life `asker`, is about to use `configuration`.
    pub fn handle_match(
        &mut self,
        ballot: Ballot,
        asker: Incarnation,
        configuration: &Configuration,
    ) -> Match<'_> {
        let version = configuration.version;
        let newest = self.configurations.last();
        // A node that lost its memory may draw a ballot of its former life once more.
        let is_again = ballot == self.highest && asker == self.asker;
        let is_lower =
            !is_again && ballot <= self.highest && !mutated(Mutation::LowerBallotMatched);
        let is_stale = (version < self.garbage || newest.is_some_and(|one| version < one.version))
            && !mutated(Mutation::StaleConfigurationMatched);
        if ballot == Ballot::NONE || is_lower || is_stale {
            return Match::Refused {
                highest: self.highest,
                newest: self.configurations.last(),
            };
        }
        let known = self
            .configurations
            .binary_search_by_key(&version, |one| one.version);
        if let Err(at) = known {
            if self.configurations.len() >= MAX_CONFIGURATIONS {
                return Match::Full;
            }
            self.configurations.insert(at, configuration.clone());
        }
        if !is_again {
            self.before = self.highest;
            (self.highest, self.asker) = (ballot, asker);
        }
        Match::Matched {
            before: self.before,
            garbage: self.garbage,
            configurations: &self.configurations,
        }
    }

    /// A leader's configuration of this version took over: nothing can be chosen any more by an
    /// older one, and what was is safe with it. A ballot that was matched with an older one
    /// meanwhile has no majority: matchmakers that knew the newer one have refused it.
    pub fn collect(&mut self, version: Ballot) {
        self.garbage = self.garbage.max(version);
        self.configurations.retain(|one| one.version >= version);
    }

    /// Writes it behind what is there.
    pub fn append(&self, out: &mut Vec<u8>) {
        for word in [self.highest.0, self.before.0, self.garbage.0] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out.extend_from_slice(&self.asker.0.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        for one in &self.configurations {
            one.append(out);
        }
    }

    /// What was written. `None` if it is broken.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        let (words, asker) = head.as_chunks::<8>().0.split_at(3);
        let word = |at: usize| words.get(at).copied().map(u64::from_be_bytes).map(Ballot);
        Some(Self {
            highest: word(0)?,
            before: word(1)?,
            garbage: word(2)?,
            asker: Incarnation(u32::from_be_bytes(*asker.first()?.first_chunk()?)),
            configurations: Configuration::read_all(rest)?,
        })
    }
}

/// What a node keeps of one group's configurations, durably.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Register {
    /// The newest that it knows.
    pub newest: Configuration,
    /// What it remembers for others, if it is a matchmaker.
    pub matchmaker: Matchmaker,
}

impl Register {
    /// Of a member of the cluster that has just formed.
    pub fn formed(membership: crate::quorum::Membership) -> Self {
        let newest = Configuration::formed(membership);
        Self {
            matchmaker: Matchmaker::new(newest.clone()),
            newest,
        }
    }

    /// Of a node that nobody has told anything yet.
    pub fn blank() -> Self {
        Self {
            newest: Configuration::unknown(),
            matchmaker: Matchmaker::default(),
        }
    }

    /// The newest configuration that it knows in either part.
    pub fn latest(&self) -> &Configuration {
        let matched = self.matchmaker.configurations.last();
        matched
            .filter(|one| one.version > self.newest.version)
            .unwrap_or(&self.newest)
    }

    /// Its bytes. What is unknown has none, and is not kept.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.newest.to_bytes();
        self.matchmaker.append(&mut out);
        out
    }

    /// What was kept. `None` if it is broken.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (newest, rest) = Configuration::read(bytes)?;
        let matchmaker = Matchmaker::read(rest)?;
        Some(Self { newest, matchmaker })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeId;
    use crate::configuration::testing::configuration;
    use alloc::vec;

    const LIFE: Incarnation = Incarnation(7);

    fn ballot(round: u64) -> Ballot {
        Ballot::new(round, NodeId(1))
    }

    fn formed() -> Configuration {
        Configuration {
            version: Ballot::NONE,
            ..configuration(0, &[1, 2, 3])
        }
    }

    fn versions(matched: Match<'_>) -> Option<Vec<u64>> {
        match matched {
            Match::Matched { configurations, .. } => {
                let versions = configurations.iter().map(|one| one.version.round());
                Some(versions.collect())
            }
            Match::Refused { .. } | Match::Full => None,
        }
    }

    #[test]
    fn a_candidate_is_told_every_configuration_that_is_not_garbage() {
        let mut matchmaker = Matchmaker::new(formed());
        let next = configuration(5, &[1, 2, 4]);
        let mut ask = |round, with: &Configuration| {
            versions(matchmaker.handle_match(ballot(round), LIFE, with))
        };
        assert_eq!(ask(4, &formed()), Some(vec![0]));
        assert_eq!(ask(5, &next), Some(vec![0, 5]));
        assert_eq!(ask(6, &next), Some(vec![0, 5]));
        matchmaker.collect(next.version);
        assert_eq!(
            versions(matchmaker.handle_match(ballot(7), LIFE, &next)),
            Some(vec![5])
        );
    }

    #[test]
    fn a_ballot_at_or_below_a_matched_one_is_refused() {
        let mut matchmaker = Matchmaker::new(formed());
        let mut ask = |round, life| {
            matches!(
                matchmaker.handle_match(ballot(round), life, &formed()),
                Match::Matched { .. }
            )
        };
        assert!(ask(4, LIFE));
        assert!(
            !ask(3, LIFE),
            "it could use a configuration that ballot 4 was not told of"
        );
        assert!(ask(4, LIFE), "the answer may have been lost");
        assert!(!ask(4, Incarnation(8)), "that is another life of the node");
        assert!(ask(5, Incarnation(8)));
    }

    #[test]
    fn an_older_configuration_is_refused_and_the_newer_one_told() {
        let mut matchmaker = Matchmaker::new(formed());
        let next = configuration(5, &[1, 2, 4]);
        assert!(versions(matchmaker.handle_match(ballot(5), LIFE, &next)).is_some());
        let refused = Match::Refused {
            highest: ballot(5),
            newest: Some(&next),
        };
        assert_eq!(matchmaker.handle_match(ballot(6), LIFE, &formed()), refused);
        matchmaker.collect(next.version);
        assert_eq!(matchmaker.handle_match(ballot(6), LIFE, &formed()), refused);
    }

    #[test]
    fn the_ballot_before_is_told_as_often_as_it_is_asked() {
        let mut matchmaker = Matchmaker::new(formed());
        let mut before = |round| match matchmaker.handle_match(ballot(round), LIFE, &formed()) {
            Match::Matched { before, .. } => before,
            other => panic!("{other:?}"),
        };
        assert_eq!(before(4), Ballot::NONE);
        assert_eq!(before(6), ballot(4));
        assert_eq!(before(6), ballot(4));
    }

    #[test]
    fn there_is_room_for_so_many_configurations() {
        let mut matchmaker = Matchmaker::new(formed());
        for round in 1..MAX_CONFIGURATIONS as u64 {
            let next = configuration(round, &[1, 2, 3]);
            assert!(versions(matchmaker.handle_match(ballot(round), LIFE, &next)).is_some());
        }
        let more = configuration(9, &[1, 2, 3]);
        assert_eq!(matchmaker.handle_match(ballot(9), LIFE, &more), Match::Full);
        matchmaker.collect(ballot(2));
        assert!(versions(matchmaker.handle_match(ballot(9), LIFE, &more)).is_some());
    }

    #[test]
    fn what_is_kept_is_read_again() {
        let mut register = Register::formed(formed().membership);
        let next = configuration(5, &[1, 2, 4]);
        register.matchmaker.handle_match(ballot(5), LIFE, &next);
        register.matchmaker.collect(ballot(3));
        register.newest = next;
        let mut bytes = register.to_bytes();
        assert_eq!(Register::read(&bytes), Some(register));
        bytes.pop();
        assert_eq!(Register::read(&bytes), None);
    }
}
