//! The memory that *is* an acceptor. `docs/region.md` has the layout byte by byte.
//!
//! A region is four fixed-stride arrays of 64-bit words in the machine's byte order: one header,
//! peers, groups, and the ring entries of all groups. Each begins on a page, so that a file and a
//! set of BPF array maps hold the same bytes.
//!
//! Ring entries and the decided record of a group have two bodies; bit 1 of their sequence word
//! says which one is published. A writer that dies between taking and releasing the word leaves it
//! odd (the record is *torn*) with the old body untouched: the next opener restores it, so no vote
//! is ever half there and none is lost.

#[cfg(target_has_atomic = "64")]
mod hand_over;

use crate::auth::SipHash;
use crate::memory::{Memory, published};
use crate::simulation::{Mutation, mutated};
#[cfg(target_has_atomic = "64")]
use crate::sync::{AtomicU64, Ordering};
use crate::{Ballot, Epoch, GroupId, Incarnation, NodeId, Slot, wire};

/// First word of every region: "NWREGION" in the machine's byte order.
pub const MAGIC: u64 = u64::from_be_bytes(*b"NWREGION");
/// The layout that this code reads and writes.
pub const VERSION: u64 = 1;
/// Words in a page: sections begin on pages.
const PAGE_WORDS: usize = 512;
/// Words of the header that its checksum covers.
#[cfg(target_has_atomic = "64")]
const SEALED_WORDS: usize = header::CHECKSUM;

const _: () = assert!(header::GENERATION < PAGE_WORDS);
const _: () = assert!(group::LEASE_UNTIL < group::BODY_WORDS);
const _: () = assert!(group::BODIES + 2 * group::BODY_WORDS <= group::WORDS);
const _: () = assert!(Layout::groups_start().is_multiple_of(PAGE_WORDS));

/// Words of the header.
pub mod header {
    /// [`super::MAGIC`].
    pub const MAGIC: usize = 0;
    /// [`super::VERSION`].
    pub const VERSION: usize = 1;
    /// A number for the cluster's name.
    pub const CLUSTER: usize = 2;
    /// The node that this acceptor is.
    pub const NODE: usize = 3;
    /// How many groups there are.
    pub const GROUPS: usize = 4;
    /// How many ring entries each group has: its window, a power of two.
    pub const WINDOW: usize = 5;
    /// Longest value in bytes, a multiple of eight.
    pub const VALUE_BYTES: usize = 6;
    /// Chosen at random when the region was made.
    pub const NONCE: usize = 7;
    /// First half of the kernel's boot id, or zero if the region outlives the machine.
    pub const BOOT_HIGH: usize = 8;
    /// Second half of the kernel's boot id.
    pub const BOOT_LOW: usize = 9;
    /// What replies carry: see [`super::Birth::incarnation`].
    pub const INCARNATION: usize = 10;
    /// Nanoseconds that a lease lasts by this acceptor's clock.
    pub const LEASE_NS: usize = 11;
    /// SipHash-2-4 with a zero key over the words before.
    pub const CHECKSUM: usize = 12;
    /// Counts hand-overs between engines.
    pub const GENERATION: usize = 13;
}

/// Words of a group.
pub mod group {
    /// Sequence word of the decided record; also excludes Prepare from Decide.
    pub const LOCK: usize = 0;
    /// [`ACTIVE`] or [`SEALED`] in the low half, the epoch in the high half.
    pub const STATE: usize = 1;
    /// Highest ballot promised or voted in.
    pub const PROMISED: usize = 2;
    /// Highest slot that an Accept has touched.
    pub const HIGHEST: usize = 3;
    /// Lowest slot that is kept.
    pub const TRIM: usize = 4;
    /// Ring entries of this group: a power of two.
    pub const WINDOW: usize = 5;
    /// First ring entry of this group.
    pub const BASE: usize = 6;
    /// Nanoseconds that a lease lasts.
    pub const LEASE_NS: usize = 7;
    /// The two decided records.
    pub const BODIES: usize = 8;
    /// Words of one decided record.
    pub const BODY_WORDS: usize = 8;
    /// In a decided record: the ballot whose leader decided.
    pub const BALLOT: usize = 0;
    /// In a decided record: first slot chosen under the ballot.
    pub const FROM: usize = 1;
    /// In a decided record: last slot chosen under the ballot.
    pub const UPTO: usize = 2;
    /// In a decided record: the ballot that holds the lease.
    pub const LEASE_BALLOT: usize = 3;
    /// In a decided record: when the lease ends by this machine's monotonic clock, in nanoseconds.
    pub const LEASE_UNTIL: usize = 4;
    /// What was promised when the group was sealed.
    pub const SAVED: usize = 24;
    /// Words of a group.
    pub const WORDS: usize = 32;
    /// State: steps are answered.
    pub const ACTIVE: u64 = 1;
    /// State: votes are being handed over; nothing is answered.
    pub const SEALED: u64 = 2;
}

/// Words of a ring entry.
pub mod entry {
    /// Sequence word.
    pub const LOCK: usize = 0;
    /// The two bodies.
    pub const BODIES: usize = 1;
    /// In a body: the slot voted in; zero if the entry was never used.
    pub const SLOT: usize = 0;
    /// In a body: the ballot voted in.
    pub const BALLOT: usize = 1;
    /// In a body: length of the value in bytes.
    pub const LENGTH: usize = 2;
    /// In a body: the value.
    pub const VALUE: usize = 3;
}

/// Where everything stands. All sizes are in words unless named otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Layout {
    groups: u16,
    window: u64,
    value_bytes: usize,
}

/// A layout that no region may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LayoutError {
    /// Too few or too many groups.
    #[error("lay out region: {0} groups, but it takes 1 to 4096")]
    Groups(u16),
    /// The window is no power of two or out of range.
    #[error("lay out region: window of {0} slots, but it takes a power of two from 2 to 2^20")]
    Window(u64),
    /// The value limit is out of range or no multiple of eight.
    #[error("lay out region: values of {0} bytes, but it takes a multiple of 8 from 64 to 32768")]
    Value(usize),
}

impl Layout {
    /// A layout of `groups` logs with `window` ring entries each and values of at most
    /// `value_bytes`.
    ///
    /// # Errors
    /// Names the number that is out of range.
    pub const fn new(groups: u16, window: u64, value_bytes: usize) -> Result<Self, LayoutError> {
        if groups == 0 || groups > 4096 {
            return Err(LayoutError::Groups(groups));
        }
        if !window.is_power_of_two() || window < 2 || window > 1 << 20 {
            return Err(LayoutError::Window(window));
        }
        if value_bytes < 64 || value_bytes > wire::MAX_VALUE_BYTES || !value_bytes.is_multiple_of(8)
        {
            return Err(LayoutError::Value(value_bytes));
        }
        Ok(Self {
            groups,
            window,
            value_bytes,
        })
    }

    /// How many groups.
    pub const fn groups(&self) -> u16 {
        self.groups
    }

    /// Ring entries of each group.
    pub const fn window(&self) -> u64 {
        self.window
    }

    /// Longest value in bytes.
    pub const fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    const fn peers_start() -> usize {
        PAGE_WORDS
    }

    const fn groups_start() -> usize {
        Self::peers_start() + NodeId::MAX as usize + 1
    }

    const fn entries_start(&self) -> usize {
        (Self::groups_start() + self.groups as usize * group::WORDS).next_multiple_of(PAGE_WORDS)
    }

    const fn entries(&self) -> u64 {
        self.groups as u64 * self.window
    }

    const fn body_words(&self) -> usize {
        entry::VALUE + self.value_bytes / 8
    }

    /// Words from one ring entry to the next: a multiple of a cache line.
    pub const fn entry_words(&self) -> usize {
        (entry::BODIES + 2 * self.body_words()).next_multiple_of(8)
    }

    /// Words of the whole region.
    pub const fn words(&self) -> usize {
        let entries = self.groups as usize * self.window as usize * self.entry_words();
        (self.entries_start() + entries).next_multiple_of(PAGE_WORDS)
    }

    /// Bytes of the whole region.
    pub const fn bytes(&self) -> usize {
        self.words() * 8
    }

    /// Where a group's record starts.
    #[inline]
    pub const fn group_at(&self, group: GroupId) -> Option<usize> {
        if group.0 >= self.groups {
            return None;
        }
        Some(Self::groups_start() + group.0 as usize * group::WORDS)
    }

    /// Where ring entry `index` of the region starts.
    #[inline]
    pub const fn entry_at(&self, index: u64) -> Option<usize> {
        if index >= self.entries() {
            return None;
        }
        Some(self.entries_start() + index as usize * self.entry_words())
    }

    /// Where a peer's record starts.
    #[inline]
    pub const fn peer_at(&self, node: NodeId) -> Option<usize> {
        if node.0 > NodeId::MAX {
            return None;
        }
        Some(Self::peers_start() + node.0 as usize)
    }
}

/// What a region is made with and must be found with again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Birth {
    /// A number for the cluster's name.
    pub cluster: u64,
    /// The node that the acceptor is.
    pub node: NodeId,
    /// Random; tells this life of the memory from every other.
    pub nonce: u64,
    /// The kernel's boot id, or zero where the durability mode covers the loss of power.
    pub boot: u128,
}

impl Birth {
    /// What replies carry: 32 bits drawn from nonce and boot id, never zero.
    pub fn incarnation(&self) -> Incarnation {
        let mut hash = SipHash::new([self.nonce, 0]);
        hash.word((self.boot >> 64) as u64);
        hash.word(self.boot as u64);
        let tag = hash.finish();
        Incarnation(((tag >> 32) as u32 ^ tag as u32).max(1))
    }
}

/// A region cannot be opened as this acceptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// Nothing was ever written: create it, if the node never had a region before.
    #[error("open region: it is blank")]
    Blank,
    /// Some other file.
    #[error("open region: it begins with {0:#018x}, which is no region of this machine's kind")]
    Foreign(u64),
    /// Another layout version.
    #[error("open region: layout version {0}, but this build reads version {VERSION}")]
    Version(u64),
    /// It belongs to another cluster.
    #[error("open region: it belongs to another cluster")]
    OtherCluster,
    /// It belongs to another node.
    #[error("open region: it is node {found}'s, not node {wanted}'s")]
    OtherNode {
        /// Whose it is.
        found: NodeId,
        /// Who asked.
        wanted: NodeId,
    },
    /// It is from another life of the memory or from before a reboot.
    #[error("open region: it is another incarnation ({found}) than the one on record ({wanted})")]
    OtherIncarnation {
        /// What the region says.
        found: Incarnation,
        /// What is on record.
        wanted: Incarnation,
    },
    /// Its dimensions are not those asked for.
    #[error(
        "open region: made for {groups} groups, {window} slots, {value_bytes} bytes; \
         these cannot change in a region that has votes"
    )]
    OtherLayout {
        /// Its groups.
        groups: u64,
        /// Its window.
        window: u64,
        /// Its value limit.
        value_bytes: u64,
    },
    /// The memory is shorter or longer than the layout.
    #[error("open region: {found} bytes, but the layout takes {wanted}")]
    Size {
        /// Its length.
        found: usize,
        /// What the layout takes.
        wanted: usize,
    },
    /// The header's checksum or a record contradicts itself.
    #[error("open region: damaged {what} at byte {at}")]
    Damaged {
        /// Which record.
        what: &'static str,
        /// Where it starts.
        at: usize,
    },
}

/// A region over words in ordinary memory: a mapped file, a vector. BPF programs, whose target has
/// no such atomics, reach theirs by map lookup.
#[cfg(target_has_atomic = "64")]
#[derive(Debug)]
pub struct Region<W> {
    words: W,
    layout: Layout,
    birth: Birth,
}

#[cfg(target_has_atomic = "64")]
fn checksum(words: &[AtomicU64]) -> u64 {
    let mut hash = SipHash::new([0, 0]);
    for word in words.iter().take(SEALED_WORDS) {
        hash.word(word.load(Ordering::Acquire));
    }
    hash.finish()
}

#[cfg(target_has_atomic = "64")]
fn check_size(words: &[AtomicU64], layout: &Layout) -> Result<(), OpenError> {
    if words.len() == layout.words() {
        return Ok(());
    }
    Err(OpenError::Size {
        found: words.len() * 8,
        wanted: layout.bytes(),
    })
}

/// Refuses words that are no region of this version, or whose header is damaged.
#[cfg(target_has_atomic = "64")]
fn check_header(words: &[AtomicU64]) -> Result<(), OpenError> {
    let word = |at: usize| words.get(at).map_or(0, |word| word.load(Ordering::Acquire));
    match word(header::MAGIC) {
        MAGIC => {}
        0 => return Err(OpenError::Blank),
        other => return Err(OpenError::Foreign(other)),
    }
    if word(header::VERSION) != VERSION {
        return Err(OpenError::Version(word(header::VERSION)));
    }
    if word(header::CHECKSUM) != checksum(words) {
        return Err(HEADER_DAMAGED);
    }
    Ok(())
}

#[cfg(target_has_atomic = "64")]
const HEADER_DAMAGED: OpenError = OpenError::Damaged {
    what: "header",
    at: 0,
};

/// Refuses words that hold a region, or what some step has touched.
#[cfg(target_has_atomic = "64")]
fn check_blank(words: &[AtomicU64], layout: &Layout) -> Result<(), OpenError> {
    let used = |at: usize| {
        words
            .get(at)
            .is_some_and(|word| word.load(Ordering::Acquire) != 0)
    };
    let not_blank = |what, at: usize| Err(OpenError::Damaged { what, at: at * 8 });
    if used(header::MAGIC) {
        return not_blank("blank header", header::MAGIC);
    }
    for at in (0..layout.groups).filter_map(|number| layout.group_at(GroupId(number))) {
        let touched = [group::LOCK, group::PROMISED, group::HIGHEST];
        if touched.iter().any(|word| used(at + word)) {
            return not_blank("blank group", at);
        }
    }
    for at in (0..layout.entries()).filter_map(|index| layout.entry_at(index)) {
        if used(at + entry::LOCK) {
            return not_blank("blank ring entry", at);
        }
    }
    Ok(())
}

#[cfg(target_has_atomic = "64")]
impl<W: AsRef<[AtomicU64]>> Region<W> {
    /// Writes a fresh region over `words`, which must be blank: all zero, or what a maker left that
    /// died before it wrote the magic number.
    ///
    /// # Errors
    /// [`OpenError::Size`] if `words` is not [`Layout::words`] long, [`OpenError::Damaged`] if it
    /// has a magic number or a record that some step has touched. It is then unchanged: votes that
    /// lost their header must not turn up under another incarnation.
    pub fn create(
        words: W,
        layout: Layout,
        birth: Birth,
        epoch: Epoch,
        lease_ns: u64,
    ) -> Result<Self, OpenError> {
        let all = words.as_ref();
        check_size(all, &layout)?;
        check_blank(all, &layout)?;
        let set = |at: usize, value: u64| {
            if let Some(word) = all.get(at) {
                word.store(value, Ordering::Release);
            }
        };
        for number in 0..layout.groups {
            let Some(at) = layout.group_at(GroupId(number)) else {
                continue;
            };
            set(at + group::STATE, group::ACTIVE | u64::from(epoch.0) << 32);
            set(at + group::TRIM, Slot::FIRST.0);
            set(at + group::WINDOW, layout.window);
            set(at + group::BASE, u64::from(number) * layout.window);
            set(at + group::LEASE_NS, lease_ns);
        }
        set(header::VERSION, VERSION);
        set(header::CLUSTER, birth.cluster);
        set(header::NODE, u64::from(birth.node.0));
        set(header::GROUPS, u64::from(layout.groups));
        set(header::WINDOW, layout.window);
        set(header::VALUE_BYTES, layout.value_bytes as u64);
        set(header::NONCE, birth.nonce);
        set(header::BOOT_HIGH, (birth.boot >> 64) as u64);
        set(header::BOOT_LOW, birth.boot as u64);
        set(header::INCARNATION, u64::from(birth.incarnation().0));
        set(header::LEASE_NS, lease_ns);
        set(header::GENERATION, 0);
        // The magic comes last: a region whose maker died half-way is blank, not damaged.
        let sealed = {
            let mut hash = SipHash::new([0, 0]);
            hash.word(MAGIC);
            for word in all.iter().take(SEALED_WORDS).skip(1) {
                hash.word(word.load(Ordering::Acquire));
            }
            hash.finish()
        };
        set(header::CHECKSUM, sealed);
        set(header::MAGIC, MAGIC);
        Ok(Self {
            words,
            layout,
            birth,
        })
    }

    /// Opens an existing region for writing and restores torn records. The caller proves that no
    /// other engine is live on it.
    ///
    /// # Errors
    /// Says why it is not the region of `birth` and `layout`; the region is then unchanged.
    pub fn open(words: W, layout: Layout, birth: Birth) -> Result<(Self, Restored), OpenError> {
        let all = words.as_ref();
        let word = |at: usize| all.get(at).map_or(0, |word| word.load(Ordering::Acquire));
        check_header(all)?;
        if word(header::CLUSTER) != birth.cluster {
            return Err(OpenError::OtherCluster);
        }
        if word(header::NODE) != u64::from(birth.node.0) {
            let found = NodeId(word(header::NODE) as u16);
            return Err(OpenError::OtherNode {
                found,
                wanted: birth.node,
            });
        }
        let incarnation = birth.incarnation();
        // The incarnation is 32 bits of nonce and boot id: these decide.
        let is_other = word(header::INCARNATION) != u64::from(incarnation.0)
            || word(header::NONCE) != birth.nonce
            || word(header::BOOT_HIGH) != (birth.boot >> 64) as u64
            || word(header::BOOT_LOW) != birth.boot as u64;
        if is_other && !mutated(Mutation::OtherLifeOpened) {
            return Err(OpenError::OtherIncarnation {
                found: Incarnation(word(header::INCARNATION) as u32),
                wanted: incarnation,
            });
        }
        let (groups, window, value_bytes) = (
            word(header::GROUPS),
            word(header::WINDOW),
            word(header::VALUE_BYTES),
        );
        if (groups, window, value_bytes)
            != (
                u64::from(layout.groups),
                layout.window,
                layout.value_bytes as u64,
            )
        {
            return Err(OpenError::OtherLayout {
                groups,
                window,
                value_bytes,
            });
        }
        check_size(all, &layout)?;
        let region = Self {
            words,
            layout,
            birth,
        };
        region.check()?;
        let restored = region.restore();
        Ok((region, restored))
    }

    /// Looks for records that contradict themselves.
    fn check(&self) -> Result<(), OpenError> {
        let damaged = |what, at: usize| Err(OpenError::Damaged { what, at: at * 8 });
        let window = self.layout.window;
        for number in 0..self.layout.groups {
            let id = GroupId(number);
            let Some(at) = self.layout.group_at(id) else {
                continue;
            };
            let base = u64::from(number) * window;
            if self.word(at + group::WINDOW) != window || self.word(at + group::BASE) != base {
                return damaged("group", at);
            }
            let trim = self.word(at + group::TRIM);
            let highest = self.word(at + group::HIGHEST);
            let promised = self.word(at + group::PROMISED);
            if trim == 0 || highest >= trim.saturating_add(window) {
                return damaged("group", at);
            }
            let state = self.word(at + group::STATE) & 0xffff_ffff;
            if state != group::ACTIVE && state != group::SEALED {
                return damaged("group", at);
            }
            // A lease that ran shorter than its leader counts on would be no lease.
            if self.word(at + group::LEASE_NS) != self.word(header::LEASE_NS) {
                return damaged("group", at);
            }
            let body =
                at + group::BODIES + published(self.word(at + group::LOCK)) * group::BODY_WORDS;
            if self.word(body + group::BALLOT) > promised
                || self.word(body + group::LEASE_BALLOT) > promised
                || self.word(body + group::FROM) > self.word(body + group::UPTO).saturating_add(1)
            {
                return damaged("decided record", body);
            }
            for index in base..base + window {
                let Some(at) = self.layout.entry_at(index) else {
                    continue;
                };
                let (slot, ballot, length) = self.vote_head(at);
                if (slot, ballot, length) == (0, 0, 0) {
                    continue;
                }
                if slot == 0
                    || slot & (window - 1) != index - base
                    || slot > highest
                    || ballot == 0
                    || ballot > promised
                    || length > self.layout.value_bytes as u64
                {
                    return damaged("ring entry", at);
                }
            }
        }
        Ok(())
    }

    fn vote_head(&self, at: usize) -> (u64, u64, u64) {
        let body = at + self.layout.body(published(self.word(at + entry::LOCK)));
        (
            self.word(body + entry::SLOT),
            self.word(body + entry::BALLOT),
            self.word(body + entry::LENGTH),
        )
    }

    /// Makes odd sequence words even again: their published bodies are whole.
    fn restore(&self) -> Restored {
        let mut restored = Restored::default();
        let untear = |at: usize| {
            let Some(word) = self.words.as_ref().get(at) else {
                return 0;
            };
            let sequence = word.load(Ordering::Acquire);
            let whole = if mutated(Mutation::TornPublished) {
                sequence.wrapping_add(sequence & 1)
            } else {
                sequence & !1
            };
            word.store(whole, Ordering::Release);
            sequence & 1
        };
        for number in 0..self.layout.groups {
            if let Some(at) = self.layout.group_at(GroupId(number)) {
                restored.groups += untear(at + group::LOCK);
            }
        }
        for index in 0..self.layout.entries() {
            if let Some(at) = self.layout.entry_at(index) {
                restored.entries += untear(at + entry::LOCK);
            }
        }
        restored
    }

    fn word(&self, at: usize) -> u64 {
        self.words
            .as_ref()
            .get(at)
            .map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Where everything stands.
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// What the region was made with.
    pub const fn birth(&self) -> &Birth {
        &self.birth
    }
}

#[cfg(target_has_atomic = "64")]
pub use hand_over::Locked;

impl Layout {
    /// Offset of body 0 or 1 in a ring entry.
    #[inline]
    pub(crate) const fn body(&self, which: usize) -> usize {
        entry::BODIES + which * self.body_words()
    }
}

/// How many torn records an opener restored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Restored {
    /// Groups whose decided record was being written.
    pub groups: u64,
    /// Ring entries that were being written.
    pub entries: u64,
}

#[cfg(target_has_atomic = "64")]
impl<W: AsRef<[AtomicU64]>> Memory for Region<W> {
    type At = usize;

    #[inline]
    fn group(&self, group: GroupId) -> Option<usize> {
        self.layout.group_at(group)
    }

    #[inline]
    fn entry(&self, index: u64) -> Option<usize> {
        self.layout.entry_at(index)
    }

    #[inline]
    fn peer(&self, node: NodeId) -> Option<usize> {
        self.layout.peer_at(node)
    }

    #[inline]
    fn load(&self, at: usize, word: usize) -> u64 {
        // SeqCst, as in "write mine, full barrier, read yours": an Acquire load may be taken before
        // the write of an exchange on another word.
        self.words
            .as_ref()
            .get(at + word)
            .map_or(0, |place| place.load(Ordering::SeqCst))
    }

    #[inline]
    fn store(&self, at: usize, word: usize, value: u64) {
        if let Some(place) = self.words.as_ref().get(at + word) {
            // Release: see `view` and `vote`.
            place.store(value, Ordering::Release);
        }
    }

    #[inline]
    fn compare_exchange(&self, at: usize, word: usize, current: u64, new: u64) -> Result<u64, u64> {
        match self.words.as_ref().get(at + word) {
            Some(place) => place.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst),
            None => Err(!current),
        }
    }

    #[inline]
    fn exchange(&self, at: usize, word: usize, new: u64) -> u64 {
        self.words
            .as_ref()
            .get(at + word)
            .map_or(0, |place| place.swap(new, Ordering::SeqCst))
    }

    #[inline]
    fn fetch_add(&self, at: usize, word: usize, add: u64) -> u64 {
        self.words
            .as_ref()
            .get(at + word)
            .map_or(0, |place| place.fetch_add(add, Ordering::SeqCst))
    }
}

/// What a group's record says, read without its lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupView {
    /// Highest ballot promised or voted in.
    pub promised: Ballot,
    /// Highest slot touched.
    pub highest: Slot,
    /// Lowest slot kept.
    pub trim: Slot,
    /// The decided record.
    pub decided: Decided,
}

/// Slots `from..=upto` are chosen under `ballot`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Decided {
    /// The ballot.
    pub ballot: Ballot,
    /// First slot.
    pub from: Slot,
    /// Last slot; below `from` if there is none.
    pub upto: Slot,
}

/// Reads a group's record without its lock. `None` if there is no such group, or if the record was
/// published anew meanwhile: read it again. A writer at work, or one that died, is in nobody's way.
///
/// The decided record is whole; promised, highest and trim are each as new as the call, and may be
/// newer than it.
pub fn view<M: Memory>(memory: &M, group: GroupId) -> Option<GroupView> {
    let at = memory.group(group)?;
    let sequence = memory.load(at, group::LOCK);
    let body = group::BODIES + published(sequence) * group::BODY_WORDS;
    let decided = Decided {
        ballot: Ballot(memory.load(at, body + group::BALLOT)),
        from: Slot(memory.load(at, body + group::FROM)),
        upto: Slot(memory.load(at, body + group::UPTO)),
    };
    let view = GroupView {
        promised: Ballot(memory.load(at, group::PROMISED)),
        highest: Slot(memory.load(at, group::HIGHEST)),
        trim: Slot(memory.load(at, group::TRIM)),
        decided,
    };
    // While we read, the other body may be written, but ours only by someone who has taken the
    // sequence word after it was published anew. His stores release, our loads acquire: had we read
    // one of them, we should find the sequence word changed. It never returns to an old value.
    let is_whole = memory.load(at, group::LOCK) & !1 == sequence & !1;
    (is_whole || mutated(Mutation::ReaderLooksOnce)).then_some(view)
}

/// The membership that a group believes in.
pub fn epoch<M: Memory>(memory: &M, group: GroupId) -> Epoch {
    let state = memory
        .group(group)
        .map_or(0, |at| memory.load(at, group::STATE));
    Epoch((state >> 32) as u32)
}

/// Who holds a group's lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lease {
    /// The ballot that it was granted to.
    pub ballot: Ballot,
    /// When it ends, in nanoseconds of the engine's monotonic clock; 0 if it was given back.
    pub until_ns: u64,
}

/// Reads who holds a group's lease, without the group's lock; as [`view`] does.
pub fn lease<M: Memory>(memory: &M, group: GroupId) -> Option<Lease> {
    let at = memory.group(group)?;
    let sequence = memory.load(at, group::LOCK);
    let body = group::BODIES + published(sequence) * group::BODY_WORDS;
    let lease = Lease {
        ballot: Ballot(memory.load(at, body + group::LEASE_BALLOT)),
        until_ns: memory.load(at, body + group::LEASE_UNTIL),
    };
    (memory.load(at, group::LOCK) & !1 == sequence & !1).then_some(lease)
}

/// How long a lease lasts in a group, in nanoseconds.
pub fn lease_ns<M: Memory>(memory: &M, group: GroupId) -> u64 {
    memory
        .group(group)
        .map_or(0, |at| memory.load(at, group::LEASE_NS))
}

/// When `node` was last heard of as a leader, in nanoseconds of the engine's monotonic clock.
pub fn seen_ns<M: Memory>(memory: &M, node: NodeId) -> u64 {
    memory.peer(node).map_or(0, |at| memory.load(at, 0))
}

/// Copies the vote of `slot` into `out` (whose length is a multiple of eight at least as long as
/// the value) and returns its ballot and length. `None` if there is no vote for exactly this slot,
/// or the entry was published anew while it was read; the argument is that of [`view`].
pub fn vote<M: Memory>(
    memory: &M,
    group: GroupId,
    slot: Slot,
    value_bytes: usize,
    out: &mut [u8],
) -> Option<(Ballot, usize)> {
    if slot == Slot::NONE {
        // An entry that was never used says slot zero, too.
        return None;
    }
    let at = memory.group(group)?;
    let window = memory.load(at, group::WINDOW);
    let index = memory
        .load(at, group::BASE)
        .wrapping_add(slot.0 & window.wrapping_sub(1));
    let at = memory.entry(index)?;
    let sequence = memory.load(at, entry::LOCK);
    let body = entry::BODIES + published(sequence) * (entry::VALUE + value_bytes / 8);
    if memory.load(at, body + entry::SLOT) != slot.0 {
        return None;
    }
    let ballot = Ballot(memory.load(at, body + entry::BALLOT));
    let length = (memory.load(at, body + entry::LENGTH) as usize).min(value_bytes);
    for (index, room) in out.chunks_exact_mut(8).take(length.div_ceil(8)).enumerate() {
        room.copy_from_slice(&memory.load(at, body + entry::VALUE + index).to_ne_bytes());
    }
    let is_whole = memory.load(at, entry::LOCK) & !1 == sequence & !1;
    (is_whole || mutated(Mutation::ReaderLooksOnce)).then_some((ballot, length))
}
