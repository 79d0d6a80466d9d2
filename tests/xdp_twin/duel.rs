//! What duelling leaders in the kernel (`ebpf/programs/src/duel.rs`) and the test that watches them
//! agree on: the values of votes, and where in the page of the region's header each keeps its notes.
//! Behind the header's own words that page is nobody's.

/// A number for each flaw, counted from this word of the header's page on.
pub const FLAWS: usize = 64;
/// The number of the first flaw plus one, what was asked, and two numbers that contradict each other.
pub const FIRST: usize = 96;
/// Per group: the highest ballot of which anybody was told a promise or a vote.
pub const PROMISED: usize = 128;
/// Per group: the highest slot of which anybody was told a vote.
pub const HIGHEST: usize = 144;
/// Per ring entry: the newest vote that anybody saw, as [`key`] writes it.
pub const NEWEST: usize = 160;
/// Per processor: how often a request was answered, by kind of answer, and dropped.
pub const TALLY: usize = 256;
/// Words of a processor's tally.
pub const TALLY_WORDS: usize = 16;
pub const PROCESSORS: usize = 16;
pub const GROUPS: usize = 8;
pub const ENTRIES: usize = 96;

/// What no acceptor may do. The discriminant indexes [`FLAWS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Flaw {
    /// An answer, or none, that no such request has.
    Unexpected = 0,
    /// A ballot is served, or spoken of as promised, that is below one of which somebody was told.
    PromiseWentBack = 1,
    /// A promise does not tell of a slot that was voted in before.
    HighestForgotten = 2,
    /// A vote is gone that somebody saw or was told of.
    VoteLost = 3,
    /// One slot and ballot, and two values.
    TwoValues = 4,
    /// A value that nobody proposed.
    Torn = 5,
    /// A vote above the promise.
    VoteAbovePromise = 6,
    /// A vote in a lower ballot appeared after a higher one had looked for it.
    LateVote = 7,
    /// A slot beyond the window: one that is kept is gone.
    KeptSlotOverwritten = 8,
    /// The trim went back, or refuses what it does not exclude.
    TrimWentBack = 9,
}

impl Flaw {
    pub const ALL: [Self; 10] = [
        Self::Unexpected,
        Self::PromiseWentBack,
        Self::HighestForgotten,
        Self::VoteLost,
        Self::TwoValues,
        Self::Torn,
        Self::VoteAbovePromise,
        Self::LateVote,
        Self::KeptSlotOverwritten,
        Self::TrimWentBack,
    ];
}

/// The values that one leader may propose in one slot and ballot, by what it sends again.
pub const VARIANTS: u64 = 0xff;

/// A vote as a number that rises with slot and ballot: 24 bits of slot, 28 of round, 4 of node, 8 of
/// variant.
#[inline(always)]
pub const fn key(slot: u64, ballot: u64, variant: u64) -> u64 {
    slot << 40 | (ballot >> 16 & 0x0fff_ffff) << 12 | (ballot & 15) << 8 | variant & VARIANTS
}

/// The bits from which all of a vote's value follows.
#[inline(always)]
pub const fn seed(group: u64, key: u64) -> u64 {
    let mixed = (key ^ group << 60).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ mixed >> 32
}

/// Length in bytes, from 8 to `limit`.
#[inline(always)]
pub const fn length(seed: u64, limit: u64) -> u64 {
    8 + (((seed & 0xffff) * (limit - 7)) >> 16)
}

/// Word `index` of a value of `length` bytes; the first begins with the variant.
#[inline(always)]
pub const fn word(seed: u64, key: u64, length: u64, index: u64) -> u64 {
    if index == 0 {
        return seed & !VARIANTS | key & VARIANTS;
    }
    let mixed = seed.wrapping_add(index.wrapping_mul(0x94d0_49bb_1331_11eb));
    let mixed = mixed ^ mixed >> 31;
    let rest = length - index * 8;
    if rest < 8 {
        mixed & ((1 << (rest * 8)) - 1)
    } else {
        mixed
    }
}
