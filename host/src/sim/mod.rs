//! The deterministic simulator: whole clusters in virtual time, decided by one number.
//!
//! The real nodes, clients, sessions and the real key-value machine run over a network, disks and
//! clocks that are made up. `docs/simulation.md` says what that covers and how to read a failure.

mod bare;
mod client;
mod clock;
mod coverage;
mod disk;
mod fault;
mod invariants;
mod machine;
mod memory;
mod nemesis;
mod network;
mod runner;
mod scenario;
mod shrink;
mod snapshots;
mod trace;
mod world;

pub use coverage::Coverage;
pub use fault::{FaultKind, FaultKinds};
pub use invariants::{Invariant, Violation};
pub use runner::{Seeds, Tally, run_seeds};
pub use shrink::{Shrunk, shrink};

use consensus::simulation::{self, Mutation};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a run is to do beside what its seed decides.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Watch this invariant only.
    pub only: Option<Invariant>,
    /// Commit this defect; it takes the feature `simulation`.
    pub mutation: Option<Mutation>,
    /// Kinds of faults that are left out.
    pub without: FaultKinds,
    /// Have the fault points inside the code strike; it takes the feature `simulation`.
    pub fault_points: bool,
    /// Print what happens.
    pub trace: bool,
}

/// What became of a seed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Events in all.
    pub events: u64,
    /// Packets that arrived.
    pub deliveries: u64,
    /// Slots chosen.
    pub commits: u64,
    /// Times that another came to lead a group.
    pub leader_changes: u64,
    /// Virtual time in nanoseconds.
    pub simulated_ns: u64,
    /// Stands for everything that happened: equal seeds have equal ones.
    pub hash: u64,
    /// What did not hold.
    pub violation: Option<Violation>,
    /// What it went through.
    pub coverage: Coverage,
}

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Has a panic inside a world say which seed it was: a build that aborts has no other chance to.
pub fn name_seed_of_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if let Some(seed) = SEED.get() {
            eprintln!("REPLAY WITH: nearwire sim --seed {seed} --trace");
        }
        before(panic);
    }));
}

/// Runs the world of `seed`.
pub fn run(seed: u64, options: &Options) -> Outcome {
    SEED.set(Some(seed));
    simulation::mutate(options.mutation);
    let result = catch_unwind(AssertUnwindSafe(|| world::World::new(seed, options).run()));
    simulation::mutate(None);
    SEED.set(None);
    result.unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default();
        Outcome {
            seed,
            events: 0,
            deliveries: 0,
            commits: 0,
            leader_changes: 0,
            simulated_ns: 0,
            hash: 0,
            violation: Some(Violation {
                invariant: Invariant::Assertion,
                what: text,
            }),
            coverage: Coverage::default(),
        }
    })
}
