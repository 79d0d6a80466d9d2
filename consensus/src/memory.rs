//! The one way in which a step touches memory.
//!
//! The trait is as narrow as the narrowest engine: a BPF program reaches records by map lookup and
//! has volatile loads and stores, compare-exchange, exchange and fetch-add on aligned words.
//! Implementations: [`crate::region::Region`] (core or loom atomics), [`stepping`] (a model that
//! stops before every access), and the maps of the eBPF programs.

use crate::simulation::{Fault, Mutation, mutated, strikes};
use crate::{GroupId, NodeId};

/// Aligned 64-bit words in records that are reached by lookup.
///
/// What the step counts on, whatever the machine:
///
/// - every read-modify-write is a full barrier, towards a later [`Memory::load`] as well;
/// - a load stays before everything that follows it;
/// - a [`Memory::store`] is seen by nobody who has not got every earlier read-modify-write of its
///   thread to see. Readers without the lock depend on it: whoever reads a word of a body that is
///   being written again must find the sequence word changed.
///
/// In Rust's terms that is SeqCst for loads and read-modify-writes, and Release for stores: a
/// SeqCst exchange and an Acquire load of another word may change places. On x86 this costs
/// nothing; on arm64 the loads are `ldar`, the stores `stlr`. A BPF program has plain loads and
/// stores, and atomics that the kernel compiles to full barriers.
pub trait Memory {
    /// A record that a lookup found.
    type At: Copy;

    /// The record of a group.
    fn group(&self, group: GroupId) -> Option<Self::At>;
    /// The record of a ring entry, counted from the start of the slots.
    fn entry(&self, index: u64) -> Option<Self::At>;
    /// The record of a peer.
    fn peer(&self, node: NodeId) -> Option<Self::At>;

    /// Says that a word will be wanted soon: where memory is far away, it may be fetched meanwhile.
    #[inline(always)]
    fn touch(&self, _: Self::At, _: usize) {}

    /// Reads a word.
    fn load(&self, at: Self::At, word: usize) -> u64;
    /// Writes a word.
    fn store(&self, at: Self::At, word: usize, value: u64);
    /// Replaces `current` by `new`; the value found instead otherwise.
    ///
    /// # Errors
    /// The word held another value, which is returned.
    fn compare_exchange(
        &self,
        at: Self::At,
        word: usize,
        current: u64,
        new: u64,
    ) -> Result<u64, u64>;
    /// Writes a word and returns the one before.
    fn exchange(&self, at: Self::At, word: usize, new: u64) -> u64;
    /// Adds to a word and returns the one before.
    fn fetch_add(&self, at: Self::At, word: usize, add: u64) -> u64;
}

/// The value of the packet that a step works on, as words in the machine's byte order.
///
/// The last word of a value may be shorter than eight bytes: it is asked for by itself.
pub trait Payload {
    /// The `bytes` bytes, one to eight, from word `index` of the request's value on, with zeros
    /// behind them. `None` if they are not there: the request is dropped.
    fn word(&self, index: usize, bytes: usize) -> Option<u64>;
    /// Whether the reply may carry a value of `length` bytes. If not, none is put, and whoever has
    /// the payload does not send the reply.
    fn has_room(&self, length: usize) -> bool;
    /// Sets `bytes` bytes, one to eight, from word `index` of the reply's value on; the rest of `word`
    /// is zero. `None` if there is no room for them.
    fn put(&mut self, index: usize, bytes: usize, word: u64) -> Option<()>;
}

/// A request's value and room for the reply's, in ordinary memory.
#[derive(Debug)]
pub struct Buffers<'a> {
    /// The request's value.
    pub request: &'a [u8],
    /// Where the reply's value goes: as long as the region's value limit, rounded up to eight.
    pub reply: &'a mut [u8],
}

impl Payload for Buffers<'_> {
    #[inline]
    fn word(&self, index: usize, bytes: usize) -> Option<u64> {
        let rest = self.request.get(index * 8..)?;
        if bytes == 8 {
            return rest.first_chunk().copied().map(u64::from_ne_bytes);
        }
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(rest.get(..bytes)?) {
            *to = *from;
        }
        Some(u64::from_ne_bytes(word))
    }

    /// There is room for whatever the region holds.
    #[inline]
    fn has_room(&self, _: usize) -> bool {
        true
    }

    #[inline]
    fn put(&mut self, index: usize, _: usize, word: u64) -> Option<()> {
        let room = self.reply.get_mut(index * 8..)?.first_chunk_mut::<8>()?;
        *room = word.to_ne_bytes();
        Some(())
    }
}

/// Raises a word to `to`, with a full barrier even when nothing changes, in at most
/// [`RAISE_TRIES`] exchanges. Returns what the word holds at the end, at least `to`, or `None` if
/// others kept changing it: the packet is then dropped.
#[inline(always)]
pub(crate) fn raise<M: Memory>(memory: &M, at: M::At, word: usize, to: u64) -> Option<u64> {
    if strikes(Fault::RaiseContended) {
        return None;
    }
    if mutated(Mutation::WordsRaisedByStore) {
        let current = memory.load(at, word);
        if current < to {
            memory.store(at, word, to);
        }
        return Some(current.max(to));
    }
    let mut current = memory.load(at, word);
    for _ in 0..RAISE_TRIES {
        if current >= to {
            // The barrier that the exchange would have been. Words only rise: it is no less.
            return Some(memory.fetch_add(at, word, 0));
        }
        match memory.compare_exchange(at, word, current, to) {
            Ok(_) => return Some(to),
            Err(found) => current = found,
        }
    }
    None
}

/// How often `raise` tries.
pub const RAISE_TRIES: usize = 4;

/// Takes a sequence word: the even value before, or `None` if another holds it.
#[inline(always)]
pub(crate) fn lock<M: Memory>(memory: &M, at: M::At, word: usize) -> Option<u64> {
    let sequence = memory.load(at, word);
    if sequence & 1 != 0 || strikes(Fault::RecordBusy) {
        return None;
    }
    memory
        .compare_exchange(at, word, sequence, sequence | 1)
        .ok()
}

/// Gives a sequence word back with the published body unchanged.
#[inline(always)]
pub(crate) fn release<M: Memory>(memory: &M, at: M::At, word: usize, sequence: u64) {
    memory.exchange(at, word, sequence);
}

/// Gives a sequence word back and publishes the other body.
#[inline(always)]
pub(crate) fn publish<M: Memory>(memory: &M, at: M::At, word: usize, sequence: u64) {
    // Four leaves the same body published.
    let by = if mutated(Mutation::PublishedBodyWritten) {
        4
    } else {
        2
    };
    memory.exchange(at, word, sequence.wrapping_add(by));
}

/// Which of the two bodies a sequence word publishes.
#[inline(always)]
pub(crate) const fn published(sequence: u64) -> usize {
    (sequence >> 1) as usize & 1
}

/// Which of the two bodies whoever holds the word may write.
#[inline(always)]
pub(crate) fn spare(sequence: u64) -> usize {
    if mutated(Mutation::PublishedBodyWritten) {
        return published(sequence);
    }
    published(sequence) ^ 1
}

#[cfg(feature = "std")]
pub mod stepping {
    //! A memory that stops before every access, so that a checker can interleave real steps at
    //! that grain. A thread of the model is a step run from its start again and again: the results
    //! of its past accesses are replayed, the next one is performed, and the run is cut off there.

    use super::Memory;
    use crate::region::Layout;
    use crate::{GroupId, NodeId};
    use core::cell::{Cell, RefCell};
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::vec::Vec;

    /// One thread of the model: the results of the accesses that it has made.
    #[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
    pub struct Thread {
        results: Vec<u64>,
    }

    /// What one access of a thread led to.
    #[derive(Debug, PartialEq, Eq)]
    pub enum Progress<T> {
        /// The access was made; the thread goes on.
        Running,
        /// The step ended without a further access.
        Done(T),
    }

    struct Cut;

    /// The memory that a step sees while a thread of the model is run.
    #[derive(Debug)]
    pub struct SteppingMemory<'a> {
        layout: Layout,
        words: RefCell<&'a mut Vec<u64>>,
        past: &'a [u64],
        next: Cell<usize>,
        fresh: Cell<Option<u64>>,
    }

    impl Thread {
        /// Makes the thread's next access on `words` (a region of `layout`), or finds that its
        /// step is over. `step` must be the same for every call and depend on nothing else.
        pub fn advance<T>(
            &mut self,
            layout: Layout,
            words: &mut Vec<u64>,
            step: impl FnOnce(&SteppingMemory<'_>) -> T,
        ) -> Progress<T> {
            let memory = SteppingMemory {
                layout,
                words: RefCell::new(words),
                past: &self.results,
                next: Cell::new(0),
                fresh: Cell::new(None),
            };
            let outcome = catch_unwind(AssertUnwindSafe(|| step(&memory)));
            let fresh = memory.fresh.get();
            match outcome {
                Ok(done) if fresh.is_none() => Progress::Done(done),
                Ok(_) => {
                    self.results.extend(fresh);
                    Progress::Running
                }
                Err(cut) if cut.is::<Cut>() => {
                    self.results.extend(fresh);
                    Progress::Running
                }
                Err(panic) => resume_unwind(panic),
            }
        }
    }

    impl SteppingMemory<'_> {
        fn access(&self, perform: impl FnOnce(&mut Vec<u64>) -> u64) -> u64 {
            let index = self.next.get();
            self.next.set(index + 1);
            if let Some(result) = self.past.get(index) {
                return *result;
            }
            if self.fresh.get().is_some() {
                // `resume_unwind` runs no panic hook: cutting a run off prints nothing.
                resume_unwind(std::boxed::Box::new(Cut));
            }
            let result = perform(&mut self.words.borrow_mut());
            self.fresh.set(Some(result));
            result
        }

        fn word(&self, at: usize, word: usize, change: impl FnOnce(u64) -> u64) -> u64 {
            self.access(|words| {
                let Some(slot) = words.get_mut(at + word) else {
                    return 0;
                };
                let before = *slot;
                *slot = change(before);
                before
            })
        }
    }

    impl Memory for SteppingMemory<'_> {
        type At = usize;

        fn group(&self, group: GroupId) -> Option<usize> {
            self.layout.group_at(group)
        }

        fn entry(&self, index: u64) -> Option<usize> {
            self.layout.entry_at(index)
        }

        fn peer(&self, node: NodeId) -> Option<usize> {
            self.layout.peer_at(node)
        }

        fn load(&self, at: usize, word: usize) -> u64 {
            self.word(at, word, |value| value)
        }

        fn store(&self, at: usize, word: usize, value: u64) {
            self.word(at, word, |_| value);
        }

        fn compare_exchange(
            &self,
            at: usize,
            word: usize,
            current: u64,
            new: u64,
        ) -> Result<u64, u64> {
            let found = self.word(at, word, |value| if value == current { new } else { value });
            if found == current {
                Ok(found)
            } else {
                Err(found)
            }
        }

        fn exchange(&self, at: usize, word: usize, new: u64) -> u64 {
            self.word(at, word, |_| new)
        }

        fn fetch_add(&self, at: usize, word: usize, add: u64) -> u64 {
            self.word(at, word, |value| value.wrapping_add(add))
        }
    }
}
