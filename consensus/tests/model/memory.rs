//! An acceptor's memory in normal form, and the shipped step on it.
//!
//! Between two steps nobody holds a lock. Then a sequence word says nothing but which of two bodies
//! is published, and the other body is read by no step before it is written. So the normal form
//! keeps the published bodies alone. A step is given a region whose other bodies are full of lies,
//! with either body published; that it cannot tell is asserted where `Words::step` is told to.

use crate::packet::{BALLOTS, Packet, VALUE_LENGTH};
use nearwire_consensus::acceptor::{Acceptor, Step};
use nearwire_consensus::memory::{Memory, Payload};
use nearwire_consensus::region::{entry, group};
use nearwire_consensus::wire::Header;
use nearwire_consensus::{GroupId, NodeId};
use std::cell::Cell;

/// The largest window that a world may have.
pub(crate) const MAX_WINDOW: usize = 4;
const BODY_WORDS: usize = entry::VALUE + crate::VALUE_BYTES / 8;
const ENTRY_WORDS: usize = entry::BODIES + 2 * BODY_WORDS;
/// What stands in words that no step may read: a later vote than any.
const LIE: u64 = BALLOTS << 16 | 1;

/// What a ring entry holds. All zero: nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Vote {
    pub(crate) slot: u8,
    pub(crate) round: u8,
    pub(crate) value: u8,
}

/// The decided record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Decided {
    pub(crate) round: u8,
    pub(crate) from: u8,
    pub(crate) upto: u8,
}

/// The words of one group and its ring.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Words {
    pub(crate) promised: u8,
    pub(crate) highest: u8,
    pub(crate) trim: u8,
    pub(crate) decided: Decided,
    pub(crate) ring: [Vote; MAX_WINDOW],
}

impl Words {
    /// Memory that nothing has happened to yet.
    pub(crate) fn blank() -> Self {
        Self {
            promised: 0,
            highest: 0,
            trim: 1,
            decided: Decided::default(),
            ring: [Vote::default(); MAX_WINDOW],
        }
    }

    /// Steps the memory with a request; gives the reply.
    pub(crate) fn step(
        &mut self,
        acceptor: &Acceptor,
        request: &Packet,
        both_bodies: bool,
    ) -> Option<(Header, u8)> {
        let run = |published| {
            let words = Scratch::new(self, acceptor.layout.window(), published);
            let mut payload = Value(request.value);
            let step = acceptor.step(&words, 1, &request.header(), &mut payload);
            (step, payload.0, words.read())
        };
        let (step, value, after) = run(0);
        if both_bodies {
            assert_eq!(
                (step, value, after),
                run(1),
                "the normal form hides something"
            );
        }
        *self = after;
        match step {
            Step::Reply(header, _) => Some((header, if header.length == 0 { 0 } else { value })),
            Step::Silent(_) | Step::Dropped(_) => None,
        }
    }
}

/// A value that is one byte, repeated.
struct Value(u8);

impl Payload for Value {
    fn word(&self, _: usize, _: usize) -> Option<u64> {
        Some(u64::from_ne_bytes([self.0; VALUE_LENGTH]))
    }

    fn has_room(&self, _: usize) -> bool {
        true
    }

    fn put(&mut self, index: usize, _: usize, word: u64) -> Option<()> {
        assert_eq!(index, 0, "values are one word long");
        self.0 = word as u8;
        assert_eq!(
            word,
            u64::from_ne_bytes([self.0; VALUE_LENGTH]),
            "half a value"
        );
        Some(())
    }
}

/// The words written out as a region has them.
struct Scratch {
    window: u64,
    group: [Cell<u64>; group::WORDS],
    ring: [[Cell<u64>; ENTRY_WORDS]; MAX_WINDOW],
}

#[derive(Clone, Copy)]
enum At {
    Group,
    Entry(usize),
    Peer,
}

impl Scratch {
    fn new(words: &Words, window: u64, published: usize) -> Self {
        let blank = Self {
            window,
            group: [const { Cell::new(LIE) }; group::WORDS],
            ring: [const { [const { Cell::new(LIE) }; ENTRY_WORDS] }; MAX_WINDOW],
        };
        let ballot = |round| crate::packet::ballot(round).0;
        let set = |word: usize, value: u64| blank.group[word].set(value);
        set(group::LOCK, 2 * published as u64);
        set(group::STATE, group::ACTIVE | 1 << 32);
        set(group::PROMISED, ballot(words.promised));
        set(group::HIGHEST, words.highest.into());
        set(group::TRIM, words.trim.into());
        set(group::WINDOW, window);
        set(group::BASE, 0);
        set(group::LEASE_NS, 0);
        let body = group::BODIES + published * group::BODY_WORDS;
        set(body + group::BALLOT, ballot(words.decided.round));
        set(body + group::FROM, words.decided.from.into());
        set(body + group::UPTO, words.decided.upto.into());
        set(body + group::LEASE_BALLOT, 0);
        set(body + group::LEASE_UNTIL, 0);
        for (words, vote) in blank.ring.iter().zip(&words.ring) {
            let body = entry::BODIES + published * BODY_WORDS;
            words[entry::LOCK].set(2 * published as u64);
            words[body + entry::SLOT].set(vote.slot.into());
            words[body + entry::BALLOT].set(ballot(vote.round));
            let length = if vote.value == 0 { 0 } else { VALUE_LENGTH };
            words[body + entry::LENGTH].set(length as u64);
            words[body + entry::VALUE].set(u64::from_ne_bytes([vote.value; VALUE_LENGTH]));
        }
        blank
    }

    fn read(&self) -> Words {
        let published = |lock: u64| {
            assert_eq!(lock & 1, 0, "a lock is left taken");
            lock as usize >> 1 & 1
        };
        let get = |word: usize| self.group[word].get();
        let body = group::BODIES + published(get(group::LOCK)) * group::BODY_WORDS;
        Words {
            promised: crate::packet::round(get(group::PROMISED)),
            highest: get(group::HIGHEST) as u8,
            trim: get(group::TRIM) as u8,
            decided: Decided {
                round: crate::packet::round(get(body + group::BALLOT)),
                from: get(body + group::FROM) as u8,
                upto: get(body + group::UPTO) as u8,
            },
            ring: std::array::from_fn(|index| {
                let words = &self.ring[index];
                let body = entry::BODIES + published(words[entry::LOCK].get()) * BODY_WORDS;
                let value = words[body + entry::VALUE].get() as u8;
                Vote {
                    slot: words[body + entry::SLOT].get() as u8,
                    round: crate::packet::round(words[body + entry::BALLOT].get()),
                    value: if words[body + entry::LENGTH].get() == 0 {
                        0
                    } else {
                        value
                    },
                }
            }),
        }
    }

    fn word(&self, at: At, word: usize) -> Option<&Cell<u64>> {
        match at {
            At::Group => self.group.get(word),
            At::Entry(index) => self.ring[index].get(word),
            At::Peer => None,
        }
    }

    fn change(&self, at: At, word: usize, change: impl FnOnce(u64) -> u64) -> u64 {
        let Some(word) = self.word(at, word) else {
            return 0;
        };
        let before = word.get();
        word.set(change(before));
        before
    }
}

impl Memory for Scratch {
    type At = At;

    fn group(&self, group: GroupId) -> Option<At> {
        (group == crate::packet::GROUP).then_some(At::Group)
    }

    fn entry(&self, index: u64) -> Option<At> {
        (index < self.window).then_some(At::Entry(index as usize))
    }

    fn peer(&self, _: NodeId) -> Option<At> {
        Some(At::Peer)
    }

    fn load(&self, at: At, word: usize) -> u64 {
        self.change(at, word, |value| value)
    }

    fn store(&self, at: At, word: usize, value: u64) {
        self.change(at, word, |_| value);
    }

    fn compare_exchange(&self, at: At, word: usize, current: u64, new: u64) -> Result<u64, u64> {
        let found = self.change(at, word, |value| if value == current { new } else { value });
        if found == current {
            Ok(found)
        } else {
            Err(found)
        }
    }

    fn exchange(&self, at: At, word: usize, new: u64) -> u64 {
        self.change(at, word, |_| new)
    }

    fn fetch_add(&self, at: At, word: usize, add: u64) -> u64 {
        self.change(at, word, |value| value.wrapping_add(add))
    }
}
