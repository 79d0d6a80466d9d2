//! What each invariant of the simulator is worth by itself.

use consensus::simulation::Mutation;

/// A defect that an invariant catches while every other one is switched off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alone {
    /// The invariant's name.
    pub(crate) invariant: &'static str,
    /// What it catches.
    pub(crate) mutation: Mutation,
    /// Within so many seeds, from seed 0 on.
    pub(crate) seeds: u64,
}

const fn alone(invariant: &'static str, mutation: Mutation, seeds: u64) -> Alone {
    Alone {
        invariant,
        mutation,
        seeds,
    }
}

/// Every invariant, in the order of `nearwire::sim::Invariant::ALL`.
pub(crate) const ALONE: &[Alone] = &[
    alone("agreement", Mutation::DecidedAhead, 5),
    alone("one-value-per-ballot", Mutation::PublishedBodyWritten, 40),
    alone("promise-monotonicity", Mutation::TrimStored, 20),
    alone("vote-without-value", Mutation::VoteNotStored, 5),
    alone("ring-overwrite", Mutation::KeptSlotOverwritten, 20),
    alone("decided-record", Mutation::DecidedMixed, 20),
    alone("incarnation-fencing", Mutation::ForeignLifeCounted, 20),
    alone("quorum-intersection", Mutation::QuorumsDisjoint, 100),
    alone("matchmaking", Mutation::GarbageEarly, 20),
    alone("promotion", Mutation::LearnerPromotedEarly, 100),
    alone("state-machine-safety", Mutation::LessonSkipsSlot, 20),
    alone("exactly-once", Mutation::NewestReplyGiven, 20),
    alone("durability", Mutation::ReplyBeforeFlush, 40),
    alone("linearizability", Mutation::LessonSkipsSlot, 40),
    alone("liveness", Mutation::EqualBallotRefused, 5),
    // A world that panics, whatever is checked, is caught by what the code asserts of itself.
    alone("assertion", Mutation::LearnsWhileFetching, 100),
];
