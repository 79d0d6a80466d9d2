//! What a simulator may change about the core from outside: deliberate defects, and faults at
//! points where only the code knows that they may happen.
//!
//! Without the feature `simulation` the questions below are `false` before the optimiser starts, so
//! that they cost nothing. With it they ask the calling thread's settings. `NEARWIRE_MUTATION`
//! names the defect that every thread of a process begins with. A BPF program has no threads and no
//! environment: built with the feature `mutations`, it commits the defect that its loader wrote into
//! the object.

use crate::random::Random;

/// Declares the defects in one place: what each breaks, its variant, its name.
macro_rules! mutations {
    ($($(#[doc = $breaks:literal])+ $variant:ident = $name:literal,)+) => {
        /// A deliberate defect. Each is one that a careful implementer could commit; a check that
        /// finds none of them is worth nothing.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum Mutation {
            $($(#[doc = $breaks])+ $variant,)+
        }

        impl Mutation {
            /// Every defect, in the order of the table that `cargo xtask mutants` prints.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Its name on command lines and in tables.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// What it does against the rules, in a sentence.
            pub const fn breaks(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($breaks),+).trim_ascii(),)+
                }
            }
        }
    };
}

mutations! {
    // The acceptor's step.
    /// Accept does not compare its ballot with the promise.
    PromiseNotChecked = "promise-not-checked",
    /// Accept refuses the very ballot that was promised.
    EqualBallotRefused = "equal-ballot-refused",
    /// A second Accept of a ballot overwrites its first vote.
    EqualBallotOverwrites = "equal-ballot-overwrites",
    /// Accept answers before its vote is published, and never publishes it.
    VoteNotStored = "vote-not-stored",
    /// A vote does not raise the promise to its ballot.
    VotePromisesNothing = "vote-promises-nothing",
    /// Accept raises the promise only after it let go of the entry.
    PromisedRaisedLate = "promised-raised-late",
    /// Accept reads the promise before it takes the entry's lock.
    PromisedReadBeforeLock = "promised-read-before-lock",
    /// Accept reads the promise before it raises the highest slot.
    PromisedReadBeforeHighest = "promised-read-before-highest",
    /// Accept does not raise the highest slot.
    HighestNotRaised = "highest-not-raised",
    /// Accept takes a slot beyond the window, over one that is not trimmed.
    KeptSlotOverwritten = "kept-slot-overwritten",
    /// Accept and Fetch do not take the entry's lock.
    EntryUnlocked = "entry-unlocked",
    /// A record is written over the body that readers are shown.
    PublishedBodyWritten = "published-body-written",
    /// Prepare raises the promise by a plain store, so that it can go back.
    PromiseStored = "promise-stored",
    /// Words that may only rise are raised by a load and a plain store.
    WordsRaisedByStore = "words-raised-by-store",
    /// Prepare reads the highest slot before it raises the promise.
    HighestReadBeforePromise = "highest-read-before-promise",
    /// Prepare does not take the group's lock.
    PrepareUnlocked = "prepare-unlocked",
    /// Prepare promises although another's lease lasts.
    LeaseIgnored = "lease-ignored",
    /// A Decide that renews no lease ends the one there is.
    LeaseDropped = "lease-dropped",
    /// Fetch reads the entry without its lock.
    FetchUnlocked = "fetch-unlocked",
    /// Fetch answers a ballot that was not promised.
    FetchUnpromised = "fetch-unpromised",
    /// Fetch reads the trim before it takes the entry's lock.
    TrimReadBeforeLock = "trim-read-before-lock",
    /// Fetch answers Empty for an entry that a writer left half-written.
    TornIsEmpty = "torn-is-empty",
    /// Fetch answers Empty for an entry that holds a later slot.
    OverwrittenIsEmpty = "overwritten-is-empty",
    /// Fetch answers for a slot that is trimmed as if it were kept.
    TrimmedIsServed = "trimmed-is-served",
    /// A higher ballot's Decide keeps `from` and `upto` of the record before.
    DecidedMixed = "decided-mixed",
    /// A Decide below the promise is recorded.
    DecidedByOldBallot = "decided-by-old-ballot",
    /// A Decide does not raise the promise to its ballot.
    DecidePromisesNothing = "decide-promises-nothing",
    /// Decide sets the trim by a plain store, so that it can go back.
    TrimStored = "trim-stored",
    /// An acceptor serves requests that were meant for another incarnation.
    ForeignRequestServed = "foreign-request-served",
    /// An acceptor serves requests of a membership older than its group's.
    OldEpochServed = "old-epoch-served",
    /// A sealed group is stepped.
    SealedServed = "sealed-served",

    // What an engine makes of a packet.
    /// A fragment is taken for a whole datagram.
    FragmentTaken = "fragment-taken",
    /// An IPv4 header is taken whatever its checksum.
    HeaderUnchecked = "header-unchecked",
    /// A request in the ballot of sealed groups is taken.
    SealedBallotTaken = "sealed-ballot-taken",
    /// The tag leaves out the value.
    ValueUntagged = "value-untagged",

    // Who reads beside an engine.
    /// A reader without the lock does not look at the sequence word again.
    ReaderLooksOnce = "reader-looks-once",

    // The region.
    /// The opener publishes what a dead writer left half-written.
    TornPublished = "torn-published",
    /// A region of another incarnation is opened as this one.
    OtherLifeOpened = "other-life-opened",
    /// A seal does not wait for the steps that are under way.
    SealWaitsForNobody = "seal-waits-for-nobody",
    /// A sealed region goes on with the promise that was saved, whatever its votes are.
    ResumeForgetsVotes = "resume-forgets-votes",

    // Who counts.
    /// Quorums of which the sizes sum up to the number of members are taken.
    QuorumsDisjoint = "quorums-disjoint",
    /// A reply counts whatever incarnation it carries.
    ForeignLifeCounted = "foreign-life-counted",
    /// A reply counts whatever epoch it carries.
    OldEpochCounted = "old-epoch-counted",
    /// A voter that answers again counts as another.
    VoterCountedTwice = "voter-counted-twice",
    /// The leader counts a refusal as a vote.
    NackCounted = "nack-counted",
    /// A promise of another ballot counts.
    OldPromiseCounted = "old-promise-counted",
    /// A vote of another ballot counts.
    OldVoteCounted = "old-vote-counted",
    /// A member that shows another incarnation is pinned anew.
    PinReplaced = "pin-replaced",
    /// Nodes that begin with different snapshots form a cluster.
    OriginIgnored = "origin-ignored",

    // Configurations.
    /// A matchmaker takes a ballot below one that it has matched.
    LowerBallotMatched = "lower-ballot-matched",
    /// A matchmaker takes a configuration older than one that it knows.
    StaleConfigurationMatched = "stale-configuration-matched",
    /// A matchmaker takes what a leader made although another was matched above that leader's ballot.
    LateConfigurationMatched = "late-configuration-matched",
    /// A matchmaker answers before what it answers is written down, and never writes it.
    MatchmakerForgets = "matchmaker-forgets",
    /// A candidate asks no quorum of the earlier configurations that it was told of.
    EarlierQuorumNotAsked = "earlier-quorum-not-asked",
    /// A leader goes on in its next ballot although others were matched in between.
    BypassUnchecked = "bypass-unchecked",
    /// A leader calls earlier configurations garbage by one that it found, as if it had made that.
    FoundIsSettled = "found-is-settled",
    /// Earlier configurations are called garbage as soon as a leader leads.
    GarbageEarly = "garbage-early",
    /// Earlier configurations are called garbage before the acceptors of the new one know a trim.
    GarbageUntrimmed = "garbage-untrimmed",
    /// A matchmaker that was stopped goes on matching.
    StoppedMatches = "stopped-matches",
    /// Matchmakers are appointed before a majority of them knows what those before them did.
    NotHandedOver = "not-handed-over",
    /// Whoever replaces the matchmakers appoints others than those that one of them has accepted.
    AppointmentOverlooked = "appointment-overlooked",
    /// A stopped matchmaker accepts successors in a ballot below the one that stopped it.
    LowerBallotAppoints = "lower-ballot-appoints",
    /// A learner is made a voter before it has caught up.
    LearnerPromotedEarly = "learner-promoted-early",
    /// The votes of learners count.
    LearnerCounted = "learner-counted",
    /// Quorums that may meet in witnesses only are taken.
    WitnessesMeet = "witnesses-meet",

    // Phase 1.
    /// A candidate goes on with one promise less than a quorum.
    PhaseOneShort = "phase-one-short",
    /// A slot is taken over with one answer less than a quorum.
    FetchedShort = "fetched-short",
    /// The last promise says how far to fetch, not the highest.
    HighestOfLastPromise = "highest-of-last-promise",
    /// Of several votes the one of the lowest ballot is proposed again.
    LowestVoteAdopted = "lowest-vote-adopted",
    /// A value found in one slot is proposed in another.
    RecoveredValueMoved = "recovered-value-moved",
    /// A slot without votes is passed over, so that later values move down.
    HoleNotFilled = "hole-not-filled",
    /// A candidate fetches slots that were trimmed instead of learning them.
    TrimNotCaughtUp = "trim-not-caught-up",
    /// A candidate that has its promises still takes over what others teach.
    LearnsWhileFetching = "learns-while-fetching",
    /// A round is not reserved before it is used, so that a later life may use it.
    BallotReused = "ballot-reused",

    // Phase 2, reads and trim.
    /// A value counts as chosen with one vote less than a quorum.
    PhaseTwoShort = "phase-two-short",
    /// The leader announces slots that are still under way.
    DecidedAhead = "decided-ahead",
    /// An acknowledgement of an earlier send confirms a later barrier.
    StaleAckCounted = "stale-ack-counted",
    /// A query is answered without waiting for its barrier.
    ReadUnconfirmed = "read-unconfirmed",
    /// The leader answers by a lease that has run out.
    LeaseOutlived = "lease-outlived",
    /// After a restart from its journal an acceptor promises although a lease may run.
    LeaseForgotten = "lease-forgotten",
    /// A follower reads by one answer less than a quorum.
    ReadQuorumShort = "read-quorum-short",
    /// A follower answers before it has applied what a quorum may have chosen.
    ReadUnapplied = "read-unapplied",
    /// A follower reads by answers to what it asked before the query came.
    ReadOfOldRound = "read-of-old-round",
    /// A follower reads whatever configurations the matchmakers know of.
    ReadConfigurationUnchecked = "read-configuration-unchecked",
    /// A node does not ask what another leads although its pulse tells of other groups.
    DigestIgnored = "digest-ignored",
    /// A new leader serves before it applied what it inherited.
    ServesTooEarly = "serves-too-early",
    /// The trim follows the replica that is furthest.
    TrimPastReplicas = "trim-past-replicas",

    // Learning.
    /// A follower applies a vote of a lower ballot than the decided record's.
    LowerVoteApplied = "lower-vote-applied",
    /// A value that was taught early is applied in place of the next one.
    LessonSkipsSlot = "lesson-skips-slot",
    /// A snapshot is taken over although the state is newer.
    OlderSnapshotTaken = "older-snapshot-taken",

    // The state.
    /// A command that was applied before is applied again.
    DuplicateApplied = "duplicate-applied",
    /// A command is applied before the one that the session expects.
    GapApplied = "gap-applied",
    /// A repeated command is answered with the newest reply.
    NewestReplyGiven = "newest-reply-given",
    /// A snapshot leaves out the sessions.
    SessionsNotInSnapshot = "sessions-not-in-snapshot",
    /// The wall clock of each node moves the machine's time.
    ExpiryByLocalClock = "expiry-by-local-clock",
    /// The log's clock is set by the last entry, not the highest.
    ClockGoesBack = "clock-goes-back",

    // Journal and recovery.
    /// Under `sync` an answer leaves before its record is flushed.
    ReplyBeforeFlush = "reply-before-flush",
    /// Under `sync` a promise to this node's own leader does not wait for its flush.
    OwnPromiseUnflushed = "own-promise-unflushed",
    /// A promise is not journalled.
    PromiseNotJournalled = "promise-not-journalled",
    /// A decided record is not journalled.
    DecideNotJournalled = "decide-not-journalled",
    /// What another replica taught is not journalled.
    LessonNotJournalled = "lesson-not-journalled",
    /// What another engine voted for is applied, and no record holds it.
    KernelVoteNotJournalled = "kernel-vote-not-journalled",
    /// A process that starts journals only the last window of what its ring holds.
    RingHalfJournalled = "ring-half-journalled",
    /// A snapshot is frozen before the decided records that it rests on are journalled.
    SnapshotAheadOfJournal = "snapshot-ahead-of-journal",
    /// A replay takes a trim only from Decides that the promise admits.
    TrimNotReplayed = "trim-not-replayed",
    /// A replay applies a vote of a lower ballot than the decided record's.
    LowerVoteReplayed = "lower-vote-replayed",
    /// The journal is cut up to the trim, whatever the snapshots on the disk cover.
    CutPastSnapshot = "cut-past-snapshot",
    /// The journal reports records flushed before it writes them.
    FlushReportedEarly = "flush-reported-early",
    /// A flush that failed is tried again, and its success believed.
    FailedFlushRetried = "failed-flush-retried",
    /// A record of the journal is taken whatever its checksum.
    TornTailAccepted = "torn-tail-accepted",
    /// A snapshot is taken whatever its checksum.
    SnapshotUnchecked = "snapshot-unchecked",
    /// A piece of another node's snapshot is kept whatever its checksum.
    PieceUnchecked = "piece-unchecked",
}

impl Mutation {
    /// Those that an engine may commit which does nothing but answer packets: the first ones.
    pub fn of_engines() -> &'static [Self] {
        Self::ALL.split_at(Self::ValueUntagged as usize + 1).0
    }

    /// The defect of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|one| one.name() == name)
    }
}

/// Something that may go wrong, or go another permitted way, at a point inside the code.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Fault {
    /// A record's sequence word is found taken, as if another core stepped the region.
    RecordBusy,
    /// A word that must rise is raised by others on every try.
    RaiseContended,
    /// The journal has no room for a record.
    JournalFull,
    /// A leader forgets that it knows a command, and proposes it again.
    CommandProposedAgain,
}

impl Fault {
    /// Every fault.
    pub const ALL: &[Self] = &[
        Self::RecordBusy,
        Self::RaiseContended,
        Self::JournalFull,
        Self::CommandProposedAgain,
    ];

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RecordBusy => "record-busy",
            Self::RaiseContended => "raise-contended",
            Self::JournalFull => "journal-full",
            Self::CommandProposedAgain => "command-proposed-again",
        }
    }
}

const FAULTS: usize = Fault::ALL.len();

/// How often each fault strikes, and did.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// None in a thread that nobody injected into.
    random: Option<Random>,
    per_mille: [u16; FAULTS],
    tally: [FaultTally; FAULTS],
}

/// How often a fault could have struck, and how often it did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FaultTally {
    /// Times that its point was passed.
    pub passed: u64,
    /// Times that it struck.
    pub struck: u64,
}

impl Faults {
    /// Faults by `seed`; none strikes yet.
    pub fn new(seed: u64) -> Self {
        Self {
            random: Some(Random::new(seed)),
            ..Self::default()
        }
    }

    /// Has `fault` strike so many times in a thousand.
    #[must_use]
    pub fn with(mut self, fault: Fault, per_mille: u16) -> Self {
        self.per_mille[fault as usize] = per_mille;
        self
    }

    /// Rolls the dice for `fault` once, and counts.
    pub fn strikes(&mut self, fault: Fault) -> bool {
        let Some(random) = &mut self.random else {
            return false;
        };
        let index = fault as usize;
        let strikes = random.below(1000) < u64::from(self.per_mille[index]);
        self.tally[index].passed += 1;
        self.tally[index].struck += u64::from(strikes);
        strikes
    }

    /// How often `fault` could have struck, and did.
    pub fn tally(&self, fault: Fault) -> FaultTally {
        self.tally[fault as usize]
    }
}

/// Whether this build asks at all.
pub const IS_COMPILED_IN: bool = cfg!(feature = "simulation");

/// Whether this thread commits `mutation`.
#[inline(always)]
#[must_use]
pub fn mutated(mutation: Mutation) -> bool {
    #[cfg(feature = "simulation")]
    return hooks::mutated(mutation);
    #[cfg(all(feature = "mutations", not(feature = "simulation")))]
    return loaded::mutated(mutation);
    #[cfg(not(any(feature = "mutations", feature = "simulation")))]
    {
        let _ = mutation;
        false
    }
}

/// Waits where a defect has read `value` too early. Between steps on several processors that has to
/// last longer than the accesses themselves, or nothing ever comes in between; a checker that
/// interleaves accesses needs no such thing.
#[inline(always)]
pub(crate) fn linger(value: u64) {
    #[cfg(all(feature = "mutations", not(feature = "simulation")))]
    loaded::linger(value);
    #[cfg(not(all(feature = "mutations", not(feature = "simulation"))))]
    let _ = value;
}

/// Whether `fault` happens here and now.
#[inline(always)]
#[must_use]
pub fn strikes(fault: Fault) -> bool {
    #[cfg(feature = "simulation")]
    return hooks::strikes(fault);
    #[cfg(not(feature = "simulation"))]
    {
        let _ = fault;
        false
    }
}

/// What this thread commits.
#[must_use]
pub fn mutation() -> Option<Mutation> {
    #[cfg(feature = "simulation")]
    return hooks::MUTATION.get();
    #[cfg(not(feature = "simulation"))]
    None
}

/// Has this thread commit `mutation` from here on, or none.
pub fn mutate(mutation: Option<Mutation>) {
    #[cfg(feature = "simulation")]
    hooks::MUTATION.set(mutation);
    #[cfg(not(feature = "simulation"))]
    let _ = mutation;
}

/// Has faults strike this thread from here on.
pub fn inject(faults: &Faults) {
    #[cfg(feature = "simulation")]
    hooks::FAULTS.set(faults.clone());
    #[cfg(not(feature = "simulation"))]
    let _ = faults;
}

/// What struck this thread since [`inject`]; nothing does from here on.
pub fn faults() -> Faults {
    #[cfg(feature = "simulation")]
    return hooks::FAULTS.take();
    #[cfg(not(feature = "simulation"))]
    Faults::default()
}

#[cfg(feature = "simulation")]
mod hooks {
    use super::{Fault, Faults, Mutation};
    use core::cell::{Cell, RefCell};
    use std::thread_local;

    /// The environment variable that names the defect of a process.
    const VARIABLE: &str = "NEARWIRE_MUTATION";

    thread_local! {
        pub(super) static MUTATION: Cell<Option<Mutation>> = Cell::new(of_process());
        pub(super) static FAULTS: RefCell<Faults> = RefCell::new(Faults::default());
    }

    fn of_process() -> Option<Mutation> {
        let name = std::env::var(VARIABLE).ok()?;
        let mutation = Mutation::from_name(&name);
        assert!(
            mutation.is_some(),
            "{VARIABLE}: there is no mutation {name}"
        );
        mutation
    }

    #[inline]
    pub(super) fn mutated(mutation: Mutation) -> bool {
        MUTATION.get() == Some(mutation)
    }

    #[inline]
    pub(super) fn strikes(fault: Fault) -> bool {
        FAULTS.with_borrow_mut(|faults| faults.strikes(fault))
    }
}

#[cfg(all(feature = "mutations", not(feature = "simulation")))]
mod loaded {
    #![allow(unsafe_code)]

    use super::Mutation;

    /// The defect's number, or any other number for none. The verifier knows it as a constant, and
    /// follows only what that leads to.
    #[unsafe(no_mangle)]
    static MUTATION: u8 = u8::MAX;

    #[inline(always)]
    pub(super) fn mutated(mutation: Mutation) -> bool {
        // SAFETY: it is a plain byte, which nobody writes once the program is loaded; the compiler
        // must not take it for what it is in the source.
        let committed = unsafe { (&raw const MUTATION).read_volatile() };
        committed == mutation as u8
    }

    /// Longest wait in loads.
    const LONGEST: u64 = 8191;

    /// Not always as long: who reads later has to overtake.
    #[inline(always)]
    pub(super) fn linger(value: u64) {
        let length = value.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 & LONGEST;
        for _ in 0..length {
            // SAFETY: as in `mutated`.
            unsafe { (&raw const MUTATION).read_volatile() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    #[test]
    fn every_defect_and_fault_has_a_name_of_its_own() {
        let names: BTreeSet<_> = Mutation::ALL.iter().map(|one| one.name()).collect();
        assert_eq!(names.len(), Mutation::ALL.len());
        assert_eq!(
            Mutation::PromiseNotChecked.breaks(),
            "Accept does not compare its ballot with the promise."
        );
        for (index, mutation) in Mutation::ALL.iter().enumerate() {
            assert_eq!(*mutation as usize, index);
            assert_eq!(Mutation::from_name(mutation.name()), Some(*mutation));
        }
        for (index, fault) in Fault::ALL.iter().enumerate() {
            assert_eq!(*fault as usize, index);
        }
    }

    #[cfg(feature = "simulation")]
    #[test]
    fn faults_strike_as_often_as_they_are_told() {
        inject(&Faults::new(1).with(Fault::RecordBusy, 500));
        let busy = (0..1000).filter(|_| strikes(Fault::RecordBusy)).count();
        let contended = (0..1000).filter(|_| strikes(Fault::RaiseContended)).count();
        assert!((400..600).contains(&busy) && contended == 0);
        let tally = faults().tally(Fault::RecordBusy);
        assert_eq!((tally.passed, tally.struck), (1000, busy as u64));
        assert!(!strikes(Fault::RecordBusy));
    }

    #[cfg(feature = "simulation")]
    #[test]
    fn a_defect_is_the_threads_own() {
        let of_process = mutation();
        mutate(Some(Mutation::PromiseNotChecked));
        let other = std::thread::spawn(mutation);
        assert!(mutated(Mutation::PromiseNotChecked) && !mutated(Mutation::PromiseStored));
        assert_eq!(other.join().expect("no panic"), of_process);
    }
}
