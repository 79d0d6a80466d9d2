//! Acceptors that vote elsewhere than in this process, on memory that this process maps.
//!
//! Such an engine and the software engine step the same region record by record, so either may
//! serve any packet at any time: a packet that the other does not take comes up here and finds the
//! same votes. Handing over is therefore no more than attaching or detaching; see
//! `docs/architecture.md`.

use std::fmt::Debug;

/// Why an engine cannot vote, with what mends it.
pub type Refusal = Box<dyn std::error::Error + Send + Sync>;

/// An engine that answers for a node's acceptor before its packets reach the node.
pub trait Offload: Debug + Send {
    /// A stable name for reports.
    fn engine(&self) -> &'static str;

    /// How it is attached: a stable name for reports.
    fn mode(&self) -> &'static str;

    /// The interface that it is to sit on.
    fn interface(&self) -> &str;

    /// What ties it there: a stable name for reports.
    fn attach(&self) -> &'static str;

    /// What becomes of it when this process dies: a stable name for reports.
    fn on_host_death(&self) -> &'static str;

    /// Has it vote from now on.
    ///
    /// # Errors
    /// It cannot; the packets go on coming up.
    fn install(&mut self) -> Result<(), Refusal>;

    /// Whether it votes: somebody else may have detached it, or its interface may be gone.
    fn is_installed(&self) -> bool;

    /// Has it vote no more. Its votes stay where they are.
    ///
    /// # Errors
    /// The system refuses.
    fn remove(&mut self) -> Result<(), Refusal>;

    /// What it has counted, as names and numbers, since its maps were made.
    fn counters(&self) -> Vec<(&'static str, u64)>;
}
