//! From one memory to another: seal, copy, go on.
//!
//! Engines that step the same words need none of this, since they exclude each other record by
//! record. It is for votes that move, from a file into a kernel's maps or back.

use super::*;
use core::hint::spin_loop;

/// Tries to take one lock. A step holds it for less than a microsecond; a machine that is stolen
/// from meanwhile may take milliseconds.
const TRIES: u32 = 10_000_000;

/// A record stays locked: its writer died, and an opener has to restore it first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "seal the region: the record at byte {at} stays locked; stop the engine that steps it, then \
     open it again"
)]
pub struct Locked {
    /// Where the record begins.
    pub at: usize,
}

impl Layout {
    /// What a region was made with, by the words of its header.
    ///
    /// # Errors
    /// It is no region, of another version, or damaged.
    pub fn of_header(header: &[AtomicU64]) -> Result<(Self, Birth), OpenError> {
        let word = |at: usize| {
            header
                .get(at)
                .map_or(0, |word| word.load(Ordering::Acquire))
        };
        check_header(header)?;
        let layout = Self::new(
            word(header::GROUPS) as u16,
            word(header::WINDOW),
            word(header::VALUE_BYTES) as usize,
        );
        let birth = Birth {
            cluster: word(header::CLUSTER),
            node: NodeId(word(header::NODE) as u16),
            nonce: word(header::NONCE),
            boot: u128::from(word(header::BOOT_HIGH)) << 64 | u128::from(word(header::BOOT_LOW)),
        };
        Ok((layout.map_err(|_| HEADER_DAMAGED)?, birth))
    }
}

impl<W: AsRef<[AtomicU64]>> Region<W> {
    /// A region that an engine may be stepping at this moment, to look at it or to seal it. Nothing
    /// is written, and torn records stay as they are.
    ///
    /// # Errors
    /// As for [`Layout::of_header`]; or `words` are too few or too many.
    pub fn beside(words: W) -> Result<Self, OpenError> {
        let (layout, birth) = Layout::of_header(words.as_ref())?;
        check_size(words.as_ref(), &layout)?;
        Ok(Self {
            words,
            layout,
            birth,
        })
    }

    /// How often these votes were handed over.
    pub fn generation(&self) -> u64 {
        self.word(header::GENERATION)
    }

    /// Whether any group is sealed.
    pub fn is_sealed(&self) -> bool {
        self.groups().any(|at| {
            let state = self.word(at + group::STATE) & 0xffff_ffff;
            state == group::SEALED || self.word(at + group::PROMISED) == Ballot::SEALED.0
        })
    }

    /// Stops all groups from voting, and waits until no step is under way. Engines may be live.
    ///
    /// The promise is exchanged for the maximum, which no ballot reaches, and saved beside. A step
    /// that had read it before still holds its record's lock, so each lock is taken once.
    ///
    /// # Errors
    /// A lock is never released. The group votes no more even then.
    pub fn seal(&self) -> Result<(), Locked> {
        for at in self.groups() {
            loop {
                let promised = self.word(at + group::PROMISED);
                if promised == Ballot::SEALED.0 {
                    break;
                }
                // Saved first: whoever finds the group sealed finds what it had promised.
                self.exchange(at, group::SAVED, promised);
                if self
                    .compare_exchange(at, group::PROMISED, promised, Ballot::SEALED.0)
                    .is_ok()
                {
                    break;
                }
            }
            let epoch = self.word(at + group::STATE) >> 32;
            self.exchange(at, group::STATE, group::SEALED | epoch << 32);
        }
        let entries = (0..self.layout.entries()).filter_map(|index| self.layout.entry_at(index));
        self.groups().chain(entries).try_for_each(|at| {
            // Groups and ring entries both begin with their sequence word.
            self.pass_lock(at)
        })
    }

    fn pass_lock(&self, at: usize) -> Result<(), Locked> {
        if mutated(Mutation::SealWaitsForNobody) {
            return Ok(());
        }
        for _ in 0..TRIES {
            let sequence = self.word(at);
            if sequence & 1 == 0 && self.compare_exchange(at, 0, sequence, sequence | 1).is_ok() {
                self.exchange(at, 0, sequence);
                return Ok(());
            }
            spin_loop();
        }
        Err(Locked { at: at * 8 })
    }

    /// Lets sealed groups vote again: in a copy, or because none was made. The caller proves that
    /// no later generation exists.
    pub fn resume(&self) {
        for number in 0..self.layout.groups {
            let Some(at) = self.layout.group_at(GroupId(number)) else {
                continue;
            };
            if self.word(at + group::PROMISED) == Ballot::SEALED.0 {
                // A step that the seal overtook has stored its vote and raised a promise that was
                // the maximum already.
                let base = u64::from(number) * self.layout.window;
                let ring = (base..base + self.layout.window)
                    .filter_map(|index| self.layout.entry_at(index));
                let votes = ring.map(|at| self.vote_head(at).1);
                let decided =
                    at + group::BODIES + published(self.word(at + group::LOCK)) * group::BODY_WORDS;
                let promised = votes
                    .chain(
                        [group::BALLOT, group::LEASE_BALLOT].map(|word| self.word(decided + word)),
                    )
                    .filter(|_| !mutated(Mutation::ResumeForgetsVotes))
                    .fold(self.word(at + group::SAVED), u64::max);
                self.exchange(at, group::PROMISED, promised);
            }
            let epoch = self.word(at + group::STATE) >> 32;
            self.exchange(at, group::STATE, group::ACTIVE | epoch << 32);
        }
    }

    /// Copies a sealed region into blank `words` as the next generation, which may vote. This one
    /// must not be resumed once the copy does.
    ///
    /// # Errors
    /// As for [`Region::create`].
    ///
    /// # Panics
    /// If this region is not sealed.
    pub fn copy_into<V: AsRef<[AtomicU64]>>(&self, words: V) -> Result<Region<V>, OpenError> {
        assert!(self.is_sealed(), "only sealed votes are copied");
        check_size(words.as_ref(), &self.layout)?;
        check_blank(words.as_ref(), &self.layout)?;
        let copy = Region {
            words,
            layout: self.layout,
            birth: self.birth,
        };
        for at in (0..self.layout.words()).filter(|at| *at != header::MAGIC) {
            copy.store(at, 0, self.word(at));
        }
        copy.store(header::GENERATION, 0, self.generation() + 1);
        copy.resume();
        // Last: a copy that was not finished is blank but for its records, and is thrown away.
        copy.exchange(header::MAGIC, 0, MAGIC);
        Ok(copy)
    }

    fn groups(&self) -> impl Iterator<Item = usize> {
        let layout = self.layout;
        (0..layout.groups).filter_map(move |number| layout.group_at(GroupId(number)))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::acceptor::{Acceptor, Drop, Effect, Step};
    use crate::memory::Buffers;
    use crate::wire::{Header, Kind};
    use std::vec::Vec;

    const LAYOUT: Result<Layout, LayoutError> = Layout::new(2, 4, 64);
    const BIRTH: Birth = Birth {
        cluster: 1,
        node: NodeId(9),
        nonce: 5,
        boot: 6,
    };
    const LEADER: NodeId = NodeId(2);

    fn words() -> Vec<AtomicU64> {
        let layout = LAYOUT.expect("valid layout");
        (0..layout.words()).map(|_| AtomicU64::new(0)).collect()
    }

    fn region() -> Region<Vec<AtomicU64>> {
        let layout = LAYOUT.expect("valid layout");
        Region::create(words(), layout, BIRTH, Epoch(1), 7).expect("blank")
    }

    fn ask<W: AsRef<[AtomicU64]>>(region: &Region<W>, kind: Kind, round: u64, slot: u64) -> Step {
        let acceptor = Acceptor {
            node: BIRTH.node,
            incarnation: BIRTH.incarnation(),
            layout: *region.layout(),
        };
        let header = Header {
            ballot: Ballot::new(round, LEADER),
            slot: Slot(slot),
            epoch: Epoch(1),
            length: 8,
            ..Header::new(kind, GroupId(1), LEADER)
        };
        let mut buffers = Buffers {
            request: &[slot as u8; 8],
            reply: &mut [0; 64],
        };
        acceptor.step(region, 0, &header, &mut buffers)
    }

    fn has_voted(step: Step) -> bool {
        matches!(step, Step::Reply(_, Effect::Voted))
    }

    #[test]
    fn a_sealed_region_answers_nobody_and_its_copy_goes_on() {
        let old = region();
        assert!(has_voted(ask(&old, Kind::Accept, 3, 1)));
        old.seal().expect("nobody holds a lock");
        assert!(old.is_sealed());
        for kind in [Kind::Prepare, Kind::Accept, Kind::Decide] {
            assert_eq!(
                ask(&old, kind, 9, 1),
                Step::Dropped(Drop::Sealed),
                "{kind:?}"
            );
        }
        let new = old.copy_into(words()).expect("blank");
        assert_eq!((old.generation(), new.generation()), (0, 1));
        let view = view(&new, GroupId(1)).expect("a group");
        assert_eq!(view.promised, Ballot::new(3, LEADER));
        let mut value = [0; 64];
        let found = vote(&new, GroupId(1), Slot(1), 64, &mut value);
        assert_eq!(found, Some((Ballot::new(3, LEADER), 8)));
        assert_eq!(value[..8], [1; 8]);
        // The promise binds the copy, and higher ballots are voted in.
        assert!(!has_voted(ask(&new, Kind::Accept, 2, 2)));
        assert!(has_voted(ask(&new, Kind::Accept, 3, 2)));
        let (words, layout) = (new.words, new.layout);
        Region::open(words, layout, BIRTH).expect("it is whole");
    }

    #[test]
    fn a_seal_twice_or_half_done_keeps_the_promise() {
        let region = region();
        ask(&region, Kind::Prepare, 3, 0);
        let at = region.group(GroupId(1)).expect("a group");
        // Died between the two words.
        region.exchange(at, group::SAVED, Ballot::new(3, LEADER).0);
        assert!(!region.is_sealed());
        ask(&region, Kind::Prepare, 4, 0);
        region.seal().expect("nobody holds a lock");
        region.seal().expect("nobody holds a lock");
        region.resume();
        let view = view(&region, GroupId(1)).expect("a group");
        assert_eq!(view.promised, Ballot::new(4, LEADER));
        assert!(!region.is_sealed());
    }

    #[test]
    fn a_vote_that_the_seal_overtook_binds_who_resumes() {
        let region = region();
        ask(&region, Kind::Accept, 3, 1);
        let at = region.group(GroupId(1)).expect("a group");
        // The step that votes in a higher ballot read the promise before it was exchanged, and
        // raised it afterwards, which the maximum hides.
        region.seal().expect("nobody holds a lock");
        region.exchange(at, group::SAVED, Ballot::new(1, LEADER).0);
        region.resume();
        let view = view(&region, GroupId(1)).expect("a group");
        assert_eq!(view.promised, Ballot::new(3, LEADER));
    }

    #[test]
    fn a_seal_passes_no_lock_that_somebody_holds() {
        let region = region();
        let records = [region.group(GroupId(1)), region.entry(5)];
        for at in records.map(|at| at.expect("a record")) {
            let sequence = region.load(at, 0);
            region.exchange(at, 0, sequence | 1);
            assert_eq!(region.seal(), Err(Locked { at: at * 8 }));
            // It votes no more even so, and what it had promised is kept.
            assert!(region.is_sealed());
            region.exchange(at, 0, sequence);
        }
        assert_eq!(region.seal(), Ok(()));
    }

    #[test]
    fn only_blank_words_of_the_same_length_take_a_copy() {
        let old = region();
        old.seal().expect("nobody holds a lock");
        let used = region();
        ask(&used, Kind::Prepare, 1, 0);
        assert!(old.copy_into(used.words).is_err());
        assert!(old.copy_into(Vec::new()).is_err());
    }
}
