//! Which configurations ballots use: Matchmaker Paxos (Whittaker et al. 2021, "Matchmaker Paxos: A
//! Reconfigurable Consensus Protocol").
//!
//! Before its phase 1 a candidate has a majority of the matchmakers write down the configuration of
//! its ballot, and is told every other one in which something may have been chosen. Acceptors know
//! nothing of it. Departing from the paper, a configuration has a version, a matchmaker refuses one
//! that is older than another that it knows, and garbage is told by versions: a node that was away
//! while the members changed cannot bring the old ones back, and need not be waited for.
//!
//! Matchmakers are replaced as in section 6 of the paper: a majority of the old ones is stopped and
//! tells what it knows, a majority of the new ones writes that down, and then the old ones appoint
//! them by one decree of Paxos. Until that is chosen the new ones match nothing; from then on any
//! majority of them has a member that knows everything, so that the others may begin with nothing.

use crate::configuration::{Configuration, Matchmakers};
use crate::simulation::{Mutation, mutated};
use crate::{Ballot, Incarnation};
use alloc::vec::Vec;

/// Most configurations that a matchmaker takes: past it new ones are not taken before old ones are
/// garbage. Those that it was handed over may be more.
pub const MAX_CONFIGURATIONS: usize = 8;
/// Most configurations of a book that is handed over: it travels in one packet. A majority of 17
/// matchmakers cannot know more.
pub const MAX_HANDED_OVER: usize = 64;
/// Bytes of a book before its configurations: highest u64, before u64, garbage u64, asker u32, how
/// many u32.
const BOOK_BYTES: usize = 32;
/// Bytes of a matchmaker before its book: generation u32, stopped u8, successor u8, zeros.
const HEAD_BYTES: usize = 8;
/// Bytes of what a stopped one knows of its successors, before those that it has accepted: promised
/// u64, accepted u64, asker u32, zeros.
const DECREE_BYTES: usize = 24;

/// What ballots used.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Book {
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

impl Book {
    /// The highest ballot that was matched.
    pub const fn highest(&self) -> Ballot {
        self.highest
    }

    /// The version below which configurations are garbage.
    pub const fn garbage(&self) -> Ballot {
        self.garbage
    }

    /// The configurations that are not garbage, by rising version.
    pub fn configurations(&self) -> &[Configuration] {
        &self.configurations
    }

    /// Takes over what another one knows, too.
    ///
    /// Which life matched the highest ballot they may know differently. None of them may go on with
    /// it: a candidate that was not matched before draws another one.
    pub fn merge(&mut self, other: Self) {
        self.highest = self.highest.max(other.highest);
        self.asker = Incarnation::ANY;
        self.before = self.highest;
        self.garbage = self.garbage.max(other.garbage);
        for one in other.configurations {
            if let Err(at) = self.place(one.version) {
                self.configurations.insert(at, one);
            }
        }
        let garbage = self.garbage;
        self.configurations.retain(|one| one.version >= garbage);
    }

    fn place(&self, version: Ballot) -> Result<usize, usize> {
        self.configurations
            .binary_search_by_key(&version, |one| one.version)
    }

    /// Writes it behind what is there.
    pub fn append(&self, out: &mut Vec<u8>) {
        for word in [self.highest.0, self.before.0, self.garbage.0] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out.extend_from_slice(&self.asker.0.to_be_bytes());
        out.extend_from_slice(&(self.configurations.len() as u32).to_be_bytes());
        for one in &self.configurations {
            one.append(out);
        }
    }

    /// The first one of a sequence, and the rest. `None` if it is broken.
    pub fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (head, mut rest) = bytes.split_first_chunk::<BOOK_BYTES>()?;
        let (words, halves) = head.as_chunks::<8>().0.split_at(3);
        let word = |at: usize| words.get(at).copied().map(u64::from_be_bytes).map(Ballot);
        let (asker, count) = halves.first()?.split_first_chunk::<4>()?;
        let count = u32::from_be_bytes(*count.first_chunk()?) as usize;
        let mut configurations: Vec<Configuration> = Vec::new();
        for _ in 0..Some(count).filter(|count| *count <= MAX_HANDED_OVER)? {
            let (one, behind) = Configuration::read(rest)?;
            if configurations
                .last()
                .is_some_and(|last| last.version >= one.version)
            {
                return None;
            }
            configurations.push(one);
            rest = behind;
        }
        let book = Self {
            highest: word(0)?,
            before: word(1)?,
            garbage: word(2)?,
            asker: Incarnation(u32::from_be_bytes(*asker)),
            configurations,
        };
        Some((book, rest))
    }
}

/// Who asks for something in a ballot: no two lives of a node share one.
type Asker = (Ballot, Incarnation);

/// What a matchmaker that was stopped remembers of who is to follow.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Decree {
    promised: Asker,
    /// The successors that it has accepted, and in which ballot.
    accepted: Option<(Ballot, Matchmakers)>,
}

/// What a matchmaker remembers. Whoever answers for it has this on record first, as durably as its
/// acceptor's votes are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Matchmaker {
    /// The matchmakers that it is one of.
    generation: u32,
    book: Book,
    /// It matches nothing any more.
    stopped: Option<Decree>,
    /// What it is to begin with as one of a later generation.
    successor: Option<(u32, Book)>,
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
    },
    /// No room before something is garbage.
    Full,
    /// Others are to follow: the change has to be finished first.
    Stopped,
}

impl Matchmaker {
    /// The matchmaker of a cluster that has just formed.
    pub fn new(formed: &Configuration) -> Self {
        let mut matchmaker = Self {
            generation: formed.matchmakers.generation,
            ..Self::default()
        };
        matchmaker.write_down(0, formed);
        matchmaker
    }

    /// The generation that it is of.
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// What it has written down.
    pub const fn book(&self) -> &Book {
        &self.book
    }

    /// Whether it matches nothing any more.
    pub const fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// The successors that it has accepted, and in which ballot.
    pub fn accepted(&self) -> Option<&(Ballot, Matchmakers)> {
        self.stopped.as_ref()?.accepted.as_ref()
    }

    /// What it is to begin with as one of a later generation.
    pub const fn successor(&self) -> Option<&(u32, Book)> {
        self.successor.as_ref()
    }

    /// The configurations that are not garbage, by rising version.
    pub fn configurations(&self) -> &[Configuration] {
        &self.book.configurations
    }

    fn write_down(&mut self, at: usize, configuration: &Configuration) {
        let matchmakers = Matchmakers::NONE;
        let (version, membership) = (configuration.version, configuration.membership.clone());
        let one = Configuration {
            version,
            membership,
            matchmakers,
        };
        self.book.configurations.insert(at, one);
    }

    /// The candidate of `ballot`, in its life `asker`, is about to use `configuration`. If it `leads`
    /// already, it has just made that in this lower ballot.
    pub fn handle_match(
        &mut self,
        ballot: Ballot,
        asker: Incarnation,
        leads: Ballot,
        configuration: &Configuration,
    ) -> Match<'_> {
        if self.stopped.is_some() && !mutated(Mutation::StoppedMatches) {
            return Match::Stopped;
        }
        let version = configuration.version;
        let newest = self.book.configurations.last();
        // A node that lost its memory may draw a ballot of its former life once more.
        let is_again =
            asker != Incarnation::ANY && (ballot, asker) == (self.book.highest, self.book.asker);
        let is_lower =
            !is_again && ballot <= self.book.highest && !mutated(Mutation::LowerBallotMatched);
        let is_stale = (version < self.book.garbage
            || newest.is_some_and(|one| version < one.version))
            && !mutated(Mutation::StaleConfigurationMatched);
        // What a leader made before another was elected must not come to light after it.
        let is_late = !is_again
            && leads != Ballot::NONE
            && self.book.highest > leads
            && !mutated(Mutation::LateConfigurationMatched);
        if ballot == Ballot::NONE || is_lower || is_stale || is_late {
            return Match::Refused {
                highest: self.book.highest,
            };
        }
        if let Err(at) = self.book.place(version) {
            if self.book.configurations.len() >= MAX_CONFIGURATIONS {
                return Match::Full;
            }
            self.write_down(at, configuration);
        }
        if !is_again {
            self.book.before = self.book.highest;
            (self.book.highest, self.book.asker) = (ballot, asker);
        }
        Match::Matched {
            before: self.book.before,
            garbage: self.book.garbage,
            configurations: &self.book.configurations,
        }
    }

    /// A leader's configuration of this version took over: nothing can be chosen any more by an
    /// older one, and what was is safe with it. A ballot that was matched with an older one
    /// meanwhile has no majority: matchmakers that knew the newer one have refused it.
    ///
    /// False if it was stopped: what it told before would not say so.
    #[must_use]
    pub fn collect(&mut self, version: Ballot) -> bool {
        if self.stopped.is_some() {
            return false;
        }
        self.book.garbage = self.book.garbage.max(version);
        let garbage = self.book.garbage;
        self.book
            .configurations
            .retain(|one| one.version >= garbage);
        true
    }

    /// Whether the decree's ballot of `asker` may go on here; if not, the one that is ahead.
    fn follow(&mut self, asker: Asker) -> Result<&mut Decree, Ballot> {
        let decree = self.stopped.get_or_insert(Decree {
            promised: asker,
            accepted: None,
        });
        if asker != decree.promised {
            if asker.0 <= decree.promised.0 && !mutated(Mutation::LowerBallotAppoints) {
                return Err(decree.promised.0);
            }
            decree.promised = asker;
        }
        Ok(decree)
    }

    /// Phase 1 of the decree that says who is to follow: matches nothing any more, and tells what it
    /// has written down and whom it has accepted.
    ///
    /// # Errors
    /// Another ballot of the decree is ahead.
    pub fn stop(&mut self, ballot: Ballot, asker: Incarnation) -> Result<(), Ballot> {
        self.follow((ballot, asker)).map(|_| ())
    }

    /// Phase 2: accepts `next`.
    ///
    /// # Errors
    /// Another ballot of the decree is ahead.
    pub fn appoint(
        &mut self,
        ballot: Ballot,
        asker: Incarnation,
        next: Matchmakers,
    ) -> Result<(), Ballot> {
        self.follow((ballot, asker))?.accepted = Some((ballot, next));
        Ok(())
    }

    /// Keeps what the matchmakers of a later generation are to begin with, should they be appointed.
    /// Whoever tells it has stopped a majority of those before, so one such book is as good as
    /// another. False if they are none of the next ones.
    #[must_use]
    pub fn take_over(&mut self, generation: u32, book: Book) -> bool {
        let known = self.successor.as_ref().map_or(self.generation, |one| one.0);
        let is_next = generation > self.generation && generation >= known;
        if is_next {
            self.successor = Some((generation, book));
        }
        is_next
    }

    /// The matchmakers of this generation are appointed, whether it is one of them or not.
    pub fn begin(&mut self, generation: u32) {
        if generation <= self.generation {
            return;
        }
        let (mut book, mut successor) = (Book::default(), None);
        match self.successor.take() {
            Some((next, handed_over)) if next == generation => book = handed_over,
            Some(later) if later.0 > generation => successor = Some(later),
            _ => {}
        }
        *self = Self {
            generation,
            book,
            stopped: None,
            successor,
        };
    }

    /// Writes it behind what is there.
    pub fn append(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.generation.to_be_bytes());
        let has = [
            self.stopped.is_some(),
            self.successor.is_some(),
            false,
            false,
        ];
        out.extend(has.map(u8::from));
        self.book.append(out);
        if let Some(decree) = &self.stopped {
            let (accepted, next) = match &decree.accepted {
                Some((ballot, next)) => (*ballot, next),
                None => (Ballot::NONE, &Matchmakers::NONE),
            };
            out.extend_from_slice(&decree.promised.0.0.to_be_bytes());
            out.extend_from_slice(&accepted.0.to_be_bytes());
            out.extend_from_slice(&decree.promised.1.0.to_be_bytes());
            out.extend_from_slice(&[0; 4]);
            next.append(out);
        }
        if let Some((generation, book)) = &self.successor {
            out.extend_from_slice(&generation.to_be_bytes());
            book.append(out);
        }
    }

    /// What was written. `None` if it is broken.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        let (generation, has) = head.split_first_chunk::<4>()?;
        let [is_stopped, has_successor, ..] = *has.first_chunk::<4>()?;
        let (book, mut rest) = Book::read(rest)?;
        let mut matchmaker = Self {
            generation: u32::from_be_bytes(*generation),
            book,
            ..Self::default()
        };
        if is_stopped != 0 {
            let (head, behind) = rest.split_first_chunk::<DECREE_BYTES>()?;
            let (words, halves) = head.as_chunks::<8>().0.split_at(2);
            let word = |at: usize| words.get(at).copied().map(u64::from_be_bytes).map(Ballot);
            let asker = u32::from_be_bytes(*halves.first()?.first_chunk()?);
            let (next, behind) = Matchmakers::read(behind)?;
            let accepted = word(1)?;
            matchmaker.stopped = Some(Decree {
                promised: (word(0)?, Incarnation(asker)),
                accepted: (accepted != Ballot::NONE).then_some((accepted, next)),
            });
            rest = behind;
        }
        if has_successor != 0 {
            let (generation, behind) = rest.split_first_chunk::<4>()?;
            let (book, behind) = Book::read(behind)?;
            matchmaker.successor = Some((u32::from_be_bytes(*generation), book));
            rest = behind;
        }
        rest.is_empty().then_some(matchmaker)
    }
}

/// What a node keeps of one group's configurations, durably.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Register {
    /// The newest that it knows, with the newest matchmakers that it knows.
    pub newest: Configuration,
    /// What it remembers for others, if it is a matchmaker.
    pub matchmaker: Matchmaker,
}

impl Register {
    /// Of a member of the cluster that has just formed.
    pub fn formed(membership: crate::quorum::Membership) -> Self {
        let newest = Configuration::formed(membership);
        Self {
            matchmaker: Matchmaker::new(&newest),
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

    /// Whether members or matchmakers have changed since the cluster formed.
    pub fn has_changed(&self) -> bool {
        self.newest.version != Ballot::NONE
            || self.newest.matchmakers.generation > Matchmakers::FIRST
    }

    /// The newest configuration that it knows in either part: what a candidate goes on with.
    pub fn latest(&self) -> Configuration {
        let matched = self.matchmaker.book.configurations.last();
        let matched = matched.filter(|one| one.version > self.newest.version);
        Configuration {
            matchmakers: self.newest.matchmakers.clone(),
            ..matched.unwrap_or(&self.newest).clone()
        }
    }

    /// Goes by these matchmakers from here on, if they are newer. False if they are not.
    pub fn know(&mut self, matchmakers: &Matchmakers) -> bool {
        let is_newer = matchmakers.generation > self.newest.matchmakers.generation;
        if is_newer {
            self.newest.matchmakers = matchmakers.clone();
            self.matchmaker.begin(matchmakers.generation);
        }
        is_newer
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
            Match::Refused { .. } | Match::Full | Match::Stopped => None,
        }
    }

    #[test]
    fn a_candidate_is_told_every_configuration_that_is_not_garbage() {
        let mut matchmaker = Matchmaker::new(&formed());
        let next = configuration(5, &[1, 2, 4]);
        let mut ask = |round, with: &Configuration| {
            versions(matchmaker.handle_match(ballot(round), LIFE, Ballot::NONE, with))
        };
        assert_eq!(ask(4, &formed()), Some(vec![0]));
        assert_eq!(ask(5, &next), Some(vec![0, 5]));
        assert_eq!(ask(6, &next), Some(vec![0, 5]));
        assert!(matchmaker.collect(next.version));
        assert_eq!(
            versions(matchmaker.handle_match(ballot(7), LIFE, Ballot::NONE, &next)),
            Some(vec![5])
        );
    }

    #[test]
    fn a_ballot_at_or_below_a_matched_one_is_refused() {
        let mut matchmaker = Matchmaker::new(&formed());
        let mut ask = |round, life| {
            matches!(
                matchmaker.handle_match(ballot(round), life, Ballot::NONE, &formed()),
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
    fn what_a_leader_made_is_refused_once_another_was_matched_above_it() {
        let mut matchmaker = Matchmaker::new(&formed());
        let (made, found) = (configuration(4, &[1, 2, 4]), configuration(4, &[1, 2, 4]));
        let lower = Ballot::NONE;
        assert!(versions(matchmaker.handle_match(ballot(6), LIFE, lower, &formed())).is_some());
        assert_eq!(
            matchmaker.handle_match(ballot(9), LIFE, ballot(4), &made),
            Match::Refused { highest: ballot(6) },
            "ballot 6 leads by another one"
        );
        assert_eq!(
            matchmaker.configurations().len(),
            1,
            "and is told of no other"
        );
        assert_eq!(
            versions(matchmaker.handle_match(ballot(9), LIFE, lower, &found)),
            Some(vec![0, 4]),
            "a candidate found it"
        );
        let next = configuration(9, &[1, 2, 5]);
        for _ in 0..2 {
            assert_eq!(
                versions(matchmaker.handle_match(ballot(10), LIFE, ballot(9), &next)),
                Some(vec![0, 4, 9])
            );
        }
    }

    #[test]
    fn an_older_configuration_is_refused_and_the_newer_one_told() {
        let mut register = Register::formed(formed().membership);
        let matchmaker = &mut register.matchmaker;
        let next = configuration(5, &[1, 2, 4]);
        assert!(versions(matchmaker.handle_match(ballot(5), LIFE, Ballot::NONE, &next)).is_some());
        let refused = Match::Refused { highest: ballot(5) };
        assert_eq!(
            matchmaker.handle_match(ballot(6), LIFE, Ballot::NONE, &formed()),
            refused
        );
        assert!(matchmaker.collect(next.version));
        assert_eq!(
            matchmaker.handle_match(ballot(6), LIFE, Ballot::NONE, &formed()),
            refused
        );
        let told = register.latest();
        assert_eq!(
            (told.version, told.membership),
            (next.version, next.membership)
        );
    }

    #[test]
    fn the_ballot_before_is_told_as_often_as_it_is_asked() {
        let mut matchmaker = Matchmaker::new(&formed());
        let mut before =
            |round| match matchmaker.handle_match(ballot(round), LIFE, Ballot::NONE, &formed()) {
                Match::Matched { before, .. } => before,
                other => panic!("{other:?}"),
            };
        assert_eq!(before(4), Ballot::NONE);
        assert_eq!(before(6), ballot(4));
        assert_eq!(before(6), ballot(4));
    }

    #[test]
    fn there_is_room_for_so_many_configurations() {
        let mut matchmaker = Matchmaker::new(&formed());
        for round in 1..MAX_CONFIGURATIONS as u64 {
            let next = configuration(round, &[1, 2, 3]);
            assert!(
                versions(matchmaker.handle_match(ballot(round), LIFE, Ballot::NONE, &next))
                    .is_some()
            );
        }
        let more = configuration(9, &[1, 2, 3]);
        assert_eq!(
            matchmaker.handle_match(ballot(9), LIFE, Ballot::NONE, &more),
            Match::Full
        );
        assert!(matchmaker.collect(ballot(2)));
        assert!(versions(matchmaker.handle_match(ballot(9), LIFE, Ballot::NONE, &more)).is_some());
    }

    #[test]
    fn what_is_kept_is_read_again() {
        let mut register = Register::formed(formed().membership);
        let next = configuration(5, &[1, 2, 4]);
        register
            .matchmaker
            .handle_match(ballot(5), LIFE, Ballot::NONE, &next);
        assert!(register.matchmaker.collect(ballot(3)));
        register.newest = next;
        let book = register.matchmaker.book().clone();
        for step in 0..4 {
            match step {
                0 => {}
                1 => assert!(register.matchmaker.take_over(3, book.clone())),
                2 => assert_eq!(register.matchmaker.stop(ballot(6), LIFE), Ok(())),
                _ => {
                    let appointed = set(2, &[4, 5, 6]);
                    let accepted = register.matchmaker.appoint(ballot(6), LIFE, appointed);
                    assert_eq!(accepted, Ok(()));
                }
            }
            let mut bytes = register.to_bytes();
            assert_eq!(Register::read(&bytes).as_ref(), Some(&register));
            bytes.pop();
            assert_eq!(Register::read(&bytes), None, "step {step}");
        }
    }

    fn set(generation: u32, nodes: &[u16]) -> Matchmakers {
        Matchmakers {
            generation,
            ..configuration(0, nodes).matchmakers
        }
    }

    #[test]
    fn who_was_stopped_matches_nothing_and_forgets_nothing() {
        let mut matchmaker = Matchmaker::new(&formed());
        let next = configuration(5, &[1, 2, 4]);
        assert!(versions(matchmaker.handle_match(ballot(5), LIFE, Ballot::NONE, &next)).is_some());
        assert_eq!(matchmaker.stop(ballot(6), LIFE), Ok(()));
        let book = matchmaker.book().clone();
        for round in [5, 7] {
            let answer = matchmaker.handle_match(ballot(round), LIFE, Ballot::NONE, &next);
            assert_eq!(answer, Match::Stopped, "round {round}");
        }
        assert!(!matchmaker.collect(next.version));
        assert_eq!(*matchmaker.book(), book, "that is what it has told");
    }

    #[test]
    fn successors_are_accepted_as_in_paxos() {
        let mut matchmaker = Matchmaker::new(&formed());
        let (ours, theirs) = (set(2, &[4, 5, 6]), set(2, &[7, 8, 9]));
        assert_eq!(matchmaker.stop(ballot(6), LIFE), Ok(()));
        assert_eq!(
            matchmaker.appoint(ballot(5), LIFE, theirs.clone()),
            Err(ballot(6))
        );
        let other = Incarnation(8);
        assert_eq!(
            matchmaker.appoint(ballot(6), other, theirs.clone()),
            Err(ballot(6)),
            "that is another life of the node"
        );
        assert_eq!(matchmaker.accepted(), None);
        assert_eq!(matchmaker.appoint(ballot(6), LIFE, ours.clone()), Ok(()));
        assert_eq!(matchmaker.stop(ballot(7), LIFE), Ok(()));
        assert_eq!(matchmaker.accepted(), Some(&(ballot(6), ours)));
        assert_eq!(matchmaker.appoint(ballot(7), LIFE, theirs.clone()), Ok(()));
        assert_eq!(matchmaker.accepted(), Some(&(ballot(7), theirs)));
    }

    #[test]
    fn who_follows_begins_with_what_was_handed_over() {
        let mut former = Matchmaker::new(&formed());
        let next = configuration(5, &[1, 2, 4]);
        assert!(versions(former.handle_match(ballot(5), LIFE, Ballot::NONE, &next)).is_some());
        let mut book = Book::default();
        book.merge(former.book().clone());
        let mut matchmaker = Matchmaker::default();
        assert!(matchmaker.take_over(2, book));
        assert!(!matchmaker.take_over(1, Book::default()), "that is over");
        matchmaker.begin(1);
        assert!(matchmaker.configurations().is_empty());
        matchmaker.begin(2);
        matchmaker.begin(2);
        let again = matchmaker.handle_match(ballot(5), LIFE, Ballot::NONE, &next);
        assert!(
            matches!(again, Match::Refused { .. }),
            "what was matched before belongs to those before: {again:?}"
        );
        assert_eq!(
            versions(matchmaker.handle_match(ballot(6), LIFE, Ballot::NONE, &next)),
            Some(vec![0, 5])
        );
        assert!(!matchmaker.take_over(2, Book::default()), "it is at it");
    }

    #[test]
    fn what_several_have_told_is_all_of_it() {
        let mut books = [0, 1].map(|_| Matchmaker::new(&formed()));
        let (one, other) = (configuration(4, &[1, 2, 4]), configuration(5, &[1, 2, 5]));
        assert!(versions(books[0].handle_match(ballot(4), LIFE, Ballot::NONE, &one)).is_some());
        assert!(versions(books[1].handle_match(ballot(5), LIFE, Ballot::NONE, &other)).is_some());
        assert!(books[0].collect(one.version));
        let mut merged = Book::default();
        for one in books {
            merged.merge(one.book);
        }
        let known = |book: &Book| -> Vec<u64> {
            let versions = book.configurations().iter();
            versions.map(|one| one.version.round()).collect()
        };
        assert_eq!(known(&merged), [4, 5]);
        assert_eq!(
            (merged.highest(), merged.garbage()),
            (ballot(5), one.version)
        );
    }
}
