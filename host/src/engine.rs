//! The software engine: steps a region in this process, wherever its words are.

use crate::kill_point::kill_point;
use crate::mapping::Mapping;
use consensus::memory::Memory;
use consensus::region::{self, Region};
use consensus::{GroupId, NodeId};

/// A region that this process steps, with named places to die at.
#[derive(Debug)]
pub struct Software {
    region: Region<Mapping>,
}

impl Software {
    /// Steps `region`.
    pub const fn new(region: Region<Mapping>) -> Self {
        Self { region }
    }
}

impl Memory for Software {
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
        kill_point("step.before-store");
        self.region.store(at, word, value);
    }

    #[inline]
    fn compare_exchange(&self, at: usize, word: usize, current: u64, new: u64) -> Result<u64, u64> {
        let result = self.region.compare_exchange(at, word, current, new);
        if word == region::entry::LOCK && new == current | 1 && result.is_ok() {
            kill_point("step.locked");
        }
        result
    }

    #[inline]
    fn exchange(&self, at: usize, word: usize, new: u64) -> u64 {
        kill_point("step.before-release");
        let before = self.region.exchange(at, word, new);
        kill_point("step.released");
        before
    }

    #[inline]
    fn fetch_add(&self, at: usize, word: usize, add: u64) -> u64 {
        self.region.fetch_add(at, word, add)
    }
}
