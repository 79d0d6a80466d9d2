//! What the log drives: the embedding program's state.

use crate::Slot;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// A deterministic machine: equal commands in equal order give equal states and equal replies.
pub trait StateMachine {
    /// Applies one command. `time_ms` is the log's clock (Unix milliseconds, never falling), the
    /// only time that a machine may look at. The reply is appended to `reply`, which is empty; it
    /// may be at most [`crate::envelope::MAX_REPLY_BYTES`] long.
    ///
    /// A command that makes no sense is answered with an error in the machine's own language: it
    /// is already chosen, so it cannot be refused.
    fn apply(&mut self, time_ms: u64, command: &[u8], reply: &mut Vec<u8>);

    /// Answers a query without changing anything, as of the log's clock `time_ms`.
    fn query(&self, time_ms: u64, query: &[u8], reply: &mut Vec<u8>);

    /// The earliest log time in Unix milliseconds at which the machine wants the clock moved
    /// although no command came (keys that expire), if any.
    fn wake_ms(&self) -> Option<u64> {
        None
    }

    /// The log's clock has moved to `time_ms`, before any command at that time is applied.
    fn clock(&mut self, time_ms: u64);

    /// A frozen view of the state, cheap to take: it is written out on another thread.
    fn freeze(&self) -> Box<dyn Frozen>;

    /// Replaces the state with what [`Frozen::next_chunk`] wrote.
    ///
    /// # Errors
    /// Names what is wrong with the bytes; the state is then unchanged.
    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError>;

    /// Takes the place of `former`, which is behind: whoever reads that one beside the log reads this
    /// one from here on.
    fn succeed(&mut self, former: &mut Self)
    where
        Self: Sized,
    {
        let _ = former;
    }
}

/// A frozen state that can be written out piece by piece.
pub trait Frozen: Send {
    /// Appends the next piece to `out`; false when there is none left.
    fn next_chunk(&mut self, out: &mut Vec<u8>) -> bool;
}

/// A snapshot cannot be restored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("restore state: {0}")]
pub struct RestoreError(pub &'static str);

/// A snapshot's place in the log: everything up to and including `slot` is in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SnapshotId {
    /// The last slot in it.
    pub slot: Slot,
    /// Its length in bytes.
    pub bytes: u64,
    /// The CRC-32C of all of it.
    pub crc: u32,
}

impl SnapshotId {
    /// A number for a cluster that begins with this snapshot, never zero.
    pub fn origin(&self) -> u64 {
        (u64::from(self.crc) << 32 | self.slot.0 & 0xffff_ffff).max(1)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Remembers at which times it was told of anything; its state is how many commands there were.
    #[derive(Debug, Default)]
    pub(crate) struct Diary {
        pub(crate) times_ms: Vec<u64>,
        pub(crate) commands: u64,
    }

    struct Page(Option<u64>);

    impl StateMachine for Diary {
        fn apply(&mut self, time_ms: u64, _: &[u8], _: &mut Vec<u8>) {
            self.times_ms.push(time_ms);
            self.commands += 1;
        }

        fn query(&self, _: u64, _: &[u8], _: &mut Vec<u8>) {}

        fn clock(&mut self, time_ms: u64) {
            self.times_ms.push(time_ms);
        }

        fn freeze(&self) -> Box<dyn Frozen> {
            Box::new(Page(Some(self.commands)))
        }

        fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
            let commands = bytes.first_chunk().ok_or(RestoreError("cut off"))?;
            self.commands = u64::from_be_bytes(*commands);
            Ok(())
        }
    }

    impl Frozen for Page {
        fn next_chunk(&mut self, out: &mut Vec<u8>) -> bool {
            self.0
                .take()
                .map(|commands| out.extend_from_slice(&commands.to_be_bytes()))
                .is_some()
        }
    }
}
