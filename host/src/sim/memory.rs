//! A region that can be watched, and that can die in the middle of a step.

use consensus::memory::Memory;
use consensus::region::Region;
use consensus::sync::AtomicU64;
use consensus::{GroupId, NodeId};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// The words of a region. They outlive the process that steps them.
pub(super) type Words = Rc<[AtomicU64]>;

/// Blank memory.
pub(super) fn blank(words: usize) -> Words {
    (0..words).map(|_| AtomicU64::new(0)).collect()
}

/// One life of a process, as its memory and its disk see it: what it touched, and when it dies.
#[derive(Debug, Default)]
pub(super) struct Life {
    /// Records that were written to since the watcher last looked, by where they start.
    touched: RefCell<Vec<usize>>,
    /// Writes that are left to it, if it is to die in the middle of a step.
    fuse: Cell<Option<u32>>,
    dead: Cell<bool>,
}

impl Life {
    /// The process dies after so many more writes to its region.
    pub(super) fn light_fuse(&self, writes: u32) {
        self.fuse.set(Some(writes));
    }

    /// The process does not die any more.
    pub(super) fn put_out_fuse(&self) {
        self.fuse.set(None);
    }

    /// Whether the process is about to die.
    pub(super) fn is_doomed(&self) -> bool {
        self.fuse.get().is_some()
    }

    /// Whether the process is dead: nothing that it does has an effect any more.
    pub(super) fn is_dead(&self) -> bool {
        self.dead.get()
    }

    /// Moves the records that were touched into `into`.
    pub(super) fn take_touched(&self, into: &mut Vec<usize>) {
        into.append(&mut self.touched.borrow_mut());
    }

    fn permits(&self, at: usize) -> bool {
        if self.dead.get() {
            return false;
        }
        if let Some(left) = self.fuse.get() {
            if left == 0 {
                self.dead.set(true);
                return false;
            }
            self.fuse.set(Some(left - 1));
        }
        let mut touched = self.touched.borrow_mut();
        if touched.last() != Some(&at) {
            touched.push(at);
        }
        true
    }
}

/// The region of a process.
#[derive(Debug)]
pub(super) struct Watched {
    region: Region<Words>,
    life: Rc<Life>,
}

impl Watched {
    pub(super) const fn new(region: Region<Words>, life: Rc<Life>) -> Self {
        Self { region, life }
    }
}

impl Memory for Watched {
    type At = usize;

    #[inline]
    fn group(&self, group: GroupId) -> Option<usize> {
        self.region.group(group)
    }

    #[inline]
    fn entry(&self, index: u64) -> Option<usize> {
        self.region.entry(index)
    }

    #[inline]
    fn peer(&self, node: NodeId) -> Option<usize> {
        self.region.peer(node)
    }

    #[inline]
    fn load(&self, at: usize, word: usize) -> u64 {
        self.region.load(at, word)
    }

    #[inline]
    fn store(&self, at: usize, word: usize, value: u64) {
        if self.life.permits(at) {
            self.region.store(at, word, value);
        }
    }

    #[inline]
    fn compare_exchange(&self, at: usize, word: usize, current: u64, new: u64) -> Result<u64, u64> {
        if self.life.permits(at) {
            self.region.compare_exchange(at, word, current, new)
        } else {
            // The dead go through the motions.
            Ok(current)
        }
    }

    #[inline]
    fn exchange(&self, at: usize, word: usize, new: u64) -> u64 {
        if self.life.permits(at) {
            self.region.exchange(at, word, new)
        } else {
            self.region.load(at, word)
        }
    }

    #[inline]
    fn fetch_add(&self, at: usize, word: usize, add: u64) -> u64 {
        // A barrier changes nothing.
        if add == 0 || self.life.permits(at) {
            self.region.fetch_add(at, word, add)
        } else {
            self.region.load(at, word)
        }
    }
}
