//! Whatever takes bytes from outside, fed with arbitrary ones: never a panic, never a hang, never
//! something that was not there.
//!
//! Each target is a function of bytes. Its unit test replays the inputs of `corpus/<target>` and
//! tries others for a moment, or for as long as it is told: see `CONTRIBUTING.md`. Where bytes
//! without a form would be refused at the first check, a target takes them for damage to something
//! whole.
//!
//! bolero 0.13 was tried for this: on stable Rust its unit tests know random inputs of up to 64
//! bytes only, and never change what is in the corpus, so that they hardly get behind that check.

mod config;
mod entries;
mod harness;
mod journal;
mod node;
mod packets;
mod region;
mod resp;
mod snapshot;

use harness::fuzz;

/// An input, taken piece by piece; zeros when it is over.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> u64 {
        u64::from_be_bytes(std::array::from_fn(|_| self.byte()))
    }

    fn below(&mut self, bound: usize) -> usize {
        let number = u32::from_be_bytes(std::array::from_fn(|_| self.byte()));
        number as usize % bound.max(1)
    }

    fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// A number that is often one of interest.
    fn odd_number(&mut self) -> u64 {
        match self.byte() {
            0..100 => u64::from(self.byte()),
            100..120 => u64::MAX - u64::from(self.byte()),
            120..140 => 1 << (self.byte() % 64),
            140..160 => (1 << 48) - u64::from(self.byte()),
            160..180 => u64::from(self.byte()) << 16 | u64::from(self.byte() % 4),
            _ => self.number(),
        }
    }

    /// How many pieces of damage are done: a few, so that most is still whole.
    fn pieces(&mut self) -> impl Iterator<Item = u8> + use<> {
        let most = if self.byte().is_multiple_of(8) { 32 } else { 4 };
        0..self.byte() % most + 1
    }

    /// Damages bytes: a few changed, moved, or cut off.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in self.pieces() {
            if self.is_over() || bytes.is_empty() {
                break;
            }
            let at = self.below(bytes.len());
            match self.byte() % 8 {
                0..4 => bytes[at] ^= self.byte(),
                4 => bytes[at] = self.byte(),
                5 => {
                    let from = self.below(bytes.len());
                    let count = usize::from(self.byte()) * 16;
                    let count = count.min(bytes.len() - from).min(bytes.len() - at);
                    bytes.copy_within(from..from + count, at);
                }
                6 => {
                    let end = (at + usize::from(self.byte()) * 16).min(bytes.len());
                    bytes[at..end].fill(0);
                }
                _ => {
                    if self.byte().is_multiple_of(16) {
                        bytes.truncate(at);
                    }
                }
            }
        }
    }
}
